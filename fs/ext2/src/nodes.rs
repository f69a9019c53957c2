//! The nodes that a host knows of: references, open files, and a lock for the content of each.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use parking_lot::{Mutex, RwLock};
use veduta_api::Errno;

use crate::held::Held;

/// A node that somebody uses.
#[derive(Debug)]
pub(crate) struct Node {
    pub(crate) ino: u32,
    /// Held for reading while content is read, for writing while it is changed.
    pub(crate) lock: RwLock<()>,
    /// What was added to it and has no blocks yet.
    pub(crate) held: Mutex<Option<Held>>,
    /// Content that was accepted could not be written; for who asks next.
    pub(crate) failed: Mutex<Option<Errno>>,
    version: AtomicU64,
}

impl Node {
    /// Counts up with each change of content. Asked with the lock held.
    pub(crate) fn version(&self) -> u64 {
        self.version.load(Ordering::Acquire)
    }

    /// Content, or where it is, has changed. Called with the lock held for writing.
    pub(crate) fn changed(&self) {
        self.version.fetch_add(1, Ordering::AcqRel);
    }
}

#[derive(Debug)]
struct Use {
    node: Arc<Node>,
    references: u64,
    opens: u64,
    nameless: bool,
}

/// All of them, by inode.
#[derive(Debug, Default)]
pub(crate) struct Nodes(Mutex<HashMap<u32, Use>>);

impl Nodes {
    /// The node of an inode.
    pub(crate) fn node(&self, ino: u32) -> Arc<Node> {
        self.with(ino, |held| Arc::clone(&held.node))
    }

    /// One more reference.
    pub(crate) fn refer(&self, ino: u32) {
        self.with(ino, |held| held.references += 1);
    }

    /// One more open file.
    pub(crate) fn open(&self, ino: u32) -> Arc<Node> {
        self.with(ino, |held| {
            held.opens += 1;
            Arc::clone(&held.node)
        })
    }

    /// The last name of a node is gone: whether nobody uses it any more.
    pub(crate) fn lose_name(&self, ino: u32) -> bool {
        self.with(ino, |held| held.nameless = true);
        self.sweep(ino, 0)
    }

    /// A node without a name has one again.
    pub(crate) fn find_name(&self, ino: u32) {
        if let Some(held) = self.0.lock().get_mut(&ino) {
            held.nameless = false;
        }
    }

    /// References are given back: whether it was the last use of a node without a name.
    pub(crate) fn forget(&self, ino: u32, count: u64) -> bool {
        self.with(ino, |held| held.references = held.references.saturating_sub(count));
        self.sweep(ino, 0)
    }

    /// A file is closed, which still has the node: whether it was the last use of a node without a name.
    pub(crate) fn close(&self, ino: u32) -> bool {
        self.with(ino, |held| held.opens = held.opens.saturating_sub(1));
        self.sweep(ino, 1)
    }

    /// Whether one file of a node is open, and whether the node has no name.
    pub(crate) fn last_open(&self, ino: u32) -> (bool, bool) {
        self.0.lock().get(&ino).map_or((true, false), |held| (held.opens <= 1, held.nameless))
    }

    fn with<T>(&self, ino: u32, call: impl FnOnce(&mut Use) -> T) -> T {
        let mut all = self.0.lock();
        call(all.entry(ino).or_insert_with(|| Use {
            node: Arc::new(Node {
                ino,
                lock: RwLock::new(()),
                held: Mutex::new(None),
                failed: Mutex::new(None),
                version: AtomicU64::new(0),
            }),
            references: 0,
            opens: 0,
            nameless: false,
        }))
    }

    /// `own`: how often whoever asks has the node.
    fn sweep(&self, ino: u32, own: usize) -> bool {
        let mut all = self.0.lock();
        let unused = all.get(&ino).is_some_and(|held| held.references == 0 && held.opens == 0);
        // Who holds the node itself still needs its lock.
        let alone = all.get(&ino).is_some_and(|held| Arc::strong_count(&held.node) == 1 + own);
        let nameless = all.get(&ino).is_some_and(|held| held.nameless);
        if unused && alone {
            all.remove(&ino);
        }
        unused && nameless
    }
}
