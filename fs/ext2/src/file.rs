//! Content of a node, and open files.

use std::sync::Arc;

use parking_lot::Mutex;
use veduta_api::{Allocate, Errno, File, Ioctl, Seek, Timestamp};

use crate::controls;
use crate::error::{Error, Result};
use crate::held::Held;
use crate::inline;
use crate::inode::{FLAG_INLINE_DATA, Inode};
use crate::map::Map;
use crate::nodes::Node;
use crate::shape::{self, How};
use crate::volume::Volume;

/// Where the bytes are.
#[derive(Debug)]
pub(crate) enum Content {
    /// In the inode; zeros follow.
    Inline(Vec<u8>),
    /// In blocks.
    Blocks(Map),
}

impl Content {
    pub(crate) fn new(volume: &Volume, inode: &Inode) -> Result<Self> {
        Ok(match inode.has(FLAG_INLINE_DATA) {
            true => Content::Inline(inline::content(volume, inode)?),
            false => Content::Blocks(Map::new(inode.clone())),
        })
    }

    /// Fills `buf` from `offset`; the caller has cut it at the end of the content.
    pub(crate) fn read(&self, volume: &Volume, buf: &mut [u8], offset: u64) -> Result<()> {
        match self {
            Content::Inline(bytes) => {
                let start = usize::try_from(offset).unwrap_or(usize::MAX);
                let part = crate::bytes::slice(bytes, start, buf.len());
                let (stored, rest) = buf.split_at_mut(part.len());
                stored.copy_from_slice(part);
                rest.fill(0);
                Ok(())
            }
            Content::Blocks(map) => map.read(volume, buf, offset),
        }
    }
}

/// A file as it is now.
#[derive(Debug)]
struct State {
    version: u64,
    inode: Inode,
    content: Content,
}

/// A regular file that is open. Counted at its node as long as it lives.
#[derive(Debug)]
pub(crate) struct OpenFile {
    volume: Arc<Volume>,
    node: Arc<Node>,
    /// Opened for writing.
    writes: bool,
    /// Held only to take or replace the pointer.
    state: Mutex<Option<Arc<State>>>,
}

impl OpenFile {
    pub(crate) fn new(volume: Arc<Volume>, ino: u32, writes: bool) -> Result<Self> {
        let node = volume.nodes.open(ino);
        let file = Self { volume, node, writes, state: Mutex::new(None) };
        {
            let _content = file.node.lock.read();
            file.state()?;
        }
        Ok(file)
    }

    /// The file as it is now. The node's lock is held.
    fn state(&self) -> Result<Arc<State>> {
        let version = self.node.version();
        let last = self.state.lock().clone().filter(|state| state.version == version);
        if let Some(state) = last {
            return Ok(state);
        }
        let inode = self.volume.any_inode(self.node.ino)?;
        let content = Content::new(&self.volume, &inode)?;
        let state = Arc::new(State { version, inode, content });
        *self.state.lock() = Some(Arc::clone(&state));
        Ok(state)
    }

    fn read(&self, buf: &mut [u8], offset: u64) -> Result<usize> {
        let _content = self.node.lock.read();
        let state = self.state()?;
        let held = self.node.held.lock();
        let size = held.as_ref().map_or(state.inode.size, Held::size);
        let most = buf.len();
        let up_to = |end: u64| usize::try_from(end.saturating_sub(offset)).unwrap_or(usize::MAX).min(most);
        let (len, stored) = (up_to(size), up_to(state.inode.size).min(up_to(size)));
        if let Some(held) = &*held {
            held.read(&mut buf[..len], offset);
        }
        drop(held);
        state.content.read(&self.volume, &mut buf[..stored], offset)?;
        Ok(len)
    }

    /// Changes the content, while nobody else reads or changes it.
    fn change<T>(&self, call: impl FnOnce() -> Result<T>) -> veduta_api::Result<T> {
        let _content = self.node.lock.write();
        let done = self.volume.settle(&self.node, true).and_then(|()| call());
        self.node.changed();
        done.map_err(Error::into_errno)
    }

    fn write(&self, buf: &[u8], offset: u64) -> Result<usize> {
        let _content = self.node.lock.write();
        if self.volume.hold(&self.node, buf, offset)? {
            return Ok(buf.len());
        }
        let waits = self.node.held.lock().is_some();
        if waits {
            self.volume.settle(&self.node, true)?;
            if self.volume.hold(&self.node, buf, offset)? {
                return Ok(buf.len());
            }
        }
        let how = How { time: Some(Timestamp::now()), credit: 0, ahead: true };
        let done = shape::write(&self.volume, self.node.ino, buf, offset, how);
        self.node.changed();
        done
    }

    fn find(&self, what: Seek, offset: u64) -> Result<Option<u64>> {
        if self.volume.holding.find(self.node.ino).is_some() {
            let _content = self.node.lock.write();
            self.volume.settle(&self.node, true)?;
        }
        let _content = self.node.lock.read();
        let state = self.state()?;
        let size = state.inode.size;
        if offset >= size {
            return Ok(None);
        }
        let found = match (&state.content, what) {
            (Content::Inline(_), Seek::Data) => Some(offset),
            (Content::Inline(_), Seek::Hole) => None,
            (Content::Blocks(map), _) => {
                let bits = self.volume.sb.block_bits;
                let end = size.div_ceil(1 << bits);
                let found = map.seek(&self.volume, what == Seek::Hole, offset >> bits, end)?;
                found.map(|block| (block << bits).max(offset))
            }
        };
        let end = if what == Seek::Hole { Some(size) } else { None };
        Ok(found.filter(|place| *place < size).or(end))
    }
}

impl Drop for OpenFile {
    fn drop(&mut self) {
        let ino = self.node.ino;
        let (last, nameless) = self.volume.nodes.last_open(ino);
        // Who only reads may keep the file open: once nobody writes, its attributes do not change by themselves.
        if (last || self.writes) && self.volume.holding.find(ino).is_some() {
            let _content = self.node.lock.write();
            if last && nameless {
                self.volume.discard_held(&self.node);
            } else {
                // Who asks next is told of errors.
                let _ = self.volume.settle(&self.node, false);
            }
        }
        if last {
            if let Some(transactions) = &self.volume.transactions {
                transactions.close_window(ino);
            }
        }
        if self.volume.nodes.close(self.node.ino) {
            if let Err(error) = shape::delete(&self.volume, self.node.ino) {
                let _ = error.in_inode(self.node.ino).into_errno();
            }
        }
    }
}

impl File for OpenFile {
    fn read_at(&self, buf: &mut [u8], offset: u64) -> veduta_api::Result<usize> {
        self.read(buf, offset).map_err(Error::into_errno)
    }

    fn write_at(&self, buf: &[u8], offset: u64) -> veduta_api::Result<usize> {
        self.write(buf, offset).map_err(Error::into_errno)
    }

    fn sync(&self, _data_only: bool) -> veduta_api::Result<()> {
        if self.volume.holding.find(self.node.ino).is_some() {
            let _content = self.node.lock.write();
            // The error is kept.
            let _ = self.volume.settle(&self.node, true);
        }
        let failed = self.node.failed.lock().take();
        let done = self.volume.commit().map_err(Error::into_errno);
        failed.map_or(done, Err)
    }

    fn allocate(&self, how: Allocate, offset: u64, len: u64) -> veduta_api::Result<()> {
        self.change(|| shape::allocate(&self.volume, self.node.ino, how, offset, len))
    }

    fn seek(&self, what: Seek, offset: u64) -> veduta_api::Result<u64> {
        self.find(what, offset).map_err(Error::into_errno)?.ok_or(Errno::ENXIO)
    }

    fn ioctl(&self, ioctl: &mut Ioctl<'_>) -> veduta_api::Result<i32> {
        controls::answer(&self.volume, self.node.ino, ioctl)
    }
}
