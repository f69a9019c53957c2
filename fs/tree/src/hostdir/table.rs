//! What a tree of the host system knows of its nodes: who they are, where they were seen, who refers to them, and the
//! descriptors that are kept.
//!
//! A node stays in the table while a host refers to it, or a node below it does: names of those lead through it.

use std::collections::{HashMap, HashSet, VecDeque};
use std::ffi::{OsStr, OsString};
use std::os::fd::OwnedFd;
use std::sync::{Arc, Weak};

use veduta_api::{Errno, Ino, Result};

use super::NodeFd;
use super::file::HostFile;
use crate::listing::Listing;

/// What makes a file of the host system the one that it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Identity {
    pub(super) device: (u32, u32),
    pub(super) inode: u64,
    /// Inode numbers are used again; this tells the two apart where it is known.
    pub(super) btime: (i64, u32),
}

/// A name that leads to a node.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct Place {
    pub(super) parent: Ino,
    pub(super) name: OsString,
}

/// Files that are noted as open before closed ones are looked for.
const LEAST_OPENED: usize = 64;

struct Node {
    identity: Identity,
    /// Where it was seen; the last is the newest.
    places: Vec<Arc<Place>>,
    references: u64,
    /// Places of other nodes that are in this one.
    below: u64,
    fd: Option<Arc<OwnedFd>>,
    /// The descriptor stays: there is no name to open it by again.
    is_pinned: bool,
    /// The descriptor was not compared with the identity yet, and is not to be used before.
    is_unproven: bool,
    /// Whether the descriptor was used since the last look at it.
    is_recent: bool,
    listing: Option<Arc<Listing>>,
}

pub(super) struct Table {
    nodes: HashMap<Ino, Node>,
    by_identity: HashMap<Identity, Ino>,
    by_place: HashMap<Arc<Place>, Ino>,
    /// Files that are open, or were lately.
    opened: HashMap<Ino, Vec<Weak<HostFile>>>,
    /// How many of those there may be before the ones that are closed are looked for.
    most_opened: usize,
    next_ino: u64,
    /// Those with a descriptor that is kept, the next to lose it in front: a clock. May name nodes that are gone.
    kept: VecDeque<Ino>,
    limit: usize,
}

impl Table {
    pub(super) fn new(root: Identity, fd: Arc<OwnedFd>, limit: usize) -> Self {
        let node = Node { references: 1, fd: Some(fd), is_pinned: true, ..Node::new(root) };
        Self {
            nodes: HashMap::from([(Ino::ROOT, node)]),
            by_identity: HashMap::from([(root, Ino::ROOT)]),
            by_place: HashMap::new(),
            opened: HashMap::new(),
            most_opened: LEAST_OPENED,
            next_ino: Ino::ROOT.0 + 1,
            kept: VecDeque::new(),
            limit,
        }
    }

    fn node(&self, ino: Ino) -> Result<&Node> {
        self.nodes.get(&ino).ok_or(Errno::ESTALE)
    }

    fn node_mut(&mut self, ino: Ino) -> Result<&mut Node> {
        self.nodes.get_mut(&ino).ok_or(Errno::ESTALE)
    }

    pub(super) fn identity(&self, ino: Ino) -> Result<Identity> {
        Ok(self.node(ino)?.identity)
    }

    /// The newest name of a node. `ESTALE` if it has none.
    pub(super) fn place(&self, ino: Ino) -> Result<(Place, Identity)> {
        let node = self.node(ino)?;
        let place = node.places.last().ok_or(Errno::ESTALE)?;
        Ok((Place::clone(place), node.identity))
    }

    /// Enters what was found at a place, with one reference more.
    pub(super) fn enter(&mut self, identity: Identity, place: Option<Place>) -> Ino {
        let ino = *self.by_identity.entry(identity).or_insert_with(|| {
            let ino = Ino(self.next_ino);
            self.next_ino += 1;
            self.nodes.insert(ino, Node::new(identity));
            ino
        });
        if let Some(node) = self.nodes.get_mut(&ino) {
            node.references += 1;
        }
        if let Some(place) = place {
            // The root's own name is outside of the tree; a bind mount may show it inside, where it would be its own ancestor.
            if ino != Ino::ROOT {
                self.settle(ino, place);
            }
        }
        ino
    }

    /// Notes that `place` leads to `ino`, whatever was there before.
    fn settle(&mut self, ino: Ino, place: Place) {
        if self.by_place.get(&place) == Some(&ino) {
            return;
        }
        self.unsettle(&place);
        if let Some(parent) = self.nodes.get_mut(&place.parent) {
            parent.below += 1;
        }
        if let Some(node) = self.nodes.get_mut(&ino) {
            let place = Arc::new(place);
            // Almost every node has one name.
            node.places.reserve_exact(1);
            node.places.push(place.clone());
            self.by_place.insert(place, ino);
        }
    }

    /// Forgets a name, and says whose it was.
    fn unsettle(&mut self, place: &Place) -> Option<Ino> {
        let ino = self.by_place.remove(place)?;
        if let Some(node) = self.nodes.get_mut(&ino) {
            node.places.retain(|other| **other != *place);
        }
        if let Some(parent) = self.nodes.get_mut(&place.parent) {
            parent.below -= 1;
        }
        self.drop_unused(place.parent);
        Some(ino)
    }

    pub(super) fn forget(&mut self, ino: Ino, count: u64) {
        if ino == Ino::ROOT {
            return;
        }
        if let Some(node) = self.nodes.get_mut(&ino) {
            node.references = node.references.saturating_sub(count);
        }
        self.drop_unused(ino);
    }

    /// Drops a node that nobody refers to and nothing is below, then perhaps those above: each step goes up.
    fn drop_unused(&mut self, ino: Ino) {
        let mut unused = vec![ino];
        while let Some(ino) = unused.pop() {
            if self.nodes.get(&ino).is_none_or(|node| node.references > 0 || node.below > 0) {
                continue;
            }
            let Some(node) = self.nodes.remove(&ino) else { continue };
            self.opened.remove(&ino);
            if self.by_identity.get(&node.identity) == Some(&ino) {
                self.by_identity.remove(&node.identity);
            }
            for place in node.places {
                self.by_place.remove(&place);
                if let Some(parent) = self.nodes.get_mut(&place.parent) {
                    parent.below -= 1;
                }
                unused.push(place.parent);
            }
        }
        self.shrink();
    }

    /// Gives back the room of nodes that are gone, once it is many times what is needed.
    fn shrink(&mut self) {
        let needed = self.nodes.len();
        if self.nodes.capacity() > 1024 + 8 * needed {
            self.nodes.shrink_to(2 * needed);
            self.by_identity.shrink_to(2 * needed);
            self.by_place.shrink_to(2 * needed);
        }
    }

    /// The descriptor of a node, if there is one.
    pub(super) fn kept(&mut self, ino: Ino) -> Option<Arc<OwnedFd>> {
        let node = self.nodes.get_mut(&ino).filter(|node| !node.is_unproven)?;
        node.is_recent = true;
        node.fd.clone()
    }

    /// A descriptor that was kept for a node and is still to be compared with its identity.
    pub(super) fn unproven(&self, ino: Ino) -> Option<(Arc<OwnedFd>, Identity)> {
        let node = self.nodes.get(&ino).filter(|node| node.is_unproven)?;
        Some((node.fd.clone()?, node.identity))
    }

    /// What came of that: a descriptor of something else goes.
    pub(super) fn prove(&mut self, ino: Ino, is_it: bool) {
        if let Some(node) = self.nodes.get_mut(&ino).filter(|node| node.is_unproven) {
            node.is_unproven = false;
            if !is_it {
                (node.fd, node.is_pinned) = (None, false);
            }
        }
    }

    /// Keeps a descriptor, for which another one may go.
    pub(super) fn keep(&mut self, ino: Ino, fd: &Arc<OwnedFd>) {
        let Some(node) = self.nodes.get_mut(&ino).filter(|node| node.fd.is_none()) else { return };
        node.fd = Some(Arc::clone(fd));
        node.is_recent = true;
        self.kept.push_back(ino);
        // Each turn takes one out, or takes from one the mark that saves it once.
        while self.kept.len() > self.limit {
            let Some(oldest) = self.kept.pop_front() else { break };
            match self.nodes.get_mut(&oldest) {
                Some(node) if node.is_pinned => {}
                Some(node) if node.is_recent && oldest != ino => {
                    node.is_recent = false;
                    self.kept.push_back(oldest);
                }
                Some(node) => node.fd = None,
                None => {}
            }
        }
    }

    /// Keeps a descriptor until the node is forgotten.
    pub(super) fn pin(&mut self, ino: Ino, fd: Arc<OwnedFd>) {
        if let Some(node) = self.nodes.get_mut(&ino) {
            node.fd = Some(fd);
            node.is_pinned = true;
        }
    }

    /// A node has a name (again) by which it can be opened.
    pub(super) fn unpin(&mut self, ino: Ino) {
        let named = |node: &&mut Node| node.is_pinned && !node.places.is_empty();
        if let Some(node) = self.nodes.get_mut(&ino).filter(named) {
            node.fd = None;
            node.is_pinned = false;
            node.is_unproven = false;
        }
    }

    /// Whether a name is the only one that is known of a node without a descriptor.
    pub(super) fn hangs_by(&self, place: &Place) -> bool {
        let node = self.by_place.get(place).and_then(|ino| self.nodes.get(ino));
        node.is_some_and(|node| node.places.len() == 1 && node.fd.is_none())
    }

    /// A name was removed. `opened` is a descriptor of what it led to before, as [`hangs_by`](Self::hangs_by) asks for.
    pub(super) fn lose(&mut self, place: &Place, opened: Option<OwnedFd>) {
        let Some(ino) = self.unsettle(place) else { return };
        if let Some(node) = self.nodes.get_mut(&ino).filter(|node| node.places.is_empty()) {
            if let (None, Some(opened)) = (&node.fd, opened) {
                node.fd = Some(Arc::new(opened));
                node.is_unproven = true;
            }
            node.is_pinned = node.fd.is_some();
        }
        self.drop_unused(ino);
    }

    /// A name was moved. The new one leads nowhere that is known.
    pub(super) fn relocate(&mut self, from: (Ino, &OsStr), to: (Ino, &OsStr)) {
        let [from, to] = [from, to].map(|(parent, name)| Place { parent, name: name.to_owned() });
        let Some(&ino) = self.by_place.get(&from) else { return };
        // First the new name: the directory above must not be dropped in between.
        self.settle(ino, to);
        self.unsettle(&from);
    }

    /// Two names were exchanged.
    pub(super) fn exchange(&mut self, one: (Ino, &OsStr), other: (Ino, &OsStr)) {
        let [one, other] = [one, other].map(|(parent, name)| Place { parent, name: name.to_owned() });
        let inos = [&one, &other].map(|place| self.by_place.get(place).copied());
        let [at_one, at_other] = inos;
        // Held, so that neither they nor what is above them is dropped between two steps.
        let held: Vec<Ino> =
            [at_one, at_other, Some(one.parent), Some(other.parent)].into_iter().flatten().collect();
        held.iter().for_each(|ino| self.hold(*ino));
        self.unsettle(&one);
        self.unsettle(&other);
        if let Some(ino) = at_one {
            self.settle(ino, other);
        }
        if let Some(ino) = at_other {
            self.settle(ino, one);
        }
        held.iter().for_each(|ino| self.forget(*ino, 1));
    }

    fn hold(&mut self, ino: Ino) {
        if let Some(node) = self.nodes.get_mut(&ino).filter(|_| ino != Ino::ROOT) {
            node.references += 1;
        }
    }

    pub(super) fn remember_open(&mut self, ino: Ino, file: &Arc<HostFile>) {
        if !self.nodes.contains_key(&ino) {
            return;
        }
        if self.opened.len() >= self.most_opened {
            self.opened.retain(|_, files| files.iter().any(|file| file.strong_count() > 0));
            self.most_opened = LEAST_OPENED.max(2 * self.opened.len());
        }
        let files = self.opened.entry(ino).or_default();
        files.retain(|file| file.strong_count() > 0);
        files.push(Arc::downgrade(file));
    }

    /// A file that is open for writing.
    pub(super) fn writer(&self, ino: Ino) -> Option<Arc<HostFile>> {
        self.opened.get(&ino)?.iter().filter_map(Weak::upgrade).find(|file| file.is_writable())
    }

    /// A descriptor of a node, if there is any.
    pub(super) fn at_hand(&mut self, ino: Ino) -> Option<NodeFd> {
        if let Some(fd) = self.kept(ino) {
            return Some(NodeFd::Kept(fd));
        }
        self.open_file(ino).map(NodeFd::Open)
    }

    /// A file that somebody has open.
    pub(super) fn open_file(&self, ino: Ino) -> Option<Arc<HostFile>> {
        self.opened.get(&ino)?.iter().find_map(Weak::upgrade)
    }

    /// What a name leads to, as far as is known.
    pub(super) fn at(&self, place: &Place) -> Option<Ino> {
        self.by_place.get(place).copied()
    }

    /// The directory in which a node was last seen.
    pub(super) fn parent(&self, ino: Ino) -> Result<Ino> {
        Ok(self.node(ino)?.places.last().ok_or(Errno::ESTALE)?.parent)
    }

    /// All directories in which it was seen.
    pub(super) fn parents(&self, ino: Ino) -> Vec<Ino> {
        self.nodes
            .get(&ino)
            .map_or_else(Vec::new, |node| node.places.iter().map(|place| place.parent).collect())
    }

    pub(super) fn knows(&self, ino: Ino) -> bool {
        self.nodes.contains_key(&ino)
    }

    /// All names that are known in some directories.
    pub(super) fn below(&self, dirs: &HashSet<Ino>) -> impl Iterator<Item = (&Place, Ino)> {
        let inside = self.by_place.iter().filter(|(place, _)| dirs.contains(&place.parent));
        inside.map(|(place, ino)| (&**place, *ino))
    }

    /// The files that are open and have a name in one of the directories.
    pub(super) fn open_below(&self, is_one: impl Fn(Ino) -> bool) -> Vec<Ino> {
        let is_open = |files: &[Weak<HostFile>]| files.iter().any(|file| file.strong_count() > 0);
        let opened = self.opened.iter().filter(|(_, files)| is_open(files)).map(|(ino, _)| *ino);
        opened.filter(|ino| self.parents(*ino).into_iter().any(&is_one)).collect()
    }

    /// Whether a file with a name in this directory is open for writing.
    pub(super) fn is_written_in(&self, dir: Ino) -> bool {
        self.open_below(|parent| parent == dir).into_iter().any(|ino| self.writer(ino).is_some())
    }

    pub(super) fn listing(&mut self, ino: Ino) -> Result<Arc<Listing>> {
        Ok(Arc::clone(self.node_mut(ino)?.listing.get_or_insert_default()))
    }

    #[cfg(test)]
    pub(super) fn count(&self) -> (usize, usize) {
        (self.nodes.len(), self.nodes.values().filter(|node| node.fd.is_some()).count())
    }
}

impl Node {
    fn new(identity: Identity) -> Self {
        Self {
            identity,
            places: Vec::new(),
            references: 0,
            below: 0,
            fd: None,
            is_pinned: false,
            is_unproven: false,
            is_recent: false,
            listing: None,
        }
    }
}
