//! Stand-ins: the real descriptors that processes hold for virtual nodes.
//!
//! A virtual file is, to the kernel, a memory file that belongs to its node; a virtual directory is a real directory that has
//! been removed and is empty for ever. Which node a descriptor, a working directory or a mapping stands for is told by its
//! device and inode number, so nothing about processes is kept here: `dup`, `fork`, `exec`, `SCM_RIGHTS` and threads are the
//! kernel's affair. So are positions (those of the stand-in), access modes, `O_APPEND`, and the locks of `fcntl(2)` and
//! `flock(2)`, since all who open a node get descriptors of one stand-in.
//!
//! Reads and writes go to the driver. Once a process maps a part of a file, that part is in the memory file, and from then on
//! reads are served from there; stores of shared mappings are found by comparison and written to the driver.
//!
//! Lock order: a stand-in's `memory`, then the registry's maps.

use std::collections::{HashMap, HashSet};
use std::ffi::CString;
use std::fs::File as HostFile;
use std::ops::Range;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};

use nix::errno::Errno;
use nix::fcntl::{OFlag, open};
use nix::libc;
use nix::sys::stat::Mode;
use parking_lot::{Mutex, RwLock};
use veduta_api::{Directory, File, Ino, Kind, OpenFlags, Result, Seek, SetAttr};
use veduta_trace::raw::{self, Argument};

use crate::fuseplane::Planes;
use crate::known::{Known, Start};
use crate::node::{Node, guarded};
use crate::ranges::Ranges;

/// Bytes; mappings begin and end at multiples of this.
const PAGE: u64 = 4096;
/// Bytes; files are moved between driver and memory in pieces of this size.
const CHUNK: u64 = 1 << 20;

/// A real inode: device and number.
pub(crate) type Key = (u64, u64);

/// What processes hold for a node.
pub(crate) struct StandIn {
    /// The real inode.
    pub key: Key,
    /// The node.
    pub node: Arc<Node>,
    /// Its type.
    pub kind: Kind,
    /// The shim knows it: until the inode can be another's.
    _start: Option<Start>,
    /// The real file or directory; `None` for files of the kernel-FUSE plane, which the kernel itself serves.
    fd: Option<HostFile>,
    files: Mutex<Files>,
    memory: Mutex<Memory>,
    /// Somebody has a descriptor that the kernel does not count: `O_PATH`.
    uncounted: AtomicBool,
    /// For directories.
    pub listings: Mutex<Listings>,
    /// Whoever uses the position of a description of it.
    pub turn: Mutex<()>,
    /// Writers must not keep set-id bits.
    pub set_id: AtomicBool,
    /// When it was made, as the count of stand-ins before.
    age: u64,
    /// How many descriptors of it have arrived at a process.
    arrived: AtomicU64,
}

/// A descriptor of a stand-in is on its way to a process: dropped when it has arrived.
pub(crate) struct OnItsWay(Arc<StandIn>);

impl Drop for OnItsWay {
    fn drop(&mut self) {
        self.0.arrived.fetch_add(1, Ordering::Release);
    }
}

#[derive(Default)]
struct Files {
    reader: Option<Arc<dyn File>>,
    writer: Option<Arc<dyn File>>,
}

#[derive(Default)]
struct Memory {
    /// What the memory file holds.
    valid: Ranges,
    /// Somebody may store into it.
    stores: bool,
}

/// Who lists a directory (see `directory.rs`).
#[derive(Default)]
pub(crate) struct Listings {
    /// Each from the beginning on; the one that was used last is at the end.
    pub known: Vec<Listing>,
    /// How many blocks of numbers were given out.
    pub blocks: u64,
}

/// A directory being listed: how far, and from where it goes on at each position.
pub(crate) struct Listing {
    /// The blocks that its positions are numbers of, in rising order.
    pub blocks: Vec<u64>,
    /// The tree's own open directory.
    pub open: Option<Arc<dyn Directory>>,
    /// Entry `n` of the listing is found from position `cookies[n]` of the tree on.
    pub cookies: Vec<u64>,
    /// It was listed to its end.
    pub ended: bool,
}

impl StandIn {
    /// For a file of the kernel-FUSE plane.
    pub(crate) fn native(key: Key, node: &Arc<Node>) -> Self {
        Self::new(key, node, Kind::File, (None, None), 0)
    }

    fn new(
        key: Key,
        node: &Arc<Node>,
        kind: Kind,
        (start, fd): (Option<Start>, Option<HostFile>),
        age: u64,
    ) -> Self {
        Self {
            key,
            node: Arc::clone(node),
            kind,
            _start: start,
            fd,
            files: Mutex::default(),
            memory: Mutex::default(),
            uncounted: AtomicBool::new(false),
            listings: Mutex::default(),
            turn: Mutex::default(),
            set_id: AtomicBool::new(false),
            age,
            arrived: AtomicU64::new(0),
        }
    }

    /// Whether the kernel itself serves what is done with its descriptors.
    pub(crate) fn is_native(&self) -> bool {
        self.fd.is_none()
    }

    fn fd(&self) -> Result<&HostFile> {
        self.fd.as_ref().ok_or(Errno::EBADF)
    }

    /// A descriptor for a process, as `open(2)` with these flags gives it. The second is kept until the process has it.
    pub(crate) fn open(self: &Arc<Self>, flags: OFlag) -> Result<(OwnedFd, OnItsWay)> {
        let kept = OFlag::O_APPEND | OFlag::O_NONBLOCK | OFlag::O_SYNC | OFlag::O_DSYNC | OFlag::O_ACCMODE;
        let mut flags = if flags.contains(OFlag::O_PATH) {
            self.uncounted.store(true, Ordering::Relaxed);
            // Access mode 3 can neither be read nor written.
            if self.kind == Kind::Directory { OFlag::O_RDONLY } else { OFlag::O_ACCMODE }
        } else {
            flags & kept
        };
        flags |= OFlag::O_CLOEXEC;
        let path = format!("/proc/self/fd/{}", self.fd()?.as_raw_fd());
        Ok((open(path.as_str(), flags, Mode::empty())?, OnItsWay(Arc::clone(self))))
    }

    /// The driver's open file. Opened for writing if that is asked for, and from then on for all.
    pub(crate) fn file(&self, write: bool) -> Result<Arc<dyn File>> {
        let mut files = self.files.lock();
        if let Some(file) = files.writer.as_ref().or(files.reader.as_ref().filter(|_| !write)) {
            return Ok(Arc::clone(file));
        }
        let flags = if write { OpenFlags::READ_WRITE } else { OpenFlags::READ };
        let file = guarded(|| self.node.tree().open(self.node.ino, flags))?;
        let place = if write { &mut files.writer } else { &mut files.reader };
        *place = Some(Arc::clone(&file));
        Ok(file)
    }

    /// Takes a file that the driver opened when it made the node.
    pub(crate) fn set_writer(&self, file: Arc<dyn File>) {
        self.files.lock().writer = Some(file);
    }

    /// Bytes, as the kernel believes.
    pub(crate) fn size(&self) -> u64 {
        self.fd().and_then(|fd| fd.metadata().map_err(errno)).map_or(0, |data| data.size())
    }

    /// Somebody found the file to have this size. If that is news here, the tree is asked once more, with writers kept out: what they
    /// added since must not be cut off.
    pub(crate) fn hear_size(&self, size: u64) {
        if self.kind == Kind::Directory || self.is_native() || self.size() == size {
            return;
        }
        let mut memory = self.memory.lock();
        if let Ok(attr) = self.node.attr() {
            self.set_size(&mut memory, attr.size);
        }
    }

    /// Gives the file a size, which `work` does in the tree: at one time with what is in memory, or mappings that are written back would bring
    /// back what was cut off.
    pub(crate) fn resize(&self, size: u64, work: impl FnOnce() -> Result<()>) -> Result<()> {
        let mut memory = self.memory.lock();
        work()?;
        self.set_size(&mut memory, size);
        Ok(())
    }

    fn set_size(&self, memory: &mut Memory, size: u64) {
        let Some(fd) = &self.fd else { return };
        memory.valid.cut(size.next_multiple_of(PAGE));
        if fd.set_len(size).is_err() {
            tracing::warn!(size, "the memory file of a virtual file cannot have this size");
        }
    }

    /// Reads from an offset: less than asked only at the end of the file.
    pub(crate) fn read_at(&self, buf: &mut [u8], offset: u64) -> Result<usize> {
        let file = self.file(false)?;
        {
            let mut memory = self.memory.lock();
            if !memory.valid.is_empty() {
                let size = self.size();
                if offset >= size {
                    return Ok(0);
                }
                let len = buf.len().min((size - offset) as usize);
                self.fill(&mut memory, offset..offset + len as u64)?;
                drop(memory);
                self.fd()?.read_exact_at(&mut buf[..len], offset).map_err(errno)?;
                return Ok(len);
            }
        }
        guarded(|| file.read_at(buf, offset))
    }

    /// Writes at an offset.
    pub(crate) fn write_at(&self, buf: &[u8], offset: u64) -> Result<usize> {
        let file = self.file(true)?;
        if self.set_id.swap(false, Ordering::Relaxed) {
            let changes = SetAttr { drop_set_id: true, ..SetAttr::default() };
            guarded(|| self.node.tree().setattr(self.node.ino, &changes))?;
        }
        let memory = self.memory.lock();
        let written = guarded(|| file.write_at(buf, offset))?;
        let end = offset + written as u64;
        self.tell_kernel(offset, written as u64);
        let Some(fd) = &self.fd else { return Ok(written) };
        if !memory.valid.is_empty() {
            fd.write_all_at(&buf[..written], offset).map_err(errno)?;
        } else if end > self.size() {
            let _ = fd.set_len(end);
        }
        Ok(written)
    }

    /// Puts a range into the memory file, for a mapping. `stores`: the mapping is shared and may be written.
    pub(crate) fn map(&self, range: Range<u64>, stores: bool) -> Result<()> {
        if stores {
            self.file(true)?;
        }
        let mut memory = self.memory.lock();
        memory.stores |= stores;
        // A page past the end is marked too: the file may grow while it is mapped.
        self.fill(&mut memory, range)
    }

    fn fill(&self, memory: &mut Memory, range: Range<u64>) -> Result<()> {
        let size = self.size();
        let aligned = range.start / PAGE * PAGE..range.end.next_multiple_of(PAGE);
        let missing = memory.valid.missing(aligned);
        if missing.is_empty() {
            return Ok(());
        }
        let (file, fd) = (self.file(false)?, self.fd()?);
        let mut buf = vec![0; CHUNK as usize];
        for gap in missing {
            let mut at = gap.start;
            while at < gap.end.min(size) {
                if gap.end - at > CHUNK {
                    // Large maps are mostly of sparse files.
                    match guarded(|| file.seek(Seek::Data, at)) {
                        Ok(data) => at = data.max(at) / PAGE * PAGE,
                        Err(Errno::ENXIO) => break,
                        Err(_) => {}
                    }
                    if at >= gap.end.min(size) {
                        break;
                    }
                }
                let want = (gap.end.min(size) - at).min(CHUNK) as usize;
                let got = guarded(|| file.read_at(&mut buf[..want], at))?;
                if got == 0 {
                    break;
                }
                // Holes stay holes: memory is not spent on zeros.
                if buf[..got].iter().any(|byte| *byte != 0) {
                    fd.write_all_at(&buf[..got], at).map_err(errno)?;
                }
                at += got as u64;
            }
            memory.valid.add(gap);
        }
        // Reads past the end that extended it would be wrong.
        if self.size() != size {
            fd.set_len(size).map_err(errno)?;
        }
        Ok(())
    }

    /// Writes what shared mappings have stored to the driver.
    pub(crate) fn write_back(&self) -> Result<()> {
        self.write_back_locked(&self.memory.lock())
    }

    fn write_back_locked(&self, memory: &Memory) -> Result<()> {
        // Nobody can look for what a file without a name holds, but those who have it open, and they find it in memory.
        if !memory.stores || self.node.attr().is_ok_and(|attr| attr.nlink == 0) {
            return Ok(());
        }
        let (file, fd) = (self.file(true)?, self.fd()?);
        let size = self.size();
        let (mut new, mut old) = (vec![0; CHUNK as usize], vec![0; CHUNK as usize]);
        for range in memory.valid.iter() {
            let mut at = range.start;
            while at < range.end.min(size) {
                // What is a hole in memory was a hole in the file, and nobody has stored there.
                match rustix::fs::seek(fd, rustix::fs::SeekFrom::Data(at)) {
                    Ok(data) => at = data.max(at) / PAGE * PAGE,
                    Err(rustix::io::Errno::NXIO) => break,
                    Err(_) => {}
                }
                if at >= range.end.min(size) {
                    break;
                }
                let len = (range.end.min(size) - at).min(CHUNK) as usize;
                fd.read_exact_at(&mut new[..len], at).map_err(errno)?;
                let had = guarded(|| file.read_at(&mut old[..len], at))?;
                old[had..len].fill(0);
                if write_differences(&*file, &new[..len], &old[..len], had, at)? {
                    self.tell_kernel(at, len as u64);
                }
                at += len as u64;
            }
        }
        Ok(())
    }

    /// The kernel may have pages of the same node, from before it was emulated.
    fn tell_kernel(&self, offset: u64, len: u64) {
        if let Some(plane) = self.node.plane() {
            plane.written(self.node.ino, offset, len);
        }
    }

    /// `fallocate(2)`: the driver changes the content of a range itself, and what is in memory of it is read again.
    pub(crate) fn allocate(&self, how: veduta_api::Allocate, offset: u64, len: u64) -> Result<()> {
        use veduta_api::Allocate::{Collapse, Extend, Insert, KeepSize, PunchHole, ZeroRange};
        let mut memory = self.memory.lock();
        self.write_back_locked(&memory)?;
        let file = self.file(true)?;
        guarded(|| file.allocate(how, offset, len))?;
        self.tell_kernel(0, 0);
        if memory.valid.is_empty() || matches!(how, Extend | KeepSize) {
            return Ok(());
        }
        let size = guarded(|| self.node.tree().getattr(self.node.ino))?.size;
        let fd = self.fd()?;
        fd.set_len(size).map_err(errno)?;
        let end = if matches!(how, Collapse | Insert) { size } else { (offset + len).min(size) };
        debug_assert!(matches!(how, Collapse | Insert | PunchHole | ZeroRange { .. }));
        let ranges: Vec<_> = memory.valid.iter().cloned().collect();
        let mut buf = vec![0; CHUNK as usize];
        for range in ranges {
            let (mut at, stop) = (range.start.max(offset), range.end.min(end));
            while at < stop {
                let step = (stop - at).min(CHUNK) as usize;
                let got = guarded(|| file.read_at(&mut buf[..step], at))?;
                buf[got..step].fill(0);
                fd.write_all_at(&buf[..step], at).map_err(errno)?;
                at += step as u64;
            }
        }
        memory.valid.cut(size.next_multiple_of(PAGE));
        Ok(())
    }

    /// Whether no process has a descriptor, a mapping or a working directory of it. Directories cannot be asked: `false`.
    pub(crate) fn is_unused(&self) -> bool {
        self.kind != Kind::Directory && !self.uncounted.load(Ordering::Relaxed) && self.is_closed()
    }

    /// Whether no process has a description or a mapping of a file, of those that the kernel counts.
    fn is_closed(&self) -> bool {
        let Some(fd) = &self.fd else { return false };
        // A write lease is granted to whoever is alone with a file.
        let lease = |kind: i32| {
            let number = fd.as_raw_fd() as u64;
            let mut arguments = [
                Argument::Value(number),
                Argument::Value(libc::F_SETLEASE as u64),
                Argument::Value(kind as u64),
            ];
            raw::call(libc::SYS_fcntl as u32, &mut arguments).is_ok()
        };
        let alone = lease(libc::F_WRLCK);
        if alone {
            lease(libc::F_UNLCK);
        }
        alone
    }

    /// Nobody has it open any more: what shared mappings have stored is written, as long as whoever opens the node finds this here. Otherwise
    /// it would come back into what they cut off. `false` if somebody has it open.
    fn settle(&self) -> bool {
        let mut memory = self.memory.lock();
        if !memory.stores {
            return true;
        }
        // Whoever maps it from now on waits for us, to say that it may store.
        if !self.is_closed() {
            return false;
        }
        if let Err(errno) = self.write_back_locked(&memory) {
            tracing::error!(path = %String::from_utf8_lossy(&self.node.path()), "not all was written: {}", errno.desc());
        }
        memory.stores = false;
        true
    }

    /// Whether nothing can have been stored that is not yet written; `false` also where somebody is just at it.
    fn is_settled(&self) -> bool {
        self.memory.try_lock().is_some_and(|memory| !memory.stores)
    }

    /// The last one has closed it: what was put off is done now.
    fn finish(&self) -> Result<()> {
        let stored = self.write_back();
        let files = std::mem::take(&mut *self.files.lock());
        let flushed = match &files.writer {
            Some(file) => guarded(|| file.flush()),
            None => Ok(()),
        };
        // Closing is the driver's code too.
        guarded(|| {
            drop(files);
            Ok(())
        })?;
        stored.and(flushed)
    }
}

/// Writes the pages that differ, and says whether there were any. `had`: how many bytes of the old content are real.
fn write_differences(file: &dyn File, new: &[u8], old: &[u8], had: usize, start: u64) -> Result<bool> {
    let mut differs = false;
    for (index, page) in new.chunks(PAGE as usize).enumerate() {
        let at = index * PAGE as usize;
        if page == &old[at..at + page.len()] && at + page.len() <= had {
            continue;
        }
        differs = true;
        let mut done = 0;
        while done < page.len() {
            let offset = start + (at + done) as u64;
            match guarded(|| file.write_at(&page[done..], offset))? {
                0 => return Err(Errno::EIO),
                count => done += count,
            }
        }
    }
    Ok(differs)
}

/// All stand-ins of a view.
pub(crate) struct StandIns {
    by_key: RwLock<HashMap<Key, Arc<StandIn>>>,
    by_node: Mutex<HashMap<(u32, Ino), Arc<StandIn>>>,
    /// Where directories are made, for a moment.
    home: PathBuf,
    made: AtomicU64,
    /// One looks for unused ones at a time: whoever looks holds them, and to another they would be in use.
    collecting: Mutex<()>,
    /// With so many, those that nobody uses are let go.
    crowd: AtomicUsize,
    /// Files that lost a name while they were in use: if it was the last one, the tree has their space back when they are let go.
    unlinked: Mutex<HashSet<Key>>,
    /// What the kernel itself serves.
    pub planes: Planes,
    /// There are files whose reads and writes the engine must see.
    pub emulates: AtomicBool,
    /// What processes are told of trees.
    pub known: OnceLock<Arc<Known>>,
    /// What descriptors of some directories of the host stand for.
    pub(crate) held: crate::through::Held,
}

/// Stand-ins that are made without looking whether others are used. Each costs the engine some descriptors, of which it may
/// have no more than its user.
fn most() -> usize {
    raw::descriptor_limit().map_or(MANY, |limit| usize::try_from(limit.most / 16).unwrap_or(usize::MAX))
}

/// The same, where there are not many.
fn few() -> usize {
    most().min(MANY)
}

const MANY: usize = 1024;

/// Descriptors that the engine keeps for what lasts no longer than a call, and for itself: those that stand for nodes have the others.
fn spare(limit: u64) -> u64 {
    (limit / 4).clamp(16, 512)
}

/// What is to stand for a node. The kernel gives the lowest number that is free, so it says how many descriptors there are. `EMFILE` if
/// they are too many: without some to spare, the engine could not even look whose call it is that came.
fn sparing(made: HostFile) -> Result<HostFile> {
    let limit = raw::descriptor_limit()?.most;
    if (made.as_raw_fd() as u64).saturating_add(spare(limit)) < limit { Ok(made) } else { Err(Errno::EMFILE) }
}

impl StandIns {
    /// None yet. `home` is a directory of the host in which directories can be made.
    pub(crate) fn new(home: PathBuf, planes: Planes) -> Self {
        Self {
            planes,
            emulates: AtomicBool::new(false),
            known: OnceLock::new(),
            held: crate::through::Held::default(),
            by_key: RwLock::default(),
            by_node: Mutex::default(),
            home,
            made: AtomicU64::new(0),
            collecting: Mutex::default(),
            crowd: AtomicUsize::new(few()),
            unlinked: Mutex::default(),
        }
    }

    /// What a real inode stands for.
    pub(crate) fn find(&self, key: Key) -> Option<Arc<StandIn>> {
        self.planes.find(key).or_else(|| self.by_key.read().get(&key).cloned())
    }

    /// What an open descriptor of ours stands for.
    pub(crate) fn of_descriptor(&self, fd: BorrowedFd<'_>) -> Option<Arc<StandIn>> {
        if self.is_empty() { None } else { self.find(crate::fuseplane::key_of_fd(fd).ok()?) }
    }

    /// Whether there are none.
    pub(crate) fn is_empty(&self) -> bool {
        self.planes.is_empty() && self.by_key.read().is_empty()
    }

    /// Lets unused ones go when there are twice as many as were in use the last time: programs open files faster than
    /// [`View::tidy`](crate::view::View::tidy) comes.
    pub(crate) fn make_room(&self) {
        if self.by_key.read().len() < self.crowd.load(Ordering::Relaxed) {
            return;
        }
        self.relieve();
        let left = self.by_key.read().len();
        self.crowd.store((left * 2).min(left + most()).max(few()), Ordering::Relaxed);
    }

    /// The stand-in of a node; made if there is none. `size` is the file's.
    pub(crate) fn of_node(&self, node: &Arc<Node>, kind: Kind, size: u64) -> Result<Arc<StandIn>> {
        let by_node = self.by_node.lock();
        if let Some(known) = by_node.get(&(node.mount.id, node.ino)) {
            let known = Arc::clone(known);
            drop(by_node);
            known.hear_size(size);
            return Ok(known);
        }
        drop(by_node);
        self.make_room();
        let mut by_node = self.by_node.lock();
        if let Some(known) = by_node.get(&(node.mount.id, node.ino)) {
            // Somebody was faster, and knows the size.
            return Ok(Arc::clone(known));
        }
        let made = self.made.fetch_add(1, Ordering::Relaxed);
        let fd = if kind == Kind::Directory { self.directory(made)? } else { memory_file(node, size)? };
        let fd = sparing(fd)?;
        let data = fd.metadata().map_err(errno)?;
        let key = (data.dev(), data.ino());
        let start = self.known.get().and_then(|known| known.start(key, node.mount.id, node.ino));
        let stand_in = Arc::new(StandIn::new(key, node, kind, (start, Some(fd)), made));
        by_node.insert((node.mount.id, node.ino), Arc::clone(&stand_in));
        self.by_key.write().insert(stand_in.key, Arc::clone(&stand_in));
        Ok(stand_in)
    }

    /// The stand-in of a node, if there is one.
    pub(crate) fn known(&self, mount: u32, ino: Ino) -> Option<Arc<StandIn>> {
        self.by_node.lock().get(&(mount, ino)).cloned()
    }

    /// A real directory that is empty for ever, since it is removed at once.
    fn directory(&self, number: u64) -> Result<HostFile> {
        let path = self.home.join(format!("{}{number}", directory_prefix()));
        std::fs::create_dir(&path).map_err(errno)?;
        let opened = HostFile::open(&path);
        let removed = std::fs::remove_dir(&path);
        let opened = opened.map_err(errno)?;
        removed.map_err(errno)?;
        Ok(opened)
    }

    /// Lets go of files that nobody has open any more. Those younger than `keep` stand-ins ago stay: whoever opened one may
    /// not have it yet.
    pub(crate) fn collect(&self, mount: Option<u32>, keep: u64) {
        let _collecting = self.collecting.lock();
        let young = self.made.load(Ordering::Relaxed).saturating_sub(keep);
        let candidates: Vec<_> = self
            .by_key
            .read()
            .values()
            .filter(|stand_in| stand_in.age < young || keep == 0)
            .filter(|stand_in| mount.is_none_or(|mount| stand_in.node.mount.id == mount))
            .filter(|stand_in| stand_in.is_unused())
            .cloned()
            .collect();
        candidates.iter().for_each(|stand_in| self.let_go(stand_in));
    }

    /// Lets go of a file that nobody uses, unless somebody is about to. Called with `collecting` locked.
    fn let_go(&self, stand_in: &Arc<StandIn>) {
        if !stand_in.settle() {
            return;
        }
        let mut by_node = self.by_node.lock();
        // Whoever is about to hand it out holds another reference: the two maps have two, and we have one.
        if Arc::strong_count(stand_in) > 3 || !stand_in.is_unused() || !stand_in.is_settled() {
            return;
        }
        by_node.remove(&(stand_in.node.mount.id, stand_in.node.ino));
        self.by_key.write().remove(&stand_in.key);
        drop(by_node);
        if let Err(errno) = stand_in.finish() {
            tracing::error!(path = %String::from_utf8_lossy(&stand_in.node.path()), "not all was written: {}", errno.desc());
        }
    }

    /// A node has lost a name. If it was its last one, the tree has its space back when the file is let go, which is done at once or
    /// when nobody has it open any more.
    pub(crate) fn unlinked(&self, node: &Node) {
        let Some(stand_in) = self.known(node.mount.id, node.ino) else { return };
        if stand_in.kind == Kind::Directory {
            return;
        }
        let _collecting = self.collecting.lock();
        let key = stand_in.key;
        if stand_in.is_unused() {
            self.let_go(&stand_in);
        }
        if self.by_key.read().contains_key(&key) {
            self.unlinked.lock().insert(key);
        }
    }

    /// Lets go of files that lost a name, and that nobody has open any more. Whether there were any.
    pub(crate) fn collect_unlinked(&self) -> bool {
        let keys: Vec<Key> = self.unlinked.lock().iter().copied().collect();
        if keys.is_empty() {
            return false;
        }
        let _collecting = self.collecting.lock();
        for key in &keys {
            let stand_in = self.by_key.read().get(key).filter(|stand_in| stand_in.is_unused()).cloned();
            if let Some(stand_in) = stand_in {
                self.let_go(&stand_in);
            }
        }
        let by_key = self.by_key.read();
        self.unlinked.lock().retain(|key| by_key.contains_key(key));
        keys.iter().any(|key| !by_key.contains_key(key))
    }

    /// Lets go of all that nobody uses, and of what the kernel does not tell that of: for one that has no descriptors left.
    pub(crate) fn relieve(&self) {
        self.collect(None, 64.min(most() as u64));
        self.collect_uncounted();
    }

    /// Lets go of directories, and of files opened with `O_PATH`, that no process has open or is in. The kernel does not tell that, so
    /// descriptors and working directories of all processes are looked at. One that arrived at a process since we began to look, or is
    /// on its way, stays. Those in a socket, on their way from one process to another, are not seen: the newest stay.
    fn collect_uncounted(&self) {
        let _collecting = self.collecting.lock();
        let newest = 32.min(most() as u64 / 2);
        let young = self.made.load(Ordering::Relaxed).saturating_sub(newest);
        let is_candidate = |stand_in: &&Arc<StandIn>| {
            stand_in.age < young
                && (stand_in.kind == Kind::Directory || stand_in.uncounted.load(Ordering::Relaxed))
        };
        let candidates: Vec<_> = self
            .by_key
            .read()
            .values()
            .filter(is_candidate)
            .map(|stand_in| (Arc::clone(stand_in), stand_in.arrived.load(Ordering::Acquire)))
            .collect();
        let Some((directories, files)) = in_use() else { return };
        for (stand_in, arrived) in candidates {
            let is_used = match stand_in.kind {
                Kind::Directory => directories.contains(&stand_in.age),
                _ => files.contains(&stand_in.key) || !stand_in.is_closed(),
            };
            if is_used || !stand_in.settle() {
                continue;
            }
            let mut by_node = self.by_node.lock();
            // As in `collect`.
            if Arc::strong_count(&stand_in) > 3
                || stand_in.arrived.load(Ordering::Acquire) != arrived
                || !stand_in.is_settled()
            {
                continue;
            }
            by_node.remove(&(stand_in.node.mount.id, stand_in.node.ino));
            self.by_key.write().remove(&stand_in.key);
            drop(by_node);
            if let Err(errno) = stand_in.finish() {
                tracing::error!(path = %String::from_utf8_lossy(&stand_in.node.path()), "not all was written: {}", errno.desc());
            }
        }
    }

    /// Takes all stand-ins of a mount out, for its end, and finishes them.
    pub(crate) fn drop_mount(&self, mount: u32) -> Result<()> {
        let of_mount: Vec<_> = self.of_mount(mount);
        let mut result = Ok(());
        for stand_in in of_mount {
            self.by_node.lock().remove(&(mount, stand_in.node.ino));
            self.by_key.write().remove(&stand_in.key);
            result = result.and(stand_in.finish());
        }
        result
    }

    /// All stand-ins of a mount.
    pub(crate) fn of_mount(&self, mount: u32) -> Vec<Arc<StandIn>> {
        self.by_key.read().values().filter(|stand_in| stand_in.node.mount.id == mount).cloned().collect()
    }

    /// All stand-ins.
    pub(crate) fn all(&self) -> Vec<Arc<StandIn>> {
        self.by_key.read().values().cloned().collect()
    }
}

/// What the names of stand-ins for directories begin with; their number follows.
fn directory_prefix() -> String {
    format!(".veduta-{}-", std::process::id())
}

/// The numbers of the directories that processes have open or are in, and the memory files that they have open. Processes that are
/// made meanwhile have what their makers had, so they are looked at too, until there are no new ones; `None` if they are made faster than
/// that.
fn in_use() -> Option<(HashSet<u64>, HashSet<Key>)> {
    const ROUNDS: usize = 100;
    let prefix = directory_prefix();
    let memory_files = std::cell::RefCell::new(HashSet::new());
    let number = |link: PathBuf| -> Option<u64> {
        let text = std::fs::read_link(&link).ok()?;
        if text.as_os_str().as_encoded_bytes().starts_with(b"/memfd:") {
            let data = std::fs::metadata(link).ok()?;
            memory_files.borrow_mut().insert((data.dev(), data.ino()));
            return None;
        }
        text.file_name()?.to_str()?.strip_prefix(&prefix)?.strip_suffix(" (deleted)")?.parse().ok()
    };
    let entries = |path: String| std::fs::read_dir(path).into_iter().flatten().flatten();
    let (mut used, mut seen, mut quiet) = (HashSet::new(), HashSet::new(), 0);
    for _ in 0..ROUNDS {
        let new: Vec<_> = crate::grow::processes().into_iter().filter(|pid| seen.insert(*pid)).collect();
        // Twice: one whose parent ends at that moment may not be listed.
        quiet = if new.is_empty() { quiet + 1 } else { 0 };
        if quiet == 2 {
            return Some((used, memory_files.into_inner()));
        }
        for pid in new {
            used.extend(entries(format!("/proc/{pid}/fd")).filter_map(|entry| number(entry.path())));
            for task in entries(format!("/proc/{pid}/task")) {
                used.extend(["cwd", "root"].into_iter().filter_map(|link| number(task.path().join(link))));
            }
        }
    }
    None
}

fn memory_file(node: &Arc<Node>, size: u64) -> Result<HostFile> {
    let path = node.path();
    let name: Vec<u8> = path.rsplit(|byte| *byte == b'/').next().unwrap_or_default().to_vec();
    // The kernel takes up to 249 bytes.
    let name = CString::new(&name[..name.len().min(200)]).map_err(|_| Errno::EINVAL)?;
    let made = raw::memory_file(&name)?;
    // Opened once more, since the kernel does not count the first descriptor among the users (see `is_unused`).
    let path = format!("/proc/self/fd/{}", made.as_raw_fd());
    let file = HostFile::options().read(true).write(true).open(path).map_err(errno)?;
    file.set_len(size.min(i64::MAX as u64)).map_err(errno)?;
    Ok(file)
}

/// The number of an I/O error.
#[allow(clippy::needless_pass_by_value)] // as `map_err` wants it
pub(crate) fn errno(error: std::io::Error) -> Errno {
    Errno::from_raw(error.raw_os_error().unwrap_or(libc::EIO))
}
