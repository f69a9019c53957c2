//! Open files and directories, by the number that the kernel knows them by.
//!
//! Handle 0 means "never opened": trees that cannot change are used without opening anything, and then
//! files are kept by node number instead.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;

use fuser::BackingId;
use parking_lot::RwLock;
use veduta_api::{Directory, Errno, File, Ino, Result};

/// An open file.
pub(crate) struct OpenFile {
    pub(crate) ino: Ino,
    pub(crate) file: Arc<dyn File>,
    pub(crate) writable: bool,
    /// How the kernel uses it, where it may pass data by us.
    pub(crate) path: DataPath,
    /// Up to which change of capabilities (see `Host::capabilities`) this file's node has lost its own.
    pub(crate) uncapped: AtomicU64,
}

/// How data gets to the reader.
#[derive(Clone)]
pub(crate) enum DataPath {
    /// From us, through the page cache.
    Cached,
    /// From us, past the page cache.
    Direct,
    /// From the backing file; the kernel does not ask us.
    Backing(Arc<BackingId>),
}

/// An open directory of a tree that remembers something about it.
pub(crate) struct OpenDir {
    pub(crate) dir: Arc<dyn Directory>,
}

/// Numbered things. Numbers start at 1 and are used again.
pub(crate) struct Handles<T>(RwLock<Slab<T>>);

struct Slab<T> {
    items: Vec<Option<Arc<T>>>,
    free: Vec<usize>,
}

impl<T> Handles<T> {
    pub(crate) fn new() -> Self {
        Self(RwLock::new(Slab { items: Vec::new(), free: Vec::new() }))
    }

    pub(crate) fn insert(&self, item: T) -> u64 {
        let mut slab = self.0.write();
        let item = Some(Arc::new(item));
        let index = match slab.free.pop() {
            Some(index) => index,
            None => {
                slab.items.push(None);
                slab.items.len() - 1
            }
        };
        if let Some(place) = slab.items.get_mut(index) {
            *place = item;
        }
        index as u64 + 1
    }

    /// `EBADF` for a number that nothing has.
    pub(crate) fn find(&self, handle: u64) -> Result<Arc<T>> {
        let slab = self.0.read();
        let index = handle.wrapping_sub(1) as usize;
        slab.items.get(index).and_then(Clone::clone).ok_or(Errno::EBADF)
    }

    pub(crate) fn remove(&self, handle: u64) -> Option<Arc<T>> {
        let mut slab = self.0.write();
        let index = handle.wrapping_sub(1) as usize;
        let item = slab.items.get_mut(index)?.take()?;
        slab.free.push(index);
        Some(item)
    }

    /// Takes everything out.
    pub(crate) fn drain(&self) -> Vec<Arc<T>> {
        let mut slab = self.0.write();
        slab.free.clear();
        std::mem::take(&mut slab.items).into_iter().flatten().collect()
    }
}

/// Files of a tree that is used without opening: the kernel may ask for any node at any time. Sharded by node
/// number, so that readers of different files rarely meet.
pub(crate) struct FilesByIno {
    shards: [RwLock<HashMap<u64, Arc<OpenFile>>>; SHARDS],
}

const SHARDS: usize = 16;

/// Files that a shard keeps open. When there are more, it drops all, and those in use are opened again.
const KEPT: usize = 256;

impl FilesByIno {
    pub(crate) fn new() -> Self {
        Self { shards: std::array::from_fn(|_| RwLock::default()) }
    }

    fn shard(&self, ino: Ino) -> &RwLock<HashMap<u64, Arc<OpenFile>>> {
        // Node numbers may be offsets into an image, whose low bits are all alike.
        let mixed = ino.0.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 60;
        self.shards.get(mixed as usize).unwrap_or(&self.shards[0])
    }

    pub(crate) fn find(&self, ino: Ino) -> Option<Arc<OpenFile>> {
        self.shard(ino).read().get(&ino.0).cloned()
    }

    /// Keeps a file; if another thread was faster, that thread's.
    pub(crate) fn insert(&self, file: OpenFile) -> Arc<OpenFile> {
        let mut shard = self.shard(file.ino).write();
        let dropped = if shard.len() >= KEPT { std::mem::take(&mut *shard) } else { HashMap::new() };
        let kept = shard.entry(file.ino.0).or_insert_with(|| Arc::new(file)).clone();
        drop(shard);
        drop(dropped);
        kept
    }

    pub(crate) fn remove(&self, ino: Ino) {
        let removed = self.shard(ino).write().remove(&ino.0);
        drop(removed);
    }

    pub(crate) fn clear(&self) {
        for shard in &self.shards {
            let dropped = std::mem::take(&mut *shard.write());
            drop(dropped);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_number_is_used_again_only_when_it_is_free() {
        let handles = Handles::new();
        let (a, b) = (handles.insert('a'), handles.insert('b'));
        assert_eq!((a, b), (1, 2));
        assert_eq!(*handles.find(a).unwrap(), 'a');
        assert_eq!(handles.remove(a).as_deref(), Some(&'a'));
        assert!(handles.remove(a).is_none());
        assert_eq!(handles.find(a), Err(Errno::EBADF));
        assert_eq!(handles.insert('c'), a);
        assert_eq!(handles.find(0), Err(Errno::EBADF));
        assert_eq!(handles.find(u64::MAX), Err(Errno::EBADF));
        assert_eq!(handles.drain().len(), 2);
    }
}
