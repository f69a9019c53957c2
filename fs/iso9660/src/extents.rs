//! Where the data of a file lies: one extent, or several of a file that needs more than one record.
//!
//! A record can name at most 4 GiB less one byte, so a larger file has several of the same name, all but the last
//! marked as "to be continued"; writers store 4 GiB less one block in each. Extents that touch are joined here.

use crate::error::Result;
use crate::image::Image;

/// The extents of a file, in order. Empty for an empty file.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Extents {
    parts: Vec<Extent>,
    /// Bytes of all together.
    size: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Extent {
    /// The byte of the file at which it starts.
    offset: u64,
    /// The byte of the volume at which it starts.
    at: u64,
    /// Bytes; not zero.
    len: u64,
}

impl Extents {
    /// Adds `len` bytes at byte `at` of the volume. Sizes add up to far less than 2^64: a record holds 2^32 at most.
    pub(crate) fn push(&mut self, at: u64, len: u64) {
        match self.parts.last_mut() {
            _ if len == 0 => {}
            Some(last) if last.at + last.len == at => last.len += len,
            _ => self.parts.push(Extent { offset: self.size, at, len }),
        }
        self.size += len;
    }

    /// Bytes.
    pub(crate) fn size(&self) -> u64 {
        self.size
    }

    /// The byte of the volume at which the file starts; `None` for an empty file.
    pub(crate) fn start(&self) -> Option<u64> {
        self.parts.first().map(|part| part.at)
    }

    /// Fills `buf` from byte `offset` of the file, and says how much there was. One read for each extent touched.
    pub(crate) fn read(&self, image: &Image, buf: &mut [u8], offset: u64) -> Result<usize> {
        let wanted = self.size.saturating_sub(offset).min(buf.len() as u64) as usize;
        let mut done = 0;
        let mut index = self.parts.partition_point(|part| part.offset + part.len <= offset);
        while let Some(part) = self.parts.get(index).filter(|_| done < wanted) {
            let skip = offset + done as u64 - part.offset;
            let len = (part.len - skip).min((wanted - done) as u64) as usize;
            image.read(&mut buf[done..done + len], part.at + skip, "the data of a file")?;
            done += len;
            index += 1;
        }
        Ok(done)
    }
}
