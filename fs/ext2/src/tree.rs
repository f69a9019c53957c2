//! The tree: the contract's calls, each as a short walk over the structures.

use std::ffi::{OsStr, OsString};
use std::ops::ControlFlow;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::sync::Arc;

use veduta_api::{
    Attr, Caching, DirEntry, DirSink, Entry, Errno, Facts, File, Filesystem, Ino, Ioctl, Kind, OpenFlags,
    StatFs,
};

use crate::bytes::{le64, slice};
use crate::dir::{self, Dir};
use crate::error::{Error, Result};
use crate::features::INCOMPAT_CASEFOLD;
use crate::file::{self, Content, OpenFile};
use crate::group::overhead_clusters;
use crate::inode::{FLAG_ENCRYPTED, Inode};
use crate::superblock::ROOT_INO;
use crate::volume::Volume;
use crate::xattr;

/// `EXT4_SUPER_MAGIC` of linux/magic.h
const FS_MAGIC: u32 = 0xef53;
/// Inodes of this size have room for nanoseconds.
const SMALL_INODE: u32 = 128;
/// Bytes; the longest target of a symbolic link.
const TARGET_MAX: u64 = 4095;

/// A mounted volume.
#[derive(Debug)]
pub(crate) struct Tree {
    volume: Arc<Volume>,
    /// Whether `statfs` leaves the overhead in (`minixdf`).
    whole_size: bool,
}

impl Tree {
    pub(crate) fn new(volume: Volume, whole_size: bool) -> Self {
        Self { volume: Arc::new(volume), whole_size }
    }

    fn inode(&self, ino: Ino) -> Result<Inode> {
        self.volume.inode(number(ino)?)
    }

    fn dir(&self, ino: Ino) -> Result<Dir> {
        let inode = self.inode(ino)?;
        match inode.kind {
            Kind::Directory => Dir::open(&self.volume, inode),
            _ => Err(Errno::ENOTDIR.into()),
        }
    }

    fn found(&self, parent: Ino, ino: u32) -> Result<Entry> {
        if number(parent)? == ino {
            return Err(Error::corrupt("the directory holds itself").in_inode(ino));
        }
        let inode = self.volume.inode(ino)?;
        Ok(Entry { ino: node(ino), generation: inode.generation.into(), attr: self.volume.attr(&inode) })
    }

    fn target(&self, ino: Ino) -> Result<Vec<u8>> {
        let inode = self.inode(ino)?;
        if inode.kind != Kind::Symlink {
            return Err(Errno::EINVAL.into());
        }
        if inode.has(FLAG_ENCRYPTED) {
            return Err(Errno::ENOKEY.into());
        }
        let len = inode.size.min(TARGET_MAX) as usize;
        let mut target = vec![0; len];
        match self.volume.is_fast_symlink(&inode) {
            true => target = slice(&inode.block, 0, len).to_vec(),
            false => Content::new(&self.volume, &inode)?.read(&self.volume, &mut target, 0)?,
        }
        let end = target.iter().position(|byte| *byte == 0).unwrap_or(target.len());
        target.truncate(end);
        match target.is_empty() {
            true => Err(Error::corrupt("the symbolic link has no target").in_inode(inode.ino)),
            false => Ok(target),
        }
    }

    fn usage(&self) -> StatFs {
        let sb = &self.volume.sb;
        let (free_clusters, free_inodes) = self.volume.free_counts();
        let blocks_free = (free_clusters << sb.cluster_bits).min(sb.blocks_count);
        let reserved = sb.reserved_blocks.saturating_add(kernel_reserve(&self.volume));
        let overhead = if self.whole_size { 0 } else { self.overhead() };
        StatFs {
            block_size: 1 << sb.block_bits,
            blocks: sb.blocks_count.saturating_sub(overhead),
            blocks_free,
            blocks_available: blocks_free.saturating_sub(reserved),
            files: sb.inodes_count.into(),
            files_free: free_inodes,
            magic: FS_MAGIC,
            id: le64(&sb.uuid, 0) ^ le64(&sb.uuid, 8),
        }
    }

    /// Blocks that can never hold content: structures and the journal.
    fn overhead(&self) -> u64 {
        let sb = &self.volume.sb;
        let clusters = overhead_clusters(sb);
        let has_journal = sb.features.has_compat(crate::features::COMPAT_HAS_JOURNAL) && sb.journal_ino != 0;
        // The field that serves with bigalloc counts the journal already.
        let journal = match has_journal && sb.cluster_bits == 0 {
            true => self.volume.any_inode(sb.journal_ino).map_or(0, |inode| inode.size >> sb.block_bits),
            false => 0,
        };
        (clusters << sb.cluster_bits).saturating_add(journal)
    }
}

impl Filesystem for Tree {
    fn facts(&self) -> Facts {
        Facts {
            caching: Caching::Immutable,
            case_insensitive: self.volume.sb.features.has_incompat(INCOMPAT_CASEFOLD),
            acl: true,
            time_granularity: if self.volume.sb.inode_size > SMALL_INODE { 1 } else { 1_000_000_000 },
            ..Facts::default()
        }
    }

    fn lookup(&self, parent: Ino, name: &OsStr) -> veduta_api::Result<Entry> {
        let ino = self.dir(parent).and_then(|dir| dir.find(&self.volume, name.as_bytes()));
        match ino {
            Ok(Some(ino)) => self.found(parent, ino).map_err(Error::into_errno),
            Ok(None) => Err(Errno::ENOENT),
            Err(error) => Err(error.into_errno()),
        }
    }

    fn entry(&self, parent: Ino, listed: &DirEntry<'_>) -> veduta_api::Result<Entry> {
        match listed.ino {
            Some(ino) => number(ino).and_then(|ino| self.found(parent, ino)).map_err(Error::into_errno),
            None => self.lookup(parent, listed.name),
        }
    }

    fn getattr(&self, ino: Ino) -> veduta_api::Result<Attr> {
        self.inode(ino).map(|inode| self.volume.attr(&inode)).map_err(Error::into_errno)
    }

    fn readdir(&self, dir: Ino, position: u64, sink: &mut DirSink<'_>) -> veduta_api::Result<()> {
        let mut show = |entry: dir::Entry<'_>| -> ControlFlow<()> {
            sink(DirEntry {
                name: OsStr::from_bytes(entry.name),
                ino: self.volume.sb.is_ordinary(entry.ino).then(|| node(entry.ino)),
                st_ino: entry.ino.into(),
                kind: entry.kind,
                next: entry.next,
            })
        };
        self.dir(dir).and_then(|dir| dir.list(&self.volume, position, &mut show)).map_err(Error::into_errno)
    }

    fn parent(&self, dir: Ino) -> veduta_api::Result<Ino> {
        let parent = self.dir(dir).and_then(|dir| dir::checked_parent(&self.volume, &dir));
        parent.map(node).map_err(Error::into_errno)
    }

    fn open(&self, ino: Ino, _flags: OpenFlags) -> veduta_api::Result<Arc<dyn File>> {
        let inode = self.inode(ino).map_err(Error::into_errno)?;
        if inode.has(FLAG_ENCRYPTED) {
            return Err(Errno::ENOKEY);
        }
        let file = OpenFile::new(Arc::clone(&self.volume), inode).map_err(Error::into_errno)?;
        Ok(Arc::new(file))
    }

    fn readlink(&self, ino: Ino) -> veduta_api::Result<OsString> {
        self.target(ino).map(OsString::from_vec).map_err(Error::into_errno)
    }

    fn statfs(&self) -> veduta_api::Result<StatFs> {
        Ok(self.usage())
    }

    fn getxattr(&self, ino: Ino, name: &OsStr) -> veduta_api::Result<Vec<u8>> {
        self.inode(ino)
            .and_then(|inode| xattr::get(&self.volume, &inode, name.as_bytes()))
            .map_err(Error::into_errno)
    }

    fn listxattr(&self, ino: Ino) -> veduta_api::Result<Vec<OsString>> {
        let names = self.inode(ino).and_then(|inode| xattr::list(&self.volume, &inode));
        let names = names.map_err(Error::into_errno)?;
        Ok(names.into_iter().map(OsString::from_vec).collect())
    }

    fn ioctl(&self, dir: Ino, ioctl: &mut Ioctl<'_>) -> veduta_api::Result<i32> {
        file::answer(&self.inode(dir).map_err(Error::into_errno)?, ioctl)
    }
}

/// What the kernel keeps back beside the reserved blocks, when it mounts a volume with extents.
fn kernel_reserve(volume: &Volume) -> u64 {
    let sb = &volume.sb;
    match sb.features.has_incompat(crate::features::INCOMPAT_EXTENTS) {
        true => ((sb.blocks_count >> sb.cluster_bits) / 50).min(4096) << sb.cluster_bits,
        false => 0,
    }
}

/// ext2 numbers its root 2 and reserves 1; we swap the two so that ROOT is 1 for every tree.
fn node(ino: u32) -> Ino {
    match ino {
        1 => Ino(2),
        ROOT_INO => Ino::ROOT,
        ino => Ino(ino.into()),
    }
}

fn number(ino: Ino) -> Result<u32> {
    match ino {
        Ino::ROOT => Ok(ROOT_INO),
        Ino(2) => Ok(1),
        Ino(ino) => u32::try_from(ino).map_err(|_| Errno::ESTALE.into()),
    }
}
