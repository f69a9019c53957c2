//! Writing, against e2fsck, debugfs, and a model in memory. Volumes are made with mke2fs on disks in memory.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]
#![allow(missing_docs, reason = "a test")]

mod crash;
mod model;
mod rules;
mod support;
