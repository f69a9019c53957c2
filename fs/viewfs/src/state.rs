//! What a tree that is written keeps in its upper layer, beside the layer's own content: the hidden directory `.veduta-work`.
//!
//! * `work/`: what is being made, before it gets its name by a rename. Emptied at each mount.
//! * `links/`: copies of files that have hard links below, by what the file is there: so all of its names find the one copy.
//! * `touched`: what a commit of the layer has changed below without being done with it (`upper/touched.rs`).
//! * `lock`: locked while the tree is mounted; of two mounts with one upper layer the second is refused.
//!
//! The directory is removed at the unmount unless there are links. The layers below are recorded in a mark on the layer's root.

use std::ffi::{OsStr, OsString};
use std::ops::ControlFlow;
use std::os::unix::ffi::OsStrExt;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use parking_lot::Mutex;
use rustix::fs::FlockOperation;
use veduta_api::{
    Attr, Device, Errno, File, Filesystem, Ino, Kind, MountError, NewNode, OpenFlags, Perm, RenameFlags,
    Result, XattrMode,
};

use veduta_tree::lock::{self, Taken};

use crate::layer::Prefix;

/// The hidden directory, in the root of the upper layer.
pub(crate) const NAME: &str = ".veduta-work";

const WORK: &str = "work";
const LINKS: &str = "links";
const LOCK: &str = "lock";

/// How long a mount that was just ended may take to notice it. From then on its lock says so ([`State::leave`]), and is waited for without a limit.
const PATIENCE: Duration = Duration::from_secs(2);

pub(crate) const TOUCHED: &str = "touched";

/// How many names a whiteout gets: a layer remembers each while it is in use.
const WHITEOUT_NAMES: u32 = 1000;

pub(crate) struct State {
    fs: Arc<dyn Filesystem>,
    root: Ino,
    home: Ino,
    /// Where things are made.
    pub(crate) work: Ino,
    /// The layer cannot make files without a name.
    pub(crate) no_unnamed: AtomicBool,
    links: Mutex<Option<Ino>>,
    /// A commit was not completed: of a file with hard links below there may be one name left.
    pub(crate) is_half_committed: bool,
    /// A whiteout, of which others are hard links: names cost less than nodes.
    whiteout: Mutex<Option<(Ino, u32)>>,
    lock: Mutex<Option<Arc<dyn File>>>,
}

/// A node of our own.
pub(crate) fn own(kind: Kind, mode: u32) -> NewNode {
    NewNode {
        kind,
        perm: Perm::from_mode(mode),
        umask: 0,
        uid: rustix::process::geteuid().as_raw(),
        gid: rustix::process::getegid().as_raw(),
        rdev: Device::default(),
    }
}

impl State {
    /// Takes the layer for this mount, and clears what an earlier one left.
    pub(crate) fn begin(fs: Arc<dyn Filesystem>, root: Ino) -> Result<Self, MountError> {
        let cannot = |what: &str| {
            let what = what.to_owned();
            move |errno: Errno| {
                MountError::system(errno, format!("the upper layer: {what}: {}", errno.desc()))
            }
        };
        let directory = |dir, name| make_directory(&*fs, dir, OsStr::new(name));
        let taken = lock::take(PATIENCE, "the upper layer", || take(&*fs, root));
        let (home, lock) = match taken {
            Ok(Some(taken)) => taken,
            Ok(None) => {
                let message = "the upper layer is in use by another mount, or by a commit";
                return Err(MountError::system(Errno::EBUSY, message));
            }
            Err(Errno::EINTR) => return Err(cannot("the wait for its last mount was ended")(Errno::EINTR)),
            Err(errno) => return Err(cannot("its work directory cannot be made")(errno)),
        };
        let work = directory(home, WORK).map_err(cannot("its work directory cannot be made"))?;
        empty(&*fs, work).map_err(cannot("its work directory cannot be emptied"))?;
        let links = find_directory(&*fs, home, LINKS).map_err(cannot("its links cannot be read"))?;
        let is_half_committed = fs.lookup(home, OsStr::new(TOUCHED)).is_ok();
        Ok(Self {
            fs,
            root,
            home,
            work,
            no_unnamed: AtomicBool::new(false),
            links: Mutex::new(links),
            is_half_committed,
            whiteout: Mutex::new(None),
            lock: Mutex::new(Some(lock)),
        })
    }

    /// The hidden directory itself.
    pub(crate) fn home(&self) -> Ino {
        self.home
    }

    /// The directory of links, if there is one.
    pub(crate) fn links(&self) -> Option<Ino> {
        *self.links.lock()
    }

    /// The same, made if there is none.
    pub(crate) fn make_links(&self) -> Result<Ino> {
        let mut links = self.links.lock();
        if let Some(links) = *links {
            return Ok(links);
        }
        let made = make_directory(&*self.fs, self.home, OsStr::new(LINKS))?;
        *links = Some(made);
        Ok(made)
    }

    /// Makes a whiteout at a name that is free. `EPERM`, `EINVAL` or `EOPNOTSUPP` where it cannot be a device.
    pub(crate) fn make_whiteout(&self, dir: Ino, name: &OsStr) -> Result<()> {
        let fs = &*self.fs;
        let mut shared = self.whiteout.lock();
        if let Some((ino, names)) = shared.as_mut().filter(|(_, names)| *names < WHITEOUT_NAMES) {
            match fs.link(*ino, dir, name) {
                Ok(entry) => {
                    fs.forget(entry.ino, 1);
                    *names += 1;
                    return Ok(());
                }
                Err(error @ (Errno::EEXIST | Errno::ENOSPC | Errno::EDQUOT)) => return Err(error),
                // Its last name is gone, or it may have no others.
                Err(_) => {}
            }
        }
        let entry = fs.mknod(dir, name, &own(Kind::CharDevice, 0))?;
        if let Some((earlier, _)) = shared.replace((entry.ino, 1)) {
            fs.forget(earlier, 1);
        }
        Ok(())
    }

    /// Tells who waits for the layer that the mount is over, and what is left to do only takes time.
    pub(crate) fn leave(&self) {
        if let Some(Err(error)) = self.lock.lock().as_ref().and_then(|lock| lock.backing().map(lock::leave)) {
            tracing::debug!("nobody is told that the upper layer will be free: {}", error.desc());
        }
    }

    /// The mount is over.
    pub(crate) fn end(&self) {
        let fs = &*self.fs;
        let cleared = empty(fs, self.work).and_then(|()| fs.rmdir(self.home, OsStr::new(WORK)));
        let _ = fs.rmdir(self.home, OsStr::new(LINKS));
        let _ = fs.unlink(self.home, OsStr::new(LOCK));
        // It stays if it has links: then this says ENOTEMPTY.
        let _ = fs.rmdir(self.root, OsStr::new(NAME));
        if let Err(error) = cleared {
            tracing::warn!("the work directory of the upper layer was not cleared: {}", error.desc());
        }
        *self.lock.lock() = None;
    }
}

/// The links of an upper layer that is only read.
pub(crate) fn find_links(fs: &dyn Filesystem, root: Ino) -> Result<Option<Ino>> {
    match find_directory(fs, root, NAME)? {
        Some(home) => find_directory(fs, home, LINKS),
        None => Ok(None),
    }
}

/// Writes down which layers lie below.
pub(crate) fn record(fs: &dyn Filesystem, root: Ino, prefix: Prefix, layers: &[OsString]) -> Result<()> {
    let value = layers.join(OsStr::new("\n"));
    fs.setxattr(root, &prefix.name("veduta.layers"), value.as_bytes(), XattrMode::Set)
}

/// Under which name the copy of a file with hard links is found. Layers are counted from the bottom, since more may be laid on top.
pub(crate) fn link_name(layer: usize, union: usize, attr: &Attr) -> OsString {
    let btime = attr.btime.unwrap_or_default();
    format!("{}-{:x}-{:x}.{:x}", union - layer, attr.st_ino, btime.seconds, btime.nanos).into()
}

fn find_directory(fs: &dyn Filesystem, dir: Ino, name: &str) -> Result<Option<Ino>> {
    match fs.lookup(dir, OsStr::new(name)) {
        Ok(entry) if entry.attr.kind == Kind::Directory => Ok(Some(entry.ino)),
        Ok(_) => Err(Errno::ENOTDIR),
        Err(Errno::ENOENT) => Ok(None),
        Err(error) => Err(error),
    }
}

fn make_directory(fs: &dyn Filesystem, dir: Ino, name: &OsStr) -> Result<Ino> {
    match fs.mkdir(dir, name, &own(Kind::Directory, 0o700)) {
        Ok(entry) => Ok(entry.ino),
        Err(Errno::EEXIST) => {
            let entry = fs.lookup(dir, name)?;
            if entry.attr.kind == Kind::Directory { Ok(entry.ino) } else { Err(Errno::ENOTDIR) }
        }
        Err(error) => Err(error),
    }
}

/// Takes the lock of a layer, if it is free: the hidden directory, and its lock, which is held.
fn take(fs: &dyn Filesystem, root: Ino) -> Result<Taken<(Ino, Arc<dyn File>)>> {
    let found = make_directory(fs, root, OsStr::new(NAME)).and_then(|home| Ok((home, open_lock(fs, home)?)));
    let (home, lock) = match found {
        Ok(found) => found,
        // Who ends removes both, while he holds the lock.
        Err(Errno::ENOENT) => return Ok(Taken::Left),
        Err(errno) => return Err(errno),
    };
    let Some(fd) = lock.backing() else { return Ok(Taken::Ours((home, lock))) };
    match rustix::fs::flock(fd, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) if rustix::fs::fstat(fd).is_ok_and(|stat| stat.st_nlink == 0) => return Ok(Taken::Left),
        Ok(()) => {}
        Err(rustix::io::Errno::WOULDBLOCK) if lock::is_left(fd) => return Ok(Taken::Left),
        Err(rustix::io::Errno::WOULDBLOCK) => return Ok(Taken::Others),
        Err(_) => tracing::warn!("the upper layer cannot be locked: take care to mount it only once"),
    }
    Ok(Taken::Ours((home, lock)))
}

fn open_lock(fs: &dyn Filesystem, home: Ino) -> Result<Arc<dyn File>> {
    let name = OsStr::new(LOCK);
    match fs.create(home, name, &own(Kind::File, 0o600), OpenFlags::READ_WRITE) {
        Ok((_, file)) => Ok(file),
        Err(Errno::EEXIST) => fs.open(fs.lookup(home, name)?.ino, OpenFlags::READ_WRITE),
        Err(error) => Err(error),
    }
}

/// Removes everything in a directory of ours. Deep trees are flattened first, so that the stack has an end.
pub(crate) fn empty(fs: &dyn Filesystem, dir: Ino) -> Result<()> {
    let mut number = 0_u64;
    loop {
        let mut names = Vec::new();
        fs.readdir(dir, 0, &mut |entry| {
            names.push(entry.name.to_owned());
            ControlFlow::Continue(())
        })?;
        if names.is_empty() {
            return Ok(());
        }
        for name in names {
            let entry = match fs.lookup(dir, &name) {
                Err(Errno::ENOENT) => continue,
                entry => entry?,
            };
            let removed = match entry.attr.kind {
                Kind::Directory => {
                    let hoisted = hoist(fs, entry.ino, dir, &mut number);
                    hoisted.and_then(|()| fs.rmdir(dir, &name))
                }
                _ => fs.unlink(dir, &name),
            };
            fs.forget(entry.ino, 1);
            removed?;
        }
    }
}

/// Moves the directories of a directory up, and removes the rest of it.
fn hoist(fs: &dyn Filesystem, from: Ino, to: Ino, number: &mut u64) -> Result<()> {
    let mut names = Vec::new();
    fs.readdir(from, 0, &mut |entry| {
        names.push((entry.name.to_owned(), entry.kind));
        ControlFlow::Continue(())
    })?;
    for (name, kind) in names {
        let is_directory = match kind {
            Some(kind) => kind == Kind::Directory,
            None => {
                let entry = fs.lookup(from, &name)?;
                fs.forget(entry.ino, 1);
                entry.attr.kind == Kind::Directory
            }
        };
        if !is_directory {
            fs.unlink(from, &name)?;
            continue;
        }
        match fs.rmdir(from, &name) {
            Err(Errno::ENOTEMPTY | Errno::EEXIST) => loop {
                *number += 1;
                let flags = RenameFlags { no_replace: true, ..RenameFlags::default() };
                match fs.rename(from, &name, to, OsStr::new(&format!("rest-{number}")), flags) {
                    Err(Errno::EEXIST) => {}
                    moved => break moved?,
                }
            },
            removed => removed?,
        }
    }
    Ok(())
}
