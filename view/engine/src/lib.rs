//! The view engine: unmodified programs, each with its own view of files.
//!
//! A program is started under a seccomp filter whose calls come to the engine ([`serve`]). The engine keeps a table of mounts
//! ([`mounts`]), resolves paths itself where a mount may be concerned ([`walk`]), and either lets the kernel go on, or answers the
//! call: with a value, with a real descriptor of the host, with a descriptor that stands for a virtual node ([`standin`]), or with one
//! that the kernel serves through a mount of the engine's own ([`fuseplane`]).
//!
//! Processes are not traced: the kernel keeps descriptors, positions, signals, job control. A task is stopped only where its
//! registers must change: to run a program that lives in a virtual tree, to go into a virtual directory, to add a filter, to take a descriptor.
//!
//! A view that has nothing mounted catches nothing but the mount family and `execve(2)`; it grows when a mount comes.
//!
//! # Limits
//!
//! A view is a convenience, not a jail: a call that is left to the kernel has its path read again there. Processes that the
//! kernel's `chroot(2)` has moved see the view through their new root only as far as the kernel shows it.
//! `execve` of virtual scripts by a process that a debugger traces is refused (see `inplace.rs`).

#![forbid(unsafe_code)]

mod apart;
mod call;
mod calls;
mod control;
mod data;
mod devices;
mod directory;
mod exec;
mod fast;
mod fast_watch;
mod files;
mod fuseplane;
mod grow;
mod host;
mod identity;
mod inotify;
mod inplace;
mod kept;
mod known;
mod lent;
mod loops;
mod mounting;
mod mounts;
mod node;
mod open;
mod proc;
mod ranges;
mod renumbered;
mod reread;
mod run;
mod serve;
mod sockets;
mod standin;
mod stat;
mod states;
mod through;
mod traced;
mod trap;
mod turn;
mod view;
mod walk;
mod watch;
mod who;
mod world;

pub use calls::{CALLS, CONTROL, Family, Level, Row};
pub use control::{Control, ask};
pub use run::{Settings, run};
pub use trap::Mechanism;
pub use view::{Catalogue, MountRequest};
