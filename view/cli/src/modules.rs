//! The table of modules: the only place that lists the drivers. To add one, add a line.

use std::ffi::OsStr;

use veduta_api::{Disk, Module, MountError, SourceKind};

/// All types, in the order in which `-t auto` asks them. Types whose mark lies deep in the disk stand before those whose
/// mark is a boot sector that others carry too: a hybrid ISO image also has a partition table.
pub(crate) const ALL: &[&dyn Module] = &[
    &veduta_iso9660::Iso9660,
    &veduta_ext2::Ext2,
    &veduta_fat::Fat,
    &veduta_mbr::Mbr,
    &veduta_ramdisk::Ramdisk,
    &veduta_tmpfs::Tmpfs,
    &veduta_null::Null,
    &veduta_viewfs::Viewfs,
    &veduta_encfs::Encfs,
    &veduta_sshfs::Sshfs,
    &veduta_hello::Hello,
];

/// The type that `name` is the name or an alias of.
pub(crate) fn find(name: &str) -> Option<&'static dyn Module> {
    ALL.iter().copied().find(|module| module.name() == name || module.aliases().contains(&name))
}

/// As [`find`]; the error lists what there is.
pub(crate) fn named(name: &str) -> Result<&'static dyn Module, MountError> {
    find(name).ok_or_else(|| {
        let names: Vec<&str> = ALL.iter().map(|module| module.name()).collect();
        MountError::usage(format!("unknown type {name:?}; there are: {} (and `auto`)", names.join(", ")))
    })
}

/// The module that a driver program's name stands for: `umfuseext2`, `/usr/sbin/mount.umfuseext2`.
pub(crate) fn for_program(program: &OsStr) -> Option<&'static dyn Module> {
    let name = program.to_str()?.rsplit('/').next()?;
    let name = name.strip_prefix("mount.").unwrap_or(name);
    (name.starts_with("umfuse") || name.starts_with("umdev") || name == "umviewfs")
        .then(|| {
            find(name).or_else(|| {
                ALL.iter().copied().find(|module| {
                    name.strip_prefix("umfuse").or_else(|| name.strip_prefix("umdev")) == Some(module.name())
                })
            })
        })
        .flatten()
}

/// The name of a type's own program: `umdevmbr` if it makes disks and says so, else the first of its names that begins so
/// (`umfusessh`, `umviewfs`), else `umfuseext2`.
pub(crate) fn program_name(module: &dyn Module) -> String {
    let names = module.aliases();
    let device = format!("umdev{}", module.name());
    let view = format!("um{}", module.name());
    let named = names.iter().find(|name| ***name == device || ***name == view);
    let named = named.or_else(|| names.iter().find(|name| name.starts_with("umfuse")));
    named.map_or_else(|| format!("umfuse{}", module.name()), |name| (*name).to_owned())
}

/// The type that the content of a disk is of. `None` if no module knows it.
pub(crate) fn probe(disk: &Disk) -> Result<Option<&'static dyn Module>, MountError> {
    for module in ALL.iter().copied().filter(|module| module.source() == SourceKind::Disk) {
        let found = module
            .probe(disk)
            .map_err(|errno| MountError::system(errno, format!("cannot be read: {}", errno.desc())))?;
        if found {
            return Ok(Some(module));
        }
    }
    Ok(None)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_familys_names_lead_to_their_drivers() {
        for (program, name) in [
            ("umfuseext2", "ext2"),
            ("/sbin/mount.umfuseext2", "ext2"),
            ("umfuseiso9660", "iso9660"),
            ("umfuseencfs", "encfs"),
            ("umfusessh", "sshfs"),
            ("umfusehello", "hello"),
            ("umviewfs", "viewfs"),
        ] {
            assert_eq!(for_program(OsStr::new(program)).map(Module::name), Some(name), "{program}");
        }
        assert!(for_program(OsStr::new("/usr/bin/veduta")).is_none());
    }

    #[test]
    fn no_two_types_share_a_name() {
        let mut names: Vec<&str> =
            ALL.iter().flat_map(|module| module.aliases().iter().copied().chain([module.name()])).collect();
        names.sort_unstable();
        let count = names.len();
        names.dedup();
        assert_eq!(names.len(), count);
    }
}
