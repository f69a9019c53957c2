//! The contract: all that the author of a driver must read.
//!
//! A **module** ([`Module`]) turns a mount request into an **object** ([`Object`]). There are four
//! kinds. Two are supplies, a *disk* ([`Drive`], [`Disk`]) and a *link* ([`Link`]); two are services
//! built on them, a *tree* ([`Filesystem`]) and a *stack* ([`NetStack`]). A **host** keeps objects
//! and serves requests to them: the FUSE host serves one tree to the kernel, the view engine serves
//! many objects to the processes that it traces. A module does not know which host it has.
//!
//! The smallest driver is `fs/hello`: copy it.
//!
//! # Who does what
//!
//! **The host, once for all drivers:** names (never empty, no `/`, no NUL, not `.` or `..`, not longer
//! than [`Facts::name_max`]), path resolution and symbolic links, permissions, `ro`, `nosuid`, `noexec`
//! and `nodev`, descriptors and their offsets, `O_APPEND`, the entries `.` and `..`, directory positions,
//! lookup counts, file locks (unless [`Facts::remote_locks`]), the file type that an operation needs (it
//! never asks to read a directory or to list a file), and ranges on a disk (through [`Disk`]).
//! A mount that is read-only gets no call that changes anything.
//!
//! **The driver:** honest attributes, its own locks, and the detection of corrupt content. What the host
//! checked, the driver does not check again.
//!
//! # Concurrency
//!
//! Every call takes `&self` and may come from any thread, many at the same time. A slow object costs the
//! host a worker thread, not an executor: calls are synchronous. A call that can wait for something other
//! than a local disk has a deadline of its own and looks at [`Interrupt::current`].
//!
//! # Units
//!
//! Offsets and lengths without a unit are bytes, everywhere. `sector` is 512 bytes unless a geometry says
//! otherwise; a *block* is the volume's own unit. Names of files are bytes ([`std::ffi::OsStr`]), not UTF-8.
//!
//! # Errors
//!
//! Between driver and host there is only [`Errno`]: the one that the same call gives on a kernel
//! filesystem. `EUCLEAN` means that the content is corrupt, and the driver has logged where;
//! `EOPNOTSUPP` that the object cannot do this. `ENOSYS` is never returned: the kernel would remember it
//! for the whole mount. A mount that fails also says why, in one sentence: [`MountError`].

#![forbid(unsafe_code)]

mod attr;
mod disk;
mod file;
mod filesystem;
mod interrupt;
mod link;
mod module;
mod node;
mod options;
mod report;
mod stack;

pub use attr::{Attr, Device, FileFlags, Ino, Kind, NewNode, Perm, SetAttr, SetTime, StatFs, Timestamp};
pub use disk::{BlockDevice, Disk, Drive, Geometry, Partition, PartitionTable};
pub use file::{Allocate, File, FileLock, Ioctl, LockKind, OpenFlags, Ready, Seek};
pub use filesystem::{
    Caching, Changes, Differences, DirEntry, DirSink, Directory, Entry, Facts, Filesystem, RenameFlags,
    XattrMode,
};
pub use interrupt::{Interrupt, InterruptScope};
pub use link::Link;
pub use module::{Module, MountError, MountErrorKind, Object, Request, SecretSource, SourceKind, World};
pub use node::DeviceNode;
pub use options::{OptionSpec, Options, OptionsError};
pub use report::{Report, Value};
pub use stack::{Message, NetStack, Shutdown, Socket, SocketAddress};

pub use nix::errno::Errno;

/// What every call of the contract returns. See the crate's head for the errors.
pub type Result<T, E = Errno> = std::result::Result<T, E>;
