//! A tree that is mounted, in this process.

use std::fs;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use fuser::Session;
use veduta_api::{Caching, Errno, Filesystem, Ino, MountError};

use crate::host::Host;
use crate::mount::{MountOptions, MountPoint, Place, mount};
use crate::pool::{self, Shared};

/// How long a busy mount may take to be let go before it is taken out of sight.
const PATIENCE: Duration = Duration::from_millis(50);
const TRIES: u32 = 20;

/// How long drivers may take to come back at the end.
const LAST_CALLS: Duration = Duration::from_secs(10);

/// KiB; how far the kernel reads ahead. Its default for FUSE is 128.
const READ_AHEAD: &str = "1024";

/// How a tree is served.
#[derive(Clone, Debug)]
pub struct ServeOptions {
    /// How it is mounted.
    pub mount: MountOptions,
    /// Threads that serve; if `None`, one, and as many as CPUs while there is work for them.
    pub workers: Option<usize>,
}

impl ServeOptions {
    /// As the [`MountOptions`] of that name.
    pub fn new(source: impl Into<std::ffi::OsString>, subtype: impl Into<String>) -> Self {
        Self { mount: MountOptions::new(source, subtype), workers: None }
    }
}

/// A mounted tree, served by threads of this process. Dropping it unmounts, lazily if need be.
pub struct Mounted {
    point: MountPoint,
    shared: Arc<Shared>,
    host: Arc<Host>,
    tree: Arc<dyn Filesystem>,
    ended: bool,
}

impl Mounted {
    /// Mounts `tree` on `point`, and returns when the mount answers.
    pub fn new(
        tree: Arc<dyn Filesystem>,
        point: impl AsRef<Path>,
        options: &ServeOptions,
    ) -> Result<Self, MountError> {
        let facts = tree.facts();
        let mut how = options.mount.clone();
        how.read_only |= facts.caching == Caching::Immutable;
        let root = tree.getattr(Ino::ROOT).map_err(|errno| {
            MountError::system(errno, format!("the root cannot be read: {}", errno.desc()))
        })?;
        let place = Place::find(point.as_ref(), root.kind)?;
        let checks = !facts.own_permissions || how.default_permissions;
        let (device, point) = mount(&place, root.kind, &how, checks)?;
        let shared = Arc::new(Shared::new());
        let host = Host::new(tree.clone(), how.read_only, how.allow, shared.clone());
        let give_up = |what: &str, error: std::io::Error| {
            let _ = point.unmount(true);
            MountError::system(Errno::EIO, format!("{what}: {error}"))
        };
        let session = Session::from_fd(host, device)
            .map_err(|error| give_up("the kernel and we do not agree on a protocol", error))?;
        let session = Arc::new(session);
        let host = session.filesystem().clone();
        host.set_notifier(session.notifier());
        host.follow();
        pool::start(session, &shared, pool::Crew::new(options.workers))
            .map_err(|error| give_up("no threads can be started", error))?;
        // The protocol was agreed on, and the workers are there: from here on every request is answered. It is not tried out: a
        // process that is killed while it waits for itself can never end, as the kernel neither answers nor lets go of the device.
        raise_read_ahead(&point);
        tracing::info!(source = ?how.source, point = ?point.path(), "mounted");
        Ok(Self { point, shared, host, tree, ended: false })
    }

    /// Where it is mounted.
    pub fn point(&self) -> &MountPoint {
        &self.point
    }

    /// Unmounts, and returns when everything is written out. A mount in use is taken out of sight, and its users find it gone: an error says so.
    pub fn unmount(mut self) -> Result<(), MountError> {
        let unmounted = self.take_down();
        unmounted.and(self.finish())
    }

    /// Returns when somebody has unmounted it, and everything is written out.
    pub fn wait(mut self) -> Result<(), MountError> {
        self.shared.wait_ended(None);
        self.finish()
    }

    /// Returns when somebody has unmounted it; then [`wait`](Self::wait) has it written out.
    pub(crate) fn wait_over(&self) {
        self.shared.wait_ended(None);
    }

    /// Something that ends the mount from another thread.
    pub(crate) fn ender(&self) -> Ender {
        Ender { point: self.point.clone(), shared: self.shared.clone() }
    }

    fn take_down(&self) -> Result<(), MountError> {
        for _ in 0..TRIES {
            match self.point.unmount(false) {
                // The kernel closes files a moment after their processes have.
                Err(error) if error.errno == Errno::EBUSY => std::thread::sleep(PATIENCE),
                done => return done,
            }
        }
        sync(&self.point);
        let busy = MountError::system(Errno::EBUSY, format!("{} was in use", self.point.path().display()));
        self.point.unmount(true)?;
        Err(busy)
    }

    /// After the end of the connection: whatever is open is closed, and the driver writes out.
    fn finish(&mut self) -> Result<(), MountError> {
        self.ended = true;
        // Aborted rather than unmounted: the mount is there, and answers nothing. One that answers is somebody else's, made
        // since on the same directory: the kernel gives the ids of ended mounts out again.
        if self.shared.is_given_up() || self.point.is_dead() {
            let _ = self.point.unmount(true);
        }
        self.shared.wait_ended(Some(Duration::from_secs(1)));
        self.shared.running.interrupt_all();
        if !self.shared.wait_quiet(LAST_CALLS) {
            tracing::error!("the driver does not come back from a call; what it has not written may be lost");
            return Err(MountError::system(Errno::EBUSY, "the driver does not come back from a call"));
        }
        self.host.close_all();
        let asked = catch_unwind(AssertUnwindSafe(|| self.tree.unmount()));
        tracing::info!(point = ?self.point.path(), "unmounted");
        match asked.unwrap_or(Err(Errno::EIO)) {
            Ok(()) => Ok(()),
            Err(errno) => {
                Err(MountError::system(errno, format!("writing out at the unmount failed: {}", errno.desc())))
            }
        }
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        if !self.ended {
            let _ = self.take_down();
            if let Err(error) = self.finish() {
                tracing::error!("{error}");
            }
        }
    }
}

/// Ends a mount from another thread: on a signal.
pub(crate) struct Ender {
    point: MountPoint,
    shared: Arc<Shared>,
}

impl Ender {
    /// Unmounts, so that the connection ends. If the mount is in use, it is taken out of sight; `false`: its users still have it.
    pub(crate) fn unmount(&self) -> bool {
        match self.point.unmount(false) {
            Ok(()) => return true,
            Err(error) if error.errno != Errno::EBUSY => tracing::error!("{error}"),
            Err(_) => {}
        }
        sync(&self.point);
        if let Err(error) = self.point.unmount(true) {
            tracing::error!("{error}");
        }
        false
    }

    /// Lets [`Mounted::wait`] return even though the connection is there.
    pub(crate) fn give_up(&self) {
        self.shared.give_up();
    }
}

/// Has the kernel write out what it holds back.
fn sync(point: &MountPoint) {
    if let Ok(root) = fs::File::open(point.path()) {
        let _ = nix::unistd::syncfs(&root);
    }
}

/// Reading far ahead makes sequential reads of whole images several times faster. Only root may ask for it.
fn raise_read_ahead(point: &MountPoint) {
    if let Some(device) = point.device() {
        let _ = fs::write(format!("/sys/class/bdi/{device}/read_ahead_kb"), READ_AHEAD);
    }
}
