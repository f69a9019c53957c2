//! Passthrough: files whose data the kernel reads and writes in a real file, without asking.
//!
//! The kernel's rules: all files that are open at one time on one node use the same registration of a backing
//! file, and none of them the page cache; reading past the cache is allowed beside. So there is a
//! record of each node that is open, and the first one to open decides.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use fuser::BackingId;
use parking_lot::Mutex;
use veduta_api::Ino;

use crate::handles::DataPath;

pub(crate) struct Backings {
    nodes: Mutex<HashMap<Ino, Node>>,
    /// The kernel does not let us (it wants CAP_SYS_ADMIN in the initial user namespace), or cannot.
    refused: AtomicBool,
}

/// A node that is open.
#[derive(Default)]
struct Node {
    /// Files that use the page cache.
    cached: usize,
    /// Files that use the backing file.
    passing: usize,
    backing: Option<Arc<BackingId>>,
}

impl Backings {
    pub(crate) fn new() -> Self {
        Self { nodes: Mutex::default(), refused: AtomicBool::new(false) }
    }

    /// From now on nothing is registered.
    pub(crate) fn give_up(&self) {
        self.refused.store(true, Ordering::Relaxed);
    }

    /// A file is opened on `ino`; `register` registers its backing file, if it has one. `direct`: it must not use the page
    /// cache. Ends with [`leave`](Self::leave).
    pub(crate) fn enter(
        &self,
        ino: Ino,
        direct: bool,
        register: impl FnOnce() -> Option<BackingId>,
    ) -> DataPath {
        let mut nodes = self.nodes.lock();
        let node = nodes.entry(ino).or_default();
        if node.cached == 0 && node.backing.is_none() && !self.refused.load(Ordering::Relaxed) {
            node.backing = register().map(Arc::new);
        }
        let path = match &node.backing {
            Some(backing) => {
                node.passing += 1;
                DataPath::Backing(backing.clone())
            }
            None if direct => DataPath::Direct,
            None => {
                node.cached += 1;
                DataPath::Cached
            }
        };
        if node.cached + node.passing == 0 {
            nodes.remove(&ino);
        }
        path
    }

    /// The file is closed.
    pub(crate) fn leave(&self, ino: Ino, path: &DataPath) {
        let mut nodes = self.nodes.lock();
        let Some(node) = nodes.get_mut(&ino) else { return };
        match path {
            DataPath::Cached => node.cached = node.cached.saturating_sub(1),
            DataPath::Backing(_) => node.passing = node.passing.saturating_sub(1),
            DataPath::Direct => {}
        }
        if node.cached + node.passing == 0 {
            nodes.remove(&ino);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn while_one_file_uses_the_cache_all_do() {
        let backings = Backings::new();
        let ino = Ino(5);
        let first = backings.enter(ino, false, || None);
        assert!(matches!(first, DataPath::Cached));
        let second = backings.enter(ino, false, || panic!("must not be asked for"));
        assert!(matches!(second, DataPath::Cached));
        backings.leave(ino, &first);
        backings.leave(ino, &second);
        assert!(backings.nodes.lock().is_empty());
    }

    #[test]
    fn what_the_kernel_refused_is_not_asked_again() {
        let backings = Backings::new();
        backings.give_up();
        let path = backings.enter(Ino(5), true, || panic!("must not be asked for"));
        assert!(matches!(path, DataPath::Direct));
        assert!(backings.nodes.lock().is_empty());
    }
}
