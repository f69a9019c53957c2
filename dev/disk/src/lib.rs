//! `disk`: image files and block devices of the host system as disks, and [`HostWorld`], where the programs outside a view get
//! their sources from.
//!
//! [`RawDisk`] moves bytes, [`lock_image`] keeps two writers apart, [`foreign_format`] knows what is not raw, and `HostWorld`
//! puts them together and says what is wrong in one sentence.
//!
//! # Limits
//!
//! A compressed image is unpacked each time it is opened: `veduta mount` without a type does so twice, once to look. Archives are recognised and refused; images in other forms than byte by byte are `images/formats`' work. A raw image does not grow.
//! Direct I/O is not used: the page cache of the host is.

#![deny(unsafe_code)] // `ioctls` allows it

mod blkctl;
mod block;
mod drivetree;
mod format;
mod ioctls;
mod lock;
mod raw;
mod secret;
mod volume;
mod world;

pub use blkctl::{IoctlShape, ioctl_shape};
pub use block::{BlockDrive, BlockFile, Hold, WHOLE};
pub use drivetree::DriveTree;
pub use format::{Format, foreign_format};
pub use lock::lock_image;
pub use raw::RawDisk;
pub use volume::{Volume, identify};
pub use world::{HostWorld, list_partitions, partition_of, partitions_of};

/// The kernel's number; what the library found itself (an end of file that came too early) has none.
fn errno(error: &std::io::Error) -> veduta_api::Errno {
    use veduta_api::Errno;
    match error.kind() {
        std::io::ErrorKind::InvalidInput => Errno::EINVAL,
        _ => error.raw_os_error().map_or(Errno::EIO, Errno::from_raw),
    }
}
