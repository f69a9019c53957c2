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
