//! Block groups: where their inode tables are, and what is free in them.
//!
//! Layout: descriptors of 32 bytes (64 and more with `64bit`) fill the blocks behind the superblock; with
//! `meta_bg` each such block lies in the first group that it describes instead. They are read when they
//! are needed, so a mount costs the same for any size of volume.

use crate::bytes::{join, le16, le32, slice};
use crate::change::{Change, Kind};
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

/// `bg_flags`: the inode bitmap is not on the disk, and would be empty.
pub(crate) const INODE_UNINIT: u16 = 1;
/// `bg_flags`: the block bitmap is not on the disk, and would show the group's own structures only.
pub(crate) const BLOCK_UNINIT: u16 = 2;

/// One descriptor.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Group {
    /// bg_block_bitmap
    pub(crate) block_bitmap: u64,
    /// bg_inode_bitmap
    pub(crate) inode_bitmap: u64,
    /// bg_inode_table; the whole table lies within the volume.
    pub(crate) inode_table: u64,
    /// bg_free_blocks_count, which counts clusters
    pub(crate) free_clusters: u32,
    /// bg_free_inodes_count
    pub(crate) free_inodes: u32,
    /// bg_used_dirs_count
    pub(crate) used_dirs: u32,
    /// bg_flags, if the volume has descriptors with checksums; else 0
    pub(crate) flags: u16,
    /// bg_itable_unused: inodes at the end of the table that were never used
    pub(crate) unused_inodes: u32,
    /// bg_block_bitmap_csum
    pub(crate) block_bitmap_sum: u32,
    /// bg_inode_bitmap_csum
    pub(crate) inode_bitmap_sum: u32,
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
        match self.descriptor_sum(group, bytes) {
            Some(sum) if sum != le16(bytes, CHECKSUM_AT) => {
                Err(Error::corrupt(format!("the checksum of the descriptor of group {group} is wrong")))
            }
            _ => Ok(()),
        }
    }

    /// What bg_checksum should be; `None` if the volume has none.
    fn descriptor_sum(&self, group: u32, bytes: &[u8]) -> Option<u16> {
        let number = group.to_le_bytes();
        if self.sb.features.has_ro_compat(RO_COMPAT_METADATA_CSUM) {
            let seed = crate::checksum::crc32c(self.sb.checksum_seed, &number);
            return Some(crc32c_without(seed, bytes, CHECKSUM_AT, 2) as u16);
        }
        if self.sb.features.has_ro_compat(RO_COMPAT_GDT_CSUM) {
            let sum = crc16(crc16(!0, &self.sb.uuid), &number);
            let sum = crc16(sum, slice(bytes, 0, CHECKSUM_AT));
            return Some(crc16(sum, bytes.get(CHECKSUM_AT + 2..).unwrap_or_default()));
        }
        None
    }

    /// Whether descriptors have checksums, and so flags and a count of unused inodes.
    pub(crate) fn has_group_flags(&self) -> bool {
        self.sb.features.has_ro_compat(RO_COMPAT_METADATA_CSUM | RO_COMPAT_GDT_CSUM)
    }

    /// Clusters of a group; the last may have fewer.
    pub(crate) fn group_clusters(&self, group: u32) -> u32 {
        let left = self.sb.blocks_count - self.sb.group_start(group);
        let blocks = left.min(self.sb.blocks_per_group.into());
        blocks.div_ceil(1 << self.sb.cluster_bits) as u32
    }

    /// The block bitmap of a group whose bitmap is not on the disk: only what the group itself needs is in use. Bits
    /// behind the last cluster count as used.
    pub(crate) fn initial_block_bitmap(&self, group: u32, about: &Group) -> Vec<u8> {
        let sb = &self.sb;
        let mut bitmap = vec![0; sb.block_size()];
        let (start, clusters) = (sb.group_start(group), self.group_clusters(group));
        let mut used = |first: u64, count: u64| {
            for block in first..first + count {
                if let Some(cluster) = block.checked_sub(start).map(|blocks| blocks >> sb.cluster_bits) {
                    if cluster < clusters.into() {
                        bitmap[cluster as usize / 8] |= 1 << (cluster % 8);
                    }
                }
            }
        };
        used(start, base_blocks(sb, group));
        used(about.block_bitmap, 1);
        used(about.inode_bitmap, 1);
        used(about.inode_table, sb.inode_table_blocks());
        for bit in clusters as usize..bitmap.len() * 8 {
            bitmap[bit / 8] |= 1 << (bit % 8);
        }
        bitmap
    }

    /// The sum of a bitmap, of which `bits` count.
    pub(crate) fn bitmap_sum(&self, bitmap: &[u8], bits: u32) -> u32 {
        crate::checksum::crc32c(self.sb.checksum_seed, slice(bitmap, 0, bits as usize / 8))
    }

    /// As much of a bitmap's sum as a descriptor of this volume keeps.
    pub(crate) fn kept_sum(&self, sum: u32) -> u32 {
        if self.sb.desc_size >= 64 { sum } else { sum & 0xffff }
    }

    fn parse_descriptor(&self, group: u32, bytes: &[u8]) -> Result<Group> {
        let inode_table = join(le32(bytes, 0x8), le32(bytes, 0x28));
        if !self.sb.holds(inode_table, self.sb.inode_table_blocks()) {
            let what = format!("the inode table of group {group} at {inode_table} lies outside the volume");
            return Err(Error::corrupt(what));
        }
        let count =
            |low: usize, high: usize| u32::from(le16(bytes, high)) << 16 | u32::from(le16(bytes, low));
        let flagged = self.has_group_flags();
        Ok(Group {
            block_bitmap: join(le32(bytes, 0x0), le32(bytes, 0x20)),
            inode_bitmap: join(le32(bytes, 0x4), le32(bytes, 0x24)),
            inode_table,
            free_clusters: count(0xc, 0x2c),
            free_inodes: count(0xe, 0x2e),
            used_dirs: count(0x10, 0x30),
            flags: if flagged { le16(bytes, 0x12) } else { 0 },
            unused_inodes: if flagged { count(0x1c, 0x32) } else { 0 },
            block_bitmap_sum: count(0x18, 0x38),
            inode_bitmap_sum: count(0x1a, 0x3a),
        })
    }
}

impl Change<'_> {
    /// Stores what of a descriptor changes: counts, flags and sums.
    pub(crate) fn store_group(&mut self, group: u32, about: &Group) -> Result<()> {
        let volume = self.volume;
        let per_block = volume.sb.descriptors_per_block();
        let number = descriptor_block(&volume.sb, group / per_block);
        let size = volume.sb.desc_size as usize;
        let at = (group % per_block) as usize * size;
        self.edit(number, Kind::Other, |block| {
            let bytes = &mut block[at..at + size];
            for (low, high, value) in [
                (0xc, 0x2c, about.free_clusters),
                (0xe, 0x2e, about.free_inodes),
                (0x10, 0x30, about.used_dirs),
            ] {
                put_halves(bytes, low, high, value);
            }
            if volume.has_group_flags() {
                bytes[0x12..0x14].copy_from_slice(&about.flags.to_le_bytes());
                put_halves(bytes, 0x1c, 0x32, about.unused_inodes);
            }
            if volume.sb.has_checksums() {
                put_halves(bytes, 0x18, 0x38, about.block_bitmap_sum);
                put_halves(bytes, 0x1a, 0x3a, about.inode_bitmap_sum);
            }
            if let Some(sum) = volume.descriptor_sum(group, bytes) {
                bytes[CHECKSUM_AT..CHECKSUM_AT + 2].copy_from_slice(&sum.to_le_bytes());
            }
        })
    }
}

/// A value in two halves of 16 bits; descriptors of 32 bytes have no room for the second.
fn put_halves(bytes: &mut [u8], low: usize, high: usize, value: u32) {
    bytes[low..low + 2].copy_from_slice(&(value as u16).to_le_bytes());
    if let Some(place) = bytes.get_mut(high..high + 2) {
        place.copy_from_slice(&((value >> 16) as u16).to_le_bytes());
    }
}

/// Blocks at the start of a group that hold copies of the superblock and of descriptors.
pub(crate) fn base_blocks(sb: &Superblock, group: u32) -> u64 {
    let per_block = sb.descriptors_per_block();
    let own = u64::from(sb.has_super(group));
    let meta = sb.features.has_incompat(INCOMPAT_META_BG);
    if !meta || group < sb.first_meta_bg.saturating_mul(per_block) {
        let plain = if meta { sb.first_meta_bg } else { sb.group_count.div_ceil(per_block) };
        return own * (1 + u64::from(plain) + u64::from(sb.reserved_gdt_blocks));
    }
    let place = group % per_block;
    own + u64::from(place == 0 || place == 1 || place == per_block - 1)
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
