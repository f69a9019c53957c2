//! An open file of the host system.

use std::fs::File as StdFile;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::FileExt;

use rustix::fs::{FallocateFlags, IFlags, Mode, OFlags, SeekFrom};
use veduta_api::{Allocate, Errno, File, Ioctl, Result, Seek};

use super::{delayed, errno, proc_path};

pub(super) struct HostFile {
    file: StdFile,
    is_writable: bool,
    /// Whether a close may tell of errors of writes.
    tells_at_close: bool,
}

impl AsFd for HostFile {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

impl HostFile {
    pub(super) fn new(file: StdFile, is_writable: bool, is_local: bool) -> Self {
        Self { file, is_writable, tells_at_close: is_writable && !is_local }
    }

    pub(super) fn is_writable(&self) -> bool {
        self.is_writable
    }

    pub(super) fn set_size(&self, size: u64) -> Result<()> {
        rustix::fs::ftruncate(&self.file, size).map_err(errno)
    }
}

/// `FS_IOC_GETFLAGS` and `FS_IOC_SETFLAGS`: what lsattr(1) and chattr(1) show and change.
pub(super) fn flags(fd: impl AsFd, ioctl: &mut Ioctl<'_>) -> Result<i32> {
    const GET: u32 = 0x8008_6601;
    const SET: u32 = 0x4008_6602;
    match ioctl.command {
        GET => {
            let flags = rustix::fs::ioctl_getflags(fd).map_err(errno)?;
            let room = ioctl.output.get_mut(..4).ok_or(Errno::EINVAL)?;
            room.copy_from_slice(&flags.bits().to_ne_bytes());
        }
        SET => {
            let word = ioctl.input.first_chunk().ok_or(Errno::EINVAL)?;
            let flags = IFlags::from_bits_retain(u32::from_ne_bytes(*word));
            rustix::fs::ioctl_setflags(fd, flags).map_err(errno)?;
        }
        _ => return Err(Errno::ENOTTY),
    }
    Ok(0)
}

impl File for HostFile {
    fn read_at(&self, buf: &mut [u8], offset: u64) -> Result<usize> {
        let mut done = 0;
        while done < buf.len() {
            match self.file.read_at(&mut buf[done..], offset + done as u64) {
                Ok(0) => break,
                Ok(len) => done += len,
                Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
                Err(error) => return Err(io_errno(&error)),
            }
        }
        Ok(done)
    }

    fn write_at(&self, buf: &[u8], offset: u64) -> Result<usize> {
        let mut done = 0;
        while done < buf.len() {
            match self.file.write_at(&buf[done..], offset + done as u64) {
                Ok(0) => break,
                Ok(len) => done += len,
                Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
                Err(_) if done > 0 => break,
                Err(error) => return Err(io_errno(&error)),
            }
        }
        Ok(done)
    }

    /// NFS, SMB and FUSE write what they hold back when any descriptor of a file is closed, and tell that one's close what became of it.
    fn flush(&self) -> Result<()> {
        if !self.tells_at_close {
            return Ok(());
        }
        let copy = self.file.try_clone().map_err(|error| io_errno(&error))?;
        nix::unistd::close(copy)
    }

    fn sync(&self, data_only: bool) -> Result<()> {
        if data_only { rustix::fs::fdatasync(&self.file) } else { rustix::fs::fsync(&self.file) }
            .map_err(errno)
    }

    fn ioctl(&self, ioctl: &mut Ioctl<'_>) -> Result<i32> {
        match ioctl.command {
            delayed::COMMAND => delayed::allocate(&self.file).map(|()| 0),
            _ => flags(&self.file, ioctl),
        }
    }

    fn allocate(&self, how: Allocate, offset: u64, len: u64) -> Result<()> {
        let flags = match how {
            Allocate::Extend => FallocateFlags::empty(),
            Allocate::KeepSize => FallocateFlags::KEEP_SIZE,
            Allocate::PunchHole => FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE,
            Allocate::ZeroRange { keep_size: false } => FallocateFlags::ZERO_RANGE,
            Allocate::ZeroRange { keep_size: true } => FallocateFlags::ZERO_RANGE | FallocateFlags::KEEP_SIZE,
            Allocate::Collapse => FallocateFlags::COLLAPSE_RANGE,
            Allocate::Insert => FallocateFlags::INSERT_RANGE,
        };
        rustix::fs::fallocate(&self.file, flags, offset, len).map_err(errno)
    }

    /// On a descriptor of its own: this one may have been handed to a process, whose position it would move.
    fn seek(&self, what: Seek, offset: u64) -> Result<u64> {
        let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK;
        let own =
            rustix::fs::open(proc_path(&self.file), flags, Mode::empty()).map_err(|_| Errno::EOPNOTSUPP)?;
        let from = match what {
            Seek::Data => SeekFrom::Data(offset),
            Seek::Hole => SeekFrom::Hole(offset),
        };
        rustix::fs::seek(own, from).map_err(errno)
    }

    fn backing(&self) -> Option<BorrowedFd<'_>> {
        Some(self.file.as_fd())
    }
}

fn io_errno(error: &std::io::Error) -> Errno {
    error.raw_os_error().map_or(Errno::EIO, Errno::from_raw)
}
