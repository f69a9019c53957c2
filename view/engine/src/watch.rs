//! Calls that take long: a signal for the task interrupts the driver, and the turn to wait for calls is passed on.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use nix::unistd::Pid;
use parking_lot::Mutex;
use veduta_api::Interrupt;
use veduta_trace::Task;

use crate::turn::Server;

/// A call that is being served.
struct Served {
    number: u64,
    task: Task,
    /// By which its listener knows it.
    id: u64,
    interrupt: Interrupt,
    server: Option<Arc<Server>>,
    since: Instant,
    patience: Duration,
}

/// How long a signal waits for a call. Those that may wait for other processes end soon, as the kernel's do. All others a filesystem of
/// the kernel ends only with its work, and programs do not expect `EINTR` from `stat(2)`: only a source that does not answer is one.
fn patience(name: &str) -> Duration {
    let waits = matches!(
        name,
        "open"
            | "openat"
            | "openat2"
            | "creat"
            | "connect"
            | "sendto"
            | "sendmsg"
            | "sendmmsg"
            | "splice"
            | "sendfile"
    );
    if waits { Duration::from_millis(50) } else { Duration::from_secs(1) }
}

static CALLS: Mutex<Vec<Served>> = Mutex::new(Vec::new());
static COUNT: AtomicU64 = AtomicU64::new(0);
static WATCHED: AtomicBool = AtomicBool::new(false);

/// Serves a call under the watch.
pub(crate) fn over<T>(
    (task, id): (Task, u64),
    name: &str,
    interrupt: &Interrupt,
    work: impl FnOnce() -> T,
) -> T {
    let number = COUNT.fetch_add(1, Ordering::Relaxed);
    CALLS.lock().push(Served {
        number,
        task,
        id,
        interrupt: interrupt.clone(),
        server: Server::current(),
        since: Instant::now(),
        patience: patience(name),
    });
    let result = work();
    CALLS.lock().retain(|call| call.number != number);
    result
}

/// By which number the listener knows the call of a task, if one is being served.
pub(crate) fn served(tid: Pid) -> Option<u64> {
    CALLS.lock().iter().find(|call| call.task.0 == tid).map(|call| call.id)
}

/// Starts the watch, which lasts until the process ends.
pub(crate) fn start() {
    if WATCHED.swap(true, Ordering::AcqRel) {
        return;
    }
    if let Err(error) = std::thread::Builder::new().name("watch".into()).stack_size(128 << 10).spawn(watch) {
        tracing::error!("calls that take long cannot be interrupted: {error}");
    }
}

fn watch() {
    /// Between two looks while calls come, and while none do.
    const BUSY: Duration = Duration::from_millis(2);
    const IDLE: Duration = Duration::from_millis(50);
    let (mut seen, mut asked) = (0, Instant::now());
    loop {
        let count = COUNT.load(Ordering::Relaxed);
        let calls_come = std::mem::replace(&mut seen, count) != count || !CALLS.lock().is_empty();
        std::thread::sleep(if calls_come { BUSY } else { IDLE });
        let turns: Vec<_> = CALLS
            .lock()
            .iter()
            .filter(|call| call.since.elapsed() > BUSY)
            .filter_map(|call| call.server.clone())
            .collect();
        turns.iter().for_each(|server| server.pass_turn());
        if asked.elapsed() < IDLE {
            continue;
        }
        asked = Instant::now();
        let long: Vec<_> = CALLS
            .lock()
            .iter()
            .filter(|call| call.since.elapsed() > call.patience)
            .map(|call| (call.task, call.interrupt.clone()))
            .collect();
        for (task, interrupt) in long {
            if task.has_signal() {
                interrupt.raise();
            }
        }
    }
}
