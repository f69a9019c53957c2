//! Crashes: what a disk holds when the power fails, at any moment.
//!
//! A run is recorded: every write, and every flush. A crash leaves all that was written before the last flush, and any of the writes since
//! then, or parts of them (of whole KiB). Each such disk is mounted by us, which replays the journal, and looked at by e2fsck; or the other way
//! round. The volume is clean then; no file holds what was not written to it; what was there at a sync and not touched
//! since is there still. Without a journal, `e2fsck -p` has nothing to ask.
//!
//! The content of each file is its own number, over and over.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::Arc;

use veduta_api::{Errno, File, Kind, RenameFlags};

use crate::support::{Event, Make, Memory, Rng, Tree, assert_clean, e2fsck, folder, mount, rounds, seed};

/// Bytes that reach a disk together or not at all.
const ATOM: usize = 1024;

fn content(number: u32, from: u64, len: usize) -> Vec<u8> {
    let bytes = number.to_le_bytes();
    (0..len).map(|at| bytes[((from + at as u64) % 4) as usize]).collect()
}

/// A recorded run.
struct Run {
    start: Vec<u8>,
    events: Vec<Event>,
    /// What was there at a sync, and how many events had happened then.
    synced: Vec<(usize, BTreeMap<String, Vec<u8>>)>,
    /// What was touched, and how many events had happened when that began.
    touched: Vec<(usize, String)>,
}

#[allow(clippy::too_many_lines, reason = "one arm for each operation")]
fn record(make: &Make, steps: u64, seed: u64) -> Run {
    let dir = folder();
    let memory = make.make(dir.path());
    let mut rng = Rng(seed | 1);
    let tree = mount(&memory, "");
    let dirs = ["", "one", "one/two", "a directory with a long name"];
    dirs.iter().skip(1).for_each(|dir| tree.mkdir(dir).unwrap());
    tree.0.unmount().unwrap();
    drop(tree);
    let start = memory.bytes();
    *memory.events.lock() = Some(Vec::new());
    let mut run = Run { start, events: Vec::new(), synced: Vec::new(), touched: Vec::new() };
    let tree = mount(&memory, "commit=1000");
    let mut files: BTreeMap<String, u32> = BTreeMap::new();
    let mut next = 0;
    let happened = || memory.events.lock().as_ref().map_or(0, Vec::len);
    let journalled = !make.words.contains("ext2") && !make.words.contains("^has_journal");
    // Files that stay open for a while, so that what was written to them waits.
    let mut open: Vec<Arc<dyn File>> = Vec::new();
    for _ in 0..steps {
        if open.len() > rng.below(12) as usize {
            open.swap_remove(0);
        }
        let old = rng.pick(&files.keys().cloned().collect::<Vec<_>>()).cloned();
        let dir = dirs[rng.below(4) as usize];
        let name = match rng.below(2) {
            0 => format!("F{}", rng.below(30)),
            _ => format!("a longer name, to fill blocks {:060}", rng.below(30)),
        };
        let path = if dir.is_empty() { name } else { format!("{dir}/{name}") };
        let mut touch = |path: &str| run.touched.push((happened(), path.to_string()));
        let most = make.kib * 1024 / 64;
        match rng.below(13) {
            0..3 => {
                touch(&path);
                let Ok(file) = tree.create(&path) else { continue };
                next += 1;
                files.insert(path, next);
                let _ = file.write_at(&content(next, 0, rng.below(most) as usize), 0);
                open.push(file);
            }
            3..6 => {
                let Some(path) = old else { continue };
                touch(&path);
                let file = tree.open(&path).unwrap();
                let size = tree.stat(&path).unwrap().size;
                let offset = if rng.below(3) == 0 { rng.below(most * 2) } else { size };
                let _ = file.write_at(&content(files[&path], offset, rng.below(most) as usize + 1), offset);
                open.push(file);
            }
            6 => {
                let Some(path) = old else { continue };
                touch(&path);
                let _ = tree.truncate(&path, rng.below(most));
            }
            7..9 => {
                let Some(path) = old else { continue };
                touch(&path);
                tree.unlink(&path).unwrap();
                files.remove(&path);
            }
            9 => {
                let Some(from) = old else { continue };
                touch(&from);
                touch(&path);
                match tree.rename(&from, &path, RenameFlags::default()) {
                    Ok(()) => {
                        let number = files.remove(&from).unwrap();
                        files.insert(path, number);
                    }
                    Err(errno) => assert_eq!(errno, Errno::ENOSPC),
                }
            }
            10 => {
                // A directory comes and goes, or elsewhere.
                let path = format!("{path} (dir)");
                if tree.mkdir(&path).is_ok() && rng.below(2) == 0 {
                    let inner = format!("{path}/inner");
                    next += 1;
                    if let Ok(file) = tree.create(&inner) {
                        let _ = file.write_at(&content(next, 0, 1000), 0);
                    }
                    let to = format!("one/dir {next}");
                    match rng.below(2) {
                        0 if journalled => drop(tree.rename(&path, &to, RenameFlags::default())),
                        _ => drop(tree.unlink(&inner)),
                    }
                }
                let _ = tree.rmdir(&path);
            }
            _ => match rng.below(3) {
                0 => {
                    tree.0.sync().unwrap();
                    let all = files.keys().map(|path| (path.clone(), tree.read_file(path).unwrap()));
                    let all = all.collect();
                    run.synced.push((happened(), all));
                }
                1 => {
                    // One file is brought to the disk.
                    let Some(path) = old else { continue };
                    tree.open(&path).unwrap().sync(true).unwrap();
                    let mut all = run.synced.last().map(|(_, all)| all.clone()).unwrap_or_default();
                    let at = run.synced.last().map_or(0, |(at, _)| *at);
                    let later: BTreeSet<&String> =
                        run.touched.iter().filter(|(when, _)| *when >= at).map(|(_, path)| path).collect();
                    all.retain(|path, _| !later.contains(path));
                    all.insert(path.clone(), tree.read_file(&path).unwrap());
                    run.synced.push((happened(), all));
                }
                _ => {}
            },
        }
    }
    open.clear();
    tree.0.unmount().unwrap();
    run.events = memory.events.lock().take().unwrap();
    run
}

impl Run {
    /// A disk after a crash in the epoch that starts behind event `from`.
    fn crash(&self, base: &[u8], from: usize, rng: &mut Rng) -> Vec<u8> {
        let mut disk = base.to_vec();
        let mode = rng.below(4);
        let epoch = self.events[from..].iter().take_while(|event| !matches!(event, Event::Flush));
        let count = epoch.clone().count() as u64;
        let cut = rng.below(count + 1);
        for (at, event) in (0..).zip(epoch) {
            let Event::Write(offset, bytes) = event else { continue };
            // Up to a moment; a random half; all but one; few.
            let kept = match mode {
                0 => at < cut,
                1 => rng.below(2) == 0,
                2 => at != cut,
                _ => rng.below(8) == 0,
            };
            for (number, part) in bytes.chunks(ATOM).enumerate() {
                let torn = mode > 0 && rng.below(6) == 0;
                if kept != torn {
                    disk[*offset as usize + number * ATOM..][..part.len()].copy_from_slice(part);
                }
            }
        }
        disk
    }

    fn check(&self, disk: Vec<u8>, from: usize, make: &Make, dir: &Path, ours: bool) {
        let journalled = !make.words.contains("ext2") && !make.words.contains("^has_journal");
        let end =
            from + self.events[from..].iter().take_while(|event| !matches!(event, Event::Flush)).count();
        let mut memory = Memory::new(disk);
        if ours && journalled {
            let tree = mount(&memory, "");
            assert_eq!(tree.0.facts().caching, veduta_api::Caching::Exclusive);
            self.look(&tree, from, end);
            tree.0.unmount().unwrap();
            drop(tree);
        } else {
            let (status, said) = e2fsck(&memory, dir, "-p");
            assert!(matches!(status, Some(0 | 1)), "e2fsck -p: {status:?}: {said}");
            memory = Memory::new(std::fs::read(dir.join("check.img")).unwrap());
            self.look(&mount(&memory, "ro"), from, end);
        }
        assert_clean(&memory, dir);
    }

    /// What was synced before this epoch and not touched since is there.
    fn look(&self, tree: &Tree, from: usize, end: usize) {
        let found = look(tree);
        let Some((at, synced)) = self.synced.iter().rev().find(|(at, _)| *at <= from) else { return };
        let touched: BTreeSet<&String> = self
            .touched
            .iter()
            .filter(|(when, _)| at <= when && *when <= end)
            .map(|(_, path)| path)
            .collect();
        for (path, content) in synced.iter().filter(|(path, _)| !touched.contains(path)) {
            assert!(found.get(path) == Some(content), "{path} was synced and is not what it was");
        }
    }
}

/// All files; none holds anything but its own number.
fn look(tree: &Tree) -> BTreeMap<String, Vec<u8>> {
    let mut found = BTreeMap::new();
    collect(tree, "", &mut found);
    for (path, content) in &found {
        let mut owner = None;
        for (at, word) in (0_u64..).zip(content.chunks_exact(4)) {
            let word = u32::from_le_bytes([word[0], word[1], word[2], word[3]]);
            // Where a write began or ended within a word, the rest of it is zeros.
            let partial = owner.is_some_and(|owner: u32| word & !owner == 0);
            if word != 0 && !partial {
                assert!(
                    owner.is_none_or(|owner| owner & !word == 0),
                    "{path} holds {word:#x} at {}, and {owner:x?}",
                    at * 4
                );
                assert!(word < 1 << 20, "{path} holds old content at {}: {word:#x}", at * 4);
                owner = Some(word);
            }
        }
    }
    found
}

fn collect(tree: &Tree, path: &str, found: &mut BTreeMap<String, Vec<u8>>) {
    for (name, kind) in tree.list(path).unwrap() {
        let inner = if path.is_empty() { name } else { format!("{path}/{name}") };
        match kind {
            Kind::Directory => collect(tree, &inner, found),
            _ => drop(found.insert(inner.clone(), tree.read_file(&inner).unwrap())),
        }
    }
}

fn crashes(make: &Make, steps: u64, seed: u64) {
    let run = record(make, steps, seed);
    let dir = folder();
    let mut rng = Rng(seed.rotate_left(17) | 1);
    let mut base = run.start.clone();
    let mut from = 0;
    let flushes = run.events.iter().filter(|event| matches!(event, Event::Flush)).count();
    println!("{make:?} {seed}: {} events, {flushes} flushes, {} syncs", run.events.len(), run.synced.len());
    while from < run.events.len() {
        for ours in [true, false] {
            let disk = run.crash(&base, from, &mut rng);
            if let Ok(kept) = std::env::var("KEEP_IMAGE") {
                std::fs::write(kept, &disk).unwrap();
            }
            run.check(disk, from, make, dir.path(), ours);
        }
        // To the next epoch.
        let mut at = from;
        while let Some(Event::Write(offset, bytes)) = run.events.get(at) {
            base[*offset as usize..][..bytes.len()].copy_from_slice(bytes);
            at += 1;
        }
        from = at + 1;
    }
}

fn all(makes: &[(u64, &'static str)]) {
    let seed = seed();
    for (number, (kib, words)) in (1..).zip(makes) {
        for round in 0..rounds(1) {
            crashes(&Make { kib: *kib, words }, 150, seed.wrapping_mul(31) + number * 1009 + round * 2);
        }
    }
}

#[test]
fn a_crash_of_ext4_loses_nothing_that_was_synced() {
    all(&[
        (6144, "-t ext4 -b 1024 -N 256 -J size=1"),
        (12288, "-t ext4 -b 4096 -N 256 -J size=4"),
        (6144, "-t ext4 -b 1024 -N 256 -J size=1 -O ^metadata_csum,^64bit,uninit_bg"),
        (8192, "-t ext4 -b 1024 -N 256 -J size=1 -O bigalloc -C 4096"),
    ]);
}

#[test]
fn a_crash_of_ext3_loses_nothing_that_was_synced() {
    all(&[(6144, "-t ext3 -b 1024 -N 256 -J size=1")]);
}

#[test]
fn a_crash_without_a_journal_is_repaired_without_questions() {
    all(&[
        (4096, "-t ext2 -b 1024 -N 256"),
        (4096, "-t ext4 -b 1024 -N 256 -O ^has_journal,^extent,^64bit"),
        (4096, "-t ext4 -b 1024 -N 256 -O ^has_journal"),
    ]);
}
