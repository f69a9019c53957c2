//! The threads that serve: workers, and one watcher.
//!
//! As a rule one worker waits for requests: the kernel hands them to waiting threads in turn, so with a second one each request of a
//! single client would wake another thread, on another CPU, with cold caches (a `tar` of small files takes twice as long). There are as
//! many as CPUs while there is work for them, which shows in two ways: requests lie there whenever the one worker has finished one, or it
//! is in the same request for more than a tick, and the second one, that then joins it, is busy at the same time.
//!
//! The one worker stays near its caller: see [`crate::near`].
//!
//! A driver that hangs must not keep all workers: the interrupt that would end it is itself a request. So when all have been
//! busy with the same requests for a tick, the watcher adds one, up to [`SLOTS`]. Workers that are not needed park, or end.
//!
//! The watcher also follows requests that were interrupted, and answers for a driver that does not come back to a caller who is being
//! killed. It sleeps while nothing is stuck; when there was nothing to do for a while, it gives back memory.
//!
//! Lock order: `Shared::state` is taken alone.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use fuser::{Notifier, Session};
use parking_lot::{Condvar, Mutex, MutexGuard};

use crate::host::Host;
use crate::memory;
use crate::near::{Asked, Near};
use crate::running::{Interrupted, Running, SLOTS, Standing, is_dying};

/// How long all workers must have been at the same requests before there is one more, where one was needed lately.
const TICK: Duration = Duration::from_millis(2);

/// The longest pause between two looks of the watcher while nothing is stuck: each costs as much as some requests.
const SLOWEST_TICK: Duration = Duration::from_millis(8);

/// Ticks for which the watcher stays awake after all workers were busy.
const LINGER: u32 = 16;

/// How long there are as many workers as CPUs once there was work for them.
const CROWDED: Duration = Duration::from_millis(50);

/// How often a worker looks whether requests wait, and how often in a row there must be some: a single client's are seldom more than one
/// at a time (but the kernel does not wait for the end of all of them: see [`Callers`]).
const LOOK_EVERY: u32 = 4;
const LOOKS: u32 = 8;

/// How long a worker that is not needed stays, with its buffers.
const PARKED: Duration = Duration::from_millis(500);

/// How long there must have been nothing to do before memory is given back.
const QUIET: Duration = Duration::from_secs(1);

/// Bytes that a request moves, from which on client and worker had better work at the same time.
const LARGE: usize = 64 << 10;

/// How soon a killed caller is noticed.
const SOON: Duration = Duration::from_millis(10);

/// The longest pause between two looks at a caller who may be killed.
const SLOWEST: Duration = Duration::from_millis(200);

/// What workers, watcher and host share.
pub(crate) struct Shared {
    pub(crate) running: Running,
    /// What workers read into; each grows to the largest read, and goes when there is nothing to do.
    buffers: Mutex<Vec<Vec<u8>>>,
    /// Workers that wait for a request.
    idle: AtomicUsize,
    /// Whether the watcher is awake.
    awake: AtomicBool,
    /// Workers that are to wait for requests at the same time.
    wanted: AtomicUsize,
    state: Mutex<State>,
    changed: Condvar,
    /// Where workers park.
    called: Condvar,
}

#[derive(Default)]
struct State {
    /// The connection is gone, or given up.
    ended: bool,
    /// The connection may be there, but is served no longer.
    given_up: bool,
    /// Workers that have not returned, those that are parked included.
    workers: usize,
    parked: usize,
    /// Of those, how many are to go on.
    calls: usize,
    /// Requests were waiting for a worker.
    crowded: bool,
    /// Requests that the watcher is to follow.
    interrupted: Vec<Interrupted>,
    /// All workers are busy.
    busy: bool,
}

impl Shared {
    pub(crate) fn new() -> Self {
        Self {
            running: Running::new(),
            buffers: Mutex::default(),
            idle: AtomicUsize::new(0),
            awake: AtomicBool::new(false),
            wanted: AtomicUsize::new(1),
            state: Mutex::default(),
            changed: Condvar::new(),
            called: Condvar::new(),
        }
    }

    /// Runs `work` with a buffer of so many bytes, whatever is in them.
    pub(crate) fn with_buffer<T>(&self, len: usize, work: impl FnOnce(&mut [u8]) -> T) -> T {
        let mut buffer = self.buffers.lock().pop().unwrap_or_default();
        if buffer.len() < len {
            // Not `resize`: what is in it need not be copied.
            buffer = vec![0; len];
        }
        let result = work(&mut buffer[..len]);
        self.buffers.lock().push(buffer);
        result
    }

    /// The kernel interrupts a request. `false` if no worker serves it.
    pub(crate) fn interrupt(&self, unique: u64) -> bool {
        let Some(request) = self.running.interrupt(unique) else { return false };
        self.state.lock().interrupted.push(request);
        self.changed.notify_all();
        true
    }

    /// Waits until the connection is gone, or for `limit`. Whether it is gone.
    pub(crate) fn wait_ended(&self, limit: Option<Duration>) -> bool {
        self.wait(limit, |state| state.ended)
    }

    /// Waits until no worker serves anything, or for `limit`. Whether that is so.
    pub(crate) fn wait_quiet(&self, limit: Duration) -> bool {
        let deadline = Instant::now() + limit;
        loop {
            // Workers that have returned count as neither. A worker that serves does not tell when it is done: hence the short waits.
            let active = {
                let state = self.state.lock();
                state.workers - (state.parked - state.calls)
            };
            if active <= self.idle.load(Ordering::Acquire) {
                return true;
            }
            if Instant::now() >= deadline {
                return false;
            }
            std::thread::sleep(Duration::from_millis(2));
        }
    }

    fn wait(&self, limit: Option<Duration>, done: impl Fn(&State) -> bool) -> bool {
        let deadline = limit.map(|limit| Instant::now() + limit);
        let mut state = self.state.lock();
        while !done(&state) {
            match deadline {
                None => self.changed.wait(&mut state),
                Some(deadline) => {
                    if self.changed.wait_until(&mut state, deadline).timed_out() {
                        return done(&state);
                    }
                }
            }
        }
        true
    }

    /// Does as if the connection were gone.
    pub(crate) fn give_up(&self) {
        self.state.lock().given_up = true;
        self.end();
    }

    /// Whether the connection may still be there.
    pub(crate) fn is_given_up(&self) -> bool {
        self.state.lock().given_up
    }

    /// The connection is gone.
    fn end(&self) {
        self.state.lock().ended = true;
        self.changed.notify_all();
        self.called.notify_all();
        self.running.interrupt_all();
    }

    /// A worker goes from waiting to serving.
    fn leave_idle(&self) {
        if self.idle.fetch_sub(1, Ordering::AcqRel) == 1 && !self.awake.load(Ordering::Relaxed) {
            self.state.lock().busy = true;
            self.changed.notify_all();
        }
    }

    /// Requests wait.
    fn want_more(&self) {
        self.state.lock().crowded = true;
        self.changed.notify_all();
    }

    /// Waits until this worker is needed, if `wanted` others wait for requests, or until it was not for long. It counts as idle before, and
    /// after unless it ends.
    fn park(&self, wanted: usize, most: usize) -> Parked {
        let mut state = self.state.lock();
        // At once: of two that find each other idle, and leave, nobody would be left.
        let leave = |idle: usize| if idle > wanted { Some(idle - 1) } else { None };
        if self.idle.fetch_update(Ordering::AcqRel, Ordering::Acquire, leave).is_err() {
            return Parked::GoesOn;
        }
        if state.parked >= most || state.ended {
            return Parked::Ends;
        }
        state.parked += 1;
        let until = Instant::now() + PARKED;
        while state.calls == 0 && !state.ended {
            if self.called.wait_until(&mut state, until).timed_out() {
                break;
            }
        }
        state.parked -= 1;
        if state.calls > 0 {
            state.calls -= 1;
            if !state.ended {
                return Parked::GoesOn;
            }
            self.idle.fetch_sub(1, Ordering::AcqRel);
        }
        Parked::Ends
    }

    /// Gives back memory: there is nothing to do.
    fn tidy(&self) {
        self.buffers.lock().clear();
        memory::give_back();
    }

    /// Calls a worker that is parked; `false` if there is none.
    fn call(&self) -> bool {
        let mut state = self.state.lock();
        if state.calls >= state.parked {
            return false;
        }
        state.calls += 1;
        // At once: the worker will take a moment, and nobody else is to be called meanwhile.
        self.idle.fetch_add(1, Ordering::AcqRel);
        self.called.notify_one();
        true
    }
}

/// What becomes of a worker that is not needed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Parked {
    /// It waits for requests, and counts as idle.
    GoesOn,
    /// It ends, and counts no longer.
    Ends,
}

/// How many workers wait for requests at the same time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Crew {
    /// As a rule.
    pub(crate) least: usize,
    /// While there is work for them.
    pub(crate) most: usize,
}

impl Crew {
    /// So many, always; without a number, one or as many as CPUs.
    pub(crate) fn new(workers: Option<usize>) -> Self {
        match workers {
            Some(workers) => {
                let workers = workers.clamp(1, SLOTS);
                Self { least: workers, most: workers }
            }
            None => {
                let processors = std::thread::available_parallelism().map_or(2, std::num::NonZeroUsize::get);
                Self { least: 1, most: processors.clamp(2, SLOTS) }
            }
        }
    }
}

/// Starts the workers and the watcher.
pub(crate) fn start(session: Arc<Session<Host>>, shared: &Arc<Shared>, crew: Crew) -> std::io::Result<()> {
    shared.wanted.store(crew.least, Ordering::Relaxed);
    for _ in 0..crew.least {
        start_worker(&session, shared, crew)?;
    }
    let notifier = session.notifier();
    let watcher = Watcher { session, shared: shared.clone(), notifier, crew };
    std::thread::Builder::new().name("fuse-watcher".into()).spawn(move || watcher.run())?;
    Ok(())
}

fn start_worker(session: &Session<Host>, shared: &Arc<Shared>, crew: Crew) -> std::io::Result<()> {
    let mut worker = session.worker();
    let shared_too = shared.clone();
    shared.state.lock().workers += 1;
    shared.idle.fetch_add(1, Ordering::AcqRel);
    let started = std::thread::Builder::new().name("fuse-worker".into()).spawn(move || {
        let shared = shared_too;
        let mut is_idle = true;
        if shared.running.take_slot() {
            is_idle = serve(&mut worker, &shared, crew);
            shared.running.leave_slot();
        }
        if is_idle {
            shared.idle.fetch_sub(1, Ordering::AcqRel);
        }
        drop(worker);
        shared.state.lock().workers -= 1;
        shared.changed.notify_all();
    });
    if let Err(error) = started {
        shared.state.lock().workers -= 1;
        shared.idle.fetch_sub(1, Ordering::AcqRel);
        return Err(error);
    }
    Ok(())
}

/// Serves until the connection ends, or until there are more workers than wanted. Counts as idle before; whether it does after.
fn serve(worker: &mut fuser::Worker<Host>, shared: &Shared, crew: Crew) -> bool {
    let mut served = 0_u32;
    let mut looks = 0;
    let mut callers = Callers::default();
    let mut near = Near::new(crew.least == 1);
    loop {
        match worker.receive() {
            Ok(true) => {}
            Ok(false) => {
                shared.end();
                return true;
            }
            Err(error) => {
                tracing::error!("reading from /dev/fuse: {error}; the mount ends");
                shared.end();
                return true;
            }
        }
        shared.leave_idle();
        let asked = Asked { caller: worker.caller(), is_large: worker.moves() >= LARGE };
        near.before(&asked, shared.wanted.load(Ordering::Relaxed) > crew.least);
        callers.note(&asked);
        worker.dispatch();
        served = served.wrapping_add(1);
        let wanted = shared.wanted.load(Ordering::Relaxed);
        if wanted < crew.most && served % LOOK_EVERY == 0 {
            looks =
                if std::mem::take(&mut callers).may_crowd() && worker.is_pending() { looks + 1 } else { 0 };
            if looks >= LOOKS {
                looks = 0;
                shared.want_more();
            }
        }
        let is_spare = shared.idle.fetch_add(1, Ordering::AcqRel) >= wanted;
        if is_spare && shared.park(wanted, crew.most) == Parked::Ends {
            return false;
        }
    }
}

/// Who has asked since the last look. What lies there after the requests of one thread is seldom work for a second worker: that thread waits for
/// one answer at a time, and nobody waits for what the kernel adds on its own account, such as forgetting what was removed.
#[derive(Clone, Copy, Debug, Default)]
struct Callers {
    /// The first that could be seen.
    first: u32,
    /// There was another, or much data, which the kernel asks for ahead.
    others: bool,
}

impl Callers {
    fn note(&mut self, request: &Asked) {
        self.others |= request.is_large;
        match (self.first, request.caller) {
            (0, caller) => self.first = caller,
            (first, caller) => self.others |= caller != 0 && caller != first,
        }
    }

    /// Whether what waits may be of others. Callers that cannot be seen may be many.
    fn may_crowd(self) -> bool {
        self.others || self.first == 0
    }
}

struct Watcher {
    session: Arc<Session<Host>>,
    shared: Arc<Shared>,
    notifier: Notifier,
    crew: Crew,
}

/// When to look at an interrupted request again.
struct Followed {
    next: Instant,
    pause: Duration,
}

/// Why the watcher was woken.
#[derive(Clone, Copy, Default)]
struct Woken {
    /// All workers were busy.
    busy: bool,
    /// Requests were waiting.
    crowded: bool,
}

impl Watcher {
    fn run(self) {
        let mut followed: HashMap<u64, (Interrupted, Followed)> = HashMap::new();
        let mut last: Option<[u64; SLOTS]> = None;
        let mut linger = 0;
        let mut crowded_until: Option<Instant> = None;
        let mut tick = TICK;
        let mut is_tidy = true;
        while let Some(woken) = self.sleep(&mut followed, (linger, tick), &mut is_tidy) {
            let busy = self.shared.idle.load(Ordering::Acquire) == 0;
            linger = if busy || woken.busy { LINGER } else { linger.saturating_sub(1) };
            let now = self.shared.running.snapshot();
            let stuck = busy && last == Some(now);
            last = busy.then_some(now);
            tick = if stuck || linger == 0 { TICK } else { (tick * 2).min(SLOWEST_TICK) };
            if stuck {
                self.one_more();
                last = None;
            }
            if self.crew.least < self.crew.most {
                let at_once = Running::count(&now) > self.crew.least;
                if at_once || woken.crowded {
                    crowded_until = Some(Instant::now() + CROWDED);
                    self.all();
                } else if crowded_until.is_some_and(|until| until < Instant::now()) {
                    crowded_until = None;
                    self.shared.wanted.store(self.crew.least, Ordering::Relaxed);
                }
                if crowded_until.is_some() {
                    linger = linger.max(1);
                }
            }
            followed.retain(|_, (request, when)| self.follow(*request, when));
        }
    }

    /// Sleeps until there is something to look at. `None` when the connection is gone.
    fn sleep(
        &self,
        followed: &mut HashMap<u64, (Interrupted, Followed)>,
        (linger, tick): (u32, Duration),
        is_tidy: &mut bool,
    ) -> Option<Woken> {
        let mut state = self.shared.state.lock();
        let next = followed.values().map(|(_, when)| when.next).min();
        let next = if linger > 0 { Some(Instant::now() + tick) } else { next };
        if linger == 0 {
            self.shared.awake.store(false, Ordering::Relaxed);
        }
        let is_called = state.ended || !state.interrupted.is_empty() || state.crowded;
        if !is_called && (linger > 0 || !state.busy) {
            match next {
                Some(next) => drop(self.shared.changed.wait_until(&mut state, next)),
                None if *is_tidy => self.shared.changed.wait(&mut state),
                None => {
                    if self.shared.changed.wait_for(&mut state, QUIET).timed_out() {
                        MutexGuard::unlocked(&mut state, || self.shared.tidy());
                        *is_tidy = true;
                    }
                }
            }
        }
        *is_tidy &= !state.busy;
        self.shared.awake.store(true, Ordering::Relaxed);
        let first = Instant::now() + SOON / 2;
        for request in std::mem::take(&mut state.interrupted) {
            followed.insert(request.unique, (request, Followed { next: first, pause: SOON }));
        }
        let woken =
            Woken { busy: std::mem::take(&mut state.busy), crowded: std::mem::take(&mut state.crowded) };
        if state.ended { None } else { Some(woken) }
    }

    /// There is work for as many workers as there may be.
    fn all(&self) {
        if self.shared.wanted.swap(self.crew.most, Ordering::Relaxed) == self.crew.most {
            return;
        }
        let active = {
            let state = self.shared.state.lock();
            state.workers - (state.parked - state.calls)
        };
        for _ in active..self.crew.most {
            self.one_more();
        }
    }

    fn one_more(&self) {
        if self.shared.call() {
            return;
        }
        let workers = self.shared.state.lock().workers;
        if workers >= SLOTS {
            return;
        }
        tracing::debug!("{workers} workers are busy: starting one more");
        if let Err(error) = start_worker(&self.session, &self.shared, self.crew) {
            tracing::warn!("{workers} workers are busy, and no more can be started: {error}");
        }
    }

    /// Whether to look again.
    fn follow(&self, request: Interrupted, when: &mut Followed) -> bool {
        if Instant::now() < when.next {
            return true;
        }
        let Standing::Waiting { caller, may_abandon } = self.shared.running.standing(request) else {
            return false;
        };
        if !may_abandon {
            return false;
        }
        if is_dying(caller) && self.shared.running.take_answer(request) {
            tracing::debug!(unique = request.unique, pid = caller, "answered for a driver that hangs");
            if let Err(error) =
                self.notifier.reply_error(fuser::RequestId(request.unique), fuser::Errno::EINTR)
            {
                tracing::debug!("the answer was not wanted: {error}");
            }
            return false;
        }
        when.next = Instant::now() + when.pause;
        when.pause = (when.pause * 2).min(SLOWEST);
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Two idle workers, one of which has parked.
    fn one_of_two_parked() -> (Arc<Shared>, std::thread::JoinHandle<Parked>) {
        let shared = Arc::new(Shared::new());
        shared.idle.store(2, Ordering::Release);
        let parked = {
            let shared = Arc::clone(&shared);
            std::thread::spawn(move || shared.park(1, 2))
        };
        while shared.state.lock().parked == 0 {
            std::thread::yield_now();
        }
        (shared, parked)
    }

    /// Two that found each other idle both parked once, and the mount hung: seen on a busy machine.
    #[test]
    fn the_last_worker_that_waits_does_not_park() {
        let (shared, other) = one_of_two_parked();
        assert_eq!(shared.idle.load(Ordering::Acquire), 1);
        assert_eq!(shared.park(1, 2), Parked::GoesOn);
        assert_eq!(shared.idle.load(Ordering::Acquire), 1);
        assert!(shared.call());
        assert_eq!(other.join().unwrap(), Parked::GoesOn);
        assert_eq!(shared.idle.load(Ordering::Acquire), 2);
    }

    /// While a tree was removed, what the kernel forgot passed for a crowd, and a second worker took each other request.
    #[test]
    fn requests_of_one_thread_are_no_crowd() {
        let crowds = |requests: &[(u32, bool)]| {
            let mut callers = Callers::default();
            requests.iter().for_each(|(caller, is_large)| {
                callers.note(&Asked { caller: *caller, is_large: *is_large });
            });
            callers.may_crowd()
        };
        assert!(!crowds(&[(7, false), (0, false), (7, false), (7, false)]));
        assert!(!crowds(&[(0, false), (7, false), (0, false), (7, false)]));
        assert!(crowds(&[(7, false), (0, false), (8, false), (7, false)]));
        assert!(crowds(&[(7, false), (7, true), (7, false), (7, false)]));
        assert!(crowds(&[(0, false), (0, false), (0, false), (0, false)]));
    }

    #[test]
    fn a_worker_that_is_not_needed_ends_with_the_connection() {
        let (shared, other) = one_of_two_parked();
        shared.end();
        assert_eq!(other.join().unwrap(), Parked::Ends);
        assert_eq!(shared.idle.load(Ordering::Acquire), 1);
    }
}
