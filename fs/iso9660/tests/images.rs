//! Every test image of the iso family, in each of its name trees and sessions, compared with what xorriso extracts from it.
//!
//! Needs the images of `images/make 'iso*'`, in `images/out` or where `VEDUTA_IMAGES` says. Without them it is
//! skipped, and says so. Beside NAME.iso lies a file of records for each view: truth (as mounted without options,
//! or of the later session), joliet, plain, unmapped, first (the first session).

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

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

fn text_of(name: &str, suffix: &str) -> Option<String> {
    fs::read_to_string(folder().join(format!("{name}.{suffix}"))).ok()
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
        .filter_map(|file| file.strip_suffix(".iso").map(str::to_owned))
        .filter(|name| name.starts_with("iso") && name.contains(&only))
        .collect();
    let (mut compared, mut failures) = (0, Vec::new());
    for name in &names {
        for view in ["truth", "joliet", "plain", "unmapped", "first"] {
            let Some(text) = text_of(name, &format!("{view}.jsonl")) else { continue };
            compared += 1;
            let options = options(name, view);
            let tree = common::mount(&folder().join(format!("{name}.iso")), &options);
            let mut truth = record::parse(&text);
            correct(&mut truth);
            if name == "iso-1999" && view == "truth" {
                // xorriso was told to show lower case; names of ISO 9660:1999 have both.
                truth = in_lower_case(truth);
                failures.extend(differences(name, view, &truth, &in_lower_case(record::of(&*tree))));
                continue;
            }
            failures.extend(differences(name, view, &truth, &record::of(&*tree)));
        }
    }
    eprintln!("{} images, {compared} comparisons", names.len());
    assert!(failures.is_empty(), "{} differences:\n{}", failures.len(), failures.join("\n"));
}

fn differences(name: &str, view: &str, truth: &record::Record, ours: &record::Record) -> Vec<String> {
    let found = record::differences(truth, ours, &[]);
    found.iter().take(20).map(|line| format!("{name} ({view}): {line}")).collect()
}

/// genisoimage writes times far ahead with a zone that is a day off; xorriso believes it. The sources' times are known.
fn correct(truth: &mut record::Record) {
    for (path, time) in [("/times/2038", 2_147_483_648_i64), ("/times/2099", 4_070_908_800)] {
        if let Some(seconds) = truth.get_mut(path).and_then(|entry| entry.get_mut("mtime_s")) {
            if seconds.as_i64() == Some(time + 86_400) {
                *seconds = time.into();
            }
        }
    }
}

fn in_lower_case(record: record::Record) -> record::Record {
    let lower = |(path, mut entry): (String, serde_json::Map<_, _>)| {
        entry.remove("path");
        (path.to_lowercase(), entry)
    };
    record.into_iter().map(lower).collect()
}

/// How to mount the image so that the view is seen. genisoimage leaves the first session at sector 16, and xorriso the last
/// one; NAME.sector says where the other is.
fn options(name: &str, view: &str) -> String {
    let other = || format!("sbsector={}", text_of(name, "sector").unwrap().trim());
    let is_last_elsewhere = name == "iso-sessions";
    match view {
        "joliet" => "norock".into(),
        "plain" => "norock,nojoliet".into(),
        "unmapped" => "norock,nojoliet,map=off".into(),
        "first" if !is_last_elsewhere => other(),
        "truth" if is_last_elsewhere => other(),
        _ => String::new(),
    }
}
