//! The advisory lock on an image: one writer, or any number of readers, as QEMU has it. A reader beside a writer would
//! see a filesystem in pieces, so it is refused like a second writer.
//!
//! The lock is a `flock(2)` on the whole file. It belongs to the open file description: it stays when the program forks
//! to the background, and goes with the last descriptor, however the program ends. systemd takes the same lock on a
//! block device, so udev keeps its hands off one that is being written. It says nothing to programs that take none,
//! or another one: mkfs, losetup, QEMU.
//!
//! To name the holder: the kernel lists with each descriptor (`/proc/PID/fdinfo`) the locks of its description.
//! That finds the process that lives now, not the parent that took the lock before it forked, which is the one in
//! `/proc/locks`; but only among our own processes. So the first is asked, then the second.

use std::fs::{self, File};
use std::os::fd::AsRawFd;
use std::os::unix::fs::MetadataExt;
use std::time::Duration;

use nix::fcntl::FlockArg;
use nix::sys::stat::{major, minor};
use veduta_api::{Errno, MountError, MountErrorKind};
use veduta_tree::lock::{self, Taken};

/// How long a server may take to notice that it was unmounted by umount(8), which does not wait for it. From then on its lock says so
/// ([`HostWorld::leave`](crate::HostWorld)), and is waited for without a limit. udev, too, holds a device for a moment after somebody closed it.
const PATIENCE: Duration = Duration::from_secs(1);

/// Locks an open image, for writing or for reading, until its file is closed everywhere. Waits a second at most, but to its end for a mount that
/// is over, and only writes. The error names the holder. Where the filesystem has no locks, that is logged, and the image is used without.
pub fn lock_image(image: &File, writable: bool) -> Result<(), MountError> {
    match lock::take(PATIENCE, "the image", || take(image, writable)) {
        Ok(Some(())) => Ok(()),
        Ok(None) => Err(in_use(image, writable)),
        Err(errno) => {
            let message =
                format!("the wait for its last mount, which still writes, was ended: {}", errno.desc());
            Err(MountError { kind: MountErrorKind::System, errno, message })
        }
    }
}

/// Fails as [`lock_image`] does, and at once, if an image is being written, also by a mount that is over.
pub(crate) fn check_unlocked(image: &File) -> Result<(), MountError> {
    match take(image, false) {
        Ok(Taken::Left | Taken::Others) => Err(in_use(image, false)),
        _ => Ok(()),
    }
}

fn take(image: &File, writable: bool) -> veduta_api::Result<Taken<()>> {
    match flock(image, writable) {
        Ok(()) => Ok(Taken::Ours(())),
        Err(Errno::EWOULDBLOCK) if lock::is_left(image) => Ok(Taken::Left),
        Err(Errno::EWOULDBLOCK | Errno::EINTR) => Ok(Taken::Others),
        Err(error) => {
            tracing::warn!(
                "the image cannot be locked ({}), so nothing keeps others from writing it",
                error.desc()
            );
            Ok(Taken::Ours(()))
        }
    }
}

/// nix offers `Flock` instead, which unlocks when it is dropped: also in the parent of a program that forked.
#[expect(deprecated, reason = "the lock is to go with the last descriptor, not with a guard")]
fn flock(image: &File, writable: bool) -> Result<(), Errno> {
    let how = if writable { FlockArg::LockExclusiveNonblock } else { FlockArg::LockSharedNonblock };
    nix::fcntl::flock(image.as_raw_fd(), how)
}

fn in_use(image: &File, writable: bool) -> MountError {
    let holder = match find_holder(image) {
        Some(pid) if pid == std::process::id() => "by this same program".to_owned(),
        Some(pid) => match fs::read_to_string(format!("/proc/{pid}/comm")) {
            Ok(name) => format!("by {} (process {pid})", name.trim_end()),
            Err(_) => format!("by process {pid}"),
        },
        None => "by another program".to_owned(),
    };
    let message = if writable {
        format!("it is in use {holder}, and cannot be written at the same time")
    } else {
        format!("it is being written {holder}, and cannot be read at the same time")
    };
    MountError { kind: MountErrorKind::System, errno: Errno::EBUSY, message }
}

fn find_holder(image: &File) -> Option<u32> {
    let wanted = image.metadata().ok()?;
    let own = image.as_raw_fd();
    let same = |metadata: &fs::Metadata| (metadata.dev(), metadata.ino()) == (wanted.dev(), wanted.ino());
    for pid in fs::read_dir("/proc").ok()?.flatten().filter_map(|entry| number(&entry.file_name())) {
        let Ok(open) = fs::read_dir(format!("/proc/{pid}/fd")) else { continue };
        for fd in open.flatten().filter_map(|entry| number(&entry.file_name())) {
            if pid == std::process::id() && i64::from(fd) == i64::from(own) {
                continue;
            }
            let is_it = fs::metadata(format!("/proc/{pid}/fd/{fd}")).is_ok_and(|metadata| same(&metadata));
            if is_it && has_flock(&fs::read_to_string(format!("/proc/{pid}/fdinfo/{fd}")).unwrap_or_default())
            {
                return Some(pid);
            }
        }
    }
    let place = format!("{:02x}:{:02x}:{}", major(wanted.dev()), minor(wanted.dev()), wanted.ino());
    let locks = fs::read_to_string("/proc/locks").ok()?;
    let pid = locks.lines().find_map(|line| flock_holder(line, &place))?;
    fs::exists(format!("/proc/{pid}")).ok()?.then_some(pid)
}

fn number(name: &std::ffi::OsStr) -> Option<u32> {
    name.to_str()?.parse().ok()
}

/// Lines such as `lock:  1: FLOCK  ADVISORY  WRITE 1234 08:01:131075 0 EOF`.
fn has_flock(fdinfo: &str) -> bool {
    fdinfo.lines().any(|line| line.starts_with("lock:") && line.contains(" FLOCK "))
}

/// The process in a line of `/proc/locks`, as above without `lock:`, if it is about the file at `place`.
fn flock_holder(line: &str, place: &str) -> Option<u32> {
    let words: Vec<&str> = line.split_ascii_whitespace().collect();
    match words[..] {
        [_, "FLOCK", _, _, pid, at, ..] if at == place => pid.parse().ok(),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_holder_is_found_in_a_line_of_the_kernel() {
        let line = "1: FLOCK  ADVISORY  WRITE 20388 fe:00:10010841 0 EOF";
        assert_eq!(flock_holder(line, "fe:00:10010841"), Some(20388));
        assert_eq!(flock_holder(line, "fe:00:1001084"), None);
        assert_eq!(flock_holder("1: -> FLOCK ADVISORY WRITE 1 fe:00:10010841 0 EOF", "fe:00:10010841"), None);
        assert!(has_flock("pos:\t0\nlock:\t1: FLOCK  ADVISORY  WRITE 20388 fe:00:10010841 0 EOF\n"));
        assert!(!has_flock("pos:\t0\nflags:\t0100001\n"));
    }
}
