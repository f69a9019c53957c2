//! Calls that take paths, other than those that open and run.

use std::ffi::OsStr;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use nix::errno::Errno;
use nix::libc;
use veduta_api::{Attr, Device, Kind, Perm, RenameFlags, Result, SetAttr, SetTime, Timestamp, XattrMode};

use crate::call::{Answer, Call, DONE, Outcome, Target};
use crate::identity::{EXECUTE, READ, WRITE};
use crate::mounts::{shown, split};
use crate::node::{Node, guarded};
use crate::standin::StandIn;
use crate::walk::{Found, Limits, Place, Start, is_magic};

const CWD: u64 = libc::AT_FDCWD as u64;
/// Bytes; the largest extended attribute.
const MAX_XATTR: usize = 65_536;

/// The argument that is a path, for traces.
pub(crate) fn path_argument(name: &str) -> Option<usize> {
    Some(match name {
        "getcwd" | "prctl" | "fanotify_mark" => return None,
        "symlink" | "inotify_add_watch" => 1,
        "symlinkat" | "move_mount" => 2,
        "mount" => 1,
        name if name.ends_with("at") || name.ends_with("at2") || name == "statx" => 1,
        "open" | "creat" | "stat" | "lstat" | "access" | "readlink" | "mkdir" | "mknod" | "unlink"
        | "rmdir" | "rename" | "link" | "chmod" | "chown" | "lchown" | "utime" | "utimes" | "truncate"
        | "statfs" | "acct" | "swapon" | "swapoff" | "chdir" | "chroot" | "execve" | "umount2" => 0,
        name if name.contains("xattr") && !name.starts_with('f') => 0,
        _ => return None,
    })
}

/// Serves one of them.
pub(crate) fn serve(call: &Call<'_>, name: &str) -> Outcome {
    let args = call.args;
    let flag = |index: usize, bit: i32| args[index] as i32 & bit != 0;
    check_flags(name, &args)?;
    let empty = |index| flag(index, libc::AT_EMPTY_PATH);
    let follow = |index| !flag(index, libc::AT_SYMLINK_NOFOLLOW);
    if let Some(answer) = crate::renumbered::stat(call, name)? {
        return Ok(answer);
    }
    match name {
        "open" | "openat" | "openat2" | "creat" => crate::open::serve(call, name),
        "stat" => on_node(call, CWD, args[0], true, false, |place| stat(call, place, args[1])),
        "lstat" => on_node(call, CWD, args[0], false, false, |place| stat(call, place, args[1])),
        "newfstatat" => {
            on_node(call, args[0], args[1], follow(3), empty(3), |place| stat(call, place, args[2]))
        }
        "statx" => on_node(call, args[0], args[1], follow(2), empty(2), |place| statx(call, place, args[4])),
        "access" => on_node(call, CWD, args[0], true, false, |place| access(call, place, args[1])),
        "faccessat" => on_node(call, args[0], args[1], true, false, |place| access(call, place, args[2])),
        "faccessat2" => {
            on_node(call, args[0], args[1], follow(3), empty(3), |place| access(call, place, args[2]))
        }
        "readlink" => readlink(call, CWD, args[0], args[1], args[2]),
        "readlinkat" => readlink(call, args[0], args[1], args[2], args[3]),
        "mkdir" => make(call, CWD, args[0], Kind::Directory, args[1] as u32, 0),
        "mkdirat" => make(call, args[0], args[1], Kind::Directory, args[2] as u32, 0),
        "mknod" => mknod(call, CWD, args[0], args[1] as u32, args[2]),
        "mknodat" => mknod(call, args[0], args[1], args[2] as u32, args[3]),
        "unlink" => remove(call, CWD, args[0], false),
        "rmdir" => remove(call, CWD, args[0], true),
        "unlinkat" => remove(call, args[0], args[1], flag(2, libc::AT_REMOVEDIR)),
        "rename" => rename(call, (CWD, args[0]), (CWD, args[1]), 0),
        "renameat" => rename(call, (args[0], args[1]), (args[2], args[3]), 0),
        "renameat2" => rename(call, (args[0], args[1]), (args[2], args[3]), args[4] as u32),
        "link" => link(call, (CWD, args[0]), (CWD, args[1]), 0),
        "linkat" => link(call, (args[0], args[1]), (args[2], args[3]), args[4] as i32),
        "symlink" => symlink(call, args[0], CWD, args[1]),
        "symlinkat" => symlink(call, args[0], args[1], args[2]),
        "chmod" => on_node(call, CWD, args[0], true, false, |place| chmod(call, place, args[1])),
        "fchmodat" => on_node(call, args[0], args[1], true, false, |place| chmod(call, place, args[2])),
        "fchmodat2" => {
            on_node(call, args[0], args[1], follow(3), empty(3), |place| chmod(call, place, args[2]))
        }
        "chown" => on_node(call, CWD, args[0], true, false, |place| chown(call, place, args[1], args[2])),
        "lchown" => on_node(call, CWD, args[0], false, false, |place| chown(call, place, args[1], args[2])),
        "fchownat" => {
            on_node(call, args[0], args[1], follow(4), empty(4), |place| chown(call, place, args[2], args[3]))
        }
        "utime" => on_node(call, CWD, args[0], true, false, |place| {
            let times = times(call, args[1], TimeForm::Seconds)?;
            change(call, place, times)
        }),
        "utimes" => on_node(call, CWD, args[0], true, false, |place| {
            let times = times(call, args[1], TimeForm::Micros)?;
            change(call, place, times)
        }),
        // With no path these two are about the descriptor itself, futimens(3); without either they are about nothing.
        "futimesat" | "utimensat" if args[1] == 0 && crate::walk::is_cwd(args[0]) => Err(Errno::EFAULT),
        "futimesat" => on_node(call, args[0], args[1], true, args[1] == 0, |place| {
            let times = times(call, args[2], TimeForm::Micros)?;
            change(call, place, times)
        }),
        "utimensat" => on_node(call, args[0], args[1], follow(3), args[1] == 0 || empty(3), |place| {
            let times = times(call, args[2], TimeForm::Nanos)?;
            change(call, place, times)
        }),
        "truncate" => on_node(call, CWD, args[0], true, false, |place| truncate(call, place, args[1] as i64)),
        "statfs" => on_node(call, CWD, args[0], true, false, |place| statfs(call, place, args[1])),
        "chdir" => chdir(call),
        "chroot" => chroot(call),
        "getcwd" => getcwd(call),
        "getxattr" | "listxattr" | "setxattr" | "removexattr" => {
            on_node(call, CWD, args[0], true, false, |place| xattr(call, place, name, 1))
        }
        "lgetxattr" | "llistxattr" | "lsetxattr" | "lremovexattr" => {
            on_node(call, CWD, args[0], false, false, |place| xattr(call, place, &name[1..], 1))
        }
        "setxattrat" | "getxattrat" | "listxattrat" | "removexattrat" | "file_getattr" | "file_setattr"
        | "name_to_handle_at" => {
            let at = usize::from(name.starts_with("file_")) * 4 + usize::from(!name.starts_with("file_")) * 2;
            let at = if name == "name_to_handle_at" { 4 } else { at };
            on_node(call, args[0], args[1], true, empty(at), |_| Err(Errno::EOPNOTSUPP))
        }
        "inotify_add_watch" => {
            const DONT_FOLLOW: u64 = 0x0200_0000;
            on_node(call, CWD, args[1], args[2] & DONT_FOLLOW == 0, false, |place| {
                let (node, attr) = node(place)?;
                crate::inotify::add(call, node, attr.kind, place)
            })
        }
        // Marks are made on what the kernel finds, and it would find something else.
        "fanotify_mark" if args[4] == 0 => Ok(Answer::GoOn),
        "fanotify_mark" => on_node(call, args[3], args[4], true, false, |_| Err(Errno::EOPNOTSUPP)),
        // The kernel would write to what it finds itself.
        "acct" if args[0] == 0 => Ok(Answer::GoOn),
        "acct" | "swapon" | "swapoff" => on_node(call, CWD, args[0], true, false, |_| Err(Errno::EOPNOTSUPP)),
        "open_by_handle_at" => crate::apart::open_by_handle(call),
        "bind" | "connect" | "sendto" | "sendmsg" | "sendmmsg" => crate::sockets::serve(call, name),
        _ => Ok(Answer::GoOn),
    }
}

/// Flags that a call does not know are `EINVAL`, before anything else is looked at.
fn check_flags(name: &str, args: &[u64; 6]) -> Result<()> {
    const SYNC_TYPE: i32 = 0x6000;
    const STATX_RESERVED: u64 = 0x8000_0000;
    let empty = libc::AT_EMPTY_PATH;
    let (index, known) = match name {
        "newfstatat" => (3, libc::AT_SYMLINK_NOFOLLOW | libc::AT_NO_AUTOMOUNT | empty | SYNC_TYPE),
        "statx" => (2, libc::AT_SYMLINK_NOFOLLOW | libc::AT_NO_AUTOMOUNT | empty | SYNC_TYPE),
        "faccessat2" => (3, libc::AT_EACCESS | libc::AT_SYMLINK_NOFOLLOW | empty),
        "fchmodat2" | "utimensat" => (3, libc::AT_SYMLINK_NOFOLLOW | empty),
        "fchownat" => (4, libc::AT_SYMLINK_NOFOLLOW | empty),
        "linkat" => (4, libc::AT_SYMLINK_FOLLOW | empty),
        "unlinkat" => (2, libc::AT_REMOVEDIR),
        _ => return Ok(()),
    };
    let flags = args[index] as i32;
    let is_wrong = flags & !known != 0
        || (name == "statx" && (flags & SYNC_TYPE == SYNC_TYPE || args[3] & STATX_RESERVED != 0));
    if is_wrong { Err(Errno::EINVAL) } else { Ok(()) }
}

/// Does something to an existing node of a tree; on the host the kernel does it, or the engine where the kernel cannot.
fn on_node(
    call: &Call<'_>,
    dirfd: u64,
    address: u64,
    follow: bool,
    empty: bool,
    work: impl FnOnce(&Place) -> Outcome,
) -> Outcome {
    let found = match call.find(dirfd, address, follow, empty)? {
        Target::PlainlyHost(_) => return Ok(Answer::GoOn),
        Target::Found(found) => found,
    };
    match &found.place {
        Some(Place::Host(_)) if found.direct => Ok(Answer::GoOn),
        Some(Place::Host(path)) => crate::host::again(call, &[path]),
        Some(place @ Place::Tree(..)) => work(place),
        None if found.direct => Ok(Answer::GoOn),
        None => Err(Errno::ENOENT),
    }
}

/// The node of a place that is known to be a tree's.
fn node(place: &Place) -> Result<(&Arc<Node>, &Attr)> {
    match place {
        Place::Tree(node, attr) => Ok((node, attr)),
        Place::Host(_) => Err(Errno::EIO),
    }
}

/// What a directory above a mount point of nothing looks like, and everything else: the attributes that are shown.
pub(crate) fn stat(call: &Call<'_>, place: &Place, address: u64) -> Outcome {
    let (node, attr) = node(place)?;
    let attr = with_memory(call, node, *attr);
    call.task.write(address, &crate::stat::stat(&node.mount, &attr))?;
    DONE
}

/// A file that is mapped may have grown in memory, and a size that others changed is told to those who map it.
fn with_memory(call: &Call<'_>, node: &Arc<Node>, attr: Attr) -> Attr {
    if let Some(stand_in) = call.view.stand_ins.known(node.mount.id, node.ino) {
        if attr.kind == Kind::File {
            stand_in.hear_size(attr.size);
        }
    }
    attr
}

fn statx(call: &Call<'_>, place: &Place, address: u64) -> Outcome {
    let (node, attr) = node(place)?;
    let attr = with_memory(call, node, *attr);
    let is_root = node.parent().is_none();
    call.task.write(address, &crate::stat::statx(&node.mount, &attr, is_root))?;
    DONE
}

fn access(call: &Call<'_>, place: &Place, mode: u64) -> Outcome {
    let mode = mode as u32;
    if mode & !7 != 0 {
        return Err(Errno::EINVAL);
    }
    let (node, attr) = node(place)?;
    call.may(place, mode)?;
    if mode & WRITE != 0 && matches!(attr.kind, Kind::File | Kind::Directory | Kind::Symlink) {
        call.writable(place)?;
        if attr.flags.immutable {
            return Err(Errno::EPERM);
        }
    }
    let no_exec = node.mount.no_exec.load(Ordering::Relaxed);
    if mode & EXECUTE != 0 && attr.kind == Kind::File && no_exec {
        return Err(Errno::EACCES);
    }
    DONE
}

fn readlink(call: &Call<'_>, dirfd: u64, path: u64, buffer: u64, size: u64) -> Outcome {
    if size as i32 <= 0 {
        return Err(Errno::EINVAL);
    }
    // Only readlinkat(2) takes an empty path, for the descriptor of a link.
    let by_descriptor = dirfd != CWD && call.task.read_path(path)?.is_empty();
    let found = match call.find(dirfd, path, false, by_descriptor)? {
        Target::PlainlyHost(_) => return Ok(Answer::GoOn),
        Target::Found(found) => found,
    };
    let text = match found.place.as_ref() {
        None if found.direct => return Ok(Answer::GoOn),
        None => return Err(Errno::ENOENT),
        Some(Place::Host(real)) => {
            match if is_magic(real) { crate::proc::link_text(call, real) } else { None } {
                Some(text) => text,
                None if found.direct => return Ok(Answer::GoOn),
                None => return crate::host::again(call, &[real]),
            }
        }
        Some(Place::Tree(node, attr)) => {
            if attr.kind != Kind::Symlink {
                return Err(if by_descriptor { Errno::ENOENT } else { Errno::EINVAL });
            }
            guarded(|| node.tree().readlink(node.ino))?.as_bytes().to_vec()
        }
    };
    let len = text.len().min(size as usize);
    call.task.write(buffer, &text[..len])?;
    Ok(Answer::Value(len as i64))
}

/// Does something to a name in a directory of a tree. `None`: the call is the host's, and this is its answer.
fn in_directory<'f>(
    call: &Call<'_>,
    found: &'f Found,
) -> Result<std::result::Result<(&'f Arc<Node>, &'f Attr), Answer>> {
    match found.parent.as_ref() {
        None if found.direct => Ok(Err(Answer::GoOn)),
        None => Err(Errno::EBUSY),
        Some(Place::Host(_)) if found.direct => Ok(Err(Answer::GoOn)),
        Some(Place::Host(path)) => {
            let path = [path, b"/".as_slice(), &found.name].concat();
            crate::host::again(call, &[&path]).map(Err)
        }
        Some(place @ Place::Tree(node, attr)) => {
            if attr.kind != Kind::Directory {
                return Err(Errno::ENOTDIR);
            }
            call.writable(place)?;
            call.may(place, WRITE | EXECUTE)?;
            Ok(Ok((node, attr)))
        }
    }
}

/// Finds the place for a new name.
fn find_new(call: &Call<'_>, dirfd: u64, path: u64) -> Result<Option<Found>> {
    match find_last(call, dirfd, path)? {
        Target::PlainlyHost(_) => Ok(None),
        Target::Found(found) => {
            // Existing names are refused before anything else is looked at; a mount point is one, whatever is below.
            let is_host =
                found.direct && found.parent.as_ref().is_none_or(|parent| matches!(parent, Place::Host(_)));
            if found.place.is_some() && !(is_host && matches!(found.place, Some(Place::Host(_)))) {
                return Err(Errno::EEXIST);
            }
            Ok(Some(*found))
        }
    }
}

/// Finds what is to be made, removed or renamed: the last name itself, also with a slash behind it, which says only that it has to be a directory.
fn find_last(call: &Call<'_>, dirfd: u64, path: u64) -> Result<Target> {
    let text = call.task.read_path(path)?;
    let end = text.iter().rposition(|byte| *byte != b'/').map_or(text.len(), |last| last + 1);
    let mut found = call.find_path(dirfd, &text[..end], false, false, Limits::default())?;
    if let Target::Found(found) = &mut found {
        found.wants_dir |= end < text.len();
    }
    Ok(found)
}

fn make(call: &Call<'_>, dirfd: u64, path: u64, kind: Kind, mode: u32, device: u64) -> Outcome {
    let Some(found) = find_new(call, dirfd, path)? else { return Ok(Answer::GoOn) };
    if found.wants_dir && kind != Kind::Directory {
        return Err(Errno::ENOENT);
    }
    let (directory, above) = match in_directory(call, &found)? {
        Err(answer) => return Ok(answer),
        Ok(directory) => directory,
    };
    Call::unguarded(above, true)?;
    let rdev = Device { major: libc::major(device), minor: libc::minor(device) };
    if matches!(kind, Kind::CharDevice | Kind::BlockDevice)
        && !call.caller.on(&directory.mount).is_root()
        && directory.mount.checks_permissions()
    {
        return Err(Errno::EPERM);
    }
    let new = crate::open::new_node(call, directory, above, kind, mode, rdev)?;
    let name = OsStr::from_bytes(&found.name);
    check_name(directory, &found.name)?;
    let entry = guarded(|| match kind {
        Kind::Directory => directory.tree().mkdir(directory.ino, name, &new),
        _ => directory.tree().mknod(directory.ino, name, &new),
    })?;
    call.view.watches.made(directory, name, kind);
    drop(Node::child(directory, name, &entry));
    DONE
}

fn check_name(directory: &Node, name: &[u8]) -> Result<()> {
    if name.len() > directory.mount.facts.name_max as usize { Err(Errno::ENAMETOOLONG) } else { Ok(()) }
}

fn mknod(call: &Call<'_>, dirfd: u64, path: u64, mode: u32, device: u64) -> Outcome {
    let kind = match mode & 0o170_000 {
        0 => Kind::File,
        _ => Kind::from_mode(mode).ok_or(Errno::EINVAL)?,
    };
    match kind {
        Kind::Directory => Err(Errno::EPERM),
        Kind::Symlink => Err(Errno::EINVAL),
        _ => make(call, dirfd, path, kind, mode, device),
    }
}

fn remove(call: &Call<'_>, dirfd: u64, path: u64, is_dir: bool) -> Outcome {
    let text = call.task.read_path(path)?;
    let last = text.rsplit(|byte| *byte == b'/').find(|part| !part.is_empty()).unwrap_or_default();
    let target = find_last(call, dirfd, path)?;
    let name = name_of(&target).filter(|name| is_plain_root(call, Some(name)));
    if let Some(name) = name.filter(|_| last != b"." && last != b"..") {
        return Err(if is_dir || !is_host_dir(&name) { Errno::EBUSY } else { Errno::EISDIR });
    }
    let found = match target {
        Target::PlainlyHost(_) => return Ok(Answer::GoOn),
        Target::Found(found) => found,
    };
    let is_virtual = matches!(found.place, Some(Place::Tree(..)));
    if let Some(parent) = &found.parent {
        call.writable(parent)?;
    }
    if found.parent.is_none() && is_virtual {
        return Err(match last {
            b"." if is_dir => Errno::EINVAL,
            b".." if is_dir => Errno::ENOTEMPTY,
            _ if is_dir => Errno::EBUSY,
            _ => Errno::EISDIR,
        });
    }
    if let Some(Place::Tree(node, _)) = &found.place {
        if node.parent().is_none() || call.table.at(&node.path()).is_some() {
            return Err(Errno::EBUSY);
        }
    }
    if found.place.is_none() && !found.direct {
        return Err(Errno::ENOENT);
    }
    let (directory, above) = match in_directory(call, &found)? {
        Err(answer) => return Ok(answer),
        Ok(directory) => directory,
    };
    let (node, attr) = node(found.existing()?)?;
    Call::unguarded(above, false)?;
    Call::unguarded(attr, false)?;
    if directory.mount.checks_permissions() {
        call.caller.on(&directory.mount).may_remove(above, attr)?;
    }
    if found.wants_dir && attr.kind != Kind::Directory {
        return Err(Errno::ENOTDIR);
    }
    let name = OsStr::from_bytes(&found.name);
    match (is_dir, attr.kind) {
        (true, Kind::Directory) if call.table.any_below(&node.path()) => Err(Errno::EBUSY),
        (true, Kind::Directory) => guarded(|| directory.tree().rmdir(directory.ino, name)),
        (true, _) => Err(Errno::ENOTDIR),
        (false, Kind::Directory) => Err(Errno::EISDIR),
        (false, _) => guarded(|| directory.tree().unlink(directory.ino, name)),
    }?;
    if let Some(plane) = node.plane() {
        plane.unlinked(node.ino);
    }
    call.view.watches.removed(directory, name, attr.kind);
    call.view.stand_ins.unlinked(node);
    DONE
}

fn rename(call: &Call<'_>, from: (u64, u64), to: (u64, u64), flags: u32) -> Outcome {
    let (old, new) = (find_last(call, from.0, from.1)?, find_last(call, to.0, to.1)?);
    let is_name = |path: u64| -> Result<bool> {
        let text = call.task.read_path(path)?;
        let last = text.rsplit(|byte| *byte == b'/').find(|part| !part.is_empty());
        Ok(!matches!(last, Some(b"." | b"..") | None))
    };
    let names = match is_name(from.1)? && is_name(to.1)? {
        true => name_of(&old).zip(name_of(&new)),
        false => None,
    };
    if let Some((old, new)) = names {
        let (from, to) = (split(&old).0, split(&new).0);
        // What is absent is missed by the kernel.
        if call.table.plain_at(from) != call.table.plain_at(to) && is_host_dir(from) && is_host_dir(to) {
            return Err(Errno::EXDEV);
        }
        if exists(&old) && (is_plain_root(call, Some(&old)) || is_plain_root(call, Some(&new))) {
            return Err(Errno::EBUSY);
        }
    }
    let (old, new) = match (old, new) {
        (Target::PlainlyHost(_), Target::PlainlyHost(_)) => return Ok(Answer::GoOn),
        (Target::Found(old), Target::Found(new)) => (old, new),
        // The descriptor itself.
        (Target::PlainlyHost(None), Target::Found(new)) if matches!(new.parent, Some(Place::Tree(..))) => {
            let fd = crate::serve::descriptor(call.task, from.0 as i32).map_err(|_| Errno::EBADF)?;
            return give_name(call, &fd, &new);
        }
        (Target::Found(found), Target::PlainlyHost(_)) | (Target::PlainlyHost(_), Target::Found(found)) => {
            let is_host = !matches!(found.place, Some(Place::Tree(..)))
                && !matches!(found.parent, Some(Place::Tree(..)));
            if is_host && found.direct {
                return Ok(Answer::GoOn);
            }
            if is_host {
                return across(call, from, to);
            }
            // A mount point is not renamed, and nothing is put in its place.
            return Err(if matches!(found.parent, Some(Place::Host(_))) {
                Errno::EBUSY
            } else {
                Errno::EXDEV
            });
        }
    };
    if let (Some(parent @ Place::Tree(one, _)), Some(Place::Tree(other, _))) = (&old.parent, &new.parent) {
        if one.mount.id == other.mount.id {
            call.writable(parent)?;
        }
    }
    let on_host = |found: &Found| {
        !matches!(found.place, Some(Place::Tree(..))) && matches!(found.parent, Some(Place::Host(_)) | None)
    };
    match (on_host(&old), on_host(&new)) {
        (true, true) if old.direct && new.direct => return Ok(Answer::GoOn),
        (true, true) => {
            let (old, new) = (full(&old), full(&new));
            return crate::host::again(call, &[&old, &new]);
        }
        (true, false) | (false, true) => {
            // What is not there is missed first.
            old.existing()?;
            let is_in_host = |found: &Found| matches!(found.parent, Some(Place::Host(_)));
            return Err(if is_in_host(&old) && is_in_host(&new) { Errno::EBUSY } else { Errno::EXDEV });
        }
        (false, false) => {}
    }
    let flags = rename_flags(flags)?;
    let is_same = |one: &Arc<Node>, other: &Arc<Node>| one.mount.id == other.mount.id && one.ino == other.ino;
    if let (Some(Place::Tree(one, _)), Some(Place::Tree(other, _))) = (&old.place, &new.place) {
        if is_same(one, other) && old.parent.is_some() && new.parent.is_some() && !flags.no_replace {
            call.writable(&Place::Tree(Arc::clone(one), one.attr()?))?;
            // Two names of one file, or one name: rename(2) does nothing.
            return DONE;
        }
    }
    if old.parent.is_none() || new.parent.is_none() {
        return Err(Errno::EBUSY);
    }
    let (moved, attr) = node(old.existing()?)?;
    if moved.parent().is_none() || call.table.any_below(&moved.path()) {
        return Err(Errno::EBUSY);
    }
    let (from_dir, from_above) = node(old.parent.as_ref().ok_or(Errno::EBUSY)?)?;
    let (to_dir, to_above) = match new.parent.as_ref().ok_or(Errno::EBUSY)? {
        Place::Tree(node, attr) => (node, attr),
        Place::Host(_) => return Err(Errno::EXDEV),
    };
    if from_dir.mount.id != to_dir.mount.id {
        return Err(Errno::EXDEV);
    }
    if flags.no_replace && new.place.is_some() {
        return Err(Errno::EEXIST);
    }
    if (old.wants_dir || new.wants_dir) && attr.kind != Kind::Directory {
        return Err(Errno::ENOTDIR);
    }
    let is_within = |dir: &Arc<Node>, top: &Arc<Node>| {
        std::iter::successors(Some(Arc::clone(dir)), |dir| dir.parent()).any(|dir| is_same(&dir, top))
    };
    if is_within(to_dir, moved) {
        return Err(Errno::EINVAL);
    }
    if matches!(&new.place, Some(Place::Tree(target, _)) if is_within(from_dir, target)) {
        return Err(if flags.exchange { Errno::EINVAL } else { Errno::ENOTEMPTY });
    }
    for place in [&old.parent, &new.parent].into_iter().flatten() {
        call.writable(place)?;
        call.may(place, WRITE | EXECUTE)?;
    }
    check_name(to_dir, &new.name)?;
    let checks = from_dir.mount.checks_permissions();
    for above in [from_above, to_above] {
        Call::unguarded(above, false)?;
    }
    Call::unguarded(attr, false)?;
    let caller = call.caller.on(&from_dir.mount);
    if checks {
        caller.may_remove(from_above, attr)?;
        if attr.kind == Kind::Directory && from_dir.ino != to_dir.ino {
            caller.may(attr, WRITE)?;
        }
    }
    if let Some(Place::Tree(target, target_attr)) = &new.place {
        if target.parent().is_none() || call.table.any_below(&target.path()) {
            return Err(Errno::EBUSY);
        }
        Call::unguarded(target_attr, false)?;
        if checks {
            caller.may_remove(to_above, target_attr)?;
        }
    } else if flags.exchange {
        return Err(Errno::ENOENT);
    }
    let (name, new_name) = (OsStr::from_bytes(&old.name), OsStr::from_bytes(&new.name));
    let on_host = crate::through::directory_on_host(moved, attr);
    let other_on_host = match &new.place {
        Some(Place::Tree(target, attr)) if flags.exchange => crate::through::directory_on_host(target, attr),
        _ => None,
    };
    if moved.mount.through.is_some() && attr.kind != Kind::Directory {
        call.view.lent.remember((crate::stat::device(&moved.mount, attr), attr.st_ino), moved);
    }
    call.may_copy_up(moved, attr);
    if let Some(Place::Tree(target, attr)) = new.place.as_ref().filter(|_| flags.exchange) {
        call.may_copy_up(target, attr);
    }
    guarded(|| from_dir.tree().rename(from_dir.ino, name, to_dir.ino, new_name, flags))?;
    call.view.watches.moved((from_dir, name), (to_dir, new_name), attr.kind, flags.exchange);
    tell_moved(call, moved, to_dir, new_name);
    if let Some(path) = on_host {
        call.view.stand_ins.held.moved(path, moved);
    }
    match &new.place {
        Some(Place::Tree(target, _)) if flags.exchange => {
            tell_moved(call, target, from_dir, name);
            if let Some(path) = other_on_host {
                call.view.stand_ins.held.moved(path, target);
            }
        }
        Some(Place::Tree(target, _)) => {
            if let Some(plane) = target.plane() {
                plane.unlinked(target.ino);
            }
            call.view.stand_ins.unlinked(target);
        }
        _ => {}
    }
    DONE
}

/// Those who have the node open learn its new path.
fn tell_moved(call: &Call<'_>, node: &Arc<Node>, parent: &Arc<Node>, name: &OsStr) {
    node.moved(parent, name);
    if let Some(known) = node.plane().and_then(|plane| plane.stand_in(node.ino)) {
        known.node.moved(parent, name);
    }
    if let Some(stand_in) = call.view.stand_ins.known(node.mount.id, node.ino) {
        stand_in.node.moved(parent, name);
    }
}

/// The path of a name in a directory of the host, if that is what was found.
fn name_of(target: &Target) -> Option<Vec<u8>> {
    match target {
        Target::PlainlyHost(path) => path.clone(),
        Target::Found(found) => {
            let is_host = !matches!(found.place, Some(Place::Tree(..)))
                && !matches!(found.parent, Some(Place::Tree(..)));
            (is_host && found.parent.is_some()).then(|| full(found))
        }
    }
}

/// Whether something of the host is bound on itself at a path.
fn is_plain_root(call: &Call<'_>, path: Option<&[u8]>) -> bool {
    path.is_some_and(|path| call.table.at(path).is_some_and(|mount| mount.is_plain()) && exists(path))
}

fn exists(path: &[u8]) -> bool {
    std::fs::symlink_metadata(OsStr::from_bytes(shown(path))).is_ok()
}

fn is_host_dir(path: &[u8]) -> bool {
    std::path::Path::new(OsStr::from_bytes(shown(path))).is_dir()
}

/// Whether a file and the directory for a new name of it lie on two sides of a bind of the host on itself, where the kernel does not know of it.
/// `dirfd`: what the file is if it has no path.
fn is_between_plain(call: &Call<'_>, dirfd: u64, old: &Target, new: &[u8]) -> bool {
    let read = |link: &std::path::Path| std::fs::read_link(link).ok().map(std::path::PathBuf::into_os_string);
    let path = match old {
        Target::PlainlyHost(Some(path)) => Some(path.clone()),
        Target::PlainlyHost(None) => {
            let link = match crate::walk::is_cwd(dirfd) {
                true => format!("/proc/{}/cwd", call.task.0),
                false => format!("/proc/{}/fd/{}", call.task.0, dirfd as i32),
            };
            read(std::path::Path::new(&link)).map(|path| path.as_bytes().to_vec())
        }
        Target::Found(found) => match &found.place {
            Some(Place::Host(real)) if is_magic(real) => {
                read(std::path::Path::new(OsStr::from_bytes(real))).map(|path| path.as_bytes().to_vec())
            }
            Some(Place::Host(real)) => Some(real.clone()),
            _ => None,
        },
    };
    let new = split(new).0;
    // What has no path, such as a memory file, the kernel refuses, and what is absent it misses.
    let is_there = |path: &[u8]| exists(path) || path.ends_with(b" (deleted)");
    path.is_some_and(|path| {
        let is_between = path.starts_with(b"/") && call.table.plain_at(&path) != call.table.plain_at(new);
        is_between && is_there(&path) && is_host_dir(new)
    })
}

/// Two paths of the host, of which the kernel can find only one.
fn across(call: &Call<'_>, from: (u64, u64), to: (u64, u64)) -> Outcome {
    let path = |(dirfd, address): (u64, u64)| -> Result<Vec<u8>> {
        let text = call.task.read_path(address)?;
        let start = if text.starts_with(b"/") { Start::Host(Vec::new()) } else { call.start(dirfd)? };
        Ok(full(&call.walker(Limits::default()).walk(&start, &text, false)?))
    };
    let (from, to) = (path(from)?, path(to)?);
    crate::host::again(call, &[&from, &to])
}

/// The canonical path of a name, whether it is there or not.
fn full(found: &Found) -> Vec<u8> {
    match (&found.parent, &found.place) {
        (Some(parent), _) => [&parent.path(), b"/".as_slice(), &found.name].concat(),
        (None, Some(place)) => place.path(),
        (None, None) => Vec::new(),
    }
}

fn rename_flags(flags: u32) -> Result<RenameFlags> {
    let parsed = RenameFlags {
        no_replace: flags & libc::RENAME_NOREPLACE != 0,
        exchange: flags & libc::RENAME_EXCHANGE != 0,
        whiteout: flags & libc::RENAME_WHITEOUT != 0,
    };
    if flags & !7 != 0 || (parsed.exchange && (parsed.no_replace || parsed.whiteout)) {
        return Err(Errno::EINVAL);
    }
    Ok(parsed)
}

fn link(call: &Call<'_>, from: (u64, u64), to: (u64, u64), flags: i32) -> Outcome {
    let follow = flags & libc::AT_SYMLINK_FOLLOW != 0;
    let old = call.find(from.0, from.1, follow, flags & libc::AT_EMPTY_PATH != 0)?;
    if let Target::Found(old) = &old {
        // What is not there is missed before the other path is looked at.
        old.existing()?;
    }
    let new = find_last(call, to.0, to.1)?;
    if let Some(name) = name_of(&new).filter(|name| is_between_plain(call, from.0, &old, name)) {
        return Err(if exists(&name) { Errno::EEXIST } else { Errno::EXDEV });
    }
    let is_absent = matches!(&old, Target::PlainlyHost(Some(path)) if !exists(path));
    if let (Target::Found(new), false) = (&new, is_absent) {
        if let (Some(parent), None) = (&new.parent, &new.place) {
            call.writable(parent)?;
        }
    }
    let (old, new) = match (old, new) {
        (Target::PlainlyHost(_), Target::PlainlyHost(_)) => return Ok(Answer::GoOn),
        (Target::Found(old), Target::Found(new)) => (old, new),
        (Target::Found(found), Target::PlainlyHost(_)) | (Target::PlainlyHost(_), Target::Found(found)) => {
            let is_host = !matches!(found.place, Some(Place::Tree(..)))
                && !matches!(found.parent, Some(Place::Tree(..)));
            return match (is_host, found.direct) {
                (true, true) => Ok(Answer::GoOn),
                (true, false) => across(call, from, to),
                _ => Err(Errno::EXDEV),
            };
        }
    };
    let (source, attr) = match (old.existing()?, new.parent.as_ref()) {
        (Place::Host(_), Some(Place::Host(_)) | None) if old.direct && new.direct => return Ok(Answer::GoOn),
        (Place::Host(_), Some(Place::Host(_)) | None) => {
            let (old, new) = (full(&old), full(&new));
            return crate::host::again(call, &[&old, &new]);
        }
        (Place::Host(real), Some(Place::Tree(..))) if follow && is_magic(real) => {
            let fd = crate::lent::behind_link(real).ok_or(Errno::EXDEV)?;
            return give_name(call, &fd, &new);
        }
        (Place::Host(_), _) | (Place::Tree(..), Some(Place::Host(_)) | None) => {
            return Err(if new.place.is_some() { Errno::EEXIST } else { Errno::EXDEV });
        }
        (Place::Tree(node, attr), _) => (node, attr),
    };
    link_node(call, source, attr, &new)
}

/// Names a file without a name (`O_TMPFILE`) of which a process has the host's own descriptor.
fn give_name(call: &Call<'_>, fd: &OwnedFd, new: &Found) -> Outcome {
    let Some(Place::Tree(directory, _)) = &new.parent else { return Err(Errno::EXDEV) };
    if new.place.is_some() {
        return Err(Errno::EEXIST);
    }
    let entry = guarded(|| directory.tree().node_of(fd.as_fd()))?;
    let source = Node::child(directory, OsStr::new(""), &entry);
    // Whether it may have one only the host knows.
    source.may_get_name.store(true, Ordering::Relaxed);
    link_node(call, &source, &entry.attr, new)
}

fn link_node(call: &Call<'_>, source: &Arc<Node>, attr: &Attr, new: &Found) -> Outcome {
    if new.place.is_some() {
        return Err(Errno::EEXIST);
    }
    let (directory, above) = match in_directory(call, new)? {
        Err(answer) => return Ok(answer),
        Ok(directory) => directory,
    };
    if directory.mount.id != source.mount.id {
        return Err(Errno::EXDEV);
    }
    if attr.nlink == 0 && !source.may_get_name.load(Ordering::Relaxed) {
        return Err(Errno::ENOENT);
    }
    if attr.kind == Kind::Directory {
        return Err(Errno::EPERM);
    }
    if new.wants_dir {
        return Err(Errno::ENOENT);
    }
    Call::unguarded(above, true)?;
    Call::unguarded(attr, false)?;
    check_name(directory, &new.name)?;
    let name = OsStr::from_bytes(&new.name);
    call.changes(source, attr);
    let entry = guarded(|| directory.tree().link(source.ino, directory.ino, name))?;
    source.may_get_name.store(false, Ordering::Relaxed);
    call.view.watches.linked(source, directory, name);
    drop(Node::child(directory, name, &entry));
    DONE
}

fn symlink(call: &Call<'_>, target: u64, dirfd: u64, path: u64) -> Outcome {
    let Some(found) = find_new(call, dirfd, path)? else { return Ok(Answer::GoOn) };
    let (directory, above) = match in_directory(call, &found)? {
        Err(answer) => return Ok(answer),
        Ok(directory) => directory,
    };
    let target = call.task.read_path(target)?;
    if target.is_empty() || found.wants_dir {
        return Err(Errno::ENOENT);
    }
    Call::unguarded(above, true)?;
    check_name(directory, &found.name)?;
    let new = crate::open::new_node(call, directory, above, Kind::Symlink, 0o777, Device::default())?;
    let name = OsStr::from_bytes(&found.name);
    let entry = guarded(|| directory.tree().symlink(directory.ino, name, OsStr::from_bytes(&target), &new))?;
    call.view.watches.made(directory, name, Kind::Symlink);
    drop(Node::child(directory, name, &entry));
    DONE
}

/// Changes attributes of a node, as far as the caller may.
pub(crate) fn change(call: &Call<'_>, place: &Place, mut changes: SetAttr) -> Outcome {
    let (node, attr) = node(place)?;
    call.writable(place)?;
    if attr.flags.immutable || (attr.flags.append_only && !only_touches(&changes)) {
        return Err(Errno::EPERM);
    }
    if node.mount.checks_permissions() {
        call.caller.on(&node.mount).may_change(attr, &mut changes)?;
    }
    call.changes(node, attr);
    guarded(|| node.tree().setattr(node.ino, &changes))?;
    if let Some(plane) = node.plane() {
        plane.changed(node.ino);
    }
    call.view.watches.changed(node, &changes);
    DONE
}

fn only_touches(changes: &SetAttr) -> bool {
    let now = |time| matches!(time, None | Some(SetTime::Now));
    changes.perm.is_none()
        && changes.uid.is_none()
        && changes.gid.is_none()
        && now(changes.atime)
        && now(changes.mtime)
}

fn chmod(call: &Call<'_>, place: &Place, mode: u64) -> Outcome {
    if node(place)?.1.kind == Kind::Symlink {
        return Err(Errno::EOPNOTSUPP);
    }
    change(call, place, SetAttr { perm: Some(Perm::from_mode(mode as u32)), ..SetAttr::default() })
}

/// `chown` in all its forms.
pub(crate) fn chown(call: &Call<'_>, place: &Place, uid: u64, gid: u64) -> Outcome {
    let id = |id: u64| (id as u32 != u32::MAX).then_some(id as u32);
    let (node, attr) = node(place)?;
    let caller = call.caller.on(&node.mount);
    // Even if neither is changed, what is no directory is no set-id program any more: `chown_common` of the kernel.
    let drop_set_id = attr.kind != Kind::Directory && attr.perm.bits() & 0o6000 != 0;
    if drop_set_id && !caller.is_root() && caller.uid() != attr.uid {
        return Err(Errno::EPERM);
    }
    change(call, place, SetAttr { uid: id(uid), gid: id(gid), drop_set_id, ..SetAttr::default() })
}

#[derive(Clone, Copy)]
enum TimeForm {
    Seconds,
    Micros,
    Nanos,
}

fn times(call: &Call<'_>, address: u64, form: TimeForm) -> Result<SetAttr> {
    if address == 0 {
        let now = Some(SetTime::Now);
        return Ok(SetAttr { atime: now, mtime: now, ..SetAttr::default() });
    }
    let mut words = [0_i64; 4];
    let count = if matches!(form, TimeForm::Seconds) { 2 } else { 4 };
    for (index, word) in words.iter_mut().take(count).enumerate() {
        *word = call.task.read_u64(address + 8 * index as u64)? as i64;
    }
    let time = |seconds: i64, part: i64| -> Result<Option<SetTime>> {
        let nanos = match form {
            TimeForm::Seconds => 0,
            TimeForm::Micros => part.checked_mul(1000).ok_or(Errno::EINVAL)?,
            TimeForm::Nanos if part == libc::UTIME_NOW => return Ok(Some(SetTime::Now)),
            TimeForm::Nanos if part == libc::UTIME_OMIT => return Ok(None),
            TimeForm::Nanos => part,
        };
        if !(0..1_000_000_000).contains(&nanos) {
            return Err(Errno::EINVAL);
        }
        Ok(Some(SetTime::To(Timestamp { seconds, nanos: nanos as u32 })))
    };
    let (atime, mtime) = match form {
        TimeForm::Seconds => (time(words[0], 0)?, time(words[1], 0)?),
        _ => (time(words[0], words[1])?, time(words[2], words[3])?),
    };
    Ok(SetAttr { atime, mtime, ..SetAttr::default() })
}

fn truncate(call: &Call<'_>, place: &Place, size: i64) -> Outcome {
    let (node, attr) = node(place)?;
    match attr.kind {
        Kind::Directory => return Err(Errno::EISDIR),
        Kind::File => {}
        _ => return Err(Errno::EINVAL),
    }
    if size < 0 {
        return Err(Errno::EINVAL);
    }
    call.may(place, WRITE)?;
    call.writable(place)?;
    resize(call, node, attr, size as u64, None)
}

/// Sets the size of a file.
pub(crate) fn resize(
    call: &Call<'_>,
    node: &Arc<Node>,
    attr: &Attr,
    size: u64,
    stand_in: Option<&StandIn>,
) -> Outcome {
    Call::unguarded(attr, false)?;
    if size > node.mount.facts.size_max {
        return Err(Errno::EFBIG);
    }
    if size > attr.size && size > call.file_size_limit()? {
        return Err(call.too_large());
    }
    call.changes(node, attr);
    let drop_set_id = !call.caller.on(&node.mount).is_root();
    let changes = SetAttr { size: Some(size), drop_set_id, ..SetAttr::default() };
    let work = || {
        let Some(plane) = node.plane().filter(|plane| plane.knows(node.ino)) else {
            return guarded(|| node.tree().setattr(node.ino, &changes)).map(drop);
        };
        // The kernel has pages of it: it is the one to cut them.
        let kept = SetAttr { size: None, ..changes };
        if changes.drop_set_id && attr.perm.bits() & 0o6000 != 0 {
            guarded(|| node.tree().setattr(node.ino, &kept))?;
        }
        let fd = plane.open(node, nix::fcntl::OFlag::O_WRONLY, None)?;
        nix::unistd::ftruncate(&fd, size as i64)
    };
    let known = call.view.stand_ins.known(node.mount.id, node.ino);
    match stand_in.or(known.as_deref()) {
        Some(stand_in) => stand_in.resize(size, work)?,
        None => work()?,
    }
    call.view.watches.modified(node);
    DONE
}

/// `statfs` of a place in a tree.
pub(crate) fn statfs(call: &Call<'_>, place: &Place, address: u64) -> Outcome {
    let (node, _) = node(place)?;
    call.view.stand_ins.collect_unlinked();
    let facts = guarded(|| node.tree().statfs())?;
    call.task.write(address, &crate::stat::statfs(&node.mount, &facts))?;
    DONE
}

fn chdir(call: &Call<'_>) -> Outcome {
    let found = match call.find(CWD, call.args[0], true, false)? {
        Target::PlainlyHost(_) => return Ok(Answer::GoOn),
        Target::Found(found) => found,
    };
    match found.place.as_ref() {
        None if found.direct => Ok(Answer::GoOn),
        None => Err(Errno::ENOENT),
        Some(Place::Host(_)) if found.direct => Ok(Answer::GoOn),
        Some(Place::Host(path)) => {
            let path = std::path::Path::new(OsStr::from_bytes(shown(path)));
            let open = || std::fs::File::open(path).map_err(crate::standin::errno);
            let directory = crate::host::as_caller(call, open)?;
            if !directory.metadata().map_err(crate::standin::errno)?.is_dir() {
                return Err(Errno::ENOTDIR);
            }
            Ok(Answer::Chdir(directory.into(), None))
        }
        Some(place @ Place::Tree(node, attr)) => {
            if attr.kind != Kind::Directory {
                return Err(Errno::ENOTDIR);
            }
            call.may(place, EXECUTE)?;
            if let Some(answer) = crate::through::chdir(call, node)? {
                return Ok(answer);
            }
            let stand_in = call.view.stand_ins.of_node(node, Kind::Directory, 0)?;
            let (fd, on_its_way) = stand_in.open(nix::fcntl::OFlag::O_RDONLY)?;
            Ok(Answer::Chdir(fd, Some(on_its_way)))
        }
    }
}

/// `chroot(2)`: by the kernel where it may, else of the view's own (see [`crate::states`]).
fn chroot(call: &Call<'_>) -> Outcome {
    let is_root = call.caller.believes_root();
    // In a user namespace, too.
    let may = is_root || crate::apart::may_change_root(call);
    let found = match call.find(CWD, call.args[0], true, false)? {
        Target::PlainlyHost(_) if !may => return Ok(Answer::GoOn),
        Target::PlainlyHost(path)
            if (call.view.is_root || !is_root) && !crate::apart::has_mounts(call, path.as_ref()) =>
        {
            return Ok(Answer::GoOn);
        }
        Target::PlainlyHost(_) => {
            let path = call.task.read_path(call.args[0])?;
            let start = if path.starts_with(b"/") { Start::Host(Vec::new()) } else { call.start(CWD)? };
            Box::new(call.walker(Limits::default()).walk(&start, &path, true)?)
        }
        Target::Found(found) => found,
    };
    let place = found.existing()?;
    let is_dir = match place {
        Place::Tree(_, attr) => attr.kind == Kind::Directory,
        Place::Host(path) => std::path::Path::new(OsStr::from_bytes(shown(path))).is_dir(),
    };
    if !is_dir {
        return Err(Errno::ENOTDIR);
    }
    call.may(place, EXECUTE)?;
    if !may {
        return Err(Errno::EPERM);
    }
    call.view.states.set(call.task, crate::states::State { root: Some(place.path()), ..call.state() })?;
    call.view.fast.end("a process has a root of its own");
    call.view.has_roots.store(true, Ordering::Release);
    DONE
}

fn getcwd(call: &Call<'_>) -> Outcome {
    let path = match (call.start(CWD)?, call.root()) {
        (Start::Tree(node), _) => {
            let path = node.path();
            // The host's own directory may be there still, and the view's is not.
            let is_there = || match call.walker(Limits::default()).locate(&path) {
                Ok(Place::Tree(found, _)) => found.ino == node.ino,
                _ => false,
            };
            if node.mount.through.is_some() && !is_there() {
                return Err(Errno::ENOENT);
            }
            path
        }
        (Start::Host(path), Some(_)) => path,
        _ => return Ok(Answer::GoOn),
    };
    let mut text = match call.root() {
        Some(root) if crate::mounts::is_below(&path, root) => shown(&path[root.len()..]).to_vec(),
        Some(_) => [b"(unreachable)", shown(&path)].concat(),
        None => shown(&path).to_vec(),
    };
    text.push(0);
    if text.len() as u64 > call.args[1] {
        return Err(Errno::ERANGE);
    }
    call.task.write(call.args[0], &text)?;
    Ok(Answer::Value(text.len() as i64))
}

/// Extended attributes; `first` is the index of the argument behind the path or descriptor.
pub(crate) fn xattr(call: &Call<'_>, place: &Place, name: &str, first: usize) -> Outcome {
    let (node, attr) = node(place)?;
    let args = &call.args[first..];
    let caller = call.caller.on(&node.mount);
    if name == "listxattr" {
        let names = guarded(|| node.tree().listxattr(node.ino))?;
        let visible =
            |name: &&std::ffi::OsString| caller.is_root() || !name.as_bytes().starts_with(b"trusted.");
        let list: Vec<u8> =
            names.iter().filter(visible).flat_map(|name| [name.as_bytes(), b"\0"].concat()).collect();
        return give(call, args[0], args[1], &list);
    }
    let name_bytes = call.task.read_string(args[0], 256).map_err(|errno| match errno {
        Errno::ENAMETOOLONG => Errno::ERANGE,
        other => other,
    })?;
    if name_bytes.is_empty() {
        return Err(Errno::ERANGE);
    }
    let key = OsStr::from_bytes(&name_bytes);
    let changes = name != "getxattr";
    if changes {
        call.writable(place)?;
        Call::unguarded(attr, false)?;
    }
    let owns = caller.is_root() || caller.uid() == attr.uid;
    if name_bytes.starts_with(b"user.") {
        if !matches!(attr.kind, Kind::File | Kind::Directory) {
            return Err(if changes { Errno::EPERM } else { Errno::ENODATA });
        }
        if changes && attr.kind == Kind::Directory && attr.perm.bits() & 0o1000 != 0 && !owns {
            return Err(Errno::EPERM);
        }
        call.may(place, if changes { WRITE } else { READ })?;
    } else if name_bytes.starts_with(b"trusted.") {
        if !caller.is_root() {
            return Err(if changes { Errno::EPERM } else { Errno::ENODATA });
        }
    } else if changes {
        let needs_root = name_bytes.starts_with(b"security.");
        if (needs_root && !caller.is_root()) || !owns {
            return Err(Errno::EPERM);
        }
    }
    match name {
        "getxattr" => {
            let value = guarded(|| node.tree().getxattr(node.ino, key))?;
            give(call, args[1], args[2], &value)
        }
        "setxattr" => {
            let size = args[2] as usize;
            if size > MAX_XATTR {
                return Err(Errno::E2BIG);
            }
            let mode = match args[3] {
                0 => XattrMode::Set,
                1 => XattrMode::Create,
                2 => XattrMode::Replace,
                _ => return Err(Errno::EINVAL),
            };
            let mut value = vec![0; size];
            call.task.read(args[1], &mut value)?;
            call.changes(node, attr);
            guarded(|| node.tree().setxattr(node.ino, key, &value, mode))?;
            call.view.watches.attributes(node);
            DONE
        }
        _ => {
            call.changes(node, attr);
            guarded(|| node.tree().removexattr(node.ino, key))?;
            call.view.watches.attributes(node);
            DONE
        }
    }
}

/// Gives a list or a value as the calls for attributes do: its length if no room is offered.
fn give(call: &Call<'_>, address: u64, room: u64, bytes: &[u8]) -> Outcome {
    if room != 0 {
        if bytes.len() as u64 > room {
            return Err(Errno::ERANGE);
        }
        call.task.write(address, bytes)?;
    }
    Ok(Answer::Value(bytes.len() as i64))
}
