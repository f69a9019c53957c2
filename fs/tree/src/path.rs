//! The path adapter: a tree made from a driver that thinks in paths.
//!
//! A [`PathFilesystem`] names everything by a path from the root: empty for the root itself, `a/b`, never with a leading slash.
//! [`PathAdapter`] gives each path that a host has been told of a number, which stays with the node when it or a directory
//! above it is renamed. A node whose name was removed is still usable through the files that are open on it, if the driver
//! can ask those ([`PathFilesystem::handle_attr`]); otherwise it gives `ESTALE`.
//!
//! Locks, in the order in which they are taken: `names` (shared by each call that uses a path, for as long as it lasts; exclusive for
//! `rename`, `unlink` and `rmdir`, so that no path changes its meaning meanwhile), then the `table` (held for no call). Open
//! files take neither.
//!
//! # Limits
//!
//! Each path is a node of its own: hard links are two nodes with one `st_ino`. Files without a name (`O_TMPFILE`) are not made.

use std::collections::HashMap;
use std::ffi::{OsStr, OsString};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Weak};

use parking_lot::{Mutex, RwLock};
use veduta_api::{
    Attr, DirSink, Directory, Entry, Errno, Facts, File, Filesystem, Ino, NewNode, OpenFlags, RenameFlags,
    Result, SetAttr, StatFs, XattrMode,
};

pub use crate::listing::Listed;
use crate::listing::Listing;

/// A driver that thinks in paths. Four methods are needed; the rest answer as those of [`Filesystem`] do.
///
/// Calls come from any thread at the same time, but none while a `rename`, `unlink` or `rmdir` runs.
pub trait PathFilesystem: Send + Sync + 'static {
    /// An open file.
    type Handle: File + 'static;

    /// The attributes of a node; those of a symbolic link itself. `ENOENT` if there is none.
    fn getattr(&self, path: &Path) -> Result<Attr>;

    /// All entries of a directory.
    fn list(&self, dir: &Path) -> Result<Vec<Listed>>;

    /// Opens a regular file.
    fn open(&self, path: &Path, flags: OpenFlags) -> Result<Self::Handle>;

    /// The target of a symbolic link.
    fn readlink(&self, path: &Path) -> Result<OsString> {
        let _ = path;
        Err(Errno::EINVAL)
    }

    /// The attributes of an open file, whose name may be gone.
    fn handle_attr(&self, handle: &Self::Handle) -> Result<Attr> {
        let _ = handle;
        Err(Errno::ESTALE)
    }

    /// Changes the attributes of an open file, whose name may be gone.
    fn handle_setattr(&self, handle: &Self::Handle, changes: &SetAttr) -> Result<()> {
        let _ = (handle, changes);
        Err(Errno::ESTALE)
    }

    /// See [`Filesystem::facts`].
    fn facts(&self) -> Facts {
        Facts::default()
    }

    /// See [`Filesystem::statfs`].
    fn statfs(&self) -> Result<StatFs> {
        Ok(StatFs { block_size: 4096, ..StatFs::default() })
    }

    /// See [`Filesystem::sync`].
    fn sync(&self) -> Result<()> {
        Ok(())
    }

    /// See [`Filesystem::unmount`].
    fn unmount(&self) -> Result<()> {
        self.sync()
    }

    /// See [`Filesystem::setattr`].
    fn setattr(&self, path: &Path, changes: &SetAttr) -> Result<()> {
        let _ = (path, changes);
        Err(Errno::EROFS)
    }

    /// See [`Filesystem::create`].
    fn create(&self, path: &Path, new: &NewNode, flags: OpenFlags) -> Result<Self::Handle> {
        let _ = (path, new, flags);
        Err(Errno::EROFS)
    }

    /// See [`Filesystem::mknod`].
    fn mknod(&self, path: &Path, new: &NewNode) -> Result<()> {
        let _ = (path, new);
        Err(Errno::EROFS)
    }

    /// See [`Filesystem::mkdir`].
    fn mkdir(&self, path: &Path, new: &NewNode) -> Result<()> {
        let _ = (path, new);
        Err(Errno::EROFS)
    }

    /// See [`Filesystem::symlink`].
    fn symlink(&self, path: &Path, target: &OsStr, new: &NewNode) -> Result<()> {
        let _ = (path, target, new);
        Err(Errno::EROFS)
    }

    /// See [`Filesystem::link`].
    fn link(&self, path: &Path, new_path: &Path) -> Result<()> {
        let _ = (path, new_path);
        Err(Errno::EROFS)
    }

    /// See [`Filesystem::unlink`].
    fn unlink(&self, path: &Path) -> Result<()> {
        let _ = path;
        Err(Errno::EROFS)
    }

    /// See [`Filesystem::rmdir`].
    fn rmdir(&self, path: &Path) -> Result<()> {
        let _ = path;
        Err(Errno::EROFS)
    }

    /// See [`Filesystem::rename`].
    fn rename(&self, path: &Path, new_path: &Path, flags: RenameFlags) -> Result<()> {
        let _ = (path, new_path, flags);
        Err(Errno::EROFS)
    }

    /// See [`Filesystem::getxattr`].
    fn getxattr(&self, path: &Path, name: &OsStr) -> Result<Vec<u8>> {
        let _ = (path, name);
        Err(Errno::EOPNOTSUPP)
    }

    /// See [`Filesystem::listxattr`].
    fn listxattr(&self, path: &Path) -> Result<Vec<OsString>> {
        let _ = path;
        Ok(Vec::new())
    }

    /// See [`Filesystem::setxattr`].
    fn setxattr(&self, path: &Path, name: &OsStr, value: &[u8], mode: XattrMode) -> Result<()> {
        let _ = (path, name, value, mode);
        Err(Errno::EOPNOTSUPP)
    }

    /// See [`Filesystem::removexattr`].
    fn removexattr(&self, path: &Path, name: &OsStr) -> Result<()> {
        let _ = (path, name);
        Err(Errno::EOPNOTSUPP)
    }
}

/// See the head of this file.
pub struct PathAdapter<T: PathFilesystem> {
    inner: Arc<T>,
    names: Arc<RwLock<()>>,
    table: Arc<Mutex<Table<T::Handle>>>,
}

impl<T: PathFilesystem> PathAdapter<T> {
    /// The tree of a driver.
    pub fn new(inner: T) -> Self {
        Self { inner: Arc::new(inner), names: Arc::default(), table: Arc::new(Mutex::new(Table::new())) }
    }

    /// The driver.
    pub fn inner(&self) -> &T {
        &self.inner
    }

    fn path(&self, ino: Ino) -> Result<PathBuf> {
        self.table.lock().path(ino)
    }

    fn path_below(&self, parent: Ino, name: &OsStr) -> Result<PathBuf> {
        Ok(self.path(parent)?.join(name))
    }

    /// Enters what is at a path, with a reference.
    fn enter(&self, parent: Ino, name: &OsStr, path: &Path) -> Result<Entry> {
        let attr = self.inner.getattr(path)?;
        let ino = self.table.lock().enter(parent, name)?;
        Ok(Entry { ino, generation: 0, attr })
    }

    /// Asks by path, or through an open file if the name is gone.
    fn ask<R>(
        &self,
        ino: Ino,
        by_path: impl FnOnce(&Path) -> Result<R>,
        by_handle: impl FnOnce(&T::Handle) -> Result<R>,
    ) -> Result<R> {
        match self.path(ino) {
            Ok(path) => by_path(&path),
            Err(error) => {
                let handle = self.table.lock().handle(ino).ok_or(error)?;
                by_handle(&handle)
            }
        }
    }

    fn remember(&self, ino: Ino, handle: T::Handle) -> Arc<dyn File> {
        let handle = Arc::new(handle);
        self.table.lock().remember(ino, &handle);
        handle
    }
}

impl<T: PathFilesystem> Filesystem for PathAdapter<T> {
    fn facts(&self) -> Facts {
        self.inner.facts()
    }

    fn lookup(&self, parent: Ino, name: &OsStr) -> Result<Entry> {
        let _names = self.names.read();
        self.enter(parent, name, &self.path_below(parent, name)?)
    }

    fn getattr(&self, ino: Ino) -> Result<Attr> {
        let _names = self.names.read();
        self.ask(ino, |path| self.inner.getattr(path), |handle| self.inner.handle_attr(handle))
    }

    /// Remembers the names for as long as the node lives; [`opendir`](Self::opendir) for as long as the directory is open.
    fn readdir(&self, dir: Ino, position: u64, sink: &mut DirSink<'_>) -> Result<()> {
        let listing = self.table.lock().listing(dir)?;
        let read = || {
            let _names = self.names.read();
            self.inner.list(&self.path(dir)?)
        };
        listing.read(position, read, sink)
    }

    fn opendir(&self, dir: Ino) -> Result<Option<Arc<dyn Directory>>> {
        let (inner, names) = (Arc::clone(&self.inner), Arc::clone(&self.names));
        let table = Arc::clone(&self.table);
        self.table.lock().path(dir)?;
        Ok(Some(Arc::new(OpenDir { inner, names, table, dir, listing: Listing::default() })))
    }

    fn open(&self, ino: Ino, flags: OpenFlags) -> Result<Arc<dyn File>> {
        let _names = self.names.read();
        let handle = self.inner.open(&self.path(ino)?, flags)?;
        Ok(self.remember(ino, handle))
    }

    fn parent(&self, dir: Ino) -> Result<Ino> {
        self.table.lock().parent(dir)
    }

    fn readlink(&self, ino: Ino) -> Result<OsString> {
        let _names = self.names.read();
        self.inner.readlink(&self.path(ino)?)
    }

    fn statfs(&self) -> Result<StatFs> {
        self.inner.statfs()
    }

    fn forget(&self, ino: Ino, count: u64) {
        self.table.lock().forget(ino, count);
    }

    fn sync(&self) -> Result<()> {
        self.inner.sync()
    }

    fn unmount(&self) -> Result<()> {
        self.inner.unmount()
    }

    fn setattr(&self, ino: Ino, changes: &SetAttr) -> Result<Attr> {
        let _names = self.names.read();
        let by_path = |path: &Path| self.inner.setattr(path, changes).and_then(|()| self.inner.getattr(path));
        let by_handle = |handle: &T::Handle| {
            self.inner.handle_setattr(handle, changes).and_then(|()| self.inner.handle_attr(handle))
        };
        self.ask(ino, by_path, by_handle)
    }

    fn create(
        &self,
        parent: Ino,
        name: &OsStr,
        new: &NewNode,
        flags: OpenFlags,
    ) -> Result<(Entry, Arc<dyn File>)> {
        let _names = self.names.read();
        let path = self.path_below(parent, name)?;
        let handle = self.inner.create(&path, new, flags)?;
        let entry = self.enter(parent, name, &path)?;
        Ok((entry, self.remember(entry.ino, handle)))
    }

    fn mknod(&self, parent: Ino, name: &OsStr, new: &NewNode) -> Result<Entry> {
        let _names = self.names.read();
        let path = self.path_below(parent, name)?;
        self.inner.mknod(&path, new)?;
        self.enter(parent, name, &path)
    }

    fn mkdir(&self, parent: Ino, name: &OsStr, new: &NewNode) -> Result<Entry> {
        let _names = self.names.read();
        let path = self.path_below(parent, name)?;
        self.inner.mkdir(&path, new)?;
        self.enter(parent, name, &path)
    }

    fn symlink(&self, parent: Ino, name: &OsStr, target: &OsStr, new: &NewNode) -> Result<Entry> {
        let _names = self.names.read();
        let path = self.path_below(parent, name)?;
        self.inner.symlink(&path, target, new)?;
        self.enter(parent, name, &path)
    }

    fn link(&self, ino: Ino, parent: Ino, name: &OsStr) -> Result<Entry> {
        let _names = self.names.read();
        let path = self.path_below(parent, name)?;
        self.inner.link(&self.path(ino)?, &path)?;
        self.enter(parent, name, &path)
    }

    fn unlink(&self, parent: Ino, name: &OsStr) -> Result<()> {
        let _names = self.names.write();
        self.inner.unlink(&self.path_below(parent, name)?)?;
        self.table.lock().lose(parent, name);
        Ok(())
    }

    fn rmdir(&self, parent: Ino, name: &OsStr) -> Result<()> {
        let _names = self.names.write();
        self.inner.rmdir(&self.path_below(parent, name)?)?;
        self.table.lock().lose(parent, name);
        Ok(())
    }

    fn rename(
        &self,
        parent: Ino,
        name: &OsStr,
        new_parent: Ino,
        new_name: &OsStr,
        flags: RenameFlags,
    ) -> Result<()> {
        let _names = self.names.write();
        let (path, new_path) = (self.path_below(parent, name)?, self.path_below(new_parent, new_name)?);
        self.inner.rename(&path, &new_path, flags)?;
        // Of two names of one file a rename keeps both; then the old one is another node when it is next looked up.
        if path != new_path {
            self.table.lock().rename((parent, name), (new_parent, new_name), flags.exchange);
        }
        Ok(())
    }

    fn getxattr(&self, ino: Ino, name: &OsStr) -> Result<Vec<u8>> {
        let _names = self.names.read();
        self.inner.getxattr(&self.path(ino)?, name)
    }

    fn listxattr(&self, ino: Ino) -> Result<Vec<OsString>> {
        let _names = self.names.read();
        self.inner.listxattr(&self.path(ino)?)
    }

    fn setxattr(&self, ino: Ino, name: &OsStr, value: &[u8], mode: XattrMode) -> Result<()> {
        let _names = self.names.read();
        self.inner.setxattr(&self.path(ino)?, name, value, mode)
    }

    fn removexattr(&self, ino: Ino, name: &OsStr) -> Result<()> {
        let _names = self.names.read();
        self.inner.removexattr(&self.path(ino)?, name)
    }
}

struct OpenDir<T: PathFilesystem> {
    inner: Arc<T>,
    names: Arc<RwLock<()>>,
    table: Arc<Mutex<Table<T::Handle>>>,
    dir: Ino,
    listing: Listing,
}

impl<T: PathFilesystem> Directory for OpenDir<T> {
    fn read(&self, position: u64, sink: &mut DirSink<'_>) -> Result<()> {
        let read = || {
            let _names = self.names.read();
            let path = self.table.lock().path(self.dir)?;
            self.inner.list(&path)
        };
        self.listing.read(position, read, sink)
    }
}

/// The nodes that hosts refer to, and those above them.
struct Table<H> {
    nodes: HashMap<Ino, Node<H>>,
    next_ino: u64,
}

struct Node<H> {
    /// `None`: it has no name any more. The root is its own parent.
    place: Option<(Ino, OsString)>,
    references: u64,
    below: HashMap<OsString, Ino>,
    handles: Vec<Weak<H>>,
    listing: Option<Arc<Listing>>,
}

impl<H> Table<H> {
    fn new() -> Self {
        let root = Node { references: 1, ..Node::at(Ino::ROOT, OsStr::new("")) };
        Self { nodes: HashMap::from([(Ino::ROOT, root)]), next_ino: Ino::ROOT.0 + 1 }
    }

    fn parent(&self, ino: Ino) -> Result<Ino> {
        let place = self.nodes.get(&ino).and_then(|node| node.place.as_ref());
        place.map(|(parent, _)| *parent).ok_or(Errno::ESTALE)
    }

    /// `ESTALE` if the node, or a directory above it, has no name any more.
    fn path(&self, ino: Ino) -> Result<PathBuf> {
        let mut names = Vec::new();
        let mut here = ino;
        // Places form a tree, so the climb ends at the root.
        while here != Ino::ROOT {
            let node = self.nodes.get(&here).ok_or(Errno::ESTALE)?;
            let (parent, name) = node.place.as_ref().ok_or(Errno::ESTALE)?;
            names.push(name);
            here = *parent;
        }
        Ok(names.into_iter().rev().collect())
    }

    /// The node at a name, new or known, with one reference more.
    fn enter(&mut self, parent: Ino, name: &OsStr) -> Result<Ino> {
        let fresh = Ino(self.next_ino);
        let directory = self.nodes.get_mut(&parent).ok_or(Errno::ESTALE)?;
        let ino = *directory.below.entry(name.to_owned()).or_insert(fresh);
        if ino == fresh {
            self.next_ino += 1;
        }
        self.nodes.entry(ino).or_insert_with(|| Node::at(parent, name)).references += 1;
        Ok(ino)
    }

    fn forget(&mut self, ino: Ino, count: u64) {
        if let Some(node) = self.nodes.get_mut(&ino).filter(|_| ino != Ino::ROOT) {
            node.references = node.references.saturating_sub(count);
        }
        self.drop_unused(ino);
    }

    /// Drops a node that nobody refers to and nothing is below, then perhaps the one above it.
    fn drop_unused(&mut self, mut ino: Ino) {
        while self.nodes.get(&ino).is_some_and(|node| node.references == 0 && node.below.is_empty()) {
            let Some((parent, name)) = self.nodes.remove(&ino).and_then(|node| node.place) else { return };
            if let Some(above) = self.nodes.get_mut(&parent) {
                above.below.remove(&name);
            }
            ino = parent;
        }
    }

    /// A name is gone. What is known below it is gone too, if others emptied the directory.
    fn lose(&mut self, parent: Ino, name: &OsStr) {
        if let Some(ino) = self.detach(parent, name) {
            self.drop_unused(ino);
        }
        self.drop_unused(parent);
    }

    /// Takes a node from its name.
    fn detach(&mut self, parent: Ino, name: &OsStr) -> Option<Ino> {
        let ino = self.nodes.get_mut(&parent)?.below.remove(name)?;
        self.nodes.get_mut(&ino)?.place = None;
        Some(ino)
    }

    fn attach(&mut self, ino: Ino, parent: Ino, name: &OsStr) {
        if let Some(above) = self.nodes.get_mut(&parent) {
            above.below.insert(name.to_owned(), ino);
        }
        if let Some(node) = self.nodes.get_mut(&ino) {
            node.place = Some((parent, name.to_owned()));
        }
    }

    fn rename(&mut self, from: (Ino, &OsStr), to: (Ino, &OsStr), is_exchange: bool) {
        let (moved, there) = (self.detach(from.0, from.1), self.detach(to.0, to.1));
        if let Some(moved) = moved {
            self.attach(moved, to.0, to.1);
        }
        match there {
            Some(there) if is_exchange => self.attach(there, from.0, from.1),
            Some(there) => self.drop_unused(there),
            None => {}
        }
        self.drop_unused(from.0);
    }

    fn remember(&mut self, ino: Ino, handle: &Arc<H>) {
        if let Some(node) = self.nodes.get_mut(&ino) {
            node.handles.retain(|handle| handle.strong_count() > 0);
            node.handles.push(Arc::downgrade(handle));
        }
    }

    fn handle(&self, ino: Ino) -> Option<Arc<H>> {
        self.nodes.get(&ino)?.handles.iter().find_map(Weak::upgrade)
    }

    fn listing(&mut self, dir: Ino) -> Result<Arc<Listing>> {
        let node = self.nodes.get_mut(&dir).ok_or(Errno::ESTALE)?;
        Ok(Arc::clone(node.listing.get_or_insert_default()))
    }
}

impl<H> Node<H> {
    fn at(parent: Ino, name: &OsStr) -> Self {
        let place = Some((parent, name.to_owned()));
        Self { place, references: 0, below: HashMap::new(), handles: Vec::new(), listing: None }
    }
}
