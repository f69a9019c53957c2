//! Content that is held back: what was appended to a file, and has no blocks yet.
//!
//! Who writes in small steps would get blocks in small steps. So what is added at the end of a file waits in memory, and gets its
//! blocks all at once: when the file is brought to the disk or somebody who may write closes it, before each commit by the clock, when it has become long, or when
//! anything but reading and adding is done with the file. Large writes do not wait: whoever sends them has gathered already.
//!
//! Room is promised when content is accepted, for the most blocks that it can need with all that leads to them, and nobody else gets what is
//! promised: a full disk is known at the write and never later.
//!
//! While a file has something here, the record of its inode says nothing of that: size and times are put over it by
//! [`Volume::look`], the bytes by whoever reads.
//!
//! # Locks
//!
//! All but looking is done with the node's lock held for writing. [`Holding`] and [`Node::held`] are held for moments, with no lock inside
//! but the second in the first.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use parking_lot::Mutex;
use veduta_api::{Attr, Errno, Kind, Timestamp};

use crate::error::{Error, Result};
use crate::features::RO_COMPAT_LARGE_FILE;
use crate::inode::{FLAG_INLINE_DATA, Inode};
use crate::nodes::Node;
use crate::shape::{self, How};
use crate::volume::Volume;

/// Bytes; a write that is longer does not wait.
const LARGE: usize = 128 << 10;
/// Bytes of a file that wait.
const FILE_MAX: usize = 1 << 20;
/// Bytes of all files that wait.
const TOTAL_MAX: usize = 32 << 20;
/// Blocks that a write may need beside its content and full nodes: one more node on each level, and the root's move.
const PATH: u64 = 7;

/// What waits of one file.
#[derive(Debug)]
pub(crate) struct Held {
    /// Where it begins: the size that the inode's record says.
    start: u64,
    /// Bytes. More than are in `bytes` while they are being written.
    len: usize,
    bytes: Vec<u8>,
    /// Clusters that it may need.
    promised: u64,
    /// When content was last added, unless times were set since.
    touched: Option<Timestamp>,
}

impl Held {
    fn end(&self) -> u64 {
        self.start + self.len as u64
    }

    /// Copies to `buf` what there is of the file from `offset` on.
    pub(crate) fn read(&self, buf: &mut [u8], offset: u64) {
        let (from, to) = (self.start.max(offset), self.end().min(offset + buf.len() as u64));
        if from < to {
            let part = crate::bytes::slice(&self.bytes, (from - self.start) as usize, (to - from) as usize);
            buf[(from - offset) as usize..][..part.len()].copy_from_slice(part);
        }
    }

    /// Where it begins.
    pub(crate) fn start(&self) -> u64 {
        self.start
    }

    /// The size of the file.
    pub(crate) fn size(&self) -> u64 {
        self.end()
    }
}

/// The nodes of which something waits.
#[derive(Debug, Default)]
pub(crate) struct Holding {
    nodes: Mutex<HashMap<u32, Arc<Node>>>,
    count: AtomicUsize,
    bytes: AtomicUsize,
    /// Content that was accepted could not be written, and nobody was told.
    failed: Mutex<Option<Errno>>,
}

impl Holding {
    /// The node of an inode, if something of it waits.
    pub(crate) fn find(&self, ino: u32) -> Option<Arc<Node>> {
        if self.is_empty() {
            return None;
        }
        self.nodes.lock().get(&ino).cloned()
    }

    /// Whether nothing waits.
    pub(crate) fn is_empty(&self) -> bool {
        self.count.load(Ordering::Acquire) == 0
    }

    fn all(&self) -> Vec<Arc<Node>> {
        if self.is_empty() {
            return Vec::new();
        }
        self.nodes.lock().values().cloned().collect()
    }

    fn enter(&self, node: &Arc<Node>) {
        if self.nodes.lock().insert(node.ino, Arc::clone(node)).is_none() {
            self.count.fetch_add(1, Ordering::AcqRel);
        }
    }

    fn leave(&self, ino: u32) {
        if self.nodes.lock().remove(&ino).is_some() {
            self.count.fetch_sub(1, Ordering::AcqRel);
        }
    }
}

impl Volume {
    /// An inode as its record has it, and what the tree shows of it.
    pub(crate) fn look(&self, ino: u32) -> Result<(Inode, Attr)> {
        // What waits is looked at first: it is taken away only when the record has it.
        let node = self.holding.find(ino);
        let held = node
            .as_ref()
            .and_then(|node| node.held.lock().as_ref().map(|held| (held.start, held.end(), held.touched)));
        let inode = self.inode(ino)?;
        let mut attr = self.attr(&inode);
        if let Some((start, end, touched)) = held {
            if end > attr.size {
                let bits = self.sb.cluster_bits + self.sb.block_bits;
                attr.blocks += (end.div_ceil(1 << bits) - start.div_ceil(1 << bits)) << (bits - 9);
                attr.size = end;
            }
            if let Some(time) = touched {
                (attr.mtime, attr.ctime) = (time, attr.ctime.max(time));
            }
        }
        Ok((inode, attr))
    }

    /// Accepts content to be written later: whether it did. The node's lock is held for writing.
    pub(crate) fn hold(&self, node: &Arc<Node>, buf: &[u8], offset: u64) -> Result<bool> {
        let Some(transactions) = self.transactions.as_ref().filter(|all| !all.is_closed()) else {
            return Ok(false);
        };
        let total = self.holding.bytes.load(Ordering::Relaxed) + buf.len();
        if buf.is_empty() || buf.len() >= LARGE || total > TOTAL_MAX {
            return Ok(false);
        }
        let Some(end) = offset.checked_add(buf.len() as u64) else { return Ok(false) };
        let there = node.held.lock().as_ref().map(|held| (held.start, held.end(), held.promised));
        let (start, size, promised) = match there {
            Some(there) => there,
            None => {
                let inode = self.any_inode(node.ino)?;
                if inode.kind != Kind::File || inode.has(FLAG_INLINE_DATA) {
                    return Ok(false);
                }
                let short = end <= i32::MAX as u64 || self.sb.features.has_ro_compat(RO_COMPAT_LARGE_FILE);
                if !short || end > shape::longest(self, &inode) {
                    return Ok(false);
                }
                transactions.activate(self)?;
                (inode.size, inode.size, 0)
            }
        };
        let fits = there.is_some() || offset == size;
        if !fits || offset < start || offset > size || end - start > FILE_MAX as u64 {
            return Ok(false);
        }
        let needed = self.most_clusters(start, size.max(end));
        if !transactions.promise(needed.saturating_sub(promised)) {
            return Ok(false);
        }
        let mut held = node.held.lock();
        let held =
            held.get_or_insert_with(|| Held { start, len: 0, bytes: Vec::new(), promised: 0, touched: None });
        held.promised = held.promised.max(needed);
        held.touched = Some(Timestamp::now());
        let at = (offset - start) as usize;
        let before = held.bytes.len();
        held.bytes.resize(before.max(at + buf.len()), 0);
        held.bytes[at..at + buf.len()].copy_from_slice(buf);
        held.len = held.bytes.len();
        self.holding.bytes.fetch_add(held.len - before, Ordering::Relaxed);
        self.holding.enter(node);
        Ok(true)
    }

    /// Clusters that bytes of a file can need at most, however the free ones lie.
    fn most_clusters(&self, start: u64, end: u64) -> u64 {
        let bits = self.sb.block_bits + self.sb.cluster_bits;
        let blocks = end.div_ceil(1 << self.sb.block_bits) - (start >> self.sb.block_bits);
        let per_node = (self.block_size() / crate::extents::ENTRY - 1) as u64;
        (end.div_ceil(1 << bits) - (start >> bits)) + blocks.div_ceil(per_node) + PATH
    }

    /// Writes what waits of a file. `ahead`: more is to come. The node's lock is held for writing.
    pub(crate) fn settle(&self, node: &Node, ahead: bool) -> Result<()> {
        let taken = node
            .held
            .lock()
            .as_mut()
            .map(|held| (std::mem::take(&mut held.bytes), held.start, held.promised, held.touched));
        let Some((bytes, start, promised, touched)) = taken else { return Ok(()) };
        let how = How { time: touched, credit: promised, ahead };
        let written = match shape::write(self, node.ino, &bytes, start, how) {
            Ok(len) if len < bytes.len() => Err(Errno::ENOSPC.into()),
            Ok(_) => Ok(()),
            Err(error) => Err(error),
        };
        node.changed();
        self.drop_held(node, bytes.len());
        if let Err(error) = &written {
            tracing::error!(
                "ext2: {}: {} bytes of inode {} could not be written and are lost: {error}",
                self.name(),
                bytes.len(),
                node.ino
            );
            let errno = error.as_errno();
            *node.failed.lock() = Some(errno);
            *self.holding.failed.lock() = Some(errno);
        }
        written
    }

    /// Nobody needs what waits of a file.
    pub(crate) fn discard_held(&self, node: &Node) {
        let len = node.held.lock().as_ref().map(|held| held.bytes.len());
        if let Some(len) = len {
            self.drop_held(node, len);
        }
    }

    fn drop_held(&self, node: &Node, len: usize) {
        let Some(held) = node.held.lock().take() else { return };
        self.holding.leave(node.ino);
        self.holding.bytes.fetch_sub(len, Ordering::Relaxed);
        if let Some(transactions) = &self.transactions {
            transactions.fulfil(held.promised);
        }
    }

    /// Times are set by somebody: those of the content that waits, which come before that. The caller stores them.
    pub(crate) fn take_touched(&self, ino: u32) -> Option<Timestamp> {
        let node = self.holding.find(ino)?;
        let mut held = node.held.lock();
        held.as_mut()?.touched.take()
    }

    /// Writes what waits of all files. Errors are kept for who asks next.
    pub(crate) fn settle_all(&self) {
        for node in self.holding.all() {
            let _content = node.lock.write();
            // The error is kept.
            let _ = self.settle(&node, true);
        }
    }

    /// The same for files that nobody is at just now: whether there were any.
    pub(crate) fn settle_idle(&self) -> bool {
        let mut any = false;
        for node in self.holding.all() {
            if let Some(_content) = node.lock.try_write() {
                let _ = self.settle(&node, false);
                any = true;
            }
        }
        any
    }

    /// Content of some file could not be written since this was last asked.
    pub(crate) fn take_failure(&self) -> Result<()> {
        match self.holding.failed.lock().take() {
            Some(errno) => Err(Error::Errno(errno)),
            None => Ok(()),
        }
    }
}
