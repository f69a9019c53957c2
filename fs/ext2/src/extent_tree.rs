//! Extents, written: a tree of runs that grows and shrinks.
//!
//! The layout is in [`crate::extents`]. Every change edits one leaf as a list; what comes out is put into as many nodes as it needs,
//! and the list of those replaces the leaf's entry above, and so on up to the root. A root that overflows moves
//! into new nodes, and the tree becomes one level deeper.

use std::ops::Range;

use crate::bytes::{join, le16, le32};
use crate::change::{Change, Kind};
use crate::checksum::crc32c;
use crate::error::{Error, Result};
use crate::extents::{ENTRY, FILE_BLOCKS, MAGIC, MAX_DEPTH, MAX_LEN, empty_root};
use crate::raw::RawInode;
use crate::volume::Volume;

/// Entries of the root.
const ROOT_ROOM: usize = 4;

/// Blocks of a file that lie together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Extent {
    /// The first block, counted in the file.
    pub(crate) start: u64,
    pub(crate) len: u64,
    /// The first block, counted in the volume.
    pub(crate) physical: u64,
    /// Whether it holds content; else it reads as zeros.
    pub(crate) written: bool,
}

impl Extent {
    pub(crate) fn end(&self) -> u64 {
        self.start + self.len
    }

    /// The part of it within a range, if there is one.
    pub(crate) fn within(&self, range: &Range<u64>) -> Option<Extent> {
        let (start, end) = (self.start.max(range.start), self.end().min(range.end));
        (start < end).then(|| Extent {
            start,
            len: end - start,
            physical: self.physical + (start - self.start),
            ..*self
        })
    }

    fn longest(&self) -> u64 {
        if self.written { MAX_LEN } else { MAX_LEN - 1 }
    }
}

/// A child, and the first block that it covers.
#[derive(Clone, Copy, Debug)]
struct Child {
    first: u64,
    block: u64,
}

/// The entries of a node.
enum Node {
    Leaf(Vec<Extent>),
    Inner(u16, Vec<Child>),
}

/// What edits a leaf: its extents, in order, and the range of the file that it covers.
pub(crate) type Edit<'e> = dyn FnMut(&mut Change<'_>, &mut Vec<Extent>, Range<u64>) -> Result<()> + 'e;

/// The leaf that covers block `at`: its extents, and its range.
pub(crate) fn leaf(volume: &Volume, inode: &RawInode, at: u64) -> Result<(Vec<Extent>, Range<u64>)> {
    let mut node = parse(volume, inode.block(), None)?;
    let mut range = 0..FILE_BLOCKS;
    // Each node is one level deeper than the one before.
    loop {
        match node {
            Node::Leaf(extents) => return Ok((extents, range)),
            Node::Inner(depth, children) => {
                let index = position(&children, at);
                range = child_range(&children, index, &range);
                node = read(volume, inode, children[index].block, depth - 1)?;
            }
        }
    }
}

/// Edits the leaf that covers block `at`; the end of its range.
pub(crate) fn edit(
    change: &mut Change<'_>,
    inode: &mut RawInode,
    at: u64,
    with: &mut Edit<'_>,
) -> Result<u64> {
    let root = parse(change.volume, inode.block(), None)?;
    let mut end = FILE_BLOCKS;
    let (mut depth, mut items) = match root {
        Node::Leaf(mut extents) => {
            with(change, &mut extents, 0..FILE_BLOCKS)?;
            (0, extents.iter().map(encode_extent).collect())
        }
        Node::Inner(depth, mut children) => {
            end = edit_child(change, inode, depth, &mut children, at, &(0..FILE_BLOCKS), with)?;
            (
                if children.is_empty() { 0 } else { depth },
                children.iter().map(encode_child).collect::<Vec<_>>(),
            )
        }
    };
    // Each round has a small part of the entries of the one before.
    while items.len() > ROOT_ROOM {
        if depth >= MAX_DEPTH {
            return Err(veduta_api::Errno::EFBIG.into());
        }
        let children = spread(change, inode, depth, &items, None)?;
        items = children.iter().map(encode_child).collect();
        depth += 1;
    }
    let mut root = empty_root();
    fill(&mut root, depth, ROOT_ROOM, &items);
    inode.block_mut().copy_from_slice(&root);
    Ok(end)
}

/// All extents of a file; `None` if there are more than `most`.
pub(crate) fn all(volume: &Volume, inode: &RawInode, most: usize) -> Result<Option<Vec<Extent>>> {
    let (mut all, mut at) = (Vec::new(), 0);
    // Each round goes on to the next leaf.
    while at < FILE_BLOCKS {
        let (extents, range) = leaf(volume, inode, at)?;
        all.extend(extents);
        if all.len() > most {
            return Ok(None);
        }
        at = range.end;
    }
    Ok(Some(all))
}

/// Gives a file other extents. Those that it had are somebody else's concern.
pub(crate) fn replace_all(change: &mut Change<'_>, inode: &mut RawInode, all: &[Extent]) -> Result<()> {
    let root = parse(change.volume, inode.block(), None)?;
    release_nodes(change, inode, &root)?;
    inode.block_mut().copy_from_slice(&empty_root());
    edit(change, inode, 0, &mut |_, extents, _| {
        extents.extend_from_slice(all);
        Ok(())
    })?;
    Ok(())
}

fn release_nodes(change: &mut Change<'_>, inode: &mut RawInode, node: &Node) -> Result<()> {
    let Node::Inner(depth, children) = node else { return Ok(()) };
    for child in children {
        let below = read(change.volume, inode, child.block, depth - 1)?;
        release_nodes(change, inode, &below)?;
        change.release_meta(child.block)?;
        inode.add_blocks(-(1 << change.volume.sb.cluster_bits))?;
    }
    Ok(())
}

/// Edits the leaf below one of `children`, which it replaces by what comes out.
fn edit_child(
    change: &mut Change<'_>,
    inode: &mut RawInode,
    depth: u16,
    children: &mut Vec<Child>,
    at: u64,
    range: &Range<u64>,
    with: &mut Edit<'_>,
) -> Result<u64> {
    let index = position(children, at);
    let range = child_range(children, index, range);
    let child = children[index];
    let (items, end) = match read(change.volume, inode, child.block, depth - 1)? {
        Node::Leaf(mut extents) => {
            with(change, &mut extents, range.clone())?;
            (extents.iter().map(encode_extent).collect::<Vec<_>>(), range.end)
        }
        Node::Inner(below, mut grandchildren) => {
            let end = edit_child(change, inode, below, &mut grandchildren, at, &range, with)?;
            (grandchildren.iter().map(encode_child).collect(), end)
        }
    };
    let nodes = spread(change, inode, depth - 1, &items, Some(child.block))?;
    children.splice(index..=index, nodes);
    Ok(end)
}

/// Puts entries into nodes, the first of which may be there already. No entries: it is given back.
fn spread(
    change: &mut Change<'_>,
    inode: &mut RawInode,
    depth: u16,
    items: &[[u8; ENTRY]],
    old: Option<u64>,
) -> Result<Vec<Child>> {
    let room = room(change.volume);
    if items.is_empty() {
        if let Some(block) = old {
            change.release_meta(block)?;
            inode.add_blocks(-(1 << change.volume.sb.cluster_bits))?;
        }
        return Ok(Vec::new());
    }
    // One or two entries too many are a file that grows at its end, mostly: then the first node stays full.
    let per_node = match items.len() {
        len if len <= room => len,
        len if old.is_some() && grows_at_end(change, inode, &items[len - 1]) => room.min(len),
        len => len.div_ceil(len.div_ceil(room)),
    };
    let mut nodes = Vec::new();
    for (index, part) in items.chunks(per_node).enumerate() {
        let mut content = vec![0; change.volume.block_size()];
        fill(&mut content, depth, room, part);
        if change.volume.sb.has_checksums() {
            let at = (room + 1) * ENTRY;
            let sum = crc32c(inode.checksum_seed, &content[..at]);
            content[at..at + 4].copy_from_slice(&sum.to_le_bytes());
        }
        let block = match old.filter(|_| index == 0) {
            Some(block) => {
                change.set(block, Kind::Map, content);
                block
            }
            None => {
                let block = change.allocate_one(goal(part))?;
                inode.add_blocks(1 << change.volume.sb.cluster_bits)?;
                change.fresh(block, Kind::Map, content);
                block
            }
        };
        nodes.push(Child { first: le32(&part[0], 0).into(), block });
    }
    Ok(nodes)
}

/// Whether the last entry is at the end of the file: what was there before is the end of its content.
fn grows_at_end(change: &Change<'_>, inode: &RawInode, last: &[u8; ENTRY]) -> bool {
    let size = inode.size().div_ceil(1 << change.volume.sb.block_bits);
    u64::from(le32(last, 0)) + 1 >= size
}

/// A place near what an entry leads to.
fn goal(part: &[[u8; ENTRY]]) -> u64 {
    part.first().map_or(0, |entry| join(le32(entry, 8), le16(entry, 6).into()))
}

/// Entries of a node that has a block.
fn room(volume: &Volume) -> usize {
    // What is left over is less than an entry, and has room for the checksum.
    volume.block_size() / ENTRY - 1
}

fn position(children: &[Child], at: u64) -> usize {
    children.partition_point(|child| child.first <= at).saturating_sub(1)
}

/// What a child covers. What lies before the first belongs to it.
fn child_range(children: &[Child], index: usize, range: &Range<u64>) -> Range<u64> {
    let start = if index == 0 { range.start } else { children[index].first };
    start..children.get(index + 1).map_or(range.end, |next| next.first)
}

fn read(volume: &Volume, inode: &RawInode, block: u64, depth: u16) -> Result<Node> {
    if !volume.sb.holds(block, 1) {
        let what = format!("an extent index leads to block {block}, outside the volume");
        return Err(Error::corrupt(what).in_inode(inode.ino));
    }
    let content = volume.block(block)?;
    parse(volume, &content, Some((depth, inode.checksum_seed)))
        .map_err(|error| error.in_inode(inode.ino).in_block(block))
}

/// `below` is what the parent expects, and what the checksum starts from; `None` for the root.
fn parse(volume: &Volume, bytes: &[u8], below: Option<(u16, u32)>) -> Result<Node> {
    let (entries, room, depth) = (usize::from(le16(bytes, 2)), usize::from(le16(bytes, 4)), le16(bytes, 6));
    let wrong = |what: &str| Err(Error::corrupt(format!("a node of the extent tree {what}")));
    if le16(bytes, 0) != MAGIC || entries > room || (room + 1) * ENTRY > bytes.len() {
        return wrong("has a wrong head");
    }
    if below.is_some_and(|(wanted, _)| wanted != depth) || depth > MAX_DEPTH || (entries == 0 && depth > 0) {
        return wrong(&format!("has a depth of {depth} and {entries} entries"));
    }
    if let Some((_, seed)) = below.filter(|_| volume.sb.has_checksums()) {
        let end = (room + 1) * ENTRY;
        if crc32c(seed, &bytes[..end]) != le32(bytes, end) {
            return wrong("has a wrong checksum");
        }
    }
    let entry = |index: usize| &bytes[(index + 1) * ENTRY..(index + 2) * ENTRY];
    if depth > 0 {
        let children: Vec<Child> = (0..entries)
            .map(|index| Child {
                first: le32(entry(index), 0).into(),
                block: join(le32(entry(index), 4), le16(entry(index), 8).into()),
            })
            .collect();
        return match children.is_sorted_by(|one, next| one.first < next.first) {
            true => Ok(Node::Inner(depth, children)),
            false => wrong("has entries out of order"),
        };
    }
    let mut extents = Vec::with_capacity(entries + 2);
    let mut reached = 0;
    for bytes in (0..entries).map(entry) {
        let stored = u64::from(le16(bytes, 4));
        let written = stored <= MAX_LEN;
        let extent = Extent {
            start: le32(bytes, 0).into(),
            len: if written { stored } else { stored - MAX_LEN },
            physical: join(le32(bytes, 8), le16(bytes, 6).into()),
            written,
        };
        if extent.len == 0 || extent.start < reached || !volume.sb.holds(extent.physical, extent.len) {
            return wrong("has an impossible extent");
        }
        reached = extent.end();
        extents.push(extent);
    }
    Ok(Node::Leaf(extents))
}

fn encode_extent(extent: &Extent) -> [u8; ENTRY] {
    let mut bytes = [0; ENTRY];
    let len = if extent.written { extent.len } else { extent.len + MAX_LEN };
    bytes[..4].copy_from_slice(&(extent.start as u32).to_le_bytes());
    bytes[4..6].copy_from_slice(&(len as u16).to_le_bytes());
    bytes[6..8].copy_from_slice(&((extent.physical >> 32) as u16).to_le_bytes());
    bytes[8..].copy_from_slice(&(extent.physical as u32).to_le_bytes());
    bytes
}

fn encode_child(child: &Child) -> [u8; ENTRY] {
    let mut bytes = [0; ENTRY];
    bytes[..4].copy_from_slice(&(child.first as u32).to_le_bytes());
    bytes[4..8].copy_from_slice(&(child.block as u32).to_le_bytes());
    bytes[8..10].copy_from_slice(&((child.block >> 32) as u16).to_le_bytes());
    bytes
}

/// Writes a node's head and entries.
fn fill(bytes: &mut [u8], depth: u16, room: usize, items: &[[u8; ENTRY]]) {
    bytes[..2].copy_from_slice(&MAGIC.to_le_bytes());
    bytes[2..4].copy_from_slice(&(items.len() as u16).to_le_bytes());
    bytes[4..6].copy_from_slice(&(room as u16).to_le_bytes());
    bytes[6..8].copy_from_slice(&depth.to_le_bytes());
    bytes[8..12].fill(0);
    let flat = items.as_flattened();
    bytes[ENTRY..ENTRY + flat.len()].copy_from_slice(flat);
}

/// Puts an extent into a list that has a hole there, joined with its neighbours where they meet.
pub(crate) fn put(extents: &mut Vec<Extent>, new: Extent) {
    let at = extents.partition_point(|extent| extent.start < new.start);
    extents.insert(at, new);
    if at + 1 < extents.len() {
        join_next(extents, at);
    }
    if at > 0 {
        join_next(extents, at - 1);
    }
}

fn join_next(extents: &mut Vec<Extent>, at: usize) {
    let (one, next) = (extents[at], extents[at + 1]);
    let meet = one.end() == next.start
        && one.physical + one.len == next.physical
        && one.written == next.written
        && one.len + next.len <= one.longest();
    if meet {
        extents[at].len += next.len;
        extents.remove(at + 1);
    }
}

/// Takes a range out of a list: what was in it.
pub(crate) fn cut(extents: &mut Vec<Extent>, range: &Range<u64>) -> Vec<Extent> {
    let first = extents.partition_point(|extent| extent.end() <= range.start);
    let last = extents.partition_point(|extent| extent.start < range.end);
    if first >= last {
        return Vec::new();
    }
    let met: Vec<Extent> = extents[first..last].to_vec();
    let left = met.iter().flat_map(|extent| {
        [extent.within(&(0..range.start)), extent.within(&(range.end..u64::MAX))].into_iter().flatten()
    });
    let left: Vec<Extent> = left.collect();
    extents.splice(first..last, left);
    met.iter().filter_map(|extent| extent.within(range)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn extents_are_joined_and_cut() {
        let extent = |start, len, physical, written| Extent { start, len, physical, written };
        let mut list = vec![extent(0, 4, 100, true), extent(8, 4, 108, true)];
        put(&mut list, extent(4, 4, 104, true));
        assert_eq!(list, [extent(0, 12, 100, true)]);
        assert_eq!(cut(&mut list, &(2..5)), [extent(2, 3, 102, true)]);
        assert_eq!(list, [extent(0, 2, 100, true), extent(5, 7, 105, true)]);
        put(&mut list, extent(2, 3, 102, false));
        assert_eq!(list.len(), 3);
        assert_eq!(cut(&mut list, &(0..100)).len(), 3);
        assert!(list.is_empty());
        assert!(cut(&mut list, &(0..100)).is_empty());
        put(&mut list, extent(0, MAX_LEN, 100, true));
        put(&mut list, extent(MAX_LEN, 1, 100 + MAX_LEN, true));
        assert_eq!(list.len(), 2);
    }
}
