//! Damaged volumes: bytes changed at random where they hurt most. Whatever comes of it, nothing panics, nothing goes on
//! for ever, and what is asked for is refused with an errno.

use std::collections::VecDeque;
use std::ffi::OsString;
use std::ops::ControlFlow;
use std::os::unix::ffi::OsStrExt;

use veduta_api::{Errno, Filesystem, Ino, Kind, Module, OpenFlags, Options};
use veduta_fat::Fat;

use crate::support::{Make, Memory, Rng, disk, folder, mount, seed, try_mount};

/// Looks at up to 100 nodes as a host does.
fn look(tree: &dyn Filesystem) -> Vec<Ino> {
    let mut waiting = VecDeque::from([Ino::ROOT]);
    let mut seen = Vec::new();
    let _ = tree.statfs();
    while let Some(ino) = waiting.pop_front().filter(|_| seen.len() < 100) {
        seen.push(ino);
        let Ok(attr) = tree.getattr(ino) else { continue };
        if attr.kind == Kind::File {
            let Ok(file) = tree.open(ino, OpenFlags::READ) else { continue };
            let mut buf = vec![0; 20_000];
            for offset in [0, attr.size.saturating_sub(10_000), attr.size, u64::MAX] {
                let read = file.read_at(&mut buf, offset);
                assert!(read.is_err() || offset < attr.size || read == Ok(0));
            }
            continue;
        }
        let mut names: Vec<OsString> = Vec::new();
        let _ = tree.readdir(ino, 0, &mut |entry| {
            let name = entry.name.as_bytes();
            assert!(
                !name.is_empty()
                    && name != b"."
                    && name != b".."
                    && !name.contains(&b'/')
                    && !name.contains(&0)
            );
            names.push(entry.name.to_owned());
            if names.len() < 200 { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
        });
        for name in names {
            match tree.lookup(ino, &name) {
                Ok(entry) => waiting.push_back(entry.ino),
                Err(errno) => assert_ne!(errno, Errno::ENOSYS),
            }
        }
    }
    seen
}

/// Changes whatever can be changed.
fn change(memory: &std::sync::Arc<Memory>, rng: &mut Rng) {
    let Ok(tree) = try_mount(memory, "") else { return };
    let mut all = Vec::new();
    // The tree may have a loop in it: only the top is asked for.
    for (name, _) in tree.list("").unwrap_or_default() {
        all.push(name);
    }
    let _ = tree.put_file("a new file with a long name", &[1; 5000]);
    let _ = tree.mkdir("a new directory");
    for name in all.iter().take(20) {
        let _ = match rng.below(6) {
            0 => tree.unlink(name),
            1 => tree.rename(name, "renamed"),
            2 => tree.rmdir(name),
            3 => tree.truncate(name, rng.below(10_000)),
            4 => tree.put_file(name, &[2; 3000]),
            _ => tree.rename(name, "a new directory/below"),
        };
    }
    let _ = tree.0.sync();
    let _ = tree.0.unmount();
}

#[test]
fn damaged_volumes_are_refused_or_read_as_far_as_they_go() {
    let seed = seed();
    let mut rng = Rng(seed | 1);
    let makes = [
        Make { kib: 160, exfat: false, words: "-F 12 -s 1" },
        Make { kib: 2200, exfat: false, words: "-F 16 -s 1" },
        Make { kib: 600, exfat: false, words: "-F 32 -s 1" },
        Make { kib: 3072, exfat: true, words: "-c 512" },
    ];
    for make in makes {
        let dir = folder();
        let Some(memory) = make.make(dir.path()) else { continue };
        let tree = mount(&memory, "");
        for dir in ["d", "d/e", "another with a long name"] {
            tree.mkdir(dir).unwrap();
            for number in 0..6 {
                tree.put_file(format!("{dir}/file number {number}"), &[7; 2000]).unwrap();
            }
        }
        tree.0.unmount().unwrap();
        let good = memory.bytes();
        // The parts that mean something: all sectors that are neither empty nor file content.
        let hot: Vec<usize> = good
            .chunks(512)
            .enumerate()
            .filter(|(_, sector)| !sector.iter().all(|byte| matches!(byte, 0 | 7 | 0xaa)))
            .map(|(at, _)| at * 512)
            .collect();
        let rounds = std::env::var("ROUNDS").ok().and_then(|rounds| rounds.parse().ok()).unwrap_or(400);
        for round in 0..rounds {
            let mut bytes = good.clone();
            for _ in 0..=rng.below(12) {
                let sector = match rng.below(4) {
                    0 => 0,
                    _ => *rng.pick(&hot).unwrap(),
                };
                let at = sector + rng.below(if sector == 0 { 120 } else { 512 }) as usize;
                let value = rng.next();
                match rng.below(4) {
                    0 => bytes[at] = value as u8,
                    1 => bytes[at] ^= 1 << (value % 8),
                    2 => bytes[at] = [0, 0xff, 0x7f, 0x80, 1][value as usize % 5],
                    _ => {
                        let from = *rng.pick(&hot).unwrap();
                        let slot = at / 32 * 32;
                        bytes.copy_within(from..from + 32, slot);
                    }
                }
            }
            // Checksums would refuse most of it: half the time they are made right again.
            if make.exfat && round % 2 == 0 {
                seal(&mut bytes);
            }
            let memory = Memory::new(bytes);
            let _ = Fat.probe(&disk(&memory));
            let _ = Fat.describe(&disk(&memory), Options::default());
            match try_mount(&memory, "ro") {
                Ok(tree) => {
                    look(&*tree.0);
                    tree.0.unmount().unwrap();
                }
                Err(error) => assert!(!error.message.is_empty()),
            }
            change(&memory, &mut rng);
        }
    }
}

/// Makes the checksum of the boot region right.
fn seal(bytes: &mut [u8]) {
    let counted = (0..512 * 11).filter(|at| !matches!(at, 106 | 107 | 112));
    let sum = counted.fold(0_u32, |sum, at| sum.rotate_right(1).wrapping_add(u32::from(bytes[at])));
    for place in bytes[512 * 11..512 * 12].chunks_exact_mut(4) {
        place.copy_from_slice(&sum.to_le_bytes());
    }
}

#[test]
fn what_is_something_else_is_not_taken_for_fat() {
    let probe = |bytes: Vec<u8>| Fat.probe(&disk(&Memory::new(bytes))).unwrap();
    assert!(!probe(Vec::new()));
    assert!(!probe(vec![0; 100]));
    assert!(!probe(vec![0; 100_000]));
    assert!(!probe(vec![0xff; 100_000]));
    // A partition table behind boot code.
    let mut mbr = vec![0; 1 << 20];
    mbr[..16].copy_from_slice(&[
        0xeb, 0x63, 0x90, 0x10, 0x8e, 0xd0, 0xbc, 0, 0xb0, 0xb8, 0, 0, 0x8e, 0xd8, 0x8e, 0xc0,
    ]);
    mbr[446..462].copy_from_slice(&[0x80, 0, 2, 0, 0x0c, 0, 0, 0, 0, 8, 0, 0, 0, 4, 0, 0]);
    mbr[510..512].copy_from_slice(&[0x55, 0xaa]);
    assert!(!probe(mbr));
    // NTFS has a parameter block of the same shape, with zeros where FAT has none.
    let mut ntfs = vec![0; 1 << 20];
    ntfs[..24].copy_from_slice(b"\xebR\x90NTFS    \0\x02\x08\0\0\0\0\0\0\0\xf8\0\0");
    ntfs[510..512].copy_from_slice(&[0x55, 0xaa]);
    assert!(!probe(ntfs));
}

#[test]
fn an_image_that_was_cut_short_is_read_as_far_as_it_goes() {
    let make = Make { kib: 1440, exfat: false, words: "-F 12" };
    let dir = folder();
    let Some(memory) = make.make(dir.path()) else { return };
    let tree = mount(&memory, "");
    tree.put_file("first", &[1; 1000]).unwrap();
    tree.put_file("last", &[2; 1_000_000]).unwrap();
    tree.0.unmount().unwrap();
    let mut bytes = memory.bytes();
    bytes.truncate(200_000);
    let cut = Memory::new(bytes);
    assert!(try_mount(&cut, "").err().unwrap().message.contains("cut short"));
    let tree = mount(&cut, "ro");
    assert_eq!(tree.read_file("first").unwrap(), [1; 1000]);
    assert_eq!(tree.read_file("last").err(), Some(Errno::EIO));
}

#[test]
fn a_chain_that_loops_ends() {
    let make = Make { kib: 1440, exfat: false, words: "-F 12 -s 1" };
    let dir = folder();
    let Some(memory) = make.make(dir.path()) else { return };
    let tree = mount(&memory, "");
    tree.put_file("f", &[1; 5000]).unwrap();
    tree.mkdir("d").unwrap();
    tree.0.unmount().unwrap();
    // The directory's cluster follows itself, and so does the file's second.
    let mut bytes = memory.bytes();
    let mut set = |cluster: usize, value: usize| {
        let at = 512 + cluster * 3 / 2;
        let old = usize::from(u16::from_le_bytes([bytes[at], bytes[at + 1]]));
        let new = if cluster % 2 == 0 { old & 0xf000 | value } else { old & 0xf | value << 4 };
        bytes[at..at + 2].copy_from_slice(&(new as u16).to_le_bytes());
    };
    set(3, 2);
    set(12, 12);
    let memory = Memory::new(bytes);
    let tree = mount(&memory, "");
    let _ = tree.list("d").unwrap();
    assert_eq!(tree.open("f").unwrap().write_at(&[2; 10], 9000), Err(Errno::EUCLEAN));
    tree.create("d/new").err().unwrap();
}
