//! A tree as it is, but not to be changed: `EROFS`.

use std::ffi::{OsStr, OsString};
use std::sync::Arc;

use veduta_api::{
    Attr, DirEntry, DirSink, Directory, Entry, Errno, Facts, File, Filesystem, Ino, OpenFlags, Result, StatFs,
};

/// See the head of this file. What the trait answers by itself to changes is right.
pub(crate) struct ReadOnly(pub(crate) Arc<dyn Filesystem>);

impl Filesystem for ReadOnly {
    fn facts(&self) -> Facts {
        self.0.facts()
    }
    fn lookup(&self, parent: Ino, name: &OsStr) -> Result<Entry> {
        self.0.lookup(parent, name)
    }
    fn getattr(&self, ino: Ino) -> Result<Attr> {
        self.0.getattr(ino)
    }
    fn readdir(&self, dir: Ino, position: u64, sink: &mut DirSink<'_>) -> Result<()> {
        self.0.readdir(dir, position, sink)
    }
    fn open(&self, ino: Ino, flags: OpenFlags) -> Result<Arc<dyn File>> {
        if flags.write { Err(Errno::EROFS) } else { self.0.open(ino, flags) }
    }
    fn entry(&self, parent: Ino, listed: &DirEntry<'_>) -> Result<Entry> {
        self.0.entry(parent, listed)
    }
    fn opendir(&self, dir: Ino) -> Result<Option<Arc<dyn Directory>>> {
        self.0.opendir(dir)
    }
    fn parent(&self, dir: Ino) -> Result<Ino> {
        self.0.parent(dir)
    }
    fn readlink(&self, ino: Ino) -> Result<OsString> {
        self.0.readlink(ino)
    }
    fn statfs(&self) -> Result<StatFs> {
        self.0.statfs()
    }
    fn forget(&self, ino: Ino, count: u64) {
        self.0.forget(ino, count);
    }
    fn unmount(&self) -> Result<()> {
        self.0.unmount()
    }
    fn getxattr(&self, ino: Ino, name: &OsStr) -> Result<Vec<u8>> {
        self.0.getxattr(ino, name)
    }
    fn listxattr(&self, ino: Ino) -> Result<Vec<OsString>> {
        self.0.listxattr(ino)
    }
    fn setxattr(&self, _ino: Ino, _name: &OsStr, _value: &[u8], _mode: veduta_api::XattrMode) -> Result<()> {
        Err(Errno::EROFS)
    }
    fn removexattr(&self, _ino: Ino, _name: &OsStr) -> Result<()> {
        Err(Errno::EROFS)
    }
}
