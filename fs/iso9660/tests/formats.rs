//! zisofs, boot images, raw sectors, large files and damage. Some need xorriso, genisoimage or mkzftree.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

mod common;

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use common::{
    Random, content, file_disk, find, have, list, memory_disk, mount, read, run, scratch_for_genisoimage,
    try_mount, walk,
};
use veduta_api::{BlockDevice, Disk, Errno, Geometry, Ino, Kind, Module, OpenFlags, Options, Result, Value};
use veduta_iso9660::Iso9660;

/// Files that compress well, not at all, and to nothing.
fn make_compressible(dir: &Path) {
    let tree = dir.join("tree");
    fs::create_dir(&tree).unwrap();
    let text: String = (0..100_000).map(|n| format!("{n}\n")).collect();
    let mut holes = vec![0; 300_000];
    holes[150_000..150_100].fill(7);
    for (name, bytes) in [
        ("numbers", text.as_bytes()),
        ("zeros", &[0; 200_000]),
        ("holes", &holes),
        ("random", &Random(3).bytes(100_000)),
        ("exact", &text.as_bytes()[..65_536]),
        ("small", b"small"),
        ("empty", b""),
    ] {
        fs::write(tree.join(name), bytes).unwrap();
    }
}

/// Every file is what it was before it was compressed, in pieces of any size and from the middle.
fn check_compressed(dir: &Path, image: &str) {
    let tree = mount(&dir.join(image), "");
    for (path, found) in walk(&*tree) {
        let original = fs::read(dir.join("tree").join(&path)).unwrap();
        assert_eq!(found.attr.size, original.len() as u64, "{image}: {path:?}");
        for step in [1 << 20, 4096, 33_333] {
            assert!(content(&*tree, found.ino, step).unwrap() == original, "{image}: {path:?} by {step}");
        }
        let file = tree.open(found.ino, OpenFlags::READ).unwrap();
        let mut random = Random(11);
        for _ in 0..50 {
            let offset = random.below(original.len() + 10).min(original.len());
            let mut piece = vec![0; random.below(80_000)];
            let len = file.read_at(&mut piece, offset as u64).unwrap();
            assert_eq!(len, piece.len().min(original.len() - offset));
            assert!(piece[..len] == original[offset..offset + len], "{image}: {path:?} at {offset}");
        }
    }
    let numbers = find(&*tree, "numbers").attr;
    assert!(numbers.flags.compressed && numbers.blocks * 512 < numbers.size, "{image}");
}

#[test]
fn zisofs_of_both_versions_is_unpacked() {
    if !have(&["xorriso"]) {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    make_compressible(dir);
    for (image, how) in [
        ("1.iso", "level=9:block_size=32k"),
        ("1large.iso", "level=1:block_size=128k"),
        ("2.iso", "version_2=on:block_size_v2=64k:susp_z2=off"),
        ("2z.iso", "version_2=on:block_size_v2=1m:susp_z2=on"),
    ] {
        run(
            dir,
            &format!("xorriso -outdev {image} -zisofs {how} -map tree / -set_filter_r --zisofs / -- -commit"),
        );
        check_compressed(dir, image);
    }
}

#[test]
fn zisofs_of_mkzftree_is_unpacked() {
    if !have(&["mkzftree", "genisoimage"]) {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    make_compressible(dir);
    run(dir, "mkzftree tree packed");
    run(dir, "genisoimage -quiet -R -z -o z.iso packed");
    check_compressed(dir, "z.iso");
}

#[test]
fn a_damaged_compressed_block_costs_only_itself() {
    if !have(&["xorriso"]) {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    make_compressible(dir);
    run(dir, "xorriso -outdev z.iso -map tree/numbers /numbers -set_filter --zisofs /numbers -- -commit");
    let mut bytes = fs::read(dir.join("z.iso")).unwrap();
    let magic = [0x37, 0xe4, 0x53, 0x96, 0xc9, 0xdb, 0xd6, 0x07];
    let start = bytes.windows(8).position(|window| window == magic).unwrap();
    let pointer = |index: usize| {
        let at = start + 16 + 4 * index;
        start + u32::from_le_bytes(bytes[at..at + 4].try_into().unwrap()) as usize
    };
    let (second, third) = (pointer(1), pointer(2));
    bytes[second + 20..third].fill(0x55);
    let tree = try_mount(memory_disk(bytes), "").unwrap();
    let file = tree.open(find(&*tree, "numbers").ino, OpenFlags::READ).unwrap();
    let original = fs::read(dir.join("tree/numbers")).unwrap();
    let mut block = vec![0; 32 << 10];
    assert_eq!(file.read_at(&mut block, 0), Ok(block.len()));
    assert!(block == original[..block.len()]);
    assert_eq!(file.read_at(&mut block, 32 << 10), Err(Errno::EIO));
    assert_eq!(file.read_at(&mut block, 64 << 10), Ok(block.len()));
    assert!(block == original[64 << 10..96 << 10]);
}

#[test]
fn boot_images_are_files_on_request() {
    if !have(&["xorriso"]) {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    let tree = dir.join("tree");
    fs::create_dir(&tree).unwrap();
    let (bios, efi) = (Random(1).bytes(2048), Random(2).bytes(40_960));
    fs::write(tree.join("bios.img"), &bios).unwrap();
    fs::write(tree.join("efi.img"), &efi).unwrap();
    fs::write(tree.join("loader.bin"), Random(4).bytes(30_000)).unwrap();
    run(
        dir,
        "xorriso -as mkisofs -quiet -R -o b.iso -c boot.cat -b bios.img -no-emul-boot -boot-load-size 4 \
         -eltorito-alt-boot -e efi.img -no-emul-boot \
         -eltorito-alt-boot -b loader.bin -no-emul-boot -boot-load-size 4 -boot-info-table tree",
    );
    let plain = mount(&dir.join("b.iso"), "");
    assert_eq!(plain.lookup(Ino::ROOT, "[BOOT]".as_ref()).err(), Some(Errno::ENOENT));
    let tree = mount(&dir.join("b.iso"), "eltorito");
    let names: Vec<_> = walk(&*tree).into_keys().filter(|path| path.starts_with("[BOOT]")).collect();
    let expected = ["", "/bios-1-noemul.img", "/bios-3-noemul.img", "/efi-2.img"];
    assert_eq!(names, expected.map(|name| PathBuf::from(format!("[BOOT]{name}"))));
    assert!(read(&*tree, "[BOOT]/bios-1-noemul.img") == bios);
    assert!(read(&*tree, "[BOOT]/efi-2.img") == efi);
    // The catalog says 2048 bytes; the boot information table within knows better.
    assert_eq!(read(&*tree, "[BOOT]/bios-3-noemul.img"), read(&*tree, "loader.bin"));
    assert_eq!(find(&*tree, "[BOOT]").attr.kind, Kind::Directory);
    assert_eq!(tree.parent(find(&*tree, "[BOOT]").ino), Ok(Ino::ROOT));

    let report = Iso9660.describe(&file_disk(&dir.join("b.iso")), Options::default()).unwrap();
    let Some(Value::Table(rows)) = report.find("boot_images") else { panic!("{report:?}") };
    assert_eq!(rows.len(), 3);
    assert_eq!(rows[1].find("platform"), Some(&Value::Text("EFI".into())));
}

#[test]
fn a_floppy_image_has_the_size_of_a_floppy() {
    if !have(&["genisoimage"]) {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    fs::create_dir(dir.join("tree")).unwrap();
    fs::write(dir.join("tree/floppy"), Random(5).bytes(1_474_560)).unwrap();
    run(dir, "genisoimage -quiet -R -b floppy -c cat -o f.iso tree");
    let tree = mount(&dir.join("f.iso"), "eltorito");
    assert!(read(&*tree, "[BOOT]/bios-1-floppy1440.img") == fs::read(dir.join("tree/floppy")).unwrap());
}

/// The image as a drive reads it raw: `head` in front of each sector's data, and zeros behind it.
fn raw(image: &[u8], head: &[u8], stride: usize) -> Vec<u8> {
    let mut bytes = Vec::new();
    for sector in image.chunks(2048) {
        let start = bytes.len();
        bytes.extend_from_slice(head);
        bytes.extend_from_slice(sector);
        bytes.resize(start + stride, 0);
    }
    bytes
}

#[test]
fn raw_sectors_of_every_kind_are_read() {
    if !have(&["xorriso"]) {
        return;
    }
    let dir = scratch_for_genisoimage();
    let dir = dir.path();
    run(dir, "xorriso -as mkisofs -quiet -R -J -o x.iso tree");
    let image = fs::read(dir.join("x.iso")).unwrap();
    let expected = walk(&*mount(&dir.join("x.iso"), ""));
    let large = fs::read(dir.join("tree/large")).unwrap();
    let mark = [&[0][..], &[255; 10], &[0, 0, 2, 0]].concat();
    let subheader = [0, 0, 8, 0, 0, 0, 8, 0];
    let mode1 = [&mark[..], &[1]].concat();
    let mode2 = [&mark[..], &[2], &subheader].concat();
    for (head, stride) in [(&mode1[..], 2352), (&mode2, 2352), (&mode1, 2448), (&subheader, 2336)] {
        let disk = memory_disk(raw(&image, head, stride));
        assert_eq!(Iso9660.probe(&disk), Ok(true), "{stride}");
        let tree = try_mount(disk, "").unwrap();
        assert!(walk(&*tree).keys().eq(expected.keys()), "{stride}");
        assert!(read(&*tree, "large") == large, "{stride}");
        assert!(content(&*tree, find(&*tree, "large").ino, 1000).unwrap() == large, "{stride}");
    }
    let mut damaged = raw(&image, &mode1, 2352);
    let at = image.windows(64).position(|window| window == &large[4096..4160]).unwrap() / 2048;
    damaged[at * 2352] = 1;
    let tree = try_mount(memory_disk(damaged), "").unwrap();
    let file = tree.open(find(&*tree, "large").ino, OpenFlags::READ).unwrap();
    assert_eq!(file.read_at(&mut [0; 2048], 0), Ok(2048));
    assert_eq!(file.read_at(&mut [0; 2048], 4096), Err(Errno::EIO));
}

/// A volume made by hand: sector 16 the primary descriptor, 17 the end of the set, 18 the root directory, and whatever
/// else a test puts in.
struct Builder {
    bytes: Vec<u8>,
    root: Vec<u8>,
}

const ROOT: u32 = 18;

fn both(value: u32) -> [u8; 8] {
    let mut bytes = [0; 8];
    bytes[..4].copy_from_slice(&value.to_le_bytes());
    bytes[4..].copy_from_slice(&value.to_be_bytes());
    bytes
}

fn record(name: &[u8], block: u32, len: u32, flags: u8, system_use: &[u8]) -> Vec<u8> {
    let mut bytes = vec![0; 33];
    bytes[2..10].copy_from_slice(&both(block));
    bytes[10..18].copy_from_slice(&both(len));
    bytes[18..25].copy_from_slice(&[124, 1, 1, 0, 0, 0, 0]);
    bytes[25] = flags;
    bytes[32] = name.len() as u8;
    bytes.extend_from_slice(name);
    bytes.resize(bytes.len().next_multiple_of(2), 0);
    bytes.extend_from_slice(system_use);
    bytes.resize(bytes.len().next_multiple_of(2), 0);
    bytes[0] = bytes.len() as u8;
    bytes
}

impl Builder {
    fn new(root_system_use: &[u8]) -> Self {
        let mut bytes = vec![0; 64 * 2048];
        let primary = &mut bytes[16 * 2048..17 * 2048];
        primary[..7].copy_from_slice(b"\x01CD001\x01");
        primary[80..88].copy_from_slice(&both(64));
        primary[128..132].copy_from_slice(&[0, 8, 8, 0]);
        primary[156..190].copy_from_slice(&record(&[0], ROOT, 2048, 2, &[]));
        bytes[17 * 2048..][..7].copy_from_slice(b"\xffCD001\x01");
        let mut root = record(&[0], ROOT, 2048, 2, root_system_use);
        root.extend(record(&[1], ROOT, 2048, 2, &[]));
        Self { bytes, root }
    }

    /// With Rock Ridge, of which the root says only that it is there.
    fn rock_ridge() -> Self {
        let mut fields = b"SP\x07\x01\xbe\xef\0ER\x12\x01\x0a\0\0\x01RRIP_1991A".to_vec();
        fields.extend(posix(0o40_755));
        Self::new(&fields)
    }

    fn add(mut self, name: &[u8], block: u32, len: u32, flags: u8, system_use: &[u8]) -> Self {
        self.root.extend(record(name, block, len, flags, system_use));
        self
    }

    fn put(mut self, sector: usize, bytes: &[u8]) -> Self {
        self.bytes[sector * 2048..][..bytes.len()].copy_from_slice(bytes);
        self
    }

    fn bytes(mut self) -> Vec<u8> {
        self.bytes[ROOT as usize * 2048..][..self.root.len()].copy_from_slice(&self.root);
        self.bytes
    }

    fn mount(self, options: &str) -> Arc<dyn veduta_api::Filesystem> {
        try_mount(memory_disk(self.bytes()), options).unwrap()
    }
}

fn posix(mode: u32) -> Vec<u8> {
    let mut field = b"PX\x24\x01".to_vec();
    for value in [mode, 1, 0, 0] {
        field.extend_from_slice(&both(value));
    }
    field
}

fn lookup_error(tree: &dyn veduta_api::Filesystem, name: &str) -> Option<Errno> {
    tree.lookup(Ino::ROOT, name.as_ref()).err()
}

/// A disk of which sector `n` holds the number `n` over and over, but for the sectors at its start.
struct Numbered(Vec<u8>);

impl BlockDevice for Numbered {
    fn geometry(&self) -> Geometry {
        Geometry::of_size(20 << 30)
    }
    fn read_at(&self, buf: &mut [u8], offset: u64) -> Result<()> {
        for (byte, at) in buf.iter_mut().zip(offset..) {
            *byte = match self.0.get(at as usize) {
                Some(byte) => *byte,
                None => (at / 2048).to_le_bytes()[at as usize % 8],
            };
        }
        Ok(())
    }
}

#[test]
fn a_file_of_more_than_4_gib_is_joined_from_its_extents() {
    const FULL: u32 = 0xffff_f800;
    let sections = |builder: Builder| {
        builder
            .add(b"BIG.;1", 100, FULL, 0x80, b"")
            .add(b"BIG.;1", 100 + FULL / 2048, FULL, 0x80, b"")
            .add(b"BIG.;1", 8_000_000, 5000, 0, b"")
            .add(b"ZLAST.;1", 50, 10, 0, b"")
    };
    let bytes = sections(Builder::new(b"")).bytes();
    let tree = try_mount(Disk::new(Arc::new(Numbered(bytes)), "numbered"), "").unwrap();
    assert_eq!(list(&*tree, Ino::ROOT, 9).unwrap().len(), 2);
    let big = find(&*tree, "big");
    let size = 2 * u64::from(FULL) + 5000;
    assert_eq!(big.attr.size, size);
    assert_eq!(tree.getattr(big.ino), Ok(big.attr));
    let file = tree.open(big.ino, OpenFlags::READ).unwrap();
    let mut buf = [0; 4096];
    for (offset, sector) in [
        (0, 100),
        (u64::from(FULL) - 2048, 100 + u64::from(FULL) / 2048 - 1),
        (u64::from(FULL), 100 + u64::from(FULL) / 2048),
        (2 * u64::from(FULL), 8_000_000),
    ] {
        assert_eq!(file.read_at(&mut buf, offset), Ok(4096));
        assert_eq!(buf[..8], u64::to_le_bytes(sector), "at {offset}");
    }
    // Over the border of two extents that do not touch, and over the end.
    assert_eq!(file.read_at(&mut buf, 2 * u64::from(FULL) - 8), Ok(4096));
    assert_eq!(buf[8..16], u64::to_le_bytes(8_000_000));
    assert_eq!(file.read_at(&mut buf, size - 10), Ok(10));
    assert_eq!(file.read_at(&mut buf, size), Ok(0));
}

#[test]
fn a_file_that_lacks_its_last_extent_is_damage() {
    let tree = Builder::new(b"").add(b"A.;1", 30, 2048, 0x80, b"").add(b"B.;1", 31, 10, 0, b"").mount("");
    assert_eq!(lookup_error(&*tree, "a"), Some(Errno::EUCLEAN));
    assert_eq!(list(&*tree, Ino::ROOT, 9).err(), Some(Errno::EUCLEAN));
}

#[test]
fn a_directory_in_itself_or_with_two_names_is_damage() {
    let sub =
        [record(&[0], 30, 2048, 2, b""), record(&[1], 18, 2048, 2, b""), record(b"LOOP", 30, 2048, 2, b"")];
    let tree = Builder::new(b"")
        .add(b"A", 30, 2048, 2, b"")
        .add(b"B", 30, 2048, 2, b"")
        .add(b"SELF", ROOT, 2048, 2, b"")
        .put(30, &sub.concat())
        .mount("");
    let sub = find(&*tree, "a");
    assert_eq!(tree.lookup(sub.ino, "loop".as_ref()).err(), Some(Errno::EUCLEAN));
    assert_eq!(lookup_error(&*tree, "self"), Some(Errno::EUCLEAN));
    assert_eq!(lookup_error(&*tree, "b"), Some(Errno::EUCLEAN));
}

#[test]
fn a_chain_of_continuation_areas_that_loops_is_damage() {
    let mut link = b"CE\x1c\x01".to_vec();
    [40, 0, 28].iter().for_each(|value| link.extend_from_slice(&both(*value)));
    let tree = Builder::rock_ridge().add(b"A.;1", 30, 10, 0, &link).put(40, &link).mount("");
    assert_eq!(lookup_error(&*tree, "a"), Some(Errno::EUCLEAN));
    assert_eq!(list(&*tree, Ino::ROOT, 9).unwrap().len(), 1, "it is still listed");
}

#[test]
fn what_cannot_be_read_says_so_when_it_is_opened() {
    let mut sparse = posix(0o100_644);
    sparse.extend(b"SF\x15\x01");
    sparse.extend(both(1));
    sparse.extend(both(5));
    sparse.push(1);
    let mut bytes = Builder::rock_ridge()
        .add(b"SPARSE.;1", 30, 10, 0, &sparse)
        .add(b"WOVEN.;1", 30, 10, 0, &posix(0o100_644))
        .add(b"FAR.;1", 5000, 10, 0, &posix(0o100_644))
        .bytes();
    let woven = bytes.windows(8).position(|window| window == b"WOVEN.;1").unwrap() - 33;
    (bytes[woven + 26], bytes[woven + 27]) = (2, 3);
    let tree = try_mount(memory_disk(bytes), "").unwrap();
    assert_eq!(find(&*tree, "sparse").attr.size, (1 << 32) + 5);
    for (name, expected) in [("sparse", Errno::EOPNOTSUPP), ("woven", Errno::EOPNOTSUPP)] {
        assert_eq!(tree.open(find(&*tree, name).ino, OpenFlags::READ).err(), Some(expected), "{name}");
    }
    let far = tree.open(find(&*tree, "far").ino, OpenFlags::READ).unwrap();
    assert_eq!(far.read_at(&mut [0; 10], 0), Err(Errno::EUCLEAN));
}

#[test]
fn hidden_and_associated_files_are_shown_as_asked() {
    let build = || {
        Builder::new(b"").add(b"A.;1", 30, 1, 4, b"").add(b"A.;1", 31, 2, 0, b"").add(b"H.;1", 32, 3, 1, b"")
    };
    let names = |options: &str| {
        let rows = list(&*build().mount(options), Ino::ROOT, 9).unwrap();
        rows.into_iter().map(|row| row.name.into_string().unwrap()).collect::<Vec<_>>()
    };
    assert_eq!(names(""), ["a", "h"]);
    assert_eq!(names("hide"), ["a"]);
    assert_eq!(names("hide,showassoc"), ["a;associated", "a"]);
    assert_eq!(names("unhide"), ["a;associated", "a", "h"]);
}

#[test]
fn owners_and_modes_are_as_chosen() {
    let attr = |options: &str, rock_ridge: bool| {
        let builder = if rock_ridge { Builder::rock_ridge() } else { Builder::new(b"") };
        let fields = if rock_ridge { posix(0o100_640) } else { Vec::new() };
        let tree = builder.add(b"A.;1", 30, 0x0500_0001, 0, &fields).mount(options);
        let (file, root) = (find(&*tree, "a").attr, tree.getattr(Ino::ROOT).unwrap());
        (file.perm.bits(), file.uid, file.size, root.perm.bits())
    };
    assert_eq!(attr("", false), (0o555, 0, 0x0500_0001, 0o555));
    assert_eq!(attr("mode=0644,dmode=711,uid=7,cruft", false), (0o644, 7, 1, 0o711));
    assert_eq!(attr("mode=0644,dmode=711", true), (0o640, 0, 0x0500_0001, 0o755));
    assert_eq!(attr("mode=0644,dmode=711,overriderockperm,uid=7", true), (0o644, 7, 0x0500_0001, 0o711));
}

#[test]
fn a_volume_that_cannot_be_mounted_says_why() {
    let message = |bytes: Vec<u8>| try_mount(memory_disk(bytes), "").err().unwrap().message;
    let with = |at: usize, new: &[u8]| {
        let mut bytes = Builder::new(b"").bytes();
        bytes[at..at + new.len()].copy_from_slice(new);
        bytes
    };
    for (bytes, part) in [
        (vec![0; 100], "no volume descriptor at sector 16"),
        (vec![0; 64 * 2048], "no volume descriptor at sector 16"),
        (with(16 * 2048, b"\x02"), "no primary volume descriptor (sector 16"),
        (with(16 * 2048 + 128, &[0, 16]), "blocks of 4096 bytes (sector 16, byte 128)"),
        (with(16 * 2048 + 156, &[200]), "the root: a directory record is longer"),
        (with(16 * 2048 + 158, &[0xff; 4]), "a directory lies outside of the image"),
        (with(18 * 2048 + 33, b"X"), "does not start with its own record (sector 18"),
        (with(16 * 2048 + 1, b"BEA01"), "UDF"),
    ] {
        let message = message(bytes);
        assert!(message.contains(part), "{message:?} lacks {part:?}");
    }
}

#[test]
fn a_cut_image_mounts_and_its_report_warns() {
    let mut bytes = Builder::new(b"").add(b"A.;1", 30, 10, 0, b"").bytes();
    bytes.truncate(20 * 2048);
    let report = Iso9660.describe(&memory_disk(bytes), Options::default()).unwrap();
    let Some(Value::List(warnings)) = report.find("warnings") else { panic!("{report:?}") };
    assert!(warnings[0].contains("90112 are missing"), "{warnings:?}");
}

#[test]
fn a_directory_of_many_thousands_is_found_in_by_name() {
    let mut sub = [record(&[0], 64, 0, 2, b""), record(&[1], 18, 2048, 2, b"")].concat();
    for number in 0..50_000 {
        let next = record(format!("F{number:06}.;1").as_bytes(), 30, number, 0, b"");
        if sub.len() % 2048 + next.len() > 2048 {
            sub.resize(sub.len().next_multiple_of(2048), 0);
        }
        sub.extend(next);
    }
    sub.resize(sub.len().next_multiple_of(2048), 0);
    let len = both(sub.len() as u32);
    sub[10..18].copy_from_slice(&len);
    let mut bytes = Builder::new(b"").add(b"SUB", 64, sub.len() as u32, 2, b"").bytes();
    bytes.extend(sub);
    let tree = try_mount(memory_disk(bytes), "").unwrap();
    let sub = find(&*tree, "sub").ino;
    assert_eq!(list(&*tree, sub, 1000).unwrap().len(), 50_000);
    for number in (0..50_000).step_by(7) {
        let entry = tree.lookup(sub, format!("f{number:06}").as_ref()).unwrap();
        assert_eq!(entry.attr.size, number);
    }
    assert_eq!(tree.lookup(sub, "f050000".as_ref()).err(), Some(Errno::ENOENT));
}
