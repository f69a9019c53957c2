//! Which inodes are free: the inode bitmaps of the groups.
//!
//! Directories are spread, so that what is made in them finds room near by: those of the root go to groups with more than average
//! free, all others near their parent while there is room. Everything else goes where its directory is.

use veduta_api::Errno;

use crate::blocks::next;
use crate::change::{Change, Kind};
use crate::error::{Error, Result};
use crate::group::{Group, INODE_UNINIT};
use crate::superblock::ROOT_INO;

impl Change<'_> {
    /// Takes a free inode for something that is made in `parent`. Its record still holds what it held before.
    pub(crate) fn allocate_inode(&mut self, parent: u32, is_dir: bool) -> Result<u32> {
        let sb = &self.volume.sb;
        let home = (parent - 1) / sb.inodes_per_group;
        let first = if is_dir { self.group_for_dir(parent, home)? } else { home };
        for step in 0..sb.group_count {
            let group = (first + step) % sb.group_count;
            let about = self.volume.group(group)?;
            if about.free_inodes == 0 {
                continue;
            }
            if let Some(ino) = self.allocate_in(group, about, is_dir)? {
                return Ok(ino);
            }
        }
        Err(Errno::ENOSPC.into())
    }

    /// Gives back an inode, whose record says already that it is not in use.
    pub(crate) fn release_inode(&mut self, ino: u32, is_dir: bool) -> Result<()> {
        let per_group = self.volume.sb.inodes_per_group;
        let (group, bit) = ((ino - 1) / per_group, ((ino - 1) % per_group) as usize);
        let mut about = self.volume.group(group)?;
        let mut bitmap = self.inode_bitmap(group, &about)?;
        if bitmap[bit / 8] & 1 << (bit % 8) == 0 {
            return Err(Error::corrupt("it is free already").in_inode(ino));
        }
        bitmap[bit / 8] &= !(1 << (bit % 8));
        about.free_inodes += 1;
        about.used_dirs = about.used_dirs.saturating_sub(u32::from(is_dir));
        self.store_inode_bitmap(group, about, bitmap)?;
        self.meta.free_inodes += 1;
        self.keep_inode_from_others(group, bit as u32);
        Ok(())
    }

    fn group_for_dir(&mut self, parent: u32, home: u32) -> Result<u32> {
        let sb = &self.volume.sb;
        let groups = u64::from(sb.group_count);
        let (inodes, clusters) = (self.meta.free_inodes / groups, self.meta.free_clusters / groups);
        let roomy = |about: &Group, part: u64| {
            u64::from(about.free_inodes) * part >= inodes.max(1)
                && u64::from(about.free_clusters) * part >= clusters
        };
        if parent != ROOT_INO {
            return Ok(if roomy(&self.volume.group(home)?, 4) { home } else { (home + 1) % sb.group_count });
        }
        let mut best: Option<(u32, u32)> = None;
        for group in 0..sb.group_count.min(4096) {
            let about = self.volume.group(group)?;
            if roomy(&about, 1) && best.is_none_or(|(_, dirs)| about.used_dirs < dirs) {
                best = Some((group, about.used_dirs));
            }
        }
        Ok(best.map_or(home, |(group, _)| group))
    }

    fn allocate_in(&mut self, group: u32, about: Group, is_dir: bool) -> Result<Option<u32>> {
        let sb = &self.volume.sb;
        let per_group = sb.inodes_per_group;
        let bitmap = self.inode_bitmap(group, &about)?;
        // Those that were given back are no one's before that is committed.
        let mut busy = bitmap.clone();
        for freed in [&self.meta.running.freed_inodes, &self.meta.leaving_inodes] {
            if let Some(freed) = freed.get(&group) {
                busy.iter_mut().zip(freed).for_each(|(byte, freed)| *byte |= freed);
            }
        }
        let mut at = if group == 0 { sb.first_ino as usize - 1 } else { 0 };
        // Each round goes on by one bit.
        let (bit, ino) = loop {
            match next(&busy, at, false).filter(|bit| *bit < per_group as usize) {
                None => return Ok(None),
                Some(bit) => {
                    let ino = group * per_group + bit as u32 + 1;
                    if sb.is_ordinary(ino) {
                        break (bit, ino);
                    }
                    at = bit + 1;
                }
            }
        };
        self.take_inode(group, about, bitmap, bit, is_dir)?;
        Ok(Some(ino))
    }

    /// Takes an inode by its number: whether it was free.
    pub(crate) fn claim_inode(&mut self, ino: u32, is_dir: bool) -> Result<bool> {
        let per_group = self.volume.sb.inodes_per_group;
        let (group, bit) = ((ino - 1) / per_group, ((ino - 1) % per_group) as usize);
        let about = self.volume.group(group)?;
        let bitmap = self.inode_bitmap(group, &about)?;
        let is_free = bitmap[bit / 8] & 1 << (bit % 8) == 0;
        if is_free {
            self.take_inode(group, about, bitmap, bit, is_dir)?;
        }
        Ok(is_free)
    }

    fn take_inode(
        &mut self,
        group: u32,
        mut about: Group,
        mut bitmap: Vec<u8>,
        bit: usize,
        is_dir: bool,
    ) -> Result<()> {
        let per_group = self.volume.sb.inodes_per_group;
        bitmap[bit / 8] |= 1 << (bit % 8);
        about.free_inodes = about
            .free_inodes
            .checked_sub(1)
            .ok_or_else(|| Error::corrupt(format!("the count of free inodes of group {group} is wrong")))?;
        about.used_dirs += u32::from(is_dir);
        if self.volume.has_group_flags() {
            let used = per_group - about.unused_inodes.min(per_group);
            if bit as u32 >= used {
                self.clear_unused(&about, used, bit as u32)?;
                about.unused_inodes = per_group - bit as u32 - 1;
            }
        }
        self.store_inode_bitmap(group, about, bitmap)?;
        self.meta.free_inodes = self.meta.free_inodes.saturating_sub(1);
        Ok(())
    }

    /// Table blocks that only now come into use may hold anything: from that behind the last used inode to that of `bit`.
    fn clear_unused(&mut self, about: &Group, used: u32, bit: u32) -> Result<()> {
        let sb = &self.volume.sb;
        let per_block = (sb.block_size() as u32) / sb.inode_size;
        for block in used.div_ceil(per_block)..=bit / per_block {
            self.fresh(about.inode_table + u64::from(block), Kind::Inodes, vec![0; sb.block_size()]);
        }
        Ok(())
    }

    fn inode_bitmap(&mut self, group: u32, about: &Group) -> Result<Vec<u8>> {
        let per_group = self.volume.sb.inodes_per_group as usize;
        if about.flags & INODE_UNINIT != 0 {
            let mut bitmap = vec![0; self.volume.block_size()];
            (per_group..bitmap.len() * 8).for_each(|bit| bitmap[bit / 8] |= 1 << (bit % 8));
            return Ok(bitmap);
        }
        if !self.volume.sb.holds(about.inode_bitmap, 1) {
            return Err(Error::corrupt(format!("the inode bitmap of group {group} lies outside the volume")));
        }
        let bitmap = self.volume.block(about.inode_bitmap)?;
        let sum = self.volume.bitmap_sum(&bitmap, per_group as u32);
        if self.volume.sb.has_checksums() && self.volume.kept_sum(sum) != about.inode_bitmap_sum {
            let what = format!("the checksum of the inode bitmap of group {group} is wrong");
            return Err(Error::corrupt(what).in_block(about.inode_bitmap));
        }
        Ok(bitmap.to_vec())
    }

    fn store_inode_bitmap(&mut self, group: u32, mut about: Group, bitmap: Vec<u8>) -> Result<()> {
        about.flags &= !INODE_UNINIT;
        about.inode_bitmap_sum = self.volume.bitmap_sum(&bitmap, self.volume.sb.inodes_per_group);
        self.set(about.inode_bitmap, Kind::Other, bitmap);
        self.store_group(group, &about)
    }
}
