//! Files with holes in archives: GNU tar's forms for pax archives ("Storing Sparse Files" in its manual).
//!
//! The ranges of a file that are data follow each other in the archive. Where they belong is said, besides the true size, by
//!
//! * 1.0: a map before them, in the content: lines of decimal numbers (how many ranges; offset and length of each), zeros to the next multiple of
//!   512 bytes. Attributes `GNU.sparse.major`, `.minor`, `.realsize` and `.name`. This is what is written, and what bsdtar writes.
//! * 0.1: an attribute `GNU.sparse.map`, numbers with commas between them; `.size` and `.name`.
//! * 0.0: attributes `GNU.sparse.offset` and `.numbytes`, in turn, for each range; `.size`.
//!
//! All three are read. (The older form, with an entry type of its own, is the tar crate's work, which gives the holes as zeros.)

use std::io::{self, Read};
use std::ops::Range;

use veduta_api::{Errno, File, Seek};

/// Bytes; to what GNU tar fills up each range but one at the end of the file.
const BLOCK: u64 = 512;

/// Bytes; the longest number of a map, with the end of its line.
const NUMBER_MAX: usize = 20;

/// The ranges of a file that are data, and whether anything is left out with them. Their ends are multiples of 512, or the end of the file.
pub(super) fn data_of(file: &dyn File, size: u64) -> Result<(Vec<Range<u64>>, bool), Errno> {
    let mut ranges: Vec<Range<u64>> = Vec::new();
    let mut at = 0;
    // Each turn begins behind the last one's data, so this ends.
    while at < size {
        let start = match file.seek(Seek::Data, at) {
            Ok(start) => start.max(at) / BLOCK * BLOCK,
            Err(Errno::ENXIO) => break,
            Err(Errno::EOPNOTSUPP) => at,
            Err(error) => return Err(error),
        };
        if start >= size {
            break;
        }
        let end = file.seek(Seek::Hole, start.max(at)).unwrap_or(size).clamp(start.max(at) + 1, size);
        let end = end.checked_next_multiple_of(BLOCK).unwrap_or(size).min(size);
        match ranges.last_mut().filter(|last| last.end >= start) {
            Some(last) => last.end = end,
            None => ranges.push(start..end),
        }
        at = end;
    }
    let whole = 0..size;
    let has_holes = size > 0 && ranges != [whole];
    Ok((ranges, has_holes))
}

/// The map of these ranges, as it stands before them.
pub(super) fn map(ranges: &[Range<u64>], size: u64) -> Vec<u8> {
    // A hole at the end is told by a range of nothing behind it.
    let end = (ranges.last().map_or(0, |last| last.end) < size).then_some(size..size);
    let all: Vec<&Range<u64>> = ranges.iter().chain(&end).collect();
    let mut map = format!("{}\n", all.len()).into_bytes();
    for range in all {
        map.extend(format!("{}\n{}\n", range.start, range.end - range.start).bytes());
    }
    map.resize(map.len().next_multiple_of(BLOCK as usize), 0);
    map
}

/// What the attributes of an entry say about holes.
#[derive(Default)]
pub(super) struct Told {
    is_1_0: bool,
    name: Option<Vec<u8>>,
    size: Option<u64>,
    /// Offsets and lengths in turn.
    numbers: Option<Vec<u64>>,
}

/// Where the content of an entry belongs.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Layout {
    pub(super) size: u64,
    pub(super) ranges: Vec<Range<u64>>,
}

fn nonsense() -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, "what it says about its holes is nonsense")
}

impl Told {
    /// Takes an attribute, if it is about holes.
    pub(super) fn take(&mut self, key: &[u8], value: &[u8]) -> io::Result<()> {
        let Some(key) = key.strip_prefix(b"GNU.sparse.") else { return Ok(()) };
        match key {
            b"major" if value == b"1" => self.is_1_0 = true,
            b"minor" if value == b"0" => {}
            b"major" | b"minor" => {
                let message = "its holes are told of in a form that is not known";
                return Err(io::Error::new(io::ErrorKind::Unsupported, message));
            }
            b"name" => self.name = Some(value.to_vec()),
            b"realsize" | b"size" => self.size = Some(number(value)?),
            b"map" => {
                let numbers = value.split(|byte| *byte == b',').filter(|number| !number.is_empty());
                self.numbers = Some(numbers.map(number).collect::<io::Result<_>>()?);
            }
            b"offset" | b"numbytes" => self.numbers.get_or_insert_default().push(number(value)?),
            // How many there are shows.
            _ => {}
        }
        Ok(())
    }

    /// What the file is called, if not as its header says.
    pub(super) fn name(&self) -> Option<&[u8]> {
        self.name.as_deref()
    }

    /// Where the rest of the content belongs, of which the map has been read, if it is there; `None`: nothing was said of holes.
    pub(super) fn layout(self, content: &mut dyn Read) -> io::Result<Option<Layout>> {
        let numbers = match (self.is_1_0, self.numbers) {
            (true, _) => read_map(content)?,
            (false, Some(numbers)) => numbers,
            (false, None) => return Ok(None),
        };
        let size = self.size.filter(|size| i64::try_from(*size).is_ok()).ok_or_else(nonsense)?;
        let mut ranges: Vec<Range<u64>> = Vec::new();
        for pair in numbers.chunks(2) {
            let [start, len] = *pair else { return Err(nonsense()) };
            let end = start.checked_add(len).filter(|end| *end <= size).ok_or_else(nonsense)?;
            if ranges.last().is_some_and(|last| last.end > start) {
                return Err(nonsense());
            }
            ranges.push(start..end);
        }
        Ok(Some(Layout { size, ranges }))
    }
}

fn number(text: &[u8]) -> io::Result<u64> {
    let is_number = !text.is_empty() && text.iter().all(u8::is_ascii_digit);
    let text = std::str::from_utf8(text).ok().filter(|_| is_number).ok_or_else(nonsense)?;
    text.parse().map_err(|_| nonsense())
}

/// Reads a map with what fills it up. It takes room as it is read, so no more than the archive has.
fn read_map(content: &mut dyn Read) -> io::Result<Vec<u64>> {
    let mut block = [0; BLOCK as usize];
    let mut at = block.len();
    let mut next = || -> io::Result<u64> {
        let mut text = Vec::new();
        loop {
            if at == block.len() {
                content.read_exact(&mut block)?;
                at = 0;
            }
            let byte = block[at];
            at += 1;
            match byte {
                b'\n' => return number(&text),
                _ if text.len() == NUMBER_MAX => return Err(nonsense()),
                _ => text.push(byte),
            }
        }
    };
    let count = next()?;
    let mut numbers = Vec::new();
    for _ in 0..count.checked_mul(2).ok_or_else(nonsense)? {
        numbers.push(next()?);
    }
    Ok(numbers)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn told(items: &[(&str, &str)]) -> Told {
        let mut told = Told::default();
        for (key, value) in items {
            told.take(key.as_bytes(), value.as_bytes()).unwrap();
        }
        told
    }

    #[test]
    fn a_map_is_read_as_it_was_written() {
        let first = 0..512;
        for (ranges, size) in [
            (vec![], 5_u64),
            (vec![first], 5000),
            (vec![512..1024, 4096..5000], 5000),
            ((0..1000).map(|n| n * 8192..n * 8192 + 512).collect(), 1 << 40),
        ] {
            let map = map(&ranges, size);
            assert_eq!(map.len() % 512, 0);
            let of = told(&[
                ("GNU.sparse.major", "1"),
                ("GNU.sparse.minor", "0"),
                ("GNU.sparse.realsize", &size.to_string()),
            ]);
            let mut rest = map.as_slice();
            let mut layout = of.layout(&mut rest).unwrap().unwrap();
            assert!(rest.is_empty());
            layout.ranges.retain(|range| !range.is_empty());
            assert_eq!(layout, Layout { size, ranges });
        }
    }

    #[test]
    fn all_forms_say_the_same() {
        let expected = Layout { size: 9000, ranges: vec![512..1024, 8192..9000] };
        let old = [
            ("GNU.sparse.size", "9000"),
            ("GNU.sparse.numblocks", "2"),
            ("GNU.sparse.offset", "512"),
            ("GNU.sparse.numbytes", "512"),
            ("GNU.sparse.offset", "8192"),
            ("GNU.sparse.numbytes", "808"),
        ];
        assert_eq!(told(&old).layout(&mut io::empty()).unwrap(), Some(Layout { ..expected }));
        let newer = [("GNU.sparse.size", "9000"), ("GNU.sparse.map", "512,512,8192,808")];
        let layout = told(&newer).layout(&mut io::empty()).unwrap().unwrap();
        assert_eq!(layout.ranges, [512..1024, 8192..9000]);
        assert_eq!(told(&[("path", "x")]).layout(&mut io::empty()).unwrap(), None);
    }

    #[test]
    fn nonsense_is_refused() {
        for map in ["1,1,1", "5,1,4,1", "0,10", "18446744073709551615,2", "1,,x", "-1,1"] {
            let mut told = told(&[("GNU.sparse.size", "9")]);
            let done = told.take(b"GNU.sparse.map", map.as_bytes());
            let kind = done.and_then(|()| told.layout(&mut io::empty())).unwrap_err().kind();
            assert_eq!(kind, io::ErrorKind::InvalidData, "{map}");
        }
        for map in [
            "",
            "1\n",
            "x\n1\n1\n",
            "99999999999999999999\n",
            "18446744073709551615\n",
            "111111111111111111111",
        ] {
            let mut block = map.as_bytes().to_vec();
            block.resize(512, 0);
            let of = told(&[("GNU.sparse.major", "1"), ("GNU.sparse.realsize", "9")]);
            assert!(of.layout(&mut block.as_slice()).is_err(), "{map}");
        }
        assert!(Told::default().take(b"GNU.sparse.major", b"2").is_err());
    }
}
