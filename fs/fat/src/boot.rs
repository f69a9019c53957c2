//! The boot sector: what kind of volume a disk holds, and where its parts lie.
//!
//! FAT: the BIOS parameter block (bytes 11 to 89 of sector 0) counts sectors: reserved ones, copies of the table, the root
//! directory (FAT12 and FAT16), then the clusters. exFAT: bytes 64 to 112 say where table and clusters lie; sectors 0 to
//! 10 are protected by a checksum that fills sector 11. After [`Layout::read`] every part lies inside the volume, and the table
//! has an entry for each cluster.

use veduta_api::{Disk, Errno, MountError};

/// The four formats.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Format {
    Fat12,
    Fat16,
    Fat32,
    ExFat,
}

impl Format {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Format::Fat12 => "fat12",
            Format::Fat16 => "fat16",
            Format::Fat32 => "fat32",
            Format::ExFat => "exfat",
        }
    }
}

/// Where the root directory lies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Root {
    /// FAT12 and FAT16: a fixed place.
    Fixed { offset: u64, len: u64 },
    /// A chain that starts at this cluster.
    Cluster(u32),
}

/// Where the parts of a volume lie. Offsets are bytes from the start of the disk.
#[derive(Clone, Debug)]
pub(crate) struct Layout {
    pub(crate) format: Format,
    /// Bytes: 512 to 4096.
    pub(crate) sector: u32,
    /// Bytes; a power of two.
    pub(crate) cluster_size: u32,
    /// Clusters; they are numbered from 2.
    pub(crate) clusters: u32,
    /// Where cluster 2 starts.
    pub(crate) heap: u64,
    /// The copies of the table that are kept. The first is read.
    pub(crate) tables: Vec<u64>,
    /// Bytes of one copy.
    pub(crate) table_len: u64,
    pub(crate) root: Root,
    /// The FSInfo sector of FAT32.
    pub(crate) fsinfo: Option<u64>,
    /// Bytes that the volume claims.
    pub(crate) size: u64,
    /// The volume id.
    pub(crate) serial: u32,
    pub(crate) oem: [u8; 8],
    /// The label in the boot sector; spaces if there is none.
    pub(crate) boot_label: [u8; 11],
    /// Where the boot label stands, and whether it does.
    pub(crate) boot_label_at: Option<u64>,
    /// A second boot sector (FAT32).
    pub(crate) backup_boot: Option<u64>,
    /// The byte whose lowest bit (FAT) or second bit (exFAT) says "not cleanly unmounted".
    pub(crate) state_at: u64,
    /// That bit.
    pub(crate) state_bit: u8,
    /// What it said.
    pub(crate) dirty: bool,
    /// What is odd, in sentences.
    pub(crate) warnings: Vec<String>,
}

/// Why a disk is not a volume of ours.
#[derive(Debug)]
pub(crate) enum Refusal {
    /// Something else is on the disk.
    Foreign(String),
    /// It is FAT or exFAT, and damaged.
    Corrupt(String),
    /// A feature that we do not know.
    Unsupported(String),
    Io(Errno),
}

impl From<Refusal> for MountError {
    fn from(refusal: Refusal) -> Self {
        match refusal {
            Refusal::Foreign(why) => MountError::wrong_type(why),
            Refusal::Corrupt(why) => MountError::corrupt(why),
            Refusal::Unsupported(why) => MountError::unsupported(why),
            Refusal::Io(errno) => MountError::system(errno, format!("cannot read the boot sector: {errno}")),
        }
    }
}

pub(crate) fn le16(bytes: &[u8], at: usize) -> u16 {
    bytes.get(at..at + 2).and_then(|b| b.try_into().ok()).map_or(0, u16::from_le_bytes)
}

pub(crate) fn le32(bytes: &[u8], at: usize) -> u32 {
    bytes.get(at..at + 4).and_then(|b| b.try_into().ok()).map_or(0, u32::from_le_bytes)
}

pub(crate) fn le64(bytes: &[u8], at: usize) -> u64 {
    bytes.get(at..at + 8).and_then(|b| b.try_into().ok()).map_or(0, u64::from_le_bytes)
}

impl Layout {
    /// Reads and checks the boot sector. `writable` asks for more: all of the volume must be on the disk.
    pub(crate) fn read(disk: &Disk, writable: bool) -> Result<Self, Refusal> {
        if disk.size() < 512 {
            return Err(Refusal::Foreign("the disk is smaller than one sector".into()));
        }
        let boot = disk.read_vec(0, 512).map_err(Refusal::Io)?;
        let layout = if &boot[3..11] == b"EXFAT   " { exfat(disk, &boot)? } else { fat(&boot)? };
        if disk.size() < layout.size {
            let sentence = format!(
                "the volume is {} bytes long, but the disk only {}: the image is cut short",
                layout.size,
                disk.size()
            );
            // Readable as far as it goes, if at least the table is there.
            if writable || disk.size() <= layout.heap {
                return Err(Refusal::Corrupt(sentence));
            }
            return Ok(Self { warnings: [layout.warnings, vec![sentence]].concat(), ..layout });
        }
        Ok(layout)
    }

    /// Whether `cluster` is the number of a cluster.
    pub(crate) fn is_cluster(&self, cluster: u32) -> bool {
        cluster >= 2 && cluster - 2 < self.clusters
    }

    /// Where a cluster starts. The number has been checked.
    pub(crate) fn offset(&self, cluster: u32) -> u64 {
        self.heap + u64::from(cluster.saturating_sub(2)) * u64::from(self.cluster_size)
    }

    /// How many clusters `bytes` take up.
    pub(crate) fn clusters_for(&self, bytes: u64) -> u64 {
        bytes.div_ceil(u64::from(self.cluster_size))
    }

    pub(crate) fn is_exfat(&self) -> bool {
        self.format == Format::ExFat
    }

    /// Bytes; the largest file.
    pub(crate) fn size_max(&self) -> u64 {
        if self.is_exfat() { i64::MAX as u64 } else { u64::from(u32::MAX) }
    }

    /// The most slots of 32 bytes that a directory may have.
    pub(crate) fn slots_max(&self) -> u32 {
        if self.is_exfat() { (256 << 20) / 32 } else { 65536 }
    }
}

fn fat(boot: &[u8]) -> Result<Layout, Refusal> {
    let foreign = |what: &str| Err(Refusal::Foreign(format!("no FAT boot sector: {what}")));
    let sector = u32::from(le16(boot, 11));
    if !(512..=4096).contains(&sector) || !sector.is_power_of_two() {
        return foreign("its sector size is impossible");
    }
    let per_cluster = u32::from(boot[13]);
    if !per_cluster.is_power_of_two() {
        return foreign("its cluster size is no power of two");
    }
    let reserved = u32::from(le16(boot, 14));
    let copies = u32::from(boot[16]);
    if reserved == 0 || copies == 0 || copies > 8 {
        return foreign("it has no reserved sectors, or an impossible number of tables");
    }
    if boot[21] != 0xf0 && boot[21] < 0xf8 {
        return foreign("its media byte is impossible");
    }
    let root_entries = u32::from(le16(boot, 17));
    let table_sectors_16 = u32::from(le16(boot, 22));
    let is_32 = table_sectors_16 == 0;
    let table_sectors = if is_32 { le32(boot, 36) } else { table_sectors_16 };
    let sectors = match u32::from(le16(boot, 19)) {
        0 => le32(boot, 32),
        few => few,
    };
    if table_sectors == 0 || sectors == 0 || (is_32 && root_entries != 0) || (!is_32 && root_entries == 0) {
        return foreign("its table or its size is zero");
    }
    // From here on it is FAT, or a good imitation.
    let root_sectors = (root_entries * 32).div_ceil(sector);
    let before = u64::from(reserved) + u64::from(copies) * u64::from(table_sectors) + u64::from(root_sectors);
    if before >= u64::from(sectors) {
        return Err(Refusal::Corrupt(format!(
            "the table takes {before} sectors, but the volume has only {sectors}"
        )));
    }
    let by_size = (u64::from(sectors) - before) / u64::from(per_cluster);
    let format = match by_size {
        _ if is_32 => Format::Fat32,
        0..=4084 => Format::Fat12,
        _ => Format::Fat16,
    };
    let table_len = u64::from(table_sectors) * u64::from(sector);
    let (entries, limit) = match format {
        Format::Fat12 => (table_len * 2 / 3, 0xff5),
        Format::Fat16 => (table_len / 2, 0xfff5),
        _ => (table_len / 4, 0x0fff_fff5),
    };
    let clusters = by_size.min(entries.saturating_sub(2)).min(limit - 2);
    if clusters == 0 {
        return Err(Refusal::Corrupt("the volume has no room for a single cluster".into()));
    }
    let mut warnings = Vec::new();
    if clusters < by_size {
        warnings.push(format!("the table has room for {clusters} clusters only, of {by_size}"));
    }
    let bytes = |sectors: u32| u64::from(sectors) * u64::from(sector);
    let start = bytes(reserved);
    let mut tables: Vec<u64> = (0..copies).map(|copy| start + u64::from(copy) * table_len).collect();
    let flags = le16(boot, 40);
    if is_32 && le16(boot, 42) != 0 {
        return Err(Refusal::Unsupported(format!("FAT32 of version {:#x} is not known", le16(boot, 42))));
    }
    if is_32 && flags & 0x80 != 0 {
        // Mirroring is off: one copy is alive.
        let active = usize::from(flags & 0xf);
        let Some(table) = tables.get(active) else {
            return Err(Refusal::Corrupt(format!(
                "table {active} is to be used, but there are only {copies}"
            )));
        };
        tables = vec![*table];
    }
    let root_at = start + u64::from(copies) * table_len;
    let (extended, state_at) = if is_32 { (64, 0x41) } else { (36, 0x25) };
    let has_label = boot[extended + 2] == 0x29;
    let mut boot_label = [b' '; 11];
    if has_label {
        boot_label.copy_from_slice(&boot[extended + 7..extended + 18]);
    }
    let has_serial = has_label || boot[extended + 2] == 0x28;
    let layout = Layout {
        format,
        sector,
        cluster_size: per_cluster * sector,
        clusters: clusters as u32,
        heap: bytes(before as u32),
        tables,
        table_len,
        root: if is_32 {
            Root::Cluster(le32(boot, 44) & 0x0fff_ffff)
        } else {
            Root::Fixed { offset: root_at, len: u64::from(root_entries) * 32 }
        },
        fsinfo: (is_32 && le16(boot, 48) > 0 && u32::from(le16(boot, 48)) < reserved)
            .then(|| bytes(u32::from(le16(boot, 48)))),
        size: bytes(sectors),
        serial: if has_serial { le32(boot, extended + 3) } else { 0 },
        oem: boot[3..11].try_into().unwrap_or_default(),
        boot_label,
        boot_label_at: has_label.then_some(extended as u64 + 7),
        backup_boot: (is_32 && le16(boot, 50) > 0 && u32::from(le16(boot, 50)) < reserved)
            .then(|| bytes(u32::from(le16(boot, 50)))),
        state_at,
        state_bit: 1,
        dirty: boot[state_at as usize] & 1 != 0,
        warnings,
    };
    match layout.root {
        Root::Cluster(root) if !layout.is_cluster(root) => Err(Refusal::Corrupt(format!(
            "the root directory is said to start at cluster {root}, which does not exist"
        ))),
        _ => Ok(layout),
    }
}

fn exfat(disk: &Disk, boot: &[u8]) -> Result<Layout, Refusal> {
    let corrupt = |why: String| Err(Refusal::Corrupt(why));
    let (sector_shift, cluster_shift) = (boot[108], boot[109]);
    if !(9..=12).contains(&sector_shift) || cluster_shift > 25 - sector_shift {
        return corrupt(format!(
            "the boot sector gives impossible sizes: 2^{sector_shift}, 2^{cluster_shift}"
        ));
    }
    let sector = 1_u32 << sector_shift;
    if disk.size() < u64::from(sector) * 24 {
        return corrupt("the boot regions do not fit on the disk".into());
    }
    let region = disk.read_vec(0, sector as usize * 12).map_err(Refusal::Io)?;
    let (body, sums) = region.split_at(sector as usize * 11);
    let sum = boot_checksum(body);
    if !sums.chunks_exact(4).all(|stored| le32(stored, 0) == sum) {
        return corrupt("the checksum of the boot region is wrong".into());
    }
    let revision = le16(boot, 104);
    if revision >> 8 != 1 {
        return Err(Refusal::Unsupported(format!(
            "exFAT of revision {}.{} is not known",
            revision >> 8,
            revision & 0xff
        )));
    }
    let bytes = |sectors: u64| sectors.checked_mul(u64::from(sector));
    let (fats, flags) = (u64::from(boot[110]), le16(boot, 106));
    let (table_start, table_sectors) = (u64::from(le32(boot, 80)), u64::from(le32(boot, 84)));
    let (heap, clusters) = (u64::from(le32(boot, 88)), le32(boot, 92));
    let Some(size) = bytes(le64(boot, 72)).filter(|size| *size < i64::MAX as u64) else {
        return corrupt("the volume is impossibly long".into());
    };
    let per_cluster = 1_u64 << cluster_shift;
    let fits = (1..=2).contains(&fats)
        && table_start >= 24
        && table_start + fats * table_sectors <= heap
        && heap + u64::from(clusters) * per_cluster <= le64(boot, 72)
        && table_sectors * u64::from(sector) / 4 >= u64::from(clusters) + 2
        && clusters > 0
        && clusters <= 0xffff_fff5;
    if !fits {
        return corrupt("the parts of the volume, as the boot sector has them, overlap or do not fit".into());
    }
    // Two tables belong to TexFAT; the active one is used, the other is left alone.
    let active = if fats == 2 && flags & 1 != 0 { table_sectors } else { 0 };
    let at = |sectors: u64| sectors * u64::from(sector);
    let layout = Layout {
        format: Format::ExFat,
        sector,
        cluster_size: sector << cluster_shift,
        clusters,
        heap: at(heap),
        tables: vec![at(table_start + active)],
        table_len: at(table_sectors),
        root: Root::Cluster(le32(boot, 96)),
        fsinfo: None,
        size,
        serial: le32(boot, 100),
        oem: boot[3..11].try_into().unwrap_or_default(),
        boot_label: [b' '; 11],
        boot_label_at: None,
        backup_boot: None,
        state_at: 106,
        state_bit: 2,
        dirty: flags & 2 != 0,
        warnings: if flags & 4 != 0 {
            vec!["the volume says that the medium failed before".into()]
        } else {
            Vec::new()
        },
    };
    match layout.root {
        Root::Cluster(root) if !layout.is_cluster(root) => {
            corrupt(format!("the root directory is said to start at cluster {root}, which does not exist"))
        }
        _ => Ok(layout),
    }
}

/// The boot checksum of exFAT; bytes 106, 107 and 112 change while mounted and are left out.
fn boot_checksum(body: &[u8]) -> u32 {
    let counted = body.iter().enumerate().filter(|(at, _)| !matches!(at, 106 | 107 | 112));
    counted.fold(0_u32, |sum, (_, byte)| sum.rotate_right(1).wrapping_add(u32::from(*byte)))
}
