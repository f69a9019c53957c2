//! Where a worker runs: on the processor of who asks.
//!
//! A caller that waits for its answer and the worker that makes it are never busy at the same time, but the scheduler wakes each on an
//! idle processor of its own if it can. Every request then wakes two processors that sleep, which takes longer than most requests do, many times
//! as long in a virtual machine. So the worker has itself held to the processor on which its callers run (a wake-up is then a switch
//! of tasks), and follows them when they move. It does so only while it gains by it: there is one worker, requests are short (neither
//! much data nor waiting in the driver), and callers can be seen.
//!
//! A caller may hold a lock that those who look at it in `/proc` want (that of a running execve(2), or of its memory), and wait for this very worker with it. So
//! another thread looks: it may be kept waiting, and nobody waits for it.
//!
//! Threads inherit where they may run, so what a driver starts from a request would be held too. Such threads are looked for
//! now and then, and set free; before a request with much data, for which drivers divide their work, the worker itself is.
//!
//! # Limits
//!
//! A program that a driver starts from a request (`ssh`, when a connection is made anew) stays where the worker was held.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{SyncSender, sync_channel};

use nix::sched::{CpuSet, sched_getaffinity, sched_setaffinity};
use nix::sys::resource::{UsageWho, getrusage};
use nix::unistd::Pid;

/// Requests after which a worker looks where its caller runs.
const LOOK_EVERY: u32 = 32;

/// Looks after which threads that were started meanwhile are set free.
const FREE_EVERY: u32 = 32;

/// Looks in a row that may see nothing before the worker is let go.
const BLIND_MAX: u32 = 8;

/// Bytes; the looking thread calls little.
const STACK: usize = 128 << 10;

/// What is known of a request before it is served.
pub(crate) struct Asked {
    /// The thread that asks, as we see its number; 0 if we cannot, or if the kernel asks on its own account.
    pub(crate) caller: u32,
    /// Whether it moves so much data that others had better work at the same time.
    pub(crate) is_large: bool,
}

/// Holds the calling thread, a worker. See the head of the file.
pub(crate) struct Near {
    /// Where the worker may run. `None`: it is not for us to say.
    allowed: Option<CpuSet>,
    looker: Option<Looker>,
    held: Option<usize>,
    /// Where the caller ran when it was looked for, if not where the worker is held.
    seen: Option<usize>,
    /// Requests since the last look.
    served: u32,
    looks: u32,
    /// Looks in a row that saw nothing.
    blind: u32,
    /// How often the thread had waited for something, at the last look.
    waits: i64,
}

impl Near {
    /// `alone`: as a rule there is one worker.
    pub(crate) fn new(alone: bool) -> Self {
        let allowed = sched_getaffinity(Pid::from_raw(0)).ok().filter(|set| alone && processors(set) > 1);
        // Now, while this thread is not held: the new one is then neither.
        let looker = allowed.and_then(|_| Looker::start());
        let allowed = allowed.filter(|_| looker.is_some());
        Self { allowed, looker, held: None, seen: None, served: 0, looks: 0, blind: 0, waits: waits() }
    }

    /// A request is about to be served.
    pub(crate) fn before(&mut self, request: &Asked, is_crowded: bool) {
        if self.allowed.is_none() {
            return;
        }
        if request.is_large || is_crowded {
            self.let_go();
            self.begin();
            return;
        }
        self.served += 1;
        if self.served >= LOOK_EVERY && request.caller != 0 {
            self.look(request.caller);
            self.begin();
        }
    }

    fn begin(&mut self) {
        self.served = 0;
        if self.allowed.is_some() {
            self.waits = waits();
        }
    }

    fn look(&mut self, caller: u32) {
        // A worker waits once a request, for the next one.
        let waited = waits().saturating_sub(self.waits);
        if waited > i64::from(self.served + self.served / 2) {
            return self.let_go();
        }
        let Some(looker) = &self.looker else { return };
        let seen = looker.answer();
        looker.ask(caller);
        let Some(processor) = seen else {
            self.blind += 1;
            if self.blind >= BLIND_MAX {
                self.let_go();
            }
            return;
        };
        self.blind = 0;
        if self.held != Some(processor) {
            // A worker that is held moves only if that is where callers stay: moving costs more than some requests.
            if self.held.is_none() || self.seen == Some(processor) {
                self.hold(processor);
            } else {
                self.seen = Some(processor);
            }
            return;
        }
        self.seen = None;
        self.looks += 1;
        if self.looks % FREE_EVERY == 0 {
            self.free_others();
        }
    }

    fn hold(&mut self, processor: usize) {
        if !self.allowed.is_some_and(|set| set.is_set(processor) == Ok(true)) {
            return self.let_go();
        }
        self.seen = None;
        let is_held = self.is_ours() && self.move_to(one(processor));
        if is_held {
            self.held = Some(processor);
        } else {
            self.let_go();
            self.allowed = None;
        }
    }

    fn let_go(&mut self) {
        self.seen = None;
        if self.held.is_none() {
            return;
        }
        self.free_others();
        let is_free = self.is_ours() && self.move_to(self.allowed);
        self.held = None;
        if !is_free {
            self.allowed = None;
        }
    }

    /// Whether nobody else has said where this thread is to run: from then on that holds. Another worker may have set it free.
    fn is_ours(&self) -> bool {
        let now = sched_getaffinity(Pid::from_raw(0)).ok();
        now.is_some() && (now == self.allowed || now == self.held.and_then(one))
    }

    fn move_to(&self, set: Option<CpuSet>) -> bool {
        set.is_some_and(|set| sched_setaffinity(Pid::from_raw(0), &set).is_ok())
    }

    /// Sets threads free that were started while their starter was held here.
    fn free_others(&self) {
        let (Some(allowed), Some(here)) = (self.allowed, self.held.and_then(one)) else { return };
        let Ok(threads) = std::fs::read_dir("/proc/self/task") else { return };
        for thread in threads.flatten() {
            let Some(thread) = thread.file_name().to_str().and_then(|name| name.parse().ok()) else {
                continue;
            };
            let thread = Pid::from_raw(thread);
            if thread != nix::unistd::gettid() && sched_getaffinity(thread) == Ok(here) {
                // It may be gone.
                let _ = sched_setaffinity(thread, &allowed);
            }
        }
    }
}

/// The thread that looks where callers run. It ends when this is dropped, or when what it waits for is over.
struct Looker {
    ask: SyncSender<u32>,
    /// A processor and 1 more; 0 before there is an answer.
    seen: Arc<AtomicUsize>,
}

impl Looker {
    /// `None`: there are too many threads.
    fn start() -> Option<Self> {
        let (ask, asked) = sync_channel(1);
        let seen = Arc::new(AtomicUsize::new(0));
        let answer = Arc::clone(&seen);
        let look = move || {
            for caller in asked {
                answer.store(processor_of(caller).map_or(0, |processor| processor + 1), Ordering::Release);
            }
        };
        let started = std::thread::Builder::new().name("fuse-near".into()).stack_size(STACK).spawn(look);
        started.ok().map(|_| Self { ask, seen })
    }

    /// Where the caller that was asked for last ran, once.
    fn answer(&self) -> Option<usize> {
        self.seen.swap(0, Ordering::AcqRel).checked_sub(1)
    }

    /// Does not wait; what cannot be asked now is not.
    fn ask(&self, caller: u32) {
        let _ = self.ask.try_send(caller);
    }
}

/// A set of one processor.
fn one(processor: usize) -> Option<CpuSet> {
    let mut set = CpuSet::new();
    set.set(processor).ok()?;
    Some(set)
}

fn processors(set: &CpuSet) -> usize {
    (0..CpuSet::count()).filter(|processor| set.is_set(*processor) == Ok(true)).count()
}

/// How often the calling thread has waited for something.
fn waits() -> i64 {
    getrusage(UsageWho::RUSAGE_THREAD).map_or(0, |usage| usage.voluntary_context_switches())
}

/// Where a thread runs, or ran last.
fn processor_of(thread: u32) -> Option<usize> {
    parse_processor(&std::fs::read_to_string(format!("/proc/{thread}/stat")).ok()?)
}

/// The field `processor` of `/proc/PID/stat`, the 39th (proc(5)). The second, a name in parentheses, may hold anything.
fn parse_processor(stat: &str) -> Option<usize> {
    let (_, behind) = stat.rsplit_once(')')?;
    behind.split_whitespace().nth(36)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn allowed_now() -> CpuSet {
        sched_getaffinity(Pid::from_raw(0)).unwrap()
    }

    fn small(caller: u32) -> Asked {
        Asked { caller, is_large: false }
    }

    #[test]
    fn the_processor_of_a_thread_is_found() {
        let me = nix::unistd::gettid().as_raw() as u32;
        let mut before = None;
        // A test may be moved at any time, but not always.
        let agrees = (0..100).any(|_| {
            let (here, seen) = (nix::sched::sched_getcpu().ok(), processor_of(me));
            std::mem::replace(&mut before, here) == here && seen == here
        });
        assert!(agrees);
        let odd = "7 (a) b) S ".to_owned() + &"0 ".repeat(35) + "5 0 0";
        assert_eq!(parse_processor(&odd), Some(5));
        assert_eq!(parse_processor("7 (a"), None);
    }

    /// One test, since all work on the threads of one process.
    #[test]
    fn a_worker_follows_small_requests_and_is_free_for_large_ones() {
        let all = allowed_now();
        let mut near = Near::new(true);
        if near.allowed.is_none() {
            return eprintln!("skipped: one processor");
        }
        // The caller is another thread, which is held, so that it does not move.
        let last = (0..CpuSet::count()).rev().find(|processor| all.is_set(*processor) == Ok(true)).unwrap();
        let (tell, told) = std::sync::mpsc::channel();
        let (end, ended) = std::sync::mpsc::channel::<()>();
        let caller = std::thread::spawn(move || {
            sched_setaffinity(Pid::from_raw(0), &one(last).unwrap()).unwrap();
            tell.send(nix::unistd::gettid().as_raw() as u32).unwrap();
            let _ = ended.recv();
        });
        let thread = told.recv().unwrap();
        let is_held = (0..100 * LOOK_EVERY).any(|_| {
            near.before(&small(thread), false);
            std::thread::sleep(std::time::Duration::from_micros(50));
            allowed_now() == one(last).unwrap()
        });
        assert!(is_held);
        // What is started meanwhile is set free with the worker.
        let (start, started) = std::sync::mpsc::channel();
        let (go, gone) = std::sync::mpsc::channel::<()>();
        let helper = std::thread::spawn(move || {
            start.send(allowed_now()).unwrap();
            let _ = gone.recv();
            allowed_now()
        });
        assert_eq!(started.recv().unwrap(), one(last).unwrap());
        near.before(&Asked { caller: thread, is_large: true }, false);
        assert_eq!(allowed_now(), all);
        drop(go);
        assert_eq!(helper.join().unwrap(), all);
        // Nor is it held where others could help, or where somebody else has held it.
        for _ in 0..4 * LOOK_EVERY {
            near.before(&small(thread), true);
            std::thread::sleep(std::time::Duration::from_micros(50));
        }
        assert_eq!(allowed_now(), all);
        let first = one((0..).find(|processor| all.is_set(*processor) == Ok(true)).unwrap()).unwrap();
        sched_setaffinity(Pid::from_raw(0), &first).unwrap();
        for _ in 0..4 * LOOK_EVERY {
            near.before(&small(thread), false);
            std::thread::sleep(std::time::Duration::from_micros(50));
        }
        assert_eq!(allowed_now(), first);
        drop(end);
        caller.join().unwrap();
    }

    #[test]
    fn a_worker_that_waits_for_others_is_not_held() {
        let all = allowed_now();
        let mut near = Near::new(true);
        let me = nix::unistd::gettid().as_raw() as u32;
        for _ in 0..4 * LOOK_EVERY {
            near.before(&small(me), false);
            (0..3).for_each(|_| std::thread::sleep(std::time::Duration::from_micros(50)));
        }
        assert_eq!(allowed_now(), all);
    }
}
