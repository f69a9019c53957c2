//! Block lists, written: numbers of blocks, and blocks full of numbers.
//!
//! The layout is in [`crate::indirect`]. A block of numbers is made when the first number is put into it, and given back with the last.

use std::ops::Range;

use crate::bytes::le32;
use crate::change::{Change, Kind};
use crate::error::{Error, Result};
use crate::extent_tree::Extent;
use crate::raw::RawInode;
use crate::volume::Volume;

/// Numbers in i_block that lead to content, and those that lead to blocks of numbers.
const DIRECT: u64 = 12;
const LEVELS: u32 = 3;

/// Behind the last block that a file can have.
pub(crate) fn limit(volume: &Volume) -> u64 {
    let bits = volume.sb.block_bits - 2;
    DIRECT + (1..=LEVELS).map(|level| 1u64 << (bits * level)).sum::<u64>()
}

/// Puts a run into a file that has a hole there.
pub(crate) fn put(change: &mut Change<'_>, inode: &mut RawInode, new: Extent) -> Result<()> {
    let bits = change.volume.sb.block_bits - 2;
    let mut new = new;
    // Each round puts at least one block.
    while new.len > 0 {
        let done = if new.start < DIRECT {
            let count = new.len.min(DIRECT - new.start);
            set_numbers(inode.block_mut(), new.start as usize, count, new.physical)?;
            count
        } else {
            let (level, start) = level_of(change.volume, new.start)?;
            let slot = DIRECT as usize + level as usize - 1;
            let mut number = le32(inode.block(), slot * 4);
            if number == 0 {
                number = new_list(change, inode, new.physical)?;
                inode.block_mut()[slot * 4..slot * 4 + 4].copy_from_slice(&number.to_le_bytes());
            }
            let mut start = start;
            for above in (1..level).rev() {
                let index = (new.start - start) >> (bits * above);
                start += index << (bits * above);
                number = child(change, inode, number, index as usize, new.physical)?;
            }
            let index = new.start - start;
            let count = new.len.min((1 << bits) - index);
            let list = checked(change.volume, number, inode.ino)?;
            let mut content = change.volume.block(list)?.to_vec();
            set_numbers(&mut content, index as usize, count, new.physical)?;
            change.set(list, Kind::Map, content);
            count
        };
        new = Extent { start: new.start + done, len: new.len - done, physical: new.physical + done, ..new };
    }
    Ok(())
}

/// Takes blocks out of a range, from its end on, until `budget` runs have been given back: whether that was all.
pub(crate) fn take(
    change: &mut Change<'_>,
    inode: &mut RawInode,
    range: &Range<u64>,
    budget: &mut usize,
) -> Result<bool> {
    let bits = change.volume.sb.block_bits - 2;
    let mut start = limit(change.volume);
    for level in (1..=LEVELS).rev() {
        start -= 1 << (bits * level);
        let slot = (DIRECT as usize + level as usize - 1) * 4;
        let number = le32(inode.block(), slot);
        if number != 0 && range.end > start && range.start < start + (1 << (bits * level)) {
            let (empty, done) = take_below(change, inode, number, level, start, range, budget)?;
            if empty {
                inode.block_mut()[slot..slot + 4].fill(0);
            }
            if !done {
                return Ok(false);
            }
        }
    }
    let mut direct = inode.block()[..DIRECT as usize * 4].to_vec();
    let done = take_numbers(change, inode, &mut direct, 0, range, budget)?;
    inode.block_mut()[..DIRECT as usize * 4].copy_from_slice(&direct);
    Ok(done)
}

/// Whether the list is empty now, and has been given back; whether all of the range was taken.
fn take_below(
    change: &mut Change<'_>,
    inode: &mut RawInode,
    number: u32,
    level: u32,
    start: u64,
    range: &Range<u64>,
    budget: &mut usize,
) -> Result<(bool, bool)> {
    let bits = change.volume.sb.block_bits - 2;
    let list = checked(change.volume, number, inode.ino)?;
    let mut content = change.volume.block(list)?.to_vec();
    let mut done = true;
    if level == 1 {
        done = take_numbers(change, inode, &mut content, start, range, budget)?;
    } else {
        let span = 1u64 << (bits * (level - 1));
        for index in (0..1usize << bits).rev() {
            let below = le32(&content, index * 4);
            let at = start + index as u64 * span;
            if below == 0 || range.end <= at || range.start >= at + span {
                continue;
            }
            let (empty, whole) = take_below(change, inode, below, level - 1, at, range, budget)?;
            if empty {
                content[index * 4..index * 4 + 4].fill(0);
            }
            if !whole {
                done = false;
                break;
            }
        }
    }
    if content.iter().all(|byte| *byte == 0) {
        change.release_meta(list)?;
        inode.add_blocks(-(1 << change.volume.sb.cluster_bits))?;
        return Ok((true, done));
    }
    change.set(list, Kind::Map, content);
    Ok((false, done))
}

/// Gives back the blocks of a list that lie in a range, runs of them together, from the end on.
fn take_numbers(
    change: &mut Change<'_>,
    inode: &mut RawInode,
    numbers: &mut [u8],
    start: u64,
    range: &Range<u64>,
    budget: &mut usize,
) -> Result<bool> {
    let count = (numbers.len() / 4) as u64;
    let first = range.start.saturating_sub(start).min(count) as usize;
    let mut at = range.end.saturating_sub(start).min(count) as usize;
    // Each round goes on by at least one number.
    while at > first {
        let last = le32(numbers, (at - 1) * 4);
        if last == 0 {
            at -= 1;
            continue;
        }
        if *budget == 0 {
            return Ok(false);
        }
        let mut len = 1;
        while at - len > first && last >= len as u32 && le32(numbers, (at - len - 1) * 4) == last - len as u32
        {
            len += 1;
        }
        change.release_content(inode, u64::from(last) + 1 - len as u64, len as u64)?;
        inode.add_blocks(-(len as i64))?;
        numbers[(at - len) * 4..at * 4].fill(0);
        at -= len;
        *budget -= 1;
    }
    Ok(true)
}

fn level_of(volume: &Volume, block: u64) -> Result<(u32, u64)> {
    let bits = volume.sb.block_bits - 2;
    let mut start = DIRECT;
    for level in 1..=LEVELS {
        let covered = 1u64 << (bits * level);
        if block - start < covered {
            return Ok((level, start));
        }
        start += covered;
    }
    Err(veduta_api::Errno::EFBIG.into())
}

/// The list that a number in a list leads to; made if there is none.
fn child(change: &mut Change<'_>, inode: &mut RawInode, list: u32, index: usize, goal: u64) -> Result<u32> {
    let block = checked(change.volume, list, inode.ino)?;
    let number = le32(&change.volume.block(block)?, index * 4);
    if number != 0 {
        return Ok(number);
    }
    let number = new_list(change, inode, goal)?;
    change.edit(block, Kind::Map, |bytes| {
        bytes[index * 4..index * 4 + 4].copy_from_slice(&number.to_le_bytes());
    })?;
    Ok(number)
}

fn new_list(change: &mut Change<'_>, inode: &mut RawInode, goal: u64) -> Result<u32> {
    let block = change.allocate_one(goal)?;
    inode.add_blocks(1 << change.volume.sb.cluster_bits)?;
    let content = vec![0; change.volume.block_size()];
    change.fresh(block, Kind::Map, content);
    u32::try_from(block).map_err(|_| veduta_api::Errno::EFBIG.into())
}

fn set_numbers(list: &mut [u8], index: usize, count: u64, physical: u64) -> Result<()> {
    for step in 0..count {
        let number = u32::try_from(physical + step).map_err(|_| veduta_api::Errno::EFBIG)?;
        let at = (index + step as usize) * 4;
        list[at..at + 4].copy_from_slice(&number.to_le_bytes());
    }
    Ok(())
}

fn checked(volume: &Volume, number: u32, ino: u32) -> Result<u64> {
    match volume.sb.holds(number.into(), 1) {
        true => Ok(number.into()),
        false => {
            let what = format!("a block number of {number} lies outside the volume");
            Err(Error::corrupt(what).in_inode(ino))
        }
    }
}
