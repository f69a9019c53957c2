//! Why a command failed, and with which exit status: those of mount(8), 0 done, 1 usage, 2 system, 32 mount failed.

use std::ffi::OsStr;
use std::fmt;
use std::process::ExitCode;

use veduta_api::{Errno, MountError, MountErrorKind};

/// A failed command: one sentence, printed once by `main`.
#[derive(Debug)]
pub(crate) struct Failure {
    status: u8,
    message: String,
}

impl Failure {
    /// The command line is wrong.
    pub(crate) fn usage(message: impl Into<String>) -> Self {
        Self { status: 1, message: message.into() }
    }

    /// The system refused something.
    pub(crate) fn system(message: impl Into<String>) -> Self {
        Self { status: 2, message: message.into() }
    }

    /// A source could not be mounted or read as what it should be: `ext2: disk.img: block 9 lies outside`.
    pub(crate) fn mount(type_name: Option<&str>, source: &OsStr, error: &MountError) -> Self {
        let status = if error.kind == MountErrorKind::Usage { 1 } else { 32 };
        let type_name = type_name.map(|name| format!("{name}: ")).unwrap_or_default();
        Self { status, message: format!("{type_name}{}: {}", shown(source), error.message) }
    }

    /// Something about a layer.
    pub(crate) fn layer(place: impl fmt::Display, error: &MountError) -> Self {
        let status = if error.kind == MountErrorKind::Usage { 1 } else { 2 };
        Self { status, message: format!("{place}: {}", error.message) }
    }

    /// A mount could not be ended.
    pub(crate) fn not_unmounted(message: impl Into<String>) -> Self {
        Self { status: 32, message: message.into() }
    }

    /// An operation on a file of a tree failed.
    pub(crate) fn file(path: impl fmt::Display, errno: Errno) -> Self {
        Self { status: 2, message: format!("{path}: {}", sentence(errno)) }
    }

    /// The same with another exit status.
    pub(crate) fn with(self, status: u8) -> Self {
        Self { status, ..self }
    }

    /// The exit status.
    pub(crate) fn exit_code(&self) -> ExitCode {
        ExitCode::from(self.status)
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

/// A name as messages show it.
pub(crate) fn shown(name: &OsStr) -> String {
    crate::render::printable(name)
}

/// An errno in the words of a person.
pub(crate) fn sentence(errno: Errno) -> &'static str {
    match errno {
        Errno::EUCLEAN => "the filesystem is damaged here (see the message above)",
        Errno::EOPNOTSUPP => "the filesystem does not support this",
        other => other.desc(),
    }
}
