//! The module: how a request becomes a tree.

use std::sync::Arc;

use veduta_api::{
    Disk, Module, MountError, Object, OptionSpec, Options, Report, Request, Result as ApiResult, SourceKind,
};

use crate::bytes::{le16, le32};
use crate::inode::check_root;
use crate::journal::{self, Status};
use crate::report;
use crate::superblock::{MAGIC, PRIMARY_OFFSET, Superblock};
use crate::tree::Tree;
use crate::volume::Volume;

/// ext2, ext3 and ext4.
#[derive(Clone, Copy, Debug, Default)]
pub struct Ext2;

const WRITING_ONLY: &str =
    "Says how changes are written; taken, and without effect on a tree that is only read.";

const OPTIONS: &[OptionSpec] = &[
    OptionSpec::flag("noload", "Leaves the journal aside: shows the volume as it was before the journal."),
    OptionSpec::flag("norecovery", "The same as noload."),
    OptionSpec::with_value(
        "sb",
        "N",
        "Takes the copy of the superblock at N times 1024 bytes, whatever the block size.",
    ),
    OptionSpec::flag("minixdf", "df shows the whole size of the volume, its own structures included."),
    OptionSpec::flag("bsddf", "df leaves out what the structures of the volume take up; the default."),
    OptionSpec::flag("acl", "Shows and obeys POSIX ACLs; always so."),
    OptionSpec::flag("user_xattr", "Shows extended attributes of users; always so."),
    OptionSpec::with_value(
        "errors",
        "continue|remount-ro",
        "What follows an error. A tree that is only read satisfies both: the call fails, and reading goes on.",
    ),
    OptionSpec::with_value("data", "journal|ordered|writeback", WRITING_ONLY),
    OptionSpec::with_value("commit", "SECONDS", WRITING_ONLY),
    OptionSpec::flag("barrier", WRITING_ONLY),
    OptionSpec::flag("nobarrier", WRITING_ONLY),
    OptionSpec::flag("delalloc", WRITING_ONLY),
    OptionSpec::flag("nodelalloc", WRITING_ONLY),
    OptionSpec::flag("discard", WRITING_ONLY),
    OptionSpec::flag("nodiscard", WRITING_ONLY),
    OptionSpec::flag("rw+", "fuse-ext2's word for writing, which is not supported yet: refused."),
];

const MANUAL: &str = "\
Reads every volume that mke2fs makes: ext2, ext3 and ext4 with blocks of 1 to 64 KiB and any of its features. \
What cannot be read is refused by name. Checksums are verified on the way in.

A journal that was not replayed yet (the volume was not unmounted cleanly) is replayed into memory, fast commits \
included: the tree is shown as the kernel would show it after a mount, and the image is not touched.

Limits: encrypted files give ENOKEY, and their names are shown in base64. Files with fs-verity are read without \
being verified. If the superblock is damaged, -o sb=N takes a copy, as with mount(8).";

/// How to open a volume.
#[derive(Debug, Default)]
struct Choices {
    skip_journal: bool,
    whole_size: bool,
    superblock: u64,
}

impl Module for Ext2 {
    fn name(&self) -> &'static str {
        "ext2"
    }

    fn aliases(&self) -> &'static [&'static str] {
        &["ext3", "ext4", "umfuseext2", "vufuseext2"]
    }

    fn summary(&self) -> &'static str {
        "ext2, ext3 and ext4 filesystems (read-only)"
    }

    fn source(&self) -> SourceKind {
        SourceKind::Disk
    }

    fn options(&self) -> &'static [OptionSpec] {
        OPTIONS
    }

    fn manual(&self) -> &'static str {
        MANUAL
    }

    fn probe(&self, disk: &Disk) -> ApiResult<bool> {
        const LEN: usize = 0x68;
        if disk.size() < PRIMARY_OFFSET + LEN as u64 {
            return Ok(false);
        }
        let head = disk.read_vec(PRIMARY_OFFSET, LEN)?;
        Ok(le16(&head, 0x38) == MAGIC && le32(&head, 0x18) <= 6 && le32(&head, 0x4c) <= 1)
    }

    fn describe(&self, disk: &Disk, mut options: Options) -> Result<Report, MountError> {
        let choices = Choices::take(&mut options)?;
        let (volume, status) = open(disk.clone(), &choices)?;
        Ok(report::describe(&volume, &status))
    }

    fn mount(&self, request: &mut Request<'_>) -> Result<Object, MountError> {
        let choices = Choices::take(&mut request.options)?;
        if !request.read_only {
            return Err(MountError::unsupported(
                "writing to ext filesystems is not supported yet; mount with -o ro",
            ));
        }
        let (volume, status) = open(request.disk()?, &choices)?;
        check_root(&volume)?;
        announce(&volume, &status);
        Ok(Object::Tree(Arc::new(Tree::new(volume, choices.whole_size))))
    }
}

impl Choices {
    fn take(options: &mut Options) -> Result<Self, MountError> {
        let noload = options.take_flag("noload")?;
        let norecovery = options.take_flag("norecovery")?;
        let bsddf = options.take_flag("bsddf")?;
        let minixdf = options.take_flag("minixdf")?;
        for word in
            ["acl", "user_xattr", "barrier", "nobarrier", "delalloc", "nodelalloc", "discard", "nodiscard"]
        {
            options.take_flag(word)?;
        }
        if options.take_flag("rw+")? {
            return Err(MountError::usage(
                "rw+: writing to ext filesystems is not supported yet; mount with -o ro",
            ));
        }
        options.take_parsed::<u32>("commit", "a number of seconds")?;
        take_word(options, "errors", &["continue", "remount-ro"])?;
        take_word(options, "data", &["journal", "ordered", "writeback"])?;
        let superblock = options.take_parsed::<u64>("sb", "a place in units of 1024 bytes")?.unwrap_or(1);
        Ok(Self {
            skip_journal: noload || norecovery,
            whole_size: minixdf && !bsddf,
            superblock: superblock.checked_mul(1024).filter(|offset| *offset > 0).ok_or_else(|| {
                MountError::usage(format!("option sb={superblock}: there can be no superblock"))
            })?,
        })
    }
}

fn take_word(options: &mut Options, key: &str, words: &[&str]) -> Result<(), MountError> {
    match options.take_value(key)? {
        Some(word) if !words.contains(&word.as_str()) => {
            Err(MountError::usage(format!("option {key}={word}: expected one of {}", words.join(", "))))
        }
        _ => Ok(()),
    }
}

fn open(disk: Disk, choices: &Choices) -> Result<(Volume, Status), MountError> {
    let sb = Superblock::read(&disk, choices.superblock)?;
    let volume = Volume::new(disk, sb);
    Ok(journal::replay(volume, choices.skip_journal)?)
}

/// What a person should know before looking at the tree.
fn announce(volume: &Volume, status: &Status) {
    let name = volume.name();
    if let Status::Replayed { transactions, fast_commits } = status {
        let blocks = volume.overlaid();
        tracing::info!(
            "ext2: {name}: replayed into memory: {transactions} transactions ({blocks} blocks), \
             {fast_commits} fast commits"
        );
    }
    if volume.sb.facts.state & crate::superblock::STATE_ERROR != 0 || volume.sb.facts.error_count > 0 {
        tracing::warn!("ext2: {name}: errors were found in this volume before; run e2fsck");
    }
}
