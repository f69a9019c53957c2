//! What goes wrong inside the driver, and the one place where it becomes an [`Errno`].

use std::fmt;

use veduta_api::{Errno, MountError};

/// What every function of the driver returns.
pub(crate) type Result<T, E = Error> = std::result::Result<T, E>;

/// Why something cannot be done.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Error {
    /// The disk's own error, or an answer that a caller expects (`ENOENT`, `ENODATA`); passed on as it is.
    Errno(Errno),
    /// The volume uses something that this driver cannot do; the sentence names it.
    Unsupported(String),
    /// The volume is damaged.
    Corrupt(Damage),
}

/// What is wrong, and where.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Damage {
    /// A sentence without a place.
    pub(crate) what: String,
    /// The inode that it was found in.
    pub(crate) inode: Option<u32>,
    /// The block of the volume that it was found in.
    pub(crate) block: Option<u64>,
}

impl Error {
    /// The volume is damaged: what is wrong.
    pub(crate) fn corrupt(what: impl Into<String>) -> Self {
        Error::Corrupt(Damage { what: what.into(), inode: None, block: None })
    }

    /// Adds the inode in which it was found, unless one is known already.
    pub(crate) fn in_inode(mut self, ino: u32) -> Self {
        if let Error::Corrupt(damage) = &mut self {
            damage.inode.get_or_insert(ino);
        }
        self
    }

    /// Adds the block in which it was found, unless one is known already.
    pub(crate) fn in_block(mut self, block: u64) -> Self {
        if let Error::Corrupt(damage) = &mut self {
            damage.block.get_or_insert(block);
        }
        self
    }

    /// What the host gets. Damage and missing abilities are logged here, once.
    pub(crate) fn into_errno(self) -> Errno {
        match &self {
            Error::Errno(_) => {}
            Error::Unsupported(_) => tracing::error!("ext2: {self}"),
            Error::Corrupt(_) => tracing::error!("ext2: damaged: {self}"),
        }
        self.as_errno()
    }

    /// The same, of an error that is logged elsewhere.
    pub(crate) fn as_errno(&self) -> Errno {
        match self {
            Error::Errno(errno) => *errno,
            Error::Unsupported(_) => Errno::EOPNOTSUPP,
            Error::Corrupt(_) => Errno::EUCLEAN,
        }
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Error::Errno(errno) => f.write_str(errno.desc()),
            Error::Unsupported(what) => f.write_str(what),
            Error::Corrupt(damage) => damage.fmt(f),
        }
    }
}

impl fmt::Display for Damage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.inode, self.block) {
            (Some(inode), Some(block)) => write!(f, "inode {inode}, block {block}: ")?,
            (Some(inode), None) => write!(f, "inode {inode}: ")?,
            (None, Some(block)) => write!(f, "block {block}: ")?,
            (None, None) => {}
        }
        f.write_str(&self.what)
    }
}

impl From<Errno> for Error {
    fn from(errno: Errno) -> Self {
        Error::Errno(errno)
    }
}

impl From<Error> for MountError {
    fn from(error: Error) -> Self {
        let sentence = error.to_string();
        match error {
            Error::Errno(errno) => {
                MountError::system(errno, format!("the image cannot be read: {}", errno.desc()))
            }
            Error::Unsupported(_) => MountError::unsupported(sentence),
            Error::Corrupt(_) => MountError::corrupt(sentence),
        }
    }
}
