//! A node of a mounted tree that somebody uses: a reference that is given back at the end, and the way from the mount point to
//! it, which `..` and `getcwd(2)` need.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::OsStrExt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use parking_lot::RwLock;
use veduta_api::{Attr, Entry, Errno, Filesystem, Ino, Result};

use crate::mounts::Mount;

/// A node with one reference to it.
pub(crate) struct Node {
    /// Where it is mounted.
    pub mount: Arc<Mount>,
    /// Which node it is.
    pub ino: Ino,
    /// The directory in which it was found, and the name there; `None` for the root of the mount.
    way: RwLock<Option<(Arc<Node>, OsString)>>,
    counted: bool,
    /// It has no name, and may get one: a file of `O_TMPFILE`, without `O_EXCL`.
    pub may_get_name: AtomicBool,
}

impl Node {
    fn new(mount: &Arc<Mount>, ino: Ino, way: Option<(Arc<Node>, OsString)>, counted: bool) -> Self {
        let may_get_name = AtomicBool::new(false);
        Self { mount: Arc::clone(mount), ino, way: RwLock::new(way), counted, may_get_name }
    }

    /// The node that is seen at the mount point.
    pub(crate) fn root(mount: &Arc<Mount>) -> Arc<Self> {
        Arc::new(Self::new(mount, mount.root, None, false))
    }

    /// Takes over the reference of an entry.
    pub(crate) fn child(parent: &Arc<Node>, name: &OsStr, entry: &Entry) -> Arc<Self> {
        Arc::new(Self::new(&parent.mount, entry.ino, Some((Arc::clone(parent), name.to_owned())), true))
    }

    /// The driver.
    pub(crate) fn tree(&self) -> &dyn Filesystem {
        &*self.mount.tree
    }

    /// The kernel-FUSE plane of the tree, if there is one already.
    pub(crate) fn plane(&self) -> Option<&crate::fuseplane::Plane> {
        self.mount.plane.get().and_then(|plane| plane.as_deref())
    }

    /// The root of another mount, found under a name: mounts below what an alias shows.
    pub(crate) fn crossed(parent: &Arc<Node>, name: &OsStr, mount: &Arc<Mount>) -> Arc<Self> {
        Arc::new(Self::new(mount, mount.root, Some((Arc::clone(parent), name.to_owned())), false))
    }

    /// For a node of an alias: the path of the view before that it shows.
    pub(crate) fn shows(&self) -> Option<Vec<u8>> {
        let alias = self.mount.alias.as_ref()?;
        match &*self.way.read() {
            Some((parent, name)) if parent.mount.id == self.mount.id => {
                let mut path = parent.shows()?;
                path.push(b'/');
                path.extend_from_slice(name.as_bytes());
                Some(path)
            }
            _ => Some(alias.clone()),
        }
    }

    /// For a directory that is a mount point of the host whose filesystem is about processes or devices rather than files: its
    /// path on the host, where it must be looked at.
    pub(crate) fn pseudo(&self, attr: &Attr, above: &Attr) -> Option<Vec<u8>> {
        if !self.mount.of_host || attr.kind != veduta_api::Kind::Directory || attr.st_dev == above.st_dev {
            return None;
        }
        let path = self.shows()?;
        is_pseudo(&path).then_some(path)
    }

    /// A mount below what an alias shows, under a name in this directory.
    pub(crate) fn inner_mount(self: &Arc<Self>, name: &[u8]) -> Option<Arc<Node>> {
        if !self.mount.recursive || self.mount.before.is_empty() {
            return None;
        }
        let mut path = self.shows()?;
        path.push(b'/');
        path.extend_from_slice(name);
        let mount = self.mount.before.at(&path)?;
        Some(Node::crossed(self, OsStr::from_bytes(name), mount))
    }

    /// The attributes, now.
    pub(crate) fn attr(&self) -> Result<Attr> {
        guarded(|| self.tree().getattr(self.ino))
    }

    /// The child of a name.
    pub(crate) fn lookup(self: &Arc<Self>, name: &[u8]) -> Result<(Arc<Node>, Attr)> {
        if name.len() > self.mount.facts.name_max as usize {
            return Err(Errno::ENAMETOOLONG);
        }
        let name = OsStr::from_bytes(name);
        let entry = guarded(|| self.tree().lookup(self.ino, name))?;
        Ok((Node::child(self, name, &entry), entry.attr))
    }

    /// The directory above; `None` for the root of the mount.
    pub(crate) fn parent(&self) -> Option<Arc<Node>> {
        self.way.read().as_ref().map(|(parent, _)| Arc::clone(parent))
    }

    /// The canonical path in the view.
    pub(crate) fn path(&self) -> Vec<u8> {
        match &*self.way.read() {
            None => self.mount.target.clone(),
            Some((parent, name)) => {
                let mut path = parent.path();
                path.push(b'/');
                path.extend_from_slice(name.as_bytes());
                path
            }
        }
    }

    /// It was found again, perhaps under another name.
    pub(crate) fn found_as(&self, other: &Node) {
        if !std::ptr::eq(self, other) {
            let way = other.way.read().clone();
            *self.way.write() = way;
        }
    }

    /// The path from the root of the mount on: empty, or with a slash in front.
    pub(crate) fn path_in_mount(&self) -> Vec<u8> {
        match &*self.way.read() {
            Some((parent, name)) if parent.mount.id == self.mount.id => {
                let mut path = parent.path_in_mount();
                path.push(b'/');
                path.extend_from_slice(name.as_bytes());
                path
            }
            _ => Vec::new(),
        }
    }

    /// It was renamed.
    pub(crate) fn moved(&self, parent: &Arc<Node>, name: &OsStr) {
        *self.way.write() = Some((Arc::clone(parent), name.to_owned()));
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        if self.counted {
            let _ = guarded(|| {
                self.tree().forget(self.ino, 1);
                Ok(())
            });
        }
    }
}

/// Whether a path of the host lies in a filesystem that is about processes or devices: proc, sysfs, devpts, cgroup, debugfs, tracefs,
/// binfmt_misc, mqueue.
pub(crate) fn is_pseudo(path: &[u8]) -> bool {
    const PSEUDO: &[i64] = &[
        0x9fa0,
        0x6265_6572,
        0x1cd1,
        0x0027_e0eb,
        0x6367_7270,
        0x6462_6720,
        0x7472_6163,
        0x4249_4e4d,
        0x1980_0202,
    ];
    let facts = nix::sys::statfs::statfs(OsStr::from_bytes(crate::mounts::shown(path)));
    #[allow(clippy::unnecessary_cast)] // its width differs between architectures
    facts.is_ok_and(|facts| PSEUDO.contains(&(facts.filesystem_type().0 as i64)))
}

/// Calls a driver.
pub(crate) fn guarded<T>(work: impl FnOnce() -> Result<T>) -> Result<T> {
    crate::turn::driver(|| caught(work))
}

/// A panic of a driver is an I/O error of its own mount, and the view goes on.
pub(crate) fn caught<T>(work: impl FnOnce() -> Result<T>) -> Result<T> {
    catch_unwind(AssertUnwindSafe(work)).unwrap_or_else(|_| {
        tracing::error!("a driver panicked; the call fails with an I/O error, and the view goes on");
        Err(Errno::EIO)
    })
}
