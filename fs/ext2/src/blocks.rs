//! Which blocks are free: the block bitmaps of the groups.
//!
//! A bit is a block, or a cluster with `bigalloc`. What was given back in a transaction that is not committed yet counts as in use.
//! A file's blocks are looked for behind those that it has, or else in the group of its inode; then in the groups that follow.
//!
//! A file that grows has a *window*: free blocks behind its end that others get only when there are no more. Windows are in memory only, and
//! close with the file.

use veduta_api::Errno;

use crate::change::{Change, Kind};
use crate::error::{Error, Result};
use crate::group::{BLOCK_UNINIT, Group};

/// Groups that are looked at for a run as long as was asked for, before a shorter one is taken.
const PATIENCE: u32 = 16;
/// Files for which room is kept at a time.
const WINDOWS_MAX: usize = 256;

impl Change<'_> {
    /// Takes up to `want` free blocks that lie together, near `goal`: the first, and how many. `ENOSPC` if there
    /// are none. With `bigalloc` they are whole clusters.
    pub(crate) fn allocate(&mut self, goal: u64, want: u64) -> Result<(u64, u64)> {
        self.allocate_for(0, goal, want, 0)
    }

    /// The same for content of an inode, for which `ahead` more blocks behind them are kept from others, if there are any.
    pub(crate) fn allocate_for(&mut self, ino: u32, goal: u64, want: u64, ahead: u64) -> Result<(u64, u64)> {
        let bits = self.volume.sb.cluster_bits;
        let others = self.meta.promised.saturating_sub(self.credit);
        let free = self.meta.free_clusters.saturating_sub(others) << bits;
        if free == 0 {
            return Err(Errno::ENOSPC.into());
        }
        let want = want.min(free);
        let found = match self.find_free(ino, goal, want, ahead)? {
            None if !self.meta.windows.is_empty() => {
                // Room for what may come is no reason to refuse what is there.
                self.meta.windows.clear();
                self.find_free(ino, goal, want, 0)?
            }
            found => found,
        };
        let (group, at, len) = found.ok_or(Errno::ENOSPC)?;
        let taken = len.min(want.div_ceil(1 << bits) as usize);
        let start = self.volume.sb.group_start(group) + ((at as u64) << bits);
        self.volume.check_content(start, (taken as u64) << bits)?;
        self.mark(group, at, taken, true)?;
        let behind = start + ((taken as u64) << bits);
        if ahead > 0 && len > taken && self.meta.windows.len() < WINDOWS_MAX {
            self.meta.windows.insert(ino, behind..behind + (((len - taken) as u64) << bits));
        } else {
            self.meta.windows.remove(&ino);
        }
        Ok((start, (taken as u64) << bits))
    }

    /// Free clusters near `goal` that lie together, at most for `want` blocks and `ahead` more: group, first, how many.
    fn find_free(
        &mut self,
        ino: u32,
        goal: u64,
        want: u64,
        ahead: u64,
    ) -> Result<Option<(u32, usize, usize)>> {
        let sb = &self.volume.sb;
        let bits = sb.cluster_bits;
        let goal = if sb.holds(goal, 1) { goal } else { u64::from(sb.first_data_block) };
        let first = ((goal - u64::from(sb.first_data_block)) / u64::from(sb.blocks_per_group)) as u32;
        let near = ((goal - sb.group_start(first)) >> bits) as usize;
        let most =
            |blocks: u64| blocks.div_ceil(1 << bits).min((sb.blocks_per_group >> bits).into()) as usize;
        let (least, clusters) = (most(want), most(want + ahead));
        let mut best: Option<(u32, usize, usize)> = None;
        let mut looked = 0;
        for step in 0..sb.group_count {
            let group = (first + step) % sb.group_count;
            let about = self.volume.group(group)?;
            if about.free_clusters == 0 {
                continue;
            }
            let bitmap = self.masked_bitmap(ino, group, &about)?;
            let from = if step == 0 { near } else { 0 };
            let here = if step == 0 { run_at(&bitmap, near, clusters) } else { 0 };
            let found = match find_run(&bitmap, from, clusters) {
                // Room for what may come is not worth going elsewhere.
                _ if here >= least => Some((near, here)),
                // What follows the goal is best, however little.
                Some((at, len)) if step == 0 && at == near => Some((at, len)),
                found if from > 0 => longer(found, find_run(&bitmap, 0, clusters)),
                found => found,
            };
            let Some((at, len)) = found else { continue };
            looked += 1;
            if best.is_none_or(|(_, _, best)| len > best) {
                best = Some((group, at, len));
            }
            if len >= clusters || looked >= PATIENCE || (step == 0 && at == near) {
                break;
            }
        }
        Ok(best)
    }

    /// Takes one free block (the first of a cluster, with `bigalloc`) for metadata.
    pub(crate) fn allocate_one(&mut self, goal: u64) -> Result<u64> {
        Ok(self.allocate(goal, 1)?.0)
    }

    /// Gives back blocks (whole clusters, with `bigalloc`) that held content.
    pub(crate) fn release(&mut self, start: u64, len: u64) -> Result<()> {
        let sb = &self.volume.sb;
        let bits = sb.cluster_bits;
        if !sb.holds(start, len) {
            return Err(Error::corrupt(format!(
                "{len} blocks at {start}, outside the volume, are given back"
            )));
        }
        self.volume.check_content(start, len)?;
        let (mut at, end) = (start, start + len);
        while at < end {
            let group = ((at - u64::from(sb.first_data_block)) / u64::from(sb.blocks_per_group)) as u32;
            let group_start = sb.group_start(group);
            let part_end = end.min(group_start + u64::from(sb.blocks_per_group));
            let first = ((at - group_start) >> bits) as usize;
            let last = ((part_end - 1 - group_start) >> bits) as usize;
            self.mark(group, first, last + 1 - first, false)?;
            for bit in first..=last {
                self.keep_from_others(group, bit as u32);
            }
            at = part_end;
        }
        Ok(())
    }

    /// Takes a block wherever it is; it may be taken already.
    pub(crate) fn claim(&mut self, block: u64) -> Result<()> {
        let sb = &self.volume.sb;
        let group = ((block - u64::from(sb.first_data_block)) / u64::from(sb.blocks_per_group)) as u32;
        let bit = ((block - sb.group_start(group)) >> sb.cluster_bits) as usize;
        let about = self.volume.group(group)?;
        let bitmap = self.block_bitmap(group, &about)?;
        if bitmap[bit / 8] & 1 << (bit % 8) != 0 { Ok(()) } else { self.mark(group, bit, 1, true) }
    }

    /// Gives back a block of metadata.
    pub(crate) fn release_meta(&mut self, block: u64) -> Result<()> {
        self.release(block, 1)?;
        self.forget(block);
        Ok(())
    }

    /// The bitmap of a group, with what is not to be given out yet, or is kept for other inodes.
    fn masked_bitmap(&mut self, ino: u32, group: u32, about: &Group) -> Result<Vec<u8>> {
        let mut bitmap = self.block_bitmap(group, about)?;
        for busy in [&self.meta.running.freed, &self.meta.leaving] {
            if let Some(busy) = busy.get(&group) {
                bitmap.iter_mut().zip(busy).for_each(|(byte, busy)| *byte |= busy);
            }
        }
        let (start, bits) = (self.volume.sb.group_start(group), self.volume.sb.cluster_bits);
        let end = start + u64::from(self.volume.sb.blocks_per_group);
        for (_, window) in self.meta.windows.iter().filter(|(owner, _)| **owner != ino) {
            let (from, to) = (window.start.max(start), window.end.min(end));
            for bit in (from.saturating_sub(start) >> bits)..(to.saturating_sub(start) >> bits) {
                bitmap[bit as usize / 8] |= 1 << (bit % 8);
            }
        }
        Ok(bitmap)
    }

    fn block_bitmap(&mut self, group: u32, about: &Group) -> Result<Vec<u8>> {
        if about.flags & BLOCK_UNINIT != 0 {
            return Ok(self.volume.initial_block_bitmap(group, about));
        }
        if !self.volume.sb.holds(about.block_bitmap, 1) {
            return Err(Error::corrupt(format!("the block bitmap of group {group} lies outside the volume")));
        }
        let bitmap = self.volume.block(about.block_bitmap)?;
        let sum = self.volume.bitmap_sum(&bitmap, self.clusters_per_group());
        if self.volume.sb.has_checksums() && self.volume.kept_sum(sum) != about.block_bitmap_sum {
            let what = format!("the checksum of the block bitmap of group {group} is wrong");
            return Err(Error::corrupt(what).in_block(about.block_bitmap));
        }
        Ok(bitmap.to_vec())
    }

    fn clusters_per_group(&self) -> u32 {
        self.volume.sb.blocks_per_group >> self.volume.sb.cluster_bits
    }

    /// Marks clusters of a group as used or as free. All of them are the other now.
    fn mark(&mut self, group: u32, first: usize, len: usize, used: bool) -> Result<()> {
        let mut about = self.volume.group(group)?;
        let mut bitmap = self.block_bitmap(group, &about)?;
        if first + len > self.volume.group_clusters(group) as usize {
            return Err(Error::corrupt(format!("clusters behind the end of group {group} are asked for")));
        }
        for bit in first..first + len {
            let (byte, mask) = (&mut bitmap[bit / 8], 1 << (bit % 8));
            if (*byte & mask != 0) == used {
                let word = if used { "used" } else { "free" };
                let what = format!("cluster {bit} of group {group} is {word} already");
                return Err(Error::corrupt(what).in_block(about.block_bitmap));
            }
            *byte ^= mask;
        }
        let count = len as u32;
        let free = if used {
            about.free_clusters.checked_sub(count)
        } else {
            about.free_clusters.checked_add(count)
        };
        about.free_clusters = free
            .ok_or_else(|| Error::corrupt(format!("the count of free clusters of group {group} is wrong")))?;
        about.flags &= !BLOCK_UNINIT;
        about.block_bitmap_sum = self.volume.bitmap_sum(&bitmap, self.clusters_per_group());
        self.set(about.block_bitmap, Kind::Other, bitmap);
        self.store_group(group, &about)?;
        let total = &mut self.meta.free_clusters;
        *total = if used { total.saturating_sub(len as u64) } else { *total + len as u64 };
        Ok(())
    }
}

/// How many zeros follow each other from `from` on, at most `want`.
fn run_at(bitmap: &[u8], from: usize, want: usize) -> usize {
    next(bitmap, from, true).unwrap_or(bitmap.len() * 8).saturating_sub(from).min(want)
}

/// The longest run of zeros at or behind `from`, cut to `want`; the first that is long enough.
pub(crate) fn find_run(bitmap: &[u8], from: usize, want: usize) -> Option<(usize, usize)> {
    let bits = bitmap.len() * 8;
    let mut best = None;
    let mut at = from;
    // Each round goes on behind a run.
    while let Some(start) = next(bitmap, at, false) {
        let end = next(bitmap, start, true).unwrap_or(bits);
        let len = (end - start).min(want);
        best = longer(best, Some((start, len)));
        if len >= want {
            break;
        }
        at = end;
    }
    best
}

fn longer(one: Option<(usize, usize)>, other: Option<(usize, usize)>) -> Option<(usize, usize)> {
    match (one, other) {
        (Some(first), Some(second)) => Some(if second.1 > first.1 { second } else { first }),
        (one, other) => one.or(other),
    }
}

/// The first bit at or behind `from` that is set, or is not.
pub(crate) fn next(bitmap: &[u8], from: usize, set: bool) -> Option<usize> {
    let flip = if set { 0 } else { u64::MAX };
    let mut at = from;
    while at < bitmap.len() * 8 {
        let word = at / 64 * 8;
        let mut bytes = [if set { 0 } else { 0xff }; 8];
        let part = bitmap.get(word..(word + 8).min(bitmap.len())).unwrap_or_default();
        bytes[..part.len()].copy_from_slice(part);
        let bits = (u64::from_le_bytes(bytes) ^ flip) >> (at % 64);
        if bits != 0 {
            return Some(at + bits.trailing_zeros() as usize);
        }
        at = (at / 64 + 1) * 64;
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_run_that_is_long_enough_is_found() {
        let mut bitmap = vec![0xff; 32];
        for bit in [3, 4, 70, 71, 72, 73, 200, 255] {
            bitmap[bit / 8] &= !(1 << (bit % 8));
        }
        assert_eq!(find_run(&bitmap, 0, 2), Some((3, 2)));
        assert_eq!(find_run(&bitmap, 0, 9), Some((70, 4)));
        assert_eq!(find_run(&bitmap, 71, 2), Some((71, 2)));
        assert_eq!(find_run(&bitmap, 74, 2), Some((200, 1)));
        assert_eq!(find_run(&bitmap, 201, 2), Some((255, 1)));
        assert_eq!(find_run(&[0xff; 9], 0, 1), None);
        assert_eq!(next(&[0; 9], 0, true), None);
    }
}
