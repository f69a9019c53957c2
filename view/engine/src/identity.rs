//! Who asks, and what the permission bits of a node allow. As `path_resolution(7)` and `inode(7)` have it.

use std::cell::OnceCell;
use std::ffi::OsStr;
use std::os::unix::fs::MetadataExt;

use nix::errno::Errno;
use veduta_api::{Attr, Kind, Result, SetAttr, SetTime};
use veduta_trace::Task;

use crate::mounts::Mount;
use crate::node::{Node, guarded};
use crate::who::Credentials;

/// Bits of access, as in `access(2)`.
pub(crate) const READ: u32 = 4;
/// See [`READ`].
pub(crate) const WRITE: u32 = 2;
/// See [`READ`].
pub(crate) const EXECUTE: u32 = 1;

/// The identity of a task that matters for files. Most calls need none, so it is found out when it is asked for.
pub(crate) struct Identity {
    task: Task,
    user_and_group: OnceCell<(u32, u32)>,
    groups: OnceCell<Vec<u32>>,
}

/// Who makes a call: to the kernel, and in a view of `--root` also to trees that keep owners of their own.
pub(crate) struct Caller {
    real: Identity,
    told: Option<Identity>,
}

impl Caller {
    /// A task, and who it is told that it is.
    pub(crate) fn new(task: Task, told: Option<&Credentials>) -> Self {
        Self {
            real: Identity::of(task),
            told: told.map(|who| Identity {
                task,
                user_and_group: OnceCell::from((who.users.fs, who.groups.fs)),
                groups: OnceCell::from(who.others.clone()),
            }),
        }
    }

    /// Who it is to the kernel.
    pub(crate) fn real(&self) -> &Identity {
        &self.real
    }

    /// Who it is to a mount.
    pub(crate) fn on(&self, mount: &Mount) -> &Identity {
        self.told.as_ref().filter(|_| mount.keeps_owners).unwrap_or(&self.real)
    }

    /// Whether it is root, as far as it knows.
    pub(crate) fn believes_root(&self) -> bool {
        self.told.as_ref().unwrap_or(&self.real).is_root()
    }
}

impl Identity {
    /// Of a task.
    pub(crate) fn of(task: Task) -> Self {
        Self { task, user_and_group: OnceCell::new(), groups: OnceCell::new() }
    }

    /// The owner of the task's directory in `/proc` is its effective identity.
    fn user_and_group(&self) -> (u32, u32) {
        *self.user_and_group.get_or_init(|| {
            let engine = (nix::unistd::geteuid().as_raw(), nix::unistd::getegid().as_raw());
            if engine.0 != 0 {
                // An ordinary user's processes stay that user's: a view has no set-user-id programs.
                return engine;
            }
            std::fs::metadata(format!("/proc/{}", self.task.0))
                .map_or(engine, |data| (data.uid(), data.gid()))
        })
    }

    /// The user.
    pub(crate) fn uid(&self) -> u32 {
        self.user_and_group().0
    }

    /// The group.
    pub(crate) fn gid(&self) -> u32 {
        self.user_and_group().1
    }

    /// Whether it is root.
    pub(crate) fn is_root(&self) -> bool {
        self.uid() == 0
    }

    /// The supplementary groups.
    pub(crate) fn groups(&self) -> &[u32] {
        self.groups.get_or_init(|| self.task.groups().unwrap_or_default())
    }

    /// Whether it belongs to a group.
    pub(crate) fn is_in(&self, group: u32) -> bool {
        self.gid() == group || self.groups().contains(&group)
    }

    /// `EACCES` unless the node's bits allow all of `wanted`.
    pub(crate) fn may(&self, attr: &Attr, wanted: u32) -> Result<()> {
        let bits = attr.perm.bits();
        if self.is_root() {
            let runs = wanted & EXECUTE == 0 || attr.kind == Kind::Directory || bits & 0o111 != 0;
            return if runs { Ok(()) } else { Err(Errno::EACCES) };
        }
        let allowed = if attr.uid == self.uid() {
            bits >> 6
        } else if self.is_in(attr.gid) {
            bits >> 3
        } else {
            bits
        };
        if allowed & wanted == wanted { Ok(()) } else { Err(Errno::EACCES) }
    }

    /// The same for a node, which may have an access control list: acl(5). One that grants the group nothing does not count.
    pub(crate) fn may_node(&self, node: &Node, attr: &Attr, wanted: u32) -> Result<()> {
        if node.mount.facts.acl
            && attr.kind != Kind::Symlink
            && attr.perm.bits() & 0o070 != 0
            && !self.is_root()
            && self.uid() != attr.uid
        {
            let name = OsStr::new("system.posix_acl_access");
            if let Ok(list) = guarded(|| node.tree().getxattr(node.ino, name)) {
                if let Some(allowed) = self.listed(&list, attr.gid, wanted) {
                    return if allowed { Ok(()) } else { Err(Errno::EACCES) };
                }
            }
        }
        self.may(attr, wanted)
    }

    /// What a list says to somebody who is not the owner: `struct posix_acl_xattr_header` and entries in the order of their tags.
    /// `None` if it is none.
    fn listed(&self, list: &[u8], group: u32, wanted: u32) -> Option<bool> {
        const USER: u16 = 2;
        const GROUP_OBJ: u16 = 4;
        const GROUP: u16 = 8;
        const MASK: u16 = 0x10;
        const OTHER: u16 = 0x20;
        let entries: Vec<(u16, u32, u32)> = list
            .strip_prefix(&2_u32.to_le_bytes())?
            .chunks_exact(8)
            .map(|entry| {
                let half = |at: usize| u16::from_le_bytes([entry[at], entry[at + 1]]);
                let id = u32::from_le_bytes([entry[4], entry[5], entry[6], entry[7]]);
                (half(0), u32::from(half(2)), id)
            })
            .collect();
        let mask = entries.iter().find(|entry| entry.0 == MASK).map_or(7, |entry| entry.1);
        let mut in_group = false;
        for (tag, perm, id) in &entries {
            let grants = perm & mask & wanted == wanted;
            match *tag {
                USER if *id == self.uid() => return Some(grants),
                GROUP_OBJ | GROUP if self.is_in(if *tag == GROUP { *id } else { group }) => {
                    in_group = true;
                    if grants {
                        return Some(true);
                    }
                }
                OTHER => return Some(!in_group && perm & wanted == wanted),
                _ => {}
            }
        }
        None
    }

    /// Whether a name in a sticky directory may be taken away: `EPERM` if not.
    pub(crate) fn may_remove(&self, directory: &Attr, node: &Attr) -> Result<()> {
        let sticky = directory.perm.bits() & 0o1000 != 0;
        if !sticky || self.is_root() || self.uid() == node.uid || self.uid() == directory.uid {
            Ok(())
        } else {
            Err(Errno::EPERM)
        }
    }

    /// Whether attributes may be changed so, other than the size: `EPERM` or `EACCES` if not. Corrects what Linux corrects: a
    /// group that the caller is not in takes the set-group-id bit away, and a change of owner both.
    pub(crate) fn may_change(&self, attr: &Attr, changes: &mut SetAttr) -> Result<()> {
        let owns = self.is_root() || self.uid() == attr.uid;
        if (changes.perm.is_some() || changes.flags.is_some()) && !owns {
            return Err(Errno::EPERM);
        }
        if let (Some(perm), false) = (changes.perm, self.is_root() || self.is_in(attr.gid)) {
            changes.perm = Some(veduta_api::Perm::from_mode(perm.bits() & !0o2000));
        }
        if changes.uid.is_some_and(|uid| uid != attr.uid || !owns) && !self.is_root() {
            return Err(Errno::EPERM);
        }
        if changes.gid.is_some_and(|gid| !owns || (gid != attr.gid && !self.is_in(gid))) && !self.is_root() {
            return Err(Errno::EPERM);
        }
        if (changes.uid.is_some() || changes.gid.is_some()) && attr.kind != Kind::Directory {
            changes.drop_set_id = true;
        }
        let explicit = |time| matches!(time, Some(SetTime::To(_)));
        if (changes.atime.is_some() || changes.mtime.is_some()) && !owns {
            if explicit(changes.atime)
                || explicit(changes.mtime)
                || changes.atime.is_none() != changes.mtime.is_none()
            {
                return Err(Errno::EPERM);
            }
            self.may(attr, WRITE)?;
        }
        Ok(())
    }
}
