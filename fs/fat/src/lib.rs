//! `fat`: FAT12, FAT16, FAT32 and exFAT, to read and to write.
//!
//! From the bottom: `boot` (what lies where), `table` and `free` (clusters), `meta` (what is written when, and
//! in which order), `slots` and `name` (directory entries), `dir` (an index of each directory), `nodes` (numbers),
//! `volume` (content; the order of the locks), `tree` and `file` (the contract).
//!
//! After the Microsoft FAT specification (fatgen103) and the exFAT file system specification. Where they leave room, names,
//! modes and errors are those of Linux's vfat.
//!
//! # Limits
//!
//! - No links, symbolic links or special files: `EPERM`. A `chmod` that is no read-only attribute, a `chown`: `EPERM`.
//! - Two names cannot be exchanged: `EINVAL`. No order of writes would keep a crash from linking two files to one cluster.
//! - A crash during a `rename` to another sector may lose the file between its two names; its clusters are lost then, until
//!   they are found by fsck. It never has both names.
//! - Space reserved behind the end of a file (`FALLOC_FL_KEEP_SIZE`) is given back when the file is closed. Holes cannot be punched.
//! - Times of the root directory are kept in memory only. Read times are those that programs set: reading sets none.
//! - Code pages of two bytes a character (932, 936, 949, 950) are not known.
//! - exFAT: the second table and bitmap of TexFAT are not kept; clusters of vendor extensions are lost with their file.
//! - FAT12: an entry of the table may lie on two sectors. They are written at once, but a disk that tears this write can break one
//!   chain.

#![forbid(unsafe_code)]

mod boot;
mod charset;
mod controls;
mod describe;
mod dir;
mod file;
mod free;
mod meta;
mod name;
mod nodes;
mod options;
mod pages;
mod runs;
mod slots;
mod table;
mod time;
mod tree;
mod volume;

use std::sync::Arc;

use veduta_api::{
    Disk, Module, MountError, Object, OptionSpec, Options, Report, Request, Result, SourceKind,
};

use crate::boot::{Layout, Refusal};
use crate::options::Settings;
use crate::volume::Volume;

/// The type `fat`.
pub struct Fat;

impl Module for Fat {
    fn name(&self) -> &'static str {
        "fat"
    }

    fn aliases(&self) -> &'static [&'static str] {
        &["vfat", "msdos", "exfat", "umfusefat", "vufusefatfs", "umfuseexfat"]
    }

    fn summary(&self) -> &'static str {
        "FAT12, FAT16, FAT32 and exFAT: memory cards, EFI system partitions, floppy disks"
    }

    fn source(&self) -> SourceKind {
        SourceKind::Disk
    }

    fn writable(&self) -> bool {
        true
    }

    fn options(&self) -> &'static [OptionSpec] {
        options::SPECS
    }

    fn manual(&self) -> &'static str {
        "FAT stores neither owners nor permissions: uid=, gid=, fmask= and dmask= say what all files have. The one bit that it \
         does store, read-only, is the write permission, and chmod changes it. All four attributes (read-only, hidden, \
         system, archive) are the extended attribute user.fat.attributes, a number such as 0x20.\n\n\
         Names are found whatever their case, long or short; they keep the case in which they were made.\n\n\
         FAT stores times as local time, without saying where. They are taken for UTC unless time_offset= says how many minutes \
         they are ahead of it. exFAT says it itself.\n\n\
         Changes reach the disk at a sync, an fsync, an unmount, or when they have waited for some seconds and others \
         follow. A crash loses free space at worst, which fsck.fat or fsck.exfat give back: no file ever shows another's content."
    }

    fn probe(&self, disk: &Disk) -> Result<bool> {
        match Layout::read(disk, false) {
            Ok(_) | Err(Refusal::Corrupt(_) | Refusal::Unsupported(_)) => Ok(true),
            Err(Refusal::Foreign(_)) => Ok(false),
            Err(Refusal::Io(errno)) => Err(errno),
        }
    }

    fn describe(&self, disk: &Disk, mut options: Options) -> Result<Report, MountError> {
        describe::describe(disk, Settings::take(&mut options)?)
    }

    fn mount(&self, request: &mut Request<'_>) -> Result<Object, MountError> {
        let settings = Settings::take(&mut request.options)?;
        let volume = Volume::open(request.disk()?, settings, request.read_only)?;
        Ok(Object::Tree(Arc::new(tree::Tree(Arc::new(volume)))))
    }
}
