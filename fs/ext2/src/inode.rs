//! Inodes: everything about a node but its names.
//!
//! Layout: a record of 128 bytes as ext2 had it, in which 60 bytes (i_block) tell where the content is or are
//! the content themselves; behind it i_extra_isize bytes of later fields, then extended attributes up to the
//! end of the record. With `metadata_csum` the whole record has a CRC-32C.

use veduta_api::{Attr, Device, FileFlags, Kind, Perm, Timestamp};

use crate::bytes::{join, le16, le32, slice, u8_at};
use crate::cache::Block;
use crate::checksum::{crc32c, crc32c_without};
use crate::error::{Error, Result};
use crate::features::{
    INCOMPAT_64BIT, INCOMPAT_CASEFOLD, INCOMPAT_EA_INODE, INCOMPAT_LARGEDIR, RO_COMPAT_HUGE_FILE,
};
use crate::superblock::ROOT_INO;
use crate::volume::Volume;

/// Bytes of the record that ext2 had.
pub(crate) const OLD_SIZE: usize = 128;
/// Where i_block stands, and its length.
pub(crate) const BLOCK_AT: usize = 0x28;
pub(crate) const BLOCK_LEN: usize = 60;
/// Where i_checksum_lo and i_checksum_hi stand.
pub(crate) const CHECKSUM_LOW_AT: usize = 0x7c;
pub(crate) const CHECKSUM_HIGH_AT: usize = 0x82;
/// Bytes of an inode table that are read at once: a directory's inodes mostly lie together.
const READ_AHEAD: usize = 128 << 10;

/// The content is compressed (e2compr).
const FLAG_COMPRESSED: u32 = 0x4;
pub(crate) const FLAG_IMMUTABLE: u32 = 0x10;
pub(crate) const FLAG_APPEND: u32 = 0x20;
pub(crate) const FLAG_NODUMP: u32 = 0x40;
pub(crate) const FLAG_ENCRYPTED: u32 = 0x800;
/// The directory has an index.
pub(crate) const FLAG_INDEX: u32 = 0x1000;
/// i_blocks counts blocks of the volume.
pub(crate) const FLAG_HUGE_FILE: u32 = 0x4_0000;
pub(crate) const FLAG_EXTENTS: u32 = 0x8_0000;
const FLAG_VERITY: u32 = 0x10_0000;
/// The inode holds the value of an extended attribute.
pub(crate) const FLAG_EA_INODE: u32 = 0x20_0000;
pub(crate) const FLAG_INLINE_DATA: u32 = 0x1000_0000;
pub(crate) const FLAG_CASEFOLD: u32 = 0x4000_0000;
/// What `FS_IOC_GETFLAGS` hands out (`EXT4_FL_USER_VISIBLE`).
const FLAGS_SHOWN: u32 = 0x725b_dfff;

/// An inode that was checked as far as it can be without its blocks.
#[derive(Clone, Debug)]
pub(crate) struct Inode {
    /// Its number.
    pub(crate) ino: u32,
    /// What its mode says.
    pub(crate) kind: Kind,
    /// i_flags
    pub(crate) flags: u32,
    /// i_size: bytes, less than 2^63
    pub(crate) size: u64,
    /// i_generation
    pub(crate) generation: u32,
    /// i_file_acl: the block of extended attributes, 0 if there is none
    pub(crate) xattr_block: u64,
    /// What checksums of this inode's blocks start from.
    pub(crate) checksum_seed: u32,
    /// i_block
    pub(crate) block: [u8; BLOCK_LEN],
    mode: u16,
    links: u16,
    uid: u32,
    gid: u32,
    /// Sectors of 512 bytes.
    sectors: u64,
    atime: Timestamp,
    mtime: Timestamp,
    ctime: Timestamp,
    btime: Option<Timestamp>,
}

/// An inode's record in its table block.
pub(crate) struct Record {
    block: Block,
    /// The block's number.
    pub(crate) number: u64,
    start: usize,
    len: usize,
    /// Whether it comes from a fast commit, and so has no checksum of its own.
    replayed: bool,
}

impl Record {
    /// All of its bytes.
    pub(crate) fn bytes(&self) -> &[u8] {
        slice(&self.block, self.start, self.len)
    }

    /// The part behind the fields, where extended attributes are.
    pub(crate) fn tail(&self) -> &[u8] {
        let bytes = self.bytes();
        match bytes.len() > OLD_SIZE {
            true => bytes.get(OLD_SIZE + usize::from(le16(bytes, 0x80))..).unwrap_or_default(),
            false => &[],
        }
    }
}

impl Volume {
    /// The record of an inode, unchecked.
    pub(crate) fn record(&self, ino: u32) -> Result<Record> {
        let index = ino
            .checked_sub(1)
            .filter(|_| ino <= self.sb.inodes_count)
            .ok_or_else(|| Error::corrupt(format!("there is no inode {ino}")))?;
        if let Some(block) = self.changes.inodes.get(&ino) {
            return Ok(Record {
                block: Block::clone(block),
                number: 0,
                start: 0,
                len: block.len(),
                replayed: true,
            });
        }
        let (table, offset) = self.table_place(index)?;
        let within = offset >> self.sb.block_bits;
        let ahead = (READ_AHEAD >> self.sb.block_bits).max(1) as u64;
        let first = within - within % ahead;
        let last = (first + ahead).min(self.sb.inode_table_blocks());
        let number = table + within;
        let block = self.block_ahead(number, table + first..table + last)?;
        let start = offset as usize & (self.block_size() - 1);
        Ok(Record { block, number, start, len: self.sb.inode_size as usize, replayed: false })
    }

    /// The table that holds an inode (counted from 0), and the byte of it at which the record starts.
    fn table_place(&self, index: u32) -> Result<(u64, u64)> {
        let table = self.group(index / self.sb.inodes_per_group)?.inode_table;
        Ok((table, u64::from(index % self.sb.inodes_per_group) * u64::from(self.sb.inode_size)))
    }

    /// The block that holds the record of an inode, and the byte of it at which the record starts.
    pub(crate) fn record_place(&self, ino: u32) -> Result<(u64, usize)> {
        let index = ino
            .checked_sub(1)
            .filter(|_| ino <= self.sb.inodes_count)
            .ok_or_else(|| Error::corrupt(format!("there is no inode {ino}")))?;
        let (table, offset) = self.table_place(index)?;
        Ok((table + (offset >> self.sb.block_bits), offset as usize & (self.block_size() - 1)))
    }

    /// Reads and checks any inode that is in use, the reserved ones too.
    pub(crate) fn any_inode(&self, ino: u32) -> Result<Inode> {
        let record = self.record(ino)?;
        self.parse_inode(ino, &record).map_err(|error| error.in_inode(ino).in_block(record.number))
    }

    /// Reads and checks an inode that a directory entry may lead to.
    pub(crate) fn inode(&self, ino: u32) -> Result<Inode> {
        if !self.sb.is_ordinary(ino) {
            return Err(Error::corrupt("a directory entry leads to a reserved inode").in_inode(ino));
        }
        let inode = self.any_inode(ino)?;
        if inode.has(FLAG_EA_INODE) {
            return Err(
                Error::corrupt("it holds an attribute's value, and is no node of the tree").in_inode(ino)
            );
        }
        Ok(inode)
    }

    fn parse_inode(&self, ino: u32, record: &Record) -> Result<Inode> {
        let bytes = record.bytes();
        let sb = &self.sb;
        let extra = self.extra_size(bytes)?;
        let generation = le32(bytes, 0x64);
        let checksum_seed = crc32c(crc32c(sb.checksum_seed, &ino.to_le_bytes()), &generation.to_le_bytes());
        if sb.has_checksums() && !record.replayed {
            check_sum(bytes, extra, checksum_seed)?;
        }
        let mode = le16(bytes, 0x0);
        let links = le16(bytes, 0x1a);
        // A volume that is written has inodes without a name: those that are still open.
        let may_be_nameless =
            self.transactions.is_some() || sb.facts.state & crate::superblock::STATE_ORPHAN != 0;
        if links == 0 && (mode == 0 || !may_be_nameless) {
            return Err(Error::corrupt("it is not in use, but something leads to it"));
        }
        let kind = Kind::from_mode(mode.into())
            .ok_or_else(|| Error::corrupt(format!("a mode of {mode:#o} is of no type")))?;
        let flags = self.check_flags(le32(bytes, 0x20), kind)?;
        let has_extra = |at: usize| at + 4 <= OLD_SIZE + extra;
        let time = |base: usize, more: usize| {
            decode_time(le32(bytes, base), if has_extra(more) { le32(bytes, more) } else { 0 })
        };
        let wide = sb.features.has_incompat(INCOMPAT_64BIT);
        Ok(Inode {
            ino,
            kind,
            flags,
            size: self.content_size(bytes, kind)?,
            generation,
            xattr_block: join(le32(bytes, 0x68), if wide { le16(bytes, 0x76).into() } else { 0 }),
            checksum_seed,
            block: slice(bytes, BLOCK_AT, BLOCK_LEN).try_into().unwrap_or([0; BLOCK_LEN]),
            mode,
            links,
            uid: u32::from(le16(bytes, 0x78)) << 16 | u32::from(le16(bytes, 0x2)),
            gid: u32::from(le16(bytes, 0x7a)) << 16 | u32::from(le16(bytes, 0x18)),
            sectors: self.sectors(bytes, flags),
            atime: time(0x8, 0x8c),
            mtime: time(0x10, 0x88),
            ctime: time(0xc, 0x84),
            btime: has_extra(0x90).then(|| time(0x90, 0x94)),
        })
    }

    /// i_extra_isize: the bytes of later fields, checked.
    fn extra_size(&self, bytes: &[u8]) -> Result<usize> {
        if self.sb.inode_size as usize == OLD_SIZE {
            return Ok(0);
        }
        let extra = usize::from(le16(bytes, 0x80));
        if OLD_SIZE + extra > self.sb.inode_size as usize || extra % 4 != 0 {
            return Err(Error::corrupt(format!("{extra} bytes of extra fields are impossible")));
        }
        Ok(extra)
    }

    fn check_flags(&self, flags: u32, kind: Kind) -> Result<u32> {
        if flags & FLAG_EXTENTS != 0 && flags & FLAG_INLINE_DATA != 0 {
            return Err(Error::corrupt("its content is said to be both in extents and inline"));
        }
        let casefold = flags & FLAG_CASEFOLD != 0;
        if casefold && !self.sb.features.has_incompat(INCOMPAT_CASEFOLD) {
            return Err(Error::corrupt("it is marked casefold, which the volume has not"));
        }
        if casefold && kind != Kind::Directory {
            return Err(Error::corrupt("it is marked casefold, and is no directory"));
        }
        Ok(flags)
    }

    fn content_size(&self, bytes: &[u8], kind: Kind) -> Result<u64> {
        let long = kind == Kind::File || self.sb.features.has_incompat(INCOMPAT_LARGEDIR);
        let size = join(le32(bytes, 0x4), if long { le32(bytes, 0x6c) } else { 0 });
        let volume = self.sb.blocks_count << self.sb.block_bits;
        // A directory has no holes to speak of: one larger than the volume would only be walked for ever.
        if size > i64::MAX as u64 || (kind == Kind::Directory && size > volume) {
            return Err(Error::corrupt(format!("a size of {size} is impossible")));
        }
        Ok(size)
    }

    fn sectors(&self, bytes: &[u8], flags: u32) -> u64 {
        let low = le32(bytes, 0x1c);
        if !self.sb.features.has_ro_compat(RO_COMPAT_HUGE_FILE) {
            return low.into();
        }
        let count = join(low, le16(bytes, 0x74).into());
        if flags & FLAG_HUGE_FILE != 0 { count << (self.sb.block_bits - 9) } else { count }
    }

    /// Whether the target of a symbolic link is in i_block.
    pub(crate) fn is_fast_symlink(&self, inode: &Inode) -> bool {
        if inode.kind != Kind::Symlink || inode.has(FLAG_INLINE_DATA) {
            return false;
        }
        if self.sb.features.has_incompat(INCOMPAT_EA_INODE) {
            return inode.size > 0 && inode.size < BLOCK_LEN as u64;
        }
        let cluster = 1u64 << (self.sb.block_bits + self.sb.cluster_bits - 9);
        inode.sectors == if inode.xattr_block == 0 { 0 } else { cluster }
    }

    /// What the tree shows of an inode.
    pub(crate) fn attr(&self, inode: &Inode) -> Attr {
        let has = |flag| inode.has(flag);
        let inline_file = inode.kind == Kind::File && has(FLAG_INLINE_DATA);
        Attr {
            st_dev: None,
            st_ino: inode.ino.into(),
            kind: inode.kind,
            perm: Perm::from_mode(inode.mode.into()),
            nlink: inode.links.into(),
            uid: inode.uid,
            gid: inode.gid,
            rdev: inode.device(),
            size: inode.size,
            // Programs take a file without sectors for a hole, so the kernel counts inline content too.
            blocks: inode.sectors + if inline_file { inode.size.div_ceil(512) } else { 0 },
            blksize: 1 << self.sb.block_bits,
            atime: inode.atime,
            mtime: inode.mtime,
            ctime: inode.ctime,
            btime: inode.btime,
            flags: FileFlags {
                immutable: has(FLAG_IMMUTABLE),
                append_only: has(FLAG_APPEND),
                no_dump: has(FLAG_NODUMP),
                compressed: has(FLAG_COMPRESSED),
                encrypted: has(FLAG_ENCRYPTED),
                verity: has(FLAG_VERITY),
            },
        }
    }
}

impl Inode {
    /// Whether one of `flag`'s bits is set in i_flags.
    pub(crate) fn has(&self, flag: u32) -> bool {
        self.flags & flag != 0
    }

    /// The file `journal` that a copy in the superblock describes: i_block, and the two halves of the size.
    pub(crate) fn of_journal_backup(ino: u32, backup: &[u32; 17], checksum_seed: u32) -> Self {
        let mut block = [0; BLOCK_LEN];
        for (field, word) in block.chunks_exact_mut(4).zip(backup) {
            field.copy_from_slice(&word.to_le_bytes());
        }
        let flags = if le16(&block, 0) == crate::extents::MAGIC { FLAG_EXTENTS } else { 0 };
        Self {
            ino,
            kind: Kind::File,
            flags,
            size: join(backup[16], backup[15]) & i64::MAX as u64,
            generation: 0,
            xattr_block: 0,
            checksum_seed: crc32c(crc32c(checksum_seed, &ino.to_le_bytes()), &[0; 4]),
            block,
            mode: 0o100_600,
            links: 1,
            uid: 0,
            gid: 0,
            sectors: 0,
            atime: Timestamp::default(),
            mtime: Timestamp::default(),
            ctime: Timestamp::default(),
            btime: None,
        }
    }

    /// Names that lead to it.
    pub(crate) fn links(&self) -> u16 {
        self.links
    }

    /// i_flags as `lsattr` shows them.
    pub(crate) fn shown_flags(&self) -> u32 {
        self.flags & FLAGS_SHOWN
    }

    /// The raw seconds of atime and mtime, which inodes that hold attribute values use for other things.
    pub(crate) fn raw_times(&self) -> (u32, u32) {
        (self.atime.seconds as u32, self.mtime.seconds as u32)
    }

    /// Old numbers (8 and 8 bits) stand in the first word of i_block, others in the second.
    fn device(&self) -> Device {
        if !matches!(self.kind, Kind::CharDevice | Kind::BlockDevice) {
            return Device::default();
        }
        match le32(&self.block, 0) {
            0 => Device::from_linux(le32(&self.block, 4)),
            _ => Device { major: u8_at(&self.block, 1).into(), minor: u8_at(&self.block, 0).into() },
        }
    }
}

/// The root must be a directory.
pub(crate) fn check_root(volume: &Volume) -> Result<()> {
    let root = volume.inode(ROOT_INO)?;
    match root.kind {
        Kind::Directory => Ok(()),
        _ => Err(Error::corrupt("the root is not a directory").in_inode(ROOT_INO)),
    }
}

/// Signed seconds; the two lowest bits of the extra field count how often 2^32 is to be added, the rest are
/// nanoseconds.
pub(crate) fn decode_time(base: u32, extra: u32) -> Timestamp {
    let seconds = i64::from(base as i32) + (i64::from(extra & 3) << 32);
    Timestamp { seconds, nanos: (extra >> 2).min(999_999_999) }
}

/// The sum has 16 bits in the old record, and 16 more among the extra fields if they reach so far. Both
/// places count as zeros.
fn check_sum(bytes: &[u8], extra: usize, seed: u32) -> Result<()> {
    let (low, rest) = bytes.split_at(bytes.len().min(CHECKSUM_HIGH_AT));
    let sum = crc32c_without(seed, low, CHECKSUM_LOW_AT, 2);
    let stored = u32::from(le16(low, CHECKSUM_LOW_AT));
    let (sum, stored) = match OLD_SIZE + extra >= CHECKSUM_HIGH_AT + 2 {
        true => (crc32c_without(sum, rest, 0, 2), stored | u32::from(le16(rest, 0)) << 16),
        false => (crc32c(sum, rest) & 0xffff, stored),
    };
    if sum == stored { Ok(()) } else { Err(Error::corrupt("the checksum of the inode is wrong")) }
}

#[cfg(test)]
mod tests {
    use super::*;

    // The table of the kernel's documentation of i_*time_extra.
    #[test]
    fn times_reach_from_1901_to_2446() {
        for (base, epoch, seconds) in [
            (0x8000_0000, 0, -0x8000_0000),
            (0xffff_ffff, 0, -1),
            (0, 0, 0),
            (0x7fff_ffff, 0, 0x7fff_ffff),
            (0x8000_0000, 1, 0x8000_0000),
            (0xffff_ffff, 1, 0xffff_ffff),
            (0, 1, 0x1_0000_0000),
            (0x7fff_ffff, 3, 0x3_7fff_ffff_i64),
        ] {
            assert_eq!(decode_time(base, epoch | 7 << 2), Timestamp { seconds, nanos: 7 });
        }
        assert_eq!(decode_time(0, u32::MAX).nanos, 999_999_999);
    }
}
