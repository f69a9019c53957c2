//! Content of a node, and open files.

use std::sync::Arc;

use veduta_api::{Errno, File, Ioctl, Seek};

use crate::error::Result;
use crate::inline;
use crate::inode::{FLAG_INLINE_DATA, Inode};
use crate::map::Map;
use crate::volume::Volume;

/// `FS_IOC_GETFLAGS`, `FS_IOC_GETVERSION` (linux/fs.h)
const GET_FLAGS: u32 = 0x8008_6601;
const GET_VERSION: u32 = 0x8008_7601;

/// Where the bytes are.
#[derive(Debug)]
pub(crate) enum Content {
    /// In the inode; zeros follow.
    Inline(Vec<u8>),
    /// In blocks.
    Blocks(Map),
}

impl Content {
    pub(crate) fn new(volume: &Volume, inode: &Inode) -> Result<Self> {
        Ok(match inode.has(FLAG_INLINE_DATA) {
            true => Content::Inline(inline::content(volume, inode)?),
            false => Content::Blocks(Map::new(inode.clone())),
        })
    }

    /// Fills `buf` from `offset`; the caller has cut it at the end of the content.
    pub(crate) fn read(&self, volume: &Volume, buf: &mut [u8], offset: u64) -> Result<()> {
        match self {
            Content::Inline(bytes) => {
                let start = usize::try_from(offset).unwrap_or(usize::MAX);
                let part = crate::bytes::slice(bytes, start, buf.len());
                let (stored, rest) = buf.split_at_mut(part.len());
                stored.copy_from_slice(part);
                rest.fill(0);
                Ok(())
            }
            Content::Blocks(map) => map.read(volume, buf, offset),
        }
    }
}

/// A regular file that is open for reading.
#[derive(Debug)]
pub(crate) struct OpenFile {
    volume: Arc<Volume>,
    inode: Inode,
    content: Content,
}

impl OpenFile {
    pub(crate) fn new(volume: Arc<Volume>, inode: Inode) -> Result<Self> {
        let content = Content::new(&volume, &inode)?;
        Ok(Self { volume, inode, content })
    }

    fn seek_blocks(&self, map: &Map, hole: bool, offset: u64) -> Result<Option<u64>> {
        let bits = self.volume.sb.block_bits;
        let end = self.inode.size.div_ceil(1 << bits);
        let found = map.seek(&self.volume, hole, offset >> bits, end)?;
        Ok(found.map(|block| (block << bits).max(offset)))
    }
}

impl File for OpenFile {
    fn read_at(&self, buf: &mut [u8], offset: u64) -> veduta_api::Result<usize> {
        let left = self.inode.size.saturating_sub(offset);
        let len = usize::try_from(left).unwrap_or(usize::MAX).min(buf.len());
        match self.content.read(&self.volume, &mut buf[..len], offset) {
            Ok(()) => Ok(len),
            Err(error) => Err(error.into_errno()),
        }
    }

    fn sync(&self, _data_only: bool) -> veduta_api::Result<()> {
        Ok(())
    }

    fn seek(&self, what: Seek, offset: u64) -> veduta_api::Result<u64> {
        if offset >= self.inode.size {
            return Err(Errno::ENXIO);
        }
        let found = match (&self.content, what) {
            (Content::Inline(_), Seek::Data) => Ok(Some(offset)),
            (Content::Inline(_), Seek::Hole) => Ok(None),
            (Content::Blocks(map), _) => self.seek_blocks(map, what == Seek::Hole, offset),
        };
        match (found, what) {
            (Err(error), _) => Err(error.into_errno()),
            (Ok(Some(place)), _) if place < self.inode.size => Ok(place),
            (Ok(_), Seek::Hole) => Ok(self.inode.size),
            (Ok(_), Seek::Data) => Err(Errno::ENXIO),
        }
    }

    fn ioctl(&self, ioctl: &mut Ioctl<'_>) -> veduta_api::Result<i32> {
        answer(&self.inode, ioctl)
    }
}

/// The requests that files and directories share: `lsattr` and `lsattr -v`.
pub(crate) fn answer(inode: &Inode, ioctl: &mut Ioctl<'_>) -> veduta_api::Result<i32> {
    let number = match ioctl.command {
        GET_FLAGS => inode.shown_flags(),
        GET_VERSION => inode.generation,
        _ => return Err(Errno::ENOTTY),
    };
    // The requests are numbered as if they gave a long; what they give is an int.
    let output = ioctl.output.get_mut(..4).ok_or(Errno::EINVAL)?;
    output.copy_from_slice(&number.to_le_bytes());
    Ok(0)
}
