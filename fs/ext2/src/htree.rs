//! The index of a directory: a tree of hashes that leads to the block in which a name must be.
//!
//! Layout: the root is block 0, behind the entries `.` and `..`, of which the second seems to fill the block:
//! at byte 24 four zeros, hash function, length of this (8), levels below the root, flags; then the table.
//! Other nodes are blocks that seem to be one free entry of 8 bytes of head, then the table: room (16 bits),
//! entries (16 bits), first child (32 bits), and pairs of hash and child, sorted. A child is a block of the
//! directory. With `metadata_csum` the room ends 8 bytes before the block does, and a CRC-32C is in the last
//! 4.
//!
//! A hash whose lowest bit is set says that names with the hash without it begin in the block before.

use crate::bytes::{le16, le32, slice, u8_at};
use crate::cache::Block;
use crate::checksum::crc32c;
use crate::dir::{Dir, is_one_free_entry};
use crate::error::{Error, Result};
use crate::features::INCOMPAT_LARGEDIR;
use crate::fold::Wanted;
use crate::hash::Hash;
use crate::volume::Volume;

/// Where the head of the index stands in block 0.
pub(crate) const ROOT_HEAD: usize = 24;
/// Where the table stands in the root and in other nodes.
pub(crate) const ROOT_TABLE: usize = 32;
pub(crate) const NODE_TABLE: usize = 8;
/// Bytes of a pair.
pub(crate) const PAIR: usize = 8;
/// Bits of a child's number.
pub(crate) const CHILD_MASK: u32 = 0x0fff_ffff;

/// A node of the index on the way to a block.
struct Node {
    block: Block,
    table: usize,
    count: usize,
    /// The pair that was taken.
    at: usize,
}

impl Node {
    fn new(volume: &Volume, block: Block, table: usize, hash: u32) -> Result<Self> {
        let (room, count) = (usize::from(le16(&block, table)), usize::from(le16(&block, table + 2)));
        let tail = if volume.sb.has_checksums() { PAIR } else { 0 };
        if room != (block.len() - table - tail) / PAIR || count == 0 || count > room {
            return Err(Error::corrupt(format!("a directory index has {count} entries in room for {room}")));
        }
        let mut node = Self { block, table, count, at: 0 };
        // The first pair has no hash: it stands for all below the second's.
        let (mut low, mut high) = (0, count - 1);
        while low < high {
            let middle = (low + high).div_ceil(2);
            match node.hash(middle) <= hash {
                true => low = middle,
                false => high = middle - 1,
            }
        }
        node.at = low;
        Ok(node)
    }

    fn hash(&self, index: usize) -> u32 {
        le32(&self.block, self.table + index * PAIR)
    }

    fn child(&self) -> u64 {
        (le32(&self.block, self.table + self.at * PAIR + 4) & CHILD_MASK).into()
    }
}

/// The inode that a name leads to, by the index.
pub(crate) fn find(volume: &Volume, dir: &Dir, wanted: &Wanted<'_>) -> Result<Option<u32>> {
    let (_, root) = dir.block(volume, 0, 1)?;
    let levels = levels(volume, &root)?;
    let version = u8_at(&root, ROOT_HEAD + 4);
    let hash = Hash::new(version, volume.sb.unsigned_hash, volume.sb.hash_seed)
        .ok_or_else(|| Error::Unsupported(format!("directories are indexed by hash function {version}")))?
        .of(wanted.hashed());
    let mut path = vec![Node::new(volume, root, ROOT_TABLE, hash)?];
    descend(volume, dir, &mut path, levels, hash)?;
    // Each round goes on to the next block of the index, of which there are no more than blocks in the
    // directory.
    for _ in 0..dir.blocks(volume) {
        let leaf = path.last().map_or(0, Node::child);
        if let Some(ino) = dir.find_in(volume, checked(volume, dir, leaf)?, wanted)? {
            return Ok(Some(ino));
        }
        if !advance(volume, dir, &mut path, levels, hash)? {
            return Ok(None);
        }
    }
    Err(Error::corrupt("a directory index repeats itself"))
}

/// Levels of nodes below the root.
fn levels(volume: &Volume, root: &[u8]) -> Result<usize> {
    let levels = u8_at(root, ROOT_HEAD + 6);
    let most = if volume.sb.features.has_incompat(INCOMPAT_LARGEDIR) { 2 } else { 1 };
    if le32(root, ROOT_HEAD) != 0 || u8_at(root, ROOT_HEAD + 5) != 8 || levels > most {
        return Err(Error::corrupt(format!("a directory index has {levels} levels")));
    }
    Ok(levels.into())
}

/// Goes down to the last level, towards `hash`.
fn descend(volume: &Volume, dir: &Dir, path: &mut Vec<Node>, levels: usize, hash: u32) -> Result<()> {
    while path.len() <= levels {
        let child = checked(volume, dir, path.last().map_or(0, Node::child))?;
        let (number, block) = dir.block(volume, child, 1)?;
        if !is_one_free_entry(&block) {
            return Err(Error::corrupt("a block of a directory index is none").in_block(number));
        }
        path.push(Node::new(volume, block, NODE_TABLE, hash).map_err(|error| error.in_block(number))?);
    }
    Ok(())
}

/// Goes on to the next leaf, if names with `hash` go on there.
fn advance(volume: &Volume, dir: &Dir, path: &mut Vec<Node>, levels: usize, hash: u32) -> Result<bool> {
    while let Some(node) = path.last_mut() {
        if node.at + 1 < node.count {
            node.at += 1;
            if node.hash(node.at) & !1 != hash {
                return Ok(false);
            }
            descend(volume, dir, path, levels, 0)?;
            return Ok(true);
        }
        path.pop();
    }
    Ok(false)
}

fn checked(volume: &Volume, dir: &Dir, child: u64) -> Result<u64> {
    match child > 0 && child < dir.blocks(volume) {
        true => Ok(child),
        false => Err(Error::corrupt(format!("a directory index leads to block {child} of the directory"))),
    }
}

/// Whether the sum of a block that is no chain of entries is that of a node. It covers the entries in use,
/// and four zeros in its own place.
pub(crate) fn sum_is_right(block: &[u8], seed: u32) -> bool {
    let table = match is_one_free_entry(block) {
        true => NODE_TABLE,
        false => ROOT_TABLE,
    };
    let (room, count) = (usize::from(le16(block, table)), usize::from(le16(block, table + 2)));
    let tail = table + room * PAIR;
    if count > room || tail + PAIR > block.len() {
        return false;
    }
    let sum = crc32c(seed, slice(block, 0, table + count * PAIR));
    let sum = crc32c(crc32c(sum, slice(block, tail, 4)), &[0; 4]);
    sum == le32(block, tail + 4)
}
