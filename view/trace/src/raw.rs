//! unsafe: arguments by hand. System calls that no library wraps, made by ourselves.

#![allow(unsafe_code)]

use std::ffi::CStr;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

use nix::errno::Errno;
use nix::libc;
use nix::unistd::Pid;

use crate::Result;

/// A memory file: `memfd_create(2)`, executable where the kernel asks.
pub fn memory_file(name: &CStr) -> Result<OwnedFd> {
    const EXEC: libc::c_uint = 0x10;
    let create = |flags| {
        // SAFETY: `name` ends in a NUL and lives through the call.
        let fd = unsafe { libc::memfd_create(name.as_ptr(), flags) };
        // SAFETY: a number that is not an error is a new descriptor that nobody else has.
        Errno::result(fd).map(|fd| unsafe { OwnedFd::from_raw_fd(fd) })
    };
    match create(libc::MFD_CLOEXEC | EXEC) {
        // Kernels before 6.3 do not know the flag, and always let memory files be run.
        Err(Errno::EINVAL) => create(libc::MFD_CLOEXEC),
        done => done,
    }
}

/// A handle on a task: `pidfd_open(2)`. On a single thread where the kernel can (6.9), else on its process, for which `tid`
/// must then be the leader.
pub fn pidfd(tid: Pid, leader: Pid) -> Result<OwnedFd> {
    const THREAD: libc::c_uint = libc::O_EXCL as libc::c_uint;
    let open = |pid: Pid, flags: libc::c_uint| {
        // SAFETY: numbers only.
        let fd = unsafe { libc::syscall(libc::SYS_pidfd_open, pid.as_raw(), flags) };
        // SAFETY: a number that is not an error is a new descriptor that nobody else has.
        Errno::result(fd).map(|fd| unsafe { OwnedFd::from_raw_fd(fd as RawFd) })
    };
    match open(tid, THREAD) {
        Err(Errno::EINVAL) => open(leader, 0),
        done => done,
    }
}

/// A copy of another task's descriptor, for the same open file description: `pidfd_getfd(2)`. `EBADF` if it has none.
pub fn pidfd_get(pidfd: BorrowedFd<'_>, number: RawFd) -> Result<OwnedFd> {
    // SAFETY: numbers only.
    let fd = unsafe { libc::syscall(libc::SYS_pidfd_getfd, pidfd.as_raw_fd(), number, 0) };
    // SAFETY: a number that is not an error is a new descriptor that nobody else has.
    Errno::result(fd).map(|fd| unsafe { OwnedFd::from_raw_fd(fd as RawFd) })
}

/// An argument of a call that we make for somebody else.
pub enum Argument<'a> {
    /// A number.
    Value(u64),
    /// A string that the kernel reads.
    Path(&'a CStr),
    /// Bytes that the kernel reads.
    Input(&'a [u8]),
    /// Bytes that the kernel writes.
    Output(&'a mut [u8]),
}

/// Makes a call that somebody else asked for, on our own account. The caller answers for the meaning: that an argument which
/// the kernel takes as an address is a `Path`, an `Input` or an `Output` of the size that the call expects, and never a `Value`
/// (other than 0).
pub fn call(number: u32, arguments: &mut [Argument<'_>]) -> Result<i64> {
    let mut values = [0_u64; 6];
    for (value, argument) in values.iter_mut().zip(arguments) {
        *value = match argument {
            Argument::Value(value) => *value,
            Argument::Path(path) => path.as_ptr() as u64,
            Argument::Input(bytes) => bytes.as_ptr() as u64,
            Argument::Output(bytes) => bytes.as_mut_ptr() as u64,
        };
    }
    let [a, b, c, d, e, f] = values;
    // SAFETY: as the function's head says: addresses come from slices that live through the call, and the callers pass sizes
    // that belong to them.
    let result = unsafe { libc::syscall(libc::c_long::from(number), a, b, c, d, e, f) };
    Errno::result(result)
}

/// Gives the calling thread its own working directory, root and umask, apart from the other threads.
pub fn unshare_fs() -> Result<()> {
    nix::sched::unshare(nix::sched::CloneFlags::CLONE_FS)
}

/// The calling thread takes short turns on its processor: as little as there is at once, and for that, soon. Threads that it starts do so too.
/// An error where somebody has given it a policy that does not go with that.
pub fn take_short_turns() -> Result<()> {
    /// `struct sched_attr`, as it was first: its size, the policy, flags, nice, the priority, and three times in nanoseconds.
    #[repr(C)]
    #[derive(Default)]
    struct Attributes {
        size: u32,
        policy: u32,
        flags: u64,
        nice: i32,
        priority: u32,
        times: [u64; 3],
    }
    let mut attributes = Attributes::default();
    // SAFETY: the kernel writes no more than it is told that there is room for.
    let done =
        unsafe { libc::syscall(libc::SYS_sched_getattr, 0, &raw mut attributes, size_of::<Attributes>(), 0) };
    Errno::result(done)?;
    if attributes.policy != libc::SCHED_OTHER as u32 {
        return Err(Errno::EOPNOTSUPP);
    }
    attributes.times = [100_000, 0, 0];
    // SAFETY: the structure has the kernel's layout, and lives through the call.
    let done = unsafe { libc::syscall(libc::SYS_sched_setattr, 0, &raw const attributes, 0) };
    Errno::result(done).map(drop)
}

/// Whose rights the calling thread uses on files; the other threads keep theirs. Only root can change them.
pub fn set_fs_identity(uid: u32, gid: u32, groups: &[u32]) -> Result<()> {
    // SAFETY: the list lives through the call. The raw call, other than the library's, is about this thread alone.
    let done = unsafe { libc::syscall(libc::SYS_setgroups, groups.len(), groups.as_ptr()) };
    Errno::result(done)?;
    // SAFETY: numbers only.
    unsafe {
        libc::syscall(libc::SYS_setfsgid, gid);
        libc::syscall(libc::SYS_setfsuid, uid);
    }
    Ok(())
}

/// Has a signal sent to us when the parent dies.
pub fn die_with_parent(signal: nix::sys::signal::Signal) -> Result<()> {
    nix::sys::prctl::set_pdeathsig(signal)
}

/// Makes orphans among our descendants our children.
pub fn adopt_orphans() -> Result<()> {
    nix::sys::prctl::set_child_subreaper(true)
}

/// Takes over a descriptor that [`call`] returned.
pub fn own(number: RawFd) -> OwnedFd {
    // SAFETY: the callers pass what an opening call just returned, which nobody else has.
    unsafe { OwnedFd::from_raw_fd(number) }
}

/// Has a signal do nothing but end the call in which it finds a thread (`EINTR`).
pub fn only_interrupt_on(signal: nix::sys::signal::Signal) -> Result<()> {
    extern "C" fn nothing(_: libc::c_int) {}
    let handler = nix::sys::signal::SigHandler::Handler(nothing);
    let action = nix::sys::signal::SigAction::new(
        handler,
        nix::sys::signal::SaFlags::empty(),
        nix::sys::signal::SigSet::empty(),
    );
    // SAFETY: the handler does nothing, which is safe anywhere.
    unsafe { nix::sys::signal::sigaction(signal, &action) }.map(drop)
}

/// Waits for one of the signals, which are blocked, or until the time is over.
pub fn wait_for_signal(
    signals: &nix::sys::signal::SigSet,
    time: &nix::sys::time::TimeSpec,
) -> Result<Option<nix::sys::signal::Signal>> {
    // SAFETY: both live through the call; no information about the signal is asked for.
    let number = unsafe { libc::sigtimedwait(signals.as_ref(), std::ptr::null_mut(), time.as_ref()) };
    match Errno::result(number) {
        Ok(number) => nix::sys::signal::Signal::try_from(number).map(Some),
        Err(Errno::EAGAIN | Errno::EINTR) => Ok(None),
        Err(errno) => Err(errno),
    }
}

/// How many of something a process may have, or how much.
#[derive(Clone, Copy, Debug)]
pub struct Limit {
    /// What counts now.
    pub now: u64,
    /// How far it may raise that itself.
    pub most: u64,
}

/// How many descriptors this process may have.
pub fn descriptor_limit() -> Result<Limit> {
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: the structure lives through the call.
    Errno::result(unsafe { libc::getrlimit(libc::RLIMIT_NOFILE, &raw mut limit) })?;
    Ok(Limit { now: limit.rlim_cur, most: limit.rlim_max })
}

/// Changes that.
pub fn set_descriptor_limit(limit: Limit) -> Result<()> {
    let limit = libc::rlimit { rlim_cur: limit.now, rlim_max: limit.most };
    // SAFETY: the structure lives through the call.
    Errno::result(unsafe { libc::setrlimit(libc::RLIMIT_NOFILE, &raw const limit) }).map(drop)
}
