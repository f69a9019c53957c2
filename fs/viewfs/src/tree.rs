//! The merged tree: how a name is found in the layers, how directories are listed, and what nodes look like.
//!
//! A directory consists of its parts in all layers that have it, down to one that is opaque; everything else is the topmost that
//! there is. A *union* is made of the layers `0..union`; one more layer may stand behind them, the tree at the mount point, which
//! shows through at the points of `except=` only.
//!
//! Locks, in the order in which they are taken: `Node::copying` (a child's before its parent's), `Node::names` (of two directories,
//! the smaller number first), then `table`, which is held for no call of a layer. No lock is held for the whole tree while a
//! layer works.

use std::collections::{HashMap, HashSet};
use std::ffi::{OsStr, OsString};
use std::ops::ControlFlow;
use std::os::fd::BorrowedFd;
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use parking_lot::{Mutex, RwLock};
use veduta_api::{
    Attr, Caching, Device, Differences, DirEntry, DirSink, Directory, Entry, Errno, Facts, File, Filesystem,
    Ino, Kind, NewNode, OpenFlags, RenameFlags, Result, SetAttr, StatFs, XattrMode,
};
use veduta_tree::listing::{Listed, Listing};

use crate::ahead::Ahead;
use crate::file::MergedFile;
use crate::layer::{self, Layer, Marks, Prefix, Redirect, is_whiteout};
use crate::points::{Point, Points};
use crate::setup::Durability;
use crate::state::{self, State};
use crate::store;
use crate::table::{Draft, LayerNumber, Node, Part, Parts, Place, Table};
use crate::told::{Told, Watched};
use crate::vstat::{self, Override};

/// How a tree is to behave; what the options say.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Rules {
    /// The layer that takes changes.
    pub(crate) write_to: Option<LayerNumber>,
    /// The layer in which changes are tried first, where they stand (`mincow`).
    pub(crate) in_place: Option<LayerNumber>,
    /// Copies of metadata leave the content below.
    pub(crate) metacopy: bool,
    /// Directories with parts below may be renamed.
    pub(crate) redirect: bool,
    /// Hard links of files below are kept.
    pub(crate) index: bool,
    /// Owner, mode and type are kept as an attribute.
    pub(crate) vstat: bool,
    /// What is there stays as it is.
    pub(crate) worm: bool,
    /// What a crash of the machine leaves.
    pub(crate) durability: Durability,
    /// Others change the layers, and that shall be seen.
    pub(crate) shared: bool,
    /// The tree decides who may do what.
    pub(crate) own_permissions: bool,
    /// Nodes show the numbers of the files behind.
    pub(crate) real_numbers: bool,
    /// Those of the files below, when they have been copied up.
    pub(crate) keeps_numbers: bool,
    /// Owners are shown otherwise than they are.
    pub(crate) disguised: bool,
    pub(crate) prefix: Prefix,
}

/// See the head of this file.
pub(crate) struct Tree {
    pub(crate) layers: Vec<Layer>,
    /// How many of the layers are laid over each other.
    pub(crate) union: usize,
    /// The tree at the mount point, as it was.
    below: Option<LayerNumber>,
    /// Of each layer, what its inode numbers are marked with: layers on one device share it.
    spaces: Vec<u64>,
    pub(crate) rules: Rules,
    pub(crate) state: Option<State>,
    /// The upper layer of a tree that is only read, and its links.
    links: Option<(LayerNumber, Ino)>,
    pub(crate) table: Mutex<Table>,
    /// With `keeps_numbers`: of each copy that was made through this mount, by its number, what it shows.
    pub(crate) copied: Mutex<HashMap<u64, (u64, Option<Device>)>>,
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    pub(crate) next_name: AtomicU64,
    /// A reflink was refused: none is tried again.
    pub(crate) no_reflinks: AtomicBool,
    /// Listings of directories, by node: the kernel goes on from what it remembers of one that was open earlier, where it has forgotten
    /// the rest of it. So positions are those of the node and not of one opening.
    listings: RwLock<HashMap<Ino, Arc<Listing>>>,
    /// Directories that are read before they are asked for.
    ahead: Option<Ahead>,
    /// The upper layer, if others may look at the layer below by themselves.
    pub(crate) watched: Option<Arc<Watched>>,
    me: Weak<Tree>,
}

/// What a name leads to.
pub(crate) struct Found {
    pub(crate) parts: Parts,
    /// As users see it, but for the number of links.
    pub(crate) attr: Attr,
    pub(crate) marks: Marks,
    points: Option<Arc<Points>>,
    write_to: Option<LayerNumber>,
}

impl Found {
    pub(crate) fn new(
        parts: Parts,
        attr: Attr,
        marks: Marks,
        points: Option<Arc<Points>>,
        write_to: Option<LayerNumber>,
    ) -> Self {
        Self { parts, attr, marks, points, write_to }
    }

    /// The same without the references: for as long as somebody else holds them.
    pub(crate) fn copied(&self) -> Self {
        let Self { parts, attr, marks, points, write_to } = self;
        Self {
            parts: parts.clone(),
            attr: *attr,
            marks: marks.clone(),
            points: points.clone(),
            write_to: *write_to,
        }
    }
}

/// Parts to which references are held, given back unless they are taken.
struct Held<'a> {
    tree: &'a Tree,
    stack: Vec<Part>,
}

impl Held<'_> {
    fn take(mut self) -> Vec<Part> {
        std::mem::take(&mut self.stack)
    }
}

impl Drop for Held<'_> {
    fn drop(&mut self) {
        self.tree.release(&self.stack);
    }
}

/// Where in the layers below the search goes on.
enum Below {
    /// Under this name in the parts of the same directory.
    Name(OsString),
    /// At this path of every layer.
    Path(Vec<OsString>),
}

impl Tree {
    pub(crate) fn new(
        layers: Vec<Layer>,
        union: usize,
        below: Option<LayerNumber>,
        points: Points,
        rules: Rules,
        state: Option<State>,
        watched: Option<Arc<Watched>>,
    ) -> Result<Arc<Self>> {
        let mut devices = Vec::new();
        let mut spaces = Vec::new();
        for layer in &layers {
            let stat = layer.fs.statfs()?;
            let device = (stat.id, stat.magic);
            let space = devices.iter().position(|other| *other == device).unwrap_or(devices.len());
            if space == devices.len() {
                devices.push(device);
            }
            spaces.push((space as u64) << 58);
        }
        let mut stack = Vec::new();
        for (number, layer) in layers.iter().enumerate().take(union) {
            let number = LayerNumber::try_from(number).map_err(|_| Errno::E2BIG)?;
            let has_store = number == 0 && union > 1;
            let store = if has_store { layer.find(layer.root, OsStr::new(store::NAME))? } else { None };
            let marks = rules.prefix.read(&*layer.fs, layer.root)?;
            stack.push(Part {
                layer: number,
                ino: layer.root,
                path: Arc::from(OsStr::new("")),
                has_xattr_whiteouts: marks.has_xattr_whiteouts,
                store: store.filter(|(_, attr)| attr.kind == Kind::Directory).map(|(ino, _)| (number, ino)),
            });
        }
        let root = &layers[usize::from(stack.last().map_or(0, |part| part.layer))];
        let attr = root.fs.getattr(root.root)?;
        let draft = Draft {
            kind: Kind::Directory,
            st_ino: attr.st_ino,
            shown: (attr.st_ino, attr.st_dev),
            parts: Parts { stack, data: 0 },
            points: (!points.is_empty()).then(|| Arc::new(points)),
            write_to: rules.write_to,
            is_impure: false,
            names_count: 0,
            is_new: false,
        };
        let table = Mutex::new(Table::new(draft));
        let links = match (&rules.write_to, layers.first()) {
            (None, Some(upper)) if union > 1 => {
                state::find_links(&*upper.fs, upper.root)?.map(|links| (0, links))
            }
            _ => None,
        };
        // In a view many directories are looked at without us.
        let place = |layer: &Layer| layer.fs.shows(Weak::<Told>::new()).filter(|_| layer.root == Ino::ROOT);
        let ahead = if rules.real_numbers { None } else { Ahead::new(layers.iter().map(place)) };
        let tree = Arc::new_cyclic(|me| Self {
            layers,
            union,
            below,
            spaces,
            rules,
            state,
            links,
            table,
            copied: Mutex::default(),
            uid: rustix::process::geteuid().as_raw(),
            gid: rustix::process::getegid().as_raw(),
            next_name: AtomicU64::new(1),
            no_reflinks: AtomicBool::new(false),
            listings: RwLock::default(),
            ahead,
            watched,
            me: me.clone(),
        });
        if let Some(watched) = &tree.watched {
            watched.belongs_to(&tree);
        }
        Ok(tree)
    }

    pub(crate) fn myself(&self) -> Option<Arc<Tree>> {
        self.me.upgrade()
    }

    pub(crate) fn layer(&self, number: LayerNumber) -> &Layer {
        &self.layers[usize::from(number)]
    }

    pub(crate) fn fs(&self, number: LayerNumber) -> &dyn Filesystem {
        &*self.layer(number).fs
    }

    pub(crate) fn node(&self, ino: Ino) -> Result<Arc<Node>> {
        self.table.lock().node(ino)
    }

    /// Gives back the references of parts.
    pub(crate) fn release(&self, stack: &[Part]) {
        for part in stack {
            let layer = self.layer(part.layer);
            if part.ino != layer.root {
                layer.fs.forget(part.ino, 1);
            }
            if let Some((number, store)) = part.store {
                self.fs(number).forget(store, 1);
            }
        }
    }

    /// Drops nodes that the table let go.
    pub(crate) fn drop_nodes(&self, dropped: Vec<Arc<Node>>) {
        for node in dropped {
            self.release(&node.parts().stack);
            if node.kind == Kind::Directory {
                self.listings.write().remove(&node.ino);
            }
        }
    }

    /// Whether a layer has others below it, so that marks in it mean something.
    pub(crate) fn has_below(&self, layer: LayerNumber) -> bool {
        usize::from(layer) + 1 < self.union
    }

    /// What a copy shows that was made through this mount: the number and the device of what it was made from. `mark`: the number that its
    /// mark tells, without which the inode may be another's by now.
    fn copied_from(&self, copy: u64, mark: Option<u64>) -> Option<(u64, Option<Device>)> {
        let from = self.copied.lock().get(&copy).copied()?;
        (mark == Some(from.0)).then_some(from)
    }

    fn fold(&self, layer: LayerNumber, st_ino: u64) -> u64 {
        if self.rules.real_numbers {
            return st_ino;
        }
        st_ino ^ self.spaces[usize::from(layer)]
    }

    // --- Finding

    /// What `name` leads to in a directory; `None` if there is no such name. Holds references, for [`enter`](Self::enter)
    /// or [`release`](Self::release).
    pub(crate) fn find(&self, parent: &Node, name: &OsStr) -> Result<Option<Found>> {
        if parent.is_gone.load(Ordering::Acquire) {
            return Ok(None);
        }
        let points = parent.points.as_ref().and_then(|points| points.get(name)).cloned();
        match points.as_ref().and_then(|points| points.here()) {
            Some(Point::Hide) => return Ok(None),
            Some(Point::Except(path)) => return self.find_except(path),
            None => {}
        }
        if self.is_hidden(parent, name) {
            return Ok(None);
        }
        let parts = parent.parts();
        let mut held = Held { tree: self, stack: Vec::new() };
        let mut top: Option<(Attr, Marks)> = None;
        let mut below = Below::Name(name.to_owned());
        let mut data = 0;
        let mut stored: Option<(LayerNumber, Ino)> = None;
        let mut deleted = false;
        // A layer is looked at once: the search goes down.
        for number in parts.top().layer..LayerNumber::try_from(self.layers.len()).unwrap_or(LayerNumber::MAX)
        {
            let layer = self.layer(number);
            let here = parts.in_layer(number);
            let (found, sought) = match (&below, here) {
                (Below::Name(sought), Some(part)) => (layer.find(part.ino, sought)?, Some(part)),
                (Below::Path(names), _) if usize::from(number) < self.union => {
                    (self.walk(number, names)?, None)
                }
                _ => continue,
            };
            if let (Some((over, store)), Below::Name(sought)) = (sought.and_then(|part| part.store), &below) {
                let said = store::look(self.layer(over), store, sought)?;
                if let Some(below) = said.below {
                    if let Some((over, earlier)) = stored.replace((over, below)) {
                        self.fs(over).forget(earlier, 1);
                    }
                }
                deleted |= said.deleted;
                // What lies in the layer of the store itself was made later.
                if said.deleted && (over != number || found.is_none()) {
                    if let Some((ino, _)) = found {
                        layer.fs.forget(ino, 1);
                    }
                    break;
                }
            }
            let Some((ino, mut attr)) = found else {
                match (&below, sought) {
                    (Below::Name(name), Some(part)) if self.hides(&parts, part, name)? => break,
                    _ => continue,
                }
            };
            let may_hide = top.is_none() && self.has_below(number) && layer::hidden_by(name).is_some();
            if may_hide && layer.is_named_whiteout(self.rules.prefix, ino, &attr)? {
                layer.fs.forget(ino, 1);
                continue;
            }
            held.stack.push(Part {
                layer: number,
                ino,
                path: Arc::from(OsStr::new("")),
                has_xattr_whiteouts: false,
                store: if attr.kind == Kind::Directory { stored.take() } else { None },
            });
            let is_directory = attr.kind == Kind::Directory;
            if let Some((first, _)) = &top {
                let fits = if data > 0 { attr.kind == Kind::File } else { is_directory };
                if !fits || first.kind != attr.kind || self.is_union_whiteout(&attr) {
                    self.drop_last(&mut held);
                    break;
                }
            }
            if self.is_union_whiteout(&attr) {
                self.drop_last(&mut held);
                break;
            }
            let has_marks = self.has_below(number) && matches!(attr.kind, Kind::Directory | Kind::File);
            let marks = match has_marks {
                true if self.rules.write_to == Some(number) => self.rules.prefix.read_own(&*layer.fs, ino)?,
                true => self.rules.prefix.read(&*layer.fs, ino)?,
                false => Marks::default(),
            };
            if marks.whiteout && sought.is_some_and(|part| part.has_xattr_whiteouts) && attr.size == 0 {
                self.drop_last(&mut held);
                break;
            }
            if is_directory {
                let path = match (&below, sought) {
                    (Below::Name(sought), Some(part)) => join(&part.path, sought),
                    (Below::Path(names), _) => {
                        names.iter().fold(OsString::new(), |path, name| join(&path, name))
                    }
                    _ => OsString::new(),
                };
                if let Some(part) = held.stack.last_mut() {
                    part.path = Arc::from(path);
                    part.has_xattr_whiteouts = marks.has_xattr_whiteouts;
                }
            }
            match &marks.redirect {
                Some(Redirect::Name(name)) => below = Below::Name(name.clone()),
                Some(Redirect::Path(names)) => below = Below::Path(names.clone()),
                None => {}
            }
            let goes_on = if is_directory {
                !marks.opaque && !self.is_opaque_by_name(&parts, number, ino, sought, name)?
            } else {
                marks.metacopy && attr.kind == Kind::File
            };
            if !is_directory && goes_on {
                data = held.stack.len();
            }
            if top.is_none() {
                if let Some((over, store)) = sought.and_then(|part| part.store) {
                    store::dress(self.layer(over), store, name, &mut attr)?;
                }
                top = Some((self.seen(number, ino, attr)?, marks));
            }
            if !goes_on || deleted || !self.has_below(number) {
                break;
            }
        }
        if let Some((over, store)) = stored {
            self.fs(over).forget(store, 1);
        }
        let Some((attr, marks)) = top else { return Ok(None) };
        if data > 0 && data >= held.stack.len() {
            tracing::error!("{name:?}: its content is missing from the layers below");
            return Err(Errno::EIO);
        }
        let parts = Parts { stack: held.take(), data };
        let mut found = Found { parts, attr, marks, points, write_to: parent.write_to };
        self.find_link(&mut found)?;
        Ok(Some(found))
    }

    /// Whether a part of a directory says by a file `.wh.NAME` that nothing below it shows at a name.
    pub(crate) fn hides(&self, parts: &Parts, part: &Part, name: &OsStr) -> Result<bool> {
        let has_more = parts.stack.last().is_some_and(|last| last.layer > part.layer);
        if !has_more || !self.has_below(part.layer) {
            return Ok(false);
        }
        self.layer(part.layer).has_named_whiteout(self.rules.prefix, part.ino, name)
    }

    /// Whether a directory of a layer, found at a name in a part, is opaque by what the names in it or beside it say.
    fn is_opaque_by_name(
        &self,
        parts: &Parts,
        number: LayerNumber,
        ino: Ino,
        sought: Option<&Part>,
        name: &OsStr,
    ) -> Result<bool> {
        if !self.has_below(number) {
            return Ok(false);
        }
        let is_beside = sought.map_or(Ok(false), |part| self.hides(parts, part, name))?;
        Ok(is_beside || self.layer(number).is_opaque_by_name(ino, self.rules.write_to == Some(number))?)
    }

    /// Whether a name is ours, or the family's.
    fn is_hidden(&self, parent: &Node, name: &OsStr) -> bool {
        if name == layer::FOREIGN_OPAQUE && self.union > 1 {
            return true;
        }
        parent.ino == Ino::ROOT
            && (name == state::NAME && self.union > 1
                || name == store::NAME && parent.parts().top().store.is_some())
    }

    fn is_union_whiteout(&self, attr: &Attr) -> bool {
        self.union > 1 && is_whiteout(attr)
    }

    fn drop_last(&self, held: &mut Held<'_>) {
        if let Some(part) = held.stack.pop() {
            self.release(std::slice::from_ref(&part));
        }
    }

    /// The node at a path of a layer, with one reference. Whiteouts are nothing.
    fn walk(&self, number: LayerNumber, names: &[OsString]) -> Result<Option<(Ino, Attr)>> {
        let layer = self.layer(number);
        let mut here = (layer.root, layer.fs.getattr(layer.root)?);
        for name in names {
            let next = if here.1.kind == Kind::Directory { layer.find(here.0, name)? } else { None };
            if here.0 != layer.root {
                layer.fs.forget(here.0, 1);
            }
            here = match next {
                Some((ino, attr)) if is_whiteout(&attr) => {
                    layer.fs.forget(ino, 1);
                    return Ok(None);
                }
                Some(next) => next,
                None => return Ok(None),
            };
        }
        Ok(Some(here))
    }

    fn find_except(&self, path: &[OsString]) -> Result<Option<Found>> {
        let Some(number) = self.below else { return Ok(None) };
        let Some((ino, attr)) = self.walk(number, path)? else { return Ok(None) };
        let path = path.iter().fold(OsString::new(), |path, name| join(&path, name));
        let part =
            Part { layer: number, ino, path: Arc::from(path), has_xattr_whiteouts: false, store: None };
        let parts = Parts { stack: vec![part], data: 0 };
        // Not if nothing may be changed at all.
        let write_to = self.rules.write_to.and(Some(number));
        Ok(Some(Found { parts, attr, marks: Marks::default(), points: None, write_to }))
    }

    /// A file below with hard links may have been copied up under another name.
    fn find_link(&self, found: &mut Found) -> Result<()> {
        let top = found.parts.top();
        let is_below = usize::from(top.layer) < self.union;
        // A commit takes names away below one by one: while it does, and after it was killed, the rest of them is found too.
        let is_half_committed = self.state.as_ref().is_some_and(|state| state.is_half_committed);
        let may_be = found.attr.nlink > 1 || self.links.is_some() || is_half_committed;
        if found.attr.kind != Kind::File || !may_be || !is_below || !self.rules.index {
            return Ok(());
        }
        let written = self.state.as_ref().and_then(State::links).zip(self.rules.write_to);
        let Some((links, to)) = written.or(self.links.map(|(to, links)| (links, to))) else { return Ok(()) };
        if top.layer <= to {
            return Ok(());
        }
        let upper = self.layer(to);
        let key = state::link_name(usize::from(top.layer), self.union, &found.attr);
        let Some((ino, attr)) = upper.find(links, &key)? else { return Ok(()) };
        let part =
            Part { layer: to, ino, has_xattr_whiteouts: false, path: Arc::clone(&top.path), store: None };
        found.marks = self.rules.prefix.read_own(&*upper.fs, ino)?;
        found.attr = self.seen(to, ino, attr)?;
        found.parts.stack.insert(0, part);
        found.parts.data = usize::from(found.marks.metacopy);
        Ok(())
    }

    /// A node of a layer as users see it.
    pub(crate) fn seen(&self, layer: LayerNumber, ino: Ino, mut attr: Attr) -> Result<Attr> {
        if self.rules.vstat && matches!(attr.kind, Kind::File | Kind::Directory) {
            if let Some(virtual_) = Override::read(self.fs(layer), ino)? {
                virtual_.apply(&mut attr);
            }
        }
        Ok(attr)
    }

    /// Enters what was found at a place, with one reference for the host.
    pub(crate) fn enter(&self, parent: Ino, name: &OsStr, found: Found) -> Result<Entry> {
        let (node, attr) = self.settle(found, Some(Place::new(parent, name)));
        Ok(Entry { ino: node.ino, generation: 0, attr: self.dress(&node, attr)? })
    }

    pub(crate) fn settle(&self, found: Found, place: Option<Place>) -> (Arc<Node>, Attr) {
        let Found { parts, attr, marks, points, write_to } = found;
        let top = parts.top();
        // Of a directory the number is that of its first part below, which stays when it is copied up.
        let numbered = match attr.kind {
            Kind::Directory if top.layer == self.rules.write_to.unwrap_or(0) => {
                parts.stack.get(1).unwrap_or(top)
            }
            _ => top,
        };
        let (st_ino, shown) = if numbered.layer == top.layer {
            let st_ino = marks.ino.unwrap_or_else(|| self.fold(top.layer, attr.st_ino));
            (st_ino, self.copied_from(attr.st_ino, marks.ino).unwrap_or((attr.st_ino, attr.st_dev)))
        } else {
            let below = self.fs(numbered.layer).getattr(numbered.ino).unwrap_or(attr);
            (self.fold(numbered.layer, below.st_ino), (below.st_ino, below.st_dev))
        };
        let draft = Draft {
            kind: attr.kind,
            st_ino,
            shown,
            parts,
            points: points.filter(|points| !points.is_empty()),
            write_to,
            is_impure: marks.impure,
            names_count: marks.names.unwrap_or(0),
            is_new: false,
        };
        let (node, spare) = self.table.lock().enter(draft, place);
        if let Some(spare) = spare {
            self.release(&spare.stack);
        }
        (node, attr)
    }

    /// The attributes of a node, from those of its topmost part.
    pub(crate) fn dress(&self, node: &Node, mut attr: Attr) -> Result<Attr> {
        if !self.rules.real_numbers {
            (attr.st_ino, attr.st_dev) = (node.st_ino, None);
        } else if self.rules.keeps_numbers {
            (attr.st_ino, attr.st_dev) = node.shown;
        }
        attr.kind = node.kind;
        let parts = node.parts();
        if node.kind == Kind::Directory {
            if parts.stack.len() > 1 {
                attr.nlink = 1;
            }
        } else {
            match (node.names_count.load(Ordering::Relaxed), node.names_lost.load(Ordering::Relaxed)) {
                (0, lost) => attr.nlink = attr.nlink.saturating_sub(lost),
                (count, _) => attr.nlink = count,
            }
        }
        if parts.data > 0 {
            let content = parts.content();
            attr.blocks = self.fs(content.layer).getattr(content.ino)?.blocks;
        }
        Ok(attr)
    }

    /// The attributes of a node now.
    pub(crate) fn attr(&self, node: &Node) -> Result<Attr> {
        let parts = node.parts();
        let top = parts.top();
        let mut attr = self.fs(top.layer).getattr(top.ino)?;
        if let Some((parent, name)) = self.stored_place(node) {
            let above = parent.parts();
            let part = above.top();
            if let Some((over, store)) = part.store {
                store::dress(self.layer(over), store, &name, &mut attr)?;
            }
        }
        let attr = self.seen(top.layer, top.ino, attr)?;
        self.dress(node, attr)
    }

    fn attribute(&self, node: &Node, name: &OsStr) -> Result<Vec<u8>> {
        if !self.rules.shared && node.lacks(name) {
            return Err(Errno::ENODATA);
        }
        let parts = node.parts();
        let top = parts.top();
        node.ask_attribute(name, || self.fs(top.layer).getxattr(top.ino, &self.rules.prefix.to_layer(name)))
    }

    /// Where a node is, if a store of the family may say something of it.
    fn stored_place(&self, node: &Node) -> Option<(Arc<Node>, OsString)> {
        let table = self.table.lock();
        table.node(Ino::ROOT).ok()?.parts().top().store?;
        table.place(node.ino)
    }

    // --- Listing

    /// All names of a directory.
    fn list(&self, node: &Node, opened: &[Option<Arc<dyn Directory>>]) -> Result<Vec<Listed>> {
        let Some(ahead) = &self.ahead else { return self.list_all(node, opened) };
        let begun = Instant::now();
        let listed = self.list_all(node, opened)?;
        let took = begun.elapsed();
        let parent = self.table.lock().place(node.ino).map(|(parent, _)| parent.ino);
        let parts = node.parts();
        let parts = parts.stack.iter().map(|part| (usize::from(part.layer), &*part.path));
        let below = listed.iter().filter(|entry| entry.kind == Some(Kind::Directory));
        let below = below.map(|entry| &*entry.name);
        ahead.listed(node.ino, parent, &parts, (took, listed.len()), &below);
        Ok(listed)
    }

    fn list_all(&self, node: &Node, opened: &[Option<Arc<dyn Directory>>]) -> Result<Vec<Listed>> {
        if node.is_gone.load(Ordering::Acquire) {
            return Err(Errno::ENOENT);
        }
        let parts = node.parts();
        let is_merged = parts.stack.len() > 1;
        let is_impure = node.is_impure.load(Ordering::Relaxed);
        let mut listed: Vec<Listed> = Vec::new();
        let mut seen: HashSet<OsString> = HashSet::new();
        let mut directories: HashMap<OsString, usize> = HashMap::new();
        for (index, part) in parts.stack.iter().enumerate() {
            let is_last = index + 1 == parts.stack.len();
            let raw = self.list_part(part, opened.get(index).and_then(Option::as_ref))?;
            let mut gone = match part.store {
                Some((over, store)) => store::deleted(self.layer(over), store)?,
                None => Vec::new(),
            };
            if part.store.is_some_and(|(over, _)| over != part.layer) {
                seen.extend(gone.iter().cloned());
            }
            for mut entry in raw {
                if self.is_hidden(node, &entry.name) {
                    continue;
                }
                if self.is_named_whiteout_entry(part, &entry)? {
                    gone.extend(layer::hidden_by(&entry.name).map(OsStr::to_owned));
                    continue;
                }
                if seen.contains(&entry.name) {
                    if let Some(first) = directories.remove(&entry.name) {
                        let keeps = self.rules.keeps_numbers || !self.rules.real_numbers;
                        if entry.kind == Some(Kind::Directory) && keeps {
                            listed[first].st_ino = self.fold(part.layer, entry.st_ino);
                        }
                    }
                    continue;
                }
                let is_upper = self.has_below(part.layer);
                if is_upper && self.is_whiteout_entry(part, &entry)? {
                    seen.insert(entry.name);
                    continue;
                }
                let is_directory = entry.kind == Some(Kind::Directory);
                entry.st_ino = self.fold(part.layer, entry.st_ino);
                let is_kept = || match self.rules.real_numbers {
                    true => self.copied.lock().contains_key(&entry.st_ino),
                    false => true,
                };
                if is_upper && is_impure && !is_directory && is_kept() {
                    if let Some(found) = self.find(node, &entry.name)? {
                        entry.st_ino = found.marks.ino.unwrap_or(entry.st_ino);
                        self.release(&found.parts.stack);
                    }
                }
                if self.rules.vstat && entry.kind == Some(Kind::File) {
                    entry.kind = None;
                }
                if is_merged && !is_last {
                    if is_directory && is_upper {
                        directories.insert(entry.name.clone(), listed.len());
                    }
                    seen.insert(entry.name.clone());
                }
                listed.push(entry);
            }
            for name in &gone {
                directories.remove(name);
            }
            seen.extend(gone);
        }
        if let Some(points) = &node.points {
            self.list_points(points, &mut listed)?;
        }
        Ok(listed)
    }

    fn listing(&self, dir: Ino) -> Arc<Listing> {
        if let Some(listing) = self.listings.read().get(&dir) {
            return Arc::clone(listing);
        }
        Arc::clone(self.listings.write().entry(dir).or_default())
    }

    fn list_part(&self, part: &Part, opened: Option<&Arc<dyn Directory>>) -> Result<Vec<Listed>> {
        let mut raw = Vec::new();
        let mut take = |entry: DirEntry<'_>| {
            raw.push(Listed { name: entry.name.to_owned(), st_ino: entry.st_ino, kind: entry.kind });
            ControlFlow::Continue(())
        };
        match opened {
            Some(directory) => directory.read(0, &mut take)?,
            None => self.fs(part.layer).readdir(part.ino, 0, &mut take)?,
        }
        Ok(raw)
    }

    fn is_whiteout_entry(&self, part: &Part, entry: &Listed) -> Result<bool> {
        let layer = self.layer(part.layer);
        let may_be = match entry.kind {
            Some(Kind::CharDevice) | None => true,
            Some(Kind::File) => part.has_xattr_whiteouts,
            Some(_) => false,
        };
        if !may_be {
            return Ok(false);
        }
        let Some((ino, attr)) = layer.find(part.ino, &entry.name)? else { return Ok(true) };
        let by_mark = part.has_xattr_whiteouts && attr.kind == Kind::File && attr.size == 0;
        let is = if by_mark {
            self.rules.prefix.read(&*layer.fs, ino).map(|marks| marks.whiteout)
        } else {
            Ok(is_whiteout(&attr))
        };
        layer.fs.forget(ino, 1);
        is
    }

    fn is_named_whiteout_entry(&self, part: &Part, entry: &Listed) -> Result<bool> {
        let may_be = matches!(entry.kind, Some(Kind::File) | None) && self.has_below(part.layer);
        if !may_be || layer::hidden_by(&entry.name).is_none() {
            return Ok(false);
        }
        let layer = self.layer(part.layer);
        let Some((ino, attr)) = layer.find(part.ino, &entry.name)? else { return Ok(false) };
        let is = layer.is_named_whiteout(self.rules.prefix, ino, &attr);
        layer.fs.forget(ino, 1);
        is
    }

    fn list_points(&self, points: &Points, listed: &mut Vec<Listed>) -> Result<()> {
        for (name, point) in points.names() {
            listed.retain(|entry| entry.name != name);
            let Point::Except(path) = point else { continue };
            if let Some(found) = self.find_except(path)? {
                let st_ino = self.fold(found.parts.top().layer, found.attr.st_ino);
                listed.push(Listed { name: name.to_owned(), st_ino, kind: Some(found.attr.kind) });
                self.release(&found.parts.stack);
            }
        }
        Ok(())
    }

    /// Whether nothing is in a directory as users see it.
    pub(crate) fn is_empty(&self, found: &Found) -> Result<bool> {
        if found.points.as_ref().is_some_and(|points| !points.is_empty()) {
            return Ok(false);
        }
        let mut gone: HashSet<OsString> = HashSet::new();
        for part in &found.parts.stack {
            let stored = match part.store {
                Some((over, store)) => store::deleted(self.layer(over), store)?,
                None => Vec::new(),
            };
            if part.store.is_some_and(|(over, _)| over != part.layer) {
                gone.extend(stored.iter().cloned());
            }
            let seen = if self.rules.write_to == Some(part.layer) {
                // Its owner may remove one that he may not list.
                layer::with_right(self.fs(part.layer), part.ino, 0o500, || self.emptied(part, &gone))
            } else {
                self.emptied(part, &gone)
            };
            let Some(more) = seen? else { return Ok(false) };
            gone.extend(stored);
            gone.extend(more);
        }
        Ok(true)
    }

    /// The names that a part of a directory takes away from those below; `None` if it shows any.
    fn emptied(&self, part: &Part, gone: &HashSet<OsString>) -> Result<Option<Vec<OsString>>> {
        let mut more = Vec::new();
        for entry in self.list_part(part, None)? {
            if self.is_named_whiteout_entry(part, &entry)? {
                more.extend(layer::hidden_by(&entry.name).map(OsStr::to_owned));
                continue;
            }
            if gone.contains(&entry.name) || entry.name == layer::FOREIGN_OPAQUE && self.union > 1 {
                continue;
            }
            if !self.has_below(part.layer) || !self.is_whiteout_entry(part, &entry)? {
                return Ok(None);
            }
            more.push(entry.name);
        }
        Ok(Some(more))
    }
}

/// A path in a layer.
pub(crate) fn join(path: &OsStr, name: &OsStr) -> OsString {
    let mut joined = path.to_owned();
    joined.push("/");
    joined.push(name);
    joined
}

/// An open directory.
struct OpenDir {
    tree: Arc<Tree>,
    node: Arc<Node>,
    /// By part, in their order when it was opened.
    opened: Vec<Option<Arc<dyn Directory>>>,
    parts: Arc<Parts>,
    listing: Arc<Listing>,
}

impl Directory for OpenDir {
    fn read(&self, position: u64, sink: &mut DirSink<'_>) -> Result<()> {
        let list = || {
            let is_same = Arc::ptr_eq(&self.parts, &self.node.parts());
            self.tree.list(&self.node, if is_same { &self.opened } else { &[] })
        };
        self.listing.read(position, list, sink)
    }
}

impl Filesystem for Tree {
    fn facts(&self) -> Facts {
        let facts = self.layers.iter().map(|layer| layer.fs.facts());
        let upper = self.layer(self.rules.write_to.unwrap_or(0)).fs.facts();
        Facts {
            caching: if self.rules.shared {
                Caching::Shared(Duration::from_secs(1))
            } else {
                Caching::Exclusive
            },
            name_max: facts.map(|facts| facts.name_max).min().unwrap_or(255),
            size_max: upper.size_max,
            acl: upper.acl && !self.rules.own_permissions,
            backing: true,
            own_permissions: self.rules.own_permissions,
            silent_close: self.layers.iter().all(|layer| layer.fs.facts().silent_close),
            time_granularity: upper.time_granularity,
            ..Facts::default()
        }
    }

    fn lookup(&self, parent: Ino, name: &OsStr) -> Result<Entry> {
        let node = self.node(parent)?;
        let found = self.find(&node, name)?.ok_or(Errno::ENOENT)?;
        self.enter(parent, name, found)
    }

    fn getattr(&self, ino: Ino) -> Result<Attr> {
        self.attr(&*self.node(ino)?)
    }

    /// One that was opened below before the copy was made still is. A copy that was looked up anew has no part below, but a mark that says what
    /// it was.
    fn is_made_of(&self, ino: Ino, device: Device, st_ino: u64) -> bool {
        let Ok(node) = self.node(ino) else { return false };
        let parts = node.parts();
        let is = |part: &Part| self.fs(part.layer).is_made_of(part.ino, device, st_ino);
        if parts.stack.iter().any(is) {
            return true;
        }
        let top = parts.top();
        let below = self.layers.iter().skip(usize::from(top.layer) + 1);
        let is_there =
            |layer: &Layer| layer.fs.getattr(layer.root).is_ok_and(|attr| attr.st_dev == Some(device));
        let marks = || self.rules.prefix.read(self.fs(top.layer), top.ino);
        node.kind != Kind::Directory
            && below.into_iter().any(is_there)
            && marks().is_ok_and(|marks| marks.ino == Some(st_ino))
    }

    fn place_of(&self, real: &Path) -> Option<PathBuf> {
        let layers = self.layers.iter().filter(|layer| layer.root == Ino::ROOT);
        let roots = layers.filter_map(|layer| layer.fs.shows(Weak::<Told>::new()));
        let rest = roots.filter_map(|root| real.strip_prefix(root).ok().map(Path::to_owned));
        // The longest root leaves the shortest.
        rest.min_by_key(|rest| rest.as_os_str().len()).filter(|rest| !rest.starts_with(state::NAME))
    }

    fn readdir(&self, dir: Ino, position: u64, sink: &mut DirSink<'_>) -> Result<()> {
        let node = self.node(dir)?;
        let listing = self.listing(dir);
        listing.read(position, || self.list(&node, &[]), sink)
    }

    fn opendir(&self, dir: Ino) -> Result<Option<Arc<dyn Directory>>> {
        let node = self.node(dir)?;
        let parts = node.parts();
        let open = |part: &Part| self.fs(part.layer).opendir(part.ino);
        let opened = parts.stack.iter().map(open).collect::<Result<_>>()?;
        let tree = self.me.upgrade().ok_or(Errno::EIO)?;
        let listing = self.listing(dir);
        Ok(Some(Arc::new(OpenDir { tree, node, opened, parts, listing })))
    }

    fn open(&self, ino: Ino, flags: OpenFlags) -> Result<Arc<dyn File>> {
        let node = self.node(ino)?;
        if flags.write {
            return self.open_to_write(&node, flags);
        }
        let parts = node.parts();
        let part = parts.content();
        let file = self.fs(part.layer).open(part.ino, flags)?;
        let is_final = node.write_to.is_none_or(|to| part.layer <= to);
        let is_foreign = node.write_to != Some(part.layer);
        let tree = self.me.upgrade().ok_or(Errno::EIO)?;
        Ok(Arc::new(MergedFile::new(tree, node, file, flags, is_final).of_foreign(is_foreign)))
    }

    fn parent(&self, dir: Ino) -> Result<Ino> {
        if dir == Ino::ROOT {
            return Ok(dir);
        }
        Ok(self.table.lock().place(dir).ok_or(Errno::ESTALE)?.0.ino)
    }

    fn readlink(&self, ino: Ino) -> Result<OsString> {
        let node = self.node(ino)?;
        let parts = node.parts();
        let top = parts.top();
        if node.kind != Kind::Symlink || !self.rules.vstat {
            return self.fs(top.layer).readlink(top.ino);
        }
        match self.fs(top.layer).getattr(top.ino)?.kind {
            Kind::File => {
                let mut target = vec![0; 4096];
                let len = self.fs(top.layer).open(top.ino, OpenFlags::READ)?.read_at(&mut target, 0)?;
                target.truncate(len);
                Ok(OsString::from_vec(target))
            }
            _ => self.fs(top.layer).readlink(top.ino),
        }
    }

    fn shows(&self, differences: Weak<dyn Differences>) -> Option<PathBuf> {
        self.show(&differences)
    }

    fn statfs(&self) -> Result<StatFs> {
        self.fs(self.rules.write_to.unwrap_or(0)).statfs()
    }

    fn forget(&self, ino: Ino, count: u64) {
        let dropped = self.table.lock().forget(ino, count);
        self.drop_nodes(dropped);
    }

    fn sync(&self) -> Result<()> {
        match self.rules.write_to {
            Some(to) if self.rules.durability != Durability::Volatile => self.fs(to).sync(),
            _ => Ok(()),
        }
    }

    fn unmount(&self) -> Result<()> {
        if let Some(state) = &self.state {
            state.leave();
        }
        let synced = self.sync();
        if let Some(state) = &self.state {
            state.end();
        }
        synced
    }

    fn setattr(&self, ino: Ino, changes: &SetAttr) -> Result<Attr> {
        self.do_setattr(&*self.node(ino)?, changes)
    }

    fn create(
        &self,
        parent: Ino,
        name: &OsStr,
        new: &NewNode,
        flags: OpenFlags,
    ) -> Result<(Entry, Arc<dyn File>)> {
        self.do_create(&*self.node(parent)?, name, new, flags)
    }

    fn mknod(&self, parent: Ino, name: &OsStr, new: &NewNode) -> Result<Entry> {
        self.do_mknod(&*self.node(parent)?, name, new)
    }

    fn mkdir(&self, parent: Ino, name: &OsStr, new: &NewNode) -> Result<Entry> {
        self.do_mkdir(&*self.node(parent)?, name, new)
    }

    fn symlink(&self, parent: Ino, name: &OsStr, target: &OsStr, new: &NewNode) -> Result<Entry> {
        self.do_symlink(&*self.node(parent)?, name, target, new)
    }

    fn link(&self, ino: Ino, parent: Ino, name: &OsStr) -> Result<Entry> {
        self.do_link(&*self.node(ino)?, &*self.node(parent)?, name)
    }

    fn tmpfile(&self, parent: Ino, new: &NewNode, flags: OpenFlags) -> Result<(Entry, Arc<dyn File>)> {
        self.do_tmpfile(&*self.node(parent)?, new, flags)
    }

    fn node_of(&self, file: BorrowedFd<'_>) -> Result<Entry> {
        self.find_unnamed(file)
    }

    fn unlink(&self, parent: Ino, name: &OsStr) -> Result<()> {
        self.remove(&*self.node(parent)?, name, false)
    }

    fn rmdir(&self, parent: Ino, name: &OsStr) -> Result<()> {
        self.remove(&*self.node(parent)?, name, true)
    }

    fn rename(
        &self,
        parent: Ino,
        name: &OsStr,
        new_parent: Ino,
        new_name: &OsStr,
        flags: RenameFlags,
    ) -> Result<()> {
        self.do_rename(&*self.node(parent)?, name, &*self.node(new_parent)?, new_name, flags)
    }

    fn getxattr(&self, ino: Ino, name: &OsStr) -> Result<Vec<u8>> {
        if self.rules.vstat && vstat::is_ours(name) {
            return Err(Errno::ENODATA);
        }
        self.attribute(&*self.node(ino)?, name)
    }

    fn listxattr(&self, ino: Ino) -> Result<Vec<OsString>> {
        let node = self.node(ino)?;
        let parts = node.parts();
        let top = parts.top();
        let names = self.fs(top.layer).listxattr(top.ino)?;
        let shown = names.iter().filter(|name| !(self.rules.vstat && vstat::is_ours(name)));
        Ok(shown.filter_map(|name| self.rules.prefix.to_user(name)).collect())
    }

    fn setxattr(&self, ino: Ino, name: &OsStr, value: &[u8], mode: XattrMode) -> Result<()> {
        if self.rules.vstat && vstat::is_ours(name) {
            return Err(Errno::EPERM);
        }
        let kept = self.rules.prefix.to_layer(name);
        let node = self.node(ino)?;
        let set = self.change(&node, |fs, ino| fs.setxattr(ino, &kept, value, mode));
        node.attributes_changed();
        set
    }

    fn removexattr(&self, ino: Ino, name: &OsStr) -> Result<()> {
        // What is not there is not copied up for its removal: a host asks for capabilities to go at every first write.
        let node = self.node(ino)?;
        let kept = self.rules.prefix.to_layer(name);
        self.attribute(&node, name)?;
        self.change(&node, |fs, ino| fs.removexattr(ino, &kept))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::setup::{Mode, Setup};

    fn cow(dir: &Path) -> Arc<Tree> {
        let place = |name: &str| {
            let path = dir.join(name);
            std::fs::create_dir_all(&path).unwrap();
            crate::Place::open(&path).unwrap()
        };
        let setup = Setup {
            mode: Mode::Cow,
            upper: Some(place("up")),
            lower: vec![place("low")],
            ..Setup::default()
        };
        setup.tree().unwrap()
    }

    #[test]
    fn what_nobody_refers_to_is_not_remembered() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir_all(dir.path().join("low/a/b")).unwrap();
        let tree = cow(dir.path());
        let look = |parent, name: &str| tree.lookup(parent, OsStr::new(name)).unwrap().ino;
        let a = look(Ino::ROOT, "a");
        let b = look(a, "b");
        tree.forget(a, 1);
        assert_eq!(tree.table.lock().count(), 3, "what lies above a node stays");
        let new = NewNode { uid: tree.uid, gid: tree.gid, ..state::own(Kind::File, 0o644) };
        let made = tree.create(b, OsStr::new("f"), &new, OpenFlags::READ_WRITE).unwrap().0;
        tree.rename(b, OsStr::new("f"), Ino::ROOT, OsStr::new("g"), RenameFlags::default()).unwrap();
        tree.unlink(Ino::ROOT, OsStr::new("g")).unwrap();
        assert!(tree.getattr(made.ino).is_ok(), "it has no name and is still there");
        tree.forget(made.ino, 1);
        tree.forget(b, 1);
        assert_eq!(tree.table.lock().count(), 1);
    }

    #[test]
    fn a_file_that_is_open_shows_what_is_written_to_its_copy() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir_all(dir.path().join("low")).unwrap();
        std::fs::write(dir.path().join("low/f"), "old").unwrap();
        let tree = cow(dir.path());
        let ino = tree.lookup(Ino::ROOT, OsStr::new("f")).unwrap().ino;
        let reader = tree.open(ino, OpenFlags::READ).unwrap();
        tree.open(ino, OpenFlags::READ_WRITE).unwrap().write_at(b"new", 0).unwrap();
        let mut buf = [0; 3];
        reader.read_at(&mut buf, 0).unwrap();
        assert_eq!(&buf, b"new");
        assert_eq!(std::fs::read(dir.path().join("low/f")).unwrap(), b"old");
    }

    #[test]
    fn a_listing_goes_on_where_an_earlier_one_of_the_directory_was() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir_all(dir.path().join("low")).unwrap();
        for number in 0..100 {
            std::fs::write(dir.path().join(format!("low/{number}")), "").unwrap();
        }
        let tree = cow(dir.path());
        let list = |position, most: usize| {
            let mut seen = Vec::new();
            let mut take = |entry: DirEntry<'_>| {
                if seen.len() == most {
                    return ControlFlow::Break(());
                }
                seen.push((entry.name.to_owned(), entry.next));
                ControlFlow::Continue(())
            };
            tree.opendir(Ino::ROOT).unwrap().unwrap().read(position, &mut take).unwrap();
            seen
        };
        let first = list(0, 40);
        for (name, _) in &first[..30] {
            tree.unlink(Ino::ROOT, name).unwrap();
        }
        let rest = list(first[39].1, 100);
        let all: HashSet<_> = first.iter().chain(&rest).map(|(name, _)| name.clone()).collect();
        assert_eq!((rest.len(), all.len()), (60, 100), "nothing is left out, and nothing comes twice");
        assert_eq!(list(0, 100).len(), 70);
    }

    #[test]
    fn an_upper_layer_serves_one_mount_at_a_time() {
        let dir = tempfile::tempdir().unwrap();
        let first = cow(dir.path());
        let place = |name: &str| crate::Place::open(&dir.path().join(name)).unwrap();
        let again = || Setup {
            mode: Mode::Cow,
            upper: Some(place("up")),
            lower: vec![place("low")],
            ..Setup::default()
        };
        assert_eq!(again().tree().err().unwrap().errno, Errno::EBUSY);
        first.unmount().unwrap();
        drop(first);
        assert!(again().tree().is_ok());
    }
}
