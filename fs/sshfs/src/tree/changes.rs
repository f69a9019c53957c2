//! Changes: what is made, removed, moved, and changed in its attributes.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::sync::Arc;
use std::time::Instant;

use veduta_api::{
    Attr, Entry, Errno, Ino, Kind, NewNode, OpenFlags, Perm, RenameFlags, Result, SetAttr, SetTime, Timestamp,
};

use super::{Inner, entry, open_bits};
use crate::connection::{Connection, Ticket};
use crate::content::Content;
use crate::file::{OpenFile, Place};
use crate::nodes::Table;
use crate::session::unbroken;
use crate::wire::{Attrs, Packet, open, reply, request};

/// The bits of a mode that make a program somebody else's.
const SET_UID: u32 = 0o4000;
const SET_GID: u32 = 0o2000;
const GROUP_EXECUTES: u32 = 0o010;

/// Bytes; what one request copies at most, since the server does nothing else meanwhile.
const COPY: u64 = 32 << 20;

const HARD_LINK: &str = "hardlink@openssh.com";
const POSIX_RENAME: &str = "posix-rename@openssh.com";
const LINK_SETSTAT: &str = "lsetstat@openssh.com";
const COPY_DATA: &str = "copy-data";

impl Inner {
    /// A name was made: enters it, with a reference. The directory changed when it was made, by the server's clock.
    fn made(&self, parent: Ino, name: &OsStr, attr: Attr) -> Result<(Ino, Attr)> {
        let mut table = self.table.lock();
        table.mark(parent);
        let sent = table.now();
        // Whatever was known under this name is something else.
        table.lose(parent, name);
        let made = table.enter(parent, name, attr, sent)?;
        let trust = self.trust_of(&mut table, parent);
        if let Ok(node) = table.node(parent) {
            if let Some(above) = &mut node.attr {
                above.mtime = above.mtime.max(attr.mtime);
                above.ctime = above.mtime;
            }
            if trust {
                node.ours = Some(Instant::now());
            }
        }
        Ok(made)
    }

    /// Whether a directory's absent names are still believed to be absent.
    fn trust_of(&self, table: &mut Table, dir: Ino) -> bool {
        let trust = self.trust();
        table.node(dir).is_ok_and(|node| node.ours.is_some_and(|at| at.elapsed() < trust))
    }

    /// The names of a directory have changed in a way that says nothing of its times.
    fn unmade(&self, dir: Ino) {
        let mut table = self.table.lock();
        table.mark(dir);
        if let Ok(node) = table.node(dir) {
            node.spoil_attr();
        }
    }

    /// A request that makes a name, and one for the attributes of what was made.
    fn make(&self, parent: Ino, name: &OsStr, packet: impl FnOnce(&[u8]) -> Packet) -> Result<Entry> {
        let path = self.path_below(parent, name)?;
        let above = self.path(parent)?;
        self.mark(&[parent]);
        let attr = self.session.once(0, |connection| {
            let (made, told) = connection.ask_both(packet(&path), self.stat_packet(&path))?;
            made.wait()?.ok().map_err(|errno| self.explain_new(errno, &path, &above))?;
            self.attr_of(connection, told.wait()?)
        });
        match attr {
            Ok(attr) => self.made(parent, name, attr).map(|(ino, attr)| entry(ino, attr)),
            Err(errno) => {
                self.mark(&[parent]);
                Err(errno)
            }
        }
    }

    pub(super) fn create(
        self: &Arc<Self>,
        parent: Ino,
        name: &OsStr,
        new: &NewNode,
        flags: OpenFlags,
    ) -> Result<(Entry, Arc<OpenFile>)> {
        let (path, above) = (self.path_below(parent, name)?, self.path(parent)?);
        let lane = self.session.pick_lane();
        let mode = (!self.settings.create_plain).then(|| new.masked().bits());
        let bits = open_bits(flags) | open::WRITE | open::CREATE | open::EXCLUSIVE;
        let packet =
            Packet::new(request::OPEN).string(&path).u32(bits).attrs(&Attrs { mode, ..Attrs::default() });
        self.mark(&[parent]);
        let made = self.session.once(lane, |connection| {
            let (opened, told) = connection.ask_both(packet, self.stat_packet(&path))?;
            let opened = opened.wait()?.expect(reply::HANDLE);
            let opened = opened.map_err(|errno| self.explain_new(errno, &path, &above))?;
            let bytes: Arc<[u8]> = opened.fields().string()?.into();
            let place = Place { connection: connection.clone(), bytes };
            match self.attr_of(connection, told.wait()?) {
                Ok(attr) => Ok((attr, place)),
                Err(errno) => {
                    place.connection.close(&place.bytes);
                    Err(errno)
                }
            }
        });
        let (attr, place) = made.inspect_err(|_| self.mark(&[parent]))?;
        let (ino, attr) = self.made(parent, name, attr)?;
        let flags = OpenFlags { write: true, ..flags };
        Ok((entry(ino, attr), self.opened(ino, lane, flags, place, true)))
    }

    pub(super) fn mkdir(&self, parent: Ino, name: &OsStr, new: &NewNode) -> Result<Entry> {
        let attrs = Attrs { mode: Some(new.masked().bits()), ..Attrs::default() };
        let made = self.make(parent, name, |path| Packet::new(request::MKDIR).string(path).attrs(&attrs))?;
        if let Ok(node) = self.table.lock().node(made.ino) {
            // It is empty, and all that is made in it for now is made by us.
            node.listed = Some(Instant::now());
            node.ours = node.listed;
        }
        Ok(made)
    }

    pub(super) fn symlink(&self, parent: Ino, name: &OsStr, target: &OsStr) -> Result<Entry> {
        // The order that OpenSSH has, and that other servers have taken over from it, is not that of the draft.
        self.make(parent, name, |path| Packet::new(request::SYMLINK).string(target.as_bytes()).string(path))
    }

    pub(super) fn link(&self, ino: Ino, parent: Ino, name: &OsStr) -> Result<Entry> {
        let old = self.path(ino)?;
        let has = self.session.connection(0)?.greeting().has(HARD_LINK);
        if !self.settings.hard_links || !has {
            return Err(Errno::EPERM);
        }
        let made = self.make(parent, name, |path| Packet::extended(HARD_LINK).string(&old).string(path));
        made.map_err(|errno| match errno {
            Errno::EACCES => Errno::EPERM,
            Errno::EIO if self.path(parent).is_ok_and(|above| self.are_apart(&old, &above)) => Errno::EXDEV,
            errno => errno,
        })
    }

    /// `kind`: the request that removes.
    pub(super) fn remove(&self, parent: Ino, name: &OsStr, kind: u8) -> Result<()> {
        let path = self.path_below(parent, name)?;
        self.mark(&[parent]);
        let result = self.session.once(0, |connection| {
            connection
                .call(Packet::new(kind).string(&path))?
                .ok()
                .map_err(|errno| self.explain_removed(errno, &path, kind))
        });
        self.unmade(parent);
        if matches!(result, Ok(()) | Err(Errno::ENOENT)) {
            self.table.lock().lose(parent, name);
        }
        result
    }

    pub(super) fn rename(&self, from: (Ino, &OsStr), to: (Ino, &OsStr), flags: RenameFlags) -> Result<()> {
        if flags.exchange || flags.whiteout {
            return Err(Errno::EINVAL);
        }
        let (path, new_path) = (self.path_below(from.0, from.1)?, self.path_below(to.0, to.1)?);
        if path == new_path {
            return if flags.no_replace { Err(Errno::EEXIST) } else { Ok(()) };
        }
        let above = self.path(to.0)?;
        self.mark(&[from.0, to.0]);
        let result = self.session.once(0, |connection| {
            let posix = connection.greeting().has(POSIX_RENAME) && !flags.no_replace;
            let ask = || {
                let packet =
                    if posix { Packet::extended(POSIX_RENAME) } else { Packet::new(request::RENAME) };
                connection.call(packet.string(&path).string(&new_path))?.ok()
            };
            match ask() {
                Err(Errno::EIO) if !posix && self.settings.rename_removes && !flags.no_replace => {
                    connection.call(Packet::new(request::REMOVE).string(&new_path))?.ok()?;
                    ask()
                }
                result => result,
            }
        });
        self.unmade(from.0);
        self.unmade(to.0);
        if let Err(errno) = result {
            if errno == Errno::EIO && flags.no_replace {
                return Err(self.explain_new(errno, &new_path, &above));
            }
            return Err(self.explain_renamed(errno, &path, &new_path, &above));
        }
        let mut table = self.table.lock();
        table.rename(from, to);
        if let Some(moved) = table.child(to.0, to.1) {
            if let Ok(node) = table.node(moved) {
                // The target of a link may be shown otherwise from here.
                node.ours = None;
            }
        }
        Ok(())
    }

    pub(super) fn setattr(&self, ino: Ino, changes: &SetAttr) -> Result<Attr> {
        let SetAttr { perm, uid, gid, size, atime, mtime, flags, drop_set_id, .. } = *changes;
        if flags.is_some() {
            return Err(Errno::EOPNOTSUPP);
        }
        let content = self.content(ino);
        let changes_owner = uid.is_some() || gid.is_some();
        let changes_times = atime.is_some() || mtime.is_some();
        let before = match (atime, mtime, uid, gid) {
            // Both of a pair are given, so that nothing must be known.
            (None, None, None, None) | (Some(_), Some(_), None, None) => self.last_attr(ino)?,
            // Nor of what we have just made, and are writing: that changes no owner and no time of reading.
            (_, Some(_), None, None) if content.as_ref().is_some_and(|content| content.is_new) => {
                self.last_attr(ino)?
            }
            _ => self.getattr(ino)?,
        };
        let kept = self.kept_mode(&before, drop_set_id);
        if perm.is_none() && size.is_none() && !changes_owner && !changes_times && kept.is_none() {
            return Ok(self.with_writes(content, before));
        }
        let mut attrs = Attrs { size, ..Attrs::default() };
        attrs.mode = perm.map(Perm::bits).or(kept);
        if changes_owner {
            let uid = self.ids.user_to_remote(uid.unwrap_or(before.uid))?;
            attrs.owner = Some((uid, self.ids.group_to_remote(gid.unwrap_or(before.gid))?));
        }
        if changes_times {
            attrs.times = Some((seconds(atime, before.atime)?, seconds(mtime, before.mtime)?));
        }
        self.change(ino, content.as_ref(), &attrs, &before)
    }

    /// The mode without what makes a program somebody else's, if it has that and is to lose it.
    fn kept_mode(&self, attr: &Attr, drop_set_id: bool) -> Option<u32> {
        let bits = attr.perm.bits();
        let lost = SET_UID | if bits & GROUP_EXECUTES != 0 { SET_GID } else { 0 };
        (drop_set_id && attr.kind == Kind::File && bits & lost != 0).then_some(bits & !lost)
    }

    fn change(&self, ino: Ino, content: Option<&Arc<Content>>, attrs: &Attrs, before: &Attr) -> Result<Attr> {
        let writer = content.and_then(|content| Some((content.handle(true)?, content.clone())));
        if let Some((handle, content)) = &writer {
            // What we have just made is ours to change: like its writes, this may go out now and be answered later.
            if content.is_new && attrs.size.is_none() && attrs.owner.is_none() && self.settings.write_behind {
                let place = self.live(content, handle)?;
                self.mark(&[ino]);
                let packet = Packet::new(request::FSETSTAT).string(&place.bytes).attrs(attrs);
                content
                    .change_behind(&place.connection, packet)
                    .map_err(|errno| self.explain_write(ino, errno))?;
                return self.predict(ino, content, attrs, before);
            }
            content.settle(self.settings.deadline, false).map_err(|errno| self.explain_write(ino, errno))?;
        } else if let Some(content) = content {
            content.drain(self.settings.deadline)?;
        }
        self.mark(&[ino]);
        let path = self.path(ino);
        let handle = match (&path, &writer, content) {
            // A file that was opened to be written can be cut, whatever its mode has become.
            (_, Some(writer), _) if attrs.size.is_some() || path.is_err() => Some(writer.clone()),
            (Err(_), None, Some(content)) => {
                Some((content.handle(false).ok_or(Errno::ESTALE)?, content.clone()))
            }
            _ => None,
        };
        let attr = match handle {
            Some((handle, content)) => {
                let place = self.live(&content, &handle)?;
                let set = Packet::new(request::FSETSTAT).string(&place.bytes).attrs(attrs);
                let told = Packet::new(request::FSTAT).string(&place.bytes);
                let asked = place.connection.ask_both(set, told);
                asked.and_then(|tickets| self.changed(&place.connection, tickets)).map_err(unbroken)
            }
            None => {
                let path = path?;
                self.session.once(0, |connection| {
                    let has = connection.greeting().has(LINK_SETSTAT) && !self.settings.links.follow;
                    let set = match (attrs.size, before.kind) {
                        (Some(_), _) => Packet::new(request::SETSTAT),
                        _ if has => Packet::extended(LINK_SETSTAT),
                        // It would change what the link leads to.
                        (None, Kind::Symlink) => return Err(Errno::EOPNOTSUPP),
                        _ => Packet::new(request::SETSTAT),
                    };
                    let tickets =
                        connection.ask_both(set.string(&path).attrs(attrs), self.stat_packet(&path))?;
                    self.changed(connection, tickets)
                })
            }
        };
        if let (Some(_), Some(content)) = (attrs.size, content) {
            content.note_change();
        }
        let mut table = self.table.lock();
        table.mark(ino);
        let sent = table.now();
        match attr {
            Ok(attr) => {
                content.iter().for_each(|content| content.know(attr));
                Ok(table.learn(ino, attr, sent))
            }
            Err(errno) => {
                if let Ok(node) = table.node(ino) {
                    node.spoil_attr();
                }
                drop(table);
                // Who may not change what others own is told so in this way.
                let errno = if errno == Errno::EACCES && attrs.size.is_none() { Errno::EPERM } else { errno };
                Err(if errno == Errno::EIO && attrs.size.is_some() {
                    self.explain_write(ino, errno)
                } else {
                    errno
                })
            }
        }
    }

    /// What a change and the question behind it came to.
    fn changed(&self, connection: &Arc<Connection>, (set, told): (Ticket, Ticket)) -> Result<Attr> {
        set.wait()?.ok()?;
        self.attr_of(connection, told.wait()?)
    }

    /// The attributes as they will be once a change that is under way has been made.
    fn predict(&self, ino: Ino, content: &Arc<Content>, attrs: &Attrs, before: &Attr) -> Result<Attr> {
        let mut attr = *before;
        if let Some(mode) = attrs.mode {
            attr.perm = Perm::from_mode(mode & !self.settings.umask);
        }
        if let Some((atime, mtime)) = attrs.times {
            attr.atime = Timestamp::from_seconds(atime.into());
            attr.mtime = Timestamp::from_seconds(mtime.into());
            attr.ctime = attr.mtime;
        }
        let attr = self.with_writes(Some(content.clone()), attr);
        content.know(attr);
        let mut table = self.table.lock();
        table.mark(ino);
        let node = table.node(ino)?;
        let is_known = attrs.times.is_some() || node.fresh(self.settings.attr_time).is_some();
        node.set_attr(attr);
        if !is_known {
            // Its time of change is the server's.
            node.spoil_attr();
        }
        Ok(attr)
    }

    pub(super) fn copy_range(&self, from: (Ino, u64), to: (Ino, u64), len: u64) -> Result<u64> {
        if from.0 == to.0 {
            return Err(Errno::EOPNOTSUPP);
        }
        let (source, target) = match (self.content(from.0), self.content(to.0)) {
            (Some(source), Some(target)) => (source, target),
            _ => return Err(Errno::EOPNOTSUPP),
        };
        let (Some(reader), Some(writer)) = (source.readable(), target.handle(true)) else {
            return Err(Errno::EOPNOTSUPP);
        };
        for content in [&source, &target] {
            content
                .settle(self.settings.deadline, false)
                .map_err(|errno| self.explain_write(content.ino, errno))?;
        }
        let (read, write) = (self.live(&source, &reader)?, self.live(&target, &writer)?);
        let connection = &read.connection;
        if !Arc::ptr_eq(connection, &write.connection) || !connection.greeting().has(COPY_DATA) {
            return Err(Errno::EOPNOTSUPP);
        }
        let told = connection.call(Packet::new(request::FSTAT).string(&read.bytes)).map_err(unbroken)?;
        let size = self.attr_of(connection, told)?.size;
        let len = len.min(COPY).min(size.saturating_sub(from.1));
        if len == 0 {
            // To the server, 0 means "all".
            return Ok(0);
        }
        let end = to.1.checked_add(len).ok_or(Errno::EFBIG)?;
        let packet = Packet::extended(COPY_DATA)
            .string(&read.bytes)
            .u64(from.1)
            .u64(len)
            .string(&write.bytes)
            .u64(to.1);
        let result = connection.call(packet).and_then(|reply| reply.ok()).map_err(unbroken);
        target.note_change();
        self.note_write(to.0, end);
        match result {
            Ok(()) => Ok(len),
            Err(errno) => Err(self.explain_write(to.0, errno)),
        }
    }
}

/// A time to be set, as SFTP has it: whole seconds from 1970 to 2106.
fn seconds(time: Option<SetTime>, otherwise: Timestamp) -> Result<u32> {
    let time = match time {
        Some(SetTime::To(time)) => time,
        Some(SetTime::Now) => Timestamp::now(),
        None => otherwise,
    };
    u32::try_from(time.seconds).map_err(|_| Errno::EOVERFLOW)
}
