//! What a file is that holds something else than a disk in a form that we read: by its magic number, so that it is called by
//! its name instead of "bad superblock".

use veduta_api::{Disk, Result};

/// A form that is not raw.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Format {
    /// `zip archive`
    pub name: &'static str,
    /// What makes a raw image of it, to be told to the user.
    pub remedy: &'static str,
}

/// Magic number at an offset, name, remedy.
const FORMATS: &[(u64, &[u8], &str, &str)] = &[
    (0, b"BZh", "bzip2 file", "bzip2 -dk"),
    (0, b"\x04\x22\x4d\x18", "lz4 file", "lz4 -d"),
    (0, b"PK\x03\x04", "zip archive", "unzip"),
    (0, b"7z\xbc\xaf\x27\x1c", "7z archive", "7z x"),
];

/// The form of the file whose bytes `disk` has; `None` if it is raw, or unknown, which is the same.
pub fn foreign_format(disk: &Disk) -> Result<Option<Format>> {
    let head = disk.read_vec(0, disk.size().min(512) as usize)?;
    let has = |offset: u64, magic: &[u8]| head.get(offset as usize..).is_some_and(|at| at.starts_with(magic));
    // Three letters might start other things; a bzip2 stream has the level and its first block's mark behind them.
    let is_bzip2 = |name: &str| name != "bzip2 file" || has(4, b"1AY&SY");
    let found = FORMATS.iter().find(|(offset, magic, name, _)| has(*offset, magic) && is_bzip2(name));
    Ok(found.map(|&(_, _, name, remedy)| Format { name, remedy }))
}
