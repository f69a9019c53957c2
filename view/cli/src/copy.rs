//! `veduta cp`: copying out of an image without a mount.
//!
//! The image may be hostile, so nothing in it decides where we write: every name is created relative to the
//! open directory above it, a name that exists already is never followed if it is a symbolic link, and names
//! that could lead elsewhere are refused.
//!
//! Work is a stack of tasks, not a recursion: a directory's attributes are set by a task below those of
//! everything inside it.

use std::collections::{HashMap, HashSet};
use std::ffi::{OsStr, OsString};
use std::fs::File as HostFile;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::rc::Rc;
use std::sync::Arc;

use rustix::fs::{self as host, AtFlags, FileType, Mode, OFlags};
use rustix::io::Errno as HostErrno;
use veduta_api::{Attr, Errno, File, Filesystem, Ino, Kind, OpenFlags, Seek};
use veduta_tree::walk::{self, Follow};

use crate::args;
use crate::failure::{Failure, shown};
use crate::look::Images;
use crate::progress::Progress;
use crate::source;

/// Bytes read at a time.
const CHUNK: usize = 1 << 20;

/// `veduta cp`
pub(crate) fn run(args: &args::Cp) -> Result<(), Failure> {
    let Some((dest, sources)) = args.paths.split_last() else {
        return Err(Failure::usage("name what to copy, and where to"));
    };
    let dest = Path::new(dest);
    let into = dest.is_dir();
    if sources.len() > 1 && !into {
        return Err(Failure::usage(format!(
            "{}: several files can only go into a directory",
            dest.display()
        )));
    }
    let mut images = Images::default();
    let mut lost = Lost::default();
    for word in sources {
        let (image, path) = source::split(word);
        let tree = images.open(&image, &args.reading)?;
        let deep = args.recursive || args.archive;
        let node = walk::resolve(tree, Path::new(&path), if deep { Follow::No } else { Follow::Yes })
            .map_err(|errno| Failure::file(shown(word), errno))?;
        if node.attr().kind == Kind::Directory && !deep {
            return Err(Failure::usage(format!("{}: is a directory (-r copies it)", shown(word))));
        }
        let target = match (into, base_name(&path)) {
            (true, Some(name)) => dest.join(name),
            _ => dest.to_owned(),
        };
        let mut copier = Copier {
            tree,
            archive: args.archive,
            verbose: args.verbose,
            progress: Progress::new(),
            links: HashMap::new(),
            ancestors: HashSet::new(),
            lost: &mut lost,
            buf: vec![0; CHUNK],
        };
        copier.top(node, &target, &source::join(&image, &path))?;
    }
    lost.report()
}

/// The last component of a path; `None` for the root.
fn base_name(path: &OsStr) -> Option<&OsStr> {
    Path::new(path).file_name()
}

/// What could not be copied or kept: each kind is said once, with how often it happened.
#[derive(Default)]
struct Lost {
    kinds: Vec<(String, String, u64)>,
    files: u64,
}

impl Lost {
    /// Something about `path` could not be kept.
    fn note(&mut self, path: &OsStr, what: String) {
        match self.kinds.iter_mut().find(|(kind, _, _)| *kind == what) {
            Some((_, _, count)) => *count += 1,
            None => self.kinds.push((what, path.to_string_lossy().into_owned(), 1)),
        }
    }

    /// `path` itself could not be copied.
    fn skip(&mut self, path: &OsStr, why: &str) {
        eprintln!("veduta: {}: {why}", shown(path));
        self.files += 1;
    }

    fn report(self) -> Result<(), Failure> {
        for (what, first, count) in &self.kinds {
            let more = if *count > 1 { format!(" (and {} more)", count - 1) } else { String::new() };
            eprintln!("veduta: {first}{more}: {what}");
        }
        match self.files {
            0 => Ok(()),
            1 => Err(Failure::system("one file was not copied")),
            files => Err(Failure::system(format!("{files} files were not copied"))),
        }
    }
}

/// A directory of the host that is being filled.
struct Place {
    dir: OwnedFd,
}

/// Tasks hold the nodes that they need: a tree may forget the others.
enum Task<'a> {
    /// Copy an entry of a directory.
    Entry { parent: Rc<walk::Node<'a>>, listed: walk::Listed, place: Arc<Place>, path: OsString },
    /// Set the attributes of a directory whose content is done, and leave it.
    Leave { node: Rc<walk::Node<'a>>, place: Arc<Place>, path: OsString },
}

struct Copier<'a> {
    tree: &'a dyn Filesystem,
    archive: bool,
    verbose: bool,
    progress: Progress,
    /// Where the first name of a node with several went. The node is held, so that its number stays its own.
    links: HashMap<Ino, (walk::Node<'a>, Arc<Place>, OsString)>,
    /// Directories between the top and here: one that holds itself (a damaged image) is not copied again.
    ancestors: HashSet<Ino>,
    lost: &'a mut Lost,
    buf: Vec<u8>,
}

impl<'a> Copier<'a> {
    /// Copies what the user named to the path that the user named.
    fn top(&mut self, node: walk::Node<'a>, target: &Path, word: &OsStr) -> Result<(), Failure> {
        let failed =
            |error: &dyn std::fmt::Display| Failure::system(format!("{}: {error}", target.display()));
        if node.attr().kind != Kind::Directory {
            let (parent, name) = match (target.parent(), target.file_name()) {
                (Some(parent), Some(name)) => (parent, name),
                _ => return Err(Failure::usage(format!("{}: not a name for a file", target.display()))),
            };
            let parent = if parent.as_os_str().is_empty() { Path::new(".") } else { parent };
            let dir = HostFile::open(parent)
                .map_err(|error| Failure::system(format!("{}: {error}", parent.display())))?;
            let place = Arc::new(Place { dir: dir.into() });
            self.copy_node(node, name, &place, word);
            return Ok(());
        }
        match std::fs::create_dir(target) {
            Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => {}
            made => made.map_err(|error| failed(&error))?,
        }
        let dir = HostFile::open(target).map_err(|error| failed(&error))?;
        let place = Arc::new(Place { dir: dir.into() });
        let mut tasks = Vec::new();
        self.enter(&Rc::new(node), &place, word, &mut tasks);
        self.work(tasks);
        Ok(())
    }

    fn work(&mut self, mut tasks: Vec<Task<'a>>) {
        while let Some(task) = tasks.pop() {
            match task {
                Task::Leave { node, place, path } => {
                    self.ancestors.remove(&node.ino());
                    self.keep(node.ino(), node.attr(), place.dir.as_fd(), &path);
                }
                Task::Entry { parent, listed, place, path } => {
                    let node = match walk::entry(self.tree, parent.ino(), &listed) {
                        Ok(node) => node,
                        Err(errno) => {
                            self.lost.skip(&path, crate::failure::sentence(errno));
                            continue;
                        }
                    };
                    if node.is_dir() {
                        match self.make_directory(&place, &listed.name) {
                            Ok(below) if !self.ancestors.contains(&node.ino()) => {
                                self.enter(&Rc::new(node), &Arc::new(below), &path, &mut tasks);
                            }
                            Ok(_) => {
                                self.lost.skip(&path, "the directory holds itself: the image is damaged");
                            }
                            Err(errno) => self.lost.skip(&path, &errno.to_string()),
                        }
                    } else {
                        self.copy_node(node, &listed.name, &place, &path);
                    }
                }
            }
        }
    }

    /// Queues everything in a directory, and its own attributes behind that.
    fn enter(
        &mut self,
        node: &Rc<walk::Node<'a>>,
        place: &Arc<Place>,
        path: &OsStr,
        tasks: &mut Vec<Task<'a>>,
    ) {
        self.say(path);
        self.ancestors.insert(node.ino());
        tasks.push(Task::Leave { node: Rc::clone(node), place: Arc::clone(place), path: path.to_owned() });
        let first = tasks.len();
        match walk::entries(self.tree, node.ino()) {
            Ok(entries) => {
                for listed in entries {
                    match listed {
                        Ok(listed) if is_safe(&listed.name) => {
                            let path = source::below(path, &listed.name);
                            tasks.push(Task::Entry {
                                parent: Rc::clone(node),
                                listed,
                                place: Arc::clone(place),
                                path,
                            });
                        }
                        Ok(listed) => {
                            self.lost.skip(&source::below(path, &listed.name), "not a name for a file");
                        }
                        Err(errno) => self.lost.skip(path, crate::failure::sentence(errno)),
                    }
                }
            }
            Err(errno) => self.lost.skip(path, crate::failure::sentence(errno)),
        }
        // The last task is the next: turned round, the entries are copied in the order of the listing.
        tasks[first..].reverse();
    }

    /// Makes a directory, or takes the one that is there. A symbolic link there is not followed.
    fn make_directory(&self, place: &Place, name: &OsStr) -> Result<Place, HostErrno> {
        match host::mkdirat(&place.dir, name, Mode::RWXU) {
            Err(HostErrno::EXIST) => {}
            made => made?,
        }
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        Ok(Place { dir: host::openat(&place.dir, name, flags, Mode::empty())? })
    }

    /// Copies a node that is not a directory. What goes wrong is noted.
    fn copy_node(&mut self, node: walk::Node<'a>, name: &OsStr, place: &Arc<Place>, path: &OsStr) {
        self.say(path);
        let (ino, attr) = (node.ino(), *node.attr());
        if let (true, Some((_, first_place, first_name))) = (attr.nlink > 1, self.links.get(&ino)) {
            let _ = remove(place, name);
            let linked = host::linkat(&first_place.dir, first_name, &place.dir, name, AtFlags::empty());
            match linked {
                Ok(()) => return self.progress.file(),
                Err(errno) => self.lost.note(path, format!("hard link became a copy: {errno}")),
            }
        }
        match self.make_node(ino, &attr, name, place, path) {
            Ok(()) => {
                if attr.nlink > 1 {
                    self.links.insert(ino, (node, Arc::clone(place), name.to_owned()));
                }
                self.progress.file();
            }
            Err(why) => self.lost.skip(path, &why),
        }
    }

    fn make_node(
        &mut self,
        ino: Ino,
        attr: &Attr,
        name: &OsStr,
        place: &Place,
        path: &OsStr,
    ) -> Result<(), String> {
        let text = |errno: HostErrno| errno.to_string();
        match attr.kind {
            Kind::File => {
                remove(place, name).map_err(text)?;
                let flags =
                    OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
                let file = host::openat(&place.dir, name, flags, Mode::RUSR | Mode::WUSR).map_err(text)?;
                let file = HostFile::from(file);
                self.copy_content(ino, attr, &file)?;
                self.keep(ino, attr, file.as_fd(), path);
                // NFS tells of a full disk now.
                nix::unistd::close(file).map_err(|errno| errno.desc().to_owned())?;
            }
            Kind::Symlink => {
                let target =
                    self.tree.readlink(ino).map_err(|errno| crate::failure::sentence(errno).to_owned())?;
                remove(place, name).map_err(text)?;
                host::symlinkat(&*target, &place.dir, name).map_err(text)?;
                self.keep_at(ino, attr, place, name, path);
            }
            _ if !self.archive => {
                self.lost.note(path, format!("{} left out (-a copies it)", kind_name(attr.kind)));
            }
            _ => {
                remove(place, name).map_err(text)?;
                let device = host::makedev(attr.rdev.major, attr.rdev.minor);
                let kind = FileType::from_raw_mode(attr.kind.mode_bits());
                match host::mknodat(&place.dir, name, kind, Mode::RUSR | Mode::WUSR, device) {
                    Ok(()) => self.keep_at(ino, attr, place, name, path),
                    Err(errno) => self.lost.note(path, format!("{} not made: {errno}", kind_name(attr.kind))),
                }
            }
        }
        Ok(())
    }

    /// Copies what is data and leaves holes.
    fn copy_content(&mut self, ino: Ino, attr: &Attr, to: &HostFile) -> Result<(), String> {
        let text = |errno| crate::failure::sentence(errno).to_owned();
        let from = self.tree.open(ino, OpenFlags::READ).map_err(text)?;
        let mut offset = 0;
        while offset < attr.size {
            let Some((start, end)) = next_data(&*from, offset, attr.size).map_err(text)? else { break };
            offset = start;
            while offset < end {
                let want = usize::try_from(end - offset).unwrap_or(CHUNK).min(CHUNK);
                let buf = self.buf.get_mut(..want).unwrap_or_default();
                let len = from.read_at(buf, offset).map_err(text)?;
                if len == 0 {
                    return Err(format!("ends at byte {offset}, but should have {}", attr.size));
                }
                to.write_all_at(&buf[..len], offset).map_err(|error| error.to_string())?;
                offset += len as u64;
                self.progress.bytes(len as u64);
            }
        }
        to.set_len(attr.size).map_err(|error| error.to_string())
    }

    /// Keeps owner, attributes, mode and times of an open file or directory: in this order, since each may undo the next.
    fn keep(&mut self, ino: Ino, attr: &Attr, fd: impl AsFd, path: &OsStr) {
        let fd = fd.as_fd();
        let mut is_owner = true;
        if self.archive {
            let owner =
                host::fchown(fd, Some(host::Uid::from_raw(attr.uid)), Some(host::Gid::from_raw(attr.gid)));
            if let Err(errno) = owner {
                is_owner = false;
                self.lost.note(path, format!("owner not kept: {errno}"));
            }
            self.keep_xattrs(ino, path, |name, value| {
                host::fsetxattr(fd, name, value, host::XattrFlags::empty())
            });
        }
        // Set-id bits belong to the owner that they were given by.
        let mask = if self.archive && is_owner { 0o7777 } else { 0o777 };
        if let Err(errno) = host::fchmod(fd, Mode::from_raw_mode(attr.perm.bits() & mask)) {
            self.lost.note(path, format!("mode not kept: {errno}"));
        }
        if let Err(errno) = host::futimens(fd, &times(attr)) {
            self.lost.note(path, format!("times not kept: {errno}"));
        }
    }

    fn keep_xattrs(&mut self, ino: Ino, path: &OsStr, set: impl Fn(&OsStr, &[u8]) -> Result<(), HostErrno>) {
        let names = match self.tree.listxattr(ino) {
            Ok(names) => names,
            Err(errno) => {
                return self.lost.note(path, format!("extended attributes not read: {}", errno.desc()));
            }
        };
        for name in names {
            let shown = name.to_string_lossy();
            match self.tree.getxattr(ino, &name) {
                Ok(value) => {
                    if let Err(errno) = set(&name, &value) {
                        self.lost.note(path, format!("extended attribute {shown} not kept: {errno}"));
                    }
                }
                Err(errno) => {
                    self.lost.note(path, format!("extended attribute {shown} not read: {}", errno.desc()));
                }
            }
        }
    }

    /// As [`keep`](Self::keep), for what cannot be opened. The mode of a symbolic link is nobody's.
    fn keep_at(&mut self, ino: Ino, attr: &Attr, place: &Place, name: &OsStr, path: &OsStr) {
        let nofollow = AtFlags::SYMLINK_NOFOLLOW;
        if self.archive {
            let (uid, gid) = (host::Uid::from_raw(attr.uid), host::Gid::from_raw(attr.gid));
            if let Err(errno) = host::chownat(&place.dir, name, Some(uid), Some(gid), nofollow) {
                self.lost.note(path, format!("owner not kept: {errno}"));
            }
        }
        if self.archive {
            // By a path that leads through the open directory: what is at its end is not followed.
            let path_of = format!("/proc/self/fd/{}", place.dir.as_raw_fd());
            let at = Path::new(&path_of).join(name);
            self.keep_xattrs(ino, path, |name, value| {
                host::lsetxattr(&at, name, value, host::XattrFlags::empty())
            });
        }
        if attr.kind != Kind::Symlink {
            let mode = Mode::from_raw_mode(attr.perm.bits());
            if let Err(errno) = host::chmodat(&place.dir, name, mode, AtFlags::empty()) {
                self.lost.note(path, format!("mode not kept: {errno}"));
            }
        }
        if let Err(errno) = host::utimensat(&place.dir, name, &times(attr), nofollow) {
            self.lost.note(path, format!("times not kept: {errno}"));
        }
    }

    fn say(&self, path: &OsStr) {
        if self.verbose {
            println!("{}", crate::render::printable(path));
        }
    }
}

/// Takes away what stands at a name, unless it is a directory.
fn remove(place: &Place, name: &OsStr) -> Result<(), HostErrno> {
    match host::unlinkat(&place.dir, name, AtFlags::empty()) {
        Err(HostErrno::NOENT) => Ok(()),
        done => done,
    }
}

/// Whether a name leads to nothing but an entry of the directory. Drivers hand out no others; here it would write
/// elsewhere.
fn is_safe(name: &OsStr) -> bool {
    let bytes = name.as_bytes();
    !matches!(bytes, b"" | b"." | b"..") && !bytes.iter().any(|byte| matches!(byte, b'/' | 0))
}

/// The next stretch of data at or behind `offset`. A driver that knows of no holes has one stretch.
fn next_data(file: &dyn File, offset: u64, size: u64) -> Result<Option<(u64, u64)>, Errno> {
    let start = match file.seek(Seek::Data, offset) {
        Ok(start) => start,
        Err(Errno::ENXIO) => return Ok(None),
        Err(Errno::EOPNOTSUPP) => return Ok(Some((offset, size))),
        Err(errno) => return Err(errno),
    };
    let end = file.seek(Seek::Hole, start)?.min(size);
    // Progress: a stretch is never empty.
    if start < offset || end <= start { Err(Errno::EUCLEAN) } else { Ok(Some((start, end))) }
}

fn times(attr: &Attr) -> host::Timestamps {
    let spec =
        |time: veduta_api::Timestamp| host::Timespec { tv_sec: time.seconds, tv_nsec: time.nanos.into() };
    host::Timestamps { last_access: spec(attr.atime), last_modification: spec(attr.mtime) }
}

fn kind_name(kind: Kind) -> &'static str {
    match kind {
        Kind::File => "file",
        Kind::Directory => "directory",
        Kind::Symlink => "symbolic link",
        Kind::CharDevice => "character device",
        Kind::BlockDevice => "block device",
        Kind::Fifo => "fifo",
        Kind::Socket => "socket",
    }
}
