//! `formats`: disks in files of another form than byte by byte.
//!
//! [`open`] recognises what a file is by its content and makes a [`Disk`] of it: qcow2, VDI, VHD, VHDX and VMDK, to read and to write in
//! place; zstd in its seekable form, to read in place; gzip, xz and plain zstd, which are unpacked to a scratch file first.
//! What is inside a compressed file is recognised in turn; what is inside a disk is not: that is its user's business, and who writes
//! to a disk could otherwise choose what it is taken for. [`snapshot`] puts a throw-away layer over any disk, and [`create()`] makes
//! empty images.
//!
//! All formats that grow share one device, `mapped`, which is where reading, writing and threads are; a format is a `Map` that
//! says where each block lies and gives out room.
//!
//! A format that refers to other files (an image below it, an extent) names them, and [`Files`] opens them: this crate names no path.
//!
//! # Limits
//!
//! Each format's own head lists them. Images below are opened to read. Layers nest 16 deep at most. Nothing grows a disk or makes it
//! smaller.

#![forbid(unsafe_code)]

mod bytes;
mod concat;
mod create;
mod mapped;
mod packed;
mod qcow2;
mod refcount;
mod seekable;
mod snapshot;
mod store;
mod vdi;
mod vhd;
mod vhdx;
mod vmdk;

use std::cell::RefCell;
use std::ops::Range;
use std::sync::Arc;

use veduta_api::{BlockDevice, Disk, Errno, Geometry, MountError, Report, Value};

pub use create::{CREATABLE, create};
pub use snapshot::snapshot;
pub use store::{FileStore, MemoryStore, Store};

/// Layers upon layers: an image below an image, a compressed file in a compressed file.
const MAX_DEPTH: u32 = 16;

/// What a file is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// Byte by byte, or unknown, which is the same.
    Raw,
    /// QEMU's.
    Qcow2,
    /// VirtualBox's.
    Vdi,
    /// Virtual PC's: fixed, dynamic or differencing.
    Vhd,
    /// Hyper-V's.
    Vhdx,
    /// VMware's: sparse, stream-optimised, or a descriptor of several files.
    Vmdk,
    /// Compressed.
    Gzip,
    /// Compressed.
    Xz,
    /// Compressed; perhaps seekable.
    Zstd,
}

impl Format {
    /// All of them.
    pub const ALL: [Format; 9] = [
        Format::Raw,
        Format::Qcow2,
        Format::Vdi,
        Format::Vhd,
        Format::Vhdx,
        Format::Vmdk,
        Format::Gzip,
        Format::Xz,
        Format::Zstd,
    ];

    /// As `format=` and `-f` call it.
    pub fn name(self) -> &'static str {
        match self {
            Format::Raw => "raw",
            Format::Qcow2 => "qcow2",
            Format::Vdi => "vdi",
            Format::Vhd => "vhd",
            Format::Vhdx => "vhdx",
            Format::Vmdk => "vmdk",
            Format::Gzip => "gzip",
            Format::Xz => "xz",
            Format::Zstd => "zstd",
        }
    }

    /// By its name; `vpc` is what QEMU calls VHD.
    pub fn named(name: &str) -> Option<Self> {
        match name {
            "vpc" => Some(Format::Vhd),
            "qcow" => Some(Format::Qcow2),
            "file" | "host_device" => Some(Format::Raw),
            name => Self::ALL.into_iter().find(|format| format.name() == name),
        }
    }

    /// Whether it is a compressed file of something else.
    pub fn is_packed(self) -> bool {
        matches!(self, Format::Gzip | Format::Xz | Format::Zstd)
    }
}

/// What the bytes of a file are, by their marks.
pub fn recognise(store: &dyn Store) -> veduta_api::Result<Format> {
    let head = store.read_vec(0, 512)?;
    let marks: [(&[u8], usize, Format); 9] = [
        (qcow2::MAGIC, 0, Format::Qcow2),
        (vdi::MAGIC, 0x40, Format::Vdi),
        (vhd::MAGIC, 0, Format::Vhd),
        (vhdx::MAGIC, 0, Format::Vhdx),
        (vmdk::MAGIC, 0, Format::Vmdk),
        (vmdk::DESCRIPTOR, 0, Format::Vmdk),
        (b"\x1f\x8b\x08", 0, Format::Gzip),
        (b"\xfd7zXZ\0", 0, Format::Xz),
        (b"\x28\xb5\x2f\xfd", 0, Format::Zstd),
    ];
    if let Some((_, _, format)) = marks.iter().find(|(mark, at, _)| head[*at..].starts_with(mark)) {
        return Ok(*format);
    }
    // A fixed VHD is raw with a footer behind it; a seekable zstd file may begin with a frame that is to be skipped.
    let len = store.len()?;
    if len >= 1024 && vhd::is_fixed(&store.read_vec(len - 512, 512)?, len) {
        return Ok(Format::Vhd);
    }
    if head[1..4] == [0x2a, 0x4d, 0x18] && head[0] & 0xf0 == 0x50 && seekable::has_table(store)? {
        return Ok(Format::Zstd);
    }
    Ok(Format::Raw)
}

/// A file that an image named, and who opens what that one names.
pub type Named = (Arc<dyn Store>, Arc<dyn Files>);

/// Opens files that an image names, relative to it.
pub trait Files {
    /// The file, and who opens what that one names in turn.
    fn open(&self, name: &str, writable: bool) -> Result<Named, MountError>;

    /// An empty file without a name that goes when it is closed, for what is unpacked or thrown away.
    fn scratch(&self) -> Result<Arc<dyn Store>, MountError>;
}

/// How to open an image.
#[derive(Clone, Copy, Debug, Default)]
pub struct How<'a> {
    /// Whether it may be changed.
    pub writable: bool,
    /// Instead of what is recognised.
    pub format: Option<Format>,
    /// Bytes of a logical sector, instead of what the format says, or 512.
    pub sector: Option<u32>,
    /// What messages call it.
    pub name: &'a str,
}

/// An image that was opened.
pub struct Image {
    /// The disk.
    pub disk: Disk,
    /// What it is made of, outermost first: its format, what that says, and `warnings`.
    pub layers: Vec<Report>,
}

/// Opens the image of a disk that is in a file. `None` if the file is raw.
pub fn open(store: &Arc<dyn Store>, files: &dyn Files, how: How<'_>) -> Result<Option<Image>, MountError> {
    let layers = RefCell::new(Vec::new());
    let disk = open_at(store, files, how, &layers, 0)?;
    Ok(disk.map(|disk| Image { disk, layers: layers.into_inner() }))
}

/// Opens the image below another: its name, and its format if that is known.
pub(crate) type Under<'a> = &'a dyn Fn(&str, Option<&str>) -> Result<Disk, MountError>;

fn open_at(
    store: &Arc<dyn Store>,
    files: &dyn Files,
    how: How<'_>,
    layers: &RefCell<Vec<Report>>,
    depth: u32,
) -> Result<Option<Disk>, MountError> {
    if depth > MAX_DEPTH {
        return Err(MountError::unsupported(format!("more than {MAX_DEPTH} images lie below each other")));
    }
    let format = match how.format {
        Some(format) => format,
        None => recognise(&**store).failed()?,
    };
    // An image's place among the layers is before those that it opens.
    let place = layers.borrow().len();
    let below = |name: &str, format: Option<&str>| -> Result<Disk, MountError> {
        open_below(files, name, format, layers, depth + 1)
    };
    let sector = how.sector.unwrap_or(512);
    let (disk, report) = match format {
        Format::Raw => return Ok(None),
        Format::Qcow2 => qcow2::open(store, how.name, how.writable, sector, &below)?,
        Format::Vdi => vdi::open(store, how.name, how.writable, sector)?,
        Format::Vhd => vhd::open(store, how.name, how.writable, sector, &below)?,
        Format::Vhdx => vhdx::open(store, how.name, how.writable, how.sector, &below)?,
        Format::Vmdk => vmdk::open(store, files, how.name, how.writable, sector, &below)?,
        Format::Zstd if seekable::has_table(&**store).failed()? => {
            let (disk, report) = seekable::open(store, how.name, sector)?;
            layers.borrow_mut().insert(place, report);
            let inner: Arc<dyn Store> = Arc::new(DiskStore(disk.clone()));
            return inside(&inner, files, how, layers, depth).map(|inner| Some(inner.unwrap_or(disk)));
        }
        Format::Gzip | Format::Xz | Format::Zstd => {
            let (scratch, report) = packed::unpack(&**store, format, files, how.name)?;
            layers.borrow_mut().insert(place, report);
            let inner = inside(&scratch, files, how, layers, depth)?;
            return Ok(Some(inner.unwrap_or(store_disk(&scratch, how.name, sector, false)?)));
        }
    };
    layers.borrow_mut().insert(place, report);
    Ok(Some(disk))
}

/// What is in a compressed file, if that is an image in turn. It cannot be changed.
fn inside(
    store: &Arc<dyn Store>,
    files: &dyn Files,
    how: How<'_>,
    layers: &RefCell<Vec<Report>>,
    depth: u32,
) -> Result<Option<Disk>, MountError> {
    open_at(store, files, How { writable: false, format: None, ..how }, layers, depth + 1)
}

fn open_below(
    files: &dyn Files,
    name: &str,
    format: Option<&str>,
    layers: &RefCell<Vec<Report>>,
    depth: u32,
) -> Result<Disk, MountError> {
    let named = |error: MountError| MountError {
        message: format!("the image below it, {name}: {}", error.message),
        ..error
    };
    let known = match format {
        None => None,
        Some(format) => Some(Format::named(format).ok_or_else(|| {
            MountError::unsupported(format!("the image below it, {name}, is of the unknown format {format}"))
        })?),
    };
    let (store, its_files) = files.open(name, false).map_err(named)?;
    let how = How { writable: false, format: known, sector: None, name };
    if let Some(disk) = open_at(&store, &*its_files, how, layers, depth).map_err(named)? {
        return Ok(disk);
    }
    let mut report = Report::new();
    report.put("format", "raw").put("file", name);
    report.put("virtual_size", Value::Bytes(store.len().failed()?));
    layers.borrow_mut().push(report);
    store_disk(&store, name, 512, false)
}

/// The bytes of a store as a disk.
pub(crate) fn store_disk(
    store: &Arc<dyn Store>,
    name: &str,
    sector: u32,
    writable: bool,
) -> Result<Disk, MountError> {
    let size = store.len().failed()?;
    let geometry = Geometry {
        logical_sector: sector,
        physical_sector: sector,
        read_only: !writable,
        ..Geometry::of_size(size)
    };
    Ok(Disk::new(Arc::new(StoreDisk { store: Arc::clone(store), geometry }), name))
}

struct StoreDisk {
    store: Arc<dyn Store>,
    geometry: Geometry,
}

impl BlockDevice for StoreDisk {
    fn geometry(&self) -> Geometry {
        self.geometry
    }
    fn read_at(&self, buf: &mut [u8], offset: u64) -> veduta_api::Result<()> {
        self.store.read_at(buf, offset)
    }
    fn write_at(&self, buf: &[u8], offset: u64) -> veduta_api::Result<()> {
        self.store.write_at(buf, offset)
    }
    fn flush(&self) -> veduta_api::Result<()> {
        self.store.flush()
    }
    fn discard(&self, offset: u64, len: u64) -> veduta_api::Result<()> {
        self.store.punch(offset, len)
    }
    fn write_zeroes(&self, offset: u64, len: u64) -> veduta_api::Result<()> {
        self.store.punch(offset, len)
    }
    fn next_data(&self, offset: u64) -> veduta_api::Result<Option<Range<u64>>> {
        let found = self.store.next_data(offset)?;
        let size = self.geometry.size;
        Ok(found.map(|range| range.start..range.end.min(size)).filter(|range| !range.is_empty()))
    }
}

/// A disk as the bytes of an image, not to be changed.
struct DiskStore(Disk);

impl Store for DiskStore {
    fn len(&self) -> veduta_api::Result<u64> {
        Ok(self.0.size())
    }
    fn read_at(&self, buf: &mut [u8], offset: u64) -> veduta_api::Result<()> {
        let len = self.0.size().saturating_sub(offset).min(buf.len() as u64) as usize;
        buf[len..].fill(0);
        self.0.read_at(&mut buf[..len], offset.min(self.0.size()))
    }
    fn write_at(&self, _buf: &[u8], _offset: u64) -> veduta_api::Result<()> {
        Err(Errno::EROFS)
    }
    fn set_len(&self, _len: u64) -> veduta_api::Result<()> {
        Err(Errno::EROFS)
    }
    fn flush(&self) -> veduta_api::Result<()> {
        Ok(())
    }
    fn punch(&self, _offset: u64, _len: u64) -> veduta_api::Result<()> {
        Err(Errno::EROFS)
    }
    fn next_data(&self, offset: u64) -> veduta_api::Result<Option<Range<u64>>> {
        self.0.next_data(offset)
    }
}

/// An error of the file, while an image is opened.
pub(crate) trait Failed<T> {
    fn failed(self) -> Result<T, MountError>;
}

impl<T> Failed<T> for veduta_api::Result<T> {
    fn failed(self) -> Result<T, MountError> {
        self.map_err(|errno| match errno {
            Errno::EUCLEAN => MountError::corrupt("the image is damaged; the log says where"),
            errno => MountError::system(errno, format!("the image cannot be read: {}", errno.desc())),
        })
    }
}

pub(crate) fn damaged(what: impl std::fmt::Display) -> MountError {
    MountError::corrupt(format!("the image is damaged: {what}"))
}
