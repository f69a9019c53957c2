//! A raw image file, or a block device of the host, as a [`BlockDevice`].
//!
//! The image's bytes are the disk's bytes. Its size is what it was when it was opened: a disk never grows, so
//! `fdatasync` is all that a flush needs (it also writes the extents that a sparse file took up). Discarding punches holes;
//! zeroing keeps the space reserved where the filesystem can do that, else it punches too; what is a hole already stays one.

use std::fs::File;
use std::ops::Range;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::FileExt;

use nix::fcntl::{FallocateFlags, fallocate};
use nix::sys::stat::{SFlag, fstat};
use nix::unistd::{Whence, fdatasync, lseek};
use veduta_api::{BlockDevice, Errno, Geometry, Result};

use crate::{errno, ioctls};

/// See the head of this file. Takes no lock: that is [`lock_image`](crate::lock_image)'s.
pub struct RawDisk {
    file: File,
    geometry: Geometry,
    is_device: bool,
}

impl RawDisk {
    /// The disk in an open file or block device. `writable` says whether it was opened for writing; a device
    /// that is set read-only is not writable anyhow. `ENOTBLK` if it is anything else, such as a directory.
    pub fn new(file: File, writable: bool) -> Result<Self> {
        let stat = fstat(&file)?;
        let kind = SFlag::from_bits_truncate(stat.st_mode) & SFlag::S_IFMT;
        let geometry = match kind {
            SFlag::S_IFREG => Geometry { read_only: !writable, ..Geometry::of_size(stat.st_size as u64) },
            SFlag::S_IFBLK => device_geometry(&file, writable)?,
            _ => return Err(Errno::ENOTBLK),
        };
        Ok(Self { file, geometry, is_device: kind == SFlag::S_IFBLK })
    }

    /// The same disk with logical sectors of another size, a power of two from 512 on: as `losetup --sector-size`.
    #[must_use]
    pub fn with_sector(mut self, bytes: u32) -> Self {
        self.geometry.logical_sector = bytes;
        self.geometry.physical_sector = self.geometry.physical_sector.max(bytes);
        self
    }

    /// Makes a range of a file zeros, reserved if the filesystem can do that.
    fn zero_extent(&self, offset: u64, len: u64) -> Result<()> {
        match change_extent(&self.file, FallocateFlags::FALLOC_FL_ZERO_RANGE, offset, len) {
            Err(Errno::EOPNOTSUPP) => {
                change_extent(&self.file, FallocateFlags::FALLOC_FL_PUNCH_HOLE, offset, len)
            }
            done => done,
        }
    }

    /// The device's sectors that lie wholly in a range: what can be discarded without touching bytes beside it.
    fn whole_sectors(&self, offset: u64, len: u64) -> Range<u64> {
        let sector = u64::from(self.geometry.logical_sector);
        offset.div_ceil(sector) * sector..(offset + len) / sector * sector
    }
}

/// A device that does not answer one of the less important questions has the usual answer.
fn device_geometry(device: &File, writable: bool) -> Result<Geometry> {
    let usual = Geometry::of_size(ioctls::size(device)?);
    let logical = ioctls::logical_sector(device)?.max(512);
    Ok(Geometry {
        logical_sector: logical,
        physical_sector: ioctls::physical_sector(device).unwrap_or(logical).max(logical),
        optimal_io: ioctls::optimal_io(device).unwrap_or(usual.optimal_io),
        rotational: ioctls::is_rotational(device).unwrap_or(usual.rotational),
        read_only: !writable || ioctls::is_read_only(device).unwrap_or(false),
        ..usual
    })
}

impl BlockDevice for RawDisk {
    fn geometry(&self) -> Geometry {
        self.geometry
    }

    /// An image that somebody cut short meanwhile gives `EIO`.
    fn read_at(&self, buf: &mut [u8], offset: u64) -> Result<()> {
        self.file.read_exact_at(buf, offset).map_err(|error| errno(&error))
    }

    fn write_at(&self, buf: &[u8], offset: u64) -> Result<()> {
        self.file.write_all_at(buf, offset).map_err(|error| errno(&error))
    }

    fn flush(&self) -> Result<()> {
        fdatasync(&self.file)
    }

    fn discard(&self, offset: u64, len: u64) -> Result<()> {
        if !self.is_device {
            return change_extent(&self.file, FallocateFlags::FALLOC_FL_PUNCH_HOLE, offset, len);
        }
        let whole = self.whole_sectors(offset, len);
        if whole.is_empty() {
            Ok(())
        } else {
            ioctls::discard(&self.file, whole.start, whole.end - whole.start)
        }
    }

    fn write_zeroes(&self, offset: u64, len: u64) -> Result<()> {
        if self.is_device {
            let aligned = self.whole_sectors(offset, len) == (offset..offset + len);
            return if aligned { ioctls::zero_out(&self.file, offset, len) } else { Err(Errno::EOPNOTSUPP) };
        }
        // What is a hole stays one: a sparse image is not filled up by zeros.
        let end = offset + len;
        let mut at = offset;
        while let Some(data) = self.next_data(at)?.filter(|data| data.start < end) {
            let stop = data.end.min(end);
            self.zero_extent(data.start, stop - data.start)?;
            at = stop;
        }
        Ok(())
    }

    /// `SEEK_DATA` moves the position of the file, which nothing else here uses.
    fn next_data(&self, offset: u64) -> Result<Option<Range<u64>>> {
        let size = self.geometry.size;
        let rest = || (offset < size).then_some(offset..size);
        let Ok(from) = i64::try_from(offset) else { return Ok(None) };
        let start = match lseek(&self.file, from, Whence::SeekData) {
            Ok(start) => start,
            Err(Errno::ENXIO) => return Ok(None),
            // A block device, or a filesystem that does not know its holes.
            Err(Errno::EINVAL | Errno::EOPNOTSUPP) => return Ok(rest()),
            Err(error) => return Err(error),
        };
        let end = match lseek(&self.file, start, Whence::SeekHole) {
            Ok(end) => end as u64,
            // Cut short, or punched, between the two calls.
            Err(Errno::ENXIO) => return Ok(rest()),
            Err(error) => return Err(error),
        };
        Ok(Some(start as u64..end.min(size)).filter(|range| !range.is_empty()))
    }

    fn backing(&self) -> Option<(BorrowedFd<'_>, u64)> {
        Some((self.file.as_fd(), 0))
    }
}

/// `fallocate(2)` without a change of size.
fn change_extent(file: &File, how: FallocateFlags, offset: u64, len: u64) -> Result<()> {
    let signed = |bytes: u64| i64::try_from(bytes).map_err(|_| Errno::EFBIG);
    let flags = how | FallocateFlags::FALLOC_FL_KEEP_SIZE;
    loop {
        match fallocate(file, flags, signed(offset)?, signed(len)?) {
            Err(Errno::EINTR) => {}
            done => return done,
        }
    }
}
