//! From what a person wrote (`disk.img#2:/etc`) to a tree and a path in it.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::Path;
use std::sync::Arc;

use veduta_api::{
    Disk, Filesystem, Module, MountError, Object, Options, PartitionTable, Request, SourceKind, World,
};
use veduta_disk::HostWorld;

use crate::args::Reading;
use crate::failure::{Failure, shown};
use crate::modules;

/// What looking at a disk found.
pub(crate) enum Found {
    /// A type that can be mounted.
    Type(&'static dyn Module),
    /// Partitions.
    Table(PartitionTable),
    /// Nothing that is known.
    Nothing,
}

/// Splits `IMAGE:PATH` at the colon that ends the name of something that exists; without one, at the last `:/`. A name
/// without a path means the root.
pub(crate) fn split(word: &OsStr) -> (OsString, OsString) {
    let bytes = word.as_bytes();
    let colons = || bytes.iter().enumerate().filter(|(_, byte)| **byte == b':').map(|(at, _)| at);
    if exists(bytes) {
        return (word.to_owned(), "/".into());
    }
    let at = colons()
        .rfind(|at| exists(&bytes[..*at]))
        .or_else(|| colons().rfind(|at| bytes.get(at + 1) == Some(&b'/')));
    match at {
        Some(at) => {
            let path = &bytes[at + 1..];
            let path = if path.is_empty() { b"/" } else { path };
            (OsString::from_vec(bytes[..at].to_vec()), OsString::from_vec(path.to_vec()))
        }
        None => (word.to_owned(), "/".into()),
    }
}

/// `IMAGE:PATH`, for messages and headings.
pub(crate) fn join(image: &OsStr, path: &OsStr) -> OsString {
    let mut word = image.to_owned();
    word.push(if path.as_bytes().starts_with(b"/") { ":" } else { ":/" });
    word.push(path);
    word
}

/// The name of an entry of a directory, with one slash between.
pub(crate) fn below(dir: &OsStr, name: &OsStr) -> OsString {
    let mut path = dir.to_owned();
    if !dir.as_bytes().ends_with(b"/") {
        path.push("/");
    }
    path.push(name);
    path
}

/// Whether a source names something that exists: a file, or a file and `#` and a number.
fn exists(source: &[u8]) -> bool {
    let path = |bytes: &[u8]| Path::new(OsStr::from_bytes(bytes)).exists();
    if source.is_empty() {
        return false;
    }
    path(source)
        || source.iter().rposition(|byte| *byte == b'#').is_some_and(|at| {
            at > 0 && source[at + 1..].iter().all(u8::is_ascii_digit) && path(&source[..at])
        })
}

/// All `-o` lists as one.
pub(crate) fn options(lists: &[String]) -> Result<Options, Failure> {
    let mut all = Options::default();
    for list in lists {
        all.append(Options::parse(list).map_err(|error| Failure::usage(error.0))?);
    }
    Ok(all)
}

/// Opens a source to read it, without a mount.
pub(crate) fn open(source: &OsStr, reading: &Reading) -> Result<Arc<dyn Filesystem>, Failure> {
    let mut options = options(&reading.options)?;
    let world = HostWorld::from_options(&mut options).map_err(|error| Failure::usage(error.0))?;
    let _ = options.take_flag("ro");
    let (module, source) = match reading.type_name.as_str() {
        "auto" => pick(source, &world)?,
        name => (modules::named(name).map_err(|error| Failure::usage(error.message))?, source.to_owned()),
    };
    open_as(module, &source, options, &world)
        .map_err(|error| Failure::mount(Some(module.name()), &source, &error))
}

/// The type of a source, found by looking, and the source itself, or the one partition of it that holds a filesystem. A disk with several is an
/// error that lists them.
pub(crate) fn pick(source: &OsStr, world: &HostWorld) -> Result<(&'static dyn Module, OsString), Failure> {
    let failed = |error: &MountError| Failure::mount(None, source, error);
    let disk = world.disk(source, false).map_err(|error| failed(&error))?;
    match look(&disk).map_err(|error| failed(&error))? {
        Found::Type(module) => Ok((module, source.to_owned())),
        Found::Table(table) => match only_filesystem(&disk, &table) {
            Some((module, number)) => {
                let mut source = source.to_owned();
                source.push(format!("#{number}"));
                Ok((module, source))
            }
            None => Err(failed(&MountError::usage(partitions_sentence(source, &table)))),
        },
        Found::Nothing => Err(failed(&MountError::wrong_type(unknown_sentence(&disk)))),
    }
}

/// The one partition with a filesystem that can be mounted, if there is exactly one.
fn only_filesystem(disk: &Disk, table: &PartitionTable) -> Option<(&'static dyn Module, u32)> {
    let mut found = table.partitions.iter().filter_map(|partition| {
        let window = disk.window(partition.offset, partition.size, disk.name()).ok()?;
        match look(&window) {
            Ok(Found::Type(module)) => Some((module, partition.number)),
            _ => None,
        }
    });
    let first = found.next()?;
    found.next().is_none().then_some(first)
}

/// What the content of a disk is.
pub(crate) fn look(disk: &Disk) -> Result<Found, MountError> {
    match modules::probe(disk)? {
        Some(module) if module.name() == veduta_mbr::Mbr.name() => {
            Ok(veduta_mbr::read_table(disk, None)?.map_or(Found::Nothing, Found::Table))
        }
        Some(module) => Ok(Found::Type(module)),
        None => Ok(Found::Nothing),
    }
}

fn open_as(
    module: &'static dyn Module,
    source: &OsStr,
    options: Options,
    world: &HostWorld,
) -> Result<Arc<dyn Filesystem>, MountError> {
    options.check(module.options())?;
    match module.mount(&mut Request { source, options, read_only: true, world })? {
        Object::Tree(tree) => Ok(tree),
        Object::Disk(drive) => match drive.table() {
            Some(table) => Err(MountError::usage(partitions_sentence(source, &table))),
            None => Err(MountError::usage("a disk, which holds no files")),
        },
        other => Err(MountError::usage(format!("a {other:?}, which holds no files"))),
    }
}

/// Tells which partitions there are, and how to name one.
fn partitions_sentence(source: &OsStr, table: &PartitionTable) -> String {
    let list: Vec<String> = table
        .partitions
        .iter()
        .map(|partition| {
            let label = if partition.name.is_empty() { &partition.kind_name } else { &partition.name };
            format!("#{} ({label}, {})", partition.number, crate::render::bytes(partition.size))
        })
        .collect();
    if list.is_empty() {
        return "a disk whose partition table is empty".into();
    }
    let first = table.partitions.first().map_or(1, |partition| partition.number);
    format!(
        "a disk with partitions; name one, such as {}#{first}. There are: {}",
        shown(source),
        list.join(", ")
    )
}

fn unknown_sentence(disk: &Disk) -> String {
    let types: Vec<&str> = modules::ALL
        .iter()
        .filter(|module| module.source() == SourceKind::Disk)
        .map(|module| module.name())
        .collect();
    let blank = matches!(disk.next_data(0), Ok(None));
    let what = if blank { "nothing but zeros" } else { "no format that is known here" };
    format!("holds {what} (looked for: {}); -t TYPE tells what it should be", types.join(", "))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn split_str(word: &str) -> (String, String) {
        let (image, path) = split(OsStr::new(word));
        (image.into_string().unwrap(), path.into_string().unwrap())
    }

    #[test]
    fn names_are_joined_with_one_colon_and_one_slash() {
        for (image, path, name, joined) in [
            ("disk.img", "/", "etc", "disk.img:/etc"),
            ("disk.img#2", "etc", "passwd", "disk.img#2:/etc/passwd"),
            ("/a.img", "/etc/", "passwd", "/a.img:/etc/passwd"),
        ] {
            assert_eq!(below(&join(image.as_ref(), path.as_ref()), name.as_ref()), joined);
        }
    }

    #[test]
    fn a_word_is_split_behind_the_image() {
        let dir = tempfile::tempdir().unwrap();
        let image = dir.path().join("odd:name.img");
        std::fs::write(&image, "").unwrap();
        let image = image.to_str().unwrap();
        let same =
            |word: String, path: &str| assert_eq!(split_str(&word), (image.to_owned(), path.to_owned()));
        same(image.to_owned(), "/");
        same(format!("{image}:/etc/a:b"), "/etc/a:b");
        same(format!("{image}:etc"), "etc");
        same(format!("{image}:"), "/");
        let part = format!("{image}#2");
        assert_eq!(split_str(&format!("{part}:/x")), (part, "/x".to_owned()));
        assert_eq!(split_str("gone.img:/etc"), ("gone.img".to_owned(), "/etc".to_owned()));
        assert_eq!(split_str("gone.img"), ("gone.img".to_owned(), "/".to_owned()));
    }
}
