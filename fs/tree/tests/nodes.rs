//! What scripts cannot say: nodes that lost their names, references, many nodes with few descriptors, changes by others.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test says by a panic what is wrong")]

mod common;

use std::ffi::OsStr;
use std::fs;
use std::ops::ControlFlow;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::Path;
use std::sync::Arc;

use common::{PathHost, ino, me, new_node, run, times, trees};
use veduta_api::{
    Allocate, Attr, Caching, Differences, Errno, Facts, Filesystem, Ino, Kind, NewNode, OpenFlags, Perm,
    RenameFlags, Result, Seek, SetAttr, Timestamp,
};
use veduta_tree::hostdir::HostDir;
use veduta_tree::memory::{Builder, Data, Memory, Setup, Source};
use veduta_tree::path::PathAdapter;
use veduta_tree::walk::{Follow, entries, read_all, resolve, resolve_parent};

fn name(name: &str) -> &OsStr {
    OsStr::new(name)
}

fn open_descriptors() -> usize {
    fs::read_dir("/proc/self/fd").unwrap().count()
}

#[test]
fn an_unlinked_file_stays_readable_and_writable() {
    for (kind, tree, _dir) in trees() {
        run(&*tree, "write a text");
        let node = ino(&*tree, "a");
        let file = tree.open(node, OpenFlags::READ_WRITE).unwrap();
        tree.unlink(Ino::ROOT, name("a")).unwrap();
        assert_eq!(tree.lookup(Ino::ROOT, name("a")).unwrap_err(), Errno::ENOENT, "{kind}");
        assert_eq!(file.write_at(b"TE", 0), Ok(2), "{kind}");
        let mut buf = [0; 10];
        assert_eq!(file.read_at(&mut buf, 0), Ok(4), "{kind}");
        assert_eq!(&buf[..4], b"TExt", "{kind}");
        let attr = tree.getattr(node).unwrap();
        assert_eq!((attr.nlink, attr.size), (0, 4), "{kind}");
        let cut = SetAttr { size: Some(1), ..SetAttr::default() };
        assert_eq!(tree.setattr(node, &cut).unwrap().size, 1, "{kind}");
        run(&*tree, "write a other");
        assert_ne!(ino(&*tree, "a"), node, "{kind}: a new file is another node");
        assert_eq!(tree.getattr(node).unwrap().size, 1, "{kind}");
        drop(file);
        tree.forget(node, 1);
        assert_eq!(tree.getattr(node), Err(Errno::ESTALE), "{kind}");
    }
}

/// What a removed name led to is compared with the node only when somebody asks for that.
#[test]
fn a_node_whose_name_others_gave_to_another_file_is_not_that_file_when_the_name_goes() {
    for removes in [true, false] {
        let dir = tempfile::tempdir().unwrap();
        let tree = HostDir::open(dir.path()).unwrap();
        run(&tree, "write a text; write b more");
        let nodes = [ino(&tree, "a"), ino(&tree, "b")];
        fs::write(dir.path().join("other"), "not a").unwrap();
        fs::rename(dir.path().join("other"), dir.path().join("a")).unwrap();
        if removes {
            tree.unlink(Ino::ROOT, name("a")).unwrap();
        } else {
            tree.rename(Ino::ROOT, name("b"), Ino::ROOT, name("a"), RenameFlags::default()).unwrap();
        }
        assert_eq!(tree.getattr(nodes[0]), Err(Errno::ESTALE));
        assert!(matches!(tree.open(nodes[0], OpenFlags::READ), Err(Errno::ESTALE)));
        assert_eq!(tree.getattr(nodes[1]).unwrap().size, 4);
    }
}

#[test]
fn a_removed_directory_takes_no_more_entries() {
    for (kind, tree, _dir) in trees().into_iter().take(2) {
        run(&*tree, "mkdir a");
        let node = ino(&*tree, "a");
        tree.rmdir(Ino::ROOT, name("a")).unwrap();
        let made = tree.mkdir(node, name("b"), &new_node(Kind::Directory, 0o755));
        assert_eq!(made.unwrap_err(), Errno::ENOENT, "{kind}");
        assert_eq!(tree.lookup(node, name("b")).unwrap_err(), Errno::ENOENT, "{kind}");
        assert_eq!(tree.getattr(node).unwrap().nlink, 0, "{kind}");
    }
}

#[test]
fn a_node_keeps_its_number_when_a_directory_above_it_moves() {
    for (kind, tree, _dir) in trees() {
        run(&*tree, "mkdir a; mkdir a/b; write a/b/c text; mkdir d");
        let node = ino(&*tree, "a/b/c");
        assert_eq!(run(&*tree, "mv a d/e"), "ok", "{kind}");
        assert_eq!(ino(&*tree, "d/e/b/c"), node, "{kind}");
        assert_eq!(read_all(&*tree, node, 100).unwrap(), b"text", "{kind}");
        let (b, e) = (ino(&*tree, "d/e/b"), ino(&*tree, "d/e"));
        assert_eq!(tree.parent(b), Ok(e), "{kind}");
        assert_eq!(tree.parent(Ino::ROOT), Ok(Ino::ROOT), "{kind}");
    }
}

#[test]
fn a_file_without_a_name_can_get_one() {
    for (kind, tree, _dir) in trees().into_iter().take(3) {
        let (entry, file) =
            tree.tmpfile(Ino::ROOT, &new_node(Kind::File, 0o644), OpenFlags::READ_WRITE).unwrap();
        file.write_at(b"text", 0).unwrap();
        assert_eq!(tree.getattr(entry.ino).unwrap().nlink, 0, "{kind}");
        assert_eq!(run(&*tree, "ls /"), "ok", "{kind}");
        tree.link(entry.ino, Ino::ROOT, name("a")).unwrap();
        assert_eq!(run(&*tree, "cat a"), "text", "{kind}");
        run(&*tree, "rm a");
        assert_eq!(tree.link(entry.ino, Ino::ROOT, name("b")).unwrap_err(), Errno::ENOENT, "{kind}");
    }
}

#[test]
fn times_and_owners_are_set_as_asked() {
    let (uid, gid) = me();
    let (now, long_ago) = times();
    for (kind, tree, _dir) in trees().into_iter().take(3) {
        run(&*tree, "write a text; ln-s a l");
        for path in ["a", "l"] {
            let node = ino(&*tree, path);
            let before = Timestamp::now().seconds - 1;
            let changes = SetAttr {
                atime: Some(now),
                mtime: Some(long_ago),
                uid: Some(uid),
                gid: Some(gid),
                ..SetAttr::default()
            };
            let attr = tree.setattr(node, &changes).unwrap();
            assert_eq!(attr.mtime, Timestamp { seconds: -5, nanos: 123_000_000 }, "{kind} {path}");
            assert!(attr.atime.seconds >= before && attr.ctime.seconds >= before, "{kind} {path}");
            assert_eq!((attr.uid, attr.gid), (uid, gid), "{kind} {path}");
        }
    }
}

#[test]
fn set_id_bits_go_when_they_must_and_stay_when_they_may() {
    for (kind, tree, _dir) in trees().into_iter().take(2) {
        run(&*tree, "write a text");
        let node = ino(&*tree, "a");
        let change = |changes: SetAttr| tree.setattr(node, &changes).unwrap().perm.bits();
        let perm = |mode| SetAttr { perm: Some(Perm::from_mode(mode)), ..SetAttr::default() };
        let drop_set_id = SetAttr { drop_set_id: true, ..SetAttr::default() };
        change(perm(0o6755));
        assert_eq!(change(SetAttr { uid: Some(me().0), ..SetAttr::default() }), 0o6755, "{kind}");
        assert_eq!(change(drop_set_id), 0o755, "{kind}");
        change(perm(0o6745));
        assert_eq!(change(drop_set_id), 0o2745, "{kind}");
    }
}

#[test]
fn a_new_node_has_the_mode_that_was_asked_for_less_the_umask() {
    for (kind, tree, _dir) in trees().into_iter().take(2) {
        let new = NewNode { umask: 0o002, ..new_node(Kind::Directory, 0o2777) };
        assert_eq!(tree.mkdir(Ino::ROOT, name("a"), &new).unwrap().attr.perm.bits(), 0o2775, "{kind}");
        let new = NewNode { umask: 0, ..new_node(Kind::File, 0o666) };
        let (entry, _) = tree.create(Ino::ROOT, name("b"), &new, OpenFlags::READ).unwrap();
        assert_eq!(entry.attr.perm.bits(), 0o666, "{kind}");
    }
}

#[test]
fn a_file_that_its_owner_may_not_write_is_cut_through_an_open_file() {
    for (kind, tree, _dir) in trees().into_iter().take(3) {
        let new = new_node(Kind::File, 0o444);
        let (entry, file) = tree.create(Ino::ROOT, name("a"), &new, OpenFlags::READ_WRITE).unwrap();
        file.write_at(b"text", 0).unwrap();
        let cut = SetAttr { size: Some(2), ..SetAttr::default() };
        assert_eq!(tree.setattr(entry.ino, &cut).unwrap().size, 2, "{kind}");
    }
}

#[test]
fn a_listing_goes_on_where_it_was_while_others_change_the_directory() {
    for (kind, tree, _dir) in trees() {
        for number in 0..50 {
            run(&*tree, &format!("touch {number}"));
        }
        let open = tree.opendir(Ino::ROOT).unwrap();
        let list = |position: u64, limit: usize| {
            let mut seen: Vec<(String, u64)> = Vec::new();
            let mut sink = |entry: veduta_api::DirEntry<'_>| {
                if seen.len() == limit {
                    return ControlFlow::Break(());
                }
                assert!((1..1 << 62).contains(&entry.next));
                seen.push((entry.name.to_str().unwrap().to_owned(), entry.next));
                ControlFlow::Continue(())
            };
            match &open {
                Some(open) => open.read(position, &mut sink).unwrap(),
                None => tree.readdir(Ino::ROOT, position, &mut sink).unwrap(),
            }
            seen
        };
        let first = list(0, 20);
        for number in 0..50 {
            if number % 3 == 0 {
                run(&*tree, &format!("rm {number}; touch new{number}"));
            }
        }
        list(0, 5);
        let rest = list(first[19].1, 1000);
        let mut all: Vec<String> = first.into_iter().chain(rest).map(|(name, _)| name).collect();
        all.retain(|name| name.parse::<u32>().is_ok_and(|number| number % 3 != 0));
        all.sort_by_key(|name| name.parse::<u32>().unwrap());
        let kept: Vec<String> =
            (0..50).filter(|number| number % 3 != 0).map(|number| number.to_string()).collect();
        assert_eq!(all, kept, "{kind}: each that stayed, exactly once");
        assert_eq!(entries(&*tree, Ino::ROOT).unwrap().count(), 50, "{kind}");
    }
}

#[test]
fn a_reference_is_given_back_when_a_walk_ends() {
    struct Counted(Memory, std::sync::atomic::AtomicI64);
    impl Filesystem for Counted {
        fn lookup(&self, parent: Ino, name: &OsStr) -> Result<veduta_api::Entry> {
            self.0.lookup(parent, name).inspect(|_| {
                self.1.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
            })
        }
        fn forget(&self, ino: Ino, count: u64) {
            self.1.fetch_sub(count as i64, std::sync::atomic::Ordering::Relaxed);
            self.0.forget(ino, count);
        }
        fn getattr(&self, ino: Ino) -> Result<Attr> {
            self.0.getattr(ino)
        }
        fn readdir(&self, dir: Ino, position: u64, sink: &mut veduta_api::DirSink<'_>) -> Result<()> {
            self.0.readdir(dir, position, sink)
        }
        fn open(&self, ino: Ino, flags: OpenFlags) -> Result<Arc<dyn veduta_api::File>> {
            self.0.open(ino, flags)
        }
        fn readlink(&self, ino: Ino) -> Result<std::ffi::OsString> {
            self.0.readlink(ino)
        }
    }
    let memory = Memory::new(&Setup::default());
    run(&memory, "mkdir a; mkdir a/b; write a/b/c text; ln-s a/b l; ln-s loop loop");
    let tree = Counted(memory, Default::default());
    let count = || tree.1.load(std::sync::atomic::Ordering::Relaxed);
    for path in ["l/../b/c", "/a/./b//c", "a/b/nobody", "a/b/c/d", "loop/x", "/", "..", "a/../../a"] {
        let held = resolve(&tree, Path::new(path), Follow::Yes).map(|node| (node.ino() != Ino::ROOT, node));
        let wanted = held.as_ref().map_or(0, |(is_counted, _)| i64::from(*is_counted));
        assert_eq!(count(), wanted, "{path}");
        drop(held);
        assert_eq!(count(), 0, "{path}");
    }
    for path in ["a/b/new", "/new", "l/new/"] {
        let (parent, last) = resolve_parent(&tree, Path::new(path)).unwrap();
        assert_eq!((last, parent.is_dir()), (name("new"), true));
    }
    for path in ["/", ".", "a/.."] {
        assert_eq!(resolve_parent(&tree, Path::new(path)).err(), Some(Errno::EINVAL), "{path}");
    }
    assert_eq!(count(), 0);
}

#[test]
fn a_large_tree_of_the_host_system_is_read_with_few_descriptors() {
    let dir = tempfile::tempdir().unwrap();
    for outer in 0..150 {
        for inner in 0..8 {
            let path = dir.path().join(format!("{outer}/{inner}"));
            fs::create_dir_all(&path).unwrap();
            (0..18).for_each(|file| fs::write(path.join(file.to_string()), b"x").unwrap());
        }
    }
    let tree = HostDir::keeping(dir.path(), 64).unwrap();
    let before = open_descriptors();
    let (mut found, mut most, mut held) = (0, 0, Vec::new());
    let mut to_visit = vec![Ino::ROOT];
    while let Some(dir) = to_visit.pop() {
        for listed in entries(&tree, dir).unwrap() {
            let entry = tree.lookup(dir, &listed.unwrap().name).unwrap();
            found += 1;
            held.push(entry.ino);
            if entry.attr.kind == Kind::Directory {
                to_visit.push(entry.ino);
            }
        }
        most = most.max(open_descriptors());
    }
    assert_eq!(found, 150 * (1 + 8 * 19));
    // Other tests run beside this one.
    assert!(most < before + 200, "{most} descriptors, {before} before");
    for ino in &held {
        assert!(tree.getattr(*ino).is_ok());
    }
    for ino in held {
        tree.forget(ino, 1);
        assert_eq!(tree.getattr(ino).err().unwrap_or(Errno::ESTALE), Errno::ESTALE);
    }
}

#[test]
fn a_symbolic_link_that_others_put_in_the_way_leads_nowhere() {
    let (dir, outside) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    fs::create_dir_all(dir.path().join("a/b")).unwrap();
    fs::write(dir.path().join("a/b/f"), "inside").unwrap();
    fs::create_dir(outside.path().join("b")).unwrap();
    fs::write(outside.path().join("b/f"), "outside").unwrap();
    let tree = HostDir::keeping(dir.path(), 0).unwrap();
    let (a, b, f) = (ino(&tree, "a"), ino(&tree, "a/b"), ino(&tree, "a/b/f"));
    fs::rename(dir.path().join("a"), dir.path().join("moved")).unwrap();
    symlink(outside.path(), dir.path().join("a")).unwrap();
    for ino in [a, b, f] {
        assert_eq!(tree.getattr(ino), Err(Errno::ESTALE));
    }
    assert_eq!(tree.open(f, OpenFlags::READ_WRITE).err(), Some(Errno::ESTALE));
    assert_eq!(tree.unlink(b, name("f")), Err(Errno::ESTALE));
    assert_eq!(run(&tree, "lstat a").chars().next(), Some('l'));
    assert_eq!(ino(&tree, "moved/b/f"), f, "found again under its new name, it is the same node");
    assert_eq!(read_all(&tree, f, 100).unwrap(), b"inside");
    fs::remove_file(dir.path().join("moved/b/f")).unwrap();
    symlink(outside.path().join("b/f"), dir.path().join("moved/b/f")).unwrap();
    assert_eq!(tree.open(f, OpenFlags::READ).err(), Some(Errno::ESTALE));
    assert_eq!(tree.setattr(f, &SetAttr { size: Some(0), ..SetAttr::default() }), Err(Errno::ESTALE));
    assert_eq!(fs::read(outside.path().join("b/f")).unwrap(), b"outside");
}

#[test]
fn a_file_that_others_replaced_is_another_node() {
    let dir = tempfile::tempdir().unwrap();
    let tree = HostDir::open(dir.path()).unwrap();
    fs::write(dir.path().join("a"), "one").unwrap();
    let first = ino(&tree, "a");
    fs::write(dir.path().join("b"), "two").unwrap();
    fs::rename(dir.path().join("b"), dir.path().join("a")).unwrap();
    assert_eq!(tree.getattr(first), Err(Errno::ESTALE));
    let second = ino(&tree, "a");
    assert_ne!(first, second);
    assert_eq!(read_all(&tree, second, 10).unwrap(), b"two");
}

#[test]
fn files_of_the_host_system_stand_behind_its_files() {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("a"), "text").unwrap();
    let tree = HostDir::open(dir.path()).unwrap();
    let file = tree.open(ino(&tree, "a"), OpenFlags::READ).unwrap();
    let copy = fs::File::from(file.backing().unwrap().try_clone_to_owned().unwrap());
    assert_eq!(copy.metadata().unwrap().ino(), fs::metadata(dir.path().join("a")).unwrap().ino());
    assert_eq!(file.seek(Seek::Hole, 1), Ok(4));
    assert_eq!(std::io::Seek::stream_position(&mut &copy).unwrap(), 0);
    let metadata = fs::metadata(dir.path()).unwrap();
    let attr = tree.getattr(Ino::ROOT).unwrap();
    assert_eq!((attr.st_ino, attr.perm.bits()), (metadata.ino(), metadata.permissions().mode() & 0o7777));
    assert!(tree.statfs().unwrap().blocks > 0);
    assert_eq!(tree.sync(), Ok(()));
}

#[test]
fn a_tree_with_a_limit_says_so_and_keeps_it() {
    let tree = Memory::new(&Setup { limit: Some(64 << 10), ..Setup::default() });
    let (entry, file) =
        tree.create(Ino::ROOT, name("a"), &new_node(Kind::File, 0o644), OpenFlags::READ_WRITE).unwrap();
    assert_eq!(file.allocate(Allocate::Extend, 0, 32 << 10), Ok(()));
    assert_eq!(tree.statfs().unwrap().blocks_free, 8);
    assert_eq!(file.allocate(Allocate::Extend, 0, 65 << 10), Err(Errno::ENOSPC));
    assert_eq!(file.write_at(&[1; 100 << 10], 0), Ok(64 << 10));
    assert_eq!(file.write_at(&[1], 1 << 40), Err(Errno::ENOSPC));
    tree.unlink(Ino::ROOT, name("a")).unwrap();
    assert_eq!(tree.statfs().unwrap().blocks_free, 0, "it is open");
    tree.forget(entry.ino, 1);
    drop(file);
    assert_eq!(tree.statfs().unwrap().blocks_free, 16);
}

#[test]
fn an_archive_is_filled_into_a_tree_that_cannot_change() {
    struct Alphabet;
    impl Source for Alphabet {
        fn read_at(&self, buf: &mut [u8], offset: u64) -> Result<()> {
            assert!(offset + buf.len() as u64 <= 26);
            buf.iter_mut().zip(b'a' + offset as u8..).for_each(|(byte, letter)| *byte = letter);
            Ok(())
        }
    }
    let facts = Facts { caching: Caching::Immutable, ..Facts::default() };
    let mut builder = Builder::new(&Setup { facts, ..Setup::default() });
    let attr =
        Attr { mtime: Timestamp::from_seconds(77), ..Attr::new(0, Kind::File, Perm::from_mode(0o640)) };
    let dir = builder.directory(Path::new("/usr/./share"), &attr).unwrap();
    assert_eq!(builder.directory(Path::new("usr/share"), &attr), Ok(dir));
    assert_eq!(builder.directory(Path::new("usr/../etc"), &attr), Err(Errno::EINVAL));
    let own = Attr { st_ino: 4711, ..attr };
    let file = builder.add_file(dir, name("abc"), &own, Data::Source(Arc::new(Alphabet), 26)).unwrap();
    builder.add_file(dir, name("bytes"), &attr, Data::Bytes(b"text".to_vec())).unwrap();
    builder.add_symlink(Ino::ROOT, name("l"), &attr, name("usr/share/abc")).unwrap();
    builder.add_link(file, Ino::ROOT, name("hard")).unwrap();
    builder.set_xattr(file, name("user.x"), b"1").unwrap();
    assert_eq!(builder.add_file(dir, name("abc"), &attr, Data::Bytes(vec![])), Err(Errno::EEXIST));
    assert_eq!(builder.add_file(dir, name(".."), &attr, Data::Bytes(vec![])), Err(Errno::EINVAL));
    assert_eq!(builder.add_file(dir, name("a/b"), &attr, Data::Bytes(vec![])), Err(Errno::EINVAL));
    assert_eq!(builder.directory(Path::new("usr/share/abc/x"), &attr), Err(Errno::ENOTDIR));
    let tree = builder.finish();
    assert_eq!(run(&tree, "cat l"), "abcdefghijklmnopqrstuvwxyz");
    assert_eq!(run(&tree, "cat hard; getx hard user.x"), "1");
    assert_eq!(run(&tree, "stat hard"), "-0640 2 26");
    let attr = tree.getattr(file).unwrap();
    assert_eq!((attr.st_ino, attr.mtime.seconds, attr.blocks), (4711, 77, 1));
    for change in
        ["touch new", "rm hard", "write hard x", "truncate hard 1", "mv hard h", "setx hard user.y 1"]
    {
        assert_eq!(run(&tree, change), "EROFS", "{change}");
    }
    assert_eq!(run(&tree, "ls /"), "hard l usr");
    assert_eq!(
        tree.rename(Ino::ROOT, name("l"), Ino::ROOT, name("m"), RenameFlags::default()),
        Err(Errno::EROFS)
    );
}

#[test]
fn a_subtree_of_paths_moves_with_its_numbers() {
    let dir = tempfile::tempdir().unwrap();
    let tree = PathAdapter::new(PathHost(dir.path().to_owned()));
    run(&tree, "mkdir a; mkdir a/b; write a/b/c one; mkdir x; mkdir x/b; write x/b/c two");
    let (one, two) = (ino(&tree, "a/b/c"), ino(&tree, "x/b/c"));
    assert_eq!(run(&tree, "mv-x a/b x"), "ok");
    assert_eq!(read_all(&tree, one, 10).unwrap(), b"one");
    assert_eq!(read_all(&tree, two, 10).unwrap(), b"two");
    assert_eq!(fs::read(dir.path().join("a/b/b/c")).unwrap(), b"two");
    assert_eq!(ino(&tree, "a/b/b/c"), two);
}

struct Nothing;

impl Differences for Nothing {
    fn object(&self, _: u64, _: u64) {
        panic!("a directory of the host is what it is");
    }
    fn name(&self, _: &OsStr) {
        panic!("a directory of the host is what it is");
    }
    fn all(&self) {
        panic!("a directory of the host is what it is");
    }
}

#[test]
fn a_directory_of_the_host_says_which_it_is() {
    let dir = tempfile::tempdir().unwrap();
    let real = dir.path().canonicalize().unwrap().join("real");
    fs::create_dir(&real).unwrap();
    symlink(&real, dir.path().join("link")).unwrap();
    let nothing: Arc<dyn Differences> = Arc::new(Nothing);
    let tree = HostDir::open(&dir.path().join("link")).unwrap();
    assert_eq!(tree.shows(Arc::downgrade(&nothing)), Some(real.clone()));
    let moved = real.with_file_name("moved");
    fs::rename(&real, &moved).unwrap();
    assert_eq!(tree.shows(Arc::downgrade(&nothing)), Some(moved.clone()));
    fs::remove_dir(&moved).unwrap();
    assert_eq!(tree.shows(Arc::downgrade(&nothing)), None, "it has no path any more");
}
