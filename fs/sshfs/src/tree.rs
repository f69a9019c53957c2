//! The tree: operations of the contract, as requests to the server.
//!
//! A request by path and what the table knows of paths must agree, so each operation holds `names` shared while it lasts, and `rename`
//! holds it alone. Open files need no path, and take neither.
//!
//! Requests that belong together are sent together: the attributes of what was just made come with the same round trip.

mod changes;
mod errors;

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use parking_lot::{Mutex, RwLock, RwLockReadGuard, RwLockWriteGuard};
use veduta_api::{
    Attr, Caching, DirEntry, DirSink, Entry, Errno, Facts, File, Filesystem, Ino, Kind, NewNode, OpenFlags,
    Perm, RenameFlags, Result, SetAttr, StatFs, Timestamp,
};

use crate::connection::{BROKEN, Connection, Patience, Reply, Waiting};
use crate::content::Content;
use crate::file::{Handle, OpenFile, Place};
use crate::idmap::IdMap;
use crate::list::{How, Listed, Lister};
use crate::nodes::{Stamp, Table};
use crate::options::Settings;
use crate::session::{Session, unbroken};
use crate::wire::{Attrs, Packet, open, reply, request};

/// Bytes; the longest path that a server of Linux takes.
const MAX_PATH: usize = 4095;

/// Directories that are listed before anybody asked.
const LISTED_AHEAD: usize = 24;

/// Links that are read before anybody asked, of one directory.
const LINKS_AHEAD: usize = 128;

/// How long after its parent a directory must be listed to be part of a walk.
const WALK: Duration = Duration::from_secs(3);

/// How often a listing is begun again because the directory was changed meanwhile.
const LISTINGS: usize = 3;

/// What all of the mount share.
pub(crate) struct Inner {
    pub(crate) session: Session,
    pub(crate) settings: Settings,
    pub(crate) ids: IdMap,
    /// The server's path of the root.
    pub(crate) base: Vec<u8>,
    pub(crate) table: Mutex<Table>,
    pub(crate) ahead_bytes: Arc<AtomicUsize>,
    names: RwLock<()>,
    listings_ahead: AtomicUsize,
}

/// See the head of this file.
pub(crate) struct Tree(pub(crate) Arc<Inner>);

impl Tree {
    pub(crate) fn new(session: Session, settings: Settings, ids: IdMap, base: Vec<u8>) -> Self {
        let table = Mutex::new(Table::new(settings.kept_names));
        Self(Arc::new(Inner {
            session,
            settings,
            ids,
            base,
            table,
            ahead_bytes: Arc::default(),
            names: RwLock::new(()),
            listings_ahead: AtomicUsize::new(0),
        }))
    }
}

impl Inner {
    // --- Paths and attributes

    /// Paths keep their meaning while this is held.
    fn names(&self) -> Result<RwLockReadGuard<'_, ()>> {
        let mut patience = Patience::new(self.settings.deadline);
        loop {
            if let Some(guard) = self.names.try_read_for(patience.pause()?) {
                return Ok(guard);
            }
        }
    }

    /// Nobody else uses a path while this is held.
    fn names_alone(&self) -> Result<RwLockWriteGuard<'_, ()>> {
        let mut patience = Patience::new(self.settings.deadline);
        loop {
            if let Some(guard) = self.names.try_write_for(patience.pause()?) {
                return Ok(guard);
            }
        }
    }

    /// The server's path of a path below the root.
    fn absolute(&self, below: &[u8]) -> Result<Vec<u8>> {
        let mut path = self.base.clone();
        if !below.is_empty() {
            if !path.ends_with(b"/") {
                path.push(b'/');
            }
            path.extend_from_slice(below);
        }
        if path.len() > MAX_PATH { Err(Errno::ENAMETOOLONG) } else { Ok(path) }
    }

    fn path(&self, ino: Ino) -> Result<Vec<u8>> {
        let below = self.table.lock().path(ino)?;
        self.absolute(&below)
    }

    fn path_below(&self, parent: Ino, name: &OsStr) -> Result<Vec<u8>> {
        let mut path = self.path(parent)?;
        if !path.ends_with(b"/") {
            path.push(b'/');
        }
        path.extend_from_slice(name.as_bytes());
        if path.len() > MAX_PATH { Err(Errno::ENAMETOOLONG) } else { Ok(path) }
    }

    fn stamp(&self) -> Stamp {
        self.table.lock().now()
    }

    /// A change begins or ends.
    fn mark(&self, nodes: &[Ino]) {
        let mut table = self.table.lock();
        nodes.iter().for_each(|ino| table.mark(*ino));
    }

    fn stat_packet(&self, path: &[u8]) -> Packet {
        let kind = if self.settings.links.follow { request::STAT } else { request::LSTAT };
        Packet::new(kind).string(path)
    }

    /// What the server's attributes are here. The number is not set yet.
    pub(crate) fn attr(&self, attrs: &Attrs) -> Result<Attr> {
        let kind = attrs.kind().ok_or(Errno::EIO)?;
        let perm = Perm::from_mode(attrs.perm().bits() & !self.settings.umask);
        let mut attr = Attr::new(0, kind, perm);
        (attr.uid, attr.gid) = self.ids.to_local(attrs.owner.unwrap_or((0, 0)))?;
        attr.size = attrs.size.unwrap_or(0);
        attr.blocks = attr.size.div_ceil(512);
        attr.blksize = 131_072;
        let (atime, mtime) = attrs.times.unwrap_or((0, 0));
        attr.atime = Timestamp::from_seconds(atime.into());
        attr.mtime = Timestamp::from_seconds(mtime.into());
        attr.ctime = attr.mtime;
        Ok(attr)
    }

    /// Attributes out of a reply.
    fn attr_of(&self, connection: &Arc<Connection>, reply: Reply) -> Result<Attr> {
        let attrs = reply.expect(reply::ATTRS)?.fields().attrs()?;
        if let Some((users, groups)) = self.ids.unknown(attrs.owner.into_iter()) {
            if let Some(packet) = self.owners_packet(connection, &users, &groups) {
                self.owners_told(connection.call(packet), &users, &groups);
            }
        }
        self.attr(&attrs)
    }

    /// Asks for the names of users and groups; `None` if the server does not tell.
    pub(crate) fn owners_packet(
        &self,
        connection: &Connection,
        users: &[u32],
        groups: &[u32],
    ) -> Option<Packet> {
        let name = "users-groups-by-id@openssh.com";
        let list = |ids: &[u32]| ids.iter().flat_map(|id| id.to_be_bytes()).collect::<Vec<u8>>();
        let packet = || Packet::extended(name).string(&list(users)).string(&list(groups));
        connection.greeting().has(name).then(packet)
    }

    pub(crate) fn owners_told(&self, reply: Result<Reply>, users: &[u32], groups: &[u32]) {
        let told = || -> Result<()> {
            let reply = reply?.expect(reply::EXTENDED_REPLY)?;
            let mut fields = reply.fields();
            let mut named = |ids: &[u32]| -> Result<Vec<(u32, String)>> {
                let mut list = crate::wire::Fields(fields.string()?);
                let name = |id: &u32| Ok((*id, String::from_utf8_lossy(list.string()?).into_owned()));
                ids.iter().map(name).collect()
            };
            let (users, groups) = (named(users)?, named(groups)?);
            self.ids.told(&users, &groups);
            Ok(())
        };
        if let Err(errno) = told() {
            tracing::debug!("the server does not name owners: {}", errno.desc());
        }
    }

    /// Asks for the attributes of a path.
    fn stat(&self, path: &[u8]) -> Result<Attr> {
        self.session.repeat(0, |connection| {
            let reply = connection.call(self.stat_packet(path))?;
            self.attr_of(connection, reply)
        })
    }

    /// Attributes as they are with what is being written.
    fn with_writes(&self, content: Option<Arc<Content>>, mut attr: Attr) -> Attr {
        if let Some(content) = content {
            attr.size = attr.size.max(content.end_under_way());
            attr.blocks = attr.size.div_ceil(512);
        }
        attr
    }

    fn content(&self, ino: Ino) -> Option<Arc<Content>> {
        self.table.lock().node(ino).ok()?.content.upgrade()
    }

    /// The attributes of a node, remembered or asked for.
    fn getattr(&self, ino: Ino) -> Result<Attr> {
        let (path, content, sent) = {
            let mut table = self.table.lock();
            let sent = table.now();
            let path = table.path(ino);
            let node = table.node(ino)?;
            let content = node.content.upgrade();
            if let Some(attr) = node.fresh(self.settings.attr_time) {
                drop(table);
                return Ok(self.with_writes(content, attr));
            }
            (path, content, sent)
        };
        // Before the question: what is acknowledged until the answer is in it anyway.
        let end = content.as_ref().map_or(0, |content| content.end_under_way());
        let handle = content.as_ref().and_then(|content| Some((content.clone(), content.handle(false)?)));
        let mut attr = match (path, handle) {
            (Ok(below), _) => self.stat(&self.absolute(&below)?)?,
            (Err(_), Some((content, handle))) => self.through(&content, &handle, |place| {
                let reply = place.connection.call(Packet::new(request::FSTAT).string(&place.bytes))?;
                self.attr_of(&place.connection, reply)
            })?,
            (Err(errno), None) => return Err(errno),
        };
        attr.size = attr.size.max(end);
        attr.blocks = attr.size.div_ceil(512);
        let attr = self.table.lock().learn(ino, attr, sent);
        Ok(self.with_writes(content, attr))
    }

    /// The last attributes that were known, however old, or else new ones.
    fn last_attr(&self, ino: Ino) -> Result<Attr> {
        let known = self.table.lock().node(ino)?.attr;
        match known {
            Some(attr) => Ok(attr),
            None => self.getattr(ino),
        }
    }

    /// A node was written up to `end`.
    pub(crate) fn note_write(&self, ino: Ino, end: u64) {
        let mut table = self.table.lock();
        table.mark(ino);
        if let Ok(node) = table.node(ino) {
            if let Some(attr) = &mut node.attr {
                attr.size = attr.size.max(end);
                attr.blocks = attr.size.div_ceil(512);
            }
            node.spoil_attr();
        }
    }

    // --- Handles

    /// Where the server has an open file; opened again if the connection broke and a new one was wanted.
    pub(crate) fn live(&self, content: &Content, handle: &Handle) -> Result<Place> {
        let mut place = handle.place.lock();
        if !place.connection.is_dead() {
            return Ok(place.clone());
        }
        let connection = self.session.connection(handle.lane)?;
        let fresh = self.reopen(content, handle, &connection)?;
        *place = fresh.clone();
        Ok(fresh)
    }

    /// `ESTALE` if what is under the name now is not what was open, as far as the server can tell.
    fn reopen(&self, content: &Content, handle: &Handle, connection: &Arc<Connection>) -> Result<Place> {
        let below = self.table.lock().path(content.ino)?;
        let path = self.absolute(&below)?;
        let packet = Packet::new(request::OPEN).string(&path).u32(open_bits(handle.flags));
        let opened = connection.call(packet.attrs(&Attrs::default())).map_err(unbroken)?;
        let bytes: Arc<[u8]> = opened.expect(reply::HANDLE)?.fields().string()?.into();
        let checked = || -> Result<()> {
            let reply = connection.call(Packet::new(request::FSTAT).string(&bytes)).map_err(unbroken)?;
            let now = self.attr_of(connection, reply)?;
            if content.is_same(&now) { Ok(()) } else { Err(Errno::ESTALE) }
        };
        if let Err(errno) = checked() {
            tracing::warn!("{}: not the file any more that was open", String::from_utf8_lossy(&path));
            connection.close(&bytes);
            return Err(errno);
        }
        Ok(Place { connection: connection.clone(), bytes })
    }

    /// Asks something through a handle; again, if the connection breaks meanwhile and the file can be opened again.
    pub(crate) fn through<T>(
        &self,
        content: &Content,
        handle: &Handle,
        mut work: impl FnMut(&Place) -> Result<T>,
    ) -> Result<T> {
        match work(&self.live(content, handle)?) {
            Err(BROKEN) if self.session.reconnects() => work(&self.live(content, handle)?).map_err(unbroken),
            result => result.map_err(unbroken),
        }
    }

    /// The server's `fsync`.
    pub(crate) fn sync_handle(&self, content: &Content, handle: &Handle) -> Result<()> {
        self.through(content, handle, |place| {
            if !place.connection.greeting().has("fsync@openssh.com") {
                return Err(Errno::EOPNOTSUPP);
            }
            place.connection.call(Packet::extended("fsync@openssh.com").string(&place.bytes))?.ok()
        })
    }

    /// A file that was opened: its content is shared with others who have it open.
    fn opened(
        self: &Arc<Self>,
        ino: Ino,
        lane: usize,
        flags: OpenFlags,
        place: Place,
        is_new: bool,
    ) -> Arc<OpenFile> {
        let handle = Arc::new(Handle { lane, flags, place: Mutex::new(place) });
        let (content, size) = {
            let mut table = self.table.lock();
            let shared = table.node(ino).map(|node| {
                let content = node.content.upgrade().unwrap_or_else(|| Content::new(ino, is_new, node.attr));
                node.content = Arc::downgrade(&content);
                (content, node.attr.map_or(0, |attr| attr.size))
            });
            shared.unwrap_or_else(|_| (Content::new(ino, is_new, None), 0))
        };
        content.add_handle(&handle);
        let size = AtomicU64::new(size);
        Arc::new(OpenFile { tree: self.clone(), content, handle, size, ahead: Mutex::default() })
    }

    // --- Directories

    /// Has all names of a directory in the table.
    fn list(self: &Arc<Self>, dir: Ino) -> Result<()> {
        for attempt in 1..=LISTINGS {
            let lister = {
                let mut table = self.table.lock();
                let node = table.node(dir)?;
                if node.listed.is_some_and(|at| at.elapsed() < self.settings.names_time) {
                    return Ok(());
                }
                // One that was begun after the last change; or else a new one.
                node.lister.upgrade()
            };
            let lister = match lister {
                Some(lister) if attempt == 1 => lister,
                _ if attempt == LISTINGS => self.start_listing(dir, How::Anyhow)?,
                _ => self.start_listing(dir, How::Wanted)?,
            };
            match lister.wait(self.settings.deadline) {
                Ok(Listed::Done) => return Ok(()),
                Ok(Listed::Outdated) => {}
                // One that was begun for another reason, and has waited long for a connection that was broken.
                Err(Errno::EIO) if attempt == 1 && self.session.reconnects() => {}
                Err(errno) => return Err(errno),
            }
        }
        Ok(())
    }

    fn start_listing(self: &Arc<Self>, dir: Ino, how: How) -> Result<Arc<Lister>> {
        let (sent, path) = (self.stamp(), self.path(dir)?);
        let connection = self.session.connection(0)?;
        if how != How::Ahead {
            connection.wait_for_room().map_err(unbroken)?;
        }
        let lister = Lister::start(self, &connection, dir, &path, sent, how);
        if let Ok(node) = self.table.lock().node(dir) {
            node.lister = Arc::downgrade(&lister);
        }
        Ok(lister)
    }

    /// A directory is read from its beginning: perhaps by somebody who walks, and will read what is below it next.
    fn look_ahead(self: &Arc<Self>, dir: Ino) {
        if !self.settings.list_ahead || self.settings.names_time.is_zero() {
            return;
        }
        let (walks, links) = {
            let mut table = self.table.lock();
            let links = self.links_to_read(&mut table, dir);
            table.set_unread(dir, false);
            let parent = table.parent(dir).ok().filter(|parent| *parent != dir);
            if let Ok(node) = table.node(dir) {
                node.read_at = Some(Instant::now());
            }
            let was_read =
                |ino| table.node(ino).is_ok_and(|node| node.read_at.is_some_and(|at| at.elapsed() < WALK));
            (parent.is_none_or(was_read), links)
        };
        if walks {
            self.list_ahead(dir);
        }
        self.read_links(links);
    }

    /// Lists directories that somebody will come for who walks and is at this one.
    fn list_ahead(self: &Arc<Self>, dir: Ino) {
        let room = LISTED_AHEAD.saturating_sub(self.listings_ahead.load(Ordering::Relaxed));
        let found = self.table.lock().take_ahead(dir, room);
        for next in found {
            self.listings_ahead.fetch_add(1, Ordering::Relaxed);
            if self.start_listing(next, How::Ahead).is_err() {
                self.listings_ahead.fetch_sub(1, Ordering::Relaxed);
            }
        }
    }

    /// A directory was listed ahead: so will be what is below it, for as long as somebody walks.
    pub(crate) fn listed_ahead(self: &Arc<Self>, dir: Ino, done: bool) {
        self.listings_ahead.fetch_sub(1, Ordering::Relaxed);
        if done {
            let links = {
                let mut table = self.table.lock();
                table.set_unread(dir, true);
                self.links_to_read(&mut table, dir)
            };
            self.list_ahead(dir);
            self.read_links(links);
        }
    }

    fn read_links(self: &Arc<Self>, links: Vec<(Ino, Vec<u8>)>) {
        for (ino, path) in links {
            self.read_link_ahead(ino, &path);
        }
    }

    /// The symbolic links of a directory whose targets are not known.
    fn links_to_read(&self, table: &mut Table, dir: Ino) -> Vec<(Ino, Vec<u8>)> {
        if self.settings.links.follow || self.settings.link_time.is_zero() {
            return Vec::new();
        }
        let mut links = Vec::new();
        for ino in table.children(dir, Kind::Symlink).into_iter().take(LINKS_AHEAD) {
            let path = table.path(ino).and_then(|below| self.absolute(&below));
            let Ok(node) = table.node(ino) else { continue };
            if node.target.as_ref().is_none_or(|(_, at)| at.elapsed() >= self.settings.link_time) {
                links.extend(path.map(|path| (ino, path)));
            }
        }
        links
    }

    fn read_link_ahead(self: &Arc<Self>, ino: Ino, path: &[u8]) {
        let Ok(connection) = self.session.connection(0) else { return };
        let (inner, sent) = (self.clone(), self.stamp());
        let done = Waiting::callback(move |reply| {
            if let Ok(target) = reply.and_then(target_of) {
                inner.learn_target(ino, target, sent);
            }
        });
        let _ = connection.send(Packet::new(request::READLINK).string(path), done, 0);
    }

    fn learn_target(&self, ino: Ino, target: OsString, sent: Stamp) {
        let mut table = self.table.lock();
        if table.now() < sent {
            return;
        }
        if let Ok(node) = table.node(ino) {
            node.target = Some((target, Instant::now()));
        }
    }

    /// How long an absent name of a directory of ours is believed to be absent: shorter than anybody could take who was told of the
    /// directory and comes to it by another way.
    fn trust(&self) -> Duration {
        let round_trip = self.session.connection(0).map(|connection| connection.rate.round_trip());
        Duration::from_millis(30) + round_trip.unwrap_or_default().min(Duration::from_secs(1)) * 3
    }

    fn readlink(&self, ino: Ino) -> Result<OsString> {
        let _names = self.names()?;
        let sent = {
            let mut table = self.table.lock();
            let node = table.node(ino)?;
            let known = node.target.as_ref().filter(|(_, at)| at.elapsed() < self.settings.link_time);
            if let Some((target, _)) = known {
                return Ok(target.clone());
            }
            table.now()
        };
        let path = self.path(ino)?;
        let target = self.session.repeat(0, |connection| {
            target_of(connection.call(Packet::new(request::READLINK).string(&path))?)
        })?;
        self.learn_target(ino, target.clone(), sent);
        Ok(target)
    }

    /// A target as the options want it shown.
    fn show_target(&self, ino: Ino, target: OsString) -> Result<OsString> {
        let bytes = target.as_bytes();
        let links = self.settings.links;
        if links.contain
            && (bytes.starts_with(b"/") || bytes.split(|byte| *byte == b'/').any(|part| part == b".."))
        {
            return Err(Errno::EPERM);
        }
        if !links.transform || !bytes.starts_with(b"/") {
            return Ok(target);
        }
        let below = self.table.lock().path(ino)?;
        Ok(relative(&self.base, &below, bytes).map_or(target, OsString::from_vec))
    }
}

/// The target of a symbolic link out of a reply.
fn target_of(reply: Reply) -> Result<OsString> {
    let reply = reply.expect(reply::NAME)?;
    match reply.fields().names()?.as_slice() {
        [(target, _)] => Ok(OsString::from_vec(target.to_vec())),
        _ => Err(Errno::EPROTO),
    }
}

/// An absolute target on the server, as it is from a link at `below`; `None` if it lies outside the mount.
fn relative(base: &[u8], below: &[u8], target: &[u8]) -> Option<Vec<u8>> {
    let inside = target.strip_prefix(base)?;
    let inside = match (base.ends_with(b"/"), inside) {
        (true, inside) => inside,
        (false, []) => inside,
        (false, [b'/', inside @ ..]) => inside,
        (false, _) => return None,
    };
    let mut from: Vec<&[u8]> = below.split(|byte| *byte == b'/').collect();
    from.pop();
    let to: Vec<&[u8]> = inside.split(|byte| *byte == b'/').filter(|part| !part.is_empty()).collect();
    let common = from.iter().zip(&to).take_while(|(a, b)| a == b).count();
    let mut parts: Vec<&[u8]> = vec![b".."; from.len() - common];
    parts.extend_from_slice(&to[common..]);
    Some(if parts.is_empty() { b".".to_vec() } else { parts.join(&b'/') })
}

fn open_bits(flags: OpenFlags) -> u32 {
    let bits = if flags.read { open::READ } else { 0 } | if flags.write { open::WRITE } else { 0 };
    if bits == 0 { open::READ } else { bits }
}

fn entry(ino: Ino, attr: Attr) -> Entry {
    Entry { ino, generation: 0, attr }
}

impl Filesystem for Tree {
    fn facts(&self) -> Facts {
        Facts {
            caching: Caching::Shared(self.0.settings.kernel_time),
            absent_time: Some(self.0.settings.absent_time),
            own_permissions: true,
            time_granularity: 1_000_000_000,
            ..Facts::default()
        }
    }

    fn lookup(&self, parent: Ino, name: &OsStr) -> Result<Entry> {
        let inner = &self.0;
        let _names = inner.names()?;
        let trust = inner.trust();
        let (known, sent) = {
            let mut table = inner.table.lock();
            let known = table.child(parent, name);
            if let Some(ino) = known {
                let node = table.node(ino)?;
                let content = node.content.upgrade();
                if let Some(attr) = node.fresh(inner.settings.attr_time) {
                    table.refer(ino);
                    drop(table);
                    return Ok(entry(ino, inner.with_writes(content, attr)));
                }
            } else {
                let node = table.node(parent)?;
                let is_ours = node.ours.is_some_and(|at| at.elapsed() < trust);
                let is_complete = node.listed.is_some_and(|at| at.elapsed() < inner.settings.names_time);
                if is_ours && is_complete {
                    return Err(Errno::ENOENT);
                }
            }
            (known, table.now())
        };
        let content = known.and_then(|ino| inner.content(ino));
        let end = content.as_ref().map_or(0, |content| content.end_under_way());
        match inner.stat(&inner.path_below(parent, name)?) {
            Ok(mut attr) => {
                attr.size = attr.size.max(end);
                let (ino, attr) = inner.table.lock().enter(parent, name, attr, sent)?;
                Ok(entry(ino, inner.with_writes(content, attr)))
            }
            Err(Errno::ENOENT) => {
                let mut table = inner.table.lock();
                if known.is_some() && table.child(parent, name) == known && table.now() == sent {
                    table.lose(parent, name);
                }
                Err(Errno::ENOENT)
            }
            Err(errno) => Err(errno),
        }
    }

    fn getattr(&self, ino: Ino) -> Result<Attr> {
        let _names = self.0.names()?;
        self.0.getattr(ino)
    }

    fn readdir(&self, dir: Ino, position: u64, sink: &mut DirSink<'_>) -> Result<()> {
        let inner = &self.0;
        let is_known = inner.table.lock().node(dir)?.listed.is_some();
        if position == 0 || !is_known {
            let _names = inner.names()?;
            inner.list(dir)?;
        }
        if position == 0 {
            inner.look_ahead(dir);
        }
        inner.table.lock().list(dir, position, sink)
    }

    fn entry(&self, parent: Ino, listed: &DirEntry<'_>) -> Result<Entry> {
        self.lookup(parent, listed.name)
    }

    fn open(&self, ino: Ino, flags: OpenFlags) -> Result<Arc<dyn File>> {
        let inner = &self.0;
        let _names = inner.names()?;
        let (below, is_known, sent) = {
            let mut table = inner.table.lock();
            let sent = table.now();
            let below = table.path(ino)?;
            (below, table.node(ino)?.fresh(inner.settings.kernel_time).is_some(), sent)
        };
        let path = inner.absolute(&below)?;
        let lane = inner.session.pick_lane();
        let open = || {
            let packet = Packet::new(request::OPEN).string(&path).u32(open_bits(flags));
            packet.attrs(&Attrs::default())
        };
        let end = inner.content(ino).map_or(0, |content| content.end_under_way());
        let place = inner.session.repeat(lane, |connection| {
            let (opened, told) = if is_known {
                (connection.call(open())?, None)
            } else {
                let (opened, told) = connection.ask_both(open(), inner.stat_packet(&path))?;
                (opened.wait()?, Some(told.wait()?))
            };
            let bytes: Arc<[u8]> = opened.expect(reply::HANDLE)?.fields().string()?.into();
            let attr = told.and_then(|told| inner.attr_of(connection, told).ok());
            if let Some(mut attr) = attr.filter(|attr| attr.kind == Kind::File) {
                attr.size = attr.size.max(end);
                inner.table.lock().learn(ino, attr, sent);
            }
            Ok(Place { connection: connection.clone(), bytes })
        })?;
        Ok(inner.opened(ino, lane, flags, place, false))
    }

    fn parent(&self, dir: Ino) -> Result<Ino> {
        self.0.table.lock().parent(dir)
    }

    fn readlink(&self, ino: Ino) -> Result<OsString> {
        let target = self.0.readlink(ino)?;
        self.0.show_target(ino, target)
    }

    fn statfs(&self) -> Result<StatFs> {
        let _names = self.0.names()?;
        self.0.statfs()
    }

    fn forget(&self, ino: Ino, count: u64) {
        self.0.table.lock().forget(ino, count);
    }

    /// Files that are open for writing are on the server's disk then; for those that were closed there is no request.
    fn sync(&self) -> Result<()> {
        let inner = &self.0;
        let contents = inner.table.lock().contents();
        let mut result = Ok(());
        for content in contents {
            let settled = content.settle(inner.settings.deadline, false);
            let synced = settled.map_err(|errno| inner.explain_write(content.ino, errno)).and_then(|()| {
                let handle = content.handle(true).filter(|_| content.was_changed());
                handle.map_or(Ok(()), |handle| inner.sync_handle(&content, &handle))
            });
            result = result.and(synced);
        }
        result
    }

    fn unmount(&self) -> Result<()> {
        let contents = self.0.table.lock().contents();
        let limit = self.0.settings.deadline;
        let result = contents.iter().map(|content| content.settle(limit, false)).find(Result::is_err);
        self.0.session.shut();
        result.unwrap_or(Ok(()))
    }

    fn setattr(&self, ino: Ino, changes: &SetAttr) -> Result<Attr> {
        let _names = self.0.names()?;
        self.0.setattr(ino, changes)
    }

    fn create(
        &self,
        parent: Ino,
        name: &OsStr,
        new: &NewNode,
        flags: OpenFlags,
    ) -> Result<(Entry, Arc<dyn File>)> {
        let _names = self.0.names()?;
        self.0.create(parent, name, new, flags).map(|(entry, file)| (entry, file as Arc<dyn File>))
    }

    fn mknod(&self, parent: Ino, name: &OsStr, new: &NewNode) -> Result<Entry> {
        if new.kind != Kind::File {
            return Err(Errno::EPERM);
        }
        let _names = self.0.names()?;
        let flags = OpenFlags { write: true, ..OpenFlags::default() };
        self.0.create(parent, name, new, flags).map(|(entry, _)| entry)
    }

    fn mkdir(&self, parent: Ino, name: &OsStr, new: &NewNode) -> Result<Entry> {
        let _names = self.0.names()?;
        self.0.mkdir(parent, name, new)
    }

    fn symlink(&self, parent: Ino, name: &OsStr, target: &OsStr, _new: &NewNode) -> Result<Entry> {
        let _names = self.0.names()?;
        self.0.symlink(parent, name, target)
    }

    fn link(&self, ino: Ino, parent: Ino, name: &OsStr) -> Result<Entry> {
        let _names = self.0.names()?;
        self.0.link(ino, parent, name)
    }

    fn unlink(&self, parent: Ino, name: &OsStr) -> Result<()> {
        let _names = self.0.names()?;
        self.0.remove(parent, name, request::REMOVE)
    }

    fn rmdir(&self, parent: Ino, name: &OsStr) -> Result<()> {
        let _names = self.0.names()?;
        self.0.remove(parent, name, request::RMDIR)
    }

    fn rename(
        &self,
        parent: Ino,
        name: &OsStr,
        new_parent: Ino,
        new_name: &OsStr,
        flags: RenameFlags,
    ) -> Result<()> {
        let _names = self.0.names_alone()?;
        self.0.rename((parent, name), (new_parent, new_name), flags)
    }

    fn copy_range(&self, from: Ino, offset: u64, to: Ino, to_offset: u64, len: u64) -> Result<u64> {
        self.0.copy_range((from, offset), (to, to_offset), len)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_absolute_target_is_shown_from_where_the_link_is() {
        let shown = |base: &str, below: &str, target: &str| {
            let found = relative(base.as_bytes(), below.as_bytes(), target.as_bytes())?;
            Some(String::from_utf8(found).unwrap())
        };
        assert_eq!(shown("/foo", "bar/com", "/foo/blub").as_deref(), Some("../blub"));
        assert_eq!(shown("/foo", "link", "/foo").as_deref(), Some("."));
        assert_eq!(shown("/foo", "a/b/c", "/foo/a/d").as_deref(), Some("../d"));
        assert_eq!(shown("/", "a/b", "/usr/bin").as_deref(), Some("../usr/bin"));
        assert_eq!(shown("/foo", "a", "/foobar"), None);
    }
}
