//! The journal: what was committed to it and has not reached its place yet.
//!
//! Layout: a file (inode 8) whose block 0 is a superblock of its own, and whose other blocks are a ring. All
//! numbers are big-endian. A transaction is descriptor blocks, each followed by the copies of the blocks that
//! its tags name, blocks of revocations ("an older copy of this block must not be replayed"), and a commit
//! block. Each of these starts with magic, type and the transaction's sequence number; the first block that
//! does not ends the log.
//!
//! Nothing is written here ([`crate::journal_writer`] does). The transactions from the start of the log to the last complete
//! one become an [`Overlay`]. [Fast commits](crate::fast_commit) may follow.

use std::collections::{HashMap, HashSet};

use crate::bytes::{be16, be32, join, slice, u8_at};
use crate::checksum::{crc32_be, crc32c, crc32c_without};
use crate::error::{Error, Result};
use crate::fast_commit;
use crate::features::{COMPAT_HAS_JOURNAL, INCOMPAT_RECOVER};
use crate::inode::{FLAG_INLINE_DATA, Inode};
use crate::map::Map;
use crate::volume::{Copy, JOURNAL_MAGIC, Overlay, Volume};

pub(crate) const TYPE_DESCRIPTOR: u32 = 1;
pub(crate) const TYPE_COMMIT: u32 = 2;
const TYPE_SUPERBLOCK_V1: u32 = 3;
pub(crate) const TYPE_SUPERBLOCK_V2: u32 = 4;
pub(crate) const TYPE_REVOKE: u32 = 5;

pub(crate) const COMPAT_CHECKSUM: u32 = 0x1;
pub(crate) const INCOMPAT_64BIT: u32 = 0x2;
pub(crate) const INCOMPAT_CSUM_V2: u32 = 0x8;
pub(crate) const INCOMPAT_CSUM_V3: u32 = 0x10;
const INCOMPAT_FAST_COMMIT: u32 = 0x20;
/// Revocations, 64 bit, asynchronous commit, both checksums, fast commits.
const INCOMPAT_KNOWN: u32 = 0x3f;

pub(crate) const TAG_ESCAPED: u32 = 1;
pub(crate) const TAG_SAME_UUID: u32 = 2;
pub(crate) const TAG_LAST: u32 = 8;

/// Bytes of the head that all blocks of the log share.
pub(crate) const HEADER: usize = 12;
/// Blocks for fast commits if the superblock does not say.
const FAST_COMMIT_BLOCKS: u32 = 256;
/// The longest journal that mke2fs makes.
const MAX_BLOCKS: u32 = 10_240_000;
/// The shortest ring beside an area for fast commits.
const MIN_BLOCKS: u32 = 1024;

/// What a look at the journal showed.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Status {
    /// The volume has none.
    Absent,
    /// Nothing is to be replayed.
    Clean,
    /// Something is to be replayed, and was not, because the user said so.
    Skipped,
    /// It was replayed.
    Replayed {
        /// Whole transactions.
        transactions: u32,
        /// Fast commits that follow them.
        fast_commits: u32,
    },
}

/// Replays the journal into memory, unless `skip`. What was read of the volume before is forgotten.
pub(crate) fn replay(volume: Volume, skip: bool) -> Result<(Volume, Status)> {
    let (overlay, log, status) = read(&volume, skip)?;
    let mut volume = volume.with_overlay(overlay)?;
    volume.changes = fast_commit::apply(&volume, log).map_err(advise)?;
    Ok((volume, status))
}

/// The newer copies of blocks, and what follows them.
fn read(volume: &Volume, skip: bool) -> Result<(Overlay, fast_commit::Log, Status)> {
    let nothing = |status| Ok((Overlay::new(), fast_commit::Log::default(), status));
    let sb = &volume.sb;
    if !sb.features.has_compat(COMPAT_HAS_JOURNAL) {
        return nothing(Status::Absent);
    }
    if !sb.features.has_incompat(INCOMPAT_RECOVER) {
        return nothing(Status::Clean);
    }
    if skip {
        return nothing(Status::Skipped);
    }
    if sb.journal_ino == 0 {
        let what = "the volume was not unmounted cleanly, and its journal is on another device; \
                    noload shows it as it was before the journal";
        return Err(Error::Unsupported(what.into()));
    }
    let journal = Journal::open(volume).map_err(advise)?;
    if journal.start == 0 {
        return nothing(Status::Clean);
    }
    let log = journal.scan().map_err(advise)?;
    let overlay = journal.overlay(&log).map_err(advise)?;
    let fast = journal.fast_commits(log.next).map_err(advise)?;
    let status = Status::Replayed { transactions: log.transactions, fast_commits: fast.commits };
    Ok((overlay, fast, status))
}

/// The sequence number behind the last whole transaction.
pub(crate) fn next_sequence(volume: &Volume) -> Result<u32> {
    let journal = Journal::open(volume)?;
    if journal.start == 0 { Ok(journal.sequence) } else { Ok(journal.scan()?.next) }
}

/// What follows the whole transactions: the block of the journal behind them, the number of the next, and the fast commits that would be part
/// of that.
pub(crate) fn behind(volume: &Volume) -> Result<(u32, u32, fast_commit::Log)> {
    let journal = Journal::open(volume)?;
    let log = journal.scan()?;
    Ok((log.end, log.next, journal.fast_commits(log.next)?))
}

/// What can be done about a journal that is damaged.
fn advise(mut error: Error) -> Error {
    if let Error::Corrupt(damage) = &mut error {
        damage.what =
            format!("the journal: {}; noload shows the volume as it was before the journal", damage.what);
    }
    error
}

/// Which checksums the log has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Sums {
    None,
    /// One over each transaction.
    V1,
    /// One in each block, of which a tag keeps 16 bits.
    V2,
    /// One in each block, whole.
    V3,
}

pub(crate) struct Journal<'a> {
    volume: &'a Volume,
    pub(crate) map: Map,
    /// The first block of the ring.
    pub(crate) first: u32,
    /// The block behind the ring.
    pub(crate) end: u32,
    /// The first block of the log; 0 if it is empty.
    pub(crate) start: u32,
    /// The sequence number of the first transaction.
    pub(crate) sequence: u32,
    sums: Sums,
    wide: bool,
    /// Blocks for fast commits, behind the ring.
    fast_blocks: u32,
    seed: u32,
}

/// Where the copy of a block is.
struct Tag {
    /// The block of the journal that holds the copy.
    copy: u32,
    sequence: u32,
    checksum: u32,
    escaped: bool,
}

/// All whole transactions.
#[derive(Default)]
struct Log {
    /// The newest copy of each block. Older ones never count: what revokes the newest revokes them too.
    tags: HashMap<u64, Tag>,
    /// For each block the last transaction that revoked it.
    revoked: HashMap<u64, u32>,
    transactions: u32,
    /// The sequence number behind the last.
    next: u32,
    /// The block behind the last.
    end: u32,
}

impl<'a> Journal<'a> {
    pub(crate) fn open(volume: &'a Volume) -> Result<Self> {
        let inode = journal_inode(volume)?;
        let blocks = inode.size >> volume.sb.block_bits;
        let map = Map::new(inode);
        let head = read_block(volume, &map, 0)?;
        let kind = be32(&head, 4);
        if be32(&head, 0) != JOURNAL_MAGIC || !matches!(kind, TYPE_SUPERBLOCK_V1 | TYPE_SUPERBLOCK_V2) {
            return Err(Error::corrupt("it has no superblock"));
        }
        let field = |at: usize| if kind == TYPE_SUPERBLOCK_V2 { be32(&head, at) } else { 0 };
        let (compat, incompat, ro_compat) = (field(0x24), field(0x28), field(0x2c));
        let unknown = incompat & !INCOMPAT_KNOWN;
        if unknown != 0 || ro_compat != 0 {
            let what =
                format!("the journal uses unknown features: incompat {unknown:#x}, ro_compat {ro_compat:#x}");
            return Err(Error::Unsupported(what));
        }
        let sums = match incompat {
            flags if flags & INCOMPAT_CSUM_V3 != 0 => Sums::V3,
            flags if flags & INCOMPAT_CSUM_V2 != 0 => Sums::V2,
            _ if compat & COMPAT_CHECKSUM != 0 => Sums::V1,
            _ => Sums::None,
        };
        if matches!(sums, Sums::V2 | Sums::V3)
            && crc32c_without(!0, slice(&head, 0, 1024), 0xfc, 4) != be32(&head, 0xfc)
        {
            return Err(Error::corrupt("the checksum of its superblock is wrong"));
        }
        let fast_commits = incompat & INCOMPAT_FAST_COMMIT != 0;
        let (first, length) = (be32(&head, 0x14), be32(&head, 0x10));
        let fast_blocks = match (fast_commits, field(0x54)) {
            (false, _) => 0,
            (true, 0) => FAST_COMMIT_BLOCKS,
            (true, blocks) => blocks,
        };
        // A journal that would become too short by it has no room for fast commits.
        let fast_blocks = if length.saturating_sub(fast_blocks) < MIN_BLOCKS { 0 } else { fast_blocks };
        let journal = Self {
            volume,
            map,
            first,
            end: length.saturating_sub(fast_blocks),
            start: be32(&head, 0x1c),
            sequence: be32(&head, 0x18),
            sums,
            wide: incompat & INCOMPAT_64BIT != 0,
            fast_blocks,
            seed: crc32c(!0, slice(&head, 0x30, 16)),
        };
        if be32(&head, 0xc) as usize != volume.block_size() || u64::from(length) > blocks {
            return Err(Error::corrupt(format!(
                "it is said to have {length} blocks, but there are {blocks}"
            )));
        }
        if length > MAX_BLOCKS {
            return Err(Error::corrupt(format!("{length} blocks are too many")));
        }
        let inside = journal.first..journal.end;
        if inside.start == 0 || inside.is_empty() || (journal.start != 0 && !inside.contains(&journal.start))
        {
            return Err(Error::corrupt(format!("it cannot start at block {}", journal.start)));
        }
        Ok(journal)
    }

    pub(crate) fn read(&self, block: u32) -> Result<Vec<u8>> {
        read_block(self.volume, &self.map, block)
    }

    /// The block of the ring that is `steps` behind `block`.
    fn after(&self, block: u32, steps: u32) -> u32 {
        let length = u64::from(self.end - self.first);
        let place = (u64::from(block - self.first) + u64::from(steps)) % length;
        self.first + place as u32
    }

    /// Follows the log to its end. A ring holds each of its blocks once, so the walk ends.
    fn scan(&self) -> Result<Log> {
        let mut log = Log { next: self.sequence, end: self.start, ..Log::default() };
        let mut open = Transaction::default();
        let (mut at, mut left, mut last_time) = (self.start, self.end - self.first, 0);
        while left > 0 {
            let block = self.read(at)?;
            if be32(&block, 0) != JOURNAL_MAGIC || be32(&block, 8) != log.next {
                break;
            }
            let mut used = 1;
            match be32(&block, 4) {
                TYPE_DESCRIPTOR => {
                    open.doubtful |= !self.tail_is_right(&block);
                    used += self.describe(&block, at, log.next, &mut open)?;
                }
                TYPE_REVOKE => {
                    open.doubtful |= !self.tail_is_right(&block);
                    self.revoke(&block, &mut open)?;
                }
                TYPE_COMMIT => {
                    // A block that is left from an earlier round of the ring may look like the next. Its time
                    // tells.
                    let time = join(be32(&block, 52), be32(&block, 48));
                    let right = self.commit_is_right(&block, &open)?;
                    if open.doubtful && right && time >= last_time {
                        let what = format!("a checksum in transaction {} is wrong", log.next);
                        return Err(Error::corrupt(what));
                    }
                    if open.doubtful || !right {
                        break;
                    }
                    last_time = time;
                    log.take(std::mem::take(&mut open));
                }
                _ => break,
            }
            left = left.saturating_sub(used);
            at = self.after(at, used);
            if be32(&block, 4) == TYPE_COMMIT {
                log.end = at;
            }
        }
        Ok(log)
    }

    /// The tags of a descriptor block at `at`: how many copies follow it.
    fn describe(&self, block: &[u8], at: u32, sequence: u32, open: &mut Transaction) -> Result<u32> {
        if self.sums == Sums::V1 {
            open.sum = crc32_be(open.sum, block);
        }
        let size = match (self.sums, self.wide) {
            (Sums::V3, _) => 16,
            (Sums::V2, wide) => {
                if wide {
                    14
                } else {
                    10
                }
            }
            (_, wide) => {
                if wide {
                    12
                } else {
                    8
                }
            }
        };
        let end = block.len() - self.tail_len();
        let (mut place, mut copies) = (HEADER, 0);
        // Each tag has at least 8 bytes.
        while place + size <= end {
            let tag = slice(block, place, size);
            let (flags, checksum) = match self.sums {
                Sums::V3 => (be32(tag, 4), be32(tag, 12)),
                _ => (be16(tag, 6).into(), be16(tag, 4).into()),
            };
            copies += 1;
            let copy = self.after(at, copies);
            let target = join(be32(tag, 0), if self.wide { be32(tag, 8) } else { 0 });
            open.tags.insert(target, Tag { copy, sequence, checksum, escaped: flags & TAG_ESCAPED != 0 });
            if self.sums == Sums::V1 {
                open.sum = crc32_be(open.sum, &self.read(copy)?);
            }
            if flags & TAG_LAST != 0 {
                break;
            }
            place += size + if flags & TAG_SAME_UUID == 0 { 16 } else { 0 };
        }
        Ok(copies)
    }

    fn revoke(&self, block: &[u8], open: &mut Transaction) -> Result<()> {
        let end = be32(block, HEADER) as usize;
        if end > block.len() - self.tail_len() {
            return Err(Error::corrupt(format!("a block of revocations has {end} bytes")));
        }
        let records = block.get(HEADER + 4..end).unwrap_or_default();
        match self.wide {
            true => open
                .revoked
                .extend(records.chunks_exact(8).map(|record| join(be32(record, 4), be32(record, 0)))),
            false => open.revoked.extend(records.chunks_exact(4).map(|record| u64::from(be32(record, 0)))),
        }
        Ok(())
    }

    fn tail_len(&self) -> usize {
        if matches!(self.sums, Sums::V2 | Sums::V3) { 4 } else { 0 }
    }

    /// The last four bytes of descriptors and revocations are a checksum.
    fn tail_is_right(&self, block: &[u8]) -> bool {
        let at = block.len() - 4;
        self.tail_len() == 0 || crc32c_without(self.seed, block, at, 4) == be32(block, at)
    }

    fn commit_is_right(&self, block: &[u8], open: &Transaction) -> Result<bool> {
        let (kind, size, sum) = (u8_at(block, 12), u8_at(block, 13), be32(block, 16));
        Ok(match self.sums {
            Sums::None => true,
            // CRC-32 is kind 1; zeros mean that the writer left it out.
            Sums::V1 => (kind, size, sum) == (1, 4, open.sum) || (kind, size, sum) == (0, 0, 0),
            Sums::V2 | Sums::V3 => crc32c_without(self.seed, block, 16, 4) == sum,
        })
    }

    /// The copies that count: those that were not revoked.
    fn overlay(&self, log: &Log) -> Result<Overlay> {
        let counts =
            |target: &u64, tag: &Tag| log.revoked.get(target).is_none_or(|by| is_after(tag.sequence, *by));
        let tags = log.tags.iter().filter(|(target, tag)| counts(target, tag));
        tags.map(|(target, tag)| Ok((*target, self.copy(*target, tag)?))).collect()
    }

    fn copy(&self, target: u64, tag: &Tag) -> Result<Copy> {
        if target >= self.volume.sb.blocks_count {
            return Err(Error::corrupt(format!(
                "it has a copy of block {target}, which is outside the volume"
            )));
        }
        let Some(block) = self.map.find(self.volume, tag.copy.into())?.physical else {
            return Err(Error::corrupt(format!("block {} of it is a hole", tag.copy)));
        };
        if self.tail_len() > 0 {
            let content = self.read(tag.copy)?;
            let sum = crc32c(crc32c(self.seed, &tag.sequence.to_be_bytes()), &content);
            let sum = if self.sums == Sums::V2 { sum & 0xffff } else { sum };
            if sum != tag.checksum {
                return Err(Error::corrupt(format!("the checksum of its copy of block {target} is wrong"))
                    .in_block(block));
            }
        }
        Ok(Copy { block, escaped: tag.escaped })
    }

    /// The fast commits behind transaction `next`, which is the one that they would be part of.
    fn fast_commits(&self, next: u32) -> Result<fast_commit::Log> {
        // One block between the ring and the area is left out.
        let count = self.fast_blocks.saturating_sub(1);
        fast_commit::scan(&mut |index| self.read(self.end + 1 + index), count, next)
    }
}

/// What was read of a transaction whose commit block did not come yet.
struct Transaction {
    tags: HashMap<u64, Tag>,
    revoked: HashSet<u64>,
    /// A checksum was wrong.
    doubtful: bool,
    sum: u32,
}

impl Default for Transaction {
    fn default() -> Self {
        Self { tags: HashMap::new(), revoked: HashSet::new(), doubtful: false, sum: !0 }
    }
}

impl Log {
    fn take(&mut self, transaction: Transaction) {
        self.tags.extend(transaction.tags);
        self.revoked.extend(transaction.revoked.into_iter().map(|block| (block, self.next)));
        self.transactions += 1;
        self.next = self.next.wrapping_add(1);
    }
}

/// Sequence numbers wrap: one is after the other if it is less than half the circle away.
pub(crate) fn is_after(one: u32, other: u32) -> bool {
    (one.wrapping_sub(other) as i32) > 0
}

/// The inode of the journal; if it is damaged, its copy in the superblock.
fn journal_inode(volume: &Volume) -> Result<Inode> {
    let sb = &volume.sb;
    let inode = volume.any_inode(sb.journal_ino).and_then(|inode| match inode.kind {
        veduta_api::Kind::File if !inode.has(FLAG_INLINE_DATA) => Ok(inode),
        _ => Err(Error::corrupt("it is no regular file").in_inode(sb.journal_ino)),
    });
    match (inode, &sb.journal_backup) {
        (Err(Error::Corrupt(damage)), Some(backup)) => {
            tracing::warn!("ext2: {damage}; the superblock's copy of the journal's inode is used");
            Ok(Inode::of_journal_backup(sb.journal_ino, backup, sb.checksum_seed))
        }
        (inode, _) => inode,
    }
}

fn read_block(volume: &Volume, map: &Map, block: u32) -> Result<Vec<u8>> {
    let mut content = vec![0; volume.block_size()];
    map.read(volume, &mut content, u64::from(block) << volume.sb.block_bits)?;
    Ok(content)
}
