//! The kernel-FUSE plane: files of virtual trees as files of the kernel.
//!
//! A tree that gets here is also served by the FUSE host, on threads of its own, on a mount in a namespace
//! that nobody else sees ([`veduta_fuse::Detached`]). The engine opens files there and hands the descriptors to processes; what is done with them then, reading,
//! writing, mapping, running, locking, is the kernel's, with its page cache, and is not caught.
//!
//! What a path means stays the engine's affair, so the mount has no paths: its root holds each node that somebody opened under
//! its number. There is nothing to keep in step when something is renamed, and no way from there to anywhere else.
//!
//! # Who remembers what
//!
//! The kernel keeps content and sizes; it holds no writes back, so what was written is in the tree when `write(2)` returns, and
//! `stat(2)` by path or descriptor is answered from the tree. Sizes are changed through the kernel once it knows a node; other changes
//! that the engine makes to a tree are followed by a notice to the kernel. Stores into shared mappings reach the tree when the kernel writes
//! them: at `msync(2)`, `fsync(2)`, the last close, or when it finds time.
//!
//! A node is held as long as the kernel remembers it. Its number leads to nothing once it has lost a name, so that storage is given back
//! at the last close.
//!
//! # Locks
//!
//! `Nodes::known` is taken alone. No lock is held over a call of the kernel that leads to the plane: those who serve it take it too.
//! Threads that serve a plane never open anything on one.
//!
//! # Limits
//!
//! Directories, `O_PATH` descriptors, device nodes, trees on which other mounts stand, and programs whose interpreter is virtual too
//! are as on the emulated plane. `mount -o remount,noexec` does not keep those who have a file open from mapping it as a program.

use std::collections::HashMap;
use std::ffi::{OsStr, OsString};
use std::io::{IoSlice, IoSliceMut};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};
use std::task::{Wake, Waker};

use nix::errno::Errno;
use nix::fcntl::OFlag;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use parking_lot::{Mutex, RwLock};
use rustix::fs::{Mode, OFlags, ResolveFlags};
use rustix::mount::{MountFlags, MoveMountFlags, UnmountFlags};
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, SocketFlags, SocketType,
};
use veduta_api::{
    Attr, Directory, Entry, Facts, File, Filesystem, Ino, Interrupt, Ioctl, Kind, MountError, OpenFlags,
    Perm, Result, SetAttr, StatFs, XattrMode,
};
use veduta_fuse::{Allow, Detached, DetachedMount, MountOptions};
use veduta_trace::raw;

use crate::mounts::{Mount, Service};
use crate::node::Node;
use crate::standin::{Key, StandIn};

/// What names on a plane begin with; a node's number follows.
const PREFIX: &str = ".veduta-fuse-";
/// Threads that serve one tree.
const WORKERS: usize = 2;
/// Nodes of one tree that the kernel may remember without having them open.
const MANY: usize = 16_384;

/// Which planes a view has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Choice {
    /// Backing, then this one, then the emulated one.
    Any,
    /// This one alone.
    Fuse,
    /// Backing, then the emulated one.
    Backing,
    /// The emulated one alone.
    Emulated,
}

impl Choice {
    /// What `VEDUTA_PLANE` asks for.
    pub(crate) fn from_environment() -> std::result::Result<Self, MountError> {
        let Some(word) = std::env::var_os("VEDUTA_PLANE") else { return Ok(Choice::Any) };
        match word.as_bytes() {
            b"" => Ok(Choice::Any),
            b"fuse" => Ok(Choice::Fuse),
            b"backing" => Ok(Choice::Backing),
            b"emulated" => Ok(Choice::Emulated),
            _ => Err(MountError::usage(format!(
                "VEDUTA_PLANE is {word:?}; there are: fuse, backing, emulated"
            ))),
        }
    }
}

/// Makes the planes of a view.
pub(crate) struct Planes {
    /// Which are wanted.
    pub choice: Choice,
    helper: Helper,
    by_device: RwLock<HashMap<u64, Arc<Plane>>>,
    /// Why there are none.
    refused: OnceLock<String>,
    /// There is at least one.
    used: AtomicBool,
}

/// The plane of a mount, or of several that show the same tree; made when it is first needed.
pub(crate) type Cell = Arc<OnceLock<Option<Arc<Plane>>>>;

impl Planes {
    /// None yet. The caller has one thread.
    pub(crate) fn start(choice: Choice) -> Result<Self> {
        Ok(Self {
            choice,
            helper: Helper::start()?,
            by_device: RwLock::default(),
            refused: OnceLock::new(),
            used: AtomicBool::new(false),
        })
    }

    /// Whether none was asked for by name.
    pub(crate) fn is_free(&self) -> bool {
        self.choice == Choice::Any
    }

    /// Whether files with a descriptor of the host are handed out as such.
    pub(crate) fn takes_backing(&self) -> bool {
        matches!(self.choice, Choice::Any | Choice::Backing)
    }

    /// Whether a plane can be had for a mount's files, as far as that is known without trying.
    fn may_have(&self, mount: &Mount) -> bool {
        matches!(self.choice, Choice::Any | Choice::Fuse)
            && matches!(mount.service, Service::Tree)
            && !mount.is_hidden
            && !mount.is_source.load(Ordering::Acquire)
            && (self.refused.get().is_none() || mount.plane.get().is_some())
    }

    /// The plane of a mount; `None` if it has none.
    pub(crate) fn of(&self, mount: &Mount) -> Option<Arc<Plane>> {
        if !self.may_have(mount) {
            return None;
        }
        mount.plane.get_or_init(|| self.make(mount)).clone()
    }

    /// A mount is made: where planes are asked for, finds out whether they can be had. Otherwise that is found out when a file is
    /// opened, since a trial takes longer than the start of a view.
    pub(crate) fn probe(&self, mount: &Mount) -> std::result::Result<(), MountError> {
        let is_forced = self.choice == Choice::Fuse;
        if is_forced && !self.used.load(Ordering::Acquire) {
            self.of(mount);
        }
        match self.refusal() {
            Some(why) if is_forced => {
                Err(MountError::unsupported(format!("VEDUTA_PLANE=fuse is not possible here: {why}")))
            }
            _ => Ok(()),
        }
    }

    /// Why no plane can be made: asked after one was refused.
    pub(crate) fn refusal(&self) -> Option<&str> {
        self.refused.get().map(String::as_str)
    }

    fn make(&self, mount: &Mount) -> Option<Arc<Plane>> {
        match self.try_make(mount) {
            Ok(plane) => {
                self.by_device.write().insert(plane.served.device(), Arc::clone(&plane));
                self.used.store(true, Ordering::Release);
                Some(plane)
            }
            Err(error) => {
                tracing::info!("no kernel-FUSE plane: {}", error.message);
                let _ = self.refused.set(error.message);
                None
            }
        }
    }

    fn try_make(&self, mount: &Mount) -> std::result::Result<Arc<Plane>, MountError> {
        let mut options = MountOptions::new(&mount.source, "veduta");
        // A bind of what is read-only shows a tree that others may write to.
        options.read_only = mount.is_read_only() && mount.alias.is_none();
        options.noexec = mount.no_exec.load(Ordering::Relaxed) && mount.alias.is_none();
        let wish = [MAKE, u8::from(options.read_only), u8::from(options.noexec)];
        let (text, fds) = self.helper.ask(&wish)?;
        let Ok([device, root]) = <[OwnedFd; 2]>::try_from(fds) else {
            return Err(MountError::system(Errno::EPERM, text));
        };
        let made = DetachedMount { device, root };
        let (kind, number) = text.split_once(' ').unwrap_or_default();
        options.allow = if kind == ALONE { Allow::Owner } else { Allow::Everyone };
        // Numbers that a user namespace does not have would make files unwritable. What is shown comes from the tree in any case.
        let (uid, gid) = (nix::unistd::geteuid(), nix::unistd::getegid());
        let owner = (kind == ALONE || !has_all_users()).then_some((uid.as_raw(), gid.as_raw()));
        let nodes = Arc::new(Nodes {
            tree: Arc::clone(&mount.tree),
            known: Mutex::default(),
            owner,
            crowd: AtomicUsize::new(MANY),
            closed: AtomicBool::new(false),
        });
        let tree: Arc<dyn Filesystem> = Arc::clone(&nodes) as _;
        let served = Detached::serve(tree, made, &options, WORKERS)?;
        Ok(Arc::new(Plane { nodes, served, number: number.parse().unwrap_or(0) }))
    }

    /// The root of an empty filesystem that is mounted nowhere, and ends when this is closed.
    pub(crate) fn empty_tree(&self) -> std::result::Result<OwnedFd, MountError> {
        let (text, fds) = self.helper.ask(&[EMPTY, 0, 0])?;
        fds.into_iter().next().ok_or_else(|| MountError::system(Errno::EPERM, text))
    }

    /// What a file of a plane stands for.
    pub(crate) fn find(&self, key: Key) -> Option<Arc<StandIn>> {
        if !self.used.load(Ordering::Acquire) {
            return None;
        }
        let plane = Arc::clone(self.by_device.read().get(&key.0)?);
        let known = plane.nodes.known.lock();
        known.get(&Ino(key.1)).map(|known| Arc::clone(&known.stand_in))
    }

    /// Whether there are none.
    pub(crate) fn is_empty(&self) -> bool {
        !self.used.load(Ordering::Acquire)
    }

    /// Another mount stands on the tree of this one, and changes it in ways that the kernel is not told of: from now on its files are
    /// emulated.
    pub(crate) fn leave(&self, mount: &Mount) {
        mount.is_source.store(true, Ordering::Release);
        if let Some(Some(plane)) = mount.plane.get() {
            plane.let_go();
        }
    }

    /// The end of a mount whose tree ends with it.
    pub(crate) fn end(&self, mount: &Mount) {
        let Some(Some(plane)) = mount.plane.get() else { return };
        if let Err(errno) = plane.served.write_back() {
            tracing::error!("what shared mappings have stored: {}", errno.desc());
        }
        self.by_device.write().remove(&plane.served.device());
        plane.close();
        let [low, high] = plane.number.to_le_bytes();
        if let Err(error) = self.helper.ask(&[END, low, high]) {
            tracing::warn!("{}", error.message);
        }
    }
}

/// Whether all users have their own numbers here: that is so outside of user namespaces.
fn has_all_users() -> bool {
    let map = std::fs::read_to_string("/proc/self/uid_map").unwrap_or_default();
    map.split_ascii_whitespace().eq(["0", "0", "4294967295"]) && nix::unistd::geteuid().is_root()
}

/// The process that mounts, in a namespace of its own.
struct Helper(Mutex<OwnedFd>);

/// What it is asked: to make a mount (read-only? noexec?), to end one (number), to make an empty filesystem.
const MAKE: u8 = 1;
const END: u8 = 2;
const EMPTY: u8 = 3;
/// How its mounts are made: so that all processes may use them, or only those of its user and group.
const OPEN: &str = "open";
const ALONE: &str = "alone";
/// Bytes; its answers are shorter.
const ANSWER: usize = 512;

impl Helper {
    /// Starts it. The caller is the main thread, and there is no other.
    fn start() -> Result<Self> {
        let (ours, theirs) =
            rustix::net::socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)
                .map_err(errno)?;
        match veduta_trace::spawn::fork_server()? {
            Some(_) => Ok(Self(Mutex::new(ours))),
            None => {
                drop(ours);
                let _ = help(&theirs);
                std::process::exit(0);
            }
        }
    }

    /// Asks it something: what it says, and the descriptors of what it made.
    fn ask(&self, wish: &[u8; 3]) -> std::result::Result<(String, Vec<OwnedFd>), MountError> {
        let lost = |error: rustix::io::Errno| {
            let error = errno(error);
            MountError::system(error, format!("the helper that mounts does not answer: {}", error.desc()))
        };
        let socket = self.0.lock();
        rustix::net::send(&*socket, wish, SendFlags::NOSIGNAL).map_err(lost)?;
        let mut text = [0; ANSWER];
        let mut space = [std::mem::MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(2))];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let mut parts = [IoSliceMut::new(&mut text)];
        let message = rustix::net::recvmsg(&*socket, &mut parts, &mut control, RecvFlags::CMSG_CLOEXEC);
        let len = message.map_err(lost)?.bytes;
        let fds = control.drain().filter_map(|message| match message {
            RecvAncillaryMessage::ScmRights(fds) => Some(fds),
            _ => None,
        });
        let fds = fds.flatten().collect();
        match len {
            0 => Err(lost(rustix::io::Errno::PIPE)),
            _ => Ok((String::from_utf8_lossy(&text[..len]).into_owned(), fds)),
        }
    }
}

fn errno(errno: rustix::io::Errno) -> Errno {
    Errno::from_raw(errno.raw_os_error())
}

/// The helper's life. It ends its mounts when it ends.
fn help(socket: &OwnedFd) -> Result<()> {
    // What ends the engine's main thread, and signals of the terminal, are not to end us.
    let signals = SigSet::from(Signal::SIGTERM);
    signals.thread_block()?;
    let deaths = SignalFd::with_flags(&signals, SfdFlags::SFD_CLOEXEC)?;
    raw::die_with_parent(Signal::SIGTERM)?;
    // A terminal or pipe that the view has is not to be kept open by us.
    let null = std::fs::OpenOptions::new().read(true).write(true).open("/dev/null");
    let null = null.map_err(crate::standin::errno)?;
    for dup in [rustix::stdio::dup2_stdin, rustix::stdio::dup2_stdout, rustix::stdio::dup2_stderr] {
        dup(&null).map_err(errno)?;
    }
    let (mut alone, mut space) = (None, None);
    let mut wish = [0; 3];
    loop {
        let mut fds =
            [PollFd::new(socket.as_fd(), PollFlags::POLLIN), PollFd::new(deaths.as_fd(), PollFlags::POLLIN)];
        match poll(&mut fds, PollTimeout::NONE) {
            Err(Errno::EINTR) => continue,
            polled => polled?,
        };
        if fds[1].any().unwrap_or(true) {
            break;
        }
        match rustix::net::recv(socket, &mut wish[..], RecvFlags::empty()) {
            Ok((_, 3)) => {}
            _ => break,
        }
        let alone = alone.get_or_insert_with(veduta_fuse::enter_namespaces).clone();
        let made = alone.and_then(|alone| {
            if wish[0] == EMPTY {
                return empty_tree().map(|root| (String::from("made"), vec![root]));
            }
            match (space.get_or_insert_with(|| Space::new(alone)), wish[0]) {
                (Ok(space), MAKE) => space
                    .make(wish[1] != 0, wish[2] != 0)
                    .map(|(text, made)| (text, vec![made.device, made.root])),
                (Ok(space), _) => {
                    space.end(u16::from_le_bytes([wish[1], wish[2]]));
                    Ok((String::from("ended"), Vec::new()))
                }
                (Err(error), _) => Err(error.clone()),
            }
        });
        answer(socket, made)?;
    }
    if let Some(Ok(space)) = space {
        space.abort();
    }
    Ok(())
}

/// Sends what was made, or why nothing was.
fn answer(socket: &OwnedFd, made: std::result::Result<(String, Vec<OwnedFd>), MountError>) -> Result<()> {
    let (text, made) = made.unwrap_or_else(|error| (error.message, Vec::new()));
    let mut space = [std::mem::MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(2))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    let fds: Vec<_> = made.iter().map(AsFd::as_fd).collect();
    if !fds.is_empty() {
        control.push(SendAncillaryMessage::ScmRights(&fds));
    }
    let text = &text.as_bytes()[..text.len().min(ANSWER)];
    let sent = rustix::net::sendmsg(socket, &[IoSlice::new(text)], &mut control, SendFlags::NOSIGNAL);
    sent.map(drop).map_err(errno)
}

/// A tmpfs of its own, which is nowhere. The caller may mount.
fn empty_tree() -> std::result::Result<OwnedFd, MountError> {
    use rustix::mount::{FsMountFlags, FsOpenFlags, MountAttrFlags};
    let all = || {
        let context = rustix::mount::fsopen("tmpfs", FsOpenFlags::FSOPEN_CLOEXEC)?;
        rustix::mount::fsconfig_set_string(context.as_fd(), "mode", "700")?;
        rustix::mount::fsconfig_create(context.as_fd())?;
        let attributes = MountAttrFlags::MOUNT_ATTR_NOSUID
            | MountAttrFlags::MOUNT_ATTR_NODEV
            | MountAttrFlags::MOUNT_ATTR_NOEXEC;
        rustix::mount::fsmount(context.as_fd(), FsMountFlags::FSMOUNT_CLOEXEC, attributes)
    };
    all().map_err(|error| {
        let error = errno(error);
        MountError::system(error, format!("no tmpfs can be made: {}", error.desc()))
    })
}

/// Mounts that nobody else sees, each in a directory whose name is its number.
struct Space {
    kind: &'static str,
    home: PathBuf,
    numbers: Vec<u16>,
    next: u16,
}

impl Space {
    /// None yet, in the namespaces that the caller has entered. Makes sure that mounts can be aborted there.
    fn new(alone: bool) -> std::result::Result<Self, MountError> {
        let kind = if alone { ALONE } else { OPEN };
        let failed = |what: &'static str| {
            move |error: rustix::io::Errno| {
                let error = errno(error);
                MountError::system(error, format!("{what}: {}", error.desc()))
            }
        };
        let candidates = ["/tmp", "/dev", "/run", "/proc"].map(PathBuf::from);
        let home = candidates.into_iter().find(|path| path.is_dir());
        let home = home.ok_or_else(|| MountError::unsupported("there is no directory to mount in"))?;
        rustix::mount::mount("view", &home, "tmpfs", MountFlags::NOSUID, c"mode=700,size=1m")
            .map_err(failed("no tmpfs can be mounted"))?;
        let mut space = Self { kind, home, numbers: Vec::new(), next: 0 };
        let trial = space.make(false, false)?;
        // Kernels that want more for this would leave the engine hanging one day when it is killed.
        match rustix::mount::unmount(space.home.join("0"), UnmountFlags::FORCE) {
            Ok(()) | Err(rustix::io::Errno::BUSY) => {}
            Err(error) => return Err(failed("a mount cannot be aborted")(error)),
        }
        drop(trial);
        space.end(0);
        Ok(space)
    }

    fn make(
        &mut self,
        read_only: bool,
        noexec: bool,
    ) -> std::result::Result<(String, DetachedMount), MountError> {
        let mut options = MountOptions::new("view", "veduta");
        (options.read_only, options.noexec) = (read_only, noexec);
        options.allow = if self.kind == ALONE { Allow::Owner } else { Allow::Everyone };
        let made = DetachedMount::new(&options)?;
        let number = self.next;
        self.next = number.checked_add(1).ok_or_else(|| MountError::unsupported("too many mounts"))?;
        let point = self.home.join(number.to_string());
        let failed =
            |error: Errno| MountError::system(error, format!("the mount has no place: {}", error.desc()));
        std::fs::create_dir(&point).map_err(|error| failed(crate::standin::errno(error)))?;
        let flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH;
        rustix::mount::move_mount(made.root.as_fd(), "", rustix::fs::CWD, &point, flags)
            .map_err(|error| failed(errno(error)))?;
        self.numbers.push(number);
        Ok((format!("{} {number}", self.kind), made))
    }

    /// Lets go of a mount, which ends with its last descriptor.
    fn end(&mut self, number: u16) {
        self.numbers.retain(|known| *known != number);
        let point = self.home.join(number.to_string());
        let _ = rustix::mount::unmount(&point, UnmountFlags::DETACH);
        let _ = std::fs::remove_dir(point);
    }

    /// Nobody serves them any more: whoever waits for an answer gets an error.
    fn abort(&self) {
        for number in &self.numbers {
            let _ = rustix::mount::unmount(self.home.join(number.to_string()), UnmountFlags::FORCE);
        }
    }
}

/// A tree as the kernel has it.
pub(crate) struct Plane {
    nodes: Arc<Nodes>,
    served: Detached,
    /// What the helper calls it.
    number: u16,
}

impl Plane {
    /// The device number of its files.
    pub(crate) fn device(&self) -> u64 {
        self.served.device()
    }

    /// Opens a node, which is a regular file. `file`: the driver has opened it already. Errors are those of the driver.
    pub(crate) fn open(
        &self,
        node: &Arc<Node>,
        flags: OFlag,
        file: Option<Arc<dyn File>>,
    ) -> Result<OwnedFd> {
        let root = self.served.root().ok_or(Errno::ENODEV)?;
        let kept = OFlag::O_ACCMODE
            | OFlag::O_APPEND
            | OFlag::O_NONBLOCK
            | OFlag::O_SYNC
            | OFlag::O_DSYNC
            | OFlag::O_DIRECT
            | OFlag::O_NOATIME
            | OFlag::O_TRUNC;
        let flags = OFlags::from_bits_retain((flags & kept).bits() as u32) | OFlags::CLOEXEC;
        self.nodes.pin(node, file, self.served.device());
        let name = name_of(node.ino);
        let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS;
        let opened = rustix::fs::openat2(root, &name, flags, Mode::empty(), resolve);
        let crowded = self.nodes.unpin(node.ino);
        if crowded {
            self.let_go();
        }
        opened.map_err(|errno| Errno::from_raw(errno.raw_os_error()))
    }

    /// Whether the kernel may know something of a node.
    pub(crate) fn knows(&self, ino: Ino) -> bool {
        self.nodes.known.lock().contains_key(&ino)
    }

    /// What processes hold for a node.
    pub(crate) fn stand_in(&self, ino: Ino) -> Option<Arc<StandIn>> {
        self.nodes.known.lock().get(&ino).map(|known| Arc::clone(&known.stand_in))
    }

    /// The attributes of a node were changed in the tree.
    pub(crate) fn changed(&self, ino: Ino) {
        if self.knows(ino) {
            self.served.forget_attributes(outer(ino));
        }
    }

    /// Content of a node was changed in the tree.
    pub(crate) fn written(&self, ino: Ino, offset: u64, len: u64) {
        if self.knows(ino) {
            self.served.forget_content(outer(ino), offset, len);
        }
    }

    /// A node has lost a name, perhaps its last.
    pub(crate) fn unlinked(&self, ino: Ino) {
        if self.knows(ino) {
            self.served.forget_attributes(outer(ino));
            self.served.forget_name(&name_of(ino));
        }
    }

    /// Has the kernel send what shared mappings have stored.
    pub(crate) fn write_back(&self) -> Result<()> {
        self.served.write_back()
    }

    /// Has the kernel forget what it has not open: too many are known.
    fn let_go(&self) {
        let numbers: Vec<Ino> = self.nodes.known.lock().keys().copied().collect();
        for ino in numbers {
            self.served.forget_name(&name_of(ino));
        }
    }

    fn close(&self) {
        self.nodes.closed.store(true, Ordering::Release);
        self.let_go();
        let known = std::mem::take(&mut *self.nodes.known.lock());
        drop(known);
    }
}

/// What the kernel calls a node in the root.
fn name_of(ino: Ino) -> OsString {
    format!("{PREFIX}{}", ino.0).into()
}

/// Whether the text of a link of `/proc` may be that of a file of a plane.
pub(crate) fn may_be_name(text: &[u8]) -> bool {
    crate::mounts::split(text).1.starts_with(PREFIX.as_bytes())
}

/// The device and number of what a path of `/proc` leads to, without asking whoever serves it.
pub(crate) fn key_of(path: &std::path::Path) -> Result<Key> {
    key(rustix::fs::CWD, path.as_os_str(), rustix::fs::AtFlags::empty())
}

/// The same of a descriptor.
pub(crate) fn key_of_fd(fd: std::os::fd::BorrowedFd<'_>) -> Result<Key> {
    key(fd, OsStr::new(""), rustix::fs::AtFlags::EMPTY_PATH)
}

fn key(fd: std::os::fd::BorrowedFd<'_>, path: &OsStr, flags: rustix::fs::AtFlags) -> Result<Key> {
    use rustix::fs::{AtFlags, StatxFlags};
    let data = rustix::fs::statx(fd, path, flags | AtFlags::STATX_DONT_SYNC, StatxFlags::INO)
        .map_err(|errno| Errno::from_raw(errno.raw_os_error()))?;
    Ok((nix::libc::makedev(data.stx_dev_major, data.stx_dev_minor), data.stx_ino))
}

/// A node that the kernel knows, or is about to learn of.
struct Known {
    stand_in: Arc<StandIn>,
    /// How often the kernel was told of it and has not forgotten.
    told: u64,
    /// Those who are opening it.
    pins: u32,
    /// For the next opening.
    file: Option<Arc<dyn File>>,
    /// Of the one who opens: a signal for him is to reach the driver.
    asked: Option<Interrupt>,
}

/// Raises the interrupt of a request that the kernel passes on when that of the call behind it is raised.
struct Forward(Interrupt);

impl Wake for Forward {
    fn wake(self: Arc<Self>) {
        self.0.raise();
    }
}

/// The tree that a plane serves: a root that holds nodes of another tree under their numbers. Numbers are one higher than there.
struct Nodes {
    tree: Arc<dyn Filesystem>,
    known: Mutex<HashMap<Ino, Known>>,
    /// To whom all nodes belong, as the kernel sees it.
    owner: Option<(u32, u32)>,
    /// So many known ones are many.
    crowd: AtomicUsize,
    /// The mount has ended.
    closed: AtomicBool,
}

impl Nodes {
    /// A node is about to be opened.
    fn pin(&self, node: &Arc<Node>, file: Option<Arc<dyn File>>, device: u64) {
        let mut known = self.known.lock();
        let entry = known.entry(node.ino).or_insert_with(|| Known {
            stand_in: Arc::new(StandIn::native((device, node.ino.0), node)),
            told: 0,
            pins: 0,
            file: None,
            asked: None,
        });
        entry.pins += 1;
        entry.asked = Some(Interrupt::current());
        if file.is_some() {
            entry.file = file;
        }
        let stand_in = Arc::clone(&entry.stand_in);
        drop(known);
        // It may have been found under another name this time.
        stand_in.node.found_as(node);
    }

    /// It was opened, or not. Whether there are many that the kernel could forget.
    fn unpin(&self, ino: Ino) -> bool {
        let mut known = self.known.lock();
        let Some(entry) = known.get_mut(&ino) else { return false };
        entry.pins -= 1;
        if entry.pins > 0 {
            return false;
        }
        let file = entry.file.take();
        entry.asked = None;
        let gone = if entry.told == 0 { known.remove(&ino) } else { None };
        let crowd = self.crowd.load(Ordering::Relaxed);
        let is_crowded = known.len() > crowd;
        if is_crowded {
            // Those that are open stay; the next time is when there are twice as many.
            self.crowd.store(crowd * 2, Ordering::Relaxed);
        } else if known.len() < crowd / 4 {
            self.crowd.store(MANY.max(crowd / 2), Ordering::Relaxed);
        }
        drop(known);
        drop((file, gone));
        is_crowded
    }

    /// The request that this thread serves is interrupted with the call that led to it.
    fn follow_call(&self, ino: Ino) {
        let asked = self.known.lock().get(&ino).and_then(|known| known.asked.clone());
        if let Some(asked) = asked {
            asked.on_raise(&Waker::from(Arc::new(Forward(Interrupt::current()))));
        }
    }

    fn inner(&self, ino: Ino) -> Result<Ino> {
        if self.closed.load(Ordering::Acquire) {
            return Err(Errno::ENODEV);
        }
        if ino == Ino::ROOT { Err(Errno::EPERM) } else { Ok(Ino(ino.0 - 1)) }
    }

    /// Attributes as the kernel gets them.
    fn shown(&self, ino: Ino, mut attr: Attr) -> Attr {
        attr.st_ino = ino.0;
        attr.st_dev = None;
        if let Some((uid, gid)) = self.owner {
            (attr.uid, attr.gid) = (uid, gid);
        }
        attr
    }
}

/// The number of a node as the kernel gets it: 1 is the plane's own root.
fn outer(ino: Ino) -> Ino {
    Ino(ino.0.wrapping_add(1))
}

impl Filesystem for Nodes {
    fn facts(&self) -> Facts {
        let facts = self.tree.facts();
        Facts { backing: false, acl: false, case_insensitive: false, name_max: 255, ..facts }
    }

    fn lookup(&self, parent: Ino, name: &OsStr) -> Result<Entry> {
        if parent != Ino::ROOT {
            return Err(Errno::ENOTDIR);
        }
        let number = name.to_str().and_then(|name| name.strip_prefix(PREFIX)?.parse().ok());
        let ino = Ino(number.ok_or(Errno::ENOENT)?);
        self.follow_call(ino);
        let attr = self.getattr(outer(ino))?;
        let mut known = self.known.lock();
        let entry = known.get_mut(&ino).ok_or(Errno::ENOENT)?;
        entry.told += 1;
        Ok(Entry { ino: outer(ino), generation: 0, attr })
    }

    fn forget(&self, ino: Ino, count: u64) {
        if ino == Ino::ROOT {
            return;
        }
        let ino = Ino(ino.0 - 1);
        let mut known = self.known.lock();
        let Some(entry) = known.get_mut(&ino) else { return };
        entry.told = entry.told.saturating_sub(count);
        let gone = if entry.told == 0 && entry.pins == 0 { known.remove(&ino) } else { None };
        drop(known);
        drop(gone);
    }

    fn getattr(&self, ino: Ino) -> Result<Attr> {
        if ino == Ino::ROOT {
            let mut attr = Attr::new(1, Kind::Directory, Perm::from_mode(0o700));
            if let Some((uid, gid)) = self.owner {
                (attr.uid, attr.gid) = (uid, gid);
            }
            return Ok(attr);
        }
        let ino = self.inner(ino)?;
        Ok(self.shown(ino, self.tree.getattr(ino)?))
    }

    fn readdir(&self, _: Ino, _: u64, _: &mut veduta_api::DirSink<'_>) -> Result<()> {
        Ok(())
    }

    fn open(&self, ino: Ino, flags: OpenFlags) -> Result<Arc<dyn File>> {
        let ino = self.inner(ino)?;
        let ready = self.known.lock().get_mut(&ino).and_then(|known| known.file.take());
        match ready {
            Some(file) => Ok(file),
            None => {
                self.follow_call(ino);
                self.tree.open(ino, flags)
            }
        }
    }

    fn setattr(&self, ino: Ino, changes: &SetAttr) -> Result<Attr> {
        let ino = self.inner(ino)?;
        Ok(self.shown(ino, self.tree.setattr(ino, changes)?))
    }

    fn opendir(&self, _: Ino) -> Result<Option<Arc<dyn Directory>>> {
        Ok(None)
    }

    fn statfs(&self) -> Result<StatFs> {
        self.tree.statfs()
    }

    fn sync(&self) -> Result<()> {
        self.tree.sync()
    }

    /// The mount itself ends elsewhere.
    fn unmount(&self) -> Result<()> {
        Ok(())
    }

    fn copy_range(&self, from: Ino, offset: u64, to: Ino, to_offset: u64, len: u64) -> Result<u64> {
        self.tree.copy_range(self.inner(from)?, offset, self.inner(to)?, to_offset, len)
    }

    fn getxattr(&self, ino: Ino, name: &OsStr) -> Result<Vec<u8>> {
        if ino == Ino::ROOT {
            // A question whether there are any at all.
            return self.tree.getxattr(Ino::ROOT, name);
        }
        self.tree.getxattr(self.inner(ino)?, name)
    }

    fn listxattr(&self, ino: Ino) -> Result<Vec<OsString>> {
        self.tree.listxattr(self.inner(ino)?)
    }

    fn setxattr(&self, ino: Ino, name: &OsStr, value: &[u8], mode: XattrMode) -> Result<()> {
        self.tree.setxattr(self.inner(ino)?, name, value, mode)
    }

    fn removexattr(&self, ino: Ino, name: &OsStr) -> Result<()> {
        self.tree.removexattr(self.inner(ino)?, name)
    }

    fn ioctl(&self, ino: Ino, ioctl: &mut Ioctl<'_>) -> Result<i32> {
        self.tree.ioctl(self.inner(ino)?, ioctl)
    }
}
