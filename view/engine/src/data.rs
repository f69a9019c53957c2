//! Calls on descriptors that stand for virtual files.

use std::io::{Read, Write};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::sync::Arc;

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::libc;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::unistd::{Whence, lseek};
use veduta_api::{Allocate, Attr, Ioctl, Kind, Perm, Result, Seek, SetAttr};
use veduta_disk::{IoctlShape, ioctl_shape};
use veduta_trace::raw::{self, Argument};

use crate::call::{Answer, Call, DONE, Outcome, readable, writable};
use crate::mounts::Service;
use crate::node::guarded;
use crate::standin::StandIn;
use crate::walk::Place;

/// Bytes; data is moved between driver and task in pieces of this size.
const CHUNK: usize = 1 << 20;
/// Segments of one call: `UIO_MAXIOV`.
const MAX_SEGMENTS: u64 = 1024;
/// Bytes; no read or write moves more: `MAX_RW_COUNT`.
const MAX_COUNT: u64 = 0x7fff_f000;

/// Flags of `preadv2(2)` and `pwritev2(2)` that a virtual file has; the others are refused, as by a filesystem without them.
const RWF_HIPRI: u64 = 1;
const RWF_DSYNC: u64 = 2;
const RWF_SYNC: u64 = 4;
const RWF_APPEND: u64 = 16;

/// Serves one of them.
pub(crate) fn serve(call: &Call<'_>, name: &str) -> Outcome {
    let args = call.args;
    match name {
        "mmap" => return mmap(call),
        "mremap" => return mremap(call),
        "msync" => return msync(call),
        "sync" => return sync(call),
        "sendfile" => return sendfile(call),
        "copy_file_range" => return copy_range(call),
        "splice" => return splice(call),
        "fcntl" if args[1] as u32 == crate::calls::F_CREATED_QUERY => return crate::open::was_created(call),
        "fcntl" => return crate::lent::signal(call),
        "getsockname" | "getpeername" => return crate::sockets::name(call),
        _ => {}
    }
    if let Some(answer) = crate::renumbered::stat(call, name)? {
        return Ok(answer);
    }
    let Some(fd) = call.copy_of(args[0] as i32)? else { return Ok(Answer::GoOn) };
    let Some(stand_in) = call.view.stand_ins.of_descriptor(fd.as_fd()) else {
        return match name {
            "getdents64" => crate::through::list(call, &fd, false),
            "getdents" => crate::through::list(call, &fd, true),
            _ => crate::lent::serve(call, name, &fd),
        };
    };
    if stand_in.is_native() && !is_ours(name) {
        return Ok(Answer::GoOn);
    }
    // What was opened with O_PATH is a name, and no more.
    let is_name =
        |fd: &OwnedFd| crate::call::status_flags(fd).is_ok_and(|flags| flags.contains(OFlag::O_ACCMODE));
    if !matches!(name, "read" | "write" | "fstat" | "fstatfs" | "fchdir") && is_name(&fd) {
        return Err(Errno::EBADF);
    }
    let one = || Ok(vec![(args[1], args[2].min(MAX_COUNT))]);
    let many = || segments(call, args[1], args[2]);
    match name {
        "read" => read(call, &stand_in, &fd, one()?, None),
        "readv" => read(call, &stand_in, &fd, many()?, None),
        "pread64" => read(call, &stand_in, &fd, one()?, Some(offset(args[3])?)),
        "preadv" => read(call, &stand_in, &fd, many()?, Some(offset(args[3])?)),
        "preadv2" if args[5] & !RWF_HIPRI != 0 => Err(Errno::EOPNOTSUPP),
        "pwritev2" if args[5] & !(RWF_HIPRI | RWF_DSYNC | RWF_SYNC | RWF_APPEND) != 0 => {
            Err(Errno::EOPNOTSUPP)
        }
        "preadv2" => read(call, &stand_in, &fd, many()?, current_or(args[3])?),
        "write" => write(call, &stand_in, &fd, one()?, None, 0),
        "writev" => write(call, &stand_in, &fd, many()?, None, 0),
        "pwrite64" => write(call, &stand_in, &fd, one()?, Some(offset(args[3])?), 0),
        "pwritev" => write(call, &stand_in, &fd, many()?, Some(offset(args[3])?), 0),
        "pwritev2" => write(call, &stand_in, &fd, many()?, current_or(args[3])?, args[5]),
        "lseek" => seek(&stand_in, &fd, args[1] as i64, args[2] as i32),
        "getdents64" => crate::directory::serve(call, &stand_in, &fd, false),
        "getdents" => crate::directory::serve(call, &stand_in, &fd, true),
        "fstat" => crate::files::stat(call, &place(&stand_in)?, args[1]),
        "fstatfs" => crate::files::statfs(call, &place(&stand_in)?, args[1]),
        "ftruncate" => truncate(call, &stand_in, &fd, args[1] as i64),
        "fallocate" => allocate(call, &stand_in, &fd),
        "fsync" => fsync(&stand_in, false),
        "sync_file_range" => {
            let (at, len) = (args[1] as i64, args[2] as i64);
            if at < 0 || len < 0 || at.checked_add(len).is_none() || args[3] & !7 != 0 {
                return Err(Errno::EINVAL);
            }
            fsync(&stand_in, false)
        }
        "fchdir" => {
            let place = place(&stand_in)?;
            if stand_in.kind == Kind::Directory {
                call.may(&place, crate::identity::EXECUTE)?;
            }
            Ok(Answer::GoOn)
        }
        "fdatasync" => fsync(&stand_in, true),
        "syncfs" => {
            sync_mount(call, stand_in.node.mount.id)?;
            DONE
        }
        "fchmod" => {
            let perm = Some(Perm::from_mode(args[1] as u32));
            crate::files::change(call, &place(&stand_in)?, SetAttr { perm, ..SetAttr::default() })
        }
        "fchown" => crate::files::chown(call, &place(&stand_in)?, args[1], args[2]),
        "fgetxattr" | "fsetxattr" | "flistxattr" | "fremovexattr" => {
            crate::files::xattr(call, &place(&stand_in)?, &name[1..], 1)
        }
        "ioctl" => ioctl(call, &stand_in),
        _ => Ok(Answer::GoOn),
    }
}

/// Calls that the engine serves even on files that are the kernel's: what they tell or change is not what the kernel believes of the file.
fn is_ours(name: &str) -> bool {
    matches!(name, "fstat" | "fstatfs" | "fchmod" | "fchown" | "ioctl" | "syncfs") || name.contains("xattr")
}

/// What a descriptor stands for, if the engine moves its bytes.
fn emulated(call: &Call<'_>, number: u64) -> Result<Option<(Arc<StandIn>, OwnedFd)>> {
    Ok(call.stand_in(number as i32)?.filter(|(stand_in, _)| !stand_in.is_native()))
}

fn place(stand_in: &Arc<StandIn>) -> Result<Place> {
    let attr = attr(stand_in)?;
    Ok(Place::Tree(Arc::clone(&stand_in.node), attr))
}

/// The attributes of an open file.
fn attr(stand_in: &StandIn) -> Result<Attr> {
    let attr = stand_in.node.attr()?;
    if attr.kind == Kind::File {
        stand_in.hear_size(attr.size);
    }
    Ok(attr)
}

fn offset(value: u64) -> Result<u64> {
    if (value as i64) < 0 { Err(Errno::EINVAL) } else { Ok(value) }
}

/// `preadv2` takes -1 for the current position.
fn current_or(value: u64) -> Result<Option<u64>> {
    if value == u64::MAX { Ok(None) } else { offset(value).map(Some) }
}

/// Address and length of each part.
type Segments = Vec<(u64, u64)>;

fn segments(call: &Call<'_>, address: u64, count: u64) -> Result<Segments> {
    if count > MAX_SEGMENTS {
        return Err(Errno::EINVAL);
    }
    let mut bytes = vec![0; count as usize * 16];
    call.task.read(address, &mut bytes)?;
    let word = |bytes: &[u8]| {
        let mut word = [0; 8];
        word.copy_from_slice(bytes);
        u64::from_ne_bytes(word)
    };
    let mut room = MAX_COUNT;
    let mut parts = Vec::with_capacity(count as usize);
    for part in bytes.chunks_exact(16) {
        let len = word(&part[8..]);
        if len > i64::MAX as u64 {
            return Err(Errno::EINVAL);
        }
        let len = len.min(room);
        room -= len;
        parts.push((word(&part[..8]), len));
    }
    Ok(parts)
}

/// `EISDIR` for directories, `EINVAL` for what holds no data.
fn has_data(stand_in: &StandIn) -> Result<()> {
    match stand_in.kind {
        Kind::File | Kind::BlockDevice | Kind::CharDevice => Ok(()),
        Kind::Directory => Err(Errno::EISDIR),
        _ => Err(Errno::EBADF),
    }
}

fn read(call: &Call<'_>, stand_in: &StandIn, fd: &OwnedFd, parts: Segments, at: Option<u64>) -> Outcome {
    readable(fd)?;
    has_data(stand_in)?;
    let turn = at.is_none().then(|| stand_in.turn.lock());
    let start = match at {
        Some(at) => at,
        None => lseek(fd, 0, Whence::SeekCur)? as u64,
    };
    let mut done = 0;
    let mut buf = Vec::new();
    'all: for (mut address, mut len) in parts {
        while len > 0 {
            let want = (len as usize).min(CHUNK);
            buf.resize(want, 0);
            let got = match stand_in.read_at(&mut buf[..want], start + done) {
                Err(_) if done > 0 => break 'all,
                got => got?,
            };
            if got == 0 {
                break 'all;
            }
            let copied = match call.task.write_some(address, &buf[..got]) {
                Err(_) if done > 0 => break 'all,
                copied => copied?,
            };
            done += copied as u64;
            if copied < got || got < want {
                break 'all;
            }
            address += got as u64;
            len -= got as u64;
        }
    }
    if turn.is_some() {
        lseek(fd, (start + done) as i64, Whence::SeekSet)?;
    }
    if done > 0 {
        call.view.watches.read(&stand_in.node);
    }
    Ok(Answer::Value(done as i64))
}

fn write(
    call: &Call<'_>,
    stand_in: &StandIn,
    fd: &OwnedFd,
    parts: Segments,
    at: Option<u64>,
    rwf: u64,
) -> Outcome {
    let flags = writable(fd)?;
    has_data(stand_in)?;
    let appends = flags.contains(OFlag::O_APPEND) || rwf & RWF_APPEND != 0;
    let turn = (at.is_none() || appends).then(|| stand_in.turn.lock());
    let start = match at {
        // The position does not count for those who append, as Linux has it also for pwrite(2).
        _ if appends => attr(stand_in)?.size,
        Some(at) => at,
        None => lseek(fd, 0, Whence::SeekCur)? as u64,
    };
    let limit = if stand_in.kind == Kind::File { call.file_size_limit()? } else { u64::MAX };
    let largest = stand_in.node.mount.facts.size_max.min(limit);
    let mut done = 0;
    let mut buf = Vec::new();
    'all: for (mut address, mut len) in parts {
        while len > 0 {
            let position = start + done;
            let want = len.min(CHUNK as u64).min(largest.saturating_sub(position)) as usize;
            if want == 0 {
                if done > 0 {
                    break 'all;
                }
                return Err(if position >= limit { call.too_large() } else { Errno::EFBIG });
            }
            buf.resize(want, 0);
            let got = match call.task.read_some(address, &mut buf[..want]) {
                Err(_) if done > 0 => break 'all,
                got => got?,
            };
            let written = match stand_in.write_at(&buf[..got], position) {
                Err(_) if done > 0 => break 'all,
                written => written?,
            };
            done += written as u64;
            if written < want {
                break 'all;
            }
            address += written as u64;
            len -= written as u64;
        }
    }
    if at.is_none() {
        lseek(fd, (start + done) as i64, Whence::SeekSet)?;
    }
    drop(turn);
    if done > 0 {
        call.view.watches.modified(&stand_in.node);
    }
    if flags.contains(OFlag::O_DSYNC) || rwf & (RWF_DSYNC | RWF_SYNC) != 0 {
        let data_only = !flags.contains(OFlag::O_SYNC) && rwf & RWF_SYNC == 0;
        let file = stand_in.file(true)?;
        guarded(|| file.sync(data_only))?;
    }
    Ok(Answer::Value(done as i64))
}

fn seek(stand_in: &StandIn, fd: &OwnedFd, offset: i64, whence: i32) -> Outcome {
    let what = match whence {
        libc::SEEK_END if stand_in.kind == Kind::Directory => return Ok(Answer::GoOn),
        libc::SEEK_END => {
            let end = end_of(stand_in)? as i64;
            let position = end.checked_add(offset).filter(|position| *position >= 0).ok_or(Errno::EINVAL)?;
            lseek(fd, position, Whence::SeekSet)?;
            return Ok(Answer::Value(position));
        }
        libc::SEEK_DATA => Seek::Data,
        libc::SEEK_HOLE => Seek::Hole,
        _ => return Err(Errno::EINVAL),
    };
    let size = end_of(stand_in)?;
    if offset < 0 || offset as u64 >= size {
        return Err(Errno::ENXIO);
    }
    stand_in.write_back()?;
    let file = stand_in.file(false)?;
    let found = match guarded(|| file.seek(what, offset as u64)) {
        Err(Errno::EOPNOTSUPP) => match what {
            Seek::Data => offset as u64,
            Seek::Hole => size,
        },
        found => found?,
    };
    lseek(fd, found as i64, Whence::SeekSet)?;
    Ok(Answer::Value(found as i64))
}

/// The size of a file, or of what a block device shows.
fn end_of(stand_in: &StandIn) -> Result<u64> {
    if stand_in.kind != Kind::BlockDevice {
        return Ok(attr(stand_in)?.size);
    }
    let file = stand_in.file(false)?;
    let mut size = [0; 8];
    let mut request = Ioctl { command: BLKGETSIZE64, argument: 0, input: &[], output: &mut size };
    match guarded(|| file.ioctl(&mut request)) {
        Ok(_) => Ok(u64::from_ne_bytes(size)),
        // A loop device without an image.
        Err(Errno::ENXIO) => Ok(0),
        Err(errno) => Err(errno),
    }
}

fn truncate(call: &Call<'_>, stand_in: &Arc<StandIn>, fd: &OwnedFd, size: i64) -> Outcome {
    if size < 0 || stand_in.kind != Kind::File {
        return Err(Errno::EINVAL);
    }
    writable(fd).map_err(|_| Errno::EINVAL)?;
    let attr = stand_in.node.attr()?;
    crate::files::resize(call, &stand_in.node, &attr, size as u64, Some(stand_in))
}

fn allocate(call: &Call<'_>, stand_in: &StandIn, fd: &OwnedFd) -> Outcome {
    let (mode, offset, len) = (call.int(1), call.args[2] as i64, call.args[3] as i64);
    writable(fd)?;
    if offset < 0 || len <= 0 {
        return Err(Errno::EINVAL);
    }
    has_data(stand_in).map_err(|_| Errno::ENODEV)?;
    let keep_size = mode & libc::FALLOC_FL_KEEP_SIZE != 0;
    let how = match mode & !libc::FALLOC_FL_KEEP_SIZE {
        0 if keep_size => Allocate::KeepSize,
        0 => Allocate::Extend,
        libc::FALLOC_FL_PUNCH_HOLE if keep_size => Allocate::PunchHole,
        libc::FALLOC_FL_ZERO_RANGE => Allocate::ZeroRange { keep_size },
        libc::FALLOC_FL_COLLAPSE_RANGE if !keep_size => Allocate::Collapse,
        libc::FALLOC_FL_INSERT_RANGE if !keep_size => Allocate::Insert,
        _ => return Err(Errno::EOPNOTSUPP),
    };
    if (offset as u64).saturating_add(len as u64) > stand_in.node.mount.facts.size_max {
        return Err(Errno::EFBIG);
    }
    let end = offset as u64 + len as u64;
    if !keep_size && end > call.file_size_limit()? && end > attr(stand_in)?.size {
        return Err(call.too_large());
    }
    stand_in.allocate(how, offset as u64, len as u64)?;
    call.view.watches.modified(&stand_in.node);
    attr(stand_in)?;
    DONE
}

fn fsync(stand_in: &StandIn, data_only: bool) -> Outcome {
    match stand_in.kind {
        Kind::File | Kind::BlockDevice => {
            stand_in.write_back()?;
            if stand_in.node.mount.is_read_only() {
                return DONE;
            }
            let file = stand_in.file(false)?;
            guarded(|| file.sync(data_only))?;
        }
        _ => guarded(|| stand_in.node.tree().sync())?,
    }
    DONE
}

/// Writes out all of one mount.
pub(crate) fn sync_mount(call: &Call<'_>, mount: u32) -> Result<()> {
    let mut result = Ok(());
    let of_mount = call.view.stand_ins.of_mount(mount);
    for stand_in in &of_mount {
        result = result.and(stand_in.write_back());
    }
    let tree = call.table.mounts().iter().find(|known| known.id == mount);
    if let Some(Some(plane)) = tree.and_then(|mount| mount.plane.get()) {
        result = result.and(plane.write_back());
    }
    match tree {
        Some(mount) if !mount.is_read_only() => result.and(guarded(|| mount.tree.sync())),
        _ => result,
    }
}

fn sync(call: &Call<'_>) -> Outcome {
    for mount in call.table.mounts() {
        if let Err(errno) = sync_mount(call, mount.id) {
            tracing::error!("sync: {}", errno.desc());
        }
    }
    Ok(Answer::GoOn)
}

fn mmap(call: &Call<'_>) -> Outcome {
    let [_, len, protection, flags, fd, offset] = call.args;
    let Some((stand_in, fd)) = emulated(call, fd)? else { return Ok(Answer::GoOn) };
    let access = crate::call::status_flags(&fd)?.bits() & libc::O_ACCMODE;
    if access == libc::O_ACCMODE {
        return Err(Errno::EBADF);
    }
    has_data(&stand_in).map_err(|_| Errno::ENODEV)?;
    let is_shared = flags as i32 & libc::MAP_SHARED != 0;
    let no_exec = stand_in.node.mount.no_exec.load(std::sync::atomic::Ordering::Relaxed);
    if protection as i32 & libc::PROT_EXEC != 0 && no_exec {
        return Err(Errno::EPERM);
    }
    let end = offset.checked_add(len).ok_or(Errno::EOVERFLOW)?;
    stand_in.map(offset..end, is_shared && access == libc::O_RDWR)?;
    Ok(Answer::GoOn)
}

/// A mapping that grows shows a part of the file that may not be in memory yet.
fn mremap(call: &Call<'_>) -> Outcome {
    let [address, old_len, new_len, ..] = call.args;
    if new_len <= old_len || call.view.stand_ins.is_empty() {
        return Ok(Answer::GoOn);
    }
    if let Some((stand_in, offset)) = mapping_at(call, address) {
        stand_in.map(offset..offset.saturating_add(new_len), false)?;
    }
    Ok(Answer::GoOn)
}

/// What is mapped at an address, and from which offset on.
fn mapping_at(call: &Call<'_>, address: u64) -> Option<(Arc<StandIn>, u64)> {
    let maps = std::fs::read(format!("/proc/{}/maps", call.task.0)).ok()?;
    for line in String::from_utf8_lossy(&maps).lines() {
        let mut fields = line.split_ascii_whitespace();
        let (start, end) = fields.next()?.split_once('-')?;
        let hex = |text| u64::from_str_radix(text, 16).ok();
        let (start, end) = (hex(start)?, hex(end)?);
        if !(start..end).contains(&address) {
            continue;
        }
        let offset = hex(fields.nth(1)?)?;
        let (major, minor) = fields.next()?.split_once(':')?;
        let device = libc::makedev(hex(major)? as u32, hex(minor)? as u32);
        let ino = fields.next()?.parse().ok()?;
        let stand_in = call.view.stand_ins.find((device, ino)).filter(|found| !found.is_native())?;
        return Some((stand_in, offset + (address - start)));
    }
    None
}

fn msync(call: &Call<'_>) -> Outcome {
    let [address, _, flags, ..] = call.args;
    if let Some((stand_in, _)) = mapping_at(call, address) {
        stand_in.write_back()?;
        if flags as i32 & libc::MS_SYNC != 0 {
            let file = stand_in.file(false)?;
            guarded(|| file.sync(true))?;
        }
    }
    Ok(Answer::GoOn)
}

/// `sendfile(2)`: the engine moves the bytes, since the kernel does not have them.
fn sendfile(call: &Call<'_>) -> Outcome {
    let [out, input, offset_at, count, ..] = call.args;
    let (source, target) = (emulated(call, input)?, emulated(call, out)?);
    if source.is_none() && target.is_none() {
        return Ok(Answer::GoOn);
    }
    let from = match source {
        Some((stand_in, fd)) => {
            readable(&fd)?;
            has_data(&stand_in).map_err(|_| Errno::EINVAL)?;
            End::Virtual(stand_in, fd)
        }
        None => End::Host(crate::serve::descriptor(call.task, input as i32)?.into()),
    };
    let to = match target {
        Some((stand_in, fd)) => {
            let flags = writable(&fd)?;
            if flags.contains(OFlag::O_APPEND) {
                return Err(Errno::EINVAL);
            }
            End::Virtual(stand_in, fd)
        }
        None => End::Host(crate::serve::descriptor(call.task, out as i32)?.into()),
    };
    let mut offset = if offset_at == 0 { None } else { Some(call.task.read_u64(offset_at)?) };
    let moved = transfer(call, &from, &mut offset, &to, &mut None, count.min(MAX_COUNT))?;
    if let Some(offset) = offset {
        call.task.write(offset_at, &offset.to_ne_bytes())?;
    }
    Ok(Answer::Value(moved as i64))
}

enum End {
    Virtual(Arc<StandIn>, OwnedFd),
    Host(std::fs::File),
}

impl End {
    fn read(&self, buf: &mut [u8], offset: &mut Option<u64>) -> Result<usize> {
        let got = match (self, &*offset) {
            (End::Virtual(stand_in, _), Some(at)) => stand_in.read_at(buf, *at)?,
            (End::Virtual(stand_in, fd), None) => {
                let _turn = stand_in.turn.lock();
                let at = lseek(fd, 0, Whence::SeekCur)?;
                let got = stand_in.read_at(buf, at as u64)?;
                lseek(fd, at + got as i64, Whence::SeekSet)?;
                got
            }
            (End::Host(file), Some(at)) => {
                std::os::unix::fs::FileExt::read_at(file, buf, *at).map_err(crate::standin::errno)?
            }
            (End::Host(file), None) => (&*file).read(buf).map_err(crate::standin::errno)?,
        };
        if let Some(at) = offset {
            *at += got as u64;
        }
        Ok(got)
    }

    fn write(&self, buf: &[u8], offset: &mut Option<u64>) -> Result<usize> {
        let done = match (self, &*offset) {
            (End::Virtual(stand_in, _), Some(at)) => stand_in.write_at(buf, *at)?,
            (End::Virtual(stand_in, fd), None) => {
                let _turn = stand_in.turn.lock();
                let at = lseek(fd, 0, Whence::SeekCur)?;
                let done = stand_in.write_at(buf, at as u64)?;
                lseek(fd, at + done as i64, Whence::SeekSet)?;
                done
            }
            (End::Host(file), Some(at)) => {
                std::os::unix::fs::FileExt::write_at(file, buf, *at).map_err(crate::standin::errno)?
            }
            (End::Host(file), None) => (&*file).write(buf).map_err(crate::standin::errno)?,
        };
        if let Some(at) = offset {
            *at += done as u64;
        }
        Ok(done)
    }
}

/// Moves bytes; short if the source ends, or if the target takes no more for now.
fn transfer(
    call: &Call<'_>,
    from: &End,
    from_at: &mut Option<u64>,
    to: &End,
    to_at: &mut Option<u64>,
    count: u64,
) -> Result<u64> {
    let interrupt = veduta_api::Interrupt::current();
    let mut buf = vec![0; CHUNK.min(count as usize)];
    let mut moved = 0;
    while moved < count {
        let want = buf.len().min((count - moved) as usize);
        let got = match from.read(&mut buf[..want], from_at) {
            Err(_) if moved > 0 => break,
            got => got?,
        };
        if got == 0 {
            break;
        }
        if let End::Virtual(source, _) = from {
            call.view.watches.read(&source.node);
        }
        if let End::Virtual(target, _) = to {
            call.view.watches.modified(&target.node);
        }
        let mut done = 0;
        while done < got {
            match to.write(&buf[done..got], to_at) {
                Ok(count) => done += count,
                Err(errno) => {
                    // What was read and not written is given back.
                    give_back(from, from_at, got - done)?;
                    moved += done as u64;
                    return if moved > 0 { Ok(moved) } else { Err(errno) };
                }
            }
        }
        moved += got as u64;
        if interrupt.is_raised() {
            break;
        }
    }
    Ok(moved)
}

fn give_back(from: &End, from_at: &mut Option<u64>, len: usize) -> Result<()> {
    match (from_at, from) {
        (Some(at), _) => *at -= len as u64,
        (None, End::Virtual(_, fd)) => {
            lseek(fd, -(len as i64), Whence::SeekCur)?;
        }
        (None, End::Host(file)) => {
            // A pipe cannot take it back; it is only a source where the target is a virtual file, whose disk is full.
            let _ = lseek(file.as_fd(), -(len as i64), Whence::SeekCur);
        }
    }
    Ok(())
}

fn copy_range(call: &Call<'_>) -> Outcome {
    let [input, input_at, out, out_at, len, flags] = call.args;
    let (source, target) = (emulated(call, input)?, emulated(call, out)?);
    let ((source, from_fd), (target, to_fd)) = match (source, target) {
        (None, None) => return Ok(Answer::GoOn),
        (Some(source), Some(target)) => (source, target),
        _ => return Err(Errno::EXDEV),
    };
    if flags != 0 {
        return Err(Errno::EINVAL);
    }
    readable(&from_fd)?;
    if writable(&to_fd)?.contains(OFlag::O_APPEND) {
        return Err(Errno::EBADF);
    }
    has_data(&source)?;
    has_data(&target)?;
    let position = |address: u64, fd: &OwnedFd| {
        if address == 0 { Ok(lseek(fd, 0, Whence::SeekCur)? as u64) } else { call.task.read_u64(address) }
    };
    let (from, to) = (position(input_at, &from_fd)?, position(out_at, &to_fd)?);
    let len = len.min(MAX_COUNT).min(attr(&source)?.size.saturating_sub(from));
    if Arc::ptr_eq(&source, &target) && from < to + len && to < from + len {
        return Err(Errno::EINVAL);
    }
    let moved = transfer(
        call,
        &End::Virtual(Arc::clone(&source), from_fd.try_clone().map_err(crate::standin::errno)?),
        &mut Some(from),
        &End::Virtual(Arc::clone(&target), to_fd.try_clone().map_err(crate::standin::errno)?),
        &mut Some(to),
        len,
    )?;
    for (address, fd, at) in [(input_at, &from_fd, from), (out_at, &to_fd, to)] {
        if address == 0 {
            lseek(fd, (at + moved) as i64, Whence::SeekSet)?;
        } else {
            call.task.write(address, &(at + moved).to_ne_bytes())?;
        }
    }
    Ok(Answer::Value(moved as i64))
}

/// `splice(2)` between a pipe and a virtual file: copies what is there, or what there is room for, as the kernel moves pages.
fn splice(call: &Call<'_>) -> Outcome {
    let [input, input_at, out, out_at, len, flags] = call.args;
    let (source, target) = (emulated(call, input)?, emulated(call, out)?);
    if source.is_none() && target.is_none() {
        return Ok(Answer::GoOn);
    }
    if flags as u32 & !0xf != 0 {
        return Err(Errno::EINVAL);
    }
    if len == 0 {
        return DONE;
    }
    let (stand_in, fd, at, other, other_at, reads) = match (source, target) {
        (Some((stand_in, fd)), None) => (stand_in, fd, input_at, out, out_at, true),
        (None, Some((stand_in, fd))) => (stand_in, fd, out_at, input, input_at, false),
        // Neither is a pipe.
        _ => return Err(Errno::EINVAL),
    };
    let file_flags = if reads { readable(&fd)? } else { writable(&fd)? };
    let pipe = crate::serve::descriptor(call.task, other as i32)?;
    let pipe_flags = if reads { writable(&pipe)? } else { readable(&pipe)? };
    if nix::sys::stat::fstat(pipe.as_fd())?.st_mode & libc::S_IFMT != libc::S_IFIFO {
        return Err(Errno::EINVAL);
    }
    if other_at != 0 {
        return Err(Errno::ESPIPE);
    }
    has_data(&stand_in).map_err(|_| Errno::EINVAL)?;
    if !reads && file_flags.contains(OFlag::O_APPEND) {
        return Err(Errno::EINVAL);
    }
    let waits = flags & 2 == 0 && !pipe_flags.contains(OFlag::O_NONBLOCK);
    await_pipe(&pipe, reads, waits)?;
    let held = held(&pipe)?;
    let most = match (reads, held) {
        (false, held) => held,
        // An empty pipe takes all that it can; in another there is room for a page.
        (true, 0) => fcntl(&pipe, FcntlArg::F_GETPIPE_SZ)? as u64,
        (true, _) => 4096,
    };
    let mut offset = if at == 0 { None } else { Some(offset(call.task.read_u64(at)?)?) };
    let (file, pipe) = (End::Virtual(stand_in, fd), End::Host(pipe.into()));
    let moved = if reads {
        transfer(call, &file, &mut offset, &pipe, &mut None, len.min(most))?
    } else {
        transfer(call, &pipe, &mut None, &file, &mut offset, len.min(most))?
    };
    if let Some(offset) = offset {
        call.task.write(at, &offset.to_ne_bytes())?;
    }
    Ok(Answer::Value(moved as i64))
}

/// Waits until a pipe has room, or something in it, or its other end is closed. `EAGAIN` if that is not so, and nobody waits.
fn await_pipe(pipe: &OwnedFd, for_room: bool, waits: bool) -> Result<()> {
    let wanted = if for_room { PollFlags::POLLOUT } else { PollFlags::POLLIN };
    let interrupt = veduta_api::Interrupt::current();
    loop {
        let mut fds = [PollFd::new(pipe.as_fd(), wanted)];
        let time = if waits { PollTimeout::from(50_u8) } else { PollTimeout::ZERO };
        match poll(&mut fds, time) {
            Ok(0) if !waits => return Err(Errno::EAGAIN),
            Ok(0) | Err(Errno::EINTR) => interrupt.check()?,
            Ok(_) => return Ok(()),
            Err(errno) => return Err(errno),
        }
    }
}

/// How many bytes are in a pipe.
fn held(pipe: &OwnedFd) -> Result<u64> {
    let mut count = [0; 4];
    let mut arguments = [
        Argument::Value(pipe.as_raw_fd() as u64),
        Argument::Value(libc::FIONREAD),
        Argument::Output(&mut count),
    ];
    raw::call(libc::SYS_ioctl as u32, &mut arguments)?;
    Ok(u32::from_ne_bytes(count).into())
}

fn ioctl(call: &Call<'_>, stand_in: &Arc<StandIn>) -> Outcome {
    let command = call.args[1] as u32;
    if let Service::Loops(loops) = &stand_in.node.mount.service {
        return crate::loops::ioctl(call, loops, stand_in);
    }
    if command == FIGETBSZ && matches!(stand_in.kind, Kind::File | Kind::Directory) {
        let size = guarded(|| stand_in.node.tree().statfs())?.block_size;
        call.task.write(call.args[2], &size.to_ne_bytes())?;
        return DONE;
    }
    if stand_in.kind == Kind::BlockDevice && matches!(command, BLKRRPART | BLKPG) {
        // Whether a partition is in use counts here, so those that everybody has closed are let go of first.
        call.view.stand_ins.collect(Some(stand_in.node.mount.id), 0);
    }
    if matches!(command, FS_IOC_SETFLAGS | FS_IOC_FSSETXATTR) {
        may_set_flags(call, &place(stand_in)?)?;
    }
    if stand_in.kind == Kind::Directory {
        let node = &stand_in.node;
        return with_ioctl(call, |request| guarded(|| node.tree().ioctl(node.ino, request)));
    }
    if stand_in.is_native() {
        let node = &stand_in.node;
        let file = guarded(|| node.tree().open(node.ino, veduta_api::OpenFlags::READ))?;
        return file_ioctl(call, &*file);
    }
    let file = stand_in.file(false)?;
    file_ioctl(call, &*file)
}

/// Whether the caller may do to a node what an `ioctl(2)` asks for, if that sets flags.
pub(crate) fn may_set_flags(call: &Call<'_>, place: &Place) -> Result<()> {
    let command = call.args[1] as u32;
    let (true, Place::Tree(node, attr)) = (matches!(command, FS_IOC_SETFLAGS | FS_IOC_FSSETXATTR), place)
    else {
        return Ok(());
    };
    call.writable(place)?;
    let caller = call.caller.on(&node.mount);
    if !caller.is_root() && caller.uid() != attr.uid {
        return Err(Errno::EPERM);
    }
    // `FS_IMMUTABLE_FL` and `FS_APPEND_FL`: only root sets them, and takes them away.
    let flags = call.task.read_array(call.args[2]).map(u32::from_ne_bytes)?;
    let (immutable, append) = if command == FS_IOC_SETFLAGS { (0x10, 0x20) } else { (8, 0x10) };
    let changes =
        (flags & immutable != 0) != attr.flags.immutable || (flags & append != 0) != attr.flags.append_only;
    if changes && !caller.is_root() && node.mount.checks_permissions() { Err(Errno::EPERM) } else { Ok(()) }
}

/// Passes an `ioctl(2)` on to a file.
pub(crate) fn file_ioctl(call: &Call<'_>, file: &dyn veduta_api::File) -> Outcome {
    with_ioctl(call, |request| guarded(|| file.ioctl(request)))
}

/// Fetches what a request takes, and brings back what it gives.
pub(crate) fn with_ioctl(call: &Call<'_>, work: impl FnOnce(&mut Ioctl<'_>) -> Result<i32>) -> Outcome {
    let command = call.args[1] as u32;
    let shape = shape(command);
    let mut input = vec![0; shape.input];
    call.task.read(call.args[2], &mut input)?;
    if let Some((at, len)) = shape.follow {
        let pointer = input.get(at..).and_then(|rest| rest.first_chunk()).ok_or(Errno::EFAULT)?;
        let mut behind = vec![0; len];
        call.task.read(u64::from_ne_bytes(*pointer), &mut behind)?;
        input.extend(behind);
    }
    let mut output = vec![0; shape.output];
    let mut request = Ioctl { command, argument: call.args[2], input: &input, output: &mut output };
    let value = work(&mut request)?;
    call.task.write(call.args[2], &output)?;
    Ok(Answer::Value(value.into()))
}

const FIGETBSZ: u32 = 2;
const BLKGETSIZE64: u32 = 0x8008_1272;
const BLKRRPART: u32 = 0x125f;
const BLKPG: u32 = 0x1269;
const FS_IOC_SETFLAGS: u32 = 0x4008_6602;
const FS_IOC_FSSETXATTR: u32 = 0x401c_5820;

/// What moves between the caller and the driver: as the number says, or, for those that were given out before numbers told, as the list of
/// block devices has it.
fn shape(command: u32) -> IoctlShape {
    if let Some(shape) = ioctl_shape(command) {
        return shape;
    }
    let direction = command >> 30;
    let size = (command >> 16 & 0x3fff) as usize;
    IoctlShape {
        input: if direction & 1 != 0 { size } else { 0 },
        output: if direction & 2 != 0 { size } else { 0 },
        follow: None,
    }
}
