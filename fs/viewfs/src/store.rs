//! The family's own way to keep what is deleted and who owns what: the directory `.-` of an upper layer. It is read, never written.
//!
//! A plain file at a path below `.-` says that this path is deleted; a directory there only leads on. The file of a name with a
//! byte 0x7F (View-OS of old: 0xFF) behind it has attributes, one `KEY=VALUE` a line: `type` (`f`, `s`, `c`, `b`), `mode` (octal),
//! `uid`, `gid`, `rdev` (`MAJOR,MINOR`).

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::OsStrExt;

use veduta_api::{Attr, Device, Ino, Kind, OpenFlags, Perm, Result};

use crate::layer::Layer;

/// The directory, in the root of a layer.
pub(crate) const NAME: &str = ".-";

/// Bytes; the largest file of attributes that is believed.
const MAX: usize = 1024;

/// What the store says of a name.
#[derive(Debug, Default)]
pub(crate) struct Said {
    pub(crate) deleted: bool,
    /// The directory that says what is deleted below.
    pub(crate) below: Option<Ino>,
}

pub(crate) fn look(layer: &Layer, store: Ino, name: &OsStr) -> Result<Said> {
    Ok(match layer.find(store, name)? {
        None => Said::default(),
        // The reference is the part's, which keeps it as long as it lives.
        Some((ino, attr)) if attr.kind == Kind::Directory => Said { deleted: false, below: Some(ino) },
        Some((ino, attr)) => {
            layer.fs.forget(ino, 1);
            Said { deleted: attr.kind == Kind::File, below: None }
        }
    })
}

/// Attributes that the store has for a name.
pub(crate) fn dress(layer: &Layer, store: Ino, name: &OsStr, attr: &mut Attr) -> Result<()> {
    for mark in [0x7f, 0xff] {
        let mut companion = name.as_bytes().to_vec();
        companion.push(mark);
        let Some((ino, found)) = layer.find(store, OsStr::from_bytes(&companion))? else { continue };
        let mut text = vec![0; MAX];
        let read = match found.kind {
            Kind::File => layer.fs.open(ino, OpenFlags::READ).and_then(|file| file.read_at(&mut text, 0)),
            _ => Ok(0),
        };
        layer.fs.forget(ino, 1);
        text.truncate(read?);
        apply(&text, attr);
        return Ok(());
    }
    Ok(())
}

/// Applies the lines of a companion file. A line that makes no sense changes nothing.
pub(crate) fn apply(text: &[u8], attr: &mut Attr) {
    for line in text.split(|byte| *byte == b'\n') {
        let Some((key, value)) = std::str::from_utf8(line).ok().and_then(|line| line.split_once('=')) else {
            continue;
        };
        let value = value.trim();
        match key.trim() {
            "type" if attr.kind != Kind::Directory => match value.bytes().next() {
                Some(b'f' | b'-') => attr.kind = Kind::File,
                Some(b's') => attr.kind = Kind::Socket,
                Some(b'c') => attr.kind = Kind::CharDevice,
                Some(b'b') => attr.kind = Kind::BlockDevice,
                _ => {}
            },
            "mode" => {
                if let Ok(mode) = u32::from_str_radix(value, 8) {
                    attr.perm = Perm::from_mode(mode);
                }
            }
            "uid" => attr.uid = value.parse().unwrap_or(attr.uid),
            "gid" => attr.gid = value.parse().unwrap_or(attr.gid),
            "rdev" => {
                let (major, minor) = value.split_once(',').unwrap_or((value, "0"));
                if let (Ok(major), Ok(minor)) = (major.parse(), minor.parse()) {
                    attr.rdev = Device { major, minor };
                }
            }
            _ => {}
        }
    }
}

/// Whether a name of a listing of the store is a deletion: companions are none.
pub(crate) fn is_companion(name: &OsStr) -> bool {
    matches!(name.as_bytes().last(), Some(0x7f | 0xff))
}

/// The names that a directory of the store says are deleted.
pub(crate) fn deleted(layer: &Layer, store: Ino) -> Result<Vec<OsString>> {
    let mut names = Vec::new();
    layer.fs.readdir(store, 0, &mut |entry| {
        if entry.kind != Some(Kind::Directory) && !is_companion(entry.name) {
            names.push(entry.name.to_owned());
        }
        std::ops::ControlFlow::Continue(())
    })?;
    Ok(names)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_companion_of_the_family_is_read() {
        let mut attr = Attr::new(1, Kind::File, Perm::from_mode(0o600));
        apply(b"type=c\nmode=0644\nuid=2000\ngid=4000\nrdev=42,44\nctime=1,2\nnonsense\nuid=x\n", &mut attr);
        assert_eq!((attr.kind, attr.perm.bits(), attr.uid, attr.gid), (Kind::CharDevice, 0o644, 2000, 4000));
        assert_eq!(attr.rdev, Device { major: 42, minor: 44 });
    }
}
