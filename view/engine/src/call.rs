//! A caught call, while it is served.

use std::ffi::OsStr;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::sync::Arc;

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::libc;
use veduta_api::{Attr, Kind, Result};
use veduta_trace::Task;
use veduta_trace::raw::{self, Argument};

use crate::calls::Level;
use crate::identity::Caller;
use crate::mounts::Table;
use crate::node::Node;
use crate::standin::{OnItsWay, StandIn};
use crate::states::State;
use crate::view::View;
use crate::walk::{self, Found, Limits, Place, Start, Walker};

/// What becomes of a call. An error is the call's error.
pub(crate) enum Answer {
    /// The kernel serves it.
    GoOn,
    /// It returns this.
    Value(i64),
    /// It returns a new descriptor.
    Fd {
        /// The descriptor.
        fd: OwnedFd,
        /// `O_CLOEXEC`
        close_on_exec: bool,
        /// What it is a descriptor of, if that is ours.
        on_its_way: Option<OnItsWay>,
    },
    /// The task's working directory becomes this.
    Chdir(OwnedFd, Option<OnItsWay>),
    /// The task runs a program.
    Exec(Box<crate::exec::Plan>),
    /// The view must catch more before the task makes another call.
    Grow(Level, Meanwhile),
}

/// What becomes of a call that has the view grow.
#[derive(Clone, Copy)]
pub(crate) enum Meanwhile {
    /// The kernel serves it.
    GoOn,
    /// It returns this.
    Value(i64),
    /// It is made again afterwards.
    Again,
}

/// The outcome of a handler.
pub(crate) type Outcome = Result<Answer>;

/// Success with the value 0.
pub(crate) const DONE: Outcome = Ok(Answer::Value(0));

/// A call.
pub(crate) struct Call<'a> {
    /// The view.
    pub view: &'a View,
    /// The mounts as they were when the call came.
    pub table: Arc<Table>,
    /// Who calls.
    pub task: Task,
    /// Which call.
    pub number: u32,
    /// Its arguments.
    pub args: [u64; 6],
    /// As whom.
    pub caller: Caller,
    /// What is kept about the caller, if it differs from what all have.
    pub state: Option<Arc<State>>,
    /// Files that it may have copied up.
    pub touched: crate::reread::Touched,
}

/// What a path argument of a call leads to.
pub(crate) enum Target {
    /// To nothing that the view is concerned with; the canonical path, if it has one.
    PlainlyHost(Option<Vec<u8>>),
    /// To what a walk found.
    Found(Box<Found>),
}

impl<'a> Call<'a> {
    /// A call of a task.
    pub(crate) fn new(view: &'a View, task: Task, number: u32, args: [u64; 6]) -> Self {
        let state = view.state_of(task);
        let all = State::default();
        let told = view.all_root.then(|| &state.as_deref().unwrap_or(&all).who);
        Self {
            view,
            table: view.table(),
            task,
            number,
            args,
            caller: Caller::new(task, told),
            state,
            touched: crate::reread::Touched::default(),
        }
    }

    /// What is kept about the caller.
    pub(crate) fn state(&self) -> State {
        self.state.as_deref().cloned().unwrap_or_default()
    }

    /// The caller's root, if it is not that of the view.
    pub(crate) fn root(&self) -> Option<&Vec<u8>> {
        self.state.as_ref()?.root.as_ref()
    }

    /// Argument `index` as the kernel sees an `int`.
    pub(crate) fn int(&self, index: usize) -> i32 {
        self.args[index] as i32
    }

    /// Where relative paths of an `*at` call start.
    pub(crate) fn start(&self, dirfd: u64) -> Result<Start> {
        let start = if walk::is_cwd(dirfd) {
            walk::working_directory(&self.view.stand_ins, self.task)?
        } else {
            walk::directory_of(&self.view.stand_ins, self.task, dirfd as i32)?
        };
        match start {
            Start::Host(path) => Ok(match self.view.stand_ins.held.find(self, &path)? {
                Some(node) => Start::Tree(node),
                None => Start::Host(path),
            }),
            start => Ok(start),
        }
    }

    /// The node that a descriptor itself stands for, or the working directory.
    fn itself(&self, dirfd: u64) -> Result<Option<Arc<Node>>> {
        if walk::is_cwd(dirfd) {
            return match self.start(dirfd)? {
                Start::Tree(node) => Ok(Some(node)),
                // One from before the mount.
                Start::Host(path) => match self.walker(Limits::default()).locate(&path) {
                    Ok(Place::Tree(node, _)) => Ok(Some(node)),
                    _ => Ok(None),
                },
                Start::Opaque => Ok(None),
            };
        }
        let path = match walk::directory_of(&self.view.stand_ins, self.task, dirfd as i32)? {
            Start::Tree(node) => return Ok(Some(node)),
            Start::Host(path) => Some(path),
            Start::Opaque => None,
        };
        match (self.lent(dirfd as i32)?, path) {
            (None, Some(path)) if self.sees_binds() => match self.walker(Limits::default()).locate(&path) {
                Ok(Place::Tree(node, attr)) if node.mount.is_itself => {
                    let key = crate::fuseplane::key_of(Path::new(&format!(
                        "/proc/{}/fd/{}",
                        self.task.0, dirfd as i32
                    )))?;
                    let is_same = (crate::stat::device(&node.mount, &attr), attr.st_ino) == key;
                    Ok(is_same.then_some(node))
                }
                _ => self.view.stand_ins.held.find(self, &path),
            },
            (None, Some(path)) if Path::new(OsStr::from_bytes(crate::mounts::shown(&path))).is_dir() => {
                self.view.stand_ins.held.find(self, &path)
            }
            (node, _) => Ok(node),
        }
    }

    /// Resolves a path argument. `empty`: an empty path means the descriptor itself (`AT_EMPTY_PATH`).
    pub(crate) fn find(&self, dirfd: u64, address: u64, follow: bool, empty: bool) -> Result<Target> {
        let path = if address == 0 && empty { Vec::new() } else { self.task.read_path(address)? };
        self.find_path(dirfd, &path, follow, empty, Limits::default())
    }

    /// The same for a path that was read.
    pub(crate) fn find_path(
        &self,
        dirfd: u64,
        path: &[u8],
        follow: bool,
        empty: bool,
        limits: Limits,
    ) -> Result<Target> {
        if path.is_empty() {
            if !empty {
                return Err(Errno::ENOENT);
            }
            let Some(node) = self.itself(dirfd)? else { return Ok(Target::PlainlyHost(None)) };
            let attr = node.attr()?;
            let place = Some(Place::Tree(node, attr));
            return Ok(Target::Found(Box::new(Found {
                parent: None,
                name: Vec::new(),
                place,
                direct: false,
                wants_dir: false,
            })));
        }
        let start = if path.starts_with(b"/") { Start::Host(Vec::new()) } else { self.start(dirfd)? };
        match &start {
            Start::Opaque => return Ok(Target::PlainlyHost(None)),
            Start::Host(base) if self.root().is_none() => {
                let follow = follow && !path.ends_with(b"/.");
                let links = !limits.beneath && !limits.in_root;
                if let Some(canonical) = walk::plain_host_path(
                    &self.table,
                    base,
                    path,
                    follow,
                    links,
                    self.sees_binds() || limits.no_xdev,
                ) {
                    self.doubt(&canonical);
                    return Ok(Target::PlainlyHost(Some(canonical)));
                }
            }
            _ => {}
        }
        let found = self.walker(limits).walk(&start, path, follow)?;
        match (&found.parent, &found.place) {
            (Some(Place::Host(parent)), _) => self.doubt(&[parent, b"/".as_slice(), &found.name].concat()),
            (_, Some(Place::Host(path))) => self.doubt(path),
            _ => {}
        }
        Ok(Target::Found(Box::new(found)))
    }

    /// A path of the host is about to be used.
    fn doubt(&self, path: &[u8]) {
        if self.view.fast.is_on() {
            let name = crate::calls::by_number(self.number).map_or("", |row| row.name);
            let flags = match name {
                "open" => self.int(1),
                "openat" => self.int(2),
                _ => libc::O_CREAT,
            };
            if flags & libc::O_CREAT == 0 {
                return;
            }
            self.view.fast.doubt(&self.table, name, path);
        }
    }

    /// Something that resolves paths for this call.
    pub(crate) fn walker(&self, limits: Limits) -> Walker<'_> {
        Walker {
            table: &self.table,
            stand_ins: &self.view.stand_ins,
            lent: &self.view.lent,
            changes: !crate::lent::only_looks(self),
            task: self.task,
            caller: &self.caller,
            limits,
            root: self.root().cloned(),
            binds: self.sees_binds(),
        }
    }

    /// Whether the call is about mounts: `statx(2)` tells their numbers.
    fn sees_binds(&self) -> bool {
        i64::from(self.number) == libc::SYS_statx
    }

    /// What a descriptor of the task stands for, with a copy of it; `None` if the view is not concerned.
    pub(crate) fn stand_in(&self, number: i32) -> Result<Option<(Arc<StandIn>, OwnedFd)>> {
        if self.view.stand_ins.is_empty() {
            return Ok(None);
        }
        let Some(fd) = self.copy_of(number)? else { return Ok(None) };
        Ok(self.view.stand_ins.of_descriptor(fd.as_fd()).map(|stand_in| (stand_in, fd)))
    }

    /// A copy of a descriptor of the task, if the view may be concerned.
    pub(crate) fn copy_of(&self, number: i32) -> Result<Option<OwnedFd>> {
        if number < 0 || (self.view.stand_ins.is_empty() && !self.may_be_lent()) {
            return Ok(None);
        }
        match crate::serve::descriptor(self.task, number) {
            // Ours have no room: whose it is cannot be known.
            Err(errno @ (Errno::EMFILE | Errno::ENFILE)) => Err(errno),
            Err(_) => Ok(None),
            Ok(fd) => Ok(Some(fd)),
        }
    }

    /// `RLIMIT_FSIZE` of the process: no file grows beyond. Bytes.
    pub(crate) fn file_size_limit(&self) -> Result<u64> {
        let mut limits = [0; 16];
        let mut arguments = [
            Argument::Value(self.task.0.as_raw() as u64),
            Argument::Value(libc::RLIMIT_FSIZE.into()),
            Argument::Value(0),
            Argument::Output(&mut limits),
        ];
        match raw::call(libc::SYS_prlimit64 as u32, &mut arguments) {
            // It runs as somebody else than we do: then its limits are asked of `/proc`, where everybody may read them.
            Err(Errno::EPERM) => return Ok(self.listed_file_size_limit()),
            done => done?,
        };
        let mut soft = [0; 8];
        soft.copy_from_slice(&limits[..8]);
        Ok(u64::from_ne_bytes(soft))
    }

    fn listed_file_size_limit(&self) -> u64 {
        let limits = std::fs::read_to_string(format!("/proc/{}/limits", self.task.0)).unwrap_or_default();
        let line = limits.lines().find_map(|line| line.strip_prefix("Max file size"));
        line.and_then(|line| line.split_whitespace().next()?.parse().ok()).unwrap_or(u64::MAX)
    }

    /// What happens to whoever wants a file beyond that limit: a signal, and `EFBIG`.
    pub(crate) fn too_large(&self) -> Errno {
        let leader = self.task.leader().unwrap_or(self.task.0);
        let number = |value: i32| Argument::Value(value as u64);
        let mut arguments = [number(leader.as_raw()), number(self.task.0.as_raw()), number(libc::SIGXFSZ)];
        if let Err(errno) = raw::call(libc::SYS_tgkill as u32, &mut arguments) {
            tracing::debug!("SIGXFSZ: {}", errno.desc());
        }
        Errno::EFBIG
    }

    /// `EROFS` for a node of a mount that nothing may be changed on.
    pub(crate) fn writable(&self, place: &Place) -> Result<()> {
        match place {
            Place::Tree(node, _) if node.mount.is_read_only() => Err(Errno::EROFS),
            _ => Ok(()),
        }
    }

    /// Whether the permission bits allow something.
    pub(crate) fn may(&self, place: &Place, wanted: u32) -> Result<()> {
        // What is behind these is the engine's, so the tree is not asked.
        let is_ours = |node: &Node, attr: &Attr| {
            let is_behind = matches!(attr.kind, Kind::Socket | Kind::Fifo | Kind::CharDevice);
            is_behind && !node.mount.is_owned && !node.mount.of_host
        };
        match place {
            Place::Tree(node, attr) if node.mount.checks_permissions() || is_ours(node, attr) => {
                self.caller.on(&node.mount).may_node(node, attr, wanted)
            }
            // The tree decides, but a file that is open already is not opened again, and access(2) has nobody else to ask: what an owner
            // may not, nobody lets him.
            Place::Tree(node, attr)
                if attr.kind == Kind::File
                    && self.caller.on(&node.mount).uid() == attr.uid
                    && !self.caller.on(&node.mount).is_root()
                    && (attr.perm.bits() >> 6) & wanted != wanted =>
            {
                Err(Errno::EACCES)
            }
            // As for root: what nobody may run is no program.
            Place::Tree(_, attr)
                if wanted & crate::identity::EXECUTE != 0
                    && attr.kind == Kind::File
                    && attr.perm.bits() & 0o111 == 0 =>
            {
                Err(Errno::EACCES)
            }
            _ => Ok(()),
        }
    }

    /// `EPERM` for nodes with `chattr +i`, or `+a` unless what is done only adds.
    pub(crate) fn unguarded(attr: &Attr, only_adds: bool) -> Result<()> {
        if attr.flags.immutable || (attr.flags.append_only && !only_adds) {
            Err(Errno::EPERM)
        } else {
            Ok(())
        }
    }
}

/// The flags of an open file description.
pub(crate) fn status_flags(fd: &OwnedFd) -> Result<OFlag> {
    fcntl(fd, FcntlArg::F_GETFL).map(OFlag::from_bits_retain)
}

/// `EBADF` unless a description may be read.
pub(crate) fn readable(fd: &OwnedFd) -> Result<OFlag> {
    let flags = status_flags(fd)?;
    match flags.bits() & libc::O_ACCMODE {
        libc::O_RDONLY | libc::O_RDWR => Ok(flags),
        _ => Err(Errno::EBADF),
    }
}

/// `EBADF` unless a description may be written.
pub(crate) fn writable(fd: &OwnedFd) -> Result<OFlag> {
    let flags = status_flags(fd)?;
    match flags.bits() & libc::O_ACCMODE {
        libc::O_WRONLY | libc::O_RDWR => Ok(flags),
        _ => Err(Errno::EBADF),
    }
}
