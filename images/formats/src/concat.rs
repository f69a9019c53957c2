//! Disks one behind the other, as one: the extents of a VMDK.

use std::ops::Range;

use veduta_api::{BlockDevice, Disk, Geometry, Result};

/// Parts in their order; `None` reads as zeros and takes nothing else.
pub(crate) struct Concat {
    pub(crate) parts: Vec<(Range<u64>, Option<Disk>)>,
    pub(crate) geometry: Geometry,
}

impl Concat {
    /// Calls `each` with every part of a range: the disk, the offset in it, and the bytes of the range.
    fn split(
        &self,
        offset: u64,
        len: u64,
        mut each: impl FnMut(Option<&Disk>, u64, Range<usize>) -> Result<()>,
    ) -> Result<()> {
        let end = offset + len;
        let first = self.parts.partition_point(|(range, _)| range.end <= offset);
        for (range, disk) in self.parts.iter().skip(first).take_while(|(range, _)| range.start < end) {
            let (from, to) = (range.start.max(offset), range.end.min(end));
            each(disk.as_ref(), from - range.start, (from - offset) as usize..(to - offset) as usize)?;
        }
        Ok(())
    }
}

impl BlockDevice for Concat {
    fn geometry(&self) -> Geometry {
        self.geometry
    }

    fn read_at(&self, buf: &mut [u8], offset: u64) -> Result<()> {
        self.split(offset, buf.len() as u64, |disk, at, part| match disk {
            Some(disk) => disk.read_at(&mut buf[part], at),
            None => {
                buf[part].fill(0);
                Ok(())
            }
        })
    }

    fn write_at(&self, buf: &[u8], offset: u64) -> Result<()> {
        self.split(offset, buf.len() as u64, |disk, at, part| match disk {
            Some(disk) => disk.write_at(&buf[part], at),
            None => Err(veduta_api::Errno::EROFS),
        })
    }

    fn flush(&self) -> Result<()> {
        self.parts.iter().filter_map(|(_, disk)| disk.as_ref()).try_for_each(Disk::flush)
    }

    fn discard(&self, offset: u64, len: u64) -> Result<()> {
        self.split(offset, len, |disk, at, part| {
            disk.map_or(Ok(()), |disk| disk.discard(at, part.len() as u64))
        })
    }

    fn write_zeroes(&self, offset: u64, len: u64) -> Result<()> {
        self.split(offset, len, |disk, at, part| {
            disk.map_or(Ok(()), |disk| disk.write_zeroes(at, part.len() as u64))
        })
    }

    fn next_data(&self, offset: u64) -> Result<Option<Range<u64>>> {
        let first = self.parts.partition_point(|(range, _)| range.end <= offset);
        for (range, disk) in self.parts.iter().skip(first) {
            let Some(disk) = disk else { continue };
            if let Some(found) = disk.next_data(offset.saturating_sub(range.start))? {
                return Ok(Some(range.start + found.start..(range.start + found.end).min(range.end)));
            }
        }
        Ok(None)
    }
}
