//! A tree that is served without a mount point: its files are opened relative to a descriptor of the mount's root.
//!
//! The mount is made with the new calls (`fsopen(2)`, `fsmount(2)`, Linux 5.2), and nobody finds it by a path: for a view engine, which opens
//! files there and hands the descriptors to others.
//!
//! Making it takes CAP_SYS_ADMIN over the own mount namespace. A process of its own gets that ([`enter_namespaces`]), and sends both
//! descriptors to the one that serves. It has a second task. A process that opens files on a mount that it serves itself, and is killed
//! meanwhile, never ends: its thread waits for an answer that nobody gives, and keeps the device open. So the process that made the mount
//! keeps it in its own namespace, and aborts it (`MNT_FORCE`) when the main thread of the one that serves is gone. Hence also: that main
//! thread must never wait for the mount.

use std::ffi::OsStr;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::Duration;

use fuser::{INodeNo, Notifier, Session};
use nix::sched::CloneFlags;
use nix::unistd::{getegid, geteuid};
use rustix::mount::{FsMountFlags, FsOpenFlags, MountAttrFlags};
use veduta_api::{Errno, Filesystem, Ino, MountError};

use crate::host::Host;
use crate::mount::{Allow, MountOptions};
use crate::pool::{self, Shared};

/// How long the kernel may take to let go of a mount that nobody uses.
const PATIENCE: Duration = Duration::from_millis(200);

/// How long drivers may take to come back at the end.
const LAST_CALLS: Duration = Duration::from_secs(10);

/// KiB; how far the kernel reads ahead. Its default for FUSE is 128.
const READ_AHEAD: &str = "1024";

/// A FUSE mount that is in no directory, and not served yet.
#[derive(Debug)]
pub struct DetachedMount {
    /// `/dev/fuse`, on which the kernel's first request waits.
    pub device: OwnedFd,
    /// The mount's root.
    pub root: OwnedFd,
}

impl DetachedMount {
    /// Makes one, whose root is a directory. Permissions are not checked by the kernel: whoever opens files there does.
    pub fn new(options: &MountOptions) -> Result<Self, MountError> {
        let device =
            std::fs::OpenOptions::new().read(true).write(true).open("/dev/fuse").map_err(|error| {
                let errno = error.raw_os_error().map_or(Errno::EIO, Errno::from_raw);
                MountError::system(errno, format!("/dev/fuse cannot be opened: {error}"))
            })?;
        let refused = |what: &'static str| {
            move |errno: rustix::io::Errno| {
                let errno = Errno::from_raw(errno.raw_os_error());
                MountError::system(errno, format!("{what}: {}", errno.desc()))
            }
        };
        let context = rustix::mount::fsopen("fuse", FsOpenFlags::FSOPEN_CLOEXEC)
            .map_err(refused("fsopen(2) is not permitted"))?;
        let set = |key: &str, value: &str| rustix::mount::fsconfig_set_string(context.as_fd(), key, value);
        let all = || {
            rustix::mount::fsconfig_set_string(context.as_fd(), "source", options.source.as_os_str())?;
            set("subtype", &options.subtype)?;
            set("fd", &device.as_raw_fd().to_string())?;
            set("rootmode", "40000")?;
            set("user_id", &geteuid().to_string())?;
            set("group_id", &getegid().to_string())?;
            if options.allow != Allow::Owner {
                rustix::mount::fsconfig_set_flag(context.as_fd(), "allow_other")?;
            }
            if options.read_only {
                rustix::mount::fsconfig_set_flag(context.as_fd(), "ro")?;
            }
            rustix::mount::fsconfig_create(context.as_fd())
        };
        all().map_err(refused("the kernel refuses a FUSE mount"))?;
        let mut attributes = MountAttrFlags::empty();
        for (wanted, attribute) in [
            (options.read_only, MountAttrFlags::MOUNT_ATTR_RDONLY),
            (!options.suid, MountAttrFlags::MOUNT_ATTR_NOSUID),
            (!options.dev, MountAttrFlags::MOUNT_ATTR_NODEV),
            (options.noexec, MountAttrFlags::MOUNT_ATTR_NOEXEC),
            (options.noatime, MountAttrFlags::MOUNT_ATTR_NOATIME),
        ] {
            attributes.set(attribute, wanted);
        }
        let root = rustix::mount::fsmount(context.as_fd(), FsMountFlags::FSMOUNT_CLOEXEC, attributes)
            .map_err(refused("fsmount(2) fails"))?;
        Ok(Self { device: device.into(), root })
    }
}

/// Gives the calling process, which has one thread, a mount namespace of its own in which it may mount. Where it may not as it is (`true`),
/// it becomes root of a user namespace, in which its user and group keep their numbers and nobody else has any.
pub fn enter_namespaces() -> Result<bool, MountError> {
    let alone = nix::sched::unshare(CloneFlags::CLONE_NEWNS).is_err();
    if alone {
        enter_user_namespace()?;
    }
    let private = rustix::mount::MountPropagationFlags::PRIVATE | rustix::mount::MountPropagationFlags::REC;
    rustix::mount::mount_change("/", private).map_err(|errno| {
        let errno = Errno::from_raw(errno.raw_os_error());
        MountError::system(errno, format!("a mount namespace cannot be made private: {}", errno.desc()))
    })?;
    Ok(alone)
}

fn enter_user_namespace() -> Result<(), MountError> {
    let (uid, gid) = (geteuid(), getegid());
    nix::sched::unshare(CloneFlags::CLONE_NEWUSER | CloneFlags::CLONE_NEWNS).map_err(|errno| {
        MountError::system(errno, format!("user namespaces are not allowed: {}", errno.desc()))
    })?;
    let write = |path: &str, text: String| {
        std::fs::write(path, text).map_err(|error| {
            let errno = error.raw_os_error().map_or(Errno::EIO, Errno::from_raw);
            MountError::system(errno, format!("{path}: {error}"))
        })
    };
    write("/proc/self/setgroups", "deny".into())?;
    write("/proc/self/uid_map", format!("{uid} {uid} 1"))?;
    write("/proc/self/gid_map", format!("{gid} {gid} 1"))
}

/// A tree that is served on a mount in no directory, by threads of this process. It ends when it is dropped; descriptors that are
/// still open find it gone.
pub struct Detached {
    root: Option<OwnedFd>,
    device: u64,
    shared: Arc<Shared>,
    host: Arc<Host>,
    notifier: Notifier,
}

impl Detached {
    /// Serves `tree` on `mount`. The kernel holds back no writes: what was written is in the tree when `write(2)` returns.
    pub fn serve(
        tree: Arc<dyn Filesystem>,
        mount: DetachedMount,
        options: &MountOptions,
        workers: usize,
    ) -> Result<Self, MountError> {
        let shared = Arc::new(Shared::new());
        let host = Host::new(tree, options.read_only, options.allow, Arc::clone(&shared)).writing_through();
        let failed =
            |what: &str, error: std::io::Error| MountError::system(Errno::EIO, format!("{what}: {error}"));
        let session = Session::from_fd(host, mount.device)
            .map_err(|error| failed("the kernel and we do not agree on a protocol", error))?;
        let session = Arc::new(session);
        let host = Arc::clone(session.filesystem());
        host.set_notifier(session.notifier());
        let notifier = session.notifier();
        pool::start(session, &shared, pool::Crew::new(Some(workers)))
            .map_err(|error| failed("no threads can be started", error))?;
        let device = nix::sys::stat::fstat(mount.root.as_fd())
            .map_err(|errno| MountError::system(errno, errno.desc()))?
            .st_dev;
        let (major, minor) = (nix::sys::stat::major(device), nix::sys::stat::minor(device));
        // Only root may; it makes sequential reads of large files faster.
        let _ = std::fs::write(format!("/sys/class/bdi/{major}:{minor}/read_ahead_kb"), READ_AHEAD);
        Ok(Self { root: Some(mount.root), device, shared, host, notifier })
    }

    /// The root, relative to which files are opened. Not from a thread that serves this tree.
    pub fn root(&self) -> Option<BorrowedFd<'_>> {
        self.root.as_ref().map(AsFd::as_fd)
    }

    /// The device number of the mount's files.
    pub fn device(&self) -> u64 {
        self.device
    }

    /// The kernel forgets the attributes of a node, which were changed in the tree itself.
    pub fn forget_attributes(&self, ino: Ino) {
        // An error means that it knows no such node.
        let _ = self.notifier.inval_inode(INodeNo(ino.0), -1, 0);
    }

    /// The kernel forgets a range of a node's content, which was changed in the tree itself, and the attributes. `len` 0: to the end.
    pub fn forget_content(&self, ino: Ino, offset: u64, len: u64) {
        let number = |value: u64| i64::try_from(value).unwrap_or(i64::MAX);
        let _ = self.notifier.inval_inode(INodeNo(ino.0), number(offset), number(len));
    }

    /// The kernel forgets what a name in the root leads to.
    pub fn forget_name(&self, name: &OsStr) {
        let _ = self.notifier.inval_entry(INodeNo(Ino::ROOT.0), name);
    }

    /// Has the kernel send what shared mappings have stored.
    pub fn write_back(&self) -> Result<(), Errno> {
        let Some(root) = self.root() else { return Ok(()) };
        let work = || {
            let flags = rustix::fs::OFlags::DIRECTORY | rustix::fs::OFlags::CLOEXEC;
            let root = rustix::fs::openat(root, ".", flags, rustix::fs::Mode::empty())
                .map_err(|errno| Errno::from_raw(errno.raw_os_error()))?;
            nix::unistd::syncfs(root)
        };
        // In a thread of its own, since the main thread may not wait for the mount.
        std::thread::scope(|scope| scope.spawn(work).join().unwrap_or(Err(Errno::EIO)))
    }

    /// Ends it.
    fn end(&mut self) {
        self.root = None;
        self.shared.wait_ended(Some(PATIENCE));
        self.shared.running.interrupt_all();
        if !self.shared.wait_quiet(LAST_CALLS) {
            tracing::error!("the driver does not come back from a call; what it has not written may be lost");
            return;
        }
        self.host.close_all();
    }
}

impl Drop for Detached {
    fn drop(&mut self) {
        if catch_unwind(AssertUnwindSafe(|| self.end())).is_err() {
            tracing::error!("the driver panicked while its files were closed");
        }
    }
}
