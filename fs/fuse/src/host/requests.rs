//! The kernel's requests, one function each.

use std::ffi::OsStr;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Wake, Waker};
use std::time::Duration;

use fuser::{
    FileAttr, FileHandle, FopenFlags, ForgetOne, Generation, INodeNo, InitFlags, IoctlFlags, KernelConfig,
    LockOwner, PollEvents, PollNotifier, ReplyAttr, ReplyCreate, ReplyData, ReplyDirectory,
    ReplyDirectoryPlus, ReplyEmpty, ReplyEntry, ReplyIoctl, ReplyLock, ReplyLseek, ReplyOpen, ReplyPoll,
    ReplyStatfs, ReplyStatx, ReplyWrite, ReplyXattr, RequestId, TimeOrNow, WriteFlags,
};
use nix::libc;
use parking_lot::Mutex;
use veduta_api::{
    Attr, Errno, FileLock, Ino, Ioctl, Kind, LockKind, Perm, RenameFlags, Seek, SetAttr, SetTime, Timestamp,
};

use super::convert::{allocation, fitting, lock_kind, open_flags, ready_from, ready_to, valid};
use super::{Answer, Host, MAX_BACKGROUND, MAX_DATA, lasting};
use crate::handles::{DataPath, OpenDir, OpenFile};
use crate::policy::{Change, dirent_type};
use crate::server;

/// Replies with what a request came to, where only a value or an error goes out.
macro_rules! answer {
    ($answer:expr, $reply:ident, $value:pat => $send:expr) => {
        match $answer {
            (false, _) => $reply.abandon(),
            (true, Ok($value)) => {
                let _ = $send;
            }
            (true, Err(errno)) => $reply.error(errno),
        }
    };
}

impl fuser::Filesystem for Host {
    fn init(&mut self, _request: &fuser::Request, config: &mut KernelConfig) -> io::Result<()> {
        let mut wanted = InitFlags::FUSE_ASYNC_READ
            | InitFlags::FUSE_BIG_WRITES
            | InitFlags::FUSE_MAX_PAGES
            | InitFlags::FUSE_DONT_MASK
            | InitFlags::FUSE_ASYNC_DIO
            | InitFlags::FUSE_PARALLEL_DIROPS
            | InitFlags::FUSE_DO_READDIRPLUS
            | InitFlags::FUSE_HAS_IOCTL_DIR
            | InitFlags::FUSE_HANDLE_KILLPRIV_V2
            | InitFlags::FUSE_SETXATTR_EXT
            | InitFlags::FUSE_DIRECT_IO_ALLOW_MMAP;
        for (when, flags) in [
            (self.policy.shared, InitFlags::FUSE_AUTO_INVAL_DATA),
            (!self.policy.shared, InitFlags::FUSE_CACHE_SYMLINKS | InitFlags::FUSE_EXPLICIT_INVAL_DATA),
            // Where names are not remembered for long, listing them with attributes saves asking for each, also in long directories.
            (!self.policy.shared, InitFlags::FUSE_READDIRPLUS_AUTO),
            (self.policy.immutable, InitFlags::FUSE_NO_OPEN_SUPPORT | InitFlags::FUSE_NO_OPENDIR_SUPPORT),
            (self.policy.writeback, InitFlags::FUSE_WRITEBACK_CACHE),
            (self.facts.acl, InitFlags::FUSE_POSIX_ACL),
            (self.facts.remote_locks, InitFlags::FUSE_POSIX_LOCKS | InitFlags::FUSE_FLOCK_LOCKS),
        ] {
            if when {
                wanted |= flags;
            }
        }
        if self.policy.passthrough && self.facts.backing && config.set_max_stack_depth(1).is_ok() {
            wanted |= InitFlags::FUSE_PASSTHROUGH;
        }
        let offered = config.capabilities();
        let _ = config.add_capabilities(wanted & offered);
        let skips = |flag| self.policy.immutable && offered.contains(flag);
        self.expires = AtomicBool::new(offered.contains(InitFlags::FUSE_HAS_EXPIRE_ONLY));
        self.skip_open = AtomicBool::new(skips(InitFlags::FUSE_NO_OPEN_SUPPORT));
        self.skip_opendir = AtomicBool::new(skips(InitFlags::FUSE_NO_OPENDIR_SUPPORT));
        if !offered.contains(InitFlags::FUSE_PASSTHROUGH) {
            self.backings.give_up();
        }
        let _ = config.set_max_write(MAX_DATA);
        let _ = config.set_max_background(MAX_BACKGROUND);
        let nanos = self.facts.time_granularity.clamp(1, 1_000_000_000);
        let _ = config.set_time_granularity(Duration::from_nanos(nanos.into()));
        Ok(())
    }

    fn interrupt(&self, _request: &fuser::Request, unique: RequestId) -> bool {
        self.shared.interrupt(unique.0)
    }

    fn lookup(&self, request: &fuser::Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        let (closings, watched) = (self.closings(), self.watched(Ino(parent.0), Some(name)));
        let answer = self.serve(request, "lookup", parent, true, || {
            let entry = self.fs.lookup(Ino(parent.0), self.name(name)?)?;
            valid(entry)
        });
        match answer {
            (true, Err(fuser::Errno::ENOENT)) if !self.policy.negative_ttl.is_zero() => {
                reply.negative(self.policy.negative_ttl);
            }
            answer => self.reply_entry(answer, closings, watched, reply),
        }
    }

    fn forget(&self, _request: &fuser::Request, ino: INodeNo, count: u64) {
        if self.closed.load(Ordering::Acquire) {
            return;
        }
        self.by_ino.remove(Ino(ino.0));
        self.filled.lock().remove(&Ino(ino.0));
        if self.policy.shared {
            self.listed.lock().remove(&Ino(ino.0));
        }
        self.forget_quietly(Ino(ino.0), count);
    }

    fn batch_forget(&self, request: &fuser::Request, nodes: &[ForgetOne]) {
        for node in nodes {
            self.forget(request, node.nodeid(), node.nlookup());
        }
    }

    fn getattr(&self, request: &fuser::Request, ino: INodeNo, _fh: Option<FileHandle>, reply: ReplyAttr) {
        let (closings, watched) = (self.closings(), self.watched_node(Ino(ino.0)));
        let answer = self.serve(request, "getattr", ino, true, || self.fs.getattr(Ino(ino.0)));
        answer!(answer, reply, attr => {
            let ttl = self.attr_ttl(Ino(ino.0), closings, lasting_node(watched, &attr));
            reply.attr(&ttl, &self.attr(&attr));
        });
    }

    fn statx(
        &self,
        request: &fuser::Request,
        ino: INodeNo,
        _fh: Option<FileHandle>,
        _mask: u32,
        reply: ReplyStatx,
    ) {
        let (closings, watched) = (self.closings(), self.watched_node(Ino(ino.0)));
        let answer = self.serve(request, "statx", ino, true, || self.fs.getattr(Ino(ino.0)));
        answer!(answer, reply, attr => {
            let birth = attr.btime.map(|time| fuser::Timestamp { secs: time.seconds, nanos: time.nanos });
            let ttl = self.attr_ttl(Ino(ino.0), closings, lasting_node(watched, &attr));
            reply.statx(&ttl, &self.attr(&attr), birth);
        });
    }

    fn setattr(
        &self,
        request: &fuser::Request,
        ino: INodeNo,
        mode: Option<u32>,
        uid: Option<u32>,
        gid: Option<u32>,
        size: Option<u64>,
        atime: Option<TimeOrNow>,
        mtime: Option<TimeOrNow>,
        ctime: Option<fuser::Timestamp>,
        _fh: Option<FileHandle>,
        drop_set_id: bool,
        reply: ReplyAttr,
    ) {
        let moment = |time: fuser::Timestamp| Timestamp { seconds: time.secs, nanos: time.nanos };
        let time = |time| match time {
            TimeOrNow::SpecificTime(time) => SetTime::To(moment(time)),
            TimeOrNow::Now => SetTime::Now,
        };
        let changes = SetAttr {
            perm: mode.map(Perm::from_mode),
            uid,
            gid,
            size,
            atime: atime.map(time),
            mtime: mtime.map(time),
            ctime: ctime.map(moment),
            flags: None,
            drop_set_id,
        };
        let closings = self.closings();
        let answer = self.change(request, "setattr", ino, || self.do_setattr(Ino(ino.0), &changes));
        answer!(answer, reply, attr => reply.attr(&self.attr_ttl(Ino(ino.0), closings, None), &self.attr(&attr)));
    }

    fn readlink(&self, request: &fuser::Request, ino: INodeNo, reply: ReplyData) {
        let answer = self.serve(request, "readlink", ino, true, || {
            let target = self.fs.readlink(Ino(ino.0))?;
            let fits = (1..libc::PATH_MAX as usize).contains(&target.len());
            if fits && !target.as_bytes().contains(&0) { Ok(target) } else { Err(Errno::EUCLEAN) }
        });
        answer!(answer, reply, target => reply.data(target.as_bytes()));
    }

    fn mknod(
        &self,
        request: &fuser::Request,
        parent: INodeNo,
        name: &OsStr,
        mode: u32,
        umask: u32,
        rdev: u32,
        reply: ReplyEntry,
    ) {
        let answer = self.change(request, "mknod", parent, || {
            let name = self.name(name)?;
            let new = self.new_node(request, Ino(parent.0), mode, umask, rdev)?;
            valid(self.fs.mknod(Ino(parent.0), name, &new)?)
        });
        self.reply_entry(answer, self.closings(), None, reply);
    }

    fn mkdir(
        &self,
        request: &fuser::Request,
        parent: INodeNo,
        name: &OsStr,
        mode: u32,
        umask: u32,
        reply: ReplyEntry,
    ) {
        let answer = self.change(request, "mkdir", parent, || {
            let name = self.name(name)?;
            let mode = mode & 0o7777 | libc::S_IFDIR;
            let new = self.new_node(request, Ino(parent.0), mode, umask, 0)?;
            valid(self.fs.mkdir(Ino(parent.0), name, &new)?)
        });
        self.reply_entry(answer, self.closings(), None, reply);
    }

    fn symlink(
        &self,
        request: &fuser::Request,
        parent: INodeNo,
        name: &OsStr,
        target: &Path,
        reply: ReplyEntry,
    ) {
        let answer = self.change(request, "symlink", parent, || {
            let name = self.name(name)?;
            let new = self.new_node(request, Ino(parent.0), libc::S_IFLNK | 0o777, 0, 0)?;
            valid(self.fs.symlink(Ino(parent.0), name, target.as_os_str(), &new)?)
        });
        self.reply_entry(answer, self.closings(), None, reply);
    }

    fn link(&self, request: &fuser::Request, ino: INodeNo, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        let closings = self.closings();
        let answer = self.change(request, "link", ino, || {
            let name = self.name(name)?;
            self.guard(Ino(ino.0), Change::Any)?;
            self.guard(Ino(parent.0), Change::Append)?;
            valid(self.fs.link(Ino(ino.0), Ino(parent.0), name)?)
        });
        self.reply_entry(answer, closings, None, reply);
    }

    fn unlink(&self, request: &fuser::Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        let answer = self.change(request, "unlink", parent, || {
            let name = self.name(name)?;
            self.guard_name(Ino(parent.0), name)?;
            self.fs.unlink(Ino(parent.0), name)
        });
        answer!(answer, reply, () => reply.ok());
    }

    fn rmdir(&self, request: &fuser::Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        let answer = self.change(request, "rmdir", parent, || {
            let name = self.name(name)?;
            self.guard_name(Ino(parent.0), name)?;
            self.fs.rmdir(Ino(parent.0), name)
        });
        answer!(answer, reply, () => reply.ok());
    }

    fn rename(
        &self,
        request: &fuser::Request,
        parent: INodeNo,
        name: &OsStr,
        new_parent: INodeNo,
        new_name: &OsStr,
        flags: fuser::RenameFlags,
        reply: ReplyEmpty,
    ) {
        let answer = self.change(request, "rename", parent, || {
            let (name, new_name) = (self.name(name)?, self.name(new_name)?);
            let flags = RenameFlags {
                no_replace: flags.contains(fuser::RenameFlags::RENAME_NOREPLACE),
                exchange: flags.contains(fuser::RenameFlags::RENAME_EXCHANGE),
                whiteout: flags.contains(fuser::RenameFlags::RENAME_WHITEOUT),
            };
            self.guard_name(Ino(parent.0), name)?;
            self.guard(Ino(new_parent.0), Change::Append)?;
            match self.guard_name(Ino(new_parent.0), new_name) {
                Ok(()) | Err(Errno::ENOENT) => {}
                Err(errno) => return Err(errno),
            }
            self.fs.rename(Ino(parent.0), name, Ino(new_parent.0), new_name, flags)
        });
        answer!(answer, reply, () => reply.ok());
    }

    fn open(&self, request: &fuser::Request, ino: INodeNo, flags: fuser::OpenFlags, reply: ReplyOpen) {
        let node = Ino(ino.0);
        let wanted = open_flags(flags.0);
        let answer = self.serve(request, "open", ino, !wanted.write, || {
            if wanted.write {
                if self.policy.read_only {
                    return Err(Errno::EROFS);
                }
                let append = flags.0 & libc::O_APPEND != 0 && flags.0 & libc::O_TRUNC == 0;
                self.guard(node, if append { Change::Append } else { Change::Any })?;
            }
            let unsized_ = self.is_unsized(node);
            let file = self.fs.open(node, wanted)?;
            if self.skip_open.load(Ordering::Relaxed) {
                if file.backing().is_none() {
                    return Ok(Opened::Never(self.open_file(node, file, false, DataPath::Direct)));
                }
                self.skip_open.store(false, Ordering::Relaxed);
            }
            let passes = self.policy.passthrough && self.facts.backing;
            let privileged = wanted.write && passes && self.is_privileged(node);
            let path = self.data_path(node, &file, unsized_, privileged);
            if !wanted.write {
                self.fill_cache(node, &*file, &path);
                self.note_read(node);
            }
            Ok(Opened::File(self.open_file(node, file, wanted.write, path)))
        });
        match answer {
            (true, Ok(Opened::File(file))) => {
                let (path, flags) = (file.path.clone(), self.open_flags(&file.path, file.writable));
                let handle = self.keep(file);
                if !reply.opened(FileHandle(handle), flags, Self::backing_of(&path)) {
                    self.close(handle);
                }
            }
            (true, Ok(Opened::Never(file))) => {
                self.by_ino.insert(file);
                // The kernel takes ENOSYS for "open is not needed", and does not ask again.
                reply.error(fuser::Errno::ENOSYS);
            }
            (true, Err(errno)) => reply.error(errno),
            (false, result) => {
                reply.abandon();
                if let Ok(Opened::File(file)) = result {
                    let handle = self.keep(file);
                    self.close(handle);
                }
            }
        }
    }

    fn create(
        &self,
        request: &fuser::Request,
        parent: INodeNo,
        name: &OsStr,
        mode: u32,
        umask: u32,
        flags: i32,
        reply: ReplyCreate,
    ) {
        let answer = self.change(request, "create", parent, || {
            let name = self.name(name)?;
            let new = self.new_node(request, Ino(parent.0), mode & 0o7777 | libc::S_IFREG, umask, 0)?;
            match self.fs.create(Ino(parent.0), name, &new, open_flags(flags)) {
                // Somebody else was faster. ESTALE has the kernel look the name up again, and open what it finds.
                Err(Errno::EEXIST) if flags & libc::O_EXCL == 0 => Err(Errno::ESTALE),
                made => made,
            }
        });
        self.reply_created(answer, open_flags(flags), reply);
    }

    fn tmpfile(
        &self,
        request: &fuser::Request,
        parent: INodeNo,
        mode: u32,
        umask: u32,
        flags: i32,
        reply: ReplyCreate,
    ) {
        let answer = self.change(request, "tmpfile", parent, || {
            let new = self.new_node(request, Ino(parent.0), mode & 0o7777 | libc::S_IFREG, umask, 0)?;
            self.fs.tmpfile(Ino(parent.0), &new, open_flags(flags))
        });
        self.reply_created(answer, open_flags(flags), reply);
    }

    fn read(
        &self,
        request: &fuser::Request,
        ino: INodeNo,
        handle: FileHandle,
        offset: u64,
        size: u32,
        _flags: fuser::OpenFlags,
        _owner: Option<LockOwner>,
        reply: ReplyData,
    ) {
        let size = size.min(MAX_DATA) as usize;
        self.shared.with_buffer(size, |buffer| {
            let answer = self.serve(request, "read", ino, true, || {
                let read = self.file(ino, handle)?.file.read_at(buffer, offset)?;
                if read > size {
                    tracing::error!("the driver says that it read more than was asked for");
                    return Err(Errno::EIO);
                }
                Ok(read)
            });
            answer!(answer, reply, read => reply.data(&buffer[..read]));
        });
    }

    fn write(
        &self,
        request: &fuser::Request,
        ino: INodeNo,
        handle: FileHandle,
        offset: u64,
        data: &[u8],
        write_flags: WriteFlags,
        _flags: fuser::OpenFlags,
        _owner: Option<LockOwner>,
        reply: ReplyWrite,
    ) {
        let answer = self.change(request, "write", ino, || {
            let drop_set_id = write_flags.contains(WriteFlags::FUSE_WRITE_KILL_SUIDGID);
            let written = self.do_write(&*self.file(ino, handle)?, offset, data, drop_set_id)?;
            Ok(u32::try_from(written).unwrap_or(u32::MAX))
        });
        answer!(answer, reply, written => reply.written(written));
    }

    fn flush(
        &self,
        request: &fuser::Request,
        ino: INodeNo,
        handle: FileHandle,
        owner: LockOwner,
        reply: ReplyEmpty,
    ) {
        let silent = self.policy.immutable || self.facts.silent_close;
        if silent && !self.facts.remote_locks {
            // "Not needed": the kernel does not ask again.
            return reply.error(fuser::Errno::ENOSYS);
        }
        let answer = self.serve(request, "flush", ino, false, || {
            let file = self.file(ino, handle)?;
            self.unlock_all(&file, owner);
            if file.writable { file.file.flush() } else { Ok(()) }
        });
        answer!(answer, reply, () => reply.ok());
    }

    fn release(
        &self,
        request: &fuser::Request,
        ino: INodeNo,
        handle: FileHandle,
        _flags: fuser::OpenFlags,
        owner: LockOwner,
        unlock: bool,
        _flush: bool,
        reply: ReplyEmpty,
    ) {
        let answer = self.serve(request, "release", ino, false, || {
            if unlock {
                self.unlock_all(&*self.file(ino, handle)?, owner);
            }
            self.close(handle.0);
            Ok(())
        });
        answer!(answer, reply, () => reply.ok());
    }

    fn fsync(
        &self,
        request: &fuser::Request,
        ino: INodeNo,
        handle: FileHandle,
        data_only: bool,
        reply: ReplyEmpty,
    ) {
        if self.policy.immutable {
            return reply.error(fuser::Errno::ENOSYS);
        }
        let answer = self.serve(request, "fsync", ino, false, || {
            let file = self.file(ino, handle)?;
            if self.policy.read_only { Ok(()) } else { file.file.sync(data_only) }
        });
        answer!(answer, reply, () => reply.ok());
    }

    fn opendir(&self, request: &fuser::Request, ino: INodeNo, _flags: fuser::OpenFlags, reply: ReplyOpen) {
        let answer = self.serve(request, "opendir", ino, true, || self.fs.opendir(Ino(ino.0)));
        // The kernel asks for a directory's mtime (FUSE_AUTO_INVAL_DATA) before it uses what it remembers of one.
        let mut flags = FopenFlags::empty();
        if !self.policy.shared || self.facts.dated_listings {
            flags |= FopenFlags::FOPEN_CACHE_DIR;
            flags.set(FopenFlags::FOPEN_KEEP_CACHE, !self.policy.shared || self.is_listed(Ino(ino.0)));
        }
        match answer {
            (true, Ok(None)) if self.skip_opendir.load(Ordering::Relaxed) => {
                reply.error(fuser::Errno::ENOSYS);
            }
            (true, Ok(None)) => {
                reply.opened(FileHandle(0), flags, None);
            }
            (true, Ok(Some(dir))) => {
                self.skip_opendir.store(false, Ordering::Relaxed);
                let handle = self.dirs.insert(OpenDir { dir });
                if !reply.opened(FileHandle(handle), flags, None) {
                    self.close_dir(handle);
                }
            }
            (true, Err(errno)) => reply.error(errno),
            (false, _) => reply.abandon(),
        }
    }

    fn readdir(
        &self,
        request: &fuser::Request,
        ino: INodeNo,
        handle: FileHandle,
        offset: u64,
        mut reply: ReplyDirectory,
    ) {
        let room = reply.room();
        let answer =
            self.serve(request, "readdir", ino, true, || self.list(ino, handle, offset, room, false));
        answer!(answer, reply, listing => {
            for (is_dot, entry) in listing.iter() {
                let next = if is_dot { entry.next } else { entry.next.saturating_add(2) };
                if reply.add(INodeNo(entry.st_ino), next, dirent_type(entry.kind), entry.name) {
                    break;
                }
            }
            reply.ok();
        });
    }

    fn readdirplus(
        &self,
        request: &fuser::Request,
        ino: INodeNo,
        handle: FileHandle,
        offset: u64,
        mut reply: ReplyDirectoryPlus,
    ) {
        let room = reply.room();
        let closings = self.closings();
        let (ours, result) = self.serve(request, "readdirplus", ino, true, || {
            let dir = Ino(ino.0);
            let watched = if offset == 0 { self.note_listed(dir) } else { self.watched(dir, None) };
            let listing = self.list(ino, handle, offset, room, true)?;
            let entries = self.entries(dir, &listing);
            Ok((watched, listing, entries))
        });
        let (watched, listing, entries) = match result {
            Ok(listed) => listed,
            Err(errno) if ours => return reply.error(errno),
            Err(_) => return reply.abandon(),
        };
        let mut taken = Vec::with_capacity(entries.len());
        for ((is_dot, listed), entry) in listing.iter().zip(&entries) {
            let next = if is_dot { listed.next } else { listed.next.saturating_add(2) };
            let attr = match entry {
                Some(entry) => self.attr(&entry.attr),
                // Without a node, only the number and the type of this are looked at.
                None => FileAttr {
                    ino: listed.st_ino,
                    mode: dirent_type(listed.kind) << 12,
                    ..FileAttr::default()
                },
            };
            let (node, generation) = entry.map_or((0, 0), |entry| (entry.ino.0, entry.generation));
            let (node, generation) = (INodeNo(node), Generation(generation));
            let watched = watched.and_then(|_| self.watched(Ino(ino.0), Some(listed.name)));
            let lasts = entry.and_then(|entry| lasting(watched, &entry.attr));
            let attr_ttl = self.attr_ttl(Ino(node.0), closings, lasts);
            let entry_ttl = watched.unwrap_or(self.policy.entry_ttl);
            let full = reply.add(node, generation, next, listed.name, &attr, attr_ttl, entry_ttl);
            if full {
                break;
            }
            taken.push(entry);
        }
        let count = taken.len();
        let sent = if ours {
            reply.ok()
        } else {
            reply.abandon();
            false
        };
        let kept = if sent { count } else { 0 };
        for entry in entries.iter().skip(kept).flatten() {
            self.forget_quietly(entry.ino, 1);
        }
    }

    fn releasedir(
        &self,
        request: &fuser::Request,
        ino: INodeNo,
        handle: FileHandle,
        _flags: fuser::OpenFlags,
        reply: ReplyEmpty,
    ) {
        let answer = self.serve(request, "releasedir", ino, false, || {
            self.close_dir(handle.0);
            Ok(())
        });
        answer!(answer, reply, () => reply.ok());
    }

    fn fsyncdir(
        &self,
        request: &fuser::Request,
        ino: INodeNo,
        _handle: FileHandle,
        _data_only: bool,
        reply: ReplyEmpty,
    ) {
        if self.policy.immutable {
            return reply.error(fuser::Errno::ENOSYS);
        }
        let answer = self.serve(request, "fsyncdir", ino, false, || self.fs.sync());
        answer!(answer, reply, () => reply.ok());
    }

    fn syncfs(&self, request: &fuser::Request, ino: INodeNo, reply: ReplyEmpty) {
        let answer = self.serve(request, "syncfs", ino, false, || self.fs.sync());
        answer!(answer, reply, () => reply.ok());
    }

    fn statfs(&self, request: &fuser::Request, ino: INodeNo, reply: ReplyStatfs) {
        let answer = self.serve(request, "statfs", ino, true, || self.fs.statfs());
        answer!(answer, reply, s => reply.statfs(
            s.blocks,
            s.blocks_free,
            s.blocks_available,
            s.files,
            s.files_free,
            s.block_size,
            self.facts.name_max,
            s.block_size,
        ));
    }

    fn setxattr(
        &self,
        request: &fuser::Request,
        ino: INodeNo,
        name: &OsStr,
        value: &[u8],
        flags: i32,
        acl_kill_sgid: bool,
        reply: ReplyEmpty,
    ) {
        let answer = self.change(request, "setxattr", ino, || {
            self.do_setxattr(Ino(ino.0), name, value, flags, acl_kill_sgid)
        });
        answer!(answer, reply, () => reply.ok());
    }

    fn getxattr(&self, request: &fuser::Request, ino: INodeNo, name: &OsStr, size: u32, reply: ReplyXattr) {
        let asks_for_us = Ino(ino.0) == Ino::ROOT && name == server::NAME;
        if self.no_xattrs && !asks_for_us {
            return reply.error(fuser::Errno::ENOSYS);
        }
        let answer = self.serve(request, "getxattr", ino, true, || {
            let value = if asks_for_us { server::value() } else { self.fs.getxattr(Ino(ino.0), name)? };
            fitting(value, size)
        });
        reply_xattr(answer, size, reply);
    }

    fn listxattr(&self, request: &fuser::Request, ino: INodeNo, size: u32, reply: ReplyXattr) {
        if self.no_xattrs {
            return reply.error(fuser::Errno::ENOSYS);
        }
        let answer = self.serve(request, "listxattr", ino, true, || {
            let mut list = Vec::new();
            for name in self.fs.listxattr(Ino(ino.0))? {
                list.extend_from_slice(name.as_bytes());
                list.push(0);
            }
            fitting(list, size)
        });
        reply_xattr(answer, size, reply);
    }

    fn removexattr(&self, request: &fuser::Request, ino: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        let answer = self.change(request, "removexattr", ino, || {
            self.guard(Ino(ino.0), Change::Any)?;
            self.fs.removexattr(Ino(ino.0), name)
        });
        answer!(answer, reply, () => reply.ok());
    }

    /// Asked only where the tree decides about permissions; it then does so in the operation itself.
    fn access(&self, _request: &fuser::Request, _ino: INodeNo, _mask: fuser::AccessFlags, reply: ReplyEmpty) {
        reply.error(fuser::Errno::ENOSYS);
    }

    /// `FIBMAP`: there is no device that the blocks could be on.
    fn bmap(
        &self,
        _request: &fuser::Request,
        _ino: INodeNo,
        _size: u32,
        _block: u64,
        reply: fuser::ReplyBmap,
    ) {
        reply.error(fuser::Errno::ENOSYS);
    }

    fn getlk(
        &self,
        request: &fuser::Request,
        ino: INodeNo,
        handle: FileHandle,
        owner: LockOwner,
        start: u64,
        end: u64,
        kind: i32,
        pid: u32,
        reply: ReplyLock,
    ) {
        let answer = self.serve(request, "getlk", ino, true, || {
            let mut lock = FileLock { kind: lock_kind(kind)?, start, end, pid };
            self.file(ino, handle)?.file.lock(owner.0, &mut lock, true, false)?;
            Ok(lock)
        });
        answer!(answer, reply, lock => {
            let kind = match lock.kind {
                LockKind::Shared => libc::F_RDLCK,
                LockKind::Exclusive => libc::F_WRLCK,
                LockKind::Unlock => libc::F_UNLCK,
            };
            reply.locked(lock.start, lock.end, kind, lock.pid);
        });
    }

    fn setlk(
        &self,
        request: &fuser::Request,
        ino: INodeNo,
        handle: FileHandle,
        owner: LockOwner,
        start: u64,
        end: u64,
        kind: i32,
        pid: u32,
        _flock: bool,
        wait: bool,
        reply: ReplyEmpty,
    ) {
        let answer = self.serve(request, "setlk", ino, false, || {
            let mut lock = FileLock { kind: lock_kind(kind)?, start, end, pid };
            self.file(ino, handle)?.file.lock(owner.0, &mut lock, false, wait)
        });
        answer!(answer, reply, () => reply.ok());
    }

    fn ioctl(
        &self,
        request: &fuser::Request,
        ino: INodeNo,
        handle: FileHandle,
        flags: IoctlFlags,
        command: u32,
        argument: u64,
        input: &[u8],
        out_size: u32,
        reply: ReplyIoctl,
    ) {
        let mut output = vec![0; out_size.min(MAX_DATA) as usize];
        let answer = self.serve(request, "ioctl", ino, false, || {
            let mut ioctl = Ioctl { command, argument, input, output: &mut output };
            if flags.contains(IoctlFlags::FUSE_IOCTL_DIR) {
                return self.do_ioctl(Ino(ino.0), None, &mut ioctl);
            }
            let file = self.file(ino, handle)?;
            self.do_ioctl(Ino(ino.0), Some(&file), &mut ioctl)
        });
        answer!(answer, reply, result => reply.ioctl(result, &output));
    }

    fn poll(
        &self,
        request: &fuser::Request,
        ino: INodeNo,
        handle: FileHandle,
        notifier: PollNotifier,
        events: PollEvents,
        flags: fuser::PollFlags,
        reply: ReplyPoll,
    ) {
        if self.policy.immutable {
            // "Always ready": the kernel does not ask again.
            return reply.error(fuser::Errno::ENOSYS);
        }
        let answer = self.serve(request, "poll", ino, true, || {
            let waker = flags
                .contains(fuser::PollFlags::FUSE_POLL_SCHEDULE_NOTIFY)
                .then(|| Waker::from(Arc::new(PollWaker(Mutex::new(Some(notifier))))));
            self.file(ino, handle)?.file.ready(ready_from(events), waker.as_ref())
        });
        answer!(answer, reply, ready => reply.poll(ready_to(ready)));
    }

    fn fallocate(
        &self,
        request: &fuser::Request,
        ino: INodeNo,
        handle: FileHandle,
        offset: u64,
        len: u64,
        mode: i32,
        reply: ReplyEmpty,
    ) {
        let answer = self.change(request, "fallocate", ino, || {
            let how = allocation(mode)?;
            if offset.checked_add(len).is_none_or(|end| end > self.facts.size_max) {
                return Err(Errno::EFBIG);
            }
            let file = self.file(ino, handle)?;
            self.drop_capabilities(&file);
            file.file.allocate(how, offset, len)
        });
        answer!(answer, reply, () => reply.ok());
    }

    fn lseek(
        &self,
        request: &fuser::Request,
        ino: INodeNo,
        handle: FileHandle,
        offset: i64,
        whence: i32,
        reply: ReplyLseek,
    ) {
        let answer = self.serve(request, "lseek", ino, true, || {
            let what = match whence {
                libc::SEEK_DATA => Seek::Data,
                libc::SEEK_HOLE => Seek::Hole,
                _ => return Err(Errno::EINVAL),
            };
            let offset = u64::try_from(offset).map_err(|_| Errno::ENXIO)?;
            self.fetch_held_back(Ino(ino.0));
            let found = match self.file(ino, handle)?.file.seek(what, offset) {
                Err(Errno::EOPNOTSUPP) => self.seek_dense(Ino(ino.0), what, offset)?,
                found => found?,
            };
            i64::try_from(found).map_err(|_| Errno::EOVERFLOW)
        });
        answer!(answer, reply, found => reply.offset(found));
    }

    fn copy_file_range(
        &self,
        request: &fuser::Request,
        from: INodeNo,
        _from_handle: FileHandle,
        offset: u64,
        to: INodeNo,
        to_handle: FileHandle,
        to_offset: u64,
        len: u64,
        _flags: fuser::CopyFileRangeFlags,
        reply: ReplyWrite,
    ) {
        // The reply has 32 bits for the count.
        let len = len.min(0xffff_f000);
        let answer = self.change(request, "copy_file_range", from, || {
            if to_offset.checked_add(len).is_none_or(|end| end > self.facts.size_max) {
                return Err(Errno::EFBIG);
            }
            self.drop_capabilities(&*self.file(to, to_handle)?);
            let copied = self.fs.copy_range(Ino(from.0), offset, Ino(to.0), to_offset, len)?;
            u32::try_from(copied).map_err(|_| Errno::EIO)
        });
        answer!(answer, reply, copied => reply.written(copied));
    }
}

/// As [`lasting`], for a node that was named by itself.
fn lasting_node((own, above): (Option<Duration>, Option<Duration>), attr: &Attr) -> Option<Duration> {
    if attr.kind == Kind::Directory { own } else { lasting(above, attr) }
}

/// What `open` came to.
pub(super) enum Opened {
    File(OpenFile),
    /// The tree needs no opening; this file serves whoever asks for its node.
    Never(OpenFile),
}

/// Wakes a poller: the kernel asks again.
struct PollWaker(Mutex<Option<PollNotifier>>);

impl Wake for PollWaker {
    fn wake(self: Arc<Self>) {
        let notifier = self.0.lock().take();
        if let Some(Err(error)) = notifier.map(PollNotifier::notify) {
            tracing::debug!("a poller could not be woken: {error}");
        }
    }
}

fn reply_xattr(answer: Answer<Vec<u8>>, size: u32, reply: ReplyXattr) {
    answer!(answer, reply, value => match size {
        0 => reply.size(u32::try_from(value.len()).unwrap_or(u32::MAX)),
        _ => reply.data(&value),
    });
}
