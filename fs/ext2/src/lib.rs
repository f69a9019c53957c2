//! ext2, ext3 and ext4.
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
//! Changes are *transactions* ([`transactions`], made of [`change`]s), written to the journal ([`journal_writer`]) or, without one, in an
//! order that keeps damage small ([`ordered`]). On them stand the allocators ([`blocks`], [`inodes`]), maps that grow
//! ([`extent_tree`], [`block_lists`], [`space`]), directories ([`entries`], [`index`]), and what users ask for ([`names`], [`shape`],
//! [`settings`], [`attributes`]). What is added to a file waits in memory ([`held`]) until it gets its blocks. [`recover`] decides whether a volume can be changed at
//! all; [`replayed`] brings fast commits to the disk.
//!
//! # Limits
//!
//! Encrypted files have no keys; fs-verity is not verified. Volumes with some features are read and not written: see
//! [`features`]. Blocks that are reserved for root are given to everybody (`df` leaves them out): who writes is not known here.

#![forbid(unsafe_code)]

mod acl;
mod attributes;
mod block_lists;
mod blocks;
mod bytes;
mod cache;
mod change;
mod checksum;
mod controls;
mod dir;
mod entries;
mod error;
mod extent_tree;
mod extents;
mod fast_commit;
mod features;
mod file;
mod fold;
mod group;
mod hash;
mod held;
mod htree;
mod index;
mod indirect;
mod inline;
mod inode;
mod inodes;
mod journal;
mod journal_writer;
mod listing;
mod map;
mod module;
mod names;
mod nodes;
mod ordered;
mod orphans;
mod raw;
mod recover;
mod replayed;
mod report;
mod settings;
mod shape;
mod space;
mod superblock;
mod transactions;
mod tree;
mod volume;
mod xattr;
mod zones;

pub use module::Ext2;
