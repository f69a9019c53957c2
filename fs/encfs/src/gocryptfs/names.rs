//! Names: padded to whole blocks, encrypted by EME with a value of the directory as tweak, and written in base64. Those that come out too long are
//! stored as a hash, with the encrypted name in a file beside.

use std::collections::HashMap;
use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::Path;

use base64::Engine;
use base64::engine::GeneralPurpose;
use base64::engine::general_purpose::{URL_SAFE, URL_SAFE_NO_PAD};
use parking_lot::RwLock;
use sha2::{Digest, Sha256};
use veduta_api::{Entry, Errno, Ino, Kind, NewNode, RenameFlags, Result, SetAttr};

use super::config::{self, Format, NameMode};
use super::content::Content;
use super::eme::{BLOCK, Eme};
use super::keys::MasterKey;
use crate::content::Corrupt;
use crate::inner::Inner;
use crate::random;
use crate::tree::{CipherName, Scheme};

/// The file in each directory that holds its value.
pub(crate) const DIR_IV: &str = "gocryptfs.diriv";
/// What it is called, with something behind, on its way out of a directory that is being removed.
const DIR_IV_LEAVING: &str = "gocryptfs.diriv.rmdir.";
const DIR_IV_MODE: u32 = 0o440;
pub(crate) const LONG_PREFIX: &str = "gocryptfs.longname.";
pub(crate) const LONG_SUFFIX: &str = ".name";
const LONG_MODE: u32 = 0o400;
/// Bytes; the longest name, padded and in base64.
const MAX_STORED: usize = 344;
/// Values that are kept; when there are more, all are dropped.
const KEPT: usize = 16_384;

/// Extended attributes: what stands before an encrypted name, and the tweak of those.
const XATTR_PREFIX: &[u8] = b"user.gocryptfs.";
const XATTR_TWEAK: &[u8; BLOCK] = b"xattr_name_iv_xx";

pub(crate) type DirIv = [u8; BLOCK];

/// Names of a volume.
pub(crate) struct Names {
    eme: Eme,
    mode: NameMode,
    base64: &'static GeneralPurpose,
}

impl Names {
    pub(crate) fn new(format: &Format, key: &MasterKey) -> Self {
        let raw64 = matches!(format.names, NameMode::Encrypted { raw64: true, .. });
        let base64 = if raw64 { &URL_SAFE_NO_PAD } else { &URL_SAFE };
        Self { eme: Eme::new(&key.for_names(format.hkdf)), mode: format.names, base64 }
    }

    /// A name encrypted, in base64.
    pub(crate) fn encrypt(&self, name: &[u8], tweak: &DirIv) -> Result<String> {
        let padding = BLOCK - name.len() % BLOCK;
        let mut padded = Vec::with_capacity(name.len() + padding);
        padded.extend_from_slice(name);
        padded.resize(name.len() + padding, padding as u8);
        self.eme.encrypt(tweak, &mut padded).ok_or(Errno::ENAMETOOLONG)?;
        Ok(self.base64.encode(padded))
    }

    /// As [`encrypt`](Self::encrypt), backwards; `None` if this is no name.
    pub(crate) fn decrypt(&self, stored: &[u8], tweak: &DirIv) -> Option<Vec<u8>> {
        let mut padded = self.base64.decode(stored).ok()?;
        self.eme.decrypt(tweak, &mut padded)?;
        let padding = usize::from(*padded.last()?);
        let len = padded.len().checked_sub(padding)?;
        let is_padding =
            (1..=BLOCK).contains(&padding) && padded[len..].iter().all(|byte| usize::from(*byte) == padding);
        padded.truncate(len);
        (is_padding && len > 0).then_some(padded)
    }

    /// How a directory stores a name.
    pub(crate) fn stored(&self, name: &[u8], tweak: &DirIv) -> Result<CipherName> {
        let stored = self.encrypt(name, tweak)?;
        Ok(match self.mode {
            NameMode::Encrypted { long_max: Some(max), .. } if stored.len() > usize::from(max) => {
                CipherName {
                    name: self.hash(stored.as_bytes()).into(),
                    long: Some(stored.into_bytes()),
                    iv: 0,
                }
            }
            _ => CipherName { name: stored.into(), long: None, iv: 0 },
        })
    }

    pub(crate) fn hash(&self, stored: &[u8]) -> String {
        format!("{LONG_PREFIX}{}", self.base64.encode(Sha256::digest(stored)))
    }

    pub(crate) fn base64(&self) -> &'static GeneralPurpose {
        self.base64
    }

    pub(crate) fn is_raw64(&self) -> bool {
        matches!(self.mode, NameMode::Encrypted { raw64: true, .. })
    }

    pub(crate) fn are_plain(&self) -> bool {
        self.mode == NameMode::Plain
    }

    pub(crate) fn have_dir_iv(&self) -> bool {
        matches!(self.mode, NameMode::Encrypted { dir_iv: true, .. })
    }
}

/// A name that a directory may hold.
pub(crate) fn is_name(name: &[u8]) -> bool {
    !matches!(name, b"" | b"." | b"..")
        && name.len() <= 255
        && !name.iter().any(|byte| matches!(byte, b'/' | 0))
}

/// Everything of the format but the content of files.
pub(crate) struct Gocryptfs {
    names: Names,
    content: std::sync::Arc<Content>,
    root: Ino,
    dir_ivs: RwLock<HashMap<Ino, DirIv>>,
}

impl Gocryptfs {
    pub(crate) fn new(names: Names, content: std::sync::Arc<Content>, root: Ino) -> Self {
        Self { names, content, root, dir_ivs: RwLock::default() }
    }

    /// The value of a directory.
    fn dir_iv(&self, inner: &Inner, dir: Ino) -> Result<DirIv> {
        if !self.names.have_dir_iv() {
            return Ok([0; BLOCK]);
        }
        if let Some(iv) = self.dir_ivs.read().get(&dir) {
            return Ok(*iv);
        }
        let iv = read_dir_iv(inner, dir).inspect_err(|error| {
            if !matches!(error, Errno::EACCES | Errno::ESTALE) {
                let st_ino = inner.shown(dir);
                inner
                    .findings
                    .tell(format!("inode {st_ino}: the directory has no valid {DIR_IV} ({})", error.desc()));
            }
        })?;
        self.keep_dir_iv(dir, iv);
        Ok(iv)
    }

    fn keep_dir_iv(&self, dir: Ino, iv: DirIv) {
        let mut ivs = self.dir_ivs.write();
        if ivs.len() >= KEPT {
            ivs.clear();
        }
        ivs.insert(dir, iv);
    }

    /// The stored form of a long name, from the file beside it.
    fn long_name(&self, inner: &Inner, dir: Ino, hash: &OsStr) -> Result<Option<Vec<u8>>> {
        let mut beside = hash.to_owned();
        beside.push(LONG_SUFFIX);
        let stored = match inner.read_small(dir, &beside, MAX_STORED) {
            Ok(stored) => stored,
            Err(Errno::ENOENT | Errno::EFBIG | Errno::EINVAL) => return Ok(None),
            Err(error) => return Err(error),
        };
        Ok((self.names.hash(&stored).as_bytes() == hash.as_bytes()).then_some(stored))
    }

    fn is_own(&self, dir: Ino, name: &[u8]) -> bool {
        dir == self.root && name == config::NAME.as_bytes()
    }
}

/// The value of a directory, from its file.
pub(crate) fn read_dir_iv(inner: &Inner, dir: Ino) -> Result<DirIv> {
    let bytes = inner.read_small(dir, OsStr::new(DIR_IV), BLOCK).map_err(|error| match error {
        // The directory is there, so this is no answer that a user would understand.
        Errno::ENOENT | Errno::EFBIG | Errno::EINVAL => Errno::EIO,
        error => error,
    })?;
    let iv: DirIv = bytes.try_into().map_err(|_| Errno::EIO)?;
    if iv == [0; BLOCK] { Err(Errno::EIO) } else { Ok(iv) }
}

/// Gives a directory its value.
pub(crate) fn write_dir_iv(inner: &Inner, dir: Ino, owner: (u32, u32)) -> Result<DirIv> {
    let mut iv = [0; BLOCK];
    random::nonce(&mut iv)?;
    inner.write_small(dir, OsStr::new(DIR_IV), &iv, DIR_IV_MODE, owner, false)?;
    Ok(iv)
}

impl Scheme for Gocryptfs {
    fn encode(&self, inner: &Inner, dir: Ino, name: &OsStr) -> Result<CipherName> {
        if self.names.are_plain() {
            let own = self.is_own(dir, name.as_bytes());
            return if own {
                Err(Errno::EPERM)
            } else {
                Ok(CipherName { name: name.to_owned(), long: None, iv: 0 })
            };
        }
        self.names.stored(name.as_bytes(), &self.dir_iv(inner, dir)?)
    }

    fn decode(&self, inner: &Inner, dir: Ino, stored: &OsStr) -> Result<Option<OsString>> {
        let bytes = stored.as_bytes();
        if self.is_own(dir, bytes) {
            return Ok(None);
        }
        if self.names.are_plain() {
            return Ok(Some(stored.to_owned()));
        }
        let is_long = bytes.starts_with(LONG_PREFIX.as_bytes());
        if bytes == DIR_IV.as_bytes()
            || bytes.starts_with(DIR_IV_LEAVING.as_bytes())
            || (is_long && bytes.ends_with(LONG_SUFFIX.as_bytes()))
        {
            return Ok(None);
        }
        let iv = self.dir_iv(inner, dir)?;
        let encrypted = if is_long { self.long_name(inner, dir, stored)? } else { Some(bytes.to_vec()) };
        let name = encrypted.and_then(|encrypted| self.names.decrypt(&encrypted, &iv));
        if let Some(name) = name.filter(|name| is_name(name)) {
            return Ok(Some(OsString::from_vec(name)));
        }
        inner.findings.tell(format!(
            "the stored name {} cannot be decrypted; it is not shown",
            Path::new(stored).display()
        ));
        Ok(None)
    }

    /// A long name is in a file of its own, which goes with it.
    fn is_told(&self, name: &OsStr) -> bool {
        match self.names.mode {
            NameMode::Encrypted { long_max: Some(max), .. } => {
                (name.len() / BLOCK + 1) * BLOCK * 4 / 3 + 4 <= usize::from(max)
            }
            NameMode::Encrypted { long_max: None, .. } | NameMode::Plain => true,
        }
    }

    fn encode_target(&self, target: &OsStr) -> Result<OsString> {
        if self.names.are_plain() {
            return Ok(target.to_owned());
        }
        Ok(self.names.base64().encode(self.content.seal_small(target.as_bytes())?).into())
    }

    fn decode_target(&self, inner: &Inner, stored: &OsStr) -> Result<OsString> {
        if self.names.are_plain() {
            return Ok(stored.to_owned());
        }
        let plain = self.names.base64().decode(stored.as_bytes()).map_err(|_| Corrupt);
        let plain = plain.and_then(|bytes| self.content.open_small(&bytes));
        plain.map(OsString::from_vec).map_err(|Corrupt| {
            inner.findings.tell("the target of a symbolic link is corrupt".into());
            Errno::EIO
        })
    }

    fn target_len(&self, stored: u64) -> Option<u64> {
        match (self.names.are_plain(), self.names.is_raw64()) {
            (true, _) => Some(stored),
            (false, true) => Some((stored * 3 / 4).saturating_sub(self.content.overhead() as u64)),
            // How much padding there is, the length does not tell.
            (false, false) => None,
        }
    }

    /// File capabilities would be asked for with every write, and are not honoured on a mount that is `nosuid` (which it is unless root
    /// says otherwise): as gocryptfs does, they are refused.
    fn encode_xattr(&self, name: &OsStr) -> Result<OsString> {
        let bytes = name.as_bytes();
        if bytes == b"security.capability" || bytes.starts_with(b"system.") {
            return Err(Errno::EOPNOTSUPP);
        }
        let mut stored = XATTR_PREFIX.to_vec();
        stored.extend_from_slice(self.names.encrypt(bytes, XATTR_TWEAK)?.as_bytes());
        Ok(OsString::from_vec(stored))
    }

    fn decode_xattr(&self, inner: &Inner, stored: &OsStr) -> Option<OsString> {
        let encrypted = stored.as_bytes().strip_prefix(XATTR_PREFIX)?;
        let name = self.names.decrypt(encrypted, XATTR_TWEAK).filter(|name| !name.contains(&0));
        if name.is_none() {
            let name = Path::new(stored).display();
            inner.findings.tell(format!("the name of the extended attribute {name} cannot be decrypted"));
        }
        name.map(OsString::from_vec)
    }

    fn seal_xattr(&self, value: &[u8]) -> Result<Vec<u8>> {
        self.content.seal_small(value)
    }

    /// Early releases wrote values in base64.
    fn open_xattr(&self, inner: &Inner, stored: Vec<u8>) -> Result<Vec<u8>> {
        let plain = self.content.open_small(&stored).or_else(|Corrupt| {
            let bytes = self.names.base64().decode(&stored).map_err(|_| Corrupt)?;
            self.content.open_small(&bytes)
        });
        plain.map_err(|Corrupt| {
            inner.findings.tell("the value of an extended attribute is corrupt".into());
            Errno::EIO
        })
    }

    fn begin_name(&self, inner: &Inner, dir: Ino, name: &CipherName, new: Option<&NewNode>) -> Result<bool> {
        let Some(long) = &name.long else { return Ok(false) };
        let mut beside = name.name.clone();
        beside.push(LONG_SUFFIX);
        let owner = match new {
            Some(new) => (new.uid, new.gid),
            None => inner.fs.getattr(dir).map(|attr| (attr.uid, attr.gid))?,
        };
        match inner.write_small(dir, &beside, long, LONG_MODE, owner, false) {
            Ok(()) => Ok(true),
            Err(Errno::EEXIST) => Ok(false),
            Err(error) => Err(error),
        }
    }

    fn end_name(&self, inner: &Inner, dir: Ino, name: &CipherName) {
        let mut beside = name.name.clone();
        beside.push(LONG_SUFFIX);
        if let Err(error) = inner.fs.unlink(dir, &beside) {
            tracing::warn!("{} could not be removed: {}", Path::new(&beside).display(), error.desc());
        }
    }

    fn furnishes(&self) -> bool {
        self.names.have_dir_iv()
    }

    fn furnish(&self, inner: &Inner, dir: Ino, new: &NewNode) -> Result<()> {
        let iv = write_dir_iv(inner, dir, (new.uid, new.gid))?;
        self.keep_dir_iv(dir, iv);
        Ok(())
    }

    /// The file with the value leaves first, to the directory above. It comes back if the directory stays.
    fn remove_dir(&self, inner: &Inner, dir: Ino, name: &CipherName) -> Result<()> {
        if !self.names.have_dir_iv() {
            return inner.fs.rmdir(dir, &name.name);
        }
        inner.with_entry(dir, &name.name, |entry| {
            if entry.attr.kind != Kind::Directory {
                return Err(Errno::ENOTDIR);
            }
            let removed = self.remove_furnished(inner, dir, name, entry);
            if removed != Err(Errno::EACCES) {
                return removed;
            }
            // The mode keeps even its owner out.
            let set = |perm| inner.fs.setattr(entry.ino, &SetAttr { perm: Some(perm), ..SetAttr::default() });
            let open = veduta_api::Perm::from_mode(entry.attr.perm.bits() | 0o700);
            set(open).map_err(|_| Errno::EACCES)?;
            self.remove_furnished(inner, dir, name, entry).inspect_err(|_| {
                let _ = set(entry.attr.perm);
            })
        })
    }

    fn forgotten(&self, ino: Ino, _count: u64) {
        // Numbers may be used again.
        if self.dir_ivs.read().contains_key(&ino) {
            self.dir_ivs.write().remove(&ino);
        }
    }
}

impl Gocryptfs {
    fn remove_furnished(&self, inner: &Inner, dir: Ino, name: &CipherName, entry: &Entry) -> Result<()> {
        if !inner.is_empty(entry.ino, |name| name == DIR_IV)? {
            return Err(Errno::ENOTEMPTY);
        }
        let mut tag = [0; 8];
        random::nonce(&mut tag)?;
        let leaving = OsString::from(format!("{DIR_IV_LEAVING}{:016x}", u64::from_ne_bytes(tag)));
        let own = OsStr::new(DIR_IV);
        let rename = |from, name: &OsStr, to, new: &OsStr| {
            inner.fs.rename(from, name, to, new, RenameFlags::default())
        };
        let had_one = match rename(entry.ino, own, dir, &leaving) {
            Ok(()) => true,
            // Somebody has begun to remove it before.
            Err(Errno::ENOENT) => false,
            Err(error) => return Err(error),
        };
        let removed = inner.fs.rmdir(dir, &name.name);
        if had_one {
            let done = match removed {
                Ok(()) => inner.fs.unlink(dir, &leaving),
                Err(_) => rename(dir, &leaving, entry.ino, own),
            };
            if let Err(error) = done {
                tracing::warn!("{} stays behind: {}", Path::new(&leaving).display(), error.desc());
            }
        }
        if removed.is_ok() {
            self.dir_ivs.write().remove(&entry.ino);
        }
        removed
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(raw64: bool, long_max: Option<u8>) -> Names {
        let mode = NameMode::Encrypted { dir_iv: true, long_max, raw64 };
        Names::new(&Format { names: mode, ..Format::default() }, &MasterKey::from_hex(&[b'5'; 64]).unwrap())
    }

    #[test]
    fn names_of_all_lengths_come_back() {
        for raw64 in [true, false] {
            let names = names(raw64, Some(255));
            for len in 1..=255 {
                let name: Vec<u8> = (0..len).map(|at| (at * 7 + 1) as u8 | 0x80).collect();
                let stored = names.encrypt(&name, &[1; 16]).unwrap();
                assert!(stored.len() <= MAX_STORED);
                assert_eq!(names.decrypt(stored.as_bytes(), &[1; 16]), Some(name.clone()));
                assert_ne!(names.decrypt(stored.as_bytes(), &[2; 16]), Some(name));
            }
        }
    }

    #[test]
    fn only_names_that_come_out_too_long_are_hashed() {
        let is_long = |max, len| names(true, max).stored(&vec![b'a'; len], &[0; 16]).unwrap().long.is_some();
        assert_eq!((is_long(Some(255), 175), is_long(Some(255), 176)), (false, true));
        assert_eq!((is_long(Some(62), 31), is_long(Some(62), 32)), (false, true));
        assert!(!is_long(None, 255));
    }

    #[test]
    fn what_is_no_name_is_refused() {
        let names = names(true, None);
        for stored in ["", "a", "AAAA", "!!!!", &"A".repeat(22), &"A".repeat(10_000)] {
            assert_eq!(names.decrypt(stored.as_bytes(), &[0; 16]), None, "{stored}");
        }
    }
}
