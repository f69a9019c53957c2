//! The kernel's numbers and the contract's types, one into the other.

use fuser::PollEvents;
use nix::libc;
use veduta_api::{Allocate, Entry, Errno, FileFlags, LockKind, OpenFlags, Ready, Result};

/// Node 0 would mean "absent" to the kernel.
pub(super) fn valid(entry: Entry) -> Result<Entry> {
    if entry.ino.0 == 0 {
        tracing::error!("the driver named node 0, which names nothing");
        return Err(Errno::EIO);
    }
    Ok(entry)
}

pub(super) fn to_errno(errno: Errno) -> fuser::Errno {
    match errno {
        // The kernel would remember it for the whole mount.
        Errno::ENOSYS => fuser::Errno::EOPNOTSUPP,
        errno => fuser::Errno::from_i32(errno as i32),
    }
}

pub(super) fn open_flags(flags: i32) -> OpenFlags {
    let access = flags & libc::O_ACCMODE;
    OpenFlags {
        read: access != libc::O_WRONLY,
        write: access != libc::O_RDONLY,
        direct: flags & libc::O_DIRECT != 0,
        sync: flags & (libc::O_SYNC | libc::O_DSYNC) != 0,
        unlinkable: flags & (libc::O_TMPFILE | libc::O_EXCL) == libc::O_TMPFILE | libc::O_EXCL,
    }
}

pub(super) fn allocation(mode: i32) -> Result<Allocate> {
    const KEEP: i32 = libc::FALLOC_FL_KEEP_SIZE;
    const PUNCH: i32 = libc::FALLOC_FL_PUNCH_HOLE | KEEP;
    const ZERO: i32 = libc::FALLOC_FL_ZERO_RANGE;
    const ZERO_KEEP: i32 = ZERO | KEEP;
    Ok(match mode {
        0 => Allocate::Extend,
        KEEP => Allocate::KeepSize,
        PUNCH => Allocate::PunchHole,
        ZERO => Allocate::ZeroRange { keep_size: false },
        ZERO_KEEP => Allocate::ZeroRange { keep_size: true },
        libc::FALLOC_FL_COLLAPSE_RANGE => Allocate::Collapse,
        libc::FALLOC_FL_INSERT_RANGE => Allocate::Insert,
        _ => return Err(Errno::EOPNOTSUPP),
    })
}

pub(super) fn lock_kind(kind: i32) -> Result<LockKind> {
    match kind {
        libc::F_RDLCK => Ok(LockKind::Shared),
        libc::F_WRLCK => Ok(LockKind::Exclusive),
        libc::F_UNLCK => Ok(LockKind::Unlock),
        _ => Err(Errno::EINVAL),
    }
}

/// An attribute that is to go into `size` bytes; 0 asks how many are needed.
pub(super) fn fitting(value: Vec<u8>, size: u32) -> Result<Vec<u8>> {
    if size != 0 && value.len() > size as usize { Err(Errno::ERANGE) } else { Ok(value) }
}

pub(super) fn ready_from(events: PollEvents) -> Ready {
    Ready {
        readable: events.intersects(PollEvents::POLLIN | PollEvents::POLLRDNORM),
        writable: events.intersects(PollEvents::POLLOUT | PollEvents::POLLWRNORM),
        priority: events.contains(PollEvents::POLLPRI),
        ..Ready::default()
    }
}

pub(super) fn ready_to(ready: Ready) -> PollEvents {
    let mut events = PollEvents::empty();
    events.set(PollEvents::POLLIN | PollEvents::POLLRDNORM, ready.readable);
    events.set(PollEvents::POLLOUT | PollEvents::POLLWRNORM, ready.writable);
    events.set(PollEvents::POLLPRI, ready.priority);
    events.set(PollEvents::POLLERR, ready.error);
    events.set(PollEvents::POLLHUP, ready.hangup);
    events
}

pub(super) enum Chattr {
    Get,
    Set,
    SetMore,
}

/// `FS_IOC_GETFLAGS` and `FS_IOC_SETFLAGS`, with the size of a `long` or of an `int` (32-bit programs); `FS_IOC_FSSETXATTR`, which
/// drivers know or not.
pub(super) fn chattr_call(command: u32) -> Option<Chattr> {
    match command {
        0x8008_6601 | 0x8004_6601 => Some(Chattr::Get),
        0x4008_6602 | 0x4004_6602 => Some(Chattr::Set),
        0x401c_5820 => Some(Chattr::SetMore),
        _ => None,
    }
}

/// `FS_*_FL` of `linux/fs.h`.
pub(super) const FLAGS: [u32; 6] = [0x10, 0x20, 0x40, 0x4, 0x800, 0x10_0000];

pub(super) fn flags_to_linux(flags: FileFlags) -> u32 {
    let set =
        [flags.immutable, flags.append_only, flags.no_dump, flags.compressed, flags.encrypted, flags.verity];
    set.into_iter().zip(FLAGS).filter(|(set, _)| *set).map(|(_, bit)| bit).sum()
}

/// `None` if a flag is among them that the contract does not have.
pub(super) fn flags_from_linux(bits: u32) -> Option<FileFlags> {
    if bits & !FLAGS.iter().sum::<u32>() != 0 {
        return None;
    }
    let [immutable, append_only, no_dump, compressed, encrypted, verity] = FLAGS.map(|bit| bits & bit != 0);
    Some(FileFlags { immutable, append_only, no_dump, compressed, encrypted, verity })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_flag_of_chattr_survives_both_ways() {
        for bit in FLAGS {
            assert_eq!(flags_to_linux(flags_from_linux(bit).unwrap()), bit);
        }
        assert_eq!(flags_from_linux(0x8_0000), None);
    }

    #[test]
    fn an_unknown_way_to_allocate_is_refused() {
        assert_eq!(allocation(libc::FALLOC_FL_PUNCH_HOLE), Err(Errno::EOPNOTSUPP));
        assert_eq!(allocation(libc::FALLOC_FL_PUNCH_HOLE | 1), Ok(Allocate::PunchHole));
    }

    #[test]
    fn a_driver_cannot_make_the_kernel_remember_enosys() {
        assert_eq!(to_errno(Errno::ENOSYS), fuser::Errno::EOPNOTSUPP);
        assert_eq!(to_errno(Errno::UnknownErrno), fuser::Errno::EIO);
    }
}
