//! An open file of a merged tree.

use std::os::fd::BorrowedFd;
use std::sync::{Arc, OnceLock};

use veduta_api::{Allocate, Errno, File, Ioctl, OpenFlags, Result, Seek};

use crate::setup::Durability;
use crate::table::Node;
use crate::tree::Tree;

/// A file that was opened in one layer. If that was to read, and the file is copied up afterwards, it goes on in the copy, so that
/// what others write is seen.
pub(crate) struct MergedFile {
    tree: Arc<Tree>,
    node: Arc<Node>,
    first: Arc<dyn File>,
    copy: OnceLock<Arc<dyn File>>,
    flags: OpenFlags,
    /// It lies where changes are made: it will not be copied.
    is_final: bool,
}

impl MergedFile {
    pub(crate) fn new(
        tree: Arc<Tree>,
        node: Arc<Node>,
        first: Arc<dyn File>,
        flags: OpenFlags,
        is_final: bool,
    ) -> Self {
        Self { tree, node, first, copy: OnceLock::new(), flags, is_final }
    }

    fn now(&self) -> &dyn File {
        if self.is_final {
            return &*self.first;
        }
        if let Some(copy) = self.copy.get() {
            return &**copy;
        }
        let parts = self.node.parts();
        let part = parts.content();
        if self.node.write_to != Some(part.layer) {
            return &*self.first;
        }
        match self.tree.fs(part.layer).open(part.ino, self.flags) {
            Ok(copy) => &**self.copy.get_or_init(|| copy),
            Err(error) => {
                tracing::warn!("the copy of an open file cannot be opened: {}", error.desc());
                &*self.first
            }
        }
    }
}

impl File for MergedFile {
    fn read_at(&self, buf: &mut [u8], offset: u64) -> Result<usize> {
        self.now().read_at(buf, offset)
    }
    fn write_at(&self, buf: &[u8], offset: u64) -> Result<usize> {
        if !self.flags.write {
            return Err(Errno::EBADF);
        }
        self.now().write_at(buf, offset)
    }
    fn flush(&self) -> Result<()> {
        self.now().flush()
    }
    fn sync(&self, data_only: bool) -> Result<()> {
        match self.tree.rules.durability {
            Durability::Volatile => Ok(()),
            Durability::Ordered | Durability::Strict => self.now().sync(data_only),
        }
    }
    fn allocate(&self, how: Allocate, offset: u64, len: u64) -> Result<()> {
        self.now().allocate(how, offset, len)
    }
    fn seek(&self, what: Seek, offset: u64) -> Result<u64> {
        self.now().seek(what, offset)
    }
    fn ioctl(&self, ioctl: &mut Ioctl<'_>) -> Result<i32> {
        self.now().ioctl(ioctl)
    }
    /// In a view `fstat(2)` on the descriptor itself would tell the real owner and mode.
    fn backing(&self) -> Option<BorrowedFd<'_>> {
        let rules = &self.tree.rules;
        if (rules.vstat || rules.disguised) && rules.real_numbers { None } else { self.now().backing() }
    }
    fn backing_may_change(&self) -> bool {
        !self.is_final
    }
}
