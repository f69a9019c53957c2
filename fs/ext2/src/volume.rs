//! The volume: its blocks as they are after the journal was replayed, and a cache of those that hold
//! metadata.
//!
//! A volume that is only read leaves its journal as it is: the *overlay* says which blocks of the volume have a newer
//! copy in the journal, and every read, of metadata and of data, goes through it. A volume that may change was
//! replayed before, and has [`Transactions`] instead: they hold the newest content of metadata that is not in its place yet.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::{Arc, OnceLock};

use parking_lot::RwLock;
use veduta_api::Disk;

use crate::cache::{Block, Cache};
use crate::error::{Error, Result};
use crate::fast_commit::Changes;
use crate::held::Holding;
use crate::nodes::Nodes;
use crate::superblock::{PRIMARY_OFFSET, SUPERBLOCK_SIZE, Superblock};
use crate::transactions::Transactions;

/// The first bytes of a journal's own blocks. A copy that would start with them has zeros there instead.
pub(crate) const JOURNAL_MAGIC: u32 = 0xc03b_3998;

/// Where the newest content of a block lies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Copy {
    /// The block of the volume that holds it (one of the journal's).
    pub(crate) block: u64,
    /// Whether its first four bytes are to be replaced by the journal's magic number.
    pub(crate) escaped: bool,
}

/// Newer copies, by the block that they replace.
pub(crate) type Overlay = BTreeMap<u64, Copy>;

/// A volume that is open.
#[derive(Debug)]
pub(crate) struct Volume {
    pub(crate) disk: Disk,
    /// The superblock, after the journal.
    pub(crate) sb: Superblock,
    overlay: Overlay,
    /// What fast commits change, after all that.
    pub(crate) changes: Changes,
    pub(crate) cache: Cache,
    /// Filled by the first `statfs`.
    pub(crate) free_counts: OnceLock<(u64, u64)>,
    /// How it is changed; `None` if it is only read.
    pub(crate) transactions: Option<Transactions>,
    /// The nodes that somebody uses.
    pub(crate) nodes: Nodes,
    /// Content that waits for its blocks.
    pub(crate) holding: Holding,
    /// Held for writing while names change, for reading while they are looked up or listed.
    pub(crate) names: RwLock<()>,
}

impl Volume {
    /// The volume as it is on the disk, the journal left aside.
    pub(crate) fn new(disk: Disk, sb: Superblock) -> Self {
        let cache = Cache::new(sb.block_size());
        Self {
            disk,
            sb,
            overlay: Overlay::new(),
            changes: Changes::default(),
            cache,
            free_counts: OnceLock::new(),
            transactions: None,
            nodes: Nodes::default(),
            holding: Holding::default(),
            names: RwLock::new(()),
        }
    }

    /// The volume with newer copies of some blocks. Everything that was read before is forgotten, and the
    /// superblock, which may be among the copies, is read again (a backup that somebody chose is not: it
    /// stays).
    pub(crate) fn with_overlay(self, overlay: Overlay) -> Result<Self> {
        let mut volume = Self { overlay, ..Self::new(self.disk, self.sb) };
        let primary = PRIMARY_OFFSET >> volume.sb.block_bits;
        if volume.sb.own_block == primary && volume.overlay.contains_key(&primary) {
            let mut bytes = [0; SUPERBLOCK_SIZE];
            let skip = PRIMARY_OFFSET as usize & (volume.sb.block_size() - 1);
            volume.read(&mut bytes, primary, skip)?;
            let old = (volume.sb.block_bits, volume.sb.inode_size, volume.sb.desc_size);
            volume.sb = Superblock::parse(&bytes, PRIMARY_OFFSET, volume.disk.size())
                .map_err(|error| error.in_block(primary))?;
            if old != (volume.sb.block_bits, volume.sb.inode_size, volume.sb.desc_size) {
                return Err(Error::corrupt("the journal's superblock is of another volume").in_block(primary));
            }
        }
        Ok(volume)
    }

    /// Bytes.
    pub(crate) fn block_size(&self) -> usize {
        self.sb.block_size()
    }

    /// What messages call the volume.
    pub(crate) fn name(&self) -> &str {
        self.disk.name()
    }

    /// Blocks whose newest content is in the journal.
    pub(crate) fn overlaid(&self) -> usize {
        self.overlay.len()
    }

    /// Writes the newer copies to the blocks that they replace: how many there were.
    pub(crate) fn bring_home(&self) -> Result<usize> {
        let mut content = vec![0; self.block_size()];
        for block in self.overlay.keys() {
            self.read(&mut content, *block, 0)?;
            self.disk.write_at(&content, block << self.sb.block_bits)?;
        }
        Ok(self.overlay.len())
    }

    /// Fills `buf` from byte `skip` of `block` on, past the cache: for content. One read of the disk, unless
    /// the journal has newer copies of some of the blocks.
    pub(crate) fn read(&self, buf: &mut [u8], block: u64, skip: usize) -> Result<()> {
        let bits = self.sb.block_bits;
        let end = (skip + buf.len()).div_ceil(self.block_size()) as u64;
        if block.checked_add(end).is_none_or(|end| end > self.sb.blocks_count) {
            return Err(Error::corrupt("a block lies outside the volume").in_block(block));
        }
        if self.overlay.is_empty() || self.overlay.range(block..block + end).next().is_none() {
            return Ok(self.disk.read_at(buf, (block << bits) + skip as u64)?);
        }
        self.read_each(buf, block, skip)
    }

    /// Metadata: one block, through the cache.
    pub(crate) fn block(&self, number: u64) -> Result<Block> {
        self.block_ahead(number, number..number.saturating_add(1))
    }

    /// Metadata: one block, through the cache. If it is not there, all of `window` (which holds it) is read
    /// at once.
    pub(crate) fn block_ahead(&self, number: u64, window: Range<u64>) -> Result<Block> {
        let generation = self.cache.generation();
        if let Some(block) = self.transactions.as_ref().and_then(|transactions| transactions.find(number)) {
            return Ok(block);
        }
        if let Some(block) = self.cache.find(number) {
            return Ok(block);
        }
        let count = window.end.saturating_sub(window.start).max(1) as usize;
        if window.end > self.sb.blocks_count || !window.contains(&number) {
            return Err(Error::corrupt("a block lies outside the volume").in_block(number));
        }
        let mut bytes = vec![0; count * self.block_size()];
        self.read(&mut bytes, window.start, 0)?;
        let mut wanted = None;
        for (near, content) in (window.start..).zip(bytes.chunks_exact(self.block_size())) {
            let block: Block = Arc::from(content);
            if near == number {
                wanted = Some(Arc::clone(&block));
            }
            self.cache.put(near, block, generation);
        }
        wanted.ok_or_else(|| Error::corrupt("a block lies outside the volume").in_block(number))
    }

    /// As [`read`](Self::read), block by block.
    fn read_each(&self, buf: &mut [u8], first: u64, skip: usize) -> Result<()> {
        let (size, bits) = (self.block_size(), self.sb.block_bits);
        let (mut done, mut position) = (0, skip);
        // Each step fills at least one byte of `buf`.
        while done < buf.len() {
            let block = first + (position >> bits) as u64;
            let within = position & (size - 1);
            let len = (size - within).min(buf.len() - done);
            let part = &mut buf[done..done + len];
            let copy = self.overlay.get(&block).copied().unwrap_or(Copy { block, escaped: false });
            self.disk.read_at(part, (copy.block << bits) + within as u64)?;
            if copy.escaped {
                unescape(part, within);
            }
            done += len;
            position += len;
        }
        Ok(())
    }
}

/// Puts back the magic number into the bytes of a block from `within` on.
fn unescape(part: &mut [u8], within: usize) {
    for (byte, magic) in part.iter_mut().zip(JOURNAL_MAGIC.to_be_bytes().iter().skip(within)) {
        *byte = *magic;
    }
}
