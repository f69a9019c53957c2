//! An encrypted tree: a tree of ciphertext below, and a [`Scheme`] that says how names, links and attributes are encrypted. What both
//! formats have in common is here and in [`crate::content`].
//!
//! Nodes are those of the tree below (see [`crate::inner`]), so hard links, renames and files that are open but deleted
//! are what they are there.
//!
//! Locks, in the order in which they are taken: `names` (shared by whatever uses names, exclusive for what changes several at once),
//! then what the scheme has, then a file's own.

use std::ffi::{OsStr, OsString};
use std::ops::ControlFlow;
use std::sync::{Arc, OnceLock, Weak};
use std::time::Duration;

use parking_lot::RwLock;
use veduta_api::{
    Attr, Caching, Changes, DirEntry, DirSink, Directory, Entry, Errno, Facts, File, Filesystem, Ino, Kind,
    NewNode, OpenFlags, Perm, RenameFlags, Result, SetAttr, StatFs, XattrMode,
};

use crate::content::Files;
use crate::inner::Inner;

/// A name as it is stored.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct CipherName {
    /// In its directory.
    pub(crate) name: OsString,
    /// What a file beside it has to hold, where `name` is a hash only.
    pub(crate) long: Option<Vec<u8>>,
    /// What encrypts names below, and files of this name, where paths do.
    pub(crate) iv: u64,
}

/// How a format encrypts everything but the content of files. Directories and nodes are named by their number below.
pub(crate) trait Scheme: Send + Sync {
    /// How a name is stored. `EPERM` for one that the format keeps for itself.
    fn encode(&self, inner: &Inner, dir: Ino, name: &OsStr) -> Result<CipherName>;
    /// The name behind a stored one. `None` for what is the format's own, and for what cannot be decrypted.
    fn decode(&self, inner: &Inner, dir: Ino, stored: &OsStr) -> Result<Option<OsString>>;
    /// Whether the stored form of this name tells without another file what it is. (It may be said of fewer.)
    fn is_told(&self, name: &OsStr) -> bool {
        let _ = name;
        true
    }
    /// How the target of a symbolic link is stored.
    fn encode_target(&self, target: &OsStr) -> Result<OsString>;
    /// The target behind a stored one.
    fn decode_target(&self, inner: &Inner, stored: &OsStr) -> Result<OsString>;
    /// The length of a target, if that of the stored one tells.
    fn target_len(&self, stored: u64) -> Option<u64>;

    /// How the name of an extended attribute is stored.
    fn encode_xattr(&self, name: &OsStr) -> Result<OsString>;
    /// The name behind a stored one; `None` if it is not one of ours.
    fn decode_xattr(&self, inner: &Inner, stored: &OsStr) -> Option<OsString>;
    /// How a value is stored.
    fn seal_xattr(&self, value: &[u8]) -> Result<Vec<u8>>;
    /// The value behind a stored one.
    fn open_xattr(&self, inner: &Inner, stored: Vec<u8>) -> Result<Vec<u8>>;

    /// A name is about to be made: stores what has to be beside it. Whether that is new.
    fn begin_name(&self, inner: &Inner, dir: Ino, name: &CipherName, new: Option<&NewNode>) -> Result<bool> {
        let _ = (inner, dir, name, new);
        Ok(false)
    }
    /// A name is gone, or was not made after all: removes what was beside it.
    fn end_name(&self, inner: &Inner, dir: Ino, name: &CipherName) {
        let _ = (inner, dir, name);
    }
    /// Whether a new directory needs something in it.
    fn furnishes(&self) -> bool {
        false
    }
    /// Puts into a new directory what it needs.
    fn furnish(&self, inner: &Inner, dir: Ino, new: &NewNode) -> Result<()> {
        let _ = (inner, dir, new);
        Ok(())
    }
    /// Removes an empty directory.
    fn remove_dir(&self, inner: &Inner, dir: Ino, name: &CipherName) -> Result<()> {
        inner.fs.rmdir(dir, &name.name)
    }

    /// A node was told to the host under this name: one reference more.
    fn entered(&self, dir: Ino, name: &CipherName, entry: &Entry) {
        let _ = (dir, name, entry);
    }
    /// References were given back.
    fn forgotten(&self, ino: Ino, count: u64) {
        let _ = (ino, count);
    }
    /// What of a file's path is part of its header; 0 where nothing is.
    fn external(&self, ino: Ino) -> Result<u64> {
        let _ = ino;
        Ok(0)
    }
    /// `EPERM`, or whatever the format has instead of hard links.
    fn check_link(&self) -> Result<()> {
        Ok(())
    }
    /// Before a name is moved: makes what is below ready for its new path. `undo` takes that back.
    fn relocate(
        &self,
        files: &Arc<Files>,
        from: (Ino, &CipherName),
        to: (Ino, &CipherName),
        undo: bool,
    ) -> Result<()> {
        let _ = (files, from, to, undo);
        Ok(())
    }
    /// After a name was moved.
    fn relocated(&self, files: &Arc<Files>, from: (Ino, &CipherName), to: (Ino, &CipherName)) {
        let _ = (files, from, to);
    }
    /// Whether two names can be exchanged.
    fn exchanges(&self) -> bool {
        true
    }
}

/// See the head of this file.
pub(crate) struct CryptTree<S> {
    inner: Inner,
    files: Arc<Files>,
    scheme: Arc<S>,
    names: Arc<RwLock<()>>,
    told: OnceLock<Arc<Told<S>>>,
}

/// Hears of changes below, and says what that is above.
struct Told<S> {
    scheme: Arc<S>,
    inner: Inner,
    names: Arc<RwLock<()>>,
    above: Weak<dyn Changes>,
}

impl<S: Scheme> Changes for Told<S> {
    fn name(&self, dir: Ino, name: &OsStr) {
        let Some(above) = self.above.upgrade() else { return };
        let plain = {
            let _names = self.names.read();
            self.scheme.decode(&self.inner, dir, name)
        };
        // What cannot be decrypted was not shown.
        if let Ok(Some(plain)) = plain {
            above.name(self.inner.above(dir), &plain);
        }
    }

    fn node(&self, ino: Ino) {
        if let Some(above) = self.above.upgrade() {
            above.node(self.inner.above(ino));
        }
    }
}

impl<S: Scheme> CryptTree<S> {
    pub(crate) fn new(files: Arc<Files>, scheme: Arc<S>) -> Self {
        Self {
            inner: files.inner.clone(),
            files,
            scheme,
            names: Arc::new(RwLock::new(())),
            told: OnceLock::new(),
        }
    }

    fn below(&self, ino: Ino) -> Ino {
        self.inner.below(ino)
    }

    /// Attributes as they are above.
    fn attr(&self, below: Ino, attr: Attr) -> Attr {
        let size = match attr.kind {
            Kind::File => self.files.layout().plain_size(attr.size),
            Kind::Symlink => self.scheme.target_len(attr.size).unwrap_or_else(|| {
                let target = self
                    .inner
                    .fs
                    .readlink(below)
                    .and_then(|stored| self.scheme.decode_target(&self.inner, &stored));
                target.map_or(attr.size, |target| target.len() as u64)
            }),
            _ => attr.size,
        };
        Attr { size, st_dev: None, ..attr }
    }

    fn enter(&self, dir: Ino, name: &CipherName, entry: Entry) -> Entry {
        self.scheme.entered(dir, name, &entry);
        Entry { ino: self.inner.above(entry.ino), attr: self.attr(entry.ino, entry.attr), ..entry }
    }

    /// Makes a name by `make`, which is given the directory below, with what has to be beside it.
    fn make<T>(
        &self,
        parent: Ino,
        name: &OsStr,
        new: Option<&NewNode>,
        make: impl FnOnce(Ino, &CipherName) -> Result<T>,
    ) -> Result<T> {
        let _names = self.names.read();
        let dir = self.below(parent);
        let stored = self.scheme.encode(&self.inner, dir, name)?;
        if stored.long.is_none() {
            return make(dir, &stored);
        }
        let fresh = self.scheme.begin_name(&self.inner, dir, &stored, new)?;
        make(dir, &stored).inspect_err(|_| {
            if fresh {
                self.scheme.end_name(&self.inner, dir, &stored);
            }
        })
    }

    /// Whether a name leads anywhere below.
    fn leads_on(&self, dir: Ino, name: &OsStr) -> bool {
        self.inner.with_entry(dir, name, |_| Ok(())).is_ok()
    }

    fn rename_below(
        &self,
        (from, old): (Ino, &CipherName),
        (to, new): (Ino, &CipherName),
        flags: RenameFlags,
    ) -> Result<()> {
        let rename = || self.inner.fs.rename(from, &old.name, to, &new.name, flags);
        match rename() {
            // A directory that is empty above holds something of the format's below.
            Err(Errno::ENOTEMPTY | Errno::EEXIST)
                if !flags.no_replace && !flags.exchange && self.scheme.furnishes() =>
            {
                self.scheme.remove_dir(&self.inner, to, new)?;
                rename()
            }
            result => result,
        }
    }
}

impl<S: Scheme + 'static> Filesystem for CryptTree<S> {
    fn facts(&self) -> Facts {
        let below = self.inner.fs.facts();
        let caching = if self.inner.is_exclusive { Caching::Exclusive } else { below.caching };
        Facts {
            caching,
            name_max: 255,
            size_max: self.files.layout().plain_size(below.size_max),
            backing: false,
            acl: false,
            case_insensitive: false,
            ..below
        }
    }

    fn lookup(&self, parent: Ino, name: &OsStr) -> Result<Entry> {
        let _names = self.names.read();
        let dir = self.below(parent);
        let stored = self.scheme.encode(&self.inner, dir, name).map_err(|error| match error {
            Errno::EPERM => Errno::ENOENT,
            error => error,
        })?;
        let entry = self.inner.fs.lookup(dir, &stored.name)?;
        Ok(self.enter(dir, &stored, entry))
    }

    fn getattr(&self, ino: Ino) -> Result<Attr> {
        let below = self.below(ino);
        let attr = match self.files.known(below) {
            Some(node) => node.settled(|| self.inner.fs.getattr(below))?,
            None => self.inner.fs.getattr(below)?,
        };
        Ok(self.attr(below, attr))
    }

    fn readdir(&self, dir: Ino, position: u64, sink: &mut DirSink<'_>) -> Result<()> {
        self.list(self.below(dir), None, position, sink)
    }

    fn opendir(&self, dir: Ino) -> Result<Option<Arc<dyn Directory>>> {
        let below = self.below(dir);
        let Some(open) = self.inner.fs.opendir(below)? else { return Ok(None) };
        Ok(Some(Arc::new(OpenDir {
            scheme: Arc::clone(&self.scheme),
            inner: self.inner.clone(),
            dir: below,
            open,
            names: Arc::clone(&self.names),
        })))
    }

    fn open(&self, ino: Ino, flags: OpenFlags) -> Result<Arc<dyn File>> {
        let _names = self.names.read();
        let below = self.below(ino);
        let external = self.scheme.external(below)?;
        let file = self.files.open_below(below, OpenFlags { direct: false, ..flags })?;
        Ok(Arc::new(self.files.file(below, external, file, flags.write)))
    }

    fn parent(&self, dir: Ino) -> Result<Ino> {
        if dir == Ino::ROOT { Ok(dir) } else { Ok(self.inner.above(self.inner.fs.parent(self.below(dir))?)) }
    }

    fn readlink(&self, ino: Ino) -> Result<OsString> {
        self.scheme.decode_target(&self.inner, &self.inner.fs.readlink(self.below(ino))?)
    }

    fn tell(&self, above: Weak<dyn Changes>) -> bool {
        let (scheme, names) = (Arc::clone(&self.scheme), Arc::clone(&self.names));
        let told =
            self.told.get_or_init(|| Arc::new(Told { scheme, inner: self.inner.clone(), names, above }));
        let told: Arc<dyn Changes> = told.clone();
        self.inner.fs.tell(Arc::downgrade(&told))
    }

    fn watch(&self, dir: Ino) -> Option<Duration> {
        self.inner.fs.watch(self.below(dir))
    }

    fn watched(&self, dir: Ino, name: Option<&OsStr>) -> Option<Duration> {
        let is_told = name.is_none_or(|name| self.scheme.is_told(name));
        if is_told { self.inner.fs.watched(self.below(dir), None) } else { None }
    }

    fn statfs(&self) -> Result<StatFs> {
        self.inner.fs.statfs()
    }

    fn forget(&self, ino: Ino, count: u64) {
        let below = self.below(ino);
        self.scheme.forgotten(below, count);
        self.inner.fs.forget(below, count);
    }

    fn sync(&self) -> Result<()> {
        self.inner.fs.sync()
    }

    /// Nothing is held back here, and the tree below goes on.
    fn unmount(&self) -> Result<()> {
        Ok(())
    }

    fn setattr(&self, ino: Ino, changes: &SetAttr) -> Result<Attr> {
        let below = self.below(ino);
        if let Some(size) = changes.size {
            let _names = self.names.read();
            self.files.truncate(below, self.scheme.external(below)?, size)?;
        }
        let SetAttr { perm, uid, gid, size: _, atime, mtime, ctime, flags, drop_set_id } = *changes;
        let others = perm.is_some() || uid.is_some() || gid.is_some() || atime.is_some() || mtime.is_some();
        if others || ctime.is_some() || flags.is_some() || drop_set_id {
            let attr = self.inner.fs.setattr(below, &SetAttr { size: None, ..*changes })?;
            return Ok(self.attr(below, attr));
        }
        self.getattr(ino)
    }

    fn create(
        &self,
        parent: Ino,
        name: &OsStr,
        new: &NewNode,
        flags: OpenFlags,
    ) -> Result<(Entry, Arc<dyn File>)> {
        self.make(parent, name, Some(new), |dir, stored| {
            let flags = OpenFlags { direct: false, read: true, ..flags };
            let (entry, file) = self.inner.fs.create(dir, &stored.name, new, flags)?;
            let below = entry.ino;
            let entry = self.enter(dir, stored, entry);
            let external = self.scheme.external(below)?;
            let file: Arc<dyn File> = Arc::new(self.files.file(below, external, file, flags.write));
            Ok((entry, file))
        })
    }

    fn mknod(&self, parent: Ino, name: &OsStr, new: &NewNode) -> Result<Entry> {
        self.make(parent, name, Some(new), |dir, stored| {
            Ok(self.enter(dir, stored, self.inner.fs.mknod(dir, &stored.name, new)?))
        })
    }

    fn mkdir(&self, parent: Ino, name: &OsStr, new: &NewNode) -> Result<Entry> {
        self.make(parent, name, Some(new), |dir, stored| {
            if !self.scheme.furnishes() {
                return Ok(self.enter(dir, stored, self.inner.fs.mkdir(dir, &stored.name, new)?));
            }
            // While it is furnished its owner has to get in.
            let wanted = new.masked();
            let open = Perm::from_mode(wanted.bits() | 0o700);
            let entry = self.inner.fs.mkdir(dir, &stored.name, &NewNode { perm: open, umask: 0, ..*new })?;
            let furnished = self.scheme.furnish(&self.inner, entry.ino, new).and_then(|()| {
                if open == wanted {
                    return self.inner.fs.getattr(entry.ino);
                }
                self.inner.fs.setattr(entry.ino, &SetAttr { perm: Some(wanted), ..SetAttr::default() })
            });
            match furnished {
                Ok(attr) => Ok(self.enter(dir, stored, Entry { attr, ..entry })),
                Err(error) => {
                    // The error that counts is the first one.
                    let _ = self.scheme.remove_dir(&self.inner, dir, stored);
                    let _ = self.inner.fs.rmdir(dir, &stored.name);
                    self.inner.fs.forget(entry.ino, 1);
                    Err(error)
                }
            }
        })
    }

    fn symlink(&self, parent: Ino, name: &OsStr, target: &OsStr, new: &NewNode) -> Result<Entry> {
        let target = self.scheme.encode_target(target)?;
        self.make(parent, name, Some(new), |dir, stored| {
            Ok(self.enter(dir, stored, self.inner.fs.symlink(dir, &stored.name, &target, new)?))
        })
    }

    fn link(&self, ino: Ino, parent: Ino, name: &OsStr) -> Result<Entry> {
        self.scheme.check_link()?;
        self.make(parent, name, None, |dir, stored| {
            Ok(self.enter(dir, stored, self.inner.fs.link(self.below(ino), dir, &stored.name)?))
        })
    }

    fn tmpfile(&self, parent: Ino, new: &NewNode, flags: OpenFlags) -> Result<(Entry, Arc<dyn File>)> {
        // A file without a name can only be of use if it is given one.
        self.scheme.check_link().map_err(|_| Errno::EOPNOTSUPP)?;
        let flags = OpenFlags { direct: false, read: true, ..flags };
        let (entry, file) = self.inner.fs.tmpfile(self.below(parent), new, flags)?;
        let file: Arc<dyn File> = Arc::new(self.files.file(entry.ino, 0, file, flags.write));
        Ok((
            Entry { ino: self.inner.above(entry.ino), attr: self.attr(entry.ino, entry.attr), ..entry },
            file,
        ))
    }

    fn unlink(&self, parent: Ino, name: &OsStr) -> Result<()> {
        let _names = self.names.read();
        let dir = self.below(parent);
        let stored = self.scheme.encode(&self.inner, dir, name)?;
        self.inner.fs.unlink(dir, &stored.name)?;
        if stored.long.is_some() {
            self.scheme.end_name(&self.inner, dir, &stored);
        }
        Ok(())
    }

    fn rmdir(&self, parent: Ino, name: &OsStr) -> Result<()> {
        let _names = self.names.write();
        let dir = self.below(parent);
        let stored = self.scheme.encode(&self.inner, dir, name)?;
        self.scheme.remove_dir(&self.inner, dir, &stored)?;
        if stored.long.is_some() {
            self.scheme.end_name(&self.inner, dir, &stored);
        }
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
        if flags.exchange && !self.scheme.exchanges() {
            return Err(Errno::EINVAL);
        }
        let (dir, new_dir) = (self.below(parent), self.below(new_parent));
        let old = self.scheme.encode(&self.inner, dir, name)?;
        let new = self.scheme.encode(&self.inner, new_dir, new_name)?;
        let fresh = new.long.is_some() && self.scheme.begin_name(&self.inner, new_dir, &new, None)?;
        let (from, to) = ((dir, &old), (new_dir, &new));
        let moved = self.scheme.relocate(&self.files, from, to, false).and_then(|()| {
            self.rename_below(from, to, flags).inspect_err(|_| {
                if self.scheme.relocate(&self.files, from, to, true).is_err() {
                    tracing::error!("a rename failed half way, and could not be taken back");
                }
            })
        });
        if let Err(error) = moved {
            if fresh {
                self.scheme.end_name(&self.inner, new_dir, &new);
            }
            return Err(error);
        }
        self.scheme.relocated(&self.files, from, to);
        // Of two names of one file both stay.
        if old.long.is_some() && !self.leads_on(dir, &old.name) {
            self.scheme.end_name(&self.inner, dir, &old);
        }
        Ok(())
    }

    fn getxattr(&self, ino: Ino, name: &OsStr) -> Result<Vec<u8>> {
        self.scheme.open_xattr(
            &self.inner,
            self.inner.fs.getxattr(self.below(ino), &self.scheme.encode_xattr(name)?)?,
        )
    }

    fn listxattr(&self, ino: Ino) -> Result<Vec<OsString>> {
        let stored = self.inner.fs.listxattr(self.below(ino))?;
        Ok(stored.iter().filter_map(|name| self.scheme.decode_xattr(&self.inner, name)).collect())
    }

    fn setxattr(&self, ino: Ino, name: &OsStr, value: &[u8], mode: XattrMode) -> Result<()> {
        let (name, value) = (self.scheme.encode_xattr(name)?, self.scheme.seal_xattr(value)?);
        self.inner.fs.setxattr(self.below(ino), &name, &value, mode)
    }

    fn removexattr(&self, ino: Ino, name: &OsStr) -> Result<()> {
        self.inner.fs.removexattr(self.below(ino), &self.scheme.encode_xattr(name)?)
    }
}

impl<S: Scheme> CryptTree<S> {
    fn list(
        &self,
        dir: Ino,
        open: Option<&dyn Directory>,
        position: u64,
        sink: &mut DirSink<'_>,
    ) -> Result<()> {
        let _names = self.names.read();
        list(&*self.scheme, &self.inner, dir, open, position, sink)
    }
}

/// A directory below that is open, with its names decrypted.
struct OpenDir<S> {
    scheme: Arc<S>,
    inner: Inner,
    dir: Ino,
    open: Arc<dyn Directory>,
    names: Arc<RwLock<()>>,
}

impl<S: Scheme> Directory for OpenDir<S> {
    fn read(&self, position: u64, sink: &mut DirSink<'_>) -> Result<()> {
        let _names = self.names.read();
        list(&*self.scheme, &self.inner, self.dir, Some(&*self.open), position, sink)
    }
}

fn list<S: Scheme>(
    scheme: &S,
    inner: &Inner,
    dir: Ino,
    open: Option<&dyn Directory>,
    mut position: u64,
    sink: &mut DirSink<'_>,
) -> Result<()> {
    loop {
        let batch = inner.batch(dir, open, position)?;
        let Some(last) = batch.last() else { return Ok(()) };
        position = last.next;
        for entry in &batch {
            let Some(name) = scheme.decode(inner, dir, &entry.name)? else { continue };
            let (st_ino, kind, next) = (entry.st_ino, entry.kind, entry.next);
            if sink(DirEntry { name: &name, ino: None, st_ino, kind, next }) == ControlFlow::Break(()) {
                return Ok(());
            }
        }
    }
}
