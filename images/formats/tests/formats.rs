//! Each format against qemu-img: images that it made or we made, written at random by four threads, then checked and compared by it.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test says by a panic what is wrong")]

mod common;

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;

use common::{Random, churn, have, open, operations, qemu_img, run, try_open};
use veduta_api::Errno;
use veduta_formats::{FileStore, Format};

const SIZE: u64 = 24 << 20;

/// Writes to an image and to a raw file, then has qemu-img say whether they are the same, and we too, opened anew.
fn judged(path: &Path, format: &str, model: &File, model_path: &Path, can_check: bool) {
    let seed = std::env::var("SEED").ok().and_then(|seed| seed.parse().ok()).unwrap_or(42);
    eprintln!("# {} seed {seed}", path.display());
    let (image, raw) = (path.to_str().unwrap(), model_path.to_str().unwrap());
    // Twice, so that the second time finds what the first left.
    for round in 0..2 {
        let disk = open(path, true);
        churn(&disk, model, seed + round, operations());
        disk.flush().unwrap();
        drop(disk);
        if can_check {
            qemu_img(&["check", "-f", format, image]);
        }
        qemu_img(&["compare", "-f", format, "-F", "raw", image, raw]);
    }
    let disk = open(path, false);
    let mut at = 0;
    while at < disk.size() {
        let len = (1 << 20).min(disk.size() - at) as usize;
        let mut expected = vec![0; len];
        model.read_exact_at(&mut expected, at).unwrap();
        assert!(disk.read_vec(at, len).unwrap() == expected, "at {at:#x}");
        at += len as u64;
    }
    // What is said to hold nothing but zeros does.
    let mut at = 0;
    while at < disk.size() {
        let data = disk.next_data(at).unwrap().unwrap_or(disk.size()..disk.size());
        let hole = disk.read_vec(at, (data.start - at) as usize).unwrap();
        assert!(hole.iter().all(|byte| *byte == 0), "a hole at {at:#x} is none");
        at = data.end;
    }
}

fn model_of(dir: &Path, size: u64) -> (File, std::path::PathBuf) {
    let path = dir.join("model.raw");
    let file = File::options().read(true).write(true).create(true).truncate(true).open(&path).unwrap();
    file.set_len(size).unwrap();
    (file, path)
}

fn made_by_qemu(format: &str, options: &str, can_check: bool) {
    if !have("qemu-img") {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join(format!("image.{format}"));
    let size = SIZE.to_string();
    let options = if options.is_empty() { vec![] } else { vec!["-o", options] };
    let words = [&["create", "-q", "-f", format], &options[..], &[path.to_str().unwrap(), &size]].concat();
    qemu_img(&words);
    let (model, model_path) = model_of(dir.path(), open(&path, false).size());
    judged(&path, format, &model, &model_path, can_check);
}

fn made_by_us(format: &str, for_qemu: &str, can_check: bool) {
    if !have("qemu-img") {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("image");
    let file = File::options().read(true).write(true).create_new(true).open(&path).unwrap();
    veduta_formats::create(&FileStore(file), format, SIZE, "image", None).unwrap();
    if can_check {
        qemu_img(&["check", "-f", for_qemu, path.to_str().unwrap()]);
    }
    let disk = open(&path, false);
    assert_eq!(disk.size(), SIZE);
    assert_eq!(disk.next_data(0), if format == "vhd-fixed" { disk.next_data(0) } else { Ok(None) });
    drop(disk);
    let (model, model_path) = model_of(dir.path(), SIZE);
    judged(&path, for_qemu, &model, &model_path, can_check);
}

#[test]
fn qcow2_is_written_in_all_its_kinds() {
    for options in [
        "",
        "cluster_size=512",
        "cluster_size=4096",
        "cluster_size=2M",
        "compat=0.10",
        "refcount_bits=1",
        "refcount_bits=64,cluster_size=4096",
        "extended_l2=on",
        "preallocation=metadata",
    ] {
        made_by_qemu("qcow2", options, true);
    }
    made_by_us("qcow2", "qcow2", true);
}

#[test]
fn vdi_vhd_vhdx_and_vmdk_are_written() {
    made_by_qemu("vdi", "", true);
    made_by_qemu("vdi", "static=on", true);
    made_by_us("vdi", "vdi", true);
    made_by_qemu("vpc", "force_size=on", false);
    made_by_qemu("vpc", "", false);
    made_by_qemu("vpc", "subformat=fixed,force_size=on", false);
    made_by_us("vhd", "vpc", false);
    made_by_us("vhd-fixed", "vpc", false);
    made_by_qemu("vmdk", "", true);
    made_by_qemu("vmdk", "zeroed_grain=on", true);
    made_by_qemu("vmdk", "subformat=twoGbMaxExtentSparse", true);
    made_by_qemu("vmdk", "subformat=monolithicFlat", false);
    made_by_us("vmdk", "vmdk", true);
    made_by_qemu("vhdx", "", true);
    made_by_qemu("vhdx", "block_size=1M", true);
    made_by_us("vhdx", "vhdx", true);
}

/// A raw file of noise and holes.
fn noise(path: &Path, size: u64) -> File {
    let file = File::options().read(true).write(true).create_new(true).open(path).unwrap();
    file.set_len(size).unwrap();
    let mut random = Random(7);
    for at in (0..size).step_by(256 << 10) {
        if random.below(3) > 0 {
            let len = (100 << 10).min(size - at);
            let bytes: Vec<u8> =
                (0..len / 8).flat_map(|_| (random.next() & 0x0f0f_0f0f).to_le_bytes()).collect();
            file.write_all_at(&bytes, at).unwrap();
        }
    }
    file
}

/// An image over another, which stays as it is.
fn over_another(format: &str, options: &str, below: &str, below_size: u64) {
    if !have("qemu-img") {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name);
    drop(noise(&at("noise.raw"), below_size));
    let (raw, base, top) = (at("noise.raw"), at("base"), at("top"));
    let text = |path: &Path| path.to_str().unwrap().to_owned();
    qemu_img(&["convert", "-f", "raw", "-O", below, &text(&raw), &text(&base)]);
    let before = std::fs::read(&base).unwrap();
    let options = if options.is_empty() { vec![] } else { vec!["-o", options] };
    let size = SIZE.to_string();
    let made = ["create", "-q", "-f", format, "-F", below, "-b", "base"];
    let top_name = text(&top);
    // A VMDK is as large as what is below it.
    let size = if format == "vmdk" { vec![] } else { vec![&*size] };
    qemu_img(&[&made[..], &options[..], &[&top_name], &size[..]].concat());
    let (model, model_path) = model_of(dir.path(), open(&top, false).size());
    model.write_all_at(&std::fs::read(&raw).unwrap(), 0).unwrap();
    judged(&top, format, &model, &model_path, true);
    assert!(std::fs::read(&base).unwrap() == before, "what is below stays as it is");
}

#[test]
fn what_is_below_an_image_shows_through_and_stays_as_it_is() {
    over_another("qcow2", "", "raw", SIZE);
    over_another("qcow2", "cluster_size=4096", "qcow2", SIZE - (5 << 20) - 512);
    over_another("qcow2", "compat=0.10", "raw", SIZE / 2);
    over_another("qcow2", "extended_l2=on", "vdi", SIZE);
    over_another("vmdk", "zeroed_grain=on", "vmdk", SIZE);
    over_another("vmdk", "", "vmdk", SIZE);
}

#[test]
fn compressed_clusters_are_read_and_overwritten() {
    if !have("qemu-img") {
        return;
    }
    for options in ["compression_type=zlib", "compression_type=zstd,cluster_size=16384"] {
        let dir = tempfile::tempdir().unwrap();
        let (raw, image) = (dir.path().join("noise.raw"), dir.path().join("image"));
        drop(noise(&raw, SIZE));
        let (raw_name, image_name) = (raw.to_str().unwrap(), image.to_str().unwrap());
        qemu_img(&["convert", "-c", "-f", "raw", "-O", "qcow2", "-o", options, raw_name, image_name]);
        let (model, model_path) = model_of(dir.path(), SIZE);
        model.write_all_at(&std::fs::read(&raw).unwrap(), 0).unwrap();
        judged(&image, "qcow2", &model, &model_path, true);
    }
}

#[test]
fn internal_snapshots_keep_what_they_had() {
    if !have("qemu-img") {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let (raw, image) = (dir.path().join("noise.raw"), dir.path().join("image"));
    drop(noise(&raw, SIZE));
    let (raw_name, image_name) = (raw.to_str().unwrap(), image.to_str().unwrap());
    qemu_img(&["convert", "-f", "raw", "-O", "qcow2", raw_name, image_name]);
    qemu_img(&["snapshot", "-c", "before", image_name]);
    let (model, model_path) = model_of(dir.path(), SIZE);
    model.write_all_at(&std::fs::read(&raw).unwrap(), 0).unwrap();
    judged(&image, "qcow2", &model, &model_path, true);
    qemu_img(&["snapshot", "-a", "before", image_name]);
    qemu_img(&["compare", "-f", "qcow2", "-F", "raw", image_name, raw_name]);
    qemu_img(&["check", image_name]);
}

#[test]
fn a_stream_optimised_vmdk_is_read() {
    if !have("qemu-img") {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let (raw, image) = (dir.path().join("noise.raw"), dir.path().join("image.vmdk"));
    drop(noise(&raw, SIZE - 512 * 77));
    let (raw_name, image_name) = (raw.to_str().unwrap(), image.to_str().unwrap());
    qemu_img(&[
        "convert",
        "-f",
        "raw",
        "-O",
        "vmdk",
        "-o",
        "subformat=streamOptimized",
        raw_name,
        image_name,
    ]);
    let disk = open(&image, true);
    assert!(disk.is_read_only());
    assert!(disk.read_vec(0, disk.size() as usize).unwrap() == std::fs::read(&raw).unwrap());
}

#[test]
fn compressed_files_are_unpacked_and_what_they_hold_is_found() {
    let dir = tempfile::tempdir().unwrap();
    let raw = dir.path().join("noise.raw");
    drop(noise(&raw, 4 << 20));
    let expected = std::fs::read(&raw).unwrap();
    let mut inner = vec![raw];
    if have("qemu-img") {
        let image = dir.path().join("image.qcow2");
        qemu_img(&[
            "convert",
            "-f",
            "raw",
            "-O",
            "qcow2",
            inner[0].to_str().unwrap(),
            image.to_str().unwrap(),
        ]);
        inner.push(image);
    }
    for path in &inner {
        for (program, suffix, format) in
            [("gzip", "gz", Format::Gzip), ("xz", "xz", Format::Xz), ("zstd", "zst", Format::Zstd)]
        {
            if !have(program) {
                continue;
            }
            let name = path.to_str().unwrap();
            run(program, &["-q", "-k", "-f", "-1", name]);
            let packed = format!("{name}.{suffix}");
            let image = try_open(Path::new(&packed), true, None).unwrap();
            assert!(image.disk.is_read_only(), "{packed}");
            assert!(image.disk.read_vec(0, expected.len()).unwrap() == expected, "{packed}");
            assert_eq!(image.layers.len(), if name.ends_with("raw") { 1 } else { 2 }, "{packed}");
            assert_eq!(
                veduta_formats::recognise(&*common::file(Path::new(&packed), false).unwrap()),
                Ok(format)
            );
            // Half of it is no image.
            let bytes = std::fs::read(&packed).unwrap();
            std::fs::write(&packed, &bytes[..bytes.len() / 2]).unwrap();
            assert_eq!(
                try_open(Path::new(&packed), false, None).err().map(|error| error.errno),
                Some(Errno::EUCLEAN)
            );
        }
    }
}

/// The seekable form, put together by its description, since no program of Debian writes it.
#[test]
fn seekable_zstd_is_read_in_place() {
    let dir = tempfile::tempdir().unwrap();
    let raw = dir.path().join("noise.raw");
    drop(noise(&raw, (4 << 20) + 1234 * 512));
    let expected = std::fs::read(&raw).unwrap();
    for checksums in [false, true] {
        let (mut file, mut table) = (Vec::new(), Vec::new());
        for piece in expected.chunks(100_000) {
            let frame = zstd::bulk::compress(piece, 1).unwrap();
            table.extend((frame.len() as u32).to_le_bytes());
            table.extend((piece.len() as u32).to_le_bytes());
            if checksums {
                table.extend([0; 4]);
            }
            file.extend(frame);
        }
        let count = expected.len().div_ceil(100_000) as u32;
        file.extend(0x184d_2a5e_u32.to_le_bytes());
        file.extend((table.len() as u32 + 9).to_le_bytes());
        file.extend(table);
        file.extend(count.to_le_bytes());
        file.push(if checksums { 0x80 } else { 0 });
        file.extend(0x8f92_eab1_u32.to_le_bytes());
        let path = dir.path().join("image.zst");
        std::fs::write(&path, file).unwrap();
        let image = try_open(&path, true, None).unwrap();
        assert!(image.layers[0].find("frames").is_some(), "read in place");
        assert!(image.disk.read_vec(0, expected.len()).unwrap() == expected);
        let mut random = Random(3);
        for _ in 0..200 {
            let at = random.below(expected.len() as u64 - 4096);
            assert!(image.disk.read_vec(at, 4096).unwrap() == expected[at as usize..][..4096]);
        }
        if have("zstd") {
            run("zstd", &["-q", "-t", path.to_str().unwrap()]);
        }
    }
}

#[test]
fn a_throw_away_layer_leaves_the_file_as_it_is() {
    if !have("qemu-img") {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let (raw, image) = (dir.path().join("noise.raw"), dir.path().join("image.qcow2"));
    drop(noise(&raw, SIZE));
    qemu_img(&["convert", "-f", "raw", "-O", "qcow2", raw.to_str().unwrap(), image.to_str().unwrap()]);
    let before = std::fs::read(&image).unwrap();
    let scratch: std::sync::Arc<dyn veduta_formats::Store> =
        std::sync::Arc::new(FileStore(tempfile::tempfile().unwrap()));
    let below = open(&image, false);
    let disk = veduta_formats::snapshot(&below, &scratch);
    let (model, _) = model_of(dir.path(), SIZE);
    model.write_all_at(&std::fs::read(&raw).unwrap(), 0).unwrap();
    churn(&disk, &model, 5, operations());
    let mut whole = vec![0; SIZE as usize];
    model.read_exact_at(&mut whole, 0).unwrap();
    assert!(disk.read_vec(0, SIZE as usize).unwrap() == whole);
    assert!(std::fs::read(&image).unwrap() == before);
}

#[test]
fn discarded_space_is_given_back() {
    use std::os::unix::fs::MetadataExt;
    let dir = tempfile::tempdir().unwrap();
    for format in ["qcow2", "vdi", "vhd", "vhdx", "vmdk"] {
        let path = dir.path().join(format);
        let file = File::options().read(true).write(true).create_new(true).open(&path).unwrap();
        veduta_formats::create(&FileStore(file), format, 1 << 30, format, None).unwrap();
        let empty = std::fs::metadata(&path).unwrap().blocks();
        let disk = open(&path, true);
        disk.write_at(&vec![1; 64 << 20], 3 << 20).unwrap();
        disk.flush().unwrap();
        let full = std::fs::metadata(&path).unwrap().blocks();
        disk.discard(0, 1 << 30).unwrap();
        disk.flush().unwrap();
        let after = std::fs::metadata(&path).unwrap().blocks();
        assert!(full - empty >= 64 << 11, "{format}");
        assert!(after - empty < 2 << 11, "{format}: {} KiB stay", (after - empty) / 2);
        assert_eq!(disk.read_vec(4 << 20, 512), Ok(vec![0; 512]), "{format}");
        // What was freed is used again, where the format can do that.
        disk.write_at(&vec![2; 64 << 20], 100 << 20).unwrap();
        disk.flush().unwrap();
        let again = std::fs::metadata(&path).unwrap();
        if format == "qcow2" {
            assert!(again.len() < 70 << 20, "{}", again.len());
        }
    }
}
