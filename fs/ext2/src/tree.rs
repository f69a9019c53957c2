//! The tree: the contract's calls, each as a short walk over the structures.

use std::ffi::{OsStr, OsString};
use std::ops::ControlFlow;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::sync::Arc;

use veduta_api::{
    Attr, Caching, DirEntry, DirSink, Directory, Entry, Errno, Facts, File, Filesystem, Ino, Ioctl, Kind,
    NewNode, OpenFlags, Perm, RenameFlags, SetAttr, StatFs, XattrMode,
};

use crate::bytes::{le64, slice};
use crate::controls;
use crate::dir::{self, Dir};
use crate::error::{Error, Result};
use crate::features::INCOMPAT_CASEFOLD;
use crate::file::{Content, OpenFile};
use crate::fold::Wanted;
use crate::group::overhead_clusters;
use crate::inode::{FLAG_ENCRYPTED, Inode};
use crate::listing::Listing;
use crate::names::{self, Place};
use crate::settings;
use crate::shape;
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
        let volume = Arc::new(volume);
        if let Some(transactions) = &volume.transactions {
            // Set once, here.
            let _ = transactions.volume.set(Arc::downgrade(&volume));
        }
        Self { volume, whole_size }
    }

    fn writes(&self) -> bool {
        self.volume.transactions.is_some()
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
        if inode.links() == 0 && self.writes() {
            let what = "it is not in use, but an entry leads to it";
            return Err(Error::corrupt(what).in_inode(ino));
        }
        self.refer(ino)
    }

    /// What is handed out of a node, with a reference.
    fn refer(&self, ino: u32) -> Result<Entry> {
        let (inode, attr) = self.volume.look(ino)?;
        if self.writes() {
            self.volume.nodes.refer(ino);
        }
        Ok(Entry { ino: node(ino), generation: inode.generation.into(), attr })
    }

    fn find(&self, parent: Ino, name: &OsStr) -> Result<Entry> {
        let _names = self.volume.names.read();
        let found = self.dir(parent)?.find(&self.volume, name.as_bytes())?.ok_or(Errno::ENOENT)?;
        self.found(parent, found)
    }

    /// A node that was listed: where it was found then, if it is still there.
    fn find_listed(&self, parent: Ino, listed: &DirEntry<'_>) -> Result<Entry> {
        if !self.writes() {
            return match listed.ino {
                Some(ino) => self.found(parent, number(ino)?),
                None => self.find(parent, listed.name),
            };
        }
        let _names = self.volume.names.read();
        let dir = self.dir(parent)?;
        let block = (listed.next.saturating_sub(1)) >> self.volume.sb.block_bits;
        let name = listed.name.as_bytes();
        let near = match block < dir.blocks(&self.volume) && !dir.is_inline() {
            true => dir.find_in(&self.volume, block, &Wanted::new(name, false))?,
            false => None,
        };
        let found = match near {
            Some(found) => Some(found),
            None => dir.find(&self.volume, name)?,
        };
        self.found(parent, found.ok_or(Errno::ENOENT)?)
    }

    /// What takes another's name is often its new content: then it must not come to the disk after the name.
    fn settle_moved(&self, dir: u32, name: &OsStr) -> Result<()> {
        if !self.volume.holding.is_empty() {
            let found = {
                let _names = self.volume.names.read();
                self.dir(node(dir))?.find(&self.volume, name.as_bytes())?
            };
            if let Some(moved) = found.and_then(|ino| self.volume.holding.find(ino)) {
                let _content = moved.lock.write();
                self.volume.settle(&moved, false)?;
            }
        }
        Ok(())
    }

    fn make(
        &self,
        parent: Ino,
        place: Place<'_>,
        new: &NewNode,
        target: Option<&OsStr>,
    ) -> veduta_api::Result<Entry> {
        let made = number(parent)
            .and_then(|parent| names::make(&self.volume, parent, place, new, target.map(OsStr::as_bytes)));
        made.and_then(|ino| self.refer(ino)).map_err(Error::into_errno)
    }

    fn changed<T>(&self, done: Result<T>) -> veduta_api::Result<T> {
        done.map_err(Error::into_errno)
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
        let (free_clusters, free_inodes) = match &self.volume.transactions {
            Some(transactions) => {
                let meta = transactions.meta.lock();
                (meta.free_clusters.saturating_sub(meta.promised), meta.free_inodes)
            }
            None => self.volume.free_counts(),
        };
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
            caching: if self.writes() { Caching::Exclusive } else { Caching::Immutable },
            case_insensitive: self.volume.sb.features.has_incompat(INCOMPAT_CASEFOLD),
            acl: true,
            silent_close: true,
            time_granularity: if self.volume.sb.inode_size > SMALL_INODE { 1 } else { 1_000_000_000 },
            ..Facts::default()
        }
    }

    fn lookup(&self, parent: Ino, name: &OsStr) -> veduta_api::Result<Entry> {
        self.find(parent, name).map_err(Error::into_errno)
    }

    fn entry(&self, parent: Ino, listed: &DirEntry<'_>) -> veduta_api::Result<Entry> {
        self.find_listed(parent, listed).map_err(Error::into_errno)
    }

    fn getattr(&self, ino: Ino) -> veduta_api::Result<Attr> {
        number(ino).and_then(|ino| self.volume.look(ino)).map(|(_, attr)| attr).map_err(Error::into_errno)
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
        let _names = self.volume.names.read();
        self.dir(dir).and_then(|dir| dir.list(&self.volume, position, &mut show)).map_err(Error::into_errno)
    }

    fn opendir(&self, dir: Ino) -> veduta_api::Result<Option<Arc<dyn Directory>>> {
        if !self.writes() {
            return Ok(None);
        }
        let dir = number(dir).map_err(Error::into_errno)?;
        Ok(Some(Arc::new(Listing::new(Arc::clone(&self.volume), dir))))
    }

    fn forget(&self, ino: Ino, count: u64) {
        let Ok(ino) = number(ino) else { return };
        if self.writes() && self.volume.nodes.forget(ino, count) {
            if let Err(error) = shape::delete(&self.volume, ino) {
                let _ = error.in_inode(ino).into_errno();
            }
        }
    }

    fn sync(&self) -> veduta_api::Result<()> {
        self.volume.settle_all();
        let failed = self.volume.take_failure();
        self.changed(self.volume.commit().and(failed))
    }

    fn unmount(&self) -> veduta_api::Result<()> {
        let Some(transactions) = &self.volume.transactions else { return Ok(()) };
        self.volume.settle_all();
        let failed = self.volume.take_failure();
        let orphans = transactions.meta.lock().orphans.clone();
        for ino in orphans {
            // What cannot be given back stays on the list, for e2fsck.
            if let Err(error) = crate::orphans::settle(&self.volume, ino) {
                let _ = error.in_inode(ino).into_errno();
            }
        }
        self.changed(transactions.finish(&self.volume).and(failed))
    }

    fn setattr(&self, ino: Ino, changes: &SetAttr) -> veduta_api::Result<Attr> {
        let set = number(ino).and_then(|ino| settings::set(&self.volume, ino, changes));
        self.changed(set)?;
        self.getattr(ino)
    }

    fn create(
        &self,
        parent: Ino,
        name: &OsStr,
        new: &NewNode,
        flags: OpenFlags,
    ) -> veduta_api::Result<(Entry, Arc<dyn File>)> {
        let entry = self.make(parent, Place::Named(name.as_bytes()), new, None)?;
        Ok((entry, self.open(entry.ino, flags)?))
    }

    fn tmpfile(
        &self,
        parent: Ino,
        new: &NewNode,
        flags: OpenFlags,
    ) -> veduta_api::Result<(Entry, Arc<dyn File>)> {
        let entry = self.make(parent, Place::Nameless, new, None)?;
        let file = self.open(entry.ino, flags)?;
        self.volume.nodes.lose_name(number(entry.ino).map_err(Error::into_errno)?);
        Ok((entry, file))
    }

    fn mknod(&self, parent: Ino, name: &OsStr, new: &NewNode) -> veduta_api::Result<Entry> {
        self.make(parent, Place::Named(name.as_bytes()), new, None)
    }

    fn mkdir(&self, parent: Ino, name: &OsStr, new: &NewNode) -> veduta_api::Result<Entry> {
        let new = NewNode { kind: Kind::Directory, ..*new };
        self.make(parent, Place::Named(name.as_bytes()), &new, None)
    }

    fn symlink(&self, parent: Ino, name: &OsStr, target: &OsStr, new: &NewNode) -> veduta_api::Result<Entry> {
        let new = NewNode { kind: Kind::Symlink, perm: Perm::from_mode(0o777), ..*new };
        self.make(parent, Place::Named(name.as_bytes()), &new, Some(target))
    }

    fn link(&self, ino: Ino, parent: Ino, name: &OsStr) -> veduta_api::Result<Entry> {
        let linked = (|| {
            let ino = number(ino)?;
            names::link(&self.volume, ino, number(parent)?, name.as_bytes())?;
            self.refer(ino)
        })();
        self.changed(linked)
    }

    fn unlink(&self, parent: Ino, name: &OsStr) -> veduta_api::Result<()> {
        self.changed(number(parent).and_then(|dir| names::remove(&self.volume, dir, name.as_bytes(), false)))
    }

    fn rmdir(&self, parent: Ino, name: &OsStr) -> veduta_api::Result<()> {
        self.changed(number(parent).and_then(|dir| names::remove(&self.volume, dir, name.as_bytes(), true)))
    }

    fn rename(
        &self,
        parent: Ino,
        name: &OsStr,
        new_parent: Ino,
        new_name: &OsStr,
        flags: RenameFlags,
    ) -> veduta_api::Result<()> {
        let renamed = (|| {
            let (from, to) = (number(parent)?, number(new_parent)?);
            self.settle_moved(from, name)?;
            names::rename(&self.volume, (from, name.as_bytes()), (to, new_name.as_bytes()), flags)
        })();
        self.changed(renamed)
    }

    fn setxattr(&self, ino: Ino, name: &OsStr, value: &[u8], mode: XattrMode) -> veduta_api::Result<()> {
        let set = number(ino)
            .and_then(|ino| settings::set_attribute(&self.volume, ino, name.as_bytes(), Some(value), mode));
        self.changed(set)
    }

    fn removexattr(&self, ino: Ino, name: &OsStr) -> veduta_api::Result<()> {
        let mode = XattrMode::Replace;
        let set = number(ino)
            .and_then(|ino| settings::set_attribute(&self.volume, ino, name.as_bytes(), None, mode));
        self.changed(set)
    }

    fn parent(&self, dir: Ino) -> veduta_api::Result<Ino> {
        let parent = self.dir(dir).and_then(|dir| dir::checked_parent(&self.volume, &dir));
        parent.map(node).map_err(Error::into_errno)
    }

    fn open(&self, ino: Ino, flags: OpenFlags) -> veduta_api::Result<Arc<dyn File>> {
        let inode = self.inode(ino).map_err(Error::into_errno)?;
        if inode.has(FLAG_ENCRYPTED) {
            return Err(Errno::ENOKEY);
        }
        let file =
            OpenFile::new(Arc::clone(&self.volume), inode.ino, flags.write).map_err(Error::into_errno)?;
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
        controls::answer(&self.volume, number(dir).map_err(Error::into_errno)?, ioctl)
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
pub(crate) fn node(ino: u32) -> Ino {
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
