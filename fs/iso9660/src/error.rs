//! What goes wrong inside the driver, and the one place where it becomes an `Errno` or a sentence.
//!
//! Three kinds: the disk failed (its errno is passed on), the volume uses a feature
//! that the driver lacks (`EOPNOTSUPP`), or the volume is damaged (`EUCLEAN`, with the byte where it is).

use std::fmt;

use veduta_api::{Errno, MountError};

/// Bytes; the sector of ECMA-119 section 6.1.2 in which every position is told to people.
pub(crate) const SECTOR: u64 = 2048;

pub(crate) type Result<T, E = Error> = std::result::Result<T, E>;

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Error {
    /// The disk could not be read.
    Io { errno: Errno, at: u64 },
    /// A feature that the driver cannot do.
    Unsupported(String),
    /// What is wrong, and the byte of the volume where.
    Corrupt { what: String, at: u64 },
    /// As `Corrupt`, of a part of a file's data whose other parts can be read: `EIO`.
    Damaged { what: String, at: u64 },
}

impl Error {
    pub(crate) fn corrupt(at: u64, what: impl Into<String>) -> Self {
        Error::Corrupt { what: what.into(), at }
    }

    /// The errno of the call that met the error; logs it. `volume` is what messages call the disk.
    pub(crate) fn report(&self, volume: &str) -> Errno {
        tracing::error!("iso9660: {volume}: {self}");
        self.errno()
    }

    pub(crate) fn errno(&self) -> Errno {
        match self {
            Error::Io { errno, .. } => *errno,
            Error::Unsupported(_) => Errno::EOPNOTSUPP,
            Error::Corrupt { .. } => Errno::EUCLEAN,
            Error::Damaged { .. } => Errno::EIO,
        }
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Error::Io { errno, at } => write!(f, "sector {} cannot be read: {}", at / SECTOR, errno.desc()),
            Error::Unsupported(feature) => f.write_str(feature),
            Error::Corrupt { what, at } | Error::Damaged { what, at } => {
                write!(f, "{what} (sector {}, byte {})", at / SECTOR, at % SECTOR)
            }
        }
    }
}

impl From<Error> for MountError {
    fn from(error: Error) -> Self {
        match &error {
            Error::Io { errno, .. } => MountError::system(*errno, error.to_string()),
            Error::Unsupported(_) => MountError::unsupported(error.to_string()),
            Error::Corrupt { .. } | Error::Damaged { .. } => MountError::corrupt(error.to_string()),
        }
    }
}
