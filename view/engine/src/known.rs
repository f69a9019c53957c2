//! What processes may be told of a virtual tree without asking the engine: what was found in it, for as long as it is so.
//!
//! A tree that only we change is wrapped ([`Noted`]). Whatever passes through on its way to somebody is told to the [shim](veduta_trace::known)
//! too: that a name leads to a node, or to nothing, and the attributes of nodes. Whatever is about to be changed is taken back
//! first, and nothing is told of the tree until the change is done: what was found before or meanwhile might be old. So at every moment what
//! is told is what the tree would answer. The attributes of a file that somebody may write to are not told.
//!
//! It makes no difference who changes the tree: calls of the view, the kernel-FUSE plane, or a mount that stands on it. All of them have
//! the wrapped tree.
//!
//! Permissions are not known to the shim. So it is told only of directories in which everybody may look for names.
//!
//! Who goes through a directory is shown more of it at once: [`Noted::look_ahead`].
//!
//! # Locks
//!
//! A tree's `state`, then the page, then the writer. The driver is called under none of them.

use std::collections::HashMap;
use std::ffi::{OsStr, OsString};
use std::ops::ControlFlow;
use std::os::fd::BorrowedFd;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Weak};
use std::task::Waker;

use nix::errno::Errno;
use parking_lot::{Mutex, RwLock};
use veduta_api::{
    Allocate, Attr, Caching, Device, DirEntry, DirSink, Directory, Entry, Facts, File, FileLock, Filesystem,
    Ino, Ioctl, Kind, NewNode, OpenFlags, Ready, RenameFlags, Result, Seek, SetAttr, StatFs, XattrMode,
};
use veduta_trace::known::{self, Attributes, Writer};
use veduta_trace::shim::Page;

use crate::standin::Key;

/// Names of a directory that are looked at with one that was asked for.
const AHEAD: usize = 64;

/// What is told of all trees of a view.
pub(crate) struct Known {
    page: Arc<RwLock<Page>>,
    writer: Mutex<Writer>,
    /// For each tree, by its number less one: the mount, and where its root is.
    trees: Mutex<Vec<(u32, Ino)>>,
}

/// Facts about a mount of a tree that is to be wrapped.
pub(crate) struct Shown {
    /// Its number.
    pub mount: u32,
    /// The device number that its nodes are shown on.
    pub device: u64,
    /// The node that is seen at the mount point.
    pub root: Ino,
    /// Whether permission bits are obeyed.
    pub checks: bool,
}

impl Known {
    pub(crate) fn new(page: &Arc<RwLock<Page>>) -> Self {
        Self { page: Arc::clone(page), writer: Mutex::default(), trees: Mutex::default() }
    }

    /// The tree, wrapped if it is one of which something may be told.
    pub(crate) fn wrap(self: &Arc<Self>, tree: Arc<dyn Filesystem>, shown: Shown) -> Arc<dyn Filesystem> {
        let facts = tree.facts();
        let is_ours = !matches!(facts.caching, Caching::Shared(_)) && facts.absent_time.is_none();
        if !is_ours || facts.case_insensitive || facts.own_permissions || facts.backing {
            return tree;
        }
        let mut trees = self.trees.lock();
        let Ok(number) = u8::try_from(trees.len() + 1) else { return tree };
        trees.push((shown.mount, shown.root));
        Arc::new_cyclic(|me| Noted {
            tree,
            known: Arc::clone(self),
            me: Weak::clone(me),
            number,
            acl: facts.acl,
            shown,
            state: Mutex::default(),
        })
    }

    /// The number of a mount's tree, and its root, as the shim knows them; `None` if it knows nothing of it.
    pub(crate) fn tree_of(&self, mount: u32) -> Option<(u8, u64)> {
        let trees = self.trees.lock();
        let index = trees.iter().position(|(id, _)| *id == mount)?;
        let number = u8::try_from(index + 1).ok()?;
        Some((number, known::node(number, trees[index].1.0)?))
    }

    /// A descriptor with this key stands for a node of a mount, as long as what is returned is kept.
    pub(crate) fn start(self: &Arc<Self>, key: Key, mount: u32, ino: Ino) -> Option<Start> {
        let node = known::node(self.tree_of(mount)?.0, ino.0)?;
        self.write(|writer, page| writer.start(page, key, node));
        Some(Start { known: Arc::clone(self), key })
    }

    fn write<T>(&self, work: impl FnOnce(&mut Writer, &Page) -> T) -> T {
        let page = self.page.read();
        work(&mut self.writer.lock(), &page)
    }
}

/// The shim knows what a descriptor stands for.
pub(crate) struct Start {
    known: Arc<Known>,
    key: Key,
}

impl Drop for Start {
    fn drop(&mut self) {
        self.known.write(|writer, page| writer.no_start(page, self.key));
    }
}

#[derive(Default)]
struct State {
    /// Beginnings and ends of changes so far.
    changes: u64,
    /// Changes that are being made.
    active: u32,
    /// How often files are open for writing.
    writers: HashMap<Ino, u32>,
    /// The directory that somebody goes through, and how far it was looked at; `None`: he has just begun.
    ahead: Option<(Ino, Option<u64>)>,
}

/// A tree whose answers are told.
pub(crate) struct Noted {
    tree: Arc<dyn Filesystem>,
    known: Arc<Known>,
    me: Weak<Noted>,
    number: u8,
    acl: bool,
    shown: Shown,
    state: Mutex<State>,
}

/// A change, until it is done.
struct Change<'a> {
    noted: &'a Noted,
    began: u64,
}

impl Drop for Change<'_> {
    fn drop(&mut self) {
        let mut state = self.noted.state.lock();
        state.changes += 1;
        state.active -= 1;
    }
}

impl Change<'_> {
    /// It is done. If there was no other at the same time, what it returned can be told until the next: as [`Noted::look`].
    fn end(self) -> Option<u64> {
        let state = self.noted.state.lock();
        let is_alone = state.active == 1 && state.changes == self.began;
        drop(state);
        let ended = self.began + 1;
        drop(self);
        is_alone.then_some(ended)
    }
}

impl Noted {
    fn node(&self, ino: Ino) -> Option<u64> {
        known::node(self.number, ino.0)
    }

    /// Before something is asked that is to be told: until when it will be true. `None`: it is being changed.
    fn look(&self) -> Option<u64> {
        let state = self.state.lock();
        (state.active == 0).then_some(state.changes)
    }

    /// Tells something, if nothing has changed.
    fn tell(&self, since: Option<u64>, work: impl FnOnce(&State, &mut Writer, &Page)) {
        let state = self.state.lock();
        if since == Some(state.changes) && state.active == 0 {
            self.known.write(|writer, page| work(&state, writer, page));
        }
    }

    /// Whether everybody may look for names in a directory.
    fn is_open(&self, ino: Ino, attr: &Attr) -> bool {
        let has_list = || self.acl && self.tree.getxattr(ino, OsStr::new("system.posix_acl_access")).is_ok();
        attr.kind == Kind::Directory
            && (!self.shown.checks || (attr.perm.bits() & 0o111 == 0o111 && !has_list()))
    }

    /// Whether that was news.
    fn tell_entry(&self, since: Option<u64>, parent: Ino, name: &OsStr, entry: &Entry) -> bool {
        if since.is_none() {
            return false;
        }
        let mut is_new = false;
        let is_open = self.is_open(entry.ino, &entry.attr);
        self.tell(since, |state, writer, page| {
            let (Some(directory), Some(node)) = (self.node(parent), self.node(entry.ino)) else { return };
            is_new = writer.name(page, directory, name.as_bytes(), node);
            self.write_attr(state, writer, page, entry.ino, &entry.attr, is_open, Some(directory));
        });
        is_new
    }

    fn tell_attr(&self, since: Option<u64>, ino: Ino, attr: &Attr) {
        let Some(node) = self.node(ino).filter(|_| since.is_some()) else { return };
        let is_dir = attr.kind == Kind::Directory;
        let wants_parent = is_dir && ino != self.shown.root;
        let (is_known, has_parent) = self
            .known
            .write(|writer, page| (writer.has_attributes(page, node), writer.has_parent(page, node)));
        if is_known && (has_parent || !wants_parent) {
            return;
        }
        let parent = if wants_parent && !has_parent { self.tree.parent(ino).ok() } else { None };
        let is_open = self.is_open(ino, attr);
        self.tell(since, |state, writer, page| {
            self.write_attr(
                state,
                writer,
                page,
                ino,
                attr,
                is_open,
                parent.and_then(|parent| self.node(parent)),
            );
        });
    }

    #[allow(clippy::too_many_arguments)]
    fn write_attr(
        &self,
        state: &State,
        writer: &mut Writer,
        page: &Page,
        ino: Ino,
        attr: &Attr,
        is_open: bool,
        parent: Option<u64>,
    ) {
        let Some(node) = self.node(ino) else { return };
        let is_dir = attr.kind == Kind::Directory;
        let parent = parent.filter(|_| is_dir && ino != self.shown.root);
        if state.writers.contains_key(&ino)
            || (writer.has_attributes(page, node) && (parent.is_none() || writer.has_parent(page, node)))
        {
            return;
        }
        let bit = |is, bit| if is { bit } else { 0 };
        let readable = !self.shown.checks || (!self.acl && attr.perm.bits() & 0o444 == 0o444);
        let flags = bit(is_dir, known::DIRECTORY)
            | bit(is_open, known::SEARCHABLE)
            | bit(attr.kind == Kind::Symlink, known::LINK)
            | bit(ino == self.shown.root, known::ROOT)
            | bit(readable, known::READABLE);
        if let Ok(stat) = crate::stat::stat_on(self.shown.device, attr).as_slice().try_into() {
            writer.attributes(page, node, &Attributes { flags, stat, parent });
        }
    }

    /// A change begins: nothing more is told of the tree until it is done.
    fn begin(&self) -> Change<'_> {
        let mut state = self.state.lock();
        state.changes += 1;
        state.active += 1;
        Change { noted: self, began: state.changes }
    }

    /// Takes back what was told of nodes; with `moved`, they may get other parents.
    fn take_back(&self, nodes: &[Ino], moved: bool) {
        self.known.write(|writer, page| {
            for node in nodes.iter().filter_map(|ino| self.node(*ino)) {
                writer.no_attributes(page, node, moved);
            }
        });
    }

    /// Takes back what was told of a name that is made.
    fn take_back_name(&self, parent: Ino, name: &OsStr) -> Option<u64> {
        let directory = self.node(parent)?;
        self.known.write(|writer, page| writer.no_name(page, directory, name.as_bytes()))
    }

    /// Takes back what was told of a name that loses its node, and of the node.
    fn take_back_both(&self, parent: Ino, name: &OsStr) {
        const NUMBER: u64 = (1 << 56) - 1;
        let child = match self.take_back_name(parent, name) {
            Some(0) | None => match self.tree.lookup(parent, name) {
                Ok(entry) => {
                    self.tree.forget(entry.ino, 1);
                    entry.ino
                }
                Err(_) => return,
            },
            Some(node) => Ino(node & NUMBER),
        };
        self.take_back(&[child], true);
    }

    /// A node is made under a name.
    fn made<T>(
        &self,
        parent: Ino,
        name: &OsStr,
        work: impl FnOnce() -> Result<T>,
        entry: impl Fn(&T) -> &Entry,
    ) -> Result<T> {
        let change = self.begin();
        self.take_back_name(parent, name);
        self.take_back(&[parent], false);
        let done = work();
        if let Ok(made) = &done {
            // The number may have been another node's.
            self.take_back(&[entry(made).ino], true);
        }
        let since = change.end();
        if let Ok(made) = &done {
            self.tell_entry(since, parent, name, entry(made));
        }
        self.refresh(since, parent);
        done
    }

    /// The attributes of a directory were changed with its names, and are likely to be wanted.
    fn refresh(&self, since: Option<u64>, directory: Ino) {
        if since.is_some() {
            if let Ok(attr) = self.tree.getattr(directory) {
                self.tell_attr(since, directory, &attr);
            }
        }
    }

    /// Changes something of a node.
    fn changed<T>(&self, ino: Ino, work: impl FnOnce() -> Result<T>) -> (Result<T>, Option<u64>) {
        let change = self.begin();
        self.take_back(&[ino], false);
        let done = work();
        (done, change.end())
    }

    /// A file was opened.
    fn opened(&self, ino: Ino, file: Arc<dyn File>, writes: bool) -> Arc<dyn File> {
        let Some(noted) = self.me.upgrade() else { return file };
        Arc::new(NotedFile { file: Some(file), noted, ino, writes })
    }

    /// A file will be open for writing, unless opening it fails ([`no_writer`](Self::no_writer)).
    fn writer(&self, ino: Ino) {
        *self.state.lock().writers.entry(ino).or_default() += 1;
        self.take_back(&[ino], false);
    }

    fn no_writer(&self, ino: Ino) {
        let mut state = self.state.lock();
        // What was asked before is not told any more.
        state.changes += 1;
        let left = state.writers.get_mut(&ino).map_or(0, |count| {
            *count -= 1;
            *count
        });
        if left == 0 {
            state.writers.remove(&ino);
            drop(state);
            let _ = self.getattr(ino);
        }
    }

    /// A file was read, which may have changed when that was last.
    fn was_read(&self, ino: Ino) {
        self.state.lock().changes += 1;
        self.take_back(&[ino], false);
    }

    /// Somebody goes through a directory name by name: the next ones are told before he asks.
    fn look_ahead(&self, directory: Ino) {
        let from = {
            let mut state = self.state.lock();
            match state.ahead {
                Some((of, Some(from))) if of == directory => from,
                Some((of, None)) if of == directory => 0,
                _ => {
                    state.ahead = Some((directory, None));
                    return;
                }
            }
        };
        let mut names: Vec<OsString> = Vec::new();
        let mut next = from;
        let listed = self.tree.readdir(directory, from, &mut |entry: DirEntry<'_>| {
            if names.len() == AHEAD {
                return ControlFlow::Break(());
            }
            names.push(entry.name.to_owned());
            next = entry.next;
            ControlFlow::Continue(())
        });
        if listed.is_err() {
            return;
        }
        let is_over = names.len() < AHEAD;
        self.state.lock().ahead = if is_over { None } else { Some((directory, Some(next))) };
        for name in names {
            let since = self.look();
            if let Ok(entry) = self.tree.lookup(directory, &name) {
                self.tell_entry(since, directory, &name, &entry);
                self.tree.forget(entry.ino, 1);
            }
        }
    }
}

impl Filesystem for Noted {
    fn facts(&self) -> Facts {
        self.tree.facts()
    }

    fn lookup(&self, parent: Ino, name: &OsStr) -> Result<Entry> {
        let since = self.look();
        let found = self.tree.lookup(parent, name);
        match &found {
            Ok(entry) => {
                if self.tell_entry(since, parent, name, entry) {
                    self.look_ahead(parent);
                }
            }
            Err(Errno::ENOENT) => self.tell(since, |_, writer, page| {
                if let Some(directory) = self.node(parent) {
                    let _ = writer.name(page, directory, name.as_bytes(), 0);
                }
            }),
            Err(_) => {}
        }
        found
    }

    fn is_made_of(&self, ino: Ino, device: Device, st_ino: u64) -> bool {
        self.tree.is_made_of(ino, device, st_ino)
    }

    fn getattr(&self, ino: Ino) -> Result<Attr> {
        let since = self.look();
        let attr = self.tree.getattr(ino)?;
        self.tell_attr(since, ino, &attr);
        Ok(attr)
    }

    fn readdir(&self, dir: Ino, position: u64, sink: &mut DirSink<'_>) -> Result<()> {
        if position == 0 {
            self.state.lock().ahead = Some((dir, None));
        }
        self.tree.readdir(dir, position, sink)
    }

    fn open(&self, ino: Ino, flags: OpenFlags) -> Result<Arc<dyn File>> {
        if flags.write {
            self.writer(ino);
        }
        match self.tree.open(ino, flags) {
            Ok(file) => Ok(self.opened(ino, file, flags.write)),
            Err(errno) => {
                if flags.write {
                    self.no_writer(ino);
                }
                Err(errno)
            }
        }
    }

    fn entry(&self, parent: Ino, listed: &DirEntry<'_>) -> Result<Entry> {
        let since = self.look();
        let found = self.tree.entry(parent, listed)?;
        self.tell_entry(since, parent, listed.name, &found);
        Ok(found)
    }

    fn opendir(&self, dir: Ino) -> Result<Option<Arc<dyn Directory>>> {
        self.state.lock().ahead = Some((dir, None));
        self.tree.opendir(dir)
    }

    fn parent(&self, dir: Ino) -> Result<Ino> {
        self.tree.parent(dir)
    }

    fn readlink(&self, ino: Ino) -> Result<OsString> {
        self.tree.readlink(ino)
    }

    fn statfs(&self) -> Result<StatFs> {
        self.tree.statfs()
    }

    fn forget(&self, ino: Ino, count: u64) {
        self.tree.forget(ino, count);
    }

    fn sync(&self) -> Result<()> {
        self.tree.sync()
    }

    fn unmount(&self) -> Result<()> {
        self.tree.unmount()
    }

    fn setattr(&self, ino: Ino, changes: &SetAttr) -> Result<Attr> {
        let (done, since) = self.changed(ino, || self.tree.setattr(ino, changes));
        if let Ok(attr) = &done {
            self.tell_attr(since, ino, attr);
        }
        done
    }

    fn create(
        &self,
        parent: Ino,
        name: &OsStr,
        new: &NewNode,
        flags: OpenFlags,
    ) -> Result<(Entry, Arc<dyn File>)> {
        // It is open for writing, whatever was asked for, before anything is told of it.
        let work = || {
            let (entry, file) = self.tree.create(parent, name, new, flags)?;
            self.writer(entry.ino);
            Ok((entry, file))
        };
        let (entry, file) = self.made(parent, name, work, |(entry, _)| entry)?;
        Ok((entry, self.opened(entry.ino, file, true)))
    }

    fn place_of(&self, real: &Path) -> Option<PathBuf> {
        self.tree.place_of(real)
    }

    fn node_of(&self, file: BorrowedFd<'_>) -> Result<Entry> {
        self.tree.node_of(file)
    }

    fn mknod(&self, parent: Ino, name: &OsStr, new: &NewNode) -> Result<Entry> {
        self.made(parent, name, || self.tree.mknod(parent, name, new), |entry| entry)
    }

    fn mkdir(&self, parent: Ino, name: &OsStr, new: &NewNode) -> Result<Entry> {
        self.made(parent, name, || self.tree.mkdir(parent, name, new), |entry| entry)
    }

    fn symlink(&self, parent: Ino, name: &OsStr, target: &OsStr, new: &NewNode) -> Result<Entry> {
        self.made(parent, name, || self.tree.symlink(parent, name, target, new), |entry| entry)
    }

    fn link(&self, ino: Ino, parent: Ino, name: &OsStr) -> Result<Entry> {
        let work = || {
            self.take_back(&[ino], false);
            self.tree.link(ino, parent, name)
        };
        self.made(parent, name, work, |entry| entry)
    }

    fn tmpfile(&self, parent: Ino, new: &NewNode, flags: OpenFlags) -> Result<(Entry, Arc<dyn File>)> {
        let change = self.begin();
        self.take_back(&[parent], false);
        let (entry, file) = self.tree.tmpfile(parent, new, flags)?;
        self.writer(entry.ino);
        drop(change);
        Ok((entry, self.opened(entry.ino, file, true)))
    }

    fn unlink(&self, parent: Ino, name: &OsStr) -> Result<()> {
        let change = self.begin();
        self.take_back_both(parent, name);
        self.take_back(&[parent], false);
        let done = self.tree.unlink(parent, name);
        let since = change.end();
        self.refresh(since, parent);
        done
    }

    fn rmdir(&self, parent: Ino, name: &OsStr) -> Result<()> {
        let change = self.begin();
        self.take_back_both(parent, name);
        self.take_back(&[parent], false);
        let done = self.tree.rmdir(parent, name);
        let since = change.end();
        self.refresh(since, parent);
        done
    }

    fn rename(
        &self,
        parent: Ino,
        name: &OsStr,
        new_parent: Ino,
        new_name: &OsStr,
        flags: RenameFlags,
    ) -> Result<()> {
        let change = self.begin();
        self.take_back_both(parent, name);
        self.take_back_both(new_parent, new_name);
        self.take_back(&[parent, new_parent], false);
        let done = self.tree.rename(parent, name, new_parent, new_name, flags);
        let since = change.end();
        self.refresh(since, parent);
        if parent != new_parent {
            self.refresh(since, new_parent);
        }
        done
    }

    fn copy_range(&self, from: Ino, offset: u64, to: Ino, to_offset: u64, len: u64) -> Result<u64> {
        self.changed(to, || self.tree.copy_range(from, offset, to, to_offset, len)).0
    }

    fn getxattr(&self, ino: Ino, name: &OsStr) -> Result<Vec<u8>> {
        self.tree.getxattr(ino, name)
    }

    fn listxattr(&self, ino: Ino) -> Result<Vec<OsString>> {
        self.tree.listxattr(ino)
    }

    fn setxattr(&self, ino: Ino, name: &OsStr, value: &[u8], mode: XattrMode) -> Result<()> {
        self.changed(ino, || self.tree.setxattr(ino, name, value, mode)).0
    }

    fn removexattr(&self, ino: Ino, name: &OsStr) -> Result<()> {
        self.changed(ino, || self.tree.removexattr(ino, name)).0
    }

    fn ioctl(&self, dir: Ino, ioctl: &mut Ioctl<'_>) -> Result<i32> {
        self.changed(dir, || self.tree.ioctl(dir, ioctl)).0
    }
}

/// An open file of such a tree.
struct NotedFile {
    /// Until it is dropped.
    file: Option<Arc<dyn File>>,
    noted: Arc<Noted>,
    ino: Ino,
    writes: bool,
}

impl NotedFile {
    fn file(&self) -> Result<&dyn File> {
        self.file.as_deref().ok_or(Errno::EBADF)
    }
}

impl Drop for NotedFile {
    fn drop(&mut self) {
        // What was held back is done now.
        drop(self.file.take());
        if self.writes {
            self.noted.no_writer(self.ino);
        }
    }
}

impl File for NotedFile {
    fn read_at(&self, buf: &mut [u8], offset: u64) -> Result<usize> {
        let count = self.file()?.read_at(buf, offset)?;
        self.noted.was_read(self.ino);
        Ok(count)
    }

    fn write_at(&self, buf: &[u8], offset: u64) -> Result<usize> {
        self.file()?.write_at(buf, offset)
    }

    fn flush(&self) -> Result<()> {
        self.file()?.flush()
    }

    fn sync(&self, data_only: bool) -> Result<()> {
        self.file()?.sync(data_only)
    }

    fn allocate(&self, how: Allocate, offset: u64, len: u64) -> Result<()> {
        self.file()?.allocate(how, offset, len)
    }

    fn seek(&self, what: Seek, offset: u64) -> Result<u64> {
        self.file()?.seek(what, offset)
    }

    fn ioctl(&self, ioctl: &mut Ioctl<'_>) -> Result<i32> {
        let file = self.file()?;
        self.noted.changed(self.ino, || file.ioctl(ioctl)).0
    }

    fn ready(&self, interest: Ready, waker: Option<&Waker>) -> Result<Ready> {
        self.file()?.ready(interest, waker)
    }

    fn lock(&self, owner: u64, lock: &mut FileLock, test: bool, wait: bool) -> Result<()> {
        self.file()?.lock(owner, lock, test, wait)
    }

    fn backing(&self) -> Option<BorrowedFd<'_>> {
        self.file.as_deref().and_then(File::backing)
    }

    fn backing_may_change(&self) -> bool {
        self.file.as_deref().is_some_and(File::backing_may_change)
    }

    fn backing_is_foreign(&self) -> bool {
        self.file.as_deref().is_some_and(File::backing_is_foreign)
    }

    fn is_direct(&self) -> bool {
        self.file.as_deref().is_some_and(File::is_direct)
    }
}
