//! The volume as a tree: what a host asks for.

use std::ffi::{OsStr, OsString};
use std::ops::ControlFlow;
use std::os::unix::ffi::OsStrExt;
use std::sync::Arc;

use veduta_api::{
    Attr, Caching, DirEntry, DirSink, Entry, Errno, Facts, File, FileFlags, Filesystem, Ino, Ioctl, Kind,
    NewNode, OpenFlags, Perm, RenameFlags, Result, SetAttr, SetTime, StatFs, Timestamp, XattrMode,
};

use crate::controls;
use crate::dir::Dir;
use crate::file::Open;
use crate::nodes::Node;
use crate::slots::{self, ARCHIVE, DIRECTORY, READ_ONLY};
use crate::volume::{Dirs, Volume, is_program};

/// A mounted volume, as hosts see it.
pub(crate) struct Tree(pub(crate) Arc<Volume>);

/// An entry that was looked for and found.
struct Place {
    main: u32,
    offsets: Vec<u64>,
    name: Box<[u8]>,
    is_dir: bool,
}

impl Tree {
    fn find(&self, dir: &Dir, name: &OsStr) -> Result<Option<Place>> {
        let units = match self.0.policy.parse(name.as_bytes()) {
            Err(Errno::EINVAL | Errno::ENOENT) => return Ok(None),
            units => units?,
        };
        let Some(main) = dir.find(&units, &self.0.policy) else { return Ok(None) };
        let item = dir.items.get(&main).ok_or(Errno::EUCLEAN)?;
        if self.0.policy.strict && *item.name != *name.as_bytes() {
            return Ok(None);
        }
        Ok(Some(place_of(dir, main)?))
    }

    fn entry_of(&self, node: &Node) -> Entry {
        Entry { ino: Ino(node.ino), generation: 0, attr: self.0.attr(node, &node.inner.read()) }
    }

    fn drop_ref(&self, ino: u64, count: u64) {
        let gone = self.0.nodes.lock().forget(ino, count);
        gone.iter().for_each(|node| self.0.settle(node));
    }

    /// Makes a file or a directory. One reference is taken.
    fn make(&self, parent: Ino, name: &OsStr, is_dir: bool) -> Result<Arc<Node>> {
        let volume = &*self.0;
        let units = volume.policy.parse_new(name.as_bytes())?;
        let parent = volume.node(parent)?;
        let mut dirs = volume.dirs.lock();
        volume.begin()?;
        let dir = volume.dir(&mut dirs, &parent)?;
        if dir.find(&units, &volume.policy).is_some() {
            return Err(Errno::EEXIST);
        }
        let mut record = volume.new_record(if is_dir { DIRECTORY } else { ARCHIVE });
        let set_len = volume.build(dir, &units, &record, &[])?.len() as u32;
        let first = volume.make_room(dir, &parent, set_len)?;
        let mut runs = None;
        if is_dir {
            let taken = self.new_dir(&parent, &mut record)?;
            runs = Some(taken);
        }
        let set = volume.build(dir, &units, &record, &[])?;
        let offsets = volume.put_set(&mut volume.meta.lock(), dir, first, units, &set)?;
        volume.touch(&parent)?;
        let mut nodes = volume.nodes.lock();
        let number = nodes.number_new(volume.main_of(&offsets));
        let node = volume.make(number, record, offsets, runs, parent.ino, name.as_bytes());
        nodes.adopt(Arc::clone(&node), parent.ino, 1);
        Ok(node)
    }

    /// The first cluster of a new directory, written to the disk before anything leads to it.
    fn new_dir(&self, parent: &Node, record: &mut slots::Record) -> Result<crate::runs::Runs> {
        let volume = &*self.0;
        let size = volume.layout.cluster_size;
        let up = {
            let parent = parent.inner.read();
            // The root is called 0, also where it has a number.
            if parent.slots.is_empty() { 0 } else { parent.record.start }
        };
        let mut meta = volume.meta.lock();
        let taken = meta.allocate(1, None)?;
        let Some((cluster, _)) = taken.first().copied() else { return Err(Errno::ENOSPC) };
        record.start = cluster;
        let at = volume.layout.offset(cluster);
        if volume.layout.is_exfat() {
            (record.size, record.valid, record.contiguous) = (u64::from(size), u64::from(size), true);
            volume.disk.write_zeroes(at, u64::from(size))?;
        } else {
            meta.link(None, &taken)?;
            let mut cluster = vec![[0; 32]; size as usize / 32];
            cluster[..2].copy_from_slice(&slots::fat::dots(record, up, volume.zone(), volume.wide()));
            volume.disk.write_at(cluster.as_flattened(), at)?;
        }
        Ok(crate::runs::Runs::one(cluster, 1))
    }

    /// Removes an entry, and marks its node as one without a name. `EISDIR`, `ENOTDIR`, `ENOTEMPTY`.
    fn remove(&self, parent: Ino, name: &OsStr, is_dir: bool) -> Result<()> {
        let volume = &*self.0;
        let parent = volume.node(parent)?;
        let mut dirs = volume.dirs.lock();
        volume.begin()?;
        let place = self.find(volume.dir(&mut dirs, &parent)?, name)?.ok_or(Errno::ENOENT)?;
        match (place.is_dir, is_dir) {
            (true, false) => return Err(Errno::EISDIR),
            (false, true) => return Err(Errno::ENOTDIR),
            _ => {}
        }
        let node = volume.load(&parent, place.offsets.clone(), &place.name)?;
        let done = self.remove_node(&mut dirs, &parent, &node, &place);
        drop(dirs);
        self.drop_ref(node.ino, 1);
        done
    }

    fn remove_node(&self, dirs: &mut Dirs, parent: &Node, node: &Node, place: &Place) -> Result<()> {
        let volume = &*self.0;
        if node.is_dir {
            self.check_empty(dirs, node)?;
        }
        volume.clear_slots(&mut volume.meta.lock(), &place.offsets)?;
        volume.dir(dirs, parent)?.remove(place.main);
        self.lose_name(dirs, node);
        volume.nodes.lock().unlink(node.ino, volume.main_of(&place.offsets));
        volume.touch(parent)
    }

    fn check_empty(&self, dirs: &mut Dirs, node: &Node) -> Result<()> {
        let dir = self.0.dir(dirs, node)?;
        if dir.items.is_empty() && dir.damaged == 0 { Ok(()) } else { Err(Errno::ENOTEMPTY) }
    }

    /// The name of a node is gone. The clusters of a directory are free at once, those of a file when nobody uses it.
    fn lose_name(&self, dirs: &mut Dirs, node: &Node) {
        let mut inner = node.inner.write();
        inner.unlinked = true;
        inner.slots.clear();
        if node.is_dir {
            dirs.forget(inner.record.start);
            let freed: Vec<_> = inner.runs.take().map(|runs| runs.iter().collect()).unwrap_or_default();
            inner.runs = Some(crate::runs::Runs::default());
            let mut meta = self.0.meta.lock();
            meta.forget_sectors(&freed);
            meta.release(&freed);
        }
    }

    /// `EINVAL` if `dir` is `node` or lies below it. There are no more steps than live nodes.
    fn check_not_below(&self, node: &Node, dir: &Arc<Node>) -> Result<()> {
        let mut at = Arc::clone(dir);
        loop {
            if at.ino == node.ino {
                return Err(Errno::EINVAL);
            }
            if at.ino == Ino::ROOT.0 {
                return Ok(());
            }
            let up = at.inner.read().parent;
            at = self.0.node(Ino(up))?;
        }
    }

    /// Renames onto a name that exists: its set becomes that of the moved node, and keeps its spelling.
    fn replace(
        &self,
        dirs: &mut Dirs,
        from: (&Node, &Place),
        to: (&Node, &Place),
        node: &Node,
        old: &Node,
    ) -> Result<()> {
        let volume = &*self.0;
        match (node.is_dir, old.is_dir) {
            (true, false) => return Err(Errno::ENOTDIR),
            (false, true) => return Err(Errno::EISDIR),
            (true, true) => self.check_empty(dirs, old)?,
            (false, false) => {}
        }
        let (source, target) = (volume.main_of(&from.1.offsets), volume.main_of(&to.1.offsets));
        {
            let mut inner = node.inner.write();
            let mut meta = volume.meta.lock();
            meta.order(source, target)?;
            volume.clear_slots(&mut meta, &from.1.offsets)?;
            inner.slots.clone_from(&to.1.offsets);
            inner.parent = to.0.ino;
            inner.program = is_program(&to.1.name);
            volume.store(&mut meta, &inner)?;
        }
        volume.dir(dirs, from.0)?.remove(from.1.main);
        self.lose_name(dirs, old);
        let mut nodes = volume.nodes.lock();
        nodes.unlink(old.ino, target);
        nodes.rename(node.ino, source, target, to.0.ino);
        Ok(())
    }

    /// Renames to a name that does not exist, or to another spelling of the same.
    fn respell(
        &self,
        dirs: &mut Dirs,
        from: (&Node, &Place),
        to: &Node,
        name: &OsStr,
        node: &Node,
    ) -> Result<()> {
        let volume = &*self.0;
        let units = volume.policy.parse_new(name.as_bytes())?;
        let more = if volume.layout.is_exfat() {
            slots::exfat::others(&volume.meta.lock().slots(&from.1.offsets)?).to_vec()
        } else {
            Vec::new()
        };
        let record = node.inner.read().record.clone();
        let same = from.0.ino == to.ino;
        let old = &from.1.offsets;
        // The old name must not stand in the way of the new short one.
        let removed = if same { volume.dir(dirs, from.0)?.remove(from.1.main) } else { None };
        let dir = volume.dir(dirs, to)?;
        let made = (|| {
            let set = volume.build(dir, &units, &record, &more)?;
            let count = set.len() as u32;
            let first = match &removed {
                // In place, around the same main slot.
                Some(item) if count <= item.count && volume.layout.is_exfat() => item.first,
                Some(item) if count <= item.count => item.first + item.count - count,
                Some(item) => {
                    dir.occupy(item.first, item.count);
                    let first = volume.make_room(dir, to, count);
                    dir.add_gap(item.first, item.count);
                    first?
                }
                None => volume.make_room(dir, to, count)?,
            };
            Ok((set, first))
        })();
        let (set, first) = match made {
            Ok(made) => made,
            Err(errno) => {
                // Nothing was written: the index is made anew when it is needed.
                dirs.forget(to.inner.read().record.start);
                return Err(errno);
            }
        };
        let dir = volume.dir(dirs, to)?;
        let target = volume.main_of(&dir.offsets(first, set.len() as u32));
        let source = volume.main_of(old);
        let offsets = {
            let mut inner = node.inner.write();
            let mut meta = volume.meta.lock();
            meta.order(source, target)?;
            let offsets = dir.offsets(first, set.len() as u32);
            let left: Vec<u64> = old.iter().copied().filter(|at| !offsets.contains(at)).collect();
            volume.clear_slots(&mut meta, &left)?;
            let offsets = volume.put_set(&mut meta, dir, first, units, &set)?;
            inner.slots.clone_from(&offsets);
            inner.parent = to.ino;
            inner.program = is_program(name.as_bytes());
            // Its place in memory may have changed meanwhile.
            volume.store(&mut meta, &inner)?;
            offsets
        };
        if !same {
            volume.dir(dirs, from.0)?.remove(from.1.main);
        }
        volume.nodes.lock().rename(node.ino, source, volume.main_of(&offsets), to.ino);
        Ok(())
    }

    /// A directory that moved must say where it is now (FAT).
    fn fix_dotdot(&self, node: &Node, parent: &Node) -> Result<()> {
        let volume = &*self.0;
        if volume.layout.is_exfat() {
            return Ok(());
        }
        let up = {
            let parent = parent.inner.read();
            if parent.slots.is_empty() { 0 } else { parent.record.start }
        };
        let at = volume.layout.offset(node.inner.read().record.start) + 32;
        let mut meta = volume.meta.lock();
        let mut slot = meta.slot(at)?;
        if slots::fat::is_dotdot(&slot) {
            let record = slots::Record { start: up, ..slots::fat::read(&slot, volume.zone(), volume.wide()) };
            slots::fat::write(&mut slot, &record, volume.zone(), volume.wide());
            meta.put_slot(at, &slot)?;
        }
        Ok(())
    }

    /// Whether a mode can be stored: `chmod` may change nothing but the write permission, and that for all at once.
    fn new_attr(&self, node: &Node, attr: &Attr, record_attr: u16, perm: Perm) -> Result<u16> {
        let mask = if node.is_dir { self.0.settings.dmask } else { self.0.settings.fmask };
        let wanted = perm.bits() & 0o777 & !mask;
        let writable = 0o222 & !mask;
        if wanted & 0o555 != attr.perm.bits() & 0o555 {
            return Err(Errno::EPERM);
        }
        match wanted & 0o222 {
            all if all == writable => {
                Ok(if self.0.holds_read_only(node) { record_attr & !READ_ONLY } else { record_attr })
            }
            0 if self.0.holds_read_only(node) => Ok(record_attr | READ_ONLY),
            _ => Err(Errno::EPERM),
        }
    }
}

fn place_of(dir: &Dir, main: u32) -> Result<Place> {
    let item = dir.items.get(&main).ok_or(Errno::EUCLEAN)?;
    Ok(Place {
        main,
        offsets: dir.offsets(item.first, item.count),
        name: item.name.clone(),
        is_dir: item.is_dir,
    })
}

impl Filesystem for Tree {
    fn facts(&self) -> Facts {
        let volume = &*self.0;
        Facts {
            caching: if volume.read_only { Caching::Immutable } else { Caching::Exclusive },
            // 255 units of UTF-16 are at most three bytes each.
            name_max: 255 * 3,
            size_max: volume.layout.size_max(),
            case_insensitive: !volume.policy.strict,
            time_granularity: if volume.layout.is_exfat() { 10_000_000 } else { 2_000_000_000 },
            ..Facts::default()
        }
    }

    fn lookup(&self, parent: Ino, name: &OsStr) -> Result<Entry> {
        let parent = self.0.node(parent)?;
        let mut dirs = self.0.dirs.lock();
        let place = self.find(self.0.dir(&mut dirs, &parent)?, name)?.ok_or(Errno::ENOENT)?;
        let node = self.0.load(&parent, place.offsets, &place.name)?;
        drop(dirs);
        Ok(self.entry_of(&node))
    }

    fn getattr(&self, ino: Ino) -> Result<Attr> {
        let node = self.0.node(ino)?;
        let inner = node.inner.read();
        Ok(self.0.attr(&node, &inner))
    }

    fn readdir(&self, dir: Ino, position: u64, sink: &mut DirSink<'_>) -> Result<()> {
        let node = self.0.node(dir)?;
        let mut dirs = self.0.dirs.lock();
        let dir = match self.0.dir(&mut dirs, &node) {
            // Removed, and still open.
            Err(Errno::ENOENT) => return Ok(()),
            dir => dir?,
        };
        let nodes = self.0.nodes.lock();
        let Ok(from) = u32::try_from(position) else { return Ok(()) };
        for (main, item) in dir.items.range(from..) {
            let number = nodes.number(dir.offset(*main));
            let taken = sink(DirEntry {
                name: OsStr::from_bytes(&item.name),
                ino: Some(Ino(number)),
                st_ino: number,
                kind: Some(if item.is_dir { Kind::Directory } else { Kind::File }),
                next: u64::from(*main) + 1,
            });
            if taken == ControlFlow::Break(()) {
                break;
            }
        }
        Ok(())
    }

    fn open(&self, ino: Ino, _flags: OpenFlags) -> Result<Arc<dyn File>> {
        Ok(Open::open(&self.0, self.0.node(ino)?))
    }

    fn entry(&self, parent: Ino, listed: &DirEntry<'_>) -> Result<Entry> {
        let Some(ino) = listed.ino else { return self.lookup(parent, listed.name) };
        let taken = self.0.nodes.lock().take(ino.0);
        match taken {
            // It was listed a moment ago; that it is still there, and called so, is checked.
            Some(node) => {
                let inner = node.inner.read();
                if inner.parent == parent.0 && !inner.unlinked {
                    let attr = self.0.attr(&node, &inner);
                    return Ok(Entry { ino, generation: 0, attr });
                }
                drop(inner);
                self.drop_ref(ino.0, 1);
                self.lookup(parent, listed.name)
            }
            None => self.lookup(parent, listed.name),
        }
    }

    fn parent(&self, dir: Ino) -> Result<Ino> {
        Ok(Ino(self.0.node(dir)?.inner.read().parent))
    }

    fn statfs(&self) -> Result<StatFs> {
        let volume = &*self.0;
        let free = volume.meta.lock().free_clusters()?;
        Ok(StatFs {
            block_size: volume.layout.cluster_size,
            blocks: u64::from(volume.layout.clusters),
            blocks_free: free,
            blocks_available: free,
            files: 0,
            files_free: 0,
            // MSDOS_SUPER_MAGIC, EXFAT_SUPER_MAGIC
            magic: if volume.layout.is_exfat() { 0x2011_bab0 } else { 0x4d44 },
            id: u64::from(volume.layout.serial),
        })
    }

    fn forget(&self, ino: Ino, count: u64) {
        if ino != Ino::ROOT {
            self.drop_ref(ino.0, count);
        }
    }

    fn sync(&self) -> Result<()> {
        if self.0.read_only {
            return Ok(());
        }
        let mut meta = self.0.meta.lock();
        meta.commit()?;
        meta.failure().map_or(Ok(()), Err)
    }

    fn unmount(&self) -> Result<()> {
        if self.0.read_only {
            return Ok(());
        }
        // References that the host did not give back do not keep the clusters of removed files.
        let all = self.0.nodes.lock().all();
        all.iter().for_each(|node| self.0.settle(node));
        self.0.meta.lock().unmount()
    }

    fn setattr(&self, ino: Ino, changes: &SetAttr) -> Result<Attr> {
        let volume = &*self.0;
        let node = volume.node(ino)?;
        let (attr, bits) = {
            let inner = node.inner.read();
            (volume.attr(&node, &inner), inner.record.attr)
        };
        let (settings, mut new_bits) = (&volume.settings, bits);
        // First all that may be refused.
        let owner =
            changes.uid.is_some_and(|uid| uid != attr.uid) || changes.gid.is_some_and(|gid| gid != attr.gid);
        if owner && !settings.quiet {
            return Err(Errno::EPERM);
        }
        if let Some(perm) = changes.perm {
            match self.new_attr(&node, &attr, bits, perm) {
                Ok(attr) => new_bits = attr,
                Err(errno) if !settings.quiet => return Err(errno),
                Err(_) => {}
            }
        }
        if changes.flags.is_some_and(|flags| flags != attr.flags && flags != FileFlags::default()) {
            return Err(Errno::EOPNOTSUPP);
        }
        if changes.flags.is_some_and(|flags| flags != attr.flags) {
            return Err(Errno::EPERM);
        }
        if let Some(size) = changes.size {
            volume.truncate(&node, size)?;
        }
        let mut inner = node.inner.write();
        let now = Timestamp::now();
        let moment = |time: SetTime| match time {
            SetTime::To(moment) => moment,
            SetTime::Now => now,
        };
        let record = &mut inner.record;
        let before = record.clone();
        record.attr = record.attr & !READ_ONLY | new_bits & READ_ONLY;
        if let Some(time) = changes.mtime {
            record.mtime = volume.round_mtime(moment(time));
        }
        if let Some(time) = changes.atime {
            record.atime = volume.round_atime(moment(time));
        }
        if *record != before {
            volume.begin()?;
            let mut meta = volume.meta.lock();
            volume.store(&mut meta, &inner)?;
        }
        Ok(volume.attr(&node, &inner))
    }

    fn create(
        &self,
        parent: Ino,
        name: &OsStr,
        _new: &NewNode,
        _flags: OpenFlags,
    ) -> Result<(Entry, Arc<dyn File>)> {
        let node = self.make(parent, name, false)?;
        Ok((self.entry_of(&node), Open::open(&self.0, node)))
    }

    fn mknod(&self, parent: Ino, name: &OsStr, new: &NewNode) -> Result<Entry> {
        if new.kind != Kind::File {
            return Err(Errno::EPERM);
        }
        let node = self.make(parent, name, false)?;
        Ok(self.entry_of(&node))
    }

    fn mkdir(&self, parent: Ino, name: &OsStr, _new: &NewNode) -> Result<Entry> {
        let node = self.make(parent, name, true)?;
        Ok(self.entry_of(&node))
    }

    fn symlink(&self, _parent: Ino, _name: &OsStr, _target: &OsStr, _new: &NewNode) -> Result<Entry> {
        Err(Errno::EPERM)
    }

    fn link(&self, _ino: Ino, _parent: Ino, _name: &OsStr) -> Result<Entry> {
        Err(Errno::EPERM)
    }

    fn unlink(&self, parent: Ino, name: &OsStr) -> Result<()> {
        self.remove(parent, name, false)
    }

    fn rmdir(&self, parent: Ino, name: &OsStr) -> Result<()> {
        self.remove(parent, name, true)
    }

    fn rename(
        &self,
        parent: Ino,
        name: &OsStr,
        new_parent: Ino,
        new_name: &OsStr,
        flags: RenameFlags,
    ) -> Result<()> {
        let volume = &*self.0;
        if flags.exchange || flags.whiteout {
            return Err(Errno::EINVAL);
        }
        let (from, to) = (volume.node(parent)?, volume.node(new_parent)?);
        volume.policy.parse_new(new_name.as_bytes())?;
        let mut dirs = volume.dirs.lock();
        volume.begin()?;
        let source = self.find(volume.dir(&mut dirs, &from)?, name)?.ok_or(Errno::ENOENT)?;
        let target = self.find(volume.dir(&mut dirs, &to)?, new_name)?;
        let same = target.as_ref().is_some_and(|target| target.offsets == source.offsets);
        if same && *source.name == *new_name.as_bytes() {
            return Ok(());
        }
        if flags.no_replace && target.is_some() && !same {
            return Err(Errno::EEXIST);
        }
        let node = volume.load(&from, source.offsets.clone(), &source.name)?;
        let done = (|| {
            if node.is_dir {
                self.check_not_below(&node, &to)?;
            }
            match target.filter(|_| !same) {
                Some(target) => {
                    let old = volume.load(&to, target.offsets.clone(), &target.name)?;
                    let done = self.replace(&mut dirs, (&from, &source), (&to, &target), &node, &old);
                    let gone = volume.nodes.lock().forget(old.ino, 1);
                    gone.iter().for_each(|node| volume.settle(node));
                    done?;
                }
                None => self.respell(&mut dirs, (&from, &source), &to, new_name, &node)?,
            }
            if node.is_dir && from.ino != to.ino {
                self.fix_dotdot(&node, &to)?;
            }
            volume.touch(&from)?;
            volume.touch(&to)
        })();
        drop(dirs);
        self.drop_ref(node.ino, 1);
        done
    }

    fn getxattr(&self, ino: Ino, name: &OsStr) -> Result<Vec<u8>> {
        if !name.as_bytes().starts_with(b"user.") {
            return Err(Errno::EOPNOTSUPP);
        }
        controls::xattr(&*self.0.node(ino)?, name)
    }

    fn listxattr(&self, ino: Ino) -> Result<Vec<OsString>> {
        Ok(if ino == Ino::ROOT { Vec::new() } else { vec![controls::XATTR.into()] })
    }

    fn setxattr(&self, ino: Ino, name: &OsStr, value: &[u8], mode: XattrMode) -> Result<()> {
        controls::set_xattr(&self.0, &*self.0.node(ino)?, name, value, mode)
    }

    fn removexattr(&self, _ino: Ino, name: &OsStr) -> Result<()> {
        Err(if name == controls::XATTR { Errno::EPERM } else { Errno::ENODATA })
    }

    fn ioctl(&self, dir: Ino, ioctl: &mut Ioctl<'_>) -> Result<i32> {
        controls::ioctl(&self.0, &*self.0.node(dir)?, ioctl)
    }
}
