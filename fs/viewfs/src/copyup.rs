//! Copies of nodes in the layer that takes the changes.
//!
//! A copy is made with everything that it is to have, and then given its name in one step: whenever the program is killed, users find the
//! old file or the whole new one. [`Copied::write_before_name`] says what a power failure leaves. Files are made without a name where the layer can, and get theirs by a link;
//! whatever else is made has a name in the work directory, and is renamed.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::OsStrExt;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use veduta_api::{
    Attr, Device, Errno, File, Filesystem, Ino, Ioctl, Kind, NewNode, OpenFlags, Perm, RenameFlags, Result,
    Seek, SetAttr, SetTime, XattrMode,
};

use crate::layer::LostOwner;
use crate::setup::Durability;
use crate::state::{self, State, own};
use crate::table::{LayerNumber, Node, Part, Parts};
use crate::tree::Tree;
use crate::vstat::{self, Override};

/// Bytes that are copied at a time where the kernel does not copy by itself.
const CHUNK: usize = 1 << 20;

/// Bytes that are read and written sooner than the kernel has set up a copy of its own.
const SMALL: u64 = 64 << 10;

/// How much of a file's content is copied.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Content {
    /// None if that is how metadata is copied, otherwise all of it.
    MetadataOnly,
    /// All, or no more than this many bytes: the rest is about to be cut off.
    UpTo(u64),
}

/// A copy that users do not see yet.
struct Copy {
    ino: Ino,
    /// In the work directory, if it has one.
    name: Option<OsString>,
    /// As it was opened to be made, if it is a file.
    file: Option<Arc<dyn File>>,
}

impl Tree {
    pub(crate) fn state(&self) -> Result<&State> {
        self.state.as_ref().ok_or(Errno::EROFS)
    }

    /// A name for something in the work directory.
    pub(crate) fn work_name(&self) -> OsString {
        format!("{:x}", self.next_name.fetch_add(1, Ordering::Relaxed)).into()
    }

    /// The part of a directory in which names are made: copied up if there is none.
    pub(crate) fn dir_up(&self, node: &Node) -> Result<Part> {
        let to = node.write_to.ok_or(Errno::EROFS)?;
        if node.is_gone.load(Ordering::Acquire) {
            return Err(Errno::ENOENT);
        }
        match node.parts().in_layer(to) {
            Some(part) => Ok(part.clone()),
            None => self.copy_up(node, to, Content::MetadataOnly),
        }
    }

    /// The part of a node of which attributes are changed: copied up if there is none. `EROFS` if it is in a layer above those that may
    /// be changed.
    pub(crate) fn node_up(&self, node: &Node, content: Content) -> Result<Part> {
        Ok(self.node_up_opened(node, content)?.0)
    }

    /// The same, with the copy of a file as it was opened to be made, if it was made now. While that is open, work on the node is done
    /// through its descriptor, and no other is opened.
    pub(crate) fn node_up_opened(
        &self,
        node: &Node,
        content: Content,
    ) -> Result<(Part, Option<Arc<dyn File>>)> {
        let to = node.write_to.ok_or(Errno::EROFS)?;
        let parts = node.parts();
        let top = parts.top();
        if top.layer < to {
            return Err(Errno::EROFS);
        }
        let is_whole = parts.data == 0 || content == Content::MetadataOnly;
        if top.layer == to && is_whole {
            return Ok((top.clone(), None));
        }
        self.copy_up_opened(node, to, content)
    }

    fn copy_up(&self, node: &Node, to: LayerNumber, content: Content) -> Result<Part> {
        Ok(self.copy_up_opened(node, to, content)?.0)
    }

    /// As `copy_up`, with the copy of a file as it was opened to be made, if it was made now.
    fn copy_up_opened(
        &self,
        node: &Node,
        to: LayerNumber,
        content: Content,
    ) -> Result<(Part, Option<Arc<dyn File>>)> {
        let _only = node.copying.lock();
        let parts = node.parts();
        if let Some(part) = parts.in_layer(to) {
            if parts.data == 0 || content == Content::MetadataOnly {
                return Ok((part.clone(), None));
            }
            return Ok((self.fill(node, &parts, content)?, None));
        }
        let state = self.state()?;
        let attr = self.attr(node)?;
        self.tell_node(&attr);
        let meta_only = content == Content::MetadataOnly
            && self.rules.metacopy
            && node.kind == Kind::File
            && attr.size > 0;
        let content = if meta_only { None } else { Some(content) };
        let Copy { ino, name, file } = self.make_copy(node, &parts, &attr, to, content)?;
        let part = Part { layer: to, ino, ..parts.top().clone() };
        let part = Part { store: None, has_xattr_whiteouts: false, ..part };
        let placed = self.place_copy(node, &parts, &attr, state, name.as_deref(), &part);
        if let Err(error) = placed {
            if let Some(name) = &name {
                self.discard(to, name);
            }
            self.fs(to).forget(ino, 1);
            return Err(error);
        }
        let mut stack = parts.stack.clone();
        // Above what lies below it, and (a directory) below what lies above.
        let at = stack.iter().position(|other| other.layer > to).unwrap_or(stack.len());
        stack.insert(at, part.clone());
        if self.rules.keeps_numbers && node.kind != Kind::Directory {
            if let Ok(copy) = self.fs(to).getattr(ino) {
                self.tell_node(&copy);
                self.copied.lock().insert(copy.st_ino, node.shown);
            }
        }
        node.set_parts(Parts { stack, data: if meta_only { parts.data + 1 } else { 0 } });
        Ok((part, file))
    }

    /// Gives a copy its name.
    fn place_copy(
        &self,
        node: &Node,
        parts: &Parts,
        attr: &Attr,
        state: &State,
        name: Option<&OsStr>,
        part: &Part,
    ) -> Result<()> {
        let fs = self.fs(part.layer);
        let key = (part.layer, part.ino);
        // A file with hard links is found under all of its names.
        let link = (node.kind == Kind::File && attr.nlink > 1 && self.rules.index)
            .then(|| self.raw_attr(parts))
            .transpose()?
            .map(|raw| state::link_name(usize::from(parts.top().layer), self.union, &raw));
        if let Some(link) = &link {
            let value = attr.nlink.to_string();
            let mark = self.rules.prefix.name("veduta.names");
            fs.setxattr(part.ino, &mark, value.as_bytes(), XattrMode::Set)?;
            let entry = fs.link(part.ino, state.make_links()?, link)?;
            fs.forget(entry.ino, 1);
        }
        let placed = loop {
            let place = self.table.lock().place(node.ino);
            let Some((parent, old_name)) = place else {
                // It has no name any more: the copy keeps none either.
                if let Some(name) = name.filter(|_| link.is_none()) {
                    fs.unlink(state.work, name)?;
                }
                self.table.lock().add_key(node.ino, key);
                break Ok(());
            };
            let dir = match self.dir_up(&parent) {
                Ok(dir) => dir,
                Err(error) => break Err(error),
            };
            let _names = parent.names.lock();
            if !self.table.lock().is_at(node.ino, parent.ino, &old_name) {
                continue;
            }
            self.mark_plain(part.layer, part.ino, node.kind, &old_name)?;
            // Known before it can be found.
            self.table.lock().add_key(node.ino, key);
            let before = fs.getattr(dir.ino)?;
            let moved = match name {
                Some(name) => rename_new(fs, state.work, name, dir.ino, &old_name),
                None => fs.link(part.ino, dir.ino, &old_name).map(|entry| fs.forget(entry.ino, 1)),
            };
            self.restore_times(fs, dir.ino, &before);
            if moved.is_err() {
                self.table.lock().drop_key(node.ino, key);
            } else if node.kind != Kind::Directory {
                self.mark_impure(&parent, &dir);
            }
            break moved;
        };
        match (&link, &placed) {
            (Some(link), Err(_)) => {
                let _ = state.links().map(|links| fs.unlink(links, link));
            }
            (Some(_), Ok(())) => node.names_count.store(attr.nlink, Ordering::Relaxed),
            (None, _) => {}
        }
        placed
    }

    /// Gives a copy a name that it is found under already, as one of the hard links below of what it is a copy of. With the names of the
    /// directory locked. `false` if the name leads elsewhere now.
    pub(crate) fn link_up(
        &self,
        parent: &Node,
        dir: &Part,
        name: &OsStr,
        node: &Node,
        part: &Part,
    ) -> Result<bool> {
        let is_at = self.table.lock().is_at(node.ino, parent.ino, name);
        let fs = self.fs(dir.layer);
        if !is_at || node.kind == Kind::Directory || self.layer(dir.layer).peek(dir.ino, name)?.is_some() {
            return Ok(false);
        }
        let before = fs.getattr(dir.ino)?;
        fs.forget(fs.link(part.ino, dir.ino, name)?.ino, 1);
        self.restore_times(fs, dir.ino, &before);
        self.mark_impure(parent, dir);
        Ok(true)
    }

    /// For users nothing was changed in a directory.
    fn restore_times(&self, fs: &dyn Filesystem, dir: Ino, before: &Attr) {
        let (atime, mtime) = (Some(SetTime::To(before.atime)), Some(SetTime::To(before.mtime)));
        if let Err(error) = fs.setattr(dir, &SetAttr { atime, mtime, ..SetAttr::default() }) {
            tracing::debug!("the times of a directory are lost: {}", error.desc());
        }
    }

    /// Brings a name up, with what it leads to.
    pub(crate) fn name_up(&self, parent: &Node, name: &OsStr, node: &Node) -> Result<()> {
        if node.kind == Kind::Directory {
            return self.dir_up(node).map(drop);
        }
        let part = self.node_up(node, Content::UpTo(u64::MAX))?;
        let dir = self.dir_up(parent)?;
        let _names = parent.names.lock();
        self.link_up(parent, &dir, name, node, &part).map(drop)
    }

    /// The attributes of the topmost part as its layer has them.
    fn raw_attr(&self, parts: &Parts) -> Result<Attr> {
        let top = parts.top();
        self.fs(top.layer).getattr(top.ino)
    }

    /// That a directory holds what came from below, so that listings look at the numbers of what is in it.
    pub(crate) fn mark_impure(&self, node: &Node, dir: &Part) {
        if self.has_lower() && !node.is_impure.swap(true, Ordering::Relaxed) {
            let mark = self.rules.prefix.name("impure");
            if let Err(error) = self.fs(dir.layer).setxattr(dir.ino, &mark, b"y", XattrMode::Set) {
                tracing::debug!("a directory cannot be marked: {}", error.desc());
            }
        }
    }

    pub(crate) fn has_lower(&self) -> bool {
        self.union > 1
    }

    /// Removes what is in the work directory under a name, whatever it is.
    pub(crate) fn discard(&self, to: LayerNumber, name: &OsStr) {
        let Ok(state) = self.state() else { return };
        let fs = self.fs(to);
        let removed = match fs.unlink(state.work, name) {
            Err(Errno::EISDIR | Errno::EPERM) => match fs.rmdir(state.work, name) {
                Err(Errno::ENOTEMPTY | Errno::EEXIST) => fs.lookup(state.work, name).and_then(|entry| {
                    let emptied = state::empty(fs, entry.ino);
                    fs.forget(entry.ino, 1);
                    emptied.and_then(|()| fs.rmdir(state.work, name))
                }),
                removed => removed,
            },
            removed => removed,
        };
        match removed {
            Ok(()) | Err(Errno::ENOENT) => {}
            Err(error) => tracing::warn!("the work directory keeps {name:?}: {}", error.desc()),
        }
    }

    /// Makes a copy that users do not see yet. `content` is `None` if it stays below.
    fn make_copy(
        &self,
        node: &Node,
        parts: &Parts,
        attr: &Attr,
        to: LayerNumber,
        content: Option<Content>,
    ) -> Result<Copy> {
        let fs = self.fs(to);
        let is_mine = !self.rules.vstat && (attr.uid, attr.gid) == (self.uid, self.gid);
        // A set-id bit would not outlive what is written, and marks are not set on what its owner may not write.
        let is_plain = is_mine && attr.perm.bits() & 0o7200 == 0o200;
        let new = NewNode {
            kind: Kind::File,
            perm: if is_plain { attr.perm } else { Perm::from_mode(0o600) },
            umask: 0,
            uid: self.uid,
            gid: self.gid,
            rdev: Device::default(),
        };
        if node.kind == Kind::File {
            if let Some((ino, file)) = self.make_unnamed(fs, &new)? {
                let filled = self.fill_copy(node, parts, attr, to, (ino, Some(&file)), content, is_plain);
                filled.inspect_err(|_| fs.forget(ino, 1))?;
                return Ok(Copy { ino, name: None, file: Some(file) });
            }
        }
        let name = self.work_name();
        let made = self.make_named(node, attr, to, &name, &new).and_then(|(ino, file)| {
            self.fill_copy(node, parts, attr, to, (ino, file.as_ref()), content, is_plain)?;
            Ok((ino, file))
        });
        let (ino, file) = made.inspect_err(|_| self.discard(to, &name))?;
        Ok(Copy { ino, name: Some(name), file })
    }

    /// A file without a name. `None` where the layer knows no such thing.
    fn make_unnamed(&self, fs: &dyn Filesystem, new: &NewNode) -> Result<Option<(Ino, Arc<dyn File>)>> {
        let state = self.state()?;
        if state.no_unnamed.load(Ordering::Relaxed) {
            return Ok(None);
        }
        match fs.tmpfile(state.work, new, OpenFlags::READ_WRITE) {
            Ok((entry, file)) => Ok(Some((entry.ino, file))),
            Err(error @ (Errno::ENOSPC | Errno::EDQUOT | Errno::EMFILE | Errno::ENFILE | Errno::EIO)) => {
                Err(error)
            }
            Err(_) => {
                state.no_unnamed.store(true, Ordering::Relaxed);
                Ok(None)
            }
        }
    }

    /// An empty node in the work directory.
    fn make_named(
        &self,
        node: &Node,
        attr: &Attr,
        to: LayerNumber,
        name: &OsStr,
        new: &NewNode,
    ) -> Result<(Ino, Option<Arc<dyn File>>)> {
        let (fs, work) = (self.fs(to), self.state()?.work);
        Ok(match (node.kind, self.rules.vstat) {
            (Kind::Directory, _) => (fs.mkdir(work, name, &own(Kind::Directory, 0o700))?.ino, None),
            (Kind::Symlink, false) => {
                let target = self.readlink(node.ino)?;
                (fs.symlink(work, name, &target, &own(Kind::Symlink, 0o777))?.ino, None)
            }
            // With virtual attributes all the others are files.
            (Kind::File, _) | (_, true) => {
                let (entry, made) = fs.create(work, name, new, OpenFlags::READ_WRITE)?;
                if node.kind == Kind::Symlink {
                    write_all(&*made, self.readlink(node.ino)?.as_bytes(), 0)?;
                }
                (entry.ino, Some(made).filter(|_| node.kind == Kind::File))
            }
            (kind, false) => {
                let new = NewNode { rdev: attr.rdev, ..own(kind, 0o600) };
                (fs.mknod(work, name, &new)?.ino, None)
            }
        })
    }

    /// Gives a copy all that it is to have.
    #[expect(clippy::too_many_arguments, reason = "what is copied, whereto, and how much of it")]
    fn fill_copy(
        &self,
        node: &Node,
        parts: &Parts,
        attr: &Attr,
        to: LayerNumber,
        (ino, file): (Ino, Option<&Arc<dyn File>>),
        content: Option<Content>,
        is_plain: bool,
    ) -> Result<()> {
        let fs = self.fs(to);
        let mut copied = Copied::Nothing;
        // While it is open, its attributes are read through the same descriptor.
        let mut _from = None;
        match (file, content) {
            (Some(file), Some(content)) => {
                (copied, _from) = self.copy_content(parts, Some(attr), fs, ino, &**file, content)?;
            }
            (Some(_), None) => {
                let size = SetAttr { size: Some(attr.size), ..SetAttr::default() };
                fs.setattr(ino, &size)?;
                fs.setxattr(ino, &self.rules.prefix.name("metacopy"), b"", XattrMode::Set)?;
            }
            (None, _) => {}
        }
        let virtual_ = self.rules.vstat.then(|| Override::of(attr));
        self.copy_attributes(parts, attr, virtual_, to, ino, node.st_ino, is_plain)?;
        match (self.rules.durability, file) {
            (Durability::Volatile | Durability::Ordered, None) => Ok(()),
            (Durability::Volatile, Some(file)) => file.flush(),
            (Durability::Ordered, Some(file)) => copied.write_before_name(&**file),
            (Durability::Strict, Some(file)) => file.sync(false),
            (Durability::Strict, None) => fs.sync(),
        }
    }

    /// Owner, attributes, mode and times, in the order in which none undoes another. `is_plain`: owner and mode are right already.
    #[expect(clippy::too_many_arguments, reason = "what is copied, whereto, and as whose")]
    fn copy_attributes(
        &self,
        parts: &Parts,
        attr: &Attr,
        virtual_: Option<Override>,
        to: LayerNumber,
        ino: Ino,
        st_ino: u64,
        is_plain: bool,
    ) -> Result<()> {
        let (fs, top) = (self.fs(to), parts.top());
        let mut perm = attr.perm;
        let mut lost = false;
        if virtual_.is_none() && (attr.uid, attr.gid) != (self.uid, self.gid) {
            let owner = SetAttr { uid: Some(attr.uid), gid: Some(attr.gid), ..SetAttr::default() };
            match fs.setattr(ino, &owner) {
                Ok(_) => {}
                Err(Errno::EPERM) if self.uid == 0 => return Err(Errno::EPERM),
                // The copy is the user's own, who may not give it away, or (EINVAL) knows its owner only as nobody, in a user
                // namespace where root is such a user too. It must not run as somebody else, then.
                Err(Errno::EPERM | Errno::EINVAL) => {
                    perm = Perm::from_mode(perm.bits() & 0o1777);
                    lost = true;
                }
                Err(error) => return Err(error),
            }
        }
        let has_acl = self.copy_xattrs(top, to, ino)?;
        if let Some(virtual_) = virtual_ {
            virtual_.write(fs, ino)?;
            perm = Perm::from_mode(real_mode(attr.kind, perm));
        }
        if attr.kind != Kind::Directory {
            let mark = self.rules.prefix.name("veduta.origin");
            let origin = format!("{st_ino} {}.{}", attr.ctime.seconds, attr.ctime.nanos);
            // Links and devices of users have no place for it; their number changes with the next mount.
            let _ = fs.setxattr(ino, &mark, origin.as_bytes(), XattrMode::Set);
        }
        if lost {
            let now = fs.getattr(ino)?;
            let owner =
                LostOwner { was: (attr.uid, attr.gid), perm: attr.perm.bits(), copy: (now.uid, now.gid) };
            let mark = self.rules.prefix.name("veduta.owner");
            let _ = fs.setxattr(ino, &mark, owner.to_mark().as_bytes(), XattrMode::Set);
        }
        let is_right = is_plain && !has_acl && attr.kind == Kind::File;
        let takes = attr.kind != Kind::Symlink || virtual_.is_some();
        let perm = (takes && !is_right).then_some(perm);
        let (atime, mtime) = (Some(SetTime::To(attr.atime)), Some(SetTime::To(attr.mtime)));
        fs.setattr(ino, &SetAttr { perm, atime, mtime, ..SetAttr::default() })?;
        Ok(())
    }

    /// Whether there was an ACL, which is another way to set the mode.
    fn copy_xattrs(&self, from: &Part, to: LayerNumber, ino: Ino) -> Result<bool> {
        let source = self.fs(from.layer);
        let mut has_acl = false;
        let names = match source.listxattr(from.ino) {
            Err(Errno::EOPNOTSUPP) => return Ok(has_acl),
            names => names?,
        };
        for name in names {
            let is_mark = self.rules.prefix.to_user(&name).is_none();
            if is_mark || self.rules.vstat && vstat::is_ours(&name) {
                continue;
            }
            let value = match source.getxattr(from.ino, &name) {
                Err(Errno::ENODATA) => continue,
                value => value?,
            };
            has_acl |= name == "system.posix_acl_access";
            match self.fs(to).setxattr(ino, &name, &value, XattrMode::Set) {
                Ok(()) => {}
                Err(Errno::EOPNOTSUPP) => tracing::debug!("{name:?} is not kept in the copy"),
                // What only root may set is lost in a user's copy.
                Err(Errno::EPERM) if self.uid != 0 && !name.as_bytes().starts_with(b"user.") => {}
                Err(error) => return Err(error),
            }
        }
        Ok(has_acl)
    }

    /// Brings the content to a copy that has had none so far.
    fn fill(&self, node: &Node, parts: &Parts, content: Content) -> Result<Part> {
        let part = parts.top().clone();
        let fs = self.fs(part.layer);
        let attr = fs.getattr(part.ino)?;
        // Made beside, so that a half of it is never seen, and then put in its place within the same file: content that comes under a
        // mark which says that it does not count.
        let file = fs.open(part.ino, OpenFlags::READ_WRITE)?;
        let (copied, _) = self.copy_content(parts, None, fs, part.ino, &*file, content)?;
        match self.rules.durability {
            Durability::Volatile => file.flush()?,
            Durability::Ordered => copied.write_before_name(&*file)?,
            Durability::Strict => file.sync(true)?,
        }
        let times = SetAttr {
            atime: Some(SetTime::To(attr.atime)),
            mtime: Some(SetTime::To(attr.mtime)),
            ..SetAttr::default()
        };
        fs.setattr(part.ino, &times)?;
        fs.removexattr(part.ino, &self.rules.prefix.name("metacopy"))?;
        let _ = fs.removexattr(part.ino, &self.rules.prefix.name("redirect"));
        node.set_parts(Parts { stack: parts.stack.clone(), data: 0 });
        Ok(part)
    }

    /// `known` are the attributes of the node, if they are. Gives the file that was copied too, if it was opened for that.
    fn copy_content(
        &self,
        parts: &Parts,
        known: Option<&Attr>,
        fs: &dyn Filesystem,
        ino: Ino,
        to: &dyn File,
        content: Content,
    ) -> Result<(Copied, Option<Arc<dyn File>>)> {
        let part = parts.content();
        let attr = match known {
            Some(attr) if parts.data == 0 => *attr,
            _ => self.fs(part.layer).getattr(part.ino)?,
        };
        let len = match content {
            Content::UpTo(limit) => attr.size.min(limit),
            Content::MetadataOnly => attr.size,
        };
        if len == 0 {
            return Ok((Copied::Nothing, None));
        }
        let from = self.fs(part.layer).open(part.ino, OpenFlags::READ)?;
        if len == attr.size && self.reflink(&*from, to) {
            return Ok((Copied::Shared, Some(from)));
        }
        copy_extents(&*from, fs, ino, to, &attr, len)?;
        Ok((Copied::Written, Some(from)))
    }

    /// Has the two files share their content.
    fn reflink(&self, from: &dyn File, to: &dyn File) -> bool {
        if self.no_reflinks.load(Ordering::Relaxed) {
            return false;
        }
        let (Some(source), Some(copy)) = (from.backing(), to.backing()) else { return false };
        let done = rustix::fs::ioctl_ficlone(copy, source).is_ok();
        if !done {
            self.no_reflinks.store(true, Ordering::Relaxed);
        }
        done
    }

    /// Opens a file to write, where that is done.
    pub(crate) fn open_up(&self, node: &Arc<Node>, flags: OpenFlags) -> Result<Arc<dyn File>> {
        let content = Content::UpTo(u64::MAX);
        let (part, made) = self.node_up_opened(node, content)?;
        // Whoever is handed the descriptor itself must not be able to do more with it than was asked for.
        match made {
            Some(made) if !self.rules.real_numbers || flags.read && flags.write => Ok(made),
            _ => self.fs(part.layer).open(part.ino, self.layer_flags(flags)),
        }
    }
}

/// The mode that a node gets which is shown with another one: its owner must be able to work with it.
pub(crate) fn real_mode(kind: Kind, perm: Perm) -> u32 {
    let needed = if kind == Kind::Directory { 0o700 } else { 0o600 };
    perm.bits() & 0o777 | needed
}

/// Moves a name to one that is not there.
pub(crate) fn rename_new(
    fs: &dyn Filesystem,
    dir: Ino,
    name: &OsStr,
    to: Ino,
    new_name: &OsStr,
) -> Result<()> {
    let flags = RenameFlags { no_replace: true, ..RenameFlags::default() };
    match fs.rename(dir, name, to, new_name, flags) {
        // Some filesystems know no such flag.
        Err(Errno::EINVAL) => fs.rename(dir, name, to, new_name, RenameFlags::default()),
        done => done,
    }
}

/// How content came to a copy.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Copied {
    /// There is none.
    Nothing,
    /// It is shared with the file that was copied.
    Shared,
    /// It was written.
    Written,
}

impl Copied {
    /// Sees to it that the content of a file is on the disk before a name that it is given after this call is.
    ///
    /// An empty file has none. Shared content is on the disk, and that it is this file's is a change of metadata like the name: the
    /// filesystems that can share keep metadata in order. ext4 gives a file its blocks and its size only when it writes the content, long
    /// after the name; asked to do it at once (as it does by itself when a name is replaced by a rename) it writes the content no
    /// later than the journal tells of the blocks, and of the name later than that (`data=ordered`, the default). Anything else is
    /// waited for.
    pub(crate) fn write_before_name(self, file: &dyn File) -> Result<()> {
        const EXT4_ALLOCATE: u32 = 0x660c;
        if self != Copied::Written {
            return Ok(());
        }
        let mut allocate = Ioctl { command: EXT4_ALLOCATE, argument: 0, input: &[], output: &mut [] };
        file.ioctl(&mut allocate).map_or_else(|_| file.sync(false), |_| Ok(()))
    }
}

/// Copies a whole file, and leaves holes where they are.
pub(crate) fn copy_file(
    from: &dyn File,
    fs: &dyn Filesystem,
    ino: Ino,
    to: &dyn File,
    attr: &Attr,
) -> Result<Copied> {
    if let (Some(source), Some(copy)) = (from.backing(), to.backing()) {
        if rustix::fs::ioctl_ficlone(copy, source).is_ok() {
            return Ok(Copied::Shared);
        }
    }
    copy_extents(from, fs, ino, to, attr, attr.size)?;
    Ok(Copied::Written)
}

/// The first `len` bytes of a file with these attributes.
fn copy_extents(
    from: &dyn File,
    fs: &dyn Filesystem,
    ino: Ino,
    to: &dyn File,
    attr: &Attr,
    len: u64,
) -> Result<()> {
    // A file that takes up as much as it is long has no holes.
    if attr.blocks.saturating_mul(512) >= attr.size {
        return copy_range(from, to, 0, len);
    }
    copy_ranges(from, to, len)?;
    fs.setattr(ino, &SetAttr { size: Some(len), ..SetAttr::default() })?;
    Ok(())
}

/// Copies what is data of the first `len` bytes, and leaves out the holes, one at the end included.
fn copy_ranges(from: &dyn File, to: &dyn File, len: u64) -> Result<()> {
    let mut at = 0;
    while at < len {
        let start = match from.seek(Seek::Data, at) {
            Ok(start) => start.max(at),
            Err(Errno::ENXIO) => break,
            Err(Errno::EOPNOTSUPP) => at,
            Err(error) => return Err(error),
        };
        if start >= len {
            break;
        }
        let end = match from.seek(Seek::Hole, start) {
            Ok(end) => end.clamp(start + 1, len),
            Err(_) => len,
        };
        copy_range(from, to, start, end)?;
        at = end;
    }
    Ok(())
}

fn copy_range(from: &dyn File, to: &dyn File, start: u64, end: u64) -> Result<()> {
    let mut at = start;
    if let (Some(source), Some(copy)) = (from.backing(), to.backing()) {
        while at < end && end - start > SMALL {
            let (mut here, mut there) = (at, at);
            let len = usize::try_from(end - at).unwrap_or(usize::MAX).min(1 << 30);
            match rustix::fs::copy_file_range(source, Some(&mut here), copy, Some(&mut there), len) {
                // Nothing, where there is something: a file that makes up its content, or its length was wrong.
                Ok(0) => break,
                Ok(copied) => at += copied as u64,
                Err(rustix::io::Errno::NOSPC) => return Err(Errno::ENOSPC),
                Err(rustix::io::Errno::DQUOT) => return Err(Errno::EDQUOT),
                Err(_) => break,
            }
        }
    }
    let room = usize::try_from(end - at).unwrap_or(CHUNK).min(CHUNK);
    let mut buf = vec![0; room];
    while at < end {
        let want = usize::try_from(end - at).unwrap_or(room).min(room);
        let read = from.read_at(&mut buf[..want], at)?;
        if read == 0 {
            break;
        }
        write_all(to, &buf[..read], at)?;
        at += read as u64;
    }
    Ok(())
}

pub(crate) fn write_all(to: &dyn File, mut bytes: &[u8], mut offset: u64) -> Result<()> {
    while !bytes.is_empty() {
        let written = to.write_at(bytes, offset)?;
        if written == 0 {
            return Err(Errno::ENOSPC);
        }
        bytes = bytes.get(written..).unwrap_or_default();
        offset += written as u64;
    }
    Ok(())
}
