//! qcow2, QEMU's own format (docs/interop/qcow2 in QEMU), versions 2 and 3.
//!
//! The file is made of clusters of 512 bytes to 2 MiB. The *L1 table* holds the offsets of *L2 tables*, one cluster each, with one entry for each
//! cluster of the disk: where it is; or that it is compressed, and where; or that it is zeros; or nothing, which means that the image below
//! has it. [`crate::refcount`] knows which clusters of the file are in use. The top bit of an entry says that nobody but
//! this entry uses the cluster, so that it may be written in place; internal snapshots take that away. All numbers are big-endian.
//!
//! # Limits
//!
//! External data files and encryption are refused by name. Internal snapshots are kept, and not shown. An image that was
//! not closed after lazy reference counting, or that is marked as damaged, is read-only until `qemu-img check -r all`. Dirty bitmaps
//! become invalid by writing, as the format has it: their mark is cleared. Images of version 2 and with subclusters are written; the
//! former cannot note zeros over an image below, so they are written out.

use std::collections::HashMap;
use std::io::Read;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use parking_lot::RwLock;
use veduta_api::{Disk, Errno, Geometry, MountError, Report, Result, Value};

use crate::bytes::{be32, be64, put};
use crate::mapped::{Map, Mapped, Piece, Room, Slot};
use crate::refcount::Refcounts;
use crate::store::Store;
use crate::{Failed, Under, damaged};

pub(crate) const MAGIC: &[u8] = b"QFI\xfb";

/// Bytes; QEMU's own limits.
const MAX_L1: u64 = 32 << 20;
const MAX_REFCOUNT_TABLE: u64 = 8 << 20;
/// Bytes of L2 tables that are remembered.
const L2_CACHE: usize = 64 << 20;

const OFFSET: u64 = 0x00ff_ffff_ffff_fe00;
const COPIED: u64 = 1 << 63;
const COMPRESSED: u64 = 1 << 62;
const ZERO: u64 = 1;

const DIRTY: u64 = 1;
const CORRUPT: u64 = 2;
const DATA_FILE: u64 = 4;
const COMPRESSION: u64 = 8;
const EXTENDED_L2: u64 = 16;

/// What a header says.
struct Header {
    version: u32,
    size: u64,
    cluster_bits: u32,
    l1_at: u64,
    l1_len: u64,
    refcounts_at: u64,
    refcounts_bytes: u64,
    refcount_order: u32,
    snapshots: u32,
    incompatible: u64,
    autoclear: u64,
    zstd: bool,
    backing: Option<String>,
    backing_format: Option<String>,
}

fn parse(store: &dyn Store) -> Result<Header, MountError> {
    let bytes = store.read_vec(0, 4096).failed()?;
    let version = be32(&bytes, 4);
    let cluster_bits = be32(&bytes, 20);
    if !(9..=21).contains(&cluster_bits) {
        return Err(damaged(format!("clusters of 2^{cluster_bits} bytes")));
    }
    let (incompatible, autoclear, order, header_len) = match version {
        2 => (0, 0, 4, 72),
        3 => (be64(&bytes, 72), be64(&bytes, 88), be32(&bytes, 96), u64::from(be32(&bytes, 100))),
        other => return Err(MountError::unsupported(format!("qcow2 version {other}"))),
    };
    let known = DIRTY | CORRUPT | DATA_FILE | COMPRESSION | EXTENDED_L2;
    if incompatible & !known != 0 {
        return Err(MountError::unsupported(format!(
            "unknown features of qcow2 (bits {:#x})",
            incompatible & !known
        )));
    }
    if incompatible & DATA_FILE != 0 {
        return Err(MountError::unsupported("its data is in another file (a qcow2 feature)"));
    }
    if be32(&bytes, 32) != 0 {
        return Err(MountError::unsupported(
            "it is encrypted (a qcow2 feature); qemu-img convert can decrypt it",
        ));
    }
    let zstd = match (incompatible & COMPRESSION != 0, bytes.get(104).copied().unwrap_or(0)) {
        (false, _) | (true, 0) => false,
        (true, 1) => true,
        (true, other) => return Err(MountError::unsupported(format!("compression of kind {other}"))),
    };
    let mut header = Header {
        version,
        size: be64(&bytes, 24),
        cluster_bits,
        l1_at: be64(&bytes, 40),
        l1_len: u64::from(be32(&bytes, 36)),
        refcounts_at: be64(&bytes, 48),
        refcounts_bytes: u64::from(be32(&bytes, 56)) << cluster_bits,
        refcount_order: order,
        snapshots: be32(&bytes, 60),
        incompatible,
        autoclear,
        zstd,
        backing: None,
        backing_format: None,
    };
    header.check(header_len)?;
    let (at, len) = (be64(&bytes, 8), be32(&bytes, 16) as usize);
    if at != 0 {
        if len > 1023 || at > (1 << cluster_bits) {
            return Err(damaged("the name of the image below lies outside the header"));
        }
        let name = store.read_vec(at, len).failed()?;
        header.backing = Some(String::from_utf8_lossy(&name).into_owned());
    }
    header.backing_format = backing_format(store, header_len, 1 << cluster_bits)?;
    Ok(header)
}

impl Header {
    fn check(&self, header_len: u64) -> Result<(), MountError> {
        let cluster = 1_u64 << self.cluster_bits;
        let entries = self.l2_entries();
        if header_len < 72 || header_len > cluster.max(512) || self.refcount_order > 6 {
            return Err(damaged("the header's sizes make no sense"));
        }
        if self.incompatible & EXTENDED_L2 != 0 && self.cluster_bits < 14 {
            return Err(damaged("clusters are too small for subclusters"));
        }
        let needed = self.size.div_ceil(cluster).div_ceil(entries);
        if self.size > 1 << 62 || self.l1_len < needed || self.l1_len * 8 > MAX_L1 {
            return Err(damaged(format!("an L1 table of {} entries for {} bytes", self.l1_len, self.size)));
        }
        if self.refcounts_bytes == 0 || self.refcounts_bytes > MAX_REFCOUNT_TABLE {
            return Err(damaged("the size of the refcount table makes no sense"));
        }
        let far = 1 << 56;
        if self.l1_at % cluster != 0
            || self.refcounts_at % cluster != 0
            || self.l1_at > far
            || self.refcounts_at > far
        {
            return Err(damaged("a table does not start where a cluster does"));
        }
        if self.size > 0 && self.l1_at == 0 || self.refcounts_at == 0 {
            return Err(damaged("a table is missing"));
        }
        Ok(())
    }

    fn l2_entries(&self) -> u64 {
        (1 << self.cluster_bits) / if self.incompatible & EXTENDED_L2 != 0 { 16 } else { 8 }
    }
}

/// The extension that says of what format the image below is. Extensions follow the header, each with a length, up to the first cluster's end.
fn backing_format(store: &dyn Store, header_len: u64, cluster: u64) -> Result<Option<String>, MountError> {
    let area = store.read_vec(0, cluster.min(65536) as usize).failed()?;
    let mut at = header_len as usize;
    while at + 8 <= area.len() {
        let (kind, len) = (be32(&area, at), be32(&area, at + 4) as usize);
        match kind {
            0 => break,
            0xe279_2aca => {
                let name = area.get(at + 8..).and_then(|rest| rest.get(..len));
                return Ok(name.map(|name| String::from_utf8_lossy(name).into_owned()));
            }
            _ => at = at.saturating_add(8).saturating_add(len.saturating_add(7) & !7),
        }
    }
    Ok(None)
}

/// Opens an image. `below` opens the image below, of the format that is named, if one is.
pub(crate) fn open(
    store: &Arc<dyn Store>,
    name: &str,
    writable: bool,
    sector: u32,
    below: Under<'_>,
) -> Result<(Disk, Report), MountError> {
    let header = parse(&**store)?;
    let mut report = Report::new();
    report.put("format", "qcow2");
    report.put("version", header.version);
    report.put("cluster_size", Value::Bytes(1 << header.cluster_bits));
    report.put("virtual_size", Value::Bytes(header.size));
    if header.snapshots > 0 {
        report.put("snapshots", header.snapshots);
    }
    if header.zstd {
        report.put("compression", "zstd");
    }
    let mut writable = writable;
    for (bit, why) in [
        (DIRTY, "it was not closed by its last writer, and its reference counts may be wrong"),
        (CORRUPT, "it is marked as damaged"),
    ] {
        if header.incompatible & bit != 0 {
            report.warn(format!("{why}: it is read-only until qemu-img check -r all repairs it"));
            if writable {
                tracing::warn!("{name}: {why}; it is read-only until qemu-img check -r all repairs it");
            }
            writable = false;
        }
    }
    let backing = match &header.backing {
        None => None,
        Some(file) => {
            report.put("backing_file", file.clone());
            Some(below(file, header.backing_format.as_deref())?)
        }
    };
    let geometry = Geometry {
        logical_sector: sector,
        physical_sector: sector.max(4096.min(1 << header.cluster_bits)),
        optimal_io: 1 << header.cluster_bits,
        read_only: !writable,
        ..Geometry::of_size(header.size)
    };
    let cluster = 1 << header.cluster_bits;
    let map = Qcow2::new(Arc::clone(store), header, backing.is_some()).failed()?;
    let device = Mapped::new(Arc::clone(store), map, geometry, cluster, backing);
    Ok((Disk::new(Arc::new(device), name), report))
}

/// An L2 table. Changed only with the map locked for writing; shared with readers of an older lock, hence atomic.
type Table = Arc<[AtomicU64]>;

struct Qcow2 {
    store: Arc<dyn Store>,
    header: Header,
    l1: Vec<u64>,
    l2: RwLock<HashMap<u64, Table>>,
    refcounts: Refcounts,
    has_backing: bool,
}

impl Qcow2 {
    fn new(store: Arc<dyn Store>, header: Header, has_backing: bool) -> Result<Self> {
        let l1 = store.read_vec(header.l1_at, header.l1_len as usize * 8)?;
        let l1 = (0..l1.len()).step_by(8).map(|at| be64(&l1, at)).collect();
        let refcounts = Refcounts::new(
            Arc::clone(&store),
            header.cluster_bits,
            header.refcount_order,
            header.refcounts_at,
            header.refcounts_bytes as usize,
        )?;
        Ok(Self { store, header, l1, l2: RwLock::new(HashMap::new()), refcounts, has_backing })
    }

    fn cluster(&self) -> u64 {
        1 << self.header.cluster_bits
    }

    fn is_extended(&self) -> bool {
        self.header.incompatible & EXTENDED_L2 != 0
    }

    /// Words of 8 bytes for each entry.
    fn words(&self) -> usize {
        if self.is_extended() { 2 } else { 1 }
    }

    /// Where a block's entry is: in the L1 table, and in the L2 table.
    fn place_of(&self, block: u64) -> (usize, usize) {
        let entries = self.header.l2_entries();
        ((block / entries) as usize, (block % entries) as usize)
    }

    /// The offset of an L2 table; 0 if there is none.
    fn table_at(&self, index: usize) -> Result<u64> {
        let at = self.l1.get(index).copied().unwrap_or(0) & OFFSET;
        if at % self.cluster() != 0 {
            tracing::error!("qcow2: L1 entry {index} points at {at:#x}, which is not where a cluster starts");
            return Err(Errno::EUCLEAN);
        }
        Ok(at)
    }

    fn table(&self, at: u64) -> Result<Table> {
        if let Some(table) = self.l2.read().get(&at) {
            return Ok(Arc::clone(table));
        }
        let bytes = self.store.read_vec(at, self.cluster() as usize)?;
        let table: Table = (0..bytes.len()).step_by(8).map(|at| AtomicU64::new(be64(&bytes, at))).collect();
        self.remember(at, &table);
        Ok(table)
    }

    fn remember(&self, at: u64, table: &Table) {
        let mut known = self.l2.write();
        if known.len() >= (L2_CACHE >> self.header.cluster_bits).max(16) {
            known.clear();
        }
        known.insert(at, Arc::clone(table));
    }

    fn entry(&self, block: u64) -> Result<(u64, u64)> {
        let (index, within) = self.place_of(block);
        match self.table_at(index)? {
            0 => Ok((0, 0)),
            at => {
                let table = self.table(at)?;
                let word = |at: usize| table.get(at).map_or(0, |word| word.load(Ordering::Relaxed));
                Ok(match self.is_extended() {
                    false => (word(within), 0),
                    true => (word(within * 2), word(within * 2 + 1)),
                })
            }
        }
    }

    /// Offset and length of compressed data.
    fn packed(&self, entry: u64) -> (u64, u64) {
        let shift = 62 - (self.header.cluster_bits - 8);
        let at = entry & ((1 << shift) - 1);
        let sectors = ((entry >> shift) & ((1 << (self.header.cluster_bits - 8)) - 1)) + 1;
        (at, sectors * 512 - (at & 511))
    }

    /// The clusters of the file that an entry uses.
    fn clusters_of(&self, entry: u64) -> std::ops::Range<u64> {
        let bits = self.header.cluster_bits;
        if entry & COMPRESSED != 0 {
            let (at, len) = self.packed(entry);
            return at >> bits..((at + len - 1) >> bits) + 1;
        }
        match entry & OFFSET {
            0 => 0..0,
            at => at >> bits..(at >> bits) + 1,
        }
    }

    /// The L2 table of an L1 entry, to be written: made, or copied if a snapshot has it too.
    fn own_table(&mut self, index: usize) -> Result<(u64, Table)> {
        let at = self.table_at(index)?;
        let entry = self.l1.get(index).copied().ok_or(Errno::EUCLEAN)?;
        if at != 0 && entry & COPIED != 0 {
            return Ok((at, self.table(at)?));
        }
        let words: Vec<u64> = match at {
            0 => vec![0; (self.cluster() / 8) as usize],
            at => self.table(at)?.iter().map(|word| word.load(Ordering::Relaxed)).collect(),
        };
        let cluster = self.refcounts.take_at_end(1)?;
        let new = cluster << self.header.cluster_bits;
        let bytes: Vec<u8> = words.iter().flat_map(|word| word.to_be_bytes()).collect();
        self.store.write_at(&bytes, new)?;
        self.store.write_at(&(new | COPIED).to_be_bytes(), self.header.l1_at + index as u64 * 8)?;
        if let Some(entry) = self.l1.get_mut(index) {
            *entry = new | COPIED;
        }
        if at != 0 {
            self.refcounts.release(at >> self.header.cluster_bits)?;
        }
        let table: Table = words.into_iter().map(AtomicU64::new).collect();
        self.remember(new, &table);
        Ok((new, table))
    }

    /// Sets entries of blocks, one table at a time, and frees what they pointed at. `entry` gives the two words of each.
    fn set(&mut self, block: u64, count: u64, entry: impl Fn(u64) -> (u64, u64)) -> Result<()> {
        let words = self.words();
        let entries = self.header.l2_entries();
        let mut next = block;
        while next < block + count {
            let (index, within) = self.place_of(next);
            let here = (entries - within as u64).min(block + count - next);
            let (at, table) = self.own_table(index)?;
            let mut bytes = Vec::with_capacity(here as usize * words * 8);
            let mut olds = Vec::new();
            for one in 0..here {
                let (first, second) = entry(next + one - block);
                let place = (within + one as usize) * words;
                let word = table.get(place).ok_or(Errno::EUCLEAN)?;
                olds.push(word.swap(first, Ordering::Relaxed));
                bytes.extend(first.to_be_bytes());
                if words == 2 {
                    table.get(place + 1).ok_or(Errno::EUCLEAN)?.store(second, Ordering::Relaxed);
                    bytes.extend(second.to_be_bytes());
                }
            }
            self.store.write_at(&bytes, at + (within * words * 8) as u64)?;
            for old in olds {
                for cluster in self.clusters_of(old) {
                    self.refcounts.release(cluster)?;
                }
            }
            next += here;
        }
        Ok(())
    }
}

impl Map for Qcow2 {
    fn find(&self, block: u64) -> Result<Slot> {
        let (entry, bitmap) = self.entry(block)?;
        if entry & COMPRESSED != 0 {
            let (at, len) = self.packed(entry);
            return Ok(Slot::Packed { at, len });
        }
        let at = entry & OFFSET;
        let own = entry & COPIED != 0;
        if at % self.cluster() != 0 {
            tracing::error!(
                "qcow2: block {block} is said to be at {at:#x}, which is not where a cluster starts"
            );
            return Err(Errno::EUCLEAN);
        }
        if self.is_extended() {
            return Ok(subclusters(at, own, bitmap, self.cluster() / 32));
        }
        Ok(match at {
            _ if entry & ZERO != 0 && self.header.version >= 3 => Slot::Zero,
            0 => Slot::Absent,
            at => Slot::Data { at, own },
        })
    }

    fn absent_run(&self, block: u64) -> u64 {
        let (index, within) = self.place_of(block);
        let entries = self.header.l2_entries();
        if self.l1.get(index).copied().unwrap_or(0) & OFFSET != 0 {
            return 1;
        }
        let empty = self.l1.iter().skip(index).take_while(|entry| **entry & OFFSET == 0).count() as u64;
        empty * entries - within as u64
    }

    fn unpack(&self, at: u64, len: u64, out: &mut [u8]) -> Result<()> {
        let packed = self.store.read_vec(at, len as usize)?;
        let done = if self.header.zstd {
            zstd::stream::read::Decoder::with_buffer(&packed[..]).and_then(|decoder| {
                let mut decoder = decoder.single_frame();
                decoder.read_exact(out)
            })
        } else {
            flate2::read::DeflateDecoder::new(&packed[..]).read_exact(out)
        };
        done.map_err(|error| {
            tracing::error!("qcow2: the compressed cluster at {at:#x} cannot be unpacked: {error}");
            Errno::EUCLEAN
        })
    }

    fn place(&mut self, _block: u64, count: u64) -> Result<Room> {
        let (cluster, count, is_zero) = self.refcounts.take(count)?;
        Ok(Room { at: cluster << self.header.cluster_bits, count, is_zero })
    }

    fn link(&mut self, block: u64, room: Room) -> Result<()> {
        let cluster = self.cluster();
        self.set(block, room.count, |at| ((room.at + at * cluster) | COPIED, u64::from(u32::MAX)))
    }

    fn clear(&mut self, block: u64, count: u64, absent: bool) -> Result<bool> {
        let entry = match (absent, self.header.version, self.is_extended()) {
            (true, _, _) => (0, 0),
            // All subclusters read as zeros.
            (false, _, true) => (0, u64::from(u32::MAX) << 32),
            (false, 3, false) => (ZERO, 0),
            (false, _, false) => return Ok(false),
        };
        debug_assert!(!absent || !self.has_backing);
        self.set(block, count, |_| entry)?;
        Ok(true)
    }

    /// The autoclear features describe what a writer who does not know them breaks, such as dirty bitmaps.
    fn begin_writing(&mut self) -> Result<()> {
        if self.header.autoclear != 0 {
            self.store.write_at(&[0; 8], 88)?;
            self.header.autoclear = 0;
        }
        Ok(())
    }

    fn before_flush(&mut self) -> Result<()> {
        self.refcounts.before_flush();
        Ok(())
    }

    fn after_flush(&mut self) -> Result<()> {
        self.refcounts.after_flush()
    }
}

/// A cluster of 32 subclusters: the low half of the bitmap says which are in place, the high half which are zeros.
fn subclusters(at: u64, own: bool, bitmap: u64, unit: u64) -> Slot {
    let (data, zero) = (bitmap as u32, (bitmap >> 32) as u32);
    match (at, data, zero) {
        (_, 0, 0) => Slot::Absent,
        (_, 0, u32::MAX) => Slot::Zero,
        (at, u32::MAX, 0) if at != 0 => Slot::Data { at, own },
        _ => {
            let piece = |bit: u32| match (data >> bit & 1, zero >> bit & 1) {
                (1, _) if at != 0 => Piece::Data,
                (_, 1) => Piece::Zero,
                _ => Piece::Absent,
            };
            Slot::Mixed { at, unit, pieces: (0..32).map(piece).collect() }
        }
    }
}

/// Makes an empty image of version 3. `backing` is the name of the image below, and its format.
pub(crate) fn create(
    store: &dyn Store,
    size: u64,
    cluster_bits: u32,
    backing: Option<(&str, &str)>,
) -> Result<(), MountError> {
    let cluster = 1_u64 << cluster_bits;
    let l1_len = size.div_ceil(cluster).div_ceil(cluster / 8).max(1);
    if l1_len * 8 > MAX_L1 {
        return Err(MountError::usage("it is too large for clusters of this size"));
    }
    let l1_clusters = (l1_len * 8).div_ceil(cluster);
    // Header, refcount table of one cluster, its first block, and the L1 table.
    let used = 3 + l1_clusters;
    let per_block = cluster / 2;
    let blocks = used.div_ceil(per_block);
    let used = used + blocks - 1;
    let mut header = vec![0; cluster as usize];
    put(&mut header, 0, MAGIC);
    put(&mut header, 4, &3_u32.to_be_bytes());
    put(&mut header, 20, &cluster_bits.to_be_bytes());
    put(&mut header, 24, &size.to_be_bytes());
    put(&mut header, 36, &(l1_len as u32).to_be_bytes());
    put(&mut header, 40, &((2 + blocks) * cluster).to_be_bytes());
    put(&mut header, 48, &cluster.to_be_bytes());
    put(&mut header, 56, &1_u32.to_be_bytes());
    put(&mut header, 96, &4_u32.to_be_bytes());
    put(&mut header, 100, &104_u32.to_be_bytes());
    if let Some((name, format)) = backing {
        if name.len() > 1023 || name.len() + 256 > header.len() {
            return Err(MountError::usage("the name of the image below is too long"));
        }
        put(&mut header, 104, &0xe279_2aca_u32.to_be_bytes());
        put(&mut header, 108, &(format.len() as u32).to_be_bytes());
        put(&mut header, 112, format.as_bytes());
        let at = 112 + format.len().div_ceil(8) * 8 + 8;
        put(&mut header, at, name.as_bytes());
        put(&mut header, 8, &(at as u64).to_be_bytes());
        put(&mut header, 16, &(name.len() as u32).to_be_bytes());
    }
    for index in 0..blocks {
        let mut block = vec![0; cluster as usize];
        let first = index * per_block;
        for one in first..used.min(first + per_block) {
            put(&mut block, ((one - first) * 2) as usize, &1_u16.to_be_bytes());
        }
        store.write_at(&block, (2 + index) * cluster).failed()?;
        store.write_at(&((2 + index) * cluster).to_be_bytes(), cluster + index * 8).failed()?;
    }
    store.set_len(used * cluster).failed()?;
    store.write_at(&header, 0).failed()
}
