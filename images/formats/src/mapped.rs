//! A disk whose blocks lie somewhere in a file: what all formats that grow have in common.
//!
//! A format says where each block is ([`Map`]); this module reads and writes, fills blocks that are written in part from what was there
//! before, and keeps threads apart. Blocks that are in place are read and written with the map locked for reading, at the same time; a
//! block is given a place, or loses it, with the map locked for writing, so no place changes under anybody.
//!
//! Order of writes, whence an image survives a program that is killed: space is marked as taken, then the data is written, then the block is
//! pointed at it. At each moment the image is consistent, but for space that nobody points at.
//!
//! Lock order: `flushing`, then `map`, then what a map has inside; `unpacked` is held for moments.

use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use parking_lot::{Mutex, RwLock};
use veduta_api::{BlockDevice, Disk, Errno, Geometry, Result};

use crate::store::Store;

/// Unpacked blocks that are remembered.
const UNPACKED: usize = 16;
/// Bytes; the most that one allocation writes at once.
const LARGEST: u64 = 4 << 20;

/// Blocks that are looked at in a search for data: a table may say of any number of them that they are zeros.
const PATIENCE: u64 = 1 << 18;

/// Where a block is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Slot {
    /// Not here: the image below has it, or it is zeros.
    Absent,
    /// Zeros, whatever is below.
    Zero,
    /// At this offset of the file. `own`: nobody else has it, so that it may be written in place.
    Data { at: u64, own: bool },
    /// Compressed, at this offset, of at most this length.
    Packed { at: u64, len: u64 },
    /// In pieces of `unit` bytes, each of its own kind; those with data lie in their place in the block at `at`.
    Mixed { at: u64, unit: u64, pieces: Arc<[Piece]> },
}

/// A part of a [`Slot::Mixed`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Piece {
    Absent,
    Zero,
    Data,
}

/// New space for blocks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Room {
    /// Offset in the file of the first block's data.
    pub(crate) at: u64,
    /// Blocks, one behind the other.
    pub(crate) count: u64,
    /// Whether it reads as zeros.
    pub(crate) is_zero: bool,
}

/// What a format knows. Numbers of blocks are inside the disk: the caller has checked them.
pub(crate) trait Map: Send + Sync {
    /// Where a block is.
    fn find(&self, block: u64) -> Result<Slot>;

    /// How many blocks from this absent one on are surely absent too, itself included.
    fn absent_run(&self, block: u64) -> u64 {
        let _ = block;
        1
    }

    /// Unpacks a block. `out` has the length of one.
    fn unpack(&self, at: u64, len: u64, out: &mut [u8]) -> Result<()> {
        let _ = (at, len, out);
        Err(Errno::EOPNOTSUPP)
    }

    /// Finds room for up to `count` blocks from `block` on, and marks it as taken.
    fn place(&mut self, block: u64, count: u64) -> Result<Room>;

    /// Points blocks at the room that they got and that has their data now; where they were before is free.
    fn link(&mut self, block: u64, room: Room) -> Result<()>;

    /// Makes blocks zeros (`absent`: what is below, which the caller knows to be zeros or of no interest) and frees where they
    /// were. `false` if the format cannot say that.
    fn clear(&mut self, block: u64, count: u64, absent: bool) -> Result<bool> {
        let _ = (block, count, absent);
        Ok(false)
    }

    /// Called before the first change: what the format wants noted.
    fn begin_writing(&mut self) -> Result<()> {
        Ok(())
    }

    /// Before and after the file was flushed; what was freed before may be used again after.
    fn before_flush(&mut self) -> Result<()> {
        Ok(())
    }
    fn after_flush(&mut self) -> Result<()> {
        Ok(())
    }
}

/// See the head of this file.
pub(crate) struct Mapped<M> {
    store: Arc<dyn Store>,
    map: RwLock<M>,
    geometry: Geometry,
    /// Bytes.
    block: u64,
    below: Option<Disk>,
    flushing: Mutex<()>,
    unpacked: Mutex<Vec<(u64, Arc<[u8]>)>>,
    begun: AtomicBool,
}

impl<M: Map> Mapped<M> {
    /// `below` is what absent blocks show, as far as it reaches.
    pub(crate) fn new(
        store: Arc<dyn Store>,
        map: M,
        geometry: Geometry,
        block: u64,
        below: Option<Disk>,
    ) -> Self {
        Self {
            store,
            map: RwLock::new(map),
            geometry,
            block,
            below,
            flushing: Mutex::new(()),
            unpacked: Mutex::new(Vec::new()),
            begun: AtomicBool::new(false),
        }
    }

    /// The part of `offset..end` that lies in the block of `offset`.
    fn in_block(&self, offset: u64, end: u64) -> (u64, u64, u64) {
        let block = offset / self.block;
        let within = offset % self.block;
        (block, within, (self.block - within).min(end - offset))
    }

    /// What is below, and zeros where there is nothing.
    fn read_below(&self, buf: &mut [u8], offset: u64) -> Result<()> {
        let there = self.below.as_ref().map_or(0, |below| below.size().saturating_sub(offset));
        let len = there.min(buf.len() as u64) as usize;
        if let Some(below) = self.below.as_ref().filter(|_| len > 0) {
            below.read_at(&mut buf[..len], offset)?;
        }
        buf[len..].fill(0);
        Ok(())
    }

    /// Reads a part of one block.
    fn read_slot(&self, map: &M, slot: &Slot, block: u64, within: u64, buf: &mut [u8]) -> Result<()> {
        match slot {
            Slot::Absent => self.read_below(buf, block * self.block + within),
            Slot::Zero => {
                buf.fill(0);
                Ok(())
            }
            Slot::Data { at, .. } => self.store.read_at(buf, at + within),
            Slot::Packed { at, len } => {
                let bytes = self.unpacked(map, *at, *len)?;
                let from = within as usize;
                buf.copy_from_slice(&bytes[from..from + buf.len()]);
                Ok(())
            }
            Slot::Mixed { at, unit, pieces } => {
                let mut done = 0;
                while done < buf.len() {
                    let here = within + done as u64;
                    let piece = pieces.get((here / unit) as usize).copied().unwrap_or(Piece::Absent);
                    let len = ((unit - here % unit) as usize).min(buf.len() - done);
                    let part = &mut buf[done..done + len];
                    match piece {
                        Piece::Absent => self.read_below(part, block * self.block + here)?,
                        Piece::Zero => part.fill(0),
                        Piece::Data => self.store.read_at(part, at + here)?,
                    }
                    done += len;
                }
                Ok(())
            }
        }
    }

    fn unpacked(&self, map: &M, at: u64, len: u64) -> Result<Arc<[u8]>> {
        if let Some((_, bytes)) = self.unpacked.lock().iter().find(|(key, _)| *key == at) {
            return Ok(Arc::clone(bytes));
        }
        let mut out = vec![0; self.block as usize];
        map.unpack(at, len, &mut out)?;
        let bytes: Arc<[u8]> = out.into();
        let mut known = self.unpacked.lock();
        if known.len() >= UNPACKED {
            known.remove(0);
        }
        known.push((at, Arc::clone(&bytes)));
        Ok(bytes)
    }

    /// How many bytes from `within` of a block in place at `at` on lie in one piece of the file, going on over following blocks.
    fn run(&self, map: &M, block: u64, at: u64, within: u64, wanted: u64, own_only: bool) -> Result<u64> {
        let mut len = self.block - within;
        let mut next = block + 1;
        let mut expected = at + self.block;
        while len < wanted {
            match map.find(next)? {
                Slot::Data { at, own } if at == expected && (own || !own_only) => {}
                _ => break,
            }
            len += self.block;
            next += 1;
            expected += self.block;
        }
        Ok(len.min(wanted))
    }

    /// Whether a block shows nothing but zeros for sure, without reading it.
    fn shows_zeros(&self, slot: &Slot, block: u64) -> bool {
        let nothing_below =
            || self.below.as_ref().is_none_or(|below| below.size() <= block.saturating_mul(self.block));
        match slot {
            Slot::Zero => true,
            Slot::Absent => nothing_below(),
            _ => false,
        }
    }

    fn begin_writing(&self) -> Result<()> {
        if !self.begun.load(Ordering::Acquire) {
            self.map.write().begin_writing()?;
            self.begun.store(true, Ordering::Release);
        }
        Ok(())
    }

    /// Writes into blocks that are in place, as far as they are, and says how far.
    fn write_in_place(&self, buf: &[u8], offset: u64) -> Result<usize> {
        let map = self.map.read();
        let end = offset + buf.len() as u64;
        let mut pos = offset;
        while pos < end {
            let (block, within, _) = self.in_block(pos, end);
            let Slot::Data { at, own: true } = map.find(block)? else { break };
            let len = self.run(&map, block, at, within, end - pos, true)?;
            let from = (pos - offset) as usize;
            self.store.write_at(&buf[from..from + len as usize], at + within)?;
            pos += len;
        }
        Ok((pos - offset) as usize)
    }

    /// Writes into the block of `offset`, and those behind it that have no place either, giving them one; says how many bytes.
    fn write_new(&self, buf: &[u8], offset: u64) -> Result<usize> {
        let mut map = self.map.write();
        let end = offset + (buf.len() as u64).min(LARGEST);
        let (block, within, _) = self.in_block(offset, end);
        let mut olds = Vec::new();
        let mut next = block;
        while next * self.block < end {
            let slot = map.find(next)?;
            if matches!(slot, Slot::Data { own: true, .. }) {
                break;
            }
            olds.push(slot);
            next += 1;
        }
        if olds.is_empty() {
            // Another thread was faster.
            return Ok(0);
        }
        let room = map.place(block, olds.len() as u64)?;
        let count = room.count.clamp(1, olds.len() as u64);
        let room = Room { count, ..room };
        let stop = ((block + count) * self.block).min(offset + buf.len() as u64);
        let data = &buf[..(stop - offset) as usize];
        self.fill(&map, &olds[..count as usize], block, within, data, room)?;
        map.link(block, room)?;
        if olds.iter().any(|slot| matches!(slot, Slot::Packed { .. })) {
            self.unpacked.lock().clear();
        }
        Ok(data.len())
    }

    /// Writes `data`, which starts at `within` of the first block, into new room, with what was around it before.
    fn fill(&self, map: &M, olds: &[Slot], block: u64, within: u64, data: &[u8], room: Room) -> Result<()> {
        let all = olds.len() as u64 * self.block;
        let behind = within + data.len() as u64;
        // Behind the end of the disk nothing needs to be written.
        let all = all.min(self.geometry.size.saturating_sub(block * self.block)).max(behind);
        let last = olds.len() - 1;
        let head_needed = within > 0 && !(room.is_zero && self.shows_zeros(&olds[0], block));
        let tail_needed =
            behind < all && !(room.is_zero && self.shows_zeros(&olds[last], block + last as u64));
        if !head_needed && !tail_needed {
            return self.store.write_at(data, room.at + within);
        }
        let start = if head_needed { 0 } else { within };
        let stop = if tail_needed { all } else { behind };
        let mut whole = vec![0; (stop - start) as usize];
        if head_needed {
            self.read_slot(map, &olds[0], block, 0, &mut whole[..within as usize])?;
        }
        if tail_needed {
            let from = behind.max(last as u64 * self.block);
            let part = &mut whole[(from - start) as usize..];
            self.read_slot(map, &olds[last], block + last as u64, from - last as u64 * self.block, part)?;
        }
        let at = (within - start) as usize;
        whole[at..at + data.len()].copy_from_slice(data);
        self.store.write_at(&whole, room.at + start)
    }

    /// Makes a range inside one block read as zeros.
    fn zero_part(&self, offset: u64, len: u64) -> Result<()> {
        let (block, within, _) = self.in_block(offset, offset + len);
        let map = self.map.read();
        match map.find(block)? {
            slot if self.shows_zeros(&slot, block) => return Ok(()),
            Slot::Data { at, own: true } => return self.zero_in_file(at + within, len),
            _ => {}
        }
        drop(map);
        self.write_all(&vec![0; len as usize], offset)
    }

    fn zero_in_file(&self, at: u64, len: u64) -> Result<()> {
        match self.store.punch(at, len) {
            Err(Errno::EOPNOTSUPP | Errno::ENOSYS) => {}
            done => return done,
        }
        let zeros = vec![0; len.min(1 << 18) as usize];
        let mut done = 0;
        while done < len {
            let step = (len - done).min(zeros.len() as u64);
            self.store.write_at(&zeros[..step as usize], at + done)?;
            done += step;
        }
        Ok(())
    }

    fn write_all(&self, buf: &[u8], offset: u64) -> Result<()> {
        let mut done = 0;
        while done < buf.len() {
            done += self.write_in_place(&buf[done..], offset + done as u64)?;
            if done < buf.len() {
                done += self.write_new(&buf[done..], offset + done as u64)?;
            }
        }
        Ok(())
    }

    /// Makes whole blocks read as zeros. `lazily`: where that costs anything it is left.
    fn clear_blocks(&self, first: u64, last: u64, lazily: bool) -> Result<()> {
        let mut block = first;
        while block < last {
            let mut map = self.map.write();
            let slot = map.find(block)?;
            if slot == Slot::Absent && self.below.is_none() {
                block += map.absent_run(block).clamp(1, last - block);
                continue;
            }
            if slot == Slot::Zero {
                block += 1;
                continue;
            }
            // All that need it, up to what keeps others waiting for long.
            let mut count = 1;
            while block + count < last && count < 1024 {
                match map.find(block + count)? {
                    Slot::Absent if self.below.is_none() => break,
                    Slot::Zero => break,
                    _ => count += 1,
                }
            }
            if map.clear(block, count, self.below.is_none())? {
                self.unpacked.lock().clear();
                block += count;
                continue;
            }
            drop(map);
            match slot {
                Slot::Data { at, own: true } => {
                    // Nobody can have taken its place: that only ever happens in `clear` and `link`.
                    match self.store.punch(at, self.block) {
                        Err(Errno::EOPNOTSUPP | Errno::ENOSYS) if lazily => {}
                        Err(Errno::EOPNOTSUPP | Errno::ENOSYS) => self.zero_in_file(at, self.block)?,
                        done => done?,
                    }
                }
                _ if lazily => {}
                _ => {
                    let offset = block * self.block;
                    let len = self.block.min(self.geometry.size - offset);
                    self.write_all(&vec![0; len as usize], offset)?;
                }
            }
            block += 1;
        }
        Ok(())
    }

    /// The whole blocks in a range; the last one of the disk may be shorter than a block.
    fn whole_blocks(&self, offset: u64, end: u64) -> Range<u64> {
        let first = offset.div_ceil(self.block);
        let last = if end == self.geometry.size { end.div_ceil(self.block) } else { end / self.block };
        first..last
    }
}

impl<M: Map> BlockDevice for Mapped<M> {
    fn geometry(&self) -> Geometry {
        self.geometry
    }

    fn read_at(&self, buf: &mut [u8], offset: u64) -> Result<()> {
        let map = self.map.read();
        let end = offset + buf.len() as u64;
        let mut pos = offset;
        while pos < end {
            let (block, within, mut len) = self.in_block(pos, end);
            let slot = map.find(block)?;
            if let Slot::Data { at, .. } = slot {
                len = self.run(&map, block, at, within, end - pos, false)?;
            }
            let from = (pos - offset) as usize;
            let part = &mut buf[from..from + len as usize];
            match slot {
                Slot::Data { at, .. } => self.store.read_at(part, at + within)?,
                slot => self.read_slot(&map, &slot, block, within, part)?,
            }
            pos += len;
        }
        Ok(())
    }

    fn write_at(&self, buf: &[u8], offset: u64) -> Result<()> {
        self.begin_writing()?;
        self.write_all(buf, offset)
    }

    fn flush(&self) -> Result<()> {
        // Where nothing was written there is nothing to wait for.
        if !self.begun.load(Ordering::Acquire) {
            return Ok(());
        }
        let _one = self.flushing.lock();
        self.map.write().before_flush()?;
        self.store.flush()?;
        self.map.write().after_flush()
    }

    fn discard(&self, offset: u64, len: u64) -> Result<()> {
        self.begin_writing()?;
        let whole = self.whole_blocks(offset, offset + len);
        if whole.is_empty() { Ok(()) } else { self.clear_blocks(whole.start, whole.end, true) }
    }

    fn write_zeroes(&self, offset: u64, len: u64) -> Result<()> {
        self.begin_writing()?;
        let end = offset + len;
        let whole = self.whole_blocks(offset, end);
        if whole.is_empty() {
            let split = (offset / self.block + 1) * self.block;
            if split < end {
                self.zero_part(offset, split - offset)?;
                return self.zero_part(split, end - split);
            }
            return self.zero_part(offset, len);
        }
        let (start, stop) = (whole.start * self.block, (whole.end * self.block).min(end));
        if offset < start {
            self.zero_part(offset, start - offset)?;
        }
        self.clear_blocks(whole.start, whole.end, false)?;
        if stop < end { self.zero_part(stop, end - stop) } else { Ok(()) }
    }

    fn next_data(&self, offset: u64) -> Result<Option<Range<u64>>> {
        let map = self.map.read();
        let size = self.geometry.size;
        let mut pos = offset;
        let mut found: Option<Range<u64>> = None;
        let mut looked = 0;
        while pos < size {
            looked += 1;
            if looked > PATIENCE && found.is_none() {
                // It may be zeros or not: whoever asked goes on from there.
                return Ok(Some(pos..pos.saturating_add(self.block).min(size)));
            }
            let (block, _, len) = self.in_block(pos, size);
            let slot = map.find(block)?;
            let data = match &slot {
                Slot::Zero => None,
                Slot::Absent => {
                    let run = map.absent_run(block).max(1);
                    let stop = block.saturating_add(run).saturating_mul(self.block).min(size);
                    let below = match &self.below {
                        Some(below) => below.next_data(pos)?.filter(|range| range.start < stop),
                        None => None,
                    };
                    match below {
                        Some(range) => Some(range.start..range.end.min(stop)),
                        None => {
                            if found.is_some() {
                                break;
                            }
                            pos = stop;
                            continue;
                        }
                    }
                }
                _ => Some(pos..pos + len),
            };
            match (data, &mut found) {
                (None, None) => pos += len,
                (None, Some(_)) => break,
                (Some(range), None) => {
                    pos = range.end;
                    found = Some(range);
                }
                (Some(range), Some(known)) if range.start == known.end => {
                    known.end = range.end;
                    pos = range.end;
                }
                (Some(_), Some(_)) => break,
            }
            // Enough to work with; the next call goes on from there.
            if found.as_ref().is_some_and(|range| range.end - range.start >= 64 << 20) {
                break;
            }
        }
        Ok(found)
    }
}
