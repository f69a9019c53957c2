//! The System Use Sharing Protocol (IEEE P1281): fields in the system use area of a directory record.
//!
//! A field is two letters, its length (one byte, of the whole field), a version, and data. `CE` names a continuation
//! area elsewhere (block, offset and length, in both byte orders) where the fields go on when this area is
//! finished; `ST`, or less than a field, ends an area. `SP` in the root's record of itself says that the protocol is
//! used, and how many bytes to skip in every other system use area.

use crate::bytes::u32_le;
use crate::error::{Error, Result};
use crate::image::Image;

/// Bytes; the part of an image that is read at once for continuation areas, which lie close together.
const WINDOW: usize = 2048;
/// Bytes; a continuation area is at most this long. Writers keep to a sector.
const AREA_MAX: u32 = 32 << 10;
/// Links of a chain of continuation areas. Linux allows 32.
const CHAIN_MAX: u32 = 64;
/// Bytes of continuation areas that the records of one directory may have in all, so that records that all
/// point at the same long chain do not multiply the work.
const BUDGET: u64 = 256 << 20;

/// One field.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Field<'a> {
    pub(crate) tag: [u8; 2],
    pub(crate) version: u8,
    /// What follows the four bytes that every field has.
    pub(crate) data: &'a [u8],
}

/// Where continuation areas come from: the image, one window of it remembered, and how much more may be read.
pub(crate) struct Areas<'a> {
    image: &'a Image,
    window_at: u64,
    window: Vec<u8>,
    budget: u64,
}

impl<'a> Areas<'a> {
    pub(crate) fn new(image: &'a Image) -> Self {
        Self { image, window_at: 0, window: Vec::new(), budget: BUDGET }
    }

    /// Calls `visit` with every field of `area`, which lies at byte `at` of the volume, and of its continuations.
    /// Each continuation costs a link of `CHAIN_MAX`, and within an area each field is at least 4 bytes: the walk ends.
    pub(crate) fn walk(
        &mut self,
        area: &[u8],
        at: u64,
        visit: &mut dyn FnMut(Field<'_>) -> Result<(), String>,
    ) -> Result<()> {
        let mut next = walk_area(area, at, visit)?;
        for _ in 0..CHAIN_MAX {
            let Some(link) = next else { return Ok(()) };
            let start = self.image.byte_of(link.block.into()) + u64::from(link.offset);
            let area = self.area(start, link.len, at)?;
            next = walk_area(area, start, visit)?;
        }
        match next {
            None => Ok(()),
            Some(_) => {
                Err(Error::corrupt(at, format!("a chain of more than {CHAIN_MAX} continuation areas")))
            }
        }
    }

    fn area(&mut self, start: u64, len: u32, at: u64) -> Result<&[u8]> {
        if len > AREA_MAX {
            return Err(Error::corrupt(at, format!("a continuation area of {len} bytes")));
        }
        let Some(budget) = self.budget.checked_sub(len.into()) else {
            return Err(Error::corrupt(at, "the continuation areas of a directory are too large"));
        };
        self.budget = budget;
        let len = len as usize;
        if let Some(begin) = self.in_window(start, len) {
            return Ok(&self.window[begin..begin + len]);
        }
        let window_at = start - start % WINDOW as u64;
        let begin = (start - window_at) as usize;
        self.window.clear();
        self.window = self.image.read_up_to(window_at, WINDOW.max(begin + len), "a continuation area")?;
        self.window_at = window_at;
        match self.window.get(begin..begin + len) {
            Some(area) => Ok(area),
            None => Err(Error::corrupt(at, "a continuation area lies outside of the image")),
        }
    }

    fn in_window(&self, start: u64, len: usize) -> Option<usize> {
        let begin = usize::try_from(start.checked_sub(self.window_at)?).ok()?;
        (begin.checked_add(len)? <= self.window.len()).then_some(begin)
    }
}

/// `CE`: where the fields go on.
struct Link {
    block: u32,
    offset: u32,
    len: u32,
}

fn walk_area(
    area: &[u8],
    at: u64,
    visit: &mut dyn FnMut(Field<'_>) -> Result<(), String>,
) -> Result<Option<Link>> {
    let mut link = None;
    let mut position = 0;
    while let Some(&[tag0, tag1, len, version]) = area.get(position..).and_then(|rest| rest.first_chunk()) {
        let (tag, len) = ([tag0, tag1], usize::from(len));
        // Writers pad an area with zeros, and some leave one byte of garbage.
        if len < 4 || tag == *b"ST" {
            break;
        }
        let wrong = |what: String| Error::corrupt(at + position as u64, what);
        let name = || String::from_utf8_lossy(&tag).into_owned();
        let data = area
            .get(position + 4..position + len)
            .ok_or_else(|| wrong(format!("field {} is longer than its system use area", name())))?;
        if tag == *b"CE" {
            let field = |at| u32_le(data, at).ok_or_else(|| wrong("field CE is too short".into()));
            link = Some(Link { block: field(0)?, offset: field(8)?, len: field(16)? });
        } else {
            visit(Field { tag, version, data }).map_err(wrong)?;
        }
        position += len;
    }
    Ok(link)
}
