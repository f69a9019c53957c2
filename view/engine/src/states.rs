//! What a view keeps about processes: the root of each (`chroot(2)`), and who it is told that it is (`veduta run --root`).
//!
//! It is the kernel that keeps it, so that children and programs that are run inherit it, also those of parents that are long gone: a process is marked
//! by a limit that means nothing to who has no real-time priority, `RLIMIT_RTTIME`. Its soft limit holds a number, and the engine what the numbers
//! mean. Processes without a mark have the root of the view, and are root where all are told so.

use std::collections::HashMap;
use std::hash::Hash;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use nix::errno::Errno;
use nix::libc;
use parking_lot::RwLock;
use veduta_api::Result;
use veduta_trace::Task;
use veduta_trace::raw::{self, Argument};

use crate::call::{Answer, Call, DONE, Outcome};
use crate::who::Credentials;

/// The limit, in the numbers of all architectures that there are here.
pub(crate) const LIMIT: u32 = 15;
/// Microseconds: some 140,000 years, and a number. Where the hard limit is lower, the mark is the distance from it.
const FIRST: u64 = 1 << 62;
/// States at one time. Equal ones count once.
const MOST: usize = 1 << 20;

/// What is kept about a process.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub(crate) struct State {
    /// Its root, as a canonical path of the view; `None` for the view's.
    pub(crate) root: Option<Vec<u8>>,
    /// Who it is told that it is.
    pub(crate) who: Credentials,
}

/// All states that processes have, or had.
#[derive(Default)]
pub(crate) struct States {
    known: RwLock<Known>,
    /// Looked at before a process is asked for its mark.
    any: AtomicBool,
}

#[derive(Default)]
struct Known {
    /// The one at index 0 is number 1.
    states: Vec<Arc<State>>,
    numbers: HashMap<Arc<State>, u64>,
}

impl States {
    /// The state of a process; `None` if it is that of all.
    pub(crate) fn of(&self, task: Task) -> Option<Arc<State>> {
        if !self.any.load(Ordering::Acquire) {
            return None;
        }
        let limits = Limits::of(task).ok()?;
        self.known.read().states.get(limits.mark()?.checked_sub(1)? as usize).cloned()
    }

    /// Changes that of a process.
    pub(crate) fn set(&self, task: Task, state: State) -> Result<()> {
        let number = self.number(state)?;
        self.any.store(true, Ordering::Release);
        Limits::of(task)?.marked(number).give(task)
    }

    fn number(&self, state: State) -> Result<u64> {
        let mut known = self.known.write();
        if let Some(number) = known.numbers.get(&state) {
            return Ok(*number);
        }
        if known.states.len() >= MOST {
            return Err(Errno::EAGAIN);
        }
        let state = Arc::new(state);
        known.states.push(Arc::clone(&state));
        let number = known.states.len() as u64;
        known.numbers.insert(state, number);
        Ok(number)
    }
}

/// A `struct rlimit64`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Limits {
    soft: u64,
    hard: u64,
}

impl Limits {
    fn of(task: Task) -> Result<Self> {
        let mut bytes = [0; 16];
        let mut arguments = [
            Argument::Value(task.0.as_raw() as u64),
            Argument::Value(LIMIT.into()),
            Argument::Value(0),
            Argument::Output(&mut bytes),
        ];
        match raw::call(libc::SYS_prlimit64 as u32, &mut arguments) {
            // It runs as somebody else than we do: then they are asked of `/proc`, where everybody may read them.
            Err(Errno::EPERM) => Self::listed(task),
            done => done.map(|_| Self::from_bytes(bytes)),
        }
    }

    fn listed(task: Task) -> Result<Self> {
        let text = std::fs::read_to_string(format!("/proc/{}/limits", task.0)).map_err(|_| Errno::ESRCH)?;
        let line =
            text.lines().find_map(|line| line.strip_prefix("Max realtime timeout")).ok_or(Errno::EPERM)?;
        let mut words = line.split_whitespace().map(|word| word.parse().unwrap_or(u64::MAX));
        Ok(Self { soft: words.next().unwrap_or(u64::MAX), hard: words.next().unwrap_or(u64::MAX) })
    }

    fn from_bytes(bytes: [u8; 16]) -> Self {
        let half = |at: usize| {
            let mut half = [0; 8];
            half.copy_from_slice(&bytes[at..at + 8]);
            u64::from_ne_bytes(half)
        };
        Self { soft: half(0), hard: half(8) }
    }

    fn to_bytes(self) -> Vec<u8> {
        [self.soft.to_ne_bytes(), self.hard.to_ne_bytes()].concat()
    }

    fn give(self, task: Task) -> Result<()> {
        let bytes = self.to_bytes();
        let mut arguments = [
            Argument::Value(task.0.as_raw() as u64),
            Argument::Value(LIMIT.into()),
            Argument::Input(&bytes),
            Argument::Value(0),
        ];
        raw::call(libc::SYS_prlimit64 as u32, &mut arguments).map(drop)
    }

    /// The number that it holds.
    fn mark(self) -> Option<u64> {
        let number = if self.hard == u64::MAX {
            self.soft.checked_sub(FIRST)?
        } else {
            self.hard.checked_sub(self.soft)?
        };
        (1..=MOST as u64).contains(&number).then_some(number)
    }

    fn marked(self, number: u64) -> Self {
        let base = if self.hard == u64::MAX {
            FIRST.saturating_add(number)
        } else {
            self.hard.saturating_sub(number)
        };
        Self { soft: base, hard: self.hard }
    }
}

/// `getrlimit`, `setrlimit` and `prlimit64` of that limit: those who are marked see it as it would be, and keep their mark.
pub(crate) fn limits(call: &Call<'_>, name: &str) -> Outcome {
    let (task, new, old) = match name {
        "getrlimit" => (call.task, 0, call.args[1]),
        "setrlimit" => (call.task, call.args[1], 0),
        _ if call.int(0) == 0 => (call.task, call.args[2], call.args[3]),
        _ => (Task(nix::unistd::Pid::from_raw(call.int(0))), call.args[2], call.args[3]),
    };
    let Ok(limits) = Limits::of(task) else { return Ok(Answer::GoOn) };
    let Some(number) = limits.mark().filter(|_| call.view.states.of(task).is_some()) else {
        return Ok(Answer::GoOn);
    };
    if new != 0 {
        let wanted = Limits::from_bytes(call.task.read_array(new)?);
        if wanted.soft > wanted.hard {
            return Err(Errno::EINVAL);
        }
        // A soft limit of its own has no room beside the mark.
        if wanted.soft != wanted.hard {
            return Err(Errno::EPERM);
        }
        Limits { hard: wanted.hard, ..limits }.marked(number).give(task)?;
    }
    if old != 0 {
        call.task.write(old, &Limits { soft: limits.hard, ..limits }.to_bytes())?;
    }
    DONE
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn marks_are_read_as_they_were_made() {
        for hard in [u64::MAX, FIRST, 5_000_000] {
            let limits = Limits { soft: hard, hard };
            assert_eq!(limits.mark(), None, "{hard}");
            for number in [1, 2, 77, MOST as u64] {
                let marked = limits.marked(number);
                assert_eq!(marked.mark(), Some(number), "{hard}");
                assert!(marked.soft <= marked.hard, "the kernel refuses others");
                assert_eq!(Limits::from_bytes(marked.to_bytes().try_into().expect("16 bytes")), marked);
            }
        }
    }

    #[test]
    fn equal_states_have_one_number() {
        let states = States::default();
        let other = State { root: Some(b"/m".to_vec()), ..State::default() };
        assert_eq!(states.number(other.clone()), Ok(1));
        assert_eq!(states.number(State::default()), Ok(2));
        assert_eq!(states.number(other), Ok(1));
    }

    #[test]
    fn a_process_and_its_children_are_marked() {
        let states = States::default();
        let me = Task(nix::unistd::Pid::this());
        assert_eq!(states.of(me), None);
        let state = State { root: Some(b"/m".to_vec()), ..State::default() };
        let before = Limits::of(me).expect("our own limits");
        states.set(me, state.clone()).expect("our own limits can be lowered");
        let mut child = std::process::Command::new("sleep").arg("9").spawn().expect("sleep runs");
        let seen = states.of(Task(nix::unistd::Pid::from_raw(child.id() as i32)));
        child.kill().and_then(|()| child.wait()).expect("it ends");
        before.give(me).expect("back as it was");
        assert_eq!(seen.as_deref(), Some(&state));
        assert_eq!(states.of(me), None);
    }
}
