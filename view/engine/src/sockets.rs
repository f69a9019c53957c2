//! Sockets and fifos in virtual trees.
//!
//! A socket's name is a node of the tree; behind it is an abstract address that belongs to the node, so `bind(2)` and
//! `connect(2)` meet. The engine makes the call itself, on a copy of the task's descriptor, which is the same socket. A fifo's
//! node has a real fifo without a name.

use std::collections::HashMap;
use std::ffi::OsStr;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::sync::Arc;
use std::time::Duration;

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, OFlag, SpliceFFlags, fcntl, open, tee};
use nix::libc;
use nix::sys::stat::Mode;
use veduta_api::{Device, Ino, Interrupt, Kind, Result};
use veduta_trace::raw::{self, Argument};

use crate::call::{Answer, Call, DONE, Outcome, Target};
use crate::identity::{EXECUTE, WRITE};
use crate::node::{Node, guarded};
use crate::walk::{Limits, Place};

/// Bytes before the path in `struct sockaddr_un`.
const FAMILY: usize = 2;
/// Bytes of a path in `struct sockaddr_un`, without the NUL.
const ROOM: usize = 107;

/// `bind` and `connect`.
pub(crate) fn serve(call: &Call<'_>, name: &str) -> Outcome {
    let [_, address, len, ..] = call.args;
    if !(3..=110).contains(&len) {
        return Ok(Answer::GoOn);
    }
    let mut bytes = vec![0; len as usize];
    call.task.read(address, &mut bytes)?;
    if i32::from(u16::from_ne_bytes([bytes[0], bytes[1]])) != libc::AF_UNIX || bytes[FAMILY] == 0 {
        return Ok(Answer::GoOn);
    }
    if !is_unix(call) {
        return Ok(Answer::GoOn);
    }
    let path = bytes[FAMILY..].split(|byte| *byte == 0).next().unwrap_or_default();
    let path_given = path;
    let binds = name == "bind";
    let found = match call.find_path(libc::AT_FDCWD as u64, path, !binds, false, Limits::default())? {
        Target::PlainlyHost(_) => return Ok(Answer::GoOn),
        Target::Found(found) => found,
    };
    match (&found.place, &found.parent) {
        (Some(Place::Tree(..)), _) if binds => Err(Errno::EADDRINUSE),
        (Some(place @ Place::Tree(node, attr)), _) => {
            if attr.kind != Kind::Socket {
                return Err(Errno::ECONNREFUSED);
            }
            call.may(place, WRITE)?;
            if node.mount.of_host {
                let path = node.shows().ok_or(Errno::ECONNREFUSED)?;
                return on_path(call, &path, path_given);
            }
            on_socket(call, &abstract_address(node.mount.id, attr.st_ino))
        }
        (None, Some(parent @ Place::Tree(directory, above))) if binds => {
            call.writable(parent)?;
            call.may(parent, WRITE | EXECUTE)?;
            if let (true, Some(mut path)) = (directory.mount.of_host, directory.shows()) {
                path.push(b'/');
                path.extend_from_slice(&found.name);
                return on_path(call, &path, path_given);
            }
            let new = crate::open::new_node(call, directory, above, Kind::Socket, 0o777, Device::default())?;
            let name = OsStr::from_bytes(&found.name);
            let entry = guarded(|| directory.tree().mknod(directory.ino, name, &new))?;
            let _node = Node::child(directory, name, &entry);
            let bound = on_socket(call, &abstract_address(directory.mount.id, entry.attr.st_ino));
            if bound.is_err() {
                guarded(|| directory.tree().unlink(directory.ino, name))?;
            }
            bound
        }
        (None, Some(Place::Tree(..))) => Err(Errno::ENOENT),
        _ if found.direct => Ok(Answer::GoOn),
        (place, parent) => {
            let real = match (place, parent) {
                (Some(place), _) => place.path(),
                (None, Some(parent)) => [&parent.path(), b"/".as_slice(), &found.name].concat(),
                (None, None) => return Err(Errno::ENOENT),
            };
            on_path(call, &real, path_given)
        }
    }
}

/// Whether the descriptor is a socket of the family that has paths; what the kernel says of others is right.
fn is_unix(call: &Call<'_>) -> bool {
    let Ok(fd) = crate::serve::descriptor(call.task, call.int(0)) else { return false };
    let (mut name, mut len) = ([0; 128], 128_u32.to_ne_bytes());
    let mut arguments =
        [Argument::Value(fd.as_raw_fd() as u64), Argument::Output(&mut name), Argument::Output(&mut len)];
    raw::call(libc::SYS_getsockname as u32, &mut arguments).is_ok()
        && i32::from(u16::from_ne_bytes([name[0], name[1]])) == libc::AF_UNIX
}

/// Makes the call with a path of the host, which the caller gave as `given`. An address has little room, and others see it: so a
/// path is given relative to the caller's own directory if it was, or to that of the name if there is no room for more.
fn on_path(call: &Call<'_>, path: &[u8], given: &[u8]) -> Outcome {
    let above = path.strip_suffix(given).and_then(|above| above.strip_suffix(b"/"));
    let (directory, name) = match above {
        Some(above) if !given.starts_with(b"/") => (Some(above), given),
        _ if path.len() > ROOM => {
            let (above, name) = crate::mounts::split(path);
            (Some(above), name)
        }
        _ => (None, path),
    };
    if name.len() > ROOM {
        return Err(Errno::ENAMETOOLONG);
    }
    let mut address = (libc::AF_UNIX as u16).to_ne_bytes().to_vec();
    address.extend_from_slice(name);
    address.push(0);
    // The thread has a working directory of its own.
    let back = open(".", OFlag::O_PATH | OFlag::O_CLOEXEC, Mode::empty())?;
    crate::host::as_caller(call, || {
        if let Some(directory) = directory {
            nix::unistd::chdir(OsStr::from_bytes(crate::mounts::shown(directory)))?;
        }
        let done = on_socket(call, &address);
        nix::unistd::fchdir(&back)?;
        done
    })
}

/// An address that no other node and no other view has.
fn abstract_address(mount: u32, ino: u64) -> Vec<u8> {
    let mut address = (libc::AF_UNIX as u16).to_ne_bytes().to_vec();
    address.push(0);
    address.extend(format!("veduta/{}/{mount}/{ino}", std::process::id()).into_bytes());
    address
}

/// Makes the task's call with another address.
fn on_socket(call: &Call<'_>, address: &[u8]) -> Outcome {
    let fd = crate::serve::descriptor(call.task, call.int(0)).map_err(|_| Errno::EBADF)?;
    let mut arguments = [
        Argument::Value(fd.as_raw_fd() as u64),
        Argument::Input(address),
        Argument::Value(address.len() as u64),
    ];
    raw::call(call.number, &mut arguments)?;
    DONE
}

/// The real fifos of nodes, by mount and number.
pub(crate) type Fifos = HashMap<(u32, Ino), Arc<OwnedFd>>;

/// Opens a fifo: waits for the other end, unless told not to.
pub(crate) fn open_fifo(call: &Call<'_>, node: &Arc<Node>, flags: OFlag) -> Outcome {
    let fifo = fifo(call, node)?;
    let path = format!("/proc/self/fd/{}", fifo.as_raw_fd());
    let try_open =
        |flags: OFlag| open(path.as_str(), flags | OFlag::O_NONBLOCK | OFlag::O_CLOEXEC, Mode::empty());
    let access = OFlag::from_bits_truncate(flags.bits() & libc::O_ACCMODE);
    let waits = !flags.contains(OFlag::O_NONBLOCK);
    let step = || Interrupt::current().sleep(Duration::from_millis(2));
    let fd = loop {
        match try_open(access) {
            Err(Errno::ENXIO) if waits => step()?,
            opened => break opened?,
        }
    };
    if waits {
        if access == OFlag::O_RDONLY {
            while !has_writer(&fd)? {
                step()?;
            }
        }
        fcntl(&fd, FcntlArg::F_SETFL(access))?;
    }
    Ok(Answer::Fd { fd, close_on_exec: flags.contains(OFlag::O_CLOEXEC) })
}

/// Whether somebody has the other end of a fifo open: then there is nothing to copy from it yet, or something; else it has ended.
fn has_writer(fd: &OwnedFd) -> Result<bool> {
    let (_end, probe) = nix::unistd::pipe()?;
    match tee(fd, &probe, 1, SpliceFFlags::SPLICE_F_NONBLOCK) {
        Ok(0) => Ok(false),
        Ok(_) | Err(Errno::EAGAIN) => Ok(true),
        Err(errno) => Err(errno),
    }
}

fn fifo(call: &Call<'_>, node: &Arc<Node>) -> Result<Arc<OwnedFd>> {
    let mut fifos = call.view.fifos.lock();
    if let Some(known) = fifos.get(&(node.mount.id, node.ino)) {
        return Ok(Arc::clone(known));
    }
    let path = call.view.home.join(format!(".veduta-{}-fifo-{}", std::process::id(), fifos.len()));
    nix::unistd::mkfifo(&path, Mode::S_IRUSR | Mode::S_IWUSR)?;
    let opened = open(&path, OFlag::O_PATH | OFlag::O_CLOEXEC, Mode::empty());
    let removed = nix::unistd::unlink(&path);
    let fd = Arc::new(opened?);
    removed?;
    fifos.insert((node.mount.id, node.ino), Arc::clone(&fd));
    Ok(fd)
}
