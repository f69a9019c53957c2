//! Changes a tree in whatever ways a host could, at random, within limits.
//!
//! What a damaged image makes of it is an error at worst: never a panic, never a call that does not end.

use std::ffi::{OsStr, OsString};
use std::ops::ControlFlow;
use std::sync::{Arc, RwLock};

use veduta_api::{
    Allocate, BlockDevice, Errno, Filesystem, Geometry, Ino, Kind, NewNode, OpenFlags, Perm, RenameFlags,
    Result, SetAttr, XattrMode,
};

use crate::Seen;

/// Nodes that are worked on, and operations.
const NODES: usize = 40;
const STEPS: u64 = 120;

/// A disk whose bytes are in memory.
pub struct WritableDisk(RwLock<Vec<u8>>);

impl WritableDisk {
    /// A disk of these bytes.
    pub fn new(bytes: &[u8]) -> Self {
        Self(RwLock::new(bytes.to_vec()))
    }
}

impl BlockDevice for WritableDisk {
    fn geometry(&self) -> Geometry {
        Geometry::of_size(self.0.read().map_or(0, |bytes| bytes.len() as u64))
    }
    fn read_at(&self, buf: &mut [u8], offset: u64) -> Result<()> {
        let bytes = self.0.read().map_err(|_| Errno::EIO)?;
        let start = usize::try_from(offset).map_err(|_| Errno::EIO)?;
        buf.copy_from_slice(bytes.get(start..).and_then(|rest| rest.get(..buf.len())).ok_or(Errno::EIO)?);
        Ok(())
    }
    fn write_at(&self, buf: &[u8], offset: u64) -> Result<()> {
        let mut bytes = self.0.write().map_err(|_| Errno::EIO)?;
        let start = usize::try_from(offset).map_err(|_| Errno::EIO)?;
        let place = bytes.get_mut(start..).and_then(|rest| rest.get_mut(..buf.len())).ok_or(Errno::EIO)?;
        place.copy_from_slice(buf);
        Ok(())
    }
}

/// Numbers from a seed (xorshift).
struct Random(u64);

impl Random {
    fn below(&mut self, limit: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 11) % limit.max(1)
    }

    fn pick<T: Clone>(&mut self, from: &[T]) -> Option<T> {
        from.get(self.below(from.len() as u64) as usize).cloned()
    }
}

/// A name, where it is, and what it leads to.
type Found = (Ino, OsString, Ino, Kind);

fn look(tree: &dyn Filesystem) -> Vec<Found> {
    let (mut found, mut dirs) = (Vec::new(), vec![Ino::ROOT]);
    while let Some(dir) = dirs.pop() {
        let mut names = Vec::new();
        let _ = tree.readdir(dir, 0, &mut |entry| {
            names.push(entry.name.to_owned());
            if names.len() > NODES { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
        });
        for name in names {
            if found.len() >= NODES {
                return found;
            }
            if let Ok(entry) = tree.lookup(dir, &name) {
                if entry.attr.kind == Kind::Directory && !found.iter().any(|(_, _, ino, _)| *ino == entry.ino)
                {
                    dirs.push(entry.ino);
                }
                found.push((dir, name, entry.ino, entry.attr.kind));
            }
        }
    }
    found
}

/// Changes a tree, and unmounts it.
///
/// # Panics
///
/// If the tree breaks the contract.
pub fn change(tree: &Arc<dyn Filesystem>, seed: u64) -> Seen {
    let found = look(&**tree);
    let mut seen = Seen { nodes: found.len(), errors: 0 };
    // All others are answers that a whole volume gives too.
    let is_damage = |errno: &Errno| {
        assert_ne!(*errno, Errno::ENOSYS, "a driver never returns ENOSYS");
        matches!(errno, Errno::EUCLEAN | Errno::EIO)
    };
    let work = |seed: u64| {
        let mut random = Random(seed | 1);
        let failed = (0..STEPS).filter_map(|_| step(&**tree, &found, &mut random).err());
        failed.filter(is_damage).count()
    };
    if seed & 0x10 == 0 {
        seen.errors += work(seed);
    } else {
        // Two at a time.
        std::thread::scope(|scope| {
            let other = scope.spawn(|| work(seed.rotate_left(7)));
            seen.errors += work(seed);
            seen.errors += other.join().expect("the other thread fails as this one would");
        });
    }
    let _ = tree.sync();
    let _ = tree.unmount();
    seen
}

fn step(tree: &dyn Filesystem, found: &[Found], random: &mut Random) -> Result<()> {
    let of = |kind| found.iter().filter(|found| found.3 == kind).cloned().collect::<Vec<_>>();
    let dirs: Vec<Ino> = of(Kind::Directory).iter().map(|found| found.2).chain([Ino::ROOT]).collect();
    let dir = random.pick(&dirs).unwrap_or(Ino::ROOT);
    let name = OsString::from(format!("a new name of some length {}", random.below(60)));
    let new = NewNode {
        kind: Kind::File,
        perm: Perm::from_mode(0o755),
        umask: 0o022,
        uid: 0,
        gid: 0,
        rdev: veduta_api::Device::default(),
    };
    let len = random.below(30_000) + 1;
    let bits = random.below(32);
    let offset = random.below(1 << bits);
    let any = random.pick(found);
    let file = random.pick(&of(Kind::File)).map(|found| found.2);
    let open = || tree.open(file.ok_or(Errno::ENOENT)?, OpenFlags::READ_WRITE);
    match random.below(14) {
        0..3 => {
            let (_, file) = tree.create(dir, &name, &new, OpenFlags::READ_WRITE)?;
            file.write_at(&vec![7; len as usize], 0).map(|_| ())
        }
        3 => tree.mkdir(dir, &name, &NewNode { kind: Kind::Directory, ..new }).map(|_| ()),
        4 => tree.symlink(dir, &name, OsStr::new(&"t".repeat(len as usize % 200 + 1)), &new).map(|_| ()),
        5 => open()?.write_at(&vec![9; len as usize], offset).map(|_| ()),
        6 => {
            let changes = SetAttr { size: Some(offset), ..SetAttr::default() };
            tree.setattr(file.ok_or(Errno::ENOENT)?, &changes).map(|_| ())
        }
        7 => {
            let how = [
                Allocate::PunchHole,
                Allocate::Extend,
                Allocate::ZeroRange { keep_size: true },
                Allocate::Collapse,
                Allocate::Insert,
            ];
            let how = random.pick(&how).unwrap_or(Allocate::PunchHole);
            open()?.allocate(how, offset & !4095, len.next_multiple_of(4096))
        }
        8..10 => {
            let (dir, name, _, kind) = any.ok_or(Errno::ENOENT)?;
            if kind == Kind::Directory { tree.rmdir(dir, &name) } else { tree.unlink(dir, &name) }
        }
        10 => {
            let (from, old, ..) = any.ok_or(Errno::ENOENT)?;
            let exchange = random.below(4) == 0;
            tree.rename(from, &old, dir, &name, RenameFlags { exchange, ..RenameFlags::default() })
        }
        11 => {
            let (_, _, ino, _) = any.ok_or(Errno::ENOENT)?;
            let value = vec![1; random.below(600) as usize];
            tree.setxattr(ino, OsStr::new("user.changed"), &value, XattrMode::Set)
        }
        12 => tree.link(file.ok_or(Errno::ENOENT)?, dir, &name).map(|_| ()),
        _ => tree.sync(),
    }
}
