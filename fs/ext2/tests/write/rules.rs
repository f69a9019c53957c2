//! Single rules.

use std::ffi::OsStr;

use veduta_api::{Allocate, Errno, Kind, NewNode, OpenFlags, Perm, RenameFlags, Seek, SetAttr, XattrMode};

use crate::support::{Make, NEW, Tree, assert_clean, e2fsck, folder, mount, read_all, try_mount};

const EXT4: Make = Make { kib: 16384, words: "-t ext4 -b 1024" };
const EXT2: Make = Make { kib: 8192, words: "-t ext2 -b 1024" };

#[test]
fn a_mount_that_changes_nothing_writes_nothing() {
    let dir = folder();
    let memory = EXT4.make(dir.path());
    let before = memory.bytes();
    let tree = mount(&memory, "");
    tree.stat("").unwrap();
    tree.0.sync().unwrap();
    tree.0.unmount().unwrap();
    assert!(memory.bytes() == before);
}

#[test]
fn an_unlinked_file_stays_readable_and_then_gives_its_space_back() {
    for make in [EXT4, EXT2] {
        let dir = folder();
        let memory = make.make(dir.path());
        let tree = mount(&memory, "");
        let free = tree.0.statfs().unwrap();
        let file = tree.create("gone").unwrap();
        file.write_at(&[7; 100_000], 0).unwrap();
        tree.unlink("gone").unwrap();
        assert_eq!(tree.stat("gone").err(), Some(Errno::ENOENT));
        file.write_at(&[8; 10], 50).unwrap();
        assert_eq!(read_all(&*file).unwrap()[49..61], [7, 8, 8, 8, 8, 8, 8, 8, 8, 8, 8, 7]);
        assert!(tree.0.statfs().unwrap().blocks_free < free.blocks_free);
        drop(file);
        assert_eq!(tree.0.statfs().unwrap().blocks_free, free.blocks_free);
        assert_eq!(tree.0.statfs().unwrap().files_free, free.files_free);
        tree.0.unmount().unwrap();
        assert_clean(&memory, dir.path());
    }
}

#[test]
fn an_inode_that_was_given_back_is_nobodys_before_that_is_committed() {
    let dir = folder();
    let memory = EXT4.make(dir.path());
    let tree = mount(&memory, "commit=300");
    let make = |prefix: &str| -> Vec<_> {
        let number = |at| {
            let path = format!("{prefix}{at}");
            drop(tree.create(&path).unwrap());
            tree.on(&path, Ok).unwrap()
        };
        (0..10).map(number).collect()
    };
    let first = make("first");
    (0..10).filter(|at| at % 2 == 0).for_each(|at| tree.unlink(&format!("first{at}")).unwrap());
    let second = make("second");
    assert!(first.iter().all(|number| !second.contains(number)), "{first:?} {second:?}");
    tree.0.sync().unwrap();
    // Lowest first: the five that are free now, and none that is in use.
    let third = make("third");
    let free: Vec<_> = first.iter().step_by(2).copied().collect();
    assert_eq!(third[..5], free);
    assert!(third[5..].iter().all(|number| !first.contains(number) && !second.contains(number)));
    tree.0.unmount().unwrap();
    assert_clean(&memory, dir.path());
}

#[test]
fn a_file_that_is_open_and_nameless_at_a_crash_is_gone_after_it() {
    for how in ["ours", "e2fsck"] {
        let dir = folder();
        let memory = EXT4.make(dir.path());
        let tree = mount(&memory, "");
        let file = tree.create("gone").unwrap();
        file.write_at(&[7; 100_000], 0).unwrap();
        tree.unlink("gone").unwrap();
        let (_, temporary) = tree.0.tmpfile(veduta_api::Ino::ROOT, &NEW, OpenFlags::READ_WRITE).unwrap();
        temporary.write_at(b"temporary", 0).unwrap();
        tree.0.sync().unwrap();
        let crashed = crate::support::Memory::new(memory.bytes());
        if how == "ours" {
            let tree = mount(&crashed, "");
            assert!(tree.list("").unwrap().iter().all(|(name, _)| name == "lost+found"));
            tree.0.unmount().unwrap();
            assert_clean(&crashed, dir.path());
        } else {
            let (status, said) = e2fsck(&crashed, dir.path(), "-p");
            assert!(matches!(status, Some(0 | 1)), "{status:?} {said}");
        }
    }
}

#[test]
fn thousands_of_files_fit_into_a_directory() {
    for (make, count) in [
        (Make { kib: 65536, words: "-t ext4 -b 4096 -N 50000" }, long(15_000, 40_000)),
        (Make { kib: 32768, words: "-t ext4 -b 1024 -O large_dir -N 20000" }, long(6_000, 15_000)),
    ] {
        let dir = folder();
        let memory = make.make(dir.path());
        let tree = mount(&memory, "");
        tree.mkdir("many").unwrap();
        let many = tree.lookup("many").unwrap().ino;
        for number in 0..count {
            let name = format!("a file with a longer name, number {number}");
            let (entry, file) = tree.0.create(many, OsStr::new(&name), &NEW, OpenFlags::READ_WRITE).unwrap();
            drop(file);
            tree.0.forget(entry.ino, 1);
        }
        assert_eq!(tree.list("many").unwrap().len(), count);
        tree.0.sync().unwrap();
        assert_clean_after_replay(&memory, dir.path());
        for number in (0..count).filter(|number| number % 3 > 0) {
            let name = format!("a file with a longer name, number {number}");
            tree.0.unlink(many, OsStr::new(&name)).unwrap();
        }
        assert_eq!(tree.list("many").unwrap().len(), count.div_ceil(3));
        tree.0.unmount().unwrap();
        assert_clean(&memory, dir.path());
    }
}

/// A number, and one that `LONG=1` asks for.
fn long(short: usize, long: usize) -> usize {
    if std::env::var_os("LONG").is_some() { long } else { short }
}

fn assert_clean_after_replay(memory: &crate::support::Memory, dir: &std::path::Path) {
    let crashed = crate::support::Memory::new(memory.bytes());
    mount(&crashed, "").0.unmount().unwrap();
    assert_clean(&crashed, dir);
}

#[test]
fn a_file_may_have_thousands_of_extents() {
    for make in [
        Make { kib: 262_144, words: "-t ext4 -b 1024 -N 64" },
        Make { kib: 262_144, words: "-t ext3 -b 1024 -N 64" },
    ] {
        let dir = folder();
        let memory = make.make(dir.path());
        let tree = mount(&memory, "");
        let file = tree.create("holes").unwrap();
        let count = long(12_000, 100_000) as u64;
        for number in 0..count {
            file.write_at(&number.to_le_bytes(), number * 2048).unwrap();
        }
        let mut found = [0; 8];
        for number in (0..count).step_by(97) {
            file.read_at(&mut found, number * 2048).unwrap();
            assert_eq!(u64::from_le_bytes(found), number);
        }
        assert_eq!(file.seek(Seek::Hole, 2048), Ok(3072));
        assert_eq!(file.seek(Seek::Data, 3072), Ok(4096));
        tree.0.sync().unwrap();
        assert_clean_after_replay(&memory, dir.path());
        file.allocate(Allocate::PunchHole, 10_000, count * 500).unwrap();
        tree.truncate("holes", count * 1500).unwrap();
        drop(file);
        tree.0.sync().unwrap();
        assert_clean_after_replay(&memory, dir.path());
        tree.unlink("holes").unwrap();
        tree.0.unmount().unwrap();
        assert_clean(&memory, dir.path());
    }
}

#[test]
fn a_full_disk_says_so_and_stays_whole() {
    for make in [EXT4, EXT2, Make { kib: 8192, words: "-t ext3 -b 1024 -J size=1" }] {
        let dir = folder();
        let memory = make.make(dir.path());
        let tree = mount(&memory, "");
        for round in 0..2 {
            let mut made = 0;
            let end = loop {
                let file = match tree.create(&format!("file {made}")) {
                    Ok(file) => file,
                    Err(errno) => break errno,
                };
                made += 1;
                match file.write_at(&vec![made as u8; 50_000], 0) {
                    Ok(50_000) => {}
                    Ok(_) => {}
                    Err(errno) => break errno,
                }
            };
            assert_eq!(end, Errno::ENOSPC);
            assert!(made > 50, "round {round}: {made}");
            for number in 0..made {
                tree.unlink(&format!("file {number}")).unwrap();
            }
        }
        tree.0.unmount().unwrap();
        assert_clean(&memory, dir.path());
    }
}

#[test]
fn acls_are_inherited_and_follow_the_mode() {
    let dir = folder();
    let memory = EXT4.make(dir.path());
    let tree = mount(&memory, "");
    tree.mkdir("dir").unwrap();
    let (access, default) = (OsStr::new("system.posix_acl_access"), OsStr::new("system.posix_acl_default"));
    let entry = |tag: u16, permissions: u16, id: u32| {
        [&tag.to_le_bytes()[..], &permissions.to_le_bytes(), &id.to_le_bytes()].concat()
    };
    let nobody = u32::MAX;
    let list = [
        2u32.to_le_bytes().to_vec(),
        entry(1, 7, nobody),
        entry(2, 6, 1234),
        entry(4, 5, nobody),
        entry(0x10, 7, nobody),
        entry(0x20, 5, nobody),
    ]
    .concat();
    let set = |path: &str, name: &OsStr, value: &[u8]| {
        tree.on(path, |ino| tree.0.setxattr(ino, name, value, XattrMode::Set))
    };
    set("dir", default, &list).unwrap();
    assert_eq!(set("dir", access, b"nonsense"), Err(Errno::EINVAL));
    drop(tree.create("dir/file").unwrap());
    let get = |path: &str, name: &OsStr| tree.on(path, |ino| tree.0.getxattr(ino, name));
    // The mode of creation, 755, cuts the mask; the umask does not count.
    assert_eq!(tree.stat("dir/file").unwrap().perm.bits(), 0o755);
    assert_eq!(get("dir/file", access).unwrap()[4 + 3 * 8..][2], 5);
    assert_eq!(set("dir/file", default, &list), Err(Errno::EACCES));
    let changes = SetAttr { perm: Some(Perm::from_mode(0o640)), ..SetAttr::default() };
    tree.setattr("dir/file", &changes).unwrap();
    assert_eq!(get("dir/file", access).unwrap()[4 + 3 * 8..][2], 4);
    set("dir/file", access, &list).unwrap();
    assert_eq!(tree.stat("dir/file").unwrap().perm.bits(), 0o775);
    tree.mkdir("dir/inner").unwrap();
    assert_eq!(get("dir/inner", default).unwrap(), list);
    tree.on("dir/file", |ino| tree.0.removexattr(ino, access)).unwrap();
    assert_eq!(get("dir/file", access), Err(Errno::ENODATA));
    tree.0.unmount().unwrap();
    assert_clean(&memory, dir.path());
}

#[test]
fn device_nodes_keep_their_numbers() {
    let dir = folder();
    let memory = EXT4.make(dir.path());
    let tree = mount(&memory, "");
    let numbers = [(8, 1), (259, 70_000), (0, 0)];
    for (at, (major, minor)) in numbers.into_iter().enumerate() {
        let rdev = veduta_api::Device { major, minor };
        let new = NewNode { kind: Kind::BlockDevice, rdev, ..NEW };
        tree.at(&format!("device {at}"), |dir, name| tree.0.mknod(dir, name, &new)).unwrap();
    }
    let look = |tree: &Tree| {
        for (at, (major, minor)) in numbers.into_iter().enumerate() {
            assert_eq!(tree.stat(&format!("device {at}")).unwrap().rdev, veduta_api::Device { major, minor });
        }
    };
    look(&tree);
    tree.0.unmount().unwrap();
    look(&mount(&memory, "ro"));
    assert_clean(&memory, dir.path());
}

#[test]
fn what_cannot_be_written_is_refused_by_name_and_stays_readable() {
    for (words, feature) in [
        ("-t ext4 -O casefold", "casefold"),
        ("-t ext4 -O quota", "quota"),
        ("-t ext4 -O encrypt", "encrypt"),
        ("-t ext4 -O mmp", "mmp"),
    ] {
        let dir = folder();
        let memory = Make { kib: 16384, words }.make(dir.path());
        let error = try_mount(&memory, "").err().unwrap();
        assert!(error.message.contains(feature), "{}", error.message);
        mount(&memory, "ro").list("").unwrap();
    }
}

#[test]
fn a_volume_with_errors_is_mounted_read_only() {
    let dir = folder();
    let memory = EXT2.make(dir.path());
    let mut bytes = memory.bytes();
    bytes[1024 + 0x3a] = 2;
    let memory = crate::support::Memory::new(bytes);
    let tree = mount(&memory, "");
    assert_eq!(tree.0.facts().caching, veduta_api::Caching::Immutable);
    assert_eq!(tree.create("file").err(), Some(Errno::EROFS));
    tree.0.unmount().unwrap();
}

#[test]
fn damage_that_a_change_meets_ends_all_changes() {
    let dir = folder();
    let memory = EXT4.make(dir.path());
    let tree = mount(&memory, "");
    tree.mkdir("dir").unwrap();
    tree.0.unmount().unwrap();
    drop(tree);
    // The bitmaps of all groups get a wrong bit each.
    let mut bytes = memory.bytes();
    for group in 0..2 {
        let descriptor = 2048 + group * 64;
        let bitmap = u32::from_le_bytes(bytes[descriptor..descriptor + 4].try_into().unwrap()) as usize;
        bytes[bitmap * 1024 + 900] ^= 1;
    }
    let memory = crate::support::Memory::new(bytes);
    let tree = mount(&memory, "");
    let file = tree.create("dir/file").unwrap();
    file.write_at(&[1; 100], 0).unwrap();
    assert_eq!(file.sync(false), Err(Errno::EUCLEAN));
    assert_eq!(tree.stat("dir/file").unwrap().size, 0);
    assert_eq!(tree.create("dir/other").err(), Some(Errno::EROFS));
    assert!(tree.stat("dir/file").is_ok());
    drop(file);
    let _ = tree.0.unmount();
    // The next mount knows.
    assert_eq!(mount(&memory, "").0.facts().caching, veduta_api::Caching::Immutable);
}

#[test]
fn a_disk_that_fails_is_reported() {
    let dir = folder();
    let memory = EXT4.make(dir.path());
    let tree = mount(&memory, "");
    let file = tree.create("file").unwrap();
    file.sync(false).unwrap();
    memory.fails.store(true, std::sync::atomic::Ordering::Relaxed);
    assert_eq!(file.write_at(&[1; 200_000], 0), Err(Errno::EIO));
    file.write_at(&[1; 5000], 0).unwrap();
    assert_eq!(tree.stat("file").unwrap().size, 5000);
    tree.mkdir("dir").unwrap();
    assert_eq!(file.sync(false), Err(Errno::EIO));
    assert_eq!(tree.stat("file").unwrap().size, 0);
    assert_eq!(file.sync(false), Err(Errno::EIO));
    assert_eq!(tree.mkdir("other"), Err(Errno::EROFS));
    drop(file);
    assert_eq!(tree.0.unmount(), Err(Errno::EIO));
    memory.fails.store(false, std::sync::atomic::Ordering::Relaxed);
    let tree = mount(&memory, "");
    assert_eq!(tree.read_file("file").unwrap(), b"");
    assert_eq!(tree.stat("dir").err(), Some(Errno::ENOENT));
    tree.0.unmount().unwrap();
    assert_clean(&memory, dir.path());
}

#[test]
fn the_parent_of_a_directory_that_moved_is_the_new_one() {
    let dir = folder();
    let memory = EXT4.make(dir.path());
    let tree = mount(&memory, "");
    for path in ["a", "b", "a/moved"] {
        tree.mkdir(path).unwrap();
    }
    for number in 0..200 {
        drop(tree.create(&format!("a/moved/a name that is long enough {number}")).unwrap());
    }
    tree.rename("a/moved", "b/moved", RenameFlags::default()).unwrap();
    let b = tree.lookup("b").unwrap().ino;
    assert_eq!(tree.on("b/moved", |ino| tree.0.parent(ino)), Ok(b));
    assert_eq!((tree.stat("a").unwrap().nlink, tree.stat("b").unwrap().nlink), (2, 3));
    tree.0.unmount().unwrap();
    assert_clean(&memory, dir.path());
}

#[test]
fn inline_content_moves_out_when_it_is_changed() {
    let dir = folder();
    let source = dir.path().join("source");
    std::fs::create_dir_all(source.join("small dir/inner")).unwrap();
    for (name, len) in [("empty", 0), ("a", 10), ("b", 59), ("c", 61), ("d", 100), ("small dir/inner/e", 90)]
    {
        std::fs::write(source.join(name), vec![b'x'; len]).unwrap();
    }
    let words = format!("-t ext4 -b 1024 -O inline_data -d {}", source.display());
    let memory = Make { kib: 16384, words: Box::leak(words.into_boxed_str()) }.make(dir.path());
    let tree = mount(&memory, "");
    let inline = |path: &str| tree.stat(path).unwrap().blocks <= 1;
    assert!(inline("a") && inline("d"), "mke2fs made nothing inline");
    tree.open("a").unwrap().write_at(b"yy", 9).unwrap();
    tree.open("d").unwrap().write_at(b"yy", 5000).unwrap();
    tree.truncate("c", 20).unwrap();
    tree.truncate("c", 70).unwrap();
    tree.open("b").unwrap().allocate(Allocate::PunchHole, 1, 3).unwrap();
    tree.on("empty", |ino| tree.0.setxattr(ino, OsStr::new("user.x"), &[1; 30], XattrMode::Set)).unwrap();
    tree.rename("small dir/inner", "moved", RenameFlags::default()).unwrap();
    tree.mkdir("small dir/new").unwrap();
    drop(tree.create("moved/f").unwrap());
    let look = |tree: &Tree| {
        assert_eq!(tree.read_file("a").unwrap(), b"xxxxxxxxxyy");
        let d = tree.read_file("d").unwrap();
        assert!(d.len() == 5002 && d[..100] == [b'x'; 100] && d[100..5000].iter().all(|byte| *byte == 0));
        assert_eq!(tree.read_file("c").unwrap(), [&[b'x'; 20][..], &[0; 50]].concat());
        assert_eq!(tree.read_file("b").unwrap()[..6], [b'x', 0, 0, 0, b'x', b'x']);
        assert_eq!(tree.read_file("moved/e").unwrap(), [b'x'; 90]);
        assert_eq!(tree.list("small dir").unwrap().len(), 1);
    };
    look(&tree);
    tree.0.unmount().unwrap();
    assert_clean(&memory, dir.path());
    let tree = mount(&memory, "");
    look(&tree);
    for path in ["a", "b", "c", "d", "empty", "moved/e", "moved/f"] {
        tree.unlink(path).unwrap();
    }
    tree.rmdir("moved").unwrap();
    tree.0.unmount().unwrap();
    assert_clean(&memory, dir.path());
}

/// Runs of blocks that a file has, as debugfs tells.
fn runs(memory: &crate::support::Memory, dir: &std::path::Path, path: &str) -> usize {
    let image = dir.join("runs.img");
    memory.save(&image);
    let command = format!("blocks {path}");
    let told = crate::support::run("debugfs", &["-R", &command, image.to_str().unwrap()]);
    let told = String::from_utf8(told.stdout).unwrap();
    let blocks: Vec<u64> = told.split_whitespace().map(|block| block.parse().unwrap()).collect();
    assert!(!blocks.is_empty(), "{path} has no blocks");
    1 + blocks.windows(2).filter(|pair| pair[0] + 1 != pair[1]).count()
}

#[test]
fn what_is_added_waits_in_memory_and_reads_as_if_it_did_not() {
    for make in [EXT4, EXT2] {
        let dir = folder();
        let memory = make.make(dir.path());
        let tree = mount(&memory, "commit=1000");
        let file = tree.create("file").unwrap();
        file.write_at(b"first ", 0).unwrap();
        file.sync(false).unwrap();
        let free = tree.0.statfs().unwrap().blocks_free;
        file.write_at(b"second", 6).unwrap();
        file.write_at(b"SEC", 6).unwrap();
        file.write_at(&[b'x'; 3000], 12).unwrap();
        let on_disk = |word: &[u8]| memory.bytes().windows(word.len()).any(|part| part == word);
        assert!(on_disk(b"first ") && !on_disk(b"SECond"));
        assert!(tree.0.statfs().unwrap().blocks_free < free);
        let attr = tree.stat("file").unwrap();
        assert_eq!(attr.size, 3012);
        assert!(attr.blocks >= 6 && attr.mtime <= attr.ctime);
        assert_eq!(tree.read_file("file").unwrap()[..13], *b"first SECondx");
        let mut part = [0; 4];
        assert_eq!(file.read_at(&mut part, 4), Ok(4));
        assert_eq!(part, *b"t SE");
        assert_eq!(file.read_at(&mut part, 3010), Ok(2));
        // Times that are set stay when the content gets its place.
        let moment = veduta_api::Timestamp { seconds: 1_000_000_000, nanos: 0 };
        let changes = SetAttr { mtime: Some(veduta_api::SetTime::To(moment)), ..SetAttr::default() };
        tree.setattr("file", &changes).unwrap();
        file.sync(false).unwrap();
        assert!(on_disk(b"SECond"));
        assert_eq!(tree.stat("file").unwrap().mtime, moment);
        file.write_at(&[b'y'; 10], 3012).unwrap();
        assert_eq!(file.seek(Seek::Hole, 0), Ok(3022));
        assert!(on_disk(b"xyyyyyyyyyy"));
        // What is cut off again needs no place, nor does what is gone.
        file.write_at(b"never to be seen", 3022).unwrap();
        tree.truncate("file", 3000).unwrap();
        file.write_at(b"never to be seen", 3000).unwrap();
        tree.unlink("file").unwrap();
        drop(file);
        tree.0.unmount().unwrap();
        assert!(!on_disk(b"never to be seen"));
        assert_clean(&memory, dir.path());
    }
}

#[test]
fn once_nobody_writes_a_file_stays_as_it_is() {
    for make in [EXT4, EXT2] {
        let dir = folder();
        let memory = make.make(dir.path());
        let tree = mount(&memory, "commit=1000");
        let file = tree.create("file").unwrap();
        let reader = tree.on("file", |ino| tree.0.open(ino, OpenFlags::READ)).unwrap();
        // It gets blocks that lead to these, too; nobody knows before how many.
        file.write_at(&[b'x'; 100_000], 0).unwrap();
        drop(file);
        let closed = tree.stat("file").unwrap();
        tree.0.sync().unwrap();
        assert_eq!(tree.stat("file").unwrap(), closed);
        drop(reader);
        assert_eq!(tree.stat("file").unwrap(), closed);
        tree.0.unmount().unwrap();
        assert_clean(&memory, dir.path());
    }
}

#[test]
fn the_clock_brings_what_waits_to_the_disk() {
    let dir = folder();
    let memory = EXT4.make(dir.path());
    let tree = mount(&memory, "commit=1");
    let file = tree.create("file").unwrap();
    file.write_at(b"in time", 0).unwrap();
    let arrived = || {
        let crashed = crate::support::Memory::new(memory.bytes());
        mount(&crashed, "ro").read_file("file").is_ok_and(|content| content == b"in time")
    };
    for _ in 0..100 {
        if arrived() {
            break;
        }
        std::thread::sleep(std::time::Duration::from_millis(100));
    }
    assert!(arrived());
    drop(file);
    tree.0.unmount().unwrap();
    assert_clean(&memory, dir.path());
}

#[test]
fn new_content_is_there_before_it_takes_the_name_of_the_old() {
    let dir = folder();
    let memory = EXT4.make(dir.path());
    let tree = mount(&memory, "commit=1000");
    tree.create("file").unwrap().write_at(b"old", 0).unwrap();
    tree.0.sync().unwrap();
    let file = tree.create("file.new").unwrap();
    file.write_at(b"new content", 0).unwrap();
    tree.rename("file.new", "file", RenameFlags::default()).unwrap();
    // Something else is committed, and the power fails.
    tree.create("other").unwrap().sync(false).unwrap();
    let crashed = crate::support::Memory::new(memory.bytes());
    let after = mount(&crashed, "");
    assert_eq!(after.read_file("file").unwrap(), b"new content");
    after.0.unmount().unwrap();
    assert_clean(&crashed, dir.path());
    drop(file);
    tree.0.unmount().unwrap();
}

#[test]
fn files_that_grow_by_turns_lie_together() {
    for make in [
        Make { kib: 65536, words: "-t ext4 -b 4096" },
        Make { kib: 65536, words: "-t ext3 -b 4096" },
        Make { kib: 65536, words: "-t ext4 -b 4096 -O bigalloc -C 16384" },
    ] {
        let dir = folder();
        let memory = make.make(dir.path());
        let tree = mount(&memory, "commit=1000");
        let names = ["one", "two", "three", "log", "large", "wide"];
        let files: Vec<_> = names.iter().map(|name| tree.create(name).unwrap()).collect();
        for number in 0..512 {
            for file in &files[..3] {
                file.write_at(&[b'z'; 4096], number * 4096).unwrap();
            }
            if number % 4 == 0 {
                files[3].write_at(&[b'l'; 1000], number / 4 * 1000).unwrap();
                files[3].sync(true).unwrap();
            }
            if number % 64 == 0 {
                for file in &files[4..] {
                    file.write_at(&vec![b'w'; 1 << 20], (number / 64) << 20).unwrap();
                }
            }
        }
        drop(files);
        tree.0.unmount().unwrap();
        assert_clean(&memory, dir.path());
        // What is kept for a file doubles with it. Block lists take blocks of their own.
        let lists = if make.words.contains("ext3") { 4 } else { 0 };
        for (name, most) in [("one", 4), ("two", 4), ("three", 4), ("log", 4), ("large", 5), ("wide", 5)] {
            let most = most + lists;
            let found = runs(&memory, dir.path(), name);
            println!("{} {name}: {found}", make.words);
            assert!(found <= most, "{} {name}: {found} runs", make.words);
        }
    }
}

#[test]
fn what_was_accepted_is_there_though_the_disk_is_full() {
    for make in [
        EXT4,
        EXT2,
        Make { kib: 8192, words: "-t ext3 -b 1024 -J size=1" },
        Make { kib: 32768, words: "-t ext4 -b 1024 -O bigalloc -C 16384" },
        Make { kib: 16384, words: "-t ext4 -b 1024 -O ^has_journal" },
    ] {
        let dir = folder();
        let memory = make.make(dir.path());
        let tree = mount(&memory, "commit=1000");
        let mut files: Vec<_> =
            (0..40).map(|number| (tree.create(&format!("file {number}")).unwrap(), 0_u64)).collect();
        // Free space in small pieces.
        let size = 1 << 20;
        for number in 0.. {
            let Ok(file) = tree.create(&format!("filler {number}")) else { break };
            let asked = tree.0.statfs().unwrap().blocks_free * 1024;
            if asked < size || file.write_at(&vec![1; 3000], 0).is_err() {
                break;
            }
        }
        for number in (0..200_000).step_by(2) {
            if tree.unlink(&format!("filler {number}")).is_err() {
                break;
            }
        }
        let mut left = files.len();
        let mut rng = crate::support::Rng(7);
        while left > 0 {
            left = files.len();
            for (file, size) in &mut files {
                let part = vec![(*size % 251) as u8; rng.below(5000) as usize + 1];
                match file.write_at(&part, *size) {
                    Ok(len) => *size += len as u64,
                    Err(errno) => {
                        assert_eq!(errno, Errno::ENOSPC);
                        left -= 1;
                    }
                }
            }
        }
        let total: u64 = files.iter().map(|(_, size)| size).sum();
        assert!(total > 500_000, "{total}");
        for (file, size) in &files {
            assert_eq!(file.sync(true), Ok(()));
            assert_eq!(read_all(&**file).unwrap().len() as u64, *size);
        }
        assert_eq!(tree.0.sync(), Ok(()));
        let sizes: Vec<u64> = files.iter().map(|(_, size)| *size).collect();
        drop(files);
        tree.0.unmount().unwrap();
        assert_clean(&memory, dir.path());
        let tree = mount(&memory, "ro");
        for (number, size) in sizes.iter().enumerate() {
            assert_eq!(tree.stat(&format!("file {number}")).unwrap().size, *size);
        }
    }
}

#[test]
fn nobody_waits_for_who_writes_another_file() {
    for make in [EXT4, EXT2] {
        let dir = folder();
        let memory = make.make(dir.path());
        let tree = mount(&memory, "commit=1000");
        let slow = tree.create("slow").unwrap();
        for name in ["read", "overwritten", "grown"] {
            tree.create(name).unwrap().write_at(&[b'r'; 150_000], 0).unwrap();
        }
        memory.stuck.lock().0 = Some(b's');
        let writer = std::thread::spawn(move || slow.write_at(&[b's'; 300_000], 0));
        // Its content is on the way to the disk, and does not arrive.
        let mut stuck = memory.stuck.lock();
        memory.changed.wait_while(&mut stuck, |stuck| stuck.1 == 0);
        drop(stuck);
        // If one of these waited, the test would not end.
        let mut part = [0; 100];
        tree.open("read").unwrap().read_at(&mut part, 100_000).unwrap();
        assert_eq!(part, [b'r'; 100]);
        assert_eq!(tree.open("overwritten").unwrap().write_at(&[b'o'; 140_000], 5).unwrap(), 140_000);
        assert_eq!(tree.open("grown").unwrap().write_at(&[b'g'; 200_000], 150_000).unwrap(), 200_000);
        assert_eq!(tree.stat("grown").unwrap().size, 350_000);
        tree.create("new").unwrap().write_at(b"small", 0).unwrap();
        assert_eq!(tree.list("").unwrap().len(), 6);
        memory.stuck.lock().0 = None;
        memory.changed.notify_all();
        assert_eq!(writer.join().unwrap(), Ok(300_000));
        tree.0.unmount().unwrap();
        assert_clean(&memory, dir.path());
    }
}

#[test]
fn threads_write_files_of_their_own() {
    for make in [
        Make { kib: 65536, words: "-t ext4 -b 4096" },
        Make { kib: 65536, words: "-t ext2 -b 4096" },
        Make { kib: 65536, words: "-t ext4 -b 1024 -O bigalloc -C 16384" },
    ] {
        let dir = folder();
        let memory = make.make(dir.path());
        let tree = mount(&memory, "commit=1");
        let content =
            |thread: u64, file: u64| vec![(thread * 16 + file) as u8 + 1; 1000 + file as usize * 40_000];
        std::thread::scope(|scope| {
            for thread in 0..4 {
                let tree = &tree;
                scope.spawn(move || {
                    tree.mkdir(&format!("{thread}")).unwrap();
                    for round in 0..4 {
                        for number in 0..8 {
                            let path = format!("{thread}/{number}");
                            if round > 0 {
                                tree.unlink(&path).unwrap();
                            }
                            let file = tree.create(&path).unwrap();
                            let all = content(thread, number);
                            for (at, part) in (0..).zip(all.chunks(7000)) {
                                file.write_at(part, at * 7000).unwrap();
                            }
                            assert!(read_all(&*file).unwrap() == all);
                            if number % 3 == 0 {
                                file.sync(true).unwrap();
                            }
                        }
                    }
                });
            }
        });
        tree.0.unmount().unwrap();
        assert_clean(&memory, dir.path());
        let tree = mount(&memory, "ro");
        for thread in 0..4 {
            for number in 0..8 {
                assert!(tree.read_file(&format!("{thread}/{number}")).unwrap() == content(thread, number));
            }
        }
    }
}
