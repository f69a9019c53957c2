//! VHD, Virtual PC's format ("Virtual Hard Disk Image Format Specification", 2006): fixed, dynamic and differencing.
//!
//! The last 512 bytes are the *footer*; all numbers are big-endian. A fixed image is raw in front of it. A dynamic one begins with a copy
//! of the footer; a second header says where the *block table* is: for each block of the disk (2 MiB as a rule) the sector at which it
//! lies in the file, or FFFFFFFFh. In front of a block's data is a bitmap of its sectors, which in a differencing image says whether a sector is
//! here or in the parent. New blocks go to where the footer was, which moves behind them.
//!
//! # Limits
//!
//! A parent is found by the relative path in the image, or else beside the image under the name it had; its identity is not checked. What is
//! discarded is given back to the file system below, as holes.

use std::sync::Arc;

use veduta_api::{Disk, Errno, Geometry, MountError, Report, Result, Value};

use crate::bytes::{be32, be64, put};
use crate::mapped::{Map, Mapped, Piece, Room, Slot};
use crate::store::Store;
use crate::{Failed, Under, damaged, store_disk};

pub(crate) const MAGIC: &[u8] = b"conectix";
const DYNAMIC: &[u8] = b"cxsparse";
const NONE: u32 = 0xffff_ffff;
const SECTOR: u64 = 512;
/// Bytes; a table for 32 TiB in blocks of 2 MiB.
const MAX_TABLE: u64 = 64 << 20;

/// Whether the last 512 bytes of a file of `len` bytes are the footer of a fixed image.
pub(crate) fn is_fixed(footer: &[u8], len: u64) -> bool {
    footer.starts_with(MAGIC) && be32(footer, 60) == 2 && is_sound(footer) && be64(footer, 48) <= len - 512
}

fn is_sound(footer: &[u8]) -> bool {
    be32(footer, 64) == checksum(footer, 64)
}

/// The sum of all bytes but those of the sum itself, inverted.
fn checksum(bytes: &[u8], at: usize) -> u32 {
    let sum = |part: &[u8]| part.iter().fold(0_u32, |sum, byte| sum.wrapping_add(u32::from(*byte)));
    !sum(&bytes[..at]).wrapping_add(sum(&bytes[at + 4..]))
}

pub(crate) fn open(
    store: &Arc<dyn Store>,
    name: &str,
    writable: bool,
    sector: u32,
    below: Under<'_>,
) -> Result<(Disk, Report), MountError> {
    let len = store.len().failed()?;
    let mut footer = store.read_vec(0, 512).failed()?;
    if !footer.starts_with(MAGIC) || !is_sound(&footer) {
        footer = store.read_vec(len.saturating_sub(512), 512).failed()?;
    }
    if !footer.starts_with(MAGIC) || !is_sound(&footer) {
        return Err(damaged("neither its footer nor the copy at its start is intact"));
    }
    let size = be64(&footer, 48);
    let mut report = Report::new();
    report.put("format", "vhd");
    let kind = be32(&footer, 60);
    if kind == 2 {
        if size > len.saturating_sub(512) {
            return Err(damaged(format!("a disk of {size} bytes in a file of {len}")));
        }
        report.put("kind", "fixed").put("virtual_size", Value::Bytes(size));
        let disk = store_disk(store, name, sector, writable)?.window(0, size, name).failed()?;
        return Ok((disk, report));
    }
    if kind != 3 && kind != 4 {
        return Err(damaged(format!("VHD type {kind}")));
    }
    let header_at = be64(&footer, 16);
    if header_at > len {
        return Err(damaged("its header lies outside of the file"));
    }
    let header = store.read_vec(header_at, 1024).failed()?;
    if !header.starts_with(DYNAMIC) || be32(&header, 36) != checksum(&header, 36) {
        return Err(damaged("its header is damaged"));
    }
    let (table_at, entries, block) =
        (be64(&header, 16), u64::from(be32(&header, 28)), u64::from(be32(&header, 32)));
    if !block.is_power_of_two() || !(4096..=64 << 20).contains(&block) {
        return Err(damaged(format!("blocks of {block} bytes")));
    }
    if size == 0
        || size > 1 << 50
        || entries < size.div_ceil(block)
        || entries * 4 > MAX_TABLE
        || table_at > len
    {
        return Err(damaged(format!("a table of {entries} blocks for {size} bytes")));
    }
    let bytes = store.read_vec(table_at, entries as usize * 4).failed()?;
    let table: Vec<u32> = (0..bytes.len()).step_by(4).map(|at| be32(&bytes, at)).collect();
    report.put("kind", if kind == 3 { "dynamic" } else { "differencing" });
    report.put("block_size", Value::Bytes(block)).put("virtual_size", Value::Bytes(size));
    let parent = if kind == 4 { Some(parent(&**store, &header, &mut report, below)?) } else { None };
    let bitmap = (block / SECTOR / 8).div_ceil(SECTOR) * SECTOR;
    let last = table.iter().filter(|at| **at != NONE).max();
    let behind = last.map_or(0, |at| u64::from(*at) * SECTOR + bitmap + block);
    let mut end = behind.max(table_at + (entries * 4).div_ceil(SECTOR) * SECTOR).max(header_at + 1024);
    // New blocks go to where the footer is; without one there, behind everything.
    if len >= end + 512 && store.read_vec(len - 512, 512).failed()?.starts_with(MAGIC) {
        end = end.max((len - 512).div_ceil(SECTOR) * SECTOR);
    }
    let geometry = Geometry {
        logical_sector: sector,
        physical_sector: sector.max(4096),
        read_only: !writable,
        ..Geometry::of_size(size)
    };
    let differencing = kind == 4;
    let vhd = Vhd { store: Arc::clone(store), table, table_at, block, bitmap, end, footer, differencing };
    Ok((Disk::new(Arc::new(Mapped::new(Arc::clone(store), vhd, geometry, block, parent)), name), report))
}

/// Opens the parent of a differencing image, and checks that it is the one.
fn parent(
    store: &dyn Store,
    header: &[u8],
    report: &mut Report,
    below: Under<'_>,
) -> Result<Disk, MountError> {
    let mut names = Vec::new();
    for at in (576..768).step_by(24) {
        let (code, len, offset) = (&header[at..at + 4], be32(header, at + 8), be64(header, at + 16));
        // Relative to the image, in UTF-16 of the little-endian kind.
        if code == b"W2ru" && len <= 4096 {
            let bytes = store.read_vec(offset, len as usize).failed()?;
            names.push(utf16(bytes.chunks_exact(2).map(|pair| u16::from_le_bytes([pair[0], pair[1]]))));
        }
    }
    names.push(utf16(header[64..576].chunks_exact(2).map(|pair| u16::from_be_bytes([pair[0], pair[1]]))));
    let mut first_error = None;
    for name in names.iter().filter(|name| !name.is_empty()) {
        let name = name.replace('\\', "/");
        let beside = name.rsplit('/').next().unwrap_or_default().to_owned();
        for name in [name, beside] {
            match below(&name, Some("vhd")) {
                Ok(disk) => {
                    report.put("backing_file", name);
                    return Ok(disk);
                }
                Err(error) => first_error = first_error.or(Some(error)),
            }
        }
    }
    Err(first_error.unwrap_or_else(|| damaged("a differencing image that does not name its parent")))
}

fn utf16(units: impl Iterator<Item = u16>) -> String {
    char::decode_utf16(units.take_while(|unit| *unit != 0))
        .map(|c| c.unwrap_or(char::REPLACEMENT_CHARACTER))
        .collect()
}

struct Vhd {
    store: Arc<dyn Store>,
    table: Vec<u32>,
    table_at: u64,
    block: u64,
    /// Bytes of the bitmap in front of each block.
    bitmap: u64,
    /// Where the footer is, and the next block will be.
    end: u64,
    footer: Vec<u8>,
    differencing: bool,
}

impl Map for Vhd {
    fn find(&self, block: u64) -> Result<Slot> {
        let at = match self.table.get(block as usize).copied().ok_or(Errno::EUCLEAN)? {
            NONE => return Ok(Slot::Absent),
            at => u64::from(at) * SECTOR + self.bitmap,
        };
        if !self.differencing {
            return Ok(Slot::Data { at, own: true });
        }
        let bits = self.store.read_vec(at - self.bitmap, (self.block / SECTOR / 8) as usize)?;
        if bits.iter().all(|byte| *byte == 0xff) {
            return Ok(Slot::Data { at, own: true });
        }
        let piece = |index: u64| match bits[(index / 8) as usize] >> (7 - index % 8) & 1 {
            1 => Piece::Data,
            _ => Piece::Absent,
        };
        Ok(Slot::Mixed { at, unit: SECTOR, pieces: (0..self.block / SECTOR).map(piece).collect() })
    }

    fn absent_run(&self, block: u64) -> u64 {
        self.table.iter().skip(block as usize).take_while(|at| **at == NONE).count() as u64
    }

    /// One block where the footer was. A block of a differencing image that is here in part gets a new place with all of it.
    fn place(&mut self, _block: u64, _count: u64) -> Result<Room> {
        if (self.end + self.bitmap + self.block) / SECTOR >= u64::from(NONE) {
            return Err(Errno::EFBIG);
        }
        let behind = self.end + self.bitmap + self.block;
        self.store.write_at(&self.footer, behind)?;
        self.store.write_at(&vec![0xff; self.bitmap as usize], self.end)?;
        // The old footer may lie in the data's place if there is no bitmap's worth of room.
        let is_zero = self.bitmap >= SECTOR && self.store.len()? == behind + SECTOR;
        Ok(Room { at: self.end + self.bitmap, count: 1, is_zero })
    }

    fn link(&mut self, block: u64, room: Room) -> Result<()> {
        let sector = ((room.at - self.bitmap) / SECTOR) as u32;
        *self.table.get_mut(block as usize).ok_or(Errno::EUCLEAN)? = sector;
        self.end = room.at + self.block;
        self.store.write_at(&sector.to_be_bytes(), self.table_at + block * 4)
    }
}

/// The shape of a disk in cylinders, heads and sectors, as the specification's appendix computes it.
fn shape(sectors: u64) -> (u16, u8, u8) {
    let total = sectors.min(65_535 * 16 * 255);
    if total >= 65_535 * 16 * 63 {
        return ((total / 255 / 16) as u16, 16, 255);
    }
    let (mut per_track, mut tracks) = (17, total / 17);
    let mut heads = tracks.div_ceil(1024).max(4);
    if tracks >= heads * 1024 || heads > 16 {
        (per_track, heads) = (31, 16);
        tracks = total / 31;
    }
    if tracks >= heads * 1024 {
        (per_track, heads) = (63, 16);
        tracks = total / 63;
    }
    ((tracks / heads) as u16, heads as u8, per_track as u8)
}

/// A footer for an image of this type.
fn footer(size: u64, kind: u32, uuid: [u8; 16], now: u32) -> Vec<u8> {
    let mut footer = vec![0; 512];
    let (cylinders, heads, per_track) = shape(size / SECTOR);
    put(&mut footer, 0, MAGIC);
    put(&mut footer, 8, &2_u32.to_be_bytes());
    put(&mut footer, 12, &0x0001_0000_u32.to_be_bytes());
    put(&mut footer, 16, &if kind == 2 { u64::MAX } else { 512 }.to_be_bytes());
    put(&mut footer, 24, &now.to_be_bytes());
    // Who made it: of this one QEMU knows that the size is what counts, and not the shape.
    put(&mut footer, 28, b"win ");
    put(&mut footer, 32, &0x0006_0001_u32.to_be_bytes());
    put(&mut footer, 36, b"Wi2k");
    put(&mut footer, 40, &size.to_be_bytes());
    put(&mut footer, 48, &size.to_be_bytes());
    put(&mut footer, 56, &cylinders.to_be_bytes());
    put(&mut footer, 58, &[heads, per_track]);
    put(&mut footer, 60, &kind.to_be_bytes());
    put(&mut footer, 68, &uuid);
    let sum = checksum(&footer, 64);
    put(&mut footer, 64, &sum.to_be_bytes());
    footer
}

/// Makes an empty image, fixed or dynamic. `now` counts seconds since 2000.
pub(crate) fn create(
    store: &dyn Store,
    size: u64,
    fixed: bool,
    uuid: [u8; 16],
    now: u32,
) -> Result<(), MountError> {
    const BLOCK: u64 = 2 << 20;
    if size % SECTOR != 0 || size > 2040 << 30 {
        return Err(MountError::usage("a VHD has whole sectors of 512 bytes, and at most 2040 GiB"));
    }
    if fixed {
        store.set_len(size).failed()?;
        return store.write_at(&footer(size, 2, uuid, now), size).failed();
    }
    let entries = size.div_ceil(BLOCK);
    let mut header = vec![0; 1024];
    put(&mut header, 0, DYNAMIC);
    put(&mut header, 8, &u64::MAX.to_be_bytes());
    put(&mut header, 16, &1536_u64.to_be_bytes());
    put(&mut header, 24, &0x0001_0000_u32.to_be_bytes());
    put(&mut header, 28, &(entries as u32).to_be_bytes());
    put(&mut header, 32, &(BLOCK as u32).to_be_bytes());
    let sum = checksum(&header, 36);
    put(&mut header, 36, &sum.to_be_bytes());
    let footer = footer(size, 3, uuid, now);
    let table = vec![0xff; (entries * 4).div_ceil(SECTOR) as usize * SECTOR as usize];
    store.write_at(&header, 512).failed()?;
    store.write_at(&table, 1536).failed()?;
    store.write_at(&footer, 1536 + table.len() as u64).failed()?;
    store.write_at(&footer, 0).failed()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shapes_hold_no_more_than_the_disk() {
        for size in [1 << 20, 10 << 20, 504 << 20, 4 << 30, 200 << 30, 2000 << 30_u64] {
            let (cylinders, heads, sectors) = shape(size / 512);
            assert!(u64::from(cylinders) * u64::from(heads) * u64::from(sectors) <= size / 512, "{size}");
            assert!(cylinders > 0 && heads > 0);
        }
    }

    #[test]
    fn a_footer_vouches_for_itself() {
        let footer = footer(1 << 20, 2, [7; 16], 0);
        assert!(is_fixed(&footer, (1 << 20) + 512));
        assert!(!is_fixed(&footer, 1 << 20));
        assert_eq!(footer[56..58], [0, 30]);
    }
}
