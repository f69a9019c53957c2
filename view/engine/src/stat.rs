//! Attributes in the forms in which calls return them.

use nix::libc;
use veduta_api::{Attr, FileFlags, StatFs, Timestamp};

use crate::mounts::Mount;

/// A structure that is filled field by field, at offsets of the architecture's ABI.
struct Fields(Vec<u8>);

impl Fields {
    fn u16(&mut self, at: usize, value: u16) {
        self.0[at..at + 2].copy_from_slice(&value.to_ne_bytes());
    }
    fn u32(&mut self, at: usize, value: u32) {
        self.0[at..at + 4].copy_from_slice(&value.to_ne_bytes());
    }
    fn u64(&mut self, at: usize, value: u64) {
        self.0[at..at + 8].copy_from_slice(&value.to_ne_bytes());
    }
    fn time(&mut self, at: usize, time: Timestamp) {
        self.u64(at, time.seconds as u64);
        self.u64(at + 8, time.nanos.into());
    }
    /// `struct statx_timestamp`
    fn statx_time(&mut self, at: usize, time: Timestamp) {
        self.u64(at, time.seconds as u64);
        self.u32(at + 8, time.nanos);
    }
}

/// The device that a node is shown on.
pub(crate) fn device(mount: &Mount, attr: &Attr) -> u64 {
    on(mount.device(), attr)
}

fn on(device: u64, attr: &Attr) -> u64 {
    attr.st_dev.map_or(device, |device| libc::makedev(device.major, device.minor))
}

fn rdev(attr: &Attr) -> u64 {
    libc::makedev(attr.rdev.major, attr.rdev.minor)
}

/// `struct stat`
pub(crate) fn stat(mount: &Mount, attr: &Attr) -> Vec<u8> {
    stat_on(mount.device(), attr)
}

/// `struct stat` of a node of a mount with this device number.
#[cfg(target_arch = "x86_64")]
pub(crate) fn stat_on(device: u64, attr: &Attr) -> Vec<u8> {
    let mut fields = Fields(vec![0; 144]);
    fields.u64(0, on(device, attr));
    fields.u64(8, attr.st_ino);
    fields.u64(16, attr.nlink.into());
    fields.u32(24, attr.mode());
    fields.u32(28, attr.uid);
    fields.u32(32, attr.gid);
    fields.u64(40, rdev(attr));
    fields.u64(48, attr.size);
    fields.u64(56, attr.blksize.into());
    fields.u64(64, attr.blocks);
    fields.time(72, attr.atime);
    fields.time(88, attr.mtime);
    fields.time(104, attr.ctime);
    fields.0
}

/// `struct stat` of a node of a mount with this device number.
#[cfg(target_arch = "aarch64")]
pub(crate) fn stat_on(device: u64, attr: &Attr) -> Vec<u8> {
    let mut fields = Fields(vec![0; 128]);
    fields.u64(0, on(device, attr));
    fields.u64(8, attr.st_ino);
    fields.u32(16, attr.mode());
    fields.u32(20, attr.nlink);
    fields.u32(24, attr.uid);
    fields.u32(28, attr.gid);
    fields.u64(32, rdev(attr));
    fields.u64(48, attr.size);
    fields.u32(56, attr.blksize);
    fields.u64(64, attr.blocks);
    fields.time(72, attr.atime);
    fields.time(88, attr.mtime);
    fields.time(104, attr.ctime);
    fields.0
}

/// `struct statx`
pub(crate) fn statx(mount: &Mount, attr: &Attr, is_mount_root: bool) -> Vec<u8> {
    const BASIC: u32 = 0x7ff;
    const BTIME: u32 = 0x800;
    const MOUNT_ID: u32 = 0x1000;
    const ATTRIBUTE_MOUNT_ROOT: u64 = 0x2000;
    let mut fields = Fields(vec![0; 256]);
    fields.u32(0, BASIC | MOUNT_ID | if attr.btime.is_some() { BTIME } else { 0 });
    fields.u32(4, attr.blksize);
    fields.u64(8, attributes(attr.flags) | if is_mount_root { ATTRIBUTE_MOUNT_ROOT } else { 0 });
    fields.u32(16, attr.nlink);
    fields.u32(20, attr.uid);
    fields.u32(24, attr.gid);
    fields.u16(28, attr.mode() as u16);
    fields.u64(32, attr.st_ino);
    fields.u64(40, attr.size);
    fields.u64(48, attr.blocks);
    fields.u64(56, 0x187e | ATTRIBUTE_MOUNT_ROOT);
    fields.statx_time(64, attr.atime);
    fields.statx_time(80, attr.btime.unwrap_or_default());
    fields.statx_time(96, attr.ctime);
    fields.statx_time(112, attr.mtime);
    fields.u32(128, attr.rdev.major);
    fields.u32(132, attr.rdev.minor);
    let dev = device(mount, attr);
    fields.u32(136, libc::major(dev));
    fields.u32(140, libc::minor(dev));
    fields.u64(144, crate::proc::mount_id(mount).into());
    fields.0
}

fn attributes(flags: FileFlags) -> u64 {
    let bit = |set, bit| if set { bit } else { 0 };
    bit(flags.compressed, 0x4)
        | bit(flags.immutable, 0x10)
        | bit(flags.append_only, 0x20)
        | bit(flags.no_dump, 0x40)
        | bit(flags.encrypted, 0x800)
        | bit(flags.verity, 0x10_0000)
}

/// `struct statfs`, the same on both architectures.
pub(crate) fn statfs(mount: &Mount, statfs: &StatFs) -> Vec<u8> {
    const VALID: u64 = 0x20;
    const READ_ONLY: u64 = 1;
    const NO_SET_ID: u64 = 2;
    const NO_DEVICES: u64 = 4;
    let mut fields = Fields(vec![0; 120]);
    fields.u64(0, statfs.magic.into());
    fields.u64(8, statfs.block_size.into());
    fields.u64(16, statfs.blocks);
    fields.u64(24, statfs.blocks_free);
    fields.u64(32, statfs.blocks_available);
    fields.u64(40, statfs.files);
    fields.u64(48, statfs.files_free);
    fields.u64(56, statfs.id);
    fields.u64(64, mount.facts.name_max.into());
    fields.u64(72, statfs.block_size.into());
    let read_only = if mount.is_read_only() { READ_ONLY } else { 0 };
    let restricted = if mount.is_itself { 0 } else { NO_SET_ID | NO_DEVICES };
    fields.u64(80, VALID | restricted | read_only);
    fields.0
}
