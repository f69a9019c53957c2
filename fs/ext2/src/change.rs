//! One change of metadata: several blocks, all or none.
//!
//! A change sees what it has done so far, and so does everybody else who reads these blocks; locks above keep others from what
//! is half done. If it fails, every block gets its old content back.

use std::collections::HashMap;
use std::sync::Arc;

use parking_lot::MutexGuard;

use crate::cache::Block;
use crate::checksum::crc32c;
use crate::error::Result;
use crate::superblock::{PRIMARY_OFFSET, SUPERBLOCK_SIZE};
use crate::transactions::{BitsByGroup, Meta, Transactions};
use crate::volume::Volume;

/// What a block holds, for those who order writes without a journal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// A part of an inode table.
    Inodes,
    /// Directory entries.
    Entries,
    /// Where content lies: extents, block lists.
    Map,
    /// Bitmaps, descriptors, attributes, the superblock.
    Other,
}

/// A block of a transaction.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Mark {
    pub(crate) kind: Kind,
    /// Whether nothing on the disk leads to the block yet.
    pub(crate) fresh: bool,
}

/// What was before a change.
struct Before {
    content: Option<Block>,
    mark: Option<Mark>,
}

/// See the head of the file. Exists only while the metadata is locked.
pub(crate) struct Change<'a> {
    pub(crate) volume: &'a Volume,
    pub(crate) meta: MutexGuard<'a, Meta>,
    transactions: &'a Transactions,
    /// Clusters that were promised to it.
    pub(crate) credit: u64,
    /// Whether a file that grows keeps room for more.
    pub(crate) ahead: bool,
    undo: Undo,
}

/// How to take a change back.
#[derive(Default)]
struct Undo {
    before: HashMap<u64, Before>,
    /// Free clusters and free inodes.
    counts: (u64, u64),
    orphans: Option<Vec<u32>>,
    revoked: Vec<u64>,
    /// Clusters that were given back: group, bit.
    freed: Vec<(u32, u32)>,
    freed_inodes: Vec<(u32, u32)>,
}

impl<'a> Change<'a> {
    pub(crate) fn new(volume: &'a Volume, transactions: &'a Transactions) -> Self {
        let meta = transactions.meta.lock();
        let counts = (meta.free_clusters, meta.free_inodes);
        Self { volume, meta, transactions, credit: 0, ahead: false, undo: Undo { counts, ..Undo::default() } }
    }

    /// Changes bytes of a block of metadata.
    pub(crate) fn edit(&mut self, number: u64, kind: Kind, change: impl FnOnce(&mut [u8])) -> Result<()> {
        if self.undo.before.contains_key(&number) {
            let mut dirty = self.transactions.dirty.write();
            if let Some(bytes) = dirty.get_mut(&number).and_then(Arc::get_mut) {
                change(bytes);
                return Ok(());
            }
        }
        let old = self.volume.block(number)?;
        let mut new: Block = Arc::from(&old[..]);
        drop(old);
        if let Some(bytes) = Arc::get_mut(&mut new) {
            change(bytes);
        }
        self.put(number, Mark { kind, fresh: false }, new);
        Ok(())
    }

    /// Gives a block that was just allocated its content.
    pub(crate) fn fresh(&mut self, number: u64, kind: Kind, content: Vec<u8>) {
        self.put(number, Mark { kind, fresh: true }, content.into());
    }

    /// Gives a block new content.
    pub(crate) fn set(&mut self, number: u64, kind: Kind, content: Vec<u8>) {
        self.put(number, Mark { kind, fresh: false }, content.into());
    }

    fn put(&mut self, number: u64, mark: Mark, block: Block) {
        let content = self.transactions.dirty.write().insert(number, block);
        let old = self.meta.running.blocks.get(&number).copied();
        let fresh = mark.fresh || old.is_some_and(|old| old.fresh);
        self.meta.running.blocks.insert(number, Mark { fresh, ..mark });
        self.undo.before.entry(number).or_insert(Before { content, mark: old });
    }

    /// A block of metadata was given back: it needs not be written, and older copies in the journal must not be
    /// replayed.
    pub(crate) fn forget(&mut self, number: u64) {
        let content = self.transactions.dirty.write().remove(&number);
        let mark = self.meta.running.blocks.remove(&number);
        self.undo.before.entry(number).or_insert(Before { content, mark });
        if self.meta.running.revoked.insert(number) {
            self.undo.revoked.push(number);
        }
    }

    /// A cluster was given back: nobody gets it before the transaction is committed.
    pub(crate) fn keep_from_others(&mut self, group: u32, bit: u32) {
        note(&mut self.meta.running.freed, self.volume.block_size(), (group, bit));
        self.undo.freed.push((group, bit));
    }

    /// An inode was given back.
    pub(crate) fn keep_inode_from_others(&mut self, group: u32, bit: u32) {
        note(&mut self.meta.running.freed_inodes, self.volume.block_size(), (group, bit));
        self.undo.freed_inodes.push((group, bit));
    }

    /// The list of orphans, to be changed.
    pub(crate) fn orphans_mut(&mut self) -> &mut Vec<u32> {
        if self.undo.orphans.is_none() {
            self.undo.orphans = Some(self.meta.orphans.clone());
        }
        &mut self.meta.orphans
    }

    /// Changes the superblock.
    pub(crate) fn edit_super(&mut self, change: impl FnOnce(&mut [u8])) -> Result<()> {
        let (number, skip) = super_place(self.volume);
        let summed = self.volume.sb.has_checksums();
        self.edit(number, Kind::Other, |block| {
            change_super(&mut block[skip..skip + SUPERBLOCK_SIZE], summed, change);
        })
    }

    /// A part of the change that may fail, and is then taken back alone.
    pub(crate) fn attempt<T>(&mut self, part: impl FnOnce(&mut Self) -> Result<T>) -> Result<T> {
        let now = (self.meta.free_clusters, self.meta.free_inodes);
        let outer = std::mem::replace(&mut self.undo, Undo { counts: now, ..Undo::default() });
        let done = part(self);
        if done.is_err() {
            self.take_back();
            self.undo = outer;
        } else {
            let inner = std::mem::replace(&mut self.undo, outer);
            for (number, before) in inner.before {
                self.undo.before.entry(number).or_insert(before);
            }
            if self.undo.orphans.is_none() {
                self.undo.orphans = inner.orphans;
            }
            self.undo.revoked.extend(inner.revoked);
            self.undo.freed.extend(inner.freed);
            self.undo.freed_inodes.extend(inner.freed_inodes);
        }
        done
    }

    /// Takes everything back.
    pub(crate) fn undo(mut self) {
        self.take_back();
    }

    fn take_back(&mut self) {
        let undo = std::mem::take(&mut self.undo);
        let mut dirty = self.transactions.dirty.write();
        for (number, before) in undo.before {
            match before.content {
                Some(content) => dirty.insert(number, content),
                None => dirty.remove(&number),
            };
            match before.mark {
                Some(mark) => self.meta.running.blocks.insert(number, mark),
                None => self.meta.running.blocks.remove(&number),
            };
        }
        drop(dirty);
        (self.meta.free_clusters, self.meta.free_inodes) = undo.counts;
        if let Some(orphans) = undo.orphans {
            self.meta.orphans = orphans;
        }
        for number in undo.revoked {
            self.meta.running.revoked.remove(&number);
        }
        let running = &mut self.meta.running;
        for (bits, freed) in
            [(&mut running.freed, undo.freed), (&mut running.freed_inodes, undo.freed_inodes)]
        {
            for (group, bit) in freed {
                if let Some(map) = bits.get_mut(&group) {
                    map[bit as usize / 8] &= !(1 << (bit % 8));
                }
            }
        }
    }
}

/// Sets a bit of a group, whose bitmap has so many bytes.
fn note(bits: &mut BitsByGroup, bytes: usize, (group, bit): (u32, u32)) {
    bits.entry(group).or_insert_with(|| vec![0; bytes])[bit as usize / 8] |= 1 << (bit % 8);
}

/// The block that holds the superblock, and where in it.
pub(crate) fn super_place(volume: &Volume) -> (u64, usize) {
    (volume.sb.own_block, PRIMARY_OFFSET as usize & (volume.block_size() - 1))
}

/// Changes the bytes of a superblock, and its checksum.
pub(crate) fn change_super(bytes: &mut [u8], summed: bool, change: impl FnOnce(&mut [u8])) {
    change(bytes);
    if summed {
        let sum = crc32c(!0, &bytes[..0x3fc]);
        bytes[0x3fc..0x400].copy_from_slice(&sum.to_le_bytes());
    }
}
