//! The record of an inode, to be changed.
//!
//! The fields are those that [`crate::inode`] reads. A record is loaded, changed and stored within one change; nobody else changes
//! the same inode meanwhile.

use veduta_api::{Device, Kind as NodeKind, Timestamp};

use crate::bytes::{join, le16, le32};
use crate::change::{Change, Kind};
use crate::checksum::{crc32c, crc32c_without};
use crate::error::{Error, Result};
use crate::features::{INCOMPAT_64BIT, RO_COMPAT_HUGE_FILE};
use crate::inode::{
    BLOCK_AT, BLOCK_LEN, CHECKSUM_HIGH_AT, CHECKSUM_LOW_AT, FLAG_HUGE_FILE, OLD_SIZE, decode_time,
};
use crate::volume::Volume;

/// Bytes of later fields in a new inode.
pub(crate) const EXTRA: u16 = 32;

/// Where times stand: seconds, and what continues them.
pub(crate) const ATIME: (usize, usize) = (0x8, 0x8c);
pub(crate) const CTIME: (usize, usize) = (0xc, 0x84);
pub(crate) const MTIME: (usize, usize) = (0x10, 0x88);
pub(crate) const BTIME: (usize, usize) = (0x90, 0x94);

/// See the head of the file.
#[derive(Clone, Debug)]
pub(crate) struct RawInode {
    pub(crate) ino: u32,
    pub(crate) bytes: Vec<u8>,
    /// What checksums of this inode's blocks start from.
    pub(crate) checksum_seed: u32,
    block_bits: u32,
    huge: bool,
    wide: bool,
}

impl RawInode {
    /// A record of zeros, with a generation.
    pub(crate) fn new(volume: &Volume, ino: u32, generation: u32) -> Self {
        let mut bytes = vec![0; volume.sb.inode_size as usize];
        bytes[0x64..0x68].copy_from_slice(&generation.to_le_bytes());
        if bytes.len() > OLD_SIZE {
            bytes[0x80..0x82].copy_from_slice(&EXTRA.to_le_bytes());
        }
        Self::of(volume, ino, bytes)
    }

    /// A record of these bytes.
    pub(crate) fn of(volume: &Volume, ino: u32, bytes: Vec<u8>) -> Self {
        let seed = crc32c(volume.sb.checksum_seed, &ino.to_le_bytes());
        let checksum_seed = crc32c(seed, &le32(&bytes, 0x64).to_le_bytes());
        Self {
            ino,
            bytes,
            checksum_seed,
            block_bits: volume.sb.block_bits,
            huge: volume.sb.features.has_ro_compat(RO_COMPAT_HUGE_FILE),
            wide: volume.sb.features.has_incompat(INCOMPAT_64BIT),
        }
    }

    fn put16(&mut self, at: usize, value: u16) {
        self.bytes[at..at + 2].copy_from_slice(&value.to_le_bytes());
    }

    fn put32(&mut self, at: usize, value: u32) {
        self.bytes[at..at + 4].copy_from_slice(&value.to_le_bytes());
    }

    pub(crate) fn mode(&self) -> u16 {
        le16(&self.bytes, 0)
    }

    pub(crate) fn set_mode(&mut self, mode: u16) {
        self.put16(0, mode);
    }

    pub(crate) fn kind(&self) -> Option<NodeKind> {
        NodeKind::from_mode(self.mode().into())
    }

    pub(crate) fn is_dir(&self) -> bool {
        self.kind() == Some(NodeKind::Directory)
    }

    pub(crate) fn uid(&self) -> u32 {
        u32::from(le16(&self.bytes, 0x78)) << 16 | u32::from(le16(&self.bytes, 0x2))
    }

    pub(crate) fn gid(&self) -> u32 {
        u32::from(le16(&self.bytes, 0x7a)) << 16 | u32::from(le16(&self.bytes, 0x18))
    }

    pub(crate) fn set_owner(&mut self, uid: u32, gid: u32) {
        self.put16(0x2, uid as u16);
        self.put16(0x78, (uid >> 16) as u16);
        self.put16(0x18, gid as u16);
        self.put16(0x7a, (gid >> 16) as u16);
    }

    pub(crate) fn links(&self) -> u16 {
        le16(&self.bytes, 0x1a)
    }

    pub(crate) fn set_links(&mut self, links: u16) {
        self.put16(0x1a, links);
    }

    pub(crate) fn flags(&self) -> u32 {
        le32(&self.bytes, 0x20)
    }

    pub(crate) fn has(&self, flag: u32) -> bool {
        self.flags() & flag != 0
    }

    pub(crate) fn set_flags(&mut self, flags: u32) {
        self.put32(0x20, flags);
    }

    pub(crate) fn set_generation(&mut self, generation: u32) {
        self.put32(0x64, generation);
    }

    /// i_dtime: when the inode was given back, or the next orphan.
    pub(crate) fn set_dtime(&mut self, time: u32) {
        self.put32(0x14, time);
    }

    pub(crate) fn size(&self) -> u64 {
        join(le32(&self.bytes, 0x4), le32(&self.bytes, 0x6c))
    }

    pub(crate) fn set_size(&mut self, size: u64) {
        self.put32(0x4, size as u32);
        self.put32(0x6c, (size >> 32) as u32);
    }

    /// Sectors of 512 bytes.
    pub(crate) fn sectors(&self) -> u64 {
        let low = le32(&self.bytes, 0x1c);
        if !self.huge {
            return low.into();
        }
        let count = join(low, le16(&self.bytes, 0x74).into());
        if self.has(FLAG_HUGE_FILE) { count << (self.block_bits - 9) } else { count }
    }

    /// Adds blocks of the volume to those that the inode takes up, or takes some off.
    pub(crate) fn add_blocks(&mut self, blocks: i64) -> Result<()> {
        let sectors =
            self.sectors().checked_add_signed(blocks << (self.block_bits - 9)).ok_or_else(|| {
                Error::corrupt("more blocks were given back than it is said to have").in_inode(self.ino)
            })?;
        let count = if self.has(FLAG_HUGE_FILE) { sectors >> (self.block_bits - 9) } else { sectors };
        if !self.huge && count > u32::MAX.into() || count >= 1 << 48 {
            return Err(veduta_api::Errno::EFBIG.into());
        }
        self.put32(0x1c, count as u32);
        if self.huge {
            self.put16(0x74, (count >> 32) as u16);
        }
        Ok(())
    }

    pub(crate) fn xattr_block(&self) -> u64 {
        join(le32(&self.bytes, 0x68), if self.wide { le16(&self.bytes, 0x76).into() } else { 0 })
    }

    pub(crate) fn set_xattr_block(&mut self, block: u64) {
        self.put32(0x68, block as u32);
        if self.wide {
            self.put16(0x76, (block >> 32) as u16);
        }
    }

    /// i_block
    pub(crate) fn block(&self) -> &[u8] {
        &self.bytes[BLOCK_AT..BLOCK_AT + BLOCK_LEN]
    }

    pub(crate) fn block_mut(&mut self) -> &mut [u8] {
        &mut self.bytes[BLOCK_AT..BLOCK_AT + BLOCK_LEN]
    }

    pub(crate) fn set_device(&mut self, device: Device) {
        let linux = device.to_linux();
        let old = device.major < 256 && device.minor < 256;
        let words = if old { [device.major << 8 | device.minor, 0] } else { [0, linux] };
        self.block_mut()[..4].copy_from_slice(&words[0].to_le_bytes());
        self.block_mut()[4..8].copy_from_slice(&words[1].to_le_bytes());
    }

    /// Bytes of later fields.
    fn extra(&self) -> usize {
        if self.bytes.len() > OLD_SIZE { le16(&self.bytes, 0x80).into() } else { 0 }
    }

    /// The room behind the fields, for attributes.
    pub(crate) fn tail(&self) -> &[u8] {
        match self.bytes.len() > OLD_SIZE {
            true => &self.bytes[OLD_SIZE + self.extra()..],
            false => &[],
        }
    }

    pub(crate) fn tail_mut(&mut self) -> &mut [u8] {
        let start = if self.bytes.len() > OLD_SIZE { OLD_SIZE + self.extra() } else { self.bytes.len() };
        &mut self.bytes[start..]
    }

    /// Sets a time. Without room for more than 32 bits, it is cut to what they hold.
    pub(crate) fn set_time(&mut self, (base, more): (usize, usize), time: Timestamp) {
        let has_extra = |at: usize| at + 4 <= OLD_SIZE + self.extra();
        if base >= OLD_SIZE && !has_extra(base) {
            return;
        }
        if has_extra(more) {
            let (seconds, extra) = encode_time(time);
            self.put32(base, seconds);
            self.put32(more, extra);
        } else {
            let seconds = time.seconds.clamp(i32::MIN.into(), i32::MAX.into()) as i32;
            self.put32(base, seconds as u32);
        }
    }

    /// Puts back the time of the last change, as another state of the record has it.
    pub(crate) fn keep_ctime(&mut self, before: &[u8]) {
        self.put32(CTIME.0, le32(before, CTIME.0));
        if CTIME.1 + 4 <= OLD_SIZE + self.extra() {
            self.put32(CTIME.1, le32(before, CTIME.1));
        }
    }

    /// Content and attributes changed now.
    pub(crate) fn touch(&mut self) {
        let now = Timestamp::now();
        self.set_time(MTIME, now);
        self.set_time(CTIME, now);
    }

    /// Content changed then; attributes may have since.
    pub(crate) fn touch_at(&mut self, time: Timestamp) {
        self.set_time(MTIME, time);
        let wide = CTIME.1 + 4 <= OLD_SIZE + self.extra();
        let more = if wide { le32(&self.bytes, CTIME.1) } else { 0 };
        if decode_time(le32(&self.bytes, CTIME.0), more) < time {
            self.set_time(CTIME, time);
        }
    }

    /// Puts the record's checksum in its place.
    fn sum(&mut self) {
        let (low, rest) = self.bytes.split_at(CHECKSUM_HIGH_AT.min(self.bytes.len()));
        let wide = OLD_SIZE + self.extra() >= CHECKSUM_HIGH_AT + 2;
        let sum = crc32c_without(self.checksum_seed, low, CHECKSUM_LOW_AT, 2);
        let sum = if wide { crc32c_without(sum, rest, 0, 2) } else { crc32c(sum, rest) };
        self.put16(CHECKSUM_LOW_AT, sum as u16);
        if wide {
            self.put16(CHECKSUM_HIGH_AT, (sum >> 16) as u16);
        }
    }
}

/// The inverse of reading a time: seconds from 1901 to 2446, others are cut to that.
fn encode_time(time: Timestamp) -> (u32, u32) {
    let seconds = time.seconds.clamp(i32::MIN.into(), 0x3_7fff_ffff);
    let epoch = (seconds - i64::from(seconds as i32)) >> 32;
    (seconds as u32, (epoch as u32 & 3) | time.nanos << 2)
}

impl Change<'_> {
    /// The record of an inode that is in use, checked.
    pub(crate) fn load(&mut self, ino: u32) -> Result<RawInode> {
        self.volume.any_inode(ino)?;
        let record = self.volume.record(ino)?;
        Ok(RawInode::of(self.volume, ino, record.bytes().to_vec()))
    }

    /// Stores a record.
    pub(crate) fn store(&mut self, inode: &mut RawInode) -> Result<()> {
        let (number, start) = self.volume.record_place(inode.ino)?;
        if self.volume.sb.has_checksums() {
            inode.sum();
        }
        self.edit(number, Kind::Inodes, |block| {
            block[start..start + inode.bytes.len()].copy_from_slice(&inode.bytes);
        })
    }

    /// The generation of the record that an inode's number had before.
    pub(crate) fn old_generation(&mut self, ino: u32) -> u32 {
        self.volume.record(ino).map_or(0, |record| le32(record.bytes(), 0x64))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_encoded_as_the_kernel_does() {
        for (seconds, base, epoch) in [
            (-1, 0xffff_ffff, 0),
            (-0x8000_0000, 0x8000_0000, 0),
            (0x8000_0000, 0x8000_0000, 1),
            (0x1_0000_0000, 0, 1),
            (0x3_7fff_ffff, 0x7fff_ffff, 3),
            (i64::MAX, 0x7fff_ffff, 3),
            (i64::MIN, 0x8000_0000, 0),
        ] {
            assert_eq!(encode_time(Timestamp { seconds, nanos: 5 }), (base, epoch | 5 << 2), "{seconds}");
        }
    }
}
