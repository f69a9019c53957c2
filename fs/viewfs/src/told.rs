//! In what a tree differs from the directory of the host below it, told to those who look there by themselves
//! ([`Filesystem::shows`]).
//!
//! Whatever makes a difference is a change in the upper layer, so it is told where that is written: [`Watched`] is the upper layer as all
//! of this crate sees it, and tells of a name before it changes. Three things are visible earlier than a name, or elsewhere, and told where they are done: that a node
//! is about to be copied up (`Tree::copy_up_opened`: with hard links its copy is seen under all of its names), that a name of several was removed
//! (`Tree::forget_name`), and that a directory with parts below moves (`Tree::prepare_directory`; that is too much to be told, so all is).
//!
//! A name stands for all that lies below it. What the host has there may still be reached by symbolic links, or other hard links, so it is told as an
//! object too, and of a directory all that is in it. It is there already when a directory is removed, since each of its names was removed before;
//! what an earlier mount has left in the upper layer is looked through once, at the call.

use std::collections::HashSet;
use std::ffi::{OsStr, OsString};
use std::ops::ControlFlow;
use std::os::fd::BorrowedFd;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Arc, OnceLock, Weak};
use std::time::{Duration, Instant};

use parking_lot::{Mutex, RwLock, RwLockReadGuard};
use veduta_api::{
    Attr, Device, Differences, DirEntry, DirSink, Directory, Entry, Errno, Facts, File, Filesystem, Ino,
    Ioctl, Kind, NewNode, OpenFlags, RenameFlags, Result, SetAttr, StatFs, XattrMode,
};

use crate::layer::{FOREIGN_OPAQUE, Layer, hidden_by, is_whiteout};
use crate::state;
use crate::tree::Tree;

/// How much an upper layer may hold, and how long it may take to look through, before all is said to differ.
const MAX_NODES: usize = 20_000;
const MAX_TIME: Duration = Duration::from_secs(2);

/// Nobody listens; somebody does; they were told that all may differ.
const QUIET: u8 = 0;
const HEARD: u8 = 1;
const ALL: u8 = 2;

/// What was told, and to whom. Also hears what a layer below tells.
#[derive(Default)]
pub(crate) struct Told {
    level: AtomicU8,
    known: Mutex<Known>,
}

#[derive(Default)]
struct Known {
    listeners: Vec<Weak<dyn Differences>>,
    objects: HashSet<(u64, u64)>,
    names: HashSet<OsString>,
}

impl Known {
    /// Whether a path, or one that leads to it, is known.
    fn covers(&self, path: &OsStr) -> bool {
        let bytes = path.as_bytes();
        let ends = bytes.iter().enumerate().filter(|(_, byte)| **byte == b'/').map(|(at, _)| at);
        ends.chain([bytes.len()]).any(|end| self.names.contains(OsStr::from_bytes(&bytes[..end])))
    }

    fn has_listener(&mut self) -> bool {
        self.listeners.retain(|listener| listener.strong_count() > 0);
        !self.listeners.is_empty()
    }
}

impl Told {
    /// Whether there is anything to tell, and somebody to hear it.
    fn is_heard(&self) -> bool {
        self.level.load(Ordering::Acquire) == HEARD
    }

    /// Takes in one more listener, who hears what was told before. Whether what differs has to be found out first.
    fn begin(&self, listener: &Weak<dyn Differences>) -> bool {
        let mut known = self.known.lock();
        let is_first = !known.has_listener();
        if is_first {
            *known = Known::default();
            self.level.store(HEARD, Ordering::Release);
        }
        if let Some(heard) = listener.upgrade() {
            if self.level.load(Ordering::Acquire) == ALL {
                heard.all();
            }
            known.objects.iter().for_each(|(device, ino)| heard.object(*device, *ino));
            known.names.iter().for_each(|path| heard.name(path));
        }
        known.listeners.push(Weak::clone(listener));
        is_first
    }

    /// Lets a listener go.
    fn end(&self, listener: &Weak<dyn Differences>) {
        self.known.lock().listeners.retain(|other| !Weak::ptr_eq(other, listener));
    }

    fn knows_name(&self, path: &OsStr) -> bool {
        self.known.lock().covers(path)
    }

    fn knows_number(&self, ino: u64) -> bool {
        self.known.lock().objects.iter().any(|(_, known)| *known == ino)
    }

    /// Tells all of something, unless there is nobody any more. With what is known locked: who finds something known may rely on it
    /// that everybody has heard it.
    fn tell(&self, known: &mut Known, what: impl Fn(&dyn Differences)) {
        if !known.has_listener() {
            *known = Known::default();
            self.level.store(QUIET, Ordering::Release);
        }
        known.listeners.iter().filter_map(Weak::upgrade).for_each(|listener| what(&*listener));
    }

    /// A node of the host, by its attributes.
    pub(crate) fn node(&self, attr: &Attr) {
        match attr.st_dev {
            Some(Device { major, minor }) => self.object(rustix::fs::makedev(major, minor), attr.st_ino),
            None => self.all(),
        }
    }
}

impl Differences for Told {
    fn object(&self, device: u64, ino: u64) {
        if self.is_heard() {
            let mut known = self.known.lock();
            if !known.objects.contains(&(device, ino)) {
                self.tell(&mut known, |listener| listener.object(device, ino));
                known.objects.insert((device, ino));
            }
        }
    }

    fn name(&self, path: &OsStr) {
        if self.is_heard() {
            let mut known = self.known.lock();
            if !known.covers(path) {
                self.tell(&mut known, |listener| listener.name(path));
                known.names.insert(path.to_owned());
            }
        }
    }

    fn all(&self) {
        if self.is_heard() {
            let mut known = self.known.lock();
            self.tell(&mut known, |listener| listener.all());
            (known.objects, known.names) = (HashSet::new(), HashSet::new());
            let _ = self.level.compare_exchange(HEARD, ALL, Ordering::AcqRel, Ordering::Relaxed);
        }
    }
}

/// The upper layer of a tree that shows a directory of the host. Every change of a name in it is told before it is made.
pub(crate) struct Watched {
    fs: Arc<dyn Filesystem>,
    /// The root of the layer.
    root: Ino,
    tree: OnceLock<Weak<Tree>>,
    pub(crate) told: Arc<Told>,
    /// Held, shared, by every change of a name: there is none under way when somebody begins to listen.
    gate: RwLock<()>,
}

impl Watched {
    pub(crate) fn new(fs: Arc<dyn Filesystem>, root: Ino) -> Self {
        Self { fs, root, tree: OnceLock::new(), told: Arc::default(), gate: RwLock::new(()) }
    }

    /// The tree whose layer it is, once it is made.
    pub(crate) fn belongs_to(&self, tree: &Arc<Tree>) {
        let _ = self.tree.set(Arc::downgrade(tree));
    }

    /// Before a change of a name.
    fn changing(&self, dir: Ino, name: &OsStr) -> RwLockReadGuard<'_, ()> {
        let gate = self.gate.read();
        self.tell_name(dir, name, || false);
        gate
    }

    /// Tells of a name in a directory of the layer, if the tree shows it. `is_merging`: what it gets is a directory to be merged with
    /// one below.
    fn tell_name(&self, dir: Ino, name: &OsStr, is_merging: impl FnOnce() -> bool) {
        if !self.told.is_heard() || dir == self.root && name == state::NAME {
            return;
        }
        let Some(tree) = self.tree.get().and_then(Weak::upgrade) else { return };
        // The work directory, and what is in it, is no directory of the tree.
        let Some((node, path)) = tree.table.lock().path_of((0, dir), dir == self.root) else { return };
        let path = below(&path, name);
        if self.told.knows_name(&path) {
            return;
        }
        let parts = node.parts();
        let found = parts.in_layer(1).map_or(Ok(None), |part| tree.layer(1).peek(part.ino, name));
        match found {
            Ok(None) => {}
            Ok(Some((_, attr))) => {
                self.told.node(&attr);
                if attr.kind == Kind::Directory && is_merging() {
                    return;
                }
            }
            Err(_) => return self.told.all(),
        }
        self.told.name(&path);
    }

    /// Whether what is at a name is a directory that is to be merged with what lies below its new name.
    fn merges(&self, dir: Ino, name: &OsStr) -> bool {
        let Some(tree) = self.tree.get().and_then(Weak::upgrade) else { return false };
        let Ok(entry) = self.fs.lookup(dir, name) else { return false };
        let is_open = entry.attr.kind == Kind::Directory
            && tree.rules.prefix.read(&*self.fs, entry.ino).is_ok_and(|marks| !marks.opaque);
        self.fs.forget(entry.ino, 1);
        is_open
    }

    fn is_shown(&self, dir: Ino) -> bool {
        dir == self.root
            || self.tree.get().and_then(Weak::upgrade).is_some_and(|tree| tree.table.lock().has((0, dir)))
    }
}

impl Filesystem for Watched {
    fn facts(&self) -> Facts {
        self.fs.facts()
    }
    fn lookup(&self, parent: Ino, name: &OsStr) -> Result<Entry> {
        self.fs.lookup(parent, name)
    }
    fn getattr(&self, ino: Ino) -> Result<Attr> {
        self.fs.getattr(ino)
    }
    fn is_made_of(&self, ino: Ino, device: Device, st_ino: u64) -> bool {
        self.fs.is_made_of(ino, device, st_ino)
    }
    fn readdir(&self, dir: Ino, position: u64, sink: &mut DirSink<'_>) -> Result<()> {
        self.fs.readdir(dir, position, sink)
    }
    fn open(&self, ino: Ino, flags: OpenFlags) -> Result<Arc<dyn File>> {
        self.fs.open(ino, flags)
    }
    fn entry(&self, parent: Ino, listed: &DirEntry<'_>) -> Result<Entry> {
        self.fs.entry(parent, listed)
    }
    fn opendir(&self, dir: Ino) -> Result<Option<Arc<dyn Directory>>> {
        self.fs.opendir(dir)
    }
    fn parent(&self, dir: Ino) -> Result<Ino> {
        self.fs.parent(dir)
    }
    fn readlink(&self, ino: Ino) -> Result<OsString> {
        self.fs.readlink(ino)
    }
    fn shows(&self, differences: Weak<dyn Differences>) -> Option<PathBuf> {
        self.fs.shows(differences)
    }
    fn statfs(&self) -> Result<StatFs> {
        self.fs.statfs()
    }
    fn forget(&self, ino: Ino, count: u64) {
        self.fs.forget(ino, count);
    }
    fn sync(&self) -> Result<()> {
        self.fs.sync()
    }
    fn unmount(&self) -> Result<()> {
        self.fs.unmount()
    }
    fn setattr(&self, ino: Ino, changes: &SetAttr) -> Result<Attr> {
        self.fs.setattr(ino, changes)
    }
    fn create(
        &self,
        parent: Ino,
        name: &OsStr,
        new: &NewNode,
        flags: OpenFlags,
    ) -> Result<(Entry, Arc<dyn File>)> {
        let _gate = self.changing(parent, name);
        self.fs.create(parent, name, new, flags)
    }
    fn mknod(&self, parent: Ino, name: &OsStr, new: &NewNode) -> Result<Entry> {
        let _gate = self.changing(parent, name);
        let made = self.fs.mknod(parent, name, new)?;
        // The layer may lie below what is shown, which hides whiteouts.
        if is_whiteout(&made.attr) && self.told.is_heard() {
            self.told.node(&made.attr);
        }
        Ok(made)
    }
    fn mkdir(&self, parent: Ino, name: &OsStr, new: &NewNode) -> Result<Entry> {
        let _gate = self.changing(parent, name);
        self.fs.mkdir(parent, name, new)
    }
    fn symlink(&self, parent: Ino, name: &OsStr, target: &OsStr, new: &NewNode) -> Result<Entry> {
        let _gate = self.changing(parent, name);
        self.fs.symlink(parent, name, target, new)
    }
    fn link(&self, ino: Ino, parent: Ino, name: &OsStr) -> Result<Entry> {
        let _gate = self.changing(parent, name);
        self.fs.link(ino, parent, name)
    }
    fn tmpfile(&self, parent: Ino, new: &NewNode, flags: OpenFlags) -> Result<(Entry, Arc<dyn File>)> {
        self.fs.tmpfile(parent, new, flags)
    }
    fn node_of(&self, file: BorrowedFd<'_>) -> Result<Entry> {
        self.fs.node_of(file)
    }
    fn unlink(&self, parent: Ino, name: &OsStr) -> Result<()> {
        let _gate = self.changing(parent, name);
        self.fs.unlink(parent, name)
    }
    fn rmdir(&self, parent: Ino, name: &OsStr) -> Result<()> {
        let _gate = self.changing(parent, name);
        self.fs.rmdir(parent, name)
    }
    fn rename(
        &self,
        parent: Ino,
        name: &OsStr,
        new_parent: Ino,
        new_name: &OsStr,
        flags: RenameFlags,
    ) -> Result<()> {
        let _gate = self.changing(parent, name);
        if self.told.is_heard() {
            // A copy of a directory comes from the work directory. One that moves within the tree takes nothing below with it.
            self.tell_name(new_parent, new_name, || !self.is_shown(parent) && self.merges(parent, name));
        }
        self.fs.rename(parent, name, new_parent, new_name, flags)
    }
    fn copy_range(&self, from: Ino, offset: u64, to: Ino, to_offset: u64, len: u64) -> Result<u64> {
        self.fs.copy_range(from, offset, to, to_offset, len)
    }
    fn getxattr(&self, ino: Ino, name: &OsStr) -> Result<Vec<u8>> {
        self.fs.getxattr(ino, name)
    }
    fn listxattr(&self, ino: Ino) -> Result<Vec<OsString>> {
        self.fs.listxattr(ino)
    }
    fn setxattr(&self, ino: Ino, name: &OsStr, value: &[u8], mode: XattrMode) -> Result<()> {
        self.fs.setxattr(ino, name, value, mode)
    }
    fn removexattr(&self, ino: Ino, name: &OsStr) -> Result<()> {
        self.fs.removexattr(ino, name)
    }
    fn ioctl(&self, dir: Ino, ioctl: &mut Ioctl<'_>) -> Result<i32> {
        self.fs.ioctl(dir, ioctl)
    }
}

/// A path with one name more.
fn below(path: &OsStr, name: &OsStr) -> OsString {
    let mut path = path.to_owned();
    if !path.is_empty() {
        path.push("/");
    }
    path.push(name);
    path
}

impl Tree {
    /// Tells that a node of the layer below gets something else in its place.
    pub(crate) fn tell_node(&self, attr: &Attr) {
        if let Some(watched) = self.watched.as_ref().filter(|watched| watched.told.is_heard()) {
            watched.told.node(attr);
        }
    }

    /// Tells that too much is going to differ.
    pub(crate) fn tell_all(&self) {
        if let Some(watched) = &self.watched {
            watched.told.all();
        }
    }

    /// See [`Filesystem::shows`].
    pub(crate) fn show(&self, listener: &Weak<dyn Differences>) -> Option<PathBuf> {
        let watched = self.watched.as_ref()?;
        let is_half_committed = self.state.as_ref().is_none_or(|state| state.is_half_committed);
        let has_store = self.node(Ino::ROOT).ok()?.parts().top().store.is_some();
        if is_half_committed || has_store {
            return None;
        }
        let told: Weak<dyn Differences> = Arc::<Told>::downgrade(&watched.told);
        let is_first = {
            let _gate = watched.gate.write();
            watched.told.begin(listener)
        };
        let shown = self.fs(1).shows(told).filter(|path| !self.holds(path));
        if shown.is_none() {
            watched.told.end(listener);
        }
        let path = shown?;
        if is_first {
            self.tell_place(&path);
            if let Err(error) = self.tell_layers(&watched.told) {
                tracing::debug!("too much differs from the layer below: {}", error.desc());
                watched.told.all();
            }
        }
        Some(path)
    }

    /// Where the upper layer is on the host.
    fn upper_path(&self) -> Option<PathBuf> {
        self.fs(0).shows(Weak::<Told>::new())
    }

    /// Whether a directory of the host lies in the upper layer.
    fn holds(&self, path: &Path) -> bool {
        self.upper_path().is_some_and(|upper| path.starts_with(upper))
    }

    /// The upper layer may lie in the directory that is shown, where its whiteouts are hidden.
    fn tell_place(&self, shown: &Path) {
        let upper = self.upper_path();
        let inside = upper.as_ref().and_then(|upper| upper.strip_prefix(shown).ok());
        if let (Some(inside), Some(watched)) = (inside, &self.watched) {
            watched.told.name(inside.as_os_str());
        }
    }

    /// Tells in what the two layers differ. An error if that cannot be found out, or is too much.
    fn tell_layers(&self, told: &Told) -> Result<()> {
        let mut walk =
            Walk { tree: self, told, left: MAX_NODES, deadline: Instant::now() + MAX_TIME, held: Vec::new() };
        walk.merge()
    }
}

/// A look at what an earlier mount has left.
struct Walk<'a> {
    tree: &'a Tree,
    told: &'a Told,
    /// How many nodes may still be looked at.
    left: usize,
    deadline: Instant,
    /// References to give back: directories of both layers.
    held: Vec<(u16, Ino)>,
}

impl Drop for Walk<'_> {
    fn drop(&mut self) {
        for (layer, ino) in &self.held {
            self.tree.fs(*layer).forget(*ino, 1);
        }
    }
}

impl Walk<'_> {
    fn step(&mut self) -> Result<()> {
        self.left = self.left.checked_sub(1).ok_or(Errno::E2BIG)?;
        if Instant::now() > self.deadline { Err(Errno::ETIMEDOUT) } else { Ok(()) }
    }

    fn names(&self, layer: &Layer, dir: Ino) -> Result<Vec<OsString>> {
        let mut names = Vec::new();
        let mut take = |entry: DirEntry<'_>| {
            names.push(entry.name.to_owned());
            if names.len() > self.left { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
        };
        match layer.fs.opendir(dir)? {
            Some(opened) => opened.read(0, &mut take)?,
            None => layer.fs.readdir(dir, 0, &mut take)?,
        }
        Ok(names)
    }

    /// What a name leads to; a directory is held until the end.
    fn find(&mut self, number: u16, dir: Ino, name: &OsStr) -> Result<Option<(Ino, Attr)>> {
        self.step()?;
        let layer = self.tree.layer(number);
        let found = layer.find(dir, name)?;
        if let Some((ino, attr)) = &found {
            if attr.kind == Kind::Directory {
                self.held.push((number, *ino));
            } else {
                layer.fs.forget(*ino, 1);
            }
        }
        Ok(found)
    }

    /// Goes through the directories of the upper layer that are merged.
    fn merge(&mut self) -> Result<()> {
        let tree = self.tree;
        let (upper, lower) = (tree.layer(0), tree.layer(1));
        self.told.node(&lower.fs.getattr(lower.root)?);
        let own = OsStr::new(state::NAME);
        if self.find(1, lower.root, own)?.is_some() {
            self.tell(own, lower.root, own)?;
        }
        let mut merged = vec![(upper.root, lower.root, OsString::new())];
        while let Some((here, there, path)) = merged.pop() {
            for name in self.names(upper, here)? {
                if here == upper.root && name == state::NAME {
                    continue;
                }
                if name == FOREIGN_OPAQUE {
                    return Err(Errno::EOPNOTSUPP);
                }
                let Some((ino, attr)) = self.find(0, here, &name)? else { continue };
                if hidden_by(&name).is_some() && attr.kind == Kind::File {
                    // A whiteout by name, perhaps.
                    return Err(Errno::EOPNOTSUPP);
                }
                if is_whiteout(&attr) {
                    self.told.node(&attr);
                }
                let path = below(&path, &name);
                if attr.kind == Kind::Directory {
                    let marks = tree.rules.prefix.read_own(&*upper.fs, ino)?;
                    if marks.redirect.is_some() {
                        return Err(Errno::EOPNOTSUPP);
                    }
                    let found = if marks.opaque { None } else { self.find(1, there, &name)? };
                    if let Some((below, attr)) = found.filter(|(_, attr)| attr.kind == Kind::Directory) {
                        if self.names(upper, ino)?.iter().any(|name| name == FOREIGN_OPAQUE) {
                            return Err(Errno::EOPNOTSUPP);
                        }
                        self.told.node(&attr);
                        merged.push((ino, below, path));
                        continue;
                    }
                }
                self.tell(&path, there, &name)?;
            }
        }
        self.links()
    }

    /// Tells of a path, and of what the layer below has there and below it.
    fn tell(&mut self, path: &OsStr, dir: Ino, name: &OsStr) -> Result<()> {
        let mut hidden = Vec::new();
        if let Some((ino, attr)) = self.find(1, dir, name)? {
            self.told.node(&attr);
            hidden.extend((attr.kind == Kind::Directory).then_some(ino));
        }
        while let Some(dir) = hidden.pop() {
            for name in self.names(self.tree.layer(1), dir)? {
                if let Some((ino, attr)) = self.find(1, dir, &name)? {
                    self.told.node(&attr);
                    hidden.extend((attr.kind == Kind::Directory).then_some(ino));
                }
            }
        }
        self.told.name(path);
        Ok(())
    }

    /// Copies that are seen under all names of a file below. Where such a name was changed the file was told; a copy of which no name is left is rare.
    fn links(&mut self) -> Result<()> {
        let Some(links) = self.tree.state.as_ref().and_then(state::State::links) else { return Ok(()) };
        for name in self.names(self.tree.layer(0), links)? {
            let number = name.to_str().and_then(|name| name.split('-').nth(1));
            let number = number.and_then(|hex| u64::from_str_radix(hex, 16).ok()).ok_or(Errno::EINVAL)?;
            if !self.told.knows_number(number) {
                return Err(Errno::EOPNOTSUPP);
            }
        }
        Ok(())
    }
}
