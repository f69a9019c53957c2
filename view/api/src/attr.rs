//! Attributes of a node: what `stat(2)` and `statx(2)` show, and what `chmod`, `chown`, `utimensat` and
//! `truncate` change.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// The number of a node within its tree: what a host names nodes by, as the kernel does. Hard links,
/// renames and open-but-deleted files then have one meaning. The root is 1; 0 names nothing.
///
/// It is not the `st_ino` that users see, which is [`Attr::st_ino`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Ino(pub u64);

impl Ino {
    /// The root of every tree.
    pub const ROOT: Ino = Ino(1);
}

/// The type of a node: the `S_IFMT` part of a mode.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Kind {
    /// `S_IFREG`
    File,
    /// `S_IFDIR`
    Directory,
    /// `S_IFLNK`
    Symlink,
    /// `S_IFCHR`
    CharDevice,
    /// `S_IFBLK`
    BlockDevice,
    /// `S_IFIFO`
    Fifo,
    /// `S_IFSOCK`
    Socket,
}

impl Kind {
    /// The type in the high bits of an `st_mode`; `None` if they name no type of Linux.
    pub fn from_mode(mode: u32) -> Option<Self> {
        Some(match mode & 0o170_000 {
            0o100_000 => Kind::File,
            0o040_000 => Kind::Directory,
            0o120_000 => Kind::Symlink,
            0o020_000 => Kind::CharDevice,
            0o060_000 => Kind::BlockDevice,
            0o010_000 => Kind::Fifo,
            0o140_000 => Kind::Socket,
            _ => return None,
        })
    }

    /// The `S_IFMT` bits.
    pub fn mode_bits(self) -> u32 {
        match self {
            Kind::File => 0o100_000,
            Kind::Directory => 0o040_000,
            Kind::Symlink => 0o120_000,
            Kind::CharDevice => 0o020_000,
            Kind::BlockDevice => 0o060_000,
            Kind::Fifo => 0o010_000,
            Kind::Socket => 0o140_000,
        }
    }

    /// The letter that `ls -l` shows first.
    pub fn letter(self) -> char {
        match self {
            Kind::File => '-',
            Kind::Directory => 'd',
            Kind::Symlink => 'l',
            Kind::CharDevice => 'c',
            Kind::BlockDevice => 'b',
            Kind::Fifo => 'p',
            Kind::Socket => 's',
        }
    }
}

/// Permission bits: the low twelve of a mode, with set-user-id, set-group-id and sticky.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Perm(u16);

impl Perm {
    /// Keeps the low twelve bits of a mode.
    pub const fn from_mode(mode: u32) -> Self {
        Perm((mode & 0o7777) as u16)
    }

    /// The twelve bits.
    pub const fn bits(self) -> u32 {
        self.0 as u32
    }
}

/// A device number, as two parts that no encoding has squeezed yet.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Device {
    /// 12 bits in Linux.
    pub major: u32,
    /// 20 bits in Linux.
    pub minor: u32,
}

impl Device {
    /// From the 32-bit form of the kernel (`new_encode_dev`), which ext4 and FUSE use.
    pub fn from_linux(encoded: u32) -> Self {
        Self { major: (encoded >> 8) & 0xfff, minor: (encoded & 0xff) | ((encoded >> 12) & 0xfff00) }
    }

    /// The 32-bit form of the kernel. Bits that it has no room for are cut.
    pub fn to_linux(self) -> u32 {
        (self.minor & 0xff) | ((self.major & 0xfff) << 8) | ((self.minor & 0xfff00) << 12)
    }
}

/// A moment: seconds since 1970 (negative before), and nanoseconds forward from there.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Timestamp {
    /// Seconds since the epoch, UTC.
    pub seconds: i64,
    /// 0 to 999,999,999; counts forward also before the epoch.
    pub nanos: u32,
}

impl Timestamp {
    /// A whole second.
    pub fn from_seconds(seconds: i64) -> Self {
        Self { seconds, nanos: 0 }
    }

    /// Now.
    pub fn now() -> Self {
        SystemTime::now().into()
    }
}

impl From<SystemTime> for Timestamp {
    fn from(time: SystemTime) -> Self {
        match time.duration_since(UNIX_EPOCH) {
            Ok(after) => Self { seconds: after.as_secs() as i64, nanos: after.subsec_nanos() },
            Err(before) => {
                let before = before.duration();
                let borrow = i64::from(before.subsec_nanos() > 0);
                let nanos = (1_000_000_000 - before.subsec_nanos()) % 1_000_000_000;
                Self { seconds: -(before.as_secs() as i64) - borrow, nanos }
            }
        }
    }
}

impl From<Timestamp> for SystemTime {
    /// Moments that [`SystemTime`] cannot hold become the epoch.
    fn from(time: Timestamp) -> Self {
        let whole = Duration::from_secs(time.seconds.unsigned_abs());
        let base =
            if time.seconds >= 0 { UNIX_EPOCH.checked_add(whole) } else { UNIX_EPOCH.checked_sub(whole) };
        base.and_then(|base| base.checked_add(Duration::from_nanos(time.nanos.into()))).unwrap_or(UNIX_EPOCH)
    }
}

/// Flags of a node: the part of `FS_IOC_GETFLAGS` and `stx_attributes` that has a meaning for every tree.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct FileFlags {
    /// `chattr +i`: nothing about the node may change. The host enforces it.
    pub immutable: bool,
    /// `chattr +a`: opened for writing only to append. The host enforces it.
    pub append_only: bool,
    /// `chattr +d`: `dump(8)` leaves it out.
    pub no_dump: bool,
    /// The content is stored compressed.
    pub compressed: bool,
    /// The content is encrypted, and a key is needed to read it.
    pub encrypted: bool,
    /// The content is protected by fs-verity.
    pub verity: bool,
}

/// Everything that `statx(2)` shows of a node. All honest: what a format does not store is what the
/// driver's options say, never invented per call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Attr {
    /// What users see as the inode number. The format's own, if it has one (ext2 shows its root as 2).
    pub st_ino: u64,
    /// The device that users see the node on; `None` for the number that the host gives to the mount. For trees that show
    /// files of others, and hand out their descriptors ([`File::backing`](crate::File::backing)): `fstat(2)` then agrees.
    pub st_dev: Option<Device>,
    /// The type.
    pub kind: Kind,
    /// The permission bits.
    pub perm: Perm,
    /// Names that lead to the node; for a directory, 2 plus its subdirectories, or 1 if not counted.
    pub nlink: u32,
    /// The owner.
    pub uid: u32,
    /// The group.
    pub gid: u32,
    /// What device a device node stands for; zero for everything else.
    pub rdev: Device,
    /// Bytes of content. For a symbolic link, the length of its target.
    pub size: u64,
    /// Sectors of 512 bytes that the content takes up.
    pub blocks: u64,
    /// Bytes; the unit in which reads and writes go best.
    pub blksize: u32,
    /// Last read.
    pub atime: Timestamp,
    /// Last change of content.
    pub mtime: Timestamp,
    /// Last change of content or attributes.
    pub ctime: Timestamp,
    /// Birth, where the format stores it.
    pub btime: Option<Timestamp>,
    /// The flags.
    pub flags: FileFlags,
}

impl Attr {
    /// A node with one name, owned by root, of size 0 and from 1970: set what differs.
    pub fn new(st_ino: u64, kind: Kind, perm: Perm) -> Self {
        Self {
            st_ino,
            st_dev: None,
            kind,
            perm,
            nlink: 1,
            uid: 0,
            gid: 0,
            rdev: Device::default(),
            size: 0,
            blocks: 0,
            blksize: 4096,
            atime: Timestamp::default(),
            mtime: Timestamp::default(),
            ctime: Timestamp::default(),
            btime: None,
            flags: FileFlags::default(),
        }
    }

    /// Type and permission bits together: `st_mode`.
    pub fn mode(&self) -> u32 {
        self.kind.mode_bits() | self.perm.bits()
    }
}

/// A new node: what its creator wants it to be. The host has chosen owner and group, the group and
/// set-group-id inherited from a set-group-id directory included.
#[derive(Clone, Copy, Debug)]
pub struct NewNode {
    /// The type. [`Kind::Directory`] comes only through `mkdir`, [`Kind::Symlink`] only through `symlink`.
    pub kind: Kind,
    /// As the caller gave it, before the umask.
    pub perm: Perm,
    /// The caller's umask. A tree with default ACLs needs both; all others take [`masked`](Self::masked).
    pub umask: u32,
    /// The owner to be.
    pub uid: u32,
    /// The group to be.
    pub gid: u32,
    /// For device nodes.
    pub rdev: Device,
}

impl NewNode {
    /// The permission bits with the umask applied.
    pub fn masked(&self) -> Perm {
        Perm::from_mode(self.perm.bits() & !(self.umask & 0o777))
    }
}

/// A time to set: `utimensat(2)`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SetTime {
    /// To this moment.
    To(Timestamp),
    /// To the moment of the change.
    Now,
}

/// Changes to attributes, all at once or none. What is `None` stays. The host has checked that the
/// caller may; the driver sets ctime.
#[derive(Clone, Copy, Debug, Default)]
pub struct SetAttr {
    /// `chmod`
    pub perm: Option<Perm>,
    /// `chown`
    pub uid: Option<u32>,
    /// `chgrp`
    pub gid: Option<u32>,
    /// `truncate`, both ways. New bytes read as zeros.
    pub size: Option<u64>,
    /// `utimensat`
    pub atime: Option<SetTime>,
    /// `utimensat`
    pub mtime: Option<SetTime>,
    /// Only from a host that restores a tree, or from a kernel that keeps times itself (writeback cache).
    pub ctime: Option<Timestamp>,
    /// `FS_IOC_SETFLAGS`
    pub flags: Option<FileFlags>,
    /// Drops set-user-id, and set-group-id where the group may execute, with the same change: for writes,
    /// truncation and `chown` by those who may not keep them.
    pub drop_set_id: bool,
}

/// What `statfs(2)` shows of a tree.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct StatFs {
    /// Bytes; the unit of the three block counts.
    pub block_size: u32,
    /// Blocks in all.
    pub blocks: u64,
    /// Blocks free.
    pub blocks_free: u64,
    /// Blocks free for those who are not root.
    pub blocks_available: u64,
    /// Nodes in all; 0 where the format has no such limit.
    pub files: u64,
    /// Nodes free.
    pub files_free: u64,
    /// `f_type`: the magic number of the kernel's own driver (`linux/magic.h`), 0 if there is none.
    pub magic: u32,
    /// `f_fsid`
    pub id: u64,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_time_before_1970_survives_both_ways() {
        for time in [
            Timestamp { seconds: -1, nanos: 999_999_999 },
            Timestamp { seconds: -2_177_452_800, nanos: 1 },
            Timestamp::from_seconds(-5),
            Timestamp { seconds: 13_569_465_600, nanos: 5 },
        ] {
            assert_eq!(Timestamp::from(SystemTime::from(time)), time);
        }
    }

    #[test]
    fn a_device_number_survives_the_kernels_encoding() {
        for device in [Device { major: 259, minor: 70_000 }, Device { major: 4095, minor: 0xfffff }] {
            assert_eq!(Device::from_linux(device.to_linux()), device);
        }
        assert_eq!(Device { major: 1, minor: 3 }.to_linux(), 0x103);
    }

    #[test]
    fn every_kind_is_found_in_its_own_mode() {
        for kind in [
            Kind::File,
            Kind::Directory,
            Kind::Symlink,
            Kind::CharDevice,
            Kind::BlockDevice,
            Kind::Fifo,
            Kind::Socket,
        ] {
            assert_eq!(Kind::from_mode(kind.mode_bits() | 0o7777), Some(kind));
        }
        assert_eq!(Kind::from_mode(0o777), None);
    }
}
