//! The record of a tree: one JSON object an entry, as `images/truth` writes it, made through the contract
//! alone.

#![expect(
    clippy::unwrap_used,
    clippy::panic,
    reason = "only tests use it, and what it finds is what they want to hear of"
)]

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::ops::ControlFlow;
use std::os::unix::ffi::OsStrExt;

use serde_json::{Map, Value, json};
use sha2::{Digest, Sha256};
use veduta_api::{Attr, Errno, File, Filesystem, Ino, Kind, OpenFlags, Result, Seek, Timestamp};

/// Bytes; longer files are recorded piece by piece.
const WHOLE: u64 = 64 << 20;
const PIECE: u64 = 4096;
/// EXT4_INLINE_DATA_FL
const INLINE_DATA: u64 = 0x1000_0000;

/// By path, in the form of the record.
pub type Record = BTreeMap<String, Map<String, Value>>;

/// Records a whole tree.
pub fn of(tree: &dyn Filesystem) -> Record {
    let mut record = Record::new();
    let root = tree.getattr(Ino::ROOT).unwrap();
    add(tree, &mut record, b"", Ino::ROOT, &root);
    record
}

/// Reads a file of records.
pub fn parse(text: &str) -> Record {
    text.lines()
        .map(|line| match serde_json::from_str(line).unwrap() {
            Value::Object(entry) => (entry["path"].as_str().unwrap().to_owned(), entry),
            other => panic!("{other}"),
        })
        .collect()
}

/// Every difference in what both sides know.
pub fn differences(truth: &Record, ours: &Record, ignored: &[&str]) -> Vec<String> {
    let mut found = Vec::new();
    for path in truth.keys().chain(ours.keys().filter(|path| !truth.contains_key(*path))) {
        match (truth.get(path), ours.get(path)) {
            (Some(truth), Some(ours)) => {
                if let (None, Some(errno)) = (truth.get("errno"), ours.get("errno")) {
                    found.push(format!("{path}: cannot be read: {errno}"));
                }
                for (key, value) in truth {
                    let Some(our) = ours.get(key) else { continue };
                    // Programs take a file without sectors for a hole, so a mounted tree counts those of
                    // inline content.
                    if key == "blocks"
                        && truth
                            .get("flags")
                            .and_then(Value::as_u64)
                            .is_some_and(|flags| flags & INLINE_DATA != 0)
                    {
                        continue;
                    }
                    if our != value && !ignored.contains(&key.as_str()) {
                        found.push(format!("{path}: {key}: should be {value}, is {our}"));
                    }
                }
            }
            (Some(_), None) => found.push(format!("{path}: is missing")),
            _ => found.push(format!("{path}: should not be there")),
        }
    }
    found
}

fn add(tree: &dyn Filesystem, record: &mut Record, path: &[u8], ino: Ino, attr: &Attr) {
    let shown = if path.is_empty() { b"/" } else { path };
    let mut entry = attributes(attr);
    entry.insert("path".into(), json!(escape(shown)));
    if attr.kind == Kind::Symlink {
        entry.insert("target".into(), json!(escape(tree.readlink(ino).unwrap().as_bytes())));
    }
    match xattrs(tree, ino) {
        Ok(found) => entry.insert("xattrs".into(), found),
        Err(errno) => entry.insert("xattrs".into(), json!(errno.to_string())),
    };
    if attr.kind == Kind::File {
        match tree.open(ino, OpenFlags::READ) {
            Ok(file) => content(&*file, attr.size, &mut entry),
            Err(errno) => drop(entry.insert("errno".into(), json!(name_of(errno)))),
        }
    }
    record.insert(escape(shown), entry);
    if attr.kind == Kind::Directory {
        for (name, child) in children(tree, ino) {
            let path = [path, b"/", &name].concat();
            let found = tree.lookup(ino, OsStr::from_bytes(&name)).unwrap();
            assert_eq!(Some(found.ino), child, "{}", escape(&path));
            assert_eq!(tree.getattr(found.ino), Ok(found.attr));
            if found.attr.kind == Kind::Directory {
                assert_eq!(tree.parent(found.ino), Ok(ino), "{}", escape(&path));
            }
            add(tree, record, &path, found.ino, &found.attr);
        }
    }
}

fn children(tree: &dyn Filesystem, dir: Ino) -> Vec<(Vec<u8>, Option<Ino>)> {
    let mut all = Vec::new();
    tree.readdir(dir, 0, &mut |entry| {
        let found = tree.entry(dir, &entry).unwrap();
        assert_eq!(found.attr.st_ino, entry.st_ino);
        assert!(entry.kind.is_none_or(|kind| kind == found.attr.kind));
        all.push((entry.name.as_bytes().to_vec(), Some(found.ino)));
        ControlFlow::Continue(())
    })
    .unwrap();
    all
}

fn attributes(attr: &Attr) -> Map<String, Value> {
    let kind = match attr.kind {
        Kind::File => "file",
        Kind::Directory => "dir",
        Kind::Symlink => "link",
        Kind::CharDevice => "chr",
        Kind::BlockDevice => "blk",
        Kind::Fifo => "fifo",
        Kind::Socket => "sock",
    };
    let Value::Object(mut entry) = json!({
        "type": kind, "mode": format!("{:04o}", attr.perm.bits()), "uid": attr.uid, "gid": attr.gid,
        "size": attr.size, "nlink": attr.nlink, "ino": attr.st_ino, "blocks": attr.blocks,
    }) else {
        unreachable!()
    };
    if matches!(attr.kind, Kind::CharDevice | Kind::BlockDevice) {
        entry.insert("rdev".into(), json!([attr.rdev.major, attr.rdev.minor]));
    }
    let mut time = |name: &str, time: Timestamp| {
        entry.insert(format!("{name}_s"), json!(time.seconds));
        entry.insert(format!("{name}_ns"), json!(time.nanos));
    };
    time("atime", attr.atime);
    time("mtime", attr.mtime);
    time("ctime", attr.ctime);
    if let Some(btime) = attr.btime {
        time("crtime", btime);
    }
    entry
}

fn xattrs(tree: &dyn Filesystem, ino: Ino) -> Result<Value> {
    let mut found = Map::new();
    for name in tree.listxattr(ino)? {
        found.insert(escape(name.as_bytes()), json!(hex(&tree.getxattr(ino, &name)?)));
    }
    Ok(Value::Object(found))
}

fn content(file: &dyn File, size: u64, entry: &mut Map<String, Value>) {
    let data = data_of(file, size);
    if size <= WHOLE {
        let mut digest = Sha256::new();
        let mut buf = vec![0; 1 << 20];
        let mut offset = 0;
        while offset < size {
            let len = file.read_at(&mut buf, offset).unwrap();
            assert!(len > 0);
            digest.update(&buf[..len]);
            offset += len as u64;
        }
        entry.insert("sha256".into(), json!(hex(&digest.finalize())));
    } else {
        entry.insert("pieces".into(), json!(pieces(file, size, &data)));
    }
    entry.insert("data".into(), json!(data));
}

fn data_of(file: &dyn File, size: u64) -> Vec<[u64; 2]> {
    let (mut data, mut at) = (Vec::new(), 0);
    while at < size {
        match file.seek(Seek::Data, at) {
            Ok(start) => {
                let end = file.seek(Seek::Hole, start).unwrap();
                data.push([start, end]);
                at = end;
            }
            Err(errno) => {
                assert_eq!(errno, Errno::ENXIO);
                break;
            }
        }
    }
    data
}

fn pieces(file: &dyn File, size: u64, data: &[[u64; 2]]) -> String {
    let mut digest = Sha256::new();
    let mut done = 0;
    for [start, end] in data {
        let mut offset = (start - start % PIECE).max(done);
        while offset < *end {
            let mut piece = vec![0; PIECE.min(size - offset) as usize];
            assert_eq!(file.read_at(&mut piece, offset), Ok(piece.len()));
            if piece.iter().any(|byte| *byte != 0) {
                digest.update(offset.to_le_bytes());
                digest.update(&piece);
            }
            offset += PIECE;
        }
        done = done.max(offset);
    }
    hex(&digest.finalize())
}

/// As it is written in C.
fn name_of(errno: Errno) -> String {
    format!("{errno:?}")
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Bytes to plain ASCII.
pub fn escape(name: &[u8]) -> String {
    let one = |byte: &u8| match byte {
        b'%' | b'"' | b'\\' => format!("%{byte:02X}"),
        0x21..=0x7e => char::from(*byte).to_string(),
        _ => format!("%{byte:02X}"),
    };
    name.iter().map(one).collect()
}
