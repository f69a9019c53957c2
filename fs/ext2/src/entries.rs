//! Directories, written: names come and go.
//!
//! The layout is in [`crate::dir`]. A new name goes into the room behind another; if no block has room, a directory of one block gets
//! an index ([`crate::index`]), others a new block. A name that goes leaves its room to the one before it.

use veduta_api::{Errno, Kind as NodeKind};

use crate::bytes::{le16, le32, slice, u8_at};
use crate::cache::Block;
use crate::change::{Change, Kind};
use crate::checksum::crc32c;
use crate::dir::{COMPAT_DIR_INDEX, HEADER, TAIL, TAIL_TYPE, entry_len, kind_of, sum_is_right};
use crate::error::{Error, Result};
use crate::features::INCOMPAT_FILETYPE;
use crate::index;
use crate::inode::FLAG_INDEX;
use crate::raw::RawInode;
use crate::space::{self, Stretch};
use crate::volume::Volume;

/// What a name leads to: an inode, and its type.
pub(crate) type Target = (u32, Option<NodeKind>);

/// An entry of a block.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Slot {
    pub(crate) at: usize,
    pub(crate) len: usize,
    pub(crate) ino: u32,
    name_len: usize,
}

impl Slot {
    pub(crate) fn name<'b>(&self, block: &'b [u8]) -> &'b [u8] {
        slice(block, self.at + HEADER, self.name_len)
    }

    /// Bytes that it needs.
    fn used(&self) -> usize {
        if self.ino == 0 { 0 } else { needed(self.name_len) }
    }
}

/// Where a name is.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Found {
    /// Block of the directory.
    pub(crate) index: u64,
    /// Byte of that.
    pub(crate) at: usize,
    pub(crate) ino: u32,
}

/// Bytes of an entry with a name of `len` bytes.
pub(crate) fn needed(len: usize) -> usize {
    HEADER + len.next_multiple_of(4)
}

/// Where the entries of a block end.
pub(crate) fn end_of(volume: &Volume) -> usize {
    volume.block_size() - if volume.sb.has_checksums() { TAIL } else { 0 }
}

/// The entries of a block.
pub(crate) fn slots(volume: &Volume, block: &[u8]) -> Result<Vec<Slot>> {
    slots_before(volume, block, end_of(volume))
}

/// The names of a part of an inline directory, and what they lead to.
pub(crate) fn inline_names<'b>(volume: &Volume, part: &'b [u8]) -> Result<Vec<(&'b [u8], Target)>> {
    let typed = volume.sb.features.has_incompat(INCOMPAT_FILETYPE);
    let slots = slots_before(volume, part, part.len())?;
    let kind = |slot: &Slot| if typed { kind_of(u8_at(part, slot.at + 7)) } else { None };
    Ok(slots
        .iter()
        .filter(|slot| slot.ino != 0)
        .map(|slot| (slot.name(part), (slot.ino, kind(slot))))
        .collect())
}

fn slots_before(volume: &Volume, block: &[u8], end: usize) -> Result<Vec<Slot>> {
    let typed = volume.sb.features.has_incompat(INCOMPAT_FILETYPE);
    let (mut slots, mut at) = (Vec::new(), 0);
    // Each entry is at least 12 bytes long.
    while at < end {
        let len = entry_len(le16(block, at + 4), block.len());
        let name_len = if typed { u8_at(block, at + 6).into() } else { usize::from(le16(block, at + 6)) };
        if len < 12 || len % 4 != 0 || at + len > block.len() || HEADER + name_len > len || name_len > 255 {
            return Err(Error::corrupt(format!("the directory entry at byte {at} has a length of {len}")));
        }
        slots.push(Slot { at, len, ino: le32(block, at), name_len });
        at += len;
    }
    Ok(slots)
}

/// The number of a type in an entry.
fn code(kind: NodeKind) -> u8 {
    match kind {
        NodeKind::File => 1,
        NodeKind::Directory => 2,
        NodeKind::CharDevice => 3,
        NodeKind::BlockDevice => 4,
        NodeKind::Fifo => 5,
        NodeKind::Socket => 6,
        NodeKind::Symlink => 7,
    }
}

/// Writes an entry of `len` bytes.
pub(crate) fn write_entry(
    volume: &Volume,
    block: &mut [u8],
    at: usize,
    len: usize,
    name: &[u8],
    (ino, kind): (u32, Option<NodeKind>),
) {
    let size = block.len();
    block[at..at + 4].copy_from_slice(&ino.to_le_bytes());
    block[at + 4..at + 6].copy_from_slice(&stored_len(len, size).to_le_bytes());
    block[at + 6] = name.len() as u8;
    block[at + 7] = match kind {
        Some(kind) if volume.sb.features.has_incompat(INCOMPAT_FILETYPE) => code(kind),
        _ => 0,
    };
    block[at + HEADER..at + HEADER + name.len()].copy_from_slice(name);
}

/// The inverse of [`entry_len`].
fn stored_len(len: usize, block_size: usize) -> u16 {
    match len {
        _ if block_size < 1 << 16 => len as u16,
        _ if len == block_size => 0xffff,
        _ => (len & 0xfffc | len >> 16 & 3) as u16,
    }
}

/// Puts a name into a block: whether there was room.
pub(crate) fn put(
    volume: &Volume,
    block: &mut [u8],
    name: &[u8],
    target: (u32, Option<NodeKind>),
) -> Result<bool> {
    let need = needed(name.len());
    for slot in slots(volume, block)? {
        if slot.len - slot.used() < need {
            continue;
        }
        if slot.ino == 0 {
            write_entry(volume, block, slot.at, slot.len, name, target);
        } else {
            let size = block.len();
            let used = slot.used();
            block[slot.at + 4..slot.at + 6].copy_from_slice(&stored_len(used, size).to_le_bytes());
            write_entry(volume, block, slot.at + used, slot.len - used, name, target);
        }
        return Ok(true);
    }
    Ok(false)
}

/// A block that holds these entries (as bytes of inode, type and name) one behind the other.
pub(crate) fn pack(volume: &Volume, source: &[u8], slots: &[Slot]) -> Vec<u8> {
    let mut block = vec![0; volume.block_size()];
    let (mut at, mut last) = (0, 0);
    for slot in slots {
        let len = slot.used();
        block[at..at + len].copy_from_slice(&source[slot.at..slot.at + len]);
        let stored = stored_len(len, block.len());
        block[at + 4..at + 6].copy_from_slice(&stored.to_le_bytes());
        last = at;
        at += len;
    }
    let stored = stored_len(end_of(volume) - last, block.len());
    block[last + 4..last + 6].copy_from_slice(&stored.to_le_bytes());
    block
}

/// The false entry at the end of a block, with its sum.
pub(crate) fn close(volume: &Volume, dir: &RawInode, block: &mut [u8]) {
    if !volume.sb.has_checksums() {
        return;
    }
    let at = block.len() - TAIL;
    let sum = crc32c(dir.checksum_seed, &block[..at]);
    block[at..].fill(0);
    block[at + 4] = TAIL as u8;
    block[at + 7] = TAIL_TYPE;
    block[at + 8..].copy_from_slice(&sum.to_le_bytes());
}

/// The first block of a new directory.
pub(crate) fn first_block(volume: &Volume, dir: &RawInode, parent: u32) -> Vec<u8> {
    let mut block = vec![0; volume.block_size()];
    let kind = Some(NodeKind::Directory);
    write_entry(volume, &mut block, 0, 12, b".", (dir.ino, kind));
    let rest = end_of(volume) - 12;
    write_entry(volume, &mut block, 12, rest, b"..", (parent, kind));
    close(volume, dir, &mut block);
    block
}

/// Blocks of a directory.
pub(crate) fn blocks(volume: &Volume, dir: &RawInode) -> u64 {
    dir.size() >> volume.sb.block_bits
}

/// Reads a block of a directory: where it is, and what it holds.
pub(crate) fn block(volume: &Volume, dir: &RawInode, index: u64) -> Result<(u64, Block)> {
    let in_dir = |error: Error| error.in_inode(dir.ino);
    let number = match space::find(volume, dir, index, index + 1)? {
        Stretch::Has(extent) if extent.written => extent.physical,
        _ => return Err(in_dir(Error::corrupt(format!("block {index} of the directory is a hole")))),
    };
    let content = volume.block(number)?;
    if volume.sb.has_checksums() && !sum_is_right(&content, dir.checksum_seed) {
        return Err(in_dir(Error::corrupt("the checksum of a directory block is wrong").in_block(number)));
    }
    Ok((number, content))
}

pub(crate) fn is_indexed(volume: &Volume, dir: &RawInode) -> bool {
    dir.has(FLAG_INDEX) && volume.sb.features.has_compat(COMPAT_DIR_INDEX)
}

/// Where a name is.
pub(crate) fn locate(volume: &Volume, dir: &RawInode, name: &[u8]) -> Result<Option<Found>> {
    if is_indexed(volume, dir) && !matches!(name, b"." | b"..") {
        return index::locate(volume, dir, name);
    }
    for index in 0..blocks(volume, dir) {
        if let Some(found) = locate_in(volume, dir, index, name)? {
            return Ok(Some(found));
        }
    }
    Ok(None)
}

/// Where a name is in one block.
pub(crate) fn locate_in(volume: &Volume, dir: &RawInode, index: u64, name: &[u8]) -> Result<Option<Found>> {
    let (number, content) = block(volume, dir, index)?;
    let slots = slots(volume, &content).map_err(|error| error.in_inode(dir.ino).in_block(number))?;
    let found = slots.iter().find(|slot| slot.ino != 0 && slot.name(&content) == name);
    Ok(found.map(|slot| Found { index, at: slot.at, ino: slot.ino }))
}

/// Whether there is nothing but `.` and `..`.
pub(crate) fn is_empty(volume: &Volume, dir: &RawInode) -> Result<bool> {
    for index in 0..blocks(volume, dir) {
        let (number, content) = block(volume, dir, index)?;
        if index == 0 && is_indexed(volume, dir) {
            continue;
        }
        let slots = slots(volume, &content).map_err(|error| error.in_inode(dir.ino).in_block(number))?;
        if slots.iter().any(|slot| slot.ino != 0 && !matches!(slot.name(&content), b"." | b"..")) {
            return Ok(false);
        }
    }
    Ok(true)
}

impl Change<'_> {
    /// Adds a name, which is not there yet.
    pub(crate) fn insert_name(
        &mut self,
        dir: &mut RawInode,
        name: &[u8],
        ino: u32,
        kind: NodeKind,
    ) -> Result<()> {
        let target = (ino, Some(kind));
        if is_indexed(self.volume, dir) {
            return index::insert(self, dir, name, target);
        }
        for index in 0..blocks(self.volume, dir) {
            if self.insert_in(dir, index, name, target)? {
                return Ok(());
            }
        }
        if blocks(self.volume, dir) == 1 && self.volume.sb.features.has_compat(COMPAT_DIR_INDEX) {
            index::make(self, dir)?;
            return index::insert(self, dir, name, target);
        }
        let mut content = vec![0; self.volume.block_size()];
        write_entry(self.volume, &mut content, 0, end_of(self.volume), name, target);
        close(self.volume, dir, &mut content);
        self.append_block(dir, content)?;
        Ok(())
    }

    /// Adds a name to one block: whether there was room.
    pub(crate) fn insert_in(
        &mut self,
        dir: &RawInode,
        index: u64,
        name: &[u8],
        target: (u32, Option<NodeKind>),
    ) -> Result<bool> {
        let (number, content) = block(self.volume, dir, index)?;
        let mut new = content.to_vec();
        let put = put(self.volume, &mut new, name, target);
        if put.map_err(|error| error.in_inode(dir.ino).in_block(number))? {
            close(self.volume, dir, &mut new);
            self.set(number, Kind::Entries, new);
            return Ok(true);
        }
        Ok(false)
    }

    /// Adds a block to a directory: its number in that.
    pub(crate) fn append_block(&mut self, dir: &mut RawInode, content: Vec<u8>) -> Result<u64> {
        let index = blocks(self.volume, dir);
        let most = if self.volume.sb.features.has_incompat(crate::features::INCOMPAT_LARGEDIR) {
            u32::MAX.into()
        } else {
            (u64::from(u32::MAX) >> 1) >> self.volume.sb.block_bits
        };
        if index >= most {
            return Err(Errno::ENOSPC.into());
        }
        let new = self.fill_hole(dir, index..index + 1, true)?;
        self.fresh(new.physical, Kind::Entries, content);
        dir.set_size((index + 1) << self.volume.sb.block_bits);
        Ok(index)
    }

    /// Removes a name.
    pub(crate) fn remove_name(&mut self, dir: &RawInode, found: Found) -> Result<()> {
        let (number, content) = block(self.volume, dir, found.index)?;
        let slots = slots(self.volume, &content)?;
        let mut new = content.to_vec();
        let at = slots.iter().position(|slot| slot.at == found.at);
        let at = at.ok_or_else(|| Error::corrupt("a directory entry moved").in_inode(dir.ino))?;
        let gone = slots[at];
        if let Some(before) = at.checked_sub(1).map(|before| slots[before]) {
            let stored = stored_len(before.len + gone.len, new.len());
            new[before.at + 4..before.at + 6].copy_from_slice(&stored.to_le_bytes());
            new[gone.at..gone.at + gone.used()].fill(0);
        } else {
            new[gone.at..gone.at + 4].fill(0);
        }
        close(self.volume, dir, &mut new);
        self.set(number, Kind::Entries, new);
        Ok(())
    }

    /// Has a name lead elsewhere.
    pub(crate) fn redirect_name(
        &mut self,
        dir: &RawInode,
        found: Found,
        ino: u32,
        kind: NodeKind,
    ) -> Result<()> {
        let (number, content) = block(self.volume, dir, found.index)?;
        let mut new = content.to_vec();
        new[found.at..found.at + 4].copy_from_slice(&ino.to_le_bytes());
        if self.volume.sb.features.has_incompat(INCOMPAT_FILETYPE) {
            new[found.at + 7] = code(kind);
        }
        if found.index == 0 && is_indexed(self.volume, dir) {
            index::close_root(self.volume, dir, &mut new);
        } else {
            close(self.volume, dir, &mut new);
        }
        self.set(number, Kind::Entries, new);
        Ok(())
    }

    /// A directory that moved has another parent.
    pub(crate) fn set_parent(&mut self, dir: &RawInode, parent: u32) -> Result<()> {
        let (number, content) = block(self.volume, dir, 0)?;
        let at = usize::from(le16(&content, 4));
        if slice(&content, at + HEADER, 2) != b".." || u8_at(&content, at + 6) != 2 {
            let what = "the directory has no entry for its parent";
            return Err(Error::corrupt(what).in_inode(dir.ino).in_block(number));
        }
        self.redirect_name(dir, Found { index: 0, at, ino: 0 }, parent, NodeKind::Directory)
    }
}
