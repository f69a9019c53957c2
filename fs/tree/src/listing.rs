//! The listing of a directory that somebody else keeps: positions that stay valid while others change it.
//!
//! The host system's own positions do not fit (63-bit hashes on ext4), and a server's are strings. So the names are read
//! at position 0, all of them, and numbered in the order in which they were first seen. Reading them again numbers
//! only new ones, and forgets what is gone: a position that was handed out keeps its meaning.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::ffi::{OsStr, OsString};
use std::ops::ControlFlow;
use std::sync::Arc;

use parking_lot::Mutex;
use veduta_api::{DirEntry, DirSink, Kind, Result};

/// One entry, as a path filesystem or the host system lists it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Listed {
    /// The name; neither `.` nor `..`.
    pub name: OsString,
    /// What `d_ino` shows.
    pub st_ino: u64,
    /// The type, if the listing tells it.
    pub kind: Option<Kind>,
}

/// The names of one open directory, and their positions. See the head of this file.
#[derive(Default)]
pub struct Listing(Mutex<Slots>);

#[derive(Default)]
struct Slots {
    by_position: BTreeMap<u64, (Arc<OsStr>, u64, Option<Kind>)>,
    by_name: HashMap<Arc<OsStr>, u64>,
    last: u64,
}

impl Listing {
    /// Lists from `position` on; at 0, `read` says what there is now. So it does where nobody began at 0: the kernel may remember a listing
    /// from one opening to the next, and go on in a new one where it had to forget. If nothing changed, the numbers are the same.
    pub fn read(
        &self,
        position: u64,
        read: impl FnOnce() -> Result<Vec<Listed>>,
        sink: &mut DirSink<'_>,
    ) -> Result<()> {
        // The directory is read without the lock: it may take long, and other positions can be served meanwhile.
        let begins = position == 0 || self.0.lock().last == 0;
        let fresh = if begins { Some(read()?) } else { None };
        let mut slots = self.0.lock();
        if let Some(fresh) = fresh {
            slots.update(fresh);
        }
        for (position, (name, st_ino, kind)) in slots.by_position.range(position.saturating_add(1)..) {
            let listed = DirEntry { name, ino: None, st_ino: *st_ino, kind: *kind, next: *position };
            if sink(listed) == ControlFlow::Break(()) {
                break;
            }
        }
        Ok(())
    }
}

impl Slots {
    fn update(&mut self, fresh: Vec<Listed>) {
        let mut there = HashSet::new();
        for listed in fresh {
            let name: Arc<OsStr> = Arc::from(listed.name);
            let position = *self.by_name.entry(Arc::clone(&name)).or_insert_with(|| {
                self.last += 1;
                self.last
            });
            self.by_position.insert(position, (name, listed.st_ino, listed.kind));
            there.insert(position);
        }
        self.by_position.retain(|position, _| there.contains(position));
        self.by_name.retain(|_, position| there.contains(position));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(listing: &Listing, position: u64, now: &str) -> Vec<(String, u64)> {
        let listed = |name: &str| Listed { name: name.into(), st_ino: 1, kind: None };
        let mut seen = Vec::new();
        let fresh = || Ok(now.split_whitespace().map(listed).collect());
        let taken = listing.read(position, fresh, &mut |entry| {
            seen.push((entry.name.to_str().unwrap().to_owned(), entry.next));
            ControlFlow::Continue(())
        });
        taken.unwrap();
        seen
    }

    #[test]
    fn a_position_keeps_its_meaning_when_the_directory_is_read_again() {
        let listing = Listing::default();
        let first = names(&listing, 0, "a b c");
        let behind_a = first[0].1;
        names(&listing, 0, "d c b");
        let rest: Vec<_> = names(&listing, behind_a, "").into_iter().map(|(name, _)| name).collect();
        assert_eq!(rest, ["b", "c", "d"]);
    }

    #[test]
    fn another_opening_goes_on_where_one_was() {
        let behind_a = names(&Listing::default(), 0, "a b c")[0].1;
        let rest: Vec<_> =
            names(&Listing::default(), behind_a, "a b c").into_iter().map(|(name, _)| name).collect();
        assert_eq!(rest, ["b", "c"]);
    }
}
