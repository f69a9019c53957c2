//! Extended attributes, written.
//!
//! The layout is in [`crate::xattr`]. An attribute goes into the inode while there is room, then into the block. A block that several
//! inodes share is left to the others, and one that is changed becomes one's own.
//!
//! # Limits
//!
//! Blocks are not shared anew. Values larger than the room in a block are refused (`ENOSPC`).

use veduta_api::{Errno, XattrMode};

use crate::acl::Acl;
use crate::bytes::{le32, slice};
use crate::change::{Change, Kind};
use crate::checksum::{crc32c, crc32c_without};
use crate::error::{Error, Result};
use crate::raw::{CTIME, RawInode};
use crate::volume::Volume;
use crate::xattr::{
    Attribute, BLOCK_CHECKSUM_AT, BLOCK_HEAD, ENTRY, INDEX_ACL_ACCESS, INDEX_ACL_DEFAULT, INDEX_SYSTEM,
    MAGIC, attributes, check_block, is_acl, split_name,
};

/// Where h_refcount and h_hash stand.
const COUNT_AT: usize = 4;
const HASH_AT: usize = 12;

/// The attributes of an inode, by where they are.
struct Stored {
    inside: Vec<Attribute>,
    outside: Vec<Attribute>,
}

impl Stored {
    fn read(volume: &Volume, inode: &RawInode) -> Result<Self> {
        let in_inode = |error: Error| error.in_inode(inode.ino);
        let tail = inode.tail();
        let inside = match le32(tail, 0) == MAGIC {
            true => attributes(tail.get(4..).unwrap_or_default(), 0).map_err(in_inode)?,
            false => Vec::new(),
        };
        let outside = match inode.xattr_block() {
            0 => Vec::new(),
            number => {
                let block = read_block(volume, number).map_err(in_inode)?;
                attributes(&block, BLOCK_HEAD).map_err(|error| in_inode(error.in_block(number)))?
            }
        };
        Ok(Self { inside, outside })
    }

    fn remove(&mut self, index: u8, name: &[u8]) -> bool {
        let is = |attribute: &Attribute| attribute.index == index && attribute.name == name;
        let before = self.inside.len() + self.outside.len();
        self.inside.retain(|attribute| !is(attribute));
        self.outside.retain(|attribute| !is(attribute));
        self.inside.len() + self.outside.len() < before
    }

    /// Puts one in where it fits; if need be, all are placed anew. `ENOSPC` if they do not fit.
    fn add(&mut self, new: Attribute, inside: usize, outside: usize) -> Result<()> {
        for (list, room) in [(&mut self.inside, inside), (&mut self.outside, outside)] {
            list.push(new.clone());
            if room_for(list) <= room {
                return Ok(());
            }
            list.pop();
        }
        let mut all: Vec<Attribute> = self.inside.drain(..).chain(self.outside.drain(..)).collect();
        all.push(new);
        // Inline content must stay in the inode; then the large ones go there, as long as they fit.
        all.sort_by_key(|attribute| (attribute.index != INDEX_SYSTEM, usize::MAX - attribute.value.len()));
        for attribute in all {
            self.inside.push(attribute);
            if room_for(&self.inside) > inside {
                self.outside.extend(self.inside.pop());
            }
        }
        if room_for(&self.outside) > outside { Err(Errno::ENOSPC.into()) } else { Ok(()) }
    }
}

/// Bytes that attributes take up, the zeros behind the entries included.
fn room_for(list: &[Attribute]) -> usize {
    let each = |attribute: &Attribute| {
        ENTRY + attribute.name.len().next_multiple_of(4) + attribute.value.len().next_multiple_of(4)
    };
    4 + list.iter().map(each).sum::<usize>()
}

fn read_block(volume: &Volume, number: u64) -> Result<crate::cache::Block> {
    if !volume.sb.holds(number, 1) {
        let what = format!("attributes are said to be in block {number}, outside the volume");
        return Err(Error::corrupt(what));
    }
    let block = volume.block(number)?;
    check_block(volume, number, &block).map_err(|error| error.in_block(number))?;
    Ok(block)
}

/// The hash of an entry.
fn hash(attribute: &Attribute) -> u32 {
    let name = attribute.name.iter().fold(0u32, |hash, byte| hash.rotate_left(5) ^ u32::from(*byte));
    attribute.value.chunks(4).fold(name, |hash, word| {
        let mut bytes = [0; 4];
        bytes[..word.len()].copy_from_slice(word);
        hash.rotate_left(16) ^ u32::from_le_bytes(bytes)
    })
}

/// Writes entries from `first` on, and values from the end; offsets count from the start of `room`.
fn write(room: &mut [u8], first: usize, list: &[Attribute]) {
    room[first..].fill(0);
    let (mut at, mut value_at) = (first, room.len());
    for attribute in list {
        let len = attribute.value.len();
        if len > 0 {
            value_at -= len.next_multiple_of(4);
            room[value_at..value_at + len].copy_from_slice(&attribute.value);
        }
        room[at] = attribute.name.len() as u8;
        room[at + 1] = attribute.index;
        let offset = if len > 0 { value_at as u16 } else { 0 };
        room[at + 2..at + 4].copy_from_slice(&offset.to_le_bytes());
        room[at + 8..at + 12].copy_from_slice(&(len as u32).to_le_bytes());
        room[at + 12..at + 16].copy_from_slice(&hash(attribute).to_le_bytes());
        room[at + ENTRY..at + ENTRY + attribute.name.len()].copy_from_slice(&attribute.name);
        at += ENTRY + attribute.name.len().next_multiple_of(4);
    }
}

impl Change<'_> {
    /// Sets an attribute, or removes it. The caller stores the inode.
    pub(crate) fn put_attribute(
        &mut self,
        inode: &mut RawInode,
        (index, name): (u8, &[u8]),
        value: Option<&[u8]>,
        mode: XattrMode,
    ) -> Result<()> {
        let mut stored = Stored::read(self.volume, inode)?;
        let outside_before = stored.outside.clone();
        let existed = stored.remove(index, name);
        match mode {
            XattrMode::Create if existed => return Err(Errno::EEXIST.into()),
            XattrMode::Replace if !existed => return Err(Errno::ENODATA.into()),
            _ => {}
        }
        if let Some(value) = value {
            let new = Attribute { index, name: name.to_vec(), value: value.to_vec() };
            let inside = inode.tail().len().saturating_sub(4);
            stored.add(new, inside, self.volume.block_size() - BLOCK_HEAD)?;
        }
        let tail = inode.tail_mut();
        if stored.inside.is_empty() {
            tail.fill(0);
        } else {
            tail[..4].copy_from_slice(&MAGIC.to_le_bytes());
            write(&mut tail[4..], 0, &stored.inside);
        }
        if stored.outside != outside_before {
            self.put_attribute_block(inode, stored.outside)?;
        }
        inode.set_time(CTIME, veduta_api::Timestamp::now());
        Ok(())
    }

    fn put_attribute_block(&mut self, inode: &mut RawInode, mut list: Vec<Attribute>) -> Result<()> {
        let old = inode.xattr_block();
        if list.is_empty() {
            return self.drop_attribute_block(inode);
        }
        list.sort_by(|one, next| {
            (one.index, one.name.len(), &one.name).cmp(&(next.index, next.name.len(), &next.name))
        });
        let mut number = old;
        let own = old != 0 && le32(&read_block(self.volume, old)?, COUNT_AT) == 1;
        if !own {
            self.drop_attribute_block(inode)?;
            let group = (inode.ino - 1) / self.volume.sb.inodes_per_group;
            number = self.allocate_one(self.volume.sb.group_start(group))?;
            inode.add_blocks(1 << self.volume.sb.cluster_bits)?;
            inode.set_xattr_block(number);
        }
        let mut block = vec![0; self.volume.block_size()];
        write(&mut block, BLOCK_HEAD, &list);
        let whole = list.iter().map(hash).fold(0u32, |whole, hash| whole.rotate_left(16) ^ hash);
        let whole = if list.iter().any(|attribute| hash(attribute) == 0) { 0 } else { whole };
        for (at, value) in [(0, MAGIC), (COUNT_AT, 1), (8, 1), (HASH_AT, whole)] {
            block[at..at + 4].copy_from_slice(&value.to_le_bytes());
        }
        self.sum_attribute_block(number, &mut block);
        if own {
            self.set(number, Kind::Other, block);
        } else {
            self.fresh(number, Kind::Other, block);
        }
        Ok(())
    }

    /// An inode does without its block of attributes, which may be others' too.
    pub(crate) fn drop_attribute_block(&mut self, inode: &mut RawInode) -> Result<()> {
        let number = inode.xattr_block();
        if number == 0 {
            return Ok(());
        }
        let block = read_block(self.volume, number).map_err(|error| error.in_inode(inode.ino))?;
        let count = le32(&block, COUNT_AT);
        if count > 1 {
            let mut block = block.to_vec();
            block[COUNT_AT..COUNT_AT + 4].copy_from_slice(&(count - 1).to_le_bytes());
            self.sum_attribute_block(number, &mut block);
            self.set(number, Kind::Other, block);
        } else {
            self.release_meta(number)?;
        }
        inode.set_xattr_block(0);
        inode.add_blocks(-(1 << self.volume.sb.cluster_bits))
    }

    fn sum_attribute_block(&self, number: u64, block: &mut [u8]) {
        if self.volume.sb.has_checksums() {
            let seed = crc32c(self.volume.sb.checksum_seed, &number.to_le_bytes());
            let sum = crc32c_without(seed, block, BLOCK_CHECKSUM_AT, 4);
            block[BLOCK_CHECKSUM_AT..BLOCK_CHECKSUM_AT + 4].copy_from_slice(&sum.to_le_bytes());
        }
    }

    /// Sets an attribute by the name that users know. An access control list changes the mode too.
    pub(crate) fn set_named(
        &mut self,
        inode: &mut RawInode,
        name: &[u8],
        value: Option<&[u8]>,
        mode: XattrMode,
    ) -> Result<()> {
        let (index, rest) = split_name(name)?;
        if !is_acl(index) {
            return self.put_attribute(inode, (index, rest), value, mode);
        }
        if inode.kind() == Some(veduta_api::Kind::Symlink) {
            return Err(Errno::EOPNOTSUPP.into());
        }
        let acl = value.map(Acl::parse).transpose()?.flatten();
        if index == INDEX_ACL_DEFAULT && acl.is_some() && !inode.is_dir() {
            return Err(Errno::EACCES.into());
        }
        if value.is_none() || acl.is_some() {
            return self.put_acl(inode, index, acl, mode);
        }
        self.put_acl(inode, index, None, XattrMode::Set)
    }

    fn put_acl(&mut self, inode: &mut RawInode, index: u8, acl: Option<Acl>, mode: XattrMode) -> Result<()> {
        let mut acl = acl;
        if index == INDEX_ACL_ACCESS {
            if let Some(list) = &mut acl {
                inode.set_mode(inode.mode() & !0o777 | list.mode());
            }
            // What says no more than the mode is not stored.
            acl = acl.filter(|list| !list.is_mode());
        }
        let value = acl.map(|list| list.to_disk());
        let mode = if value.is_none() && mode == XattrMode::Replace { XattrMode::Set } else { mode };
        self.put_attribute(inode, (index, b""), value.as_deref(), mode)
    }

    /// The access control list that `chmod` changes with the mode.
    pub(crate) fn follow_mode(&mut self, inode: &mut RawInode) -> Result<()> {
        let Some(mut acl) = self.acl(inode, INDEX_ACL_ACCESS)? else { return Ok(()) };
        acl.set_mode(inode.mode());
        self.put_attribute(inode, (INDEX_ACL_ACCESS, b""), Some(&acl.to_disk()), XattrMode::Set)
    }

    /// What a new node inherits from its directory: its lists, and what they leave of its mode.
    pub(crate) fn inherit(&mut self, dir: &RawInode, inode: &mut RawInode, umask: u16) -> Result<()> {
        let Some(default) = self.acl(dir, INDEX_ACL_DEFAULT)? else {
            inode.set_mode(inode.mode() & !(umask & 0o777));
            return Ok(());
        };
        let mut access = default.clone();
        access.restrict(inode.mode());
        if inode.is_dir() {
            self.put_attribute(inode, (INDEX_ACL_DEFAULT, b""), Some(&default.to_disk()), XattrMode::Set)?;
        }
        self.put_acl(inode, INDEX_ACL_ACCESS, Some(access), XattrMode::Set)
    }

    fn acl(&mut self, inode: &RawInode, index: u8) -> Result<Option<Acl>> {
        if inode.xattr_block() == 0 && slice(inode.tail(), 0, 4) != MAGIC.to_le_bytes() {
            return Ok(None);
        }
        let stored = Stored::read(self.volume, inode)?;
        let mut lists = stored.inside.iter().chain(&stored.outside);
        match lists.find(|attribute| attribute.index == index) {
            Some(attribute) => Acl::stored(&attribute.value).map_err(|error| error.in_inode(inode.ino)),
            None => Ok(None),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read() {
        let attribute = |index, name: &[u8], value: &[u8]| Attribute {
            index,
            name: name.to_vec(),
            value: value.to_vec(),
        };
        let list = [attribute(1, b"a", b"12345"), attribute(6, b"empty", b""), attribute(2, b"", b"acl!")];
        let mut room = vec![0xff; room_for(&list)];
        write(&mut room, 0, &list);
        assert_eq!(attributes(&room, 0), Ok(list.to_vec()));
        let mut stored = Stored { inside: Vec::new(), outside: Vec::new() };
        for new in list {
            stored.add(new, 32, 60).unwrap();
        }
        assert_eq!((stored.inside.len(), stored.outside.len()), (1, 2));
        assert!(stored.add(attribute(1, b"b", &[0; 64]), 32, 60).is_err());
    }
}
