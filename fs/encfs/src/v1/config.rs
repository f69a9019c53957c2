//! The configuration of an EncFS volume: `.encfs6.xml` (since 1.4), and `.encfs5` and `.encfs4`, lists of names and values in a binary form.

use std::collections::HashMap;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use quick_xml::Reader;
use quick_xml::events::Event;
use veduta_api::MountError;
use zeroize::Zeroizing;

use super::cipher::{self, Algorithm, CHECKSUM, Key};
use crate::random;

/// The names of the file, newest first.
pub(crate) const NAMES: [&str; 3] = [".encfs6.xml", ".encfs5", ".encfs4"];
/// Rounds of PBKDF2 that are accepted: some minutes.
const MAX_ITERATIONS: u32 = 1 << 28;
const SALT: usize = 20;

/// How names are stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Naming {
    /// As they are.
    Null,
    /// Padded to whole blocks of the cipher.
    Block {
        /// Written with digits and capital letters only.
        base32: bool,
    },
    /// As short as possible.
    Stream,
}

/// Everything about a volume but its key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Format {
    /// The cipher.
    pub algorithm: Algorithm,
    /// Bytes of the key.
    pub key: usize,
    /// Bytes of a block of ciphertext.
    pub block: usize,
    /// Names.
    pub naming: Naming,
    /// Whether each file has a number of its own, in a header.
    pub unique_iv: bool,
    /// Whether the encryption of a name depends on the directories above it.
    pub chained_names: bool,
    /// Whether that of a file does.
    pub external_iv: bool,
    /// Bytes of checksum in each block, up to 8.
    pub mac: usize,
    /// Random bytes in each block.
    pub random: usize,
    /// Whether blocks of zeros are holes.
    pub holes: bool,
    /// The versions of cipher and naming; those of a new volume are always the current ones.
    pub versions: (u32, u32),
}

impl Format {
    /// What encfs calls standard mode.
    pub const STANDARD: Format = Format {
        algorithm: Algorithm::Aes,
        key: 24,
        block: 1024,
        naming: Naming::Block { base32: false },
        unique_iv: true,
        chained_names: true,
        external_iv: false,
        mac: 0,
        random: 0,
        holes: true,
        versions: (3, 4),
    };
    /// What encfs calls paranoia mode.
    pub const PARANOIA: Format = Format { key: 32, external_iv: true, mac: 8, ..Format::STANDARD };

    fn check(self, file: &str) -> Result<Self, MountError> {
        let corrupt = |what: String| Err(MountError::corrupt(format!("{file} is damaged: {what}")));
        let sizes: &[usize] = match self.algorithm {
            Algorithm::Aes => &[16, 24, 32],
            Algorithm::Blowfish => &[16, 20, 24, 28, 32],
        };
        if !sizes.contains(&self.key) {
            return corrupt(format!("a key of {} bits", self.key.saturating_mul(8)));
        }
        if !(64..=4096).contains(&self.block) || self.block % self.algorithm.block() > 0 {
            return corrupt(format!("blocks of {} bytes", self.block));
        }
        if self.mac > 8 || self.random > 255 || self.mac + self.random >= self.block {
            return corrupt(format!(
                "blocks with {} bytes of checksum and {} random ones",
                self.mac, self.random
            ));
        }
        Ok(self)
    }

    /// Bytes of key and vector together.
    pub(crate) fn key_and_iv(self) -> usize {
        self.key + self.algorithm.block()
    }
}

/// A configuration that makes sense.
#[derive(Clone, Debug)]
pub struct Config {
    /// Which file it came from.
    pub(crate) file: &'static str,
    /// Who made the volume.
    pub creator: String,
    /// How.
    pub format: Format,
    wrapped: Vec<u8>,
    /// None in old volumes.
    salt: Vec<u8>,
    iterations: u32,
    duration: u32,
}

/// The key of a volume, and what it consists of. Zeroed when it goes.
pub(crate) struct VolumeKey {
    bytes: Zeroizing<Vec<u8>>,
    pub(crate) key: Key,
}

impl Config {
    /// Reads a file of the name `NAMES[version]`.
    pub(crate) fn parse(file: &'static str, bytes: &[u8]) -> Result<Self, MountError> {
        let values = if file == NAMES[0] { xml(bytes) } else { binary(bytes) };
        let values = values.map_err(|what| MountError::corrupt(format!("{file} is damaged: {what}")))?;
        Values { file, values }.config()
    }

    /// Whether volumes of this age are only read.
    pub(crate) fn is_old(&self) -> bool {
        self.file != NAMES[0]
    }

    fn password_key(&self, password: &[u8]) -> Result<Key, MountError> {
        let Format { algorithm, key, versions, .. } = self.format;
        let bytes = if self.salt.is_empty() {
            cipher::from_old_password(password, key, algorithm.block())
        } else {
            cipher::from_password(password, &self.salt, self.iterations, self.format.key_and_iv())
        };
        Key::new(algorithm, versions.0, &bytes).map_err(|_| self.damaged())
    }

    fn damaged(&self) -> MountError {
        MountError::corrupt(format!("{} is damaged: the key has the wrong length", self.file))
    }

    /// The key of the volume. `None`: the password is wrong.
    pub(crate) fn unlock(&self, password: &[u8]) -> Result<Option<VolumeKey>, MountError> {
        let Some(bytes) = self.password_key(password)?.unwrap(&self.wrapped) else { return Ok(None) };
        let key = Key::new(self.format.algorithm, self.format.versions.0, &bytes);
        Ok(Some(VolumeKey { key: key.map_err(|_| self.damaged())?, bytes }))
    }

    /// Encrypts the key of the volume under another password.
    pub(crate) fn set_password(
        &mut self,
        key: &VolumeKey,
        password: &[u8],
        iterations: u32,
    ) -> Result<(), MountError> {
        self.set_password_of(&key.bytes, password, iterations)
    }

    fn set_password_of(&mut self, key: &[u8], password: &[u8], iterations: u32) -> Result<(), MountError> {
        let mut salt = vec![0; SALT];
        random::secret(&mut salt).map_err(crate::gocryptfs::config::no_random)?;
        self.salt = salt;
        self.iterations = iterations.clamp(1, MAX_ITERATIONS);
        self.wrapped = self.password_key(password)?.wrap(key);
        Ok(())
    }

    /// As many rounds as the volume has.
    pub(crate) fn iterations(&self) -> u32 {
        self.iterations
    }

    /// A new volume.
    pub(crate) fn new(
        format: Format,
        password: &[u8],
        iterations: u32,
        duration: u32,
    ) -> Result<Self, MountError> {
        let mut key = Zeroizing::new(vec![0; format.key_and_iv()]);
        random::secret(&mut key).map_err(crate::gocryptfs::config::no_random)?;
        let mut config = Self {
            file: NAMES[0],
            creator: concat!("veduta ", env!("CARGO_PKG_VERSION")).to_owned(),
            format: format.check(NAMES[0])?,
            wrapped: Vec::new(),
            salt: Vec::new(),
            iterations,
            duration,
        };
        config.set_password_of(&key, password, iterations)?;
        Ok(config)
    }

    /// The file, as encfs 1.9 writes it.
    pub(crate) fn to_xml(&self) -> Vec<u8> {
        let Format {
            algorithm,
            key,
            block,
            naming,
            unique_iv,
            chained_names,
            external_iv,
            mac,
            random,
            holes,
            versions,
        } = self.format;
        let cipher = match algorithm {
            Algorithm::Aes => "ssl/aes",
            Algorithm::Blowfish => "ssl/blowfish",
        };
        let name = match naming {
            Naming::Null => "nameio/null",
            Naming::Block { base32: false } => "nameio/block",
            Naming::Block { base32: true } => "nameio/block32",
            Naming::Stream => "nameio/stream",
        };
        let minor = u8::from(naming == Naming::Stream);
        let creator = quick_xml::escape::escape(&self.creator);
        let (wrapped, salt) = (STANDARD.encode(&self.wrapped), STANDARD.encode(&self.salt));
        let [unique_iv, chained_names, external_iv, holes] =
            [unique_iv, chained_names, external_iv, holes].map(u8::from);
        format!(
            r#"<?xml version="1.0" encoding="UTF-8" standalone="yes" ?>
<!DOCTYPE boost_serialization>
<boost_serialization signature="serialization::archive" version="7">
    <cfg class_id="0" tracking_level="0" version="20">
        <version>20100713</version>
        <creator>{creator}</creator>
        <cipherAlg class_id="1" tracking_level="0" version="0">
            <name>{cipher}</name>
            <major>{}</major>
            <minor>0</minor>
        </cipherAlg>
        <nameAlg>
            <name>{name}</name>
            <major>{}</major>
            <minor>{minor}</minor>
        </nameAlg>
        <keySize>{}</keySize>
        <blockSize>{block}</blockSize>
        <plainData>0</plainData>
        <uniqueIV>{unique_iv}</uniqueIV>
        <chainedNameIV>{chained_names}</chainedNameIV>
        <externalIVChaining>{external_iv}</externalIVChaining>
        <blockMACBytes>{mac}</blockMACBytes>
        <blockMACRandBytes>{random}</blockMACRandBytes>
        <allowHoles>{holes}</allowHoles>
        <encodedKeySize>{}</encodedKeySize>
        <encodedKeyData>
{wrapped}
</encodedKeyData>
        <saltLen>{}</saltLen>
        <saltData>
{salt}
</saltData>
        <kdfIterations>{}</kdfIterations>
        <desiredKDFDuration>{}</desiredKDFDuration>
    </cfg>
</boost_serialization>
"#,
            versions.0,
            versions.1,
            key * 8,
            self.wrapped.len(),
            self.salt.len(),
            self.iterations,
            self.duration,
        )
        .into_bytes()
    }
}

/// The versions that are written now, for a naming.
pub(crate) fn current_versions(naming: Naming) -> (u32, u32) {
    (
        3,
        match naming {
            Naming::Null => 1,
            Naming::Block { .. } => 4,
            Naming::Stream => 2,
        },
    )
}

/// A value: text in XML, bytes in the older forms.
type Map = HashMap<String, Vec<u8>>;

/// What the elements of the XML hold, by their path below `cfg`: `keySize`, `cipherAlg/name`. Its depth is bounded, and so is the number of
/// elements by the size of the file.
fn xml(bytes: &[u8]) -> Result<Map, String> {
    const DEPTH: usize = 16;
    let mut reader = Reader::from_reader(bytes);
    let mut map = Map::new();
    let mut path: Vec<String> = Vec::new();
    let below = |path: &[String]| path.get(2..).filter(|path| !path.is_empty()).map(|path| path.join("/"));
    loop {
        match reader.read_event().map_err(|error| format!("it cannot be parsed ({error})"))? {
            Event::Start(start) => {
                let name = start.name().as_ref().to_owned();
                path.push(name);
                if path.len() > DEPTH {
                    return Err("its elements are nested too deep".into());
                }
                // Early files carry the version as an attribute.
                if path.len() == 2 {
                    if let Ok(Some(version)) = start.try_get_attribute("version") {
                        map.insert("@version".into(), version.value.as_bytes().to_vec());
                    }
                }
            }
            Event::End(_) => {
                path.pop();
            }
            Event::Text(text) => {
                if let Some(key) = below(&path) {
                    map.entry(key).or_default().extend_from_slice(text.as_bytes());
                }
            }
            Event::Eof => return if path.is_empty() { Ok(map) } else { Err("it is cut short".into()) },
            _ => {}
        }
    }
}

/// The older forms: a count, then names and values, each with its length. Numbers have seven bits a byte, the highest first.
fn binary(bytes: &[u8]) -> Result<Map, String> {
    let mut rest = bytes;
    let cut = || "it is cut short".to_owned();
    let count = number(&mut rest).ok_or_else(cut)?;
    let mut map = Map::new();
    // Each turn takes at least two bytes away, or ends with an error.
    for _ in 0..count {
        let key = string(&mut rest).ok_or_else(cut)?;
        let value = string(&mut rest).ok_or_else(cut)?;
        map.insert(String::from_utf8_lossy(key).into_owned(), value.to_vec());
    }
    Ok(map)
}

fn number(rest: &mut &[u8]) -> Option<u32> {
    let mut value = 0_u32;
    for _ in 0..5 {
        let (byte, behind) = rest.split_first()?;
        *rest = behind;
        value = value.checked_mul(128)?.checked_add(u32::from(byte & 0x7f))?;
        if byte & 0x80 == 0 {
            return Some(value);
        }
    }
    None
}

fn string<'a>(rest: &mut &'a [u8]) -> Option<&'a [u8]> {
    let len = number(rest)?;
    let (string, behind) = rest.split_at_checked(len as usize)?;
    *rest = behind;
    Some(string)
}

struct Values {
    file: &'static str,
    values: Map,
}

impl Values {
    fn is_xml(&self) -> bool {
        self.file == NAMES[0]
    }

    fn corrupt(&self, key: &str) -> MountError {
        MountError::corrupt(format!("{} is damaged: {key} makes no sense, or is missing", self.file))
    }

    fn text(&self, key: &str) -> Option<&str> {
        std::str::from_utf8(self.values.get(key)?).ok().map(str::trim)
    }

    fn number(&self, key: &str, default: Option<u32>) -> Result<u32, MountError> {
        let Some(value) = self.values.get(key) else { return default.ok_or_else(|| self.corrupt(key)) };
        let number = if self.is_xml() {
            self.text(key).and_then(|text| text.parse().ok())
        } else if value.is_empty() {
            default
        } else {
            number(&mut value.as_slice())
        };
        number.ok_or_else(|| self.corrupt(key))
    }

    fn flag(&self, key: &str) -> Result<bool, MountError> {
        Ok(self.number(key, Some(0))? != 0)
    }

    /// The name and the version of an algorithm.
    fn interface(&self, key: &str) -> Result<(String, u32), MountError> {
        if self.is_xml() {
            let name = self.text(&format!("{key}/name")).ok_or_else(|| self.corrupt(key))?;
            return Ok((name.to_owned(), self.number(&format!("{key}/major"), None)?));
        }
        let mut rest = self.values.get(key).ok_or_else(|| self.corrupt(key))?.as_slice();
        let name = string(&mut rest).ok_or_else(|| self.corrupt(key))?;
        let version = number(&mut rest).ok_or_else(|| self.corrupt(key))?;
        Ok((String::from_utf8_lossy(name).into_owned(), version))
    }

    fn bytes(&self, key: &str) -> Result<Vec<u8>, MountError> {
        if !self.is_xml() {
            let mut rest = self.values.get(key).ok_or_else(|| self.corrupt(key))?.as_slice();
            return string(&mut rest).map(<[u8]>::to_vec).ok_or_else(|| self.corrupt(key));
        }
        let text: String = self.text(key).unwrap_or_default().split_whitespace().collect();
        STANDARD.decode(text).map_err(|_| self.corrupt(key))
    }

    fn config(&self) -> Result<Config, MountError> {
        let keys = if self.is_xml() {
            ["cipherAlg", "nameAlg", "encodedKeyData", "chainedNameIV", "externalIVChaining"]
        } else {
            ["cipher", "naming", "keyData", "chainedIV", "externalIV"]
        };
        let [cipher, naming, key_data, chained, external] = keys;
        let is_oldest = self.file == NAMES[2];
        if !self.is_xml() && !is_oldest && self.number("subVersion", Some(0))? < 20_040_813 {
            return Err(self.unsupported("the volume was made before 2004-08-13"));
        }
        if self.flag("plainData")? {
            return Err(self.unsupported("the content of its files is not encrypted (plainData)"));
        }
        let (cipher_name, cipher_version) = self.interface(cipher)?;
        let algorithm = match cipher_name.as_str() {
            "ssl/aes" => Algorithm::Aes,
            "ssl/blowfish" => Algorithm::Blowfish,
            other => return Err(self.unsupported(&format!("the cipher {other:?} is not known"))),
        };
        if !(2..=3).contains(&cipher_version) {
            return Err(self.unsupported(&format!("version {cipher_version} of the cipher is not known")));
        }
        let (name, version) =
            if is_oldest { ("nameio/stream".to_owned(), 1) } else { self.interface(naming)? };
        let known = match name.as_str() {
            "nameio/null" => Some(Naming::Null),
            "nameio/block" if (2..=4).contains(&version) => Some(Naming::Block { base32: false }),
            "nameio/block32" if (2..=4).contains(&version) => Some(Naming::Block { base32: true }),
            "nameio/stream" if version <= 2 => Some(Naming::Stream),
            _ => None,
        };
        let naming = known
            .ok_or_else(|| self.unsupported(&format!("names are stored by {name:?}, version {version}")))?;
        let format = Format {
            algorithm,
            key: self.number("keySize", None)? as usize / 8,
            block: self.number("blockSize", None)? as usize,
            naming,
            unique_iv: self.flag("uniqueIV")?,
            chained_names: self.flag(chained)?,
            external_iv: self.flag(external)?,
            mac: self.number("blockMACBytes", Some(0))? as usize,
            random: self.number("blockMACRandBytes", Some(0))? as usize,
            holes: self.flag("allowHoles")?,
            versions: (cipher_version, version),
        }
        .check(self.file)?;
        let wrapped = self.bytes(key_data)?;
        if wrapped.len() != format.key_and_iv() + CHECKSUM {
            return Err(self.corrupt(key_data));
        }
        let (salt, iterations) = if self.has_salt()? {
            (self.bytes("saltData")?, self.number("kdfIterations", None)?)
        } else {
            (Vec::new(), 0)
        };
        if salt.len() > 1024 || (!salt.is_empty() && !(1..=MAX_ITERATIONS).contains(&iterations)) {
            return Err(self.corrupt("kdfIterations"));
        }
        let creator = match (self.is_xml(), self.values.get("creator")) {
            (true, _) => self.text("creator").unwrap_or_default().to_owned(),
            (false, Some(value)) => {
                String::from_utf8_lossy(string(&mut value.as_slice()).unwrap_or_default()).into_owned()
            }
            (false, None) => "EncFS 1.0".to_owned(),
        };
        let duration = self.number("desiredKDFDuration", Some(500))?;
        Ok(Config { file: self.file, creator, format, wrapped, salt, iterations, duration })
    }

    /// Since August 2008.
    fn has_salt(&self) -> Result<bool, MountError> {
        if !self.is_xml() {
            return Ok(false);
        }
        let attribute = self.number("@version", Some(0))?;
        let version = self.number("version", Some(attribute))?;
        Ok(version == 20 || version == 26_800 || version >= 20_080_816)
    }

    fn unsupported(&self, what: &str) -> MountError {
        MountError::unsupported(format!("{}: {what}", self.file))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_configuration_survives_its_own_file() {
        for (algorithm, key, naming) in [
            (Algorithm::Aes, 16, Naming::Null),
            (Algorithm::Aes, 32, Naming::Stream),
            (Algorithm::Blowfish, 20, Naming::Block { base32: true }),
        ] {
            let versions = current_versions(naming);
            let format = Format { algorithm, key, naming, versions, random: 3, mac: 8, ..Format::STANDARD };
            let config = Config::new(format, b"pass", 100, 500).unwrap();
            let again = Config::parse(NAMES[0], &config.to_xml()).unwrap();
            assert_eq!(again.format, format);
            let key = again.unlock(b"pass").unwrap().unwrap();
            assert_eq!(*key.bytes, *config.unlock(b"pass").unwrap().unwrap().bytes);
            assert!(again.unlock(b"Pass").unwrap().is_none());
        }
    }

    #[test]
    fn nonsense_is_refused_by_name() {
        let good = String::from_utf8(Config::new(Format::STANDARD, b"x", 10, 500).unwrap().to_xml()).unwrap();
        for (from, to, word) in [
            ("<keySize>192", "<keySize>190", "key"),
            ("<keySize>192", "<keySize>4294967296", "keySize"),
            ("<blockSize>1024", "<blockSize>1000", "blocks"),
            ("<blockSize>1024", "<blockSize>0", "blocks"),
            ("<blockMACBytes>0", "<blockMACBytes>9", "checksum"),
            ("<plainData>0", "<plainData>1", "plainData"),
            ("ssl/aes", "ssl/camellia", "camellia"),
            ("<major>3", "<major>7", "version 7"),
            ("nameio/block", "nameio/odd", "nameio/odd"),
            ("<kdfIterations>10", "<kdfIterations>0", "kdfIterations"),
            ("</cfg>", "", "parsed"),
            ("encodedKeyData>\n", "encodedKeyData>\nAAAA", "encodedKeyData"),
        ] {
            assert!(good.contains(from), "{from}");
            let message = Config::parse(NAMES[0], good.replacen(from, to, 1).as_bytes()).unwrap_err().message;
            assert!(message.contains(word), "{to}: {message}");
        }
        for bytes in [&b""[..], b"\x81", b"\x05\x01a", b"\xff\xff\xff\xff\xff", b"\x00"] {
            assert!(Config::parse(NAMES[1], bytes).is_err());
            assert!(Config::parse(NAMES[2], bytes).is_err());
        }
    }
}
