//! The life of a view.
//!
//! Two processes stand behind one: the one that was started waits and keeps job control, and its child is the engine, the
//! parent of the command. So whichever is killed, the other is left to end what remains: the engine flushes the mounts, or the
//! waiting process ends the command and its descendants.

use std::ffi::OsString;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::sys::signal::{SigSet, Signal, kill};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;
use veduta_api::MountError;
use veduta_trace::Task;
use veduta_trace::raw;
use veduta_trace::spawn::{Command, fork_server};

use crate::call::Call;
use crate::calls::Level;
use crate::view::{Catalogue, MountRequest, View};

/// Descriptors that the engine of a view has where it may choose.
const MANY_FILES: u64 = 1 << 19;

/// How a view is started.
pub struct Settings {
    /// The command and its arguments.
    pub command: Vec<OsString>,
    /// Mounts that are there from the start.
    pub mounts: Vec<MountRequest>,
    /// Scripts that run in the view before the command, one after the other.
    pub scripts: Vec<PathBuf>,
    /// The view's name.
    pub name: String,
    /// What is reported of calls.
    pub trace: Option<String>,
    /// Everybody is told that they are root.
    pub all_root: bool,
}

/// Runs a command in a view, and ends as it ends: its exit status, or 128 and the signal.
pub fn run(settings: &Settings, catalogue: Box<dyn Catalogue>) -> Result<ExitCode, MountError> {
    let system =
        |errno: Errno| MountError::system(errno, format!("the view cannot be started: {}", errno.desc()));
    raw::adopt_orphans().map_err(system)?;
    match fork_server().map_err(system)? {
        Some(engine) => Ok(wait_for_engine(engine)),
        None => {
            let code = engine(settings, catalogue).unwrap_or_else(|error| {
                eprintln!("veduta: {error}");
                125
            });
            std::process::exit(code);
        }
    }
}

/// The first process: it stops and goes on with the command, passes signals on, and cleans up if the engine dies.
fn wait_for_engine(engine: Pid) -> ExitCode {
    let mut signals = SigSet::empty();
    for signal in [
        Signal::SIGCHLD,
        Signal::SIGTERM,
        Signal::SIGHUP,
        Signal::SIGINT,
        Signal::SIGQUIT,
        Signal::SIGUSR1,
        // Of the terminal's stop the command decides: it may not want to stop.
        Signal::SIGTSTP,
    ] {
        signals.add(signal);
    }
    if signals.thread_block().is_err() {
        tracing::warn!("signals cannot be passed on");
    }
    loop {
        loop {
            match waitpid(Pid::from_raw(-1), Some(WaitPidFlag::WNOHANG)) {
                Ok(WaitStatus::Exited(pid, code)) if pid == engine => return ExitCode::from(code as u8),
                Ok(WaitStatus::Signaled(pid, signal, _)) if pid == engine => {
                    eprintln!("veduta: the engine was ended by {signal}; its processes are ended too");
                    end_descendants();
                    if let Ok(home) = home() {
                        let _ =
                            std::fs::remove_dir_all(crate::inotify::folder(&home, engine.as_raw() as u32));
                    }
                    return ExitCode::from(128_u8.saturating_add(signal as u8));
                }
                Ok(WaitStatus::StillAlive) | Err(_) => break,
                Ok(_) => {}
            }
        }
        match signals.wait() {
            // The engine says that the command has stopped: so do we, for the shell that waits for us.
            Ok(Signal::SIGUSR1) => {
                let _ = kill(Pid::this(), Signal::SIGSTOP);
            }
            Ok(Signal::SIGTERM | Signal::SIGHUP) => {
                let _ = kill(engine, Signal::SIGTERM);
            }
            // Those of the terminal reach the command by themselves.
            _ => {}
        }
    }
}

/// Ends all processes below us, and waits for them.
fn end_descendants() {
    let deadline = Instant::now() + Duration::from_secs(10);
    while Instant::now() < deadline {
        let children = std::fs::read_to_string("/proc/thread-self/children").unwrap_or_default();
        if children.trim().is_empty() {
            return;
        }
        for child in children.split_whitespace().filter_map(|pid| pid.parse().ok()) {
            let _ = kill(Pid::from_raw(child), Signal::SIGKILL);
        }
        while let Ok(status) = waitpid(Pid::from_raw(-1), Some(WaitPidFlag::WNOHANG)) {
            if status == WaitStatus::StillAlive {
                break;
            }
        }
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// Where directories can be made for a moment.
fn home() -> Result<PathBuf, MountError> {
    let candidates = [std::env::var_os("XDG_RUNTIME_DIR").map(PathBuf::from), Some("/dev/shm".into())]
        .into_iter()
        .flatten()
        .chain([std::env::temp_dir(), "/var/tmp".into(), ".".into()]);
    for candidate in candidates {
        let Ok(candidate) = candidate.canonicalize() else { continue };
        let probe = candidate.join(format!(".veduta-{}", std::process::id()));
        if std::fs::create_dir(&probe).is_ok() {
            let _ = std::fs::remove_dir(&probe);
            return Ok(candidate);
        }
    }
    Err(MountError::system(Errno::EROFS, "no directory can be made anywhere, as /dev/shm or in TMPDIR"))
}

fn engine(settings: &Settings, catalogue: Box<dyn Catalogue>) -> Result<i32, MountError> {
    let system =
        |errno: Errno| MountError::system(errno, format!("the view cannot be started: {}", errno.desc()));
    raw::die_with_parent(Signal::SIGTERM).map_err(system)?;
    raw::adopt_orphans().map_err(system)?;
    raw::only_interrupt_on(Signal::SIGUSR2).map_err(system)?;
    let mut signals = SigSet::empty();
    for signal in [
        Signal::SIGCHLD,
        Signal::SIGTERM,
        Signal::SIGHUP,
        Signal::SIGINT,
        Signal::SIGQUIT,
        Signal::SIGTSTP,
        Signal::SIGTTIN,
        Signal::SIGTTOU,
        // A lease that tells whether a file is in use (`StandIn::is_unused`) was broken meanwhile: whoever opens it waits for a moment.
        Signal::SIGIO,
    ] {
        signals.add(signal);
    }
    signals.thread_block().map_err(system)?;
    // In this order: the helper of the planes then has what the fast path watches with too, and outlives us. The kernel takes more than 10 ms
    // to do away with it, and whoever closes it last waits for that.
    let fast = crate::fast::Fast::new();
    let planes =
        crate::fuseplane::Planes::start(crate::fuseplane::Choice::from_environment()?).map_err(system)?;
    let mut view = View::new(catalogue, settings.name.clone(), home()?, planes);
    view.all_root = settings.all_root;
    if let Some(known) = fast.known() {
        let _ = view.stand_ins.known.set(Arc::clone(known));
    }
    view.fast = fast;
    view.trace = parking_lot::Mutex::new(settings.trace.clone());
    view.tracing.store(settings.trace.is_some(), Ordering::Relaxed);
    // Who is told something else than the truth needs to be heard.
    let catches = !settings.mounts.is_empty() || view.all_root;
    if catches {
        view.set_level(Level::Mounted);
    }
    let view = Arc::new(view);
    view.rereads.begin(&view);
    if catches {
        crate::loops::install(&view);
    }
    let result = serve_all(&view, settings, &signals);
    view.watches.clear();
    view.stand_ins.collect(None, 0);
    for failure in view.unmount_all() {
        eprintln!("veduta: {failure}");
    }
    result
}

fn serve_all(view: &Arc<View>, settings: &Settings, signals: &SigSet) -> Result<i32, MountError> {
    let Settings { mounts, scripts, command, .. } = settings;
    let path = std::env::var_os("PATH").unwrap_or_else(|| "/usr/local/bin:/usr/bin:/bin".into());
    let prepare = |words: &[OsString]| {
        Command::new(words.iter().map(OsString::as_os_str), &path)
            .map_err(|errno| MountError::usage(format!("the command: {}", errno.desc())))
    };
    let mut commands = Vec::new();
    for script in scripts {
        commands.push(prepare(&[script.as_os_str().to_owned()])?);
    }
    commands.push(prepare(command)?);
    for mount in mounts {
        let call = Call::new(view, Task(Pid::this()), 0, [0; 6]);
        crate::mounting::make(&call, mount).map_err(|error| MountError {
            message: format!("{}: {}: {}", mount.type_name, mount.source.to_string_lossy(), error.message),
            ..error
        })?;
    }
    let is_seen_through = view.table().mounts().iter().any(|mount| mount.through.is_some());
    if is_seen_through && !view.takes_backing() && view.may_emulate() {
        // Whoever has opened a file of the host by himself may get an emulated one in its place, and reads on at once.
        view.set_level(Level::Files);
    }
    let mut status = 0;
    let own_limit = raw::descriptor_limit().map_err(|errno| MountError::system(errno, errno.desc()))?;
    for command in &commands {
        let (mut trap, child) = crate::trap::start(view, command)?;
        if let (true, Some(mechanism)) = (settings.trace.is_some(), view.mechanism.get()) {
            let fast = if view.fast.is_on() { ", those of the fast path excepted" } else { "" };
            eprintln!("veduta: calls are caught by {}{fast}", mechanism.describe());
        }
        // An open virtual file costs the engine descriptors; what the command may open does not change by that.
        let most = raw::Limit { now: own_limit.most, ..own_limit };
        // Root may go beyond its own limit.
        let beyond = own_limit.most.max(MANY_FILES);
        let is_raised = raw::set_descriptor_limit(raw::Limit { now: beyond, most: beyond });
        if let Err(errno) = is_raised.or_else(|_| raw::set_descriptor_limit(most)) {
            tracing::warn!("the engine keeps its limit of open files: {}", errno.desc());
        }
        crate::watch::start();
        status = trap.serve(view, child, signals).map_err(|errno| {
            MountError::system(errno, format!("the command cannot be served: {}", errno.desc()))
        })?;
        raw::set_descriptor_limit(own_limit).map_err(|errno| MountError::system(errno, errno.desc()))?;
    }
    Ok(status)
}

/// Waits for the command, reaps orphans, and tidies up from time to time. When the command has ended, what it left behind
/// goes on until it ends too.
pub(crate) fn wait_for(view: &Arc<View>, child: Pid, signals: &SigSet) -> i32 {
    let tick = nix::sys::time::TimeSpec::from_duration(Duration::from_secs(1));
    let mut status = None;
    let mut last_tidy = Instant::now();
    loop {
        let mut has_children = true;
        {
            // Nobody may be stopping a task, or its stops would be taken for the command's.
            let _stopping = view.stopping.write();
            loop {
                let flags = WaitPidFlag::WNOHANG | WaitPidFlag::WUNTRACED | WaitPidFlag::__WALL;
                match waitpid(Pid::from_raw(-1), Some(flags)) {
                    Ok(WaitStatus::Exited(pid, code)) if pid == child => status = Some(code),
                    Ok(WaitStatus::Signaled(pid, signal, _)) if pid == child => {
                        status = Some(128 + signal as i32);
                    }
                    Ok(WaitStatus::Stopped(pid, signal)) if pid == child && signal != Signal::SIGSTOP => {
                        let _ = kill(nix::unistd::getppid(), Signal::SIGUSR1);
                    }
                    Ok(WaitStatus::StillAlive) => break,
                    Ok(_) => {}
                    Err(_) => {
                        has_children = false;
                        break;
                    }
                }
            }
        }
        if let Some(status) = status {
            if !has_children || crate::grow::processes().is_empty() {
                return status;
            }
        }
        if last_tidy.elapsed() >= View::TIDY {
            view.tidy();
            last_tidy = Instant::now();
        }
        if let Ok(Some(Signal::SIGTERM | Signal::SIGHUP)) = raw::wait_for_signal(signals, &tick) {
            end_view(view);
            return status.unwrap_or(128 + Signal::SIGTERM as i32);
        }
    }
}

/// Ends all processes of the view: asked first, then made to.
fn end_view(view: &Arc<View>) {
    let asked = Instant::now();
    loop {
        let processes = crate::grow::processes();
        if processes.is_empty() {
            return;
        }
        let signal = if asked.elapsed() < Duration::from_secs(2) { Signal::SIGTERM } else { Signal::SIGKILL };
        for pid in processes {
            let _ = kill(pid, signal);
            if signal == Signal::SIGTERM {
                let _ = kill(pid, Signal::SIGCONT);
            }
        }
        let _stopping = view.stopping.write();
        while let Ok(status) = waitpid(Pid::from_raw(-1), Some(WaitPidFlag::WNOHANG | WaitPidFlag::__WALL)) {
            if status == WaitStatus::StillAlive {
                break;
            }
        }
        drop(_stopping);
        std::thread::sleep(Duration::from_millis(20));
        if asked.elapsed() > Duration::from_secs(20) {
            return;
        }
    }
}
