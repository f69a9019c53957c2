//! Where the sources of mounts come from: the view as it was before the mount.

use std::cell::RefCell;
use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::sync::Arc;

use nix::errno::Errno;
use veduta_api::{
    BlockDevice, Disk, File, Filesystem, Geometry, Ino, Kind, Link, MountError, OpenFlags, Result,
    SecretSource, Seek, World,
};
use veduta_disk::BlockDrive;

use crate::call::Call;
use crate::mounts::{Service, shown};
use crate::node::{Node, guarded};
use crate::walk::{Limits, Place, Start};

/// The world of a mount in a view.
pub(crate) struct ViewWorld<'a> {
    /// The call that mounts.
    pub call: &'a Call<'a>,
    /// Where relative sources start.
    pub start: Start,
    /// The host's sources.
    pub host: Box<dyn World>,
    /// Where the mount is to be.
    pub target: Option<OsString>,
    /// Mounts whose objects were used: they are busy as long as the new one is there.
    pub uses: RefCell<Vec<Arc<Node>>>,
}

impl ViewWorld<'_> {
    fn find(&self, source: &OsStr) -> Result<Option<Place>, MountError> {
        let walker = self.call.walker(Limits::default());
        match walker.walk(&self.start, source.as_bytes(), true) {
            Ok(found) => Ok(found.place),
            Err(Errno::ENOENT) => Ok(None),
            Err(errno) => Err(MountError::system(errno, errno.desc())),
        }
    }

    fn place(&self, source: &OsStr) -> Result<Place, MountError> {
        let none = || MountError::system(Errno::ENOENT, "there is no such file or directory");
        self.find(source)?.ok_or_else(none)
    }

    pub(crate) fn disk_at(&self, place: &Place, writable: bool) -> Result<Disk, MountError> {
        let Place::Tree(node, attr) = place else {
            return self.host.disk(OsStr::from_bytes(shown(&place.path())), writable);
        };
        let path = String::from_utf8_lossy(&node.path()).into_owned();
        let writable = writable && !node.mount.is_read_only();
        let cannot =
            |errno: Errno| MountError::system(errno, format!("it cannot be opened: {}", errno.desc()));
        self.uses.borrow_mut().push(Arc::clone(node));
        match (&node.mount.service, attr.kind) {
            (Service::Disk(drive), _) => {
                let disk = drive.held_disk((node.ino.0 - 1) as u32).map_err(cannot)?;
                Ok(if writable { disk } else { disk.read_only() })
            }
            (Service::Loops(loops), _) => loops.disk(node.ino).map_err(cannot),
            (Service::Tree, Kind::File) => {
                let flags = if writable { OpenFlags::READ_WRITE } else { OpenFlags::READ };
                let file = guarded(|| node.tree().open(node.ino, flags)).map_err(cannot)?;
                let device = FileDisk { node: Arc::clone(node), file, size: attr.size, writable };
                Ok(Disk::new(Arc::new(device), path))
            }
            _ => Err(MountError::system(Errno::ENOTBLK, "it is neither a disk image nor a block device")),
        }
    }
}

impl World for ViewWorld<'_> {
    fn disk(&self, source: &OsStr, writable: bool) -> Result<Disk, MountError> {
        if let Some(place) = self.find(source)? {
            return self.disk_at(&place, writable);
        }
        let numbered = split_number(source.as_bytes());
        let Some((path, number)) = numbered else {
            return Err(MountError::system(Errno::ENOENT, "there is no such file or directory"));
        };
        match self.place(OsStr::from_bytes(path))? {
            Place::Host(path) => {
                let path = [shown(&path), b"#", number.to_string().as_bytes()].concat();
                self.host.disk(OsStr::from_bytes(&path), writable)
            }
            place => {
                let whole = self.disk_at(&place, writable)?;
                self.call.view.catalogue.partition(&whole, number)
            }
        }
    }

    fn tree(&self, source: &OsStr) -> Result<(Arc<dyn Filesystem>, Ino), MountError> {
        match self.place(source)? {
            Place::Host(path) => self.host.tree(OsStr::from_bytes(shown(&path))),
            Place::Tree(node, attr) if attr.kind == Kind::Directory => {
                self.uses.borrow_mut().push(Arc::clone(&node));
                self.call.view.stand_ins.planes.leave(&node.mount);
                Ok((Arc::clone(&node.mount.tree), node.ino))
            }
            Place::Tree(..) => {
                Err(MountError::system(Errno::ENOTDIR, "it is not a directory, and a directory is wanted"))
            }
        }
    }

    fn mount_point(&self) -> Option<&OsStr> {
        self.target.as_deref()
    }

    fn shows_real_numbers(&self) -> bool {
        true
    }

    /// The shim leaves `fstat(2)` to us where a tree has told that an object differs, and everywhere if one that could does not tell.
    fn puts_numbers_right(&self) -> bool {
        true
    }

    fn link(&self, source: &OsStr) -> Result<Arc<dyn Link>, MountError> {
        self.host.link(source)
    }

    fn secret(&self, prompt: &str) -> Result<Vec<u8>, MountError> {
        self.host.secret(prompt)
    }

    /// A file as the view has it, which may be a pipe of the process that mounts. A program would be run outside of the view, so none is, unless
    /// it was named outside: by who started the view, before there was a process in it.
    fn secret_from(&self, source: SecretSource<'_>) -> Result<Vec<u8>, MountError> {
        let path = match source {
            SecretSource::File(path) => path,
            SecretSource::Program(_) if self.call.task.0 == nix::unistd::Pid::this() => {
                return self.host.secret_from(source);
            }
            SecretSource::Program(_) => {
                return Err(MountError::unsupported(
                    "a program that a mount in a view names would be run outside of the view, so it is not run: \
                     bash runs it inside with passfile=<(COMMAND), and without either the password is asked for on the terminal",
                ));
            }
        };
        match self.place(path)? {
            Place::Host(path) => self.host.secret_from(SecretSource::File(OsStr::from_bytes(shown(&path)))),
            _ => Err(MountError::unsupported("the file with the password is on a mount of the view")),
        }
    }
}

/// Splits `disk.img#2`.
fn split_number(source: &[u8]) -> Option<(&[u8], u32)> {
    let at = source.iter().rposition(|byte| *byte == b'#')?;
    let digits = std::str::from_utf8(&source[at + 1..]).ok()?;
    let is_number = digits.bytes().all(|digit| digit.is_ascii_digit());
    Some((&source[..at], digits.parse().ok().filter(|_| is_number)?))
}

/// A file of a virtual tree, as a disk.
struct FileDisk {
    node: Arc<Node>,
    file: Arc<dyn File>,
    size: u64,
    writable: bool,
}

impl BlockDevice for FileDisk {
    fn geometry(&self) -> Geometry {
        Geometry { read_only: !self.writable, ..Geometry::of_size(self.size) }
    }

    fn read_at(&self, mut buf: &mut [u8], mut offset: u64) -> Result<()> {
        while !buf.is_empty() {
            let got = self.file.read_at(buf, offset)?;
            if got == 0 {
                return Err(Errno::EIO);
            }
            buf = &mut buf[got..];
            offset += got as u64;
        }
        Ok(())
    }

    fn write_at(&self, mut buf: &[u8], mut offset: u64) -> Result<()> {
        while !buf.is_empty() {
            let done = self.file.write_at(buf, offset)?;
            if done == 0 {
                return Err(Errno::ENOSPC);
            }
            if let Some(Some(plane)) = self.node.mount.plane.get() {
                plane.written(self.node.ino, offset, done as u64);
            }
            buf = &buf[done..];
            offset += done as u64;
        }
        Ok(())
    }

    fn flush(&self) -> Result<()> {
        self.file.sync(true)
    }

    fn discard(&self, offset: u64, len: u64) -> Result<()> {
        self.file.allocate(veduta_api::Allocate::PunchHole, offset, len)
    }

    fn next_data(&self, offset: u64) -> Result<Option<std::ops::Range<u64>>> {
        let start = match self.file.seek(Seek::Data, offset) {
            Err(Errno::ENXIO) => return Ok(None),
            Err(Errno::EOPNOTSUPP) => return Ok((offset < self.size).then_some(offset..self.size)),
            start => start?,
        };
        let end = self.file.seek(Seek::Hole, start).unwrap_or(self.size);
        Ok(Some(start..end.max(start + 1)))
    }
}

/// A file or directory of the host as a tree and a node of it, for binds.
pub(crate) fn host_tree(path: &[u8]) -> Result<(Arc<dyn Filesystem>, Ino), MountError> {
    let cannot = |errno: Errno| MountError::system(errno, format!("it cannot be opened: {}", errno.desc()));
    let real = Path::new(OsStr::from_bytes(shown(path)));
    let data = std::fs::symlink_metadata(real).map_err(|error| cannot(crate::standin::errno(error)))?;
    let open = |path: &Path| veduta_tree::hostdir::HostDir::open(path).map_err(cannot);
    if data.is_dir() {
        return Ok((Arc::new(open(real)?), Ino::ROOT));
    }
    let (parent, name) = crate::mounts::split(path);
    let tree = open(Path::new(OsStr::from_bytes(shown(parent))))?;
    // The reference is never given back: the node stays as long as the mount.
    let entry = tree.lookup(Ino::ROOT, OsStr::from_bytes(name)).map_err(cannot)?;
    Ok((Arc::new(tree), entry.ino))
}

/// A disk and its partitions as a tree: the root is the disk's device node, and partition N is a node called N in it.
pub(crate) struct DiskTree {
    /// The disk.
    pub drive: Arc<BlockDrive>,
    /// Device numbers: the disk's, and the partitions' behind.
    pub device: veduta_api::Device,
    /// Permission bits.
    pub perm: veduta_api::Perm,
    /// Owner and group.
    pub owner: (u32, u32),
    /// When it was mounted.
    pub time: veduta_api::Timestamp,
}

impl Filesystem for DiskTree {
    fn lookup(&self, parent: Ino, name: &OsStr) -> Result<veduta_api::Entry> {
        let number: u32 = name.to_str().and_then(|name| name.parse().ok()).ok_or(Errno::ENOENT)?;
        if parent != Ino::ROOT || number == 0 {
            return Err(Errno::ENOENT);
        }
        self.drive.disk(number).map_err(|_| Errno::ENOENT)?;
        let ino = Ino(1 + u64::from(number));
        Ok(veduta_api::Entry { ino, generation: 0, attr: self.getattr(ino)? })
    }

    fn getattr(&self, ino: Ino) -> Result<veduta_api::Attr> {
        let mut attr = veduta_api::Attr::new(ino.0, Kind::BlockDevice, self.perm);
        attr.rdev =
            veduta_api::Device { major: self.device.major, minor: self.device.minor + (ino.0 - 1) as u32 };
        (attr.uid, attr.gid) = self.owner;
        (attr.atime, attr.mtime, attr.ctime) = (self.time, self.time, self.time);
        Ok(attr)
    }

    fn readdir(&self, _: Ino, _: u64, _: &mut veduta_api::DirSink<'_>) -> Result<()> {
        Err(Errno::ENOTDIR)
    }

    fn open(&self, ino: Ino, flags: OpenFlags) -> Result<Arc<dyn File>> {
        Ok(self.drive.open((ino.0 - 1) as u32, flags)?)
    }

    fn setattr(&self, ino: Ino, changes: &veduta_api::SetAttr) -> Result<veduta_api::Attr> {
        // A device node has no size to cut: open(2) with O_TRUNC changes nothing.
        if changes.perm.is_some() || changes.uid.is_some() || changes.gid.is_some() {
            return Err(Errno::EPERM);
        }
        self.getattr(ino)
    }

    fn unmount(&self) -> Result<()> {
        let disk = self.drive.drive().whole();
        if disk.is_read_only() { Ok(()) } else { disk.flush() }
    }
}
