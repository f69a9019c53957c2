//! Damaged and hostile images: every call has an answer, whatever the bytes are.
//!
//! Needs mke2fs and debugfs. The seed of a failure is printed; `VEDUTA_DAMAGE_SEED` starts there, and
//! `VEDUTA_DAMAGE_CASES` sets how many images are tried (for a long run, with --release).

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod common;

use std::fs;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::sync::Arc;

use common::{Memory, Random, exercise, make, mount_disk, run};
use veduta_api::{Disk, Module, Options};
use veduta_ext2::Ext2;

fn number(name: &str, default: u64) -> u64 {
    std::env::var(name).ok().and_then(|value| value.parse().ok()).unwrap_or(default)
}

/// A tree with one of everything that has a structure of its own.
fn plant(folder: &Path) {
    fs::create_dir_all(folder.join("many")).unwrap();
    for index in 0..200 {
        fs::write(folder.join(format!("many/a-name-long-enough-for-several-blocks-{index}")), "").unwrap();
    }
    fs::create_dir_all(folder.join("small/smaller")).unwrap();
    fs::write(folder.join("small/text"), "inline, where there is such a thing").unwrap();
    fs::write(folder.join("small/more"), vec![7; 130]).unwrap();
    let pieces = fs::File::create(folder.join("pieces")).unwrap();
    for index in 0..40u64 {
        std::os::unix::fs::FileExt::write_at(&pieces, b"data", index * 9000).unwrap();
    }
    pieces.set_len(1 << 20).unwrap();
    std::os::unix::fs::symlink("t".repeat(50), folder.join("fast")).unwrap();
    std::os::unix::fs::symlink("t".repeat(150), folder.join("slow")).unwrap();
}

/// Images without checksums (which would catch most damage at the door), and one with.
fn images(folder: &Path) -> Vec<(&'static str, Vec<u8>)> {
    let tree = folder.join("tree");
    plant(&tree);
    let tree = tree.to_str().unwrap();
    let kinds: [(&str, &[&str]); 5] = [
        ("ext2", &["-t", "ext2", "-b", "1024"]),
        ("ext3", &["-t", "ext3", "-b", "1024"]),
        ("ext4", &["-t", "ext4", "-b", "1024", "-O", "^metadata_csum,64bit,large_dir,ea_inode"]),
        (
            "inline",
            &["-t", "ext4", "-b", "1024", "-O", "^metadata_csum,inline_data,casefold,meta_bg,^resize_inode"],
        ),
        ("sums", &["-t", "ext4", "-b", "2048", "-O", "metadata_csum"]),
    ];
    let make_one = |(name, arguments): (&'static str, &[&str])| {
        let image = folder.join(name);
        make(&image, 3 << 20, &[arguments, &["-N", "512", "-d", tree]].concat());
        let path = image.to_str().unwrap();
        let attributes =
            format!("ea_set /pieces user.short value\nea_set /pieces user.long {}\n", "v".repeat(300));
        fs::write(folder.join("script"), attributes).unwrap();
        run("debugfs", &["-w", "-f", folder.join("script").to_str().unwrap(), path]);
        // Indexes directories; a changed filesystem is its success.
        let _ = std::process::Command::new("/sbin/e2fsck").args(["-fyD", path]).output().unwrap();
        if name == "ext3" {
            let script = "jo\njw -b 1,2,5 /dev/zero\njc\n";
            fs::write(folder.join("script"), script).unwrap();
            run("debugfs", &["-w", "-f", folder.join("script").to_str().unwrap(), path]);
        }
        (name, fs::read(image).unwrap())
    };
    kinds.into_iter().map(make_one).collect()
}

/// Images of `images/make` too, for a long run: those with journals to replay are hard to make otherwise.
fn more_images() -> Vec<(&'static str, Vec<u8>)> {
    const SIZE_MAX: u64 = 40 << 20;
    let Some(folder) = std::env::var_os("VEDUTA_IMAGES") else { return Vec::new() };
    let files = fs::read_dir(folder).unwrap().map(|file| file.unwrap().path());
    let wanted = files.filter(|path| {
        let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        name.starts_with("ext") && name.ends_with(".img") && path.metadata().unwrap().len() <= SIZE_MAX
    });
    wanted.map(|path| ("of images/make", fs::read(path).unwrap())).collect()
}

/// An image, and the offsets of the pieces of 64 bytes in which there is something.
struct Victim {
    name: &'static str,
    bytes: Arc<Vec<u8>>,
    places: Vec<usize>,
}

impl Victim {
    fn new((name, bytes): (&'static str, Vec<u8>)) -> Self {
        let pieces = bytes.chunks_exact(64).enumerate();
        let used = pieces.filter(|(_, piece)| piece.iter().any(|byte| *byte != 0));
        let places = used.map(|(index, _)| index * 64).collect();
        Self { name, bytes: Arc::new(bytes), places }
    }

    /// Changes a few bytes, mostly where there is something.
    fn damage(&self, random: &mut Random) -> Disk {
        const VALUES: [u32; 8] = [0, 1, 0x7fff_ffff, 0x8000_0000, u32::MAX, 0xffff, 3000, 0x0001_0000];
        let mut changed = Vec::new();
        for _ in 0..=random.below(6) {
            let place = match random.below(4) {
                0 => 1024 + random.below(256),
                _ => self.places[random.below(self.places.len())] + random.below(64),
            };
            match random.below(3) {
                0 => changed.push((place, random.below(256) as u8)),
                1 => changed.push((place, self.bytes[place] ^ 1 << random.below(8))),
                _ => changed.extend((place & !3..).zip(VALUES[random.below(VALUES.len())].to_le_bytes())),
            }
        }
        Disk::new(Arc::new(Memory { bytes: Arc::clone(&self.bytes), changed }), "damaged")
    }
}

#[test]
fn no_damage_makes_a_call_panic_or_go_on_for_ever() {
    let folder = tempfile::tempdir().unwrap();
    let victims: Vec<Victim> =
        images(folder.path()).into_iter().chain(more_images()).map(Victim::new).collect();
    let first = number("VEDUTA_DAMAGE_SEED", 1);
    let (mut mounted, mut slowest) = (0, (std::time::Duration::ZERO, 0));
    for seed in first..first + number("VEDUTA_DAMAGE_CASES", 400) {
        let mut random = Random::new(seed);
        let victim = &victims[random.below(victims.len())];
        let disk = victim.damage(&mut random);
        let began = std::time::Instant::now();
        let result = catch_unwind(AssertUnwindSafe(|| {
            let _ = Ext2.probe(&disk);
            let _ = Ext2.describe(&disk, Options::default());
            mount_disk(disk.clone(), "").map(|tree| exercise::walk(&*tree))
        }));
        slowest = slowest.max((began.elapsed(), seed));
        mounted += usize::from(matches!(result, Ok(Ok(_))));
        assert!(result.is_ok(), "seed {seed}, image {}", victim.name);
    }
    eprintln!(
        "{mounted} of the images could be mounted; the slowest took {:?} (seed {})",
        slowest.0, slowest.1
    );
}

#[test]
fn every_prefix_of_an_image_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let (_, image) = images(folder.path()).swap_remove(4);
    for len in [0, 1, 1023, 1024, 1100, 2047, 2048, 4096, 100_000, image.len() - 1] {
        let disk = Disk::new(
            Arc::new(Memory { bytes: Arc::new(image[..len].to_vec()), changed: Vec::new() }),
            "cut",
        );
        assert!(mount_disk(disk, "").is_err(), "{len}");
    }
}
