//! Fast commits: what changed since the last whole transaction, told as changes to files and not as copies of
//! blocks.
//!
//! Layout: blocks behind the ring of the journal, filled with records: type and length (16 bits each,
//! little-endian, unlike the rest of the journal), then the value. The first is a head that names the
//! transaction that it all would be part of; each commit ends in a tail, which fills its block, with that
//! number again and a CRC-32C from the last tail on. What follows the last tail that is right does not count.
//!
//! Nothing is written, so the changes are kept beside the volume: inodes by number, runs of their content,
//! names in directories. They are few: the area is 256 blocks unless somebody chose otherwise.

use std::collections::{BTreeMap, HashMap};

use crate::bytes::{join, le16, le32, slice};
use crate::cache::Block;
use crate::checksum::crc32c;
use crate::error::{Error, Result};
use crate::inode::{BLOCK_AT, BLOCK_LEN, FLAG_EXTENTS};
use crate::map::Run;
use crate::volume::Volume;

/// Bytes of a record before its value.
const HEADER: usize = 4;
/// Bytes of the older part of an inode, which every record of an inode has.
const OLD_INODE: usize = 128;
/// Where i_flags and i_generation stand.
const FLAGS_AT: usize = 0x20;
const GENERATION_AT: usize = 0x64;
/// The longest run of blocks that were written.
const MAX_LEN: u64 = 32768;

/// A change.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Change {
    /// Blocks of a file have a new place, or are a hole.
    Content {
        ino: u32,
        run: Run,
        /// Where blocks are that are kept for it, and read as zeros.
        unwritten: Option<u64>,
    },
    /// A name in a directory leads to an inode.
    Link { dir: u32, name: Vec<u8>, ino: u32 },
    /// The same, and the inode is new.
    Create { dir: u32, name: Vec<u8>, ino: u32 },
    /// A name is gone.
    Unlink { dir: u32, name: Vec<u8>, ino: u32 },
    /// An inode's record.
    Inode { ino: u32, record: Vec<u8> },
}

/// What the fast commits of a journal change.
#[derive(Debug, Default)]
pub(crate) struct Log {
    changes: Vec<Change>,
    /// Whole commits.
    pub(crate) commits: u32,
}

/// The changes, by what they change.
#[derive(Debug, Default)]
pub(crate) struct Changes {
    /// Records of inodes, as long as all are.
    pub(crate) inodes: HashMap<u32, Block>,
    /// For each inode, runs that count in place of those that its map has. They do not overlap.
    runs: HashMap<u32, BTreeMap<u64, Run>>,
    /// For each directory, names and what they lead to now.
    pub(crate) names: HashMap<u32, BTreeMap<Vec<u8>, Option<u32>>>,
    /// New inodes, and the directories that they were made in. What a new directory has on the disk does not
    /// count.
    pub(crate) made: HashMap<u32, u32>,
}

impl Log {
    /// What it says, in order.
    pub(crate) fn into_changes(self) -> Vec<Change> {
        self.changes
    }
}

/// Reads the area, which has `count` blocks; `sequence` is the transaction that would come next.
pub(crate) fn scan(read: &mut dyn FnMut(u32) -> Result<Vec<u8>>, count: u32, sequence: u32) -> Result<Log> {
    let mut log = Log::default();
    let (mut open, mut sum, mut begun) = (Vec::new(), 0, false);
    for index in 0..count {
        let block = read(index)?;
        let mut at = 0;
        // Each record has at least 4 bytes.
        while at + HEADER <= block.len() {
            let (kind, len) = (le16(&block, at), usize::from(le16(&block, at + 2)));
            let value = slice(&block, at + HEADER, len);
            if value.len() < len || (!begun && kind != 9) {
                return Ok(log);
            }
            let summed = if kind == 8 { HEADER + 4 } else { HEADER + len };
            sum = crc32c(sum, slice(&block, at, summed));
            match kind {
                7 => {}
                8 if le32(value, 0) == sequence && le32(value, 4) == sum => {
                    log.changes.append(&mut open);
                    log.commits += 1;
                    sum = 0;
                }
                9 if le32(value, 4) == sequence => {
                    begun = true;
                    if le32(value, 0) != 0 {
                        let what = format!("fast commits use unknown features: {:#x}", le32(value, 0));
                        return Err(Error::Unsupported(what));
                    }
                }
                _ => match parse(kind, value) {
                    Some(change) => open.push(change),
                    None => return Ok(log),
                },
            }
            at += HEADER + len;
        }
    }
    Ok(log)
}

/// A record that changes something.
fn parse(kind: u16, value: &[u8]) -> Option<Change> {
    let (first, second) = (le32(value, 0), le32(value, 4));
    let name = || value.get(8..).map(<[u8]>::to_vec);
    Some(match kind {
        1 if value.len() >= 16 => {
            let (len, physical) = (u64::from(le16(value, 8)), join(le32(value, 12), le16(value, 10).into()));
            let (len, written) = if len > MAX_LEN { (len - MAX_LEN, false) } else { (len, true) };
            let run = Run { start: second.into(), len, physical: written.then_some(physical) };
            Change::Content { ino: first, run, unwritten: (!written).then_some(physical) }
        }
        2 if value.len() >= 12 => {
            let run = Run { start: second.into(), len: le32(value, 8).into(), physical: None };
            Change::Content { ino: first, run, unwritten: None }
        }
        3 => Change::Create { dir: first, name: name()?, ino: second },
        4 => Change::Link { dir: first, name: name()?, ino: second },
        5 => Change::Unlink { dir: first, name: name()?, ino: second },
        6 if value.len() >= 4 + OLD_INODE => Change::Inode { ino: first, record: value[4..].to_vec() },
        _ => return None,
    })
}

/// Applies what a log says to the volume as the whole transactions left it.
pub(crate) fn apply(volume: &Volume, log: Log) -> Result<Changes> {
    let mut changes = Changes::default();
    for change in log.changes {
        changes.take(volume, change)?;
    }
    Ok(changes)
}

impl Changes {
    /// Whether there are none, which is so for all but a few volumes.
    pub(crate) fn is_empty(&self) -> bool {
        self.inodes.is_empty() && self.runs.is_empty() && self.names.is_empty()
    }

    /// What is known of a block of a file: the run that holds it, or else the first block behind it that is
    /// in one.
    pub(crate) fn run(&self, ino: u32, block: u64) -> (Option<Run>, u64) {
        let Some(runs) = self.runs.get(&ino) else { return (None, u64::MAX) };
        let holding = runs.range(..=block).next_back().map(|(_, run)| *run);
        match holding.filter(|run| block < run.start + run.len) {
            Some(run) => (Some(run.from(block)), block),
            None => (None, runs.range(block..).next().map_or(u64::MAX, |(start, _)| *start)),
        }
    }

    fn take(&mut self, volume: &Volume, change: Change) -> Result<()> {
        match change {
            Change::Content { ino, run, .. } => {
                let outside = run.physical.is_some_and(|block| !volume.sb.holds(block, run.len));
                if outside || (run.len == 0 && run.physical.is_some()) {
                    let what = format!("a fast commit puts {} blocks outside the volume", run.len);
                    return Err(Error::corrupt(what).in_inode(ino));
                }
                cover(self.runs.entry(ino).or_default(), run);
            }
            Change::Link { dir, name, ino } => self.link(volume, dir, name, ino)?,
            Change::Create { dir, name, ino } => {
                self.made.insert(ino, dir);
                self.link(volume, dir, name, ino)?;
            }
            Change::Unlink { dir, name, ino } => {
                let names = self.names.entry(dir).or_default();
                // A name that leads elsewhere by now is another.
                if names.get(&name).is_none_or(|current| current.is_none_or(|current| current == ino)) {
                    names.insert(name, None);
                }
            }
            Change::Inode { ino, record } => {
                let patched = self.patch(volume, ino, &record)?;
                self.inodes.insert(ino, patched);
            }
        }
        Ok(())
    }

    fn link(&mut self, volume: &Volume, dir: u32, name: Vec<u8>, ino: u32) -> Result<()> {
        let bad_name = name.is_empty() || name.len() > 255 || name.contains(&0) || name.contains(&b'/');
        if bad_name || ino > volume.sb.inodes_count {
            return Err(Error::corrupt("a fast commit has an impossible name").in_inode(dir));
        }
        self.names.entry(dir).or_default().insert(name, Some(ino));
        Ok(())
    }

    /// All fields but i_block come from the commit. That one does too unless it is the root of a tree of
    /// extents, to which changes come as runs. What the number's former owner had (another generation) does
    /// not count.
    fn patch(&mut self, volume: &Volume, ino: u32, record: &[u8]) -> Result<Block> {
        let old = match self.inodes.get(&ino) {
            Some(record) => record.to_vec(),
            None => volume.record(ino)?.bytes().to_vec(),
        };
        let is_new = le32(&old, GENERATION_AT) != le32(record, GENERATION_AT);
        if is_new {
            self.runs.remove(&ino);
        }
        let mut new = if is_new { vec![0; old.len()] } else { old.clone() };
        let len = record.len().min(new.len());
        new[..len].copy_from_slice(&record[..len]);
        if le32(record, FLAGS_AT) & FLAG_EXTENTS != 0 {
            let kept = slice(&old, BLOCK_AT, BLOCK_LEN);
            let root: &[u8] = match !is_new && le16(kept, 0) == crate::extents::MAGIC {
                true => kept,
                false => &crate::extents::empty_root(),
            };
            new[BLOCK_AT..BLOCK_AT + BLOCK_LEN].copy_from_slice(root);
        }
        Ok(new.into())
    }
}

/// Puts a run over those that are there.
fn cover(runs: &mut BTreeMap<u64, Run>, run: Run) {
    let end = run.start + run.len;
    let first = runs.range(..run.start).next_back().map_or(run.start, |(start, _)| *start);
    let met: Vec<Run> = runs.range(first..end.max(first)).map(|(_, run)| *run).collect();
    for old in met.into_iter().filter(|old| old.start + old.len > run.start) {
        runs.remove(&old.start);
        if old.start < run.start {
            runs.insert(old.start, Run { len: run.start - old.start, ..old });
        }
        if old.start + old.len > end {
            runs.insert(end, old.from(end));
        }
    }
    if run.len > 0 {
        runs.insert(run.start, run);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(kind: u16, value: &[u8]) -> Vec<u8> {
        [&kind.to_le_bytes(), &(value.len() as u16).to_le_bytes(), value].concat()
    }

    /// A block with a head for transaction 7, some records, and a tail.
    fn block(records: &[Vec<u8>]) -> Vec<u8> {
        let mut block = record(9, &[0, 0, 0, 0, 7, 0, 0, 0]);
        block.extend(records.concat());
        let len = (1024 - block.len() - HEADER) as u16;
        block.extend([8, 0]);
        block.extend(len.to_le_bytes());
        block.extend(7u32.to_le_bytes());
        let sum = crc32c(0, &block);
        block.extend(sum.to_le_bytes());
        block.resize(1024, 0);
        block
    }

    #[test]
    fn only_commits_with_a_right_tail_count() {
        let link = record(4, b"\x02\0\0\0\x0c\0\0\0name");
        let good = block(&[link]);
        let commits =
            |bytes: &[u8], sequence| scan(&mut |_| Ok(bytes.to_vec()), 1, sequence).unwrap().commits;
        assert_eq!(commits(&good, 7), 1);
        assert_eq!(commits(&good, 8), 0);
        for at in [0, 6, 20, 30, 33, 37] {
            let mut bad = good.clone();
            bad[at] ^= 1;
            assert!(
                scan(&mut |_| Ok(bad.clone()), 1, 7).is_ok_and(|log| log.commits == 0) || at == 6,
                "{at}"
            );
        }
    }

    #[test]
    fn a_later_run_covers_the_earlier() {
        let mut runs = BTreeMap::new();
        let run = |start, len, physical| Run { start, len, physical };
        cover(&mut runs, run(0, 10, Some(100)));
        cover(&mut runs, run(3, 2, None));
        cover(&mut runs, run(8, 4, Some(50)));
        let all: Vec<Run> = runs.values().copied().collect();
        assert_eq!(all, [run(0, 3, Some(100)), run(3, 2, None), run(5, 3, Some(105)), run(8, 4, Some(50))]);
        cover(&mut runs, run(0, 100, Some(7)));
        assert_eq!(runs.len(), 1);
    }
}
