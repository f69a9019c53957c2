//! Where the structures of the volume lie: superblocks, descriptors, bitmaps, inode tables, the journal. No file has its content there, and
//! nothing there is ever free, whatever a damaged bitmap or map says.

use std::ops::Range;

use crate::error::{Error, Result};
use crate::group::{Group, base_blocks};
use crate::volume::Volume;

/// Ranges of blocks, in order and apart from each other.
#[derive(Debug, Default)]
pub(crate) struct Zones(Vec<Range<u64>>);

impl Zones {
    pub(crate) fn new(mut ranges: Vec<Range<u64>>) -> Self {
        ranges.sort_unstable_by_key(|range| range.start);
        let mut merged: Vec<Range<u64>> = Vec::new();
        for range in ranges.into_iter().filter(|range| !range.is_empty()) {
            match merged.last_mut() {
                Some(last) if range.start <= last.end => last.end = last.end.max(range.end),
                _ => merged.push(range),
            }
        }
        Self(merged)
    }

    /// What a group has.
    pub(crate) fn of_group(volume: &Volume, group: u32, about: &Group) -> [Range<u64>; 4] {
        let start = volume.sb.group_start(group);
        [
            start..start + base_blocks(&volume.sb, group),
            about.block_bitmap..about.block_bitmap.saturating_add(1),
            about.inode_bitmap..about.inode_bitmap.saturating_add(1),
            about.inode_table..about.inode_table + volume.sb.inode_table_blocks(),
        ]
    }

    /// Damage, if some of these blocks are the volume's own.
    pub(crate) fn check(&self, start: u64, len: u64) -> Result<()> {
        let after = self.0.partition_point(|zone| zone.end <= start);
        match self.0.get(after) {
            Some(zone) if zone.start < start + len => {
                let what = format!("{len} blocks at {start} are structures of the volume, and no file's");
                Err(Error::corrupt(what))
            }
            _ => Ok(()),
        }
    }
}

impl Volume {
    /// Damage, if blocks that are to hold content are the volume's own.
    pub(crate) fn check_content(&self, start: u64, len: u64) -> Result<()> {
        match &self.transactions {
            Some(transactions) => transactions.zones.check(start, len),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_that_meet_a_zone_are_refused() {
        let zones = Zones::new(vec![10..12, 0..5, 4..6, 12..13, 20..20]);
        assert_eq!(zones.0, [0..6, 10..13]);
        for (start, len, good) in [
            (6, 4, true),
            (6, 5, false),
            (5, 1, false),
            (12, 1, false),
            (13, 9, true),
            (7, 1, true),
            (0, 99, false),
        ] {
            assert_eq!(zones.check(start, len).is_ok(), good, "{start} {len}");
        }
    }
}
