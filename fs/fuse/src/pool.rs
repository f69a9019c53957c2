//! The threads that serve: workers, and one watcher.
//!
//! There are as many workers as CPUs, and at least two. More make things slower, as the kernel hands
//! requests to waiting threads in turn and each of them then starts with cold caches. But a driver that hangs must not keep
//! all of them: the interrupt that would end it is itself a request. So when all workers have been busy with
//! the same requests for a while, the watcher starts one more, up to [`SLOTS`]; it goes when it is no longer needed.
//!
//! The watcher also follows requests that were interrupted, and answers for a driver that does not come back to a caller who is being
//! killed. It sleeps while nothing is stuck.
//!
//! Lock order: `Shared::state` is taken alone.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use fuser::{Notifier, Session};
use parking_lot::{Condvar, Mutex};

use crate::host::Host;
use crate::running::{Interrupted, Running, SLOTS, Standing, is_dying};

/// How long all workers must have been at the same requests before there is one more; and how soon a killed caller is noticed.
const TICK: Duration = Duration::from_millis(10);

/// How long the watcher stays awake after all workers were busy.
const LINGER: u32 = 20;

/// The longest pause between two looks at a caller who may be killed.
const SLOWEST: Duration = Duration::from_millis(200);

/// What workers, watcher and host share.
pub(crate) struct Shared {
    pub(crate) running: Running,
    /// Workers that wait for a request.
    idle: AtomicUsize,
    /// Whether the watcher is awake.
    awake: AtomicBool,
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    /// The connection is gone, or given up.
    ended: bool,
    /// The connection may be there, but is served no longer.
    given_up: bool,
    /// Workers that have not returned.
    workers: usize,
    /// Requests that the watcher is to follow.
    interrupted: Vec<Interrupted>,
    /// All workers are busy.
    busy: bool,
}

impl Shared {
    pub(crate) fn new() -> Self {
        Self {
            running: Running::new(),
            idle: AtomicUsize::new(0),
            awake: AtomicBool::new(false),
            state: Mutex::default(),
            changed: Condvar::new(),
        }
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
            if self.state.lock().workers <= self.idle.load(Ordering::Acquire) {
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
        self.running.interrupt_all();
    }

    /// A worker goes from waiting to serving.
    fn leave_idle(&self) {
        if self.idle.fetch_sub(1, Ordering::AcqRel) == 1 && !self.awake.load(Ordering::Relaxed) {
            self.state.lock().busy = true;
            self.changed.notify_all();
        }
    }
}

/// Starts the workers and the watcher.
pub(crate) fn start(
    session: Arc<Session<Host>>,
    shared: &Arc<Shared>,
    workers: usize,
) -> std::io::Result<()> {
    let workers = workers.clamp(2, SLOTS);
    for _ in 0..workers {
        start_worker(&session, shared, workers)?;
    }
    let notifier = session.notifier();
    let watcher = Watcher { session, shared: shared.clone(), notifier, workers };
    std::thread::Builder::new().name("fuse-watcher".into()).spawn(move || watcher.run())?;
    Ok(())
}

/// As many workers as CPUs.
pub(crate) fn default_workers() -> usize {
    std::thread::available_parallelism().map_or(2, std::num::NonZeroUsize::get)
}

fn start_worker(session: &Session<Host>, shared: &Arc<Shared>, wanted: usize) -> std::io::Result<()> {
    let mut worker = session.worker();
    let shared_too = shared.clone();
    shared.state.lock().workers += 1;
    shared.idle.fetch_add(1, Ordering::AcqRel);
    let started = std::thread::Builder::new().name("fuse-worker".into()).spawn(move || {
        let shared = shared_too;
        if shared.running.take_slot() {
            serve(&mut worker, &shared, wanted);
            shared.running.leave_slot();
        }
        shared.idle.fetch_sub(1, Ordering::AcqRel);
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

/// Serves until the connection ends, or until there are more workers than wanted. Counts as idle before and after.
fn serve(worker: &mut fuser::Worker<Host>, shared: &Shared, wanted: usize) {
    loop {
        match worker.receive() {
            Ok(true) => {}
            Ok(false) => return shared.end(),
            Err(error) => {
                tracing::error!("reading from /dev/fuse: {error}; the mount ends");
                return shared.end();
            }
        }
        shared.leave_idle();
        worker.dispatch();
        if shared.idle.fetch_add(1, Ordering::AcqRel) >= wanted {
            return;
        }
    }
}

struct Watcher {
    session: Arc<Session<Host>>,
    shared: Arc<Shared>,
    notifier: Notifier,
    workers: usize,
}

/// When to look at an interrupted request again.
struct Followed {
    next: Instant,
    pause: Duration,
}

impl Watcher {
    fn run(self) {
        let mut followed: HashMap<u64, (Interrupted, Followed)> = HashMap::new();
        let mut last = (Instant::now(), [u64::MAX; SLOTS]);
        let mut linger = 0;
        while let Some(woken) = self.sleep(&mut followed, linger) {
            let busy = self.shared.idle.load(Ordering::Acquire) == 0;
            linger = if busy || woken { LINGER } else { linger.saturating_sub(1) };
            let now = self.shared.running.snapshot();
            if !busy || now != last.1 {
                last = (Instant::now(), if busy { now } else { [u64::MAX; SLOTS] });
            } else if last.0.elapsed() >= TICK {
                self.one_more();
                last = (Instant::now(), [u64::MAX; SLOTS]);
            }
            followed.retain(|_, (request, when)| self.follow(*request, when));
        }
    }

    /// Sleeps until there is something to look at. `None` when the connection is gone, otherwise whether all workers were busy
    /// meanwhile.
    fn sleep(&self, followed: &mut HashMap<u64, (Interrupted, Followed)>, linger: u32) -> Option<bool> {
        let mut state = self.shared.state.lock();
        let next = followed.values().map(|(_, when)| when.next).min();
        let next = if linger > 0 { Some(Instant::now() + TICK) } else { next };
        if linger == 0 {
            self.shared.awake.store(false, Ordering::Relaxed);
        }
        if !state.ended && state.interrupted.is_empty() && !(linger == 0 && state.busy) {
            match next {
                Some(next) => drop(self.shared.changed.wait_until(&mut state, next)),
                None => self.shared.changed.wait(&mut state),
            }
        }
        self.shared.awake.store(true, Ordering::Relaxed);
        let first = Instant::now() + TICK / 2;
        for request in std::mem::take(&mut state.interrupted) {
            followed.insert(request.unique, (request, Followed { next: first, pause: TICK }));
        }
        let woken = std::mem::take(&mut state.busy);
        if state.ended { None } else { Some(woken) }
    }

    fn one_more(&self) {
        let workers = self.shared.state.lock().workers;
        if workers >= SLOTS {
            return;
        }
        tracing::debug!("all {workers} workers are stuck: starting one more");
        if let Err(error) = start_worker(&self.session, &self.shared, self.workers) {
            tracing::warn!("all {workers} workers are stuck, and no more can be started: {error}");
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
