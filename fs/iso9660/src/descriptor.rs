//! Volume descriptors: ECMA-119 section 8.
//!
//! A session starts with 16 sectors of no concern; from then on each sector holds one descriptor: type, `CD001`,
//! version, content. Type 1 is the primary one, with the plain tree. Type 2 is a supplementary one: Joliet if its escape
//! sequences say UCS-2, ISO 9660:1999 if its version is 2. Type 0 is a boot record. Type 255 ends the set.
//!
//! ```text
//!   8 system, 32 bytes        88 escape sequences, 32    190 volume set, 128      813 creation, long form
//!  40 volume, 32             120 volumes in the set      318 publisher, 128       830 modification
//!  80 blocks (both orders)   128 bytes of a block        446 preparer, 128        847 expiration
//!                            156 record of the root      574 application, 128     864 effective from
//! ```

use veduta_api::{MountError, Timestamp};

use crate::bytes::{u16_le, u32_le};
use crate::error::{Error, SECTOR};
use crate::image::Image;
use crate::record::Record;
use crate::{names, time};

/// Sectors; the first descriptor of a session, from its start.
pub(crate) const FIRST: u64 = 16;
/// Descriptors that are looked at before the set counts as endless. Linux looks at 100.
const COUNT_MAX: u64 = 100;

/// The descriptors of a session that matter here.
#[derive(Clone, Debug)]
pub(crate) struct Descriptors {
    pub(crate) primary: Descriptor,
    pub(crate) joliet: Option<Descriptor>,
    pub(crate) enhanced: Option<Descriptor>,
    /// The sector of the El Torito boot catalog.
    pub(crate) boot_catalog: Option<u32>,
    /// What a person should know of the set.
    pub(crate) warnings: Vec<String>,
}

/// A primary or supplementary descriptor.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Descriptor {
    /// The sector of the descriptor.
    pub(crate) sector: u64,
    pub(crate) system: String,
    pub(crate) name: String,
    pub(crate) set: String,
    pub(crate) publisher: String,
    pub(crate) preparer: String,
    pub(crate) application: String,
    /// Volume Space Size
    pub(crate) blocks: u32,
    /// Bytes: Logical Block Size
    pub(crate) block_size: u32,
    /// The block of the root directory.
    pub(crate) root: u64,
    /// 1, 2 or 3, if this is Joliet.
    pub(crate) joliet_level: Option<u8>,
    pub(crate) created: Option<Timestamp>,
    pub(crate) modified: Option<Timestamp>,
    pub(crate) expires: Option<Timestamp>,
    pub(crate) effective: Option<Timestamp>,
}

impl Descriptors {
    /// The set of the session that starts at sector `session`.
    pub(crate) fn read(image: &Image, session: u64) -> Result<Self, MountError> {
        let (mut primary, mut joliet, mut enhanced, mut boot_catalog) = (None, None, None, None);
        let mut warnings = Vec::new();
        let first = session + FIRST;
        for sector in first..first + COUNT_MAX {
            let bytes = match image.read_vec(sector * SECTOR, SECTOR as usize, "the volume descriptor set") {
                Ok(bytes) => bytes,
                Err(Error::Corrupt { .. }) if sector == first => return Err(no_volume(&[], first)),
                Err(error) => return Err(error.into()),
            };
            if bytes.get(1..6) != Some(b"CD001") {
                if sector == first {
                    return Err(no_volume(&bytes, first));
                }
                warnings.push(format!("the volume descriptors have no end: sector {sector} is none"));
                break;
            }
            match (bytes[0], bytes[6]) {
                (0, _) if bytes[7..].starts_with(b"EL TORITO SPECIFICATION") => {
                    boot_catalog = boot_catalog.or(u32_le(&bytes, 0x47));
                }
                // A second primary descriptor is a copy of the first.
                (1, _) if primary.is_none() => primary = Some(Descriptor::parse(&bytes, sector)?),
                (2, 2) => enhanced = enhanced.or(Some(Descriptor::parse(&bytes, sector)?)),
                (2, _) => {
                    let found = Descriptor::parse(&bytes, sector)?;
                    joliet = joliet.or(found.joliet_level.is_some().then_some(found));
                }
                (255, _) => break,
                _ => {}
            }
        }
        let primary =
            primary.ok_or_else(|| Error::corrupt(first * SECTOR, "no primary volume descriptor"))?;
        Ok(Self { primary, joliet, enhanced, boot_catalog, warnings })
    }
}

/// Why the sector where the set should start is none of ours.
fn no_volume(bytes: &[u8], sector: u64) -> MountError {
    let has = |at: usize, word: &[u8]| bytes.get(at..).is_some_and(|rest| rest.starts_with(word));
    if has(9, b"CDROM") {
        MountError::unsupported("this is a High Sierra volume, the form before ISO 9660, which is not read")
    } else if has(1, b"BEA01") || has(1, b"NSR0") {
        MountError::unsupported("this volume has only a UDF file system, which is not read")
    } else {
        MountError::wrong_type(format!(
            "no ISO 9660 volume: there is no volume descriptor at sector {sector}"
        ))
    }
}

impl Descriptor {
    pub(crate) fn parse(bytes: &[u8], sector: u64) -> Result<Self, Error> {
        let wrong = |at: u64, what: String| Error::corrupt(sector * SECTOR + at, what);
        let escapes = bytes.get(88..120).unwrap_or_default();
        let joliet_level = [(b"%/@", 1), (b"%/C", 2), (b"%/E", 3)]
            .into_iter()
            .find(|(escape, _)| escapes.windows(3).any(|window| window == *escape))
            .map(|(_, level)| level);
        let block_size = u32::from(u16_le(bytes, 128).unwrap_or(0));
        if !matches!(block_size, 512 | 1024 | 2048) {
            return Err(wrong(128, format!("a volume of blocks of {block_size} bytes")));
        }
        let record = Record::parse(bytes.get(156..190).unwrap_or_default());
        let root = match record {
            Ok(Some(root)) if root.is_directory() => root.block,
            Ok(_) => return Err(wrong(156, "the root is not a directory".into())),
            Err(what) => return Err(wrong(156, format!("the root: {what}"))),
        };
        let text = |at: usize, len: usize| text(bytes.get(at..at + len).unwrap_or_default(), joliet_level);
        let moment = |at: usize| bytes.get(at..).and_then(time::long);
        Ok(Self {
            sector,
            system: text(8, 32),
            name: text(40, 32),
            set: text(190, 128),
            publisher: text(318, 128),
            preparer: text(446, 128),
            application: text(574, 128),
            blocks: u32_le(bytes, 80).unwrap_or(0),
            block_size,
            root,
            joliet_level,
            created: moment(813),
            modified: moment(830),
            expires: moment(847),
            effective: moment(864),
        })
    }

    /// Bytes: what the volume says it takes up.
    pub(crate) fn size(&self) -> u64 {
        u64::from(self.blocks) * u64::from(self.block_size)
    }
}

/// A field of text, without what it is filled up with.
fn text(bytes: &[u8], joliet_level: Option<u8>) -> String {
    let bytes = if joliet_level.is_some() { names::joliet(bytes) } else { bytes.to_vec() };
    let text = String::from_utf8_lossy(&bytes);
    text.trim_end_matches([' ', '\0']).to_owned()
}
