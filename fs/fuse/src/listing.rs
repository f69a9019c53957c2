//! A part of a directory, collected before anything else is asked of the tree: a driver may hold its locks
//! while it lists.

use std::ffi::OsStr;
use std::ops::ControlFlow;
use std::os::unix::ffi::OsStrExt;

use veduta_api::{DirEntry, Ino, Kind};

/// Bytes of an entry besides its name: `struct fuse_dirent`.
const PLAIN: usize = 24;

/// The same with attributes: `struct fuse_direntplus`.
const PLUS: usize = 152;

/// Entries that fit into the kernel's buffer, their names in one allocation.
pub(crate) struct Listing {
    /// Bytes that are left in the kernel's buffer.
    room: usize,
    per_entry: usize,
    names: Vec<u8>,
    items: Vec<Item>,
}

struct Item {
    is_dot: bool,
    name_end: usize,
    ino: Option<Ino>,
    st_ino: u64,
    kind: Option<Kind>,
    next: u64,
}

impl Listing {
    pub(crate) fn new(room: usize, plus: bool) -> Self {
        let per_entry = if plus { PLUS } else { PLAIN };
        // Half of a page is a common part of names; more is taken as it comes.
        Self {
            room,
            per_entry,
            names: Vec::with_capacity(2048),
            items: Vec::with_capacity(room / (per_entry + 16)),
        }
    }

    /// Takes an entry, or says that there is no room.
    pub(crate) fn take(&mut self, entry: DirEntry<'_>) -> ControlFlow<()> {
        self.push(entry, false)
    }

    /// Takes `.` or `..`, whose `next` is the kernel's offset and not a driver's position.
    pub(crate) fn take_dot(&mut self, entry: DirEntry<'_>) -> ControlFlow<()> {
        self.push(entry, true)
    }

    fn push(&mut self, entry: DirEntry<'_>, is_dot: bool) -> ControlFlow<()> {
        let name = entry.name.as_bytes();
        let needs = (self.per_entry + name.len()).next_multiple_of(8);
        if needs > self.room {
            self.room = 0;
            return ControlFlow::Break(());
        }
        self.room -= needs;
        self.names.extend_from_slice(name);
        let DirEntry { ino, st_ino, kind, next, .. } = entry;
        self.items.push(Item { is_dot, name_end: self.names.len(), ino, st_ino, kind, next });
        ControlFlow::Continue(())
    }

    /// The entries, and of each whether it is `.` or `..`.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (bool, DirEntry<'_>)> {
        let starts = std::iter::once(0).chain(self.items.iter().map(|item| item.name_end));
        self.items.iter().zip(starts).map(|(item, start)| {
            let name = OsStr::from_bytes(self.names.get(start..item.name_end).unwrap_or_default());
            let Item { ino, st_ino, kind, next, .. } = *item;
            (item.is_dot, DirEntry { name, ino, st_ino, kind, next })
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(name: &str, next: u64) -> DirEntry<'_> {
        DirEntry { name: OsStr::new(name), ino: None, st_ino: 7, kind: None, next }
    }

    #[test]
    fn what_does_not_fit_is_left_and_nothing_follows_it() {
        let mut listing = Listing::new(2 * 32, false);
        assert!(listing.take(entry("12345678", 1)).is_continue());
        assert!(listing.take(entry("123456789", 2)).is_break());
        assert!(listing.take(entry("1", 3)).is_break());
        let names: Vec<_> = listing.iter().map(|(_, entry)| entry.name.to_owned()).collect();
        assert_eq!(names, ["12345678"]);
    }
}
