//! A module: a *type* of object, and how a mount request becomes one.

use std::ffi::OsStr;
use std::fmt;
use std::sync::Arc;

use crate::{
    Disk, Drive, Errno, Filesystem, Ino, Link, NetStack, OptionSpec, Options, OptionsError, Report, Result,
};

/// A type of object, such as `ext2`: what the author of a driver writes, and adds to the table of the programs.
pub trait Module: Send + Sync {
    /// What `-t` calls it: `ext2`.
    fn name(&self) -> &'static str;

    /// Other names that `-t` takes for it: `ext4`, `umfuseext2`, `vufuseext2`.
    fn aliases(&self) -> &'static [&'static str] {
        &[]
    }

    /// What it is, in one line for a list.
    fn summary(&self) -> &'static str;

    /// What `SOURCE` is.
    fn source(&self) -> SourceKind;

    /// Whether objects of this type can be changed. If not, hosts mount them read-only, and say so to whoever asked for
    /// `rw`: [`Request::read_only`] is then always set.
    fn writable(&self) -> bool {
        false
    }

    /// Every option that the module takes, beyond the host's own. The host refuses all others before
    /// [`mount`](Self::mount) is called.
    fn options(&self) -> &'static [OptionSpec] {
        &[]
    }

    /// Letters that the driver's own program takes for options, where its users know such: `('p', "port")` has `-p 22` mean
    /// `-o port=22`, and `('C', "compression=yes")` has `-C` mean that.
    fn letters(&self) -> &'static [(char, &'static str)] {
        &[]
    }

    /// More for the manual page: paragraphs about the format, limits, examples.
    fn manual(&self) -> &'static str {
        ""
    }

    /// Whether the content of a disk is of this type: for `-t auto`. Looks at no more than it must, believes
    /// nothing, and says no rather than fail. Only an error of the disk itself is one.
    fn probe(&self, disk: &Disk) -> Result<bool> {
        let _ = disk;
        Ok(false)
    }

    /// What `veduta info` shows of a disk of this type: features, label, UUID, usage, health.
    fn describe(&self, disk: &Disk, options: Options) -> Result<Report, MountError> {
        let _ = (disk, options);
        Err(MountError::unsupported(format!("{} objects have no description", self.name())))
    }

    /// Makes the object. What goes wrong is said in one sentence: see [`MountError`].
    fn mount(&self, request: &mut Request<'_>) -> Result<Object, MountError>;
}

/// What the `SOURCE` of a mount names.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SourceKind {
    /// A disk: an image, a partition of one, a block device. `-t auto` asks only such modules.
    Disk,
    /// A directory.
    Tree,
    /// A link.
    Link,
    /// A word that only the module understands: a URL, `host:/path`.
    Address,
    /// Nothing; by custom written `none`.
    None,
}

/// What a mount makes.
#[derive(Clone)]
pub enum Object {
    /// A disk, with its partitions.
    Disk(Arc<dyn Drive>),
    /// A carrier of Ethernet frames.
    Link(Arc<dyn Link>),
    /// A tree of files.
    Tree(Arc<dyn Filesystem>),
    /// A network stack.
    Stack(Arc<dyn NetStack>),
}

impl fmt::Debug for Object {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Object::Disk(_) => "Disk",
            Object::Link(_) => "Link",
            Object::Tree(_) => "Tree",
            Object::Stack(_) => "Stack",
        })
    }
}

/// A request to mount.
pub struct Request<'a> {
    /// The source as it was written.
    pub source: &'a OsStr,
    /// The module's own options; the host has taken its words out, and checked that the rest are in
    /// [`Module::options`].
    pub options: Options,
    /// Whether nothing may be changed, neither by users nor by the mount itself (no journal is replayed onto the disk).
    pub read_only: bool,
    /// Where sources come from.
    pub world: &'a dyn World,
}

impl Request<'_> {
    /// The source as a disk, writable unless the request is read-only.
    pub fn disk(&self) -> Result<Disk, MountError> {
        self.world.disk(self.source, !self.read_only)
    }
}

/// Where the sources of a mount come from: the view as it was before this mount. Therefore an image may lie in the directory
/// that it is mounted on.
pub trait World {
    /// A disk: an image file, a block device, or a partition of either (`disk.img#2`). Exclusive among writers: an
    /// image that somebody has open for writing is refused, with the holder's name.
    fn disk(&self, source: &OsStr, writable: bool) -> Result<Disk, MountError>;

    /// A directory, as a tree and a node in it (which is to be the root of what is made from it).
    fn tree(&self, source: &OsStr) -> Result<(Arc<dyn Filesystem>, Ino), MountError>;

    /// Where the mount is to appear, as a source for [`tree`](Self::tree): for types that go on using what they cover.
    fn mount_point(&self) -> Option<&OsStr> {
        None
    }

    /// Whether users get descriptors of the files behind ([`File::backing`](crate::File::backing)) and see their numbers by
    /// `fstat(2)`: a tree made of others then shows the same numbers by name, rather than ones of its own that never change.
    fn shows_real_numbers(&self) -> bool {
        false
    }

    /// Whether it is enough for that to show the same numbers always: where they are not those of the file behind, the host puts right what
    /// `fstat(2)` says. So a file can keep its numbers when another one takes its place behind.
    fn puts_numbers_right(&self) -> bool {
        false
    }

    /// A link, by its VNL address.
    fn link(&self, source: &OsStr) -> Result<Arc<dyn Link>, MountError>;

    /// Asks the person who mounts for a secret, without echo. `prompt` ends in a colon and a space.
    fn secret(&self, prompt: &str) -> Result<Vec<u8>, MountError> {
        let _ = prompt;
        Err(MountError::usage("a password is needed, and there is no terminal to ask on"))
    }

    /// A secret that nobody types: the first line of a file, or of what a program prints.
    fn secret_from(&self, source: SecretSource<'_>) -> Result<Vec<u8>, MountError> {
        let _ = source;
        Err(MountError::unsupported("a password can only be typed here"))
    }

    /// The mount that was made from what this gave is over, and only writes what it has: who wants the same is to wait for it.
    fn leave(&self) {}
}

/// Where a secret comes from that nobody types.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SecretSource<'a> {
    /// A file.
    File(&'a OsStr),
    /// A command line, for the shell.
    Program(&'a OsStr),
}

/// What kind of failure a failed mount was: it decides the exit status.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MountErrorKind {
    /// The request is wrong: an option, a type, a path. Exit status 1.
    Usage,
    /// The source is not of this type. Exit status 32.
    WrongType,
    /// The source uses a feature that the module cannot do, and the sentence names it. Exit status 32.
    Unsupported,
    /// The source is damaged, and the sentence says where. Exit status 32.
    Corrupt,
    /// The system refused something, and the sentence says what. Exit status 32.
    System,
}

/// Why a mount failed: one sentence, without the program, type and source in front (the outermost program adds them:
/// `ext2: disk.img: block 9 lies outside the image`) and without a full stop.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MountError {
    /// The kind.
    pub kind: MountErrorKind,
    /// What `mount(2)` returns in a view.
    pub errno: Errno,
    /// The sentence.
    pub message: String,
}

impl MountError {
    /// The request is wrong.
    pub fn usage(message: impl Into<String>) -> Self {
        Self { kind: MountErrorKind::Usage, errno: Errno::EINVAL, message: message.into() }
    }

    /// The source is not of this type.
    pub fn wrong_type(message: impl Into<String>) -> Self {
        Self { kind: MountErrorKind::WrongType, errno: Errno::EINVAL, message: message.into() }
    }

    /// The source uses a feature that the module cannot do.
    pub fn unsupported(message: impl Into<String>) -> Self {
        Self { kind: MountErrorKind::Unsupported, errno: Errno::EOPNOTSUPP, message: message.into() }
    }

    /// The source is damaged.
    pub fn corrupt(message: impl Into<String>) -> Self {
        Self { kind: MountErrorKind::Corrupt, errno: Errno::EUCLEAN, message: message.into() }
    }

    /// The system refused something.
    pub fn system(errno: Errno, message: impl Into<String>) -> Self {
        Self { kind: MountErrorKind::System, errno, message: message.into() }
    }
}

impl fmt::Display for MountError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for MountError {}

impl From<OptionsError> for MountError {
    fn from(error: OptionsError) -> Self {
        MountError::usage(error.0)
    }
}
