//! Nodes: what the records of a file, or the record that a directory has of itself, say about it.
//!
//! A node is known by the byte of its first record; a directory, which has records in two places, by the byte where
//! its own content starts. So a directory that Rock Ridge moved is the same from wherever it is reached, and any
//! node can be found again without the directory that it was listed in.

use veduta_api::{Attr, Device, FileFlags, Kind, Perm};

use crate::error::{Error, Result, SECTOR};
use crate::extents::Extents;
use crate::names;
use crate::record::Record;
use crate::rockridge::RockRidge;
use crate::susp::Areas;
use crate::volume::{RECORD_MAX, Scheme, Volume};
use crate::zisofs::Compression;

/// Records of one file. At nearly 4 GiB each, more would not fit on any volume.
const SECTIONS_MAX: usize = 65_536;
/// Bytes; the preferred unit of reads: the size of a compressed block.
const BLKSIZE: u32 = 32 << 10;

/// A file's records, joined: the first, where it lies, and what Rock Ridge and all of them together say.
#[derive(Debug)]
pub(crate) struct Parsed<'a> {
    /// The byte of the volume of the first record.
    pub(crate) at: u64,
    pub(crate) record: Record<'a>,
    extents: Extents,
    is_interleaved: bool,
    /// Where the next file's record may start, within the bytes that were parsed.
    pub(crate) end: usize,
}

/// A node.
#[derive(Debug)]
pub(crate) struct Node {
    pub(crate) attr: Attr,
    pub(crate) content: Content,
}

/// What opening or following a node leads to.
#[derive(Debug)]
pub(crate) enum Content {
    Directory,
    Stored(Extents),
    Compressed(Extents, Compression),
    Interleaved,
    Sparse,
    Link(Vec<u8>),
    Special,
}

/// What a record is of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum What {
    /// A directory that starts at this byte.
    Directory(u64),
    /// Anything else.
    File(Kind),
}

impl Volume {
    /// The next record in `bytes` from `position` on, and where it is; `bytes` starts at byte `at` of the volume.
    /// `None` at the end. Each round goes on to a later block, so the search ends.
    fn next_record<'a>(
        &self,
        bytes: &'a [u8],
        at: u64,
        mut position: usize,
    ) -> Result<Option<(usize, Record<'a>)>> {
        while position < bytes.len() {
            let here = at + position as u64;
            // Only with blocks of a sector it is known where the sectors of a directory end.
            let unit = u64::from(self.image.block_size);
            let left = (unit - here % unit) as usize;
            let sector = if unit == SECTOR { left } else { usize::MAX };
            let end = bytes.len().min(position.saturating_add(sector));
            match Record::parse(&bytes[position..end]) {
                Ok(Some(record)) => return Ok(Some((position, record))),
                Ok(None) => position += left,
                Err(what) => return Err(Error::corrupt(here, what)),
            }
        }
        Ok(None)
    }

    /// The file whose first record is the next in `bytes`, with all its further records.
    pub(crate) fn parse<'a>(&self, bytes: &'a [u8], at: u64, position: usize) -> Result<Option<Parsed<'a>>> {
        let Some((first, record)) = self.next_record(bytes, at, position)? else { return Ok(None) };
        let mut parsed = Parsed {
            at: at + first as u64,
            record,
            extents: Extents::default(),
            is_interleaved: false,
            end: first,
        };
        let mut section = record;
        for _ in 0..SECTIONS_MAX {
            let len = if self.choices.cruft { section.data_len & 0x00ff_ffff } else { section.data_len };
            parsed.extents.push(self.image.byte_of(section.block), len.into());
            parsed.is_interleaved |= section.is_interleaved;
            parsed.end += section.len;
            if !section.continues() {
                return Ok(Some(parsed));
            }
            match self.next_record(bytes, at, parsed.end)? {
                Some((position, next)) if next.name == record.name => {
                    parsed.end = position;
                    section = next;
                }
                _ => return Err(Error::corrupt(parsed.at, "a file of several extents lacks its last")),
            }
        }
        Err(Error::corrupt(parsed.at, format!("a file of more than {SECTIONS_MAX} extents")))
    }

    /// What Rock Ridge says; nothing if it does not count.
    pub(crate) fn fields(&self, record: &Record<'_>, at: u64, areas: &mut Areas<'_>) -> Result<RockRidge> {
        let mut fields = RockRidge::default();
        if let Some(skip) = self.system_use_skip(at) {
            let area = record.system_use.get(skip..).unwrap_or_default();
            areas.walk(area, at, &mut |field| fields.take(field))?;
        }
        Ok(fields)
    }

    /// The name under which the record is listed.
    pub(crate) fn listed_name(&self, record: &Record<'_>, fields: &RockRidge) -> Vec<u8> {
        let mut name = match self.scheme {
            Scheme::Joliet => names::joliet(record.name),
            Scheme::Enhanced => names::enhanced(record.name),
            Scheme::RockRidge(_) if !fields.name.is_empty() => fields.name.clone(),
            _ => names::plain(record.name, record.system_use, record.is_directory(), self.choices.map),
        };
        if record.is_associated() {
            name.extend_from_slice(b";associated");
        }
        names::fit(name)
    }

    /// What the record is of. The bits of the record and the mode of Rock Ridge must agree.
    pub(crate) fn what(&self, record: &Record<'_>, fields: &RockRidge, at: u64) -> Result<What> {
        if let Some(block) = fields.child.filter(|_| !record.is_directory()) {
            return Ok(What::Directory(self.image.byte_of(block.into())));
        }
        let recorded = if record.is_directory() { Kind::Directory } else { Kind::File };
        let kind = fields.posix.and_then(|posix| Kind::from_mode(posix.mode)).unwrap_or(recorded);
        match (recorded, kind) {
            (Kind::Directory, Kind::Directory) => Ok(What::Directory(self.image.byte_of(record.block))),
            (Kind::Directory, _) => Err(Error::corrupt(at, "field PX says that a directory is none")),
            (_, Kind::Directory) => Err(Error::corrupt(at, "field PX says that a file is a directory")),
            (_, kind) => Ok(What::File(kind)),
        }
    }

    /// The node of a record that is not of a directory.
    pub(crate) fn file(&self, parsed: Parsed<'_>, fields: RockRidge) -> Result<Node> {
        let What::File(kind) = self.what(&parsed.record, &fields, parsed.at)? else {
            return Err(Error::corrupt(parsed.at, "a directory where a file was"));
        };
        let stored = parsed.extents.size();
        let mut attr = self.attributes(&parsed.record, &fields, kind, parsed.at);
        attr.st_ino = self.file_number(&parsed, &fields, kind);
        attr.blocks = stored.div_ceil(512);
        attr.size = stored;
        let wrong = |what: String| Error::corrupt(parsed.at, what);
        let content = match (kind, fields.compression) {
            (Kind::Symlink, _) => {
                if fields.target.is_empty() {
                    return Err(wrong("a symbolic link without a target".into()));
                }
                attr.size = fields.target.len() as u64;
                Content::Link(fields.target)
            }
            (Kind::File, _) if parsed.is_interleaved => Content::Interleaved,
            (Kind::File, _) if fields.sparse_size.is_some() => {
                attr.size = fields.sparse_size.unwrap_or(0);
                if i64::try_from(attr.size).is_err() {
                    return Err(wrong(format!("a sparse file of {} bytes", attr.size)));
                }
                Content::Sparse
            }
            (Kind::File, Some(compression)) => {
                compression.check(stored).map_err(wrong)?;
                attr.size = compression.size;
                attr.flags = FileFlags { compressed: true, ..FileFlags::default() };
                Content::Compressed(parsed.extents, compression)
            }
            (Kind::File, None) => Content::Stored(parsed.extents),
            _ => {
                (attr.size, attr.blocks) = (0, 0);
                Content::Special
            }
        };
        Ok(Node { attr, content })
    }

    /// The node whose first record is at byte `at`. More is read only where a file has more records.
    pub(crate) fn file_at(&self, at: u64) -> Result<Node> {
        const WINDOWS: [usize; 4] = [RECORD_MAX, 2 * SECTOR as usize, 1 << 20, 16 << 20];
        let mut last = Err(Error::corrupt(at, "a file without a record"));
        for len in WINDOWS {
            let bytes = self.image.read_up_to(at, len, "a directory record")?;
            last = match self.parse(&bytes, at, 0) {
                Ok(Some(parsed)) => {
                    let fields = self.fields(&parsed.record, at, &mut Areas::new(&self.image))?;
                    return self.file(parsed, fields);
                }
                Ok(None) => return last,
                Err(error) => Err(error),
            };
        }
        last
    }

    /// The node of the directory that starts at byte `start`.
    pub(crate) fn directory_node(&self, start: u64) -> Result<Node> {
        self.directory_record(start, |record| {
            let fields = self.fields(&record, start, &mut Areas::new(&self.image))?;
            let mut attr = self.attributes(&record, &fields, Kind::Directory, start);
            attr.size = record.data_len.into();
            attr.blocks = attr.size.div_ceil(512);
            Ok(Node { attr, content: Content::Directory })
        })?
    }

    /// All attributes but sizes.
    fn attributes(&self, record: &Record<'_>, fields: &RockRidge, kind: Kind, at: u64) -> Attr {
        let choices = &self.choices;
        let chosen = match kind {
            Kind::Directory => choices.dmode,
            Kind::File => choices.mode,
            _ => None,
        };
        let mut attr = Attr::new(number_at(at), kind, chosen.unwrap_or(Perm::from_mode(0o555)));
        if let Some(posix) = fields.posix {
            if !choices.override_modes || chosen.is_none() {
                attr.perm = Perm::from_mode(posix.mode);
            }
            attr.nlink = posix.links.max(1);
            (attr.uid, attr.gid) = (posix.uid, posix.gid);
        }
        attr.uid = choices.uid.unwrap_or(attr.uid);
        attr.gid = choices.gid.unwrap_or(attr.gid);
        if matches!(kind, Kind::CharDevice | Kind::BlockDevice) {
            attr.rdev = fields.device;
        } else {
            attr.rdev = Device::default();
        }
        attr.blksize = BLKSIZE;
        attr.mtime = fields.times.modification.unwrap_or(record.time);
        attr.atime = fields.times.access.unwrap_or(record.time);
        attr.ctime = fields.times.attributes.or(fields.times.creation).unwrap_or(record.time);
        attr.btime = fields.times.creation;
        attr
    }

    /// What users see as the inode number. Names of one file have the same: they share their data or, if they have none,
    /// the serial number of Rock Ridge.
    pub(crate) fn file_number(&self, parsed: &Parsed<'_>, fields: &RockRidge, kind: Kind) -> u64 {
        const SERIALS: u64 = 1 << 48;
        match (fields.posix.filter(|posix| posix.links > 1), parsed.extents.start()) {
            (Some(_), Some(start)) if kind == Kind::File => number_at(start),
            (Some(posix), _) => {
                posix.serial.map_or(number_at(parsed.at), |serial| SERIALS | u64::from(serial))
            }
            _ => number_at(parsed.at),
        }
    }
}

/// The inode number of what starts at byte `at`. Records are 34 bytes or more, so no two have the same; Linux numbers
/// so too.
pub(crate) fn number_at(at: u64) -> u64 {
    at / 32
}
