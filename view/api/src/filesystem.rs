//! A tree: files and directories, named by node number.
//!
//! Four methods are needed: [`lookup`](Filesystem::lookup), [`getattr`](Filesystem::getattr),
//! [`readdir`](Filesystem::readdir) and [`open`](Filesystem::open). The rest answer an honest "not possible" until a driver says otherwise.
//!
//! # References
//!
//! A host that has been told of a node may come back to it, so nodes are counted: each [`Entry`] that is
//! returned (by `lookup`, `entry`, and every call that makes or links a node) is one reference, and
//! [`forget`](Filesystem::forget) gives references back. A node without a name stays usable while it has
//! references; its storage is released when the last is gone and no [`File`] is open on it. At an unmount
//! hosts need not give references back. The root always exists. A driver whose nodes have a place on a
//! disk, and nothing to release, ignores all this.

use std::ffi::{OsStr, OsString};
use std::ops::ControlFlow;
use std::os::fd::BorrowedFd;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Weak};
use std::time::Duration;

use crate::{Attr, Device, Errno, File, Ino, Kind, NewNode, OpenFlags, Result, SetAttr, StatFs};

/// What a directory entry leads to: a node, its attributes, and one reference to it.
#[derive(Clone, Copy, Debug)]
pub struct Entry {
    /// The node.
    pub ino: Ino,
    /// Tells apart two nodes that had the same number one after the other.
    pub generation: u64,
    /// The attributes, as [`Filesystem::getattr`] would give them.
    pub attr: Attr,
}

/// One entry of a directory, as listed. Carries no reference.
#[derive(Clone, Copy, Debug)]
pub struct DirEntry<'a> {
    /// The name.
    pub name: &'a OsStr,
    /// The node, if the tree knows it from the listing alone: a hint for [`Filesystem::entry`].
    pub ino: Option<Ino>,
    /// What `d_ino` shows: the same number as [`Attr::st_ino`].
    pub st_ino: u64,
    /// The type, if the listing tells it.
    pub kind: Option<Kind>,
    /// The position from which a listing continues behind this entry: 1 to 2^62. Positions need not grow. One stays
    /// valid while the directory is open, and entries that were neither made nor removed meanwhile are
    /// then listed exactly once.
    pub next: u64,
}

/// Takes the entries of a listing; `Break` means that there is no room for more, and the entry was not taken.
/// It does not call the tree, so that a tree may hold its locks.
pub type DirSink<'a> = dyn FnMut(DirEntry<'_>) -> ControlFlow<()> + 'a;

/// An open directory, for trees that must remember something for as long as a listing lasts.
pub trait Directory: Send + Sync {
    /// As [`Filesystem::readdir`].
    fn read(&self, position: u64, sink: &mut DirSink<'_>) -> Result<()>;
}

/// Who else may change a tree, hence what a host may remember of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Caching {
    /// Nothing ever changes: everything may be remembered for ever.
    Immutable,
    /// Changes come only through this object: everything may be remembered, and writes may be held back
    /// until a `sync`. Attributes of a file may change by themselves (its blocks, as content gets its place) as long as a [`File`] of it
    /// that was opened for writing lives, and at no other time.
    Exclusive,
    /// Others change it too: names and attributes may be remembered this long, content while it is open.
    Shared(Duration),
}

/// Facts about a tree that do not change while it is mounted.
#[derive(Clone, Copy, Debug)]
pub struct Facts {
    /// What a host may remember.
    pub caching: Caching,
    /// How long a host may remember that a name is absent; `None`: as long as names that are there.
    pub absent_time: Option<Duration>,
    /// Bytes; the longest name. Longer ones get `ENAMETOOLONG` from the host.
    pub name_max: u32,
    /// Bytes; the largest file. Larger sizes get `EFBIG` from the host.
    pub size_max: u64,
    /// Whether names are matched without regard to case: hosts then remember no absent names.
    pub case_insensitive: bool,
    /// Whether nodes carry POSIX ACLs, as the attributes `system.posix_acl_access` and `_default`, which the host obeys.
    pub acl: bool,
    /// Whether locks must be taken at the tree ([`File::lock`]), since others hold them too.
    pub remote_locks: bool,
    /// Whether open files may have a real descriptor ([`File::backing`]). Hosts then prefer handing that to the kernel over
    /// holding back writes: the kernel does not do both.
    pub backing: bool,
    /// Whether the tree itself decides who may do what (a remote server does); the host then checks nothing.
    pub own_permissions: bool,
    /// Whether a directory's mtime tells of every change to its names, also of those that others made. Hosts may then remember
    /// listings of a tree that is [`Caching::Shared`] until it changes.
    pub dated_listings: bool,
    /// Whether [`File::flush`] has nothing to tell; hosts may then leave it out.
    pub silent_close: bool,
    /// Nanoseconds; the granularity of times: a power of ten up to a second, or 2,000,000,000.
    pub time_granularity: u32,
}

impl Default for Facts {
    /// A tree on a disk that is ours alone.
    fn default() -> Self {
        Self {
            caching: Caching::Exclusive,
            absent_time: None,
            name_max: 255,
            size_max: i64::MAX as u64,
            case_insensitive: false,
            acl: false,
            remote_locks: false,
            backing: false,
            own_permissions: false,
            dated_listings: false,
            silent_close: false,
            time_granularity: 1,
        }
    }
}

/// What `rename` is to do beyond the ordinary: `renameat2(2)`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RenameFlags {
    /// `EEXIST` if the new name exists.
    pub no_replace: bool,
    /// Swap the two names, which both exist.
    pub exchange: bool,
    /// Leave a whiteout behind, for a union above.
    pub whiteout: bool,
}

/// Whether an attribute to be set may, or must, exist.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum XattrMode {
    /// Either.
    Set,
    /// `EEXIST` if it does.
    Create,
    /// `ENODATA` if it does not.
    Replace,
}

/// Hears in what a tree differs from the directory of the host that it [shows](Filesystem::shows). Told under locks of the tree, so it is quick
/// and calls nothing of it. What was told once holds for ever.
pub trait Differences: Send + Sync {
    /// What is on the host under this device and inode number is not (only) what the tree shows in its place: it was removed, hidden, or has a copy. A
    /// directory that is told so may list other names and have other attributes; what its names lead to is not said by that.
    fn object(&self, device: u64, ino: u64);

    /// What is at this path, and everything below, may be something else than on the host. The path starts at the tree's root and has no
    /// slash at its ends, and no links in it.
    fn name(&self, path: &OsStr);

    /// All may differ: there is too much of it, or it cannot be told piece by piece.
    fn all(&self);
}

/// Hears what others have changed in the directories that a tree [watches](Filesystem::watch): without locks of the tree, from a thread that serves no
/// request. What is told need not have changed.
pub trait Changes: Send + Sync {
    /// What this name leads to.
    fn name(&self, dir: Ino, name: &OsStr);

    /// The attributes of this node, and which names a directory has.
    fn node(&self, ino: Ino);
}

/// The driver's side of a tree. See the head of this file, and of the crate.
///
/// A node that a call names is one that the tree has told of and that has references. Still, a corrupt
/// disk may have made it impossible meanwhile: `EUCLEAN`, or `ESTALE` if the node is gone.
pub trait Filesystem: Send + Sync {
    /// Facts that do not change; asked once.
    fn facts(&self) -> Facts {
        Facts::default()
    }

    /// The node that `name` leads to. `ENOENT` if there is no such entry. Takes a reference.
    fn lookup(&self, parent: Ino, name: &OsStr) -> Result<Entry>;

    /// The attributes of a node.
    fn getattr(&self, ino: Ino) -> Result<Attr>;

    /// Whether this object of the host is the node, or a part of it: then an open descriptor of the object stands for the node, also if the tree has made a
    /// copy since. `st_ino` is the object's inode number.
    fn is_made_of(&self, ino: Ino, device: Device, st_ino: u64) -> bool {
        self.getattr(ino).is_ok_and(|attr| attr.st_dev == Some(device) && attr.st_ino == st_ino)
    }

    /// The path in the tree, from its root, at which it has, as far as names tell, what one of the directories of the host that it is made of has at this path.
    /// A host that handed out a descriptor of it tells processes so.
    fn place_of(&self, real: &Path) -> Option<PathBuf> {
        let _ = real;
        None
    }

    /// Lists a directory from `position` on: 0, or the `next` of an earlier entry. Neither `.` nor `..` is listed.
    fn readdir(&self, dir: Ino, position: u64, sink: &mut DirSink<'_>) -> Result<()>;

    /// Opens a file. The host has checked that it is one, and that its permissions allow this.
    fn open(&self, ino: Ino, flags: OpenFlags) -> Result<Arc<dyn File>>;

    /// As `lookup(parent, listed.name)`, for an entry that was just listed and is passed back as it was, `next` included:
    /// where the node is known, without a search. Takes a reference.
    fn entry(&self, parent: Ino, listed: &DirEntry<'_>) -> Result<Entry> {
        self.lookup(parent, listed.name)
    }

    /// Opens a directory. `None`: nothing needs to be remembered, [`readdir`](Self::readdir) serves.
    fn opendir(&self, dir: Ino) -> Result<Option<Arc<dyn Directory>>> {
        let _ = dir;
        Ok(None)
    }

    /// The directory that holds a directory; the root's is the root. Takes no reference. Hosts that walk paths
    /// themselves rarely need it (a renamed working directory does).
    fn parent(&self, dir: Ino) -> Result<Ino> {
        if dir == Ino::ROOT { Ok(dir) } else { Err(Errno::EOPNOTSUPP) }
    }

    /// The target of a symbolic link: 1 to 4095 bytes.
    fn readlink(&self, ino: Ino) -> Result<OsString> {
        let _ = ino;
        Err(Errno::EINVAL)
    }

    /// The directory of the host that this tree shows as it is, if it does, as a canonical path: with the same names, kinds, device and inode numbers, attributes,
    /// targets of links and contents, but for what it tells `differences` of. Before this returns it tells what differs already; later, what a
    /// change is about to make different, before the change begins. Of a path that was not told, and does not lead through one that was,
    /// holds: if the host has nothing there, the tree has nothing there; and what the host has there and was not told as an object is what the tree has.
    /// So whoever only wants to look may do so on the host itself. What others change in that directory is seen in the tree as soon.
    fn shows(&self, differences: Weak<dyn Differences>) -> Option<PathBuf> {
        let _ = differences;
        None
    }

    /// From now on, tells of what others change where it [watches](Self::watch). `false`: this tree never does, or tells somebody else already.
    fn tell(&self, changes: Weak<dyn Changes>) -> bool {
        let _ = changes;
        false
    }

    /// A host begins to list this directory. The tree may watch it from now on, and then says how long may be remembered what is learnt from now on: which
    /// names it has, its own attributes, what its names lead to, and the attributes of those of them that are no directories and have one name.
    /// [`Changes`] hears, within a second, what of this is no longer so. A tree that [tells](Self::tell) at all knows the [`parent`](Self::parent) of all nodes.
    fn watch(&self, dir: Ino) -> Option<Duration> {
        let _ = dir;
        None
    }

    /// As [`watch`](Self::watch), if this directory is watched already. `name`: of what is about to be learnt; the tree need not
    /// tell of each.
    fn watched(&self, dir: Ino, name: Option<&OsStr>) -> Option<Duration> {
        let _ = (dir, name);
        None
    }

    /// Sizes and free space.
    fn statfs(&self) -> Result<StatFs> {
        Ok(StatFs { block_size: 4096, ..StatFs::default() })
    }

    /// Gives back `count` references.
    fn forget(&self, ino: Ino, count: u64) {
        let _ = (ino, count);
    }

    /// Returns when every change made so far is on stable storage: `syncfs(2)`.
    fn sync(&self) -> Result<()> {
        Ok(())
    }

    /// The last call: write out everything, mark the disk clean, and say whether that went well. Files that are
    /// still open are dropped before. After an error of an earlier write this fails again.
    fn unmount(&self) -> Result<()> {
        self.sync()
    }

    /// Changes attributes, and returns them all.
    fn setattr(&self, ino: Ino, changes: &SetAttr) -> Result<Attr> {
        let _ = (ino, changes);
        Err(Errno::EROFS)
    }

    /// Makes a regular file and opens it. `EEXIST` if the name exists. Takes a reference.
    fn create(
        &self,
        parent: Ino,
        name: &OsStr,
        new: &NewNode,
        flags: OpenFlags,
    ) -> Result<(Entry, Arc<dyn File>)> {
        let _ = (parent, name, new, flags);
        Err(Errno::EROFS)
    }

    /// Makes a node other than a directory or a symbolic link. Takes a reference.
    fn mknod(&self, parent: Ino, name: &OsStr, new: &NewNode) -> Result<Entry> {
        let _ = (parent, name, new);
        Err(Errno::EROFS)
    }

    /// Makes a directory. Takes a reference.
    fn mkdir(&self, parent: Ino, name: &OsStr, new: &NewNode) -> Result<Entry> {
        let _ = (parent, name, new);
        Err(Errno::EROFS)
    }

    /// Makes a symbolic link to `target` (1 to 4095 bytes). Takes a reference.
    fn symlink(&self, parent: Ino, name: &OsStr, target: &OsStr, new: &NewNode) -> Result<Entry> {
        let _ = (parent, name, target, new);
        Err(Errno::EROFS)
    }

    /// Gives a node that is not a directory one more name. Takes a reference.
    fn link(&self, ino: Ino, parent: Ino, name: &OsStr) -> Result<Entry> {
        let _ = (ino, parent, name);
        Err(Errno::EROFS)
    }

    /// Makes a regular file without a name and opens it: `O_TMPFILE`. Takes a reference.
    fn tmpfile(&self, parent: Ino, new: &NewNode, flags: OpenFlags) -> Result<(Entry, Arc<dyn File>)> {
        let _ = (parent, new, flags);
        Err(Errno::EOPNOTSUPP)
    }

    /// The node of which this is a descriptor, for a process that has no more of it and wants it [linked](Self::link): a file that [`tmpfile`](Self::tmpfile) has
    /// made, and that was handed out as [`File::backing`]. Takes a reference. `EXDEV` for what is not the tree's own, or cannot be told to be so: a name of
    /// its own would let the tree change it.
    fn node_of(&self, file: BorrowedFd<'_>) -> Result<Entry> {
        let _ = file;
        Err(Errno::EXDEV)
    }

    /// Removes a name that does not lead to a directory (`EISDIR` if it does).
    fn unlink(&self, parent: Ino, name: &OsStr) -> Result<()> {
        let _ = (parent, name);
        Err(Errno::EROFS)
    }

    /// Removes an empty directory. `ENOTEMPTY`, `ENOTDIR`.
    fn rmdir(&self, parent: Ino, name: &OsStr) -> Result<()> {
        let _ = (parent, name);
        Err(Errno::EROFS)
    }

    /// Moves a name, atomically replacing what the new one led to (`EISDIR`, `ENOTDIR`, `ENOTEMPTY` if that does not
    /// match). `EINVAL` if a directory would become its own ancestor, or for flags that the tree does not know.
    fn rename(
        &self,
        parent: Ino,
        name: &OsStr,
        new_parent: Ino,
        new_name: &OsStr,
        flags: RenameFlags,
    ) -> Result<()> {
        let _ = (parent, name, new_parent, new_name, flags);
        Err(Errno::EROFS)
    }

    /// Copies `len` bytes between two files without passing them through the host, and says how many: `copy_file_range(2)`.
    /// On `EOPNOTSUPP` the host copies.
    fn copy_range(&self, from: Ino, offset: u64, to: Ino, to_offset: u64, len: u64) -> Result<u64> {
        let _ = (from, offset, to, to_offset, len);
        Err(Errno::EOPNOTSUPP)
    }

    /// The value of an extended attribute; the name has its prefix (`user.`). `ENODATA` if there is none,
    /// `EOPNOTSUPP` if the tree has no attributes under that prefix.
    fn getxattr(&self, ino: Ino, name: &OsStr) -> Result<Vec<u8>> {
        let _ = (ino, name);
        Err(Errno::EOPNOTSUPP)
    }

    /// The names of all extended attributes.
    fn listxattr(&self, ino: Ino) -> Result<Vec<OsString>> {
        let _ = ino;
        Ok(Vec::new())
    }

    /// Sets an extended attribute. The value has at most 65,536 bytes; `ENOSPC` or `E2BIG` if the tree holds less.
    fn setxattr(&self, ino: Ino, name: &OsStr, value: &[u8], mode: XattrMode) -> Result<()> {
        let _ = (ino, name, value, mode);
        Err(Errno::EOPNOTSUPP)
    }

    /// Removes an extended attribute. `ENODATA` if there is none.
    fn removexattr(&self, ino: Ino, name: &OsStr) -> Result<()> {
        let _ = (ino, name);
        Err(Errno::EOPNOTSUPP)
    }

    /// `ioctl(2)` on a directory, such as `FS_IOC_GETFLAGS`. As [`File::ioctl`].
    fn ioctl(&self, dir: Ino, ioctl: &mut crate::Ioctl<'_>) -> Result<i32> {
        let _ = (dir, ioctl);
        Err(Errno::ENOTTY)
    }
}
