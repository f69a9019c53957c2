//! Disks in memory, volumes made by mke2fs, and short words for what a host does.

use std::ffi::OsStr;
use std::ops::ControlFlow;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::Arc;

use parking_lot::{Condvar, Mutex, RwLock};
use veduta_api::{
    Attr, BlockDevice, Disk, Entry, Errno, File, Filesystem, Geometry, Ino, Kind, Link, Module, MountError,
    NewNode, Object, OpenFlags, Options, Perm, RenameFlags, Request, Result, SetAttr, World,
};
use veduta_ext2::Ext2;

/// What reached a disk, in order.
#[derive(Clone)]
pub(crate) enum Event {
    Write(u64, Vec<u8>),
    Flush,
}

/// A disk in memory that remembers, if it is asked to, and that can fail.
pub(crate) struct Memory {
    bytes: RwLock<Vec<u8>>,
    pub(crate) events: Mutex<Option<Vec<Event>>>,
    pub(crate) fails: std::sync::atomic::AtomicBool,
    /// Large writes of this byte do not come back, as long as it is here; and how many there are.
    pub(crate) stuck: Mutex<(Option<u8>, usize)>,
    pub(crate) changed: Condvar,
}

impl Memory {
    pub(crate) fn new(bytes: Vec<u8>) -> Arc<Self> {
        Arc::new(Self {
            bytes: RwLock::new(bytes),
            events: Mutex::new(None),
            fails: std::sync::atomic::AtomicBool::new(false),
            stuck: Mutex::new((None, 0)),
            changed: Condvar::new(),
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
        buf.copy_from_slice(&self.bytes.read()[offset as usize..][..buf.len()]);
        Ok(())
    }
    fn write_at(&self, buf: &[u8], offset: u64) -> Result<()> {
        if self.fails.load(std::sync::atomic::Ordering::Relaxed) {
            return Err(Errno::EIO);
        }
        let mut stuck = self.stuck.lock();
        if buf.len() >= 1 << 16 && stuck.0 == Some(buf[0]) {
            stuck.1 += 1;
            self.changed.notify_all();
            self.changed.wait_while(&mut stuck, |stuck| stuck.0.is_some());
        }
        drop(stuck);
        self.bytes.write()[offset as usize..][..buf.len()].copy_from_slice(buf);
        if let Some(events) = &mut *self.events.lock() {
            events.push(Event::Write(offset, buf.to_vec()));
        }
        Ok(())
    }
    /// What is discarded is gone, to be seen by those who still need it.
    fn discard(&self, offset: u64, len: u64) -> Result<()> {
        self.write_at(&vec![0xdd; len as usize], offset)
    }
    fn flush(&self) -> Result<()> {
        if let Some(events) = &mut *self.events.lock() {
            events.push(Event::Flush);
        }
        Ok(())
    }
}

struct OneDisk(Disk);

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

/// Mounts a disk with an option list, read-only if that is in it.
pub(crate) fn try_mount(memory: &Arc<Memory>, options: &str) -> Result<Tree, MountError> {
    let world = OneDisk(Disk::new(Arc::clone(memory) as Arc<dyn BlockDevice>, "memory"));
    let mut options = Options::parse(options).unwrap();
    let read_only = options.take_flag("ro").unwrap();
    options.check(Ext2.options()).unwrap();
    let mut request = Request { source: OsStr::new("memory"), options, read_only, world: &world };
    match Ext2.mount(&mut request)? {
        Object::Tree(tree) => Ok(Tree(tree)),
        other => panic!("{other:?} is no tree"),
    }
}

pub(crate) fn mount(memory: &Arc<Memory>, options: &str) -> Tree {
    try_mount(memory, options).unwrap()
}

pub(crate) const NEW: NewNode = NewNode {
    kind: Kind::File,
    perm: Perm::from_mode(0o755),
    umask: 0o022,
    uid: 1000,
    gid: 100,
    rdev: veduta_api::Device { major: 0, minor: 0 },
};

/// A tree, called by paths. What is looked up is forgotten again.
pub(crate) struct Tree(pub(crate) Arc<dyn Filesystem>);

impl Tree {
    /// The directory part of a path, with a reference, and the last name.
    fn walk<'a>(&self, path: &'a str) -> Result<(Ino, &'a OsStr)> {
        let (mut dir, mut rest) = (Ino::ROOT, path);
        while let Some((first, more)) = rest.split_once('/') {
            let next = self.0.lookup(dir, OsStr::new(first));
            self.put(dir);
            dir = next?.ino;
            rest = more;
        }
        Ok((dir, OsStr::new(rest)))
    }
    fn put(&self, ino: Ino) {
        if ino != Ino::ROOT {
            self.0.forget(ino, 1);
        }
    }
    pub(crate) fn at<T>(&self, path: &str, call: impl FnOnce(Ino, &OsStr) -> Result<T>) -> Result<T> {
        let (dir, name) = self.walk(path)?;
        let done = call(dir, name);
        self.put(dir);
        done
    }
    pub(crate) fn lookup(&self, path: &str) -> Result<Entry> {
        if path.is_empty() {
            return Ok(Entry { ino: Ino::ROOT, generation: 0, attr: self.0.getattr(Ino::ROOT)? });
        }
        self.at(path, |dir, name| self.0.lookup(dir, name))
    }
    pub(crate) fn on<T>(&self, path: &str, call: impl FnOnce(Ino) -> Result<T>) -> Result<T> {
        let entry = self.lookup(path)?;
        let done = call(entry.ino);
        self.put(entry.ino);
        done
    }
    pub(crate) fn stat(&self, path: &str) -> Result<Attr> {
        self.on(path, |ino| self.0.getattr(ino))
    }
    pub(crate) fn create(&self, path: &str) -> Result<Arc<dyn File>> {
        let flags = OpenFlags::READ_WRITE;
        let (entry, file) = self.at(path, |dir, name| self.0.create(dir, name, &NEW, flags))?;
        self.put(entry.ino);
        Ok(file)
    }
    pub(crate) fn open(&self, path: &str) -> Result<Arc<dyn File>> {
        self.on(path, |ino| self.0.open(ino, OpenFlags::READ_WRITE))
    }
    pub(crate) fn mkdir(&self, path: &str) -> Result<()> {
        let new = NewNode { kind: Kind::Directory, ..NEW };
        let entry = self.at(path, |dir, name| self.0.mkdir(dir, name, &new))?;
        self.put(entry.ino);
        Ok(())
    }
    pub(crate) fn symlink(&self, path: &str, target: &str) -> Result<()> {
        let entry = self.at(path, |dir, name| self.0.symlink(dir, name, OsStr::new(target), &NEW))?;
        self.put(entry.ino);
        Ok(())
    }
    pub(crate) fn link(&self, old: &str, new: &str) -> Result<()> {
        self.on(old, |ino| {
            let entry = self.at(new, |dir, name| self.0.link(ino, dir, name))?;
            self.put(entry.ino);
            Ok(())
        })
    }
    pub(crate) fn unlink(&self, path: &str) -> Result<()> {
        self.at(path, |dir, name| self.0.unlink(dir, name))
    }
    pub(crate) fn rmdir(&self, path: &str) -> Result<()> {
        self.at(path, |dir, name| self.0.rmdir(dir, name))
    }
    pub(crate) fn rename(&self, from: &str, to: &str, flags: RenameFlags) -> Result<()> {
        self.at(from, |dir, name| {
            self.at(to, |new_dir, new_name| self.0.rename(dir, name, new_dir, new_name, flags))
        })
    }
    pub(crate) fn setattr(&self, path: &str, changes: &SetAttr) -> Result<Attr> {
        self.on(path, |ino| self.0.setattr(ino, changes))
    }
    pub(crate) fn truncate(&self, path: &str, size: u64) -> Result<()> {
        self.setattr(path, &SetAttr { size: Some(size), ..SetAttr::default() }).map(|_| ())
    }
    pub(crate) fn read_file(&self, path: &str) -> Result<Vec<u8>> {
        read_all(&*self.open(path)?)
    }
    /// Names in a directory, in the order of the listing, in small steps.
    pub(crate) fn list(&self, path: &str) -> Result<Vec<(String, Kind)>> {
        let dir = self.lookup(path)?.ino;
        let (mut names, mut position) = (Vec::new(), 0);
        let open = self.0.opendir(dir)?;
        loop {
            let before = names.len();
            let mut sink = |entry: veduta_api::DirEntry<'_>| {
                if names.len() - before == 7 {
                    return ControlFlow::Break(());
                }
                position = entry.next;
                names.push((String::from_utf8(entry.name.as_bytes().to_vec()).unwrap(), entry.kind));
                ControlFlow::Continue(())
            };
            let from = position_before(before, &mut sink, &open, &*self.0, dir);
            from?;
            if names.len() == before {
                self.put(dir);
                let kind = |name: &str, kind: Option<Kind>| {
                    kind.unwrap_or_else(|| {
                        let path = if path.is_empty() { name.to_string() } else { format!("{path}/{name}") };
                        self.stat(&path).unwrap().kind
                    })
                };
                return Ok(names.iter().map(|(name, found)| (name.clone(), kind(name, *found))).collect());
            }
        }
    }
}

/// Lists on from as many names as there were: positions of a listing count them.
fn position_before(
    before: usize,
    sink: &mut veduta_api::DirSink<'_>,
    open: &Option<Arc<dyn veduta_api::Directory>>,
    tree: &dyn Filesystem,
    dir: Ino,
) -> Result<()> {
    match open {
        Some(open) => open.read(before as u64, sink),
        None => {
            let mut skip = before;
            tree.readdir(dir, 0, &mut |entry| {
                if skip > 0 {
                    skip -= 1;
                    return ControlFlow::Continue(());
                }
                sink(entry)
            })
        }
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

/// Runs a program of the system, also where its folder is not in the path.
pub(crate) fn run(program: &str, arguments: &[&str]) -> Output {
    let path = format!("{}:/usr/sbin:/sbin", std::env::var("PATH").unwrap_or_default());
    Command::new(program).args(arguments).env("PATH", path).env("LC_ALL", "C.UTF-8").output().unwrap()
}

pub(crate) fn text(output: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

/// A folder for a test's images, in memory if possible.
pub(crate) fn folder() -> tempfile::TempDir {
    let shm = PathBuf::from("/dev/shm");
    if shm.is_dir() { tempfile::tempdir_in(shm).unwrap() } else { tempfile::tempdir().unwrap() }
}

/// A volume to be made: its size, and words for mke2fs.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Make {
    pub(crate) kib: u64,
    pub(crate) words: &'static str,
}

impl Make {
    /// Old content lies everywhere, to be seen by those who do not clear what they take.
    pub(crate) fn make(&self, dir: &Path) -> Arc<Memory> {
        let image = dir.join("new.img");
        std::fs::write(&image, vec![0xaa; self.kib as usize * 1024]).unwrap();
        let mut words = vec!["-q", "-F", "-E", "nodiscard"];
        words.extend(self.words.split_whitespace());
        words.push(image.to_str().unwrap());
        let made = run("mke2fs", &words);
        assert!(made.status.success(), "mke2fs {words:?}: {}", text(&made));
        let bytes = std::fs::read(&image).unwrap();
        std::fs::remove_file(&image).unwrap();
        Memory::new(bytes)
    }
}

/// What e2fsck says of a disk, and its exit status.
pub(crate) fn e2fsck(memory: &Memory, dir: &Path, how: &str) -> (Option<i32>, String) {
    let image = dir.join("check.img");
    memory.save(&image);
    let checked = run("e2fsck", &[how, "-f", image.to_str().unwrap()]);
    (checked.status.code(), text(&checked))
}

/// e2fsck finds nothing.
pub(crate) fn assert_clean(memory: &Memory, dir: &Path) {
    let (status, said) = e2fsck(memory, dir, "-n");
    if status != Some(0) {
        let kept = std::env::var("KEEP_IMAGE").ok();
        if let Some(kept) = kept {
            memory.save(Path::new(&kept));
        }
        panic!("e2fsck -fn: {status:?}: {said}");
    }
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

/// How many rounds; more with `ROUNDS=`.
pub(crate) fn rounds(default: u64) -> u64 {
    std::env::var("ROUNDS").ok().and_then(|rounds| rounds.parse().ok()).unwrap_or(default)
}
