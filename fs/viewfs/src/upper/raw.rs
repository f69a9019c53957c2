//! A layer copied as it is.

use std::collections::HashMap;
use std::ffi::OsStr;

use veduta_api::{Attr, Filesystem, Ino, Kind, NewNode, OpenFlags, Result, SetAttr, SetTime, XattrMode};

use super::diff::xattrs;
use super::{Watch, raw_names};
use crate::copyup::copy_file;
use crate::setup::Place;
use crate::state::{self, own};

/// Copies everything in one directory to another, which is empty, with marks, holes and hard links.
pub(super) fn copy(from: &Place, to: &Place, watch: &mut dyn Watch) -> Result<()> {
    let (source, target) = (&*from.tree, &*to.tree);
    let mut links: HashMap<u64, Ino> = HashMap::new();
    let mut tasks = vec![(from.root, to.root)];
    let mut directories = Vec::new();
    while let Some((dir, copy)) = tasks.pop() {
        for name in raw_names(source, dir)? {
            let entry = source.lookup(dir, &name)?;
            let is_state = dir == from.root && name == state::NAME;
            watch.file();
            let attr = entry.attr;
            if let Some(first) =
                links.get(&attr.st_ino).filter(|_| attr.kind != Kind::Directory && attr.nlink > 1)
            {
                target.link(*first, copy, &name)?;
                continue;
            }
            let made = make(source, entry.ino, &attr, target, copy, &name)?;
            links.insert(attr.st_ino, made);
            if attr.kind == Kind::Directory {
                // What is being made there, and the lock, are of no use to the copy.
                if is_state {
                    state_links(source, entry.ino, target, made, &mut tasks)?;
                } else {
                    tasks.push((entry.ino, made));
                }
                directories.push((entry.ino, made));
            } else {
                dress(source, entry.ino, &attr, target, made)?;
                watch.bytes(attr.size);
            }
        }
    }
    directories.push((from.root, to.root));
    for (dir, copy) in directories.into_iter().rev() {
        dress(source, dir, &source.getattr(dir)?, target, copy)?;
    }
    Ok(())
}

fn state_links(
    source: &dyn Filesystem,
    home: Ino,
    target: &dyn Filesystem,
    copy: Ino,
    tasks: &mut Vec<(Ino, Ino)>,
) -> Result<()> {
    let links = OsStr::new("links");
    if let Ok(entry) = source.lookup(home, links) {
        tasks.push((entry.ino, target.mkdir(copy, links, &own(Kind::Directory, 0o700))?.ino));
    }
    Ok(())
}

fn make(
    source: &dyn Filesystem,
    ino: Ino,
    attr: &Attr,
    target: &dyn Filesystem,
    dir: Ino,
    name: &OsStr,
) -> Result<Ino> {
    Ok(match attr.kind {
        Kind::Directory => target.mkdir(dir, name, &own(Kind::Directory, 0o700))?.ino,
        Kind::Symlink => target.symlink(dir, name, &source.readlink(ino)?, &own(Kind::Symlink, 0o777))?.ino,
        Kind::File => {
            let (entry, file) = target.create(dir, name, &own(Kind::File, 0o600), OpenFlags::READ_WRITE)?;
            copy_file(&*source.open(ino, OpenFlags::READ)?, target, entry.ino, &*file, attr)?;
            entry.ino
        }
        kind => target.mknod(dir, name, &NewNode { rdev: attr.rdev, ..own(kind, 0o600) })?.ino,
    })
}

fn dress(source: &dyn Filesystem, from: Ino, attr: &Attr, target: &dyn Filesystem, to: Ino) -> Result<()> {
    let now = target.getattr(to)?;
    if (now.uid, now.gid) != (attr.uid, attr.gid) {
        target.setattr(to, &SetAttr { uid: Some(attr.uid), gid: Some(attr.gid), ..SetAttr::default() })?;
    }
    for (name, value) in xattrs(source, from)? {
        target.setxattr(to, &name, &value, XattrMode::Set)?;
    }
    let perm = (attr.kind != Kind::Symlink).then_some(attr.perm);
    let (atime, mtime) = (Some(SetTime::To(attr.atime)), Some(SetTime::To(attr.mtime)));
    target.setattr(to, &SetAttr { perm, atime, mtime, ..SetAttr::default() })?;
    Ok(())
}
