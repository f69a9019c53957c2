//! Random operations on two trees that know nothing of each other, in memory and on the host system: each answer must be the
//! same, and so must everything that can be seen afterwards, through names and through nodes and files that lost theirs.
//!
//! `SEED=` and `STEPS=` choose another run.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test says by a panic what is wrong")]

mod common;

use std::collections::{BTreeMap, HashMap};
use std::ffi::OsStr;
use std::path::Path;
use std::sync::Arc;

use common::{PathHost, new_node, run};
use veduta_api::{Allocate, Errno, File, Filesystem, Ino, Kind, OpenFlags, Perm, Result, Seek, SetAttr};
use veduta_tree::hostdir::HostDir;
use veduta_tree::memory::{Memory, Setup};
use veduta_tree::path::PathAdapter;
use veduta_tree::walk::{Follow, Node, entries, read_all, resolve, resolve_parent};

struct Random(u64);

impl Random {
    fn below(&mut self, limit: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % limit
    }

    fn pick<'a>(&mut self, from: &[&'a str]) -> &'a str {
        from[self.below(from.len() as u64) as usize]
    }

    fn path(&mut self) -> String {
        let depth = 1 + self.below(3);
        (0..depth).map(|_| self.pick(&["a", "b", "c", "d"])).collect::<Vec<_>>().join("/")
    }
}

fn number(name: &str, otherwise: u64) -> u64 {
    std::env::var(name).ok().and_then(|number| number.parse().ok()).unwrap_or(otherwise)
}

/// Path, type and mode, links (of what is no directory), size, content or target, attributes, and which names are one node.
fn snapshot(tree: &dyn Filesystem, has_nodes: bool) -> BTreeMap<String, String> {
    let mut found = BTreeMap::new();
    let mut nodes: HashMap<Ino, usize> = HashMap::new();
    let mut to_visit = vec![String::new()];
    while let Some(dir) = to_visit.pop() {
        let node = resolve(tree, Path::new(&format!("/{dir}")), Follow::No).unwrap();
        let mut names: Vec<_> =
            entries(tree, node.ino()).unwrap().map(|listed| listed.unwrap().name).collect();
        names.sort();
        for name in names {
            let path = format!("{dir}/{}", name.to_str().unwrap());
            let entry = Node::new(tree, tree.lookup(node.ino(), &name).unwrap());
            let attr = entry.attr();
            assert_eq!(*attr, tree.getattr(entry.ino()).unwrap());
            let number = nodes.len();
            let number = *nodes.entry(entry.ino()).or_insert(number);
            // Only names that are there at the same time count: a number may be used again.
            let same = if has_nodes && attr.kind == Kind::File { number } else { 0 };
            let content = match attr.kind {
                Kind::File => sum(&read_all(tree, entry.ino(), 1 << 24).unwrap()).to_string(),
                Kind::Symlink => format!("{:?}", tree.readlink(entry.ino()).unwrap()),
                _ => String::new(),
            };
            let size = if attr.kind == Kind::Directory { 0 } else { attr.size };
            let mut xattrs = tree.listxattr(entry.ino()).unwrap();
            xattrs.retain(|name| name.to_str().unwrap().starts_with("user."));
            xattrs.sort();
            let values: Vec<_> =
                xattrs.iter().map(|name| tree.getxattr(entry.ino(), name).unwrap()).collect();
            found.insert(
                path.clone(),
                format!(
                    "{}{:o} {} {size} {same} {xattrs:?} {values:?} {content}",
                    attr.kind.letter(),
                    attr.perm.bits(),
                    attr.nlink
                ),
            );
            if attr.kind == Kind::Directory {
                to_visit.push(path);
            }
            if attr.kind != Kind::Directory && attr.nlink > 1 {
                // Kept until the end, so that the number of one is not given to another.
                std::mem::forget(entry);
            }
        }
    }
    found
}

/// A file that is open, with a reference to its node: it may lose its name.
struct Held {
    ino: Ino,
    file: Arc<dyn File>,
}

fn open(tree: &dyn Filesystem, path: &str) -> Result<Held> {
    let node = match resolve(tree, Path::new(path), Follow::No) {
        Ok(node) if node.attr().kind == Kind::File => node,
        Ok(_) => return Err(Errno::EINVAL),
        Err(Errno::ENOENT) => {
            let (dir, name) = resolve_parent(tree, Path::new(path))?;
            let (entry, file) =
                tree.create(dir.ino(), name, &new_node(Kind::File, 0o644), OpenFlags::READ_WRITE)?;
            return Ok(Held { ino: entry.ino, file });
        }
        Err(error) => return Err(error),
    };
    let held = Held { ino: node.ino(), file: tree.open(node.ino(), OpenFlags::READ_WRITE)? };
    std::mem::forget(node);
    Ok(held)
}

fn sum(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0, |sum, byte| sum.wrapping_mul(31).wrapping_add(u64::from(*byte)))
}

/// What can be seen of an open file, whether it has a name or not.
fn seen(tree: &dyn Filesystem, held: &Held) -> String {
    let attr = tree.getattr(held.ino).map(|attr| (attr.nlink, attr.size, attr.perm.bits()));
    let mut content = vec![0; 100_000];
    let len = held.file.read_at(&mut content, 0);
    let sum = len.map(|len| sum(&content[..len]));
    format!("{attr:?} {len:?} {sum:?}")
}

fn change_open(tree: &dyn Filesystem, held: &Held, has_holes: bool, random: &mut Random) -> String {
    let (offset, len) = (random.below(20_000), 1 + random.below(9000));
    match random.below(7) {
        0 | 1 => format!("{:?}", held.file.write_at(&vec![random.below(256) as u8; len as usize], offset)),
        2 => {
            let size = SetAttr { size: Some(offset), ..SetAttr::default() };
            format!("{:?}", tree.setattr(held.ino, &size).map(|attr| attr.size))
        }
        3 | 4 if !has_holes => String::new(),
        3 => format!("{:?}", held.file.allocate(Allocate::PunchHole, offset, len)),
        4 => {
            format!("{:?}", held.file.allocate(Allocate::ZeroRange { keep_size: len % 2 == 0 }, offset, len))
        }
        // Where data and holes are is the tree's own business, but not where the file ends.
        5 => format!("{:?}", held.file.seek(Seek::Hole, offset).is_err()),
        _ => {
            let perm = Some(Perm::from_mode(0o600 | (len % 64) as u32));
            format!(
                "{:?}",
                tree.setattr(held.ino, &SetAttr { perm, ..SetAttr::default() }).map(|attr| attr.perm)
            )
        }
    }
}

fn command(random: &mut Random) -> String {
    let (path, other) = (random.path(), random.path());
    let verb = random.pick(&[
        "mkdir", "mkdir", "touch", "write", "write", "ln", "ln-s", "rm", "rm", "rmdir", "mv", "mv", "mv",
        "mv-n", "mv-x", "truncate", "chmod", "setx", "rmx", "lstat", "ls", "cat",
    ]);
    match verb {
        "write" => format!("write {path} {}", "text ".trim().repeat(1 + random.below(30) as usize)),
        "ln" | "mv" | "mv-n" | "mv-x" => format!("{verb} {path} {other}"),
        "ln-s" => format!("ln-s {other} {path}"),
        "truncate" => format!("truncate {path} {}", random.below(9000)),
        "chmod" => format!("chmod {path} {:o}", 0o700 | random.below(64)),
        "setx" => format!("setx {path} user.{} {}", random.below(3), random.below(1000)),
        "rmx" => format!("rmx {path} user.{}", random.below(3)),
        _ => format!("{verb} {path}"),
    }
}

/// `has_nodes`: whether the second tree knows hard links to be one node, and keeps nodes that lost their names.
fn compare(one: &dyn Filesystem, other: &dyn Filesystem, has_nodes: bool, seed: u64) {
    println!("SEED={seed}");
    let mut random = Random(seed);
    let mut held: Vec<[Held; 2]> = Vec::new();
    for step in 0..number("STEPS", 4000) {
        match random.below(12) {
            0 => {
                let path = random.path();
                match [open(one, &path), open(other, &path)] {
                    [Ok(first), Ok(second)] => held.push([first, second]),
                    [first, second] => {
                        assert_eq!(first.err(), second.err(), "step {step}: open {path}");
                    }
                }
            }
            1 if !held.is_empty() => {
                let at = random.below(held.len() as u64) as usize;
                let [first, second] = held.swap_remove(at);
                drop((first.file, second.file));
                one.forget(first.ino, 1);
                other.forget(second.ino, 1);
            }
            2 | 3 if !held.is_empty() => {
                let at = random.below(held.len() as u64) as usize;
                let state = random.0;
                let answers = [(one, &held[at][0]), (other, &held[at][1])].map(|(tree, held)| {
                    random.0 = state;
                    format!("{} {}", change_open(tree, held, has_nodes, &mut random), seen(tree, held))
                });
                if has_nodes {
                    assert_eq!(answers[0], answers[1], "step {step}");
                }
            }
            _ => {
                let command = command(&mut random);
                let (first, second) = (run(one, &command), run(other, &command));
                assert!(first == second, "step {step}: {command}: {first:.500} and {second:.500}");
            }
        }
        if held.len() > 12 {
            let [first, second] = held.swap_remove(0);
            drop((first.file, second.file));
            one.forget(first.ino, 1);
            other.forget(second.ino, 1);
        }
        if step % 250 == 0 {
            same(&snapshot(one, has_nodes), &snapshot(other, has_nodes), step);
        }
    }
    same(&snapshot(one, has_nodes), &snapshot(other, has_nodes), u64::MAX);
}

fn same(one: &BTreeMap<String, String>, other: &BTreeMap<String, String>, step: u64) {
    assert_eq!(one.keys().collect::<Vec<_>>(), other.keys().collect::<Vec<_>>(), "step {step}");
    for (path, what) in one {
        assert!(*what == other[path], "step {step}: {path} is\n{what}\nand\n{}", other[path]);
    }
}

#[test]
fn a_tree_in_memory_is_like_one_on_the_host_system() {
    for seed in number("SEED", 1)..number("SEED", 1) + 4 {
        let dir = tempfile::tempdir().unwrap();
        compare(&Memory::new(&Setup::default()), &HostDir::keeping(dir.path(), 8).unwrap(), true, seed);
    }
}

#[test]
fn a_tree_of_paths_is_like_one_in_memory() {
    for seed in number("SEED", 100)..number("SEED", 100) + 2 {
        let dir = tempfile::tempdir().unwrap();
        let paths = PathAdapter::new(PathHost(dir.path().to_owned()));
        compare(&Memory::new(&Setup::default()), &paths, false, seed);
    }
}

/// As above, from many threads at once: nothing is compared, but whatever happens must be an answer, and end.
#[test]
fn many_threads_at_once_get_answers() {
    let (dir, other) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let trees: [Arc<dyn Filesystem>; 3] = [
        Arc::new(Memory::new(&Setup::default())),
        Arc::new(HostDir::keeping(dir.path(), 4).unwrap()),
        Arc::new(PathAdapter::new(PathHost(other.path().to_owned()))),
    ];
    for tree in trees {
        std::thread::scope(|scope| {
            for seed in 1..5 {
                let tree = &*tree;
                scope.spawn(move || {
                    let mut random = Random(seed);
                    for _ in 0..1500 {
                        run(tree, &command(&mut random));
                    }
                });
            }
        });
        let root = tree.getattr(Ino::ROOT).unwrap();
        assert_eq!(root.kind, Kind::Directory);
        assert!(tree.lookup(Ino::ROOT, OsStr::new("nobody")).is_err());
    }
}
