//! `tree`: helpers for drivers of trees, and for programs that look into one without a kernel.
//!
//! * [`memory`]: a tree in memory; what an archive is filled into.
//! * [`hostdir`]: a directory of the host system.
//! * [`listing`]: positions in a directory that others change.
//! * [`lock`]: locks that are waited for while their holder still writes.
//! * [`path`]: a tree from a driver that thinks in paths.
//! * [`walk`]: paths resolved, directories listed, files read.

#![deny(unsafe_code)]

mod set_id;

pub mod hostdir;
pub mod listing;
pub mod lock;
pub mod memory;
pub mod path;
pub mod walk;
