//! Virtual attributes: owner, mode and type of a file as an extended attribute, so that ordinary users own files as root and
//! make device nodes.
//!
//! The attribute is `user.containers.override_stat`, which podman's storage and fuse-overlayfs use: `UID:GID:MODE:TYPE`, the mode
//! octal, the type one of `file`, `dir`, `symlink`, `pipe`, `socket`, `block-MAJOR-MINOR`, `char-MAJOR-MINOR`; the
//! type may be missing. What is no file or directory is kept as an empty file (a symbolic link as one that holds its target).

use veduta_api::{Attr, Device, Errno, Filesystem, Ino, Kind, Perm, Result, XattrMode};

const NAME: &str = "user.containers.override_stat";

/// What a file is shown as.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Override {
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    pub(crate) perm: Perm,
    /// `None`: as it is.
    pub(crate) kind: Option<(Kind, Device)>,
}

impl Override {
    /// As a node is to be seen.
    pub(crate) fn of(attr: &Attr) -> Self {
        Self { uid: attr.uid, gid: attr.gid, perm: attr.perm, kind: Some((attr.kind, attr.rdev)) }
    }

    /// Reads a value; `None` if it is nonsense.
    pub(crate) fn parse(value: &[u8]) -> Option<Self> {
        let text = std::str::from_utf8(value).ok()?;
        let mut words = text.trim_end_matches('\0').splitn(4, ':');
        let uid = words.next()?.parse().ok()?;
        let gid = words.next()?.parse().ok()?;
        let perm = u32::from_str_radix(words.next()?, 8).ok().filter(|mode| *mode <= 0o7777)?;
        let kind = match words.next() {
            None | Some("") => None,
            Some(word) => Some(parse_kind(word)?),
        };
        Some(Self { uid, gid, perm: Perm::from_mode(perm), kind })
    }

    fn format(&self) -> String {
        let Self { uid, gid, perm, kind } = self;
        let kind = match kind {
            None => String::new(),
            Some((kind, rdev)) => match kind {
                Kind::File => ":file".into(),
                Kind::Directory => ":dir".into(),
                Kind::Symlink => ":symlink".into(),
                Kind::Fifo => ":pipe".into(),
                Kind::Socket => ":socket".into(),
                Kind::BlockDevice => format!(":block-{}-{}", rdev.major, rdev.minor),
                Kind::CharDevice => format!(":char-{}-{}", rdev.major, rdev.minor),
            },
        };
        format!("{uid}:{gid}:{:o}{kind}", perm.bits())
    }

    /// What is kept with a node, if there is something and it makes sense.
    pub(crate) fn read(fs: &dyn Filesystem, ino: Ino) -> Result<Option<Self>> {
        match fs.getxattr(ino, NAME.as_ref()) {
            Ok(value) => Ok(Self::parse(&value)),
            Err(Errno::ENODATA | Errno::EOPNOTSUPP) => Ok(None),
            Err(error) => Err(error),
        }
    }

    pub(crate) fn write(&self, fs: &dyn Filesystem, ino: Ino) -> Result<()> {
        fs.setxattr(ino, NAME.as_ref(), self.format().as_bytes(), XattrMode::Set)
    }

    /// Shows a node as this says.
    pub(crate) fn apply(&self, attr: &mut Attr) {
        (attr.uid, attr.gid, attr.perm) = (self.uid, self.gid, self.perm);
        if let Some((kind, rdev)) = self.kind {
            // A directory stays one, and nothing else becomes one: others walk through it.
            if (kind == Kind::Directory) == (attr.kind == Kind::Directory) {
                (attr.kind, attr.rdev) = (kind, rdev);
            }
        }
    }
}

/// Whether an attribute is the one in which this is kept.
pub(crate) fn is_ours(name: &std::ffi::OsStr) -> bool {
    name == NAME
}

fn parse_kind(word: &str) -> Option<(Kind, Device)> {
    let device = |numbers: &str| {
        let (major, minor) = numbers.split_once('-')?;
        Some(Device { major: major.parse().ok()?, minor: minor.parse().ok()? })
    };
    let none = Device::default();
    Some(match word {
        "file" => (Kind::File, none),
        "dir" => (Kind::Directory, none),
        "symlink" => (Kind::Symlink, none),
        "pipe" => (Kind::Fifo, none),
        "socket" => (Kind::Socket, none),
        word => match word.split_once('-')? {
            ("block", numbers) => (Kind::BlockDevice, device(numbers)?),
            ("char", numbers) => (Kind::CharDevice, device(numbers)?),
            _ => return None,
        },
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_podman_writes_is_read_and_written_the_same() {
        for text in ["0:0:755:dir", "2000:4000:644:char-42-44", "1:2:4755:file", "0:0:777:symlink", "5:6:600"]
        {
            assert_eq!(Override::parse(text.as_bytes()).unwrap().format(), text);
        }
        for text in
            ["", "0:0", "a:0:644", "0:0:999", "0:0:77777", "0:0:644:char-1", "0:0:644:door", "-1:0:644"]
        {
            assert_eq!(Override::parse(text.as_bytes()), None, "{text}");
        }
    }
}
