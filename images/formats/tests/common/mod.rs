//! What the tests of this crate share: images made by qemu-img, and somebody who writes to them at random.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    dead_code,
    missing_docs,
    unreachable_pub,
    reason = "a test says by a panic what is wrong"
)]

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;

use veduta_api::{Disk, MountError};
use veduta_formats::{FileStore, Files, Format, How, Image, Named, Store};

/// Files beside an image.
pub struct Beside(pub PathBuf);

impl Files for Beside {
    fn open(&self, name: &str, writable: bool) -> Result<Named, MountError> {
        let path = self.0.join(name);
        let store = file(&path, writable).map_err(|error| {
            MountError::system(veduta_api::Errno::ENOENT, format!("{}: {error}", path.display()))
        })?;
        Ok((store, Arc::new(Beside(path.parent().unwrap().to_owned()))))
    }
    fn scratch(&self) -> Result<Arc<dyn Store>, MountError> {
        Ok(Arc::new(FileStore(tempfile::tempfile().unwrap())))
    }
}

pub fn file(path: &Path, writable: bool) -> std::io::Result<Arc<dyn Store>> {
    Ok(Arc::new(FileStore(File::options().read(true).write(writable).open(path)?)))
}

pub fn try_open(path: &Path, writable: bool, format: Option<Format>) -> Result<Image, MountError> {
    let store = file(path, writable).unwrap();
    let files = Beside(path.parent().unwrap().to_owned());
    let how = How { writable, format, sector: None, name: "image" };
    Ok(veduta_formats::open(&store, &files, how)?.expect("not raw"))
}

pub fn open(path: &Path, writable: bool) -> Disk {
    try_open(path, writable, None).unwrap().disk
}

/// Whether a program is there. In CI a missing one is a failure, elsewhere a skip.
pub fn have(program: &str) -> bool {
    let found = Command::new(program).arg("--version").output().is_ok();
    assert!(found || std::env::var_os("CI").is_none(), "{program} is not installed");
    if !found {
        eprintln!("skip - {program} is not installed");
    }
    found
}

/// Runs a program that must succeed, and gives what it said.
pub fn run(program: &str, words: &[&str]) -> String {
    let output = Command::new(program).args(words).output().unwrap();
    let said =
        format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{program} {words:?}: {said}");
    said
}

pub fn qemu_img(words: &[&str]) -> String {
    run("qemu-img", words)
}

/// xorshift64*
#[derive(Clone)]
pub struct Random(pub u64);

impl Random {
    pub fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }
    pub fn below(&mut self, limit: u64) -> u64 {
        self.next() % limit.max(1)
    }
}

/// Bytes; every thread has each fourth stripe to itself, so that threads meet in the same blocks.
const STRIPE: u64 = 20 << 10;
const THREADS: u64 = 4;

/// Four threads write, zero and discard at random, each in its own stripes, and check what they read; `model` is a raw file that
/// gets the same. Where nothing is known of the content after a discard, it must be the old one or zeros.
pub fn churn(disk: &Disk, model: &File, seed: u64, operations: u64) {
    std::thread::scope(|scope| {
        for thread in 0..THREADS {
            scope.spawn(move || {
                let mut random = Random(seed * 1000 + thread + 1);
                (0..operations).for_each(|_| step(disk, model, thread, &mut random));
            });
        }
    });
}

fn step(disk: &Disk, model: &File, thread: u64, random: &mut Random) {
    let stripes = disk.size().div_ceil(STRIPE * THREADS);
    let start = (random.below(stripes) * THREADS + thread) * STRIPE;
    if start >= disk.size() {
        return;
    }
    let room = STRIPE.min(disk.size() - start);
    let (from, len) = match random.below(3) {
        0 => (0, room),
        1 => {
            let from = random.below(room / 512) * 512;
            (from, (random.below(8) * 512 + 512).min(room - from))
        }
        _ => {
            let from = random.below(room);
            (from, random.below(room - from) + 1)
        }
    };
    let at = start + from;
    let mut old = vec![0; len as usize];
    model.read_exact_at(&mut old, at).unwrap();
    let mut seen = vec![0; len as usize];
    disk.read_at(&mut seen, at).unwrap();
    assert!(seen == old, "what is read at {at:#x}+{len:#x} is not what was written");
    match random.below(10) {
        0..=5 => {
            let fill = random.next().to_le_bytes();
            let new: Vec<u8> = (0..len).map(|index| fill[index as usize % 8] ^ (index >> 8) as u8).collect();
            disk.write_at(&new, at).unwrap();
            model.write_all_at(&new, at).unwrap();
        }
        6 | 7 => {
            disk.write_zeroes(at, len).unwrap();
            model.write_all_at(&vec![0; len as usize], at).unwrap();
        }
        8 => {
            disk.discard(at, len).unwrap();
            disk.read_at(&mut seen, at).unwrap();
            let fine = seen.iter().zip(&old).all(|(new, old)| new == old || *new == 0);
            assert!(fine, "a discard at {at:#x}+{len:#x} brought up something else");
            model.write_all_at(&seen, at).unwrap();
        }
        _ if random.below(20) == 0 => disk.flush().unwrap(),
        _ => {}
    }
}

/// So many operations of each thread; `VEDUTA_CHURN` asks for more.
pub fn operations() -> u64 {
    std::env::var("VEDUTA_CHURN").ok().and_then(|number| number.parse().ok()).unwrap_or(100)
}
