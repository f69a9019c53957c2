//! The names of a tree in memory: all its directories, under the one lock of [`Memory`](super::Memory).

use std::collections::{BTreeMap, HashMap, HashSet};
use std::ffi::OsStr;
use std::sync::Arc;

use veduta_api::{Errno, Result};

use super::node::Node;

/// All nodes, and the entries of those that are directories.
pub(super) struct Names {
    pub(super) nodes: HashMap<u64, Arc<Node>>,
    dirs: HashMap<u64, Dir>,
    /// Files that never had a name (`O_TMPFILE`), and may still get one.
    nameless: HashSet<u64>,
    next_ino: u64,
}

struct Dir {
    parent: u64,
    /// It was deleted, and is only still referred to.
    removed: bool,
    by_name: HashMap<Arc<OsStr>, u64>,
    /// By the position in a listing, which no other entry ever gets.
    entries: BTreeMap<u64, (Arc<OsStr>, u64)>,
    next_position: u64,
}

impl Dir {
    fn new(parent: u64) -> Self {
        let (by_name, entries) = (HashMap::new(), BTreeMap::new());
        Self { parent, removed: false, by_name, entries, next_position: 1 }
    }
}

impl Names {
    pub(super) fn new(root: Arc<Node>) -> Self {
        let ino = root.ino;
        let (nodes, dirs) = (HashMap::from([(ino, root)]), HashMap::from([(ino, Dir::new(ino))]));
        Self { nodes, dirs, nameless: HashSet::new(), next_ino: ino + 1 }
    }

    pub(super) fn fresh_ino(&mut self) -> u64 {
        self.next_ino += 1;
        self.next_ino - 1
    }

    /// `ESTALE` if it is gone.
    pub(super) fn node(&self, ino: u64) -> Result<&Arc<Node>> {
        self.nodes.get(&ino).ok_or(Errno::ESTALE)
    }

    fn dir(&self, ino: u64) -> Result<&Dir> {
        self.dirs.get(&ino).ok_or(if self.nodes.contains_key(&ino) { Errno::ENOTDIR } else { Errno::ESTALE })
    }

    /// A directory that entries may be added to: `ENOENT` if it was deleted.
    fn living_dir(&mut self, ino: u64) -> Result<&mut Dir> {
        self.dir(ino)?;
        self.dirs.get_mut(&ino).filter(|dir| !dir.removed).ok_or(Errno::ENOENT)
    }

    pub(super) fn is_dir(&self, ino: u64) -> bool {
        self.dirs.contains_key(&ino)
    }

    pub(super) fn is_empty(&self, dir: u64) -> bool {
        self.dirs.get(&dir).is_none_or(|dir| dir.entries.is_empty())
    }

    pub(super) fn parent(&self, dir: u64) -> Result<u64> {
        Ok(self.dir(dir)?.parent)
    }

    /// Whether `ino` is `ancestor` or lies below it. Directories form a tree, so the climb ends at the root.
    pub(super) fn is_within(&self, mut ino: u64, ancestor: u64) -> bool {
        while ino != ancestor {
            match self.dirs.get(&ino) {
                Some(dir) if dir.parent != ino => ino = dir.parent,
                _ => return false,
            }
        }
        true
    }

    /// `ENOENT` if there is no such entry.
    pub(super) fn find(&self, dir: u64, name: &OsStr) -> Result<u64> {
        self.dir(dir)?;
        self.try_find(dir, name).ok_or(Errno::ENOENT)
    }

    pub(super) fn try_find(&self, dir: u64, name: &OsStr) -> Option<u64> {
        let dir = self.dirs.get(&dir)?;
        let position = dir.by_name.get(name)?;
        dir.entries.get(position).map(|(_, ino)| *ino)
    }

    /// The entries behind a position, each with its own.
    pub(super) fn entries(
        &self,
        dir: u64,
        position: u64,
    ) -> Result<impl Iterator<Item = (u64, &OsStr, u64)>> {
        let behind = self.dir(dir)?.entries.range(position.saturating_add(1)..);
        Ok(behind.map(|(position, (name, ino))| (*position, &**name, *ino)))
    }

    /// Whether an entry of this name could be made: `EEXIST`, `ENOENT` if the directory was deleted.
    pub(super) fn check_free(&mut self, dir: u64, name: &OsStr) -> Result<()> {
        let is_taken = self.living_dir(dir)?.by_name.contains_key(name);
        if is_taken { Err(Errno::EEXIST) } else { Ok(()) }
    }

    /// Adds an entry, or has the one of this name lead to `ino`.
    pub(super) fn put(&mut self, dir: u64, name: &OsStr, ino: u64) -> Result<()> {
        self.nameless.remove(&ino);
        let entries = self.living_dir(dir)?;
        if let Some((_, there)) = entries.by_name.get(name).and_then(|at| entries.entries.get_mut(at)) {
            *there = ino;
        } else {
            let position = entries.next_position;
            entries.next_position += 1;
            let name: Arc<OsStr> = Arc::from(name);
            entries.by_name.insert(Arc::clone(&name), position);
            entries.entries.insert(position, (name, ino));
        }
        if let Some(moved) = self.dirs.get_mut(&ino) {
            moved.parent = dir;
        }
        Ok(())
    }

    pub(super) fn take(&mut self, dir: u64, name: &OsStr) {
        let Some(dir) = self.dirs.get_mut(&dir) else { return };
        if let Some(position) = dir.by_name.remove(name) {
            dir.entries.remove(&position);
        }
    }

    /// Adds a node that no entry leads to yet.
    pub(super) fn add(&mut self, node: Arc<Node>, is_dir: bool, parent: u64) {
        if is_dir {
            self.dirs.insert(node.ino, Dir::new(parent));
        }
        self.nodes.insert(node.ino, node);
    }

    pub(super) fn mark_nameless(&mut self, ino: u64) {
        self.nameless.insert(ino);
    }

    pub(super) fn is_nameless(&self, ino: u64) -> bool {
        self.nameless.contains(&ino)
    }

    pub(super) fn mark_removed(&mut self, dir: u64) {
        if let Some(dir) = self.dirs.get_mut(&dir) {
            dir.removed = true;
        }
    }

    pub(super) fn drop_node(&mut self, ino: u64) {
        self.nodes.remove(&ino);
        self.dirs.remove(&ino);
        self.nameless.remove(&ino);
    }
}
