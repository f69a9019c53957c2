//! The GUID partition table (UEFI specification 2.10, section 5.3).
//!
//! Sector 1 holds a header, and an array of entries follows; a copy of the header is in the last sector, with a copy of the
//! array before it. Header and array each have a CRC-32, so that a table is either right or not one, and a broken one
//! is replaced by its copy. All numbers are little-endian; a GUID's first three groups are too.

use veduta_api::{Disk, Errno, Partition, PartitionTable, Report, Result};

use crate::{Lba, kinds};

const SIGNATURE: &[u8; 8] = b"EFI PART";
/// Bytes; the part of the header that the specification defines.
const HEADER_LEN: usize = 92;
/// Bytes; an entry of version 1.0. Larger ones are allowed, with the same fields in front.
const ENTRY_LEN: u32 = 128;
/// Bytes; the largest array that is read. The usual one has 16 KiB, so the count is the disk's own business up to here.
const MAX_ARRAY: u64 = 1 << 20;

/// A header whose checksum is right, and the array that it vouches for.
struct Table {
    header: Header,
    array: Vec<u8>,
}

struct Header {
    alternate: Lba,
    first_usable: Lba,
    last_usable: Lba,
    disk_guid: String,
    array: Lba,
    /// Bytes.
    entry_len: u32,
    array_crc: u32,
}

/// Reads the table in one of the given sector sizes, or its copy; `None` if none is intact. Only an error of the
/// disk is one.
pub(crate) fn read(disk: &Disk, sectors: &[u32]) -> Result<Option<PartitionTable>> {
    for &sector in sectors {
        let Some(table) = read_at(disk, sector, 1)? else { continue };
        let mut report = Report::new();
        match read_at(disk, sector, table.header.alternate)? {
            Some(copy) if copy.array == table.array => {}
            Some(_) => {
                report.warn(
                    "the backup table at the end of the disk differs from the primary one, which was used",
                );
            }
            None => {
                report.warn("the backup table at the end of the disk is missing or damaged");
            }
        }
        return Ok(Some(list(&table, sector, disk, &report)));
    }
    for &sector in sectors {
        let last = (disk.size() / u64::from(sector)).saturating_sub(1);
        let mut places = vec![last];
        // The header may be right where only its array is damaged: it knows where the copy is, also on a disk that grew.
        places.extend(header_at(disk, sector, 1)?.map(|(header, _)| header.alternate));
        for place in places {
            let Some(table) = read_at(disk, sector, place)? else { continue };
            let mut report = Report::new();
            report.warn(
                "the primary table at the start of the disk is damaged; the backup at its end was used",
            );
            return Ok(Some(list(&table, sector, disk, &report)));
        }
    }
    Ok(None)
}

/// Writes whichever of the two tables is broken, or differs, anew from the other, and says what it did; `None` if both were in order.
/// `ENOENT` if neither is intact, `ENOSPC` if there is no room where the missing one belongs.
pub(crate) fn repair(disk: &Disk, sectors: &[u32]) -> Result<Option<&'static str>> {
    for &sector in sectors {
        if read_at(disk, sector, 1)?.is_some() {
            return repair_backup(disk, sector);
        }
    }
    for &sector in sectors {
        let last = (disk.size() / u64::from(sector)).saturating_sub(1);
        let mut places = vec![last];
        places.extend(header_at(disk, sector, 1)?.map(|(header, _)| header.alternate));
        for place in places {
            let Some(copy) = read_at(disk, sector, place)? else { continue };
            let array_sectors = (copy.array.len() as u64).div_ceil(u64::from(sector));
            if copy.header.first_usable < 2 + array_sectors {
                return Err(Errno::ENOSPC);
            }
            write_copy(disk, sector, &copy, place, 1, 2)?;
            return Ok(Some("the primary table was written anew from the backup"));
        }
    }
    Err(Errno::ENOENT)
}

fn repair_backup(disk: &Disk, sector: u32) -> Result<Option<&'static str>> {
    let Some(table) = read_at(disk, sector, 1)? else { return Ok(None) };
    let last = (disk.size() / u64::from(sector)).saturating_sub(1);
    let old = table.header.alternate;
    if read_at(disk, sector, old)?.is_some_and(|copy| copy.array == table.array) {
        return Ok(None);
    }
    let place = if old > table.header.last_usable && old <= last { old } else { last };
    let array_sectors = (table.array.len() as u64).div_ceil(u64::from(sector));
    let array =
        place.checked_sub(array_sectors).filter(|at| *at > table.header.last_usable).ok_or(Errno::ENOSPC)?;
    write_copy(disk, sector, &table, 1, place, array)?;
    if place != old {
        // The primary header knows where its backup is.
        write_copy(disk, sector, &table, place, 1, table.header.array)?;
    }
    Ok(Some("the backup table was written anew from the primary one"))
}

/// Writes the array of `table` at sector `array` and then its header, read from sector `from`, to sector `place`: at no moment
/// is there a header without its array.
fn write_copy(disk: &Disk, sector: u32, table: &Table, from: Lba, place: Lba, array: Lba) -> Result<()> {
    let bytes = u64::from(sector);
    let mut header = disk.read_vec(from * bytes, sector as usize)?;
    let len = (u32_at(&header, 12) as usize).min(header.len());
    header[16..20].fill(0);
    header[24..32].copy_from_slice(&place.to_le_bytes());
    header[32..40].copy_from_slice(&from.to_le_bytes());
    header[72..80].copy_from_slice(&array.to_le_bytes());
    let crc = crc32(&header[..len]);
    header[16..20].copy_from_slice(&crc.to_le_bytes());
    disk.write_at(&table.array, array * bytes)?;
    disk.flush()?;
    disk.write_at(&header, place * bytes)?;
    disk.flush()
}

/// The table whose header is in sector `place`, if it is intact.
fn read_at(disk: &Disk, sector: u32, place: Lba) -> Result<Option<Table>> {
    let Some((header, count)) = header_at(disk, sector, place)? else { return Ok(None) };
    let len = u64::from(header.entry_len) * u64::from(count);
    let Some(offset) = header.array.checked_mul(u64::from(sector)) else { return Ok(None) };
    if len > MAX_ARRAY || offset.checked_add(len).is_none_or(|end| end > disk.size()) {
        return Ok(None);
    }
    let array = disk.read_vec(offset, len as usize)?;
    Ok((crc32(&array) == header.array_crc).then_some(Table { header, array }))
}

/// The header in sector `place` and the count of its entries, if its checksum and its place are right.
fn header_at(disk: &Disk, sector: u32, place: Lba) -> Result<Option<(Header, u32)>> {
    let Some(offset) = place.checked_mul(u64::from(sector)) else { return Ok(None) };
    if place == 0 || offset.checked_add(u64::from(sector)).is_none_or(|end| end > disk.size()) {
        return Ok(None);
    }
    let mut bytes = disk.read_vec(offset, sector as usize)?;
    let len = u32_at(&bytes, 12) as usize;
    if !bytes.starts_with(SIGNATURE) || !(HEADER_LEN..=bytes.len()).contains(&len) {
        return Ok(None);
    }
    let crc = u32_at(&bytes, 16);
    bytes[16..20].fill(0);
    let header = Header {
        alternate: u64_at(&bytes, 32),
        first_usable: u64_at(&bytes, 40),
        last_usable: u64_at(&bytes, 48),
        disk_guid: guid_at(&bytes, 56),
        array: u64_at(&bytes, 72),
        entry_len: u32_at(&bytes, 84),
        array_crc: u32_at(&bytes, 88),
    };
    let in_place = u64_at(&bytes, 24) == place;
    let entries = header.entry_len >= ENTRY_LEN && header.entry_len % 8 == 0;
    let right = crc32(&bytes[..len]) == crc && in_place && entries;
    Ok(right.then(|| (header, u32_at(&bytes, 80))))
}

fn list(table: &Table, sector: u32, disk: &Disk, warnings: &Report) -> PartitionTable {
    let header = &table.header;
    let mut report = Report::new();
    report.put("disk_id", header.disk_guid.clone()).put("sector_size", sector);
    warnings.fields().iter().for_each(|(key, value)| {
        report.put(key, value.clone());
    });
    let mut partitions = Vec::new();
    let entries = table.array.chunks_exact(header.entry_len as usize);
    for (number, entry) in (1..).zip(entries).filter(|(_, entry)| entry[..16] != [0; 16]) {
        let (first, last) = (u64_at(entry, 32), u64_at(entry, 40));
        let Some((offset, size)) = extent(first, last, sector) else {
            report.warn(format!("partition {number} has an impossible range and was left out"));
            continue;
        };
        // Beyond the disk is said by the caller, for both formats.
        if (first < header.first_usable || last > header.last_usable) && offset + size <= disk.size() {
            report.warn(format!(
                "partition {number} leaves the part of the disk that the table says is usable"
            ));
        }
        let kind = guid_at(entry, 0);
        partitions.push(Partition {
            number,
            offset,
            size,
            kind_name: kinds::gpt_name(&kind).to_owned(),
            kind,
            name: name_at(entry, 56),
            uuid: guid_at(entry, 16).to_ascii_lowercase(),
            // Bit 2: legacy BIOS bootable.
            bootable: u64_at(entry, 48) & 4 != 0,
        });
    }
    PartitionTable { scheme: "gpt", partitions, report }
}

/// Offset and size in bytes of the sectors `first` to `last`, both included; `None` if that is no range.
fn extent(first: Lba, last: Lba, sector: u32) -> Option<(u64, u64)> {
    let offset = first.checked_mul(u64::from(sector))?;
    let size = last.checked_sub(first)?.checked_add(1)?.checked_mul(u64::from(sector))?;
    offset.checked_add(size)?;
    (first > 0).then_some((offset, size))
}

/// 36 units of UTF-16, ended by a zero if there are fewer.
fn name_at(entry: &[u8], at: usize) -> String {
    let units = entry[at..at + 72].chunks_exact(2).map(|pair| u16::from_le_bytes([pair[0], pair[1]]));
    let units = units.take_while(|unit| *unit != 0);
    char::decode_utf16(units).map(|c| c.unwrap_or(char::REPLACEMENT_CHARACTER)).collect()
}

/// In capitals, as fdisk shows it.
fn guid_at(bytes: &[u8], at: usize) -> String {
    let b = &bytes[at..at + 16];
    let hex = |range: &[u8]| range.iter().map(|byte| format!("{byte:02X}")).collect::<String>();
    format!(
        "{:08X}-{:04X}-{:04X}-{}-{}",
        u32_at(b, 0),
        u16::from_le_bytes([b[4], b[5]]),
        u16::from_le_bytes([b[6], b[7]]),
        hex(&b[8..10]),
        hex(&b[10..16])
    )
}

/// `at` is a constant of the layout, and the caller has the whole structure: a sector, or an entry of 128 bytes.
fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from(u32_at(bytes, at)) | u64::from(u32_at(bytes, at + 4)) << 32
}

/// CRC-32 as in Ethernet and zlib. Bit by bit: 16 KiB of it take less time than reading them.
fn crc32(bytes: &[u8]) -> u32 {
    let step = |crc: u32| if crc & 1 == 1 { (crc >> 1) ^ 0xedb8_8320 } else { crc >> 1 };
    !bytes.iter().fold(!0, |crc, byte| (0..8).fold(crc ^ u32::from(*byte), |crc, _| step(crc)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_checksum_is_that_of_its_catalogue() {
        assert_eq!(crc32(b"123456789"), 0xcbf4_3926);
    }

    #[test]
    fn a_guid_is_spelled_as_fdisk_spells_it() {
        let bytes = *b"\x28\x73\x2a\xc1\x1f\xf8\xd2\x11\xba\x4b\x00\xa0\xc9\x3e\xc9\x3b";
        assert_eq!(guid_at(&bytes, 0), "C12A7328-F81F-11D2-BA4B-00A0C93EC93B");
    }
}
