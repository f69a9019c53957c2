//! unsafe: raw waits. A task that is stopped by ptrace.
//!
//! A task is attached for a moment, its registers are changed, and it is let go. [`Stopped`] is the proof that none of its
//! instructions run; dropping it lets the task go on. What tracing would lose is kept: signals that come in between are
//! sent again at the end, and a call that the stop cut short is restarted as the kernel restarts it.

#![allow(unsafe_code)]

use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};

use nix::errno::Errno;
use nix::libc;
use nix::sys::ptrace;
use nix::sys::signal::Signal;
use nix::sys::wait::{Id, WaitPidFlag, WaitStatus, waitid, waitpid};
use nix::unistd::Pid;

use crate::{Program, Result, Task, raw};

/// The kernel's own error for "restart this call, whatever came in between": `ERESTARTNOINTR`.
pub const RESTART: i32 = 513;

const ERESTARTSYS: i64 = -512;
const ERESTARTNOINTR: i64 = -(RESTART as i64);
const ERESTARTNOHAND: i64 = -514;
const ERESTART_RESTARTBLOCK: i64 = -516;

/// Bytes below the stack pointer that a function may use without moving it.
const RED_ZONE: u64 = 128;

/// The general registers of a stopped task.
#[derive(Clone, Copy)]
pub struct Registers(libc::user_regs_struct);

#[cfg(target_arch = "x86_64")]
impl Registers {
    const SYSCALL: &[u8] = &[0x0f, 0x05];

    pub(crate) fn load(tid: Pid) -> Result<Self> {
        ptrace::getregs(tid).map(Self)
    }

    pub(crate) fn store(&self, tid: Pid) -> Result<()> {
        ptrace::setregs(tid, self.0)
    }

    /// What the last call returned, negative errors included.
    pub fn result(&self) -> i64 {
        self.0.rax as i64
    }

    /// Sets what the call returns.
    pub fn set_result(&mut self, value: i64) {
        self.0.rax = value as u64;
        self.0.orig_rax = u64::MAX;
    }

    /// The call that the task is in or was in; `None` if it came here otherwise.
    pub fn number(&self) -> Option<u32> {
        u32::try_from(self.0.orig_rax as i64).ok()
    }

    /// The stack pointer.
    pub fn stack(&self) -> u64 {
        self.0.rsp
    }

    fn instruction(&self) -> u64 {
        self.0.rip
    }

    /// Makes the task run a call next: `at` is where an instruction for that is.
    fn set_call(&mut self, at: u64, number: u32, args: [u64; 6]) {
        self.0.rip = at;
        self.0.rax = number.into();
        self.0.orig_rax = u64::MAX;
        [self.0.rdi, self.0.rsi, self.0.rdx, self.0.r10, self.0.r8, self.0.r9] = args;
    }

    /// Whether it stands behind a call that the kernel does not make again after a stop, though nothing came for the program (signal(7): "even in the absence
    /// of signal handlers").
    fn was_disturbed(&self) -> bool {
        const NEVER_AGAIN: &[i64] = &[
            libc::SYS_epoll_wait,
            libc::SYS_epoll_pwait,
            libc::SYS_epoll_pwait2,
            libc::SYS_rt_sigtimedwait,
            libc::SYS_semop,
            libc::SYS_semtimedop,
            libc::SYS_io_getevents,
            // Of sockets for which a longest time was set.
            libc::SYS_read,
            libc::SYS_readv,
            libc::SYS_write,
            libc::SYS_writev,
            libc::SYS_recvfrom,
            libc::SYS_recvmsg,
            libc::SYS_recvmmsg,
            libc::SYS_sendto,
            libc::SYS_sendmsg,
            libc::SYS_sendmmsg,
            libc::SYS_accept,
            libc::SYS_accept4,
        ];
        let number = self.number().map(i64::from);
        self.result() == -(Errno::EINTR as i64) && number.is_some_and(|number| NEVER_AGAIN.contains(&number))
    }

    /// Says of that call that it is to be made again.
    fn restart(&mut self) {
        self.0.rax = ERESTARTNOINTR as u64;
    }

    /// Goes back to before a call that was left out.
    fn call_again(&mut self, number: u32, _first: u64) {
        self.0.rax = number.into();
        self.0.orig_rax = u64::MAX;
        self.0.rip -= Self::SYSCALL.len() as u64;
    }

    /// What the kernel does with a call that a stop cut short, which it cannot do once we have run another.
    fn restarted(mut self) -> Self {
        if self.number().is_none() {
            return self;
        }
        match self.result() {
            ERESTARTSYS | ERESTARTNOINTR | ERESTARTNOHAND => self.0.rax = self.0.orig_rax,
            ERESTART_RESTARTBLOCK => self.0.rax = libc::SYS_restart_syscall as u64,
            _ => return self,
        }
        self.0.rip -= Self::SYSCALL.len() as u64;
        self.0.orig_rax = u64::MAX;
        self
    }
}

#[cfg(target_arch = "aarch64")]
impl Registers {
    /// `svc #0`
    const SYSCALL: &[u8] = &[0x01, 0x00, 0x00, 0xd4];

    pub(crate) fn load(tid: Pid) -> Result<Self> {
        ptrace::getregset::<ptrace::regset::NT_PRSTATUS>(tid).map(Self)
    }

    pub(crate) fn store(&self, tid: Pid) -> Result<()> {
        ptrace::setregset::<ptrace::regset::NT_PRSTATUS>(tid, self.0)
    }

    /// What the last call returned, negative errors included.
    pub fn result(&self) -> i64 {
        self.0.regs[0] as i64
    }

    /// Sets what the call returns.
    pub fn set_result(&mut self, value: i64) {
        self.0.regs[0] = value as u64;
    }

    /// The call that the task is in or was in.
    pub fn number(&self) -> Option<u32> {
        u32::try_from(self.0.regs[8]).ok()
    }

    /// The stack pointer.
    pub fn stack(&self) -> u64 {
        self.0.sp
    }

    fn instruction(&self) -> u64 {
        self.0.pc
    }

    /// Makes the task run a call next: `at` is where an instruction for that is.
    fn set_call(&mut self, at: u64, number: u32, args: [u64; 6]) {
        self.0.pc = at;
        self.0.regs[8] = number.into();
        self.0.regs[..6].copy_from_slice(&args);
    }

    /// Its arguments would be lost: it returns `EINTR`, as after a stop by job control.
    fn was_disturbed(&self) -> bool {
        false
    }

    fn restart(&mut self) {}

    fn call_again(&mut self, number: u32, first: u64) {
        self.0.regs[8] = number.into();
        self.0.regs[0] = first;
        self.0.pc -= Self::SYSCALL.len() as u64;
    }

    /// What the kernel does with a call that a stop cut short. The first argument is lost where the result is, and only the
    /// kernel still has it: such a call returns `EINTR`.
    fn restarted(mut self) -> Self {
        if matches!(self.result(), ERESTARTSYS | ERESTARTNOINTR | ERESTARTNOHAND | ERESTART_RESTARTBLOCK) {
            self.set_result(-(Errno::EINTR as i64));
        }
        self
    }
}

impl Registers {
    /// Those of a task that stopped because it was asked to.
    fn undisturbed(tid: Pid) -> Result<Self> {
        let mut registers = Self::load(tid)?;
        if registers.was_disturbed() && !Task(tid).has_signal() {
            registers.restart();
        }
        Ok(registers)
    }
}

/// Calls that make a process.
#[cfg(target_arch = "x86_64")]
const FORKS: &[i64] = &[libc::SYS_vfork, libc::SYS_clone, libc::SYS_clone3];
#[cfg(target_arch = "aarch64")]
const FORKS: &[i64] = &[libc::SYS_clone, libc::SYS_clone3];

/// Whether a task waits in `vfork(2)`, as [`Attached::waits_for_child`] says.
pub fn waits_for_child(tid: Pid) -> bool {
    let number = Task(tid).blocked_in().ok().flatten();
    number.is_some_and(|number| FORKS.contains(&i64::from(number)))
}

/// A task that was asked to stop.
pub struct Attached {
    tid: Pid,
    /// All threads of its process are attached: then it does not take over the leader's number when it loads a program,
    /// since whoever holds the leader does.
    all_threads: bool,
}

impl Attached {
    /// Attaches a task and asks it to stop. `EPERM` if somebody else traces it, or if it may not be traced. Only the
    /// calling thread can go on with it.
    pub fn new(tid: Pid) -> Result<Self> {
        let options = ptrace::Options::PTRACE_O_TRACESYSGOOD | ptrace::Options::PTRACE_O_TRACEEXEC;
        ptrace::seize(tid, options)?;
        let attached = Self { tid, all_threads: false };
        ptrace::interrupt(tid)?;
        Ok(attached)
    }

    /// The same for a thread whose process has all its threads attached.
    pub fn one_of_all(tid: Pid) -> Result<Self> {
        let mut attached = Self::new(tid)?;
        attached.all_threads = true;
        Ok(attached)
    }

    /// The task.
    pub fn tid(&self) -> Pid {
        self.tid
    }

    /// Whether [`Attached::wait`] would return at once.
    pub fn is_ready(&self) -> bool {
        let flags = WaitPidFlag::WEXITED
            | WaitPidFlag::WSTOPPED
            | WaitPidFlag::WNOHANG
            | WaitPidFlag::WNOWAIT
            | WaitPidFlag::__WALL;
        !matches!(waitid(Id::Pid(self.tid), flags), Ok(WaitStatus::StillAlive) | Err(Errno::EINTR))
    }

    /// Whether it waits in `vfork(2)` (or a form of `clone(2)` that waits like it) until its child runs a program. It does
    /// not stop before that, but does stop before it runs again itself.
    pub fn waits_for_child(&self) -> bool {
        waits_for_child(self.tid)
    }

    /// Waits until it stands. `ESRCH` if it died.
    pub fn wait(self) -> Result<Stopped> {
        let leader = Task(self.tid).leader()?;
        let mut stopped = Stopped::new(self.tid, leader, false);
        stopped.takes_over = !self.all_threads;
        std::mem::forget(self);
        loop {
            match stopped.next_event()? {
                Event::Stop => break,
                // Delivered as if nobody watched. Any stop takes the place of the one that was asked for, which is asked for again.
                Event::Signal(signal) => {
                    ptrace::interrupt(stopped.tid)?;
                    ptrace::cont(stopped.tid, signal)?;
                }
                Event::Exec | Event::Call => {
                    ptrace::interrupt(stopped.tid)?;
                    ptrace::cont(stopped.tid, None)?;
                }
            }
        }
        stopped.saved = Some(Registers::undisturbed(stopped.tid)?);
        Ok(stopped)
    }
}

impl Drop for Attached {
    fn drop(&mut self) {
        // It runs, and only a stopped task can be let go.
        if waitpid(self.tid, Some(WaitPidFlag::__WALL)).is_ok() {
            let _ = ptrace::detach(self.tid, None);
        }
    }
}

/// A process may have some descriptors more, as long as this lives.
struct MoreRoom {
    process: Pid,
    before: libc::rlimit,
}

impl MoreRoom {
    /// `EMFILE` if that is not allowed.
    fn new(process: Pid, more: u64) -> Result<Self> {
        let mut before = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
        // SAFETY: the structure lives through the call.
        let got = unsafe {
            libc::prlimit(process.as_raw(), libc::RLIMIT_NOFILE, std::ptr::null(), &raw mut before)
        };
        Errno::result(got).map_err(|_| Errno::EMFILE)?;
        let now = before.rlim_cur.saturating_add(more);
        Self::set(process, libc::rlimit { rlim_cur: now, rlim_max: before.rlim_max.max(now) })?;
        Ok(Self { process, before })
    }

    fn set(process: Pid, limit: libc::rlimit) -> Result<()> {
        // SAFETY: the structure lives through the call.
        let set = unsafe {
            libc::prlimit(process.as_raw(), libc::RLIMIT_NOFILE, &raw const limit, std::ptr::null_mut())
        };
        Errno::result(set).map(drop).map_err(|_| Errno::EMFILE)
    }
}

impl Drop for MoreRoom {
    fn drop(&mut self) {
        // It may have ended.
        let _ = Self::set(self.process, self.before);
    }
}

enum Event {
    /// The stop that was asked for, or that of a whole group.
    Stop,
    /// A signal is about to be delivered.
    Signal(Signal),
    /// A new program was loaded.
    Exec,
    /// A call begins or ends.
    Call,
}

/// A task that stands still.
pub struct Stopped {
    tid: Pid,
    /// The process that it belongs to.
    leader: Pid,
    /// The registers as they were.
    saved: Option<Registers>,
    /// Signals that came while we were at it.
    signals: Vec<Signal>,
    gone: bool,
    /// It stood before, as its whole process did: by SIGSTOP, or a terminal's.
    stood: bool,
    /// It stays traced when this is dropped.
    stays: bool,
    /// It takes over its leader's number when it loads a program.
    takes_over: bool,
    /// It is loading a program: the other threads of its process end, and it may take over their leader's number.
    loads: bool,
    /// Traced threads that ended and were waited for.
    ended: Vec<Pid>,
}

impl Stopped {
    fn new(tid: Pid, leader: Pid, stays: bool) -> Self {
        Self {
            tid,
            leader,
            saved: None,
            signals: Vec::new(),
            gone: false,
            stood: false,
            stays,
            takes_over: true,
            loads: false,
            ended: Vec::new(),
        }
    }

    /// The process that it belongs to.
    pub fn leader(&self) -> Pid {
        self.leader
    }

    /// Who was let go stops once more, by itself. Until then `ptrace(2)` would find it running where it stood: `ESRCH` from the first request
    /// after `PTRACE_ATTACH`, which waits only for who stands.
    fn wait_until_it_stands(&self) {
        const PATIENCE: std::time::Duration = std::time::Duration::from_millis(20);
        let since = std::time::Instant::now();
        while since.elapsed() < PATIENCE
            && Task(self.tid).state().is_some_and(|state| !matches!(state, 'T' | 'Z' | 'X'))
        {
            std::thread::sleep(std::time::Duration::from_micros(50));
        }
    }

    /// Looks whether it still is what it was: another thread of its process may have loaded a program, which ended this one, or
    /// took over its number. `false` if it has ended.
    pub fn is_still_there(&mut self) -> bool {
        match waitpid(self.tid, Some(WaitPidFlag::WNOHANG | WaitPidFlag::__WALL)) {
            Ok(WaitStatus::PtraceEvent(..)) => {
                self.saved = Registers::load(self.tid).ok();
                true
            }
            Ok(WaitStatus::Exited(..) | WaitStatus::Signaled(..)) | Err(Errno::ECHILD) => {
                self.gone = true;
                false
            }
            _ => true,
        }
    }

    /// Threads of a tracer that this has waited for, because they ended when a program was loaded.
    pub(crate) fn take_ended(&mut self) -> Vec<Pid> {
        std::mem::take(&mut self.ended)
    }

    /// A task of a tracer that stands where a call begins. The call is left out, and returns what is set as its result.
    pub(crate) fn skipping(tid: Pid) -> Result<Self> {
        let leader = Task(tid).leader()?;
        let mut registers = Registers::load(tid)?;
        registers.set_result(-(Errno::ENOSYS as i64));
        registers.store(tid)?;
        let mut stopped = Self::new(tid, leader, true);
        stopped.run_to(|event| matches!(event, Event::Call))?;
        stopped.saved = Some(Registers::load(stopped.tid)?);
        Ok(stopped)
    }

    /// A task of a tracer that stands where it was asked to.
    pub(crate) fn standing(tid: Pid) -> Result<Self> {
        let mut stopped = Self::new(tid, Task(tid).leader()?, true);
        stopped.saved = Some(Registers::undisturbed(tid)?);
        Ok(stopped)
    }

    /// The call that was left out is to be made after all; `first` is its first argument.
    pub fn make_call_again(&mut self, number: u32, first: u64) {
        if let Some(saved) = &mut self.saved {
            saved.call_again(number, first);
        }
    }

    /// Gives the task a descriptor, under the lowest number that is free.
    pub fn give(&mut self, fd: BorrowedFd<'_>, close_on_exec: bool) -> Result<RawFd> {
        match self.give_below(fd, close_on_exec, u64::MAX) {
            // On the way it takes two numbers more.
            Err(Errno::EMFILE) => {
                let room = MoreRoom::new(self.leader, 2)?;
                self.give_below(fd, close_on_exec, room.before.rlim_cur)
            }
            done => done,
        }
    }

    /// The same; `EMFILE` if the number would not be below `limit`.
    fn give_below(&mut self, fd: BorrowedFd<'_>, close_on_exec: bool, limit: u64) -> Result<RawFd> {
        let flags = (libc::SOCK_DGRAM | libc::SOCK_CLOEXEC) as u64;
        let at = self.scratch(256)?;
        self.call(libc::SYS_socketpair as u32, [libc::AF_UNIX as u64, flags, 0, at, 0, 0])?;
        let task = Task(self.tid);
        let pair = task.read_u64(at)?;
        let (lower, upper) = (pair & 0xffff_ffff, pair >> 32);
        let received = if lower < limit {
            self.receive_through(fd, upper as RawFd, lower, at)
        } else {
            Err(Errno::EMFILE)
        };
        self.call(libc::SYS_close as u32, [upper, 0, 0, 0, 0, 0])?;
        let number = match received {
            Ok(number) => number,
            Err(errno) => {
                self.call(libc::SYS_close as u32, [lower, 0, 0, 0, 0, 0])?;
                return Err(errno);
            }
        };
        let flags = if close_on_exec { libc::O_CLOEXEC as u64 } else { 0 };
        let moved = self.call(libc::SYS_dup3 as u32, [number, lower, flags, 0, 0, 0]);
        self.call(libc::SYS_close as u32, [number, 0, 0, 0, 0, 0])?;
        moved.map(|number| number as RawFd)
    }

    /// Puts a descriptor in the place of the one that the task has under a number, in one step.
    pub fn replace(&mut self, fd: BorrowedFd<'_>, number: RawFd, close_on_exec: bool) -> Result<()> {
        let mut room = None;
        let new = match self.give_below(fd, true, u64::MAX) {
            Err(Errno::EMFILE) => {
                room = Some(MoreRoom::new(self.leader, 3)?);
                self.give_below(fd, true, u64::MAX)
            }
            done => done,
        };
        let new = new? as u64;
        let flags = if close_on_exec { libc::O_CLOEXEC as u64 } else { 0 };
        let moved = self.call(libc::SYS_dup3 as u32, [new, number as u64, flags, 0, 0, 0]);
        self.call(libc::SYS_close as u32, [new, 0, 0, 0, 0, 0])?;
        drop(room);
        moved.map(drop)
    }

    /// Sends a descriptor through a socket pair of the task's, and has the task receive it.
    fn receive_through(&mut self, fd: BorrowedFd<'_>, from: RawFd, to: u64, at: u64) -> Result<u64> {
        use nix::sys::socket::{ControlMessage, MsgFlags, sendmsg};
        let task = Task(self.tid);
        let ours = task.descriptor(from).map_err(|errno| match errno {
            // It is we who have no more, and not the task.
            Errno::EMFILE => Errno::ENFILE,
            other => other,
        })?;
        let fds = [fd.as_raw_fd()];
        let parts = [std::io::IoSlice::new(b"f")];
        sendmsg::<()>(ours.as_raw_fd(), &parts, &[ControlMessage::ScmRights(&fds)], MsgFlags::empty(), None)?;
        // `struct msghdr`, the vector of one part, the part, and room for one descriptor.
        let (header, vector, part, control) = (at + 16, at + 80, at + 104, at + 112);
        let words = [0, 0, vector, 1, control, 24, 0];
        task.write(header, &words.map(u64::to_ne_bytes).concat())?;
        task.write(vector, &[part, 1].map(u64::to_ne_bytes).concat())?;
        let flags = libc::MSG_CMSG_CLOEXEC as u64;
        self.call(libc::SYS_recvmsg as u32, [to, header, flags, 0, 0, 0])?;
        // No room in the task's table: the kernel gives the message without the descriptor.
        if task.read_u64(header + 40)? < 20 {
            return Err(Errno::EMFILE);
        }
        task.read_array(control + 16).map(|bytes| u32::from_ne_bytes(bytes).into())
    }

    /// The task.
    pub fn tid(&self) -> Pid {
        self.tid
    }

    /// The registers with which it stopped.
    pub fn registers(&self) -> Registers {
        // `wait` fills it in before anybody sees a `Stopped`.
        self.saved.expect("a stopped task has registers")
    }

    /// Whether it stands behind call `number`, which was answered with [`RESTART`], and nothing else happened.
    pub fn stands_at(&self, number: u32) -> bool {
        let registers = self.registers();
        registers.number() == Some(number) && matches!(registers.result(), ERESTARTNOINTR | ERESTARTSYS)
    }

    /// Has the call in which it stands return `value`.
    pub fn set_result(&mut self, value: i64) {
        if let Some(saved) = &mut self.saved {
            saved.set_result(value);
        }
    }

    /// Has the task make a call, and says what came of it. Addresses are the task's.
    pub fn call(&mut self, number: u32, args: [u64; 6]) -> Result<i64> {
        self.start_call(number, args)?;
        self.run_to(|event| matches!(event, Event::Call))?;
        let result = Registers::load(self.tid)?.result();
        if result < 0 && result > -4096 { Err(Errno::from_raw(-result as i32)) } else { Ok(result) }
    }

    /// Has the task make an `execve` call. `Ok(true)`: it runs the new program, and stands before its first instruction.
    pub fn exec(&mut self, number: u32, args: [u64; 6]) -> Result<bool> {
        self.start_call(number, args)?;
        let mut new_program = false;
        self.loads = true;
        let former = self.tid;
        let loaded = self.run_to(|event| {
            new_program |= matches!(event, Event::Exec);
            matches!(event, Event::Call)
        });
        self.loads = false;
        loaded?;
        if former != self.tid {
            self.ended.push(former);
        }
        if new_program {
            self.saved = Some(Registers::load(self.tid)?);
            return Ok(true);
        }
        let result = Registers::load(self.tid)?.result();
        self.set_result(result);
        Ok(false)
    }

    /// Room for `len` bytes that the program does not use: below its stack. Valid until it runs.
    pub fn scratch(&mut self, len: usize) -> Result<u64> {
        let below = self.registers().stack().checked_sub(RED_ZONE + len as u64 + 64).ok_or(Errno::ENOMEM)?;
        let address = below & !63;
        if (Task(self.tid)).write(address, &[0]).is_err() {
            // The kernel extends a stack when the task itself touches it, and a call that writes there does.
            self.call(libc::SYS_getrandom as u32, [address, 1, 0, 0, 0, 0])?;
        }
        Ok(address)
    }

    /// Adds a filter to all threads of the process, and gives its listener. The task's old listener must be closed.
    pub fn add_filter(&mut self, program: &Program) -> Result<OwnedFd> {
        let number = match self.install(program, NEW_LISTENER | WAIT_KILLABLE | ALL_THREADS | ERROR_IS_ESRCH)
        {
            Err(Errno::EINVAL) => self.install(program, NEW_LISTENER | ALL_THREADS | ERROR_IS_ESRCH),
            done => done,
        }?;
        let handle = Task(self.tid).handle()?;
        let listener = raw::pidfd_get(handle.as_fd(), number as RawFd);
        self.call(libc::SYS_close as u32, [number as u64, 0, 0, 0, 0, 0])?;
        listener
    }

    /// Adds a filter that stops for a tracer to all threads of the process.
    pub(crate) fn add_traced_filter(&mut self, program: &Program) -> Result<()> {
        match self.install(program, ALL_THREADS)? {
            0 => Ok(()),
            // The number of a thread that has another filter.
            _ => Err(Errno::ESRCH),
        }
    }

    fn install(&mut self, program: &Program, flags: u64) -> Result<i64> {
        let code = program.to_bytes();
        let header = 16;
        let address = self.scratch(code.len() + header)?;
        let mut bytes = Vec::with_capacity(code.len() + header);
        bytes.extend_from_slice(&((code.len() / 8) as u64).to_ne_bytes());
        bytes.extend_from_slice(&(address + header as u64).to_ne_bytes());
        bytes.extend(code);
        Task(self.tid).write(address, &bytes)?;
        // The kernel does not look at the last argument; a filter that catches this call lets ours pass.
        let args = [libc::SECCOMP_SET_MODE_FILTER.into(), flags, address, 0, 0, OWN_FILTER.into()];
        match self.call(libc::SYS_seccomp as u32, args) {
            // It was root's when the view began, and is somebody else's now.
            Err(Errno::EACCES) => {
                self.call(libc::SYS_prctl as u32, [libc::PR_SET_NO_NEW_PRIVS as u64, 1, 0, 0, 0, 0])?;
                self.call(libc::SYS_seccomp as u32, args)
            }
            done => done,
        }
    }

    fn start_call(&mut self, number: u32, args: [u64; 6]) -> Result<()> {
        let at = self.call_instruction()?;
        let mut registers = self.registers();
        registers.set_call(at, number, args);
        registers.store(self.tid)?;
        self.run_to(|event| matches!(event, Event::Call))
    }

    /// Runs from stop to stop until one is what is waited for.
    fn run_to(&mut self, mut is_it: impl FnMut(&Event) -> bool) -> Result<()> {
        loop {
            ptrace::syscall(self.tid, None)?;
            let event = self.next_event()?;
            if is_it(&event) {
                return Ok(());
            }
            if let Event::Signal(signal) = event {
                self.signals.push(signal);
            }
        }
    }

    fn next_event(&mut self) -> Result<Event> {
        loop {
            // Whoever sleeps in wait(2) for a thread is not woken when that thread takes over its process's number by execve(2). And
            // execve(2) waits until all other threads that are traced were waited for.
            let may_vanish = self.tid != self.leader || (self.loads && self.stays);
            let flags = if may_vanish { WaitPidFlag::WNOHANG } else { WaitPidFlag::empty() };
            let status = match waitpid(self.tid, Some(flags | WaitPidFlag::__WALL)) {
                Err(Errno::EINTR) => continue,
                Ok(WaitStatus::StillAlive) => {
                    if self.loads && self.stays {
                        self.reap_others();
                    }
                    std::thread::sleep(std::time::Duration::from_micros(100));
                    continue;
                }
                // A thread that loads a program takes over the number of its process.
                Err(Errno::ECHILD) if self.tid != self.leader && self.takes_over => {
                    self.tid = self.leader;
                    continue;
                }
                Err(_) => {
                    self.gone = true;
                    return Err(Errno::ESRCH);
                }
                Ok(status) => status,
            };
            return match status {
                WaitStatus::PtraceSyscall(_) => Ok(Event::Call),
                WaitStatus::PtraceEvent(_, _, libc::PTRACE_EVENT_EXEC) => Ok(Event::Exec),
                WaitStatus::PtraceEvent(_, signal, _) => {
                    self.stood = signal != Signal::SIGTRAP;
                    Ok(Event::Stop)
                }
                WaitStatus::Stopped(_, signal) => Ok(Event::Signal(signal)),
                WaitStatus::Exited(..) | WaitStatus::Signaled(..) => {
                    self.gone = true;
                    Err(Errno::ESRCH)
                }
                _ => continue,
            };
        }
    }

    /// Waits for those of the other threads that have ended. Of a thread that only stopped, nothing is taken: the new program may fail
    /// to load, and then it goes on.
    fn reap_others(&mut self) {
        let threads =
            std::fs::read_dir(format!("/proc/{}/task", self.leader)).into_iter().flatten().flatten();
        for tid in threads.filter_map(|entry| entry.file_name().to_str()?.parse().ok().map(Pid::from_raw)) {
            if tid == self.tid || tid == self.leader {
                continue;
            }
            let flags = WaitPidFlag::WEXITED | WaitPidFlag::WNOHANG | WaitPidFlag::__WALL;
            if matches!(waitid(Id::Pid(tid), flags), Ok(WaitStatus::Exited(..) | WaitStatus::Signaled(..))) {
                self.ended.push(tid);
            }
        }
    }

    /// Where the task has an instruction that makes a call.
    fn call_instruction(&self) -> Result<u64> {
        let task = Task(self.tid);
        let len = Registers::SYSCALL.len();
        let before = self.registers().instruction().wrapping_sub(len as u64);
        let mut bytes = vec![0; len];
        if task.read(before, &mut bytes).is_ok() && bytes == Registers::SYSCALL {
            return Ok(before);
        }
        let maps = std::fs::read(format!("/proc/{}/maps", self.tid)).map_err(|_| Errno::ESRCH)?;
        let maps = String::from_utf8_lossy(&maps);
        let line = maps.lines().find(|line| line.ends_with("[vdso]")).ok_or(Errno::ENOEXEC)?;
        let (start, end) =
            line.split_once(' ').and_then(|(range, _)| range.split_once('-')).ok_or(Errno::EIO)?;
        let parse = |text| u64::from_str_radix(text, 16).map_err(|_| Errno::EIO);
        let (start, end) = (parse(start)?, parse(end)?);
        let mut code = vec![0; end.saturating_sub(start) as usize];
        task.read(start, &mut code)?;
        let found = code.windows(len).position(|window| window == Registers::SYSCALL);
        found.map(|at| start + at as u64).ok_or(Errno::ENOEXEC)
    }
}

impl Drop for Stopped {
    fn drop(&mut self) {
        if self.gone {
            return;
        }
        if let Some(saved) = self.saved {
            let _ = saved.restarted().store(self.tid);
        }
        for signal in self.signals.drain(..) {
            // SAFETY: numbers only.
            unsafe { libc::syscall(libc::SYS_tkill, self.tid.as_raw(), signal as i32) };
        }
        if !self.stays {
            let _ = ptrace::detach(self.tid, None);
            if self.stood {
                self.wait_until_it_stands();
            }
        }
    }
}

const NEW_LISTENER: u64 = 1 << 3;
const WAIT_KILLABLE: u64 = 1 << 5;

/// Whether a task that waits for an answer can be brought away from it by any signal: before Linux 5.19.
pub fn waits_are_interrupted() -> bool {
    let values = [libc::SECCOMP_SET_MODE_FILTER.into(), NEW_LISTENER | WAIT_KILLABLE, 0];
    // There is no filter there (`EFAULT`), unless the flag is wrong already.
    raw::call(libc::SYS_seccomp as u32, &mut values.map(raw::Argument::Value)) == Err(Errno::EINVAL)
}

const ALL_THREADS: u64 = 1;
const ERROR_IS_ESRCH: u64 = 1 << 4;
/// The last argument of a `seccomp(2)` that the engine has a task make.
pub const OWN_FILTER: u32 = 0x7665_6475;

/// Adds a filter to the calling thread, and gives the number of its listener (which closes on exec), or 0 if it is to have none. For
/// a child that is about to run its program: calls nothing that is not safe there.
pub(crate) fn add_own_filter(
    program: &libc::sock_fprog,
    listens: bool,
    no_new_privileges: bool,
) -> Result<RawFd> {
    if no_new_privileges {
        // SAFETY: numbers only.
        Errno::result(unsafe { libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) })?;
    }
    let mode = libc::SECCOMP_SET_MODE_FILTER;
    let install = |flags: u64| {
        // SAFETY: the program lives through the call.
        let fd = unsafe { libc::syscall(libc::SYS_seccomp, mode, flags, std::ptr::from_ref(program)) };
        Errno::result(fd).map(|fd| fd as RawFd)
    };
    if !listens {
        return install(0);
    }
    match install(NEW_LISTENER | WAIT_KILLABLE) {
        Err(Errno::EINVAL) => install(NEW_LISTENER),
        done => done,
    }
}
