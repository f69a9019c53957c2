//! Feature flags: their names, and which of them a reader must know.
//!
//! Three sets: *compat* may be ignored by those who do not know them, *ro_compat* by those who only read,
//! *incompat* by nobody. Names are those of `mke2fs -O` and `dumpe2fs`.

use crate::error::{Error, Result};

/// The three sets of a superblock.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Features {
    /// s_feature_compat
    pub(crate) compat: u32,
    /// s_feature_incompat
    pub(crate) incompat: u32,
    /// s_feature_ro_compat
    pub(crate) ro_compat: u32,
}

pub(crate) const COMPAT_HAS_JOURNAL: u32 = 0x4;
pub(crate) const COMPAT_SPARSE_SUPER2: u32 = 0x200;

pub(crate) const INCOMPAT_FILETYPE: u32 = 0x2;
pub(crate) const INCOMPAT_RECOVER: u32 = 0x4;
pub(crate) const INCOMPAT_JOURNAL_DEV: u32 = 0x8;
pub(crate) const INCOMPAT_META_BG: u32 = 0x10;
pub(crate) const INCOMPAT_EXTENTS: u32 = 0x40;
pub(crate) const INCOMPAT_64BIT: u32 = 0x80;
const INCOMPAT_MMP: u32 = 0x100;
pub(crate) const INCOMPAT_FLEX_BG: u32 = 0x200;
pub(crate) const INCOMPAT_EA_INODE: u32 = 0x400;
pub(crate) const INCOMPAT_CSUM_SEED: u32 = 0x2000;
pub(crate) const INCOMPAT_LARGEDIR: u32 = 0x4000;
const INCOMPAT_INLINE_DATA: u32 = 0x8000;
const INCOMPAT_ENCRYPT: u32 = 0x10000;
pub(crate) const INCOMPAT_CASEFOLD: u32 = 0x20000;

pub(crate) const RO_COMPAT_SPARSE_SUPER: u32 = 0x1;
pub(crate) const RO_COMPAT_LARGE_FILE: u32 = 0x2;
pub(crate) const RO_COMPAT_HUGE_FILE: u32 = 0x8;
pub(crate) const RO_COMPAT_GDT_CSUM: u32 = 0x10;
pub(crate) const RO_COMPAT_DIR_NLINK: u32 = 0x20;
const RO_COMPAT_EXTRA_ISIZE: u32 = 0x40;
pub(crate) const RO_COMPAT_BIGALLOC: u32 = 0x200;
pub(crate) const RO_COMPAT_METADATA_CSUM: u32 = 0x400;
pub(crate) const RO_COMPAT_ORPHAN_PRESENT: u32 = 0x1_0000;

/// Every incompat feature that the driver reads.
const INCOMPAT_KNOWN: u32 = INCOMPAT_FILETYPE
    | INCOMPAT_RECOVER
    | INCOMPAT_META_BG
    | INCOMPAT_EXTENTS
    | INCOMPAT_64BIT
    | INCOMPAT_MMP
    | INCOMPAT_FLEX_BG
    | INCOMPAT_EA_INODE
    | INCOMPAT_CSUM_SEED
    | INCOMPAT_LARGEDIR
    | INCOMPAT_INLINE_DATA
    | INCOMPAT_ENCRYPT
    | INCOMPAT_CASEFOLD;

/// What of incompat can be written too.
const INCOMPAT_WRITTEN: u32 = INCOMPAT_FILETYPE
    | INCOMPAT_RECOVER
    | INCOMPAT_META_BG
    | INCOMPAT_EXTENTS
    | INCOMPAT_64BIT
    | INCOMPAT_FLEX_BG
    | INCOMPAT_CSUM_SEED
    | INCOMPAT_LARGEDIR
    | INCOMPAT_INLINE_DATA;
/// What of ro_compat can be written.
const RO_COMPAT_WRITTEN: u32 = RO_COMPAT_SPARSE_SUPER
    | RO_COMPAT_LARGE_FILE
    | RO_COMPAT_HUGE_FILE
    | RO_COMPAT_GDT_CSUM
    | RO_COMPAT_DIR_NLINK
    | RO_COMPAT_EXTRA_ISIZE
    | RO_COMPAT_BIGALLOC
    | RO_COMPAT_METADATA_CSUM
    | RO_COMPAT_ORPHAN_PRESENT;

const COMPAT_NAMES: &[(u32, &str)] = &[
    (0x1, "dir_prealloc"),
    (0x2, "imagic_inodes"),
    (0x4, "has_journal"),
    (0x8, "ext_attr"),
    (0x10, "resize_inode"),
    (0x20, "dir_index"),
    (0x40, "lazy_bg"),
    (0x80, "snapshot_inode"),
    (0x100, "snapshot"),
    (0x200, "sparse_super2"),
    (0x400, "fast_commit"),
    (0x800, "stable_inodes"),
    (0x1000, "orphan_file"),
];

const INCOMPAT_NAMES: &[(u32, &str)] = &[
    (0x1, "compression"),
    (0x2, "filetype"),
    (0x4, "needs_recovery"),
    (0x8, "journal_dev"),
    (0x10, "meta_bg"),
    (0x40, "extent"),
    (0x80, "64bit"),
    (0x100, "mmp"),
    (0x200, "flex_bg"),
    (0x400, "ea_inode"),
    (0x1000, "dirdata"),
    (0x2000, "metadata_csum_seed"),
    (0x4000, "large_dir"),
    (0x8000, "inline_data"),
    (0x10000, "encrypt"),
    (0x20000, "casefold"),
];

const RO_COMPAT_NAMES: &[(u32, &str)] = &[
    (0x1, "sparse_super"),
    (0x2, "large_file"),
    (0x4, "btree_dir"),
    (0x8, "huge_file"),
    (0x10, "uninit_bg"),
    (0x20, "dir_nlink"),
    (0x40, "extra_isize"),
    (0x80, "has_snapshot"),
    (0x100, "quota"),
    (0x200, "bigalloc"),
    (0x400, "metadata_csum"),
    (0x800, "replica"),
    (0x1000, "read-only"),
    (0x2000, "project"),
    (0x4000, "shared_blocks"),
    (0x8000, "verity"),
    (0x10000, "orphan_present"),
];

/// Features that ext2 never had: a volume with one of them is called ext4.
const EXT3_INCOMPAT: u32 = INCOMPAT_FILETYPE | INCOMPAT_RECOVER | INCOMPAT_META_BG;
const EXT3_RO_COMPAT: u32 = 0x7;

impl Features {
    pub(crate) fn has_compat(self, flag: u32) -> bool {
        self.compat & flag != 0
    }

    pub(crate) fn has_incompat(self, flag: u32) -> bool {
        self.incompat & flag != 0
    }

    pub(crate) fn has_ro_compat(self, flag: u32) -> bool {
        self.ro_compat & flag != 0
    }

    /// Refuses, by name, what cannot be read.
    pub(crate) fn check(self) -> Result<()> {
        if self.has_incompat(INCOMPAT_JOURNAL_DEV) {
            let what = "this is an external journal (feature journal_dev), not a filesystem";
            return Err(Error::Unsupported(what.into()));
        }
        let unknown = self.incompat & !INCOMPAT_KNOWN;
        if unknown == 0 {
            return Ok(());
        }
        let list = names_of(unknown, INCOMPAT_NAMES, "incompat").join(", ");
        Err(Error::Unsupported(format!("the volume uses features that cannot be read: {list}")))
    }

    /// Refuses, by name, what can be read but not written.
    pub(crate) fn check_writable(self) -> Result<()> {
        let mut names = names_of(self.incompat & !INCOMPAT_WRITTEN, INCOMPAT_NAMES, "incompat");
        names.extend(names_of(self.ro_compat & !RO_COMPAT_WRITTEN, RO_COMPAT_NAMES, "ro_compat"));
        if names.is_empty() {
            return Ok(());
        }
        let list = names.join(", ");
        Err(Error::Unsupported(format!(
            "the volume uses features that cannot be written: {list}; mount with -o ro"
        )))
    }

    /// All names, in the order of `dumpe2fs`; a flag without a name as `incompat bit 0x...`.
    pub(crate) fn names(self) -> Vec<String> {
        let mut names = names_of(self.compat, COMPAT_NAMES, "compat");
        names.extend(names_of(self.incompat, INCOMPAT_NAMES, "incompat"));
        names.extend(names_of(self.ro_compat, RO_COMPAT_NAMES, "ro_compat"));
        names
    }

    /// `ext2`, `ext3` or `ext4`, decided as blkid does: what ext3 does not know makes it ext4, a journal
    /// makes it ext3.
    pub(crate) fn format(self) -> &'static str {
        if self.incompat & !EXT3_INCOMPAT != 0 || self.ro_compat & !EXT3_RO_COMPAT != 0 {
            "ext4"
        } else if self.has_compat(COMPAT_HAS_JOURNAL) {
            "ext3"
        } else {
            "ext2"
        }
    }
}

fn names_of(flags: u32, table: &[(u32, &str)], set: &str) -> Vec<String> {
    let bits = (0..32).map(|bit| 1u32 << bit).filter(|bit| flags & bit != 0);
    bits.map(|bit| match table.iter().find(|(flag, _)| *flag == bit) {
        Some((_, name)) => (*name).to_owned(),
        None => format!("{set} bit {bit:#x}"),
    })
    .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_cannot_be_read_is_named() {
        let refused =
            |incompat| Features { incompat, ..Features::default() }.check().unwrap_err().to_string();
        assert!(refused(0x1002).contains("dirdata"));
        assert!(refused(0x1).contains("compression"));
        assert!(refused(0x8000_0000).contains("incompat bit 0x80000000"));
        assert!(refused(0x8).contains("external journal"));
        assert!(Features { incompat: INCOMPAT_KNOWN, compat: !0, ro_compat: !0 }.check().is_ok());
    }

    #[test]
    fn the_format_is_named_as_blkid_does() {
        let format = |compat, incompat, ro_compat| Features { compat, incompat, ro_compat }.format();
        assert_eq!(format(0x38, 0x2, 0x3), "ext2");
        assert_eq!(format(0x3c, 0x6, 0x3), "ext3");
        assert_eq!(format(0x3c, 0x42, 0x3), "ext4");
        assert_eq!(format(0x38, 0x2, 0x10), "ext4");
    }
}
