//! Names in casefold directories: when two are the same.
//!
//! Both are folded: case folded in full, decomposed canonically, without the code points that Unicode calls
//! ignorable. Names that are not UTF-8 are compared as bytes.
//!
//! # Limits
//!
//! The kernel's tables are of Unicode 12.1, ours are newer. Names with characters that came later, which the
//! kernel compares as bytes, are folded here.

use unicode_normalization::UnicodeNormalization;

/// A name that is looked for, and how it is compared.
pub(crate) struct Wanted<'a> {
    /// As it was given.
    pub(crate) name: &'a [u8],
    /// What is compared in a casefold directory; `None` elsewhere, and for a name that is not UTF-8.
    folded: Option<String>,
}

impl<'a> Wanted<'a> {
    pub(crate) fn new(name: &'a [u8], casefold: bool) -> Self {
        Self { name, folded: if casefold { fold(name) } else { None } }
    }

    /// What a directory's index is searched by.
    pub(crate) fn hashed(&self) -> &[u8] {
        self.folded.as_deref().map_or(self.name, str::as_bytes)
    }

    /// Whether an entry's name is the one that is looked for.
    pub(crate) fn is(&self, entry: &[u8]) -> bool {
        if entry == self.name {
            return true;
        }
        match &self.folded {
            None => false,
            Some(folded) if entry.is_ascii() => entry.eq_ignore_ascii_case(folded.as_bytes()),
            Some(folded) => fold(entry).is_some_and(|entry| entry == *folded),
        }
    }
}

/// The folded form of a name; `None` if it is not UTF-8.
fn fold(name: &[u8]) -> Option<String> {
    let name = std::str::from_utf8(name).ok()?;
    if name.is_ascii() {
        return Some(name.to_ascii_lowercase());
    }
    let kept: String = name.chars().filter(|c| !is_ignorable(*c)).collect();
    Some(caseless::default_case_fold_str(&kept).nfd().collect())
}

/// Default_Ignorable_Code_Point of DerivedCoreProperties.txt.
fn is_ignorable(c: char) -> bool {
    matches!(u32::from(c),
        0xad | 0x34f | 0x61c | 0x115f..=0x1160 | 0x17b4..=0x17b5 | 0x180b..=0x180f | 0x200b..=0x200f
        | 0x202a..=0x202e | 0x2060..=0x206f | 0x3164 | 0xfe00..=0xfe0f | 0xfeff | 0xffa0
        | 0xfff0..=0xfff8 | 0x1bca0..=0x1bca3 | 0x1d173..=0x1d17a | 0xe0000..=0xe0fff)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_differ_in_case_or_composition_are_the_same() {
        for (one, other, same) in [
            ("README", "readme", true),
            ("a", "b", false),
            ("\u{c5}ngstr\u{f6}m", "a\u{30a}ngstro\u{308}m", true),
            ("Stra\u{df}e", "STRASSE", true),
            ("k", "\u{212a}", true),
            ("a\u{ad}b", "AB", true),
        ] {
            assert_eq!(Wanted::new(one.as_bytes(), true).is(other.as_bytes()), same, "{one} {other}");
            assert_eq!(Wanted::new(other.as_bytes(), true).is(one.as_bytes()), same, "{other} {one}");
        }
        assert!(!Wanted::new(b"A", false).is(b"a"));
        assert!(!Wanted::new(b"A\xff", true).is(b"a\xff"));
    }
}
