//! A small shell with two backs: a tree, called as a host would, and the kernel on a real directory.
//!
//! A script is a list of commands between semicolons; it stops at the first error, whose name is the answer, else `ok`
//! or what the last command prints.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test says by a panic what is wrong")]
#![allow(dead_code, reason = "each test uses its part")]

use std::ffi::{OsStr, OsString};
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{DirBuilderExt, FileExt, FileTypeExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustix::fs::{AtFlags, CWD, FileType, Mode, RenameFlags as HostRename, XattrFlags};
use veduta_api::{
    Attr, Device, Errno, File, Filesystem, Ino, Kind, NewNode, OpenFlags, Perm, RenameFlags, Result, SetAttr,
    SetTime, XattrMode,
};
use veduta_tree::path::{Listed, PathAdapter, PathFilesystem};
use veduta_tree::walk::{Follow, Node, entries, read_all, resolve, resolve_parent};

pub(crate) fn me() -> (u32, u32) {
    let metadata = fs::metadata("/proc/self").unwrap();
    (metadata.uid(), metadata.gid())
}

pub(crate) fn new_node(kind: Kind, perm: u32) -> NewNode {
    let (uid, gid) = me();
    NewNode { kind, perm: Perm::from_mode(perm), umask: 0o022, uid, gid, rdev: Device::default() }
}

/// Runs a script on a tree.
pub(crate) fn run(tree: &dyn Filesystem, script: &str) -> String {
    answer(script, |command| in_tree(tree, command))
}

/// Runs a script by system calls in a directory.
pub(crate) fn run_kernel(root: &Path, script: &str) -> String {
    answer(script, |command| in_kernel(root, command))
}

fn answer(script: &str, mut run: impl FnMut(&[&str]) -> Result<String>) -> String {
    let mut last = "ok".to_owned();
    for command in script.split(';') {
        let words: Vec<&str> = command.split_whitespace().collect();
        match run(&words) {
            Ok(said) => last = if said.is_empty() { "ok".to_owned() } else { said },
            Err(error) => return format!("{error:?}"),
        }
    }
    last
}

fn in_tree(tree: &dyn Filesystem, command: &[&str]) -> Result<String> {
    let find = |path: &str, follow| resolve(tree, Path::new(path), follow);
    match *command {
        ["mkdir", path] => {
            let (dir, name) = resolve_parent(tree, Path::new(path))?;
            drop(Node::new(tree, tree.mkdir(dir.ino(), name, &new_node(Kind::Directory, 0o777))?));
        }
        ["touch", path] => touch(tree, path).map(drop)?,
        ["write", path, text] => {
            let file = touch(tree, path)?;
            assert_eq!(file.write_at(text.as_bytes(), 0)?, text.len());
        }
        ["cat", path] => {
            let node = find(path, Follow::Yes)?;
            if node.is_dir() {
                return Err(Errno::EISDIR);
            }
            return Ok(String::from_utf8_lossy(&read_all(tree, node.ino(), 1 << 20)?).into_owned());
        }
        ["mkfifo", path] => {
            let (dir, name) = resolve_parent(tree, Path::new(path))?;
            drop(Node::new(tree, tree.mknod(dir.ino(), name, &new_node(Kind::Fifo, 0o666))?));
        }
        ["ln-s", target, path] => {
            let (dir, name) = resolve_parent(tree, Path::new(path))?;
            let new = new_node(Kind::Symlink, 0o777);
            drop(Node::new(tree, tree.symlink(dir.ino(), name, OsStr::new(target), &new)?));
        }
        ["readlink", path] => {
            let node = find(path, Follow::No)?;
            return Ok(tree.readlink(node.ino())?.into_string().unwrap());
        }
        ["ln", from, to] => {
            let node = find(from, Follow::No)?;
            let (dir, name) = resolve_parent(tree, Path::new(to))?;
            if node.is_dir() {
                return Err(Errno::EPERM);
            }
            drop(Node::new(tree, tree.link(node.ino(), dir.ino(), name)?));
        }
        ["rm", path] => {
            let (dir, name) = resolve_parent(tree, Path::new(path))?;
            tree.unlink(dir.ino(), name)?;
        }
        ["rmdir", path] => {
            let (dir, name) = resolve_parent(tree, Path::new(path))?;
            tree.rmdir(dir.ino(), name)?;
        }
        [how @ ("mv" | "mv-n" | "mv-x"), from, to] => {
            let (dir, name) = resolve_parent(tree, Path::new(from))?;
            let (new_dir, new_name) = resolve_parent(tree, Path::new(to))?;
            let flags = RenameFlags { no_replace: how == "mv-n", exchange: how == "mv-x", whiteout: false };
            tree.rename(dir.ino(), name, new_dir.ino(), new_name, flags)?;
        }
        ["truncate", path, size] => {
            let node = find(path, Follow::Yes)?;
            if node.is_dir() {
                return Err(Errno::EISDIR);
            }
            tree.setattr(node.ino(), &SetAttr { size: size.parse().ok(), ..SetAttr::default() })?;
        }
        ["chmod", path, mode] => {
            let node = find(path, Follow::Yes)?;
            let perm = Perm::from_mode(u32::from_str_radix(mode, 8).unwrap());
            tree.setattr(node.ino(), &SetAttr { perm: Some(perm), ..SetAttr::default() })?;
        }
        [how @ ("setx" | "setx-c" | "setx-r"), path, name, value] => {
            let mode = match how {
                "setx-c" => XattrMode::Create,
                "setx-r" => XattrMode::Replace,
                _ => XattrMode::Set,
            };
            let node = find(path, Follow::Yes)?;
            tree.setxattr(node.ino(), OsStr::new(name), value.as_bytes(), mode)?;
        }
        ["getx", path, name] => {
            let node = find(path, Follow::Yes)?;
            return Ok(String::from_utf8(tree.getxattr(node.ino(), OsStr::new(name))?).unwrap());
        }
        ["rmx", path, name] => {
            let node = find(path, Follow::Yes)?;
            tree.removexattr(node.ino(), OsStr::new(name))?;
        }
        ["ls", path] => {
            let node = find(path, Follow::Yes)?;
            if !node.is_dir() {
                return Err(Errno::ENOTDIR);
            }
            let names: Result<Vec<_>> = entries(tree, node.ino())?.collect();
            return Ok(joined(names?.into_iter().map(|listed| listed.name).collect()));
        }
        ["stat", path] => {
            return Ok(shown(find(path, Follow::Yes)?.attr()));
        }
        ["lstat", path] => {
            return Ok(shown(find(path, Follow::No)?.attr()));
        }
        _ => panic!("{command:?}"),
    }
    Ok(String::new())
}

/// `open` with `O_CREAT`.
fn touch(tree: &dyn Filesystem, path: &str) -> Result<Arc<dyn File>> {
    match resolve(tree, Path::new(path), Follow::Yes) {
        Ok(node) if node.is_dir() => Err(Errno::EISDIR),
        Ok(node) => tree.open(node.ino(), OpenFlags { write: true, ..OpenFlags::default() }),
        Err(Errno::ENOENT) => {
            let (dir, name) = resolve_parent(tree, Path::new(path))?;
            let flags = OpenFlags { write: true, ..OpenFlags::default() };
            let (entry, file) = tree.create(dir.ino(), name, &new_node(Kind::File, 0o666), flags)?;
            drop(Node::new(tree, entry));
            Ok(file)
        }
        Err(error) => Err(error),
    }
}

fn shown(attr: &Attr) -> String {
    let size = if attr.kind == Kind::Directory { 0 } else { attr.size };
    format!("{}{:04o} {} {size}", attr.kind.letter(), attr.perm.bits(), attr.nlink)
}

fn joined(mut names: Vec<OsString>) -> String {
    names.sort();
    names.iter().map(|name| name.to_str().unwrap()).collect::<Vec<_>>().join(" ")
}

fn in_kernel(root: &Path, command: &[&str]) -> Result<String> {
    let at = |path: &str| PathBuf::from(format!("{}/{path}", root.display()));
    match *command {
        ["mkdir", path] => io(fs::DirBuilder::new().mode(0o755).create(at(path)))?,
        ["touch", path] => {
            let mut options = fs::OpenOptions::new();
            drop(io(options.write(true).create(true).truncate(false).mode(0o644).open(at(path)))?);
        }
        ["write", path, text] => {
            let file = io(fs::OpenOptions::new()
                .write(true)
                .create(true)
                .truncate(false)
                .mode(0o644)
                .open(at(path)))?;
            io(file.write_all_at(text.as_bytes(), 0))?;
        }
        ["cat", path] => return io(fs::read_to_string(at(path))),
        ["mkfifo", path] => {
            rx(rustix::fs::mknodat(CWD, at(path), FileType::Fifo, Mode::from_raw_mode(0o644), 0))?;
        }
        ["ln-s", target, path] => io(std::os::unix::fs::symlink(target, at(path)))?,
        ["readlink", path] => {
            return io(fs::read_link(at(path))).map(|target| target.into_os_string().into_string().unwrap());
        }
        ["ln", from, to] => io(fs::hard_link(at(from), at(to)))?,
        ["rm", path] => rx(rustix::fs::unlinkat(CWD, at(path), AtFlags::empty()))?,
        ["rmdir", path] => rx(rustix::fs::unlinkat(CWD, at(path), AtFlags::REMOVEDIR))?,
        [how @ ("mv" | "mv-n" | "mv-x"), from, to] => {
            let flags = match how {
                "mv-n" => HostRename::NOREPLACE,
                "mv-x" => HostRename::EXCHANGE,
                _ => HostRename::empty(),
            };
            rx(rustix::fs::renameat_with(CWD, at(from), CWD, at(to), flags))?;
        }
        ["truncate", path, size] => {
            let file = io(fs::OpenOptions::new().write(true).open(at(path)))?;
            io(file.set_len(size.parse().unwrap()))?;
        }
        ["chmod", path, mode] => {
            let mode = u32::from_str_radix(mode, 8).unwrap();
            io(fs::set_permissions(at(path), fs::Permissions::from_mode(mode)))?;
        }
        [how @ ("setx" | "setx-c" | "setx-r"), path, name, value] => {
            let flags = match how {
                "setx-c" => XattrFlags::CREATE,
                "setx-r" => XattrFlags::REPLACE,
                _ => XattrFlags::empty(),
            };
            rx(rustix::fs::setxattr(at(path), name, value.as_bytes(), flags))?;
        }
        ["getx", path, name] => {
            let mut value = [0; 100];
            let len = rx(rustix::fs::getxattr(at(path), name, &mut value[..]))?;
            return Ok(String::from_utf8(value[..len].to_vec()).unwrap());
        }
        ["rmx", path, name] => rx(rustix::fs::removexattr(at(path), name))?,
        ["ls", path] => {
            let names = io(fs::read_dir(at(path)))?.map(|entry| entry.unwrap().file_name());
            return Ok(joined(names.collect()));
        }
        ["stat", path] => return io(fs::metadata(at(path))).map(|metadata| shown(&attr_of(&metadata))),
        ["lstat", path] => {
            return io(fs::symlink_metadata(at(path))).map(|metadata| shown(&attr_of(&metadata)));
        }
        _ => panic!("{command:?}"),
    }
    Ok(String::new())
}

pub(crate) fn io<T>(result: std::io::Result<T>) -> Result<T> {
    result.map_err(|error| Errno::from_raw(error.raw_os_error().unwrap()))
}

pub(crate) fn rx<T>(result: rustix::io::Result<T>) -> Result<T> {
    result.map_err(|error| Errno::from_raw(error.raw_os_error()))
}

fn attr_of(metadata: &fs::Metadata) -> Attr {
    let mode = metadata.mode();
    let attr = Attr::new(metadata.ino(), Kind::from_mode(mode).unwrap(), Perm::from_mode(mode));
    let (nlink, size) = (metadata.nlink() as u32, metadata.size());
    Attr { nlink, size, uid: metadata.uid(), gid: metadata.gid(), ..attr }
}

/// A driver that thinks in paths: a directory of the host system, by the standard library.
pub(crate) struct PathHost(pub(crate) PathBuf);

pub(crate) struct PathFile(fs::File);

impl File for PathFile {
    fn read_at(&self, buf: &mut [u8], offset: u64) -> Result<usize> {
        io(self.0.read_at(buf, offset))
    }
    fn write_at(&self, buf: &[u8], offset: u64) -> Result<usize> {
        io(self.0.write_at(buf, offset))
    }
    fn sync(&self, _data_only: bool) -> Result<()> {
        io(self.0.sync_all())
    }
}

impl PathHost {
    fn at(&self, path: &Path) -> PathBuf {
        assert!(!path.is_absolute());
        self.0.join(path)
    }
}

fn options(flags: OpenFlags) -> fs::OpenOptions {
    let mut options = fs::OpenOptions::new();
    options.read(flags.read || !flags.write).write(flags.write);
    options
}

impl PathFilesystem for PathHost {
    type Handle = PathFile;

    fn getattr(&self, path: &Path) -> Result<Attr> {
        // The root is "", and a path that ends in a slash would follow a symbolic link.
        let at = if path.as_os_str().is_empty() { self.0.clone() } else { self.at(path) };
        io(fs::symlink_metadata(at)).map(|metadata| attr_of(&metadata))
    }
    fn list(&self, dir: &Path) -> Result<Vec<Listed>> {
        let entries = io(fs::read_dir(self.at(dir)))?;
        let listed = entries.map(|entry| {
            let entry = entry.unwrap();
            let kind = entry.file_type().unwrap();
            let kind = if kind.is_fifo() { Some(Kind::Fifo) } else { None };
            Listed { name: entry.file_name(), st_ino: 1, kind }
        });
        Ok(listed.collect())
    }
    fn open(&self, path: &Path, flags: OpenFlags) -> Result<PathFile> {
        io(options(flags).open(self.at(path))).map(PathFile)
    }
    fn readlink(&self, path: &Path) -> Result<OsString> {
        io(fs::read_link(self.at(path))).map(PathBuf::into_os_string)
    }
    fn handle_attr(&self, handle: &PathFile) -> Result<Attr> {
        io(handle.0.metadata()).map(|metadata| attr_of(&metadata))
    }
    fn handle_setattr(&self, handle: &PathFile, changes: &SetAttr) -> Result<()> {
        changes.size.map_or(Ok(()), |size| io(handle.0.set_len(size)))?;
        let perm = changes.perm.map(|perm| fs::Permissions::from_mode(perm.bits()));
        perm.map_or(Ok(()), |perm| io(handle.0.set_permissions(perm)))
    }
    fn setattr(&self, path: &Path, changes: &SetAttr) -> Result<()> {
        if let Some(size) = changes.size {
            io(fs::OpenOptions::new().write(true).open(self.at(path)).and_then(|file| file.set_len(size)))?;
        }
        if let Some(perm) = changes.perm {
            io(fs::set_permissions(self.at(path), fs::Permissions::from_mode(perm.bits())))?;
        }
        Ok(())
    }
    fn create(&self, path: &Path, new: &NewNode, flags: OpenFlags) -> Result<PathFile> {
        io(options(flags).create_new(true).mode(new.masked().bits()).open(self.at(path))).map(PathFile)
    }
    fn mknod(&self, path: &Path, new: &NewNode) -> Result<()> {
        let (kind, mode) =
            (FileType::from_raw_mode(new.kind.mode_bits()), Mode::from_raw_mode(new.masked().bits()));
        rx(rustix::fs::mknodat(CWD, self.at(path), kind, mode, 0))
    }
    fn mkdir(&self, path: &Path, new: &NewNode) -> Result<()> {
        io(fs::DirBuilder::new().mode(new.masked().bits()).create(self.at(path)))
    }
    fn symlink(&self, path: &Path, target: &OsStr, _new: &NewNode) -> Result<()> {
        io(std::os::unix::fs::symlink(target, self.at(path)))
    }
    fn link(&self, path: &Path, new_path: &Path) -> Result<()> {
        io(fs::hard_link(self.at(path), self.at(new_path)))
    }
    fn unlink(&self, path: &Path) -> Result<()> {
        rx(rustix::fs::unlinkat(CWD, self.at(path), AtFlags::empty()))
    }
    fn rmdir(&self, path: &Path) -> Result<()> {
        rx(rustix::fs::unlinkat(CWD, self.at(path), AtFlags::REMOVEDIR))
    }
    fn rename(&self, path: &Path, new_path: &Path, flags: RenameFlags) -> Result<()> {
        let mut how = HostRename::empty();
        how.set(HostRename::NOREPLACE, flags.no_replace);
        how.set(HostRename::EXCHANGE, flags.exchange);
        rx(rustix::fs::renameat_with(CWD, self.at(path), CWD, self.at(new_path), how))
    }
    fn getxattr(&self, path: &Path, name: &OsStr) -> Result<Vec<u8>> {
        let mut value = vec![0; 1000];
        let len = rx(rustix::fs::lgetxattr(self.at(path), name, &mut value[..]))?;
        Ok(value[..len].to_vec())
    }
    fn listxattr(&self, path: &Path) -> Result<Vec<OsString>> {
        let mut list = vec![0; 1000];
        let len = rx(rustix::fs::llistxattr(self.at(path), &mut list[..]))?;
        let names = list[..len].split(|byte| *byte == 0).filter(|name| !name.is_empty());
        Ok(names.map(|name| OsStr::from_bytes(name).to_owned()).collect())
    }
    fn setxattr(&self, path: &Path, name: &OsStr, value: &[u8], mode: XattrMode) -> Result<()> {
        let flags = match mode {
            XattrMode::Set => XattrFlags::empty(),
            XattrMode::Create => XattrFlags::CREATE,
            XattrMode::Replace => XattrFlags::REPLACE,
        };
        rx(rustix::fs::lsetxattr(self.at(path), name, value, flags))
    }
    fn removexattr(&self, path: &Path, name: &OsStr) -> Result<()> {
        rx(rustix::fs::lremovexattr(self.at(path), name))
    }
}

/// Every kind of tree that can be written, each empty, with what must outlive it.
pub(crate) fn trees() -> Vec<(&'static str, Box<dyn Filesystem>, tempfile::TempDir)> {
    let dirs = [(); 4].map(|()| tempfile::tempdir().unwrap());
    let [first, second, third, fourth] = dirs;
    for dir in [&second, &third, &fourth] {
        fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o755)).unwrap();
    }
    let host = veduta_tree::hostdir::HostDir::open(second.path()).unwrap();
    let narrow = veduta_tree::hostdir::HostDir::keeping(third.path(), 2).unwrap();
    let paths = PathAdapter::new(PathHost(fourth.path().to_owned()));
    vec![
        ("memory", Box::new(veduta_tree::memory::Memory::new(&veduta_tree::memory::Setup::default())), first),
        ("hostdir", Box::new(host), second),
        ("hostdir with two descriptors", Box::new(narrow), third),
        ("paths", Box::new(paths), fourth),
    ]
}

/// To the moment of the call, and one that is long ago.
pub(crate) fn times() -> (SetTime, SetTime) {
    (SetTime::Now, SetTime::To(veduta_api::Timestamp { seconds: -5, nanos: 123_000_000 }))
}

/// The node behind a path, with a reference that is never given back.
pub(crate) fn ino(tree: &dyn Filesystem, path: &str) -> Ino {
    let node = resolve(tree, Path::new(path), Follow::No).unwrap();
    let ino = node.ino();
    std::mem::forget(node);
    ino
}
