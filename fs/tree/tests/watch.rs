//! What others change in a directory of the host system is told to who remembers it. In /dev/shm, since the kernel does not tell of changes everywhere.

#![allow(clippy::unwrap_used, reason = "a test says by a panic what is wrong")]
#![allow(clippy::type_complexity, reason = "cases are data")]

use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::Path;
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use veduta_api::{Changes, Filesystem, Ino, NewNode, OpenFlags, Perm, SetAttr};
use veduta_tree::hostdir::HostDir;

#[derive(Default)]
struct Heard(Mutex<BTreeSet<String>>);

impl Changes for Heard {
    fn name(&self, dir: Ino, name: &OsStr) {
        self.0.lock().insert(format!("{dir:?}/{}", name.to_str().unwrap()));
    }
    fn node(&self, ino: Ino) {
        self.0.lock().insert(format!("{ino:?}"));
    }
}

struct Case {
    place: tempfile::TempDir,
    tree: HostDir,
    heard: Arc<Heard>,
    dir: Ino,
}

impl Case {
    /// A directory `d` with a file `f`, which is watched.
    fn new() -> Self {
        let place = tempfile::tempdir_in("/dev/shm").unwrap();
        fs::create_dir(place.path().join("d")).unwrap();
        fs::write(place.path().join("d/f"), "1").unwrap();
        let tree = HostDir::open(place.path()).unwrap();
        let heard = Arc::new(Heard::default());
        let hears: Arc<dyn Changes> = heard.clone();
        assert!(tree.tell(Arc::downgrade(&hears)));
        let dir = tree.lookup(Ino::ROOT, OsStr::new("d")).unwrap().ino;
        let case = Self { place, tree, heard, dir };
        assert_eq!(case.tree.watch(dir), None, "once is no reason");
        std::thread::sleep(Duration::from_millis(600));
        assert!(case.tree.watch(dir).is_some());
        case
    }

    fn path(&self, name: &str) -> std::path::PathBuf {
        self.place.path().join("d").join(name)
    }

    fn look(&self, name: &str) -> Ino {
        self.tree.lookup(self.dir, OsStr::new(name)).unwrap().ino
    }

    /// Waits until all this was told.
    fn hears(&self, wanted: &[String]) {
        let begun = Instant::now();
        while !wanted.iter().all(|one| self.heard.0.lock().contains(one)) {
            assert!(begun.elapsed() < Duration::from_secs(20), "{wanted:?} of {:?}", self.heard.0.lock());
            std::thread::sleep(Duration::from_millis(20));
        }
        self.heard.0.lock().clear();
    }

    fn name(&self, name: &str) -> String {
        format!("{:?}/{name}", self.dir)
    }

    fn node(ino: Ino) -> String {
        format!("{ino:?}")
    }
}

#[test]
fn what_others_change_is_told() {
    let case = Case::new();
    let (dir, file) = (Case::node(case.dir), case.look("f"));
    let by_others: [(&str, &dyn Fn(&Path), Vec<String>); 5] = [
        ("write", &|f| fs::write(f, "22").unwrap(), vec![Case::node(file)]),
        (
            "chmod",
            &|f| fs::set_permissions(f, fs::Permissions::from_mode(0o600)).unwrap(),
            vec![Case::node(file)],
        ),
        ("make", &|f| fs::write(f.with_file_name("g"), "").unwrap(), vec![case.name("g"), dir.clone()]),
        (
            "rename",
            &|f| fs::rename(f.with_file_name("g"), f).unwrap(),
            vec![case.name("g"), case.name("f"), dir.clone()],
        ),
        ("remove", &|f| fs::remove_file(f).unwrap(), vec![case.name("f"), dir.clone()]),
    ];
    for (what, work, wanted) in by_others {
        // What was told twice of the step before is not taken for this one.
        std::thread::sleep(Duration::from_millis(1100));
        case.heard.0.lock().clear();
        assert!(case.tree.watched(case.dir, None).is_some(), "{what}");
        work(&case.path("f"));
        case.hears(&wanted);
    }
    fs::rename(case.path(""), case.place.path().join("e")).unwrap();
    case.hears(&[dir]);
    assert_eq!(case.tree.watched(case.dir, None), None);
}

#[test]
fn a_directory_that_is_changed_through_the_tree_is_left() {
    let own = fs::metadata("/proc/self").unwrap();
    let new = NewNode {
        kind: veduta_api::Kind::File,
        perm: Perm::from_mode(0o644),
        umask: 0,
        uid: own.uid(),
        gid: own.gid(),
        rdev: Default::default(),
    };
    let changes: [&(dyn Fn(&Case, Ino) -> bool + Sync); 7] = [
        &|case, _| case.tree.mknod(case.dir, OsStr::new("n"), &new).is_ok(),
        &|case, _| case.tree.mkdir(case.dir, OsStr::new("n"), &new).is_ok(),
        &|case, _| case.tree.create(case.dir, OsStr::new("n"), &new, OpenFlags::READ_WRITE).is_ok(),
        &|case, file| case.tree.link(file, Ino::ROOT, OsStr::new("n")).is_ok(),
        &|case, file| case.tree.open(file, OpenFlags::READ_WRITE).is_ok(),
        &|case, file| case.tree.setattr(file, &SetAttr { size: Some(0), ..SetAttr::default() }).is_ok(),
        &|case, _| {
            let (name, new) = (OsStr::new("f"), OsStr::new("n"));
            case.tree.rename(case.dir, name, Ino::ROOT, new, Default::default()).is_ok()
        },
    ];
    std::thread::scope(|scope| {
        for work in changes {
            scope.spawn(move || {
                let case = Case::new();
                let file = case.look("f");
                assert!(work(&case, file));
                assert_eq!(case.tree.watched(case.dir, None), None);
                case.hears(&[Case::node(case.dir), Case::node(file)]);
            });
        }
    });
    let case = Case::new();
    case.look("f");
    case.tree.unlink(case.dir, OsStr::new("f")).unwrap();
    assert_eq!(case.tree.watched(case.dir, None), None);
    case.hears(&[Case::node(case.dir)]);
}

#[test]
fn a_file_that_is_open_is_told_all_the_time() {
    let case = Case::new();
    let ino = case.look("f");
    let open = case.tree.open(ino, OpenFlags::READ).unwrap();
    case.hears(&[Case::node(ino)]);
    case.hears(&[Case::node(ino)]);
    drop(open);
}

#[test]
fn a_directory_in_which_a_file_is_written_is_not_watched() {
    let case = Case::new();
    let open = case.tree.open(case.look("f"), OpenFlags::READ_WRITE).unwrap();
    // Longer than a directory is left alone that was changed.
    std::thread::sleep(Duration::from_millis(5200));
    assert_eq!(case.tree.watch(case.dir), None);
    drop(open);
    assert!(case.tree.watch(case.dir).is_some());
}

#[test]
fn nothing_is_watched_for_who_does_not_hear() {
    let place = tempfile::tempdir_in("/dev/shm").unwrap();
    let tree = HostDir::open(place.path()).unwrap();
    for _ in 0..2 {
        assert_eq!(tree.watch(Ino::ROOT), None);
        std::thread::sleep(Duration::from_millis(600));
    }
    let heard: Arc<dyn Changes> = Arc::new(Heard::default());
    assert!(tree.tell(Arc::downgrade(&heard)));
    assert!(!tree.tell(Weak::clone(&Arc::downgrade(&heard))), "one hears");
}
