//! Characters: how names appear to users (`iocharset=`), how short names are stored (`codepage=`), and which
//! characters differ in case only.
//!
//! Names on the disk are UTF-16, and nothing keeps a disk from holding a lone surrogate. In UTF-8 it appears as the three
//! bytes that its number would have (WTF-8), so that such a file can be named; in other character sets whatever
//! they lack appears as `:` and four hexadecimal digits, since a colon is in no name of FAT. A slash or a NUL, which no
//! name may hold, appears as the private character U+F02F or U+F000.

use std::collections::HashMap;
use std::sync::LazyLock;

use crate::pages::PAGES;

/// A code page: one byte a character, ASCII below.
pub(crate) struct CodePage {
    upper: [u16; 128],
    bytes: HashMap<u16, u8>,
}

impl CodePage {
    /// By its number (`850`) or its name (`cp850`, `iso8859-1`).
    pub(crate) fn find(word: &str) -> Option<Self> {
        let (_, _, text) =
            PAGES.iter().find(|(number, name, _)| *name == word || number.to_string() == word)?;
        let mut upper = [0; 128];
        for (unit, c) in upper.iter_mut().zip(text.chars()) {
            *unit = u32::from(c) as u16;
        }
        let bytes = upper.iter().enumerate().map(|(at, unit)| (*unit, 128 + at as u8)).collect();
        Some(Self { upper, bytes })
    }

    /// The names that [`find`](Self::find) knows.
    pub(crate) fn names() -> String {
        PAGES.iter().map(|(_, name, _)| *name).collect::<Vec<_>>().join(", ")
    }

    pub(crate) fn decode(&self, byte: u8) -> u16 {
        match byte {
            0..128 => u16::from(byte),
            _ => self.upper[usize::from(byte - 128)],
        }
    }

    pub(crate) fn encode(&self, unit: u16) -> Option<u8> {
        if unit < 128 { Some(unit as u8) } else { self.bytes.get(&unit).copied() }
    }
}

/// The character set in which users see names.
pub(crate) enum Charset {
    Utf8,
    Page(Box<CodePage>),
}

/// A name that cannot be one in this character set.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct NotText;

impl Charset {
    /// A name as users see it. Never empty for a name that is not, and never `.` or `..`.
    pub(crate) fn show(&self, units: &[u16]) -> Vec<u8> {
        let dots = matches!(units, [0x2e] | [0x2e, 0x2e]);
        let units = units.iter().map(|unit| match unit {
            0 | 0x2f => 0xf000 + unit,
            0x2e if dots => 0xf02e,
            _ => *unit,
        });
        let mut shown = Vec::new();
        match self {
            Charset::Utf8 => {
                for unit in char::decode_utf16(units) {
                    match unit {
                        Ok(c) => shown.extend_from_slice(c.encode_utf8(&mut [0; 4]).as_bytes()),
                        Err(lone) => {
                            let unit = lone.unpaired_surrogate();
                            let low = |shift: u16| 0x80 | (unit >> shift & 0x3f) as u8;
                            shown.extend_from_slice(&[0xe0 | (unit >> 12) as u8, low(6), low(0)]);
                        }
                    }
                }
            }
            Charset::Page(page) => {
                for unit in units {
                    match page.encode(unit).filter(|byte| !matches!(byte, 0 | b'/')) {
                        Some(byte) => shown.push(byte),
                        None => shown.extend_from_slice(format!(":{unit:04x}").as_bytes()),
                    }
                }
            }
        }
        shown
    }

    /// The inverse of [`show`](Self::show).
    pub(crate) fn read(&self, mut name: &[u8]) -> Result<Vec<u16>, NotText> {
        let mut units = Vec::with_capacity(name.len());
        match self {
            // Each step takes a byte at least.
            Charset::Utf8 => {
                while !name.is_empty() {
                    let text = match std::str::from_utf8(name) {
                        Ok(text) => text,
                        Err(wrong) => {
                            std::str::from_utf8(&name[..wrong.valid_up_to()]).map_err(|_| NotText)?
                        }
                    };
                    units.extend(text.encode_utf16());
                    name = &name[text.len()..];
                    match name {
                        [] => {}
                        // A lone surrogate, as `show` writes it.
                        [0xed, second @ 0xa0..=0xbf, third @ 0x80..=0xbf, rest @ ..] => {
                            units.push(0xd000 | u16::from(second & 0x3f) << 6 | u16::from(third & 0x3f));
                            name = rest;
                        }
                        _ => return Err(NotText),
                    }
                }
            }
            Charset::Page(page) => {
                while let Some((first, rest)) = name.split_first() {
                    let escaped = rest.get(..4).filter(|_| *first == b':').and_then(|digits| {
                        let digits = std::str::from_utf8(digits).ok()?;
                        u16::from_str_radix(digits, 16).ok()
                    });
                    units.push(escaped.unwrap_or_else(|| page.decode(*first)));
                    name = if escaped.is_some() { &rest[4..] } else { rest };
                }
            }
        }
        Ok(units)
    }
}

/// What each unit is in capitals: names that agree in capitals are the same name.
pub(crate) struct Capitals(Box<[u16]>);

/// The capitals that Unicode defines, one unit for one.
static UNICODE: LazyLock<Box<[u16]>> = LazyLock::new(|| {
    let capital = |unit: u16| {
        let mut all = char::from_u32(u32::from(unit))?.to_uppercase();
        let first = all.next().filter(|_| all.next().is_none())?;
        u16::try_from(u32::from(first)).ok()
    };
    (0..=u16::MAX).map(|unit| capital(unit).unwrap_or(unit)).collect()
});

impl Capitals {
    /// Those of Unicode.
    pub(crate) fn unicode() -> Self {
        Self(UNICODE.clone())
    }

    /// From the up-case table of an exFAT volume: units in order; `ffff` and a count stand for that many that are their own
    /// capitals. `None` if it does not even keep ASCII.
    pub(crate) fn from_table(table: &[u8]) -> Option<Self> {
        let mut capitals: Vec<u16> = Vec::with_capacity(1 << 16);
        let mut units = table.chunks_exact(2).map(|unit| u16::from_le_bytes([unit[0], unit[1]]));
        while let Some(unit) = units.next().filter(|_| capitals.len() < 1 << 16) {
            match (unit, units.len()) {
                (0xffff, 1..) => {
                    let count = usize::from(units.next().unwrap_or(0)).min((1 << 16) - capitals.len());
                    let from = capitals.len();
                    capitals.extend((from..from + count).map(|own| own as u16));
                }
                _ => capitals.push(unit),
            }
        }
        let from = capitals.len();
        capitals.extend((from..1 << 16).map(|own| own as u16));
        let ascii = (0..128_u16).all(|unit| capitals[usize::from(unit)] == UNICODE[usize::from(unit)]);
        ascii.then(|| Self(capitals.into()))
    }

    pub(crate) fn of(&self, unit: u16) -> u16 {
        self.0[usize::from(unit)]
    }

    pub(crate) fn fold(&self, units: &[u16]) -> Box<[u16]> {
        units.iter().map(|unit| self.of(*unit)).collect()
    }
}

/// The checksum of an up-case table.
pub(crate) fn table_checksum(table: &[u8]) -> u32 {
    table.iter().fold(0_u32, |sum, byte| sum.rotate_right(1).wrapping_add(u32::from(*byte)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn any_units_can_be_shown_and_read_back() {
        let names: [&[u16]; 5] = [
            &[0xd83d, 0xde00],
            &[0xd83d, 0x41],
            &[0xde00, 0xd83d],
            &[0x20ac, 0xdfff],
            &[0x41, 0xd800, 0xd800],
        ];
        for charset in [Charset::Utf8, Charset::Page(Box::new(CodePage::find("cp850").unwrap()))] {
            for units in names {
                assert_eq!(charset.read(&charset.show(units)), Ok(units.to_vec()));
            }
        }
    }

    #[test]
    fn what_is_not_utf_8_is_refused() {
        for wrong in [&b"a\xff"[..], b"\xc3", b"\xed\xa0"] {
            assert_eq!(Charset::Utf8.read(wrong), Err(NotText));
        }
    }

    #[test]
    fn code_pages_are_as_published() {
        for (word, byte, unit) in
            [("437", 0x81, 'ü'), ("850", 0xe1, 'ß'), ("852", 0xa5, 'ą'), ("1252", 0x80, '€')]
        {
            let page = CodePage::find(word).unwrap();
            assert_eq!(u32::from(page.decode(byte)), u32::from(unit));
            assert_eq!(page.encode(u32::from(unit) as u16), Some(byte));
        }
        for (_, name, _) in PAGES {
            let page = CodePage::find(name).unwrap();
            assert_eq!(page.bytes.len(), 128, "{name} is reversible");
        }
        assert!(CodePage::find("cp932").is_none());
    }

    #[test]
    fn a_compressed_table_of_capitals_is_unpacked() {
        // 97 of their own, then 26 capitals.
        let mut table = vec![0xff, 0xff, 97, 0];
        (b'A'..=b'Z').for_each(|c| table.extend([c, 0]));
        let capitals = Capitals::from_table(&table).unwrap();
        assert_eq!((capitals.of(0x61), capitals.of(0x7a), capitals.of(0xe4)), (0x41, 0x5a, 0xe4));
        assert!(Capitals::from_table(&[0x41; 256]).is_none());
    }
}
