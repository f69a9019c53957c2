//! `encfs`: encrypted directories, in the formats of gocryptfs and EncFS.
//!
//! A filter: it makes a tree from a tree. The ciphertext may lie in a directory of the host system, on another machine, or
//! in a view.
//!
//! From the bottom: `inner` (the tree of ciphertext), `content` (files: a header and blocks), `tree` (everything else that the formats
//! share), `gocryptfs` and `v1` (the formats), `volume` (finding, opening, making and checking), and the module.
//!
//! # Limits
//!
//! - gocryptfs: volumes that are opened by a FIDO2 token (their master key opens them), those of releases before 0.7, and
//!   those whose configuration is elsewhere (`-config`). ACLs are not passed on, and file capabilities not kept: `EOPNOTSUPP`. The
//!   reverse view leaves nothing out (`-exclude`), and has no extended attributes.
//! - EncFS: the ciphers Camellia and Null, plain content, the reverse view, version 7 and those before 4. Extended attributes are not
//!   encrypted, as encfs has it.
//! - Where names are chained (EncFS), two names cannot be exchanged (`EINVAL`), and a crash while a directory is moved leaves some names below it in
//!   the old form and some in the new; those in the other form are not shown.
//! - Ranges cannot be collapsed or inserted: `EOPNOTSUPP`.
//! - A crash between the two steps of cutting a file within a block loses what stayed of that block.
//! - A rename over an empty directory removes that first: a crash between leaves none.
//! - A target of a symbolic link is longer when it is encrypted: beyond about 3,000 bytes it is `ENAMETOOLONG`.

#![forbid(unsafe_code)]

mod content;
mod findings;
pub mod gocryptfs;
mod inner;
mod random;
mod readonly;
mod tree;
pub mod v1;
pub mod volume;

use std::ffi::OsString;

use veduta_api::{Module, MountError, Object, OptionSpec, Request, SourceKind};

pub use inner::Inner;
use volume::{Secrets, Volume};

/// The type `encfs`.
pub struct Encfs;

impl Module for Encfs {
    fn name(&self) -> &'static str {
        "encfs"
    }
    fn aliases(&self) -> &'static [&'static str] {
        &["gocryptfs", "umfuseencfs", "vufuseencfs", "umfusegocryptfs"]
    }
    fn summary(&self) -> &'static str {
        "encrypted directories, as gocryptfs and EncFS make them"
    }
    fn source(&self) -> SourceKind {
        SourceKind::Tree
    }
    fn writable(&self) -> bool {
        true
    }
    fn options(&self) -> &'static [OptionSpec] {
        const {
            &[
                OptionSpec::with_value(
                    "passfile",
                    "FILE",
                    "Take the password from the first line of a file.",
                ),
                OptionSpec::with_value(
                    "extpass",
                    "COMMAND",
                    "Take the password from the first line that a command prints; the shell runs it.",
                ),
                OptionSpec::flag(
                    "masterkey",
                    "What is asked for, or read from passfile or extpass, is the master key of a gocryptfs volume: 64 hexadecimal digits.",
                ),
                OptionSpec::flag(
                    "reverse",
                    "The directory holds plain files, and .gocryptfs.reverse.conf: show it encrypted, read-only, for a backup that \
                     gocryptfs, or this type, opens.",
                ),
                OptionSpec::flag(
                    "exclusive",
                    "Nothing but this mount changes the encrypted directory, so that names may be remembered for ever and writes held back. \
                     Else changes by others, such as a synchronising program, are seen after a second.",
                ),
                OptionSpec::with_value("pre", "WORDS", "Accepted, and ignored, for old command lines."),
            ]
        }
    }
    fn manual(&self) -> &'static str {
        "Shows the plaintext of an encrypted directory. What is written is encrypted at once, so the directory can be \
         copied, synchronised and backed up file by file.\n\n\
         Volumes are made by `veduta encfs init DIR`, gocryptfs or encfs; which it is shows by the file gocryptfs.conf or \
         .encfs6.xml in it. The password is asked for on the terminal, without echo, unless passfile or extpass says where it \
         comes from. It is never an argument. In a view, extpass is for `veduta run --mount` \
         only, since the program runs outside; a mount inside takes what a program of the view prints by bash's \
         passfile=<(COMMAND).\n\n\
         Content is authenticated: a block that was changed by somebody without the key reads as an I/O error, the log says which, \
         and all other blocks are read. (Volumes of EncFS are so only if they were made with block checksums; the security of that \
         format is dated, and a mount says so.)\n\n\
         The directory is as safe as the password is hard to guess, and as the master key is hidden. Sizes of files, their times, owners and \
         modes, and how many there are, can be seen without it.\n\n\
         With reverse, it is the other way round: a directory of plain files is shown encrypted, the same each time, so that it can be \
         copied to a place that is not trusted.\n\n\
         Examples:\n  veduta encfs init ~/cipher\n  umfuseencfs ~/cipher ~/plain\n  veduta mount -t encfs -o passfile=pw ~/cipher ~/plain"
    }
    fn mount(&self, request: &mut Request<'_>) -> Result<Object, MountError> {
        let secrets = Secrets {
            file: request.options.take_value("passfile")?.map(OsString::from),
            program: request.options.take_value("extpass")?.map(OsString::from),
            master_key: request.options.take_flag("masterkey")?,
        };
        request.options.take_value("pre")?;
        let reverse = request.options.take_flag("reverse")?;
        let exclusive = request.options.take_flag("exclusive")?;
        let (fs, root) = request.world.tree(request.source)?;
        let volume = Volume::find(Inner::new(fs, root).exclusive(exclusive), reverse)?;
        Ok(Object::Tree(volume.open(request.world, &secrets)?))
    }
}
