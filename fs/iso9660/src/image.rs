//! The volume as bytes: the disk, and how many of them a logical block has.

use veduta_api::Disk;

use crate::error::{Error, Result};

/// Cheap to clone; a clone is the same image.
#[derive(Clone, Debug)]
pub(crate) struct Image {
    pub(crate) disk: Disk,
    /// Bytes: Logical Block Size, one of 512, 1024 and 2048.
    pub(crate) block_size: u32,
}

impl Image {
    pub(crate) fn new(disk: Disk) -> Self {
        Self { disk, block_size: 2048 }
    }

    /// The byte at which a block starts. Block numbers have 33 bits, so this cannot overflow.
    pub(crate) fn byte_of(&self, block: u64) -> u64 {
        block * u64::from(self.block_size)
    }

    /// Fills `buf` from byte `at`; `what` is what lies there, for the message.
    pub(crate) fn read(&self, buf: &mut [u8], at: u64, what: &str) -> Result<()> {
        self.check(at, buf.len() as u64, what)?;
        self.disk.read_at(buf, at).map_err(|errno| Error::Io { errno, at })
    }

    /// The `len` bytes at byte `at`. Memory is taken after the range was found to exist; the caller has bounded it.
    pub(crate) fn read_vec(&self, at: u64, len: usize, what: &str) -> Result<Vec<u8>> {
        self.check(at, len as u64, what)?;
        self.disk.read_vec(at, len).map_err(|errno| Error::Io { errno, at })
    }

    /// Up to `len` bytes at byte `at`, fewer only where the image ends.
    pub(crate) fn read_up_to(&self, at: u64, len: usize, what: &str) -> Result<Vec<u8>> {
        let left = self.disk.size().saturating_sub(at).min(len as u64);
        self.read_vec(at, left.max(1) as usize, what)
    }

    fn check(&self, at: u64, len: u64, what: &str) -> Result<()> {
        let size = self.disk.size();
        match at.checked_add(len) {
            Some(end) if end <= size => Ok(()),
            _ => Err(Error::corrupt(at, format!("{what} lies outside of the image, which has {size} bytes"))),
        }
    }
}
