//! Path resolution in a view, once, for all calls: `path_resolution(7)`, with mounts that the kernel does not know.
//!
//! A walk is at a place: a node of a mounted tree, or a path of the host. It goes on by one component at a time, and looks in
//! the table whether something is mounted at the new path. As long as no virtual thing was on the way, the kernel would
//! come to the same place (the walk is *direct*), and the call is left to it; if one was, and the end is on the host again,
//! the engine makes the call itself.
//!
//! Most paths have nothing to do with any mount. [`plain_host_path`] finds that out with one call of `openat2(2)`,
//! which resolves without symbolic links: if there are none, the path as written says where it leads. If there are some,
//! the first is read, and what is behind it is asked about in the same way.

use std::borrow::Cow;
use std::collections::VecDeque;
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use nix::errno::Errno;
use nix::libc;
use rustix::fs::{CWD, Mode, OFlags, ResolveFlags};
use veduta_api::{Attr, Kind, Result};
use veduta_trace::Task;

use crate::identity::{Caller, EXECUTE};
use crate::lent::Lent;
use crate::mounts::{Mount, Table, shown, split};
use crate::node::{Node, guarded};
use crate::standin::StandIns;

/// Symbolic links on the way of one path; more give `ELOOP`.
const MAX_LINKS: u32 = 40;
/// Bytes.
const PATH_MAX: usize = 4096;

/// Where a path leads.
#[derive(Clone)]
pub(crate) enum Place {
    /// To the host: this canonical path.
    Host(Vec<u8>),
    /// To a node of a mounted tree.
    Tree(Arc<Node>, Attr),
}

impl Place {
    /// The canonical path in the view.
    pub(crate) fn path(&self) -> Vec<u8> {
        match self {
            Place::Host(path) => path.clone(),
            Place::Tree(node, _) => node.path(),
        }
    }
}

/// What a walk found.
pub(crate) struct Found {
    /// The directory that the last component is in; `None` if the path ends in `.`, `..` or is the root.
    pub parent: Option<Place>,
    /// The last component.
    pub name: Vec<u8>,
    /// What it leads to; `None` if nothing is there, and the directory is.
    pub place: Option<Place>,
    /// The kernel, resolving the same path, comes to the same place.
    pub direct: bool,
    /// A slash is behind the last component.
    pub wants_dir: bool,
}

impl Found {
    /// What is there, or `ENOENT`.
    pub(crate) fn existing(&self) -> Result<&Place> {
        self.place.as_ref().ok_or(Errno::ENOENT)
    }
}

/// Limits of `openat2(2)`.
#[derive(Clone, Copy, Default)]
pub(crate) struct Limits {
    /// `RESOLVE_NO_SYMLINKS`
    pub no_symlinks: bool,
    /// `RESOLVE_BENEATH`: `EXDEV` for whatever leaves the start.
    pub beneath: bool,
    /// `RESOLVE_IN_ROOT`: the start is the root.
    pub in_root: bool,
    /// `RESOLVE_NO_XDEV`: `EXDEV` at mount points.
    pub no_xdev: bool,
    /// `RESOLVE_NO_MAGICLINKS`
    pub no_magic: bool,
}

/// Where a relative path starts.
#[derive(Clone)]
pub(crate) enum Start {
    /// A directory of the host.
    Host(Vec<u8>),
    /// A directory, or another node if the path is empty.
    Tree(Arc<Node>),
    /// Something without a path, such as a pipe: only for the kernel.
    Opaque,
}

/// Everything that a walk needs to know.
pub(crate) struct Walker<'a> {
    /// The mounts.
    pub table: &'a Arc<Table>,
    /// What stands for what.
    pub stand_ins: &'a StandIns,
    /// What was handed out.
    pub lent: &'a Lent,
    /// Something is to be changed where the path leads.
    pub changes: bool,
    /// Who walks.
    pub task: Task,
    /// As whom.
    pub caller: &'a Caller,
    /// Limits.
    pub limits: Limits,
    /// The root of the task, if it is not that of the view.
    pub root: Option<Vec<u8>>,
    /// Binds of the host on itself are mounts as others: what is asked is about mounts.
    pub binds: bool,
}

/// The canonical path, if a path cannot concern any mount, and the kernel may have the call as it is. `base` is where it
/// starts if it is relative. `follow`: a symbolic link at the end counts. `links`: others are followed too. `binds`: as [`Walker::binds`].
pub(crate) fn plain_host_path(
    table: &Table,
    base: &[u8],
    path: &[u8],
    follow: bool,
    links: bool,
    binds: bool,
) -> Option<Vec<u8>> {
    let (mut base, mut path) = (Cow::Borrowed(base), Cow::Borrowed(path));
    for _ in 0..=MAX_LINKS {
        match proof(table, &base, &path, follow, binds) {
            Proof::Host(canonical) => return Some(canonical),
            Proof::Link if links => {
                let (directory, rest) = behind_first_link(&base, &path)?;
                (base, path) = (Cow::Owned(directory), Cow::Owned(rest));
            }
            Proof::Link | Proof::None => return None,
        }
    }
    None
}

/// What one look at a path proves.
enum Proof {
    /// There is no symbolic link in it, and it lies outside of all mounts: at this path.
    Host(Vec<u8>),
    /// There is a symbolic link in it; as written it lies outside.
    Link,
    /// Nothing.
    None,
}

fn proof(table: &Table, base: &[u8], path: &[u8], follow: bool, binds: bool) -> Proof {
    let is_plain = |mount: &Arc<Mount>| mount.is_plain() && !binds;
    let mut full = Vec::with_capacity(base.len() + path.len() + 1);
    let mut here = Vec::with_capacity(base.len() + path.len() + 1);
    if !path.starts_with(b"/") {
        full.extend_from_slice(base);
        full.push(b'/');
        here.extend_from_slice(base);
        if !table.is_host(base, binds) {
            return Proof::None;
        }
    } else if table.at(b"").is_some_and(|mount| !is_plain(mount)) {
        return Proof::None;
    }
    full.extend_from_slice(path);
    for part in path.split(|byte| *byte == b'/') {
        go(&mut here, part);
        if !part.is_empty() && table.concerns(&here) && !table.at(&here).is_some_and(is_plain) {
            return Proof::None;
        }
    }
    if here.starts_with(b"/proc") {
        return Proof::None;
    }
    if !follow && !path.contains(&b'/') && !matches!(path, b"." | b"..") {
        // One name in a directory that is known: nothing is followed.
        return Proof::Host(here);
    }
    let flags = OFlags::PATH | OFlags::CLOEXEC | if follow { OFlags::empty() } else { OFlags::NOFOLLOW };
    match rustix::fs::openat2(CWD, OsStr::from_bytes(&full), flags, Mode::empty(), ResolveFlags::NO_SYMLINKS)
    {
        Ok(_)
        | Err(
            rustix::io::Errno::NOENT
            | rustix::io::Errno::NOTDIR
            | rustix::io::Errno::ACCESS
            | rustix::io::Errno::NAMETOOLONG,
        ) => Proof::Host(here),
        Err(rustix::io::Errno::LOOP) => Proof::Link,
        Err(_) => Proof::None,
    }
}

/// One component further, without following links.
fn go(here: &mut Vec<u8>, part: &[u8]) {
    match part {
        b"" | b"." => {}
        b".." => here.truncate(split(here).0.len()),
        name => {
            here.push(b'/');
            here.extend_from_slice(name);
        }
    }
}

/// Where a path leads behind the first symbolic link in it: a directory, and a path that starts there. What is before the
/// link has none, so it is what it says. `None` for links of `/proc`, which say something else to everybody.
fn behind_first_link(base: &[u8], path: &[u8]) -> Option<(Vec<u8>, Vec<u8>)> {
    const PROC: i64 = 0x9fa0;
    let mut here = if path.starts_with(b"/") { Vec::new() } else { base.to_vec() };
    let mut rest = path;
    while !rest.is_empty() {
        let end = rest.iter().position(|byte| *byte == b'/').unwrap_or(rest.len());
        let (part, behind) = rest.split_at(end);
        let directory = here.len();
        go(&mut here, part);
        if here.starts_with(b"/proc") {
            return None;
        }
        if !matches!(part, b"" | b"." | b"..") {
            match rustix::fs::readlink(OsStr::from_bytes(&here), Vec::new()) {
                Ok(target) => {
                    here.truncate(directory);
                    let is_magic = rustix::fs::statfs(OsStr::from_bytes(shown(&here))).ok()?.f_type == PROC;
                    let path = [target.as_bytes(), behind].concat();
                    return (!is_magic && path.len() < PATH_MAX).then_some((here, path));
                }
                Err(rustix::io::Errno::INVAL) => {}
                Err(_) => return None,
            }
        }
        rest = behind.strip_prefix(b"/").unwrap_or(behind);
    }
    None
}

struct Walk<'a, 'w> {
    walker: &'w Walker<'a>,
    place: Place,
    parent: Option<Place>,
    name: Vec<u8>,
    missing: bool,
    direct: bool,
    components: VecDeque<Vec<u8>>,
    wants_dir: bool,
    links: u32,
    /// With `beneath` and `in_root`: the canonical path that is not left.
    floor: Option<Vec<u8>>,
}

impl Walker<'_> {
    /// Resolves a path. `follow`: whether a symbolic link at the end is.
    pub(crate) fn walk(&self, start: &Start, path: &[u8], follow: bool) -> Result<Found> {
        if path.len() >= PATH_MAX {
            return Err(Errno::ENAMETOOLONG);
        }
        let absolute = path.starts_with(b"/") && !self.limits.in_root;
        if absolute && self.limits.beneath {
            return Err(Errno::EXDEV);
        }
        let place = match start {
            _ if absolute => self.locate(self.root.as_deref().unwrap_or_default())?,
            Start::Host(base) => self.locate(base)?,
            Start::Tree(node) => Place::Tree(Arc::clone(node), node.attr()?),
            Start::Opaque => return Err(Errno::ENOTDIR),
        };
        let direct =
            self.root.is_none() && (absolute || matches!((start, &place), (Start::Host(_), Place::Host(_))));
        let floor = (self.limits.beneath || self.limits.in_root).then(|| place.path());
        let floor = floor.or_else(|| self.root.clone());
        let mut walk = Walk {
            walker: self,
            direct: direct && matches!(place, Place::Host(_)),
            place,
            parent: None,
            name: Vec::new(),
            missing: false,
            components: VecDeque::new(),
            wants_dir: path.ends_with(b"/"),
            links: 0,
            floor,
        };
        walk.push_front(path);
        walk.run(follow)?;
        let Walk { place, parent, name, missing, direct, wants_dir, .. } = walk;
        Ok(Found { parent, name, place: (!missing).then_some(place), direct, wants_dir })
    }

    /// The place of a canonical path, without following anything.
    pub(crate) fn locate(&self, path: &[u8]) -> Result<Place> {
        self.locate_in(self.table, path)
    }

    fn locate_in(&self, table: &Arc<Table>, path: &[u8]) -> Result<Place> {
        if let Some((mount, number)) = table.partition_at(path) {
            if table.at(path).is_none() {
                return partition(mount, number);
            }
        }
        let Some(mount) = table.serving(path) else { return Ok(Place::Host(path.to_vec())) };
        let rest = &path[mount.target.len()..];
        if excepted(mount, rest) {
            return self.locate_in(&mount.before, path);
        }
        if mount.is_plain() && !self.binds {
            return Ok(Place::Host(path.to_vec()));
        }
        if let (true, Some(real)) = (mount.is_pseudo, &mount.alias) {
            return Ok(Place::Host([real, rest].concat()));
        }
        let mut node = Node::root(mount);
        let mut attr = node.attr()?;
        let mut names = rest.split(|byte| *byte == b'/').filter(|name| !name.is_empty());
        while let Some(name) = names.next() {
            let (child, below) = match node.inner_mount(name) {
                Some(inner) => {
                    let attr = inner.attr()?;
                    (inner, attr)
                }
                None => node.lookup(name)?,
            };
            if let Some(mut real) = child.pseudo(&below, &attr) {
                for name in names {
                    real.push(b'/');
                    real.extend_from_slice(name);
                }
                return Ok(Place::Host(real));
            }
            (node, attr) = (child, below);
        }
        Ok(Place::Tree(node, attr))
    }
}

fn excepted(mount: &Mount, rest: &[u8]) -> bool {
    mount.except.iter().any(|except| crate::mounts::is_below(rest, except))
}

/// The node of a partition: the disk's tree has it under its number.
fn partition(mount: &Arc<Mount>, number: u32) -> Result<Place> {
    let (node, attr) = Node::root(mount).lookup(number.to_string().as_bytes())?;
    Ok(Place::Tree(node, attr))
}

impl Walk<'_, '_> {
    fn push_front(&mut self, path: &[u8]) {
        for part in path.split(|byte| *byte == b'/').filter(|part| !part.is_empty()).rev() {
            self.components.push_front(part.to_vec());
        }
    }

    /// Each step takes a component off; a link adds some, and there are at most 40 of those. So this ends.
    fn run(&mut self, follow: bool) -> Result<()> {
        while let Some(component) = self.components.pop_front() {
            if self.missing {
                return Err(Errno::ENOENT);
            }
            self.check_dir()?;
            match component.as_slice() {
                b"." => self.forget_name(),
                b".." => self.up()?,
                name => self.step(name, follow)?,
            }
        }
        if self.wants_dir && !self.missing {
            self.check_dir()?;
        }
        Ok(())
    }

    fn forget_name(&mut self) {
        self.parent = None;
        self.name.clear();
    }

    fn check_dir(&self) -> Result<()> {
        match &self.place {
            Place::Tree(_, attr) if attr.kind != Kind::Directory => Err(Errno::ENOTDIR),
            // The host says so itself when the next component is asked for.
            _ => Ok(()),
        }
    }

    fn may_search(&self) -> Result<()> {
        match &self.place {
            Place::Tree(node, attr) if node.mount.checks_permissions() => {
                self.walker.caller.on(&node.mount).may_node(node, attr, EXECUTE)
            }
            _ => Ok(()),
        }
    }

    fn up(&mut self) -> Result<()> {
        self.may_search()?;
        self.forget_name();
        let path = self.place.path();
        if self.walker.limits.no_xdev && !path.is_empty() && self.walker.table.at(&path).is_some() {
            return Err(Errno::EXDEV);
        }
        if self.floor.as_ref().is_some_and(|floor| *floor == path) {
            return if self.walker.limits.beneath { Err(Errno::EXDEV) } else { Ok(()) };
        }
        if let Place::Tree(node, _) = &self.place {
            if let Some(parent) = node.parent() {
                let attr = parent.attr()?;
                self.place = Place::Tree(parent, attr);
                return Ok(());
            }
        }
        self.place = self.walker.locate(split(&path).0)?;
        Ok(())
    }

    fn step(&mut self, name: &[u8], follow: bool) -> Result<()> {
        self.may_search()?;
        if name.len() > 255 {
            return Err(Errno::ENAMETOOLONG);
        }
        let is_last = self.components.is_empty();
        let mut path = self.place.path();
        path.push(b'/');
        path.extend_from_slice(name);
        let parent = self.place.clone();
        let link = match self.child(&path, name)? {
            None => {
                self.missing = true;
                None
            }
            Some((place, link)) => {
                if link.is_none() || (is_last && !follow && !self.wants_dir) {
                    // What is mounted here may be a part of the host that the kernel knows under another path.
                    let is_other = |mount: &Arc<Mount>| !mount.is_itself;
                    self.direct &=
                        matches!(place, Place::Host(_)) && !self.walker.table.at(&path).is_some_and(is_other);
                    self.place = place;
                    None
                } else {
                    link.map(|target| (place, target))
                }
            }
        };
        self.parent = Some(parent);
        self.name = name.to_vec();
        match link {
            None => Ok(()),
            Some((place, target)) => self.follow(&place, target, is_last),
        }
    }

    /// What is at a path, with the target if it is a symbolic link.
    fn child(&self, path: &[u8], name: &[u8]) -> Result<Option<(Place, Option<Link>)>> {
        let walker = self.walker;
        if let Some(mount) = walker.table.at(path) {
            if walker.limits.no_xdev {
                return Err(Errno::EXDEV);
            }
            if mount.is_plain() && !walker.binds {
                return self.host_child(path);
            }
            if let (true, Some(real)) = (mount.is_pseudo, &mount.alias) {
                return Ok(Some((Place::Host(real.clone()), None)));
            }
            let node = Node::root(mount);
            let attr = node.attr()?;
            return Ok(Some((Place::Tree(node, attr), None)));
        }
        if let Some((mount, number)) = walker.table.partition_at(path) {
            match partition(mount, number) {
                Err(Errno::ENOENT) => {}
                found => return found.map(|place| Some((place, None))),
            }
        }
        match &self.place {
            Place::Tree(node, _) => {
                // A mount that is seen through a bind of what it lies in has another path there than its own, where nothing is excepted.
                let rest =
                    path.strip_prefix(node.mount.target.as_slice()).filter(|rest| rest.starts_with(b"/"));
                if rest.is_some_and(|rest| excepted(&node.mount, rest)) {
                    let place = walker.locate_in(&node.mount.before, path)?;
                    return Ok(Some((place, None)));
                }
                if let Some(inner) = node.inner_mount(name) {
                    let attr = inner.attr()?;
                    return Ok(Some((Place::Tree(inner, attr), None)));
                }
                let (child, attr) = match node.lookup(name) {
                    Err(Errno::ENOENT) => return Ok(None),
                    found => found?,
                };
                if let Place::Tree(_, above) = &self.place {
                    if let Some(real) = child.pseudo(&attr, above) {
                        return Ok(Some((Place::Host(real), None)));
                    }
                }
                let link = if attr.kind == Kind::Symlink {
                    let target = guarded(|| child.tree().readlink(child.ino))?;
                    Some(Link::Text(target.as_bytes().to_vec()))
                } else {
                    None
                };
                Ok(Some((Place::Tree(child, attr), link)))
            }
            Place::Host(_) => self.host_child(path),
        }
    }

    fn host_child(&self, path: &[u8]) -> Result<Option<(Place, Option<Link>)>> {
        let path = own_proc(self.walker.task, path);
        let real = Path::new(OsStr::from_bytes(&path));
        let data = match std::fs::symlink_metadata(real) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            found => found.map_err(crate::standin::errno)?,
        };
        if !data.file_type().is_symlink() {
            return Ok(Some((Place::Host(path), None)));
        }
        let target = std::fs::read_link(real).map_err(crate::standin::errno)?;
        let text = target.as_os_str().as_bytes().to_vec();
        let link = if is_magic(&path) { self.magic(real, text)? } else { Link::Text(text) };
        Ok(Some((Place::Host(path), Some(link))))
    }

    /// What a link of `/proc/PID/fd`, or `cwd`, `exe`, `root`, leads to: an object, whatever its text says.
    fn magic(&self, real: &Path, text: Vec<u8>) -> Result<Link> {
        if self.walker.limits.no_magic {
            return Err(Errno::ELOOP);
        }
        let key = crate::fuseplane::key_of(real)?;
        if let Some(stand_in) = self.walker.stand_ins.find(key) {
            return Ok(Link::Node(Arc::clone(&stand_in.node)));
        }
        if let Some(node) = self.walker.lent_link(real.as_os_str().as_bytes(), key)? {
            return Ok(Link::Node(node));
        }
        let by_text = std::fs::symlink_metadata(OsStr::from_bytes(&text));
        let same = text.starts_with(b"/") && by_text.is_ok_and(|data| (data.dev(), data.ino()) == key);
        // A text that leads somewhere else (a removed file, a pipe) is nothing to go on from.
        Ok(if same { Link::Text(text) } else { Link::Opaque })
    }

    fn follow(&mut self, from: &Place, link: Link, is_last: bool) -> Result<()> {
        self.links += 1;
        if self.links > MAX_LINKS || self.walker.limits.no_symlinks {
            return Err(Errno::ELOOP);
        }
        let target = match link {
            Link::Text(target) if target.is_empty() => return Err(Errno::ENOENT),
            Link::Text(target) => target,
            Link::Node(node) => {
                let attr = node.attr()?;
                self.place = Place::Tree(node, attr);
                self.direct = false;
                return Ok(());
            }
            Link::Opaque => {
                self.place = from.clone();
                return Ok(());
            }
        };
        // A link that is found in a virtual tree is not found by the kernel.
        self.direct &= matches!(from, Place::Host(_));
        if target.starts_with(b"/") {
            if self.walker.limits.beneath {
                return Err(Errno::EXDEV);
            }
            let root = self.floor.clone().unwrap_or_default();
            self.place = self.walker.locate(&root)?;
            self.direct &= matches!(self.place, Place::Host(_));
        }
        self.wants_dir |= is_last && target.ends_with(b"/");
        self.forget_name();
        self.push_front(&target);
        Ok(())
    }
}

enum Link {
    Text(Vec<u8>),
    Node(Arc<Node>),
    Opaque,
}

/// `/proc/self` and `/proc/thread-self` as the task sees them, not as we do.
fn own_proc(task: Task, path: &[u8]) -> Vec<u8> {
    let leader = || task.leader().unwrap_or(task.0);
    if let Some(rest) = rest_below(path, b"/proc/self") {
        return [format!("/proc/{}", leader()).as_bytes(), rest].concat();
    }
    if let Some(rest) = rest_below(path, b"/proc/thread-self") {
        return [format!("/proc/{}/task/{}", leader(), task.0).as_bytes(), rest].concat();
    }
    path.to_vec()
}

fn rest_below<'p>(path: &'p [u8], top: &[u8]) -> Option<&'p [u8]> {
    path.strip_prefix(top).filter(|rest| rest.is_empty() || rest[0] == b'/')
}

/// Whether a path of the host is a link of `/proc` that leads to an object.
pub(crate) fn is_magic(path: &[u8]) -> bool {
    let Some(rest) = path.strip_prefix(b"/proc/") else { return false };
    let parts: Vec<&[u8]> = rest.split(|byte| *byte == b'/').collect();
    let number = |part: &[u8]| !part.is_empty() && part.iter().all(u8::is_ascii_digit);
    let tail = match parts.as_slice() {
        [pid, b"task", tid, tail @ ..] if number(pid) && number(tid) => tail,
        [pid, tail @ ..] if number(pid) => tail,
        _ => return false,
    };
    match tail {
        [b"cwd" | b"exe" | b"root"] => true,
        [b"fd", name] => number(name),
        [b"map_files" | b"ns", _] => true,
        _ => false,
    }
}

/// The directory of a task from which relative paths start.
pub(crate) fn working_directory(stand_ins: &StandIns, task: Task) -> Result<Start> {
    start_of(stand_ins, &format!("/proc/{}/cwd", task.0))
}

/// The directory, or other object, of a task's descriptor.
pub(crate) fn directory_of(stand_ins: &StandIns, task: Task, number: i32) -> Result<Start> {
    if number < 0 {
        return Err(Errno::EBADF);
    }
    start_of(stand_ins, &format!("/proc/{}/fd/{number}", task.0)).map_err(|errno| match errno {
        Errno::ENOENT => Errno::EBADF,
        other => other,
    })
}

fn start_of(stand_ins: &StandIns, link: &str) -> Result<Start> {
    /// The last one was virtual: then most likely this one is too, and its name need not be read.
    static IS_VIRTUAL: AtomicBool = AtomicBool::new(false);
    if IS_VIRTUAL.load(Ordering::Relaxed) && !stand_ins.is_empty() {
        let stand_in = crate::fuseplane::key_of(Path::new(link)).ok().and_then(|key| stand_ins.find(key));
        if let Some(stand_in) = stand_in {
            return Ok(Start::Tree(Arc::clone(&stand_in.node)));
        }
        IS_VIRTUAL.store(false, Ordering::Relaxed);
    }
    let text = match std::fs::read_link(link).map_err(crate::standin::errno) {
        // Of the host, so deep that the kernel has no name for it; those of stand-ins are short.
        Err(Errno::ENAMETOOLONG) => return Ok(Start::Opaque),
        text => text?,
    };
    let text = text.as_os_str().as_bytes();
    // Only what was removed can be a stand-in, or what has the name of one.
    let may_be = text.ends_with(b" (deleted)") || crate::fuseplane::may_be_name(text);
    if may_be && !stand_ins.is_empty() {
        if let Some(stand_in) = stand_ins.find(crate::fuseplane::key_of(Path::new(link))?) {
            IS_VIRTUAL.store(true, Ordering::Relaxed);
            return Ok(Start::Tree(Arc::clone(&stand_in.node)));
        }
    }
    if !text.starts_with(b"/") || text.ends_with(b" (deleted)") {
        return Ok(Start::Opaque);
    }
    Ok(Start::Host(if text == b"/" { Vec::new() } else { text.to_vec() }))
}

/// `AT_FDCWD` as it comes in a register.
pub(crate) fn is_cwd(dirfd: u64) -> bool {
    dirfd as i32 == libc::AT_FDCWD
}
