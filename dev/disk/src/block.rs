//! Block devices as programs see them: a [`Drive`] whose whole and whose partitions are opened as [`File`]s, with the ioctls of
//! block devices. A host shows the nodes and passes the calls through; nothing here knows which host that is.
//!
//! Partitions are the kernel's idea of them, which follows the table only when somebody says so: [`BlockDrive::reread`] (BLKRRPART),
//! or one by one (BLKPG). As on Linux, the table is not read again while a partition is open or mounted: `EBUSY`.
//!
//! Lock order: `state` is held for moments, and never while the disk is read or written, except by `reread`, so that nobody opens a
//! partition that is about to go.

use std::collections::BTreeMap;
use std::ops::Range;
use std::os::fd::BorrowedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use parking_lot::Mutex;
use veduta_api::{
    Allocate, BlockDevice, Disk, Drive, Errno, File, Geometry, Ioctl, OpenFlags, Partition, PartitionTable,
    Result, Seek,
};

use crate::blkctl;

/// The number of the whole disk among its parts.
pub const WHOLE: u32 = 0;

/// BLKGETDISKSEQ: no two disks of a process have the same.
static NEXT_SEQUENCE: AtomicU64 = AtomicU64::new(1);

/// A drive as a set of block devices.
pub struct BlockDrive {
    drive: Arc<dyn Drive>,
    follow: bool,
    pub(crate) sequence: u64,
    state: Mutex<State>,
}

/// One partition as the nodes have it, which the table may no longer say.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Extent {
    pub(crate) offset: u64,
    pub(crate) size: u64,
}

#[derive(Default)]
struct State {
    extents: BTreeMap<u32, Extent>,
    /// How often each partition is open or held.
    users: BTreeMap<u32, usize>,
    settings: BTreeMap<u32, Settings>,
    /// The table was written while a partition was open; it is read when the last is closed.
    reread_due: bool,
    /// Counts the times that the partitions changed.
    generation: u64,
}

/// What ioctls set, for one device.
#[derive(Clone, Copy)]
pub(crate) struct Settings {
    pub(crate) read_only: bool,
    /// Sectors of 512 bytes.
    pub(crate) readahead: u64,
    pub(crate) block: u32,
}

impl Default for Settings {
    fn default() -> Self {
        Self { read_only: false, readahead: 256, block: 4096 }
    }
}

impl State {
    fn set(&mut self, table: Option<&PartitionTable>, whole: u64) {
        let partitions = table.into_iter().flat_map(|table| &table.partitions);
        let extent = |partition: &Partition| {
            let left = whole.checked_sub(partition.offset).filter(|left| *left > 0)?;
            Some((partition.number, Extent { offset: partition.offset, size: partition.size.min(left) }))
        };
        self.extents = partitions.filter_map(extent).collect();
        self.generation += 1;
        self.reread_due = false;
    }

    fn is_in_use(&self) -> bool {
        !self.users.is_empty()
    }
}

impl BlockDrive {
    /// The devices of a drive. `follow`: the table is also read again when somebody who wrote to the whole disk closes it,
    /// which on a Linux system udev sees to.
    pub fn new(drive: Arc<dyn Drive>, follow: bool) -> Arc<Self> {
        let mut state = State::default();
        state.set(drive.table().as_ref(), drive.whole().size());
        let sequence = NEXT_SEQUENCE.fetch_add(1, Ordering::Relaxed);
        Arc::new(Self { drive, follow, sequence, state: Mutex::new(state) })
    }

    /// The drive behind it.
    pub fn drive(&self) -> &Arc<dyn Drive> {
        &self.drive
    }

    /// The numbers of the partitions, in order.
    pub fn numbers(&self) -> Vec<u32> {
        self.state.lock().extents.keys().copied().collect()
    }

    /// Counts how often the partitions changed.
    pub fn generation(&self) -> u64 {
        self.state.lock().generation
    }

    /// The whole disk or a partition as a disk. `ENXIO` if there is none of that number.
    pub fn disk(&self, number: u32) -> Result<Disk> {
        let whole = self.drive.whole();
        if number == WHOLE {
            return Ok(whole);
        }
        let extent = *self.state.lock().extents.get(&number).ok_or(Errno::ENXIO)?;
        let name = format!("{}#{number}", whole.name());
        whole.window(extent.offset, extent.size, name)
    }

    /// As [`disk`](Self::disk), for a mount: the partition is in use as long as the disk, or a clone or a window of it, is there.
    pub fn held_disk(self: &Arc<Self>, number: u32) -> Result<Disk> {
        let hold = self.hold(number)?;
        let disk = self.disk(number)?;
        let name = disk.name().to_owned();
        Ok(Disk::new(Arc::new(Held { disk, _hold: hold }), name))
    }

    /// Marks a partition as in use, as a mount of it does, until the guard is dropped. `ENXIO` if there is none.
    pub fn hold(self: &Arc<Self>, number: u32) -> Result<Hold> {
        if number != WHOLE {
            let mut state = self.state.lock();
            if !state.extents.contains_key(&number) {
                return Err(Errno::ENXIO);
            }
            *state.users.entry(number).or_default() += 1;
        }
        Ok(Hold { drive: Arc::clone(self), number })
    }

    /// Opens the whole disk ([`WHOLE`]) or a partition. `ENXIO` if there is none, `EACCES` to write what is set read-only.
    pub fn open(self: &Arc<Self>, number: u32, flags: OpenFlags) -> Result<Arc<BlockFile>> {
        let hold = self.hold(number)?;
        let disk = self.disk(number)?;
        if flags.write && (disk.is_read_only() || self.settings(number).read_only) {
            return Err(if disk.is_read_only() { Errno::EROFS } else { Errno::EACCES });
        }
        Ok(Arc::new(BlockFile { disk, writable: flags.write, written: AtomicBool::new(false), hold }))
    }

    /// Reads the partition table again (BLKRRPART). `EBUSY` while a partition is in use; a table that cannot be read leaves
    /// everything as it was.
    pub fn reread(&self) -> Result<()> {
        let mut state = self.state.lock();
        if state.is_in_use() {
            return Err(Errno::EBUSY);
        }
        self.reread_locked(&mut state)
    }

    fn reread_locked(&self, state: &mut State) -> Result<()> {
        state.reread_due = false;
        self.drive.reread()?;
        state.set(self.drive.table().as_ref(), self.drive.whole().size());
        Ok(())
    }

    /// The table may have been written: reads it now, or when the last partition is closed.
    fn follow_table(&self) {
        let mut state = self.state.lock();
        if state.is_in_use() {
            state.reread_due = true;
        } else if let Err(errno) = self.reread_locked(&mut state) {
            tracing::warn!(
                "the partition table cannot be read again, and the partitions stay: {}",
                errno.desc()
            );
        }
    }

    pub(crate) fn settings(&self, number: u32) -> Settings {
        self.state.lock().settings.get(&number).copied().unwrap_or_default()
    }

    pub(crate) fn set(&self, number: u32, change: impl FnOnce(&mut Settings)) {
        change(self.state.lock().settings.entry(number).or_default());
    }

    pub(crate) fn offset(&self, number: u32) -> u64 {
        self.state.lock().extents.get(&number).map_or(0, |extent| extent.offset)
    }

    /// BLKPG_ADD_PARTITION. `EBUSY` if the number is taken or the range overlaps another's, as Linux has it.
    pub(crate) fn add(&self, number: u32, extent: Extent) -> Result<()> {
        let mut state = self.state.lock();
        if state.extents.contains_key(&number) || overlaps(&state.extents, number, extent) {
            return Err(Errno::EBUSY);
        }
        self.check(number, extent)?;
        state.extents.insert(number, extent);
        state.generation += 1;
        Ok(())
    }

    /// BLKPG_DEL_PARTITION. `ENXIO` if there is none, `EBUSY` while it is in use.
    pub(crate) fn delete(&self, number: u32) -> Result<()> {
        let mut state = self.state.lock();
        if !state.extents.contains_key(&number) {
            return Err(Errno::ENXIO);
        }
        if state.users.contains_key(&number) {
            return Err(Errno::EBUSY);
        }
        state.extents.remove(&number);
        state.settings.remove(&number);
        state.generation += 1;
        Ok(())
    }

    /// BLKPG_RESIZE_PARTITION: the start must stay. Whoever has it open keeps the old size.
    pub(crate) fn resize(&self, number: u32, extent: Extent) -> Result<()> {
        let mut state = self.state.lock();
        let old = *state.extents.get(&number).ok_or(Errno::ENXIO)?;
        if old.offset != extent.offset {
            return Err(Errno::EINVAL);
        }
        if overlaps(&state.extents, number, extent) {
            return Err(Errno::EBUSY);
        }
        self.check(number, extent)?;
        state.extents.insert(number, extent);
        state.generation += 1;
        Ok(())
    }

    fn check(&self, number: u32, extent: Extent) -> Result<()> {
        let end = extent.offset.checked_add(extent.size).ok_or(Errno::EINVAL)?;
        let sane = number != WHOLE && extent.size > 0 && end <= self.drive.whole().size();
        if sane { Ok(()) } else { Err(Errno::EINVAL) }
    }
}

fn overlaps(extents: &BTreeMap<u32, Extent>, number: u32, extent: Extent) -> bool {
    let end = extent.offset.saturating_add(extent.size);
    let mut others = extents.iter().filter(|(other, _)| **other != number);
    others.any(|(_, other)| other.offset < end && extent.offset < other.offset + other.size)
}

/// While it lives, a partition is in use. The whole disk is never in its own way.
pub struct Hold {
    drive: Arc<BlockDrive>,
    number: u32,
}

impl Drop for Hold {
    fn drop(&mut self) {
        if self.number == WHOLE {
            return;
        }
        let mut state = self.drive.state.lock();
        if let Some(count) = state.users.get_mut(&self.number) {
            *count -= 1;
            if *count == 0 {
                state.users.remove(&self.number);
            }
        }
        let due = state.reread_due && !state.is_in_use();
        drop(state);
        if due {
            self.drive.follow_table();
        }
    }
}

/// A part of a drive that is in use while this lives.
struct Held {
    disk: Disk,
    _hold: Hold,
}

impl BlockDevice for Held {
    fn geometry(&self) -> Geometry {
        self.disk.geometry()
    }
    fn read_at(&self, buf: &mut [u8], offset: u64) -> Result<()> {
        self.disk.read_at(buf, offset)
    }
    fn write_at(&self, buf: &[u8], offset: u64) -> Result<()> {
        self.disk.write_at(buf, offset)
    }
    fn flush(&self) -> Result<()> {
        self.disk.flush()
    }
    fn discard(&self, offset: u64, len: u64) -> Result<()> {
        self.disk.discard(offset, len)
    }
    fn write_zeroes(&self, offset: u64, len: u64) -> Result<()> {
        self.disk.write_zeroes(offset, len)
    }
    fn next_data(&self, offset: u64) -> Result<Option<Range<u64>>> {
        self.disk.next_data(offset)
    }
    fn backing(&self) -> Option<(BorrowedFd<'_>, u64)> {
        self.disk.backing()
    }
}

/// An open block device.
pub struct BlockFile {
    disk: Disk,
    writable: bool,
    /// Written to since the table was last looked at.
    written: AtomicBool,
    hold: Hold,
}

impl BlockFile {
    pub(crate) fn drive(&self) -> &BlockDrive {
        &self.hold.drive
    }

    pub(crate) fn disk(&self) -> &Disk {
        &self.disk
    }

    pub(crate) fn number(&self) -> u32 {
        self.hold.number
    }

    /// Before a change. `EBADF` if it was not opened for writing, `EPERM` if it was set read-only meanwhile.
    pub(crate) fn changing(&self) -> Result<()> {
        if !self.writable {
            return Err(Errno::EBADF);
        }
        if self.drive().settings(self.number()).read_only {
            return Err(Errno::EPERM);
        }
        self.written.store(true, Ordering::Relaxed);
        Ok(())
    }

    /// Makes a range read as zeros, giving its space back where the device can.
    pub(crate) fn punch(&self, offset: u64, len: u64) -> Result<()> {
        match self.disk.discard(offset, len) {
            Ok(()) => {}
            Err(Errno::EOPNOTSUPP) => return self.disk.write_zeroes(offset, len),
            Err(error) => return Err(error),
        }
        // What is left of it need not be zeros.
        let end = offset + len;
        let mut at = offset;
        while let Some(data) = self.disk.next_data(at)?.filter(|data| data.start < end) {
            let stop = data.end.min(end);
            self.disk.write_zeroes(data.start, stop - data.start)?;
            at = stop;
        }
        Ok(())
    }
}

impl File for BlockFile {
    fn read_at(&self, buf: &mut [u8], offset: u64) -> Result<usize> {
        let left = self.disk.size().saturating_sub(offset);
        let len = left.min(buf.len() as u64) as usize;
        self.disk.read_at(&mut buf[..len], offset.min(self.disk.size()))?;
        Ok(len)
    }

    /// As on Linux, what goes beyond the end is cut, and a write behind it gives `ENOSPC`.
    fn write_at(&self, buf: &[u8], offset: u64) -> Result<usize> {
        self.changing()?;
        let left = self.disk.size().saturating_sub(offset);
        if left == 0 && !buf.is_empty() {
            return Err(Errno::ENOSPC);
        }
        let len = left.min(buf.len() as u64) as usize;
        self.disk.write_at(&buf[..len], offset)?;
        Ok(len)
    }

    /// A close: the table may be another now. A table that cannot be read is no failure of the close.
    fn flush(&self) -> Result<()> {
        let whole = self.number() == WHOLE;
        if whole && self.drive().follow && self.written.swap(false, Ordering::Relaxed) {
            self.drive().follow_table();
        }
        Ok(())
    }

    fn sync(&self, _data_only: bool) -> Result<()> {
        self.disk.flush()
    }

    /// `fallocate(2)`, as block devices have it: zeros by punching and by writing, and no other size.
    fn allocate(&self, how: Allocate, offset: u64, len: u64) -> Result<()> {
        self.changing()?;
        if offset.checked_add(len).is_none_or(|end| end > self.disk.size()) {
            return Err(Errno::ENOSPC);
        }
        match how {
            Allocate::PunchHole => self.punch(offset, len),
            Allocate::ZeroRange { .. } => self.disk.write_zeroes(offset, len),
            Allocate::Extend | Allocate::KeepSize | Allocate::Collapse | Allocate::Insert => {
                Err(Errno::EOPNOTSUPP)
            }
        }
    }

    fn seek(&self, what: Seek, offset: u64) -> Result<u64> {
        let size = self.disk.size();
        if offset >= size {
            return Err(Errno::ENXIO);
        }
        match (what, self.disk.next_data(offset)?) {
            (Seek::Data, found) => found.map(|data| data.start).ok_or(Errno::ENXIO),
            (Seek::Hole, None) => Ok(offset),
            (Seek::Hole, Some(data)) if data.start > offset => Ok(offset),
            (Seek::Hole, Some(mut data)) => {
                // One range of data may follow another without a hole.
                while let Some(next) = self.disk.next_data(data.end)?.filter(|next| next.start == data.end) {
                    data = next;
                }
                Ok(data.end)
            }
        }
    }

    fn ioctl(&self, ioctl: &mut Ioctl<'_>) -> Result<i32> {
        blkctl::answer(self, ioctl)
    }

    /// The whole and a partition are the same bytes: nothing above may remember either.
    fn is_direct(&self) -> bool {
        true
    }
}

impl Drop for BlockFile {
    fn drop(&mut self) {
        let _ = self.flush();
    }
}
