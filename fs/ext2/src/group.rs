//! Block groups: where their inode tables are, and what is free in them.
//!
//! Layout: descriptors of 32 bytes (64 and more with `64bit`) fill the blocks behind the superblock; with
//! `meta_bg` each such block lies in the first group that it describes instead. They are read when they
//! are needed, so a mount costs the same for any size of volume.

use crate::bytes::{join, le16, le32, slice};
use crate::checksum::{crc16, crc32c_without};
use crate::error::{Error, Result};
use crate::features::{
    COMPAT_SPARSE_SUPER2, INCOMPAT_META_BG, RO_COMPAT_GDT_CSUM, RO_COMPAT_METADATA_CSUM,
    RO_COMPAT_SPARSE_SUPER,
};
use crate::superblock::Superblock;
use crate::volume::Volume;

/// Where bg_checksum stands.
const CHECKSUM_AT: usize = 0x1e;
/// A volume with more groups than this is not summed up for `statfs`: the superblock's counts serve.
const SUMMED_GROUPS: u32 = 1 << 14;

/// One descriptor.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Group {
    /// bg_inode_table; the whole table lies within the volume.
    pub(crate) inode_table: u64,
    /// bg_free_blocks_count, which counts clusters
    pub(crate) free_clusters: u32,
    /// bg_free_inodes_count
    pub(crate) free_inodes: u32,
}

impl Volume {
    /// Reads the descriptor of a group, and checks it.
    pub(crate) fn group(&self, group: u32) -> Result<Group> {
        let per_block = self.sb.descriptors_per_block();
        let number = descriptor_block(&self.sb, group / per_block);
        let block = self.block(number)?;
        let size = self.sb.desc_size as usize;
        let bytes = slice(&block, (group % per_block) as usize * size, size);
        self.check_descriptor(group, bytes)
            .and_then(|()| self.parse_descriptor(group, bytes))
            .map_err(|error| error.in_block(number))
    }

    /// Free clusters and free inodes. The kernel sums up the descriptors when it mounts; so does this, once,
    /// unless there are very many.
    pub(crate) fn free_counts(&self) -> (u64, u64) {
        let noted = (self.sb.free_blocks >> self.sb.cluster_bits, u64::from(self.sb.free_inodes));
        if self.sb.group_count > SUMMED_GROUPS {
            return noted;
        }
        *self.free_counts.get_or_init(|| {
            let mut groups = (0..self.sb.group_count).map(|group| self.group(group));
            let summed = groups.try_fold((0, 0), |(clusters, inodes), group| {
                let group = group?;
                Ok::<_, Error>((
                    clusters + u64::from(group.free_clusters),
                    inodes + u64::from(group.free_inodes),
                ))
            });
            summed.unwrap_or_else(|error| {
                tracing::warn!("ext2: {error}; free space is as the superblock has it");
                noted
            })
        })
    }

    fn check_descriptor(&self, group: u32, bytes: &[u8]) -> Result<()> {
        let wrong = || Error::corrupt(format!("the checksum of the descriptor of group {group} is wrong"));
        let stored = le16(bytes, CHECKSUM_AT);
        let number = group.to_le_bytes();
        if self.sb.features.has_ro_compat(RO_COMPAT_METADATA_CSUM) {
            let seed = crate::checksum::crc32c(self.sb.checksum_seed, &number);
            let sum = crc32c_without(seed, bytes, CHECKSUM_AT, 2) as u16;
            return if sum == stored { Ok(()) } else { Err(wrong()) };
        }
        if self.sb.features.has_ro_compat(RO_COMPAT_GDT_CSUM) {
            let sum = crc16(crc16(!0, &self.sb.uuid), &number);
            let sum = crc16(sum, slice(bytes, 0, CHECKSUM_AT));
            let sum = crc16(sum, bytes.get(CHECKSUM_AT + 2..).unwrap_or_default());
            return if sum == stored { Ok(()) } else { Err(wrong()) };
        }
        Ok(())
    }

    fn parse_descriptor(&self, group: u32, bytes: &[u8]) -> Result<Group> {
        let inode_table = join(le32(bytes, 0x8), le32(bytes, 0x28));
        if !self.sb.holds(inode_table, self.sb.inode_table_blocks()) {
            let what = format!("the inode table of group {group} at {inode_table} lies outside the volume");
            return Err(Error::corrupt(what));
        }
        let count =
            |low: usize, high: usize| u32::from(le16(bytes, high)) << 16 | u32::from(le16(bytes, low));
        Ok(Group { inode_table, free_clusters: count(0xc, 0x2c), free_inodes: count(0xe, 0x2e) })
    }
}

/// The block that holds the `index`th block of descriptors.
fn descriptor_block(sb: &Superblock, index: u32) -> u64 {
    if !sb.features.has_incompat(INCOMPAT_META_BG) || index < sb.first_meta_bg {
        return sb.own_block + u64::from(index) + 1;
    }
    let group = index * sb.descriptors_per_block();
    // With blocks of 1 KiB that count from 0 (bigalloc), the superblock of group 0 is in block 1.
    let shifted = u64::from(sb.block_bits == 10 && index == 0 && sb.first_data_block == 0);
    sb.group_start(group) + u64::from(sb.has_super(group)) + shifted
}

/// Blocks (clusters, with `bigalloc`) that hold the structure of the filesystem and can never hold content,
/// the journal left aside: what `df` takes off the size.
pub(crate) fn overhead_clusters(sb: &Superblock) -> u64 {
    if sb.cluster_bits > 0 {
        // Structures of several groups may share a cluster, so it cannot be computed from the numbers alone.
        return u64::from(sb.overhead_clusters);
    }
    let per_block = u64::from(sb.descriptors_per_block());
    let groups = u64::from(sb.group_count);
    let descriptor_blocks = groups.div_ceil(per_block);
    let meta = sb.features.has_incompat(INCOMPAT_META_BG);
    let plain_blocks = if meta { u64::from(sb.first_meta_bg) } else { descriptor_blocks };
    let supers = super_groups(sb, groups);
    let with_plain = if meta { super_groups(sb, groups.min(plain_blocks * per_block)) } else { supers };
    let meta_copies: u64 = match meta && plain_blocks < descriptor_blocks {
        false => 0,
        true => {
            let last = groups - (descriptor_blocks - 1) * per_block;
            let copies = |members: u64| match members {
                members if members == per_block => members.min(3),
                members => members.min(2),
            };
            (descriptor_blocks - 1 - plain_blocks) * copies(per_block) + copies(last)
        }
    };
    u64::from(sb.first_data_block)
        + supers * (1 + u64::from(sb.reserved_gdt_blocks))
        + with_plain * plain_blocks
        + meta_copies
        + groups * (sb.inode_table_blocks() + 2)
}

/// How many of the first `groups` groups hold a copy of the superblock, without asking each.
fn super_groups(sb: &Superblock, groups: u64) -> u64 {
    if groups == 0 {
        return 0;
    }
    if sb.features.has_compat(COMPAT_SPARSE_SUPER2) {
        let [first, second] = sb.backup_groups.map(u64::from);
        let counts = |group: u64| u64::from(group > 0 && group < groups);
        return 1 + counts(first) + if second == first { 0 } else { counts(second) };
    }
    if !sb.features.has_ro_compat(RO_COMPAT_SPARSE_SUPER) {
        return groups;
    }
    let powers = [3u64, 5, 7].map(|base| {
        std::iter::successors(Some(base), |power| power.checked_mul(base))
            .take_while(|power| *power < groups)
            .count() as u64
    });
    1 + u64::from(groups > 1) + powers.iter().sum::<u64>()
}
