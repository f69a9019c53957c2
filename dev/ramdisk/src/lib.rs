//! `ramdisk`: a disk in memory, gone with its mount.
//!
//! The memory is an unnamed file of the kernel's own (`memfd_create(2)`), used as any other raw image: it takes up what was written,
//! and what is discarded or zeroed is given back. It also is a real descriptor, so a host may hand it to the kernel.
//!
//! # Limits
//!
//! No more than memory and swap hold: a write that finds none left gives `ENOSPC`, or the kernel ends somebody, as with a tmpfs.

#![forbid(unsafe_code)]

use std::fs::File;
use std::sync::Arc;

use nix::sys::memfd::{MFdFlags, memfd_create};
use veduta_api::{
    DeviceNode, Disk, Errno, Module, MountError, Object, OptionSpec, Request, Result, SourceKind,
};
use veduta_disk::RawDisk;
use veduta_mbr::{PartitionedDisk, take_sector};

/// Bytes; as large as it is without `size=`.
const DEFAULT_SIZE: u64 = 64 << 20;

/// The type `ramdisk`.
pub struct Ramdisk;

impl Module for Ramdisk {
    fn name(&self) -> &'static str {
        "ramdisk"
    }

    fn aliases(&self) -> &'static [&'static str] {
        &["umdevramdisk", "vudevramdisk"]
    }

    fn summary(&self) -> &'static str {
        "a disk in memory"
    }

    fn source(&self) -> SourceKind {
        SourceKind::None
    }

    fn writable(&self) -> bool {
        true
    }

    fn options(&self) -> &'static [OptionSpec] {
        const {
            &[
                OptionSpec::with_value(
                    "size",
                    "BYTES",
                    "How large it is; K, M, G or T may follow. 64M if not given.",
                ),
                OptionSpec::flag(
                    "mbr",
                    "Begin with an empty partition table, and show the partitions that somebody makes.",
                ),
                OptionSpec::with_value(
                    "sector",
                    "BYTES",
                    "Its sectors: 512 (the default), 1024, 2048 or 4096 bytes.",
                ),
                DeviceNode::OPTIONS[0],
                DeviceNode::OPTIONS[1],
                DeviceNode::OPTIONS[2],
                DeviceNode::OPTIONS[3],
                DeviceNode::OPTIONS[4],
            ]
        }
    }

    fn manual(&self) -> &'static str {
        "All zeros at first, and gone with the mount. It takes up memory for what was written only, and gives it back for what is \
         discarded: a disk of 1T costs nothing until it is used.\n\n\
         umdevramdisk -o size=64M none DIR; mkfs.ext4 DIR/disk\n\n\
         With `mbr`, fdisk on `disk` makes partitions appear beside it."
    }

    fn mount(&self, request: &mut Request<'_>) -> Result<Object, MountError> {
        let size = request.options.take_bytes("size")?.unwrap_or(DEFAULT_SIZE);
        let with_partitions = request.options.take_flag("mbr")?;
        let sector = take_sector(&mut request.options)?;
        if size < 512 {
            return Err(MountError::usage("option size: expected 512 bytes or more"));
        }
        let disk = disk(size, sector).map_err(|errno| {
            MountError::system(errno, format!("no memory of {size} bytes can be set up: {}", errno.desc()))
        })?;
        if !with_partitions {
            return Ok(Object::Disk(Arc::new(disk)));
        }
        // The mark of a boot sector: an empty table, so that fdisk has nothing to wonder about.
        disk.write_at(&[0x55, 0xaa], 510).map_err(|errno| MountError::system(errno, errno.desc()))?;
        Ok(Object::Disk(Arc::new(PartitionedDisk::open(disk, sector)?)))
    }
}

/// A disk of `size` zeros.
pub fn disk(size: u64, sector: Option<u32>) -> Result<Disk> {
    let memory = File::from(memfd_create("ramdisk", MFdFlags::MFD_CLOEXEC)?);
    memory.set_len(size).map_err(|error| error.raw_os_error().map_or(Errno::EIO, Errno::from_raw))?;
    let mut raw = RawDisk::new(memory, true)?;
    if let Some(sector) = sector {
        raw = raw.with_sector(sector);
    }
    Ok(Disk::new(Arc::new(raw), "ramdisk"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn used(disk: &Disk) -> u64 {
        let (fd, _) = disk.backing().unwrap();
        nix::sys::stat::fstat(fd).unwrap().st_blocks as u64 * 512
    }

    #[test]
    fn what_is_discarded_gives_its_memory_back() {
        let disk = disk(1 << 40, None).unwrap();
        disk.write_at(&[1; 1 << 20], 1 << 39).unwrap();
        assert!((1 << 20..4 << 20).contains(&used(&disk)));
        assert_eq!(disk.read_vec((1 << 39) + 5, 2), Ok(vec![1, 1]));
        disk.discard(1 << 39, 1 << 20).unwrap();
        assert_eq!(used(&disk), 0);
        assert_eq!(disk.read_vec((1 << 39) + 5, 2), Ok(vec![0, 0]));
        assert_eq!(disk.next_data(0), Ok(None));
    }

    #[test]
    fn zeros_take_no_memory() {
        let disk = disk(1 << 30, Some(4096)).unwrap();
        disk.write_at(&[1; 8192], 4096).unwrap();
        disk.write_zeroes(0, 1 << 30).unwrap();
        assert_eq!((used(&disk), disk.geometry().logical_sector), (0, 4096));
    }
}
