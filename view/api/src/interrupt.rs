//! Interruption of a request that waits.
//!
//! A host makes an [`Interrupt`] for a request that may be interrupted and enters it for the time of the
//! call; a driver that is about to wait takes [`Interrupt::current`] and waits on that. Drivers that only
//! compute or read a local disk need none of this.

use std::cell::RefCell;
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::{Duration, Instant};

use crate::{Errno, Result};

/// Whether the one who asked has lost interest: a signal came, or the process is gone. Clones are the
/// same interrupt. Once raised it stays raised.
#[derive(Clone, Default)]
pub struct Interrupt(Arc<State>);

#[derive(Default)]
struct State {
    inner: Mutex<Inner>,
    raised: Condvar,
}

#[derive(Default)]
struct Inner {
    raised: bool,
    wakers: Vec<std::task::Waker>,
}

thread_local! {
    static CURRENT: RefCell<Option<Interrupt>> = const { RefCell::new(None) };
}

impl Interrupt {
    /// A new one, not raised.
    pub fn new() -> Self {
        Self::default()
    }

    /// The interrupt of the request that this thread is serving; one that never comes outside of any.
    /// Take it on the thread of the call; it may then be sent to another.
    pub fn current() -> Self {
        CURRENT.with(|current| current.borrow().clone()).unwrap_or_default()
    }

    /// Makes this the current interrupt of the thread until the scope is dropped. For hosts.
    #[must_use = "the interrupt is current only while the scope lives"]
    pub fn enter(&self) -> InterruptScope {
        InterruptScope(CURRENT.with(|current| current.replace(Some(self.clone()))))
    }

    /// Raises it and wakes everybody who waits on it. For hosts.
    pub fn raise(&self) {
        let wakers = {
            let mut inner = self.lock();
            inner.raised = true;
            std::mem::take(&mut inner.wakers)
        };
        self.0.raised.notify_all();
        wakers.into_iter().for_each(std::task::Waker::wake);
    }

    /// Whether it was raised.
    pub fn is_raised(&self) -> bool {
        self.lock().raised
    }

    /// `EINTR` if it was raised: for loops that do many small steps.
    pub fn check(&self) -> Result<()> {
        if self.is_raised() { Err(Errno::EINTR) } else { Ok(()) }
    }

    /// Sleeps for `duration`, or until it is raised: then `EINTR`.
    pub fn sleep(&self, duration: Duration) -> Result<()> {
        let deadline = Instant::now() + duration;
        let mut inner = self.lock();
        while !inner.raised {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Ok(());
            }
            inner = self.0.raised.wait_timeout(inner, left).unwrap_or_else(PoisonError::into_inner).0;
        }
        Err(Errno::EINTR)
    }

    /// Has `waker` woken when it is raised; at once if it was. For drivers that wait on something else, such
    /// as a reply, and whose waiting this must end.
    pub fn on_raise(&self, waker: &std::task::Waker) {
        let mut inner = self.lock();
        if inner.raised {
            drop(inner);
            waker.wake_by_ref();
        } else {
            inner.wakers.push(waker.clone());
        }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Inner> {
        self.0.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// While it lives, an interrupt is the current one of the thread that entered it.
pub struct InterruptScope(Option<Interrupt>);

impl Drop for InterruptScope {
    fn drop(&mut self) {
        CURRENT.with(|current| *current.borrow_mut() = self.0.take());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sleeper_ends_when_its_request_is_interrupted() {
        let interrupt = Interrupt::new();
        let other = interrupt.clone();
        let sleeper = std::thread::spawn(move || {
            let _scope = other.enter();
            Interrupt::current().sleep(Duration::from_secs(600))
        });
        interrupt.raise();
        assert_eq!(sleeper.join().unwrap(), Err(Errno::EINTR));
    }

    #[test]
    fn a_scope_gives_back_the_interrupt_that_was_current_before() {
        let outer = Interrupt::new();
        let _outer = outer.enter();
        {
            let inner = Interrupt::new();
            let _inner = inner.enter();
            inner.raise();
            assert!(Interrupt::current().is_raised());
        }
        assert!(!Interrupt::current().is_raised());
    }
}
