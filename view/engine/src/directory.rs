//! Listing directories.
//!
//! A position in a directory is a number: 0 is before `.`, then come `..`, the entries of the tree, and at the end those mount
//! points that the tree has no name for. Whoever begins to list gets numbers that nobody else has, in blocks: entries
//! come and go, and what is the tenth to one is not to another. Where the tree goes on for a position is remembered with the
//! stand-in, and the position itself is the kernel's, in the open file description.
//!
//! A directory of the host in which mount points have to be shown that it does not have is served the same way: it gets a
//! stand-in whose tree is the host's directory.

use std::ffi::OsStr;
use std::ops::ControlFlow;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::sync::Arc;

use nix::errno::Errno;
use nix::fcntl::OFlag;
use nix::unistd::{Whence, lseek};
use veduta_api::{DirEntry, Kind, Result};

use crate::call::{Answer, Call, Outcome};
use crate::mounts::{Mount, Service};
use crate::node::{Node, guarded};
use crate::standin::{Listing, Listings, StandIn};
use crate::walk::Place;

/// Positions of mount points lie far behind those of any tree.
const EXTRA: u64 = 1 << 40;
/// Positions of one block.
const BLOCK: u64 = 256;
/// So many may list a directory at the same time without one of them losing his place.
const MOST_LISTINGS: usize = 16;

/// An entry to be returned.
struct Listed {
    name: Vec<u8>,
    st_ino: u64,
    kind: Option<Kind>,
    /// The position behind it.
    next: u64,
}

/// `getdents64` and the old `getdents`.
pub(crate) fn serve(call: &Call<'_>, stand_in: &Arc<StandIn>, fd: &OwnedFd, is_old: bool) -> Outcome {
    if stand_in.kind != Kind::Directory {
        return Err(Errno::ENOTDIR);
    }
    crate::call::readable(fd)?;
    let _turn = stand_in.turn.lock();
    let position = lseek(fd, 0, Whence::SeekCur)? as u64;
    let room = (call.args[2] as u32 as usize).min(1 << 20);
    let mut buffer = Buffer { bytes: Vec::with_capacity(room.min(1 << 16)), room, is_old, position };
    list(call, stand_in, position, &mut |entry| buffer.take(&entry))?;
    if buffer.bytes.is_empty() && buffer.is_too_small() {
        return Err(Errno::EINVAL);
    }
    call.task.write(call.args[1], &buffer.bytes)?;
    lseek(fd, buffer.position as i64, Whence::SeekSet)?;
    Ok(Answer::Value(buffer.bytes.len() as i64))
}

struct Buffer {
    bytes: Vec<u8>,
    room: usize,
    is_old: bool,
    /// Behind the last entry that was taken; `u64::MAX` marks one that would not fit even alone.
    position: u64,
}

impl Buffer {
    fn is_too_small(&self) -> bool {
        self.position == u64::MAX
    }

    /// `struct linux_dirent64`, or the old one, with the type in the last byte.
    fn take(&mut self, entry: &Listed) -> ControlFlow<()> {
        let fixed = if self.is_old { 18 } else { 19 };
        let length = (fixed + entry.name.len() + 1 + usize::from(self.is_old)).next_multiple_of(8);
        if self.bytes.len() + length > self.room {
            if self.bytes.is_empty() {
                self.position = u64::MAX;
            }
            return ControlFlow::Break(());
        }
        let start = self.bytes.len();
        let kind = entry.kind.map_or(0, |kind| (kind.mode_bits() >> 12) as u8);
        self.bytes.extend_from_slice(&entry.st_ino.to_ne_bytes());
        self.bytes.extend_from_slice(&entry.next.to_ne_bytes());
        self.bytes.extend_from_slice(&(length as u16).to_ne_bytes());
        if !self.is_old {
            self.bytes.push(kind);
        }
        self.bytes.extend_from_slice(&entry.name);
        self.bytes.resize(start + length, 0);
        if self.is_old {
            self.bytes[start + length - 1] = kind;
        }
        self.position = entry.next;
        ControlFlow::Continue(())
    }
}

/// Lists from a position on, until there is no more or the taker has enough.
fn list(
    call: &Call<'_>,
    stand_in: &Arc<StandIn>,
    position: u64,
    take: &mut dyn FnMut(Listed) -> ControlFlow<()>,
) -> Result<()> {
    let node = &stand_in.node;
    if position < EXTRA && list_tree(stand_in, position, take)?.is_break() {
        return Ok(());
    }
    let extra = missing_names(call, node, &node.path());
    let done = position.saturating_sub(EXTRA) as usize;
    for (number, name) in extra.iter().enumerate().skip(done) {
        let kind = Some(Kind::Directory);
        let listed = Listed { name: name.clone(), st_ino: 1, kind, next: EXTRA + number as u64 + 1 };
        if take(listed).is_break() {
            return Ok(());
        }
    }
    Ok(())
}

/// What the tree itself has, from a position on; `Break` if the taker has enough.
fn list_tree(
    stand_in: &Arc<StandIn>,
    position: u64,
    take: &mut dyn FnMut(Listed) -> ControlFlow<()>,
) -> Result<ControlFlow<()>> {
    let node = &stand_in.node;
    let mut listings = stand_in.listings.lock();
    let Listings { known, blocks: given } = &mut *listings;
    let start = find_listing(node, known, given, position)?;
    let Some(Listing { blocks, open, cookies, ended }) = known.last_mut() else { return Err(Errno::EIO) };
    let mut number = |step: u64| {
        while step / BLOCK >= blocks.len() as u64 {
            *given += 1;
            blocks.push(*given);
        }
        blocks[(step / BLOCK) as usize] * BLOCK + step % BLOCK
    };
    let kind = Some(Kind::Directory);
    let attr = node.attr()?;
    // Behind `.` is step 0, behind `..` step 1.
    if position == 0 {
        let dot = Listed { name: b".".to_vec(), st_ino: attr.st_ino, kind, next: number(0) };
        if take(dot).is_break() {
            return Ok(ControlFlow::Break(()));
        }
    }
    if start == 0 {
        let above = node.parent().map_or(Ok(attr), |parent| parent.attr()).unwrap_or(attr);
        let dots = Listed { name: b"..".to_vec(), st_ino: above.st_ino, kind, next: number(1) };
        if take(dots).is_break() {
            return Ok(ControlFlow::Break(()));
        }
    }
    // A position that was not listed yet: listed again from the last that is known.
    let wanted = start.saturating_sub(1) as usize;
    let mut index = wanted.min(cookies.len() - 1);
    let cookie = cookies[index];
    let mut is_full = false;
    let mut sink = |entry: DirEntry<'_>| {
        if index >= wanted {
            let name = entry.name.as_bytes().to_vec();
            let next = number(index as u64 + 2);
            if take(Listed { name, st_ino: entry.st_ino, kind: entry.kind, next }).is_break() {
                is_full = true;
                return ControlFlow::Break(());
            }
        }
        index += 1;
        if index >= cookies.len() {
            cookies.push(entry.next);
        } else {
            cookies[index] = entry.next;
        }
        ControlFlow::Continue(())
    };
    guarded(|| match open {
        Some(open) => open.read(cookie, &mut sink),
        None => node.tree().readdir(node.ino, cookie, &mut sink),
    })?;
    *ended = !is_full;
    Ok(if is_full { ControlFlow::Break(()) } else { ControlFlow::Continue(()) })
}

/// Brings the listing that a position belongs to to the end of those that are known, and says how far in it that is.
fn find_listing(node: &Node, known: &mut Vec<Listing>, given: &mut u64, position: u64) -> Result<u64> {
    let block = position / BLOCK;
    let step_in = |listing: &Listing| {
        Some(listing.blocks.binary_search(&block).ok()? as u64 * BLOCK + position % BLOCK)
    };
    if let Some((index, step)) =
        known.iter().enumerate().rev().find_map(|(index, listing)| Some((index, step_in(listing)?)))
    {
        let listing = known.remove(index);
        known.push(listing);
        return Ok(step);
    }
    // One that was forgotten, or never given out, goes on behind all that the last one has seen.
    if let (Some(last), true) = (known.last(), position > 0) {
        return Ok(last.cookies.len() as u64);
    }
    if *given + BLOCK >= EXTRA / BLOCK {
        known.clear();
        *given = 0;
    }
    if known.len() >= MOST_LISTINGS {
        known.remove(known.iter().position(|listing| listing.ended).unwrap_or(0));
    }
    // Who was at the end may go back, but hardly ever does.
    known.iter_mut().filter(|listing| listing.ended).for_each(|listing| listing.open = None);
    *given += 1;
    let open = guarded(|| node.tree().opendir(node.ino))?;
    known.push(Listing { blocks: vec![*given], open, cookies: vec![0], ended: false });
    Ok(0)
}

/// Names of mount points in a directory that the tree itself has no entry for.
fn missing_names(call: &Call<'_>, node: &Arc<Node>, path: &[u8]) -> Vec<Vec<u8>> {
    let names = call.table.names_in(path);
    let is_missing = |name: &&Vec<u8>| matches!(node.lookup(name), Err(Errno::ENOENT));
    names.iter().filter(is_missing).chain(&partitions(call, path)).cloned().collect()
}

/// Names of partitions of disks that are mounted in a directory.
fn partitions(call: &Call<'_>, path: &[u8]) -> Vec<Vec<u8>> {
    let mut found = Vec::new();
    for mount in call.table.mounts() {
        let (parent, name) = crate::mounts::split(&mount.target);
        let Service::Disk(drive) = &mount.service else { continue };
        if parent != path {
            continue;
        }
        let between: &[u8] = if name.last().is_some_and(u8::is_ascii_digit) { b"p" } else { b"" };
        for number in drive.numbers() {
            found.push([name, between, number.to_string().as_bytes()].concat());
        }
    }
    found
}

/// The answer for a directory of the host that is opened for reading and has mount points which it does not know; `None`
/// for all others.
pub(crate) fn with_mounts(call: &Call<'_>, path: &[u8], flags: OFlag) -> Result<Option<Answer>> {
    let path = if path == b"/" { b"".as_slice() } else { path };
    if call.table.names_in(path).is_empty() || flags.intersects(OFlag::O_PATH | OFlag::O_CREAT) {
        return Ok(None);
    }
    let real = |name: &[u8]| {
        let full = [path, b"/".as_slice(), name].concat();
        std::fs::symlink_metadata(OsStr::from_bytes(&full)).is_ok()
    };
    let all_known = call.table.names_in(path).iter().chain(&partitions(call, path)).all(|name| real(name));
    let shown = OsStr::from_bytes(crate::mounts::shown(path));
    if all_known || !std::path::Path::new(shown).is_dir() {
        return Ok(None);
    }
    let mount = host_mount(call, path)?;
    let node = Node::root(&mount);
    let attr = node.attr()?;
    let place = Place::Tree(Arc::clone(&node), attr);
    crate::open::existing(call, &place, &node, &attr, flags).map(Some)
}

/// A directory of the host as if it were mounted on itself: for its listing alone.
fn host_mount(call: &Call<'_>, path: &[u8]) -> Result<Arc<Mount>> {
    let mut known = call.view.host_listings.lock();
    if let Some(mount) = known.iter().find(|mount| mount.target == path) {
        return Ok(Arc::clone(mount));
    }
    let shown = OsStr::from_bytes(crate::mounts::shown(path));
    let tree: Arc<dyn veduta_api::Filesystem> =
        Arc::new(veduta_tree::hostdir::HostDir::open(std::path::Path::new(shown))?);
    let mount = Arc::new(Mount {
        id: call.view.new_mount_id(),
        target: path.to_vec(),
        type_name: "host".into(),
        source: shown.to_owned(),
        options: String::new(),
        facts: tree.facts(),
        tree,
        root: veduta_api::Ino::ROOT,
        service: Service::Tree,
        except: Vec::new(),
        read_only: false.into(),
        no_exec: false.into(),
        permanent: false,
        alias: None,
        recursive: true,
        is_owned: false,
        keeps_owners: false,
        is_itself: false,
        of_host: true,
        is_pseudo: false,
        never_written: false,
        is_hidden: true,
        uses: Vec::new(),
        is_source: false.into(),
        plane: Arc::default(),
        through: None,
        before: Arc::clone(&call.table),
    });
    known.push(Arc::clone(&mount));
    Ok(mount)
}
