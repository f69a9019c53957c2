//! A mounted volume: files and directories on top of the table.
//!
//! # Locks
//!
//! In this order: [`Volume::dirs`] (the indexes of directories: every operation on names), then a node's
//! [`Inner`] (its record and clusters: every operation on content; two of them only with `dirs` held), then
//! [`Volume::meta`]. [`Volume::nodes`] is taken last and alone. So files are read at the same time, and a long write to
//! one file holds up nobody else; a commit holds up those who allocate.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Weak};
use std::time::Duration;

use parking_lot::{Mutex, RwLock, RwLockReadGuard, RwLockWriteGuard};
use veduta_api::{Attr, Disk, Errno, FileFlags, Ino, Kind, MountError, Perm, Result, Timestamp};

use crate::boot::{Format, Layout, Root, le32, le64};
use crate::charset::{Capitals, Charset, CodePage, table_checksum};
use crate::dir::Dir;
use crate::meta::{Meta, is_fsinfo};
use crate::name::{Policy, ShortCase};
use crate::nodes::{Inner, Node, Nodes};
use crate::options::Settings;
use crate::runs::Runs;
use crate::slots::{self, ARCHIVE, DIRECTORY, Found, READ_ONLY, Record, SYSTEM, Slot};

/// Entries of directories that are kept in memory.
const ENTRIES_KEPT: usize = 200_000;

/// See the head of the file.
pub(crate) struct Volume {
    pub(crate) disk: Disk,
    pub(crate) layout: Arc<Layout>,
    pub(crate) policy: Policy,
    pub(crate) settings: Settings,
    pub(crate) read_only: bool,
    pub(crate) dirs: Mutex<Dirs>,
    pub(crate) meta: Arc<Mutex<Meta>>,
    pub(crate) nodes: Mutex<Nodes>,
    /// Whether somebody looks after changes that wait.
    kept: AtomicBool,
    /// What is odd about the volume, in sentences.
    pub(crate) warnings: Vec<String>,
}

/// The indexes of directories, by first cluster (0: the fixed root).
#[derive(Default)]
pub(crate) struct Dirs {
    loaded: HashMap<u32, Dir>,
    clock: u64,
}

impl Volume {
    pub(crate) fn open(disk: Disk, mut settings: Settings, read_only: bool) -> Result<Self, MountError> {
        let read_only = read_only || disk.is_read_only();
        let layout = Arc::new(Layout::read(&disk, !read_only)?);
        let policy = Policy {
            page: settings
                .page
                .take()
                .or_else(|| CodePage::find("437"))
                .ok_or_else(|| MountError::usage("no code page"))?,
            charset: settings.charset.take().unwrap_or(Charset::Utf8),
            capitals: Capitals::unicode(),
            short_case: if layout.is_exfat() { ShortCase::Mixed } else { settings.short_case },
            strict: settings.strict,
            tail: settings.tail,
        };
        let meta = Meta::new(disk.clone(), Arc::clone(&layout), settings.discard);
        let mut volume = Self {
            warnings: layout.warnings.clone(),
            dirs: Mutex::default(),
            meta: Arc::new(Mutex::new(meta)),
            kept: AtomicBool::new(false),
            nodes: Mutex::default(),
            disk,
            layout,
            policy,
            settings,
            read_only,
        };
        let failed = |errno: Errno| match errno {
            Errno::EUCLEAN => MountError::corrupt("the root directory cannot be read"),
            errno => MountError::system(errno, format!("cannot read the root directory: {errno}")),
        };
        volume.adopt_root().map_err(failed)?;
        if volume.layout.is_exfat() {
            volume.load_exfat()?;
        } else {
            volume.load_fsinfo().map_err(failed)?;
        }
        if volume.layout.dirty {
            volume.warnings.push("the volume was not cleanly unmounted: it should be checked".into());
        }
        if !read_only {
            for warning in &volume.warnings {
                tracing::warn!("{}: {warning}", volume.disk.name());
            }
        }
        Ok(volume)
    }

    fn adopt_root(&self) -> Result<()> {
        let runs = match self.layout.root {
            Root::Fixed { .. } => None,
            Root::Cluster(start) => Some(self.meta.lock().chain(start)?),
        };
        let bytes = match (&runs, self.layout.root) {
            (None, Root::Fixed { len, .. }) => len,
            (runs, _) => {
                u64::from(runs.as_ref().map_or(0, Runs::total)) * u64::from(self.layout.cluster_size)
            }
        };
        let record = Record {
            attr: DIRECTORY,
            start: match self.layout.root {
                Root::Fixed { .. } => 0,
                Root::Cluster(start) => start,
            },
            size: bytes,
            valid: bytes,
            contiguous: false,
            mtime: Timestamp::default(),
            atime: Timestamp::default(),
            btime: Timestamp::default(),
        };
        let inner =
            Inner { record, slots: Vec::new(), runs, parent: Ino::ROOT.0, unlinked: false, program: false };
        let node = Arc::new(Node { ino: Ino::ROOT.0, is_dir: true, inner: RwLock::new(inner) });
        self.nodes.lock().adopt(node, 0, 1);
        Ok(())
    }

    /// The free count and the hint of FSInfo. The count is believed only if the options say so.
    fn load_fsinfo(&mut self) -> Result<()> {
        let Some(at) = self.layout.fsinfo else { return Ok(()) };
        let sector = self.disk.read_vec(at, 512)?;
        if !is_fsinfo(&sector) {
            self.warnings.push("the FSInfo sector has wrong signatures, and is ignored".into());
            return Ok(());
        }
        let free = u64::from(le32(&sector, 488));
        let known = self.settings.usefree && !self.layout.dirty && free <= u64::from(self.layout.clusters);
        self.meta.lock().believe(known.then_some(free), le32(&sector, 492));
        Ok(())
    }

    /// exFAT: the bitmap and the up-case table, which the root directory names.
    fn load_exfat(&mut self) -> Result<(), MountError> {
        let io = |errno: Errno| MountError::system(errno, format!("cannot read the volume: {errno}"));
        let root = self.root();
        let mut dirs = self.dirs.lock();
        let dir = self.dir(&mut dirs, &root).map_err(io)?;
        let (bitmaps, upcase) = (dir.offsets_of(&dir.bitmaps), dir.upcase.map(|slot| dir.offset(slot)));
        dirs.loaded.clear();
        drop(dirs);
        let shared = Arc::clone(&self.meta);
        let mut meta = shared.lock();
        let bitmap = match bitmaps.first() {
            Some(at) => meta.slot(*at).map_err(io)?,
            None => return Err(MountError::corrupt("the root directory names no allocation bitmap")),
        };
        let runs = meta.chain(le32(&bitmap, 20)).map_err(io)?;
        let bytes = u64::from(runs.total()) * u64::from(self.layout.cluster_size);
        let need = u64::from(self.layout.clusters).div_ceil(8);
        if le64(&bitmap, 24) < need || bytes < need {
            return Err(MountError::corrupt("the allocation bitmap is too short"));
        }
        let places = runs.iter().map(|(start, len)| {
            (self.layout.offset(start), u64::from(len) * u64::from(self.layout.cluster_size))
        });
        meta.set_bitmap(places.collect());
        let capitals = match upcase {
            Some(at) => {
                let slot = meta.slot(at).map_err(io)?;
                let len = le64(&slot, 24).min(1 << 17) as usize;
                let runs = meta.chain(le32(&slot, 20)).map_err(io)?;
                read_all(&self.disk, &self.layout, &runs, len)
                    .ok()
                    .filter(|table| table_checksum(table) == le32(&slot, 4))
            }
            None => None,
        };
        match capitals.as_deref().and_then(Capitals::from_table) {
            Some(capitals) => self.policy.capitals = capitals,
            None => self.warnings.push("the up-case table is damaged; that of Unicode is used".into()),
        }
        Ok(())
    }

    /// Starts a change.
    pub(crate) fn begin(&self) -> Result<()> {
        self.meta.lock().begin()?;
        if !self.kept.swap(true, Ordering::Relaxed) {
            // Not at the mount: a host may go to the background after that, which no thread survives.
            let meta = Arc::downgrade(&self.meta);
            let keeper = std::thread::Builder::new().name("fat-keeper".into()).spawn(move || keep(&meta));
            if let Err(error) = keeper {
                tracing::warn!("{}: changes wait for an fsync: {error}", self.disk.name());
            }
        }
        Ok(())
    }

    // --- Nodes ----------------------------------------------------------------------------------------------------------

    pub(crate) fn node(&self, ino: Ino) -> Result<Arc<Node>> {
        self.nodes.lock().find(ino).ok_or(Errno::ESTALE)
    }

    pub(crate) fn root(&self) -> Arc<Node> {
        // It is adopted at the mount and never dropped.
        self.nodes.lock().find(Ino::ROOT).expect("the root was adopted at the mount")
    }

    /// Minutes east of UTC.
    pub(crate) fn zone(&self) -> i32 {
        self.settings.zone
    }

    pub(crate) fn wide(&self) -> bool {
        self.layout.format == Format::Fat32
    }

    /// Says where a volume is damaged, and that it is.
    pub(crate) fn corrupt<T>(&self, what: impl std::fmt::Display) -> Result<T> {
        tracing::error!("{}: {what}", self.disk.name());
        Err(Errno::EUCLEAN)
    }

    /// The node whose set lies there, with one more reference. `dirs` is held, so that nobody else makes it.
    pub(crate) fn load(&self, parent: &Node, slots: Vec<u64>, name: &[u8]) -> Result<Arc<Node>> {
        let main = self.main_of(&slots);
        let number = {
            let mut nodes = self.nodes.lock();
            let number = nodes.number(main);
            if let Some(node) = nodes.take(number) {
                return Ok(node);
            }
            number
        };
        let record = self.read_record(&mut self.meta.lock(), &slots)?;
        let mut runs = None;
        if record.is_dir() {
            if self.is_ancestor(parent, record.start) || !self.layout.is_cluster(record.start) {
                return self
                    .corrupt(format_args!("a directory is said to start at cluster {}", record.start));
            }
            runs = Some(self.runs_of(&mut self.meta.lock(), &record)?);
        }
        let node = self.make(number, record, slots, runs, parent.ino, name);
        self.nodes.lock().adopt(Arc::clone(&node), parent.ino, 1);
        Ok(node)
    }

    pub(crate) fn make(
        &self,
        number: u64,
        record: Record,
        slots: Vec<u64>,
        runs: Option<Runs>,
        parent: u64,
        name: &[u8],
    ) -> Arc<Node> {
        let is_dir = record.is_dir();
        let inner = Inner { record, slots, runs, parent, unlinked: false, program: is_program(name) };
        Arc::new(Node { ino: number, is_dir, inner: RwLock::new(inner) })
    }

    /// Whether a directory or one above it starts at this cluster: a loop in the tree. There are no more steps than live
    /// nodes.
    fn is_ancestor(&self, dir: &Node, start: u32) -> bool {
        let mut at = self.node(Ino(dir.ino)).ok();
        while let Some(node) = at {
            let inner = node.inner.read();
            if inner.record.start == start {
                return true;
            }
            at = if node.ino == Ino::ROOT.0 { None } else { self.node(Ino(inner.parent)).ok() };
        }
        false
    }

    /// The main slot's place: the last slot of FAT's sets, the first of exFAT's.
    pub(crate) fn main_of(&self, slots: &[u64]) -> u64 {
        let main = if self.layout.is_exfat() { slots.first() } else { slots.last() };
        main.copied().unwrap_or(0)
    }

    pub(crate) fn read_record(&self, meta: &mut Meta, offsets: &[u64]) -> Result<Record> {
        if self.layout.is_exfat() {
            let set = meta.slots(offsets)?;
            let Some(record) = slots::exfat::read(&set, self.zone()) else {
                return self.corrupt("a directory entry has too few parts");
            };
            return Ok(record);
        }
        Ok(slots::fat::read(&meta.slot(self.main_of(offsets))?, self.zone(), self.wide()))
    }

    /// Puts a node's record into its set.
    pub(crate) fn store(&self, meta: &mut Meta, inner: &Inner) -> Result<()> {
        if inner.slots.is_empty() {
            return Ok(());
        }
        if self.layout.is_exfat() {
            let mut set = meta.slots(&inner.slots)?;
            slots::exfat::write(&mut set, &inner.record, self.zone());
            return inner.slots.iter().zip(&set).take(2).try_for_each(|(at, slot)| meta.put_slot(*at, slot));
        }
        let main = self.main_of(&inner.slots);
        let mut slot = meta.slot(main)?;
        slots::fat::write(&mut slot, &inner.record, self.zone(), self.wide());
        meta.put_slot(main, &slot)
    }

    /// The clusters that a record leads to.
    pub(crate) fn runs_of(&self, meta: &mut Meta, record: &Record) -> Result<Runs> {
        if record.start == 0 {
            let empty = record.size == 0 || record.is_dir();
            return Ok(Runs::none(!empty));
        }
        if !record.contiguous {
            return meta.chain(record.start);
        }
        let count = self.layout.clusters_for(record.size);
        let room = u64::from(self.layout.clusters) + 2;
        if !self.layout.is_cluster(record.start) || u64::from(record.start) + count > room {
            return Ok(Runs::none(true));
        }
        Ok(Runs::one(record.start, count as u32))
    }

    /// A node's inner part with its clusters known, to read.
    pub(crate) fn with_runs<'a>(&self, node: &'a Node) -> Result<RwLockReadGuard<'a, Inner>> {
        let inner = node.inner.read();
        if inner.runs.is_some() {
            return Ok(inner);
        }
        drop(inner);
        Ok(RwLockWriteGuard::downgrade(self.with_runs_mut(node)?))
    }

    /// The same, to change it. A chain that is too short for the file's size is `broken`.
    pub(crate) fn with_runs_mut<'a>(&self, node: &'a Node) -> Result<RwLockWriteGuard<'a, Inner>> {
        let mut inner = node.inner.write();
        if inner.runs.is_none() {
            let mut runs = self.runs_of(&mut self.meta.lock(), &inner.record)?;
            let need = self.layout.clusters_for(inner.record.size);
            if !node.is_dir {
                // What a crash has left behind the end may be somebody else's by now.
                let odd = runs.broken;
                runs.truncate(u32::try_from(need).unwrap_or(u32::MAX));
                runs.broken = u64::from(runs.total()) < need || (odd && runs.overlap());
            }
            if runs.broken {
                tracing::error!("{}: the clusters of node {} end too early", self.disk.name(), node.ino);
            }
            inner.runs = Some(runs);
        }
        Ok(inner)
    }

    pub(crate) fn attr(&self, node: &Node, inner: &Inner) -> Attr {
        let (record, settings) = (&inner.record, &self.settings);
        let mut mode = if node.is_dir { 0o777 & !settings.dmask } else { 0o777 & !settings.fmask };
        if !node.is_dir && settings.showexec && !inner.program {
            mode &= !0o111;
        }
        if record.attr & READ_ONLY != 0 && self.holds_read_only(node) {
            mode &= !0o222;
        }
        let size = match (&inner.runs, node.is_dir) {
            (Some(runs), true) => u64::from(runs.total()) * u64::from(self.layout.cluster_size),
            _ => record.size,
        };
        let kind = if node.is_dir { Kind::Directory } else { Kind::File };
        let taken = match &inner.runs {
            Some(runs) => u64::from(runs.total()),
            None => self.layout.clusters_for(size).min(u64::from(self.layout.clusters)),
        };
        Attr {
            uid: settings.uid,
            gid: settings.gid,
            size,
            blocks: taken * u64::from(self.layout.cluster_size) / 512,
            blksize: self.layout.cluster_size,
            atime: record.atime,
            mtime: record.mtime,
            ctime: record.mtime,
            btime: (!inner.slots.is_empty() || inner.unlinked).then_some(record.btime),
            flags: FileFlags {
                immutable: settings.sys_immutable && record.attr & SYSTEM != 0,
                ..FileFlags::default()
            },
            ..Attr::new(node.ino, kind, Perm::from_mode(mode))
        }
    }

    /// Whether the read-only attribute of this node means that it cannot be written.
    pub(crate) fn holds_read_only(&self, node: &Node) -> bool {
        !node.is_dir || (self.settings.rodir && node.ino != Ino::ROOT.0)
    }

    /// The moment, as this volume can store it.
    pub(crate) fn round_mtime(&self, moment: Timestamp) -> Timestamp {
        if self.layout.is_exfat() {
            slots::exfat::round_mtime(moment, self.zone())
        } else {
            slots::fat::round_mtime(moment, self.zone())
        }
    }

    pub(crate) fn round_atime(&self, moment: Timestamp) -> Timestamp {
        if self.layout.is_exfat() {
            slots::exfat::round_atime(moment, self.zone())
        } else {
            slots::fat::round_atime(moment, self.zone())
        }
    }

    /// The record of something made now.
    pub(crate) fn new_record(&self, attr: u16) -> Record {
        let now = Timestamp::now();
        Record {
            attr,
            start: 0,
            size: 0,
            valid: 0,
            contiguous: false,
            mtime: self.round_mtime(now),
            atime: self.round_atime(now),
            // Creation is stored in hundredths by both.
            btime: slots::exfat::round_mtime(now, self.zone()),
        }
    }

    // --- Content ---------------------------------------------------------------------------------------------------------

    pub(crate) fn read(&self, node: &Node, buf: &mut [u8], offset: u64) -> Result<usize> {
        let inner = self.with_runs(node)?;
        let left = inner.record.size.saturating_sub(offset);
        let len = (buf.len() as u64).min(left) as usize;
        let buf = &mut buf[..len];
        // Behind what was written are zeros.
        let written = inner.record.valid.saturating_sub(offset).min(len as u64) as usize;
        let (data, zeros) = buf.split_at_mut(written);
        zeros.fill(0);
        let Some(runs) = &inner.runs else { return Err(Errno::EUCLEAN) };
        let mut done = 0;
        while done < data.len() {
            let (at, room) = self.locate(runs, offset + done as u64)?;
            let step = room.min((data.len() - done) as u64) as usize;
            self.disk.read_at(&mut data[done..done + step], at).map_err(outside)?;
            done += step;
        }
        Ok(len)
    }

    /// Where a byte of a file lies on the disk, and how many follow it there.
    fn locate(&self, runs: &Runs, offset: u64) -> Result<(u64, u64)> {
        let size = u64::from(self.layout.cluster_size);
        let found = u32::try_from(offset / size).ok().and_then(|index| runs.find(index));
        let (cluster, count) = found.ok_or(Errno::EUCLEAN)?;
        let within = offset % size;
        Ok((self.layout.offset(cluster) + within, u64::from(count) * size - within))
    }

    pub(crate) fn write(&self, node: &Node, buf: &[u8], offset: u64) -> Result<usize> {
        let max = self.layout.size_max();
        if offset >= max {
            return Err(Errno::EFBIG);
        }
        let mut end = offset.saturating_add(buf.len() as u64).min(max);
        let mut inner = self.with_runs_mut(node)?;
        self.begin_content(&inner)?;
        let size = u64::from(self.layout.cluster_size);
        match self.reserve(&mut inner, end) {
            Err(Errno::ENOSPC) => {
                // What still fits, if that reaches the place.
                let free = self.meta.lock().free_clusters()?;
                let have = u64::from(inner.runs.as_ref().map_or(0, Runs::total));
                end = end.min((have + free).saturating_mul(size));
                if end <= offset {
                    return Err(Errno::ENOSPC);
                }
                self.reserve(&mut inner, end)?;
            }
            done => done?,
        }
        let inner = &mut *inner;
        let Some(runs) = &inner.runs else { return Err(Errno::EUCLEAN) };
        if inner.record.valid < offset {
            self.zero(runs, inner.record.valid, offset)?;
        }
        let len = (end - offset) as usize;
        let mut done = 0;
        while done < len {
            let (at, room) = self.locate(runs, offset + done as u64)?;
            let step = room.min((len - done) as u64) as usize;
            self.disk.write_at(&buf[done..done + step], at)?;
            done += step;
        }
        inner.record.valid = inner.record.valid.max(end);
        inner.record.size = inner.record.size.max(end);
        self.changed(inner);
        self.store(&mut self.meta.lock(), inner)?;
        Ok(len)
    }

    /// Starts a change of content. A file whose clusters end too early is not changed: who knows whose they are.
    fn begin_content(&self, inner: &Inner) -> Result<()> {
        if inner.runs.as_ref().is_none_or(|runs| runs.broken) {
            return Err(Errno::EUCLEAN);
        }
        self.begin()
    }

    /// The content was changed now.
    fn changed(&self, inner: &mut Inner) {
        inner.record.mtime = self.round_mtime(Timestamp::now());
        inner.record.attr |= ARCHIVE;
    }

    /// Makes a range of a file read as zeros.
    fn zero(&self, runs: &Runs, from: u64, to: u64) -> Result<()> {
        let mut at = from;
        while at < to {
            let (place, room) = self.locate(runs, at)?;
            let step = room.min(to - at);
            self.disk.write_zeroes(place, step)?;
            at += step;
        }
        Ok(())
    }

    /// Sees to it that a file has clusters for its first `end` bytes. `ENOSPC`, and nothing changes.
    pub(crate) fn reserve(&self, inner: &mut Inner, end: u64) -> Result<()> {
        let Some(runs) = &mut inner.runs else { return Err(Errno::EUCLEAN) };
        let missing = self.layout.clusters_for(end).saturating_sub(u64::from(runs.total()));
        let Ok(missing) = u32::try_from(missing) else { return Err(Errno::ENOSPC) };
        if missing == 0 {
            return Ok(());
        }
        let mut meta = self.meta.lock();
        let last = runs.last();
        let taken = meta.allocate(missing, last)?;
        let follows = match (last, taken.as_slice()) {
            (None, [_]) => true,
            (Some(last), [(start, _)]) => inner.record.contiguous && last + 1 == *start,
            _ => false,
        };
        if self.layout.is_exfat() && follows {
            inner.record.contiguous = true;
        } else {
            if inner.record.contiguous {
                // So far there was no chain; from now on there must be.
                let so_far: Vec<_> = runs.iter().collect();
                meta.link(None, &so_far)?;
                inner.record.contiguous = false;
            }
            meta.link(last, &taken)?;
        }
        if let (0, Some((start, _))) = (inner.record.start, taken.first()) {
            inner.record.start = *start;
        }
        taken.iter().for_each(|(start, len)| runs.push(*start, *len));
        Ok(())
    }

    /// Gives back the clusters of a file behind its first `end` bytes. Its record must be stored with the same lock held.
    fn shrink(&self, meta: &mut Meta, inner: &mut Inner, end: u64) {
        let Some(runs) = &mut inner.runs else { return };
        let keep = u32::try_from(self.layout.clusters_for(end)).unwrap_or(u32::MAX);
        if runs.total() <= keep {
            return;
        }
        let freed = runs.truncate(keep);
        match runs.last() {
            None => (inner.record.start, inner.record.contiguous) = (0, false),
            Some(last) if !inner.record.contiguous => meta.cut(last),
            Some(_) => {}
        }
        meta.release(&freed);
    }

    /// Reserves space for the first `end` bytes of a file, whatever its size.
    pub(crate) fn reserve_for(&self, node: &Node, end: u64) -> Result<()> {
        let mut inner = self.with_runs_mut(node)?;
        self.begin_content(&inner)?;
        self.reserve(&mut inner, end)
    }

    pub(crate) fn truncate(&self, node: &Node, size: u64) -> Result<()> {
        if size > self.layout.size_max() {
            return Err(Errno::EFBIG);
        }
        let mut inner = self.with_runs_mut(node)?;
        let inner = &mut *inner;
        self.begin_content(inner)?;
        if size > inner.record.size {
            self.reserve(inner, size)?;
            if !self.layout.is_exfat() {
                let Some(runs) = &inner.runs else { return Err(Errno::EUCLEAN) };
                self.zero(runs, inner.record.valid, size)?;
                inner.record.valid = size;
            }
        }
        let smaller = size < inner.record.size;
        inner.record.size = size;
        inner.record.valid = inner.record.valid.min(size);
        self.changed(inner);
        let mut meta = self.meta.lock();
        if smaller {
            self.shrink(&mut meta, inner, size);
        }
        self.store(&mut meta, inner)
    }

    /// A node that nobody uses any more: without a name, its clusters are free.
    pub(crate) fn settle(&self, node: &Node) {
        let unlinked = node.inner.read().unlinked;
        if let Err(errno) = if unlinked { self.release(node) } else { Ok(()) } {
            tracing::error!("{}: clusters of node {} are lost: {errno}", self.disk.name(), node.ino);
        }
    }

    fn release(&self, node: &Node) -> Result<()> {
        if node.is_dir {
            // Done when it was removed.
            return Ok(());
        }
        let mut inner = self.with_runs_mut(node)?;
        let freed: Vec<_> = inner.runs.as_ref().map(|runs| runs.iter().collect()).unwrap_or_default();
        inner.runs = Some(Runs::default());
        (inner.record.start, inner.record.size, inner.record.valid) = (0, 0, 0);
        if !freed.is_empty() {
            self.meta.lock().release(&freed);
        }
        Ok(())
    }

    /// Gives back what was reserved behind the end of a file, which the format cannot say.
    pub(crate) fn trim(&self, node: &Node) -> Result<()> {
        let mut inner = node.inner.write();
        let inner = &mut *inner;
        let need = self.layout.clusters_for(inner.record.size);
        let spare = inner.runs.as_ref().is_some_and(|runs| u64::from(runs.total()) > need && !runs.broken);
        if node.is_dir || self.read_only || !spare || inner.unlinked {
            return Ok(());
        }
        self.begin()?;
        let mut meta = self.meta.lock();
        let size = inner.record.size;
        self.shrink(&mut meta, inner, size);
        self.store(&mut meta, inner)
    }

    // --- Directories -------------------------------------------------------------------------------------------------------

    /// The index of a directory. `ENOENT` if it has been removed.
    pub(crate) fn dir<'a>(&self, dirs: &'a mut Dirs, node: &Node) -> Result<&'a mut Dir> {
        let inner = node.inner.read();
        if inner.unlinked {
            return Err(Errno::ENOENT);
        }
        let start = inner.record.start;
        dirs.clock += 1;
        if !dirs.loaded.contains_key(&start) {
            dirs.shrink();
            let dir = Dir::load(&self.meta.lock(), &self.layout, &self.policy, inner.runs.as_ref())
                .map_err(outside)?;
            if dir.damaged > 0 {
                tracing::warn!("{}: a directory has {} damaged entries", self.disk.name(), dir.damaged);
            }
            dirs.loaded.insert(start, dir);
        }
        let dir = dirs.loaded.get_mut(&start).ok_or(Errno::EUCLEAN)?;
        dir.used = dirs.clock;
        Ok(dir)
    }

    /// Makes room for `count` slots in a directory: the first of them. `dir` is the index of `node`.
    pub(crate) fn make_room(&self, dir: &mut Dir, node: &Node, count: u32) -> Result<u32> {
        if node.inner.read().runs.as_ref().is_some_and(|runs| runs.broken) {
            return self.corrupt(format_args!("the clusters of directory {} end in nonsense", node.ino));
        }
        let first = dir.place(count);
        if first + count > self.layout.slots_max() {
            return Err(Errno::ENOSPC);
        }
        // Each step adds a cluster, and a set needs a few at most.
        while first + count > dir.room() {
            self.grow_dir(dir, node)?;
        }
        let mut meta = self.meta.lock();
        if first > dir.end && self.layout.is_exfat() {
            // Slots that are passed over must not look like the end.
            let mut unused = [0; 32];
            unused[0] = 0x05;
            (dir.end..first).try_for_each(|slot| meta.put_slot(dir.offset(slot), &unused))?;
        }
        let end = first + count;
        if end > dir.end && end < dir.room() {
            let at = dir.offset(end);
            if meta.slot(at)?[0] != 0 {
                meta.put_slot(at, &[0; 32])?;
            }
        }
        Ok(first)
    }

    /// Adds a cluster of zeros to a directory. It is zero on the disk before anything leads to it.
    fn grow_dir(&self, dir: &mut Dir, node: &Node) -> Result<()> {
        let mut inner = node.inner.write();
        let inner = &mut *inner;
        // The fixed root has none, and cannot grow.
        let Some(runs) = &inner.runs else { return Err(Errno::ENOSPC) };
        let size = u64::from(self.layout.cluster_size);
        let before = u64::from(runs.total());
        self.reserve(inner, (before + 1) * size)?;
        let Some((cluster, _)) = inner.runs.as_ref().and_then(|runs| runs.find(before as u32)) else {
            return Err(Errno::EUCLEAN);
        };
        let at = self.layout.offset(cluster);
        self.disk.write_zeroes(at, size)?;
        dir.extend(at, size);
        if self.layout.is_exfat() {
            (inner.record.size, inner.record.valid) = ((before + 1) * size, (before + 1) * size);
            if !inner.slots.is_empty() {
                self.store(&mut self.meta.lock(), inner)?;
            }
        }
        Ok(())
    }

    /// The set of a new entry.
    pub(crate) fn build(
        &self,
        dir: &Dir,
        units: &[u16],
        record: &Record,
        more: &[Slot],
    ) -> Result<Vec<Slot>> {
        if self.layout.is_exfat() {
            return Ok(slots::exfat::build(units, &self.policy.capitals, record, more, self.zone()));
        }
        let short = self.policy.unique(units, |name| dir.has_short(name, &self.policy))?;
        let long = short.long.then_some(units);
        Ok(slots::fat::build(long, short.name, short.case, record, self.zone(), self.wide()))
    }

    /// Puts a set into free slots, and the entry into the index.
    pub(crate) fn put_set(
        &self,
        meta: &mut Meta,
        dir: &mut Dir,
        first: u32,
        units: Vec<u16>,
        set: &[Slot],
    ) -> Result<Vec<u64>> {
        let count = set.len() as u32;
        let offsets = dir.offsets(first, count);
        offsets.iter().zip(set).try_for_each(|(at, slot)| meta.put_slot(*at, slot))?;
        dir.occupy(first, count);
        let (short, is_dir) = match set {
            [.., main] if !self.layout.is_exfat() => {
                (Some(slots::fat::short_of(main)), u16::from(main[11]) & DIRECTORY != 0)
            }
            [main, ..] => (None, u16::from(main[4]) & DIRECTORY != 0),
            [] => (None, false),
        };
        dir.insert(&Found { first, count, units, short, is_dir }, &self.policy);
        Ok(offsets)
    }

    /// Marks slots as deleted.
    pub(crate) fn clear_slots(&self, meta: &mut Meta, offsets: &[u64]) -> Result<()> {
        offsets.iter().try_for_each(|at| {
            let mut slot = meta.slot(*at)?;
            slot[0] = if self.layout.is_exfat() { slot[0] & 0x7f } else { 0xe5 };
            meta.put_slot(*at, &slot)
        })
    }

    /// The names in a directory changed now.
    pub(crate) fn touch(&self, dir: &Node) -> Result<()> {
        let mut inner = dir.inner.write();
        inner.record.mtime = self.round_mtime(Timestamp::now());
        self.store(&mut self.meta.lock(), &inner)
    }
}

impl Dirs {
    /// Drops the index of a directory that is gone.
    pub(crate) fn forget(&mut self, start: u32) {
        self.loaded.remove(&start);
    }

    /// Drops the indexes that were not used for longest, until few enough entries are left.
    fn shrink(&mut self) {
        let mut entries: usize = self.loaded.values().map(|dir| dir.items.len() + 8).sum();
        while entries > ENTRIES_KEPT {
            let Some(start) = self.loaded.iter().min_by_key(|(_, dir)| dir.used).map(|(start, _)| *start)
            else {
                return;
            };
            entries -= self.loaded.remove(&start).map_or(0, |dir| dir.items.len() + 8);
        }
    }
}

/// Commits changes that nobody does anything after. Ends with the volume.
fn keep(meta: &Weak<Mutex<Meta>>) {
    loop {
        std::thread::sleep(Duration::from_secs(1));
        let Some(meta) = meta.upgrade() else { return };
        let mut meta = meta.lock();
        if meta.is_old() {
            // What fails is logged, and told to the next who asks.
            let _ = meta.commit();
        }
    }
}

/// An image that was cut short has clusters that are not there.
fn outside(errno: Errno) -> Errno {
    if errno == Errno::EINVAL { Errno::EIO } else { errno }
}

/// Whether a file of this name is a program, for `showexec`.
pub(crate) fn is_program(name: &[u8]) -> bool {
    let at = name.iter().rposition(|byte| *byte == b'.').map_or(name.len(), |at| at + 1);
    [&b"exe"[..], b"com", b"bat"].iter().any(|program| name[at..].eq_ignore_ascii_case(program))
}

/// The first `len` bytes of a chain.
fn read_all(disk: &Disk, layout: &Layout, runs: &Runs, len: usize) -> Result<Vec<u8>> {
    let mut bytes = Vec::new();
    for (start, count) in runs.iter() {
        let all = u64::from(count) * u64::from(layout.cluster_size);
        let step = all.min((len - bytes.len()) as u64) as usize;
        bytes.extend(disk.read_vec(layout.offset(start), step)?);
    }
    if bytes.len() == len { Ok(bytes) } else { Err(Errno::EUCLEAN) }
}
