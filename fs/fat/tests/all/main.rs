//! Volumes made by other programs, changed by this one, and judged by others again.
//!
//! Wants `mkfs.fat` and `fsck.fat` (dosfstools), `mcopy` and its kin (mtools), `mkfs.exfat` and `fsck.exfat` (exfatprogs).

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test says so by failing")]

mod crash;
mod hostile;
mod large;
mod model;
mod names;
mod rules;
mod support;
mod threads;
