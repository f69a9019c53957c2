//! Every test image of the ext family, compared with what is known about it: type, mode, owner, size, links,
//! inode, blocks, device, times, target, extended attributes, content and holes.
//!
//! Needs the images of `images/make 'ext*'`, in `images/out` or where `VEDUTA_IMAGES` says. Without them it
//! is skipped, and says so. NAME.kernel.jsonl is what a kernel mount showed, NAME.truth.jsonl what debugfs(8)
//! says.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod common;

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use veduta_tests::record;

fn folder() -> PathBuf {
    match std::env::var_os("VEDUTA_IMAGES") {
        Some(folder) => folder.into(),
        None => Path::new(env!("CARGO_MANIFEST_DIR")).join("../../images/out"),
    }
}

#[test]
fn every_image_reads_as_it_was_made() {
    let only = std::env::var("VEDUTA_ONLY").unwrap_or_default();
    let Ok(files) = fs::read_dir(folder()) else {
        eprintln!("skip - there are no images in {}", folder().display());
        return;
    };
    let names: BTreeSet<String> = files
        .filter_map(|file| file.unwrap().file_name().into_string().ok())
        .filter_map(|file| file.strip_suffix(".img").map(str::to_owned))
        .filter(|name| name.starts_with("ext") && name.contains(&only))
        .collect();
    let (mut compared, mut failures) = (0, Vec::new());
    for name in &names {
        for kind in ["kernel", "truth"] {
            let Ok(text) = fs::read_to_string(folder().join(format!("{name}.{kind}.jsonl"))) else {
                continue;
            };
            compared += 1;
            failures.extend(compare(name, kind, &text));
        }
    }
    eprintln!("{} images, {compared} comparisons", names.len());
    assert!(failures.is_empty(), "{} differences:\n{}", failures.len(), failures.join("\n"));
}

fn compare(name: &str, kind: &str, text: &str) -> Vec<String> {
    let tree = match common::mount(&folder().join(format!("{name}.img")), "") {
        Ok(tree) => tree,
        Err(error) => return vec![format!("{name}: {error}")],
    };
    let truth = record::parse(text);
    // The kernel stamps the directories that it changes when it replays fast commits with the time of that.
    let ignored: &[&str] = match kind == "kernel" && name.contains("kernel-fast-commit") {
        true => &["mtime_s", "mtime_ns", "ctime_s", "ctime_ns"],
        false => &[],
    };
    let found = record::differences(&truth, &record::of(&*tree), ignored);
    found.iter().take(20).map(|line| format!("{name} ({kind}): {line}")).collect()
}

#[test]
fn what_cannot_be_read_is_refused_by_name() {
    let Ok(files) = fs::read_dir(folder()) else { return };
    for file in files.map(|file| file.unwrap().path()) {
        let about = match file.extension() {
            Some(extension) if extension == "json" => fs::read_to_string(&file).unwrap(),
            _ => continue,
        };
        let about: serde_json::Value = serde_json::from_str(&about).unwrap();
        let (Some("ext"), Some(refused)) = (about["format"].as_str(), about["refused"].as_str()) else {
            continue;
        };
        if !refused.is_empty() {
            let error = common::mount(&file.with_extension("img"), "").err().unwrap().message;
            // A feature without a name has its number at the end.
            let word = refused.rsplit(' ').next().unwrap();
            assert!(error.contains(word), "{}: {error} does not name {refused}", file.display());
        }
    }
}
