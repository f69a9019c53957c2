//! The images of `images/make 'format-*'`: each is what its raw companion is, and a throw-away layer over it can be written.
//!
//! Needs them in `images/out` or where `VEDUTA_IMAGES` says. Without them it is skipped, in CI a failure.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test says by a panic what is wrong")]

mod common;

use std::path::PathBuf;

use common::try_open;

fn images() -> Vec<PathBuf> {
    let folder = match std::env::var_os("VEDUTA_IMAGES") {
        Some(folder) => PathBuf::from(folder),
        None => PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../out"),
    };
    let entries = std::fs::read_dir(&folder).map(|entries| entries.flatten().map(|entry| entry.path()));
    let mut found: Vec<PathBuf> = entries
        .into_iter()
        .flatten()
        .filter(|path| {
            let name = path.file_name().unwrap().to_string_lossy().into_owned();
            name.starts_with("format-") && name.ends_with(".img")
        })
        .collect();
    found.sort();
    assert!(!found.is_empty() || std::env::var_os("CI").is_none(), "no images in {}", folder.display());
    if found.is_empty() {
        eprintln!("skip - no images in {}", folder.display());
    }
    found
}

#[test]
fn each_image_is_what_its_raw_companion_is() {
    for path in images() {
        let expected = std::fs::read(path.with_extension("raw")).unwrap();
        let image =
            try_open(&path, false, None).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        assert_eq!(image.disk.size(), expected.len() as u64, "{}", path.display());
        assert!(image.disk.read_vec(0, expected.len()).unwrap() == expected, "{}", path.display());
        // In pieces that begin and end anywhere.
        for at in (0..expected.len() - 20_000).step_by(77_777) {
            assert!(
                image.disk.read_vec(at as u64, 12_345).unwrap() == expected[at..at + 12_345],
                "{}",
                path.display()
            );
        }
        assert!(image.layers.iter().all(|layer| layer.find("format").is_some()));
    }
}
