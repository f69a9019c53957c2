//! The type `viewfs`: its options, in the words of the family, of overlayfs and of fuse-overlayfs.

use std::ffi::{OsStr, OsString};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use veduta_api::{Module, MountError, Object, OptionSpec, Options, Request, SourceKind};

use crate::setup::{Durability, Mode, Place, Setup};
use crate::shown::{Disguise, Ids, Shown};

/// The type `viewfs`.
pub struct Viewfs;

const OPTIONS: &[OptionSpec] = &[
    OptionSpec::flag(
        "bind",
        "SOURCE in the place of what is at the mount point. The default (also spelt move).",
    ),
    OptionSpec::flag("move", "The old name of bind."),
    OptionSpec::flag(
        "merge",
        "The names of SOURCE are added to those at the mount point, and win. SOURCE is not changed.",
    ),
    OptionSpec::flag(
        "cow",
        "Copy on write: SOURCE takes all changes, and what is at the mount point stays as it is.",
    ),
    OptionSpec::flag("mincow", "As cow, but what the user may change at the mount point is changed there."),
    OptionSpec::flag(
        "stacked",
        "SOURCE takes all changes, over the layers that it was last mounted over, or was made for by `veduta layer create`.",
    ),
    OptionSpec::with_value(
        "except",
        "PATH",
        "At this path below the mount point the tree is as it was before the mount. May be given several times.",
    ),
    OptionSpec::with_value(
        "hide",
        "PATH",
        "There is nothing at this path below the mount point. May be given several times.",
    ),
    OptionSpec::flag("nochcopy", "chmod and chown copy no content: as metacopy=on."),
    OptionSpec::flag(
        "vstat",
        "Owner, mode and type are kept as an attribute (user.containers.override_stat): ordinary users own files as root and make devices.",
    ),
    OptionSpec::flag("wok", "Taken for the family's sake: access(2) says what the operation will."),
    OptionSpec::flag("renew", "Changes that others make in the layers are seen within a second."),
    OptionSpec::flag(
        "worm",
        "Write once: files are written until they are closed, and then neither changed, renamed nor removed.",
    ),
    OptionSpec::with_value(
        "lowerdir",
        "DIR[:DIR]...",
        "Layers that stay as they are, the topmost first; a colon in a name is \\:.",
    ),
    OptionSpec::with_value("lowerdir+", "DIR", "One more layer below those given so far."),
    OptionSpec::with_value("upperdir", "DIR", "The layer that takes all changes. SOURCE is then any word."),
    OptionSpec::with_value(
        "workdir",
        "DIR",
        "Taken and not needed: work is done in a hidden directory of the upper layer.",
    ),
    OptionSpec::with_value(
        "redirect_dir",
        "WORD",
        "on (the default): directories with parts below are renamed. off, nofollow: EXDEV.",
    ),
    OptionSpec::with_value(
        "metacopy",
        "WORD",
        "on: changes of owner and mode copy no content. The default is off.",
    ),
    OptionSpec::with_value(
        "index",
        "WORD",
        "on (the default): a copy of a file with hard links has them too. off: they break.",
    ),
    OptionSpec::with_value("xino", "WORD", "Taken; inode numbers of different devices never collide."),
    OptionSpec::with_value("nfs_export", "WORD", "off is taken."),
    OptionSpec::flag("userxattr", "Root too keeps marks as user.overlay.*, as ordinary users do."),
    OptionSpec::flag(
        "volatile",
        "Nothing is waited for to be on the disk, not even by fsync(2): after a crash the upper layer is of no use.",
    ),
    OptionSpec::with_value(
        "fsync",
        "WORD",
        "auto (the default): a copy that is found after a crash of the machine has its content. strict: and is on the disk before it is seen, \
         directories too. volatile: as that word. In fuse-overlayfs's words 1 is auto and 0 is volatile.",
    ),
    OptionSpec::flag("squash_to_root", "Everything is shown as root's. Of fuse-overlayfs, as the next six."),
    OptionSpec::with_value("squash_to_uid", "UID", "Everything is shown as this user's."),
    OptionSpec::with_value("squash_to_gid", "GID", "Everything is shown as this group's."),
    OptionSpec::with_value(
        "uidmapping",
        "UID:SHOWN:COUNT[:UID:SHOWN:COUNT]...",
        "COUNT users from UID on are shown as those from SHOWN on, and the other way round; others as nobody (65534).",
    ),
    OptionSpec::with_value("gidmapping", "GID:SHOWN:COUNT[:...]", "The same for groups."),
    OptionSpec::flag("static_nlink", "Directories have one link, always."),
    OptionSpec::flag(
        "noacl",
        "There are no ACLs: none is shown, set (EOPNOTSUPP) or inherited, and modes alone count. Copies keep theirs.",
    ),
    OptionSpec::with_value("xattr_permissions", "N", "fuse-overlayfs's word: 2 is vstat, 0 is not."),
];

const MANUAL: &str = "\
Lays trees over each other. In the form of the family, SOURCE (A) is laid over the tree at the mount point (B), which the mount hides and goes on using:

  umviewfs /tmp/a /tmp/b                        A in the place of B
  umviewfs -o merge /tmp/a /tmp/b               A's names over B's; changes go to B
  umviewfs -o cow /tmp/a /tmp/b                 changes go to A, B stays as it is
  umviewfs -o mincow,except=/tmp A /            changes go to B where they are permitted

In the form of overlayfs the mount point is any directory:

  umviewfs -o lowerdir=/l1:/l2,upperdir=/u,workdir=/w none /mnt
  umviewfs -o lowerdir=/l1:/l2 none /mnt        read-only

What was deleted, and directories that replaced others, are marked in the upper layer as overlayfs marks them (trusted.overlay.*, or user.overlay.* by \
ordinary users), so the kernel's overlay and fuse-overlayfs mount an upper layer made here, and the other way round. An upper layer with a store of the \
family (the directory .-) is read as it is.

The layers must not be changed by others while they are mounted, unless renew is given. An upper layer serves one mount at a time.

An ordinary user's cow and mincow mounts decide by themselves who may do what: whatever the user may in the layers and in the copies, which are \
the user's own. So a file of root's can be edited. Do not give allow_other with them.

Whenever the server is killed, a file is as it was or as it shall be, and what was written to it is there. After a crash of the machine a copy that is \
there has the content that the file had when it was copied: on ext4 with its journal (data=ordered) and on filesystems that share content (XFS, btrfs) \
this is had by their own order of writing, elsewhere by waiting for the disk. As everywhere, only what was synced is sure to be there. \
With fsync=strict each copy is on the disk before it is seen; with volatile nothing is waited for, and after a crash the upper layer is of no use.

`veduta diff UPPER` shows what was changed, `veduta commit UPPER` keeps it, `veduta discard UPPER` throws it away.";

impl Module for Viewfs {
    fn name(&self) -> &'static str {
        "viewfs"
    }
    fn aliases(&self) -> &'static [&'static str] {
        &["umviewfs", "vufs", "overlay"]
    }
    fn summary(&self) -> &'static str {
        "trees laid over each other: bind, merge, copy-on-write"
    }
    fn source(&self) -> SourceKind {
        SourceKind::None
    }
    fn writable(&self) -> bool {
        true
    }
    fn options(&self) -> &'static [OptionSpec] {
        OPTIONS
    }
    fn manual(&self) -> &'static str {
        MANUAL
    }

    fn mount(&self, request: &mut Request<'_>) -> Result<Object, MountError> {
        let mut mode = take_mode(&mut request.options)?;
        let stacked = request.options.take_flag("stacked")?;
        let mut setup = take_words(&mut request.options)?;
        setup.read_only = request.read_only;
        setup.real_numbers = request.world.shows_real_numbers();
        setup.keeps_numbers = request.world.puts_numbers_right();
        let mut lowers = take_lowers(&mut request.options)?;
        if stacked {
            if mode.is_some() || !lowers.is_empty() {
                return Err(MountError::usage("stacked says what lies below: no mode, and no lowerdir="));
            }
            let source = request.source.to_owned();
            lowers = recorded(&place(request, &source).map_err(|error| named("SOURCE", &source, &error))?)?;
            mode = Some(Mode::Cow);
        }
        let upper = request.options.take_value("upperdir")?.map(OsString::from);
        if let Some(work) = request.options.take_value("workdir")? {
            place(request, OsStr::new(&work)).map_err(|error| named("workdir", OsStr::new(&work), &error))?;
        }
        let is_overlay = !lowers.is_empty() || upper.is_some();
        let source = match is_overlay {
            // A word, by custom `none` or `overlay`.
            true if upper.is_some() || mode.is_none() => upper,
            _ => Some(request.source.to_owned()),
        };
        setup.mode = mode.unwrap_or(if is_overlay { Mode::Cow } else { Mode::Bind });
        let wants_target = !is_overlay && setup.mode != Mode::Bind || !setup.except.is_empty();
        let target = if wants_target { Some(target(request)?) } else { None };
        setup.upper = source
            .map(|source| place(request, &source).map_err(|error| named("the upper layer", &source, &error)))
            .transpose()?;
        for lower in &lowers {
            setup.lower.push(place(request, lower).map_err(|error| named("lowerdir", lower, &error))?);
        }
        if lowers.is_empty() && setup.mode != Mode::Bind {
            setup.lower.extend(target.clone());
        }
        setup.below = target;
        let disguise = take_disguise(&mut request.options)?;
        setup.disguised = disguise != Disguise::default();
        let is_cow = matches!(setup.mode, Mode::Cow | Mode::MinCow);
        setup.own_permissions = is_cow && !rustix::process::geteuid().is_root();
        let is_disguised = setup.disguised;
        let tree = setup.mount()?;
        Ok(Object::Tree(if is_disguised { Arc::new(Shown { tree, disguise }) } else { tree }))
    }
}

fn recorded(upper: &Place) -> Result<Vec<OsString>, MountError> {
    let layers = crate::upper::read_record(upper)?.1;
    if layers.is_empty() {
        return Err(MountError::usage("it has no record of the layers below it: give lowerdir="));
    }
    Ok(layers)
}

fn take_mode(options: &mut Options) -> Result<Option<Mode>, MountError> {
    let words = [
        ("bind", Mode::Bind),
        ("move", Mode::Bind),
        ("merge", Mode::Merge),
        ("cow", Mode::Cow),
        ("mincow", Mode::MinCow),
    ];
    let mut mode = None;
    for (word, meant) in words {
        if options.take_flag(word)? && mode.replace(meant).is_some_and(|other| other != meant) {
            return Err(MountError::usage("of bind, merge, cow and mincow only one can be given"));
        }
    }
    Ok(mode)
}

fn take_words(options: &mut Options) -> Result<Setup, MountError> {
    let paths = |values: Vec<String>| values.into_iter().map(PathBuf::from).collect();
    options.take_flag("wok")?;
    let mut setup = Setup {
        except: paths(options.take_values("except")?),
        hide: paths(options.take_values("hide")?),
        vstat: options.take_flag("vstat")?,
        renew: options.take_flag("renew")?,
        worm: options.take_flag("worm")?,
        user_xattr: options.take_flag("userxattr")?,
        ..Setup::default()
    };
    setup.metacopy = options.take_flag("nochcopy")?;
    setup.metacopy |= take_switch(options, "metacopy", &["on"], &["off"])?.unwrap_or(false);
    setup.no_redirect =
        take_switch(options, "redirect_dir", &["off", "nofollow"], &["on", "follow"])?.unwrap_or(false);
    setup.no_index = take_switch(options, "index", &["off"], &["on"])?.unwrap_or(false);
    setup.durability = take_durability(options)?;
    setup.vstat |= take_switch(options, "xattr_permissions", &["2"], &["0"])?.unwrap_or(false);
    take_switch(options, "xino", &["on", "auto", "off"], &[])?;
    take_switch(options, "nfs_export", &["off"], &[])?;
    Ok(setup)
}

fn take_disguise(options: &mut Options) -> Result<Disguise, MountError> {
    let is_root = options.take_flag("squash_to_root")?;
    let mut ids = |all: &str, mapped: &str| {
        let (number, ranges) = (options.take_value(all)?, options.take_value(mapped)?);
        match (number, ranges) {
            (Some(_), Some(_)) => {
                Err(MountError::usage(format!("of {all}= and {mapped}= only one can be given")))
            }
            (Some(number), None) => number
                .parse()
                .map(Ids::All)
                .map_err(|_| MountError::usage(format!("option {all}={number}: expected a number"))),
            (None, Some(_)) if is_root => {
                Err(MountError::usage(format!("of squash_to_root and {mapped}= only one can be given")))
            }
            (None, Some(ranges)) => Ids::parse(&ranges).ok_or_else(|| {
                MountError::usage(format!(
                    "option {mapped}={ranges}: expected ID:SHOWN:COUNT, any number of times"
                ))
            }),
            (None, None) => Ok(if is_root { Ids::All(0) } else { Ids::Plain }),
        }
    };
    let (users, groups) = (ids("squash_to_uid", "uidmapping")?, ids("squash_to_gid", "gidmapping")?);
    let (static_nlink, no_acl) = (options.take_flag("static_nlink")?, options.take_flag("noacl")?);
    Ok(Disguise { users, groups, static_nlink, no_acl })
}

fn take_durability(options: &mut Options) -> Result<Durability, MountError> {
    let is_volatile = options.take_flag("volatile")?;
    let word = options.take_value("fsync")?;
    let chosen = match word.as_deref() {
        None => None,
        Some("auto" | "1") => Some(Durability::Ordered),
        Some("strict") => Some(Durability::Strict),
        Some("volatile" | "0") => Some(Durability::Volatile),
        Some(word) => {
            let message = format!("option fsync={word}: expected one of auto, strict, volatile, 1, 0");
            return Err(MountError::usage(message));
        }
    };
    match chosen {
        Some(other) if is_volatile && other != Durability::Volatile => {
            Err(MountError::usage("volatile, and an fsync= that says otherwise"))
        }
        None if is_volatile => Ok(Durability::Volatile),
        chosen => Ok(chosen.unwrap_or_default()),
    }
}

/// Whether a value is one of `yes`; `None` if the option is not there.
fn take_switch(
    options: &mut Options,
    key: &str,
    yes: &[&str],
    no: &[&str],
) -> Result<Option<bool>, MountError> {
    let Some(word) = options.take_value(key)? else { return Ok(None) };
    if yes.contains(&word.as_str()) {
        return Ok(Some(true));
    }
    if no.contains(&word.as_str()) {
        return Ok(Some(false));
    }
    let all = [yes, no].concat().join(", ");
    Err(MountError::usage(format!("option {key}={word}: expected one of {all}")))
}

fn take_lowers(options: &mut Options) -> Result<Vec<OsString>, MountError> {
    let mut lowers = Vec::new();
    for list in options.take_values("lowerdir")? {
        lowers.extend(split_lowers(&list)?);
    }
    lowers.extend(options.take_values("lowerdir+")?.into_iter().map(OsString::from));
    Ok(lowers)
}

/// Splits at colons that no backslash stands before.
pub(crate) fn split_lowers(list: &str) -> Result<Vec<OsString>, MountError> {
    let mut lowers = vec![String::new()];
    let mut chars = list.chars().peekable();
    while let Some(c) = chars.next() {
        match c {
            '\\' if matches!(chars.peek(), Some(':' | '\\')) => {
                if let (Some(last), Some(c)) = (lowers.last_mut(), chars.next()) {
                    last.push(c);
                }
            }
            ':' => lowers.push(String::new()),
            c => lowers.last_mut().into_iter().for_each(|last| last.push(c)),
        }
    }
    if lowers.iter().any(String::is_empty) {
        return Err(MountError::usage(format!(
            "lowerdir={list}: a layer without a name (layers that hold data only, behind ::, are not known)"
        )));
    }
    Ok(lowers.into_iter().map(OsString::from).collect())
}

fn place(request: &Request<'_>, path: &OsStr) -> Result<Place, MountError> {
    let (tree, root) = request.world.tree(path)?;
    let name = std::path::absolute(Path::new(path)).map_or_else(|_| path.to_owned(), PathBuf::into_os_string);
    Ok(Place { tree, root, name })
}

fn target(request: &Request<'_>) -> Result<Place, MountError> {
    let Some(point) = request.world.mount_point() else {
        return Err(MountError::unsupported("the tree at the mount point is not known here: give lowerdir="));
    };
    place(request, point).map_err(|error| named("the mount point", point, &error))
}

fn named(what: &str, path: &OsStr, error: &MountError) -> MountError {
    MountError {
        message: format!("{what} {}: {}", Path::new(path).display(), error.message),
        ..error.clone()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn layers_are_split_as_overlayfs_splits_them() {
        assert_eq!(split_lowers(r"/a:/b\:c:d").unwrap(), ["/a", "/b:c", "d"]);
        assert!(split_lowers("/a::/b").is_err() && split_lowers("").is_err());
    }
}
