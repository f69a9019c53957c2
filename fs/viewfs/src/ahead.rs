//! Directories read before they are asked for, while somebody walks a tree that the kernel has not in memory.
//!
//! find(1), tar and rm list a directory, look at what is in it, and go on with the first directory in it. What they wait for is the disk: the
//! blocks of the next directory, and the inodes of all that it names. So a thread of its own lists the directories that were named
//! last, and looks at their entries in the order of their inodes, which is that of the disk. Nothing is remembered here: the kernel does.
//!
//! It is begun when the walk is seen (each of a few listings is of a directory named by an earlier one) and the disk is
//! (a listing took longer than one from memory does), and ends as soon as the thread itself has to wait for nothing. It touches no times,
//! crosses no mount, and is only done for filesystems on a local disk.

use std::collections::{HashSet, VecDeque};
use std::ffi::OsStr;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex};
use rustix::fs::{AtFlags, Dir, Mode, OFlags, ResolveFlags, StatxFlags};
use veduta_api::Ino;

/// Listings from which is seen that a tree is walked.
const WALKED: u32 = 2;
/// Listings among which the one is looked for that named a directory.
const REMEMBERED: usize = 64;
/// Directories that one slow listing has read ahead.
const CREDIT: u32 = 16;
/// Directories that wait to be read ahead, at most.
const WAITING: usize = 1024;
/// Entries of a directory that are looked at, at most.
const LOOKED_AT: usize = 4096;

/// `f_type` of ext2, ext3 and ext4, XFS, btrfs, F2FS.
const LOCAL: [u32; 4] = [0xef53, 0x5846_5342, 0x9123_683e, 0xf2f5_2010];

/// A directory of a layer, by its path from the root of it.
type Task = (usize, PathBuf);

/// See the head of this file.
pub(crate) struct Ahead {
    shared: Arc<Shared>,
    thread: OnceLock<()>,
}

struct Shared {
    /// Of each layer the root and its device, if it may be read ahead.
    roots: Vec<Option<(OwnedFd, (u32, u32))>>,
    state: Mutex<State>,
    wake: Condvar,
}

#[derive(Default)]
struct State {
    /// The last is the next.
    waiting: VecDeque<Task>,
    /// Those of them that are still to be read.
    wanted: HashSet<Task>,
    listed: VecDeque<Ino>,
    descents: u32,
    credit: u32,
    ends: bool,
}

/// Whether so many entries in so much time did not come from memory.
fn is_slow(took: Duration, entries: usize) -> bool {
    took > Duration::from_micros(50 + 2 * entries as u64)
}

impl Ahead {
    /// `paths` are where the layers lie on the host system. `None` if there is none that may be read ahead.
    pub(crate) fn new(paths: impl Iterator<Item = Option<PathBuf>>) -> Option<Self> {
        let roots: Vec<_> = paths.map(|path| path.and_then(|path| open_root(&path))).collect();
        if roots.iter().all(Option::is_none) {
            return None;
        }
        let shared = Arc::new(Shared { roots, state: Mutex::default(), wake: Condvar::new() });
        Some(Self { shared, thread: OnceLock::new() })
    }

    /// A directory was listed. `parts` are its paths in the layers, `below` the directories that it names.
    pub(crate) fn listed<'a>(
        &self,
        dir: Ino,
        parent: Option<Ino>,
        parts: &(impl Iterator<Item = (usize, &'a OsStr)> + Clone),
        (took, entries): (Duration, usize),
        below: &(impl DoubleEndedIterator<Item = &'a OsStr> + Clone),
    ) {
        let mut state = self.shared.state.lock();
        let from_here = parent.is_some_and(|parent| state.listed.contains(&parent));
        state.descents = if from_here { state.descents.saturating_add(1) } else { 0 };
        if state.listed.len() >= REMEMBERED {
            state.listed.pop_front();
        }
        state.listed.push_back(dir);
        if is_slow(took, entries) {
            state.credit = CREDIT;
        }
        for (layer, path) in parts.clone() {
            if !state.wanted.is_empty() {
                state.wanted.remove(&(layer, relative(path)));
            }
            if state.descents < WALKED || state.credit == 0 || self.shared.roots[layer].is_none() {
                continue;
            }
            // The first that is named is walked first.
            for name in below.clone().rev() {
                let task = (layer, relative(path).join(name));
                if state.wanted.insert(task.clone()) {
                    state.waiting.push_back(task);
                }
            }
        }
        while state.waiting.len() > WAITING {
            if let Some(task) = state.waiting.pop_front() {
                state.wanted.remove(&task);
            }
        }
        if !state.waiting.is_empty() {
            self.thread.get_or_init(|| self.begin());
            self.shared.wake.notify_one();
        }
    }

    fn begin(&self) {
        let shared = Arc::clone(&self.shared);
        let begun = std::thread::Builder::new().name("viewfs-ahead".into()).spawn(move || shared.run());
        if let Err(error) = begun {
            tracing::debug!("directories are not read ahead: {error}");
        }
    }
}

impl Drop for Ahead {
    fn drop(&mut self) {
        self.shared.state.lock().ends = true;
        self.shared.wake.notify_one();
    }
}

impl Shared {
    fn run(&self) {
        while let Some(task) = self.next() {
            let begun = Instant::now();
            let looked_at = self.read(&task);
            let is_slow = looked_at.is_some_and(|entries| is_slow(begun.elapsed(), entries));
            let mut state = self.state.lock();
            state.wanted.remove(&task);
            state.credit = if is_slow { CREDIT } else { state.credit.saturating_sub(1) };
            if state.credit == 0 {
                state.waiting.clear();
                state.wanted.clear();
            }
        }
    }

    /// The next that nobody has listed meanwhile. `None` at the end.
    fn next(&self) -> Option<Task> {
        let mut state = self.state.lock();
        loop {
            if state.ends {
                return None;
            }
            match state.waiting.pop_back() {
                Some(task) if state.wanted.contains(&task) => return Some(task),
                Some(_) => {}
                None => self.wake.wait(&mut state),
            }
        }
    }

    /// Has the kernel read a directory, and the inodes of what is in it. How many entries were looked at; `None` if it was not done.
    fn read(&self, (layer, path): &Task) -> Option<usize> {
        let (root, device) = self.roots.get(*layer)?.as_ref()?;
        // What is mounted there, or would be mounted by a look at it, is left alone.
        let flags = AtFlags::SYMLINK_NOFOLLOW | AtFlags::NO_AUTOMOUNT;
        let stat = rustix::fs::statx(root, path, flags, StatxFlags::BASIC_STATS).ok()?;
        if (stat.stx_dev_major, stat.stx_dev_minor) != *device {
            return None;
        }
        let how = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::NOATIME | OFlags::CLOEXEC;
        let resolve = ResolveFlags::BENEATH
            | ResolveFlags::NO_XDEV
            | ResolveFlags::NO_SYMLINKS
            | ResolveFlags::NO_MAGICLINKS;
        let dir = rustix::fs::openat2(root, path, how, Mode::empty(), resolve).ok()?;
        let entries = Dir::read_from(&dir).ok()?.take(LOOKED_AT).map_while(Result::ok);
        let mut names: Vec<_> = entries.map(|entry| (entry.ino(), entry.file_name().to_owned())).collect();
        names.sort_unstable();
        for (_, name) in &names {
            let _ = rustix::fs::statx(&dir, name.as_c_str(), flags, StatxFlags::BASIC_STATS);
        }
        Some(names.len())
    }
}

/// The root of a layer, if it lies on a local disk.
fn open_root(path: &Path) -> Option<(OwnedFd, (u32, u32))> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let root = rustix::fs::open(path, flags, Mode::empty()).ok()?;
    let magic = rustix::fs::fstatfs(&root).ok()?.f_type as u32;
    let stat = rustix::fs::statx(&root, "", AtFlags::EMPTY_PATH, StatxFlags::BASIC_STATS).ok()?;
    LOCAL.contains(&magic).then_some((root, (stat.stx_dev_major, stat.stx_dev_minor)))
}

/// A path of a part, which begins with a slash or is empty, from the root of its layer.
fn relative(path: &OsStr) -> PathBuf {
    let path = path.as_bytes();
    PathBuf::from(OsStr::from_bytes(path.strip_prefix(b"/").unwrap_or(path)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ahead() -> Ahead {
        let roots = vec![open_root(Path::new("/"))];
        // Without a thread.
        let thread = OnceLock::from(());
        let shared = Arc::new(Shared { roots, state: Mutex::default(), wake: Condvar::new() });
        Ahead { shared, thread }
    }

    fn list(ahead: &Ahead, dir: u64, parent: u64, path: &str, micros: u64, below: &[&str]) -> Vec<String> {
        let part = [(0, OsStr::new(path))];
        let took = (Duration::from_micros(micros), below.len());
        let below = below.iter().map(OsStr::new);
        ahead.listed(Ino(dir), Some(Ino(parent)), &part.into_iter(), took, &below);
        let state = ahead.shared.state.lock();
        let wanted = state.waiting.iter().rev().filter(|task| state.wanted.contains(task));
        wanted.map(|(_, path)| path.display().to_string()).collect()
    }

    #[test]
    fn a_walk_from_the_disk_is_gone_ahead_of_and_nothing_else() {
        let ahead = ahead();
        if ahead.shared.roots[0].is_none() {
            return;
        }
        let none: [&str; 0] = [];
        assert_eq!(list(&ahead, 1, 1, "", 900, &["a", "b"]), none, "one listing is no walk");
        assert_eq!(list(&ahead, 2, 1, "/a", 900, &["c"]), none);
        assert_eq!(list(&ahead, 3, 2, "/a/c", 900, &["d", "e"]), ["a/c/d", "a/c/e"]);
        assert_eq!(
            list(&ahead, 4, 3, "/a/c/d", 900, &["f"]),
            ["a/c/d/f", "a/c/e"],
            "what was listed is left out"
        );
        assert_eq!(list(&ahead, 9, 8, "/x", 900, &["y"]), ["a/c/d/f", "a/c/e"], "that is somewhere else");
    }

    #[test]
    fn what_cannot_be_read_ahead_is_not_remembered() {
        let ahead = ahead();
        if ahead.shared.roots[0].is_none() {
            return;
        }
        for dir in 1..4 {
            list(&ahead, dir + 1, dir, "/no/such/directory", 900, &["a", "b", "c"]);
        }
        let state = || ahead.shared.state.lock();
        assert_eq!(state().waiting.len(), 3);
        std::thread::scope(|scope| {
            scope.spawn(|| ahead.shared.run());
            let begun = Instant::now();
            while !state().wanted.is_empty() && begun.elapsed() < Duration::from_secs(10) {
                std::thread::yield_now();
            }
            state().ends = true;
            ahead.shared.wake.notify_one();
        });
        let now = state();
        assert_eq!((now.wanted.len(), now.waiting.len(), now.credit), (0, 0, CREDIT - 3));
    }

    #[test]
    fn what_is_in_memory_is_not_read_ahead() {
        let ahead = ahead();
        for dir in 1..9 {
            let wanted = list(&ahead, dir + 1, dir, &format!("/{dir}"), 20, &["a"]);
            assert!(wanted.is_empty());
        }
    }
}
