//! unsafe: ioctls with our own structures. The listener of a seccomp filter: `seccomp_unotify(2)`.
//!
//! A call that the filter marked waits in the kernel until it is answered. An answer is a value, an error, a descriptor that
//! is installed and returned, or "go on", upon which the kernel serves the call itself.

#![allow(unsafe_code)]

use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};

use nix::errno::Errno;
use nix::unistd::Pid;

use crate::Result;

/// A call that waits for an answer.
#[derive(Clone, Copy, Debug)]
pub struct Notification {
    /// Names this call to the listener.
    pub id: u64,
    /// The task: a thread, as we number it.
    pub tid: Pid,
    /// The call's number.
    pub number: u32,
    /// Its arguments.
    pub args: [u64; 6],
    /// The address behind the instruction that makes it; 0 if nobody asked.
    pub next: u64,
}

/// `struct seccomp_notif`
#[repr(C)]
#[derive(Default)]
struct RawNotification {
    id: u64,
    pid: u32,
    flags: u32,
    number: i32,
    arch: u32,
    instruction_pointer: u64,
    args: [u64; 6],
}

/// `struct seccomp_notif_resp`
#[repr(C)]
struct RawResponse {
    id: u64,
    value: i64,
    error: i32,
    flags: u32,
}

/// `struct seccomp_notif_addfd`
#[repr(C)]
struct RawAddFd {
    id: u64,
    flags: u32,
    srcfd: u32,
    newfd: u32,
    newfd_flags: u32,
}

const CONTINUE: u32 = 1;
const ADDFD_SETFD: u32 = 1;
const ADDFD_SEND: u32 = 2;
const SYNC_WAKE_UP: i32 = 1;

mod ioctls {
    use super::{RawAddFd, RawNotification, RawResponse};

    nix::ioctl_readwrite!(receive, b'!', 0, RawNotification);
    nix::ioctl_readwrite!(send, b'!', 1, RawResponse);
    nix::ioctl_write_ptr!(is_valid, b'!', 2, u64);
    nix::ioctl_write_ptr!(add_fd, b'!', 3, RawAddFd);
    nix::ioctl_write_int_bad!(set_flags, nix::request_code_write!(b'!', 4, size_of::<u64>()));
}

/// What became of a descriptor for a call.
pub enum Given {
    /// The call returns its number.
    Answered,
    /// The task has it under this number, but waits no longer: it makes the call again.
    Unanswered(RawFd),
}

/// The receiving end. Usable from many threads at once: each call goes to one of those that wait.
pub struct Listener(OwnedFd);

impl Listener {
    /// Takes over the descriptor that `seccomp(2)` returned. Asks for hand-over on the same processor, which old
    /// kernels do not have.
    pub fn new(fd: OwnedFd) -> Self {
        // SAFETY: the argument is passed by value, and the kernel refuses descriptors of other kinds.
        let _ = unsafe { ioctls::set_flags(fd.as_raw_fd(), SYNC_WAKE_UP) };
        Self(fd)
    }

    /// Waits for a call. `ENOENT`: one was there and its task died; ask again. `EINTR` as usual.
    pub fn receive(&self) -> Result<Notification> {
        let mut raw = RawNotification::default();
        // SAFETY: `raw` is zeroed, as the kernel demands, has its layout, and lives through the call.
        unsafe { ioctls::receive(self.raw(), &raw mut raw) }?;
        Ok(Notification {
            id: raw.id,
            tid: Pid::from_raw(raw.pid as i32),
            number: raw.number as u32,
            args: raw.args,
            next: raw.instruction_pointer,
        })
    }

    /// Whether the call still waits. What was read from the task's memory before a yes is the call's own.
    pub fn is_waiting(&self, id: u64) -> bool {
        // SAFETY: the kernel reads one number.
        unsafe { ioctls::is_valid(self.raw(), &raw const id) }.is_ok()
    }

    /// Lets the kernel serve the call. `ENOENT`: it waits no longer.
    pub fn go_on(&self, id: u64) -> Result<()> {
        self.respond(RawResponse { id, value: 0, error: 0, flags: CONTINUE })
    }

    /// Answers the call with a value.
    pub fn value(&self, id: u64, value: i64) -> Result<()> {
        self.respond(RawResponse { id, value, error: 0, flags: 0 })
    }

    /// Answers the call with an error number of the kernel's, which may be one of those that never reach a program (512
    /// and up: restart the call).
    pub fn error(&self, id: u64, errno: i32) -> Result<()> {
        self.respond(RawResponse { id, value: 0, error: -errno, flags: 0 })
    }

    fn respond(&self, mut response: RawResponse) -> Result<()> {
        // SAFETY: `response` has the kernel's layout and lives through the call.
        unsafe { ioctls::send(self.raw(), &raw mut response) }.map(drop)
    }

    /// Installs a descriptor in the task, and says its number there. The call goes on waiting.
    pub fn install(&self, id: u64, fd: BorrowedFd<'_>, close_on_exec: bool) -> Result<RawFd> {
        self.add(id, fd, close_on_exec, 0)
    }

    /// Installs a descriptor and answers the call with its number, in one step. On an error nothing is installed.
    pub fn answer_with(&self, id: u64, fd: BorrowedFd<'_>, close_on_exec: bool) -> Result<Given> {
        match self.add(id, fd, close_on_exec, ADDFD_SEND) {
            // Kernels before 5.14 do not know the flag.
            Err(Errno::EINVAL) => {
                let number = self.add(id, fd, close_on_exec, 0)?;
                match self.value(id, number.into()) {
                    Err(Errno::ENOENT) => Ok(Given::Unanswered(number)),
                    done => done.map(|()| Given::Answered),
                }
            }
            done => done.map(|_| Given::Answered),
        }
    }

    /// Puts a descriptor in the place of the one that the task has under a number, in one step. The call goes on waiting.
    pub fn replace(&self, id: u64, fd: BorrowedFd<'_>, number: RawFd, close_on_exec: bool) -> Result<()> {
        self.add_as(id, fd, (ADDFD_SETFD, number), close_on_exec).map(drop)
    }

    fn add(&self, id: u64, fd: BorrowedFd<'_>, close_on_exec: bool, flags: u32) -> Result<RawFd> {
        self.add_as(id, fd, (flags, 0), close_on_exec)
    }

    fn add_as(
        &self,
        id: u64,
        fd: BorrowedFd<'_>,
        (flags, number): (u32, RawFd),
        close_on_exec: bool,
    ) -> Result<RawFd> {
        let newfd_flags = if close_on_exec { nix::libc::O_CLOEXEC as u32 } else { 0 };
        let raw = RawAddFd { id, flags, srcfd: fd.as_raw_fd() as u32, newfd: number as u32, newfd_flags };
        loop {
            // SAFETY: `raw` has the kernel's layout and lives through the call.
            match unsafe { ioctls::add_fd(self.raw(), &raw const raw) } {
                Err(Errno::EINTR) => {}
                done => return done,
            }
        }
    }

    fn raw(&self) -> RawFd {
        self.0.as_raw_fd()
    }
}

impl AsFd for Listener {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}
