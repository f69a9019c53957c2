//! Block lists: how ext2 and ext3 tell where content is.
//!
//! Layout: i_block is 15 numbers of 32 bits. Twelve are the first blocks of the file; the others lead to
//! blocks full of numbers, which lead to content directly, through one more level, or through two more. Zero
//! is a hole, at any level. Nothing carries a checksum.

use crate::bytes::le32;
use crate::error::{Error, Result};
use crate::inode::Inode;
use crate::map::{Leaf, Run};
use crate::volume::Volume;

/// Numbers in i_block that lead to content.
const DIRECT: u64 = 12;

/// The leaf that covers `block`: the direct blocks, one block of numbers, or the whole stretch under a number
/// that is zero.
pub(crate) fn leaf(volume: &Volume, inode: &Inode, block: u64) -> Result<Leaf> {
    leaf_of(volume, &inode.block, block)
}

/// The same, of i_block.
pub(crate) fn leaf_of(volume: &Volume, numbers: &[u8], block: u64) -> Result<Leaf> {
    if block < DIRECT {
        return list(volume, &numbers[..DIRECT as usize * 4], 0);
    }
    let bits = volume.sb.block_bits - 2; // a block holds 2^bits numbers
    let mut start = DIRECT;
    for levels in 1..=3 {
        let covered = 1u64 << (bits * levels);
        if block - start < covered {
            let number = le32(numbers, 4 * (DIRECT as usize + levels as usize - 1));
            return descend(volume, number, levels, start, block);
        }
        start += covered;
    }
    Ok(Leaf::hole(start, u64::MAX))
}

/// Goes down `levels` blocks of numbers, of which `number` is the first and covers the file from `start` on.
fn descend(volume: &Volume, number: u32, levels: u32, start: u64, block: u64) -> Result<Leaf> {
    let bits = volume.sb.block_bits - 2;
    let (mut number, mut start) = (number, start);
    for level in (0..levels).rev() {
        if number == 0 {
            return Ok(Leaf::hole(start, start + (1 << (bits * (level + 1)))));
        }
        let content = volume.block(checked(volume, number)?)?;
        if level == 0 {
            return list(volume, &content, start).map_err(|error| error.in_block(number.into()));
        }
        let index = (block - start) >> (bits * level);
        number = le32(&content, 4 * index as usize);
        start += index << (bits * level);
    }
    Ok(Leaf::default()) // not reached: level 0 returns
}

/// The runs of a list of numbers.
fn list(volume: &Volume, numbers: &[u8], start: u64) -> Result<Leaf> {
    let mut leaf = Leaf::default();
    for (at, number) in (start..).zip(numbers.chunks_exact(4)) {
        let physical = match le32(number, 0) {
            0 => None,
            number => Some(checked(volume, number)?),
        };
        leaf.push(Run { start: at, len: 1, physical });
    }
    Ok(leaf)
}

fn checked(volume: &Volume, number: u32) -> Result<u64> {
    match volume.sb.holds(number.into(), 1) {
        true => Ok(number.into()),
        false => Err(Error::corrupt(format!("a block number of {number} lies outside the volume"))),
    }
}
