//! The space of a file: blocks that it gets, keeps, and gives back.
//!
//! One set of calls for both layouts, [`crate::extent_tree`] and [`crate::block_lists`]. The count of blocks that an inode takes up is kept
//! here for content, and there for what leads to it.

use std::ops::Range;

use veduta_api::{Errno, Kind as NodeKind};

use crate::block_lists;
use crate::change::Change;
use crate::error::Result;
use crate::extent_tree::{self, Extent};
use crate::extents::FILE_BLOCKS;
use crate::inode::FLAG_EXTENTS;
use crate::raw::RawInode;
use crate::volume::Volume;

/// Runs that are given back in one change; more than that are several.
const BUDGET: usize = 16;
/// Blocks that are kept for a file that grows: as many as it has, within these.
const AHEAD_LEAST: u64 = 16;
const AHEAD_MOST: u64 = 2048;

/// A stretch of a file.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Stretch {
    /// Blocks that it has.
    Has(Extent),
    /// Blocks that it has not: first and how many.
    Hole(u64, u64),
}

impl Stretch {
    pub(crate) fn end(&self) -> u64 {
        match self {
            Stretch::Has(extent) => extent.end(),
            Stretch::Hole(start, len) => start + len,
        }
    }
}

/// Behind the last block that a file of this layout can have.
pub(crate) fn limit(volume: &Volume, inode: &RawInode) -> u64 {
    if inode.has(FLAG_EXTENTS) { FILE_BLOCKS - 1 } else { block_lists::limit(volume) }
}

/// What there is from `block` on, up to `end`: one stretch.
pub(crate) fn find(volume: &Volume, inode: &RawInode, block: u64, end: u64) -> Result<Stretch> {
    if inode.has(FLAG_EXTENTS) {
        let (extents, range) = extent_tree::leaf(volume, inode, block)?;
        let next = extents.partition_point(|extent| extent.end() <= block);
        return Ok(match extents.get(next) {
            Some(extent) if extent.start <= block => {
                Stretch::Has(extent.within(&(block..end)).unwrap_or(*extent))
            }
            Some(extent) => Stretch::Hole(block, extent.start.min(end) - block),
            None => Stretch::Hole(block, range.end.min(end).max(block + 1) - block),
        });
    }
    let run = crate::map::run_of_lists(volume, inode.ino, inode.block(), block)?;
    let len = run.len.min(end - block);
    Ok(match run.physical {
        Some(physical) => Stretch::Has(Extent { start: block, len, physical, written: true }),
        None => Stretch::Hole(block, len),
    })
}

/// Something that a file has in a range.
fn any_in(volume: &Volume, inode: &RawInode, range: &Range<u64>) -> Result<Option<Extent>> {
    let mut at = range.start;
    // Each round goes on by at least one block.
    while at < range.end {
        match find(volume, inode, at, range.end)? {
            Stretch::Has(extent) => return Ok(Some(extent)),
            hole => at = hole.end(),
        }
    }
    Ok(None)
}

impl Change<'_> {
    /// Puts an extent into a file that has a hole there.
    pub(crate) fn put_extent(&mut self, inode: &mut RawInode, new: Extent) -> Result<()> {
        if !inode.has(FLAG_EXTENTS) {
            return block_lists::put(self, inode, new);
        }
        extent_tree::edit(self, inode, new.start, &mut |_, extents, _| {
            extent_tree::put(extents, new);
            Ok(())
        })?;
        Ok(())
    }

    /// Gives a hole blocks: as many as lie together, at most to its end.
    pub(crate) fn fill_hole(
        &mut self,
        inode: &mut RawInode,
        hole: Range<u64>,
        written: bool,
    ) -> Result<Extent> {
        if hole.end > limit(self.volume, inode) {
            return Err(Errno::EFBIG.into());
        }
        let longest = if written { crate::extents::MAX_LEN } else { crate::extents::MAX_LEN - 1 };
        let hole = hole.start..hole.end.min(hole.start + longest);
        let new = match self.volume.sb.cluster_bits {
            0 => self.fill_blocks(inode, hole)?,
            _ => self.fill_clusters(inode, hole)?,
        };
        let new = Extent { written, ..new };
        self.put_extent(inode, new)?;
        Ok(new)
    }

    fn fill_blocks(&mut self, inode: &mut RawInode, hole: Range<u64>) -> Result<Extent> {
        let goal = self.goal_of(inode, hole.start)?;
        let ahead = self.ahead_of(inode, hole.end);
        let (physical, len) = self.allocate_for(inode.ino, goal, hole.end - hole.start, ahead)?;
        inode.add_blocks(len as i64)?;
        Ok(Extent { start: hole.start, len, physical, written: true })
    }

    /// Blocks to be kept behind a hole that is filled up to `end`.
    fn ahead_of(&self, inode: &RawInode, end: u64) -> u64 {
        let size = inode.size().div_ceil(1 << self.volume.sb.block_bits);
        let grows = inode.kind() == Some(NodeKind::File) && end >= size;
        if self.ahead && grows { size.clamp(AHEAD_LEAST, AHEAD_MOST) } else { 0 }
    }

    /// With `bigalloc`, a cluster of a file is a cluster of the volume: what a cluster has of it already says where the
    /// rest is.
    fn fill_clusters(&mut self, inode: &mut RawInode, hole: Range<u64>) -> Result<Extent> {
        let size = 1u64 << self.volume.sb.cluster_bits;
        let within = hole.start % size;
        let first = hole.start - within;
        let whole_end = hole.end - hole.end % size;
        if within == 0 && whole_end > hole.start {
            // Clusters that the hole covers.
            return self.fill_blocks(inode, hole.start..whole_end);
        }
        let end = hole.end.min(first + size);
        let there = any_in(self.volume, inode, &(first..first + size))?;
        let cluster = match there {
            Some(extent) => extent.physical - extent.start % size,
            None => {
                let goal = self.goal_of(inode, first)?;
                let ahead = self.ahead_of(inode, hole.end);
                let (cluster, _) = self.allocate_for(inode.ino, goal, 1, ahead)?;
                inode.add_blocks(size as i64)?;
                cluster
            }
        };
        Ok(Extent { start: hole.start, len: end - hole.start, physical: cluster + within, written: true })
    }

    /// Where the block `at` of a file would best lie: behind the one before it, or else in the group of its inode.
    fn goal_of(&mut self, inode: &RawInode, at: u64) -> Result<u64> {
        if let Some(before) = at.checked_sub(1) {
            if inode.has(FLAG_EXTENTS) {
                let (extents, _) = extent_tree::leaf(self.volume, inode, at)?;
                let next = extents.partition_point(|extent| extent.start <= at);
                if let Some(extent) = next.checked_sub(1).map(|last| extents[last]) {
                    return Ok(extent.physical + (at - extent.start).min(extent.len + 4096));
                }
            } else if let Stretch::Has(extent) = find(self.volume, inode, before, at)? {
                return Ok(extent.physical + 1);
            }
        }
        let group = (inode.ino - 1) / self.volume.sb.inodes_per_group;
        Ok(self.volume.sb.group_start(group))
    }

    /// Marks blocks of a range that a file has as holding content.
    pub(crate) fn mark_written(&mut self, inode: &mut RawInode, range: &Range<u64>) -> Result<()> {
        if !inode.has(FLAG_EXTENTS) {
            return Ok(());
        }
        let mut at = range.start;
        // Each round goes on to the next leaf.
        while at < range.end {
            at = extent_tree::edit(self, inode, at, &mut |_, extents, leaf| {
                let part = range.start.max(leaf.start)..range.end.min(leaf.end);
                for extent in extent_tree::cut(extents, &part) {
                    extent_tree::put(extents, Extent { written: true, ..extent });
                }
                Ok(())
            })?;
        }
        Ok(())
    }

    /// Gives back what was taken out of a tree of extents. With `bigalloc`, clusters of which the file still has something
    /// (`has` tells) stay.
    pub(crate) fn release_taken(
        &mut self,
        inode: &mut RawInode,
        taken: &[Extent],
        has: &dyn Fn(&Range<u64>) -> Result<bool>,
    ) -> Result<()> {
        let size = 1u64 << self.volume.sb.cluster_bits;
        let mut last = None;
        for extent in taken {
            let mut start = extent.start - extent.start % size;
            let mut end = extent.end().next_multiple_of(size);
            if last == Some(start) || (size > 1 && has(&(start..start + size))?) {
                start += size;
            }
            if end > start && size > 1 && end > extent.end() && has(&(end - size..end))? {
                end -= size;
            }
            last = Some(extent.end().next_multiple_of(size) - size);
            if end > start {
                let physical =
                    extent.physical - extent.start % size + (start - (extent.start - extent.start % size));
                self.release_content(inode, physical, end - start)?;
                inode.add_blocks(-((end - start) as i64))?;
            }
        }
        Ok(())
    }

    /// Gives back blocks that held content. That of directories is in the journal.
    pub(crate) fn release_content(&mut self, inode: &RawInode, start: u64, len: u64) -> Result<()> {
        self.release(start, len)?;
        if inode.is_dir() {
            (start..start + len).for_each(|block| self.forget(block));
        }
        Ok(())
    }

    /// Gives back the blocks of a range, or some of them: whether that was all.
    pub(crate) fn take_range(&mut self, inode: &mut RawInode, range: &Range<u64>) -> Result<bool> {
        let mut budget = BUDGET;
        if !inode.has(FLAG_EXTENTS) {
            let end = range.end.min(block_lists::limit(self.volume));
            return block_lists::take(self, inode, &(range.start..end), &mut budget);
        }
        let mut at = range.start;
        let end = range.end.min(FILE_BLOCKS);
        // Each round goes on to the next leaf.
        while at < end {
            let mut taken = Vec::new();
            let next = extent_tree::edit(self, inode, at, &mut |_, extents, leaf| {
                let mut part = range.start.max(leaf.start)..end.min(leaf.end);
                let met = extents.iter().filter(|extent| extent.within(&part).is_some());
                if let Some(last) = met.clone().nth(budget) {
                    part.end = last.start.max(part.start);
                }
                taken = extent_tree::cut(extents, &part);
                Ok(())
            })?;
            let map = inode.clone();
            let volume = self.volume;
            self.release_taken(inode, &taken, &|range| Ok(any_in(volume, &map, range)?.is_some()))?;
            budget -= taken.len().min(budget);
            if budget == 0 {
                return Ok(false);
            }
            at = next;
        }
        Ok(true)
    }
}
