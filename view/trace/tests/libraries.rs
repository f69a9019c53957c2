//! Every library of this machine that has call sites: each is rewritten right, by what objdump sees, or left alone.
//! Needs objdump (binutils). `VEDUTA_LIBRARIES` names folders other than `/usr/lib`.

#![cfg(target_arch = "x86_64")]
#![allow(clippy::unwrap_used, clippy::panic)]

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::path::{Path, PathBuf};
use std::process::Command;

use veduta_trace::shim;
use veduta_trace::sites::{self, Patched};

const WANTED: [u32; 35] = [
    0, 1, 2, 4, 5, 6, 8, 9, 17, 18, 19, 20, 21, 59, 77, 78, 89, 91, 93, 102, 104, 107, 108, 118, 120, 137,
    138, 193, 196, 217, 257, 262, 267, 269, 332,
];

fn files(folder: &Path, found: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(folder).into_iter().flatten().flatten() {
        match entry.file_type() {
            Ok(kind) if kind.is_dir() => files(&entry.path(), found),
            Ok(kind) if kind.is_file() => found.push(entry.path()),
            _ => {}
        }
    }
}

/// What objdump says: instructions by address, without their bytes.
fn listing(path: &Path) -> BTreeMap<u64, String> {
    let out = Command::new("objdump").args(["-d", "--no-show-raw-insn", "-w"]).arg(path).output().unwrap();
    let text = String::from_utf8_lossy(&out.stdout);
    let line = |line: &str| {
        let (address, instruction) = line.trim_start().split_once(":\t")?;
        Some((u64::from_str_radix(address, 16).ok()?, instruction.trim().to_owned()))
    };
    text.lines().filter_map(line).collect()
}

fn check(path: &Path, patched: &Patched<'_>) {
    let mut new = patched.old.to_vec();
    patched.apply(&mut new);
    let lines = listing(path);
    let name = path.display();
    let targets: HashSet<u64> = lines
        .values()
        .filter_map(|line| {
            let (name, rest) = line.split_once(char::is_whitespace)?;
            let target = rest.trim().split([' ', ',']).next()?;
            (name.starts_with('j') || name.starts_with("call"))
                .then(|| u64::from_str_radix(target, 16).ok())?
        })
        .collect();
    let (pads, changes) = patched.changes.split_first().unwrap();
    let within = |address: u64| (address - patched.address) as usize;
    let pads_end = pads.address + pads.new.len() as u64;
    assert!(within(pads_end) <= new.len(), "{name}: the pads fit");
    assert!(lines.range(pads.address..pads_end).next().is_none(), "{name}: the pads are where no code is");
    assert_eq!(changes.len(), patched.sites.len());
    for (change, site) in changes.iter().zip(&patched.sites) {
        let at = change.address;
        let end = at + change.old.len() as u64;
        assert_eq!(change.old, &patched.old[within(at)..within(end)], "{name}: {at:x}");
        assert!(lines.contains_key(&at) && lines.contains_key(&end), "{name}: {at:x}: whole instructions");
        assert!(!(at + 1..end).any(|inner| targets.contains(&inner)), "{name}: {at:x}: nobody jumps into it");
        assert_eq!(lines[&site.address], "syscall", "{name}: {at:x}");
        assert_eq!(change.new[0], 0xe9, "{name}: {at:x}: a jump");
        let distance = i32::from_le_bytes(change.new[1..5].try_into().unwrap());
        let pad = (at + 5).wrapping_add_signed(i64::from(distance));
        assert!((pads.address..pads_end).contains(&pad), "{name}: {at:x}: the jump leads to a pad");
        run(path, patched, &new, pad, site, change);
    }
    // Nothing else has changed.
    let mut back = new.clone();
    for change in &patched.changes {
        let at = within(change.address);
        back[at..at + change.old.len()].copy_from_slice(&change.old);
    }
    assert!(back == *patched.old, "{name}: only the sites are changed");
}

/// Follows a pad as the processor would, by its few kinds of instructions, to the shim; and what is behind the call.
fn run(path: &Path, patched: &Patched<'_>, new: &[u8], pad: u64, site: &sites::Site, change: &sites::Change) {
    let name = path.display();
    let code = |at: u64, len: usize| {
        let at = (at - patched.address) as usize;
        &new[at..at + len]
    };
    let distance = |at: u64| i64::from(i32::from_le_bytes(code(at, 4).try_into().unwrap()));
    let (mut at, mut rax, mut rcx) = (pad, None, None);
    for _ in 0..8 {
        match code(at, 3) {
            [0x48, 0x8d, 0x0d] => {
                rcx = Some((at + 7).wrapping_add_signed(distance(at + 3)));
                at += 7;
            }
            [0xe9, ..] => at = (at + 5).wrapping_add_signed(distance(at + 1)),
            [0xb8, ..] => {
                rax = Some(distance(at + 1) as u32);
                at += 5;
            }
            [0x49, 0xbb, _] => {
                assert_eq!(code(at + 2, 8), shim::BASE.to_le_bytes(), "{name}: {pad:x}");
                assert_eq!(code(at + 10, 3), [0x41, 0xff, 0xe3], "{name}: {pad:x}");
                break;
            }
            other => panic!("{name}: {at:x}: {other:x?}"),
        }
    }
    assert_eq!(rax, site.number, "{name}: {pad:x}: the number");
    let rcx = rcx.unwrap();
    assert_eq!(code(rcx, 2), [0x0f, 0x05], "{name}: {pad:x}: a place to make the call");
    if site.number.is_some() {
        assert_eq!(rcx, site.address, "{name}: {pad:x}");
        return;
    }
    // What was displaced comes behind, and then the rest of the function.
    let rest = &change.old[2..];
    assert_eq!(code(rcx + 2, rest.len()), rest, "{name}: {pad:x}");
    let jump = rcx + 2 + rest.len() as u64;
    assert_eq!(code(jump, 1), [0xe9], "{name}: {pad:x}");
    let back = (jump + 5).wrapping_add_signed(distance(jump + 1));
    assert_eq!(back, change.address + change.old.len() as u64, "{name}: {pad:x}");
}

#[test]
fn every_call_site_of_this_machine_is_rewritten_right_or_left_alone() {
    if Command::new("objdump").arg("--version").output().is_err() {
        eprintln!("skip - no objdump here");
        return;
    }
    let folders = std::env::var("VEDUTA_LIBRARIES").unwrap_or_else(|_| "/usr/lib".into());
    let mut found = Vec::new();
    folders.split(':').for_each(|folder| files(Path::new(folder), &mut found));
    let (mut libraries, mut count, mut numbers) = (0, 0, BTreeSet::new());
    for path in found {
        let is_library =
            path.to_string_lossy().contains(".so") && path.metadata().is_ok_and(|data| data.len() < 64 << 20);
        let Some(bytes) = is_library.then(|| std::fs::read(&path).ok()).flatten() else { continue };
        if !bytes.starts_with(b"\x7fELF") || !bytes.windows(2).any(|pair| pair == [0x0f, 0x05]) {
            continue;
        }
        let Ok(patched) = sites::patch(&bytes, &|number| WANTED.contains(&number)) else { continue };
        if patched.sites.is_empty() {
            assert!(patched.changes.is_empty());
            continue;
        }
        libraries += 1;
        count += patched.sites.len();
        numbers.extend(patched.sites.iter().filter_map(|site| site.number));
        check(&path, &patched);
    }
    eprintln!("{count} call sites in {libraries} libraries, of the calls {numbers:?}");
}

#[test]
fn the_c_library_is_rewritten() {
    let Ok(bytes) = std::fs::read("/lib/x86_64-linux-gnu/libc.so.6") else { return };
    let patched = sites::patch(&bytes, &|number| WANTED.contains(&number)).unwrap();
    let has = |number| patched.sites.iter().any(|site| site.number == Some(number));
    assert!(has(257) && has(262), "open and stat are among the sites");
}

#[test]
fn what_is_no_library_is_refused() {
    for bytes in [&b""[..], b"\x7fELF\x02\x01", b"#!/bin/sh\n", &[0; 4096]] {
        assert!(sites::patch(bytes, &|_| true).is_err());
    }
}
