//! VDI, VirtualBox's format.
//!
//! A header of 512 bytes, all little-endian; the *block map*, with a 32-bit number for each block of the disk (1 MiB as a rule): its number among
//! the blocks of the file, or FFFFFFFFh for none, or FFFFFFFEh for zeros; then the blocks, in the order in which they
//! were first written. The header counts them.
//!
//! # Limits
//!
//! Images below others (differencing ones) are refused: they name their parent by UUID only, which only VirtualBox's registry can
//! find. What is discarded is given back to the file system below, as holes; the file does not get shorter.

use std::sync::Arc;

use veduta_api::{Disk, Errno, Geometry, MountError, Report, Result, Value};

use crate::bytes::{le32, le64, put};
use crate::mapped::{Map, Mapped, Room, Slot};
use crate::store::Store;
use crate::{Failed, damaged};

pub(crate) const MAGIC: &[u8] = b"\x7f\x10\xda\xbe";

const NONE: u32 = 0xffff_ffff;
const ZERO: u32 = 0xffff_fffe;
/// Where the count of blocks in the file is.
const COUNT_AT: u64 = 0x184;
/// Bytes; a map for 16 TiB.
const MAX_MAP: u64 = 64 << 20;

struct Vdi {
    store: Arc<dyn Store>,
    map: Vec<u32>,
    map_at: u64,
    data_at: u64,
    block: u64,
    /// Bytes in front of each block's data.
    extra: u64,
    count: u32,
}

pub(crate) fn open(
    store: &Arc<dyn Store>,
    name: &str,
    writable: bool,
    sector: u32,
) -> Result<(Disk, Report), MountError> {
    let header = store.read_vec(0, 512).failed()?;
    let version = le32(&header, 0x44);
    if version >> 16 != 1 {
        return Err(MountError::unsupported(format!("VDI version {}.{}", version >> 16, version & 0xffff)));
    }
    let kind = match le32(&header, 0x4c) {
        1 => "dynamic",
        2 => "fixed",
        4 => {
            return Err(MountError::unsupported("a differencing VDI, whose parent only VirtualBox can find"));
        }
        other => return Err(damaged(format!("VDI type {other}"))),
    };
    if header[0x1a8..0x1b8] != [0; 16] {
        return Err(MountError::unsupported("a VDI that continues another, which only VirtualBox can find"));
    }
    let (map_at, data_at) = (u64::from(le32(&header, 0x154)), u64::from(le32(&header, 0x158)));
    let size = le64(&header, 0x170);
    let (block, extra) = (u64::from(le32(&header, 0x178)), u64::from(le32(&header, 0x17c)));
    let (blocks, count) = (u64::from(le32(&header, 0x180)), le32(&header, 0x184));
    if !block.is_power_of_two() || !(4096..=64 << 20).contains(&block) || extra > 1 << 20 {
        return Err(damaged(format!("blocks of {block} bytes")));
    }
    if blocks != size.div_ceil(block) || blocks * 4 > MAX_MAP || u64::from(count) > blocks {
        return Err(damaged(format!("{count} of {blocks} blocks for {size} bytes")));
    }
    if map_at < 0x190 || data_at < map_at + blocks * 4 || data_at > store.len().failed()?.max(1 << 20) {
        return Err(damaged("the block map and the data overlap"));
    }
    let bytes = store.read_vec(map_at, blocks as usize * 4).failed()?;
    let map: Vec<u32> = (0..bytes.len()).step_by(4).map(|at| le32(&bytes, at)).collect();
    let mut used = vec![false; count as usize];
    for number in map.iter().filter(|number| **number < ZERO) {
        match used.get_mut(*number as usize) {
            Some(taken) if !*taken => *taken = true,
            Some(_) => return Err(damaged(format!("block {number} of the file is used twice"))),
            None => return Err(damaged(format!("block {number} of the file, which has {count}"))),
        }
    }
    let mut report = Report::new();
    report.put("format", "vdi").put("kind", kind);
    report.put("block_size", Value::Bytes(block)).put("virtual_size", Value::Bytes(size));
    report.put("blocks_used", count);
    let geometry = Geometry {
        logical_sector: sector,
        physical_sector: sector.max(4096),
        read_only: !writable,
        ..Geometry::of_size(size)
    };
    let vdi = Vdi { store: Arc::clone(store), map, map_at, data_at, block, extra, count };
    Ok((Disk::new(Arc::new(Mapped::new(Arc::clone(store), vdi, geometry, block, None)), name), report))
}

impl Map for Vdi {
    fn find(&self, block: u64) -> Result<Slot> {
        Ok(match self.map.get(block as usize).copied().ok_or(Errno::EUCLEAN)? {
            NONE => Slot::Absent,
            ZERO => Slot::Zero,
            number => Slot::Data {
                at: self.data_at + u64::from(number) * (self.block + self.extra) + self.extra,
                own: true,
            },
        })
    }

    fn absent_run(&self, block: u64) -> u64 {
        self.map.iter().skip(block as usize).take_while(|number| **number == NONE).count() as u64
    }

    /// The blocks behind the last; with bytes in front of each, one at a time.
    fn place(&mut self, _block: u64, count: u64) -> Result<Room> {
        let at = self.data_at + u64::from(self.count) * (self.block + self.extra) + self.extra;
        let count = if self.extra > 0 { 1 } else { count };
        // A file that was cut short in an odd place, or padded, may have old bytes here.
        let is_zero = self.store.next_data(at)?.is_none();
        Ok(Room { at, count, is_zero })
    }

    /// The count and the map are written at once where they lie close to each other.
    fn link(&mut self, block: u64, room: Room) -> Result<()> {
        let first = self.count;
        for (at, number) in (block..block + room.count).zip(first..) {
            *self.map.get_mut(at as usize).ok_or(Errno::EUCLEAN)? = number;
        }
        self.count = first + room.count as u32;
        // The last block is there to its end.
        let end = room.at + room.count * self.block;
        if self.store.len()? < end {
            self.store.set_len(end)?;
        }
        let entries: Vec<u8> = self.map[block as usize..(block + room.count) as usize]
            .iter()
            .flat_map(|number| number.to_le_bytes())
            .collect();
        let entries_at = self.map_at + block * 4;
        let span = (entries_at - COUNT_AT) as usize;
        if span > 65536 {
            self.store.write_at(&self.count.to_le_bytes(), COUNT_AT)?;
            return self.store.write_at(&entries, entries_at);
        }
        let mut both = self.store.read_vec(COUNT_AT, span + entries.len())?;
        put(&mut both, 0, &self.count.to_le_bytes());
        put(&mut both, span, &entries);
        self.store.write_at(&both, COUNT_AT)
    }
}

/// Makes an empty image.
pub(crate) fn create(store: &dyn Store, size: u64, uuid: [u8; 16]) -> Result<(), MountError> {
    const BLOCK: u64 = 1 << 20;
    let blocks = size.div_ceil(BLOCK);
    if blocks * 4 > MAX_MAP {
        return Err(MountError::usage("it is too large for a VDI"));
    }
    let data_at = (512 + blocks * 4).div_ceil(BLOCK) * BLOCK;
    let mut header = vec![0; 512];
    put(&mut header, 0, b"<<< Veduta VM Virtual Disk Image >>>\n");
    put(&mut header, 0x40, MAGIC);
    for (at, value) in [
        (0x44, 0x0001_0001),
        (0x48, 0x190),
        (0x4c, 1),
        (0x154, 512),
        (0x158, data_at as u32),
        (0x168, 512),
        (0x178, BLOCK as u32),
        (0x180, blocks as u32),
    ] {
        put(&mut header, at, &u32::to_le_bytes(value));
    }
    put(&mut header, 0x170, &size.to_le_bytes());
    put(&mut header, 0x188, &uuid);
    put(&mut header, 0x198, &uuid);
    store.set_len(data_at).failed()?;
    store.write_at(&vec![0xff; blocks as usize * 4], 512).failed()?;
    store.write_at(&header, 0).failed()
}
