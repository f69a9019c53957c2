//! unsafe: fork and close_range. Processes: going to the background once the mount answers, and a guardian that cleans up behind a server that was killed.
//!
//! All fork, so all happen before the program starts a thread. What the forked processes do is ordinary Rust.

#![allow(unsafe_code)]

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::Path;
use std::time::Duration;

use nix::fcntl::OFlag;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{SigSet, SigmaskHow, Signal, kill, pthread_sigmask};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::{ForkResult, Pid, chdir, dup2_stderr, dup2_stdin, dup2_stdout, fork, pipe2, setsid};

use crate::mount::MountPoint;

/// Who one is after [`split`].
pub(crate) enum Side {
    /// The process that the user started: it has waited, and is to end with this status.
    Front(u8),
    /// The server.
    Server(Front),
}

/// The process in front, which waits to hear whether the mount answers.
pub(crate) struct Front(Option<OwnedFd>);

/// Forks: the new process serves, the old one waits until that says how it went. Call it before there are threads.
pub(crate) fn split() -> io::Result<Side> {
    let (read, write) = pipe2(OFlag::O_CLOEXEC)?;
    // SAFETY: the caller has started no thread, so no lock is held by one that the child would miss.
    match unsafe { fork() }? {
        ForkResult::Child => Ok(Side::Server(Front(Some(write)))),
        ForkResult::Parent { child } => {
            drop(write);
            Ok(Side::Front(wait_for(read, child)))
        }
    }
}

/// The status to end with: what the server says, or 2 if it dies without a word.
fn wait_for(read: OwnedFd, child: Pid) -> u8 {
    let mut status = [0];
    if File::from(read).read_exact(&mut status).is_ok() {
        let [status] = status;
        return status;
    }
    match waitpid(child, None) {
        Ok(WaitStatus::Signaled(_, signal, _)) => {
            eprintln!(
                "{}: the server was ended by {signal} before the mount answered",
                crate::log::program()
            );
        }
        _ => eprintln!("{}: the server ended before the mount answered", crate::log::program()),
    }
    2
}

impl Front {
    /// Nobody waits: the program stays in the foreground.
    pub(crate) fn none() -> Self {
        Self(None)
    }

    /// The mount answers: the user's command ends well, and this process leaves the terminal.
    pub(crate) fn release(self) -> io::Result<()> {
        let Some(pipe) = self.0 else { return Ok(()) };
        setsid()?;
        leave_terminal()?;
        File::from(pipe).write_all(&[0])
    }

    /// The mount failed, and this process has said why.
    pub(crate) fn fail(self, status: u8) {
        if let Some(pipe) = self.0 {
            let _ = File::from(pipe).write_all(&[status]);
        }
    }
}

fn leave_terminal() -> io::Result<()> {
    chdir("/")?;
    let null = File::options().read(true).write(true).open("/dev/null")?;
    dup2_stdin(&null)?;
    dup2_stdout(&null)?;
    dup2_stderr(&null)?;
    Ok(())
}

/// A tiny process that waits for the server's end, and unmounts lazily if the server did not: killed by `kill -9` or
/// by the kernel for want of memory, it leaves a mount that answers nothing but "not connected".
pub(crate) struct Guardian {
    pipe: File,
    process: Pid,
}

impl Guardian {
    /// Forks it. Call it before there are threads, and before `/dev/fuse` is open: it must not keep that.
    pub(crate) fn start() -> io::Result<Self> {
        let (read, write) = pipe2(OFlag::O_CLOEXEC)?;
        // SAFETY: the caller has started no thread, so no lock is held by one that the child would miss.
        match unsafe { fork() }? {
            ForkResult::Child => {
                drop(write);
                guard(read);
                std::process::exit(0)
            }
            ForkResult::Parent { child } => Ok(Self { pipe: write.into(), process: child }),
        }
    }

    /// Tells it what to clean up.
    pub(crate) fn watch(&mut self, point: &MountPoint) -> io::Result<()> {
        self.pipe.write_all(&point.to_bytes())
    }

    /// The mount is gone, or is to stay: the guardian ends, and does nothing.
    pub(crate) fn dismiss(mut self) {
        let _ = self.pipe.write_all(&[DONE]);
        drop(self.pipe);
        let _ = waitpid(self.process, None);
    }
}

/// Ends a message to the guardian, and no path.
const DONE: u8 = 0xff;

fn guard(read: OwnedFd) {
    let _ = setsid();
    let _ = leave_terminal();
    let _ = pthread_sigmask(SigmaskHow::SIG_BLOCK, Some(&ending_signals()), None);
    let _ = nix::sys::prctl::set_name(c"veduta-guardian");
    close_all_but(&read);
    let mut message = Vec::new();
    let _ = File::from(read).read_to_end(&mut message);
    if message.last() == Some(&DONE) {
        return;
    }
    if let Some(point) = MountPoint::from_bytes(&message).filter(MountPoint::is_dead) {
        let _ = point.unmount(true);
    }
}

/// How often a process is looked after that was killed.
const LAST_LOOKS: u32 = 20;

/// Does what may never end in a process of its own, which is killed when it has written nothing after that long. What it wrote; empty if it
/// ended without a word. Call it while there are no other threads.
pub(crate) fn apart(work: impl FnOnce(&mut File), patience: Duration) -> Option<Vec<u8>> {
    let (read, write) = pipe2(OFlag::O_CLOEXEC).ok()?;
    // SAFETY: the caller has no other thread, so no lock is held by one that the child would miss.
    let child = match unsafe { fork() }.ok()? {
        ForkResult::Child => {
            drop(read);
            work(&mut File::from(write));
            // SAFETY: ends the process. What its parent has buffered is the parent's to write.
            unsafe { nix::libc::_exit(0) }
        }
        ForkResult::Parent { child } => child,
    };
    drop(write);
    let timeout = PollTimeout::try_from(patience).unwrap_or(PollTimeout::MAX);
    let came = poll(&mut [PollFd::new(read.as_fd(), PollFlags::POLLIN)], timeout);
    let mut said = Vec::new();
    let told = if matches!(came, Ok(1)) { File::from(read).read_to_end(&mut said).ok() } else { None };
    let _ = kill(child, Signal::SIGKILL);
    // It is gone at once, unless the server was at its request.
    for _ in 0..LAST_LOOKS {
        if waitpid(child, Some(WaitPidFlag::WNOHANG)) != Ok(WaitStatus::StillAlive) {
            break;
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    told.map(|_| said)
}

/// Closes every descriptor beyond the standard ones, except `kept`.
fn close_all_but(kept: &OwnedFd) {
    let Ok(kept) = u32::try_from(kept.as_raw_fd()) else { return };
    for (first, last) in [(3, kept.saturating_sub(1)), (kept + 1, u32::MAX)] {
        if first <= last {
            // SAFETY: this process was forked to do nothing but what follows; nobody uses the descriptors that it inherited.
            unsafe { nix::libc::close_range(first, last, 0) };
        }
    }
}

/// The signals that end a server in good order.
pub(crate) fn ending_signals() -> SigSet {
    [Signal::SIGTERM, Signal::SIGINT, Signal::SIGHUP].into_iter().collect()
}

/// Keeps those signals from ending the process at once. Threads that start later inherit this.
pub(crate) fn block_ending_signals() -> io::Result<()> {
    Ok(pthread_sigmask(SigmaskHow::SIG_BLOCK, Some(&ending_signals()), None)?)
}

/// An absolute form of a path that may be relative to where we still are.
pub(crate) fn absolute(path: &Path) -> std::path::PathBuf {
    std::path::absolute(path).unwrap_or_else(|_| path.to_owned())
}
