//! Images with bytes changed at random: whatever they say, every call returns, with an answer or an errno. Needs xorriso
//! and genisoimage for the images to start from.
//!
//! `VEDUTA_SEED` is the seed of the first image, `VEDUTA_ROUNDS` how many there are.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

mod common;

use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::time::{Duration, Instant};

use common::{Random, have, memory_disk, run, try_mount};
use veduta_api::{Filesystem, Ino, Module, OpenFlags, Options};
use veduta_iso9660::Iso9660;

/// Entries that are looked at in one image: far more than the small ones have.
const ENTRIES_MAX: usize = 5_000;

/// Lists, looks up, reads and follows everything that can be reached, whatever the answers.
fn exercise(tree: &dyn Filesystem) {
    let mut left = vec![Ino::ROOT];
    let mut seen = 0;
    while let Some(dir) = left.pop() {
        let _ = (tree.getattr(dir), tree.parent(dir), tree.lookup(dir, "no such name".as_ref()));
        for row in listed(tree, dir) {
            seen += 1;
            if seen > ENTRIES_MAX {
                return;
            }
            let _ = tree.lookup(dir, &row.name);
            let Ok(entry) = tree.entry(dir, &row.as_entry()) else { continue };
            assert_eq!(tree.getattr(entry.ino).ok().map(|attr| attr.kind), Some(entry.attr.kind));
            match entry.attr.kind {
                veduta_api::Kind::Directory => left.push(entry.ino),
                veduta_api::Kind::Symlink => assert!(tree.readlink(entry.ino).is_ok()),
                _ => read_some(tree, entry.ino, entry.attr.size),
            }
        }
    }
}

/// The entries up to the first error.
fn listed(tree: &dyn Filesystem, dir: Ino) -> Vec<common::Row> {
    let mut rows: Vec<common::Row> = Vec::new();
    loop {
        let position = rows.last().map_or(0, |row| row.next);
        let before = rows.len();
        let done = tree.readdir(dir, position, &mut |entry| {
            if rows.len() >= before + 50 {
                return std::ops::ControlFlow::Break(());
            }
            rows.push(common::Row {
                name: entry.name.to_owned(),
                ino: entry.ino,
                st_ino: entry.st_ino,
                kind: entry.kind,
                next: entry.next,
            });
            std::ops::ControlFlow::Continue(())
        });
        if done.is_err() || rows.len() == before || rows.len() > ENTRIES_MAX {
            return rows;
        }
    }
}

fn read_some(tree: &dyn Filesystem, ino: Ino, size: u64) {
    let Ok(file) = tree.open(ino, OpenFlags::READ) else { return };
    let mut buf = vec![0; 40_000];
    for offset in [0, size / 2, size.saturating_sub(100), size, u64::MAX - 10] {
        if let Ok(len) = file.read_at(&mut buf, offset) {
            let left = size.saturating_sub(offset).min(buf.len() as u64);
            assert_eq!(len as u64, left, "a read within the file is whole");
        }
    }
}

/// Small images of all kinds, and the options to mount them with.
fn seeds(dir: &Path) -> Vec<(Vec<u8>, &'static str)> {
    let tree = dir.join("tree");
    fs::create_dir_all(tree.join("1/2/3/4/5/6/7/8/9")).unwrap();
    fs::write(tree.join("1/2/3/4/5/6/7/8/9/deep"), "deep").unwrap();
    fs::write(tree.join("text"), "text ".repeat(20_000)).unwrap();
    fs::write(tree.join("n".repeat(200)), "name").unwrap();
    fs::write(tree.join("boot"), [7; 2048]).unwrap();
    symlink("../a/b/c".repeat(40), tree.join("link")).unwrap();
    fs::hard_link(tree.join("text"), tree.join("same")).unwrap();
    run(dir, "genisoimage -quiet -R -J -o g.iso -graft-points 1=tree/1 text=tree/text");
    run(dir, "xorriso -as mkisofs -quiet -R -J -b boot -no-emul-boot -boot-load-size 4 -o x.iso tree");
    run(dir, "xorriso -outdev z.iso -zisofs version_2=on -map tree / -set_filter_r --zisofs / -- -commit");
    run(dir, "xorriso -outdev y.iso -map tree/text /text -set_filter_r --zisofs / -- -commit");
    run(dir, "genisoimage -quiet -D -iso-level 4 -o n.iso tree");
    [
        ("g.iso", ""),
        ("g.iso", "norock"),
        ("g.iso", "norock,nojoliet,map=acorn,check=relaxed,unhide"),
        ("x.iso", "eltorito"),
        ("z.iso", "session=1"),
        ("y.iso", ""),
        ("n.iso", "cruft"),
    ]
    .map(|(name, options)| (trimmed(fs::read(dir.join(name)).unwrap()), options))
    .to_vec()
}

/// Without the padding that writers put behind the last file.
fn trimmed(mut bytes: Vec<u8>) -> Vec<u8> {
    let end = bytes.iter().rposition(|byte| *byte != 0).unwrap();
    bytes.truncate((end + 1).next_multiple_of(2048));
    bytes
}

/// Changes a few bytes, most of them where they count: not in the 16 sectors of no concern nor within zeros.
fn mutate(bytes: &mut [u8], random: &mut Random) {
    for _ in 0..1 + random.below(8) {
        let at = loop {
            let at = 16 * 2048 + random.below(bytes.len() - 16 * 2048);
            if bytes[at] != 0 || random.below(50) == 0 {
                break at;
            }
        };
        match random.below(6) {
            0 => bytes[at] = 0,
            1 => bytes[at] = 0xff,
            2 => bytes[at] ^= 1 << random.below(8),
            3 => bytes[at] = random.next() as u8,
            4 => bytes[at] = bytes[at].wrapping_add(1),
            _ => {
                let from = 16 * 2048 + random.below(bytes.len() - 16 * 2048 - 300);
                let len = random.below(300).min(bytes.len() - at);
                bytes.copy_within(from..from + len, at);
            }
        }
    }
}

#[test]
fn no_damage_leads_to_anything_but_an_answer() {
    if !have(&["xorriso", "genisoimage"]) {
        return;
    }
    let number = |name: &str, default: u64| {
        std::env::var(name).ok().and_then(|value| value.parse().ok()).unwrap_or(default)
    };
    let (first, rounds) = (number("VEDUTA_SEED", 1), number("VEDUTA_ROUNDS", 12_000));
    let dir = tempfile::tempdir().unwrap();
    let seeds = seeds(dir.path());
    for (bytes, options) in &seeds {
        exercise(&*try_mount(memory_disk(bytes.clone()), options).unwrap());
    }
    let mut mounted = 0;
    for seed in first..first + rounds {
        let (bytes, options) = &seeds[seed as usize % seeds.len()];
        let mut bytes = bytes.clone();
        let mut random = Random(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1);
        mutate(&mut bytes, &mut random);
        if random.below(20) == 0 {
            bytes.truncate(random.below(bytes.len()));
        }
        let start = Instant::now();
        let outcome = std::panic::catch_unwind(|| {
            let disk = memory_disk(bytes);
            let _ = (Iso9660.probe(&disk), Iso9660.describe(&disk, Options::default()));
            let tree = try_mount(disk, options);
            tree.is_ok_and(|tree| {
                exercise(&*tree);
                true
            })
        });
        match outcome {
            Ok(is_mounted) => mounted += u64::from(is_mounted),
            Err(_) => panic!("seed {seed}, options {options:?}"),
        }
        let took = start.elapsed();
        assert!(took < Duration::from_secs(20), "seed {seed} took {took:?}");
    }
    assert!(mounted > rounds / 3, "only {mounted} of {rounds} could be mounted");
}
