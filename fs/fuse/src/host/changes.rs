//! Changes, and what a host does around them: limits, `chattr +i`, set-user-id and capabilities of what is written.

use std::ffi::OsStr;
use std::sync::atomic::Ordering;

use fuser::INodeNo;
use nix::libc;
use veduta_api::{Attr, Errno, Ino, Ioctl, Perm, Result, Seek, SetAttr, XattrMode};

use super::convert::{Chattr, chattr_call, flags_from_linux, flags_to_linux};
use super::{ACCESS_ACL, CAPABILITY, Host, MAX_XATTR};
use crate::handles::OpenFile;
use crate::policy::Change;

impl Host {
    pub(super) fn do_setattr(&self, ino: Ino, changes: &SetAttr) -> Result<Attr> {
        self.guard(ino, Change::of(changes))?;
        if changes.size.is_some_and(|size| size > self.facts.size_max) {
            return Err(Errno::EFBIG);
        }
        let attr = {
            // Not while its content is on the way to the kernel's cache: that would make it longer again.
            let mut writers = changes.size.map(|_| self.writers.lock());
            if let Some(writers) = &mut writers {
                writers.count += 1;
            }
            self.fs.setattr(ino, changes)?
        };
        if changes.drop_set_id {
            let _ = self.fs.removexattr(ino, OsStr::new(CAPABILITY));
        }
        Ok(attr)
    }

    pub(super) fn do_write(
        &self,
        file: &OpenFile,
        offset: u64,
        data: &[u8],
        drop_set_id: bool,
    ) -> Result<usize> {
        let Some(room) = self.facts.size_max.checked_sub(offset).filter(|room| *room > 0 || data.is_empty())
        else {
            return Err(Errno::EFBIG);
        };
        let data = &data[..data.len().min(usize::try_from(room).unwrap_or(usize::MAX))];
        if drop_set_id {
            let changes = SetAttr { drop_set_id: true, ..SetAttr::default() };
            self.fs.setattr(file.ino, &changes)?;
        }
        self.drop_capabilities(file);
        let written = file.file.write_at(data, offset)?;
        if written > data.len() {
            tracing::error!("the driver says that it wrote more than it was given");
            return Err(Errno::EIO);
        }
        Ok(written)
    }

    pub(super) fn do_setxattr(
        &self,
        ino: Ino,
        name: &OsStr,
        value: &[u8],
        flags: i32,
        acl_kill_sgid: bool,
    ) -> Result<()> {
        if value.len() > MAX_XATTR {
            return Err(Errno::E2BIG);
        }
        self.guard(ino, Change::Any)?;
        let mode = match flags {
            0 => XattrMode::Set,
            libc::XATTR_CREATE => XattrMode::Create,
            libc::XATTR_REPLACE => XattrMode::Replace,
            _ => return Err(Errno::EINVAL),
        };
        self.fs.setxattr(ino, name, value, mode)?;
        if name == CAPABILITY {
            self.capabilities.fetch_add(1, Ordering::AcqRel);
        }
        if acl_kill_sgid && name == ACCESS_ACL {
            let perm = self.fs.getattr(ino)?.perm.bits() & !libc::S_ISGID;
            let changes = SetAttr { perm: Some(Perm::from_mode(perm)), ..SetAttr::default() };
            self.fs.setattr(ino, &changes)?;
        }
        Ok(())
    }

    /// `ioctl(2)`. What the driver does not know but the contract has otherwise, the flags of `chattr`, is done with that.
    pub(super) fn do_ioctl(&self, ino: Ino, file: Option<&OpenFile>, ioctl: &mut Ioctl<'_>) -> Result<i32> {
        let asked = match file {
            Some(file) => file.file.ioctl(ioctl),
            None => self.fs.ioctl(ino, ioctl),
        };
        match (asked, chattr_call(ioctl.command)) {
            (Err(Errno::ENOTTY), Some(Chattr::Get)) => {
                let flags = flags_to_linux(self.fs.getattr(ino)?.flags).to_ne_bytes();
                let room = ioctl.output.len().min(flags.len());
                ioctl.output[..room].copy_from_slice(&flags[..room]);
                Ok(0)
            }
            (Err(Errno::ENOTTY), Some(Chattr::Set)) => {
                let bytes = ioctl.input.first_chunk().ok_or(Errno::EINVAL)?;
                let flags = flags_from_linux(u32::from_ne_bytes(*bytes)).ok_or(Errno::EOPNOTSUPP)?;
                if self.policy.read_only {
                    return Err(Errno::EROFS);
                }
                let attr = self.fs.setattr(ino, &SetAttr { flags: Some(flags), ..SetAttr::default() })?;
                self.attr(&attr);
                Ok(0)
            }
            (Ok(done), Some(Chattr::Set | Chattr::SetMore)) => {
                // The driver knows more flags than the contract. Those that we obey are looked at here.
                self.attr(&self.fs.getattr(ino)?);
                Ok(done)
            }
            (asked, _) => asked,
        }
    }

    /// Has the kernel send what it holds back of a file. It does so by itself before most operations that need it, but not before
    /// `SEEK_DATA` and `SEEK_HOLE` (Linux 6.18), and would then take new data for a hole. Dropping cached pages writes them first.
    pub(super) fn fetch_held_back(&self, ino: Ino) {
        if !self.policy.writeback || !self.writers.lock().by_ino.contains_key(&ino) {
            return;
        }
        if let Some(Err(error)) = self.notifier.get().map(|kernel| kernel.inval_inode(INodeNo(ino.0), 0, 0)) {
            tracing::debug!("the kernel did not write back: {error}");
        }
    }

    /// `SEEK_DATA` and `SEEK_HOLE` of a file that is all data, as far as its driver knows.
    pub(super) fn seek_dense(&self, ino: Ino, what: Seek, offset: u64) -> Result<u64> {
        let size = self.fs.getattr(ino)?.size;
        match what {
            _ if offset >= size => Err(Errno::ENXIO),
            Seek::Data => Ok(offset),
            Seek::Hole => Ok(size),
        }
    }
}
