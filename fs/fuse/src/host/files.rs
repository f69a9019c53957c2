//! What is open, and what is listed.

use std::ffi::OsStr;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use fuser::{BackingId, FileHandle, FopenFlags, Generation, INodeNo, LockOwner, ReplyCreate};
use veduta_api::{DirEntry, Entry, File, FileLock, Ino, Kind, LockKind, OpenFlags, Result};

use super::{Answer, CAPABILITY, Host};
use crate::handles::{DataPath, OpenFile};
use crate::listing::Listing;

/// Bytes; what a file may have to be read when it is opened.
const SMALL_FILE: usize = 128 << 10;

impl Host {
    /// The file of a request: by its handle or, where nothing is ever opened, by its node.
    pub(super) fn file(&self, ino: INodeNo, handle: FileHandle) -> Result<Arc<OpenFile>> {
        if handle.0 != 0 {
            return self.files.find(handle.0);
        }
        let ino = Ino(ino.0);
        if let Some(file) = self.by_ino.find(ino) {
            return Ok(file);
        }
        let file = self.fs.open(ino, OpenFlags::READ)?;
        Ok(self.by_ino.insert(self.open_file(ino, file, false, DataPath::Direct)))
    }

    pub(super) fn open_file(
        &self,
        ino: Ino,
        file: Arc<dyn File>,
        writable: bool,
        path: DataPath,
    ) -> OpenFile {
        OpenFile { ino, file, writable, path, uncapped: AtomicU64::new(0) }
    }

    /// How the kernel is to reach the data of a file that is about to be open. `privileged`: a write takes something away from
    /// it, which the kernel leaves to us.
    pub(super) fn data_path(
        &self,
        ino: Ino,
        file: &Arc<dyn File>,
        direct: bool,
        privileged: bool,
    ) -> DataPath {
        if !self.policy.passthrough || !self.facts.backing {
            return if direct { DataPath::Direct } else { DataPath::Cached };
        }
        let register = || {
            if privileged || file.backing_may_change() {
                return None;
            }
            let fd = file.backing()?;
            match self.notifier.get()?.open_backing(fd) {
                Ok(id) => Some(id),
                Err(error) => {
                    tracing::debug!("the kernel does not take a backing file: {error}");
                    self.backings.give_up();
                    None
                }
            }
        };
        self.backings.enter(ino, direct, register)
    }

    /// Puts a small file into the kernel's cache when it is first opened, so that reading it asks for nothing.
    ///
    /// Nobody may have written it meanwhile: what opens a file to write, or cuts one, is counted under `writers`, which is held while
    /// content that is known to be the newest goes to the kernel. The kernel reads nothing of the node by itself before the first
    /// opening is answered, so that no page is waited for which this thread should fill.
    pub(super) fn fill_cache(&self, ino: Ino, file: &dyn File, path: &DataPath) {
        let may_fill = self.facts.backing && !self.policy.shared && matches!(path, DataPath::Cached);
        if !may_fill || !self.filled.lock().insert(ino) {
            return;
        }
        let before = {
            let writers = self.writers.lock();
            if writers.by_ino.contains_key(&ino) {
                return;
            }
            writers.count
        };
        self.shared.with_buffer(SMALL_FILE + 1, |buffer| {
            let read = file.read_at(buffer, 0);
            let Some(len) = read.ok().filter(|len| (1..=SMALL_FILE).contains(len)) else { return };
            let writers = self.writers.lock();
            if writers.count != before {
                return;
            }
            let stored = self.notifier.get().map(|kernel| kernel.store(INodeNo(ino.0), 0, &buffer[..len]));
            if let Some(Err(error)) = stored {
                tracing::debug!("the kernel does not take content ahead: {error}");
            }
        });
    }

    pub(super) fn open_flags(&self, path: &DataPath, writable: bool) -> FopenFlags {
        let mut flags = FopenFlags::empty();
        match path {
            DataPath::Direct => flags |= FopenFlags::FOPEN_DIRECT_IO,
            DataPath::Cached if !self.policy.shared => flags |= FopenFlags::FOPEN_KEEP_CACHE,
            DataPath::Cached | DataPath::Backing(_) => {}
        }
        // Writes to a backing file are not put off by anybody but the kernel and what the file is on.
        let is_passed = matches!(path, DataPath::Backing(_));
        if (!writable || (is_passed && self.facts.silent_close)) && !self.facts.remote_locks {
            flags |= FopenFlags::FOPEN_NOFLUSH;
        }
        flags
    }

    pub(super) fn backing_of(path: &DataPath) -> Option<&BackingId> {
        if let DataPath::Backing(id) = path { Some(id) } else { None }
    }

    /// Whether a file has set-id bits or capabilities, which its first write takes away.
    pub(super) fn is_privileged(&self, ino: Ino) -> bool {
        let has_set_id = self.fs.getattr(ino).is_ok_and(|attr| attr.perm.bits() & 0o6000 != 0);
        has_set_id || self.fs.getxattr(ino, OsStr::new(CAPABILITY)).is_ok()
    }

    /// Content whose length nobody knows before it is read, such as an info file: the page cache would end at size 0.
    pub(super) fn is_unsized(&self, ino: Ino) -> bool {
        self.policy.shared && self.fs.getattr(ino).is_ok_and(|attr| attr.size == 0 && attr.kind == Kind::File)
    }

    /// A file that is written loses its capabilities; the kernel leaves that to us together with set-user-id.
    pub(super) fn drop_capabilities(&self, file: &OpenFile) {
        let epoch = self.capabilities.load(Ordering::Acquire);
        if file.uncapped.swap(epoch, Ordering::AcqRel) != epoch {
            let _ = self.fs.removexattr(file.ino, OsStr::new(CAPABILITY));
        }
    }

    /// Puts a file into the table of handles.
    pub(super) fn keep(&self, file: OpenFile) -> u64 {
        if file.writable {
            let mut writers = self.writers.lock();
            writers.count += 1;
            *writers.by_ino.entry(file.ino).or_default() += 1;
        }
        self.files.insert(file)
    }

    pub(super) fn close(&self, handle: u64) {
        let Some(file) = self.files.remove(handle) else { return };
        let (ino, writable) = (file.ino, file.writable);
        if self.policy.passthrough && self.facts.backing {
            self.backings.leave(file.ino, &file.path);
        }
        if catch_unwind(AssertUnwindSafe(|| drop(file))).is_err() {
            tracing::error!("the driver panicked while a file was closed");
        }
        if writable {
            let mut writers = self.writers.lock();
            writers.closed += 1;
            if let Some(count) = writers.by_ino.get_mut(&ino) {
                *count -= 1;
                if *count == 0 {
                    writers.by_ino.remove(&ino);
                }
            }
        }
    }

    /// Before attributes are looked at: what [`attr_ttl`](Self::attr_ttl) must know.
    pub(super) fn closings(&self) -> u64 {
        self.writers.lock().closed
    }

    /// How long attributes may be remembered that were looked at after `closings`. `watched`: if they are told of.
    pub(super) fn attr_ttl(&self, ino: Ino, closings: u64, watched: Option<Duration>) -> Duration {
        let writers = self.writers.lock();
        if writers.closed == closings && !writers.by_ino.contains_key(&ino) {
            watched.unwrap_or(self.policy.attr_ttl)
        } else {
            self.policy.written_ttl
        }
    }

    pub(super) fn list(
        &self,
        ino: INodeNo,
        handle: FileHandle,
        offset: u64,
        room: usize,
        plus: bool,
    ) -> Result<Listing> {
        let dir = Ino(ino.0);
        let mut listing = Listing::new(room, plus);
        for (at, name) in [(0, "."), (1, "..")] {
            if offset <= at {
                let st_ino = self.dot(dir, name)?;
                let kind = Some(Kind::Directory);
                let entry = DirEntry { name: OsStr::new(name), ino: None, st_ino, kind, next: at + 1 };
                let _ = listing.take_dot(entry);
            }
        }
        let position = offset.saturating_sub(2);
        let mut sink = |entry: DirEntry<'_>| listing.take(entry);
        if handle.0 == 0 {
            self.fs.readdir(dir, position, &mut sink)?;
        } else {
            self.dirs.find(handle.0)?.dir.read(position, &mut sink)?;
        }
        Ok(listing)
    }

    /// How long may be remembered what a directory, or a name in it, leads to: if others' changes are told.
    pub(super) fn watched(&self, dir: Ino, name: Option<&OsStr>) -> Option<Duration> {
        if self.is_told.load(Ordering::Relaxed) { self.fs.watched(dir, name) } else { None }
    }

    /// The same for a node that is named by itself: what holds if it is a directory, and if it is none.
    pub(super) fn watched_node(&self, ino: Ino) -> (Option<Duration>, Option<Duration>) {
        if !self.is_told.load(Ordering::Relaxed) {
            return (None, None);
        }
        let above = self.fs.parent(ino).ok().and_then(|dir| self.fs.watched(dir, None));
        (self.fs.watched(ino, None), above)
    }

    /// A file is read, so the time of its last access may change, which only a listing anew brings for all of a directory.
    pub(super) fn note_read(&self, ino: Ino) {
        let is_told = self.is_told.load(Ordering::Relaxed);
        if let Some(dir) = is_told.then(|| self.fs.parent(ino).ok()).flatten() {
            self.listed.lock().remove(&dir);
        }
    }

    /// Whether the kernel still holds the names in a directory to be true, so that a listing that it remembers leads to no requests for each
    /// of them.
    pub(super) fn is_listed(&self, dir: Ino) -> bool {
        let Some((at, watched)) = self.listed.lock().get(&dir).copied() else { return false };
        let age = at.elapsed();
        age < self.policy.entry_ttl
            || watched.is_some_and(|time| age < time) && self.watched(dir, None).is_some()
    }

    /// A directory is about to be listed from its beginning.
    pub(super) fn note_listed(&self, dir: Ino) -> Option<Duration> {
        let watched = if self.is_told.load(Ordering::Relaxed) { self.fs.watch(dir) } else { None };
        if self.policy.shared && self.facts.dated_listings {
            self.listed.lock().insert(dir, (Instant::now(), watched));
        }
        watched
    }

    pub(super) fn dot(&self, dir: Ino, name: &str) -> Result<u64> {
        let node = if name == "." { dir } else { self.fs.parent(dir).unwrap_or(dir) };
        Ok(self.fs.getattr(node)?.st_ino)
    }

    /// What a listing's entries lead to. An entry that is gone meanwhile stays listed, without attributes.
    pub(super) fn entries(&self, dir: Ino, listing: &Listing) -> Vec<Option<Entry>> {
        let find = |entry: DirEntry<'_>| {
            let found = self.fs.entry(dir, &entry).ok()?;
            (found.ino.0 != 0).then_some(found)
        };
        listing.iter().map(|(is_dot, entry)| if is_dot { None } else { find(entry) }).collect()
    }

    pub(super) fn reply_created(
        &self,
        answer: Answer<(Entry, Arc<dyn File>)>,
        flags: OpenFlags,
        reply: ReplyCreate,
    ) {
        let (entry, file) = match answer {
            (_, Ok((entry, _))) if entry.ino.0 == 0 => return reply.error(fuser::Errno::EIO),
            (true, Ok(made)) => made,
            (true, Err(errno)) => return reply.error(errno),
            (false, _) => return reply.abandon(),
        };
        let path = self.data_path(entry.ino, &file, false, false);
        let open_flags = self.open_flags(&path, flags.write);
        let opened = self.open_file(entry.ino, file, flags.write, path.clone());
        // What was just made has no capabilities.
        opened.uncapped.store(self.capabilities.load(Ordering::Acquire), Ordering::Release);
        let handle = self.keep(opened);
        let sent = reply.created(
            INodeNo(entry.ino.0),
            Generation(entry.generation),
            &self.attr(&entry.attr),
            if flags.write { self.policy.written_ttl } else { self.policy.attr_ttl },
            self.policy.entry_ttl,
            FileHandle(handle),
            open_flags,
            Self::backing_of(&path),
        );
        if !sent {
            self.close(handle);
            self.forget_quietly(entry.ino, 1);
        }
    }

    pub(super) fn close_dir(&self, handle: u64) {
        let dir = self.dirs.remove(handle);
        if catch_unwind(AssertUnwindSafe(|| drop(dir))).is_err() {
            tracing::error!("the driver panicked while a directory was closed");
        }
    }

    pub(super) fn unlock_all(&self, file: &OpenFile, owner: LockOwner) {
        if self.facts.remote_locks {
            let mut all = FileLock { kind: LockKind::Unlock, start: 0, end: u64::MAX, pid: 0 };
            if let Err(errno) = file.file.lock(owner.0, &mut all, false, false) {
                tracing::warn!(error = errno.desc(), "the locks of a closed file could not be released");
            }
        }
    }
}
