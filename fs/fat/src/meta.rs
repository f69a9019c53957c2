//! What all files share: the table, the free clusters, and the directory sectors that were changed; and the order in which
//! they reach the disk.
//!
//! File content is written at once. Everything else waits in memory for a *commit*, which has steps, with the disk
//! flushed between them:
//!
//! 1. content, written before;
//! 2. the table and the bitmap: what was allocated, as chains of their own; then where older chains go on into them;
//! 3. directory sectors; those that got a name by `rename` after those that lost one;
//! 4. the table: where chains that became shorter end now;
//! 5. the table and the bitmap: what was freed; free counts.
//!
//! So a cluster is in the table before a directory names its file, and leaves it after no directory does. A freed cluster
//! is given to nobody before step 5, since until then a crash would bring its old file back. Whenever a crash comes,
//! clusters are lost at worst: none belongs to two files, and no file shows content that is not its own.
//!
//! A commit is made by `fsync`, `sync` and `unmount`; when the changes have become many or old; and when only it
//! can give back the space that is needed.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use veduta_api::{Disk, Errno, Result};

use crate::boot::{Format, Layout, le32};
use crate::free::FreeMap;
use crate::runs::Runs;
use crate::slots::Slot;
use crate::table::{Next, Table};

/// Changed directory sectors that wait for a commit at most.
const WAITING: usize = 4096;
/// Directory sectors that are kept in memory.
const KEPT: usize = 16384;
/// How long a change waits at most before a later one brings about a commit.
const PATIENCE: Duration = Duration::from_secs(5);

/// A directory sector in memory.
struct Sector {
    bytes: Box<[u8]>,
    changed: bool,
    /// A name was moved away from here, and must be gone before it appears elsewhere.
    source: bool,
    /// A name was moved to here.
    target: bool,
}

/// See the head of the file.
pub(crate) struct Meta {
    disk: Disk,
    layout: Arc<Layout>,
    table: Table,
    free: FreeMap,
    /// Clusters that are free after the next commit.
    freed: Vec<(u32, u32)>,
    freed_count: u64,
    /// Clusters that are the last of their file after the next commit.
    cuts: HashSet<u32>,
    /// Ends of chains that go on after the next commit, and where.
    joins: HashMap<u32, u32>,
    sectors: HashMap<u64, Sector>,
    changed: usize,
    /// When the oldest change was made that has not been committed.
    since: Option<Instant>,
    /// Whether the volume is marked as in use.
    marked: bool,
    /// Whether freed clusters are discarded.
    discard: bool,
    failed: Option<Errno>,
}

impl Meta {
    pub(crate) fn new(disk: Disk, layout: Arc<Layout>, discard: bool) -> Self {
        Self {
            table: Table::new(&layout),
            free: FreeMap::new(layout.clusters, None),
            freed: Vec::new(),
            freed_count: 0,
            cuts: HashSet::new(),
            joins: HashMap::new(),
            sectors: HashMap::new(),
            changed: 0,
            since: None,
            marked: false,
            discard,
            failed: None,
            disk,
            layout,
        }
    }

    /// exFAT: where the bitmap lies.
    pub(crate) fn set_bitmap(&mut self, places: Vec<(u64, u64)>) {
        self.free = FreeMap::new(self.layout.clusters, Some(places));
    }

    /// Believes what FSInfo says of free clusters; `next` is where to look for one.
    pub(crate) fn believe(&mut self, free: Option<u64>, next: u32) {
        if let Some(free) = free {
            self.free.believe(free);
        }
        self.free.start_at(next);
    }

    /// Clusters that are free, or will be after a commit.
    pub(crate) fn free_clusters(&mut self) -> Result<u64> {
        Ok(self.free.total(&self.disk, &mut self.table)? + self.freed_count)
    }

    // --- Chains ---------------------------------------------------------------------------------------------------

    /// The clusters of the chain that starts at `start`. The walk ends where a cluster comes again: it is compared with an
    /// earlier one, which moves on at each power of two (Brent), so a loop is gone through three times at most.
    pub(crate) fn chain(&mut self, start: u32) -> Result<Runs> {
        let mut runs = Runs::default();
        let (mut cluster, mut earlier) = (start, 0);
        loop {
            if !self.layout.is_cluster(cluster) || cluster == earlier {
                runs.broken = true;
                return Ok(runs);
            }
            if runs.total().is_power_of_two() {
                earlier = cluster;
            }
            runs.push(cluster, 1);
            if self.cuts.contains(&cluster) {
                return Ok(runs);
            }
            let next = match self.joins.get(&cluster) {
                Some(next) => Next::Cluster(*next),
                None => self.table.next(&self.disk, cluster)?,
            };
            match next {
                Next::Cluster(next) => cluster = next,
                Next::End => return Ok(runs),
                Next::Free | Next::Bad => {
                    runs.broken = true;
                    return Ok(runs);
                }
            }
        }
    }

    /// Takes `want` free clusters, from the one behind `last` on if possible. `ENOSPC`, and nothing is taken, if there
    /// are fewer.
    pub(crate) fn allocate(&mut self, want: u32, last: Option<u32>) -> Result<Vec<(u32, u32)>> {
        if u64::from(want) > self.free_clusters()? {
            return Err(Errno::ENOSPC);
        }
        if u64::from(want) > self.free.total(&self.disk, &mut self.table)? {
            self.commit()?;
        }
        let taken = self.free.take(&self.disk, &mut self.table, want, last.map(|last| last + 1))?;
        if taken.iter().map(|(_, len)| len).sum::<u32>() < want {
            // The count was a lie, of an FSInfo that was believed.
            for (start, len) in taken {
                self.free.give(&self.disk, &mut self.table, start, len)?;
            }
            return Err(Errno::ENOSPC);
        }
        self.note();
        Ok(taken)
    }

    /// Writes runs into the table as a chain, behind `last` if there is one.
    pub(crate) fn link(&mut self, last: Option<u32>, runs: &[(u32, u32)]) -> Result<()> {
        if last.is_some_and(|last| self.cuts.contains(&last)) {
            // The end that this file was given must be on the disk before it gets another one.
            self.commit()?;
        }
        if let (Some(last), Some((first, _))) = (last, runs.first()) {
            self.joins.insert(last, *first);
        }
        let mut before = None;
        for cluster in runs.iter().flat_map(|(start, len)| *start..*start + *len) {
            if let Some(before) = before {
                self.table.set(&self.disk, before, Next::Cluster(cluster))?;
            }
            before = Some(cluster);
        }
        before.map_or(Ok(()), |last| self.table.set(&self.disk, last, Next::End))
    }

    /// Frees clusters that no directory names any more.
    pub(crate) fn release(&mut self, runs: &[(u32, u32)]) {
        self.freed_count += runs.iter().map(|(_, len)| u64::from(*len)).sum::<u64>();
        self.freed.extend_from_slice(runs);
        self.note();
    }

    /// Ends a chain behind `last`.
    pub(crate) fn cut(&mut self, last: u32) {
        self.cuts.insert(last);
        self.note();
    }

    // --- Directory sectors ---------------------------------------------------------------------------------------------

    /// Reads the bytes of a directory, with the changes that wait.
    pub(crate) fn read(&self, buf: &mut [u8], offset: u64) -> Result<()> {
        self.disk.read_at(buf, offset)?;
        let size = self.layout.sector as usize;
        for (number, part) in (offset / size as u64..).zip(buf.chunks_mut(size)) {
            if let Some(sector) = self.sectors.get(&number) {
                part.copy_from_slice(&sector.bytes[..part.len()]);
            }
        }
        Ok(())
    }

    pub(crate) fn slot(&mut self, offset: u64) -> Result<Slot> {
        let within = (offset % u64::from(self.layout.sector)) as usize;
        let sector = self.sector(offset)?;
        let slot = sector.bytes.get(within..within + 32).and_then(|slot| slot.try_into().ok());
        slot.ok_or(Errno::EUCLEAN)
    }

    pub(crate) fn slots(&mut self, offsets: &[u64]) -> Result<Vec<Slot>> {
        offsets.iter().map(|offset| self.slot(*offset)).collect()
    }

    pub(crate) fn put_slot(&mut self, offset: u64, slot: &Slot) -> Result<()> {
        let within = (offset % u64::from(self.layout.sector)) as usize;
        let sector = self.sector(offset)?;
        let place = sector.bytes.get_mut(within..within + 32).ok_or(Errno::EUCLEAN)?;
        if place == slot {
            return Ok(());
        }
        place.copy_from_slice(slot);
        let new = !std::mem::replace(&mut sector.changed, true);
        self.changed += usize::from(new);
        self.note();
        Ok(())
    }

    /// Announces that the name in the slot at `from` moves to the one at `to`: a crash may lose it between the two, but
    /// never show both. Called before the slots are changed.
    pub(crate) fn order(&mut self, from: u64, to: u64) -> Result<()> {
        let size = u64::from(self.layout.sector);
        if from / size == to / size {
            return Ok(());
        }
        let (source, target) = (self.sector(from)?.target, self.sector(to)?.source);
        if source || target {
            self.commit()?;
        }
        self.sector(from)?.source = true;
        self.sector(to)?.target = true;
        Ok(())
    }

    fn sector(&mut self, offset: u64) -> Result<&mut Sector> {
        let size = u64::from(self.layout.sector);
        let number = offset / size;
        if self.sectors.len() >= KEPT && !self.sectors.contains_key(&number) {
            self.sectors.retain(|_, sector| sector.changed || sector.source || sector.target);
        }
        Ok(match self.sectors.entry(number) {
            std::collections::hash_map::Entry::Occupied(there) => there.into_mut(),
            std::collections::hash_map::Entry::Vacant(vacant) => {
                let bytes = self.disk.read_vec(number * size, size as usize)?.into();
                vacant.insert(Sector { bytes, changed: false, source: false, target: false })
            }
        })
    }

    /// Forgets the sectors of clusters that become something else.
    pub(crate) fn forget_sectors(&mut self, runs: &[(u32, u32)]) {
        let size = u64::from(self.layout.sector);
        for (start, len) in runs {
            let from = self.layout.offset(*start);
            let end = from + u64::from(*len) * u64::from(self.layout.cluster_size);
            for number in from / size..end / size {
                let gone = self.sectors.remove(&number);
                self.changed -= usize::from(gone.is_some_and(|sector| sector.changed));
            }
        }
    }

    // --- Commit --------------------------------------------------------------------------------------------------------

    /// Marks the volume as in use, before the first change. Called at the start of every change.
    pub(crate) fn begin(&mut self) -> Result<()> {
        if !self.marked {
            if !self.layout.dirty {
                self.mark(true)?;
                self.disk.flush()?;
            }
            self.marked = true;
        }
        if self.changed > WAITING || self.is_old() { self.commit() } else { Ok(()) }
    }

    fn note(&mut self) {
        if self.since.is_none() {
            self.since = Some(Instant::now());
        }
    }

    /// Whether changes have waited for long enough.
    pub(crate) fn is_old(&self) -> bool {
        self.since.is_some_and(|since| since.elapsed() > PATIENCE)
    }

    /// Brings all changes to stable storage, in order.
    pub(crate) fn commit(&mut self) -> Result<()> {
        let done = self.steps();
        if let Err(errno) = done {
            tracing::error!("{}: writing out changes failed: {errno}", self.disk.name());
            self.failed = Some(errno);
        }
        done
    }

    /// The error of an earlier commit.
    pub(crate) fn failure(&self) -> Option<Errno> {
        self.failed
    }

    fn steps(&mut self) -> Result<()> {
        self.disk.flush()?;
        if self.since.is_none() {
            return Ok(());
        }
        if self.table.is_changed() || self.free.is_changed() {
            self.table.write_out(&self.disk)?;
            self.free.write_out(&self.disk)?;
            self.disk.flush()?;
        }
        if !self.joins.is_empty() {
            for (last, next) in &self.joins {
                self.table.set(&self.disk, *last, Next::Cluster(*next))?;
            }
            self.table.write_out(&self.disk)?;
            self.disk.flush()?;
            self.joins.clear();
        }
        for target in [false, true] {
            if self.write_sectors(target)? {
                self.disk.flush()?;
            }
        }
        for sector in self.sectors.values_mut() {
            (sector.source, sector.target) = (false, false);
        }
        self.apply_frees()?;
        self.table.write_out(&self.disk)?;
        self.free.write_out(&self.disk)?;
        self.write_fsinfo()?;
        self.disk.flush()?;
        self.since = None;
        Ok(())
    }

    /// Writes the changed sectors that are, or are not, targets of a `rename`. Says whether there were any.
    fn write_sectors(&mut self, target: bool) -> Result<bool> {
        let is_due = |sector: &Sector| sector.changed && sector.target == target;
        let mut due: Vec<u64> =
            self.sectors.iter().filter(|(_, sector)| is_due(sector)).map(|(number, _)| *number).collect();
        due.sort_unstable();
        let size = u64::from(self.layout.sector);
        // Sectors that follow each other go in one write.
        for run in due.chunk_by(|one, two| one + 1 == *two) {
            let bytes: Vec<u8> = run
                .iter()
                .filter_map(|number| self.sectors.get(number))
                .flat_map(|sector| sector.bytes.iter().copied())
                .collect();
            self.disk.write_at(&bytes, run[0] * size)?;
        }
        for number in &due {
            if let Some(sector) = self.sectors.get_mut(number) {
                sector.changed = false;
                self.changed -= 1;
            }
        }
        Ok(!due.is_empty())
    }

    fn apply_frees(&mut self) -> Result<()> {
        let chained = !self.layout.is_exfat();
        // What fails here is done again by the next commit. A chain ends before the clusters behind its end are free.
        if !self.cuts.is_empty() {
            let cuts: Vec<u32> = self.cuts.iter().copied().collect();
            for cluster in cuts {
                self.table.set(&self.disk, cluster, Next::End)?;
            }
            self.table.write_out(&self.disk)?;
            self.disk.flush()?;
            self.cuts.clear();
        }
        while let Some((start, len)) = self.freed.last().copied() {
            // exFAT's table says nothing about free clusters.
            for cluster in (start..start + len).filter(|_| chained) {
                self.table.set(&self.disk, cluster, Next::Free)?;
            }
            self.free.give(&self.disk, &mut self.table, start, len)?;
            if self.discard {
                let bytes = u64::from(len) * u64::from(self.layout.cluster_size);
                // Only a hint: a disk that cannot keeps the bytes.
                let _ = self.disk.discard(self.layout.offset(start), bytes);
            }
            self.freed.pop();
            self.freed_count -= u64::from(len);
        }
        Ok(())
    }

    /// The FSInfo sector: how many clusters are free, and where the next one may be found.
    fn write_fsinfo(&mut self) -> Result<()> {
        let Some(at) = self.layout.fsinfo else { return Ok(()) };
        let mut sector = self.disk.read_vec(at, 512)?;
        if !is_fsinfo(&sector) {
            return Ok(());
        }
        let free = self.free.total(&self.disk, &mut self.table)? as u32;
        if le32(&sector, 488) == free {
            return Ok(());
        }
        sector[488..492].copy_from_slice(&free.to_le_bytes());
        sector[492..496].copy_from_slice(&self.free.next_hint().to_le_bytes());
        self.disk.write_at(&sector, at)
    }

    /// Sets or takes away the marks that say "in use": one in the boot sector, one in entry 1 of FAT16 and FAT32.
    fn mark(&mut self, in_use: bool) -> Result<()> {
        let mut boot = self.disk.read_vec(0, 512)?;
        let state = &mut boot[self.layout.state_at as usize];
        *state = if in_use { *state | self.layout.state_bit } else { *state & !self.layout.state_bit };
        if self.layout.is_exfat() && !in_use {
            let used = u64::from(self.layout.clusters).saturating_sub(self.free_clusters()?);
            boot[112] = (used * 100 / u64::from(self.layout.clusters)) as u8;
        }
        let clean = match self.layout.format {
            Format::Fat16 => 0x8000,
            Format::Fat32 => 0x0800_0000,
            _ => 0,
        };
        if clean != 0 {
            let entry = self.table.value(&self.disk, 1)?;
            self.table.set_value(&self.disk, 1, if in_use { entry & !clean } else { entry | clean })?;
            self.table.write_out(&self.disk)?;
        }
        self.disk.write_at(&boot, 0)
    }

    /// The last commit; the volume is marked clean, unless it was not when it was mounted.
    pub(crate) fn unmount(&mut self) -> Result<()> {
        if !self.marked {
            return self.failed.map_or(Ok(()), Err);
        }
        self.commit()?;
        if let Some(errno) = self.failed {
            return Err(errno);
        }
        if !self.layout.dirty {
            self.mark(false)?;
        }
        self.marked = false;
        self.disk.flush()
    }

    /// Writes the label into the boot sectors of FAT.
    pub(crate) fn put_boot_label(&mut self, label: &[u8; 11]) -> Result<()> {
        let Some(at) = self.layout.boot_label_at else { return Ok(()) };
        for boot in [Some(0), self.layout.backup_boot].into_iter().flatten() {
            let mut sector = self.disk.read_vec(boot, 512)?;
            sector[at as usize..at as usize + 11].copy_from_slice(label);
            self.disk.write_at(&sector, boot)?;
        }
        self.note();
        Ok(())
    }
}

/// Whether a sector is an FSInfo.
pub(crate) fn is_fsinfo(sector: &[u8]) -> bool {
    le32(sector, 0) == 0x4161_5252 && le32(sector, 484) == 0x6141_7272 && le32(sector, 508) == 0xaa55_0000
}
