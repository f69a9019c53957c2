//! Sessions: volumes that were appended to one another, each with descriptors of its own and all earlier data in reach.
//!
//! An image file has no table of contents, so sessions are found by looking: each starts at the first multiple of 32
//! sectors at or behind the end of the one before, or, in images of discs, behind a gap of up to some ten thousand
//! sectors. xorriso, when it grows a file, keeps the first session's descriptors at sector 32 + 16 and writes those of
//! the last session to sector 16 as well; the walk then starts at 32.

use crate::descriptor::{Descriptor, FIRST};
use crate::error::SECTOR;
use crate::image::Image;

/// Sectors; in a file, sessions start at multiples of this.
const ALIGNMENT: u64 = 32;
/// Sectors; the gap between the first two sessions of a CD has 11400.
const GAP_MAX: u64 = 16 << 10;
/// Sectors that are looked at together.
const BATCH: u64 = 128;
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
    while let Some(session) = next.take().filter(|_| found.len() < COUNT_MAX) {
        let (start, sectors) = (session.start, session.size.div_ceil(SECTOR));
        found.push(session);
        // Some writers count the blocks of a session from its start, and some from that of the disc.
        let ends = [start + sectors, sectors].map(|end| end.next_multiple_of(ALIGNMENT));
        let ends = ends.into_iter().filter(|end| *end > start + FIRST);
        next = ends.clone().find_map(|end| session_at(image, end));
        next = next.or_else(|| ends.clone().find_map(|end| session_behind(image, end)));
    }
    found
}

/// The first session whose descriptors are in the gap behind sector `end`.
fn session_behind(image: &Image, end: u64) -> Option<Session> {
    let batches = (end..end + GAP_MAX).step_by(BATCH as usize);
    batches
        .map_while(|first| {
            Some((first, image.read_up_to(first * SECTOR, (BATCH * SECTOR) as usize, "").ok()?))
        })
        .find_map(|(first, bytes)| {
            let sectors = bytes.chunks_exact(SECTOR as usize).zip(first..);
            let marked = sectors.filter(|(sector, _)| sector.starts_with(MARK));
            marked.map(|(_, number)| number - FIRST).find_map(|start| session_at(image, start))
        })
}

const MARK: &[u8] = b"\x01CD001";

fn session_at(image: &Image, start: u64) -> Option<Session> {
    let at = (start + FIRST) * SECTOR;
    let bytes = image.read_vec(at, SECTOR as usize, "a session").ok()?;
    if !bytes.starts_with(MARK) {
        return None;
    }
    let volume = Descriptor::parse(&bytes, start + FIRST).ok()?;
    Some(Session { start, size: volume.size(), name: volume.name })
}
