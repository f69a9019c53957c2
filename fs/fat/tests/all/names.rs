//! Names: long and short, of this program and of others.

use std::collections::BTreeSet;
use std::sync::atomic::Ordering;

use veduta_api::{Errno, Kind, RenameFlags};

use crate::support::{Make, Memory, Tree, folder, have, mount, run, text};

const FLOPPY: Make = Make { kib: 1440, exfat: false, words: "-F 12" };
const CARD: Make = Make { kib: 64 << 10, exfat: false, words: "-F 32 -s 1" };
const EXFAT: Make = Make { kib: 64 << 10, exfat: true, words: "-c 4096" };

fn names(tree: &Tree, path: &str) -> BTreeSet<String> {
    tree.list(path).unwrap().into_iter().map(|(name, _)| String::from_utf8(name).unwrap()).collect()
}

/// The main slots of the root directory of a floppy: name, case bits.
fn root_slots(bytes: &[u8]) -> Vec<([u8; 11], u8)> {
    let le16 = |at: usize| usize::from(u16::from_le_bytes([bytes[at], bytes[at + 1]]));
    let start = (le16(14) + usize::from(bytes[16]) * le16(22)) * le16(11);
    let slots = bytes[start..].chunks_exact(32).take_while(|slot| slot[0] != 0);
    let main = slots.filter(|slot| slot[0] != 0xe5 && slot[11] & 0x0f != 0x0f && slot[11] & 8 == 0);
    main.map(|slot| (slot[..11].try_into().unwrap(), slot[12])).collect()
}

#[test]
fn what_mtools_wrote_reads_right() {
    let dir = folder();
    let Some(memory) = FLOPPY.make(dir.path()) else { return };
    if !have("mcopy") {
        return;
    }
    let (image, file) = (dir.path().join("i.img"), dir.path().join("f"));
    memory.save(&image);
    let image_word = image.to_str().unwrap();
    let mut expected = Vec::new();
    for (at, name) in [
        "README.TXT",
        "lower.txt",
        "Mixed.Txt",
        "a long name with spaces.text",
        "Ärger über Öl.txt",
        "日本語.txt",
        "x+y.z",
    ]
    .into_iter()
    .enumerate()
    {
        let content = vec![at as u8 + 1; at * 5000 + 1];
        std::fs::write(&file, &content).unwrap();
        let done = run("mcopy", &["-i", image_word, file.to_str().unwrap(), &format!("::/{name}")]);
        assert!(done.status.success(), "{}", text(&done));
        expected.push((name, content));
    }
    assert!(run("mmd", &["-i", image_word, "::/sub dir", "::/sub dir/inner"]).status.success());
    assert!(run("mattrib", &["-i", image_word, "+r", "+h", "::/README.TXT"]).status.success());
    let tree = mount(&Memory::new(std::fs::read(&image).unwrap()), "ro,codepage=850,umask=022");
    for (name, content) in expected {
        assert_eq!(tree.read_file(name).unwrap(), content, "{name}");
        assert_eq!(tree.read_file(name.to_uppercase()).unwrap(), content, "{name} in capitals");
        assert!(names(&tree, "").contains(name), "{name} is listed");
    }
    assert_eq!(tree.read_file("ALONGN~1.TEX").unwrap().len(), 15001);
    assert_eq!(tree.stat("sub dir/inner").unwrap().kind, Kind::Directory);
    assert_eq!(tree.stat("README.TXT").unwrap().perm.bits(), 0o555);
    let ino = tree.lookup("README.TXT").unwrap().ino;
    assert_eq!(tree.0.getxattr(ino, "user.fat.attributes".as_ref()).unwrap(), b"0x23");
}

#[test]
fn short_names_collide_as_on_other_systems() {
    let dir = folder();
    let Some(memory) = FLOPPY.make(dir.path()) else { return };
    let tree = mount(&memory, "");
    for number in 1..=7 {
        tree.put_file(format!("a long name {number}.txt"), &[number]).unwrap();
    }
    // A file whose own name is somebody's short one.
    assert_eq!(tree.create("ALONGN~1.TXT").err(), Some(Errno::EEXIST));
    assert_eq!(tree.read_file("alongn~3.txt").unwrap(), [3]);
    tree.0.unmount().unwrap();
    let slots = root_slots(&memory.bytes());
    let shorts: BTreeSet<String> =
        slots.iter().map(|(name, _)| String::from_utf8_lossy(name).into_owned()).collect();
    assert_eq!(shorts.len(), 7);
    for number in 1..=5 {
        assert!(shorts.contains(&format!("ALONGN~{number}TXT")), "{shorts:?}");
    }
    let (clean, said) = FLOPPY.fsck(&memory, dir.path());
    assert!(clean, "{said}");
}

#[test]
fn a_rename_gives_a_new_short_name_and_everything_else_keeps_it() {
    let dir = folder();
    let Some(memory) = FLOPPY.make(dir.path()) else { return };
    let tree = mount(&memory, "");
    tree.put_file("first long name.txt", b"1").unwrap();
    tree.put_file("first long name two.txt", b"2").unwrap();
    // The second keeps ~2 when the first is gone.
    tree.unlink("first long name.txt").unwrap();
    let file = tree.open("FIRSTL~2.TXT").unwrap();
    file.write_at(&[9; 3000], 0).unwrap();
    drop(file);
    assert_eq!(tree.read_file("FIRSTL~2.TXT").unwrap().len(), 3000);
    tree.rename("first long name two.txt", "Other Name.txt").unwrap();
    assert_eq!(tree.read_file("OTHERN~1.TXT").unwrap().len(), 3000);
    assert_eq!(tree.read_file("FIRSTL~2.TXT").err(), Some(Errno::ENOENT));
    // Another case of the same name.
    tree.rename("Other Name.txt", "OTHER name.txt").unwrap();
    assert_eq!(names(&tree, ""), BTreeSet::from(["OTHER name.txt".to_string()]));
    tree.0.unmount().unwrap();
    let (clean, said) = FLOPPY.fsck(&memory, dir.path());
    assert!(clean, "{said}");
}

#[test]
fn the_case_bits_are_shown_and_with_winnt_made() {
    let dir = folder();
    let Some(memory) = FLOPPY.make(dir.path()) else { return };
    let tree = mount(&memory, "shortname=winnt");
    for name in ["lower.txt", "UPPER.txt", "upper.TXT", "PLAIN.TXT", "Mixed.txt"] {
        tree.put_file(name, name.as_bytes()).unwrap();
    }
    tree.0.unmount().unwrap();
    let bits: Vec<u8> = root_slots(&memory.bytes()).into_iter().map(|(_, bits)| bits).collect();
    // "upper.TXT" is "UPPER.txt" again.
    assert_eq!(bits, [0x18, 0x10, 0, 0]);
    let shown = |options: &str| names(&mount(&memory, options), "");
    let set = |names: &[&str]| names.iter().map(ToString::to_string).collect::<BTreeSet<_>>();
    assert_eq!(shown("ro"), set(&["lower.txt", "UPPER.txt", "PLAIN.TXT", "Mixed.txt"]));
    assert_eq!(shown("ro,shortname=win95"), set(&["LOWER.TXT", "UPPER.TXT", "PLAIN.TXT", "Mixed.txt"]));
    assert_eq!(shown("ro,shortname=lower"), set(&["lower.txt", "upper.txt", "plain.txt", "Mixed.txt"]));
}

#[test]
fn names_are_found_in_any_case_and_refused_as_the_kernel_does() {
    for make in [FLOPPY, EXFAT] {
        let dir = folder();
        let Some(memory) = make.make(dir.path()) else { continue };
        let tree = mount(&memory, "");
        tree.put_file("Größe 😀.txt", b"x").unwrap();
        assert!(tree.stat("GRÖßE 😀.TXT").is_ok());
        assert_eq!(tree.create("gröSSe 😀.txt").err(), None);
        assert_eq!(tree.create("GRÖßE 😀.TXT").err(), Some(Errno::EEXIST));
        for (name, errno) in [
            (&b"a:b"[..], Errno::EINVAL),
            (b"what?", Errno::EINVAL),
            (b"back\\slash", Errno::EINVAL),
            (b"space ", Errno::EINVAL),
            (b"\xff\xfe", Errno::EINVAL),
            (b"bell\x07", Errno::EINVAL),
        ] {
            assert_eq!(tree.create(name).err(), Some(errno), "{name:?}");
            assert_eq!(tree.mkdir(name).err(), Some(errno), "{name:?}");
            assert_eq!(tree.rename("Größe 😀.txt", name).err(), Some(errno), "{name:?}");
            assert_eq!(tree.lookup(name).err(), Some(Errno::ENOENT), "{name:?}");
        }
        assert_eq!(tree.create([b'n'; 256]).err(), Some(Errno::ENAMETOOLONG));
        tree.create("€".repeat(255)).unwrap();
        // A lone surrogate, as nobody should write it, can be named all the same.
        tree.put_file(b"lone \xed\xa0\xbd", b"y").unwrap();
        tree.create("trailing dots...").unwrap();
        assert!(tree.stat("trailing dots").is_ok() && tree.stat("trailing dots.").is_ok());
        tree.0.unmount().unwrap();
        let tree = mount(&memory, "ro");
        assert_eq!(tree.read_file(b"lone \xed\xa0\xbd").unwrap(), b"y");
        assert!(tree.stat("€".repeat(255)).is_ok());
        if !make.exfat {
            let (clean, said) = make.fsck(&memory, dir.path());
            assert!(clean, "{said}");
        }
    }
}

#[test]
fn an_emoji_is_stored_as_two_surrogates() {
    let dir = folder();
    let Some(memory) = FLOPPY.make(dir.path()) else { return };
    let tree = mount(&memory, "");
    tree.create("😀").unwrap();
    tree.0.unmount().unwrap();
    let long: &[u8] = &[0x41, 0x3d, 0xd8, 0x00, 0xde, 0, 0];
    assert!(memory.bytes().windows(long.len()).any(|bytes| bytes == long));
}

#[test]
fn names_in_a_code_page_can_be_asked_for() {
    let dir = folder();
    let Some(memory) = FLOPPY.make(dir.path()) else { return };
    let tree = mount(&memory, "iocharset=cp850,codepage=850");
    tree.create(b"gr\x81n.txt").unwrap();
    tree.create(b":4e2d.txt").unwrap();
    tree.0.unmount().unwrap();
    let expected = ["grün.txt", "中.txt"].map(String::from);
    assert_eq!(names(&mount(&memory, "ro"), ""), BTreeSet::from(expected));
    // The short name is in the page's own bytes.
    assert!(root_slots(&memory.bytes()).iter().any(|(name, _)| name == b"GR\x9aN    TXT"));
}

#[test]
fn ten_thousand_long_names_cost_writes_in_proportion() {
    for make in [CARD, EXFAT] {
        let dir = folder();
        let Some(memory) = make.make(dir.path()) else { continue };
        let tree = mount(&memory, "");
        tree.mkdir("many").unwrap();
        let mut before = (memory.writes.load(Ordering::Relaxed), memory.reads.load(Ordering::Relaxed));
        let mut costs = Vec::new();
        for thousand in 0..10 {
            for number in 0..1000 {
                tree.create(format!(
                    "many/a rather long name of a file, number {}.text",
                    thousand * 1000 + number
                ))
                .unwrap();
            }
            tree.0.sync().unwrap();
            let now = (memory.writes.load(Ordering::Relaxed), memory.reads.load(Ordering::Relaxed));
            costs.push((now.0 - before.0, now.1 - before.1));
            before = now;
        }
        println!("{make:?}: writes and reads per thousand names: {costs:?}");
        let (writes, reads) = costs[9];
        assert!(
            writes <= costs[1].0 * 2 + 20 && reads <= costs[1].1 * 2 + 20,
            "the last thousand is not dearer: {costs:?}"
        );
        assert_eq!(tree.list("many").unwrap().len(), 10_000);
        tree.0.unmount().unwrap();
        let (clean, said) = make.fsck(&memory, dir.path());
        assert!(clean, "{said}");
        let tree = mount(&memory, "");
        assert_eq!(tree.list("many").unwrap().len(), 10_000);
        for number in 0..10_000 {
            tree.unlink(format!("many/A RATHER LONG NAME OF A FILE, NUMBER {number}.TEXT")).unwrap();
        }
        tree.rmdir("many").unwrap();
        tree.0.unmount().unwrap();
        let (clean, said) = make.fsck(&memory, dir.path());
        assert!(clean, "{said}");
    }
}

#[test]
fn a_renamed_file_keeps_its_number_and_nobody_else_gets_it() {
    for make in [FLOPPY, EXFAT] {
        let dir = folder();
        let Some(memory) = make.make(dir.path()) else { continue };
        let tree = mount(&memory, "");
        tree.mkdir("dir").unwrap();
        tree.put_file("one", b"1").unwrap();
        let one = tree.stat("one").unwrap().st_ino;
        tree.rename("one", "dir/a longer name than before").unwrap();
        assert_eq!(tree.stat("dir/a longer name than before").unwrap().st_ino, one);
        tree.put_file("two", b"2").unwrap();
        let two = tree.stat("two").unwrap().st_ino;
        assert_ne!(one, two);
        // Open, without a name: the number stays taken, the content readable.
        let file = tree.open("two").unwrap();
        tree.unlink("two").unwrap();
        tree.put_file("three", b"3").unwrap();
        assert_ne!(tree.stat("three").unwrap().st_ino, two);
        let mut byte = [0];
        assert_eq!((file.read_at(&mut byte, 0), byte), (Ok(1), *b"2"));
        drop(file);
        tree.rename_with(
            "three",
            "dir/a longer name than before",
            RenameFlags { no_replace: true, ..RenameFlags::default() },
        )
        .unwrap_err();
        tree.rename("three", "dir/a longer name than before").unwrap();
        assert_eq!(tree.read_file("dir/A LONGER NAME THAN BEFORE").unwrap(), b"3");
        let mut listed = BTreeSet::new();
        let mut all = Vec::new();
        tree.walk_all(b"", &mut all).unwrap();
        for (path, _) in &all {
            assert!(listed.insert(tree.stat(path).unwrap().st_ino), "numbers are different");
        }
        tree.0.unmount().unwrap();
        let (clean, said) = make.fsck(&memory, dir.path());
        assert!(clean, "{said}");
    }
}

#[test]
fn volumes_that_mformat_made_are_read_and_written() {
    if !have("mformat") {
        return;
    }
    for words in [
        "-f 160",
        "-f 1440",
        "-f 2880",
        "-t 200 -h 16 -s 63",
        "-T 140000 -F -c 1",
        "-t 80 -h 2 -s 18 -M 1024",
    ] {
        let dir = folder();
        let image = dir.path().join("m.img");
        let image_word = image.to_str().unwrap();
        let words: Vec<&str> = ["-C", "-v", "MTOOLS", "-i", image_word]
            .into_iter()
            .chain(words.split(' '))
            .chain(["::"])
            .collect();
        let made = run("mformat", &words);
        assert!(made.status.success(), "{words:?}: {}", text(&made));
        std::fs::write(dir.path().join("f"), [3; 9000]).unwrap();
        let copied =
            run("mcopy", &["-i", image_word, dir.path().join("f").to_str().unwrap(), "::/from mtools"]);
        assert!(copied.status.success(), "{}", text(&copied));
        let memory = Memory::new(std::fs::read(&image).unwrap());
        let tree = mount(&memory, "");
        assert_eq!(tree.read_file("from mtools").unwrap(), [3; 9000]);
        tree.mkdir("a new directory").unwrap();
        tree.put_file("a new directory/and a file", &[4; 20_000]).unwrap();
        tree.rename("from mtools", "a new directory/moved").unwrap();
        tree.0.unmount().unwrap();
        let (clean, said) = FLOPPY.fsck(&memory, dir.path());
        assert!(clean, "{words:?}: {said}");
        memory.save(&image);
        for (path, content) in [("and a file", vec![4; 20_000]), ("moved", vec![3; 9000])] {
            let typed = run("mtype", &["-i", image_word, &format!("::/a new directory/{path}")]);
            assert!(typed.stdout == content, "{words:?} {path}: {}", String::from_utf8_lossy(&typed.stderr));
        }
    }
}
