//! `open(2)` and its relatives.

use std::ffi::OsStr;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::libc;
use veduta_api::{Attr, Device, File, Kind, NewNode, OpenFlags, Perm, Result, SetAttr};
use veduta_trace::raw::{self, Argument};

use crate::call::{Answer, Call, Outcome, Target};
use crate::calls::{F_CREATED_QUERY, Level};
use crate::identity::{EXECUTE, READ, WRITE};
use crate::mounts::Service;
use crate::node::{Node, guarded};
use crate::walk::{Found, Limits, Place};

/// The call, with the arguments that its form has.
pub(crate) fn serve(call: &Call<'_>, name: &str) -> Outcome {
    let args = call.args;
    let cwd = libc::AT_FDCWD as u64;
    let (dirfd, path, flags, mode, limits) = match name {
        "open" => (cwd, args[0], args[1], args[2], Limits::default()),
        "creat" => (
            cwd,
            args[0],
            (libc::O_CREAT | libc::O_WRONLY | libc::O_TRUNC) as u64,
            args[1],
            Limits::default(),
        ),
        "openat" => (args[0], args[1], args[2], args[3], Limits::default()),
        _ => {
            let how = how(call)?;
            if how.0 > u64::from(u32::MAX) {
                return Err(Errno::EINVAL);
            }
            (args[0], args[1], how.0, how.1, limits(how.2)?)
        }
    };
    let flags = OFlag::from_bits_retain(flags as i32);
    // O_TMPFILE holds the bit of O_DIRECTORY.
    let is_temporary = flags.contains(OFlag::O_TMPFILE);
    if name == "openat2" {
        check_how(flags, mode, is_temporary)?;
    }
    if flags.contains(OFlag::O_CREAT | OFlag::O_DIRECTORY) && !flags.contains(OFlag::O_PATH) {
        return Err(Errno::EINVAL);
    }
    let exclusive = flags.contains(OFlag::O_CREAT | OFlag::O_EXCL) && !is_temporary;
    let follow = !flags.contains(OFlag::O_NOFOLLOW) && !exclusive;
    let path = call.task.read_path(path)?;
    let end = path.iter().rposition(|byte| *byte != b'/').map_or(path.len(), |last| last + 1);
    let last = path[..end].rsplit(|byte| *byte == b'/').next().unwrap_or_default();
    if flags.contains(OFlag::O_CREAT) && end < path.len() && !matches!(last, b"" | b"." | b"..") {
        // Whatever is there: a file is not made under such a name.
        return match call.find_path(dirfd, &path[..end], false, false, limits)? {
            Target::PlainlyHost(_) => Ok(Answer::GoOn),
            Target::Found(_) => Err(Errno::EISDIR),
        };
    }
    let found = match call.find_path(dirfd, &path, follow, false, limits)? {
        Target::PlainlyHost(canonical) => return host(call, canonical.as_deref(), flags),
        Target::Found(found) => found,
    };
    match &found.place {
        Some(Place::Host(real)) => {
            if let Some(answer) = crate::proc::open(call, real, flags)? {
                return Ok(answer);
            }
            if let Some(answer) = crate::directory::with_mounts(call, real, flags)? {
                return Ok(answer);
            }
            // A path that a bind shows where it is anyhow is opened by the process itself: who opens a terminal, or a file of
            // /proc, matters.
            let end = path.iter().rposition(|byte| *byte != b'/').map_or(0, |at| at + 1);
            if found.direct || path[..end] == **real {
                return Ok(Answer::GoOn);
            }
            let host_path = std::path::Path::new(OsStr::from_bytes(crate::mounts::shown(real)));
            if flags.contains(OFlag::O_PATH) && host_path.is_dir() {
                // Real O_PATH descriptors cannot be handed out; directories serve as such.
                let open = || std::fs::File::open(host_path).map_err(crate::standin::errno);
                return Ok(answer(crate::host::as_caller(call, open)?.into(), flags));
            }
            crate::host::again(call, &[real])
        }
        Some(Place::Tree(node, attr)) if is_temporary => temporary(call, node, attr, flags, mode as u32),
        Some(Place::Tree(..)) if exclusive => Err(Errno::EEXIST),
        Some(place @ Place::Tree(node, attr)) => {
            if found.wants_dir && attr.kind != Kind::Directory {
                return Err(Errno::ENOTDIR);
            }
            if flags.contains(OFlag::O_CREAT) && attr.kind == Kind::Directory {
                return Err(Errno::EISDIR);
            }
            let is_thing = !matches!(attr.kind, Kind::File | Kind::Directory | Kind::Symlink);
            if is_thing && node.mount.of_host && node.shows().is_some_and(|real| real == path) {
                return Ok(Answer::GoOn);
            }
            existing(call, place, node, attr, flags)
        }
        None => missing(call, &found, flags, mode as u32),
    }
}

/// `struct open_how`: flags, mode, resolve.
fn how(call: &Call<'_>) -> Result<(u64, u64, u64)> {
    let size = call.args[3] as usize;
    if size < 24 {
        return Err(Errno::EINVAL);
    }
    let mut bytes = vec![0; size.min(4096)];
    call.task.read(call.args[2], &mut bytes)?;
    if bytes[24..].iter().any(|byte| *byte != 0) {
        return Err(Errno::E2BIG);
    }
    let word = |at: usize| {
        let mut word = [0; 8];
        word.copy_from_slice(&bytes[at..at + 8]);
        u64::from_ne_bytes(word)
    };
    Ok((word(0), word(8), word(16)))
}

/// `openat2(2)` refuses what `open(2)` ignores.
fn check_how(flags: OFlag, mode: u64, is_temporary: bool) -> Result<()> {
    const FASYNC: i32 = 0o20000;
    const LARGE_FILE: i32 = 0o100_000;
    let beside_path = OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW | OFlag::O_PATH | OFlag::O_CLOEXEC;
    let known = OFlag::O_ACCMODE
        | OFlag::O_CREAT
        | OFlag::O_EXCL
        | OFlag::O_NOCTTY
        | OFlag::O_TRUNC
        | OFlag::O_APPEND
        | OFlag::O_NONBLOCK
        | OFlag::O_SYNC
        | OFlag::O_DIRECT
        | OFlag::O_NOATIME
        | OFlag::O_TMPFILE
        | OFlag::from_bits_retain(FASYNC | LARGE_FILE)
        | beside_path;
    let creates = flags.contains(OFlag::O_CREAT) || is_temporary;
    let is_wrong = !known.contains(flags)
        || mode & !0o7777 != 0
        || (mode != 0 && !creates)
        || (flags.contains(OFlag::O_PATH) && !beside_path.contains(flags));
    if is_wrong { Err(Errno::EINVAL) } else { Ok(()) }
}

fn limits(resolve: u64) -> Result<Limits> {
    const NO_XDEV: u64 = 1;
    const NO_MAGICLINKS: u64 = 2;
    const NO_SYMLINKS: u64 = 4;
    const BENEATH: u64 = 8;
    const IN_ROOT: u64 = 16;
    const CACHED: u64 = 32;
    let both = BENEATH | IN_ROOT;
    if resolve & !(NO_XDEV | NO_MAGICLINKS | NO_SYMLINKS | both | CACHED) != 0 || resolve & both == both {
        return Err(Errno::EINVAL);
    }
    if resolve & CACHED != 0 {
        // Nothing here is known without waiting.
        return Err(Errno::EAGAIN);
    }
    let has = |bit| resolve & bit != 0;
    Ok(Limits {
        no_symlinks: has(NO_SYMLINKS),
        beneath: has(BENEATH),
        in_root: has(IN_ROOT),
        no_xdev: has(NO_XDEV),
        no_magic: has(NO_MAGICLINKS) || has(NO_SYMLINKS),
    })
}

/// A path that is plainly the host's; only a directory in which mounts are to be listed concerns the view.
fn host(call: &Call<'_>, canonical: Option<&[u8]>, flags: OFlag) -> Outcome {
    const OTHERS: OFlag = OFlag::O_CREAT.union(OFlag::O_WRONLY).union(OFlag::O_RDWR).union(OFlag::O_PATH);
    match canonical {
        Some(path) if !flags.intersects(OTHERS) => {
            Ok(crate::directory::with_mounts(call, path, flags)?.unwrap_or(Answer::GoOn))
        }
        _ => Ok(Answer::GoOn),
    }
}

/// What a driver needs to know of the flags.
fn driver_flags(flags: OFlag) -> OpenFlags {
    let access = flags.bits() & libc::O_ACCMODE;
    OpenFlags {
        read: access != libc::O_WRONLY,
        write: access != libc::O_RDONLY,
        direct: flags.contains(OFlag::O_DIRECT),
        sync: flags.contains(OFlag::O_DSYNC),
        unlinkable: flags.contains(OFlag::O_TMPFILE | OFlag::O_EXCL),
    }
}

/// Opens a node that is there.
pub(crate) fn existing(
    call: &Call<'_>,
    place: &Place,
    node: &Arc<Node>,
    attr: &Attr,
    flags: OFlag,
) -> Outcome {
    if flags.contains(OFlag::O_DIRECTORY) && attr.kind != Kind::Directory {
        return Err(Errno::ENOTDIR);
    }
    let only_path = flags.contains(OFlag::O_PATH);
    if attr.kind == Kind::Symlink && !only_path {
        return Err(Errno::ELOOP);
    }
    let wanted = driver_flags(flags);
    let truncates = flags.contains(OFlag::O_TRUNC) && !only_path;
    let writes = (wanted.write || truncates) && !only_path;
    if writes && attr.kind == Kind::Directory {
        return Err(Errno::EISDIR);
    }
    if !only_path {
        let need = if wanted.read { READ } else { 0 } | if writes { WRITE } else { 0 };
        call.may(place, need)?;
        let caller = call.caller.on(&node.mount);
        let is_own = attr.uid == caller.uid() || caller.is_root();
        if flags.contains(OFlag::O_NOATIME) && !is_own {
            return Err(Errno::EPERM);
        }
        if matches!(attr.kind, Kind::File | Kind::Directory) && writes {
            call.writable(place)?;
            Call::unguarded(attr, flags.contains(OFlag::O_APPEND) && !truncates)?;
        }
        let is_listed = attr.kind == Kind::Directory && wanted.read && !node.mount.checks_permissions();
        if is_listed && caller.may_node(node, attr, READ).is_err() {
            // The tree decides, and would tell only when it is listed.
            guarded(|| node.tree().opendir(node.ino))?;
        }
        if node.mount.of_host && !matches!(attr.kind, Kind::File | Kind::Directory) {
            let path = node.shows().ok_or(Errno::ENXIO)?;
            return crate::host::again(call, &[&path]);
        }
        match attr.kind {
            Kind::Socket => return Err(Errno::ENXIO),
            Kind::CharDevice | Kind::BlockDevice if matches!(node.mount.service, Service::Loops(_)) => {}
            Kind::CharDevice => return crate::devices::serve(call, attr, flags),
            Kind::BlockDevice if !matches!(node.mount.service, Service::Disk(_)) => {
                return Err(Errno::EACCES);
            }
            Kind::BlockDevice if writes => call.writable(place)?,
            Kind::Fifo => return crate::sockets::open_fifo(call, node, flags),
            _ => {}
        }
    }
    if writes {
        call.changes(node, attr);
    }
    let mut size = attr.size;
    let plane = if attr.kind == Kind::File && !only_path { plane_of(call, node) } else { None };
    // What the kernel knows is cut by the kernel.
    let mut flags = flags;
    let kernel_cuts = plane.as_ref().is_some_and(|plane| plane.knows(node.ino));
    if !(truncates && kernel_cuts && attr.size > 0) {
        flags.remove(OFlag::O_TRUNC);
    } else if attr.perm.bits() & 0o6000 != 0 && !call.caller.on(&node.mount).is_root() {
        let changes = SetAttr { drop_set_id: true, ..SetAttr::default() };
        guarded(|| node.tree().setattr(node.ino, &changes))?;
    }
    if truncates && attr.kind == Kind::File && attr.size > 0 && !kernel_cuts {
        let drop_set_id = !call.caller.on(&node.mount).is_root();
        let changes = SetAttr { size: Some(0), drop_set_id, ..SetAttr::default() };
        let cut = || guarded(|| node.tree().setattr(node.ino, &changes)).map(drop);
        match call.view.stand_ins.known(node.mount.id, node.ino) {
            Some(stand_in) => stand_in.resize(0, cut)?,
            None => cut()?,
        }
        if let Some(plane) = node.plane() {
            plane.written(node.ino, 0, 0);
        }
        call.view.watches.modified(node);
        size = 0;
    }
    if attr.kind == Kind::File && !only_path {
        if let Some(fd) = backing(call, (node, attr), wanted, flags)? {
            return Ok(answer(fd, flags));
        }
    }
    if attr.kind == Kind::Directory && !only_path {
        if let Some(fd) = crate::through::open(call, node, flags)? {
            return Ok(answer(fd, flags));
        }
    }
    if let Some(plane) = plane {
        return Ok(answer(plane.open(node, flags, None)?, flags));
    }
    stand_in(call, node, attr, size, flags, None)
}

/// Whether files of the host that a driver has are handed to processes.
fn hands_out(call: &Call<'_>, node: &Node) -> bool {
    node.mount.facts.backing && call.view.takes_backing() && !call.view.watches.sees(node)
}

/// The kernel-FUSE plane of a regular file, if it has one. What is watched is emulated, since it is the engine that tells the watchers.
fn plane_of(call: &Call<'_>, node: &Arc<Node>) -> Option<Arc<crate::fuseplane::Plane>> {
    if call.view.watches.sees(node) { None } else { call.view.plane_of(&node.mount) }
}

/// A descriptor of the host that a file has.
fn backing(
    call: &Call<'_>,
    (node, attr): (&Arc<Node>, &Attr),
    wanted: OpenFlags,
    flags: OFlag,
) -> Result<Option<OwnedFd>> {
    if !hands_out(call, node) {
        return Ok(None);
    }
    let file = guarded(|| node.tree().open(node.ino, wanted))?;
    share_backing(call, (node, attr), &*file, flags)
}

/// Opens a node for whoever had it open to read before it was copied up. Nobody is asked whether he may.
pub(crate) fn once_more(
    call: &Call<'_>,
    node: &Arc<Node>,
    flags: OFlag,
) -> Result<(OwnedFd, Option<crate::standin::OnItsWay>)> {
    let kept = OFlag::O_APPEND | OFlag::O_NONBLOCK | OFlag::O_NOATIME | OFlag::O_DIRECT;
    let flags = flags & kept;
    let attr = node.attr()?;
    if node.mount.facts.backing && call.view.takes_backing() {
        let wanted = OpenFlags { direct: flags.contains(OFlag::O_DIRECT), ..OpenFlags::READ };
        let file = guarded(|| node.tree().open(node.ino, wanted))?;
        if let Some(fd) = hand_over(call, (node, &attr), &*file, flags)? {
            if flags.contains(OFlag::O_NOATIME) {
                // That is for its owner, who may be somebody else now.
                let _ = fcntl(&fd, FcntlArg::F_SETFL(crate::call::status_flags(&fd)? | OFlag::O_NOATIME));
            }
            return Ok((fd, None));
        }
    }
    if let Some(plane) = plane_of(call, node) {
        return Ok((plane.open(node, flags, None)?, None));
    }
    if call.view.level() < Level::Files {
        // Its reads would go past us.
        return Err(Errno::EAGAIN);
    }
    match stand_in(call, node, &attr, attr.size, flags, None)? {
        Answer::Fd { fd, on_its_way, .. } => Ok((fd, on_its_way)),
        _ => Err(Errno::EIO),
    }
}

fn share_backing(
    call: &Call<'_>,
    (node, attr): (&Arc<Node>, &Attr),
    file: &dyn File,
    flags: OFlag,
) -> Result<Option<OwnedFd>> {
    if hands_out(call, node) { hand_over(call, (node, attr), file, flags) } else { Ok(None) }
}

/// The descriptor that a file has, with the flags of an opening.
fn hand_over(
    call: &Call<'_>,
    (node, attr): (&Arc<Node>, &Attr),
    file: &dyn File,
    flags: OFlag,
) -> Result<Option<OwnedFd>> {
    let Some(fd) = guarded(|| Ok(file.backing().map(|fd| fd.try_clone_to_owned())))? else { return Ok(None) };
    let fd = fd.map_err(crate::standin::errno)?;
    let kept = flags & (OFlag::O_APPEND | OFlag::O_NONBLOCK);
    if !kept.is_empty() {
        let now = crate::call::status_flags(&fd)?;
        fcntl(&fd, FcntlArg::F_SETFL(now | kept))?;
    }
    let is_lent = file.backing_is_foreign() || node.mount.is_read_only();
    call.view.lent.hand_out(&fd, node, is_lent)?;
    call.view.renumbered.note(&fd, (crate::stat::device(&node.mount, attr), attr.st_ino));
    Ok(Some(fd))
}

/// Opens a node by its stand-in. `file`: the driver has opened it already.
fn stand_in(
    call: &Call<'_>,
    node: &Arc<Node>,
    attr: &Attr,
    size: u64,
    flags: OFlag,
    file: Option<Arc<dyn File>>,
) -> Outcome {
    let stand_in = call.view.stand_ins.of_node(node, attr.kind, size)?;
    if attr.kind != Kind::Directory && !flags.contains(OFlag::O_PATH) {
        call.view.stand_ins.emulates.store(true, Ordering::Release);
    }
    if let Some(file) = file {
        stand_in.set_writer(file);
    } else if matches!(attr.kind, Kind::File | Kind::BlockDevice) && !flags.contains(OFlag::O_PATH) {
        // Errors of the driver belong to this call.
        stand_in.file(driver_flags(flags).write)?;
    }
    if attr.perm.bits() & 0o6000 != 0 && !call.caller.on(&node.mount).is_root() {
        stand_in.set_id.store(true, Ordering::Relaxed);
    }
    if !flags.contains(OFlag::O_PATH) {
        call.view.watches.opened(&stand_in, driver_flags(flags).write);
    }
    let (fd, on_its_way) = stand_in.open(flags)?;
    let close_on_exec = flags.contains(OFlag::O_CLOEXEC);
    Ok(Answer::Fd { fd, close_on_exec, on_its_way: Some(on_its_way) })
}

fn answer(fd: OwnedFd, flags: OFlag) -> Answer {
    Answer::Fd { fd, close_on_exec: flags.contains(OFlag::O_CLOEXEC), on_its_way: None }
}

/// Opens a name that is not there.
fn missing(call: &Call<'_>, found: &Found, flags: OFlag, mode: u32) -> Outcome {
    let parent = found.parent.as_ref().ok_or(Errno::ENOENT)?;
    match parent {
        Place::Host(_) if found.direct => Ok(Answer::GoOn),
        Place::Host(path) => {
            let path = [path, b"/".as_slice(), &found.name].concat();
            crate::host::again(call, &[&path])
        }
        Place::Tree(directory, above) => {
            if !flags.contains(OFlag::O_CREAT) {
                return Err(Errno::ENOENT);
            }
            if found.wants_dir {
                return Err(Errno::EISDIR);
            }
            call.writable(parent)?;
            call.may(parent, WRITE | EXECUTE)?;
            Call::unguarded(above, true)?;
            let new = new_node(call, directory, above, Kind::File, mode, Device::default())?;
            let name = OsStr::from_bytes(&found.name);
            let wanted = OpenFlags { read: true, write: true, ..driver_flags(flags) };
            let (entry, file) = match guarded(|| directory.tree().create(directory.ino, name, &new, wanted)) {
                // Somebody was faster.
                Err(Errno::EEXIST) if !flags.contains(OFlag::O_EXCL) => {
                    let (node, attr) = directory.lookup(&found.name)?;
                    let place = Place::Tree(Arc::clone(&node), attr);
                    return existing(call, &place, &node, &attr, flags);
                }
                done => done?,
            };
            call.view.watches.made(directory, name, Kind::File);
            let node = Node::child(directory, name, &entry);
            let answer = made(call, &node, &entry.attr, file, flags)?;
            if let Answer::Fd { fd, .. } = &answer {
                mark_created(fd);
            }
            Ok(answer)
        }
    }
}

/// Says of a description, which the driver or the kernel has opened elsewhere, that its file was made for it. The kernel keeps that with the
/// description, for all who get it: as the signal that tells that input is possible, which is the one that it would be in any case.
fn mark_created(fd: &OwnedFd) {
    if !is_created(fd) {
        if let Err(errno) = crate::lent::mark(fd) {
            tracing::debug!("a new file is not told as such: {}", errno.desc());
        }
    }
}

/// Whether the kernel itself knows that.
fn is_created(fd: &OwnedFd) -> bool {
    created_query(fd) == Ok(1)
}

fn created_query(fd: &OwnedFd) -> Result<i64> {
    let mut arguments = [fd.as_raw_fd() as u64, u64::from(F_CREATED_QUERY), 0].map(Argument::Value);
    raw::call(libc::SYS_fcntl as u32, &mut arguments)
}

/// `fcntl(F_CREATED_QUERY)`
pub(crate) fn was_created(call: &Call<'_>) -> Outcome {
    let Ok(fd) = crate::serve::descriptor(call.task, call.int(0)) else { return Ok(Answer::GoOn) };
    // A kernel that does not know the call says so itself.
    let is_marked = created_query(&fd).is_ok() && crate::lent::is_marked_created(call, &fd);
    Ok(if is_marked { Answer::Value(1) } else { Answer::GoOn })
}

/// The answer for a file that was just made; its permissions do not bind its maker.
fn made(call: &Call<'_>, node: &Arc<Node>, attr: &Attr, file: Arc<dyn File>, flags: OFlag) -> Outcome {
    if hands_out(call, node) {
        // The driver's own descriptor can do both; the caller asked for what the flags say.
        let access = flags.bits() & libc::O_ACCMODE;
        let opened = if access == libc::O_RDWR {
            file
        } else {
            match guarded(|| node.tree().open(node.ino, driver_flags(flags))) {
                Ok(opened) => opened,
                Err(Errno::EACCES) => file,
                Err(errno) => return Err(errno),
            }
        };
        if let Some(fd) = share_backing(call, (node, attr), &*opened, flags)? {
            return Ok(answer(fd, flags));
        }
        return made_by_driver(call, node, attr, opened, flags);
    }
    made_by_driver(call, node, attr, file, flags)
}

/// The same for a file whose data goes through its driver.
fn made_by_driver(
    call: &Call<'_>,
    node: &Arc<Node>,
    attr: &Attr,
    file: Arc<dyn File>,
    flags: OFlag,
) -> Outcome {
    if let Some(plane) = plane_of(call, node) {
        let flags = flags & !OFlag::O_TRUNC;
        return Ok(answer(plane.open(node, flags, Some(file))?, flags));
    }
    stand_in(call, node, attr, attr.size, flags, Some(file))
}

/// `O_TMPFILE`
fn temporary(call: &Call<'_>, node: &Arc<Node>, above: &Attr, flags: OFlag, mode: u32) -> Outcome {
    if above.kind != Kind::Directory {
        return Err(Errno::ENOTDIR);
    }
    let place = Place::Tree(Arc::clone(node), *above);
    call.writable(&place)?;
    call.may(&place, WRITE | EXECUTE)?;
    if flags.bits() & libc::O_ACCMODE == libc::O_RDONLY {
        return Err(Errno::EINVAL);
    }
    let new = new_node(call, node, above, Kind::File, mode, Device::default())?;
    let wanted = OpenFlags { read: true, write: true, ..driver_flags(flags) };
    let (entry, file) = guarded(|| node.tree().tmpfile(node.ino, &new, wanted))?;
    let child = Node::child(node, OsStr::new(&format!("#{}", entry.attr.st_ino)), &entry);
    child.may_get_name.store(!wanted.unlinkable, Ordering::Relaxed);
    made(call, &child, &entry.attr, file, flags)
}

/// A new node as its creator wants it, with the group of a set-group-id directory.
pub(crate) fn new_node(
    call: &Call<'_>,
    directory: &Node,
    above: &Attr,
    kind: Kind,
    mode: u32,
    rdev: Device,
) -> Result<NewNode> {
    let caller = call.caller.on(&directory.mount);
    let mut new = NewNode {
        kind,
        perm: Perm::from_mode(mode),
        umask: call.task.umask()?,
        uid: caller.uid(),
        gid: caller.gid(),
        rdev,
    };
    if above.perm.bits() & 0o2000 != 0 {
        new.gid = above.gid;
        if kind == Kind::Directory {
            new.perm = Perm::from_mode(mode | 0o2000);
        } else if mode & 0o2010 == 0o2010 && !caller.is_root() && !caller.is_in(above.gid) {
            // Nobody may run programs as a group that he is not in: `mode_strip_sgid` of the kernel.
            new.perm = Perm::from_mode(mode & !0o2000);
        }
    }
    Ok(new)
}
