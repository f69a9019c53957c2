//! What a copy-on-write tree tells of the directory that it shows: whoever looks there by himself, but for what was told, sees what the
//! tree shows. Random operations on trees that earlier mounts have changed; after each, all names are compared.
//!
//! `VIEWFS_SEEDS` says how many seeds are tried, `VIEWFS_SEED` which is the first.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test says by a panic what is wrong")]

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::ffi::{OsStr, OsString};
use std::fs;
use std::ops::ControlFlow;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, Weak};

use veduta_api::{
    Device, Differences, Entry, Errno, Filesystem, Ino, Kind, NewNode, OpenFlags, Perm, RenameFlags, SetAttr,
    SetTime, Timestamp, XattrMode,
};
use veduta_viewfs::{Mode, Place, Setup};

const NAMES: [&str; 5] = ["a", "b", "c", "d", "e"];

/// xorshift64*.
struct Random(u64);

impl Random {
    fn below(&mut self, end: usize) -> usize {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        ((self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 33) as usize) % end
    }
    fn name(&mut self) -> &'static str {
        NAMES[self.below(NAMES.len())]
    }
    fn path(&mut self) -> String {
        let depth = [1, 1, 2, 2, 3][self.below(5)];
        (0..depth).map(|_| self.name()).collect::<Vec<_>>().join("/")
    }
}

type Object = (u64, u64);

fn object(path: &Path) -> Option<Object> {
    fs::symlink_metadata(path).ok().map(|data| (data.dev(), data.ino()))
}

/// All paths below a directory of the host.
fn walk(root: &Path) -> BTreeSet<PathBuf> {
    let mut paths = BTreeSet::new();
    let mut dirs = vec![PathBuf::new()];
    while let Some(dir) = dirs.pop() {
        for entry in fs::read_dir(root.join(&dir)).unwrap() {
            let entry = entry.unwrap();
            let path = dir.join(entry.file_name());
            if entry.file_type().unwrap().is_dir() {
                dirs.push(path.clone());
            }
            paths.insert(path);
        }
    }
    paths
}

#[derive(Default)]
struct Heard {
    objects: BTreeSet<Object>,
    names: BTreeSet<OsString>,
    all: bool,
    /// What the upper layer has at each path, as it was before the operation, and where each object of the lower layer is.
    before: HashMap<PathBuf, Object>,
    places: HashMap<Object, Vec<PathBuf>>,
    upper: PathBuf,
    late: Vec<String>,
}

impl Heard {
    fn covers(&self, path: &Path) -> bool {
        path.ancestors().any(|path| self.names.contains(path.as_os_str()))
    }
    fn check_unchanged(&mut self, path: &Path) {
        // Not through a link that has taken the place of a directory.
        let mut above = path.ancestors().skip(1);
        let is_link = above.any(|path| fs::read_link(self.upper.join(path)).is_ok());
        let now = if is_link { None } else { object(&self.upper.join(path)) };
        if self.before.get(path).copied() != now {
            self.late.push(format!("{} was told too late", path.display()));
        }
    }
}

#[derive(Default)]
struct Listener(Mutex<Heard>);

impl Differences for Listener {
    fn object(&self, device: u64, ino: u64) {
        let mut heard = self.0.lock().unwrap();
        if heard.objects.insert((device, ino)) {
            // The copy of a file with hard links is seen under all of them as soon as it is found here.
            let own = Path::new(".veduta-work/links");
            for link in fs::read_dir(heard.upper.join(own)).into_iter().flatten() {
                let name = link.unwrap().file_name();
                if name.to_str().unwrap().split('-').nth(1) == Some(&format!("{ino:x}")) {
                    heard.check_unchanged(&own.join(name));
                }
            }
            for path in heard.places.get(&(device, ino)).cloned().unwrap_or_default() {
                heard.check_unchanged(&path);
            }
        }
    }
    fn name(&self, path: &OsStr) {
        let mut heard = self.0.lock().unwrap();
        let bytes = path.as_bytes();
        assert!(!bytes.is_empty() && !bytes.starts_with(b"/") && !bytes.ends_with(b"/"), "{path:?}");
        if heard.names.insert(path.to_owned()) {
            heard.check_unchanged(Path::new(path));
        }
    }
    fn all(&self) {
        self.0.lock().unwrap().all = true;
    }
}

fn new(kind: Kind) -> NewNode {
    NewNode {
        kind,
        perm: Perm::from_mode(if kind == Kind::Directory { 0o755 } else { 0o644 }),
        umask: 0o022,
        uid: rustix::process::geteuid().as_raw(),
        gid: rustix::process::getegid().as_raw(),
        rdev: Device::default(),
    }
}

/// A mounted tree, and its layers.
struct Case {
    tree: Arc<dyn Filesystem>,
    upper: PathBuf,
    lower: PathBuf,
}

/// A reference, given back.
struct Ref<'a>(&'a dyn Filesystem, Entry);

impl Drop for Ref<'_> {
    fn drop(&mut self) {
        if self.1.ino != Ino::ROOT {
            self.0.forget(self.1.ino, 1);
        }
    }
}

impl Case {
    fn mount(dir: &Path, setup: Setup) -> Self {
        let (upper, lower) = (dir.join("up"), dir.join("low"));
        let setup = Setup {
            mode: Mode::Cow,
            upper: Some(Place::open(&upper).unwrap()),
            lower: vec![Place::open(&lower).unwrap()],
            real_numbers: true,
            ..setup
        };
        Self { tree: setup.mount().unwrap(), upper, lower }
    }

    fn find(&self, path: &Path) -> Result<Ref<'_>, Errno> {
        let root = Entry { ino: Ino::ROOT, generation: 0, attr: self.tree.getattr(Ino::ROOT)? };
        let mut here = Ref(&*self.tree, root);
        for name in path {
            if here.1.attr.kind != Kind::Directory {
                return Err(Errno::ENOTDIR);
            }
            here = Ref(&*self.tree, self.tree.lookup(here.1.ino, name)?);
        }
        Ok(here)
    }

    /// Where a path leads to, links followed.
    fn resolve(&self, path: &Path) -> Result<Ref<'_>, Errno> {
        let mut left: Vec<OsString> = path.iter().rev().map(OsStr::to_owned).collect();
        let mut here = PathBuf::new();
        let mut links = 0;
        while let Some(name) = left.pop() {
            if name == "." {
                continue;
            }
            if name == ".." {
                here.pop();
                continue;
            }
            here.push(&name);
            let found = self.find(&here)?;
            if found.1.attr.kind == Kind::Symlink {
                links += 1;
                if links > 40 {
                    return Err(Errno::ELOOP);
                }
                let target = self.tree.readlink(found.1.ino)?;
                here.pop();
                left.extend(Path::new(&target).iter().rev().map(OsStr::to_owned));
            }
        }
        self.find(&here)
    }

    fn names(&self, dir: Ino) -> BTreeSet<OsString> {
        let mut names = BTreeSet::new();
        let opened = self.tree.opendir(dir).unwrap().unwrap();
        opened
            .read(0, &mut |entry| {
                names.insert(entry.name.to_owned());
                ControlFlow::Continue(())
            })
            .unwrap();
        names
    }

    fn merged(&self) -> BTreeSet<PathBuf> {
        let mut paths = BTreeSet::new();
        let mut dirs = vec![PathBuf::new()];
        while let Some(dir) = dirs.pop() {
            let ino = self.find(&dir).unwrap();
            for name in self.names(ino.1.ino) {
                let path = dir.join(name);
                if self.find(&path).unwrap().1.attr.kind == Kind::Directory {
                    dirs.push(path.clone());
                }
                paths.insert(path);
            }
        }
        paths
    }

    /// One random operation; what it was.
    fn operate(&self, random: &mut Random, listeners: &[Arc<Listener>]) -> String {
        let (one, two) = (random.path(), random.path());
        let what = random.below(22);
        let number = random.below(1000);
        let done = match what {
            17 => self.remove_all(Path::new(&one), listeners),
            _ => self.perform(what, Path::new(&one), Path::new(&two), number),
        };
        format!("operation {what} on {one} and {two}: {done:?}")
    }

    fn perform(&self, what: usize, one: &Path, two: &Path, number: usize) -> Result<(), Errno> {
        let tree = &*self.tree;
        let split = |path: &Path| -> Result<(Ref<'_>, OsString), Errno> {
            let above = self.find(path.parent().unwrap())?;
            if above.1.attr.kind != Kind::Directory {
                return Err(Errno::ENOTDIR);
            }
            Ok((above, path.file_name().unwrap().to_owned()))
        };
        let made = |entry: Entry| tree.forget(entry.ino, 1);
        match what {
            0 | 1 => {
                let (dir, name) = split(one)?;
                let (entry, file) = tree.create(dir.1.ino, &name, &new(Kind::File), OpenFlags::READ_WRITE)?;
                file.write_at(b"new", 0)?;
                made(entry);
            }
            2 | 3 => {
                let (dir, name) = split(one)?;
                made(tree.mkdir(dir.1.ino, &name, &new(Kind::Directory))?);
            }
            4 => {
                let (dir, name) = split(one)?;
                made(tree.symlink(dir.1.ino, &name, two.as_os_str(), &new(Kind::Symlink))?);
            }
            5 => {
                let (dir, name) = split(one)?;
                made(tree.mknod(dir.1.ino, &name, &new(Kind::Fifo))?);
            }
            6 | 7 => {
                let file = self.find(one)?;
                if file.1.attr.kind != Kind::File {
                    return Err(Errno::EISDIR);
                }
                tree.open(file.1.ino, OpenFlags::READ_WRITE)?.write_at(b"changed", number as u64)?;
            }
            8 => {
                let node = self.find(one)?;
                let size = (node.1.attr.kind == Kind::File).then_some(number as u64);
                tree.setattr(node.1.ino, &SetAttr { size, ..SetAttr::default() })?;
            }
            9 => {
                let node = self.find(one)?;
                let perm = Some(Perm::from_mode(0o700 | number as u32 & 0o77));
                if node.1.attr.kind != Kind::Symlink {
                    tree.setattr(node.1.ino, &SetAttr { perm, ..SetAttr::default() })?;
                }
            }
            10 => {
                let node = self.find(one)?;
                let mtime = Some(SetTime::To(Timestamp { seconds: number as i64, nanos: 0 }));
                tree.setattr(node.1.ino, &SetAttr { mtime, ..SetAttr::default() })?;
            }
            11 => {
                let node = self.find(one)?;
                tree.setxattr(node.1.ino, OsStr::new("user.x"), b"v", XattrMode::Set)?;
            }
            12 => {
                let node = self.find(one)?;
                let (dir, name) = split(two)?;
                if node.1.attr.kind == Kind::Directory {
                    return Err(Errno::EPERM);
                }
                made(tree.link(node.1.ino, dir.1.ino, &name)?);
            }
            13 => {
                let (dir, name) = split(one)?;
                let (entry, _file) = tree.tmpfile(dir.1.ino, &new(Kind::File), OpenFlags::READ_WRITE)?;
                if number % 2 == 0 {
                    made(tree.link(entry.ino, dir.1.ino, &name).inspect_err(|_| made(entry))?);
                }
                made(entry);
            }
            14 | 15 => {
                let (dir, name) = split(one)?;
                tree.unlink(dir.1.ino, &name)?;
            }
            16 => {
                let (dir, name) = split(one)?;
                tree.rmdir(dir.1.ino, &name)?;
            }
            _ => {
                if two.starts_with(one) || one.starts_with(two) {
                    return Err(Errno::EINVAL);
                }
                let (dir, name) = split(one)?;
                let (new_dir, new_name) = split(two)?;
                let flags =
                    RenameFlags { exchange: what == 21, no_replace: what == 20, ..RenameFlags::default() };
                tree.rename(dir.1.ino, &name, new_dir.1.ino, &new_name, flags)?;
            }
        }
        Ok(())
    }

    /// Several operations.
    fn remove_all(&self, path: &Path, listeners: &[Arc<Listener>]) -> Result<(), Errno> {
        let node = self.find(path)?;
        let dir = self.find(path.parent().unwrap())?;
        let name = path.file_name().unwrap();
        if node.1.attr.kind != Kind::Directory {
            return self.tree.unlink(dir.1.ino, name);
        }
        for below in self.names(node.1.ino) {
            self.remove_all(&path.join(below), listeners)?;
            listeners.iter().for_each(|listener| self.remember(listener));
        }
        self.tree.rmdir(dir.1.ino, name)
    }

    /// Whether what was told is all that differs. How many names of the lower layer were compared.
    fn check(&self, heard: &Heard) -> Result<usize, String> {
        if !heard.late.is_empty() {
            return Err(heard.late.join(", "));
        }
        let mut compared = 0;
        if heard.all {
            return Ok(compared);
        }
        let mut paths = walk(&self.lower);
        let below = paths.clone();
        paths.extend(self.merged());
        paths.insert(PathBuf::new());
        for path in &paths {
            if heard.covers(path) {
                continue;
            }
            let host = self.lower.join(path);
            let found = self.find(path);
            let Some(number) = object(&host) else {
                if found.is_ok() {
                    return Err(format!("{} is new and was not told", path.display()));
                }
                continue;
            };
            if !heard.objects.contains(&number) {
                compared += 1;
                let found = found.map_err(|error| format!("{}: {}", path.display(), error.desc()))?;
                self.compare(&host, &found.1).map_err(|what| format!("{}: {what}", path.display()))?;
            }
        }
        // Ways that lead through a link of the lower layer: what is found at their end.
        for link in below.iter().filter(|path| !heard.covers(path)) {
            let host = self.lower.join(link);
            let is_link = fs::symlink_metadata(&host).is_ok_and(|data| data.is_symlink());
            if !is_link || heard.objects.contains(&object(&host).unwrap()) {
                continue;
            }
            let mut ways = vec![link.clone()];
            for name in fs::read_dir(&host).into_iter().flatten() {
                ways.push(link.join(name.unwrap().file_name()));
            }
            for way in ways {
                let Some(number) = self.follow(&way, heard) else { continue };
                let found =
                    self.resolve(&way).map_err(|error| format!("{}: {}", way.display(), error.desc()))?;
                if found.1.attr.st_ino != number.1 {
                    return Err(format!("{} leads elsewhere", way.display()));
                }
            }
        }
        Ok(compared)
    }

    /// What a path leads to on the host, unless that, or a link on the way, was told.
    fn follow(&self, path: &Path, heard: &Heard) -> Option<Object> {
        let mut left: Vec<OsString> = path.iter().rev().map(OsStr::to_owned).collect();
        let mut here = self.lower.clone();
        for _ in 0..200 {
            let Some(name) = left.pop() else {
                return object(&here).filter(|number| !heard.objects.contains(number));
            };
            if name == "." {
                continue;
            }
            if name == ".." {
                here.pop();
                continue;
            }
            here.push(name);
            if let Ok(target) = fs::read_link(&here) {
                object(&here).filter(|number| !heard.objects.contains(number))?;
                here.pop();
                left.extend(target.iter().rev().map(OsStr::to_owned));
            }
        }
        None
    }

    fn compare(&self, host: &Path, entry: &Entry) -> Result<(), String> {
        let (data, attr) = (fs::symlink_metadata(host).unwrap(), self.tree.getattr(entry.ino).unwrap());
        for attr in [attr, entry.attr] {
            let device = attr.st_dev.map(|device| rustix::fs::makedev(device.major, device.minor));
            let shown = (device, attr.st_ino, attr.perm.bits() | attr.kind.mode_bits(), attr.nlink);
            let real = (Some(data.dev()), data.ino(), data.mode(), data.nlink() as u32);
            if shown != real {
                return Err(format!("is {shown:?} and not {real:?}"));
            }
            let shown = (attr.uid, attr.gid, attr.size, attr.mtime, attr.ctime);
            let time = |seconds, nanos: i64| Timestamp { seconds, nanos: nanos as u32 };
            let times = (time(data.mtime(), data.mtime_nsec()), time(data.ctime(), data.ctime_nsec()));
            let real = (data.uid(), data.gid(), data.size(), times.0, times.1);
            if shown != real {
                return Err(format!("is {shown:?} and not {real:?}"));
            }
        }
        match attr.kind {
            Kind::Symlink => {
                let target = fs::read_link(host).unwrap();
                if self.tree.readlink(entry.ino).unwrap() != target {
                    return Err("leads elsewhere".into());
                }
            }
            Kind::File => {
                let mut content = vec![0; 1 << 16];
                let file = self.tree.open(entry.ino, OpenFlags::READ).unwrap();
                let len = file.read_at(&mut content, 0).unwrap();
                content.truncate(len);
                if content != fs::read(host).unwrap() {
                    return Err("has another content".into());
                }
            }
            Kind::Directory => {
                let real: BTreeSet<OsString> =
                    fs::read_dir(host).unwrap().map(|entry| entry.unwrap().file_name()).collect();
                let shown = self.names(entry.ino);
                if shown != real {
                    return Err(format!("lists {shown:?} and not {real:?}"));
                }
            }
            _ => {}
        }
        Ok(())
    }

    fn listen(&self, listener: &Arc<Listener>) -> bool {
        {
            let mut heard = listener.0.lock().unwrap();
            heard.upper = self.upper.clone();
            heard.places.clear();
            for path in walk(&self.lower) {
                let number = object(&self.lower.join(&path)).unwrap();
                heard.places.entry(number).or_default().push(path);
            }
        }
        self.remember(listener);
        let heard: Arc<dyn Differences> = Arc::<Listener>::clone(listener);
        let shown = self.tree.shows(Arc::downgrade(&heard));
        assert!(shown.as_ref().is_none_or(|path| *path == self.lower.canonicalize().unwrap()), "{shown:?}");
        shown.is_some()
    }

    fn remember(&self, listener: &Listener) {
        let before = walk(&self.upper)
            .into_iter()
            .filter_map(|path| Some((path.clone(), object(&self.upper.join(path))?)));
        listener.0.lock().unwrap().before = before.collect();
    }
}

/// A lower layer: few names, with links of both kinds.
fn populate(root: &Path, random: &mut Random) {
    let mut files = Vec::new();
    let mut dirs = vec![(root.to_owned(), 0)];
    while let Some((dir, depth)) = dirs.pop() {
        for name in NAMES {
            let path = dir.join(name);
            match random.below(10) {
                0..=2 if depth < 3 => {
                    fs::create_dir(&path).unwrap();
                    dirs.push((path, depth + 1));
                }
                4..=6 => {
                    fs::write(&path, vec![b'l'; random.below(9000)]).unwrap();
                    let mode = [0o644, 0o600, 0o755, 0o444][random.below(4)];
                    fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
                    files.push(path);
                }
                7 => {
                    // Mostly to what is there.
                    let target = match files.is_empty() || random.below(4) == 0 {
                        true => random.path(),
                        false => {
                            let file: &PathBuf = &files[random.below(files.len())];
                            let whole = file.strip_prefix(root).unwrap();
                            let whole = if random.below(2) == 0 { whole } else { whole.parent().unwrap() };
                            whole.to_str().unwrap().to_owned()
                        }
                    };
                    symlink(format!("./{}{target}", "../".repeat(depth)), path).unwrap();
                }
                8 if !files.is_empty() => {
                    fs::hard_link(&files[random.below(files.len())], path).unwrap();
                }
                _ => {}
            }
        }
    }
}

fn setup(random: &mut Random) -> Setup {
    Setup {
        metacopy: random.below(3) == 0,
        no_redirect: random.below(4) > 0,
        no_index: random.below(3) == 0,
        user_xattr: random.below(2) == 0,
        ..Setup::default()
    }
}

/// Mounts that follow each other on one upper layer. How many names were compared.
fn rounds(seed: u64) -> usize {
    let mut random = Random(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1);
    for _ in 0..8 {
        random.below(2);
    }
    let dir = tempfile::tempdir().unwrap();
    fs::create_dir(dir.path().join("up")).unwrap();
    fs::create_dir(dir.path().join("low")).unwrap();
    populate(&dir.path().join("low"), &mut random);
    let user_xattr = random.below(2) == 0;
    let before = walk(&dir.path().join("low"));
    let mut compared = 0;
    for round in 0..3 {
        let case = Case::mount(dir.path(), Setup { user_xattr, ..setup(&mut random) });
        let mut listeners = Vec::new();
        for step in 0..25 {
            // The first listens from the beginning, the second begins when something differs already.
            if step == 0 || step == 10 {
                let listener = Arc::new(Listener::default());
                assert!(case.listen(&listener), "seed {seed}, round {round}");
                listeners.push(listener);
            }
            let done = case.operate(&mut random, &listeners);
            for (number, listener) in listeners.iter().enumerate() {
                match case.check(&listener.0.lock().unwrap()) {
                    Ok(count) => compared += count,
                    Err(what) => {
                        panic!(
                            "seed {seed}, round {round}, step {step}, listener {number}: {what}; after {done}"
                        )
                    }
                }
                case.remember(listener);
            }
        }
        case.tree.unmount().unwrap();
    }
    assert_eq!(before, walk(&dir.path().join("low")), "nothing was changed below");
    compared
}

#[test]
fn what_was_not_told_is_as_it_is_below() {
    let number = |name| std::env::var(name).ok().and_then(|text| text.parse::<u64>().ok());
    let first = number("VIEWFS_SEED").unwrap_or(1);
    let seeds = number("VIEWFS_SEEDS").unwrap_or(4);
    let compared: usize = (first..first + seeds).map(rounds).sum();
    assert!(compared > 100 * seeds as usize, "only {compared} names were not told");
}

fn case(dir: &Path, setup: Setup) -> Case {
    for name in ["up", "low/a/b"] {
        fs::create_dir_all(dir.join(name)).unwrap();
    }
    fs::write(dir.join("low/a/f"), "lower").unwrap();
    fs::write(dir.join("low/f"), "lower").unwrap();
    Case::mount(dir, setup)
}

fn told(case: &Case) -> (Arc<Listener>, bool) {
    let listener = Arc::new(Listener::default());
    let shown = case.listen(&listener);
    (listener, shown)
}

#[test]
fn little_is_told_of_little() {
    let dir = tempfile::tempdir().unwrap();
    let case = case(dir.path(), Setup::default());
    let (listener, shown) = told(&case);
    assert!(shown);
    let names = || listener.0.lock().unwrap().names.iter().cloned().collect::<Vec<_>>();
    let objects = || listener.0.lock().unwrap().objects.clone();
    let at = |path: &str| object(&case.lower.join(path)).unwrap();
    assert_eq!((names(), objects()), (vec![], BTreeSet::from([at("")])), "of an empty layer");
    // Reading, and opening to read, is no change.
    let f = case.find(Path::new("a/f")).unwrap();
    case.tree.open(f.1.ino, OpenFlags::READ).unwrap();
    // Neither is what fails.
    let root = case.tree.mkdir(Ino::ROOT, OsStr::new("a"), &new(Kind::Directory)).map(drop);
    assert_eq!(root, Err(Errno::EEXIST));
    let a = case.find(Path::new("a")).unwrap();
    assert_eq!(case.tree.rmdir(Ino::ROOT, OsStr::new("a")), Err(Errno::ENOTEMPTY));
    assert_eq!(case.tree.unlink(a.1.ino, OsStr::new("none")), Err(Errno::ENOENT));
    assert_eq!((names(), objects()), (vec![], BTreeSet::from([at("")])), "of what changed nothing");
    case.tree.open(f.1.ino, OpenFlags::READ_WRITE).unwrap();
    assert_eq!(names(), ["a/f"]);
    assert_eq!(objects(), BTreeSet::from([at(""), at("a"), at("a/f")]));
    // A new directory is one name, whatever is made in it.
    let made = case.tree.mkdir(a.1.ino, OsStr::new("new"), &new(Kind::Directory)).unwrap();
    case.tree.mkdir(made.ino, OsStr::new("newer"), &new(Kind::Directory)).unwrap();
    assert_eq!((names(), objects().len()), (vec!["a/f".into(), "a/new".into()], 3));
    assert!(!listener.0.lock().unwrap().all);
    // Whoever asks later hears all of it at once.
    let later = told(&case).0;
    assert_eq!(later.0.lock().unwrap().names.len(), 2);
    assert_eq!(later.0.lock().unwrap().objects, objects());
}

#[test]
fn a_directory_that_moves_is_too_much() {
    let dir = tempfile::tempdir().unwrap();
    let case = case(dir.path(), Setup::default());
    let listener = told(&case).0;
    case.tree.rename(Ino::ROOT, OsStr::new("a"), Ino::ROOT, OsStr::new("z"), RenameFlags::default()).unwrap();
    assert!(listener.0.lock().unwrap().all);
    let later = told(&case).0;
    assert!(later.0.lock().unwrap().all);
}

#[test]
fn trees_that_show_things_otherwise_show_no_directory() {
    let other = |change: &dyn Fn(&mut Setup, &Path)| {
        let dir = tempfile::tempdir().unwrap();
        let mut setup = Setup::default();
        for name in ["up", "low", "more"] {
            fs::create_dir(dir.path().join(name)).unwrap();
        }
        let place = |name: &str| Place::open(&dir.path().join(name)).unwrap();
        setup.mode = Mode::Cow;
        (setup.upper, setup.lower) = (Some(place("up")), vec![place("low")]);
        setup.real_numbers = true;
        change(&mut setup, dir.path());
        let tree = setup.mount().unwrap();
        let nobody: Weak<dyn Differences> = Weak::<Listener>::new();
        tree.shows(nobody).is_some()
    };
    assert!(other(&|_, _| {}));
    assert!(other(&|setup, _| setup.worm = true));
    assert!(!other(&|setup, _| setup.real_numbers = false));
    assert!(!other(&|setup, _| setup.mode = Mode::MinCow));
    assert!(!other(&|setup, _| setup.mode = Mode::Merge));
    assert!(!other(&|setup, _| setup.mode = Mode::Bind));
    assert!(!other(&|setup, _| setup.vstat = true));
    assert!(!other(&|setup, _| setup.renew = true));
    assert!(!other(&|setup, _| setup.disguised = true));
    assert!(!other(&|setup, _| setup.read_only = true));
    assert!(!other(&|setup, _| setup.hide = vec!["x".into()]));
    assert!(!other(&|setup, dir| setup.lower.push(Place::open(&dir.join("more")).unwrap())));
    // A store of the family says what is deleted.
    assert!(!other(&|_, dir| fs::create_dir(dir.join("up/.-")).unwrap()));
    // At these points the layer below is seen as well, or something else.
    let except = |setup: &mut Setup| setup.except = vec!["x".into()];
    assert!(other(&|setup, _| {
        except(setup);
        setup.below = Some(setup.lower[0].clone());
    }));
    assert!(!other(&|setup, dir| {
        except(setup);
        setup.below = Some(Place::open(&dir.join("more")).unwrap());
    }));
    // What is written to the upper layer is seen below.
    assert!(!other(&|setup, dir| {
        fs::create_dir(dir.join("up/low")).unwrap();
        setup.lower = vec![Place::open(&dir.join("up/low")).unwrap()];
    }));
}

#[test]
fn an_upper_layer_in_what_is_shown_is_told() {
    let dir = tempfile::tempdir().unwrap();
    fs::create_dir(dir.path().join("up")).unwrap();
    fs::write(dir.path().join("f"), "x").unwrap();
    let setup = Setup {
        mode: Mode::Cow,
        upper: Some(Place::open(&dir.path().join("up")).unwrap()),
        lower: vec![Place::open(dir.path()).unwrap()],
        real_numbers: true,
        ..Setup::default()
    };
    let tree = setup.mount().unwrap();
    let listener = Arc::new(Listener::default());
    let heard: Arc<dyn Differences> = Arc::<Listener>::clone(&listener);
    assert!(tree.shows(Arc::downgrade(&heard)).is_some());
    assert!(listener.0.lock().unwrap().covers(Path::new("up/f")));
    tree.unlink(Ino::ROOT, OsStr::new("f")).unwrap();
    let whiteout = object(&dir.path().join("up/f")).unwrap();
    assert!(listener.0.lock().unwrap().objects.contains(&whiteout), "the tree hides it");
}

#[test]
fn what_earlier_mounts_left_is_told_at_once() {
    let dir = tempfile::tempdir().unwrap();
    let first = case(dir.path(), Setup::default());
    first.remove_all(Path::new("a"), &[]).unwrap();
    first.tree.unmount().unwrap();
    drop(first);
    // Another mount's hidden directory, below; and a link to what was removed.
    fs::create_dir_all(dir.path().join("low/.veduta-work/work")).unwrap();
    let again = Case::mount(dir.path(), Setup::default());
    let listener = told(&again).0;
    let heard = listener.0.lock().unwrap();
    let names: BTreeMap<_, ()> = heard.names.iter().map(|name| (name.to_str().unwrap(), ())).collect();
    assert_eq!(names.into_keys().collect::<Vec<_>>(), [".veduta-work", "a"]);
    for path in ["", "a", "a/b", "a/f", ".veduta-work", ".veduta-work/work"] {
        assert!(heard.objects.contains(&object(&again.lower.join(path)).unwrap()), "{path}");
    }
    assert!(!heard.objects.contains(&object(&again.lower.join("f")).unwrap()) && !heard.all);
}
