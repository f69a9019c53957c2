//! A layer that stands by itself: what it shows by reference to other names below, copied into it.
//!
//! A directory that was renamed is there by a redirect to where its content lies below, and so is a file that was renamed without its
//! content. A commit changes just those places: it would take away, or overwrite, what it has yet to read. So what lies below such
//! a directory is copied up first, each file at once, and then the directory is marked opaque. Users see the same tree all the
//! while.

use std::ffi::OsStr;
use std::path::PathBuf;

use veduta_api::{Filesystem, Ino, Kind, MountError, Result};

use super::{Upper, Watch, failed, path_of, raw_names, walk};
use crate::layer::Redirect;
use crate::setup::Setup;
use crate::state;
use crate::tree::Tree;

impl Upper {
    /// The paths of what is there by reference, those above first.
    pub(super) fn referring(&self) -> Result<Vec<PathBuf>, MountError> {
        let fs = self.fs();
        let mut found = Vec::new();
        let mut tasks = vec![(PathBuf::new(), self.place.root)];
        while let Some((path, dir)) = tasks.pop() {
            for name in raw_names(fs, dir).map_err(|errno| failed(&path, errno))? {
                if dir == self.place.root && name == state::NAME {
                    continue;
                }
                let path = path_of(&path, &name);
                let failed = |errno| failed(&path, errno);
                let entry = fs.lookup(dir, &name).map_err(failed)?;
                if !matches!(entry.attr.kind, Kind::Directory | Kind::File) {
                    continue;
                }
                let marks = self.prefix.read(fs, entry.ino).map_err(failed)?;
                let is_directory = entry.attr.kind == Kind::Directory;
                if (is_directory || marks.metacopy) && refers(marks.redirect.as_ref(), marks.opaque) {
                    found.push(path.clone());
                }
                if is_directory {
                    tasks.push((path, entry.ino));
                }
            }
        }
        Ok(found)
    }

    /// Copies up what is there by reference at these paths.
    pub(super) fn ground(&self, paths: &[PathBuf], watch: &mut dyn Watch) -> Result<(), MountError> {
        let tree = Setup { no_record: true, ..self.setup() }.tree()?;
        let grounded =
            paths.iter().try_for_each(|path| ground(&tree, path, watch).map_err(|errno| failed(path, errno)));
        let ended = tree.unmount().map_err(|errno| failed(OsStr::new("").as_ref(), errno));
        grounded.and(ended)
    }
}

fn refers(redirect: Option<&Redirect>, opaque: bool) -> bool {
    redirect.is_some() && !opaque
}

fn ground(tree: &Tree, path: &std::path::Path, watch: &mut dyn Watch) -> Result<()> {
    let names: Vec<_> = path.iter().map(OsStr::to_owned).collect();
    let Some((name, above)) = names.split_last() else { return Ok(()) };
    let Some(dir) = walk(tree, Ino::ROOT, above)? else { return Ok(()) };
    let entry = tree.lookup(dir, name)?;
    tree.name_up(&*tree.node(dir)?, name, &*tree.node(entry.ino)?)?;
    copy_all(tree, entry.ino, watch)?;
    if entry.attr.kind != Kind::Directory {
        return Ok(());
    }
    let part = tree.dir_up(&*tree.node(entry.ino)?)?;
    let fs = tree.fs(part.layer);
    tree.set_opaque(fs, part.ino)?;
    fs.removexattr(part.ino, &tree.rules.prefix.name("redirect"))
}

/// Copies up all that is below a directory. Directories form a tree, so the walk ends.
fn copy_all(tree: &Tree, dir: Ino, watch: &mut dyn Watch) -> Result<()> {
    let mut tasks = vec![tree.node(dir)?];
    while let Some(dir) = tasks.pop().filter(|node| node.kind == Kind::Directory) {
        for name in raw_names(tree, dir.ino)? {
            let node = tree.node(tree.lookup(dir.ino, &name)?.ino)?;
            tree.name_up(&dir, &name, &node)?;
            watch.file();
            if node.kind == Kind::Directory {
                tasks.push(node);
            }
        }
    }
    Ok(())
}
