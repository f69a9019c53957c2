//! The Apple partition map, to read only.
//!
//! Block 0 starts with `ER` and the size of a block; from block 1 on each block is one entry, which starts with `PM` and says how many
//! there are: count (4), first block (8), blocks (12), name (16, 32 bytes), type (48, 32 bytes). All numbers are big-endian. On a disc that
//! is to start more than one kind of machine the map may count in 512 bytes whatever block 0 says.

use veduta_api::{Disk, Partition, PartitionTable, Report, Result};

/// The map describes itself in its first entry, so there are fewer partitions than that.
const MAX_ENTRIES: u32 = 256;

/// `None` if there is no such map.
pub(crate) fn read(disk: &Disk) -> Result<Option<PartitionTable>> {
    if disk.size() < 2048 {
        return Ok(None);
    }
    let head = disk.read_vec(0, 4)?;
    let declared = u64::from(u16::from_be_bytes([head[2], head[3]]));
    if !head.starts_with(b"ER") {
        return Ok(None);
    }
    for block in [declared, 512] {
        if matches!(block, 512 | 1024 | 2048 | 4096) && is_entry(disk, block)? {
            return list(disk, block).map(Some);
        }
    }
    Ok(None)
}

fn is_entry(disk: &Disk, at: u64) -> Result<bool> {
    Ok(at + 512 <= disk.size() && disk.read_vec(at, 2)? == b"PM")
}

fn list(disk: &Disk, block: u64) -> Result<PartitionTable> {
    let mut report = Report::new();
    report.put("sector_size", block);
    let mut partitions = Vec::new();
    let count = be32(&disk.read_vec(block, 512)?, 4);
    if count > MAX_ENTRIES {
        report.warn(format!("only the first {MAX_ENTRIES} of {count} partitions were read"));
    }
    for number in 1..=count.min(MAX_ENTRIES) {
        let at = u64::from(number) * block;
        if !is_entry(disk, at)? {
            report.warn(format!("the map ends at entry {number} of {count}"));
            break;
        }
        let entry = disk.read_vec(at, 512)?;
        let kind = text(&entry[48..80]);
        let kind_name = match &*kind {
            "Apple_HFS" => "HFS or HFS+",
            "Apple_partition_map" => "Partition map",
            "Apple_Free" => "Free space",
            "Apple_UNIX_SVR2" => "Unix",
            _ => "",
        };
        let (offset, size) = (u64::from(be32(&entry, 8)) * block, u64::from(be32(&entry, 12)) * block);
        if size > 0 {
            partitions.push(Partition {
                number,
                offset,
                size,
                kind_name: kind_name.to_owned(),
                kind,
                name: text(&entry[16..48]),
                uuid: String::new(),
                bootable: false,
            });
        }
    }
    Ok(PartitionTable { scheme: "apm", partitions, report })
}

fn text(bytes: &[u8]) -> String {
    let end = bytes.iter().position(|byte| *byte == 0).unwrap_or(bytes.len());
    String::from_utf8_lossy(&bytes[..end]).into_owned()
}

/// `at` is a constant of the layout, and the caller has the whole entry.
fn be32(bytes: &[u8], at: usize) -> u32 {
    u32::from_be_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
}
