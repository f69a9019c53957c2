//! Crashes: what a disk holds when the power fails, at any moment.
//!
//! A run is recorded: every write, and every flush. A crash leaves all that was written before the last flush, and any of
//! the writes since then, or parts of them. Each such disk is looked at by us and by fsck. Allowed are lost
//! clusters and their like; never may two files share a cluster, or a file hold what was not written to it. What was there
//! at a sync and not touched since is there still.
//!
//! The content of each file is its own number, over and over.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use veduta_api::Errno;

use crate::support::{Event, Make, Memory, Rng, Tree, folder, mount, read_all, seed};

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

fn record(make: &Make, steps: u64, seed: u64) -> Option<Run> {
    let dir = folder();
    let memory = make.make(dir.path())?;
    let mut rng = Rng(seed | 1);
    let tree = mount(&memory, "");
    // Some files that were there before.
    let dirs = ["", "one", "one/two", "a directory with a long name"];
    dirs.iter().skip(1).for_each(|dir| tree.mkdir(dir).unwrap());
    tree.0.unmount().unwrap();
    drop(tree);
    let start = memory.bytes();
    *memory.events.lock() = Some(Vec::new());
    let mut run = Run { start, events: Vec::new(), synced: Vec::new(), touched: Vec::new() };
    let tree = mount(&memory, "");
    let mut files: BTreeMap<String, u32> = BTreeMap::new();
    let mut next = 0;
    let happened = || memory.events.lock().as_ref().map_or(0, Vec::len);
    for _ in 0..steps {
        let old = rng.pick(&files.keys().cloned().collect::<Vec<_>>()).cloned();
        let dir = dirs[rng.below(4) as usize];
        let name = match rng.below(2) {
            0 => format!("F{}", rng.below(30)),
            _ => format!("a longer name, to take some slots {}", rng.below(30)),
        };
        let path = if dir.is_empty() { name } else { format!("{dir}/{name}") };
        let mut touch = |path: &str| run.touched.push((happened(), path.to_string()));
        let most = make.kib * 1024 / 64;
        match rng.below(12) {
            0..3 => {
                touch(&path);
                let Ok(file) = tree.create(&path) else { continue };
                next += 1;
                files.insert(path, next);
                let _ = file.write_at(&content(next, 0, rng.below(most) as usize), 0);
            }
            3..6 => {
                let Some(path) = old else { continue };
                touch(&path);
                let file = tree.open(&path).unwrap();
                let offset = if rng.below(3) == 0 {
                    rng.below(most * 2)
                } else {
                    read_all(&*file).unwrap().len() as u64
                };
                let _ = file.write_at(&content(files[&path], offset, rng.below(most) as usize + 1), offset);
            }
            6 => {
                let Some(path) = old else { continue };
                touch(&path);
                let _ = tree.truncate(&path, rng.below(most));
            }
            7 => {
                let Some(path) = old else { continue };
                touch(&path);
                tree.unlink(&path).unwrap();
                files.remove(&path);
            }
            8..10 => {
                let Some(from) = old else { continue };
                touch(&from);
                touch(&path);
                match tree.rename(&from, &path) {
                    Ok(()) => {
                        let number = files.remove(&from).unwrap();
                        files.insert(path, number);
                    }
                    Err(errno) => assert_eq!(errno, Errno::ENOSPC),
                }
            }
            10 => {
                // A directory comes and goes.
                let path = format!("{path} (dir)");
                if tree.mkdir(&path).is_ok() && rng.below(2) == 0 {
                    let inner = format!("{path}/inner");
                    next += 1;
                    if let Ok(file) = tree.create(&inner) {
                        let _ = file.write_at(&content(next, 0, 1000), 0);
                    }
                    // It goes elsewhere with what is in it, or loses that.
                    let to = dirs[rng.below(4) as usize];
                    let to = if to.is_empty() { format!("dir {next}") } else { format!("{to}/dir {next}") };
                    match rng.below(2) {
                        0 => drop(tree.rename(&path, &to)),
                        _ => drop(tree.unlink(&inner)),
                    }
                }
                let _ = tree.rmdir(&path);
            }
            _ => {
                if rng.below(2) == 0 {
                    tree.0.sync().unwrap();
                    let all = files.keys().map(|path| (path.clone(), tree.read_file(path).unwrap()));
                    run.synced.push((happened(), all.collect()));
                }
            }
        }
    }
    tree.0.unmount().unwrap();
    run.events = memory.events.lock().take()?;
    Some(run)
}

impl Run {
    /// A disk after a crash in the epoch that starts behind event `from`.
    fn crash(&self, base: &[u8], from: usize, rng: &mut Rng, tear: bool) -> Vec<u8> {
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
            for (number, part) in bytes.chunks(512).enumerate() {
                let torn = tear && mode > 0 && rng.below(6) == 0;
                if kept != torn {
                    disk[*offset as usize + number * 512..][..part.len()].copy_from_slice(part);
                }
            }
        }
        disk
    }

    fn check(&self, disk: Vec<u8>, from: usize, make: &Make, dir: &std::path::Path) {
        let end =
            from + self.events[from..].iter().take_while(|event| !matches!(event, Event::Flush)).count();
        let memory = Memory::new(disk);
        let tree = mount(&memory, "ro");
        let found = look(&tree);
        // What was synced before this epoch and not touched since.
        if let Some((at, synced)) = self.synced.iter().rev().find(|(at, _)| *at <= from) {
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
        let (_, said) = make.fsck(&memory, dir);
        judge(&said, make.exfat);
    }
}

/// All files; none holds anything but its own number.
fn look(tree: &Tree) -> BTreeMap<String, Vec<u8>> {
    let mut all = Vec::new();
    tree.walk_all(b"", &mut all).unwrap();
    let mut found = BTreeMap::new();
    for (path, content) in all {
        let path = String::from_utf8_lossy(&path).into_owned();
        let Some(content) = content else { continue };
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
        found.insert(path, content);
    }
    found
}

/// What a checker may say of a disk after a crash: nothing about clusters that two files have.
fn judge(said: &str, exfat: bool) {
    let bad: &[&str] = if exfat {
        &["ERROR: /", "shared", "overlap"]
    } else {
        &["share", "Contains a free cluster", "invalid", "Start does", "loop", "Circular"]
    };
    for line in said.lines().filter(|line| !line.contains("more clusters are allocated")) {
        assert!(!bad.iter().any(|bad| line.contains(bad)), "{line}\n\n{said}");
    }
}

fn crashes(make: &Make, steps: u64, seed: u64) {
    let Some(run) = record(make, steps, seed) else { return };
    let dir = folder();
    let mut rng = Rng(seed.rotate_left(17) | 1);
    let mut base = run.start.clone();
    let mut from = 0;
    let flushes = run.events.iter().filter(|event| matches!(event, Event::Flush)).count();
    println!("{make:?}: {} events, {flushes} flushes, {} syncs", run.events.len(), run.synced.len());
    while from < run.events.len() {
        for _ in 0..3 {
            let disk = run.crash(&base, from, &mut rng, !make.words.contains("-F 12"));
            run.check(disk, from, make, dir.path());
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

fn all(makes: &[Make]) {
    let seed = seed();
    for (number, make) in (1..).zip(makes) {
        for round in 0..2 {
            crashes(make, 150, seed.wrapping_mul(31) + number * 1009 + round * 2);
        }
    }
}

#[test]
fn a_crash_of_fat_loses_clusters_at_worst() {
    let make = |kib, words| Make { kib, exfat: false, words };
    all(&[make(1440, "-F 12"), make(4096, "-F 16 -s 1"), make(3000, "-F 32 -s 1")]);
}

#[test]
fn a_crash_of_exfat_loses_clusters_at_worst() {
    let make = |kib, words| Make { kib, exfat: true, words };
    all(&[make(3072, "-c 512"), make(4096, "-c 4096")]);
}

#[test]
fn a_sync_of_one_file_brings_it_to_the_disk() {
    let make = Make { kib: 1440, exfat: false, words: "-F 12" };
    let dir = folder();
    let Some(memory) = make.make(dir.path()) else { return };
    let tree = mount(&memory, "");
    let file = tree.create("new").unwrap();
    file.write_at(&[7; 5000], 0).unwrap();
    file.sync(false).unwrap();
    // Nothing is closed, nothing unmounted.
    let crashed: Arc<Memory> = Memory::new(memory.bytes());
    assert_eq!(mount(&crashed, "ro").read_file("new").unwrap(), [7; 5000]);
}
