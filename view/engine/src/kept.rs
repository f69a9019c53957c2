//! Outcomes that did not arrive: kept until their calls come again.
//!
//! Before Linux 5.19 (`SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV`) any signal, and any stop that is asked for, ends a task's wait for the answer to a call that has been
//! received: the answer is refused (`ENOENT`), and the task makes the call once more, as the same one, when it goes on. What was done for it is not to be done
//! twice: a directory that was made would be there already. So the outcome is kept, and the call gets it when it comes again.
//!
//! # Limits
//!
//! If a handler runs that was set without `SA_RESTART`, the program hears `EINTR` of what was done; it gets the outcome if it tries once more within [`LIFE`].

use std::collections::HashSet;
use std::time::{Duration, Instant};

use nix::unistd::Pid;
use parking_lot::{Condvar, Mutex};
use veduta_trace::Notification;

use crate::call::{Answer, Outcome};

/// How long a call may take to come again. Handlers of signals run first, and a view that grows has its processes stand.
const LIFE: Duration = Duration::from_secs(6);

/// Between two looks at a task that stands.
const PAUSE: Duration = Duration::from_millis(1);

pub(crate) struct Kept {
    is_needed: bool,
    entries: Mutex<Vec<Entry>>,
    /// Tasks of which a call is served, or was until it came again.
    served: Mutex<HashSet<Pid>>,
    changed: Condvar,
}

impl Default for Kept {
    fn default() -> Self {
        Self::new(veduta_trace::stop::waits_are_interrupted())
    }
}

/// A call is served; another one of its task waits meanwhile.
pub(crate) struct Served<'a> {
    kept: &'a Kept,
    tid: Pid,
}

impl Drop for Served<'_> {
    fn drop(&mut self) {
        self.kept.served.lock().remove(&self.tid);
        self.kept.changed.notify_all();
    }
}

struct Entry {
    call: Notification,
    outcome: Outcome,
    since: Instant,
}

impl Kept {
    fn new(is_needed: bool) -> Self {
        Self { is_needed, entries: Mutex::default(), served: Mutex::default(), changed: Condvar::new() }
    }

    /// A call of a task is to be served. Waits until what is done for the one before has an end, if the task did not.
    pub(crate) fn begin(&self, call: &Notification) -> Option<Served<'_>> {
        if !self.is_needed {
            return None;
        }
        let mut served = self.served.lock();
        while !served.insert(call.tid) {
            // One that we have it make, while it stands.
            if crate::grow::is_traced_by_us(call.tid) {
                return None;
            }
            self.changed.wait_for(&mut served, PAUSE);
        }
        Some(Served { kept: self, tid: call.tid })
    }

    /// Keeps the outcome of a call that waits no longer, if something may have been done for it.
    pub(crate) fn keep(&self, call: &Notification, outcome: Outcome) {
        if self.is_needed && matches!(outcome, Ok(Answer::Value(_) | Answer::Fd { .. })) {
            self.entries.lock().push(Entry { call: *call, outcome, since: Instant::now() });
        }
    }

    /// The outcome of a call that comes again.
    pub(crate) fn take(&self, call: &Notification) -> Option<Outcome> {
        if !self.is_needed {
            return None;
        }
        let mut entries = self.entries.lock();
        let (young, old): (Vec<_>, Vec<_>) =
            std::mem::take(&mut *entries).into_iter().partition(|entry| entry.since.elapsed() < LIFE);
        *entries = young;
        let is_it = |entry: &Entry| {
            let known = &entry.call;
            (known.tid, known.number, known.args, known.next) == (call.tid, call.number, call.args, call.next)
        };
        let found = entries.iter().position(is_it).map(|index| entries.swap_remove(index));
        drop((entries, old));
        found.map(|entry| entry.outcome)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn call(id: u64, tid: i32, first: u64) -> Notification {
        Notification { id, tid: Pid::from_raw(tid), number: 83, args: [first, 0, 0, 0, 0, 0], next: 0x1000 }
    }

    #[test]
    fn an_outcome_is_for_the_same_call_of_the_same_task_and_once() {
        let kept = Kept::new(true);
        kept.keep(&call(1, 7, 5), Ok(Answer::Value(0)));
        kept.keep(&call(2, 8, 5), Ok(Answer::GoOn));
        assert!(kept.take(&call(3, 8, 5)).is_none());
        assert!(kept.take(&call(4, 7, 6)).is_none());
        assert!(matches!(kept.take(&call(5, 7, 5)), Some(Ok(Answer::Value(0)))));
        assert!(kept.take(&call(6, 7, 5)).is_none());
    }
}
