//! A view: its mounts, what stands for what, and the listeners through which its calls come.

use std::ffi::OsString;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use nix::unistd::Pid;
use parking_lot::{Mutex, RwLock};
use veduta_api::{Disk, Module, MountError, Options, World};

use crate::calls::Level;
use crate::fast::Fast;
use crate::mounts::Table;
use crate::serve::Source;
use crate::standin::{Key, StandIns};
use crate::trap::Mechanism;

/// The types that can be mounted, and the host's sources: what the program that runs the engine brings.
pub trait Catalogue: Send + Sync {
    /// The type of a name or an alias.
    fn find(&self, name: &str) -> Option<&'static dyn Module>;

    /// All types.
    fn all(&self) -> Vec<&'static dyn Module>;

    /// The type that a disk's content is of.
    fn probe(&self, disk: &Disk) -> Result<Option<&'static dyn Module>, MountError>;

    /// A partition of a disk.
    fn partition(&self, disk: &Disk, number: u32) -> Result<Disk, MountError>;

    /// The host's sources, after taking the options that choose a part of a disk.
    fn world(&self, options: &mut Options) -> Result<Box<dyn World>, MountError>;
}

/// A mount to be made.
#[derive(Clone, Debug)]
pub struct MountRequest {
    /// The type: `ext2`, `auto`, `bind`.
    pub type_name: String,
    /// The source.
    pub source: OsString,
    /// The target.
    pub target: OsString,
    /// The options, as after `-o`.
    pub options: String,
    /// Whether a bind shows the mounts below its source, too: `MS_REC`.
    pub recursive: bool,
}

/// One view.
pub(crate) struct View {
    /// The types.
    pub catalogue: Box<dyn Catalogue>,
    /// The mounts.
    table: RwLock<Arc<Table>>,
    /// One change of the table at a time.
    pub changing: Mutex<()>,
    /// What is decided in processes.
    pub(crate) fast: Fast,
    /// What processes hold for virtual nodes.
    pub stand_ins: StandIns,
    /// Memory files that are run as programs, and the program's path in the view.
    pub programs: Mutex<Vec<(Key, Vec<u8>)>>,
    /// Inodes of the host that were handed out for files of a mount.
    pub(crate) lent: crate::lent::Lent,
    /// Those of them that are shown with other numbers.
    pub(crate) renumbered: crate::renumbered::Renumbered,
    /// Files that were copied up while processes had what is below open.
    pub(crate) rereads: crate::reread::Rereads,
    /// Outcomes that did not arrive.
    pub(crate) kept: crate::kept::Kept,
    /// What is kept about processes.
    pub(crate) states: crate::states::States,
    /// Some process has a root of its own.
    pub(crate) has_roots: AtomicBool,
    /// The real fifos of virtual ones.
    pub(crate) fifos: Mutex<crate::sockets::Fifos>,
    /// Somebody was told that set-user-id programs are as others here.
    pub(crate) told_of_set_id: AtomicBool,
    /// What sockets in virtual trees are called.
    pub(crate) bound: Mutex<crate::sockets::Bound>,
    /// Mounts that were unmounted while they were in use.
    pub detached: Mutex<Vec<Arc<crate::mounts::Mount>>>,
    /// Where files can be made, for a moment.
    pub home: PathBuf,
    /// Directories of the host that are listed with mount points which they do not have.
    pub host_listings: Mutex<Vec<Arc<crate::mounts::Mount>>>,
    /// The name.
    pub name: RwLock<String>,
    /// Where calls come from.
    pub sources: Mutex<Vec<Arc<Source>>>,
    /// What is caught.
    level: RwLock<Level>,
    /// How many filters each process was given.
    pub filters: AtomicU32,
    /// One growth at a time.
    pub growing: Mutex<()>,
    /// Whoever grows has asked all processes to stop; they will get a filter of this level.
    pub coming: Mutex<Level>,
    /// Tasks whose next `execve` is our own doing.
    pub passing: Mutex<Vec<Pid>>,
    /// Held for reading by whoever stops a task, for writing by whoever reaps children.
    pub stopping: RwLock<()>,
    next_mount: AtomicU32,
    /// The engine runs as root.
    pub is_root: bool,
    /// Everybody in the view is told that they are root, and may be told to be somebody else.
    pub all_root: bool,
    /// Which families of calls are reported, and how.
    pub trace: Mutex<Option<String>>,
    /// Something is reported: looked at before the lock is taken.
    pub tracing: AtomicBool,
    /// How calls are caught, once that is known.
    pub mechanism: OnceLock<Mechanism>,
    /// Shadows of what is watched.
    pub watches: crate::inotify::Watches,
}

impl View {
    /// A view without mounts.
    pub(crate) fn new(
        catalogue: Box<dyn Catalogue>,
        name: String,
        home: PathBuf,
        planes: crate::fuseplane::Planes,
    ) -> Self {
        Self {
            catalogue,
            table: RwLock::default(),
            changing: Mutex::default(),
            fast: Fast::default(),
            stand_ins: StandIns::new(home.clone(), planes),
            programs: Mutex::default(),
            lent: crate::lent::Lent::default(),
            renumbered: crate::renumbered::Renumbered::default(),
            rereads: crate::reread::Rereads::default(),
            kept: crate::kept::Kept::default(),
            states: crate::states::States::default(),
            has_roots: AtomicBool::new(false),
            fifos: Mutex::default(),
            told_of_set_id: AtomicBool::new(false),
            bound: Mutex::default(),
            detached: Mutex::default(),
            home,
            host_listings: Mutex::default(),
            name: RwLock::new(name),
            sources: Mutex::default(),
            level: RwLock::new(Level::Idle),
            filters: AtomicU32::new(0),
            growing: Mutex::default(),
            coming: Mutex::new(Level::Idle),
            passing: Mutex::default(),
            stopping: RwLock::default(),
            next_mount: AtomicU32::new(1),
            is_root: nix::unistd::geteuid().is_root(),
            all_root: false,
            trace: Mutex::default(),
            tracing: AtomicBool::new(false),
            mechanism: OnceLock::new(),
            watches: crate::inotify::Watches::default(),
        }
    }

    /// The mounts, as they are now.
    pub(crate) fn table(&self) -> Arc<Table> {
        Arc::clone(&self.table.read())
    }

    /// Changes the mounts. The caller holds `changing`.
    pub(crate) fn set_table(&self, table: Table) {
        let table = Arc::new(table);
        self.fast.close();
        *self.table.write() = Arc::clone(&table);
        self.fast.tell(self, &table);
    }

    /// Has the fast path know what is caught now.
    pub(crate) fn tell_fast(&self) {
        if self.fast.is_told() {
            let _changing = self.changing.lock();
            self.fast.tell_if_changed(self, &self.table());
        }
    }

    /// Whether files with a descriptor of the host are handed out as such.
    pub(crate) fn takes_backing(&self) -> bool {
        self.stand_ins.planes.takes_backing()
    }

    /// The kernel-FUSE plane of a mount, if it has one.
    pub(crate) fn plane_of(&self, mount: &crate::mounts::Mount) -> Option<Arc<crate::fuseplane::Plane>> {
        let plane = self.stand_ins.planes.of(mount);
        if let Some(plane) = &plane {
            if self.fast.plane_device(plane.device()) {
                // Whoever is changing the table tells it afterwards.
                if let Some(_changing) = self.changing.try_lock() {
                    self.fast.tell_if_changed(self, &self.table());
                }
            }
        }
        plane
    }

    /// Whether more must be caught than is: files are emulated, and their reads and writes go past us.
    pub(crate) fn must_grow(&self) -> bool {
        self.level() < Level::Files && self.stand_ins.emulates.load(Ordering::Acquire)
    }

    /// Whether that may come to be, with what is mounted now. Loop devices, which are in all views without being listed, are hardly ever read by
    /// programs.
    pub(crate) fn may_emulate(&self) -> bool {
        let is_native = |mount: &crate::mounts::Mount| {
            mount.is_hidden || (mount.facts.backing && self.takes_backing()) || self.plane_of(mount).is_some()
        };
        self.level() < Level::Files && !self.table().mounts().iter().all(|mount| is_native(mount))
    }

    /// A number for a mount.
    pub(crate) fn new_mount_id(&self) -> u32 {
        self.next_mount.fetch_add(1, Ordering::Relaxed)
    }

    /// What is kept about a task, if it differs from what all have.
    pub(crate) fn state_of(&self, task: veduta_trace::Task) -> Option<Arc<crate::states::State>> {
        self.states.of(task)
    }

    /// What is caught.
    pub(crate) fn level(&self) -> Level {
        *self.level.read()
    }

    /// Says what is caught from now on.
    pub(crate) fn set_level(&self, level: Level) {
        *self.level.write() = level;
    }

    /// What is done from time to time: mappings are written back, and files that nobody uses are let go.
    pub(crate) fn tidy(&self) {
        for stand_in in self.stand_ins.all() {
            if let Err(errno) = stand_in.write_back() {
                tracing::error!("a shared mapping cannot be written: {}", errno.desc());
            }
        }
        self.stand_ins.collect_unlinked();
        self.stand_ins.collect(None, 64);
        self.stand_ins.make_room();
        self.lent.tidy();
        if let Some(_changing) = self.changing.try_lock() {
            // A plane may have been made, which closed the table.
            self.fast.tell_if_changed(self, &self.table());
        }
        let detached = std::mem::take(&mut *self.detached.lock());
        for mount in detached {
            if crate::mounting::is_busy(self, &mount) {
                self.detached.lock().push(mount);
            } else if let Err(errno) = crate::mounting::end(self, &mount) {
                tracing::error!(
                    "{}: not all could be written: {}",
                    crate::mounting::describe(&mount),
                    errno.desc()
                );
            }
        }
    }

    /// How often [`tidy`](Self::tidy) is called: as the kernel writes dirty pages.
    pub(crate) const TIDY: Duration = Duration::from_secs(5);

    /// Ends all mounts, newest first. Says what could not be written.
    pub(crate) fn unmount_all(&self) -> Vec<String> {
        let _changing = self.changing.lock();
        let detached = std::mem::take(&mut *self.detached.lock());
        let mut failures = Vec::new();
        loop {
            let table = self.table();
            let Some(mount) = table.mounts().last().cloned() else { break };
            self.set_table(table.without(mount.id));
            drop(table);
            if let Err(errno) = crate::mounting::end(self, &mount) {
                let target = String::from_utf8_lossy(crate::mounts::shown(&mount.target)).into_owned();
                failures.push(format!("{target}: not all could be written: {}", errno.desc()));
            }
        }
        for mount in detached {
            if let Err(errno) = crate::mounting::end(self, &mount) {
                failures.push(format!("{}: {}", crate::mounting::describe(&mount), errno.desc()));
            }
        }
        failures
    }
}
