//! `/proc/self/mountinfo`: which mounts there are, and which of them is ours.
//!
//! A line (proc_pid_mountinfo(5)): `36 35 98:0 /root /mnt/point rw,noatime master:1 - ext3 /dev/root rw`.
//! Blanks, tabs, newlines and backslashes within a field are written as three octal digits.

use std::ffi::{OsStr, OsString};
use std::io;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

/// One mount.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct MountLine {
    /// Unique among the mounts that exist, and used again afterwards.
    pub(crate) id: u64,
    /// `major:minor` of the filesystem, as `st_dev` shows it.
    pub(crate) device: String,
    pub(crate) point: PathBuf,
    /// `fuse.umfuseext2`
    pub(crate) kind: String,
    pub(crate) source: OsString,
}

/// All mounts of this process's namespace, in the order in which they were made.
pub(crate) fn read() -> io::Result<Vec<MountLine>> {
    let text = std::fs::read("/proc/self/mountinfo")?;
    Ok(text.split(|&byte| byte == b'\n').filter_map(parse).collect())
}

/// The topmost mount on `point`: the one that a path leads to.
pub(crate) fn topmost(mounts: &[MountLine], point: &Path) -> Option<MountLine> {
    mounts.iter().rev().find(|mount| mount.point == point).cloned()
}

fn parse(line: &[u8]) -> Option<MountLine> {
    let mut fields = line.split(|&byte| byte == b' ');
    let id = text(fields.next()?)?.parse().ok()?;
    let device = text(fields.nth(1)?)?;
    let point = unescape(fields.nth(1)?).into();
    // Optional fields follow, up to a lone dash.
    fields.find(|field| *field == b"-")?;
    let kind = text(fields.next()?)?;
    let source = unescape(fields.next()?);
    Some(MountLine { id, device, point, kind, source })
}

fn text(field: &[u8]) -> Option<String> {
    String::from_utf8(field.to_vec()).ok()
}

fn unescape(field: &[u8]) -> OsString {
    let mut out = Vec::with_capacity(field.len());
    let mut rest = field;
    while let Some((&byte, tail)) = rest.split_first() {
        rest = tail;
        match (byte, tail) {
            (b'\\', [a @ b'0'..=b'3', b @ b'0'..=b'7', c @ b'0'..=b'7', after @ ..]) => {
                out.push(((a - b'0') << 6) | ((b - b'0') << 3) | (c - b'0'));
                rest = after;
            }
            _ => out.push(byte),
        }
    }
    OsString::from_vec(out)
}

/// `fsname=` and `subtype=` as fusermount3 reads them: a backslash takes the meaning from a comma.
pub(crate) fn escape_option(value: &OsStr) -> OsString {
    let mut out = Vec::with_capacity(value.len());
    for &byte in value.as_bytes() {
        if matches!(byte, b',' | b'\\') {
            out.push(b'\\');
        }
        out.push(byte);
    }
    OsString::from_vec(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_with_optional_fields_and_blanks_is_read() {
        let line = br"36 35 0:57 / /mnt/a\040b rw,noatime master:1 propagate_from:2 - fuse.umfuseext2 /x\134y rw,user_id=0";
        let mount = parse(line).unwrap();
        assert_eq!(mount.id, 36);
        assert_eq!(mount.device, "0:57");
        assert_eq!(mount.point, Path::new("/mnt/a b"));
        assert_eq!(mount.kind, "fuse.umfuseext2");
        assert_eq!(mount.source, r"/x\y");
    }

    #[test]
    fn nonsense_is_skipped() {
        for line in ["", "x", "1 2", "1 2 0:3 / /mnt rw", "1 2 0:3 / /mnt rw -"] {
            assert_eq!(parse(line.as_bytes()), None, "{line}");
        }
        assert_eq!(unescape(br"a\04"), OsStr::new(r"a\04"));
    }

    #[test]
    fn our_own_mounts_can_be_read() {
        assert!(read().unwrap().iter().any(|mount| mount.point == Path::new("/proc")));
    }

    #[test]
    fn commas_in_names_survive_fusermount() {
        assert_eq!(escape_option(OsStr::new(r"a,b\c")), r"a\,b\\c");
    }
}
