//! unsafe: one ioctl of ext4, which `rustix` leaves to be declared.

#![allow(unsafe_code)]

use std::os::fd::AsFd;

use rustix::ioctl::{NoArg, Opcode, ioctl, opcode};
use veduta_api::Result;

use super::errno;

/// `EXT4_IOC_ALLOC_DA_BLKS` (Documentation/admin-guide/ext4.rst, "Ioctls").
const OPCODE: Opcode = opcode::none(b'f', 12);

/// The same, as it comes from a caller.
pub(super) const COMMAND: u32 = OPCODE;

/// Has ext4 choose the blocks of what was written, and begin to write it, without waiting. `ENOTTY` on other filesystems.
pub(super) fn allocate(file: impl AsFd) -> Result<()> {
    // SAFETY: the request has no argument, so the kernel reads and writes no memory of ours.
    unsafe { ioctl(file, NoArg::<OPCODE>::new()) }.map_err(errno)
}
