//! A drive as a directory of ordinary files: `disk` is the whole, `disk1`, `disk2` and so on are its partitions, `info` says in words
//! what they are, and links in `by-label`, `by-uuid` and `by-partuuid` lead to them. What a host without device nodes shows of a drive.
//!
//! The partitions follow when `disk` was written and closed, or on BLKRRPART; while a partition is open they stay until it is closed.
//! As with a block device, opening with `O_TRUNC` changes nothing, and no other size can be set.
//!
//! Node numbers: 1 the root, 2 `info`, 3 to 5 the directories of links, 16 + N partition N (0 is the whole); a link's number
//! is its partition's, shifted by its directory's.

use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::fmt::Write;
use std::ops::ControlFlow;
use std::sync::Arc;
use std::time::Duration;

use veduta_api::{
    Attr, Caching, DeviceNode, DirEntry, DirSink, Drive, Entry, Errno, Facts, File, Filesystem, Ino, Kind,
    OpenFlags, Partition, Perm, Result, SetAttr, Timestamp, Value,
};

use crate::block::{BlockDrive, WHOLE};
use crate::volume::{Volume, identify};

const INFO: Ino = Ino(2);
const FIRST_LINKS: u64 = 3;
const FIRST_PART: u64 = 16;
const LINK_SHIFT: u32 = 32;

const LINKS: [&str; 3] = ["by-label", "by-uuid", "by-partuuid"];

/// See the head of this file.
pub struct DriveTree {
    devices: Arc<BlockDrive>,
    looks: DeviceNode,
    owner: (u32, u32),
    made: Timestamp,
}

impl DriveTree {
    /// The tree of a drive. What `looks` leaves open is decided by who runs this: `owner` is a user and a group.
    pub fn new(drive: Arc<dyn Drive>, looks: DeviceNode, owner: (u32, u32)) -> Self {
        let devices = BlockDrive::new(drive, true);
        Self { devices, looks, owner, made: Timestamp::now() }
    }

    /// What the parts hold: looked up each time, since a filesystem is made while the table stays.
    fn volumes(&self) -> BTreeMap<u32, Volume> {
        let found = |number: u32| {
            let volume = self.devices.disk(number).and_then(|disk| identify(&disk)).ok().flatten()?;
            Some((number, volume))
        };
        self.parts().into_iter().filter_map(found).collect()
    }

    /// The numbers of what can hold a volume: the whole disk too, if it has no partitions.
    fn parts(&self) -> Vec<u32> {
        let numbers = self.devices.numbers();
        if numbers.is_empty() { vec![WHOLE] } else { numbers }
    }

    fn partition(&self, number: u32) -> Option<Partition> {
        let table = self.devices.drive().table()?;
        table.partitions.into_iter().find(|partition| partition.number == number)
    }

    /// The links of a directory: names and the parts that they lead to.
    fn links(&self, which: usize) -> BTreeMap<OsString, u32> {
        let volumes = self.volumes();
        let name = |number: u32| match which {
            0 => volumes.get(&number).map(|volume| volume.label.clone()),
            1 => volumes.get(&number).map(|volume| volume.uuid.clone()),
            _ => self.partition(number).map(|partition| partition.uuid),
        };
        let mut links = BTreeMap::new();
        for number in self.parts() {
            if let Some(name) = name(number).map(|name| escaped(&name)).filter(|name| !name.is_empty()) {
                // As udev has it, a name that two have leads to one of them.
                links.entry(OsString::from(name)).or_insert(number);
            }
        }
        links
    }

    fn info(&self) -> String {
        let drive = self.devices.drive();
        let whole = drive.whole();
        let geometry = whole.geometry();
        let mut text = format!(
            "name: {}\nsize: {}\nsector size: {}\nread-only: {}\n",
            whole.name(),
            geometry.size,
            geometry.logical_sector,
            if geometry.read_only { "yes" } else { "no" }
        );
        let volumes = self.volumes();
        match drive.table() {
            Some(table) => {
                let _ = writeln!(text, "table: {}", table.scheme);
                if let Some(Value::Text(id)) = table.report.find("disk_id") {
                    let _ = writeln!(text, "disk id: {id}");
                }
                if let Some(Value::List(warnings)) = table.report.find("warnings") {
                    warnings.iter().for_each(|line| {
                        let _ = writeln!(text, "warning: {line}");
                    });
                }
            }
            None => text.push_str("table: none\n"),
        }
        for number in self.parts() {
            let Ok(disk) = self.devices.disk(number) else { continue };
            let start = self.devices.offset(number);
            let _ = write!(text, "{}: start={start} size={}", file_name(number), disk.size());
            if let Some(partition) = self.partition(number) {
                let kind =
                    if partition.kind_name.is_empty() { &partition.kind } else { &partition.kind_name };
                let _ = write!(text, " type=\"{kind}\"");
                if partition.bootable {
                    text.push_str(" bootable");
                }
                for (key, value) in [("name", &partition.name), ("partuuid", &partition.uuid)] {
                    if !value.is_empty() {
                        let _ = write!(text, " {key}={value:?}");
                    }
                }
            }
            if let Some(volume) = volumes.get(&number) {
                let _ = write!(text, " fstype={}", volume.kind);
                for (key, value) in [("label", &volume.label), ("uuid", &volume.uuid)] {
                    if !value.is_empty() {
                        let _ = write!(text, " {key}={value:?}");
                    }
                }
            }
            text.push('\n');
        }
        text
    }

    fn attr(&self, ino: Ino) -> Result<Attr> {
        let plain = |kind, mode| {
            let (uid, gid) = self.owner;
            let (atime, mtime, ctime) = (self.made, self.made, self.made);
            Attr { uid, gid, atime, mtime, ctime, ..Attr::new(ino.0, kind, Perm::from_mode(mode)) }
        };
        Ok(match node(ino).ok_or(Errno::ENOENT)? {
            Node::Root | Node::Links(_) => Attr { nlink: 2, ..plain(Kind::Directory, 0o555) },
            Node::Info => Attr { size: self.info().len() as u64, ..plain(Kind::File, 0o444) },
            Node::Link(number) => Attr { size: target(number).len() as u64, ..plain(Kind::Symlink, 0o777) },
            Node::Part(number) => {
                let size = self.devices.disk(number).map_err(|_| Errno::ENOENT)?.size();
                let attr = plain(Kind::File, 0o660);
                Attr {
                    size,
                    blocks: size / 512,
                    perm: self.looks.perm.unwrap_or(attr.perm),
                    uid: self.looks.uid.unwrap_or(attr.uid),
                    gid: self.looks.gid.unwrap_or(attr.gid),
                    ..attr
                }
            }
        })
    }

    fn found(&self, ino: Ino) -> Result<Entry> {
        Ok(Entry { ino, generation: 0, attr: self.attr(ino)? })
    }

    /// All entries of a directory, in order.
    fn entries(&self, dir: Ino) -> Vec<(OsString, Ino, Kind)> {
        match node(dir) {
            Some(Node::Root) => {
                let parts = [WHOLE].into_iter().chain(self.devices.numbers());
                let parts = parts.map(|number| (file_name(number).into(), part(number), Kind::File));
                let mut all: Vec<_> = parts.collect();
                all.push(("info".into(), INFO, Kind::File));
                for (at, name) in (FIRST_LINKS..).zip(LINKS) {
                    all.push((name.into(), Ino(at), Kind::Directory));
                }
                all
            }
            Some(Node::Links(which)) => {
                let links = self.links(which).into_iter();
                links.map(|(name, number)| (name, link(which, number), Kind::Symlink)).collect()
            }
            _ => Vec::new(),
        }
    }
}

enum Node {
    Root,
    Info,
    Links(usize),
    Link(u32),
    Part(u32),
}

fn node(ino: Ino) -> Option<Node> {
    let high = ino.0 >> LINK_SHIFT;
    let low = u32::try_from(ino.0 & u64::from(u32::MAX)).ok()?;
    match (high, u64::from(low)) {
        (0, 1) => Some(Node::Root),
        (0, 2) => Some(Node::Info),
        (0, at) if at < FIRST_LINKS + LINKS.len() as u64 && at >= FIRST_LINKS => {
            Some(Node::Links((at - FIRST_LINKS) as usize))
        }
        (0, at) if at >= FIRST_PART => Some(Node::Part((at - FIRST_PART) as u32)),
        (high, _) if (1..=LINKS.len() as u64).contains(&high) => Some(Node::Link(low)),
        _ => None,
    }
}

fn part(number: u32) -> Ino {
    Ino(FIRST_PART + u64::from(number))
}

fn link(which: usize, number: u32) -> Ino {
    Ino(((which as u64 + 1) << LINK_SHIFT) + u64::from(number))
}

fn file_name(number: u32) -> String {
    if number == WHOLE { "disk".into() } else { format!("disk{number}") }
}

fn target(number: u32) -> String {
    format!("../{}", file_name(number))
}

/// As udev spells names of links: what is no good in a name becomes `\x2f`.
fn escaped(name: &str) -> String {
    let mut escaped = String::new();
    for c in name.chars() {
        if c.is_alphanumeric() || "#+-.:=@_".contains(c) {
            escaped.push(c);
        } else {
            c.to_string().bytes().for_each(|byte| {
                let _ = write!(escaped, "\\x{byte:02x}");
            });
        }
    }
    if matches!(&*escaped, "." | "..") { escaped.replace('.', "\\x2e") } else { escaped }
}

impl Filesystem for DriveTree {
    /// Nothing is remembered: the partitions may change with each close of `disk`.
    fn facts(&self) -> Facts {
        Facts { caching: Caching::Shared(Duration::ZERO), ..Facts::default() }
    }

    fn lookup(&self, parent: Ino, name: &OsStr) -> Result<Entry> {
        let entries = self.entries(parent);
        let found = entries.into_iter().find(|(entry, _, _)| entry == name).ok_or(Errno::ENOENT)?;
        self.found(found.1)
    }

    fn getattr(&self, ino: Ino) -> Result<Attr> {
        self.attr(ino)
    }

    fn readdir(&self, dir: Ino, position: u64, sink: &mut DirSink<'_>) -> Result<()> {
        let entries = self.entries(dir);
        for (next, (name, ino, kind)) in
            (1..).zip(&entries).skip(usize::try_from(position).unwrap_or(usize::MAX))
        {
            let entry = DirEntry { name, ino: Some(*ino), st_ino: ino.0, kind: Some(*kind), next };
            if let ControlFlow::Break(()) = sink(entry) {
                break;
            }
        }
        Ok(())
    }

    fn parent(&self, dir: Ino) -> Result<Ino> {
        let _ = dir;
        Ok(Ino::ROOT)
    }

    fn readlink(&self, ino: Ino) -> Result<OsString> {
        match node(ino) {
            Some(Node::Link(number)) => Ok(target(number).into()),
            _ => Err(Errno::EINVAL),
        }
    }

    fn open(&self, ino: Ino, flags: OpenFlags) -> Result<Arc<dyn File>> {
        match node(ino) {
            Some(Node::Part(number)) => Ok(self.devices.open(number, flags)?),
            Some(Node::Info) if flags.write => Err(Errno::EACCES),
            Some(Node::Info) => Ok(Arc::new(Text(self.info().into_bytes()))),
            _ => Err(Errno::EINVAL),
        }
    }

    /// Times are not kept, and a size is what it is: 0 is what `O_TRUNC` asks for, which devices ignore.
    fn setattr(&self, ino: Ino, changes: &SetAttr) -> Result<Attr> {
        let attr = self.attr(ino)?;
        if changes.perm.is_some() || changes.uid.is_some() || changes.gid.is_some() || changes.flags.is_some()
        {
            return Err(Errno::EPERM);
        }
        match changes.size {
            Some(size) if size != 0 && size != attr.size => Err(Errno::EINVAL),
            _ => Ok(attr),
        }
    }

    fn sync(&self) -> Result<()> {
        match self.devices.drive().whole() {
            whole if whole.is_read_only() => Ok(()),
            whole => whole.flush(),
        }
    }
}

struct Text(Vec<u8>);

impl File for Text {
    fn read_at(&self, buf: &mut [u8], offset: u64) -> Result<usize> {
        let rest = usize::try_from(offset).ok().and_then(|at| self.0.get(at..)).unwrap_or_default();
        let len = rest.len().min(buf.len());
        buf[..len].copy_from_slice(&rest[..len]);
        Ok(len)
    }
    fn sync(&self, _data_only: bool) -> Result<()> {
        Ok(())
    }
    fn is_direct(&self) -> bool {
        true
    }
}
