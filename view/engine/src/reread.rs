//! Files that are copied up while processes have what is below open: their descriptors are changed for new ones, of the copy.
//!
//! Who opens a file of a lower layer to read it has the host's own descriptor, and would never see what is written to the copy afterwards; on overlayfs the
//! next `read(2)` is from the copy. So before the call that copies a file up returns, whoever has it open is looked for, and gets a descriptor of the copy
//! under the same number: one for each open file description, which is shared as the old one was (`kcmp(2)`), with its position, flags and locks. Mappings stay
//! as they are, as on overlayfs.
//!
//! What it costs if nobody has the file open is a lease, which the kernel grants to whoever is alone with a file. Where none is to be had, since the file
//! belongs to somebody else, the descriptors of all processes are looked through, but no more of the time than one part in ten: what is copied meanwhile is
//! looked for all at once, a moment later.
//!
//! All that goes on in one thread ([`work`]). It has the threads of a process that has the file open stand still, so that none of them moves the position, and
//! one of them takes the new descriptor. A process whose threads all wait for an answer of the engine's, as the one that copies the file up does, is given it
//! by its listener.
//!
//! Lock order: `View::growing`, `View::stopping`; never is either of them waited for by whoever serves a call.
//!
//! # Limits
//!
//! Where somebody else traces the process, or it filters calls itself, or has a lease, its descriptor goes on showing the file below until that has an end: it
//! is looked at again from time to time. So it is with locks of `fcntl(F_SETLK)` if the process with its only thread copies the file up itself. A descriptor
//! that is on its way in a message (`SCM_RIGHTS`), or that a thread has for itself (`unshare(CLONE_FILES)`), is not found. Whoever opens the file on the host
//! in the microseconds of the lease waits until it is given back, or, with `O_NONBLOCK`, hears `EAGAIN`.

use std::cell::RefCell;
use std::collections::HashSet;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::Path;
use std::sync::mpsc;
use std::sync::{Arc, OnceLock, Weak};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::fcntl::OFlag;
use nix::libc;
use nix::unistd::{Pid, Whence, lseek};
use parking_lot::{Condvar, Mutex};
use veduta_api::{Attr, Kind, OpenFlags, Result};
use veduta_trace::Task;
use veduta_trace::raw::{self, Argument};
use veduta_trace::stop::{Attached, Stopped};

use crate::call::{Call, status_flags};
use crate::fuseplane::{key_of, key_of_fd};
use crate::grow::Standing;
use crate::node::{Node, guarded};
use crate::standin::{Key, OnItsWay};
use crate::traced::Errand;
use crate::view::View;
use crate::walk::{Limits, Walker};

/// How long processes are waited for until they stand still.
const PATIENCE: Duration = Duration::from_millis(200);
/// Within this time most calls are answered.
const ANSWER: Duration = Duration::from_millis(5);
/// How long a call waits until all have its copy.
const MOST: Duration = Duration::from_secs(1);
/// Between two looks at those that could not be given it: at first, and at most.
const SOON: Duration = Duration::from_millis(1);
const LATER: Duration = Duration::from_secs(5);
/// Looking for descriptors takes one part in so many of the time.
const SHARE: u32 = 10;
/// The thread ends when it had nothing to do for so long.
const IDLE: Duration = Duration::from_secs(10);

/// Files that a call may copy up: the node, and what is below.
#[derive(Default)]
pub(crate) struct Touched(RefCell<Vec<(Arc<Node>, OwnedFd)>>);

impl Call<'_> {
    /// A node is about to be changed, so that a file may be copied up.
    pub(crate) fn may_copy_up(&self, node: &Arc<Node>, attr: &Attr) {
        let mount = &node.mount;
        if attr.kind != Kind::File || !crate::lent::has_layers(mount) || mount.is_read_only() {
            return;
        }
        // Processes may have opened it themselves where the host is seen through the tree, until it is told to differ.
        let is_seen = mount
            .through
            .as_ref()
            .is_some_and(|through| crate::through::attr_key(attr).is_some_and(|key| !through.differs(key)));
        if !is_seen && !self.view.lent.is_lent(node) {
            return;
        }
        let below = guarded(|| {
            let file = node.tree().open(node.ino, OpenFlags::READ)?;
            let fd = file.backing().filter(|_| file.backing_is_foreign());
            fd.map(|fd| fd.try_clone_to_owned().map_err(crate::standin::errno)).transpose()
        });
        if let Ok(Some(below)) = below {
            self.touched.0.borrow_mut().push((Arc::clone(node), below));
        }
    }
}

/// A call has been served, and is to be answered.
pub(crate) fn after(call: &Call<'_>) {
    let touched = call.touched.0.take();
    if touched.is_empty() {
        return;
    }
    let jobs: Vec<Job> = touched.into_iter().filter_map(|(node, below)| job(call, node, &below)).collect();
    if !jobs.is_empty() {
        // Others are served meanwhile.
        crate::turn::stand_aside();
        call.view.rereads.submit(jobs);
    }
}

/// What is to be done for a file that a call may have copied up.
fn job(call: &Call<'_>, node: Arc<Node>, below: &OwnedFd) -> Option<Job> {
    let key = key_of_fd(below.as_fd()).ok()?;
    let is_open = match is_alone(below) {
        Ok(true) => return None,
        Ok(false) => true,
        Err(_) => false,
    };
    let is_copied = guarded(|| {
        let file = node.tree().open(node.ino, OpenFlags::READ)?;
        let is_other = |fd| key_of_fd(fd).is_ok_and(|now| now != key);
        Ok(!file.backing_is_foreign() && file.backing().is_some_and(is_other))
    });
    if !is_copied.unwrap_or(false) {
        // A layer may keep attributes without content, which is copied later.
        call.view.lent.expect(key, &node);
        return None;
    }
    Some(Job { node, key, caller: call.task.0, is_open, tries: 0, due: Instant::now(), waits: None })
}

/// Whether nobody else has a file open: a write lease is granted to whoever is alone with it. An error where that cannot be asked.
fn is_alone(fd: &OwnedFd) -> Result<bool> {
    let lease = |kind: i32| {
        let values = [fd.as_raw_fd() as u64, libc::F_SETLEASE as u64, kind as u64];
        raw::call(libc::SYS_fcntl as u32, &mut values.map(Argument::Value))
    };
    match lease(libc::F_WRLCK) {
        Ok(_) => lease(libc::F_UNLCK).map(|_| true),
        Err(Errno::EAGAIN) => Ok(false),
        Err(errno) => Err(errno),
    }
}

/// A file that was copied up.
struct Job {
    node: Arc<Node>,
    /// What is below.
    key: Key,
    /// Who has copied it up.
    caller: Pid,
    /// Somebody has it open for sure, of the view or not.
    is_open: bool,
    tries: u32,
    due: Instant,
    /// The call that waits.
    waits: Option<mpsc::Sender<()>>,
}

/// What is to be done, and who is held for it.
#[derive(Default)]
pub(crate) struct Rereads {
    view: OnceLock<Weak<View>>,
    queue: Arc<Queue>,
    /// Threads that were asked to stop.
    held: Mutex<HashSet<Pid>>,
    /// Who traces all tasks, if somebody does.
    tracer: Mutex<Option<mpsc::Sender<Errand>>>,
}

#[derive(Default)]
struct Queue {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    jobs: Vec<Job>,
    has_thread: bool,
    /// When looking for descriptors has taken no more than its share.
    rested: Option<Instant>,
}

impl Rereads {
    /// The view has begun.
    pub(crate) fn begin(&self, view: &Arc<View>) {
        let _ = self.view.set(Arc::downgrade(view));
    }

    /// Tasks are traced, and whoever does that takes these.
    pub(crate) fn trace(&self, errands: mpsc::Sender<Errand>) {
        *self.tracer.lock() = Some(errands);
    }

    /// Has the tracer do something.
    fn ask(&self, errand: Errand) -> bool {
        let is_sent = self.tracer.lock().as_ref().is_some_and(|tracer| tracer.send(errand).is_ok());
        // It waits for signals.
        is_sent && nix::sys::signal::kill(Pid::this(), nix::sys::signal::Signal::SIGCHLD).is_ok()
    }

    fn is_traced(&self) -> bool {
        self.tracer.lock().is_some()
    }

    /// Whether a thread was asked to stop here, and has not been let go yet.
    pub(crate) fn holds(&self, tid: Pid) -> bool {
        self.held.lock().contains(&tid)
    }

    /// A mount ends.
    pub(crate) fn end(&self, mount: u32) {
        let mut state = self.queue.state.lock();
        let (over, rest): (Vec<_>, _) =
            std::mem::take(&mut state.jobs).into_iter().partition(|job| job.node.mount.id == mount);
        state.jobs = rest;
        drop(state);
        // Without the lock, since that calls drivers.
        drop(over);
    }

    /// Has those looked for who have files open, and waits until they have the copies.
    fn submit(&self, jobs: Vec<Job>) {
        let mut state = self.queue.state.lock();
        if !state.has_thread {
            let (queue, view) = (Arc::clone(&self.queue), self.view.get().cloned().unwrap_or_default());
            let thread = std::thread::Builder::new().name("reread".into()).stack_size(512 << 10);
            if let Err(error) = thread.spawn(move || work(&queue, &view)) {
                tracing::warn!("who has a file open that was copied up goes on with the one below: {error}");
                return;
            }
            state.has_thread = true;
        }
        let (sender, done) = mpsc::channel();
        let mut waits = false;
        for mut job in jobs {
            match state.rested.filter(|rested| !job.is_open && *rested > job.due) {
                Some(rested) => job.due = rested,
                None => {
                    job.waits = Some(sender.clone());
                    waits = true;
                }
            }
            state.jobs.push(job);
        }
        drop((state, sender));
        self.queue.changed.notify_one();
        // It ends with the last sender.
        if waits && done.recv_timeout(MOST) == Err(mpsc::RecvTimeoutError::Timeout) {
            tracing::info!("who has a file open that was copied up may see the one below for a moment");
        }
    }
}

impl Queue {
    /// What is due, waited for. `None`: there has been nothing to do for long.
    fn take(&self) -> Option<Vec<Job>> {
        let mut state = self.state.lock();
        let since = Instant::now();
        loop {
            let now = Instant::now();
            if state.jobs.iter().any(|job| job.due <= now) {
                // Those that only wait so that looking takes no more than its share are looked for with the others.
                let is_due = |job: &Job| job.due <= now || job.tries == 0;
                let (due, rest) = std::mem::take(&mut state.jobs).into_iter().partition(is_due);
                state.jobs = rest;
                return Some(due);
            }
            if state.jobs.is_empty() && since.elapsed() >= IDLE {
                state.has_thread = false;
                return None;
            }
            let next = state.jobs.iter().map(|job| job.due).min().unwrap_or(now + IDLE);
            self.changed.wait_until(&mut state, next);
        }
    }

    /// Some could not be done, after looking for so long.
    fn give_back(&self, left: Vec<Job>, took: Duration) {
        let mut state = self.state.lock();
        let now = Instant::now();
        state.rested = Some(now + took * SHARE);
        for mut job in left {
            job.tries += 1;
            job.waits = None;
            job.due = now + (SOON * 2_u32.saturating_pow(job.tries.min(16))).min(LATER);
            state.jobs.push(job);
        }
    }
}

/// The life of the thread.
fn work(queue: &Queue, view: &Weak<View>) {
    while let Some(jobs) = queue.take() {
        let Some(view) = view.upgrade() else { return };
        let since = Instant::now();
        let left = pass(&view, jobs);
        queue.give_back(left, since.elapsed());
    }
}

/// A descriptor of what is below.
struct Holder {
    pid: Pid,
    number: i32,
    /// A copy of it.
    fd: OwnedFd,
    /// Which job it belongs to.
    job: usize,
}

/// What all get who have one open file description.
struct Description {
    /// The old one.
    old: OwnedFd,
    /// Its position when the new one was made. Bytes.
    position: i64,
    /// The new one; an error: none could be made.
    new: Result<(OwnedFd, Option<OnItsWay>)>,
}

/// Looks for all who have the files open, and gives them the copies. Gives back what is left to do.
fn pass(view: &View, mut jobs: Vec<Job>) -> Vec<Job> {
    // Who grows waits until all stand still, also those whose calls wait for us.
    let Some(growing) = view.growing.try_lock() else { return jobs };
    let _stopping = view.stopping.read_recursive();
    let call = Call::new(view, Task(Pid::this()), 0, [0; 6]);
    let walker = Walker { changes: false, ..call.walker(Limits::default()) };
    let (mut halted, mut holders, mut is_left) = (Vec::new(), Vec::new(), vec![false; jobs.len()]);
    let deadline = Instant::now() + PATIENCE;
    let all_seen = each_process(|pid| {
        if holders_in(pid, &jobs, &walker).is_empty() {
            return;
        }
        halted.push(Halted::new(view, pid, &jobs, deadline));
        // They are as they were when it ran.
        holders.extend(holders_in(pid, &jobs, &walker));
    });
    let mut descriptions: Vec<Description> = Vec::new();
    for holder in &holders {
        let known = descriptions.iter().position(|known| is_same(&known.old, &holder.fd));
        let index = match known {
            Some(index) => Ok(index),
            None => Description::new(&call, &jobs[holder.job].node, &holder.fd).map(|new| {
                descriptions.push(new);
                descriptions.len() - 1
            }),
        };
        let halted = halted.iter_mut().find(|halted| halted.pid == holder.pid);
        let done = index.and_then(|index| holder.change(view, &descriptions[index], halted));
        if let Err(errno) = done {
            tracing::debug!(
                pid = holder.pid.as_raw(),
                number = holder.number,
                "it goes on with the file below: {}",
                errno.desc()
            );
            is_left[holder.job] = true;
        }
    }
    descriptions.iter().for_each(Description::settle);
    let late: Vec<Attached> = halted.into_iter().flat_map(|halted| halted.let_go(view)).collect();
    let mut left = Vec::new();
    for (mut job, is_left) in jobs.drain(..).zip(is_left) {
        drop(job.waits.take());
        if is_left || !all_seen {
            left.push(job);
        }
    }
    drop(growing);
    // These were about to be answered; whoever answers them has them made again if he cannot attach them.
    for attached in late {
        let tid = attached.tid();
        while !attached.is_ready() {
            std::thread::sleep(Duration::from_micros(100));
        }
        drop(attached.wait());
        view.rereads.held.lock().remove(&tid);
    }
    left
}

/// Does something with each process of the view, also with those that are made meanwhile. `false` if they are made faster than that.
fn each_process(mut work: impl FnMut(Pid)) -> bool {
    const ROUNDS: usize = 100;
    let (mut seen, mut quiet) = (HashSet::new(), 0);
    for _ in 0..ROUNDS {
        let new: Vec<_> = crate::grow::processes().into_iter().filter(|pid| seen.insert(*pid)).collect();
        quiet = if new.is_empty() { quiet + 1 } else { 0 };
        if quiet == 2 {
            return true;
        }
        new.into_iter().for_each(&mut work);
    }
    false
}

/// The descriptors of a process that show what is below.
fn holders_in(pid: Pid, jobs: &[Job], walker: &Walker<'_>) -> Vec<Holder> {
    let open = std::fs::read_dir(format!("/proc/{pid}/fd")).into_iter().flatten().flatten();
    let holder = |entry: std::fs::DirEntry| {
        let key = key_of(&entry.path()).ok()?;
        if !jobs.iter().any(|job| job.key == key) {
            return None;
        }
        let number = entry.file_name().to_str()?.parse().ok()?;
        let fd = crate::serve::descriptor(Task(pid), number).ok()?;
        let flags = status_flags(&fd).ok()?;
        if flags.bits() & libc::O_ACCMODE != libc::O_RDONLY || flags.contains(OFlag::O_PATH) {
            return None;
        }
        let node = walker.lent(&fd).ok()??;
        let is_it =
            |job: &Job| job.key == key && crate::lent::identity(&job.node) == crate::lent::identity(&node);
        let job = jobs.iter().position(is_it)?;
        Some(Holder { pid, number, fd, job })
    };
    open.filter_map(holder).collect()
}

/// Whether two descriptors are of one open file description: `kcmp(2)`.
fn is_same(one: &OwnedFd, other: &OwnedFd) -> bool {
    const FILE: u64 = 0;
    let own = Pid::this().as_raw() as u64;
    let values = [own, own, FILE, one.as_raw_fd() as u64, other.as_raw_fd() as u64];
    raw::call(libc::SYS_kcmp as u32, &mut values.map(Argument::Value)) == Ok(0)
}

impl Description {
    /// A new one for an old one. An error if none can have what the old one has.
    fn new(call: &Call<'_>, node: &Arc<Node>, old: &OwnedFd) -> Result<Self> {
        let old = old.try_clone().map_err(crate::standin::errno)?;
        let position = lseek(&old, 0, Whence::SeekCur)?;
        let make = || {
            let new = crate::open::once_more(call, node, status_flags(&old)?)?;
            lseek(&new.0, position, Whence::SeekSet)?;
            let locks = locks_of(Path::new("/proc/self"), old.as_raw_fd())?;
            locks.iter().try_for_each(|lock| lock.take(&new.0))?;
            Ok(new)
        };
        let new = make();
        Ok(Self { old, position, new })
    }

    /// Somebody may have read on while it was changed who did not stand still.
    fn settle(&self) {
        let (Ok((new, _)), Ok(now)) = (&self.new, lseek(&self.old, 0, Whence::SeekCur)) else { return };
        if now != self.position {
            let _ = lseek(new, now - self.position, Whence::SeekCur);
        }
    }
}

/// A lock that a description has.
struct Lock {
    kind: LockKind,
    is_exclusive: bool,
    start: i64,
    /// 0: to the end.
    len: i64,
}

#[derive(PartialEq)]
enum LockKind {
    /// `flock(2)`
    Whole,
    /// `F_OFD_SETLK`
    Open,
    /// `F_SETLK`: the process's, and not the description's.
    Process,
}

/// The locks that a process has by a descriptor, its own and those of the description: `proc_pid_fdinfo(5)`.
fn locks_of(process: &Path, number: i32) -> Result<Vec<Lock>> {
    let info =
        std::fs::read_to_string(process.join(format!("fdinfo/{number}"))).map_err(crate::standin::errno)?;
    let locks = info.lines().filter_map(|line| line.strip_prefix("lock:"));
    locks.map(|line| Lock::parse(line).ok_or(Errno::EOPNOTSUPP)).collect()
}

impl Lock {
    /// `1: OFDLCK ADVISORY READ -1 08:01:1234 0 EOF`
    fn parse(line: &str) -> Option<Self> {
        let words: Vec<&str> = line.split_ascii_whitespace().collect();
        let [_, kind, _, mode, _, _, start, end] = words.as_slice() else { return None };
        let kind = match *kind {
            "FLOCK" => LockKind::Whole,
            "OFDLCK" => LockKind::Open,
            "POSIX" => LockKind::Process,
            _ => return None,
        };
        let start = start.parse().ok()?;
        let len =
            if *end == "EOF" { 0 } else { end.parse::<i64>().ok()?.checked_sub(start)?.checked_add(1)? };
        Some(Self { kind, is_exclusive: *mode == "WRITE", start, len })
    }

    /// Takes it once more, of another file, if it belongs to the description.
    fn take(&self, fd: &OwnedFd) -> Result<()> {
        let number = fd.as_raw_fd() as u64;
        match self.kind {
            LockKind::Whole => {
                let how = if self.is_exclusive { libc::LOCK_EX } else { libc::LOCK_SH };
                let values = [number, (how | libc::LOCK_NB) as u64];
                raw::call(libc::SYS_flock as u32, &mut values.map(Argument::Value)).map(drop)
            }
            LockKind::Open => {
                let lock = self.to_bytes();
                let operation = Argument::Value(libc::F_OFD_SETLK as u64);
                let mut arguments = [Argument::Value(number), operation, Argument::Input(&lock)];
                raw::call(libc::SYS_fcntl as u32, &mut arguments).map(drop)
            }
            LockKind::Process => Ok(()),
        }
    }

    /// Has a process take it once more.
    fn take_for(&self, stopped: &mut Stopped, number: i32) -> Result<()> {
        let lock = self.to_bytes();
        let at = stopped.scratch(lock.len())?;
        Task(stopped.tid()).write(at, &lock)?;
        let args = [number as u64, libc::F_SETLK as u64, at, 0, 0, 0];
        stopped.call(libc::SYS_fcntl as u32, args).map(drop)
    }

    /// `struct flock`: type, whence, start, length, process.
    fn to_bytes(&self) -> [u8; 32] {
        let kind = if self.is_exclusive { libc::F_WRLCK } else { libc::F_RDLCK };
        let mut lock = [0; 32];
        lock[..2].copy_from_slice(&(kind as i16).to_ne_bytes());
        lock[8..16].copy_from_slice(&self.start.to_ne_bytes());
        lock[16..24].copy_from_slice(&self.len.to_ne_bytes());
        lock
    }
}

/// A descriptor that a process is given in the place of another.
pub(crate) struct Gift {
    fd: OwnedFd,
    number: i32,
    close_on_exec: bool,
    /// Those that the process had by the other one.
    locks: Vec<Lock>,
}

impl Gift {
    /// Has a thread of the process take it.
    pub(crate) fn give(&self, stopped: &mut Stopped) -> Result<()> {
        stopped.replace(self.fd.as_fd(), self.number, self.close_on_exec)?;
        // To close the old one, and the number under which this came, has ended the locks that the process had.
        self.locks.iter().try_for_each(|lock| lock.take_for(stopped, self.number))
    }
}

impl Holder {
    /// Puts the new description in the place of the old one.
    fn change(&self, view: &View, description: &Description, halted: Option<&mut Halted>) -> Result<()> {
        let new = description.new.as_ref().map_err(|errno| *errno)?.0.as_fd();
        // Another process with the same descriptors may have had it done.
        let now = crate::serve::descriptor(Task(self.pid), self.number);
        if !now.is_ok_and(|now| is_same(&now, &self.fd)) {
            return Ok(());
        }
        let process = format!("/proc/{}", self.pid);
        let mut locks = locks_of(Path::new(&process), self.number)?;
        locks.retain(|lock| lock.kind == LockKind::Process);
        let info = std::fs::read_to_string(format!("{process}/fdinfo/{}", self.number));
        let info = info.map_err(crate::standin::errno)?;
        let flags = info.lines().find_map(|line| line.strip_prefix("flags:")).ok_or(Errno::ESRCH)?;
        let flags = i32::from_str_radix(flags.trim(), 8).map_err(|_| Errno::EIO)?;
        let close_on_exec = flags & libc::O_CLOEXEC != 0;
        let gift = Gift {
            fd: new.try_clone_to_owned().map_err(crate::standin::errno)?,
            number: self.number,
            close_on_exec,
            locks,
        };
        if view.rereads.is_traced() {
            let (sender, done) = mpsc::channel();
            view.rereads.ask(Errand::Give(self.pid, gift, sender));
            return done.recv_timeout(PATIENCE).unwrap_or(Err(Errno::EBUSY));
        }
        let stands = halted.and_then(|halted| halted.stopped.first_mut());
        match stands.filter(|_| !filters_calls(view, self.pid)) {
            Some(stopped) => gift.give(stopped),
            None if gift.locks.is_empty() => self.send(view, new, close_on_exec),
            // Only the process itself can take them again.
            None => Err(Errno::EOPNOTSUPP),
        }
    }

    /// Gives it to a thread whose call waits for an answer.
    fn send(&self, view: &View, new: std::os::fd::BorrowedFd<'_>, close_on_exec: bool) -> Result<()> {
        let sources = view.sources.lock().clone();
        let calls = Task(self.pid).threads().into_iter().filter_map(crate::watch::served);
        for id in calls {
            for source in &sources {
                if source.with(|listener| listener.replace(id, new, self.number, close_on_exec)).is_ok() {
                    return Ok(());
                }
            }
        }
        Err(Errno::EBUSY)
    }
}

/// Whether a process has filters besides the view's, which may be against the calls that it would have to make.
fn filters_calls(view: &View, pid: Pid) -> bool {
    let own = Standing::of("self").unwrap_or_default().filters;
    let ours = own + view.filters.load(std::sync::atomic::Ordering::Relaxed);
    Standing::of(&pid.to_string()).is_none_or(|standing| standing.filters > ours)
}

/// A process whose threads stand still, as far as they can.
struct Halted {
    pid: Pid,
    stopped: Vec<Stopped>,
    /// Those that were asked to, and will.
    late: Vec<Attached>,
}

impl Halted {
    fn new(view: &View, pid: Pid, jobs: &[Job], deadline: Instant) -> Self {
        let mut this = Self { pid, stopped: Vec::new(), late: Vec::new() };
        if view.rereads.is_traced() {
            let (sender, done) = mpsc::channel();
            view.rereads.ask(Errand::Halt(pid, sender));
            let _ = done.recv_timeout(deadline.saturating_duration_since(Instant::now()));
            return this;
        }
        let (mut seen, since) = (HashSet::new(), Instant::now());
        loop {
            let (mut is_new, mut is_busy) = (false, false);
            for tid in Task(pid).threads() {
                if seen.contains(&tid) {
                    continue;
                }
                if crate::watch::served(tid).is_some() {
                    // Others than those that wait for us are answered soon, and would read on.
                    let waits = jobs.iter().any(|job| job.caller == tid && job.waits.is_some());
                    is_busy |= !waits && since.elapsed() < ANSWER;
                    continue;
                }
                // It is about to be served, or waits for a disk, or for a child that has its memory: it would not stop before the end of that.
                if Task(tid).state() == Some('D') {
                    is_busy |= !veduta_trace::stop::waits_for_child(tid);
                    continue;
                }
                seen.insert(tid);
                view.rereads.held.lock().insert(tid);
                match Attached::one_of_all(tid) {
                    Ok(attached) => {
                        this.late.push(attached);
                        is_new = true;
                    }
                    Err(_) => drop(view.rereads.held.lock().remove(&tid)),
                }
            }
            let (ready, late): (Vec<_>, Vec<_>) =
                std::mem::take(&mut this.late).into_iter().partition(Attached::is_ready);
            this.late = late;
            for attached in ready {
                let tid = attached.tid();
                match attached.wait() {
                    Ok(stopped) => this.stopped.push(stopped),
                    Err(_) => drop(view.rereads.held.lock().remove(&tid)),
                }
            }
            let is_done = this.late.is_empty() && !is_new && !is_busy;
            if is_done || Instant::now() >= deadline || Task(pid).state().is_none_or(|state| state == 'Z') {
                return this;
            }
            std::thread::sleep(Duration::from_micros(50));
        }
    }

    /// Lets them go on. Gives those that do not stand yet.
    fn let_go(self, view: &View) -> Vec<Attached> {
        if view.rereads.is_traced() {
            view.rereads.ask(Errand::LetGo(self.pid));
        }
        for stopped in self.stopped {
            let tid = stopped.tid();
            drop(stopped);
            view.rereads.held.lock().remove(&tid);
        }
        self.late
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn locks_are_read_as_the_kernel_lists_them() {
        let read = |line: &str| {
            let lock = Lock::parse(line)?;
            let kind = match lock.kind {
                LockKind::Whole => "flock",
                LockKind::Open => "open",
                LockKind::Process => "process",
            };
            Some((kind, lock.is_exclusive, lock.start, lock.len))
        };
        assert_eq!(read("\t1: FLOCK  ADVISORY  WRITE 812 fd:01:77 0 EOF"), Some(("flock", true, 0, 0)));
        assert_eq!(read("\t2: OFDLCK ADVISORY  READ -1 fd:01:77 10 19"), Some(("open", false, 10, 10)));
        assert_eq!(read("\t3: POSIX  ADVISORY  READ 812 fd:01:77 0 0"), Some(("process", false, 0, 1)));
        assert_eq!(read("\t4: nonsense"), None);
    }
}
