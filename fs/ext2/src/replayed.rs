//! Fast commits, brought to the disk: what [`crate::fast_commit`] keeps in memory for a volume that is only read becomes one
//! transaction of our own, behind those of the journal. That takes the number for which the fast commits wait, so they count until it is
//! committed, and no longer.
//!
//! The changes are made in their order, on the structures as they are: extents are put and cut, names are added and removed, records of inodes
//! are copied but for what the structures say (content, blocks, size of directories). Blocks that files get are taken first, so that
//! no node of a tree comes to lie there; what is given up is free once nobody else got it.
//!
//! # Limits
//!
//! Files with block lists, and volumes with `bigalloc`, are left to be read.

use std::collections::{BTreeSet, HashMap, HashSet};

use veduta_api::{Kind as NodeKind, Timestamp};

use crate::bytes::{le16, le32};
use crate::change::{Change, Kind};
use crate::entries::{self, locate};
use crate::error::{Error, Result};
use crate::extent_tree::{self, Extent};
use crate::extents::empty_root;
use crate::fast_commit::{self, Log};
use crate::inode::{BLOCK_AT, BLOCK_LEN, FLAG_EXTENTS, FLAG_INDEX};
use crate::raw::{CTIME, RawInode};
use crate::volume::Volume;

/// Fields of a record that say what the inode takes up: i_blocks, low and high.
const BLOCKS_AT: [std::ops::Range<usize>; 2] = [0x1c..0x20, 0x74..0x76];

/// What is known while the changes are made.
struct Replay {
    /// Blocks that files get.
    claimed: HashSet<u64>,
    /// Blocks that files had.
    freed: BTreeSet<u64>,
    /// For each inode, at which change its record is last told.
    told: HashMap<u32, usize>,
    /// Inodes that were changed.
    touched: BTreeSet<u32>,
}

/// Makes the changes of a log: all of them, or none.
pub(crate) fn replay(volume: &Volume, log: Log) -> Result<()> {
    if volume.sb.cluster_bits != 0 {
        return Err(Error::Unsupported("fast commits of a volume with bigalloc".into()));
    }
    let changes = log.into_changes();
    let mut replay = Replay {
        claimed: HashSet::new(),
        freed: BTreeSet::new(),
        told: HashMap::new(),
        touched: BTreeSet::new(),
    };
    for (at, change) in changes.iter().enumerate() {
        if let fast_commit::Change::Inode { ino, .. } = change {
            replay.told.insert(*ino, at);
        }
    }
    volume.begin()?.change(|change| {
        for item in &changes {
            if let fast_commit::Change::Content { run, unwritten, .. } = item {
                if let Some(start) = run.physical.or(*unwritten) {
                    replay.claim(change, start, run.len)?;
                }
            }
        }
        for (at, item) in changes.iter().enumerate() {
            replay.make(change, at, item)?;
        }
        replay.end(change)
    })
}

impl Replay {
    fn claim(&mut self, change: &mut Change<'_>, start: u64, len: u64) -> Result<()> {
        if !change.volume.sb.holds(start, len) {
            return Err(Error::corrupt(format!("a fast commit puts {len} blocks outside the volume")));
        }
        change.volume.check_content(start, len)?;
        for block in start..start + len {
            if self.claimed.insert(block) {
                change.claim(block)?;
            }
        }
        Ok(())
    }

    fn make(&mut self, change: &mut Change<'_>, at: usize, item: &fast_commit::Change) -> Result<()> {
        match item {
            fast_commit::Change::Inode { ino, record } => self.record(change, *ino, record),
            fast_commit::Change::Content { ino, run, unwritten } => {
                self.touched.insert(*ino);
                let mut inode = change.load(*ino)?;
                if inode.is_dir() {
                    // Names are told; what else a directory has is our own.
                    return Ok(());
                }
                if !inode.has(FLAG_EXTENTS) {
                    return Err(Error::Unsupported("fast commits of a file with block lists".into()));
                }
                self.cut(change, &mut inode, run.start..run.start.saturating_add(run.len))?;
                if let Some(physical) = run.physical.or(*unwritten).filter(|_| run.len > 0) {
                    let written = run.physical.is_some();
                    change.put_extent(
                        &mut inode,
                        Extent { start: run.start, len: run.len, physical, written },
                    )?;
                    inode.add_blocks(run.len as i64)?;
                }
                change.store(&mut inode)
            }
            fast_commit::Change::Create { dir, name, ino } => {
                let mut inode = change.load(*ino)?;
                if inode.is_dir() && inode.size() == 0 {
                    let block = change.fill_hole(&mut inode, 0..1, true)?;
                    let content = entries::first_block(change.volume, &inode, *dir);
                    change.fresh(block.physical, Kind::Entries, content);
                    inode.set_size(change.volume.block_size() as u64);
                    change.store(&mut inode)?;
                }
                self.link(change, *dir, name, *ino).map(|_| ())
            }
            fast_commit::Change::Link { dir, name, ino } => {
                if self.link(change, *dir, name, *ino)? {
                    self.count(change, at, *ino, 1)?;
                }
                Ok(())
            }
            fast_commit::Change::Unlink { dir, name, ino } => {
                let directory = self.directory(change, *dir)?;
                if let Some(found) =
                    locate(change.volume, &directory, name)?.filter(|found| found.ino == *ino)
                {
                    change.remove_name(&directory, found)?;
                    self.count(change, at, *ino, -1)?;
                }
                Ok(())
            }
        }
    }

    fn directory(&mut self, change: &mut Change<'_>, ino: u32) -> Result<RawInode> {
        self.touched.insert(ino);
        let mut dir = change.load(ino)?;
        if !dir.is_dir() {
            return Err(
                Error::corrupt("a fast commit changes names in it, and it is no directory").in_inode(ino)
            );
        }
        if dir.has(crate::inode::FLAG_INLINE_DATA) {
            change.leave_inline(&mut dir)?;
            change.store(&mut dir)?;
        }
        Ok(dir)
    }

    /// Adds a name: whether it was not there.
    fn link(&mut self, change: &mut Change<'_>, dir: u32, name: &[u8], ino: u32) -> Result<bool> {
        if name.is_empty() || name.len() > 255 || name.contains(&0) || name.contains(&b'/') {
            return Err(Error::corrupt("a fast commit has an impossible name").in_inode(dir));
        }
        let mut directory = self.directory(change, dir)?;
        let kind = change.load(ino)?.kind();
        let kind = kind.ok_or_else(|| Error::corrupt("it is of no type").in_inode(ino))?;
        match locate(change.volume, &directory, name)? {
            Some(found) if found.ino == ino => return Ok(false),
            Some(found) => change.redirect_name(&directory, found, ino, kind)?,
            None => {
                change.insert_name(&mut directory, name, ino, kind)?;
                change.store(&mut directory)?;
            }
        }
        if kind == NodeKind::Directory {
            // It may have moved.
            let inode = change.load(ino)?;
            change.set_parent(&inode, dir)?;
        }
        Ok(true)
    }

    /// An inode has a name more or less, unless its record is still to be told.
    fn count(&mut self, change: &mut Change<'_>, at: usize, ino: u32, by: i32) -> Result<()> {
        self.touched.insert(ino);
        if self.told.get(&ino).is_some_and(|told| *told > at) {
            return Ok(());
        }
        let mut inode = change.load(ino)?;
        let links = i32::from(inode.links()) + by;
        inode.set_links(if inode.is_dir() && by < 0 { 0 } else { links.clamp(0, 65_000) as u16 });
        change.store(&mut inode)
    }

    /// All fields but those that say what the inode takes up come from the log.
    fn record(&mut self, change: &mut Change<'_>, ino: u32, record: &[u8]) -> Result<()> {
        let volume = change.volume;
        if !volume.sb.is_ordinary(ino) {
            return if ino == crate::superblock::ROOT_INO { self.patch(change, ino, record) } else { Ok(()) };
        }
        let is_dir = NodeKind::from_mode(le16(record, 0).into()) == Some(NodeKind::Directory);
        let is_new = change.claim_inode(ino, is_dir)?;
        let other = !is_new && le32(volume.record(ino)?.bytes(), 0x64) != le32(record, 0x64);
        if other {
            // The number's last owner is gone.
            let mut old = change.load(ino)?;
            if old.has(FLAG_EXTENTS) {
                self.cut(change, &mut old, 0..u64::MAX)?;
            } else if old.sectors() > 0 {
                return Err(Error::Unsupported("fast commits over a file with block lists".into()));
            }
        }
        if is_new || other {
            let mut blank = RawInode::new(volume, ino, le32(record, 0x64));
            if le32(record, 0x20) & FLAG_EXTENTS != 0 {
                blank.block_mut().copy_from_slice(&empty_root());
            }
            change.store(&mut blank)?;
        }
        self.patch(change, ino, record)
    }

    fn patch(&mut self, change: &mut Change<'_>, ino: u32, record: &[u8]) -> Result<()> {
        self.touched.insert(ino);
        let volume = change.volume;
        let old = volume.record(ino)?.bytes().to_vec();
        let mut new = old.clone();
        let len = record.len().min(new.len());
        new[..len].copy_from_slice(&record[..len]);
        let is_dir = NodeKind::from_mode(le16(&new, 0).into()) == Some(NodeKind::Directory);
        if le32(&new, 0x20) & FLAG_EXTENTS != 0 {
            let root = BLOCK_AT..BLOCK_AT + BLOCK_LEN;
            new[root.clone()].copy_from_slice(&old[root]);
            for field in BLOCKS_AT {
                new[field.clone()].copy_from_slice(&old[field]);
            }
        } else if is_dir || (volume.sb.is_ordinary(ino) && has_lists(&new)) {
            return Err(Error::Unsupported("fast commits of a file with block lists".into()));
        }
        if is_dir {
            let flags = le32(&new, 0x20) & !FLAG_INDEX | le32(&old, 0x20) & FLAG_INDEX;
            new[0x20..0x24].copy_from_slice(&flags.to_le_bytes());
            for field in [0x4..0x8, 0x6c..0x70] {
                new[field.clone()].copy_from_slice(&old[field]);
            }
        }
        let mut inode = RawInode::of(volume, ino, new);
        change.store(&mut inode)
    }

    /// Takes a range out of a file.
    fn cut(
        &mut self,
        change: &mut Change<'_>,
        inode: &mut RawInode,
        range: std::ops::Range<u64>,
    ) -> Result<()> {
        let end = range.end.min(crate::extents::FILE_BLOCKS);
        let mut at = range.start;
        // Each round goes on to the next leaf.
        while at < end {
            let mut taken = Vec::new();
            at = extent_tree::edit(change, inode, at, &mut |_, extents, leaf| {
                taken = extent_tree::cut(extents, &(range.start.max(leaf.start)..end.min(leaf.end)));
                Ok(())
            })?;
            for extent in taken {
                inode.add_blocks(-(extent.len as i64))?;
                self.freed.extend(extent.physical..extent.physical + extent.len);
            }
        }
        Ok(())
    }

    /// What was given up is free; what has no name goes when the volume is opened.
    fn end(&mut self, change: &mut Change<'_>) -> Result<()> {
        let mut free = self.freed.iter().filter(|block| !self.claimed.contains(block)).copied().peekable();
        while let Some(start) = free.next() {
            let mut end = start + 1;
            while free.next_if_eq(&end).is_some() {
                end += 1;
            }
            change.release(start, end - start)?;
        }
        for ino in &self.touched {
            let mut inode = change.load(*ino)?;
            if inode.links() == 0 && change.volume.sb.is_ordinary(*ino) {
                inode.set_time(CTIME, Timestamp::now());
                change.add_orphan(&mut inode)?;
                change.store(&mut inode)?;
            }
        }
        Ok(())
    }
}

/// Whether i_block leads to blocks of a list: all but devices, short targets of links, and what is inline.
fn has_lists(record: &[u8]) -> bool {
    let sectors = le32(record, 0x1c);
    let kind = NodeKind::from_mode(le16(record, 0).into());
    kind == Some(NodeKind::File) && le32(record, 0x20) & crate::inode::FLAG_INLINE_DATA == 0 && sectors > 0
}
