//! The journal, written: transactions in a ring of blocks.
//!
//! The layout is in [`crate::journal`]. A transaction is written without its commit block, then everything so far, content of files
//! included, is brought to stable storage, then the commit block. The superblock of the journal says where the log
//! starts; it is written only when the log was emptied.

use veduta_api::{Errno, Timestamp};

use crate::bytes::{be32, slice};
use crate::checksum::{crc32_be, crc32c, crc32c_without};
use crate::error::{Error, Result};
use crate::features::{INCOMPAT_64BIT as WIDE_VOLUME, RO_COMPAT_METADATA_CSUM};
use crate::journal::{
    COMPAT_CHECKSUM, HEADER, INCOMPAT_64BIT, INCOMPAT_CSUM_V2, INCOMPAT_CSUM_V3, Journal, Sums, TAG_ESCAPED,
    TAG_LAST, TAG_SAME_UUID, TYPE_COMMIT, TYPE_DESCRIPTOR, TYPE_REVOKE, TYPE_SUPERBLOCK_V2,
};
use crate::map::Run;
use crate::transactions::Closed;
use crate::volume::{JOURNAL_MAGIC, Volume};

/// Feature of a journal: blocks of revocations.
const INCOMPAT_REVOKE: u32 = 0x1;
/// Bytes of a journal's superblock, and where its features and its checksum stand.
const SUPER: usize = 1024;
const SUM_AT: usize = 0xfc;
/// s_checksum_type of CRC-32C.
const CRC32C: u8 = 4;
/// h_chksum_type and h_chksum_size of CRC-32.
const CRC32: [u8; 2] = [1, 4];
/// Bytes that are written in one go.
const WRITE_MAX: usize = 1 << 20;

/// A journal that is empty or was written by us.
#[derive(Debug)]
pub(crate) struct Ring {
    /// Where its blocks are.
    runs: Vec<Run>,
    first: u32,
    end: u32,
    /// Where the next transaction goes.
    head: u32,
    /// Blocks of the ring that are in use.
    used: u32,
    /// The number of the next transaction.
    sequence: u32,
    sums: Sums,
    wide: bool,
    seed: u32,
    uuid: [u8; 16],
    /// Its superblock: a whole block.
    head_block: Vec<u8>,
}

impl Ring {
    /// The journal of a volume that needs no replay.
    pub(crate) fn open(volume: &Volume) -> Result<Self> {
        let journal = Journal::open(volume)?;
        if journal.start != 0 {
            return Err(Error::corrupt("the journal is not empty"));
        }
        let (first, sequence) = (journal.first, journal.sequence);
        Self::of(volume, &journal, first, sequence)
    }

    /// The journal of a volume whose whole transactions are in their places, from the block and with the number that come next.
    pub(crate) fn open_behind(volume: &Volume, head: u32, sequence: u32) -> Result<Self> {
        Self::of(volume, &Journal::open(volume)?, head, sequence)
    }

    fn of(volume: &Volume, journal: &Journal<'_>, head: u32, sequence: u32) -> Result<Self> {
        let mut head_block = journal.read(0)?;
        if be32(&head_block, 4) != TYPE_SUPERBLOCK_V2 {
            // The older superblock ends before its features.
            put(&mut head_block, 4, TYPE_SUPERBLOCK_V2);
            head_block[0x24..SUPER].fill(0);
        }
        let (mut compat, mut incompat) = (be32(&head_block, 0x24), be32(&head_block, 0x28));
        incompat |= INCOMPAT_REVOKE;
        if volume.sb.features.has_incompat(WIDE_VOLUME) {
            incompat |= INCOMPAT_64BIT;
        }
        if volume.sb.features.has_ro_compat(RO_COMPAT_METADATA_CSUM) && incompat & INCOMPAT_CSUM_V2 == 0 {
            incompat |= INCOMPAT_CSUM_V3;
            compat &= !COMPAT_CHECKSUM;
            head_block[0x50] = CRC32C;
        }
        put(&mut head_block, 0x24, compat);
        put(&mut head_block, 0x28, incompat);
        let sums = match incompat {
            flags if flags & INCOMPAT_CSUM_V3 != 0 => Sums::V3,
            flags if flags & INCOMPAT_CSUM_V2 != 0 => Sums::V2,
            _ if compat & COMPAT_CHECKSUM != 0 => Sums::V1,
            _ => Sums::None,
        };
        let uuid: [u8; 16] = slice(&head_block, 0x30, 16).try_into().unwrap_or_default();
        let mut runs = Vec::new();
        let mut block = 0;
        // Each step goes on by at least one block.
        while block < u64::from(journal.end) {
            let run = journal.map.find(volume, block)?;
            if run.physical.is_none() {
                return Err(Error::corrupt(format!("block {block} of the journal is a hole")));
            }
            let len = run.len.min(u64::from(journal.end) - block);
            runs.push(Run { len, ..run });
            block += len;
        }
        Ok(Self {
            runs,
            first: journal.first,
            end: journal.end,
            head,
            used: 0,
            sequence,
            sums,
            wide: incompat & INCOMPAT_64BIT != 0,
            seed: crc32c(!0, &uuid),
            uuid,
            head_block,
        })
    }

    /// Where the journal lies.
    pub(crate) fn places(&self) -> Vec<std::ops::Range<u64>> {
        self.runs.iter().filter_map(|run| run.physical.map(|first| first..first + run.len)).collect()
    }

    /// Blocks of the ring.
    pub(crate) fn len(&self) -> u32 {
        self.end - self.first
    }

    /// Blocks that are free.
    pub(crate) fn free(&self) -> u32 {
        self.len() - self.used
    }

    /// Blocks that a transaction takes up.
    pub(crate) fn needs(&self, closed: &Closed) -> u32 {
        let blocks = closed.blocks.len();
        let descriptors = blocks.div_ceil(self.tags_per_block());
        let revocations = closed.revoked.len().div_ceil(self.revocations_per_block());
        u32::try_from(blocks + descriptors + revocations + 1).unwrap_or(u32::MAX)
    }

    /// Before the first transaction: the log is said to start where it will.
    pub(crate) fn start(&mut self, volume: &Volume) -> Result<()> {
        self.write_super(volume, self.head)
    }

    /// All transactions are in their places.
    pub(crate) fn empty(&mut self, volume: &Volume) -> Result<()> {
        self.used = 0;
        self.write_super(volume, self.head)
    }

    /// The end: nothing is to be replayed.
    pub(crate) fn finish(&mut self, volume: &Volume) -> Result<()> {
        self.write_super(volume, 0)
    }

    /// Writes a transaction, and returns when it is on stable storage.
    pub(crate) fn write(
        &mut self,
        volume: &Volume,
        closed: &Closed,
        flush: &mut dyn FnMut() -> Result<()>,
    ) -> Result<()> {
        if self.needs(closed) > self.free() {
            tracing::error!(
                "ext2: a transaction of {} blocks is longer than the journal",
                closed.blocks.len()
            );
            return Err(Errno::EIO.into());
        }
        let mut out = Spool { volume, start: 0, bytes: Vec::new() };
        for numbers in closed.revoked.chunks(self.revocations_per_block()) {
            let block = self.revocations(volume, numbers);
            self.append(&mut out, &block)?;
        }
        let mut sum = !0;
        for blocks in closed.blocks.chunks(self.tags_per_block()) {
            let copies: Vec<(u64, Vec<u8>, bool)> =
                blocks.iter().map(|(number, block, _)| escape(*number, block)).collect();
            let descriptor = self.descriptor(volume, &copies);
            self.append(&mut out, &descriptor)?;
            sum = if self.sums == Sums::V1 { crc32_be(sum, &descriptor) } else { sum };
            for (_, copy, _) in &copies {
                self.append(&mut out, copy)?;
                sum = if self.sums == Sums::V1 { crc32_be(sum, copy) } else { sum };
            }
        }
        out.write()?;
        flush()?;
        let commit = self.commit_block(volume, sum);
        self.append(&mut out, &commit)?;
        out.write()?;
        flush()?;
        self.sequence = self.sequence.wrapping_add(1);
        Ok(())
    }

    fn append(&mut self, out: &mut Spool<'_>, block: &[u8]) -> Result<()> {
        out.push(self.place(self.head)?, block)?;
        self.used += 1;
        self.head = if self.head + 1 == self.end { self.first } else { self.head + 1 };
        Ok(())
    }

    /// Where a block of the journal lies.
    fn place(&self, block: u32) -> Result<u64> {
        let block = u64::from(block);
        let after = self.runs.partition_point(|run| run.start <= block);
        let run = after.checked_sub(1).and_then(|at| self.runs.get(at));
        run.and_then(|run| run.from(block).physical)
            .ok_or_else(|| Error::corrupt(format!("the journal has no block {block}")))
    }

    fn tail(&self) -> usize {
        if matches!(self.sums, Sums::V2 | Sums::V3) { 4 } else { 0 }
    }

    fn tag_len(&self) -> usize {
        match (self.sums, self.wide) {
            (Sums::V3, _) => 16,
            (Sums::V2, true) => 14,
            (Sums::V2, false) => 10,
            (_, true) => 12,
            (_, false) => 8,
        }
    }

    fn tags_per_block(&self) -> usize {
        (self.head_block.len() - HEADER - self.tail() - self.uuid.len()) / self.tag_len()
    }

    fn revocations_per_block(&self) -> usize {
        (self.head_block.len() - HEADER - 4 - self.tail()) / if self.wide { 8 } else { 4 }
    }

    /// A block of the log without its content.
    fn block(&self, volume: &Volume, kind: u32) -> Vec<u8> {
        let mut block = vec![0; volume.block_size()];
        put(&mut block, 0, JOURNAL_MAGIC);
        put(&mut block, 4, kind);
        put(&mut block, 8, self.sequence);
        block
    }

    fn close_block(&self, block: &mut [u8]) {
        if self.tail() > 0 {
            let at = block.len() - 4;
            let sum = crc32c_without(self.seed, block, at, 4);
            put(block, at, sum);
        }
    }

    fn descriptor(&self, volume: &Volume, copies: &[(u64, Vec<u8>, bool)]) -> Vec<u8> {
        let mut block = self.block(volume, TYPE_DESCRIPTOR);
        let mut at = HEADER;
        for (index, (number, copy, escaped)) in copies.iter().enumerate() {
            let mut flags = if *escaped { TAG_ESCAPED } else { 0 };
            flags |= if index > 0 { TAG_SAME_UUID } else { 0 };
            flags |= if index + 1 == copies.len() { TAG_LAST } else { 0 };
            put(&mut block, at, *number as u32);
            let sum = match self.tail() {
                0 => 0,
                _ => crc32c(crc32c(self.seed, &self.sequence.to_be_bytes()), copy),
            };
            match self.sums {
                Sums::V3 => {
                    put(&mut block, at + 4, flags);
                    put(&mut block, at + 12, sum);
                }
                _ => {
                    block[at + 4..at + 6].copy_from_slice(&(sum as u16).to_be_bytes());
                    block[at + 6..at + 8].copy_from_slice(&(flags as u16).to_be_bytes());
                }
            }
            if self.wide {
                put(&mut block, at + 8, (*number >> 32) as u32);
            }
            at += self.tag_len();
            if index == 0 {
                block[at..at + self.uuid.len()].copy_from_slice(&self.uuid);
                at += self.uuid.len();
            }
        }
        self.close_block(&mut block);
        block
    }

    fn revocations(&self, volume: &Volume, numbers: &[u64]) -> Vec<u8> {
        let mut block = self.block(volume, TYPE_REVOKE);
        let mut at = HEADER + 4;
        for number in numbers {
            if self.wide {
                block[at..at + 8].copy_from_slice(&number.to_be_bytes());
                at += 8;
            } else {
                put(&mut block, at, *number as u32);
                at += 4;
            }
        }
        put(&mut block, HEADER, at as u32);
        self.close_block(&mut block);
        block
    }

    fn commit_block(&self, volume: &Volume, sum: u32) -> Vec<u8> {
        let mut block = self.block(volume, TYPE_COMMIT);
        let now = Timestamp::now();
        block[48..56].copy_from_slice(&now.seconds.to_be_bytes());
        put(&mut block, 56, now.nanos);
        match self.sums {
            Sums::None => {}
            Sums::V1 => {
                block[12..14].copy_from_slice(&CRC32);
                put(&mut block, 16, sum);
            }
            Sums::V2 | Sums::V3 => {
                let sum = crc32c_without(self.seed, &block, 16, 4);
                put(&mut block, 16, sum);
            }
        }
        block
    }

    fn write_super(&mut self, volume: &Volume, start: u32) -> Result<()> {
        put(&mut self.head_block, 0x18, self.sequence);
        put(&mut self.head_block, 0x1c, start);
        let place = self.place(0)?;
        write_super(volume, &mut self.head_block, place)
    }
}

/// Says that a journal that was replayed is empty, and with which transaction it goes on.
pub(crate) fn say_replayed(volume: &Volume, sequence: u32) -> Result<()> {
    let journal = Journal::open(volume)?;
    let mut block = journal.read(0)?;
    put(&mut block, 0x18, sequence);
    put(&mut block, 0x1c, 0);
    let place = journal.map.find(volume, 0)?.physical;
    write_super(volume, &mut block, place.ok_or_else(|| Error::corrupt("the journal has no first block"))?)
}

/// Whether an error was noted in the journal.
pub(crate) fn has_error(volume: &Volume) -> Result<bool> {
    Ok(be32(&Journal::open(volume)?.read(0)?, 0x20) != 0)
}

fn write_super(volume: &Volume, block: &mut [u8], place: u64) -> Result<()> {
    if be32(block, 4) == TYPE_SUPERBLOCK_V2 && be32(block, 0x28) & (INCOMPAT_CSUM_V2 | INCOMPAT_CSUM_V3) != 0
    {
        let sum = crc32c_without(!0, slice(block, 0, SUPER), SUM_AT, 4);
        put(block, SUM_AT, sum);
    }
    Ok(volume.disk.write_at(&block[..SUPER], place << volume.sb.block_bits)?)
}

/// The copy of a block that goes into the log: it must not look like a block of the journal's own.
fn escape(number: u64, block: &[u8]) -> (u64, Vec<u8>, bool) {
    let mut copy = block.to_vec();
    let escaped = be32(&copy, 0) == JOURNAL_MAGIC;
    if escaped {
        copy[..4].fill(0);
    }
    (number, copy, escaped)
}

fn put(bytes: &mut [u8], at: usize, value: u32) {
    bytes[at..at + 4].copy_from_slice(&value.to_be_bytes());
}

/// Gathers blocks that lie together.
struct Spool<'a> {
    volume: &'a Volume,
    start: u64,
    bytes: Vec<u8>,
}

impl Spool<'_> {
    fn push(&mut self, place: u64, block: &[u8]) -> Result<()> {
        let next = self.start + (self.bytes.len() as u64 >> self.volume.sb.block_bits);
        if !self.bytes.is_empty() && (next != place || self.bytes.len() >= WRITE_MAX) {
            self.write()?;
        }
        if self.bytes.is_empty() {
            self.start = place;
        }
        self.bytes.extend_from_slice(block);
        Ok(())
    }

    fn write(&mut self) -> Result<()> {
        self.volume.disk.write_at(&self.bytes, self.start << self.volume.sb.block_bits)?;
        self.bytes.clear();
        Ok(())
    }
}
