//! A layer as an archive: the format of OCI image layers (image-spec, layer.md).
//!
//! A tar file of what was added or changed, whole; a name that went is an empty file `.wh.NAME`; a directory that shows nothing of
//! those below holds `.wh..wh..opq`. Attributes are `SCHILY.xattr.NAME` in pax headers, times have their nanoseconds there.
//!
//! Holes are written as zeros, or left out if that is asked for: the specification advises against it. Programs that read layers with Go's
//! library unpack such files whole; those that put layers together again (tar-split, in docker and containers/storage) then make another archive of
//! them. What is read in as zeros, blocks of 4 KiB, becomes a hole.
//!
//! What is imported is never believed: names are taken one by one from the root of the layer, through directories only, and the merged tree
//! does with them what a user could do.

use std::collections::{BTreeMap, HashMap};
use std::ffi::{OsStr, OsString};
use std::io::{self, Read, Write};
use std::ops::Range;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use tar::{EntryType, Header};
use veduta_api::{
    Attr, Device, Errno, File, Filesystem, Ino, Kind, MountError, NewNode, OpenFlags, Perm, Result, SetAttr,
    SetTime, Timestamp, XattrMode,
};

use super::diff::{Comparison, xattrs};
use super::sparse::{self, Told};
use super::{Change, Upper, Watch, What, walk};
use veduta_tree::memory::{self, Memory};

use crate::copyup::write_all;
use crate::setup::Setup;
use crate::tree::Tree;

const WHITEOUT: &[u8] = b".wh.";
const OPAQUE: &[u8] = b".wh..wh..opq";
const XATTR: &str = "SCHILY.xattr.";

/// Bytes; the longest name of a file or of an attribute, and the longest value of an attribute.
const NAME_MAX: usize = 255;
const VALUE_MAX: usize = 65_536;

/// Bytes; zeros of which a hole is made.
const HOLE: usize = 4096;

/// How files with holes are in an archive.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Holes {
    /// As zeros.
    #[default]
    Zeros,
    /// Left out, as GNU tar does it.
    Sparse,
}

impl Upper {
    /// Writes what was changed as an archive, and says how many entries it has.
    pub fn export(&self, to: &mut dyn Write, holes: Holes, watch: &mut dyn Watch) -> Result<u64, MountError> {
        self.wants_lower()?;
        let (merged, below) = (self.merged()?, self.below()?);
        let found = Comparison { upper: self, merged: &merged, below: &below }.run(watch)?;
        let changes: Vec<Change> = found.changes.into_values().collect();
        let mut archive = tar::Builder::new(to);
        let mut links = HashMap::new();
        let mut count = 0;
        // What is removed comes first, as the specification wants it.
        let (gone, rest): (Vec<&Change>, Vec<&Change>) =
            changes.iter().partition(|change| change.what == What::Deleted);
        for change in gone.into_iter().chain(rest) {
            watch.file();
            let written = match change.what {
                What::Deleted => append_whiteout(&mut archive, &change.path),
                _ => append(&mut archive, &merged, change, holes, &mut links, watch),
            };
            written.map_err(|error| failed(&change.path, &error))?;
            count += 1;
        }
        archive.finish().map_err(|error| failed(Path::new(""), &error))?;
        Ok(count)
    }

    /// Adds what an archive holds to the layer, and says how many entries that were. If it fails, what was done stays.
    pub fn import(&self, from: &mut dyn Read, watch: &mut dyn Watch) -> Result<u64, MountError> {
        let mut setup = self.setup();
        if setup.lower.is_empty() {
            // Deletions are noted whatever may lie below.
            let empty: Arc<dyn Filesystem> = Arc::new(Memory::new(&memory::Setup::default()));
            setup.lower.push(crate::Place { tree: empty, root: Ino::ROOT, name: OsString::new() });
        }
        let tree = Setup { no_record: self.lower.is_empty(), ..setup }.tree()?;
        let result = unpack(&tree, from, watch);
        let ended = tree.unmount();
        let count = result?;
        ended.map_err(|errno| MountError::system(errno, errno.desc().to_owned()))?;
        Ok(count)
    }
}

fn append_whiteout(archive: &mut tar::Builder<&mut dyn Write>, path: &Path) -> io::Result<()> {
    let mut name = OsString::from(OsStr::from_bytes(WHITEOUT));
    name.push(path.file_name().unwrap_or_default());
    let path = path.with_file_name(name);
    let mut header = Header::new_ustar();
    header.set_entry_type(EntryType::Regular);
    header.set_mode(0);
    header.set_size(0);
    header.set_mtime(0);
    header.set_uid(0);
    header.set_gid(0);
    append_data(archive, &mut header, BTreeMap::new(), &path, &mut io::empty())
}

/// Appends an entry; what does not fit into the header goes into one of its own before it.
fn append_data(
    archive: &mut tar::Builder<&mut dyn Write>,
    header: &mut Header,
    mut pax: BTreeMap<String, Vec<u8>>,
    path: &Path,
    data: &mut dyn Read,
) -> io::Result<()> {
    let is_directory = header.entry_type() == EntryType::Directory;
    let mut name = path.as_os_str().to_owned();
    if is_directory {
        name.push("/");
    }
    if header.set_path(&name).is_err() {
        pax.insert("path".into(), name.as_bytes().to_vec());
        header.set_path("long-name")?;
    }
    if !pax.is_empty() {
        let items: Vec<(&str, &[u8])> =
            pax.iter().map(|(key, value)| (key.as_str(), value.as_slice())).collect();
        archive.append_pax_extensions(items)?;
    }
    header.set_cksum();
    archive.append(header, data)
}

fn append(
    archive: &mut tar::Builder<&mut dyn Write>,
    merged: &Tree,
    change: &Change,
    holes: Holes,
    links: &mut HashMap<u64, PathBuf>,
    watch: &mut dyn Watch,
) -> io::Result<()> {
    let names: Vec<OsString> = change.path.iter().map(OsStr::to_owned).collect();
    let (last, above) = names.split_last().ok_or(io::ErrorKind::NotFound)?;
    let dir = walk(merged, Ino::ROOT, above).map_err(io_error)?.ok_or(io::ErrorKind::NotFound)?;
    let entry = merged.lookup(dir, last).map_err(io_error)?;
    let attr = entry.attr;
    let mut pax = BTreeMap::new();
    let mut header = header_of(&attr, &mut pax)?;
    let first = (attr.nlink > 1 && attr.kind != Kind::Directory).then(|| links.get(&attr.st_ino)).flatten();
    if let Some(first) = first {
        header.set_entry_type(EntryType::Link);
        header.set_size(0);
        set_target(&mut header, &mut pax, first.as_os_str())?;
        return append_data(archive, &mut header, pax, &change.path, &mut io::empty());
    }
    links.insert(attr.st_ino, change.path.clone());
    for (name, value) in xattrs(merged, entry.ino).map_err(io_error)? {
        match name.to_str() {
            Some(name) => drop(pax.insert(format!("{XATTR}{name}"), value)),
            None => tracing::warn!("an attribute of {:?} is left out: its name is no text", change.path),
        }
    }
    if attr.kind == Kind::Symlink {
        set_target(&mut header, &mut pax, &merged.readlink(entry.ino).map_err(io_error)?)?;
    }
    if attr.kind != Kind::File {
        return append_data(archive, &mut header, pax, &change.path, &mut io::empty());
    }
    let file = merged.open(entry.ino, OpenFlags::READ).map_err(io_error)?;
    let data = match holes {
        Holes::Sparse => Some(sparse::data_of(&*file, attr.size).map_err(io_error)?),
        Holes::Zeros => None,
    };
    let Some((ranges, true)) = data else {
        let whole = 0..attr.size;
        let mut reader = Reader { file, ranges: vec![whole], watch };
        return append_data(archive, &mut header, pax, &change.path, &mut reader);
    };
    let map = sparse::map(&ranges, attr.size);
    header.set_size(map.len() as u64 + ranges.iter().map(|range| range.end - range.start).sum::<u64>());
    for (key, value) in [
        ("major", b"1".to_vec()),
        ("minor", b"0".to_vec()),
        ("name", change.path.as_os_str().as_bytes().to_vec()),
        ("realsize", attr.size.to_string().into_bytes()),
    ] {
        pax.insert(format!("GNU.sparse.{key}"), value);
    }
    let name = change.path.file_name().unwrap_or_default();
    // What the file is called by who does not know this form.
    let path = change.path.with_file_name("GNUSparseFile.0").join(name);
    let reader = Reader { file, ranges: ranges.into_iter().rev().collect(), watch };
    append_data(archive, &mut header, pax, &path, &mut map.chain(reader))
}

fn set_target(header: &mut Header, pax: &mut BTreeMap<String, Vec<u8>>, target: &OsStr) -> io::Result<()> {
    if header.set_link_name_literal(target.as_bytes()).is_err() || target.len() > 100 {
        header.set_link_name_literal("long-target")?;
        pax.insert("linkpath".into(), target.as_bytes().to_vec());
    }
    Ok(())
}

fn header_of(attr: &Attr, pax: &mut BTreeMap<String, Vec<u8>>) -> io::Result<Header> {
    let mut header = Header::new_ustar();
    header.set_entry_type(match attr.kind {
        Kind::File => EntryType::Regular,
        Kind::Directory => EntryType::Directory,
        Kind::Symlink => EntryType::Symlink,
        Kind::CharDevice => EntryType::Char,
        Kind::BlockDevice => EntryType::Block,
        Kind::Fifo => EntryType::Fifo,
        Kind::Socket => {
            return Err(io::Error::new(io::ErrorKind::Unsupported, "a socket cannot be in an archive"));
        }
    });
    header.set_mode(attr.perm.bits());
    for (id, key) in [(attr.uid, "uid"), (attr.gid, "gid")] {
        let fits = id < 1 << 21;
        if !fits {
            pax.insert(key.into(), id.to_string().into_bytes());
        }
        let id = if fits { id.into() } else { 0 };
        if key == "uid" { header.set_uid(id) } else { header.set_gid(id) }
    }
    let size = if attr.kind == Kind::File { attr.size } else { 0 };
    header.set_size(size);
    header.set_mtime(u64::try_from(attr.mtime.seconds).unwrap_or(0));
    if attr.mtime.nanos > 0 || attr.mtime.seconds < 0 {
        pax.insert("mtime".into(), decimal(attr.mtime).into_bytes());
    }
    if matches!(attr.kind, Kind::CharDevice | Kind::BlockDevice) {
        header.set_device_major(attr.rdev.major)?;
        header.set_device_minor(attr.rdev.minor)?;
    }
    Ok(header)
}

fn decimal(time: Timestamp) -> String {
    if time.seconds < 0 && time.nanos > 0 {
        return format!("-{}.{:09}", -(time.seconds + 1), 1_000_000_000 - time.nanos);
    }
    format!("{}.{:09}", time.seconds, time.nanos)
}

/// A moment as pax writes it; `None` if it is none.
fn parse_decimal(text: &str) -> Option<Timestamp> {
    let (whole, part) = text.split_once('.').unwrap_or((text, ""));
    let seconds: i64 = whole.parse().ok()?;
    let digits: String = part.chars().chain(std::iter::repeat('0')).take(9).collect();
    let nanos: u32 = digits.parse().ok()?;
    if whole.starts_with('-') && nanos > 0 {
        return Some(Timestamp { seconds: seconds.checked_sub(1)?, nanos: 1_000_000_000 - nanos });
    }
    Some(Timestamp { seconds, nanos })
}

/// The content of a file, as long as it was said to be.
struct Reader<'a> {
    file: Arc<dyn File>,
    /// What is left, the last first.
    ranges: Vec<Range<u64>>,
    watch: &'a mut dyn Watch,
}

impl Read for Reader<'_> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        while self.ranges.last().is_some_and(Range::is_empty) {
            self.ranges.pop();
        }
        let Some(range) = self.ranges.last_mut() else { return Ok(0) };
        let want = buf.len().min(usize::try_from(range.end - range.start).unwrap_or(usize::MAX));
        if want == 0 {
            return Ok(0);
        }
        let read = self.file.read_at(&mut buf[..want], range.start).map_err(io_error)?;
        if read == 0 {
            return Err(io::Error::other("the file has become shorter while it was read"));
        }
        range.start += read as u64;
        self.watch.bytes(read as u64);
        Ok(read)
    }
}

// --- In

fn unpack(tree: &Tree, from: &mut dyn Read, watch: &mut dyn Watch) -> Result<u64, MountError> {
    let mut archive = tar::Archive::new(from);
    let wrong = |error: io::Error| MountError::corrupt(format!("the archive: {error}"));
    let mut times = Vec::new();
    let mut count = 0;
    for entry in archive.entries().map_err(wrong)? {
        let mut entry = entry.map_err(wrong)?;
        let named = entry.path_bytes().into_owned();
        let told = told_of_holes(&mut entry).map_err(|error| failed(&as_path(named.clone()), &error))?;
        let path = as_path(told.name().map_or(named, <[u8]>::to_vec));
        watch.file();
        unpack_one(tree, &mut entry, &path, told, &mut times, watch)
            .map_err(|error| failed(&path, &error))?;
        count += 1;
    }
    for (ino, changes) in times.into_iter().rev() {
        match tree.setattr(ino, &changes) {
            // It went with a later entry.
            Ok(_) | Err(Errno::ESTALE | Errno::ENOENT) => {}
            Err(errno) => return Err(MountError::system(errno, format!("the archive: {}", errno.desc()))),
        }
    }
    Ok(count)
}

fn as_path(name: Vec<u8>) -> PathBuf {
    OsString::from_vec(name).into()
}

fn told_of_holes(entry: &mut tar::Entry<'_, &mut dyn Read>) -> io::Result<Told> {
    let mut told = Told::default();
    for extension in entry.pax_extensions()?.into_iter().flatten() {
        let extension = extension?;
        told.take(extension.key_bytes(), extension.value_bytes())?;
    }
    Ok(told)
}

/// The names of a path of an archive. What leads out of the tree is an error.
fn safe_names(path: &Path) -> io::Result<Vec<OsString>> {
    let wrong = |what| io::Error::new(io::ErrorKind::InvalidData, what);
    let names = super::components(path).map_err(|_| wrong("the name leads out of the tree"))?;
    if names.iter().any(|name| name.as_bytes().contains(&0)) {
        return Err(wrong("there is a zero in the name"));
    }
    if names.iter().any(|name| name.len() > NAME_MAX) {
        return Err(io_error(Errno::ENAMETOOLONG));
    }
    Ok(names)
}

fn unpack_one(
    tree: &Tree,
    entry: &mut tar::Entry<'_, &mut dyn Read>,
    path: &Path,
    told: Told,
    times: &mut Vec<(Ino, SetAttr)>,
    watch: &mut dyn Watch,
) -> io::Result<()> {
    let names = safe_names(path)?;
    let kind = entry.header().entry_type();
    let Some((name, above)) = names.split_last() else { return Ok(()) };
    let dir = make_way(tree, above).map_err(io_error)?;
    if name.as_bytes() == OPAQUE {
        return clear(tree, dir).map_err(io_error);
    }
    if let Some(hidden) = name.as_bytes().strip_prefix(WHITEOUT) {
        let hidden = OsStr::from_bytes(hidden);
        if matches!(hidden.as_bytes(), b"" | b"." | b"..") {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "a deletion without a name"));
        }
        return remove_tree(tree, dir, hidden)
            .and_then(|()| tree.force_whiteout(&*tree.node(dir)?, hidden))
            .map_err(io_error);
    }
    let facts = Facts::read(entry)?;
    if kind == EntryType::Link {
        let target = entry.link_name_bytes().ok_or(io::ErrorKind::InvalidData)?.into_owned();
        let target = safe_names(Path::new(OsStr::from_bytes(&target)))?;
        return hard_link(tree, &target, dir, name).map_err(io_error);
    }
    let ino = match kind {
        EntryType::Directory => make_directory(tree, dir, name, &facts).map_err(io_error)?,
        EntryType::Symlink => {
            let target = entry.link_name_bytes().ok_or(io::ErrorKind::InvalidData)?.into_owned();
            if target.is_empty() || target.len() > 4095 || target.contains(&0) {
                return Err(io::Error::new(
                    io::ErrorKind::InvalidData,
                    "the target of a symbolic link is nonsense",
                ));
            }
            remove_tree(tree, dir, name).map_err(io_error)?;
            tree.symlink(dir, name, OsStr::from_bytes(&target), &facts.node(Kind::Symlink))
                .map_err(io_error)?
                .ino
        }
        EntryType::Regular | EntryType::Continuous | EntryType::GNUSparse => {
            remove_tree(tree, dir, name).map_err(io_error)?;
            let new = facts.node(Kind::File);
            let (made, file) = tree.create(dir, name, &new, OpenFlags::READ_WRITE).map_err(io_error)?;
            let size = match told.layout(entry)? {
                None => copy_in(entry, &*file, 0, watch)?,
                Some(layout) => {
                    for range in layout.ranges {
                        let mut part = entry.take(range.end - range.start);
                        if copy_in(&mut part, &*file, range.start, watch)? != range.end {
                            return Err(io::ErrorKind::UnexpectedEof.into());
                        }
                    }
                    layout.size
                }
            };
            // A hole at the end.
            let changes = SetAttr { size: Some(size), ..SetAttr::default() };
            if tree.getattr(made.ino).map_err(io_error)?.size < size {
                tree.setattr(made.ino, &changes).map_err(io_error)?;
            }
            file.flush().map_err(io_error)?;
            made.ino
        }
        EntryType::Char | EntryType::Block | EntryType::Fifo => {
            remove_tree(tree, dir, name).map_err(io_error)?;
            let kind = match kind {
                EntryType::Char => Kind::CharDevice,
                EntryType::Block => Kind::BlockDevice,
                _ => Kind::Fifo,
            };
            tree.mknod(dir, name, &facts.node(kind)).map_err(io_error)?.ino
        }
        other => {
            let message =
                format!("an entry of a type that layers do not have ({:?})", char::from(other.as_byte()));
            return Err(io::Error::new(io::ErrorKind::Unsupported, message));
        }
    };
    facts.apply(tree, ino, kind == EntryType::Symlink).map_err(io_error)?;
    let changes = SetAttr { mtime: Some(SetTime::To(facts.mtime)), ..SetAttr::default() };
    if kind == EntryType::Directory {
        times.push((ino, changes));
    } else {
        tree.setattr(ino, &changes).map_err(io_error)?;
    }
    Ok(())
}

/// Writes content to a new file from an offset on, and says where it ends. Blocks that are all zeros are left out, also at the end.
fn copy_in(from: &mut dyn Read, to: &dyn File, mut at: u64, watch: &mut dyn Watch) -> io::Result<u64> {
    let mut buf = vec![0; 1 << 16];
    loop {
        // So that the next piece begins with a block.
        let until = buf.len() - at as usize % HOLE;
        let read = fill(from, &mut buf[..until])?;
        for data in data_in(&buf[..read], at) {
            let offset = at + data.start as u64;
            write_all(to, &buf[data], offset).map_err(io_error)?;
        }
        at += read as u64;
        watch.bytes(read as u64);
        if read < until {
            return Ok(at);
        }
    }
}

/// Reads until the buffer is full, or there is no more.
fn fill(from: &mut dyn Read, buf: &mut [u8]) -> io::Result<usize> {
    let mut done = 0;
    while done < buf.len() {
        match from.read(&mut buf[done..]) {
            Ok(0) => break,
            Ok(read) => done += read,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(done)
}

/// What of bytes that belong at an offset is not in whole blocks of zeros.
fn data_in(bytes: &[u8], offset: u64) -> Vec<Range<usize>> {
    let mut found: Vec<Range<usize>> = Vec::new();
    let mut at = 0;
    while at < bytes.len() {
        let end = bytes.len().min(at + HOLE - (offset as usize + at) % HOLE);
        if end - at < HOLE || bytes[at..end].iter().any(|byte| *byte != 0) {
            match found.last_mut().filter(|last| last.end == at) {
                Some(last) => last.end = end,
                None => found.push(at..end),
            }
        }
        at = end;
    }
    found
}

/// What an entry says of a node.
struct Facts {
    uid: u32,
    gid: u32,
    perm: Perm,
    mtime: Timestamp,
    rdev: Device,
    xattrs: Vec<(OsString, Vec<u8>)>,
}

impl Facts {
    fn read(entry: &mut tar::Entry<'_, &mut dyn Read>) -> io::Result<Self> {
        let header = entry.header();
        let number =
            |number: u64| u32::try_from(number).map_err(|_| io::Error::from(io::ErrorKind::InvalidData));
        let seconds = i64::try_from(header.mtime()?).unwrap_or(i64::MAX);
        let is_device = matches!(header.entry_type(), EntryType::Char | EntryType::Block);
        let rdev = if is_device {
            Device { major: header.device_major()?.unwrap_or(0), minor: header.device_minor()?.unwrap_or(0) }
        } else {
            Device::default()
        };
        let mut facts = Self {
            uid: number(header.uid()?)?,
            gid: number(header.gid()?)?,
            perm: Perm::from_mode(header.mode()?),
            mtime: Timestamp::from_seconds(seconds),
            rdev,
            xattrs: Vec::new(),
        };
        let Some(extensions) = entry.pax_extensions()? else { return Ok(facts) };
        for extension in extensions {
            let extension = extension?;
            let (key, value) = (extension.key_bytes(), extension.value_bytes());
            let text = std::str::from_utf8(value).unwrap_or_default();
            match key {
                b"mtime" => facts.mtime = parse_decimal(text).unwrap_or(facts.mtime),
                b"uid" => facts.uid = text.parse().unwrap_or(facts.uid),
                b"gid" => facts.gid = text.parse().unwrap_or(facts.gid),
                key => {
                    if let Some(name) = key.strip_prefix(XATTR.as_bytes()) {
                        let is_name = !name.is_empty() && name.len() <= NAME_MAX && !name.contains(&0);
                        if !is_name || value.len() > VALUE_MAX {
                            let what = "an attribute whose name or value no file can have";
                            return Err(io::Error::new(io::ErrorKind::InvalidData, what));
                        }
                        facts.xattrs.push((OsStr::from_bytes(name).to_owned(), value.to_vec()));
                    }
                }
            }
        }
        Ok(facts)
    }

    fn node(&self, kind: Kind) -> NewNode {
        // Ours until its content is there; then it gets its owner.
        NewNode { rdev: self.rdev, ..crate::state::own(kind, self.perm.bits() & 0o777 | 0o600) }
    }

    fn apply(&self, tree: &Tree, ino: Ino, is_symlink: bool) -> Result<()> {
        let attr = tree.getattr(ino)?;
        if (attr.uid, attr.gid) != (self.uid, self.gid) {
            let owner = SetAttr { uid: Some(self.uid), gid: Some(self.gid), ..SetAttr::default() };
            match tree.setattr(ino, &owner) {
                Ok(_) => {}
                // As tar: what only root may give away stays the user's own.
                Err(Errno::EPERM) if tree.uid != 0 => {}
                Err(error) => return Err(error),
            }
        }
        for (name, value) in &self.xattrs {
            match tree.setxattr(ino, name, value, XattrMode::Set) {
                Ok(()) => {}
                Err(Errno::EOPNOTSUPP | Errno::EPERM) if !name.as_bytes().starts_with(b"user.") => {
                    tracing::warn!("the attribute {name:?} cannot be set here");
                }
                Err(error) => return Err(error),
            }
        }
        if !is_symlink {
            tree.setattr(ino, &SetAttr { perm: Some(self.perm), ..SetAttr::default() })?;
        }
        Ok(())
    }
}

/// The directory at a path; made where it is missing.
fn make_way(tree: &Tree, names: &[OsString]) -> Result<Ino> {
    let mut here = Ino::ROOT;
    for name in names {
        here = match tree.lookup(here, name) {
            Ok(entry) if entry.attr.kind == Kind::Directory => entry.ino,
            Ok(_) => return Err(Errno::ENOTDIR),
            Err(Errno::ENOENT) => tree.mkdir(here, name, &crate::state::own(Kind::Directory, 0o755))?.ino,
            Err(error) => return Err(error),
        };
    }
    Ok(here)
}

fn make_directory(tree: &Tree, dir: Ino, name: &OsStr, facts: &Facts) -> Result<Ino> {
    match tree.lookup(dir, name) {
        Ok(entry) if entry.attr.kind == Kind::Directory => return Ok(entry.ino),
        Ok(_) => tree.unlink(dir, name)?,
        Err(Errno::ENOENT) => {}
        Err(error) => return Err(error),
    }
    let perm = Perm::from_mode(facts.perm.bits() & 0o777 | 0o700);
    Ok(tree.mkdir(dir, name, &NewNode { perm, ..facts.node(Kind::Directory) })?.ino)
}

fn hard_link(tree: &Tree, target: &[OsString], dir: Ino, name: &OsStr) -> Result<()> {
    let (last, above) = target.split_last().ok_or(Errno::EINVAL)?;
    let from = walk(tree, Ino::ROOT, above)?.ok_or(Errno::ENOENT)?;
    let entry = tree.lookup(from, last)?;
    if entry.attr.kind == Kind::Directory {
        return Err(Errno::EPERM);
    }
    if tree.lookup(dir, name).is_ok_and(|there| there.ino == entry.ino) {
        return Ok(());
    }
    remove_tree(tree, dir, name)?;
    tree.link(entry.ino, dir, name).map(drop)
}

/// Removes everything in a directory.
fn clear(tree: &Tree, dir: Ino) -> Result<()> {
    super::raw_names(tree, dir)?.iter().try_for_each(|name| remove_tree(tree, dir, name))
}

/// Removes a name with all that is below, if it is there. Deepest first, without recursion.
fn remove_tree(tree: &Tree, dir: Ino, name: &OsStr) -> Result<()> {
    let mut stack = vec![(dir, name.to_owned(), false)];
    while let Some((dir, name, is_emptied)) = stack.pop() {
        if is_emptied {
            tree.rmdir(dir, &name)?;
            continue;
        }
        let entry = match tree.lookup(dir, &name) {
            Err(Errno::ENOENT) => continue,
            entry => entry?,
        };
        if entry.attr.kind != Kind::Directory {
            tree.unlink(dir, &name)?;
            continue;
        }
        stack.push((dir, name, true));
        stack.extend(super::raw_names(tree, entry.ino)?.into_iter().map(|name| (entry.ino, name, false)));
    }
    Ok(())
}

fn io_error(errno: Errno) -> io::Error {
    io::Error::from_raw_os_error(errno as i32)
}

fn failed(path: &Path, error: &io::Error) -> MountError {
    let errno = error.raw_os_error().map_or(Errno::EIO, Errno::from_raw);
    let message = format!(
        "{}: {}",
        path.display(),
        error.raw_os_error().map_or(error.to_string(), |_| errno.desc().into())
    );
    match error.kind() {
        io::ErrorKind::InvalidData => MountError::corrupt(message),
        _ => MountError::system(errno, message),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn moments_survive_the_archive() {
        for time in [
            Timestamp { seconds: 1, nanos: 5 },
            Timestamp { seconds: -1, nanos: 999_999_999 },
            Timestamp { seconds: -7, nanos: 0 },
            Timestamp { seconds: -7, nanos: 250_000_000 },
        ] {
            assert_eq!(parse_decimal(&decimal(time)), Some(time), "{}", decimal(time));
        }
        assert_eq!(parse_decimal("x"), None);
        assert_eq!(parse_decimal("12"), Some(Timestamp::from_seconds(12)));
    }

    #[test]
    fn only_whole_blocks_of_zeros_are_left_out() {
        let mut bytes = vec![0; 5 * HOLE];
        assert_eq!(data_in(&bytes, 0), []);
        bytes[2 * HOLE] = 1;
        let third = 2 * HOLE..3 * HOLE;
        assert_eq!(data_in(&bytes, HOLE as u64), [third]);
        // The first and the last are no whole blocks.
        assert_eq!(data_in(&bytes, 5), [0..HOLE - 5, 2 * HOLE - 5..3 * HOLE - 5, 5 * HOLE - 5..5 * HOLE]);
        bytes[0] = 1;
        bytes[5 * HOLE - 1] = 1;
        assert_eq!(data_in(&bytes, 0), [0..HOLE, 2 * HOLE..3 * HOLE, 4 * HOLE..5 * HOLE]);
        assert_eq!(data_in(&[], 7), []);
    }
}
