//! The table of an MBR: primary partitions, and the chain of logical ones inside an extended partition.
//!
//! An extended partition starts with a boot sector of its own. That has one record for a logical partition, counted
//! from this very sector, and one of an extended type for the next link, counted from the start of the whole extended
//! partition. Logical partitions are numbered from 5 in the order of the chain; gaps in it count nothing.

use veduta_api::{Disk, Partition, PartitionTable, Report, Result};

use crate::record::{BootSector, LEN, Record};
use crate::{Lba, kinds};

/// No disk has so many: fdisk makes 60, the kernel follows 100. A chain on a hostile disk may be as long as the disk.
const MAX_LINKS: usize = 256;

/// Reads the table that starts in `boot`. Only an error of the disk is one: what is odd about the table is in its report. The second
/// value says why nobody should write to what such a table describes, if so.
pub(crate) fn read(disk: &Disk, boot: &BootSector, sector: u32) -> Result<(PartitionTable, Option<String>)> {
    let (partitions, report) = (Vec::new(), Report::new());
    let mut found = Found { sector, disk_id: boot.disk_id(), partitions, report, fault: None };
    found.report.put("disk_id", format!("0x{:08x}", boot.disk_id())).put("sector_size", sector);
    let records = boot.records();
    for record in &records {
        found.add(record.slot, *record, u64::from(record.start));
    }
    // One alone, as the kernel and fdisk have it; a second would make the numbers of the first one's depend on it.
    let mut extended = records.into_iter().filter(Record::is_extended);
    if let Some(first) = extended.next() {
        walk(disk, first, &mut found)?;
    }
    if extended.next().is_some() {
        found.report.warn("there is more than one extended partition, and only the first was followed");
    }
    let Found { partitions, report, fault, .. } = found;
    Ok((PartitionTable { scheme: "mbr", partitions, report }, fault))
}

struct Found {
    sector: u32,
    disk_id: u32,
    partitions: Vec<Partition>,
    report: Report,
    fault: Option<String>,
}

impl Found {
    fn add(&mut self, number: u32, record: Record, start: Lba) {
        self.partitions.push(Partition {
            number,
            // A 32-bit count of sectors of at most 2^31 bytes: the product fits, links included.
            offset: start * u64::from(self.sector),
            size: u64::from(record.sectors) * u64::from(self.sector),
            kind: format!("0x{:02x}", record.kind),
            kind_name: kinds::mbr_name(record.kind).to_owned(),
            name: String::new(),
            // As the kernel has it: no identifier, no PARTUUID.
            uuid: match self.disk_id {
                0 => String::new(),
                id => format!("{id:08x}-{number:02x}"),
            },
            bootable: record.bootable,
        });
    }
}

/// Links count from `extended.start` and must grow, and there is a limit on their number, so the walk ends.
fn walk(disk: &Disk, extended: Record, found: &mut Found) -> Result<()> {
    let start = u64::from(extended.start);
    let mut link: Lba = 0;
    let mut number = 5;
    for _ in 0..MAX_LINKS {
        let here = start + link;
        let boot = match disk.size().checked_sub(LEN as u64) {
            Some(last) if here * u64::from(found.sector) <= last => {
                let mut bytes = [0; LEN];
                disk.read_at(&mut bytes, here * u64::from(found.sector))?;
                BootSector::parse(bytes)
            }
            _ => None,
        };
        let Some(boot) = boot else {
            // An extended partition that was never filled has nothing in its first sector.
            if link > 0 {
                found.report.warn(format!(
                    "the chain of logical partitions breaks off at sector {here}, where its next link should be"
                ));
            }
            return Ok(());
        };
        let records = boot.records();
        for record in records.iter().filter(|record| !record.is_extended()) {
            let logical = here + u64::from(record.start);
            if logical + u64::from(record.sectors) > extended.end() {
                found.report.warn(format!("partition {number} leaves the extended partition that holds it"));
            }
            found.add(number, *record, logical);
            number += 1;
        }
        match records.iter().find(|record| record.is_extended()) {
            None => return Ok(()),
            Some(next) if u64::from(next.start) > link => link = u64::from(next.start),
            Some(_) => {
                let fault = format!("the chain of logical partitions turns back at sector {here}");
                found.report.warn(format!("{fault}, and was followed no further"));
                found.fault = Some(fault);
                return Ok(());
            }
        }
    }
    found
        .report
        .warn(format!("only the first {MAX_LINKS} links of the chain of logical partitions were followed"));
    Ok(())
}
