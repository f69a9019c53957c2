//! Changes kept: brought to the layer below.
//!
//! Each path is done by itself: a file is made whole in a work directory of the layer below, and takes its name by one rename. When all
//! is on the disk the paths go from the upper layer. Whenever the program is killed, a path is as it was or as it shall be, the merged
//! tree is the same all the while, and the next commit does the rest: what is the same on both sides is no difference any more.
//!
//! The work directory is in the root of the layer below. Where that is on another filesystem than the path, or may not be written, as `/`
//! by an ordinary user, it is in the directory of the path itself, for as long as paths of that directory are done. What
//! a killed commit leaves there the next one removes: all such directories are those that the upper layer has too.

use std::collections::HashMap;
use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use veduta_api::{
    Attr, Device, Entry, Errno, Filesystem, Ino, Kind, MountError, NewNode, OpenFlags, Perm, RenameFlags,
    Result, SetAttr, SetTime, XattrMode,
};

use super::diff::{Comparison, Differences, xattrs};
use super::touched::Touched;
use super::{Change, Upper, Watch, What, components, failed, walk};
use crate::copyup::copy_file;
use crate::layer::{FOREIGN_OPAQUE, Marks, whiteout_of};
use crate::state::{self, State, own};
use crate::tree::Tree;

/// Why a path was not committed.
#[derive(Clone, Debug)]
pub struct Conflict {
    /// The path.
    pub path: PathBuf,
    /// What was found, in a sentence.
    pub reason: String,
}

/// What a commit came to.
#[derive(Clone, Debug, Default)]
pub struct Outcome {
    /// What was done, or would be.
    pub done: Vec<Change>,
    /// What was left since the layer below was changed too. Nothing was done then, unless that was forced.
    pub conflicts: Vec<Conflict>,
}

struct Commit<'a> {
    merged: &'a Tree,
    /// The layer below.
    fs: &'a Arc<dyn Filesystem>,
    root: Ino,
    /// The work directory in the root, and its filesystem; `None` if none can be made there.
    home: Option<(State, Option<Device>)>,
    /// That of another directory.
    near: Option<(Ino, State)>,
    /// Files that were committed under one name, by their number in the merged tree.
    linked: HashMap<u64, Ino>,
    /// The same for those that were committed before.
    same_links: HashMap<u64, PathBuf>,
}

impl Upper {
    /// Brings changes to the layer below: those at or below `paths`, or all. `dry_run`: only says what would be done. `force`: also over
    /// what was changed below since.
    pub fn commit(
        &self,
        paths: &[PathBuf],
        dry_run: bool,
        force: bool,
        watch: &mut dyn Watch,
    ) -> Result<Outcome, MountError> {
        self.wants_lower()?;
        let [lower] = self.lower.as_slice() else {
            let count = self.lower.len();
            let message =
                format!("there are {count} layers below; a commit goes to one: name it with --lower");
            return Err(MountError::usage(message));
        };
        let referring = if dry_run { Vec::new() } else { self.referring()? };
        if !referring.is_empty() {
            let trial = self.commit_to(lower, paths, true, force, watch)?;
            if !force && !trial.conflicts.is_empty() {
                return Ok(Outcome { done: Vec::new(), ..trial });
            }
            self.ground(&referring, watch)?;
        }
        self.commit_to(lower, paths, dry_run, force, watch)
    }

    fn commit_to(
        &self,
        lower: &crate::Place,
        paths: &[PathBuf],
        dry_run: bool,
        force: bool,
        watch: &mut dyn Watch,
    ) -> Result<Outcome, MountError> {
        // The layer as it is is taken first, so that nobody mounts it meanwhile.
        let ours = State::begin(Arc::clone(&self.place.tree), self.place.root)?;
        let result = self.commit_held(&ours, lower, paths, dry_run, force, watch);
        ours.end();
        result
    }

    fn commit_held(
        &self,
        ours: &State,
        lower: &crate::Place,
        paths: &[PathBuf],
        dry_run: bool,
        force: bool,
        watch: &mut dyn Watch,
    ) -> Result<Outcome, MountError> {
        let (merged, below) = (self.merged()?, self.below()?);
        let wanted: Vec<PathBuf> = paths
            .iter()
            .map(|path| Ok(components(path)?.iter().collect()))
            .collect::<Result<_, MountError>>()?;
        let is_all = wanted.iter().any(|path| path.as_os_str().is_empty());
        let wanted = if is_all { Vec::new() } else { wanted };
        let is_wanted = |change: &Change| {
            // What leads to a path that is wanted is wanted too, if it has to be made.
            wanted.is_empty()
                || wanted.iter().any(|path| change.path.starts_with(path))
                || change.what != What::Modified && wanted.iter().any(|path| path.starts_with(&change.path))
        };
        let Differences { changes, same_links } =
            Comparison { upper: self, merged: &merged, below: &below }.run(watch)?;
        let (changes, others): (Vec<Change>, Vec<Change>) = changes.into_values().partition(is_wanted);
        let cannot_note = |errno: Errno| failed(Path::new(state::NAME), errno);
        let touched = Touched::read(self.fs(), ours).map_err(cannot_note)?;
        let conflict = |change: &Change| {
            let reason = self.conflict(change, &touched).map_err(|errno| failed(&change.path, errno))?;
            Ok::<_, MountError>(reason.map(|reason| Conflict { path: change.path.clone(), reason }))
        };
        let mut outcome = Outcome::default();
        for change in &changes {
            outcome.conflicts.extend(conflict(change)?);
        }
        if dry_run || !force && !outcome.conflicts.is_empty() {
            outcome.done = if dry_run { changes } else { Vec::new() };
            return Ok(outcome);
        }
        let mut about_to_change: Vec<&Attr> = changes.iter().filter_map(Change::is_touched).collect();
        for change in others.iter().filter(|change| change.is_linked()) {
            if conflict(change)?.is_none() {
                about_to_change.extend(&change.before);
            }
        }
        touched.add(self.fs(), ours, about_to_change.into_iter()).map_err(cannot_note)?;
        let device = lower.tree.getattr(lower.root).map_or(None, |attr| attr.st_dev);
        let home = match State::begin(Arc::clone(&lower.tree), lower.root) {
            Ok(state) => Some((state, device)),
            Err(error) if matches!(error.errno, Errno::EACCES | Errno::EPERM | Errno::EROFS) => None,
            Err(error) => return Err(super::named("the layer below", &error)),
        };
        let fs = &lower.tree;
        let mut commit = Commit {
            merged: &merged,
            fs,
            root: lower.root,
            home,
            near: None,
            linked: HashMap::new(),
            same_links,
        };
        let applied = self.clear_leftovers(lower).and_then(|()| commit.all(changes, &mut outcome, watch));
        let synced = lower.tree.sync();
        commit.end();
        applied?;
        synced.map_err(|errno| MountError::system(errno, format!("the layer below: {}", errno.desc())))?;
        if wanted.is_empty() {
            self.discard_all(ours)?;
            return Ok(outcome);
        }
        for path in &wanted {
            self.forget_done(ours, path).map_err(|errno| failed(path, errno))?;
        }
        if touched.is_empty() && !outcome.done.iter().chain(&others).any(Change::is_linked) {
            Touched::clear(self.fs(), ours).map_err(cannot_note)?;
        }
        Ok(outcome)
    }

    /// Whether the layer below was changed after a path was changed here.
    fn conflict(&self, change: &Change, touched: &Touched) -> Result<Option<String>> {
        let Some(before) = &change.before else { return Ok(None) };
        if before.kind == Kind::Directory || touched.has(before) {
            return Ok(None);
        }
        let names: Vec<_> = change.path.iter().map(OsStr::to_owned).collect();
        let Some((last, above)) = names.split_last() else { return Ok(None) };
        let fs = self.fs();
        // A directory that was removed or renamed as a whole stands for what is in it.
        let mut at = above.len();
        let mut found = None;
        if let Some(dir) = walk(fs, self.place.root, above)? {
            let whiteout = || fs.lookup(dir, &whiteout_of(last)?).ok();
            found = fs.lookup(dir, last).ok().or_else(whiteout);
        }
        while found.is_none() && at > 0 {
            at -= 1;
            if let Some(dir) = walk(fs, self.place.root, &names[..at])? {
                found = fs.lookup(dir, &names[at]).ok();
            }
        }
        let Some(entry) = found else { return Ok(None) };
        let marks = self.prefix.read(fs, entry.ino)?;
        match marks.base {
            Some(base) if entry.attr.kind == before.kind && is_copy_of(&marks, before) => {
                let is_same = base == (before.ctime.seconds, before.ctime.nanos);
                Ok((!is_same).then(|| "it was changed below after it was copied".to_owned()))
            }
            _ => {
                let made = entry.attr.btime.unwrap_or(entry.attr.ctime);
                Ok((before.ctime > made)
                    .then(|| "it was changed below after it was removed or replaced".to_owned()))
            }
        }
    }

    /// Removes the work directories that a killed commit has left in directories of the layer below.
    fn clear_leftovers(&self, lower: &crate::Place) -> Result<(), MountError> {
        let mut tasks = vec![(PathBuf::new(), self.place.root, lower.root)];
        while let Some((path, ours, theirs)) = tasks.pop() {
            let failed = |errno: Errno| failed(&path, errno);
            if theirs != lower.root && find_directory(&*lower.tree, theirs, state::NAME.as_ref()).is_some() {
                State::begin(Arc::clone(&lower.tree), theirs)
                    .map_err(|error| super::named("the layer below", &error))?
                    .end();
            }
            for name in super::raw_names(self.fs(), ours).map_err(failed)? {
                let pair = find_directory(self.fs(), ours, &name).filter(|_| name != state::NAME);
                if let Some((ours, theirs)) = pair.zip(find_directory(&*lower.tree, theirs, &name)) {
                    tasks.push((super::path_of(&path, &name), ours, theirs));
                }
            }
        }
        Ok(())
    }

    /// Takes a path out of the layer that was committed, at once: its changes are below now. It stays, as a copy of what is below, where
    /// the layer would not show what is below instead: in a directory that hides it, and as one of several names of a file.
    fn forget_done(&self, state: &State, path: &Path) -> Result<()> {
        let fs = self.fs();
        let names: Vec<_> = path.iter().map(OsStr::to_owned).collect();
        let Some((last, above)) = names.split_last() else { return Ok(()) };
        let mut dir = self.place.root;
        for name in above {
            let Some(inner) = find_directory(fs, dir, name) else { return Ok(()) };
            if !self.shows_below(dir, name, inner)? {
                return Ok(());
            }
            dir = inner;
        }
        let is_link =
            fs.lookup(dir, last).is_ok_and(|entry| entry.attr.kind == Kind::File && entry.attr.nlink > 1);
        if is_link {
            return Ok(());
        }
        match self.discard_name(state, dir, last) {
            Err(Errno::ENOENT) => Ok(()),
            done => done,
        }
    }

    /// Whether the directory of this name below is seen through one of the layer.
    fn shows_below(&self, parent: Ino, name: &OsStr, dir: Ino) -> Result<bool> {
        let fs = self.fs();
        let marks = self.prefix.read(fs, dir)?;
        let is_replaced = whiteout_of(name).is_some_and(|whiteout| fs.lookup(parent, &whiteout).is_ok());
        let is_opaque = fs.lookup(dir, OsStr::new(FOREIGN_OPAQUE)).is_ok();
        Ok(!marks.opaque && marks.redirect.is_none() && !is_replaced && !is_opaque)
    }
}

impl Change {
    /// Whether it is of a file that has other names below.
    fn is_linked(&self) -> bool {
        self.before.is_some_and(|before| before.kind != Kind::Directory && before.nlink > 1)
    }

    /// What is below, if a commit changes it without putting another in its place at once.
    fn is_touched(&self) -> Option<&Attr> {
        let in_place = self.what == What::Modified && !self.content;
        self.before.as_ref().filter(|before| before.kind != Kind::Directory && (in_place || self.is_linked()))
    }
}

/// Whether what was copied up is this file, and not one that has its name now. Numbers are marked in their highest bits with their layer.
fn is_copy_of(marks: &Marks, before: &Attr) -> bool {
    marks.ino.is_some_and(|ino| (ino ^ before.st_ino) << 6 == 0)
}

fn find_directory(fs: &dyn Filesystem, dir: Ino, name: &OsStr) -> Option<Ino> {
    fs.lookup(dir, name).ok().filter(|entry| entry.attr.kind == Kind::Directory).map(|entry| entry.ino)
}

impl Commit<'_> {
    /// The directory in which things are made that get their names in `dir`.
    fn work(&mut self, dir: Ino) -> Result<Ino> {
        let device = self.fs.getattr(dir)?.st_dev;
        if let Some((home, _)) = self.home.as_ref().filter(|(_, of)| *of == device) {
            return Ok(home.work);
        }
        if let Some((_, near)) = self.near.as_ref().filter(|(at, _)| *at == dir) {
            return Ok(near.work);
        }
        if let Some((_, earlier)) = self.near.take() {
            earlier.end();
        }
        let state = State::begin(Arc::clone(self.fs), dir).map_err(|error| error.errno)?;
        let work = state.work;
        self.near = Some((dir, state));
        Ok(work)
    }

    fn end(self) {
        self.near.into_iter().for_each(|(_, state)| state.end());
        self.home.into_iter().for_each(|(state, _)| state.end());
    }

    fn all(
        &mut self,
        changes: Vec<Change>,
        outcome: &mut Outcome,
        watch: &mut dyn Watch,
    ) -> Result<(), MountError> {
        // What goes goes last: a file that moved is never in neither place.
        let (gone, rest): (Vec<Change>, Vec<Change>) =
            changes.into_iter().partition(|change| change.what == What::Deleted);
        let mut directories = Vec::new();
        for change in rest {
            self.one(&change).map_err(|errno| failed(&change.path, errno))?;
            watch.file();
            watch.bytes(change.after.filter(|_| change.content).map_or(0, |attr| attr.size));
            if change.after.is_some_and(|attr| attr.kind == Kind::Directory) {
                directories.push(change.path.clone());
            }
            outcome.done.push(change);
        }
        for change in gone {
            self.remove(&change.path).map_err(|errno| failed(&change.path, errno))?;
            watch.file();
            outcome.done.push(change);
        }
        // What was made in directories has changed their times.
        for path in directories.iter().rev() {
            self.finish_directory(path).map_err(|errno| failed(path, errno))?;
        }
        Ok(())
    }

    fn one(&mut self, change: &Change) -> Result<()> {
        let names: Vec<_> = change.path.iter().map(OsStr::to_owned).collect();
        let Some((name, above)) = names.split_last() else { return Ok(()) };
        let source_dir = walk(self.merged, Ino::ROOT, above)?.ok_or(Errno::ENOENT)?;
        let mut source = self.merged.lookup(source_dir, name)?;
        let mut is_lost = false;
        if let Some(after) = &change.after {
            // As it was before, where only a copy could not keep it.
            is_lost = (source.attr.uid, source.attr.gid) != (after.uid, after.gid);
            (source.attr.uid, source.attr.gid, source.attr.perm) = (after.uid, after.gid, after.perm);
        }
        let dir = walk(&**self.fs, self.root, above)?.ok_or(Errno::ENOENT)?;
        let is_directory = source.attr.kind == Kind::Directory;
        let there = self.fs.lookup(dir, name).ok();
        let is_there = there.is_some_and(|entry| entry.attr.kind == source.attr.kind);
        let link = if is_directory { None } else { self.link_to(&source)? };
        let stays = link.is_none_or(|ino| there.is_some_and(|entry| entry.ino == ino));
        if is_there && stays && (is_directory || change.what == What::Modified && !change.content) {
            let entry = there.ok_or(Errno::ENOENT)?;
            self.dress(&source, is_lost, entry.ino)?;
            if !is_directory && source.attr.nlink > 1 {
                self.linked.insert(source.attr.st_ino, entry.ino);
            }
            return Ok(());
        }
        let temporary = OsStr::new("new");
        let work = self.work(dir)?;
        let made = match link {
            Some(ino) => self.fs.link(ino, work, temporary)?.ino,
            None => self.make(&source, is_lost, work, temporary)?,
        };
        if !is_directory && source.attr.nlink > 1 {
            self.linked.insert(source.attr.st_ino, made);
        }
        if there.is_some_and(|entry| (entry.attr.kind == Kind::Directory) != is_directory || is_directory) {
            self.swap(work, temporary, dir, name)
        } else {
            self.fs.rename(work, temporary, dir, name, RenameFlags::default())
        }
    }

    /// The file below that has a file of the merged tree already, under another name.
    fn link_to(&self, source: &Entry) -> Result<Option<Ino>> {
        if source.attr.nlink < 2 {
            return Ok(None);
        }
        if let Some(ino) = self.linked.get(&source.attr.st_ino) {
            return Ok(Some(*ino));
        }
        let Some(path) = self.same_links.get(&source.attr.st_ino) else { return Ok(None) };
        let names: Vec<_> = path.iter().map(OsStr::to_owned).collect();
        let Some((name, above)) = names.split_last() else { return Ok(None) };
        let Some(dir) = walk(&**self.fs, self.root, above)? else { return Ok(None) };
        Ok(self.fs.lookup(dir, name).ok().map(|entry| entry.ino))
    }

    /// Puts what was made at a name of something that a rename does not replace, which then goes.
    fn swap(&self, work: Ino, temporary: &OsStr, dir: Ino, name: &OsStr) -> Result<()> {
        let exchange = RenameFlags { exchange: true, ..RenameFlags::default() };
        self.fs.rename(work, temporary, dir, name, exchange)?;
        state::empty(&**self.fs, work)
    }

    fn make(&self, source: &Entry, is_lost: bool, work: Ino, name: &OsStr) -> Result<Ino> {
        let (attr, fs) = (&source.attr, self.fs);
        let ino = match attr.kind {
            Kind::Directory => fs.mkdir(work, name, &own(Kind::Directory, 0o700))?.ino,
            Kind::Symlink => {
                let target = self.merged.readlink(source.ino)?;
                fs.symlink(work, name, &target, &own(Kind::Symlink, 0o777))?.ino
            }
            Kind::File => {
                let (entry, file) = fs.create(work, name, &own(Kind::File, 0o600), OpenFlags::READ_WRITE)?;
                let from = self.merged.open(source.ino, OpenFlags::READ)?;
                let copied = copy_file(&*from, &**fs, entry.ino, &*file, attr)?;
                self.dress(source, is_lost, entry.ino)?;
                copied.write_before_name(&*file)?;
                return Ok(entry.ino);
            }
            kind => fs.mknod(work, name, &NewNode { rdev: attr.rdev, ..own(kind, 0o600) })?.ino,
        };
        self.dress(source, is_lost, ino)?;
        Ok(ino)
    }

    /// Gives a node the owner, attributes, mode and times of a node of the merged tree. `is_lost`: the owner is one that the copy in the
    /// upper layer could not keep, and that this one need not keep either.
    fn dress(&self, source: &Entry, is_lost: bool, ino: Ino) -> Result<()> {
        let now = self.fs.getattr(ino)?;
        let Attr { uid, gid, perm, kind, atime, mtime, .. } = source.attr;
        let mut perm = perm;
        if (now.uid, now.gid) != (uid, gid) {
            let owner = SetAttr { uid: Some(uid), gid: Some(gid), ..SetAttr::default() };
            match self.fs.setattr(ino, &owner) {
                Ok(_) => {}
                // As the copy in the upper layer, it becomes the user's own, and must not run as somebody else.
                Err(Errno::EPERM | Errno::EINVAL) if is_lost => {
                    perm = Perm::from_mode(perm.bits() & 0o1777);
                }
                Err(error) => return Err(error),
            }
        }
        let (wanted, there) = (xattrs(self.merged, source.ino)?, xattrs(&**self.fs, ino)?);
        for name in there.keys().filter(|name| !wanted.contains_key(*name)) {
            self.fs.removexattr(ino, name)?;
        }
        for (name, value) in wanted.iter().filter(|(name, value)| there.get(*name) != Some(*value)) {
            self.fs.setxattr(ino, name, value, XattrMode::Set)?;
        }
        let perm = (kind != Kind::Symlink).then_some(perm);
        let (atime, mtime) = (Some(SetTime::To(atime)), Some(SetTime::To(mtime)));
        self.fs.setattr(ino, &SetAttr { perm, atime, mtime, ..SetAttr::default() })?;
        Ok(())
    }

    fn finish_directory(&self, path: &Path) -> Result<()> {
        let names: Vec<_> = path.iter().map(OsStr::to_owned).collect();
        let (Some(source), Some(ino)) =
            (walk(self.merged, Ino::ROOT, &names)?, walk(&**self.fs, self.root, &names)?)
        else {
            return Ok(());
        };
        let attr = self.merged.getattr(source)?;
        let (atime, mtime) = (Some(SetTime::To(attr.atime)), Some(SetTime::To(attr.mtime)));
        self.fs.setattr(ino, &SetAttr { atime, mtime, ..SetAttr::default() })?;
        Ok(())
    }

    /// Takes a name away at once, with all that is below it.
    fn remove(&mut self, path: &Path) -> Result<()> {
        let names: Vec<_> = path.iter().map(OsStr::to_owned).collect();
        let Some((name, above)) = names.split_last() else { return Ok(()) };
        let Some(dir) = walk(&**self.fs, self.root, above)? else { return Ok(()) };
        let entry = match self.fs.lookup(dir, name) {
            Err(Errno::ENOENT) => return Ok(()),
            entry => entry?,
        };
        if entry.attr.kind != Kind::Directory {
            return self.fs.unlink(dir, name);
        }
        let work = self.work(dir)?;
        self.fs.rename(dir, name, work, OsStr::new("gone"), RenameFlags::default())?;
        state::empty(&**self.fs, work)
    }
}
