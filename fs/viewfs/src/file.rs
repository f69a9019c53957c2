//! An open file of a merged tree.

use std::cell::RefCell;
use std::os::fd::BorrowedFd;
use std::sync::{Arc, OnceLock};

use veduta_api::{Allocate, Errno, File, Filesystem, Ioctl, OpenFlags, Result, Seek};

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
    /// It lies in a layer that is only read.
    is_foreign: bool,
}

impl MergedFile {
    pub(crate) fn new(
        tree: Arc<Tree>,
        node: Arc<Node>,
        first: Arc<dyn File>,
        flags: OpenFlags,
        is_final: bool,
    ) -> Self {
        Self { tree, node, first, copy: OnceLock::new(), flags, is_final, is_foreign: false }
    }

    /// Says whether it lies in a layer that is only read.
    pub(crate) fn of_foreign(mut self, is_foreign: bool) -> Self {
        self.is_foreign = is_foreign;
        self
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
        if !self.is_foreign || only_looks(ioctl.command) {
            return self.now().ioctl(ioctl);
        }
        // What else a layer knows might be done to the file below.
        if !changes_flags(ioctl.command) {
            return Err(Errno::ENOTTY);
        }
        let ioctl = RefCell::new(ioctl);
        let set = |fs: &dyn Filesystem, ino| fs.open(ino, OpenFlags::READ)?.ioctl(&mut ioctl.borrow_mut());
        self.tree.change(&self.node, set)
    }
    /// In a view `fstat(2)` on the descriptor itself would tell the real owner and mode.
    fn backing(&self) -> Option<BorrowedFd<'_>> {
        let rules = &self.tree.rules;
        if (rules.vstat || rules.disguised) && rules.real_numbers { None } else { self.now().backing() }
    }
    fn backing_may_change(&self) -> bool {
        !self.is_final
    }
    fn backing_is_foreign(&self) -> bool {
        (self.is_foreign && self.copy.get().is_none()) || self.now().backing_is_foreign()
    }
}

/// Requests that change nothing: `FS_IOC_GETFLAGS`, `FS_IOC_FSGETXATTR`, `FS_IOC_GETVERSION`, their forms of 32 bits, `FS_IOC_FIEMAP`.
fn only_looks(command: u32) -> bool {
    matches!(command, 0x8008_6601 | 0x8004_6601 | 0x801c_581f | 0x8008_7601 | 0x8004_7601 | 0xc020_660b)
}

/// `FS_IOC_SETFLAGS` and `FS_IOC_FSSETXATTR`.
fn changes_flags(command: u32) -> bool {
    matches!(command, 0x4008_6602 | 0x4004_6602 | 0x401c_5820)
}
