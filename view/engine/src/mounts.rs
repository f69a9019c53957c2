//! The mount table: a value. Mounting makes a new one; whoever holds the old one goes on with it, and readers take no lock.
//!
//! A mount belongs to a path of the view, which need not exist below. Mounts on one path are a stack, of which the newest
//! counts. A mount knows the table as it was before it: that is where its source and its exceptions come from.

use std::collections::HashMap;
use std::ffi::OsString;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use veduta_api::{Facts, Filesystem, Ino};
use veduta_disk::BlockDrive;

use crate::node::Node;
use crate::through::Through;

/// What is mounted.
pub(crate) enum Service {
    /// A tree of files, from a node of it on.
    Tree,
    /// A disk: one device node here, and one for each partition behind names that follow.
    Disk(Arc<BlockDrive>),
    /// Loop devices.
    Loops(Arc<crate::loops::Loops>),
}

/// A mount.
pub(crate) struct Mount {
    /// Its number in this view; also tells its device number.
    pub id: u32,
    /// Where it is: canonical, absolute, without a slash at the end (`/` itself is empty).
    pub target: Vec<u8>,
    /// The type, as `/proc/mounts` shows it.
    pub type_name: String,
    /// The source as it was written.
    pub source: OsString,
    /// The options as they were written, without those that the fields below say.
    pub options: String,
    /// What is asked.
    pub tree: Arc<dyn Filesystem>,
    /// The node that is seen at the target.
    pub root: Ino,
    /// Facts about the tree.
    pub facts: Facts,
    /// What kind of object it is.
    pub service: Service,
    /// Paths below the target, such as `/spool`, that show what was there before.
    pub except: Vec<Vec<u8>>,
    /// Nothing may be changed.
    pub read_only: AtomicBool,
    /// Nothing can ever be changed: the driver opened its source for reading only.
    pub(crate) never_written: bool,
    /// No program may be run from it.
    pub no_exec: AtomicBool,
    /// It cannot be unmounted.
    pub permanent: bool,
    /// An ordinary user mounted an image, or a tree made of others: what is that user's own is not guarded against its owner, and
    /// what is not, the kernel guards when the driver gets there. Permission bits do not count, unless `human` says so.
    pub(crate) is_owned: bool,
    /// Its tree keeps owners of its own, whatever those of the host are.
    pub(crate) keeps_owners: bool,
    /// What it shows is this path of the view before.
    pub alias: Option<Vec<u8>>,
    /// With the mounts of the view that were below there.
    pub recursive: bool,
    /// It shows a directory or file of the host at the very path where that is.
    pub(crate) is_itself: bool,
    /// It shows a part of the host: device nodes, fifos and sockets are the host's own, and so are `/proc` and its like.
    pub(crate) of_host: bool,
    /// What it shows of the host is about processes or devices rather than files: looked at under its own path.
    pub(crate) is_pseudo: bool,
    /// It belongs to the view itself, and is not shown among the mounts.
    pub(crate) is_hidden: bool,
    /// Nodes of other mounts on which it stands.
    pub uses: Vec<Arc<Node>>,
    /// Another mount stands on it, and changes it without anybody's notice.
    pub(crate) is_source: AtomicBool,
    /// Its files as the kernel has them.
    pub(crate) plane: crate::fuseplane::Cell,
    /// What differs from the host, if that is seen through it.
    pub(crate) through: Option<Arc<Through>>,
    /// The table before.
    pub before: Arc<Table>,
}

impl Mount {
    /// Whether nothing may be changed.
    pub(crate) fn is_read_only(&self) -> bool {
        self.read_only.load(Ordering::Relaxed)
    }

    /// Whether the host is seen through it where it is not told to differ.
    pub(crate) fn sees_through(&self) -> bool {
        self.through.as_ref().is_some_and(|through| through.is_clear())
    }

    /// Whether it is the host in everything but that it is a mount: a bind of something on itself that may be written to and run. Paths lead through it as if it
    /// were not there. What a boundary between mounts forbids, and what is told about mounts, is seen to where that is asked.
    pub(crate) fn is_plain(&self) -> bool {
        self.is_itself && !self.is_read_only() && !self.no_exec.load(Ordering::Relaxed)
    }

    /// Whether permission bits are to be obeyed here.
    pub(crate) fn checks_permissions(&self) -> bool {
        !self.facts.own_permissions && !self.is_owned
    }

    /// The device number that `stat` shows for its nodes: of major 0, as for everything without a device.
    pub(crate) fn device(&self) -> u64 {
        device_of(self.id)
    }

    /// What follows `ro` or `rw` in `/proc/mounts`.
    pub(crate) fn option_text(&self) -> String {
        let mut text = String::from(if self.is_read_only() { "ro" } else { "rw" });
        if !self.is_itself {
            text.push_str(",nosuid,nodev");
        }
        if self.no_exec.load(Ordering::Relaxed) {
            text.push_str(",noexec");
        }
        if !self.options.is_empty() {
            text.push(',');
            text.push_str(&self.options);
        }
        text
    }
}

/// The device number of a mount with this number.
pub(crate) fn device_of(id: u32) -> u64 {
    // Far above the numbers that the kernel gives out, from 1 on.
    minor_device(0x8_0000 + id)
}

/// `makedev(0, minor)` as `stat(2)` shows it.
fn minor_device(minor: u32) -> u64 {
    let minor = u64::from(minor);
    (minor & 0xff) | ((minor & 0xffff_ff00) << 12)
}

/// All mounts of a view.
#[derive(Default)]
pub(crate) struct Table {
    /// In the order in which they were made.
    mounts: Vec<Arc<Mount>>,
    /// The newest at each path.
    top: HashMap<Vec<u8>, Arc<Mount>>,
    /// Names in a directory that have a mount, by the directory's path.
    children: HashMap<Vec<u8>, Vec<Vec<u8>>>,
    /// Some mount is a disk, whose partitions answer to names that are not in `top`.
    has_disks: bool,
}

impl Table {
    /// A table of these mounts, in this order.
    pub(crate) fn new(mounts: Vec<Arc<Mount>>) -> Self {
        let mut table = Self { mounts, ..Self::default() };
        for mount in &table.mounts {
            table.has_disks |= matches!(mount.service, Service::Disk(_));
            table.top.insert(mount.target.clone(), Arc::clone(mount));
            if mount.is_hidden {
                continue;
            }
            let (parent, name) = split(&mount.target);
            let names = table.children.entry(parent.to_vec()).or_default();
            if !name.is_empty() && !names.iter().any(|known| known == name) {
                names.push(name.to_vec());
            }
        }
        table
    }

    /// The mounts, oldest first.
    pub(crate) fn mounts(&self) -> &[Arc<Mount>] {
        &self.mounts
    }

    /// Whether there are none.
    pub(crate) fn is_empty(&self) -> bool {
        self.mounts.is_empty()
    }

    /// The mount that is seen at exactly this path.
    pub(crate) fn at(&self, path: &[u8]) -> Option<&Arc<Mount>> {
        self.top.get(path)
    }

    /// The disk, and the number of its partition, that answers to this path: `/dev/hda1` for a disk at `/dev/hda`.
    pub(crate) fn partition_at(&self, path: &[u8]) -> Option<(&Arc<Mount>, u32)> {
        if !self.has_disks {
            return None;
        }
        let digits = path.iter().rev().take_while(|byte| byte.is_ascii_digit()).count();
        let (stem, number) = path.split_at(path.len() - digits);
        let number: u32 = std::str::from_utf8(number).ok()?.parse().ok()?;
        let is_disk = |mount: &&Arc<Mount>| matches!(mount.service, Service::Disk(_));
        // A name that ends in a digit has a p before the number: /dev/loop0p1.
        let mount = self.at(stem).or_else(|| {
            let bare = stem.strip_suffix(b"p")?;
            bare.last()?.is_ascii_digit().then(|| self.at(bare)).flatten()
        });
        mount.filter(is_disk).map(|mount| (mount, number))
    }

    /// Whether a mount is at this path, or could answer to it.
    pub(crate) fn concerns(&self, path: &[u8]) -> bool {
        self.top.contains_key(path) || self.partition_at(path).is_some()
    }

    /// Names that have a mount in the directory at this path.
    pub(crate) fn names_in(&self, directory: &[u8]) -> &[Vec<u8>] {
        self.children.get(directory).map_or(&[], Vec::as_slice)
    }

    /// The mount that serves a path: the longest target that the path begins with, at a component.
    pub(crate) fn serving(&self, path: &[u8]) -> Option<&Arc<Mount>> {
        let mut prefix = path;
        loop {
            if let Some(mount) = self.at(prefix) {
                return Some(mount);
            }
            if prefix.is_empty() {
                return None;
            }
            prefix = split(prefix).0;
        }
    }

    /// Whether the host itself is what is seen at a path, through nothing but plain mounts. With `binds` these count as others do.
    pub(crate) fn is_host(&self, path: &[u8], binds: bool) -> bool {
        self.serving(path).is_none_or(|mount| mount.is_plain() && !binds)
    }

    /// The plain mount that a path of the host lies in, by its number; 0 for none.
    pub(crate) fn plain_at(&self, path: &[u8]) -> u32 {
        self.serving(path).filter(|mount| mount.is_plain()).map_or(0, |mount| mount.id)
    }

    /// Whether some mount lies at or below a path.
    pub(crate) fn any_below(&self, path: &[u8]) -> bool {
        self.mounts.iter().any(|mount| is_below(&mount.target, path))
    }

    /// The table with one more mount.
    pub(crate) fn with(&self, mount: Arc<Mount>) -> Self {
        let mut mounts = self.mounts.clone();
        mounts.push(mount);
        Self::new(mounts)
    }

    /// The table without a mount.
    pub(crate) fn without(&self, id: u32) -> Self {
        Self::new(self.mounts.iter().filter(|mount| mount.id != id).cloned().collect())
    }
}

/// Whether `path` is `top` or lies below it.
pub(crate) fn is_below(path: &[u8], top: &[u8]) -> bool {
    path.strip_prefix(top).is_some_and(|rest| rest.is_empty() || rest[0] == b'/')
}

/// A canonical path's directory and last name. The root's are both empty.
pub(crate) fn split(path: &[u8]) -> (&[u8], &[u8]) {
    match path.iter().rposition(|byte| *byte == b'/') {
        Some(slash) => (&path[..slash], &path[slash + 1..]),
        None => (b"", b""),
    }
}

/// A canonical path as users write it: the root is `/`.
pub(crate) fn shown(path: &[u8]) -> &[u8] {
    if path.is_empty() { b"/" } else { path }
}
