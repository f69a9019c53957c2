//! The volume as a tree: what hosts call.
//!
//! # Node numbers
//!
//! The root is 1; a directory is the byte where it starts, a file that of its first record; neither can be 1, since
//! both lie behind sector 16. The virtual directory of boot images and its files have the numbers from 2^62 on; there is
//! none if the root has an entry of its name.
//!
//! # A tree it is
//!
//! A hostile volume can let a directory lead to one of its ancestors, or many lead to one. So the tree remembers which
//! entry it first found each by; being reached by any other is damage. Hence every walk ends.
//!
//! Locks: `parents` and `cache` are never held together, nor across a read of the disk.

use std::collections::HashMap;
use std::ffi::{OsStr, OsString};
use std::ops::ControlFlow;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::sync::Arc;

use parking_lot::Mutex;
use veduta_api::{
    Attr, Caching, DirEntry, DirSink, Entry, Errno, Facts, File, Filesystem, Ino, Kind, OpenFlags, Perm,
    Result, Seek, StatFs,
};

use crate::cache::Cache;
use crate::directory::{Directory, Listed, Place};
use crate::eltorito::{self, BootImage};
use crate::error::{self, Error};
use crate::extents::Extents;
use crate::node::{Content, Node};
use crate::volume::{Scheme, Volume};
use crate::zisofs::Compressed;

/// The virtual directory; its files follow.
const BOOT: u64 = 1 << 62;
const BOOT_NAME: &str = "[BOOT]";
/// `ISOFS_SUPER_MAGIC` of `linux/magic.h`.
const MAGIC: u32 = 0x9660;

/// A mounted volume.
pub(crate) struct Tree {
    volume: Arc<Volume>,
    boot_images: Vec<BootImage>,
    cache: Mutex<Cache>,
    /// Directories that were listed, and the directory and the index in it where each was; both by the byte where
    /// they start. The root is in no entry.
    parents: Mutex<HashMap<u64, (u64, usize)>>,
}

impl Tree {
    pub(crate) fn new(volume: Volume) -> error::Result<Self> {
        let mut boot_images = match volume.descriptors.boot_catalog.filter(|_| volume.choices.el_torito) {
            Some(sector) => eltorito::catalog(&volume.image, sector, volume.shown().size())?,
            None => Vec::new(),
        };
        let is_taken = || Ok(Directory::read(&volume, volume.root)?.find(BOOT_NAME.as_bytes())?.is_some());
        if !boot_images.is_empty() && is_taken()? {
            tracing::warn!(
                "iso9660: {}: boot images are not shown: the root has a {BOOT_NAME}",
                volume.name()
            );
            boot_images.clear();
        }
        let parents = HashMap::from([(volume.root, (volume.root, usize::MAX))]);
        Ok(Self {
            volume: Arc::new(volume),
            boot_images,
            cache: Mutex::default(),
            parents: Mutex::new(parents),
        })
    }

    /// Passes the error on as an errno, and logs it: the one place where that is done.
    fn told<T>(&self, result: error::Result<T>) -> Result<T> {
        result.map_err(|error| error.report(self.volume.name()))
    }

    /// The byte where a directory starts.
    fn start(&self, dir: Ino) -> u64 {
        if dir == Ino::ROOT { self.volume.root } else { dir.0 }
    }

    fn ino(&self, place: Place) -> Ino {
        match place {
            Place::Directory(start) if start == self.volume.root => Ino::ROOT,
            Place::Directory(at) | Place::File(at) => Ino(at),
        }
    }

    fn directory(&self, start: u64) -> error::Result<Arc<Directory>> {
        if let Some(directory) = self.cache.lock().find(start) {
            return Ok(directory);
        }
        let directory = Arc::new(Directory::read(&self.volume, start)?);
        {
            let mut parents = self.parents.lock();
            for (child, index) in directory.directories() {
                parents.entry(child).or_insert((start, index));
            }
        }
        self.cache.lock().insert(start, Arc::clone(&directory));
        Ok(directory)
    }

    /// The node that an entry of the directory at byte `start` leads to.
    fn child(&self, start: u64, directory: &Directory, listed: &Listed<'_>) -> error::Result<Entry> {
        let node = match listed.place {
            Place::File(at) => directory.file(&self.volume, at)?,
            Place::Directory(child) => {
                let parent = self.parents.lock().get(&child).copied();
                if parent != Some((start, listed.index)) {
                    return Err(Error::corrupt(
                        child,
                        "a directory has more than one entry, or is in itself",
                    ));
                }
                self.volume.directory_node(child)?
            }
        };
        Ok(Entry { ino: self.ino(listed.place), generation: 0, attr: node.attr })
    }

    fn node(&self, ino: Ino) -> error::Result<Node> {
        let start = self.start(ino);
        if ino == Ino::ROOT || self.parents.lock().contains_key(&start) {
            self.volume.directory_node(start)
        } else {
            self.volume.file_at(start)
        }
    }

    /// Whether the virtual directory is listed in `dir`.
    fn has_boot_directory(&self, dir: Ino) -> bool {
        dir == Ino::ROOT && !self.boot_images.is_empty()
    }

    fn boot_attr(&self, ino: Ino) -> Result<Attr> {
        let volume = &self.volume;
        let root = self.told(volume.directory_node(volume.root))?.attr;
        let mut attr = match self.boot_image(ino) {
            None => Attr::new(ino.0, Kind::Directory, Perm::from_mode(0o555)),
            Some(image) => {
                let mut attr = Attr::new(ino.0, Kind::File, Perm::from_mode(0o444));
                (attr.size, attr.blocks) = (image.size, image.size.div_ceil(512));
                attr
            }
        };
        (attr.uid, attr.gid, attr.blksize) = (root.uid, root.gid, root.blksize);
        (attr.atime, attr.mtime, attr.ctime) = (root.atime, root.mtime, root.ctime);
        Ok(attr)
    }

    fn boot_image(&self, ino: Ino) -> Option<&BootImage> {
        let index = ino.0.checked_sub(BOOT + 1)?;
        self.boot_images.get(usize::try_from(index).ok()?)
    }

    fn boot_entry(&self, ino: Ino) -> Result<Entry> {
        Ok(Entry { ino, generation: 0, attr: self.boot_attr(ino)? })
    }

    fn list_boot_images(&self, position: u64, sink: &mut DirSink<'_>) {
        for (image, index) in self.boot_images.iter().zip(0..).skip(position as usize) {
            let ino = BOOT + 1 + index;
            let entry = DirEntry {
                name: OsStr::new(&image.name),
                ino: Some(Ino(ino)),
                st_ino: ino,
                kind: Some(Kind::File),
                next: index + 1,
            };
            if sink(entry) == ControlFlow::Break(()) {
                break;
            }
        }
    }
}

/// Position 0 is before everything. In the root, the virtual directory comes first if there is one; so entry `index` of
/// a directory is followed by position `index + 2`.
impl Filesystem for Tree {
    fn facts(&self) -> Facts {
        Facts {
            caching: Caching::Immutable,
            // 110 units of UTF-16, of three bytes each, in a record of 255 bytes.
            name_max: if self.volume.scheme == Scheme::Joliet { 330 } else { 255 },
            case_insensitive: self.volume.choices.any_case,
            time_granularity: 1_000_000_000,
            ..Facts::default()
        }
    }

    fn lookup(&self, parent: Ino, name: &OsStr) -> Result<Entry> {
        if parent == Ino(BOOT) {
            let index = self.boot_images.iter().position(|image| OsStr::new(&image.name) == name);
            return self.boot_entry(Ino(BOOT + 1 + index.ok_or(Errno::ENOENT)? as u64));
        }
        if self.has_boot_directory(parent) && name == BOOT_NAME {
            return self.boot_entry(Ino(BOOT));
        }
        let start = self.start(parent);
        let directory = self.told(self.directory(start))?;
        let listed = self.told(directory.find(name.as_bytes()))?.ok_or(Errno::ENOENT)?;
        self.told(self.child(start, &directory, &listed))
    }

    fn entry(&self, parent: Ino, listed: &DirEntry<'_>) -> Result<Entry> {
        if listed.ino.is_some_and(|ino| ino.0 >= BOOT) {
            return self.lookup(parent, listed.name);
        }
        let start = self.start(parent);
        let directory = self.told(self.directory(start))?;
        let index = listed.next.checked_sub(2).and_then(|index| usize::try_from(index).ok());
        match index.and_then(|index| directory.get(index)) {
            Some(found) if listed.name.as_bytes() == found.name => {
                self.told(self.child(start, &directory, &found))
            }
            _ => self.lookup(parent, listed.name),
        }
    }

    fn getattr(&self, ino: Ino) -> Result<Attr> {
        if ino.0 >= BOOT {
            return self.boot_attr(ino);
        }
        Ok(self.told(self.node(ino))?.attr)
    }

    fn readdir(&self, dir: Ino, position: u64, sink: &mut DirSink<'_>) -> Result<()> {
        if dir == Ino(BOOT) {
            self.list_boot_images(position, sink);
            return Ok(());
        }
        if position == 0 && self.has_boot_directory(dir) {
            let (ino, kind) = (Some(Ino(BOOT)), Some(Kind::Directory));
            let entry = DirEntry { name: OsStr::new(BOOT_NAME), ino, st_ino: BOOT, kind, next: 1 };
            if sink(entry) == ControlFlow::Break(()) {
                return Ok(());
            }
        }
        let directory = self.told(self.directory(self.start(dir)))?;
        let first = position.saturating_sub(1) as usize;
        let mut is_empty = true;
        for listed in directory.list(first) {
            is_empty = false;
            let entry = DirEntry {
                name: OsStr::from_bytes(listed.name),
                ino: Some(self.ino(listed.place)),
                st_ino: listed.st_ino,
                kind: listed.kind,
                next: listed.index as u64 + 2,
            };
            if sink(entry) == ControlFlow::Break(()) {
                return Ok(());
            }
        }
        // Entries that were listed now must not be lost to the error: it waits for the next call.
        match directory.damage() {
            Some(damage) if is_empty => self.told(Err(damage.clone())),
            _ => Ok(()),
        }
    }

    fn open(&self, ino: Ino, _flags: OpenFlags) -> Result<Arc<dyn File>> {
        let volume = Arc::clone(&self.volume);
        if let Some(image) = self.boot_image(ino) {
            let mut extents = Extents::default();
            extents.push(image.at, image.size);
            return Ok(Arc::new(Stored { volume, extents }));
        }
        let refuse = |what: &str| Err(Error::Unsupported(format!("{what} (inode {})", ino.0 / 32)));
        match self.told(self.node(ino))?.content {
            Content::Stored(extents) => Ok(Arc::new(Stored { volume, extents })),
            Content::Compressed(extents, compression) => {
                let file = self.told(Compressed::open(&volume.image, extents, compression, ino.0))?;
                Ok(Arc::new(Unpacked { volume, file }))
            }
            Content::Interleaved => self.told(refuse("an interleaved file cannot be read")),
            Content::Sparse => self.told(refuse("a file in the sparse format of Rock Ridge cannot be read")),
            Content::Directory => Err(Errno::EISDIR),
            Content::Link(_) | Content::Special => Err(Errno::EINVAL),
        }
    }

    fn parent(&self, dir: Ino) -> Result<Ino> {
        if dir == Ino(BOOT) {
            return Ok(Ino::ROOT);
        }
        let parent = self.parents.lock().get(&self.start(dir)).copied();
        parent.map(|(start, _)| self.ino(Place::Directory(start))).ok_or(Errno::ESTALE)
    }

    fn readlink(&self, ino: Ino) -> Result<OsString> {
        match self.told(self.node(ino))?.content {
            Content::Link(target) => Ok(OsString::from_vec(target)),
            _ => Err(Errno::EINVAL),
        }
    }

    fn statfs(&self) -> Result<StatFs> {
        let shown = self.volume.shown();
        Ok(StatFs {
            block_size: shown.block_size,
            blocks: shown.blocks.into(),
            magic: MAGIC,
            id: identity(&self.volume),
            ..StatFs::default()
        })
    }

    fn sync(&self) -> Result<()> {
        Ok(())
    }
}

/// A number that is the same whenever the volume is mounted: a hash (FNV-1a) of its name and times.
fn identity(volume: &Volume) -> u64 {
    let primary = &volume.descriptors.primary;
    let text = format!("{}{}{:?}{:?}", primary.name, primary.blocks, primary.created, primary.modified);
    text.bytes().fold(0xcbf2_9ce4_8422_2325, |hash: u64, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3)
    })
}

/// No file of a volume has holes.
fn seek(what: Seek, offset: u64, size: u64) -> Result<u64> {
    match what {
        _ if offset >= size => Err(Errno::ENXIO),
        Seek::Data => Ok(offset),
        Seek::Hole => Ok(size),
    }
}

/// An open file that lies in the volume as it is.
struct Stored {
    volume: Arc<Volume>,
    extents: Extents,
}

impl File for Stored {
    fn read_at(&self, buf: &mut [u8], offset: u64) -> Result<usize> {
        let read = self.extents.read(&self.volume.image, buf, offset);
        read.map_err(|error| error.report(self.volume.name()))
    }

    fn seek(&self, what: Seek, offset: u64) -> Result<u64> {
        seek(what, offset, self.extents.size())
    }

    fn sync(&self, _data_only: bool) -> Result<()> {
        Ok(())
    }
}

/// An open file of zisofs.
struct Unpacked {
    volume: Arc<Volume>,
    file: Compressed,
}

impl File for Unpacked {
    fn read_at(&self, buf: &mut [u8], offset: u64) -> Result<usize> {
        let read = self.file.read(&self.volume.image, buf, offset);
        read.map_err(|error| error.report(self.volume.name()))
    }

    fn seek(&self, what: Seek, offset: u64) -> Result<u64> {
        seek(what, offset, self.file.size())
    }

    fn sync(&self, _data_only: bool) -> Result<()> {
        Ok(())
    }
}
