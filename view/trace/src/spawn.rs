//! unsafe: fork, and what a child may do before it runs its program. A program started under a filter.

#![allow(unsafe_code)]

use std::ffi::{CString, OsStr};
use std::os::fd::{AsFd, AsRawFd};
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
    reset();
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
    load(command, arguments)
}

/// Starts a program that a tracer will see from its `execve` on: `attach` is called when the child waits for it.
pub(crate) fn spawn_traced(
    command: &Command,
    filter: Option<&Program>,
    attach: impl FnOnce(Pid) -> Result<()>,
) -> Result<Pid> {
    let (mut asks, mut goes) = (nix::unistd::pipe()?, nix::unistd::pipe()?);
    let mut arguments: Vec<*const libc::c_char> =
        command.arguments.iter().map(|word| word.as_ptr()).collect();
    arguments.push(std::ptr::null());
    let code = filter.map_or(&[][..], Program::instructions);
    let header = libc::sock_fprog { len: code.len() as u16, filter: code.as_ptr().cast_mut() };
    // SAFETY: the child calls only what is safe there: it neither allocates nor takes a lock.
    let child = match unsafe { fork() }? {
        ForkResult::Child => {
            reset();
            let mut go = [0];
            let told = nix::unistd::write(&asks.1, &[0]);
            let numbers = [asks.0.as_raw_fd(), asks.1.as_raw_fd(), goes.0.as_raw_fd(), goes.1.as_raw_fd()];
            // SAFETY: closes our copy of the end that the parent writes to; the process ends or is replaced without
            // closing it again.
            unsafe { libc::close(numbers[3]) };
            let heard = nix::unistd::read(&goes.0, &mut go);
            if told != Ok(1) || heard != Ok(1) {
                exit(127);
            }
            for number in &numbers[..3] {
                // SAFETY: as above.
                unsafe { libc::close(*number) };
            }
            // Only now: calls that it stops do not exist without a tracer.
            if filter.is_some() && stop::add_own_traced_filter(&header).is_err() {
                let message = b"veduta: the kernel takes no filter; VEDUTA_TRAP=ptrace does without\n";
                // SAFETY: the bytes are static.
                unsafe { libc::write(2, message.as_ptr().cast(), message.len()) };
                exit(125);
            }
            load(command, &arguments)
        }
        ForkResult::Parent { child } => child,
    };
    drop(std::mem::replace(&mut asks.1, std::fs::File::open("/dev/null").map_err(|_| Errno::EMFILE)?.into()));
    drop(std::mem::replace(&mut goes.0, std::fs::File::open("/dev/null").map_err(|_| Errno::EMFILE)?.into()));
    let mut said = [0];
    let attached = match nix::unistd::read(&asks.0, &mut said) {
        Ok(1) => attach(child),
        _ => Err(Errno::ECHILD),
    };
    if attached.is_ok() && nix::unistd::write(&goes.1, &[1]) == Ok(1) {
        return Ok(child);
    }
    let _ = nix::sys::signal::kill(child, nix::sys::signal::SIGKILL);
    let _ = waitpid(child, Some(WaitPidFlag::__WALL));
    Err(attached.err().unwrap_or(Errno::ECHILD))
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
