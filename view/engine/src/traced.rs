//! Views whose calls come by ptrace, where there is no notification.
//!
//! One thread traces all tasks and performs the answers; handlers, which may wait for a driver, run in others.
//!
//! # Limits
//!
//! Inside another view a command may be refused (`the command cannot be run`). A child made with `CLONE_UNTRACED` is not seen, and a debugger cannot attach.

use std::collections::{HashMap, HashSet};
use std::os::fd::{AsFd, AsRawFd};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, mpsc};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::libc;
use nix::sys::signal::{SigSet, Signal, kill};
use nix::unistd::Pid;
use parking_lot::Mutex;
use veduta_api::Result;
use veduta_trace::spawn::Command;
use veduta_trace::{Happening, Notification, Refusal, Task, Tracer, raw};

use crate::call::{Answer, Meanwhile, Outcome};
use crate::calls::Level;
use crate::grow::filter;
use crate::reread::Gift;
use crate::trap::Trap;
use crate::view::View;

/// Threads that handlers run in, at most.
const MOST_THREADS: usize = 128;

/// A call, numbered so that an answer is not taken for that of a later task of the same number.
type Job = (u64, Notification);

struct Workers {
    jobs: Mutex<mpsc::Receiver<Job>>,
    answers: mpsc::Sender<(u64, Notification, Outcome)>,
    idle: AtomicUsize,
    count: AtomicUsize,
}

impl Workers {
    fn work(&self, view: &Arc<View>) {
        if let Err(errno) = raw::unshare_fs() {
            tracing::warn!("threads share their umask: {}", errno.desc());
        }
        loop {
            let job = self.jobs.lock().recv();
            let Ok((id, call)) = job else { return };
            let outcome = crate::serve::decide(view, &call);
            if is_among_last(&outcome) {
                // To hand it over takes some more, and whoever does that cannot wait for trees.
                view.stand_ins.relieve();
            }
            self.idle.fetch_add(1, Ordering::AcqRel);
            if self.answers.send((id, call, outcome)).is_err() {
                return;
            }
            // The tracer waits for signals.
            let _ = kill(Pid::this(), Signal::SIGCHLD);
        }
    }

    fn reserve(self: &Arc<Self>, view: &Arc<View>) {
        let take = |idle: usize| idle.checked_sub(1);
        if self.idle.fetch_update(Ordering::AcqRel, Ordering::Acquire, take).is_ok()
            || self.count.load(Ordering::Acquire) >= MOST_THREADS
        {
            return;
        }
        let (workers, view) = (Arc::clone(self), Arc::clone(view));
        let thread = std::thread::Builder::new().name("serve".into()).stack_size(512 << 10);
        match thread.spawn(move || workers.work(&view)) {
            Ok(_) => drop(self.count.fetch_add(1, Ordering::AcqRel)),
            Err(error) => tracing::error!("no thread can be started: {error}"),
        }
    }
}

/// Whether an answer has a descriptor that is among the last ones which the engine may have: the kernel gives the lowest number that is free.
fn is_among_last(outcome: &Outcome) -> bool {
    const LAST: u64 = 16;
    let number = match outcome {
        Ok(Answer::Fd { fd, .. } | Answer::Chdir(fd, _)) => Some(fd.as_raw_fd()),
        Ok(Answer::Exec(plan)) => plan.descriptors().iter().map(AsRawFd::as_raw_fd).max(),
        _ => None,
    };
    let limit = raw::descriptor_limit().map_or(u64::MAX, |limit| limit.most);
    number.is_some_and(|number| (number as u64).saturating_add(LAST) >= limit)
}

/// All tasks of a command, traced.
pub(crate) struct Traced(Tracer);

impl Traced {
    /// By seccomp stops, or at every call.
    pub(crate) fn new(view: &View, every_call: bool) -> Self {
        if view.level() > Level::Idle {
            view.set_level(Level::Files);
        }
        Self(Tracer::new(filter(view), every_call))
    }
}

impl Trap for Traced {
    fn start(&mut self, _view: &Arc<View>, command: &Command) -> Result<Pid, Refusal> {
        self.0.spawn(command)
    }

    fn serve(&mut self, view: &Arc<View>, child: Pid, signals: &SigSet) -> Result<i32> {
        serve(&self.0, view, child, signals)
    }
}

fn serve(tracer: &Tracer, view: &Arc<View>, child: Pid, signals: &SigSet) -> Result<i32> {
    let (jobs, queue) = mpsc::channel();
    let (answers, answered) = mpsc::channel();
    let workers = Arc::new(Workers {
        jobs: Mutex::new(queue),
        answers,
        idle: AtomicUsize::new(0),
        count: AtomicUsize::new(0),
    });
    crate::watch::start();
    let (errands, wishes) = mpsc::channel();
    view.rereads.trace(errands);
    let mut halts = Halts::default();
    let mut held = Vec::new();
    let tick = nix::sys::time::TimeSpec::from_duration(Duration::from_secs(1));
    let (mut tasks, mut served) = (HashSet::from([child]), HashMap::new());
    let (mut status, mut last_tidy, mut next, mut ending) = (None, Instant::now(), 0_u64, None::<Instant>);
    loop {
        let deserted = loop {
            match tracer.next() {
                Happening::Call(call) => {
                    tasks.insert(call.tid);
                    next += 1;
                    served.insert(call.tid, next);
                    workers.reserve(view);
                    jobs.send((next, call)).map_err(|_| Errno::EIO)?;
                }
                Happening::Runs(tid) => {
                    tasks.insert(tid);
                }
                Happening::Stands(tid, stood) => halts.stands(tracer, tid, stood),
                Happening::Ended(tid, code) => {
                    tasks.remove(&tid);
                    served.remove(&tid);
                    halts.ended(tid);
                    if tid == child {
                        status = Some(code);
                    }
                }
                Happening::Halted(tid) => {
                    if tid == child {
                        let _ = kill(nix::unistd::getppid(), Signal::SIGUSR1);
                    }
                }
                Happening::Blind(tid, errno) => {
                    tracing::error!("process {tid} does not see the mounts: {}", errno.desc());
                    let _ = tracer.resume(tid, 0);
                }
                Happening::Nothing => break false,
                Happening::Deserted => break true,
            }
        };
        while let Ok(errand) = wishes.try_recv() {
            halts.run(tracer, errand, &served);
        }
        halts.advance(tracer, &served);
        let answers: Vec<_> = std::mem::take(&mut held).into_iter().chain(answered.try_iter()).collect();
        for (id, call, outcome) in answers {
            if halts.holds(call.tid) {
                held.push((id, call, outcome));
                continue;
            }
            if served.get(&call.tid) == Some(&id) {
                served.remove(&call.tid);
                if matches!(outcome, Ok(Answer::Grow(..))) && view.level() == Level::Idle {
                    // A tracer sees all calls on descriptors at the price of one filter more, so it grows once.
                    view.set_level(Level::Files);
                    crate::loops::install(view);
                    tracer.grow(filter(view), tasks.iter().copied());
                }
                perform(tracer, &call, outcome, &halts.gifts_of(call.tid));
            }
        }
        if status.is_some() {
            // A thread that loads a program takes over another number, and nobody says that its own is free.
            tasks.retain(|tid| kill(*tid, None) != Err(Errno::ESRCH));
        }
        if deserted || (tasks.is_empty() && status.is_some()) {
            return Ok(status.unwrap_or(128 + Signal::SIGKILL as i32));
        }
        if last_tidy.elapsed() >= View::TIDY {
            view.tidy();
            last_tidy = Instant::now();
        }
        if let Some(since) = ending {
            let signal =
                if since.elapsed() < Duration::from_secs(2) { Signal::SIGCONT } else { Signal::SIGKILL };
            for tid in &tasks {
                let _ = kill(*tid, signal);
            }
        }
        if let Ok(Some(Signal::SIGTERM | Signal::SIGHUP)) = raw::wait_for_signal(signals, &tick) {
            ending.get_or_insert_with(Instant::now);
            for tid in &tasks {
                let _ = kill(*tid, Signal::SIGTERM);
            }
        }
    }
}

/// What is to be done to a process whose descriptors are changed (`reread.rs`).
pub(crate) enum Errand {
    /// All its threads are to stand still; the answer comes when they do.
    Halt(Pid, mpsc::Sender<()>),
    /// It gets a descriptor.
    Give(Pid, Gift, mpsc::Sender<Result<()>>),
    /// It is to go on.
    LetGo(Pid),
}

/// Processes whose threads stand still.
#[derive(Default)]
struct Halts {
    halted: HashMap<Pid, Halt>,
    /// What processes all of whose threads stand at calls are given, when the first of those is answered.
    gifts: HashMap<Pid, Vec<Gift>>,
}

struct Halt {
    /// Threads that were asked.
    asked: HashSet<Pid>,
    /// Those that stand still, and whether they did before.
    standing: HashMap<Pid, bool>,
    reply: Option<mpsc::Sender<()>>,
}

impl Halts {
    /// Whether a task belongs to such a process.
    fn holds(&self, tid: Pid) -> bool {
        !self.halted.is_empty() && Task(tid).leader().is_ok_and(|leader| self.halted.contains_key(&leader))
    }

    /// What the process of a task is to be given now.
    fn gifts_of(&mut self, tid: Pid) -> Vec<Gift> {
        if self.gifts.is_empty() {
            return Vec::new();
        }
        self.gifts.remove(&Task(tid).leader().unwrap_or(tid)).unwrap_or_default()
    }

    fn stands(&mut self, tracer: &Tracer, tid: Pid, stood: bool) {
        let leader = Task(tid).leader().unwrap_or(tid);
        match self.halted.get_mut(&leader) {
            Some(halt) => drop(halt.standing.insert(tid, stood)),
            None => drop(tracer.let_go(tid, stood)),
        }
    }

    fn ended(&mut self, tid: Pid) {
        self.gifts.remove(&tid);
        for halt in self.halted.values_mut() {
            halt.asked.remove(&tid);
            halt.standing.remove(&tid);
        }
    }

    fn run(&mut self, tracer: &Tracer, errand: Errand, served: &HashMap<Pid, u64>) {
        match errand {
            Errand::Halt(pid, reply) => {
                let halt = Halt { asked: HashSet::new(), standing: HashMap::new(), reply: Some(reply) };
                self.halted.insert(pid, halt);
            }
            Errand::Give(pid, gift, reply) => {
                let standing = self.halted.get(&pid).and_then(|halt| halt.standing.keys().next().copied());
                let is_served = |tid: &Pid| served.contains_key(tid);
                let done = match standing {
                    Some(tid) => tracer.with(tid, |stopped| gift.give(stopped)),
                    None if Task(pid).threads().iter().any(is_served) => {
                        self.gifts.entry(pid).or_default().push(gift);
                        Ok(())
                    }
                    None => Err(Errno::EBUSY),
                };
                let _ = reply.send(done);
            }
            Errand::LetGo(pid) => {
                let Some(halt) = self.halted.remove(&pid) else { return };
                for tid in halt.asked {
                    // One that ended meanwhile is seen by the next wait.
                    match halt.standing.get(&tid) {
                        Some(stood) => drop(tracer.let_go(tid, *stood)),
                        None => tracer.let_be(tid),
                    }
                }
            }
        }
    }

    /// Asks threads that were not asked yet, and answers who waits for processes all of which stands.
    fn advance(&mut self, tracer: &Tracer, served: &HashMap<Pid, u64>) {
        for (pid, halt) in &mut self.halted {
            if halt.reply.is_none() {
                continue;
            }
            let mut is_done = true;
            for tid in Task(*pid).threads() {
                // At a call it stands, and one that waits for a child that has its memory makes none.
                let stands = halt.standing.contains_key(&tid) || served.contains_key(&tid);
                if stands || Task(tid).state() == Some('D') {
                    continue;
                }
                if halt.asked.contains(&tid) || tracer.halt(tid).is_ok() {
                    halt.asked.insert(tid);
                    is_done = false;
                }
            }
            if let Some(reply) = halt.reply.take_if(|_| is_done) {
                let _ = reply.send(());
            }
        }
    }
}

/// Does to a task what was decided.
fn perform(tracer: &Tracer, call: &Notification, outcome: Outcome, gifts: &[Gift]) {
    let tid = call.tid;
    if !gifts.is_empty() {
        return perform_with(tracer, call, outcome, gifts);
    }
    let done = match outcome {
        Ok(Answer::GoOn | Answer::Grow(_, Meanwhile::GoOn | Meanwhile::Again)) => tracer.resume(tid, 0),
        Ok(Answer::Value(value) | Answer::Grow(_, Meanwhile::Value(value))) => tracer.value(tid, value),
        Err(errno) => tracer.value(tid, -(errno as i64)),
        Ok(Answer::Fd { fd, close_on_exec, on_its_way: _on_its_way }) => tracer.instead(tid, |stopped| {
            let number = stopped.give(fd.as_fd(), close_on_exec)?;
            stopped.set_result(number.into());
            Ok(())
        }),
        Ok(Answer::Chdir(fd, _on_its_way)) => tracer.instead(tid, |stopped| {
            let number = stopped.give(fd.as_fd(), true)? as u64;
            let moved = stopped.call(libc::SYS_fchdir as u32, [number, 0, 0, 0, 0, 0]);
            stopped.call(libc::SYS_close as u32, [number, 0, 0, 0, 0, 0])?;
            moved?;
            stopped.set_result(0);
            Ok(())
        }),
        Ok(Answer::Exec(plan)) => tracer.instead(tid, |stopped| {
            let mut numbers = Vec::new();
            for fd in plan.descriptors() {
                numbers.push(stopped.give(fd, true)?);
            }
            plan.settle(&numbers)?;
            if !plan.run(stopped, call, &numbers)? {
                for number in numbers {
                    stopped.call(libc::SYS_close as u32, [number as u64, 0, 0, 0, 0, 0])?;
                }
            }
            Ok(())
        }),
    };
    settled(tid, done);
}

/// The same for one that is given something else first.
fn perform_with(tracer: &Tracer, call: &Notification, outcome: Outcome, gifts: &[Gift]) {
    let made = tracer.instead(call.tid, |stopped| {
        for gift in gifts {
            if let Err(errno) = gift.give(stopped) {
                tracing::debug!(tid = call.tid.as_raw(), "it goes on with the file below: {}", errno.desc());
            }
        }
        match outcome {
            Ok(Answer::Value(value) | Answer::Grow(_, Meanwhile::Value(value))) => stopped.set_result(value),
            Ok(Answer::Fd { fd, close_on_exec, on_its_way: _on_its_way }) => {
                let number = stopped.give(fd.as_fd(), close_on_exec)?;
                stopped.set_result(number.into());
            }
            // It comes again: what is decided so has not changed anything yet.
            Ok(_) => stopped.make_call_again(call.number, call.args[0]),
            Err(errno) => stopped.set_result(-(errno as i64)),
        }
        Ok(())
    });
    settled(call.tid, made);
}

fn settled(tid: Pid, done: Result<()>) {
    match done {
        // It died, which is its business.
        Ok(()) | Err(Errno::ESRCH) => {}
        Err(errno) => {
            tracing::error!(tid = tid.as_raw(), "a call cannot be answered: {}", errno.desc());
            let _ = kill(tid, Signal::SIGKILL);
        }
    }
}
