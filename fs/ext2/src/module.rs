//! The module: how a request becomes a tree.

use std::sync::Arc;
use std::time::Duration;

use veduta_api::{
    Disk, Module, MountError, Object, OptionSpec, Options, Report, Request, Result as ApiResult, SourceKind,
};

use crate::bytes::{le16, le32};
use crate::inode::check_root;
use crate::journal::{self, Status};
use crate::recover::{self, Opened};
use crate::report;
use crate::superblock::{MAGIC, PRIMARY_OFFSET, Superblock};
use crate::transactions::Policy;
use crate::tree::Tree;
use crate::volume::Volume;

/// ext2, ext3 and ext4.
#[derive(Clone, Copy, Debug, Default)]
pub struct Ext2;

const OPTIONS: &[OptionSpec] = &[
    OptionSpec::flag(
        "noload",
        "Leaves the journal aside: shows the volume as it was before the journal; read-only.",
    ),
    OptionSpec::flag("norecovery", "The same as noload."),
    OptionSpec::with_value(
        "sb",
        "N",
        "Takes the copy of the superblock at N times 1024 bytes, whatever the block size; read-only.",
    ),
    OptionSpec::flag("minixdf", "df shows the whole size of the volume, its own structures included."),
    OptionSpec::flag("bsddf", "df leaves out what the structures of the volume take up; the default."),
    OptionSpec::flag("acl", "Shows and obeys POSIX ACLs; always so."),
    OptionSpec::flag("user_xattr", "Shows extended attributes of users; always so."),
    OptionSpec::with_value(
        "errors",
        "continue|remount-ro",
        "What follows damage that is found while something is changed: the call fails, and nothing can be changed from then \
         on (the default), or everything else goes on.",
    ),
    OptionSpec::with_value(
        "data",
        "ordered|writeback",
        "Content is written before the commit that makes it reachable; always so, whichever is given.",
    ),
    OptionSpec::with_value(
        "commit",
        "SECONDS",
        "How long a change waits for a commit at most; 5 is the default.",
    ),
    OptionSpec::flag(
        "barrier",
        "Has the device write out its cache where the order of writes matters; the default.",
    ),
    OptionSpec::flag("nobarrier", "Does not: faster, and a power failure may damage the volume."),
    OptionSpec::flag("delalloc", "Taken, and without effect: the kernel holds writes back anyway."),
    OptionSpec::flag("nodelalloc", "The same."),
    OptionSpec::flag("discard", "Tells the device what is not in use any more, after each commit."),
    OptionSpec::flag("nodiscard", "Does not; the default."),
    OptionSpec::flag("rw+", "fuse-ext2's word for rw; taken, and rw is the default."),
];

const MANUAL: &str = "\
Reads every volume that mke2fs makes: ext2, ext3 and ext4 with blocks of 1 to 64 KiB and any of its features. \
What cannot be read is refused by name. Checksums are verified on the way in.

Changes are journalled as the kernel does it in ordered mode: they gather for some seconds, or until a sync, an fsync or an unmount, and \
then reach the disk together; content is there before the commit that makes it reachable, and space that was given back is not used again \
before that was committed. After a crash the next mount replays the journal. Without a journal (ext2) changes are written in an order \
after which e2fsck -p repairs what a crash leaves.

Volumes with these features are read and not written: casefold, encrypt, ea_inode, mmp, quota, project, verity, \
shared_blocks. A volume with errors, one that should be checked, and one whose journal cannot be replayed are mounted read-only, with a \
sentence that says so; run e2fsck.

With ro, a journal that was not replayed yet is replayed into memory, fast commits included: the tree is shown as the kernel would show it \
after a mount, and the image is not touched.

Limits: encrypted files give ENOKEY, and their names are shown in base64. Files with fs-verity are read without \
being verified. Blocks that are reserved for root are given to everybody. If the superblock is damaged, -o ro,sb=N takes a copy, as with \
mount(8).";

/// How to open a volume.
#[derive(Debug)]
struct Choices {
    skip_journal: bool,
    whole_size: bool,
    superblock: u64,
    policy: Policy,
}

impl Module for Ext2 {
    fn name(&self) -> &'static str {
        "ext2"
    }

    fn aliases(&self) -> &'static [&'static str] {
        &["ext3", "ext4", "umfuseext2", "vufuseext2"]
    }

    fn summary(&self) -> &'static str {
        "ext2, ext3 and ext4 filesystems"
    }

    fn writable(&self) -> bool {
        true
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
        let disk = request.disk()?;
        // Without the journal, or from a copy of the superblock, there is only reading.
        let only_read = choices.skip_journal || choices.superblock != PRIMARY_OFFSET;
        if !request.read_only && !disk.is_read_only() && !only_read {
            match recover::open(&disk, choices.policy)? {
                Opened::Writable(volume) => {
                    check_root(&volume)?;
                    return Ok(Object::Tree(Arc::new(Tree::new(*volume, choices.whole_size))));
                }
                Opened::ReadOnly(why) => tracing::warn!("ext2: {}: {why}", disk.name()),
            }
        }
        let (volume, status) = open(disk, &choices)?;
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
        for word in ["acl", "user_xattr", "delalloc", "nodelalloc", "rw+"] {
            options.take_flag(word)?;
        }
        // 0 is the default, as with the kernel.
        let seconds =
            options.take_parsed::<u32>("commit", "a number of seconds")?.filter(|seconds| *seconds > 0);
        let default = Policy::default();
        let errors = take_word(options, "errors", &["continue", "remount-ro"])?;
        let policy = Policy {
            period: seconds.map_or(default.period, |seconds| Duration::from_secs(seconds.into())),
            barrier: !options.take_flag("nobarrier")? | options.take_flag("barrier")?,
            discard: options.take_flag("discard")? & !options.take_flag("nodiscard")?,
            go_on: errors.as_deref() == Some("continue"),
        };
        take_word(options, "data", &["ordered", "writeback"])?;
        let superblock = options.take_parsed::<u64>("sb", "a place in units of 1024 bytes")?.unwrap_or(1);
        Ok(Self {
            policy,
            skip_journal: noload || norecovery,
            whole_size: minixdf && !bsddf,
            superblock: superblock.checked_mul(1024).filter(|offset| *offset > 0).ok_or_else(|| {
                MountError::usage(format!("option sb={superblock}: there can be no superblock"))
            })?,
        })
    }
}

fn take_word(options: &mut Options, key: &str, words: &[&str]) -> Result<Option<String>, MountError> {
    match options.take_value(key)? {
        Some(word) if !words.contains(&word.as_str()) => {
            Err(MountError::usage(format!("option {key}={word}: expected one of {}", words.join(", "))))
        }
        word => Ok(word),
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
