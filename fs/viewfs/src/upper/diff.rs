//! What differs between a merged tree and the tree below.
//!
//! Only what the upper layer has is looked at. Where it has more to say than names (an opaque or a moved directory, hard links, a store of
//! the family) the two trees are compared name by name; what comes from below is then told by its layer, without a look at its content.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::ffi::{OsStr, OsString};
use std::path::{Path, PathBuf};

use veduta_api::{Attr, Entry, Errno, File, Filesystem, Ino, Kind, MountError, OpenFlags, Result};

use super::{Upper, Watch, path_of, raw_names};
use crate::layer::{FOREIGN_OPAQUE, Prefix, hidden_by, whiteout_of};
use crate::tree::Tree;
use crate::{state, store};

/// How a path differs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum What {
    /// It was not there.
    Added,
    /// It is not there any more. What was below a directory is not told again.
    Deleted,
    /// Its type is another.
    Type,
    /// Its content or its attributes are others.
    Modified,
}

/// A difference.
#[derive(Clone, Debug)]
pub struct Change {
    /// The path from the root of the tree, without a slash in front; empty for the root.
    pub path: PathBuf,
    /// How it differs.
    pub what: What,
    /// As it was, if it was.
    pub before: Option<Attr>,
    /// As it is, if it is.
    pub after: Option<Attr>,
    /// Whether the content differs, or the target of a symbolic link.
    pub content: bool,
    /// The names of the attributes that differ.
    pub xattrs: Vec<OsString>,
}

impl Change {
    fn both<T: PartialEq>(&self, fact: impl Fn(&Attr) -> T) -> bool {
        match (&self.before, &self.after) {
            (Some(before), Some(after)) => fact(before) != fact(after),
            _ => false,
        }
    }
    /// Whether the permissions differ.
    pub fn mode(&self) -> bool {
        self.both(|attr| attr.perm)
    }
    /// Whether owner or group differ.
    pub fn owner(&self) -> bool {
        self.both(|attr| (attr.uid, attr.gid))
    }
    /// Whether the time of the last change of content differs.
    pub fn time(&self) -> bool {
        self.both(|attr| attr.mtime)
    }
}

/// A directory that is to be compared; what it is in the layer by itself, if that tells all.
struct Task {
    path: PathBuf,
    merged: Option<Ino>,
    below: Option<Ino>,
    raw: Option<Ino>,
}

/// What a comparison found.
#[derive(Default)]
pub(super) struct Differences {
    pub(super) changes: BTreeMap<PathBuf, Change>,
    /// Files with hard links that the layer has and that are as below, by their number in the merged tree: what a commit
    /// that was killed has done.
    pub(super) same_links: HashMap<u64, PathBuf>,
}

pub(super) struct Comparison<'a> {
    pub(super) upper: &'a Upper,
    pub(super) merged: &'a Tree,
    pub(super) below: &'a Tree,
}

impl Upper {
    /// Everything that differs, sorted by path.
    pub fn diff(&self, watch: &mut dyn Watch) -> Result<Vec<Change>, MountError> {
        self.wants_lower()?;
        let (merged, below) = (self.merged()?, self.below()?);
        let found = Comparison { upper: self, merged: &merged, below: &below }.run(watch)?;
        Ok(found.changes.into_values().collect())
    }

    /// Opens a file as it was (`false`) or is (`true`), to show it.
    pub fn read(&self, path: &Path, after: bool) -> Result<Vec<u8>, MountError> {
        let tree = if after { self.merged()? } else { self.below()? };
        let failed =
            |errno: Errno| MountError::system(errno, format!("{}: {}", path.display(), errno.desc()));
        let names = super::components(path)?;
        let (last, above) = names.split_last().ok_or_else(|| failed(Errno::EISDIR))?;
        let dir =
            super::walk(&*tree, Ino::ROOT, above).map_err(failed)?.ok_or_else(|| failed(Errno::ENOENT))?;
        let entry = tree.lookup(dir, last).map_err(failed)?;
        if entry.attr.kind != Kind::File {
            return Err(failed(Errno::EINVAL));
        }
        let file = tree.open(entry.ino, OpenFlags::READ).map_err(failed)?;
        let mut content = Vec::new();
        let mut buf = vec![0; 1 << 16];
        loop {
            let len = file.read_at(&mut buf, content.len() as u64).map_err(failed)?;
            if len == 0 {
                return Ok(content);
            }
            content.extend_from_slice(&buf[..len]);
        }
    }
}

impl Comparison<'_> {
    pub(super) fn run(&self, watch: &mut dyn Watch) -> Result<Differences, MountError> {
        let mut found = Differences::default();
        let fs = self.upper.fs();
        let root = self.upper.place.root;
        let has = |name: &str| {
            fs.lookup(root, OsStr::new(name)).is_ok_and(|entry| entry.attr.kind == Kind::Directory)
        };
        let links = fs.lookup(root, OsStr::new(state::NAME)).ok();
        let has_links = links.is_some_and(|home| {
            let links = fs.lookup(home.ino, OsStr::new("links"));
            links.is_ok_and(|links| raw_names(fs, links.ino).is_ok_and(|names| !names.is_empty()))
        });
        let raw = (!has_links && !has(store::NAME)).then_some(root);
        let mut tasks =
            vec![Task { path: PathBuf::new(), merged: Some(Ino::ROOT), below: Some(Ino::ROOT), raw }];
        while let Some(task) = tasks.pop() {
            let path = &task.path;
            self.directory(&task, &mut tasks, &mut found, watch).map_err(|errno| {
                MountError::system(
                    errno,
                    format!("{}: {}", Path::new("/").join(path).display(), errno.desc()),
                )
            })?;
        }
        Ok(found)
    }

    fn directory(
        &self,
        task: &Task,
        tasks: &mut Vec<Task>,
        found: &mut Differences,
        watch: &mut dyn Watch,
    ) -> Result<()> {
        let mut names: BTreeSet<OsString> = BTreeSet::new();
        match task.raw {
            Some(raw) => {
                for name in raw_names(self.upper.fs(), raw)? {
                    names.extend(hidden_by(&name).map(OsStr::to_owned));
                    names.insert(name);
                }
                names.remove(OsStr::new(FOREIGN_OPAQUE));
            }
            None => {
                names.extend(
                    task.merged.map(|dir| raw_names(self.merged, dir)).transpose()?.unwrap_or_default(),
                );
                names.extend(
                    task.below.map(|dir| raw_names(self.below, dir)).transpose()?.unwrap_or_default(),
                );
            }
        }
        if task.path.as_os_str().is_empty() {
            names.remove(OsStr::new(state::NAME));
        }
        for name in names {
            watch.file();
            let merged = find(self.merged, task.merged, &name)?;
            let below = find(self.below, task.below, &name)?;
            let path = path_of(&task.path, &name);
            if let Some(change) = self.compare(&path, merged.as_ref(), below.as_ref(), watch)? {
                found.changes.insert(path.clone(), change);
            } else if let Some(merged) = merged.as_ref().filter(|merged| merged.attr.nlink > 1) {
                if merged.attr.kind != Kind::Directory && self.is_changed(merged.ino)? {
                    found.same_links.insert(merged.attr.st_ino, path.clone());
                }
            }
            let inner = |entry: &Option<Entry>| {
                entry.as_ref().filter(|entry| entry.attr.kind == Kind::Directory).map(|entry| entry.ino)
            };
            let Some(merged) = inner(&merged) else { continue };
            let below = inner(&below);
            let raw = match (task.raw, below) {
                (Some(raw), Some(_)) => match self.plain(raw, &name)? {
                    Plain::Is(raw) => Some(raw),
                    Plain::IsNot => None,
                    Plain::Absent => continue,
                },
                _ => None,
            };
            if below.is_some() && raw.is_none() && !self.is_changed(merged)? && task.raw.is_some() {
                continue;
            }
            tasks.push(Task { path, merged: Some(merged), below, raw });
        }
        Ok(())
    }

    /// Whether a directory of the layer says all by its names.
    fn plain(&self, dir: Ino, name: &OsStr) -> Result<Plain> {
        let fs = self.upper.fs();
        let Some(entry) = find(fs, Some(dir), name)? else { return Ok(Plain::Absent) };
        let marks = self.upper.prefix.read(fs, entry.ino)?;
        let has = |dir, name: &OsStr| Ok(find(fs, Some(dir), name)?.is_some());
        let is_replaced = match whiteout_of(name) {
            Some(whiteout) => has(dir, &whiteout)?,
            None => false,
        };
        let is_opaque = marks.opaque || is_replaced || has(entry.ino, OsStr::new(FOREIGN_OPAQUE))?;
        let is = !is_opaque && marks.redirect.is_none();
        Ok(if is { Plain::Is(entry.ino) } else { Plain::IsNot })
    }

    /// Whether a node of the merged tree has a part in the upper layer.
    fn is_changed(&self, ino: Ino) -> Result<bool> {
        Ok(self.merged.node(ino)?.parts().top().layer == 0)
    }

    fn compare(
        &self,
        path: &Path,
        merged: Option<&Entry>,
        below: Option<&Entry>,
        watch: &mut dyn Watch,
    ) -> Result<Option<Change>> {
        let change = |what| Change {
            path: path.to_owned(),
            what,
            before: below.map(|entry| entry.attr),
            after: merged.map(|entry| entry.attr),
            content: false,
            xattrs: Vec::new(),
        };
        let (merged, below) = match (merged, below) {
            (None, None) => return Ok(None),
            (Some(_), None) => return Ok(Some(Change { content: true, ..change(What::Added) })),
            (None, Some(_)) => return Ok(Some(change(What::Deleted))),
            (Some(merged), Some(below)) => (merged, below),
        };
        if merged.attr.kind != below.attr.kind {
            return Ok(Some(Change { content: true, ..change(What::Type) }));
        }
        // Of a directory with a part above everything may differ, of others nothing that comes from below.
        if !self.is_changed(merged.ino)? {
            let is_same = merged.attr.kind == Kind::Directory || self.is_same_file(merged, below);
            if is_same {
                return Ok(None);
            }
        }
        let mut found = change(What::Modified);
        if let Some(after) = &mut found.after {
            self.restore_owner(merged, &below.attr, after)?;
        }
        found.content = self.content_differs(merged, below, watch)?;
        found.xattrs = self.xattrs_differ(merged.ino, below.ino)?;
        let is_directory = merged.attr.kind == Kind::Directory;
        let differs = found.content || found.mode() || found.owner() || !found.xattrs.is_empty();
        Ok((differs || found.time() && !is_directory).then_some(found))
    }

    /// A copy that could not keep its owner, since a user made it, is not shown as somebody else's.
    fn restore_owner(&self, merged: &Entry, before: &Attr, after: &mut Attr) -> Result<()> {
        if (after.uid, after.gid) == (before.uid, before.gid) {
            return Ok(());
        }
        let parts = self.merged.node(merged.ino)?.parts();
        let Some(part) = parts.in_layer(0) else { return Ok(()) };
        if matches!(after.kind, Kind::File | Kind::Directory) {
            if let Some(lost) = self.upper.prefix.read(self.upper.fs(), part.ino)?.owner {
                lost.restore(before, after);
            }
        } else if self.upper.prefix == Prefix::USER {
            // No place for a mark: then it is the layer's owner's because he made it.
            let layer = self.upper.fs().getattr(self.upper.place.root)?;
            if (layer.uid, layer.gid) == (after.uid, after.gid) {
                (after.uid, after.gid) = (before.uid, before.gid);
            }
        }
        Ok(())
    }

    /// Both come from below: is it the same file there?
    fn is_same_file(&self, merged: &Entry, below: &Entry) -> bool {
        (merged.attr.btime, merged.attr.ctime, merged.attr.size)
            == (below.attr.btime, below.attr.ctime, below.attr.size)
    }

    fn content_differs(&self, merged: &Entry, below: &Entry, watch: &mut dyn Watch) -> Result<bool> {
        match merged.attr.kind {
            Kind::Symlink => return Ok(self.merged.readlink(merged.ino)? != self.below.readlink(below.ino)?),
            Kind::CharDevice | Kind::BlockDevice => return Ok(merged.attr.rdev != below.attr.rdev),
            Kind::File => {}
            Kind::Directory | Kind::Fifo | Kind::Socket => return Ok(false),
        }
        if merged.attr.size != below.attr.size {
            return Ok(true);
        }
        let one = self.merged.open(merged.ino, OpenFlags::READ)?;
        let other = self.below.open(below.ino, OpenFlags::READ)?;
        Ok(!same_content(&*one, &*other, watch)?)
    }

    fn xattrs_differ(&self, merged: Ino, below: Ino) -> Result<Vec<OsString>> {
        let (after, before) = (xattrs(self.merged, merged)?, xattrs(self.below, below)?);
        let names: BTreeSet<&OsString> = after.keys().chain(before.keys()).collect();
        Ok(names.into_iter().filter(|name| after.get(*name) != before.get(*name)).cloned().collect())
    }
}

enum Plain {
    Is(Ino),
    IsNot,
    Absent,
}

fn find(fs: &dyn Filesystem, dir: Option<Ino>, name: &OsStr) -> Result<Option<Entry>> {
    let Some(dir) = dir else { return Ok(None) };
    match fs.lookup(dir, name) {
        Ok(entry) => Ok(Some(entry)),
        Err(Errno::ENOENT) => Ok(None),
        Err(error) => Err(error),
    }
}

/// All attributes of a node.
pub(super) fn xattrs(fs: &dyn Filesystem, ino: Ino) -> Result<BTreeMap<OsString, Vec<u8>>> {
    let names = match fs.listxattr(ino) {
        Err(Errno::EOPNOTSUPP) => Vec::new(),
        names => names?,
    };
    let mut found = BTreeMap::new();
    for name in names {
        match fs.getxattr(ino, &name) {
            Ok(value) => drop(found.insert(name, value)),
            Err(Errno::ENODATA) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(found)
}

fn same_content(one: &dyn File, other: &dyn File, watch: &mut dyn Watch) -> Result<bool> {
    let (mut a, mut b) = (vec![0; 1 << 16], vec![0; 1 << 16]);
    let mut at = 0;
    loop {
        let (read, also) = (one.read_at(&mut a, at)?, other.read_at(&mut b, at)?);
        if read != also || a[..read] != b[..read] {
            return Ok(false);
        }
        if read == 0 {
            return Ok(true);
        }
        watch.bytes(read as u64);
        at += read as u64;
    }
}
