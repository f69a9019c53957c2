//! The table, which gives this thing its name: for each cluster the next one of its file.
//!
//! It is kept in pages of 64 KiB, as on the disk, read when needed. Pages with changes stay until
//! [`Table::write_out`]; of the others, at most [`KEPT`] do. All copies are written, one is read.

use std::collections::BTreeSet;

use veduta_api::{Disk, Errno, Result};

use crate::boot::{Format, Layout};

/// Bytes of a page: a multiple of every sector size. The whole table of a FAT12 fits into one.
const PAGE: usize = 1 << 16;
/// Pages that are kept in memory: 64 MiB.
const KEPT: usize = 1024;

/// What the table says of a cluster.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Next {
    Free,
    Cluster(u32),
    Bad,
    End,
}

struct Page {
    bytes: Box<[u8]>,
    /// One bit a sector.
    changed: u128,
    used: u64,
}

/// The table in memory.
pub(crate) struct Table {
    format: Format,
    sector: usize,
    copies: Vec<u64>,
    len: u64,
    pages: Vec<Option<Page>>,
    loaded: usize,
    changed: BTreeSet<usize>,
    clock: u64,
}

impl Table {
    pub(crate) fn new(layout: &Layout) -> Self {
        // Entries 0 and 1 belong to no cluster. What lies behind the last cluster's is never looked at.
        let entries = u64::from(layout.clusters) + 2;
        let len = match layout.format {
            Format::Fat12 => (entries * 3).div_ceil(2),
            Format::Fat16 => entries * 2,
            _ => entries * 4,
        };
        let len = len.next_multiple_of(u64::from(layout.sector)).min(layout.table_len);
        Self {
            format: layout.format,
            sector: layout.sector as usize,
            copies: layout.tables.clone(),
            len,
            pages: std::iter::repeat_with(|| None).take(len.div_ceil(PAGE as u64) as usize).collect(),
            loaded: 0,
            changed: BTreeSet::new(),
            clock: 0,
        }
    }

    /// What follows `cluster`, which is the number of one.
    pub(crate) fn next(&mut self, disk: &Disk, cluster: u32) -> Result<Next> {
        let value = self.value(disk, cluster)?;
        Ok(self.meaning(value))
    }

    fn meaning(&self, value: u32) -> Next {
        let bad = match self.format {
            Format::Fat12 => 0xff7,
            Format::Fat16 => 0xfff7,
            Format::Fat32 => 0x0fff_fff7,
            Format::ExFat => 0xffff_fff7,
        };
        match value {
            0 => Next::Free,
            _ if value == bad => Next::Bad,
            _ if value > bad => Next::End,
            _ => Next::Cluster(value),
        }
    }

    /// Sets what follows a cluster. `Bad` is never set.
    pub(crate) fn set(&mut self, disk: &Disk, cluster: u32, next: Next) -> Result<()> {
        let value = match next {
            Next::Free => 0,
            Next::Cluster(next) => next,
            Next::End | Next::Bad => u32::MAX,
        };
        self.set_value(disk, cluster, value)
    }

    /// The entry of `cluster` as a number.
    pub(crate) fn value(&mut self, disk: &Disk, cluster: u32) -> Result<u32> {
        let at = self.place(cluster);
        let width = if self.format == Format::Fat12 || self.format == Format::Fat16 { 2 } else { 4 };
        let format = self.format;
        let page = self.page(disk, at / PAGE)?;
        let raw = page.bytes.get(at % PAGE..at % PAGE + width).ok_or(Errno::EUCLEAN)?;
        Ok(match format {
            Format::Fat12 => u32::from(u16::from_le_bytes([raw[0], raw[1]]) >> (cluster % 2 * 4) & 0xfff),
            Format::Fat16 => u32::from(u16::from_le_bytes([raw[0], raw[1]])),
            Format::Fat32 => u32::from_le_bytes([raw[0], raw[1], raw[2], raw[3]]) & 0x0fff_ffff,
            Format::ExFat => u32::from_le_bytes([raw[0], raw[1], raw[2], raw[3]]),
        })
    }

    pub(crate) fn set_value(&mut self, disk: &Disk, cluster: u32, value: u32) -> Result<()> {
        let at = self.place(cluster);
        let (format, sector) = (self.format, self.sector);
        let page = self.page(disk, at / PAGE)?;
        let within = at % PAGE;
        let width = if format == Format::Fat12 || format == Format::Fat16 { 2 } else { 4 };
        let raw = page.bytes.get_mut(within..within + width).ok_or(Errno::EUCLEAN)?;
        match format {
            Format::Fat12 => {
                let shift = cluster % 2 * 4;
                let old = u16::from_le_bytes([raw[0], raw[1]]);
                let new = old & !(0xfff << shift) | ((value & 0xfff) as u16) << shift;
                raw.copy_from_slice(&new.to_le_bytes());
            }
            Format::Fat16 => raw.copy_from_slice(&(value as u16).to_le_bytes()),
            Format::Fat32 => {
                // The upper four bits are not ours.
                let old = u32::from_le_bytes([raw[0], raw[1], raw[2], raw[3]]);
                raw.copy_from_slice(&(old & 0xf000_0000 | value & 0x0fff_ffff).to_le_bytes());
            }
            Format::ExFat => raw.copy_from_slice(&value.to_le_bytes()),
        }
        page.changed |= 1 << (within / sector) | 1 << ((within + width - 1) / sector);
        self.changed.insert(at / PAGE);
        Ok(())
    }

    /// Which of `count` clusters from `first` on are free, as bits. Does not fill the memory with pages: a large part
    /// of the table is read once.
    pub(crate) fn free_bits(&mut self, disk: &Disk, first: u32, count: u32) -> Result<Box<[u64; 512]>> {
        let mut bits = Box::new([0; 512]);
        let few = self.len <= (KEPT * PAGE / 2) as u64;
        let mut scratch: Option<(usize, Box<[u8]>)> = None;
        for number in 0..count {
            let cluster = first + number;
            let at = self.place(cluster);
            let index = at / PAGE;
            let value = if few || self.pages.get(index).is_some_and(Option::is_some) {
                self.value(disk, cluster)?
            } else {
                if scratch.as_ref().is_none_or(|(page, _)| *page != index) {
                    scratch = Some((index, self.read_page(disk, index)?));
                }
                // Only tables of 32-bit entries are this large.
                let raw = scratch.as_ref().and_then(|(_, bytes)| bytes.get(at % PAGE..at % PAGE + 4));
                let raw = raw.and_then(|raw| raw.try_into().ok()).ok_or(Errno::EUCLEAN)?;
                u32::from_le_bytes(raw) & 0x0fff_ffff
            };
            if value == 0 {
                bits[(number / 64) as usize] |= 1 << (number % 64);
            }
        }
        Ok(bits)
    }

    /// Whether [`write_out`](Self::write_out) has something to do.
    pub(crate) fn is_changed(&self) -> bool {
        !self.changed.is_empty()
    }

    /// Writes all changes, to all copies.
    pub(crate) fn write_out(&mut self, disk: &Disk) -> Result<()> {
        while let Some(index) = self.changed.first().copied() {
            if let Some(page) = self.pages[index].as_mut() {
                for range in ranges(page.changed) {
                    let range = range.start * self.sector..(range.end * self.sector).min(page.bytes.len());
                    for copy in &self.copies {
                        disk.write_at(
                            &page.bytes[range.clone()],
                            copy + (index * PAGE + range.start) as u64,
                        )?;
                    }
                }
                page.changed = 0;
            }
            self.changed.remove(&index);
        }
        Ok(())
    }

    /// The byte at which the entry of a cluster starts.
    fn place(&self, cluster: u32) -> usize {
        let cluster = cluster as usize;
        match self.format {
            Format::Fat12 => cluster + cluster / 2,
            Format::Fat16 => cluster * 2,
            _ => cluster * 4,
        }
    }

    fn page(&mut self, disk: &Disk, index: usize) -> Result<&mut Page> {
        self.clock += 1;
        if self.pages.get(index).ok_or(Errno::EUCLEAN)?.is_none() {
            if self.loaded >= KEPT {
                self.drop_oldest();
            }
            let bytes = self.read_page(disk, index)?;
            self.pages[index] = Some(Page { bytes, changed: 0, used: 0 });
            self.loaded += 1;
        }
        let page = self.pages[index].as_mut().ok_or(Errno::EUCLEAN)?;
        page.used = self.clock;
        Ok(page)
    }

    fn read_page(&self, disk: &Disk, index: usize) -> Result<Box<[u8]>> {
        let start = index as u64 * PAGE as u64;
        let len = (self.len - start).min(PAGE as u64) as usize;
        Ok(disk.read_vec(self.copies[0] + start, len)?.into())
    }

    /// Drops the page without changes that was not used for longest.
    fn drop_oldest(&mut self) {
        let unchanged = self.pages.iter().enumerate().filter_map(|(index, page)| {
            page.as_ref().filter(|page| page.changed == 0).map(|page| (page.used, index))
        });
        if let Some((_, index)) = unchanged.min() {
            self.pages[index] = None;
            self.loaded -= 1;
        }
    }
}

/// The ranges of ones in a set of bits.
fn ranges(mut bits: u128) -> Vec<std::ops::Range<usize>> {
    let (mut found, mut at) = (Vec::new(), 0);
    while bits != 0 {
        let zeros = bits.trailing_zeros();
        bits >>= zeros;
        let ones = bits.trailing_ones();
        bits = bits.checked_shr(ones).unwrap_or(0);
        at += zeros as usize;
        found.push(at..at + ones as usize);
        at += ones as usize;
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_of_ones_are_found() {
        assert_eq!(ranges(0), []);
        assert_eq!(ranges(u128::MAX).first(), Some(&(0..128)));
        assert_eq!(ranges(0b110_0101 | 1 << 127), [0..1, 2..3, 5..7, 127..128]);
    }
}
