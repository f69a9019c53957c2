//! Paths resolved in a tree without a kernel: for programs that look into one, and for tests.
//!
//! As `path_resolution(7)` has it, without permissions. The root of the tree is `/`: `..` stays in it, and so do absolute
//! symbolic links.

use std::collections::VecDeque;
use std::ffi::{OsStr, OsString};
use std::ops::ControlFlow;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::sync::Arc;

use veduta_api::{Attr, DirEntry, Directory, Entry, Errno, File, Filesystem, Ino, Kind, OpenFlags, Result};

/// Symbolic links on the way of one path; more give `ELOOP`.
const MAX_LINKS: u32 = 40;
/// Bytes; a path as long as this, or longer, gives `ENAMETOOLONG`.
const PATH_MAX: usize = 4096;
/// Entries that are taken from a directory at a time.
const BATCH: usize = 256;

/// Whether a symbolic link at the end of a path is followed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Follow {
    /// It is.
    Yes,
    /// It is not, unless a slash is behind it.
    No,
}

/// A node with a reference to it, which is given back when this is dropped.
pub struct Node<'t> {
    tree: &'t dyn Filesystem,
    entry: Entry,
}

impl<'t> Node<'t> {
    /// Takes over the reference that comes with an entry.
    pub fn new(tree: &'t dyn Filesystem, entry: Entry) -> Self {
        Self { tree, entry }
    }

    fn root(tree: &'t dyn Filesystem) -> Result<Self> {
        let attr = tree.getattr(Ino::ROOT)?;
        Ok(Self { tree, entry: Entry { ino: Ino::ROOT, generation: 0, attr } })
    }

    /// The node.
    pub fn ino(&self) -> Ino {
        self.entry.ino
    }

    /// The attributes, as they were when it was found.
    pub fn attr(&self) -> &Attr {
        &self.entry.attr
    }

    /// Whether it is a directory.
    pub fn is_dir(&self) -> bool {
        self.entry.attr.kind == Kind::Directory
    }
}

impl Drop for Node<'_> {
    fn drop(&mut self) {
        // The root is always there, and nobody gave a reference to it.
        if self.entry.ino != Ino::ROOT {
            self.tree.forget(self.entry.ino, 1);
        }
    }
}

/// The node at a path, absolute or not: both start at the root.
///
/// Errors are those of the kernel: `ENOENT`, `ENOTDIR`, `ELOOP`, `ENAMETOOLONG`; `ENOENT` for the empty path.
pub fn resolve<'t>(tree: &'t dyn Filesystem, path: &Path, follow: Follow) -> Result<Node<'t>> {
    let bytes = path.as_os_str().as_bytes();
    let mut walk = Walk::new(tree, bytes)?;
    let wants_dir = ends_in_dir(bytes);
    walk.run(if wants_dir { Follow::Yes } else { follow })?;
    walk.finish()
}

/// The directory that the last component of a path is in, and that component: for making, removing and renaming it.
/// `EINVAL` if there is no last component, or it is `.` or `..`.
pub fn resolve_parent<'t, 'p>(tree: &'t dyn Filesystem, path: &'p Path) -> Result<(Node<'t>, &'p OsStr)> {
    let bytes = path.as_os_str().as_bytes();
    let trimmed = trim_slashes(bytes);
    if trimmed.is_empty() {
        return Err(if bytes.is_empty() { Errno::ENOENT } else { Errno::EINVAL });
    }
    let at = trimmed.iter().rposition(|byte| *byte == b'/').map_or(0, |slash| slash + 1);
    let (before, name) = trimmed.split_at(at);
    if name == b"." || name == b".." {
        return Err(Errno::EINVAL);
    }
    if name.len() > tree.facts().name_max as usize || bytes.len() >= PATH_MAX {
        return Err(Errno::ENAMETOOLONG);
    }
    let mut walk = Walk::new(tree, if before.is_empty() { b"/" } else { before })?;
    walk.run(Follow::Yes)?;
    let parent = walk.finish()?;
    if parent.is_dir() { Ok((parent, OsStr::from_bytes(name))) } else { Err(Errno::ENOTDIR) }
}

fn trim_slashes(mut bytes: &[u8]) -> &[u8] {
    while let [rest @ .., b'/'] = bytes {
        bytes = rest;
    }
    bytes
}

/// Whether a path can only lead to a directory.
fn ends_in_dir(bytes: &[u8]) -> bool {
    bytes.ends_with(b"/")
}

/// A walk that is under way.
struct Walk<'t> {
    tree: &'t dyn Filesystem,
    name_max: usize,
    /// The directories from the root down to where the walk is, and at the end perhaps something else.
    nodes: Vec<Node<'t>>,
    /// What is still to be walked, the next one in front. Links that are followed put theirs in front.
    components: VecDeque<OsString>,
    /// A slash is behind the last component.
    wants_dir: bool,
    links: u32,
}

impl<'t> Walk<'t> {
    fn new(tree: &'t dyn Filesystem, path: &[u8]) -> Result<Self> {
        if path.is_empty() {
            return Err(Errno::ENOENT);
        }
        if path.len() >= PATH_MAX {
            return Err(Errno::ENAMETOOLONG);
        }
        let mut walk = Self {
            tree,
            name_max: tree.facts().name_max as usize,
            nodes: vec![Node::root(tree)?],
            components: VecDeque::new(),
            wants_dir: ends_in_dir(path),
            links: 0,
        };
        walk.push_front(path);
        Ok(walk)
    }

    fn push_front(&mut self, path: &[u8]) {
        let parts = path.split(|byte| *byte == b'/').filter(|part| !part.is_empty());
        for part in parts.rev() {
            self.components.push_front(OsStr::from_bytes(part).to_owned());
        }
    }

    /// Each step takes a component off; a link adds some, and there are at most 40 of those. So this ends.
    fn run(&mut self, follow: Follow) -> Result<()> {
        while let Some(component) = self.components.pop_front() {
            self.check_dir()?;
            if component == ".." {
                if self.nodes.len() > 1 {
                    self.nodes.pop();
                }
            } else if component != "." {
                self.step(&component, follow)?;
            }
        }
        if self.wants_dir { self.check_dir() } else { Ok(()) }
    }

    fn step(&mut self, name: &OsStr, follow: Follow) -> Result<()> {
        if name.len() > self.name_max {
            return Err(Errno::ENAMETOOLONG);
        }
        let node = Node::new(self.tree, self.tree.lookup(self.here()?.ino(), name)?);
        let is_last = self.components.is_empty();
        if node.attr().kind != Kind::Symlink || (is_last && follow == Follow::No) {
            self.nodes.push(node);
            return Ok(());
        }
        self.links += 1;
        if self.links > MAX_LINKS {
            return Err(Errno::ELOOP);
        }
        let target = self.tree.readlink(node.ino())?;
        let target = target.as_bytes();
        if target.is_empty() {
            return Err(Errno::ENOENT);
        }
        if target.starts_with(b"/") {
            self.nodes.truncate(1);
        }
        self.wants_dir |= is_last && ends_in_dir(target);
        self.push_front(target);
        Ok(())
    }

    fn here(&self) -> Result<&Node<'t>> {
        self.nodes.last().ok_or(Errno::ENOENT)
    }

    fn check_dir(&self) -> Result<()> {
        if self.here()?.is_dir() { Ok(()) } else { Err(Errno::ENOTDIR) }
    }

    fn finish(mut self) -> Result<Node<'t>> {
        self.nodes.pop().ok_or(Errno::ENOENT)
    }
}

/// One entry of a directory, as listed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Listed {
    /// The name; neither `.` nor `..`.
    pub name: OsString,
    /// The node, if the listing tells it. Carries no reference.
    pub ino: Option<Ino>,
    /// What `d_ino` shows.
    pub st_ino: u64,
    /// The type, if the listing tells it.
    pub kind: Option<Kind>,
    /// The position behind it.
    pub next: u64,
}

/// The entries of a directory, in the order of its listing. After an error there are no more.
pub fn entries(tree: &dyn Filesystem, dir: Ino) -> Result<Entries<'_>> {
    let open = tree.opendir(dir)?;
    Ok(Entries { tree, dir, open, position: 0, batch: VecDeque::new(), is_done: false })
}

/// The node that a listed entry leads to, without a search where the listing told it.
pub fn entry<'t>(tree: &'t dyn Filesystem, dir: Ino, listed: &Listed) -> Result<Node<'t>> {
    let Listed { name, ino, st_ino, kind, next } = listed;
    let hint = DirEntry { name, ino: *ino, st_ino: *st_ino, kind: *kind, next: *next };
    Ok(Node::new(tree, tree.entry(dir, &hint)?))
}

/// See [`entries`].
pub struct Entries<'t> {
    tree: &'t dyn Filesystem,
    dir: Ino,
    open: Option<Arc<dyn Directory>>,
    position: u64,
    batch: VecDeque<Listed>,
    is_done: bool,
}

impl Entries<'_> {
    fn fill(&mut self) -> Result<()> {
        let from = self.position;
        let (batch, position) = (&mut self.batch, &mut self.position);
        let mut sink = |entry: DirEntry<'_>| {
            if batch.len() == BATCH {
                return ControlFlow::Break(());
            }
            let DirEntry { name, ino, st_ino, kind, next } = entry;
            batch.push_back(Listed { name: name.to_owned(), ino, st_ino, kind, next });
            *position = entry.next;
            ControlFlow::Continue(())
        };
        match &self.open {
            Some(open) => open.read(from, &mut sink)?,
            None => self.tree.readdir(self.dir, from, &mut sink)?,
        }
        self.is_done = self.batch.is_empty();
        Ok(())
    }
}

impl Iterator for Entries<'_> {
    type Item = Result<Listed>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.batch.is_empty() && !self.is_done {
            if let Err(error) = self.fill() {
                self.is_done = true;
                return Some(Err(error));
            }
        }
        self.batch.pop_front().map(Ok)
    }
}

/// The whole content of a file, up to `limit` bytes: `EFBIG` if there is more. The size in the attributes is not trusted.
pub fn read_all(tree: &dyn Filesystem, ino: Ino, limit: u64) -> Result<Vec<u8>> {
    read_file(&*tree.open(ino, OpenFlags::READ)?, limit)
}

/// As [`read_all`], for a file that is open.
pub fn read_file(file: &dyn File, limit: u64) -> Result<Vec<u8>> {
    let mut content = Vec::new();
    let mut chunk = vec![0; 1 << 17];
    loop {
        let len = file.read_at(&mut chunk, content.len() as u64)?;
        if len == 0 {
            return Ok(content);
        }
        if content.len() as u64 + len as u64 > limit {
            return Err(Errno::EFBIG);
        }
        content.extend_from_slice(&chunk[..len]);
    }
}
