//! The nodes that hosts have been told of: what they are made of, where they were seen, who refers to them.
//!
//! A node is known by its topmost part, a node of one layer; parts that it gets or loses later lead to it too. It stays while a
//! host refers to it, or a node below it does.

use std::collections::HashMap;
use std::ffi::{OsStr, OsString};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};

use parking_lot::{Mutex, RwLock};
use veduta_api::{Device, Errno, Ino, Kind, Result};

use crate::points::Points;

/// The number of a layer; 0 is on top.
pub(crate) type LayerNumber = u16;

/// A part of a node: a node of one layer, to which the tree holds a reference.
#[derive(Clone, Debug)]
pub(crate) struct Part {
    pub(crate) layer: LayerNumber,
    pub(crate) ino: Ino,
    /// Of a directory, where it lies in the layer: `/a/b`, empty for the root.
    pub(crate) path: Arc<OsStr>,
    /// It may hold whiteouts that are attributes.
    pub(crate) has_xattr_whiteouts: bool,
    /// Where a store of the family (`.-`) says what is deleted here: a layer, this one or one above it, and the directory there.
    pub(crate) store: Option<(LayerNumber, Ino)>,
}

/// What a node is made of.
#[derive(Clone, Debug)]
pub(crate) struct Parts {
    /// The topmost first. It has the attributes; of a directory all are listed.
    pub(crate) stack: Vec<Part>,
    /// Which part has the content.
    pub(crate) data: usize,
}

impl Parts {
    pub(crate) fn top(&self) -> &Part {
        &self.stack[0]
    }
    pub(crate) fn content(&self) -> &Part {
        self.stack.get(self.data).unwrap_or(&self.stack[0])
    }
    pub(crate) fn in_layer(&self, layer: LayerNumber) -> Option<&Part> {
        self.stack.iter().find(|part| part.layer == layer)
    }
}

pub(crate) struct Node {
    pub(crate) ino: Ino,
    pub(crate) kind: Kind,
    /// What users see as its number, for as long as it lives.
    pub(crate) st_ino: u64,
    /// What they see in a view that puts numbers right: number and device of what it was when it was first seen.
    pub(crate) shown: (u64, Option<Device>),
    parts: RwLock<Arc<Parts>>,
    /// Held while it is copied up.
    pub(crate) copying: Mutex<()>,
    /// Held while names in this directory change.
    pub(crate) names: Mutex<()>,
    /// What lies specially in this directory.
    pub(crate) points: Option<Arc<Points>>,
    /// The layer that takes the changes; `None` if nothing may be changed.
    pub(crate) write_to: Option<LayerNumber>,
    /// Its directory in the upper layer is marked impure.
    pub(crate) is_impure: AtomicBool,
    /// Names in the merged tree of a file with hard links that was copied up; 0 for all others.
    pub(crate) names_count: AtomicU32,
    /// Names that were taken from a file below with hard links.
    pub(crate) names_lost: AtomicU32,
    /// Made through this mount.
    pub(crate) is_new: AtomicBool,
    /// A directory that was removed: there is nothing in it any more, whatever the layers below have.
    pub(crate) is_gone: AtomicBool,
    /// Which of [`ASKED_OFTEN`] it does not have, in the low bits; above them a count of changes.
    absent: AtomicU32,
}

/// Attributes that the kernel asks for again and again.
const ASKED_OFTEN: [&str; 3] = ["security.capability", "system.posix_acl_access", "system.posix_acl_default"];

impl Node {
    fn absent_bit(name: &OsStr) -> Option<u32> {
        ASKED_OFTEN.iter().position(|often| name == *often).map(|at| 1 << at)
    }

    /// Whether it is known not to have an attribute.
    pub(crate) fn lacks(&self, name: &OsStr) -> bool {
        Self::absent_bit(name).is_some_and(|bit| self.absent.load(Ordering::Acquire) & bit != 0)
    }

    /// Asks for an attribute, and remembers that there is none unless one was set meanwhile.
    pub(crate) fn ask_attribute<T>(&self, name: &OsStr, ask: impl FnOnce() -> Result<T>) -> Result<T> {
        let before = self.absent.load(Ordering::Acquire);
        let answer = ask();
        if let (Err(Errno::ENODATA), Some(bit)) = (&answer, Self::absent_bit(name)) {
            let _ = self.absent.compare_exchange(before, before | bit, Ordering::AcqRel, Ordering::Relaxed);
        }
        answer
    }

    /// An attribute was set.
    pub(crate) fn attributes_changed(&self) {
        let next = |now: u32| Some((now | ((1 << ASKED_OFTEN.len()) - 1)).wrapping_add(1));
        let _ = self.absent.fetch_update(Ordering::AcqRel, Ordering::Relaxed, next);
    }

    pub(crate) fn parts(&self) -> Arc<Parts> {
        Arc::clone(&self.parts.read())
    }
    pub(crate) fn set_parts(&self, parts: Parts) {
        *self.parts.write() = Arc::new(parts);
    }
}

/// A new node, before it has a number.
pub(crate) struct Draft {
    pub(crate) kind: Kind,
    pub(crate) st_ino: u64,
    pub(crate) shown: (u64, Option<Device>),
    pub(crate) parts: Parts,
    pub(crate) points: Option<Arc<Points>>,
    pub(crate) write_to: Option<LayerNumber>,
    pub(crate) is_impure: bool,
    pub(crate) names_count: u32,
    pub(crate) is_new: bool,
}

impl Draft {
    fn into_node(self, ino: Ino) -> Arc<Node> {
        Arc::new(Node {
            ino,
            kind: self.kind,
            st_ino: self.st_ino,
            shown: self.shown,
            parts: RwLock::new(Arc::new(self.parts)),
            copying: Mutex::new(()),
            names: Mutex::new(()),
            points: self.points,
            write_to: self.write_to,
            is_impure: self.is_impure.into(),
            names_count: self.names_count.into(),
            is_gone: AtomicBool::new(false),
            names_lost: 0.into(),
            is_new: self.is_new.into(),
            absent: 0.into(),
        })
    }
}

/// A name that leads to a node.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Place {
    pub(crate) parent: Ino,
    pub(crate) name: OsString,
}

impl Place {
    pub(crate) fn new(parent: Ino, name: &OsStr) -> Self {
        Self { parent, name: name.to_owned() }
    }
}

type Key = (LayerNumber, Ino);

struct Slot {
    node: Arc<Node>,
    keys: Vec<Key>,
    /// The last is the newest.
    places: Vec<Place>,
    references: u64,
    /// Places of other nodes that are in this one.
    below: u64,
}

pub(crate) struct Table {
    slots: HashMap<Ino, Slot>,
    by_key: HashMap<Key, Ino>,
    by_place: HashMap<Place, Ino>,
    next: u64,
}

impl Table {
    pub(crate) fn new(root: Draft) -> Self {
        let node = root.into_node(Ino::ROOT);
        let slot = Slot { node, keys: Vec::new(), places: Vec::new(), references: 1, below: 0 };
        Self {
            slots: HashMap::from([(Ino::ROOT, slot)]),
            by_key: HashMap::new(),
            by_place: HashMap::new(),
            next: Ino::ROOT.0 + 1,
        }
    }

    pub(crate) fn node(&self, ino: Ino) -> Result<Arc<Node>> {
        self.slots.get(&ino).map(|slot| Arc::clone(&slot.node)).ok_or(Errno::ESTALE)
    }

    /// Enters what was found at a place, with one reference more. If it is known already the draft's parts come back: the
    /// references that it holds on them are one too many.
    pub(crate) fn enter(&mut self, draft: Draft, place: Option<Place>) -> (Arc<Node>, Option<Parts>) {
        let top = draft.parts.top();
        let key = (top.layer, top.ino);
        let known = self.by_key.get(&key).copied();
        let (ino, spare) = match known {
            Some(ino) => (ino, Some(draft.parts)),
            None => {
                let ino = Ino(self.next);
                self.next += 1;
                let keys: Vec<Key> = match draft.kind {
                    Kind::Directory => vec![key],
                    _ => draft.parts.stack.iter().map(|part| (part.layer, part.ino)).collect(),
                };
                for key in &keys {
                    self.by_key.insert(*key, ino);
                }
                let node = draft.into_node(ino);
                self.slots.insert(ino, Slot { node, keys, places: Vec::new(), references: 0, below: 0 });
                (ino, None)
            }
        };
        if let Some(place) = place {
            self.settle(ino, place);
        }
        let slot = self.slots.get_mut(&ino).expect("it was found or inserted above");
        slot.references += 1;
        (Arc::clone(&slot.node), spare)
    }

    /// A part that leads to a node from now on.
    pub(crate) fn add_key(&mut self, ino: Ino, key: Key) {
        if let Some(slot) = self.slots.get_mut(&ino) {
            slot.keys.push(key);
            self.by_key.insert(key, ino);
        }
    }

    /// Takes back what [`add_key`](Self::add_key) did.
    pub(crate) fn drop_key(&mut self, ino: Ino, key: Key) {
        if let Some(slot) = self.slots.get_mut(&ino) {
            slot.keys.retain(|other| *other != key);
            if self.by_key.get(&key) == Some(&ino) {
                self.by_key.remove(&key);
            }
        }
    }

    fn settle(&mut self, ino: Ino, place: Place) {
        if self.by_place.get(&place) == Some(&ino) {
            return;
        }
        self.unsettle(&place);
        if let Some(parent) = self.slots.get_mut(&place.parent) {
            parent.below += 1;
        }
        if let Some(slot) = self.slots.get_mut(&ino) {
            slot.places.push(place.clone());
            self.by_place.insert(place, ino);
        }
    }

    /// Forgets a name. The caller sees to it that neither node is dropped too early, and calls [`sweep`](Self::sweep).
    fn unsettle(&mut self, place: &Place) -> Option<Ino> {
        let ino = self.by_place.remove(place)?;
        if let Some(slot) = self.slots.get_mut(&ino) {
            slot.places.retain(|other| other != place);
        }
        if let Some(parent) = self.slots.get_mut(&place.parent) {
            parent.below -= 1;
        }
        Some(ino)
    }

    /// The newest place of a node, with the directory.
    pub(crate) fn place(&self, ino: Ino) -> Option<(Arc<Node>, OsString)> {
        let place = self.slots.get(&ino)?.places.last()?;
        Some((self.node(place.parent).ok()?, place.name.clone()))
    }

    /// Whether a directory of a layer is a part of a node.
    pub(crate) fn has(&self, key: Key) -> bool {
        self.by_key.contains_key(&key)
    }

    /// The node of a directory of a layer, and its path from the root, without slashes at its ends. `None` if it is none that can be found.
    pub(crate) fn path_of(&self, key: Key, is_root: bool) -> Option<(Arc<Node>, OsString)> {
        let ino = if is_root { Ino::ROOT } else { *self.by_key.get(&key)? };
        let mut names: Vec<&OsStr> = Vec::new();
        let mut here = ino;
        while here != Ino::ROOT {
            let place = self.slots.get(&here)?.places.last()?;
            names.push(&place.name);
            here = place.parent;
        }
        names.reverse();
        Some((self.node(ino).ok()?, names.join(OsStr::new("/"))))
    }

    pub(crate) fn is_at(&self, ino: Ino, parent: Ino, name: &OsStr) -> bool {
        self.by_place.get(&Place::new(parent, name)) == Some(&ino)
    }

    pub(crate) fn at(&self, parent: Ino, name: &OsStr) -> Option<Arc<Node>> {
        self.node(*self.by_place.get(&Place::new(parent, name))?).ok()
    }

    /// Gives back references; what nobody refers to any more comes out.
    pub(crate) fn forget(&mut self, ino: Ino, count: u64) -> Vec<Arc<Node>> {
        if ino == Ino::ROOT {
            return Vec::new();
        }
        if let Some(slot) = self.slots.get_mut(&ino) {
            slot.references = slot.references.saturating_sub(count);
        }
        self.sweep(ino)
    }

    pub(crate) fn hold(&mut self, ino: Ino) {
        if let Some(slot) = self.slots.get_mut(&ino).filter(|_| ino != Ino::ROOT) {
            slot.references += 1;
        }
    }

    /// Drops a node that nobody refers to and nothing is below, then perhaps those above: each step goes up.
    fn sweep(&mut self, ino: Ino) -> Vec<Arc<Node>> {
        let mut unused = vec![ino];
        let mut dropped = Vec::new();
        while let Some(ino) = unused.pop() {
            let is_used = |slot: &Slot| slot.references > 0 || slot.below > 0;
            if ino == Ino::ROOT || self.slots.get(&ino).is_none_or(is_used) {
                continue;
            }
            let Some(slot) = self.slots.remove(&ino) else { continue };
            for key in slot.keys {
                if self.by_key.get(&key) == Some(&ino) {
                    self.by_key.remove(&key);
                }
            }
            for place in slot.places {
                self.by_place.remove(&place);
                if let Some(parent) = self.slots.get_mut(&place.parent) {
                    parent.below -= 1;
                }
                unused.push(place.parent);
            }
            dropped.push(slot.node);
        }
        dropped
    }

    /// A name was removed.
    pub(crate) fn lose(&mut self, parent: Ino, name: &OsStr) -> Vec<Arc<Node>> {
        match self.unsettle(&Place::new(parent, name)) {
            Some(ino) => {
                self.is_gone(ino);
                self.sweep(ino).into_iter().chain(self.sweep(parent)).collect()
            }
            None => Vec::new(),
        }
    }

    /// A node has lost a name: a directory its only one.
    fn is_gone(&self, ino: Ino) {
        if let Some(slot) = self.slots.get(&ino).filter(|slot| slot.node.kind == Kind::Directory) {
            slot.node.is_gone.store(true, Ordering::Release);
        }
    }

    /// A name was moved, over what the new one led to.
    pub(crate) fn relocate(&mut self, from: &Place, to: &Place) -> Vec<Arc<Node>> {
        let held = [
            Some(from.parent),
            Some(to.parent),
            self.by_place.get(from).copied(),
            self.by_place.get(to).copied(),
        ];
        held.iter().flatten().for_each(|ino| self.hold(*ino));
        if let Some(ino) = self.unsettle(to) {
            self.is_gone(ino);
        }
        if let Some(ino) = self.unsettle(from) {
            self.settle(ino, to.clone());
        }
        held.into_iter().flatten().flat_map(|ino| self.forget(ino, 1)).collect()
    }

    /// Two names were exchanged.
    pub(crate) fn exchange(&mut self, one: &Place, other: &Place) -> Vec<Arc<Node>> {
        let held = [
            Some(one.parent),
            Some(other.parent),
            self.by_place.get(one).copied(),
            self.by_place.get(other).copied(),
        ];
        held.iter().flatten().for_each(|ino| self.hold(*ino));
        let (at_one, at_other) = (self.unsettle(one), self.unsettle(other));
        if let Some(ino) = at_one {
            self.settle(ino, other.clone());
        }
        if let Some(ino) = at_other {
            self.settle(ino, one.clone());
        }
        held.into_iter().flatten().flat_map(|ino| self.forget(ino, 1)).collect()
    }

    #[cfg(test)]
    pub(crate) fn count(&self) -> usize {
        self.slots.len()
    }
}
