//! Driver programs: this test program, started again with a variable set, is one. It therefore has a main function of its own, and runs
//! its tests one after the other. Needs `/dev/fuse` and the right to mount, and is skipped without, except in CI.
//!
//! As root, everything runs three times: as root, as an ordinary user with fusermount3, and in a user namespace without it.

#![allow(clippy::panic, clippy::unwrap_used)]

mod common;

use std::fs::{self, File};
use std::io::Read;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitCode, Output, Stdio};
use std::sync::Arc;

use common::{HOW, Memory, Tree, can_mount, is_mounted, is_root, until};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use veduta_api::{Facts, Module, MountError, Object, OptionSpec, Request, SourceKind};

/// Set: this process is the driver program.
const DRIVER: &str = "VEDUTA_TEST_DRIVER";

/// A type whose source says what is to go wrong.
struct Testing;

impl Module for Testing {
    fn name(&self) -> &'static str {
        "testing"
    }
    fn summary(&self) -> &'static str {
        "files in memory"
    }
    fn source(&self) -> SourceKind {
        SourceKind::Address
    }
    fn writable(&self) -> bool {
        true
    }
    fn options(&self) -> &'static [OptionSpec] {
        const OPTIONS: &[OptionSpec] = &[OptionSpec::with_value("content", "TEXT", "What the file holds.")];
        OPTIONS
    }
    fn mount(&self, request: &mut Request<'_>) -> Result<Object, MountError> {
        match request.source.to_str() {
            Some("corrupt") => return Err(MountError::corrupt("block 9 lies outside the image")),
            Some("abort") => std::process::abort(),
            _ => {}
        }
        let memory = Memory::new(Facts::default());
        let content = request.options.take_value("content")?.unwrap_or_else(|| "content".into());
        memory.add("file", content.as_bytes());
        Ok(Object::Tree(Arc::new(Tree(memory))))
    }
}

fn main() -> ExitCode {
    if std::env::var_os(DRIVER).is_some() {
        return veduta_fuse::driver_main(&Testing);
    }
    if std::env::var_os(HOW).is_none() && !can_mount() {
        println!("test result: ok. 0 passed; 0 failed; 1 ignored");
        return ExitCode::SUCCESS;
    }
    let filter: Vec<String> = std::env::args().skip(1).filter(|word| !word.starts_with('-')).collect();
    let (mut passed, mut failed) = (0, 0);
    for (name, test) in TESTS {
        if !filter.is_empty() && !filter.iter().any(|wanted| name.contains(wanted.as_str())) {
            continue;
        }
        let ok = catch_unwind(AssertUnwindSafe(test)).is_ok();
        println!("test {name} ... {}", if ok { "ok" } else { "FAILED" });
        passed += usize::from(ok);
        failed += usize::from(!ok);
    }
    let word = if failed == 0 { "ok" } else { "FAILED" };
    println!("test result: {word}. {passed} passed; {failed} failed; 0 ignored");
    ExitCode::from(u8::from(failed != 0))
}

macro_rules! tests {
    ($($name:ident),* $(,)?) => { &[$((stringify!($name), $name as fn())),*] };
}

const TESTS: &[(&str, fn())] = tests![
    the_program_returns_when_the_mount_answers,
    usage_is_explained,
    a_mount_that_fails_says_why_and_exits_with_32,
    a_server_that_dies_before_the_mount_answers_is_noticed,
    a_signal_unmounts,
    a_signal_ends_a_busy_mount_too,
    an_unmount_ends_the_server,
    the_mount_of_a_killed_server_is_taken_away,
    options_reach_the_mount_and_the_type,
    mount_8_can_run_it,
    a_closed_device_is_explained,
    users_can_do_it_too,
];

/// A folder with an empty mount point in it; at the end nothing is mounted there.
struct Place(tempfile::TempDir);

impl Place {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        fs::create_dir(folder.path().join("mnt")).unwrap();
        Self(folder)
    }

    fn point(&self) -> PathBuf {
        self.0.path().join("mnt")
    }

    fn driver(&self, source: &str, words: &[&str]) -> Command {
        let mut command = Command::new(std::env::current_exe().unwrap());
        command.env(DRIVER, "1").arg(source).arg(self.point()).args(words);
        command
    }

    /// Runs the driver program to its end. Its pipes are closed once it is in the background, or this does not return.
    fn run(&self, source: &str, words: &[&str]) -> Output {
        self.driver(source, words).stdin(Stdio::null()).output().unwrap()
    }

    fn mount(&self, words: &[&str]) {
        let output = self.run("memory", words);
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success() && said.is_empty(), "{:?}: {said}", output.status);
        assert!(is_mounted(&self.point()));
    }

    fn foreground(&self) -> Child {
        let child = self.driver("memory", &["-f"]).stdin(Stdio::null()).spawn().unwrap();
        until("the mount is there", || self.point().join("file").exists());
        child
    }

    fn unmount(&self) {
        let point = self.point();
        let done = Command::new("umount").arg(&point).stderr(Stdio::null()).status().unwrap().success()
            || Command::new("fusermount3")
                .arg("-u")
                .arg(&point)
                .status()
                .is_ok_and(|status| status.success());
        assert!(done, "cannot be unmounted");
    }

    /// The processes of driver programs on this mount point.
    fn servers(&self) -> Vec<i32> {
        let ours = |pid: &i32| {
            let line = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
            let zombie =
                fs::read_to_string(format!("/proc/{pid}/stat")).is_ok_and(|stat| stat.contains(") Z "));
            let point = self.point();
            !zombie && line.split(|byte| *byte == 0).any(|word| word == point.as_os_str().as_encoded_bytes())
        };
        let all = fs::read_dir("/proc")
            .unwrap()
            .filter_map(|entry| entry.unwrap().file_name().to_str()?.parse().ok());
        all.filter(ours).collect()
    }

    fn is_gone(&self) {
        until("the mount is gone", || !is_mounted(&self.point()));
        until("the server and its guardian end", || self.servers().is_empty());
    }
}

fn status(mut child: Child) -> Option<i32> {
    child.wait().unwrap().code()
}

fn the_program_returns_when_the_mount_answers() {
    let place = Place::new();
    place.mount(&[]);
    assert_eq!(fs::read(place.point().join("file")).unwrap(), b"content");
    assert_eq!(place.servers().len(), 2);
    place.unmount();
    place.is_gone();
}

/// fusermount3 opens the device as the user, so it does not help.
fn a_closed_device_is_explained() {
    if std::env::var_os(HOW).is_none_or(|how| how != "closed") {
        return;
    }
    let place = Place::new();
    let output = place.run("memory", &[]);
    assert_eq!(output.status.code(), Some(32));
    assert!(String::from_utf8_lossy(&output.stderr).contains("chmod 666"));
    place.is_gone();
}

fn usage_is_explained() {
    let place = Place::new();
    for (words, said) in [
        (vec!["-o", "norock"], "norock"),
        (vec!["-o", "content"], "content=TEXT"),
        (vec!["-o", "ro=1"], "ro"),
        (vec!["-x"], "-x"),
        (vec!["third"], "third"),
    ] {
        let output = place.run("memory", &words);
        let text = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(1), "{words:?}: {text}");
        assert!(text.contains(said), "{words:?}: {text}");
    }
    let help = place.run("memory", &["--help"]);
    assert!(help.status.success());
    let text = String::from_utf8(help.stdout).unwrap();
    assert!(text.contains("content=TEXT") && text.contains("allow_other") && text.contains("Exit status"));
    assert!(
        String::from_utf8(place.run("memory", &["-V"]).stdout).unwrap().contains(env!("CARGO_PKG_VERSION"))
    );
    place.is_gone();
}

fn a_mount_that_fails_says_why_and_exits_with_32() {
    let place = Place::new();
    for words in [&["-f"][..], &[]] {
        let output = place.run("corrupt", words);
        assert_eq!(output.status.code(), Some(32));
        assert_eq!(
            String::from_utf8_lossy(&output.stderr),
            "testing: corrupt: block 9 lies outside the image\n"
        );
    }
    fs::remove_dir(place.point()).unwrap();
    let output = place.run("memory", &[]);
    assert_eq!(output.status.code(), Some(32));
    assert!(String::from_utf8_lossy(&output.stderr).contains("does not exist"));
    until("all processes end", || place.servers().is_empty());
}

fn a_server_that_dies_before_the_mount_answers_is_noticed() {
    let place = Place::new();
    let output = place.run("abort", &[]);
    assert_eq!(output.status.code(), Some(2));
    assert!(String::from_utf8_lossy(&output.stderr).contains("SIGABRT"));
    place.is_gone();
}

fn a_signal_unmounts() {
    for signal in [Signal::SIGTERM, Signal::SIGINT, Signal::SIGHUP] {
        let place = Place::new();
        let child = place.foreground();
        kill(Pid::from_raw(child.id() as i32), signal).unwrap();
        assert_eq!(status(child), Some(0));
        place.is_gone();
    }
}

fn a_signal_ends_a_busy_mount_too() {
    let place = Place::new();
    let child = place.foreground();
    let mut file = File::open(place.point().join("file")).unwrap();
    kill(Pid::from_raw(child.id() as i32), Signal::SIGTERM).unwrap();
    until("the mount is out of sight", || !is_mounted(&place.point()));
    let mut content = String::new();
    file.read_to_string(&mut content).unwrap();
    assert_eq!(content, "content");
    // Its last user gone, it ends.
    drop(file);
    assert_eq!(status(child), Some(0));
    place.is_gone();
}

fn an_unmount_ends_the_server() {
    let place = Place::new();
    let child = place.foreground();
    place.unmount();
    assert_eq!(status(child), Some(0));
    place.is_gone();
}

fn the_mount_of_a_killed_server_is_taken_away() {
    let place = Place::new();
    let child = place.foreground();
    kill(Pid::from_raw(child.id() as i32), Signal::SIGKILL).unwrap();
    assert_eq!(status(child), None);
    place.is_gone();
    assert_eq!(fs::read_dir(place.point()).unwrap().count(), 0);
}

fn options_reach_the_mount_and_the_type() {
    let place = Place::new();
    place.mount(&["-o", "ro,noexec,noatime,content=else", "-o", "fsname=a b\\,c,x-gvfs-hide,user"]);
    assert_eq!(fs::read(place.point().join("file")).unwrap(), b"else");
    let mounts = fs::read_to_string("/proc/self/mounts").unwrap();
    let line = mounts.lines().find(|line| line.contains(place.point().to_str().unwrap())).unwrap();
    let fields: Vec<&str> = line.split(' ').collect();
    assert_eq!(fields[0], "a\\040b,c");
    assert!(fields[2].starts_with("fuse.program"), "{line}");
    for word in ["ro", "nosuid", "nodev", "noexec", "noatime", "default_permissions"] {
        assert!(fields[3].split(',').any(|option| option == word), "{word}: {line}");
    }
    assert!(File::create(place.point().join("new")).is_err());
    place.unmount();
    place.is_gone();
}

/// `mount -t fuse.PROGRAM` and so fstab: mount(8) runs mount.fuse3, which runs the program.
fn mount_8_can_run_it() {
    let has_helper =
        ["/sbin/mount.fuse3", "/usr/sbin/mount.fuse3"].iter().any(|path| Path::new(path).exists());
    if std::env::var_os(HOW).is_some() {
        return;
    }
    if !is_root() || !has_helper {
        return println!("skip - wants root and mount.fuse3");
    }
    let place = Place::new();
    // mount(8) gives its helper a PATH of its own. The program is put there, seen in a mount namespace of its own only.
    let output = Command::new("unshare")
        .args(["-m", "--propagation", "private", "sh", "-c", MOUNT_8])
        .arg(std::env::current_exe().unwrap())
        .arg(place.point())
        .env(DRIVER, "1")
        .output()
        .unwrap();
    let said =
        String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && said == "by mount", "{said}");
    place.is_gone();
}

const MOUNT_8: &str = r#"
set -e
mount -t tmpfs none /usr/local/sbin
ln -s "$0" /usr/local/sbin/umfusetesting
mount -t fuse.umfusetesting -o "ro,nodev,content=by mount,_netdev,nofail" memory "$1"
cat "$1/file"
grep -q "$1 fuse.umfusetesting ro," /proc/self/mounts
umount "$1"
"#;

/// Runs this program again as an ordinary user: with fusermount3, without the right to open the device, and in a user
/// namespace without it.
fn users_can_do_it_too() {
    if !is_root() || std::env::var_os(HOW).is_some() {
        return;
    }
    for how in ["user", "closed", "userns"] {
        common::run_as_user(how);
    }
}
