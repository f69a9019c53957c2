//! Targets of the fuzzers for merged trees: marks and stores in a layer, and archives that are imported into one.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;
use std::sync::Arc;

use veduta_api::{Attr, Filesystem, Ino, Kind, NewNode, OpenFlags, Perm, XattrMode};
use veduta_tree::memory::{Memory, Setup as Blank};
use veduta_viewfs::{Holes, Mode, Place, Setup, Upper, Watch};

use crate::{Limits, Seen, exercise};

/// Bytes; what a layer may take, however large an archive says that its files are.
const ROOM: u64 = 8 << 20;

struct Quiet;

impl Watch for Quiet {
    fn file(&mut self) {}
    fn bytes(&mut self, _count: u64) {}
}

fn place(tree: &Arc<Memory>) -> Place {
    let tree: Arc<dyn Filesystem> = Arc::<Memory>::clone(tree);
    Place { tree, root: Ino::ROOT, name: "layer".into() }
}

fn blank() -> Arc<Memory> {
    Arc::new(Memory::new(&Blank { limit: Some(ROOM), ..Blank::default() }))
}

fn new(kind: Kind) -> NewNode {
    let attr = Attr::new(0, kind, Perm::from_mode(0o755));
    NewNode { kind, perm: attr.perm, umask: 0, uid: 0, gid: 0, rdev: attr.rdev }
}

/// The same few names in each layer, so that they meet.
fn populate(tree: &Memory, depth: usize, dir: Ino) {
    for name in ["a", "b", "c"] {
        let name = OsStr::new(name);
        if depth < 3 && name != "c" {
            if let Ok(entry) = tree.mkdir(dir, name, &new(Kind::Directory)) {
                populate(tree, depth + 1, entry.ino);
            }
        } else if let Ok((_, file)) = tree.create(dir, name, &new(Kind::File), OpenFlags::READ_WRITE) {
            let _ = file.write_at(b"content", 0);
        }
    }
}

fn find(tree: &Memory, path: &[u8]) -> Option<Ino> {
    let names = path.split(|byte| *byte == b'/').filter(|name| !name.is_empty());
    names.take(8).try_fold(Ino::ROOT, |dir, name| {
        tree.lookup(dir, OsStr::from_bytes(name)).ok().map(|entry| entry.ino)
    })
}

/// Lines of `PATH NAME VALUE`: attributes that are set in the upper layer; `PATH = VALUE` makes a file with that content.
pub(crate) fn marks(bytes: &[u8]) -> Option<Seen> {
    let (upper, lower) = (blank(), blank());
    populate(&upper, 0, Ino::ROOT);
    populate(&lower, 1, Ino::ROOT);
    for line in bytes.split(|byte| *byte == b'\n').take(200) {
        let mut words = line.splitn(3, |byte| *byte == b' ');
        let (Some(path), Some(name), Some(value)) = (words.next(), words.next(), words.next()) else {
            continue;
        };
        if name != b"=" {
            let Some(ino) = find(&upper, path) else { continue };
            let _ = upper.setxattr(ino, OsStr::from_bytes(name), value, XattrMode::Set);
            continue;
        }
        let is_name = |name: &[u8]| !matches!(name, b"." | b"..") && !name.contains(&0);
        if path.ends_with(b"/") || path.is_empty() || !path.split(|byte| *byte == b'/').all(is_name) {
            continue;
        }
        let (above, name) =
            path.rsplit(|byte| *byte == b'/').next().map(|name| (&path[..path.len() - name.len()], name))?;
        let mut dir = Ino::ROOT;
        for part in above.split(|byte| *byte == b'/').filter(|part| !part.is_empty()).take(8) {
            let part = OsStr::from_bytes(part);
            let there = tree_dir(&upper, dir, part);
            let Some(there) = there else { break };
            dir = there;
        }
        if let Ok((_, file)) =
            upper.create(dir, OsStr::from_bytes(name), &new(Kind::File), OpenFlags::READ_WRITE)
        {
            let _ = file.write_at(value, 0);
        }
    }
    let setup = Setup {
        mode: Mode::Cow,
        upper: Some(place(&upper)),
        lower: vec![place(&lower)],
        read_only: true,
        vstat: true,
        user_xattr: true,
        ..Setup::default()
    };
    let tree = setup.mount().ok()?;
    let mut seen = exercise(&*tree, Limits::FUZZ);
    let compared = Upper::new(place(&upper), vec![place(&lower)]).and_then(|upper| upper.diff(&mut Quiet));
    seen.errors += usize::from(compared.is_err());
    Some(seen)
}

fn tree_dir(tree: &Memory, dir: Ino, name: &OsStr) -> Option<Ino> {
    match tree.lookup(dir, name) {
        Ok(entry) => Some(entry.ino),
        Err(_) => tree.mkdir(dir, name, &new(Kind::Directory)).ok().map(|entry| entry.ino),
    }
}

/// An archive, imported into an empty layer, and what is made of that: a diff, an archive again, a commit.
pub(crate) fn archive(bytes: &[u8]) -> Option<Seen> {
    let (upper, lower) = (blank(), blank());
    populate(&lower, 1, Ino::ROOT);
    let layer = Upper::new(place(&upper), vec![place(&lower)]).ok()?;
    let imported = layer.import(&mut &*bytes, &mut Quiet);
    let setup = Setup {
        mode: Mode::Cow,
        upper: Some(place(&upper)),
        lower: vec![place(&lower)],
        read_only: true,
        ..Setup::default()
    };
    let tree = setup.mount().ok()?;
    let mut seen = exercise(&*tree, Limits::FUZZ);
    seen.errors += usize::from(imported.is_err());
    let mut again = Vec::new();
    let holes = if bytes.len() % 2 == 0 { Holes::Zeros } else { Holes::Sparse };
    let none: &[PathBuf] = &[];
    let followed = [
        layer.diff(&mut Quiet).err(),
        layer.export(&mut again, holes, &mut Quiet).err(),
        layer.commit(none, false, true, &mut Quiet).err(),
    ];
    seen.errors += followed.iter().flatten().count();
    Some(seen)
}
