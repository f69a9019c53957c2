//! Image files of the host: bytes, holes, windows, locks, and what is said when one cannot be used.
//!
//! Some need `sfdisk`, `qemu-img` or the usual compressors. In CI a missing one is a failure, elsewhere a skip.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test says by a panic what is wrong")]

use std::fs::{self, File};
use std::io::Write;
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt};
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::sync::Arc;

use tempfile::TempDir;
use veduta_api::{Disk, Errno, MountError, Options, World};
use veduta_disk::{HostWorld, RawDisk, list_partitions, lock_image, partitions_of};

const MIB: u64 = 1 << 20;

/// A directory for images, gone with its guard.
struct Images(TempDir);

impl Images {
    fn new() -> Self {
        Self(TempDir::new().unwrap())
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn write(&self, name: &str, content: &[u8]) -> PathBuf {
        fs::write(self.path(name), content).unwrap();
        self.path(name)
    }

    /// A disk of 8 MiB with partitions 1 and 3, each of which starts with its number.
    fn partitioned(&self, name: &str) -> PathBuf {
        let path = self.write(name, &[]);
        let file = File::options().write(true).open(&path).unwrap();
        file.set_len(8 * MIB).unwrap();
        run(
            // sfdisk ends with sync(2), which waits for every disk of the machine; eatmydata leaves that out.
            "eatmydata",
            &["sfdisk", "-q", path.to_str().unwrap()],
            "label: dos\n1: start=2048, size=2048\n3: start=8192, size=4096, type=82\n",
        );
        file.write_all_at(b"one", MIB).unwrap();
        file.write_all_at(b"three", 4 * MIB).unwrap();
        path
    }

    fn disk(&self, source: &str, options: &str) -> Result<Disk, MountError> {
        let mut options = Options::parse(options).unwrap();
        HostWorld::from_options(&mut options).unwrap().disk(self.path(source).as_os_str(), true)
    }

    fn refusal(&self, source: &str, options: &str) -> String {
        self.disk(source, options).unwrap_err().message
    }
}

/// Whether the programs that a test needs are there.
fn installed(programs: &[&str]) -> bool {
    let missing = programs.iter().find(|program| {
        let found =
            Command::new(program).arg("--version").stdout(Stdio::null()).stderr(Stdio::null()).status();
        found.is_err()
    });
    if let Some(program) = missing {
        assert!(std::env::var_os("CI").is_none(), "{program} is not installed");
        eprintln!("skip - {program} is not installed");
    }
    missing.is_none()
}

fn run(program: &str, arguments: &[&str], input: &str) {
    let mut command = Command::new(program);
    command.args(arguments).stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::null());
    let mut child = command.spawn().unwrap_or_else(|error| panic!("{program} is needed: {error}"));
    child.stdin.take().unwrap().write_all(input.as_bytes()).unwrap();
    assert!(child.wait().unwrap().success(), "{program} {arguments:?}");
}

fn raw(file: File) -> Disk {
    Disk::new(Arc::new(RawDisk::new(file, true).unwrap()), "raw")
}

#[test]
fn bytes_go_to_the_file_and_come_back() {
    let images = Images::new();
    let path = images.write("disk.img", &[7; 5000]);
    let disk = images.disk("disk.img", "").unwrap();
    assert_eq!((disk.size(), disk.is_read_only()), (5000, false));
    disk.write_at(b"here", 4996).unwrap();
    assert_eq!(disk.read_vec(4990, 10).unwrap(), b"\x07\x07\x07\x07\x07\x07here");
    assert_eq!(disk.write_at(b"x", 5000), Err(Errno::EINVAL));
    disk.flush().unwrap();
    assert_eq!(fs::read(path).unwrap()[4996..], *b"here");
    assert!(disk.backing().is_some_and(|(_, offset)| offset == 0));
}

#[test]
fn an_image_that_was_cut_short_gives_an_error_and_no_zeros() {
    let images = Images::new();
    let path = images.write("disk.img", &[7; 5000]);
    let disk = images.disk("disk.img", "").unwrap();
    File::options().write(true).open(path).unwrap().set_len(100).unwrap();
    assert_eq!(disk.read_vec(50, 100), Err(Errno::EIO));
}

#[test]
fn holes_are_found_made_and_read_as_zeros() {
    let file = tempfile::tempfile().unwrap();
    file.set_len(8 * MIB).unwrap();
    file.write_all_at(&[1; 65536], MIB).unwrap();
    let blocks = || file.metadata().unwrap().blocks();
    let disk = raw(file.try_clone().unwrap());
    assert_eq!(disk.next_data(0), Ok(Some(MIB..MIB + 65536)));
    assert_eq!(disk.next_data(MIB + 65536), Ok(None));
    let before = blocks();
    disk.discard(MIB, 32768).unwrap();
    assert!(blocks() < before, "a discard gives space back");
    assert_eq!(disk.next_data(0), Ok(Some(MIB + 32768..MIB + 65536)));
    disk.write_zeroes(MIB + 32768, 100).unwrap();
    assert_eq!(disk.read_vec(MIB + 32768, 101).unwrap(), [vec![0; 100], vec![1]].concat());
    assert_eq!(disk.size(), file.metadata().unwrap().len(), "nothing changes the size");
}

#[test]
fn a_window_starts_at_its_offset() {
    let images = Images::new();
    images.write("disk.img", &(0..=255).collect::<Vec<u8>>());
    let disk = images.disk("disk.img", "offset=16,sizelimit=32").unwrap();
    assert_eq!((disk.size(), disk.read_vec(0, 2).unwrap()), (32, vec![16, 17]));
    assert_eq!(disk.backing().unwrap().1, 16);
    drop(disk);
    assert_eq!(images.disk("disk.img", "offset=200").unwrap().size(), 56);
    for outside in ["offset=256", "offset=1K", "offset=250,sizelimit=7", "sizelimit=0"] {
        assert!(images.refusal("disk.img", outside).contains("which has 256 bytes"), "{outside}");
    }
}

#[test]
fn a_partition_is_named_by_a_number_behind_its_disk() {
    if !installed(&["eatmydata", "sfdisk"]) {
        return;
    }
    let images = Images::new();
    images.partitioned("disk.img");
    let third = images.disk("disk.img#3", "").unwrap();
    assert_eq!((third.size(), third.read_vec(0, 5).unwrap()), (2 * MIB, b"three".to_vec()));
    assert!(third.name().ends_with("/disk.img#3"), "{}", third.name());
    drop(third);
    assert_eq!(images.disk("disk.img", "partition=1").unwrap().read_vec(0, 3).unwrap(), b"one");
    let message = images.refusal("disk.img#2", "");
    assert_eq!(message, "there is no partition 2; there are 1 (Linux, 1.0 MiB), 3 (Linux swap, 2.0 MiB)");
    assert!(images.refusal("disk.img#3", "partition=1").contains("twice"));
    let table = partitions_of(&images.disk("disk.img", "").unwrap()).unwrap().unwrap();
    assert!(list_partitions(&table).starts_with("1 (Linux"));
    assert_eq!(images.disk("disk.img", "sector=4096").unwrap().geometry().logical_sector, 4096);
}

#[test]
fn a_file_that_is_called_like_a_partition_is_the_file() {
    if !installed(&["eatmydata", "sfdisk"]) {
        return;
    }
    let images = Images::new();
    images.partitioned("disk.img");
    images.write("disk.img#3", b"the file");
    assert_eq!(images.disk("disk.img#3", "").unwrap().size(), 8);
    images.write("plain", &[0; 4096]);
    assert_eq!(images.refusal("plain#1", ""), "there is no partition 1: the disk has no partition table");
    assert_eq!(images.refusal("gone#1", ""), "there is no such file or directory");
}

#[test]
fn what_cannot_be_a_disk_is_called_by_its_name() {
    let images = Images::new();
    fs::create_dir(images.path("directory")).unwrap();
    images.write("empty", &[]);
    std::os::unix::fs::symlink("nowhere", images.path("link")).unwrap();
    run("mkfifo", &[images.path("pipe").to_str().unwrap()], "");
    images.write("file", b"x");
    for (source, sentence) in [
        ("directory", "it is a directory, where a disk image or a block device is wanted"),
        ("empty", "it is empty"),
        ("link", "it is a symbolic link that leads nowhere"),
        ("pipe", "it is neither a disk image nor a block device"),
        ("file/below", "a part of the path is not a directory"),
        ("missing", "there is no such file or directory"),
    ] {
        assert_eq!(images.refusal(source, ""), sentence, "{source}");
    }
}

#[test]
fn an_image_in_another_form_is_a_disk_and_an_archive_is_called_by_its_name() {
    if !installed(&["qemu-img", "gzip", "xz", "bzip2", "zstd"]) {
        return;
    }
    let images = Images::new();
    let content = images.write("raw", &[b'a'; 4096]);
    for (program, ending) in [("gzip", "gz"), ("xz", "xz"), ("zstd", "zst")] {
        run(program, &["-kq", content.to_str().unwrap()], "");
        let disk = images.disk(&format!("raw.{ending}"), "").unwrap();
        assert_eq!(
            (disk.read_vec(0, 4096).unwrap(), disk.is_read_only()),
            (vec![b'a'; 4096], true),
            "{ending}"
        );
        assert_eq!(
            images.disk(&format!("raw.{ending}"), "format=raw").unwrap().read_vec(0, 1).unwrap().len(),
            1
        );
    }
    run("bzip2", &["-kq", content.to_str().unwrap()], "");
    let message = images.refusal("raw.bz2", "");
    assert!(message.contains("it is a bzip2 file") && message.contains("-d"), "{message}");
    for format in ["qcow2", "vdi", "vmdk", "vpc", "vhdx"] {
        let path = images.path(format);
        run("qemu-img", &["create", "-q", "-f", format, path.to_str().unwrap(), "4M"], "");
        let disk = images.disk(format, "sector=4096").unwrap();
        assert!(disk.size() >= 4 << 20 && !disk.is_read_only(), "{format}");
        assert_eq!(disk.geometry().logical_sector, 4096);
        disk.write_at(b"here", 1 << 20).unwrap();
        drop(disk);
        assert_eq!(images.disk(format, "offset=1M").unwrap().read_vec(0, 4).unwrap(), b"here", "{format}");
        assert_eq!(images.disk(format, "").unwrap().read_vec(1 << 20, 4).unwrap(), b"here", "{format}");
    }
    assert!(images.disk("raw", "").is_ok());
}

#[test]
fn what_is_written_to_a_snapshot_is_thrown_away() {
    let images = Images::new();
    let path = images.write("disk.img", &[7; 100_000]);
    let disk = images.disk("disk.img", "snapshot").unwrap();
    disk.write_at(b"here", 70_000).unwrap();
    assert_eq!(disk.read_vec(69_998, 8).unwrap(), b"\x07\x07here\x07\x07");
    disk.flush().unwrap();
    drop(disk);
    assert_eq!(fs::read(path).unwrap(), [7; 100_000]);
}

#[test]
fn an_image_that_may_not_be_written_is_a_read_only_disk() {
    let images = Images::new();
    let path = images.write("disk.img", &[0; 512]);
    fs::set_permissions(&path, fs::Permissions::from_mode(0o400)).unwrap();
    if nix::unistd::geteuid().is_root() {
        eprintln!("skip - root may write everything");
        return;
    }
    let disk = images.disk("disk.img", "").unwrap();
    assert_eq!(disk.write_at(&[1], 0), Err(Errno::EROFS));
    drop(disk);
    fs::set_permissions(&path, fs::Permissions::from_mode(0o200)).unwrap();
    let message = images.refusal("disk.img", "");
    assert!(message.contains("it belongs to") && message.contains("with mode 0200"), "{message}");
    fs::create_dir(images.path("closed")).unwrap();
    fs::set_permissions(images.path("closed"), fs::Permissions::from_mode(0o000)).unwrap();
    let message = images.refusal("closed/disk.img", "");
    assert!(message.contains("may not go into a directory"), "{message}");
}

#[test]
fn one_writer_or_many_readers_have_an_image() {
    let images = Images::new();
    let path = images.write("disk.img", &[0; 512]);
    let open = |writable| HostWorld::default().disk(path.as_os_str(), writable);
    let (first, second) = (open(false).unwrap(), open(false).unwrap());
    let error = open(true).unwrap_err();
    assert_eq!(error.errno, Errno::EBUSY);
    assert_eq!(error.message, "it is in use by this same program, and cannot be written at the same time");
    drop((first, second));
    let writer = soon(|| open(true));
    let clone = writer.clone();
    drop(writer);
    assert!(open(true).is_err(), "a clone is the same disk");
    assert!(open(false).unwrap_err().message.starts_with("it is being written by this same program"));
    drop(clone);
    soon(|| open(true));
}

/// A process that another test starts just now has our locks until it has become another program.
fn soon<T>(open: impl Fn() -> Result<T, MountError>) -> T {
    for _ in 0..200 {
        if let Ok(done) = open() {
            return done;
        }
        std::thread::sleep(std::time::Duration::from_millis(10));
    }
    open().map_err(|error| error.message).unwrap()
}

#[test]
fn the_holder_of_an_image_is_named_also_when_it_is_a_child_of_the_one_that_locked() {
    let images = Images::new();
    let path = images.write("disk.img", &[0; 512]);
    let script = format!("exec 9<>'{}'; flock -n 9 || exit 1; sleep 60 & echo $!", path.display());
    let parent = Command::new("sh").args(["-c", &script]).stdin(Stdio::null()).stdout(Stdio::piped()).spawn();
    let mut parent = parent.unwrap();
    let mut line = String::new();
    std::io::BufRead::read_line(&mut std::io::BufReader::new(parent.stdout.take().unwrap()), &mut line)
        .unwrap();
    parent.wait().unwrap();
    let pid = line.trim();
    let message = HostWorld::default().disk(path.as_os_str(), true).unwrap_err().message;
    run("kill", &[pid], "");
    // It may still be called sh: its number is there before it became sleep.
    assert!(message.contains(&format!("(process {pid})")), "{message}");
}

#[test]
fn a_directory_is_a_source_as_a_tree() {
    let images = Images::new();
    let path = images.write("file", b"text");
    let (tree, root) = HostWorld::default().tree(images.0.path().as_os_str()).unwrap();
    assert_eq!(tree.lookup(root, "file".as_ref()).unwrap().attr.size, 4);
    let error = HostWorld::default().tree(path.as_os_str()).err().unwrap();
    assert_eq!(error.message, "it is not a directory, and a directory is wanted");
    let error = HostWorld::default().tree(images.path("gone").as_os_str()).err().unwrap();
    assert_eq!(error.message, "there is no such file or directory");
}

#[test]
fn a_lock_of_a_file_that_was_closed_is_gone() {
    let file = tempfile::NamedTempFile::new().unwrap();
    let first = file.reopen().unwrap();
    lock_image(&first, true).unwrap();
    drop(first);
    lock_image(&file.reopen().unwrap(), true).unwrap();
}

/// A loop device, gone with its guard.
struct Loop(String);

impl Drop for Loop {
    fn drop(&mut self) {
        run("losetup", &["-d", &self.0], "");
    }
}

/// Wants root and loop devices; a CI runner without them skips it too.
#[test]
fn a_block_device_has_the_shape_that_the_kernel_says() {
    let images = Images::new();
    images.write("disk.img", &vec![7; MIB as usize]);
    let made = Command::new("losetup")
        .args(["--sector-size", "4096", "-f", "--show"])
        .arg(images.path("disk.img"))
        .output();
    let Some(made) = made.ok().filter(|made| made.status.success()) else {
        eprintln!("skip - no loop device can be had");
        return;
    };
    let device = Loop(String::from_utf8(made.stdout).unwrap().trim().to_owned());
    let open = || HostWorld::default().disk(device.0.as_ref(), true);
    let disk = open().unwrap();
    let geometry = disk.geometry();
    assert_eq!((geometry.size, geometry.logical_sector, geometry.read_only), (MIB, 4096, false));
    assert_eq!(open().unwrap_err().errno, Errno::EBUSY);
    disk.write_zeroes(4096, 8192).unwrap();
    disk.write_zeroes(100, 10).unwrap();
    disk.discard(65_536 - 10, 4096 + 20).unwrap();
    disk.flush().unwrap();
    let bytes = disk.read_vec(0, 100_000).unwrap();
    let zero = |at: usize| bytes[at] == 0;
    assert!(
        (100..110).chain(4096..12_288).all(zero) && !zero(99) && !zero(110) && !zero(4095) && !zero(12_288)
    );
    assert!(
        (65_526..65_536).chain(69_632..69_642).all(|at| bytes[at] == 7),
        "a discard touches only whole sectors"
    );
    assert_eq!(disk.next_data(5), Ok(Some(5..MIB)));
    drop(disk);
}
