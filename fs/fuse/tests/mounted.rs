//! Trees mounted by this process. Each test needs `/dev/fuse` and the right to mount (root, or a user namespace), and is skipped
//! without, except in CI.

#![allow(clippy::panic, clippy::unwrap_used)]

mod common;

use std::collections::BTreeSet;
use std::ffi::CString;
use std::fs::{self, File, OpenOptions};
use std::io::{ErrorKind, Read, Seek as _, SeekFrom, Write};
use std::os::fd::AsRawFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{DirEntryExt, FileExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, UNIX_EPOCH};

use common::{Memory, ST_INO, Tree, can_mount, count, is_mounted, is_root, until};
use nix::libc;
use nix::poll::{PollFd, PollFlags};
use veduta_api::{Caching, Errno, Facts, FileFlags, Ino, Perm, Ready};
use veduta_fuse::{Mounted, ServeOptions};

/// A mounted tree and where it is. At the end nothing of it may remain.
struct Fixture {
    memory: Arc<Memory>,
    mounted: Option<Mounted>,
    dir: tempfile::TempDir,
}

impl Fixture {
    fn new(facts: Facts, prepare: impl FnOnce(&Memory)) -> Option<Self> {
        Self::with(facts, &ServeOptions::new("memory", "umfusetest"), prepare)
    }

    fn with(facts: Facts, options: &ServeOptions, prepare: impl FnOnce(&Memory)) -> Option<Self> {
        if !can_mount() {
            return None;
        }
        veduta_fuse::log_to_stderr(std::env::var("TEST_LOG").ok().as_deref().or(Some("off")));
        let dir = tempfile::tempdir().unwrap();
        let memory = Memory::new(facts);
        prepare(&memory);
        let mounted = Mounted::new(Arc::new(Tree(memory.clone())), dir.path(), options).unwrap();
        Some(Self { memory, mounted: Some(mounted), dir })
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn unmount(mut self) {
        self.mounted.take().unwrap().unmount().unwrap();
        self.check_gone();
    }

    fn check_gone(&self) {
        assert!(!is_mounted(self.dir.path()));
        assert_eq!(count(&self.memory.counts.unmounts), 1);
    }
}

fn immutable() -> Facts {
    Facts { caching: Caching::Immutable, ..Facts::default() }
}

fn shared() -> Facts {
    Facts { caching: Caching::Shared(Duration::ZERO), ..Facts::default() }
}

fn errno<T>(result: std::io::Result<T>) -> Errno {
    Errno::from_raw(result.err().and_then(|error| error.raw_os_error()).unwrap_or(0))
}

fn c(path: &Path) -> CString {
    CString::new(path.as_os_str().as_bytes()).unwrap()
}

/// A system call's value, as a result.
fn check(value: libc::c_long) -> Result<i64, Errno> {
    if value < 0 { Err(Errno::last()) } else { Ok(value) }
}

#[test]
fn users_see_the_trees_inode_numbers_everywhere() {
    let Some(fixture) = Fixture::new(Facts::default(), |memory| {
        memory.add("file", b"x");
    }) else {
        return;
    };
    let root = fs::metadata(fixture.dir.path()).unwrap().ino();
    assert_eq!(root, ST_INO + 1);
    let mut seen = 0;
    for entry in fs::read_dir(fixture.dir.path()).unwrap().map(Result::unwrap) {
        assert_eq!(entry.ino(), fs::symlink_metadata(entry.path()).unwrap().ino());
        assert!(entry.ino() > ST_INO);
        seen += 1;
    }
    assert_eq!(seen, 4);
    assert_eq!(File::open(fixture.path("file")).unwrap().metadata().unwrap().ino(), ST_INO + 5);
    fixture.unmount();
}

#[test]
fn what_cannot_change_is_asked_for_once() {
    let prepare = |memory: &Memory| {
        memory.add("file", &[7; 100_000]);
        memory.add_link("link", "file");
    };
    let Some(fixture) = Fixture::new(immutable(), prepare) else { return };
    let counts = &fixture.memory.counts;
    let mut first = None;
    for _ in 0..5 {
        assert_eq!(fs::read(fixture.path("file")).unwrap(), [7; 100_000]);
        assert_eq!(fs::read_link(fixture.path("link")).unwrap(), Path::new("file"));
        assert_eq!(fs::read_dir(fixture.dir.path()).unwrap().count(), 5);
        assert_eq!(errno(fs::metadata(fixture.path("absent"))), Errno::ENOENT);
        assert!(fs::metadata(fixture.path("file")).unwrap().len() == 100_000);
        let asked = [
            count(&counts.lookups),
            count(&counts.opens),
            count(&counts.opendirs),
            count(&counts.readdirs),
            count(&counts.reads),
            count(&counts.readlinks),
        ];
        assert_eq!(*first.get_or_insert(asked), asked);
    }
    assert_eq!(count(&counts.opens), 1);
    assert_eq!(count(&counts.opendirs), 1);
    assert_eq!(errno(File::create(fixture.path("new"))), Errno::EROFS);
    assert_eq!(errno(OpenOptions::new().write(true).open(fixture.path("file"))), Errno::EROFS);
    fixture.unmount();
}

#[test]
fn what_others_may_change_is_asked_for_again() {
    let Some(fixture) = Fixture::new(shared(), |memory| {
        memory.add("file", b"one");
    }) else {
        return;
    };
    assert_eq!(fs::read(fixture.path("file")).unwrap(), b"one");
    assert_eq!(errno(fs::metadata(fixture.path("later"))), Errno::ENOENT);
    fixture.memory.add("later", b"two");
    assert_eq!(fs::read(fixture.path("later")).unwrap(), b"two");
    assert_eq!(fs::read_dir(fixture.dir.path()).unwrap().count(), 5);
    fixture.memory.add("later still", b"");
    assert_eq!(fs::read_dir(fixture.dir.path()).unwrap().count(), 6);
    fixture.unmount();
}

#[test]
fn content_of_unknown_length_is_read_to_its_end() {
    let prepare = |memory: &Memory| {
        let ino = memory.add("info", b"what is now");
        memory.change(ino, |attr| attr.size = 0);
    };
    let Some(fixture) = Fixture::new(shared(), prepare) else { return };
    assert_eq!(fs::read(fixture.path("info")).unwrap(), b"what is now");
    fixture.unmount();
}

#[test]
fn a_large_directory_is_listed_once_from_any_place() {
    let prepare = |memory: &Memory| {
        for number in 0..5000 {
            memory.add(&format!("{number:05}-{}", "x".repeat(number % 200)), b"");
        }
    };
    let Some(fixture) = Fixture::new(Facts::default(), prepare) else { return };
    let names = || -> Vec<_> {
        fs::read_dir(fixture.dir.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect()
    };
    let first = names();
    assert_eq!(first.len(), 5003);
    assert_eq!(first.iter().collect::<BTreeSet<_>>().len(), 5003);
    assert_eq!(names(), first);
    let mut dir =
        nix::dir::Dir::open(fixture.dir.path(), nix::fcntl::OFlag::O_RDONLY, nix::sys::stat::Mode::empty())
            .unwrap();
    let dots: Vec<_> = dir.iter().take(2).map(|entry| (entry.unwrap().file_name().to_owned(), 0)).collect();
    assert_eq!(dots, [(c".".to_owned(), 0), (c"..".to_owned(), 0)]);
    drop(dir);
    fixture.unmount();
}

#[test]
fn a_tree_is_written_as_any_other() {
    let Some(fixture) = Fixture::new(Facts::default(), |_| {}) else { return };
    let path = |name: &str| fixture.path(name);
    fs::create_dir(path("dir")).unwrap();
    fs::write(path("dir/a"), b"hello").unwrap();
    fs::rename(path("dir/a"), path("b")).unwrap();
    fs::hard_link(path("b"), path("c")).unwrap();
    assert_eq!(fs::metadata(path("c")).unwrap().nlink(), 2);
    std::os::unix::fs::symlink("b", path("link")).unwrap();
    assert_eq!(fs::read(path("link")).unwrap(), b"hello");
    OpenOptions::new().append(true).open(path("b")).unwrap().write_all(b" world").unwrap();
    assert_eq!(fs::read(path("c")).unwrap(), b"hello world");

    let file = File::options().read(true).write(true).open(path("b")).unwrap();
    fs::remove_file(path("b")).unwrap();
    fs::remove_file(path("c")).unwrap();
    file.write_at(b"HELLO", 0).unwrap();
    file.sync_all().unwrap();
    let mut text = String::new();
    (&file).read_to_string(&mut text).unwrap();
    assert_eq!(text, "HELLO world");
    file.set_len(3).unwrap();
    assert_eq!(file.metadata().unwrap().len(), 3);
    drop(file);

    fs::set_permissions(path("dir"), fs::Permissions::from_mode(0o700)).unwrap();
    assert_eq!(fs::metadata(path("dir")).unwrap().mode(), 0o40700);
    assert_eq!(errno(fs::remove_dir(fixture.dir.path().join("absent"))), Errno::ENOENT);
    fs::write(path("dir/x"), b"").unwrap();
    assert_eq!(errno(fs::remove_dir(path("dir"))), Errno::ENOTEMPTY);
    assert_eq!(errno(File::create(path(&"n".repeat(256)))), Errno::ENAMETOOLONG);
    File::create(path(&"n".repeat(255))).unwrap();
    fixture.unmount();
}

#[test]
fn times_before_1970_and_after_2038_survive() {
    let Some(fixture) = Fixture::new(Facts::default(), |memory| {
        memory.add("file", b"");
    }) else {
        return;
    };
    let file = File::options().write(true).open(fixture.path("file")).unwrap();
    let old = UNIX_EPOCH - Duration::new(1_000_000, 250_000_000);
    let far = UNIX_EPOCH + Duration::new(5_000_000_000, 123_456_789);
    file.set_times(fs::FileTimes::new().set_modified(old).set_accessed(far)).unwrap();
    let meta = fs::metadata(fixture.path("file")).unwrap();
    assert_eq!((meta.modified().unwrap(), meta.accessed().unwrap()), (old, far));
    assert_eq!((meta.mtime(), meta.mtime_nsec()), (-1_000_001, 750_000_000));
    assert_eq!(meta.created().unwrap(), UNIX_EPOCH - Duration::new(4, 999_999_993));
    drop(file);
    fixture.unmount();
}

#[test]
fn renames_obey_their_flags() {
    let prepare = |memory: &Memory| {
        memory.add("a", b"a");
        memory.add("b", b"b");
    };
    let Some(fixture) = Fixture::new(Facts::default(), prepare) else { return };
    let rename = |flags: u32| {
        let (from, to) = (c(&fixture.path("a")), c(&fixture.path("b")));
        // SAFETY: both paths are ended by a NUL.
        check(unsafe {
            libc::syscall(
                libc::SYS_renameat2,
                libc::AT_FDCWD,
                from.as_ptr(),
                libc::AT_FDCWD,
                to.as_ptr(),
                flags,
            )
        })
    };
    assert_eq!(rename(libc::RENAME_NOREPLACE), Err(Errno::EEXIST));
    assert_eq!(rename(libc::RENAME_EXCHANGE), Ok(0));
    assert_eq!(fs::read(fixture.path("a")).unwrap(), b"b");
    assert_eq!(fs::read(fixture.path("b")).unwrap(), b"a");
    fixture.unmount();
}

#[test]
fn holes_are_found_also_behind_the_writeback_cache() {
    let Some(fixture) = Fixture::new(Facts::default(), |_| {}) else { return };
    let mut file =
        File::options().read(true).write(true).create_new(true).open(fixture.path("sparse")).unwrap();
    file.write_at(&[1; 4096], 1 << 20).unwrap();
    let seek = |offset: i64, whence| {
        // SAFETY: no memory is involved.
        check(unsafe { libc::lseek(file.as_raw_fd(), offset, whence) })
    };
    // Not synced: what the kernel has and the tree has not must not be taken for a hole.
    let data = seek(0, libc::SEEK_DATA).unwrap();
    assert!(data <= 1 << 20, "data begins at {data}");
    assert!(seek(1 << 20, libc::SEEK_DATA) == Ok(1 << 20));
    assert_eq!(seek((1 << 20) + 4096, libc::SEEK_DATA), Err(Errno::ENXIO));
    file.sync_all().unwrap();
    assert_eq!(file.seek(SeekFrom::End(0)).unwrap(), (1 << 20) + 4096);
    drop(file);
    fixture.unmount();
}

#[test]
fn holes_of_a_tree_that_cannot_change_are_found() {
    let mut data = vec![0; 3 << 20];
    data[1 << 20] = 1;
    let Some(fixture) = Fixture::new(immutable(), |memory| {
        memory.add("sparse", &data);
    }) else {
        return;
    };
    let file = File::open(fixture.path("sparse")).unwrap();
    // SAFETY: no memory is involved.
    let seek = |offset: i64, whence| check(unsafe { libc::lseek(file.as_raw_fd(), offset, whence) });
    assert_eq!(seek(0, libc::SEEK_DATA), Ok(1 << 20));
    assert_eq!(seek(1 << 20, libc::SEEK_HOLE), Ok((1 << 20) + 4096));
    assert_eq!(seek(2 << 20, libc::SEEK_DATA), Err(Errno::ENXIO));
    drop(file);
    fixture.unmount();
}

#[test]
fn space_is_allocated_and_ranges_are_copied() {
    let Some(fixture) = Fixture::new(Facts::default(), |memory| {
        memory.add("a", &[9; 10_000]);
    }) else {
        return;
    };
    let a = File::options().read(true).write(true).open(fixture.path("a")).unwrap();
    let b = File::options().read(true).write(true).create_new(true).open(fixture.path("b")).unwrap();
    nix::fcntl::fallocate(&b, nix::fcntl::FallocateFlags::empty(), 0, 20_000).unwrap();
    assert_eq!(b.metadata().unwrap().len(), 20_000);
    let copied = nix::fcntl::copy_file_range(&a, Some(&mut 0), &b, Some(&mut 5_000), 10_000).unwrap();
    assert_eq!(copied, 10_000);
    let content = fs::read(fixture.path("b")).unwrap();
    assert!(content[..5_000].iter().all(|byte| *byte == 0) && content[5_000..15_000] == [9; 10_000]);
    let punch =
        nix::fcntl::FallocateFlags::FALLOC_FL_PUNCH_HOLE | nix::fcntl::FallocateFlags::FALLOC_FL_KEEP_SIZE;
    nix::fcntl::fallocate(&b, punch, 0, 10_000).unwrap();
    assert!(fs::read(fixture.path("b")).unwrap()[..10_000].iter().all(|byte| *byte == 0));
    let collapse = nix::fcntl::FallocateFlags::FALLOC_FL_COLLAPSE_RANGE;
    assert_eq!(nix::fcntl::fallocate(&b, collapse, 0, 4096), Err(Errno::EOPNOTSUPP));
    drop((a, b));
    fixture.unmount();
}

fn xattr(path: &Path, name: &str) -> Result<Vec<u8>, Errno> {
    let (path, name) = (c(path), CString::new(name).unwrap());
    let mut value = vec![0; 100];
    // SAFETY: the strings are ended by a NUL, and the buffer is as long as it is said to be.
    let len = check(unsafe {
        libc::getxattr(path.as_ptr(), name.as_ptr(), value.as_mut_ptr().cast(), value.len()) as libc::c_long
    })?;
    value.truncate(len as usize);
    Ok(value)
}

fn set_xattr(path: &Path, name: &str, value: &[u8], flags: i32) -> Result<(), Errno> {
    let (path, name) = (c(path), CString::new(name).unwrap());
    // SAFETY: the strings are ended by a NUL, and the buffer is as long as it is said to be.
    check(libc::c_long::from(unsafe {
        libc::setxattr(path.as_ptr(), name.as_ptr(), value.as_ptr().cast(), value.len(), flags)
    }))
    .map(drop)
}

#[test]
fn extended_attributes_are_kept() {
    let Some(fixture) = Fixture::new(Facts::default(), |memory| {
        memory.add("file", b"");
    }) else {
        return;
    };
    let path = fixture.path("file");
    assert_eq!(xattr(&path, "user.a"), Err(Errno::ENODATA));
    set_xattr(&path, "user.a", b"value", libc::XATTR_CREATE).unwrap();
    assert_eq!(set_xattr(&path, "user.a", b"", libc::XATTR_CREATE), Err(Errno::EEXIST));
    assert_eq!(set_xattr(&path, "user.b", b"", libc::XATTR_REPLACE), Err(Errno::ENODATA));
    assert_eq!(xattr(&path, "user.a").unwrap(), b"value");
    let path_c = c(&path);
    let mut list = vec![0u8; 100];
    // SAFETY: the path is ended by a NUL, and the buffer is as long as it is said to be.
    let len = check(unsafe {
        libc::listxattr(path_c.as_ptr(), list.as_mut_ptr().cast(), list.len()) as libc::c_long
    });
    assert_eq!(&list[..len.unwrap() as usize], b"user.a\0");
    // SAFETY: both strings are ended by a NUL.
    check(libc::c_long::from(unsafe { libc::removexattr(path_c.as_ptr(), c"user.a".as_ptr()) })).unwrap();
    assert_eq!(xattr(&path, "user.a"), Err(Errno::ENODATA));
    fixture.unmount();
}

#[test]
fn a_file_without_a_name_can_be_made_and_given_one() {
    let Some(fixture) = Fixture::new(Facts::default(), |_| {}) else { return };
    let mut file = File::options()
        .read(true)
        .write(true)
        .custom_flags(libc::O_TMPFILE)
        .open(fixture.dir.path())
        .unwrap();
    file.write_all(b"no name").unwrap();
    let link = PathBuf::from(format!("/proc/self/fd/{}", file.as_raw_fd()));
    let flags = nix::fcntl::AtFlags::AT_SYMLINK_FOLLOW;
    let here = nix::fcntl::AT_FDCWD;
    nix::unistd::linkat(here, &link, here, &fixture.path("named"), flags).unwrap();
    drop(file);
    assert_eq!(fs::read(fixture.path("named")).unwrap(), b"no name");
    fixture.unmount();
}

#[test]
fn device_numbers_survive() {
    if !is_root() {
        return println!("skip - only root makes devices");
    }
    let Some(fixture) = Fixture::new(Facts::default(), |_| {}) else { return };
    let device = nix::sys::stat::makedev(259, 70_000);
    let mode = nix::sys::stat::Mode::from_bits_truncate(0o600);
    match nix::sys::stat::mknod(&fixture.path("node"), nix::sys::stat::SFlag::S_IFCHR, mode, device) {
        Err(Errno::EPERM) => println!("skip - devices may not be made here"),
        made => {
            made.unwrap();
            let meta = fs::metadata(fixture.path("node")).unwrap();
            assert_eq!((meta.rdev(), meta.mode()), (device, 0o20600));
            assert_eq!(common::device(meta.rdev()).minor, 70_000);
        }
    }
    fixture.unmount();
}

#[test]
fn a_set_group_id_directory_hands_its_group_down() {
    if !is_root() {
        return println!("skip - only root gives files away");
    }
    let Some(fixture) = Fixture::new(Facts::default(), |_| {}) else { return };
    let dir = fixture.path("dir");
    fs::create_dir(&dir).unwrap();
    if std::os::unix::fs::chown(&dir, None, Some(7)).is_err() {
        println!("skip - group 7 is not mapped here");
        return fixture.unmount();
    }
    fs::set_permissions(&dir, fs::Permissions::from_mode(0o2775)).unwrap();
    fs::write(dir.join("file"), b"").unwrap();
    fs::create_dir(dir.join("sub")).unwrap();
    assert_eq!(fs::metadata(dir.join("file")).unwrap().gid(), 7);
    let sub = fs::metadata(dir.join("sub")).unwrap();
    assert_eq!((sub.gid(), sub.mode() & 0o2000), (7, 0o2000));
    fixture.unmount();
}

#[test]
fn whoever_writes_takes_set_user_id_and_capabilities_away() {
    if !is_root() || nix::unistd::setfsuid(nix::unistd::Uid::from_raw(0)).as_raw() != 0 {
        return println!("skip - only root can be somebody else");
    }
    let mut ino = 0;
    let mut options = ServeOptions::new("memory", "umfusetest");
    options.mount.allow = veduta_fuse::Allow::Everyone;
    let prepare = |memory: &Memory| {
        ino = memory.add("file", b"program");
        memory.change(ino, |attr| attr.perm = Perm::from_mode(0o6777));
        memory.set_xattr(ino, "security.capability", b"much");
    };
    let Some(fixture) = Fixture::with(Facts::default(), &options, prepare) else { return };
    fs::set_permissions(fixture.dir.path(), fs::Permissions::from_mode(0o777)).unwrap();
    let path = fixture.path("file");
    let status = Command::new("setpriv")
        .args([
            "--reuid",
            "65534",
            "--regid",
            "65534",
            "--clear-groups",
            "sh",
            "-c",
            "echo changed >> \"$0\"",
        ])
        .arg(&path)
        .status()
        .unwrap();
    if status.success() {
        assert_eq!(fixture.memory.mode(ino) & 0o7777, 0o777);
        assert_eq!(fixture.memory.xattr(ino, "security.capability"), None);
    } else {
        println!("skip - user 65534 is not mapped here");
    }
    fixture.unmount();
}

#[test]
fn a_protected_file_cannot_be_changed() {
    let mut ino = 0;
    let prepare = |memory: &Memory| {
        ino = memory.add("fixed", b"content");
        memory.change(ino, |attr| attr.flags = FileFlags { immutable: true, ..FileFlags::default() });
        let log = memory.add("log", b"line\n");
        memory.change(log, |attr| attr.flags = FileFlags { append_only: true, ..FileFlags::default() });
    };
    let Some(fixture) = Fixture::new(Facts::default(), prepare) else { return };
    let (fixed, log) = (fixture.path("fixed"), fixture.path("log"));
    assert_eq!(fs::read(&fixed).unwrap(), b"content");
    assert_eq!(errno(OpenOptions::new().write(true).open(&fixed)), Errno::EPERM);
    assert_eq!(errno(fs::remove_file(&fixed)), Errno::EPERM);
    assert_eq!(errno(fs::rename(&fixed, fixture.path("other"))), Errno::EPERM);
    assert_eq!(errno(fs::hard_link(&fixed, fixture.path("other"))), Errno::EPERM);
    assert_eq!(errno(fs::set_permissions(&fixed, fs::Permissions::from_mode(0o600))), Errno::EPERM);
    OpenOptions::new().append(true).open(&log).unwrap().write_all(b"more\n").unwrap();
    assert_eq!(errno(OpenOptions::new().write(true).open(&log)), Errno::EPERM);
    assert_eq!(errno(fs::remove_file(&log)), Errno::EPERM);
    let mut flags: libc::c_long = 0;
    let file = File::open(&fixed).unwrap();
    // SAFETY: the request writes one long (the kernel: an int) to where the pointer leads.
    check(libc::c_long::from(unsafe { libc::ioctl(file.as_raw_fd(), libc::FS_IOC_GETFLAGS, &mut flags) }))
        .unwrap();
    assert_eq!(flags & 0xff, 0x10);
    drop(file);
    fixture.unmount();
}

#[test]
fn a_driver_that_panics_costs_one_request() {
    let Some(fixture) = Fixture::new(Facts::default(), |memory| {
        memory.add("file", b"fine");
    }) else {
        return;
    };
    for _ in 0..5 {
        assert_eq!(errno(fs::read(fixture.path("panic"))), Errno::EIO);
        assert_eq!(errno(fs::metadata(fixture.path("panic-name"))), Errno::EIO);
    }
    assert_eq!(fs::read(fixture.path("file")).unwrap(), b"fine");
    fixture.unmount();
}

fn cat(path: &Path) -> std::process::Child {
    Command::new("cat").arg(path).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap()
}

fn signal(child: &std::process::Child, signal: nix::sys::signal::Signal) {
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(child.id() as i32), signal).unwrap();
}

/// Waits for the end of a child, for as long as a slow machine may take.
fn ends(mut child: std::process::Child) {
    for _ in 0..3000 {
        if child.try_wait().unwrap().is_some() {
            return;
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    panic!("the process does not end");
}

#[test]
fn a_reader_that_waits_can_be_interrupted() {
    let Some(fixture) = Fixture::new(shared(), |_| {}) else { return };
    let child = cat(&fixture.path("hang"));
    until("the read has begun", || count(&fixture.memory.counts.stuck) == 1);
    signal(&child, nix::sys::signal::Signal::SIGTERM);
    ends(child);
    fixture.unmount();
}

#[test]
fn a_killed_reader_dies_although_the_driver_hangs() {
    let Some(fixture) = Fixture::new(immutable(), |_| {}) else { return };
    let child = cat(&fixture.path("stuck"));
    until("the read has begun", || count(&fixture.memory.counts.stuck) >= 1);
    signal(&child, nix::sys::signal::Signal::SIGKILL);
    ends(child);
    fixture.memory.release();
    fixture.unmount();
}

#[test]
fn the_reference_of_a_lookup_that_came_too_late_is_given_back() {
    let mut ino = 0;
    let prepare = |memory: &Memory| ino = memory.add("slow-name", b"");
    let Some(fixture) = Fixture::new(shared(), prepare) else { return };
    let child = cat(&fixture.path("slow-name"));
    until("the lookup has begun", || count(&fixture.memory.counts.stuck) == 1);
    signal(&child, nix::sys::signal::Signal::SIGKILL);
    ends(child);
    fixture.memory.release();
    fs::metadata(fixture.path("stuck")).unwrap();
    until("the reference is given back", || fixture.memory.references(ino) == 0);
    fixture.unmount();
}

#[test]
fn an_aborted_connection_leaves_no_mount() {
    if !is_root() {
        return println!("skip - only root aborts connections");
    }
    let Some(mut fixture) = Fixture::new(Facts::default(), |_| {}) else { return };
    let waiter = {
        let mounted = fixture.mounted.take().unwrap();
        std::thread::spawn(move || mounted.wait())
    };
    // -f aborts the connection, and fails to unmount a mount that is in use.
    let busy = File::open(fixture.dir.path()).unwrap();
    let _ = Command::new("umount").arg("-f").arg(fixture.dir.path()).stderr(Stdio::null()).status().unwrap();
    waiter.join().unwrap().unwrap();
    fixture.check_gone();
    drop(busy);
}

#[test]
fn a_driver_that_hangs_leaves_workers_for_others() {
    let prepare = |memory: &Memory| {
        memory.add("file", b"fine");
        for number in 0..12 {
            memory.add(&format!("stuck{number}"), b"x");
        }
    };
    let Some(fixture) = Fixture::new(shared(), prepare) else { return };
    let children: Vec<_> = (0..12).map(|number| cat(&fixture.path(&format!("stuck{number}")))).collect();
    until("all reads have begun", || count(&fixture.memory.counts.stuck) == 12);
    assert_eq!(fs::read(fixture.path("file")).unwrap(), b"fine");
    children.iter().for_each(|child| signal(child, nix::sys::signal::Signal::SIGKILL));
    children.into_iter().for_each(ends);
    fixture.memory.release();
    assert_eq!(fs::read(fixture.path("file")).unwrap(), b"fine");
    fixture.unmount();
}

#[test]
fn references_that_the_kernel_did_not_take_are_given_back() {
    let mut ino = 0;
    let Some(fixture) = Fixture::new(shared(), |memory| ino = memory.add("file", b"")) else { return };
    for _ in 0..10 {
        fs::metadata(fixture.path("file")).unwrap();
        assert_eq!(fs::read_dir(fixture.dir.path()).unwrap().count(), 4);
    }
    assert!(fixture.memory.references(ino) > 0);
    fixture.unmount();
}

#[test]
fn an_unmount_from_outside_is_noticed() {
    let Some(mut fixture) = Fixture::new(Facts::default(), |_| {}) else { return };
    fs::write(fixture.path("file"), b"kept back").unwrap();
    let waiter = {
        let mounted = fixture.mounted.take().unwrap();
        std::thread::spawn(move || mounted.wait())
    };
    assert!(Command::new("umount").arg(fixture.dir.path()).status().unwrap().success());
    waiter.join().unwrap().unwrap();
    fixture.check_gone();
}

#[test]
fn a_mount_over_ours_is_left_alone() {
    if !is_root() {
        return println!("skip - only root mounts a tmpfs");
    }
    let Some(mut fixture) = Fixture::new(Facts::default(), |_| {}) else { return };
    let above = Command::new("mount").args(["-t", "tmpfs", "none"]).arg(fixture.dir.path()).status().unwrap();
    assert!(above.success());
    let error = fixture.mounted.take().unwrap().unmount().unwrap_err();
    assert_eq!(error.errno, Errno::EBUSY);
    assert!(is_mounted(fixture.dir.path()));
    for _ in 0..2 {
        let _ = Command::new("umount").arg("-l").arg(fixture.dir.path()).status();
    }
    assert!(!is_mounted(fixture.dir.path()));
}

#[test]
fn a_mount_in_use_is_taken_out_of_sight() {
    let Some(mut fixture) = Fixture::new(Facts::default(), |memory| {
        memory.add("file", b"x");
    }) else {
        return;
    };
    let file = File::open(fixture.path("file")).unwrap();
    assert_eq!(fixture.mounted.take().unwrap().unmount().unwrap_err().errno, Errno::EBUSY);
    fixture.check_gone();
    let mut byte = [0];
    assert!(file.read_at(&mut byte, 4096).is_err() || byte == [0]);
}

#[test]
fn a_second_mount_of_the_same_source_in_the_same_place_is_refused() {
    let Some(fixture) = Fixture::new(Facts::default(), |_| {}) else { return };
    let again = Mounted::new(
        Arc::new(Tree(Memory::new(Facts::default()))),
        fixture.dir.path(),
        &ServeOptions::new("memory", "umfusetest"),
    );
    assert_eq!(again.err().map(|error| error.errno), Some(Errno::EBUSY));
    fixture.unmount();
}

#[test]
fn files_with_a_backing_file_are_read_and_written_through_it() {
    let host = tempfile::tempdir().unwrap();
    let real = host.path().join("real");
    fs::write(&real, b"backing content").unwrap();
    let facts = Facts { backing: true, ..Facts::default() };
    let Some(fixture) = Fixture::new(facts, |memory| memory.add_backed("file", &real)) else { return };
    let path = fixture.path("file");
    let readers: Vec<_> = (0..4).map(|_| File::open(&path).unwrap()).collect();
    let writer = File::options().write(true).open(&path).unwrap();
    for reader in &readers {
        let mut buf = [0; 15];
        reader.read_exact_at(&mut buf, 0).unwrap();
        assert_eq!(&buf, b"backing content");
    }
    if count(&fixture.memory.counts.reads) == 0 {
        writer.write_at(b"BACKING", 0).unwrap();
        assert_eq!(fs::read(&real).unwrap(), b"BACKING content");
        println!("the kernel reads backing files by itself");
    }
    drop((readers, writer));
    fixture.unmount();
}

#[test]
fn statfs_shows_what_the_tree_says() {
    let Some(fixture) = Fixture::new(Facts::default(), |_| {}) else { return };
    let found = nix::sys::statvfs::statvfs(fixture.dir.path()).unwrap();
    assert_eq!((found.fragment_size(), found.blocks(), found.blocks_available()), (1024, 100, 40));
    assert_eq!(found.name_max(), 255);
    fixture.unmount();
}

#[test]
fn a_synchronous_write_is_synced() {
    let Some(fixture) = Fixture::new(Facts::default(), |memory| {
        memory.add("file", b"");
    }) else {
        return;
    };
    let mut file = File::options().write(true).custom_flags(libc::O_SYNC).open(fixture.path("file")).unwrap();
    file.write_all(b"now").unwrap();
    assert!(count(&fixture.memory.counts.syncs) > 0);
    drop(file);
    fixture.unmount();
}

#[test]
fn what_is_mapped_is_what_is_read() {
    let Some(fixture) = Fixture::new(Facts::default(), |memory| {
        memory.add("file", &[5; 8192]);
    }) else {
        return;
    };
    let out = Command::new("grep").args(["-c", ""]).arg(fixture.path("file")).output().unwrap();
    assert!(out.stderr.is_empty());
    let script = fixture.path("script");
    fs::write(&script, "#!/bin/sh\necho run\n").unwrap();
    fs::set_permissions(&script, fs::Permissions::from_mode(0o755)).unwrap();
    until("the script can be run", || Command::new(&script).output().is_ok());
    assert_eq!(Command::new(&script).output().unwrap().stdout, b"run\n");
    fixture.unmount();
}

#[test]
fn errors_keep_their_kind() {
    let Some(fixture) = Fixture::new(Facts { size_max: 1 << 20, ..Facts::default() }, |_| {}) else { return };
    let file = File::create_new(fixture.path("file")).unwrap();
    assert_eq!(errno(file.set_len((1 << 20) + 1)), Errno::EFBIG);
    assert_eq!(fs::metadata(fixture.path("absent")).unwrap_err().kind(), ErrorKind::NotFound);
    drop(file);
    fixture.unmount();
}

/// A tree that is one file. It has content for whoever waits once it has been written to.
#[derive(Default)]
struct Mailbox {
    mail: std::sync::Mutex<Vec<u8>>,
    waker: std::sync::Mutex<Option<std::task::Waker>>,
}

struct OneFile(Arc<Mailbox>);

impl veduta_api::Filesystem for OneFile {
    fn facts(&self) -> Facts {
        Facts { own_permissions: true, ..shared() }
    }
    fn lookup(&self, _: Ino, _: &std::ffi::OsStr) -> veduta_api::Result<veduta_api::Entry> {
        Err(Errno::ENOTDIR)
    }
    fn getattr(&self, _: Ino) -> veduta_api::Result<veduta_api::Attr> {
        Ok(veduta_api::Attr::new(1, veduta_api::Kind::File, Perm::from_mode(0o666)))
    }
    fn readdir(&self, _: Ino, _: u64, _: &mut veduta_api::DirSink<'_>) -> veduta_api::Result<()> {
        Err(Errno::ENOTDIR)
    }
    fn open(&self, _: Ino, _: veduta_api::OpenFlags) -> veduta_api::Result<Arc<dyn veduta_api::File>> {
        Ok(Arc::new(OneFile(self.0.clone())))
    }
    fn setattr(&self, ino: Ino, _: &veduta_api::SetAttr) -> veduta_api::Result<veduta_api::Attr> {
        self.getattr(ino)
    }
}

impl veduta_api::File for OneFile {
    fn read_at(&self, buf: &mut [u8], offset: u64) -> veduta_api::Result<usize> {
        let mail = self.0.mail.lock().unwrap();
        let rest = mail.get(offset as usize..).unwrap_or_default();
        let len = rest.len().min(buf.len());
        buf[..len].copy_from_slice(&rest[..len]);
        Ok(len)
    }
    fn write_at(&self, buf: &[u8], _: u64) -> veduta_api::Result<usize> {
        self.0.mail.lock().unwrap().extend_from_slice(buf);
        if let Some(waker) = self.0.waker.lock().unwrap().take() {
            waker.wake();
        }
        Ok(buf.len())
    }
    fn ready(&self, interest: Ready, waker: Option<&std::task::Waker>) -> veduta_api::Result<Ready> {
        let readable = interest.readable && !self.0.mail.lock().unwrap().is_empty();
        let ready = Ready { readable, writable: interest.writable, ..Ready::default() };
        if ready.is_none() {
            *self.0.waker.lock().unwrap() = waker.cloned();
        }
        Ok(ready)
    }
}

#[test]
fn a_tree_may_be_one_file_that_one_can_wait_for() {
    if !can_mount() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("mailbox");
    fs::write(&path, "").unwrap();
    let mailbox = Arc::new(Mailbox::default());
    let options = ServeOptions::new("mailbox", "umfusetest");
    let mounted = Mounted::new(Arc::new(OneFile(mailbox.clone())), &path, &options).unwrap();
    let reader = File::open(&path).unwrap();
    let poll = |timeout: u16| {
        let mut fds = [PollFd::new(std::os::fd::AsFd::as_fd(&reader), PollFlags::POLLIN)];
        nix::poll::poll(&mut fds, timeout).unwrap()
    };
    assert_eq!(poll(0), 0);
    std::thread::scope(|scope| {
        let waiter = scope.spawn(|| poll(60_000));
        until("the poller waits", || mailbox.waker.lock().unwrap().is_some());
        fs::write(&path, "mail").unwrap();
        assert_eq!(waiter.join().unwrap(), 1);
    });
    assert_eq!(fs::read(&path).unwrap(), b"mail");
    drop(reader);
    mounted.unmount().unwrap();
    assert_eq!(fs::read(&path).unwrap(), b"");
}

#[test]
fn users_can_do_it_too() {
    if is_root() && std::env::var_os(common::HOW).is_none() && can_mount() {
        common::run_as_user("user");
        common::run_as_user("userns");
    }
}

#[test]
fn no_descriptor_is_left() {
    if !can_mount() {
        return;
    }
    // Other tests of this program run at the same time, so it is started again for this one alone.
    if std::env::var_os(ALONE).is_none() {
        let mut again = Command::new(std::env::current_exe().unwrap());
        let output = again.args(["no_descriptor_is_left", "--exact"]).env(ALONE, "1").output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));
        return;
    }
    let open = || fs::read_dir("/proc/self/fd").unwrap().count();
    let threads = || fs::read_dir("/proc/self/task").unwrap().count();
    let (before, threads_before) = (open(), threads());
    for _ in 0..3 {
        let fixture = Fixture::new(Facts::default(), |_| {}).unwrap();
        fs::write(fixture.path("file"), b"x").unwrap();
        fixture.unmount();
    }
    until("all threads end", || threads() == threads_before);
    until("all descriptors are closed", || open() == before);
}

/// Set: this process runs one test only.
const ALONE: &str = "VEDUTA_TEST_ALONE";

#[test]
fn what_a_close_below_a_host_directory_tells_is_told_above() {
    let Some(below) = Fixture::new(Facts::default(), |memory| {
        memory.add("full", b"");
        memory.add("roomy", b"");
    }) else {
        return;
    };
    let tree = Arc::new(veduta_tree::hostdir::HostDir::open(below.dir.path()).unwrap());
    let above = tempfile::tempdir().unwrap();
    let mounted = Mounted::new(tree, above.path(), &ServeOptions::new("above", "umfusetest")).unwrap();
    for (name, expected) in [("full", Err(Errno::ENOSPC)), ("roomy", Ok(()))] {
        let mut file = File::options().write(true).open(above.path().join(name)).unwrap();
        file.write_all(b"content").unwrap();
        assert_eq!(nix::unistd::close(file), expected, "{name}");
        // Who only reads is told nothing.
        assert_eq!(nix::unistd::close(File::open(above.path().join(name)).unwrap()), Ok(()), "{name}");
    }
    mounted.unmount().unwrap();
    below.unmount();
}
