//! VHDX, Hyper-V's format ([MS-VHDX]).
//!
//! A mark; at 64 and 128 KiB two *headers*, of which the one with the higher sequence number counts; at 192 and 256 KiB two copies of the *region table*,
//! which says where the *block table* and the *metadata* are. An entry of the block table has the state of a block (1 to 256 MiB) and the
//! mebibyte of the file at which it lies; between them, at fixed distances, are entries for bitmaps of sectors, which only differencing images
//! use. Changes of tables may wait in a *log*. All numbers are little-endian; structures have a CRC-32C.
//!
//! # Limits
//!
//! A log that waits is replayed when the image is opened: into the file if it may be written, else into memory. Our own changes
//! of the block table are eight bytes inside a sector each, written in place after the data, and not through the log. Differencing images are refused
//! by name. What is discarded is given back as holes.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Arc;

use parking_lot::RwLock;
use veduta_api::{Disk, Errno, Geometry, MountError, Report, Result, Value};

use crate::bytes::{le16, le32, le64, put};
use crate::mapped::{Map, Mapped, Room, Slot};
use crate::store::Store;
use crate::{Failed, Under, damaged};

pub(crate) const MAGIC: &[u8] = b"vhdxfile";
const MIB: u64 = 1 << 20;
const HEADERS: [u64; 2] = [64 << 10, 128 << 10];
const HEADER_LEN: usize = 4096;
const REGIONS: [u64; 2] = [192 << 10, 256 << 10];
const REGIONS_LEN: usize = 64 << 10;
const LOG_SECTOR: u64 = 4096;
/// Bytes.
const MAX_LOG: u64 = 256 << 20;
const MAX_TABLE: u64 = 256 << 20;
/// Sectors that a log may hold.
const MAX_SECTORS: usize = 1 << 18;

const ABSENT: u64 = 0;
const PRESENT: u64 = 6;

type Guid = [u8; 16];

/// A GUID as it is written, with its first three groups turned around as it is stored.
const fn guid(a: u32, b: u16, c: u16, d: [u8; 8]) -> Guid {
    let (a, b, c) = (a.to_le_bytes(), b.to_le_bytes(), c.to_le_bytes());
    [a[0], a[1], a[2], a[3], b[0], b[1], c[0], c[1], d[0], d[1], d[2], d[3], d[4], d[5], d[6], d[7]]
}

const BAT: Guid = guid(0x2dc2_7766, 0xf623, 0x4200, [0x9d, 0x64, 0x11, 0x5e, 0x9b, 0xfd, 0x4a, 0x08]);
const METADATA: Guid = guid(0x8b7c_a206, 0x4790, 0x4b9a, [0xb8, 0xfe, 0x57, 0x5f, 0x05, 0x0f, 0x88, 0x6e]);
const PARAMETERS: Guid = guid(0xcaa1_6737, 0xfa36, 0x4d43, [0xb3, 0xb6, 0x33, 0xf0, 0xaa, 0x44, 0xe7, 0x6b]);
const SIZE: Guid = guid(0x2fa5_4224, 0xcd1b, 0x4876, [0xb2, 0x11, 0x5d, 0xbe, 0xd8, 0x3b, 0xf4, 0xb8]);
const LOGICAL: Guid = guid(0x8141_bf1d, 0xa96f, 0x4709, [0xba, 0x47, 0xf2, 0x33, 0xa8, 0xfa, 0xab, 0x5f]);
const PHYSICAL: Guid = guid(0xcda3_48c7, 0x445d, 0x4471, [0x9c, 0xc9, 0xe9, 0x88, 0x52, 0x51, 0xc5, 0x56]);
const PAGE_83: Guid = guid(0xbeca_12ab, 0xb2e6, 0x4523, [0x93, 0xef, 0xc3, 0x09, 0xe0, 0x00, 0xc7, 0x46]);

/// Checks a structure whose CRC-32C is at byte 4.
fn is_sound(bytes: &[u8]) -> bool {
    let mut copy = bytes.to_vec();
    put(&mut copy, 4, &[0; 4]);
    le32(bytes, 4) == crc32c::crc32c(&copy)
}

fn seal(bytes: &mut [u8]) {
    put(bytes, 4, &[0; 4]);
    let crc = crc32c::crc32c(bytes);
    put(bytes, 4, &crc.to_le_bytes());
}

pub(crate) fn open(
    store: &Arc<dyn Store>,
    name: &str,
    writable: bool,
    sector: Option<u32>,
    _below: Under<'_>,
) -> Result<(Disk, Report), MountError> {
    let (header, place) = header(&**store)?;
    let mut report = Report::new();
    report.put("format", "vhdx");
    let store: Arc<dyn Store> = match header[48..64] == [0; 16] {
        true => Arc::clone(store),
        false => replay(store, &header, writable, &mut report)?,
    };
    let regions = regions(&*store)?;
    let (bat_at, bat_len) = *regions.get(&BAT).ok_or_else(|| damaged("it has no block table"))?;
    let (meta_at, meta_len) = *regions.get(&METADATA).ok_or_else(|| damaged("it has no metadata"))?;
    let items = metadata(&*store, meta_at, meta_len)?;
    let item = |guid: &Guid, len: usize| -> Result<Vec<u8>, MountError> {
        items
            .get(guid)
            .filter(|bytes| bytes.len() >= len)
            .cloned()
            .ok_or_else(|| damaged("a part of its metadata is missing"))
    };
    let parameters = item(&PARAMETERS, 8)?;
    let (block, flags) = (u64::from(le32(&parameters, 0)), le32(&parameters, 4));
    let size = le64(&item(&SIZE, 8)?, 0);
    let logical = le32(&item(&LOGICAL, 4)?, 0);
    if flags & 2 != 0 {
        return Err(MountError::unsupported("a differencing VHDX"));
    }
    if !block.is_power_of_two() || !(MIB..=256 * MIB).contains(&block) || !matches!(logical, 512 | 4096) {
        return Err(damaged(format!("blocks of {block} and sectors of {logical} bytes")));
    }
    let ratio = (1 << 23) * u64::from(logical) / block;
    let blocks = size.div_ceil(block);
    let entries = blocks + blocks.saturating_sub(1) / ratio;
    if size == 0 || size > 64 << 40 || entries * 8 > bat_len || entries * 8 > MAX_TABLE {
        return Err(damaged(format!("a block table of {bat_len} bytes for a disk of {size}")));
    }
    let bytes = store.read_vec(bat_at, entries as usize * 8).failed()?;
    let table: Vec<u64> = (0..bytes.len()).step_by(8).map(|at| le64(&bytes, at)).collect();
    report.put("block_size", Value::Bytes(block)).put("virtual_size", Value::Bytes(size));
    let geometry = Geometry {
        logical_sector: sector.unwrap_or(logical),
        physical_sector: items
            .get(&PHYSICAL)
            .map_or(4096, |bytes| le32(bytes, 0))
            .clamp(sector.unwrap_or(logical), 65536),
        read_only: !writable,
        ..Geometry::of_size(size)
    };
    let end = store.len().failed()?.div_ceil(MIB) * MIB;
    let map = Vhdx { store: Arc::clone(&store), table, table_at: bat_at, block, ratio, end, header, place };
    Ok((Disk::new(Arc::new(Mapped::new(store, map, geometry, block, None)), name), report))
}

/// The header that counts, and which of the two it is.
fn header(store: &dyn Store) -> Result<(Vec<u8>, usize), MountError> {
    let mut best: Option<(Vec<u8>, usize)> = None;
    for (place, at) in HEADERS.into_iter().enumerate() {
        let bytes = store.read_vec(at, HEADER_LEN).failed()?;
        if bytes.starts_with(b"head") && is_sound(&bytes) && le16(&bytes, 66) == 1 {
            let newer = best.as_ref().is_none_or(|(known, _)| le64(&bytes, 8) > le64(known, 8));
            if newer {
                best = Some((bytes, place));
            }
        }
    }
    best.ok_or_else(|| damaged("neither of its headers is intact"))
}

/// Where the regions are.
fn regions(store: &dyn Store) -> Result<BTreeMap<Guid, (u64, u64)>, MountError> {
    for at in REGIONS {
        let bytes = store.read_vec(at, REGIONS_LEN).failed()?;
        if !bytes.starts_with(b"regi") || !is_sound(&bytes) {
            continue;
        }
        let count = (le32(&bytes, 8) as usize).min(2047);
        let mut found = BTreeMap::new();
        for entry in bytes[16..].chunks_exact(32).take(count) {
            let id: Guid = entry.first_chunk().copied().unwrap_or_default();
            let (at, len) = (le64(entry, 16), u64::from(le32(entry, 24)));
            if id != BAT && id != METADATA && le32(entry, 28) & 1 != 0 {
                return Err(MountError::unsupported("a VHDX with a region that is unknown and required"));
            }
            if at < MIB || at % MIB != 0 || at > 1 << 50 {
                return Err(damaged("a region lies in a wrong place"));
            }
            found.insert(id, (at, len));
        }
        return Ok(found);
    }
    Err(damaged("neither of its region tables is intact"))
}

/// The items of the metadata: a table of 64 KiB with offsets, then the items.
fn metadata(store: &dyn Store, at: u64, len: u64) -> Result<BTreeMap<Guid, Vec<u8>>, MountError> {
    let table = store.read_vec(at, REGIONS_LEN).failed()?;
    if !table.starts_with(b"metadata") {
        return Err(damaged("its metadata has no table"));
    }
    let count = usize::from(le16(&table, 10)).min(2047);
    let mut items = BTreeMap::new();
    for entry in table[32..].chunks_exact(32).take(count) {
        let id: Guid = entry.first_chunk().copied().unwrap_or_default();
        let (offset, size) = (u64::from(le32(entry, 16)), u64::from(le32(entry, 20)));
        if offset + size > len || size > MIB {
            return Err(damaged("an item of its metadata lies outside"));
        }
        items.insert(id, store.read_vec(at + offset, size as usize).failed()?);
    }
    Ok(items)
}

/// Replays the log, into the file or into memory.
fn replay(
    store: &Arc<dyn Store>,
    header: &[u8],
    writable: bool,
    report: &mut Report,
) -> Result<Arc<dyn Store>, MountError> {
    let log = Log {
        store: &**store,
        guid: header[48..64].to_vec(),
        at: le64(header, 72),
        len: u64::from(le32(header, 68)),
    };
    if log.at < MIB
        || log.at % MIB != 0
        || log.at > 1 << 50
        || log.len % MIB != 0
        || log.len > MAX_LOG
        || log.len == 0
    {
        return Err(damaged("its log lies in a wrong place"));
    }
    let (writes, size) = log.read().failed()?;
    report.warn(format!(
        "its log was not replayed: that was done {}",
        if writable { "now" } else { "in memory, and the file stays as it is" }
    ));
    if !writable {
        return Ok(Arc::new(Replayed { store: Arc::clone(store), writes: RwLock::new(writes) }));
    }
    if store.len().failed()? < size {
        store.set_len(size).failed()?;
    }
    for (at, bytes) in &writes {
        let zeros = [0; LOG_SECTOR as usize];
        store.write_at(if bytes.is_empty() { &zeros } else { bytes }, *at).failed()?;
    }
    store.flush().failed()?;
    Ok(Arc::clone(store))
}

struct Log<'a> {
    store: &'a dyn Store,
    guid: Vec<u8>,
    at: u64,
    len: u64,
}

/// Sectors of 4096 bytes that the log holds, by where they belong; empty ones are zeros.
type Writes = BTreeMap<u64, Vec<u8>>;

/// An entry of the log: which sectors it takes up, and what it says.
struct Entry {
    sequence: u64,
    len: u64,
    tail: u64,
    size: u64,
    writes: Writes,
}

impl Log<'_> {
    /// What the newest whole sequence of entries says, and how long the file was then.
    fn read(&self) -> Result<(Writes, u64)> {
        // What looks like an entry is read and checked; a log made to be slow is full of such.
        let mut budget = self.len * 8;
        // A sequence ends in its entry with the highest number, which says where it begins: its tail.
        let mut newest: Option<(u64, Entry)> = None;
        let mut at = 0;
        while at < self.len {
            match self.entry(at, &mut budget)? {
                Some(entry) => {
                    let len = entry.len;
                    if newest.as_ref().is_none_or(|(_, known)| entry.sequence > known.sequence) {
                        newest = Some((at, entry));
                    }
                    at += len;
                }
                None => at += LOG_SECTOR,
            }
        }
        let Some((head, last)) = newest else { return Ok((Writes::new(), 0)) };
        let (mut writes, mut place, mut walked) = (Writes::new(), last.tail, 0);
        // Each step goes forward in a ring, once around at most.
        while walked < self.len {
            let Some(entry) = self.entry(place % self.len, &mut budget)? else {
                tracing::error!("vhdx: the log breaks off at {place:#x}");
                return Err(Errno::EUCLEAN);
            };
            let (done, len) = (place % self.len == head, entry.len);
            writes.extend(entry.writes);
            if writes.len() > MAX_SECTORS {
                return Err(Errno::EUCLEAN);
            }
            if done {
                return Ok((writes, last.size));
            }
            place += len;
            walked += len;
        }
        Err(Errno::EUCLEAN)
    }

    /// Bytes of the ring.
    fn bytes(&self, at: u64, len: u64) -> Result<Vec<u8>> {
        let first = len.min(self.len - at);
        let mut bytes = self.store.read_vec(self.at + at, first as usize)?;
        bytes.extend(self.store.read_vec(self.at, (len - first) as usize)?);
        Ok(bytes)
    }

    /// The entry at a place; `None` if there is none that is whole and of this log.
    fn entry(&self, at: u64, budget: &mut u64) -> Result<Option<Entry>> {
        let head = self.bytes(at, LOG_SECTOR)?;
        let len = u64::from(le32(&head, 8));
        if !head.starts_with(b"loge")
            || head[32..48] != self.guid[..]
            || len == 0
            || len % LOG_SECTOR != 0
            || len > self.len
        {
            return Ok(None);
        }
        *budget = budget.checked_sub(len).ok_or(Errno::EUCLEAN)?;
        let bytes = self.bytes(at, len)?;
        if !is_sound(&bytes) {
            return Ok(None);
        }
        let (tail, sequence, count) =
            (u64::from(le32(&bytes, 12)), le64(&bytes, 16), le32(&bytes, 24) as usize);
        let size = le64(&bytes, 56);
        // 64 bytes of header, then descriptors of 32, then the sectors that they describe.
        let descriptors = (64 + count.saturating_mul(32)).div_ceil(LOG_SECTOR as usize) * LOG_SECTOR as usize;
        if descriptors > bytes.len() || tail % LOG_SECTOR != 0 || tail >= self.len {
            return Ok(None);
        }
        let mut writes = Writes::new();
        let mut data = bytes[descriptors..].chunks_exact(LOG_SECTOR as usize);
        for descriptor in bytes[64..].chunks_exact(32).take(count) {
            let to = le64(descriptor, 16);
            if le64(descriptor, 24) != sequence || to % LOG_SECTOR != 0 || to > 1 << 50 {
                return Ok(None);
            }
            match &descriptor[..4] {
                b"zero" => {
                    let len = le64(descriptor, 8);
                    if len % LOG_SECTOR != 0 || writes.len() as u64 + len / LOG_SECTOR > MAX_SECTORS as u64 {
                        return Ok(None);
                    }
                    for at in (to..to + len).step_by(LOG_SECTOR as usize) {
                        writes.insert(at, Vec::new());
                    }
                }
                b"desc" => {
                    let Some(sector) = data.next() else { return Ok(None) };
                    if !sector.starts_with(b"data") {
                        return Ok(None);
                    }
                    // The first eight and the last four bytes are kept in the descriptor.
                    let mut bytes = sector.to_vec();
                    put(&mut bytes, 0, &descriptor[8..16]);
                    put(&mut bytes, LOG_SECTOR as usize - 4, &descriptor[4..8]);
                    writes.insert(to, bytes);
                }
                _ => return Ok(None),
            }
        }
        Ok(Some(Entry { sequence, len, tail, size, writes }))
    }
}

/// A file with what its log says laid over it.
struct Replayed {
    store: Arc<dyn Store>,
    writes: RwLock<Writes>,
}

impl Store for Replayed {
    fn len(&self) -> Result<u64> {
        let last = self.writes.read().last_key_value().map_or(0, |(at, _)| at + LOG_SECTOR);
        Ok(self.store.len()?.max(last))
    }
    fn read_at(&self, buf: &mut [u8], offset: u64) -> Result<()> {
        self.store.read_at(buf, offset)?;
        let end = offset + buf.len() as u64;
        for (at, bytes) in self.writes.read().range(offset.saturating_sub(LOG_SECTOR - 1)..end) {
            let (from, to) = (offset.max(*at), end.min(at + LOG_SECTOR));
            if from < to {
                let part = &mut buf[(from - offset) as usize..(to - offset) as usize];
                match bytes.get((from - at) as usize..(to - at) as usize) {
                    Some(source) => part.copy_from_slice(source),
                    None => part.fill(0),
                }
            }
        }
        Ok(())
    }
    fn write_at(&self, _buf: &[u8], _offset: u64) -> Result<()> {
        Err(Errno::EROFS)
    }
    fn set_len(&self, _len: u64) -> Result<()> {
        Err(Errno::EROFS)
    }
    fn flush(&self) -> Result<()> {
        Ok(())
    }
    fn punch(&self, _offset: u64, _len: u64) -> Result<()> {
        Err(Errno::EROFS)
    }
    fn next_data(&self, offset: u64) -> Result<Option<Range<u64>>> {
        self.store.next_data(offset)
    }
}

struct Vhdx {
    store: Arc<dyn Store>,
    table: Vec<u64>,
    table_at: u64,
    block: u64,
    /// Blocks between two entries for bitmaps.
    ratio: u64,
    end: u64,
    header: Vec<u8>,
    /// Which of the two headers counts.
    place: usize,
}

impl Vhdx {
    fn index(&self, block: u64) -> u64 {
        block + block / self.ratio
    }

    fn set(&mut self, block: u64, value: u64) -> Result<()> {
        let index = self.index(block);
        *self.table.get_mut(index as usize).ok_or(Errno::EUCLEAN)? = value;
        self.store.write_at(&value.to_le_bytes(), self.table_at + index * 8)
    }

    /// Writes the header that does not count, with a higher number, so that it does.
    fn write_header(&mut self) -> Result<()> {
        let next = le64(&self.header, 8) + 1;
        put(&mut self.header, 8, &next.to_le_bytes());
        seal(&mut self.header);
        self.place = 1 - self.place;
        self.store.write_at(&self.header, HEADERS[self.place])?;
        self.store.flush()
    }
}

impl Map for Vhdx {
    fn find(&self, block: u64) -> Result<Slot> {
        let entry = self.table.get(self.index(block) as usize).copied().ok_or(Errno::EUCLEAN)?;
        match (entry & 7, (entry >> 20) * MIB) {
            (PRESENT, at) if at >= MIB => Ok(Slot::Data { at, own: true }),
            // Undefined and unmapped blocks may read as anything; zeros are the safe thing.
            (0..=3, _) => Ok(if entry & 7 == ABSENT { Slot::Absent } else { Slot::Zero }),
            (state, at) => {
                tracing::error!("vhdx: block {block} has the state {state} at {at:#x}");
                Err(Errno::EUCLEAN)
            }
        }
    }

    fn place(&mut self, _block: u64, count: u64) -> Result<Room> {
        let at = self.end;
        let count = count.min(((8 * MIB) / self.block).max(1));
        let end = at + count * self.block;
        self.store.set_len(end)?;
        self.end = end;
        Ok(Room { at, count, is_zero: true })
    }

    fn link(&mut self, block: u64, room: Room) -> Result<()> {
        (0..room.count).try_for_each(|one| self.set(block + one, (room.at + one * self.block) | PRESENT))
    }

    /// Whoever may have looked at the file before sees by new identifiers that it is another now; the log, which was replayed, is empty.
    fn begin_writing(&mut self) -> Result<()> {
        let mut id: Guid = self.header[16..32].try_into().unwrap_or_default();
        for (byte, add) in id.iter_mut().zip([0x9d, 0x3b, 0x71, 0xc5, 0x1f, 0x83, 0xe7, 0x5b].iter().cycle())
        {
            *byte = byte.wrapping_mul(5).wrapping_add(*add);
        }
        put(&mut self.header, 16, &id);
        id.reverse();
        put(&mut self.header, 32, &id);
        put(&mut self.header, 48, &[0; 16]);
        // Both, as the specification asks.
        self.write_header()?;
        self.write_header()
    }
}

/// Makes an empty image.
pub(crate) fn create(store: &dyn Store, size: u64, sector: u32, id: Guid) -> Result<(), MountError> {
    let block = if size > 1 << 40 { 32 * MIB } else { 8 * MIB };
    if size % u64::from(sector) != 0 || size > 64 << 40 || size == 0 {
        return Err(MountError::usage("a VHDX has whole sectors, and at most 64 TiB"));
    }
    let ratio = (1 << 23) * u64::from(sector) / block;
    let blocks = size.div_ceil(block);
    let entries = blocks + (blocks - 1) / ratio;
    let table_len = (entries * 8).div_ceil(MIB) * MIB;
    let (log_at, meta_at, bat_at) = (MIB, 2 * MIB, 3 * MIB);
    store.set_len(bat_at + table_len).failed()?;
    let mut file = vec![0; 1024];
    put(&mut file, 0, MAGIC);
    let creator: Vec<u8> = "Veduta".encode_utf16().flat_map(u16::to_le_bytes).collect();
    put(&mut file, 8, &creator);
    store.write_at(&file, 0).failed()?;

    let mut regions = vec![0; REGIONS_LEN];
    put(&mut regions, 0, b"regi");
    put(&mut regions, 8, &2_u32.to_le_bytes());
    for (at, id, place, len) in [(16, BAT, bat_at, table_len), (48, METADATA, meta_at, MIB)] {
        put(&mut regions, at, &id);
        put(&mut regions, at + 16, &place.to_le_bytes());
        put(&mut regions, at + 24, &(len as u32).to_le_bytes());
        put(&mut regions, at + 28, &1_u32.to_le_bytes());
    }
    seal(&mut regions);
    for at in REGIONS {
        store.write_at(&regions, at).failed()?;
    }

    let parameters = [(block as u32).to_le_bytes(), [0; 4]].concat();
    // Identifier, content, and flags: 2 describes the disk, 4 is required.
    let items: [(Guid, &[u8], u32); 5] = [
        (PARAMETERS, &parameters, 4),
        (SIZE, &size.to_le_bytes(), 6),
        (PAGE_83, &id, 6),
        (LOGICAL, &sector.to_le_bytes(), 6),
        (PHYSICAL, &4096_u32.to_le_bytes(), 6),
    ];
    let mut metadata = vec![0; REGIONS_LEN + 4096];
    put(&mut metadata, 0, b"metadata");
    put(&mut metadata, 10, &(items.len() as u16).to_le_bytes());
    let mut at = REGIONS_LEN;
    for (index, (id, content, flags)) in items.iter().enumerate() {
        let entry = 32 + index * 32;
        put(&mut metadata, entry, id);
        put(&mut metadata, entry + 16, &(at as u32).to_le_bytes());
        put(&mut metadata, entry + 20, &(content.len() as u32).to_le_bytes());
        put(&mut metadata, entry + 24, &flags.to_le_bytes());
        put(&mut metadata, at, content);
        at += content.len();
    }
    store.write_at(&metadata, meta_at).failed()?;

    for (sequence, at) in HEADERS.into_iter().enumerate() {
        let mut header = vec![0; HEADER_LEN];
        put(&mut header, 0, b"head");
        put(&mut header, 8, &(sequence as u64).to_le_bytes());
        put(&mut header, 16, &id);
        put(&mut header, 32, &id);
        put(&mut header, 66, &1_u16.to_le_bytes());
        put(&mut header, 68, &(MIB as u32).to_le_bytes());
        put(&mut header, 72, &log_at.to_le_bytes());
        seal(&mut header);
        store.write_at(&header, at).failed()?;
    }
    Ok(())
}
