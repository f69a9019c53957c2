//! A throw-away layer: what is written goes to a scratch file, and the disk below stays as it is.
//!
//! The scratch is as long as the disk, and a block lies in it where it lies on the disk, so that only what was written takes up
//! space. What was written where is in memory: with the mount, all of it is gone.

use std::collections::HashMap;
use std::sync::Arc;

use veduta_api::{Disk, Geometry, Result};

use crate::mapped::{Map, Mapped, Room, Slot};
use crate::store::Store;

/// Bytes.
const BLOCK: u64 = 64 << 10;

/// A disk that shows `below` with what was written since, which is kept in `scratch`, an empty store.
pub fn snapshot(below: &Disk, scratch: &Arc<dyn Store>) -> Disk {
    let geometry = Geometry { read_only: false, ..below.geometry() };
    let overlay = Overlay { written: HashMap::new() };
    let device = Mapped::new(Arc::clone(scratch), overlay, geometry, BLOCK, Some(below.clone()));
    Disk::new(Arc::new(device), below.name())
}

struct Overlay {
    /// Blocks that are not those below; `false`: zeros.
    written: HashMap<u64, bool>,
}

impl Map for Overlay {
    fn find(&self, block: u64) -> Result<Slot> {
        Ok(match self.written.get(&block) {
            None => Slot::Absent,
            Some(false) => Slot::Zero,
            Some(true) => Slot::Data { at: block * BLOCK, own: true },
        })
    }

    fn place(&mut self, block: u64, count: u64) -> Result<Room> {
        // What was written and then cleared left its content.
        let is_zero = (block..block + count).all(|one| !self.written.contains_key(&one));
        Ok(Room { at: block * BLOCK, count, is_zero })
    }

    fn link(&mut self, block: u64, room: Room) -> Result<()> {
        self.written.extend((block..block + room.count).map(|one| (one, true)));
        Ok(())
    }

    fn clear(&mut self, block: u64, count: u64, _absent: bool) -> Result<bool> {
        self.written.extend((block..block + count).map(|one| (one, false)));
        Ok(true)
    }
}
