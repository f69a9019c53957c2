//! `veduta disk serve`: a disk on a Unix socket, by NBD.

use std::fs;
use std::os::unix::fs::FileTypeExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::sync::mpsc;
use std::thread;

use nix::sys::signal::{SigSet, Signal};
use veduta_api::Disk;

use crate::failure::Failure;

/// Why serving ends.
enum End {
    Signal,
    /// The client was the first to leave.
    Left,
    Failed(std::io::Error),
}

/// Serves until a signal comes, or until the first client has left (`once`). Then the disk is flushed, and the socket removed.
pub(crate) fn nbd(disk: &Disk, socket: &Path, once: bool) -> Result<(), Failure> {
    let failed = |error: &std::io::Error| Failure::system(format!("{}: {error}", socket.display()));
    let signals = SigSet::from_iter([Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP]);
    // Before the first thread, so that all have it.
    signals
        .thread_block()
        .map_err(|errno| Failure::system(format!("signals cannot be set up: {}", errno.desc())))?;
    remove_stale(socket);
    let listener = UnixListener::bind(socket).map_err(|error| failed(&error))?;
    let (ends, ended) = mpsc::channel();
    let by_signal = ends.clone();
    thread::spawn(move || {
        let _ = signals.wait();
        let _ = by_signal.send(End::Signal);
    });
    let served = disk.clone();
    thread::spawn(move || {
        let error = accept(&listener, &served, &ends, once);
        let _ = ends.send(End::Failed(error));
    });
    let end = ended.recv();
    let _ = fs::remove_file(socket);
    let flushed = if disk.is_read_only() { Ok(()) } else { disk.flush() };
    match (end, flushed) {
        (Ok(End::Failed(error)), _) => Err(failed(&error)),
        (_, Err(errno)) => Err(Failure::file(disk.name(), errno)),
        _ => Ok(()),
    }
}

/// A thread for each client.
fn accept(listener: &UnixListener, disk: &Disk, ends: &mpsc::Sender<End>, once: bool) -> std::io::Error {
    loop {
        let client = match listener.accept() {
            Ok((client, _)) => client,
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => continue,
            Err(error) => return error,
        };
        let (disk, ends) = (disk.clone(), ends.clone());
        thread::spawn(move || {
            if let Err(error) = speak(&disk, &client) {
                tracing::warn!("a client left in the middle: {error}");
            }
            if once {
                let _ = ends.send(End::Left);
            }
        });
    }
}

fn speak(disk: &Disk, client: &UnixStream) -> std::io::Result<()> {
    veduta_nbd::session(disk, client, client)
}

/// A socket that nobody listens on any more is in the way.
fn remove_stale(socket: &Path) {
    let is_socket = fs::symlink_metadata(socket).is_ok_and(|metadata| metadata.file_type().is_socket());
    if is_socket && UnixStream::connect(socket).is_err() {
        let _ = fs::remove_file(socket);
    }
}
