//! Volumes of all writers, compared with what xorriso extracts from them. Needs xorriso and genisoimage.

mod common;

use std::collections::BTreeSet;
use std::fs;
use std::path::PathBuf;

use common::{
    assert_same, assert_same_content, extract, find, have, mount, read, run, scratch,
    scratch_for_genisoimage, walk,
};

#[test]
fn rock_ridge_of_xorriso_is_what_xorriso_extracts() {
    if !have(&["xorriso"]) {
        return;
    }
    let dir = scratch();
    let dir = dir.path();
    run(dir, "xorriso -as mkisofs -quiet -R -J -o x.iso tree");
    assert_same(&*mount(&dir.join("x.iso"), ""), &extract(dir, "x.iso", ""), false);
}

#[test]
fn hard_links_of_xorriso_are_links() {
    if !have(&["xorriso"]) {
        return;
    }
    let dir = scratch();
    let dir = dir.path();
    run(dir, "xorriso -hardlinks on -outdev h.iso -map tree / -commit");
    let tree = mount(&dir.join("h.iso"), "");
    assert_same(&*tree, &extract(dir, "h.iso", "-hardlinks on"), true);
    assert_eq!(find(&*tree, "large").attr.st_ino, find(&*tree, "dir/same").attr.st_ino);
    assert_eq!(find(&*tree, "large").attr.nlink, 2);
    assert!(!common::is_root() || find(&*tree, "link").attr.uid == 7);
}

#[test]
fn rock_ridge_of_genisoimage_is_what_xorriso_extracts() {
    if !have(&["xorriso", "genisoimage"]) {
        return;
    }
    let dir = scratch_for_genisoimage();
    let dir = dir.path();
    run(dir, "genisoimage -quiet -R -J -joliet-long -o g.iso tree");
    let tree = mount(&dir.join("g.iso"), "");
    assert_same(&*tree, &extract(dir, "g.iso", ""), false);
    assert_eq!(find(&*tree, "large").attr.st_ino, find(&*tree, "dir/same").attr.st_ino);
}

#[test]
fn device_numbers_of_both_writers_are_those_of_the_source() {
    if !have(&["xorriso", "genisoimage"]) || !common::is_root() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    fs::create_dir(dir.join("tree")).unwrap();
    common::make_devices(&dir.join("tree"));
    run(dir, "genisoimage -quiet -R -o g.iso tree");
    run(dir, "xorriso -as mkisofs -quiet -R -o x.iso tree");
    for image in ["g.iso", "x.iso"] {
        assert_same(&*mount(&dir.join(image), ""), &dir.join("tree"), true);
    }
}

#[test]
fn a_relocated_directory_is_in_its_true_place() {
    if !have(&["xorriso", "genisoimage"]) {
        return;
    }
    let dir = scratch_for_genisoimage();
    let dir = dir.path();
    run(dir, "genisoimage -quiet -R -o g.iso tree");
    let tree = mount(&dir.join("g.iso"), "");
    assert_eq!(read(&*tree, "1/2/3/4/5/6/7/8/9/10/11/bottom"), b"deep");
    let without = walk(&*mount(&dir.join("g.iso"), "norock"));
    assert!(
        without.keys().any(|path| path.starts_with("rr_moved") && path.ends_with("bottom")),
        "{without:?}"
    );
}

#[test]
fn a_grown_image_shows_its_last_session_and_by_number_any() {
    if !have(&["xorriso"]) {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    for number in 1..=3 {
        fs::write(dir.join("file"), format!("session {number}")).unwrap();
        run(dir, &format!("xorriso -dev ms.iso -update {0} /file -volid S{number} -commit", "file"));
    }
    let path = dir.join("ms.iso");
    assert_eq!(read(&*mount(&path, ""), "file"), b"session 3");
    for number in 1..=3 {
        let text = format!("session {number}");
        assert_eq!(read(&*mount(&path, &format!("session={number}")), "file"), text.as_bytes());
    }
    // The sector of session 2 as xorriso tells it.
    let toc = run(dir, "xorriso -indev ms.iso -toc");
    let line = toc.lines().find(|line| line.starts_with("ISO session  :   2 ,")).unwrap();
    let sector = line.split(',').nth(1).unwrap().trim();
    assert_eq!(read(&*mount(&path, &format!("sbsector={sector}")), "file"), b"session 2");
    let error = common::try_mount(common::file_disk(&path), "session=4").err().unwrap();
    assert!(error.message.contains("3 sessions"), "{}", error.message);
}

#[test]
fn joliet_is_what_xorriso_extracts_of_it() {
    if !have(&["xorriso", "genisoimage"]) {
        return;
    }
    let dir = scratch_for_genisoimage();
    let dir = dir.path();
    run(dir, "genisoimage -quiet -input-charset utf-8 -J -joliet-long -R -o j.iso tree");
    let tree = mount(&dir.join("j.iso"), "norock");
    assert_same_content(&*tree, &extract(dir, "j.iso", "-read_fs norock"));
    assert_eq!(read(&*tree, "Grüße-日本語.txt"), "ü".as_bytes());
    assert_eq!(find(&*tree, "large").attr.mode(), 0o100_555);
}

#[test]
fn plain_names_are_those_that_isoinfo_lists() {
    if !have(&["genisoimage", "isoinfo"]) {
        return;
    }
    let dir = scratch_for_genisoimage();
    let dir = dir.path();
    run(dir, "genisoimage -quiet -D -o p.iso tree");
    let text = run(dir, "isoinfo -i p.iso -f");
    let theirs: BTreeSet<_> = text.lines().map(|line| PathBuf::from(line.trim_start_matches('/'))).collect();
    let ours: BTreeSet<_> = walk(&*mount(&dir.join("p.iso"), "map=off")).into_keys().collect();
    assert_eq!(ours, theirs);
    let tree = mount(&dir.join("p.iso"), "");
    assert_eq!(read(&*tree, "upper.txt"), b"upper");
    let relaxed = mount(&dir.join("p.iso"), "check=relaxed");
    assert_eq!(read(&*relaxed, "Upper.TXT"), b"upper");
    assert!(relaxed.facts().case_insensitive);
}

#[test]
fn names_of_iso_9660_1999_are_kept() {
    if !have(&["genisoimage"]) {
        return;
    }
    let dir = scratch_for_genisoimage();
    let dir = dir.path();
    run(dir, "genisoimage -quiet -iso-level 4 -D -o n.iso tree");
    let tree = mount(&dir.join("n.iso"), "");
    assert_eq!(read(&*tree, "UPPER.TXT"), b"upper");
    assert_eq!(read(&*tree, "many/file number 299"), b"299");
    let ours = walk(&*tree);
    for path in common::host_paths(&dir.join("tree")) {
        let meta = dir.join("tree").join(&path).symlink_metadata().unwrap();
        let is_short = path.file_name().unwrap().len() <= 207;
        assert!(meta.is_symlink() || !is_short || ours.contains_key(&path), "{path:?}");
    }
}
