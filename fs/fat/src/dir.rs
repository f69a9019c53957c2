//! A directory in memory: an index of its names, and its free slots.
//!
//! It says where sets lie and what they are called. What a set says of its file is read from the disk (or from the
//! sectors that wait) when somebody asks. So it can be dropped and made again at any time.

use std::collections::{BTreeMap, HashMap};

use veduta_api::Result;

use crate::boot::{Layout, Root};
use crate::meta::Meta;
use crate::name::Policy;
use crate::runs::Runs;
use crate::slots::{self, Found, SLOT, Scan, Slot};

/// Bytes read at once.
const STEP: u64 = 1 << 20;
/// Gaps that are looked at for a place.
const PROBES: usize = 64;

/// An entry: where its set lies, and the name that users see.
#[derive(Debug)]
pub(crate) struct Item {
    pub(crate) first: u32,
    pub(crate) count: u32,
    pub(crate) name: Box<[u8]>,
    pub(crate) short: Option<[u8; 11]>,
    pub(crate) is_dir: bool,
    key: Box<[u16]>,
}

/// The index of a directory.
pub(crate) struct Dir {
    /// Where its bytes lie: the number of the first byte, the place on the disk, the length.
    parts: Vec<(u64, u64, u64)>,
    /// Entries by their main slot, which is also their position in a listing.
    pub(crate) items: BTreeMap<u32, Item>,
    keys: HashMap<Box<[u16]>, u32>,
    shorts: HashMap<[u8; 11], u32>,
    /// Free slots in front of the end: the first of a gap, and how many.
    gaps: BTreeMap<u32, u32>,
    pub(crate) end: u32,
    pub(crate) label: Option<u32>,
    pub(crate) bitmaps: Vec<u32>,
    pub(crate) upcase: Option<u32>,
    pub(crate) damaged: u32,
    exfat: bool,
    sector: u64,
    /// For the cache of directories.
    pub(crate) used: u64,
}

impl Dir {
    /// Reads a directory that lies in these clusters, or in the fixed place.
    pub(crate) fn load(meta: &Meta, layout: &Layout, policy: &Policy, runs: Option<&Runs>) -> Result<Self> {
        let mut dir = Self {
            parts: Vec::new(),
            items: BTreeMap::new(),
            keys: HashMap::new(),
            shorts: HashMap::new(),
            gaps: BTreeMap::new(),
            end: 0,
            label: None,
            bitmaps: Vec::new(),
            upcase: None,
            damaged: 0,
            exfat: layout.is_exfat(),
            sector: u64::from(layout.sector),
            used: 0,
        };
        match (runs, layout.root) {
            (None, Root::Fixed { offset, len }) => dir.parts.push((0, offset, len)),
            (runs, _) => runs.into_iter().flat_map(Runs::iter).for_each(|(start, len)| {
                dir.extend(layout.offset(start), u64::from(len) * u64::from(layout.cluster_size));
            }),
        }
        let limit = u64::from(layout.slots_max()) * u64::from(SLOT);
        let mut all: Vec<Slot> = Vec::new();
        'parts: for (from, offset, len) in dir.parts.clone() {
            let len = len.min(limit.saturating_sub(from));
            let mut done = 0;
            while done < len {
                let step = (len - done).min(STEP);
                let old = all.len();
                all.resize(old + (step / u64::from(SLOT)) as usize, [0; 32]);
                meta.read(all[old..].as_flattened_mut(), offset + done)?;
                done += step;
                if all[old..].iter().any(|slot| slot[0] == 0) {
                    break 'parts;
                }
            }
        }
        let scan = if dir.exfat { slots::exfat::scan(&all) } else { slots::fat::scan(&all, policy) };
        dir.fill(scan, policy);
        Ok(dir)
    }

    fn fill(&mut self, scan: Scan, policy: &Policy) {
        (self.end, self.label, self.upcase) = (scan.end, scan.label, scan.upcase);
        (self.bitmaps, self.damaged) = (scan.bitmaps, scan.damaged);
        for free in scan.free {
            match self.gaps.last_entry() {
                Some(mut last) if last.key() + last.get() == free => *last.get_mut() += 1,
                _ => {
                    self.gaps.insert(free, 1);
                }
            }
        }
        for found in &scan.found {
            self.insert(found, policy);
        }
    }

    /// Adds bytes at the end.
    pub(crate) fn extend(&mut self, offset: u64, len: u64) {
        let from = self.bytes();
        self.parts.push((from, offset, len));
    }

    fn bytes(&self) -> u64 {
        self.parts.last().map_or(0, |(from, _, len)| from + len)
    }

    /// How many slots there is room for.
    pub(crate) fn room(&self) -> u32 {
        u32::try_from(self.bytes() / u64::from(SLOT)).unwrap_or(u32::MAX)
    }

    /// Where a slot lies on the disk.
    pub(crate) fn offset(&self, slot: u32) -> u64 {
        let at = u64::from(slot) * u64::from(SLOT);
        let after = self.parts.partition_point(|(from, _, _)| *from <= at);
        self.parts.get(after.saturating_sub(1)).map_or(0, |(from, offset, _)| offset + (at - from))
    }

    /// Where the slots of a set lie.
    pub(crate) fn offsets(&self, first: u32, count: u32) -> Vec<u64> {
        (first..first + count).map(|slot| self.offset(slot)).collect()
    }

    pub(crate) fn offsets_of(&self, slots: &[u32]) -> Vec<u64> {
        slots.iter().map(|slot| self.offset(*slot)).collect()
    }

    /// The main slot of the entry with this name, long or short.
    pub(crate) fn find(&self, units: &[u16], policy: &Policy) -> Option<u32> {
        if let Some(main) = self.keys.get(&policy.key(units)) {
            return Some(*main);
        }
        if self.exfat || units.len() > 12 {
            return None;
        }
        self.shorts.get(&policy.as_short(units)?).copied()
    }

    /// Whether a short name is in use, also as a long one.
    pub(crate) fn has_short(&self, short: &[u8; 11], policy: &Policy) -> bool {
        self.shorts.contains_key(short) || self.keys.contains_key(&policy.key(&policy.show_short(short, 0)))
    }

    /// Takes an entry into the index. Of two with the same name, which only a damaged volume has, the first is found.
    pub(crate) fn insert(&mut self, found: &Found, policy: &Policy) {
        let main = if self.exfat { found.first } else { found.first + found.count - 1 };
        let name = policy.charset.show(&found.units).into_boxed_slice();
        // What users see is what they ask for: the key is of the shown name, which differs from the stored one if that
        // has a slash in it.
        let odd = found.units.iter().any(|unit| matches!(unit, 0 | 0x2f))
            || name.starts_with("\u{f02e}".as_bytes());
        let key = match policy.charset.read(&name) {
            Ok(units) if odd => policy.key(&units),
            _ => policy.key(&found.units),
        };
        self.keys.entry(key.clone()).or_insert(main);
        if let Some(short) = found.short {
            self.shorts.entry(short).or_insert(main);
        }
        let item = Item {
            first: found.first,
            count: found.count,
            name,
            short: found.short,
            is_dir: found.is_dir,
            key,
        };
        self.items.insert(main, item);
    }

    /// Takes an entry out of the index; its slots are free.
    pub(crate) fn remove(&mut self, main: u32) -> Option<Item> {
        let item = self.items.remove(&main)?;
        if self.keys.get(&item.key) == Some(&main) {
            self.keys.remove(&item.key);
        }
        if let Some(short) = item.short.filter(|short| self.shorts.get(short) == Some(&main)) {
            self.shorts.remove(&short);
        }
        self.add_gap(item.first, item.count);
        Some(item)
    }

    /// Frees a slot that belongs to no entry.
    pub(crate) fn free(&mut self, slot: u32) {
        self.add_gap(slot, 1);
    }

    pub(crate) fn add_gap(&mut self, mut first: u32, mut count: u32) {
        if let Some((before, len)) = self.gaps.range(..first).next_back().map(|(before, len)| (*before, *len))
        {
            if before + len == first {
                self.gaps.remove(&before);
                (first, count) = (before, count + len);
            }
        }
        if let Some(after) = self.gaps.remove(&(first + count)) {
            count += after;
        }
        self.gaps.insert(first, count);
    }

    /// A place for `count` slots: its first, which may be [`end`](Self::end) or lie behind what there is
    /// [`room`](Self::room) for. It is taken with [`occupy`](Self::occupy).
    pub(crate) fn place(&self, count: u32) -> u32 {
        let fitting = self.gaps.iter().take(PROBES).find_map(|(first, len)| {
            let start = self.step_over(*first, count);
            (start + count <= first + len).then_some(start)
        });
        fitting.unwrap_or_else(|| self.step_over(self.end, count))
    }

    /// A set of exFAT is put on one sector, or else begins one: a crash that tears it would lose the file.
    fn step_over(&self, slot: u32, count: u32) -> u32 {
        let per_sector = (self.sector / u64::from(SLOT)) as u32;
        let within = slot % per_sector;
        if self.exfat && within > 0 && within + count > per_sector {
            slot - within + per_sector
        } else {
            slot
        }
    }

    /// Takes slots, in a gap or at the end.
    pub(crate) fn occupy(&mut self, first: u32, count: u32) {
        if first >= self.end {
            if first > self.end {
                self.add_gap(self.end, first - self.end);
            }
            self.end = first + count;
            return;
        }
        let gap = self.gaps.range(..=first).next_back().map(|(start, len)| (*start, *len));
        if let Some((start, len)) = gap {
            self.gaps.remove(&start);
            if start < first {
                self.gaps.insert(start, first - start);
            }
            if start + len > first + count {
                self.gaps.insert(first + count, start + len - first - count);
            }
        }
    }
}
