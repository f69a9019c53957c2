//! What others change in a directory of the host system: inotify(7).
//!
//! A directory is watched from the second time that a host lists it, and for a minute after it was last of use. What hosts may then remember for half a minute
//! is told of when others change it. A quarter of a second may pass until it is, and it is told twice, with most of a second between: an answer that
//! was given before the change may reach the kernel after the first.
//!
//! The events of inotify do not say whose they are. So a directory in which something is changed through this tree is no longer watched, from before
//! the change on, and what hosts remember of it is told as changed, all of it, once: after half a second, when much of it is mostly gone anyway (`rm -r`).
//!
//! What inotify does not tell: writes through a mapping (until the file is closed), and what is done under another name of the same file. So files with several names are
//! not to be remembered, and those that are open through this tree are told as changed each second. Watched are only filesystems of which the kernel itself
//! makes every change.
//!
//! The state's lock is taken before the table's, and held for no system call but those of inotify. Hosts are told without any lock.

use std::collections::{HashMap, HashSet, VecDeque};
use std::ffi::{OsStr, OsString};
use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex};
use rustix::fs::inotify::{self, CreateFlags, ReadFlags, WatchFlags};
use veduta_api::{Changes, Ino};

use super::proc_path;
use super::table::{Place, Table};

/// How long hosts may remember what is watched.
const REMEMBERED: Duration = Duration::from_secs(30);

/// How long a directory is watched after it was last of use; by then hosts have forgotten.
const USED: Duration = Duration::from_secs(60);

/// How often events are looked at, while anything is watched.
const TICK: Duration = Duration::from_millis(250);

/// How much later an event is told again, and how long after its end everything that a watched directory has had.
const LATER: Duration = Duration::from_millis(500);

/// A directory that was listed is not worth watching before this.
const SECOND_LOOK: Duration = Duration::from_millis(500);

/// One that was changed through this tree, before this.
const CALM: Duration = Duration::from_secs(5);

/// Files that are open are told this often.
const OPEN: Duration = Duration::from_secs(1);

/// Directories that are watched, at most; and not more than a quarter of what the system allows the user.
const MOST: usize = 16_384;

/// Directories that were listed once. When there are more, all are forgotten.
const SEEN: usize = 16_384;

/// Filesystems of which all changes are made by this kernel, by the magic numbers of statfs(2).
const LOCAL: [u32; 7] = [
    0xef53,      // ext2, ext3, ext4
    0x5846_5342, // XFS
    0x9123_683e, // btrfs
    0x0102_1994, // tmpfs
    0xf2f5_2010, // F2FS
    0x2fc1_2fc1, // ZFS
    0xca45_1a4e, // bcachefs
];

/// See the head of this file.
pub(super) struct Watches {
    shared: Arc<Shared>,
}

struct Shared {
    /// How many directories are watched.
    count: AtomicUsize,
    /// How many are watched no more and still remembered.
    left: AtomicUsize,
    state: Mutex<State>,
    /// The thread has something to do, or is to end.
    changed: Condvar,
}

#[derive(Default)]
struct State {
    hears: Option<Weak<dyn Changes>>,
    /// Made with the first watch. `Some(None)`: it cannot be had.
    inotify: Option<Option<Arc<OwnedFd>>>,
    most: usize,
    watched: HashMap<Ino, Watched>,
    by_number: HashMap<i32, Ino>,
    /// Directories that are not watched, and when that would be of use.
    not_before: HashMap<Ino, Instant>,
    /// Directories that are watched no more, while hosts remember what they have had, since when.
    left: HashMap<Ino, Instant>,
    /// Names that were moved out of those, and are remembered as long as before.
    moved: Vec<(Instant, Place)>,
    ended: bool,
}

struct Watched {
    number: i32,
    used: Instant,
}

/// What a host is to be told.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
enum Told {
    Name(Ino, OsString),
    Node(Ino),
}

/// Whether inotify tells of every change on a filesystem.
pub(super) fn is_local(magic: u32) -> bool {
    LOCAL.contains(&magic)
}

impl Watches {
    pub(super) fn new() -> Self {
        let shared = Shared {
            count: AtomicUsize::new(0),
            left: AtomicUsize::new(0),
            state: Mutex::default(),
            changed: Condvar::new(),
        };
        Self { shared: Arc::new(shared) }
    }

    /// Who is told from now on. `false` if somebody is already.
    pub(super) fn tell(&self, hears: Weak<dyn Changes>) -> bool {
        let mut state = self.shared.state.lock();
        if state.hears.as_ref().is_some_and(|other| other.strong_count() > 0) {
            return false;
        }
        state.hears = Some(hears);
        true
    }

    /// A directory is about to be listed: whether it would be of use to watch it. If it is watched, that was of use.
    pub(super) fn wants(&self, dir: Ino) -> bool {
        let mut state = self.shared.state.lock();
        if state.hears.is_none() || state.watched.contains_key(&dir) {
            return false;
        }
        let now = Instant::now();
        if let Some(when) = state.not_before.get(&dir) {
            return now >= *when;
        }
        if state.not_before.len() >= SEEN {
            state.not_before = HashMap::new();
        }
        state.not_before.insert(dir, now + SECOND_LOOK);
        false
    }

    /// Watches a directory, if that is possible. `fd` is it.
    pub(super) fn add(&self, dir: Ino, fd: &OwnedFd, table: &Arc<Mutex<Table>>) {
        let mut state = self.shared.state.lock();
        if state.inotify.is_none() {
            state.most = most_watches();
            state.inotify = Some(start(&self.shared, table));
        }
        let Some(Some(inotify)) = state.inotify.clone() else { return };
        if state.watched.len() >= state.most {
            return;
        }
        let wanted = WatchFlags::CREATE
            | WatchFlags::DELETE
            | WatchFlags::MOVE
            | WatchFlags::MODIFY
            | WatchFlags::ATTRIB
            | WatchFlags::CLOSE_WRITE
            | WatchFlags::DELETE_SELF
            | WatchFlags::MOVE_SELF
            | WatchFlags::EXCL_UNLINK
            | WatchFlags::ONLYDIR;
        // Without the right to list it, or beyond what the user may watch.
        let Ok(number) = inotify::add_watch(&*inotify, proc_path(fd), wanted) else { return };
        // The same directory under a number that nobody refers to any more.
        if let Some(other) = state.by_number.insert(number, dir).filter(|other| *other != dir) {
            state.watched.remove(&other);
        }
        state.watched.insert(dir, Watched { number, used: Instant::now() });
        state.not_before.remove(&dir);
        self.shared.counted(&state);
        self.shared.changed.notify_one();
    }

    /// How long may be remembered what is learnt from now on of a directory.
    pub(super) fn remembered(&self, dir: Ino) -> Option<Duration> {
        if self.are_none() {
            return None;
        }
        let mut state = self.shared.state.lock();
        state.watched.get_mut(&dir)?.used = Instant::now();
        Some(REMEMBERED)
    }

    /// Whether nothing is watched: then a change disturbs nothing.
    pub(super) fn are_none(&self) -> bool {
        self.shared.count.load(Ordering::Acquire) == 0
    }

    /// Something is about to be changed in these directories through this tree.
    pub(super) fn disturb(&self, dirs: impl IntoIterator<Item = Ino>) {
        if self.are_none() {
            return;
        }
        let (now, mut state) = (Instant::now(), self.shared.state.lock());
        for dir in dirs {
            if state.leave(dir, now) {
                state.not_before.insert(dir, now + CALM);
            }
        }
        self.shared.counted(&state);
    }

    /// A name has moved through this tree, to this place.
    pub(super) fn moved(&self, from: Ino, parent: Ino, name: &OsStr) {
        if self.shared.left.load(Ordering::Acquire) == 0 {
            return;
        }
        let mut state = self.shared.state.lock();
        if state.left.contains_key(&from) {
            let place = Place { parent, name: name.to_owned() };
            state.moved.push((Instant::now(), place));
        }
    }
}

impl Drop for Watches {
    fn drop(&mut self) {
        self.shared.state.lock().ended = true;
        self.shared.changed.notify_one();
    }
}

impl Shared {
    fn counted(&self, state: &State) {
        self.count.store(state.watched.len(), Ordering::Release);
        self.left.store(state.left.len(), Ordering::Release);
    }
}

impl State {
    /// Ends the watch of a directory, whose names hosts still remember. Whether it was watched.
    fn leave(&mut self, dir: Ino, now: Instant) -> bool {
        let was = self.forget(dir);
        if was {
            self.left.insert(dir, now);
        }
        was
    }

    /// Ends the watch of a directory.
    fn forget(&mut self, dir: Ino) -> bool {
        let Some(watched) = self.watched.remove(&dir) else { return false };
        self.by_number.remove(&watched.number);
        if let Some(Some(inotify)) = &self.inotify {
            // It fails if the directory is gone, and the watch with it.
            let _ = inotify::remove_watch(&**inotify, watched.number);
        }
        true
    }

    /// Notes what one event says.
    fn take(&mut self, event: &Event, table: &Mutex<Table>, now: Instant, told: &mut HashSet<Told>) {
        if event.what.contains(ReadFlags::QUEUE_OVERFLOW) {
            // What was lost can be anything.
            let all: Vec<Ino> = self.watched.keys().copied().collect();
            for dir in all {
                self.leave(dir, now);
            }
            return;
        }
        let Some(&dir) = self.by_number.get(&event.number) else { return };
        let ends = ReadFlags::DELETE_SELF | ReadFlags::MOVE_SELF | ReadFlags::UNMOUNT | ReadFlags::IGNORED;
        let Some(name) = &event.name else {
            told.insert(Told::Node(dir));
            if event.what.intersects(ends) {
                self.leave(dir, now);
            }
            return;
        };
        let names = ReadFlags::CREATE | ReadFlags::DELETE | ReadFlags::MOVED_FROM | ReadFlags::MOVED_TO;
        let place = Place { parent: dir, name: name.clone() };
        told.extend(table.lock().at(&place).map(Told::Node));
        if event.what.intersects(names) {
            told.insert(Told::Node(dir));
            told.insert(Told::Name(dir, place.name));
        }
    }

    /// Takes out what was left long enough ago, and what of it is known.
    fn take_left(&mut self, now: Instant, table: &Mutex<Table>, told: &mut HashSet<Told>) {
        let due = |since: &Instant| now.duration_since(*since) >= LATER;
        let dirs: HashSet<Ino> =
            self.left.iter().filter(|(_, since)| due(since)).map(|(dir, _)| *dir).collect();
        self.left.retain(|_, since| !due(since));
        let moved: Vec<Place> =
            self.moved.iter().filter(|(since, _)| due(since)).map(|(_, place)| place.clone()).collect();
        self.moved.retain(|(since, _)| !due(since));
        if dirs.is_empty() && moved.is_empty() {
            return;
        }
        let table = table.lock();
        told.extend(dirs.iter().map(|dir| Told::Node(*dir)));
        let moved = moved.iter().filter_map(|place| Some((place, table.at(place)?)));
        for (place, ino) in table.below(&dirs).chain(moved) {
            told.insert(Told::Node(ino));
            told.insert(Told::Name(place.parent, place.name.clone()));
        }
    }

    /// Ends the watches that are of no use any more.
    fn age(&mut self, table: &Mutex<Table>, now: Instant) {
        let is_old = |watched: &Watched| now.duration_since(watched.used) > USED;
        let table = table.lock();
        let gone = self.watched.iter().filter(|(dir, watched)| is_old(watched) || !table.knows(**dir));
        let gone: Vec<Ino> = gone.map(|(dir, _)| *dir).collect();
        drop(table);
        for dir in gone {
            self.forget(dir);
        }
    }
}

fn most_watches() -> usize {
    let allowed = std::fs::read_to_string("/proc/sys/fs/inotify/max_user_watches");
    let allowed = allowed.ok().and_then(|text| text.trim().parse::<usize>().ok());
    MOST.min(allowed.unwrap_or(0) / 4)
}

/// The thread that reads events.
fn start(shared: &Arc<Shared>, table: &Arc<Mutex<Table>>) -> Option<Arc<OwnedFd>> {
    let inotify = Arc::new(inotify::init(CreateFlags::NONBLOCK | CreateFlags::CLOEXEC).ok()?);
    let reader = Reader {
        inotify: Arc::clone(&inotify),
        table: Arc::downgrade(table),
        again: VecDeque::new(),
        opened: Instant::now(),
    };
    let shared = Arc::clone(shared);
    let thread = std::thread::Builder::new().name("watch".into());
    thread.spawn(move || reader.run(&shared)).ok()?;
    Some(inotify)
}

struct Event {
    number: i32,
    what: ReadFlags,
    name: Option<OsString>,
}

/// What the thread has. The table is the tree's: it goes when the tree does, with the descriptors in it.
struct Reader {
    inotify: Arc<OwnedFd>,
    table: Weak<Mutex<Table>>,
    /// What is to be told again, and when.
    again: VecDeque<(Instant, Vec<Told>)>,
    /// When open files were last told.
    opened: Instant,
}

impl Reader {
    fn run(mut self, shared: &Shared) {
        loop {
            {
                let mut state = shared.state.lock();
                while !state.ended
                    && state.watched.is_empty()
                    && state.left.is_empty()
                    && state.moved.is_empty()
                    && self.again.is_empty()
                {
                    shared.changed.wait(&mut state);
                }
            }
            std::thread::sleep(TICK);
            let events = self.events();
            let now = Instant::now();
            let Some(table) = self.table.upgrade() else { return };
            let (told, hears) = {
                let mut state = shared.state.lock();
                if state.ended {
                    return;
                }
                let mut told = HashSet::new();
                events.iter().for_each(|event| state.take(event, &table, now, &mut told));
                state.age(&table, now);
                if now.duration_since(self.opened) >= OPEN {
                    self.opened = now;
                    let opened = table.lock().open_below(|dir| state.watched.contains_key(&dir));
                    told.extend(opened.into_iter().map(Told::Node));
                }
                let again = told.iter().cloned().collect();
                if !told.is_empty() {
                    self.again.push_back((now + LATER, again));
                }
                state.take_left(now, &table, &mut told);
                shared.counted(&state);
                (told, state.hears.as_ref().and_then(Weak::upgrade))
            };
            drop(table);
            let Some(hears) = hears else { continue };
            let mut tell = |told: &Told| match told {
                Told::Name(dir, name) => hears.name(*dir, name),
                Told::Node(ino) => hears.node(*ino),
            };
            told.iter().for_each(&mut tell);
            while self.again.front().is_some_and(|(when, _)| *when <= now) {
                self.again.pop_front().iter().for_each(|(_, told)| told.iter().for_each(&mut tell));
            }
        }
    }

    /// What has happened since the last look.
    fn events(&self) -> Vec<Event> {
        let mut buffer = vec![MaybeUninit::uninit(); 16_384];
        let mut reader = inotify::Reader::new(&*self.inotify, &mut buffer);
        let mut events = Vec::new();
        // The kernel keeps a bounded number of events, and whoever makes them all the time makes one overflow of them.
        while let Ok(event) = reader.next() {
            let name = event.file_name().map(|name| OsStr::from_bytes(name.to_bytes()).to_owned());
            events.push(Event { number: event.wd(), what: event.events(), name });
            if events.len() >= 65_536 {
                break;
            }
        }
        events
    }
}
