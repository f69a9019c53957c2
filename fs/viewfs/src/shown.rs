//! A tree as other users see it: owners mapped, or all the same; and without what some filesystems are slow to tell. The words, and what
//! they mean, are those of fuse-overlayfs(1).

use std::ffi::{OsStr, OsString};
use std::os::fd::BorrowedFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use veduta_api::{
    Attr, Device, DirEntry, DirSink, Directory, Entry, Errno, Facts, File, Filesystem, Ino, Ioctl, Kind,
    NewNode, OpenFlags, RenameFlags, Result, SetAttr, StatFs, XattrMode,
};

/// Who has what cannot be told.
const NOBODY: u32 = 65534;

/// How users or groups are shown.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) enum Ids {
    /// As they are.
    #[default]
    Plain,
    /// All as this one.
    All(u32),
    /// By ranges: the first number below, the first as it is shown, how many. Others are nobody's.
    Mapped(Vec<(u32, u32, u32)>),
}

impl Ids {
    /// Reads `BELOW:SHOWN:COUNT`, any number of times. `None` if it is something else, or ends before it begins.
    pub(crate) fn parse(text: &str) -> Option<Self> {
        let numbers = text.split(':').map(|word| word.parse().ok()).collect::<Option<Vec<u32>>>()?;
        let ranges = numbers.chunks(3).map(|chunk| match chunk {
            [below, shown, count] if *count > 0 => {
                below.checked_add(*count - 1)?;
                shown.checked_add(*count - 1)?;
                Some((*below, *shown, *count))
            }
            _ => None,
        });
        ranges.collect::<Option<Vec<_>>>().map(Ids::Mapped)
    }

    fn shown(&self, id: u32) -> u32 {
        match self {
            Ids::Plain => id,
            Ids::All(shown) => *shown,
            Ids::Mapped(ranges) => {
                let found =
                    ranges.iter().find(|(below, _, count)| (*below..=below + (count - 1)).contains(&id));
                found.map_or(NOBODY, |(below, shown, _)| shown + (id - below))
            }
        }
    }

    /// What an id that is shown is below. `None`: it cannot be told.
    fn below(&self, id: u32) -> Option<u32> {
        match self {
            Ids::Plain => Some(id),
            Ids::All(_) => None,
            Ids::Mapped(ranges) => {
                let found =
                    ranges.iter().find(|(_, shown, count)| (*shown..=shown + (count - 1)).contains(&id));
                found.map(|(below, shown, _)| below + (id - shown))
            }
        }
    }

    /// The owner of what is new: whose the program is, where all are shown as one.
    fn of_new(&self, id: u32, own: u32) -> Result<u32> {
        match self {
            Ids::All(_) => Ok(own),
            // As the kernel has it for a user whom a mapped mount does not know.
            _ => self.below(id).ok_or(Errno::EOVERFLOW),
        }
    }

    /// The owner that is wanted, below; `None` if it is to stay.
    fn of_change(&self, id: Option<u32>) -> Result<Option<u32>> {
        match (self, id) {
            (_, None) => Ok(None),
            (Ids::All(shown), Some(id)) if *shown == id => Ok(None),
            (Ids::All(_), Some(_)) => Err(Errno::EPERM),
            (_, Some(id)) => self.below(id).map(Some).ok_or(Errno::EINVAL),
        }
    }
}

/// What is shown otherwise than it is.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Disguise {
    pub(crate) users: Ids,
    pub(crate) groups: Ids,
    /// Directories have one link.
    pub(crate) static_nlink: bool,
    /// There are no ACLs.
    pub(crate) no_acl: bool,
}

/// See the head of this file.
pub(crate) struct Shown {
    pub(crate) tree: Arc<dyn Filesystem>,
    pub(crate) disguise: Disguise,
}

impl Shown {
    fn attr(&self, mut attr: Attr) -> Attr {
        attr.uid = self.disguise.users.shown(attr.uid);
        attr.gid = self.disguise.groups.shown(attr.gid);
        if self.disguise.static_nlink && attr.kind == Kind::Directory {
            attr.nlink = 1;
        }
        attr
    }

    fn entry(&self, entry: Entry) -> Entry {
        Entry { attr: self.attr(entry.attr), ..entry }
    }

    fn new_node(&self, new: &NewNode) -> Result<NewNode> {
        let (uid, gid) = (rustix::process::geteuid().as_raw(), rustix::process::getegid().as_raw());
        let uid = self.disguise.users.of_new(new.uid, uid)?;
        let gid = self.disguise.groups.of_new(new.gid, gid)?;
        Ok(NewNode { uid, gid, ..*new })
    }

    /// What was just made, without what it inherited from its directory if there are no ACLs. It is `remove`d again if that cannot be had.
    fn made(&self, made: Entry, new: &NewNode, remove: impl FnOnce() -> Result<()>) -> Result<Entry> {
        if !self.disguise.no_acl {
            return Ok(self.entry(made));
        }
        let made = self.without_acl(made, new).inspect_err(|_| {
            // The error that counts is the first one.
            let _ = remove();
            self.tree.forget(made.ino, 1);
        })?;
        Ok(self.entry(made))
    }

    fn without_acl(&self, made: Entry, new: &NewNode) -> Result<Entry> {
        let mut had = false;
        for name in ACLS {
            match self.tree.removexattr(made.ino, OsStr::new(name)) {
                Ok(()) => had = true,
                Err(Errno::ENODATA | Errno::EOPNOTSUPP) => {}
                Err(error) => return Err(error),
            }
        }
        if !had {
            return Ok(made);
        }
        // The default ACL took the place of the umask.
        let mode = SetAttr { perm: Some(new.masked()), ..SetAttr::default() };
        Ok(Entry { attr: self.tree.setattr(made.ino, &mode)?, ..made })
    }

    fn check_xattr(&self, name: &OsStr) -> Result<()> {
        if self.disguise.no_acl && is_acl(name) { Err(Errno::EOPNOTSUPP) } else { Ok(()) }
    }
}

const ACLS: [&str; 2] = ["system.posix_acl_access", "system.posix_acl_default"];

fn is_acl(name: &OsStr) -> bool {
    ACLS.iter().any(|acl| name == *acl)
}

impl Filesystem for Shown {
    fn facts(&self) -> Facts {
        let facts = self.tree.facts();
        Facts { acl: facts.acl && !self.disguise.no_acl, ..facts }
    }
    fn lookup(&self, parent: Ino, name: &OsStr) -> Result<Entry> {
        self.tree.lookup(parent, name).map(|entry| self.entry(entry))
    }
    fn getattr(&self, ino: Ino) -> Result<Attr> {
        self.tree.getattr(ino).map(|attr| self.attr(attr))
    }
    fn is_made_of(&self, ino: Ino, device: Device, st_ino: u64) -> bool {
        self.tree.is_made_of(ino, device, st_ino)
    }
    fn readdir(&self, dir: Ino, position: u64, sink: &mut DirSink<'_>) -> Result<()> {
        self.tree.readdir(dir, position, sink)
    }
    fn open(&self, ino: Ino, flags: OpenFlags) -> Result<Arc<dyn File>> {
        self.tree.open(ino, flags)
    }
    fn entry(&self, parent: Ino, listed: &DirEntry<'_>) -> Result<Entry> {
        self.tree.entry(parent, listed).map(|entry| self.entry(entry))
    }
    fn opendir(&self, dir: Ino) -> Result<Option<Arc<dyn Directory>>> {
        self.tree.opendir(dir)
    }
    fn parent(&self, dir: Ino) -> Result<Ino> {
        self.tree.parent(dir)
    }
    fn readlink(&self, ino: Ino) -> Result<OsString> {
        self.tree.readlink(ino)
    }
    fn statfs(&self) -> Result<StatFs> {
        self.tree.statfs()
    }
    fn forget(&self, ino: Ino, count: u64) {
        self.tree.forget(ino, count);
    }
    fn sync(&self) -> Result<()> {
        self.tree.sync()
    }
    fn unmount(&self) -> Result<()> {
        self.tree.unmount()
    }
    fn setattr(&self, ino: Ino, changes: &SetAttr) -> Result<Attr> {
        let uid = self.disguise.users.of_change(changes.uid)?;
        let gid = self.disguise.groups.of_change(changes.gid)?;
        self.tree.setattr(ino, &SetAttr { uid, gid, ..*changes }).map(|attr| self.attr(attr))
    }
    fn create(
        &self,
        parent: Ino,
        name: &OsStr,
        new: &NewNode,
        flags: OpenFlags,
    ) -> Result<(Entry, Arc<dyn File>)> {
        let (entry, file) = self.tree.create(parent, name, &self.new_node(new)?, flags)?;
        let made = self.made(entry, new, || self.tree.unlink(parent, name))?;
        Ok((made, file))
    }
    fn mknod(&self, parent: Ino, name: &OsStr, new: &NewNode) -> Result<Entry> {
        let entry = self.tree.mknod(parent, name, &self.new_node(new)?)?;
        self.made(entry, new, || self.tree.unlink(parent, name))
    }
    fn mkdir(&self, parent: Ino, name: &OsStr, new: &NewNode) -> Result<Entry> {
        let entry = self.tree.mkdir(parent, name, &self.new_node(new)?)?;
        self.made(entry, new, || self.tree.rmdir(parent, name))
    }
    fn symlink(&self, parent: Ino, name: &OsStr, target: &OsStr, new: &NewNode) -> Result<Entry> {
        self.tree.symlink(parent, name, target, &self.new_node(new)?).map(|entry| self.entry(entry))
    }
    fn link(&self, ino: Ino, parent: Ino, name: &OsStr) -> Result<Entry> {
        self.tree.link(ino, parent, name).map(|entry| self.entry(entry))
    }
    fn tmpfile(&self, parent: Ino, new: &NewNode, flags: OpenFlags) -> Result<(Entry, Arc<dyn File>)> {
        let (entry, file) = self.tree.tmpfile(parent, &self.new_node(new)?, flags)?;
        Ok((self.made(entry, new, || Ok(()))?, file))
    }
    fn place_of(&self, real: &Path) -> Option<PathBuf> {
        self.tree.place_of(real)
    }
    fn node_of(&self, file: BorrowedFd<'_>) -> Result<Entry> {
        self.tree.node_of(file).map(|entry| self.entry(entry))
    }
    fn unlink(&self, parent: Ino, name: &OsStr) -> Result<()> {
        self.tree.unlink(parent, name)
    }
    fn rmdir(&self, parent: Ino, name: &OsStr) -> Result<()> {
        self.tree.rmdir(parent, name)
    }
    fn rename(
        &self,
        parent: Ino,
        name: &OsStr,
        new_parent: Ino,
        new_name: &OsStr,
        flags: RenameFlags,
    ) -> Result<()> {
        self.tree.rename(parent, name, new_parent, new_name, flags)
    }
    fn copy_range(&self, from: Ino, offset: u64, to: Ino, to_offset: u64, len: u64) -> Result<u64> {
        self.tree.copy_range(from, offset, to, to_offset, len)
    }
    fn getxattr(&self, ino: Ino, name: &OsStr) -> Result<Vec<u8>> {
        self.check_xattr(name)?;
        self.tree.getxattr(ino, name)
    }
    fn listxattr(&self, ino: Ino) -> Result<Vec<OsString>> {
        let mut names = self.tree.listxattr(ino)?;
        names.retain(|name| self.check_xattr(name).is_ok());
        Ok(names)
    }
    fn setxattr(&self, ino: Ino, name: &OsStr, value: &[u8], mode: XattrMode) -> Result<()> {
        self.check_xattr(name)?;
        self.tree.setxattr(ino, name, value, mode)
    }
    fn removexattr(&self, ino: Ino, name: &OsStr) -> Result<()> {
        self.check_xattr(name)?;
        self.tree.removexattr(ino, name)
    }
    fn ioctl(&self, dir: Ino, ioctl: &mut Ioctl<'_>) -> Result<i32> {
        self.tree.ioctl(dir, ioctl)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_are_mapped_both_ways_and_others_are_nobodys() {
        let ids = Ids::parse("0:1000:1:1:110000:65536").unwrap();
        for (below, shown) in [(0, 1000), (1, 110_000), (65536, 175_535)] {
            assert_eq!((ids.shown(below), ids.below(shown)), (shown, Some(below)));
        }
        assert_eq!((ids.shown(65537), ids.below(5)), (NOBODY, None));
        assert_eq!(Ids::parse("4294967295:0:1").unwrap().shown(u32::MAX), 0);
        for wrong in ["", "0:1", "0:1:0", "a:1:1", "0:1:1:", "4294967295:0:2", "0:-1:1"] {
            assert_eq!(Ids::parse(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn of_owners_that_are_all_shown_as_one_none_is_changed() {
        let ids = Ids::All(0);
        assert_eq!((ids.shown(1000), ids.of_new(7, 1000), ids.of_change(Some(0))), (0, Ok(1000), Ok(None)));
        assert_eq!(ids.of_change(Some(7)), Err(Errno::EPERM));
    }
}
