//! The index of a directory, written.
//!
//! The layout is in [`crate::htree`]. A leaf that is full is split by hash; the new half needs a pair in the node above. A node
//! that is full is split too, and a root that is full moves into a new node, one level deeper. Each of these steps leaves a whole
//! index, and after it the name starts again from the root.

use veduta_api::{Errno, Kind as NodeKind};

use crate::bytes::{le16, le32, u8_at};
use crate::change::{Change, Kind};
use crate::checksum::crc32c;
use crate::dir::is_one_free_entry;
use crate::entries::{self, Found, Slot, block, blocks};
use crate::error::{Error, Result};
use crate::features::INCOMPAT_LARGEDIR;
use crate::hash::Hash;
use crate::htree::{CHILD_MASK, NODE_TABLE, PAIR, ROOT_HEAD, ROOT_TABLE};
use crate::inode::FLAG_INDEX;
use crate::raw::RawInode;
use crate::volume::Volume;

/// Steps that one name may need: some splits on each level.
const STEPS: usize = 12;

/// A node of the index.
#[derive(Clone, Debug)]
struct Node {
    /// Block of the directory, and of the volume.
    index: u64,
    number: u64,
    bytes: Vec<u8>,
    table: usize,
    pairs: Vec<(u32, u32)>,
    /// The pair that was taken.
    at: usize,
}

impl Node {
    fn read(volume: &Volume, dir: &RawInode, index: u64, hash: u32) -> Result<Self> {
        let (number, content) = block(volume, dir, index)?;
        let table = if index == 0 { ROOT_TABLE } else { NODE_TABLE };
        if index != 0 && !is_one_free_entry(&content) {
            let what = "a block of a directory index is none";
            return Err(Error::corrupt(what).in_inode(dir.ino).in_block(number));
        }
        let (room, count) = (usize::from(le16(&content, table)), usize::from(le16(&content, table + 2)));
        if room != node_room(volume, table) || count == 0 || count > room {
            let what = format!("a directory index has {count} entries in room for {room}");
            return Err(Error::corrupt(what).in_inode(dir.ino).in_block(number));
        }
        let pair = |index: usize| {
            let at = table + index * PAIR;
            (if index == 0 { 0 } else { le32(&content, at) }, le32(&content, at + 4) & CHILD_MASK)
        };
        let pairs: Vec<(u32, u32)> = (0..count).map(pair).collect();
        let at = pairs.partition_point(|(first, _)| *first <= hash).max(1) - 1;
        Ok(Self { index, number, bytes: content.to_vec(), table, pairs, at })
    }

    fn child(&self) -> u64 {
        self.pairs[self.at].1.into()
    }

    fn is_full(&self, volume: &Volume) -> bool {
        self.pairs.len() >= node_room(volume, self.table)
    }

    /// The node's block, with its pairs and sum in place.
    fn encode(mut self, volume: &Volume, dir: &RawInode) -> Vec<u8> {
        let room = node_room(volume, self.table);
        let end = self.table + room * PAIR;
        self.bytes[self.table..end].fill(0);
        for (index, (hash, child)) in self.pairs.iter().enumerate() {
            let at = self.table + index * PAIR;
            self.bytes[at..at + 4].copy_from_slice(&hash.to_le_bytes());
            self.bytes[at + 4..at + 8].copy_from_slice(&child.to_le_bytes());
        }
        self.bytes[self.table..self.table + 2].copy_from_slice(&(room as u16).to_le_bytes());
        self.bytes[self.table + 2..self.table + 4].copy_from_slice(&(self.pairs.len() as u16).to_le_bytes());
        sum(volume, dir, &mut self.bytes, self.table);
        self.bytes
    }

    fn store(self, change: &mut Change<'_>, dir: &RawInode) {
        let number = self.number;
        let content = self.encode(change.volume, dir);
        change.set(number, Kind::Entries, content);
    }
}

fn node_room(volume: &Volume, table: usize) -> usize {
    (volume.block_size() - table - if volume.sb.has_checksums() { PAIR } else { 0 }) / PAIR
}

fn sum(volume: &Volume, dir: &RawInode, bytes: &mut [u8], table: usize) {
    if !volume.sb.has_checksums() {
        return;
    }
    let (room, count) = (usize::from(le16(bytes, table)), usize::from(le16(bytes, table + 2)));
    let tail = table + room * PAIR;
    let sum = crc32c(dir.checksum_seed, &bytes[..table + count * PAIR]);
    let sum = crc32c(crc32c(sum, &bytes[tail..tail + 4]), &[0; 4]);
    bytes[tail + 4..tail + 8].copy_from_slice(&sum.to_le_bytes());
}

/// The sum of the root, after one of the first two entries was changed.
pub(crate) fn close_root(volume: &Volume, dir: &RawInode, bytes: &mut [u8]) {
    sum(volume, dir, bytes, ROOT_TABLE);
}

/// The way to the leaf for a hash: nodes from the root on.
fn path(volume: &Volume, dir: &RawInode, hash: u32) -> Result<Vec<Node>> {
    let root = Node::read(volume, dir, 0, hash)?;
    let levels = usize::from(u8_at(&root.bytes, ROOT_HEAD + 6));
    if levels > most_levels(volume) || u8_at(&root.bytes, ROOT_HEAD + 5) != 8 {
        return Err(Error::corrupt(format!("a directory index has {levels} levels")).in_inode(dir.ino));
    }
    let mut path = vec![root];
    while path.len() <= levels {
        let child = checked(volume, dir, path[path.len() - 1].child())?;
        path.push(Node::read(volume, dir, child, hash)?);
    }
    Ok(path)
}

fn most_levels(volume: &Volume) -> usize {
    if volume.sb.features.has_incompat(INCOMPAT_LARGEDIR) { 2 } else { 1 }
}

fn checked(volume: &Volume, dir: &RawInode, child: u64) -> Result<u64> {
    match child > 0 && child < blocks(volume, dir) {
        true => Ok(child),
        false => {
            let what = format!("a directory index leads to block {child} of the directory");
            Err(Error::corrupt(what).in_inode(dir.ino))
        }
    }
}

fn hash_of(volume: &Volume, dir: &RawInode) -> Result<Hash> {
    let (_, root) = block(volume, dir, 0)?;
    let version = u8_at(&root, ROOT_HEAD + 4);
    Hash::new(version, volume.sb.unsigned_hash, volume.sb.hash_seed)
        .ok_or_else(|| Error::Unsupported(format!("directories are indexed by hash function {version}")))
}

/// Where a name is, by the index.
pub(crate) fn locate(volume: &Volume, dir: &RawInode, name: &[u8]) -> Result<Option<Found>> {
    let hash = hash_of(volume, dir)?.of(name);
    let mut path = path(volume, dir, hash)?;
    // Each round goes on to the next leaf, of which there are no more than blocks in the directory.
    for _ in 0..blocks(volume, dir) {
        let leaf = checked(volume, dir, path[path.len() - 1].child())?;
        if let Some(found) = entries::locate_in(volume, dir, leaf, name)? {
            return Ok(Some(found));
        }
        if !advance(volume, dir, &mut path, hash)? {
            return Ok(None);
        }
    }
    Err(Error::corrupt("a directory index repeats itself").in_inode(dir.ino))
}

/// Goes on to the next leaf, if names with this hash go on there.
fn advance(volume: &Volume, dir: &RawInode, path: &mut Vec<Node>, hash: u32) -> Result<bool> {
    let levels = path.len();
    while let Some(node) = path.last_mut() {
        if node.at + 1 < node.pairs.len() {
            node.at += 1;
            if node.pairs[node.at].0 & !1 != hash {
                return Ok(false);
            }
            while path.len() < levels {
                let child = checked(volume, dir, path[path.len() - 1].child())?;
                path.push(Node::read(volume, dir, child, 0)?);
            }
            return Ok(true);
        }
        path.pop();
    }
    Ok(false)
}

/// Adds a name to an indexed directory.
pub(crate) fn insert(
    change: &mut Change<'_>,
    dir: &mut RawInode,
    name: &[u8],
    target: (u32, Option<NodeKind>),
) -> Result<()> {
    let function = hash_of(change.volume, dir)?;
    let hash = function.of(name);
    for _ in 0..STEPS {
        let path = path(change.volume, dir, hash)?;
        let leaf = checked(change.volume, dir, path[path.len() - 1].child())?;
        if change.insert_in(dir, leaf, name, target)? {
            return Ok(());
        }
        if path.iter().all(|node| node.is_full(change.volume)) {
            deepen(change, dir, path)?;
        } else if path[path.len() - 1].is_full(change.volume) {
            split_node(change, dir, path)?;
        } else {
            split_leaf(change, dir, path, leaf, &function)?;
        }
    }
    Err(Errno::ENOSPC.into())
}

/// Moves the root's pairs into a new node.
fn deepen(change: &mut Change<'_>, dir: &mut RawInode, mut path: Vec<Node>) -> Result<()> {
    if path.len() > most_levels(change.volume) {
        return Err(Errno::ENOSPC.into());
    }
    let mut root = path.swap_remove(0);
    let index = new_node(change, dir, std::mem::take(&mut root.pairs))?;
    root.pairs = vec![(0, index as u32)];
    root.bytes[ROOT_HEAD + 6] += 1;
    root.store(change, dir);
    Ok(())
}

/// Splits the highest full node below one that has room.
fn split_node(change: &mut Change<'_>, dir: &mut RawInode, mut path: Vec<Node>) -> Result<()> {
    let roomy = path.iter().rposition(|node| !node.is_full(change.volume)).unwrap_or(0);
    let mut node = path.swap_remove(roomy + 1);
    let mut above = path.swap_remove(roomy);
    let mut upper = node.pairs.split_off(node.pairs.len() / 2);
    let first = std::mem::take(&mut upper[0].0);
    let index = new_node(change, dir, upper)?;
    above.pairs.insert(above.at + 1, (first, index as u32));
    node.store(change, dir);
    above.store(change, dir);
    Ok(())
}

fn new_node(change: &mut Change<'_>, dir: &mut RawInode, pairs: Vec<(u32, u32)>) -> Result<u64> {
    let mut bytes = vec![0; change.volume.block_size()];
    let len = bytes.len();
    entries::write_entry(change.volume, &mut bytes, 0, len, b"", (0, None));
    let index = blocks(change.volume, dir);
    let node = Node { index, number: 0, bytes, table: NODE_TABLE, pairs, at: 0 };
    debug_assert_eq!(node.index, index);
    let content = node.encode(change.volume, dir);
    change.append_block(dir, content)
}

/// Splits a leaf by hash.
fn split_leaf(
    change: &mut Change<'_>,
    dir: &mut RawInode,
    mut path: Vec<Node>,
    leaf: u64,
    function: &Hash,
) -> Result<()> {
    let (number, content) = block(change.volume, dir, leaf)?;
    let slots = entries::slots(change.volume, &content)?;
    let mut hashed: Vec<(u32, Slot)> = slots
        .iter()
        .filter(|slot| slot.ino != 0)
        .map(|slot| (function.of(slot.name(&content)), *slot))
        .collect();
    hashed.sort_by_key(|(hash, _)| *hash);
    if hashed.len() < 2 {
        return Err(Error::corrupt("a block of an indexed directory cannot be split").in_inode(dir.ino));
    }
    let sizes = hashed.iter().map(|(_, slot)| entries::needed(slot.name(&content).len()));
    let total: usize = sizes.clone().sum();
    let mut left = 0;
    let half = sizes
        .take_while(|size| {
            left += size;
            left <= total / 2
        })
        .count();
    let upper: Vec<(u32, Slot)> = hashed.split_off(half.clamp(1, hashed.len() - 1));
    let (first, last) = (upper[0].0, hashed[hashed.len() - 1].0);
    let only_slots = |half: &[(u32, Slot)]| half.iter().map(|(_, slot)| *slot).collect::<Vec<_>>();
    let mut low = entries::pack(change.volume, &content, &only_slots(&hashed));
    let mut high = entries::pack(change.volume, &content, &only_slots(&upper));
    entries::close(change.volume, dir, &mut low);
    entries::close(change.volume, dir, &mut high);
    let index = change.append_block(dir, high)?;
    change.set(number, Kind::Entries, low);
    // The lowest bit says that names with this hash begin in the block before.
    let pair = (first | u32::from(first == last), index as u32);
    let Some(mut above) = path.pop() else { return Ok(()) };
    above.pairs.insert(above.at + 1, pair);
    above.store(change, dir);
    Ok(())
}

/// Gives a directory of one block an index: what is in it moves to a second block.
pub(crate) fn make(change: &mut Change<'_>, dir: &mut RawInode) -> Result<()> {
    let volume = change.volume;
    let version = volume.sb.facts.hash_version;
    if Hash::new(version, volume.sb.unsigned_hash, volume.sb.hash_seed).is_none() {
        return Err(Error::Unsupported(format!("directories are indexed by hash function {version}")));
    }
    let (number, content) = block(volume, dir, 0)?;
    let slots = entries::slots(volume, &content)?;
    let dot = |name: &[u8]| slots.iter().find(|slot| slot.ino != 0 && slot.name(&content) == name);
    let (Some(own), Some(parent)) = (dot(b"."), dot(b"..")) else {
        return Err(
            Error::corrupt("the directory has no entries for itself and its parent").in_inode(dir.ino)
        );
    };
    let others: Vec<Slot> = slots
        .iter()
        .filter(|slot| slot.ino != 0 && !matches!(slot.name(&content), b"." | b".."))
        .copied()
        .collect();
    let mut leaf = entries::pack(volume, &content, &others);
    entries::close(volume, dir, &mut leaf);
    let mut root = vec![0; volume.block_size()];
    let rest = root.len() - 12;
    entries::write_entry(volume, &mut root, 0, 12, b".", (own.ino, Some(NodeKind::Directory)));
    entries::write_entry(volume, &mut root, 12, rest, b"..", (parent.ino, Some(NodeKind::Directory)));
    root[ROOT_HEAD + 4] = version;
    root[ROOT_HEAD + 5] = 8;
    let child = change.append_block(dir, leaf)?;
    dir.set_flags(dir.flags() | FLAG_INDEX);
    Node { index: 0, number, bytes: root, table: ROOT_TABLE, pairs: vec![(0, child as u32)], at: 0 }
        .store(change, dir);
    Ok(())
}
