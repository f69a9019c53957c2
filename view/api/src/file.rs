//! An open file: what stands behind an open file description.

use std::os::fd::BorrowedFd;
use std::task::Waker;

use crate::{Errno, Result};

/// An open regular file (or another node whose content a tree serves, such as an info file). Made by
/// [`Filesystem::open`](crate::Filesystem::open) and [`create`](crate::Filesystem::create); dropping it closes it.
///
/// One open file may serve many descriptors and many threads at once. There is no position: the host
/// keeps it, and knows the end of the file for `O_APPEND`.
pub trait File: Send + Sync {
    /// Fills `buf` from `offset` and says how much there was: less than asked only at the end of the file, 0
    /// at or past it. Holes read as zeros.
    fn read_at(&self, buf: &mut [u8], offset: u64) -> Result<usize>;

    /// Writes at `offset`, and says how much; short only if the space ran out part of the way. A gap between
    /// the old end and `offset` reads as zeros.
    fn write_at(&self, buf: &[u8], offset: u64) -> Result<usize> {
        let _ = (buf, offset);
        Err(Errno::EROFS)
    }

    /// A descriptor for this file was closed: the last chance to report an error of a write that was put off.
    /// May come several times, and does not mean that data must reach the disk.
    fn flush(&self) -> Result<()> {
        Ok(())
    }

    /// Returns when the content is on stable storage; the attributes too, unless `data_only`.
    /// A tree that cannot change has nothing to do, and may say so; every other implements this.
    fn sync(&self, data_only: bool) -> Result<()> {
        let _ = data_only;
        Err(Errno::EOPNOTSUPP)
    }

    /// `fallocate(2)`.
    fn allocate(&self, how: Allocate, offset: u64, len: u64) -> Result<()> {
        let _ = (how, offset, len);
        Err(Errno::EOPNOTSUPP)
    }

    /// `lseek(2)` with `SEEK_DATA` or `SEEK_HOLE`: the first offset at or after the given one that is in data, or in a
    /// hole. The end of the file counts as a hole. `ENXIO` if the offset is at or past the end, or if only a hole
    /// follows and data is sought. On `EOPNOTSUPP` the host answers as if the file were all data.
    fn seek(&self, what: Seek, offset: u64) -> Result<u64> {
        let _ = (what, offset);
        Err(Errno::EOPNOTSUPP)
    }

    /// `ioctl(2)`: the value that the call returns. `ENOTTY` for a request that the file does not know.
    fn ioctl(&self, ioctl: &mut Ioctl<'_>) -> Result<i32> {
        let _ = ioctl;
        Err(Errno::ENOTTY)
    }

    /// What can be done without waiting, of `interest`. If nothing can and a waker is given, it is kept, and woken
    /// once when that may have changed. An ordinary file is always ready.
    fn ready(&self, interest: Ready, waker: Option<&Waker>) -> Result<Ready> {
        let _ = waker;
        Ok(interest)
    }

    /// Takes, tests or releases a lock that other machines see; asked only if [`Facts::remote_locks`](crate::Facts::remote_locks).
    /// `EAGAIN` if it is held and `wait` is false. A test changes `lock` into the lock that stands in the way, or into
    /// [`LockKind::Unlock`].
    fn lock(&self, owner: u64, lock: &mut FileLock, test: bool, wait: bool) -> Result<()> {
        let _ = (owner, lock, test, wait);
        Err(Errno::EOPNOTSUPP)
    }

    /// A real descriptor that may stand for this file from now on, for reading and, if it was opened so, for writing:
    /// the same bytes at the same offsets, now and later. Hosts hand it to the kernel where they can, and data then never
    /// passes through the driver.
    fn backing(&self) -> Option<BorrowedFd<'_>> {
        None
    }

    /// Whether another opening of the same node may have another file behind it, while this one is open: a copy that is made when
    /// it is first written. A kernel that wants all openings of a node to share one backing file then gets none.
    fn backing_may_change(&self) -> bool {
        false
    }

    /// Whether [`backing`](Self::backing) is of something that the tree leaves as it is, whatever happens to the node: a file of a layer that is only
    /// read. Its content may be read through the descriptor; who would change its mode, owner, times, attributes or flags through it must ask the tree
    /// instead, and hosts that hand descriptors out see to that.
    fn backing_is_foreign(&self) -> bool {
        false
    }

    /// Whether the content is made anew for each opening (info files, pipes of data): never cached, and read to the end
    /// whatever the size in the attributes says.
    fn is_direct(&self) -> bool {
        false
    }
}

/// How a file is opened: the part of `open(2)`'s flags that a tree may care about. Creation, exclusion, `O_APPEND` and
/// truncation are the host's (truncation comes as a [`setattr`](crate::Filesystem::setattr)).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct OpenFlags {
    /// For reading.
    pub read: bool,
    /// For writing.
    pub write: bool,
    /// `O_DIRECT`: past any cache, where there is one.
    pub direct: bool,
    /// `O_SYNC` or `O_DSYNC`: a write returns when it is on stable storage. The host calls `sync` after each write, so
    /// this is only a hint to prepare for that.
    pub sync: bool,
    /// `O_EXCL` with `O_TMPFILE`: the file is never to get a name.
    pub unlinkable: bool,
}

impl OpenFlags {
    /// For reading only.
    pub const READ: OpenFlags =
        OpenFlags { read: true, write: false, direct: false, sync: false, unlinkable: false };
    /// For reading and writing.
    pub const READ_WRITE: OpenFlags =
        OpenFlags { read: true, write: true, direct: false, sync: false, unlinkable: false };
}

/// What `fallocate(2)` is to do with a range.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Allocate {
    /// Reserve space; the file grows to the end of the range.
    Extend,
    /// `FALLOC_FL_KEEP_SIZE`: reserve space without growing.
    KeepSize,
    /// `FALLOC_FL_PUNCH_HOLE` (always keeps the size).
    PunchHole,
    /// `FALLOC_FL_ZERO_RANGE`, growing unless `keep_size`.
    ZeroRange {
        /// Whether the size stays.
        keep_size: bool,
    },
    /// `FALLOC_FL_COLLAPSE_RANGE`: take the range out, moving what follows.
    Collapse,
    /// `FALLOC_FL_INSERT_RANGE`: put a hole in, moving what follows.
    Insert,
}

/// What `lseek(2)` looks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Seek {
    /// `SEEK_DATA`
    Data,
    /// `SEEK_HOLE`
    Hole,
}

/// An `ioctl(2)` whose argument follows the direction and size encoded in its number (`_IOR`, `_IOW`, `_IOWR`).
/// Numbers that encode none (such as `BLKGETSIZE64`'s older relatives) are known to the host, which fills in the sizes.
#[derive(Debug)]
pub struct Ioctl<'a> {
    /// The request.
    pub command: u32,
    /// The argument as a number, for requests that pass it by value.
    pub argument: u64,
    /// What the caller passed in.
    pub input: &'a [u8],
    /// What the caller gets back: as long as the request says, zeros at first.
    pub output: &'a mut [u8],
}

/// What can be done without waiting: a set.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Ready {
    /// `POLLIN`
    pub readable: bool,
    /// `POLLOUT`
    pub writable: bool,
    /// `POLLPRI`
    pub priority: bool,
    /// `POLLERR`
    pub error: bool,
    /// `POLLHUP`
    pub hangup: bool,
    /// `POLLRDHUP`
    pub read_hangup: bool,
}

impl Ready {
    /// Whether the set is empty.
    pub fn is_none(self) -> bool {
        self == Ready::default()
    }
}

/// The kinds of `fcntl(2)` locks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LockKind {
    /// `F_RDLCK`
    Shared,
    /// `F_WRLCK`
    Exclusive,
    /// `F_UNLCK`
    Unlock,
}

/// A lock on bytes `start` up to and including `end` (`u64::MAX` for "to the end, however far").
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FileLock {
    /// The kind.
    pub kind: LockKind,
    /// The first byte.
    pub start: u64,
    /// The last byte.
    pub end: u64,
    /// The process that holds it.
    pub pid: u32,
}
