//! The world of a program outside a view: sources are files and devices of the host system.

use std::ffi::OsStr;
use std::fs::{File, Metadata};
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use nix::unistd::{Uid, User, geteuid};
use parking_lot::Mutex;
use veduta_api::{
    Disk, Errno, Filesystem, Ino, Link, MountError, OptionSpec, Options, OptionsError, PartitionTable,
    Report, SecretSource, World,
};
use veduta_formats::{FileStore, Files, Format, How, Named, Store, snapshot};
use veduta_mbr::{read_hybrid_table, read_table, slice, take_sector};
use veduta_tree::hostdir::HostDir;

use crate::lock::check_unlocked;
use crate::{RawDisk, errno, foreign_format, lock_image};

/// Sources as the host system has them, with the options that choose a part of a disk.
#[derive(Clone, Debug, Default)]
pub struct HostWorld {
    /// Bytes.
    offset: u64,
    /// Bytes.
    size_limit: Option<u64>,
    /// Bytes.
    sector: Option<u32>,
    partition: Option<u32>,
    format: Option<Format>,
    /// Whether what is written is thrown away.
    snapshot: bool,
    locks: Locks,
}

/// The locks of the images that were opened to be written.
#[derive(Clone, Debug, Default)]
struct Locks(Arc<Mutex<Vec<OwnedFd>>>);

impl Locks {
    fn take(&self, image: &File, writable: bool) -> Result<(), MountError> {
        lock_image(image, writable)?;
        // A copy of the descriptor has the same lock.
        if let Some(copy) = image.try_clone().ok().filter(|_| writable) {
            self.0.lock().push(copy.into());
        }
        Ok(())
    }

    fn leave(&self) {
        for lock in self.0.lock().drain(..) {
            if let Err(error) = veduta_tree::lock::leave(&lock) {
                tracing::debug!("nobody is told that the image will be free: {}", error.desc());
            }
        }
    }
}

/// What an image names is found in its own directory.
struct Beside {
    dir: PathBuf,
    locks: Locks,
}

impl Files for Beside {
    fn open(&self, name: &str, writable: bool) -> Result<Named, MountError> {
        let file_name = name.strip_prefix("file:").unwrap_or(name);
        if file_name.starts_with("json:") || file_name.contains("://") || file_name.starts_with("nbd:") {
            return Err(MountError::unsupported("it is named in a way that only QEMU understands"));
        }
        let path = self.dir.join(file_name);
        let (file, may_write) = open(&path, writable)?;
        self.locks.take(&file, may_write)?;
        let dir = path.parent().unwrap_or(Path::new("")).to_owned();
        Ok((Arc::new(FileStore(file)), Arc::new(Beside { dir, locks: self.locks.clone() })))
    }

    fn scratch(&self) -> Result<Arc<dyn Store>, MountError> {
        scratch()
    }
}

/// A file without a name, in the directory that TMPDIR names or in /tmp.
fn scratch() -> Result<Arc<dyn Store>, MountError> {
    let file = tempfile::tempfile().map_err(|error| {
        MountError::system(errno(&error), format!("there can be no scratch file: {error}"))
    })?;
    Ok(Arc::new(FileStore(file)))
}

impl HostWorld {
    /// The options that [`from_options`](Self::from_options) takes.
    pub const OPTIONS: &[OptionSpec] = &[
        OptionSpec::with_value("offset", "BYTES", "Where in the image the disk starts; K, M, G may follow."),
        OptionSpec::with_value(
            "sizelimit",
            "BYTES",
            "How long the disk is; by default it goes to the end of the image.",
        ),
        OptionSpec::with_value("partition", "N", "Take partition N of the disk, as SOURCE#N does."),
        OptionSpec::with_value("part", "N", "The same in short."),
        OptionSpec::with_value(
            "format",
            "FORMAT",
            "What the image is, instead of what its content says: raw, qcow2, vdi, vhd, vhdx, vmdk, gzip, xz or zstd.",
        ),
        OptionSpec::flag("snapshot", "Throw away at the end what is written; the image stays as it is."),
        OptionSpec::with_value(
            "sector",
            "BYTES",
            "The size of a logical sector, in which partition tables count: 512, 1024, 2048 or 4096.",
        ),
    ];

    /// Takes its options out of a list.
    pub fn from_options(options: &mut Options) -> Result<Self, OptionsError> {
        Ok(Self {
            offset: options.take_bytes("offset")?.unwrap_or(0),
            size_limit: options.take_bytes("sizelimit")?,
            sector: take_sector(options)?,
            partition: take_partition(options)?,
            format: take_format(options)?,
            snapshot: options.take_flag("snapshot")?,
            locks: Locks::default(),
        })
    }

    /// The disk of a source, and what its image is made of: see [`veduta_formats::Image::layers`]. A raw one has no layers.
    pub fn open(&self, source: &OsStr, writable: bool) -> Result<(Disk, Vec<Report>), MountError> {
        let (path, number) = self.split(source)?;
        let (whole, layers) = self.whole(Path::new(path), &path.to_string_lossy(), writable)?;
        match number {
            None => Ok((whole, layers)),
            Some(number) => Ok((partition(&whole, number, self.sector)?, layers)),
        }
    }

    /// Fails with `EBUSY`, and the name of who has it, while the image of a source is being written.
    pub fn check_unused(&self, source: &OsStr) -> Result<(), MountError> {
        let (path, _) = self.split(source)?;
        let (file, _) = open(Path::new(path), false)?;
        check_unlocked(&file)
    }

    /// `PATH`, or `PATH#N` for partition N; a file that is called so has precedence.
    fn split<'a>(&self, source: &'a OsStr) -> Result<(&'a OsStr, Option<u32>), MountError> {
        let (path, number) = match split_number(source) {
            Some((path, number)) if !exists(source) && exists(path) => (path, Some(number)),
            _ => (source, None),
        };
        if number.is_some() && self.partition.is_some() {
            return Err(MountError::usage("the partition is given twice, by # and by partition="));
        }
        Ok((path, number.or(self.partition)))
    }

    /// The whole disk at a path, less what `offset=` and `sizelimit=` leave out.
    fn whole(&self, path: &Path, name: &str, writable: bool) -> Result<(Disk, Vec<Report>), MountError> {
        // What is to be thrown away is not written to the image.
        let (file, may_write) = open(path, writable && !self.snapshot)?;
        self.locks.take(&file, may_write)?;
        let (mut disk, layers) = self.image(file, path, name, may_write)?;
        if disk.size() == 0 {
            return Err(wrong(Errno::EINVAL, "it is empty"));
        }
        if self.snapshot && writable {
            disk = snapshot(&disk, &scratch()?);
        }
        if self.offset > 0 || self.size_limit.is_some() {
            disk = self.window(&disk)?;
        }
        Ok((disk, layers))
    }

    /// The disk in an open file, of whatever format that is.
    fn image(
        &self,
        file: File,
        path: &Path,
        name: &str,
        writable: bool,
    ) -> Result<(Disk, Vec<Report>), MountError> {
        if self.format != Some(Format::Raw) {
            let store: Arc<dyn Store> =
                Arc::new(FileStore(file.try_clone().map_err(|error| cannot("opened", errno(&error)))?));
            let dir = path.parent().unwrap_or(Path::new("")).to_owned();
            let files = Beside { dir, locks: self.locks.clone() };
            let how = How { writable, format: self.format, sector: self.sector, name };
            if let Some(image) = veduta_formats::open(&store, &files, how)? {
                return Ok((image.disk, image.layers));
            }
        }
        let mut raw = RawDisk::new(file, writable).map_err(|errno| cannot("opened", errno))?;
        if let Some(sector) = self.sector {
            raw = raw.with_sector(sector);
        }
        let disk = Disk::new(Arc::new(raw), name);
        if self.offset > 0 || self.size_limit.is_some() || self.format.is_some() {
            return Ok((disk, Vec::new()));
        }
        match foreign_format(&disk).map_err(|errno| cannot("read", errno))? {
            None => Ok((disk, Vec::new())),
            Some(format) => Err(MountError::unsupported(format!(
                "it is a {}, which is not read as it is: make a raw image of it first ({})",
                format.name, format.remedy
            ))),
        }
    }

    fn window(&self, disk: &Disk) -> Result<Disk, MountError> {
        let len = match self.size_limit {
            Some(limit) => Some(limit),
            None => disk.size().checked_sub(self.offset),
        };
        let window = len.filter(|len| *len > 0).map(|len| disk.window(self.offset, len, disk.name()));
        let outside = || {
            MountError::usage(format!(
                "the part that offset= and sizelimit= choose is not in the image, which has {} bytes",
                disk.size()
            ))
        };
        window.and_then(Result::ok).ok_or_else(outside)
    }
}

impl World for HostWorld {
    /// `PATH`, or `PATH#N` for partition N; a file that is called so has precedence.
    ///
    /// An image that cannot be written gives a read-only disk, also if a writable one was asked for.
    fn disk(&self, source: &OsStr, writable: bool) -> Result<Disk, MountError> {
        self.open(source, writable).map(|(disk, _)| disk)
    }

    fn tree(&self, source: &OsStr) -> Result<(Arc<dyn Filesystem>, Ino), MountError> {
        let path = Path::new(source);
        let metadata = std::fs::metadata(path).map_err(|error| explain(path, None, &error))?;
        if !metadata.is_dir() {
            return Err(wrong(Errno::ENOTDIR, "it is not a directory, and a directory is wanted"));
        }
        let tree = HostDir::open(path).map_err(|errno| cannot("opened", errno))?;
        Ok((Arc::new(tree), Ino::ROOT))
    }

    fn link(&self, _source: &OsStr) -> Result<Arc<dyn Link>, MountError> {
        Err(MountError::unsupported("links to networks cannot be used as a source here"))
    }

    fn secret(&self, prompt: &str) -> Result<Vec<u8>, MountError> {
        crate::secret::ask(prompt)
    }

    fn secret_from(&self, source: SecretSource<'_>) -> Result<Vec<u8>, MountError> {
        crate::secret::fetch(source)
    }

    /// Marks the locks of the images that are written as left: who wants one waits for it.
    fn leave(&self) {
        self.locks.leave();
    }
}

fn take_partition(options: &mut Options) -> Result<Option<u32>, OptionsError> {
    let expected = "the number of a partition, 1 and up";
    let long = options.take_parsed("partition", expected)?;
    Ok(options.take_parsed("part", expected)?.or(long))
}

fn take_format(options: &mut Options) -> Result<Option<Format>, OptionsError> {
    let Some(name) = options.take_value("format")? else { return Ok(None) };
    let unknown = || {
        let names: Vec<&str> = Format::ALL.iter().map(|format| format.name()).collect();
        OptionsError(format!("option format={name}: expected one of {}", names.join(", ")))
    };
    Format::named(&name).map(Some).ok_or_else(unknown)
}

/// The partition table of a disk that turned out to be no filesystem of the wanted type: for a message that names what is there.
pub fn partitions_of(disk: &Disk) -> Result<Option<PartitionTable>, MountError> {
    read_table(disk, None)
}

/// Partition `number` of a disk, by its own table.
pub fn partition_of(disk: &Disk, number: u32) -> Result<Disk, MountError> {
    partition(disk, number, None)
}

/// The partitions of a table in a sentence: `1 (EFI system, 512.0 MiB), 2 (Linux filesystem, 30.0 GiB)`.
pub fn list_partitions(table: &PartitionTable) -> String {
    let describe = |partition: &veduta_api::Partition| {
        let kind = if partition.kind_name.is_empty() { &partition.kind } else { &partition.kind_name };
        format!("{} ({kind}, {})", partition.number, human(partition.size))
    };
    table.partitions.iter().map(describe).collect::<Vec<_>>().join(", ")
}

fn human(bytes: u64) -> String {
    let units = ["KiB", "MiB", "GiB", "TiB"];
    let step = (1..=4).rev().find(|step| bytes >> (10 * step) > 0);
    match step {
        None => format!("{bytes} bytes"),
        Some(step) => format!("{:.1} {}", bytes as f64 / (1_u64 << (10 * step)) as f64, units[step - 1]),
    }
}

/// Partition `number` of a disk; the error lists those that there are.
fn partition(whole: &Disk, number: u32, sector: Option<u32>) -> Result<Disk, MountError> {
    let none =
        || MountError::usage(format!("there is no partition {number}: the disk has no partition table"));
    let table = read_hybrid_table(whole, sector)?.ok_or_else(none)?;
    let found = table.partitions.iter().find(|partition| partition.number == number).ok_or_else(|| {
        wrong(Errno::ENXIO, format!("there is no partition {number}; there are {}", list_partitions(&table)))
    })?;
    slice(whole, found).map_err(|_| {
        MountError::corrupt(format!(
            "partition {number} lies behind the end of the image, which seems to be cut short"
        ))
    })
}

/// Splits `disk.img#2`.
fn split_number(source: &OsStr) -> Option<(&OsStr, u32)> {
    let bytes = source.as_bytes();
    let at = bytes.iter().rposition(|byte| *byte == b'#')?;
    let digits = std::str::from_utf8(&bytes[at + 1..]).ok()?;
    let is_number = digits.bytes().all(|digit| digit.is_ascii_digit());
    Some((OsStr::from_bytes(&bytes[..at]), digits.parse().ok().filter(|_| is_number)?))
}

/// Whether there is something of this name, even if it cannot be seen.
fn exists(path: &OsStr) -> bool {
    !matches!(std::fs::symlink_metadata(path), Err(error) if error.kind() == std::io::ErrorKind::NotFound)
}

/// Opens an image, and says whether it was for writing: that is given up where it is not allowed.
fn open(path: &Path, writable: bool) -> Result<(File, bool), MountError> {
    let metadata = std::fs::metadata(path).map_err(|error| explain(path, None, &error))?;
    let kind = metadata.file_type();
    if kind.is_dir() {
        return Err(wrong(
            Errno::ENOTBLK,
            "it is a directory, where a disk image or a block device is wanted",
        ));
    }
    if !kind.is_file() && !kind.is_block_device() {
        return Err(wrong(Errno::ENOTBLK, "it is neither a disk image nor a block device"));
    }
    if writable {
        match File::options().read(true).write(true).open(path) {
            Ok(file) => return Ok((file, true)),
            Err(error) if is_write_refusal(&error) => {}
            Err(error) => return Err(explain(path, Some(&metadata), &error)),
        }
    }
    let file = File::open(path).map_err(|error| explain(path, Some(&metadata), &error))?;
    Ok((file, false))
}

fn is_write_refusal(error: &std::io::Error) -> bool {
    matches!(errno(error), Errno::EACCES | Errno::EPERM | Errno::EROFS)
}

/// Why a path cannot be opened. `metadata` is the file's, if it could at least be seen.
fn explain(path: &Path, metadata: Option<&Metadata>, error: &std::io::Error) -> MountError {
    match (errno(error), metadata) {
        (Errno::ENOENT, _) if std::fs::symlink_metadata(path).is_ok() => {
            wrong(Errno::ENOENT, "it is a symbolic link that leads nowhere")
        }
        (Errno::ENOENT, _) => wrong(Errno::ENOENT, "there is no such file or directory"),
        (Errno::ENOTDIR, _) => wrong(Errno::ENOTDIR, "a part of the path is not a directory"),
        (Errno::EACCES, None) => {
            let place = path.ancestors().skip(1).find(|above| std::fs::metadata(above).is_ok());
            let place = place.filter(|place| !place.as_os_str().is_empty()).unwrap_or(Path::new("."));
            let message = format!("you may not go into a directory below {}", place.display());
            MountError::system(Errno::EACCES, message)
        }
        (Errno::EACCES, Some(metadata)) => {
            let message = format!(
                "you ({}) may not read it: it belongs to {}, with mode {:04o}",
                user(geteuid().as_raw()),
                user(metadata.uid()),
                metadata.mode() & 0o7777
            );
            MountError::system(Errno::EACCES, message)
        }
        (errno, _) => cannot("opened", errno),
    }
}

fn user(uid: u32) -> String {
    match User::from_uid(Uid::from_raw(uid)) {
        Ok(Some(user)) => user.name,
        _ => format!("user {uid}"),
    }
}

/// A path that leads to the wrong thing, or to nothing. As mount(8) has it, that is a mount that failed, not a wrong request.
fn wrong(errno: Errno, message: impl Into<String>) -> MountError {
    MountError::system(errno, message)
}

fn cannot(verb: &str, errno: Errno) -> MountError {
    MountError::system(errno, format!("it cannot be {verb}: {}", errno.desc()))
}
