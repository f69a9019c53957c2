//! Attributes that are set: mode, owner, times, size, flags, and extended attributes by name.

use veduta_api::{Errno, SetAttr, SetTime, Timestamp, XattrMode};

use crate::change::Change;
use crate::error::Result;
use crate::inode::{FLAG_APPEND, FLAG_IMMUTABLE, FLAG_NODUMP};
use crate::raw::{ATIME, CTIME, MTIME, RawInode};
use crate::shape;
use crate::volume::Volume;

/// Set-user-id, set-group-id, and the group's right to execute, without which set-group-id means something else.
const SET_UID: u16 = 0o4000;
const SET_GID: u16 = 0o2000;
const GROUP_EXECUTE: u16 = 0o010;

/// Changes attributes.
pub(crate) fn set(volume: &Volume, ino: u32, changes: &SetAttr) -> Result<()> {
    if let Some(size) = changes.size {
        let node = volume.nodes.node(ino);
        let _content = node.lock.write();
        let kept = node.held.lock().as_ref().is_none_or(|held| held.start() < size);
        if kept {
            volume.settle(&node, false)?;
        } else {
            volume.discard_held(&node);
        }
        let done = shape::truncate(volume, ino, size);
        node.changed();
        done?;
    }
    let touched = volume.take_touched(ino);
    volume.change(|change| {
        let mut inode = change.load(ino)?;
        if let Some(time) = touched {
            inode.set_time(MTIME, time);
        }
        apply(change, &mut inode, changes)?;
        change.store(&mut inode)
    })
}

fn apply(change: &mut Change<'_>, inode: &mut RawInode, changes: &SetAttr) -> Result<()> {
    let now = Timestamp::now();
    if let Some(perm) = changes.perm {
        inode.set_mode(inode.mode() & !0o7777 | perm.bits() as u16);
        change.follow_mode(inode)?;
    }
    if changes.uid.is_some() || changes.gid.is_some() {
        let (uid, gid) = (changes.uid.unwrap_or(inode.uid()), changes.gid.unwrap_or(inode.gid()));
        inode.set_owner(uid, gid);
    }
    if changes.drop_set_id {
        let mode = inode.mode();
        let group = if mode & GROUP_EXECUTE != 0 { SET_GID } else { 0 };
        inode.set_mode(mode & !(SET_UID | group));
    }
    for (time, field) in [(changes.atime, ATIME), (changes.mtime, MTIME)] {
        match time {
            Some(SetTime::To(moment)) => inode.set_time(field, moment),
            Some(SetTime::Now) => inode.set_time(field, now),
            None => {}
        }
    }
    if let Some(flags) = changes.flags {
        if flags.compressed || flags.encrypted || flags.verity {
            return Err(Errno::EOPNOTSUPP.into());
        }
        let mut bits = inode.flags() & !(FLAG_IMMUTABLE | FLAG_APPEND | FLAG_NODUMP);
        for (set, bit) in [
            (flags.immutable, FLAG_IMMUTABLE),
            (flags.append_only, FLAG_APPEND),
            (flags.no_dump, FLAG_NODUMP),
        ] {
            bits |= if set { bit } else { 0 };
        }
        inode.set_flags(bits);
    }
    inode.set_time(CTIME, changes.ctime.unwrap_or(now));
    Ok(())
}

/// Sets or removes an extended attribute.
pub(crate) fn set_attribute(
    volume: &Volume,
    ino: u32,
    name: &[u8],
    value: Option<&[u8]>,
    mode: XattrMode,
) -> Result<()> {
    volume.change(|change| {
        let mut inode = change.load(ino)?;
        change.set_named(&mut inode, name, value, mode)?;
        change.store(&mut inode)
    })
}
