//! Virtual programs for tasks that a debugger traces, whose registers only the debugger can change: the path of their `execve(2)` is
//! changed where it lies in memory, and the call goes on.
//!
//! What was changed is put back when the program is loaded or the call has failed: the memory may be a parent's as well (`vfork(2)`), and a
//! call that fails returns to the old program. If the path has less room than that of the program's descriptor, what lies behind it is overwritten
//! for that moment, which is allowed only where nobody else has the memory.
//!
//! # Limits
//!
//! A script is refused, since it wants more arguments; so is a short path where memory is shared. `comm` is the descriptor's number.

use std::fs::File as HostFile;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::libc;
use veduta_api::Result;
use veduta_trace::raw::{self, Argument};
use veduta_trace::{Notification, Task};

use crate::standin::errno;

/// Bytes below the stack pointer that a function may use without moving it.
const RED_ZONE: u64 = 128;

/// A task's memory as it stands at `execve(2)`, changed.
pub(crate) struct Changed {
    task: Task,
    /// Of the program that calls, also when the task has another.
    memory: HostFile,
    is_shared: bool,
    /// Where, what was there, and what is there now.
    writes: Vec<(u64, Vec<u8>, Vec<u8>)>,
}

impl Changed {
    /// Has the call run the program at this path. `EPERM` if that is not possible.
    pub(crate) fn new(notification: &Notification, program: &[u8]) -> Result<Self> {
        let task = Task(notification.tid);
        if i64::from(notification.number) != libc::SYS_execve {
            return Err(Errno::EPERM);
        }
        let [path, argv, envp, ..] = notification.args;
        let new = [program, b"\0"].concat();
        let is_shared = is_shared(task) || task.threads().len() != 1;
        if is_shared && task.read_path(path)?.len() + 1 < new.len() {
            return Err(Errno::EPERM);
        }
        let memory = HostFile::options().read(true).write(true).open(format!("/proc/{}/mem", task.0));
        let memory = memory.map_err(|_| Errno::EPERM)?;
        let mut changed = Self { task, memory, is_shared, writes: Vec::new() };
        let taken = path..path + new.len() as u64;
        // Arguments that lie there are told from elsewhere: from below the stack.
        let mut below = stack(task).ok_or(Errno::EPERM)?.checked_sub(RED_ZONE).ok_or(Errno::EPERM)?;
        for array in [argv, envp] {
            for (index, pointer) in crate::exec::pointers(task, array)?.into_iter().enumerate() {
                let slot = array + index as u64 * 8;
                if slot < taken.end && slot + 8 > taken.start {
                    return Err(Errno::EPERM);
                }
                if reaches(task, pointer, &taken)? {
                    let mut text = task.read_string(pointer, 128 << 10)?;
                    text.push(0);
                    below = below.checked_sub(text.len() as u64).ok_or(Errno::EPERM)?;
                    // Nobody has anything there, so it stays.
                    changed.memory.write_all_at(&text, below).map_err(|_| Errno::EPERM)?;
                    changed.write(slot, below.to_ne_bytes().to_vec())?;
                }
            }
        }
        changed.write(path, new)?;
        Ok(changed)
    }

    fn write(&mut self, at: u64, new: Vec<u8>) -> Result<()> {
        let mut old = vec![0; new.len()];
        let done = self.memory.read_exact_at(&mut old, at).and_then(|()| self.memory.write_all_at(&new, at));
        if let Err(error) = done {
            tracing::debug!("memory of task {} cannot be changed: {}", self.task.0, errno(error).desc());
            self.put_back();
            return Err(Errno::EPERM);
        }
        self.writes.push((at, old, new));
        Ok(())
    }

    fn put_back(&mut self) {
        for (at, old, new) in self.writes.drain(..).rev() {
            let mut now = vec![0; new.len()];
            // Nothing can be read of memory that nobody has any more.
            if self.memory.read_exact_at(&mut now, at).is_ok() && now == new {
                let _ = self.memory.write_all_at(&old, at);
            }
        }
    }

    /// Puts back what was there, once the call that was let go on has loaded its program or failed.
    pub(crate) fn wait(mut self) {
        const SHORT: Duration = Duration::from_millis(2);
        const LONG: Duration = Duration::from_secs(10);
        let start = Instant::now();
        while !self.is_over() && start.elapsed() < LONG {
            let step = if start.elapsed() < SHORT { 50 } else { 1000 };
            std::thread::sleep(Duration::from_micros(step));
        }
        self.put_back();
    }

    fn is_over(&self) -> bool {
        if self.is_shared {
            // The new program has memory of its own.
            if !is_shared(self.task) {
                return true;
            }
        } else if self.memory.read_at(&mut [0], self.writes.last().map_or(0, |(at, ..)| *at)).unwrap_or(0)
            == 0
        {
            return true;
        }
        // Stopped by its tracer, behind a call that has failed; or it waits in another call.
        let stopped = std::fs::read_to_string(format!("/proc/{}/stat", self.task.0));
        let state =
            stopped.as_deref().map(|text| text.rsplit(')').next().unwrap_or("").trim_start().chars().next());
        !matches!(state, Ok(Some('R' | 'S' | 'D')))
            || matches!(self.task.blocked_in(), Ok(Some(number)) if i64::from(number) != libc::SYS_execve)
    }
}

/// Whether a task has its memory together with its parent; also if that cannot be told.
fn is_shared(task: Task) -> bool {
    const MEMORY: u64 = 1;
    let Some(parent) = stat_field(task, 1) else { return true };
    let mut arguments = [task.0.as_raw() as u64, parent, MEMORY, 0, 0].map(Argument::Value);
    raw::call(libc::SYS_kcmp as u32, &mut arguments).map_or(true, |order| order == 0)
}

/// A field of `/proc/PID/stat`, counted from the state on.
fn stat_field(task: Task, index: usize) -> Option<u64> {
    let text = std::fs::read_to_string(format!("/proc/{}/stat", task.0)).ok()?;
    text.rsplit(')').next()?.split_ascii_whitespace().nth(index)?.parse().ok()
}

/// The stack pointer of a task that waits in a call (`proc_pid_syscall(5)`).
fn stack(task: Task) -> Option<u64> {
    let text = std::fs::read_to_string(format!("/proc/{}/syscall", task.0)).ok()?;
    u64::from_str_radix(text.split_ascii_whitespace().nth(7)?.strip_prefix("0x")?, 16).ok()
}

/// Whether a string lies in a range, or reaches into it.
fn reaches(task: Task, at: u64, range: &Range<u64>) -> Result<bool> {
    const PATH_MAX: u64 = 4096;
    if range.contains(&at) || at >= range.end || range.start - at > PATH_MAX {
        return Ok(range.contains(&at));
    }
    let mut before = vec![0; (range.start - at) as usize];
    task.read(at, &mut before)?;
    Ok(!before.contains(&0))
}
