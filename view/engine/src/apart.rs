//! Ways by which the kernel would find, under another path or no path at all, files of the host that a view has a copy of, or only reads: mounts that
//! processes make in namespaces of their own (containers within the view), `chroot(2)`, handles of files, and calls that take a path to write to it
//! themselves.
//!
//! In a view without trees that are made of layers of the host such calls are the kernel's. In one with such trees they are refused where they would lead
//! around it, and done to the view's node where that is possible.

use std::ffi::OsStr;
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::ffi::OsStrExt;

use nix::errno::Errno;
use nix::fcntl::OFlag;
use nix::libc;
use veduta_api::Result;
use veduta_trace::raw::{self, Argument};

use crate::call::{Answer, Call, Outcome};
use crate::lent::has_layers;
use crate::mounts::{Mount, is_below};
use crate::walk::{Limits, Place, Start};

/// A call of the mount family by a process that has a mount namespace of its own: `EPERM` if the kernel would then show there what the view has otherwise.
pub(crate) fn mount(call: &Call<'_>, name: &str) -> Outcome {
    const SET_STRING: u64 = 1;
    const SET_PATH: u64 = 3;
    if !any_has_layers(call) {
        return Ok(Answer::GoOn);
    }
    let cwd = libc::AT_FDCWD as u64;
    let args = call.args;
    let is_around = match name {
        "mount" => {
            let moves = args[3] & (libc::MS_BIND | libc::MS_MOVE) != 0 && args[3] & libc::MS_REMOUNT == 0;
            (moves && is_seen(call, cwd, args[0])?) || overlay(call, args[2], args[4])?
        }
        "open_tree" | "open_tree_attr" | "move_mount" => is_seen(call, args[0], args[1])?,
        "fsconfig" if matches!(args[1], SET_STRING | SET_PATH) && args[2] != 0 && args[3] != 0 => {
            let key = call.task.read_string(args[2], 256)?;
            writes(&key) && is_seen_path(call, &call.task.read_path(args[3])?)
        }
        "pivot_root" => true,
        _ => false,
    };
    if is_around { Err(Errno::EPERM) } else { Ok(Answer::GoOn) }
}

fn any_has_layers(call: &Call<'_>) -> bool {
    call.table.mounts().iter().any(|mount| has_layers(mount))
}

/// Options of overlayfs that name what is written to.
fn writes(key: &[u8]) -> bool {
    matches!(key, b"upperdir" | b"workdir")
}

fn overlay(call: &Call<'_>, type_name: u64, options: u64) -> Result<bool> {
    if type_name == 0 || options == 0 || call.task.read_path(type_name)? != b"overlay" {
        return Ok(false);
    }
    let options = call.task.read_path(options)?;
    let is_seen = |option: &[u8]| {
        let at = option.iter().position(|byte| *byte == b'=').unwrap_or(option.len());
        writes(&option[..at]) && is_seen_path(call, option.get(at + 1..).unwrap_or_default())
    };
    Ok(options.split(|byte| *byte == b',').any(is_seen))
}

/// Whether what a path leads to, or something below, is shown by a tree of layers.
fn is_seen(call: &Call<'_>, dirfd: u64, address: u64) -> Result<bool> {
    if address == 0 {
        return Ok(false);
    }
    let path = call.task.read_path(address)?;
    let Ok(start) = (if path.starts_with(b"/") { Ok(Start::Host(Vec::new())) } else { call.start(dirfd) })
    else {
        return Ok(false);
    };
    Ok(match (start, path.is_empty()) {
        (Start::Opaque, _) => false,
        (Start::Tree(node), true) => has_layers(&node.mount),
        (Start::Host(path), true) => is_seen_path(call, &path),
        (start, false) => match call.walker(Limits::default()).walk(&start, &path, true) {
            Ok(found) => found.place.as_ref().is_some_and(|place| is_seen_place(call, place)),
            Err(_) => false,
        },
    })
}

fn is_seen_path(call: &Call<'_>, path: &[u8]) -> bool {
    let Ok(start) = (if path.starts_with(b"/") {
        Ok(Start::Host(Vec::new()))
    } else {
        call.start(libc::AT_FDCWD as u64)
    }) else {
        return false;
    };
    let found = call.walker(Limits::default()).walk(&start, path, true);
    found.is_ok_and(|found| found.place.as_ref().is_some_and(|place| is_seen_place(call, place)))
}

fn is_seen_place(call: &Call<'_>, place: &Place) -> bool {
    match place {
        Place::Tree(node, _) => has_layers(&node.mount),
        Place::Host(path) => {
            let path = if path == b"/" { b"".as_slice() } else { path };
            call.table.mounts().iter().any(|mount| has_layers(mount) && is_below(&mount.target, path))
        }
    }
}

/// `open_by_handle_at(2)`: what the handle leads to is opened as what it is in the view. `ESTALE` if that cannot be told.
pub(crate) fn open_by_handle(call: &Call<'_>) -> Outcome {
    const HEAD: usize = 8;
    if !call.may_be_lent() || !call.caller.real().is_root() {
        return Ok(Answer::GoOn);
    }
    let head: [u8; HEAD] = call.task.read_array(call.args[1])?;
    let size = u32::from_ne_bytes([head[0], head[1], head[2], head[3]]) as usize;
    if size > 128 {
        return Err(Errno::EINVAL);
    }
    let mut handle = vec![0; HEAD + size];
    call.task.read(call.args[1], &mut handle)?;
    let Ok(mount) = crate::serve::descriptor(call.task, call.int(0)) else { return Ok(Answer::GoOn) };
    let flags = (libc::O_PATH | libc::O_CLOEXEC) as u64;
    let mut arguments =
        [Argument::Value(mount.as_raw_fd() as u64), Argument::Input(&handle), Argument::Value(flags)];
    let fd = match raw::call(libc::SYS_open_by_handle_at as u32, &mut arguments) {
        // The kernel says so itself.
        Err(_) => return Ok(Answer::GoOn),
        Ok(number) => raw::own(number as i32),
    };
    if let Some(node) = call.walker(Limits::default()).lent(&fd)? {
        let attr = node.attr()?;
        let place = Place::Tree(std::sync::Arc::clone(&node), attr);
        return crate::open::existing(call, &place, &node, &attr, OFlag::from_bits_retain(call.int(2)));
    }
    // A file that is found by its handle alone may have no path yet.
    let path =
        std::fs::read_link(format!("/proc/self/fd/{}", fd.as_raw_fd())).map_err(crate::standin::errno)?;
    let is_there = crate::fuseplane::key_of(&path).ok() == crate::fuseplane::key_of_fd(fd.as_fd()).ok();
    if is_there { Ok(Answer::GoOn) } else { Err(Errno::ESTALE) }
}

/// Whether the kernel would write core files into the directory that a process is in, which may be one of the host that a tree of layers shows.
fn makes_cores() -> bool {
    std::fs::read("/proc/sys/kernel/core_pattern").is_ok_and(|pattern| !pattern.starts_with(b"|"))
}

const LIMIT_BYTES: usize = 16;

/// A mount was made: if it has layers, no process of the view makes core files any more.
pub(crate) fn no_cores(mount: &Mount) {
    if !has_layers(mount) || !makes_cores() {
        return;
    }
    // Ours is that of all who start later.
    for pid in std::iter::once(nix::unistd::Pid::from_raw(0)).chain(crate::grow::processes()) {
        let limit = |new: Argument<'_>, old: &mut [u8]| {
            let pid = Argument::Value(pid.as_raw() as u64);
            let core = Argument::Value(CORE.into());
            raw::call(libc::SYS_prlimit64 as u32, &mut [pid, core, new, Argument::Output(old)])
        };
        let mut now = [0; LIMIT_BYTES];
        if limit(Argument::Value(0), &mut now).is_err() {
            continue;
        }
        now[..8].fill(0);
        if let Err(errno) = limit(Argument::Input(&now), &mut [0; LIMIT_BYTES]) {
            tracing::warn!("process {pid} may make core files: {}", errno.desc());
        }
    }
}

/// `RLIMIT_CORE`
pub(crate) const CORE: u32 = 4;

/// `setrlimit(2)` and `prlimit(2)` of it: `EPERM` for who wants them, in a view with a tree of layers.
pub(crate) fn core_limit(call: &Call<'_>, name: &str) -> Outcome {
    let new = call.args[if name == "setrlimit" { 1 } else { 2 }];
    if new == 0 || call.task.read_u64(new)? == 0 || !any_has_layers(call) || !makes_cores() {
        return Ok(Answer::GoOn);
    }
    Err(Errno::EPERM)
}

/// Whether something is mounted below a directory of the host: then a process whose root it becomes must find that there.
pub(crate) fn has_mounts(call: &Call<'_>, directory: Option<&Vec<u8>>) -> bool {
    directory.is_none_or(|path| !path.is_empty() && path != b"/" && call.table.any_below(path))
}

/// Whether a process may change its root, as far as the kernel is concerned: `CAP_SYS_CHROOT`.
pub(crate) fn may_change_root(call: &Call<'_>) -> bool {
    const SYS_CHROOT: u32 = 18;
    let status = std::fs::read(OsStr::from_bytes(format!("/proc/{}/status", call.task.0).as_bytes()));
    let status = String::from_utf8_lossy(&status.unwrap_or_default()).into_owned();
    let effective = status.lines().find_map(|line| line.strip_prefix("CapEff:"));
    let effective = effective.and_then(|text| u64::from_str_radix(text.trim(), 16).ok());
    effective.is_some_and(|set| set & (1 << SYS_CHROOT) != 0)
}
