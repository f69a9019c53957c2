//! Images of raw sectors: what a drive reads with error correction and all, made into sectors of 2048 bytes.
//!
//! A raw sector has 2352 bytes: a mark of 12 (`00 FF..FF 00`), an address of 3, the mode, and then
//!
//! - in mode 1 the 2048 bytes of data, and 288 of correction;
//! - in mode 2 a subheader of 8, twice the same 4, and the data: 2048 bytes in form 1, 2324 in form 2.
//!
//! Some images carry 96 bytes of subchannels after each sector (2448), and some leave out mark and address (2336,
//! mode 2). Form 2 is for streams that may have errors: of it, only the first 2048 bytes are shown.

use std::sync::Arc;

use veduta_api::{BlockDevice, Disk, Errno, Geometry, Result};

use crate::error::SECTOR;

const MARK: [u8; 12] = [0, 255, 255, 255, 255, 255, 255, 255, 255, 255, 255, 0];
/// Sectors that are read at once.
const BATCH: u64 = 64;

/// A disk of raw sectors, seen as one of data.
struct Raw {
    disk: Disk,
    layout: Layout,
}

/// How the bytes of a sector lie.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Layout {
    /// Bytes from one sector to the next.
    stride: u64,
    /// Whether sectors start with mark, address and mode.
    has_mark: bool,
}

/// The data of an image of raw sectors; `None` if it is an ordinary image.
pub(crate) fn data_view(disk: &Disk) -> Result<Option<Disk>> {
    let Some(layout) = detect(disk)? else { return Ok(None) };
    let raw = Raw { disk: disk.clone().read_only(), layout };
    Ok(Some(Disk::new(Arc::new(raw), disk.name())))
}

fn detect(disk: &Disk) -> Result<Option<Layout>> {
    let has = |at: u64, what: &[u8]| -> Result<bool> {
        let inside = at.saturating_add(what.len() as u64) <= disk.size();
        Ok(inside && disk.read_vec(at, what.len())? == what)
    };
    if has(0, &MARK)? {
        for stride in [2352, 2448] {
            if has(stride, &MARK)? {
                return Ok(Some(Layout { stride, has_mark: true }));
            }
        }
    }
    let stride = 2336;
    let is_headerless = has(16 * stride + 8 + 1, b"CD001")? && !has(16 * SECTOR + 1, b"CD001")?;
    Ok(is_headerless.then_some(Layout { stride, has_mark: false }))
}

impl Raw {
    /// The data within the bytes of sector `number`.
    fn data<'a>(&self, bytes: &'a [u8], number: u64) -> Result<&'a [u8]> {
        let start = match (self.layout.has_mark, bytes.get(15)) {
            (false, _) => 8,
            (true, Some(1)) if bytes.starts_with(&MARK) => 16,
            (true, Some(2)) if bytes.starts_with(&MARK) => 24,
            _ => {
                tracing::error!("iso9660: {}: raw sector {number} is of no mode known", self.disk.name());
                return Err(Errno::EIO);
            }
        };
        bytes.get(start..start + SECTOR as usize).ok_or(Errno::EIO)
    }
}

impl BlockDevice for Raw {
    fn geometry(&self) -> Geometry {
        let sectors = self.disk.size() / self.layout.stride;
        Geometry { size: sectors * SECTOR, read_only: true, ..self.disk.geometry() }
    }

    /// Sectors are read a batch at a time; each round gives at least one byte, so the loop ends.
    fn read_at(&self, buf: &mut [u8], offset: u64) -> Result<()> {
        let mut done = 0;
        while done < buf.len() {
            let at = offset + done as u64;
            let (first, skip) = (at / SECTOR, at % SECTOR);
            let count = (skip + (buf.len() - done) as u64).div_ceil(SECTOR).min(BATCH);
            let bytes =
                self.disk.read_vec(first * self.layout.stride, (count * self.layout.stride) as usize)?;
            let mut skip = skip as usize;
            for (sector, number) in bytes.chunks_exact(self.layout.stride as usize).zip(first..) {
                let data = &self.data(sector, number)?[skip..];
                let len = data.len().min(buf.len() - done);
                buf[done..done + len].copy_from_slice(&data[..len]);
                done += len;
                skip = 0;
            }
        }
        Ok(())
    }
}
