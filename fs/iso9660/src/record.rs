//! A directory record: ECMA-119 section 9.1.
//!
//! ```text
//!  0 length of the record        25 flags                  32 length of the name
//!  1 length of the XAR (blocks)  26 file unit size         33 the name, a zero if its length is even,
//!  2 first block (both orders)   27 interleave gap size       then the system use area to the end
//! 10 bytes of data (both)        28 volume number (both)
//! 18 time, short form
//! ```
//!
//! A record lies within one sector; a zero where a length is due means that the rest of the sector is empty.

use veduta_api::Timestamp;

use crate::bytes::u32_le;
use crate::time;

/// One record, within the bytes that it was parsed from.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Record<'a> {
    /// Length of Directory Record
    pub(crate) len: usize,
    /// The first block of the data proper: Location of Extent plus Extended Attribute Record Length. Fits in 33 bits.
    pub(crate) block: u64,
    /// Bytes: Data Length
    pub(crate) data_len: u32,
    /// Recording Date and Time; the epoch if it names no moment.
    pub(crate) time: Timestamp,
    /// File Unit Size or Interleave Gap Size is not zero: the data is not in one piece.
    pub(crate) is_interleaved: bool,
    /// File Identifier
    pub(crate) name: &'a [u8],
    /// System Use
    pub(crate) system_use: &'a [u8],
    flags: u8,
}

impl<'a> Record<'a> {
    /// The record at the start of `bytes`; `None` if the rest of the sector is empty. The error says what is wrong.
    pub(crate) fn parse(bytes: &'a [u8]) -> Result<Option<Self>, &'static str> {
        let len = usize::from(*bytes.first().ok_or("a directory ends in the middle of a record")?);
        if len == 0 {
            return Ok(None);
        }
        let bytes = bytes.get(..len).ok_or("a directory record is longer than what is left of its sector")?;
        let fields = || {
            let name_len = usize::from(*bytes.get(32)?);
            let name = bytes.get(33..33 + name_len)?;
            let padded = 33 + name_len + usize::from(name_len % 2 == 0);
            Some(Self {
                len,
                block: u64::from(u32_le(bytes, 2)?) + u64::from(bytes[1]),
                data_len: u32_le(bytes, 10)?,
                time: time::short(&bytes[18..]).unwrap_or_default(),
                is_interleaved: bytes[26] != 0 || bytes[27] != 0,
                name,
                system_use: bytes.get(padded..).unwrap_or_default(),
                flags: bytes[25],
            })
        };
        match fields() {
            Some(record) if !record.name.is_empty() => Ok(Some(record)),
            Some(_) => Err("a directory record has an empty name"),
            None => Err("a directory record is shorter than its own fields"),
        }
    }

    /// Existence bit: the user need not see it.
    pub(crate) fn is_hidden(&self) -> bool {
        self.flags & 0x01 != 0
    }

    pub(crate) fn is_directory(&self) -> bool {
        self.flags & 0x02 != 0
    }

    /// Associated File: belongs to the file of the same name, as a resource fork does.
    pub(crate) fn is_associated(&self) -> bool {
        self.flags & 0x04 != 0
    }

    /// Multi-Extent: the next record continues the file.
    pub(crate) fn continues(&self) -> bool {
        self.flags & 0x80 != 0
    }

    /// The directory's record of itself.
    pub(crate) fn is_self(&self) -> bool {
        self.name == [0]
    }

    pub(crate) fn is_parent(&self) -> bool {
        self.name == [1]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bytes(len: u8, name: &[u8]) -> Vec<u8> {
        let mut bytes = vec![0; usize::from(len)];
        bytes[0] = len;
        bytes[2] = 20;
        bytes[32] = name.len() as u8;
        bytes[33..33 + name.len()].copy_from_slice(name);
        bytes
    }

    #[test]
    fn the_system_use_area_starts_on_an_even_byte() {
        for (name, area) in [(&b"A"[..], 6), (b"AB", 4)] {
            let bytes = bytes(40, name);
            let record = Record::parse(&bytes).unwrap().unwrap();
            assert_eq!((record.name, record.system_use.len(), record.block), (name, area, 20));
        }
    }

    #[test]
    fn a_record_that_does_not_hold_its_own_fields_is_refused() {
        let mut long_name = bytes(40, b"A");
        long_name[32] = 8;
        assert!(Record::parse(&long_name).is_err());
        assert!(Record::parse(&long_name[..39]).is_err());
        assert!(Record::parse(&bytes(40, b"")).is_err());
        assert!(Record::parse(&[20; 20]).is_err());
        assert!(Record::parse(&[]).is_err());
        assert!(Record::parse(&[0]).unwrap().is_none());
    }
}
