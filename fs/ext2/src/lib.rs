//! ext2, ext3 and ext4: a reader.

#![forbid(unsafe_code)]

mod acl;
mod bytes;
mod cache;
mod checksum;
mod dir;
mod error;
mod extents;
mod features;
mod fold;
mod group;
mod hash;
mod htree;
mod indirect;
mod inline;
mod inode;
mod journal;
mod map;
mod superblock;
mod volume;
mod xattr;
