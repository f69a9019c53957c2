//! Which clusters of a qcow2 file are in use: the reference counts, and the search for free ones.
//!
//! The *refcount table* holds the offsets of *refcount blocks*, one cluster each, with one count of 1 to 64 bits for each cluster of the
//! file. Every change is written at once.
//!
//! What is freed may be pointed at by tables on the disk until these were flushed, so it is used again only after the
//! next flush. Tables are placed behind the end of the file only, where stale content cannot be.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;

use parking_lot::Mutex;
use veduta_api::{Errno, Result};

use crate::bytes::be64;
use crate::store::Store;

/// Bytes of refcount blocks that are remembered.
const CACHE: usize = 32 << 20;

pub(crate) struct Refcounts {
    store: Arc<dyn Store>,
    cluster_bits: u32,
    /// The width of a count is 2^order bits.
    order: u32,
    table: Vec<u64>,
    table_at: u64,
    blocks: Mutex<HashMap<u64, Vec<u8>>>,
    /// Clusters that nothing on the disk points at.
    free: BTreeSet<u64>,
    /// Freed since the last flush, and during it.
    freed: Vec<u64>,
    flushing: Vec<u64>,
    /// The next refcount block to be searched for clusters that were free when the file was opened.
    search: u64,
    /// Clusters from here on lie behind the end of the file.
    end: u64,
    /// Where the search ends: the end when the file was opened.
    search_end: u64,
}

impl Refcounts {
    pub(crate) fn new(
        store: Arc<dyn Store>,
        cluster_bits: u32,
        order: u32,
        table_at: u64,
        table_bytes: usize,
    ) -> Result<Self> {
        let bytes = store.read_vec(table_at, table_bytes)?;
        let table = (0..bytes.len()).step_by(8).map(|at| be64(&bytes, at) & !0x1ff).collect();
        let end = store.len()?.div_ceil(1 << cluster_bits);
        Ok(Self {
            store,
            cluster_bits,
            order,
            table,
            table_at,
            blocks: Mutex::new(HashMap::new()),
            free: BTreeSet::new(),
            freed: Vec::new(),
            flushing: Vec::new(),
            search: 0,
            end,
            search_end: end,
        })
    }

    fn cluster(&self) -> u64 {
        1 << self.cluster_bits
    }

    /// Counts in a block.
    fn per_block(&self) -> u64 {
        (self.cluster() * 8) >> self.order
    }

    pub(crate) fn count(&self, cluster: u64) -> Result<u64> {
        let (index, within) = (cluster / self.per_block(), cluster % self.per_block());
        match self.table.get(index as usize).copied() {
            None | Some(0) => Ok(0),
            Some(at) => self.with_block(index, at, |block| number(block, self.order, within)),
        }
    }

    fn with_block<T>(&self, index: u64, at: u64, use_it: impl FnOnce(&mut Vec<u8>) -> T) -> Result<T> {
        let mut blocks = self.blocks.lock();
        if !blocks.contains_key(&index) {
            if at % self.cluster() != 0 {
                tracing::error!("qcow2: the refcount block at {at:#x} is not where a cluster starts");
                return Err(Errno::EUCLEAN);
            }
            if blocks.len() >= (CACHE >> self.cluster_bits).max(4) {
                blocks.clear();
            }
            blocks.insert(index, self.store.read_vec(at, self.cluster() as usize)?);
        }
        Ok(use_it(blocks.entry(index).or_default()))
    }

    /// Sets the counts of a run of clusters, in the file too. The blocks that hold them must exist.
    fn set(&mut self, first: u64, count: u64, value: u64) -> Result<()> {
        let per_block = self.per_block();
        let mut cluster = first;
        while cluster < first + count {
            let (index, within) = (cluster / per_block, cluster % per_block);
            let here = (per_block - within).min(first + count - cluster);
            let at = self.table.get(index as usize).copied().filter(|at| *at != 0).ok_or(Errno::EUCLEAN)?;
            let order = self.order;
            let (from, bytes) = self.with_block(index, at, |block| {
                (within..within + here).for_each(|one| set_number(block, order, one, value));
                let from = ((within << order) / 8) as usize;
                let to = (((within + here) << order).div_ceil(8)) as usize;
                (from as u64, block[from..to].to_vec())
            })?;
            self.store.write_at(&bytes, at + from)?;
            cluster += here;
        }
        Ok(())
    }

    /// Takes up to `count` free clusters in a row, and says which and whether they read as zeros.
    pub(crate) fn take(&mut self, count: u64) -> Result<(u64, u64, bool)> {
        while self.free.is_empty() && self.search * self.per_block() < self.search_end {
            self.search_block()?;
        }
        let Some(first) = self.free.first().copied() else {
            return Ok((self.take_at_end(count)?, count, true));
        };
        let run = (0..count).take_while(|at| self.free.contains(&(first + at))).count() as u64;
        (first..first + run).for_each(|cluster| {
            self.free.remove(&cluster);
        });
        self.set(first, run, 1)?;
        Ok((first, run, false))
    }

    /// Looks for free clusters in the next refcount block.
    fn search_block(&mut self) -> Result<()> {
        let index = self.search;
        let first = index * self.per_block();
        let last = (first + self.per_block()).min(self.search_end);
        self.search += 1;
        let pending: BTreeSet<u64> = self.freed.iter().chain(&self.flushing).copied().collect();
        let at = self.table.get(index as usize).copied().unwrap_or(0);
        if at == 0 {
            // A whole stretch without counts: rare, and its clusters would need a block first.
            return Ok(());
        }
        let order = self.order;
        let found: Vec<u64> = self.with_block(index, at, |block| {
            (first..last).filter(|cluster| number(block, order, cluster - first) == 0).collect()
        })?;
        self.free.extend(found.into_iter().filter(|cluster| !pending.contains(cluster)));
        Ok(())
    }

    /// Takes clusters behind the end of the file: they read as zeros.
    pub(crate) fn take_at_end(&mut self, count: u64) -> Result<u64> {
        loop {
            let first = self.end;
            if (first + count) << self.cluster_bits > 1 << 55 {
                return Err(Errno::EFBIG);
            }
            if !self.make_blocks(first, count)? {
                // Blocks were made, at the end.
                continue;
            }
            // A file that was cut short, or written by those who count ahead, may have counts behind its end.
            if let Some(taken) = (first..first + count).rev().find(|one| self.count(*one) != Ok(0)) {
                self.count(taken)?;
                self.end = taken + 1;
                continue;
            }
            self.set(first, count, 1)?;
            self.end = first + count;
            return Ok(first);
        }
    }

    /// Sees to it that a run of clusters has counts. `false` if that changed where the file ends.
    fn make_blocks(&mut self, first: u64, count: u64) -> Result<bool> {
        let (low, high) = (first / self.per_block(), (first + count - 1) / self.per_block());
        if high >= self.table.len() as u64 {
            self.grow_table(high)?;
            return Ok(false);
        }
        for index in low..=high {
            if self.table[index as usize] == 0 {
                self.make_block(index)?;
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// A new refcount block, in the first cluster behind the end, which it may be the one to count itself.
    fn make_block(&mut self, index: u64) -> Result<()> {
        let cluster = self.end;
        let own = cluster / self.per_block();
        if own >= self.table.len() as u64 {
            return self.grow_table(own);
        }
        if own != index && self.table[own as usize] == 0 {
            return self.make_block(own);
        }
        let at = cluster << self.cluster_bits;
        let mut block = vec![0; self.cluster() as usize];
        if own == index {
            set_number(&mut block, self.order, cluster % self.per_block(), 1);
        } else {
            self.set(cluster, 1, 1)?;
        }
        self.store.write_at(&block, at)?;
        self.blocks.lock().insert(index, block);
        self.store.write_at(&at.to_be_bytes(), self.table_at + index * 8)?;
        self.table[index as usize] = at;
        self.end = cluster + 1;
        Ok(())
    }

    /// Moves the table to where there is room for one with an entry for block `wanted`, with all the blocks that count itself.
    fn grow_table(&mut self, wanted: u64) -> Result<()> {
        let per_block = self.per_block();
        let first = self.end;
        let entries = (wanted + 1).max(self.table.len() as u64 * 3 / 2);
        // The table and the blocks behind it; more blocks may be needed for more blocks.
        let mut blocks = Vec::new();
        let (table_clusters, last) = loop {
            let table_clusters = (entries * 8 + 64).div_ceil(self.cluster());
            let last = first + table_clusters + blocks.len() as u64;
            let missing: Vec<u64> = (first / per_block..=(last - 1) / per_block)
                .filter(|index| self.table.get(*index as usize).copied().unwrap_or(0) == 0)
                .collect();
            if missing.len() == blocks.len() {
                break (table_clusters, last);
            }
            blocks = missing;
        };
        let mut table = self.table.clone();
        table.resize((table_clusters * self.cluster() / 8) as usize, 0);
        for (cluster, index) in (first + table_clusters..).zip(&blocks) {
            let at = cluster << self.cluster_bits;
            let mut block = vec![0; self.cluster() as usize];
            let start = index * per_block;
            for one in first.max(start)..last.min(start + per_block) {
                set_number(&mut block, self.order, one - start, 1);
            }
            self.store.write_at(&block, at)?;
            self.blocks.lock().insert(*index, block);
            *table.get_mut(*index as usize).ok_or(Errno::EFBIG)? = at;
        }
        // What is counted by blocks that were there.
        for one in first..last {
            if !blocks.contains(&(one / per_block)) {
                self.set(one, 1, 1)?;
            }
        }
        let bytes: Vec<u8> = table.iter().flat_map(|at| at.to_be_bytes()).collect();
        self.store.write_at(&bytes, first << self.cluster_bits)?;
        self.store.flush()?;
        let mut header = [0; 12];
        header[..8].copy_from_slice(&(first << self.cluster_bits).to_be_bytes());
        header[8..].copy_from_slice(&(table_clusters as u32).to_be_bytes());
        self.store.write_at(&header, 48)?;
        let old =
            (self.table_at >> self.cluster_bits, (self.table.len() as u64 * 8).div_ceil(self.cluster()));
        self.table = table;
        self.table_at = first << self.cluster_bits;
        self.end = last;
        (old.0..old.0 + old.1).try_for_each(|cluster| self.release(cluster))
    }

    /// Counts one less. What nobody counts any more is free after the next flush.
    pub(crate) fn release(&mut self, cluster: u64) -> Result<()> {
        match self.count(cluster)? {
            0 => {
                tracing::warn!("qcow2: cluster {cluster} is used, but not counted");
                Ok(())
            }
            count => {
                self.set(cluster, 1, count - 1)?;
                if count == 1 {
                    self.freed.push(cluster);
                }
                Ok(())
            }
        }
    }

    pub(crate) fn before_flush(&mut self) {
        self.flushing.append(&mut self.freed);
    }

    /// What was freed before the flush is free now, and its space is given back.
    pub(crate) fn after_flush(&mut self) -> Result<()> {
        let mut clusters = std::mem::take(&mut self.flushing);
        clusters.sort_unstable();
        for run in clusters.chunk_by(|a, b| a + 1 == *b) {
            match self.store.punch(run[0] << self.cluster_bits, (run.len() as u64) << self.cluster_bits) {
                Ok(()) | Err(Errno::EOPNOTSUPP | Errno::ENOSYS) => {}
                Err(error) => return Err(error),
            }
        }
        self.free.extend(clusters);
        Ok(())
    }
}

/// Count `index` of a block with counts of 2^order bits.
fn number(block: &[u8], order: u32, index: u64) -> u64 {
    let bits = 1_u64 << order;
    if order < 3 {
        let at = index * bits;
        let byte = block.get((at / 8) as usize).copied().unwrap_or(0);
        return u64::from(byte >> (at % 8)) & ((1 << bits) - 1);
    }
    let len = (bits / 8) as usize;
    let from = index as usize * len;
    block
        .get(from..from + len)
        .unwrap_or_default()
        .iter()
        .fold(0, |number, byte| number << 8 | u64::from(*byte))
}

fn set_number(block: &mut [u8], order: u32, index: u64, value: u64) {
    let bits = 1_u64 << order;
    if order < 3 {
        let at = index * bits;
        let mask = (((1_u64 << bits) - 1) as u8) << (at % 8);
        if let Some(byte) = block.get_mut((at / 8) as usize) {
            *byte = (*byte & !mask) | ((value as u8) << (at % 8) & mask);
        }
        return;
    }
    let len = (bits / 8) as usize;
    let from = index as usize * len;
    if let Some(part) = block.get_mut(from..from + len) {
        part.copy_from_slice(&value.to_be_bytes()[8 - len..]);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_of_every_width_keep_apart() {
        for order in 0..=6 {
            let mut block = vec![0; 512];
            for index in [0, 1, 2, 7, 8, 9] {
                set_number(&mut block, order, index, 1);
            }
            let counts: Vec<u64> = (0..10).map(|index| number(&block, order, index)).collect();
            assert_eq!(counts, [1, 1, 1, 0, 0, 0, 0, 1, 1, 1], "order {order}");
            set_number(&mut block, order, 8, 0);
            assert_eq!(
                (number(&block, order, 7), number(&block, order, 8), number(&block, order, 9)),
                (1, 0, 1)
            );
        }
    }
}
