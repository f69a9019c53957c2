//! The nodes that a host knows of, and their numbers.
//!
//! A node's number is, as long as nothing was renamed, the place of its main slot on the disk, in slots: so it is the same
//! whenever it is looked up. A renamed file keeps its number; its new place is remembered ([`Nodes::moved`]), and the
//! number is kept from whatever takes the old place ([`Nodes::away`]).

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use parking_lot::RwLock;
use veduta_api::Ino;

use crate::runs::Runs;
use crate::slots::Record;

/// Numbers from here on are places of no slot.
const FRESH: u64 = 1 << 60;

/// A node: a file or a directory that somebody uses.
pub(crate) struct Node {
    pub(crate) ino: u64,
    pub(crate) is_dir: bool,
    pub(crate) inner: RwLock<Inner>,
}

/// What of a node may change.
pub(crate) struct Inner {
    pub(crate) record: Record,
    /// Where the slots of its set lie; none for the root, and for a node without a name.
    pub(crate) slots: Vec<u64>,
    /// Its clusters, once somebody needed them.
    pub(crate) runs: Option<Runs>,
    /// The directory that has its name.
    pub(crate) parent: u64,
    /// Whether its name is gone.
    pub(crate) unlinked: bool,
    /// Whether its name is that of a program.
    pub(crate) program: bool,
}

struct Live {
    node: Arc<Node>,
    parent: u64,
    /// References of the host.
    refs: u64,
    /// Open files.
    opens: u64,
    /// Live nodes in this directory.
    children: u64,
}

/// All of them.
#[derive(Default)]
pub(crate) struct Nodes {
    live: HashMap<u64, Live>,
    /// Numbers of files whose place is not their number, by place.
    moved: HashMap<u64, u64>,
    /// Numbers in use that are the place of something else, or of nothing.
    away: HashSet<u64>,
    fresh: u64,
}

impl Nodes {
    /// The number of the file whose main slot is at this byte of the disk.
    pub(crate) fn number(&self, main: u64) -> u64 {
        let place = main / 32;
        self.moved.get(&place).copied().unwrap_or(place)
    }

    /// The number of a file that was just made there.
    pub(crate) fn number_new(&mut self, main: u64) -> u64 {
        let place = main / 32;
        self.moved.remove(&place);
        if self.away.contains(&place) {
            self.fresh += 1;
            self.moved.insert(place, FRESH + self.fresh);
        }
        self.number(main)
    }

    pub(crate) fn find(&self, ino: Ino) -> Option<Arc<Node>> {
        self.live.get(&ino.0).map(|live| Arc::clone(&live.node))
    }

    /// A node that lives, with one more reference.
    pub(crate) fn take(&mut self, ino: u64) -> Option<Arc<Node>> {
        let live = self.live.get_mut(&ino)?;
        live.refs += 1;
        Some(Arc::clone(&live.node))
    }

    /// Takes in a new node, with `refs` references. Its parent lives.
    pub(crate) fn adopt(&mut self, node: Arc<Node>, parent: u64, refs: u64) {
        if let Some(parent) = self.live.get_mut(&parent) {
            parent.children += 1;
        }
        self.live.insert(node.ino, Live { node, parent, refs, opens: 0, children: 0 });
    }

    pub(crate) fn open(&mut self, ino: u64) {
        if let Some(live) = self.live.get_mut(&ino) {
            live.opens += 1;
        }
    }

    /// How many open files there are on a node.
    pub(crate) fn opens(&self, ino: u64) -> u64 {
        self.live.get(&ino).map_or(0, |live| live.opens)
    }

    /// One open file less. Gives the nodes that nobody uses any more.
    pub(crate) fn close(&mut self, ino: u64) -> Vec<Arc<Node>> {
        if let Some(live) = self.live.get_mut(&ino) {
            live.opens = live.opens.saturating_sub(1);
        }
        self.sweep(ino)
    }

    /// Takes references back. Gives the nodes that nobody uses any more.
    pub(crate) fn forget(&mut self, ino: u64, count: u64) -> Vec<Arc<Node>> {
        if let Some(live) = self.live.get_mut(&ino) {
            live.refs = live.refs.saturating_sub(count);
        }
        self.sweep(ino)
    }

    /// Drops the node if nobody uses it, then its parent, and so on: each step drops one, so this ends.
    fn sweep(&mut self, mut ino: u64) -> Vec<Arc<Node>> {
        let mut gone = Vec::new();
        while ino != Ino::ROOT.0 {
            let Some(live) = self.live.get(&ino) else { break };
            if live.refs > 0 || live.opens > 0 || live.children > 0 {
                break;
            }
            let Some(live) = self.live.remove(&ino) else { break };
            if let Some(parent) = self.live.get_mut(&live.parent) {
                parent.children = parent.children.saturating_sub(1);
            } else {
                // Without a name: its number is free.
                self.away.remove(&ino);
            }
            gone.push(live.node);
            ino = live.parent;
        }
        gone
    }

    /// A file moved to another place, maybe in another directory.
    pub(crate) fn rename(&mut self, ino: u64, from: u64, to: u64, parent: u64) {
        let (from, to) = (from / 32, to / 32);
        self.moved.remove(&from);
        if ino == to {
            self.moved.remove(&to);
            self.away.remove(&ino);
        } else {
            self.moved.insert(to, ino);
            self.away.insert(ino);
        }
        let Some(live) = self.live.get_mut(&ino) else { return };
        let old = std::mem::replace(&mut live.parent, parent);
        if let Some(old) = self.live.get_mut(&old) {
            old.children = old.children.saturating_sub(1);
        }
        if let Some(new) = self.live.get_mut(&parent) {
            new.children += 1;
        }
        self.sweep(old);
    }

    /// A file lost its name. It keeps its number as long as somebody uses it.
    pub(crate) fn unlink(&mut self, ino: u64, main: u64) {
        self.moved.remove(&(main / 32));
        let Some(live) = self.live.get_mut(&ino) else {
            self.away.remove(&ino);
            return;
        };
        self.away.insert(ino);
        let old = std::mem::replace(&mut live.parent, 0);
        if let Some(old) = self.live.get_mut(&old) {
            old.children = old.children.saturating_sub(1);
        }
        self.sweep(old);
    }

    /// All that live.
    pub(crate) fn all(&self) -> Vec<Arc<Node>> {
        self.live.values().map(|live| Arc::clone(&live.node)).collect()
    }
}
