//! The fast path: what concerns no mount is decided in the process itself.
//!
//! [`veduta_trace::shim`] is the code that does it. Here is how it gets into processes, and what it is told.
//!
//! *How it gets in.* The first caught call of a program that the C library's loader starts is the loader's look for
//! `/etc/ld.so.preload`. While it waits for its answer, the loader's own calls are turned into jumps to the shim (they lie in one page,
//! which is then the process's own), and behind the call comes a jump to code that maps the shim. From then on the loader maps
//! libraries through the shim, and where it would map the code of one that we know, it maps that of our patched copy. So files
//! read as they are, and nothing else of the process is changed. Nothing is written where it might run: at that point a process has one
//! thread, and it waits.
//!
//! *What it is told.* The table of mounts as facts about objects of the host, made anew with every mount: what lies under mount points, by device
//! and inode; the names of mount points, as bits; where `/proc` is. While it is made, and where it cannot be told so simply, all calls come
//! to the engine: a mount over a directory with many files, over `/`, with exceptions; a view in which somebody has changed roots.
//!
//! Where the host is seen through a mount, only what differs is told: see [`crate::through`].
//!
//! *What changes later.* Calls of the view that could make, move or remove what a mount point stands on close the table until it is made anew
//! ([`Fast::doubt`]); what others on the host do to it is noticed by inotify ([`crate::fast_watch`]).
//!
//! Processes that filter calls themselves do without: they might not let the shim look.

use std::collections::HashMap;
use std::fs::File as HostFile;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, FileTypeExt, MetadataExt};
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::libc;
use nix::unistd::Pid;
use parking_lot::{Mutex, MutexGuard, RwLock};
use veduta_api::{Filesystem, Result};
use veduta_trace::shim::{self, DISPLACED, Difference, Facts, Kind, Page, Replacement, Tree};
use veduta_trace::sites::{self, Change, Patched};
use veduta_trace::{Notification, Task};

use crate::call::{Answer, Call, Outcome};
use crate::calls::{CALLS, Family, Level, Row, is_native_exception};
use crate::fast_watch::Watch;
use crate::grow::Standing;
use crate::known::Known;
use crate::mounts::{Mount, Service, Table, is_below, shown};
use crate::serve::Source;
use crate::standin::errno;
use crate::through::Through;
use crate::view::View;

/// Operation of the control call: the shim asks for a descriptor of its file.
pub(crate) const GIVE: u64 = 7;
/// Operation of the control call: the shim cannot be mapped.
pub(crate) const UNDO: u64 = 8;
/// Operation of the control call: the table changed while a file was opened, which has to be judged by what it says now.
pub(crate) const SETTLE: u64 = 9;

/// Objects below mount points that are told one by one.
const MOST_BELOW: usize = 128;
/// Bytes; a page.
const PAGE: u64 = 4096;
/// What the C library's loader looks for first.
const FIRST_PATH: &[u8] = b"/etc/ld.so.preload";
/// Where C libraries are.
const LIBRARIES: &[&str] = &[
    "/lib/x86_64-linux-gnu/libc.so.6",
    "/usr/lib/x86_64-linux-gnu/libc.so.6",
    "/lib64/libc.so.6",
    "/usr/lib64/libc.so.6",
    "/usr/lib/libc.so.6",
];
/// A cache of this many partitions is told by name.
const PARTITIONS: u32 = 256;
/// Filesystems (`statfs(2)`) whose objects keep their inode numbers, and where nobody changes anything without the kernel's knowledge:
/// ext2 to ext4, XFS, Btrfs, tmpfs, ramfs, overlayfs, F2FS, SquashFS, EROFS, ISO 9660, JFS, ZFS, bcachefs, `/proc`, `/sys` and `/dev/pts`.
const STEADY: &[i64] = &[
    0xef53,
    0x5846_5342,
    0x9123_683e,
    0x0102_1994,
    0x8584_58f6,
    0x794c_7630,
    0xf2f5_2010,
    0x7371_7368,
    0xe0f5_e1e2,
    0x9660,
    0x3153_464a,
    0x2fc1_2fc1,
    0xca45_1a4e,
    0x9fa0,
    0x6265_6572,
    0x1cd1,
];

/// The same by name, and more of the kernel's own: where the host is seen through a mount, what lies on others comes to the engine.
const STEADY_NAMES: &[&str] = &[
    "ext2",
    "ext3",
    "ext4",
    "xfs",
    "btrfs",
    "tmpfs",
    "ramfs",
    "rootfs",
    "overlay",
    "f2fs",
    "squashfs",
    "erofs",
    "iso9660",
    "jfs",
    "zfs",
    "bcachefs",
    "sysfs",
    "devpts",
    "devtmpfs",
    "cgroup",
    "cgroup2",
    "debugfs",
    "tracefs",
    "securityfs",
    "pstore",
    "bpf",
    "mqueue",
    "hugetlbfs",
    "configfs",
    "fusectl",
    "efivarfs",
    "binfmt_misc",
    "nsfs",
];

/// Device, inode, time of change and size: the same file with the same content.
pub(crate) type FileKey = [u64; 5];

/// A loader, and what is changed in it.
struct Loader {
    patched: Patched<'static>,
    /// All in one page.
    changes: Vec<Change>,
    /// Where that page's changes begin and end. Addresses.
    span: (u64, u64),
}

/// A library whose code is in our file.
struct Library {
    device: u64,
    ino: u64,
    path: Vec<u8>,
    offset: u64,
    len: u64,
    at: u64,
}

#[derive(Default)]
struct Images {
    known: HashMap<FileKey, ()>,
    loaders: Vec<Arc<Loader>>,
    libraries: Vec<Library>,
}

/// Programs that the kernel runs by itself.
#[derive(Default)]
struct Programs {
    /// With this table. As long as this is held, no other has its address.
    table: Weak<Table>,
    /// The loader's path, and what was there.
    loaders: HashMap<FileKey, (Vec<u8>, FileKey)>,
}

/// What there is of it.
pub(crate) struct Inner {
    programs: Mutex<Programs>,
    page: Arc<RwLock<Page>>,
    known: Arc<Known>,
    key: (u64, u64),
    images: RwLock<Images>,
    /// Some process filters calls, or might; or one is traced.
    filters: AtomicBool,
    /// Filters of the engine itself.
    own_filters: u32,
    /// Filters that growth has added.
    grown: AtomicU32,
    /// A call may be changing what mount points stand on.
    is_doubtful: AtomicBool,
    /// Calls are not caught in the way that the shim goes with.
    is_unfit: AtomicBool,
    /// Never again in this view.
    is_over: AtomicBool,
    /// What happens to mount points.
    watch: Watch,
    /// Devices of virtual trees that the kernel serves.
    planes: Mutex<Vec<u64>>,
    /// What the shim was told last; `None`: nothing, or nothing yet.
    told: Mutex<Option<(Facts, Level)>>,
    /// Of this table, if programs may be told.
    told_of: Mutex<Weak<Table>>,
    processes: AtomicU32,
    /// Held while the shim is told something: the table, or a difference that it would lack.
    telling: Mutex<()>,
    /// No mount is in `/etc`, which is a directory.
    plain_etc: AtomicBool,
    state: Mutex<String>,
}

/// The fast path of a view.
#[derive(Default)]
pub(crate) struct Fast(Option<Arc<Inner>>);

impl Fast {
    /// On if there is one for this machine, and `VEDUTA_FAST=0` does not say otherwise.
    pub(crate) fn new() -> Self {
        if std::env::var_os("VEDUTA_FAST").is_some_and(|word| word == "0") {
            return Self(None);
        }
        let make = || -> Result<Inner> {
            let page = Page::new()?;
            let data =
                HostFile::from(page.file().try_clone_to_owned().map_err(errno)?).metadata().map_err(errno)?;
            page.close();
            let page = Arc::new(RwLock::new(page));
            Ok(Inner {
                programs: Mutex::default(),
                known: Arc::new(Known::new(&page)),
                page,
                key: (data.dev(), data.ino()),
                images: RwLock::default(),
                filters: AtomicBool::new(false),
                own_filters: Standing::of("self").unwrap_or_default().filters,
                grown: AtomicU32::new(0),
                is_unfit: AtomicBool::new(false),
                is_over: AtomicBool::new(false),
                is_doubtful: AtomicBool::new(false),
                watch: Watch::new()?,
                planes: Mutex::default(),
                told: Mutex::default(),
                told_of: Mutex::default(),
                processes: AtomicU32::new(0),
                telling: Mutex::default(),
                plain_etc: AtomicBool::new(false),
                state: Mutex::new("nothing is mounted".into()),
            })
        };
        match make() {
            Ok(inner) => Self(Some(Arc::new(inner))),
            Err(errno) => {
                tracing::debug!("no fast path: {}", errno.desc());
                Self(None)
            }
        }
    }

    /// Whether there is one.
    pub(crate) fn is_on(&self) -> bool {
        self.0.as_ref().is_some_and(|inner| !inner.is_unfit.load(Ordering::Relaxed))
    }

    /// There is none in this view: calls are caught in another way than by notification. Said before anything runs.
    pub(crate) fn never(&self) {
        if let Some(inner) = &self.0 {
            inner.is_unfit.store(true, Ordering::Relaxed);
        }
        self.end("calls are not caught by notification");
    }

    /// What processes are told of trees.
    pub(crate) fn known(&self) -> Option<&Arc<Known>> {
        self.0.as_ref().map(|inner| &inner.known)
    }

    /// How it is, for people.
    pub(crate) fn describe(&self) -> String {
        let Some(inner) = &self.0 else { return "off".into() };
        let libraries = inner.images.read().libraries.len();
        let state = inner.state.lock().clone();
        format!("{state}; {} processes, {libraries} libraries", inner.processes.load(Ordering::Relaxed))
    }

    /// From now on all calls come to the engine, until [`tell`](Self::tell).
    pub(crate) fn close(&self) {
        if let Some(inner) = &self.0 {
            inner.page.read().close();
        }
    }

    /// All calls come to the engine, for good.
    pub(crate) fn end(&self, why: &str) {
        if let Some(inner) = &self.0 {
            inner.is_over.store(true, Ordering::SeqCst);
            inner.page.read().close();
            *inner.state.lock() = format!("off: {why}");
        }
    }

    /// Tells the shim what is mounted. One at a time: the caller holds what guards the table.
    pub(crate) fn tell(&self, view: &View, table: &Arc<Table>) {
        let Some(inner) = &self.0 else { return };
        if inner.is_over.load(Ordering::SeqCst) {
            return;
        }
        // In this order: what happens in between is seen.
        inner.watch.renew(table);
        let (mut facts, why_not) = inner.facts(table, !view.all_root);
        facts.covered.splice(0..0, view.lent.changed());
        let level = view.level();
        // Held until it is told: a plane that is made meanwhile closes the table afterwards.
        let planes = inner.planes.lock();
        facts.proc.extend(planes.iter());
        facts.programs = may_tell_programs(view, table);
        let through = facts.changes_here;
        // The numbers of copies are put right (`World::puts_numbers_right`); which have others is told where the host is seen through a tree.
        let lends = |mount: &Arc<Mount>| mount.facts.backing && !mount.of_host && !mount.sees_through();
        let numbers_right = !table.mounts().iter().any(lends);
        let kind = |row: &Row| kind_at(row, level, through, numbers_right);
        let numbers = CALLS.iter().filter_map(|row| Some((row.number()?, kind(row)?)));
        let page = inner.page.read();
        {
            let _telling = inner.telling.lock();
            *inner.told_of.lock() = if facts.programs { Arc::downgrade(table) } else { Weak::new() };
            let mut differences = Vec::new();
            for mount in table.mounts() {
                if let Some(through) = mount.through.as_ref().filter(|through| through.is_clear()) {
                    through.with_differences(|difference| differences.push(Told::from(difference)));
                }
            }
            if !page.publish(&facts, numbers, differences.iter().map(Told::difference)) {
                tracing::debug!("too much differs from the host for the fast path");
            }
        }
        drop(planes);
        if inner.is_doubtful.load(Ordering::SeqCst) {
            // It will be told again.
            page.close();
        }
        if inner.is_over.load(Ordering::SeqCst) {
            page.close();
            return;
        }
        let is_dir = std::fs::symlink_metadata("/etc").is_ok_and(|data| data.is_dir());
        let is_other = |mount: &&Arc<Mount>| !mount.is_plain() && is_below(&mount.target, b"/etc");
        let is_plain =
            is_dir && table.is_host(FIRST_PATH, false) && table.mounts().iter().find(is_other).is_none();
        inner.plain_etc.store(is_plain && facts.paths, Ordering::Release);
        *inner.told.lock() = Some((facts, level));
        *inner.state.lock() = match why_not {
            None => "on".into(),
            Some(why) => format!("on for descriptors, off for paths: {why}"),
        };
    }

    /// Tells it again if it would be something else.
    pub(crate) fn tell_if_changed(&self, view: &View, table: &Arc<Table>) {
        let Some(inner) = &self.0 else { return };
        let (mut facts, _) = inner.facts(table, !view.all_root);
        facts.covered.splice(0..0, view.lent.changed());
        facts.proc.extend(inner.planes.lock().iter());
        facts.programs = may_tell_programs(view, table);
        if inner.told.lock().as_ref() != Some(&(facts, view.level())) {
            self.close();
            self.tell(view, table);
        }
    }

    /// The calls that gave rise to doubt are over.
    pub(crate) fn settle(&self) {
        if let Some(inner) = &self.0 {
            inner.is_doubtful.store(false, Ordering::SeqCst);
        }
    }

    /// Whether it was told anything.
    pub(crate) fn is_told(&self) -> bool {
        self.0.as_ref().is_some_and(|inner| inner.told.lock().is_some())
    }

    /// What watches mount points.
    pub(crate) fn watch(&self) -> Option<&Watch> {
        self.0.as_ref().map(|inner| &inner.watch)
    }

    /// The kernel serves a virtual tree with this device number: its files are read and written in processes, and all else comes
    /// to the engine. `true`: it is a new one, and the table is closed until it is told again ([`Fast::tell_if_changed`]).
    pub(crate) fn plane_device(&self, device: u64) -> bool {
        let Some(inner) = &self.0 else { return false };
        let mut planes = inner.planes.lock();
        let is_new = !planes.contains(&device);
        if is_new {
            self.close();
            planes.push(device);
        }
        is_new
    }

    /// What a mount of this tree at a place is to have, if the host is seen through it.
    pub(crate) fn through(&self, target: &[u8], tree: &dyn Filesystem) -> Option<Arc<Through>> {
        let inner = self.0.as_ref().filter(|inner| !inner.is_unfit.load(Ordering::Relaxed))?;
        Through::new(target, tree, inner)
    }

    /// The same for a bind of a place of the host on itself.
    pub(crate) fn through_itself(&self, target: &[u8]) -> Option<Arc<Through>> {
        let inner = self.0.as_ref().filter(|inner| !inner.is_unfit.load(Ordering::Relaxed))?;
        Some(Through::of_itself(target, inner))
    }

    /// A call is about to change what is at this path of the host. If a mount point is there or below, all calls come to the
    /// engine until it has been looked at again.
    pub(crate) fn doubt(&self, table: &Table, name: &str, path: &[u8]) {
        const CHANGE: &[&str] = &[
            "rename",
            "renameat",
            "renameat2",
            "mkdir",
            "mkdirat",
            "rmdir",
            "unlink",
            "unlinkat",
            "symlink",
            "symlinkat",
            "link",
            "linkat",
            "mknod",
            "mknodat",
            "open",
            "openat",
            "openat2",
            "creat",
            "bind",
        ];
        let Some(inner) = &self.0 else { return };
        if CHANGE.contains(&name) && table.any_below(path) && !path.is_empty() {
            inner.nothing_is_certain();
        }
    }

    /// Whether a program is one of the host that its loader, also one of the host, runs: as it was found with the same table, and the
    /// loader's path leads where it did.
    pub(crate) fn runs_on_host(&self, table: &Arc<Table>, program: &FileKey) -> bool {
        let Some(inner) = &self.0 else { return false };
        let programs = inner.programs.lock();
        if !std::ptr::eq(programs.table.as_ptr(), Arc::as_ptr(table)) {
            return false;
        }
        let Some((path, loader)) = programs.loaders.get(program) else { return false };
        let is_there = key_of(Path::new(std::ffi::OsStr::from_bytes(path))).is_ok_and(|now| now == *loader);
        if is_there {
            inner.tell_program(table, program, path, loader);
        }
        is_there
    }

    /// A program of the host is about to be run by this loader: it, and the libraries that it will map, are made ready.
    pub(crate) fn learn(&self, table: &Arc<Table>, program: FileKey, loader: &[u8]) {
        const MANY: usize = 4096;
        let Some(inner) = &self.0 else { return };
        let path = Path::new(std::ffi::OsStr::from_bytes(loader));
        let Ok(key) = key_of(path) else { return };
        {
            let mut programs = inner.programs.lock();
            if !std::ptr::eq(programs.table.as_ptr(), Arc::as_ptr(table)) || programs.loaders.len() >= MANY {
                *programs = Programs { table: Arc::downgrade(table), loaders: HashMap::new() };
            }
            programs.loaders.insert(program, (loader.to_vec(), key));
        }
        inner.tell_program(table, &program, loader, &key);
        if inner.images.read().known.contains_key(&key) {
            return;
        }
        let mut images = inner.images.write();
        if images.known.insert(key, ()).is_some() {
            return;
        }
        match read_loader(path) {
            Ok(loader) => images.loaders.push(Arc::new(loader)),
            Err(errno) => {
                tracing::debug!(path = %path.display(), "no fast path by this loader: {}", errno.desc());
                return;
            }
        }
        for library in LIBRARIES {
            if let Err(errno) = inner.add_library(&mut images, Path::new(library)) {
                tracing::debug!(library, "calls of this library are caught: {}", errno.desc());
            }
        }
    }

    /// A call that has just come: if it is the first of a program, the shim is brought in. `true`: the call is the kernel's.
    pub(crate) fn first_call(&self, view: &View, source: &Source, notification: &Notification) -> bool {
        let Some(inner) = &self.0 else { return false };
        if i64::from(notification.number) != libc::SYS_access || notification.args[1] != libc::R_OK as u64 {
            return false;
        }
        let Some((index, loader, base)) = inner.loader_at(notification.next) else { return false };
        let task = Task(notification.tid);
        let mut path = [0; FIRST_PATH.len() + 1];
        if task.read(notification.args[0], &mut path).is_err()
            || &path[..FIRST_PATH.len()] != FIRST_PATH
            || path[FIRST_PATH.len()] != 0
        {
            return false;
        }
        if inner.is_over.load(Ordering::Relaxed)
            || (inner.filters.load(Ordering::Acquire) && inner.is_apart(task))
        {
            return false;
        }
        // Whoever mounts is told to be root.
        if !view.is_root && crate::proc::is_mounter(view, task) {
            return false;
        }
        match inner.enter(source, notification, index, &loader, base) {
            Ok(()) => {
                inner.processes.fetch_add(1, Ordering::Relaxed);
            }
            Err(errno) => tracing::debug!("process {} does without the fast path: {}", task.0, errno.desc()),
        }
        let is_absent = || {
            std::fs::symlink_metadata("/etc/ld.so.preload")
                .is_err_and(|error| error.kind() == std::io::ErrorKind::NotFound)
        };
        inner.plain_etc.load(Ordering::Acquire) && !view.has_roots.load(Ordering::Acquire) && is_absent()
    }

    /// Does something with the descriptor that processes map.
    pub(crate) fn with_file<T>(
        &self,
        work: impl FnOnce(std::os::fd::BorrowedFd<'_>) -> Result<T>,
    ) -> Result<T> {
        work(self.0.as_ref().ok_or(Errno::ENOSYS)?.page.read().file())
    }

    /// The shim's own control calls.
    pub(crate) fn control(&self, task: Task, args: &[u64; 6]) -> Outcome {
        let inner = self.0.as_ref().ok_or(Errno::ENOSYS)?;
        if args[0] == GIVE {
            let fd = inner.page.read().file().try_clone_to_owned().map_err(errno)?;
            return Ok(Answer::Fd { fd, close_on_exec: true, on_its_way: None });
        }
        if args[0] == SETTLE {
            return inner.settled();
        }
        let loader = inner.images.read().loaders.get(args[2] as usize).cloned().ok_or(Errno::EINVAL)?;
        let base = args[1].checked_sub(loader.patched.address).ok_or(Errno::EINVAL)?;
        let memory = HostFile::options().write(true).open(format!("/proc/{}/mem", task.0)).map_err(errno)?;
        for change in &loader.changes {
            memory.write_all_at(&change.old, base + change.address).map_err(errno)?;
        }
        Ok(Answer::Value(0))
    }

    /// The view was idle: who filters calls since then is not known, and all have one filter more.
    pub(crate) fn has_grown(&self) {
        if let Some(inner) = &self.0 {
            inner.grown.fetch_add(1, Ordering::SeqCst);
            inner.filters.store(true, Ordering::SeqCst);
        }
    }

    /// A process is about to filter calls itself.
    pub(crate) fn filters(&self, task: Task) {
        let Some(inner) = &self.0 else { return };
        inner.filters.store(true, Ordering::SeqCst);
        self.switch_off(task);
    }

    /// A process is about to be traced by another, which is to see the calls of the program.
    pub(crate) fn is_traced(&self, call: &Call<'_>) {
        let Some(inner) = &self.0 else { return };
        inner.filters.store(true, Ordering::SeqCst);
        let [request, pid, ..] = call.args;
        let traced = if request == libc::PTRACE_TRACEME.into() {
            call.task
        } else {
            // Numbers of another namespace are not ours: whoever has them is seen to be traced at its next program.
            let space = |task: &str| std::fs::read_link(format!("/proc/{task}/ns/pid")).ok();
            if space("self") != space(&call.task.0.to_string()) {
                return;
            }
            Task(Pid::from_raw(pid as i32))
        };
        if Standing::of(&traced.0.to_string()).is_some_and(|its| its.filters > inner.own_filters) {
            self.switch_off(traced);
        }
    }

    /// All calls of a process come to the engine, until it runs another program.
    fn switch_off(&self, task: Task) {
        // Where it is not mapped there is nothing to be switched off.
        if let Ok(memory) = HostFile::options().write(true).open(format!("/proc/{}/mem", task.0)) {
            let _ = memory.write_all_at(&1_u32.to_ne_bytes(), shim::SWITCH);
        }
    }

    /// The line of `maps`, which is one of `all`, that a process would have without the fast path; `None` for lines that are right.
    pub(crate) fn true_line(&self, line: &[u8], all: &[u8]) -> Option<Vec<u8>> {
        let inner = self.0.as_ref()?;
        // What is mapped behind the shim is nobody's yet.
        let is_shims = line
            .strip_prefix(b"7e90")
            .is_some_and(|rest| rest.iter().position(|byte| *byte == b'-') == Some(8));
        let text = std::str::from_utf8(line).ok().filter(|line| line.contains("/memfd:shim") && !is_shims)?;
        let fields: Vec<&str> = text.split_ascii_whitespace().collect();
        let [range, permissions, offset, device, ino, ..] = fields.as_slice() else { return None };
        let hex = |text| u64::from_str_radix(text, 16).ok();
        let (major, minor) = device.split_once(':')?;
        let key = (libc::makedev(hex(major)? as u32, hex(minor)? as u32), ino.parse().ok()?);
        if key != inner.key {
            return None;
        }
        let offset = hex(offset)?;
        let images = inner.images.read();
        let library = images
            .libraries
            .iter()
            .find(|library| (library.at..library.at + library.len).contains(&offset))?;
        // Of a file of an overlay, the kernel shows another device here than stat(2) does. Parts of the library that are not code have it.
        let is_of_library =
            |line: &&[u8]| line.strip_suffix(&library.path[..]).is_some_and(|head| head.ends_with(b" "));
        let other = all.split(|byte| *byte == b'\n').find(is_of_library).map(String::from_utf8_lossy);
        let shown = other.as_ref().and_then(|line| line.split_ascii_whitespace().nth(3));
        let device = shown.map_or_else(
            || format!("{:02x}:{:02x}", libc::major(library.device), libc::minor(library.device)),
            str::to_owned,
        );
        let offset = offset - library.at + library.offset;
        let head = format!("{range} {permissions} {offset:08x} {device} {} ", library.ino);
        Some([format!("{head:<73}").as_bytes(), &library.path, b"\n"].concat())
    }
}

impl Inner {
    /// No table is told as long as this is held.
    pub(crate) fn telling(&self) -> MutexGuard<'_, ()> {
        self.telling.lock()
    }

    /// Tells the shim of something that is about to differ from the host. Whether there was room.
    pub(crate) fn differs(&self, difference: Difference<'_>) -> bool {
        self.page.read().differ(difference)
    }

    /// All calls come to the engine until the table has been made anew.
    pub(crate) fn nothing_is_certain(&self) {
        self.is_doubtful.store(true, Ordering::SeqCst);
        self.page.read().close();
        self.watch.ring();
    }

    /// Tells of a program that the kernel runs by itself with this table.
    fn tell_program(&self, table: &Arc<Table>, program: &FileKey, path: &[u8], loader: &FileKey) {
        let _telling = self.telling.lock();
        if std::ptr::eq(self.told_of.lock().as_ptr(), Arc::as_ptr(table)) && path.starts_with(b"/") {
            self.page.read().runs(program, path, loader);
        }
    }

    fn facts(&self, table: &Table, identity: bool) -> (Facts, Option<String>) {
        let mut facts = Facts { identity, ..Facts::default() };
        let why_not = look(table, &mut facts).err();
        if why_not.is_some() {
            facts.covered.clear();
        }
        facts.paths = why_not.is_none();
        facts.trees = table.mounts().iter().filter_map(|mount| self.tree(table, mount)).collect();
        (facts, why_not)
    }

    /// A mount of whose tree processes may be told: there is no other on the way to it, in it, or of the same tree.
    fn tree(&self, table: &Table, mount: &Arc<Mount>) -> Option<Tree> {
        let (number, root) = self.known.tree_of(mount.id)?;
        let is_near =
            |other: &Mount| is_below(&other.target, &mount.target) || is_below(&mount.target, &other.target);
        let others = |other: &&Arc<Mount>| other.id != mount.id && !other.is_plain();
        if table
            .mounts()
            .iter()
            .filter(others)
            .any(|other| is_near(other) || Arc::ptr_eq(&other.tree, &mount.tree))
        {
            return None;
        }
        let plane = mount.plane.get().and_then(|plane| Some(plane.as_ref()?.device()));
        Some(Tree { number, root, target: mount.target.clone(), plane })
    }

    /// Whether a process has filters beside those of the view, or a tracer.
    fn is_apart(&self, task: Task) -> bool {
        let most = self.own_filters + 1 + self.grown.load(Ordering::Relaxed);
        Standing::of(&task.0.to_string()).is_none_or(|its| its.filters > most || its.is_traced_by_others())
    }

    /// Waits until the table says something. `EAGAIN`: it takes long.
    fn settled(&self) -> Outcome {
        const LONG: Duration = Duration::from_millis(500);
        let since = Instant::now();
        while self.page.read().is_closed() {
            if self.is_over.load(Ordering::SeqCst) || since.elapsed() > LONG {
                return Err(Errno::EAGAIN);
            }
            crate::turn::stand_aside();
            std::thread::sleep(Duration::from_millis(1));
        }
        Ok(Answer::Value(0))
    }

    fn add_library(&self, images: &mut Images, path: &Path) -> Result<()> {
        let Ok(path) = path.canonicalize() else { return Ok(()) };
        let file = key_of(&path)?;
        if images.known.insert(file, ()).is_some() {
            return Ok(());
        }
        let content = std::fs::read(&path).map_err(errno)?;
        if key_of(&path)? != file {
            return Err(Errno::EAGAIN);
        }
        let patched = sites::patch(&content, &wanted)?;
        let mut page = self.page.write();
        let at = page.add(&patched)?;
        let len = patched.old.len() as u64;
        page.announce(&Replacement { file, offset: patched.offset, len, at })?;
        images.libraries.push(Library {
            device: file[0],
            ino: file[1],
            path: path.as_os_str().as_bytes().to_vec(),
            offset: patched.offset,
            len,
            at,
        });
        Ok(())
    }

    /// The loader that a call may come from, by where its instruction is in its page; and where the loader would then be.
    fn loader_at(&self, next: u64) -> Option<(u32, Arc<Loader>, u64)> {
        let at = next.wrapping_sub(2);
        for (index, loader) in self.images.read().loaders.iter().enumerate() {
            for site in &loader.patched.sites {
                let base = at.wrapping_sub(site.address);
                let is_wanted = site.number == Some(libc::SYS_access as u32);
                let is_within = (loader.span.0..loader.span.1).contains(&site.address);
                if is_wanted && is_within && base % PAGE == 0 {
                    return Some((index as u32, Arc::clone(loader), base));
                }
            }
        }
        None
    }

    /// Changes the loader of a process that waits in its first call.
    fn enter(
        &self,
        source: &Source,
        notification: &Notification,
        index: u32,
        loader: &Loader,
        base: u64,
    ) -> Result<()> {
        let task = Task(notification.tid);
        let patched = &loader.patched;
        let within = |address: u64| (address - patched.address) as usize;
        // All that is read by anybody is as in the file, or this is not what it seems.
        let (from, to) = loader.span;
        let back = notification.next - base;
        let mut part = vec![0; (to - from) as usize];
        task.read(base + from, &mut part)?;
        if part != patched.old[within(from)..within(to)] {
            return Err(Errno::ENOEXEC);
        }
        let pads = loader.changes.first().ok_or(Errno::ENOEXEC)?;
        let boot_at = (pads.address + pads.new.len() as u64).next_multiple_of(16);
        let room = patched.old.len() - within(pads.address);
        let len = within(boot_at) - within(pads.address);
        let mut displaced = [0; DISPLACED];
        displaced.copy_from_slice(
            part.get((back - from) as usize..)
                .and_then(|part| part.get(..DISPLACED))
                .ok_or(Errno::ENOEXEC)?,
        );
        // cmp $-4096, %rax
        if displaced[..2] != [0x48, 0x3d] {
            return Err(Errno::ENOEXEC);
        }
        let memory = HostFile::options().write(true).open(format!("/proc/{}/mem", task.0)).map_err(errno)?;
        let number = {
            let page = self.page.read();
            source.with(|listener| listener.install(notification.id, page.file(), true))?
        };
        let boot = shim::boot(boot_at, back, displaced, number, index, base + patched.address);
        if len + boot.len() > room {
            return Err(Errno::ENOSPC);
        }
        let mut tail = pads.new.clone();
        tail.resize(len, 0xcc);
        tail.extend(boot);
        memory.write_all_at(&tail, base + pads.address).map_err(errno)?;
        for change in &loader.changes[1..] {
            let at = (change.address - from) as usize;
            part[at..at + change.new.len()].copy_from_slice(&change.new);
        }
        let at = (back - from) as usize;
        let distance = boot_at.wrapping_sub(back + 5) as u32;
        part[at] = 0xe9;
        part[at + 1..at + 5].copy_from_slice(&distance.to_le_bytes());
        memory.write_all_at(&part, base + from).map_err(errno)
    }
}

/// Whether the shim may run programs of the host: the engine has nothing to note then, and no mount through which the host is seen forbids it.
fn may_tell_programs(view: &View, table: &Table) -> bool {
    let forbids = |mount: &&Arc<Mount>| mount.sees_through() && mount.no_exec.load(Ordering::Relaxed);
    !view.all_root && table.mounts().iter().find(forbids).is_none()
}

/// What the shim does with a call at a level. What is not caught is not to be judged, but for the mapping of libraries. `through`: what descriptors
/// of the host stand for may be something to be copied before it is changed. `numbers_right`: what descriptors of the host are shown as, and are not, is told.
fn kind_at(row: &Row, level: Level, through: bool, numbers_right: bool) -> Option<Kind> {
    let kind = shim::kind(row.name)?;
    let is_ours =
        (through && matches!(row.name, "fchmod" | "fchown")) || (!numbers_right && row.name == "fstat");
    if is_ours {
        return Some(Kind::Trap);
    }
    let is_caught = level >= Level::Files || row.family != Family::File || is_native_exception(row.name);
    Some(if is_caught || kind == Kind::Map { kind } else { Kind::Trap })
}

/// A difference that is kept for a moment.
enum Told {
    Object(u64, u64),
    Name(Vec<u8>),
}

impl From<Difference<'_>> for Told {
    fn from(difference: Difference<'_>) -> Self {
        match difference {
            Difference::Object(device, ino) => Told::Object(device, ino),
            Difference::Name(path) => Told::Name(path.to_vec()),
        }
    }
}

impl Told {
    fn difference(&self) -> Difference<'_> {
        match self {
            Told::Object(device, ino) => Difference::Object(*device, *ino),
            Told::Name(path) => Difference::Name(path),
        }
    }
}

/// Calls that the shim takes.
fn wanted(number: u32) -> bool {
    crate::calls::by_number(number).is_some_and(|row| shim::kind(row.name).is_some())
}

pub(crate) fn key_of(path: &Path) -> Result<FileKey> {
    let data = std::fs::metadata(path).map_err(errno)?;
    Ok([data.dev(), data.ino(), data.mtime() as u64, data.mtime_nsec() as u64, data.size()])
}

fn read_loader(path: &Path) -> Result<Loader> {
    let content = std::fs::read(path).map_err(errno)?;
    let patched = sites::patch(&content, &wanted)?.into_owned();
    let pads = patched.changes.first().cloned().ok_or(Errno::ENOEXEC)?;
    // The process's own copy of the last page is not read again.
    if patched.old[(pads.address - patched.address) as usize..].iter().any(|byte| *byte != 0) {
        return Err(Errno::ENOEXEC);
    }
    let mut pages: HashMap<u64, usize> = HashMap::new();
    for change in &patched.changes[1..] {
        *pages.entry(change.address / PAGE).or_default() += 1;
    }
    let page =
        pages.into_iter().max_by_key(|(_, count)| *count).map(|(page, _)| page).ok_or(Errno::ENOEXEC)?;
    let is_within = |change: &&Change| {
        change.address / PAGE == page && (change.address + change.old.len() as u64 - 1) / PAGE == page
    };
    let changes: Vec<Change> = patched.changes[1..].iter().filter(is_within).cloned().collect();
    let from = changes.iter().map(|change| change.address).min().ok_or(Errno::ENOEXEC)?;
    let to =
        changes.iter().map(|change| change.address + change.old.len() as u64).max().ok_or(Errno::ENOEXEC)?;
    // Up to the end of what is displaced behind the last call, within the code.
    let to = (to + 16).min((page + 1) * PAGE).min(patched.address + patched.old.len() as u64);
    let changes = std::iter::once(pads).chain(changes).collect();
    Ok(Loader { patched, changes, span: (from, to) })
}

/// What the shim must know of a table; an error says why it cannot be told.
fn look(table: &Table, facts: &mut Facts) -> std::result::Result<(), String> {
    let text = |path: &[u8]| String::from_utf8_lossy(shown(path)).into_owned();
    let mounts = mounted()?;
    facts.proc = mounts.iter().filter(|(kind, _)| kind == "proc").map(|(_, device)| *device).collect();
    facts.true_proc = facts.proc.len();
    if facts.proc.is_empty() {
        return Err("/proc is not mounted".into());
    }
    let mut below = 0;
    for mount in table.mounts() {
        if mount.is_plain() || mount.sees_through() {
            if let Ok(data) = std::fs::symlink_metadata(std::ffi::OsStr::from_bytes(shown(&mount.target))) {
                facts.roots.push((data.dev(), data.ino()));
            }
        }
        if mount.is_plain() {
            facts.bounds.push(mount.target.clone());
            continue;
        }
        if mount.sees_through() {
            facts.changes_here = true;
            if mount.is_itself {
                continue;
            }
            facts.differs = true;
            let is_known = |kind: &str| STEADY_NAMES.contains(&kind);
            let unknown = mounts.iter().filter(|(kind, _)| !is_known(kind)).map(|(_, device)| *device);
            facts.proc.extend(unknown.filter(|device| !facts.proc.contains(device)).collect::<Vec<_>>());
            continue;
        }
        if mount.target.is_empty() {
            return Err("something is mounted over the root".into());
        }
        if !mount.except.is_empty() {
            return Err(format!("{} has exceptions", text(&mount.target)));
        }
        facts.targets.push(mount.target.clone());
        if matches!(mount.service, Service::Disk(_)) {
            for number in 1..=PARTITIONS {
                facts.targets.push([&mount.target, number.to_string().as_bytes()].concat());
                facts.targets.push([&mount.target, format!("p{number}").as_bytes()].concat());
            }
        }
        let path = Path::new(std::ffi::OsStr::from_bytes(&mount.target));
        match std::fs::symlink_metadata(path) {
            Ok(data) => {
                steady(&mount.target)?;
                cover(path, &data, facts, &mut below)?;
            }
            Err(_) => {
                steady(crate::mounts::split(&mount.target).0)?;
                list_parent(&mount.target, facts);
            }
        }
    }
    Ok(())
}

/// Whether objects can be told by their numbers where a mount point is.
fn steady(path: &[u8]) -> std::result::Result<(), String> {
    let path = Path::new(std::ffi::OsStr::from_bytes(shown(path)));
    match rustix::fs::statfs(path) {
        Ok(data) if !STEADY.contains(&data.f_type) => {
            Err(format!("{} lies on a filesystem whose files are not told by their numbers", path.display()))
        }
        _ => Ok(()),
    }
}

/// The directory of a mount point that is not there is listed with it.
fn list_parent(target: &[u8], facts: &mut Facts) {
    let parent = crate::mounts::split(target).0;
    if let Ok(data) = std::fs::symlink_metadata(std::ffi::OsStr::from_bytes(shown(parent))) {
        facts.covered.push((data.dev(), data.ino()));
    }
}

/// Something of the host that is not to be seen, with all that lies in it.
fn cover(
    path: &Path,
    data: &std::fs::Metadata,
    facts: &mut Facts,
    below: &mut usize,
) -> std::result::Result<(), String> {
    let kind = data.file_type();
    let is_loop =
        libc::major(data.rdev()) == 7 || (libc::major(data.rdev()), libc::minor(data.rdev())) == (10, 237);
    if kind.is_fifo() || ((kind.is_block_device() || kind.is_char_device()) && !is_loop) {
        // To open it might do something.
        return Err(format!("{} is a device or a fifo", path.display()));
    }
    facts.covered.push((data.dev(), data.ino()));
    if !kind.is_dir() {
        return Ok(());
    }
    let entries = std::fs::read_dir(path).map_err(|_| format!("{} cannot be listed", path.display()))?;
    for entry in entries {
        *below += 1;
        if *below > MOST_BELOW {
            return Err(format!("{} covers too many files", path.display()));
        }
        let entry = entry.map_err(|_| format!("{} cannot be listed", path.display()))?;
        let path = entry.path();
        match std::fs::symlink_metadata(&path) {
            Ok(data) => cover(&path, &data, facts, below)?,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
            Err(_) => return Err(format!("{} cannot be seen", path.display())),
        }
    }
    Ok(())
}

/// Types and devices of what is mounted, as this process sees it; each device once.
fn mounted() -> std::result::Result<Vec<(String, u64)>, String> {
    let text = std::fs::read("/proc/self/mountinfo").map_err(|_| "/proc cannot be read".to_owned())?;
    let mut found: Vec<(String, u64)> = Vec::new();
    for line in String::from_utf8_lossy(&text).lines() {
        let Some((head, tail)) = line.split_once(" - ") else { continue };
        let device = head.split(' ').nth(2).and_then(|device| device.split_once(':'));
        let numbers = device.and_then(|(major, minor)| Some((major.parse().ok()?, minor.parse().ok()?)));
        let (major, minor) = numbers.ok_or("/proc/self/mountinfo cannot be read")?;
        let device = libc::makedev(major, minor);
        if !found.iter().any(|(_, known)| *known == device) {
            found.push((tail.split(' ').next().unwrap_or_default().to_owned(), device));
        }
    }
    Ok(found)
}
