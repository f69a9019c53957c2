//! zstd in its seekable form (contrib/seekable_format in zstd), to be read in place.
//!
//! The content is cut into frames. Behind them is one more frame, which decoders skip, with a table: for each frame its packed and unpacked length, 32
//! bits each, and perhaps a checksum; then the *footer*, nine bytes: the count of frames, a byte of flags, and the mark 8F92EAB1h. All numbers are
//! little-endian.

use std::io::Read;
use std::ops::Range;
use std::sync::Arc;

use parking_lot::Mutex;
use veduta_api::{BlockDevice, Disk, Errno, Geometry, MountError, Report, Result, Value};

use crate::bytes::le32;
use crate::store::Store;
use crate::{Failed, damaged};

const MARK: u32 = 0x8f92_eab1;
const SKIPPED: u32 = 0x184d_2a5e;
const FOOTER: u64 = 9;
/// The format's own limit.
const MAX_FRAMES: u32 = 0x800_0000;
/// Bytes; larger frames are unpacked as a whole file instead.
const MAX_FRAME: u32 = 64 << 20;
/// Bytes of unpacked frames that are remembered.
const CACHE: usize = 32 << 20;

/// Whether a file ends in a table, and frames that are not too large for it to be of use.
pub(crate) fn has_table(store: &dyn Store) -> Result<bool> {
    Ok(table(store)?.is_some_and(|frames| {
        frames.iter().all(|frame| frame.unpacked.end - frame.unpacked.start <= u64::from(MAX_FRAME))
    }))
}

struct Frame {
    packed: Range<u64>,
    unpacked: Range<u64>,
}

/// `None` if there is no table, or not one that describes this very file.
fn table(store: &dyn Store) -> Result<Option<Vec<Frame>>> {
    let len = store.len()?;
    if len < FOOTER + 8 {
        return Ok(None);
    }
    let footer = store.read_vec(len - FOOTER, FOOTER as usize)?;
    let (count, flags) = (le32(&footer, 0), footer[4]);
    if le32(&footer, 5) != MARK || count > MAX_FRAMES || flags & 0x7c != 0 {
        return Ok(None);
    }
    let entry = if flags & 0x80 != 0 { 12 } else { 8 };
    let bytes = u64::from(count) * entry;
    let Some(start) = len.checked_sub(FOOTER + bytes + 8) else { return Ok(None) };
    let head = store.read_vec(start, 8)?;
    if le32(&head, 0) != SKIPPED || u64::from(le32(&head, 4)) != bytes + FOOTER {
        return Ok(None);
    }
    let entries = store.read_vec(start + 8, bytes as usize)?;
    let (mut packed, mut unpacked) = (0, 0);
    let mut frames = Vec::new();
    for entry in entries.chunks_exact(entry as usize) {
        let (next, next_unpacked) =
            (packed + u64::from(le32(entry, 0)), unpacked + u64::from(le32(entry, 4)));
        frames.push(Frame { packed: packed..next, unpacked: unpacked..next_unpacked });
        (packed, unpacked) = (next, next_unpacked);
    }
    Ok((packed <= start).then_some(frames))
}

pub(crate) fn open(store: &Arc<dyn Store>, name: &str, sector: u32) -> Result<(Disk, Report), MountError> {
    let frames = table(&**store).failed()?.ok_or_else(|| damaged("its table of frames"))?;
    let size = frames.last().map_or(0, |frame| frame.unpacked.end);
    let mut report = Report::new();
    report.put("format", "zstd");
    report.put("packed_size", Value::Bytes(store.len().failed()?)).put("unpacked_size", Value::Bytes(size));
    report.put("frames", frames.len() as u64);
    report.put("access", "seekable, read in place, read-only");
    let geometry = Geometry {
        logical_sector: sector,
        physical_sector: sector,
        read_only: true,
        ..Geometry::of_size(size)
    };
    let device = Seekable { store: Arc::clone(store), frames, geometry, known: Mutex::new(Vec::new()) };
    Ok((Disk::new(Arc::new(device), name), report))
}

struct Seekable {
    store: Arc<dyn Store>,
    frames: Vec<Frame>,
    geometry: Geometry,
    /// Unpacked frames, the last used at the end.
    known: Mutex<Vec<(usize, Arc<[u8]>)>>,
}

impl Seekable {
    fn frame(&self, index: usize) -> Result<Arc<[u8]>> {
        let mut known = self.known.lock();
        if let Some(at) = known.iter().position(|(frame, _)| *frame == index) {
            let found = known.remove(at);
            let bytes = Arc::clone(&found.1);
            known.push(found);
            return Ok(bytes);
        }
        drop(known);
        let frame = &self.frames[index];
        let packed =
            self.store.read_vec(frame.packed.start, (frame.packed.end - frame.packed.start) as usize)?;
        let mut bytes = vec![0; (frame.unpacked.end - frame.unpacked.start) as usize];
        zstd::stream::read::Decoder::with_buffer(&packed[..])
            .and_then(|mut decoder| decoder.read_exact(&mut bytes))
            .map_err(|error| {
                tracing::error!("zstd: the frame at {:#x} cannot be unpacked: {error}", frame.packed.start);
                Errno::EUCLEAN
            })?;
        let bytes: Arc<[u8]> = bytes.into();
        let mut known = self.known.lock();
        known.push((index, Arc::clone(&bytes)));
        let mut total: usize = known.iter().map(|(_, bytes)| bytes.len()).sum();
        while total > CACHE && known.len() > 1 {
            total -= known.remove(0).1.len();
        }
        Ok(bytes)
    }
}

impl BlockDevice for Seekable {
    fn geometry(&self) -> Geometry {
        self.geometry
    }

    fn read_at(&self, buf: &mut [u8], offset: u64) -> Result<()> {
        let mut done = 0;
        while done < buf.len() {
            let at = offset + done as u64;
            let index = self.frames.partition_point(|frame| frame.unpacked.end <= at);
            let start = self.frames.get(index).ok_or(Errno::EIO)?.unpacked.start;
            let bytes = self.frame(index)?;
            let from = (at - start) as usize;
            let len = (bytes.len() - from).min(buf.len() - done);
            buf[done..done + len].copy_from_slice(&bytes[from..from + len]);
            done += len;
        }
        Ok(())
    }
}
