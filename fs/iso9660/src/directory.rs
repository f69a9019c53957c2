//! A directory, read whole: its records as they are, and an index of the names.
//!
//! Records are kept as bytes and made into nodes when they are asked for; the index takes 32 bytes an entry, so even a
//! directory of the largest size that is taken is bounded in memory by a small multiple of its own bytes.
//!
//! A damaged record costs the rest of its sector, and is told of when a listing comes to its end or a name is not
//! found; a record whose own fields are damaged is listed, and the damage told of when the node is looked at.

use std::cmp::Ordering;

use veduta_api::Kind;

use crate::error::{Error, Result, SECTOR};
use crate::names;
use crate::node::{Node, Parsed, What, number_at};
use crate::susp::Areas;
use crate::volume::Volume;

/// Bytes; a directory is at most this large: about a million entries.
const SIZE_MAX: u32 = 64 << 20;

#[derive(Debug)]
pub(crate) struct Directory {
    /// The byte of the volume at which it starts.
    start: u64,
    records: Vec<u8>,
    names: Vec<u8>,
    /// In the order of the records.
    entries: Vec<Slot>,
    /// Indices of `entries`, by name.
    by_name: Vec<u32>,
    any_case: bool,
    damage: Option<Error>,
}

#[derive(Clone, Copy, Debug)]
struct Slot {
    st_ino: u64,
    /// Where the directory starts that the entry leads to; 0 for all others.
    directory: u64,
    /// Where its first record is in `records`.
    record: u32,
    name: u32,
    /// 0 for an entry whose name an earlier one has.
    name_len: u16,
    kind: Option<Kind>,
}

/// An entry as listed.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Listed<'a> {
    pub(crate) index: usize,
    pub(crate) name: &'a [u8],
    pub(crate) st_ino: u64,
    /// `None` if its record is damaged.
    pub(crate) kind: Option<Kind>,
    pub(crate) place: Place,
}

/// What an entry leads to, as a place in the volume.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Place {
    /// The directory that starts at this byte.
    Directory(u64),
    /// The file whose first record is at this byte.
    File(u64),
}

impl Directory {
    /// Reads the directory that starts at byte `start`. Each round of the walk goes on by a record or a sector.
    pub(crate) fn read(volume: &Volume, start: u64) -> Result<Self> {
        let len = volume.directory_record(start, |record| record.data_len)?;
        if len > SIZE_MAX {
            return Err(Error::corrupt(
                start,
                format!("a directory of {len} bytes, which is more than {SIZE_MAX}"),
            ));
        }
        let mut found = Self {
            start,
            records: volume.image.read_vec(start, len as usize, "a directory")?,
            names: Vec::new(),
            entries: Vec::new(),
            by_name: Vec::new(),
            any_case: volume.choices.any_case,
            damage: None,
        };
        let records = std::mem::take(&mut found.records);
        let mut areas = Areas::new(&volume.image);
        let mut position = 0;
        while position < records.len() {
            position = match volume.parse(&records, start, position) {
                Ok(Some(parsed)) => {
                    let end = parsed.end;
                    found.add(volume, &parsed, &mut areas);
                    end
                }
                Ok(None) => break,
                Err(error) => {
                    found.damage.get_or_insert(error);
                    (position + 1).next_multiple_of(SECTOR as usize)
                }
            };
        }
        found.records = records;
        found.sort();
        Ok(found)
    }

    /// Adds an entry for the file, unless it is not to be shown.
    fn add(&mut self, volume: &Volume, parsed: &Parsed<'_>, areas: &mut Areas<'_>) {
        let (record, choices) = (&parsed.record, &volume.choices);
        let is_unwanted =
            (record.is_hidden() && choices.hide) || (record.is_associated() && !choices.show_associated);
        if record.is_self() || record.is_parent() || is_unwanted {
            return;
        }
        let fields = volume.fields(record, parsed.at, areas);
        let name = volume.listed_name(record, fields.as_ref().unwrap_or(&Default::default()));
        if fields.as_ref().is_ok_and(|fields| fields.is_relocated) {
            return;
        }
        let what = fields.and_then(|fields| Ok((volume.what(record, &fields, parsed.at)?, fields)));
        let (kind, st_ino, directory) = match &what {
            Ok((What::Directory(start), _)) => (Some(Kind::Directory), number_at(*start), *start),
            Ok((What::File(kind), fields)) => (Some(*kind), volume.file_number(parsed, fields, *kind), 0),
            Err(_) => (None, number_at(parsed.at), 0),
        };
        self.entries.push(Slot {
            st_ino,
            directory,
            record: (parsed.at - self.start) as u32,
            name: self.names.len() as u32,
            // A name has at most 255 bytes in a record, and three times as many in UTF-8.
            name_len: name.len() as u16,
            kind,
        });
        self.names.extend_from_slice(&name);
    }

    /// Sorts the index, and takes the names from entries that have that of an earlier one: the first record of a
    /// name is that of its latest version (ECMA-119 9.3).
    fn sort(&mut self) {
        let mut by_name: Vec<u32> = (0..self.entries.len() as u32).collect();
        by_name.sort_by(|a, b| self.compare(self.name(*a), self.name(*b)).then(a.cmp(b)));
        by_name.dedup_by(|later, earlier| {
            let is_same = self.name(*later) == self.name(*earlier);
            if is_same {
                self.entries[*later as usize].name_len = 0;
            }
            is_same
        });
        self.by_name = by_name;
    }

    fn name(&self, index: u32) -> &[u8] {
        let slot = &self.entries[index as usize];
        &self.names[slot.name as usize..][..usize::from(slot.name_len)]
    }

    fn compare(&self, a: &[u8], b: &[u8]) -> Ordering {
        let exact = a.cmp(b);
        if self.any_case { names::fold(a).cmp(&names::fold(b)).then(exact) } else { exact }
    }

    /// The entry called `name`; without regard to case only if none has exactly this name.
    pub(crate) fn find(&self, name: &[u8]) -> Result<Option<Listed<'_>>> {
        let exact = self.by_name.binary_search_by(|index| self.compare(self.name(*index), name)).ok();
        let found = exact.or_else(|| {
            let folded = self.any_case.then(|| names::fold(name))?;
            let position = self.by_name.partition_point(|index| names::fold(self.name(*index)) < folded);
            self.by_name.get(position).filter(|index| names::fold(self.name(**index)) == folded)?;
            Some(position)
        });
        match (found, &self.damage) {
            (Some(position), _) => Ok(self.get(self.by_name[position] as usize)),
            (None, Some(damage)) => Err(damage.clone()),
            (None, None) => Ok(None),
        }
    }

    /// Entry `index`; `None` if there is none, or if it has no name of its own.
    pub(crate) fn get(&self, index: usize) -> Option<Listed<'_>> {
        let slot = self.entries.get(index).filter(|slot| slot.name_len > 0)?;
        let place = match slot.kind {
            Some(Kind::Directory) => Place::Directory(slot.directory),
            _ => Place::File(self.start + u64::from(slot.record)),
        };
        let Slot { st_ino, kind, .. } = *slot;
        Some(Listed { index, name: self.name(index as u32), st_ino, kind, place })
    }

    /// The entries from `index` on.
    pub(crate) fn list(&self, index: usize) -> impl Iterator<Item = Listed<'_>> {
        (index..self.entries.len()).filter_map(|index| self.get(index))
    }

    /// The node of a file among the entries, made from the records that are in memory.
    pub(crate) fn file(&self, volume: &Volume, at: u64) -> Result<Node> {
        let position = at.checked_sub(self.start).map_or(usize::MAX, |position| position as usize);
        match volume.parse(&self.records, self.start, position)? {
            Some(parsed) => {
                let fields = volume.fields(&parsed.record, at, &mut Areas::new(&volume.image))?;
                volume.file(parsed, fields)
            }
            None => volume.file_at(at),
        }
    }

    /// What is wrong with it, if anything.
    pub(crate) fn damage(&self) -> Option<&Error> {
        self.damage.as_ref()
    }

    /// The directories among the entries: the byte where each starts, and the index of its entry.
    pub(crate) fn directories(&self) -> impl Iterator<Item = (u64, usize)> {
        let directories = self.entries.iter().enumerate();
        let directories =
            directories.filter(|(_, slot)| slot.kind == Some(Kind::Directory) && slot.name_len > 0);
        directories.map(|(index, slot)| (slot.directory, index))
    }

    /// Bytes of memory, about.
    pub(crate) fn weight(&self) -> usize {
        self.records.len() + self.names.len() + self.entries.len() * (size_of::<Slot>() + 4) + 256
    }
}
