//! A node of a tree in memory, and a file open on one.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use parking_lot::RwLock;
use veduta_api::{Allocate, Attr, Errno, File, Kind, Result, Seek, SetAttr, SetTime, Timestamp};

use super::content::Content;
use crate::set_id::without_set_id;

pub(super) struct Node {
    pub(super) ino: u64,
    pub(super) st_ino: u64,
    pub(super) kind: Kind,
    /// References that hosts hold. Grows only under the lock of the names.
    pub(super) references: AtomicU64,
    pub(super) inner: RwLock<Inner>,
}

pub(super) struct Inner {
    /// Size and blocks of a file are its content's.
    pub(super) attr: Attr,
    pub(super) xattrs: BTreeMap<OsString, Vec<u8>>,
    pub(super) body: Body,
}

pub(super) enum Body {
    File(Content),
    Symlink(OsString),
    Other,
}

impl Node {
    /// `attr.st_ino` of 0 stands for the node's own number.
    pub(super) fn new(ino: u64, attr: &Attr, body: Body) -> Self {
        let st_ino = if attr.st_ino == 0 { ino } else { attr.st_ino };
        let mut attr = Attr { st_ino, ..*attr };
        if let Body::Symlink(target) = &body {
            attr.size = target.len() as u64;
        }
        let inner = RwLock::new(Inner { attr, xattrs: BTreeMap::new(), body });
        Self { ino, st_ino, kind: attr.kind, references: AtomicU64::new(0), inner }
    }

    pub(super) fn attr(&self) -> Attr {
        self.inner.read().attr()
    }

    /// Called with the lock of the names held.
    pub(super) fn add_reference(&self) {
        self.references.fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn is_unused(&self) -> bool {
        self.references.load(Ordering::Relaxed) == 0 && self.inner.read().attr.nlink == 0
    }

    /// A change of content (an entry of a directory counts as that): mtime and ctime.
    pub(super) fn content_changed(&self) {
        let now = Timestamp::now();
        let mut inner = self.inner.write();
        (inner.attr.mtime, inner.attr.ctime) = (now, now);
    }

    /// Changes the count of names; what else that means is up to the caller.
    pub(super) fn change_links(&self, change: impl FnOnce(u32) -> u32) {
        let mut inner = self.inner.write();
        inner.attr.nlink = change(inner.attr.nlink);
        inner.attr.ctime = Timestamp::now();
    }

    pub(super) fn set_attr(&self, changes: &SetAttr) -> Result<Attr> {
        let mut inner = self.inner.write();
        let now = Timestamp::now();
        if let Some(size) = changes.size {
            let Body::File(content) = &mut inner.body else { return Err(Errno::EINVAL) };
            content.set_size(size);
            inner.attr.mtime = now;
        }
        let attr = &mut inner.attr;
        let time = |wanted: SetTime| match wanted {
            SetTime::To(time) => time,
            SetTime::Now => now,
        };
        attr.perm = changes.perm.unwrap_or(attr.perm);
        attr.uid = changes.uid.unwrap_or(attr.uid);
        attr.gid = changes.gid.unwrap_or(attr.gid);
        attr.atime = changes.atime.map_or(attr.atime, time);
        attr.mtime = changes.mtime.map_or(attr.mtime, time);
        attr.flags = changes.flags.unwrap_or(attr.flags);
        if changes.drop_set_id {
            attr.perm = without_set_id(attr.perm);
        }
        attr.ctime = changes.ctime.unwrap_or(now);
        Ok(inner.attr())
    }
}

impl Inner {
    fn attr(&self) -> Attr {
        match &self.body {
            Body::File(content) => Attr { size: content.size(), blocks: content.blocks(), ..self.attr },
            _ => self.attr,
        }
    }
}

/// An open file. It keeps its node alive, whether that still has a name or not.
pub(super) struct OpenFile {
    pub(super) node: Arc<Node>,
    /// Whether changes are refused, and reads leave no time behind.
    pub(super) is_immutable: bool,
    /// Whether there is a limit that a promise of space can be held against.
    pub(super) is_limited: bool,
}

impl OpenFile {
    fn check_writable(&self) -> Result<()> {
        if self.is_immutable { Err(Errno::EROFS) } else { Ok(()) }
    }

    /// As a mount with `relatime` does: when it is older than the content, or than a day.
    fn touch_atime(&self) {
        const DAY: i64 = 86_400;
        let now = Timestamp::now();
        let is_old = |attr: &Attr| {
            attr.atime <= attr.mtime || attr.atime <= attr.ctime || now.seconds - attr.atime.seconds > DAY
        };
        if is_old(&self.node.inner.read().attr) {
            self.node.inner.write().attr.atime = now;
        }
    }
}

impl File for OpenFile {
    fn read_at(&self, buf: &mut [u8], offset: u64) -> Result<usize> {
        let done = match &self.node.inner.read().body {
            Body::File(content) => content.read(buf, offset)?,
            _ => return Err(Errno::EINVAL),
        };
        if !self.is_immutable && !buf.is_empty() {
            self.touch_atime();
        }
        Ok(done)
    }

    fn write_at(&self, buf: &[u8], offset: u64) -> Result<usize> {
        self.check_writable()?;
        let mut inner = self.node.inner.write();
        let Body::File(content) = &mut inner.body else { return Err(Errno::EINVAL) };
        let done = content.write(buf, offset)?;
        let now = Timestamp::now();
        (inner.attr.mtime, inner.attr.ctime) = (now, now);
        Ok(done)
    }

    /// Memory is as stable as it gets.
    fn sync(&self, _data_only: bool) -> Result<()> {
        Ok(())
    }

    fn allocate(&self, how: Allocate, offset: u64, len: u64) -> Result<()> {
        self.check_writable()?;
        let end = offset.checked_add(len).ok_or(Errno::EFBIG)?;
        let mut inner = self.node.inner.write();
        let Body::File(content) = &mut inner.body else { return Err(Errno::ENODEV) };
        match how {
            Allocate::Extend | Allocate::KeepSize if !self.is_limited => return Err(Errno::EOPNOTSUPP),
            Allocate::Extend | Allocate::KeepSize => content.reserve(offset, len)?,
            Allocate::PunchHole | Allocate::ZeroRange { .. } => content.punch(offset, len)?,
            Allocate::Collapse | Allocate::Insert => return Err(Errno::EOPNOTSUPP),
        }
        if matches!(how, Allocate::Extend | Allocate::ZeroRange { keep_size: false }) && end > content.size()
        {
            content.set_size(end);
        }
        let now = Timestamp::now();
        (inner.attr.mtime, inner.attr.ctime) = (now, now);
        Ok(())
    }

    fn seek(&self, what: Seek, offset: u64) -> Result<u64> {
        match &self.node.inner.read().body {
            Body::File(content) if offset >= content.size() => Err(Errno::ENXIO),
            Body::File(content) => match what {
                Seek::Data => content.next_data(offset).ok_or(Errno::ENXIO),
                Seek::Hole => Ok(content.next_hole(offset)),
            },
            _ => Err(Errno::EINVAL),
        }
    }
}
