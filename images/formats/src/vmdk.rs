//! VMDK, VMware's format ("Virtual Disk Format 5.0"): sparse, stream-optimised, and descriptors of several files.
//!
//! A *descriptor* is a text, in a file of its own or inside a sparse one: an identifier (CID), the parent's, and one line for each *extent*. A
//! *sparse extent* has a header, all numbers little-endian and in sectors of 512 bytes; the *grain directory* holds the places of
//! *grain tables*, which hold the places of *grains* (64 KiB as a rule), or 0 for none, or 1 for zeros if the header says so. Most have all that
//! twice. In a *stream-optimised* extent each grain is compressed, behind a marker with its length, and the directory may be at the end.
//!
//! # Limits
//!
//! Stream-optimised extents are read-only, as the format has it; `veduta disk convert` makes something else of them. Extents on a VMFS, on
//! devices, and the sparse form of ESX servers (COWD, SESPARSE) are refused by name. What is discarded is given back as holes.
//! That a parent is still the one that the image was made over is not checked.

use std::collections::HashMap;
use std::io::Read;
use std::sync::Arc;

use veduta_api::{Disk, Errno, Geometry, MountError, Report, Result, Value};

use crate::bytes::{le16, le32, le64, put};
use crate::concat::Concat;
use crate::mapped::{Map, Mapped, Room, Slot};
use crate::store::Store;
use crate::{Failed, Files, Under, damaged, store_disk};

pub(crate) const MAGIC: &[u8] = b"KDMV";
pub(crate) const DESCRIPTOR: &[u8] = b"# Disk DescriptorFile";

const SECTOR: u64 = 512;
const AT_END: u64 = u64::MAX;
/// Entries of a grain directory: enough for 128 TiB in the usual sizes.
const MAX_TABLES: u64 = 4 << 20;
/// Bytes of grain tables that are remembered; 64 MiB serve 1 TiB.
const CACHE: u64 = 64 << 20;
/// Bytes; QEMU's own is smaller.
const MAX_DESCRIPTOR: u64 = 1 << 20;
const MAX_EXTENTS: usize = 4096;

const REDUNDANT: u32 = 1 << 1;
const ZERO_GRAINS: u32 = 1 << 2;
const COMPRESSED: u32 = 1 << 16;
const MARKERS: u32 = 1 << 17;

pub(crate) fn open(
    store: &Arc<dyn Store>,
    files: &dyn Files,
    name: &str,
    writable: bool,
    sector: u32,
    below: Under<'_>,
) -> Result<(Disk, Report), MountError> {
    let mut report = Report::new();
    report.put("format", "vmdk");
    let head = store.read_vec(0, 32).failed()?;
    if !head.starts_with(MAGIC) {
        let len = store.len().failed()?.min(MAX_DESCRIPTOR);
        let text = store.read_vec(0, len as usize).failed()?;
        let text = Text::parse(&text);
        return from_descriptor(&text, store, files, name, writable, sector, below, report);
    }
    let header = Header::read(&**store)?;
    let text = match header.descriptor {
        (0, _) => None,
        (at, sectors) => {
            let len = (sectors * SECTOR).min(MAX_DESCRIPTOR);
            Some(Text::parse(&store.read_vec(at * SECTOR, len as usize).failed()?))
        }
    };
    report.put("kind", if header.flags & COMPRESSED != 0 { "streamOptimized" } else { "monolithicSparse" });
    report.put("grain_size", Value::Bytes(header.grain));
    report.put("virtual_size", Value::Bytes(header.capacity));
    let parent = match &text {
        Some(text) => parent(text, &mut report, below)?,
        None => None,
    };
    let cid = text.as_ref().and_then(|text| Some(header.descriptor.0 * SECTOR + text.cid_at?));
    let disk = sparse(store, header, name, writable, sector, parent, cid)?;
    Ok((disk, report))
}

/// The text of a descriptor.
struct Text {
    text: String,
    /// Where in it the eight digits of the CID are.
    cid_at: Option<u64>,
}

impl Text {
    fn parse(bytes: &[u8]) -> Self {
        let end = bytes.iter().position(|byte| *byte == 0).unwrap_or(bytes.len());
        let at = bytes[..end].windows(5).position(|part| part == b"\nCID=");
        let text = String::from_utf8_lossy(&bytes[..end]).into_owned();
        Self { text, cid_at: at.map(|at| at as u64 + 5) }
    }

    fn value(&self, key: &str) -> Option<&str> {
        self.text.lines().find_map(|line| {
            let (name, value) = line.split_once('=')?;
            (name.trim() == key).then(|| value.trim().trim_matches('"'))
        })
    }
}

fn parent(text: &Text, report: &mut Report, below: Under<'_>) -> Result<Option<Disk>, MountError> {
    match (text.value("parentCID"), text.value("parentFileNameHint")) {
        (None, _) => Ok(None),
        (Some(id), _) if id.eq_ignore_ascii_case("ffffffff") => Ok(None),
        (Some(_), None) => Err(damaged("it has a parent, and does not name it")),
        (Some(_), Some(name)) => {
            report.put("backing_file", name);
            below(name, Some("vmdk")).map(Some)
        }
    }
}

#[expect(clippy::too_many_arguments, reason = "all of what an image is opened with")]
fn from_descriptor(
    text: &Text,
    store: &Arc<dyn Store>,
    files: &dyn Files,
    name: &str,
    writable: bool,
    sector: u32,
    below: Under<'_>,
    mut report: Report,
) -> Result<(Disk, Report), MountError> {
    report.put("kind", text.value("createType").unwrap_or("unknown"));
    let lines = text
        .text
        .lines()
        .filter(|line| ["RW ", "RDONLY ", "NOACCESS "].iter().any(|access| line.starts_with(access)));
    let mut parts = Vec::new();
    let mut names = Vec::new();
    let mut start = 0_u64;
    let below_disk = parent(text, &mut report, below)?;
    for line in lines {
        if parts.len() >= MAX_EXTENTS {
            return Err(damaged(format!("more than {MAX_EXTENTS} extents")));
        }
        let wrong = || damaged(format!("the extent {line:?} makes no sense"));
        let (plain, file) = match line.split_once('"') {
            Some((plain, rest)) => (plain, rest.split_once('"')),
            None => (line, None),
        };
        let words: Vec<&str> = plain.split_ascii_whitespace().collect();
        let [access, sectors, kind] = words[..] else { return Err(wrong()) };
        let len =
            sectors.parse::<u64>().ok().and_then(|sectors| sectors.checked_mul(SECTOR)).ok_or_else(wrong)?;
        let end = start.checked_add(len).filter(|end| *end < 1 << 60).ok_or_else(wrong)?;
        let disk = match (kind, file) {
            ("ZERO", _) => None,
            ("FLAT" | "SPARSE", Some((file, rest))) => {
                names.push(file.to_owned());
                let may_write = writable && access == "RW";
                let (extent, _) = files.open(file, may_write).map_err(|error| MountError {
                    message: format!("its extent {file}: {}", error.message),
                    ..error
                })?;
                Some(if kind == "FLAT" {
                    let at = rest.trim().parse::<u64>().unwrap_or(0).checked_mul(SECTOR).ok_or_else(wrong)?;
                    let disk = store_disk(&extent, file, sector, may_write)?;
                    disk.window(at, len, file)
                        .map_err(|_| damaged(format!("the extent {file} is cut short")))?
                } else {
                    let header = Header::read(&*extent)?;
                    let above = below_disk.as_ref();
                    let under = above.map(|disk| {
                        let there = disk.size().saturating_sub(start).min(len);
                        disk.window(start.min(disk.size()), there, disk.name())
                    });
                    let under = under.transpose().failed()?;
                    sparse(&extent, header, file, may_write, sector, under, None)?
                })
            }
            (other, _) => return Err(MountError::unsupported(format!("extents of the kind {other}"))),
        };
        if disk.as_ref().is_some_and(|disk| disk.size() < len) {
            return Err(damaged(format!("the extent {line:?} is larger than its file")));
        }
        parts.push((start..end, disk));
        start = end;
    }
    if parts.is_empty() {
        return Err(damaged("a descriptor without extents"));
    }
    report.put("virtual_size", Value::Bytes(start)).put("extents", names);
    let read_only = !writable || parts.iter().flat_map(|(_, disk)| disk).any(Disk::is_read_only);
    if let (false, Some(at)) = (read_only, text.cid_at) {
        change_cid(&**store, at).failed()?;
    }
    let geometry =
        Geometry { logical_sector: sector, physical_sector: sector, read_only, ..Geometry::of_size(start) };
    Ok((Disk::new(Arc::new(Concat { parts, geometry }), name), report))
}

/// An image that was written has another CID, so that no image above it goes on as if nothing had happened.
fn change_cid(store: &dyn Store, at: u64) -> Result<()> {
    let old = store.read_vec(at, 8)?;
    let number = std::str::from_utf8(&old).ok().and_then(|digits| u32::from_str_radix(digits, 16).ok());
    let Some(number) = number else { return Ok(()) };
    // Anything else than before, and than FFFFFFFFh, which means "none".
    let next = number.wrapping_mul(1_664_525).wrapping_add(1_013_904_223) & 0x7fff_ffff;
    store.write_at(format!("{next:08x}").as_bytes(), at)
}

struct Header {
    flags: u32,
    /// Bytes.
    capacity: u64,
    grain: u64,
    /// First sector and sectors.
    descriptor: (u64, u64),
    per_table: u64,
    /// Sectors.
    directory: u64,
    redundant: u64,
    version: u32,
}

impl Header {
    fn read(store: &dyn Store) -> Result<Self, MountError> {
        let first = Self::parse(&store.read_vec(0, 512).failed()?)?;
        if first.directory != AT_END {
            return Ok(first);
        }
        // The footer is the last sector but one.
        let len = store.len().failed()?;
        let at = len.checked_sub(1024).ok_or_else(|| damaged("it is cut short"))?;
        let last = Self::parse(&store.read_vec(at, 512).failed()?)?;
        if last.directory == AT_END {
            return Err(damaged("its footer does not say where the grain directory is"));
        }
        Ok(Self { descriptor: first.descriptor, ..last })
    }

    fn parse(bytes: &[u8]) -> Result<Self, MountError> {
        if !bytes.starts_with(MAGIC) {
            return Err(damaged("a sparse extent without its header, or its footer"));
        }
        let header = Self {
            version: le32(bytes, 4),
            flags: le32(bytes, 8),
            capacity: le64(bytes, 12).saturating_mul(SECTOR),
            grain: le64(bytes, 20).checked_mul(SECTOR).unwrap_or(0),
            descriptor: (le64(bytes, 28), le64(bytes, 36)),
            per_table: u64::from(le32(bytes, 44)),
            redundant: le64(bytes, 48),
            directory: le64(bytes, 56),
        };
        if !(1..=3).contains(&header.version) {
            return Err(MountError::unsupported(format!("VMDK version {}", header.version)));
        }
        if !header.grain.is_power_of_two() || !(4096..=64 << 20).contains(&header.grain) {
            return Err(damaged(format!("grains of {} bytes", header.grain)));
        }
        if !(1..=4096).contains(&header.per_table) || header.capacity == 0 || header.capacity > 1 << 50 {
            return Err(damaged(format!(
                "{} grains in a table, for {} bytes",
                header.per_table, header.capacity
            )));
        }
        if header.descriptor.0 > 1 << 40 || header.descriptor.1 > 1 << 40 {
            return Err(damaged("its descriptor lies outside"));
        }
        if header.flags & COMPRESSED != 0 && le16(bytes, 77) != 1 {
            return Err(MountError::unsupported(format!("compression of kind {}", le16(bytes, 77))));
        }
        Ok(header)
    }
}

/// Opens one sparse extent.
fn sparse(
    store: &Arc<dyn Store>,
    header: Header,
    name: &str,
    writable: bool,
    sector: u32,
    parent: Option<Disk>,
    cid: Option<u64>,
) -> Result<Disk, MountError> {
    let grains = header.capacity.div_ceil(header.grain);
    let tables = grains.div_ceil(header.per_table);
    if tables > MAX_TABLES {
        return Err(MountError::unsupported("a sparse extent of this size"));
    }
    let directory = directory(&**store, header.directory, tables)?;
    let redundant = match header.flags & REDUNDANT != 0 && header.redundant != 0 {
        true => directory_if_there(&**store, header.redundant, tables).failed()?,
        false => Vec::new(),
    };
    let writable = writable && header.flags & COMPRESSED == 0;
    let geometry = Geometry {
        logical_sector: sector,
        physical_sector: sector.max(4096),
        read_only: !writable,
        ..Geometry::of_size(header.capacity)
    };
    let end = store.len().failed()?.div_ceil(header.grain) * header.grain;
    let block = header.grain;
    let map = Vmdk {
        store: Arc::clone(store),
        directory,
        redundant,
        end,
        cid,
        loaded: parking_lot::Mutex::new(HashMap::new()),
        header,
    };
    Ok(Disk::new(Arc::new(Mapped::new(Arc::clone(store), map, geometry, block, parent)), name))
}

fn directory(store: &dyn Store, at: u64, tables: u64) -> Result<Vec<u32>, MountError> {
    let len = store.len().failed()?;
    if at.checked_mul(SECTOR).is_none_or(|at| at > len) {
        return Err(damaged("its grain directory lies outside of the file"));
    }
    directory_if_there(store, at, tables).failed()
}

fn directory_if_there(store: &dyn Store, at: u64, tables: u64) -> Result<Vec<u32>> {
    let Some(offset) = at.checked_mul(SECTOR).filter(|at| *at < 1 << 50) else { return Ok(Vec::new()) };
    let bytes = store.read_vec(offset, tables as usize * 4)?;
    Ok((0..bytes.len()).step_by(4).map(|at| le32(&bytes, at)).collect())
}

struct Vmdk {
    store: Arc<dyn Store>,
    header: Header,
    directory: Vec<u32>,
    redundant: Vec<u32>,
    /// Tables that are remembered; all of it is in the file too.
    loaded: parking_lot::Mutex<HashMap<usize, Arc<[u32]>>>,
    /// Bytes; where the next grain goes.
    end: u64,
    /// Where the CID is, until it was changed.
    cid: Option<u64>,
}

impl Vmdk {
    fn place_of(&self, grain: u64) -> (usize, usize) {
        ((grain / self.header.per_table) as usize, (grain % self.header.per_table) as usize)
    }

    fn table(&self, index: usize) -> Result<Option<Arc<[u32]>>> {
        let at = u64::from(self.directory.get(index).copied().unwrap_or(0)) * SECTOR;
        if at == 0 {
            return Ok(None);
        }
        let mut loaded = self.loaded.lock();
        if let Some(table) = loaded.get(&index) {
            return Ok(Some(Arc::clone(table)));
        }
        let bytes = self.store.read_vec(at, self.header.per_table as usize * 4)?;
        let table: Arc<[u32]> = (0..bytes.len()).step_by(4).map(|at| le32(&bytes, at)).collect();
        if loaded.len() as u64 * self.header.per_table * 4 > CACHE {
            loaded.clear();
        }
        loaded.insert(index, Arc::clone(&table));
        Ok(Some(table))
    }

    /// Sets an entry in a table and in its copy; a table that is missing is made at the end of the file.
    fn set(&mut self, grain: u64, value: u32) -> Result<()> {
        let (index, within) = self.place_of(grain);
        let old = self.table(index)?;
        let fresh = old.is_none();
        let mut table: Vec<u32> = match old {
            Some(table) => table.to_vec(),
            None => vec![0; self.header.per_table as usize],
        };
        *table.get_mut(within).ok_or(Errno::EUCLEAN)? = value;
        if fresh {
            for which in [0, 1] {
                if which == 1 && self.redundant.get(index).copied() != Some(0) {
                    break;
                }
                let bytes: Vec<u8> = table.iter().flat_map(|entry| entry.to_le_bytes()).collect();
                let at = self.end;
                let sector = u32::try_from(at / SECTOR).map_err(|_| Errno::EFBIG)?;
                self.store.write_at(&bytes, at)?;
                self.end = (at + bytes.len() as u64).div_ceil(self.header.grain) * self.header.grain;
                let (directory, from) = match which {
                    0 => (&mut self.directory, self.header.directory),
                    _ => (&mut self.redundant, self.header.redundant),
                };
                *directory.get_mut(index).ok_or(Errno::EUCLEAN)? = sector;
                self.store.write_at(&sector.to_le_bytes(), from * SECTOR + index as u64 * 4)?;
            }
        } else {
            for directory in [&self.redundant, &self.directory] {
                if let Some(at) = directory.get(index).copied().filter(|at| *at != 0) {
                    self.store.write_at(&value.to_le_bytes(), u64::from(at) * SECTOR + within as u64 * 4)?;
                }
            }
        }
        self.loaded.lock().insert(index, table.into());
        Ok(())
    }
}

impl Map for Vmdk {
    fn find(&self, block: u64) -> Result<Slot> {
        let (index, within) = self.place_of(block);
        let Some(table) = self.table(index)? else { return Ok(Slot::Absent) };
        Ok(match table.get(within).copied().unwrap_or(0) {
            0 => Slot::Absent,
            1 if self.header.flags & ZERO_GRAINS != 0 => Slot::Zero,
            at if self.header.flags & COMPRESSED != 0 => Slot::Packed { at: u64::from(at) * SECTOR, len: 0 },
            at => Slot::Data { at: u64::from(at) * SECTOR, own: true },
        })
    }

    fn absent_run(&self, block: u64) -> u64 {
        let (index, within) = self.place_of(block);
        if self.directory.get(index).copied().unwrap_or(0) != 0 {
            return 1;
        }
        self.header.per_table - within as u64
    }

    /// A marker says where on the disk the grain is and how long its compressed bytes are.
    fn unpack(&self, at: u64, _len: u64, out: &mut [u8]) -> Result<()> {
        let bad = |what: &dyn std::fmt::Display| {
            tracing::error!("vmdk: the grain at {at:#x} cannot be unpacked: {what}");
            Errno::EUCLEAN
        };
        let (start, len) = if self.header.flags & MARKERS != 0 {
            let marker = self.store.read_vec(at, 12)?;
            (at + 12, le32(&marker, 8) as usize)
        } else {
            (at, out.len() * 2)
        };
        if len > out.len() * 2 + 65536 {
            return Err(bad(&format_args!("{len} bytes")));
        }
        let packed = self.store.read_vec(start, len)?;
        let mut reader = flate2::read::ZlibDecoder::new(&packed[..]);
        let mut done = 0;
        while done < out.len() {
            // The last grain of a disk may be shorter.
            match reader.read(&mut out[done..]).map_err(|error| bad(&error))? {
                0 => break,
                count => done += count,
            }
        }
        out[done..].fill(0);
        Ok(())
    }

    fn place(&mut self, _block: u64, count: u64) -> Result<Room> {
        let at = self.end;
        let count = count.min(64);
        let end = at + count * self.header.grain;
        if end / SECTOR > u64::from(u32::MAX) {
            return Err(Errno::EFBIG);
        }
        self.store.set_len(end)?;
        self.end = end;
        Ok(Room { at, count, is_zero: true })
    }

    fn link(&mut self, block: u64, room: Room) -> Result<()> {
        for one in 0..room.count {
            let at = (room.at + one * self.header.grain) / SECTOR;
            self.set(block + one, u32::try_from(at).map_err(|_| Errno::EFBIG)?)?;
        }
        Ok(())
    }

    /// Zeros over a parent; without one, what is in place is punched instead, since a grain's space cannot be used again.
    fn clear(&mut self, block: u64, count: u64, absent: bool) -> Result<bool> {
        if absent || self.header.flags & ZERO_GRAINS == 0 {
            return Ok(false);
        }
        (block..block + count).try_for_each(|one| self.set(one, 1))?;
        Ok(true)
    }

    fn begin_writing(&mut self) -> Result<()> {
        match self.cid.take() {
            Some(at) => change_cid(&*self.store, at),
            None => Ok(()),
        }
    }
}

/// Makes an empty sparse image. `file` is its own name, which its descriptor mentions.
pub(crate) fn create(store: &dyn Store, size: u64, file: &str, cid: u32) -> Result<(), MountError> {
    const GRAIN: u64 = 64 << 10;
    const PER_TABLE: u64 = 512;
    let size = size.div_ceil(SECTOR) * SECTOR;
    let tables = size.div_ceil(GRAIN).div_ceil(PER_TABLE);
    let table_sectors = PER_TABLE * 4 / SECTOR;
    let directory_sectors = (tables * 4).div_ceil(SECTOR);
    // Header, descriptor of 20 sectors, the copies of the directory and the tables, then the other directory and tables.
    let redundant = 21;
    let directory = redundant + directory_sectors + tables * table_sectors;
    let end = directory + directory_sectors + tables * table_sectors;
    let overhead = end.div_ceil(GRAIN / SECTOR) * (GRAIN / SECTOR);
    if tables > 1 << 20 {
        return Err(MountError::usage("it is too large for a sparse VMDK"));
    }
    let text = format!(
        "# Disk DescriptorFile\nversion=1\nCID={cid:08x}\nparentCID=ffffffff\ncreateType=\"monolithicSparse\"\n\n\
         # Extent description\nRW {} SPARSE \"{file}\"\n\n# The Disk Data Base\n#DDB\n\n\
         ddb.virtualHWVersion = \"4\"\nddb.geometry.cylinders = \"{}\"\nddb.geometry.heads = \"16\"\n\
         ddb.geometry.sectors = \"63\"\nddb.adapterType = \"ide\"\n",
        size / SECTOR,
        (size / SECTOR / (16 * 63)).min(16_383),
    );
    if text.len() as u64 > 20 * SECTOR {
        return Err(MountError::usage("its name is too long"));
    }
    let mut header = vec![0; 512];
    put(&mut header, 0, MAGIC);
    put(&mut header, 4, &1_u32.to_le_bytes());
    put(&mut header, 8, &(1 | REDUNDANT).to_le_bytes());
    for (at, value) in [
        (12, size / SECTOR),
        (20, GRAIN / SECTOR),
        (28, 1),
        (36, 20),
        (48, redundant),
        (56, directory),
        (64, overhead),
    ] {
        put(&mut header, at, &u64::to_le_bytes(value));
    }
    put(&mut header, 44, &(PER_TABLE as u32).to_le_bytes());
    put(&mut header, 73, b"\n \r\n");
    store.set_len(overhead * SECTOR).failed()?;
    for at in [redundant, directory] {
        let places = (0..tables)
            .flat_map(|table| ((at + directory_sectors + table * table_sectors) as u32).to_le_bytes());
        store.write_at(&places.collect::<Vec<u8>>(), at * SECTOR).failed()?;
    }
    store.write_at(text.as_bytes(), SECTOR).failed()?;
    store.write_at(&header, 0).failed()
}
