//! Which clusters are free: a bit each, in chunks of 32768, learnt when first looked at.
//!
//! FAT says it in the table itself (an entry of 0), exFAT in a bitmap of its own, whose changed chunks are written
//! back. A chunk that is all free or all used costs no memory.

use std::collections::BTreeSet;

use veduta_api::{Disk, Errno, Result};

use crate::boot::le64;
use crate::table::Table;

/// Clusters of a chunk: 4096 bytes of a bitmap, a multiple of every sector size.
const CHUNK: u32 = 32768;

enum Chunk {
    Unknown,
    Used,
    Free,
    Mixed(Box<[u64; 512]>),
}

/// The map.
pub(crate) struct FreeMap {
    clusters: u32,
    chunks: Vec<Chunk>,
    /// Clusters that are free, if all chunks were counted.
    total: Option<u64>,
    /// Where to look next, counted from cluster 2.
    hint: u32,
    /// exFAT: where the bitmap lies, as offsets and lengths.
    bitmap: Option<Vec<(u64, u64)>>,
    changed: BTreeSet<u32>,
}

impl FreeMap {
    pub(crate) fn new(clusters: u32, bitmap: Option<Vec<(u64, u64)>>) -> Self {
        let chunks =
            std::iter::repeat_with(|| Chunk::Unknown).take(clusters.div_ceil(CHUNK) as usize).collect();
        Self { clusters, chunks, total: None, hint: 0, bitmap, changed: BTreeSet::new() }
    }

    /// Starts to look at this cluster.
    pub(crate) fn start_at(&mut self, cluster: u32) {
        if cluster >= 2 && cluster - 2 < self.clusters {
            self.hint = cluster - 2;
        }
    }

    /// The cluster at which the next search starts.
    pub(crate) fn next_hint(&self) -> u32 {
        self.hint % self.clusters + 2
    }

    /// Believes a count that was found elsewhere.
    pub(crate) fn believe(&mut self, total: u64) {
        self.total.get_or_insert(total.min(u64::from(self.clusters)));
    }

    /// How many clusters are free. The first time this reads the whole table or bitmap.
    pub(crate) fn total(&mut self, disk: &Disk, table: &mut Table) -> Result<u64> {
        if let Some(total) = self.total {
            return Ok(total);
        }
        let mut total = 0;
        for index in 0..self.chunks.len() as u32 {
            self.load(disk, table, index)?;
            total += match &self.chunks[index as usize] {
                Chunk::Free => u64::from(self.chunk_len(index)),
                Chunk::Mixed(bits) => bits.iter().map(|word| u64::from(word.count_ones())).sum(),
                _ => 0,
            };
        }
        self.total = Some(total);
        Ok(total)
    }

    /// Takes up to `want` free clusters, as runs; from `near` on if that one is free. Fewer if there are no more.
    pub(crate) fn take(
        &mut self,
        disk: &Disk,
        table: &mut Table,
        want: u32,
        near: Option<u32>,
    ) -> Result<Vec<(u32, u32)>> {
        let mut taken: Vec<(u32, u32)> = Vec::new();
        let mut at = match near.and_then(|near| near.checked_sub(2)).filter(|near| *near < self.clusters) {
            Some(near) if self.is_free(disk, table, near)? => near,
            _ => self.hint % self.clusters,
        };
        let mut left = want;
        // Each step goes forward, and there are as many as clusters at most.
        let mut seen = 0;
        while left > 0 && seen < self.clusters {
            let index = at / CHUNK;
            let end = index * CHUNK + self.chunk_len(index);
            self.load(disk, table, index)?;
            let (skip, len) = self.run_in(index, at % CHUNK, left);
            if len > 0 {
                self.mark(index, at % CHUNK + skip, len, false);
                let start = at + skip + 2;
                match taken.last_mut() {
                    Some(last) if last.0 + last.1 == start => last.1 += len,
                    _ => taken.push((start, len)),
                }
                left -= len;
                self.hint = at + skip + len;
            }
            let step = if len > 0 { skip + len } else { end - at };
            seen = seen.saturating_add(step);
            at += step;
            if at >= self.clusters {
                at = 0;
            }
        }
        if let Some(total) = &mut self.total {
            *total = total.saturating_sub(u64::from(want - left));
        }
        Ok(taken)
    }

    /// Marks clusters as free.
    pub(crate) fn give(&mut self, disk: &Disk, table: &mut Table, start: u32, len: u32) -> Result<()> {
        let (mut at, end) = (start.saturating_sub(2), (start.saturating_sub(2) + len).min(self.clusters));
        while at < end {
            let index = at / CHUNK;
            self.load(disk, table, index)?;
            let step = (end - at).min(CHUNK - at % CHUNK);
            let before = self.count(index, at % CHUNK, step);
            self.mark(index, at % CHUNK, step, true);
            if let Some(total) = &mut self.total {
                *total += u64::from(step - before);
            }
            at += step;
        }
        Ok(())
    }

    pub(crate) fn is_changed(&self) -> bool {
        !self.changed.is_empty()
    }

    /// Writes the changed chunks of an exFAT bitmap.
    pub(crate) fn write_out(&mut self, disk: &Disk) -> Result<()> {
        while let Some(index) = self.changed.first().copied() {
            let len = self.chunk_len(index).div_ceil(8) as usize;
            let bytes: Vec<u8> = match &self.chunks[index as usize] {
                Chunk::Mixed(bits) => {
                    let used = bits.iter().flat_map(|word| (!word).to_le_bytes());
                    let mut used: Vec<u8> = used.take(len).collect();
                    // The bits behind the last cluster are zeros.
                    let odd = self.chunk_len(index) % 8;
                    if let Some(last) = used.last_mut().filter(|_| odd > 0) {
                        *last &= (1 << odd) - 1;
                    }
                    used
                }
                Chunk::Free => vec![0; len],
                _ => vec![0xff; len],
            };
            for (from, at, len) in self.places(index, len as u64) {
                disk.write_at(&bytes[from..from + len], at)?;
            }
            self.changed.remove(&index);
        }
        Ok(())
    }

    fn chunk_len(&self, index: u32) -> u32 {
        (self.clusters - index * CHUNK).min(CHUNK)
    }

    /// Where the bytes of a chunk lie: its byte, the place on the disk, how many.
    fn places(&self, index: u32, len: u64) -> Vec<(usize, u64, usize)> {
        let (from, end) = (u64::from(index) * 4096, u64::from(index) * 4096 + len);
        let (mut places, mut start) = (Vec::new(), 0);
        for (offset, run) in self.bitmap.iter().flatten() {
            let (low, high) = (from.max(start), end.min(start + run));
            if low < high {
                places.push(((low - from) as usize, offset + (low - start), (high - low) as usize));
            }
            start += run;
        }
        places
    }

    fn load(&mut self, disk: &Disk, table: &mut Table, index: u32) -> Result<()> {
        if !matches!(self.chunks.get(index as usize).ok_or(Errno::EUCLEAN)?, Chunk::Unknown) {
            return Ok(());
        }
        let len = self.chunk_len(index);
        let bits = if self.bitmap.is_some() {
            let mut bytes = vec![0xff; 4096];
            for (from, at, count) in self.places(index, u64::from(len.div_ceil(8))) {
                disk.read_at(&mut bytes[from..from + count], at)?;
            }
            let mut bits = Box::new([0; 512]);
            for (word, at) in bits.iter_mut().zip((0..).step_by(8)) {
                *word = !le64(&bytes, at);
            }
            // Behind the last cluster nothing is free.
            (len..CHUNK).for_each(|bit| bits[(bit / 64) as usize] &= !(1 << (bit % 64)));
            bits
        } else {
            table.free_bits(disk, index * CHUNK + 2, len)?
        };
        let free: u32 = bits.iter().map(|word| word.count_ones()).sum();
        self.chunks[index as usize] = match free {
            0 => Chunk::Used,
            _ if free == len => Chunk::Free,
            _ => Chunk::Mixed(bits),
        };
        Ok(())
    }

    fn is_free(&mut self, disk: &Disk, table: &mut Table, at: u32) -> Result<bool> {
        self.load(disk, table, at / CHUNK)?;
        Ok(self.count(at / CHUNK, at % CHUNK, 1) == 1)
    }

    /// The first run of free clusters of a chunk from `from` on: how far away, and how long, at most `want`.
    fn run_in(&self, index: u32, from: u32, want: u32) -> (u32, u32) {
        let rest = self.chunk_len(index) - from;
        let bits = match &self.chunks[index as usize] {
            Chunk::Free => return (0, rest.min(want)),
            Chunk::Mixed(bits) => bits,
            _ => return (0, 0),
        };
        let ones_from = |at: u32| bits[(at / 64) as usize] >> (at % 64);
        let mut at = from;
        while at < CHUNK && ones_from(at) == 0 {
            at = (at / 64 + 1) * 64;
        }
        if at >= CHUNK {
            return (0, 0);
        }
        at += ones_from(at).trailing_zeros();
        let mut len = 0;
        while len < want && at + len < CHUNK {
            let ones = ones_from(at + len).trailing_ones();
            if ones == 0 {
                break;
            }
            len += ones;
            if (at + len) % 64 != 0 {
                break;
            }
        }
        (at - from, len.min(want))
    }

    /// How many of `len` clusters are free.
    fn count(&self, index: u32, from: u32, len: u32) -> u32 {
        match &self.chunks[index as usize] {
            Chunk::Free => len,
            Chunk::Mixed(bits) => {
                (from..from + len).map(|bit| (bits[(bit / 64) as usize] >> (bit % 64) & 1) as u32).sum()
            }
            _ => 0,
        }
    }

    fn mark(&mut self, index: u32, from: u32, len: u32, free: bool) {
        let all = self.chunk_len(index);
        let chunk = &mut self.chunks[index as usize];
        let bits = match chunk {
            Chunk::Mixed(bits) => bits,
            // Nothing changes.
            Chunk::Free if free => return,
            Chunk::Used if !free => return,
            _ => {
                let mut bits = Box::new([0; 512]);
                if !free {
                    (0..all).for_each(|bit| bits[(bit / 64) as usize] |= 1 << (bit % 64));
                }
                *chunk = Chunk::Mixed(bits);
                let Chunk::Mixed(bits) = chunk else { return };
                bits
            }
        };
        for bit in from..from + len {
            let word = &mut bits[(bit / 64) as usize];
            *word = if free { *word | 1 << (bit % 64) } else { *word & !(1 << (bit % 64)) };
        }
        if self.bitmap.is_some() {
            self.changed.insert(index);
        }
    }
}
