//! A writer that is killed with SIGKILL leaves an image that qemu-img check calls clean or repairs, with everything that was flushed.
//!
//! The test runs itself as the writer: it writes numbered records to slots, zeroes and discards others, and tells the number of each
//! record after it was flushed.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test says by a panic what is wrong")]

mod common;

use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use common::{Random, have, open, qemu_img};
use veduta_api::Disk;
use veduta_formats::FileStore;

/// Larger than a cluster, so that discards free some.
const SLOT: u64 = 160 << 10;
const SLOTS: u64 = 150;
const SIZE: u64 = SLOT * SLOTS * 2;

/// The record `number` of a slot: the number all over.
fn record(number: u64) -> Vec<u8> {
    number.to_le_bytes().repeat(SLOT as usize / 8)
}

/// Writes until it is killed. Even slots have records; odd ones are zeroed, discarded and written in between.
fn write_for_ever(path: &Path, seed: u64) {
    let disk = open(path, true);
    let mut random = Random(seed);
    let mut out = std::io::stdout();
    for number in 1.. {
        let slot = random.below(SLOTS);
        disk.write_at(&record(number), slot * 2 * SLOT).unwrap();
        let other = (random.below(SLOTS) * 2 + 1) * SLOT;
        match random.below(4) {
            0 => disk.discard(other, SLOT).unwrap(),
            1 => disk.write_zeroes(other, SLOT).unwrap(),
            _ => disk.write_at(&record(number | 1 << 40), other).unwrap(),
        }
        if number % 16 == 0 {
            disk.flush().unwrap();
            writeln!(out, "{number}").unwrap();
        }
    }
}

/// What the even slots must hold after all records up to `flushed`, of the same seed; a later one may have been written over it.
fn expected(seed: u64, flushed: u64) -> Vec<u64> {
    let mut random = Random(seed);
    let mut slots = vec![0; SLOTS as usize];
    for number in 1..=flushed {
        let slot = random.below(SLOTS);
        // As the writer draws them.
        random.below(SLOTS);
        random.below(4);
        slots[slot as usize] = number;
    }
    slots
}

/// The number of a slot's record: what it is in pieces is judged by the caller.
fn numbers(disk: &Disk, slot: u64) -> Vec<u64> {
    let bytes = disk.read_vec(slot * 2 * SLOT, SLOT as usize).unwrap();
    let mut numbers: Vec<u64> =
        bytes.chunks_exact(8).map(|chunk| u64::from_le_bytes(chunk.try_into().unwrap())).collect();
    numbers.dedup();
    numbers
}

fn killed(format: &str, for_qemu: &str, can_repair: bool, seed: u64) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("image");
    let file = std::fs::File::options().read(true).write(true).create_new(true).open(&path).unwrap();
    veduta_formats::create(&FileStore(file), format, SIZE, "image", None).unwrap();
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "the_writer_that_is_to_be_killed", "--nocapture", "--ignored"])
        .env("VEDUTA_CRASH_IMAGE", &path)
        .env("VEDUTA_CRASH_SEED", seed.to_string())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let lines = BufReader::new(child.stdout.take().unwrap()).lines();
    let reader = std::thread::spawn(move || {
        lines.map_while(Result::ok).filter_map(|line| line.trim().parse::<u64>().ok()).last().unwrap_or(0)
    });
    std::thread::sleep(Duration::from_millis(150 + seed * 37 % 300));
    child.kill().unwrap();
    child.wait().unwrap();
    let flushed = reader.join().unwrap();
    assert!(flushed > 0, "the writer came to nothing");
    let image = path.to_str().unwrap();
    let checked = Command::new("qemu-img").args(["check", "-f", for_qemu, image]).output().unwrap();
    // 0 clean, 3 leaked clusters only, 63 the format has no check.
    match checked.status.code() {
        Some(0 | 63) => {}
        Some(_) if can_repair => {
            qemu_img(&["check", "-f", for_qemu, "-r", "all", image]);
        }
        code => panic!("{format}: {code:?} {}", String::from_utf8_lossy(&checked.stdout)),
    }
    let disk = open(&path, true);
    let mut found = 0;
    for (slot, number) in expected(seed, flushed).into_iter().enumerate().filter(|(_, number)| *number > 0) {
        let seen = numbers(&disk, slot as u64);
        // Records of later numbers may be there, whole or in part.
        assert!(
            seen.iter().all(|one| *one >= number),
            "{format}: slot {slot} holds {seen:?} and not {number}"
        );
        found += 1;
    }
    eprintln!("# {format}: killed after {flushed} flushed records, {found} slots are right");
}

#[test]
fn a_killed_writer_loses_nothing_that_was_flushed() {
    if !have("qemu-img") {
        return;
    }
    for round in 0..3 {
        killed("qcow2", "qcow2", true, 11 + round);
    }
    for format in ["vdi", "vhd", "vhdx", "vmdk"] {
        killed(format, if format == "vhd" { "vpc" } else { format }, false, 5);
    }
}

#[test]
#[ignore = "run by the other test"]
fn the_writer_that_is_to_be_killed() {
    if let (Some(path), Ok(seed)) =
        (std::env::var_os("VEDUTA_CRASH_IMAGE"), std::env::var("VEDUTA_CRASH_SEED"))
    {
        write_for_ever(Path::new(&path), seed.parse().unwrap());
    }
}
