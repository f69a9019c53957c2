//! What others on the host do to the objects on which mount points stand, for [the fast path](crate::fast): noticed by inotify(7),
//! whereupon the table is made anew. It is made anew too a moment after calls of the view that could have done such a thing.
//!
//! # Limits
//!
//! Changes from outside of the view are noticed a moment after they were made, and what cannot be watched (the limits of
//! inotify) is looked at every five seconds.

use std::collections::HashMap;
use std::io::{Read, Write};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use parking_lot::Mutex;
use rustix::fs::inotify::{self, ReadFlags, WatchFlags};
use veduta_api::Result;

use crate::mounts::{Table, shown, split};
use crate::view::View;

/// How long a call that gives rise to doubt has to be over.
const DOUBT: Duration = Duration::from_millis(200);
/// Directories below mount points that are watched.
const MOST_BELOW: usize = 64;

/// What is watched, and a bell.
pub(crate) struct Watch {
    inotify: OwnedFd,
    bell: (UnixStream, UnixStream),
    /// For each watch the names that matter; none: all do.
    watched: Mutex<HashMap<i32, Vec<Vec<u8>>>>,
}

impl Watch {
    pub(crate) fn new() -> Result<Self> {
        let flags = inotify::CreateFlags::CLOEXEC | inotify::CreateFlags::NONBLOCK;
        let inotify = inotify::init(flags).map_err(errno)?;
        let bell = UnixStream::pair().map_err(crate::standin::errno)?;
        bell.0.set_nonblocking(true).map_err(crate::standin::errno)?;
        bell.1.set_nonblocking(true).map_err(crate::standin::errno)?;
        Ok(Self { inotify, bell, watched: Mutex::default() })
    }

    /// A call is about to do something that might matter.
    pub(crate) fn ring(&self) {
        // A bell that is full has been heard.
        let _ = (&self.bell.0).write(&[1]);
    }

    /// Watches what the mount points of a table stand on.
    pub(crate) fn renew(&self, table: &Table) {
        let mut watched = self.watched.lock();
        for (watch, _) in watched.drain() {
            let _ = inotify::remove_watch(&self.inotify, watch);
        }
        let itself = WatchFlags::MOVE_SELF | WatchFlags::DELETE_SELF | WatchFlags::MASK_ADD;
        let appears = WatchFlags::CREATE | WatchFlags::MOVED_TO | WatchFlags::MASK_ADD;
        let mut below = 0;
        for mount in table.mounts() {
            if mount.is_plain() || mount.sees_through() {
                continue;
            }
            let mut above = split(&mount.target).0;
            let target = Path::new(std::ffi::OsStr::from_bytes(shown(&mount.target)));
            match std::fs::symlink_metadata(target) {
                Ok(data) if data.is_dir() => {
                    self.add_tree(&mut watched, target, itself | appears, &mut below);
                }
                Ok(_) => self.add(&mut watched, target, itself | WatchFlags::ATTRIB, None),
                Err(_) => {
                    let parent = Path::new(std::ffi::OsStr::from_bytes(shown(above)));
                    self.add(&mut watched, parent, appears, Some(split(&mount.target).1));
                }
            }
            while !above.is_empty() {
                self.add(&mut watched, Path::new(std::ffi::OsStr::from_bytes(above)), itself, Some(b""));
                above = split(above).0;
            }
        }
    }

    fn add_tree(
        &self,
        watched: &mut HashMap<i32, Vec<Vec<u8>>>,
        path: &Path,
        flags: WatchFlags,
        below: &mut usize,
    ) {
        self.add(watched, path, flags, None);
        for entry in std::fs::read_dir(path).into_iter().flatten().flatten() {
            *below += 1;
            if *below > MOST_BELOW {
                return;
            }
            if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                self.add_tree(watched, &entry.path(), flags, below);
            }
        }
    }

    /// Events of the object itself have no name.
    fn add(
        &self,
        watched: &mut HashMap<i32, Vec<Vec<u8>>>,
        path: &Path,
        flags: WatchFlags,
        name: Option<&[u8]>,
    ) {
        match inotify::add_watch(&self.inotify, path, flags | WatchFlags::DONT_FOLLOW) {
            Ok(watch) => {
                let new = !watched.contains_key(&watch);
                let names = watched.entry(watch).or_default();
                match name {
                    // All names matter from now on.
                    None => names.clear(),
                    Some(name) if new || !names.is_empty() => names.push(name.to_vec()),
                    Some(_) => {}
                }
            }
            Err(error) => tracing::debug!(path = %path.display(), "not watched: {error}"),
        }
    }

    /// Whether something happened that matters.
    fn has_happened(&self) -> bool {
        let mut buf = [MaybeUninit::uninit(); 4096];
        let mut reader = inotify::Reader::new(&self.inotify, &mut buf);
        let mut matters = false;
        while let Ok(event) = reader.next() {
            let flags = event.events();
            if flags.contains(ReadFlags::IGNORED) {
                continue;
            }
            let name = event.file_name().map_or(&b""[..], std::ffi::CStr::to_bytes);
            let watched = self.watched.lock();
            matters |= flags.contains(ReadFlags::QUEUE_OVERFLOW)
                || watched.get(&event.wd()).is_some_and(|names| {
                    names.is_empty() || name.is_empty() || names.iter().any(|known| known == name)
                });
        }
        matters
    }
}

fn errno(error: rustix::io::Errno) -> nix::errno::Errno {
    nix::errno::Errno::from_raw(error.raw_os_error())
}

/// Watches, until the process ends.
pub(crate) fn start(view: &Arc<View>) {
    if view.fast.watch().is_none() {
        return;
    }
    let of_thread = Arc::clone(view);
    let spawned = std::thread::Builder::new()
        .name("fast".into())
        .stack_size(256 << 10)
        .spawn(move || watch(&of_thread));
    if let Err(error) = spawned {
        tracing::warn!("no fast path: {error}");
        view.fast.end("mount points cannot be watched");
    }
}

fn watch(view: &View) {
    let Some(watch) = view.fast.watch() else { return };
    let mut doubt: Option<Instant> = None;
    loop {
        let time =
            doubt.map_or(View::TIDY, |since| (since + DOUBT).saturating_duration_since(Instant::now()));
        let time = PollTimeout::try_from(time + Duration::from_millis(1)).unwrap_or(PollTimeout::ZERO);
        let mut fds = [
            PollFd::new(watch.inotify.as_fd(), PollFlags::POLLIN),
            PollFd::new(watch.bell.1.as_fd(), PollFlags::POLLIN),
        ];
        let came = poll(&mut fds, time).unwrap_or(0);
        let mut rings = [0; 64];
        if (&watch.bell.1).read(&mut rings).is_ok_and(|len| len > 0) {
            doubt = Some(Instant::now());
        }
        let matters = watch.has_happened();
        if matters {
            view.fast.close();
        }
        let is_over = doubt.is_some_and(|since| since.elapsed() >= DOUBT);
        // Nothing for as long as mappings may stay unwritten: what could not be watched is looked at.
        let is_time = came == 0 && doubt.is_none() && view.fast.is_told();
        if (matters && doubt.is_none()) || is_over || is_time {
            doubt = None;
            let _changing = view.changing.lock();
            let table = view.table();
            if is_over {
                view.fast.settle();
            }
            if matters || is_over {
                view.fast.tell(view, &table);
            } else {
                view.fast.tell_if_changed(view, &table);
            }
        }
    }
}
