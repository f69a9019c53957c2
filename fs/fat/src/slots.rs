//! Directory slots: a directory is an array of 32-byte slots, and an entry is a run of them, a *set*.
//!
//! FAT ([`fat`]): any number of slots with parts of the long name, the last part first, then the *main* slot, which has
//! the short name and all the rest. exFAT ([`exfat`]): the main slot comes first (kind `85`), then the stream (`c0`), then the
//! parts of the name (`c1`), all under a checksum. A first byte of 0 ends a directory in both.

use veduta_api::Timestamp;

use crate::name::Policy;

/// 32 bytes of a directory.
pub(crate) type Slot = [u8; 32];

/// Bytes.
pub(crate) const SLOT: u32 = 32;

/// Attribute bits, the same in FAT and exFAT.
pub(crate) const READ_ONLY: u16 = 0x01;
pub(crate) const HIDDEN: u16 = 0x02;
pub(crate) const SYSTEM: u16 = 0x04;
pub(crate) const LABEL: u16 = 0x08;
pub(crate) const DIRECTORY: u16 = 0x10;
pub(crate) const ARCHIVE: u16 = 0x20;

/// What a directory says of a node, besides its name.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Record {
    pub(crate) attr: u16,
    /// The first cluster; 0 if there is none.
    pub(crate) start: u32,
    /// Bytes. For a directory of FAT, 0.
    pub(crate) size: u64,
    /// Bytes that were written; what follows reads as zeros. Less than the size only in exFAT.
    pub(crate) valid: u64,
    /// The clusters follow each other, and the table has no chain of them (exFAT).
    pub(crate) contiguous: bool,
    pub(crate) mtime: Timestamp,
    pub(crate) atime: Timestamp,
    pub(crate) btime: Timestamp,
}

impl Record {
    pub(crate) fn is_dir(&self) -> bool {
        self.attr & DIRECTORY != 0
    }
}

/// A set that was found in a directory.
#[derive(Debug, PartialEq)]
pub(crate) struct Found {
    /// The first slot, and how many there are.
    pub(crate) first: u32,
    pub(crate) count: u32,
    /// The name to show.
    pub(crate) units: Vec<u16>,
    /// The short name, as stored (FAT).
    pub(crate) short: Option<[u8; 11]>,
    pub(crate) is_dir: bool,
}

/// What a whole directory holds.
#[derive(Default)]
pub(crate) struct Scan {
    pub(crate) found: Vec<Found>,
    /// Slots that may be used again, in front of the end.
    pub(crate) free: Vec<u32>,
    /// The first slot behind everything.
    pub(crate) end: u32,
    /// The slot of the volume label.
    pub(crate) label: Option<u32>,
    /// exFAT: the slots of allocation bitmaps and of the up-case table.
    pub(crate) bitmaps: Vec<u32>,
    pub(crate) upcase: Option<u32>,
    /// Sets that make no sense: they are not shown, and left as they are.
    pub(crate) damaged: u32,
}

/// FAT's sets.
pub(crate) mod fat {
    use super::{DIRECTORY, Found, LABEL, Policy, Record, Scan, Slot, Timestamp};
    use crate::boot::{le16, le32};
    use crate::time::Stamp;

    const LONG: u8 = 0x0f;
    /// Where the 13 units of a long-name slot stand.
    const UNITS: [usize; 13] = [1, 3, 5, 7, 9, 14, 16, 18, 20, 22, 24, 28, 30];
    const DOT: [u8; 11] = *b".          ";
    const DOTDOT: [u8; 11] = *b"..         ";

    /// A long name of which some slots were read.
    struct Partial {
        first: u32,
        checksum: u8,
        /// The number that the next slot must have; 0: the short one is next.
        next: u8,
        units: Vec<u16>,
    }

    pub(crate) fn scan(slots: &[Slot], policy: &Policy) -> Scan {
        let mut scan = Scan { end: slots.len() as u32, ..Scan::default() };
        let mut partial: Option<Partial> = None;
        for (at, slot) in (0..).zip(slots) {
            if slot[0] == 0 {
                scan.end = at;
                break;
            }
            let attr = slot[11];
            if slot[0] == 0xe5 {
                scan.free.push(at);
                partial = None;
            } else if attr & 0x3f == LONG {
                partial = long(at, slot, partial);
            } else if u16::from(attr) & LABEL != 0 {
                scan.label.get_or_insert(at);
                partial = None;
            } else {
                let name = short_of(slot);
                let whole = partial.take().filter(|long| long.next == 0 && long.checksum == checksum(&name));
                if name == DOT || name == DOTDOT {
                    continue;
                }
                let (first, units) = match whole {
                    Some(long) if !long.units.is_empty() => (long.first, long.units),
                    _ => (at, policy.show_short(&name, slot[12])),
                };
                let is_dir = u16::from(attr) & DIRECTORY != 0;
                scan.found.push(Found { first, count: at - first + 1, units, short: Some(name), is_dir });
            }
        }
        scan
    }

    /// Takes in one slot of a long name: its parts come last first, numbered down to 1.
    fn long(at: u32, slot: &Slot, partial: Option<Partial>) -> Option<Partial> {
        let number = slot[0] & 0x3f;
        let part = UNITS.map(|unit| le16(slot, unit));
        if slot[0] & 0x40 != 0 {
            let used = part.iter().position(|unit| *unit == 0).unwrap_or(13);
            let units = part[..used].to_vec();
            return (1..=20).contains(&number).then(|| Partial {
                first: at,
                checksum: slot[13],
                next: number - 1,
                units,
            });
        }
        let mut partial = partial?;
        (number != 0 && number == partial.next && slot[13] == partial.checksum).then(|| {
            partial.next -= 1;
            partial.units.splice(0..0, part);
            partial
        })
    }

    /// The short name of a main slot. A first byte of 05 stands for e5, which means "deleted".
    pub(crate) fn short_of(slot: &Slot) -> [u8; 11] {
        let mut name = [0; 11];
        name.copy_from_slice(&slot[..11]);
        if name[0] == 5 {
            name[0] = 0xe5;
        }
        name
    }

    /// The checksum that ties a long name to its short one. It is of the name as stored: with 05 for e5.
    pub(crate) fn checksum(short: &[u8; 11]) -> u8 {
        let stored = |at: usize| if at == 0 && short[0] == 0xe5 { 5 } else { short[at] };
        (0..11).fold(0_u8, |sum, at| sum.rotate_right(1).wrapping_add(stored(at)))
    }

    pub(crate) fn read(slot: &Slot, zone: i32, wide: bool) -> Record {
        let high = if wide { u32::from(le16(slot, 20)) << 16 } else { 0 };
        let size = u64::from(le32(slot, 28));
        let attr = u16::from(slot[11]);
        let size = if attr & DIRECTORY != 0 { 0 } else { size };
        Record {
            attr,
            start: high | u32::from(le16(slot, 26)),
            size,
            valid: size,
            contiguous: false,
            mtime: mtime(slot).moment(zone),
            atime: atime(slot).moment(zone),
            btime: btime(slot).moment(zone),
        }
    }

    fn mtime(slot: &Slot) -> Stamp {
        Stamp { date: le16(slot, 24), time: le16(slot, 22), fine: 0 }
    }
    fn atime(slot: &Slot) -> Stamp {
        Stamp { date: le16(slot, 18), time: 0, fine: 0 }
    }
    fn btime(slot: &Slot) -> Stamp {
        Stamp { date: le16(slot, 16), time: le16(slot, 14), fine: slot[13] }
    }

    /// The moment that remains of `moment` where a stamp counts in two seconds, or in days.
    pub(crate) fn round_mtime(moment: Timestamp, zone: i32) -> Timestamp {
        Stamp { fine: 0, ..Stamp::of(moment, zone) }.moment(zone)
    }
    pub(crate) fn round_atime(moment: Timestamp, zone: i32) -> Timestamp {
        Stamp { fine: 0, time: 0, ..Stamp::of(moment, zone) }.moment(zone)
    }

    /// Puts a record into a main slot. What has not changed keeps its bits.
    pub(crate) fn write(slot: &mut Slot, record: &Record, zone: i32, wide: bool) {
        slot[11] = record.attr as u8;
        slot[26..28].copy_from_slice(&(record.start as u16).to_le_bytes());
        if wide {
            slot[20..22].copy_from_slice(&((record.start >> 16) as u16).to_le_bytes());
        }
        let size = if record.is_dir() { 0 } else { record.size as u32 };
        slot[28..32].copy_from_slice(&size.to_le_bytes());
        if mtime(slot).moment(zone) != record.mtime {
            let stamp = Stamp::of(record.mtime, zone);
            slot[22..24].copy_from_slice(&stamp.time.to_le_bytes());
            slot[24..26].copy_from_slice(&stamp.date.to_le_bytes());
        }
        if atime(slot).moment(zone) != record.atime {
            slot[18..20].copy_from_slice(&Stamp::of(record.atime, zone).date.to_le_bytes());
        }
        if btime(slot).moment(zone) != record.btime {
            let stamp = Stamp::of(record.btime, zone);
            slot[13] = stamp.fine;
            slot[14..16].copy_from_slice(&stamp.time.to_le_bytes());
            slot[16..18].copy_from_slice(&stamp.date.to_le_bytes());
        }
    }

    /// A set. `long` is `None` for a name that is all in its short form; `case` are the bits that show parts of it in
    /// lower case.
    pub(crate) fn build(
        long: Option<&[u16]>,
        short: [u8; 11],
        case: u8,
        record: &Record,
        zone: i32,
        wide: bool,
    ) -> Vec<Slot> {
        let mut set = Vec::new();
        let parts: Vec<&[u16]> = long.map(|units| units.chunks(13).collect()).unwrap_or_default();
        for (at, part) in parts.iter().enumerate().rev() {
            let mut slot = [0; 32];
            let number = at as u8 + 1;
            slot[0] = if usize::from(number) == parts.len() { number | 0x40 } else { number };
            slot[11] = LONG;
            slot[13] = checksum(&short);
            for (at, place) in UNITS.into_iter().enumerate() {
                // The name ends in a zero, unless it fills its slots, and is padded with ones.
                let padding = if at == part.len() { 0 } else { 0xffff };
                let unit = part.get(at).copied().unwrap_or(padding);
                slot[place..place + 2].copy_from_slice(&unit.to_le_bytes());
            }
            set.push(slot);
        }
        set.push(main(short, case, record, zone, wide));
        set
    }

    pub(crate) fn main(short: [u8; 11], case: u8, record: &Record, zone: i32, wide: bool) -> Slot {
        let mut slot = [0; 32];
        slot[..11].copy_from_slice(&short);
        if slot[0] == 0xe5 {
            slot[0] = 5;
        }
        slot[12] = case;
        write(&mut slot, record, zone, wide);
        slot
    }

    /// The first two slots of a new directory.
    pub(crate) fn dots(record: &Record, parent: u32, zone: i32, wide: bool) -> [Slot; 2] {
        let up = Record { start: parent, ..record.clone() };
        [main(DOT, 0, record, zone, wide), main(DOTDOT, 0, &up, zone, wide)]
    }

    /// Whether a slot is the `..` of a directory.
    pub(crate) fn is_dotdot(slot: &Slot) -> bool {
        slot[..11] == DOTDOT
    }
}

/// exFAT's sets.
pub(crate) mod exfat {
    use super::{Found, Record, Scan, Slot, Timestamp};
    use crate::boot::{le16, le32, le64};
    use crate::charset::Capitals;
    use crate::time::{Stamp, byte_of_offset, offset_of_byte};

    pub(crate) const FILE: u8 = 0x85;
    const STREAM: u8 = 0xc0;
    const NAME: u8 = 0xc1;
    pub(crate) const BITMAP: u8 = 0x81;
    pub(crate) const UPCASE: u8 = 0x82;
    pub(crate) const LABEL: u8 = 0x83;
    /// Units of a name in a slot.
    const UNITS: usize = 15;

    pub(crate) fn scan(slots: &[Slot]) -> Scan {
        let mut scan = Scan { end: slots.len() as u32, ..Scan::default() };
        let mut at = 0;
        while let Some(slot) = slots.get(at) {
            let here = at as u32;
            at += 1;
            match slot[0] {
                0 => {
                    scan.end = here;
                    break;
                }
                kind if kind & 0x80 == 0 => scan.free.push(here),
                FILE => {
                    let set = slots.get(at - 1..at + usize::from(slot[1])).unwrap_or_default();
                    match name(set) {
                        Some(units) => {
                            let is_dir = le16(slot, 4) & super::DIRECTORY != 0;
                            let count = set.len() as u32;
                            scan.found.push(Found { first: here, count, units, short: None, is_dir });
                            at += set.len() - 1;
                        }
                        None => scan.damaged += 1,
                    }
                }
                BITMAP => scan.bitmaps.push(here),
                UPCASE => scan.upcase = Some(here),
                LABEL => scan.label = Some(here),
                _ => {}
            }
        }
        scan
    }

    /// The name of a set, if the set is a good one.
    pub(crate) fn name(set: &[Slot]) -> Option<Vec<u16>> {
        let (file, stream) = (set.first()?, set.get(1)?);
        let good = stream[0] == STREAM
            && set.len() >= 3
            && set[1..].iter().all(|slot| slot[0] & 0xc0 == 0xc0)
            && le16(file, 2) == checksum(set);
        let len = usize::from(stream[3]);
        let parts = set.get(2..2 + len.div_ceil(UNITS)).filter(|_| good && len > 0)?;
        parts.iter().all(|slot| slot[0] == NAME).then(|| {
            let units = parts.iter().flat_map(|slot| (0..UNITS).map(|unit| le16(slot, 2 + unit * 2)));
            units.take(len).collect()
        })
    }

    /// The checksum of a set, which leaves out its own two bytes.
    fn checksum(set: &[Slot]) -> u16 {
        let bytes = set.iter().flatten().enumerate().filter(|(at, _)| !matches!(at, 2 | 3));
        bytes.fold(0_u16, |sum, (_, byte)| sum.rotate_right(1).wrapping_add(u16::from(*byte)))
    }

    fn name_hash(units: &[u16], capitals: &Capitals) -> u16 {
        let bytes = units.iter().flat_map(|unit| capitals.of(*unit).to_le_bytes());
        bytes.fold(0_u16, |hash, byte| hash.rotate_right(1).wrapping_add(u16::from(byte)))
    }

    /// Where the parts of a stamp stand: the fields, the hundredths (if any), the distance from UTC.
    const BTIME: (usize, Option<usize>, usize) = (8, Some(20), 22);
    const MTIME: (usize, Option<usize>, usize) = (12, Some(21), 23);
    const ATIME: (usize, Option<usize>, usize) = (16, None, 24);

    fn stamp(slot: &Slot, (at, fine, offset): (usize, Option<usize>, usize), zone: i32) -> Timestamp {
        let stamp =
            Stamp { time: le16(slot, at), date: le16(slot, at + 2), fine: fine.map_or(0, |at| slot[at]) };
        stamp.moment(offset_of_byte(slot[offset]).unwrap_or(zone))
    }

    fn put_stamp(slot: &mut Slot, place: (usize, Option<usize>, usize), moment: Timestamp, zone: i32) {
        if stamp(slot, place, zone) == moment {
            return;
        }
        let (at, fine, offset) = place;
        let zone = zone / 15 * 15;
        let stamp = Stamp::of(moment, zone);
        slot[at..at + 2].copy_from_slice(&stamp.time.to_le_bytes());
        slot[at + 2..at + 4].copy_from_slice(&stamp.date.to_le_bytes());
        if let Some(fine) = fine {
            slot[fine] = stamp.fine;
        }
        slot[offset] = byte_of_offset(zone);
    }

    /// The moment that remains of `moment` where stamps count in hundredths, or in two seconds.
    pub(crate) fn round_mtime(moment: Timestamp, zone: i32) -> Timestamp {
        let zone = zone / 15 * 15;
        Stamp::of(moment, zone).moment(zone)
    }
    pub(crate) fn round_atime(moment: Timestamp, zone: i32) -> Timestamp {
        let zone = zone / 15 * 15;
        Stamp { fine: 0, ..Stamp::of(moment, zone) }.moment(zone)
    }

    pub(crate) fn read(set: &[Slot], zone: i32) -> Option<Record> {
        let (file, stream) = (set.first()?, set.get(1)?);
        let size = le64(stream, 24);
        let start = le32(stream, 20);
        Some(Record {
            attr: le16(file, 4),
            start,
            size,
            valid: le64(stream, 8).min(size),
            contiguous: stream[1] & 2 != 0 && start != 0,
            mtime: stamp(file, MTIME, zone),
            atime: stamp(file, ATIME, zone),
            btime: stamp(file, BTIME, zone),
        })
    }

    /// Puts a record into a set, with a new checksum. What has not changed keeps its bits.
    pub(crate) fn write(set: &mut [Slot], record: &Record, zone: i32) {
        let [file, stream, ..] = set else { return };
        file[4..6].copy_from_slice(&record.attr.to_le_bytes());
        put_stamp(file, BTIME, record.btime, zone);
        put_stamp(file, MTIME, record.mtime, zone);
        put_stamp(file, ATIME, record.atime, zone);
        stream[1] = stream[1] & !3 | 1 | if record.contiguous { 2 } else { 0 };
        stream[8..16].copy_from_slice(&record.valid.to_le_bytes());
        stream[20..24].copy_from_slice(&record.start.to_le_bytes());
        stream[24..32].copy_from_slice(&record.size.to_le_bytes());
        seal(set);
    }

    fn seal(set: &mut [Slot]) {
        let sum = checksum(set);
        if let Some(file) = set.first_mut() {
            file[2..4].copy_from_slice(&sum.to_le_bytes());
        }
    }

    /// A set. `more` are secondary slots of others, to be kept behind the name.
    pub(crate) fn build(
        units: &[u16],
        capitals: &Capitals,
        record: &Record,
        more: &[Slot],
        zone: i32,
    ) -> Vec<Slot> {
        let mut set = vec![[0; 32]; 2];
        set[0][0] = FILE;
        set[1][0] = STREAM;
        set[1][3] = units.len() as u8;
        set[1][4..6].copy_from_slice(&name_hash(units, capitals).to_le_bytes());
        for part in units.chunks(UNITS) {
            let mut slot = [0; 32];
            slot[0] = NAME;
            for (unit, place) in part.iter().zip((2..).step_by(2)) {
                slot[place..place + 2].copy_from_slice(&unit.to_le_bytes());
            }
            set.push(slot);
        }
        set.extend_from_slice(more);
        set[0][1] = (set.len() - 1) as u8;
        write(&mut set, record, zone);
        set
    }

    /// The secondary slots behind the name.
    pub(crate) fn others(set: &[Slot]) -> &[Slot] {
        let parts = set.get(1).map_or(0, |stream| usize::from(stream[3]).div_ceil(UNITS));
        set.get(2 + parts..).unwrap_or_default()
    }
}
