//! The requests that are being served: one slot a worker.
//!
//! A worker serves one request at a time, so the table is an array of slots, and finding a request by its id
//! is a walk over a few dozen atomics, done only when the kernel interrupts something. In the ordinary case
//! a request costs two atomic writes and the making of an [`Interrupt`].
//!
//! # Who answers
//!
//! The worker, unless the watcher was first: the watcher answers `EINTR` for a request whose caller is being killed while the driver
//! does not come back. Both decide it by an exchange on the slot's `state`: the worker from the request's id to
//! idle, the watcher from the id to the id with [`TAKEN`] set. Who wins the exchange answers; the other drops its reply.

use std::cell::Cell;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};

use parking_lot::Mutex;
use veduta_api::{Interrupt, InterruptScope};

/// The largest number of workers, all of them stuck.
pub(crate) const SLOTS: usize = 64;

/// No request. The kernel's ids start at 2.
const IDLE: u64 = 0;

/// The watcher has answered. Ids count up from 2 by 2, so they never reach this bit (bit 63 marks requests that are sent again).
const TAKEN: u64 = 1 << 62;

thread_local! {
    /// Which slot this thread serves.
    static SLOT: Cell<Option<usize>> = const { Cell::new(None) };
}

/// Aligned to two cache lines, so that workers do not disturb each other.
#[derive(Default)]
#[repr(align(128))]
struct Slot {
    used: AtomicBool,
    state: AtomicU64,
    /// The thread that asked, as we see its number; 0 if we cannot.
    caller: AtomicU32,
    /// Whether nothing is lost if the caller gets `EINTR` while the driver goes on.
    may_abandon: AtomicBool,
    interrupt: Mutex<Option<Interrupt>>,
}

/// The table.
pub(crate) struct Running {
    slots: Box<[Slot]>,
}

/// A request that was interrupted, for the watcher to follow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Interrupted {
    slot: usize,
    pub(crate) unique: u64,
}

/// How an interrupted request stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Standing {
    /// It has been answered.
    Over,
    /// The driver is at it; its caller is this thread.
    Waiting { caller: u32, may_abandon: bool },
}

impl Running {
    pub(crate) fn new() -> Self {
        Self { slots: std::iter::repeat_with(Slot::default).take(SLOTS).collect() }
    }

    /// Gives the calling thread a slot; `false` if all are in use.
    pub(crate) fn take_slot(&self) -> bool {
        let free = |slot: &Slot| {
            slot.used.compare_exchange(false, true, Ordering::AcqRel, Ordering::Relaxed).is_ok()
        };
        let slot = self.slots.iter().position(free);
        SLOT.set(slot);
        slot.is_some()
    }

    /// Takes the calling thread's slot away.
    pub(crate) fn leave_slot(&self) {
        if let Some(slot) = SLOT.take().and_then(|index| self.slots.get(index)) {
            slot.used.store(false, Ordering::Release);
        }
    }

    /// The calling thread begins to serve a request. Ends with [`Serving::finish`].
    pub(crate) fn begin(&self, unique: u64, caller: u32, may_abandon: bool) -> Serving<'_> {
        let interrupt = Interrupt::new();
        let scope = interrupt.enter();
        let slot = SLOT.get().and_then(|index| self.slots.get(index));
        if let Some(slot) = slot {
            slot.caller.store(caller, Ordering::Relaxed);
            slot.may_abandon.store(may_abandon, Ordering::Relaxed);
            *slot.interrupt.lock() = Some(interrupt);
            slot.state.store(unique, Ordering::Release);
        }
        Serving { slot, unique, _scope: scope }
    }

    /// Raises the interrupt of a request; `None` if no worker serves it.
    pub(crate) fn interrupt(&self, unique: u64) -> Option<Interrupted> {
        let serves = |slot: &Slot| slot.state.load(Ordering::Acquire) & !TAKEN == unique;
        let slot = self.slots.iter().position(serves)?;
        self.raise(slot, unique);
        Some(Interrupted { slot, unique })
    }

    /// Raises every interrupt: the mount has ended.
    pub(crate) fn interrupt_all(&self) {
        for (index, slot) in self.slots.iter().enumerate() {
            match slot.state.load(Ordering::Acquire) {
                IDLE => {}
                state => self.raise(index, state & !TAKEN),
            }
        }
    }

    fn raise(&self, index: usize, unique: u64) {
        let Some(slot) = self.slots.get(index) else { return };
        let interrupt = slot.interrupt.lock().clone();
        // The interrupt was put there before the id, and the id has not changed since: it is the request's own.
        if let Some(interrupt) = interrupt.filter(|_| slot.state.load(Ordering::Acquire) & !TAKEN == unique) {
            interrupt.raise();
        }
    }

    pub(crate) fn standing(&self, request: Interrupted) -> Standing {
        match self.slots.get(request.slot) {
            Some(slot) if slot.state.load(Ordering::Acquire) == request.unique => Standing::Waiting {
                caller: slot.caller.load(Ordering::Relaxed),
                may_abandon: slot.may_abandon.load(Ordering::Relaxed),
            },
            _ => Standing::Over,
        }
    }

    /// Takes the answer away from the worker. If this is true, the caller of this function answers.
    pub(crate) fn take_answer(&self, request: Interrupted) -> bool {
        self.slots.get(request.slot).is_some_and(|slot| {
            let taken = request.unique | TAKEN;
            slot.state.compare_exchange(request.unique, taken, Ordering::AcqRel, Ordering::Relaxed).is_ok()
        })
    }

    /// How many requests are in a snapshot.
    pub(crate) fn count(snapshot: &[u64; SLOTS]) -> usize {
        snapshot.iter().filter(|state| **state != IDLE).count()
    }

    /// What every worker is at, to see later whether any has moved on.
    pub(crate) fn snapshot(&self) -> [u64; SLOTS] {
        std::array::from_fn(|index| {
            self.slots.get(index).map_or(IDLE, |slot| slot.state.load(Ordering::Relaxed))
        })
    }
}

/// A request that the calling thread serves.
pub(crate) struct Serving<'a> {
    slot: Option<&'a Slot>,
    unique: u64,
    _scope: InterruptScope,
}

impl Serving<'_> {
    /// The driver has come back. Whether the worker is to answer; if not, the watcher has.
    pub(crate) fn finish(self) -> bool {
        let Some(slot) = self.slot else { return true };
        let ours =
            slot.state.compare_exchange(self.unique, IDLE, Ordering::AcqRel, Ordering::Relaxed).is_ok();
        if !ours {
            slot.state.store(IDLE, Ordering::Release);
        }
        *slot.interrupt.lock() = None;
        ours
    }
}

/// Whether a thread is being killed, or is gone: then nobody waits for its request. The kernel gives `SIGKILL` to every
/// thread of a process that dies from a signal.
pub(crate) fn is_dying(thread: u32) -> bool {
    if thread == 0 {
        return false;
    }
    match std::fs::read_to_string(format!("/proc/{thread}/status")) {
        Ok(status) => has_pending_kill(&status),
        Err(error) => error.kind() == std::io::ErrorKind::NotFound,
    }
}

fn has_pending_kill(status: &str) -> bool {
    const SIGKILL: u64 = 1 << (nix::libc::SIGKILL - 1);
    let pending = |line: &str| {
        let set = line.strip_prefix("SigPnd:").or_else(|| line.strip_prefix("ShdPnd:"))?;
        u64::from_str_radix(set.trim(), 16).ok()
    };
    status.lines().filter_map(pending).any(|set| set & SIGKILL != 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_is_answered_once() {
        let running = Running::new();
        assert!(running.take_slot());
        let serving = running.begin(10, 1, true);
        let interrupted = running.interrupt(10).unwrap();
        assert!(Interrupt::current().is_raised());
        assert_eq!(running.standing(interrupted), Standing::Waiting { caller: 1, may_abandon: true });
        assert!(running.take_answer(interrupted));
        assert!(!running.take_answer(interrupted));
        assert_eq!(running.standing(interrupted), Standing::Over);
        assert!(!serving.finish());

        let serving = running.begin(12, 1, true);
        assert!(!Interrupt::current().is_raised());
        assert!(!running.take_answer(interrupted));
        assert!(serving.finish());
        running.leave_slot();
    }

    #[test]
    fn a_request_that_nobody_serves_is_not_known() {
        let running = Running::new();
        assert!(running.take_slot());
        assert_eq!(running.interrupt(10), None);
        assert!(running.begin(10, 1, true).finish());
        assert_eq!(running.interrupt(10), None);
        running.leave_slot();
    }

    #[test]
    fn a_pending_kill_is_seen() {
        assert!(has_pending_kill("SigQ:\t0/1\nSigPnd:\t0000000000000100\nShdPnd:\t0000000000000000\n"));
        assert!(has_pending_kill("SigPnd:\t0000000000000000\nShdPnd:\t0000000000000102\n"));
        assert!(!has_pending_kill("SigPnd:\t0000000000000002\nShdPnd:\t0000000000000000\n"));
        assert!(!is_dying(std::process::id()));
    }
}
