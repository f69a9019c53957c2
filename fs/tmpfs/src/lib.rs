//! `tmpfs`: a tree in memory, gone with its mount. It has the name and the options of the kernel's, so that programs which mount one find it
//! in a view too. The tree itself is that of `fs/tree`.
//!
//! # Limits
//!
//! Contents count towards `size=`, in pages of 4 KiB; names and attributes do not. The number of nodes has no limit, so `nr_inodes=` is
//! refused, as is what concerns the kernel's own memory (`huge=`, `mpol=`, quotas). What the tree does not do is said there: no ACLs,
//! no ranges collapsed or inserted.

#![forbid(unsafe_code)]

use std::sync::Arc;

use veduta_api::{
    Attr, Filesystem, Kind, Module, MountError, Object, OptionSpec, Perm, Request, Result, SourceKind,
};
use veduta_tree::memory::{Memory, Setup};

/// The type `tmpfs`.
pub struct Tmpfs;

impl Module for Tmpfs {
    fn name(&self) -> &'static str {
        "tmpfs"
    }

    fn aliases(&self) -> &'static [&'static str] {
        &["ramfs", "umfusetmpfs"]
    }

    fn summary(&self) -> &'static str {
        "a tree in memory, gone with its mount"
    }

    fn source(&self) -> SourceKind {
        SourceKind::None
    }

    fn writable(&self) -> bool {
        true
    }

    fn options(&self) -> &'static [OptionSpec] {
        const {
            &[
                OptionSpec::with_value(
                    "size",
                    "BYTES",
                    "What all files may hold together; K, M or G may follow, or % of the machine's memory. Half of it if not given; 0 is no limit.",
                ),
                OptionSpec::with_value(
                    "mode",
                    "OCTAL",
                    "Permissions of the topmost directory: 1777 if not given.",
                ),
                OptionSpec::with_value("uid", "NUMBER", "Its owner: who mounts, if not given."),
                OptionSpec::with_value("gid", "NUMBER", "Its group."),
            ]
        }
    }

    fn manual(&self) -> &'static str {
        "Takes up memory for what was written only, and gives it back when files are cut or removed. Holes take none.\n\n\
         mount -t tmpfs -o size=64M none DIR"
    }

    fn mount(&self, request: &mut Request<'_>) -> Result<Object, MountError> {
        let limit = match request.options.take_value("size")? {
            None => Some(memory()? / 2),
            Some(text) => size(&text)?,
        };
        let mode = request.options.take_octal("mode", 0o7777)?.unwrap_or(0o1777);
        let mut setup = Setup { limit, ..Setup::default() };
        setup.root = Attr { kind: Kind::Directory, perm: Perm::from_mode(mode), ..setup.root };
        let id = "the number of a user or a group";
        setup.root.uid = request.options.take_parsed("uid", id)?.unwrap_or(nix::unistd::geteuid().as_raw());
        setup.root.gid = request.options.take_parsed("gid", id)?.unwrap_or(nix::unistd::getegid().as_raw());
        let tree: Arc<dyn Filesystem> = Arc::new(Memory::new(&setup));
        Ok(Object::Tree(tree))
    }
}

/// Bytes of `size=`; `None` for no limit.
fn size(text: &str) -> Result<Option<u64>, MountError> {
    let wrong =
        || MountError::usage(format!("option size: {text:?} is not a number of bytes, or of per cent"));
    let digits = text.trim_end_matches(|last: char| !last.is_ascii_digit());
    let unit = &text[digits.len()..];
    let number: u64 = digits.parse().map_err(|_| wrong())?;
    let unit = match unit {
        "" => 1,
        "k" | "K" => 1 << 10,
        "m" | "M" => 1 << 20,
        "g" | "G" => 1 << 30,
        "%" => memory()? / 100,
        _ => return Err(wrong()),
    };
    let bytes = number.checked_mul(unit).ok_or_else(wrong)?;
    Ok((bytes != 0).then_some(bytes))
}

/// Bytes of memory that the machine has.
fn memory() -> Result<u64, MountError> {
    let ask = |what| nix::unistd::sysconf(what).ok().flatten().and_then(|value| u64::try_from(value).ok());
    let pages = ask(nix::unistd::SysconfVar::_PHYS_PAGES);
    let bytes =
        pages.zip(ask(nix::unistd::SysconfVar::PAGE_SIZE)).and_then(|(pages, page)| pages.checked_mul(page));
    bytes.ok_or_else(|| MountError::usage("how much memory there is is not known here: give size="))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_those_of_the_kernels() {
        assert_eq!(size("0").unwrap(), None);
        assert_eq!(size("4096").unwrap(), Some(4096));
        assert_eq!(size("3k").unwrap(), Some(3072));
        assert_eq!(size("2G").unwrap(), Some(2 << 30));
        assert_eq!(size("50%").unwrap(), Some(memory().unwrap() / 100 * 50));
        for wrong in ["", "k", "-1", "1x", "99999999999G", "é", "1 "] {
            assert!(size(wrong).is_err(), "{wrong}");
        }
    }
}
