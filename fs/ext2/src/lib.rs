//! ext2, ext3 and ext4: a reader.
//!
//! Layout of a volume: blocks of 1 to 64 KiB, divided into groups. The *superblock* ([`superblock`]) has the
//! numbers; *group descriptors* ([`group`]) say where the tables of *inodes* ([`inode`]) are; an inode leads
//! to the blocks of its content ([`map`], by [`extents`] or [`indirect`] lists, or [`inline`]). *Directories*
//! ([`dir`], [`htree`]) are content that leads to inodes. The *journal* ([`journal`], [`fast_commit`]) has
//! newer copies of blocks after a crash.
//!
//! All metadata goes through one cache ([`cache`]) in [`volume`]; content goes straight from the disk into
//! the caller's buffer. Nothing is held locked over I/O, and nothing read is believed before it was checked:
//! see [`error`].
//!
//! # Limits
//!
//! Read-only. Encrypted files have no keys; fs-verity is not verified.

#![forbid(unsafe_code)]

mod acl;
mod bytes;
mod cache;
mod checksum;
mod dir;
mod error;
mod extents;
mod fast_commit;
mod features;
mod file;
mod fold;
mod group;
mod hash;
mod htree;
mod indirect;
mod inline;
mod inode;
mod journal;
mod map;
mod module;
mod report;
mod superblock;
mod tree;
mod volume;
mod xattr;

pub use module::Ext2;
