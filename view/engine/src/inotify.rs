//! `inotify(7)` on virtual trees.
//!
//! The kernel watches inodes of its own. So whoever watches a virtual node watches an empty file or directory of the host in its
//! place, its *shadow*, and what the view does to the node is done to the shadow too: names are made, moved and removed, modes
//! and times set. The kernel makes the events of that, so watch descriptors, masks, cookies, queues, overflow and polling
//! are its own, and one descriptor may watch virtual nodes and files of the host.
//!
//! Shadows lie by their path in a filesystem of their own for each mount, a tmpfs that nobody else sees; when the mount ends, so does it, and
//! the kernel tells that (`IN_UNMOUNT`). Where there are no namespaces in which we could mount one, they lie in a folder of the view. A watched
//! directory has shadows of all that is in it, since a name can only be removed, with an event, if it is there. None is there before
//! the first watch.
//!
//! A file that is opened while its shadow exists is served by the engine, which sees what is done to it, and not through a
//! descriptor of the host. That it was closed is found out some hundredths of a second later.
//!
//! # Limits
//!
//! Events are those of the view's own doing, through the mount that is watched. Files that were open before are seen written to
//! only on the plane `emulated`. Of several who have a file open, the last one's close is seen. A directory is seen opened and
//! closed at once. The end of a mount is no event where shadows lie in a folder. Beyond [`MOST`] names in a directory, those that are removed are not told.

use std::collections::{HashMap, HashSet};
use std::ffi::OsStr;
use std::fs;
use std::ops::ControlFlow;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Weak};
use std::time::Duration;

use nix::errno::Errno;
use nix::sys::stat::{Mode, SFlag, UtimensatFlags, mknod, utimensat};
use nix::sys::time::TimeSpec;
use parking_lot::Mutex;
use veduta_api::{Kind, Result, SetAttr};
use veduta_trace::raw::{self, Argument};

use crate::call::{Answer, Call, Outcome};
use crate::identity::READ;
use crate::node::{Node, guarded};
use crate::standin::{StandIn, errno};
use crate::view::View;
use crate::walk::Place;

/// Names in a directory that get shadows.
const MOST: usize = 65_536;
/// How often files are looked at that were seen opened, whether they were closed.
const TICK: Duration = Duration::from_millis(20);

/// The shadows of a view.
#[derive(Default)]
pub(crate) struct Watches {
    /// There are some: looked at before anything else.
    active: AtomicBool,
    state: Arc<Mutex<State>>,
}

#[derive(Default)]
struct State {
    /// Where the shadows of a mount are.
    bases: HashMap<u32, Base>,
    /// For those that have no filesystem.
    folder: Option<PathBuf>,
    /// Directories of which all names have shadows.
    filled: HashSet<PathBuf>,
    /// Shadows that are open because their files are.
    open: Vec<Opened>,
    /// Somebody looks after `open`.
    has_thread: bool,
}

struct Opened {
    mount: u32,
    stand_in: Weak<StandIn>,
    _shadow: fs::File,
}

/// Where the shadows of a mount are.
enum Base {
    /// In a filesystem that ends when this is closed.
    Own(OwnedFd),
    /// In a folder of the view's.
    Folder(PathBuf),
}

impl Base {
    fn path(&self) -> PathBuf {
        match self {
            Self::Own(root) => format!("/proc/self/fd/{}", root.as_raw_fd()).into(),
            Self::Folder(folder) => folder.clone(),
        }
    }

    /// The shadow of the mount's root.
    fn top(&self) -> PathBuf {
        self.path().join("top")
    }
}

/// The folder of an engine's shadows; for whoever cleans up after it.
pub(crate) fn folder(home: &Path, engine: u32) -> PathBuf {
    home.join(format!(".veduta-{engine}-watched"))
}

impl Watches {
    /// The shadow of a node, if there is one.
    fn shadow(&self, node: &Node) -> Option<PathBuf> {
        if !self.active.load(Ordering::Acquire) || node.mount.of_host {
            return None;
        }
        let path = self.path(node)?;
        path.symlink_metadata().is_ok().then_some(path)
    }

    /// Where the shadow of a node is, or would be.
    fn path(&self, node: &Node) -> Option<PathBuf> {
        let mut path = self.state.lock().bases.get(&node.mount.id)?.top().into_os_string();
        path.push(OsStr::from_bytes(&node.path_in_mount()));
        Some(path.into())
    }

    /// Whether what is done to an open file must be seen.
    pub(crate) fn sees(&self, node: &Node) -> bool {
        self.shadow(node).is_some()
    }

    /// A name was made in a directory.
    pub(crate) fn made(&self, directory: &Node, name: &OsStr, kind: Kind) {
        if let Some(path) = self.shadow(directory) {
            if self.state.lock().filled.contains(&path) {
                ignore(make(&path.join(name), kind));
            }
        }
    }

    /// A file got another name.
    pub(crate) fn linked(&self, node: &Node, directory: &Node, name: &OsStr) {
        match (self.shadow(node), self.shadow(directory)) {
            (Some(from), Some(to)) => ignore(fs::hard_link(from, to.join(name))),
            _ => self.made(directory, name, Kind::File),
        }
    }

    /// A name was removed.
    pub(crate) fn removed(&self, directory: &Node, name: &OsStr, kind: Kind) {
        let Some(path) = self.shadow(directory).map(|path| path.join(name)) else { return };
        ignore(if kind == Kind::Directory {
            self.state.lock().filled.remove(&path);
            fs::remove_dir(&path).or_else(|_| fs::remove_dir_all(&path))
        } else {
            fs::remove_file(&path)
        });
    }

    /// A name was moved, or two were exchanged.
    pub(crate) fn moved(&self, from: (&Node, &OsStr), to: (&Node, &OsStr), kind: Kind, exchanged: bool) {
        let (old, new) = (self.shadow(from.0), self.shadow(to.0));
        if old.is_none() && new.is_none() {
            return;
        }
        let (Some(old_path), Some(new_path)) = (self.path(from.0), self.path(to.0)) else { return };
        let (old_path, new_path) = (old_path.join(from.1), new_path.join(to.1));
        let mut state = self.state.lock();
        let has_old = old_path.symlink_metadata().is_ok();
        let parent = new_path.parent().unwrap_or(&new_path).to_owned();
        if !has_old {
            if new.is_none() || !state.filled.contains(&parent) {
                return;
            }
            // It comes from where nobody watches.
            let Some(base) = state.bases.get(&to.0.mount.id) else { return };
            let aside = base.path().join("aside");
            ignore(make(&aside, kind));
            ignore(fs::rename(&aside, &new_path));
            return;
        }
        ignore(fs::create_dir_all(&parent));
        if exchanged {
            let flags = nix::fcntl::RenameFlags::RENAME_EXCHANGE;
            let at = nix::fcntl::AT_FDCWD;
            if let Err(errno) = nix::fcntl::renameat2(at, &old_path, at, &new_path, flags) {
                tracing::debug!("a shadow: {}", errno.desc());
            }
        } else {
            ignore(fs::rename(&old_path, &new_path));
        }
        // Below a directory that moved, other paths are filled.
        let moved: Vec<_> = state.filled.iter().filter(|path| path.starts_with(&old_path)).cloned().collect();
        for path in moved {
            state.filled.remove(&path);
            if let Ok(rest) = path.strip_prefix(&old_path) {
                let path = new_path.join(rest);
                state.filled.insert(if rest.as_os_str().is_empty() { new_path.clone() } else { path });
            }
        }
    }

    /// Attributes were changed.
    pub(crate) fn changed(&self, node: &Node, changes: &SetAttr) {
        let Some(path) = self.shadow(node) else { return };
        let times = (changes.atime.is_some(), changes.mtime.is_some());
        if changes.size.is_some() || times == (false, true) {
            touch(&path, TimeSpec::UTIME_OMIT, TimeSpec::UTIME_NOW);
        }
        if times == (true, false) {
            touch(&path, TimeSpec::UTIME_NOW, TimeSpec::UTIME_OMIT);
        }
        let others = changes.perm.is_some() || changes.uid.is_some() || changes.gid.is_some();
        if others || times == (true, true) {
            self.attributes(node);
        }
    }

    /// Attributes of another kind were changed: extended ones, flags.
    pub(crate) fn attributes(&self, node: &Node) {
        if let Some(path) = self.shadow(node) {
            ignore(fs::set_permissions(path, fs::Permissions::from_mode(0o700)));
        }
    }

    /// Content was changed.
    pub(crate) fn modified(&self, node: &Node) {
        if let Some(path) = self.shadow(node) {
            touch(&path, TimeSpec::UTIME_OMIT, TimeSpec::UTIME_NOW);
        }
    }

    /// Content was read.
    pub(crate) fn read(&self, node: &Node) {
        if let Some(path) = self.shadow(node) {
            touch(&path, TimeSpec::UTIME_NOW, TimeSpec::UTIME_OMIT);
        }
    }

    /// It was opened.
    pub(crate) fn opened(&self, stand_in: &Arc<StandIn>, write: bool) {
        let Some(path) = self.shadow(&stand_in.node) else { return };
        let opened = fs::File::options().read(!write).write(write).open(path);
        let Ok(file) = opened else { return };
        if stand_in.kind == Kind::Directory {
            return;
        }
        let mut state = self.state.lock();
        let mount = stand_in.node.mount.id;
        state.open.push(Opened { mount, stand_in: Arc::downgrade(stand_in), _shadow: file });
        if !std::mem::replace(&mut state.has_thread, true) {
            let shared = Arc::clone(&self.state);
            let look = move || {
                loop {
                    std::thread::sleep(TICK);
                    let mut state = shared.lock();
                    state.open.retain(|opened| {
                        opened.stand_in.upgrade().is_some_and(|stand_in| !stand_in.is_unused())
                    });
                    if state.open.is_empty() {
                        state.has_thread = false;
                        return;
                    }
                }
            };
            let thread = std::thread::Builder::new().name("watched".into()).stack_size(128 << 10).spawn(look);
            if let Err(error) = thread {
                state.has_thread = false;
                tracing::warn!("closing is no event for now: {error}");
            }
        }
    }

    /// Makes the shadow of a node, and of all that is in it.
    fn cast(&self, view: &View, node: &Arc<Node>, kind: Kind) -> Result<PathBuf> {
        let path = {
            let mut state = self.state.lock();
            if !state.bases.contains_key(&node.mount.id) {
                let base = state.base(view, node.mount.id)?;
                state.bases.insert(node.mount.id, base);
            }
            drop(state);
            self.path(node).ok_or(Errno::ENOSPC)?
        };
        let state = &self.state;
        if path.symlink_metadata().is_err() {
            fs::create_dir_all(path.parent().unwrap_or(&path)).map_err(errno)?;
            make(&path, kind).map_err(errno)?;
        }
        // From here on what is done is told; what was done before is in the listing.
        self.active.store(true, Ordering::Release);
        if kind == Kind::Directory && state.lock().filled.insert(path.clone()) {
            fill(node, &path)?;
        }
        Ok(path)
    }

    /// The tree of a mount has ended. Where shadows are in a folder, nobody is told: to remove them would tell of files that were removed.
    pub(crate) fn ended(&self, mount: u32) {
        if !self.active.load(Ordering::Acquire) {
            return;
        }
        let mut state = self.state.lock();
        let Some(base) = state.bases.remove(&mount) else { return };
        let path = base.path();
        state.filled.retain(|filled| !filled.starts_with(&path));
        let (gone, open) = std::mem::take(&mut state.open).into_iter().partition(|open| open.mount == mount);
        state.open = open;
        drop(state);
        // With its last descriptor a filesystem ends.
        drop::<Vec<Opened>>(gone);
        drop(base);
    }

    /// A mount has another number.
    pub(crate) fn renumbered(&self, old: u32, new: u32) {
        let mut state = self.state.lock();
        if let Some(base) = state.bases.remove(&old) {
            state.bases.insert(new, base);
        }
    }

    /// Removes the shadows, at the end of the view.
    pub(crate) fn clear(&self) {
        self.active.store(false, Ordering::Release);
        let State { folder, .. } = std::mem::take(&mut *self.state.lock());
        if let Some(folder) = folder {
            ignore(fs::remove_dir_all(folder));
        }
    }
}

impl State {
    /// A place for the shadows of a mount.
    fn base(&mut self, view: &View, mount: u32) -> Result<Base> {
        match view.stand_ins.planes.empty_tree() {
            Ok(root) => return Ok(Base::Own(root)),
            Err(error) => tracing::info!("the end of a mount will be no event of inotify: {}", error.message),
        }
        if self.folder.is_none() {
            let folder = folder(&view.home, std::process::id());
            fs::create_dir(&folder).map_err(errno)?;
            fs::set_permissions(&folder, fs::Permissions::from_mode(0o700)).map_err(errno)?;
            self.folder = Some(folder);
        }
        let folder = self.folder.as_ref().ok_or(Errno::ENOSPC)?.join(mount.to_string());
        fs::create_dir(&folder).map_err(errno)?;
        Ok(Base::Folder(folder))
    }
}

/// Makes shadows of all that is in a directory.
fn fill(node: &Arc<Node>, path: &Path) -> Result<()> {
    let mut names = Vec::new();
    let mut sink = |entry: veduta_api::DirEntry<'_>| {
        names.push((entry.name.to_owned(), entry.kind));
        if names.len() < MOST { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
    };
    guarded(|| match node.tree().opendir(node.ino)? {
        Some(open) => open.read(0, &mut sink),
        None => node.tree().readdir(node.ino, 0, &mut sink),
    })?;
    for (name, kind) in names {
        let kind = match kind {
            Some(kind) => kind,
            None => match node.lookup(name.as_bytes()) {
                Ok((_, attr)) => attr.kind,
                Err(_) => continue,
            },
        };
        match make(&path.join(name), kind) {
            Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => {}
            done => done.map_err(errno)?,
        }
    }
    Ok(())
}

fn make(path: &Path, kind: Kind) -> std::io::Result<()> {
    if kind == Kind::Directory {
        return fs::create_dir(path);
    }
    // Other than by opening it, nobody is told that it was opened.
    Ok(mknod(path, SFlag::S_IFREG, Mode::S_IRWXU, 0)?)
}

fn touch(path: &Path, atime: TimeSpec, mtime: TimeSpec) {
    let flags = UtimensatFlags::NoFollowSymlink;
    if let Err(errno) = utimensat(nix::fcntl::AT_FDCWD, path, &atime, &mtime, flags) {
        tracing::debug!("a shadow: {}", errno.desc());
    }
}

/// A shadow that cannot be kept up costs an event, and no call of a program fails for that.
fn ignore(done: std::io::Result<()>) {
    if let Err(error) = done {
        tracing::debug!("a shadow: {error}");
    }
}

/// `inotify_add_watch` of a virtual node. What a bind shows is watched where it is.
pub(crate) fn add(call: &Call<'_>, node: &Arc<Node>, kind: Kind, place: &Place) -> Outcome {
    const ONLY_DIRECTORIES: u64 = 0x0100_0000;
    /// `IN_ACCESS`, `IN_CLOSE_NOWRITE`, `IN_OPEN`
    const READING: u64 = 0x31;
    if call.args[2] & ONLY_DIRECTORIES != 0 && kind != Kind::Directory {
        return Err(Errno::ENOTDIR);
    }
    call.may(place, READ)?;
    let fd = crate::serve::descriptor(call.task, call.int(0)).map_err(|_| Errno::EBADF)?;
    let path = match node.shows().filter(|_| node.mount.of_host) {
        Some(path) => OsStr::from_bytes(crate::mounts::shown(&path)).into(),
        None => {
            // What is no inotify descriptor, and a mask of nothing, are found out before a shadow is made: this says so, or ENOENT.
            let probe =
                [Argument::Value(fd.as_raw_fd() as u64), Argument::Path(c""), Argument::Value(call.args[2])];
            match raw::call(call.number, &mut { probe }) {
                Err(Errno::ENOENT) | Ok(_) => {}
                Err(errno) => return Err(errno),
            }
            if let Some(through) = node.mount.through.as_ref().filter(|_| call.args[2] & READING != 0) {
                // Who reads is not to be overlooked.
                veduta_api::Differences::all(&**through);
            }
            call.view.watches.cast(call.view, node, kind)?
        }
    };
    let path = std::ffi::CString::new(path.into_os_string().as_bytes()).map_err(|_| Errno::EINVAL)?;
    let mut arguments =
        [Argument::Value(fd.as_raw_fd() as u64), Argument::Path(&path), Argument::Value(call.args[2])];
    let of_host = node.mount.of_host;
    let mut add = || raw::call(call.number, &mut arguments);
    Ok(Answer::Value(if of_host { crate::host::as_caller(call, add)? } else { add()? }))
}
