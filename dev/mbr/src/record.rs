//! A boot sector: the first sector of a disk, and of each link in a chain of logical partitions.
//!
//! Layout: the disk's identifier at byte 440, four 16-byte records from byte 446, the mark `55 AA` at byte 510. A
//! record is the boot flag (0), the old cylinder-head-sector address (1, not looked at: it ends at 8 GB), the type
//! (4), the end as such an address (5), the first sector (8) and the count of sectors (12), both little-endian.
//!
//! A boot sector of a FAT, exFAT or NTFS filesystem carries the same mark, with code or text where the records would
//! be; what tells them apart stands at [`BootSector::is_volume`] and [`BootSector::has_records`].

use crate::Lba;

/// Bytes; so much of the first sector is looked at, whatever its size.
pub(crate) const LEN: usize = 512;

/// The bytes of a boot sector that has its mark.
pub(crate) struct BootSector([u8; LEN]);

/// One of the four records, not an empty one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Record {
    /// Which of the four: 1 to 4.
    pub(crate) slot: u32,
    pub(crate) bootable: bool,
    /// Never 0.
    pub(crate) kind: u8,
    /// As the record has it: what it counts from depends on where the record stands.
    pub(crate) start: u32,
    /// Never 0.
    pub(crate) sectors: u32,
}

impl Record {
    /// Whether it holds a chain of logical partitions.
    pub(crate) fn is_extended(&self) -> bool {
        matches!(self.kind, 0x05 | 0x0f | 0x85)
    }

    /// The first sector behind it, counted as `start` is.
    pub(crate) fn end(&self) -> Lba {
        u64::from(self.start) + u64::from(self.sectors)
    }
}

impl BootSector {
    /// `None` without the mark.
    pub(crate) fn parse(bytes: [u8; LEN]) -> Option<Self> {
        bytes.ends_with(&[0x55, 0xaa]).then_some(Self(bytes))
    }

    /// The identifier that Windows and Linux (PARTUUID) know the disk by.
    pub(crate) fn disk_id(&self) -> u32 {
        self.u32_at(440)
    }

    /// The records that are in use, in their order.
    pub(crate) fn records(&self) -> Vec<Record> {
        (0..4)
            .map(|index| {
                let at = 446 + 16 * index;
                Record {
                    slot: index as u32 + 1,
                    bootable: self.0[at] == 0x80,
                    kind: self.0[at + 4],
                    start: self.u32_at(at + 8),
                    sectors: self.u32_at(at + 12),
                }
            })
            .filter(|record| record.kind != 0 && record.sectors != 0)
            .collect()
    }

    /// Whether bytes 446 to 509 can be records at all: each boot flag is 0 or 80h (the kernel's own test), and at
    /// least one record is in use. An empty table is no table: nothing tells it from a boot sector without one.
    pub(crate) fn has_records(&self) -> bool {
        let flags = (0..4).all(|index| matches!(self.0[446 + 16 * index], 0 | 0x80));
        flags && !self.records().is_empty()
    }

    /// Whether this is the boot sector of a FAT, exFAT or NTFS filesystem: it starts with a jump, and either names
    /// itself or has a block of BIOS parameters that a FAT can have. GRUB's boot sector jumps too, over zeros.
    pub(crate) fn is_volume(&self) -> bool {
        let b = &self.0;
        let jump = (b[0] == 0xeb && b[2] == 0x90) || b[0] == 0xe9;
        let named = matches!(&b[3..11], b"NTFS    " | b"EXFAT   ");
        let bytes_per_sector = u16::from_le_bytes([b[11], b[12]]);
        let parameters = matches!(bytes_per_sector, 512 | 1024 | 2048 | 4096)
            && b[13].is_power_of_two()
            && u16::from_le_bytes([b[14], b[15]]) > 0
            && matches!(b[16], 1 | 2)
            && (b[21] == 0xf0 || b[21] >= 0xf8);
        jump && (named || parameters)
    }

    /// Little-endian; `at` is one of the constants above, so it lies inside.
    fn u32_at(&self, at: usize) -> u32 {
        u32::from_le_bytes([self.0[at], self.0[at + 1], self.0[at + 2], self.0[at + 3]])
    }
}
