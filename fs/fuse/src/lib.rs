//! The FUSE host: serves one tree of the contract (`veduta-api`) to the kernel. The only crate that names fuser.
//!
//! * [`driver_main`] is the whole of a driver program, such as `umfuseext2`.
//! * [`Mounted`] mounts a tree and serves it with threads of this process; [`mount_background`] is its short form.
//! * [`Detached`] serves a tree without a mount point, for those who hand out descriptors.
//!
//! From the kernel inwards: `mount` makes the mount; `pool` has the threads, `near` says where they run; `host` turns requests into calls of the contract,
//! with `policy` (what the kernel may remember), `handles` (what is open), `backing` (files whose data the kernel fetches by itself) and
//! `listing` (directories); `running` knows what is under way, so that it can be interrupted; `server` tells others which process it is.
//!
//! `unsafe` is in `mount` and `daemon`, where a descriptor comes out of a message and where processes fork, in `memory`, and nowhere else.

#![deny(unsafe_code)] // `daemon`, `memory` and `mount` allow it

mod backing;
mod daemon;
mod detached;
mod driver;
mod handles;
mod host;
mod listing;
mod log;
mod memory;
mod mount;
mod mounted;
mod mountinfo;
mod near;
mod options;
mod policy;
mod pool;
mod running;
mod server;

use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;

use veduta_api::{Filesystem, Module, MountError};
use veduta_disk::HostWorld;

pub use detached::{Detached, DetachedMount, enter_namespaces};
pub use driver::MountCommand;
pub use log::log_to_stderr;
pub use mount::{Allow, MountOptions, MountPoint};
pub use mounted::{Mounted, ServeOptions};
pub use options::GENERIC_OPTIONS;
pub use server::{Below, Server, below};

/// The whole of a driver program: reads the command line, mounts, goes to the background when the mount answers, and serves until it
/// is unmounted or told to end. `main` calls it before anything else, and starts no thread before.
pub fn driver_main(module: &dyn Module) -> ExitCode {
    driver::run(module, HostWorld::OPTIONS, |options| Ok(Box::new(HostWorld::from_options(options)?)))
}

/// What [`driver_main`] does behind its command line: for a program that has one of its own. `show_as` is the type that
/// `/proc/mounts` shows, behind `fuse.`.
pub fn mount_main(module: &dyn Module, show_as: &str, command: MountCommand) -> ExitCode {
    let world: driver::MakeWorld = |options| Ok(Box::new(HostWorld::from_options(options)?));
    driver::run_command(module, show_as, command, world)
}

/// Mounts a tree on a directory, with the ordinary options, and serves it with threads of this process.
pub fn mount_background(tree: Arc<dyn Filesystem>, point: impl AsRef<Path>) -> Result<Mounted, MountError> {
    Mounted::new(tree, point, &ServeOptions::new("veduta", log::program()))
}
