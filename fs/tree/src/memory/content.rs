//! The content of a file in memory: pages over an optional source.
//!
//! A byte comes from the page that holds it, else from the source if it lies below `base_len`, else it is zero. So a file of an
//! archive takes no memory until it is written, and a hole takes none at all.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use veduta_api::{Errno, Result};

/// Where the content of a file of an archive comes from.
pub trait Source: Send + Sync {
    /// Fills `buf` from `offset`. The tree asks only for ranges inside the size that it was given with the source.
    fn read_at(&self, buf: &mut [u8], offset: u64) -> Result<()>;
}

/// Bytes; the unit in which memory is taken.
pub(super) const PAGE: u64 = 4096;

/// The pages of a whole tree: how many there are, and may be.
pub(super) struct Budget {
    pub(super) limit: Option<u64>,
    used: AtomicU64,
}

impl Budget {
    pub(super) fn new(limit: Option<u64>) -> Self {
        Self { limit, used: AtomicU64::new(0) }
    }

    pub(super) fn used(&self) -> u64 {
        self.used.load(Ordering::Relaxed)
    }

    fn take(&self) -> Result<()> {
        let limit = self.limit.unwrap_or(u64::MAX);
        let grow = |used: u64| (used < limit).then_some(used + 1);
        let taken = self.used.fetch_update(Ordering::Relaxed, Ordering::Relaxed, grow);
        taken.map(drop).map_err(|_| Errno::ENOSPC)
    }

    fn give_back(&self, pages: u64) {
        self.used.fetch_sub(pages, Ordering::Relaxed);
    }
}

type Page = Box<[u8; PAGE as usize]>;

pub(super) struct Content {
    size: u64,
    pages: BTreeMap<u64, Page>,
    base: Option<Arc<dyn Source>>,
    /// Bytes of the source that still count; at most the size.
    base_len: u64,
    budget: Arc<Budget>,
}

impl Content {
    pub(super) fn new(budget: Arc<Budget>) -> Self {
        Self { size: 0, pages: BTreeMap::new(), base: None, base_len: 0, budget }
    }

    pub(super) fn from_source(source: Arc<dyn Source>, size: u64, budget: Arc<Budget>) -> Self {
        Self { size, pages: BTreeMap::new(), base: Some(source), base_len: size, budget }
    }

    pub(super) fn size(&self) -> u64 {
        self.size
    }

    /// Sectors of 512 bytes.
    pub(super) fn blocks(&self) -> u64 {
        let beyond = self.pages.range(self.base_len.div_ceil(PAGE)..).count() as u64;
        let own = if self.base_len == 0 { self.pages.len() as u64 } else { beyond };
        self.base_len.div_ceil(512) + own * (PAGE / 512)
    }

    /// Fills `buf` from `offset`, and says how much there was.
    pub(super) fn read(&self, buf: &mut [u8], offset: u64) -> Result<usize> {
        let end = self.size.min(offset.saturating_add(buf.len() as u64));
        let mut at = offset;
        while at < end {
            let (index, within) = (at / PAGE, (at % PAGE) as usize);
            let done = (at - offset) as usize;
            if let Some(page) = self.pages.get(&index) {
                let len = (PAGE as usize - within).min((end - at) as usize);
                buf[done..done + len].copy_from_slice(&page[within..within + len]);
                at += len as u64;
            } else {
                let next = self.pages.range(index..).next().map_or(end, |(next, _)| end.min(next * PAGE));
                self.read_base(&mut buf[done..done + (next - at) as usize], at)?;
                at = next;
            }
        }
        Ok(end.saturating_sub(offset) as usize)
    }

    /// Source bytes where there are some, then zeros.
    fn read_base(&self, buf: &mut [u8], at: u64) -> Result<()> {
        let there = self.base_len.saturating_sub(at).min(buf.len() as u64) as usize;
        let (from_base, zeros) = buf.split_at_mut(there);
        zeros.fill(0);
        match &self.base {
            Some(base) if !from_base.is_empty() => base.read_at(from_base, at),
            _ => Ok(()),
        }
    }

    /// Writes as much of `buf` as there is memory for. `ENOSPC` if there is none.
    pub(super) fn write(&mut self, buf: &[u8], offset: u64) -> Result<usize> {
        let end = offset.checked_add(buf.len() as u64).ok_or(Errno::EFBIG)?;
        let mut at = offset;
        while at < end {
            let (within, done) = ((at % PAGE) as usize, (at - offset) as usize);
            let len = (PAGE as usize - within).min((end - at) as usize);
            let page = match self.page(at / PAGE) {
                Ok(page) => page,
                Err(_) if done > 0 => break,
                Err(error) => return Err(error),
            };
            page[within..within + len].copy_from_slice(&buf[done..done + len]);
            at += len as u64;
        }
        self.size = self.size.max(at);
        Ok((at - offset) as usize)
    }

    /// The page, made with its present bytes if there was none.
    fn page(&mut self, index: u64) -> Result<&mut Page> {
        if !self.pages.contains_key(&index) {
            self.budget.take()?;
            let mut page = Box::new([0; PAGE as usize]);
            if let Err(error) = self.read_base(&mut page[..], index * PAGE) {
                self.budget.give_back(1);
                return Err(error);
            }
            self.pages.insert(index, page);
        }
        self.pages.get_mut(&index).ok_or(Errno::EIO)
    }

    pub(super) fn set_size(&mut self, size: u64) {
        if size < self.size {
            let gone = self.pages.split_off(&size.div_ceil(PAGE));
            self.budget.give_back(gone.len() as u64);
            if let Some(page) = self.pages.get_mut(&(size / PAGE)) {
                page[(size % PAGE) as usize..].fill(0);
            }
            self.base_len = self.base_len.min(size);
        }
        self.size = size;
    }

    /// Makes a range read as zeros, giving back the memory of whole pages. The size stays.
    pub(super) fn punch(&mut self, offset: u64, len: u64) -> Result<()> {
        let end = offset.saturating_add(len);
        if end >= self.base_len {
            self.base_len = self.base_len.min(offset);
        }
        let covered = end.min(self.base_len).div_ceil(PAGE);
        // Pages of the source become pages of zeros; of all others, only those that exist matter.
        for index in offset / PAGE..covered {
            self.page(index)?;
        }
        let affected: Vec<u64> =
            self.pages.range(offset / PAGE..end.div_ceil(PAGE)).map(|(at, _)| *at).collect();
        for index in affected {
            let start = index * PAGE;
            let is_whole = offset <= start && end >= start + PAGE && start >= self.base_len;
            if is_whole {
                self.pages.remove(&index);
                self.budget.give_back(1);
            } else if let Some(page) = self.pages.get_mut(&index) {
                page[offset.max(start) as usize % PAGE as usize..]
                    [..(end.min(start + PAGE) - offset.max(start)) as usize]
                    .fill(0);
            }
        }
        Ok(())
    }

    /// Takes the memory for a range now. `ENOSPC`, with nothing changed, if there is not enough.
    pub(super) fn reserve(&mut self, offset: u64, len: u64) -> Result<()> {
        let mut made = Vec::new();
        for index in offset / PAGE..offset.saturating_add(len).div_ceil(PAGE) {
            let is_new = !self.pages.contains_key(&index);
            if let Err(error) = self.page(index) {
                for index in &made {
                    self.pages.remove(index);
                }
                self.budget.give_back(made.len() as u64);
                return Err(error);
            }
            if is_new {
                made.push(index);
            }
        }
        Ok(())
    }

    pub(super) fn next_data(&self, offset: u64) -> Option<u64> {
        if offset < self.base_len {
            return Some(offset);
        }
        let page = self.pages.range(offset / PAGE..).next();
        page.map(|(index, _)| offset.max(index * PAGE)).filter(|at| *at < self.size)
    }

    /// At most the size, where the hole behind every file begins.
    pub(super) fn next_hole(&self, offset: u64) -> u64 {
        let mut at = offset.max(self.base_len);
        // Each step goes to the next of the pages that exist.
        while at < self.size && self.pages.contains_key(&(at / PAGE)) {
            at = (at / PAGE + 1) * PAGE;
        }
        at.min(self.size)
    }
}

impl Drop for Content {
    fn drop(&mut self) {
        self.budget.give_back(self.pages.len() as u64);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Counting;

    impl Source for Counting {
        fn read_at(&self, buf: &mut [u8], offset: u64) -> Result<()> {
            buf.iter_mut().zip(offset..).for_each(|(byte, at)| *byte = 1 + (at % 250) as u8);
            Ok(())
        }
    }

    /// A vector of bytes is the model; each change of an archive's file is made on both.
    #[test]
    fn a_file_over_a_source_is_like_a_vector_of_bytes() {
        let seed = std::env::var("SEED").ok().and_then(|seed| seed.parse().ok()).unwrap_or(7_u64);
        println!("SEED={seed}");
        let mut state = seed;
        let mut below = |limit: u64| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            state % limit
        };
        for _ in 0..60 {
            let len = below(40_000);
            let budget = Arc::new(Budget::new(Some(64)));
            let mut content = Content::from_source(Arc::new(Counting), len, Arc::clone(&budget));
            let mut model = vec![0; len as usize];
            Counting.read_at(&mut model, 0).unwrap();
            for _ in 0..60 {
                let (offset, len) = (below(60_000), below(9000));
                match below(4) {
                    0 => {
                        let bytes = vec![below(256) as u8; len as usize];
                        assert_eq!(content.write(&bytes, offset), Ok(bytes.len()));
                        let end = offset as usize + bytes.len();
                        model.resize(model.len().max(end), 0);
                        model[offset as usize..end].copy_from_slice(&bytes);
                    }
                    1 => {
                        content.set_size(offset);
                        model.resize(offset as usize, 0);
                    }
                    2 => {
                        content.punch(offset, len).unwrap();
                        let end = (offset + len).min(model.len() as u64);
                        if offset < end {
                            model[offset as usize..end as usize].fill(0);
                        }
                    }
                    _ => {
                        if let Some(data) = content.next_data(offset) {
                            assert!(
                                model.iter().take(data as usize).skip(offset as usize).all(|byte| *byte == 0)
                            );
                        }
                        let hole = content.next_hole(offset.min(content.size())) as usize;
                        assert!(hole == model.len() || model[hole] == 0);
                    }
                }
                let mut all = vec![0xee; model.len() + 10];
                assert_eq!(content.read(&mut all, 0), Ok(model.len()));
                assert_eq!(all[..model.len()], model);
            }
            assert!(budget.used() <= 64);
            drop(content);
            assert_eq!(budget.used(), 0);
        }
    }

    #[test]
    fn a_write_is_short_where_memory_ends() {
        let mut content = Content::new(Arc::new(Budget::new(Some(2))));
        assert_eq!(content.write(&[1; 10_000], 100), Ok(8092));
        assert_eq!(content.write(&[1; 10], 9000), Err(Errno::ENOSPC));
        assert_eq!((content.size(), content.blocks()), (8192, 16));
        assert_eq!(content.reserve(0, 20_000), Err(Errno::ENOSPC));
        assert_eq!(content.blocks(), 16);
    }
}
