//! `iso9660`: volumes of ISO 9660 (ECMA-119), the file system of CDs, DVDs and boot images, as a tree.
//!
//! Layout: 16 sectors of 2048 bytes of no concern; volume descriptors, one a sector; and anywhere behind them
//! directories and files, each in one piece. A directory is a sequence of records; a record holds a name, where the
//! data lies, its size, a time, and a *system use area* for what the standard does not know. Numbers are recorded in
//! both byte orders. Nothing is compressed, mapped or journalled: a file is found by reading its directories.
//!
//! Extensions: Rock Ridge puts POSIX names, owners, links and devices into the system use areas (`rockridge`); Joliet
//! and ISO 9660:1999 are second trees of records with other names (`names`); zisofs compresses files
//! (`zisofs`); El Torito lists images to boot from (`eltorito`). A reader needs none of them.
//!
//! Reading order: `record`, `directory`, `node`, `tree`.
//!
//! # Limits
//!
//! Interleaved files and the sparse format of Rock Ridge (which no known program writes) are listed, and opening them
//! gives `EOPNOTSUPP`. Extended attribute records and AAIP fields are skipped. High Sierra and UDF are refused by
//! name. Sessions are found by walking, since an image file has no table of contents.

#![forbid(unsafe_code)]

mod bytes;
mod cache;
mod choices;
mod descriptor;
mod directory;
mod eltorito;
mod error;
mod extents;
mod image;
mod module;
mod names;
mod node;
mod raw;
mod record;
mod report;
mod rockridge;
mod session;
mod susp;
mod time;
mod tree;
mod volume;
mod zisofs;

pub use module::Iso9660;
