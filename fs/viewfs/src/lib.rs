//! `viewfs`: trees laid over each other. What is on top is seen first; changes go where the mode says.
//!
//! * [`Viewfs`]: the type, for mounts and views.
//! * [`Setup`]: the same for a program that has trees and wants one made of them.
//! * [`Upper`]: an upper layer by itself: what was changed in it, kept, thrown away, packed and unpacked.
//!
//! From the outside inwards: `setup` and `options` (what is wanted), `tree` (names found, directories listed), `changes` (names made,
//! removed and moved), `copyup` (copies in the upper layer), `file` (open files), `table` (nodes), `layer` (overlayfs's marks),
//! `state` (the work directory), `vstat` (virtual owners and modes), `store` (the family's own store), `points` (`except=`, `hide=`).
//!
//! # Limits
//!
//! * `workdir=` is taken and not needed: what is being made is in a hidden directory of the upper layer, `.veduta-work`, which goes
//!   with the unmount (unless files with hard links were copied up: it then holds what joins them).
//! * Overlayfs's index (`index=on`) and file handles (`nfs_export`, `overlay.origin`) are neither read nor written: inode numbers of
//!   what the kernel copied up are those of the copies.
//! * Renames of directories with parts below are marks (`redirect`) that the kernel follows in `trusted.overlay.*` only, and that
//!   fuse-overlayfs does not know: `redirect_dir=off` gives `EXDEV` instead, as overlayfs does. The same holds for `metacopy=on`.
//! * The whiteout of `renameat2(2)` (an overlay on top of this tree) is `EINVAL`; so is a device 0/0, which would be one: `EPERM`.
//! * A user's copy of somebody else's file is the user's own, without set-id bits; `vstat` keeps what it was.

#![forbid(unsafe_code)]

mod changes;
mod copyup;
mod file;
mod layer;
mod options;
mod points;
mod setup;
mod state;
mod store;
mod table;
mod tree;
mod upper;
mod vstat;

pub use options::Viewfs;
pub use setup::{Mode, Place, Setup};
pub use upper::{Change, Conflict, Outcome, Upper, Watch, What};
