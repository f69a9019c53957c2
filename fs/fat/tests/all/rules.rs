//! What a volume can and cannot do: modes, times, labels, space, sizes.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use veduta_api::{
    Allocate, Errno, Ino, Ioctl, Kind, Module, NewNode, Options, Perm, RenameFlags, Seek, SetAttr, SetTime,
    Timestamp, Value, XattrMode,
};
use veduta_fat::Fat;

use crate::support::{Make, Memory, Tree, disk, folder, have, mount, read_all, run, text, try_mount};

const FLOPPY: Make = Make { kib: 1440, exfat: false, words: "-F 12 -n MYDISK" };
const CARD: Make = Make { kib: 40 << 10, exfat: false, words: "-F 32 -s 1" };
const EXFAT: Make = Make { kib: 16 << 10, exfat: true, words: "-c 4096 -L MyDisk" };
const ALL: [Make; 3] = [FLOPPY, CARD, EXFAT];

fn each(makes: &[Make], options: &str, test: impl Fn(&Tree, &Arc<Memory>, &Make)) {
    for make in makes {
        let dir = folder();
        let Some(memory) = make.make(dir.path()) else { continue };
        let tree = mount(&memory, options);
        test(&tree, &memory, make);
        tree.0.unmount().unwrap();
        let (clean, said) = make.fsck(&memory, dir.path());
        assert!(clean, "{make:?}: {said}");
    }
}

fn chmod(mode: u32) -> SetAttr {
    SetAttr { perm: Some(Perm::from_mode(mode)), ..SetAttr::default() }
}

#[test]
fn only_the_write_permission_can_be_changed() {
    each(&ALL, "umask=022,uid=7,gid=8", |tree, _, _| {
        tree.create("f").unwrap();
        let attr = tree.stat("f").unwrap();
        assert_eq!((attr.perm.bits(), attr.uid, attr.gid), (0o755, 7, 8));
        assert_eq!(tree.setattr("f", &chmod(0o555)).unwrap().perm.bits(), 0o555);
        assert_eq!(tree.setattr("f", &chmod(0o777)).unwrap().perm.bits(), 0o755);
        assert_eq!(tree.setattr("f", &chmod(0o644)).err(), Some(Errno::EPERM));
        let own = SetAttr { uid: Some(7), gid: Some(8), ..SetAttr::default() };
        assert!(tree.setattr("f", &own).is_ok());
        assert_eq!(tree.setattr("f", &SetAttr { uid: Some(0), ..own }).err(), Some(Errno::EPERM));
        tree.mkdir("d").unwrap();
        assert_eq!(tree.setattr("d", &chmod(0o555)).err(), Some(Errno::EPERM));
        let new = NewNode {
            kind: Kind::Fifo,
            perm: Perm::from_mode(0),
            umask: 0,
            uid: 0,
            gid: 0,
            rdev: Default::default(),
        };
        assert_eq!(tree.0.mknod(Ino::ROOT, "p".as_ref(), &new).err(), Some(Errno::EPERM));
        assert_eq!(tree.0.symlink(Ino::ROOT, "p".as_ref(), "f".as_ref(), &new).err(), Some(Errno::EPERM));
        assert_eq!(
            tree.0.link(tree.lookup("f").unwrap().ino, Ino::ROOT, "g".as_ref()).err(),
            Some(Errno::EPERM)
        );
        tree.create("g").unwrap();
        let exchange = RenameFlags { exchange: true, ..RenameFlags::default() };
        assert_eq!(tree.rename_with("f", "g", exchange), Err(Errno::EINVAL));
    });
    each(&ALL, "umask=0,quiet,showexec", |tree, _, _| {
        tree.create("f").unwrap();
        tree.create("g.exe").unwrap();
        let change = SetAttr { uid: Some(1), ..chmod(0o600) };
        assert_eq!(tree.setattr("f", &change).unwrap().perm.bits(), 0o666);
        assert_eq!(tree.stat("g.exe").unwrap().perm.bits(), 0o777);
    });
}

#[test]
fn attributes_are_bits_that_ioctls_and_xattrs_see() {
    each(&ALL, "umask=022", |tree, _, _| {
        tree.create("f").unwrap();
        let file = tree.open("f").unwrap();
        let ino = tree.lookup("f").unwrap().ino;
        let call = |command: u32, input: &[u8], len: usize| {
            let mut output = vec![0; len];
            let done = file.ioctl(&mut Ioctl { command, argument: 0, input, output: &mut output });
            done.map(|_| output)
        };
        assert_eq!(call(0x8004_7210, &[], 4).unwrap(), 0x20_u32.to_ne_bytes());
        call(0x4004_7211, &0x27_u32.to_ne_bytes(), 0).unwrap();
        assert_eq!(tree.stat("f").unwrap().perm.bits(), 0o555);
        assert_eq!(tree.0.getxattr(ino, "user.fat.attributes".as_ref()).unwrap(), b"0x27");
        tree.0.setxattr(ino, "user.fat.attributes".as_ref(), b"0x02", XattrMode::Set).unwrap();
        assert_eq!(call(0x8004_7210, &[], 4).unwrap(), 2_u32.to_ne_bytes());
        assert_eq!(call(0x4004_7211, &0x30_u32.to_ne_bytes(), 0), Err(Errno::EINVAL));
        assert_eq!(tree.0.getxattr(ino, "user.other".as_ref()), Err(Errno::ENODATA));
        assert_eq!(tree.0.setxattr(ino, "user.other".as_ref(), b"", XattrMode::Set), Err(Errno::EOPNOTSUPP));
        assert_eq!(call(0x1234, &[], 0), Err(Errno::ENOTTY));
        tree.0.forget(ino, 1);
    });
}

#[test]
fn times_are_kept_as_finely_as_the_format_has_them() {
    let zones = "umask=022,time_offset=60";
    each(&ALL, zones, |tree, memory, make| {
        tree.create("f").unwrap();
        let moment = Timestamp { seconds: 1_600_000_003, nanos: 987_654_321 };
        let times = SetAttr {
            mtime: Some(SetTime::To(moment)),
            atime: Some(SetTime::To(moment)),
            ..SetAttr::default()
        };
        let attr = tree.setattr("f", &times).unwrap();
        let expected = if make.exfat {
            (Timestamp { seconds: 1_600_000_003, nanos: 980_000_000 }, Timestamp::from_seconds(1_600_000_002))
        } else {
            // The day began at 23:00 UTC.
            (Timestamp::from_seconds(1_600_000_002), Timestamp::from_seconds(1_599_951_600))
        };
        assert_eq!((attr.mtime, attr.atime), expected);
        let old = SetAttr { mtime: Some(SetTime::To(Timestamp::from_seconds(0))), ..SetAttr::default() };
        assert_eq!(tree.setattr("f", &old).unwrap().mtime.seconds, 315_532_800 - 3600);
        tree.setattr("f", &times).unwrap();
        tree.0.sync().unwrap();
        let again = mount(memory, &format!("ro,{zones}")).stat("f").unwrap();
        assert_eq!((again.mtime, again.atime), expected);
        let now = Timestamp::now().seconds;
        assert!(again.btime.is_some_and(|time| (now - time.seconds).abs() < 100));
    });
}

#[test]
fn the_label_is_read_and_written_in_both_places() {
    each(&ALL, "", |tree, memory, make| {
        let root = tree.lookup("").unwrap().ino;
        let label = || {
            let mut output = [0; 256];
            tree.0
                .ioctl(
                    root,
                    &mut Ioctl { command: 0x8100_9431, argument: 0, input: &[], output: &mut output },
                )
                .unwrap();
            String::from_utf8_lossy(&output).trim_end_matches('\0').to_string()
        };
        let set = |label: &str| {
            let mut input = label.as_bytes().to_vec();
            input.resize(256, 0);
            tree.0
                .ioctl(root, &mut Ioctl { command: 0x4100_9432, argument: 0, input: &input, output: &mut [] })
        };
        let expected = if make.words.contains("-n") {
            "MYDISK"
        } else if make.exfat {
            "MyDisk"
        } else {
            ""
        };
        assert_eq!(label(), expected);
        set("Other One").unwrap();
        assert_eq!(label(), if make.exfat { "Other One" } else { "OTHER ONE" });
        assert_eq!(set("far too long a label"), Err(Errno::EINVAL));
        if !make.exfat {
            assert_eq!(set("a*b"), Err(Errno::EINVAL));
        }
        tree.0.sync().unwrap();
        let dir = folder();
        let image = dir.path().join("l.img");
        memory.save(&image);
        let program = if make.exfat { "exfatlabel" } else { "fatlabel" };
        if have(program) {
            let said = text(&run(program, &[image.to_str().unwrap()]));
            assert!(said.to_uppercase().contains("OTHER ONE"), "{said}");
        }
        set("").unwrap();
        assert_eq!(label(), "");
    });
}

#[test]
fn a_full_disk_takes_what_fits_and_gives_it_back() {
    each(&[FLOPPY, Make { kib: 4096, exfat: true, words: "-c 512" }], "", |tree, _, _| {
        let before = tree.0.statfs().unwrap();
        let bytes = before.blocks_free * u64::from(before.block_size);
        let file = tree.create("big").unwrap();
        let mut done = 0;
        loop {
            match file.write_at(&[5; 100_000], done) {
                Ok(len) => done += len as u64,
                Err(errno) => {
                    assert_eq!(errno, Errno::ENOSPC);
                    break;
                }
            }
        }
        assert!(done <= bytes && bytes - done <= 4096, "{done} of {bytes}");
        let grow = SetAttr { size: Some(done + 10_000_000), ..SetAttr::default() };
        assert_eq!(tree.setattr("big", &grow).err(), Some(Errno::ENOSPC));
        assert_eq!(tree.mkdir("no room").err(), Some(Errno::ENOSPC));
        assert!(read_all(&*file).unwrap().iter().all(|byte| *byte == 5));
        // Space that was just freed can be used at once.
        drop(file);
        tree.unlink("big").unwrap();
        tree.put_file("again", &vec![6; bytes as usize - 4096]).unwrap();
        assert_eq!(tree.read_file("again").unwrap(), vec![6; bytes as usize - 4096]);
    });
}

#[test]
fn what_a_file_grows_by_reads_as_zeros() {
    each(&ALL, "", |tree, _, _| {
        let file = tree.create("f").unwrap();
        file.write_at(b"abc", 0).unwrap();
        tree.truncate("f", 20_000).unwrap();
        file.write_at(b"xyz", 50_000).unwrap();
        let mut expected = vec![0; 50_003];
        expected[..3].copy_from_slice(b"abc");
        expected[50_000..].copy_from_slice(b"xyz");
        assert_eq!(read_all(&*file).unwrap(), expected);
        tree.truncate("f", 1).unwrap();
        file.allocate(Allocate::Extend, 0, 10_000).unwrap();
        assert_eq!(read_all(&*file).unwrap()[..], [&b"a"[..], &[0; 9999]].concat());
        file.allocate(Allocate::KeepSize, 0, 60_000).unwrap();
        assert_eq!(tree.stat("f").unwrap().size, 10_000);
        assert!(tree.stat("f").unwrap().blocks * 512 >= 60_000);
        assert_eq!(file.allocate(Allocate::PunchHole, 0, 512), Err(Errno::EOPNOTSUPP));
        drop(file);
        // What was reserved behind the end is given back.
        assert!(tree.stat("f").unwrap().blocks * 512 < 20_000);
    });
}

#[test]
fn a_removed_file_stays_readable_while_it_is_open() {
    each(&ALL, "", |tree, _, _| {
        let free = tree.0.statfs().unwrap().blocks_free;
        let file = tree.create("f").unwrap();
        file.write_at(&[1; 30_000], 0).unwrap();
        tree.unlink("f").unwrap();
        tree.put_file("g", &[2; 30_000]).unwrap();
        tree.0.sync().unwrap();
        assert_eq!(read_all(&*file).unwrap(), [1; 30_000]);
        file.write_at(&[3; 10_000], 30_000).unwrap();
        assert_eq!(read_all(&*file).unwrap().len(), 40_000);
        drop(file);
        tree.unlink("g").unwrap();
        assert_eq!(tree.0.statfs().unwrap().blocks_free, free);
        // A removed directory that is in use is empty, and takes nothing.
        tree.mkdir("d").unwrap();
        let dir = tree.lookup("d").unwrap().ino;
        tree.rmdir("d").unwrap();
        assert_eq!(tree.0.lookup(dir, "x".as_ref()).err(), Some(Errno::ENOENT));
        tree.0.readdir(dir, 0, &mut |_| panic!("nothing is there")).unwrap();
        tree.0.forget(dir, 1);
    });
}

#[test]
fn directories_move_with_all_that_is_in_them() {
    each(&ALL, "", |tree, _, _| {
        for dir in ["a", "a/b", "c", "c/d", "e"] {
            tree.mkdir(dir).unwrap();
        }
        tree.put_file("a/b/f", b"x").unwrap();
        assert_eq!(tree.rename("a", "a/b/a"), Err(Errno::EINVAL));
        assert_eq!(tree.rename("a/b", "c"), Err(Errno::ENOTEMPTY));
        assert_eq!(tree.rename("a/b/f", "c"), Err(Errno::EISDIR));
        assert_eq!(tree.rename("c", "a/b/f"), Err(Errno::ENOTDIR));
        tree.rename("a/b", "c/d").unwrap();
        tree.rename("c/d", "e/moved").unwrap();
        assert_eq!(tree.read_file("e/moved/f").unwrap(), b"x");
        let (moved, e) = (tree.lookup("e/moved").unwrap().ino, tree.lookup("e").unwrap().ino);
        assert_eq!(tree.0.parent(moved), Ok(e));
        tree.0.forget(moved, 1);
        tree.0.forget(e, 1);
        assert_eq!(tree.rmdir("e"), Err(Errno::ENOTEMPTY));
        assert_eq!(tree.rmdir("e/moved/f"), Err(Errno::ENOTDIR));
        assert_eq!(tree.unlink("e/moved"), Err(Errno::EISDIR));
    });
}

#[test]
fn a_listing_is_right_while_entries_come_and_go() {
    each(&ALL, "", |tree, _, _| {
        tree.mkdir("d").unwrap();
        for number in 0..100 {
            tree.create(format!("d/stays {number}")).unwrap();
            tree.create(format!("d/goes {number}")).unwrap();
        }
        let dir = tree.lookup("d").unwrap().ino;
        let (mut seen, mut position, mut round) = (Vec::new(), 0, 0);
        loop {
            let mut one = None;
            tree.0
                .readdir(dir, position, &mut |entry| {
                    if one.is_some() {
                        return std::ops::ControlFlow::Break(());
                    }
                    one = Some((entry.name.to_owned(), entry.next));
                    std::ops::ControlFlow::Continue(())
                })
                .unwrap();
            let Some((name, next)) = one else { break };
            position = next;
            seen.push(name.into_string().unwrap());
            if round < 100 {
                let _ = tree.unlink(format!("d/goes {round}"));
                tree.create(format!("d/comes {round} with a longer name")).unwrap();
            }
            round += 1;
        }
        let stays = seen.iter().filter(|name| name.starts_with("stays")).count();
        assert_eq!(stays, 100, "each is listed once");
        tree.0.forget(dir, 1);
    });
}

#[test]
fn nothing_is_written_before_the_first_change_and_one_change_changes_little() {
    for make in ALL {
        let dir = folder();
        let Some(memory) = make.make(dir.path()) else { continue };
        let tree = mount(&memory, "");
        for number in 0..50 {
            tree.put_file(format!("file {number}"), &[number; 3000]).unwrap();
        }
        tree.0.unmount().unwrap();
        let before = memory.bytes();
        let writes = memory.writes.load(Ordering::Relaxed);
        let tree = mount(&memory, "");
        let mut all = Vec::new();
        tree.walk_all(b"", &mut all).unwrap();
        tree.0.unmount().unwrap();
        assert_eq!(memory.writes.load(Ordering::Relaxed), writes, "reading writes nothing");
        // One byte of one file: its cluster and its entry differ, nothing else.
        let tree = mount(&memory, "");
        tree.open("file 25").unwrap().write_at(&[99], 1000).unwrap();
        tree.0.unmount().unwrap();
        let after = memory.bytes();
        let differ = (0..before.len()).filter(|at| before[*at] != after[*at]).count();
        assert!(differ <= 1 + 12, "{differ} bytes differ");
    }
}

#[test]
fn a_dirty_volume_stays_dirty_and_says_so() {
    for make in ALL {
        let dir = folder();
        let Some(memory) = make.make(dir.path()) else { continue };
        let tree = mount(&memory, "");
        tree.put_file("f", b"x").unwrap();
        tree.0.sync().unwrap();
        let crashed = Memory::new(memory.bytes());
        let report = Fat.describe(&disk(&crashed), Options::default()).unwrap();
        assert_eq!(report.find("dirty"), Some(&Value::Flag(true)));
        assert!(
            matches!(report.find("warnings"), Some(Value::List(list)) if list.iter().any(|line| line.contains("cleanly")))
        );
        let tree = mount(&crashed, "");
        assert_eq!(tree.read_file("f").unwrap(), b"x");
        tree.put_file("g", b"y").unwrap();
        tree.0.unmount().unwrap();
        assert_eq!(
            Fat.describe(&disk(&crashed), Options::default()).unwrap().find("dirty"),
            Some(&Value::Flag(true))
        );
    }
}

#[test]
fn a_report_has_what_others_say_too() {
    let dir = folder();
    let Some(memory) =
        (Make { kib: 40 << 10, exfat: false, words: "-F 32 -s 1 -n MYDISK -i 1234abcd" }).make(dir.path())
    else {
        return;
    };
    let report = Fat.describe(&disk(&memory), Options::default()).unwrap();
    let text = |key: &str| report.find(key).cloned();
    assert_eq!(text("format"), Some("fat32".into()));
    assert_eq!(text("label"), Some("MYDISK".into()));
    assert_eq!(text("boot_label"), Some("MYDISK".into()));
    assert_eq!(text("volume_id"), Some("1234-ABCD".into()));
    assert_eq!(text("oem"), Some("mkfs.fat".into()));
    assert_eq!(text("warnings"), None);
    // A wrong count, and copies of the table that differ.
    let mut bytes = memory.bytes();
    let sectors = |at: usize| usize::from(u16::from_le_bytes([bytes[at], bytes[at + 1]]));
    let (fsinfo, table) = (sectors(48) * 512, sectors(14) * 512);
    bytes[fsinfo + 488] ^= 8;
    bytes[table + 400] = 1;
    let report = Fat.describe(&disk(&Memory::new(bytes)), Options::default()).unwrap();
    let Some(Value::List(warnings)) = report.find("warnings") else { panic!("{report:?}") };
    assert!(
        warnings.iter().any(|line| line.contains("FSInfo"))
            && warnings.iter().any(|line| line.contains("differ"))
    );
}

#[test]
fn options_are_refused_with_a_reason() {
    let dir = folder();
    let Some(memory) = FLOPPY.make(dir.path()) else { return };
    for (options, word) in [
        ("codepage=932", "932"),
        ("iocharset=klingon", "klingon"),
        ("shortname=nice", "mixed"),
        ("tz=Mars", "UTC"),
        ("check=x", "expected"),
        ("uid=me", "user id"),
    ] {
        let error = try_mount(&memory, options).err().unwrap();
        assert!(error.message.contains(word), "{options}: {}", error.message);
    }
}

#[test]
fn seeks_find_the_hole_that_was_never_written() {
    each(&[EXFAT], "", |tree, _, _| {
        let file = tree.create("f").unwrap();
        file.write_at(&[1; 5000], 0).unwrap();
        tree.truncate("f", 1 << 20).unwrap();
        assert_eq!(file.seek(Seek::Data, 0), Ok(0));
        assert_eq!(file.seek(Seek::Hole, 0), Ok(5000));
        assert_eq!(file.seek(Seek::Data, 5000), Err(Errno::ENXIO));
        assert_eq!(file.seek(Seek::Hole, 1 << 20), Err(Errno::ENXIO));
        file.write_at(&[2; 10], 100_000).unwrap();
        let all = read_all(&*file).unwrap();
        assert!(
            all.len() == 1 << 20
                && all[5000..100_000].iter().all(|byte| *byte == 0)
                && all[100_010..].iter().all(|byte| *byte == 0)
        );
    });
}
