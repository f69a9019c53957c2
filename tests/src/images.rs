//! Targets for what is below a filesystem: images of disks in their formats, and the NBD server.

use std::sync::Arc;

use veduta_api::{Disk, Errno, MountError};
use veduta_formats::{Files, How, MemoryStore, Named, Store};

use crate::{MemoryDisk, Seen};

/// Bytes; what an image may grow to, and what a compressed one may unpack to.
const LIMIT: u64 = 16 << 20;

/// Files that an image names: there are none.
struct None;

impl Files for None {
    fn open(&self, name: &str, _writable: bool) -> Result<Named, MountError> {
        Err(MountError::system(Errno::ENOENT, format!("there is no {name}")))
    }
    fn scratch(&self) -> Result<Arc<dyn Store>, MountError> {
        Ok(Arc::new(MemoryStore::new(Vec::new(), LIMIT)))
    }
}

/// Opens an image to write, as it is and with its checksums put right, and uses it.
pub(crate) fn image(bytes: &[u8]) -> Option<Seen> {
    let plain = use_image(bytes.to_vec(), true);
    let mut sealed = bytes.to_vec();
    seal(&mut sealed);
    if sealed != bytes {
        let _ = use_image(sealed.clone(), true);
        let _ = use_image(sealed, false);
    }
    plain
}

fn use_image(bytes: Vec<u8>, writable: bool) -> Option<Seen> {
    let store: Arc<dyn Store> = Arc::new(MemoryStore::new(bytes, LIMIT));
    let how = How { writable, name: "memory", ..How::default() };
    match veduta_formats::open(&store, &None, how) {
        Ok(Some(image)) => Some(use_disk(&image.disk)),
        Ok(Option::None) => Option::None,
        Err(error) => {
            assert!(!error.message.is_empty(), "an image that is refused says why");
            Option::None
        }
    }
}

/// Reads, looks for data, and writes if that is possible.
fn use_disk(disk: &Disk) -> Seen {
    let mut seen = Seen { nodes: 1, errors: 0 };
    let mut note = |done: veduta_api::Result<()>| {
        if let Err(errno) = done {
            assert_ne!(errno, Errno::ENOSYS, "a driver never returns ENOSYS");
            seen.errors += 1;
        }
    };
    let size = disk.size();
    let places = [0, 512, size / 3, size / 2, size.saturating_sub(70_000), size.saturating_sub(1)];
    let part = |at: u64, len: u64| len.min(size - at.min(size));
    for at in places {
        note(disk.read_vec(at, part(at, 100_000) as usize).map(drop));
    }
    let mut at = 0;
    for _ in 0..64 {
        match disk.next_data(at) {
            Ok(Some(data)) => {
                assert!(
                    data.start >= at && data.end <= size && data.start < data.end,
                    "a search goes forward"
                );
                at = data.end;
            }
            Ok(Option::None) => break,
            Err(errno) => {
                note(Err(errno));
                break;
            }
        }
    }
    if !disk.is_read_only() {
        for at in places {
            note(disk.write_at(&vec![7; part(at, 5000) as usize], at));
            note(disk.write_zeroes(at, part(at, 70_000)));
            note(disk.discard(at, part(at, 200_000)));
            note(disk.write_at(&vec![9; part(at, 70_000) as usize], at));
            note(disk.read_vec(at, part(at, 70_000) as usize).map(drop));
            note(disk.flush());
        }
    }
    seen
}

/// Puts the checksums of VHD and VHDX right where they have them.
fn seal(bytes: &mut [u8]) {
    for (mark, at, len, sum_at) in [(&b"conectix"[..], 0, 512, 64), (b"cxsparse", 512, 1024, 36)] {
        let Some(part) = bytes.get_mut(at..at + len).filter(|part| part.starts_with(mark)) else { continue };
        part[sum_at..sum_at + 4].fill(0);
        let sum = part.iter().fold(0_u32, |sum, byte| sum.wrapping_add(u32::from(*byte)));
        part[sum_at..sum_at + 4].copy_from_slice(&(!sum).to_be_bytes());
    }
    if bytes.starts_with(b"vhdxfile") {
        for (at, len) in [(64 << 10, 4096), (128 << 10, 4096), (192 << 10, 65536), (256 << 10, 65536)] {
            let Some(part) = bytes.get_mut(at..at + len) else { continue };
            part[4..8].fill(0);
            let crc = crc32c::crc32c(part);
            part[4..8].copy_from_slice(&crc.to_le_bytes());
        }
    }
}

/// One client of the NBD server, which sends these bytes.
pub(crate) fn client(bytes: &[u8]) -> Option<Seen> {
    let disk = Disk::new(Arc::new(MemoryDisk(vec![1; 100_000].into())), "memory");
    let mut answers = Vec::new();
    let done = veduta_nbd::session(&disk, bytes, &mut answers);
    Some(Seen { nodes: 1, errors: usize::from(done.is_err()) })
}
