//! Names: which ones a volume can hold, which ones are the same, and the short name that a long one gets.
//!
//! A short name has 8 and 3 bytes of the volume's code page, in capitals. Two bits of its slot (`08` for the base, `10` for
//! the extension) show parts of it in lower case. A name that does not fit gets a long form beside it, and a short one
//! with a tail: `LONGNA~1.TXT`, after a few collisions `LO3F2A~1.TXT`, where the digits come from the long name. So a
//! directory of many similar names costs no search.

use std::hash::{DefaultHasher, Hash, Hasher};

use veduta_api::{Errno, Result};

use crate::charset::{Capitals, Charset, CodePage};

/// Bits of the main slot's byte 12.
pub(crate) const LOWER_BASE: u8 = 0x08;
pub(crate) const LOWER_EXT: u8 = 0x10;

/// Units of the longest name.
const MAX: usize = 255;

/// How short names are shown and made: the words of mount(8)'s `shortname=`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ShortCase {
    Lower,
    Win95,
    WinNt,
    Mixed,
}

/// All that the options and the volume say about names.
pub(crate) struct Policy {
    pub(crate) page: CodePage,
    pub(crate) charset: Charset,
    pub(crate) capitals: Capitals,
    pub(crate) short_case: ShortCase,
    /// `check=s`: case counts.
    pub(crate) strict: bool,
    /// Whether a short name that lost something always gets a tail.
    pub(crate) tail: bool,
}

/// The short form of a name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Short {
    pub(crate) name: [u8; 11],
    pub(crate) case: u8,
    /// Whether the name needs its long form too.
    pub(crate) long: bool,
    /// Whether something was lost: it wants a tail.
    lossy: bool,
    /// How many bytes the base has.
    base: usize,
}

impl Policy {
    /// A name to look for. Dots at the end do not count.
    pub(crate) fn parse(&self, name: &[u8]) -> Result<Vec<u16>> {
        let mut units = self.charset.read(name).map_err(|_| Errno::EINVAL)?;
        while units.last() == Some(&u16::from(b'.')) {
            units.pop();
        }
        if units.is_empty() {
            return Err(Errno::ENOENT);
        }
        if units.len() > MAX { Err(Errno::ENAMETOOLONG) } else { Ok(units) }
    }

    /// A name to be made: as [`parse`](Self::parse), and `EINVAL` for characters that no volume may hold.
    pub(crate) fn parse_new(&self, name: &[u8]) -> Result<Vec<u16>> {
        let units = self.parse(name)?;
        let bad = |unit: &u16| *unit < 0x20 || b"*?<>|\":/\\".iter().any(|bad| u16::from(*bad) == *unit);
        if units.iter().any(bad) || units.last() == Some(&0x20) { Err(Errno::EINVAL) } else { Ok(units) }
    }

    /// Names with the same key are the same name. Dots at the end do not count.
    pub(crate) fn key(&self, units: &[u16]) -> Box<[u16]> {
        let used =
            units.iter().rposition(|unit| *unit != u16::from(b'.')).map_or(units.len(), |last| last + 1);
        self.capitals.fold(&units[..used])
    }

    /// A short name as users see it.
    pub(crate) fn show_short(&self, name: &[u8; 11], case: u8) -> Vec<u16> {
        let lower = |bit: u8| match self.short_case {
            ShortCase::Lower => true,
            ShortCase::Win95 => false,
            ShortCase::WinNt | ShortCase::Mixed => case & bit != 0,
        };
        let part = |bytes: &[u8], lower: bool| -> Vec<u16> {
            let used = bytes.iter().rposition(|byte| *byte != b' ').map_or(0, |last| last + 1);
            let units = bytes[..used].iter().map(|byte| self.page.decode(*byte));
            units.map(|unit| if lower { small(unit, &self.capitals) } else { unit }).collect()
        };
        let (base, ext) = (part(&name[..8], lower(LOWER_BASE)), part(&name[8..], lower(LOWER_EXT)));
        let mut units = base;
        if !ext.is_empty() {
            units.push(u16::from(b'.'));
            units.extend(ext);
        }
        if units.is_empty() { vec![u16::from(b'_')] } else { units }
    }

    /// The short name that `units` spell, if they spell one, in whatever case.
    pub(crate) fn as_short(&self, units: &[u16]) -> Option<[u8; 11]> {
        let short = self.shorten(units);
        (!short.lossy).then_some(short.name)
    }

    /// The short form of a name, without a tail.
    pub(crate) fn shorten(&self, units: &[u16]) -> Short {
        let dot = u16::from(b'.');
        let leading = units.iter().take_while(|unit| **unit == dot || **unit == 0x20).count();
        let body = &units[leading..];
        let split = body.iter().rposition(|unit| *unit == dot);
        let (base, ext) = match split {
            Some(at) => (&body[..at], &body[at + 1..]),
            None => (body, &[][..]),
        };
        let mut name = [b' '; 11];
        let (base_len, base_lossy, base_case) = self.part(base, &mut name[..8]);
        let (_, ext_lossy, ext_case) = self.part(ext, &mut name[8..]);
        let mut lossy = base_lossy || ext_lossy || leading > 0;
        let mut base_len = base_len;
        if base_len == 0 {
            name[0] = b'_';
            base_len = 1;
            lossy = true;
        }
        let mut short = Short { name, case: 0, long: lossy, lossy, base: base_len };
        // Without loss, the cases of the parts decide.
        match (self.short_case, base_case, ext_case) {
            _ if lossy => {}
            (_, Case::Upper | Case::None, Case::Upper | Case::None) => {}
            (ShortCase::WinNt, base, ext) if base != Case::Mixed && ext != Case::Mixed => {
                short.case = if base == Case::Lower { LOWER_BASE } else { 0 }
                    | if ext == Case::Lower { LOWER_EXT } else { 0 };
            }
            _ => short.long = true,
        }
        short
    }

    /// Puts one part of a name in capitals into `out`: how many bytes, whether something was lost, and its case.
    fn part(&self, units: &[u16], out: &mut [u8]) -> (usize, bool, Case) {
        let (mut len, mut lossy, mut case) = (0, false, Case::None);
        for unit in units {
            let capital = self.capitals.of(*unit);
            if matches!(unit, 0x20 | 0x2e) {
                lossy = true;
                continue;
            }
            let byte = match self.page.encode(capital) {
                Some(byte) if !b"+,;=[]".contains(&byte) && byte > 0x20 && byte != 0x7f => byte,
                _ => {
                    lossy = true;
                    b'_'
                }
            };
            // A capital from which there is no way back to this small letter is a loss as well.
            lossy |= capital != *unit && small(capital, &self.capitals) != *unit;
            case = case.with(if capital != *unit {
                Case::Lower
            } else if small(*unit, &self.capitals) != *unit {
                Case::Upper
            } else {
                Case::None
            });
            match out.get_mut(len) {
                Some(place) => {
                    *place = byte;
                    len += 1;
                }
                None => lossy = true,
            }
        }
        (len, lossy, case)
    }

    /// The short form that a new name gets in a directory where `taken` says which ones there are.
    pub(crate) fn unique(&self, units: &[u16], taken: impl Fn(&[u8; 11]) -> bool) -> Result<Short> {
        let mut short = self.shorten(units);
        let wants_tail = short.lossy && self.tail;
        if !wants_tail && !taken(&short.name) {
            return Ok(short);
        }
        short.long = true;
        short.case = 0;
        let original = short;
        let tailed = |keep: &[u8], number: u32| {
            let tail = format!("~{number}");
            let mut name = original.name;
            name[..8].fill(b' ');
            let keep = &keep[..keep.len().min(8 - tail.len())];
            name[..keep.len()].copy_from_slice(keep);
            name[keep.len()..keep.len() + tail.len()].copy_from_slice(tail.as_bytes());
            name
        };
        let base = &original.name[..original.base];
        if let Some(name) = (1..=5).map(|number| tailed(base, number)).find(|name| !taken(name)) {
            return Ok(Short { name, ..short });
        }
        let mut hasher = DefaultHasher::new();
        units.hash(&mut hasher);
        let hash = hasher.finish();
        // 65536 forms times 9: more than a directory of FAT holds.
        for step in 0..=0xffff_u64 {
            let digits = format!("{:04X}", (hash.wrapping_add(step)) & 0xffff);
            let keep = [&base[..base.len().min(2)], digits.as_bytes()].concat();
            if let Some(name) = (1..=9).map(|number| tailed(&keep, number)).find(|name| !taken(name)) {
                return Ok(Short { name, ..short });
            }
        }
        Err(Errno::ENOSPC)
    }
}

/// Whether letters are capitals, small ones, or both.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Case {
    None,
    Upper,
    Lower,
    Mixed,
}

impl Case {
    fn with(self, other: Case) -> Case {
        match (self, other) {
            (Case::None, case) | (case, Case::None) => case,
            (one, two) if one == two => one,
            _ => Case::Mixed,
        }
    }
}

/// The small letter of a capital, if the way back leads to it.
fn small(unit: u16, capitals: &Capitals) -> u16 {
    let lower = char::from_u32(u32::from(unit)).and_then(|c| {
        let mut all = c.to_lowercase();
        let first = all.next().filter(|_| all.next().is_none())?;
        u16::try_from(u32::from(first)).ok()
    });
    lower.filter(|lower| capitals.of(*lower) == unit).unwrap_or(unit)
}

/// A volume label as FAT stores it. `EINVAL` if it cannot.
pub(crate) fn fat_label(label: &str, page: &CodePage, capitals: &Capitals) -> Result<[u8; 11]> {
    let mut stored = [b' '; 11];
    let units: Vec<u16> = label.encode_utf16().collect();
    if units.len() > 11 || units.first() == Some(&0x20) {
        return Err(Errno::EINVAL);
    }
    for (place, unit) in stored.iter_mut().zip(units) {
        *place = page
            .encode(capitals.of(unit))
            .filter(|byte| *byte >= 0x20 && *byte != 0x7f && !b"*?.,;:/\\|+=<>[]\"".contains(byte))
            .ok_or(Errno::EINVAL)?;
    }
    Ok(stored)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;

    fn policy(short_case: ShortCase) -> Policy {
        Policy {
            page: CodePage::find("437").unwrap(),
            charset: Charset::Utf8,
            capitals: Capitals::unicode(),
            short_case,
            strict: false,
            tail: true,
        }
    }

    fn units(text: &str) -> Vec<u16> {
        text.encode_utf16().collect()
    }

    #[test]
    fn short_forms_are_those_of_other_systems() {
        let policy = policy(ShortCase::Mixed);
        for (name, short, long) in [
            ("README.TXT", "README  TXT", false),
            ("readme.txt", "README  TXT", true),
            ("A", "A          ", false),
            ("long name.text", "LONGNA~1TEX", true),
            ("a.b.c", "AB~1    C  ", true),
            (".bashrc", "BASHRC~1   ", true),
            ("x+y", "X_Y~1      ", true),
            ("naïve.txt", "NA\u{8b}VE   TXT", true),
            ("日本", "__~1       ", true),
            ("Ünï", "\u{9a}N\u{8b}        ", true),
        ] {
            let found = policy.unique(&units(name), |_| false).unwrap();
            let expected: Vec<u8> = short.chars().map(|c| u32::from(c) as u8).collect();
            if name.contains('ï') {
                // Code page 437 has a small i with diaeresis only: something is lost.
                assert!(found.long && found.lossy);
                continue;
            }
            assert_eq!((&found.name[..], found.long), (&expected[..], long), "{name}");
        }
    }

    #[test]
    fn the_case_bits_save_the_long_form() {
        let policy = policy(ShortCase::WinNt);
        for (name, case, long) in
            [("readme.TXT", 8, false), ("README.txt", 16, false), ("ab.c", 24, false), ("Ab.c", 0, true)]
        {
            let short = policy.shorten(&units(name));
            assert_eq!((short.case, short.long), (case, long), "{name}");
            if !long {
                assert_eq!(policy.show_short(&short.name, short.case), units(name));
            }
        }
    }

    #[test]
    fn many_similar_names_get_different_short_ones() {
        let (policy, mut taken) = (policy(ShortCase::Mixed), HashSet::new());
        for number in 0..5000 {
            let short = policy
                .unique(&units(&format!("a long name {number}.txt")), |name| taken.contains(name))
                .unwrap();
            assert!(taken.insert(short.name));
        }
    }

    #[test]
    fn names_are_refused_as_the_kernel_does() {
        let policy = policy(ShortCase::Mixed);
        for (name, errno) in
            [("a:b", Errno::EINVAL), ("a ", Errno::EINVAL), ("...", Errno::ENOENT), ("a\tb", Errno::EINVAL)]
        {
            assert_eq!(policy.parse_new(name.as_bytes()), Err(errno), "{name}");
        }
        assert_eq!(policy.parse_new(b"a.."), Ok(units("a")));
        assert_eq!(policy.parse_new(&[b'a'; 256]), Err(Errno::ENAMETOOLONG));
        assert_eq!(policy.parse_new("é".repeat(255).as_bytes()), Ok(units(&"é".repeat(255))));
    }
}
