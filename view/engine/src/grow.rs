//! Growth: a view that catches more than before.
//!
//! A filter cannot be changed, only added to, and a task has at most one listener. But a listener that is closed makes room
//! for another. So all processes of the view are stopped, the old listener is closed, each gets a new filter with a
//! listener of its own (which its descendants will share), and all go on. Where calls come by a tracer, it does the same
//! without listeners: `veduta_trace::Tracer::grow`.

use std::collections::HashSet;
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::sync::Arc;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::unistd::Pid;
use veduta_api::Result;
use veduta_trace::stop::{Attached, Stopped};
use veduta_trace::{Listener, Task};

use crate::call::{Answer, Call, Meanwhile, Outcome};
use crate::calls::{self, Level, Who};
use crate::serve::Source;
use crate::view::View;

/// Programs that mount, beside those of `proc::MOUNTERS`: before any of them runs, the view must catch paths, so that it
/// sees what it will mount on.
const OUR_MOUNTERS: &[&[u8]] = &[b"veduta", b"vumount", b"vuumount", b"viewmount", b"viewumount", b"findmnt"];

/// Whether a program of this name may be one that mounts.
pub(crate) fn is_mounter(program: &[u8]) -> bool {
    OUR_MOUNTERS.contains(&program) || crate::proc::MOUNTERS.contains(&program)
}

/// `execve` in an idle view.
pub(crate) fn before_exec(call: &Call<'_>, name: &str) -> Outcome {
    let address = call.args[usize::from(name == "execveat")];
    let Ok(path) = call.task.read_path(address) else { return Ok(Answer::GoOn) };
    let program = path.rsplit(|byte| *byte == b'/').next().unwrap_or_default();
    if !path.is_empty() {
        let directory = std::path::PathBuf::from(format!("/proc/{}/cwd", call.task.0));
        crate::exec::tell_of_set_id(call, &directory.join(OsStr::from_bytes(&path)));
    }
    // Not for names along PATH that do not exist.
    let exists = || std::fs::metadata(std::path::Path::new(&*String::from_utf8_lossy(&path))).is_ok();
    let mounts = is_mounter(program);
    if !mounts || (path.starts_with(b"/") && !exists()) {
        return Ok(Answer::GoOn);
    }
    Ok(Answer::Grow(Level::Mounted, Meanwhile::GoOn))
}

/// Has the view catch all of a level. The call of `tid` is answered by `give` in the middle; `give` is told whether the task
/// is about to stop.
///
/// Two may ask for it at one time, and the first waits until the other's process stands still, which it does only when its
/// call has been answered. So the second does not wait for the first one's end, but until the first has asked all
/// processes to stop: then it answers, and its process gets the larger filter before it can make another call.
pub(crate) fn to(view: &Arc<View>, level: Level, tid: Pid, give: impl Fn(bool) -> Result<()>) -> Result<()> {
    let growing = loop {
        if let Some(guard) = view.growing.try_lock() {
            break guard;
        }
        // A process that was just made may have been overlooked, and is found before the end.
        if *view.coming.lock() >= level && is_attached(tid) {
            return give(true);
        }
        std::thread::sleep(Duration::from_micros(200));
    };
    if view.level() >= level {
        return give(false);
    }
    let _stopping = view.stopping.read_recursive();
    let mut known = HashSet::new();
    let (attached, _) = attach_all(view, &mut known);
    *view.coming.lock() = level;
    // If it waits no longer, which is so before Linux 5.19, it makes its call again.
    let given = give(true);
    let (mut stopped, mut parents) = settle(view, attached, &mut known);
    let old = std::mem::take(&mut *view.sources.lock());
    let was_idle = view.level() == Level::Idle;
    view.set_level(level);
    view.filters.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
    view.fast.has_grown();
    if was_idle {
        crate::loops::install(view);
    }
    for source in &old {
        source.retire();
    }
    let equip = |task: &mut Stopped| match install(task, &filter(view)) {
        Ok(listener) => Source::start(view, Listener::new(listener)),
        Err(errno) => {
            tracing::error!("process {} does not see the mounts: {}", task.tid(), errno.desc());
        }
    };
    // A filter is added to all threads of a process at once.
    let mut equipped = HashSet::new();
    stopped.iter_mut().filter(|task| equipped.insert(task.leader())).for_each(equip);
    // The children of those that are still waited for go on, and may have the view grow further. Who asked goes on last: it may be about
    // to trace one of the others.
    stopped.sort_by_key(|task| task.tid() == tid);
    drop(stopped);
    drop(growing);
    view.tell_fast();
    while !parents.is_empty() {
        let (ready, waiting): (Vec<_>, Vec<_>) = parents.into_iter().partition(Attached::is_ready);
        for mut task in ready.into_iter().filter_map(|attached| attached.wait().ok()) {
            // Who grows further meanwhile cannot attach a task that is attached here.
            let _growing = view.growing.lock();
            if equipped.insert(task.leader()) {
                equip(&mut task);
            }
        }
        parents = waiting;
        std::thread::sleep(Duration::from_micros(100));
    }
    given
}

/// Waits until all stand, but for parents that wait in `vfork(2)`: they make no call before their child, which stands, has
/// gone on. Nor is anybody waited for forever who hangs in the kernel.
fn settle(
    view: &View,
    mut attached: Vec<Attached>,
    known: &mut HashSet<Pid>,
) -> (Vec<Stopped>, Vec<Attached>) {
    const PATIENCE: Duration = Duration::from_secs(5);
    let (mut stopped, since) = (Vec::new(), Instant::now());
    loop {
        let (ready, waiting): (Vec<_>, Vec<_>) = attached.into_iter().partition(Attached::is_ready);
        stopped.extend(ready.into_iter().filter_map(|attached| attached.wait().ok()));
        // execve(2) of a thread waits until its tracer has heard of the end of all others.
        stopped.retain_mut(Stopped::is_still_there);
        attached = waiting;
        if attached.iter().all(Attached::waits_for_child) || since.elapsed() > PATIENCE {
            // A fork that had begun when its process was asked to stop is completed first.
            let (late, are_held) = attach_all(view, known);
            if late.is_empty() && !(are_held && since.elapsed() < PATIENCE) {
                return (stopped, attached);
            }
            attached.extend(late);
        }
        std::thread::sleep(Duration::from_micros(100));
    }
}

/// What is caught.
pub(crate) fn filter(view: &View) -> veduta_trace::Program {
    let who = match (view.all_root, view.is_root) {
        (true, _) => Who::AllRoot,
        (false, true) => Who::Root,
        (false, false) => Who::User,
    };
    calls::filter(view.level(), who, view.fast.is_on())
}

/// The old listener is closed when the last of its threads has noticed; that takes a moment.
fn install(task: &mut Stopped, program: &veduta_trace::Program) -> Result<std::os::fd::OwnedFd> {
    for _ in 0..40_000 {
        match task.add_filter(program) {
            Err(Errno::EBUSY) => std::thread::sleep(Duration::from_micros(500)),
            done => return done,
        }
    }
    Err(Errno::EBUSY)
}

/// Whether a task was asked to stop by us.
fn is_attached(tid: Pid) -> bool {
    Standing::of(&tid.to_string()).is_some_and(|standing| standing.is_traced_by_us())
}

/// Asks all tasks of the view to stop that are not known yet. One that forks meanwhile has its child found in the next round. Also says whether
/// another thread of ours is about to let some go, which are not known then.
fn attach_all(view: &View, known: &mut HashSet<Pid>) -> (Vec<Attached>, bool) {
    let (mut attached, mut held) = (Vec::new(), HashSet::new());
    loop {
        let before = known.len();
        for pid in processes() {
            for tid in Task(pid).threads() {
                if held.contains(&tid) || !known.insert(tid) {
                    continue;
                }
                match Attached::one_of_all(tid) {
                    Ok(task) => attached.push(task),
                    Err(Errno::ESRCH) => {}
                    // It has ended, and only has not been waited for.
                    Err(Errno::EPERM) if has_ended(tid) => {}
                    Err(Errno::EPERM) if view.rereads.holds(tid) => {
                        known.remove(&tid);
                        held.insert(tid);
                    }
                    Err(errno) => tracing::warn!("process {tid} cannot be stopped: {}", errno.desc()),
                }
            }
        }
        if known.len() == before {
            return (attached, !held.is_empty());
        }
    }
}

fn has_ended(tid: Pid) -> bool {
    Task(tid).state().is_none_or(|state| matches!(state, 'Z' | 'X'))
}

/// The processes of the view: our descendants, but not what a driver started (`ssh`).
pub(crate) fn processes() -> Vec<Pid> {
    let mut found = Vec::new();
    let own = Standing::of(&std::process::id().to_string()).unwrap_or_default();
    let mut open = vec![std::process::id().to_string()];
    while let Some(pid) = open.pop() {
        let Ok(threads) = std::fs::read_dir(format!("/proc/{pid}/task")) else { continue };
        for thread in threads.flatten() {
            let children = std::fs::read_to_string(thread.path().join("children")).unwrap_or_default();
            open.extend(children.split_whitespace().map(str::to_owned));
        }
        if Standing::of(&pid).is_some_and(|it| it.filters > own.filters || it.is_traced_by_us()) {
            found.extend(pid.parse().ok().map(Pid::from_raw));
        }
    }
    found
}

/// Whether a thread of ours traces a task.
pub(crate) fn is_traced_by_us(tid: Pid) -> bool {
    Standing::of(&tid.to_string()).is_some_and(|it| it.is_traced_by_us())
}

/// Whether somebody else does.
pub(crate) fn is_traced_by_others(tid: Pid) -> bool {
    Standing::of(&tid.to_string()).is_some_and(|it| it.tracer != 0 && !it.is_traced_by_us())
}

/// What tells a process of the view: it has a filter more than the engine (which has one too in many a container), or is
/// traced by it.
#[derive(Debug, Default, PartialEq)]
pub(crate) struct Standing {
    /// Filters.
    pub filters: u32,
    tracer: u32,
}

impl Standing {
    /// Whether it has a tracer that is none of our threads.
    pub(crate) fn is_traced_by_others(&self) -> bool {
        self.tracer != 0 && !self.is_traced_by_us()
    }

    /// Whether its tracer is one of our threads.
    fn is_traced_by_us(&self) -> bool {
        self.tracer != 0 && std::path::Path::new(&format!("/proc/self/task/{}", self.tracer)).exists()
    }

    /// `None` for a process that has ended.
    pub(crate) fn of(pid: &str) -> Option<Self> {
        Self::parse(&String::from_utf8_lossy(&std::fs::read(format!("/proc/{pid}/status")).ok()?))
    }

    /// Reads `/proc/PID/status` (proc(5)). Before Linux 5.9 there is no count of filters, but whether there are any.
    fn parse(status: &str) -> Option<Self> {
        let value = |name: &str| {
            let line = status.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
            line.map(str::trim)
        };
        let number = |name: &str| value(name).and_then(|text| text.parse::<u32>().ok());
        if value("State").is_none_or(|state| state.starts_with(['Z', 'X'])) {
            return None;
        }
        let has_filter = u32::from(value("Seccomp") == Some("2"));
        Some(Self {
            filters: number("Seccomp_filters").unwrap_or(has_filter),
            tracer: number("TracerPid").unwrap_or(0),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_is_told_by_its_filters_and_its_tracer() {
        let status = |text: &str| Standing::parse(text);
        let text = "Name:\tssh\nState:\tS (sleeping)\nTracerPid:\t7\nSeccomp:\t2\nSeccomp_filters:\t3\n";
        assert_eq!(status(text), Some(Standing { filters: 3, tracer: 7 }));
        let old = "State:\tR (running)\nTracerPid:\t0\nSeccomp:\t2\n";
        assert_eq!(status(old), Some(Standing { filters: 1, tracer: 0 }));
        assert_eq!(status("State:\tZ (zombie)\nTracerPid:\t0\nSeccomp:\t2\n"), None);
        assert_eq!(status(""), None);
    }
}
