//! unsafe: machine code, and memory that other processes read. The shim: code that runs inside the processes of a view and makes calls that cannot concern it, so that they need not
//! come to the engine.
//!
//! The code is mapped at one address, [`BASE`], in which the seccomp filter lets every call pass. Behind it lie the table that the engine keeps ([`Page`]) and a page
//! with a switch of the process's own. Call sites of libraries jump to its beginning with the call
//! in its registers and, in `rcx`, the address of a `syscall` instruction of theirs. The shim either makes the call and goes on
//! behind that instruction, or goes to it with all registers as they were, and the call comes to the engine as ever. So whatever
//! the shim does not understand happens as if it were not there.
//!
//! A call that only looks is made first and judged by what it found: nothing of the view is found by the kernel, except stand-ins
//! (which have no name: their link count is 0) and what lies under mount points (`covered`). What was not found might be
//! in the view, so it is proved that the path, resolved without symbolic links, leads past all mount points. The table has a count
//! that is odd while it changes; a change in between has the call made again by the engine. A call that makes or removes a name is judged before it is made,
//! in the same way as one that finds nothing, and only names that no mount point has on its way are made or removed here.
//!
//! Registers, memory below the stack pointer's red zone, and nothing else are used: the code may be interrupted by signals, left by
//! `longjmp(3)`, and run by any number of threads, also after `vfork(2)`.

#![allow(unsafe_code)]

use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU8, AtomicU32, AtomicU64, Ordering};

use nix::errno::Errno;
use nix::libc;

use crate::{Result, known, raw};

/// Where the shim is mapped: below all that the kernel maps by itself, within what sanitizers call memory of the program.
pub const BASE: u64 = 0x7e90_0000_0000;
/// Bytes that are mapped and stay so.
pub const LEN: u64 = known::END as u64;
/// Bytes that are mapped. Code of libraries that lies below is moved from here to where it is wanted.
pub const REACH: u64 = 0xf0_0000;
/// Bytes of code, in which calls pass the filter.
pub const CODE: u64 = 0x2000;
/// The process's own switch: not 0 where every call is to come to the engine.
pub const SWITCH: u64 = BASE + 0x7000;

/// Where the parts of the file are; [`LEN`] bytes of its beginning are mapped at [`BASE`].
const TABLE: usize = 0x2000;
const PREFIXES: usize = 0x4000;
const NAMES: usize = 0x5000;
/// Names of all that is on the way to mount points, and of those through which the host is seen as it is.
const WAYS: usize = 0xd000;
/// Virtual trees of which the shim may say something: see [`known`].
const MOUNTS: usize = 0x6000;
/// Programs that the kernel runs by itself, and their loaders: nothing of the view's is loaded with them.
const PROGRAMS: usize = 0x8000;
const PROGRAM_COUNT: usize = 256;
const PROGRAM_PROBES: usize = 8;
const PROGRAM_LEN: usize = 64;
const LOADERS: usize = 0xc000;
const LOADER_COUNT: usize = 8;
const LOADER_LEN: usize = 256;
const LOADER_PATH: usize = 64;
/// Objects in which the host differs from a view that sees it through a mount: words found by hash, and up to [`DIFFERENT_PROBES`] steps.
const DIFFERENT: usize = 0x8_0000;
const DIFFERENT_COUNT: usize = 1 << 16;
const DIFFERENT_PROBES: usize = 32;
const IMAGES: usize = known::END;
/// Bytes of the file. Pages that nobody writes to take no memory.
const FILE: usize = 64 << 20;

const GENERATION: usize = 0;
const PROC_COUNT: usize = 12;
const PLANE_COUNT: usize = 24;
const MOUNT_COUNT: usize = 28;
const THROUGH: usize = 32;
const TRUE_PROC: usize = 36;
/// A byte for each tree: whether it may be spoken of.
const TREES: usize = 6144;
const PLANES: usize = 6400;
const COVERED_COUNT: usize = 16;
const IMAGE_COUNT: usize = 20;
const PROC: usize = 1664;
const KINDS: usize = 128;
const IMAGE: usize = 640;
const COVERED: usize = 2048;

/// What is seen at mount points through which the host is seen.
const ROOTS: usize = 7424;
const ROOT_COUNT: usize = 40;
const MOST_ROOTS: usize = 32;
/// Bits of [`THROUGH`]. The first is the one by which the code is told that it looks at the names of components, too.
const DIFFERS: u32 = 8;
const CHANGES_HERE: u32 = 1;
const HAS_ROOTS: u32 = 2;

const MOST_PROC: usize = 48;
const MOST_PLANES: usize = 64;
const MOST_MOUNTS: usize = 16;
const MOUNT_LEN: usize = 256;
const MOST_IMAGES: usize = 16;
/// Covered objects that a table holds.
pub const MOST_COVERED: usize = 256;
/// Bits of each of the two maps.
const BITS: u32 = 32_768;

/// What the shim does with a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Kind {
    /// Goes to the engine.
    Trap = 0,
    /// Is made.
    Native = 1,
    /// `open(2)`
    Open = 2,
    /// `openat(2)`
    OpenAt = 3,
    /// `stat(2)` and `lstat(2)`
    Stat = 4,
    /// `newfstatat(2)`
    StatAt = 5,
    /// `statx(2)`
    Statx = 6,
    /// `access(2)`
    Access = 7,
    /// `faccessat(2)`: without flags.
    AccessAt = 8,
    /// `faccessat2(2)`
    AccessAt2 = 9,
    /// `readlink(2)`
    ReadLink = 10,
    /// `readlinkat(2)`
    ReadLinkAt = 11,
    /// Moves data of the descriptor that comes first, and may wait.
    Data = 12,
    /// `fstat(2)`
    Fstat = 13,
    /// `mmap(2)`
    Map = 14,
    /// Is about the descriptor that comes first, and does not wait.
    Descriptor = 15,
    /// `getcwd(2)`
    GetCwd = 16,
    /// `execve(2)`
    Exec = 17,
    /// `statfs(2)`
    StatFs = 18,
    /// `unlink(2)`
    Unlink = 19,
    /// `unlinkat(2)`
    UnlinkAt = 20,
}

/// What becomes of a call of this number, if it is taken at all.
pub fn kind(name: &str) -> Option<Kind> {
    Some(match name {
        "open" => Kind::Open,
        "openat" => Kind::OpenAt,
        "stat" | "lstat" => Kind::Stat,
        "newfstatat" => Kind::StatAt,
        "statx" => Kind::Statx,
        "access" => Kind::Access,
        "faccessat" => Kind::AccessAt,
        "faccessat2" => Kind::AccessAt2,
        "readlink" => Kind::ReadLink,
        "readlinkat" => Kind::ReadLinkAt,
        "read" | "write" | "pread64" | "pwrite64" | "readv" | "writev" | "getdents64" | "getdents" => {
            Kind::Data
        }
        "getcwd" => Kind::GetCwd,
        "execve" => Kind::Exec,
        "statfs" => Kind::StatFs,
        "unlink" => Kind::Unlink,
        "unlinkat" => Kind::UnlinkAt,
        "fstat" => Kind::Fstat,
        "mmap" => Kind::Map,
        "lseek" | "ftruncate" | "fstatfs" | "fgetxattr" | "flistxattr" => Kind::Descriptor,
        "getuid" | "getgid" | "geteuid" | "getegid" | "getresuid" | "getresgid" => Kind::Native,
        _ => return None,
    })
}

#[cfg(target_arch = "x86_64")]
core::arch::global_asm!(include_str!("shim.s"), options(att_syntax));

#[cfg(target_arch = "x86_64")]
unsafe extern "C" {
    static veduta_shim_start: u8;
    static veduta_shim_end: u8;
    static veduta_boot_start: u8;
    static veduta_boot_end: u8;
}

/// Bytes of the instruction that [`boot`] runs in the place of the jump to it.
pub const DISPLACED: usize = 6;

/// What maps the shim: code for address `at`, which is run behind the call that ends at `back`, where `displaced` was. `descriptor`
/// is the number of our file there; `image` and `base` are told to the engine if it cannot be done.
#[cfg(target_arch = "x86_64")]
pub fn boot(
    at: u64,
    back: u64,
    displaced: [u8; DISPLACED],
    descriptor: i32,
    image: u32,
    base: u64,
) -> Vec<u8> {
    let (start, end) = (&raw const veduta_boot_start, &raw const veduta_boot_end);
    // SAFETY: the two are the ends of one section of this program, which is only read.
    let mut code = unsafe { std::slice::from_raw_parts(start, end.addr() - start.addr()) }.to_vec();
    fill(&mut code, &[0x11; 4], &descriptor.to_le_bytes());
    fill(&mut code, &[0x22; 8], &base.to_le_bytes());
    fill(&mut code, &[0x33; 4], &image.to_le_bytes());
    code.extend(displaced);
    let next = at + code.len() as u64 + 5;
    code.push(0xe9);
    code.extend(((back + DISPLACED as u64).wrapping_sub(next) as u32).to_le_bytes());
    code
}

/// There is no shim for this architecture.
#[cfg(not(target_arch = "x86_64"))]
pub fn boot(_: u64, _: u64, _: [u8; DISPLACED], _: i32, _: u32, _: u64) -> Vec<u8> {
    Vec::new()
}

/// Puts a value in all places of a word.
#[cfg(target_arch = "x86_64")]
fn fill(code: &mut [u8], word: &[u8], value: &[u8]) {
    let places: Vec<usize> =
        code.windows(word.len()).enumerate().filter(|(_, part)| *part == word).map(|(at, _)| at).collect();
    for at in places {
        code[at..at + word.len()].copy_from_slice(value);
    }
}

/// The code, to be mapped at [`BASE`].
#[cfg(target_arch = "x86_64")]
pub fn code() -> &'static [u8] {
    let (start, end) = (&raw const veduta_shim_start, &raw const veduta_shim_end);
    // SAFETY: the two are the ends of one section of this program, which is only read.
    unsafe { std::slice::from_raw_parts(start, end.addr() - start.addr()) }
}

/// There is none for this architecture.
#[cfg(not(target_arch = "x86_64"))]
pub fn code() -> &'static [u8] {
    &[]
}

/// A patched part of a library, as the shim finds it.
#[derive(Clone, Copy, Debug)]
pub struct Replacement {
    /// Device, inode, time of change in seconds and nanoseconds, and size of the file.
    pub file: [u64; 5],
    /// Offset in the file of what is mapped to be run. Bytes.
    pub offset: u64,
    /// Its length, in whole pages. Bytes.
    pub len: u64,
    /// Where its patched form is in ours.
    pub at: u64,
}

/// What the shim knows of mounts.
#[derive(Default, PartialEq, Eq)]
pub struct Facts {
    /// Whether calls with paths may be decided at all.
    pub paths: bool,
    /// Whether it may be told who runs a process.
    pub identity: bool,
    /// Device and inode of what must come to the engine, the most important first.
    pub covered: Vec<(u64, u64)>,
    /// Devices of `/proc`, and of virtual trees that the kernel serves: only data is read and written there.
    pub proc: Vec<u64>,
    /// How many of them, from the first on, are `/proc`.
    pub true_proc: usize,
    /// Whether [programs](Page::runs) may be told.
    pub programs: bool,
    /// Canonical paths of mount points.
    pub targets: Vec<Vec<u8>>,
    /// Trees of which what is [known](crate::known) may be said.
    pub trees: Vec<Tree>,
    /// Through some mount the host is seen, and whatever changes something there is not the host's affair.
    pub changes_here: bool,
    /// Some such mount shows other things than the host in places: what was told to [differ](Page::differ), fifos and devices.
    pub differs: bool,
    /// Canonical paths of mount points where nothing but the mount itself is the view's.
    pub bounds: Vec<Vec<u8>>,
    /// Device and inode of what is seen at such mount points, and at those where nothing but the mount itself is the view's.
    pub roots: Vec<(u64, u64)>,
}

/// Something in which the host differs from what a view sees of it through a mount.
#[derive(Clone, Copy, Debug)]
pub enum Difference<'a> {
    /// What has this device and inode number.
    Object(u64, u64),
    /// What is at this canonical path, and below it.
    Name(&'a [u8]),
}

/// A mounted tree.
#[derive(PartialEq, Eq)]
pub struct Tree {
    /// Its number.
    pub number: u8,
    /// The node that is seen at the mount point.
    pub root: u64,
    /// The canonical path of the mount point, if nothing of the view's is on the way there.
    pub target: Vec<u8>,
    /// The device of its files, if the kernel serves them: their inode numbers are those of the nodes.
    pub plane: Option<u64>,
}

/// The file that processes map, and our own mapping of it.
pub struct Page {
    /// Can only be read and run.
    file: OwnedFd,
    memory: NonNull<u8>,
    /// Bytes used by images.
    used: usize,
}

// SAFETY: the memory belongs to this value alone, and is changed by methods that take it exclusively, or by atomics.
unsafe impl Send for Page {}
// SAFETY: as above.
unsafe impl Sync for Page {}

impl Page {
    /// A file with the code and an empty table, by which every call comes to the engine. `ENOSYS` where there is no shim.
    pub fn new() -> Result<Self> {
        let code = code();
        if code.is_empty() || code.len() > CODE as usize {
            return Err(Errno::ENOSYS);
        }
        let file = raw::memory_file(c"shim")?;
        nix::unistd::ftruncate(&file, FILE as i64)?;
        let len = std::num::NonZeroUsize::new(FILE).ok_or(Errno::EINVAL)?;
        let protection = nix::sys::mman::ProtFlags::PROT_READ | nix::sys::mman::ProtFlags::PROT_WRITE;
        let flags = nix::sys::mman::MapFlags::MAP_SHARED;
        // SAFETY: new memory, at an address that the kernel chooses.
        let memory = unsafe { nix::sys::mman::mmap(None, len, protection, flags, &file, 0) }?.cast::<u8>();
        const FUTURE_WRITE: libc::c_int = 0x10;
        let seals = libc::F_SEAL_SHRINK | libc::F_SEAL_GROW | FUTURE_WRITE | libc::F_SEAL_SEAL;
        // SAFETY: numbers only.
        let _ = unsafe { libc::fcntl(file.as_raw_fd(), libc::F_ADD_SEALS, seals) };
        let path = format!("/proc/self/fd/{}", file.as_raw_fd());
        let flags = nix::fcntl::OFlag::O_RDONLY | nix::fcntl::OFlag::O_CLOEXEC;
        let file = nix::fcntl::open(path.as_str(), flags, nix::sys::stat::Mode::empty());
        let file = file.inspect_err(|_| {
            // SAFETY: nothing refers to the memory.
            let _ = unsafe { nix::sys::mman::munmap(memory.cast(), FILE) };
        })?;
        let mut page = Self { file, memory, used: IMAGES };
        page.bytes(0, code.len()).copy_from_slice(code);
        Ok(page)
    }

    /// The file, for processes to map.
    pub fn file(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }

    /// Puts a library's changed code behind what is there, and says where. `ENOSPC` if there is no room.
    pub fn add(&mut self, patched: &crate::sites::Patched<'_>) -> Result<u64> {
        let content = &patched.old;
        let at = self.used;
        let end = at.checked_add(content.len().next_multiple_of(4096)).filter(|end| *end <= FILE);
        let end = end.ok_or(Errno::ENOSPC)?;
        let place = self.bytes(at, content.len());
        place.copy_from_slice(content);
        patched.apply(place);
        self.used = end;
        Ok(at as u64)
    }

    /// Tells the shim of a patched library. `ENOSPC` if it knows too many.
    pub fn announce(&mut self, image: &Replacement) -> Result<()> {
        let count = self.word32(IMAGE_COUNT).load(Ordering::Relaxed) as usize;
        if count >= MOST_IMAGES {
            return Err(Errno::ENOSPC);
        }
        let [a, b, c, d, e] = image.file;
        for (index, word) in [a, b, c, d, e, image.offset, image.len, image.at].into_iter().enumerate() {
            self.word(IMAGE + count * 64 + index * 8).store(word, Ordering::Relaxed);
        }
        self.word32(IMAGE_COUNT).store(count as u32 + 1, Ordering::Release);
        Ok(())
    }

    /// Whether every call comes to the engine.
    pub fn is_closed(&self) -> bool {
        self.word(GENERATION).load(Ordering::SeqCst) & 1 != 0
    }

    /// From now on every call comes to the engine, until [`publish`](Self::publish).
    pub fn close(&self) {
        let count = self.word(GENERATION).load(Ordering::Relaxed);
        self.word(GENERATION).store(count | 1, Ordering::SeqCst);
    }

    /// Tells of a difference, before it is one. Whether there was room. One at a time, and not at one time with [`publish`](Self::publish).
    pub fn differ(&self, difference: Difference<'_>) -> bool {
        match difference {
            Difference::Object(device, ino) => {
                let (first, word) = different(device, ino);
                let place = |step: usize| self.word_at(DIFFERENT + (first + step) % DIFFERENT_COUNT * 8);
                let found = (0..DIFFERENT_PROBES).map(place).find(|place| {
                    let there = place.load(Ordering::Relaxed);
                    there == 0 || there == word
                });
                found.map(|place| place.store(word, Ordering::SeqCst)).is_some()
            }
            Difference::Name(path) => {
                self.set_bit(PREFIXES, hash(path));
                self.set_bit(NAMES, hash(path.rsplit(|byte| *byte == b'/').next().unwrap_or_default()));
                true
            }
        }
    }

    /// Tells of a program (device, inode, time of change in seconds and nanoseconds, size) that the kernel runs by itself, with the loader that is at a path.
    /// Said until [`publish`](Self::publish). One at a time, and not at one time with that.
    pub fn runs(&self, program: &[u64; 5], path: &[u8], loader: &[u64; 5]) {
        if path.is_empty() || path.len() >= LOADER_LEN - LOADER_PATH {
            return;
        }
        let Some(number) = (0..LOADER_COUNT).find(|number| self.is_loader(*number, path, loader)) else {
            return;
        };
        let words = |at: usize, words: &[u64]| {
            for (index, word) in words.iter().enumerate() {
                self.word_at(at + index * 8).store(*word, Ordering::Relaxed);
            }
        };
        let at = LOADERS + number * LOADER_LEN;
        if self.word_at(at).load(Ordering::Relaxed) == 0 && loader[0] != 0 {
            for (index, byte) in path.iter().chain(&[0]).enumerate() {
                self.byte_at(at + LOADER_PATH + index).store(*byte, Ordering::Relaxed);
            }
            words(at, loader);
        }
        let first = (program[0] ^ program[1]).wrapping_mul(known::SPREAD) >> 16;
        for step in 0..PROGRAM_PROBES {
            let at = PROGRAMS + (first as usize + step) % PROGRAM_COUNT * PROGRAM_LEN;
            if self.word_at(at).load(Ordering::Relaxed) == 0 {
                words(at + 8, program);
                // Whoever finds this finds the rest.
                self.word_at(at).store(number as u64 + 1, Ordering::Release);
                return;
            }
            if (0..5).all(|index| self.word_at(at + 8 + index * 8).load(Ordering::Relaxed) == program[index])
            {
                return;
            }
        }
    }

    /// Whether a loader's place is free, or this one's.
    fn is_loader(&self, number: usize, path: &[u8], loader: &[u64; 5]) -> bool {
        let at = LOADERS + number * LOADER_LEN;
        let is_path = |(index, byte): (usize, &u8)| {
            self.byte_at(at + LOADER_PATH + index).load(Ordering::Relaxed) == *byte
        };
        self.word_at(at).load(Ordering::Relaxed) == 0
            || ((0..5).all(|index| self.word_at(at + index * 8).load(Ordering::Relaxed) == loader[index])
                && path.iter().chain(&[0]).enumerate().all(is_path))
    }

    /// Gives the shim new facts, after [`close`](Self::close). `numbers` are calls by number, `differences` what was told of them before. Whether there was
    /// room for those; if not, calls with paths come to the engine.
    pub fn publish<'a>(
        &self,
        facts: &Facts,
        numbers: impl Iterator<Item = (u32, Kind)>,
        differences: impl Iterator<Item = Difference<'a>>,
    ) -> bool {
        self.close();
        if self.word32(THROUGH).load(Ordering::Relaxed) != 0 {
            for index in 0..DIFFERENT_COUNT {
                self.word_at(DIFFERENT + index * 8).store(0, Ordering::Relaxed);
            }
        }
        for bit in 0..BITS / 8 {
            self.map_byte(PREFIXES, bit).store(0, Ordering::Relaxed);
            self.map_byte(NAMES, bit).store(0, Ordering::Relaxed);
            self.map_byte(WAYS, bit).store(0, Ordering::Relaxed);
        }
        let mut has_room = true;
        for difference in differences {
            has_room &= self.differ(difference);
        }
        let bit = |is, bits| if is { bits } else { 0 };
        let through = bit(facts.changes_here, CHANGES_HERE)
            | bit(facts.differs, DIFFERS)
            | bit(!facts.roots.is_empty(), HAS_ROOTS);
        self.word32(THROUGH).store(through, Ordering::Relaxed);
        let roots = &facts.roots[..facts.roots.len().min(MOST_ROOTS)];
        for (index, (device, ino)) in roots.iter().enumerate() {
            self.word(ROOTS + index * 16).store(*device, Ordering::Relaxed);
            self.word(ROOTS + index * 16 + 8).store(*ino, Ordering::Relaxed);
        }
        self.word32(ROOT_COUNT).store(roots.len() as u32, Ordering::Relaxed);
        let paths =
            has_room && facts.paths && facts.covered.len() <= MOST_COVERED && facts.proc.len() <= MOST_PROC;
        for (number, kind) in numbers {
            let is_path = matches!(
                kind,
                Kind::Open
                    | Kind::OpenAt
                    | Kind::Stat
                    | Kind::StatAt
                    | Kind::Statx
                    | Kind::Access
                    | Kind::AccessAt
                    | Kind::AccessAt2
                    | Kind::ReadLink
                    | Kind::ReadLinkAt
                    | Kind::GetCwd
                    | Kind::Exec
                    | Kind::StatFs
                    | Kind::Unlink
                    | Kind::UnlinkAt
            );
            let taken = match kind {
                Kind::Statx if facts.roots.len() > MOST_ROOTS => false,
                Kind::Native => facts.identity,
                _ => paths || !is_path,
            };
            if number < 512 {
                let value = if taken { kind as u8 } else { 0 };
                self.byte(KINDS + number as usize).store(value, Ordering::Relaxed);
            }
        }
        for target in &facts.targets {
            self.differ(Difference::Name(target));
        }
        for path in facts.targets.iter().chain(&facts.bounds) {
            path.split(|byte| *byte == b'/').for_each(|name| self.set_bit(WAYS, hash(name)));
        }
        // Where no paths are decided, what is at the beginning still counts for descriptors.
        let covered = &facts.covered[..facts.covered.len().min(MOST_COVERED)];
        for (index, (device, ino)) in covered.iter().enumerate() {
            self.word(COVERED + index * 16).store(*device, Ordering::Relaxed);
            self.word(COVERED + index * 16 + 8).store(*ino, Ordering::Relaxed);
        }
        self.word32(COVERED_COUNT).store(covered.len() as u32, Ordering::Relaxed);
        if paths {
            for (index, device) in facts.proc.iter().enumerate() {
                self.word(PROC + index * 8).store(*device, Ordering::Relaxed);
            }
            self.word32(PROC_COUNT).store(facts.proc.len() as u32, Ordering::Relaxed);
        }
        self.word32(TRUE_PROC).store(if paths { facts.true_proc as u32 } else { 0 }, Ordering::Relaxed);
        for index in 0..PROGRAM_COUNT {
            self.word_at(PROGRAMS + index * PROGRAM_LEN).store(0, Ordering::Relaxed);
        }
        for index in 0..LOADER_COUNT {
            self.word_at(LOADERS + index * LOADER_LEN).store(0, Ordering::Relaxed);
        }
        self.publish_trees(if paths { &facts.trees } else { &[] });
        let count = self.word(GENERATION).load(Ordering::Relaxed);
        self.word(GENERATION).store((count | 1).wrapping_add(1), Ordering::SeqCst);
        has_room
    }

    fn publish_trees(&self, trees: &[Tree]) {
        for number in 0..256 {
            self.byte(TREES + number).store(0, Ordering::Relaxed);
        }
        let (mut planes, mut mounts) = (0, 0);
        for tree in trees {
            self.byte(TREES + usize::from(tree.number)).store(1, Ordering::Relaxed);
            if let Some(device) = tree.plane.filter(|_| planes < MOST_PLANES) {
                self.word(PLANES + planes * 16).store(device, Ordering::Relaxed);
                self.word(PLANES + planes * 16 + 8).store(u64::from(tree.number) << 56, Ordering::Relaxed);
                planes += 1;
            }
            if tree.target.len() <= MOUNT_LEN - 16 && mounts < MOST_MOUNTS {
                let at = MOUNTS + mounts * MOUNT_LEN;
                self.word_at(at).store(tree.target.len() as u64, Ordering::Relaxed);
                self.word_at(at + 8).store(tree.root, Ordering::Relaxed);
                for (index, byte) in tree.target.iter().enumerate() {
                    self.byte_at(at + 16 + index).store(*byte, Ordering::Relaxed);
                }
                mounts += 1;
            }
        }
        self.word32(PLANE_COUNT).store(planes as u32, Ordering::Relaxed);
        self.word32(MOUNT_COUNT).store(mounts as u32, Ordering::Relaxed);
    }

    fn set_bit(&self, map: usize, hash: u32) {
        let bit = (hash ^ (hash >> 17)) & (BITS - 1);
        self.map_byte(map, bit / 8).fetch_or(1 << (bit % 8), Ordering::Relaxed);
    }

    fn map_byte(&self, map: usize, index: u32) -> &AtomicU8 {
        self.byte_at(map + index as usize)
    }

    fn byte(&self, at: usize) -> &AtomicU8 {
        self.byte_at(TABLE + at)
    }

    fn byte_at(&self, at: usize) -> &AtomicU8 {
        assert!(at < IMAGES, "the table is where it is");
        // SAFETY: within our mapping, as was just seen; all who share it look at it by loads alone.
        unsafe { AtomicU8::from_ptr(self.memory.as_ptr().add(at)) }
    }

    fn word32(&self, at: usize) -> &AtomicU32 {
        self.word32_at(TABLE + at)
    }

    fn word(&self, at: usize) -> &AtomicU64 {
        self.word_at(TABLE + at)
    }

    /// Half a word at an offset in the file, of what processes only look at.
    pub(crate) fn word32_at(&self, at: usize) -> &AtomicU32 {
        assert!(at % 4 == 0 && at < IMAGES, "the table is where it is");
        // SAFETY: as above, and aligned.
        unsafe { AtomicU32::from_ptr(self.memory.as_ptr().add(at).cast()) }
    }

    /// A word of it.
    pub(crate) fn word_at(&self, at: usize) -> &AtomicU64 {
        assert!(at % 8 == 0 && at < IMAGES, "the table is where it is");
        // SAFETY: as above, and aligned.
        unsafe { AtomicU64::from_ptr(self.memory.as_ptr().add(at).cast()) }
    }

    fn bytes(&mut self, at: usize, len: usize) -> &mut [u8] {
        assert!(at + len <= FILE, "the file is as long as it is");
        // SAFETY: within our mapping. Nobody runs or reads this part before it is announced.
        unsafe { std::slice::from_raw_parts_mut(self.memory.as_ptr().add(at), len) }
    }
}

impl Drop for Page {
    fn drop(&mut self) {
        // SAFETY: nothing refers to the memory any more. Other processes have mappings of their own.
        let _ = unsafe { nix::sys::mman::munmap(self.memory.cast(), FILE) };
    }
}

/// Where a word for an object is looked for first, and the word.
fn different(device: u64, ino: u64) -> (usize, u64) {
    let mixed = (device.rotate_left(32) ^ ino).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    ((mixed >> 48) as usize, mixed | 1)
}

/// FNV-1a of 32 bits, as the shim computes it.
fn hash(bytes: &[u8]) -> u32 {
    bytes.iter().fold(0x811c_9dc5, |hash, byte| (hash ^ u32::from(*byte)).wrapping_mul(0x0100_0193))
}
