//! Sockets and fifos in virtual trees.
//!
//! A socket's name is a node of the tree; behind it is an abstract address that belongs to the node, so `bind(2)`,
//! `connect(2)` and those who send without connecting meet. The engine makes the call itself, on a copy of the task's descriptor, which is the
//! same socket. A fifo's node has a real fifo without a name.

use std::collections::HashMap;
use std::ffi::OsStr;
use std::io::IoSlice;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::sync::Arc;
use std::time::Duration;

use nix::errno::Errno;
use nix::fcntl::{AT_FDCWD, AtFlags, FcntlArg, OFlag, SpliceFFlags, fcntl, open, tee};
use nix::libc;
use nix::sys::socket::sockopt::SockType as TypeOption;
use nix::sys::socket::{ControlMessage, MsgFlags, SockType, UnixAddr, UnixCredentials, getsockopt, sendmsg};
use nix::sys::stat::Mode;
use nix::unistd::{AccessFlags, faccessat};
use veduta_api::{Device, Ino, Interrupt, Kind, Result};
use veduta_trace::raw::{self, Argument};

use crate::call::{Answer, Call, DONE, Outcome, Target};
use crate::identity::{EXECUTE, WRITE};
use crate::node::{Node, guarded};
use crate::walk::{Limits, Place};

/// Bytes before the path in `struct sockaddr_un`.
const FAMILY: usize = 2;
/// Bytes of a path in `struct sockaddr_un`, without the NUL.
const ROOM: usize = 107;
/// Bytes; no message to a named socket is longer, since it does not come in parts.
const MOST_DATA: usize = 8 << 20;
/// Bytes of all that goes with a message: twice what the kernel takes.
const MOST_CONTROL: usize = 64 << 10;
/// Which word of a line of `/proc/net/unix` says the type, in hexadecimal.
const TYPE_COLUMN: usize = 4;
/// With fewer fifos nobody looks which are still in use.
const MANY: usize = 64;
/// The last ones that were made may not have arrived at their processes yet.
const YOUNG: u64 = 16;
/// Bytes of `struct cmsghdr`.
const CONTROL_HEAD: usize = 16;

/// `bind`, `connect`, and the calls that send to an address.
pub(crate) fn serve(call: &Call<'_>, name: &str) -> Outcome {
    let args = call.args;
    match name {
        "sendto" => send(call, args[4], args[5] as usize, || {
            let mut data = vec![0; (args[2] as usize).min(MOST_DATA)];
            call.task.read(args[1], &mut data)?;
            Ok(Message { data, flags: call.int(3), rights: Vec::new(), credentials: None })
        }),
        // Of several messages the first is sent: its sender goes on with the others.
        "sendmsg" | "sendmmsg" => {
            if name == "sendmmsg" && args[2] == 0 {
                return Ok(Answer::GoOn);
            }
            let header: [u8; 56] = call.task.read_array(args[1])?;
            let flags = call.int(if name == "sendmsg" { 2 } else { 3 });
            let sent = send(call, word(&header, 0), word(&header, 8) as u32 as usize, || {
                message(call, &header, flags)
            })?;
            match (name, sent) {
                ("sendmmsg", Answer::Value(sent)) => {
                    call.task.write(args[1] + 56, &(sent as u32).to_ne_bytes())?;
                    Ok(Answer::Value(1))
                }
                (_, sent) => Ok(sent),
            }
        }
        _ => {
            let Some(path) = unix_path(call, args[1], args[2] as usize)? else { return Ok(Answer::GoOn) };
            if name == "bind" {
                return bind(call, &path);
            }
            match reach(call, &path)? {
                Some(address) => match address.with(call, |bytes| on_socket(call, bytes)) {
                    Err(Errno::ECONNREFUSED) => Err(address.refusal(call)),
                    done => done,
                },
                None => Ok(Answer::GoOn),
            }
        }
    }
}

/// The path in an address of a task, if the socket is one that has paths.
fn unix_path(call: &Call<'_>, address: u64, len: usize) -> Result<Option<Vec<u8>>> {
    if address == 0 || !(3..=110).contains(&len) {
        return Ok(None);
    }
    let mut bytes = vec![0; len];
    call.task.read(address, &mut bytes)?;
    let family = i32::from(u16::from_ne_bytes([bytes[0], bytes[1]]));
    if family != libc::AF_UNIX || bytes[FAMILY] == 0 || !is_unix(call) {
        return Ok(None);
    }
    Ok(bytes[FAMILY..].split(|byte| *byte == 0).next().map(<[u8]>::to_vec))
}

/// An address by which the kernel finds what a task means.
struct Address {
    bytes: Vec<u8>,
    /// The directory that the path in it is relative to; an absolute path or none needs none.
    directory: Option<Vec<u8>>,
    /// It is a path of the host: the rights of the caller count.
    is_path: bool,
}

impl Address {
    /// Of a node, which no other node and no other view has.
    fn of_node(mount: u32, ino: u64) -> Self {
        let mut bytes = (libc::AF_UNIX as u16).to_ne_bytes().to_vec();
        bytes.push(0);
        bytes.extend(format!("veduta/{}/{mount}/{ino}", std::process::id()).into_bytes());
        Self { bytes, directory: None, is_path: false }
    }

    /// Of a path of the host, which the caller gave as `given`. An address has little room, and others see it: so a path is given relative to
    /// the caller's own directory if it was, or to that of the name if there is no room for more.
    fn of_path(path: &[u8], given: &[u8]) -> Result<Self> {
        let above = path.strip_suffix(given).and_then(|above| above.strip_suffix(b"/"));
        let (directory, name) = match above {
            Some(above) if !given.starts_with(b"/") => (Some(above.to_vec()), given),
            _ if path.len() > ROOM => {
                let (above, name) = crate::mounts::split(path);
                (Some(above.to_vec()), name)
            }
            _ => (None, path),
        };
        if name.len() > ROOM {
            return Err(Errno::ENAMETOOLONG);
        }
        let mut bytes = (libc::AF_UNIX as u16).to_ne_bytes().to_vec();
        bytes.extend_from_slice(name);
        bytes.push(0);
        Ok(Self { bytes, directory, is_path: true })
    }

    /// Why nobody of the caller's kind is found there. At a path the kernel tells a socket of another kind from one that nobody listens at, but it finds
    /// those without a path by their kind too.
    fn refusal(&self, call: &Call<'_>) -> Errno {
        let kind = || getsockopt(&crate::serve::descriptor(call.task, call.int(0)).ok()?, TypeOption).ok();
        let name = [b"@".as_slice(), &self.bytes[FAMILY + 1..]].concat();
        let list = std::fs::read("/proc/self/net/unix").unwrap_or_default();
        let mut lines = list
            .split(|byte| *byte == b'\n')
            .map(|line| line.split(|byte| *byte == b' ').collect::<Vec<_>>());
        let of_type = |word: &&[u8]| u32::from_str_radix(std::str::from_utf8(word).ok()?, 16).ok();
        let there = (!self.is_path)
            .then(|| lines.find(|words| words.last() == Some(&name.as_slice())))
            .flatten()
            .and_then(|words| words.get(TYPE_COLUMN).and_then(of_type));
        match (there, kind()) {
            (Some(there), Some(kind)) if there != kind as u32 => Errno::EPROTOTYPE,
            _ => Errno::ECONNREFUSED,
        }
    }

    /// Does something with it, where it means what it is to mean.
    fn with<T>(&self, call: &Call<'_>, work: impl FnOnce(&[u8]) -> Result<T>) -> Result<T> {
        if !self.is_path {
            return work(&self.bytes);
        }
        // The thread has a working directory of its own.
        let back = open(".", OFlag::O_PATH | OFlag::O_CLOEXEC, Mode::empty())?;
        crate::host::as_caller(call, || {
            if let Some(directory) = &self.directory {
                nix::unistd::chdir(OsStr::from_bytes(crate::mounts::shown(directory)))?;
            }
            let done = work(&self.bytes);
            nix::unistd::fchdir(&back)?;
            done
        })
    }
}

fn bind(call: &Call<'_>, path: &[u8]) -> Outcome {
    let found = match call.find_path(libc::AT_FDCWD as u64, path, false, false, Limits::default())? {
        Target::PlainlyHost(_) => return Ok(Answer::GoOn),
        Target::Found(found) => found,
    };
    match (&found.place, &found.parent) {
        (Some(Place::Tree(..)), _) => Err(Errno::EADDRINUSE),
        (None, Some(parent @ Place::Tree(directory, above))) => {
            call.writable(parent)?;
            call.may(parent, WRITE | EXECUTE)?;
            if let (true, Some(mut real)) = (directory.mount.of_host, directory.shows()) {
                real.push(b'/');
                real.extend_from_slice(&found.name);
                return Address::of_path(&real, path)?.with(call, |bytes| on_socket(call, bytes));
            }
            let new = crate::open::new_node(call, directory, above, Kind::Socket, 0o777, Device::default())?;
            let name = OsStr::from_bytes(&found.name);
            let entry = guarded(|| directory.tree().mknod(directory.ino, name, &new))?;
            let _node = Node::child(directory, name, &entry);
            let address = Address::of_node(directory.mount.id, entry.attr.st_ino).bytes;
            let bound = on_socket(call, &address);
            if bound.is_err() {
                guarded(|| directory.tree().unlink(directory.ino, name))?;
            } else {
                call.view.bound.lock().insert(address, path.to_vec());
                call.view.watches.made(directory, name, Kind::Socket);
            }
            bound
        }
        _ if found.direct => Ok(Answer::GoOn),
        (Some(place), _) => Address::of_path(&place.path(), path)?.with(call, |bytes| on_socket(call, bytes)),
        (None, Some(parent)) => {
            let real = [&parent.path(), b"/".as_slice(), &found.name].concat();
            Address::of_path(&real, path)?.with(call, |bytes| on_socket(call, bytes))
        }
        (None, None) => Err(Errno::ENOENT),
    }
}

/// `getsockname(2)` and `getpeername(2)`: a socket in a virtual tree has the name that it was given.
pub(crate) fn name(call: &Call<'_>) -> Outcome {
    if call.view.bound.lock().is_empty() {
        return Ok(Answer::GoOn);
    }
    let Ok(fd) = crate::serve::descriptor(call.task, call.int(0)) else { return Ok(Answer::GoOn) };
    let (mut name, mut len) = ([0; 128], 128_u32.to_ne_bytes());
    let mut arguments =
        [Argument::Value(fd.as_raw_fd() as u64), Argument::Output(&mut name), Argument::Output(&mut len)];
    if raw::call(call.number, &mut arguments).is_err() {
        return Ok(Answer::GoOn);
    }
    let len = (u32::from_ne_bytes(len) as usize).min(name.len());
    let Some(path) = call.view.bound.lock().get(&name[..len]).cloned() else { return Ok(Answer::GoOn) };
    let room = i32::from_ne_bytes(call.task.read_array(call.args[2])?);
    let room = usize::try_from(room).map_err(|_| Errno::EINVAL)?;
    let said = [&name[..FAMILY], &path, &[0]].concat();
    call.task.write(call.args[1], &said[..room.min(said.len())])?;
    call.task.write(call.args[2], &(said.len() as u32).to_ne_bytes())?;
    DONE
}

/// How the socket at a path is reached; `None` if the kernel finds it.
fn reach(call: &Call<'_>, path: &[u8]) -> Result<Option<Address>> {
    let found = match call.find_path(libc::AT_FDCWD as u64, path, true, false, Limits::default())? {
        Target::PlainlyHost(_) => return Ok(None),
        Target::Found(found) => found,
    };
    match &found.place {
        Some(place @ Place::Tree(node, attr)) => {
            call.may(place, WRITE)?;
            if attr.kind != Kind::Socket {
                // Of the host only the kernel knows whether the caller may write there, which it looks at first.
                if let Some(real) = node.shows().filter(|_| node.mount.of_host) {
                    crate::host::as_caller(call, || {
                        faccessat(
                            AT_FDCWD,
                            crate::mounts::shown(&real),
                            AccessFlags::W_OK,
                            AtFlags::AT_EACCESS,
                        )
                    })?;
                }
                return Err(Errno::ECONNREFUSED);
            }
            if node.mount.of_host {
                let real = node.shows().ok_or(Errno::ECONNREFUSED)?;
                return Address::of_path(&real, path).map(Some);
            }
            Ok(Some(Address::of_node(node.mount.id, attr.st_ino)))
        }
        _ if found.direct => Ok(None),
        Some(place) => Address::of_path(&place.path(), path).map(Some),
        None => Err(Errno::ENOENT),
    }
}

/// What a task sends.
struct Message {
    data: Vec<u8>,
    flags: i32,
    rights: Vec<OwnedFd>,
    credentials: Option<UnixCredentials>,
}

/// Sends what `message` fetches to an address of the task, if the kernel would not find it.
fn send(call: &Call<'_>, address: u64, len: usize, message: impl FnOnce() -> Result<Message>) -> Outcome {
    let Some(path) = unix_path(call, address, len)? else { return Ok(Answer::GoOn) };
    let fd = crate::serve::descriptor(call.task, call.int(0)).map_err(|_| Errno::EBADF)?;
    // One that is connected says so before it looks where to.
    if getsockopt(&fd, TypeOption)? == SockType::Stream {
        return Ok(Answer::GoOn);
    }
    let Some(address) = reach(call, &path)? else { return Ok(Answer::GoOn) };
    let message = message()?;
    let waits = message.flags & libc::MSG_DONTWAIT == 0
        && !crate::call::status_flags(&fd)?.contains(OFlag::O_NONBLOCK);
    let flags = MsgFlags::from_bits_retain(message.flags | libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL);
    let rights: Vec<i32> = message.rights.iter().map(AsRawFd::as_raw_fd).collect();
    let mut control = Vec::new();
    if !rights.is_empty() {
        control.push(ControlMessage::ScmRights(&rights));
    }
    control.extend(message.credentials.as_ref().map(ControlMessage::ScmCredentials));
    let parts = [IoSlice::new(&message.data)];
    let sending = address.with(call, |bytes| {
        let name = &bytes[FAMILY..];
        let to = match name.split_first() {
            Some((0, name)) => UnixAddr::new_abstract(name)?,
            _ => UnixAddr::new(OsStr::from_bytes(name.strip_suffix(b"\0").unwrap_or(name)))?,
        };
        loop {
            match sendmsg(fd.as_raw_fd(), &parts, &control, flags, Some(&to)) {
                Err(Errno::EAGAIN) if waits => Interrupt::current().sleep(Duration::from_millis(2))?,
                sent => return sent,
            }
        }
    });
    match sending {
        Err(Errno::ECONNREFUSED) => Err(address.refusal(call)),
        sent => Ok(Answer::Value(sent? as i64)),
    }
}

/// What a `struct msghdr` of a task says is to be sent.
fn message(call: &Call<'_>, header: &[u8], flags: i32) -> Result<Message> {
    let (parts, count) = (word(header, 16), word(header, 24));
    if count > 1024 {
        return Err(Errno::EMSGSIZE);
    }
    let mut vector = vec![0; count as usize * 16];
    call.task.read(parts, &mut vector)?;
    let mut data = Vec::new();
    for part in vector.chunks_exact(16) {
        let start = data.len();
        let len = usize::try_from(word(part, 8)).unwrap_or(usize::MAX);
        data.resize(start.saturating_add(len).min(MOST_DATA), 0);
        call.task.read(word(part, 0), &mut data[start..])?;
    }
    let mut control = vec![0; (word(header, 40) as usize).min(MOST_CONTROL)];
    call.task.read(word(header, 32), &mut control)?;
    let mut message = Message { data, flags, rights: Vec::new(), credentials: None };
    // Each has a length that is at least that of its head, so the rest gets shorter.
    let mut rest = control.as_slice();
    while rest.len() >= CONTROL_HEAD {
        let len = usize::try_from(word(rest, 0)).unwrap_or(usize::MAX);
        let body = rest.get(CONTROL_HEAD..len).ok_or(Errno::EINVAL)?;
        let kind = word(rest, 8).to_ne_bytes();
        let [level, kind] =
            [&kind[..4], &kind[4..]].map(|half| half.try_into().map_or(0, i32::from_ne_bytes));
        let number =
            |at: usize| body.get(at..at + 4).and_then(|bytes| bytes.try_into().ok()).map(i32::from_ne_bytes);
        match (level, kind) {
            (libc::SOL_SOCKET, libc::SCM_RIGHTS) => {
                for at in (0..body.len() / 4 * 4).step_by(4) {
                    let fd = number(at).ok_or(Errno::EINVAL)?;
                    message.rights.push(crate::serve::descriptor(call.task, fd).map_err(|_| Errno::EBADF)?);
                }
            }
            (libc::SOL_SOCKET, libc::SCM_CREDENTIALS) => {
                let [pid, uid, gid] =
                    [number(0), number(4), number(8)].map(|number| number.ok_or(Errno::EINVAL));
                let said = libc::ucred { pid: pid?, uid: uid? as u32, gid: gid? as u32 };
                message.credentials = Some(said.into());
            }
            _ => return Err(Errno::EINVAL),
        }
        rest = rest.get(len.next_multiple_of(8)..).unwrap_or_default();
    }
    Ok(message)
}

fn word(bytes: &[u8], at: usize) -> u64 {
    bytes.get(at..at + 8).and_then(|word| word.try_into().ok()).map_or(0, u64::from_ne_bytes)
}

/// Whether the descriptor is a socket of the family that has paths; what the kernel says of others is right.
fn is_unix(call: &Call<'_>) -> bool {
    let Ok(fd) = crate::serve::descriptor(call.task, call.int(0)) else { return false };
    let (mut name, mut len) = ([0; 128], 128_u32.to_ne_bytes());
    let mut arguments =
        [Argument::Value(fd.as_raw_fd() as u64), Argument::Output(&mut name), Argument::Output(&mut len)];
    raw::call(libc::SYS_getsockname as u32, &mut arguments).is_ok()
        && i32::from(u16::from_ne_bytes([name[0], name[1]])) == libc::AF_UNIX
}

/// Makes the task's call with another address.
fn on_socket(call: &Call<'_>, address: &[u8]) -> Outcome {
    let fd = crate::serve::descriptor(call.task, call.int(0)).map_err(|_| Errno::EBADF)?;
    let mut arguments = [
        Argument::Value(fd.as_raw_fd() as u64),
        Argument::Input(address),
        Argument::Value(address.len() as u64),
    ];
    raw::call(call.number, &mut arguments)?;
    DONE
}

/// The names that sockets were given, by the address that the kernel knows.
pub(crate) type Bound = HashMap<Vec<u8>, Vec<u8>>;

/// The real fifos of nodes.
#[derive(Default)]
pub(crate) struct Fifos {
    by_node: HashMap<(u32, Ino), Fifo>,
    made: u64,
    /// With so many, those that nobody has open are let go.
    crowd: usize,
}

struct Fifo {
    fd: Arc<OwnedFd>,
    /// Held, so that the driver's number stays that of this node.
    _node: Arc<Node>,
    /// When, as the count before.
    age: u64,
}

impl Fifos {
    /// Takes those out that nobody has open, if there are many: they are empty, and a new one serves as well. They are to be dropped without the lock, since that
    /// calls drivers.
    fn unused(&mut self) -> Vec<Fifo> {
        if self.by_node.len() < self.crowd.max(MANY) {
            return Vec::new();
        }
        let Some(open) = crate::lent::in_use() else { return Vec::new() };
        let is_used = |fifo: &Fifo| {
            let is_waited_for = Arc::strong_count(&fifo.fd) > 1 || fifo.age + YOUNG > self.made;
            is_waited_for
                || crate::fuseplane::key_of_fd(fifo.fd.as_fd()).map_or(true, |key| open.contains(&key))
        };
        let (used, unused): (HashMap<_, _>, HashMap<_, _>) =
            std::mem::take(&mut self.by_node).into_iter().partition(|(_, fifo)| is_used(fifo));
        self.by_node = used;
        self.crowd = self.by_node.len() * 2;
        unused.into_values().collect()
    }
}

/// Opens a fifo: waits for the other end, unless told not to.
pub(crate) fn open_fifo(call: &Call<'_>, node: &Arc<Node>, flags: OFlag) -> Outcome {
    let fifo = fifo(call, node)?;
    let path = format!("/proc/self/fd/{}", fifo.as_raw_fd());
    let try_open =
        |flags: OFlag| open(path.as_str(), flags | OFlag::O_NONBLOCK | OFlag::O_CLOEXEC, Mode::empty());
    let access = OFlag::from_bits_truncate(flags.bits() & libc::O_ACCMODE);
    let waits = !flags.contains(OFlag::O_NONBLOCK);
    let step = || Interrupt::current().sleep(Duration::from_millis(2));
    let fd = loop {
        match try_open(access) {
            Err(Errno::ENXIO) if waits => step()?,
            opened => break opened?,
        }
    };
    if waits {
        if access == OFlag::O_RDONLY {
            while !has_writer(&fd)? {
                step()?;
            }
        }
        fcntl(&fd, FcntlArg::F_SETFL(access))?;
    }
    Ok(Answer::Fd { fd, close_on_exec: flags.contains(OFlag::O_CLOEXEC), on_its_way: None })
}

/// Whether somebody has the other end of a fifo open: then there is nothing to copy from it yet, or something; else it has ended.
fn has_writer(fd: &OwnedFd) -> Result<bool> {
    let (_end, probe) = nix::unistd::pipe()?;
    match tee(fd, &probe, 1, SpliceFFlags::SPLICE_F_NONBLOCK) {
        Ok(0) => Ok(false),
        Ok(_) | Err(Errno::EAGAIN) => Ok(true),
        Err(errno) => Err(errno),
    }
}

fn fifo(call: &Call<'_>, node: &Arc<Node>) -> Result<Arc<OwnedFd>> {
    let mut fifos = call.view.fifos.lock();
    if let Some(known) = fifos.by_node.get(&(node.mount.id, node.ino)) {
        return Ok(Arc::clone(&known.fd));
    }
    let gone = fifos.unused();
    fifos.made += 1;
    let path = call.view.home.join(format!(".veduta-{}-fifo-{}", std::process::id(), fifos.made));
    nix::unistd::mkfifo(&path, Mode::S_IRUSR | Mode::S_IWUSR)?;
    let opened = open(&path, OFlag::O_PATH | OFlag::O_CLOEXEC, Mode::empty());
    let removed = nix::unistd::unlink(&path);
    let fd = Arc::new(opened?);
    removed?;
    let new = Fifo { fd: Arc::clone(&fd), _node: Arc::clone(node), age: fifos.made };
    fifos.by_node.insert((node.mount.id, node.ino), new);
    drop(fifos);
    drop(gone);
    Ok(fd)
}
