//! `veduta doctor`: what this machine allows, what that means, and what to do for more.
//!
//! What can be tried is tried, in a process of its own (`veduta __trial`), since a trial that enters a
//! namespace cannot come back. Nothing is left behind.

use std::fs;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use nix::sched::CloneFlags;
use nix::sys::ptrace;
use nix::unistd::{Pid, getegid, geteuid};
use serde_json::json;
use veduta_engine::{CALLS, Mechanism};

use crate::args;
use crate::failure::Failure;

/// One finding.
struct Check {
    key: &'static str,
    title: &'static str,
    good: bool,
    found: String,
    advice: String,
}

/// What the machine allows.
pub(crate) struct Diagnosis {
    checks: Vec<Check>,
}

/// Prints the diagnosis. The exit status is 0 even where nothing is allowed: the question was answered.
pub(crate) fn run(args: &args::Doctor) -> Result<(), Failure> {
    let diagnosis = Diagnosis::make();
    crate::say(&if args.json { format!("{:#}\n", diagnosis.json()) } else { diagnosis.text() })
}

impl Diagnosis {
    /// Looks and tries.
    pub(crate) fn make() -> Self {
        let mount = trial("mount");
        let userns = trial("userns");
        let userns_mount = if userns.is_ok() { trial("userns-mount") } else { userns.clone() };
        let mut checks = vec![
            dev_fuse(),
            fusermount(),
            Check {
                key: "mount",
                title: "FUSE mount",
                good: mount.is_ok(),
                found: match &mount {
                    Ok(()) => "a trial mount was made, read and removed".into(),
                    Err(why) => format!("a trial mount failed: {why}"),
                },
                advice: String::new(),
            },
            Check {
                key: "user_namespace",
                title: "user namespaces",
                good: userns.is_ok(),
                found: match &userns {
                    Ok(()) => "an ordinary user may make one".into(),
                    Err(why) => format!("not allowed: {why}"),
                },
                advice: if userns.is_ok() { String::new() } else { userns_advice() },
            },
            Check {
                key: "user_namespace_mount",
                title: "mount in a user namespace",
                good: userns_mount.is_ok(),
                found: match &userns_mount {
                    Ok(()) => "FUSE mounts work in `unshare -rm`, without fusermount3".into(),
                    Err(why) => format!("not possible: {why}"),
                },
                advice: String::new(),
            },
            ptrace_check(),
            device(
                "tun",
                "virtual network cards",
                "/dev/net/tun",
                "not needed to mount; some network links want it",
            ),
            loop_device(),
        ];
        checks.extend(view_checks());
        Self { checks }
    }

    fn is_good(&self, key: &str) -> bool {
        self.checks.iter().any(|check| check.key == key && check.good)
    }

    /// Whether `veduta mount` works here.
    pub(crate) fn can_mount(&self) -> bool {
        self.is_good("mount")
    }

    /// What the findings mean together, and what to do for more: sentences.
    pub(crate) fn verdict(&self) -> Vec<String> {
        let mut lines = Vec::new();
        if self.is_good("mount") {
            lines.push("`veduta mount IMAGE DIR` works here.".into());
        } else if self.is_good("user_namespace_mount") {
            lines.push("`veduta mount` does not work directly, but it does inside `unshare -rm`: start a shell with that, and mount there.".into());
        } else {
            lines.push(
                "No mount is possible here. `veduta ls`, `cat`, `cp` and `info` read images all the same."
                    .into(),
            );
        }
        if self.is_good("view") {
            lines.push("`veduta run` works here: programs with mounts of their own, made by the ordinary mount command.".into());
        }
        lines.extend(
            self.checks
                .iter()
                .filter(|check| !check.good && !check.advice.is_empty())
                .map(|check| format!("For {}: {}.", check.title, check.advice)),
        );
        lines
    }

    fn text(&self) -> String {
        let width = self.checks.iter().map(|check| check.title.len()).max().unwrap_or(0);
        let mut out = String::new();
        for check in &self.checks {
            let mark = if check.good { "yes" } else { "no " };
            out += &format!("{mark}  {:width$}  {}\n", check.title, check.found);
        }
        out.push('\n');
        for line in self.verdict() {
            out += &format!("{line}\n");
        }
        if self.is_good("view") {
            out += "\nWhat a view does with system calls (`veduta syscalls` lists each):\n";
            for (treatment, count) in coverage() {
                out += &format!("{count:>5}  {treatment}\n");
            }
            out += "  all other numbers, and 32-bit and x32 calls: refused, ENOSYS\n";
        }
        out
    }

    fn json(&self) -> serde_json::Value {
        let checks: Vec<serde_json::Value> = self
            .checks
            .iter()
            .map(|check| {
                json!({ "key": check.key, "ok": check.good, "found": check.found, "advice": check.advice })
            })
            .collect();
        let syscalls: std::collections::BTreeMap<_, _> = coverage().into_iter().collect();
        json!({
            "user": geteuid().as_raw(),
            "can_mount": self.can_mount(),
            "checks": checks,
            "verdict": self.verdict(),
            "syscalls": syscalls,
        })
    }
}

fn dev_fuse() -> Check {
    let path = "/dev/fuse";
    let (good, found, advice) = match fs::OpenOptions::new().read(true).write(true).open(path) {
        Ok(_) => (true, "can be opened".to_owned(), String::new()),
        Err(error) => match fs::metadata(path) {
            Err(_) if in_container() => (
                false,
                "does not exist in this container".to_owned(),
                "start the container with `--device /dev/fuse` (and `--cap-add SYS_ADMIN` to mount as root)"
                    .to_owned(),
            ),
            Err(_) => {
                (false, "does not exist".to_owned(), "load the kernel module: `modprobe fuse`".to_owned())
            }
            Ok(meta) => (
                false,
                format!(
                    "cannot be opened: {error} (mode {:04o}, owner {})",
                    meta.permissions().mode() & 0o7777,
                    meta.uid()
                ),
                "install fuse3, whose fusermount3 opens it for you, or as root `chmod 666 /dev/fuse`"
                    .to_owned(),
            ),
        },
    };
    Check { key: "dev_fuse", title: path, good, found, advice }
}

fn fusermount() -> Check {
    let found = ["fusermount3", "fusermount"].iter().find_map(|name| in_path(name));
    let (good, text, advice) = match found {
        Some(path) => {
            let set_id = fs::metadata(&path).is_ok_and(|meta| meta.mode() & 0o4000 != 0 && meta.uid() == 0);
            let useful = set_id || geteuid().is_root();
            let text =
                if set_id { "set-user-id root" } else { "without set-user-id root, so of no help to a user" };
            (
                useful,
                format!("{}, {text}", path.display()),
                "reinstall fuse3 (`apt-get install --reinstall fuse3`)",
            )
        }
        None => (
            false,
            "not installed".to_owned(),
            "install fuse3 (`apt-get install fuse3`): it mounts for ordinary users",
        ),
    };
    let advice = if good { String::new() } else { advice.to_owned() };
    Check { key: "fusermount3", title: "fusermount3", good, found: text, advice }
}

fn in_path(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH")?;
    std::env::split_paths(&path)
        .chain(["/bin".into(), "/usr/bin".into()])
        .map(|dir| dir.join(name))
        .find(|file| fs::metadata(file).is_ok_and(|meta| meta.is_file() && meta.mode() & 0o111 != 0))
}

fn in_container() -> bool {
    ["/.dockerenv", "/run/.containerenv"].iter().any(|path| Path::new(path).exists())
        || fs::read_to_string("/proc/1/environ").is_ok_and(|env| env.contains("container="))
}

fn userns_advice() -> String {
    let restricted =
        |path: &str, value: &str| fs::read_to_string(path).is_ok_and(|text| text.trim() == value);
    if restricted("/proc/sys/kernel/unprivileged_userns_clone", "0") {
        "as root `sysctl kernel.unprivileged_userns_clone=1`".into()
    } else if restricted("/proc/sys/user/max_user_namespaces", "0") {
        "as root `sysctl user.max_user_namespaces=10000`".into()
    } else if restricted("/proc/sys/kernel/apparmor_restrict_unprivileged_userns", "1") {
        "as root `sysctl kernel.apparmor_restrict_unprivileged_userns=0`, or an AppArmor profile for veduta"
            .into()
    } else if in_container() {
        "the container's seccomp profile must allow unshare and mount".into()
    } else {
        String::new()
    }
}

/// Whether a program can be run in a view, with a mount that has to be served, and by which of the mechanisms.
fn view_checks() -> Vec<Check> {
    let run = |variable: &str, value: &str| {
        let program = std::env::current_exe().map_err(|error| error.to_string())?;
        let output = Command::new(program)
            .args(["run", "--no-rc", "--mount", "bind:/:/", "--", "true"])
            .env(variable, value)
            .stdin(Stdio::null())
            .output()
            .map_err(|error| error.to_string())?;
        let said = String::from_utf8_lossy(&output.stderr).trim().to_owned();
        let said = said.strip_prefix("veduta: ").unwrap_or(&said).to_owned();
        if output.status.success() { Ok(()) } else { Err(format!("{}: {said}", output.status)) }
    };
    let by_mechanism = Mechanism::ALL.map(|mechanism| (mechanism, run("VEDUTA_TRAP", mechanism.name())));
    let works = |(_, result): &&(Mechanism, Result<(), String>)| result.is_ok();
    let used = by_mechanism.iter().find(works).map(|(mechanism, _)| *mechanism);
    let mut checks = vec![Check {
        key: "view",
        title: "views",
        good: used.is_some(),
        found: match used {
            Some(mechanism) => format!(
                "a program ran in a view with a mount, without any privilege; calls are caught by {}",
                mechanism.describe()
            ),
            None => "a program could not be run in a view".into(),
        },
        advice: match used {
            None => "the kernel must be 5.9 or newer, and the container must not forbid the calls seccomp (or ptrace), pidfd_getfd and process_vm_readv".into(),
            Some(Mechanism::Notify) => String::new(),
            Some(_) => "calls that are caught at a lower price, a kernel from 5.9 on and a container whose own filter does not forbid the call seccomp".into(),
        },
    }];
    for (mechanism, result) in by_mechanism {
        let (key, title) = match mechanism {
            Mechanism::Notify => ("view_notify", "  by notification"),
            Mechanism::Trace => ("view_trace", "  by seccomp stops"),
            Mechanism::Ptrace => ("view_ptrace", "  by ptrace alone"),
        };
        let chosen = if used == Some(mechanism) { ": used" } else { "" };
        checks.push(Check {
            key,
            title,
            good: result.is_ok(),
            found: match result {
                Ok(()) => format!("VEDUTA_TRAP={}{chosen}", mechanism.name()),
                Err(why) => format!("VEDUTA_TRAP={}: {why}", mechanism.name()),
            },
            advice: String::new(),
        });
    }
    if used.is_some() {
        let plane = run("VEDUTA_PLANE", "fuse");
        checks.push(Check {
            key: "view_fuse",
            title: "  files by the kernel",
            good: plane.is_ok(),
            found: match &plane {
                Ok(()) => {
                    "reads and writes in mounted images go through a FUSE mount that nobody else sees".into()
                }
                Err(why) => format!("reads and writes in mounted images go through the engine: {why}"),
            },
            advice: match &plane {
                Ok(()) => String::new(),
                Err(_) => "speed, /dev/fuse open to you and user namespaces; views work without".into(),
            },
        });
        checks.push(fast_check());
    }
    checks
}

/// Whether calls that concern no mount are decided in the process that makes them: asked in a view.
fn fast_check() -> Check {
    let ask = || {
        let program = std::env::current_exe().ok()?;
        let output = Command::new(&program)
            .args(["run", "--no-rc", "--mount", "bind:/dev/null:/.veduta-doctor", "--"])
            .arg(&program)
            .args(["explain", "/"])
            .stdin(Stdio::null())
            .output()
            .ok()?;
        let said = String::from_utf8_lossy(&output.stdout).trim().to_owned();
        Some(said.rsplit_once("fast path: ")?.1.to_owned())
    };
    let state = ask().unwrap_or_else(|| "off".into());
    let good = state.starts_with("on;");
    let found = if good {
        "calls that concern no mount are decided in the process (VEDUTA_FAST=0 turns that off)".into()
    } else {
        let state = state.split("; 0 processes").next().unwrap_or(&state);
        format!("all calls with paths are caught: {state}")
    };
    Check { key: "view_fast", title: "  fast path", good, found, advice: String::new() }
}

/// How many system calls a view treats in which way.
fn coverage() -> Vec<(&'static str, usize)> {
    let mut counts: Vec<(&'static str, usize)> = Vec::new();
    for row in CALLS.iter().filter(|row| row.number().is_some()) {
        match counts.iter_mut().find(|(treatment, _)| *treatment == row.family.describe()) {
            Some((_, count)) => *count += 1,
            None => counts.push((row.family.describe(), 1)),
        }
    }
    counts.sort_by(|a, b| b.1.cmp(&a.1).then(a.0.cmp(b.0)));
    counts
}

fn ptrace_check() -> Check {
    let result = try_ptrace();
    let scope = fs::read_to_string("/proc/sys/kernel/yama/ptrace_scope").unwrap_or_default();
    let advice = match (&result, scope.trim()) {
        (Err(_), "2" | "3") => "as root `sysctl kernel.yama.ptrace_scope=1` (views will need it)",
        (Err(_), _) => {
            "in a container, `--cap-add SYS_PTRACE` or a seccomp profile that allows ptrace (views will need it)"
        }
        _ => "",
    };
    Check {
        key: "ptrace",
        title: "ptrace",
        good: result.is_ok(),
        found: match &result {
            Ok(()) => "a child was traced".into(),
            Err(why) => format!("a child could not be traced: {why}"),
        },
        advice: advice.into(),
    }
}

/// Traces a child of our own for a moment: a `cat` that ends when its input is closed.
fn try_ptrace() -> Result<(), String> {
    let mut child = Command::new("cat")
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .spawn()
        .map_err(|error| format!("cat: {error}"))?;
    let pid = Pid::from_raw(i32::try_from(child.id()).map_err(|error| error.to_string())?);
    let traced = ptrace::seize(pid, ptrace::Options::empty()).map_err(|errno| errno.desc().to_owned());
    drop(child.stdin.take());
    // A tracee that ends is reported to its tracer, which is its parent here: wait serves both.
    child.wait().map_err(|error| error.to_string())?;
    traced
}

fn device(key: &'static str, title: &'static str, path: &'static str, advice: &str) -> Check {
    let opened = fs::OpenOptions::new().read(true).write(true).open(path);
    Check {
        key,
        title,
        good: opened.is_ok(),
        found: match &opened {
            Ok(_) => format!("{path} can be opened"),
            Err(error) => format!("{path}: {error}"),
        },
        advice: if opened.is_ok() { String::new() } else { advice.into() },
    }
}

fn loop_device() -> Check {
    let exists = fs::metadata("/dev/loop-control").is_ok_and(|meta| meta.file_type().is_char_device());
    let good = exists && geteuid().is_root();
    let found = match (exists, good) {
        (_, true) => "root could loop-mount here as well",
        (true, _) => "there, but only root may use them; Veduta needs none",
        (false, _) => "none; Veduta needs none",
    };
    Check { key: "loop", title: "loop devices", good, found: found.into(), advice: String::new() }
}

/// Runs `veduta __trial WHAT` and says what it said.
fn trial(what: &str) -> Result<(), String> {
    let this = std::env::current_exe().map_err(|error| error.to_string())?;
    let dir =
        tempfile::Builder::new().prefix("veduta-trial-").tempdir().map_err(|error| error.to_string())?;
    let output = Command::new(this)
        .args(["__trial", what])
        .arg(dir.path())
        .stdin(Stdio::null())
        .output()
        .map_err(|error| error.to_string())?;
    if output.status.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&output.stderr);
    let line = said.lines().find(|line| !line.trim().is_empty()).unwrap_or("it ended without a word");
    Err(line.strip_prefix("veduta: ").unwrap_or(line).to_owned())
}

/// `veduta __trial`: one trial, in this process. Fails with a sentence.
pub(crate) fn run_trial(what: &str, dir: Option<&Path>) -> Result<(), Failure> {
    let dir = dir.ok_or_else(|| Failure::usage("a directory is wanted"))?;
    match what {
        "mount" => mount_and_read(dir),
        "userns" => enter_user_namespace(),
        "userns-mount" => enter_user_namespace().and_then(|()| mount_and_read(dir)),
        other => Err(Failure::usage(format!("there is no trial {other:?}"))),
    }
}

/// Becomes root in a user and mount namespace of its own, as `unshare -rm` does.
fn enter_user_namespace() -> Result<(), Failure> {
    let (uid, gid) = (geteuid(), getegid());
    nix::sched::unshare(CloneFlags::CLONE_NEWUSER | CloneFlags::CLONE_NEWNS)
        .map_err(|errno| Failure::system(format!("unshare: {}", errno.desc())))?;
    let write = |path: &str, text: String| {
        fs::write(path, text).map_err(|error| Failure::system(format!("{path}: {error}")))
    };
    write("/proc/self/setgroups", "deny".into())?;
    write("/proc/self/uid_map", format!("0 {uid} 1"))?;
    write("/proc/self/gid_map", format!("0 {gid} 1"))
}

/// Mounts the smallest tree on `dir`, reads its file, and unmounts.
fn mount_and_read(dir: &Path) -> Result<(), Failure> {
    let tree = veduta_hello::tree("doctor");
    let mounted =
        veduta_fuse::mount_background(tree, dir).map_err(|error| Failure::system(error.to_string()))?;
    let read = fs::read_to_string(dir.join("hello"));
    mounted.unmount().map_err(|error| Failure::system(error.to_string()))?;
    match read {
        Ok(text) if text.contains("doctor") => Ok(()),
        Ok(_) => Err(Failure::system("the mounted file had the wrong content")),
        Err(error) => Err(Failure::system(format!("the mounted file cannot be read: {error}"))),
    }
}
