//! The tree that holds the ciphertext, as the encrypted tree on top of it uses it.
//!
//! Node numbers are those of the tree below, except that its node which is our root is called [`Ino::ROOT`] above. (The root
//! of the tree below is never seen from above, since it is not below one of its own directories.)

use std::ffi::{OsStr, OsString};
use std::ops::ControlFlow;
use std::sync::Arc;

use veduta_api::{
    DirSink, Directory, Entry, Errno, Filesystem, Ino, Kind, NewNode, OpenFlags, Perm, RenameFlags, Result,
    SetAttr,
};

use crate::findings::Findings;

/// Entries of a directory that are fetched at a time.
const BATCH: usize = 128;

/// A tree, and the node in it that is the root of ours.
#[derive(Clone)]
pub struct Inner {
    pub(crate) fs: Arc<dyn Filesystem>,
    root: Ino,
    pub(crate) findings: Arc<Findings>,
    /// Nobody else changes it.
    pub(crate) is_exclusive: bool,
}

/// One entry of a directory, kept beyond the call that listed it.
pub(crate) struct Listed {
    pub(crate) name: OsString,
    pub(crate) st_ino: u64,
    pub(crate) kind: Option<Kind>,
    pub(crate) next: u64,
}

impl Inner {
    /// The part of `fs` below `root`.
    pub fn new(fs: Arc<dyn Filesystem>, root: Ino) -> Self {
        Self { fs, root, findings: Arc::default(), is_exclusive: false }
    }

    /// The same, with the promise that nobody else changes it, if there is one.
    #[must_use]
    pub fn exclusive(self, is_exclusive: bool) -> Self {
        Self { is_exclusive, ..self }
    }

    /// The same for a check of the whole: what is found wrong is collected.
    pub(crate) fn collecting(self) -> Self {
        Self { findings: Arc::new(Findings::collecting()), ..self }
    }

    /// The number of a node as users see it, for messages.
    pub(crate) fn shown(&self, ino: Ino) -> u64 {
        self.fs.getattr(ino).map_or(ino.0, |attr| attr.st_ino)
    }

    /// The number below of a node above.
    pub(crate) fn below(&self, ino: Ino) -> Ino {
        if ino == Ino::ROOT { self.root } else { ino }
    }

    /// The number above of a node below.
    pub(crate) fn above(&self, ino: Ino) -> Ino {
        if ino == self.root { Ino::ROOT } else { ino }
    }

    /// Runs `work` with a node that a name leads to, and gives the reference back.
    pub(crate) fn with_entry<T>(
        &self,
        dir: Ino,
        name: &OsStr,
        work: impl FnOnce(&Entry) -> Result<T>,
    ) -> Result<T> {
        let entry = self.fs.lookup(dir, name)?;
        let result = work(&entry);
        self.fs.forget(entry.ino, 1);
        result
    }

    /// The content of a small file. `EFBIG` if it has more than `max` bytes.
    pub(crate) fn read_small(&self, dir: Ino, name: &OsStr, max: usize) -> Result<Vec<u8>> {
        self.with_entry(dir, name, |entry| {
            if entry.attr.kind != Kind::File {
                return Err(Errno::EINVAL);
            }
            let file = self.fs.open(entry.ino, OpenFlags::READ)?;
            let mut bytes = vec![0; max + 1];
            let len = file.read_at(&mut bytes, 0)?;
            bytes.truncate(len);
            if len > max { Err(Errno::EFBIG) } else { Ok(bytes) }
        })
    }

    /// Makes a file that nobody is to change. What cannot be written whole is removed again.
    pub(crate) fn write_small(
        &self,
        dir: Ino,
        name: &OsStr,
        bytes: &[u8],
        mode: u32,
        owner: (u32, u32),
        durable: bool,
    ) -> Result<()> {
        let new = NewNode {
            kind: Kind::File,
            perm: Perm::from_mode(mode),
            umask: 0,
            uid: owner.0,
            gid: owner.1,
            rdev: Default::default(),
        };
        let flags = OpenFlags { write: true, ..OpenFlags::default() };
        let (entry, file) = match self.fs.create(dir, name, &new, flags) {
            // A directory may be of a group that its owner is not in: then the group stays as chown(2) leaves it for -1.
            Err(Errno::EPERM) => self.fs.create(dir, name, &NewNode { gid: u32::MAX, ..new }, flags)?,
            made => made?,
        };
        let written = file.write_at(bytes, 0).and_then(|len| {
            if len < bytes.len() {
                return Err(Errno::ENOSPC);
            }
            file.flush()?;
            if durable { file.sync(false) } else { Ok(()) }
        });
        drop(file);
        self.fs.forget(entry.ino, 1);
        written.inspect_err(|_| {
            // The error that counts is the first one.
            let _ = self.fs.unlink(dir, name);
        })
    }

    /// Puts a file in the place of another, so that a crash leaves the one or the other.
    pub(crate) fn replace_small(
        &self,
        dir: Ino,
        name: &OsStr,
        bytes: &[u8],
        mode: u32,
        owner: (u32, u32),
    ) -> Result<()> {
        let mut beside = name.to_owned();
        beside.push(".tmp");
        match self.fs.unlink(dir, &beside) {
            Ok(()) | Err(Errno::ENOENT) => {}
            Err(error) => return Err(error),
        }
        self.write_small(dir, &beside, bytes, mode, owner, true)?;
        self.fs.rename(dir, &beside, dir, name, RenameFlags::default())
    }

    /// All entries of a directory.
    pub(crate) fn list(&self, dir: Ino) -> Result<Vec<Listed>> {
        let open = self.fs.opendir(dir)?;
        let mut all = Vec::new();
        let mut position = 0;
        loop {
            let batch = self.batch(dir, open.as_deref(), position)?;
            let Some(last) = batch.last() else { return Ok(all) };
            position = last.next;
            all.extend(batch);
        }
    }

    /// Whether there is nothing in a directory but what `ignore` says.
    pub(crate) fn is_empty(&self, dir: Ino, ignore: impl Fn(&OsStr) -> bool) -> Result<bool> {
        Ok(self.list(dir)?.iter().all(|entry| ignore(&entry.name)))
    }

    /// The next entries of a directory behind a position; none at its end. The tree below may hold its locks while it lists, so
    /// nothing is asked of it meanwhile.
    pub(crate) fn batch(&self, dir: Ino, open: Option<&dyn Directory>, position: u64) -> Result<Vec<Listed>> {
        let mut batch = Vec::new();
        let sink: &mut DirSink<'_> = &mut |entry| {
            if batch.len() == BATCH {
                return ControlFlow::Break(());
            }
            let (st_ino, kind, next) = (entry.st_ino, entry.kind, entry.next);
            batch.push(Listed { name: entry.name.to_owned(), st_ino, kind, next });
            ControlFlow::Continue(())
        };
        match open {
            Some(open) => open.read(position, sink)?,
            None => self.fs.readdir(dir, position, sink)?,
        }
        Ok(batch)
    }

    /// Sets the size of a file below.
    pub(crate) fn set_size(&self, ino: Ino, size: u64) -> Result<()> {
        self.fs.setattr(ino, &SetAttr { size: Some(size), ..SetAttr::default() }).map(drop)
    }
}
