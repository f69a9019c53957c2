//! What "failure" means. SFTP has that one word for a directory that is not empty, a name that exists, and a disk that is full; which of
//! them it was is found out by asking, once something has failed.

use std::sync::Arc;

use veduta_api::{Errno, Ino, Kind, Result, StatFs};

use super::Inner;
use crate::connection::Connection;
use crate::wire::{Packet, reply, request};

/// What a `statvfs` tells.
struct Volume {
    stat: StatFs,
    read_only: bool,
}

impl Inner {
    pub(super) fn statfs(&self) -> Result<StatFs> {
        match self.volume(&self.base) {
            Ok(volume) => Ok(volume.stat),
            // A server that does not tell is no reason to fail.
            Err(Errno::EOPNOTSUPP) => Ok(StatFs { block_size: 4096, ..StatFs::default() }),
            Err(errno) => Err(errno),
        }
    }

    fn volume(&self, path: &[u8]) -> Result<Volume> {
        let name = "statvfs@openssh.com";
        self.session.repeat(0, |connection| {
            if !connection.greeting().has(name) {
                return Err(Errno::EOPNOTSUPP);
            }
            let reply =
                connection.call(Packet::extended(name).string(path))?.expect(reply::EXTENDED_REPLY)?;
            let mut fields = reply.fields();
            let [_, unit, blocks, blocks_free, blocks_available] = five(|| fields.u64())?;
            let [files, files_free, _, id, flags] = five(|| fields.u64())?;
            let block_size = u32::try_from(unit).ok().filter(|unit| *unit > 0).unwrap_or(4096);
            let stat =
                StatFs { block_size, blocks, blocks_free, blocks_available, files, files_free, magic: 0, id };
            Ok(Volume { stat, read_only: flags & 1 != 0 })
        })
    }

    /// Why something could not be made or written in a place, where the server only said that it could not.
    fn why_not(&self, path: &[u8]) -> Errno {
        match self.volume(path) {
            Ok(volume) if volume.read_only => Errno::EROFS,
            Ok(volume) if volume.stat.blocks > 0 && volume.stat.blocks_available == 0 => Errno::ENOSPC,
            Ok(volume) if volume.stat.files > 0 && volume.stat.files_free == 0 => Errno::ENOSPC,
            _ => Errno::EIO,
        }
    }

    /// An error of a write that was put off, made more exact. The file may lie on another volume than the root.
    pub(crate) fn explain_write(&self, ino: Ino, errno: Errno) -> Errno {
        if errno != Errno::EIO {
            return errno;
        }
        self.why_not(&self.path(ino).unwrap_or_else(|_| self.base.clone()))
    }

    /// A name could not be made. `above` is its directory.
    pub(super) fn explain_new(&self, errno: Errno, path: &[u8], above: &[u8]) -> Errno {
        match errno {
            Errno::EIO if self.exists(path) => Errno::EEXIST,
            Errno::EIO => self.why_not(above),
            errno => errno,
        }
    }

    /// As [`stat`](Self::stat), whatever it is that leads there.
    fn exists(&self, path: &[u8]) -> bool {
        self.kind(path).is_some()
    }

    fn kind(&self, path: &[u8]) -> Option<Kind> {
        let asked = self.session.repeat(0, |connection| {
            let reply = connection.call(Packet::new(request::LSTAT).string(path))?;
            Ok(reply.expect(reply::ATTRS)?.fields().attrs()?.kind())
        });
        asked.ok().flatten()
    }

    /// Whether a directory holds anything.
    fn is_filled(&self, path: &[u8]) -> bool {
        let asked = self.session.repeat(0, |connection| {
            let opened = connection.call(Packet::new(request::OPENDIR).string(path))?;
            let handle = opened.expect(reply::HANDLE)?.fields().string()?.to_vec();
            let found = first_names(connection, &handle);
            connection.close(&handle);
            found
        });
        asked.unwrap_or(false)
    }

    /// A name could not be removed.
    pub(super) fn explain_removed(&self, errno: Errno, path: &[u8], kind: u8) -> Errno {
        if errno != Errno::EIO {
            return errno;
        }
        match (kind, self.kind(path)) {
            (_, None) => Errno::ENOENT,
            (request::RMDIR, Some(Kind::Directory)) if self.is_filled(path) => Errno::ENOTEMPTY,
            (request::RMDIR, Some(Kind::Directory)) => self.why_not(path),
            (request::RMDIR, Some(_)) => Errno::ENOTDIR,
            (_, Some(Kind::Directory)) => Errno::EISDIR,
            _ => self.why_not(path),
        }
    }

    /// A name could not be moved.
    pub(super) fn explain_renamed(&self, errno: Errno, path: &[u8], new_path: &[u8], above: &[u8]) -> Errno {
        if errno != Errno::EIO {
            return errno;
        }
        let is_below = new_path.starts_with(path) && new_path.get(path.len()) == Some(&b'/');
        match (self.kind(path), self.kind(new_path)) {
            (None, _) => Errno::ENOENT,
            (Some(Kind::Directory), _) if is_below => Errno::EINVAL,
            (Some(Kind::Directory), Some(Kind::Directory)) if self.is_filled(new_path) => Errno::ENOTEMPTY,
            (Some(Kind::Directory), Some(kind)) if kind != Kind::Directory => Errno::ENOTDIR,
            (Some(kind), Some(Kind::Directory)) if kind != Kind::Directory => Errno::EISDIR,
            _ if self.settings.rename_crosses || self.are_apart(path, above) => Errno::EXDEV,
            _ => self.why_not(above),
        }
    }

    /// Whether two places are on different file systems of the server, as far as it tells.
    pub(super) fn are_apart(&self, path: &[u8], other: &[u8]) -> bool {
        match (self.volume(path), self.volume(other)) {
            (Ok(one), Ok(two)) => one.stat.id != two.stat.id,
            _ => false,
        }
    }
}

fn five<E>(mut next: impl FnMut() -> Result<u64, E>) -> Result<[u64; 5], E> {
    Ok([next()?, next()?, next()?, next()?, next()?])
}

/// Whether the first names of a directory are others than `.` and `..`.
fn first_names(connection: &Arc<Connection>, handle: &[u8]) -> Result<bool> {
    let reply = connection.call(Packet::new(request::READDIR).string(handle))?;
    if reply.kind == reply::STATUS {
        return Ok(false);
    }
    let reply = reply.expect(reply::NAME)?;
    Ok(reply.fields().names()?.iter().any(|(name, _)| !matches!(*name, b"." | b"..")))
}
