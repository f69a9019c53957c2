//! An open file.

use std::sync::Arc;

use veduta_api::{Allocate, Errno, File, Ioctl, Result, Seek};

use crate::controls;
use crate::nodes::Node;
use crate::volume::Volume;

/// See the head of the file. Counted at its node as long as it lives.
pub(crate) struct Open {
    volume: Arc<Volume>,
    node: Arc<Node>,
}

impl Open {
    pub(crate) fn open(volume: &Arc<Volume>, node: Arc<Node>) -> Arc<dyn File> {
        volume.nodes.lock().open(node.ino);
        Arc::new(Self { volume: Arc::clone(volume), node })
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        let last = self.volume.nodes.lock().opens(self.node.ino) == 1;
        if last {
            if let Err(errno) = self.volume.trim(&self.node) {
                tracing::error!("{}: trimming node {}: {errno}", self.volume.disk.name(), self.node.ino);
            }
        }
        let gone = self.volume.nodes.lock().close(self.node.ino);
        gone.iter().for_each(|node| self.volume.settle(node));
    }
}

impl File for Open {
    fn read_at(&self, buf: &mut [u8], offset: u64) -> Result<usize> {
        self.volume.read(&self.node, buf, offset)
    }

    fn write_at(&self, buf: &[u8], offset: u64) -> Result<usize> {
        if buf.is_empty() { Ok(0) } else { self.volume.write(&self.node, buf, offset) }
    }

    fn flush(&self) -> Result<()> {
        self.volume.meta.lock().failure().map_or(Ok(()), Err)
    }

    fn sync(&self, _data_only: bool) -> Result<()> {
        self.volume.meta.lock().commit()
    }

    /// Space behind the end is given back when the last open file is closed: the formats cannot say that a
    /// file has more than it is long.
    fn allocate(&self, how: Allocate, offset: u64, len: u64) -> Result<()> {
        let end = offset.checked_add(len).ok_or(Errno::EFBIG)?;
        if end > self.volume.layout.size_max() {
            return Err(Errno::EFBIG);
        }
        match how {
            Allocate::Extend => {
                let size = self.node.inner.read().record.size;
                if end > size { self.volume.truncate(&self.node, end) } else { Ok(()) }
            }
            Allocate::KeepSize => self.volume.reserve_for(&self.node, end),
            _ => Err(Errno::EOPNOTSUPP),
        }
    }

    fn seek(&self, what: Seek, offset: u64) -> Result<u64> {
        let inner = self.node.inner.read();
        let (size, valid) = (inner.record.size, inner.record.valid);
        match what {
            _ if offset >= size => Err(Errno::ENXIO),
            Seek::Data if offset < valid => Ok(offset),
            Seek::Data => Err(Errno::ENXIO),
            // What was never written, of exFAT, is a hole up to the end.
            Seek::Hole => Ok(offset.max(valid)),
        }
    }

    fn ioctl(&self, ioctl: &mut Ioctl<'_>) -> Result<i32> {
        controls::ioctl(&self.volume, &self.node, ioctl)
    }
}
