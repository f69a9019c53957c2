//! unsafe: takes over a descriptor that came in a message. Mounting and unmounting: where the FUSE host speaks to the kernel about mounts.
//!
//! Two ways lead to a mount. With CAP_SYS_ADMIN (root, or anybody within a user namespace of their own) it is
//! `mount(2)` with an open `/dev/fuse`. Without, the setuid program fusermount3 does it, and hands the
//! descriptor back over a socket; some versions of it may also open a `/dev/fuse` that we may not.
//!
//! A mount is identified by its id, device and type in mountinfo. Only a mount that is still that one is
//! ever unmounted, since others may have unmounted ours and mounted something else meanwhile.

#![allow(unsafe_code)]

use std::ffi::{OsStr, OsString};
use std::fs::OpenOptions;
use std::io::{self, IoSliceMut, Read};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use nix::mount::{MntFlags, MsFlags, umount2};
use nix::sys::socket::{
    AddressFamily, ControlMessageOwned, MsgFlags, SockFlag, SockType, recvmsg, socketpair,
};
use nix::unistd::{getegid, geteuid};
use veduta_api::{Errno, Kind, MountError};

use crate::mountinfo::{self, MountLine, escape_option};

const DEVICE: &str = "/dev/fuse";

/// Who may use a mount, besides the one who made it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Allow {
    /// Nobody: not even root.
    #[default]
    Owner,
    /// Root. The kernel has no such rule, so it lets everybody in and the host turns others away.
    Root,
    /// Everybody, as permissions allow.
    Everyone,
}

/// How a tree is mounted: the flags of mount(8), and what `/proc/mounts` shows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MountOptions {
    /// The source as `/proc/mounts` shows it: the image's path.
    pub source: OsString,
    /// The name of the program: `/proc/mounts` shows the type as `fuse.` and this.
    pub subtype: String,
    /// `ro`
    pub read_only: bool,
    /// `suid`: honour set-user-id and set-group-id. Only root may ask for it.
    pub suid: bool,
    /// `dev`: honour device nodes. Only root may ask for it.
    pub dev: bool,
    /// `noexec`
    pub noexec: bool,
    /// `noatime`
    pub noatime: bool,
    /// `nodiratime`
    pub nodiratime: bool,
    /// `sync`
    pub sync: bool,
    /// `dirsync`
    pub dirsync: bool,
    /// `allow_other`, `allow_root`
    pub allow: Allow,
    /// `default_permissions`: the kernel checks permissions also where the tree decides by itself.
    pub default_permissions: bool,
    /// Bytes; the largest read that the kernel sends.
    pub max_read: Option<u32>,
}

impl MountOptions {
    /// Read-write, without set-user-id and devices, for the one who mounts.
    pub fn new(source: impl Into<OsString>, subtype: impl Into<String>) -> Self {
        Self {
            source: source.into(),
            subtype: subtype.into(),
            read_only: false,
            suid: false,
            dev: false,
            noexec: false,
            noatime: false,
            nodiratime: false,
            sync: false,
            dirsync: false,
            default_permissions: false,
            allow: Allow::Owner,
            max_read: None,
        }
    }

    fn kind(&self) -> String {
        format!("fuse.{}", self.subtype)
    }

    fn flags(&self) -> MsFlags {
        let mut flags = MsFlags::empty();
        for (wanted, flag) in [
            (self.read_only, MsFlags::MS_RDONLY),
            (!self.suid, MsFlags::MS_NOSUID),
            (!self.dev, MsFlags::MS_NODEV),
            (self.noexec, MsFlags::MS_NOEXEC),
            (self.noatime, MsFlags::MS_NOATIME),
            (self.nodiratime, MsFlags::MS_NODIRATIME),
            (self.sync, MsFlags::MS_SYNCHRONOUS),
            (self.dirsync, MsFlags::MS_DIRSYNC),
        ] {
            flags.set(flag, wanted);
        }
        flags
    }

    /// The options that both ways pass on. `check`: whether the kernel is to check permissions.
    fn data(&self, check: bool) -> String {
        let mut data = String::new();
        if check {
            data.push_str(",default_permissions");
        }
        if self.allow != Allow::Owner {
            data.push_str(",allow_other");
        }
        if let Some(bytes) = self.max_read {
            data.push_str(&format!(",max_read={bytes}"));
        }
        data
    }
}

/// Fields of a record for the guardian.
const FIELDS: usize = 5;

/// A mount that we made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MountPoint {
    path: PathBuf,
    kind: String,
    /// Id and device; `None` without `/proc`.
    identity: Option<(u64, String)>,
    /// The program that made it, if we may not unmount it ourselves.
    helper: Option<PathBuf>,
}

/// A path without symbolic links. Of the last component only the name is looked at: a mount that nobody serves any more has
/// no attributes.
fn whole(path: &Path) -> io::Result<PathBuf> {
    match (path.parent(), path.file_name()) {
        // Attributes would be asked of the server, which may not answer.
        (Some(parent), Some(name)) if path.read_link().is_err() => {
            let parent = if parent.as_os_str().is_empty() { Path::new(".") } else { parent };
            Ok(parent.canonicalize()?.join(name))
        }
        _ => path.canonicalize(),
    }
}

/// What is known of a mount point before it is one.
pub(crate) struct Place {
    path: PathBuf,
}

impl Place {
    /// The mount point for a tree whose root is of kind `root`. It must exist, and be of the same kind.
    pub(crate) fn find(point: &Path, root: Kind) -> Result<Self, MountError> {
        let refuse = |error: io::Error| {
            let what = match error.raw_os_error().map(Errno::from_raw) {
                Some(Errno::ENOENT) => "does not exist; make it with mkdir",
                Some(Errno::EACCES) => "cannot be reached by you: a directory above it is closed",
                Some(Errno::ENOTCONN) => {
                    "holds a dead mount, whose server is gone; remove it with fusermount3 -u or umount"
                }
                _ => return system(&error, format!("mount point {}: {error}", point.display())),
            };
            system(&error, format!("mount point {} {what}", point.display()))
        };
        let path = point.canonicalize().map_err(refuse)?;
        let found = path.metadata().map_err(refuse)?;
        if found.is_dir() != (root == Kind::Directory) {
            let wanted = if root == Kind::Directory { "a directory" } else { "a file, as the root is" };
            let message = format!("mount point {} is not {wanted}", point.display());
            return Err(MountError::system(Errno::ENOTDIR, message));
        }
        Ok(Self { path })
    }
}

/// Mounts at `place`. `check`: whether the kernel is to check permissions. The descriptor is a `/dev/fuse` on which the kernel's INIT
/// request is waiting.
pub(crate) fn mount(
    place: &Place,
    root: Kind,
    options: &MountOptions,
    check: bool,
) -> Result<(OwnedFd, MountPoint), MountError> {
    refuse_twice(place, options)?;
    let (fd, helper) = match direct(place, root, options, check) {
        Ok(fd) => (fd, None),
        Err(Refusal::Final(error)) => return Err(error),
        Err(Refusal::Privilege(refused)) => {
            let (fd, program) = by_helper(place, options, check, refused)?;
            (fd, Some(program))
        }
    };
    Ok((fd, MountPoint::identify(place.path.clone(), options, helper)))
}

fn refuse_twice(place: &Place, options: &MountOptions) -> Result<(), MountError> {
    let Ok(mounts) = mountinfo::read() else { return Ok(()) };
    match mountinfo::topmost(&mounts, &place.path) {
        Some(top) if top.kind == options.kind() && top.source == options.source => {
            Err(MountError::system(Errno::EBUSY, format!("is already mounted on {}", place.path.display())))
        }
        _ => Ok(()),
    }
}

enum Refusal {
    /// What we may not do, and a setuid program may: the call that was refused.
    Privilege(&'static str),
    Final(MountError),
}

fn direct(place: &Place, root: Kind, options: &MountOptions, check: bool) -> Result<OwnedFd, Refusal> {
    let device = open_device()?;
    let data = format!(
        "fd={},rootmode={:o},user_id={},group_id={}{}",
        device.as_raw_fd(),
        root.mode_bits(),
        geteuid(),
        getegid(),
        options.data(check)
    );
    let source = options.source.as_os_str();
    let kind = options.kind();
    match nix::mount::mount(
        Some(source),
        &place.path,
        Some(kind.as_str()),
        options.flags(),
        Some(data.as_str()),
    ) {
        Ok(()) => Ok(device),
        Err(Errno::EPERM | Errno::EACCES) => Err(Refusal::Privilege("mount(2)")),
        Err(errno) => Err(Refusal::Final(MountError::system(errno, explain(errno, place)))),
    }
}

fn open_device() -> Result<OwnedFd, Refusal> {
    let opened = OpenOptions::new().read(true).write(true).custom_flags(nix::libc::O_CLOEXEC).open(DEVICE);
    let error = match opened {
        Ok(file) if file.metadata().is_ok_and(|found| found.file_type().is_char_device()) => {
            return Ok(file.into());
        }
        Ok(_) => {
            let message =
                format!("{DEVICE} is not a device; in a container, pass it in with --device {DEVICE}");
            return Err(Refusal::Final(MountError::system(Errno::ENODEV, message)));
        }
        Err(error) => error,
    };
    let what = match error.raw_os_error().map(Errno::from_raw) {
        Some(Errno::EACCES | Errno::EPERM) => return Err(Refusal::Privilege("opening /dev/fuse")),
        Some(Errno::ENOENT) => format!(
            "there is no {DEVICE}; load the kernel's module with modprobe fuse or, in a container, pass the \
             device in with --device {DEVICE}"
        ),
        Some(Errno::ENODEV | Errno::ENXIO) => {
            format!("the kernel does not serve {DEVICE}; load its module with modprobe fuse")
        }
        _ => format!("{DEVICE} cannot be opened: {error}"),
    };
    Err(Refusal::Final(system(&error, what)))
}

fn explain(errno: Errno, place: &Place) -> String {
    let point = place.path.display();
    match errno {
        Errno::ENODEV => "this kernel has no FUSE; load its module with modprobe fuse".into(),
        Errno::EBUSY => format!("mount point {point} is busy"),
        Errno::EINVAL => {
            "the kernel refused the mount options; in a user namespace, your uid and gid must be mapped"
                .into()
        }
        _ => format!("mounting on {point} failed: {}", errno.desc()),
    }
}

fn by_helper(
    place: &Place,
    options: &MountOptions,
    check: bool,
    refused: &'static str,
) -> Result<(OwnedFd, PathBuf), MountError> {
    let Some(program) = find_helper() else {
        let message = format!(
            "{refused} is not permitted, and there is no fusermount3 to do it for you; install the package fuse3, or \
             run this within unshare -rm"
        );
        return Err(MountError::system(Errno::EPERM, message));
    };
    let failed = |error: io::Error| system(&error, format!("{} cannot be run: {error}", program.display()));
    let (ours, theirs) = socketpair(AddressFamily::Unix, SockType::Stream, None, SockFlag::SOCK_CLOEXEC)
        .map_err(|e| failed(e.into()))?;
    // The socket is the program's standard input: no descriptor has to survive exec by accident of timing.
    let mut command = Command::new(&program);
    command.arg("-o").arg(helper_options(options, check)).arg("--").arg(&place.path);
    command.env("_FUSE_COMMFD", "0").stdin(theirs).stdout(Stdio::null()).stderr(Stdio::piped());
    let child = command.spawn().map_err(failed)?;
    drop(command);
    let fd = receive_descriptor(&ours);
    let complaint = complaint(child);
    match fd {
        Some(fd) => Ok((fd, program)),
        None => Err(MountError::system(Errno::EPERM, translate(&complaint, place))),
    }
}

fn helper_options(options: &MountOptions, check: bool) -> OsString {
    let mut list = OsString::from("fsname=");
    list.push(escape_option(&options.source));
    list.push(",subtype=");
    list.push(escape_option(OsStr::new(&options.subtype)));
    for (wanted, word) in [
        (options.read_only, ",ro"),
        (options.suid, ",suid"),
        (options.dev, ",dev"),
        (options.noexec, ",noexec"),
        (options.noatime, ",noatime"),
        (options.sync, ",sync"),
        (options.dirsync, ",dirsync"),
    ] {
        if wanted {
            list.push(word);
        }
    }
    list.push(options.data(check));
    list
}

/// fusermount3, or its predecessor. Standard places are tried too, since mount(8) runs us with a short PATH.
fn find_helper() -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let mut folders: Vec<PathBuf> =
        std::env::split_paths(&path).filter(|folder| folder.is_absolute()).collect();
    folders.extend(["/usr/bin", "/bin", "/usr/local/bin"].map(PathBuf::from));
    ["fusermount3", "fusermount"]
        .iter()
        .find_map(|name| folders.iter().map(|folder| folder.join(name)).find(|program| program.is_file()))
}

/// The descriptor that the program sends with one byte of data; `None` if it ends without.
fn receive_descriptor(socket: &OwnedFd) -> Option<OwnedFd> {
    let mut byte = [0];
    let mut data = [IoSliceMut::new(&mut byte)];
    let mut space = nix::cmsg_space!([i32; 1]);
    let message = loop {
        match recvmsg::<()>(socket.as_raw_fd(), &mut data, Some(&mut space), MsgFlags::MSG_CMSG_CLOEXEC) {
            Err(Errno::EINTR) => {}
            received => break received.ok()?,
        }
    };
    for control in message.cmsgs().ok()? {
        if let ControlMessageOwned::ScmRights(fds) = control {
            // SAFETY: the kernel has just made these descriptors for this message, so nobody else owns them.
            let mut owned = fds.into_iter().map(|fd| unsafe { OwnedFd::from_raw_fd(fd) });
            return owned.next();
        }
    }
    None
}

/// Waits for the program to end: what it wrote to standard error.
fn complaint(mut child: Child) -> String {
    let mut text = Vec::new();
    if let Some(mut stderr) = child.stderr.take() {
        let _ = stderr.read_to_end(&mut text);
    }
    let _ = child.wait();
    String::from_utf8_lossy(&text).trim().replace('\n', "; ")
}

fn translate(complaint: &str, place: &Place) -> String {
    let point = place.path.display();
    let says = |words: &str| complaint.contains(words);
    if says("user_allow_other") {
        "allow_other and allow_root are for root, unless /etc/fuse.conf has the line user_allow_other".into()
    } else if says("no write access") || says("not owned by user") {
        format!(
            "mount point {point} is not writable by you, which fusermount3 demands; take a directory of your own"
        )
    } else if says("failed to open /dev/fuse") && says("Permission denied") {
        format!(
            "{DEVICE} is closed to you; have root run chmod 666 {DEVICE}, as distributions do, or mount as root"
        )
    } else if says("failed to open /dev/fuse") || says("fuse device not found") {
        format!(
            "{DEVICE} cannot be opened, not even by fusermount3; load the kernel's module with modprobe fuse or, in a \
             container, pass the device in with --device {DEVICE}"
        )
    } else if says("unsafe") {
        format!("only root may mount with suid or dev ({complaint})")
    } else if says("too many") {
        "you have as many FUSE mounts as mount_max in /etc/fuse.conf allows".into()
    } else if says("Operation not permitted") {
        format!("not even fusermount3 may mount here ({complaint}); try within unshare -rm")
    } else if complaint.is_empty() {
        "fusermount3 did not mount, and does not say why".into()
    } else {
        format!("fusermount3 refused: {complaint}")
    }
}

impl MountPoint {
    fn identify(path: PathBuf, options: &MountOptions, helper: Option<PathBuf>) -> Self {
        let kind = options.kind();
        let ours = mountinfo::read().ok().and_then(|mounts| {
            let is_ours = |mount: &&MountLine| {
                mount.point == path && mount.source == options.source && mount.kind == kind
            };
            mounts.iter().rev().find(is_ours).map(|mount| (mount.id, mount.device.clone()))
        });
        Self { path, kind, identity: ours, helper }
    }

    /// The FUSE mount that `path` leads to, whoever made it. For those who unmount. `EINVAL` if there is none.
    pub fn at(path: &Path) -> Result<Self, MountError> {
        let system = |error: io::Error| {
            let errno = error.raw_os_error().map_or(Errno::EIO, Errno::from_raw);
            MountError::system(errno, errno.desc())
        };
        let point = whole(path).map_err(system)?;
        let mounts = mountinfo::read().map_err(system)?;
        let Some(mount) = mountinfo::topmost(&mounts, &point) else {
            return Err(MountError::usage("not a mount point"));
        };
        if !mount.kind.starts_with("fuse.") && mount.kind != "fuse" {
            return Err(MountError::usage(format!(
                "a mount of type {}, which is not ours to end; see umount(8)",
                mount.kind
            )));
        }
        Ok(Self { path: point, kind: mount.kind, identity: Some((mount.id, mount.device)), helper: None })
    }

    /// The mount that is about to be made: for the guardian, in case that the server is killed before it can tell more. It
    /// has no identity yet; what is dead at its place is taken for it.
    pub(crate) fn expected(point: &Path, options: &MountOptions) -> Option<Self> {
        Some(Self { path: whole(point).ok()?, kind: options.kind(), identity: None, helper: None })
    }

    /// The mount point, absolute and without symbolic links.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// What `/proc/mounts` shows as the source; `None` once it is unmounted.
    pub fn source(&self) -> Option<OsString> {
        mountinfo::read().ok()?.into_iter().find(|mount| self.is(mount)).map(|mount| mount.source)
    }

    /// Device numbers of the filesystem, as `/sys/class/bdi` names them: `0:57`.
    pub(crate) fn device(&self) -> Option<&str> {
        self.identity.as_ref().map(|(_, device)| device.as_str())
    }

    /// Whether our mount is still there, perhaps below others.
    pub fn is_mounted(&self) -> bool {
        mountinfo::read().is_ok_and(|mounts| mounts.iter().any(|mount| self.is(mount)))
    }

    fn is(&self, mount: &MountLine) -> bool {
        let (point, kind) = (mount.point == self.path, mount.kind == self.kind);
        let same =
            self.identity.as_ref().is_some_and(|(id, device)| *id == mount.id && *device == mount.device);
        point && kind && same
    }

    /// Unmounts, if our mount is still there; nothing is done if it is not. `lazily`: takes it out of sight at once, and the kernel
    /// ends it when its last user does. `EBUSY` if it is in use (not lazily), or lies below another mount.
    pub fn unmount(&self, lazily: bool) -> Result<(), MountError> {
        if self.identity.is_some() {
            let Ok(mounts) = mountinfo::read() else { return Ok(()) };
            if !mounts.iter().any(|mount| self.is(mount)) {
                return Ok(());
            }
            if mountinfo::topmost(&mounts, &self.path).is_none_or(|top| !self.is(&top)) {
                let message =
                    format!("something else is mounted over {}; unmount that first", self.path.display());
                return Err(MountError::system(Errno::EBUSY, message));
            }
        }
        let mut flags = MntFlags::UMOUNT_NOFOLLOW;
        flags.set(MntFlags::MNT_DETACH, lazily);
        match umount2(&self.path, flags) {
            // EINVAL: somebody else was faster.
            Ok(()) | Err(Errno::EINVAL) => Ok(()),
            Err(Errno::EPERM) => self.unmount_by_helper(lazily),
            Err(errno) => Err(self.not_unmounted(errno, errno.desc())),
        }
    }

    fn unmount_by_helper(&self, lazily: bool) -> Result<(), MountError> {
        let Some(program) = self.helper.clone().or_else(find_helper) else {
            return Err(self.not_unmounted(Errno::EPERM, "not permitted, and there is no fusermount3"));
        };
        let mut command = Command::new(program);
        command.arg(if lazily { "-uz" } else { "-u" }).arg("--").arg(&self.path);
        let child = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped()).spawn();
        let complaint = match child {
            Ok(child) => complaint(child),
            Err(error) => return Err(self.not_unmounted(Errno::EPERM, &error.to_string())),
        };
        if !self.is_mounted() {
            Ok(())
        } else if complaint.contains("busy") {
            Err(self.not_unmounted(Errno::EBUSY, "in use"))
        } else {
            Err(self.not_unmounted(Errno::EPERM, &complaint))
        }
    }

    /// Whether our mount is there, with nobody serving it.
    pub(crate) fn is_dead(&self) -> bool {
        // Attributes may be remembered, sizes are not.
        let asked = nix::sys::statfs::statfs(&self.path).map(drop);
        matches!(asked, Err(Errno::ENOTCONN | Errno::ECONNABORTED))
            && (self.identity.is_none() || self.is_mounted())
    }

    /// For the guardian: a record of what it takes to find the mount, its fields ended by a NUL.
    pub(crate) fn to_bytes(&self) -> Vec<u8> {
        let (id, device) = self.identity.clone().unwrap_or_default();
        let helper = self.helper.as_deref().unwrap_or(Path::new(""));
        let id = id.to_string();
        let fields: [&[u8]; FIELDS] = [
            self.path.as_os_str().as_bytes(),
            self.kind.as_bytes(),
            id.as_bytes(),
            device.as_bytes(),
            helper.as_os_str().as_bytes(),
        ];
        fields.iter().flat_map(|field| field.iter().copied().chain([0])).collect()
    }

    pub(crate) fn from_bytes(bytes: &[u8]) -> Option<Self> {
        let ends: Vec<usize> =
            bytes.iter().enumerate().filter(|(_, byte)| **byte == 0).map(|(at, _)| at).collect();
        // The last whole record: a writer that was killed may have left part of one.
        let first = (ends.len() / FIELDS).checked_sub(1)? * FIELDS;
        let start = if first == 0 { 0 } else { ends.get(first - 1)? + 1 };
        let mut fields = bytes.get(start..)?.split(|&byte| byte == 0);
        let path = PathBuf::from(OsStr::from_bytes(fields.next()?));
        let kind = String::from_utf8(fields.next()?.to_vec()).ok()?;
        let id: u64 = std::str::from_utf8(fields.next()?).ok()?.parse().ok()?;
        let device = String::from_utf8(fields.next()?.to_vec()).ok()?;
        let helper = PathBuf::from(OsStr::from_bytes(fields.next()?));
        let helper = (!helper.as_os_str().is_empty()).then_some(helper);
        Some(Self { path, kind, identity: (id != 0).then_some((id, device)), helper })
    }

    fn not_unmounted(&self, errno: Errno, why: &str) -> MountError {
        MountError::system(errno, format!("{} cannot be unmounted: {why}", self.path.display()))
    }
}

fn system(error: &io::Error, message: String) -> MountError {
    MountError::system(Errno::from_raw(error.raw_os_error().unwrap_or(nix::libc::EIO)), message)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn options() -> MountOptions {
        MountOptions { read_only: true, allow: Allow::Root, ..MountOptions::new("/a,b", "umfuse,x") }
    }

    #[test]
    fn the_list_for_fusermount_keeps_commas_apart() {
        let list = helper_options(&options(), true);
        assert_eq!(list, r"fsname=/a\,b,subtype=umfuse\,x,ro,default_permissions,allow_other");
    }

    #[test]
    fn set_user_id_and_devices_are_off_unless_asked_for() {
        let flags = options().flags();
        assert!(flags.contains(MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_RDONLY));
        let flags = MountOptions { suid: true, dev: true, ..options() }.flags();
        assert!(!flags.intersects(MsFlags::MS_NOSUID | MsFlags::MS_NODEV));
    }

    #[test]
    fn a_mount_point_that_cannot_be_one_is_explained() {
        let folder = tempfile::tempdir().unwrap();
        let message = |point: &Path, root| Place::find(point, root).err().map(|error| error.message);
        let absent = folder.path().join("absent");
        assert!(message(&absent, Kind::Directory).unwrap().contains("mkdir"));
        let file = folder.path().join("file");
        std::fs::write(&file, "").unwrap();
        assert!(message(&file, Kind::Directory).unwrap().contains("not a directory"));
        assert_eq!(message(&file, Kind::File), None);
        assert!(message(folder.path(), Kind::File).unwrap().contains("not a file"));
    }

    #[test]
    fn what_is_not_our_mount_is_never_unmounted() {
        let top = mountinfo::topmost(&mountinfo::read().unwrap(), Path::new("/proc")).unwrap();
        let stranger = MountPoint {
            path: "/proc".into(),
            kind: "fuse.x".into(),
            identity: Some((top.id, top.device)),
            helper: None,
        };
        assert_eq!(stranger.unmount(true), Ok(()));
        assert!(Path::new("/proc/self").exists());
    }

    #[test]
    fn the_guardian_reads_what_it_was_told() {
        let identity = Some((77, "0:57".to_owned()));
        let point = MountPoint { path: "/mnt/a b".into(), kind: "fuse.x".into(), identity, helper: None };
        let before = MountPoint { identity: None, ..point.clone() };
        let mut told = before.to_bytes();
        assert_eq!(MountPoint::from_bytes(&told), Some(before.clone()));
        let more = point.to_bytes();
        told.extend_from_slice(&more[..more.len() - 3]);
        assert_eq!(MountPoint::from_bytes(&told), Some(before), "part of a record says nothing");
        told.extend_from_slice(&more[more.len() - 3..]);
        assert_eq!(MountPoint::from_bytes(&told), Some(point));
        assert_eq!(MountPoint::from_bytes(b""), None);
    }

    #[test]
    fn complaints_of_fusermount_say_what_to_do_next() {
        let place = Place { path: "/mnt".into() };
        for (complaint, advice) in [
            (
                "fusermount3: option allow_other only allowed if 'user_allow_other' is set in /etc/fuse.conf",
                "for root",
            ),
            ("fusermount3: user has no write access to mountpoint /mnt", "directory of your own"),
            ("fusermount3: mount failed: Operation not permitted", "unshare"),
            ("fusermount3: failed to open /dev/fuse: Permission denied", "chmod 666"),
            ("", "does not say why"),
        ] {
            assert!(translate(complaint, &place).contains(advice), "{complaint}");
        }
    }
}
