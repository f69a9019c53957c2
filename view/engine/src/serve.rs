//! The threads that serve calls.
//!
//! Each listener has threads, of which one waits on it (`turn.rs`). The kernel wakes it on the processor of the task that calls,
//! which makes a call cheap; before it does what takes long, another waits in its place. So a slow driver holds up only
//! those who ask it.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::os::fd::{AsFd, OwnedFd, RawFd};
use std::os::unix::thread::JoinHandleExt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::libc;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::SigSet;
use nix::unistd::Pid;
use parking_lot::{Mutex, RwLock};
use veduta_api::{Interrupt, Result};
use veduta_trace::spawn::{Command, spawn};
use veduta_trace::stop::{Attached, RESTART};
use veduta_trace::{Given, Listener, Notification, Refusal, Task, raw};

use crate::call::{Answer, Call, Meanwhile, Outcome};
use crate::calls::{self, Family, Level};
use crate::node::caught;
use crate::trap::Trap;
use crate::turn::{Pace, Server, Turns, stand_aside};
use crate::view::View;
use crate::watch;

/// Threads that serve one listener at most; more calls than that, all waiting for something, wait in the kernel.
const MOST_THREADS: usize = 128;

/// Calls that come to listeners: at first to this one.
#[derive(Default)]
pub(crate) struct Notified(Option<Listener>);

impl Trap for Notified {
    fn start(&mut self, view: &Arc<View>, command: &Command) -> Result<Pid, Refusal> {
        let program = crate::grow::filter(view);
        let (child, listener) = spawn(command, &program)?;
        view.filters.store(1, Ordering::Relaxed);
        self.0 = Some(listener);
        Ok(child)
    }

    fn serve(&mut self, view: &Arc<View>, child: Pid, signals: &SigSet) -> Result<i32> {
        Source::start(view, self.0.take().ok_or(Errno::EINVAL)?);
        crate::fast_watch::start(view);
        Ok(crate::run::wait_for(view, child, signals))
    }
}

/// A listener and its threads.
pub(crate) struct Source {
    /// The listener; `None` once it is retired. Nobody holds it longer than a call of the kernel lasts.
    listener: RwLock<Option<Arc<Listener>>>,
    pub(crate) turns: Turns,
    threads: Mutex<Vec<std::thread::JoinHandle<()>>>,
    retired: AtomicBool,
}

impl Source {
    /// Starts to serve a listener.
    pub(crate) fn start(view: &Arc<View>, listener: Listener) {
        let source = Arc::new(Self {
            listener: RwLock::new(Some(Arc::new(listener))),
            turns: Turns::default(),
            threads: Mutex::default(),
            retired: AtomicBool::new(false),
        });
        view.sources.lock().push(Arc::clone(&source));
        source.add_thread(view);
    }

    /// Does something with the listener; `ENODEV` once there is none.
    pub(crate) fn with<T>(&self, work: impl FnOnce(&Listener) -> Result<T>) -> Result<T> {
        let listener = self.listener.read().clone().ok_or(Errno::ENODEV)?;
        work(&listener)
    }

    /// Starts a thread that has a turn.
    pub(crate) fn add_thread(self: &Arc<Self>, view: &Arc<View>) {
        let mut threads = self.threads.lock();
        if threads.len() >= MOST_THREADS {
            return;
        }
        let (source, view) = (Arc::clone(self), Arc::clone(view));
        let spawned = std::thread::Builder::new()
            .name("serve".into())
            .stack_size(512 << 10)
            .spawn(move || source.serve(&view));
        match spawned {
            Ok(thread) => threads.push(thread),
            Err(error) => tracing::error!("no thread can be started: {error}"),
        }
    }

    /// Ends the threads, so that the last holder of the listener closes it. Calls that wait then fail with `ENOSYS`.
    pub(crate) fn retire(&self) {
        self.retired.store(true, Ordering::Release);
        *self.listener.write() = None;
        self.turns.end();
        let threads = std::mem::take(&mut *self.threads.lock());
        let deadline = Instant::now() + Duration::from_secs(2);
        let me = std::thread::current().id();
        for thread in threads {
            while thread.thread().id() != me && !thread.is_finished() && Instant::now() < deadline {
                // It may be about to wait when the first signal comes.
                let _ = nix::sys::pthread::pthread_kill(thread.as_pthread_t(), nix::sys::signal::SIGUSR2);
                std::thread::sleep(Duration::from_micros(200));
            }
        }
    }

    fn serve(self: Arc<Self>, view: &Arc<View>) {
        // Threads have their own umask, working directory and file identity, for calls made in place of others.
        if let Err(errno) = raw::unshare_fs() {
            tracing::warn!("threads share their umask: {}", errno.desc());
        }
        // What it does takes microseconds, and whoever it answers is not to push it aside before it waits again.
        let _ = raw::take_short_turns();
        self.turns.begin();
        let server = Server::start(&self, view);
        let mut pace = Pace::default();
        while !self.retired.load(Ordering::Acquire) && server.take_turn() {
            let start = Instant::now();
            match self.with(Listener::receive) {
                Ok(notification) => {
                    pace.came_after(start.elapsed(), &server);
                    self.answer(view, &notification);
                    pace.answered(&server);
                }
                Err(Errno::ENOENT) if self.is_deserted() => break,
                Err(Errno::ENOENT | Errno::EINTR) => {}
                Err(Errno::ENODEV) => break,
                Err(errno) => {
                    tracing::error!("calls can no longer be received: {}", errno.desc());
                    break;
                }
            }
        }
        self.turns.end();
        if !self.retired.load(Ordering::Acquire) {
            view.sources.lock().retain(|source| !Arc::ptr_eq(source, &self));
        }
    }

    /// Whether no task is left that could call.
    fn is_deserted(&self) -> bool {
        let hung_up = self.with(|listener| {
            let mut fds = [PollFd::new(listener.as_fd(), PollFlags::POLLIN)];
            poll(&mut fds, PollTimeout::ZERO)?;
            Ok(fds[0].revents().is_some_and(|events| events.contains(PollFlags::POLLHUP)))
        });
        hung_up.unwrap_or(true)
    }

    /// Serves one call.
    fn answer(&self, view: &Arc<View>, notification: &Notification) {
        let task = Task(notification.tid);
        if notification.number == calls::CONTROL && notification.args[0] == crate::fast::GIVE {
            let given = view
                .fast
                .with_file(|fd| self.with(|listener| listener.answer_with(notification.id, fd, true)));
            if matches!(given, Ok(Given::Answered)) {
                return;
            }
        }
        if view.fast.first_call(view, self, notification) && !view.tracing.load(Ordering::Relaxed) {
            let _ = self.with(|listener| listener.go_on(notification.id));
            return;
        }
        let mut served = view.kept.begin(notification);
        let mut outcome = view.kept.take(notification).unwrap_or_else(|| decide(view, notification));
        if matches!(outcome, Ok(Answer::Chdir(..) | Answer::Exec(_) | Answer::Grow(..))) {
            // The task is waited for, and may make its call again before that has an end.
            stand_aside();
            served.take();
        }
        let id = notification.id;
        // Who opens a pipe is not to find it open still after the task has closed it: ours goes before the task does.
        if let Ok(Answer::Fd { fd, close_on_exec, .. }) = &outcome {
            let is_pipe =
                nix::sys::stat::fstat(fd).is_ok_and(|stat| stat.st_mode & libc::S_IFMT == libc::S_IFIFO);
            if is_pipe && !view.must_grow() {
                if let Ok(number) = self.with(|listener| listener.install(id, fd.as_fd(), *close_on_exec)) {
                    outcome = Ok(Answer::Value(number.into()));
                }
            }
        }
        // A descriptor that the task got without hearing of it.
        let has = Cell::new(None);
        let sent = match &outcome {
            Ok(Answer::GoOn) => self.with(|listener| listener.go_on(id)),
            Ok(Answer::Value(value)) => self.with(|listener| listener.value(id, *value)),
            Ok(Answer::Fd { fd, close_on_exec, .. }) => {
                let give =
                    |_| match self.with(|listener| listener.answer_with(id, fd.as_fd(), *close_on_exec))? {
                        Given::Answered => Ok(()),
                        Given::Unanswered(number) => {
                            has.set(Some(number));
                            Err(Errno::ENOENT)
                        }
                    };
                if view.must_grow() {
                    stand_aside();
                    crate::grow::to(view, Level::Files, task.0, give)
                } else {
                    give(false)
                }
            }
            Ok(Answer::Chdir(fd, _)) => self.chdir(view, notification, fd),
            Ok(Answer::Exec(plan)) => self.exec(view, notification, plan),
            Ok(Answer::Grow(level, meanwhile)) => {
                crate::grow::to(view, *level, task.0, |stops| match *meanwhile {
                    // The kernel makes a call again only for who is about to stop.
                    Meanwhile::Again if stops => self.fail(id, RESTART),
                    Meanwhile::GoOn | Meanwhile::Again => self.with(|listener| listener.go_on(id)),
                    Meanwhile::Value(value) => {
                        let told = self.with(|listener| listener.value(id, value));
                        if told == Err(Errno::ENOENT) {
                            view.kept.keep(notification, Ok(Answer::Value(value)));
                        }
                        told
                    }
                })
            }
            Err(errno) => self.fail(id, *errno as i32),
        };
        match sent {
            // The task died, which is its business.
            Ok(()) | Err(Errno::ESRCH) => {}
            // Or, before Linux 5.19, a signal came, and the call comes again.
            Err(Errno::ENOENT) => {
                if task.state().is_some_and(|state| !matches!(state, 'Z' | 'X')) {
                    let number = |number: RawFd| Ok(Answer::Value(number.into()));
                    view.kept.keep(notification, has.get().map_or(outcome, number));
                }
            }
            Err(errno) => {
                tracing::debug!(tid = task.0.as_raw(), "a call cannot be answered: {}", errno.desc());
                let _ = self.fail(id, errno as i32);
            }
        }
    }

    /// Has a task that was asked to stop make its call again. Before Linux 5.19 the stop itself does.
    fn restart(&self, id: u64) -> Result<()> {
        match self.fail(id, RESTART) {
            Err(Errno::ENOENT) => Ok(()),
            done => done,
        }
    }

    fn fail(&self, id: u64, errno: i32) -> Result<()> {
        self.with(|listener| listener.error(id, errno))
    }

    /// Moves a task into a directory that it was given for the purpose.
    fn chdir(&self, view: &View, notification: &Notification, fd: &OwnedFd) -> Result<()> {
        let number = self.with(|listener| listener.install(notification.id, fd.as_fd(), true))?;
        let _stopping = view.stopping.read_recursive();
        let Some(attached) = attach(view, notification.tid)? else {
            return self.fail(notification.id, RESTART);
        };
        self.restart(notification.id)?;
        let mut stopped = attached.wait()?;
        let moved = if stopped.stands_at(notification.number) {
            Some(stopped.call(libc::SYS_fchdir as u32, [number as u64, 0, 0, 0, 0, 0]))
        } else {
            // A signal came first, and the call will come again.
            None
        };
        stopped.call(libc::SYS_close as u32, [number as u64, 0, 0, 0, 0, 0])?;
        if let Some(moved) = moved {
            stopped.set_result(moved.map_or_else(|errno| -(errno as i64), |_| 0));
        }
        Ok(())
    }

    fn exec(&self, view: &Arc<View>, notification: &Notification, plan: &crate::exec::Plan) -> Result<()> {
        // What a debugger traces cannot be attached too; and a growing view waits for the debugger, which waits for this call.
        let is_traced = crate::grow::is_traced_by_others(notification.tid);
        if is_traced && plan.is_the_hosts(notification.tid) {
            return self.with(|listener| listener.go_on(notification.id));
        }
        let mut numbers = Vec::new();
        for fd in plan.descriptors() {
            numbers.push(self.with(|listener| listener.install(notification.id, fd, true))?);
        }
        plan.settle(&numbers)?;
        if is_traced {
            let changed = plan.put_in_place(notification, &numbers)?;
            stand_aside();
            let gone_on = self.with(|listener| listener.go_on(notification.id));
            changed.wait();
            return gone_on;
        }
        let _stopping = view.stopping.read_recursive();
        let Some(attached) = attach(view, notification.tid)? else {
            return self.fail(notification.id, RESTART);
        };
        self.restart(notification.id)?;
        let mut stopped = attached.wait()?;
        if stopped.stands_at(notification.number) {
            view.passing.lock().push(notification.tid);
            let result = plan.run(&mut stopped, notification, &numbers);
            view.passing.lock().retain(|tid| *tid != notification.tid);
            match result {
                Ok(true) => return Ok(()),
                Ok(false) | Err(Errno::ESRCH) => {}
                Err(errno) => stopped.set_result(-(errno as i64)),
            }
        }
        for number in numbers {
            stopped.call(libc::SYS_close as u32, [number as u64, 0, 0, 0, 0, 0])?;
        }
        Ok(())
    }
}

/// Attaches a task that waits for an answer. Another thread of ours may still be letting it go. `None`: one waits until it stops, which will be right
/// behind the call; that is to be made again.
fn attach(view: &View, tid: Pid) -> Result<Option<Attached>> {
    let mut tries = 0;
    loop {
        match Attached::new(tid) {
            Err(Errno::EPERM) if view.rereads.holds(tid) => return Ok(None),
            Err(Errno::EPERM) if tries < 500 && crate::grow::is_traced_by_us(tid) => {
                tries += 1;
                std::thread::sleep(Duration::from_millis(2));
            }
            attached => return attached.map(Some),
        }
    }
}

/// What becomes of a call, whoever caught it.
pub(crate) fn decide(view: &View, notification: &Notification) -> Outcome {
    let task = Task(notification.tid);
    let call = Call::new(view, task, notification.number, notification.args);
    let interrupt = Interrupt::new();
    let _scope = interrupt.enter();
    let name = calls::by_number(call.number).map_or("", |row| row.name);
    let outcome = watch::over((task, notification.id), name, &interrupt, || {
        let outcome = relieved(&call);
        crate::reread::after(&call);
        outcome
    });
    if view.tracing.load(Ordering::Relaxed) {
        report(view, &call, &outcome);
    }
    outcome
}

/// Serves a call; once more if the engine had no descriptors left for it, when those that nobody needs are given back. If that is of no help,
/// it is not the caller's limit that was reached: the kernel says `EMFILE` of that itself, when the descriptor is handed over. And once more
/// if a tree had no room, when it gets back that of removed files which were closed since: nobody tells when that is. A call that found
/// no room has done nothing.
fn relieved(call: &Call<'_>) -> Outcome {
    match caught(|| dispatch(call)) {
        Err(Errno::EMFILE) => {
            call.view.stand_ins.relieve();
            caught(|| dispatch(call)).map_err(|errno| match errno {
                Errno::EMFILE => Errno::ENFILE,
                other => other,
            })
        }
        Err(Errno::ENOSPC | Errno::EDQUOT) if call.view.stand_ins.collect_unlinked() => {
            caught(|| dispatch(call))
        }
        outcome => outcome,
    }
}

/// Who serves which call.
fn dispatch(call: &Call<'_>) -> Outcome {
    if call.number == calls::CONTROL
        && matches!(call.args[0], crate::fast::GIVE | crate::fast::UNDO | crate::fast::SETTLE)
    {
        return call.view.fast.control(call.task, &call.args);
    }
    if call.number == calls::CONTROL {
        stand_aside();
        return crate::control::serve(call);
    }
    let Some(row) = calls::by_number(call.number) else { return Err(Errno::ENOSYS) };
    match row.family {
        Family::Mount => {
            stand_aside();
            crate::mounting::serve(call, row.name)
        }
        Family::Exec if call.view.level() == Level::Idle => crate::grow::before_exec(call, row.name),
        Family::Exec => {
            let outcome = crate::exec::serve(call, row.name)?;
            crate::who::runs(call)?;
            Ok(outcome)
        }
        Family::Path => crate::files::serve(call, row.name),
        Family::File => crate::data::serve(call, row.name),
        Family::Identity | Family::Rights => crate::who::serve(call, row.name),
        Family::Task if crate::who::is_ours(call) && row.name == "prctl" => crate::who::serve(call, row.name),
        Family::Task if row.name.contains("rlimit") && is_core(call, row.name) => {
            crate::apart::core_limit(call, row.name)
        }
        Family::Task if row.name.contains("rlimit") => crate::states::limits(call, row.name),
        // What is traced by somebody else cannot be given a larger filter later, and as long as we trace it nobody else can.
        Family::Task if row.name == "ptrace" && call.view.level() < Level::Files => {
            Ok(Answer::Grow(Level::Files, Meanwhile::Again))
        }
        Family::Task if row.name == "ptrace" => {
            // Until all that were attached for it have been let go.
            drop(call.view.growing.lock());
            call.view.fast.is_traced(call);
            Ok(Answer::GoOn)
        }
        // prctl(PR_SET_DUMPABLE): a task that cannot be looked into cannot be served. Said to have been done, which is not
        // the whole truth, but no other user can look into it either.
        Family::Task if row.name == "prctl" && call.args[0] == libc::PR_SET_DUMPABLE as u64 => {
            Ok(if call.args[1] == 0 { Answer::Value(0) } else { Answer::GoOn })
        }
        // Nor can one whose own filter may be against it, which would end it.
        Family::Task if filters_calls(call, row.name) && call.view.may_emulate() => {
            call.view.fast.filters(call.task);
            Ok(Answer::Grow(Level::Files, Meanwhile::Again))
        }
        Family::Task => {
            call.view.fast.filters(call.task);
            Ok(Answer::GoOn)
        }
        Family::Passed | Family::Refused => Ok(Answer::GoOn),
    }
}

fn filters_calls(call: &Call<'_>, name: &str) -> bool {
    const PR_SET_SECCOMP: u64 = 22;
    name == "seccomp" || (name == "prctl" && call.args[0] == PR_SET_SECCOMP)
}

/// Whether a call is about the limit of core files.
fn is_core(call: &Call<'_>, name: &str) -> bool {
    call.args[usize::from(name == "prlimit64")] as u32 == crate::apart::CORE
}

fn report(view: &View, call: &Call<'_>, outcome: &Outcome) {
    let Some(row) = calls::by_number(call.number) else { return };
    let families = view.trace.lock().clone().unwrap_or_default();
    let family = format!("{:?}", row.family).to_lowercase();
    if !families.split(',').any(|wanted| wanted == "all" || wanted == family || wanted == row.name) {
        return;
    }
    let path = crate::files::path_argument(row.name)
        .and_then(|index| call.task.read_path(call.args[index]).ok())
        .map(|path| format!(" {:?}", String::from_utf8_lossy(&path)))
        .unwrap_or_default();
    let decision = match outcome {
        Ok(Answer::GoOn) => "host".to_string(),
        Ok(Answer::Value(value)) => format!("= {value}"),
        Ok(Answer::Fd { .. }) => "= descriptor".into(),
        Ok(Answer::Chdir(..)) => "= into a virtual directory".into(),
        Ok(Answer::Exec(_)) => "= a virtual program".into(),
        Ok(Answer::Grow(_, Meanwhile::GoOn | Meanwhile::Again)) => {
            "host; from now on all that concerns mounts is caught".into()
        }
        Ok(Answer::Grow(_, Meanwhile::Value(value))) => {
            format!("= {value}; from now on all that concerns mounts is caught")
        }
        Err(errno) => format!("= -1 {errno:?}"),
    };
    // One write, so that lines of several threads do not mix.
    let line = format!("[{}] {}{path} {decision}\n", call.task.0, row.name);
    let _ = std::io::Write::write_all(&mut std::io::stderr(), line.as_bytes());
}

thread_local! {
    /// Handles on tasks that called lately.
    static HANDLES: RefCell<HashMap<Pid, OwnedFd>> = RefCell::default();
}

/// Handles that a thread keeps: few of the descriptors that the engine may have.
fn most_handles() -> usize {
    raw::descriptor_limit().map_or(1, |limit| (limit.most / 256).clamp(1, 16) as usize)
}

/// A copy of a task's descriptor.
pub(crate) fn descriptor(task: Task, number: i32) -> Result<OwnedFd> {
    HANDLES.with_borrow_mut(|handles| {
        if let Some(handle) = handles.get(&task.0) {
            match raw::pidfd_get(handle.as_fd(), number) {
                // The number belongs to another task now.
                Err(Errno::ESRCH) => {}
                done => return done,
            }
        }
        if handles.len() >= most_handles() {
            handles.clear();
        }
        let handle = task.handle()?;
        let fd = raw::pidfd_get(handle.as_fd(), number);
        handles.insert(task.0, handle);
        fd
    })
}
