//! Transactions: changes of metadata that reach the disk together or not at all.
//!
//! Changes gather in the *running* transaction, in memory. A commit closes it, writes it to the journal ([`crate::journal_writer`]; or,
//! where there is none, to its places in an order that keeps damage small: [`crate::ordered`]), and meanwhile the next one runs.
//! Committed blocks reach their places at a *checkpoint*, in groups.
//!
//! What is allocated or given back obeys two rules. Content is written before the commit that makes it reachable: whoever
//! writes it holds a [`Handle`], and a commit waits for all handles. And nothing that was given back is given out again
//! before that was committed: after a crash its old owner would have it.
//!
//! # Locks
//!
//! In this order: those of the tree and of nodes; [`Transactions::log`] (by whoever commits); [`Transactions::gate`] (for reading by
//! handles, for writing to close a transaction); [`Transactions::meta`] (by whoever changes metadata); [`Transactions::dirty`].

use std::collections::{HashMap, HashSet};
use std::ops::{ControlFlow, Range};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::mpsc::{RecvTimeoutError, Sender, channel};
use std::sync::{Arc, OnceLock, Weak};
use std::time::Duration;

use parking_lot::{Mutex, RwLock, RwLockReadGuard};
use veduta_api::{Errno, Timestamp};

use crate::cache::Block;
use crate::change::{Change, Mark, change_super, super_place};
use crate::error::{Error, Result};
use crate::features::{INCOMPAT_RECOVER, RO_COMPAT_ORPHAN_PRESENT};
use crate::journal_writer::Ring;
use crate::superblock::{STATE_ERROR, STATE_VALID, SUPERBLOCK_SIZE};
use crate::volume::Volume;
use crate::zones::Zones;

/// Blocks that one change may need, as a rule.
const RESERVE: usize = 48;
/// Bytes of a transaction; more makes a commit.
const TRANSACTION_MAX: usize = 16 << 20;
/// Bytes of committed blocks that are not in their places; more makes a checkpoint.
const COMMITTED_MAX: usize = 32 << 20;
/// Bytes that are written to neighbouring places in one go.
const WRITE_MAX: usize = 1 << 20;

/// Bits of clusters or of inodes, by group, as the bitmaps of the groups have them.
pub(crate) type BitsByGroup = HashMap<u32, Vec<u8>>;

/// What has changed since the last commit.
#[derive(Debug, Default)]
pub(crate) struct Running {
    pub(crate) blocks: HashMap<u64, Mark>,
    pub(crate) revoked: HashSet<u64>,
    pub(crate) freed: BitsByGroup,
    pub(crate) freed_inodes: BitsByGroup,
}

impl Running {
    fn is_empty(&self) -> bool {
        self.blocks.is_empty() && self.revoked.is_empty() && self.freed.is_empty()
    }
}

/// What is known of the volume beside its blocks. Locked by whoever changes metadata.
#[derive(Debug)]
pub(crate) struct Meta {
    pub(crate) running: Running,
    /// What the transaction that is being committed gave back.
    pub(crate) leaving: BitsByGroup,
    pub(crate) leaving_inodes: BitsByGroup,
    pub(crate) free_clusters: u64,
    pub(crate) free_inodes: u64,
    /// Free clusters that content which waits for its blocks may need.
    pub(crate) promised: u64,
    /// Free blocks behind the end of files that grow, for them: by inode. In memory only.
    pub(crate) windows: HashMap<u32, Range<u64>>,
    /// Inodes without a name, or longer than they should be, as the list on the disk has them.
    pub(crate) orphans: Vec<u32>,
}

/// A transaction that is closed.
pub(crate) struct Closed {
    /// Sorted by number.
    pub(crate) blocks: Vec<(u64, Block, Mark)>,
    pub(crate) revoked: Vec<u64>,
}

/// Where transactions go.
#[derive(Debug)]
struct Log {
    ring: Option<Ring>,
    /// Committed blocks that are not in their places.
    committed: HashMap<u64, Block>,
    /// Whether the disk says that the volume is in use.
    active: bool,
}

/// How a volume is written.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Policy {
    /// How long a change waits for a commit at most.
    pub(crate) period: Duration,
    /// Whether the device is asked to write out its cache.
    pub(crate) barrier: bool,
    /// Whether the device is told what is not in use any more.
    pub(crate) discard: bool,
    /// Whether changes go on after damage was found.
    pub(crate) go_on: bool,
}

/// See the head of the file.
#[derive(Debug)]
pub(crate) struct Transactions {
    gate: RwLock<()>,
    pub(crate) meta: Mutex<Meta>,
    /// The newest content of each block that is not in its place.
    pub(crate) dirty: RwLock<HashMap<u64, Block>>,
    log: Mutex<Log>,
    policy: Policy,
    /// Whether there is a journal.
    pub(crate) journalled: bool,
    /// Where no content may be.
    pub(crate) zones: Zones,
    /// Blocks of a transaction.
    limit: usize,
    handles: AtomicUsize,
    /// Nothing may be changed any more: damage was found, or the volume is unmounted.
    closed: AtomicBool,
    /// A commit failed.
    broken: AtomicBool,
    active: AtomicBool,
    keeper: OnceLock<Sender<()>>,
    /// The volume, for the thread that commits in time.
    pub(crate) volume: OnceLock<Weak<Volume>>,
}

/// The right to change metadata, and to write content that a change makes reachable: a transaction is not closed meanwhile.
pub(crate) struct Handle<'a> {
    volume: &'a Volume,
    transactions: &'a Transactions,
    _gate: RwLockReadGuard<'a, ()>,
}

impl Drop for Handle<'_> {
    fn drop(&mut self) {
        self.transactions.handles.fetch_sub(1, Ordering::AcqRel);
    }
}

impl Handle<'_> {
    /// Changes metadata: all of it, or nothing.
    pub(crate) fn change<T>(&self, change: impl FnOnce(&mut Change<'_>) -> Result<T>) -> Result<T> {
        let mut open = Change::new(self.volume, self.transactions);
        match change(&mut open) {
            Ok(done) => Ok(done),
            Err(error) => {
                open.undo();
                if let Error::Corrupt(damage) = &error {
                    self.transactions.stop(self.volume, damage.inode);
                }
                Err(error)
            }
        }
    }
}

impl Transactions {
    pub(crate) fn new(
        volume: &Volume,
        ring: Option<Ring>,
        policy: Policy,
        counts: (u64, u64),
        zones: Zones,
    ) -> Self {
        let most = TRANSACTION_MAX / volume.block_size();
        let limit = ring.as_ref().map_or(most, |ring| most.min(ring.len() as usize / 4));
        Self {
            gate: RwLock::new(()),
            meta: Mutex::new(Meta {
                running: Running::default(),
                leaving: BitsByGroup::new(),
                leaving_inodes: BitsByGroup::new(),
                free_clusters: counts.0,
                free_inodes: counts.1,
                promised: 0,
                windows: HashMap::new(),
                orphans: Vec::new(),
            }),
            dirty: RwLock::new(HashMap::new()),
            journalled: ring.is_some(),
            zones,
            log: Mutex::new(Log { ring, committed: HashMap::new(), active: false }),
            policy,
            limit,
            handles: AtomicUsize::new(0),
            closed: AtomicBool::new(false),
            broken: AtomicBool::new(false),
            active: AtomicBool::new(false),
            keeper: OnceLock::new(),
            volume: OnceLock::new(),
        }
    }

    /// The newest content of a block that is not in its place.
    pub(crate) fn find(&self, number: u64) -> Option<Block> {
        self.dirty.read().get(&number).cloned()
    }

    /// Keeps clusters for content that waits: whether there are so many.
    pub(crate) fn promise(&self, clusters: u64) -> bool {
        let mut meta = self.meta.lock();
        let enough = meta.free_clusters.saturating_sub(meta.promised) >= clusters;
        meta.promised += if enough { clusters } else { 0 };
        enough
    }

    /// The content has its blocks, or needs none.
    pub(crate) fn fulfil(&self, clusters: u64) {
        let mut meta = self.meta.lock();
        meta.promised = meta.promised.saturating_sub(clusters);
    }

    /// A file does not grow any more.
    pub(crate) fn close_window(&self, ino: u32) {
        self.meta.lock().windows.remove(&ino);
    }

    /// Whether changes are refused.
    pub(crate) fn is_closed(&self) -> bool {
        self.closed.load(Ordering::Acquire) || self.broken.load(Ordering::Acquire)
    }

    /// Whether a commit would make room.
    pub(crate) fn waits_for_commit(&self) -> bool {
        let meta = self.meta.lock();
        !meta.running.freed.is_empty()
            || !meta.leaving.is_empty()
            || !meta.running.freed_inodes.is_empty()
            || !meta.leaving_inodes.is_empty()
    }

    /// Damage was found: no more changes, and the superblock says why.
    fn stop(&self, volume: &Volume, inode: Option<u32>) {
        if self.policy.go_on || self.closed.swap(true, Ordering::AcqRel) {
            return;
        }
        tracing::error!(
            "ext2: {}: damage was found, the volume is read-only from now on; unmount it and run e2fsck",
            volume.name()
        );
        let mut change = Change::new(volume, self);
        let noted = change.edit_super(|sb| {
            let now = Timestamp::now().seconds as u32;
            let state = u16::from_le_bytes([sb[0x3a], sb[0x3b]]) | STATE_ERROR;
            sb[0x3a..0x3c].copy_from_slice(&state.to_le_bytes());
            let count = u32::from_le_bytes([sb[0x194], sb[0x195], sb[0x196], sb[0x197]]).saturating_add(1);
            sb[0x194..0x198].copy_from_slice(&count.to_le_bytes());
            let first = if count == 1 { Some(0x198) } else { None };
            for at in first.into_iter().chain([0x1cc]) {
                sb[at..at + 4].copy_from_slice(&now.to_le_bytes());
                sb[at + 4..at + 8].copy_from_slice(&inode.unwrap_or(0).to_le_bytes());
            }
        });
        if let Err(error) = noted {
            tracing::error!("ext2: {}: {error}", volume.name());
        }
    }

    fn flush(&self, volume: &Volume) -> Result<()> {
        if self.policy.barrier { Ok(volume.disk.flush()?) } else { Ok(()) }
    }

    /// Closes the running transaction; `None` if nothing has changed. The gate is held for writing.
    fn close(&self, volume: &Volume) -> Result<Option<Closed>> {
        if self.meta.lock().running.is_empty() {
            return Ok(None);
        }
        let mut change = Change::new(volume, self);
        let (clusters, inodes) = (change.meta.free_clusters, change.meta.free_inodes);
        let wide = volume.sb.features.has_incompat(crate::features::INCOMPAT_64BIT);
        let blocks = clusters << volume.sb.cluster_bits;
        change.edit_super(|sb| {
            sb[0xc..0x10].copy_from_slice(&(blocks as u32).to_le_bytes());
            if wide {
                sb[0x158..0x15c].copy_from_slice(&((blocks >> 32) as u32).to_le_bytes());
            }
            sb[0x10..0x14].copy_from_slice(&(inodes as u32).to_le_bytes());
            put_now(sb, 0x30, 0x274);
        })?;
        let meta = &mut *change.meta;
        let running = std::mem::take(&mut meta.running);
        (meta.leaving, meta.leaving_inodes) = (running.freed, running.freed_inodes);
        let dirty = self.dirty.read();
        let content = |number: &u64| dirty.get(number).map(Arc::clone);
        let mut blocks: Vec<_> = running
            .blocks
            .iter()
            .filter_map(|(number, mark)| Some((*number, content(number)?, *mark)))
            .collect();
        blocks.sort_unstable_by_key(|(number, ..)| *number);
        Ok(Some(Closed { blocks, revoked: running.revoked.into_iter().collect() }))
    }

    /// Commits what has changed, and returns when it is on stable storage.
    pub(crate) fn commit(&self, volume: &Volume) -> Result<()> {
        let mut log = self.log.lock();
        self.commit_locked(volume, &mut log)
    }

    fn commit_locked(&self, volume: &Volume, log: &mut Log) -> Result<()> {
        if self.broken.load(Ordering::Acquire) {
            return Err(Errno::EIO.into());
        }
        let closed = {
            let _gate = self.gate.write();
            self.close(volume)?
        };
        let Some(closed) = closed else { return self.flush(volume) };
        let written = self.write(volume, log, &closed);
        if let Err(error) = &written {
            self.broken.store(true, Ordering::Release);
            tracing::error!(
                "ext2: {}: a commit failed, the volume is read-only from now on: {error}",
                volume.name()
            );
            return written;
        }
        let (clusters, _) = {
            let mut meta = self.meta.lock();
            (std::mem::take(&mut meta.leaving), std::mem::take(&mut meta.leaving_inodes))
        };
        if self.policy.discard {
            // They might be allocated again by now; only what is still free may be discarded.
            self.discard(volume, &clusters);
        }
        Ok(())
    }

    fn write(&self, volume: &Volume, log: &mut Log, closed: &Closed) -> Result<()> {
        let Some(ring) = &mut log.ring else {
            crate::ordered::write(volume, closed, &mut || self.flush(volume))?;
            let blocks = closed.blocks.iter().map(|(number, block, _)| (*number, Arc::clone(block)));
            self.settle(volume, blocks);
            return Ok(());
        };
        if ring.needs(closed) > ring.free() {
            self.checkpoint(volume, log)?;
        }
        let Some(ring) = &mut log.ring else { return Ok(()) };
        ring.write(volume, closed, &mut || self.flush(volume))?;
        for number in &closed.revoked {
            log.committed.remove(number);
        }
        log.committed.extend(closed.blocks.iter().map(|(number, block, _)| (*number, Arc::clone(block))));
        if log.committed.len() * volume.block_size() > COMMITTED_MAX {
            self.checkpoint(volume, log)?;
        }
        Ok(())
    }

    /// Brings committed blocks to their places; the log is empty then.
    fn checkpoint(&self, volume: &Volume, log: &mut Log) -> Result<()> {
        let mut blocks: Vec<(u64, Block)> = log.committed.drain().collect();
        blocks.sort_unstable_by_key(|(number, _)| *number);
        write_home(volume, blocks.iter().map(|(number, block)| (*number, &**block)))?;
        self.flush(volume)?;
        if let Some(ring) = &mut log.ring {
            ring.empty(volume)?;
            self.flush(volume)?;
        }
        self.settle(volume, blocks.into_iter());
        Ok(())
    }

    /// Blocks are in their places.
    fn settle(&self, volume: &Volume, blocks: impl Iterator<Item = (u64, Block)>) {
        volume.cache.advance();
        let mut dirty = self.dirty.write();
        for (number, block) in blocks {
            if dirty.get(&number).is_some_and(|newest| Arc::ptr_eq(newest, &block)) {
                dirty.remove(&number);
                volume.cache.replace(number, block);
            }
        }
    }

    fn discard(&self, volume: &Volume, clusters: &BitsByGroup) {
        let bits = volume.sb.cluster_bits;
        for (group, map) in clusters {
            // Nobody allocates while the metadata is locked.
            let meta = self.meta.lock();
            let Ok(about) = volume.group(*group) else { continue };
            let Ok(bitmap) = volume.block(about.block_bitmap) else { continue };
            let is_free = |bit: usize| map[bit / 8] & !bitmap[bit / 8] & 1 << (bit % 8) != 0;
            let mut bit = 0;
            while bit < map.len() * 8 {
                let end = (bit..map.len() * 8).find(|bit| !is_free(*bit)).unwrap_or(map.len() * 8);
                if end > bit {
                    let start = volume.sb.group_start(*group) + ((bit as u64) << bits);
                    let (at, len) = (start << volume.sb.block_bits, ((end - bit) as u64) << bits);
                    if volume.disk.discard(at, len << volume.sb.block_bits).is_err() {
                        return;
                    }
                }
                bit = end + 1;
            }
            drop(meta);
        }
    }

    /// Before the first change: the disk says that the volume is in use.
    pub(crate) fn activate(&self, volume: &Volume) -> Result<()> {
        if self.active.load(Ordering::Acquire) {
            return Ok(());
        }
        let mut log = self.log.lock();
        if log.active {
            return Ok(());
        }
        let journalled = log.ring.is_some();
        write_super(volume, |sb| {
            if journalled {
                set_bits(sb, 0x60, INCOMPAT_RECOVER, true);
            } else {
                let state = u16::from_le_bytes([sb[0x3a], sb[0x3b]]) & !STATE_VALID;
                sb[0x3a..0x3c].copy_from_slice(&state.to_le_bytes());
            }
            let mounts = u16::from_le_bytes([sb[0x34], sb[0x35]]).saturating_add(1);
            sb[0x34..0x36].copy_from_slice(&mounts.to_le_bytes());
            put_now(sb, 0x2c, 0x275);
            put_now(sb, 0x30, 0x274);
        })?;
        self.flush(volume)?;
        // The journal may not look used as long as the superblock does not say so.
        if let Some(ring) = &mut log.ring {
            ring.start(volume)?;
        }
        log.active = true;
        self.active.store(true, Ordering::Release);
        self.start_keeper(volume);
        Ok(())
    }

    /// The thread that commits in time. Not started at the mount: a host may go to the background after that, which no
    /// thread survives.
    fn start_keeper(&self, volume: &Volume) {
        let Some(weak) = self.volume.get().cloned() else { return };
        let (sender, receiver) = channel();
        let period = self.policy.period;
        let keep = move || {
            while receiver.recv_timeout(period) == Err(RecvTimeoutError::Timeout) {
                if keep_once(&weak).is_break() {
                    break;
                }
            }
        };
        match std::thread::Builder::new().name("ext2-commit".into()).spawn(keep) {
            Ok(_) => drop(self.keeper.set(sender)),
            Err(error) => {
                tracing::warn!("ext2: {}: changes wait for a sync: {error}", volume.name());
            }
        }
    }

    /// The end: everything in its place, and the disk says that the volume is not in use.
    pub(crate) fn finish(&self, volume: &Volume) -> Result<()> {
        let mut log = self.log.lock();
        self.closed.store(true, Ordering::Release);
        if !log.active {
            return if self.broken.load(Ordering::Acquire) { Err(Errno::EIO.into()) } else { Ok(()) };
        }
        self.commit_locked(volume, &mut log)?;
        let ended = self.checkpoint(volume, &mut log).and_then(|()| self.say_clean(volume, &mut log));
        if ended.is_err() {
            self.broken.store(true, Ordering::Release);
        }
        ended
    }

    fn say_clean(&self, volume: &Volume, log: &mut Log) -> Result<()> {
        let was_valid = volume.sb.facts.state & STATE_VALID;
        if let Some(ring) = &mut log.ring {
            ring.finish(volume)?;
        }
        self.flush(volume)?;
        let no_orphans = self.meta.lock().orphans.is_empty();
        write_super(volume, |sb| {
            set_bits(sb, 0x60, INCOMPAT_RECOVER, false);
            if no_orphans {
                set_bits(sb, 0x64, RO_COMPAT_ORPHAN_PRESENT, false);
            }
            let state = u16::from_le_bytes([sb[0x3a], sb[0x3b]]) | was_valid;
            sb[0x3a..0x3c].copy_from_slice(&state.to_le_bytes());
            put_now(sb, 0x30, 0x274);
        })?;
        self.flush(volume)?;
        log.active = false;
        self.active.store(false, Ordering::Release);
        Ok(())
    }
}

/// One round of the thread that commits in time; `Break` when the volume is gone.
fn keep_once(weak: &Weak<Volume>) -> ControlFlow<()> {
    let Some(volume) = weak.upgrade() else { return ControlFlow::Break(()) };
    let Some(transactions) = &volume.transactions else { return ControlFlow::Break(()) };
    volume.settle_all();
    let waiting = !transactions.meta.lock().running.is_empty();
    if waiting && transactions.commit(&volume).is_err() {
        return ControlFlow::Break(());
    }
    ControlFlow::Continue(())
}

impl Volume {
    fn writable(&self) -> Result<&Transactions> {
        match &self.transactions {
            Some(transactions) if !transactions.is_closed() => Ok(transactions),
            _ => Err(Errno::EROFS.into()),
        }
    }

    /// The right to change something. Whoever calls holds none.
    pub(crate) fn begin(&self) -> Result<Handle<'_>> {
        let transactions = self.writable()?;
        transactions.activate(self)?;
        let open = transactions.handles.fetch_add(1, Ordering::AcqRel) + 1;
        let full = transactions.meta.lock().running.blocks.len() + RESERVE * open > transactions.limit;
        if full {
            if let Err(error) = transactions.commit(self) {
                transactions.handles.fetch_sub(1, Ordering::AcqRel);
                return Err(error);
            }
        }
        Ok(Handle { volume: self, transactions, _gate: transactions.gate.read() })
    }

    /// A change on its own. If there is no room, what was given back and not committed may make some.
    pub(crate) fn change<T>(&self, mut change: impl FnMut(&mut Change<'_>) -> Result<T>) -> Result<T> {
        // The handle is gone before a commit waits for it.
        let done = self.begin()?.change(&mut change);
        match done {
            Err(Error::Errno(Errno::ENOSPC)) if self.make_room()? => self.begin()?.change(change),
            done => done,
        }
    }

    /// Whether there is more room after a commit, and after content that waits has taken what it needs and given back the rest of what was
    /// promised. Whoever calls holds no handle.
    pub(crate) fn make_room(&self) -> Result<bool> {
        Ok(self.settle_idle() | self.commit_freed()?)
    }

    /// Commits if something was given back. Whoever calls holds no handle.
    pub(crate) fn commit_freed(&self) -> Result<bool> {
        let transactions = self.writable()?;
        let useful = transactions.waits_for_commit();
        if useful {
            transactions.commit(self)?;
        }
        Ok(useful)
    }

    /// Without a journal: has what was done so far reach the disk before what follows.
    pub(crate) fn order(&self) -> Result<()> {
        match &self.transactions {
            Some(transactions) if !transactions.journalled => transactions.commit(self),
            _ => Ok(()),
        }
    }

    /// Commits everything.
    pub(crate) fn commit(&self) -> Result<()> {
        match &self.transactions {
            Some(transactions) => transactions.commit(self),
            None => Ok(()),
        }
    }
}

/// Writes blocks to their places, neighbours together.
pub(crate) fn write_home<'b>(volume: &Volume, blocks: impl Iterator<Item = (u64, &'b [u8])>) -> Result<()> {
    let bits = volume.sb.block_bits;
    let (mut start, mut run) = (0, Vec::new());
    for (number, block) in blocks {
        let next = start + (run.len() as u64 >> bits);
        if !run.is_empty() && (number != next || run.len() >= WRITE_MAX) {
            volume.disk.write_at(&run, start << bits)?;
            run.clear();
        }
        if run.is_empty() {
            start = number;
        }
        run.extend_from_slice(block);
    }
    Ok(volume.disk.write_at(&run, start << bits)?)
}

/// Changes the superblock in its place, past all transactions. There is no newer one.
pub(crate) fn write_super(volume: &Volume, change: impl FnOnce(&mut [u8])) -> Result<()> {
    let (number, skip) = super_place(volume);
    let mut block = volume.block(number)?.to_vec();
    change_super(&mut block[skip..skip + SUPERBLOCK_SIZE], volume.sb.has_checksums(), change);
    volume
        .disk
        .write_at(&block[skip..skip + SUPERBLOCK_SIZE], (number << volume.sb.block_bits) + skip as u64)?;
    volume.cache.advance();
    volume.cache.replace(number, block.into());
    Ok(())
}

/// Nothing is to be replayed any more.
pub(crate) fn say_not_in_use(volume: &Volume) -> Result<()> {
    write_super(volume, |sb| set_bits(sb, 0x60, INCOMPAT_RECOVER, false))
}

fn set_bits(bytes: &mut [u8], at: usize, bits: u32, on: bool) {
    let word = u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]]);
    let word = if on { word | bits } else { word & !bits };
    bytes[at..at + 4].copy_from_slice(&word.to_le_bytes());
}

/// Now, in a field of 32 bits and the byte that continues it.
fn put_now(sb: &mut [u8], low: usize, high: usize) {
    let now = Timestamp::now().seconds;
    sb[low..low + 4].copy_from_slice(&(now as u32).to_le_bytes());
    sb[high] = (now >> 32) as u8;
}
