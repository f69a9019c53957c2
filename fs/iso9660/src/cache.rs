//! Directories that were read lately.
//!
//! Two halves: what is used goes to the young one; when that is full it becomes the old one, and the old one is
//! forgotten. So what was not used for half the capacity goes, and nothing is ever searched or sorted.

use std::collections::HashMap;
use std::sync::Arc;

use crate::directory::Directory;

/// Bytes that a half may hold, about. A directory larger than this is still kept, alone.
const HALF: usize = 16 << 20;

#[derive(Debug, Default)]
pub(crate) struct Cache {
    young: HashMap<u64, Arc<Directory>>,
    old: HashMap<u64, Arc<Directory>>,
    /// Bytes in `young`.
    weight: usize,
}

impl Cache {
    /// The directory that starts at byte `start`.
    pub(crate) fn find(&mut self, start: u64) -> Option<Arc<Directory>> {
        if let Some(directory) = self.young.get(&start) {
            return Some(Arc::clone(directory));
        }
        let directory = self.old.remove(&start)?;
        self.insert(start, Arc::clone(&directory));
        Some(directory)
    }

    pub(crate) fn insert(&mut self, start: u64, directory: Arc<Directory>) {
        if self.weight + directory.weight() > HALF {
            self.old = std::mem::take(&mut self.young);
            self.weight = 0;
        }
        self.weight += directory.weight();
        self.young.insert(start, directory);
    }
}
