//! `viewfs`: trees laid over each other. What is on top is seen first; changes go where the mode says.
//!
//! * [`Viewfs`]: the type, for mounts and views.
//! * [`Setup`]: the same for a program that has trees and wants one made of them.
//! * [`Upper`]: an upper layer by itself: what was changed in it, kept, thrown away, packed and unpacked.
//!
//! From the outside inwards: `setup` and `options` (what is wanted), `tree` (names found, directories listed), `changes` (names made,
//! removed and moved), `copyup` (copies in the upper layer), `file` (open files), `table` (nodes), `layer` (overlayfs's marks),
//! `state` (the work directory), `vstat` (virtual owners and modes), `shown` (owners mapped), `ahead` (directories read before they are asked for), `store` (the family's own store), `points` (`except=`, `hide=`), `told` (what others may see below by themselves).
//!
//! # Limits
//!
//! * `workdir=` is taken and not needed: what is being made is in a hidden directory of the upper layer, `.veduta-work`, which goes
//!   with the unmount (unless files with hard links were copied up: it then holds what joins them).
//! * Overlayfs's index (`index=on`) and file handles (`nfs_export`, `overlay.origin`) are neither read nor written: inode numbers of
//!   what the kernel copied up are those of the copies.
//! * Renames of directories with parts below are marks (`redirect`) that the kernel follows in `trusted.overlay.*` only, and that
//!   fuse-overlayfs does not know: `redirect_dir=off` gives `EXDEV` instead, as overlayfs does. The same holds for `metacopy=on`.
//! * Other unions show `.veduta-work` if it stayed for the sake of hard links: `index=off` breaks them instead.
//! * Whiteouts by name (`.wh.NAME`) are read, not made, and not on the path that a renamed directory has below. An empty file that a user
//!   names so is marked as one that hides nothing; fuse-overlayfs does not know that mark.
//! * The whiteout of `renameat2(2)` (an overlay on top of this tree) is `EINVAL`; so is a device 0/0, which would be one: `EPERM`.
//! * In FUSE, files that may still be copied up are read through the page cache and not by the kernel's passthrough: it wants one backing
//!   file for all openings of a node, and would map the lower file for whoever writes the copy. Small ones are put into the cache
//!   when they are opened. A view hands out their descriptors; who has one from before a copy goes on reading the old file, as with overlayfs.
//! * A copy that is found after a power failure has its content, on filesystems that keep some order: on ext4 with `data=ordered`
//!   (the default) and wherever content is shared (XFS, btrfs) at no wait, elsewhere after an fsync. ext4 without a journal, or with
//!   `data=writeback`, keeps no order: there `fsync=strict` waits for each copy, and what else is on the volume is as it may be.
//! * Contents stay below only with `nochcopy` (`metacopy=on`): fuse-overlayfs shows such a copy as an empty file, and overlayfs
//!   refuses it with `userxattr`.
//! * A commit of some paths parts hard links that lead out of a directory among them.
//! * A file below with hard links shows a link too many after one of its names was removed and the tree mounted again, until it is copied up.
//! * In mincow mode a rename or a removal is made below only if the upper layer has nothing to do with it.
//! * Devices 0/0 and files `.wh..wh..opq` of the one layer below are hidden, and not told of to those who look there by themselves.
//! * What others put below into a directory that was removed here is found there by a symbolic link that such a one follows.
//! * An empty directory of a layer below whose owner has no rights to it (`chmod 0`) is not removed for an ordinary user (`EACCES`), since it cannot be seen that it is
//!   empty. In a user namespace whose root is that user it is, as by overlayfs, which an ordinary user can mount only there.
//! * A commit goes to one layer below; times of last reading are not compared, nor are sockets packed.
//! * Directories are read ahead of who walks a tree on ext4, XFS, btrfs and F2FS only; of ordinary users only their own are, since the time of last reading of others would change.
//! * `noacl`: nodes that have an ACL below show its mask as the mode of their group, which then counts for all of the group.
//! * A user's copy of a directory that forbids its owner to write forbids it to the user too.
//! * A user's copy of somebody else's file is the user's own, without set-id bits; `vstat` keeps what it was.

#![forbid(unsafe_code)]

mod ahead;
mod changes;
mod copyup;
mod file;
mod layer;
mod options;
mod points;
mod setup;
mod shown;
mod state;
mod store;
mod table;
mod told;
mod tree;
mod upper;
mod vstat;

pub use options::Viewfs;
pub use setup::{Durability, Mode, Place, Setup};
pub use upper::{Change, Conflict, Holes, Outcome, Upper, Watch, What};
