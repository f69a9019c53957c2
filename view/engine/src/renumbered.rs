//! Files of the host that processes hold, and that are shown with another device and number than they have.
//!
//! A file that is copied up keeps its numbers (`Filesystem` of a merged tree, `World::puts_numbers_right`), as on the kernel's overlayfs:
//! programs that look at a file again take it for another one otherwise (`git clone` of what lies beside, which makes links). But its
//! descriptor is that of the copy, so `fstat(2)` is put right here. Which descriptors are concerned is told by the inode, as everywhere, and by
//! the time when it was made, since the host may give its number to another file.
//!
//! # Limits
//!
//! `/proc/PID/maps`, `fdinfo` and `locks` show the copy's own numbers.

use std::collections::HashMap;
use std::ffi::CStr;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};

use nix::libc;
use parking_lot::RwLock;
use rustix::fs::{AtFlags, StatxFlags, statx};
use veduta_api::Result;
use veduta_trace::raw::{self, Argument};

use crate::call::{Answer, Call};
use crate::standin::Key;

/// Beyond so many, others are shown as they are.
const MOST: usize = 1 << 18;

/// When an inode was made: seconds and nanoseconds; zeros where the filesystem does not tell.
type Birth = (i64, u32);

/// The files, by what they are.
#[derive(Default)]
pub(crate) struct Renumbered {
    any: AtomicBool,
    shown: RwLock<HashMap<Key, (Birth, Key)>>,
}

impl Renumbered {
    /// A descriptor is about to be handed out, for a node that is shown as `shown`.
    pub(crate) fn note(&self, fd: &OwnedFd, shown: Key) {
        let Ok(real) = crate::fuseplane::key_of_fd(fd.as_fd()) else { return };
        if real == shown {
            return;
        }
        let mut known = self.shown.write();
        if known.len() < MOST || known.contains_key(&real) {
            known.insert(real, (birth(fd), shown));
            self.any.store(true, Ordering::Release);
        }
    }

    /// What a descriptor is to be shown as; `None` as what it is.
    fn of(&self, fd: &OwnedFd) -> Option<Key> {
        let key = crate::fuseplane::key_of_fd(fd.as_fd()).ok()?;
        let (born, shown) = *self.shown.read().get(&key)?;
        (born == birth(fd)).then_some(shown)
    }
}

fn birth(fd: &OwnedFd) -> Birth {
    let data = statx(fd, c"", AtFlags::EMPTY_PATH | AtFlags::STATX_DONT_SYNC, StatxFlags::BTIME);
    data.map_or((0, 0), |data| (data.stx_btime.tv_sec, data.stx_btime.tv_nsec))
}

/// `fstat(2)`, or a relative of it with an empty path; `None` if it is another call, or about another file.
pub(crate) fn stat(call: &Call<'_>, name: &str) -> Result<Option<Answer>> {
    const EMPTY: &CStr = c"";
    if !call.view.renumbered.any.load(Ordering::Acquire) {
        return Ok(None);
    }
    let args = call.args;
    let (flags, buffer) = match name {
        "fstat" => (None, args[1]),
        "newfstatat" => (Some(args[3]), args[2]),
        "statx" => (Some(args[2]), args[4]),
        _ => return Ok(None),
    };
    if let Some(flags) = flags {
        let is_empty = || args[1] == 0 || call.task.read_path(args[1]).is_ok_and(|path| path.is_empty());
        if flags & libc::AT_EMPTY_PATH as u64 == 0 || crate::walk::is_cwd(args[0]) || !is_empty() {
            return Ok(None);
        }
    }
    let Ok(fd) = crate::serve::descriptor(call.task, call.int(0)) else { return Ok(None) };
    let Some((device, ino)) = call.view.renumbered.of(&fd) else { return Ok(None) };
    let number = Argument::Value(fd.as_raw_fd() as u64);
    let bytes = if name == "statx" {
        let mut bytes = vec![0; 256];
        let (flags, mask) = (Argument::Value(args[2]), Argument::Value(args[3]));
        let output = Argument::Output(&mut bytes);
        raw::call(libc::SYS_statx as u32, &mut [number, Argument::Path(EMPTY), flags, mask, output])?;
        bytes[32..40].copy_from_slice(&ino.to_ne_bytes());
        bytes[136..140].copy_from_slice(&libc::major(device).to_ne_bytes());
        bytes[140..144].copy_from_slice(&libc::minor(device).to_ne_bytes());
        bytes
    } else {
        // `struct stat` begins with device and number on all architectures of the table.
        let mut bytes = vec![0; if cfg!(target_arch = "x86_64") { 144 } else { 128 }];
        raw::call(libc::SYS_fstat as u32, &mut [number, Argument::Output(&mut bytes)])?;
        bytes[..8].copy_from_slice(&device.to_ne_bytes());
        bytes[8..16].copy_from_slice(&ino.to_ne_bytes());
        bytes
    };
    call.task.write(buffer, &bytes)?;
    Ok(Some(Answer::Value(0)))
}
