//! Content that is small enough to lie in the inode itself.
//!
//! Layout: the first 60 bytes are i_block, the rest is the value of the attribute `system.data`, which is
//! always among the attributes in the inode and is not shown as one.

use crate::error::Result;
use crate::inode::{BLOCK_LEN, Inode};
use crate::volume::Volume;
use crate::xattr;

/// The content, as far as it is stored: `inode.size` bytes at most. What is missing reads as zeros: mke2fs,
/// given a tree to start from, makes large files of zeros that way.
pub(crate) fn content(volume: &Volume, inode: &Inode) -> Result<Vec<u8>> {
    let mut content = inode.block.to_vec();
    if inode.size > BLOCK_LEN as u64 {
        content.extend(xattr::inline_data(volume, inode)?.unwrap_or_default());
    }
    content.truncate(usize::try_from(inode.size).unwrap_or(usize::MAX));
    Ok(content)
}
