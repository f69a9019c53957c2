//! Sessions: volumes that were appended to one another, each with descriptors of its own and all earlier data in reach.
//!
//! An image file has no table of contents, so sessions are found by walking: each starts at the first multiple of 32
//! sectors at or behind the end of the one before. xorriso, when it grows a file, keeps the first session's
//! descriptors at sector 32 + 16 and writes those of the last session to sector 16 as well; the walk then starts at 32.

use crate::descriptor::{Descriptor, FIRST};
use crate::error::SECTOR;
use crate::image::Image;

/// Sectors; sessions start at multiples of this.
const ALIGNMENT: u64 = 32;
/// Sessions that are looked for; a disc has at most 99 tracks, a file that was grown may have more.
const COUNT_MAX: usize = 1000;

/// A session.
#[derive(Clone, Debug)]
pub(crate) struct Session {
    /// The sector at which it starts.
    pub(crate) start: u64,
    pub(crate) name: String,
    /// Bytes.
    pub(crate) size: u64,
}

/// The sessions of an image, the first first; none if there is no volume at all. Starts grow, so the walk ends.
pub(crate) fn find(image: &Image) -> Vec<Session> {
    let mut found: Vec<Session> = Vec::new();
    let mut next = session_at(image, ALIGNMENT).or_else(|| session_at(image, 0));
    while let Some(session) = next {
        let sectors = session.size.div_ceil(SECTOR);
        let after = session.start;
        // Some writers count the blocks of a session from its start, and some from that of the disc.
        next = [session.start + sectors, sectors]
            .into_iter()
            .map(|end| end.next_multiple_of(ALIGNMENT))
            .filter(|start| *start > after && found.len() + 1 < COUNT_MAX)
            .find_map(|start| session_at(image, start));
        found.push(session);
    }
    found
}

fn session_at(image: &Image, start: u64) -> Option<Session> {
    let at = (start + FIRST) * SECTOR;
    let bytes = image.read_vec(at, SECTOR as usize, "a session").ok()?;
    if !bytes.starts_with(b"\x01CD001") {
        return None;
    }
    let volume = Descriptor::parse(&bytes, start + FIRST).ok()?;
    Some(Session { start, size: volume.size(), name: volume.name })
}
