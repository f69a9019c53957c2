//! A tree in memory: a complete filesystem that can be written, and what read-only archives are filled into.
//!
//! Locks, in the order in which they are taken: the *names* (all directories and the table of nodes: one lock for the tree),
//! then one *node* (attributes and content), never two. What happens inside one file takes no lock of another.
//!
//! A node lives while it has a name, references or an open file: an entry of the table stands for the first two,
//! an `Arc` for the last.
//!
//! # Limits
//!
//! Space is promised (`fallocate`) only in a tree with a limit; ranges are not collapsed or inserted (`EOPNOTSUPP`). Attributes
//! of a node hold 128 KiB in all (`ENOSPC`) and count towards no limit. There are no ACLs.

mod builder;
mod content;
mod names;
mod node;

use std::ffi::{OsStr, OsString};
use std::ops::ControlFlow;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use parking_lot::RwLock;
use veduta_api::{
    Attr, Caching, DirEntry, DirSink, Entry, Errno, Facts, File, Filesystem, Ino, Kind, NewNode, OpenFlags,
    Perm, RenameFlags, Result, SetAttr, StatFs, Timestamp, XattrMode,
};

pub use builder::{Builder, Data};
pub use content::Source;

use content::{Budget, Content, PAGE};
use names::Names;
use node::{Body, Node, OpenFile};

/// `TMPFS_MAGIC`
const MAGIC: u32 = 0x0102_1994;
/// Bytes; names and values of all attributes of one node.
const MAX_XATTRS: usize = 128 << 10;

/// How a tree in memory is to be.
#[derive(Clone, Copy, Debug)]
pub struct Setup {
    /// What the tree says of itself. [`Caching::Immutable`] makes every change give `EROFS`.
    pub facts: Facts,
    /// The attributes of the root, a directory. An `st_ino` of 0 stands for the node's own number, as everywhere here.
    pub root: Attr,
    /// Bytes; the memory that contents may take.
    pub limit: Option<u64>,
}

impl Default for Setup {
    /// A tree that can be written, without a limit, whose root is root's, of mode 755 and made now.
    fn default() -> Self {
        let now = Timestamp::now();
        let root = Attr::new(0, Kind::Directory, Perm::from_mode(0o755));
        let root = Attr { atime: now, mtime: now, ctime: now, btime: Some(now), ..root };
        Self { facts: Facts::default(), root, limit: None }
    }
}

/// See the head of this file.
pub struct Memory {
    facts: Facts,
    budget: Arc<Budget>,
    names: RwLock<Names>,
}

impl Memory {
    /// An empty tree.
    pub fn new(setup: &Setup) -> Self {
        let budget = Arc::new(Budget::new(setup.limit.map(|bytes| bytes / PAGE)));
        let root = Attr { kind: Kind::Directory, nlink: 2, ..setup.root };
        let root = Arc::new(Node::new(Ino::ROOT.0, &root, Body::Other));
        Self { facts: setup.facts, budget, names: RwLock::new(Names::new(root)) }
    }

    fn is_immutable(&self) -> bool {
        self.facts.caching == Caching::Immutable
    }

    fn check_writable(&self) -> Result<()> {
        if self.is_immutable() { Err(Errno::EROFS) } else { Ok(()) }
    }

    fn node(&self, ino: Ino) -> Result<Arc<Node>> {
        self.names.read().node(ino.0).map(Arc::clone)
    }

    fn open_node(&self, node: &Arc<Node>) -> Arc<dyn File> {
        Arc::new(OpenFile {
            node: Arc::clone(node),
            is_immutable: self.is_immutable(),
            is_limited: self.budget.limit.is_some(),
        })
    }

    /// Makes a node, with a name if there is one, and takes a reference.
    fn make(&self, parent: Ino, name: Option<&OsStr>, attr: &Attr, body: Body) -> Result<Arc<Node>> {
        let mut names = self.names.write();
        let node = add(&mut names, parent, name, attr, body)?;
        names.node(parent.0)?.content_changed();
        node.add_reference();
        Ok(node)
    }
}

/// Adds a node, and counts its names; touches no time.
fn add(names: &mut Names, parent: Ino, name: Option<&OsStr>, attr: &Attr, body: Body) -> Result<Arc<Node>> {
    match name {
        Some(name) => names.check_free(parent.0, name)?,
        None => drop(names.parent(parent.0)?),
    }
    let is_dir = attr.kind == Kind::Directory;
    let nlink = if is_dir { 2 } else { u32::from(name.is_some()) };
    let node = Arc::new(Node::new(names.fresh_ino(), &Attr { nlink, ..*attr }, body));
    names.add(Arc::clone(&node), is_dir, parent.0);
    if let Some(name) = name {
        names.put(parent.0, name, node.ino)?;
    }
    if is_dir {
        names.node(parent.0)?.inner.write().attr.nlink += 1;
    }
    Ok(node)
}

/// A node lost a name, which the caller has taken out of its directory: the node goes too if nothing else holds it.
fn drop_name(names: &mut Names, parent: u64, ino: u64) -> Result<()> {
    let node = Arc::clone(names.node(ino)?);
    if names.is_dir(ino) {
        names.mark_removed(ino);
        node.change_links(|_| 0);
        names.node(parent)?.change_links(|links| links.saturating_sub(1));
    } else {
        node.change_links(|links| links.saturating_sub(1));
    }
    if node.is_unused() {
        names.drop_node(ino);
    }
    Ok(())
}

/// The attributes of a node that somebody makes now.
fn new_attr(new: &NewNode) -> Attr {
    let now = Timestamp::now();
    let attr = Attr::new(0, new.kind, new.masked());
    let (uid, gid, rdev) = (new.uid, new.gid, new.rdev);
    Attr { uid, gid, rdev, atime: now, mtime: now, ctime: now, btime: Some(now), ..attr }
}

fn entry(node: &Node) -> Entry {
    Entry { ino: Ino(node.ino), generation: 0, attr: node.attr() }
}

impl Filesystem for Memory {
    fn facts(&self) -> Facts {
        self.facts
    }

    fn lookup(&self, parent: Ino, name: &OsStr) -> Result<Entry> {
        let names = self.names.read();
        let node = names.node(names.find(parent.0, name)?)?;
        node.add_reference();
        Ok(entry(node))
    }

    fn getattr(&self, ino: Ino) -> Result<Attr> {
        Ok(self.node(ino)?.attr())
    }

    fn readdir(&self, dir: Ino, position: u64, sink: &mut DirSink<'_>) -> Result<()> {
        let names = self.names.read();
        for (position, name, ino) in names.entries(dir.0, position)? {
            let node = names.node(ino)?;
            let listed = DirEntry {
                name,
                ino: Some(Ino(ino)),
                st_ino: node.st_ino,
                kind: Some(node.kind),
                next: position,
            };
            if sink(listed) == ControlFlow::Break(()) {
                break;
            }
        }
        Ok(())
    }

    fn open(&self, ino: Ino, _flags: OpenFlags) -> Result<Arc<dyn File>> {
        let node = self.node(ino)?;
        Ok(self.open_node(&node))
    }

    fn parent(&self, dir: Ino) -> Result<Ino> {
        self.names.read().parent(dir.0).map(Ino)
    }

    fn readlink(&self, ino: Ino) -> Result<OsString> {
        match &self.node(ino)?.inner.read().body {
            Body::Symlink(target) => Ok(target.clone()),
            _ => Err(Errno::EINVAL),
        }
    }

    /// Without a limit no sizes are known, and none are shown (as tmpfs does).
    fn statfs(&self) -> Result<StatFs> {
        let blocks = self.budget.limit.unwrap_or(0);
        let free = blocks.saturating_sub(self.budget.used());
        Ok(StatFs {
            block_size: PAGE as u32,
            blocks,
            blocks_free: free,
            blocks_available: free,
            magic: MAGIC,
            ..StatFs::default()
        })
    }

    fn forget(&self, ino: Ino, count: u64) {
        let Ok(node) = self.node(ino) else { return };
        let less = |references: u64| Some(references.saturating_sub(count));
        // The closure never refuses.
        let _ = node.references.fetch_update(Ordering::Relaxed, Ordering::Relaxed, less);
        if node.is_unused() {
            // Asked again under the lock: until it was taken, somebody may have given the node a name or a reference.
            let mut names = self.names.write();
            if node.is_unused() {
                names.drop_node(ino.0);
            }
        }
    }

    fn setattr(&self, ino: Ino, changes: &SetAttr) -> Result<Attr> {
        self.check_writable()?;
        self.node(ino)?.set_attr(changes)
    }

    fn create(
        &self,
        parent: Ino,
        name: &OsStr,
        new: &NewNode,
        _flags: OpenFlags,
    ) -> Result<(Entry, Arc<dyn File>)> {
        self.check_writable()?;
        let body = Body::File(Content::new(Arc::clone(&self.budget)));
        let node = self.make(parent, Some(name), &new_attr(new), body)?;
        Ok((entry(&node), self.open_node(&node)))
    }

    fn mknod(&self, parent: Ino, name: &OsStr, new: &NewNode) -> Result<Entry> {
        self.check_writable()?;
        let body = match new.kind {
            Kind::File => Body::File(Content::new(Arc::clone(&self.budget))),
            _ => Body::Other,
        };
        Ok(entry(&*self.make(parent, Some(name), &new_attr(new), body)?))
    }

    fn mkdir(&self, parent: Ino, name: &OsStr, new: &NewNode) -> Result<Entry> {
        self.check_writable()?;
        let attr = Attr { kind: Kind::Directory, ..new_attr(new) };
        Ok(entry(&*self.make(parent, Some(name), &attr, Body::Other)?))
    }

    fn symlink(&self, parent: Ino, name: &OsStr, target: &OsStr, new: &NewNode) -> Result<Entry> {
        self.check_writable()?;
        let attr = Attr { kind: Kind::Symlink, perm: Perm::from_mode(0o777), ..new_attr(new) };
        Ok(entry(&*self.make(parent, Some(name), &attr, Body::Symlink(target.to_owned()))?))
    }

    /// A node whose last name is gone cannot get a new one (`ENOENT`), except one that never had any.
    fn link(&self, ino: Ino, parent: Ino, name: &OsStr) -> Result<Entry> {
        self.check_writable()?;
        let mut names = self.names.write();
        let node = Arc::clone(names.node(ino.0)?);
        if names.is_dir(ino.0) {
            return Err(Errno::EPERM);
        }
        names.check_free(parent.0, name)?;
        if node.inner.read().attr.nlink == 0 && !names.is_nameless(ino.0) {
            return Err(Errno::ENOENT);
        }
        names.put(parent.0, name, ino.0)?;
        node.change_links(|links| links + 1);
        names.node(parent.0)?.content_changed();
        node.add_reference();
        Ok(entry(&node))
    }

    fn tmpfile(&self, parent: Ino, new: &NewNode, _flags: OpenFlags) -> Result<(Entry, Arc<dyn File>)> {
        self.check_writable()?;
        let body = Body::File(Content::new(Arc::clone(&self.budget)));
        let mut names = self.names.write();
        let node = add(&mut names, parent, None, &new_attr(new), body)?;
        names.mark_nameless(node.ino);
        node.add_reference();
        Ok((entry(&node), self.open_node(&node)))
    }

    fn unlink(&self, parent: Ino, name: &OsStr) -> Result<()> {
        self.check_writable()?;
        let mut names = self.names.write();
        let ino = names.find(parent.0, name)?;
        if names.is_dir(ino) {
            return Err(Errno::EISDIR);
        }
        names.take(parent.0, name);
        drop_name(&mut names, parent.0, ino)?;
        names.node(parent.0)?.content_changed();
        Ok(())
    }

    fn rmdir(&self, parent: Ino, name: &OsStr) -> Result<()> {
        self.check_writable()?;
        let mut names = self.names.write();
        let ino = names.find(parent.0, name)?;
        if !names.is_dir(ino) {
            return Err(Errno::ENOTDIR);
        }
        if !names.is_empty(ino) {
            return Err(Errno::ENOTEMPTY);
        }
        names.take(parent.0, name);
        drop_name(&mut names, parent.0, ino)?;
        names.node(parent.0)?.content_changed();
        Ok(())
    }

    /// The order of the checks is the kernel's (`do_renameat2`, then `vfs_rename`).
    fn rename(
        &self,
        parent: Ino,
        name: &OsStr,
        new_parent: Ino,
        new_name: &OsStr,
        flags: RenameFlags,
    ) -> Result<()> {
        self.check_writable()?;
        if flags.exchange && (flags.no_replace || flags.whiteout) {
            return Err(Errno::EINVAL);
        }
        let mut names = self.names.write();
        let moved = names.find(parent.0, name)?;
        let target = names.try_find(new_parent.0, new_name);
        match target {
            Some(_) if flags.no_replace => return Err(Errno::EEXIST),
            None if flags.exchange => return Err(Errno::ENOENT),
            None => names.check_free(new_parent.0, new_name)?,
            Some(_) => {}
        }
        if names.is_dir(moved) && names.is_within(new_parent.0, moved) {
            return Err(Errno::EINVAL);
        }
        if target.is_some_and(|target| names.is_dir(target) && names.is_within(parent.0, target)) {
            return Err(if flags.exchange { Errno::EINVAL } else { Errno::ENOTEMPTY });
        }
        if target == Some(moved) {
            return Ok(());
        }
        if let (Some(target), false) = (target, flags.exchange) {
            check_replace(&names, moved, target)?;
        }
        if let (Some(target), true) = (target, flags.exchange) {
            names.put(parent.0, name, target)?;
            names.put(new_parent.0, new_name, moved)?;
            count_move(&names, target, new_parent.0, parent.0)?;
        } else {
            names.take(parent.0, name);
            names.put(new_parent.0, new_name, moved)?;
            if let Some(target) = target {
                drop_name(&mut names, new_parent.0, target)?;
            }
        }
        count_move(&names, moved, parent.0, new_parent.0)?;
        if flags.whiteout {
            let now = Timestamp::now();
            let whiteout = Attr::new(0, Kind::CharDevice, Perm::from_mode(0));
            let whiteout = Attr { atime: now, mtime: now, ctime: now, btime: Some(now), ..whiteout };
            add(&mut names, parent, Some(name), &whiteout, Body::Other)?;
        }
        for changed in [parent.0, new_parent.0] {
            names.node(changed)?.content_changed();
        }
        Ok(())
    }

    fn getxattr(&self, ino: Ino, name: &OsStr) -> Result<Vec<u8>> {
        check_xattr_name(name)?;
        let node = self.node(ino)?;
        let inner = node.inner.read();
        inner.xattrs.get(name).cloned().ok_or(Errno::ENODATA)
    }

    fn listxattr(&self, ino: Ino) -> Result<Vec<OsString>> {
        Ok(self.node(ino)?.inner.read().xattrs.keys().cloned().collect())
    }

    fn setxattr(&self, ino: Ino, name: &OsStr, value: &[u8], mode: XattrMode) -> Result<()> {
        self.check_writable()?;
        check_xattr_name(name)?;
        let node = self.node(ino)?;
        let mut inner = node.inner.write();
        match (mode, inner.xattrs.contains_key(name)) {
            (XattrMode::Create, true) => return Err(Errno::EEXIST),
            (XattrMode::Replace, false) => return Err(Errno::ENODATA),
            _ => {}
        }
        let others = inner.xattrs.iter().filter(|(other, _)| *other != name);
        let taken: usize = others.map(|(name, value)| name.len() + value.len()).sum();
        if taken + name.len() + value.len() > MAX_XATTRS {
            return Err(Errno::ENOSPC);
        }
        inner.xattrs.insert(name.to_owned(), value.to_owned());
        inner.attr.ctime = Timestamp::now();
        Ok(())
    }

    fn removexattr(&self, ino: Ino, name: &OsStr) -> Result<()> {
        self.check_writable()?;
        check_xattr_name(name)?;
        let node = self.node(ino)?;
        let mut inner = node.inner.write();
        inner.xattrs.remove(name).ok_or(Errno::ENODATA)?;
        inner.attr.ctime = Timestamp::now();
        Ok(())
    }
}

/// Whether `moved` may take the place of `target`.
fn check_replace(names: &Names, moved: u64, target: u64) -> Result<()> {
    match (names.is_dir(moved), names.is_dir(target)) {
        (true, false) => Err(Errno::ENOTDIR),
        (false, true) => Err(Errno::EISDIR),
        (true, true) if !names.is_empty(target) => Err(Errno::ENOTEMPTY),
        _ => Ok(()),
    }
}

/// A node went from one directory to another: a directory's `..` counts as a name of its parent.
fn count_move(names: &Names, ino: u64, from: u64, to: u64) -> Result<()> {
    if names.is_dir(ino) && from != to {
        names.node(from)?.change_links(|links| links.saturating_sub(1));
        names.node(to)?.change_links(|links| links + 1);
    }
    names.node(ino)?.inner.write().attr.ctime = Timestamp::now();
    Ok(())
}

/// Values of `system.` mean something to the kernel that nothing here obeys.
fn check_xattr_name(name: &OsStr) -> Result<()> {
    let name = name.as_encoded_bytes();
    let is_known = [&b"user."[..], b"trusted.", b"security."].iter().any(|prefix| name.starts_with(prefix));
    if is_known { Ok(()) } else { Err(Errno::EOPNOTSUPP) }
}
