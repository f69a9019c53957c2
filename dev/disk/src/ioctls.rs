//! unsafe: the ioctls of block devices (`linux/fs.h`), which `nix` leaves to be declared, each as a safe function.

#![allow(unsafe_code)]

use std::fs::File;
use std::os::fd::AsRawFd;

use nix::libc::{c_int, c_uint, c_ushort};
use veduta_api::Result;

mod raw {
    use nix::libc::{c_int, c_uint, c_ushort};
    use nix::{ioctl_read, ioctl_read_bad, ioctl_write_ptr_bad, request_code_none};

    ioctl_read!(blkgetsize64, 0x12, 114, u64);
    ioctl_read_bad!(blkroget, request_code_none!(0x12, 94), c_int);
    ioctl_read_bad!(blksszget, request_code_none!(0x12, 104), c_int);
    ioctl_write_ptr_bad!(blkdiscard, request_code_none!(0x12, 119), [u64; 2]);
    ioctl_read_bad!(blkioopt, request_code_none!(0x12, 121), c_uint);
    ioctl_read_bad!(blkpbszget, request_code_none!(0x12, 123), c_uint);
    ioctl_read_bad!(blkrotational, request_code_none!(0x12, 126), c_ushort);
    ioctl_write_ptr_bad!(blkzeroout, request_code_none!(0x12, 127), [u64; 2]);
}

/// `BLKGETSIZE64`: bytes.
pub(crate) fn size(device: &File) -> Result<u64> {
    let mut size = 0;
    // SAFETY: the kernel writes 64 bits to the pointer, which is valid for the call; `device` keeps its descriptor open.
    unsafe { raw::blkgetsize64(device.as_raw_fd(), &mut size) }?;
    Ok(size)
}

/// `BLKROGET`: whether the device cannot be written.
pub(crate) fn is_read_only(device: &File) -> Result<bool> {
    let mut flag: c_int = 0;
    // SAFETY: the kernel writes an `int` to the pointer, which is valid for the call.
    unsafe { raw::blkroget(device.as_raw_fd(), &mut flag) }?;
    Ok(flag != 0)
}

/// `BLKSSZGET`: bytes of a logical sector.
pub(crate) fn logical_sector(device: &File) -> Result<u32> {
    let mut bytes: c_int = 0;
    // SAFETY: the kernel writes an `int` to the pointer, which is valid for the call.
    unsafe { raw::blksszget(device.as_raw_fd(), &mut bytes) }?;
    Ok(u32::try_from(bytes).unwrap_or(512))
}

/// `BLKPBSZGET`: bytes of a physical sector.
pub(crate) fn physical_sector(device: &File) -> Result<u32> {
    let mut bytes: c_uint = 0;
    // SAFETY: the kernel writes an `unsigned int` to the pointer, which is valid for the call.
    unsafe { raw::blkpbszget(device.as_raw_fd(), &mut bytes) }?;
    Ok(bytes)
}

/// `BLKIOOPT`: bytes, 0 if the device does not say.
pub(crate) fn optimal_io(device: &File) -> Result<u32> {
    let mut bytes: c_uint = 0;
    // SAFETY: the kernel writes an `unsigned int` to the pointer, which is valid for the call.
    unsafe { raw::blkioopt(device.as_raw_fd(), &mut bytes) }?;
    Ok(bytes)
}

/// `BLKROTATIONAL`
pub(crate) fn is_rotational(device: &File) -> Result<bool> {
    let mut flag: c_ushort = 0;
    // SAFETY: the kernel writes an `unsigned short` to the pointer, which is valid for the call.
    unsafe { raw::blkrotational(device.as_raw_fd(), &mut flag) }?;
    Ok(flag != 0)
}

/// `BLKDISCARD`; both numbers are multiples of the logical sector.
pub(crate) fn discard(device: &File, offset: u64, len: u64) -> Result<()> {
    // SAFETY: the kernel reads two 64-bit numbers from the pointer, which is valid for the call.
    unsafe { raw::blkdiscard(device.as_raw_fd(), &[offset, len]) }?;
    Ok(())
}

/// `BLKZEROOUT`; both numbers are multiples of the logical sector.
pub(crate) fn zero_out(device: &File, offset: u64, len: u64) -> Result<()> {
    // SAFETY: the kernel reads two 64-bit numbers from the pointer, which is valid for the call.
    unsafe { raw::blkzeroout(device.as_raw_fd(), &[offset, len]) }?;
    Ok(())
}
