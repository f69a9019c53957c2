//! What the tests of this folder share: disks of files and of memory, mounting, a walk of the whole tree, and programs
//! that make images. A program that is missing skips the test, counted on standard error; in CI it fails it.

#![allow(clippy::unwrap_used, clippy::panic, reason = "test code")]
#![allow(dead_code, reason = "each test program uses its own part")]

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::{OsStr, OsString};
use std::fs;
use std::ops::ControlFlow;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;

use veduta_api::{
    Attr, BlockDevice, DirEntry, Disk, Errno, Filesystem, Geometry, Ino, Kind, Link, Module, MountError,
    Object, OpenFlags, Options, Request, Result, World,
};
use veduta_iso9660::Iso9660;

/// Whether all programs are there. If not: a skip, or a failure in CI.
pub(crate) fn have(programs: &[&str]) -> bool {
    let is_there = |name: &&str| {
        std::env::var_os("PATH")
            .is_some_and(|path| std::env::split_paths(&path).any(|dir| dir.join(name).is_file()))
    };
    let missing: Vec<_> = programs.iter().filter(|name| !is_there(name)).collect();
    if missing.is_empty() {
        return true;
    }
    assert!(std::env::var_os("CI").is_none(), "missing: {missing:?}");
    eprintln!("SKIP: missing {missing:?}");
    false
}

/// Runs a program with words that are split at spaces; fails the test if it fails. Says what it printed.
pub(crate) fn run(dir: &Path, line: &str) -> String {
    let mut words = line.split(' ').filter(|word| !word.is_empty());
    let program = words.next().unwrap();
    let output = Command::new(program)
        .args(words)
        .current_dir(dir)
        .env("TZ", "UTC")
        .env("LC_ALL", "C.UTF-8")
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success(), "{line}\n{text}\n{}", String::from_utf8_lossy(&output.stderr));
    text
}

pub(crate) struct Memory(pub(crate) Vec<u8>);

impl BlockDevice for Memory {
    fn geometry(&self) -> Geometry {
        Geometry { read_only: true, ..Geometry::of_size(self.0.len() as u64) }
    }
    fn read_at(&self, buf: &mut [u8], offset: u64) -> Result<()> {
        buf.copy_from_slice(&self.0[offset as usize..][..buf.len()]);
        Ok(())
    }
}

pub(crate) struct FileDisk(pub(crate) fs::File);

impl BlockDevice for FileDisk {
    fn geometry(&self) -> Geometry {
        Geometry { read_only: true, ..Geometry::of_size(self.0.metadata().unwrap().len()) }
    }
    fn read_at(&self, buf: &mut [u8], offset: u64) -> Result<()> {
        self.0.read_exact_at(buf, offset).map_err(|_| Errno::EIO)
    }
}

struct OneDisk(Disk);

impl World for OneDisk {
    fn disk(&self, _: &OsStr, _: bool) -> Result<Disk, MountError> {
        Ok(self.0.clone())
    }
    fn tree(&self, _: &OsStr) -> Result<(Arc<dyn Filesystem>, Ino), MountError> {
        Err(MountError::usage("no trees here"))
    }
    fn link(&self, _: &OsStr) -> Result<Arc<dyn Link>, MountError> {
        Err(MountError::usage("no links here"))
    }
}

pub(crate) fn file_disk(path: &Path) -> Disk {
    Disk::new(Arc::new(FileDisk(fs::File::open(path).unwrap())), path.display().to_string())
}

pub(crate) fn memory_disk(bytes: Vec<u8>) -> Disk {
    Disk::new(Arc::new(Memory(bytes)), "memory")
}

pub(crate) fn try_mount(disk: Disk, options: &str) -> Result<Arc<dyn Filesystem>, MountError> {
    let world = OneDisk(disk);
    let options = Options::parse(options).unwrap();
    options.check(Iso9660.options())?;
    let mut request = Request { source: OsStr::new("image"), options, read_only: true, world: &world };
    match Iso9660.mount(&mut request)? {
        Object::Tree(tree) => Ok(tree),
        other => panic!("not a tree: {other:?}"),
    }
}

pub(crate) fn mount(path: &Path, options: &str) -> Arc<dyn Filesystem> {
    try_mount(file_disk(path), options).unwrap()
}

/// A listed entry, owned.
#[derive(Clone, Debug)]
pub(crate) struct Row {
    pub(crate) name: OsString,
    pub(crate) ino: Option<Ino>,
    pub(crate) st_ino: u64,
    pub(crate) kind: Option<Kind>,
    pub(crate) next: u64,
}

impl Row {
    pub(crate) fn as_entry(&self) -> DirEntry<'_> {
        DirEntry { name: &self.name, ino: self.ino, st_ino: self.st_ino, kind: self.kind, next: self.next }
    }
}

/// Lists a directory, `batch` entries a call.
pub(crate) fn list(tree: &dyn Filesystem, dir: Ino, batch: usize) -> Result<Vec<Row>> {
    let mut rows: Vec<Row> = Vec::new();
    loop {
        let position = rows.last().map_or(0, |row| row.next);
        let before = rows.len();
        tree.readdir(dir, position, &mut |entry| {
            if rows.len() == before + batch {
                return ControlFlow::Break(());
            }
            let DirEntry { name, ino, st_ino, kind, next } = entry;
            rows.push(Row { name: name.to_owned(), ino, st_ino, kind, next });
            ControlFlow::Continue(())
        })?;
        if rows.len() == before {
            return Ok(rows);
        }
    }
}

/// All content of a file, read in pieces of `step` bytes.
pub(crate) fn content(tree: &dyn Filesystem, ino: Ino, step: usize) -> Result<Vec<u8>> {
    let file = tree.open(ino, OpenFlags::READ)?;
    let mut all = Vec::new();
    let mut piece = vec![0; step];
    loop {
        let len = file.read_at(&mut piece, all.len() as u64)?;
        all.extend_from_slice(&piece[..len]);
        if len == 0 {
            return Ok(all);
        }
    }
}

/// A node as the tests compare it.
#[derive(Clone, Debug)]
pub(crate) struct Found {
    pub(crate) ino: Ino,
    pub(crate) attr: Attr,
    pub(crate) target: OsString,
}

/// Everything below the root, by path. Checks on the way that all ways to a node tell the same of it.
pub(crate) fn walk(tree: &dyn Filesystem) -> BTreeMap<PathBuf, Found> {
    let mut found = BTreeMap::new();
    let mut left = vec![(PathBuf::new(), Ino::ROOT)];
    while let Some((path, dir)) = left.pop() {
        for row in list(tree, dir, 7).unwrap() {
            let entry = tree.entry(dir, &row.as_entry()).unwrap();
            let looked_up = tree.lookup(dir, &row.name).unwrap();
            let attr = entry.attr;
            assert_eq!((entry.ino, attr), (looked_up.ino, looked_up.attr), "{path:?}/{:?}", row.name);
            assert_eq!(tree.getattr(entry.ino), Ok(attr), "{path:?}/{:?}", row.name);
            assert_eq!((row.ino, row.kind), (Some(entry.ino), Some(attr.kind)));
            assert_eq!(row.st_ino, attr.st_ino);
            let path = path.join(&row.name);
            let mut target = OsString::new();
            match attr.kind {
                Kind::Directory => {
                    assert_eq!(tree.parent(entry.ino), Ok(dir));
                    left.push((path.clone(), entry.ino));
                }
                Kind::Symlink => target = tree.readlink(entry.ino).unwrap(),
                _ => {}
            }
            assert!(found.insert(path, Found { ino: entry.ino, attr, target }).is_none(), "a name twice");
        }
    }
    found
}

/// Every path below a directory of the host system, sorted.
pub(crate) fn host_paths(root: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut left = vec![root.to_owned()];
    while let Some(dir) = left.pop() {
        for entry in fs::read_dir(&dir).unwrap() {
            let path = entry.unwrap().path();
            if path.symlink_metadata().unwrap().is_dir() {
                left.push(path.clone());
            }
            found.push(path.strip_prefix(root).unwrap().to_owned());
        }
    }
    found.sort();
    found
}

pub(crate) fn is_root() -> bool {
    fs::metadata("/proc/self").unwrap().uid() == 0
}

/// Checks that a tree is the same as a directory: names, types, modes, owners, sizes, times, targets, devices, content,
/// and which names are the same file.
pub(crate) fn assert_same(tree: &dyn Filesystem, root: &Path, with_links: bool) {
    let found = walk(tree);
    assert_same_names(found.keys(), root);
    let mut same_file: BTreeMap<u64, (u64, PathBuf)> = BTreeMap::new();
    for (path, Found { ino, attr, target }) in &found {
        let host = root.join(path);
        let meta = host.symlink_metadata().unwrap();
        assert_eq!(attr.mode(), meta.mode(), "mode of {path:?}: {:o} {:o}", attr.mode(), meta.mode());
        // Owner and time of a symbolic link are not restored.
        if is_root() && attr.kind != Kind::Symlink {
            assert_eq!((attr.uid, attr.gid), (meta.uid(), meta.gid()), "owner of {path:?}");
        }
        if attr.kind != Kind::Symlink {
            assert_eq!(attr.mtime.seconds, meta.mtime(), "time of {path:?}");
        }
        match attr.kind {
            Kind::File => {
                assert_eq!(attr.size, meta.size(), "size of {path:?}");
                let ours = content(tree, *ino, 100_000).unwrap();
                assert!(ours == fs::read(&host).unwrap(), "content of {path:?}");
            }
            Kind::Symlink => assert_eq!(*target, fs::read_link(&host).unwrap(), "target of {path:?}"),
            Kind::CharDevice | Kind::BlockDevice => {
                assert!(meta.file_type().is_char_device() || meta.file_type().is_block_device());
                let rdev = meta.rdev();
                let (major, minor) =
                    ((rdev >> 8 & 0xfff) as u32, (rdev & 0xff | rdev >> 12 & 0xfff00) as u32);
                assert_eq!((attr.rdev.major, attr.rdev.minor), (major, minor), "device {path:?}");
            }
            _ => {}
        }
        if with_links && attr.kind != Kind::Directory {
            assert_eq!(u64::from(attr.nlink), meta.nlink(), "links of {path:?}");
            let (host_ino, other) = same_file.entry(attr.st_ino).or_insert((meta.ino(), path.clone()));
            assert_eq!(*host_ino, meta.ino(), "{path:?} and {other:?} have one number");
        }
    }
}

fn assert_same_names<'a>(ours: impl Iterator<Item = &'a PathBuf>, root: &Path) {
    let ours: BTreeSet<_> = ours.cloned().collect();
    let theirs: BTreeSet<_> = host_paths(root).into_iter().collect();
    let differences: Vec<_> = ours.symmetric_difference(&theirs).collect();
    assert!(differences.is_empty(), "only one side has {differences:?}");
}

/// Checks that a tree that has no modes, owners and links has the names and the content of a directory.
pub(crate) fn assert_same_content(tree: &dyn Filesystem, root: &Path) {
    let found = walk(tree);
    assert_same_names(found.keys(), root);
    for (path, Found { ino, attr, .. }) in &found {
        let meta = root.join(path).symlink_metadata().unwrap();
        assert_eq!(attr.kind == Kind::Directory, meta.is_dir(), "{path:?}");
        assert_eq!(attr.mtime.seconds, meta.mtime(), "time of {path:?}");
        if meta.is_file() {
            assert!(content(tree, *ino, 4096).unwrap() == fs::read(root.join(path)).unwrap(), "{path:?}");
        }
    }
}

pub(crate) fn read(tree: &dyn Filesystem, path: &str) -> Vec<u8> {
    content(tree, find(tree, path).ino, 1 << 16).unwrap()
}

pub(crate) fn find(tree: &dyn Filesystem, path: &str) -> veduta_api::Entry {
    let mut entry = None;
    let mut dir = Ino::ROOT;
    for name in Path::new(path) {
        let found = tree.lookup(dir, name).unwrap_or_else(|errno| panic!("{path}: {name:?}: {errno}"));
        dir = found.ino;
        entry = Some(found);
    }
    entry.unwrap()
}

pub(crate) fn bytes_of(name: &Path) -> &[u8] {
    name.as_os_str().as_bytes()
}

/// Numbers that look random and are the same for the same seed (xorshift64*).
pub(crate) struct Random(pub(crate) u64);

impl Random {
    pub(crate) fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    pub(crate) fn below(&mut self, end: usize) -> usize {
        (self.next() % end as u64) as usize
    }

    pub(crate) fn bytes(&mut self, len: usize) -> Vec<u8> {
        (0..len).map(|_| self.next() as u8).collect()
    }
}

/// A directory with one of everything that Rock Ridge can hold.
pub(crate) fn make_tree(root: &Path) {
    use std::os::unix::fs::{PermissionsExt, symlink};
    let mut random = Random(7);
    let write = |name: &str, bytes: &[u8]| fs::write(root.join(name), bytes).unwrap();
    fs::create_dir_all(root.join("dir/empty")).unwrap();
    write("empty", b"");
    write("one", b"1");
    write("sector", &random.bytes(2048));
    write("large", &random.bytes(1_234_567));
    write("UPPER.TXT", b"upper");
    write("two words & more; ok.txt", b"odd");
    write("Grüße-日本語.txt", "ü".as_bytes());
    write(&format!("dir/{}", "n".repeat(200)), b"long name");
    write(&format!("dir/{}", "m".repeat(255)), b"longest name");
    symlink("one", root.join("link")).unwrap();
    symlink("/usr/../dir/./x", root.join("dir/absolute")).unwrap();
    // libisofs takes no targets of more than 1024 bytes.
    symlink(format!("{}/{}/end", "a".repeat(240), "../b/".repeat(140)), root.join("dir/far")).unwrap();
    symlink("l".repeat(248), root.join("dir/longpart")).unwrap();
    fs::hard_link(root.join("large"), root.join("dir/same")).unwrap();
    let many = root.join("many");
    fs::create_dir(&many).unwrap();
    for number in 0..300 {
        fs::write(many.join(format!("file number {number}")), number.to_string()).unwrap();
    }
    let deep = root.join("1/2/3/4/5/6/7/8/9/10/11");
    fs::create_dir_all(&deep).unwrap();
    fs::write(deep.join("bottom"), b"deep").unwrap();
    fs::write(root.join("1/2/3/4/5/6/7/8/side"), b"side").unwrap();
    for (name, mode) in [("one", 0o4755), ("empty", 0o600), ("dir", 0o1777), ("sector", 0o2070)] {
        fs::set_permissions(root.join(name), PermissionsExt::from_mode(mode)).unwrap();
    }
    let at = |line: &str| run(root, line);
    at("mkfifo fifo");
    if is_root() {
        make_devices(root);
        at("chown 1234:70000 one");
        at("chown -h 7:8 link");
    }
    at("touch -d 1999-12-31T23:59:59Z one");
    at("touch -d 1965-01-01T00:00:00Z empty");
    // Not much ahead of now: genisoimage writes such times with a zone that is a day off, which xorriso believes.
    at("touch -d 2027-06-01T12:00:00Z sector dir/empty");
}

/// A temporary directory with `make_tree`'s tree in `tree`.
pub(crate) fn scratch() -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    let tree = dir.path().join("tree");
    fs::create_dir(&tree).unwrap();
    make_tree(&tree);
    dir
}

pub(crate) const DEVICES: [&str; 4] = ["char", "block", "bigminor", "bigmajor"];

/// Needs to be root.
pub(crate) fn make_devices(dir: &Path) {
    for (name, numbers) in DEVICES.into_iter().zip(["c 5 1", "b 8 17", "c 10 300", "b 259 7"]) {
        run(dir, &format!("mknod {name} {numbers}"));
    }
}

/// The same, without what genisoimage never comes to an end with: a target that needs several
/// fields; and without devices, whose numbers it writes so that xorriso
/// cannot restore them.
pub(crate) fn scratch_for_genisoimage() -> tempfile::TempDir {
    let dir = scratch();
    let tree = dir.path().join("tree");
    fs::remove_file(tree.join("dir/far")).unwrap();
    if is_root() {
        for name in DEVICES {
            fs::remove_file(tree.join(name)).unwrap();
        }
    }
    dir
}

/// Extracts an image with xorriso into a new directory.
pub(crate) fn extract(dir: &Path, image: &str, more: &str) -> PathBuf {
    let to = dir.join(format!("extracted-{image}"));
    run(dir, &format!("xorriso {more} -osirrox on:device_files -indev {image} -extract / {}", to.display()));
    to
}
