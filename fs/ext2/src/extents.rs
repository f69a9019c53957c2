//! Extents: a tree of runs, rooted in i_block.
//!
//! Layout: each node is a header of 12 bytes (magic F30A, entries, room for entries, depth, generation) and
//! entries of 12 bytes. In a leaf (depth 0) an entry is a run: first block in the file, length (more than
//! 32768 means allocated but never written), first block on the volume. Above, an entry is the first block
//! that its child covers, and the child's place. With `metadata_csum` a CRC-32C follows the room for entries.

use crate::bytes::{join, le16, le32, slice};
use crate::checksum::crc32c;
use crate::error::{Error, Result};
use crate::inode::{BLOCK_LEN, Inode};
use crate::map::{Leaf, Run};
use crate::volume::Volume;

/// eh_magic
pub(crate) const MAGIC: u16 = 0xf30a;
/// Bytes of a header, and of an entry.
pub(crate) const ENTRY: usize = 12;
/// The deepest tree that a file of 2^32 blocks can need.
pub(crate) const MAX_DEPTH: u16 = 5;
/// Blocks of a file are counted in 32 bits.
pub(crate) const FILE_BLOCKS: u64 = 1 << 32;
/// The longest run; in a longer one the rest counts, and its blocks were never written.
pub(crate) const MAX_LEN: u64 = 32768;

/// The leaf that covers `block`.
pub(crate) fn leaf(volume: &Volume, inode: &Inode, block: u64) -> Result<Leaf> {
    if block >= FILE_BLOCKS {
        return Ok(Leaf::hole(FILE_BLOCKS, u64::MAX));
    }
    let root = Node::parse(&inode.block, None)?;
    let mut step = root.step(volume, block, 0, FILE_BLOCKS)?;
    // The depth of each node is one less than its parent's, so the way down ends.
    loop {
        match step {
            Step::Leaf(leaf) => return Ok(leaf),
            Step::Down { child, depth, start, end } => {
                let content = volume.block(child)?;
                step = Node::parse(&content, Some(depth))
                    .and_then(|node| node.check_sum(volume, inode).map(|()| node))
                    .and_then(|node| node.step(volume, block, start, end))
                    .map_err(|error| error.in_block(child))?;
            }
        }
    }
}

/// i_block of a file without content.
pub(crate) fn empty_root() -> [u8; BLOCK_LEN] {
    let mut root = [0; BLOCK_LEN];
    root[..2].copy_from_slice(&MAGIC.to_le_bytes());
    root[4] = (BLOCK_LEN / ENTRY - 1) as u8;
    root
}

/// A node whose header was checked.
struct Node<'a> {
    bytes: &'a [u8],
    entries: usize,
    room: usize,
    depth: u16,
}

enum Step {
    Leaf(Leaf),
    Down {
        /// Block of the volume.
        child: u64,
        /// Of the child.
        depth: u16,
        /// What the child covers, in blocks of the file.
        start: u64,
        end: u64,
    },
}

impl<'a> Node<'a> {
    /// `depth` is what the parent expects, `None` for the root.
    fn parse(bytes: &'a [u8], depth: Option<u16>) -> Result<Self> {
        let found = le16(bytes, 6);
        let (entries, room) = (usize::from(le16(bytes, 2)), usize::from(le16(bytes, 4)));
        if le16(bytes, 0) != MAGIC {
            return Err(Error::corrupt("a node of the extent tree has no magic number"));
        }
        if depth.is_some_and(|depth| depth != found) || found > MAX_DEPTH {
            return Err(Error::corrupt(format!("a node of the extent tree has a depth of {found}")));
        }
        if entries > room || (room + 1) * ENTRY > bytes.len() {
            let what = format!("a node of the extent tree has {entries} entries in room for {room}");
            return Err(Error::corrupt(what));
        }
        if entries == 0 && found > 0 {
            return Err(Error::corrupt("an inner node of the extent tree has no entries"));
        }
        Ok(Self { bytes, entries, room, depth: found })
    }

    /// The root has none of its own: it is covered by the inode's.
    fn check_sum(&self, volume: &Volume, inode: &Inode) -> Result<()> {
        let end = (self.room + 1) * ENTRY;
        // A block has no room for the sum only if its size is a multiple of the entries', which no power of
        // two is.
        let sum = || crc32c(inode.checksum_seed, slice(self.bytes, 0, end));
        if !volume.sb.has_checksums() || sum() == le32(self.bytes, end) {
            return Ok(());
        }
        Err(Error::corrupt("the checksum of a node of the extent tree is wrong"))
    }

    fn entry(&self, index: usize) -> &'a [u8] {
        slice(self.bytes, (index + 1) * ENTRY, ENTRY)
    }

    /// The first block of the file that an entry is about.
    fn first(&self, index: usize) -> u64 {
        le32(self.entry(index), 0).into()
    }

    /// One step down to `block`, in a node that covers the file from `start` to `end`.
    fn step(&self, volume: &Volume, block: u64, start: u64, end: u64) -> Result<Step> {
        match self.depth {
            0 => Ok(Step::Leaf(self.runs(volume, start, end)?)),
            _ => self.down(volume, block, start, end),
        }
    }

    fn down(&self, volume: &Volume, block: u64, start: u64, end: u64) -> Result<Step> {
        let firsts = (0..self.entries).map(|index| self.first(index));
        if !firsts.clone().is_sorted_by(|one, next| one < next) {
            return Err(Error::corrupt("the entries of an extent index are not in order"));
        }
        let at = firsts.clone().take_while(|first| *first <= block).count();
        let next = firsts.clone().nth(at).unwrap_or(end).min(end);
        let Some(at) = at.checked_sub(1) else {
            // Before the first entry there is nothing.
            return Ok(Step::Leaf(Leaf::hole(start, next)));
        };
        let entry = self.entry(at);
        let child = join(le32(entry, 4), le16(entry, 8).into());
        if !volume.sb.holds(child, 1) {
            return Err(Error::corrupt(format!(
                "an extent index leads to block {child}, outside the volume"
            )));
        }
        Ok(Step::Down { child, depth: self.depth - 1, start: self.first(at).max(start), end: next })
    }

    /// All runs of a leaf that covers the file from `start` to `end`, with the holes between them.
    fn runs(&self, volume: &Volume, start: u64, end: u64) -> Result<Leaf> {
        let mut leaf = Leaf::default();
        let mut reached = start;
        for entry in (0..self.entries).map(|index| self.entry(index)) {
            let first = u64::from(le32(entry, 0));
            let (len, written) = match u64::from(le16(entry, 4)) {
                len if len <= MAX_LEN => (len, true),
                len => (len - MAX_LEN, false),
            };
            let physical = join(le32(entry, 8), le16(entry, 6).into());
            if len == 0 || first < reached || first + len > end {
                let what = format!("the extent of {len} blocks at {first} overlaps another");
                return Err(Error::corrupt(what));
            }
            if !volume.sb.holds(physical, len) {
                let what =
                    format!("the extent of {len} blocks at {first} lies outside the volume, at {physical}");
                return Err(Error::corrupt(what));
            }
            leaf.push(Run { start: reached, len: first - reached, physical: None });
            leaf.push(Run { start: first, len, physical: written.then_some(physical) });
            reached = first + len;
        }
        leaf.push(Run { start: reached, len: end - reached, physical: None });
        Ok(leaf)
    }
}
