//! `mbr`: the partitions of a disk, each as a disk of its own. Reads MBR and GPT; Apple partition maps and BSD labels too.
//!
//! Layout: the first sector of a disk, its *boot sector*, holds four records. Either they are the primary partitions (MBR),
//! one of which may hold a chain of logical ones; or one has the type `EEh` and protects a GUID partition table,
//! which has a header in sector 1 and a copy at the end of the disk.
//!
//! # What is a table
//!
//! A boot sector also starts a FAT or NTFS volume, and an ISO image that boots from a stick has one too. So
//! [`read_table`] takes as a table only a boot sector with its mark, whose four boot flags are 0 or 80h, with a record in
//! use; if it is also the boot sector of a volume, the records must be ranges behind it, inside the disk, that do not
//! overlap (what is left of a FAT when a stick is partitioned over it; `mkfs.fat` itself writes a record that starts
//! at 0). A disk that holds an ISO 9660 filesystem as a whole has no table, unless it is asked for by name:
//! [`read_hybrid_table`].
//!
//! A GPT counts only with a record of type `EEh` in the boot sector, as in Linux: a backup at the end of a disk
//! survives many a `mkfs`.
//!
//! # Limits
//!
//! Tables are read, not written, but for the broken one of a GPT's two tables, on request ([`repair_gpt`]). Nothing in an MBR tells the size of a sector: it is that of the device, 512 for an
//! image; `sector=` overrides it. A GPT is searched with both. At most 256 logical partitions are followed.

#![forbid(unsafe_code)]

mod apm;
mod bsd;
mod chain;
mod gpt;
mod kinds;
mod record;

use std::sync::Arc;

use parking_lot::RwLock;
use veduta_api::{
    DeviceNode, Disk, Drive, Errno, Module, MountError, Object, OptionSpec, Options, OptionsError, Partition,
    PartitionTable, Report, Request, SourceKind, Value,
};

use record::BootSector;

/// The number of a sector.
type Lba = u64;

/// The partition table of a disk; `None` if it has none, or is a filesystem as a whole (see the head of this crate).
/// `sector` is what the table counts in, if that is known. What is odd about the table is under `warnings` in its report.
///
/// Fails if the disk does, and if it is marked as GPT while neither table nor backup are intact.
pub fn read_table(disk: &Disk, sector: Option<u32>) -> Result<Option<PartitionTable>, MountError> {
    if is_iso9660(disk)? { Ok(None) } else { read_hybrid_table(disk, sector) }
}

/// As [`read_table`], also for an ISO 9660 image with a table in front: for a partition that was asked for by number.
pub fn read_hybrid_table(disk: &Disk, sector: Option<u32>) -> Result<Option<PartitionTable>, MountError> {
    Ok(read_with_fault(disk, sector)?.map(|(table, _)| table))
}

/// The second value says why nobody should write to what such a table describes, if so.
type WithFault = (PartitionTable, Option<String>);

fn read_with_fault(disk: &Disk, sector: Option<u32>) -> Result<Option<WithFault>, MountError> {
    // As Linux has it, an MBR beside an Apple map counts.
    if let Some(found) = read_mbr_or_gpt(disk, sector)? {
        return Ok(Some(with_warnings(found, disk)));
    }
    let table = apm::read(disk).map_err(unreadable)?;
    Ok(table.map(|table| with_warnings((table, None), disk)))
}

fn read_mbr_or_gpt(disk: &Disk, sector: Option<u32>) -> Result<Option<WithFault>, MountError> {
    let Some(boot) = read_boot_sector(disk)? else { return Ok(None) };
    let native = disk.geometry().logical_sector;
    let records = boot.records();
    let protective = records.iter().any(|record| record.kind == 0xee);
    if !boot.has_records() || (boot.is_volume() && !is_sound(&records, disk, sector.unwrap_or(native))) {
        return Ok(None);
    }
    let found = if protective {
        (read_gpt(disk, &boot, sector)?, None)
    } else {
        let (mut table, fault) = chain::read(disk, &boot, sector.unwrap_or(native)).map_err(unreadable)?;
        bsd::add(disk, &mut table, sector.unwrap_or(native)).map_err(unreadable)?;
        (table, fault)
    };
    Ok(Some(found))
}

/// Writes the broken one of a GPT's two tables anew from the other, and says what it did; `None` if there was nothing to do.
pub fn repair_gpt(disk: &Disk, sector: Option<u32>) -> Result<Option<&'static str>, MountError> {
    let boot = read_boot_sector(disk)?.filter(|boot| boot.records().iter().any(|record| record.kind == 0xee));
    if boot.is_none() {
        return Err(MountError::usage("only a GPT can be repaired, and this is none"));
    }
    gpt::repair(disk, &gpt_sectors(disk, sector)).map_err(|errno| match errno {
        Errno::ENOENT => {
            MountError::corrupt("neither the table at the start nor the backup at the end is intact")
        }
        Errno::ENOSPC => MountError::corrupt("there is no room for the missing table where it belongs"),
        errno => MountError::system(errno, format!("the table cannot be repaired: {}", errno.desc())),
    })
}

/// The sizes of a sector with which a GPT is looked for.
fn gpt_sectors(disk: &Disk, sector: Option<u32>) -> Vec<u32> {
    match (sector, disk.geometry().logical_sector) {
        (Some(sector), _) => vec![sector],
        (None, 512) => vec![512, 4096],
        (None, native) => vec![native, 512, 4096],
    }
}

/// The GPT that the records of `boot` protect.
fn read_gpt(disk: &Disk, boot: &BootSector, sector: Option<u32>) -> Result<PartitionTable, MountError> {
    let native = disk.geometry().logical_sector;
    let sectors = gpt_sectors(disk, sector);
    let hybrid = boot.records().iter().any(|record| record.kind != 0xee);
    if let Some(mut table) = gpt::read(disk, &sectors).map_err(unreadable)? {
        if hybrid {
            table
                .report
                .warn("the disk also has an MBR with partitions of its own (hybrid), which were left out");
        }
        return Ok(table);
    }
    if hybrid {
        let (mut table, _) = chain::read(disk, boot, sector.unwrap_or(native)).map_err(unreadable)?;
        table.partitions.retain(|partition| partition.kind != "0xee");
        table.report.warn("the GPT is damaged, at the start and at the end of the disk; its MBR was used");
        return Ok(table);
    }
    let counted = sectors.iter().map(u32::to_string).collect::<Vec<_>>().join(" or ");
    Err(MountError::corrupt(format!(
        "the disk is marked as GPT, but neither the table at its start nor the backup at its end is intact \
         (looked for in sectors of {counted} bytes)"
    )))
}

/// `None` if the disk is too short for a boot sector, or has none.
fn read_boot_sector(disk: &Disk) -> Result<Option<BootSector>, MountError> {
    let mut bytes = [0; record::LEN];
    if disk.size() < bytes.len() as u64 {
        return Ok(None);
    }
    disk.read_at(&mut bytes, 0).map_err(unreadable)?;
    Ok(BootSector::parse(bytes))
}

/// Whether an ISO 9660 volume descriptor is at its fixed place, byte 32768.
fn is_iso9660(disk: &Disk) -> Result<bool, MountError> {
    let mut mark = [0; 5];
    if disk.size() < 32_768 + 2048 {
        return Ok(false);
    }
    disk.read_at(&mut mark, 32_769).map_err(unreadable)?;
    Ok(&mark == b"CD001")
}

/// Whether the records are ranges inside the disk, behind its first sector, that do not overlap.
fn is_sound(records: &[record::Record], disk: &Disk, sector: u32) -> bool {
    let mut ranges: Vec<(Lba, Lba)> = records.iter().map(|r| (u64::from(r.start), r.end())).collect();
    ranges.sort_unstable();
    let inside = ranges.iter().all(|(start, end)| *start > 0 && end * u64::from(sector) <= disk.size());
    inside && ranges.windows(2).all(|pair| pair[0].1 <= pair[1].0)
}

/// Adds what can be wrong with partitions of either kind.
fn with_warnings((mut table, mut fault): WithFault, disk: &Disk) -> WithFault {
    for partition in &table.partitions {
        let number = partition.number;
        if partition.offset >= disk.size() {
            table.report.warn(format!("partition {number} starts behind the end of the disk"));
        } else if partition.offset + partition.size > disk.size() {
            table.report.warn(format!("partition {number} is cut off by the end of the disk"));
        }
    }
    let is_container = |partition: &Partition| {
        matches!(&*partition.kind, "0x05" | "0x0f" | "0x85" | "0xa5" | "0xa6" | "0xa9")
    };
    let mut sorted: Vec<&Partition> = table.partitions.iter().filter(|p| !is_container(p)).collect();
    sorted.sort_unstable_by_key(|partition| partition.offset);
    for pair in sorted.windows(2) {
        if pair[0].offset + pair[0].size > pair[1].offset {
            let overlap = format!("partitions {} and {} overlap", pair[0].number, pair[1].number);
            table.report.warn(overlap.clone());
            fault.get_or_insert(overlap);
        }
    }
    (table, fault)
}

fn unreadable(errno: Errno) -> MountError {
    MountError::system(errno, format!("the partition table cannot be read: {}", errno.desc()))
}

/// A disk with its partitions.
pub struct PartitionedDisk {
    whole: Disk,
    sector: Option<u32>,
    /// Held only to read or to swap the value, never while the disk is read.
    table: RwLock<Option<PartitionTable>>,
}

impl PartitionedDisk {
    /// Reads the table of `disk`; a disk without one has no partitions. Fails as [`read_table`] does.
    pub fn open(disk: Disk, sector: Option<u32>) -> Result<Self, MountError> {
        let table = RwLock::new(read_hybrid_table(&disk, sector)?);
        Ok(Self { whole: disk, sector, table })
    }
}

impl Drive for PartitionedDisk {
    fn whole(&self) -> Disk {
        self.whole.clone()
    }

    fn table(&self) -> Option<PartitionTable> {
        self.table.read().clone()
    }

    fn partition(&self, number: u32) -> veduta_api::Result<Disk> {
        let table = self.table.read();
        let partitions = table.iter().flat_map(|table| &table.partitions);
        let partition = partitions.into_iter().find(|one| one.number == number).ok_or(Errno::ENXIO)?;
        slice(&self.whole, partition)
    }

    /// A table that cannot be read leaves the old one in place.
    fn reread(&self) -> veduta_api::Result<()> {
        let table = read_hybrid_table(&self.whole, self.sector).map_err(|error| error.errno)?;
        *self.table.write() = table;
        Ok(())
    }
}

/// A partition of `whole` as a disk of its own, called `disk.img#2`. One that the end of the disk cuts off is as long as what is
/// there of it; `ENXIO` if it lies behind the end.
pub fn slice(whole: &Disk, partition: &Partition) -> veduta_api::Result<Disk> {
    let there = whole.size().checked_sub(partition.offset).filter(|left| *left > 0).ok_or(Errno::ENXIO)?;
    let name = format!("{}#{}", whole.name(), partition.number);
    whole.window(partition.offset, partition.size.min(there), name)
}

/// What `veduta info` shows of a table.
pub fn table_report(table: &PartitionTable) -> Report {
    let mut report = Report::new();
    report.put("scheme", table.scheme);
    table.report.fields().iter().for_each(|(key, value)| {
        report.put(key, value.clone());
    });
    report.put("partitions", table.partitions.iter().map(partition_report).collect::<Vec<_>>());
    report
}

fn partition_report(partition: &Partition) -> Report {
    let mut report = Report::new();
    report.put("number", partition.number);
    report.put("offset", Value::Bytes(partition.offset));
    report.put("size", Value::Bytes(partition.size));
    report.put("type", partition.kind.clone());
    for (key, text) in
        [("type_name", &partition.kind_name), ("name", &partition.name), ("uuid", &partition.uuid)]
    {
        if !text.is_empty() {
            report.put(key, text.clone());
        }
    }
    report.put("bootable", partition.bootable);
    report
}

/// The type `mbr`.
pub struct Mbr;

const OPTIONS: &[OptionSpec] = &[
    OptionSpec::with_value(
        "sector",
        "BYTES",
        "What the table counts in: 512, 1024, 2048 or 4096. By default the sector of the device; a GPT is searched with 512 and 4096.",
    ),
    OptionSpec::flag(
        "repair",
        "Write the broken one of a GPT's two tables anew from the other before anything else.",
    ),
    DeviceNode::OPTIONS[0],
    DeviceNode::OPTIONS[1],
    DeviceNode::OPTIONS[2],
    DeviceNode::OPTIONS[3],
    DeviceNode::OPTIONS[4],
];

/// Takes `sector=` out of a list.
pub fn take_sector(options: &mut Options) -> Result<Option<u32>, OptionsError> {
    match options.take_bytes("sector")? {
        None => Ok(None),
        Some(sector @ (512 | 1024 | 2048 | 4096)) => Ok(Some(sector as u32)),
        Some(other) => Err(OptionsError(format!("option sector={other}: expected 512, 1024, 2048 or 4096"))),
    }
}

impl Module for Mbr {
    fn name(&self) -> &'static str {
        "mbr"
    }

    fn aliases(&self) -> &'static [&'static str] {
        &["gpt", "partx", "umdevmbr", "vudevpartx", "vd", "vdi", "umdevvd", "vudevvdi"]
    }

    fn summary(&self) -> &'static str {
        "the partitions of a disk, MBR or GPT, each as a disk"
    }

    fn source(&self) -> SourceKind {
        SourceKind::Disk
    }

    fn options(&self) -> &'static [OptionSpec] {
        OPTIONS
    }

    fn writable(&self) -> bool {
        true
    }

    fn manual(&self) -> &'static str {
        "Shows a disk and its partitions: as `disk`, `disk1`, `disk2` and so on in a directory, where it is mounted through FUSE; as block \
         devices in a view. Each can be read and written in place. The table is changed by fdisk, sfdisk, sgdisk or parted on `disk`; the \
         partitions follow when it is closed, or when `blockdev --rereadpt` asks for it, but not while one of them is in use.\n\n\
         Tables are MBR, with logical partitions from number 5 on, and GPT; to read only, also Apple partition maps, and BSD labels inside \
         an MBR partition. A GPT whose table at the start of the disk is damaged is read from its backup at the end, with a \
         warning; `-o repair` writes it anew. A table whose chain of logical partitions turns back, or whose partitions overlap, is refused \
         by name, unless it is mounted with `-o ro`. A disk without a table has no partitions until somebody makes one."
    }

    /// A disk whose table is damaged beyond reading is still one of ours.
    fn probe(&self, disk: &Disk) -> veduta_api::Result<bool> {
        match read_table(disk, None) {
            Ok(table) => Ok(table.is_some()),
            Err(error) if error.errno == Errno::EUCLEAN => Ok(true),
            Err(error) => Err(error.errno),
        }
    }

    fn describe(&self, disk: &Disk, mut options: Options) -> Result<Report, MountError> {
        let table = read_hybrid_table(disk, take_sector(&mut options)?)?.ok_or_else(no_table)?;
        Ok(table_report(&table))
    }

    fn mount(&self, request: &mut Request<'_>) -> Result<Object, MountError> {
        let sector = take_sector(&mut request.options)?;
        let repair = request.options.take_flag("repair")?;
        let disk = request.disk()?;
        let writable = !request.read_only && !disk.is_read_only();
        if repair {
            if !writable {
                return Err(MountError::usage("repair wants to write, and the disk cannot be written"));
            }
            if let Some(done) = repair_gpt(&disk, sector)? {
                tracing::warn!("{}: {done}", disk.name());
            }
        }
        match read_with_fault(&disk, sector) {
            Ok(Some((_, Some(fault)))) if writable => {
                return Err(MountError::corrupt(format!("{fault}; -o ro shows what there is")));
            }
            Ok(Some((table, _))) => {
                if let Some(Value::List(warnings)) = table.report.find("warnings") {
                    warnings.iter().for_each(|warning| tracing::warn!("{}: {warning}", disk.name()));
                }
            }
            Ok(None) => {
                tracing::warn!(
                    "{}: there is no partition table, so there are no partitions yet",
                    disk.name()
                );
            }
            Err(error) => return Err(error),
        }
        Ok(Object::Disk(Arc::new(PartitionedDisk::open(disk, sector)?)))
    }
}

fn no_table() -> MountError {
    MountError::wrong_type("there is no partition table")
}
