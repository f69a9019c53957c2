//! Disks in memory, volumes made by others, and short words for what a host does.

use std::ffi::OsStr;
use std::ops::ControlFlow;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use parking_lot::{Mutex, RwLock};
use veduta_api::{
    BlockDevice, Disk, Entry, Errno, File, Filesystem, Geometry, Ino, Kind, Link, Module, MountError,
    NewNode, Object, OpenFlags, Options, Perm, RenameFlags, Request, Result, SetAttr, World,
};
use veduta_fat::Fat;

/// What reached a disk, in order.
#[derive(Clone)]
pub(crate) enum Event {
    Write(u64, Vec<u8>),
    Flush,
}

/// A disk in memory that counts, and remembers if it is asked to.
pub(crate) struct Memory {
    bytes: RwLock<Vec<u8>>,
    pub(crate) writes: AtomicU64,
    pub(crate) reads: AtomicU64,
    pub(crate) events: Mutex<Option<Vec<Event>>>,
}

impl Memory {
    pub(crate) fn new(bytes: Vec<u8>) -> Arc<Self> {
        Arc::new(Self {
            bytes: RwLock::new(bytes),
            writes: AtomicU64::new(0),
            reads: AtomicU64::new(0),
            events: Mutex::new(None),
        })
    }
    pub(crate) fn bytes(&self) -> Vec<u8> {
        self.bytes.read().clone()
    }
    pub(crate) fn save(&self, path: &Path) {
        std::fs::write(path, &*self.bytes.read()).unwrap();
    }
}

impl BlockDevice for Memory {
    fn geometry(&self) -> Geometry {
        Geometry::of_size(self.bytes.read().len() as u64)
    }
    fn read_at(&self, buf: &mut [u8], offset: u64) -> Result<()> {
        self.reads.fetch_add(1, Ordering::Relaxed);
        buf.copy_from_slice(&self.bytes.read()[offset as usize..][..buf.len()]);
        Ok(())
    }
    fn write_at(&self, buf: &[u8], offset: u64) -> Result<()> {
        self.writes.fetch_add(1, Ordering::Relaxed);
        self.bytes.write()[offset as usize..][..buf.len()].copy_from_slice(buf);
        if let Some(events) = &mut *self.events.lock() {
            events.push(Event::Write(offset, buf.to_vec()));
        }
        Ok(())
    }
    fn flush(&self) -> Result<()> {
        if let Some(events) = &mut *self.events.lock() {
            events.push(Event::Flush);
        }
        Ok(())
    }
}

/// A world with one disk.
pub(crate) struct OneDisk(pub(crate) Disk);

impl World for OneDisk {
    fn disk(&self, _source: &OsStr, writable: bool) -> Result<Disk, MountError> {
        Ok(if writable { self.0.clone() } else { self.0.clone().read_only() })
    }
    fn tree(&self, _source: &OsStr) -> Result<(Arc<dyn Filesystem>, Ino), MountError> {
        Err(MountError::usage("there is no tree"))
    }
    fn link(&self, _source: &OsStr) -> Result<Arc<dyn Link>, MountError> {
        Err(MountError::usage("there is no link"))
    }
}

pub(crate) fn disk(memory: &Arc<Memory>) -> Disk {
    Disk::new(Arc::clone(memory) as Arc<dyn BlockDevice>, "memory")
}

/// Mounts a disk with an option list, read-only if that is in it.
pub(crate) fn try_mount(memory: &Arc<Memory>, options: &str) -> Result<Tree, MountError> {
    mount_disk(&disk(memory), options)
}

pub(crate) fn mount_disk(disk: &Disk, options: &str) -> Result<Tree, MountError> {
    let world = OneDisk(disk.clone());
    let mut options = Options::parse(options).unwrap();
    let read_only = options.take_flag("ro").unwrap();
    options.check(Fat.options()).unwrap();
    let mut request = Request { source: OsStr::new("memory"), options, read_only, world: &world };
    match Fat.mount(&mut request)? {
        Object::Tree(tree) => Ok(Tree(tree)),
        other => panic!("{other:?} is no tree"),
    }
}

pub(crate) fn mount(memory: &Arc<Memory>, options: &str) -> Tree {
    try_mount(memory, options).unwrap()
}

const NEW: NewNode = NewNode {
    kind: Kind::File,
    perm: Perm::from_mode(0o755),
    umask: 0o022,
    uid: 0,
    gid: 0,
    rdev: veduta_api::Device { major: 0, minor: 0 },
};

/// A tree, called by paths. What is looked up is forgotten again.
pub(crate) struct Tree(pub(crate) Arc<dyn Filesystem>);

impl Tree {
    /// The directory part of a path, with a reference, and the last name.
    fn walk<'a>(&self, path: &'a [u8]) -> Result<(Ino, &'a OsStr)> {
        let (mut dir, mut rest) = (Ino::ROOT, path);
        while let Some(slash) = rest.iter().position(|byte| *byte == b'/') {
            let next = self.0.lookup(dir, OsStr::from_bytes(&rest[..slash]));
            self.put(dir);
            dir = next?.ino;
            rest = &rest[slash + 1..];
        }
        Ok((dir, OsStr::from_bytes(rest)))
    }
    fn put(&self, ino: Ino) {
        if ino != Ino::ROOT {
            self.0.forget(ino, 1);
        }
    }
    fn at<T>(&self, path: &[u8], call: impl FnOnce(Ino, &OsStr) -> Result<T>) -> Result<T> {
        let (dir, name) = self.walk(path)?;
        let done = call(dir, name);
        self.put(dir);
        done
    }
    pub(crate) fn lookup(&self, path: impl AsRef<[u8]>) -> Result<Entry> {
        let path = path.as_ref();
        if path.is_empty() {
            return Ok(Entry { ino: Ino::ROOT, generation: 0, attr: self.0.getattr(Ino::ROOT)? });
        }
        self.at(path, |dir, name| self.0.lookup(dir, name))
    }
    pub(crate) fn stat(&self, path: impl AsRef<[u8]>) -> Result<veduta_api::Attr> {
        let entry = self.lookup(path)?;
        self.put(entry.ino);
        Ok(entry.attr)
    }
    pub(crate) fn create(&self, path: impl AsRef<[u8]>) -> Result<Arc<dyn File>> {
        let flags = OpenFlags::READ_WRITE;
        let (entry, file) = self.at(path.as_ref(), |dir, name| self.0.create(dir, name, &NEW, flags))?;
        self.put(entry.ino);
        Ok(file)
    }
    pub(crate) fn open(&self, path: impl AsRef<[u8]>) -> Result<Arc<dyn File>> {
        let entry = self.lookup(path)?;
        let file = self.0.open(entry.ino, OpenFlags::READ_WRITE);
        self.put(entry.ino);
        file
    }
    pub(crate) fn mkdir(&self, path: impl AsRef<[u8]>) -> Result<()> {
        let entry = self.at(path.as_ref(), |dir, name| self.0.mkdir(dir, name, &NEW))?;
        self.put(entry.ino);
        Ok(())
    }
    pub(crate) fn unlink(&self, path: impl AsRef<[u8]>) -> Result<()> {
        self.at(path.as_ref(), |dir, name| self.0.unlink(dir, name))
    }
    pub(crate) fn rmdir(&self, path: impl AsRef<[u8]>) -> Result<()> {
        self.at(path.as_ref(), |dir, name| self.0.rmdir(dir, name))
    }
    pub(crate) fn rename(&self, from: impl AsRef<[u8]>, to: impl AsRef<[u8]>) -> Result<()> {
        self.rename_with(from, to, RenameFlags::default())
    }
    pub(crate) fn rename_with(
        &self,
        from: impl AsRef<[u8]>,
        to: impl AsRef<[u8]>,
        flags: RenameFlags,
    ) -> Result<()> {
        self.at(from.as_ref(), |dir, name| {
            self.at(to.as_ref(), |new_dir, new_name| self.0.rename(dir, name, new_dir, new_name, flags))
        })
    }
    pub(crate) fn setattr(&self, path: impl AsRef<[u8]>, changes: &SetAttr) -> Result<veduta_api::Attr> {
        let entry = self.lookup(path)?;
        let done = self.0.setattr(entry.ino, changes);
        self.put(entry.ino);
        done
    }
    pub(crate) fn truncate(&self, path: impl AsRef<[u8]>, size: u64) -> Result<()> {
        self.setattr(path, &SetAttr { size: Some(size), ..SetAttr::default() }).map(|_| ())
    }
    /// Makes or overwrites a file.
    pub(crate) fn put_file(&self, path: impl AsRef<[u8]>, content: &[u8]) -> Result<()> {
        let path = path.as_ref();
        let file = match self.create(path) {
            Err(Errno::EEXIST) => self.open(path)?,
            file => file?,
        };
        self.truncate(path, 0)?;
        if file.write_at(content, 0)? == content.len() { Ok(()) } else { Err(Errno::ENOSPC) }
    }
    pub(crate) fn read_file(&self, path: impl AsRef<[u8]>) -> Result<Vec<u8>> {
        read_all(&*self.open(path)?)
    }
    /// Names in a directory, in the order of the listing, in small steps.
    pub(crate) fn list(&self, path: impl AsRef<[u8]>) -> Result<Vec<(Vec<u8>, Kind)>> {
        let dir = self.lookup(path)?.ino;
        let (mut names, mut position) = (Vec::new(), 0);
        loop {
            let before = names.len();
            self.0.readdir(dir, position, &mut |entry| {
                if names.len() - before == 7 {
                    return ControlFlow::Break(());
                }
                position = entry.next;
                names.push((entry.name.as_bytes().to_vec(), entry.kind.unwrap()));
                ControlFlow::Continue(())
            })?;
            if names.len() == before {
                self.put(dir);
                return Ok(names);
            }
        }
    }
    /// All paths below `path`, directories with their content `None`.
    pub(crate) fn walk_all(&self, path: &[u8], found: &mut Vec<(Vec<u8>, Option<Vec<u8>>)>) -> Result<()> {
        for (name, kind) in self.list(path)? {
            let full = if path.is_empty() { name } else { [path, b"/", &name].concat() };
            if kind == Kind::Directory {
                found.push((full.clone(), None));
                self.walk_all(&full, found)?;
            } else {
                let content = self.read_file(&full)?;
                found.push((full, Some(content)));
            }
        }
        Ok(())
    }
}

pub(crate) fn read_all(file: &dyn File) -> Result<Vec<u8>> {
    let mut all = Vec::new();
    let mut buf = vec![0; 100_000];
    loop {
        let len = file.read_at(&mut buf, all.len() as u64)?;
        if len == 0 {
            return Ok(all);
        }
        all.extend_from_slice(&buf[..len]);
    }
}

/// Whether a program is here. If not, the test is skipped, with a line that says so; in CI that is a failure.
pub(crate) fn have(program: &str) -> bool {
    let found =
        ["/usr/sbin", "/sbin", "/usr/bin", "/bin"].iter().any(|dir| Path::new(dir).join(program).exists());
    if !found {
        assert_ne!(std::env::var("CI").as_deref(), Ok("true"), "{program} is missing");
        println!("skip - {program} is not installed");
    }
    found
}

/// Runs a program of the system, also where its folder is not in the path.
pub(crate) fn run(program: &str, arguments: &[&str]) -> Output {
    let path = format!("{}:/usr/sbin:/sbin", std::env::var("PATH").unwrap_or_default());
    Command::new(program)
        .args(arguments)
        .env("PATH", path)
        .env("MTOOLS_SKIP_CHECK", "1")
        .env("MTOOLS_LOWER_CASE", "0")
        .env("TZ", "UTC")
        .env("LC_ALL", "C.UTF-8")
        .output()
        .unwrap()
}

pub(crate) fn text(output: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

/// A volume to be made: the words are those of `mkfs.fat` or `mkfs.exfat`.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Make {
    pub(crate) kib: u64,
    pub(crate) exfat: bool,
    pub(crate) words: &'static str,
}

/// A folder for a test's images, in memory if possible.
pub(crate) fn folder() -> tempfile::TempDir {
    let shm = PathBuf::from("/dev/shm");
    if shm.is_dir() { tempfile::tempdir_in(shm).unwrap() } else { tempfile::tempdir().unwrap() }
}

impl Make {
    pub(crate) fn make(&self, dir: &Path) -> Option<Arc<Memory>> {
        let program = if self.exfat { "mkfs.exfat" } else { "mkfs.fat" };
        if !have(program) {
            return None;
        }
        let image = dir.join("new.img");
        let file = std::fs::File::create(&image).unwrap();
        file.set_len(self.kib * 1024).unwrap();
        let mut words: Vec<&str> = self.words.split_whitespace().collect();
        words.push(image.to_str().unwrap());
        let made = run(program, &words);
        assert!(made.status.success(), "{program} {words:?}: {}", text(&made));
        // Old content lies everywhere, to be seen by those who do not clear what they take.
        let mut bytes = std::fs::read(&image).unwrap();
        std::fs::remove_file(&image).unwrap();
        self.litter(&mut bytes);
        Some(Memory::new(bytes))
    }

    fn litter(&self, bytes: &mut [u8]) {
        let free = free_clusters(bytes);
        bytes[free].fill(0xaa);
    }

    pub(crate) fn fsck(&self, memory: &Memory, dir: &Path) -> (bool, String) {
        let image = dir.join("check.img");
        memory.save(&image);
        let program = if self.exfat { "fsck.exfat" } else { "fsck.fat" };
        let checked = run(program, &["-n", image.to_str().unwrap()]);
        let said = text(&checked);
        // fsck.fat -n says what it would do, and still ends with 0 for a few things.
        let clean = checked.status.success() && !said.contains("Dirty bit") && !said.contains("differences");
        (clean, said)
    }
}

/// Where the free clusters of a fresh volume lie, found without the code under test: all but the first few.
fn free_clusters(bytes: &[u8]) -> std::ops::Range<usize> {
    let le16 = |at: usize| usize::from(u16::from_le_bytes([bytes[at], bytes[at + 1]]));
    let le32 = |at: usize| le16(at) | le16(at + 2) << 16;
    if &bytes[3..11] == b"EXFAT   " {
        let sector = 1 << bytes[108];
        let cluster = sector << bytes[109];
        let heap = le32(88) * sector;
        // Bitmap, up-case table and root directory come first.
        let root = le32(96);
        let first = heap + (root - 1) * cluster;
        let end = heap + le32(92) * cluster;
        return first..end.min(bytes.len());
    }
    let sector = le16(11);
    let table = if le16(22) == 0 { le32(36) } else { le16(22) };
    let root = (le16(17) * 32).div_ceil(sector);
    let heap = (le16(14) + usize::from(bytes[16]) * table + root) * sector;
    let sectors = if le16(19) == 0 { le32(32) } else { le16(19) };
    let cluster = usize::from(bytes[13]) * sector;
    let first = if le16(22) == 0 { heap + cluster * (le32(44) - 1) } else { heap };
    first..sectors * sector
}

/// A small generator of numbers (xorshift), so that a seed says it all.
pub(crate) struct Rng(pub(crate) u64);

impl Rng {
    pub(crate) fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }
    pub(crate) fn below(&mut self, limit: u64) -> u64 {
        (self.next() >> 11) % limit.max(1)
    }
    pub(crate) fn pick<'a, T>(&mut self, from: &'a [T]) -> Option<&'a T> {
        if from.is_empty() { None } else { from.get(self.below(from.len() as u64) as usize) }
    }
}

/// The seed of this run; printed, and set by `SEED=`.
pub(crate) fn seed() -> u64 {
    let seed = std::env::var("SEED").ok().and_then(|seed| seed.parse().ok()).unwrap_or(0x5eed);
    println!("SEED={seed}");
    seed
}
