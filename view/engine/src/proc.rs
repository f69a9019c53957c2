//! What `/proc` says of a view, and who its processes are told they are.
//!
//! `mounts` and `mountinfo` are the host's with the view's mounts behind; `exe`, `cwd` and `fd/N` lead to view paths; `maps` names
//! view paths in place of memory files.

use std::ffi::OsStr;
use std::fs::File as HostFile;
use std::io::Write;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::sync::Arc;

use nix::fcntl::OFlag;
use nix::libc;
use veduta_api::{Device, Result};
use veduta_trace::{Task, raw};

use crate::call::{Answer, Call, Outcome};
use crate::mounts::{Mount, is_below, shown};
use crate::node::guarded;
use crate::standin::{Key, errno};
use crate::view::View;
use crate::walk::{Limits, Place};

const FIRST_MOUNT: u32 = 1_000_000;

/// What `mountinfo` and `statx(2)` call a mount: beyond the kernel's own numbers.
pub(crate) fn mount_id(mount: &Mount) -> u32 {
    FIRST_MOUNT + mount.id
}

/// The text of a link of `/proc` that leads to an object of the view; `None` if it leads to one of the host.
pub(crate) fn magic_text(view: &View, link: &[u8]) -> Option<Vec<u8>> {
    let key = crate::fuseplane::key_of(Path::new(OsStr::from_bytes(link))).ok()?;
    if let Some(stand_in) = view.stand_ins.find(key) {
        return Some(shown(&stand_in.node.path()).to_vec());
    }
    if link.ends_with(b"/exe") {
        let programs = view.programs.lock();
        return programs.iter().find(|(known, _)| *known == key).map(|(_, path)| path.clone());
    }
    None
}

/// The same, also where a process has the host's own.
pub(crate) fn link_text(call: &Call<'_>, link: &[u8]) -> Option<Vec<u8>> {
    magic_text(call.view, link).or_else(|| {
        if !call.table.mounts().iter().any(|mount| crate::lent::has_layers(mount)) {
            return None;
        }
        let text = std::fs::read_link(OsStr::from_bytes(link)).ok()?;
        let key = crate::fuseplane::key_of(Path::new(OsStr::from_bytes(link))).ok()?;
        // One without the mark was opened by its path on the host.
        let lent = crate::lent::behind_link(link).is_none_or(|fd| crate::lent::is_marked(&fd));
        layer_text(call, text.as_os_str().as_bytes(), key, lent)
    })
}

/// The path in the view of what the kernel says is at this path of the host: a file of a layer, of which a process has the host's own descriptor.
/// `lent`: it may be one of a layer that is only read.
fn layer_text(call: &Call<'_>, text: &[u8], key: Key, lent: bool) -> Option<Vec<u8>> {
    const GONE: &[u8] = b" (deleted)";
    let gone = text.strip_suffix(GONE);
    let real = Path::new(OsStr::from_bytes(gone.unwrap_or(text)));
    let walker = call.walker(Limits::default());
    let is_its =
        |mount: &&Arc<Mount>| crate::lent::has_layers(mount) && call.view.lent.is_of(key, mount.id, lent);
    call.table.mounts().iter().filter(is_its).find_map(|mount| {
        let place = guarded(|| Ok(mount.tree.place_of(real))).ok()??;
        let path = [&mount.target, b"/".as_slice(), place.as_os_str().as_bytes()].concat();
        let path = path.strip_suffix(b"/").unwrap_or(&path).to_vec();
        if gone.is_some() {
            return Some([&path, GONE].concat());
        }
        let Ok(Place::Tree(node, _)) = walker.locate(&path) else { return None };
        let device = Device { major: libc::major(key.0), minor: libc::minor(key.0) };
        let is_it = guarded(|| Ok(node.tree().is_made_of(node.ino, device, key.1))).unwrap_or(false);
        is_it.then(|| shown(&path).to_vec())
    })
}

/// The answer for a file of `/proc` whose content is the view's; `None` for all others.
pub(crate) fn open(call: &Call<'_>, path: &[u8], flags: OFlag) -> Result<Option<Answer>> {
    let Some(rest) = path.strip_prefix(b"/proc/") else { return Ok(None) };
    if flags.intersects(OFlag::O_WRONLY | OFlag::O_RDWR | OFlag::O_PATH) {
        return Ok(None);
    }
    let file = rest.iter().position(|byte| *byte == b'/').map_or(rest, |slash| &rest[slash + 1..]);
    let text = match file {
        b"mounts" => mounts(call, path)?,
        b"mountinfo" => mountinfo(call, path)?,
        b"maps" => maps(call, path)?,
        file if file.starts_with(b"fdinfo/") => match fdinfo(call, path)? {
            Some(text) => text,
            None => return Ok(None),
        },
        _ => return Ok(None),
    };
    let memory = HostFile::from(raw::memory_file(c"proc")?);
    (&memory).write_all(&text).map_err(errno)?;
    let read_only = HostFile::open(format!("/proc/self/fd/{}", memory.as_raw_fd())).map_err(errno)?;
    let close_on_exec = flags.contains(OFlag::O_CLOEXEC);
    Ok(Some(Answer::Fd { fd: OwnedFd::from(read_only), close_on_exec, on_its_way: None }))
}

fn host_text(path: &[u8]) -> Result<Vec<u8>> {
    std::fs::read(OsStr::from_bytes(path)).map_err(errno)
}

fn mounts(call: &Call<'_>, path: &[u8]) -> Result<Vec<u8>> {
    let mut text = host_text(path)?;
    for mount in call.table.mounts().iter().filter(|mount| !mount.is_hidden) {
        let line = [
            escaped(mount.source.as_bytes()),
            escaped(shown(&mount.target)),
            mount.type_name.clone().into_bytes(),
            escaped(mount.option_text().as_bytes()),
            b"0 0\n".to_vec(),
        ];
        text.extend(line.join(&b' '));
    }
    Ok(text)
}

fn mountinfo(call: &Call<'_>, path: &[u8]) -> Result<Vec<u8>> {
    let mut text = host_text(path)?;
    // Number and mount point of every line so far: the parent of a mount is the last among the longest.
    let mut known: Vec<(Vec<u8>, Vec<u8>)> = text
        .split(|byte| *byte == b'\n')
        .filter_map(|line| {
            let fields: Vec<&[u8]> = line.split(|byte| *byte == b' ').collect();
            let target = fields.get(4)?;
            let target = if *target == b"/" { b"".as_slice() } else { target };
            Some((fields[0].to_vec(), target.to_vec()))
        })
        .collect();
    for mount in call.table.mounts().iter().filter(|mount| !mount.is_hidden) {
        let above = known.iter().filter(|(_, target)| is_below(&mount.target, target));
        let parent = above.max_by_key(|(_, target)| target.len()).map_or(b"1".to_vec(), |(id, _)| id.clone());
        let root = crate::node::Node::root(mount).attr();
        let device = root.map_or_else(|_| mount.device(), |attr| crate::stat::device(mount, &attr));
        let line = format!(
            "{} {} {}:{} / {} {} - {} {} {}\n",
            mount_id(mount),
            String::from_utf8_lossy(&parent),
            libc::major(device),
            libc::minor(device),
            String::from_utf8_lossy(&escaped(shown(&mount.target))),
            mount.option_text(),
            mount.type_name,
            String::from_utf8_lossy(&escaped(mount.source.as_bytes())),
            if mount.is_read_only() { "ro" } else { "rw" },
        );
        known.push((mount_id(mount).to_string().into_bytes(), mount.target.clone()));
        text.extend(line.into_bytes());
    }
    Ok(text)
}

/// As the kernel writes names in these files: blanks and backslashes in octal.
fn escaped(text: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(text.len());
    for byte in text {
        match byte {
            b' ' | b'\t' | b'\n' | b'\\' => out.extend(format!("\\{byte:03o}").into_bytes()),
            _ => out.push(*byte),
        }
    }
    if out.is_empty() { b"none".to_vec() } else { out }
}

/// `fdinfo/N`, with the mount and the node that the descriptor stands for; `None` for a descriptor of the host.
fn fdinfo(call: &Call<'_>, path: &[u8]) -> Result<Option<Vec<u8>>> {
    let link = String::from_utf8_lossy(path).replace("/fdinfo/", "/fd/");
    let Ok(key) = crate::fuseplane::key_of(Path::new(&link)) else { return Ok(None) };
    let text = || host_text(path).map(|text| String::from_utf8_lossy(&text).into_owned());
    let Some(stand_in) = call.view.stand_ins.find(key) else {
        // A descriptor of the host that was handed out for a file of a mount.
        let Some(id) = call.view.lent.mount_of(key) else { return Ok(None) };
        let line = |line: &str| match line.split_once(':') {
            Some(("mnt_id", _)) => format!("mnt_id:\t{}\n", FIRST_MOUNT + id),
            _ => format!("{line}\n"),
        };
        return Ok(Some(text()?.lines().map(line).collect::<String>().into_bytes()));
    };
    let text = text()?;
    let line = |line: &str| match line.split_once(':') {
        Some(("mnt_id", _)) => format!("mnt_id:\t{}\n", mount_id(&stand_in.node.mount)),
        Some(("ino", _)) => {
            format!("ino:\t{}\n", stand_in.node.attr().map_or(key.1, |attr| attr.st_ino))
        }
        _ => format!("{line}\n"),
    };
    Ok(Some(text.lines().map(line).collect::<String>().into_bytes()))
}

/// `maps`, with view paths for what stands for virtual files.
fn maps(call: &Call<'_>, path: &[u8]) -> Result<Vec<u8>> {
    let text = host_text(path)?;
    let mut out = Vec::with_capacity(text.len());
    for line in text.split_inclusive(|byte| *byte == b'\n') {
        if let Some(line) = call.view.fast.true_line(line, &text) {
            out.extend(line);
            continue;
        }
        match renamed(call, line) {
            Some(path) => {
                let name = line.iter().position(|byte| *byte == b'/').unwrap_or(line.len());
                out.extend_from_slice(&line[..name]);
                out.extend(path);
                out.push(b'\n');
            }
            None => out.extend_from_slice(line),
        }
    }
    Ok(out)
}

/// The view path of a line of `maps` that names a memory file of ours.
fn renamed(call: &Call<'_>, line: &[u8]) -> Option<Vec<u8>> {
    let is_ours = |line: &&str| line.contains("/memfd:") || crate::fuseplane::may_be_name(line.as_bytes());
    let text = std::str::from_utf8(line).ok()?;
    let is_layers = || call.table.mounts().iter().any(|mount| crate::lent::has_layers(mount));
    let may_be = is_ours(&text) || (line.contains(&b'/') && is_layers());
    if !may_be {
        return None;
    }
    let mut fields = text.split_ascii_whitespace();
    let (major, minor) = fields.nth(3)?.split_once(':')?;
    let number = |text| u32::from_str_radix(text, 16).ok();
    let key = (libc::makedev(number(major)?, number(minor)?), fields.next()?.parse().ok()?);
    if let Some(stand_in) = call.view.stand_ins.find(key) {
        return Some(stand_in.node.path());
    }
    let program =
        call.view.programs.lock().iter().find(|(known, _)| *known == key).map(|(_, path)| path.clone());
    program.or_else(|| {
        layer_text(call, line[line.iter().position(|byte| *byte == b'/')?..].trim_ascii_end(), key, true)
    })
}

/// Programs that ask who runs them before they make a mount, which in a view everybody may.
pub(crate) const MOUNTERS: &[&[u8]] = &[b"mount", b"umount", b"losetup", b"busybox"];

/// `getuid` and its relatives.
pub(crate) fn identity(call: &Call<'_>, name: &str) -> Outcome {
    if !call.view.all_root && !is_mounter(call.view, call.task) {
        return Ok(Answer::GoOn);
    }
    if name.starts_with("getres") {
        for address in &call.args[..3] {
            call.task.write(*address, &0_u32.to_ne_bytes())?;
        }
    }
    Ok(Answer::Value(0))
}

/// Whether a task runs one of them.
pub(crate) fn is_mounter(view: &View, task: Task) -> bool {
    let link = format!("/proc/{}/exe", task.0);
    let Ok(path) = std::fs::read_link(&link) else { return false };
    let path = magic_text(view, link.as_bytes()).unwrap_or_else(|| path.as_os_str().as_bytes().to_vec());
    let name = path.rsplit(|byte| *byte == b'/').next().unwrap_or_default();
    MOUNTERS.contains(&name)
}
