//! A directory of the host system as a tree.
//!
//! A node is one file of the host system, named by device and inode number (and time of birth, since inode numbers are
//! used again). It remembers under which names it was seen, each a directory and a component: a rename of a directory
//! moves all that is below without touching it. Whatever is done goes through a descriptor of the directory and one
//! component, never through a symbolic link, and what is found there is compared with what the node is: so nothing outside the
//! directory is ever reached, and a file that others replaced meanwhile gives `ESTALE`.
//!
//! Descriptors are kept for few nodes only (`O_PATH`, the least recently used go first), and opened again from the names
//! upwards. A node that loses its last name while it is referred to keeps one until it is forgotten.
//!
//! Locks, in the order in which they are taken: `names` (shared by whatever uses names, exclusive for what takes names away, and held
//! over the system calls), then the `table` (held for no system call but `close`). That of `watches` comes
//! between the two.
//!
//! # Limits
//!
//! The tree needs `/proc`. What the kernel refuses to the user that runs the program is refused. Flags of files are
//! not passed on (`EOPNOTSUPP`), nor can ctime be set. What the root's filesystem is counts for all: of NFS that is mounted within a directory of a
//! local filesystem, errors that come with close(2) are not told (those of fsync(2) are). Files deleted by others are gone, unless they are open. A directory that
//! others move out of the tree may still be reached for a while. Of what is watched (see `watch`), hosts may show for up to half a minute the old size and times of a
//! closed file that others change through a mapping that they keep, or under a name that they gave it elsewhere.

mod delayed;
mod file;
mod table;
mod watch;

use std::ffi::{OsStr, OsString};
use std::fs::File as StdFile;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Weak};
use std::time::Duration;

use parking_lot::{Mutex, RwLock};
use rustix::fs::{
    AtFlags, CWD, Dir, FileType, Gid, Mode, OFlags, RenameFlags as HostRename, Statx, StatxAttributes,
    StatxFlags, Timespec, Timestamps, UTIME_NOW, UTIME_OMIT, Uid, XattrFlags,
};
use veduta_api::{
    Attr, Caching, Changes, Device, Differences, DirSink, Directory, Entry, Errno, Facts, File, FileFlags,
    Filesystem, Ino, Ioctl, Kind, NewNode, OpenFlags, Perm, RenameFlags, Result, SetAttr, SetTime, StatFs,
    Timestamp, XattrMode,
};

use crate::listing::{Listed, Listing};
use crate::set_id::without_set_id;
use file::HostFile;
use table::{Identity, Place, Table};
use watch::Watches;

/// Descriptors that are kept, at most; a process may have 1024 by default.
const MAX_KEPT: usize = 256;
const OVERLAYFS_MAGIC: u32 = 0x794c_7630;
const DEFAULT_ACL: &str = "system.posix_acl_default";

/// See the head of this file.
pub struct HostDir {
    root: Arc<OwnedFd>,
    /// Whether the time of birth is part of what a file is.
    has_births: bool,
    names: RwLock<()>,
    table: Arc<Mutex<Table>>,
    watches: Watches,
    /// Whether this kernel makes all changes, so that inotify tells of what others do.
    is_local: bool,
}

/// A descriptor of a node.
enum NodeFd {
    /// One for names only.
    Kept(Arc<OwnedFd>),
    /// That of somebody who has the file open.
    Open(Arc<HostFile>),
}

impl AsFd for NodeFd {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match self {
            NodeFd::Kept(fd) => fd.as_fd(),
            NodeFd::Open(file) => file.as_fd(),
        }
    }
}

/// What a node can be reached by.
enum Handle {
    /// The node itself.
    Own(NodeFd),
    /// A directory, and a name in it under which the node was last seen.
    Named(Arc<OwnedFd>, OsString),
}

impl HostDir {
    /// The directory at a path of the host system.
    pub fn open(path: &Path) -> Result<Self> {
        Self::keeping(path, MAX_KEPT)
    }

    /// As [`open`](Self::open), with another limit on the descriptors that are kept.
    pub fn keeping(path: &Path, descriptors: usize) -> Result<Self> {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let root = Arc::new(rustix::fs::open(path, flags, Mode::empty()).map_err(errno)?);
        let stat = stat_fd(&root)?;
        // A file of an overlay is born again when it is first written.
        let magic = rustix::fs::fstatfs(&root).map(|fs| fs.f_type as u32);
        let has_births = magic.is_ok_and(|magic| magic != OVERLAYFS_MAGIC);
        let table = Table::new(identity(&stat, has_births), Arc::clone(&root), descriptors);
        Ok(Self {
            root,
            has_births,
            names: RwLock::new(()),
            table: Arc::new(Mutex::new(table)),
            watches: Watches::new(),
            is_local: magic.is_ok_and(watch::is_local),
        })
    }

    fn identity(&self, stat: &Statx) -> Identity {
        identity(stat, self.has_births)
    }

    /// A descriptor of a node that is a directory, or of any node for what works on descriptors only. With `names` held.
    fn fd(&self, ino: Ino) -> Result<Arc<OwnedFd>> {
        // Upwards to the first that has a descriptor, then down again. Directories form a tree, so the climb ends; a
        // corrupt one of the host system would have to be deeper than any path.
        let mut missing: Vec<(Ino, Place, Identity)> = Vec::new();
        let mut here = ino;
        let mut fd = loop {
            self.prove(here)?;
            let mut table = self.table.lock();
            if let Some(fd) = table.kept(here) {
                break fd;
            }
            let (place, identity) = table.place(here)?;
            drop(table);
            let above = place.parent;
            missing.push((here, place, identity));
            if missing.len() > 4096 {
                return Err(Errno::ELOOP);
            }
            here = above;
        };
        while let Some((ino, place, identity)) = missing.pop() {
            let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            let opened = rustix::fs::openat(&fd, &*place.name, flags, Mode::empty()).map_err(gone)?;
            if self.identity(&stat_fd(&opened)?) != identity {
                return Err(Errno::ESTALE);
            }
            fd = Arc::new(opened);
            self.table.lock().keep(ino, &fd);
        }
        Ok(fd)
    }

    /// Compares a node with what its last name led to when that was removed. Few nodes are asked for after that, so it is not done before.
    fn prove(&self, ino: Ino) -> Result<()> {
        let unproven = self.table.lock().unproven(ino);
        if let Some((fd, identity)) = unproven {
            let is_it = self.identity(&stat_fd(&fd)?) == identity;
            self.table.lock().prove(ino, is_it);
        }
        Ok(())
    }

    /// A descriptor of a node, for what works on those of open files too, and on them with less work. With `names` held.
    fn any_fd(&self, ino: Ino) -> Result<NodeFd> {
        self.prove(ino)?;
        if let Some(file) = self.table.lock().open_file(ino) {
            return Ok(NodeFd::Open(file));
        }
        Ok(NodeFd::Kept(self.fd(ino)?))
    }

    /// What a node can be reached by with the fewest system calls. With `names` held.
    fn handle(&self, ino: Ino) -> Result<(Handle, Identity)> {
        self.prove(ino)?;
        let (place, identity) = {
            let mut table = self.table.lock();
            let identity = table.identity(ino)?;
            if let Some(fd) = table.at_hand(ino) {
                return Ok((Handle::Own(fd), identity));
            }
            table.place(ino)?
        };
        Ok((Handle::Named(self.fd(place.parent)?, place.name), identity))
    }

    fn stat(&self, ino: Ino) -> Result<Statx> {
        match self.handle(ino)? {
            (Handle::Own(fd), _) => stat_fd(&fd),
            (Handle::Named(dir, name), wanted) => {
                let stat = stat_name(&dir, &name).map_err(stale)?;
                if self.identity(&stat) == wanted { Ok(stat) } else { Err(Errno::ESTALE) }
            }
        }
    }

    /// Opens a node for its content. With `names` held.
    fn reopen(&self, ino: Ino, flags: OFlags) -> Result<OwnedFd> {
        // Not waiting, in case that a pipe has taken the name; a process that is handed the descriptor shall not see that.
        let opened =
            self.reopen_nonblocking(ino, flags | OFlags::CLOEXEC | OFlags::NOCTTY | OFlags::NONBLOCK)?;
        rustix::fs::fcntl_setfl(&opened, OFlags::empty()).map_err(errno)?;
        Ok(opened)
    }

    fn reopen_nonblocking(&self, ino: Ino, flags: OFlags) -> Result<OwnedFd> {
        match self.handle(ino)? {
            (Handle::Own(fd), _) => rustix::fs::open(proc_path(&fd), flags, Mode::empty()).map_err(errno),
            (Handle::Named(dir, name), wanted) => {
                let flags = flags | OFlags::NOFOLLOW;
                let opened = rustix::fs::openat(&dir, &*name, flags, Mode::empty()).map_err(gone)?;
                let is_it = self.identity(&stat_fd(&opened)?) == wanted;
                if is_it { Ok(opened) } else { Err(Errno::ESTALE) }
            }
        }
    }

    /// Enters what was found under a name, with one reference more.
    fn enter(&self, parent: Ino, name: &OsStr, stat: &Statx) -> Entry {
        let place = Place { parent, name: name.to_owned() };
        let ino = self.table.lock().enter(self.identity(stat), Some(place));
        Entry { ino, generation: 0, attr: attr(stat) }
    }

    /// Gives a node that was just made the owner and the mode that it is to have, where the kernel chose others. Where the
    /// directory has a default ACL, the mode is the kernel's to choose.
    fn finish(&self, dir: &OwnedFd, fd: &OwnedFd, stat: &Statx, new: &NewNode) -> Result<Statx> {
        let mut stat = *stat;
        if (stat.stx_uid, stat.stx_gid) != (new.uid, new.gid) {
            let (uid, gid) = (Uid::from_raw(new.uid), Gid::from_raw(new.gid));
            rustix::fs::chownat(fd, "", Some(uid), Some(gid), AtFlags::EMPTY_PATH).map_err(errno)?;
            // The kernel drops set-id bits with a change of owner.
            stat = stat_fd(fd)?;
        }
        let wanted = new.masked().bits();
        let is_symlink = Kind::from_mode(stat.stx_mode.into()) == Some(Kind::Symlink);
        // The process's own umask, and the set-group-id bit of a directory, may have changed it.
        if !is_symlink && u32::from(stat.stx_mode) & 0o7777 != wanted && !has_default_acl(dir) {
            chmod_path(fd, wanted)?;
            stat = stat_fd(fd)?;
        }
        Ok(stat)
    }

    /// Makes a node by `make`, which is given the directory, and enters it. What cannot be made right is removed again.
    fn make(
        &self,
        parent: Ino,
        name: &OsStr,
        new: &NewNode,
        make: impl FnOnce(&OwnedFd, Mode) -> rustix::io::Result<()>,
    ) -> Result<Entry> {
        self.watches.disturb([parent]);
        let _names = self.names.read();
        let dir = self.fd(parent)?;
        let mode = initial_mode(&dir, new);
        make(&dir, mode).map_err(errno)?;
        let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let finished = rustix::fs::openat(&dir, name, flags, Mode::empty())
            .map_err(errno)
            .and_then(|made| self.finish(&dir, &made, &stat_fd(&made)?, new));
        match finished {
            Ok(stat) => Ok(self.enter(parent, name, &stat)),
            Err(error) => {
                let flags = if new.kind == Kind::Directory { AtFlags::REMOVEDIR } else { AtFlags::empty() };
                // The error that counts is the first one.
                let _ = rustix::fs::unlinkat(&dir, name, flags);
                Err(error)
            }
        }
    }

    /// Removes a name; a node that loses its last one, and is referred to, keeps a descriptor.
    fn remove(&self, parent: Ino, name: &OsStr, flags: AtFlags) -> Result<()> {
        self.watches.disturb([parent]);
        let _names = self.names.write();
        let dir = self.fd(parent)?;
        let place = Place { parent, name: name.to_owned() };
        let opened = self.open_last(&dir, &place);
        rustix::fs::unlinkat(&dir, name, flags).map_err(errno)?;
        self.table.lock().lose(&place, opened);
        Ok(())
    }

    /// A descriptor of what a name leads to, if a node would have none without that name.
    fn open_last(&self, dir: &OwnedFd, place: &Place) -> Option<OwnedFd> {
        if !self.table.lock().hangs_by(place) {
            return None;
        }
        let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        rustix::fs::openat(dir, &*place.name, flags, Mode::empty()).ok()
    }
}

impl Filesystem for HostDir {
    fn facts(&self) -> Facts {
        let name_max = rustix::fs::fstatvfs(&self.root).map_or(255, |stat| stat.f_namemax);
        Facts {
            caching: Caching::Shared(Duration::from_secs(1)),
            name_max: u32::try_from(name_max).unwrap_or(255),
            backing: true,
            acl: true,
            dated_listings: true,
            // Others may hear of errors only when a file is closed.
            silent_close: self.is_local,
            ..Facts::default()
        }
    }

    /// All of it: what is changed is changed there.
    fn shows(&self, _: Weak<dyn Differences>) -> Option<PathBuf> {
        let path = std::fs::read_link(format!("/proc/self/fd/{}", self.root.as_raw_fd())).ok()?;
        // It may have been removed, or lie outside of our root directory.
        let (there, here) = (rustix::fs::stat(&path).ok()?, rustix::fs::fstat(&self.root).ok()?);
        (path.is_absolute() && (there.st_dev, there.st_ino) == (here.st_dev, here.st_ino)).then_some(path)
    }

    fn lookup(&self, parent: Ino, name: &OsStr) -> Result<Entry> {
        let _names = self.names.read();
        let dir = self.fd(parent)?;
        let stat = stat_name(&dir, name)?;
        Ok(self.enter(parent, name, &stat))
    }

    fn getattr(&self, ino: Ino) -> Result<Attr> {
        let _names = self.names.read();
        Ok(attr(&self.stat(ino)?))
    }

    /// Remembers the names for as long as the node lives; [`opendir`](Self::opendir) for as long as the directory is open.
    fn readdir(&self, dir: Ino, position: u64, sink: &mut DirSink<'_>) -> Result<()> {
        let listing = self.table.lock().listing(dir)?;
        let read = || {
            let _names = self.names.read();
            list(&open_dir(&*self.fd(dir)?)?)
        };
        listing.read(position, read, sink)
    }

    fn opendir(&self, dir: Ino) -> Result<Option<Arc<dyn Directory>>> {
        let _names = self.names.read();
        let fd = open_dir(&*self.fd(dir)?)?;
        Ok(Some(Arc::new(OpenDir { fd, listing: Listing::default() })))
    }

    fn open(&self, ino: Ino, flags: OpenFlags) -> Result<Arc<dyn File>> {
        if flags.write {
            self.disturb(ino);
        }
        let _names = self.names.read();
        let fd = self.reopen(ino, open_flags(flags))?;
        let file = Arc::new(HostFile::new(StdFile::from(fd), flags.write, self.is_local));
        self.table.lock().remember_open(ino, &file);
        Ok(file)
    }

    fn parent(&self, dir: Ino) -> Result<Ino> {
        if dir == Ino::ROOT { Ok(dir) } else { self.table.lock().parent(dir) }
    }

    fn readlink(&self, ino: Ino) -> Result<OsString> {
        let _names = self.names.read();
        match rustix::fs::readlinkat(&*self.fd(ino)?, "", Vec::new()) {
            Ok(target) => Ok(OsString::from_vec(target.into_bytes())),
            // So the kernel answers for a descriptor of anything else.
            Err(rustix::io::Errno::NOENT) => Err(Errno::EINVAL),
            Err(error) => Err(errno(error)),
        }
    }

    fn ioctl(&self, dir: Ino, ioctl: &mut Ioctl<'_>) -> Result<i32> {
        let _names = self.names.read();
        file::flags(open_dir(&*self.fd(dir)?)?, ioctl)
    }

    fn tell(&self, changes: Weak<dyn Changes>) -> bool {
        self.is_local && self.watches.tell(changes)
    }

    fn watch(&self, dir: Ino) -> Option<Duration> {
        if self.watches.wants(dir) {
            let _names = self.names.read();
            let (identity, root, is_written) = {
                let table = self.table.lock();
                (table.identity(dir).ok()?, table.identity(Ino::ROOT).ok()?, table.is_written_in(dir))
            };
            // What is mounted below may be of any kind.
            if identity.device == root.device && !is_written {
                let fd = self.fd(dir).ok()?;
                self.watches.add(dir, &fd, &self.table);
            }
        }
        self.watches.remembered(dir)
    }

    fn watched(&self, dir: Ino, _: Option<&OsStr>) -> Option<Duration> {
        self.watches.remembered(dir)
    }

    fn statfs(&self) -> Result<StatFs> {
        let stat = rustix::fs::fstatvfs(&self.root).map_err(errno)?;
        let magic = rustix::fs::fstatfs(&self.root).map_err(errno)?.f_type;
        Ok(StatFs {
            // The counts are in fragments.
            block_size: u32::try_from(stat.f_frsize).unwrap_or(4096),
            blocks: stat.f_blocks,
            blocks_free: stat.f_bfree,
            blocks_available: stat.f_bavail,
            files: stat.f_files,
            files_free: stat.f_ffree,
            magic: magic as u32,
            id: stat.f_fsid,
        })
    }

    fn forget(&self, ino: Ino, count: u64) {
        self.table.lock().forget(ino, count);
    }

    fn sync(&self) -> Result<()> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let root = rustix::fs::openat(&self.root, ".", flags, Mode::empty()).map_err(errno)?;
        rustix::fs::syncfs(root).map_err(errno)
    }

    /// The kernel has no call for all at once: an error may come after a part was done.
    fn setattr(&self, ino: Ino, changes: &SetAttr) -> Result<Attr> {
        if changes.flags.is_some() {
            return Err(Errno::EOPNOTSUPP);
        }
        self.disturb(ino);
        let _names = self.names.read();
        if let Some(size) = changes.size {
            self.truncate(ino, size)?;
        }
        let fd = self.any_fd(ino)?;
        set_owner_and_mode(&fd, changes)?;
        if changes.atime.is_some() || changes.mtime.is_some() {
            let times = Timestamps {
                last_access: timespec(changes.atime),
                last_modification: timespec(changes.mtime),
            };
            set_times(&fd, &times)?;
        }
        Ok(attr(&stat_fd(&fd)?))
    }

    fn create(
        &self,
        parent: Ino,
        name: &OsStr,
        new: &NewNode,
        flags: OpenFlags,
    ) -> Result<(Entry, Arc<dyn File>)> {
        self.watches.disturb([parent]);
        let _names = self.names.read();
        let dir = self.fd(parent)?;
        let how = open_flags(flags) | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let mode = initial_mode(&dir, new);
        let fd = rustix::fs::openat(&dir, name, how, mode).map_err(errno)?;
        let stat = stat_fd(&fd).and_then(|stat| self.finish(&dir, &fd, &stat, new)).inspect_err(|_| {
            // The error that counts is the first one.
            let _ = rustix::fs::unlinkat(&dir, name, AtFlags::empty());
        })?;
        let entry = self.enter(parent, name, &stat);
        let file = Arc::new(HostFile::new(StdFile::from(fd), flags.write, self.is_local));
        self.table.lock().remember_open(entry.ino, &file);
        Ok((entry, file))
    }

    fn mknod(&self, parent: Ino, name: &OsStr, new: &NewNode) -> Result<Entry> {
        let device = rustix::fs::makedev(new.rdev.major, new.rdev.minor);
        let kind = FileType::from_raw_mode(new.kind.mode_bits());
        self.make(parent, name, new, |dir, mode| rustix::fs::mknodat(dir, name, kind, mode, device))
    }

    fn mkdir(&self, parent: Ino, name: &OsStr, new: &NewNode) -> Result<Entry> {
        let new = NewNode { kind: Kind::Directory, ..*new };
        self.make(parent, name, &new, |dir, mode| rustix::fs::mkdirat(dir, name, mode))
    }

    fn symlink(&self, parent: Ino, name: &OsStr, target: &OsStr, new: &NewNode) -> Result<Entry> {
        let new = NewNode { kind: Kind::Symlink, ..*new };
        self.make(parent, name, &new, |dir, _| rustix::fs::symlinkat(target, dir, name))
    }

    fn link(&self, ino: Ino, parent: Ino, name: &OsStr) -> Result<Entry> {
        self.disturb(ino);
        self.watches.disturb([parent]);
        let _names = self.names.read();
        let (fd, dir) = (self.fd(ino)?, self.fd(parent)?);
        // AT_EMPTY_PATH would need a privilege.
        rustix::fs::linkat(CWD, proc_path(&fd), &dir, name, AtFlags::SYMLINK_FOLLOW).map_err(errno)?;
        let entry = self.enter(parent, name, &stat_fd(&fd)?);
        self.table.lock().unpin(entry.ino);
        Ok(entry)
    }

    fn tmpfile(&self, parent: Ino, new: &NewNode, flags: OpenFlags) -> Result<(Entry, Arc<dyn File>)> {
        let _names = self.names.read();
        let dir = self.fd(parent)?;
        // The kernel makes such a file only for writing.
        let mut how =
            open_flags(OpenFlags { read: true, write: true, ..flags }) | OFlags::TMPFILE | OFlags::CLOEXEC;
        how.set(OFlags::EXCL, flags.unlinkable);
        let mode = initial_mode(&dir, new);
        let fd = rustix::fs::openat(&dir, ".", how, mode).map_err(errno)?;
        let stat = self.finish(&dir, &fd, &stat_fd(&fd)?, new)?;
        let flags = OFlags::PATH | OFlags::CLOEXEC;
        let kept = rustix::fs::open(proc_path(&fd), flags, Mode::empty()).map_err(errno)?;
        let file = Arc::new(HostFile::new(StdFile::from(fd), true, self.is_local));
        let mut table = self.table.lock();
        let ino = table.enter(self.identity(&stat), None);
        table.pin(ino, Arc::new(kept));
        table.remember_open(ino, &file);
        Ok((Entry { ino, generation: 0, attr: attr(&stat) }, file))
    }

    fn node_of(&self, file: BorrowedFd<'_>) -> Result<Entry> {
        let kept = rustix::fs::open(proc_path(&file), OFlags::PATH | OFlags::CLOEXEC, Mode::empty())
            .map_err(errno)?;
        let stat = stat_fd(&kept)?;
        if Kind::from_mode(stat.stx_mode.into()) != Some(Kind::File) {
            return Err(Errno::EXDEV);
        }
        let mut table = self.table.lock();
        let ino = table.enter(self.identity(&stat), None);
        table.pin(ino, Arc::new(kept));
        Ok(Entry { ino, generation: 0, attr: attr(&stat) })
    }

    fn unlink(&self, parent: Ino, name: &OsStr) -> Result<()> {
        self.remove(parent, name, AtFlags::empty())
    }

    fn rmdir(&self, parent: Ino, name: &OsStr) -> Result<()> {
        self.remove(parent, name, AtFlags::REMOVEDIR)
    }

    fn rename(
        &self,
        parent: Ino,
        name: &OsStr,
        new_parent: Ino,
        new_name: &OsStr,
        flags: RenameFlags,
    ) -> Result<()> {
        self.watches.disturb([parent, new_parent]);
        let _names = self.names.write();
        let (from, to) = (self.fd(parent)?, self.fd(new_parent)?);
        let place = Place { parent: new_parent, name: new_name.to_owned() };
        let replaced = if flags.exchange { None } else { self.open_last(&to, &place) };
        let mut how = HostRename::empty();
        how.set(HostRename::NOREPLACE, flags.no_replace);
        how.set(HostRename::EXCHANGE, flags.exchange);
        how.set(HostRename::WHITEOUT, flags.whiteout);
        rustix::fs::renameat_with(&from, name, &to, new_name, how).map_err(errno)?;
        self.watches.moved(parent, new_parent, new_name);
        // Of two names of one file the kernel keeps both. Then the old one is learnt again when it is next looked up.
        if flags.exchange {
            self.watches.moved(new_parent, parent, name);
        }
        let mut table = self.table.lock();
        if flags.exchange {
            table.exchange((parent, name), (new_parent, new_name));
        } else {
            table.lose(&place, replaced);
            table.relocate((parent, name), (new_parent, new_name));
        }
        Ok(())
    }

    fn getxattr(&self, ino: Ino, name: &OsStr) -> Result<Vec<u8>> {
        check_xattr_name(name)?;
        let _names = self.names.read();
        let fd = self.any_fd(ino)?;
        let mut value = vec![0; 256];
        loop {
            let read = match &fd {
                NodeFd::Open(file) => rustix::fs::fgetxattr(file, name, &mut value[..]),
                NodeFd::Kept(fd) => rustix::fs::getxattr(proc_path(fd), name, &mut value[..]),
            };
            match read {
                Ok(len) => {
                    value.truncate(len);
                    return Ok(value);
                }
                // The kernel's limit is 64 KiB, so a buffer of that size ends this.
                Err(rustix::io::Errno::RANGE) if value.len() < 65_536 => value = vec![0; 65_536],
                Err(error) => return Err(errno(error)),
            }
        }
    }

    fn listxattr(&self, ino: Ino) -> Result<Vec<OsString>> {
        let _names = self.names.read();
        let fd = self.any_fd(ino)?;
        let read = |list: &mut [u8]| match &fd {
            NodeFd::Open(file) => rustix::fs::flistxattr(file, list),
            NodeFd::Kept(fd) => rustix::fs::listxattr(proc_path(fd), list),
        };
        let mut list = vec![0; 512];
        let len = match read(&mut list) {
            Err(rustix::io::Errno::RANGE) => {
                list = vec![0; 65_536];
                read(&mut list)
            }
            len => len,
        };
        let len = len.map_err(errno)?;
        let names = list[..len].split(|byte| *byte == 0).filter(|name| !name.is_empty());
        let names = names.map(OsStr::from_bytes).filter(|name| check_xattr_name(name).is_ok());
        Ok(names.map(OsStr::to_owned).collect())
    }

    fn setxattr(&self, ino: Ino, name: &OsStr, value: &[u8], mode: XattrMode) -> Result<()> {
        check_xattr_name(name)?;
        self.disturb(ino);
        let _names = self.names.read();
        let fd = self.any_fd(ino)?;
        let flags = match mode {
            XattrMode::Set => XattrFlags::empty(),
            XattrMode::Create => XattrFlags::CREATE,
            XattrMode::Replace => XattrFlags::REPLACE,
        };
        let set = match &fd {
            NodeFd::Open(file) => rustix::fs::fsetxattr(file, name, value, flags),
            NodeFd::Kept(fd) => rustix::fs::setxattr(proc_path(fd), name, value, flags),
        };
        set.map_err(errno)
    }

    fn removexattr(&self, ino: Ino, name: &OsStr) -> Result<()> {
        check_xattr_name(name)?;
        self.disturb(ino);
        let _names = self.names.read();
        let removed = match self.any_fd(ino)? {
            NodeFd::Open(file) => rustix::fs::fremovexattr(file, name),
            NodeFd::Kept(fd) => rustix::fs::removexattr(proc_path(&fd), name),
        };
        removed.map_err(errno)
    }
}

impl HostDir {
    /// A node is about to be changed through this tree.
    fn disturb(&self, ino: Ino) {
        if !self.watches.are_none() {
            let mut dirs = self.table.lock().parents(ino);
            dirs.push(ino);
            self.watches.disturb(dirs);
        }
    }

    /// A file whose mode forbids its owner to write can be cut through a descriptor that was opened before.
    fn truncate(&self, ino: Ino, size: u64) -> Result<()> {
        match self.reopen(ino, OFlags::WRONLY) {
            Ok(fd) => rustix::fs::ftruncate(fd, size).map_err(errno),
            Err(error) => {
                let writer = self.table.lock().writer(ino).ok_or(error)?;
                writer.set_size(size)
            }
        }
    }
}

/// An open directory of the host system.
struct OpenDir {
    fd: OwnedFd,
    listing: Listing,
}

impl Directory for OpenDir {
    fn read(&self, position: u64, sink: &mut DirSink<'_>) -> Result<()> {
        self.listing.read(position, || list(&self.fd), sink)
    }
}

/// A descriptor to list a directory by; those that are kept are for names only.
fn open_dir(dir: &OwnedFd) -> Result<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    match rustix::fs::openat(dir, ".", flags, Mode::empty()) {
        // The name "." is looked up in it, which takes more than the right to list it.
        Err(rustix::io::Errno::ACCESS) => rustix::fs::open(proc_path(dir), flags, Mode::empty()),
        opened => opened,
    }
    .map_err(errno)
}

fn list(dir: &OwnedFd) -> Result<Vec<Listed>> {
    let mut found = Vec::new();
    let entries = match Dir::read_from(dir) {
        // That looks up "." too.
        Err(rustix::io::Errno::ACCESS) => Dir::new(open_dir(dir)?),
        entries => entries,
    };
    for entry in entries.map_err(errno)? {
        let entry = entry.map_err(errno)?;
        let name = entry.file_name().to_bytes();
        if name != b"." && name != b".." {
            let kind = Kind::from_mode(entry.file_type().as_raw_mode());
            found.push(Listed { name: OsStr::from_bytes(name).to_owned(), st_ino: entry.ino(), kind });
        }
    }
    Ok(found)
}

fn set_owner_and_mode(fd: &NodeFd, changes: &SetAttr) -> Result<()> {
    let (uid, gid) = (changes.uid.map(Uid::from_raw), changes.gid.map(Gid::from_raw));
    let owner = uid.is_some() || gid.is_some();
    if !owner && !changes.drop_set_id {
        return changes.perm.map_or(Ok(()), |perm| chmod(fd, perm.bits()));
    }
    let before = stat_fd(fd)?;
    if owner {
        rustix::fs::chownat(fd, "", uid, gid, AtFlags::EMPTY_PATH).map_err(errno)?;
    }
    let is_symlink = Kind::from_mode(before.stx_mode.into()) == Some(Kind::Symlink);
    if is_symlink && changes.perm.is_none() {
        return Ok(());
    }
    let had = Perm::from_mode(before.stx_mode.into());
    let wanted = changes.perm.unwrap_or(had);
    let wanted = if changes.drop_set_id { without_set_id(wanted) } else { wanted };
    // The kernel drops set-user-id with a change of owner on its own account, whether or not that is wanted here.
    let now = if owner && had.bits() & 0o6000 != 0 { stat_fd(fd)? } else { before };
    if changes.perm.is_some() || u32::from(now.stx_mode) & 0o7777 != wanted.bits() {
        chmod(fd, wanted.bits())?;
    }
    Ok(())
}

fn chmod(fd: &NodeFd, mode: u32) -> Result<()> {
    match fd {
        NodeFd::Open(file) => rustix::fs::fchmod(file, Mode::from_raw_mode(mode)).map_err(errno),
        NodeFd::Kept(fd) => chmod_path(fd, mode),
    }
}

fn set_times(fd: &NodeFd, times: &Timestamps) -> Result<()> {
    let fd = match fd {
        NodeFd::Open(file) => return rustix::fs::futimens(file, times).map_err(errno),
        NodeFd::Kept(fd) => fd,
    };
    match rustix::fs::utimensat(fd, "", times, AtFlags::EMPTY_PATH) {
        // Before Linux 5.8.
        Err(rustix::io::Errno::INVAL) => {
            rustix::fs::utimensat(CWD, proc_path(fd), times, AtFlags::empty()).map_err(errno)
        }
        done => done.map_err(errno),
    }
}

fn chmod_path(fd: &impl AsFd, mode: u32) -> Result<()> {
    rustix::fs::chmodat(CWD, proc_path(fd), Mode::from_raw_mode(mode), AtFlags::empty()).map_err(errno)
}

/// A path that leads to what the descriptor names, a symbolic link itself included.
fn proc_path(fd: &impl AsFd) -> String {
    use std::os::fd::AsRawFd;
    format!("/proc/self/fd/{}", fd.as_fd().as_raw_fd())
}

fn stat_fd(fd: &impl AsFd) -> Result<Statx> {
    let wanted = StatxFlags::BASIC_STATS | StatxFlags::BTIME;
    rustix::fs::statx(fd, "", AtFlags::EMPTY_PATH, wanted).map_err(errno)
}

fn stat_name(dir: &OwnedFd, name: &OsStr) -> Result<Statx> {
    let wanted = StatxFlags::BASIC_STATS | StatxFlags::BTIME;
    rustix::fs::statx(dir, name, AtFlags::SYMLINK_NOFOLLOW, wanted).map_err(errno)
}

fn identity(stat: &Statx, has_births: bool) -> Identity {
    let time = (stat.stx_btime.tv_sec, stat.stx_btime.tv_nsec);
    let btime = if has_births { time } else { (0, 0) };
    Identity { device: (stat.stx_dev_major, stat.stx_dev_minor), inode: stat.stx_ino, btime }
}

fn attr(stat: &Statx) -> Attr {
    let mode = u32::from(stat.stx_mode);
    let time = |time: &rustix::fs::StatxTimestamp| Timestamp { seconds: time.tv_sec, nanos: time.tv_nsec };
    let flag = |flag| stat.stx_attributes.contains(flag);
    let has_btime = stat.stx_mask & StatxFlags::BTIME.bits() != 0;
    Attr {
        st_ino: stat.stx_ino,
        st_dev: Some(Device { major: stat.stx_dev_major, minor: stat.stx_dev_minor }),
        kind: Kind::from_mode(mode).unwrap_or(Kind::File),
        perm: Perm::from_mode(mode),
        nlink: stat.stx_nlink,
        uid: stat.stx_uid,
        gid: stat.stx_gid,
        rdev: Device { major: stat.stx_rdev_major, minor: stat.stx_rdev_minor },
        size: stat.stx_size,
        blocks: stat.stx_blocks,
        blksize: stat.stx_blksize,
        atime: time(&stat.stx_atime),
        mtime: time(&stat.stx_mtime),
        ctime: time(&stat.stx_ctime),
        btime: has_btime.then(|| time(&stat.stx_btime)),
        flags: FileFlags {
            immutable: flag(StatxAttributes::IMMUTABLE),
            append_only: flag(StatxAttributes::APPEND),
            no_dump: flag(StatxAttributes::NODUMP),
            compressed: flag(StatxAttributes::COMPRESSED),
            encrypted: flag(StatxAttributes::ENCRYPTED),
            verity: flag(StatxAttributes::VERITY),
        },
    }
}

fn timespec(time: Option<SetTime>) -> Timespec {
    match time {
        None => Timespec { tv_sec: 0, tv_nsec: UTIME_OMIT },
        Some(SetTime::Now) => Timespec { tv_sec: 0, tv_nsec: UTIME_NOW },
        Some(SetTime::To(time)) => Timespec { tv_sec: time.seconds, tv_nsec: time.nanos.into() },
    }
}

fn open_flags(flags: OpenFlags) -> OFlags {
    match (flags.read, flags.write) {
        (true, true) => OFlags::RDWR,
        (false, true) => OFlags::WRONLY,
        _ => OFlags::RDONLY,
    }
}

/// Of what the system keeps, only ACLs are passed on.
fn check_xattr_name(name: &OsStr) -> Result<()> {
    let is_acl = name == "system.posix_acl_access" || name == DEFAULT_ACL;
    if !is_acl && name.as_bytes().starts_with(b"system.") { Err(Errno::EOPNOTSUPP) } else { Ok(()) }
}

/// The mode with which a node is made in a directory. If that has a default ACL, the umask is not applied.
fn initial_mode(dir: &OwnedFd, new: &NewNode) -> Mode {
    let is_masked = new.masked() != new.perm;
    let by_acl = is_masked && new.kind != Kind::Symlink && has_default_acl(dir);
    Mode::from_raw_mode(if by_acl { new.perm } else { new.masked() }.bits())
}

fn has_default_acl(dir: &OwnedFd) -> bool {
    let acl = rustix::fs::getxattr(proc_path(dir), DEFAULT_ACL, &mut [0_u8; 64][..]);
    // A longer one does not fit, but is there.
    matches!(acl, Ok(1..) | Err(rustix::io::Errno::RANGE))
}

fn errno(error: rustix::io::Errno) -> Errno {
    Errno::from_raw(error.raw_os_error())
}

/// A name that a node was seen under leads nowhere, or to a symbolic link, any more.
fn stale(error: Errno) -> Errno {
    match error {
        Errno::ENOENT | Errno::ENOTDIR | Errno::ELOOP => Errno::ESTALE,
        error => error,
    }
}

fn gone(error: rustix::io::Errno) -> Errno {
    stale(errno(error))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_nobody_refers_to_is_not_remembered() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir_all(dir.path().join("a/b/c")).unwrap();
        let tree = HostDir::keeping(dir.path(), 2).unwrap();
        let look = |parent, name: &str| tree.lookup(parent, OsStr::new(name)).unwrap().ino;
        let a = look(Ino::ROOT, "a");
        let b = look(a, "b");
        let c = look(b, "c");
        assert!(tree.opendir(c).unwrap().is_some());
        tree.forget(a, 1);
        tree.forget(b, 1);
        assert_eq!(
            tree.table.lock().count(),
            (4, 3),
            "the names above a node stay; the root and two others are open"
        );
        assert!(tree.getattr(c).is_ok());
        tree.forget(c, 1);
        assert_eq!(tree.table.lock().count(), (1, 1));
    }
}
