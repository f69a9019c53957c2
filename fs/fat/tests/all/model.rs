//! Random operations, beside a model in memory; then the checkers of others, and others' readers.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use veduta_api::{Allocate, Errno, File, Kind};

use crate::support::{Make, Memory, Rng, Tree, folder, have, mount, read_all, run, seed, text};

const fn fat(kib: u64, words: &'static str) -> Make {
    Make { kib, exfat: false, words }
}
const fn exfat(kib: u64, words: &'static str) -> Make {
    Make { kib, exfat: true, words }
}

pub(crate) const FATS: &[Make] = &[
    fat(1440, "-F 12"),
    fat(2880, "-F 12 -s 4 -f 1"),
    fat(8192, "-F 12 -s 16 -S 512"),
    fat(4096, "-F 16 -s 1"),
    fat(40 << 10, "-F 16 -s 4 -r 64"),
    fat(280 << 10, "-F 16 -s 128"),
    fat(24 << 10, "-F 16 -S 4096 -s 1"),
    fat(40 << 10, "-F 32 -s 1"),
    fat(80 << 10, "-F 32 -s 2 -n LABEL"),
    fat(300 << 10, "-F 32 -S 4096 -s 1"),
];

pub(crate) const EXFATS: &[Make] = &[
    exfat(4096, "-c 512"),
    exfat(16 << 10, "-c 4096"),
    exfat(64 << 10, "-c 65536 -L LABEL"),
    exfat(32 << 10, "-c 1024"),
];

/// A node of the model.
#[derive(Default)]
struct Model {
    /// Files by path; the content stands under a number, since an open file may lose its path.
    files: BTreeMap<String, usize>,
    dirs: Vec<String>,
    content: HashMap<usize, Vec<u8>>,
    open: Vec<(Arc<dyn File>, usize)>,
    next: usize,
}

const NAMES: &[&str] = &[
    "a",
    "B.TXT",
    "readme.md",
    "A rather long name for a file.html",
    "Größe.txt",
    "日本語のとても長い名前のファイル",
    "😀 smile",
    "x+y=z",
    "UPPER",
    "MiXeD.cAs",
    "noext.",
    ".hidden",
    "many.dots.in.name",
    "longname one.txt",
    "longname two.txt",
    "longname three.txt",
    "trailing tilde~",
    "12345678.123",
    "123456789.1234",
];

impl Model {
    fn paths(&self) -> Vec<String> {
        self.files.keys().cloned().collect()
    }
    fn new_path(&self, rng: &mut Rng) -> String {
        let dir = rng.pick(&self.dirs).cloned().unwrap_or_default();
        let name = match rng.below(3) {
            0 => format!("file {}", rng.below(40)),
            _ => rng.pick(NAMES).unwrap().trim_end_matches('.').to_string(),
        };
        if dir.is_empty() { name } else { format!("{dir}/{name}") }
    }
    fn exists(&self, path: &str) -> bool {
        self.files.contains_key(path) || self.dirs.iter().any(|dir| dir == path)
    }
    fn is_empty(&self, dir: &str) -> bool {
        let below = format!("{dir}/");
        !self.files.keys().chain(&self.dirs).any(|path| path.starts_with(&below))
    }
}

fn capitals(path: &str) -> String {
    path.chars().map(|c| if c == 'ß' { c } else { c.to_uppercase().next().unwrap() }).collect()
}

fn pattern(rng: &mut Rng, len: usize) -> Vec<u8> {
    let start = rng.next() as u8;
    (0..len).map(|at| start.wrapping_add((at / 7) as u8) | 1).collect()
}

/// One operation, done to both, with the same result.
fn step(tree: &Tree, model: &mut Model, rng: &mut Rng, largest: u64) {
    let file = rng.pick(&model.paths()).cloned();
    match rng.below(20) {
        0..4 => {
            let path = model.new_path(rng);
            match tree.create(&path) {
                Ok(open) => {
                    assert!(!model.exists(&path), "{path} was there");
                    model.next += 1;
                    model.files.insert(path, model.next);
                    model.content.insert(model.next, Vec::new());
                    if rng.below(3) == 0 {
                        model.open.push((open, model.next));
                    }
                }
                Err(Errno::EEXIST) => assert!(model.exists(&path), "{path} was not there"),
                Err(errno) => assert_eq!(errno, Errno::ENOSPC, "create {path}"),
            }
        }
        4..9 => {
            let opened = if rng.below(2) == 0 { rng.pick(&model.open).cloned() } else { None };
            let Some((open, number)) = opened.or_else(|| {
                let path = file.as_ref()?;
                Some((tree.open(path).unwrap(), model.files[path]))
            }) else {
                return;
            };
            let content = model.content.get_mut(&number).unwrap();
            let offset = match rng.below(4) {
                0 => content.len() as u64,
                1 => rng.below(largest),
                _ => rng.below(content.len() as u64 + 1),
            };
            let len = rng.below(largest / 2) as usize + 1;
            let bytes = pattern(rng, len);
            match open.write_at(&bytes, offset) {
                Ok(len) => {
                    let end = offset as usize + len;
                    if content.len() < end {
                        content.resize(end, 0);
                    }
                    content[offset as usize..end].copy_from_slice(&bytes[..len]);
                }
                Err(errno) => assert_eq!(errno, Errno::ENOSPC),
            }
        }
        9 => {
            let Some(path) = file else { return };
            let content = model.content.get_mut(&model.files[&path]).unwrap();
            let size = if rng.below(4) == 0 { 0 } else { rng.below(largest) };
            match tree.truncate(&path, size) {
                Ok(()) => content.resize(size as usize, 0),
                Err(errno) => assert_eq!(errno, Errno::ENOSPC),
            }
        }
        10 => {
            let path = model.new_path(rng);
            if path.matches('/').count() > 3 {
                return;
            }
            match tree.mkdir(&path) {
                Ok(()) => {
                    assert!(!model.exists(&path));
                    model.dirs.push(path);
                }
                Err(Errno::EEXIST) => assert!(model.exists(&path)),
                Err(errno) => assert_eq!(errno, Errno::ENOSPC),
            }
        }
        11 => {
            let Some(dir) = rng.pick(&model.dirs).cloned().filter(|dir| !dir.is_empty()) else { return };
            let expected = if model.is_empty(&dir) { Ok(()) } else { Err(Errno::ENOTEMPTY) };
            assert_eq!(tree.rmdir(&dir), expected, "rmdir {dir}");
            if expected.is_ok() {
                model.dirs.retain(|other| *other != dir);
            }
        }
        12..14 => {
            let Some(path) = file else { return };
            tree.unlink(&path).unwrap();
            model.files.remove(&path);
        }
        14..16 => {
            let Some(path) = file else { return };
            let to = model.new_path(rng);
            match tree.rename(&path, &to) {
                Ok(()) => {
                    let number = model.files.remove(&path).unwrap();
                    model.files.insert(to, number);
                }
                Err(Errno::EISDIR) => assert!(model.dirs.contains(&to)),
                Err(errno) => assert_eq!(errno, Errno::ENOSPC, "rename {path} {to}"),
            }
        }
        16 => {
            let Some(dir) = rng.pick(&model.dirs).cloned().filter(|dir| !dir.is_empty()) else { return };
            let to = model.new_path(rng);
            let below = format!("{dir}/");
            match tree.rename(&dir, &to) {
                Ok(()) => {
                    assert!(!to.starts_with(&below));
                    if to == dir {
                        return;
                    }
                    assert!(!model.files.contains_key(&to));
                    model.dirs.retain(|other| *other != to);
                    let moved = |path: &str| match path.strip_prefix(&below) {
                        Some(rest) => format!("{to}/{rest}"),
                        None if path == dir => to.clone(),
                        None => path.to_string(),
                    };
                    model.dirs.iter_mut().for_each(|path| *path = moved(path));
                    model.files = std::mem::take(&mut model.files)
                        .into_iter()
                        .map(|(path, number)| (moved(&path), number))
                        .collect();
                }
                Err(Errno::EINVAL) => assert!(to.starts_with(&below)),
                Err(Errno::ENOTDIR) => assert!(model.files.contains_key(&to)),
                Err(Errno::ENOTEMPTY) => assert!(!model.is_empty(&to)),
                Err(errno) => assert_eq!(errno, Errno::ENOSPC, "rename {dir} {to}"),
            }
        }
        17 => {
            let Some((open, number)) = rng.pick(&model.open) else { return };
            assert!(
                read_all(&**open).unwrap() == model.content[number],
                "an open file reads as it was written"
            );
            if rng.below(3) == 0 {
                open.sync(false).unwrap();
            }
            if rng.below(4) == 0 {
                let end = rng.below(largest);
                match open.allocate(Allocate::KeepSize, 0, end + 1) {
                    Ok(()) | Err(Errno::ENOSPC) => {}
                    Err(errno) => panic!("{errno}"),
                }
            }
        }
        18 => {
            if !model.open.is_empty() {
                let at = rng.below(model.open.len() as u64) as usize;
                model.open.swap_remove(at);
            }
        }
        _ => {
            let Some(path) = file else { return };
            // Another case finds the same file.
            let asked = if rng.below(2) == 0 { capitals(&path) } else { path.clone() };
            let content = &model.content[&model.files[&path]];
            assert_eq!(tree.stat(&asked).unwrap().size, content.len() as u64);
            assert!(tree.read_file(&path).unwrap() == *content, "{path} reads as it was written");
        }
    }
}

/// That a tree is what the model says, byte for byte.
fn compare(tree: &Tree, model: &Model) {
    let mut found = Vec::new();
    tree.walk_all(b"", &mut found).unwrap();
    let found: BTreeMap<String, Option<Vec<u8>>> =
        found.into_iter().map(|(path, content)| (String::from_utf8(path).unwrap(), content)).collect();
    let mut expected: BTreeMap<String, Option<&Vec<u8>>> =
        model.files.iter().map(|(path, number)| (path.clone(), Some(&model.content[number]))).collect();
    expected.extend(model.dirs.iter().filter(|dir| !dir.is_empty()).map(|dir| (dir.clone(), None)));
    assert_eq!(found.keys().collect::<Vec<_>>(), expected.keys().collect::<Vec<_>>());
    for (path, content) in &found {
        assert!(content.as_ref() == expected[path], "{path} reads as it was written");
    }
}

/// That mtools reads the same. It knows no characters outside of the basic plane.
fn compare_mtools(memory: &Memory, model: &Model, dir: &std::path::Path) {
    let (image, out) = (dir.join("m.img"), dir.join("m.out"));
    memory.save(&image);
    let _ = std::fs::remove_dir_all(&out);
    std::fs::create_dir(&out).unwrap();
    let image = image.to_str().unwrap();
    let shown = |path: &&String| path.chars().all(|c| u32::from(c) < 0x10000);
    for top in model
        .files
        .keys()
        .chain(&model.dirs)
        .filter(|path| !path.is_empty() && !path.contains('/'))
        .filter(shown)
    {
        let done = run("mcopy", &["-s", "-n", "-i", image, &format!("::/{top}"), out.to_str().unwrap()]);
        assert!(done.status.success(), "mcopy {top}: {}", text(&done));
    }
    for (path, number) in model.files.iter().filter(|(path, _)| shown(path)) {
        let content = std::fs::read(out.join(path)).unwrap_or_else(|errno| panic!("{path}: {errno}"));
        assert!(content == model.content[number], "mtools reads {path} as it was written");
    }
    for path in model.dirs.iter().filter(shown) {
        assert!(out.join(path).is_dir(), "mtools finds {path}");
    }
}

/// A run of random operations on one volume.
fn workload(make: &Make, steps: u64, seed: u64, options: &str) {
    let dir = folder();
    let Some(memory) = make.make(dir.path()) else { return };
    let mut rng = Rng(seed | 1);
    let mut model = Model { dirs: vec![String::new()], ..Model::default() };
    // A volume is filled up now and then, but not always.
    let largest = (make.kib * 1024 / 40).min(300_000);
    let mut tree = mount(&memory, options);
    let free = tree.0.statfs().unwrap().blocks_free;
    for at in 0..steps {
        step(&tree, &mut model, &mut rng, largest);
        if at % 97 == 96 {
            model.open.clear();
            tree.0.unmount().unwrap();
            drop(tree);
            let (clean, said) = make.fsck(&memory, dir.path());
            assert!(clean, "{make:?} seed {seed} after step {at}: {said}");
            tree = mount(&memory, options);
            compare(&tree, &model);
        }
    }
    model.open.clear();
    tree.0.unmount().unwrap();
    drop(tree);
    let (clean, said) = make.fsck(&memory, dir.path());
    assert!(clean, "{make:?} seed {seed} at the end: {said}");
    let tree = mount(&memory, "ro");
    compare(&tree, &model);
    if !make.exfat && have("mcopy") {
        compare_mtools(&memory, &model, dir.path());
    }
    // All of it removed, all of it is free; but the root directory may have grown.
    let tree = mount(&memory, options);
    for path in model.files.keys() {
        tree.unlink(path).unwrap();
    }
    let mut dirs = model.dirs.clone();
    dirs.sort_by_key(|dir| std::cmp::Reverse(dir.len()));
    dirs.iter().filter(|dir| !dir.is_empty()).for_each(|dir| tree.rmdir(dir).unwrap());
    let root = tree.stat("").unwrap();
    assert_eq!(root.kind, Kind::Directory);
    tree.0.unmount().unwrap();
    let left = tree.0.statfs().unwrap();
    let grown = root.size / u64::from(left.block_size);
    assert!(left.blocks_free + grown >= free, "{} of {free} are free", left.blocks_free);
    let (clean, said) = make.fsck(&memory, dir.path());
    assert!(clean, "{make:?} seed {seed}, emptied: {said}");
}

#[test]
fn random_operations_on_fat_agree_with_a_model_fsck_and_mtools() {
    let seed = seed();
    for (number, make) in (0..).zip(FATS) {
        workload(
            make,
            700,
            seed + number * 7919,
            if number % 2 == 0 { "" } else { "shortname=winnt,codepage=850" },
        );
    }
}

#[test]
fn random_operations_on_exfat_agree_with_a_model_and_fsck() {
    let seed = seed();
    for (number, make) in (0..).zip(EXFATS) {
        workload(make, 700, seed + number * 7919, "");
    }
}
