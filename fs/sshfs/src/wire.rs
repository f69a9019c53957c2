//! Packets of SFTP version 3, as bytes.
//!
//! Layout: a length (4 bytes, big endian, of what follows), a type (1 byte), a number that ties a reply to its request (4 bytes; the
//! greetings `INIT` and `VERSION` have a version there), then fields. A string is a length (4 bytes) and bytes. After
//! draft-ietf-secsh-filexfer-02 and OpenSSH's PROTOCOL file.
//!
//! [`Packet`] writes, [`Fields`] reads: every read is checked against what is left, so a packet that lies about a length is
//! [`Malformed`] and nothing worse.

use veduta_api::{Errno, Kind, Perm};

/// Types of requests.
pub(crate) mod request {
    pub(crate) const INIT: u8 = 1;
    pub(crate) const OPEN: u8 = 3;
    pub(crate) const CLOSE: u8 = 4;
    pub(crate) const READ: u8 = 5;
    pub(crate) const WRITE: u8 = 6;
    pub(crate) const LSTAT: u8 = 7;
    pub(crate) const FSTAT: u8 = 8;
    pub(crate) const SETSTAT: u8 = 9;
    pub(crate) const FSETSTAT: u8 = 10;
    pub(crate) const OPENDIR: u8 = 11;
    pub(crate) const READDIR: u8 = 12;
    pub(crate) const REMOVE: u8 = 13;
    pub(crate) const MKDIR: u8 = 14;
    pub(crate) const RMDIR: u8 = 15;
    pub(crate) const REALPATH: u8 = 16;
    pub(crate) const STAT: u8 = 17;
    pub(crate) const RENAME: u8 = 18;
    pub(crate) const READLINK: u8 = 19;
    pub(crate) const SYMLINK: u8 = 20;
    pub(crate) const EXTENDED: u8 = 200;
}

/// Types of replies.
pub(crate) mod reply {
    pub(crate) const VERSION: u8 = 2;
    pub(crate) const STATUS: u8 = 101;
    pub(crate) const HANDLE: u8 = 102;
    pub(crate) const DATA: u8 = 103;
    pub(crate) const NAME: u8 = 104;
    pub(crate) const ATTRS: u8 = 105;
    pub(crate) const EXTENDED_REPLY: u8 = 201;
}

/// Flags of `OPEN`.
pub(crate) mod open {
    pub(crate) const READ: u32 = 1;
    pub(crate) const WRITE: u32 = 2;
    pub(crate) const CREATE: u32 = 8;
    pub(crate) const EXCLUSIVE: u32 = 32;
}

/// The version that we speak.
pub(crate) const VERSION: u32 = 3;

/// Bytes of a packet before its fields: length, type and number.
pub(crate) const HEAD: usize = 9;

/// Bytes; the largest packet of requests without data, and of replies where the server states no limit. OpenSSH's own.
pub(crate) const MAX_PACKET: usize = 256 * 1024;

/// A packet is not what the protocol says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Malformed;

impl From<Malformed> for Errno {
    fn from(_: Malformed) -> Self {
        Errno::EPROTO
    }
}

/// A request that is being written. [`seal`](Self::seal) gives it its number.
#[derive(Clone, Debug)]
pub(crate) struct Packet(Vec<u8>);

impl Packet {
    pub(crate) fn new(kind: u8) -> Self {
        Self::with_capacity(kind, 256)
    }

    pub(crate) fn with_capacity(kind: u8, bytes: usize) -> Self {
        let mut packet = Vec::with_capacity(bytes);
        packet.extend_from_slice(&[0, 0, 0, 0, kind, 0, 0, 0, 0]);
        Self(packet)
    }

    /// A request of an extension, which is known by its name.
    pub(crate) fn extended(name: &str) -> Self {
        Self::new(request::EXTENDED).string(name.as_bytes())
    }

    pub(crate) fn u32(mut self, number: u32) -> Self {
        self.0.extend_from_slice(&number.to_be_bytes());
        self
    }

    pub(crate) fn u64(mut self, number: u64) -> Self {
        self.0.extend_from_slice(&number.to_be_bytes());
        self
    }

    /// Strings that we send are paths, handles and data: none comes near 4 GiB.
    pub(crate) fn string(mut self, bytes: &[u8]) -> Self {
        let len = u32::try_from(bytes.len()).unwrap_or(u32::MAX);
        self.0.extend_from_slice(&len.to_be_bytes());
        self.0.extend_from_slice(bytes);
        self
    }

    pub(crate) fn attrs(self, attrs: &Attrs) -> Self {
        let mut flags = 0;
        for (flag, is_there) in [
            (flag::SIZE, attrs.size.is_some()),
            (flag::OWNER, attrs.owner.is_some()),
            (flag::MODE, attrs.mode.is_some()),
            (flag::TIMES, attrs.times.is_some()),
        ] {
            if is_there {
                flags |= flag;
            }
        }
        let mut packet = self.u32(flags);
        if let Some(size) = attrs.size {
            packet = packet.u64(size);
        }
        if let Some((uid, gid)) = attrs.owner {
            packet = packet.u32(uid).u32(gid);
        }
        if let Some(mode) = attrs.mode {
            packet = packet.u32(mode);
        }
        if let Some((atime, mtime)) = attrs.times {
            packet = packet.u32(atime).u32(mtime);
        }
        packet
    }

    /// Adds bytes to the string that was written last, whose length stands at `at`.
    pub(crate) fn extend_string(&mut self, at: usize, bytes: &[u8]) {
        self.0.extend_from_slice(bytes);
        let len = u32::try_from(self.0.len() - at - 4).unwrap_or(u32::MAX);
        self.0[at..at + 4].copy_from_slice(&len.to_be_bytes());
    }

    pub(crate) fn len(&self) -> usize {
        self.0.len()
    }

    /// The bytes to be sent, with length and number filled in.
    pub(crate) fn seal(mut self, number: u32) -> Vec<u8> {
        let len = u32::try_from(self.0.len() - 4).unwrap_or(u32::MAX);
        self.0[..4].copy_from_slice(&len.to_be_bytes());
        self.0[5..HEAD].copy_from_slice(&number.to_be_bytes());
        self.0
    }
}

mod flag {
    pub(super) const SIZE: u32 = 1;
    pub(super) const OWNER: u32 = 2;
    pub(super) const MODE: u32 = 4;
    pub(super) const TIMES: u32 = 8;
    pub(super) const EXTENDED: u32 = 0x8000_0000;
}

/// Attributes, each of which a server may leave out.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Attrs {
    /// Bytes.
    pub(crate) size: Option<u64>,
    /// User and group.
    pub(crate) owner: Option<(u32, u32)>,
    /// `st_mode`, with the type.
    pub(crate) mode: Option<u32>,
    /// Of reading and of change, in seconds since 1970.
    pub(crate) times: Option<(u32, u32)>,
}

impl Attrs {
    /// The type; `None` if the server does not tell it, or if it is none of Linux.
    pub(crate) fn kind(&self) -> Option<Kind> {
        self.mode.and_then(Kind::from_mode)
    }

    pub(crate) fn perm(&self) -> Perm {
        Perm::from_mode(self.mode.unwrap_or(0))
    }
}

/// The fields of a reply that are not read yet.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Fields<'a>(pub(crate) &'a [u8]);

impl<'a> Fields<'a> {
    pub(crate) fn u32(&mut self) -> Result<u32, Malformed> {
        let (bytes, rest) = self.0.split_first_chunk().ok_or(Malformed)?;
        self.0 = rest;
        Ok(u32::from_be_bytes(*bytes))
    }

    pub(crate) fn u64(&mut self) -> Result<u64, Malformed> {
        let (bytes, rest) = self.0.split_first_chunk().ok_or(Malformed)?;
        self.0 = rest;
        Ok(u64::from_be_bytes(*bytes))
    }

    pub(crate) fn string(&mut self) -> Result<&'a [u8], Malformed> {
        let len = usize::try_from(self.u32()?).map_err(|_| Malformed)?;
        let (bytes, rest) = self.0.split_at_checked(len).ok_or(Malformed)?;
        self.0 = rest;
        Ok(bytes)
    }

    pub(crate) fn attrs(&mut self) -> Result<Attrs, Malformed> {
        let flags = self.u32()?;
        let mut attrs = Attrs::default();
        if flags & flag::SIZE != 0 {
            attrs.size = Some(self.u64()?);
        }
        if flags & flag::OWNER != 0 {
            attrs.owner = Some((self.u32()?, self.u32()?));
        }
        if flags & flag::MODE != 0 {
            attrs.mode = Some(self.u32()?);
        }
        if flags & flag::TIMES != 0 {
            attrs.times = Some((self.u32()?, self.u32()?));
        }
        if flags & flag::EXTENDED != 0 {
            // Each pair takes up at least 8 bytes, so the loop ends with the packet.
            for _ in 0..self.u32()? {
                self.string()?;
                self.string()?;
            }
        }
        Ok(attrs)
    }

    /// What a `NAME` reply lists: of each entry name and attributes; the line that is meant for people is skipped.
    pub(crate) fn names(&mut self) -> Result<Vec<(&'a [u8], Attrs)>, Malformed> {
        let count = self.u32()?;
        let mut names = Vec::new();
        // Each entry takes up at least 12 bytes, so the loop ends with the packet.
        for _ in 0..count {
            let name = self.string()?;
            self.string()?;
            names.push((name, self.attrs()?));
        }
        Ok(names)
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

/// What a `STATUS` reply says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Status {
    Ok,
    Eof,
    NoSuchFile,
    PermissionDenied,
    /// Anything that the protocol has no word for: a directory that is not empty, a disk that is full.
    Failure,
    BadMessage,
    Unsupported,
    /// A number that version 3 does not define.
    Other(u32),
}

impl Status {
    pub(crate) fn from_number(number: u32) -> Self {
        match number {
            0 => Status::Ok,
            1 => Status::Eof,
            2 => Status::NoSuchFile,
            3 => Status::PermissionDenied,
            4 => Status::Failure,
            5 => Status::BadMessage,
            8 => Status::Unsupported,
            other => Status::Other(other),
        }
    }

    /// The errno that comes nearest. `Ok` and `Eof` where something else was asked for are a server's mistake.
    pub(crate) fn errno(self) -> Errno {
        match self {
            Status::Ok | Status::Eof => Errno::EPROTO,
            Status::NoSuchFile => Errno::ENOENT,
            Status::PermissionDenied => Errno::EACCES,
            Status::BadMessage => Errno::EINVAL,
            Status::Unsupported => Errno::EOPNOTSUPP,
            Status::Failure | Status::Other(_) => Errno::EIO,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read_back() {
        let attrs =
            Attrs { size: Some(u64::MAX), owner: Some((1, 2)), mode: Some(0o100_644), times: Some((3, 4)) };
        let bytes = Packet::new(request::OPEN).string(b"a/b").u32(7).u64(1 << 40).attrs(&attrs).seal(9);
        let mut fields = Fields(&bytes);
        assert_eq!(fields.u32(), Ok(u32::try_from(bytes.len()).unwrap() - 4));
        fields.0 = &fields.0[1..];
        assert_eq!((fields.u32(), fields.string()), (Ok(9), Ok(&b"a/b"[..])));
        assert_eq!((fields.u32(), fields.u64(), fields.attrs()), (Ok(7), Ok(1 << 40), Ok(attrs)));
        assert!(fields.is_empty());
    }

    #[test]
    fn a_string_grows_in_its_packet() {
        let mut packet = Packet::new(request::WRITE).string(b"h");
        let at = packet.len();
        packet = packet.string(b"");
        packet.extend_string(at, b"ab");
        packet.extend_string(at, b"c");
        let bytes = packet.seal(1);
        let mut fields = Fields(&bytes[HEAD..]);
        assert_eq!((fields.string(), fields.string()), (Ok(&b"h"[..]), Ok(&b"abc"[..])));
    }

    #[test]
    fn lengths_that_lie_are_malformed() {
        for bytes in [&[][..], &[0, 0, 0][..], &[0, 0, 0, 9, 1], &[255, 255, 255, 255, 1]] {
            assert_eq!(Fields(bytes).string(), Err(Malformed), "{bytes:?}");
        }
        // A count of names, and of extended attributes, that no packet could hold.
        assert_eq!(Fields(&[255, 255, 255, 255]).names(), Err(Malformed));
        assert_eq!(
            Fields(&[0x80, 0, 0, 0, 255, 255, 255, 255, 0, 0, 0, 0, 0, 0, 0, 0]).attrs(),
            Err(Malformed)
        );
    }
}
