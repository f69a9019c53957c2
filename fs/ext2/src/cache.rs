//! A cache of metadata blocks: inode tables, descriptors, directories, extent and indirect blocks.
//!
//! Sharded, so that readers rarely meet; each lock is held only to look up or to put in, never over I/O.
//! Bounded by bytes. What was not asked for since the hand passed last is the first to go (CLOCK).

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use parking_lot::Mutex;

/// The content of one block.
pub(crate) type Block = Arc<[u8]>;

/// A power of two.
const SHARDS: usize = 16;
/// Bytes in all shards together.
const CAPACITY: usize = 8 << 20;

/// Blocks by number.
#[derive(Debug)]
pub(crate) struct Cache {
    shards: [Mutex<Shard>; SHARDS],
    slots_per_shard: usize,
    /// Counts up whenever blocks were written: what was read before that may be old, and is not taken any more.
    generation: AtomicU64,
}

#[derive(Debug, Default)]
struct Shard {
    index: HashMap<u64, usize>,
    slots: Vec<Slot>,
    hand: usize,
}

#[derive(Debug)]
struct Slot {
    number: u64,
    block: Block,
    used: bool,
}

impl Cache {
    /// An empty one, for blocks of `block_size` bytes.
    pub(crate) fn new(block_size: usize) -> Self {
        Self {
            shards: std::array::from_fn(|_| Mutex::default()),
            slots_per_shard: (CAPACITY / SHARDS / block_size).max(4),
            generation: AtomicU64::new(0),
        }
    }

    /// The block, if it is there.
    pub(crate) fn find(&self, number: u64) -> Option<Block> {
        let mut shard = self.shard(number).lock();
        let slot = *shard.index.get(&number)?;
        let slot = shard.slots.get_mut(slot)?;
        slot.used = true;
        Some(Arc::clone(&slot.block))
    }

    /// Taken before a block is read that is to be put in.
    pub(crate) fn generation(&self) -> u64 {
        self.generation.load(Ordering::Acquire)
    }

    /// Called when blocks were written, before they are [replaced](Self::replace).
    pub(crate) fn advance(&self) {
        self.generation.fetch_add(1, Ordering::AcqRel);
    }

    /// Puts in a block that was read since `generation`; if somebody else did meanwhile, theirs stays.
    pub(crate) fn put(&self, number: u64, block: Block, generation: u64) {
        let mut shard = self.shard(number).lock();
        if self.generation() == generation {
            shard.put(number, block, self.slots_per_shard);
        }
    }

    /// Puts in a block that was written, in place of what is there.
    pub(crate) fn replace(&self, number: u64, block: Block) {
        let mut shard = self.shard(number).lock();
        match shard.index.get(&number).copied() {
            Some(slot) => shard.slots[slot].block = block,
            None => shard.put(number, block, self.slots_per_shard),
        }
    }

    fn shard(&self, number: u64) -> &Mutex<Shard> {
        &self.shards[(number as usize) % SHARDS]
    }
}

impl Shard {
    fn put(&mut self, number: u64, block: Block, capacity: usize) {
        if self.index.contains_key(&number) {
            return;
        }
        let slot = Slot { number, block, used: false };
        if self.slots.len() < capacity {
            self.index.insert(number, self.slots.len());
            self.slots.push(slot);
            return;
        }
        // Each step clears a mark, so the second round at the latest finds one without.
        while std::mem::take(&mut self.slots[self.hand].used) {
            self.hand = (self.hand + 1) % capacity;
        }
        self.index.remove(&self.slots[self.hand].number);
        self.index.insert(number, self.hand);
        self.slots[self.hand] = slot;
        self.hand = (self.hand + 1) % capacity;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_full_cache_keeps_what_is_used() {
        let cache = Cache::new(CAPACITY / SHARDS / 4);
        let block: Block = Arc::from([0].as_slice());
        for round in 0..100u64 {
            cache.put(round * SHARDS as u64, Arc::clone(&block), 0);
            assert!(cache.find(0).is_some(), "round {round}");
        }
        assert_eq!(cache.shards[0].lock().slots.len(), 4);
        assert_eq!(cache.shards[0].lock().index.len(), 4);
        assert!(cache.find(99 * SHARDS as u64).is_some());
        assert!(cache.find(50 * SHARDS as u64).is_none());
    }

    #[test]
    fn what_was_read_before_a_write_is_not_taken() {
        let cache = Cache::new(1024);
        let (old, new): (Block, Block) = (Arc::from([0].as_slice()), Arc::from([1].as_slice()));
        let before = cache.generation();
        cache.advance();
        cache.put(7, Arc::clone(&old), before);
        assert!(cache.find(7).is_none());
        cache.put(7, old, cache.generation());
        cache.replace(7, new);
        assert_eq!(cache.find(7).unwrap()[0], 1);
    }
}
