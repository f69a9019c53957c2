//! Images that no program at hand makes, put together by their specifications: a differencing VHD, a VHDX whose log waits, and bad ones.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test says by a panic what is wrong")]

mod common;

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;

use common::{churn, have, open, operations, qemu_img, try_open};
use veduta_api::{Errno, MountErrorKind};
use veduta_formats::FileStore;

fn created(path: &Path, format: &str, size: u64) {
    let file = File::options().read(true).write(true).create_new(true).open(path).unwrap();
    veduta_formats::create(&FileStore(file), format, size, "image", None).unwrap();
}

fn sum(bytes: &mut [u8], at: usize) {
    bytes[at..at + 4].fill(0);
    let sum = bytes.iter().fold(0_u32, |sum, byte| sum.wrapping_add(u32::from(*byte)));
    bytes[at..at + 4].copy_from_slice(&(!sum).to_be_bytes());
}

/// A differencing VHD over `parent.vhd`, with one sector of its own: sector 5 of the first block.
fn differencing(path: &Path, size: u64) {
    created(path, "vhd", size);
    let file = File::options().read(true).write(true).open(path).unwrap();
    let len = file.metadata().unwrap().len();
    let mut footer = vec![0; 512];
    file.read_exact_at(&mut footer, 0).unwrap();
    footer[60..64].copy_from_slice(&4_u32.to_be_bytes());
    sum(&mut footer, 64);
    let mut header = vec![0; 1024];
    file.read_exact_at(&mut header, 512).unwrap();
    // Where the parent was; and, relative to here, where it is.
    for (at, unit) in "C:\\elsewhere\\gone.vhd".encode_utf16().enumerate() {
        header[64 + at * 2..66 + at * 2].copy_from_slice(&unit.to_be_bytes());
    }
    let relative: Vec<u8> = ".\\parent.vhd".encode_utf16().flat_map(u16::to_le_bytes).collect();
    let (block, locator) = (len - 512, len - 512 + 512 + (2 << 20));
    header[576..580].copy_from_slice(b"W2ru");
    header[580..584].copy_from_slice(&1_u32.to_be_bytes());
    header[584..588].copy_from_slice(&(relative.len() as u32).to_be_bytes());
    header[592..600].copy_from_slice(&locator.to_be_bytes());
    sum(&mut header, 36);
    let mut bitmap = vec![0; 512];
    bitmap[0] = 0x80 >> 5;
    file.write_all_at(&bitmap, block).unwrap();
    file.write_all_at(&[0xcc; 512], block + 512 + 5 * 512).unwrap();
    file.write_all_at(&relative, locator).unwrap();
    file.write_all_at(&((block / 512) as u32).to_be_bytes(), 1536).unwrap();
    file.write_all_at(&header, 512).unwrap();
    file.write_all_at(&footer, 0).unwrap();
    file.write_all_at(&footer, locator + 512).unwrap();
}

#[test]
fn a_differencing_vhd_shows_its_parent_and_leaves_it_alone() {
    const SIZE: u64 = 8 << 20;
    let dir = tempfile::tempdir().unwrap();
    let (parent, child) = (dir.path().join("parent.vhd"), dir.path().join("child.vhd"));
    created(&parent, "vhd", SIZE);
    let disk = open(&parent, true);
    let content: Vec<u8> = (0..SIZE).map(|at| (at / 512 % 251) as u8).collect();
    disk.write_at(&content, 0).unwrap();
    disk.flush().unwrap();
    drop(disk);
    let before = std::fs::read(&parent).unwrap();
    differencing(&child, SIZE);
    let mut expected = content;
    expected[5 * 512..6 * 512].fill(0xcc);
    assert!(open(&child, false).read_vec(0, SIZE as usize).unwrap() == expected);
    let model = tempfile::tempfile().unwrap();
    model.write_all_at(&expected, 0).unwrap();
    for seed in 1..3 {
        let disk = open(&child, true);
        churn(&disk, &model, seed, operations());
        disk.flush().unwrap();
    }
    model.read_exact_at(&mut expected, 0).unwrap();
    assert!(open(&child, false).read_vec(0, SIZE as usize).unwrap() == expected);
    assert!(std::fs::read(&parent).unwrap() == before);
    std::fs::remove_file(&parent).unwrap();
    let error = try_open(&child, false, None).err().unwrap();
    assert!(error.message.contains("parent.vhd"), "{error}");
}

fn seal(bytes: &mut [u8]) {
    bytes[4..8].fill(0);
    let crc = crc32c::crc32c(bytes);
    bytes[4..8].copy_from_slice(&crc.to_le_bytes());
}

/// The sector of the block table goes into the log, and zeros into its place.
fn into_the_log(path: &Path) {
    const TABLE: u64 = 3 << 20;
    const LOG: u64 = 1 << 20;
    let file = File::options().read(true).write(true).open(path).unwrap();
    let mut table = vec![0; 4096];
    file.read_exact_at(&mut table, TABLE).unwrap();
    file.write_all_at(&[0; 4096], TABLE).unwrap();
    let guid = [0x5a; 16];
    let len = file.metadata().unwrap().len();
    let sequence = 0x1_0000_0007_u64;
    let mut entry = vec![0; 8192];
    entry[..4].copy_from_slice(b"loge");
    entry[8..12].copy_from_slice(&8192_u32.to_le_bytes());
    entry[16..24].copy_from_slice(&sequence.to_le_bytes());
    entry[24..28].copy_from_slice(&1_u32.to_le_bytes());
    entry[32..48].copy_from_slice(&guid);
    entry[48..56].copy_from_slice(&len.to_le_bytes());
    entry[56..64].copy_from_slice(&len.to_le_bytes());
    entry[64..68].copy_from_slice(b"desc");
    entry[68..72].copy_from_slice(&table[4092..]);
    entry[72..80].copy_from_slice(&table[..8]);
    entry[80..88].copy_from_slice(&TABLE.to_le_bytes());
    entry[88..96].copy_from_slice(&sequence.to_le_bytes());
    entry[4096..4100].copy_from_slice(b"data");
    entry[4100..4104].copy_from_slice(&((sequence >> 32) as u32).to_le_bytes());
    entry[4104..8188].copy_from_slice(&table[8..4092]);
    entry[8188..].copy_from_slice(&(sequence as u32).to_le_bytes());
    seal(&mut entry);
    file.write_all_at(&entry, LOG).unwrap();
    for at in [64 << 10, 128 << 10] {
        let mut header = vec![0; 4096];
        file.read_exact_at(&mut header, at).unwrap();
        header[48..64].copy_from_slice(&guid);
        seal(&mut header);
        file.write_all_at(&header, at).unwrap();
    }
}

#[test]
fn a_vhdx_whose_log_waits_is_replayed_as_qemu_does() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("image.vhdx");
    created(&path, "vhdx", 64 << 20);
    let disk = open(&path, true);
    disk.write_at(&[0x77; 100_000], 20 << 20).unwrap();
    disk.flush().unwrap();
    drop(disk);
    into_the_log(&path);
    let copy = dir.path().join("copy.vhdx");
    std::fs::copy(&path, &copy).unwrap();
    let before = std::fs::read(&path).unwrap();
    let image = try_open(&path, false, None).unwrap();
    assert!(image.layers[0].find("warnings").is_some());
    assert_eq!(image.disk.read_vec((20 << 20) + 500, 4), Ok(vec![0x77; 4]));
    drop(image);
    assert!(std::fs::read(&path).unwrap() == before, "looking at it changes nothing");
    let disk = open(&path, true);
    assert_eq!(disk.read_vec((20 << 20) + 500, 4), Ok(vec![0x77; 4]));
    disk.write_at(b"x", 0).unwrap();
    disk.flush().unwrap();
    drop(disk);
    assert!(try_open(&path, false, None).unwrap().layers[0].find("warnings").is_none());
    if have("qemu-img") {
        let (ours, theirs) = (path.to_str().unwrap(), copy.to_str().unwrap());
        qemu_img(&["check", "-q", "-f", "vhdx", ours]);
        qemu_img(&["check", "-q", "-f", "vhdx", "-r", "all", theirs]);
        assert_eq!(open(&copy, false).read_vec((20 << 20) + 500, 4), Ok(vec![0x77; 4]));
    }
}

#[test]
fn what_cannot_be_read_says_what_it_is() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("image");
    let check = |change: &dyn Fn(&File), format: &str, kind: MountErrorKind, words: &str| {
        let _ = std::fs::remove_file(&path);
        created(&path, format, 8 << 20);
        change(&File::options().read(true).write(true).open(&path).unwrap());
        let error = try_open(&path, true, None).err().expect(words);
        assert!(error.kind == kind && error.message.contains(words), "{words}: {error:?}");
    };
    use MountErrorKind::{Corrupt, Unsupported};
    let put = |at: u64, bytes: &'static [u8]| move |file: &File| file.write_all_at(bytes, at).unwrap();
    check(&put(7, &[9]), "qcow2", Unsupported, "version 9");
    check(&put(72, &[0x80]), "qcow2", Unsupported, "unknown features");
    check(&put(79, &[4]), "qcow2", Unsupported, "another file");
    check(&put(32, &[0, 0, 0, 2]), "qcow2", Unsupported, "encrypted");
    check(&put(23, &[50]), "qcow2", Corrupt, "clusters");
    check(&put(24, &[0x10]), "qcow2", Corrupt, "L1");
    check(&put(0x4c, &[4]), "vdi", Unsupported, "differencing");
    check(&put(0x184, &[0xff, 0xff]), "vdi", Corrupt, "blocks");
    check(&put(513, b"y"), "vhd", Corrupt, "header");
    check(&put(20, &[0xff]), "vmdk", Corrupt, "grains");
    let both = |file: &File| [65540, 131_076].iter().for_each(|at| file.write_all_at(b"xxxx", *at).unwrap());
    check(&both, "vhdx", Corrupt, "header");
    // A qcow2 that its last writer did not close is there to be read.
    let _ = std::fs::remove_file(&path);
    created(&path, "qcow2", 8 << 20);
    File::options().write(true).open(&path).unwrap().write_all_at(&[1], 79).unwrap();
    let image = try_open(&path, true, None).unwrap();
    assert!(image.disk.is_read_only() && image.layers[0].find("warnings").is_some());
    assert_eq!(image.disk.write_at(b"x", 0), Err(Errno::EROFS));
}
