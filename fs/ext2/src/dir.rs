//! Directories: names, and the inodes that they lead to.
//!
//! Layout: each block is a chain of entries that fills it: inode (0 for free room), length of the entry,
//! length of the name, type (`filetype`; else the name's length has 16 bits), name. An index
//! ([`crate::htree`]) hides in blocks that look like one free entry, so every directory can be read in the
//! order of its blocks. With `metadata_csum` each block ends in a false entry of 12 bytes that holds a
//! CRC-32C. Small directories may be inline: the parent's number, and entries in i_block, then in the
//! attribute `system.data`.
//!
//! A position in a listing is the offset of the next entry in the directory. Names that fast commits added
//! follow those on the disk, and are counted from [`ADDED`].
//!
//! # Limits
//!
//! Names in encrypted directories are listed in base64 (the alphabet for URLs) of what is stored, since there
//! are no keys. It is not the kernel's form for them.

use std::collections::BTreeMap;
use std::ops::ControlFlow;

use veduta_api::Kind;

use crate::bytes::{le16, le32, slice, u8_at};
use crate::cache::Block;
use crate::checksum::crc32c;
use crate::error::{Error, Result};
use crate::features::INCOMPAT_FILETYPE;
use crate::fold::Wanted;
use crate::htree;
use crate::inode::{FLAG_CASEFOLD, FLAG_ENCRYPTED, FLAG_INDEX, FLAG_INLINE_DATA, Inode};
use crate::map::Map;
use crate::superblock::ROOT_INO;
use crate::volume::Volume;

/// Bytes of an entry before its name.
pub(crate) const HEADER: usize = 8;
/// The false entry that ends a block and holds its checksum.
pub(crate) const TAIL: usize = 12;
pub(crate) const TAIL_TYPE: u8 = 0xde;
/// Feature dir_index.
pub(crate) const COMPAT_DIR_INDEX: u32 = 0x20;
/// The position of the first name that a fast commit added. No directory is so large.
const ADDED: u64 = 1 << 60;
/// Bytes of a directory that a listing reads at once.
const READ_AHEAD: u64 = 128 << 10;

/// An entry that is in use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Entry<'a> {
    /// As it is shown: encoded, in an encrypted directory.
    pub(crate) name: &'a [u8],
    /// The inode, at most the volume's last.
    pub(crate) ino: u32,
    /// The type, if the volume notes it.
    pub(crate) kind: Option<Kind>,
    /// The position behind it.
    pub(crate) next: u64,
}

/// Takes the entries of a listing.
pub(crate) type Sink<'a> = dyn FnMut(Entry<'_>) -> ControlFlow<()> + 'a;

/// A directory.
pub(crate) struct Dir {
    /// Its map; without use if it is inline.
    pub(crate) map: Map,
    /// The two parts of an inline directory, each with the position at which it starts.
    inline: Option<[(u64, Vec<u8>); 2]>,
}

impl Dir {
    /// The directory of an inode.
    pub(crate) fn open(volume: &Volume, inode: Inode) -> Result<Self> {
        let inline = match inode.has(FLAG_INLINE_DATA) {
            true => {
                let content = crate::inline::content(volume, &inode)?;
                let (head, tail) = content.split_at(content.len().min(crate::inode::BLOCK_LEN));
                Some([(4, head.get(4..).unwrap_or_default().to_vec()), (head.len() as u64, tail.to_vec())])
            }
            false => None,
        };
        Ok(Self { map: Map::new(inode), inline })
    }

    /// The inode.
    pub(crate) fn inode(&self) -> &Inode {
        self.map.inode()
    }

    /// Whether its entries are in the inode.
    pub(crate) fn is_inline(&self) -> bool {
        self.inline.is_some()
    }

    /// Blocks.
    pub(crate) fn blocks(&self, volume: &Volume) -> u64 {
        self.inode().size.div_ceil(volume.block_size() as u64)
    }

    /// Lists the entries from `position` on, without `.` and `..`. What comes before damage is listed.
    pub(crate) fn list(&self, volume: &Volume, position: u64, sink: &mut Sink<'_>) -> Result<()> {
        let encrypted = self.inode().has(FLAG_ENCRYPTED);
        let mut filter = |entry: Entry<'_>| match entry.name {
            b"." | b".." => ControlFlow::Continue(()),
            name if encrypted => {
                let name = encode(name, entry.next);
                sink(Entry { name: &name, ..entry })
            }
            _ => sink(entry),
        };
        self.walk_all(volume, position, &mut filter).map_err(|error| error.in_inode(self.inode().ino))
    }

    /// The inode that a name leads to.
    pub(crate) fn find(&self, volume: &Volume, name: &[u8]) -> Result<Option<u32>> {
        let wanted = Wanted::new(name, self.inode().has(FLAG_CASEFOLD));
        let mut changed = volume.changes.names.get(&self.inode().ino).into_iter().flatten();
        if let Some((_, ino)) = changed.find(|(name, _)| wanted.is(name)) {
            return Ok(*ino);
        }
        if volume.changes.made.contains_key(&self.inode().ino) {
            return Ok(None);
        }
        if self.is_indexed(volume) {
            match htree::find(volume, self, &wanted) {
                // The index of a casefold directory was made by somebody's tables of Unicode, perhaps others
                // than ours.
                Ok(None) if self.inode().has(FLAG_CASEFOLD) && !name.is_ascii() => {}
                Err(error @ (Error::Corrupt(_) | Error::Unsupported(_))) => {
                    let ino = self.inode().ino;
                    tracing::warn!("ext2: the index of directory {ino} is left aside: {error}");
                }
                found => return found,
            }
        }
        let mut found = None;
        self.list(volume, 0, &mut |entry| {
            if wanted.is(entry.name) {
                found = Some(entry.ino);
                return ControlFlow::Break(());
            }
            ControlFlow::Continue(())
        })?;
        Ok(found)
    }

    /// The directory that holds this one.
    pub(crate) fn parent(&self, volume: &Volume) -> Result<u32> {
        if let Some(parent) = volume.changes.made.get(&self.inode().ino) {
            return Ok(*parent);
        }
        if self.inline.is_some() {
            return Ok(le32(&self.inode().block, 0));
        }
        let mut parent = None;
        self.walk(volume, 0, &mut |entry| match entry.name {
            b".." => {
                parent = Some(entry.ino);
                ControlFlow::Break(())
            }
            _ => ControlFlow::Continue(()),
        })
        .and_then(|()| parent.ok_or_else(|| Error::corrupt("the directory has no entry for its parent")))
        .map_err(|error| error.in_inode(self.inode().ino))
    }

    /// Looks for a name in one block.
    pub(crate) fn find_in(&self, volume: &Volume, index: u64, wanted: &Wanted<'_>) -> Result<Option<u32>> {
        let (number, block) = self.block(volume, index, 1)?;
        let encrypted = self.inode().has(FLAG_ENCRYPTED);
        let mut found = None;
        let _ = entries(volume, encrypted, &block, 0, 0, &mut |entry| {
            if wanted.is(entry.name) && !matches!(entry.name, b"." | b"..") {
                found = Some(entry.ino);
                return ControlFlow::Break(());
            }
            ControlFlow::Continue(())
        })
        .map_err(|error| error.in_block(number))?;
        Ok(found)
    }

    /// Reads a block of the directory and checks its sum; of those that follow it on the disk, up to `ahead`
    /// in all are read with it.
    pub(crate) fn block(&self, volume: &Volume, index: u64, ahead: u64) -> Result<(u64, Block)> {
        let run = self.map.find(volume, index)?;
        let Some(number) = run.physical else {
            return Err(Error::corrupt(format!("block {index} of the directory is a hole")));
        };
        let left = self.blocks(volume).saturating_sub(index);
        let window = number..number + run.len.min(ahead).min(left).max(1);
        let block = volume.block_ahead(number, window)?;
        match !volume.sb.has_checksums() || sum_is_right(&block, self.inode().checksum_seed) {
            true => Ok((number, block)),
            false => Err(Error::corrupt("the checksum of a directory block is wrong").in_block(number)),
        }
    }

    fn is_indexed(&self, volume: &Volume) -> bool {
        let inode = self.inode();
        self.inline.is_none()
            && inode.has(FLAG_INDEX)
            && !inode.has(FLAG_ENCRYPTED)
            && volume.sb.features.has_compat(COMPAT_DIR_INDEX)
    }

    /// All entries from `position` on, with the changes of fast commits.
    fn walk_all(&self, volume: &Volume, position: u64, sink: &mut Sink<'_>) -> Result<()> {
        if volume.changes.is_empty() {
            return self.walk(volume, position, sink);
        }
        let ino = self.inode().ino;
        let none = BTreeMap::new();
        let changed = volume.changes.names.get(&ino).unwrap_or(&none);
        let mut full = false;
        if position < ADDED && !volume.changes.made.contains_key(&ino) {
            self.walk(volume, position, &mut |entry| match changed.contains_key(entry.name) {
                true => ControlFlow::Continue(()),
                false => {
                    let flow = sink(entry);
                    full = flow.is_break();
                    flow
                }
            })?;
        }
        for (next, (name, ino)) in (ADDED + 1..).zip(changed) {
            if let (false, true, Some(ino)) = (full, next > position, *ino) {
                full = sink(Entry { name, ino, kind: None, next }).is_break();
            }
        }
        Ok(())
    }

    /// All entries from `position` on, in the order of the disk.
    fn walk(&self, volume: &Volume, position: u64, sink: &mut Sink<'_>) -> Result<()> {
        let encrypted = self.inode().has(FLAG_ENCRYPTED);
        if let Some(parts) = &self.inline {
            for (start, bytes) in parts {
                if entries(volume, encrypted, bytes, *start, position, sink)?.is_break() {
                    break;
                }
            }
            return Ok(());
        }
        let bits = volume.sb.block_bits;
        for index in position >> bits..self.blocks(volume) {
            let (number, block) = self.block(volume, index, READ_AHEAD >> bits)?;
            let flow = entries(volume, encrypted, &block, index << bits, position, sink);
            if flow.map_err(|error| error.in_block(number))?.is_break() {
                break;
            }
        }
        Ok(())
    }
}

/// Hands out the entries in use of a block (or a part of an inline directory) that starts at position `base`,
/// from position `from` on. Encrypted names may hold any byte. Each entry is at least 12 bytes long, so the
/// chain ends.
fn entries(
    volume: &Volume,
    encrypted: bool,
    bytes: &[u8],
    base: u64,
    from: u64,
    sink: &mut Sink<'_>,
) -> Result<ControlFlow<()>> {
    let typed = volume.sb.features.has_incompat(INCOMPAT_FILETYPE);
    let mut at = 0;
    while at < bytes.len() {
        let head = slice(bytes, at, HEADER);
        let (ino, len) = (le32(head, 0), entry_len(le16(head, 4), bytes.len()));
        let name_len = if typed { u8_at(head, 6).into() } else { usize::from(le16(head, 6)) };
        let end = at + len;
        if len < 12 || len % 4 != 0 || end > bytes.len() || HEADER + name_len > len || name_len > 255 {
            return Err(Error::corrupt(format!("the directory entry at byte {at} has a length of {len}")));
        }
        if ino > volume.sb.inodes_count {
            return Err(Error::corrupt(format!("the directory entry at byte {at} leads to inode {ino}")));
        }
        let position = base + at as u64;
        if ino != 0 && position >= from {
            let name = slice(bytes, at + HEADER, name_len);
            let kind = if typed { kind_of(u8_at(head, 7)) } else { None };
            if name.is_empty() || (!encrypted && name.iter().any(|byte| matches!(byte, 0 | b'/'))) {
                return Err(Error::corrupt(format!(
                    "the directory entry at byte {at} has an impossible name"
                )));
            }
            if sink(Entry { name, ino, kind, next: base + end as u64 }).is_break() {
                return Ok(ControlFlow::Break(()));
            }
        }
        at = end;
    }
    Ok(ControlFlow::Continue(()))
}

/// The length of an entry. In blocks of 64 KiB, lengths that do not fit have their two highest bits in the
/// two lowest.
pub(crate) fn entry_len(stored: u16, block_size: usize) -> usize {
    let stored = usize::from(stored);
    match stored {
        _ if block_size < 1 << 16 => stored,
        0 | 0xffff => block_size,
        _ => (stored & 0xfffc) | (stored & 3) << 16,
    }
}

pub(crate) fn kind_of(code: u8) -> Option<Kind> {
    Some(match code & 0xf {
        1 => Kind::File,
        2 => Kind::Directory,
        3 => Kind::CharDevice,
        4 => Kind::BlockDevice,
        5 => Kind::Fifo,
        6 => Kind::Socket,
        7 => Kind::Symlink,
        _ => return None,
    })
}

/// A block of entries ends in the false entry; a block of an index keeps its sum behind the room for its own
/// entries. The kernel leaves the false entry in a block that becomes the root of an index, so it decides nothing.
pub(crate) fn sum_is_right(block: &[u8], seed: u32) -> bool {
    let at = block.len() - TAIL;
    let tail = slice(block, at, TAIL);
    let has_tail = le32(tail, 0) == 0 && le16(tail, 4) == 12 && le16(tail, 6) == u16::from(TAIL_TYPE) << 8;
    (has_tail && crc32c(seed, slice(block, 0, at)) == le32(tail, 8)) || htree::sum_is_right(block, seed)
}

/// Whether a block of a directory looks like one free entry: what a block of an index is disguised as.
pub(crate) fn is_one_free_entry(block: &[u8]) -> bool {
    le32(block, 0) == 0 && entry_len(le16(block, 4), block.len()) == block.len()
}

/// A name as letters. One that would become too long is cut, and told apart by its place.
fn encode(name: &[u8], place: u64) -> Vec<u8> {
    const LONGEST: usize = 189; // 252 letters
    const CUT: usize = 174; // 232 letters, a dot and up to 16 digits
    if name.len() <= LONGEST {
        return base64(name);
    }
    let mut letters = base64(&name[..CUT]);
    letters.extend_from_slice(format!(".{place:x}").as_bytes());
    letters
}

/// RFC 4648, section 5, without padding.
fn base64(bytes: &[u8]) -> Vec<u8> {
    const LETTERS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";
    let group = |three: &[u8]| {
        let bits = (0..3).fold(0, |bits, at| bits << 8 | usize::from(u8_at(three, at)));
        (0..=three.len()).map(move |at| LETTERS[bits >> (18 - 6 * at) & 63])
    };
    bytes.chunks(3).flat_map(group).collect()
}

/// Checks that a directory's parent can be one.
pub(crate) fn checked_parent(volume: &Volume, dir: &Dir) -> Result<u32> {
    if dir.inode().ino == ROOT_INO {
        return Ok(ROOT_INO);
    }
    let parent = dir.parent(volume)?;
    match volume.sb.is_ordinary(parent) {
        true => Ok(parent),
        false => {
            Err(Error::corrupt(format!("its parent cannot be inode {parent}")).in_inode(dir.inode().ino))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lengths_of_large_blocks_have_their_high_bits_below() {
        for (stored, size, len) in [
            (0xffff, 1 << 16, 1 << 16),
            (0, 1 << 16, 1 << 16),
            (0xfff4, 1 << 16, 0xfff4),
            (12, 1 << 16, 12),
            (4096, 4096, 4096),
            (0, 4096, 0),
        ] {
            assert_eq!(entry_len(stored, size), len);
        }
    }

    // Directories that a kernel had grown were once refused: the root of their index still had the tail of a linear block.
    #[test]
    fn a_stale_tail_in_the_root_of_an_index_does_no_harm() {
        let mut block = vec![0; 1024];
        block[4] = 12; // the length of `.`, so that this is no block of one free entry
        block[32..36].copy_from_slice(&[123, 0, 1, 0]);
        block[1016..1020].copy_from_slice(&[12, 0, 0, TAIL_TYPE]);
        let sum = crc32c(crc32c(crc32c(7, &block[..40]), &block[1016..1020]), &[0; 4]);
        block[1020..].copy_from_slice(&sum.to_le_bytes());
        assert!(sum_is_right(&block, 7));
        block[38] ^= 1;
        assert!(!sum_is_right(&block, 7));
    }

    #[test]
    fn encrypted_names_become_letters() {
        for (name, letters) in
            [("", ""), ("f", "Zg"), ("fo", "Zm8"), ("foo", "Zm9v"), ("\u{7f}\u{7f}\u{7f}f?", "f39_Zj8")]
        {
            assert_eq!(base64(name.as_bytes()), letters.as_bytes());
        }
        assert_eq!(encode(&[0xff; 255], u64::MAX >> 2).len(), 249);
        assert_eq!(encode(&[0; 189], 1).len(), 252);
    }
}
