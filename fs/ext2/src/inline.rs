//! Content that is small enough to lie in the inode itself.
//!
//! Layout: the first 60 bytes are i_block, the rest is the value of the attribute `system.data`, which is
//! always among the attributes in the inode and is not shown as one.
//!
//! # Limits
//!
//! What is changed moves into blocks; nothing new is made inline.

use veduta_api::XattrMode;

use crate::bytes::le32;
use crate::change::{Change, Kind};
use crate::entries;
use crate::error::Result;
use crate::extents::empty_root;
use crate::features::INCOMPAT_EXTENTS;
use crate::inode::{BLOCK_LEN, FLAG_EXTENTS, FLAG_INLINE_DATA, Inode};
use crate::raw::RawInode;
use crate::volume::Volume;
use crate::xattr::{self, INDEX_SYSTEM};

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

impl Change<'_> {
    /// Moves inline content into a block. The caller stores the inode.
    pub(crate) fn leave_inline(&mut self, inode: &mut RawInode) -> Result<()> {
        if !inode.has(FLAG_INLINE_DATA) {
            return Ok(());
        }
        let volume = self.volume;
        let content = content(volume, &volume.any_inode(inode.ino)?)?;
        let ctime = inode.bytes.clone();
        self.put_attribute(inode, (INDEX_SYSTEM, b"data"), None, XattrMode::Set)?;
        inode.keep_ctime(&ctime);
        let extents = volume.sb.features.has_incompat(INCOMPAT_EXTENTS);
        let flags = inode.flags() & !FLAG_INLINE_DATA;
        inode.set_flags(if extents { flags | FLAG_EXTENTS } else { flags });
        inode.block_mut().copy_from_slice(&if extents { empty_root() } else { [0; BLOCK_LEN] });
        if inode.is_dir() {
            let block = self.fill_hole(inode, 0..1, true)?;
            let bytes = directory(volume, inode, &content)?;
            self.fresh(block.physical, Kind::Entries, bytes);
            inode.set_size(volume.block_size() as u64);
            return Ok(());
        }
        if content.iter().any(|byte| *byte != 0) {
            // It is less than an inode, and so less than a block.
            let block = self.fill_hole(inode, 0..1, true)?;
            let mut bytes = content;
            bytes.resize(volume.block_size(), 0);
            volume.disk.write_at(&bytes, block.physical << volume.sb.block_bits)?;
        }
        Ok(())
    }
}

/// The first block of a directory that was inline.
fn directory(volume: &Volume, inode: &RawInode, content: &[u8]) -> Result<Vec<u8>> {
    let parent = le32(content, 0);
    let mut block = entries::first_block(volume, inode, parent);
    let (head, tail) = content.split_at(content.len().min(BLOCK_LEN));
    for part in [head.get(4..).unwrap_or_default(), tail] {
        for (name, target) in entries::inline_names(volume, part)? {
            if !entries::put(volume, &mut block, name, target)? {
                return Err(veduta_api::Errno::ENOSPC.into());
            }
        }
    }
    entries::close(volume, inode, &mut block);
    Ok(block)
}
