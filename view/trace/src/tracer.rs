//! unsafe: raw waits and requests. Tasks that are traced all the time, where there is no listener.
//!
//! Either a seccomp filter stops them at the calls that matter, or every call stops them and the same filter is run
//! here. All functions are for the thread that started the command.
//!
//! A tracer that is to catch more has all tasks stop, and gives each process that has the old filter only a larger one
//! besides. A task that stops for another reason before, or is made by one that is behind, is asked again.

#![allow(unsafe_code)]

use std::cell::RefCell;
use std::collections::HashSet;

use nix::errno::Errno;
use nix::libc;
use nix::sys::ptrace;
use nix::unistd::Pid;

use crate::spawn::{Command, Refusal, spawn_traced};
use crate::stop::Registers;
use crate::{Notification, Program, Result, Stopped, Task};

/// What came of looking.
pub enum Happening {
    /// A task stands at a call that matters, until it is answered.
    Call(Notification),
    /// A task is new, or runs under this number now.
    Runs(Pid),
    /// A task ended, with this status.
    Ended(Pid, i32),
    /// A process was stopped by job control.
    Halted(Pid),
    /// A task that was asked to stands still, until it is let go; and whether it did before, by job control.
    Stands(Pid, bool),
    /// A task could not be given a larger filter. It stands still.
    Blind(Pid, Errno),
    /// Nothing for now.
    Nothing,
    /// There are no children.
    Deserted,
}

/// `struct ptrace_syscall_info`, as far as calls that begin have it.
#[repr(C)]
#[derive(Default)]
struct CallInfo {
    operation: u8,
    padding: [u8; 3],
    arch: u32,
    instruction: u64,
    stack: u64,
    number: u64,
    args: [u64; 6],
    more: [u64; 2],
}

const GET_SYSCALL_INFO: libc::c_uint = 0x420e;
const EVENT_STOP: i32 = 128;
const ENTRY: u8 = 1;

/// The tracer.
pub struct Tracer {
    filter: RefCell<Program>,
    /// There is no seccomp: every call stops.
    every_call: bool,
    /// Tasks that may have the old filter only.
    behind: RefCell<HashSet<Pid>>,
    /// Tasks that were asked to stand still.
    wanted: RefCell<HashSet<Pid>>,
    /// Those that need not any more, and will stop once.
    unwanted: RefCell<HashSet<Pid>>,
    /// Numbers that no task has any more, of which nobody was told.
    gone: RefCell<Vec<Pid>>,
}

impl Tracer {
    /// Traces by `SECCOMP_RET_TRACE`, or by stopping at every call.
    pub fn new(filter: Program, every_call: bool) -> Self {
        let tracer = Self {
            filter: RefCell::new(Program::new(Vec::new(), 0)),
            every_call,
            behind: RefCell::default(),
            wanted: RefCell::default(),
            unwanted: RefCell::default(),
            gone: RefCell::default(),
        };
        tracer.set_filter(filter);
        tracer
    }

    fn set_filter(&self, filter: Program) {
        self.filter.replace(if self.every_call { filter } else { filter.for_tracer() });
    }

    /// Catches what this filter says, from now on; `tasks` are all that there are. A task that stands at a call has the larger filter
    /// before it makes the next.
    pub fn grow(&self, filter: Program, tasks: impl IntoIterator<Item = Pid>) {
        self.set_filter(filter);
        if self.every_call {
            return;
        }
        let mut behind = self.behind.borrow_mut();
        for tid in tasks {
            behind.insert(tid);
            // One that ended is seen by the next wait.
            let _ = ptrace::interrupt(tid);
        }
    }

    /// Asks a task to stand still.
    pub fn halt(&self, tid: Pid) -> Result<()> {
        ptrace::interrupt(tid)?;
        self.wanted.borrow_mut().insert(tid);
        Ok(())
    }

    /// It need not stand still any more, though it does not yet.
    pub fn let_be(&self, tid: Pid) {
        if self.wanted.borrow_mut().remove(&tid) {
            self.unwanted.borrow_mut().insert(tid);
        }
    }

    /// Lets a task go on that stands still, as if nothing had been.
    pub fn let_go(&self, tid: Pid, stood: bool) -> Result<()> {
        // Calls that the kernel would not make again are set right by that.
        drop(Stopped::standing(tid)?);
        if stood {
            // It is stopped by job control, and says so once more.
            let _ = ptrace::interrupt(tid);
        }
        self.resume(tid, 0)
    }

    /// Does something with a task that stands still.
    pub fn with<T>(&self, tid: Pid, work: impl FnOnce(&mut Stopped) -> Result<T>) -> Result<T> {
        work(&mut Stopped::standing(tid)?)
    }

    /// Gives the process of a task that stands still the larger filter, if it is behind.
    fn catch_up(&self, tid: Pid) -> Result<()> {
        if !self.behind.borrow_mut().remove(&tid)
            || Task(tid).filters()? >= 2 + Task(Pid::this()).filters()?
        {
            return Ok(());
        }
        let mut stopped = Stopped::standing(tid)?;
        stopped.add_traced_filter(&self.filter.borrow())
    }

    /// Starts a command, traced.
    pub fn spawn(&self, command: &Command) -> Result<Pid, Refusal> {
        use ptrace::Options;
        let options = Options::PTRACE_O_TRACESYSGOOD
            | Options::PTRACE_O_TRACESECCOMP
            | Options::PTRACE_O_TRACEFORK
            | Options::PTRACE_O_TRACEVFORK
            | Options::PTRACE_O_TRACECLONE
            | Options::PTRACE_O_TRACEEXEC
            | Options::PTRACE_O_EXITKILL;
        let filter = self.filter.borrow();
        spawn_traced(command, (!self.every_call).then_some(&filter), |child| {
            ptrace::seize(child, options)?;
            ptrace::interrupt(child)?;
            let mut status = 0;
            // SAFETY: `status` lives through the call.
            Errno::result(unsafe { libc::waitpid(child.as_raw(), &raw mut status, libc::__WALL) })?;
            if !libc::WIFSTOPPED(status) {
                return Err(Errno::ECHILD);
            }
            self.resume(child, 0)
        })
    }

    /// Lets a task run, with a signal or 0.
    pub fn resume(&self, tid: Pid, signal: i32) -> Result<()> {
        let request = if self.every_call { libc::PTRACE_SYSCALL } else { libc::PTRACE_CONT };
        if self.behind.borrow().contains(&tid) || self.wanted.borrow().contains(&tid) {
            // Any stop takes the place of the one that was asked for.
            let _ = ptrace::interrupt(tid);
        }
        // SAFETY: numbers only. Signals of real-time are among them, which the library does not know.
        Errno::result(unsafe { libc::ptrace(request, tid.as_raw(), 0_usize, signal as usize) }).map(drop)
    }

    /// Has the call at which a task stands return a value, and not be made.
    pub fn value(&self, tid: Pid, value: i64) -> Result<()> {
        let mut registers = Registers::load(tid)?;
        registers.set_result(value);
        registers.store(tid)?;
        self.resume(tid, 0)
    }

    /// Leaves out the call at which a task stands, does something with the task, and lets it run.
    pub fn instead(&self, tid: Pid, work: impl FnOnce(&mut Stopped) -> Result<()>) -> Result<()> {
        let mut stopped = Stopped::skipping(tid)?;
        if let Err(errno) = work(&mut stopped) {
            stopped.set_result(-(errno as i64));
        }
        let tid = stopped.tid();
        self.gone.borrow_mut().extend(stopped.take_ended());
        drop(stopped);
        self.resume(tid, 0)
    }

    /// Looks after the tasks until something happens that others must know. Does not wait.
    pub fn next(&self) -> Happening {
        loop {
            if let Some(tid) = self.gone.borrow_mut().pop() {
                return Happening::Ended(tid, 0);
            }
            let mut status = 0;
            // SAFETY: `status` lives through the call.
            let pid = unsafe { libc::waitpid(-1, &raw mut status, libc::WNOHANG | libc::__WALL) };
            let tid = Pid::from_raw(pid);
            match pid {
                0 => return Happening::Nothing,
                ..0 if Errno::last() == Errno::EINTR => continue,
                ..0 => return Happening::Deserted,
                _ => {}
            }
            if libc::WIFEXITED(status) {
                return Happening::Ended(tid, libc::WEXITSTATUS(status));
            }
            if libc::WIFSIGNALED(status) {
                return Happening::Ended(tid, 128 + libc::WTERMSIG(status));
            }
            let (signal, event) = (libc::WSTOPSIG(status), status >> 16);
            // A task that dies in the meantime is seen by the next wait.
            match (event, signal) {
                (libc::PTRACE_EVENT_SECCOMP, _) => match self.begun(tid) {
                    Ok(Some(info)) => return Happening::Call(info.0),
                    _ => drop(self.resume(tid, 0)),
                },
                (0, signal) if signal == libc::SIGTRAP | 0x80 => match self.begun(tid) {
                    Ok(Some((call, arch))) if self.every_call => {
                        let verdict = self.filter.borrow().judge(arch, call.number, &call.args);
                        match verdict & libc::SECCOMP_RET_ACTION_FULL {
                            libc::SECCOMP_RET_USER_NOTIF => return Happening::Call(call),
                            libc::SECCOMP_RET_ERRNO => {
                                let _ = self.value(tid, -i64::from(verdict & 0xffff));
                            }
                            _ => drop(self.resume(tid, 0)),
                        }
                    }
                    _ => drop(self.resume(tid, 0)),
                },
                (0, signal) => drop(self.resume(tid, signal)),
                (EVENT_STOP, signal) if self.wanted.borrow_mut().remove(&tid) => {
                    return Happening::Stands(tid, signal != libc::SIGTRAP);
                }
                (EVENT_STOP, libc::SIGTRAP) if self.unwanted.borrow_mut().remove(&tid) => {
                    let _ = self.let_go(tid, false);
                }
                (EVENT_STOP, signal) if self.behind.borrow().contains(&tid) => {
                    if let Err(errno) = self.catch_up(tid) {
                        return Happening::Blind(tid, errno);
                    }
                    if signal != libc::SIGTRAP {
                        // It is stopped by job control, and says so once more.
                        let _ = ptrace::interrupt(tid);
                    }
                    let _ = self.resume(tid, 0);
                    return Happening::Runs(tid);
                }
                (EVENT_STOP, libc::SIGSTOP | libc::SIGTSTP | libc::SIGTTIN | libc::SIGTTOU) => {
                    // SAFETY: numbers only.
                    unsafe { libc::ptrace(libc::PTRACE_LISTEN, pid, 0_usize, 0_usize) };
                    return Happening::Halted(tid);
                }
                (libc::PTRACE_EVENT_FORK | libc::PTRACE_EVENT_VFORK | libc::PTRACE_EVENT_CLONE, _) => {
                    // Known before it stops, or a parent that ends first would be taken for the last.
                    let child = ptrace::getevent(tid).map_or(tid, |child| Pid::from_raw(child as i32));
                    let is_behind = self.behind.borrow().contains(&tid);
                    self.behind.borrow_mut().extend(is_behind.then_some(child));
                    let _ = self.resume(tid, 0);
                    return Happening::Runs(child);
                }
                (event, _) => {
                    if event == libc::PTRACE_EVENT_EXEC {
                        // A thread that is not the first takes over the first one's number.
                        let former = ptrace::getevent(tid).map_or(tid, |former| Pid::from_raw(former as i32));
                        self.gone.borrow_mut().extend((former != tid).then_some(former));
                        if self.behind.borrow_mut().remove(&former) {
                            self.behind.borrow_mut().insert(tid);
                        }
                    }
                    let _ = self.resume(tid, 0);
                    return Happening::Runs(tid);
                }
            }
        }
    }

    /// The call that begins where a task stands, and for which architecture; `None` where one ends.
    fn begun(&self, tid: Pid) -> Result<Option<(Notification, u32)>> {
        const SECCOMP: u8 = 3;
        let mut info = CallInfo::default();
        let len = size_of::<CallInfo>();
        // SAFETY: the kernel writes at most `len` bytes into `info`, which has room for them.
        let done = unsafe { libc::ptrace(GET_SYSCALL_INFO, tid.as_raw(), len, &raw mut info) };
        Errno::result(done)?;
        if !matches!(info.operation, ENTRY | SECCOMP) {
            return Ok(None);
        }
        let call = Notification { id: 0, tid, number: info.number as u32, args: info.args, next: 0 };
        Ok(Some((call, info.arch)))
    }
}
