//! BSD labels inside an MBR partition, to read only. As in Linux, their partitions get the numbers behind the last one of the MBR.
//!
//! The label is in the second sector of a partition of type A5, A6 or A9: the mark 0x82564557 at byte 0 and again at byte 132, the size of a
//! sector at 40, the count of partitions at 138, and from byte 148 on 16 bytes for each: sectors (0), first sector (4),
//! type (12). FreeBSD counts from its own partition, the others from the start of the disk; Linux takes a start before the partition's own for
//! the former, and so do we. Partition `c` (the third) is the whole.

use veduta_api::{Disk, Partition, PartitionTable, Result};

const MARK: u32 = 0x8256_4557;
const MAX_PARTITIONS: usize = 16;

/// Adds what the labels in a table's partitions say.
pub(crate) fn add(disk: &Disk, table: &mut PartitionTable, sector: u32) -> Result<()> {
    let mut next = table.partitions.iter().map(|partition| partition.number).max().unwrap_or(0).max(4) + 1;
    let slices: Vec<Partition> = table
        .partitions
        .iter()
        .filter(|slice| matches!(&*slice.kind, "0xa5" | "0xa6" | "0xa9"))
        .cloned()
        .collect();
    for slice in slices {
        let at = slice.offset + u64::from(sector);
        if at + 512 > disk.size() {
            continue;
        }
        let label = disk.read_vec(at, 512)?;
        if le32(&label, 0) != MARK || le32(&label, 132) != MARK {
            continue;
        }
        let count = usize::from(u16::from_le_bytes([label[138], label[139]])).min(MAX_PARTITIONS);
        for (index, entry) in label[148..].chunks_exact(16).take(count).enumerate() {
            let (sectors, start, kind) = (le32(entry, 0), le32(entry, 4), entry[12]);
            if sectors == 0 || kind == 0 || index == 2 {
                continue;
            }
            let mut offset = u64::from(start) * u64::from(sector);
            if offset < slice.offset {
                offset += slice.offset;
            }
            let size = u64::from(sectors) * u64::from(sector);
            if offset + size > slice.offset + slice.size {
                table.report.warn(format!(
                    "a partition of the BSD label in partition {} leaves it, and was left out",
                    slice.number
                ));
                continue;
            }
            table.partitions.push(Partition {
                number: next,
                offset,
                size,
                kind: format!("bsd-{kind}"),
                kind_name: match kind {
                    1 => "BSD swap".into(),
                    7 => "BSD UFS".into(),
                    27 => "FreeBSD ZFS".into(),
                    _ => String::new(),
                },
                name: format!("{}", (b'a' + index as u8) as char),
                uuid: String::new(),
                bootable: false,
            });
            next += 1;
        }
    }
    Ok(())
}

/// `at` is a constant of the layout, and the caller has the whole label.
fn le32(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
}
