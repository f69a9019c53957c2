//! Disks: block devices, the checking wrapper [`Disk`] through which alone they are called, and
//! [`Drive`], a disk together with its partitions.
//!
//! A driver of a device writes a [`BlockDevice`]; everybody else holds a [`Disk`]. The wrapper checks
//! each range once, so a device never sees an offset outside itself and its user never has to wonder
//! what a short read means: there are none.

use std::fmt;
use std::ops::Range;
use std::os::fd::BorrowedFd;
use std::sync::Arc;

use crate::{Errno, Report, Result};

/// The shape of a disk. Does not change while the disk is open.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Geometry {
    /// Bytes. Need not be a multiple of a sector: an image file may have any length.
    pub size: u64,
    /// Bytes; a power of two, 512 or more. What partition tables count in (BLKSSZGET).
    pub logical_sector: u32,
    /// Bytes; a power of two, at least the logical sector. What is written without a read (BLKPBSZGET).
    pub physical_sector: u32,
    /// Bytes; the preferred unit of large transfers, 0 if there is none (BLKIOOPT).
    pub optimal_io: u32,
    /// Whether seeks cost time (BLKROTATIONAL).
    pub rotational: bool,
    /// Whether every change is refused with `EROFS`.
    pub read_only: bool,
}

impl Geometry {
    /// An ordinary disk of `size` bytes with 512-byte sectors, writable, without seeks.
    pub fn of_size(size: u64) -> Self {
        Self {
            size,
            logical_sector: 512,
            physical_sector: 512,
            optimal_io: 0,
            rotational: false,
            read_only: false,
        }
    }
}

/// The driver's side of a disk. Called only through [`Disk`], which has checked that the range lies
/// inside [`Geometry::size`], that no buffer is empty, and that nothing is changed on a read-only disk.
///
/// Calls come from any thread at the same time. Overlapping writes have no order; a read that overlaps
/// a write sees each 512-byte sector either old or new.
pub trait BlockDevice: Send + Sync {
    /// The shape; cheap, asked often.
    fn geometry(&self) -> Geometry;

    /// Fills `buf` from `offset`. All of it: a device that ends early is an error (`EIO`).
    fn read_at(&self, buf: &mut [u8], offset: u64) -> Result<()>;

    /// Writes all of `buf` at `offset`. Done when a later read sees it; on stable storage after [`flush`](Self::flush).
    fn write_at(&self, buf: &[u8], offset: u64) -> Result<()> {
        let _ = (buf, offset);
        Err(Errno::EROFS)
    }

    /// Returns when everything written before the call is on stable storage.
    fn flush(&self) -> Result<()> {
        Ok(())
    }

    /// Says that the content of a range is of no use any more. What it reads as afterwards is undefined.
    fn discard(&self, offset: u64, len: u64) -> Result<()> {
        let _ = (offset, len);
        Err(Errno::EOPNOTSUPP)
    }

    /// Makes a range read as zeros, without transferring them if the device can.
    /// `EOPNOTSUPP` makes [`Disk`] write zeros instead.
    fn write_zeroes(&self, offset: u64, len: u64) -> Result<()> {
        let _ = (offset, len);
        Err(Errno::EOPNOTSUPP)
    }

    /// The first range at or after `offset` that may hold something other than zeros, cut to the end of
    /// the disk; `None` if only zeros follow. A device that does not know answers "the whole rest".
    fn next_data(&self, offset: u64) -> Result<Option<Range<u64>>> {
        let size = self.geometry().size;
        Ok((offset < size).then_some(offset..size))
    }

    /// A real descriptor whose bytes from the given offset on are the bytes of this device, for good.
    fn backing(&self) -> Option<(BorrowedFd<'_>, u64)> {
        None
    }
}

/// A disk, or a window of one: what drivers hold. Cheap to clone; a clone is the same disk.
///
/// Every range is checked: `EINVAL` if any byte lies outside the window. Changes to a read-only disk
/// give `EROFS`. An empty range succeeds and does nothing.
#[derive(Clone)]
pub struct Disk {
    device: Arc<dyn BlockDevice>,
    name: Arc<str>,
    start: u64,
    geometry: Geometry,
}

impl Disk {
    /// Wraps a whole device. `name` is what messages call it: `disk.img`, `/dev/hda2`.
    pub fn new(device: Arc<dyn BlockDevice>, name: impl Into<Arc<str>>) -> Self {
        let geometry = device.geometry();
        Self { device, name: name.into(), start: 0, geometry }
    }

    /// The part of this disk that starts at `offset` and is `len` bytes long, as a disk of its own
    /// called `name`. `EINVAL` if it is not wholly inside.
    pub fn window(&self, offset: u64, len: u64, name: impl Into<Arc<str>>) -> Result<Self> {
        let start = self.locate(offset, len)?;
        let geometry = Geometry { size: len, ..self.geometry };
        Ok(Self { device: Arc::clone(&self.device), name: name.into(), start, geometry })
    }

    /// The same disk, refusing every change with `EROFS`.
    pub fn read_only(mut self) -> Self {
        self.geometry.read_only = true;
        self
    }

    /// What messages call this disk.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The shape of this window; `size` is the window's.
    pub fn geometry(&self) -> Geometry {
        self.geometry
    }

    /// Bytes.
    pub fn size(&self) -> u64 {
        self.geometry.size
    }

    /// Whether every change gives `EROFS`.
    pub fn is_read_only(&self) -> bool {
        self.geometry.read_only
    }

    /// Fills `buf` from `offset`.
    pub fn read_at(&self, buf: &mut [u8], offset: u64) -> Result<()> {
        let at = self.locate(offset, buf.len() as u64)?;
        if buf.is_empty() { Ok(()) } else { self.device.read_at(buf, at) }
    }

    /// The `len` bytes at `offset`. The range is checked before memory is taken, so `len` may be a number
    /// from the image as long as it is bounded by what a caller is ready to hold.
    pub fn read_vec(&self, offset: u64, len: usize) -> Result<Vec<u8>> {
        self.locate(offset, len as u64)?;
        let mut buf = vec![0; len];
        self.read_at(&mut buf, offset)?;
        Ok(buf)
    }

    /// Writes all of `buf` at `offset`.
    pub fn write_at(&self, buf: &[u8], offset: u64) -> Result<()> {
        let at = self.locate_change(offset, buf.len() as u64)?;
        if buf.is_empty() { Ok(()) } else { self.device.write_at(buf, at) }
    }

    /// Returns when everything written before is on stable storage.
    pub fn flush(&self) -> Result<()> {
        self.device.flush()
    }

    /// Says that a range's content is of no use any more.
    pub fn discard(&self, offset: u64, len: u64) -> Result<()> {
        let at = self.locate_change(offset, len)?;
        if len == 0 { Ok(()) } else { self.device.discard(at, len) }
    }

    /// Makes a range read as zeros.
    pub fn write_zeroes(&self, offset: u64, len: u64) -> Result<()> {
        const CHUNK: u64 = 1 << 18;
        let at = self.locate_change(offset, len)?;
        if len == 0 {
            return Ok(());
        }
        match self.device.write_zeroes(at, len) {
            Err(Errno::EOPNOTSUPP) => {}
            done => return done,
        }
        let zeros = vec![0; len.min(CHUNK) as usize];
        let end = at + len;
        let mut next = at;
        while next < end {
            let step = (end - next).min(CHUNK);
            self.device.write_at(&zeros[..step as usize], next)?;
            next += step;
        }
        Ok(())
    }

    /// The first range at or after `offset` that may hold something other than zeros, or `None`.
    pub fn next_data(&self, offset: u64) -> Result<Option<Range<u64>>> {
        if offset >= self.size() {
            return Ok(None);
        }
        let end = self.start + self.size();
        let found = self.device.next_data(self.start + offset)?;
        Ok(found
            .map(|range| range.start.max(self.start + offset)..range.end.min(end))
            .filter(|range| range.start < range.end)
            .map(|range| range.start - self.start..range.end - self.start))
    }

    /// A real descriptor, and the offset in it at which this disk's byte 0 lies.
    pub fn backing(&self) -> Option<(BorrowedFd<'_>, u64)> {
        let (fd, offset) = self.device.backing()?;
        Some((fd, offset.checked_add(self.start)?))
    }

    /// The device's offset of a range of this window. `EINVAL` if any byte lies outside.
    fn locate(&self, offset: u64, len: u64) -> Result<u64> {
        let end = offset.checked_add(len).ok_or(Errno::EINVAL)?;
        if end > self.geometry.size { Err(Errno::EINVAL) } else { Ok(self.start + offset) }
    }

    fn locate_change(&self, offset: u64, len: u64) -> Result<u64> {
        if self.geometry.read_only { Err(Errno::EROFS) } else { self.locate(offset, len) }
    }
}

impl fmt::Debug for Disk {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Disk")
            .field("name", &self.name)
            .field("start", &self.start)
            .field("geometry", &self.geometry)
            .finish()
    }
}

/// A disk as an object: the whole, and the partitions that it is divided into.
pub trait Drive: Send + Sync {
    /// The whole disk.
    fn whole(&self) -> Disk;

    /// The partition table as it was last read; `None` for a disk without one.
    fn table(&self) -> Option<PartitionTable> {
        None
    }

    /// Partition `number` as a disk of its own. `ENXIO` if there is none.
    fn partition(&self, number: u32) -> Result<Disk> {
        let _ = number;
        Err(Errno::ENXIO)
    }

    /// Reads the table again, after somebody rewrote it (BLKRRPART). Partitions handed out before keep
    /// their old place. The host has checked that none is mounted.
    fn reread(&self) -> Result<()> {
        Ok(())
    }
}

/// A disk without partitions is a drive.
impl Drive for Disk {
    fn whole(&self) -> Disk {
        self.clone()
    }
}

/// What a partition table says.
#[derive(Clone, Debug, PartialEq)]
pub struct PartitionTable {
    /// `mbr`, `gpt`.
    pub scheme: &'static str,
    /// In the order of their numbers, which may have gaps.
    pub partitions: Vec<Partition>,
    /// What else `info` shows: the disk's identifier, and what is odd about the table.
    pub report: Report,
}

/// One entry of a partition table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Partition {
    /// As in `/dev/sda5`: 1 and up; logical partitions of an MBR start at 5.
    pub number: u32,
    /// Bytes from the start of the disk.
    pub offset: u64,
    /// Bytes.
    pub size: u64,
    /// The type as the table spells it: `0x83`, or a GUID in capitals.
    pub kind: String,
    /// What the type is called: `Linux filesystem`; empty if unknown.
    pub kind_name: String,
    /// The partition's name; empty if it has none (MBR).
    pub name: String,
    /// The partition's own UUID as in PARTUUID=; empty if it has none.
    pub uuid: String,
    /// Whether the table marks it as the one to boot from.
    pub bootable: bool,
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Mutex;

    struct Memory(Mutex<Vec<u8>>);

    impl BlockDevice for Memory {
        fn geometry(&self) -> Geometry {
            Geometry::of_size(self.0.lock().unwrap().len() as u64)
        }
        fn read_at(&self, buf: &mut [u8], offset: u64) -> Result<()> {
            let bytes = self.0.lock().unwrap();
            buf.copy_from_slice(&bytes[offset as usize..][..buf.len()]);
            Ok(())
        }
        fn write_at(&self, buf: &[u8], offset: u64) -> Result<()> {
            self.0.lock().unwrap()[offset as usize..][..buf.len()].copy_from_slice(buf);
            Ok(())
        }
    }

    fn disk() -> Disk {
        Disk::new(Arc::new(Memory(Mutex::new((0..=255).collect()))), "memory")
    }

    #[test]
    fn a_range_that_leaves_the_disk_is_refused_and_an_empty_one_is_not() {
        let mut byte = [0];
        assert_eq!(disk().read_at(&mut byte, 255), Ok(()));
        assert_eq!(disk().read_at(&mut byte, 256), Err(Errno::EINVAL));
        assert_eq!(disk().read_at(&mut byte, u64::MAX), Err(Errno::EINVAL));
        assert_eq!(disk().read_at(&mut [], 256), Ok(()));
        assert_eq!(disk().read_vec(0, 257), Err(Errno::EINVAL));
    }

    #[test]
    fn a_window_of_a_window_counts_from_its_own_start() {
        let outer = disk().window(100, 100, "outer").unwrap();
        let inner = outer.window(10, 20, "inner").unwrap();
        assert_eq!(inner.read_vec(5, 2), Ok(vec![115, 116]));
        assert_eq!(inner.read_vec(19, 2), Err(Errno::EINVAL));
        assert!(outer.window(90, 11, "too long").is_err());
        assert_eq!(inner.next_data(3), Ok(Some(3..20)));
        assert_eq!(inner.next_data(20), Ok(None));
    }

    #[test]
    fn a_read_only_disk_refuses_every_change() {
        let disk = disk().read_only();
        assert_eq!(disk.write_at(&[1], 0), Err(Errno::EROFS));
        assert_eq!(disk.write_zeroes(0, 1), Err(Errno::EROFS));
        assert_eq!(disk.discard(0, 1), Err(Errno::EROFS));
    }

    #[test]
    fn zeros_are_written_where_the_device_has_no_shortcut() {
        let disk = disk();
        assert_eq!(disk.write_zeroes(1, 254), Ok(()));
        assert_eq!(disk.read_vec(0, 3), Ok(vec![0, 0, 0]));
        assert_eq!(disk.read_vec(253, 3), Ok(vec![0, 0, 255]));
    }
}
