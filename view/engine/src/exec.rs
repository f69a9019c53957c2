//! Programs in virtual trees: `execve(2)`.
//!
//! The kernel runs what it can open: a host's file by its path, and a virtual one through a descriptor of a memory file
//! with its content. If the program's interpreter (`PT_INTERP`) is virtual, the program's copy names a descriptor of the
//! interpreter in its place, so the kernel itself loads both and everything in the process is as usual. Scripts are
//! followed here, as the kernel follows them.
//!
//! The task stands still while its registers are made to say so; the descriptors close with the exec.

use std::ffi::{CString, OsStr};
use std::fs::File as HostFile;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd, RawFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use nix::errno::Errno;
use nix::fcntl::OFlag;
use nix::libc;
use veduta_api::{File, Kind, OpenFlags, Result};
use veduta_trace::{Notification, Stopped, Task, raw};

use crate::call::{Answer, Call, Outcome, Target};
use crate::identity::EXECUTE;
use crate::inplace::Changed;
use crate::mounts::shown;
use crate::node::{Node, guarded};
use crate::standin::{StandIn, errno};
use crate::walk::{Limits, Place};

/// Interpreters of interpreters that the kernel follows.
const MAX_SCRIPTS: usize = 5;
/// Bytes; the first line of a script beyond this does not count (`BINPRM_BUF_SIZE`).
const HEAD: usize = 256;
/// Bytes; a page in which all program headers of a sane program lie.
const HEADERS: usize = 4096;

/// A program that the kernel can open.
enum Image {
    /// On the host, at this path.
    Path(CString),
    /// Through a descriptor.
    Descriptor(OwnedFd),
}

/// How a task is to run a program.
pub(crate) struct Plan {
    program: Image,
    /// The interpreter, if the program's copy must name its descriptor: at this offset, in this many bytes.
    interpreter: Option<(OwnedFd, u64, usize)>,
    start: Start,
    /// What is loaded.
    ways: Ways,
}

/// `None` if something has no path on the host.
type Ways = Option<Vec<Way>>;

/// Something that is loaded.
struct Way {
    /// The path by which the kernel would look for it.
    path: Vec<u8>,
    /// Where on the host it is.
    real: Vec<u8>,
    /// A mount on the way lets the host be seen, or there is none.
    is_seen: bool,
}

/// What the program is told.
struct Start {
    /// Addresses in the task.
    argv: u64,
    envp: u64,
    /// What takes the place of the first argument, for scripts.
    front: Option<Vec<CString>>,
    /// What the process is called (`comm`).
    name: Vec<u8>,
}

/// `execve` and `execveat` in a view with mounts.
pub(crate) fn serve(call: &Call<'_>, name: &str) -> Outcome {
    if call.view.passing.lock().contains(&call.task.0) {
        return Ok(Answer::GoOn);
    }
    let (dirfd, path, argv, envp, flags) = match name {
        "execve" => (libc::AT_FDCWD as u64, call.args[0], call.args[1], call.args[2], 0),
        _ => (call.args[0], call.args[1], call.args[2], call.args[3], call.int(4)),
    };
    let empty = flags & libc::AT_EMPTY_PATH != 0;
    let follow = flags & libc::AT_SYMLINK_NOFOLLOW == 0;
    let text = call.task.read_path(path)?;
    let mut key = None;
    let mut place = match call.find_path(dirfd, &text, follow, empty, Limits::default())? {
        Target::PlainlyHost(canonical) => {
            key = canonical.and_then(|path| crate::fast::key_of(Path::new(OsStr::from_bytes(&path))).ok());
            if key.is_some_and(|key| call.view.fast.runs_on_host(&call.table, &key)) {
                return Ok(Answer::GoOn);
            }
            // What runs on the host may still want a virtual interpreter.
            let Some(path) = host_path(call, dirfd, &text) else { return Ok(Answer::GoOn) };
            Place::Host(path)
        }
        Target::Found(found) => {
            let place = found.existing()?.clone();
            // The host's own, which a mount lets through: the kernel runs it if it comes there by itself.
            if let Some(path) = crate::through::on_host(call, &place) {
                key = crate::fast::key_of(Path::new(OsStr::from_bytes(&path))).ok();
            }
            if let (Some(key), Place::Tree(node, attr)) = (&key, &place) {
                let is_run = call.view.fast.runs_on_host(&call.table, key)
                    && !node.mount.no_exec.load(Ordering::Relaxed)
                    && attr.perm.bits() & 0o111 != 0;
                if is_run && crate::through::finds(call, dirfd, &text, (key[0], key[1])) {
                    tell_of(call, &text, attr.perm.bits(), attr.uid);
                    return Ok(Answer::GoOn);
                }
            }
            place
        }
    };
    match &place {
        Place::Host(path) => tell_of_set_id(call, Path::new(OsStr::from_bytes(path))),
        Place::Tree(node, attr) if node.mount.of_host => {
            tell_of(call, &text, attr.perm.bits(), attr.uid);
        }
        Place::Tree(..) => {}
    }
    let mut direct = matches!(place, Place::Host(_));
    let mut front: Option<Vec<CString>> = None;
    let mut script = if empty && text.is_empty() {
        format!("/dev/fd/{}", dirfd as i32).into_bytes()
    } else {
        text.clone()
    };
    let is_plain = crate::walk::is_cwd(dirfd) && call.root().is_none();
    let mut ways: Ways = is_plain.then(Vec::new);
    for _ in 0..MAX_SCRIPTS {
        add_way(call, &mut ways, &script, &place);
        let file = Content::open(call, &place)?;
        let mut head = vec![0; HEADERS];
        let len = file.read(&mut head, 0)?;
        head.truncate(len);
        if let Some((interpreter, argument)) = script_line(&head)? {
            let mut words = vec![c_string(&interpreter)?];
            words.extend(argument.map(|argument| c_string(&argument)).transpose()?);
            words.push(c_string(&script)?);
            // The interpreter's own script takes the place of its name.
            words.extend(front.take().into_iter().flatten().skip(1));
            front = Some(words);
            let found =
                call.find_path(libc::AT_FDCWD as u64, &interpreter, true, false, Limits::default())?;
            place = match found {
                Target::PlainlyHost(_) => {
                    Place::Host(host_path(call, libc::AT_FDCWD as u64, &interpreter).ok_or(Errno::ENOENT)?)
                }
                Target::Found(found) => {
                    direct &= found.direct;
                    found.existing()?.clone()
                }
            };
            direct &= matches!(place, Place::Host(_));
            script = interpreter;
            continue;
        }
        let interpreter = interpreter_of(&file, &head)?;
        let wanted = interpreter.as_ref().map(|(path, at, room)| (path.as_slice(), *at, *room));
        let name = text.rsplit(|byte| *byte == b'/').next().unwrap_or_default();
        let name = name[..name.len().min(15)].to_vec();
        let start = Start { argv, envp, front, name };
        let is_script = start.front.is_some();
        let answer = match plan(call, &place, &file, wanted, direct, start, ways)? {
            Answer::Exec(plan) if plan.is_seen() && plan.is_the_hosts(call.task.0) => Answer::GoOn,
            answer => answer,
        };
        if let (Answer::GoOn, Some((path, ..)), Some(key), false) = (&answer, wanted, key, is_script) {
            call.view.fast.learn(&call.table, key, path);
        }
        return Ok(answer);
    }
    Err(Errno::ELOOP)
}

/// A program of the host is about to be run. In a view nobody becomes somebody else by that (`PR_SET_NO_NEW_PRIVS`), which is said when the first
/// one tries.
pub(crate) fn tell_of_set_id(call: &Call<'_>, path: &Path) {
    if call.view.told_of_set_id.load(Ordering::Relaxed) {
        return;
    }
    if let Ok(data) = std::fs::metadata(path) {
        tell_of(call, path.as_os_str().as_bytes(), data.mode(), data.uid());
    }
}

fn tell_of(call: &Call<'_>, path: &[u8], mode: u32, owner: u32) {
    const SET_USER: u32 = 0o4000;
    // Who is told to be root is told that they have the privilege, too; and what mounts needs none here.
    if mode & SET_USER == 0 || call.view.all_root || owner == call.caller.real().uid() {
        return;
    }
    let name = path.rsplit(|byte| *byte == b'/').next().unwrap_or_default();
    if crate::grow::is_mounter(name) || call.view.told_of_set_id.swap(true, Ordering::Relaxed) {
        return;
    }
    let name = String::from_utf8_lossy(name);
    eprintln!("veduta: {name}: in a view, set-user-id programs run without the rights of their owner");
}

/// What the kernel would run for a path that is plainly the host's.
fn host_path(call: &Call<'_>, dirfd: u64, path: &[u8]) -> Option<Vec<u8>> {
    if path.starts_with(b"/") {
        return Some(path.to_vec());
    }
    match call.start(dirfd).ok()? {
        crate::walk::Start::Host(mut base) if !path.is_empty() => {
            base.push(b'/');
            base.extend_from_slice(path);
            Some(base)
        }
        _ => None,
    }
}

/// How to run a program of which all is known; the kernel's own way if nothing of it is virtual.
fn plan(
    call: &Call<'_>,
    place: &Place,
    file: &Content,
    interpreter: Option<(&[u8], u64, usize)>,
    direct: bool,
    start: Start,
    mut ways: Ways,
) -> Outcome {
    let mut virtual_interpreter = None;
    if let Some((path, at, room)) = interpreter {
        if let Target::Found(found) =
            call.find_path(libc::AT_FDCWD as u64, path, true, false, Limits::default())?
        {
            match found.existing()? {
                Place::Host(_) if found.direct => {}
                // The host's own, which a mount lets through: what it is called is told to debuggers.
                place if is_found(call, path, place) => add_way(call, &mut ways, path, place),
                place => {
                    add_way(call, &mut ways, path, place);
                    let image = Content::open(call, place)?.image(call)?;
                    virtual_interpreter = Some((image, at, room));
                }
            }
        }
    }
    if direct && virtual_interpreter.is_none() {
        return Ok(Answer::GoOn);
    }
    let program = match place {
        Place::Host(path) if virtual_interpreter.is_none() => Image::Path(c_string(shown(path))?),
        _ if virtual_interpreter.is_some() => Image::Descriptor(file.copy(call)?),
        _ => Image::Descriptor(file.image(call)?),
    };
    Ok(Answer::Exec(Box::new(Plan { program, interpreter: virtual_interpreter, start, ways })))
}

/// Whether the kernel finds an interpreter by itself, since the host is seen through its mount.
fn is_found(call: &Call<'_>, path: &[u8], place: &Place) -> bool {
    let Some(real) = crate::through::on_host(call, place) else { return false };
    let key = crate::fuseplane::key_of(Path::new(OsStr::from_bytes(&real)));
    key.is_ok_and(|key| crate::through::finds(call, libc::AT_FDCWD as u64, path, key))
}

/// Notes by which path something is found, and where on the host it is.
fn add_way(call: &Call<'_>, ways: &mut Ways, path: &[u8], place: &Place) {
    let (real, is_seen) = match place {
        Place::Host(path) => (Some(path.clone()), true),
        Place::Tree(node, _) => match crate::through::on_host(call, place) {
            Some(path) => (Some(path), true),
            None if node.mount.of_host => (node.shows(), false),
            None => (None, false),
        },
    };
    match (ways.as_mut(), real) {
        (Some(known), Some(real)) => known.push(Way { path: path.to_vec(), real, is_seen }),
        _ => *ways = None,
    }
}

impl Plan {
    /// Whether all is seen where the host has it.
    fn is_seen(&self) -> bool {
        self.ways.as_ref().is_some_and(|ways| ways.iter().all(|way| way.is_seen))
    }

    /// Whether the kernel, by itself, would run the very same files.
    pub(crate) fn is_the_hosts(&self, task: nix::unistd::Pid) -> bool {
        let is_found = |way: &Way| {
            let from = format!("/proc/{task}/cwd");
            let found = std::fs::canonicalize(Path::new(&from).join(OsStr::from_bytes(&way.path)));
            found.is_ok_and(|found| found.as_os_str().as_bytes() == way.real.as_slice())
        };
        self.ways.as_ref().is_some_and(|ways| ways.iter().all(is_found))
    }

    /// The descriptors that the task needs, in the order of the numbers that the other functions take.
    pub(crate) fn descriptors(&self) -> Vec<BorrowedFd<'_>> {
        let program = match &self.program {
            Image::Path(_) => None,
            Image::Descriptor(fd) => Some(fd.as_fd()),
        };
        program.into_iter().chain(self.interpreter.iter().map(|(fd, ..)| fd.as_fd())).collect()
    }

    /// Writes the interpreter's descriptor into the program's copy.
    pub(crate) fn settle(&self, numbers: &[RawFd]) -> Result<()> {
        let (Some((_, at, room)), Image::Descriptor(program)) = (&self.interpreter, &self.program) else {
            return Ok(());
        };
        let number = numbers.get(1).ok_or(Errno::EBADF)?;
        let mut path = format!("/proc/self/fd/{number}").into_bytes();
        if path.len() >= *room {
            // No interpreter has a shorter name than this but a deliberate one.
            return Err(Errno::ENOEXEC);
        }
        path.resize(*room, 0);
        HostFile::from(program.try_clone().map_err(errno)?).write_all_at(&path, *at).map_err(errno)
    }

    /// The path by which the kernel finds the program.
    fn path(&self, numbers: &[RawFd]) -> Result<CString> {
        match &self.program {
            Image::Path(path) => Ok(path.clone()),
            Image::Descriptor(_) => {
                let number = numbers.first().ok_or(Errno::EBADF)?;
                CString::new(format!("/proc/self/fd/{number}")).map_err(|_| Errno::EINVAL)
            }
        }
    }

    /// Has a task that waits at its `execve`, and whose registers are somebody else's, run the program when the call goes on.
    pub(crate) fn put_in_place(&self, notification: &Notification, numbers: &[RawFd]) -> Result<Changed> {
        if self.start.front.is_some() {
            return Err(Errno::EPERM);
        }
        let path = self.path(numbers)?;
        // The same in fewer bytes, where it is there.
        let short = path.as_bytes().strip_prefix(b"/proc/self/fd").map(|rest| [b"/dev/fd", rest].concat());
        let has_short = || std::fs::read_link("/dev/fd").is_ok_and(|to| to == Path::new("/proc/self/fd"));
        let path = short.filter(|_| has_short()).unwrap_or_else(|| path.into_bytes());
        Changed::new(notification, &path)
    }

    /// Runs the program in a task that stands at its `execve`. `Ok(false)`: the call failed, and the task will see how.
    pub(crate) fn run(
        &self,
        stopped: &mut Stopped,
        notification: &Notification,
        numbers: &[RawFd],
    ) -> Result<bool> {
        let task = Task(notification.tid);
        let program = self.path(numbers)?;
        let mut memory = Layout::default();
        let program = memory.text(&program);
        let mut argv = None;
        if let Some(front) = &self.start.front {
            let texts: Vec<usize> = front.iter().map(|word| memory.text(word)).collect();
            let old = pointers(task, self.start.argv)?;
            argv = Some((texts, old.get(1..).unwrap_or_default().to_vec()));
        }
        let words = argv.as_ref().map_or(0, |(texts, old)| texts.len() + old.len() + 1);
        let base = stopped.scratch(memory.bytes.len() + 8 + words * 8)?;
        let array = base + memory.bytes.len().next_multiple_of(8) as u64;
        task.write(base, &memory.bytes)?;
        let mut argv_address = self.start.argv;
        if let Some((texts, old)) = argv {
            let all = texts.iter().map(|at| base + *at as u64).chain(old).chain([0]);
            let bytes: Vec<u8> = all.flat_map(u64::to_ne_bytes).collect();
            task.write(array, &bytes)?;
            argv_address = array;
        }
        let args = [base + program as u64, argv_address, self.start.envp, 0, 0, 0];
        if !stopped.exec(libc::SYS_execve as u32, args)? {
            return Ok(false);
        }
        // The kernel called the process after the descriptor.
        let mut name = self.start.name.clone();
        name.push(0);
        let at = stopped.scratch(16)?;
        Task(stopped.tid()).write(at, &name)?;
        stopped.call(libc::SYS_prctl as u32, [libc::PR_SET_NAME as u64, at, 0, 0, 0, 0])?;
        Ok(true)
    }
}

/// Strings that are to lie one behind the other in a task's memory.
#[derive(Default)]
struct Layout {
    bytes: Vec<u8>,
}

impl Layout {
    fn text(&mut self, text: &CString) -> usize {
        let at = self.bytes.len();
        self.bytes.extend_from_slice(text.as_bytes_with_nul());
        at
    }
}

/// The pointers of an argument list, without the null at its end.
pub(crate) fn pointers(task: Task, mut address: u64) -> Result<Vec<u64>> {
    // What the kernel takes: MAX_ARG_STRINGS is far beyond what fits in memory for arguments.
    const MOST: usize = 1 << 20;
    let mut found = Vec::new();
    while address != 0 && found.len() < MOST {
        let pointer = task.read_u64(address)?;
        if pointer == 0 {
            return Ok(found);
        }
        found.push(pointer);
        address += 8;
    }
    if address == 0 { Ok(found) } else { Err(Errno::E2BIG) }
}

/// The content of a program.
enum Content {
    Host(HostFile),
    /// The node, the driver's file, and what processes hold for it, whose mappings count.
    Tree(Arc<Node>, Arc<dyn File>, Option<Arc<StandIn>>),
}

impl Content {
    /// Opens what is to be run, and checks that it may be.
    fn open(call: &Call<'_>, place: &Place) -> Result<Self> {
        match place {
            Place::Host(path) => {
                let path = Path::new(OsStr::from_bytes(shown(path)));
                let data = std::fs::metadata(path).map_err(errno)?;
                if !data.is_file() {
                    return Err(Errno::EACCES);
                }
                match HostFile::open(path) {
                    Ok(file) => Ok(Content::Host(file)),
                    // May be run, but not read: then it is no script, and the kernel may find its interpreter.
                    Err(_) => HostFile::open("/dev/null").map(Content::Host).map_err(errno),
                }
            }
            Place::Tree(node, attr) => {
                if attr.kind != Kind::File || node.mount.no_exec.load(Ordering::Relaxed) {
                    return Err(Errno::EACCES);
                }
                call.may(place, EXECUTE)?;
                if attr.perm.bits() & 0o111 == 0 {
                    return Err(Errno::EACCES);
                }
                let file = guarded(|| node.tree().open(node.ino, OpenFlags::READ))?;
                let known = call.view.stand_ins.known(node.mount.id, node.ino);
                Ok(Content::Tree(Arc::clone(node), file, known))
            }
        }
    }

    /// Reads up to the end of the file.
    fn read(&self, buf: &mut [u8], offset: u64) -> Result<usize> {
        match self {
            Content::Host(file) => file.read_at(buf, offset).map_err(errno),
            Content::Tree(_, _, Some(stand_in)) => stand_in.read_at(buf, offset),
            Content::Tree(_, file, None) => guarded(|| file.read_at(buf, offset)),
        }
    }

    /// A descriptor through which the kernel runs it.
    fn image(&self, call: &Call<'_>) -> Result<OwnedFd> {
        if let Content::Tree(node, file, _) = self {
            if call.view.takes_backing() {
                if let Some(fd) = guarded(|| Ok(file.backing().map(|fd| fd.try_clone_to_owned())))? {
                    let fd = fd.map_err(errno)?;
                    remember(call, &fd, node)?;
                    if file.backing_is_foreign() || node.mount.is_read_only() {
                        // What is done through the link in /proc is done to the node.
                        call.view.lent.hand_out(&fd, node, true)?;
                    }
                    return Ok(fd);
                }
            }
            if let Some(plane) = call.view.plane_of(&node.mount) {
                return plane.open(node, OFlag::O_RDONLY, None);
            }
        }
        self.copy(call)
    }

    /// A copy of its own in memory.
    fn copy(&self, call: &Call<'_>) -> Result<OwnedFd> {
        let name = match self {
            Content::Host(_) => Vec::new(),
            Content::Tree(node, ..) => {
                node.path().rsplit(|byte| *byte == b'/').next().unwrap_or_default().to_vec()
            }
        };
        let memory = HostFile::from(raw::memory_file(&c_string(&name[..name.len().min(200)])?)?);
        let mut buf = vec![0; 1 << 20];
        let mut at = 0;
        loop {
            let len = self.read(&mut buf, at)?;
            if len == 0 {
                break;
            }
            memory.write_all_at(&buf[..len], at).map_err(errno)?;
            at += len as u64;
        }
        if let Content::Tree(node, ..) = self {
            let fd = OwnedFd::from(memory.try_clone().map_err(errno)?);
            remember(call, &fd, node)?;
        }
        // The kernel does not count this descriptor as a writer, which would forbid running the file.
        Ok(OwnedFd::from(memory))
    }
}

/// Remembers which program a real file stands for, for `/proc/PID/exe`.
fn remember(call: &Call<'_>, fd: &OwnedFd, node: &Arc<Node>) -> Result<()> {
    const MOST: usize = 4096;
    let data = HostFile::from(fd.try_clone().map_err(errno)?).metadata().map_err(errno)?;
    let key = (data.dev(), data.ino());
    let mut programs = call.view.programs.lock();
    programs.retain(|(known, _)| *known != key);
    if programs.len() >= MOST {
        programs.remove(0);
    }
    programs.push((key, node.path()));
    Ok(())
}

/// An interpreter, and the one argument that it may have.
type ScriptLine = (Vec<u8>, Option<Vec<u8>>);

/// The interpreter and its argument that the first line of a script names. `ENOEXEC` if the line is a script's, but wrong.
fn script_line(head: &[u8]) -> Result<Option<ScriptLine>> {
    let head = &head[..head.len().min(HEAD)];
    let Some(rest) = head.strip_prefix(b"#!") else { return Ok(None) };
    let blank = |byte: &u8| matches!(byte, b' ' | b'\t');
    let line = rest.split(|byte| *byte == b'\n').next().unwrap_or_default();
    let is_whole = line.len() < rest.len() || head.len() < HEAD;
    let start = line.iter().position(|byte| !blank(byte)).ok_or(Errno::ENOEXEC)?;
    let line = &line[start..];
    let end = line.iter().position(blank).unwrap_or(line.len());
    if end == line.len() && !is_whole {
        // The name goes on where the kernel does not look.
        return Err(Errno::ENOEXEC);
    }
    let (interpreter, argument) = line.split_at(end);
    if interpreter.is_empty() {
        return Err(Errno::ENOEXEC);
    }
    let first = argument.iter().position(|byte| !blank(byte));
    let last = argument.iter().rposition(|byte| !blank(byte));
    let argument = first.zip(last).map(|(first, last)| argument[first..=last].to_vec());
    Ok(Some((interpreter.to_vec(), argument)))
}

/// What a 64-bit ELF program names as its interpreter: the path, where it stands in the file, and in how many bytes.
/// `None` for everything else, which the kernel judges.
fn interpreter_of(file: &Content, head: &[u8]) -> Result<Option<(Vec<u8>, u64, usize)>> {
    const PT_INTERP: u32 = 3;
    const ENTRY: usize = 56;
    if !head.starts_with(b"\x7fELF\x02\x01") || head.len() < 64 {
        return Ok(None);
    }
    let u16_at = |bytes: &[u8], at: usize| bytes.get(at..at + 2).map(|b| u16::from_le_bytes([b[0], b[1]]));
    let u64_at = |bytes: &[u8], at: usize| -> Option<u64> {
        bytes.get(at..at + 8).and_then(|b| b.try_into().ok()).map(u64::from_le_bytes)
    };
    let (Some(table), Some(size), Some(count)) = (u64_at(head, 32), u16_at(head, 54), u16_at(head, 56))
    else {
        return Ok(None);
    };
    if usize::from(size) != ENTRY || count > 512 {
        return Ok(None);
    }
    let mut headers = vec![0; ENTRY * usize::from(count)];
    let got = file.read(&mut headers, table)?;
    for header in headers[..got].chunks_exact(ENTRY) {
        if header[..4] != PT_INTERP.to_le_bytes() {
            continue;
        }
        let (Some(at), Some(len)) = (u64_at(header, 8), u64_at(header, 32)) else { return Ok(None) };
        if !(2..=4096).contains(&len) {
            return Ok(None);
        }
        let mut path = vec![0; len as usize];
        if file.read(&mut path, at)? < path.len() || path.pop() != Some(0) {
            return Ok(None);
        }
        return Ok(Some((path, at, len as usize)));
    }
    Ok(None)
}

fn c_string(bytes: &[u8]) -> Result<CString> {
    CString::new(bytes).map_err(|_| Errno::EINVAL)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn first_lines_of_scripts_are_read_as_the_kernel_reads_them() {
        let read = |line: &str| script_line(line.as_bytes());
        let some = |path: &str, argument: Option<&str>| {
            Ok(Some((path.as_bytes().to_vec(), argument.map(|text| text.as_bytes().to_vec()))))
        };
        assert_eq!(read("echo\n"), Ok(None));
        assert_eq!(read("#!/bin/sh\n"), some("/bin/sh", None));
        assert_eq!(read("#! \t/usr/bin/env  python3 -u \nx"), some("/usr/bin/env", Some("python3 -u")));
        assert_eq!(read("#!/bin/sh"), some("/bin/sh", None));
        assert_eq!(read("#!\n"), Err(Errno::ENOEXEC));
        assert_eq!(read(&format!("#!{}", "x".repeat(300))), Err(Errno::ENOEXEC));
        let long = format!("#!/bin/{} -x\n", "y".repeat(150));
        assert_eq!(read(&long), some(&format!("/bin/{}", "y".repeat(150)), Some("-x")));
    }
}
