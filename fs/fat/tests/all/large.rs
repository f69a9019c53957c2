//! Large volumes and files, on a disk that holds only what is not zero.

use std::collections::HashMap;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Arc;

use parking_lot::RwLock;
use veduta_api::{BlockDevice, Disk, Errno, Geometry, Result};

use crate::support::{Make, Tree, folder, have, mount_disk, run, text};

const PAGE: usize = 1 << 16;

/// A disk of pages; those that are not there are zeros.
struct Sparse {
    size: u64,
    pages: RwLock<HashMap<u64, Box<[u8]>>>,
}

impl BlockDevice for Sparse {
    fn geometry(&self) -> Geometry {
        Geometry::of_size(self.size)
    }
    fn read_at(&self, buf: &mut [u8], offset: u64) -> Result<()> {
        let pages = self.pages.read();
        let mut done = 0;
        while done < buf.len() {
            let at = offset + done as u64;
            let within = (at % PAGE as u64) as usize;
            let step = (PAGE - within).min(buf.len() - done);
            let part = &mut buf[done..done + step];
            match pages.get(&(at / PAGE as u64)) {
                Some(page) => part.copy_from_slice(&page[within..within + step]),
                None => part.fill(0),
            }
            done += step;
        }
        Ok(())
    }
    fn write_at(&self, buf: &[u8], offset: u64) -> Result<()> {
        let mut pages = self.pages.write();
        let mut done = 0;
        while done < buf.len() {
            let at = offset + done as u64;
            let within = (at % PAGE as u64) as usize;
            let step = (PAGE - within).min(buf.len() - done);
            let page = pages.entry(at / PAGE as u64).or_insert_with(|| vec![0; PAGE].into());
            page[within..within + step].copy_from_slice(&buf[done..done + step]);
            done += step;
        }
        Ok(())
    }
    fn write_zeroes(&self, offset: u64, len: u64) -> Result<()> {
        let (first, last) = (offset.div_ceil(PAGE as u64), (offset + len) / PAGE as u64);
        if first >= last {
            return self.write_at(&vec![0; len as usize], offset);
        }
        let page = PAGE as u64;
        self.write_at(&vec![0; (first * page - offset) as usize], offset)?;
        self.write_at(&vec![0; (offset + len - last * page) as usize], last * page)?;
        self.pages.write().retain(|number, _| !(first..last).contains(number));
        Ok(())
    }
}

impl Sparse {
    /// A volume that a program makes, in a sparse file.
    fn make(make: &Make, dir: &Path) -> Option<Arc<Self>> {
        let program = if make.exfat { "mkfs.exfat" } else { "mkfs.fat" };
        if !have(program) {
            return None;
        }
        let image = dir.join("large.img");
        let file = std::fs::File::create_new(&image).unwrap();
        file.set_len(make.kib * 1024).unwrap();
        let mut words: Vec<&str> = make.words.split_whitespace().collect();
        words.push(image.to_str().unwrap());
        let made = run(program, &words);
        assert!(made.status.success(), "{}", text(&made));
        let file = std::fs::File::open(&image).unwrap();
        let disk = Self { size: make.kib * 1024, pages: RwLock::default() };
        // What mkfs writes lies at the start.
        for number in 0..(256 << 20) / PAGE as u64 {
            let mut page = vec![0; PAGE];
            file.read_exact_at(&mut page, number * PAGE as u64).unwrap();
            if page.iter().any(|byte| *byte != 0) {
                disk.pages.write().insert(number, page.into());
            }
        }
        std::fs::remove_file(&image).unwrap();
        Some(Arc::new(disk))
    }

    fn mount(self: &Arc<Self>) -> Tree {
        mount_disk(&Disk::new(Arc::clone(self) as Arc<dyn BlockDevice>, "sparse"), "").unwrap()
    }

    fn fsck(&self, make: &Make, dir: &Path) {
        let image = dir.join("check.img");
        let file = std::fs::File::create(&image).unwrap();
        file.set_len(self.size).unwrap();
        for (number, page) in &*self.pages.read() {
            file.write_all_at(page, number * PAGE as u64).unwrap();
        }
        let checked =
            run(if make.exfat { "fsck.exfat" } else { "fsck.fat" }, &["-n", image.to_str().unwrap()]);
        assert!(checked.status.success(), "{}", text(&checked));
        std::fs::remove_file(&image).unwrap();
    }
}

#[test]
fn a_file_of_fat_ends_one_byte_before_4_gib() {
    let make = Make { kib: 8 << 20, exfat: false, words: "-F 32 -s 2" };
    let dir = folder();
    let Some(disk) = Sparse::make(&make, dir.path()) else { return };
    let tree = disk.mount();
    let free = tree.0.statfs().unwrap().blocks_free;
    let file = tree.create("f").unwrap();
    let max = u64::from(u32::MAX);
    assert_eq!(tree.truncate("f", max + 1), Err(Errno::EFBIG));
    tree.truncate("f", max - 10).unwrap();
    assert_eq!(file.write_at(&[1; 100], max - 5), Ok(5));
    assert_eq!(file.write_at(&[1; 100], max), Err(Errno::EFBIG));
    let mut buf = [9; 12];
    assert_eq!(file.read_at(&mut buf, max - 8), Ok(8));
    assert_eq!(buf[..8], [0, 0, 0, 1, 1, 1, 1, 1]);
    drop(file);
    tree.0.unmount().unwrap();
    let tree = disk.mount();
    assert_eq!(tree.stat("f").unwrap().size, max);
    assert_eq!(tree.open("f").unwrap().read_at(&mut buf, max - 8), Ok(8));
    // fsck.fat 4.2 counts the bytes of a chain in 32 bits, and takes 4 GiB for none.
    tree.truncate("f", max - 2000).unwrap();
    tree.0.unmount().unwrap();
    disk.fsck(&make, dir.path());
    let tree = disk.mount();
    tree.truncate("f", 5000).unwrap();
    tree.0.sync().unwrap();
    assert_eq!(tree.0.statfs().unwrap().blocks_free, free - 5);
    tree.0.unmount().unwrap();
    disk.fsck(&make, dir.path());
}

#[test]
fn a_file_of_exfat_goes_on_behind_4_gib() {
    let make = Make { kib: 7 << 20, exfat: true, words: "-c 32768" };
    let dir = folder();
    let Some(disk) = Sparse::make(&make, dir.path()) else { return };
    let tree = disk.mount();
    let gib = 1 << 30;
    let file = tree.create("f").unwrap();
    tree.truncate("f", 5 * gib).unwrap();
    file.write_at(b"here", 5 * gib - 2).unwrap();
    // Something in the way of its clusters, so that it needs a chain.
    tree.put_file("g", &[1; 100_000]).unwrap();
    file.write_at(b"there", 5 * gib + 200_000).unwrap();
    tree.0.unmount().unwrap();
    disk.fsck(&make, dir.path());
    let tree = disk.mount();
    let file = tree.open("f").unwrap();
    let mut buf = [9; 6];
    assert_eq!(file.read_at(&mut buf, 5 * gib - 4), Ok(6));
    assert_eq!(&buf, b"\0\0here");
    assert_eq!(file.read_at(&mut buf, 5 * gib + 200_000), Ok(5));
    assert_eq!(&buf[..5], b"there");
    assert_eq!(tree.read_file("g").unwrap(), [1; 100_000]);
    tree.truncate("f", 4 * gib + 1).unwrap();
    tree.0.unmount().unwrap();
    disk.fsck(&make, dir.path());
}
