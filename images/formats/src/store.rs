//! Where the bytes of an image are: a file that grows, or memory.

use std::fs::File;
use std::ops::Range;
use std::os::unix::fs::FileExt;

use nix::fcntl::{FallocateFlags, fallocate};
use nix::unistd::{Whence, fdatasync, lseek};
use parking_lot::RwLock;
use veduta_api::{Errno, Result};

/// The bytes of an image. Unlike a disk they grow: a write behind the end makes them longer, and what lies behind the end reads as zeros,
/// as does what is left out.
pub trait Store: Send + Sync {
    /// Bytes.
    fn len(&self) -> Result<u64>;

    /// Whether there are none.
    fn is_empty(&self) -> Result<bool> {
        Ok(self.len()? == 0)
    }

    /// Fills `buf` from `offset`; behind the end with zeros.
    fn read_at(&self, buf: &mut [u8], offset: u64) -> Result<()>;

    /// Writes all of `buf` at `offset`.
    fn write_at(&self, buf: &[u8], offset: u64) -> Result<()>;

    /// Cuts or extends.
    fn set_len(&self, len: u64) -> Result<()>;

    /// Returns when everything written is on stable storage.
    fn flush(&self) -> Result<()>;

    /// Makes a range read as zeros and gives its space back. `EOPNOTSUPP` if that cannot be done without writing.
    fn punch(&self, offset: u64, len: u64) -> Result<()>;

    /// The first range at or after `offset` that may hold something other than zeros.
    fn next_data(&self, offset: u64) -> Result<Option<Range<u64>>>;

    /// The `len` bytes at `offset`; the caller bounds `len`.
    fn read_vec(&self, offset: u64, len: usize) -> Result<Vec<u8>> {
        let mut buf = vec![0; len];
        self.read_at(&mut buf, offset)?;
        Ok(buf)
    }
}

fn errno(error: &std::io::Error) -> Errno {
    error.raw_os_error().map_or(Errno::EIO, Errno::from_raw)
}

/// An open file of the system.
pub struct FileStore(pub File);

impl Store for FileStore {
    /// A block device says 0 here, and has its size at its end.
    fn len(&self) -> Result<u64> {
        let len = self.0.metadata().map_err(|error| errno(&error))?.len();
        if len > 0 { Ok(len) } else { Ok(lseek(&self.0, 0, Whence::SeekEnd).unwrap_or(0) as u64) }
    }

    fn read_at(&self, buf: &mut [u8], offset: u64) -> Result<()> {
        let mut done = 0;
        while done < buf.len() {
            let at = offset.checked_add(done as u64).ok_or(Errno::EINVAL)?;
            match self.0.read_at(&mut buf[done..], at) {
                Ok(0) => {
                    buf[done..].fill(0);
                    break;
                }
                Ok(count) => done += count,
                Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
                Err(error) => return Err(errno(&error)),
            }
        }
        Ok(())
    }

    fn write_at(&self, buf: &[u8], offset: u64) -> Result<()> {
        self.0.write_all_at(buf, offset).map_err(|error| errno(&error))
    }

    fn set_len(&self, len: u64) -> Result<()> {
        self.0.set_len(len).map_err(|error| errno(&error))
    }

    fn flush(&self) -> Result<()> {
        fdatasync(&self.0)
    }

    fn punch(&self, offset: u64, len: u64) -> Result<()> {
        let signed = |bytes: u64| i64::try_from(bytes).map_err(|_| Errno::EFBIG);
        let how = FallocateFlags::FALLOC_FL_PUNCH_HOLE | FallocateFlags::FALLOC_FL_KEEP_SIZE;
        fallocate(&self.0, how, signed(offset)?, signed(len)?)
    }

    fn next_data(&self, offset: u64) -> Result<Option<Range<u64>>> {
        let len = self.len()?;
        let rest = (offset < len).then_some(offset..len);
        let Ok(from) = i64::try_from(offset) else { return Ok(None) };
        let start = match lseek(&self.0, from, Whence::SeekData) {
            Ok(start) => start,
            Err(Errno::ENXIO) => return Ok(None),
            Err(_) => return Ok(rest),
        };
        match lseek(&self.0, start, Whence::SeekHole) {
            Ok(end) => Ok(Some(start as u64..end as u64)),
            Err(_) => Ok(rest),
        }
    }
}

/// Memory, up to a limit: for tests and for fuzzers.
pub struct MemoryStore {
    bytes: RwLock<Vec<u8>>,
    limit: u64,
}

impl MemoryStore {
    /// These bytes; growing beyond `limit` gives `ENOSPC`.
    pub fn new(bytes: Vec<u8>, limit: u64) -> Self {
        Self { bytes: RwLock::new(bytes), limit }
    }
}

impl Store for MemoryStore {
    fn len(&self) -> Result<u64> {
        Ok(self.bytes.read().len() as u64)
    }

    fn read_at(&self, buf: &mut [u8], offset: u64) -> Result<()> {
        let bytes = self.bytes.read();
        let rest = usize::try_from(offset).ok().and_then(|at| bytes.get(at..)).unwrap_or_default();
        let len = rest.len().min(buf.len());
        buf[..len].copy_from_slice(&rest[..len]);
        buf[len..].fill(0);
        Ok(())
    }

    fn write_at(&self, buf: &[u8], offset: u64) -> Result<()> {
        let end =
            offset.checked_add(buf.len() as u64).filter(|end| *end <= self.limit).ok_or(Errno::ENOSPC)?;
        let mut bytes = self.bytes.write();
        if bytes.len() < end as usize {
            bytes.resize(end as usize, 0);
        }
        bytes[offset as usize..end as usize].copy_from_slice(buf);
        Ok(())
    }

    fn set_len(&self, len: u64) -> Result<()> {
        if len > self.limit {
            return Err(Errno::ENOSPC);
        }
        self.bytes.write().resize(len as usize, 0);
        Ok(())
    }

    fn flush(&self) -> Result<()> {
        Ok(())
    }

    fn punch(&self, offset: u64, len: u64) -> Result<()> {
        let mut bytes = self.bytes.write();
        let end = offset.saturating_add(len).min(bytes.len() as u64) as usize;
        if let Some(range) = bytes.get_mut(offset.min(end as u64) as usize..end) {
            range.fill(0);
        }
        Ok(())
    }

    fn next_data(&self, offset: u64) -> Result<Option<Range<u64>>> {
        let len = self.len()?;
        Ok((offset < len).then_some(offset..len))
    }
}
