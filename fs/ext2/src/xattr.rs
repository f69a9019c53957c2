//! Extended attributes.
//!
//! Layout: attributes stand behind the fields of the inode (magic EA020000, then entries), and in a block of
//! their own (a head of 32 bytes, then entries), which several inodes may share. An entry of 16 bytes and the
//! name: length of the name, prefix, offset of the value (from the first entry in the inode, from the start
//! of the block), inode of the value (`ea_inode`), size, hash. Entries end at four zeros; values fill the
//! room from its end.

use veduta_api::{Errno, Kind};

use crate::acl;
use crate::bytes::{le16, le32, slice, u8_at};
use crate::checksum::{crc32c, crc32c_without};
use crate::error::{Error, Result};
use crate::inode::{FLAG_EA_INODE, Inode};
use crate::map::Map;
use crate::volume::Volume;

/// h_magic
pub(crate) const MAGIC: u32 = 0xea02_0000;
/// Bytes of the head of a block, and where its checksum stands.
pub(crate) const BLOCK_HEAD: usize = 32;
pub(crate) const BLOCK_CHECKSUM_AT: usize = 16;
/// Bytes of an entry before its name.
pub(crate) const ENTRY: usize = 16;
/// Bytes; the longest value that Linux hands out.
const VALUE_MAX: u32 = 1 << 16;

pub(crate) const INDEX_ACL_ACCESS: u8 = 2;
pub(crate) const INDEX_ACL_DEFAULT: u8 = 3;
pub(crate) const INDEX_SYSTEM: u8 = 7;
/// Prefixes by their number. Others (encryption contexts, Merkle trees, `system.data`) are the filesystem's
/// own.
const PREFIXES: [(u8, &str); 6] = [
    (1, "user."),
    (INDEX_ACL_ACCESS, "system.posix_acl_access"),
    (INDEX_ACL_DEFAULT, "system.posix_acl_default"),
    (4, "trusted."),
    (6, "security."),
    (10, "gnu."),
];

/// An attribute as it is stored.
struct Entry<'a> {
    index: u8,
    name: &'a [u8],
    hash: u32,
    value: Value<'a>,
}

enum Value<'a> {
    Here(&'a [u8]),
    Inode { ino: u32, size: u32 },
}

impl Entry<'_> {
    /// The name that users see; `None` if they do not.
    fn full_name(&self) -> Option<Vec<u8>> {
        let (_, prefix) = PREFIXES.iter().find(|(index, _)| *index == self.index)?;
        let is_whole = is_acl(self.index);
        // A prefix that is a whole name takes nothing behind it; all others want something.
        (is_whole == self.name.is_empty()).then(|| [prefix.as_bytes(), self.name].concat())
    }
}

/// The names of all attributes.
pub(crate) fn list(volume: &Volume, inode: &Inode) -> Result<Vec<Vec<u8>>> {
    let mut names = Vec::new();
    visit(volume, inode, &mut |entry| {
        let shown = !(is_acl(entry.index) && inode.kind == Kind::Symlink);
        names.extend(entry.full_name().filter(|_| shown));
        Ok(false)
    })?;
    Ok(names)
}

/// The number of a name's prefix, and what follows that.
pub(crate) fn split_name(name: &[u8]) -> Result<(u8, &[u8])> {
    let (index, rest) = PREFIXES
        .iter()
        .find_map(|(index, prefix)| Some((*index, name.strip_prefix(prefix.as_bytes())?)))
        .ok_or(Errno::EOPNOTSUPP)?;
    if is_acl(index) != rest.is_empty() {
        return Err(if is_acl(index) { Errno::EOPNOTSUPP } else { Errno::EINVAL }.into());
    }
    Ok((index, rest))
}

/// An attribute whose value is where its entry is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Attribute {
    pub(crate) index: u8,
    pub(crate) name: Vec<u8>,
    pub(crate) value: Vec<u8>,
}

/// All attributes of a room whose entries start at `first`.
pub(crate) fn attributes(room: &[u8], first: usize) -> Result<Vec<Attribute>> {
    let mut all = Vec::new();
    entries(room, first, &mut |entry| match entry.value {
        Value::Here(value) => {
            all.push(Attribute { index: entry.index, name: entry.name.to_vec(), value: value.to_vec() });
            Ok(false)
        }
        Value::Inode { .. } => {
            Err(Error::corrupt("the value of an attribute is in an inode, without ea_inode"))
        }
    })?;
    Ok(all)
}

/// The value of an attribute.
pub(crate) fn get(volume: &Volume, inode: &Inode, name: &[u8]) -> Result<Vec<u8>> {
    let (index, rest) = split_name(name)?;
    if is_acl(index) && inode.kind == Kind::Symlink {
        return Err(Errno::EOPNOTSUPP.into());
    }
    let value = find(volume, inode, index, rest)?.ok_or(Errno::ENODATA)?;
    if !is_acl(index) {
        return Ok(value);
    }
    match acl::to_xattr(&value).map_err(|error| error.in_inode(inode.ino))? {
        Some(value) => Ok(value),
        None => Err(Errno::ENODATA.into()),
    }
}

/// The part of inline content that is kept as an attribute.
pub(crate) fn inline_data(volume: &Volume, inode: &Inode) -> Result<Option<Vec<u8>>> {
    find(volume, inode, INDEX_SYSTEM, b"data")
}

pub(crate) fn is_acl(index: u8) -> bool {
    matches!(index, INDEX_ACL_ACCESS | INDEX_ACL_DEFAULT)
}

fn find(volume: &Volume, inode: &Inode, index: u8, name: &[u8]) -> Result<Option<Vec<u8>>> {
    let mut value = None;
    visit(volume, inode, &mut |entry| {
        if entry.index != index || entry.name != name {
            return Ok(false);
        }
        value = Some(load(volume, inode, entry)?);
        Ok(true)
    })?;
    Ok(value)
}

/// Shows all attributes, those in the inode first, until `seen` says that it has seen enough.
fn visit(volume: &Volume, inode: &Inode, seen: &mut dyn FnMut(&Entry<'_>) -> Result<bool>) -> Result<()> {
    let in_inode = |error: Error| error.in_inode(inode.ino);
    let record = volume.record(inode.ino)?;
    let tail = record.tail();
    if le32(tail, 0) == MAGIC {
        let room = tail.get(4..).unwrap_or_default();
        if entries(room, 0, seen).map_err(|error| in_inode(error.in_block(record.number)))? {
            return Ok(());
        }
    }
    let number = inode.xattr_block;
    if number == 0 {
        return Ok(());
    }
    if !volume.sb.holds(number, 1) {
        let what = format!("its attributes are said to be in block {number}, outside the volume");
        return Err(in_inode(Error::corrupt(what)));
    }
    let block = volume.block(number)?;
    check_block(volume, number, &block)
        .and_then(|()| entries(&block, BLOCK_HEAD, seen))
        .map(|_| ())
        .map_err(|error| in_inode(error.in_block(number)))
}

pub(crate) fn check_block(volume: &Volume, number: u64, block: &[u8]) -> Result<()> {
    if le32(block, 0) != MAGIC || le32(block, 8) != 1 {
        return Err(Error::corrupt("a block of attributes has no magic number"));
    }
    let sum = || {
        let seed = crc32c(volume.sb.checksum_seed, &number.to_le_bytes());
        crc32c_without(seed, block, BLOCK_CHECKSUM_AT, 4)
    };
    match !volume.sb.has_checksums() || sum() == le32(block, BLOCK_CHECKSUM_AT) {
        true => Ok(()),
        false => Err(Error::corrupt("the checksum of a block of attributes is wrong")),
    }
}

/// Shows the entries from `first` on; values count from the start of `room`. Each is at least 16 bytes long,
/// so the chain ends.
fn entries(room: &[u8], first: usize, seen: &mut dyn FnMut(&Entry<'_>) -> Result<bool>) -> Result<bool> {
    let mut at = first;
    while at + 4 <= room.len() && le32(room, at) != 0 {
        let head = slice(room, at, ENTRY);
        let name = slice(room, at + ENTRY, u8_at(head, 0).into());
        if head.len() < ENTRY || name.len() < usize::from(u8_at(head, 0)) || name.contains(&0) {
            return Err(Error::corrupt("the name of an attribute is damaged"));
        }
        let (ino, size) = (le32(head, 4), le32(head, 8));
        let value = match ino {
            0 => Value::Here(value_in(room, first, le16(head, 2).into(), size)?),
            _ => Value::Inode { ino, size },
        };
        if seen(&Entry { index: u8_at(head, 1), name, hash: le32(head, 12), value })? {
            return Ok(true);
        }
        at += ENTRY + name.len().next_multiple_of(4);
    }
    Ok(false)
}

fn value_in(room: &[u8], first: usize, offset: usize, size: u32) -> Result<&[u8]> {
    let end = usize::try_from(size).ok().and_then(|size| offset.checked_add(size));
    match end.and_then(|end| room.get(offset..end)) {
        Some(value) if size == 0 || offset >= first => Ok(value),
        _ if size == 0 => Ok(&[]),
        _ => {
            Err(Error::corrupt(format!("the value of an attribute, {size} bytes at {offset}, lies outside")))
        }
    }
}

fn load(volume: &Volume, inode: &Inode, entry: &Entry<'_>) -> Result<Vec<u8>> {
    match entry.value {
        Value::Here(value) => Ok(value.to_vec()),
        Value::Inode { ino, size } => load_inode(volume, inode, entry, ino, size),
    }
}

/// A value that has an inode of its own: a file that no directory leads to.
fn load_inode(volume: &Volume, inode: &Inode, entry: &Entry<'_>, ino: u32, size: u32) -> Result<Vec<u8>> {
    let damaged = |what: &str| Error::corrupt(format!("{what} of an attribute")).in_inode(ino);
    if !volume.sb.is_ordinary(ino) {
        return Err(damaged("a reserved inode is said to hold the value"));
    }
    let holder = volume.any_inode(ino)?;
    if !holder.has(FLAG_EA_INODE) || holder.kind != Kind::File {
        return Err(damaged("it is said to hold the value"));
    }
    if holder.size != u64::from(size) || size > VALUE_MAX {
        return Err(damaged("its size is not that of the value"));
    }
    let (atime, mtime) = holder.raw_times();
    let generation = holder.generation;
    let mut value = vec![0; size as usize];
    Map::new(holder).read(volume, &mut value, 0)?;
    let hash = crc32c(volume.sb.checksum_seed, &value);
    // Lustre's older form has no hash, but names its only owner.
    let is_lustres = mtime == inode.ino && generation == inode.generation;
    if !is_lustres && (hash != atime || !hash_matches(entry, hash)) {
        return Err(damaged("the hash does not match the value"));
    }
    Ok(value)
}

/// Whether an entry's hash is that of its name and the value's hash. Compilers did not agree on whether a
/// character has a sign, so both results count.
fn hash_matches(entry: &Entry<'_>, value: u32) -> bool {
    let of = |byte_to_word: fn(u8) -> u32| {
        let mix = |hash: u32, byte: &u8| hash.rotate_left(5) ^ byte_to_word(*byte);
        entry.name.iter().fold(0, mix).rotate_left(16) ^ value
    };
    entry.hash == of(u32::from) || entry.hash == of(|byte| byte as i8 as u32)
}

#[cfg(test)]
mod tests {
    use super::*;

    type Plain = (u8, Vec<u8>, Vec<u8>);

    fn names(room: &[u8]) -> Result<Vec<Plain>> {
        let mut all = Vec::new();
        entries(room, 0, &mut |entry| {
            if let Value::Here(value) = entry.value {
                all.push((entry.index, entry.name.to_vec(), value.to_vec()));
            }
            Ok(false)
        })?;
        Ok(all)
    }

    #[test]
    fn a_value_that_leaves_its_room_is_refused() {
        let mut room = vec![0; 64];
        room[..3].copy_from_slice(&[1, 1, 60]);
        room[8] = 4;
        room[16] = b'x';
        room[60..].copy_from_slice(b"word");
        assert_eq!(names(&room), Ok(vec![(1, b"x".to_vec(), b"word".to_vec())]));
        room[8] = 5;
        assert!(names(&room).is_err());
        room[8..12].fill(0xff);
        assert!(names(&room).is_err());
        room[8..12].fill(0);
        room[0] = 255;
        assert!(names(&room).is_err());
        assert_eq!(names(&[1, 1]), Ok(vec![]));
        assert!(names(&[1, 1, 0, 0, 0]).is_err());
    }
}
