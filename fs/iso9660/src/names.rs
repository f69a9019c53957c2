//! Names, as the three kinds of trees spell them, made fit for a directory of Linux.
//!
//! A plain name is `NAME.EXT;1` in capitals: base, extension and version. Joliet has UCS-2 or UTF-16, most significant
//! byte first, and ISO 9660:1999 bytes of no stated encoding, both often with the version too.

/// `map=`: what is done to a plain name.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Map {
    /// Nothing.
    Off,
    /// Lower case, without version 1 and the dot of an empty extension.
    #[default]
    Normal,
    /// As `Normal`, and RISC OS file types become suffixes.
    Acorn,
}

/// A plain name. What is done is what Linux does, so that paths written for it stay valid.
pub(crate) fn plain(name: &[u8], system_use: &[u8], is_directory: bool, map: Map) -> Vec<u8> {
    if map == Map::Off {
        return name.to_vec();
    }
    let name = name.strip_suffix(b";1").map_or(name, |base| base.strip_suffix(b".").unwrap_or(base));
    let mut name: Vec<u8> = name
        .iter()
        .map(|byte| match byte {
            b';' | b'/' => b'.',
            byte => byte.to_ascii_lowercase(),
        })
        .collect();
    if map == Map::Acorn {
        acorn(&mut name, system_use, is_directory);
    }
    name
}

/// RISC OS keeps load address, execution address and attributes behind the word ARCHIMEDES, in 32 bytes. A load
/// address from FFF00000 on holds a file type in its bits 8 to 19; bit 0 of the attributes' last byte marks a name
/// whose `!` had to be written as `_`.
fn acorn(name: &mut Vec<u8>, system_use: &[u8], is_directory: bool) {
    let Some(fields) = system_use.strip_prefix(b"ARCHIMEDES").filter(|_| system_use.len() == 32) else {
        return;
    };
    if name.first() == Some(&b'_') && fields[9] & 1 == 1 {
        name[0] = b'!';
    }
    if !is_directory && fields[3] == 0xff && fields[2] & 0xf0 == 0xf0 {
        let kind = u16::from(fields[2] & 0x0f) << 8 | u16::from(fields[1]);
        name.extend_from_slice(format!(",{kind:03x}").as_bytes());
    }
}

/// A name of Joliet; what is no Unicode becomes U+FFFD.
pub(crate) fn joliet(name: &[u8]) -> Vec<u8> {
    let units = name.chunks_exact(2).map(|pair| u16::from_be_bytes([pair[0], pair[1]]));
    let text: String = char::decode_utf16(units).map(|c| c.unwrap_or(char::REPLACEMENT_CHARACTER)).collect();
    let text = text.strip_suffix(";1").unwrap_or(&text);
    // Windows takes no names that end in dots, and writers add one where the extension is empty.
    let trimmed = text.trim_end_matches('.');
    if trimmed.is_empty() { text } else { trimmed }.as_bytes().to_vec()
}

/// A name of ISO 9660:1999.
pub(crate) fn enhanced(name: &[u8]) -> Vec<u8> {
    name.strip_suffix(b";1").unwrap_or(name).to_vec()
}

/// Makes a name that no directory can hold (empty, `.`, `..`, with a slash or a NUL) one that it can.
pub(crate) fn fit(mut name: Vec<u8>) -> Vec<u8> {
    for byte in &mut name {
        if matches!(byte, b'/' | 0) {
            *byte = b'_';
        }
    }
    match name.as_slice() {
        b"" | b"." => b"_".to_vec(),
        b".." => b"__".to_vec(),
        _ => name,
    }
}

/// The form under which names that differ only in case are the same.
pub(crate) fn fold(name: &[u8]) -> Vec<u8> {
    match std::str::from_utf8(name) {
        Ok(text) => text.to_lowercase().into_bytes(),
        Err(_) => name.to_ascii_lowercase(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn plain_names_lose_what_nobody_types() {
        for (from, to) in [
            ("README.TXT;1", "readme.txt"),
            ("README.;1", "readme"),
            ("OLD.C;2", "old.c.2"),
            ("A.B", "a.b"),
            ("DIR", "dir"),
            ("DOT.", "dot."),
        ] {
            assert_eq!(plain(from.as_bytes(), b"", false, Map::Normal), to.as_bytes(), "{from}");
            assert_eq!(plain(from.as_bytes(), b"", false, Map::Off), from.as_bytes());
        }
    }

    #[test]
    fn risc_os_types_become_suffixes() {
        let mut area = *b"ARCHIMEDES\0\xf9\xff\xff\0\0\0\0\0\x01\0\0\0\0\0\0\0\0\0\0\0\0";
        assert_eq!(plain(b"_RUN", &area, false, Map::Acorn), b"!run,ff9");
        assert_eq!(plain(b"_APP", &area, true, Map::Acorn), b"!app");
        assert_eq!(plain(b"_RUN", &area, false, Map::Normal), b"_run");
        area[0] = b'B';
        assert_eq!(plain(b"_RUN", &area, false, Map::Acorn), b"_run");
    }

    #[test]
    fn joliet_names_are_unicode_without_version_and_last_dots() {
        let wide = |text: &str| text.encode_utf16().flat_map(u16::to_be_bytes).collect::<Vec<u8>>();
        assert_eq!(joliet(&wide("Grüße 😀.txt;1")), "Grüße 😀.txt".as_bytes());
        assert_eq!(joliet(&wide("empty.;1")), b"empty");
        assert_eq!(joliet(&wide("...")), b"...");
        assert_eq!(joliet(&[0xd8, 0, 0, b'x', 9]), "\u{fffd}x".as_bytes());
    }

    #[test]
    fn no_name_can_leave_its_directory() {
        for (from, to) in [("", "_"), (".", "_"), ("..", "__"), ("a/b\0c", "a_b_c"), ("...", "...")] {
            assert_eq!(fit(from.as_bytes().to_vec()), to.as_bytes());
        }
    }
}
