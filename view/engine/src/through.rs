//! Mounts through which the host is seen as it is, but for what differs: a directory with changes laid over it, where it is; or a bind of something on
//! itself that is only read, where nothing ever differs.
//!
//! What such a tree shows and has not told to differ is the very object that the host has at the same path
//! ([`Filesystem::shows`](veduta_api::Filesystem::shows)). So whoever only looks may do so on the host: the [fast path](crate::fast) lets pass what it
//! finds there, processes work in the host's own directories, and the kernel runs the programs. Whatever changes something, and all
//! that differs, comes to the engine as with any other mount. What differs is told before it does, so nobody sees too little.
//!
//! What a descriptor of the host stands for in the view is told by its path, which is the same on both sides ([`Held`]). A directory that is renamed
//! ends that: from then on nothing is looked for on the host, and what descriptors of it stand for is told by where it went.

use std::collections::{HashMap, HashSet};
use std::ffi::OsStr;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Weak};

use nix::errno::Errno;
use nix::fcntl::OFlag;
use nix::libc;
use nix::unistd::{Whence, lseek};
use parking_lot::{Mutex, RwLock};
use veduta_api::{Attr, Differences, Filesystem, Kind, Result};
use veduta_trace::shim::Difference;

use crate::call::{Answer, Call, Outcome};
use crate::fast::Inner;
use crate::mounts::{is_below, shown};
use crate::node::Node;
use crate::standin::Key;
use crate::walk::{Limits, Place};

/// Marks the description of a directory whose positions are those of the view: the signal that tells that input is possible, which no directory does.
const LISTED_HERE: i32 = 63;
/// Differences of one mount that are kept; with more of them the host is not looked at.
const MOST: usize = 16_384;
/// Directories whose nodes are remembered.
const MOST_HELD: usize = 4096;

/// What is known of such a mount.
pub(crate) struct Through {
    /// Canonical; where the mount is, and what is seen through it.
    target: Vec<u8>,
    told: Mutex<Told>,
    /// Too much differs.
    is_over: AtomicBool,
    fast: Weak<Inner>,
}

#[derive(Default)]
struct Told {
    objects: HashSet<Key>,
    /// Canonical paths.
    names: HashSet<Vec<u8>>,
}

impl Through {
    /// A mount of a tree, if the host is seen through it.
    pub(crate) fn new(target: &[u8], tree: &dyn Filesystem, fast: &Arc<Inner>) -> Option<Arc<Self>> {
        let this = Arc::new(Self {
            target: target.to_vec(),
            told: Mutex::default(),
            is_over: AtomicBool::new(false),
            fast: Arc::downgrade(fast),
        });
        let told: Weak<Self> = Arc::downgrade(&this);
        let shown = tree.shows(told)?;
        let shown = shown.as_os_str().as_bytes();
        (shown.strip_suffix(b"/").unwrap_or(shown) == target).then_some(this)
    }

    /// A mount that shows the host where it is: nothing will differ.
    pub(crate) fn of_itself(target: &[u8], fast: &Arc<Inner>) -> Arc<Self> {
        Arc::new(Self {
            target: target.to_vec(),
            told: Mutex::default(),
            is_over: AtomicBool::new(false),
            fast: Arc::downgrade(fast),
        })
    }

    /// Whether the host may still be looked at.
    pub(crate) fn is_clear(&self) -> bool {
        !self.is_over.load(Ordering::SeqCst)
    }

    /// Whether a canonical path below leads, on the host, to what the view has there, or to the same directory with other names in it.
    fn is_way(&self, path: &[u8]) -> bool {
        self.is_clear() && self.was_way(path)
    }

    /// The same, as far as anything was told.
    fn was_way(&self, path: &[u8]) -> bool {
        let told = self.told.lock();
        let mut way = path;
        while way.len() > self.target.len() {
            if told.names.contains(way) {
                return false;
            }
            way = crate::mounts::split(way).0;
        }
        true
    }

    /// Whether the host has at a canonical path the very thing that the view has there, whose attributes these are.
    fn is_plain(&self, path: &[u8], attr: &Attr) -> bool {
        attr_key(attr).is_some_and(|key| !self.differs(key)) && self.is_way(path)
    }

    /// Whether what has this number is not (only) what the view has in its place.
    pub(crate) fn differs(&self, key: Key) -> bool {
        self.told.lock().objects.contains(&key)
    }

    /// Does something with all that differs.
    pub(crate) fn with_differences(&self, mut work: impl FnMut(Difference<'_>)) {
        let told = self.told.lock();
        told.objects.iter().for_each(|(device, ino)| work(Difference::Object(*device, *ino)));
        told.names.iter().for_each(|path| work(Difference::Name(path)));
    }

    fn tell(&self, difference: Difference<'_>) {
        if !self.is_clear() {
            return;
        }
        let Some(fast) = self.fast.upgrade() else { return };
        // The table is not made meanwhile: it would lack this one.
        let _telling = fast.telling();
        let is_known = {
            let mut told = self.told.lock();
            let is_new = match difference {
                Difference::Object(device, ino) => told.objects.insert((device, ino)),
                Difference::Name(path) => told.names.insert(path.to_vec()),
            };
            if told.objects.len().max(told.names.len()) > MOST {
                drop(told);
                return self.end(&fast);
            }
            !is_new
        };
        if !is_known && !fast.differs(difference) {
            self.end(&fast);
        }
    }

    fn end(&self, fast: &Inner) {
        if !self.is_over.swap(true, Ordering::SeqCst) {
            fast.nothing_is_certain();
        }
    }
}

/// The path at which the host has the very thing that the view has at a place, if it may be looked at there and is there.
pub(crate) fn on_host(call: &Call<'_>, place: &Place) -> Option<Vec<u8>> {
    let Place::Tree(node, attr) = place else { return None };
    let through = node.mount.through.as_ref().filter(|_| call.root().is_none())?;
    let path = node.path();
    if !through.is_plain(&path, attr) {
        return None;
    }
    let data = std::fs::symlink_metadata(OsStr::from_bytes(shown(&path))).ok()?;
    (attr_key(attr) == Some((data.dev(), data.ino()))).then_some(path)
}

/// Whether the kernel, by the path of a call, comes to this object.
pub(crate) fn finds(call: &Call<'_>, dirfd: u64, path: &[u8], key: Key) -> bool {
    let from = match crate::walk::is_cwd(dirfd) {
        true => format!("/proc/{}/cwd", call.task.0),
        false => format!("/proc/{}/fd/{}", call.task.0, dirfd as i32),
    };
    let found = std::fs::metadata(Path::new(&from).join(OsStr::from_bytes(path)));
    found.is_ok_and(|found| (found.dev(), found.ino()) == key)
}

/// The path at which the host has a directory of the view, which processes may therefore be in on the host.
pub(crate) fn directory_on_host(node: &Arc<Node>, attr: &Attr) -> Option<Vec<u8>> {
    let is_apart = attr.kind == Kind::Directory && !node.mount.is_itself;
    let through = node.mount.through.as_ref().filter(|_| is_apart)?;
    let path = node.path();
    through.was_way(&path).then_some(path)
}

/// The answer for a task that goes to a directory: to the host's own, if that is one of the view's with other names in it at most.
pub(crate) fn chdir(call: &Call<'_>, node: &Arc<Node>) -> Result<Option<Answer>> {
    let Some(through) = node.mount.through.as_ref().filter(|_| call.root().is_none()) else {
        return Ok(None);
    };
    let path = node.path();
    if !through.is_way(&path) {
        return Ok(None);
    }
    let real = Path::new(OsStr::from_bytes(shown(&path)));
    let Ok(data) = std::fs::symlink_metadata(real) else { return Ok(None) };
    if !data.is_dir() {
        return Ok(None);
    }
    let text = call.task.read_path(call.args[0])?;
    if finds(call, libc::AT_FDCWD as u64, &text, (data.dev(), data.ino())) {
        return Ok(Some(Answer::GoOn));
    }
    match std::fs::File::open(real) {
        Ok(directory) => Ok(Some(Answer::Chdir(directory.into(), None))),
        // One may enter what one cannot list; the stand-in serves.
        Err(_) => Ok(None),
    }
}

/// The host's own directory for one of the view's that is opened to be read, if it has other names in it at most. What is looked for from there is
/// then found without the engine.
pub(crate) fn open(call: &Call<'_>, node: &Arc<Node>, flags: OFlag) -> Result<Option<OwnedFd>> {
    let Some(through) = node.mount.through.as_ref().filter(|_| call.root().is_none()) else {
        return Ok(None);
    };
    let path = node.path();
    if !through.is_way(&path) || !call.table.names_in(&path).is_empty() {
        return Ok(None);
    }
    let real = Path::new(OsStr::from_bytes(shown(&path)));
    let kept = flags & (OFlag::O_NONBLOCK | OFlag::O_NOATIME);
    let how = kept | OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
    let open = || nix::fcntl::open(real, how, nix::sys::stat::Mode::empty());
    // What is no directory there, or may not be opened, is not what the view has.
    Ok(crate::host::as_caller(call, open).ok())
}

/// `getdents64` on a directory of the host that has come to differ since it was opened. Whoever is in the midst of it goes on with what
/// the host has; whoever begins is given what the view has.
pub(crate) fn list(call: &Call<'_>, fd: &OwnedFd, is_old: bool) -> Outcome {
    let Ok(key) = crate::fuseplane::key_of_fd(fd.as_fd()) else { return Ok(Answer::GoOn) };
    let differs = |mount: &Arc<crate::mounts::Mount>| {
        mount.through.as_ref().is_some_and(|through| !through.is_clear() || through.differs(key))
    };
    if !call.table.mounts().iter().any(differs) || (!is_listed(fd) && lseek(fd, 0, Whence::SeekCur)? != 0) {
        return Ok(Answer::GoOn);
    }
    let link = format!("/proc/self/fd/{}", fd.as_raw_fd());
    let path = std::fs::read_link(link).map_err(crate::standin::errno)?;
    let path = path.as_os_str().as_bytes();
    let Some(node) = call.view.stand_ins.held.find(call, path)? else { return Ok(Answer::GoOn) };
    let stand_in = call.view.stand_ins.of_node(&node, Kind::Directory, 0)?;
    mark(fd);
    crate::directory::serve(call, &stand_in, fd, is_old)
}

/// The node at a path from another.
fn below(node: &Arc<Node>, path: &[u8]) -> Result<Arc<Node>> {
    let names = path.split(|byte| *byte == b'/').filter(|name| !name.is_empty());
    names.into_iter().try_fold(Arc::clone(node), |node, name| Ok(node.lookup(name)?.0))
}

/// Whether the positions of a directory's description are those of the view.
pub(crate) fn is_listed(fd: &OwnedFd) -> bool {
    crate::lent::signal_of(fd) == Ok(LISTED_HERE.into())
}

fn mark(fd: &OwnedFd) {
    if let Err(errno) = crate::lent::set_signal(fd, LISTED_HERE) {
        tracing::debug!("a listing is not told as ours: {}", errno.desc());
    }
}

/// Device and inode number, where a node shows those of the host.
pub(crate) fn attr_key(attr: &Attr) -> Option<Key> {
    attr.st_dev.map(|device| (libc::makedev(device.major, device.minor), attr.st_ino))
}

impl Differences for Through {
    fn object(&self, device: u64, ino: u64) {
        self.tell(Difference::Object(device, ino));
    }

    fn name(&self, path: &OsStr) {
        self.tell(Difference::Name(&[&self.target, b"/".as_slice(), path.as_bytes()].concat()));
    }

    fn all(&self) {
        if let Some(fast) = self.fast.upgrade() {
            self.end(&fast);
        }
    }
}

/// What directories of the host that processes work in stand for. A node that is known once stays the one that is meant, wherever it goes, and also when
/// it was removed and something else has its name.
#[derive(Default)]
pub(crate) struct Held {
    known: Mutex<HashMap<Key, Arc<Node>>>,
    any_moved: AtomicBool,
    /// Directories that have other paths in the view since: the path on the host, and the node.
    moved: RwLock<Vec<(Vec<u8>, Arc<Node>)>>,
}

impl Held {
    /// The node that a directory of the host, at this path, stands for; `None` if it is the host's own.
    pub(crate) fn find(&self, call: &Call<'_>, path: &[u8]) -> Result<Option<Arc<Node>>> {
        let path = if path == b"/" { b"" } else { path };
        let is_through = call.table.serving(path).is_some_and(|mount| mount.through.is_some());
        if !is_through {
            return Ok(None);
        }
        let Ok(data) = std::fs::symlink_metadata(OsStr::from_bytes(shown(path))) else { return Ok(None) };
        // A file that was removed, or replaced, may still be held: what it stands for is known by how it was opened.
        if !data.is_dir() {
            return Ok(None);
        }
        let key = (data.dev(), data.ino());
        let is_itself = call.table.serving(path).is_some_and(|mount| mount.is_itself);
        if is_itself {
            // It is where its path says, however it got there.
            return match call.walker(Limits::default()).locate(path)? {
                Place::Tree(node, _) => Ok(Some(node)),
                Place::Host(_) => Ok(None),
            };
        }
        let known = self.known.lock().get(&key).cloned();
        match known {
            // Others have removed what it was made of, and the host has given the number to another directory.
            Some(node) if node.attr() == Err(Errno::ESTALE) => drop(self.known.lock().remove(&key)),
            Some(node) => return Ok(Some(node)),
            None => {}
        }
        let moved = match self.any_moved.load(Ordering::Acquire) {
            true => self.moved_to(path),
            false => None,
        };
        let node = match moved {
            Some((node, rest)) => below(&node, rest)?,
            None => match call.walker(Limits::default()).locate(path)? {
                Place::Tree(node, _) => node,
                Place::Host(_) => return Ok(None),
            },
        };
        let mut known = self.known.lock();
        if known.len() >= MOST_HELD {
            known.clear();
        }
        known.insert(key, Arc::clone(&node));
        Ok(Some(node))
    }

    /// What a path of the host leads to that is at another place in the view now.
    pub(crate) fn moved_node(&self, path: &[u8]) -> Option<Arc<Node>> {
        if !self.any_moved.load(Ordering::Acquire) {
            return None;
        }
        let (node, rest) = self.moved_to(path)?;
        below(&node, rest).ok()
    }

    /// A directory of the host is at another place in the view from now on.
    pub(crate) fn moved(&self, path: Vec<u8>, node: &Arc<Node>) {
        self.moved.write().push((path, Arc::clone(node)));
        self.any_moved.store(true, Ordering::Release);
    }

    /// Where a path of the host begins in the view, and the path that is left from there on.
    fn moved_to<'p>(&self, path: &'p [u8]) -> Option<(Arc<Node>, &'p [u8])> {
        let moved = self.moved.read();
        let found =
            moved.iter().rev().filter(|(top, _)| is_below(path, top)).max_by_key(|(top, _)| top.len())?;
        Some((Arc::clone(&found.1), &path[found.0.len()..]))
    }

    /// A mount has ended.
    pub(crate) fn forget(&self, mount: u32) {
        self.known.lock().retain(|_, node| node.mount.id != mount);
        self.moved.write().retain(|(_, node)| node.mount.id != mount);
    }
}
