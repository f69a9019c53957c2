//! Names: nodes are made, linked, moved and removed.
//!
//! Every call holds [`Volume::names`] for writing, and is one change. A node that loses its last name becomes an orphan, and goes when
//! nobody uses it.

use veduta_api::{Errno, Kind as NodeKind, NewNode, RenameFlags, Timestamp};

use crate::bytes::{le16, le32};
use crate::change::{Change, Kind};
use crate::dir::Dir;
use crate::entries::{self, is_empty, locate};
use crate::error::{Error, Result};
use crate::extents::empty_root;
use crate::features::{INCOMPAT_EXTENTS, RO_COMPAT_DIR_NLINK};
use crate::inode::{BLOCK_LEN, FLAG_EXTENTS, FLAG_INLINE_DATA, Inode};
use crate::raw::{ATIME, BTIME, CTIME, MTIME, RawInode};
use crate::shape;
use crate::superblock::ROOT_INO;
use crate::volume::Volume;

/// Names that a node may have, and subdirectories of a directory that are counted.
const LINKS_MAX: u16 = 65_000;
/// Flags that a new node has from its directory (`EXT4_FL_INHERITED`, of what we write), and what of them is for directories
/// only, and for all types.
const INHERITED: u32 = 0x1 | 0x2 | 0x8 | 0x40 | 0x80 | 0x4000 | 0x1_0000;
const DIRECTORIES_ONLY: u32 = 0x1_0000 | 0x2_0000;
const EVERYBODYS: u32 = 0x40 | 0x80;

/// Where a node is made.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Place<'a> {
    Named(&'a [u8]),
    /// Without a name: `O_TMPFILE`.
    Nameless,
}

/// Makes a node: its inode. A symbolic link has a target.
pub(crate) fn make(
    volume: &Volume,
    parent: u32,
    place: Place<'_>,
    new: &NewNode,
    target: Option<&[u8]>,
) -> Result<u32> {
    let _names = volume.names.write();
    volume.change(|change| {
        let mut dir = load_dir(change, parent)?;
        let is_dir = new.kind == NodeKind::Directory;
        if let Place::Named(name) = place {
            if locate(volume, &dir, name)?.is_some() {
                return Err(Errno::EEXIST.into());
            }
        }
        if is_dir && !has_room_for_link(volume, &dir) {
            return Err(Errno::EMLINK.into());
        }
        let ino = change.allocate_inode(parent, is_dir)?;
        // The number's last owner may be remembered as one without a name.
        volume.nodes.find_name(ino);
        let mut inode = new_inode(change, ino, &dir, new, target)?;
        match place {
            Place::Named(name) => {
                change.insert_name(&mut dir, name, ino, new.kind)?;
                if is_dir {
                    add_link(volume, &mut dir);
                }
                dir.touch();
                change.store(&mut dir)?;
            }
            Place::Nameless => {
                inode.set_links(0);
                change.add_orphan(&mut inode)?;
            }
        }
        change.store(&mut inode)?;
        Ok(ino)
    })
}

/// A directory that still has a name.
fn load_dir(change: &mut Change<'_>, ino: u32) -> Result<RawInode> {
    let dir = load_out(change, ino)?;
    match (dir.is_dir(), dir.links()) {
        (false, _) => Err(Errno::ENOTDIR.into()),
        (true, 0) => Err(Errno::ENOENT.into()),
        _ => Ok(dir),
    }
}

/// An inode. A directory that is inline moves into a block.
fn load_out(change: &mut Change<'_>, ino: u32) -> Result<RawInode> {
    let mut inode = change.load(ino)?;
    if inode.is_dir() && inode.has(FLAG_INLINE_DATA) {
        change.leave_inline(&mut inode)?;
        change.store(&mut inode)?;
    }
    Ok(inode)
}

/// What a directory entry leads to.
fn load_named(change: &mut Change<'_>, dir: u32, ino: u32) -> Result<RawInode> {
    if !change.volume.sb.is_ordinary(ino) || ino == dir {
        return Err(Error::corrupt(format!("an entry leads to inode {ino}")).in_inode(dir));
    }
    let inode = load_out(change, ino)?;
    match inode.links() {
        0 => Err(Error::corrupt("it is not in use, but an entry leads to it").in_inode(ino)),
        _ => Ok(inode),
    }
}

fn new_inode(
    change: &mut Change<'_>,
    ino: u32,
    dir: &RawInode,
    new: &NewNode,
    target: Option<&[u8]>,
) -> Result<RawInode> {
    let volume = change.volume;
    let generation = change.old_generation(ino).wrapping_add(1);
    let mut inode = RawInode::new(volume, ino, generation);
    inode.set_mode((new.kind.mode_bits() | new.perm.bits()) as u16);
    inode.set_owner(new.uid, new.gid);
    inode.set_links(if new.kind == NodeKind::Directory { 2 } else { 1 });
    let now = Timestamp::now();
    [ATIME, CTIME, MTIME, BTIME].into_iter().for_each(|time| inode.set_time(time, now));
    let inherited = dir.flags() & INHERITED;
    let mut flags = match new.kind {
        NodeKind::Directory => inherited,
        NodeKind::File => inherited & !DIRECTORIES_ONLY,
        _ => inherited & EVERYBODYS,
    };
    let short = target.is_some_and(|target| target.len() < BLOCK_LEN);
    let has_blocks = matches!(new.kind, NodeKind::File | NodeKind::Directory | NodeKind::Symlink) && !short;
    if has_blocks && volume.sb.features.has_incompat(INCOMPAT_EXTENTS) {
        flags |= FLAG_EXTENTS;
        inode.block_mut().copy_from_slice(&empty_root());
    }
    inode.set_flags(flags);
    match new.kind {
        NodeKind::CharDevice | NodeKind::BlockDevice => inode.set_device(new.rdev),
        NodeKind::Directory => {
            let block = change.fill_hole(&mut inode, 0..1, true)?;
            let content = entries::first_block(volume, &inode, dir.ino);
            change.fresh(block.physical, Kind::Entries, content);
            inode.set_size(volume.block_size() as u64);
        }
        _ => {}
    }
    match target {
        Some(target) => put_target(change, &mut inode, target)?,
        None => change.inherit(dir, &mut inode, new.umask as u16)?,
    }
    Ok(inode)
}

/// The target of a symbolic link: in the inode, or in a block, which is written before anything leads to it.
fn put_target(change: &mut Change<'_>, inode: &mut RawInode, target: &[u8]) -> Result<()> {
    let volume = change.volume;
    if target.len() < BLOCK_LEN {
        inode.block_mut()[..target.len()].copy_from_slice(target);
    } else if target.len() >= volume.block_size() {
        return Err(Errno::ENAMETOOLONG.into());
    } else {
        let block = change.fill_hole(inode, 0..1, true)?;
        let mut content = vec![0; volume.block_size()];
        content[..target.len()].copy_from_slice(target);
        volume.disk.write_at(&content, block.physical << volume.sb.block_bits)?;
    }
    inode.set_size(target.len() as u64);
    Ok(())
}

/// Whether a directory can have one more subdirectory.
fn has_room_for_link(volume: &Volume, dir: &RawInode) -> bool {
    let uncounted = volume.sb.features.has_ro_compat(RO_COMPAT_DIR_NLINK) && entries::is_indexed(volume, dir);
    dir.links() < LINKS_MAX || uncounted
}

/// One more subdirectory. When there are too many to be counted, the count is 1 for good.
fn add_link(volume: &Volume, dir: &mut RawInode) {
    let links = match dir.links() {
        1 => 1,
        links if links >= LINKS_MAX && volume.sb.features.has_ro_compat(RO_COMPAT_DIR_NLINK) => 1,
        links => links + 1,
    };
    dir.set_links(links);
}

/// One subdirectory less.
fn drop_link(dir: &mut RawInode) {
    if dir.links() > 2 {
        dir.set_links(dir.links() - 1);
    }
}

/// A name of a node is gone: whether it was the last. The caller stores it.
fn lose_name(change: &mut Change<'_>, inode: &mut RawInode) -> Result<bool> {
    inode.set_time(CTIME, Timestamp::now());
    inode.set_links(if inode.is_dir() { 0 } else { inode.links() - 1 });
    if inode.links() == 0 {
        change.add_orphan(inode)?;
    }
    Ok(inode.links() == 0)
}

/// A node has no name any more.
fn leave(volume: &Volume, gone: Option<u32>) -> Result<()> {
    match gone {
        Some(ino) if volume.nodes.lose_name(ino) => shape::delete(volume, ino),
        _ => Ok(()),
    }
}

/// Removes a name: of a directory, or of something else.
pub(crate) fn remove(volume: &Volume, parent: u32, name: &[u8], is_dir: bool) -> Result<()> {
    let _names = volume.names.write();
    let others = locate_node(volume, parent, name).is_some_and(|inode| inode.links() > 1);
    if others && !is_dir {
        // The other names must be there first.
        volume.order()?;
    }
    let gone = volume.change(|change| {
        let mut dir = load_dir(change, parent)?;
        let found = locate(volume, &dir, name)?.ok_or(Errno::ENOENT)?;
        let mut inode = load_named(change, parent, found.ino)?;
        match (inode.is_dir(), is_dir) {
            (true, false) => return Err(Errno::EISDIR.into()),
            (false, true) => return Err(Errno::ENOTDIR.into()),
            (true, true) if !is_empty(volume, &inode)? => return Err(Errno::ENOTEMPTY.into()),
            _ => {}
        }
        change.remove_name(&dir, found)?;
        if is_dir {
            drop_link(&mut dir);
        }
        dir.touch();
        change.store(&mut dir)?;
        let gone = lose_name(change, &mut inode)?;
        change.store(&mut inode)?;
        Ok(gone.then_some(found.ino))
    })?;
    leave(volume, gone)
}

/// What a name leads to, if that can be told.
fn locate_node(volume: &Volume, parent: u32, name: &[u8]) -> Option<Inode> {
    if volume.transactions.as_ref()?.journalled {
        return None;
    }
    let dir = Dir::open(volume, volume.inode(parent).ok()?).ok()?;
    volume.inode(dir.find(volume, name).ok()??).ok()
}

/// Gives a node one more name.
pub(crate) fn link(volume: &Volume, ino: u32, parent: u32, name: &[u8]) -> Result<()> {
    let _names = volume.names.write();
    volume.change(|change| {
        let mut dir = load_dir(change, parent)?;
        if locate(volume, &dir, name)?.is_some() {
            return Err(Errno::EEXIST.into());
        }
        let mut inode = change.load(ino)?;
        if inode.links() >= LINKS_MAX {
            return Err(Errno::EMLINK.into());
        }
        let kind = inode.kind().ok_or_else(|| Error::corrupt("it is of no type").in_inode(ino))?;
        if kind == NodeKind::Directory {
            return Err(Errno::EPERM.into());
        }
        change.insert_name(&mut dir, name, ino, kind)?;
        dir.touch();
        change.store(&mut dir)?;
        if inode.links() == 0 {
            change.remove_orphan(&mut inode)?;
        }
        inode.set_links(inode.links() + 1);
        inode.set_time(CTIME, Timestamp::now());
        change.store(&mut inode)
    })?;
    volume.nodes.find_name(ino);
    Ok(())
}

/// The directory that holds a directory.
fn parent_of(volume: &Volume, dir: &RawInode) -> Result<u32> {
    let (_, content) = entries::block(volume, dir, 0)?;
    Ok(le32(&content, usize::from(le16(&content, 4))))
}

/// `EINVAL` if `dir` is `node` or lies below it. A tree has no more levels than inodes.
fn check_not_below(change: &mut Change<'_>, node: u32, dir: u32) -> Result<()> {
    let mut at = dir;
    for _ in 0..change.volume.sb.inodes_count {
        if at == node {
            return Err(Errno::EINVAL.into());
        }
        if at == ROOT_INO {
            return Ok(());
        }
        let inode = load_dir(change, at)?;
        at = parent_of(change.volume, &inode)?;
        if !change.volume.sb.is_ordinary(at) {
            return Err(Error::corrupt(format!("its parent cannot be inode {at}")).in_inode(inode.ino));
        }
    }
    Err(Error::corrupt("directories hold each other").in_inode(dir))
}

/// Moves a name.
pub(crate) fn rename(
    volume: &Volume,
    (from, name): (u32, &[u8]),
    (to, new_name): (u32, &[u8]),
    flags: RenameFlags,
) -> Result<()> {
    if flags.whiteout || (flags.no_replace && flags.exchange) {
        return Err(Errno::EINVAL.into());
    }
    let _names = volume.names.write();
    let mut rest = None;
    let gone = volume.change(|change| {
        let source = load_dir(change, from)?;
        let target = load_dir(change, to)?;
        let moved = locate(volume, &source, name)?.ok_or(Errno::ENOENT)?;
        let replaced = locate(volume, &target, new_name)?;
        let inode = load_named(change, from, moved.ino)?;
        if inode.is_dir() && from != to {
            check_not_below(change, moved.ino, to)?;
        }
        match replaced {
            Some(_) if flags.no_replace => Err(Errno::EEXIST.into()),
            Some(found) if found.ino == moved.ino => Ok(None),
            Some(found) if flags.exchange => exchange(change, (from, name), (to, new_name), inode, found.ino),
            None if flags.exchange => Err(Errno::ENOENT.into()),
            Some(found) => {
                let old = load_named(change, to, found.ino)?;
                let gone = replace(change, from, (to, new_name), &inode, Some(old))?;
                rest = finish_move(change, (from, name), to, &inode)?;
                Ok(gone)
            }
            None => {
                replace(change, from, (to, new_name), &inode, None)?;
                rest = finish_move(change, (from, name), to, &inode)?;
                Ok(None)
            }
        }
    })?;
    if let Some(ino) = rest {
        volume.order()?;
        volume.change(|change| leave_old_name(change, (from, name), to, ino))?;
    }
    leave(volume, gone)
}

/// Removes the old name of what was moved, unless that must wait: without a journal, the new one must be there first. Then
/// the answer is the inode.
fn finish_move(change: &mut Change<'_>, old: (u32, &[u8]), to: u32, inode: &RawInode) -> Result<Option<u32>> {
    let waits = change.volume.transactions.as_ref().is_some_and(|transactions| !transactions.journalled);
    if waits && !inode.is_dir() {
        return Ok(Some(inode.ino));
    }
    leave_old_name(change, old, to, inode.ino)?;
    Ok(None)
}

/// Removes the old name of what was moved.
fn leave_old_name(change: &mut Change<'_>, (from, name): (u32, &[u8]), to: u32, ino: u32) -> Result<()> {
    let mut inode = change.load(ino)?;
    // The new name may have moved the old one.
    let mut source = load_dir(change, from)?;
    let found = locate(change.volume, &source, name)?.ok_or(Errno::ENOENT)?;
    change.remove_name(&source, found)?;
    if inode.is_dir() && from != to {
        drop_link(&mut source);
    }
    source.touch();
    change.store(&mut source)?;
    inode.set_time(CTIME, Timestamp::now());
    change.store(&mut inode)
}

/// Puts `inode` under a new name, where `old` may be: what has no name any more.
fn replace(
    change: &mut Change<'_>,
    from: u32,
    (to, new_name): (u32, &[u8]),
    inode: &RawInode,
    old: Option<RawInode>,
) -> Result<Option<u32>> {
    let volume = change.volume;
    let kind = inode.kind().ok_or_else(|| Error::corrupt("it is of no type").in_inode(inode.ino))?;
    let mut gone = None;
    let mut target = load_dir(change, to)?;
    match old {
        Some(mut old) => {
            match (inode.is_dir(), old.is_dir()) {
                (true, false) => return Err(Errno::ENOTDIR.into()),
                (false, true) => return Err(Errno::EISDIR.into()),
                (true, true) if !is_empty(volume, &old)? => return Err(Errno::ENOTEMPTY.into()),
                _ => {}
            }
            let found = locate(volume, &target, new_name)?.ok_or(Errno::ENOENT)?;
            change.redirect_name(&target, found, inode.ino, kind)?;
            if old.is_dir() {
                drop_link(&mut target);
            }
            let last = lose_name(change, &mut old)?;
            change.store(&mut old)?;
            gone = last.then_some(old.ino);
        }
        None => change.insert_name(&mut target, new_name, inode.ino, kind)?,
    }
    if inode.is_dir() && from != to {
        if !has_room_for_link(volume, &target) {
            return Err(Errno::EMLINK.into());
        }
        add_link(volume, &mut target);
        change.set_parent(inode, to)?;
    }
    target.touch();
    change.store(&mut target)?;
    Ok(gone)
}

/// Swaps two names.
fn exchange(
    change: &mut Change<'_>,
    (from, name): (u32, &[u8]),
    (to, new_name): (u32, &[u8]),
    mut one: RawInode,
    other: u32,
) -> Result<Option<u32>> {
    let volume = change.volume;
    let mut other = load_named(change, to, other)?;
    if other.is_dir() && from != to {
        check_not_below(change, other.ino, from)?;
    }
    let kind_of =
        |inode: &RawInode| inode.kind().ok_or_else(|| Error::corrupt("it is of no type").in_inode(inode.ino));
    for (dir, name, new, gone) in [(to, new_name, &one, &other), (from, name, &other, &one)] {
        let mut dir = load_dir(change, dir)?;
        let found = locate(volume, &dir, name)?.ok_or(Errno::ENOENT)?;
        change.redirect_name(&dir, found, new.ino, kind_of(new)?)?;
        if from != to {
            match (new.is_dir(), gone.is_dir()) {
                (true, false) if !has_room_for_link(volume, &dir) => return Err(Errno::EMLINK.into()),
                (true, false) => add_link(volume, &mut dir),
                (false, true) => drop_link(&mut dir),
                _ => {}
            }
            if new.is_dir() {
                change.set_parent(new, dir.ino)?;
            }
        }
        dir.touch();
        change.store(&mut dir)?;
    }
    for inode in [&mut one, &mut other] {
        inode.set_time(CTIME, Timestamp::now());
        // A directory that was renamed within itself or its parent was stored meanwhile.
        let mut stored = change.load(inode.ino)?;
        stored.set_time(CTIME, Timestamp::now());
        change.store(&mut stored)?;
    }
    Ok(None)
}
