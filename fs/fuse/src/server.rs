//! Who serves a mount: its host answers to an extended attribute of the root, in no listing, with its process. The kernel tells nobody.
//!
//! With that, whoever unmounts can wait until everything is written, and look at what a mount covers, of which the server has a descriptor.

use std::ffi::CString;
use std::fs::File;
use std::io::Write;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, poll};
use rustix::process::{Pid, PidfdFlags, pidfd_open};

use crate::daemon::apart;
use crate::mountinfo::{self, MountLine};

/// Reading one of `security.` needs no permission for the node.
pub(crate) const NAME: &str = "security.veduta";

/// Bytes; longer values are none of ours.
const LONGEST: usize = 64;

/// How long a server may take to answer.
const PATIENCE: Duration = Duration::from_secs(1);

/// The value of the attribute: the process, and the namespace that its number is of.
pub(crate) fn value() -> Vec<u8> {
    format!("{} {}", std::process::id(), namespace().unwrap_or(0)).into_bytes()
}

fn namespace() -> Option<u64> {
    Some(nix::sys::stat::stat("/proc/self/ns/pid").ok()?.st_ino)
}

/// A process that serves a mount.
#[derive(Debug)]
pub struct Server {
    pid: u32,
    process: OwnedFd,
}

impl Server {
    /// Who serves the mount whose root a path leads to. `None`: a mount of others, or one that does not answer. Call it while there are no
    /// other threads.
    pub fn of(root: &Path) -> Option<Self> {
        let root = CString::new(root.as_os_str().as_bytes()).ok()?;
        // It may never answer, and who waits in a mount keeps it busy.
        let ask = |answer: &mut File| {
            let mut buffer = [0; LONGEST];
            if let Ok(len) = rustix::fs::getxattr(root.as_c_str(), NAME, &mut buffer[..]) {
                let _ = answer.write_all(buffer.get(..len).unwrap_or_default());
            }
        };
        let (pid, its_namespace) = parse(&apart(ask, PATIENCE)?)?;
        if its_namespace != namespace()? {
            return None;
        }
        let raw = i32::try_from(pid).ok()?;
        let process = pidfd_open(Pid::from_raw(raw)?, PidfdFlags::empty()).ok()?;
        Some(Self { pid, process })
    }

    /// The number of the process.
    pub fn pid(&self) -> u32 {
        self.pid
    }

    /// Waits until the process is no more. `false`: not yet.
    pub fn wait(&self, patience: Duration) -> bool {
        let deadline = Instant::now() + patience;
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            let Ok(timeout) = left.try_into() else { return false };
            match poll(&mut [PollFd::new(&self.process, PollFlags::IN)], Some(&timeout)) {
                // The process was stopped meanwhile.
                Err(rustix::io::Errno::INTR) => {}
                ended => return ended.is_ok_and(|count| count > 0),
            }
        }
    }

    /// The directories that it has open: where they can be reached, and what they are called. None where it may not be looked at.
    fn directories(&self) -> Vec<(PathBuf, PathBuf)> {
        let Ok(entries) = std::fs::read_dir(format!("/proc/{}/fd", self.pid)) else { return Vec::new() };
        let paths = entries.filter_map(|entry| Some(entry.ok()?.path()));
        let named = paths.filter_map(|path| Some((path.clone(), std::fs::read_link(path).ok()?)));
        named.filter(|(_, name)| name.is_absolute()).collect()
    }
}

fn parse(value: &[u8]) -> Option<(u32, u64)> {
    let (pid, namespace) = std::str::from_utf8(value).ok()?.split_once(' ')?;
    Some((pid.parse().ok()?, namespace.parse().ok()?))
}

/// What became of a path under mounts.
#[derive(Debug, PartialEq, Eq)]
pub enum Below {
    /// No mount of a union with that upper layer covers it.
    Open,
    /// One does; it can be reached here as long as that is mounted.
    At(PathBuf),
    /// One may, on this mount point, and what lies below it cannot be reached.
    Covered(PathBuf),
}

/// Where a path leads to below the mount of a union whose upper layer this directory is: also if others are mounted over that.
pub fn below(path: &Path, upper: &Path) -> Below {
    let (Ok(path), Ok(upper), Ok(mounts)) = (path.canonicalize(), upper.canonicalize(), mountinfo::read())
    else {
        return Below::Open;
    };
    let Some(wanted) = identity(&upper) else { return Below::Open };
    let over = |mount: &&MountLine| path.starts_with(&mount.point);
    // The topmost of the innermost.
    let Some(top) = mounts.iter().filter(over).max_by_key(|mount| mount.point.as_os_str().len()) else {
        return Below::Open;
    };
    let point = &top.point;
    let there: Vec<&MountLine> = mounts.iter().filter(|mount| mount.point == *point).collect();
    // Mounts of a view have no process that serves them.
    let is_in_view =
        |mount: &&MountLine| !mount.kind.starts_with("fuse") && Path::new(&mount.source) == upper;
    if there.iter().any(is_in_view) {
        return Below::Covered(point.clone());
    }
    let rest = path.strip_prefix(point).unwrap_or(Path::new(""));
    let at = |root: PathBuf| if rest.as_os_str().is_empty() { root } else { root.join(rest) };
    let mut root = point.clone();
    // From the topmost mount of the place downwards.
    for _ in there {
        let Some(server) = Server::of(&root) else { return Below::Open };
        let open = server.directories();
        if open.is_empty() {
            return Below::Covered(point.clone());
        }
        let is_its = open.iter().any(|(path, _)| identity(path) == Some(wanted));
        let covered = open.into_iter().find(|(_, name)| name == point).map(|(path, _)| path);
        match (is_its, covered) {
            (true, Some(covered)) => return Below::At(at(covered)),
            (true, None) => return Below::Covered(point.clone()),
            (false, Some(covered)) => root = covered,
            (false, None) => return Below::Open,
        }
    }
    Below::Open
}

fn identity(path: &Path) -> Option<(u64, u64)> {
    let stat = nix::sys::stat::stat(path).ok()?;
    Some((stat.st_dev, stat.st_ino))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_server_is_who_says_so() {
        assert_eq!(parse(&value()), Some((std::process::id(), namespace().unwrap())));
        for wrong in ["", "12", "12 x", "-1 2", "1 2 3"] {
            assert_eq!(parse(wrong.as_bytes()), None, "{wrong}");
        }
        assert!(Server::of(Path::new("/proc")).is_none());
    }

    #[test]
    fn what_is_no_mount_of_ours_is_open() {
        assert_eq!(below(Path::new("/proc/self"), Path::new("/tmp")), Below::Open);
        assert_eq!(below(Path::new("/there/is/none"), Path::new("/tmp")), Below::Open);
    }
}
