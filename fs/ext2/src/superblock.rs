//! The superblock: the numbers that everything else is found by.
//!
//! Layout: 1024 bytes at byte 1024 of the volume, with copies at the start of some block groups. Fields are
//! little-endian; what was added later lies in what was once padding, so old volumes read as zeros there.
//! The last four bytes are a CRC-32C of the rest if `metadata_csum` is on.

use veduta_api::{Disk, MountError, Timestamp};

use crate::bytes::{join, le16, le32, le64, slice, u8_at};
use crate::checksum::crc32c;
use crate::error::{Error, Result};
use crate::features::{
    Features, INCOMPAT_64BIT, INCOMPAT_CSUM_SEED, RO_COMPAT_BIGALLOC, RO_COMPAT_METADATA_CSUM,
    RO_COMPAT_SPARSE_SUPER,
};

/// Bytes.
pub(crate) const SUPERBLOCK_SIZE: usize = 1024;
/// Byte of the volume at which the first superblock lies.
pub(crate) const PRIMARY_OFFSET: u64 = 1024;
/// s_magic
pub(crate) const MAGIC: u16 = 0xef53;
/// The inode of the root directory.
pub(crate) const ROOT_INO: u32 = 2;
/// `s_state`: unmounted cleanly.
pub(crate) const STATE_VALID: u16 = 1;
/// `s_state`: errors were found.
pub(crate) const STATE_ERROR: u16 = 2;
/// `s_state`: orphans were being recovered.
pub(crate) const STATE_ORPHAN: u16 = 4;

/// `EXT2_FLAGS_UNSIGNED_HASH` of s_flags.
const FLAG_UNSIGNED_HASH: u32 = 2;

/// A superblock whose numbers fit together and fit the disk.
#[derive(Clone, Debug)]
pub(crate) struct Superblock {
    /// s_feature_*
    pub(crate) features: Features,
    /// Binary logarithm of the block size: 10 to 16.
    pub(crate) block_bits: u32,
    /// Binary logarithm of the blocks in a cluster; 0 without `bigalloc`.
    pub(crate) cluster_bits: u32,
    /// s_blocks_count
    pub(crate) blocks_count: u64,
    /// s_r_blocks_count
    pub(crate) reserved_blocks: u64,
    /// s_free_blocks_count
    pub(crate) free_blocks: u64,
    /// s_inodes_count
    pub(crate) inodes_count: u32,
    /// s_free_inodes_count
    pub(crate) free_inodes: u32,
    /// s_first_data_block
    pub(crate) first_data_block: u32,
    /// s_blocks_per_group
    pub(crate) blocks_per_group: u32,
    /// s_inodes_per_group
    pub(crate) inodes_per_group: u32,
    /// s_first_ino: inodes below are reserved
    pub(crate) first_ino: u32,
    /// s_inode_size: bytes, a power of two from 128 to a block
    pub(crate) inode_size: u32,
    /// s_desc_size: bytes, a power of two from 32 to 1024
    pub(crate) desc_size: u32,
    /// Block groups.
    pub(crate) group_count: u32,
    /// s_reserved_gdt_blocks
    pub(crate) reserved_gdt_blocks: u16,
    /// s_first_meta_bg
    pub(crate) first_meta_bg: u32,
    /// s_backup_bgs
    pub(crate) backup_groups: [u32; 2],
    /// s_overhead_clusters
    pub(crate) overhead_clusters: u32,
    /// The block that holds this superblock; descriptors follow it.
    pub(crate) own_block: u64,
    /// s_uuid
    pub(crate) uuid: [u8; 16],
    /// What all checksums of `metadata_csum` start from.
    pub(crate) checksum_seed: u32,
    /// s_hash_seed; `None` if all zeros
    pub(crate) hash_seed: Option<[u32; 4]>,
    /// Whether directory hashes take characters as unsigned.
    pub(crate) unsigned_hash: bool,
    /// s_journal_inum
    pub(crate) journal_ino: u32,
    /// s_journal_dev
    pub(crate) journal_device: u32,
    /// s_jnl_blocks, if s_jnl_backup_type says that it is a copy of the journal inode's blocks
    pub(crate) journal_backup: Option<[u32; 17]>,
    /// s_last_orphan
    pub(crate) last_orphan: u32,
    /// s_usr_quota_inum, s_grp_quota_inum, s_prj_quota_inum, s_orphan_file_inum
    pub(crate) hidden_inos: [u32; 4],
    /// s_encoding_flags: whether names that are not UTF-8 are refused in casefold directories
    pub(crate) strict_encoding: bool,
    /// What only a report shows.
    pub(crate) facts: Facts,
}

/// The part of a superblock that nothing depends on.
#[derive(Clone, Debug)]
pub(crate) struct Facts {
    pub(crate) label: String,
    pub(crate) last_mounted_on: String,
    pub(crate) revision: u32,
    pub(crate) creator_os: u32,
    pub(crate) state: u16,
    pub(crate) errors_behaviour: u16,
    pub(crate) mount_count: u16,
    pub(crate) created: Timestamp,
    pub(crate) mounted: Timestamp,
    pub(crate) written: Timestamp,
    pub(crate) checked: Timestamp,
    pub(crate) kib_written: u64,
    pub(crate) hash_version: u8,
    pub(crate) encoding: u16,
    pub(crate) mmp_block: u64,
    pub(crate) error_count: u32,
    pub(crate) first_error: Fault,
    pub(crate) last_error: Fault,
}

/// An error that the kernel has noted in the superblock.
#[derive(Clone, Debug)]
pub(crate) struct Fault {
    pub(crate) time: Timestamp,
    pub(crate) inode: u32,
    pub(crate) block: u64,
    pub(crate) function: String,
    pub(crate) line: u32,
}

impl Superblock {
    /// Reads the superblock at byte `offset` of a disk.
    pub(crate) fn read(disk: &Disk, offset: u64) -> Result<Self, MountError> {
        let absent = || {
            let place = format!("there is no ext2, ext3 or ext4 superblock at byte {offset}");
            MountError::wrong_type(if offset == PRIMARY_OFFSET {
                format!("{place}; {BACKUPS}")
            } else {
                place
            })
        };
        if disk.size() < offset.saturating_add(SUPERBLOCK_SIZE as u64) {
            return Err(absent());
        }
        let bytes = disk.read_vec(offset, SUPERBLOCK_SIZE).map_err(Error::from)?;
        if le16(&bytes, 0x38) != MAGIC {
            return Err(absent());
        }
        Self::parse(&bytes, offset, disk.size()).map_err(|error| match error {
            Error::Corrupt(_) if offset == PRIMARY_OFFSET => {
                MountError::corrupt(format!("the superblock is damaged: {error}; {BACKUPS}"))
            }
            Error::Corrupt(_) => MountError::corrupt(format!("the superblock at byte {offset}: {error}")),
            other => other.into(),
        })
    }

    /// Checks the bytes of a superblock that was found at byte `offset` of a disk of `disk_size` bytes. As
    /// strict as the kernel, so that later arithmetic on these numbers stays in range.
    pub(crate) fn parse(bytes: &[u8], offset: u64, disk_size: u64) -> Result<Self> {
        let features =
            Features { compat: le32(bytes, 0x5c), incompat: le32(bytes, 0x60), ro_compat: le32(bytes, 0x64) };
        let block_bits = exponent(bytes, 0x18, 16, "block size")?;
        features.check()?;
        check_sum(bytes, features)?;
        let wide = features.has_incompat(INCOMPAT_64BIT);
        let high = |at: usize| if wide { le32(bytes, at) } else { 0 };
        let revision = le32(bytes, 0x4c);
        let sized = |at: usize, old: u16| if revision == 0 { old } else { le16(bytes, at) };
        let uuid = slice(bytes, 0x68, 16).try_into().unwrap_or_default();
        let hash_seed = [0xec, 0xf0, 0xf4, 0xf8].map(|at| le32(bytes, at));
        let mut sb = Self {
            features,
            block_bits,
            cluster_bits: 0,
            blocks_count: join(le32(bytes, 0x4), high(0x150)),
            reserved_blocks: join(le32(bytes, 0x8), high(0x154)),
            free_blocks: join(le32(bytes, 0xc), high(0x158)),
            inodes_count: le32(bytes, 0x0),
            free_inodes: le32(bytes, 0x10),
            first_data_block: le32(bytes, 0x14),
            blocks_per_group: le32(bytes, 0x20),
            inodes_per_group: le32(bytes, 0x28),
            first_ino: if revision == 0 { 11 } else { le32(bytes, 0x54) },
            inode_size: sized(0x58, 128).into(),
            desc_size: if wide { le16(bytes, 0xfe).into() } else { 32 },
            group_count: 0,
            reserved_gdt_blocks: le16(bytes, 0xce),
            first_meta_bg: le32(bytes, 0x104),
            backup_groups: [le32(bytes, 0x24c), le32(bytes, 0x250)],
            overhead_clusters: le32(bytes, 0x248),
            own_block: offset >> block_bits,
            uuid,
            checksum_seed: if features.has_incompat(INCOMPAT_CSUM_SEED) {
                le32(bytes, 0x270)
            } else {
                crc32c(!0, &uuid)
            },
            hash_seed: (hash_seed != [0; 4]).then_some(hash_seed),
            unsigned_hash: le32(bytes, 0x160) & FLAG_UNSIGNED_HASH != 0,
            journal_ino: le32(bytes, 0xe0),
            journal_device: le32(bytes, 0xe4),
            journal_backup: (u8_at(bytes, 0xfd) == 1)
                .then(|| std::array::from_fn(|index| le32(bytes, 0x10c + 4 * index))),
            last_orphan: le32(bytes, 0xe8),
            hidden_inos: [0x240, 0x244, 0x26c, 0x280].map(|at| le32(bytes, at)),
            strict_encoding: le16(bytes, 0x27e) & 1 != 0,
            facts: Facts::parse(bytes),
        };
        sb.check_sizes(bytes, revision)?;
        sb.check_counts(bytes, disk_size)?;
        Ok(sb)
    }

    /// Bytes.
    pub(crate) fn block_size(&self) -> usize {
        1 << self.block_bits
    }

    /// Blocks of a group's inode table.
    pub(crate) fn inode_table_blocks(&self) -> u64 {
        (u64::from(self.inodes_per_group) * u64::from(self.inode_size)).div_ceil(1 << self.block_bits)
    }

    /// Group descriptors in a block.
    pub(crate) fn descriptors_per_block(&self) -> u32 {
        (1 << self.block_bits) / self.desc_size
    }

    /// The first block of a group.
    pub(crate) fn group_start(&self, group: u32) -> u64 {
        u64::from(self.first_data_block) + u64::from(group) * u64::from(self.blocks_per_group)
    }

    /// Whether metadata carries CRC-32C checksums.
    pub(crate) fn has_checksums(&self) -> bool {
        self.features.has_ro_compat(RO_COMPAT_METADATA_CSUM)
    }

    /// Whether `count` blocks from `start` all lie in the part of the volume that can hold data.
    pub(crate) fn holds(&self, start: u64, count: u64) -> bool {
        start > u64::from(self.first_data_block)
            && start.checked_add(count).is_some_and(|end| end <= self.blocks_count)
    }

    /// Whether a group holds a copy of the superblock.
    pub(crate) fn has_super(&self, group: u32) -> bool {
        if group == 0 {
            return true;
        }
        if self.features.has_compat(crate::features::COMPAT_SPARSE_SUPER2) {
            return self.backup_groups.contains(&group);
        }
        let power_of = |base: u32| {
            let mut power = group;
            // Divides at each step, so it ends.
            while power % base == 0 {
                power /= base;
            }
            power == 1
        };
        group == 1
            || !self.features.has_ro_compat(RO_COMPAT_SPARSE_SUPER)
            || power_of(3)
            || power_of(5)
            || power_of(7)
    }

    /// Whether directory entries may lead to an inode.
    pub(crate) fn is_ordinary(&self, ino: u32) -> bool {
        ino == ROOT_INO
            || (ino >= self.first_ino && ino <= self.inodes_count && !self.hidden_inos.contains(&ino))
    }

    fn check_sizes(&mut self, bytes: &[u8], revision: u32) -> Result<()> {
        let block_size = 1u32 << self.block_bits;
        if revision > 1 {
            return Err(Error::Unsupported(format!(
                "the volume is of revision {revision}; 0 and 1 are known"
            )));
        }
        if !self.inode_size.is_power_of_two() || self.inode_size < 128 || self.inode_size > block_size {
            return Err(Error::corrupt(format!("an inode size of {} is impossible", self.inode_size)));
        }
        if !self.desc_size.is_power_of_two() || self.desc_size < 32 || self.desc_size > 1024 {
            return Err(Error::corrupt(format!("a descriptor size of {} is impossible", self.desc_size)));
        }
        if self.features.has_incompat(INCOMPAT_64BIT) && self.desc_size < 64 {
            return Err(Error::corrupt(format!("descriptors of {} bytes with 64bit", self.desc_size)));
        }
        if revision > 0 && self.first_ino < 11 {
            return Err(Error::corrupt(format!("inode {} cannot be the first", self.first_ino)));
        }
        if self.features.has_ro_compat(RO_COMPAT_BIGALLOC) {
            let cluster_bits = exponent(bytes, 0x1c, 30, "cluster size")?;
            self.cluster_bits = cluster_bits
                .checked_sub(self.block_bits)
                .ok_or_else(|| Error::corrupt("a cluster is smaller than a block"))?;
        }
        Ok(())
    }

    fn check_counts(&mut self, bytes: &[u8], disk_size: u64) -> Result<()> {
        let bits_per_block = 8u64 << self.block_bits;
        let clusters_per_group = match self.cluster_bits {
            0 => u64::from(self.blocks_per_group),
            _ => u64::from(le32(bytes, 0x24)),
        };
        if clusters_per_group == 0
            || clusters_per_group > bits_per_block
            || clusters_per_group << self.cluster_bits != u64::from(self.blocks_per_group)
        {
            return Err(Error::corrupt(format!(
                "{} blocks in a group are impossible",
                self.blocks_per_group
            )));
        }
        let inodes_per_block = (1u32 << self.block_bits) / self.inode_size;
        if self.inodes_per_group < inodes_per_block || u64::from(self.inodes_per_group) > bits_per_block {
            return Err(Error::corrupt(format!(
                "{} inodes in a group are impossible",
                self.inodes_per_group
            )));
        }
        let first = u64::from(self.first_data_block);
        if first >= self.blocks_count
            || (first == 0 && self.block_bits == 10 && self.cluster_bits == 0)
            || first > 1
        {
            return Err(Error::corrupt(format!("block {first} cannot be the first of data")));
        }
        if self.blocks_count > disk_size >> self.block_bits {
            let (blocks, bits) = (self.blocks_count, self.block_bits);
            return Err(Error::corrupt(format!(
                "the volume has {blocks} blocks of {} bytes, but the image holds only {}: its end is missing",
                1u32 << bits,
                disk_size >> bits
            )));
        }
        let groups = (self.blocks_count - first).div_ceil(self.blocks_per_group.into());
        self.group_count = u32::try_from(groups).map_err(|_| Error::corrupt("there are too many groups"))?;
        let inodes = u64::from(self.group_count) * u64::from(self.inodes_per_group);
        if u64::from(self.inodes_count) != inodes {
            return Err(Error::corrupt(format!(
                "{} inodes do not fit {} groups of {}",
                self.inodes_count, self.group_count, self.inodes_per_group
            )));
        }
        let descriptor_blocks = self.group_count.div_ceil(self.descriptors_per_block());
        if self.features.has_incompat(crate::features::INCOMPAT_META_BG)
            && self.first_meta_bg > descriptor_blocks
        {
            let first = self.first_meta_bg;
            return Err(Error::corrupt(format!("descriptor block {first} cannot be the first of meta_bg")));
        }
        Ok(())
    }
}

/// What the message about a damaged superblock adds. The unit of `sb=` is 1 KiB, whatever the block size.
const BACKUPS: &str =
    "copies are usually at sb=131072 (blocks of 4 KiB), sb=32768 (2 KiB) or sb=8193 (1 KiB)";

impl Facts {
    fn parse(bytes: &[u8]) -> Self {
        let time = |low: usize, high: usize| {
            Timestamp::from_seconds(join(le32(bytes, low), u8_at(bytes, high).into()) as i64)
        };
        Self {
            label: text(slice(bytes, 0x78, 16)),
            last_mounted_on: text(slice(bytes, 0x88, 64)),
            revision: le32(bytes, 0x4c),
            creator_os: le32(bytes, 0x48),
            state: le16(bytes, 0x3a),
            errors_behaviour: le16(bytes, 0x3c),
            mount_count: le16(bytes, 0x34),
            created: time(0x108, 0x276),
            mounted: time(0x2c, 0x275),
            written: time(0x30, 0x274),
            checked: time(0x40, 0x277),
            kib_written: le64(bytes, 0x178),
            hash_version: u8_at(bytes, 0xfc),
            encoding: le16(bytes, 0x27c),
            mmp_block: le64(bytes, 0x168),
            error_count: le32(bytes, 0x194),
            first_error: Fault {
                time: time(0x198, 0x278),
                inode: le32(bytes, 0x19c),
                block: le64(bytes, 0x1a0),
                function: text(slice(bytes, 0x1a8, 32)),
                line: le32(bytes, 0x1c8),
            },
            last_error: Fault {
                time: time(0x1cc, 0x279),
                inode: le32(bytes, 0x1d0),
                line: le32(bytes, 0x1d4),
                block: le64(bytes, 0x1d8),
                function: text(slice(bytes, 0x1e0, 32)),
            },
        }
    }
}

/// Ten more than the field says, since sizes count from 1 KiB; at most `max`.
fn exponent(bytes: &[u8], at: usize, max: u32, what: &str) -> Result<u32> {
    let log = le32(bytes, at);
    log.checked_add(10)
        .filter(|bits| *bits <= max)
        .ok_or_else(|| Error::corrupt(format!("a {what} of 2^{log} KiB is impossible")))
}

fn check_sum(bytes: &[u8], features: Features) -> Result<()> {
    if !features.has_ro_compat(RO_COMPAT_METADATA_CSUM) {
        return Ok(());
    }
    let kind = u8_at(bytes, 0x175);
    if kind != 1 {
        return Err(Error::Unsupported(format!(
            "metadata checksums of type {kind}; only 1 (crc32c) is known"
        )));
    }
    let sum = crc32c(!0, slice(bytes, 0, 0x3fc));
    if sum == le32(bytes, 0x3fc) { Ok(()) } else { Err(Error::corrupt("its checksum is wrong")) }
}

/// A field of text, which ends at the first zero or at its end.
fn text(field: &[u8]) -> String {
    let end = field.iter().position(|byte| *byte == 0).unwrap_or(field.len());
    String::from_utf8_lossy(&field[..end]).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A volume of 8192 blocks of 1 KiB, as mke2fs would lay it out.
    fn small() -> Vec<u8> {
        let mut bytes = vec![0; SUPERBLOCK_SIZE];
        for (at, value) in
            [(0x0, 2048u32), (0x4, 8192), (0x14, 1), (0x20, 8192), (0x24, 8192), (0x28, 2048), (0x4c, 1)]
        {
            bytes[at..at + 4].copy_from_slice(&value.to_le_bytes());
        }
        bytes[0x38..0x3a].copy_from_slice(&MAGIC.to_le_bytes());
        bytes[0x54] = 11;
        bytes[0x58] = 128;
        bytes
    }

    fn parse(bytes: &[u8]) -> Result<Superblock> {
        Superblock::parse(bytes, PRIMARY_OFFSET, 8192 << 10)
    }

    #[test]
    fn numbers_that_do_not_fit_together_are_refused() {
        assert_eq!(parse(&small()).unwrap().group_count, 1);
        for (at, value, says) in [
            (0x18, 7u32, "block size"),
            (0x18, u32::MAX, "block size"),
            (0x20, 0, "blocks in a group"),
            (0x20, 8193, "blocks in a group"),
            (0x28, 0, "inodes in a group"),
            (0x28, 2047, "do not fit"),
            (0x14, 0, "first of data"),
            (0x4, 8193, "its end is missing"),
            (0x4c, 2, "revision"),
            (0x58, 100, "inode size"),
            (0x58, 2048, "inode size"),
        ] {
            let mut bytes = small();
            bytes[at..at + 4].copy_from_slice(&value.to_le_bytes());
            let message = parse(&bytes).unwrap_err().to_string();
            assert!(message.contains(says), "{at:#x}={value}: {message}");
        }
    }

    #[test]
    fn copies_of_the_superblock_lie_where_the_flags_say() {
        let mut sb = parse(&small()).unwrap();
        let with_copies =
            |sb: &Superblock| (0..30).filter(|group| sb.has_super(*group)).collect::<Vec<u32>>();
        assert_eq!(with_copies(&sb).len(), 30);
        sb.features.ro_compat = RO_COMPAT_SPARSE_SUPER;
        assert_eq!(with_copies(&sb), [0, 1, 3, 5, 7, 9, 25, 27]);
        sb.features.compat = crate::features::COMPAT_SPARSE_SUPER2;
        sb.backup_groups = [1, 29];
        assert_eq!(with_copies(&sb), [0, 1, 29]);
    }
}
