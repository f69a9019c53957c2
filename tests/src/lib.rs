//! What the tests of several crates share.
//!
//! [`exercise`] does with a tree whatever a host could do with it, bounded, and fails if the tree breaks the
//! contract. It is what every fuzz target runs: [`target`]. [`record`] compares a tree with what others say of it.

#![forbid(unsafe_code)]

pub mod change;
mod encrypted;
mod images;
mod layers;
pub mod record;
pub mod sftp;

use std::collections::{HashMap, VecDeque};
use std::ffi::{OsStr, OsString};
use std::ops::ControlFlow;
use std::os::unix::ffi::OsStrExt;
use std::sync::Arc;

use veduta_api::{
    BlockDevice, Device, Disk, Drive, Errno, Filesystem, Geometry, Ino, Kind, Link, Module, MountError,
    MountErrorKind, NewNode, Object, OpenFlags, Options, Perm, RenameFlags, Request, Result, Seek, SetAttr,
    World,
};

/// A disk whose bytes are in memory, not to be written.
pub struct MemoryDisk(pub Arc<[u8]>);

impl BlockDevice for MemoryDisk {
    fn geometry(&self) -> Geometry {
        Geometry { read_only: true, ..Geometry::of_size(self.0.len() as u64) }
    }
    fn read_at(&self, buf: &mut [u8], offset: u64) -> Result<()> {
        let start = usize::try_from(offset).map_err(|_| Errno::EIO)?;
        let source = self.0.get(start..).and_then(|rest| rest.get(..buf.len())).ok_or(Errno::EIO)?;
        buf.copy_from_slice(source);
        Ok(())
    }
}

/// A world that holds one disk, whatever it is called.
pub struct OneDisk(pub Disk);

impl OneDisk {
    /// The world of these bytes.
    pub fn of(bytes: &[u8]) -> Self {
        Self(Disk::new(Arc::new(MemoryDisk(bytes.into())), "memory"))
    }
}

impl World for OneDisk {
    fn disk(&self, _source: &OsStr, writable: bool) -> Result<Disk, MountError> {
        if writable && self.0.is_read_only() {
            return Err(MountError::system(Errno::EROFS, "read-only"));
        }
        Ok(self.0.clone())
    }
    fn tree(&self, _source: &OsStr) -> Result<(Arc<dyn Filesystem>, Ino), MountError> {
        Err(MountError::usage("there is no tree"))
    }
    fn link(&self, _source: &OsStr) -> Result<Arc<dyn Link>, MountError> {
        Err(MountError::usage("there is no link"))
    }
}

/// How much of a tree is looked at.
#[derive(Clone, Copy)]
pub struct Limits {
    /// Nodes.
    pub nodes: usize,
    /// Entries of one directory.
    pub entries: usize,
    /// Bytes read of each file, at its start and again at its end.
    pub bytes: usize,
}

impl Limits {
    /// So little that a fuzzer makes many runs.
    pub const FUZZ: Limits = Limits { nodes: 200, entries: 500, bytes: 1 << 16 };
}

/// What an exercise saw.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Seen {
    /// Nodes that were visited.
    pub nodes: usize,
    /// Operations that failed; no fault of the tree on a damaged image.
    pub errors: usize,
}

/// Does with a tree whatever a host could do, within limits.
///
/// # Panics
///
/// If the tree breaks the contract: an errno that drivers never return, a name that no host may see, a
/// listing that does not end, more bytes than were asked for.
#[expect(clippy::panic, reason = "a broken contract is what the caller wants to hear of")]
pub fn exercise(tree: &dyn Filesystem, limits: Limits) -> Seen {
    let mut seen = Seen::default();
    let mut known = HashMap::from([(Ino::ROOT, ())]);
    let mut waiting = VecDeque::from([Ino::ROOT]);
    let mut note = |errno: Errno| {
        assert_ne!(errno, Errno::ENOSYS, "a driver never returns ENOSYS");
        seen.errors += 1;
    };
    let _ = tree.facts();
    tree.statfs().map_or_else(&mut note, |_| ());
    let mut nodes = 0;
    while let Some(ino) = waiting.pop_front() {
        nodes += 1;
        if nodes > limits.nodes {
            break;
        }
        let attr = match tree.getattr(ino) {
            Ok(attr) => attr,
            Err(errno) => {
                note(errno);
                continue;
            }
        };
        match tree.listxattr(ino) {
            Ok(names) => {
                for name in names {
                    tree.getxattr(ino, &name).map_or_else(&mut note, |_| ());
                }
            }
            Err(errno) => note(errno),
        }
        match attr.kind {
            Kind::Symlink => tree.readlink(ino).map_or_else(&mut note, |_| ()),
            Kind::File => file(tree, ino, attr.size, limits, &mut note),
            Kind::Directory => {
                tree.parent(ino).map_or_else(&mut note, |_| ());
                let names = list(tree, ino, limits, &mut note);
                for (name, hint) in names {
                    let found = match hint {
                        Some(listed) => tree.entry(ino, &listed.borrow(&name)),
                        None => tree.lookup(ino, &name),
                    };
                    match found {
                        Ok(entry) => {
                            // Its reference is given back when it was visited.
                            if known.insert(entry.ino, ()).is_none() {
                                waiting.push_back(entry.ino);
                            } else {
                                tree.forget(entry.ino, 1);
                            }
                        }
                        Err(errno) => note(errno),
                    }
                    tree.lookup(ino, &name).map_or_else(&mut note, |entry| tree.forget(entry.ino, 1));
                }
                match tree.lookup(ino, OsStr::new("no such name, surely")) {
                    Err(Errno::ENOENT | Errno::EUCLEAN | Errno::EIO | Errno::ENAMETOOLONG) => {}
                    Err(errno) => note(errno),
                    Ok(_) => panic!("a name that is not there was found"),
                }
            }
            _ => {}
        }
        if ino != Ino::ROOT {
            tree.forget(ino, 1);
        }
    }
    seen.nodes = nodes;
    seen
}

/// The hint of a listed entry, without its borrowed name.
struct Hint {
    ino: Option<Ino>,
    st_ino: u64,
    kind: Option<Kind>,
    next: u64,
}

impl Hint {
    fn borrow<'a>(&self, name: &'a OsStr) -> veduta_api::DirEntry<'a> {
        veduta_api::DirEntry { name, ino: self.ino, st_ino: self.st_ino, kind: self.kind, next: self.next }
    }
}

fn list(
    tree: &dyn Filesystem,
    ino: Ino,
    limits: Limits,
    note: &mut impl FnMut(Errno),
) -> Vec<(OsString, Option<Hint>)> {
    let mut names = Vec::new();
    let mut position = 0;
    // Small batches, so that listings are taken up again; each gives an entry or is the last.
    while names.len() < limits.entries {
        let before = names.len();
        let result = tree.readdir(ino, position, &mut |entry| {
            if names.len() - before == 7 {
                return ControlFlow::Break(());
            }
            let bytes = entry.name.as_bytes();
            assert!(!bytes.is_empty() && bytes != b"." && bytes != b"..", "a listing has no such name");
            assert!(!bytes.contains(&b'/') && !bytes.contains(&0), "a name holds neither slash nor NUL");
            assert!(entry.next >= 1 && entry.next <= 1 << 62, "positions lie between 1 and 2^62");
            position = entry.next;
            let hint = Hint { ino: entry.ino, st_ino: entry.st_ino, kind: entry.kind, next: entry.next };
            names.push((entry.name.to_owned(), Some(hint)));
            ControlFlow::Continue(())
        });
        if let Err(errno) = result {
            note(errno);
            break;
        }
        if names.len() == before {
            break;
        }
    }
    names
}

fn file(tree: &dyn Filesystem, ino: Ino, size: u64, limits: Limits, note: &mut impl FnMut(Errno)) {
    let file = match tree.open(ino, OpenFlags::READ) {
        Ok(file) => file,
        Err(errno) => return note(errno),
    };
    let mut buf = vec![0; limits.bytes];
    for offset in [0, size.saturating_sub(limits.bytes as u64 / 2), size, size.saturating_add(1), u64::MAX] {
        match file.read_at(&mut buf, offset) {
            Ok(len) => {
                assert!(len <= buf.len(), "no more than was asked for");
                assert!(offset < size || len == 0, "nothing is behind the end");
            }
            Err(errno) => note(errno),
        }
    }
    // A bounded walk over data and holes; each step goes forward.
    let mut offset = 0;
    for step in 0..64 {
        let what = if step % 2 == 0 { Seek::Data } else { Seek::Hole };
        match file.seek(what, offset) {
            Ok(next) => {
                assert!(next >= offset && next <= size, "a seek goes forward, and not behind the end");
                offset = next;
            }
            Err(Errno::ENXIO | Errno::EOPNOTSUPP) => break,
            Err(errno) => return note(errno),
        }
    }
}

/// The targets of the fuzzers, by name.
///
/// One that ends in `-write` changes what it finds; its seeds are those of the target without that.
pub const TARGETS: &[&str] = &[
    "encfs",
    "ext2",
    "ext2-write",
    "fat",
    "iso9660",
    "layer",
    "mbr",
    "nbd",
    "packed",
    "qcow2",
    "sftp",
    "sites",
    "vdi",
    "vhd",
    "vhdx",
    "viewfs",
    "vmdk",
];

/// One run of a target: probe, describe, mount and exercise whatever the bytes make of it. Says what was seen; `None` if
/// it could not be mounted.
///
/// # Panics
///
/// If the driver panics or breaks the contract, which is what a fuzzer looks for; or for a name that is no target.
#[expect(clippy::panic, reason = "a wrong target is a mistake in the fuzzer")]
pub fn target(name: &str, bytes: &[u8]) -> Option<Seen> {
    match name {
        "encfs" => encrypted::target(bytes),
        "ext2" => module(&veduta_ext2::Ext2, bytes, &["ro", "ro,noload"]),
        "ext2-write" => writer(&veduta_ext2::Ext2, bytes),
        "fat" => module(&veduta_fat::Fat, bytes, &["", "codepage=850,shortname=lower,iocharset=iso8859-1"]),
        "iso9660" => module(&veduta_iso9660::Iso9660, bytes, &["", "norock", "norock,nojoliet", "eltorito"]),
        "mbr" => module(&veduta_mbr::Mbr, bytes, &[""]),
        "nbd" => images::client(bytes),
        "packed" | "qcow2" | "vdi" | "vhd" | "vhdx" | "vmdk" => images::image(bytes),
        "viewfs" => layers::marks(bytes),
        "layer" => layers::archive(bytes),
        "sftp" => liar(bytes),
        "sites" => sites(bytes),
        other => panic!("no target is called {other:?}"),
    }
}

/// A library's call sites: what is changed is what was found there, and nothing else.
fn sites(bytes: &[u8]) -> Option<Seen> {
    let patched = veduta_trace::sites::patch(bytes, &|_| true).ok()?;
    let mut back = patched.old.to_vec();
    patched.apply(&mut back);
    for change in &patched.changes {
        assert_eq!(change.old.len(), change.new.len(), "a change has a length");
        let at = (change.address - patched.address) as usize;
        let place = &mut back[at..at + change.old.len()];
        assert_eq!(place, change.new, "changes do not overlap");
        place.copy_from_slice(&change.old);
    }
    assert!(back == *patched.old, "only sites are changed");
    Some(Seen { nodes: patched.sites.len(), errors: 0 })
}

fn module(module: &dyn Module, bytes: &[u8], option_lists: &[&str]) -> Option<Seen> {
    let world = OneDisk::of(bytes);
    let _ = module.probe(&world.0);
    let _ = module.describe(&world.0, Options::default());
    let mut seen = None;
    for list in option_lists {
        let mut options = Options::parse(list).unwrap_or_default();
        let _ = options.take_flag("ro");
        let mut request = Request { source: OsStr::new("memory"), options, read_only: true, world: &world };
        match module.mount(&mut request) {
            Ok(Object::Tree(tree)) => seen = Some(exercise(&*tree, Limits::FUZZ)),
            Ok(Object::Disk(drive)) => seen = Some(partitions(&*drive)),
            Ok(_) => {}
            Err(error) => {
                assert!(!error.message.is_empty(), "a failed mount says why");
            }
        }
    }
    seen
}

/// Does with a tree whose server lies what a host could do with it. The bytes are lies; see [`sftp`].
fn liar(bytes: &[u8]) -> Option<Seen> {
    let tree = sftp::tree(bytes, "timeout=1,idmap=name").ok()?;
    let seen = exercise(&*tree, Limits::FUZZ);
    let new = NewNode {
        kind: Kind::File,
        perm: Perm::from_mode(0o644),
        umask: 0o022,
        uid: 0,
        gid: 0,
        rdev: Device::default(),
    };
    if let Ok((entry, file)) = tree.create(Ino::ROOT, OsStr::new("a"), &new, OpenFlags::READ_WRITE) {
        let _ = file.write_at(&[7; 100_000], 5);
        let _ = tree.setattr(entry.ino, &SetAttr { size: Some(9), ..SetAttr::default() });
        let _ = file.read_at(&mut [0; 1000], 0);
        let _ = file.sync(false);
    }
    let _ = tree.mkdir(Ino::ROOT, OsStr::new("d"), &new);
    let _ = tree.rename(Ino::ROOT, OsStr::new("d"), Ino::ROOT, OsStr::new("e"), RenameFlags::default());
    let _ = tree.unlink(Ino::ROOT, OsStr::new("a"));
    let _ = tree.unmount();
    Some(seen)
}

/// Mounts a copy of the bytes to write, and changes it. The bytes decide what is done.
fn writer(module: &dyn Module, bytes: &[u8]) -> Option<Seen> {
    let disk = Disk::new(Arc::new(change::WritableDisk::new(bytes)), "memory");
    let world = OneDisk(disk);
    let options = Options::default();
    let mut request = Request { source: OsStr::new("memory"), options, read_only: false, world: &world };
    let tree = match module.mount(&mut request) {
        Ok(Object::Tree(tree)) => tree,
        // It can be read, and not written.
        Err(error) if error.kind == MountErrorKind::Unsupported => return Some(Seen { nodes: 1, errors: 0 }),
        _ => return None,
    };
    let seed = bytes.iter().fold(0xcbf2_9ce4_8422_2325, |hash: u64, byte| {
        (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3)
    });
    Some(change::change(&tree, seed))
}

fn partitions(drive: &dyn Drive) -> Seen {
    let table = drive.table();
    let partitions = table.map(|table| table.partitions).unwrap_or_default();
    let mut seen = Seen { nodes: partitions.len(), errors: 0 };
    for partition in &partitions {
        if let Ok(disk) = drive.partition(partition.number) {
            assert!(disk.size() <= drive.whole().size(), "a partition is no larger than its disk");
        } else {
            seen.errors += 1;
        }
    }
    seen
}
