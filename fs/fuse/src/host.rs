//! The host: from the kernel's requests to calls of the contract, and back.
//!
//! Every request takes the same way. It is entered in the table of running requests, so that it can be interrupted; the driver
//! is called, and a panic of it becomes `EIO`; the result is turned into a reply, unless the watcher has
//! replied meanwhile (see [`crate::running`]), in which case what the result holds (references, open files) is given back.
//!
//! Node ids are the contract's node numbers, handles are those of [`crate::handles`] or 0, and an offset within a directory is
//! the driver's position plus 2, since `.` and `..` are ours.

mod changes;
mod convert;
mod files;
mod requests;

use std::collections::{HashMap, HashSet};
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use fuser::{FileAttr, Generation, INodeNo, Notifier, ReplyEntry};
use nix::libc;
use parking_lot::Mutex;
use veduta_api::{
    Attr, Changes, Device, Entry, Errno, Facts, Filesystem, Ino, Kind, NewNode, Perm, Result, Timestamp,
};

use self::convert::to_errno;
use crate::backing::Backings;
use crate::handles::{FilesByIno, Handles, OpenDir, OpenFile};
use crate::mount::Allow;
use crate::policy::{Change, Policy};
use crate::pool::Shared;

/// Bytes; the largest request for data, which is what the kernel allows without a sysctl.
const MAX_DATA: u32 = 1 << 20;

/// Requests that the kernel may have under way for read-ahead and writeback.
const MAX_BACKGROUND: u16 = 64;

/// `setxattr(2)` takes no more.
const MAX_XATTR: usize = 65_536;

const CAPABILITY: &str = "security.capability";
const ACCESS_ACL: &str = "system.posix_acl_access";

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
    writers: Mutex<Writers>,
    /// Nodes whose content was put into the kernel's cache, or was not to be.
    filled: Mutex<HashSet<Ino>>,
    /// When a directory of a shared tree was last listed with attributes, and how long they last if it is watched.
    listed: Mutex<HashMap<Ino, (Instant, Option<Duration>)>>,
    /// The kernel can be told to ask again for a name.
    expires: AtomicBool,
    /// The tree tells of what others change.
    is_told: AtomicBool,
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

#[derive(Default)]
struct Writers {
    by_ino: HashMap<Ino, usize>,
    /// How often a file was opened to write, or cut.
    count: u64,
    /// How often one that was open to write was closed.
    closed: u64,
}

/// What came of a request, and whether the worker is to reply.
type Answer<T> = (bool, Result<T, fuser::Errno>);

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
            filled: Mutex::default(),
            listed: Mutex::default(),
            expires: AtomicBool::new(false),
            is_told: AtomicBool::new(false),
            skip_open: AtomicBool::new(false),
            skip_opendir: AtomicBool::new(false),
            no_xattrs,
            guarded: AtomicBool::new(false),
            closed: AtomicBool::new(false),
            capabilities: AtomicU64::new(1),
        }
    }

    /// The same, where the kernel may hold back no writes.
    pub(crate) fn writing_through(mut self) -> Self {
        self.policy.writeback = false;
        self
    }

    pub(crate) fn set_notifier(&self, notifier: Notifier) {
        let _ = self.notifier.set(notifier);
    }

    /// Has the tree tell of what others change in it, if it can, and the kernel can be told. Once there is a notifier.
    pub(crate) fn follow(self: &Arc<Self>) {
        if self.policy.shared && self.expires.load(Ordering::Relaxed) {
            let own: Arc<dyn Changes> = self.clone();
            self.is_told.store(self.fs.tell(Arc::downgrade(&own)), Ordering::Relaxed);
        }
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

    /// `closings`, `watched`: [`Host::closings`] and [`Host::watched`] from before the entry was looked up.
    fn reply_entry(
        &self,
        answer: Answer<Entry>,
        closings: u64,
        watched: Option<Duration>,
        reply: ReplyEntry,
    ) {
        match answer {
            (true, Ok(entry)) => {
                let attr = self.attr(&entry.attr);
                let (ino, generation) = (INodeNo(entry.ino.0), Generation(entry.generation));
                let ttl = self.attr_ttl(entry.ino, closings, lasting(watched, &entry.attr));
                let entry_ttl = watched.unwrap_or(self.policy.entry_ttl);
                let sent = reply.entry(ino, generation, &attr, ttl, entry_ttl);
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
}

impl Changes for Host {
    fn name(&self, dir: Ino, name: &OsStr) {
        // An error means that the kernel knows no such name.
        let _ = self.notifier.get().map(|kernel| kernel.expire_entry(INodeNo(dir.0), name));
    }

    /// The kernel compares times before it uses content that it has; a listing it does not keep after this.
    fn node(&self, ino: Ino) {
        self.listed.lock().remove(&ino);
        let _ = self.notifier.get().map(|kernel| kernel.inval_inode(INodeNo(ino.0), -1, 0));
    }
}

/// How long attributes last of what a name in a directory leads to that is watched. One of a directory change with what is in that, those of a
/// file with several names may be changed through another.
fn lasting(watched: Option<Duration>, attr: &Attr) -> Option<Duration> {
    watched.filter(|_| attr.kind != Kind::Directory && attr.nlink == 1)
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
