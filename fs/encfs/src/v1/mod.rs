//! The format of EncFS 1.x: version 6 to read and write, 5 and 4 to read.
//!
//! Its security is dated: content has no checksum unless the volume is made so, and a checksum of one block says nothing of its place; who sees
//! several states of the ciphertext, or may change it, learns more than should be. It is here for what there is, not for what is new.

mod cipher;
pub(crate) mod config;
mod content;
mod names;

use std::sync::Arc;

use veduta_api::{Filesystem, Ino};

pub use self::cipher::Algorithm;
pub use self::config::{Config, Format, Naming};

use self::config::VolumeKey;
use self::content::Content;
use self::names::Encfs;
use crate::content::Files;
use crate::inner::Inner;
use crate::tree::CryptTree;

impl Format {
    /// A format with the versions that are written now.
    #[must_use]
    pub fn current(self) -> Self {
        Self { versions: config::current_versions(self.naming), ..self }
    }
}

/// Rounds of PBKDF2 that take about so many milliseconds here.
pub(crate) fn iterations_for(milliseconds: u32) -> u32 {
    const TRIAL: u32 = 20_000;
    let start = std::time::Instant::now();
    cipher::from_password(b"trial", &[0; 20], TRIAL, 40);
    let took = start.elapsed().as_micros().max(1);
    u32::try_from(u128::from(TRIAL) * u128::from(milliseconds) * 1000 / took).unwrap_or(u32::MAX).max(1000)
}

/// The plaintext of a volume.
pub(crate) fn open(inner: Inner, config: &Config, key: VolumeKey) -> Arc<dyn Filesystem> {
    let root = inner.below(Ino::ROOT);
    let key = Arc::new(key.key);
    let scheme = Encfs::new(config, Arc::clone(&key), root);
    let content = Content { key, format: config.format };
    Arc::new(CryptTree::new(Files::new(inner, Arc::new(content)), Arc::new(scheme)))
}

#[cfg(test)]
mod tests {
    use std::ffi::OsStr;
    use std::process::Command;

    use veduta_api::{Kind, NewNode, OpenFlags, Perm};
    use veduta_tree::hostdir::HostDir;

    use super::cipher::Key;
    use super::config::NAMES;
    use super::*;

    fn number(out: &mut Vec<u8>, value: usize) {
        let digits: Vec<u8> = (0..5).rev().map(|at| (value >> (7 * at)) as u8 & 0x7f).collect();
        let from = digits.iter().position(|digit| *digit > 0).unwrap_or(4);
        out.extend(
            digits[from..]
                .iter()
                .enumerate()
                .map(|(at, digit)| if from + at < 4 { digit | 0x80 } else { *digit }),
        );
    }

    fn string(out: &mut Vec<u8>, value: &[u8]) {
        number(out, value.len());
        out.extend(value);
    }

    /// A configuration as programs of that time wrote it, with `key` under the password `pass word`.
    fn old_config(name: &str, format: &Format, key: &[u8]) -> Vec<u8> {
        let algorithm = format.algorithm;
        let password = cipher::from_old_password(b"pass word", format.key, algorithm.block());
        let wrapped = Key::new(algorithm, format.versions.0, &password).unwrap().wrap(key);
        let interface = |name: &str, version: u32| {
            let mut out = Vec::new();
            string(&mut out, name.as_bytes());
            [version as usize, 0, 0].into_iter().for_each(|value| number(&mut out, value));
            out
        };
        let int = |value: usize| {
            let mut out = Vec::new();
            number(&mut out, value);
            out
        };
        let text = |value: &[u8]| {
            let mut out = Vec::new();
            string(&mut out, value);
            out
        };
        let cipher = if algorithm == Algorithm::Aes { "ssl/aes" } else { "ssl/blowfish" };
        let naming = if format.naming == Naming::Stream { "nameio/stream" } else { "nameio/block" };
        let mut values = vec![
            ("cipher", interface(cipher, format.versions.0)),
            ("keySize", int(format.key * 8)),
            ("blockSize", int(format.block)),
            ("keyData", text(&wrapped)),
        ];
        if name == NAMES[1] {
            values.extend([
                ("subVersion", int(20_040_813)),
                ("creator", text(b"EncFS 1.3")),
                ("naming", interface(naming, format.versions.1)),
                ("uniqueIV", int(format.unique_iv.into())),
                ("chainedIV", int(format.chained_names.into())),
                ("externalIV", int(format.external_iv.into())),
                ("blockMACBytes", int(format.mac)),
                ("blockMACRandBytes", int(format.random)),
            ]);
        }
        let mut out = int(values.len());
        for (key, value) in values {
            string(&mut out, key.as_bytes());
            string(&mut out, &value);
        }
        out
    }

    /// Asks encfsctl (package encfs), which mounts nothing.
    #[test]
    fn volumes_of_old_programs_are_read_as_encfs_reads_them() {
        if Command::new("encfsctl").arg("--version").output().is_err() {
            eprintln!("skipped: encfsctl is missing");
            return;
        }
        let old = Format { holes: false, ..Format::STANDARD };
        let stream = Format { naming: Naming::Stream, unique_iv: false, chained_names: false, ..old };
        for (file, format) in [
            (NAMES[1], Format { versions: (3, 3), ..old }),
            (NAMES[1], Format { versions: (2, 2), mac: 8, random: 2, ..old }),
            (NAMES[1], Format { versions: (2, 2), naming: Naming::Stream, key: 32, ..old }),
            (NAMES[2], Format { versions: (2, 1), key: 16, block: 512, ..stream }),
        ] {
            let dir = tempfile::tempdir().unwrap();
            let key: Vec<u8> = (0..format.key_and_iv()).map(|at| at as u8 * 5 + 3).collect();
            let bytes = old_config(file, &format, &key);
            std::fs::write(dir.path().join(file), &bytes).unwrap();
            let config = Config::parse(file, &bytes).unwrap();
            assert_eq!(config.format, format);
            assert!(config.unlock(b"wrong").unwrap().is_none());
            let unlock = || config.unlock(b"pass word").unwrap().unwrap();
            // What we write in that format (through the tree that is not yet kept from it), encfs has to read.
            let inner = Inner::new(Arc::new(HostDir::open(dir.path()).unwrap()), Ino::ROOT);
            let tree = open(inner, &config, unlock());
            let me = std::fs::metadata(dir.path()).unwrap();
            let (uid, gid) = {
                use std::os::unix::fs::MetadataExt;
                (me.uid(), me.gid())
            };
            let new = NewNode {
                kind: Kind::File,
                perm: Perm::from_mode(0o755),
                umask: 0,
                uid,
                gid,
                rdev: Default::default(),
            };
            let below = tree.mkdir(Ino::ROOT, OsStr::new("directory"), &new).unwrap().ino;
            let name = OsStr::new("some file");
            let (_, written) = tree.create(below, name, &new, OpenFlags::READ_WRITE).unwrap();
            let content: Vec<u8> = (0..5000_u32).map(|at| (at / 7) as u8).collect();
            written.write_at(&content, 0).unwrap();
            let ctl = |words: &[&str]| {
                let output = Command::new("encfsctl").args(words).output().unwrap();
                assert!(
                    output.status.success(),
                    "{file} {format:?}: {}",
                    String::from_utf8_lossy(&output.stderr)
                );
                output.stdout
            };
            let root = dir.path().to_str().unwrap();
            let read = ctl(&["cat", "--extpass=echo pass word", root, "directory/some file"]);
            assert!(read == content, "{file} {format:?}: content");
            let stored = ctl(&["encode", "--extpass=echo pass word", root, "directory/some file"]);
            let stored = String::from_utf8(stored).unwrap();
            assert!(dir.path().join(stored.trim()).is_file(), "{file} {format:?}: {stored}");
        }
    }
}
