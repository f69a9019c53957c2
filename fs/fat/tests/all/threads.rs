//! Many at the same time.

use std::sync::atomic::{AtomicU64, Ordering};

use crate::support::{Make, Rng, folder, mount, read_all, seed};

#[test]
fn many_threads_work_on_one_volume() {
    let seed = seed();
    for make in [
        Make { kib: 40 << 10, exfat: false, words: "-F 16 -s 4" },
        Make { kib: 40 << 10, exfat: true, words: "-c 4096" },
    ] {
        let dir = folder();
        let Some(memory) = make.make(dir.path()) else { continue };
        let tree = mount(&memory, "");
        tree.mkdir("common").unwrap();
        let steps = AtomicU64::new(0);
        std::thread::scope(|scope| {
            for thread in 0..8_u64 {
                let (tree, steps) = (&tree, &steps);
                scope.spawn(move || {
                    let mut rng = Rng(seed.wrapping_add(thread * 99) | 1);
                    let own = format!("dir {thread}");
                    tree.mkdir(&own).unwrap();
                    for round in 0..60_u64 {
                        let name = format!("{own}/file {}", round % 10);
                        let len = rng.below(30_000) as usize + 1;
                        tree.put_file(&name, &vec![thread as u8 + 1; len]).unwrap();
                        let file = tree.open(&name).unwrap();
                        assert!(read_all(&*file).unwrap() == vec![thread as u8 + 1; len]);
                        // Names that all want.
                        let wanted = format!("common/{}", rng.below(5));
                        match rng.below(4) {
                            0 => drop(tree.create(&wanted)),
                            1 => drop(tree.unlink(&wanted)),
                            2 => drop(tree.rename(&name, &wanted)),
                            _ => drop(tree.list("common").unwrap()),
                        }
                        if rng.below(10) == 0 {
                            file.sync(false).unwrap();
                        }
                        steps.fetch_add(1, Ordering::Relaxed);
                    }
                });
            }
        });
        assert_eq!(steps.into_inner(), 480);
        tree.0.unmount().unwrap();
        let (clean, said) = make.fsck(&memory, dir.path());
        assert!(clean, "{said}");
    }
}
