//! The shape of a file: its size, and where it has blocks. Truncation, `fallocate`, and the end of an inode.
//!
//! Blocks are given back a few runs at a time, so that no transaction grows without bound; a file that is being cut is on the list
//! of orphans meanwhile. The caller holds the node's lock.
//!
//! # Limits
//!
//! `FALLOC_FL_COLLAPSE_RANGE` and `FALLOC_FL_INSERT_RANGE` are one change, and refused (`EFBIG`) for files of more than 4096 extents. As
//! with the kernel, files with block lists can be punched, and know no other kind of `fallocate`.

use std::ops::Range;

use veduta_api::{Allocate, Errno, Kind as NodeKind, Timestamp};

use crate::change::Change;
use crate::error::{Error, Result};
use crate::extent_tree::{self, Extent};
use crate::extents::FILE_BLOCKS;
use crate::features::RO_COMPAT_LARGE_FILE;
use crate::inode::{BLOCK_LEN, FLAG_EXTENTS, FLAG_INLINE_DATA, Inode};
use crate::orphans::bury;
use crate::raw::RawInode;
use crate::space::{self, Stretch};
use crate::volume::Volume;

/// Extents of a file that can be moved in one change.
const MOVED_MAX: usize = 4096;
/// Holes that one change fills.
const FILLED_MAX: usize = 16;
/// Longer files need a feature.
const SMALL_FILE: u64 = 1 << 31;
/// The longest write of zeros.
const ZEROS: usize = 1 << 16;

/// Whether i_block says where content is.
fn has_map(inode: &RawInode) -> bool {
    let slow = inode.size() >= BLOCK_LEN as u64 || inode.has(FLAG_EXTENTS);
    match inode.kind() {
        Some(NodeKind::File | NodeKind::Directory) => !inode.has(FLAG_INLINE_DATA),
        Some(NodeKind::Symlink) => slow && !inode.has(FLAG_INLINE_DATA),
        _ => false,
    }
}

/// Gives back an inode without a name, with all that it has.
pub(crate) fn delete(volume: &Volume, ino: u32) -> Result<()> {
    if let Some(node) = volume.holding.find(ino) {
        volume.discard_held(&node);
    }
    let step = |change: &mut Change<'_>| {
        if !change.meta.orphans.contains(&ino) {
            // Somebody else was faster.
            return Ok(true);
        }
        let mut inode = change.load(ino)?;
        let done = !has_map(&inode) || change.take_range(&mut inode, &(0..u64::MAX))?;
        if done {
            change.drop_attribute_block(&mut inode)?;
            change.remove_orphan(&mut inode)?;
            let is_dir = inode.is_dir();
            bury(&mut inode);
            change.store(&mut inode)?;
            change.release_inode(ino, is_dir)?;
        } else {
            change.store(&mut inode)?;
        }
        Ok(done)
    };
    // Each step gives back something.
    while !volume.change(step)? {}
    Ok(())
}

/// Gives back the blocks behind the end of a file, which is on the list of orphans.
pub(crate) fn cut(volume: &Volume, ino: u32) -> Result<()> {
    let step = |change: &mut Change<'_>| {
        let mut inode = change.load(ino)?;
        let end = inode.size().div_ceil(volume.block_size() as u64);
        let done = !has_map(&inode) || change.take_range(&mut inode, &(end..u64::MAX))?;
        if done {
            change.remove_orphan(&mut inode)?;
        }
        change.store(&mut inode)?;
        Ok(done)
    };
    while !volume.change(step)? {}
    Ok(())
}

/// Makes a file shorter or longer; new bytes read as zeros.
pub(crate) fn truncate(volume: &Volume, ino: u32, size: u64) -> Result<()> {
    let bits = volume.sb.block_bits;
    let done = volume.change(|change| {
        let mut inode = change.load(ino)?;
        change.leave_inline(&mut inode)?;
        let old = inode.size();
        check_size(change, &inode, size)?;
        clear_tail(volume, &inode, old.min(size))?;
        inode.set_size(size);
        inode.touch();
        let done = size >= old || change.take_range(&mut inode, &(size.div_ceil(1 << bits)..u64::MAX))?;
        if !done {
            change.add_orphan(&mut inode)?;
        }
        change.store(&mut inode)?;
        Ok(done)
    })?;
    if done { Ok(()) } else { cut(volume, ino) }
}

/// Whether a file of this layout can be so long. Long files need a feature, which is noted.
pub(crate) fn check_size(change: &mut Change<'_>, inode: &RawInode, size: u64) -> Result<()> {
    let volume = change.volume;
    if size > (space::limit(volume, inode) << volume.sb.block_bits) {
        return Err(Errno::EFBIG.into());
    }
    if size < SMALL_FILE || volume.sb.features.has_ro_compat(RO_COMPAT_LARGE_FILE) {
        return Ok(());
    }
    if volume.sb.facts.revision == 0 {
        return Err(Errno::EFBIG.into());
    }
    change.edit_super(|sb| sb[0x64] |= RO_COMPAT_LARGE_FILE as u8)
}

/// Clears the rest of the block that byte `from` is in, if it is in one that holds content.
pub(crate) fn clear_tail(volume: &Volume, inode: &RawInode, from: u64) -> Result<()> {
    let size = volume.block_size() as u64;
    match from % size {
        0 => Ok(()),
        within => clear(volume, inode, from..from - within + size),
    }
}

/// Writes zeros over a range within one block, if it holds content.
fn clear(volume: &Volume, inode: &RawInode, range: Range<u64>) -> Result<()> {
    let bits = volume.sb.block_bits;
    let block = range.start >> bits;
    if let Stretch::Has(Extent { physical, written: true, .. }) =
        space::find(volume, inode, block, block + 1)?
    {
        volume.check_content(physical, 1)?;
        let zeros = vec![0; (range.end - range.start) as usize];
        volume.disk.write_at(&zeros, (physical << bits) + range.start - (block << bits))?;
    }
    Ok(())
}

/// `fallocate`.
pub(crate) fn allocate(volume: &Volume, ino: u32, how: Allocate, offset: u64, len: u64) -> Result<()> {
    let end = offset.checked_add(len).filter(|_| len > 0).ok_or(Errno::EINVAL)?;
    if volume.any_inode(ino)?.has(FLAG_INLINE_DATA) {
        volume.change(|change| {
            let mut inode = change.load(ino)?;
            change.leave_inline(&mut inode)?;
            change.store(&mut inode)
        })?;
    }
    let layout = volume.any_inode(ino)?;
    if !layout.has(FLAG_EXTENTS) && how != Allocate::PunchHole {
        return Err(Errno::EOPNOTSUPP.into());
    }
    match how {
        Allocate::Extend => reserve(volume, ino, offset..end, true),
        Allocate::KeepSize => reserve(volume, ino, offset..end, false),
        Allocate::PunchHole => punch(volume, ino, offset..end),
        Allocate::ZeroRange { keep_size } => {
            zero(volume, ino, offset..end)?;
            reserve(volume, ino, offset..end, !keep_size)
        }
        Allocate::Collapse => collapse(volume, ino, offset..end),
        Allocate::Insert => insert(volume, ino, offset..end),
    }
}

/// Gives the holes of a range blocks that read as zeros.
fn reserve(volume: &Volume, ino: u32, range: Range<u64>, grow: bool) -> Result<()> {
    let bits = volume.sb.block_bits;
    let end = range.end.div_ceil(1 << bits);
    let mut at = range.start >> bits;
    volume.change(|change| {
        let inode = change.load(ino)?;
        let size = if grow { range.end } else { 0 };
        check_size(change, &inode, size.max(inode.size()))?;
        if end > space::limit(volume, &inode) { Err(Errno::EFBIG.into()) } else { Ok(()) }
    })?;
    // Each round goes on by at least one block.
    loop {
        let start = at;
        let next = volume.change(|change| {
            let mut inode = change.load(ino)?;
            let (mut at, mut filled) = (start, 0);
            while at < end && filled < FILLED_MAX {
                at = match space::find(volume, &inode, at, end)? {
                    Stretch::Hole(first, len) => {
                        filled += 1;
                        change.fill_hole(&mut inode, first..first + len, false)?.end()
                    }
                    has => has.end(),
                };
            }
            // What is there already is seen at once, so that a full disk leaves no reserve behind the end.
            let reached = range.end.min(at << bits);
            if grow && reached > inode.size() {
                clear_tail(volume, &inode, inode.size())?;
                inode.set_size(reached);
            }
            inode.touch();
            change.store(&mut inode)?;
            Ok(at)
        })?;
        if next >= end {
            return Ok(());
        }
        at = next;
    }
}

/// Clears the parts of blocks at the edges of a range; the whole blocks in it.
fn clear_edges(volume: &Volume, inode: &RawInode, range: &Range<u64>) -> Result<Range<u64>> {
    let size = volume.block_size() as u64;
    let bits = volume.sb.block_bits;
    let (first, last) = (range.start.div_ceil(size), range.end >> bits);
    if first > last {
        clear(volume, inode, range.clone())?;
        return Ok(first..first);
    }
    if range.start % size != 0 {
        clear(volume, inode, range.start..first * size)?;
    }
    if range.end % size != 0 {
        clear(volume, inode, last * size..range.end)?;
    }
    Ok(first..last)
}

fn punch(volume: &Volume, ino: u32, range: Range<u64>) -> Result<()> {
    loop {
        let done = volume.change(|change| {
            let mut inode = change.load(ino)?;
            let whole = clear_edges(volume, &inode, &range)?;
            let done = whole.is_empty() || change.take_range(&mut inode, &whole)?;
            inode.touch();
            change.store(&mut inode)?;
            Ok(done)
        })?;
        if done {
            return Ok(());
        }
    }
}

/// What a file has in a range reads as zeros from now on, and keeps its blocks.
fn zero(volume: &Volume, ino: u32, range: Range<u64>) -> Result<()> {
    volume.change(|change| {
        let mut inode = change.load(ino)?;
        let whole = clear_edges(volume, &inode, &range)?;
        let mut at = whole.start;
        // Each round goes on to the next leaf.
        while at < whole.end {
            at = extent_tree::edit(change, &mut inode, at, &mut |_, extents, leaf| {
                let part = whole.start.max(leaf.start)..whole.end.min(leaf.end);
                for extent in extent_tree::cut(extents, &part) {
                    for part in pieces(extent) {
                        extent_tree::put(extents, Extent { written: false, ..part });
                    }
                }
                Ok(())
            })?;
        }
        inode.touch();
        change.store(&mut inode)
    })
}

/// An extent in parts that are short enough to be unwritten.
fn pieces(extent: Extent) -> impl Iterator<Item = Extent> {
    let longest = crate::extents::MAX_LEN - 1;
    let starts = (extent.start..extent.end()).step_by(longest as usize);
    starts.filter_map(move |start| extent.within(&(start..start + longest)))
}

/// Whole blocks of a range; `EINVAL` if it has others.
fn whole(volume: &Volume, range: &Range<u64>) -> Result<Range<u64>> {
    let (bits, size) = (volume.sb.block_bits, volume.block_size() as u64);
    // Clusters move as a whole.
    let size = size << volume.sb.cluster_bits;
    match range.start % size == 0 && range.end % size == 0 {
        true => Ok(range.start >> bits..range.end >> bits),
        false => Err(Errno::EINVAL.into()),
    }
}

fn collapse(volume: &Volume, ino: u32, range: Range<u64>) -> Result<()> {
    let blocks = whole(volume, &range)?;
    if range.end >= volume.any_inode(ino)?.size {
        return Err(Errno::EINVAL.into());
    }
    volume.change(|change| {
        let mut inode = change.load(ino)?;
        let mut all = extent_tree::all(volume, &inode, MOVED_MAX)?.ok_or(Errno::EFBIG)?;
        let gone = extent_tree::cut(&mut all, &blocks);
        let mut rest = inode.clone();
        change.release_taken(&mut rest, &gone, &|_| Ok(false))?;
        inode = rest;
        let len = blocks.end - blocks.start;
        let moved = all.into_iter().map(|extent| match extent.start >= blocks.end {
            true => Extent { start: extent.start - len, ..extent },
            false => extent,
        });
        let mut joined = Vec::new();
        moved.for_each(|extent| extent_tree::put(&mut joined, extent));
        extent_tree::replace_all(change, &mut inode, &joined)?;
        inode.set_size(inode.size() - (range.end - range.start));
        inode.touch();
        change.store(&mut inode)
    })
}

fn insert(volume: &Volume, ino: u32, range: Range<u64>) -> Result<()> {
    let blocks = whole(volume, &range)?;
    if range.start >= volume.any_inode(ino)?.size {
        return Err(Errno::EINVAL.into());
    }
    volume.change(|change| {
        let mut inode = change.load(ino)?;
        let len = blocks.end - blocks.start;
        let size = inode.size().checked_add(range.end - range.start).ok_or(Errno::EFBIG)?;
        check_size(change, &inode, size)?;
        let mut all = extent_tree::all(volume, &inode, MOVED_MAX)?.ok_or(Errno::EFBIG)?;
        if all.last().is_some_and(|last| last.end() + len > space::limit(volume, &inode)) {
            return Err(Errno::EFBIG.into());
        }
        let behind = extent_tree::cut(&mut all, &(blocks.start..u64::MAX));
        all.extend(behind.into_iter().map(|extent| Extent { start: extent.start + len, ..extent }));
        extent_tree::replace_all(change, &mut inode, &all)?;
        inode.set_size(size);
        inode.touch();
        change.store(&mut inode)
    })
}

/// How content is written.
#[derive(Clone, Copy, Debug)]
pub(crate) struct How {
    /// When it was given; `None` if times were set since.
    pub(crate) time: Option<Timestamp>,
    /// Clusters that were promised for it.
    pub(crate) credit: u64,
    /// Whether more is to come: then a file that grows keeps room behind its end.
    pub(crate) ahead: bool,
}

/// The most bytes that a file of this layout can have.
pub(crate) fn longest(volume: &Volume, inode: &Inode) -> u64 {
    let blocks = match inode.has(FLAG_EXTENTS) {
        true => FILE_BLOCKS - 1,
        false => crate::block_lists::limit(volume),
    };
    blocks << volume.sb.block_bits
}

/// Writes content at `offset`, and says how much; less than asked for only if the space ran out.
pub(crate) fn write(volume: &Volume, ino: u32, buf: &[u8], offset: u64, how: How) -> Result<usize> {
    const PART: usize = 4 << 20;
    let mut done = 0;
    for part in buf.chunks(PART) {
        match write_part(volume, ino, part, offset + done as u64, how) {
            Ok(len) if len == part.len() => done += len,
            Ok(len) => return Ok(done + len),
            Err(_) if done > 0 => return Ok(done),
            Err(error) => return Err(error),
        }
    }
    Ok(done)
}

fn write_part(volume: &Volume, ino: u32, buf: &[u8], offset: u64, how: How) -> Result<usize> {
    let write = |buf: &[u8], offset| write_once(volume, ino, buf, offset, how);
    // What was promised needs nobody else's room.
    let make_room = || if how.credit > 0 { volume.commit_freed() } else { volume.make_room() };
    match write(buf, offset) {
        Err(Error::Errno(Errno::ENOSPC)) if make_room()? => write(buf, offset),
        Ok(len) if len < buf.len() && make_room()? => match write(&buf[len..], offset + len as u64) {
            Ok(more) => Ok(len + more),
            Err(_) => Ok(len),
        },
        done => done,
    }
}

/// Where the content of a write goes.
struct Plan {
    /// Stretches, and whether nothing was in them before.
    parts: Vec<(Extent, bool)>,
    old_size: u64,
    end: u64,
}

fn write_once(volume: &Volume, ino: u32, buf: &[u8], offset: u64, how: How) -> Result<usize> {
    let handle = volume.begin()?;
    let plan = handle.change(|change| {
        (change.credit, change.ahead) = (how.credit, how.ahead);
        plan(change, ino, offset, offset + buf.len() as u64, how.time)
    })?;
    let len = (plan.end - offset) as usize;
    let written = plan
        .parts
        .iter()
        .try_for_each(|(extent, fresh)| write_extent(volume, extent, *fresh, &buf[..len], offset));
    if let Err(error) = written {
        // Nobody may see what is in the new blocks.
        handle.change(|change| {
            let mut inode = change.load(ino)?;
            for (extent, _) in plan.parts.iter().filter(|(_, fresh)| *fresh) {
                while !change.take_range(&mut inode, &(extent.start..extent.end()))? {}
            }
            inode.set_size(plan.old_size);
            change.store(&mut inode)
        })?;
        return Err(error);
    }
    Ok(len)
}

fn plan(change: &mut Change<'_>, ino: u32, offset: u64, end: u64, time: Option<Timestamp>) -> Result<Plan> {
    let volume = change.volume;
    let bits = volume.sb.block_bits;
    let mut inode = change.load(ino)?;
    change.leave_inline(&mut inode)?;
    let old_size = inode.size();
    check_size(change, &inode, end.max(old_size))?;
    if offset > old_size {
        clear_tail(volume, &inode, old_size)?;
    }
    let last = end.div_ceil(1 << bits);
    let mut at = offset >> bits;
    let mut parts: Vec<(Extent, bool)> = Vec::new();
    // Each round goes on by at least one block.
    while at < last {
        let part = match space::find(volume, &inode, at, last)? {
            Stretch::Has(extent) if extent.written => {
                volume.check_content(extent.physical, extent.len)?;
                (extent, false)
            }
            Stretch::Has(extent) => {
                volume.check_content(extent.physical, extent.len)?;
                change.mark_written(&mut inode, &(extent.start..extent.end()))?;
                (extent, true)
            }
            Stretch::Hole(start, len) => {
                let before = inode.clone();
                match change.attempt(|change| change.fill_hole(&mut inode, start..start + len, true)) {
                    Ok(extent) => (extent, true),
                    Err(Error::Errno(Errno::ENOSPC)) if !parts.is_empty() => {
                        inode = before;
                        break;
                    }
                    Err(error) => return Err(error),
                }
            }
        };
        at = part.0.end();
        parts.push(part);
    }
    let end = end.min(at << bits);
    if end > old_size {
        inode.set_size(end);
    }
    if let Some(time) = time {
        inode.touch_at(time);
    }
    change.store(&mut inode)?;
    Ok(Plan { parts, old_size, end })
}

/// Writes the part of `buf` (which is for `offset`) that lies in an extent. What a new extent has beside that is cleared.
fn write_extent(volume: &Volume, extent: &Extent, fresh: bool, buf: &[u8], offset: u64) -> Result<()> {
    let (bits, size) = (volume.sb.block_bits, volume.block_size() as u64);
    let (start, end) = (extent.start << bits, extent.end() << bits);
    let place = extent.physical << bits;
    let (from, to) = (start.max(offset), end.min(offset + buf.len() as u64));
    let part = &buf[(from - offset) as usize..(to - offset) as usize];
    if !fresh {
        return Ok(volume.disk.write_at(part, place + from - start)?);
    }
    let (head, tail) = ((from - start) as usize, (end - to) as usize);
    if head == 0 && tail == 0 {
        return Ok(volume.disk.write_at(part, place)?);
    }
    if part.len() + head + tail <= ZEROS.max(2 * size as usize) {
        let mut whole = vec![0; part.len() + head + tail];
        whole[head..head + part.len()].copy_from_slice(part);
        return Ok(volume.disk.write_at(&whole, place)?);
    }
    volume.disk.write_at(&vec![0; head], place)?;
    volume.disk.write_at(part, place + from - start)?;
    Ok(volume.disk.write_at(&vec![0; tail], place + to - start)?)
}
