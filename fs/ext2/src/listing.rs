//! A directory that is open for listing, and may change meanwhile.
//!
//! An index moves names between blocks, so that places in a directory that changes do not last. A listing is made of what was there when
//! it began: what was neither made nor removed meanwhile is listed once.

use std::ffi::OsStr;
use std::ops::ControlFlow;
use std::os::unix::ffi::OsStrExt;
use std::sync::Arc;

use parking_lot::Mutex;
use veduta_api::{DirEntry, DirSink, Directory, Kind};

use crate::dir::Dir;
use crate::error::{Error, Result};
use crate::tree::node;
use crate::volume::Volume;

/// A name, as it was when the listing began.
#[derive(Debug)]
struct Name {
    /// Where it starts in all names.
    start: usize,
    len: u8,
    kind: Option<Kind>,
    ino: u32,
}

#[derive(Debug, Default)]
struct Names {
    bytes: Vec<u8>,
    all: Vec<Name>,
}

/// See the head of the file.
#[derive(Debug)]
pub(crate) struct Listing {
    volume: Arc<Volume>,
    ino: u32,
    /// Held only to take or replace the pointer.
    names: Mutex<Option<Arc<Names>>>,
}

impl Listing {
    pub(crate) fn new(volume: Arc<Volume>, ino: u32) -> Self {
        Self { volume, ino, names: Mutex::new(None) }
    }

    /// The names; from the start, as they are now.
    fn names(&self, position: u64) -> Result<Arc<Names>> {
        let last = self.names.lock().clone().filter(|_| position > 0);
        if let Some(names) = last {
            return Ok(names);
        }
        let mut names = Names::default();
        {
            let _names = self.volume.names.read();
            let dir = Dir::open(&self.volume, self.volume.inode(self.ino)?)?;
            dir.list(&self.volume, 0, &mut |entry| {
                names.all.push(Name {
                    start: names.bytes.len(),
                    len: entry.name.len() as u8,
                    kind: entry.kind,
                    ino: entry.ino,
                });
                names.bytes.extend_from_slice(entry.name);
                ControlFlow::Continue(())
            })?;
        }
        let names = Arc::new(names);
        *self.names.lock() = Some(Arc::clone(&names));
        Ok(names)
    }
}

impl Directory for Listing {
    fn read(&self, position: u64, sink: &mut DirSink<'_>) -> veduta_api::Result<()> {
        let names = self.names(position).map_err(Error::into_errno)?;
        let first = usize::try_from(position).unwrap_or(usize::MAX);
        for (next, name) in (position + 1..).zip(names.all.iter().skip(first)) {
            let bytes = names.bytes.get(name.start..name.start + usize::from(name.len)).unwrap_or_default();
            let entry = DirEntry {
                name: OsStr::from_bytes(bytes),
                ino: self.volume.sb.is_ordinary(name.ino).then(|| node(name.ino)),
                st_ino: name.ino.into(),
                kind: name.kind,
                next,
            };
            if sink(entry).is_break() {
                break;
            }
        }
        Ok(())
    }
}
