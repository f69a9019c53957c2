//! Devices in virtual trees.
//!
//! Mounts of a view are `nodev`: what an image says about devices is not to be believed. But some devices are the same for everybody and reach nothing, and
//! a system that is worked on in its own root directory (`chroot`, debootstrap) does not come far without them. Those are served, by nodes of the same device
//! that are made for the moment, so that nobody changes the host's through a descriptor, or by the host's own where none can be made.

use std::os::fd::AsFd;
use std::path::Path;

use nix::errno::Errno;
use nix::fcntl::{OFlag, open};
use nix::libc;
use nix::sys::stat::{Mode, SFlag, fstat, mknod};
use veduta_api::{Attr, Kind};

use crate::call::{Answer, Call, Outcome};

/// Major, minor, and the host's name (`Documentation/admin-guide/devices.txt` of Linux).
const HARMLESS: &[(u32, u32, &str)] = &[
    (1, 3, "/dev/null"),
    (1, 5, "/dev/zero"),
    (1, 7, "/dev/full"),
    (1, 8, "/dev/random"),
    (1, 9, "/dev/urandom"),
];

/// Opens a device, if it is one of those; the caller's rights have been looked at.
pub(crate) fn serve(call: &Call<'_>, attr: &Attr, flags: OFlag) -> Outcome {
    let is_it =
        |(major, minor, _): &&(u32, u32, &str)| (attr.rdev.major, attr.rdev.minor) == (*major, *minor);
    let known = HARMLESS.iter().find(is_it).filter(|_| attr.kind == Kind::CharDevice);
    let &(major, minor, name) = known.ok_or(Errno::EACCES)?;
    let number = libc::makedev(major, minor);
    let kept = OFlag::O_ACCMODE | OFlag::O_NONBLOCK | OFlag::O_APPEND | OFlag::O_SYNC | OFlag::O_NOCTTY;
    let open = |path: &Path| open(path, (flags & kept) | OFlag::O_CLOEXEC, Mode::empty());
    let path = call.view.home.join(format!(".veduta-{}-device-{}", std::process::id(), call.task.0));
    let made = mknod(&path, SFlag::S_IFCHR, Mode::S_IRUSR | Mode::S_IWUSR, number).and_then(|()| {
        let opened = open(&path);
        nix::unistd::unlink(&path)?;
        opened
    });
    // Who may make none may seldom change the host's; and a view's own folder may be on what is mounted `nodev`.
    let fd = made.or_else(|_| open(Path::new(name)))?;
    // The host's name may be anything.
    let data = fstat(fd.as_fd())?;
    if data.st_mode & libc::S_IFMT != libc::S_IFCHR || data.st_rdev != number {
        return Err(Errno::EACCES);
    }
    Ok(Answer::Fd { fd, close_on_exec: flags.contains(OFlag::O_CLOEXEC), on_its_way: None })
}
