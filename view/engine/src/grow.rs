//! Growth: a view that catches more than before.
//!
//! A filter cannot be changed, only added to, and a task has at most one listener. But a listener that is closed makes room
//! for another. So all processes of the view are stopped, the old listener is closed, each gets a new filter with a
//! listener of its own (which its descendants will share), and all go on.

use std::collections::HashSet;
use std::sync::Arc;

use nix::errno::Errno;
use nix::unistd::Pid;
use veduta_api::Result;
use veduta_trace::stop::{Attached, Stopped};
use veduta_trace::{Listener, Notification};

use crate::call::{Answer, Call, Outcome};
use crate::calls::{self, Level};
use crate::serve::Source;
use crate::view::View;

/// Programs that mount: before they run, the view must catch paths, so that they see what they will mount on.
const MOUNTERS: &[&[u8]] = &[
    b"mount",
    b"umount",
    b"losetup",
    b"veduta",
    b"vumount",
    b"vuumount",
    b"viewmount",
    b"viewumount",
    b"busybox",
    b"findmnt",
];

/// `execve` in an idle view.
pub(crate) fn before_exec(
    view: &Arc<View>,
    source: &Source,
    notification: &Notification,
    call: &Call<'_>,
    name: &str,
) -> Outcome {
    let address = call.args[usize::from(name == "execveat")];
    let Ok(path) = call.task.read_path(address) else { return Ok(Answer::GoOn) };
    let program = path.rsplit(|byte| *byte == b'/').next().unwrap_or_default();
    // Not for names along PATH that do not exist.
    let exists = || std::fs::metadata(std::path::Path::new(&*String::from_utf8_lossy(&path))).is_ok();
    if !MOUNTERS.contains(&program) || (path.starts_with(b"/") && !exists()) {
        return Ok(Answer::GoOn);
    }
    to_mounted(view, source, notification, &Ok(Answer::GoOn))?;
    Ok(Answer::Given)
}

/// Has the view catch all that a view with mounts must. The caller's own call is answered with `answer` in the middle.
pub(crate) fn to_mounted(
    view: &Arc<View>,
    source: &Source,
    notification: &Notification,
    answer: &Outcome,
) -> Result<()> {
    let _growing = view.growing.lock();
    let give = || match answer {
        Ok(Answer::Value(value)) => source.with(|listener| listener.value(notification.id, *value)),
        Ok(_) => source.with(|listener| listener.go_on(notification.id)),
        Err(errno) => source.with(|listener| listener.error(notification.id, *errno as i32)),
    };
    if view.level() == Level::Mounted {
        return give();
    }
    let _stopping = view.stopping.read();
    let attached = attach_all();
    give()?;
    let mut stopped: Vec<Stopped> =
        attached.into_iter().filter_map(|attached| attached.wait().ok()).collect();
    let old = std::mem::take(&mut *view.sources.lock());
    view.set_level(Level::Mounted);
    crate::loops::install(view);
    for source in &old {
        source.retire();
    }
    let program = calls::filter(Level::Mounted, view.is_root && !view.all_root);
    let mut failed = Vec::new();
    for task in &mut stopped {
        match install(task, &program) {
            Ok(listener) => Source::start(view, Listener::new(listener)),
            Err(errno) => failed.push((task.tid(), errno)),
        }
    }
    for (tid, errno) in failed {
        tracing::error!("process {tid} does not see the mounts: {}", errno.desc());
    }
    Ok(())
}

/// The old listener is closed when the last of its threads has noticed; that takes a moment.
fn install(task: &mut Stopped, program: &veduta_trace::Program) -> Result<std::os::fd::OwnedFd> {
    for _ in 0..2000 {
        match task.add_filter(program) {
            Err(Errno::EBUSY) => std::thread::sleep(std::time::Duration::from_micros(500)),
            done => return done,
        }
    }
    Err(Errno::EBUSY)
}

/// Asks all processes of the view to stop. A process that forks meanwhile has its child found in the next round.
fn attach_all() -> Vec<Attached> {
    let (mut attached, mut known) = (Vec::new(), HashSet::new());
    loop {
        let before = known.len();
        for pid in processes() {
            if known.insert(pid) {
                match Attached::new(pid) {
                    Ok(task) => attached.push(task),
                    Err(Errno::ESRCH) => {}
                    Err(errno) => tracing::warn!("process {pid} cannot be stopped: {}", errno.desc()),
                }
            }
        }
        if known.len() == before {
            return attached;
        }
    }
}

/// The processes of the view: those of our descendants that have a filter.
pub(crate) fn processes() -> Vec<Pid> {
    let mut found = Vec::new();
    let mut open = vec![std::process::id().to_string()];
    while let Some(pid) = open.pop() {
        let Ok(threads) = std::fs::read_dir(format!("/proc/{pid}/task")) else { continue };
        for thread in threads.flatten() {
            let children = std::fs::read_to_string(thread.path().join("children")).unwrap_or_default();
            open.extend(children.split_whitespace().map(str::to_owned));
        }
        if is_filtered(&pid) {
            found.extend(pid.parse().ok().map(Pid::from_raw));
        }
    }
    found
}

fn is_filtered(pid: &str) -> bool {
    let status = std::fs::read(format!("/proc/{pid}/status")).unwrap_or_default();
    let status = String::from_utf8_lossy(&status);
    let alive = !status.lines().any(|line| line.starts_with("State:\tZ"));
    alive && pid != std::process::id().to_string() && status.lines().any(|line| line == "Seccomp:\t2")
}
