//! What the shim may say of virtual trees by itself: names that lead to nodes or are absent, and attributes, each as the engine has found it.
//!
//! A count is odd while something is written. Whoever reads looks at it before and after, so that a path is resolved at one moment, or by
//! the engine. There is one writer at a time, which the caller sees to.
//!
//! Layout, from [`KNOWN`] on: the count; *starts*, by which descriptors and working directories are recognised, in place; an index of
//! names and one of attributes (numbers of records, found by hash and up to [`PROBES`] steps); the records. A record that is needed for
//! something else is taken from whoever has had it longest, and its place in the index is left as `GONE`. A node is a number of 56 bits in a tree with a
//! number of 8.

use std::sync::atomic::{Ordering, fence};

use crate::shim::Page;

/// Bytes from the beginning of the file.
pub(crate) const KNOWN: usize = 0x10_0000;
const STARTS: usize = 0x14_0000;
const NAME_INDEX: usize = 0x18_0000;
const ATTR_INDEX: usize = 0x1c_0000;
const NAME_RECORDS: usize = 0x20_0000;
const ATTR_RECORDS: usize = 0x50_0000;
/// Where all this ends.
pub(crate) const END: usize = 0xb0_0000;

const START_COUNT: u64 = 8192;
const START_LEN: usize = 32;
const START_PROBES: u64 = 4;
const NAME_LEN: usize = 64;
const NAME_COUNT: u32 = ((ATTR_RECORDS - NAME_RECORDS) / NAME_LEN) as u32;
const ATTR_LEN: usize = 192;
const ATTR_COUNT: u32 = ((END - ATTR_RECORDS) / ATTR_LEN) as u32;
const PROBES: u32 = 8;
const GONE: u32 = u32::MAX;
/// Bytes; longer names are not kept.
pub const NAME_MAX: usize = 43;
/// Bytes of a `struct stat`.
pub const STAT: usize = 144;

/// The attributes are there.
pub const VALID: u64 = 1;
/// It is a directory.
pub const DIRECTORY: u64 = 2;
/// Everybody may look for names in it.
pub const SEARCHABLE: u64 = 4;
/// It is a symbolic link.
pub const LINK: u64 = 8;
/// It is where its tree is mounted.
pub const ROOT: u64 = 16;
/// Everybody may read it.
pub const READABLE: u64 = 32;

/// A node for the shim. `None`: its number is too large.
pub fn node(tree: u8, ino: u64) -> Option<u64> {
    (tree != 0 && ino >> 56 == 0).then_some(u64::from(tree) << 56 | ino)
}

/// Writes what is known. One at a time.
#[derive(Debug)]
pub struct Writer {
    next_name: u32,
    next_attr: u32,
}

impl Default for Writer {
    fn default() -> Self {
        // 0 in an index is nothing.
        Self { next_name: 1, next_attr: 1 }
    }
}

/// The attributes of a node.
#[derive(Debug)]
pub struct Attributes<'a> {
    /// Of what is said above.
    pub flags: u64,
    /// `struct stat`
    pub stat: &'a [u8; STAT],
    /// The directory that it lies in, for directories, where that is known.
    pub parent: Option<u64>,
}

impl Writer {
    /// A descriptor of this device and inode stands for a node.
    pub fn start(&mut self, page: &Page, key: (u64, u64), node: u64) {
        let first = start_hash(key);
        let place = |step: u64| STARTS + (((first + step) % START_COUNT) as usize) * START_LEN;
        let places = || (0..START_PROBES).map(place);
        let holds = |at: &usize| {
            page.word_at(*at).load(Ordering::Relaxed) == key.0
                && page.word_at(*at + 8).load(Ordering::Relaxed) == key.1
        };
        let is_free = |at: &usize| page.word_at(*at + 16).load(Ordering::Relaxed) == 0;
        let at = places()
            .find(holds)
            .or_else(|| places().find(is_free))
            .unwrap_or_else(|| place(key.1 % START_PROBES));
        changing(page, || {
            page.word_at(at).store(key.0, Ordering::Relaxed);
            page.word_at(at + 8).store(key.1, Ordering::Relaxed);
            page.word_at(at + 16).store(node, Ordering::Relaxed);
        });
    }

    /// A descriptor of this device and inode stands for nothing any more.
    pub fn no_start(&mut self, page: &Page, key: (u64, u64)) {
        let first = start_hash(key);
        for step in 0..START_PROBES {
            let at = STARTS + (((first + step) % START_COUNT) as usize) * START_LEN;
            if page.word_at(at).load(Ordering::Relaxed) == key.0
                && page.word_at(at + 8).load(Ordering::Relaxed) == key.1
            {
                changing(page, || page.word_at(at + 16).store(0, Ordering::Relaxed));
            }
        }
    }

    /// A name leads to a node, or (0) to nothing. Whether that is news.
    pub fn name(&mut self, page: &Page, directory: u64, name: &[u8], node: u64) -> bool {
        if name.len() > NAME_MAX {
            return false;
        }
        let hash = name_hash(directory, name);
        if let Some((_, at)) = find_name(page, directory, name, hash) {
            let is_new = page.word_at(at + 8).load(Ordering::Relaxed) != node;
            if is_new {
                changing(page, || page.word_at(at + 8).store(node, Ordering::Relaxed));
            }
            return is_new;
        }
        let number = self.next_name;
        self.next_name = if number + 1 < NAME_COUNT { number + 1 } else { 1 };
        let at = NAME_RECORDS + number as usize * NAME_LEN;
        changing(page, || {
            let old = page.word_at(at + 16).load(Ordering::Relaxed) as u32;
            take_out(page, NAME_INDEX, fold(old), number);
            page.word_at(at).store(directory, Ordering::Relaxed);
            page.word_at(at + 8).store(node, Ordering::Relaxed);
            let mut tail = [0; NAME_LEN - 16];
            tail[..4].copy_from_slice(&hash.to_ne_bytes());
            tail[4] = name.len() as u8;
            tail[5..5 + name.len()].copy_from_slice(name);
            store(page, at + 16, &tail);
            put_in(page, NAME_INDEX, fold(hash), number);
        });
        true
    }

    /// What a name leads to is not known any more. Says what it was: `Some(0)` if nothing was there.
    pub fn no_name(&mut self, page: &Page, directory: u64, name: &[u8]) -> Option<u64> {
        let hash = name_hash(directory, name);
        let (index, at) = find_name(page, directory, name, hash)?;
        changing(page, || page.word32_at(index).store(GONE, Ordering::Relaxed));
        Some(page.word_at(at + 8).load(Ordering::Relaxed))
    }

    /// The attributes of a node.
    pub fn attributes(&mut self, page: &Page, node: u64, attributes: &Attributes<'_>) {
        let found = find_attr(page, node);
        let number = self.next_attr;
        let at = found.unwrap_or(ATTR_RECORDS + number as usize * ATTR_LEN);
        if found.is_none() {
            self.next_attr = if number + 1 < ATTR_COUNT { number + 1 } else { 1 };
        }
        changing(page, || {
            if found.is_none() {
                let old = page.word_at(at).load(Ordering::Relaxed);
                take_out(page, ATTR_INDEX, attr_hash(old), number);
                page.word_at(at).store(node, Ordering::Relaxed);
                page.word_at(at + 8).store(0, Ordering::Relaxed);
                put_in(page, ATTR_INDEX, attr_hash(node), number);
            }
            if let Some(parent) = attributes.parent {
                page.word_at(at + 8).store(parent, Ordering::Relaxed);
            }
            page.word_at(at + 16).store(attributes.flags | VALID, Ordering::Relaxed);
            store(page, at + 32, attributes.stat);
        });
    }

    /// The attributes of a node are not known any more; with `moved` neither is the directory that it lies in.
    pub fn no_attributes(&mut self, page: &Page, node: u64, moved: bool) {
        let Some(at) = find_attr(page, node) else { return };
        changing(page, || {
            page.word_at(at + 16).store(0, Ordering::Relaxed);
            if moved {
                page.word_at(at + 8).store(0, Ordering::Relaxed);
            }
        });
    }

    /// Whether the directory is known that a node lies in.
    pub fn has_parent(&self, page: &Page, node: u64) -> bool {
        find_attr(page, node).is_some_and(|at| page.word_at(at + 8).load(Ordering::Relaxed) != 0)
    }

    /// Whether the attributes of a node are known.
    pub fn has_attributes(&self, page: &Page, node: u64) -> bool {
        find_attr(page, node).is_some_and(|at| page.word_at(at + 16).load(Ordering::Relaxed) & VALID != 0)
    }
}

/// Makes a change that readers see whole or not at all.
fn changing<T>(page: &Page, change: impl FnOnce() -> T) -> T {
    let count = page.word_at(KNOWN);
    let now = count.load(Ordering::Relaxed);
    count.store(now | 1, Ordering::SeqCst);
    fence(Ordering::SeqCst);
    let done = change();
    count.store((now | 1).wrapping_add(1), Ordering::SeqCst);
    done
}

fn store(page: &Page, at: usize, bytes: &[u8]) {
    for (index, part) in bytes.chunks_exact(8).enumerate() {
        let mut word = [0; 8];
        word.copy_from_slice(part);
        page.word_at(at + index * 8).store(u64::from_ne_bytes(word), Ordering::Relaxed);
    }
}

/// Places of a hash in an index.
fn places(index: usize, hash: u32) -> impl Iterator<Item = usize> {
    (0..PROBES).map(move |step| index + (hash.wrapping_add(step) & 0xffff) as usize * 4)
}

fn put_in(page: &Page, index: usize, hash: u32, number: u32) {
    let is_free = |at: &usize| matches!(page.word32_at(*at).load(Ordering::Relaxed), 0 | GONE);
    let mut all = places(index, hash);
    let Some(first) = all.next() else { return };
    let at = if is_free(&first) { first } else { all.find(is_free).unwrap_or(first) };
    page.word32_at(at).store(number, Ordering::Relaxed);
}

fn take_out(page: &Page, index: usize, hash: u32, number: u32) {
    for at in places(index, hash) {
        if page.word32_at(at).load(Ordering::Relaxed) == number {
            page.word32_at(at).store(GONE, Ordering::Relaxed);
        }
    }
}

/// The place in the index, and the record.
fn find_name(page: &Page, directory: u64, name: &[u8], hash: u32) -> Option<(usize, usize)> {
    for place in places(NAME_INDEX, fold(hash)) {
        let number = page.word32_at(place).load(Ordering::Relaxed);
        if number == 0 {
            return None;
        }
        let at = NAME_RECORDS + number as usize * NAME_LEN;
        if number == GONE || page.word_at(at).load(Ordering::Relaxed) != directory {
            continue;
        }
        let mut tail = [0; NAME_LEN - 16];
        for (index, part) in tail.chunks_exact_mut(8).enumerate() {
            part.copy_from_slice(&page.word_at(at + 16 + index * 8).load(Ordering::Relaxed).to_ne_bytes());
        }
        if tail[..4] == hash.to_ne_bytes()
            && usize::from(tail[4]) == name.len()
            && &tail[5..5 + name.len()] == name
        {
            return Some((place, at));
        }
    }
    None
}

fn find_attr(page: &Page, node: u64) -> Option<usize> {
    for place in places(ATTR_INDEX, attr_hash(node)) {
        let number = page.word32_at(place).load(Ordering::Relaxed);
        if number == 0 {
            return None;
        }
        let at = ATTR_RECORDS + number as usize * ATTR_LEN;
        if number != GONE && page.word_at(at).load(Ordering::Relaxed) == node {
            return Some(at);
        }
    }
    None
}

/// Spreads numbers; the shim computes all of these too.
pub(crate) const SPREAD: u64 = 0x1e37_79b1;

fn start_hash(key: (u64, u64)) -> u64 {
    (key.1 ^ key.0).wrapping_mul(SPREAD) >> 16
}

fn attr_hash(node: u64) -> u32 {
    (node.wrapping_mul(SPREAD) >> 16) as u32
}

fn name_hash(directory: u64, name: &[u8]) -> u32 {
    let seed = (directory.wrapping_mul(SPREAD) >> 16) as u32;
    name.iter().fold(seed, |hash, byte| (hash ^ u32::from(*byte)).wrapping_mul(0x0100_0193))
}

/// The low half of a hash of a name, in which all of it counts.
fn fold(hash: u32) -> u32 {
    hash ^ (hash >> 16)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_found_is_what_was_written_last() {
        let Ok(page) = Page::new() else { return eprintln!("skipped: no shim for this machine") };
        let mut writer = Writer::default();
        let mut model = std::collections::HashMap::new();
        let mut random = 1_u64;
        let mut next = || {
            random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            random >> 33
        };
        let mut found = 0;
        for step in 0..70_000_u64 {
            // Far more than there are records, so that most are given up.
            let directory = node(1, next() % 50).unwrap();
            let name = format!("name-{}", next() % 4000);
            let key = (directory, name.clone());
            let at = |page: &Page| {
                find_name(page, directory, name.as_bytes(), name_hash(directory, name.as_bytes()))
                    .map(|(_, at)| page.word_at(at + 8).load(Ordering::Relaxed))
            };
            if let Some(child) = at(&page) {
                found += 1;
                assert_eq!(Some(&child), model.get(&key), "{step}");
            }
            if next() % 4 == 0 {
                let known = at(&page);
                assert_eq!(writer.no_name(&page, directory, name.as_bytes()), known);
                assert_eq!(at(&page), None);
                model.remove(&key);
            } else {
                let child = next() % 3;
                writer.name(&page, directory, name.as_bytes(), child);
                assert_eq!(at(&page), Some(child));
                model.insert(key, child);
            }
            let child = node(1, step % 40_000).unwrap();
            let mut stat = [0; STAT];
            stat[..8].copy_from_slice(&child.to_ne_bytes());
            writer.attributes(
                &page,
                child,
                &Attributes { flags: DIRECTORY, stat: &stat, parent: Some(directory) },
            );
            let at = find_attr(&page, child).expect("it was just written");
            assert_eq!(page.word_at(at + 32).load(Ordering::Relaxed), child);
            assert!(writer.has_attributes(&page, child) && writer.has_parent(&page, child));
            writer.no_attributes(&page, child, step % 2 == 0);
            assert!(
                !writer.has_attributes(&page, child) && writer.has_parent(&page, child) == (step % 2 != 0)
            );
        }
        assert!(found > 2_000, "{found}");
        assert_eq!(page.word_at(KNOWN).load(Ordering::Relaxed) % 2, 0, "no change is left open");
    }

    #[test]
    fn numbers_that_are_too_large_are_no_nodes() {
        assert_eq!(node(2, 7), Some(2 << 56 | 7));
        assert_eq!(node(2, 1 << 56), None);
        assert_eq!(node(0, 7), None);
    }
}
