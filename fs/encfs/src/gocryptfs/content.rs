//! Content: an 18-byte header (the version, 16 random bytes that are the file's identity), then blocks of nonce, ciphertext and tag
//! (with SIV: nonce, tag, ciphertext). What is authenticated beside is the number of the block and the identity, so no block can be
//! moved within a file or to another.

use aes_gcm::AesGcm;
use aes_gcm::aead::consts::{U16, U24};
use aes_gcm::aead::inout::InOutBuf;
use aes_gcm::aead::{AeadInOut, KeyInit};
use aes_gcm::aes::Aes256;
use aes_siv::siv::Aes256Siv;
use chacha20poly1305::XChaCha20Poly1305;
use veduta_api::{Errno, Result};
use zeroize::Zeroizing;

use super::config::{Cipher, Format};
use super::keys::MasterKey;
use crate::content::{Codec, Corrupt, FileId, Layout};
use crate::random;

/// Bytes of plaintext in a block.
pub(crate) const BLOCK: usize = 4096;
const VERSION: [u8; 2] = [0, 2];
const HEADER: usize = 18;
const TAG: usize = 16;
/// Bytes; the largest nonce.
const MAX_NONCE: usize = 24;

enum Key {
    Gcm(Box<AesGcm<Aes256, U16>>),
    /// The cipher's own object is for one message, so it is made of the key each time.
    Siv(Zeroizing<[u8; 64]>),
    XChaCha(Box<XChaCha20Poly1305>),
}

/// The cipher of a volume, with its key.
pub(crate) struct Content {
    key: Key,
}

/// What is authenticated beside: the number, and the identity of the file. The content of symbolic links and extended attributes has none.
fn beside(number: u64, id: Option<&FileId>) -> ([u8; 24], usize) {
    let mut aad = [0; 24];
    aad[..8].copy_from_slice(&number.to_be_bytes());
    if let Some(FileId(id)) = id {
        aad[8..].copy_from_slice(id);
    }
    (aad, if id.is_some() { 24 } else { 8 })
}

impl Content {
    pub(crate) fn new(format: &Format, key: &MasterKey) -> Self {
        let key = match format.cipher {
            Cipher::AesGcm => Key::Gcm(Box::new(AesGcm::new((&*key.for_gcm(format.hkdf)).into()))),
            Cipher::AesSiv => Key::Siv(key.for_siv(format.hkdf)),
            Cipher::XChaCha20Poly1305 => {
                Key::XChaCha(Box::new(XChaCha20Poly1305::new((&*key.for_xchacha()).into())))
            }
        };
        Self { key }
    }

    fn nonce_len(&self) -> usize {
        if matches!(self.key, Key::XChaCha(_)) { 24 } else { 16 }
    }

    /// By how much ciphertext is longer.
    pub(crate) fn overhead(&self) -> usize {
        self.nonce_len() + TAG
    }

    /// Encrypts with a nonce that the caller has chosen. `out` is longer than `plain` by the overhead.
    pub(crate) fn seal_with(
        &self,
        nonce: &[u8],
        number: u64,
        id: Option<&FileId>,
        plain: &[u8],
        out: &mut [u8],
    ) -> Result<()> {
        let (aad, len) = beside(number, id);
        let aad = &aad[..len];
        let wrong = |_| Errno::EIO;
        let (place, rest) = out.split_at_mut_checked(self.nonce_len()).ok_or(Errno::EINVAL)?;
        place.copy_from_slice(nonce);
        match &self.key {
            Key::Gcm(gcm) => {
                let (cipher, tag) = rest.split_at_mut_checked(plain.len()).ok_or(Errno::EINVAL)?;
                let buffer = InOutBuf::new(plain, cipher).map_err(|_| Errno::EINVAL)?;
                let nonce: &aes_gcm::Nonce<U16> = nonce.try_into().map_err(|_| Errno::EINVAL)?;
                tag.copy_from_slice(&gcm.encrypt_inout_detached(nonce, aad, buffer).map_err(wrong)?);
            }
            Key::XChaCha(chacha) => {
                let (cipher, tag) = rest.split_at_mut_checked(plain.len()).ok_or(Errno::EINVAL)?;
                let buffer = InOutBuf::new(plain, cipher).map_err(|_| Errno::EINVAL)?;
                let nonce: &aes_gcm::Nonce<U24> = nonce.try_into().map_err(|_| Errno::EINVAL)?;
                tag.copy_from_slice(&chacha.encrypt_inout_detached(nonce, aad, buffer).map_err(wrong)?);
            }
            Key::Siv(siv) => {
                let (tag, cipher) = rest.split_at_mut_checked(TAG).ok_or(Errno::EINVAL)?;
                let buffer = InOutBuf::new(plain, cipher).map_err(|_| Errno::EINVAL)?;
                let mut siv = Aes256Siv::new((&**siv).into());
                tag.copy_from_slice(
                    &siv.encrypt_inout_detached([aad, nonce], buffer).map_err(|_| Errno::EIO)?,
                );
            }
        }
        Ok(())
    }

    /// Encrypts with a random nonce.
    pub(crate) fn seal_block(
        &self,
        number: u64,
        id: Option<&FileId>,
        plain: &[u8],
        out: &mut [u8],
    ) -> Result<()> {
        let mut nonce = [0; MAX_NONCE];
        let nonce = &mut nonce[..self.nonce_len()];
        random::nonce(nonce)?;
        self.seal_with(nonce, number, id, plain, out)
    }

    /// Decrypts. `out` is shorter than `cipher` by the overhead.
    pub(crate) fn open_block(
        &self,
        number: u64,
        id: Option<&FileId>,
        cipher: &[u8],
        out: &mut [u8],
    ) -> Result<(), Corrupt> {
        let (aad, len) = beside(number, id);
        let aad = &aad[..len];
        let (nonce, rest) = cipher.split_at_checked(self.nonce_len()).ok_or(Corrupt)?;
        if nonce.iter().all(|byte| *byte == 0) {
            return Err(Corrupt);
        }
        match &self.key {
            Key::Gcm(gcm) => {
                let (cipher, tag) = rest.split_at_checked(out.len()).ok_or(Corrupt)?;
                let buffer = InOutBuf::new(cipher, out).map_err(|_| Corrupt)?;
                let nonce: &aes_gcm::Nonce<U16> = nonce.try_into().map_err(|_| Corrupt)?;
                let tag = tag.try_into().map_err(|_| Corrupt)?;
                gcm.decrypt_inout_detached(nonce, aad, buffer, tag).map_err(|_| Corrupt)
            }
            Key::XChaCha(chacha) => {
                let (cipher, tag) = rest.split_at_checked(out.len()).ok_or(Corrupt)?;
                let buffer = InOutBuf::new(cipher, out).map_err(|_| Corrupt)?;
                let nonce: &aes_gcm::Nonce<U24> = nonce.try_into().map_err(|_| Corrupt)?;
                let tag = tag.try_into().map_err(|_| Corrupt)?;
                chacha.decrypt_inout_detached(nonce, aad, buffer, tag).map_err(|_| Corrupt)
            }
            Key::Siv(siv) => {
                let (tag, cipher) = rest.split_at_checked(TAG).ok_or(Corrupt)?;
                let buffer = InOutBuf::new(cipher, out).map_err(|_| Corrupt)?;
                let tag = tag.try_into().map_err(|_| Corrupt)?;
                Aes256Siv::new((&**siv).into())
                    .decrypt_inout_detached([aad, nonce], buffer, tag)
                    .map_err(|_| Corrupt)
            }
        }
    }

    /// The content of a symbolic link or an extended attribute, encrypted. What is empty stays so.
    pub(crate) fn seal_small(&self, plain: &[u8]) -> Result<Vec<u8>> {
        if plain.is_empty() {
            return Ok(Vec::new());
        }
        let mut out = vec![0; plain.len() + self.overhead()];
        self.seal_block(0, None, plain, &mut out)?;
        Ok(out)
    }

    /// As [`seal_small`](Self::seal_small), backwards.
    pub(crate) fn open_small(&self, cipher: &[u8]) -> Result<Vec<u8>, Corrupt> {
        if cipher.is_empty() {
            return Ok(Vec::new());
        }
        let mut out = vec![0; cipher.len().checked_sub(self.overhead()).ok_or(Corrupt)?];
        self.open_block(0, None, cipher, &mut out)?;
        Ok(out)
    }
}

/// The header of a file with this identity.
pub(crate) fn header(id: &FileId) -> [u8; HEADER] {
    let mut header = [0; HEADER];
    header[..2].copy_from_slice(&VERSION);
    header[2..].copy_from_slice(&id.0);
    header
}

impl Codec for Content {
    fn layout(&self) -> Layout {
        Layout { header: HEADER as u64, block: BLOCK as u64, overhead: self.overhead() as u64, holes: true }
    }

    fn make_header(&self, _external: u64) -> Result<(Vec<u8>, FileId)> {
        let mut id = FileId::default();
        random::nonce(&mut id.0)?;
        Ok((header(&id).to_vec(), id))
    }

    fn open_header(&self, header: &[u8], _external: u64) -> Result<FileId, Corrupt> {
        let (version, id) = header.split_at_checked(2).ok_or(Corrupt)?;
        let id: [u8; 16] = id.try_into().map_err(|_| Corrupt)?;
        if version == VERSION && id != [0; 16] { Ok(FileId(id)) } else { Err(Corrupt) }
    }

    fn seal(&self, number: u64, id: &FileId, plain: &[u8], out: &mut [u8]) -> Result<()> {
        self.seal_block(number, Some(id), plain, out)
    }

    fn open(&self, number: u64, id: &FileId, cipher: &[u8], out: &mut [u8]) -> Result<(), Corrupt> {
        self.open_block(number, Some(id), cipher, out)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_block_opens_at_its_place_only() {
        let key = MasterKey::random().unwrap();
        for cipher in [Cipher::AesGcm, Cipher::AesSiv, Cipher::XChaCha20Poly1305] {
            let content = Content::new(&Format { cipher, ..Format::default() }, &key);
            let id = FileId([3; 16]);
            for len in [1, 15, 16, 17, 4095, 4096] {
                let plain: Vec<u8> = (0..len).map(|at| at as u8).collect();
                let mut sealed = vec![0; len + content.overhead()];
                content.seal(5, &id, &plain, &mut sealed).unwrap();
                let mut out = vec![0; len];
                assert_eq!(content.open(5, &id, &sealed, &mut out), Ok(()));
                assert_eq!(out, plain);
                assert_eq!(content.open(6, &id, &sealed, &mut out), Err(Corrupt));
                assert_eq!(content.open(5, &FileId([4; 16]), &sealed, &mut out), Err(Corrupt));
                sealed[len / 2] ^= 1;
                assert_eq!(content.open(5, &id, &sealed, &mut out), Err(Corrupt));
            }
        }
    }
}
