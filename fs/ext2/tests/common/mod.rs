//! What the tests share: disks, mounting without a host, and the record of a tree.

#![allow(dead_code, unreachable_pub, reason = "each test file uses a part")]
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

use std::ffi::OsStr;
use std::fs;
use std::ops::ControlFlow;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use veduta_api::{
    BlockDevice, Disk, Errno, Filesystem, Geometry, Ino, Module, MountError, Object, Options, Request,
    Result, World,
};
use veduta_ext2::Ext2;

pub mod exercise;

/// An image file, read only.
pub struct Image {
    file: fs::File,
    size: u64,
}

impl Image {
    pub fn open(path: &Path) -> Disk {
        let file = fs::File::open(path).unwrap();
        let size = file.metadata().unwrap().len();
        Disk::new(Arc::new(Self { file, size }), path.display().to_string())
    }
}

impl BlockDevice for Image {
    fn geometry(&self) -> Geometry {
        Geometry { read_only: true, ..Geometry::of_size(self.size) }
    }
    fn read_at(&self, buf: &mut [u8], offset: u64) -> Result<()> {
        self.file.read_exact_at(buf, offset).map_err(|_| Errno::EIO)
    }
}

/// An image in memory, of which some bytes are changed.
pub struct Memory {
    pub bytes: Arc<Vec<u8>>,
    pub changed: Vec<(usize, u8)>,
}

impl BlockDevice for Memory {
    fn geometry(&self) -> Geometry {
        Geometry { read_only: true, ..Geometry::of_size(self.bytes.len() as u64) }
    }
    fn read_at(&self, buf: &mut [u8], offset: u64) -> Result<()> {
        let start = offset as usize;
        buf.copy_from_slice(&self.bytes[start..][..buf.len()]);
        for (place, byte) in &self.changed {
            if let Some(at) = place.checked_sub(start).filter(|at| *at < buf.len()) {
                buf[at] = *byte;
            }
        }
        Ok(())
    }
}

/// An image file that counts how often it is read.
pub struct Counted {
    image: Disk,
    reads: Arc<AtomicUsize>,
}

impl Counted {
    pub fn open(path: &Path) -> (Disk, Arc<AtomicUsize>) {
        let reads = Arc::new(AtomicUsize::new(0));
        let counted = Self { image: Image::open(path), reads: Arc::clone(&reads) };
        (Disk::new(Arc::new(counted), "counted"), reads)
    }
}

impl BlockDevice for Counted {
    fn geometry(&self) -> Geometry {
        self.image.geometry()
    }
    fn read_at(&self, buf: &mut [u8], offset: u64) -> Result<()> {
        self.reads.fetch_add(1, Ordering::Relaxed);
        self.image.read_at(buf, offset)
    }
}

struct OneDisk(Disk);

impl World for OneDisk {
    fn disk(&self, _source: &OsStr, _writable: bool) -> Result<Disk, MountError> {
        Ok(self.0.clone())
    }
    fn tree(&self, _source: &OsStr) -> Result<(Arc<dyn Filesystem>, Ino), MountError> {
        Err(MountError::usage("no trees here"))
    }
    fn link(&self, _source: &OsStr) -> Result<Arc<dyn veduta_api::Link>, MountError> {
        Err(MountError::usage("no links here"))
    }
}

/// Mounts a disk read-only, with options as after `-o`.
pub fn mount_disk(disk: Disk, options: &str) -> Result<Arc<dyn Filesystem>, MountError> {
    let world = OneDisk(disk);
    let options = Options::parse(options)?;
    options.check(Ext2.options())?;
    let mut request = Request { source: OsStr::new("test"), options, read_only: true, world: &world };
    match Ext2.mount(&mut request)? {
        Object::Tree(tree) => Ok(tree),
        other => panic!("mounted {other:?}"),
    }
}

/// Mounts an image file.
pub fn mount(path: &Path, options: &str) -> Result<Arc<dyn Filesystem>, MountError> {
    mount_disk(Image::open(path), options)
}

/// The node at a path such as `/a/b`.
pub fn node(tree: &dyn Filesystem, path: &str) -> Result<Ino> {
    path.split('/')
        .filter(|name| !name.is_empty())
        .try_fold(Ino::ROOT, |dir, name| Ok(tree.lookup(dir, OsStr::new(name))?.ino))
}

/// All names of a directory, in the order of the listing, read a few at a time.
pub fn names(tree: &dyn Filesystem, dir: Ino, at_once: usize) -> Result<Vec<Vec<u8>>> {
    let (mut names, mut position) = (Vec::new(), 0);
    loop {
        let mut taken = 0;
        tree.readdir(dir, position, &mut |entry| {
            if taken == at_once {
                return ControlFlow::Break(());
            }
            taken += 1;
            position = entry.next;
            names.push(entry.name.as_bytes().to_vec());
            ControlFlow::Continue(())
        })?;
        if taken == 0 {
            return Ok(names);
        }
    }
}

/// Runs a program that must succeed; what it printed.
pub fn run(program: &str, arguments: &[&str]) -> String {
    let output = Command::new(program)
        .args(arguments)
        .env("PATH", "/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin")
        .output()
        .unwrap_or_else(|error| panic!("{program}: {error}"));
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{program} {arguments:?}: {text}{errors}");
    text
}

/// Makes an image of `size` bytes with mke2fs.
pub fn make(path: &Path, size: u64, arguments: &[&str]) {
    fs::File::create(path).unwrap().set_len(size).unwrap();
    let image = path.to_str().unwrap();
    run("mke2fs", &[&["-q", "-F"], arguments, &[image]].concat());
}

/// A generator of numbers (xorshift64*): the same seed gives the same numbers.
pub struct Random(u64);

impl Random {
    pub fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    /// Less than `limit`.
    pub fn below(&mut self, limit: usize) -> usize {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        (self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 33) as usize % limit
    }
}

/// Runs a script of debugfs commands that change an image.
pub fn debugfs(image: &Path, commands: &str) {
    let script = image.with_extension("script");
    fs::write(&script, commands).unwrap();
    run("debugfs", &["-w", "-f", script.to_str().unwrap(), image.to_str().unwrap()]);
}

/// What one debugfs command prints.
pub fn ask(image: &Path, command: &str) -> String {
    run("debugfs", &["-R", command, image.to_str().unwrap()])
}

/// Lets e2fsck repair what the test made, and index directories.
pub fn repair(image: &Path) {
    let status = Command::new("/sbin/e2fsck").args(["-fyD"]).arg(image).output().unwrap().status;
    assert!(matches!(status.code(), Some(0 | 1)), "e2fsck: {status}");
}
