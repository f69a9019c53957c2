//! Descriptors of the host that processes have for nodes of the view, and which node one stands for.
//!
//! A driver that has a file on the host hands its descriptor out ([`File::backing`](veduta_api::File::backing)), and what a process does with it is the
//! kernel's affair. For content that is right. But mode, owner, times, attributes and flags of a file can be changed through any descriptor of it, and
//! where the tree only reads the file (it is of a layer below, or of a mount that is read-only), they are to be changed in the tree, and not on the host.
//! Such a descriptor is *lent*: calls that change or tell these things of it are served here.
//!
//! Once such a file is copied up, who has it open is given the copy (`reread.rs`).
//!
//! Nothing is kept about processes. The kernel keeps a mark with the description ([`mark`]), so it is known of each descriptor, whoever has it, whether it
//! was lent; what is kept here is for which nodes a real inode was handed out. What has no mark may have been opened by the process itself, or before the
//! mount was made: then it is what the view has at the descriptor's path, if that is made of the same object of the host. So ([`Walker::lent`]):
//!
//! | the descriptor | stands for |
//! | --- | --- |
//! | may be written | what it is on the host: nothing that is lent can be |
//! | has the mark, and was handed out for one node | that node; for several: the one at its path |
//! | its path leads outside of all trees that lend | what it is on the host |
//! | its path leads to a node that is made of it | that node |
//! | its path leads elsewhere in such a tree | nobody knows: who would change it gets `ESTALE` |
//!
//! # Limits
//!
//! Where the same file was handed out for two nodes of different mounts that lie elsewhere, it cannot be told which is meant: `ESTALE`.

use std::collections::{HashMap, HashSet};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use nix::errno::Errno;
use nix::fcntl::OFlag;
use nix::libc;
use nix::unistd::Pid;
use parking_lot::Mutex;
use veduta_api::{Attr, Device, Ino, Kind, Perm, Result, SetAttr};
use veduta_trace::Task;
use veduta_trace::raw::{self, Argument};

use crate::call::{Answer, Call, DONE, Outcome};
use crate::mounts::{Mount, Service, Table};
use crate::node::{Node, guarded};
use crate::standin::Key;
use crate::walk::{Place, Walker};

/// With fewer, nobody looks which are still in use.
const MANY: usize = 4096;
/// The last ones that were made may not have arrived at their processes yet.
const YOUNG: u64 = 64;
/// So many inodes that tell old things are told to processes.
const MOST_CHANGED: usize = 64;

/// What an inode was handed out for.
struct Loan {
    /// The mount.
    mount: u32,
    /// The node, if it is lent; what is the node's own may be changed as it is.
    node: Option<Arc<Node>>,
    /// When, as the count before.
    age: u64,
}

#[derive(Default)]
struct Loans {
    by_key: HashMap<Key, Vec<Loan>>,
    made: u64,
    /// With so many, those that are no longer in use are let go.
    crowd: usize,
    /// What is lent for a node of a tree.
    by_node: HashMap<(usize, Ino), Vec<Key>>,
    /// Lent inodes whose nodes were changed since: the kernel tells old things of them, so processes may not ask it.
    changed: Vec<Key>,
}

/// A node, whatever the mount is through which it is seen.
pub(crate) fn identity(node: &Node) -> (usize, Ino) {
    (Arc::as_ptr(&node.mount.tree).cast::<()>() as usize, node.ino)
}

/// All that was handed out.
#[derive(Default)]
pub(crate) struct Lent {
    loans: Mutex<Loans>,
    /// Some is lent.
    any: AtomicBool,
}

impl Lent {
    /// A descriptor is about to be handed out for a node.
    pub(crate) fn hand_out(&self, fd: &OwnedFd, node: &Arc<Node>, is_lent: bool) -> Result<()> {
        let data = nix::sys::stat::fstat(fd.as_fd())?;
        if is_lent {
            // A directory that is being listed has a mark of its own, and is found by its path.
            let is_directory = data.st_mode & libc::S_IFMT == libc::S_IFDIR;
            if !is_directory || !crate::through::is_listed(fd) {
                mark(fd)?;
            }
            self.any.store(true, Ordering::Release);
        }
        let key = (data.st_dev, data.st_ino);
        let mut loans = self.loans.lock();
        let Loans { by_key, by_node, made, .. } = &mut *loans;
        *made += 1;
        let age = *made;
        let known = by_key.entry(key).or_default();
        let is_same = |loan: &&mut Loan| {
            loan.mount == node.mount.id
                && match &loan.node {
                    Some(known) => is_lent && known.ino == node.ino,
                    None => !is_lent,
                }
        };
        if let Some(loan) = known.iter_mut().find(is_same) {
            loan.age = age;
            return Ok(());
        }
        // The inode number of what was removed is used again.
        known.retain(|loan| loan.mount != node.mount.id || loan.node.is_some() == is_lent);
        let lent = is_lent.then(|| Arc::clone(node));
        if is_lent {
            let keys = by_node.entry(identity(node)).or_default();
            if !keys.contains(&key) {
                keys.push(key);
            }
        }
        known.push(Loan { mount: node.mount.id, node: lent, age });
        Ok(())
    }

    /// A node gets another name, and processes may have opened on the host what it is there: its path will not tell.
    pub(crate) fn remember(&self, key: Key, node: &Arc<Node>) {
        let mut loans = self.loans.lock();
        loans.made += 1;
        let age = loans.made;
        let known = loans.by_key.entry(key).or_default();
        if known.iter().any(|loan| loan.mount == node.mount.id) {
            return;
        }
        known.push(Loan { mount: node.mount.id, node: Some(Arc::clone(node)), age });
    }

    /// Processes may have an inode open for a node, though nothing of it was handed out since it came to differ.
    pub(crate) fn expect(&self, key: Key, node: &Arc<Node>) {
        self.remember(key, node);
        let mut loans = self.loans.lock();
        let keys = loans.by_node.entry(identity(node)).or_default();
        if !keys.contains(&key) {
            keys.push(key);
        }
    }

    /// Whether something was lent for a node.
    pub(crate) fn is_lent(&self, node: &Node) -> bool {
        self.any.load(Ordering::Acquire) && self.loans.lock().by_node.contains_key(&identity(node))
    }

    /// A mount for which an inode was handed out.
    pub(crate) fn mount_of(&self, key: Key) -> Option<u32> {
        self.loans.lock().by_key.get(&key)?.last().map(|loan| loan.mount)
    }

    /// Whether an inode was handed out for a mount. `lent` says whether one that is lent counts.
    pub(crate) fn is_of(&self, key: Key, mount: u32, lent: bool) -> bool {
        let is_it = |loan: &Loan| loan.mount == mount && (lent || loan.node.is_none());
        self.loans.lock().by_key.get(&key).is_some_and(|known| known.iter().any(is_it))
    }

    /// The inodes that were handed out for a mount.
    pub(crate) fn of_mount(&self, mount: u32) -> Vec<Key> {
        let loans = self.loans.lock();
        let is_of = |known: &[Loan]| known.iter().any(|loan| loan.mount == mount);
        loans.by_key.iter().filter(|(_, known)| is_of(known)).map(|(key, _)| *key).collect()
    }

    /// A mount ends.
    pub(crate) fn end(&self, mount: u32) {
        self.loans.lock().take(|_, loan| loan.mount == mount);
    }

    /// The nodes for which an inode was lent, and whether it was handed out as what it is too.
    fn of(&self, key: Key) -> (Vec<Arc<Node>>, bool) {
        let loans = self.loans.lock();
        let known = loans.by_key.get(&key).map_or(&[][..], Vec::as_slice);
        (
            known.iter().filter_map(|loan| loan.node.clone()).collect(),
            known.iter().any(|loan| loan.node.is_none()),
        )
    }

    /// The node that a descriptor was lent for, as far as its mark tells.
    pub(crate) fn marked(&self, fd: &OwnedFd) -> Option<Arc<Node>> {
        if !self.any.load(Ordering::Acquire) {
            return None;
        }
        let (nodes, _) = self.of(crate::fuseplane::key_of_fd(fd.as_fd()).ok()?);
        if nodes.is_empty() || !is_marked(fd) { None } else { one(&nodes) }
    }

    /// Lets go of what no process has open any more.
    pub(crate) fn tidy(&self) {
        let (before, most) = {
            let loans = self.loans.lock();
            (loans.made, loans.crowd.max(MANY))
        };
        if self.loans.lock().by_key.len() <= most {
            return;
        }
        let Some(used) = in_use() else { return };
        let gone = {
            let mut loans = self.loans.lock();
            let gone = loans.take(|key, loan| !used.contains(key) && loan.age.saturating_add(YOUNG) < before);
            loans.crowd = loans.by_key.len() * 2;
            gone
        };
        drop(gone);
    }

    /// A node is about to be changed. `true`: what processes may ask the kernel is something else now.
    fn changes(&self, node: &Node) -> bool {
        if !self.any.load(Ordering::Acquire) {
            return false;
        }
        let mut loans = self.loans.lock();
        let Some(keys) = loans.by_node.get(&identity(node)).cloned() else { return false };
        let new: Vec<Key> = keys.into_iter().filter(|key| !loans.changed.contains(key)).collect();
        loans.changed.extend(&new);
        // Of the oldest the kernel goes on to tell what it has.
        let too_many = loans.changed.len().saturating_sub(MOST_CHANGED);
        loans.changed.drain(..too_many);
        !new.is_empty()
    }

    /// Inodes of which the kernel tells old things.
    pub(crate) fn changed(&self) -> Vec<Key> {
        self.loans.lock().changed.clone()
    }
}

impl Loans {
    /// Takes some out, to be dropped without the lock, since that calls drivers.
    fn take(&mut self, is_over: impl Fn(&Key, &Loan) -> bool) -> Vec<Loan> {
        let mut gone = Vec::new();
        let Self { by_key, by_node, changed, .. } = self;
        by_key.retain(|key, known| {
            let (over, left): (Vec<Loan>, Vec<Loan>) =
                std::mem::take(known).into_iter().partition(|loan| is_over(key, loan));
            *known = left;
            for node in over.iter().filter_map(|loan| loan.node.as_ref()) {
                if let Some(keys) = by_node.get_mut(&identity(node)) {
                    keys.retain(|other| other != key);
                    if keys.is_empty() {
                        by_node.remove(&identity(node));
                    }
                }
                changed.retain(|other| other != key);
            }
            gone.extend(over);
            !known.is_empty()
        });
        gone
    }
}

/// The inodes that processes of the view have open. Processes that are made meanwhile have what their makers had, so they are looked at too, until
/// there are no new ones; `None` if they are made faster than that.
pub(crate) fn in_use() -> Option<HashSet<Key>> {
    const ROUNDS: usize = 100;
    let (mut used, mut seen, mut quiet) = (HashSet::new(), HashSet::new(), 0);
    for _ in 0..ROUNDS {
        let new: Vec<_> = crate::grow::processes().into_iter().filter(|pid| seen.insert(*pid)).collect();
        quiet = if new.is_empty() { quiet + 1 } else { 0 };
        if quiet == 2 {
            return Some(used);
        }
        for pid in new {
            let open = std::fs::read_dir(format!("/proc/{pid}/fd")).into_iter().flatten().flatten();
            used.extend(open.filter_map(|fd| crate::fuseplane::key_of(&fd.path()).ok()));
            used.extend(crate::fuseplane::key_of(std::path::Path::new(&format!("/proc/{pid}/exe"))));
        }
    }
    None
}

/// The node, if all are the same one.
fn one(nodes: &[Arc<Node>]) -> Option<Arc<Node>> {
    let last = nodes.last()?;
    let is_same = |node: &Arc<Node>| node.ino == last.ino && Arc::ptr_eq(&node.mount.tree, &last.mount.tree);
    nodes.iter().all(is_same).then(|| Arc::clone(last))
}

/// Whether a mount hands out descriptors of what it leaves as it is.
fn lends(mount: &Mount) -> bool {
    has_layers(mount) || (mount.of_host && mount.is_read_only())
}

/// Whether a mount's tree is made of files of the host, and is not simply a part of the host.
pub(crate) fn has_layers(mount: &Mount) -> bool {
    mount.facts.backing && matches!(mount.service, Service::Tree) && !mount.of_host
}

/// Whether any does.
fn any_lends(table: &Table) -> bool {
    table.mounts().iter().any(|mount| lends(mount))
}

impl Walker<'_> {
    /// The node of the view that a process's descriptor stands for, which is no stand-in's; `None`: what it is on the host. `ESTALE` if that cannot be told.
    pub(crate) fn lent(&self, fd: &OwnedFd) -> Result<Option<Arc<Node>>> {
        if !self.lent.any.load(Ordering::Acquire) && !any_lends(self.table) {
            return Ok(None);
        }
        let flags = crate::call::status_flags(fd)?;
        let may_write = flags.bits() & libc::O_ACCMODE != libc::O_RDONLY;
        if may_write && !flags.contains(OFlag::O_PATH) {
            return Ok(None);
        }
        let data = nix::sys::stat::fstat(fd.as_fd())?;
        let (nodes, is_own) = self.lent.of((data.st_dev, data.st_ino));
        let at_path = || {
            let path = std::fs::read_link(format!("/proc/self/fd/{}", fd.as_raw_fd())).ok()?;
            let path = path.as_os_str().as_bytes().to_vec();
            path.starts_with(b"/").then_some(if path == b"/" { Vec::new() } else { path })
        };
        if !nodes.is_empty() && is_marked(fd) {
            if let Some(node) = one(&nodes) {
                return Ok(Some(node));
            }
            let Some(Ok(Place::Tree(node, _))) = at_path().map(|path| self.locate(&path)) else {
                return Err(Errno::ESTALE);
            };
            let is_this =
                |other: &Arc<Node>| other.ino == node.ino && Arc::ptr_eq(&other.mount.tree, &node.mount.tree);
            return if nodes.iter().any(is_this) { Ok(Some(node)) } else { Err(Errno::ESTALE) };
        }
        if data.st_nlink == 0 {
            return Ok(None);
        }
        let Some(path) = at_path() else { return Ok(None) };
        let (serving, is_it) = match self.locate(&path) {
            Ok(Place::Host(_)) => return Ok(None),
            Ok(Place::Tree(node, _)) => {
                let device = Device { major: libc::major(data.st_dev), minor: libc::minor(data.st_dev) };
                let is_it = lends(&node.mount)
                    && guarded(|| Ok(node.tree().is_made_of(node.ino, device, data.st_ino)))?;
                (Arc::clone(&node.mount), is_it.then_some(node))
            }
            Err(_) => match self.table.serving(&path) {
                Some(mount) => (Arc::clone(mount), None),
                None => return Ok(None),
            },
        };
        if !lends(&serving) || (is_it.is_none() && is_own) {
            return Ok(None);
        }
        let known = is_it.or_else(|| self.moved(&serving, &nodes, &path, &data));
        let node = known.filter(|_| !is_own).ok_or(Errno::ESTALE)?;
        if self.changes {
            // From now on the kernel tells old things of it, and whoever asks is to hear of the node. What is open as a name only has no room for a mark.
            let _ = self.lent.hand_out(fd, &node, true);
        }
        Ok(Some(node))
    }

    /// The node of an object that is no longer found by its path on the host, since names were moved in the view.
    fn moved(
        &self,
        serving: &Mount,
        nodes: &[Arc<Node>],
        path: &[u8],
        data: &nix::sys::stat::FileStat,
    ) -> Option<Arc<Node>> {
        let is_of = |node: &&Arc<Node>| Arc::ptr_eq(&node.mount.tree, &serving.tree);
        let here: Vec<_> = nodes.iter().filter(is_of).cloned().collect();
        let device = Device { major: libc::major(data.st_dev), minor: libc::minor(data.st_dev) };
        let is_made = |node: &Arc<Node>| {
            guarded(|| Ok(node.tree().is_made_of(node.ino, device, data.st_ino))).unwrap_or(false)
        };
        one(&here).or_else(|| self.stand_ins.held.moved_node(path).filter(is_made))
    }

    /// The same for what a link of `/proc` leads to. `None` also if the descriptor is out of reach: then it is nobody's of this view.
    pub(crate) fn lent_link(&self, link: &[u8], key: Key) -> Result<Option<Arc<Node>>> {
        if !self.lent.any.load(Ordering::Acquire) && !any_lends(self.table) {
            return Ok(None);
        }
        let Some((pid, number)) = descriptor_link(link) else {
            // A program, or what is mapped: there is no description to ask.
            return Ok(self.lent.of(key).0.pop());
        };
        let Ok(fd) = crate::serve::descriptor(Task(pid), number) else { return Ok(None) };
        match self.lent(&fd) {
            Err(_) if !self.changes => Ok(None),
            found => found,
        }
    }
}

/// The descriptor that a link of `/proc` leads to.
pub(crate) fn behind_link(link: &[u8]) -> Option<OwnedFd> {
    let (pid, number) = descriptor_link(link)?;
    crate::serve::descriptor(Task(pid), number).ok()
}

/// Process and number of `/proc/PID/fd/N`, or of `/proc/PID/task/TID/fd/N`.
fn descriptor_link(link: &[u8]) -> Option<(Pid, i32)> {
    let text = std::str::from_utf8(link).ok()?.strip_prefix("/proc/")?;
    let parts: Vec<&str> = text.split('/').collect();
    let (task, number) = match parts.as_slice() {
        [task, "fd", number] | [_, "task", task, "fd", number] => (task, number),
        _ => return None,
    };
    Some((Pid::from_raw(task.parse().ok()?), number.parse().ok()?))
}

impl Call<'_> {
    /// The node that a descriptor of the caller was lent for; see [`Walker::lent`].
    pub(crate) fn lent(&self, number: i32) -> Result<Option<Arc<Node>>> {
        let lends = self.view.lent.any.load(Ordering::Acquire) || any_lends(&self.table);
        if number < 0 || !lends {
            return Ok(None);
        }
        match crate::serve::descriptor(self.task, number) {
            // Ours have no room: whose it is cannot be known.
            Err(errno @ (Errno::EMFILE | Errno::ENFILE)) => Err(errno),
            Err(_) => Ok(None),
            Ok(fd) => self.lent_fd(&fd),
        }
    }

    /// The same for a copy of it. What only looks finds what the kernel finds unless the descriptor was lent for sure.
    fn lent_fd(&self, fd: &OwnedFd) -> Result<Option<Arc<Node>>> {
        if only_looks(self) {
            if let Some(node) = self.view.lent.marked(fd) {
                return Ok(Some(node));
            }
            let key = crate::fuseplane::key_of_fd(fd.as_fd())?;
            let differs = |mount: &Arc<Mount>| mount.through.as_ref().is_some_and(|it| it.differs(key));
            if !self.table.mounts().iter().any(differs) {
                return Ok(None);
            }
            // What the kernel tells of it is told if nobody knows better.
            return Ok(self.walker(crate::walk::Limits::default()).lent(fd).unwrap_or(None));
        }
        self.walker(crate::walk::Limits::default()).lent(fd)
    }

    /// A node is about to be changed.
    pub(crate) fn changes(&self, node: &Arc<Node>, attr: &Attr) {
        self.may_copy_up(node, attr);
        if self.view.lent.changes(node) && self.view.fast.is_told() {
            self.view.fast.close();
            // Whoever is changing the table tells it afterwards.
            if let Some(_changing) = self.view.changing.try_lock() {
                self.view.fast.tell_if_changed(self.view, &self.view.table());
            }
        }
    }

    /// Whether a descriptor may be lent at all.
    pub(crate) fn may_be_lent(&self) -> bool {
        self.view.lent.any.load(Ordering::Acquire) || any_lends(&self.table)
    }
}

/// Whether a call changes nothing of what it is about.
pub(crate) fn only_looks(call: &Call<'_>) -> bool {
    const WRITES: i32 = libc::O_WRONLY | libc::O_RDWR | libc::O_TRUNC | libc::O_CREAT;
    let name = crate::calls::by_number(call.number).map_or("", |row| row.name);
    match name {
        "open" => call.int(1) & WRITES == 0,
        "openat" => call.int(2) & WRITES == 0,
        "fstat" | "fstatfs" | "fgetxattr" | "flistxattr" => true,
        "stat" | "lstat" | "newfstatat" | "statx" | "access" | "faccessat" | "faccessat2" | "readlink"
        | "readlinkat" | "statfs" | "getxattr" | "lgetxattr" | "listxattr" | "llistxattr" | "getxattrat"
        | "listxattrat" => true,
        "chdir" | "fchdir" | "chroot" | "getcwd" | "execve" | "execveat" | "inotify_add_watch" => true,
        _ => false,
    }
}

/// Calls on a descriptor that is no stand-in's.
pub(crate) fn serve(call: &Call<'_>, name: &str, fd: &OwnedFd) -> Outcome {
    let is_served = matches!(name, "fstat" | "fstatfs" | "fchmod" | "fchown" | "ioctl" | "syncfs")
        || name.contains("xattr");
    if !is_served || !call.may_be_lent() {
        return Ok(Answer::GoOn);
    }
    let is_name = crate::call::status_flags(fd)?.contains(OFlag::O_PATH);
    if is_name && !matches!(name, "fstat" | "fstatfs") {
        return Ok(Answer::GoOn);
    }
    if name == "ioctl" && kernel_answers(call.args[1] as u32) {
        return Ok(Answer::GoOn);
    }
    if name == "ioctl" && call.args[1] as u32 == FIDEDUPERANGE {
        return dedupe(call, fd);
    }
    let Some(node) = call.lent_fd(fd)? else { return Ok(Answer::GoOn) };
    let attr = node.attr()?;
    if name == "ioctl" && matches!(call.args[1] as u32, FS_IOC_GETFLAGS | FS_IOC_FSGETXATTR) {
        let data = nix::sys::stat::fstat(fd.as_fd())?;
        // The kernel knows more of it than drivers do, as long as it is what is behind: a copy is shown with the numbers of what it was made of.
        let is_behind = || match attr.kind {
            Kind::File => {
                let file = guarded(|| node.tree().open(node.ino, veduta_api::OpenFlags::READ))?;
                let key = file.backing().map(crate::fuseplane::key_of_fd).transpose()?;
                Ok(key == Some((data.st_dev, data.st_ino)))
            }
            _ => Result::Ok(
                crate::stat::device(&node.mount, &attr) == data.st_dev && attr.st_ino == data.st_ino,
            ),
        };
        if is_behind()? {
            return Ok(Answer::GoOn);
        }
    }
    let place = Place::Tree(Arc::clone(&node), attr);
    match name {
        "fstat" => crate::files::stat(call, &place, call.args[1]),
        "fstatfs" => crate::files::statfs(call, &place, call.args[1]),
        "fchmod" => {
            let perm = Some(Perm::from_mode(call.args[1] as u32));
            crate::files::change(call, &place, SetAttr { perm, ..SetAttr::default() })
        }
        "fchown" => crate::files::chown(call, &place, call.args[1], call.args[2]),
        "syncfs" => {
            crate::data::sync_mount(call, node.mount.id)?;
            DONE
        }
        "ioctl" => {
            crate::data::may_set_flags(call, &place)?;
            call.changes(&node, &attr);
            if attr.kind == Kind::Directory {
                return crate::data::with_ioctl(call, |request| {
                    guarded(|| node.tree().ioctl(node.ino, request))
                });
            }
            let file = guarded(|| node.tree().open(node.ino, veduta_api::OpenFlags::READ))?;
            crate::data::file_ioctl(call, &*file)
        }
        _ => crate::files::xattr(call, &place, &name[1..], 1),
    }
}

const FS_IOC_GETFLAGS: u32 = 0x8008_6601;
const FS_IOC_FSGETXATTR: u32 = 0x801c_581f;
const FIDEDUPERANGE: u32 = 0xc018_9436;

/// Requests that change nothing, or that the kernel refuses without the right to write. Whatever else there is may be a filesystem's own way
/// to change a file, and is unknown where files are a tree's.
fn kernel_answers(command: u32) -> bool {
    // FIBMAP, FIGETBSZ; FS_IOC_FIEMAP, FS_IOC_GETVERSION and its form of 32 bits, FS_IOC_GETFSLABEL, FS_IOC_GETFSUUID,
    // FS_IOC_GETFSSYSFSPATH, FS_IOC_MEASURE_VERITY, FS_IOC_GET_ENCRYPTION_PWSALT to _NONCE; FICLONE, FICLONERANGE.
    matches!(
        command,
        1 | 2
            | 0xc020_660b
            | 0x8008_7601
            | 0x8004_7601
            | 0x8100_9431
            | 0x8011_1500
            | 0x8081_1501
            | 0xc004_6686
            | 0x4009_9409..=0x4009_940d | 0x4004_9409 | 0x4020_940d
    )
}

/// `FIDEDUPERANGE` shares what two files have the same, of which the second need not be open for writing: refused for each, as overlayfs does, where one of
/// them is lent.
fn dedupe(call: &Call<'_>, source: &OwnedFd) -> Outcome {
    const HEAD: usize = 24;
    const INFO: usize = 32;
    let head: [u8; HEAD] = call.task.read_array(call.args[2])?;
    let count = usize::from(u16::from_ne_bytes([head[16], head[17]]));
    let mut infos = vec![0; count * INFO];
    call.task.read(call.args[2] + HEAD as u64, &mut infos)?;
    let is_lent = |number: i64| -> Result<bool> { Ok(call.lent(number as i32)?.is_some()) };
    let mut any = call.lent_fd(source)?.is_some();
    for info in infos.chunks_exact(INFO) {
        let mut number = [0; 8];
        number.copy_from_slice(&info[..8]);
        any |= is_lent(i64::from_ne_bytes(number))?;
    }
    if !any {
        return Ok(Answer::GoOn);
    }
    for info in infos.chunks_exact_mut(INFO) {
        info[16..24].fill(0);
        info[24..28].copy_from_slice(&(-(Errno::EPERM as i32)).to_ne_bytes());
    }
    call.task.write(call.args[2] + HEAD as u64, &infos)?;
    DONE
}

const F_SETSIG: u64 = 10;
const F_GETSIG: u64 = 11;

fn control(fd: &OwnedFd, operation: u64, value: u64) -> Result<i64> {
    let mut arguments = [fd.as_raw_fd() as u64, operation, value].map(Argument::Value);
    raw::call(libc::SYS_fcntl as u32, &mut arguments)
}

/// The signal that tells of a description that input is possible. The kernel keeps it with the description, for all who get that, and nobody is told
/// so of a file or a directory: it serves as a mark.
pub(crate) fn signal_of(fd: &OwnedFd) -> Result<i64> {
    control(fd, F_GETSIG, 0)
}

/// Sets it.
pub(crate) fn set_signal(fd: &OwnedFd, signal: i32) -> Result<()> {
    control(fd, F_SETSIG, signal as u64).map(drop)
}

/// Marks a description, with the signal that it would be in any case.
pub(crate) fn mark(fd: &OwnedFd) -> Result<()> {
    set_signal(fd, libc::SIGIO)
}

/// Whether it is marked.
pub(crate) fn is_marked(fd: &OwnedFd) -> bool {
    signal_of(fd) == Ok(libc::SIGIO.into())
}

/// Whether a description is marked by us; `true`, `_`: as one whose file its opening has made.
fn whose_mark(call: &Call<'_>, fd: &OwnedFd) -> Option<bool> {
    let key = crate::fuseplane::key_of_fd(fd.as_fd()).ok()?;
    let (nodes, is_own) = call.view.lent.of(key);
    let is_ours = is_own || !nodes.is_empty() || call.view.stand_ins.find(key).is_some();
    (is_ours && is_marked(fd)).then_some(nodes.is_empty())
}

/// Whether a description is marked as one whose file was made for it.
pub(crate) fn is_marked_created(call: &Call<'_>, fd: &OwnedFd) -> bool {
    whose_mark(call, fd) == Some(true)
}

/// `F_GETSIG` and `F_SETSIG`: marks are not seen, and stay.
pub(crate) fn signal(call: &Call<'_>) -> Outcome {
    let Ok(fd) = crate::serve::descriptor(call.task, call.int(0)) else { return Ok(Answer::GoOn) };
    let Some(is_created) = whose_mark(call, &fd) else { return Ok(Answer::GoOn) };
    match call.int(2) {
        _ if call.args[1] as u32 == F_GETSIG as u32 => DONE,
        0 | libc::SIGIO => DONE,
        // A mark of that kind may go.
        _ if is_created => Ok(Answer::GoOn),
        _ => {
            // Without its mark, the path must tell which node it is.
            let path = std::fs::read_link(format!("/proc/self/fd/{}", fd.as_raw_fd()))
                .map_err(crate::standin::errno)?;
            let walker = call.walker(crate::walk::Limits::default());
            let at_path = walker.locate(path.as_os_str().as_bytes());
            let lent = call.view.lent.marked(&fd);
            match (at_path, lent) {
                (Ok(Place::Tree(node, _)), Some(lent))
                    if node.ino == lent.ino && Arc::ptr_eq(&node.mount.tree, &lent.mount.tree) =>
                {
                    Ok(Answer::GoOn)
                }
                _ => Err(Errno::EINVAL),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn links_to_descriptors_are_told_from_others() {
        let read = |link: &str| descriptor_link(link.as_bytes()).map(|(pid, number)| (pid.as_raw(), number));
        assert_eq!(read("/proc/12/fd/3"), Some((12, 3)));
        assert_eq!(read("/proc/12/task/13/fd/4"), Some((13, 4)));
        for other in ["/proc/12/exe", "/proc/12/cwd", "/proc/12/fd", "/proc/12/map_files/1-2", "/a/12/fd/3"] {
            assert_eq!(read(other), None, "{other}");
        }
    }
}
