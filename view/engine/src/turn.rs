//! Whose turn it is to wait for calls.
//!
//! For each call the kernel wakes all threads that wait on a listener, and all but one for nothing. So one waits as a rule:
//! the one that has the turn. It keeps the turn while it looks at a call, and mostly that is all: the call does not concern
//! the view. Before a thread does what may take long it passes the turn on; if it takes long unexpectedly, the watch does so
//! in its place. When calls come faster than one thread answers them, there is a second turn, and so on.

use std::cell::RefCell;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex};

use crate::serve::Source;
use crate::view::View;

/// The turns of one listener.
#[derive(Default)]
pub(crate) struct Turns {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    /// Threads that have a turn, or will when they wake up.
    turns: usize,
    /// Threads that wait for a turn.
    idle: usize,
    /// Those of them that were woken.
    woken: usize,
    ended: bool,
}

impl Turns {
    /// A turn for a new thread.
    pub(crate) fn begin(&self) {
        self.state.lock().turns += 1;
    }

    /// Waits for a turn. `false`: there will be none.
    fn wait(&self) -> bool {
        let mut state = self.state.lock();
        state.idle += 1;
        loop {
            if state.ended {
                return false;
            }
            if state.woken > 0 {
                state.woken -= 1;
                break;
            }
            if state.turns == 0 {
                state.turns = 1;
                break;
            }
            self.changed.wait(&mut state);
        }
        state.idle -= 1;
        true
    }

    /// Wakes a thread that waits for a turn. `false` if there is none.
    fn wake(&self, state: &mut State) -> bool {
        let found = state.idle > state.woken;
        if found {
            state.woken += 1;
            self.changed.notify_one();
        }
        found
    }

    /// Gives a turn to another thread. `false` if none waits: then the turn has ended.
    fn pass(&self) -> bool {
        let mut state = self.state.lock();
        let passed = self.wake(&mut state);
        if !passed {
            state.turns -= 1;
        }
        passed
    }

    /// Gives one more thread a turn. `None`: there are enough; `Some(false)`: no thread waits for one.
    fn add(&self) -> Option<bool> {
        let mut state = self.state.lock();
        if state.turns >= most_turns() {
            return None;
        }
        let woken = self.wake(&mut state);
        state.turns += usize::from(woken);
        Some(woken)
    }

    /// Ends a turn, unless it is the only one.
    fn give_up(&self) -> bool {
        let mut state = self.state.lock();
        let spare = state.turns > 1;
        state.turns -= usize::from(spare);
        spare
    }

    /// Ends all waiting.
    pub(crate) fn end(&self) {
        self.state.lock().ended = true;
        self.changed.notify_all();
    }
}

/// More threads than processors have nothing to do.
fn most_turns() -> usize {
    // It reads the files of a control group, which takes longer than a call.
    static COUNT: OnceLock<usize> = OnceLock::new();
    *COUNT.get_or_init(|| std::thread::available_parallelism().map_or(1, std::num::NonZero::get))
}

/// A thread that serves, and whether it has the turn.
pub(crate) struct Server {
    has_turn: AtomicBool,
    source: Arc<Source>,
    view: Arc<View>,
}

thread_local! {
    static SERVER: RefCell<Option<Arc<Server>>> = const { RefCell::new(None) };
}

/// Driver calls that lately took long, which is expected of so many of the next ones.
static SLOW: AtomicU32 = AtomicU32::new(0);

impl Server {
    /// This thread, which has the turn.
    pub(crate) fn start(source: &Arc<Source>, view: &Arc<View>) -> Arc<Self> {
        let server = Arc::new(Self {
            has_turn: AtomicBool::new(true),
            source: Arc::clone(source),
            view: Arc::clone(view),
        });
        SERVER.set(Some(Arc::clone(&server)));
        server
    }

    /// This thread, if it serves.
    pub(crate) fn current() -> Option<Arc<Self>> {
        SERVER.with_borrow(Clone::clone)
    }

    /// Has the turn when this returns. `false`: there will be none.
    pub(crate) fn take_turn(&self) -> bool {
        if !self.has_turn.load(Ordering::Acquire) {
            if !self.source.turns.wait() {
                return false;
            }
            self.has_turn.store(true, Ordering::Release);
        }
        true
    }

    /// Passes the turn on, if this thread has it.
    pub(crate) fn pass_turn(&self) {
        if self.has_turn.swap(false, Ordering::AcqRel) && !self.source.turns.pass() {
            self.source.add_thread(&self.view);
        }
    }

    /// Ends the turn, if others have one.
    fn give_up(&self) {
        // Taken first: the watch may be about to pass it on.
        if self.has_turn.swap(false, Ordering::AcqRel) && !self.source.turns.give_up() {
            self.has_turn.store(true, Ordering::Release);
        }
    }
}

/// Passes the turn on before something that takes long.
pub(crate) fn stand_aside() {
    SERVER.with_borrow(|server| {
        if let Some(server) = server {
            server.pass_turn();
        }
    });
}

/// Calls a driver: the turn is passed on first if drivers have been slow.
pub(crate) fn driver<T>(work: impl FnOnce() -> T) -> T {
    const LONG: Duration = Duration::from_micros(200);
    const EXPECTED: u32 = 64;
    let slow = SLOW.load(Ordering::Relaxed);
    if slow > 0 {
        stand_aside();
    }
    let start = Instant::now();
    let result = work();
    if start.elapsed() > LONG {
        SLOW.store(EXPECTED, Ordering::Relaxed);
    } else if slow > 0 {
        SLOW.store(slow - 1, Ordering::Relaxed);
    }
    result
}

/// How busy a thread is that has the turn.
#[derive(Default)]
pub(crate) struct Pace {
    at_once: u32,
    waited: u32,
}

impl Pace {
    /// Calls in a row that tell something.
    const ROW: u32 = 8;
    /// Waiting for less is not waiting.
    const MOMENT: Duration = Duration::from_micros(2);

    /// A call came after so long a wait: another turn is added if calls queue up, and this one is given up after the call
    /// if one is enough.
    pub(crate) fn came_after(&mut self, wait: Duration, server: &Server) {
        if wait < Self::MOMENT {
            (self.at_once, self.waited) = (self.at_once + 1, 0);
        } else {
            (self.at_once, self.waited) = (0, self.waited + 1);
        }
        if self.at_once >= Self::ROW {
            self.at_once = 0;
            if server.source.turns.add() == Some(false) {
                server.source.add_thread(&server.view);
            }
        }
    }

    /// The call was answered.
    pub(crate) fn answered(&mut self, server: &Server) {
        if self.waited >= Self::ROW {
            self.waited = 0;
            server.give_up();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_turn_goes_to_who_waits_for_it_and_is_never_lost() {
        let turns = Arc::new(Turns::default());
        turns.begin();
        assert!(!turns.pass(), "nobody waits");
        // Nobody has it now, so the next who asks does.
        assert!(turns.wait());
        assert!(!turns.give_up(), "the only one is kept");
        let other = {
            let turns = Arc::clone(&turns);
            std::thread::spawn(move || turns.wait())
        };
        while turns.state.lock().idle == 0 {
            std::thread::yield_now();
        }
        assert!(turns.pass());
        assert!(other.join().expect("it ends"));
        assert_eq!(turns.state.lock().turns, 1);
        turns.end();
        assert!(!turns.wait());
    }
}
