//! The ioctls of block devices (`linux/fs.h`, `linux/hdreg.h`, `linux/blkpg.h`): a request number and the bytes of its argument
//! become the bytes that the caller gets back, or an errno. What is unknown gives `ENOTTY`, as Linux has it.
//!
//! Most of these numbers encode no size, so [`ioctl_shape`] tells a host how many bytes to fetch and to bring. BLKPG's argument holds
//! a pointer; the host fetches what it points at and puts it behind the argument.

use veduta_api::{Errno, Ioctl, Result};

use crate::block::{BlockFile, Extent, WHOLE};

const BLKROSET: u32 = 0x125d;
const BLKROGET: u32 = 0x125e;
const BLKRRPART: u32 = 0x125f;
const BLKGETSIZE: u32 = 0x1260;
const BLKFLSBUF: u32 = 0x1261;
const BLKRASET: u32 = 0x1262;
const BLKRAGET: u32 = 0x1263;
const BLKFRASET: u32 = 0x1264;
const BLKFRAGET: u32 = 0x1265;
const BLKSECTGET: u32 = 0x1267;
const BLKSSZGET: u32 = 0x1268;
const BLKPG: u32 = 0x1269;
const BLKBSZGET: u32 = 0x8008_1270;
const BLKBSZSET: u32 = 0x4008_1271;
const BLKGETSIZE64: u32 = 0x8008_1272;
const BLKDISCARD: u32 = 0x1277;
const BLKIOMIN: u32 = 0x1278;
const BLKIOOPT: u32 = 0x1279;
const BLKALIGNOFF: u32 = 0x127a;
const BLKPBSZGET: u32 = 0x127b;
const BLKDISCARDZEROES: u32 = 0x127c;
const BLKSECDISCARD: u32 = 0x127d;
const BLKROTATIONAL: u32 = 0x127e;
const BLKZEROOUT: u32 = 0x127f;
const BLKGETDISKSEQ: u32 = 0x8008_1280;
const HDIO_GETGEO: u32 = 0x0301;
const CDROM_GET_CAPABILITY: u32 = 0x5331;

/// Bytes of `struct blkpg_ioctl_arg` and `struct blkpg_partition` on a 64-bit machine, and where the former has its pointer.
const BLKPG_ARG: usize = 24;
const BLKPG_PARTITION: usize = 152;
const BLKPG_POINTER: usize = 16;

/// What a host moves for an ioctl.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct IoctlShape {
    /// Bytes to fetch from where the argument points.
    pub input: usize,
    /// Bytes to bring there afterwards.
    pub output: usize,
    /// At this offset of what was fetched is a pointer; so many bytes from there go behind it in [`Ioctl::input`].
    pub follow: Option<(usize, usize)>,
}

/// The shape of an ioctl of block devices; `None` for all others. One that passes its argument by value moves nothing.
pub fn ioctl_shape(command: u32) -> Option<IoctlShape> {
    let input = |input| IoctlShape { input, ..IoctlShape::default() };
    let output = |output| IoctlShape { output, ..IoctlShape::default() };
    Some(match command {
        BLKROSET => input(4),
        BLKBSZSET => input(8),
        BLKDISCARD | BLKSECDISCARD | BLKZEROOUT => input(16),
        BLKPG => IoctlShape { input: BLKPG_ARG, output: 0, follow: Some((BLKPG_POINTER, BLKPG_PARTITION)) },
        BLKRRPART | BLKFLSBUF | BLKRASET | BLKFRASET | CDROM_GET_CAPABILITY => IoctlShape::default(),
        BLKSECTGET | BLKROTATIONAL => output(2),
        BLKROGET | BLKSSZGET | BLKIOMIN | BLKIOOPT | BLKALIGNOFF | BLKPBSZGET | BLKDISCARDZEROES
        | BLKBSZGET => output(4),
        BLKGETSIZE | BLKRAGET | BLKFRAGET | BLKGETSIZE64 | BLKGETDISKSEQ => output(8),
        HDIO_GETGEO => output(16),
        _ => return None,
    })
}

/// Answers an ioctl on an open block device.
pub(crate) fn answer(file: &BlockFile, ioctl: &mut Ioctl<'_>) -> Result<i32> {
    let (drive, disk, number) = (file.drive(), file.disk(), file.number());
    let geometry = disk.geometry();
    let settings = drive.settings(number);
    match ioctl.command {
        BLKGETSIZE64 => put(ioctl, &disk.size().to_ne_bytes()),
        BLKGETSIZE => put(ioctl, &(disk.size() / 512).to_ne_bytes()),
        BLKSSZGET => put(ioctl, &geometry.logical_sector.to_ne_bytes()),
        BLKPBSZGET | BLKIOMIN => put(ioctl, &geometry.physical_sector.to_ne_bytes()),
        BLKIOOPT => put(ioctl, &geometry.optimal_io.to_ne_bytes()),
        BLKALIGNOFF => {
            let physical = u64::from(geometry.physical_sector);
            let off = (physical - drive.offset(number) % physical) % physical;
            put(ioctl, &(off as u32).to_ne_bytes())
        }
        BLKROGET => put(ioctl, &u32::from(geometry.read_only || settings.read_only).to_ne_bytes()),
        BLKROSET => {
            let read_only = i32::from_ne_bytes(take(ioctl)?) != 0;
            if geometry.read_only && !read_only {
                return Err(Errno::EROFS);
            }
            drive.set(number, |settings| settings.read_only = read_only);
            Ok(0)
        }
        BLKRAGET | BLKFRAGET => put(ioctl, &settings.readahead.to_ne_bytes()),
        BLKRASET | BLKFRASET => {
            let sectors = ioctl.argument;
            drive.set(number, |settings| settings.readahead = sectors);
            Ok(0)
        }
        BLKBSZGET => put(ioctl, &settings.block.to_ne_bytes()),
        BLKBSZSET => {
            let block = u32::from_ne_bytes(take(ioctl)?);
            if !(512..=65536).contains(&block) || !block.is_power_of_two() || block < geometry.logical_sector
            {
                return Err(Errno::EINVAL);
            }
            drive.set(number, |settings| settings.block = block);
            Ok(0)
        }
        // 1280 sectors, the kernel's own limit of a request.
        BLKSECTGET => put(ioctl, &1280_u16.to_ne_bytes()),
        BLKFLSBUF => disk.flush().map(|()| 0),
        BLKRRPART if number == WHOLE => drive.reread().map(|()| 0),
        BLKRRPART => Err(Errno::EINVAL),
        BLKPG => partition(file, ioctl),
        BLKDISCARD => {
            let (offset, len) = range(file, ioctl)?;
            match disk.discard(offset, len) {
                Err(Errno::EOPNOTSUPP) => Err(Errno::EOPNOTSUPP),
                done => done.map(|()| 0),
            }
        }
        BLKZEROOUT => {
            let (offset, len) = range(file, ioctl)?;
            disk.write_zeroes(offset, len).map(|()| 0)
        }
        BLKSECDISCARD => Err(Errno::EOPNOTSUPP),
        BLKDISCARDZEROES => put(ioctl, &0_u32.to_ne_bytes()),
        BLKROTATIONAL => put(ioctl, &u16::from(geometry.rotational).to_ne_bytes()),
        BLKGETDISKSEQ => put(ioctl, &drive.sequence.to_ne_bytes()),
        HDIO_GETGEO => put(ioctl, &geometry_bytes(disk.size(), drive.offset(number))),
        // CDROM_GET_CAPABILITY among them: this is no CD drive.
        _ => Err(Errno::ENOTTY),
    }
}

/// A caller without room for the answer asked through something that moves only what the number encodes.
fn put(ioctl: &mut Ioctl<'_>, bytes: &[u8]) -> Result<i32> {
    ioctl.output.get_mut(..bytes.len()).ok_or(Errno::ENOTTY)?.copy_from_slice(bytes);
    Ok(0)
}

fn take<const N: usize>(ioctl: &Ioctl<'_>) -> Result<[u8; N]> {
    ioctl.input.first_chunk().copied().ok_or(Errno::ENOTTY)
}

/// Two 64-bit numbers: a range of the device, in whole sectors.
fn range(file: &BlockFile, ioctl: &Ioctl<'_>) -> Result<(u64, u64)> {
    let bytes: [u8; 16] = take(ioctl)?;
    file.changing()?;
    let (offset, len) = (number(&bytes, 0), number(&bytes, 8));
    let sector = u64::from(file.disk().geometry().logical_sector);
    let end = offset.checked_add(len).ok_or(Errno::EINVAL)?;
    if offset % sector != 0 || len % sector != 0 || len == 0 || end > file.disk().size() {
        return Err(Errno::EINVAL);
    }
    Ok((offset, len))
}

/// `at` is a constant of a layout that the caller holds whole.
fn number(bytes: &[u8], at: usize) -> u64 {
    let mut eight = [0; 8];
    eight.copy_from_slice(&bytes[at..at + 8]);
    u64::from_ne_bytes(eight)
}

/// `struct hd_geometry`: heads, sectors, cylinders in 16 bits, then the start in sectors. The shape that fdisk and the kernel give a disk
/// without one: 255 heads of 63 sectors; up to 504 MiB, 16 heads, with 16 sectors on the smallest.
fn geometry_bytes(size: u64, offset: u64) -> [u8; 16] {
    let sectors = size / 512;
    let (heads, per_track): (u8, u8) = match sectors {
        0..=65_536 => (16, 16),
        65_537..=1_032_192 => (16, 63),
        _ => (255, 63),
    };
    let cylinders = sectors / (u64::from(heads) * u64::from(per_track));
    let mut bytes = [0; 16];
    bytes[0] = heads;
    bytes[1] = per_track;
    bytes[2..4].copy_from_slice(&(cylinders.min(65_535) as u16).to_ne_bytes());
    bytes[8..].copy_from_slice(&(offset / 512).to_ne_bytes());
    bytes
}

/// BLKPG: adds, deletes or resizes one partition, without a look at the table.
fn partition(file: &BlockFile, ioctl: &Ioctl<'_>) -> Result<i32> {
    if ioctl.input.len() < BLKPG_ARG + BLKPG_PARTITION {
        return Err(Errno::ENOTTY);
    }
    if file.number() != WHOLE {
        return Err(Errno::EINVAL);
    }
    let (argument, record) = ioctl.input.split_at(BLKPG_ARG);
    let operation = number(argument, 0) as u32;
    let (offset, size) = (number(record, 0), number(record, 8));
    let one = number(record, 16) as u32;
    let sector = u64::from(file.disk().geometry().logical_sector);
    if operation != 2 && (offset % sector != 0 || size % sector != 0) {
        return Err(Errno::EINVAL);
    }
    let extent = Extent { offset, size };
    match operation {
        1 => file.drive().add(one, extent)?,
        2 => file.drive().delete(one)?,
        3 => file.drive().resize(one, extent)?,
        _ => return Err(Errno::EINVAL),
    }
    Ok(0)
}
