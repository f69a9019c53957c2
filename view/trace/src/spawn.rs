//! A program started under a filter. Contains `unsafe`: fork, and what a child may do before it runs its program.

use std::ffi::{CString, OsStr};
use std::os::fd::AsFd;
use std::os::unix::ffi::OsStrExt;
use std::sync::atomic::{AtomicI32, Ordering};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::libc;
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
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

/// How the child reports, in memory that both share.
#[repr(C)]
struct Shared {
    /// 0: nothing yet; above: the listener's number plus one; below: an error.
    listener: AtomicI32,
}

/// Starts a program under a filter. The caller has one thread. The child waits at its first caught call, which is its
/// `execve`, so nothing of it runs before the listener is served.
pub fn spawn(command: &Command, program: &Program) -> Result<(Pid, Listener)> {
    let len = std::num::NonZeroUsize::MIN;
    let protection = nix::sys::mman::ProtFlags::PROT_READ | nix::sys::mman::ProtFlags::PROT_WRITE;
    // SAFETY: new memory, at an address that the kernel chooses.
    let memory = unsafe {
        nix::sys::mman::mmap_anonymous(None, len, protection, nix::sys::mman::MapFlags::MAP_SHARED)
    }?;
    // SAFETY: the memory is zeroed, large enough and aligned, and stays mapped until the end of this function.
    let shared: &Shared = unsafe { memory.cast::<Shared>().as_ref() };
    let mut arguments: Vec<*const libc::c_char> =
        command.arguments.iter().map(|word| word.as_ptr()).collect();
    arguments.push(std::ptr::null());
    let code = program.instructions();
    let header = libc::sock_fprog { len: code.len() as u16, filter: code.as_ptr().cast_mut() };
    // SAFETY: the child calls only what is safe there: it neither allocates nor takes a lock.
    let child = match unsafe { fork() }? {
        ForkResult::Child => run_child(command, &arguments, &header, shared),
        ForkResult::Parent { child } => child,
    };
    let number = wait_for_listener(child, shared);
    let listener = number.and_then(|number| {
        let handle = Task(child).handle()?;
        raw::pidfd_get(handle.as_fd(), number).map(Listener::new)
    });
    // SAFETY: nothing refers to the memory any more.
    let _ = unsafe { nix::sys::mman::munmap(memory, len.get()) };
    if listener.is_err() {
        let _ = nix::sys::signal::kill(child, nix::sys::signal::SIGKILL);
        let _ = waitpid(child, None);
    }
    Ok((child, listener?))
}

fn wait_for_listener(child: Pid, shared: &Shared) -> Result<i32> {
    let deadline = Instant::now() + Duration::from_secs(10);
    loop {
        match shared.listener.load(Ordering::Acquire) {
            0 => {}
            error if error < 0 => return Err(Errno::from_raw(-error)),
            number => return Ok(number - 1),
        }
        let status = waitpid(child, Some(WaitPidFlag::WNOHANG))?;
        if !matches!(status, WaitStatus::StillAlive) || Instant::now() > deadline {
            return Err(Errno::ECHILD);
        }
        std::thread::sleep(Duration::from_micros(50));
    }
}

fn run_child(
    command: &Command,
    arguments: &[*const libc::c_char],
    header: &libc::sock_fprog,
    shared: &Shared,
) -> ! {
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
    // The engine may have learnt a secret, and then nobody may look into it, nor into what it forks; but it must see which program is
    // to be run. The secret's copy goes with the exec.
    // SAFETY: numbers only.
    unsafe { libc::prctl(libc::PR_SET_DUMPABLE, 1, 0, 0, 0) };
    // Root can do without, and then set-user-id programs keep their meaning.
    let mut installed = stop::add_own_filter(header, false);
    if installed == Err(Errno::EACCES) {
        installed = stop::add_own_filter(header, true);
    }
    match installed {
        Ok(number) => shared.listener.store(number + 1, Ordering::Release),
        Err(errno) => {
            shared.listener.store(-(errno as i32), Ordering::Release);
            exit(127);
        }
    }
    let (mut status, mut message) = (127, b"veduta: the command was not found\n".as_slice());
    for candidate in &command.candidates {
        // SAFETY: the arrays end in null pointers and live until the program is replaced.
        unsafe { libc::execve(candidate.as_ptr(), arguments.as_ptr(), environ) };
        match Errno::last() {
            Errno::ENOENT | Errno::ENOTDIR => {}
            Errno::EACCES => {
                (status, message) = (126, b"veduta: the command may not be run\n");
            }
            _ => {
                (status, message) = (126, b"veduta: the command cannot be run\n");
                break;
            }
        }
    }
    // SAFETY: the bytes are static.
    unsafe { libc::write(2, message.as_ptr().cast(), message.len()) };
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
