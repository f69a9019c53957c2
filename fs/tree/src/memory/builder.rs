//! Filling a tree in memory from an archive.
//!
//! The attributes are those of the archive: nothing is touched by being added, and an `st_ino` of 0 becomes the node's
//! own number. Names that a node has are counted here, whatever the archive says.

use std::ffi::OsStr;
use std::path::{Component, Path};
use std::sync::Arc;

use veduta_api::{Attr, Errno, Ino, Kind, Result};

use super::content::{Content, Source};
use super::node::{Body, Node};
use super::{Memory, Setup, add};

/// What a new file holds.
pub enum Data {
    /// These bytes, copied into the tree.
    Bytes(Vec<u8>),
    /// So many bytes of a source, read when they are asked for.
    Source(Arc<dyn Source>, u64),
}

/// A tree that is being filled. Names are checked: `EINVAL` for one that is empty, has a slash, or is `.` or `..`.
pub struct Builder(Memory);

impl Builder {
    /// With [`Caching::Immutable`](veduta_api::Caching::Immutable) in the facts of the setup, the finished tree refuses changes.
    pub fn new(setup: &Setup) -> Self {
        Self(Memory::new(setup))
    }

    /// The directory at a path of an archive, counted from the root; missing ones are made with `attr`. Neither a leading `/`
    /// nor `.` means anything. `EINVAL` for `..`, `ENOTDIR` if something else is in the way.
    pub fn directory(&mut self, path: &Path, attr: &Attr) -> Result<Ino> {
        let mut here = Ino::ROOT;
        for component in path.components() {
            match component {
                Component::Normal(name) => {
                    here = match self.find(here, name) {
                        Some(there) if self.0.names.read().is_dir(there.0) => there,
                        Some(_) => return Err(Errno::ENOTDIR),
                        None => self.add_directory(here, name, attr)?,
                    }
                }
                Component::RootDir | Component::CurDir => {}
                Component::ParentDir | Component::Prefix(_) => return Err(Errno::EINVAL),
            }
        }
        Ok(here)
    }

    /// What a name leads to so far.
    pub fn find(&self, parent: Ino, name: &OsStr) -> Option<Ino> {
        self.0.names.read().try_find(parent.0, name).map(Ino)
    }

    /// Adds a directory. `EEXIST` if the name is taken, as for all that follow.
    pub fn add_directory(&mut self, parent: Ino, name: &OsStr, attr: &Attr) -> Result<Ino> {
        self.add(parent, name, &Attr { kind: Kind::Directory, ..*attr }, Body::Other)
    }

    /// Adds a regular file. `ENOSPC` if its bytes go beyond the limit of the tree.
    pub fn add_file(&mut self, parent: Ino, name: &OsStr, attr: &Attr, data: Data) -> Result<Ino> {
        let budget = Arc::clone(&self.0.budget);
        let content = match data {
            Data::Source(source, size) => Content::from_source(source, size, budget),
            Data::Bytes(bytes) => {
                let mut content = Content::new(budget);
                if content.write(&bytes, 0)? < bytes.len() {
                    return Err(Errno::ENOSPC);
                }
                content
            }
        };
        self.add(parent, name, &Attr { kind: Kind::File, ..*attr }, Body::File(content))
    }

    /// Adds a symbolic link. `EINVAL` if the target is empty, `ENAMETOOLONG` if it has more than 4095 bytes.
    pub fn add_symlink(&mut self, parent: Ino, name: &OsStr, attr: &Attr, target: &OsStr) -> Result<Ino> {
        match target.len() {
            0 => Err(Errno::EINVAL),
            1..4096 => {
                let attr = Attr { kind: Kind::Symlink, ..*attr };
                self.add(parent, name, &attr, Body::Symlink(target.to_owned()))
            }
            _ => Err(Errno::ENAMETOOLONG),
        }
    }

    /// Adds a device, a pipe or a socket: `attr` says which.
    pub fn add_special(&mut self, parent: Ino, name: &OsStr, attr: &Attr) -> Result<Ino> {
        match attr.kind {
            Kind::File | Kind::Directory | Kind::Symlink => Err(Errno::EINVAL),
            _ => self.add(parent, name, attr, Body::Other),
        }
    }

    /// Gives a node one more name. `EPERM` for a directory.
    pub fn add_link(&mut self, ino: Ino, parent: Ino, name: &OsStr) -> Result<()> {
        let mut names = self.0.names.write();
        let node = Arc::clone(names.node(ino.0)?);
        if names.is_dir(ino.0) {
            return Err(Errno::EPERM);
        }
        check_name(name)?;
        names.check_free(parent.0, name)?;
        names.put(parent.0, name, ino.0)?;
        node.inner.write().attr.nlink += 1;
        Ok(())
    }

    /// Sets what an archive tells of a node later than its name; its type, numbers, links and size stay.
    pub fn set_attr(&mut self, ino: Ino, attr: &Attr) -> Result<()> {
        let node = self.node(ino)?;
        let inner = &mut node.inner.write().attr;
        let (st_ino, kind, nlink, size) = (inner.st_ino, inner.kind, inner.nlink, inner.size);
        *inner = Attr { st_ino, kind, nlink, size, ..*attr };
        Ok(())
    }

    /// Sets an extended attribute.
    pub fn set_xattr(&mut self, ino: Ino, name: &OsStr, value: &[u8]) -> Result<()> {
        self.node(ino)?.inner.write().xattrs.insert(name.to_owned(), value.to_owned());
        Ok(())
    }

    /// The tree.
    pub fn finish(self) -> Memory {
        self.0
    }

    fn node(&self, ino: Ino) -> Result<Arc<Node>> {
        self.0.node(ino)
    }

    fn add(&mut self, parent: Ino, name: &OsStr, attr: &Attr, body: Body) -> Result<Ino> {
        check_name(name)?;
        let node = add(&mut self.0.names.write(), parent, Some(name), attr, body)?;
        Ok(Ino(node.ino))
    }
}

/// Names of an archive come from outside. `EINVAL` for one that no directory can hold.
fn check_name(name: &OsStr) -> Result<()> {
    let bytes = name.as_encoded_bytes();
    let is_name = !bytes.is_empty() && !bytes.iter().any(|byte| matches!(byte, b'/' | 0));
    if !is_name || name == "." || name == ".." {
        return Err(Errno::EINVAL);
    }
    if bytes.len() > 255 { Err(Errno::ENAMETOOLONG) } else { Ok(()) }
}
