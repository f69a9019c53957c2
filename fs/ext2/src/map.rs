//! Where the content of a file lies: the map from its blocks to blocks of the volume.
//!
//! Two layouts give the same answer: extents ([`crate::extents`]) and lists of block numbers
//! ([`crate::indirect`]). Both are read one *leaf* at a time, a stretch of the file with all its runs; an
//! open file keeps the leaf that it used last, so reading on costs no search.

use std::sync::Arc;

use parking_lot::Mutex;

use crate::error::{Error, Result};
use crate::inode::{FLAG_EXTENTS, Inode};
use crate::volume::Volume;

/// Blocks of a file that lie together, or are absent together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Run {
    /// The first block, counted in the file.
    pub(crate) start: u64,
    /// Blocks; never 0.
    pub(crate) len: u64,
    /// The first block, counted in the volume; `None` for a hole. Allocated blocks that were never written
    /// count as a hole: they read as zeros, and `lseek` takes them for one.
    pub(crate) physical: Option<u64>,
}

impl Run {
    fn end(&self) -> u64 {
        self.start + self.len
    }

    /// The part from `block` on.
    pub(crate) fn from(self, block: u64) -> Self {
        let skip = block - self.start;
        Self { start: block, len: self.len - skip, physical: self.physical.map(|first| first + skip) }
    }

    /// Whether `next` continues this run, in the file and on the disk.
    fn meets(&self, next: &Run) -> bool {
        self.end() == next.start
            && match (self.physical, next.physical) {
                (Some(first), Some(second)) => first + self.len == second,
                (None, None) => true,
                _ => false,
            }
    }
}

/// A stretch of a file and the runs that cover it without gaps, in order.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Leaf {
    runs: Vec<Run>,
}

impl Leaf {
    /// Adds a run behind all others; joined with the last if they meet.
    pub(crate) fn push(&mut self, run: Run) {
        match self.runs.last_mut() {
            _ if run.len == 0 => {}
            Some(last) if last.meets(&run) => last.len += run.len,
            _ => self.runs.push(run),
        }
    }

    /// A hole from `start` to `end`.
    pub(crate) fn hole(start: u64, end: u64) -> Self {
        let mut leaf = Self::default();
        leaf.push(Run { start, len: end.saturating_sub(start), physical: None });
        leaf
    }

    /// The rest of the run that holds `block`.
    fn find(&self, block: u64) -> Option<Run> {
        let after = self.runs.partition_point(|run| run.start <= block);
        let run = self.runs.get(after.checked_sub(1)?)?;
        (block < run.end()).then(|| run.from(block))
    }
}

/// The map of one file.
#[derive(Debug)]
pub(crate) struct Map {
    inode: Inode,
    /// Held only to take or replace the pointer.
    last: Mutex<Option<Arc<Leaf>>>,
}

impl Map {
    /// The map of a file whose content is in blocks.
    pub(crate) fn new(inode: Inode) -> Self {
        Self { inode, last: Mutex::new(None) }
    }

    /// The inode.
    pub(crate) fn inode(&self) -> &Inode {
        &self.inode
    }

    /// The longest known run that starts at `block`. Behind the last block that a file can have is a hole.
    pub(crate) fn find(&self, volume: &Volume, block: u64) -> Result<Run> {
        if volume.changes.is_empty() {
            return self.stored(volume, block);
        }
        match volume.changes.run(self.inode.ino, block) {
            (Some(run), _) => Ok(run),
            (None, next) => {
                let run = self.stored(volume, block)?;
                Ok(Run { len: run.len.min(next - block), ..run })
            }
        }
    }

    /// As [`find`](Self::find), without the changes of fast commits.
    fn stored(&self, volume: &Volume, block: u64) -> Result<Run> {
        let last = self.last.lock().clone();
        if let Some(run) = last.and_then(|leaf| leaf.find(block)) {
            return Ok(run);
        }
        let leaf = match self.inode.has(FLAG_EXTENTS) {
            true => crate::extents::leaf(volume, &self.inode, block),
            false => crate::indirect::leaf(volume, &self.inode, block),
        }
        .map_err(|error| error.in_inode(self.inode.ino))?;
        let run = leaf.find(block).ok_or_else(|| {
            Error::corrupt(format!("nothing says where block {block} is")).in_inode(self.inode.ino)
        })?;
        *self.last.lock() = Some(Arc::new(leaf));
        Ok(run)
    }

    /// As [`find`](Self::find), and on across leaves while the blocks lie together, up to `limit` blocks.
    fn find_long(&self, volume: &Volume, block: u64, limit: u64) -> Result<Run> {
        let mut run = self.find(volume, block)?;
        // Each step makes the run longer, up to `limit`.
        while run.len < limit {
            match self.find(volume, run.end())? {
                next if run.meets(&next) => run.len += next.len,
                _ => break,
            }
        }
        Ok(run)
    }

    /// Fills `buf` from byte `offset` of the file; what is past the last block, and holes, are zeros. The
    /// caller knows the size. One read of the disk for all that lies together.
    pub(crate) fn read(&self, volume: &Volume, mut buf: &mut [u8], offset: u64) -> Result<()> {
        let bits = volume.sb.block_bits;
        let mut offset = offset;
        // Each step fills at least one byte.
        while !buf.is_empty() {
            let skip = offset as usize & (volume.block_size() - 1);
            let wanted = (skip + buf.len()).div_ceil(volume.block_size()) as u64;
            let run = self.find_long(volume, offset >> bits, wanted)?;
            let bytes = (run.len.min(wanted) << bits) as usize - skip;
            let (part, rest) = buf.split_at_mut(bytes.min(buf.len()));
            match run.physical {
                Some(block) => {
                    volume.read(part, block, skip).map_err(|error| error.in_inode(self.inode.ino))?;
                }
                None => part.fill(0),
            }
            offset += part.len() as u64;
            buf = rest;
        }
        Ok(())
    }

    /// The first block at or after `block`, and before `end`, that is in a hole (or is not).
    pub(crate) fn seek(&self, volume: &Volume, hole: bool, block: u64, end: u64) -> Result<Option<u64>> {
        let mut block = block;
        // A file that is not damaged has no more leaves than the volume has blocks.
        for _ in 0..=volume.sb.blocks_count {
            if block >= end {
                return Ok(None);
            }
            let run = self.find(volume, block)?;
            if run.physical.is_none() == hole {
                return Ok(Some(block));
            }
            block = run.end();
        }
        Err(Error::corrupt("its map repeats itself").in_inode(self.inode.ino))
    }
}

/// The run that holds `block` of a file with block lists, of which `numbers` is i_block.
pub(crate) fn run_of_lists(volume: &Volume, ino: u32, numbers: &[u8], block: u64) -> Result<Run> {
    let leaf = crate::indirect::leaf_of(volume, numbers, block).map_err(|error| error.in_inode(ino))?;
    leaf.find(block)
        .ok_or_else(|| Error::corrupt(format!("nothing says where block {block} is")).in_inode(ino))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn runs_that_meet_are_one() {
        let mut leaf = Leaf::default();
        for (start, len, physical) in [
            (0, 4, Some(10)),
            (4, 1, Some(14)),
            (5, 2, None),
            (7, 0, Some(1)),
            (7, 3, None),
            (10, 1, Some(15)),
        ] {
            leaf.push(Run { start, len, physical });
        }
        let runs = [(0, 5, Some(10)), (5, 5, None), (10, 1, Some(15))];
        assert_eq!(leaf.runs, runs.map(|(start, len, physical)| Run { start, len, physical }));
        assert_eq!(leaf.find(3), Some(Run { start: 3, len: 2, physical: Some(13) }));
        assert_eq!(leaf.find(9), Some(Run { start: 9, len: 1, physical: None }));
        assert_eq!(leaf.find(11), None);
    }
}
