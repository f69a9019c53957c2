//! ext2, ext3 and ext4: a reader.

#![forbid(unsafe_code)]

mod bytes;
mod checksum;
mod error;
mod features;
mod superblock;
