//! `sshfs`: directories of other machines, over SSH, to read and to write. Source: `[USER@]HOST:[DIR]`.
//!
//! From the bottom: `wire` (packets as bytes), `transport` (the user's own `ssh`, or another way), `connection` (many requests under
//! way), `rate` (how many), `session` (connections that are made again), `nodes` (names, and what is remembered), `list` (directories),
//! `content` (writing behind), `file` (reading ahead), `idmap` (owners), `tree` (the contract).
//!
//! It has a table of nodes of its own rather than the path adapter of `fs/tree`: open files must find their names again after a
//! reconnect, and what a listing told is kept where the node is.
//!
//! # Limits
//!
//! - SFTP has whole seconds from 1970 to 2106 (`EOVERFLOW` outside), no count of links (1 is shown) and no numbers of nodes: those that are
//!   shown are ours, and two hard links are two files.
//! - No extended attributes, locks seen by others, `fallocate`, devices, pipes or sockets (`EPERM`), files without a name, exchange of two names (`EINVAL`).
//! - A server without the extension that something needs: no hard links (`EPERM`), no changes of symbolic links and no `fsync` (`EOPNOTSUPP`).
//! - What was written and not yet acknowledged when a connection broke is lost: `fsync` and `close` say `EIO`. Files that were removed while open
//!   cannot be opened again after a reconnect (`ESTALE`).
//! - `sync` reaches the server's disk for files that are open; SFTP has no request for the rest.
//! - sshfs's `delay_connect`, `password_stdin` and `direct_io` are not known.

#![forbid(unsafe_code)]

mod connection;
mod content;
mod file;
mod idmap;
mod list;
mod module;
mod nodes;
mod options;
mod rate;
mod session;
mod transport;
mod tree;
mod wire;

pub use module::{Sshfs, over};
