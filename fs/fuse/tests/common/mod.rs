//! A tree in memory for the tests of the host: small, honest, and with files that misbehave on purpose.
//!
//! * `hang`: reading waits until it is interrupted.
//! * `stuck`, and whatever begins so: reading waits for [`Memory::release`], whatever the reader wants.
//! * `full`: closing it tells that there is no space.
//! * `panic`: reading panics; so does looking up `panic-name`.
//! * `slow-name`: looking it up waits for the release.

#![allow(dead_code, clippy::panic, clippy::unwrap_used)]

use std::collections::{BTreeMap, HashMap};
use std::ffi::{OsStr, OsString};
use std::fs;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::time::Duration;

use veduta_api::{
    Allocate, Attr, Device, DirEntry, DirSink, Entry, Errno, Facts, File, Filesystem, Ino, Interrupt, Kind,
    NewNode, OpenFlags, Perm, RenameFlags, Result, Seek, SetAttr, SetTime, StatFs, Timestamp, XattrMode,
};

/// What users see of node N is N plus this.
pub(crate) const ST_INO: u64 = 1 << 40;

/// Whether mounts can be made here. In CI that is a must.
pub(crate) fn can_mount() -> bool {
    let can = fs::File::options().read(true).write(true).open("/dev/fuse").is_ok();
    assert!(can || std::env::var_os("CI").is_none_or(|ci| ci != "true"), "/dev/fuse cannot be opened");
    if !can {
        println!("skip - /dev/fuse cannot be opened");
    }
    can
}

pub(crate) fn is_root() -> bool {
    fs::metadata("/proc/self").is_ok_and(|own| std::os::unix::fs::MetadataExt::uid(&own) == 0)
}

/// Waits for something that happens by itself; only its never happening is a failure.
pub(crate) fn until(what: &str, condition: impl Fn() -> bool) {
    for _ in 0..3000 {
        if condition() {
            return;
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    panic!("never: {what}");
}

pub(crate) fn is_mounted(point: &Path) -> bool {
    let mounts = fs::read_to_string("/proc/self/mounts").unwrap();
    mounts.lines().any(|line| line.split(' ').nth(1) == point.to_str())
}

/// Calls that reached the tree.
#[derive(Default)]
pub(crate) struct Counts {
    pub(crate) lookups: AtomicUsize,
    pub(crate) opens: AtomicUsize,
    pub(crate) opendirs: AtomicUsize,
    pub(crate) readdirs: AtomicUsize,
    pub(crate) reads: AtomicUsize,
    pub(crate) readlinks: AtomicUsize,
    pub(crate) xattrs: AtomicUsize,
    pub(crate) syncs: AtomicUsize,
    pub(crate) flushes: AtomicUsize,
    pub(crate) stuck: AtomicUsize,
    pub(crate) unmounts: AtomicUsize,
}

pub(crate) fn count(counter: &AtomicUsize) -> usize {
    counter.load(Ordering::SeqCst)
}

fn add(counter: &AtomicUsize) {
    counter.fetch_add(1, Ordering::SeqCst);
}

struct Node {
    attr: Attr,
    data: Vec<u8>,
    children: BTreeMap<OsString, u64>,
    target: OsString,
    xattrs: BTreeMap<OsString, Vec<u8>>,
    backing: Option<Arc<fs::File>>,
    references: u64,
}

struct State {
    nodes: HashMap<u64, Node>,
    next: u64,
}

pub(crate) struct Memory {
    pub(crate) facts: Facts,
    pub(crate) counts: Counts,
    state: Mutex<State>,
    released: Mutex<bool>,
    release: Condvar,
}

impl Memory {
    pub(crate) fn new(facts: Facts) -> Arc<Self> {
        let mut root = Attr::new(ST_INO + 1, Kind::Directory, Perm::from_mode(0o755));
        root.nlink = 2;
        (root.uid, root.gid) = owner();
        let memory = Arc::new(Self {
            facts,
            counts: Counts::default(),
            state: Mutex::new(State { nodes: HashMap::from([(1, node(root))]), next: 2 }),
            released: Mutex::new(false),
            release: Condvar::new(),
        });
        for name in ["hang", "stuck", "panic"] {
            memory.add(name, b"content that is hard to get");
        }
        memory
    }

    /// Puts a file into the root.
    pub(crate) fn add(&self, name: &str, data: &[u8]) -> u64 {
        let mut state = self.state();
        let ino = state.make(1, OsStr::new(name), Kind::File, 0o644).unwrap();
        let node = state.nodes.get_mut(&ino).unwrap();
        node.data = data.to_vec();
        node.attr.size = data.len() as u64;
        ino
    }

    pub(crate) fn add_link(&self, name: &str, target: &str) {
        let mut state = self.state();
        let ino = state.make(1, OsStr::new(name), Kind::Symlink, 0o777).unwrap();
        state.nodes.get_mut(&ino).unwrap().target = target.into();
    }

    /// Puts a file into the root whose data is in a file of the host system.
    pub(crate) fn add_backed(&self, name: &str, path: &Path) {
        let ino = self.add(name, &fs::read(path).unwrap());
        let file = fs::File::options().read(true).write(true).open(path).unwrap();
        self.state().nodes.get_mut(&ino).unwrap().backing = Some(Arc::new(file));
    }

    pub(crate) fn change(&self, ino: u64, change: impl FnOnce(&mut Attr)) {
        change(&mut self.state().nodes.get_mut(&ino).unwrap().attr);
    }

    /// References that hosts hold on a node.
    pub(crate) fn references(&self, ino: u64) -> u64 {
        self.state().nodes.get(&ino).map_or(0, |node| node.references)
    }

    pub(crate) fn mode(&self, ino: u64) -> u32 {
        self.state().nodes[&ino].attr.mode()
    }

    pub(crate) fn xattr(&self, ino: u64, name: &str) -> Option<Vec<u8>> {
        self.state().nodes[&ino].xattrs.get(OsStr::new(name)).cloned()
    }

    pub(crate) fn set_xattr(&self, ino: u64, name: &str, value: &[u8]) {
        self.state().nodes.get_mut(&ino).unwrap().xattrs.insert(name.into(), value.into());
    }

    /// Lets everybody who reads `stuck` go on.
    pub(crate) fn release(&self) {
        *self.released.lock().unwrap() = true;
        self.release.notify_all();
    }

    fn wait_for_release(&self) {
        let released = self.released.lock().unwrap();
        drop(self.release.wait_timeout_while(released, Duration::from_secs(60), |done| !*done).unwrap());
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap()
    }

    fn file(self: &Arc<Self>, ino: u64) -> Arc<dyn File> {
        let backing = self.state().nodes.get(&ino).and_then(|node| node.backing.clone());
        Arc::new(Opened { memory: self.clone(), ino, backing })
    }
}

pub(crate) fn owner() -> (u32, u32) {
    use std::os::unix::fs::MetadataExt;
    let own = fs::metadata("/proc/self").unwrap();
    (own.uid(), own.gid())
}

fn node(attr: Attr) -> Node {
    Node {
        attr,
        data: Vec::new(),
        children: BTreeMap::new(),
        target: OsString::new(),
        xattrs: BTreeMap::new(),
        backing: None,
        references: 0,
    }
}

impl State {
    fn node(&self, ino: Ino) -> Result<&Node> {
        self.nodes.get(&ino.0).ok_or(Errno::ESTALE)
    }

    fn node_mut(&mut self, ino: Ino) -> Result<&mut Node> {
        self.nodes.get_mut(&ino.0).ok_or(Errno::ESTALE)
    }

    fn child(&self, parent: u64, name: &OsStr) -> Option<u64> {
        self.nodes.get(&parent)?.children.get(name).copied()
    }

    fn make(&mut self, parent: u64, name: &OsStr, kind: Kind, mode: u32) -> Result<u64> {
        if self.child(parent, name).is_some() {
            return Err(Errno::EEXIST);
        }
        let ino = self.next;
        self.next += 1;
        let mut attr = Attr::new(ST_INO + ino, kind, Perm::from_mode(mode));
        (attr.uid, attr.gid) = owner();
        attr.btime = Some(Timestamp { seconds: -5, nanos: 7 });
        self.nodes.insert(ino, node(attr));
        self.nodes.get_mut(&parent).ok_or(Errno::ESTALE)?.children.insert(name.into(), ino);
        Ok(ino)
    }

    fn make_new(&mut self, parent: Ino, name: &OsStr, new: &NewNode) -> Result<Entry> {
        let ino = self.make(parent.0, name, new.kind, new.masked().bits())?;
        let node = self.node_mut(Ino(ino))?;
        node.attr.uid = new.uid;
        node.attr.gid = new.gid;
        node.attr.rdev = new.rdev;
        self.entry(ino)
    }

    fn entry(&mut self, ino: u64) -> Result<Entry> {
        let node = self.node_mut(Ino(ino))?;
        node.references += 1;
        Ok(Entry { ino: Ino(ino), generation: 3, attr: node.attr })
    }

    fn drop_name(&mut self, parent: u64, name: &OsStr) {
        let Some(ino) = self.nodes.get_mut(&parent).and_then(|dir| dir.children.remove(name)) else { return };
        if let Some(node) = self.nodes.get_mut(&ino) {
            node.attr.nlink = node.attr.nlink.saturating_sub(1);
        }
    }
}

/// The parts of the contract that need an `Arc` of the tree.
pub(crate) struct Tree(pub(crate) Arc<Memory>);

impl Filesystem for Tree {
    fn facts(&self) -> Facts {
        self.0.facts
    }

    fn lookup(&self, parent: Ino, name: &OsStr) -> Result<Entry> {
        add(&self.0.counts.lookups);
        assert_ne!(name, "panic-name", "on purpose");
        if name == "slow-name" {
            add(&self.0.counts.stuck);
            self.0.wait_for_release();
        }
        let mut state = self.0.state();
        let ino = state.child(parent.0, name).ok_or(Errno::ENOENT)?;
        state.entry(ino)
    }

    fn getattr(&self, ino: Ino) -> Result<Attr> {
        Ok(self.0.state().node(ino)?.attr)
    }

    fn readdir(&self, dir: Ino, position: u64, sink: &mut DirSink<'_>) -> Result<()> {
        add(&self.0.counts.readdirs);
        let state = self.0.state();
        for (at, (name, ino)) in state.node(dir)?.children.iter().enumerate().skip(position as usize) {
            let kind = Some(state.node(Ino(*ino))?.attr.kind);
            let entry =
                DirEntry { name, ino: Some(Ino(*ino)), st_ino: ST_INO + ino, kind, next: at as u64 + 1 };
            if sink(entry).is_break() {
                break;
            }
        }
        Ok(())
    }

    fn open(&self, ino: Ino, _flags: OpenFlags) -> Result<Arc<dyn File>> {
        add(&self.0.counts.opens);
        self.0.state().node(ino)?;
        Ok(self.0.file(ino.0))
    }

    fn opendir(&self, _dir: Ino) -> Result<Option<Arc<dyn veduta_api::Directory>>> {
        add(&self.0.counts.opendirs);
        Ok(None)
    }

    fn readlink(&self, ino: Ino) -> Result<OsString> {
        add(&self.0.counts.readlinks);
        Ok(self.0.state().node(ino)?.target.clone())
    }

    fn statfs(&self) -> Result<StatFs> {
        Ok(StatFs {
            block_size: 1024,
            blocks: 100,
            blocks_free: 50,
            blocks_available: 40,
            ..StatFs::default()
        })
    }

    fn forget(&self, ino: Ino, count: u64) {
        if let Ok(node) = self.0.state().node_mut(ino) {
            node.references -= count;
        }
    }

    fn sync(&self) -> Result<()> {
        add(&self.0.counts.syncs);
        Ok(())
    }

    fn unmount(&self) -> Result<()> {
        add(&self.0.counts.unmounts);
        Ok(())
    }

    fn setattr(&self, ino: Ino, changes: &SetAttr) -> Result<Attr> {
        let mut state = self.0.state();
        let node = state.node_mut(ino)?;
        let time = |time| match time {
            SetTime::To(time) => time,
            SetTime::Now => Timestamp::now(),
        };
        let attr = &mut node.attr;
        attr.perm = changes.perm.unwrap_or(attr.perm);
        attr.uid = changes.uid.unwrap_or(attr.uid);
        attr.gid = changes.gid.unwrap_or(attr.gid);
        attr.atime = changes.atime.map_or(attr.atime, time);
        attr.mtime = changes.mtime.map_or(attr.mtime, time);
        attr.flags = changes.flags.unwrap_or(attr.flags);
        if changes.drop_set_id {
            let mut bits = attr.perm.bits() & !0o4000;
            if bits & 0o10 != 0 {
                bits &= !0o2000;
            }
            attr.perm = Perm::from_mode(bits);
        }
        attr.ctime = changes.ctime.unwrap_or_else(Timestamp::now);
        if let Some(size) = changes.size {
            attr.size = size;
            node.data.resize(size as usize, 0);
        }
        Ok(node.attr)
    }

    fn create(
        &self,
        parent: Ino,
        name: &OsStr,
        new: &NewNode,
        _flags: OpenFlags,
    ) -> Result<(Entry, Arc<dyn File>)> {
        let entry = self.0.state().make_new(parent, name, new)?;
        Ok((entry, self.0.file(entry.ino.0)))
    }

    fn mknod(&self, parent: Ino, name: &OsStr, new: &NewNode) -> Result<Entry> {
        self.0.state().make_new(parent, name, new)
    }

    fn mkdir(&self, parent: Ino, name: &OsStr, new: &NewNode) -> Result<Entry> {
        self.0.state().make_new(parent, name, new)
    }

    fn symlink(&self, parent: Ino, name: &OsStr, target: &OsStr, new: &NewNode) -> Result<Entry> {
        let mut state = self.0.state();
        let entry = state.make_new(parent, name, new)?;
        let node = state.node_mut(entry.ino)?;
        node.target = target.into();
        node.attr.size = target.len() as u64;
        Ok(Entry { attr: node.attr, ..entry })
    }

    fn link(&self, ino: Ino, parent: Ino, name: &OsStr) -> Result<Entry> {
        let mut state = self.0.state();
        state.node_mut(parent)?.children.insert(name.into(), ino.0);
        state.node_mut(ino)?.attr.nlink += 1;
        state.entry(ino.0)
    }

    fn tmpfile(&self, parent: Ino, new: &NewNode, _flags: OpenFlags) -> Result<(Entry, Arc<dyn File>)> {
        let mut state = self.0.state();
        let name = OsStr::new("the name of a file without a name");
        let entry = state.make_new(parent, name, new)?;
        state.drop_name(parent.0, name);
        let attr = state.node(entry.ino)?.attr;
        drop(state);
        Ok((Entry { attr, ..entry }, self.0.file(entry.ino.0)))
    }

    fn unlink(&self, parent: Ino, name: &OsStr) -> Result<()> {
        let mut state = self.0.state();
        state.child(parent.0, name).ok_or(Errno::ENOENT)?;
        state.drop_name(parent.0, name);
        Ok(())
    }

    fn rmdir(&self, parent: Ino, name: &OsStr) -> Result<()> {
        let mut state = self.0.state();
        let ino = state.child(parent.0, name).ok_or(Errno::ENOENT)?;
        if !state.node(Ino(ino))?.children.is_empty() {
            return Err(Errno::ENOTEMPTY);
        }
        state.drop_name(parent.0, name);
        Ok(())
    }

    fn rename(
        &self,
        parent: Ino,
        name: &OsStr,
        new_parent: Ino,
        new_name: &OsStr,
        flags: RenameFlags,
    ) -> Result<()> {
        let mut state = self.0.state();
        let ino = state.child(parent.0, name).ok_or(Errno::ENOENT)?;
        let target = state.child(new_parent.0, new_name);
        if flags.no_replace && target.is_some() {
            return Err(Errno::EEXIST);
        }
        if flags.exchange {
            let other = target.ok_or(Errno::ENOENT)?;
            state.node_mut(parent)?.children.insert(name.into(), other);
        } else {
            state.drop_name(new_parent.0, new_name);
            state.node_mut(parent)?.children.remove(name);
        }
        state.node_mut(new_parent)?.children.insert(new_name.into(), ino);
        Ok(())
    }

    fn copy_range(&self, from: Ino, offset: u64, to: Ino, to_offset: u64, len: u64) -> Result<u64> {
        let mut state = self.0.state();
        let data: Vec<u8> = {
            let data = &state.node(from)?.data;
            data.iter().skip(offset as usize).take(len as usize).copied().collect()
        };
        put(state.node_mut(to)?, &data, to_offset);
        Ok(data.len() as u64)
    }

    fn getxattr(&self, ino: Ino, name: &OsStr) -> Result<Vec<u8>> {
        add(&self.0.counts.xattrs);
        self.0.state().node(ino)?.xattrs.get(name).cloned().ok_or(Errno::ENODATA)
    }

    fn listxattr(&self, ino: Ino) -> Result<Vec<OsString>> {
        Ok(self.0.state().node(ino)?.xattrs.keys().cloned().collect())
    }

    fn setxattr(&self, ino: Ino, name: &OsStr, value: &[u8], mode: XattrMode) -> Result<()> {
        let mut state = self.0.state();
        let xattrs = &mut state.node_mut(ino)?.xattrs;
        match (mode, xattrs.contains_key(name)) {
            (XattrMode::Create, true) => return Err(Errno::EEXIST),
            (XattrMode::Replace, false) => return Err(Errno::ENODATA),
            _ => {}
        }
        xattrs.insert(name.into(), value.into());
        Ok(())
    }

    fn removexattr(&self, ino: Ino, name: &OsStr) -> Result<()> {
        self.0.state().node_mut(ino)?.xattrs.remove(name).map(drop).ok_or(Errno::ENODATA)
    }
}

fn put(node: &mut Node, data: &[u8], offset: u64) {
    let (start, end) = (offset as usize, offset as usize + data.len());
    if node.data.len() < end {
        node.data.resize(end, 0);
    }
    node.data[start..end].copy_from_slice(data);
    node.attr.size = node.data.len() as u64;
    node.attr.blocks = node.attr.size.div_ceil(512);
}

struct Opened {
    memory: Arc<Memory>,
    ino: u64,
    backing: Option<Arc<fs::File>>,
}

impl Opened {
    /// In the root.
    fn name(&self) -> Option<OsString> {
        let state = self.memory.state();
        state.nodes[&1].children.iter().find(|(_, ino)| **ino == self.ino).map(|(name, _)| name.clone())
    }
}

impl File for Opened {
    fn read_at(&self, buf: &mut [u8], offset: u64) -> Result<usize> {
        add(&self.memory.counts.reads);
        if let Some(file) = &self.backing {
            return file.read_at(buf, offset).map_err(|_| Errno::EIO);
        }
        match self.name().as_deref().and_then(OsStr::to_str) {
            Some("hang") => {
                add(&self.memory.counts.stuck);
                Interrupt::current().sleep(Duration::from_secs(60))?;
            }
            Some(name) if name.starts_with("stuck") => {
                add(&self.memory.counts.stuck);
                self.memory.wait_for_release();
            }
            Some("panic") => panic!("on purpose"),
            _ => {}
        }
        let state = self.memory.state();
        let data = state.node(Ino(self.ino))?.data.get(offset as usize..).unwrap_or_default();
        let len = data.len().min(buf.len());
        buf[..len].copy_from_slice(&data[..len]);
        Ok(len)
    }

    fn write_at(&self, buf: &[u8], offset: u64) -> Result<usize> {
        put(self.memory.state().node_mut(Ino(self.ino))?, buf, offset);
        Ok(buf.len())
    }

    fn flush(&self) -> Result<()> {
        add(&self.memory.counts.flushes);
        if self.name().is_some_and(|name| name == "full") { Err(Errno::ENOSPC) } else { Ok(()) }
    }

    fn sync(&self, _data_only: bool) -> Result<()> {
        add(&self.memory.counts.syncs);
        Ok(())
    }

    fn allocate(&self, how: Allocate, offset: u64, len: u64) -> Result<()> {
        let mut state = self.memory.state();
        let node = state.node_mut(Ino(self.ino))?;
        match how {
            Allocate::Extend => {
                let end = (offset + len) as usize;
                if node.data.len() < end {
                    node.data.resize(end, 0);
                    node.attr.size = end as u64;
                }
                Ok(())
            }
            Allocate::PunchHole => {
                let end = node.data.len().min((offset + len) as usize);
                node.data[offset as usize..end].fill(0);
                Ok(())
            }
            _ => Err(Errno::EOPNOTSUPP),
        }
    }

    /// Blocks of 4096 zeros are holes.
    fn seek(&self, what: Seek, offset: u64) -> Result<u64> {
        let state = self.memory.state();
        let data = &state.node(Ino(self.ino))?.data;
        if offset >= data.len() as u64 {
            return Err(Errno::ENXIO);
        }
        for (block, bytes) in data.chunks(4096).enumerate().skip(offset as usize / 4096) {
            let hole = bytes.iter().all(|byte| *byte == 0);
            if hole == (what == Seek::Hole) {
                return Ok(offset.max(block as u64 * 4096));
            }
        }
        if what == Seek::Hole { Ok(data.len() as u64) } else { Err(Errno::ENXIO) }
    }

    fn backing(&self) -> Option<BorrowedFd<'_>> {
        self.backing.as_ref().map(|file| file.as_fd())
    }
}

/// A device number as `stat` shows it.
pub(crate) fn device(rdev: u64) -> Device {
    Device { major: nix::sys::stat::major(rdev) as u32, minor: nix::sys::stat::minor(rdev) as u32 }
}

/// Set: how this test program was started by itself.
pub(crate) const HOW: &str = "VEDUTA_TEST_HOW";

/// Runs this test program again as an ordinary user: `user` has fusermount3, `closed` has it but may not open the device, and `userns`
/// is in a user namespace without it.
pub(crate) fn run_as_user(how: &str) {
    use std::os::unix::fs::PermissionsExt;
    let folder = tempfile::tempdir().unwrap();
    fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o777)).unwrap();
    // Where cargo puts programs need not be open to others.
    let program = folder.path().join("program-of-a-user");
    fs::copy(std::env::current_exe().unwrap(), &program).unwrap();
    let device = folder.path().join("device");
    fs::create_dir(&device).unwrap();
    let output = std::process::Command::new("unshare")
        .args(["-m", "--propagation", "private", "sh", "-c", AS_USER, how])
        .args([&device, &program])
        .env("TMPDIR", folder.path())
        .env(HOW, how)
        .output()
        .unwrap();
    let text =
        String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{how}:\n{text}");
    text.lines().filter(|line| line.starts_with("skip")).for_each(|line| println!("{line} ({how})"));
}

/// A device node that everybody may open, seen in this mount namespace only, in place of the shared one.
const AS_USER: &str = r#"
set -e
mount -t tmpfs none "$1"
mode=666
[ "$0" = closed ] && mode=600
mknod -m $mode "$1/fuse" c 10 229
mount --bind "$1/fuse" /dev/fuse
user="setpriv --reuid 65534 --regid 65534 --clear-groups"
if [ "$0" = userns ]; then
    if ! $user unshare -Urm true; then echo "skip - no user namespaces here"; exit 0; fi
    for helper in fusermount3 fusermount; do
        path=$(command -v $helper) && mount --bind /bin/false "$path"
    done
    user="$user unshare -Urm"
fi
cd /
[ "$0" = closed ] && only=closed_device
exec $user "$2" $only
"#;
