//! unsafe: fork, and what a child may do before it runs its program. A program started under a filter.
//!
//! Parent and child agree by a number in memory that both have, since a child with a filter can make no call that the filter
//! catches before somebody serves it. What the system forbids on the way is a [`Refusal`], after which another mechanism
//! may be tried: nothing of the program has run.

#![allow(unsafe_code)]

use std::ffi::{CString, OsStr};
use std::fmt;
use std::os::fd::AsFd;
use std::os::unix::ffi::OsStrExt;
use std::sync::atomic::{AtomicI32, Ordering};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::libc;
use nix::sys::wait::{Id, WaitPidFlag, WaitStatus, waitid, waitpid};
use nix::unistd::{ForkResult, Pid, fork};

use crate::{Listener, Program, Result, Task, raw, stop};

/// What is started.
pub struct Command {
    arguments: Vec<CString>,
    /// Where the program may be, in the order of `PATH`.
    candidates: Vec<CString>,
}

impl Command {
    /// A program and its arguments, the program found as a shell finds it. `EINVAL` if there is none, or for a NUL within.
    pub fn new<'a>(words: impl IntoIterator<Item = &'a OsStr>, path: &OsStr) -> Result<Self> {
        let c_string = |bytes: &[u8]| CString::new(bytes).map_err(|_| Errno::EINVAL);
        let arguments: Vec<CString> =
            words.into_iter().map(|word| c_string(word.as_bytes())).collect::<Result<_>>()?;
        let program = arguments.first().ok_or(Errno::EINVAL)?.to_bytes().to_vec();
        let candidates = if program.contains(&b'/') || program.is_empty() {
            vec![c_string(&program)?]
        } else {
            let within = |dir: &[u8]| {
                let dir = if dir.is_empty() { b".".as_slice() } else { dir };
                c_string(&[dir, b"/", &program].concat())
            };
            path.as_bytes().split(|byte| *byte == b':').map(within).collect::<Result<_>>()?
        };
        Ok(Self { arguments, candidates })
    }
}

unsafe extern "C" {
    static environ: *const *const libc::c_char;
}

/// What the system did not allow.
#[derive(Clone, Copy, Debug)]
pub struct Refusal {
    /// The call.
    pub call: &'static str,
    /// What it said.
    pub errno: Errno,
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.call, self.errno.desc())
    }
}

fn refused(call: &'static str) -> impl Fn(Errno) -> Refusal {
    move |errno| Refusal { call, errno }
}

/// How parent and child agree: 0 at first. Below 0 it is an error of the child's.
struct Shared<'a>(&'a AtomicI32);

/// The child waits for its tracer.
const WAITS: i32 = 1;
/// The tracer is there.
const GO: i32 = 2;
/// The child has its filter. With a listener, the number of that is added.
const FILTERED: i32 = 3;

/// Longer than any of these steps takes.
const PATIENCE: Duration = Duration::from_secs(10);

impl Shared<'_> {
    /// Runs something with memory that children share.
    fn with<T>(work: impl FnOnce(&Shared<'_>) -> Result<T, Refusal>) -> Result<T, Refusal> {
        let len = std::num::NonZeroUsize::MIN;
        let protection = nix::sys::mman::ProtFlags::PROT_READ | nix::sys::mman::ProtFlags::PROT_WRITE;
        let flags = nix::sys::mman::MapFlags::MAP_SHARED;
        // SAFETY: new memory, at an address that the kernel chooses.
        let memory = unsafe { nix::sys::mman::mmap_anonymous(None, len, protection, flags) }
            .map_err(refused("mmap"))?;
        // SAFETY: the memory is zeroed, large enough and aligned, and stays mapped until `work` is done.
        let done = work(&Shared(unsafe { memory.cast::<AtomicI32>().as_ref() }));
        // SAFETY: nothing refers to the memory any more.
        let _ = unsafe { nix::sys::mman::munmap(memory, len.get()) };
        done
    }

    fn say(&self, value: i32) {
        self.0.store(value, Ordering::Release);
    }

    /// For a child: waits for a number, without making a call that could be caught.
    fn await_go(&self) -> bool {
        let step = libc::timespec { tv_sec: 0, tv_nsec: 50_000 };
        for _ in 0..PATIENCE.as_micros() / 50 {
            if self.0.load(Ordering::Acquire) == GO {
                return true;
            }
            // SAFETY: the time lives through the call.
            unsafe { libc::nanosleep(&raw const step, std::ptr::null_mut()) };
        }
        false
    }

    /// For the parent: waits until the child says `least` or more. The child's error; `ECHILD` if it ended without a word. Takes no
    /// state of the child's from those who trace it.
    fn await_child(&self, child: Pid, least: i32) -> Result<i32> {
        let said = || match self.0.load(Ordering::Acquire) {
            error if error < 0 => Some(Err(Errno::from_raw(-error))),
            value if value >= least => Some(Ok(value)),
            _ => None,
        };
        let deadline = Instant::now() + PATIENCE;
        loop {
            if let Some(answer) = said() {
                return answer;
            }
            // A tracer is told of stops too, whatever it asks for.
            let flags = WaitPidFlag::WEXITED | WaitPidFlag::WNOHANG | WaitPidFlag::WNOWAIT;
            let status = waitid(Id::Pid(child), flags | WaitPidFlag::__WALL)?;
            if matches!(status, WaitStatus::Exited(..) | WaitStatus::Signaled(..))
                || Instant::now() > deadline
            {
                return said().unwrap_or(Err(Errno::ECHILD));
            }
            std::thread::sleep(Duration::from_micros(50));
        }
    }
}

/// Starts a program under a filter. The caller has one thread. The child waits at its first caught call, which is its
/// `execve`, so nothing of it runs before the listener is served.
pub fn spawn(command: &Command, program: &Program) -> Result<(Pid, Listener), Refusal> {
    start(command, Some(program), true, |child, shared| {
        let number = shared.await_child(child, FILTERED).map_err(refused("seccomp(2)"))? - FILTERED;
        let handle = Task(child).handle().map_err(refused("pidfd_open(2)"))?;
        let listener = raw::pidfd_get(handle.as_fd(), number).map_err(refused("pidfd_getfd(2)"))?;
        let mut byte = [0];
        Task(child).read(shared.0.as_ptr() as u64, &mut byte).map_err(refused("process_vm_readv(2)"))?;
        Ok(Listener::new(listener))
    })
}

/// Starts a program that a tracer will see from its `execve` on: `attach` is called when the child waits for it.
pub(crate) fn spawn_traced(
    command: &Command,
    filter: Option<&Program>,
    attach: impl FnOnce(Pid) -> Result<()>,
) -> Result<Pid, Refusal> {
    let (child, ()) = start(command, filter, false, |child, shared| {
        shared.await_child(child, WAITS).map_err(refused("fork(2)"))?;
        attach(child).map_err(refused("ptrace(2)"))?;
        shared.say(GO);
        // Without a filter it stops at its next call already.
        if filter.is_some() {
            shared.await_child(child, FILTERED).map_err(refused("seccomp(2)"))?;
        }
        let mut byte = [0];
        Task(child).read(shared.0.as_ptr() as u64, &mut byte).map_err(refused("process_vm_readv(2)"))?;
        let handle = Task(child).handle().map_err(refused("pidfd_open(2)"))?;
        match raw::pidfd_get(handle.as_fd(), -1) {
            Err(Errno::EBADF) | Ok(_) => Ok(()),
            Err(errno) => Err(Refusal { call: "pidfd_getfd(2)", errno }),
        }
    })?;
    Ok(child)
}

/// Forks a child that becomes the program. `meet`: what the parent does until the child is on its way; if it fails, the child ends.
fn start<T>(
    command: &Command,
    filter: Option<&Program>,
    listens: bool,
    meet: impl FnOnce(Pid, &Shared<'_>) -> Result<T, Refusal>,
) -> Result<(Pid, T), Refusal> {
    let mut arguments: Vec<*const libc::c_char> =
        command.arguments.iter().map(|word| word.as_ptr()).collect();
    arguments.push(std::ptr::null());
    let code = filter.map_or(&[][..], Program::instructions);
    let header = libc::sock_fprog { len: code.len() as u16, filter: code.as_ptr().cast_mut() };
    let filter = filter.map(|_| &header);
    Shared::with(|shared| {
        // SAFETY: the child calls only what is safe there: it neither allocates nor takes a lock.
        let child = match unsafe { fork() }.map_err(refused("fork(2)"))? {
            ForkResult::Child => run_child(command, &arguments, filter, listens, shared),
            ForkResult::Parent { child } => child,
        };
        let met = meet(child, shared);
        if met.is_err() {
            let _ = nix::sys::signal::kill(child, nix::sys::signal::SIGKILL);
            // A tracer may see it stop once more before it ends.
            while matches!(waitpid(child, Some(WaitPidFlag::__WALL)), Ok(status) if status.pid().is_some()
                && !matches!(status, WaitStatus::Exited(..) | WaitStatus::Signaled(..)))
            {}
        }
        Ok((child, met?))
    })
}

fn run_child(
    command: &Command,
    arguments: &[*const libc::c_char],
    filter: Option<&libc::sock_fprog>,
    listens: bool,
    shared: &Shared<'_>,
) -> ! {
    reset();
    if !listens {
        // Calls that a filter stops do not exist without a tracer.
        shared.say(WAITS);
        if !shared.await_go() {
            exit(127);
        }
    }
    let install = |filter: &libc::sock_fprog| {
        let add = |no_new_privileges| stop::add_own_filter(filter, listens, no_new_privileges);
        // Root can do without, and then set-user-id programs keep their meaning.
        match add(false) {
            Err(Errno::EACCES) => add(true),
            done => done,
        }
    };
    match filter.map_or(Ok(0), install) {
        Ok(number) => shared.say(FILTERED + number),
        Err(errno) => {
            shared.say(-(errno as i32));
            exit(127);
        }
    }
    load(command, arguments)
}

/// For a child: what it inherits is as a program expects it.
fn reset() {
    // The engine may have learnt a secret, and then nobody may look into it, nor into what it forks; but it must see which program is
    // to be run. The secret's copy goes with the exec.
    // SAFETY: numbers only.
    unsafe { libc::prctl(libc::PR_SET_DUMPABLE, 1, 0, 0, 0) };
    // What Rust's runtime and the engine changed, and a program does not expect.
    for signal in [
        libc::SIGPIPE,
        libc::SIGINT,
        libc::SIGQUIT,
        libc::SIGTSTP,
        libc::SIGTTIN,
        libc::SIGTTOU,
        libc::SIGTERM,
        libc::SIGHUP,
    ] {
        // SAFETY: numbers only.
        unsafe { libc::signal(signal, libc::SIG_DFL) };
    }
    // SAFETY: the set lives on this stack, and is initialised by the first call.
    unsafe {
        let mut set = std::mem::zeroed();
        libc::sigemptyset(&raw mut set);
        libc::sigprocmask(libc::SIG_SETMASK, &raw const set, std::ptr::null_mut());
    }
}

/// For a child: becomes the program.
fn load(command: &Command, arguments: &[*const libc::c_char]) -> ! {
    let (mut status, mut message) = (127, b": the command was not found\n".as_slice());
    for candidate in &command.candidates {
        // SAFETY: the arrays end in null pointers and live until the program is replaced.
        unsafe { libc::execve(candidate.as_ptr(), arguments.as_ptr(), environ) };
        match Errno::last() {
            Errno::ENOENT | Errno::ENOTDIR => {}
            Errno::EACCES => {
                (status, message) = (126, b": the command may not be run\n");
            }
            _ => {
                (status, message) = (126, b": the command cannot be run\n");
                break;
            }
        }
    }
    let part =
        |bytes: &[u8]| libc::iovec { iov_base: bytes.as_ptr().cast_mut().cast(), iov_len: bytes.len() };
    let name = command.arguments.first().map_or(b"".as_slice(), |name| name.to_bytes());
    let parts = [part(b"veduta: "), part(name), part(message)];
    // SAFETY: the bytes are the command's, or static, and only read.
    unsafe { libc::writev(2, parts.as_ptr(), 3) };
    exit(status)
}

fn exit(status: i32) -> ! {
    // SAFETY: ends the process without running anything of the parent's.
    unsafe { libc::_exit(status) }
}

/// Splits the process in two: `Some(child)` in the parent, `None` in the child. The caller has one thread.
pub fn fork_server() -> Result<Option<Pid>> {
    let threads = std::fs::read_dir("/proc/self/task").map_or(1, Iterator::count);
    if threads != 1 {
        return Err(Errno::EBUSY);
    }
    // SAFETY: there is no other thread whose locks the child could inherit.
    match unsafe { fork() }? {
        ForkResult::Child => Ok(None),
        ForkResult::Parent { child } => Ok(Some(child)),
    }
}
