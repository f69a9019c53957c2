//! Interception: seccomp, ptrace and the memory of other processes, as types.
//!
//! This crate names the kernel, and knows nothing of views: which calls are caught is told by [`Rule`]s, and what
//! becomes of a caught call is decided by whoever holds the [`Listener`].
//!
//! - [`filter`]: a seccomp program from rules.
//! - [`notify`]: the listener of a filter: calls come out, answers and descriptors go in (`seccomp_unotify(2)`).
//! - [`task`]: another process: its memory, its descriptors, its directories in `/proc`.
//! - [`stop`]: a task that is stopped by ptrace: [`Stopped`] and running are two types, so registers are only touched
//!   while nothing runs.
//! - [`tracer`]: all tasks traced by ptrace, where there is no listener.
//! - [`spawn`]: a program started under a filter.
//! - [`shim`]: code in the processes themselves, which makes calls that concern nobody.
//! - [`sites`]: where libraries make calls, and how they jump to the shim instead.
//! - [`raw`]: system calls of our own that no library wraps.
//!
//! Processes are not traced all the time: a task is attached for the moment in which its registers must change (an
//! `execve` of a virtual file, a new filter) and let go again. So debuggers work inside, and signals, job control and
//! threads are the kernel's.

#![deny(unsafe_code)] // six files that say so in their first line allow it

pub mod filter;
pub mod known;
pub mod notify;
pub mod raw;
pub mod shim;
pub mod sites;
pub mod spawn;
pub mod stop;
pub mod task;
pub mod tracer;

pub use filter::{Program, Rule, Test, Verdict};
pub use notify::{Given, Listener, Notification};
pub use spawn::Refusal;
pub use stop::{Registers, Stopped};
pub use task::Task;
pub use tracer::{Happening, Tracer};

/// What the calls of this crate return.
pub type Result<T, E = nix::errno::Errno> = std::result::Result<T, E>;
