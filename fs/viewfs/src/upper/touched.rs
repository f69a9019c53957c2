//! Files below whose time of last change is a commit's own doing.
//!
//! A conflict is found by that time. But a commit changes it too, also of files that it has yet to come to: of one whose attributes it
//! is changing when it is killed, and of those that share an inode with one that it has replaced. These are written down before, in
//! the layer's work directory, and are then no conflict for the commits that follow.
//!
//! Layout: a line for each file, `INODE SECONDS.NANOSECONDS`, the latter the time of its birth. A line that is cut off says nothing.

use std::collections::HashSet;
use std::ffi::OsStr;
use std::sync::Arc;

use veduta_api::{Attr, Errno, File, Filesystem, Kind, OpenFlags, Result};

use crate::copyup::write_all;
use crate::state::{State, TOUCHED as NAME, own};

/// Bytes that are read at a time.
const CHUNK: usize = 1 << 16;

pub(super) struct Touched {
    files: HashSet<String>,
    /// Its length, when it was read.
    len: u64,
}

fn line_of(attr: &Attr) -> String {
    let btime = attr.btime.unwrap_or_default();
    format!("{} {}.{}", attr.st_ino, btime.seconds, btime.nanos)
}

impl Touched {
    /// What earlier commits have written down.
    pub(super) fn read(fs: &dyn Filesystem, state: &State) -> Result<Self> {
        let file = match open(fs, state) {
            Err(Errno::ENOENT) => return Ok(Self { files: HashSet::new(), len: 0 }),
            file => file?,
        };
        let mut text = Vec::new();
        let mut buf = vec![0; CHUNK];
        loop {
            let read = file.read_at(&mut buf, text.len() as u64)?;
            if read == 0 {
                break;
            }
            text.extend_from_slice(&buf[..read]);
        }
        let text = String::from_utf8_lossy(&text);
        let files = text.split_inclusive('\n').filter_map(|line| line.strip_suffix('\n'));
        Ok(Self { files: files.map(str::to_owned).collect(), len: text.len() as u64 })
    }

    pub(super) fn has(&self, attr: &Attr) -> bool {
        self.files.contains(&line_of(attr))
    }

    pub(super) fn is_empty(&self) -> bool {
        self.files.is_empty()
    }

    /// Writes down files that are about to be changed.
    pub(super) fn add<'a>(
        &self,
        fs: &dyn Filesystem,
        state: &State,
        files: impl Iterator<Item = &'a Attr>,
    ) -> Result<()> {
        // After a line that was cut off a new one is begun.
        let mut text = if self.len > 0 { "\n".to_owned() } else { String::new() };
        for attr in files.filter(|attr| !self.has(attr)) {
            text.push_str(&line_of(attr));
            text.push('\n');
        }
        if text.len() < 2 {
            return Ok(());
        }
        let file = match open(fs, state) {
            Err(Errno::ENOENT) => {
                let new = own(Kind::File, 0o600);
                fs.create(state.home(), OsStr::new(NAME), &new, OpenFlags::READ_WRITE)?.1
            }
            file => file?,
        };
        write_all(&*file, text.as_bytes(), self.len)
    }

    /// Nothing is half done any more.
    pub(super) fn clear(fs: &dyn Filesystem, state: &State) -> Result<()> {
        match fs.unlink(state.home(), OsStr::new(NAME)) {
            Err(Errno::ENOENT) => Ok(()),
            done => done,
        }
    }
}

fn open(fs: &dyn Filesystem, state: &State) -> Result<Arc<dyn File>> {
    fs.open(fs.lookup(state.home(), OsStr::new(NAME))?.ino, OpenFlags::READ_WRITE)
}
