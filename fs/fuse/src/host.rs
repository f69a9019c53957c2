//! The host: from the kernel's requests to calls of the contract, and back.
//!
//! Every request takes the same way. It is entered in the table of running requests, so that it can be interrupted; the driver
//! is called, and a panic of it becomes `EIO`; the result is turned into a reply, unless the watcher has
//! replied meanwhile (see [`crate::running`]), in which case what the result holds (references, open files) is given back.
//!
//! Node ids are the contract's node numbers, handles are those of [`crate::handles`] or 0, and an offset within a directory is
//! the driver's position plus 2, since `.` and `..` are ours.

use std::collections::HashMap;
use std::ffi::OsStr;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::task::{Wake, Waker};
use std::time::Duration;

use fuser::{
    BackingId, FileAttr, FileHandle, FopenFlags, ForgetOne, Generation, INodeNo, InitFlags, IoctlFlags,
    KernelConfig, LockOwner, Notifier, PollEvents, PollNotifier, ReplyAttr, ReplyCreate, ReplyData,
    ReplyDirectory, ReplyDirectoryPlus, ReplyEmpty, ReplyEntry, ReplyIoctl, ReplyLock, ReplyLseek, ReplyOpen,
    ReplyPoll, ReplyStatfs, ReplyStatx, ReplyWrite, ReplyXattr, RequestId, TimeOrNow, WriteFlags,
};
use nix::libc;
use parking_lot::Mutex;
use veduta_api::{
    Allocate, Attr, Device, DirEntry, Entry, Errno, Facts, File, FileFlags, FileLock, Filesystem, Ino, Ioctl,
    Kind, LockKind, NewNode, OpenFlags, Perm, Ready, RenameFlags, Result, Seek, SetAttr, SetTime, Timestamp,
    XattrMode,
};

use crate::backing::Backings;
use crate::handles::{DataPath, FilesByIno, Handles, OpenDir, OpenFile};
use crate::listing::Listing;
use crate::mount::Allow;
use crate::policy::{Change, Policy, dirent_type};
use crate::pool::Shared;

/// Bytes; the largest request for data, which is what the kernel allows without a sysctl.
const MAX_DATA: u32 = 1 << 20;

/// Requests that the kernel may have under way for read-ahead and writeback.
const MAX_BACKGROUND: u16 = 64;

/// `setxattr(2)` takes no more.
const MAX_XATTR: usize = 65_536;

const CAPABILITY: &str = "security.capability";
const ACCESS_ACL: &str = "system.posix_acl_access";

thread_local! {
    /// What a worker reads into; grows to the largest read and stays.
    static READ_BUFFER: std::cell::RefCell<Vec<u8>> = const { std::cell::RefCell::new(Vec::new()) };
}

/// One tree, served to the kernel.
pub(crate) struct Host {
    fs: Arc<dyn Filesystem>,
    facts: Facts,
    policy: Policy,
    allow: Allow,
    owner: u32,
    shared: Arc<Shared>,
    notifier: OnceLock<Notifier>,
    files: Handles<OpenFile>,
    dirs: Handles<OpenDir>,
    by_ino: FilesByIno,
    backings: Backings,
    /// Files that are open for writing, by node: the kernel may hold back what was written to them.
    writers: Mutex<HashMap<Ino, usize>>,
    /// The kernel can do without `open`, and without `opendir`. Cleared once a tree turns out to need them.
    skip_open: AtomicBool,
    skip_opendir: AtomicBool,
    /// The tree has no extended attributes at all.
    no_xattrs: bool,
    /// Some node has been seen with `chattr +i` or `+a`, so that every change must be checked.
    guarded: AtomicBool,
    /// The mount has ended: nothing is asked of the driver any more.
    closed: AtomicBool,
    /// Counts settings of capabilities. A file that is written loses its own.
    capabilities: AtomicU64,
}

/// What came of a request, and whether the worker is to reply.
type Answer<T> = (bool, Result<T, fuser::Errno>);

/// Replies with what a request came to, where only a value or an error goes out.
macro_rules! answer {
    ($answer:expr, $reply:ident, $value:pat => $send:expr) => {
        match $answer {
            (false, _) => $reply.abandon(),
            (true, Ok($value)) => {
                let _ = $send;
            }
            (true, Err(errno)) => $reply.error(errno),
        }
    };
}

impl Host {
    pub(crate) fn new(fs: Arc<dyn Filesystem>, read_only: bool, allow: Allow, shared: Arc<Shared>) -> Self {
        let facts = fs.facts();
        let policy = Policy::new(&facts, read_only);
        let no_xattrs = policy.immutable && !facts.acl && has_no_xattrs(&*fs);
        Self {
            fs,
            facts,
            policy,
            allow,
            owner: nix::unistd::geteuid().as_raw(),
            shared,
            notifier: OnceLock::new(),
            files: Handles::new(),
            dirs: Handles::new(),
            by_ino: FilesByIno::new(),
            backings: Backings::new(),
            writers: Mutex::default(),
            skip_open: AtomicBool::new(false),
            skip_opendir: AtomicBool::new(false),
            no_xattrs,
            guarded: AtomicBool::new(false),
            closed: AtomicBool::new(false),
            capabilities: AtomicU64::new(1),
        }
    }

    pub(crate) fn set_notifier(&self, notifier: Notifier) {
        let _ = self.notifier.set(notifier);
    }

    /// Drops whatever is open, and lets no more requests through. For the end of a mount.
    pub(crate) fn close_all(&self) {
        self.closed.store(true, Ordering::Release);
        let close = || {
            drop(self.files.drain());
            drop(self.dirs.drain());
            self.by_ino.clear();
        };
        if catch_unwind(AssertUnwindSafe(close)).is_err() {
            tracing::error!("the driver panicked while its files were closed");
        }
    }

    /// Serves one request: see the head of this file. `abandon`: whether the caller may get `EINTR` while the
    /// driver goes on, since nothing comes of it but an answer.
    fn serve<T>(
        &self,
        request: &fuser::Request,
        op: &'static str,
        ino: INodeNo,
        abandon: bool,
        work: impl FnOnce() -> Result<T>,
    ) -> Answer<T> {
        let span = tracing::warn_span!("request", op, ino = ino.0, pid = request.pid());
        let _entered = span.enter();
        if self.allow == Allow::Root
            && request.uid() != self.owner
            && request.uid() != 0
            && !is_kernels_own(op)
        {
            return (true, Err(fuser::Errno::EACCES));
        }
        if self.closed.load(Ordering::Acquire) {
            return (true, Err(fuser::Errno::ENODEV));
        }
        let serving = self.shared.running.begin(request.unique().0, request.pid(), abandon);
        let result = catch_unwind(AssertUnwindSafe(work)).unwrap_or_else(|_| {
            tracing::error!("the driver panicked; the request fails with an I/O error, and the mount stays");
            Err(Errno::EIO)
        });
        let ours = serving.finish();
        match &result {
            Ok(_) => tracing::debug!("ok"),
            Err(errno) => tracing::debug!(error = errno.desc(), "failed"),
        }
        (ours, result.map_err(to_errno))
    }

    /// As [`serve`](Self::serve), for what changes something; refused on a read-only mount.
    fn change<T>(
        &self,
        request: &fuser::Request,
        op: &'static str,
        ino: INodeNo,
        work: impl FnOnce() -> Result<T>,
    ) -> Answer<T> {
        self.serve(request, op, ino, false, || if self.policy.read_only { Err(Errno::EROFS) } else { work() })
    }

    // --- Names, nodes, attributes

    /// The kernel has split the path, but a name is checked all the same: it goes into formats on disk.
    fn name<'a>(&self, name: &'a OsStr) -> Result<&'a OsStr> {
        let bytes = name.as_bytes();
        if bytes.len() > self.facts.name_max as usize {
            return Err(Errno::ENAMETOOLONG);
        }
        if matches!(bytes, b"" | b"." | b"..") || bytes.iter().any(|byte| matches!(byte, b'/' | 0)) {
            return Err(Errno::EINVAL);
        }
        Ok(name)
    }

    fn attr(&self, attr: &Attr) -> FileAttr {
        if attr.flags.immutable || attr.flags.append_only {
            self.guarded.store(true, Ordering::Relaxed);
        }
        let time = |time: Timestamp| fuser::Timestamp { secs: time.seconds, nanos: time.nanos };
        FileAttr {
            ino: attr.st_ino,
            size: attr.size,
            blocks: attr.blocks,
            atime: time(attr.atime),
            mtime: time(attr.mtime),
            ctime: time(attr.ctime),
            mode: attr.mode(),
            nlink: attr.nlink,
            uid: attr.uid,
            gid: attr.gid,
            rdev: attr.rdev.to_linux(),
            blksize: attr.blksize,
        }
    }

    /// Refuses a change to a node with `chattr +i` or `+a`, which the kernel's FUSE does not know.
    fn guard(&self, ino: Ino, change: Change) -> Result<()> {
        if !self.guarded.load(Ordering::Relaxed) {
            return Ok(());
        }
        let flags = self.fs.getattr(ino)?.flags;
        match change {
            _ if flags.immutable => Err(Errno::EPERM),
            Change::Any if flags.append_only => Err(Errno::EPERM),
            _ => Ok(()),
        }
    }

    /// The same for a name that is to go: neither the directory nor what it leads to may be protected.
    fn guard_name(&self, parent: Ino, name: &OsStr) -> Result<()> {
        if !self.guarded.load(Ordering::Relaxed) {
            return Ok(());
        }
        self.guard(parent, Change::Any)?;
        let entry = self.fs.lookup(parent, name)?;
        self.fs.forget(entry.ino, 1);
        let flags = entry.attr.flags;
        if flags.immutable || flags.append_only { Err(Errno::EPERM) } else { Ok(()) }
    }

    /// A new node as its creator wants it, with the group of a set-group-id directory.
    fn new_node(
        &self,
        request: &fuser::Request,
        parent: Ino,
        mode: u32,
        umask: u32,
        rdev: u32,
    ) -> Result<NewNode> {
        self.guard(parent, Change::Append)?;
        let kind = Kind::from_mode(mode).unwrap_or(Kind::File);
        let mut new = NewNode {
            kind,
            perm: Perm::from_mode(mode),
            umask,
            uid: request.uid(),
            gid: request.gid(),
            rdev: Device::from_linux(rdev),
        };
        let above = self.fs.getattr(parent)?;
        if above.perm.bits() & libc::S_ISGID != 0 {
            new.gid = above.gid;
            if kind == Kind::Directory {
                new.perm = Perm::from_mode(mode | libc::S_ISGID);
            }
        }
        Ok(new)
    }

    fn reply_entry(&self, answer: Answer<Entry>, reply: ReplyEntry) {
        match answer {
            (true, Ok(entry)) => {
                let attr = self.attr(&entry.attr);
                let (ino, generation) = (INodeNo(entry.ino.0), Generation(entry.generation));
                let sent = reply.entry(ino, generation, &attr, self.policy.attr_ttl, self.policy.entry_ttl);
                if !sent {
                    self.forget_quietly(entry.ino, 1);
                }
            }
            (true, Err(errno)) => reply.error(errno),
            (false, result) => {
                reply.abandon();
                if let Ok(entry) = result {
                    self.forget_quietly(entry.ino, 1);
                }
            }
        }
    }

    fn forget_quietly(&self, ino: Ino, count: u64) {
        if catch_unwind(AssertUnwindSafe(|| self.fs.forget(ino, count))).is_err() {
            tracing::error!(ino = ino.0, "the driver panicked in forget");
        }
    }

    // --- Open files

    /// The file of a request: by its handle or, where nothing is ever opened, by its node.
    fn file(&self, ino: INodeNo, handle: FileHandle) -> Result<Arc<OpenFile>> {
        if handle.0 != 0 {
            return self.files.find(handle.0);
        }
        let ino = Ino(ino.0);
        if let Some(file) = self.by_ino.find(ino) {
            return Ok(file);
        }
        let file = self.fs.open(ino, OpenFlags::READ)?;
        Ok(self.by_ino.insert(self.open_file(ino, file, false, DataPath::Direct)))
    }

    fn open_file(&self, ino: Ino, file: Arc<dyn File>, writable: bool, path: DataPath) -> OpenFile {
        OpenFile { ino, file, writable, path, uncapped: AtomicU64::new(0) }
    }

    /// How the kernel is to reach the data of a file that is about to be open.
    fn data_path(&self, ino: Ino, file: &Arc<dyn File>, direct: bool) -> DataPath {
        if !self.policy.passthrough || !self.facts.backing {
            return if direct { DataPath::Direct } else { DataPath::Cached };
        }
        let register = || {
            let fd = file.backing()?;
            match self.notifier.get()?.open_backing(fd) {
                Ok(id) => Some(id),
                Err(error) => {
                    tracing::debug!("the kernel does not take a backing file: {error}");
                    self.backings.give_up();
                    None
                }
            }
        };
        self.backings.enter(ino, direct, register)
    }

    fn open_flags(&self, path: &DataPath, writable: bool) -> FopenFlags {
        let mut flags = FopenFlags::empty();
        match path {
            DataPath::Direct => flags |= FopenFlags::FOPEN_DIRECT_IO,
            DataPath::Cached if !self.policy.shared => flags |= FopenFlags::FOPEN_KEEP_CACHE,
            DataPath::Cached | DataPath::Backing(_) => {}
        }
        if !writable && !self.facts.remote_locks {
            flags |= FopenFlags::FOPEN_NOFLUSH;
        }
        flags
    }

    fn backing_of(path: &DataPath) -> Option<&BackingId> {
        if let DataPath::Backing(id) = path { Some(id) } else { None }
    }

    /// Content whose length nobody knows before it is read, such as an info file: the page cache would end at size 0.
    fn is_unsized(&self, ino: Ino) -> bool {
        self.policy.shared && self.fs.getattr(ino).is_ok_and(|attr| attr.size == 0 && attr.kind == Kind::File)
    }

    /// A file that is written loses its capabilities; the kernel leaves that to us together with set-user-id.
    fn drop_capabilities(&self, file: &OpenFile) {
        let epoch = self.capabilities.load(Ordering::Acquire);
        if file.uncapped.swap(epoch, Ordering::AcqRel) != epoch {
            let _ = self.fs.removexattr(file.ino, OsStr::new(CAPABILITY));
        }
    }

    /// Puts a file into the table of handles.
    fn keep(&self, file: OpenFile) -> u64 {
        if file.writable && self.policy.writeback {
            *self.writers.lock().entry(file.ino).or_default() += 1;
        }
        self.files.insert(file)
    }

    fn close(&self, handle: u64) {
        let Some(file) = self.files.remove(handle) else { return };
        if file.writable && self.policy.writeback {
            let mut writers = self.writers.lock();
            if let Some(count) = writers.get_mut(&file.ino) {
                *count -= 1;
                if *count == 0 {
                    writers.remove(&file.ino);
                }
            }
        }
        if self.policy.passthrough && self.facts.backing {
            self.backings.leave(file.ino, &file.path);
        }
        if catch_unwind(AssertUnwindSafe(|| drop(file))).is_err() {
            tracing::error!("the driver panicked while a file was closed");
        }
    }

    // --- Directories

    fn list(
        &self,
        ino: INodeNo,
        handle: FileHandle,
        offset: u64,
        room: usize,
        plus: bool,
    ) -> Result<Listing> {
        let dir = Ino(ino.0);
        let mut listing = Listing::new(room, plus);
        for (at, name) in [(0, "."), (1, "..")] {
            if offset <= at {
                let st_ino = self.dot(dir, name)?;
                let kind = Some(Kind::Directory);
                let entry = DirEntry { name: OsStr::new(name), ino: None, st_ino, kind, next: at + 1 };
                let _ = listing.take_dot(entry);
            }
        }
        let position = offset.saturating_sub(2);
        let mut sink = |entry: DirEntry<'_>| listing.take(entry);
        if handle.0 == 0 {
            self.fs.readdir(dir, position, &mut sink)?;
        } else {
            self.dirs.find(handle.0)?.dir.read(position, &mut sink)?;
        }
        Ok(listing)
    }

    fn dot(&self, dir: Ino, name: &str) -> Result<u64> {
        let node = if name == "." { dir } else { self.fs.parent(dir).unwrap_or(dir) };
        Ok(self.fs.getattr(node)?.st_ino)
    }

    /// What a listing's entries lead to. An entry that is gone meanwhile stays listed, without attributes.
    fn entries(&self, dir: Ino, listing: &Listing) -> Vec<Option<Entry>> {
        let find = |entry: DirEntry<'_>| {
            let found = self.fs.entry(dir, &entry).ok()?;
            (found.ino.0 != 0).then_some(found)
        };
        listing.iter().map(|(is_dot, entry)| if is_dot { None } else { find(entry) }).collect()
    }

    // --- Changes

    fn do_setattr(&self, ino: Ino, changes: &SetAttr) -> Result<Attr> {
        self.guard(ino, Change::of(changes))?;
        if changes.size.is_some_and(|size| size > self.facts.size_max) {
            return Err(Errno::EFBIG);
        }
        let attr = self.fs.setattr(ino, changes)?;
        if changes.drop_set_id {
            let _ = self.fs.removexattr(ino, OsStr::new(CAPABILITY));
        }
        Ok(attr)
    }

    fn do_write(&self, file: &OpenFile, offset: u64, data: &[u8], drop_set_id: bool) -> Result<usize> {
        let Some(room) = self.facts.size_max.checked_sub(offset).filter(|room| *room > 0 || data.is_empty())
        else {
            return Err(Errno::EFBIG);
        };
        let data = &data[..data.len().min(usize::try_from(room).unwrap_or(usize::MAX))];
        if drop_set_id {
            let changes = SetAttr { drop_set_id: true, ..SetAttr::default() };
            self.fs.setattr(file.ino, &changes)?;
        }
        self.drop_capabilities(file);
        let written = file.file.write_at(data, offset)?;
        if written > data.len() {
            tracing::error!("the driver says that it wrote more than it was given");
            return Err(Errno::EIO);
        }
        Ok(written)
    }

    fn do_setxattr(
        &self,
        ino: Ino,
        name: &OsStr,
        value: &[u8],
        flags: i32,
        acl_kill_sgid: bool,
    ) -> Result<()> {
        if value.len() > MAX_XATTR {
            return Err(Errno::E2BIG);
        }
        self.guard(ino, Change::Any)?;
        let mode = match flags {
            0 => XattrMode::Set,
            libc::XATTR_CREATE => XattrMode::Create,
            libc::XATTR_REPLACE => XattrMode::Replace,
            _ => return Err(Errno::EINVAL),
        };
        self.fs.setxattr(ino, name, value, mode)?;
        if name == CAPABILITY {
            self.capabilities.fetch_add(1, Ordering::AcqRel);
        }
        if acl_kill_sgid && name == ACCESS_ACL {
            let perm = self.fs.getattr(ino)?.perm.bits() & !libc::S_ISGID;
            let changes = SetAttr { perm: Some(Perm::from_mode(perm)), ..SetAttr::default() };
            self.fs.setattr(ino, &changes)?;
        }
        Ok(())
    }

    /// `ioctl(2)`. What the driver does not know but the contract has otherwise, the flags of `chattr`, is done with that.
    fn do_ioctl(&self, ino: Ino, file: Option<&OpenFile>, ioctl: &mut Ioctl<'_>) -> Result<i32> {
        let asked = match file {
            Some(file) => file.file.ioctl(ioctl),
            None => self.fs.ioctl(ino, ioctl),
        };
        match (asked, chattr_call(ioctl.command)) {
            (Err(Errno::ENOTTY), Some(Chattr::Get)) => {
                let flags = flags_to_linux(self.fs.getattr(ino)?.flags).to_ne_bytes();
                let room = ioctl.output.len().min(flags.len());
                ioctl.output[..room].copy_from_slice(&flags[..room]);
                Ok(0)
            }
            (Err(Errno::ENOTTY), Some(Chattr::Set)) => {
                let bytes = ioctl.input.first_chunk().ok_or(Errno::EINVAL)?;
                let flags = flags_from_linux(u32::from_ne_bytes(*bytes)).ok_or(Errno::EOPNOTSUPP)?;
                if self.policy.read_only {
                    return Err(Errno::EROFS);
                }
                let attr = self.fs.setattr(ino, &SetAttr { flags: Some(flags), ..SetAttr::default() })?;
                self.attr(&attr);
                Ok(0)
            }
            (asked, _) => asked,
        }
    }

    /// Has the kernel send what it holds back of a file. It does so by itself before most operations that need it, but not before
    /// `SEEK_DATA` and `SEEK_HOLE` (Linux 6.18), and would then take new data for a hole. Dropping cached pages writes them first.
    fn fetch_held_back(&self, ino: Ino) {
        if !self.policy.writeback || !self.writers.lock().contains_key(&ino) {
            return;
        }
        if let Some(Err(error)) = self.notifier.get().map(|kernel| kernel.inval_inode(INodeNo(ino.0), 0, 0)) {
            tracing::debug!("the kernel did not write back: {error}");
        }
    }

    /// `SEEK_DATA` and `SEEK_HOLE` of a file that is all data, as far as its driver knows.
    fn seek_dense(&self, ino: Ino, what: Seek, offset: u64) -> Result<u64> {
        let size = self.fs.getattr(ino)?.size;
        match what {
            _ if offset >= size => Err(Errno::ENXIO),
            Seek::Data => Ok(offset),
            Seek::Hole => Ok(size),
        }
    }
}

impl fuser::Filesystem for Host {
    fn init(&mut self, _request: &fuser::Request, config: &mut KernelConfig) -> io::Result<()> {
        let mut wanted = InitFlags::FUSE_ASYNC_READ
            | InitFlags::FUSE_BIG_WRITES
            | InitFlags::FUSE_MAX_PAGES
            | InitFlags::FUSE_DONT_MASK
            | InitFlags::FUSE_ASYNC_DIO
            | InitFlags::FUSE_PARALLEL_DIROPS
            | InitFlags::FUSE_DO_READDIRPLUS
            | InitFlags::FUSE_READDIRPLUS_AUTO
            | InitFlags::FUSE_HAS_IOCTL_DIR
            | InitFlags::FUSE_HANDLE_KILLPRIV_V2
            | InitFlags::FUSE_SETXATTR_EXT
            | InitFlags::FUSE_DIRECT_IO_ALLOW_MMAP;
        for (when, flags) in [
            (self.policy.shared, InitFlags::FUSE_AUTO_INVAL_DATA),
            (!self.policy.shared, InitFlags::FUSE_CACHE_SYMLINKS | InitFlags::FUSE_EXPLICIT_INVAL_DATA),
            (self.policy.immutable, InitFlags::FUSE_NO_OPEN_SUPPORT | InitFlags::FUSE_NO_OPENDIR_SUPPORT),
            (self.policy.writeback, InitFlags::FUSE_WRITEBACK_CACHE),
            (self.facts.acl, InitFlags::FUSE_POSIX_ACL),
            (self.facts.remote_locks, InitFlags::FUSE_POSIX_LOCKS | InitFlags::FUSE_FLOCK_LOCKS),
        ] {
            if when {
                wanted |= flags;
            }
        }
        if self.policy.passthrough && self.facts.backing && config.set_max_stack_depth(1).is_ok() {
            wanted |= InitFlags::FUSE_PASSTHROUGH;
        }
        let offered = config.capabilities();
        let _ = config.add_capabilities(wanted & offered);
        let skips = |flag| self.policy.immutable && offered.contains(flag);
        self.skip_open = AtomicBool::new(skips(InitFlags::FUSE_NO_OPEN_SUPPORT));
        self.skip_opendir = AtomicBool::new(skips(InitFlags::FUSE_NO_OPENDIR_SUPPORT));
        if !offered.contains(InitFlags::FUSE_PASSTHROUGH) {
            self.backings.give_up();
        }
        let _ = config.set_max_write(MAX_DATA);
        let _ = config.set_max_background(MAX_BACKGROUND);
        let nanos = self.facts.time_granularity.clamp(1, 1_000_000_000);
        let _ = config.set_time_granularity(Duration::from_nanos(nanos.into()));
        Ok(())
    }

    fn interrupt(&self, _request: &fuser::Request, unique: RequestId) -> bool {
        self.shared.interrupt(unique.0)
    }

    fn lookup(&self, request: &fuser::Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        let answer = self.serve(request, "lookup", parent, true, || {
            let entry = self.fs.lookup(Ino(parent.0), self.name(name)?)?;
            valid(entry)
        });
        match answer {
            (true, Err(fuser::Errno::ENOENT)) if !self.policy.negative_ttl.is_zero() => {
                reply.negative(self.policy.negative_ttl);
            }
            answer => self.reply_entry(answer, reply),
        }
    }

    fn forget(&self, _request: &fuser::Request, ino: INodeNo, count: u64) {
        if self.closed.load(Ordering::Acquire) {
            return;
        }
        self.by_ino.remove(Ino(ino.0));
        self.forget_quietly(Ino(ino.0), count);
    }

    fn batch_forget(&self, request: &fuser::Request, nodes: &[ForgetOne]) {
        for node in nodes {
            self.forget(request, node.nodeid(), node.nlookup());
        }
    }

    fn getattr(&self, request: &fuser::Request, ino: INodeNo, _fh: Option<FileHandle>, reply: ReplyAttr) {
        let answer = self.serve(request, "getattr", ino, true, || self.fs.getattr(Ino(ino.0)));
        answer!(answer, reply, attr => reply.attr(&self.policy.attr_ttl, &self.attr(&attr)));
    }

    fn statx(
        &self,
        request: &fuser::Request,
        ino: INodeNo,
        _fh: Option<FileHandle>,
        _mask: u32,
        reply: ReplyStatx,
    ) {
        let answer = self.serve(request, "statx", ino, true, || self.fs.getattr(Ino(ino.0)));
        answer!(answer, reply, attr => {
            let birth = attr.btime.map(|time| fuser::Timestamp { secs: time.seconds, nanos: time.nanos });
            reply.statx(&self.policy.attr_ttl, &self.attr(&attr), birth);
        });
    }

    fn setattr(
        &self,
        request: &fuser::Request,
        ino: INodeNo,
        mode: Option<u32>,
        uid: Option<u32>,
        gid: Option<u32>,
        size: Option<u64>,
        atime: Option<TimeOrNow>,
        mtime: Option<TimeOrNow>,
        ctime: Option<fuser::Timestamp>,
        _fh: Option<FileHandle>,
        drop_set_id: bool,
        reply: ReplyAttr,
    ) {
        let moment = |time: fuser::Timestamp| Timestamp { seconds: time.secs, nanos: time.nanos };
        let time = |time| match time {
            TimeOrNow::SpecificTime(time) => SetTime::To(moment(time)),
            TimeOrNow::Now => SetTime::Now,
        };
        let changes = SetAttr {
            perm: mode.map(Perm::from_mode),
            uid,
            gid,
            size,
            atime: atime.map(time),
            mtime: mtime.map(time),
            ctime: ctime.map(moment),
            flags: None,
            drop_set_id,
        };
        let answer = self.change(request, "setattr", ino, || self.do_setattr(Ino(ino.0), &changes));
        answer!(answer, reply, attr => reply.attr(&self.policy.attr_ttl, &self.attr(&attr)));
    }

    fn readlink(&self, request: &fuser::Request, ino: INodeNo, reply: ReplyData) {
        let answer = self.serve(request, "readlink", ino, true, || {
            let target = self.fs.readlink(Ino(ino.0))?;
            let fits = (1..libc::PATH_MAX as usize).contains(&target.len());
            if fits && !target.as_bytes().contains(&0) { Ok(target) } else { Err(Errno::EUCLEAN) }
        });
        answer!(answer, reply, target => reply.data(target.as_bytes()));
    }

    fn mknod(
        &self,
        request: &fuser::Request,
        parent: INodeNo,
        name: &OsStr,
        mode: u32,
        umask: u32,
        rdev: u32,
        reply: ReplyEntry,
    ) {
        let answer = self.change(request, "mknod", parent, || {
            let name = self.name(name)?;
            let new = self.new_node(request, Ino(parent.0), mode, umask, rdev)?;
            valid(self.fs.mknod(Ino(parent.0), name, &new)?)
        });
        self.reply_entry(answer, reply);
    }

    fn mkdir(
        &self,
        request: &fuser::Request,
        parent: INodeNo,
        name: &OsStr,
        mode: u32,
        umask: u32,
        reply: ReplyEntry,
    ) {
        let answer = self.change(request, "mkdir", parent, || {
            let name = self.name(name)?;
            let mode = mode & 0o7777 | libc::S_IFDIR;
            let new = self.new_node(request, Ino(parent.0), mode, umask, 0)?;
            valid(self.fs.mkdir(Ino(parent.0), name, &new)?)
        });
        self.reply_entry(answer, reply);
    }

    fn symlink(
        &self,
        request: &fuser::Request,
        parent: INodeNo,
        name: &OsStr,
        target: &Path,
        reply: ReplyEntry,
    ) {
        let answer = self.change(request, "symlink", parent, || {
            let name = self.name(name)?;
            let new = self.new_node(request, Ino(parent.0), libc::S_IFLNK | 0o777, 0, 0)?;
            valid(self.fs.symlink(Ino(parent.0), name, target.as_os_str(), &new)?)
        });
        self.reply_entry(answer, reply);
    }

    fn link(&self, request: &fuser::Request, ino: INodeNo, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        let answer = self.change(request, "link", ino, || {
            let name = self.name(name)?;
            self.guard(Ino(ino.0), Change::Any)?;
            self.guard(Ino(parent.0), Change::Append)?;
            valid(self.fs.link(Ino(ino.0), Ino(parent.0), name)?)
        });
        self.reply_entry(answer, reply);
    }

    fn unlink(&self, request: &fuser::Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        let answer = self.change(request, "unlink", parent, || {
            let name = self.name(name)?;
            self.guard_name(Ino(parent.0), name)?;
            self.fs.unlink(Ino(parent.0), name)
        });
        answer!(answer, reply, () => reply.ok());
    }

    fn rmdir(&self, request: &fuser::Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        let answer = self.change(request, "rmdir", parent, || {
            let name = self.name(name)?;
            self.guard_name(Ino(parent.0), name)?;
            self.fs.rmdir(Ino(parent.0), name)
        });
        answer!(answer, reply, () => reply.ok());
    }

    fn rename(
        &self,
        request: &fuser::Request,
        parent: INodeNo,
        name: &OsStr,
        new_parent: INodeNo,
        new_name: &OsStr,
        flags: fuser::RenameFlags,
        reply: ReplyEmpty,
    ) {
        let answer = self.change(request, "rename", parent, || {
            let (name, new_name) = (self.name(name)?, self.name(new_name)?);
            let flags = RenameFlags {
                no_replace: flags.contains(fuser::RenameFlags::RENAME_NOREPLACE),
                exchange: flags.contains(fuser::RenameFlags::RENAME_EXCHANGE),
                whiteout: flags.contains(fuser::RenameFlags::RENAME_WHITEOUT),
            };
            self.guard_name(Ino(parent.0), name)?;
            self.guard(Ino(new_parent.0), Change::Append)?;
            match self.guard_name(Ino(new_parent.0), new_name) {
                Ok(()) | Err(Errno::ENOENT) => {}
                Err(errno) => return Err(errno),
            }
            self.fs.rename(Ino(parent.0), name, Ino(new_parent.0), new_name, flags)
        });
        answer!(answer, reply, () => reply.ok());
    }

    fn open(&self, request: &fuser::Request, ino: INodeNo, flags: fuser::OpenFlags, reply: ReplyOpen) {
        let node = Ino(ino.0);
        let wanted = open_flags(flags.0);
        let answer = self.serve(request, "open", ino, !wanted.write, || {
            if wanted.write {
                if self.policy.read_only {
                    return Err(Errno::EROFS);
                }
                let append = flags.0 & libc::O_APPEND != 0 && flags.0 & libc::O_TRUNC == 0;
                self.guard(node, if append { Change::Append } else { Change::Any })?;
            }
            let unsized_ = self.is_unsized(node);
            let file = self.fs.open(node, wanted)?;
            if self.skip_open.load(Ordering::Relaxed) {
                if file.backing().is_none() {
                    return Ok(Opened::Never(self.open_file(node, file, false, DataPath::Direct)));
                }
                self.skip_open.store(false, Ordering::Relaxed);
            }
            let path = self.data_path(node, &file, unsized_);
            Ok(Opened::File(self.open_file(node, file, wanted.write, path)))
        });
        match answer {
            (true, Ok(Opened::File(file))) => {
                let (path, flags) = (file.path.clone(), self.open_flags(&file.path, file.writable));
                let handle = self.keep(file);
                if !reply.opened(FileHandle(handle), flags, Self::backing_of(&path)) {
                    self.close(handle);
                }
            }
            (true, Ok(Opened::Never(file))) => {
                self.by_ino.insert(file);
                // The kernel takes ENOSYS for "open is not needed", and does not ask again.
                reply.error(fuser::Errno::ENOSYS);
            }
            (true, Err(errno)) => reply.error(errno),
            (false, result) => {
                reply.abandon();
                if let Ok(Opened::File(file)) = result {
                    let handle = self.keep(file);
                    self.close(handle);
                }
            }
        }
    }

    fn create(
        &self,
        request: &fuser::Request,
        parent: INodeNo,
        name: &OsStr,
        mode: u32,
        umask: u32,
        flags: i32,
        reply: ReplyCreate,
    ) {
        let answer = self.change(request, "create", parent, || {
            let name = self.name(name)?;
            let new = self.new_node(request, Ino(parent.0), mode & 0o7777 | libc::S_IFREG, umask, 0)?;
            match self.fs.create(Ino(parent.0), name, &new, open_flags(flags)) {
                // Somebody else was faster. ESTALE has the kernel look the name up again, and open what it finds.
                Err(Errno::EEXIST) if flags & libc::O_EXCL == 0 => Err(Errno::ESTALE),
                made => made,
            }
        });
        self.reply_created(answer, open_flags(flags), reply);
    }

    fn tmpfile(
        &self,
        request: &fuser::Request,
        parent: INodeNo,
        mode: u32,
        umask: u32,
        flags: i32,
        reply: ReplyCreate,
    ) {
        let answer = self.change(request, "tmpfile", parent, || {
            let new = self.new_node(request, Ino(parent.0), mode & 0o7777 | libc::S_IFREG, umask, 0)?;
            self.fs.tmpfile(Ino(parent.0), &new, open_flags(flags))
        });
        self.reply_created(answer, open_flags(flags), reply);
    }

    fn read(
        &self,
        request: &fuser::Request,
        ino: INodeNo,
        handle: FileHandle,
        offset: u64,
        size: u32,
        _flags: fuser::OpenFlags,
        _owner: Option<LockOwner>,
        reply: ReplyData,
    ) {
        let size = size.min(MAX_DATA) as usize;
        READ_BUFFER.with_borrow_mut(|buffer| {
            if buffer.len() < size {
                buffer.resize(size, 0);
            }
            let buffer = &mut buffer[..size];
            let answer = self.serve(request, "read", ino, true, || {
                let read = self.file(ino, handle)?.file.read_at(buffer, offset)?;
                if read > size {
                    tracing::error!("the driver says that it read more than was asked for");
                    return Err(Errno::EIO);
                }
                Ok(read)
            });
            answer!(answer, reply, read => reply.data(&buffer[..read]));
        });
    }

    fn write(
        &self,
        request: &fuser::Request,
        ino: INodeNo,
        handle: FileHandle,
        offset: u64,
        data: &[u8],
        write_flags: WriteFlags,
        _flags: fuser::OpenFlags,
        _owner: Option<LockOwner>,
        reply: ReplyWrite,
    ) {
        let answer = self.change(request, "write", ino, || {
            let drop_set_id = write_flags.contains(WriteFlags::FUSE_WRITE_KILL_SUIDGID);
            let written = self.do_write(&*self.file(ino, handle)?, offset, data, drop_set_id)?;
            Ok(u32::try_from(written).unwrap_or(u32::MAX))
        });
        answer!(answer, reply, written => reply.written(written));
    }

    fn flush(
        &self,
        request: &fuser::Request,
        ino: INodeNo,
        handle: FileHandle,
        owner: LockOwner,
        reply: ReplyEmpty,
    ) {
        if self.policy.immutable && !self.facts.remote_locks {
            // "Not needed": the kernel does not ask again.
            return reply.error(fuser::Errno::ENOSYS);
        }
        let answer = self.serve(request, "flush", ino, false, || {
            let file = self.file(ino, handle)?;
            self.unlock_all(&file, owner);
            if file.writable { file.file.flush() } else { Ok(()) }
        });
        answer!(answer, reply, () => reply.ok());
    }

    fn release(
        &self,
        request: &fuser::Request,
        ino: INodeNo,
        handle: FileHandle,
        _flags: fuser::OpenFlags,
        owner: LockOwner,
        unlock: bool,
        _flush: bool,
        reply: ReplyEmpty,
    ) {
        let answer = self.serve(request, "release", ino, false, || {
            if unlock {
                self.unlock_all(&*self.file(ino, handle)?, owner);
            }
            self.close(handle.0);
            Ok(())
        });
        answer!(answer, reply, () => reply.ok());
    }

    fn fsync(
        &self,
        request: &fuser::Request,
        ino: INodeNo,
        handle: FileHandle,
        data_only: bool,
        reply: ReplyEmpty,
    ) {
        if self.policy.immutable {
            return reply.error(fuser::Errno::ENOSYS);
        }
        let answer = self.serve(request, "fsync", ino, false, || {
            let file = self.file(ino, handle)?;
            if self.policy.read_only { Ok(()) } else { file.file.sync(data_only) }
        });
        answer!(answer, reply, () => reply.ok());
    }

    fn opendir(&self, request: &fuser::Request, ino: INodeNo, _flags: fuser::OpenFlags, reply: ReplyOpen) {
        let answer = self.serve(request, "opendir", ino, true, || self.fs.opendir(Ino(ino.0)));
        let flags = if self.policy.shared {
            FopenFlags::empty()
        } else {
            FopenFlags::FOPEN_CACHE_DIR | FopenFlags::FOPEN_KEEP_CACHE
        };
        match answer {
            (true, Ok(None)) if self.skip_opendir.load(Ordering::Relaxed) => {
                reply.error(fuser::Errno::ENOSYS);
            }
            (true, Ok(None)) => {
                reply.opened(FileHandle(0), flags, None);
            }
            (true, Ok(Some(dir))) => {
                self.skip_opendir.store(false, Ordering::Relaxed);
                let handle = self.dirs.insert(OpenDir { dir });
                if !reply.opened(FileHandle(handle), flags, None) {
                    self.close_dir(handle);
                }
            }
            (true, Err(errno)) => reply.error(errno),
            (false, _) => reply.abandon(),
        }
    }

    fn readdir(
        &self,
        request: &fuser::Request,
        ino: INodeNo,
        handle: FileHandle,
        offset: u64,
        mut reply: ReplyDirectory,
    ) {
        let room = reply.room();
        let answer =
            self.serve(request, "readdir", ino, true, || self.list(ino, handle, offset, room, false));
        answer!(answer, reply, listing => {
            for (is_dot, entry) in listing.iter() {
                let next = if is_dot { entry.next } else { entry.next.saturating_add(2) };
                if reply.add(INodeNo(entry.st_ino), next, dirent_type(entry.kind), entry.name) {
                    break;
                }
            }
            reply.ok();
        });
    }

    fn readdirplus(
        &self,
        request: &fuser::Request,
        ino: INodeNo,
        handle: FileHandle,
        offset: u64,
        mut reply: ReplyDirectoryPlus,
    ) {
        let room = reply.room();
        let (ours, result) = self.serve(request, "readdirplus", ino, true, || {
            let listing = self.list(ino, handle, offset, room, true)?;
            let entries = self.entries(Ino(ino.0), &listing);
            Ok((listing, entries))
        });
        let (listing, entries) = match result {
            Ok(listed) => listed,
            Err(errno) if ours => return reply.error(errno),
            Err(_) => return reply.abandon(),
        };
        let mut taken = Vec::with_capacity(entries.len());
        for ((is_dot, listed), entry) in listing.iter().zip(&entries) {
            let next = if is_dot { listed.next } else { listed.next.saturating_add(2) };
            let attr = match entry {
                Some(entry) => self.attr(&entry.attr),
                // Without a node, only the number and the type of this are looked at.
                None => FileAttr {
                    ino: listed.st_ino,
                    mode: dirent_type(listed.kind) << 12,
                    ..FileAttr::default()
                },
            };
            let (node, generation) = entry.map_or((0, 0), |entry| (entry.ino.0, entry.generation));
            let (node, generation) = (INodeNo(node), Generation(generation));
            let (attr_ttl, entry_ttl) = (self.policy.attr_ttl, self.policy.entry_ttl);
            let full = reply.add(node, generation, next, listed.name, &attr, attr_ttl, entry_ttl);
            if full {
                break;
            }
            taken.push(entry);
        }
        let count = taken.len();
        let sent = if ours {
            reply.ok()
        } else {
            reply.abandon();
            false
        };
        let kept = if sent { count } else { 0 };
        for entry in entries.iter().skip(kept).flatten() {
            self.forget_quietly(entry.ino, 1);
        }
    }

    fn releasedir(
        &self,
        request: &fuser::Request,
        ino: INodeNo,
        handle: FileHandle,
        _flags: fuser::OpenFlags,
        reply: ReplyEmpty,
    ) {
        let answer = self.serve(request, "releasedir", ino, false, || {
            self.close_dir(handle.0);
            Ok(())
        });
        answer!(answer, reply, () => reply.ok());
    }

    fn fsyncdir(
        &self,
        request: &fuser::Request,
        ino: INodeNo,
        _handle: FileHandle,
        _data_only: bool,
        reply: ReplyEmpty,
    ) {
        if self.policy.immutable {
            return reply.error(fuser::Errno::ENOSYS);
        }
        let answer = self.serve(request, "fsyncdir", ino, false, || self.fs.sync());
        answer!(answer, reply, () => reply.ok());
    }

    fn syncfs(&self, request: &fuser::Request, ino: INodeNo, reply: ReplyEmpty) {
        let answer = self.serve(request, "syncfs", ino, false, || self.fs.sync());
        answer!(answer, reply, () => reply.ok());
    }

    fn statfs(&self, request: &fuser::Request, ino: INodeNo, reply: ReplyStatfs) {
        let answer = self.serve(request, "statfs", ino, true, || self.fs.statfs());
        answer!(answer, reply, s => reply.statfs(
            s.blocks,
            s.blocks_free,
            s.blocks_available,
            s.files,
            s.files_free,
            s.block_size,
            self.facts.name_max,
            s.block_size,
        ));
    }

    fn setxattr(
        &self,
        request: &fuser::Request,
        ino: INodeNo,
        name: &OsStr,
        value: &[u8],
        flags: i32,
        acl_kill_sgid: bool,
        reply: ReplyEmpty,
    ) {
        let answer = self.change(request, "setxattr", ino, || {
            self.do_setxattr(Ino(ino.0), name, value, flags, acl_kill_sgid)
        });
        answer!(answer, reply, () => reply.ok());
    }

    fn getxattr(&self, request: &fuser::Request, ino: INodeNo, name: &OsStr, size: u32, reply: ReplyXattr) {
        if self.no_xattrs {
            return reply.error(fuser::Errno::ENOSYS);
        }
        let answer =
            self.serve(request, "getxattr", ino, true, || fitting(self.fs.getxattr(Ino(ino.0), name)?, size));
        reply_xattr(answer, size, reply);
    }

    fn listxattr(&self, request: &fuser::Request, ino: INodeNo, size: u32, reply: ReplyXattr) {
        if self.no_xattrs {
            return reply.error(fuser::Errno::ENOSYS);
        }
        let answer = self.serve(request, "listxattr", ino, true, || {
            let mut list = Vec::new();
            for name in self.fs.listxattr(Ino(ino.0))? {
                list.extend_from_slice(name.as_bytes());
                list.push(0);
            }
            fitting(list, size)
        });
        reply_xattr(answer, size, reply);
    }

    fn removexattr(&self, request: &fuser::Request, ino: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        let answer = self.change(request, "removexattr", ino, || {
            self.guard(Ino(ino.0), Change::Any)?;
            self.fs.removexattr(Ino(ino.0), name)
        });
        answer!(answer, reply, () => reply.ok());
    }

    fn getlk(
        &self,
        request: &fuser::Request,
        ino: INodeNo,
        handle: FileHandle,
        owner: LockOwner,
        start: u64,
        end: u64,
        kind: i32,
        pid: u32,
        reply: ReplyLock,
    ) {
        let answer = self.serve(request, "getlk", ino, true, || {
            let mut lock = FileLock { kind: lock_kind(kind)?, start, end, pid };
            self.file(ino, handle)?.file.lock(owner.0, &mut lock, true, false)?;
            Ok(lock)
        });
        answer!(answer, reply, lock => {
            let kind = match lock.kind {
                LockKind::Shared => libc::F_RDLCK,
                LockKind::Exclusive => libc::F_WRLCK,
                LockKind::Unlock => libc::F_UNLCK,
            };
            reply.locked(lock.start, lock.end, kind, lock.pid);
        });
    }

    fn setlk(
        &self,
        request: &fuser::Request,
        ino: INodeNo,
        handle: FileHandle,
        owner: LockOwner,
        start: u64,
        end: u64,
        kind: i32,
        pid: u32,
        _flock: bool,
        wait: bool,
        reply: ReplyEmpty,
    ) {
        let answer = self.serve(request, "setlk", ino, false, || {
            let mut lock = FileLock { kind: lock_kind(kind)?, start, end, pid };
            self.file(ino, handle)?.file.lock(owner.0, &mut lock, false, wait)
        });
        answer!(answer, reply, () => reply.ok());
    }

    fn ioctl(
        &self,
        request: &fuser::Request,
        ino: INodeNo,
        handle: FileHandle,
        flags: IoctlFlags,
        command: u32,
        argument: u64,
        input: &[u8],
        out_size: u32,
        reply: ReplyIoctl,
    ) {
        let mut output = vec![0; out_size.min(MAX_DATA) as usize];
        let answer = self.serve(request, "ioctl", ino, false, || {
            let mut ioctl = Ioctl { command, argument, input, output: &mut output };
            if flags.contains(IoctlFlags::FUSE_IOCTL_DIR) {
                return self.do_ioctl(Ino(ino.0), None, &mut ioctl);
            }
            let file = self.file(ino, handle)?;
            self.do_ioctl(Ino(ino.0), Some(&file), &mut ioctl)
        });
        answer!(answer, reply, result => reply.ioctl(result, &output));
    }

    fn poll(
        &self,
        request: &fuser::Request,
        ino: INodeNo,
        handle: FileHandle,
        notifier: PollNotifier,
        events: PollEvents,
        flags: fuser::PollFlags,
        reply: ReplyPoll,
    ) {
        if self.policy.immutable {
            // "Always ready": the kernel does not ask again.
            return reply.error(fuser::Errno::ENOSYS);
        }
        let answer = self.serve(request, "poll", ino, true, || {
            let waker = flags
                .contains(fuser::PollFlags::FUSE_POLL_SCHEDULE_NOTIFY)
                .then(|| Waker::from(Arc::new(PollWaker(Mutex::new(Some(notifier))))));
            self.file(ino, handle)?.file.ready(ready_from(events), waker.as_ref())
        });
        answer!(answer, reply, ready => reply.poll(ready_to(ready)));
    }

    fn fallocate(
        &self,
        request: &fuser::Request,
        ino: INodeNo,
        handle: FileHandle,
        offset: u64,
        len: u64,
        mode: i32,
        reply: ReplyEmpty,
    ) {
        let answer = self.change(request, "fallocate", ino, || {
            let how = allocation(mode)?;
            if offset.checked_add(len).is_none_or(|end| end > self.facts.size_max) {
                return Err(Errno::EFBIG);
            }
            let file = self.file(ino, handle)?;
            self.drop_capabilities(&file);
            file.file.allocate(how, offset, len)
        });
        answer!(answer, reply, () => reply.ok());
    }

    fn lseek(
        &self,
        request: &fuser::Request,
        ino: INodeNo,
        handle: FileHandle,
        offset: i64,
        whence: i32,
        reply: ReplyLseek,
    ) {
        let answer = self.serve(request, "lseek", ino, true, || {
            let what = match whence {
                libc::SEEK_DATA => Seek::Data,
                libc::SEEK_HOLE => Seek::Hole,
                _ => return Err(Errno::EINVAL),
            };
            let offset = u64::try_from(offset).map_err(|_| Errno::ENXIO)?;
            self.fetch_held_back(Ino(ino.0));
            let found = match self.file(ino, handle)?.file.seek(what, offset) {
                Err(Errno::EOPNOTSUPP) => self.seek_dense(Ino(ino.0), what, offset)?,
                found => found?,
            };
            i64::try_from(found).map_err(|_| Errno::EOVERFLOW)
        });
        answer!(answer, reply, found => reply.offset(found));
    }

    fn copy_file_range(
        &self,
        request: &fuser::Request,
        from: INodeNo,
        _from_handle: FileHandle,
        offset: u64,
        to: INodeNo,
        to_handle: FileHandle,
        to_offset: u64,
        len: u64,
        _flags: fuser::CopyFileRangeFlags,
        reply: ReplyWrite,
    ) {
        // The reply has 32 bits for the count.
        let len = len.min(0xffff_f000);
        let answer = self.change(request, "copy_file_range", from, || {
            if to_offset.checked_add(len).is_none_or(|end| end > self.facts.size_max) {
                return Err(Errno::EFBIG);
            }
            self.drop_capabilities(&*self.file(to, to_handle)?);
            let copied = self.fs.copy_range(Ino(from.0), offset, Ino(to.0), to_offset, len)?;
            u32::try_from(copied).map_err(|_| Errno::EIO)
        });
        answer!(answer, reply, copied => reply.written(copied));
    }
}

impl Host {
    fn reply_created(&self, answer: Answer<(Entry, Arc<dyn File>)>, flags: OpenFlags, reply: ReplyCreate) {
        let (entry, file) = match answer {
            (_, Ok((entry, _))) if entry.ino.0 == 0 => return reply.error(fuser::Errno::EIO),
            (true, Ok(made)) => made,
            (true, Err(errno)) => return reply.error(errno),
            (false, _) => return reply.abandon(),
        };
        let path = self.data_path(entry.ino, &file, false);
        let open_flags = self.open_flags(&path, flags.write);
        let handle = self.keep(self.open_file(entry.ino, file, flags.write, path.clone()));
        let sent = reply.created(
            INodeNo(entry.ino.0),
            Generation(entry.generation),
            &self.attr(&entry.attr),
            self.policy.attr_ttl,
            self.policy.entry_ttl,
            FileHandle(handle),
            open_flags,
            Self::backing_of(&path),
        );
        if !sent {
            self.close(handle);
            self.forget_quietly(entry.ino, 1);
        }
    }

    fn close_dir(&self, handle: u64) {
        let dir = self.dirs.remove(handle);
        if catch_unwind(AssertUnwindSafe(|| drop(dir))).is_err() {
            tracing::error!("the driver panicked while a directory was closed");
        }
    }

    fn unlock_all(&self, file: &OpenFile, owner: LockOwner) {
        if self.facts.remote_locks {
            let mut all = FileLock { kind: LockKind::Unlock, start: 0, end: u64::MAX, pid: 0 };
            if let Err(errno) = file.file.lock(owner.0, &mut all, false, false) {
                tracing::warn!(error = errno.desc(), "the locks of a closed file could not be released");
            }
        }
    }
}

/// What `open` came to.
enum Opened {
    File(OpenFile),
    /// The tree needs no opening; this file serves whoever asks for its node.
    Never(OpenFile),
}

/// Wakes a poller: the kernel asks again.
struct PollWaker(Mutex<Option<PollNotifier>>);

impl Wake for PollWaker {
    fn wake(self: Arc<Self>) {
        let notifier = self.0.lock().take();
        if let Some(Err(error)) = notifier.map(PollNotifier::notify) {
            tracing::debug!("a poller could not be woken: {error}");
        }
    }
}

/// Requests that the kernel makes on its own account, without the user's identity.
fn is_kernels_own(op: &str) -> bool {
    matches!(
        op,
        "read" | "write" | "readdir" | "readdirplus" | "release" | "releasedir" | "fsync" | "fsyncdir"
    )
}

/// A driver that has no attributes under any prefix has none at all.
fn has_no_xattrs(fs: &dyn Filesystem) -> bool {
    let none = |name| fs.getxattr(Ino::ROOT, OsStr::new(name)) == Err(Errno::EOPNOTSUPP);
    let ask = || ["user.a", CAPABILITY, "trusted.a", ACCESS_ACL].into_iter().all(none);
    catch_unwind(AssertUnwindSafe(ask)).unwrap_or(false)
}

/// Node 0 would mean "absent" to the kernel.
fn valid(entry: Entry) -> Result<Entry> {
    if entry.ino.0 == 0 {
        tracing::error!("the driver named node 0, which names nothing");
        return Err(Errno::EIO);
    }
    Ok(entry)
}

fn to_errno(errno: Errno) -> fuser::Errno {
    match errno {
        // The kernel would remember it for the whole mount.
        Errno::ENOSYS => fuser::Errno::EOPNOTSUPP,
        errno => fuser::Errno::from_i32(errno as i32),
    }
}

fn open_flags(flags: i32) -> OpenFlags {
    let access = flags & libc::O_ACCMODE;
    OpenFlags {
        read: access != libc::O_WRONLY,
        write: access != libc::O_RDONLY,
        direct: flags & libc::O_DIRECT != 0,
        sync: flags & (libc::O_SYNC | libc::O_DSYNC) != 0,
    }
}

fn allocation(mode: i32) -> Result<Allocate> {
    const KEEP: i32 = libc::FALLOC_FL_KEEP_SIZE;
    const PUNCH: i32 = libc::FALLOC_FL_PUNCH_HOLE | KEEP;
    const ZERO: i32 = libc::FALLOC_FL_ZERO_RANGE;
    const ZERO_KEEP: i32 = ZERO | KEEP;
    Ok(match mode {
        0 => Allocate::Extend,
        KEEP => Allocate::KeepSize,
        PUNCH => Allocate::PunchHole,
        ZERO => Allocate::ZeroRange { keep_size: false },
        ZERO_KEEP => Allocate::ZeroRange { keep_size: true },
        libc::FALLOC_FL_COLLAPSE_RANGE => Allocate::Collapse,
        libc::FALLOC_FL_INSERT_RANGE => Allocate::Insert,
        _ => return Err(Errno::EOPNOTSUPP),
    })
}

fn lock_kind(kind: i32) -> Result<LockKind> {
    match kind {
        libc::F_RDLCK => Ok(LockKind::Shared),
        libc::F_WRLCK => Ok(LockKind::Exclusive),
        libc::F_UNLCK => Ok(LockKind::Unlock),
        _ => Err(Errno::EINVAL),
    }
}

/// An attribute that is to go into `size` bytes; 0 asks how many are needed.
fn fitting(value: Vec<u8>, size: u32) -> Result<Vec<u8>> {
    if size != 0 && value.len() > size as usize { Err(Errno::ERANGE) } else { Ok(value) }
}

fn reply_xattr(answer: Answer<Vec<u8>>, size: u32, reply: ReplyXattr) {
    answer!(answer, reply, value => match size {
        0 => reply.size(u32::try_from(value.len()).unwrap_or(u32::MAX)),
        _ => reply.data(&value),
    });
}

fn ready_from(events: PollEvents) -> Ready {
    Ready {
        readable: events.intersects(PollEvents::POLLIN | PollEvents::POLLRDNORM),
        writable: events.intersects(PollEvents::POLLOUT | PollEvents::POLLWRNORM),
        priority: events.contains(PollEvents::POLLPRI),
        ..Ready::default()
    }
}

fn ready_to(ready: Ready) -> PollEvents {
    let mut events = PollEvents::empty();
    events.set(PollEvents::POLLIN | PollEvents::POLLRDNORM, ready.readable);
    events.set(PollEvents::POLLOUT | PollEvents::POLLWRNORM, ready.writable);
    events.set(PollEvents::POLLPRI, ready.priority);
    events.set(PollEvents::POLLERR, ready.error);
    events.set(PollEvents::POLLHUP, ready.hangup);
    events
}

enum Chattr {
    Get,
    Set,
}

/// `FS_IOC_GETFLAGS` and `FS_IOC_SETFLAGS`, with the size of a `long` or of an `int` (32-bit programs).
fn chattr_call(command: u32) -> Option<Chattr> {
    match command {
        0x8008_6601 | 0x8004_6601 => Some(Chattr::Get),
        0x4008_6602 | 0x4004_6602 => Some(Chattr::Set),
        _ => None,
    }
}

/// `FS_*_FL` of `linux/fs.h`.
const FLAGS: [u32; 6] = [0x10, 0x20, 0x40, 0x4, 0x800, 0x10_0000];

fn flags_to_linux(flags: FileFlags) -> u32 {
    let set =
        [flags.immutable, flags.append_only, flags.no_dump, flags.compressed, flags.encrypted, flags.verity];
    set.into_iter().zip(FLAGS).filter(|(set, _)| *set).map(|(_, bit)| bit).sum()
}

/// `None` if a flag is among them that the contract does not have.
fn flags_from_linux(bits: u32) -> Option<FileFlags> {
    if bits & !FLAGS.iter().sum::<u32>() != 0 {
        return None;
    }
    let [immutable, append_only, no_dump, compressed, encrypted, verity] = FLAGS.map(|bit| bits & bit != 0);
    Some(FileFlags { immutable, append_only, no_dump, compressed, encrypted, verity })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_flag_of_chattr_survives_both_ways() {
        for bit in FLAGS {
            assert_eq!(flags_to_linux(flags_from_linux(bit).unwrap()), bit);
        }
        assert_eq!(flags_from_linux(0x8_0000), None);
    }

    #[test]
    fn an_unknown_way_to_allocate_is_refused() {
        assert_eq!(allocation(libc::FALLOC_FL_PUNCH_HOLE), Err(Errno::EOPNOTSUPP));
        assert_eq!(allocation(libc::FALLOC_FL_PUNCH_HOLE | 1), Ok(Allocate::PunchHole));
    }

    #[test]
    fn a_driver_cannot_make_the_kernel_remember_enosys() {
        assert_eq!(to_errno(Errno::ENOSYS), fuser::Errno::EOPNOTSUPP);
        assert_eq!(to_errno(Errno::UnknownErrno), fuser::Errno::EIO);
    }
}
