//! Keys: the master key, those that are derived from it, and how it is wrapped.

use aes_gcm::AesGcm;
use aes_gcm::aead::array::ArraySize;
use aes_gcm::aead::consts::{U12, U16};
use aes_gcm::aead::{Aead, KeyInit, Payload};
use aes_gcm::aes::Aes256;
use hkdf::Hkdf;
use sha2::{Digest, Sha256, Sha512};
use veduta_api::{Errno, Result};
use zeroize::{Zeroize, ZeroizeOnDrop, Zeroizing};

use crate::random;

/// Bytes of every key but that of SIV.
pub(crate) const KEY: usize = 32;

/// What HKDF mixes in, one for each use.
pub(crate) const NAMES: &str = "EME filename encryption";
pub(crate) const GCM: &str = "AES-GCM file content encryption";
pub(crate) const SIV: &str = "AES-SIV file content encryption";
pub(crate) const XCHACHA: &str = "XChaCha20-Poly1305 file content encryption";

/// The master key. Zeroed when it goes.
#[derive(Clone, Zeroize, ZeroizeOnDrop)]
pub struct MasterKey([u8; KEY]);

impl MasterKey {
    /// A new one.
    pub fn random() -> Result<Self> {
        let mut key = Self([0; KEY]);
        random::secret(&mut key.0)?;
        Ok(key)
    }

    /// From the form that people keep on paper: 64 hexadecimal digits, with dashes and blanks wherever they like.
    pub fn from_hex(text: &[u8]) -> Option<Self> {
        let mut key = Self([0; KEY]);
        let mut digits = 0;
        for byte in text {
            let digit = match byte {
                b'-' | b' ' | b'\t' | b'\n' | b'\r' => continue,
                byte => char::from(*byte).to_digit(16)? as u8,
            };
            let place = key.0.get_mut(digits / 2)?;
            *place = *place << 4 | digit;
            digits += 1;
        }
        (digits == 2 * KEY).then_some(key)
    }

    /// The form that people keep on paper.
    pub fn to_hex(&self) -> Zeroizing<String> {
        let mut text = Zeroizing::new(String::with_capacity(72));
        for (at, byte) in self.0.iter().enumerate() {
            if at > 0 && at % 4 == 0 {
                text.push('-');
            }
            for digit in [byte >> 4, byte & 15] {
                text.push(char::from_digit(digit.into(), 16).unwrap_or('0'));
            }
        }
        text
    }

    pub(crate) fn for_names(&self, hkdf: bool) -> Zeroizing<[u8; KEY]> {
        if hkdf { derive(&self.0, NAMES) } else { Zeroizing::new(self.0) }
    }

    pub(crate) fn for_gcm(&self, hkdf: bool) -> Zeroizing<[u8; KEY]> {
        if hkdf { derive(&self.0, GCM) } else { Zeroizing::new(self.0) }
    }

    pub(crate) fn for_xchacha(&self) -> Zeroizing<[u8; KEY]> {
        derive(&self.0, XCHACHA)
    }

    pub(crate) fn for_siv(&self, hkdf: bool) -> Zeroizing<[u8; 64]> {
        if hkdf { derive(&self.0, SIV) } else { Zeroizing::new(Sha512::digest(self.0).into()) }
    }
}

/// HKDF-SHA256 without salt.
fn derive<const N: usize>(key: &[u8], info: &str) -> Zeroizing<[u8; N]> {
    let mut derived = Zeroizing::new([0; N]);
    Hkdf::<Sha256>::new(None, key)
        .expand(info.as_bytes(), &mut *derived)
        .expect("HKDF gives up to 8160 bytes, and this is less");
    derived
}

/// What is authenticated with the one block that holds the master key: block 0 of no file.
const WRAP_AAD: [u8; 8] = [0; 8];

fn wrapping<N: ArraySize>(hash: &[u8; KEY], hkdf: bool) -> AesGcm<Aes256, N> {
    let key = if hkdf { derive(hash, GCM) } else { Zeroizing::new(*hash) };
    AesGcm::new((&*key).into())
}

/// The master key, encrypted under the hash of a password: nonce, ciphertext, tag.
pub(crate) fn wrap(hash: &[u8; KEY], key: &MasterKey, hkdf: bool) -> Result<Vec<u8>> {
    let payload = Payload { msg: &key.0, aad: &WRAP_AAD };
    let mut nonce = [0; 16];
    let nonce = &mut nonce[..if hkdf { 16 } else { 12 }];
    random::secret(nonce)?;
    let sealed = if hkdf {
        wrapping::<U16>(hash, hkdf).encrypt((&*nonce).try_into().map_err(|_| Errno::EINVAL)?, payload)
    } else {
        wrapping::<U12>(hash, hkdf).encrypt((&*nonce).try_into().map_err(|_| Errno::EINVAL)?, payload)
    };
    let mut wrapped = nonce.to_vec();
    wrapped.extend(sealed.map_err(|_| Errno::EIO)?);
    Ok(wrapped)
}

/// The master key; `None` if it was encrypted under another hash.
pub(crate) fn unwrap(hash: &[u8; KEY], wrapped: &[u8], hkdf: bool) -> Option<MasterKey> {
    let (nonce, msg) = wrapped.split_at_checked(if hkdf { 16 } else { 12 })?;
    let payload = Payload { msg, aad: &WRAP_AAD };
    let opened = if hkdf {
        wrapping::<U16>(hash, hkdf).decrypt(nonce.try_into().ok()?, payload)
    } else {
        wrapping::<U12>(hash, hkdf).decrypt(nonce.try_into().ok()?, payload)
    };
    let key = Zeroizing::new(opened.ok()?);
    Some(MasterKey(key.as_slice().try_into().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_form_on_paper_is_read_as_it_is_written() {
        let key = MasterKey::random().unwrap();
        let text = key.to_hex();
        assert_eq!(text.len(), 71);
        assert_eq!(MasterKey::from_hex(text.as_bytes()).unwrap().0, key.0);
        assert_eq!(MasterKey::from_hex(text.to_uppercase().replace('-', " ").as_bytes()).unwrap().0, key.0);
        for wrong in ["", "00", &text[1..], &format!("{}0", &*text), &text.replace('-', "x")] {
            assert!(MasterKey::from_hex(wrong.as_bytes()).is_none());
        }
    }

    #[test]
    fn a_wrapped_key_opens_with_its_hash_only() {
        let key = MasterKey::random().unwrap();
        for hkdf in [true, false] {
            let wrapped = wrap(&[1; KEY], &key, hkdf).unwrap();
            assert_eq!(unwrap(&[1; KEY], &wrapped, hkdf).unwrap().0, key.0);
            assert!(unwrap(&[2; KEY], &wrapped, hkdf).is_none());
            assert!(unwrap(&[1; KEY], &wrapped[1..], hkdf).is_none());
        }
    }
}
