//! The format of gocryptfs, release 0.7 and later.

pub(crate) mod config;
pub(crate) mod content;
pub(crate) mod eme;
pub(crate) mod keys;
pub(crate) mod names;
mod reverse;

use std::ffi::OsStr;
use std::sync::Arc;

use veduta_api::{Errno, Filesystem, Ino, MountError};

pub use self::config::{Cipher, Config, DEFAULT_LOG_N, Format, NameMode, WrongPassword};
pub use self::keys::MasterKey;

use self::content::Content;
use self::names::{Gocryptfs, Names};
use self::reverse::Reverse;
use crate::content::Files;
use crate::inner::Inner;
use crate::tree::CryptTree;

/// The plaintext of a volume.
pub(crate) fn open(inner: Inner, config: &Config, key: &MasterKey) -> Arc<dyn Filesystem> {
    let root = inner.below(Ino::ROOT);
    let content = Arc::new(Content::new(&config.format, key));
    let scheme = Gocryptfs::new(Names::new(&config.format, key), Arc::clone(&content), root);
    Arc::new(CryptTree::new(Files::new(inner, content), Arc::new(scheme)))
}

/// The ciphertext of a directory of plain files.
pub(crate) fn open_reverse(
    inner: Inner,
    config: &Config,
    key: &MasterKey,
) -> Result<Arc<dyn Filesystem>, MountError> {
    if config.format.cipher != Cipher::AesSiv {
        return Err(MountError::corrupt(format!(
            "{} is damaged: a reverse volume is encrypted with AES-SIV",
            config::REVERSE_NAME
        )));
    }
    let content = Arc::new(Content::new(&config.format, key));
    Ok(Arc::new(Reverse::new(inner, content, Names::new(&config.format, key))))
}

/// Makes a volume in an empty directory; a reverse one beside what is there, and one that lost its configuration (`again`) around
/// what is there.
pub(crate) fn init(inner: &Inner, config: &Config, reverse: bool, again: bool) -> Result<(), MountError> {
    let root = inner.below(Ino::ROOT);
    let failed = |what: &str, errno: Errno| MountError::system(errno, format!("{what}: {}", errno.desc()));
    let name = OsStr::new(if reverse { config::REVERSE_NAME } else { config::NAME });
    let owner = inner.fs.getattr(root).map(|attr| (attr.uid, attr.gid));
    let owner = owner.map_err(|errno| failed("it cannot be read", errno))?;
    inner.write_small(root, name, &config.to_json(), 0o400, owner, true).map_err(|errno| match errno {
        Errno::EEXIST => MountError::usage("there is a volume already"),
        errno => failed("its configuration cannot be written", errno),
    })?;
    if !reverse && matches!(config.format.names, NameMode::Encrypted { dir_iv: true, .. }) {
        match names::write_dir_iv(inner, root, owner) {
            Ok(_) => {}
            Err(Errno::EEXIST) if again => {}
            Err(errno) => return Err(failed("the value of its root directory cannot be written", errno)),
        }
    }
    Ok(())
}
