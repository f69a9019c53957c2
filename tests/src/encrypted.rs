//! The target of encrypted directories: the bytes are a directory of ciphertext, with its configuration.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::sync::Arc;

use veduta_api::{Attr, Caching, Disk, Facts, Filesystem, Ino, Kind, Link, MountError, Perm, Value, World};
use veduta_encfs::Inner;
use veduta_encfs::volume::{Secrets, Volume};
use veduta_tree::memory::{Builder, Data, Memory, Setup};

use crate::{Limits, Seen, exercise};

/// Rounds of PBKDF2 that a fuzzer has the time for.
const ROUNDS: u64 = 5000;
/// Directories within each other.
const DEPTH: usize = 8;

/// A world in which every secret is the same.
struct Knows(&'static [u8]);

impl World for Knows {
    fn disk(&self, _source: &OsStr, _writable: bool) -> Result<Disk, MountError> {
        Err(MountError::usage("there is no disk"))
    }
    fn tree(&self, _source: &OsStr) -> Result<(Arc<dyn Filesystem>, Ino), MountError> {
        Err(MountError::usage("there is no tree"))
    }
    fn link(&self, _source: &OsStr) -> Result<Arc<dyn Link>, MountError> {
        Err(MountError::usage("there is no link"))
    }
    fn secret(&self, _prompt: &str) -> Result<Vec<u8>, MountError> {
        Ok(self.0.to_vec())
    }
}

/// Opens the volume, if it is one, with a key of zeros or the password `x`, and looks at everything.
pub(crate) fn target(bytes: &[u8]) -> Option<Seen> {
    let tree: Arc<dyn Filesystem> = Arc::new(unpack(bytes));
    let mut seen = None;
    for reverse in [false, true] {
        let Ok(volume) = Volume::find(Inner::new(Arc::clone(&tree), Ino::ROOT), reverse) else { continue };
        let report = volume.describe();
        let opened = match report.find("pbkdf2_rounds") {
            Some(Value::Number(rounds)) if *rounds > ROUNDS => continue,
            Some(_) => volume.open(&Knows(b"x"), &Secrets::default()),
            None => volume.open(&Knows(&[b'0'; 64]), &Secrets { master_key: true, ..Secrets::default() }),
        };
        if let Ok(tree) = opened {
            seen = Some(exercise(&*tree, Limits::FUZZ));
        }
    }
    seen
}

/// Entries, each with a kind (0 a file, 1 a directory in which those that follow are, 2 a symbolic link, 3 the end of a directory), the
/// length of its name, its name, the length of its content in two bytes, its content.
fn unpack(bytes: &[u8]) -> Memory {
    let facts = Facts { caching: Caching::Immutable, ..Facts::default() };
    let mut builder = Builder::new(&Setup { facts, ..Setup::default() });
    let mut above = vec![Ino::ROOT];
    let mut rest = bytes;
    while let Some((kind, name, content)) = entry(&mut rest) {
        let dir = above.last().copied().unwrap_or(Ino::ROOT);
        let name = OsStr::from_bytes(name);
        let attr = |kind| Attr::new(0, kind, Perm::from_mode(0o755));
        // A name that is wrong, or taken, is left out.
        match kind % 4 {
            0 => {
                let _ = builder.add_file(dir, name, &attr(Kind::File), Data::Bytes(content.to_vec()));
            }
            1 if above.len() < DEPTH => {
                if let Ok(ino) = builder.add_directory(dir, name, &attr(Kind::Directory)) {
                    above.push(ino);
                }
            }
            2 => {
                let _ = builder.add_symlink(dir, name, &attr(Kind::Symlink), OsStr::from_bytes(content));
            }
            _ => {
                above.pop();
            }
        }
    }
    builder.finish()
}

fn entry<'a>(rest: &mut &'a [u8]) -> Option<(u8, &'a [u8], &'a [u8])> {
    let ([kind, len], behind) = rest.split_first_chunk()?;
    let (name, behind) = behind.split_at_checked(usize::from(*len))?;
    let (len, behind) = behind.split_first_chunk()?;
    let (content, behind) = behind.split_at_checked(usize::from(u16::from_le_bytes(*len)))?;
    *rest = behind;
    Some((*kind, name, content))
}
