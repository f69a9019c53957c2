//! What the driver promises beside the right answers: how much it reads, what it says of damage, which
//! options it takes.
//!
//! Needs mke2fs, debugfs and e2fsck.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

mod common;

use std::ffi::OsStr;
use std::fs;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::Ordering;

use common::{Counted, Image, ask, debugfs, make, mount, mount_disk, names, node, repair};
use tempfile::TempDir;
use veduta_api::{Errno, Filesystem, Ino, Ioctl, Module, MountErrorKind, OpenFlags, Options, Value};
use veduta_ext2::Ext2;
use veduta_tests::record;

/// An image of a small tree, made once a test.
struct Fixture {
    folder: TempDir,
}

impl Fixture {
    /// `files` names in `/many`, and a file of 2 MiB.
    fn new(size: u64, files: usize, arguments: &[&str]) -> Self {
        let fixture = Self { folder: tempfile::tempdir().unwrap() };
        let tree = fixture.folder.path().join("tree");
        fs::create_dir_all(tree.join("many")).unwrap();
        for index in 0..files {
            fs::write(tree.join(format!("many/{}-{index}", "long".repeat(10))), "").unwrap();
        }
        fs::write(tree.join("whole"), vec![0x5a; 2 << 20]).unwrap();
        let pieces = fs::File::create(tree.join("pieces")).unwrap();
        for index in 0..100u64 {
            pieces.write_at(b"piece", index * 12_288).unwrap();
        }
        make(&fixture.image(), size, &[arguments, &["-d", tree.to_str().unwrap()]].concat());
        fixture
    }

    fn image(&self) -> PathBuf {
        self.folder.path().join("image")
    }

    /// Inverts a byte of the image.
    fn damage(&self, offset: u64) {
        let file = fs::File::options().read(true).write(true).open(self.image()).unwrap();
        let mut byte = [0];
        file.read_exact_at(&mut byte, offset).unwrap();
        file.write_all_at(&[!byte[0]], offset).unwrap();
    }
}

#[test]
fn a_stretch_of_content_is_one_read_of_the_disk() {
    let fixture = Fixture::new(16 << 20, 1, &["-t", "ext4", "-b", "4096"]);
    let (disk, reads) = Counted::open(&fixture.image());
    let tree = mount_disk(disk, "").unwrap();
    let file = tree.open(node(&*tree, "/whole").unwrap(), OpenFlags::READ).unwrap();
    let mut buf = vec![0; 1 << 20];
    file.read_at(&mut buf, 0).unwrap();
    for offset in [0, 4096, 5000, 1 << 20] {
        let before = reads.load(Ordering::Relaxed);
        assert_eq!(file.read_at(&mut buf, offset), Ok(1 << 20));
        assert_eq!(reads.load(Ordering::Relaxed) - before, 1, "at {offset}");
        assert!(buf.iter().all(|byte| *byte == 0x5a));
    }
}

#[test]
fn a_lookup_in_a_large_directory_reads_few_blocks() {
    let fixture = Fixture::new(32 << 20, 5000, &["-t", "ext4", "-b", "1024", "-N", "8192"]);
    repair(&fixture.image());
    let count = |work: &dyn Fn(&dyn Filesystem)| {
        let (disk, reads) = Counted::open(&fixture.image());
        let tree = mount_disk(disk, "").unwrap();
        work(&*tree);
        reads.load(Ordering::Relaxed)
    };
    let name = format!("{}-4321", "long".repeat(10));
    let found = count(&|tree| assert!(node(tree, &format!("/many/{name}")).is_ok()));
    let missed = count(&|tree| assert_eq!(node(tree, "/many/absent"), Err(Errno::ENOENT)));
    assert!(found < 16 && missed < 16, "{found} reads to find, {missed} to miss");
}

#[test]
fn a_listing_goes_on_where_it_broke_off() {
    for arguments in [&["-t", "ext2", "-b", "1024"][..], &["-t", "ext4", "-b", "4096", "-O", "inline_data"]] {
        let fixture = Fixture::new(16 << 20, 500, arguments);
        let tree = mount(&fixture.image(), "").unwrap();
        for dir in ["/", "/many"] {
            let dir = node(&*tree, dir).unwrap();
            let all = names(&*tree, dir, 10_000).unwrap();
            for at_once in [1, 2, 7, 100] {
                assert_eq!(names(&*tree, dir, at_once).unwrap(), all);
            }
        }
    }
}

#[test]
fn damage_is_found_where_it_is() {
    const BLOCK: u64 = 1024;
    let fixture = || {
        let fixture =
            Fixture::new(16 << 20, 100, &["-t", "ext4", "-b", "1024", "-O", "metadata_csum,^inline_data"]);
        debugfs(&fixture.image(), &format!("ea_set /pieces user.long {}\n", "v".repeat(400)));
        fixture
    };
    let number = |text: &str, before: &str| -> u64 {
        let rest = &text[text.find(before).unwrap() + before.len()..];
        rest.trim_start().split(|c: char| !c.is_ascii_digit()).next().unwrap().parse().unwrap()
    };
    let attribute = |tree: &dyn Filesystem| {
        let ino = node(tree, "/pieces")?;
        tree.getxattr(ino, OsStr::new("user.long")).map(drop)
    };
    let content = |tree: &dyn Filesystem| {
        let file = tree.open(node(tree, "/pieces")?, OpenFlags::READ)?;
        file.read_at(&mut [0; 100], 600_000).map(drop)
    };
    let listing = |tree: &dyn Filesystem| names(tree, node(tree, "/many")?, 1000).map(drop);
    let attributes = |tree: &dyn Filesystem| node(tree, "/whole").map(drop);
    type Check<'a> = &'a dyn Fn(&dyn Filesystem) -> Result<(), Errno>;
    type Place<'a> = &'a dyn Fn(&Path) -> u64;
    let checks: [(&str, Place<'_>, Check<'_>); 5] = [
        (
            "a block of attributes",
            &|image| number(&ask(image, "stat /pieces"), "File ACL:") * BLOCK + 900,
            &attribute,
        ),
        ("a node of extents", &|image| number(&ask(image, "stat /pieces"), "(ETB0):") * BLOCK + 30, &content),
        (
            "a directory block",
            &|image| number(&format!("\n{}", ask(image, "blocks /many")), "\n") * BLOCK + 900,
            &listing,
        ),
        (
            "an inode",
            &|image| {
                let place = ask(image, "imap /whole");
                let offset = &place[place.find("offset 0x").unwrap() + 9..];
                number(&place, "located at block") * BLOCK
                    + u64::from_str_radix(offset.trim(), 16).unwrap()
                    + 5
            },
            &attributes,
        ),
        ("a group descriptor", &|_| 2 * BLOCK + 12, &attributes),
    ];
    for (what, place, check) in checks {
        let fixture = fixture();
        let image = fixture.image();
        let place = place(&image);
        if let Ok(tree) = mount(&image, "") {
            assert_eq!(check(&*tree), Ok(()), "{what}, before");
        }
        fixture.damage(place);
        match mount(&image, "") {
            Ok(tree) => assert_eq!(check(&*tree), Err(Errno::EUCLEAN), "{what}, at byte {place}"),
            Err(error) => assert_eq!(error.kind, MountErrorKind::Corrupt, "{what}: {error}"),
        }
    }
}

#[test]
fn a_copy_of_the_superblock_serves_when_asked_for() {
    let fixture = Fixture::new(24 << 20, 1, &["-t", "ext4", "-b", "1024"]);
    let truth = record::of(&*mount(&fixture.image(), "").unwrap());
    fixture.damage(1024 + 4);
    let error = mount(&fixture.image(), "").err().unwrap();
    assert!(error.kind == MountErrorKind::Corrupt && error.message.contains("sb=8193"), "{error}");
    let tree = mount(&fixture.image(), "sb=8193").unwrap();
    assert_eq!(record::differences(&truth, &record::of(&*tree), &[]), [""; 0]);
    assert_eq!(mount(&fixture.image(), "sb=5").err().unwrap().kind, MountErrorKind::WrongType);
    assert_eq!(mount(&fixture.image(), "sb=99999999").err().unwrap().kind, MountErrorKind::WrongType);
}

#[test]
fn a_journal_is_replayed_and_the_image_stays_as_it_is() {
    // A copy of a block that begins with the journal's magic number is stored without it.
    const MAGIC: [u8; 4] = [0xc0, 0x3b, 0x39, 0x98];
    for (arguments, open) in [
        (&["-t", "ext3"][..], "jo"),
        (&["-t", "ext4", "-O", "metadata_csum,64bit"], "jo -c -v 3"),
        (&["-t", "ext4", "-O", "metadata_csum,^64bit"], "jo -c -v 2"),
    ] {
        let fixture = Fixture::new(32 << 20, 1, &[arguments, &["-b", "1024"]].concat());
        let image = fixture.image();
        let blocks = ask(&image, "blocks /whole");
        let blocks: Vec<&str> = blocks.split_whitespace().take(4).collect();
        let newer = fixture.folder.path().join("newer");
        fs::write(&newer, [MAGIC.as_slice(), &[7; 1020], &[8; 1024], &[9; 1024]].concat()).unwrap();
        let (first, second, third) = (blocks[0], blocks[1], blocks[2]);
        let newer = newer.to_str().unwrap();
        // The second transaction takes the third block back.
        let script = format!("{open}\njw -b {first},{second},{third} {newer}\njw -r {third}\njc\n");
        debugfs(&image, &script);
        let before = fs::read(&image).unwrap();
        let start = |options| {
            let tree = mount(&image, options).unwrap();
            let file = tree.open(node(&*tree, "/whole").unwrap(), OpenFlags::READ).unwrap();
            let mut buf = [0; 4096];
            assert_eq!(file.read_at(&mut buf, 0), Ok(4096));
            buf
        };
        let replayed = start("");
        assert_eq!(replayed[..5], [MAGIC.as_slice(), &[7]].concat()[..], "{arguments:?}");
        assert_eq!((replayed[1024], replayed[2048], replayed[3072]), (8, 0x5a, 0x5a), "{arguments:?}");
        assert_eq!(start("noload"), [0x5a; 4096]);
        assert!(fs::read(&image).unwrap() == before, "the image was changed");
    }
}

#[test]
fn options_are_taken_or_named() {
    let fixture = Fixture::new(8 << 20, 1, &["-t", "ext4"]);
    for (options, says) in [
        ("noload,norecovery,errors=continue,data=ordered,acl,user_xattr,commit=5", None),
        ("minixdf", None),
        ("errors=panic", Some("errors=panic")),
        ("data=fast", Some("data=fast")),
        ("sb=x", Some("sb=x")),
        ("sb=0", Some("sb=0")),
        ("rw+,data=writeback,discard,nobarrier", None),
        ("data=journal", Some("data=journal")),
        ("commit=soon", Some("commit=soon")),
        ("journal_path=/dev/sda", Some("journal_path")),
    ] {
        let message = mount(&fixture.image(), options).err().map(|error| error.message);
        match says {
            None => assert_eq!(message, None, "{options}"),
            Some(says) => assert!(message.is_some_and(|message| message.contains(says)), "{options}"),
        }
    }
    let blocks = |options| mount(&fixture.image(), options).unwrap().statfs().unwrap().blocks;
    assert!(blocks("minixdf") > blocks(""));
}

#[test]
fn only_what_is_ext_is_taken_for_it() {
    let fixture = Fixture::new(8 << 20, 1, &["-t", "ext4"]);
    let image = Image::open(&fixture.image());
    assert_eq!(Ext2.probe(&image), Ok(true));
    assert_eq!(Ext2.probe(&image.window(512, 8192, "elsewhere").unwrap()), Ok(false));
    assert_eq!(Ext2.probe(&image.window(0, 1024, "short").unwrap()), Ok(false));
    let zeros = image.window(0, 0, "empty").unwrap();
    assert_eq!(mount_disk(zeros, "").err().unwrap().kind, MountErrorKind::WrongType);
}

#[test]
fn a_report_says_what_the_volume_is() {
    let arguments = ["-t", "ext3", "-L", "a label", "-U", "01234567-89ab-cdef-0123-456789abcdef"];
    let fixture = Fixture::new(16 << 20, 1, &arguments);
    let describe = || Ext2.describe(&Image::open(&fixture.image()), Options::default()).unwrap();
    let report = describe();
    for (key, text) in [
        ("format", "ext3"),
        ("label", "a label"),
        ("uuid", "01234567-89ab-cdef-0123-456789abcdef"),
        ("state", "clean"),
        ("journal", "inside, empty"),
        ("checksums", "none"),
    ] {
        assert_eq!(report.find(key), Some(&Value::Text(text.into())));
    }
    let Some(Value::List(features)) = report.find("features") else { panic!("{report:?}") };
    assert!(features.contains(&"has_journal".to_owned()) && features.contains(&"filetype".to_owned()));
    assert_eq!(report.find("warnings"), None);
    debugfs(&fixture.image(), "ssv state 2\nssv error_count 3\nssv first_error_func ext4_lookup\n");
    let Some(Value::List(warnings)) = describe().find("warnings").cloned() else { panic!("no warnings") };
    assert!(warnings.iter().any(|warning| warning.contains("ext4_lookup")), "{warnings:?}");
}

#[test]
fn names_are_found_in_any_case_by_the_index() {
    let fixture = Fixture::new(16 << 20, 0, &["-t", "ext4", "-b", "1024"]);
    let tree = fixture.folder.path().join("tree/many");
    let words = ["README", "Straße", "École", "Σίσυφος", "Москва", "Ǆungla", "日本"];
    for index in 0..400 {
        fs::write(tree.join(format!("{}-{index}", words[index % words.len()])), "").unwrap();
    }
    let folder = tree.parent().unwrap().to_str().unwrap().to_owned();
    let encoding = ["-t", "ext4", "-b", "1024", "-O", "casefold", "-E", "encoding=utf8", "-d", &folder];
    make(&fixture.image(), 16 << 20, &encoding);
    debugfs(&fixture.image(), "sif /many flags 0x40080000\n");
    repair(&fixture.image());
    assert!(ask(&fixture.image(), "htree_dump /many").contains("Indirect levels"));
    let tree = mount(&fixture.image(), "").unwrap();
    assert!(tree.facts().case_insensitive);
    let many = node(&*tree, "/many").unwrap();
    for name in names(&*tree, many, 1000).unwrap() {
        let name = String::from_utf8(name).unwrap();
        let ino = tree.lookup(many, OsStr::new(&name)).unwrap().ino;
        for other in [name.to_uppercase(), name.to_lowercase()] {
            assert_eq!(
                tree.lookup(many, OsStr::new(&other)).map(|entry| entry.ino),
                Ok(ino),
                "{name} as {other}"
            );
        }
    }
    assert_eq!(node(&*tree, "/MANY"), Err(Errno::ENOENT));
}

#[test]
fn many_threads_see_the_same_tree() {
    let fixture = Fixture::new(32 << 20, 2000, &["-t", "ext4", "-b", "1024", "-N", "4096"]);
    let tree = mount(&fixture.image(), "").unwrap();
    let truth = record::of(&*tree);
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| assert_eq!(record::of(&*tree), truth));
        }
    });
}

#[test]
fn flags_are_handed_out_as_lsattr_wants_them() {
    let fixture = Fixture::new(8 << 20, 1, &["-t", "ext4"]);
    debugfs(&fixture.image(), "sif /whole flags 0x80010\nsif /whole generation 77\n");
    let tree = mount(&fixture.image(), "").unwrap();
    let ino = node(&*tree, "/whole").unwrap();
    assert!(tree.getattr(ino).unwrap().flags.immutable);
    let file = tree.open(ino, OpenFlags::READ).unwrap();
    for (command, expected) in [(0x8008_6601, Ok(0x80010)), (0x8008_7601, Ok(77)), (1, Err(Errno::ENOTTY))] {
        let mut output = [0; 8];
        let mut ioctl = Ioctl { command, argument: 0, input: &[], output: &mut output };
        let answer = file.ioctl(&mut ioctl).map(|_| u64::from_le_bytes(output));
        assert_eq!(answer, expected, "{command:#x}");
    }
}

#[test]
fn nothing_leads_to_a_reserved_inode() {
    let fixture = Fixture::new(8 << 20, 1, &["-t", "ext4", "-O", "^metadata_csum"]);
    debugfs(&fixture.image(), "ln <8> /journal\n");
    let tree = mount(&fixture.image(), "").unwrap();
    assert_eq!(node(&*tree, "/journal"), Err(Errno::EUCLEAN));
    assert_eq!(tree.getattr(Ino(8)).err(), Some(Errno::EUCLEAN));
    assert_eq!(tree.getattr(Ino(2)).err(), Some(Errno::EUCLEAN));
    assert_eq!(tree.getattr(Ino(1 << 32)).err(), Some(Errno::ESTALE));
    assert_eq!(tree.getattr(Ino::ROOT).unwrap().st_ino, 2);
}
