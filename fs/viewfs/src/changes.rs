//! Changes: new names, names that go, names that move, and attributes.
//!
//! What a change needs in the upper layer is copied up first; then the names of the directory are locked, and what was found is looked
//! at again. Each change of a name is one rename, link or removal in the layer, so it is whole or not there after a crash.

use std::ffi::OsStr;
use std::os::fd::BorrowedFd;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use parking_lot::MutexGuard;
use veduta_api::{
    Attr, Entry, Errno, File, Filesystem, Ino, Kind, NewNode, OpenFlags, Perm, RenameFlags, Result, SetAttr,
    XattrMode,
};

use crate::copyup::{Content, real_mode, rename_new, write_all};
use crate::file::MergedFile;
use crate::layer::{Marks, hidden_by, is_whiteout, whiteout_of};
use crate::points::Point;
use crate::state::own;
use crate::table::{LayerNumber, Node, Part, Parts, Place};
use crate::tree::{Found, Tree};
use crate::vstat::Override;

/// How often a change is begun again because others were faster.
const ATTEMPTS: usize = 64;

/// What the upper layer has at a name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum There {
    Nothing,
    Whiteout,
    Something,
}

/// What makes a node in a directory of a layer.
type Make<'a, T> = &'a dyn Fn(&dyn Filesystem, Ino, &OsStr) -> Result<(Entry, T)>;

/// Errors upon which a change is made in the upper layer instead.
fn is_refusal(error: Errno) -> bool {
    matches!(error, Errno::EACCES | Errno::EPERM | Errno::EROFS)
}

impl Tree {
    // --- What is there

    fn upper_has(&self, dir: &Part, name: &OsStr) -> Result<There> {
        let layer = self.layer(dir.layer);
        let Some((ino, attr)) = layer.find(dir.ino, name)? else { return Ok(There::Nothing) };
        let is_white = self.has_lower()
            && (is_whiteout(&attr)
                || dir.has_xattr_whiteouts
                    && attr.kind == Kind::File
                    && attr.size == 0
                    && self.rules.prefix.read_own(&*layer.fs, ino)?.whiteout);
        layer.fs.forget(ino, 1);
        Ok(if is_white { There::Whiteout } else { There::Something })
    }

    /// Whether the layers below the one that is written show something at a name.
    fn below_has(&self, parent: &Node, to: LayerNumber, name: &OsStr) -> Result<bool> {
        for part in parent.parts().stack.iter().filter(|part| part.layer > to) {
            let layer = self.layer(part.layer);
            if self.hides(&parent.parts(), part, name)? {
                return Ok(layer.peek(part.ino, name)?.is_some_and(|(_, attr)| !is_whiteout(&attr)));
            }
            if let Some((ino, attr)) = layer.find(part.ino, name)? {
                let by_mark = part.has_xattr_whiteouts && attr.kind == Kind::File && attr.size == 0;
                let is_white =
                    is_whiteout(&attr) || by_mark && self.rules.prefix.read(&*layer.fs, ino)?.whiteout;
                layer.fs.forget(ino, 1);
                return Ok(!is_white);
            }
        }
        Ok(false)
    }

    /// Whether a layer above the one that is written has a name.
    fn above_has(&self, parent: &Node, to: LayerNumber, name: &OsStr) -> Result<bool> {
        for part in parent.parts().stack.iter().filter(|part| part.layer < to) {
            if self.layer(part.layer).peek(part.ino, name)?.is_some()
                || self.hides(&parent.parts(), part, name)?
            {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// Puts a whiteout that is a name (`.wh.NAME`) in our own form, before something is changed at NAME. With the names locked.
    fn adopt_whiteout(&self, dir: &Part, parent: &Node, name: &OsStr) -> Result<()> {
        if !self.hides(&parent.parts(), dir, name)? {
            return Ok(());
        }
        let layer = self.layer(dir.layer);
        match layer.find(dir.ino, name)? {
            None => self.make_whiteout(dir, parent, name)?,
            Some((ino, attr)) => {
                // Both, in a layer of an image: it was made anew.
                let is_directory = attr.kind == Kind::Directory;
                let set = if is_directory { self.set_opaque(&*layer.fs, ino) } else { Ok(()) };
                layer.fs.forget(ino, 1);
                set?;
            }
        }
        match whiteout_of(name) {
            Some(whiteout) => layer.fs.unlink(dir.ino, &whiteout),
            None => Ok(()),
        }
    }

    /// Marks a file that is about to get a name like that of a whiteout, so that it is none.
    pub(crate) fn mark_plain(&self, layer: LayerNumber, ino: Ino, kind: Kind, name: &OsStr) -> Result<()> {
        if kind != Kind::File || hidden_by(name).is_none() || !self.has_below(layer) {
            return Ok(());
        }
        self.fs(layer).setxattr(ino, &self.rules.prefix.name("veduta.plain"), b"y", XattrMode::Set)
    }

    /// Points of `except=` and `hide=` are as firm as mount points, and so is what leads to them.
    fn check_point(&self, parent: &Node, name: &OsStr, adding: bool) -> Result<()> {
        let is_state = parent.ino == Ino::ROOT && name == crate::state::NAME;
        if (is_state || name == crate::layer::FOREIGN_OPAQUE) && self.has_lower() {
            return Err(Errno::EPERM);
        }
        match parent.points.as_ref().and_then(|points| points.get(name)) {
            None => Ok(()),
            Some(points) => match points.here() {
                Some(Point::Hide) if adding => Err(Errno::EPERM),
                Some(Point::Hide) => Err(Errno::ENOENT),
                _ if adding => Ok(()),
                _ => Err(Errno::EBUSY),
            },
        }
    }

    fn me(&self) -> Result<Arc<Tree>> {
        self.myself().ok_or(Errno::EIO)
    }

    // --- New names

    /// Makes a node where changes are made.
    fn add<T>(
        &self,
        parent: &Node,
        name: &OsStr,
        kind: Kind,
        make: Make<'_, T>,
    ) -> Result<(Arc<Node>, Entry, T)> {
        self.check_point(parent, name, true)?;
        let to = parent.write_to.ok_or(Errno::EROFS)?;
        if let Some(made) = self.add_in_place(parent, to, name, kind, make)? {
            return Ok(made);
        }
        let dir = self.dir_up(parent)?;
        let _names = parent.names.lock();
        let is_merged = parent.parts().stack.len() > 1;
        let mut there = There::Nothing;
        let mut below = false;
        if is_merged {
            if self.above_has(parent, to, name)? {
                return Err(Errno::EEXIST);
            }
            self.adopt_whiteout(&dir, parent, name)?;
            there = self.upper_has(&dir, name)?;
            below = there != There::Something && self.below_has(parent, to, name)?;
        }
        if there == There::Something || there == There::Nothing && below {
            return Err(Errno::EEXIST);
        }
        let fs = self.fs(to);
        // A name that is like that of a whiteout: the file is marked before it has it.
        let is_odd = hidden_by(name).is_some() && self.has_below(to);
        if is_odd && !is_merged {
            there = self.upper_has(&dir, name)?;
            if there == There::Something {
                return Err(Errno::EEXIST);
            }
        }
        let made = match there {
            _ if is_odd => self.add_over_whiteout(&dir, name, kind, below, make),
            There::Whiteout => self.add_over_whiteout(&dir, name, kind, below, make),
            _ => match make(fs, dir.ino, name) {
                // In a directory of the upper layer alone, which was not looked at.
                Err(Errno::EEXIST) if !is_merged && self.upper_has(&dir, name)? == There::Whiteout => {
                    self.add_over_whiteout(&dir, name, kind, false, make)
                }
                made => made,
            },
        };
        let (entry, with) = made?;
        let (node, entry) = self.enter_new(parent, name, &dir, entry)?;
        Ok((node, entry, with))
    }

    /// Enters a node that was just made in a layer.
    fn enter_new(&self, parent: &Node, name: &OsStr, dir: &Part, entry: Entry) -> Result<(Arc<Node>, Entry)> {
        let path = crate::tree::join(&dir.path, name);
        let part = Part {
            layer: dir.layer,
            ino: entry.ino,
            path: Arc::from(path),
            has_xattr_whiteouts: false,
            store: None,
        };
        let points = parent.points.as_ref().and_then(|points| points.get(name)).cloned();
        let attr = self.seen(dir.layer, entry.ino, entry.attr)?;
        let parts = Parts { stack: vec![part], data: 0 };
        let found = Found::new(parts, attr, Marks::default(), points, parent.write_to);
        let (node, attr) = self.settle(found, Some(Place::new(parent.ino, name)));
        node.is_new.store(true, Ordering::Relaxed);
        let attr = self.dress(&node, attr)?;
        let entry = Entry { ino: node.ino, generation: 0, attr };
        Ok((node, entry))
    }

    /// `mincow`: where the directory stands, if that is allowed.
    fn add_in_place<T>(
        &self,
        parent: &Node,
        to: LayerNumber,
        name: &OsStr,
        _kind: Kind,
        make: Make<'_, T>,
    ) -> Result<Option<(Arc<Node>, Entry, T)>> {
        let parts = parent.parts();
        let Some(dir) = self
            .rules
            .in_place
            .filter(|_| parent.write_to == self.rules.write_to)
            .and_then(|layer| parts.in_layer(layer))
        else {
            return Ok(None);
        };
        let _names = parent.names.lock();
        if let Some(upper) = parts.in_layer(to) {
            match self.upper_has(upper, name)? {
                There::Something => return Err(Errno::EEXIST),
                There::Whiteout => return Ok(None),
                There::Nothing => {}
            }
        }
        match make(self.fs(dir.layer), dir.ino, name) {
            Err(error) if is_refusal(error) => Ok(None),
            Err(error) => Err(error),
            Ok((entry, with)) => {
                let (node, entry) = self.enter_new(parent, name, dir, entry)?;
                Ok(Some((node, entry, with)))
            }
        }
    }

    fn add_over_whiteout<T>(
        &self,
        dir: &Part,
        name: &OsStr,
        kind: Kind,
        below: bool,
        make: Make<'_, T>,
    ) -> Result<(Entry, T)> {
        let (fs, work, temporary) = (self.fs(dir.layer), self.state()?.work, self.work_name());
        let (entry, with) = make(fs, work, &temporary)?;
        let finish = || {
            self.inherit_acl(fs, dir.ino, entry.ino, kind)?;
            self.mark_plain(dir.layer, entry.ino, entry.attr.kind, name)?;
            if kind != Kind::Directory {
                return fs.rename(work, &temporary, dir.ino, name, RenameFlags::default());
            }
            if below {
                self.set_opaque(fs, entry.ino)?;
            }
            self.swap_in(fs, work, &temporary, dir, name)
        };
        match finish() {
            Ok(()) => Ok((entry, with)),
            Err(error) => {
                self.discard(dir.layer, &temporary);
                fs.forget(entry.ino, 1);
                Err(error)
            }
        }
    }

    /// Gives a directory the name of a whiteout.
    fn swap_in(
        &self,
        fs: &dyn Filesystem,
        work: Ino,
        temporary: &OsStr,
        dir: &Part,
        name: &OsStr,
    ) -> Result<()> {
        let exchange = RenameFlags { exchange: true, ..RenameFlags::default() };
        match fs.rename(work, temporary, dir.ino, name, exchange) {
            Ok(()) => {
                self.discard(dir.layer, temporary);
                Ok(())
            }
            // A filesystem that cannot exchange: for a moment there is nothing, and what is below may be seen.
            Err(Errno::EINVAL | Errno::EOPNOTSUPP) => {
                fs.unlink(dir.ino, name)?;
                fs.rename(work, temporary, dir.ino, name, RenameFlags::default())
            }
            Err(error) => Err(error),
        }
    }

    /// The default ACL of a directory is inherited by what is made in it; what was made in the work directory gets it here.
    fn inherit_acl(&self, fs: &dyn Filesystem, dir: Ino, made: Ino, kind: Kind) -> Result<()> {
        let default = OsStr::new("system.posix_acl_default");
        if kind == Kind::Symlink {
            return Ok(());
        }
        let Ok(acl) = fs.getxattr(dir, default) else { return Ok(()) };
        if kind == Kind::Directory {
            fs.setxattr(made, default, &acl, XattrMode::Set)?;
        }
        let perm = fs.getattr(made)?.perm;
        fs.setxattr(made, OsStr::new("system.posix_acl_access"), &acl, XattrMode::Set)?;
        // What the ACL allows, less what the creator did not ask for.
        let allowed = fs.getattr(made)?.perm;
        let perm = Perm::from_mode(perm.bits() & (allowed.bits() | 0o7000));
        fs.setattr(made, &SetAttr { perm: Some(perm), ..SetAttr::default() })?;
        Ok(())
    }

    pub(crate) fn set_opaque(&self, fs: &dyn Filesystem, dir: Ino) -> Result<()> {
        fs.setxattr(dir, &self.rules.prefix.name("opaque"), b"y", XattrMode::Set)
    }

    pub(crate) fn do_create(
        &self,
        parent: &Node,
        name: &OsStr,
        new: &NewNode,
        flags: OpenFlags,
    ) -> Result<(Entry, Arc<dyn File>)> {
        let (node, entry, file) = self.add(parent, name, Kind::File, &|fs, dir, name| {
            let (entry, file) = fs.create(dir, name, &self.real_new(new), self.layer_flags(flags))?;
            Ok((self.put_virtual(fs, entry, new, || fs.unlink(dir, name))?, file))
        })?;
        let merged = MergedFile::new(self.me()?, node, file, flags, true);
        Ok((entry, Arc::new(merged)))
    }

    pub(crate) fn do_mknod(&self, parent: &Node, name: &OsStr, new: &NewNode) -> Result<Entry> {
        let made = self.add(parent, name, new.kind, &|fs, dir, name| {
            let is_device = matches!(new.kind, Kind::CharDevice | Kind::BlockDevice);
            if self.rules.vstat && is_device {
                let (entry, _) = fs.create(dir, name, &own(Kind::File, 0o600), OpenFlags::READ_WRITE)?;
                return Ok((self.put_virtual(fs, entry, new, || fs.unlink(dir, name))?, ()));
            }
            if new.kind == Kind::CharDevice && new.rdev == veduta_api::Device::default() && self.has_lower() {
                // It would be a whiteout.
                return Err(Errno::EPERM);
            }
            Ok((fs.mknod(dir, name, &self.real_new(new))?, ()))
        })?;
        Ok(made.1)
    }

    pub(crate) fn do_mkdir(&self, parent: &Node, name: &OsStr, new: &NewNode) -> Result<Entry> {
        let new = NewNode { kind: Kind::Directory, ..*new };
        let made = self.add(parent, name, Kind::Directory, &|fs, dir, name| {
            let entry = fs.mkdir(dir, name, &self.real_new(&new))?;
            Ok((self.put_virtual(fs, entry, &new, || fs.rmdir(dir, name))?, ()))
        })?;
        Ok(made.1)
    }

    pub(crate) fn do_symlink(
        &self,
        parent: &Node,
        name: &OsStr,
        target: &OsStr,
        new: &NewNode,
    ) -> Result<Entry> {
        use std::os::unix::ffi::OsStrExt;
        let new = NewNode { kind: Kind::Symlink, perm: Perm::from_mode(0o777), umask: 0, ..*new };
        let is_foreign = self.rules.vstat && (new.uid, new.gid) != (self.uid, self.gid);
        let made = self.add(parent, name, Kind::Symlink, &|fs, dir, name| {
            if !is_foreign {
                return Ok((fs.symlink(dir, name, target, &new)?, ()));
            }
            let (entry, file) = fs.create(dir, name, &own(Kind::File, 0o600), OpenFlags::READ_WRITE)?;
            let entry = self.put_virtual(fs, entry, &new, || fs.unlink(dir, name))?;
            write_all(&*file, target.as_bytes(), 0)?;
            Ok((Entry { attr: fs.getattr(entry.ino)?, ..entry }, ()))
        })?;
        Ok(made.1)
    }

    pub(crate) fn do_tmpfile(
        &self,
        parent: &Node,
        new: &NewNode,
        flags: OpenFlags,
    ) -> Result<(Entry, Arc<dyn File>)> {
        let dir = self.dir_up(parent)?;
        let fs = self.fs(dir.layer);
        let (entry, file) = fs.tmpfile(dir.ino, &self.real_new(new), self.layer_flags(flags))?;
        let entry = self.put_virtual(fs, entry, new, || Ok(()))?;
        let part = Part { ino: entry.ino, has_xattr_whiteouts: false, store: None, ..dir };
        let attr = self.seen(part.layer, entry.ino, entry.attr)?;
        let parts = Parts { stack: vec![part], data: 0 };
        let found = Found::new(parts, attr, Marks::default(), None, parent.write_to);
        let (node, attr) = self.settle(found, None);
        node.is_new.store(true, Ordering::Relaxed);
        let entry = Entry { ino: node.ino, generation: 0, attr: self.dress(&node, attr)? };
        Ok((entry, Arc::new(MergedFile::new(self.me()?, node, file, flags, true))))
    }

    /// The node of a file without a name that is in the layer that is written.
    pub(crate) fn find_unnamed(&self, file: BorrowedFd<'_>) -> Result<Entry> {
        let layer = self.rules.write_to.ok_or(Errno::EROFS)?;
        let fs = self.fs(layer);
        let entry = fs.node_of(file)?;
        // What has one may be of a layer below.
        if entry.attr.nlink != 0 {
            fs.forget(entry.ino, 1);
            return Err(Errno::EXDEV);
        }
        let (ino, path) = (entry.ino, Arc::from(OsStr::new("")));
        let part = Part { layer, ino, path, has_xattr_whiteouts: false, store: None };
        let attr = self.seen(layer, entry.ino, entry.attr)?;
        let parts = Parts { stack: vec![part], data: 0 };
        let (node, attr) = self.settle(Found::new(parts, attr, Marks::default(), None, Some(layer)), None);
        Ok(Entry { ino: node.ino, generation: 0, attr: self.dress(&node, attr)? })
    }

    /// How a file of a layer is opened: where its descriptor is not handed out, a host may read through what others have open to write.
    pub(crate) fn layer_flags(&self, flags: OpenFlags) -> OpenFlags {
        if self.rules.vstat && flags.write { OpenFlags { read: true, ..flags } } else { flags }
    }

    /// A new node as the layer gets it.
    fn real_new(&self, new: &NewNode) -> NewNode {
        if !self.rules.vstat {
            return *new;
        }
        let perm = Perm::from_mode(real_mode(new.kind, new.masked()));
        NewNode { perm, umask: 0, uid: self.uid, gid: self.gid, ..*new }
    }

    /// Notes what a new node is to be seen as, if that is not what it is. `undo` removes it.
    fn put_virtual(
        &self,
        fs: &dyn Filesystem,
        entry: Entry,
        new: &NewNode,
        undo: impl FnOnce() -> Result<()>,
    ) -> Result<Entry> {
        let takes = matches!(entry.attr.kind, Kind::File | Kind::Directory);
        if !self.rules.vstat || !takes {
            return Ok(entry);
        }
        let seen =
            Override { uid: new.uid, gid: new.gid, perm: new.masked(), kind: Some((new.kind, new.rdev)) };
        match seen.write(fs, entry.ino) {
            Ok(()) => Ok(entry),
            Err(error) => {
                let _ = undo();
                fs.forget(entry.ino, 1);
                Err(error)
            }
        }
    }

    pub(crate) fn do_link(&self, node: &Node, parent: &Node, name: &OsStr) -> Result<Entry> {
        self.check_point(parent, name, true)?;
        if node.write_to != parent.write_to {
            return Err(Errno::EXDEV);
        }
        let to = parent.write_to.ok_or(Errno::EROFS)?;
        if let Some(entry) = self.link_in_place(node, parent, to, name)? {
            return Ok(entry);
        }
        let part = self.node_up(node, Content::UpTo(u64::MAX))?;
        let dir = self.dir_up(parent)?;
        let _names = parent.names.lock();
        if self.above_has(parent, to, name)? {
            return Err(Errno::EEXIST);
        }
        let fs = self.fs(to);
        self.adopt_whiteout(&dir, parent, name)?;
        self.mark_plain(to, part.ino, node.kind, name)?;
        let entry = match self.upper_has(&dir, name)? {
            There::Something => return Err(Errno::EEXIST),
            There::Nothing if self.below_has(parent, to, name)? => return Err(Errno::EEXIST),
            There::Nothing => fs.link(part.ino, dir.ino, name)?,
            There::Whiteout => {
                let (work, temporary) = (self.state()?.work, self.work_name());
                let entry = fs.link(part.ino, work, &temporary)?;
                fs.rename(work, &temporary, dir.ino, name, RenameFlags::default()).inspect_err(|_| {
                    self.discard(to, &temporary);
                    fs.forget(entry.ino, 1);
                })?;
                entry
            }
        };
        self.mark_impure(parent, &dir);
        self.count_names(node, 1)?;
        self.enter_link(node, parent, name, &part, entry)
    }

    fn enter_link(
        &self,
        node: &Node,
        parent: &Node,
        name: &OsStr,
        part: &Part,
        entry: Entry,
    ) -> Result<Entry> {
        let attr = self.seen(part.layer, entry.ino, entry.attr)?;
        let parts = Parts { stack: vec![Part { ino: entry.ino, ..part.clone() }], data: 0 };
        let found = Found::new(parts, attr, Marks::default(), None, node.write_to);
        let (entered, attr) = self.settle(found, Some(Place::new(parent.ino, name)));
        let attr = self.dress(&entered, attr)?;
        Ok(Entry { ino: entered.ino, generation: 0, attr })
    }

    fn link_in_place(
        &self,
        node: &Node,
        parent: &Node,
        to: LayerNumber,
        name: &OsStr,
    ) -> Result<Option<Entry>> {
        let (parts, above) = (node.parts(), parent.parts());
        let Some(layer) = self.rules.in_place.filter(|layer| parts.top().layer == *layer && *layer != to)
        else {
            return Ok(None);
        };
        let Some(dir) = above.in_layer(layer) else { return Ok(None) };
        let _names = parent.names.lock();
        if let Some(upper) = above.in_layer(to) {
            match self.upper_has(upper, name)? {
                There::Something => return Err(Errno::EEXIST),
                There::Whiteout => return Ok(None),
                There::Nothing => {}
            }
        }
        match self.fs(layer).link(parts.top().ino, dir.ino, name) {
            Err(error) if is_refusal(error) => Ok(None),
            Err(error) => Err(error),
            Ok(entry) => Ok(Some(self.enter_link(node, parent, name, parts.top(), entry)?)),
        }
    }

    /// A name more, or less, of a file whose names are counted.
    fn count_names(&self, node: &Node, change: i32) -> Result<()> {
        let count = node.names_count.load(Ordering::Relaxed);
        if count == 0 {
            return Ok(());
        }
        let now = count.saturating_add_signed(change);
        let parts = node.parts();
        let top = parts.top();
        let mark = self.rules.prefix.name("veduta.names");
        self.fs(top.layer).setxattr(top.ino, &mark, now.to_string().as_bytes(), XattrMode::Set)?;
        node.names_count.store(now, Ordering::Relaxed);
        Ok(())
    }

    // --- Names that go

    pub(crate) fn remove(&self, parent: &Node, name: &OsStr, is_directory: bool) -> Result<()> {
        self.check_point(parent, name, false)?;
        let to = parent.write_to.ok_or(Errno::EROFS)?;
        let found = self.find(parent, name)?.ok_or(Errno::ENOENT)?;
        let result = self.remove_found(parent, to, name, &found, is_directory);
        self.release(&found.parts.stack);
        result
    }

    fn remove_found(
        &self,
        parent: &Node,
        to: LayerNumber,
        name: &OsStr,
        found: &Found,
        is_directory: bool,
    ) -> Result<()> {
        match (is_directory, found.attr.kind == Kind::Directory) {
            (true, false) => return Err(Errno::ENOTDIR),
            (false, true) => return Err(Errno::EISDIR),
            _ => {}
        }
        if self.rules.worm {
            return Err(Errno::EPERM);
        }
        if found.parts.top().layer < to {
            return Err(Errno::EROFS);
        }
        if is_directory && !self.is_empty(found)? {
            return Err(Errno::ENOTEMPTY);
        }
        if self.remove_in_place(parent, to, name, found, is_directory)? {
            return Ok(());
        }
        let top_layer = found.parts.top().layer;
        let dir = self.dir_up(parent)?;
        let dropped = {
            let _names = parent.names.lock();
            self.adopt_whiteout(&dir, parent, name)?;
            let there = self.upper_has(&dir, name)?;
            if (there == There::Something) != (top_layer == to) {
                // Somebody copied it up, or took it away, meanwhile.
                if there == There::Whiteout {
                    return Err(Errno::ENOENT);
                }
            }
            let below = parent.parts().stack.len() > 1 && self.below_has(parent, to, name)?;
            self.forget_name(parent, name, found)?;
            match (there, below) {
                (There::Something, false) => self.unlink_upper(&dir, name, is_directory)?,
                (There::Something, true) => self.cover(&dir, name, is_directory)?,
                (_, true) => self.make_whiteout(&dir, parent, name)?,
                (_, false) => return Err(Errno::ENOENT),
            }
            self.table.lock().lose(parent.ino, name)
        };
        self.drop_nodes(dropped);
        Ok(())
    }

    /// Counts a name less of a file that has others.
    fn forget_name(&self, parent: &Node, name: &OsStr, found: &Found) -> Result<()> {
        if found.attr.kind == Kind::Directory || found.attr.nlink < 2 {
            return Ok(());
        }
        let node = self.table.lock().at(parent.ino, name);
        let count = match &node {
            Some(node) => node.names_count.load(Ordering::Relaxed),
            None => found.marks.names.unwrap_or(0),
        };
        if count > 1 {
            match node {
                Some(node) => self.count_names(&node, -1)?,
                None => {
                    let top = found.parts.top();
                    let mark = self.rules.prefix.name("veduta.names");
                    let value = (count - 1).to_string();
                    self.fs(top.layer).setxattr(top.ino, &mark, value.as_bytes(), XattrMode::Set)?;
                }
            }
            return Ok(());
        }
        if count == 1 {
            self.drop_link(found)?;
            if let Some(node) = node {
                node.names_count.store(0, Ordering::Relaxed);
            }
        } else if let Some(node) =
            node.filter(|node| node.write_to.is_some_and(|to| found.parts.top().layer > to))
        {
            self.tell_node(&found.attr);
            node.names_lost.fetch_add(1, Ordering::Relaxed);
        }
        Ok(())
    }

    /// The last name of a copy goes: the one by which its hard links find it goes too.
    fn drop_link(&self, found: &Found) -> Result<()> {
        let (Some(state), top) = (&self.state, found.parts.top()) else { return Ok(()) };
        let Some(links) = state.links() else { return Ok(()) };
        let fs = self.fs(top.layer);
        let mut names = Vec::new();
        let st_ino = fs.getattr(top.ino)?.st_ino;
        fs.readdir(links, 0, &mut |entry| {
            if entry.st_ino == st_ino {
                names.push(entry.name.to_owned());
            }
            std::ops::ControlFlow::Continue(())
        })?;
        names.iter().try_for_each(|name| fs.unlink(links, name))
    }

    fn remove_in_place(
        &self,
        parent: &Node,
        to: LayerNumber,
        name: &OsStr,
        found: &Found,
        is_directory: bool,
    ) -> Result<bool> {
        let top = found.parts.top();
        if self.rules.in_place != Some(top.layer) || top.layer == to || found.parts.stack.len() > 1 {
            return Ok(false);
        }
        let above = parent.parts();
        let Some(dir) = above.in_layer(top.layer) else { return Ok(false) };
        let _names = parent.names.lock();
        let fs = self.fs(top.layer);
        let removed = if is_directory { fs.rmdir(dir.ino, name) } else { fs.unlink(dir.ino, name) };
        match removed {
            Err(error) if is_refusal(error) => return Ok(false),
            removed => removed?,
        }
        let dropped = self.table.lock().lose(parent.ino, name);
        self.drop_nodes(dropped);
        Ok(true)
    }

    fn unlink_upper(&self, dir: &Part, name: &OsStr, is_directory: bool) -> Result<()> {
        let fs = self.fs(dir.layer);
        if !is_directory {
            return fs.unlink(dir.ino, name);
        }
        match fs.rmdir(dir.ino, name) {
            // Nothing that users see, but whiteouts.
            Err(Errno::ENOTEMPTY | Errno::EEXIST) if self.has_lower() => {
                let temporary = self.work_name();
                rename_new(fs, dir.ino, name, self.state()?.work, &temporary)?;
                self.discard(dir.layer, &temporary);
                Ok(())
            }
            removed => removed,
        }
    }

    /// Puts a whiteout over what the upper layer has at a name.
    fn cover(&self, dir: &Part, name: &OsStr, is_directory: bool) -> Result<()> {
        let (fs, state) = (self.fs(dir.layer), self.state()?);
        let temporary = self.work_name();
        self.whiteout(fs, state.work, &temporary, dir)?;
        let covered = if is_directory {
            self.swap_in(fs, state.work, &temporary, dir, name)
        } else {
            fs.rename(state.work, &temporary, dir.ino, name, RenameFlags::default())
        };
        covered.inspect_err(|_| self.discard(dir.layer, &temporary))
    }

    /// Notes a deletion, whether or not there is something below: for an archive that says so.
    pub(crate) fn force_whiteout(&self, parent: &Node, name: &OsStr) -> Result<()> {
        let dir = self.dir_up(parent)?;
        let _names = parent.names.lock();
        self.adopt_whiteout(&dir, parent, name)?;
        match self.upper_has(&dir, name)? {
            There::Nothing => self.make_whiteout(&dir, parent, name),
            There::Whiteout => Ok(()),
            There::Something => Err(Errno::EEXIST),
        }
    }

    /// Makes a whiteout at a name at which the upper layer has nothing.
    fn make_whiteout(&self, dir: &Part, parent: &Node, name: &OsStr) -> Result<()> {
        let fs = self.fs(dir.layer);
        match self.state()?.make_whiteout(dir.ino, name) {
            Ok(()) => return Ok(()),
            Err(Errno::EPERM | Errno::EINVAL | Errno::EOPNOTSUPP) => {}
            Err(error) => return Err(error),
        }
        let (work, temporary) = (self.state()?.work, self.work_name());
        self.whiteout(fs, work, &temporary, dir)?;
        self.note_xattr_whiteouts(parent, dir);
        rename_new(fs, work, &temporary, dir.ino, name).inspect_err(|_| self.discard(dir.layer, &temporary))
    }

    /// Makes a whiteout in the work directory: a device where that is allowed, otherwise a file that is marked, in `dir`, which is
    /// marked too.
    fn whiteout(&self, fs: &dyn Filesystem, work: Ino, temporary: &OsStr, dir: &Part) -> Result<()> {
        match self.state()?.make_whiteout(work, temporary) {
            Ok(()) => return Ok(()),
            Err(Errno::EPERM | Errno::EINVAL | Errno::EOPNOTSUPP) => {}
            Err(error) => return Err(error),
        }
        let (entry, _) = fs.create(work, temporary, &own(Kind::File, 0o600), OpenFlags::READ_WRITE)?;
        let prefix = self.rules.prefix;
        let opaque = prefix.name("opaque");
        let marked = fs.setxattr(entry.ino, &prefix.name("whiteout"), b"y", XattrMode::Set).and_then(|()| {
            match fs.getxattr(dir.ino, &opaque) {
                Ok(value) if value == b"y" || value == b"x" => Ok(()),
                _ => fs.setxattr(dir.ino, &opaque, b"x", XattrMode::Set),
            }
        });
        fs.forget(entry.ino, 1);
        marked.inspect_err(|_| self.discard(dir.layer, temporary))
    }

    fn note_xattr_whiteouts(&self, parent: &Node, dir: &Part) {
        if dir.has_xattr_whiteouts {
            return;
        }
        let mut parts = (*parent.parts()).clone();
        for part in parts.stack.iter_mut().filter(|part| part.layer == dir.layer) {
            part.has_xattr_whiteouts = true;
        }
        parent.set_parts(parts);
    }

    // --- Names that move

    pub(crate) fn do_rename(
        &self,
        parent: &Node,
        name: &OsStr,
        new_parent: &Node,
        new_name: &OsStr,
        flags: RenameFlags,
    ) -> Result<()> {
        if flags.whiteout || flags.no_replace && flags.exchange {
            return Err(Errno::EINVAL);
        }
        for (dir, name) in [(parent, name), (new_parent, new_name)] {
            self.check_point(dir, name, false)?;
        }
        if parent.write_to != new_parent.write_to {
            return Err(Errno::EXDEV);
        }
        let to = parent.write_to.ok_or(Errno::EROFS)?;
        let one = Place::new(parent.ino, name);
        let other = Place::new(new_parent.ino, new_name);
        for _ in 0..ATTEMPTS {
            let source = self.find(parent, name)?.ok_or(Errno::ENOENT)?;
            let target = match self.find(new_parent, new_name) {
                Ok(target) => target,
                Err(error) => {
                    self.release(&source.parts.stack);
                    return Err(error);
                }
            };
            let (source_node, source) = self.keep(parent, name, source);
            let (target_node, target) = match target {
                Some(target) => {
                    let (node, target) = self.keep(new_parent, new_name, target);
                    (Some(node), Some(target))
                }
                None => (None, None),
            };
            let moving = Moving { parent, name, new_parent, new_name, to, flags };
            let nodes = (&*source_node, target_node.as_deref());
            let moved = self.check_move(&moving, &source, target.as_ref()).and_then(|()| {
                if self.rename_in_place(&moving, &source, target.as_ref())? {
                    return Ok(Some(()));
                }
                self.rename_up(&moving, nodes, &source, target.as_ref())
            });
            for node in [Some(&source_node), target_node.as_ref()].into_iter().flatten() {
                let dropped = self.table.lock().forget(node.ino, 1);
                self.drop_nodes(dropped);
            }
            if let Some(()) = moved? {
                let dropped = {
                    let mut table = self.table.lock();
                    if flags.exchange { table.exchange(&one, &other) } else { table.relocate(&one, &other) }
                };
                self.drop_nodes(dropped);
                return Ok(());
            }
        }
        Err(Errno::EBUSY)
    }

    fn check_move(&self, moving: &Moving<'_>, source: &Found, target: Option<&Found>) -> Result<()> {
        let flags = moving.flags;
        match target {
            Some(_) if flags.no_replace => return Err(Errno::EEXIST),
            None if flags.exchange => return Err(Errno::ENOENT),
            _ => {}
        }
        let is_above = |found: &Found| found.parts.top().layer < moving.to;
        if is_above(source) || target.is_some_and(is_above) {
            return Err(Errno::EROFS);
        }
        if self.rules.worm {
            return Err(Errno::EPERM);
        }
        if let Some(target) = target.filter(|_| !flags.exchange) {
            match (source.attr.kind == Kind::Directory, target.attr.kind == Kind::Directory) {
                (true, false) => return Err(Errno::ENOTDIR),
                (false, true) => return Err(Errno::EISDIR),
                (true, true) if !self.is_empty(target)? => return Err(Errno::ENOTEMPTY),
                _ => {}
            }
        }
        let needs_redirect =
            |found: &Found| found.attr.kind == Kind::Directory && self.has_parts_below(found, moving.to);
        let is_moved_back = |found: &Found| self.rules.in_place == Some(found.parts.top().layer);
        let moves = [Some(source), target.filter(|_| flags.exchange)];
        if !self.rules.redirect
            && moves.into_iter().flatten().any(|found| needs_redirect(found) && !is_moved_back(found))
        {
            return Err(Errno::EXDEV);
        }
        Ok(())
    }

    fn has_parts_below(&self, found: &Found, to: LayerNumber) -> bool {
        found.parts.stack.iter().any(|part| part.layer > to)
    }

    /// `mincow`: all of it happens in the layer below, if that is allowed.
    fn rename_in_place(&self, moving: &Moving<'_>, source: &Found, target: Option<&Found>) -> Result<bool> {
        let Some(layer) = self.rules.in_place.filter(|layer| *layer != moving.to) else { return Ok(false) };
        let is_there = |found: &Found| found.parts.stack.len() == 1 && found.parts.top().layer == layer;
        if !is_there(source) || target.is_some_and(|target| !is_there(target)) {
            return Ok(false);
        }
        let (above, new_above) = (moving.parent.parts(), moving.new_parent.parts());
        let (Some(dir), Some(new_dir)) = (above.in_layer(layer), new_above.in_layer(layer)) else {
            return Ok(false);
        };
        let _names = lock_names(moving.parent, moving.new_parent);
        if let Some(upper) = new_above.in_layer(moving.to) {
            if self.upper_has(upper, moving.new_name)? != There::Nothing {
                return Ok(false);
            }
        }
        match self.fs(layer).rename(dir.ino, moving.name, new_dir.ino, moving.new_name, moving.flags) {
            Err(error) if is_refusal(error) => Ok(false),
            done => done.map(|()| true),
        }
    }

    /// The rename in the upper layer. `None`: something changed meanwhile, and it is to be begun again.
    fn rename_up(
        &self,
        moving: &Moving<'_>,
        (source_node, target_node): (&Node, Option<&Node>),
        source: &Found,
        target: Option<&Found>,
    ) -> Result<Option<()>> {
        let Moving { parent, name, new_parent, new_name, to, flags } = *moving;
        let part = self.moved_up(source_node)?;
        let other = target_node.filter(|_| flags.exchange).map(|node| self.moved_up(node)).transpose()?;
        let (dir, new_dir) = (self.dir_up(parent)?, self.dir_up(new_parent)?);
        let _names = lock_names(parent, new_parent);
        let fs = self.fs(to);
        // Still what was found, and now in the upper layer?
        let is_there = |dir: &Part, name: &OsStr, part: &Part| -> Result<bool> {
            Ok(self.layer(to).peek(dir.ino, name)?.is_some_and(|(ino, _)| ino == part.ino))
        };
        if !is_there(&dir, name, &part)? && !self.link_up(parent, &dir, name, source_node, &part)? {
            return Ok(None);
        }
        if let (Some(node), Some(other)) = (target_node, &other) {
            let is_there = is_there(&new_dir, new_name, other)?;
            if !is_there && !self.link_up(new_parent, &new_dir, new_name, node, other)? {
                return Ok(None);
            }
        }
        self.adopt_whiteout(&dir, parent, name)?;
        self.adopt_whiteout(&new_dir, new_parent, new_name)?;
        let there = self.upper_has(&new_dir, new_name)?;
        if target.is_none() && there == There::Something {
            return Ok(None);
        }
        let is_merged = |node: &Node| node.parts().stack.len() > 1;
        let below = is_merged(parent) && self.below_has(parent, to, name)?;
        let below_new = is_merged(new_parent) && self.below_has(new_parent, to, new_name)?;
        self.prepare_directory(source, &part, below_new)?;
        if let (Some(target), Some(other)) = (target, &other) {
            self.prepare_directory(target, other, below)?;
        }
        self.mark_plain(to, part.ino, source_node.kind, new_name)?;
        if let Some(other) = &other {
            self.mark_plain(to, other.ino, target_node.map_or(Kind::File, |node| node.kind), name)?;
        }
        if flags.exchange {
            fs.rename(dir.ino, name, new_dir.ino, new_name, flags)?;
        } else if source.attr.kind == Kind::Directory {
            self.move_directory(moving, &dir, &new_dir, there, below)?;
        } else {
            if let Some(target) = target {
                self.forget_name(new_parent, new_name, target)?;
            }
            self.move_leaving(moving, &dir, &new_dir, below)?;
        }
        self.mark_impure(new_parent, &new_dir);
        if flags.exchange {
            self.mark_impure(parent, &dir);
        }
        Ok(Some(()))
    }

    /// Enters what was found, so that it stays while it is worked with.
    fn keep(&self, parent: &Node, name: &OsStr, found: Found) -> (Arc<Node>, Found) {
        let copy = found.copied();
        (self.settle(found, Some(Place::new(parent.ino, name))).0, copy)
    }

    /// Copies up what is to move.
    fn moved_up(&self, node: &Node) -> Result<Part> {
        if node.kind == Kind::Directory {
            return self.dir_up(node);
        }
        let content = if self.rules.metacopy { Content::MetadataOnly } else { Content::UpTo(u64::MAX) };
        let part = self.node_up(node, content)?;
        if node.kind == Kind::File && node.parts().data > 0 {
            self.mark_content(node, &part)?;
        }
        Ok(part)
    }

    /// A file whose content stays below is about to move: where the content is must be written down.
    fn mark_content(&self, node: &Node, part: &Part) -> Result<()> {
        let mark = self.rules.prefix.name("redirect");
        let fs = self.fs(part.layer);
        if fs.getxattr(part.ino, &mark).is_ok() {
            return Ok(());
        }
        // Its name below is the one that it still has, in the directory that is above it below.
        let Some((parent, name)) = self.table.lock().place(node.ino) else { return Ok(()) };
        let layer = node.parts().content().layer;
        let above = parent.parts();
        let dir = above.in_layer(layer).ok_or(Errno::EXDEV)?;
        use std::os::unix::ffi::OsStrExt;
        fs.setxattr(part.ino, &mark, crate::tree::join(&dir.path, &name).as_bytes(), XattrMode::Set)
    }

    /// Before a directory moves: what lies below it is still found, and what lies below its new name is not.
    fn prepare_directory(&self, found: &Found, part: &Part, below_new: bool) -> Result<()> {
        if found.attr.kind != Kind::Directory {
            return Ok(());
        }
        use std::os::unix::ffi::OsStrExt;
        let fs = self.fs(part.layer);
        match found.parts.stack.iter().find(|below| below.layer > part.layer) {
            Some(below) => {
                self.tell_all();
                let mark = self.rules.prefix.name("redirect");
                fs.setxattr(part.ino, &mark, below.path.as_bytes(), XattrMode::Set)
            }
            None if below_new => self.set_opaque(fs, part.ino),
            None => Ok(()),
        }
    }

    fn move_directory(
        &self,
        moving: &Moving<'_>,
        dir: &Part,
        new_dir: &Part,
        there: There,
        below: bool,
    ) -> Result<()> {
        let Moving { name, new_name, to, .. } = *moving;
        let fs = self.fs(to);
        match there {
            // The whiteout goes to the old name, where it is wanted or taken away.
            There::Whiteout => {
                let exchange = RenameFlags { exchange: true, ..RenameFlags::default() };
                fs.rename(dir.ino, name, new_dir.ino, new_name, exchange)?;
                if below { Ok(()) } else { fs.unlink(dir.ino, name) }
            }
            There::Nothing => self.move_leaving(moving, dir, new_dir, below),
            There::Something => {
                self.clear_directory(fs, new_dir, new_name)?;
                self.move_leaving(moving, dir, new_dir, below)
            }
        }
    }

    /// Takes the whiteouts out of a directory that is empty for users, in one step.
    fn clear_directory(&self, fs: &dyn Filesystem, dir: &Part, name: &OsStr) -> Result<()> {
        let entry = fs.lookup(dir.ino, name)?;
        let mut is_empty = true;
        let listed = fs.readdir(entry.ino, 0, &mut |_| {
            is_empty = false;
            std::ops::ControlFlow::Break(())
        });
        fs.forget(entry.ino, 1);
        listed?;
        if is_empty {
            return Ok(());
        }
        let (work, temporary) = (self.state()?.work, self.work_name());
        let empty = fs.mkdir(work, &temporary, &own(Kind::Directory, 0o700))?;
        let done =
            self.set_opaque(fs, empty.ino).and_then(|()| self.swap_in(fs, work, &temporary, dir, name));
        fs.forget(empty.ino, 1);
        done.inspect_err(|_| self.discard(dir.layer, &temporary))
    }

    /// Moves a name, and leaves a whiteout behind where something is below.
    fn move_leaving(&self, moving: &Moving<'_>, dir: &Part, new_dir: &Part, below: bool) -> Result<()> {
        let Moving { parent, name, new_name, to, .. } = *moving;
        let fs = self.fs(to);
        if !below {
            return fs.rename(dir.ino, name, new_dir.ino, new_name, RenameFlags::default());
        }
        let leaving = RenameFlags { whiteout: true, ..RenameFlags::default() };
        match fs.rename(dir.ino, name, new_dir.ino, new_name, leaving) {
            Err(Errno::EINVAL | Errno::EPERM | Errno::EOPNOTSUPP) => {
                fs.rename(dir.ino, name, new_dir.ino, new_name, RenameFlags::default())?;
                self.make_whiteout(dir, parent, name)
            }
            done => done,
        }
    }

    // --- Attributes

    /// Changes a node where that is done: in place if that is tried and allowed, otherwise in its copy.
    pub(crate) fn change<T>(
        &self,
        node: &Node,
        work: impl Fn(&dyn Filesystem, Ino) -> Result<T>,
    ) -> Result<T> {
        self.change_content(node, Content::MetadataOnly, work)
    }

    fn change_content<T>(
        &self,
        node: &Node,
        content: Content,
        work: impl Fn(&dyn Filesystem, Ino) -> Result<T>,
    ) -> Result<T> {
        if self.rules.worm && !node.is_new.load(Ordering::Relaxed) {
            return Err(Errno::EPERM);
        }
        let parts = node.parts();
        let top = parts.top();
        if self.rules.in_place == Some(top.layer)
            && node.write_to != Some(top.layer)
            && node.write_to.is_some()
        {
            match work(self.fs(top.layer), top.ino) {
                Err(error) if is_refusal(error) => {}
                done => return done,
            }
        }
        let content = match content {
            Content::MetadataOnly if !self.rules.metacopy => Content::UpTo(u64::MAX),
            content => content,
        };
        let (part, _opened) = self.node_up_opened(node, content)?;
        work(self.fs(part.layer), part.ino)
    }

    pub(crate) fn do_setattr(&self, node: &Node, changes: &SetAttr) -> Result<Attr> {
        let content = changes.size.map_or(Content::MetadataOnly, Content::UpTo);
        let attr = if self.rules.vstat {
            self.set_virtual(node, content, changes)?
        } else {
            self.change_content(node, content, |fs, ino| fs.setattr(ino, changes))?
        };
        self.dress(node, attr)
    }

    /// Owner and mode go into the attribute that has them, the rest to the node itself.
    fn set_virtual(&self, node: &Node, content: Content, changes: &SetAttr) -> Result<Attr> {
        self.change_content(node, content, |fs, ino| {
            let now = fs.getattr(ino)?;
            if !matches!(now.kind, Kind::File | Kind::Directory) {
                return fs.setattr(ino, changes);
            }
            let shown = Override::read(fs, ino)?.unwrap_or_else(|| Override::of(&now));
            let perm = changes.perm.unwrap_or(shown.perm);
            let perm = if changes.drop_set_id { without_set_id(perm) } else { perm };
            let wanted = Override {
                uid: changes.uid.unwrap_or(shown.uid),
                gid: changes.gid.unwrap_or(shown.gid),
                perm,
                kind: shown.kind,
            };
            if wanted != shown {
                wanted.write(fs, ino)?;
            }
            let rest = SetAttr { perm: None, uid: None, gid: None, drop_set_id: false, ..*changes };
            let mut attr = fs.setattr(ino, &rest)?;
            wanted.apply(&mut attr);
            Ok(attr)
        })
    }

    pub(crate) fn open_to_write(&self, node: &Arc<Node>, flags: OpenFlags) -> Result<Arc<dyn File>> {
        if self.rules.worm && !node.is_new.load(Ordering::Relaxed) {
            return Err(Errno::EPERM);
        }
        let parts = node.parts();
        let top = parts.top();
        let me = self.me()?;
        if self.rules.in_place == Some(top.layer)
            && node.write_to.is_some()
            && node.write_to != Some(top.layer)
        {
            match self.fs(top.layer).open(top.ino, flags) {
                Err(error) if is_refusal(error) => {}
                Err(error) => return Err(error),
                // Written in place: it stays there for those who have it open.
                Ok(file) => return Ok(Arc::new(MergedFile::new(me, Arc::clone(node), file, flags, true))),
            }
        }
        let file = self.open_up(node, flags)?;
        Ok(Arc::new(MergedFile::new(me, Arc::clone(node), file, flags, true)))
    }
}

/// A rename that is under way.
#[derive(Clone, Copy)]
struct Moving<'a> {
    parent: &'a Node,
    name: &'a OsStr,
    new_parent: &'a Node,
    new_name: &'a OsStr,
    to: LayerNumber,
    flags: RenameFlags,
}

fn lock_names<'a>(one: &'a Node, other: &'a Node) -> (MutexGuard<'a, ()>, Option<MutexGuard<'a, ()>>) {
    match one.ino.cmp(&other.ino) {
        std::cmp::Ordering::Equal => (one.names.lock(), None),
        std::cmp::Ordering::Less => {
            let first = one.names.lock();
            (first, Some(other.names.lock()))
        }
        std::cmp::Ordering::Greater => {
            let first = other.names.lock();
            (first, Some(one.names.lock()))
        }
    }
}

/// Without set-user-id, and without set-group-id where the group may execute.
fn without_set_id(perm: Perm) -> Perm {
    let group = if perm.bits() & 0o010 != 0 { 0o2000 } else { 0 };
    Perm::from_mode(perm.bits() & !(0o4000 | group))
}
