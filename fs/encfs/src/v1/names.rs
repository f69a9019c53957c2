//! Names of EncFS: encrypted under a checksum of 16 bits, which is stored before them, and, where names are chained, a number that comes from all
//! names above. A directory that moves then has all names below encrypted anew.

use std::collections::HashMap;
use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::Path;
use std::sync::Arc;

use parking_lot::RwLock;
use veduta_api::{Attr, Entry, Errno, Ino, Kind, RenameFlags, Result, SetAttr, SetTime};

use super::cipher::{Key, fold16};
use super::config::{Config, Format, Naming};
use crate::content::Files;
use crate::gocryptfs::names::is_name;
use crate::inner::Inner;
use crate::tree::{CipherName, Scheme};

const BASE64: &[u8; 64] = b",-0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz";
const BASE32: &[u8; 32] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZ234567";

/// How deep directories may lie in one that is moved: deeper than any path.
const MAX_DEPTH: usize = 2048;

/// The cipher of names.
pub(crate) struct Names {
    key: Arc<Key>,
    naming: Naming,
    version: u32,
    chained: bool,
}

impl Names {
    pub(crate) fn new(format: &Format, key: Arc<Key>) -> Self {
        Self { key, naming: format.naming, version: format.versions.1, chained: format.chained_names }
    }

    /// A name as it is stored in a directory with the number `iv`, and the number of what is below it.
    pub(crate) fn encrypt(&self, name: &[u8], iv: u64) -> (Vec<u8>, u64) {
        let chained = self.chained.then_some(iv);
        match self.naming {
            Naming::Null => (name.to_vec(), iv),
            Naming::Block { base32 } => {
                let size = self.key.block_size();
                let padding = size - name.len() % size;
                let mut data = name.to_vec();
                data.resize(name.len() + padding, padding as u8);
                let mac = self.key.mac64(&data, chained);
                let seed = if self.version >= 3 { chained.unwrap_or(0) } else { 0 };
                self.key.encrypt_whole(&mut data, u64::from(fold16(mac)) ^ seed);
                let mut all = fold16(mac).to_be_bytes().to_vec();
                all.extend(data);
                (if base32 { encode::<5>(&all, BASE32) } else { encode::<6>(&all, BASE64) }, self.next(mac))
            }
            Naming::Stream => {
                let mac = self.key.mac64(name, chained);
                let seed = if self.version >= 2 { chained.unwrap_or(0) } else { 0 };
                let mut data = name.to_vec();
                self.key.encrypt_stream(&mut data, u64::from(fold16(mac)) ^ seed);
                let sum = fold16(mac).to_be_bytes();
                let all =
                    if self.version >= 1 { [&sum[..], &data].concat() } else { [&data[..], &sum].concat() };
                (encode::<6>(&all, BASE64), self.next(mac))
            }
        }
    }

    fn next(&self, mac: u64) -> u64 {
        if self.chained { mac } else { 0 }
    }

    /// As [`encrypt`](Self::encrypt), backwards; `None` if this is no name of such a directory.
    pub(crate) fn decrypt(&self, stored: &[u8], iv: u64) -> Option<(Vec<u8>, u64)> {
        let chained = self.chained.then_some(iv);
        match self.naming {
            Naming::Null => Some((stored.to_vec(), iv)),
            Naming::Block { base32 } => {
                let all = if base32 { decode::<5>(stored, BASE32)? } else { decode::<6>(stored, BASE64)? };
                let (sum, data) = all.split_first_chunk::<2>()?;
                let size = self.key.block_size();
                if data.is_empty() || data.len() % size > 0 {
                    return None;
                }
                let seed = if self.version >= 3 { chained.unwrap_or(0) } else { 0 };
                let mut data = data.to_vec();
                self.key.decrypt_whole(&mut data, u64::from(u16::from_be_bytes(*sum)) ^ seed);
                let mac = self.key.mac64(&data, chained);
                if fold16(mac).to_be_bytes() != *sum {
                    return None;
                }
                let padding = usize::from(*data.last()?);
                let len = data.len().checked_sub(padding).filter(|_| padding <= size)?;
                data.truncate(len);
                Some((data, self.next(mac)))
            }
            Naming::Stream => {
                let all = decode::<6>(stored, BASE64)?;
                let (sum, data) = if self.version >= 1 {
                    all.split_first_chunk::<2>()?
                } else {
                    all.split_last_chunk::<2>().map(|(data, sum)| (sum, data))?
                };
                let seed = if self.version >= 2 { chained.unwrap_or(0) } else { 0 };
                let mut data = data.to_vec();
                self.key.decrypt_stream(&mut data, u64::from(u16::from_be_bytes(*sum)) ^ seed);
                let mac = self.key.mac64(&data, chained);
                (fold16(mac).to_be_bytes() == *sum && !data.is_empty()).then_some((data, self.next(mac)))
            }
        }
    }

    /// The target of a symbolic link: an absolute one is one name behind a `+`, a relative one is a path of names.
    pub(crate) fn encrypt_target(&self, target: &[u8]) -> Vec<u8> {
        match target.strip_prefix(b"/") {
            Some(rest) => [b"+", &self.unchained(|names| names.encrypt(rest, 0).0)[..]].concat(),
            None => self.path(target, |name, iv| Some(self.encrypt(name, iv))).unwrap_or_default(),
        }
    }

    pub(crate) fn decrypt_target(&self, stored: &[u8]) -> Option<Vec<u8>> {
        match stored.strip_prefix(b"+") {
            Some(rest) => Some([b"/", &self.unchained(|names| names.decrypt(rest, 0))?.0[..]].concat()),
            None => self.path(stored, |name, iv| self.decrypt(name, iv)),
        }
    }

    fn unchained<T>(&self, work: impl FnOnce(&Names) -> T) -> T {
        work(&Names { key: Arc::clone(&self.key), chained: false, ..*self })
    }

    /// Each component of a path by `step`. The number is chained from one to the next, beginning at 0; what is above the link plays no part.
    fn path(&self, path: &[u8], step: impl Fn(&[u8], u64) -> Option<(Vec<u8>, u64)>) -> Option<Vec<u8>> {
        let mut iv = 0;
        let mut out = Vec::new();
        for (at, name) in path.split(|byte| *byte == b'/').enumerate() {
            if at > 0 {
                out.push(b'/');
            }
            match name {
                b"" | b"." | b".." => out.extend_from_slice(name),
                name => {
                    let (coded, next) = step(name, iv)?;
                    out.extend(coded);
                    iv = next;
                }
            }
        }
        Some(out)
    }
}

/// Bytes in groups of `BITS` bits, the lowest first, each as a letter.
fn encode<const BITS: u32>(bytes: &[u8], letters: &[u8]) -> Vec<u8> {
    let (mut work, mut held) = (0_u32, 0);
    let mut out = Vec::with_capacity(bytes.len() * 8 / BITS as usize + 1);
    let letter = |work: u32| letters[(work & ((1 << BITS) - 1)) as usize];
    for byte in bytes {
        work |= u32::from(*byte) << held;
        held += 8;
        while held >= BITS {
            out.push(letter(work));
            work >>= BITS;
            held -= BITS;
        }
    }
    if held > 0 {
        out.push(letter(work));
    }
    out
}

fn decode<const BITS: u32>(text: &[u8], letters: &[u8]) -> Option<Vec<u8>> {
    let (mut work, mut held) = (0_u32, 0);
    let mut out = Vec::with_capacity(text.len() * BITS as usize / 8);
    for byte in text {
        let value = letters.iter().position(|letter| letter == byte)? as u32;
        work |= value << held;
        held += BITS;
        if held >= 8 {
            out.push(work as u8);
            work >>= 8;
            held -= 8;
        }
    }
    Some(out)
}

/// A node that the host knows.
struct Known {
    references: u64,
    iv: u64,
}

/// Everything of the format but the content of files.
pub(crate) struct Encfs {
    names: Names,
    root: Ino,
    config: &'static str,
    chained: bool,
    external: bool,
    /// Numbers of nodes, where names are chained.
    known: RwLock<HashMap<Ino, Known>>,
}

impl Encfs {
    pub(crate) fn new(config: &Config, key: Arc<Key>, root: Ino) -> Self {
        let format = &config.format;
        // Null names give no numbers, so that nothing depends on paths.
        let chained = format.chained_names && format.naming != Naming::Null;
        Self {
            names: Names::new(format, key),
            root,
            config: config.file,
            chained,
            external: format.external_iv && chained,
            known: RwLock::default(),
        }
    }

    /// The number of a directory, or a file.
    fn iv(&self, ino: Ino) -> Result<u64> {
        if !self.chained || ino == self.root {
            return Ok(0);
        }
        self.known.read().get(&ino).map(|known| known.iv).ok_or(Errno::ESTALE)
    }

    fn set_iv(&self, ino: Ino, iv: u64) {
        if let Some(known) = self.known.write().get_mut(&ino) {
            known.iv = iv;
        }
    }

    /// A node gets another number, and all below it their names accordingly. Each step is noted, and taken back if a later one fails.
    fn move_node(&self, files: &Arc<Files>, entry: &Entry, from: u64, to: u64) -> Result<()> {
        let mut done = Vec::new();
        let moved = self.move_below(files, entry, from, to, 0, &mut done);
        if moved.is_err() {
            for step in done.iter().rev() {
                if let Err(error) = self.take(files, step, true) {
                    files
                        .inner
                        .findings
                        .tell(format!("a rename that failed could not be taken back: {}", error.desc()));
                }
            }
        }
        moved
    }

    fn move_below(
        &self,
        files: &Arc<Files>,
        entry: &Entry,
        from: u64,
        to: u64,
        depth: usize,
        done: &mut Vec<Step>,
    ) -> Result<()> {
        let inner = &files.inner;
        if depth > MAX_DEPTH {
            return Err(Errno::ELOOP);
        }
        if entry.attr.kind == Kind::Directory {
            for listed in inner.list(entry.ino)? {
                let Some((name, old_iv)) = self.names.decrypt(listed.name.as_bytes(), from) else { continue };
                let (stored, new_iv) = self.names.encrypt(&name, to);
                inner.with_entry(entry.ino, &listed.name, |below| {
                    self.move_below(files, below, old_iv, new_iv, depth + 1, done)
                })?;
                let step = Step::Name { dir: entry.ino, old: listed.name, new: OsString::from_vec(stored) };
                self.take(files, &step, false)?;
                done.push(step);
            }
        }
        let step = Step::Number { ino: entry.ino, attr: entry.attr, from, to };
        self.take(files, &step, false)?;
        done.push(step);
        Ok(())
    }

    fn take(&self, files: &Arc<Files>, step: &Step, back: bool) -> Result<()> {
        let inner = &files.inner;
        match step {
            Step::Name { dir, old, new } => {
                let (from, to) = if back { (new, old) } else { (old, new) };
                inner.fs.rename(*dir, from, *dir, to, RenameFlags::default())
            }
            Step::Number { ino, attr, from, to } => {
                let (from, to) = if back { (*to, *from) } else { (*from, *to) };
                if self.external && attr.kind == Kind::File {
                    files.node(*ino, from).set_external(to)?;
                }
                self.set_iv(*ino, to);
                // A move changes no times of what is moved.
                match attr.kind {
                    Kind::Directory => restore_times(inner, *ino, attr),
                    Kind::File if self.external => restore_times(inner, *ino, attr),
                    _ => Ok(()),
                }
            }
        }
    }
}

/// One change of a move.
enum Step {
    Name { dir: Ino, old: OsString, new: OsString },
    Number { ino: Ino, attr: Attr, from: u64, to: u64 },
}

fn restore_times(inner: &Inner, ino: Ino, attr: &Attr) -> Result<()> {
    let (atime, mtime) = (Some(SetTime::To(attr.atime)), Some(SetTime::To(attr.mtime)));
    inner.fs.setattr(ino, &SetAttr { atime, mtime, ..SetAttr::default() }).map(drop)
}

impl Scheme for Encfs {
    fn encode(&self, _inner: &Inner, dir: Ino, name: &OsStr) -> Result<CipherName> {
        let (stored, iv) = self.names.encrypt(name.as_bytes(), self.iv(dir)?);
        if dir == self.root && stored == self.config.as_bytes() {
            return Err(Errno::EPERM);
        }
        Ok(CipherName { name: OsString::from_vec(stored), long: None, iv })
    }

    fn decode(&self, inner: &Inner, dir: Ino, stored: &OsStr) -> Result<Option<OsString>> {
        if dir == self.root && stored == self.config {
            return Ok(None);
        }
        let name = self.names.decrypt(stored.as_bytes(), self.iv(dir)?);
        if let Some((name, _)) = name.filter(|(name, _)| is_name(name)) {
            return Ok(Some(OsString::from_vec(name)));
        }
        inner.findings.tell(format!(
            "the stored name {} cannot be decrypted; it is not shown",
            Path::new(stored).display()
        ));
        Ok(None)
    }

    fn encode_target(&self, target: &OsStr) -> Result<OsString> {
        Ok(OsString::from_vec(self.names.encrypt_target(target.as_bytes())))
    }

    fn decode_target(&self, inner: &Inner, stored: &OsStr) -> Result<OsString> {
        self.names.decrypt_target(stored.as_bytes()).map(OsString::from_vec).ok_or_else(|| {
            inner.findings.tell("the target of a symbolic link is corrupt".into());
            Errno::EIO
        })
    }

    fn target_len(&self, _stored: u64) -> Option<u64> {
        None
    }

    /// Extended attributes are not encrypted.
    fn encode_xattr(&self, name: &OsStr) -> Result<OsString> {
        Ok(name.to_owned())
    }

    fn decode_xattr(&self, _inner: &Inner, stored: &OsStr) -> Option<OsString> {
        Some(stored.to_owned())
    }

    fn seal_xattr(&self, value: &[u8]) -> Result<Vec<u8>> {
        Ok(value.to_vec())
    }

    fn open_xattr(&self, _inner: &Inner, stored: Vec<u8>) -> Result<Vec<u8>> {
        Ok(stored)
    }

    fn entered(&self, _dir: Ino, name: &CipherName, entry: &Entry) {
        let counts = entry.attr.kind == Kind::Directory || self.external;
        if self.chained && counts {
            let mut known = self.known.write();
            let node = known.entry(entry.ino).or_insert(Known { references: 0, iv: name.iv });
            node.references += 1;
            node.iv = name.iv;
        }
    }

    fn forgotten(&self, ino: Ino, count: u64) {
        if !self.chained {
            return;
        }
        let mut known = self.known.write();
        if let Some(node) = known.get_mut(&ino) {
            node.references = node.references.saturating_sub(count);
            if node.references == 0 {
                known.remove(&ino);
            }
        }
    }

    fn external(&self, ino: Ino) -> Result<u64> {
        if self.external { self.iv(ino) } else { Ok(0) }
    }

    /// A file cannot depend on two paths.
    fn check_link(&self) -> Result<()> {
        if self.external { Err(Errno::EPERM) } else { Ok(()) }
    }

    fn relocate(
        &self,
        files: &Arc<Files>,
        from: (Ino, &CipherName),
        to: (Ino, &CipherName),
        undo: bool,
    ) -> Result<()> {
        let (old, new) = if undo { (to.1.iv, from.1.iv) } else { (from.1.iv, to.1.iv) };
        if !self.chained || old == new {
            return Ok(());
        }
        let inner = &files.inner;
        inner.with_entry(from.0, &from.1.name, |entry| {
            if !undo {
                check_move(inner, entry, to)?;
            }
            self.move_node(files, entry, old, new)
        })
    }

    fn exchanges(&self) -> bool {
        !self.chained
    }
}

/// Finds out what would make the move fail, before everything below is encrypted anew for nothing.
fn check_move(inner: &Inner, entry: &Entry, to: (Ino, &CipherName)) -> Result<()> {
    if entry.attr.kind == Kind::Directory {
        // Up to the root; a directory that is its own ancestor is none.
        let mut above = to.0;
        for _ in 0..MAX_DEPTH {
            if above == entry.ino {
                return Err(Errno::EINVAL);
            }
            match inner.fs.parent(above) {
                Ok(next) if next != above => above = next,
                _ => break,
            }
        }
    }
    match inner.with_entry(to.0, &to.1.name, |target| {
        match (entry.attr.kind == Kind::Directory, target.attr.kind == Kind::Directory) {
            (true, false) => Err(Errno::ENOTDIR),
            (false, true) => Err(Errno::EISDIR),
            (true, true) if !inner.is_empty(target.ino, |_| false)? => Err(Errno::ENOTEMPTY),
            _ => Ok(()),
        }
    }) {
        Err(Errno::ENOENT) => Ok(()),
        result => result,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::v1::cipher::Algorithm;

    #[test]
    fn names_of_all_lengths_come_back() {
        for (algorithm, naming, version) in [
            (Algorithm::Aes, Naming::Block { base32: false }, 4),
            (Algorithm::Aes, Naming::Block { base32: true }, 4),
            (Algorithm::Blowfish, Naming::Block { base32: false }, 2),
            (Algorithm::Aes, Naming::Stream, 2),
            (Algorithm::Blowfish, Naming::Stream, 1),
            (Algorithm::Aes, Naming::Stream, 0),
            (Algorithm::Aes, Naming::Null, 1),
        ] {
            let bytes: Vec<u8> = (0..16 + algorithm.block()).map(|at| at as u8).collect();
            let key = Arc::new(Key::new(algorithm, 3, &bytes).unwrap());
            for chained in [true, false] {
                let names = Names { key: Arc::clone(&key), naming, version, chained };
                for len in 1..=255_usize {
                    let name: Vec<u8> = (0..len).map(|at| (at * 7 + 1) as u8 | 0x80).collect();
                    let (stored, iv) = names.encrypt(&name, 5);
                    assert_eq!(names.decrypt(&stored, 5), Some((name.clone(), iv)));
                    assert_eq!(iv != 5 && iv != 0, chained && naming != Naming::Null);
                    for target in [&name[..], b"/a/b", b"../x/./y//z/", b"/", b"+x"] {
                        if naming == Naming::Null && target == b"+x" || target == b"/" {
                            continue;
                        }
                        let stored = names.encrypt_target(target);
                        assert_eq!(names.decrypt_target(&stored).as_deref(), Some(target));
                    }
                }
            }
        }
    }
}
