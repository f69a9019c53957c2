//! Rock Ridge (IEEE P1282): what POSIX knows of a file and ECMA-119 does not, as fields of the system use area.
//!
//! ```text
//! PX mode, links, owner, group, [serial number]    TF flags, then one moment for each flag set
//! PN device: high and low half                     CL, PL, RE a directory that was moved up, and from where
//! NM flags, a part of the name                     SF virtual size of a sparse file
//! SL flags, parts of the target of a link          ZF, Z2 the data is compressed: see `zisofs`
//! ```
//!
//! All numbers are in both byte orders. ER, in the root's record of itself, names the version.

use veduta_api::{Device, Timestamp};

use crate::bytes::u32_le;
use crate::susp::Field;
use crate::time;
use crate::zisofs::Compression;

/// Bytes; a target that is longer cannot be told to anybody (PATH_MAX).
const TARGET_MAX: usize = 4095;
/// Bytes; names are cut there, as the writers do (NAME_MAX).
const NAME_MAX: usize = 255;

/// Everything that the fields of one record say.
#[derive(Clone, Debug, Default)]
pub(crate) struct RockRidge {
    pub(crate) posix: Option<Posix>,
    pub(crate) device: Device,
    /// `NM`; empty if there is none.
    pub(crate) name: Vec<u8>,
    /// `SL`; empty if there is none.
    pub(crate) target: Vec<u8>,
    pub(crate) times: Times,
    /// `CL`: the record stands for the directory at this block.
    pub(crate) child: Option<u32>,
    /// `RE`: the directory is shown elsewhere.
    pub(crate) is_relocated: bool,
    /// `SF`: bytes that the sparse file shows.
    pub(crate) sparse_size: Option<u64>,
    pub(crate) compression: Option<Compression>,
    /// The target's last part goes on in the next.
    target_part_open: bool,
}

/// `PX`
#[derive(Clone, Copy, Debug)]
pub(crate) struct Posix {
    pub(crate) mode: u32,
    pub(crate) links: u32,
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    /// Since RRIP 1.12; names of one file have the same.
    pub(crate) serial: Option<u32>,
}

/// `TF`
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Times {
    pub(crate) creation: Option<Timestamp>,
    pub(crate) modification: Option<Timestamp>,
    pub(crate) access: Option<Timestamp>,
    pub(crate) attributes: Option<Timestamp>,
}

impl RockRidge {
    /// Takes one field. The error says what is wrong with it.
    pub(crate) fn take(&mut self, field: Field<'_>) -> Result<(), String> {
        let short = || format!("field {} is too short", String::from_utf8_lossy(&field.tag));
        match &field.tag {
            b"PX" => self.posix = Some(posix(field.data).ok_or_else(short)?),
            b"PN" => self.device = device(field.data).ok_or_else(short)?,
            b"NM" => self.take_name(field.data).ok_or_else(short)?,
            b"SL" => self.take_target(field.data)?,
            b"TF" => self.take_times(field.data).ok_or_else(short)?,
            b"CL" => self.child = Some(u32_le(field.data, 0).ok_or_else(short)?),
            b"RE" => self.is_relocated = true,
            b"SF" => self.sparse_size = Some(sparse_size(field.data).ok_or_else(short)?),
            b"ZF" | b"Z2" => {
                self.compression = Some(Compression::parse(field.version, field.data).ok_or_else(short)?);
            }
            // PL is the inverse of CL; RR (until 1.09) lists the other fields; AL, AA and the rest are not ours.
            _ => {}
        }
        Ok(())
    }

    fn take_name(&mut self, data: &[u8]) -> Option<()> {
        let (flags, part) = data.split_first()?;
        // CURRENT and PARENT stand for "." and "..", whose records are known by their own names.
        if flags & 0x06 == 0 {
            let room = NAME_MAX.saturating_sub(self.name.len());
            self.name.extend_from_slice(&part[..part.len().min(room)]);
        }
        Some(())
    }

    /// The components of an `SL`: flags, length, text. Each is at least 2 bytes, so the walk ends.
    fn take_target(&mut self, data: &[u8]) -> Result<(), String> {
        const CONTINUES: u8 = 0x01;
        let mut rest = data.get(1..).ok_or("field SL is too short")?;
        while let Some((&[flags, len], tail)) = rest.split_first_chunk() {
            let text =
                tail.get(..usize::from(len)).ok_or("a component of field SL is longer than the field")?;
            rest = &tail[usize::from(len)..];
            if !self.target_part_open && !self.target.is_empty() && !self.target.ends_with(b"/") {
                self.target.push(b'/');
            }
            self.target_part_open = flags & CONTINUES != 0;
            match flags & !CONTINUES {
                0x00 => self.target.extend_from_slice(text),
                0x02 => self.target.push(b'.'),
                0x04 => self.target.extend_from_slice(b".."),
                // First it is the root; later, where a target has two slashes, nothing.
                0x08 => self.target.push(b'/'),
                other => return Err(format!("a component of field SL has the unknown flags {other:#04x}")),
            }
        }
        if self.target.len() > TARGET_MAX {
            return Err(format!("the target of a symbolic link is longer than {TARGET_MAX} bytes"));
        }
        Ok(())
    }

    /// The moments follow in the order of their flags. One that is there and names no moment counts as absent.
    fn take_times(&mut self, data: &[u8]) -> Option<()> {
        let (&flags, rest) = data.split_first()?;
        let len = if flags & 0x80 == 0 { 7 } else { 17 };
        let read = |bytes| if len == 7 { time::short(bytes) } else { time::long(bytes) };
        let mut moments = rest.chunks_exact(len);
        let times = &mut self.times;
        let slots = [&mut times.creation, &mut times.modification, &mut times.access, &mut times.attributes];
        for (bit, slot) in slots.into_iter().enumerate() {
            if flags & (1 << bit) != 0 {
                *slot = read(moments.next()?);
            }
        }
        Some(())
    }
}

fn posix(data: &[u8]) -> Option<Posix> {
    Some(Posix {
        mode: u32_le(data, 0)?,
        links: u32_le(data, 8)?,
        uid: u32_le(data, 16)?,
        gid: u32_le(data, 24)?,
        serial: u32_le(data, 32),
    })
}

/// Some writers put major and minor into the halves, and some the number as the kernel encodes it into the low one. A
/// low half of more than the 8 bits of an old minor, without a high half, is of the second kind.
fn device(data: &[u8]) -> Option<Device> {
    let (high, low) = (u32_le(data, 0)?, u32_le(data, 8)?);
    Some(if high == 0 && low > 0xff { Device::from_linux(low) } else { Device { major: high, minor: low } })
}

/// Since RRIP 1.12 two halves of 32 bits, before that one.
fn sparse_size(data: &[u8]) -> Option<u64> {
    let first = u64::from(u32_le(data, 0)?);
    Some(u32_le(data, 8).map_or(first, |low| first << 32 | u64::from(low)))
}

/// Whether an `ER` field names Rock Ridge, and if so under which of its names.
pub(crate) fn extension_name(field: Field<'_>) -> Option<&'static str> {
    let len = usize::from(*field.data.first()?);
    let id = field.data.get(4..)?.get(..len)?;
    ["RRIP_1991A", "IEEE_P1282", "IEEE_1282"].into_iter().find(|name| name.as_bytes() == id)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(fields: &[(&[u8; 2], &[u8])]) -> Result<RockRidge, String> {
        let mut found = RockRidge::default();
        for (tag, data) in fields {
            found.take(Field { tag: **tag, version: 1, data })?;
        }
        Ok(found)
    }

    fn target(fields: &[(&[u8; 2], &[u8])]) -> String {
        String::from_utf8(parse(fields).unwrap().target).unwrap()
    }

    #[test]
    fn a_target_is_joined_from_its_components() {
        assert_eq!(target(&[(b"SL", b"\0\x08\0\0\x03usr\0\x03lib")]), "/usr/lib");
        assert_eq!(target(&[(b"SL", b"\0\x04\0\x04\0\0\x01a\x02\0")]), "../../a/.");
        assert_eq!(target(&[(b"SL", b"\0\x08\0")]), "/");
        assert_eq!(target(&[(b"SL", b"\0\0\x01a\x08\0\0\x01b")]), "a//b");
        // One name in two components, in two fields; then a component of its own.
        assert_eq!(target(&[(b"SL", b"\x01\x01\x03lon"), (b"SL", b"\0\0\x04gish\0\x01b")]), "longish/b");
        assert_eq!(target(&[(b"SL", b"\x01\0\x01a"), (b"SL", b"\0\0\x01b")]), "a/b");
    }

    #[test]
    fn a_component_that_leaves_its_field_is_refused() {
        assert!(parse(&[(b"SL", b"\0\0\x05usr")]).is_err());
        assert!(parse(&[(b"SL", b"")]).is_err());
        assert!(parse(&[(b"SL", b"\0\x40\0")]).is_err());
        let long = [(b"SL", [&b"\0\0\xc8"[..], &[b'x'; 200]].concat())];
        let fields: Vec<_> = (0..30).map(|_| (long[0].0, long[0].1.as_slice())).collect();
        assert!(parse(&fields).is_err());
    }

    #[test]
    fn a_name_is_joined_and_cut_at_255_bytes() {
        assert_eq!(parse(&[(b"NM", b"\x01long"), (b"NM", b"\0er")]).unwrap().name, b"longer");
        assert_eq!(parse(&[(b"NM", b"\x02"), (b"NM", b"\x04")]).unwrap().name, b"");
        let part = [&b"\x01"[..], &[b'x'; 200]].concat();
        assert_eq!(parse(&[(b"NM", &part), (b"NM", &part)]).unwrap().name.len(), 255);
        assert!(parse(&[(b"NM", b"")]).is_err());
    }

    #[test]
    fn moments_follow_their_flags_in_both_forms() {
        let short = parse(&[(b"TF", b"\x0a\x46\x01\x01\0\0\x01\0\x46\x01\x01\0\0\x02\0")]).unwrap().times;
        assert_eq!(short.modification, Some(Timestamp::from_seconds(1)));
        assert_eq!(short.attributes, Some(Timestamp::from_seconds(2)));
        assert_eq!((short.creation, short.access), (None, None));
        let long = parse(&[(b"TF", b"\x821970010100000300\0")]).unwrap().times;
        assert_eq!(long.modification, Some(Timestamp::from_seconds(3)));
        assert!(parse(&[(b"TF", b"\x0e\x46\x01\x01\0\0\x01\0")]).is_err());
    }

    #[test]
    fn device_numbers_of_both_kinds_are_understood() {
        let number = |high: u8, low: [u8; 3]| {
            let mut data = [0; 16];
            (data[0], data[8], data[9], data[10]) = (high, low[0], low[1], low[2]);
            parse(&[(b"PN", &data)]).unwrap().device
        };
        assert_eq!(number(1, [3, 0, 0]), Device { major: 1, minor: 3 });
        assert_eq!(number(0, [3, 1, 0]), Device { major: 1, minor: 3 });
        assert_eq!(number(8, [0, 1, 0]), Device { major: 8, minor: 256 });
        assert_eq!(number(0, [0x2c, 10, 0x10]), Device { major: 10, minor: 300 });
    }
}
