//! Random operations, compared with a model in memory; then the disk is looked at by e2fsck and debugfs, and mounted again.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::path::Path;
use std::sync::Arc;

use veduta_api::{Allocate, Errno, File, Kind, Perm, RenameFlags, SetAttr, SetTime, Timestamp, XattrMode};

use crate::support::{
    Make, Memory, Rng, Tree, assert_clean, folder, mount, read_all, rounds, run, seed, text,
};

#[derive(Clone, Debug, PartialEq)]
struct Node {
    kind: Kind,
    content: Vec<u8>,
    mode: u32,
    owner: (u32, u32),
    mtime: Option<Timestamp>,
    xattrs: BTreeMap<String, Vec<u8>>,
}

#[derive(Default)]
struct Model {
    nodes: Vec<Node>,
    /// By path, without directories' content.
    names: BTreeMap<String, usize>,
    full: bool,
    /// Files that stay open for a while, so that what was written to them waits.
    open: Vec<Arc<dyn File>>,
}

impl Model {
    fn keep_open(&mut self, file: Arc<dyn File>, rng: &mut Rng) {
        if rng.below(2) == 0 {
            self.open.push(file);
        }
        if self.open.len() > 8 {
            self.open.swap_remove(rng.below(8) as usize);
        }
    }

    fn children(&self, path: &str) -> impl Iterator<Item = &String> {
        let prefix = format!("{path}/");
        self.names
            .range(prefix.clone()..)
            .map(|(name, _)| name)
            .take_while(move |name| name.starts_with(&prefix))
    }
    fn kind(&self, path: &str) -> Option<Kind> {
        self.names.get(path).map(|node| self.nodes[*node].kind)
    }
    fn dirs(&self) -> Vec<String> {
        let dirs = self.names.keys().filter(|path| self.kind(path) == Some(Kind::Directory)).cloned();
        dirs.chain([String::new()]).collect()
    }
    fn files(&self) -> Vec<String> {
        self.names.keys().filter(|path| self.kind(path) == Some(Kind::File)).cloned().collect()
    }
    fn add(&mut self, path: &str, kind: Kind, content: Vec<u8>) {
        let mode = if kind == Kind::Symlink { 0o777 } else { 0o755 };
        let node = Node { kind, content, mode, owner: (1000, 100), mtime: None, xattrs: BTreeMap::new() };
        self.nodes.push(node);
        self.names.insert(path.to_string(), self.nodes.len() - 1);
    }
    fn links(&self, node: usize) -> usize {
        self.names.values().filter(|other| **other == node).count()
    }
}

fn join(dir: &str, name: &str) -> String {
    if dir.is_empty() { name.to_string() } else { format!("{dir}/{name}") }
}

fn name(rng: &mut Rng) -> String {
    let number = rng.below(400);
    match rng.below(4) {
        0 => format!("{number}"),
        1 => format!("a rather long name, so that blocks of directories fill up soon: {number:0100}"),
        _ => format!("file number {number}"),
    }
}

fn bytes(rng: &mut Rng, len: u64) -> Vec<u8> {
    let first = rng.next();
    (0..len).map(|at| (first.wrapping_add(at / 7) ^ at) as u8).collect()
}

/// Whether the disk was too full; other answers than the wanted one end the test.
fn full<T>(model: &mut Model, done: veduta_api::Result<T>, what: &str) -> Option<T> {
    match done {
        Ok(done) => Some(done),
        Err(Errno::ENOSPC) => {
            model.full = true;
            None
        }
        Err(errno) => panic!("{what}: {errno}"),
    }
}

#[allow(clippy::too_many_lines, reason = "one arm for each operation")]
fn step(tree: &Tree, model: &mut Model, rng: &mut Rng, most: u64, unit: Option<u64>, fine: bool) {
    let dirs = model.dirs();
    let files = model.files();
    let all: Vec<String> = model.names.keys().cloned().collect();
    let new = join(rng.pick(&dirs).unwrap(), &name(rng));
    let free = !model.names.contains_key(&new);
    match rng.below(30) {
        0..6 => {
            let made = tree.create(&new);
            if !free {
                assert_eq!(made.err(), Some(Errno::EEXIST), "create {new}");
                return;
            }
            let Some(file) = full(model, made, "create") else { return };
            let len = rng.below(most);
            let content = bytes(rng, len);
            let written = full(model, file.write_at(&content, 0), "write").unwrap_or(0);
            model.add(&new, Kind::File, content[..written].to_vec());
            model.keep_open(file, rng);
        }
        6..8 => match (tree.mkdir(&new), free) {
            (done, true) => {
                if full(model, done, "mkdir").is_some() {
                    model.add(&new, Kind::Directory, Vec::new());
                }
            }
            (done, false) => assert_eq!(done, Err(Errno::EEXIST)),
        },
        8 if free => {
            let len = [5, 59, 60, 61, 300, 900][rng.below(6) as usize];
            let target = "t".repeat(len);
            let done = tree.symlink(&new, &target);
            if full(model, done, "symlink").is_some() {
                model.add(&new, Kind::Symlink, target.into_bytes());
            }
        }
        9 if free => {
            let Some(old) = rng.pick(&files) else { return };
            let done = tree.link(old, &new);
            if full(model, done, "link").is_some() {
                let node = model.names[old];
                model.names.insert(new, node);
            }
        }
        10..14 => {
            let Some(path) = rng.pick(&all) else { return };
            if model.kind(path) == Some(Kind::Directory) {
                assert_eq!(tree.unlink(path), Err(Errno::EISDIR));
                let empty = model.children(path).next().is_none();
                let wanted = if empty { Ok(()) } else { Err(Errno::ENOTEMPTY) };
                assert_eq!(tree.rmdir(path), wanted, "rmdir {path}");
                if empty {
                    model.names.remove(path);
                }
            } else {
                assert_eq!(tree.rmdir(path), Err(Errno::ENOTDIR));
                // It may be open while it goes.
                let open = rng.below(4) == 0 && model.kind(path) == Some(Kind::File);
                let file = open.then(|| tree.open(path).unwrap());
                tree.unlink(path).unwrap();
                let node = model.names.remove(path).unwrap();
                if let Some(file) = file {
                    assert!(read_all(&*file).unwrap() == model.nodes[node].content);
                }
            }
        }
        14..18 => {
            let Some(path) = rng.pick(&files) else { return };
            let node = model.names[path];
            let size = model.nodes[node].content.len() as u64;
            let offset = match rng.below(3) {
                0 => size,
                1 => rng.below(size + 1),
                _ => rng.below(most * 4),
            };
            let len = rng.below(most) + 1;
            let data = bytes(rng, len);
            let file = tree.open(path).unwrap();
            let Some(len) = full(model, file.write_at(&data, offset), "write") else { return };
            let content = &mut model.nodes[node].content;
            let end = offset as usize + len;
            if content.len() < end {
                content.resize(end, 0);
            }
            content[offset as usize..end].copy_from_slice(&data[..len]);
            model.nodes[node].mtime = None;
            model.keep_open(file, rng);
        }
        18..20 => {
            let Some(path) = rng.pick(&files) else { return };
            let size = if rng.below(3) == 0 { rng.below(most * 8) } else { rng.below(most) };
            let done = tree.truncate(path, size);
            if full(model, done, "truncate").is_some() {
                let node = model.names[path];
                model.nodes[node].content.resize(size as usize, 0);
                model.nodes[node].mtime = None;
            }
        }
        20..23 => {
            let Some(old) = rng.pick(&all) else { return };
            rename(tree, model, old, &new, rng.below(4));
        }
        23 => {
            let Some(path) = rng.pick(&all) else { return };
            let node = model.names[path];
            if model.nodes[node].kind == Kind::Symlink {
                return;
            }
            let mode = rng.below(0o10000) as u32;
            let owner = (rng.below(1 << 20) as u32, rng.below(1 << 20) as u32);
            // Small inodes have 32 bits for a time.
            let seconds = rng.below(1 << if fine { 33 } else { 32 }) as i64 - (1 << 31);
            let nanos = rng.below(1_000_000_000) as u32;
            let mtime = Timestamp { seconds, nanos: if fine { nanos } else { 0 } };
            let changes = SetAttr {
                perm: Some(Perm::from_mode(mode)),
                uid: Some(owner.0),
                gid: Some(owner.1),
                mtime: Some(SetTime::To(mtime)),
                ..SetAttr::default()
            };
            tree.setattr(path, &changes).unwrap();
            let kind = model.nodes[node].kind;
            let node = &mut model.nodes[node];
            (node.mode, node.owner, node.mtime) = (mode, owner, (kind == Kind::File).then_some(mtime));
        }
        24..26 => {
            let Some(path) = rng.pick(&all) else { return };
            let node = model.names[path];
            if model.nodes[node].kind == Kind::Symlink {
                return;
            }
            let name = format!("user.{}", ["a", "longer-name", "third", "x"][rng.below(4) as usize]);
            let key = OsStr::new(&name);
            if rng.below(3) == 0 {
                let done = tree.on(path, |ino| tree.0.removexattr(ino, key));
                let had = model.nodes[node].xattrs.remove(&name).is_some();
                assert_eq!(done, if had { Ok(()) } else { Err(Errno::ENODATA) });
            } else {
                let len = [0, 3, 40, 200, 500][rng.below(5) as usize];
                let value = bytes(rng, len);
                let done = tree.on(path, |ino| tree.0.setxattr(ino, key, &value, XattrMode::Set));
                if let Some(()) = full(model, done, "setxattr") {
                    model.nodes[node].xattrs.insert(name, value);
                }
            }
        }
        26..29 => {
            let Some(path) = rng.pick(&files) else { return };
            let how = rng.below(5);
            allocate(tree, model, rng, path, most, how, unit);
        }
        _ => tree.0.sync().unwrap(),
    }
}

fn rename(tree: &Tree, model: &mut Model, old: &str, new: &str, how: u64) {
    let flags = RenameFlags { no_replace: how == 0, exchange: how == 1, whiteout: false };
    let done = tree.rename(old, new, flags);
    let below = |path: &str, dir: &str| path.starts_with(&format!("{dir}/"));
    let (from, to) = (model.names[old], model.names.get(new).copied());
    let is_dir = |node: usize| model.nodes[node].kind == Kind::Directory;
    let wanted = match to {
        _ if below(new, old) && is_dir(from) => Err(Errno::EINVAL),
        Some(_) if flags.no_replace => Err(Errno::EEXIST),
        None if flags.exchange => Err(Errno::ENOENT),
        Some(to) if to == from => Ok(()),
        Some(to) if flags.exchange => {
            if below(old, new) && is_dir(to) {
                Err(Errno::EINVAL)
            } else {
                Ok(())
            }
        }
        Some(to) => match (is_dir(from), is_dir(to)) {
            (true, false) => Err(Errno::ENOTDIR),
            (false, true) => Err(Errno::EISDIR),
            (true, true) if model.children(new).next().is_some() => Err(Errno::ENOTEMPTY),
            _ => Ok(()),
        },
        None => Ok(()),
    };
    if done == Err(Errno::ENOSPC) {
        model.full = true;
        return;
    }
    assert_eq!(done, wanted, "rename {old} {new} {flags:?}");
    if wanted.is_err() || to == Some(from) {
        return;
    }
    let take = |model: &mut Model, path: &str| {
        let inside: Vec<String> = model.children(path).cloned().collect();
        let mut taken: Vec<(String, usize)> = inside
            .iter()
            .map(|name| (name[path.len()..].to_string(), model.names.remove(name).unwrap()))
            .collect();
        taken.extend(model.names.remove(path).map(|node| (String::new(), node)));
        taken
    };
    let other = take(model, new);
    let moved = take(model, old);
    model.names.extend(moved.into_iter().map(|(rest, node)| (format!("{new}{rest}"), node)));
    if flags.exchange {
        model.names.extend(other.into_iter().map(|(rest, node)| (format!("{old}{rest}"), node)));
    }
}

fn allocate(
    tree: &Tree,
    model: &mut Model,
    rng: &mut Rng,
    path: &str,
    most: u64,
    how: u64,
    unit: Option<u64>,
) {
    let node = model.names[path];
    let size = model.nodes[node].content.len() as u64;
    let (offset, len) = (rng.below(most * 2), rng.below(most) + 1);
    let keep_size = rng.below(2) == 0;
    let file = tree.open(path).unwrap();
    let how = match how {
        0 => Allocate::PunchHole,
        1 => Allocate::ZeroRange { keep_size },
        2 => Allocate::Extend,
        3 => Allocate::KeepSize,
        _ => {
            let block = unit.unwrap_or(4096);
            let (offset, len) = (offset / block * block, len.div_ceil(block) * block);
            let inserts = keep_size;
            let how = if inserts { Allocate::Insert } else { Allocate::Collapse };
            let done = file.allocate(how, offset, len);
            if unit.is_none() {
                assert_eq!(done, Err(Errno::EOPNOTSUPP));
            } else if offset >= size || (!inserts && offset + len >= size) {
                assert_eq!(done, Err(Errno::EINVAL));
            } else if full(model, done, "move").is_some() {
                let content = &mut model.nodes[node].content;
                let (offset, len) = (offset as usize, len as usize);
                if inserts {
                    content.splice(offset..offset, vec![0; len]);
                } else {
                    content.drain(offset..offset + len);
                }
            }
            model.nodes[node].mtime = None;
            return;
        }
    };
    let done = file.allocate(how, offset, len);
    if unit.is_none() && how != Allocate::PunchHole {
        assert_eq!(done, Err(Errno::EOPNOTSUPP));
        return;
    }
    model.nodes[node].mtime = None;
    let failed = full(model, done, "fallocate").is_none();
    let content = &mut model.nodes[node].content;
    let end = (offset + len) as usize;
    if failed {
        // Part of it may have been done: what is there now counts, if it is zeros.
        let now = read_all(&*file).unwrap();
        assert!(now.len() <= content.len().max(end));
        *content = now;
        return;
    }
    let grows = matches!(how, Allocate::Extend | Allocate::ZeroRange { keep_size: false });
    if grows && content.len() < end {
        content.resize(end, 0);
    }
    if matches!(how, Allocate::PunchHole | Allocate::ZeroRange { .. }) {
        let end = end.min(content.len());
        let start = (offset as usize).min(end);
        content[start..end].fill(0);
    }
}

/// The tree is the model.
fn compare(tree: &Tree, model: &Model) {
    let mut found = BTreeMap::new();
    collect(tree, "", &mut found);
    let wanted: Vec<&String> = model.names.keys().collect();
    assert_eq!(found.keys().collect::<Vec<_>>(), wanted);
    for (path, node) in &model.names {
        let (links, node) = (model.links(*node), &model.nodes[*node]);
        let attr = tree.stat(path).unwrap();
        assert_eq!((attr.kind, found[path]), (node.kind, node.kind), "{path}");
        assert_eq!((attr.perm.bits(), attr.uid, attr.gid), (node.mode, node.owner.0, node.owner.1), "{path}");
        match node.kind {
            Kind::File => {
                assert_eq!(attr.nlink as usize, links, "{path}");
                assert!(tree.read_file(path).unwrap() == node.content, "the content of {path}");
                if let Some(mtime) = node.mtime {
                    assert_eq!(attr.mtime, mtime, "{path}");
                }
            }
            Kind::Symlink => {
                let target = tree.on(path, |ino| tree.0.readlink(ino)).unwrap();
                assert_eq!(target.as_encoded_bytes(), node.content);
            }
            _ => {
                let prefix = format!("{path}/");
                let dirs = model.children(path).filter(|inner| {
                    !inner[prefix.len()..].contains('/') && model.kind(inner) == Some(Kind::Directory)
                });
                assert_eq!(attr.nlink as usize, 2 + dirs.count(), "{path}");
            }
        }
        let names = tree.on(path, |ino| tree.0.listxattr(ino)).unwrap();
        let mut names: Vec<String> = names.into_iter().map(|name| name.into_string().unwrap()).collect();
        names.sort();
        assert_eq!(names, node.xattrs.keys().cloned().collect::<Vec<_>>(), "{path}");
        for (name, value) in &node.xattrs {
            let found = tree.on(path, |ino| tree.0.getxattr(ino, OsStr::new(name))).unwrap();
            assert!(found == *value, "{name} of {path}");
        }
    }
}

fn collect(tree: &Tree, path: &str, found: &mut BTreeMap<String, Kind>) {
    for (name, kind) in tree.list(path).unwrap() {
        let inner = join(path, &name);
        if inner == "lost+found" {
            continue;
        }
        assert!(found.insert(inner.clone(), kind).is_none(), "{inner} is listed twice");
        if kind == Kind::Directory {
            collect(tree, &inner, found);
        }
    }
}

/// What debugfs takes out of the image is the model.
fn compare_with_debugfs(memory: &Memory, model: &Model, dir: &Path) {
    let (image, out) = (dir.join("dump.img"), dir.join("dump"));
    memory.save(&image);
    std::fs::create_dir(&out).unwrap();
    let command = format!("rdump / {}", out.display());
    let done = run("debugfs", &["-R", &command, image.to_str().unwrap()]);
    assert!(done.status.success(), "{}", text(&done));
    for (path, node) in &model.names {
        let node = &model.nodes[*node];
        if node.kind == Kind::File {
            let content = std::fs::read(out.join(path)).unwrap_or_else(|error| panic!("{path}: {error}"));
            assert!(content == node.content, "debugfs has other content of {path}");
        }
    }
    let _ = run("chmod", &["-R", "u+rwx", out.to_str().unwrap()]);
    std::fs::remove_dir_all(&out).unwrap();
}

fn exercise(make: &Make, steps: u64, seed: u64) {
    println!("{make:?} seed {seed}");
    let dir = folder();
    let memory = make.make(dir.path());
    // What parts of a file that move are counted in; none moves in files with block lists.
    let lists = ["ext2", "ext3", "^extent"].iter().any(|word| make.words.contains(word));
    let words: Vec<&str> = make.words.split_whitespace().collect();
    let after = |word| words.iter().position(|found| *found == word).map(|at| words[at + 1].parse().unwrap());
    let unit = if lists { None } else { after("-C").or(after("-b")) };
    let fine = !make.words.contains("-I 128");
    let mut model = Model::default();
    let mut rng = Rng(seed | 1);
    for _ in 0..2 {
        let tree = mount(&memory, if make.words.contains("large_dir") { "discard" } else { "" });
        for at in 0..steps {
            step(&tree, &mut model, &mut rng, (make.kib * 1024 / 96).min(300_000), unit, fine);
            if at % 200 == 199 {
                compare(&tree, &model);
            }
        }
        compare(&tree, &model);
        model.open.clear();
        tree.0.unmount().unwrap();
        drop(tree);
        assert_clean(&memory, dir.path());
        compare(&mount(&memory, "ro"), &model);
    }
    compare_with_debugfs(&memory, &model, dir.path());
}

fn all(makes: &[(u64, &'static str)]) {
    let seed = seed();
    for (number, (kib, words)) in (1..).zip(makes) {
        for round in 0..rounds(1) {
            exercise(&Make { kib: *kib, words }, 400, seed.wrapping_mul(31) + number * 1009 + round * 2);
        }
    }
}

#[test]
fn ext2_is_the_model() {
    all(&[
        (8192, "-t ext2 -b 1024"),
        (16384, "-t ext2 -b 4096"),
        (8192, "-t ext2 -b 1024 -O ^filetype,^dir_index -I 128"),
    ]);
}

#[test]
fn ext3_is_the_model() {
    all(&[(12288, "-t ext3 -b 1024"), (32768, "-t ext3 -b 4096"), (24576, "-t ext3 -b 2048 -I 128")]);
}

#[test]
fn ext4_is_the_model() {
    all(&[
        (16384, "-t ext4 -b 1024"),
        (32768, "-t ext4 -b 4096"),
        (24576, "-t ext4 -b 2048 -O ^metadata_csum,uninit_bg"),
        (16384, "-t ext4 -b 1024 -O ^metadata_csum,^uninit_bg,^64bit,^flex_bg"),
        (16384, "-t ext4 -b 1024 -O metadata_csum_seed,large_dir,orphan_file -g 1024"),
        (16384, "-t ext4 -b 1024 -O meta_bg,^resize_inode -g 512"),
        (16384, "-t ext4 -b 1024 -O ^has_journal"),
        (16384, "-t ext4 -b 1024 -O ^extent,^64bit"),
        (16384, "-t ext4 -b 1024 -O sparse_super2,^resize_inode -I 512"),
    ]);
}

#[test]
fn clusters_and_inline_content_are_the_model() {
    all(&[
        (65536, "-t ext4 -b 1024 -O bigalloc -C 16384"),
        (131_072, "-t ext4 -b 4096 -O bigalloc,^metadata_csum -C 65536"),
        (16384, "-t ext4 -b 1024 -O inline_data"),
    ]);
}

#[test]
fn blocks_of_all_sizes_are_the_model() {
    all(&[
        (65536, "-t ext4 -b 16384 -J size=16"),
        (65536, "-t ext4 -b 65536 -O ^has_journal"),
        (65536, "-t ext4 -b 8192 -O ^metadata_csum -J size=8"),
    ]);
}
