//! `gocryptfs.conf`: JSON with the master key, encrypted under the password, and the flags that say how everything else is done.
//!
//! The password goes through scrypt; the result, through HKDF since release 1.3, is the AES-GCM key of one block whose plaintext is
//! the master key. A wrong password shows by that block's tag.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde::{Deserialize, Serialize};
use veduta_api::MountError;
use zeroize::Zeroizing;

use super::keys::{self, KEY, MasterKey};
use crate::random;

/// The name of the file in the root of a volume.
pub(crate) const NAME: &str = "gocryptfs.conf";
/// The same among plain files, for a reverse mount.
pub(crate) const REVERSE_NAME: &str = ".gocryptfs.reverse.conf";
/// Bytes; more is no such file.
pub(crate) const MAX_LEN: usize = 64 * 1024;

/// The on-disk format, since release 0.7.
const VERSION: u64 = 2;
/// scrypt: what is asked by default, and what is accepted. (The upper bound keeps a foreign file from taking all memory: 2 GiB.)
pub const DEFAULT_LOG_N: u8 = 16;
const LOG_N: std::ops::RangeInclusive<u8> = 10..=21;
const MAX_SCRYPT_MEMORY: u64 = 2 << 30;

/// The file as it is stored.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Stored {
    #[serde(default)]
    creator: String,
    encrypted_key: String,
    scrypt_object: StoredScrypt,
    version: u64,
    feature_flags: Option<Vec<String>>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    long_name_max: Option<u64>,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
struct StoredScrypt {
    #[serde(rename = "Salt")]
    salt: String,
    #[serde(rename = "N")]
    n: u64,
    #[serde(rename = "R")]
    r: u64,
    #[serde(rename = "P")]
    p: u64,
    #[serde(rename = "KeyLen")]
    key_len: u64,
}

/// What encrypts the content.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Cipher {
    /// AES-256-GCM with nonces of 128 bits.
    #[default]
    AesGcm,
    /// AES-SIV with 512 bits of key, for reverse mounts and where nonces may repeat.
    AesSiv,
    /// XChaCha20-Poly1305, for processors without AES.
    XChaCha20Poly1305,
}

impl Cipher {
    /// The name that people know it by.
    pub fn name(self) -> &'static str {
        match self {
            Cipher::AesGcm => "AES-256-GCM",
            Cipher::AesSiv => "AES-SIV-512",
            Cipher::XChaCha20Poly1305 => "XChaCha20-Poly1305",
        }
    }
}

/// How names are stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NameMode {
    /// As they are.
    Plain,
    /// Encrypted.
    Encrypted {
        /// With a random value of each directory, so that equal names differ; else the same name is the same everywhere.
        dir_iv: bool,
        /// Bytes; longer ones are stored as a hash, with a file beside that holds the name. `None`: they are impossible.
        long_max: Option<u8>,
        /// Base64 without padding.
        raw64: bool,
    },
}

/// The flags, checked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Format {
    /// Content.
    pub cipher: Cipher,
    /// Names.
    pub names: NameMode,
    /// Whether each use of the master key has a key of its own, derived by HKDF (since release 1.3).
    pub hkdf: bool,
}

impl Default for Format {
    /// What a new volume is.
    fn default() -> Self {
        let names = NameMode::Encrypted { dir_iv: true, long_max: Some(255), raw64: true };
        Self { cipher: Cipher::AesGcm, names, hkdf: true }
    }
}

impl Format {
    fn flags(self) -> Vec<String> {
        let mut flags = Vec::new();
        if self.hkdf {
            flags.push("HKDF");
        }
        flags.push(if self.cipher == Cipher::XChaCha20Poly1305 { "XChaCha20Poly1305" } else { "GCMIV128" });
        match self.names {
            NameMode::Plain => flags.push("PlaintextNames"),
            NameMode::Encrypted { dir_iv, long_max, raw64 } => {
                let all = [
                    (dir_iv, "DirIV"),
                    (long_max.is_some_and(|max| max != 255), "LongNameMax"),
                    (true, "EMENames"),
                    (long_max.is_some(), "LongNames"),
                    (raw64, "Raw64"),
                ];
                flags.extend(all.into_iter().filter_map(|(set, flag)| set.then_some(flag)));
            }
        }
        if self.cipher == Cipher::AesSiv {
            flags.push("AESSIV");
        }
        flags.into_iter().map(str::to_owned).collect()
    }
}

/// A configuration that makes sense.
#[derive(Clone, Debug)]
pub struct Config {
    /// Who made the volume, in words.
    pub creator: String,
    /// How.
    pub format: Format,
    scrypt: Scrypt,
    encrypted_key: Vec<u8>,
}

#[derive(Clone, Debug)]
struct Scrypt {
    log_n: u8,
    r: u32,
    p: u32,
    salt: Vec<u8>,
}

/// Why a password did not open a volume.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WrongPassword;

fn corrupt(what: &str) -> MountError {
    MountError::corrupt(format!("{NAME} is damaged: {what}"))
}

impl Config {
    /// Reads the file. Everything in it is checked, before a password is asked for.
    pub fn parse(bytes: &[u8]) -> Result<Self, MountError> {
        let stored: Stored = serde_json::from_slice(bytes)
            .map_err(|error| corrupt(&format!("it cannot be parsed ({error})")))?;
        if stored.version != VERSION {
            return Err(MountError::unsupported(format!(
                "the volume has on-disk format {}, and only {VERSION} (gocryptfs 0.7 and later) is known",
                stored.version
            )));
        }
        let format = format(stored.feature_flags.as_deref().unwrap_or_default(), stored.long_name_max)?;
        let decode = |text: &str, what: &str| {
            STANDARD.decode(text).map_err(|_| corrupt(&format!("{what} is not base64")))
        };
        let encrypted_key = decode(&stored.encrypted_key, "EncryptedKey")?;
        if encrypted_key.len() != KEY + 16 + if format.hkdf { 16 } else { 12 } {
            return Err(corrupt("EncryptedKey has the wrong length"));
        }
        let salt = decode(&stored.scrypt_object.salt, "the salt")?;
        if !(KEY..=1024).contains(&salt.len()) {
            return Err(corrupt("the salt has the wrong length"));
        }
        let scrypt = scrypt_of(&stored.scrypt_object, salt)?;
        Ok(Self { creator: stored.creator, format, scrypt, encrypted_key })
    }

    /// A new volume's configuration, for a master key.
    pub fn new(format: Format, key: &MasterKey, password: &[u8], log_n: u8) -> Result<Self, MountError> {
        let creator = concat!("veduta ", env!("CARGO_PKG_VERSION")).to_owned();
        let scrypt = Scrypt { log_n, r: 8, p: 1, salt: Vec::new() };
        let mut config = Self { creator, format, scrypt, encrypted_key: Vec::new() };
        config.set_password(key, password, log_n)?;
        Ok(config)
    }

    /// Encrypts the master key under another password, with a new salt.
    pub fn set_password(&mut self, key: &MasterKey, password: &[u8], log_n: u8) -> Result<(), MountError> {
        if !LOG_N.contains(&log_n) {
            let (min, max) = (LOG_N.start(), LOG_N.end());
            return Err(MountError::usage(format!(
                "the cost of scrypt (2^{log_n}) must be 2^{min} to 2^{max}"
            )));
        }
        let mut salt = vec![0; KEY];
        random::secret(&mut salt).map_err(no_random)?;
        self.scrypt = Scrypt { log_n, r: 8, p: 1, salt };
        let hash = self.scrypt.hash(password)?;
        self.encrypted_key = keys::wrap(&hash, key, self.format.hkdf).map_err(no_random)?;
        Ok(())
    }

    /// The master key.
    pub fn unlock(&self, password: &[u8]) -> Result<Result<MasterKey, WrongPassword>, MountError> {
        let hash = self.scrypt.hash(password)?;
        Ok(keys::unwrap(&hash, &self.encrypted_key, self.format.hkdf).ok_or(WrongPassword))
    }

    /// The cost of scrypt, as the logarithm.
    pub fn log_n(&self) -> u8 {
        self.scrypt.log_n
    }

    /// The file.
    pub fn to_json(&self) -> Vec<u8> {
        let long = match self.format.names {
            NameMode::Encrypted { long_max: Some(max), .. } if max != 255 => Some(u64::from(max)),
            _ => None,
        };
        let stored = Stored {
            creator: self.creator.clone(),
            encrypted_key: STANDARD.encode(&self.encrypted_key),
            scrypt_object: StoredScrypt {
                salt: STANDARD.encode(&self.scrypt.salt),
                n: 1 << self.scrypt.log_n,
                r: self.scrypt.r.into(),
                p: self.scrypt.p.into(),
                key_len: KEY as u64,
            },
            version: VERSION,
            feature_flags: Some(self.format.flags()),
            long_name_max: long,
        };
        let mut json = serde_json::to_vec_pretty(&stored).unwrap_or_default();
        json.push(b'\n');
        json
    }
}

pub(crate) fn no_random(errno: veduta_api::Errno) -> MountError {
    MountError::system(errno, "the kernel gives no random bytes")
}

impl Scrypt {
    fn hash(&self, password: &[u8]) -> Result<Zeroizing<[u8; KEY]>, MountError> {
        let mut hash = Zeroizing::new([0; KEY]);
        let wrong = |_| corrupt("the parameters of scrypt make no sense");
        let params = scrypt::Params::new(self.log_n, self.r, self.p).map_err(wrong)?;
        scrypt::scrypt(password, &self.salt, &params, &mut *hash)
            .map_err(|_| corrupt("the parameters of scrypt make no sense"))?;
        Ok(hash)
    }
}

fn scrypt_of(stored: &StoredScrypt, salt: Vec<u8>) -> Result<Scrypt, MountError> {
    let log_n = stored.n.checked_ilog2().and_then(|log| u8::try_from(log).ok()).unwrap_or(0);
    let is_power = stored.n.is_power_of_two();
    if !is_power || !LOG_N.contains(&log_n) || !(8..=64).contains(&stored.r) || !(1..=16).contains(&stored.p)
    {
        return Err(corrupt("the parameters of scrypt are out of range"));
    }
    if stored.key_len != KEY as u64 {
        return Err(corrupt("scrypt gives a key of the wrong length"));
    }
    if stored.n.saturating_mul(stored.r).saturating_mul(128) > MAX_SCRYPT_MEMORY {
        return Err(MountError::unsupported("scrypt would need more than 2 GiB of memory"));
    }
    Ok(Scrypt { log_n, r: stored.r as u32, p: stored.p as u32, salt })
}

/// The flags, if they go together.
fn format(flags: &[String], long_name_max: Option<u64>) -> Result<Format, MountError> {
    const KNOWN: [&str; 11] = [
        "PlaintextNames",
        "DirIV",
        "EMENames",
        "GCMIV128",
        "LongNames",
        "LongNameMax",
        "AESSIV",
        "Raw64",
        "HKDF",
        "FIDO2",
        "XChaCha20Poly1305",
    ];
    if let Some(flag) = flags.iter().find(|flag| !KNOWN.contains(&flag.as_str())) {
        return Err(MountError::unsupported(format!(
            "the volume uses the feature {flag}, which is not known"
        )));
    }
    let has = |name: &str| flags.iter().any(|flag| flag == name);
    if has("FIDO2") {
        return Err(MountError::unsupported(
            "the volume is opened by a FIDO2 token, which is not supported (its master key opens it: -o masterkey)",
        ));
    }
    let clash = |what: &str| Err(corrupt(&format!("its feature flags contradict each other ({what})")));
    let cipher = match (has("XChaCha20Poly1305"), has("AESSIV")) {
        (true, true) => return clash("XChaCha20Poly1305 and AESSIV"),
        (true, false) if has("GCMIV128") => return clash("XChaCha20Poly1305 and GCMIV128"),
        (true, false) if !has("HKDF") => return clash("XChaCha20Poly1305 without HKDF"),
        (true, false) => Cipher::XChaCha20Poly1305,
        (false, _) if !has("GCMIV128") => {
            return Err(MountError::unsupported(
                "the volume was made by gocryptfs before 1.0 with nonces of 96 bits (no GCMIV128), which no release since reads",
            ));
        }
        (false, true) => Cipher::AesSiv,
        (false, false) => Cipher::AesGcm,
    };
    let long_max = match (has("LongNameMax"), long_name_max) {
        (true, Some(max @ 1..=255)) => max as u8,
        (true, _) => return clash("LongNameMax without a value from 1 to 255"),
        (false, None | Some(0)) => 255,
        (false, Some(_)) => return clash("a LongNameMax without its flag"),
    };
    let names = if has("PlaintextNames") {
        if ["EMENames", "DirIV", "LongNames", "Raw64", "LongNameMax"].into_iter().any(has) {
            return clash("PlaintextNames and a flag about encrypted names");
        }
        NameMode::Plain
    } else if has("EMENames") {
        NameMode::Encrypted {
            dir_iv: has("DirIV"),
            long_max: has("LongNames").then_some(long_max),
            raw64: has("Raw64"),
        }
    } else {
        return Err(MountError::unsupported(
            "the volume was made by gocryptfs before 1.0 with names in CBC mode (no EMENames), which no release since reads",
        ));
    };
    Ok(Format { cipher, names, hkdf: has("HKDF") })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_configuration_survives_its_own_file() {
        let key = MasterKey::random().unwrap();
        for cipher in [Cipher::AesGcm, Cipher::AesSiv, Cipher::XChaCha20Poly1305] {
            for names in [
                NameMode::Plain,
                NameMode::Encrypted { dir_iv: false, long_max: None, raw64: false },
                NameMode::Encrypted { dir_iv: true, long_max: Some(100), raw64: true },
            ] {
                let format = Format { cipher, names, hkdf: true };
                let config = Config::new(format, &key, b"pass", 10).unwrap();
                let again = Config::parse(&config.to_json()).unwrap();
                assert_eq!(again.format, format);
                assert_eq!(again.unlock(b"pass").unwrap().unwrap().to_hex(), key.to_hex());
                assert_eq!(again.unlock(b"Pass").unwrap().err(), Some(WrongPassword));
            }
        }
    }

    #[test]
    fn nonsense_is_refused_by_name() {
        let key = MasterKey::random().unwrap();
        let good =
            String::from_utf8(Config::new(Format::default(), &key, b"x", 10).unwrap().to_json()).unwrap();
        for (from, to, word) in [
            ("\"Version\": 2", "\"Version\": 3", "format 3"),
            ("\"N\": 1024", "\"N\": 1025", "scrypt"),
            ("\"N\": 1024", "\"N\": 9223372036854775808", "scrypt"),
            ("\"R\": 8", "\"R\": 18446744073709551615", "scrypt"),
            ("\"HKDF\"", "\"Quantum\"", "Quantum"),
            ("\"HKDF\"", "\"FIDO2\"", "FIDO2"),
            ("\"Raw64\"", "\"PlaintextNames\"", "contradict"),
            ("\"GCMIV128\"", "\"HKDF\"", "GCMIV128"),
            ("\"EMENames\"", "\"HKDF\"", "EMENames"),
            ("\"Raw64\"", "\"LongNameMax\"", "LongNameMax"),
            ("\"KeyLen\": 32", "\"KeyLen\": 31", "length"),
            ("\"EncryptedKey\": \"", "\"EncryptedKey\": \"AAAA", "length"),
            ("\"Salt\": \"", "\"Salt\": \"!", "base64"),
            ("{", "[", "parsed"),
        ] {
            assert!(good.contains(from), "{from} in {good}");
            let message = Config::parse(good.replacen(from, to, 1).as_bytes()).unwrap_err().message;
            assert!(message.contains(word), "{to}: {message}");
        }
    }
}
