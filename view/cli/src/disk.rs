//! `veduta disk`: partitions listed, images made and converted, disks served.

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::Write;
use std::path::Path;
use std::sync::Arc;

use nix::sys::signal::{SigSet, Signal};
use veduta_api::{
    Disk, Errno, Filesystem, Ino, Link, MountError, Object, Options, Partition, Report, Request, Value, World,
};
use veduta_disk::{HostWorld, identify, lock_image};
use veduta_formats::{CREATABLE, FileStore, Files, Format, How, Named, Store};

use crate::args::{self, DiskCommand};
use crate::failure::Failure;
use crate::progress::Progress;
use crate::{modules, render, serve, source};

/// Bytes; what is read and written at once.
const PIECE: u64 = 2 << 20;

/// Does one of the commands.
pub(crate) fn run(args: &args::Disk) -> Result<(), Failure> {
    match &args.command {
        DiskCommand::List { options, json, source } => list(source, options, *json),
        DiskCommand::Create { format, backing, words } => create(format, backing.as_deref(), words),
        DiskCommand::Convert { to, options, source, dest } => convert(source, options, to, dest),
        DiskCommand::Serve { nbd, read_only, once, options, source } => {
            let disk = open(source, options, !read_only)?;
            serve::nbd(&disk, nbd, *once)
        }
    }
}

fn open(source: &OsStr, lists: &[String], writable: bool) -> Result<Disk, Failure> {
    let mut options = source::options(lists)?;
    let world = HostWorld::from_options(&mut options).map_err(|error| Failure::usage(error.0))?;
    options.check(HostWorld::OPTIONS).map_err(|error| Failure::usage(error.0))?;
    world.disk(source, writable).map_err(|error| Failure::mount(None, source, &error))
}

// --- list

fn list(source: &OsStr, options: &[String], json: bool) -> Result<(), Failure> {
    let disk = open(source, options, false)?;
    let failed = |error: MountError| Failure::mount(None, source, &error);
    let table = veduta_mbr::read_table(&disk, None).map_err(failed)?;
    let mut report = Report::new();
    report.put("source", source.to_string_lossy().as_ref()).put("size", Value::Bytes(disk.size()));
    let counted = table.as_ref().and_then(|table| table.report.find("sector_size").cloned());
    report.put("sector_size", counted.unwrap_or_else(|| disk.geometry().logical_sector.into()));
    match &table {
        Some(table) => {
            report.put("table", table.scheme);
            for key in ["disk_id", "warnings"] {
                if let Some(value) = table.report.find(key) {
                    report.put(key, value.clone());
                }
            }
            let rows = table.partitions.iter().map(|partition| partition_row(&disk, partition));
            report.put("partitions", rows.collect::<Vec<_>>());
        }
        None => {
            report.put("table", "none");
            let mut row = Report::new();
            row.put("start", 0_u64).put("size", Value::Bytes(disk.size()));
            add_volume(&mut row, &disk);
            report.put("partitions", vec![row]);
        }
    }
    let text = if json { format!("{:#}\n", render::json(&report)) } else { render::text(&report) };
    std::io::stdout().write_all(text.as_bytes()).map_err(|error| crate::output_failed(&error))
}

fn partition_row(disk: &Disk, partition: &Partition) -> Report {
    let mut row = Report::new();
    row.put("number", partition.number)
        .put("start", partition.offset)
        .put("size", Value::Bytes(partition.size));
    let kind = if partition.kind_name.is_empty() { &partition.kind } else { &partition.kind_name };
    row.put("type", kind.clone());
    if partition.bootable {
        row.put("bootable", true);
    }
    for (key, text) in [("name", &partition.name), ("uuid", &partition.uuid)] {
        if !text.is_empty() {
            row.put(key, text.clone());
        }
    }
    match veduta_mbr::slice(disk, partition) {
        Ok(part) => add_volume(&mut row, &part),
        Err(_) => {
            row.put("filesystem", "outside of the disk");
        }
    }
    row
}

/// What a disk holds: as blkid names it, and how much of it is used, if a module of ours can tell.
fn add_volume(row: &mut Report, disk: &Disk) {
    match identify(disk) {
        Ok(Some(volume)) => {
            row.put("filesystem", volume.kind);
            for (key, text) in [("label", volume.label), ("filesystem_uuid", volume.uuid)] {
                if !text.is_empty() {
                    row.put(key, text);
                }
            }
        }
        Ok(None) => return,
        Err(errno) => {
            row.put("filesystem", format!("cannot be read: {}", errno.desc()));
            return;
        }
    }
    if let Some(used) = used(disk) {
        row.put("used", Value::Bytes(used));
    }
}

fn used(disk: &Disk) -> Option<u64> {
    let module = modules::probe(disk).ok()??;
    let world = This(disk.clone());
    let source = OsStr::new(disk.name());
    let mut request = Request { source, options: Options::default(), read_only: true, world: &world };
    let Object::Tree(tree) = module.mount(&mut request).ok()? else { return None };
    let facts = tree.statfs().ok()?;
    facts.blocks.checked_sub(facts.blocks_free)?.checked_mul(facts.block_size.into())
}

/// A world of one disk.
struct This(Disk);

impl World for This {
    fn disk(&self, _source: &OsStr, _writable: bool) -> Result<Disk, MountError> {
        Ok(self.0.clone().read_only())
    }
    fn tree(&self, _source: &OsStr) -> Result<(Arc<dyn Filesystem>, Ino), MountError> {
        Err(MountError::usage("a directory is wanted"))
    }
    fn link(&self, _source: &OsStr) -> Result<Arc<dyn Link>, MountError> {
        Err(MountError::usage("a link is wanted"))
    }
}

// --- create

fn create(format: &str, backing: Option<&OsStr>, words: &[OsString]) -> Result<(), Failure> {
    let (size, path) = match (words, backing) {
        ([size, path], _) => (Some(size_of(size)?), path),
        ([path], Some(_)) => (None, path),
        _ => return Err(Failure::usage("a size and a file are wanted")),
    };
    let path = Path::new(path);
    let below = match backing {
        None => None,
        Some(name) => Some(look_below(path, name)?),
    };
    let size = match (size, &below) {
        (Some(size), _) => size,
        (None, Some((_, _, size))) => *size,
        (None, None) => return Err(Failure::usage("a size is wanted")),
    };
    let below = below.as_ref().map(|(name, format, _)| (&**name, *format));
    make(path, format, size, below, None)
}

fn size_of(word: &OsStr) -> Result<u64, Failure> {
    let mut options = Options::default();
    options.push("size", Some(&word.to_string_lossy()));
    match options.take_bytes("size") {
        Ok(Some(size)) => Ok(size),
        _ => Err(Failure::usage(format!("{}: a size is wanted, such as 64M or 20G", word.to_string_lossy()))),
    }
}

/// The name, format and size of the image below one that is to be made at `path`. A relative name counts from there, as in the image.
fn look_below(path: &Path, name: &OsStr) -> Result<(String, &'static str, u64), Failure> {
    let full = path.parent().unwrap_or(Path::new("")).join(name);
    let failed = |error: &MountError| Failure::mount(None, full.as_os_str(), error);
    let file = File::open(&full).map_err(|error| Failure::system(format!("{}: {error}", full.display())))?;
    let format = veduta_formats::recognise(&FileStore(file))
        .map_err(|errno| Failure::system(format!("{}: {}", full.display(), errno.desc())))?;
    if format.is_packed() {
        return Err(Failure::usage(format!(
            "{}: a compressed file cannot lie below an image",
            full.display()
        )));
    }
    let disk = HostWorld::default().disk(full.as_os_str(), false).map_err(|error| failed(&error))?;
    let name = name.to_str().ok_or_else(|| Failure::usage("the name of the image below must be UTF-8"))?;
    // As QEMU calls it.
    let format = if format == Format::Vhd { "vpc" } else { format.name() };
    Ok((name.to_owned(), format, disk.size()))
}

/// Writes to a new image.
type Fill<'a> = &'a dyn Fn(&Disk) -> Result<(), Failure>;

/// Makes an image under another name, fills it, and gives it its own: it is there when it is complete, and never in the place of another.
fn make(
    path: &Path,
    format: &str,
    size: u64,
    below: Option<(&str, &str)>,
    fill: Option<Fill<'_>>,
) -> Result<(), Failure> {
    if !CREATABLE.iter().any(|(name, _)| *name == format) {
        let names: Vec<&str> = CREATABLE.iter().map(|(name, _)| *name).collect();
        return Err(Failure::usage(format!("unknown format {format:?}; there are: {}", names.join(", "))));
    }
    let failed = |error: &std::io::Error| Failure::system(format!("{}: {error}", path.display()));
    let dir = path.parent().filter(|dir| !dir.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let file =
        tempfile::Builder::new().prefix(".veduta-").tempfile_in(dir).map_err(|error| failed(&error))?;
    remove_on_signal(file.path()).map_err(|errno| Failure::file(path.display(), errno))?;
    let open = file.reopen().map_err(|error| failed(&error))?;
    lock_image(&open, true).map_err(|error| Failure::mount(None, path.as_os_str(), &error))?;
    let store: Arc<dyn Store> = Arc::new(FileStore(open));
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let made = |error: MountError| Failure::mount(Some(format), path.as_os_str(), &error);
    veduta_formats::create(&*store, format, size, &name, below).map_err(made)?;
    if let Some(fill) = fill {
        let disk = empty_disk(&store, format, file.path()).map_err(made)?;
        fill(&disk)?;
        disk.flush().map_err(|errno| Failure::file(path.display(), errno))?;
    }
    store.flush().map_err(|errno| Failure::file(path.display(), errno))?;
    let mode = std::os::unix::fs::PermissionsExt::from_mode(0o666 & !umask());
    file.as_file().set_permissions(mode).map_err(|error| failed(&error))?;
    file.persist_noclobber(path).map(drop).map_err(|error| failed(&error.error))
}

/// Whoever ends the program in the middle finds no half of an image.
fn remove_on_signal(path: &Path) -> Result<(), Errno> {
    let signals = SigSet::from_iter([Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP]);
    signals.thread_block()?;
    let path = path.to_owned();
    std::thread::spawn(move || {
        if let Ok(signal) = signals.wait() {
            let _ = std::fs::remove_file(path);
            std::process::exit(128 + signal as i32);
        }
    });
    Ok(())
}

/// What the permissions of a new file are cut by. It can only be read by setting it, which is this process's own business.
fn umask() -> u32 {
    use nix::sys::stat::{Mode, umask};
    let mask = umask(Mode::empty());
    umask(mask);
    mask.bits()
}

/// A new image, with none below it, as a disk.
fn empty_disk(store: &Arc<dyn Store>, format: &str, path: &Path) -> Result<Disk, MountError> {
    let known = Format::named(format.strip_suffix("-fixed").unwrap_or(format));
    let how = How { writable: true, format: known, sector: None, name: "image" };
    match veduta_formats::open(store, &Nothing, how)? {
        Some(image) => Ok(image.disk),
        None => {
            let file = File::options().read(true).write(true).open(path);
            let raw =
                file.map_err(|error| errno(&error)).and_then(|file| veduta_disk::RawDisk::new(file, true));
            let raw = raw.map_err(|errno| MountError::system(errno, errno.desc()))?;
            Ok(Disk::new(Arc::new(raw), "image"))
        }
    }
}

fn errno(error: &std::io::Error) -> Errno {
    error.raw_os_error().map_or(Errno::EIO, Errno::from_raw)
}

/// A new image names no other files.
struct Nothing;

impl Files for Nothing {
    fn open(&self, _name: &str, _writable: bool) -> Result<Named, MountError> {
        Err(MountError::usage("a new image has none below it"))
    }
    fn scratch(&self) -> Result<Arc<dyn Store>, MountError> {
        Err(MountError::usage("nothing is unpacked here"))
    }
}

// --- convert

fn convert(source: &OsStr, options: &[String], to: &str, dest: &Path) -> Result<(), Failure> {
    let from = open(source, options, false)?;
    // Formats with sectors have whole ones.
    let size = if to == "raw" { from.size() } else { from.size().div_ceil(512) * 512 };
    make(dest, to, size, None, Some(&|disk| copy(&from, disk, source, dest)))
}

/// Copies what may be other than zeros.
fn copy(from: &Disk, to: &Disk, source: &OsStr, dest: &Path) -> Result<(), Failure> {
    let mut progress = Progress::of(from.size());
    let mut at = 0;
    let mut piece = vec![0; PIECE as usize];
    let of_source = |errno| Failure::file(source.to_string_lossy(), errno);
    while let Some(data) = from.next_data(at).map_err(of_source)? {
        progress.bytes(data.start - at);
        at = data.start;
        while at < data.end {
            let len = PIECE.min(data.end - at);
            let part = &mut piece[..len as usize];
            from.read_at(part, at).map_err(of_source)?;
            write_data(to, part, at).map_err(|errno| Failure::file(dest.display(), errno))?;
            at += len;
            progress.bytes(len);
        }
    }
    Ok(())
}

/// Writes what is not zeros, in steps of 64 KiB.
fn write_data(to: &Disk, piece: &[u8], at: u64) -> Result<(), Errno> {
    const STEP: usize = 64 << 10;
    let is_data = |part: &[u8]| part.iter().any(|byte| *byte != 0);
    let mut start = 0;
    while start < piece.len() {
        let mut end = start;
        while end < piece.len() && is_data(&piece[end..(end + STEP).min(piece.len())]) {
            end = (end + STEP).min(piece.len());
        }
        if end > start {
            to.write_at(&piece[start..end], at + start as u64)?;
        }
        start = end + STEP;
    }
    Ok(())
}
