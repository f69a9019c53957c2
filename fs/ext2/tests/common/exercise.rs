//! Everything that can be asked of a tree, asked of all of it: for images that may be damaged. Answers do not
//! matter; that there is one does.

use std::ffi::{OsStr, OsString};
use std::ops::ControlFlow;

use veduta_api::{Filesystem, Ino, Kind, OpenFlags, Seek};

/// A damaged tree may contain itself.
const MOST_NODES: usize = 600;
const DEEPEST: usize = 8;
/// And a file may seem to be full of holes.
const MOST_SEEKS: usize = 64;

/// Walks the tree. How many nodes it saw.
pub fn walk(tree: &dyn Filesystem) -> usize {
    let _ = tree.facts();
    let _ = tree.statfs();
    let mut seen = 0;
    visit(tree, Ino::ROOT, 0, &mut seen);
    seen
}

fn visit(tree: &dyn Filesystem, ino: Ino, depth: usize, seen: &mut usize) {
    *seen += 1;
    for name in tree.listxattr(ino).unwrap_or_default() {
        let _ = tree.getxattr(ino, &name);
    }
    let _ = tree.getxattr(ino, OsStr::new("user.absent"));
    let _ = tree.getxattr(ino, OsStr::new("system.posix_acl_access"));
    let Ok(attr) = tree.getattr(ino) else { return };
    match attr.kind {
        Kind::File => content(tree, ino, attr.size),
        Kind::Symlink => drop(tree.readlink(ino)),
        Kind::Directory => {
            let _ = tree.parent(ino);
            let _ = tree.lookup(ino, OsStr::new("absent"));
            for (name, child) in children(tree, ino) {
                let by_name = tree.lookup(ino, &name);
                if *seen < MOST_NODES && depth < DEEPEST && by_name.is_ok() {
                    child.into_iter().for_each(|child| visit(tree, child, depth + 1, seen));
                }
            }
        }
        _ => {}
    }
}

fn children(tree: &dyn Filesystem, dir: Ino) -> Vec<(OsString, Option<Ino>)> {
    let (mut all, mut position) = (Vec::new(), 0);
    // A listing in two parts: the second goes on where the first broke off.
    for most in [3, MOST_NODES] {
        let mut taken = 0;
        let _ = tree.readdir(dir, position, &mut |entry| {
            if taken == most {
                return ControlFlow::Break(());
            }
            taken += 1;
            position = entry.next;
            let child = tree.entry(dir, &entry).ok().map(|entry| entry.ino);
            all.push((entry.name.to_owned(), child));
            ControlFlow::Continue(())
        });
    }
    all
}

fn content(tree: &dyn Filesystem, ino: Ino, size: u64) {
    let Ok(file) = tree.open(ino, OpenFlags::READ) else { return };
    let mut buf = vec![0xa5; 5000];
    for offset in [0, 1, size / 2, size.saturating_sub(100), size, u64::MAX] {
        if let Ok(len) = file.read_at(&mut buf, offset) {
            assert_eq!(
                len as u64,
                size.saturating_sub(offset).min(5000),
                "a short read of {size} at {offset}"
            );
        }
    }
    let mut at = 0;
    for round in 0..MOST_SEEKS {
        let what = if round % 2 == 0 { Seek::Data } else { Seek::Hole };
        match file.seek(what, at) {
            Ok(next) => {
                assert!(next >= at && next <= size);
                at = next;
            }
            Err(_) => break,
        }
    }
    let _ = file.seek(Seek::Hole, size / 2);
}
