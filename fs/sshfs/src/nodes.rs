//! Names and nodes, and what is remembered of them.
//!
//! SFTP knows paths and nothing else. Every name that was seen is a node here, with a number that stays with it when it or a
//! directory above it is renamed; the number is also what users see as the inode number. Nodes that a host refers to, or that are open,
//! stay; of the others as many are kept as options say, since each holds what a listing told.
//!
//! What is remembered (attributes, the target of a link, that all names of a directory are known) has a moment from which it counts.
//! A reply may be older than a change of our own, though it comes later: each change is stamped at its beginning and at its end,
//! and a reply is believed only if nothing was changed since its request was sent.
//!
//! The table's lock is held for no request.

use std::collections::{BTreeSet, HashMap, HashSet, VecDeque};
use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::OsStrExt;
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use veduta_api::{Attr, DirEntry, DirSink, Errno, Ino, Kind, Result};

use crate::content::Content;
use crate::list::Lister;

/// How long after the last look into a directory its names are not dropped.
const IN_USE: Duration = Duration::from_secs(10);

/// Directories that are listed ahead before anybody has come for one.
const UNREAD: usize = 64;

/// A moment between changes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Stamp(u64);

/// All nodes.
pub(crate) struct Table {
    nodes: HashMap<Ino, Node>,
    next: u64,
    stamp: u64,
    /// Nodes that no host refers to.
    idle: usize,
    kept: usize,
    /// Directories that were listed ahead, and that nobody has come for.
    unread: usize,
}

/// One node.
pub(crate) struct Node {
    /// `None`: it has no name any more. The root is its own parent.
    place: Option<(Ino, OsString)>,
    references: u64,
    below: HashMap<OsString, Ino>,
    order: BTreeSet<Ino>,
    changed: Stamp,
    /// What was last known, however old.
    pub(crate) attr: Option<Attr>,
    /// When that was so; `None` if it is known to be different now.
    attr_at: Option<Instant>,
    pub(crate) target: Option<(OsString, Instant)>,
    /// When `below` held all names.
    pub(crate) listed: Option<Instant>,
    /// A listing that is under way.
    pub(crate) lister: Weak<Lister>,
    /// When a host last read the directory.
    pub(crate) read_at: Option<Instant>,
    /// We made this directory: when something was last made in it by us.
    pub(crate) ours: Option<Instant>,
    /// Directories in it that will be listed ahead.
    pub(crate) ahead: VecDeque<Ino>,
    /// It was listed ahead, and nobody has come for it yet.
    unread: bool,
    pub(crate) content: Weak<Content>,
}

impl Node {
    fn new(place: Option<(Ino, OsString)>, stamp: Stamp) -> Self {
        Self {
            place,
            references: 0,
            below: HashMap::new(),
            order: BTreeSet::new(),
            changed: stamp,
            attr: None,
            attr_at: None,
            target: None,
            listed: None,
            lister: Weak::new(),
            read_at: None,
            ours: None,
            ahead: VecDeque::new(),
            unread: false,
            content: Weak::new(),
        }
    }

    /// The attributes, if they are not older than `limit`.
    pub(crate) fn fresh(&self, limit: Duration) -> Option<Attr> {
        self.attr_at.filter(|at| at.elapsed() < limit).and(self.attr)
    }

    /// Takes attributes that are so now.
    pub(crate) fn set_attr(&mut self, attr: Attr) {
        self.attr = Some(attr);
        self.attr_at = Some(Instant::now());
    }

    /// The attributes are not what they were.
    pub(crate) fn spoil_attr(&mut self) {
        self.attr_at = None;
    }

    fn is_idle(&self) -> bool {
        self.references == 0 && self.below.is_empty() && self.content.strong_count() == 0
    }
}

/// What a listing says of one name.
pub(crate) struct Told {
    pub(crate) name: OsString,
    pub(crate) kind: Option<Kind>,
    /// `None` if a request of its own must tell.
    pub(crate) attr: Option<Attr>,
}

impl Table {
    /// A table that keeps about so many nodes that nobody refers to.
    pub(crate) fn new(kept: usize) -> Self {
        let mut root = Node::new(Some((Ino::ROOT, OsString::new())), Stamp(0));
        root.references = 1;
        let nodes = HashMap::from([(Ino::ROOT, root)]);
        Self { nodes, next: Ino::ROOT.0 + 1, stamp: 0, idle: 0, kept, unread: 0 }
    }

    pub(crate) fn node(&mut self, ino: Ino) -> Result<&mut Node> {
        self.nodes.get_mut(&ino).ok_or(Errno::ESTALE)
    }

    pub(crate) fn now(&self) -> Stamp {
        Stamp(self.stamp)
    }

    pub(crate) fn is_full(&self) -> bool {
        self.idle >= self.kept
    }

    /// A change of a node begins or ends: replies to requests sent before are not believed.
    pub(crate) fn mark(&mut self, ino: Ino) {
        self.stamp += 1;
        if let Some(node) = self.nodes.get_mut(&ino) {
            node.changed = Stamp(self.stamp);
        }
    }

    /// The path from the root, without a slash in front. `ESTALE` if the node, or a directory above it, has no name any more.
    pub(crate) fn path(&self, ino: Ino) -> Result<Vec<u8>> {
        let mut names = Vec::new();
        let mut here = ino;
        // Places form a tree, so the climb ends at the root.
        while here != Ino::ROOT {
            let node = self.nodes.get(&here).ok_or(Errno::ESTALE)?;
            let (parent, name) = node.place.as_ref().ok_or(Errno::ESTALE)?;
            names.push(name.as_bytes());
            here = *parent;
        }
        names.reverse();
        Ok(names.join(&b'/'))
    }

    pub(crate) fn parent(&self, ino: Ino) -> Result<Ino> {
        let place = self.nodes.get(&ino).and_then(|node| node.place.as_ref());
        place.map(|(parent, _)| *parent).ok_or(Errno::ESTALE)
    }

    pub(crate) fn child(&self, parent: Ino, name: &OsStr) -> Option<Ino> {
        self.nodes.get(&parent)?.below.get(name).copied()
    }

    /// The node at a name, new or known. If it is known as another kind, it is another node.
    fn place(&mut self, parent: Ino, name: &OsStr, kind: Option<Kind>) -> Result<Ino> {
        if let Some(ino) = self.child(parent, name) {
            let known = self.nodes.get(&ino).and_then(|node| node.attr).map(|attr| attr.kind);
            if known.is_none() || kind.is_none() || known == kind {
                return Ok(ino);
            }
            self.lose(parent, name);
        }
        let ino = Ino(self.next);
        let directory = self.nodes.get_mut(&parent).ok_or(Errno::ESTALE)?;
        self.next += 1;
        if directory.references == 0 && directory.below.is_empty() {
            // It holds something now, and is not counted as idle.
            self.idle = self.idle.saturating_sub(1);
        }
        directory.below.insert(name.to_owned(), ino);
        directory.order.insert(ino);
        self.nodes.insert(ino, Node::new(Some((parent, name.to_owned())), Stamp(0)));
        self.idle += 1;
        Ok(ino)
    }

    /// A reply tells the attributes of a name. Says the node, and takes a reference.
    pub(crate) fn enter(
        &mut self,
        parent: Ino,
        name: &OsStr,
        attr: Attr,
        sent: Stamp,
    ) -> Result<(Ino, Attr)> {
        let ino = self.place(parent, name, Some(attr.kind))?;
        let attr = self.learn(ino, attr, sent);
        self.refer(ino);
        Ok((ino, attr))
    }

    /// A reply tells the attributes of a node. Says them as they are shown.
    pub(crate) fn learn(&mut self, ino: Ino, attr: Attr, sent: Stamp) -> Attr {
        let attr = Attr { st_ino: ino.0, ..attr };
        if let Some(node) = self.nodes.get_mut(&ino) {
            if node.changed <= sent {
                node.set_attr(attr);
            }
        }
        attr
    }

    /// One reference more.
    pub(crate) fn refer(&mut self, ino: Ino) {
        if let Some(node) = self.nodes.get_mut(&ino) {
            if node.references == 0 && node.below.is_empty() {
                self.idle = self.idle.saturating_sub(1);
            }
            node.references += 1;
        }
    }

    pub(crate) fn forget(&mut self, ino: Ino, count: u64) {
        let Some(node) = self.nodes.get_mut(&ino).filter(|_| ino != Ino::ROOT) else { return };
        let before = node.references;
        node.references = before.saturating_sub(count);
        if before > 0 && node.references == 0 && node.below.is_empty() {
            self.idle += 1;
        }
        if node.place.is_none() && node.is_idle() {
            self.drop_node(ino);
        } else if self.idle > self.kept + self.kept / 4 {
            self.sweep();
        }
    }

    /// Drops nodes that nobody uses, first those that were not looked at lately.
    fn sweep(&mut self) {
        for in_use in [IN_USE, Duration::ZERO] {
            let recently = |node: &Node| node.read_at.is_some_and(|at| at.elapsed() < in_use);
            let drops: Vec<Ino> = self
                .nodes
                .iter()
                .filter(|(ino, node)| {
                    let parent = node.place.as_ref().and_then(|(parent, _)| self.nodes.get(parent));
                    **ino != Ino::ROOT && node.is_idle() && !parent.is_some_and(recently)
                })
                .map(|(ino, _)| *ino)
                .collect();
            drops.into_iter().for_each(|ino| self.drop_node(ino));
            if self.idle <= self.kept {
                return;
            }
        }
    }

    /// Drops a node; its directory's names are no longer all known.
    fn drop_node(&mut self, ino: Ino) {
        let Some(node) = self.nodes.remove(&ino) else { return };
        self.unread -= usize::from(node.unread);
        self.idle = self.idle.saturating_sub(1);
        if let Some((parent, name)) = node.place {
            if let Some(above) = self.nodes.get_mut(&parent) {
                above.below.remove(&name);
                above.order.remove(&ino);
                above.listed = None;
                if above.references == 0 && above.below.is_empty() {
                    self.idle += 1;
                }
            }
        }
    }

    /// A name is gone.
    pub(crate) fn lose(&mut self, parent: Ino, name: &OsStr) {
        if let Some(ino) = self.detach(parent, name) {
            if self.nodes.get(&ino).is_some_and(Node::is_idle) {
                self.drop_node(ino);
            }
        }
    }

    /// Takes a node from its name.
    fn detach(&mut self, parent: Ino, name: &OsStr) -> Option<Ino> {
        let above = self.nodes.get_mut(&parent)?;
        let ino = above.below.remove(name)?;
        above.order.remove(&ino);
        if above.references == 0 && above.below.is_empty() {
            self.idle += 1;
        }
        self.nodes.get_mut(&ino)?.place = None;
        Some(ino)
    }

    /// A name leads elsewhere now.
    pub(crate) fn rename(&mut self, from: (Ino, &OsStr), to: (Ino, &OsStr)) {
        let moved = self.detach(from.0, from.1);
        self.lose(to.0, to.1);
        let Some(moved) = moved else {
            // What is there now was never seen.
            if let Ok(above) = self.node(to.0) {
                above.listed = None;
            }
            return;
        };
        if let Some(above) = self.nodes.get_mut(&to.0) {
            if above.references == 0 && above.below.is_empty() {
                self.idle = self.idle.saturating_sub(1);
            }
            above.below.insert(to.1.to_owned(), moved);
            above.order.insert(moved);
        }
        if let Some(node) = self.nodes.get_mut(&moved) {
            node.place = Some((to.0, to.1.to_owned()));
        }
    }

    /// A listing has told all names of a directory. `false` if the directory was changed meanwhile, so that it must be read again;
    /// with `anyhow` the names are taken all the same, but nothing else.
    pub(crate) fn fill(&mut self, dir: Ino, told: Vec<Told>, sent: Stamp, anyhow: bool) -> bool {
        let Some(node) = self.nodes.get(&dir) else { return true };
        let is_current = node.changed <= sent;
        if !is_current && !anyhow {
            return false;
        }
        let names: HashSet<&OsStr> = told.iter().map(|told| told.name.as_os_str()).collect();
        let gone: Vec<OsString> = node
            .below
            .keys()
            .filter(|name| is_current && !names.contains(name.as_os_str()))
            .cloned()
            .collect();
        gone.iter().for_each(|name| self.lose(dir, name));
        for told in told {
            let Ok(ino) = self.place(dir, &told.name, told.kind) else { return true };
            match told.attr {
                Some(attr) if is_current => drop(self.learn(ino, attr, sent)),
                _ => {}
            }
        }
        if let Some(node) = self.nodes.get_mut(&dir) {
            node.listed = Some(Instant::now());
        }
        true
    }

    /// Lists what is known, from a position on. Positions are node numbers, so they stay what they are.
    pub(crate) fn list(&self, dir: Ino, position: u64, sink: &mut DirSink<'_>) -> Result<()> {
        let node = self.nodes.get(&dir).ok_or(Errno::ESTALE)?;
        for ino in node.order.range(Ino(position.saturating_add(1))..) {
            let Some(child) = self.nodes.get(ino) else { continue };
            let Some((_, name)) = &child.place else { continue };
            let kind = child.attr.map(|attr| attr.kind);
            let listed = DirEntry { name, ino: Some(*ino), st_ino: ino.0, kind, next: ino.0 };
            if sink(listed).is_break() {
                break;
            }
        }
        Ok(())
    }

    /// A directory was listed ahead, or somebody has come for it. What is below it may be listed ahead too.
    pub(crate) fn set_unread(&mut self, dir: Ino, unread: bool) {
        let below = self.children(dir, Kind::Directory);
        let Some(node) = self.nodes.get_mut(&dir) else { return };
        self.unread -= usize::from(node.unread);
        self.unread += usize::from(unread);
        node.unread = unread;
        if node.ahead.is_empty() {
            node.ahead = below.into();
        }
    }

    /// At most so many directories to be listed ahead, fewer if many were that nobody has come for: what is below a directory, then
    /// what is beside it, then what is beside the one above.
    pub(crate) fn take_ahead(&mut self, dir: Ino, most: usize) -> Vec<Ino> {
        let mut room = if self.is_full() { 0 } else { most.min(UNREAD.saturating_sub(self.unread)) };
        let mut found = Vec::new();
        let mut here = Some(dir);
        // Places form a tree, so the climb ends at the root.
        while let Some(source) = here.filter(|_| room > 0) {
            while room > 0 {
                let Some(next) = self.nodes.get_mut(&source).and_then(|node| node.ahead.pop_front()) else {
                    break;
                };
                let is_new = |node: &Node| node.listed.is_none() && node.lister.strong_count() == 0;
                if self.nodes.get(&next).is_some_and(is_new) {
                    found.push(next);
                    room -= 1;
                }
            }
            here = self.parent(source).ok().filter(|parent| *parent != source);
        }
        found
    }

    /// What is in a directory, of one kind.
    pub(crate) fn children(&self, dir: Ino, kind: Kind) -> Vec<Ino> {
        let Some(node) = self.nodes.get(&dir) else { return Vec::new() };
        let is_it =
            |ino: &&Ino| self.nodes.get(ino).and_then(|node| node.attr).is_some_and(|attr| attr.kind == kind);
        node.order.iter().filter(is_it).copied().collect()
    }

    /// The open files of all nodes.
    pub(crate) fn contents(&self) -> Vec<Arc<Content>> {
        self.nodes.values().filter_map(|node| node.content.upgrade()).collect()
    }
}

#[cfg(test)]
mod tests {
    use veduta_api::Perm;

    use super::*;

    fn attr(kind: Kind) -> Attr {
        Attr::new(0, kind, Perm::from_mode(0o644))
    }

    fn told(names: &str) -> Vec<Told> {
        let one =
            |name: &str| Told { name: name.into(), kind: Some(Kind::File), attr: Some(attr(Kind::File)) };
        names.split_whitespace().map(one).collect()
    }

    fn names(table: &Table, position: u64) -> Vec<(String, u64)> {
        let mut seen = Vec::new();
        let mut sink = |entry: DirEntry<'_>| {
            seen.push((entry.name.to_str().unwrap().to_owned(), entry.next));
            std::ops::ControlFlow::Continue(())
        };
        table.list(Ino::ROOT, position, &mut sink).unwrap();
        seen
    }

    #[test]
    fn a_number_stays_with_its_node_when_it_is_renamed_and_is_not_given_to_another() {
        let mut table = Table::new(100);
        let now = table.now();
        let (dir, _) = table.enter(Ino::ROOT, OsStr::new("d"), attr(Kind::Directory), now).unwrap();
        let (file, _) = table.enter(dir, OsStr::new("f"), attr(Kind::File), now).unwrap();
        table.rename((Ino::ROOT, OsStr::new("d")), (Ino::ROOT, OsStr::new("e")));
        assert_eq!(table.path(file), Ok(b"e/f".to_vec()));
        let (other, _) = table.enter(Ino::ROOT, OsStr::new("d"), attr(Kind::Directory), now).unwrap();
        assert_ne!(other, dir);
        table.lose(dir, OsStr::new("f"));
        assert_eq!(table.path(file), Err(Errno::ESTALE));
        table.forget(file, 1);
        assert!(table.node(file).is_err());
    }

    #[test]
    fn a_reply_that_is_older_than_a_change_is_not_believed() {
        let mut table = Table::new(100);
        let sent = table.now();
        let (ino, _) = table.enter(Ino::ROOT, OsStr::new("f"), attr(Kind::File), sent).unwrap();
        table.mark(ino);
        let old = Attr { size: 7, ..attr(Kind::File) };
        table.learn(ino, old, sent);
        assert_eq!(table.node(ino).unwrap().attr.unwrap().size, 0);
        let sent = table.now();
        table.learn(ino, old, sent);
        assert_eq!(table.node(ino).unwrap().attr.unwrap().size, 7);
        table.mark(Ino::ROOT);
        assert!(!table.fill(Ino::ROOT, told("a b"), sent, false), "names of before the change");
        assert!(table.child(Ino::ROOT, OsStr::new("a")).is_none());
    }

    #[test]
    fn a_position_keeps_its_meaning_when_the_directory_is_read_again() {
        let mut table = Table::new(100);
        assert!(table.fill(Ino::ROOT, told("a b c"), table.now(), false));
        let behind_a = names(&table, 0)[0].1;
        assert!(table.fill(Ino::ROOT, told("d c b"), table.now(), false));
        let rest: Vec<_> = names(&table, behind_a).into_iter().map(|(name, _)| name).collect();
        assert_eq!(rest, ["b", "c", "d"]);
    }

    #[test]
    fn no_more_is_kept_than_was_said_and_a_directory_that_lost_names_is_not_complete() {
        let mut table = Table::new(10);
        let many: String = (0..200).map(|number| format!("f{number} ")).collect();
        assert!(table.fill(Ino::ROOT, told(&many), table.now(), false));
        let now = table.now();
        let (ino, _) = table.enter(Ino::ROOT, OsStr::new("f7"), attr(Kind::File), now).unwrap();
        table.forget(ino, 1);
        assert!(table.nodes.len() <= 12, "{}", table.nodes.len());
        assert!(table.node(Ino::ROOT).unwrap().listed.is_none());
        assert_eq!(table.idle, table.nodes.values().filter(|node| node.is_idle()).count());
    }

    #[test]
    fn a_name_that_has_become_another_kind_is_another_node() {
        let mut table = Table::new(100);
        let now = table.now();
        let (file, _) = table.enter(Ino::ROOT, OsStr::new("x"), attr(Kind::File), now).unwrap();
        let (dir, _) = table.enter(Ino::ROOT, OsStr::new("x"), attr(Kind::Directory), now).unwrap();
        assert_ne!(file, dir);
        assert_eq!(table.path(file), Err(Errno::ESTALE));
    }
}
