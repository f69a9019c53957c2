//! The ciphers of EncFS 1.x, under one key: whole blocks in CBC mode, everything shorter in a mode of its own made of two passes of CFB,
//! checksums by HMAC-SHA1 folded to 64, 32 or 16 bits.

use aes::cipher::{Array, BlockCipherDecrypt, BlockCipherEncrypt, KeyInit, consts::U8, consts::U16};
use aes::{Aes128, Aes192, Aes256};
use blowfish::Blowfish;
use hmac::{Hmac, Mac};
use sha1::{Digest, Sha1};
use zeroize::{Zeroize, Zeroizing};

/// Bytes; the largest key and initialisation vector together.
pub(crate) const MAX_KEY: usize = 32 + 16;
/// What stands before an encrypted key.
pub(crate) const CHECKSUM: usize = 4;

/// Which cipher.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Algorithm {
    /// AES.
    Aes,
    /// Blowfish.
    Blowfish,
}

impl Algorithm {
    /// Bytes of a block, and of an initialisation vector.
    pub(crate) fn block(self) -> usize {
        match self {
            Algorithm::Aes => 16,
            Algorithm::Blowfish => 8,
        }
    }
}

enum Block {
    Aes128(Box<Aes128>),
    Aes192(Box<Aes192>),
    Aes256(Box<Aes256>),
    Blowfish(Box<Blowfish>),
}

/// A key, ready for use.
pub(crate) struct Key {
    block: Block,
    size: usize,
    /// The part of the key that initialisation vectors are made from.
    iv: Zeroizing<Vec<u8>>,
    mac: Hmac<Sha1>,
    /// Of the cipher's interface: below 3, vectors are made without HMAC.
    version: u32,
}

/// A key is of a length that the cipher does not take.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct BadKey;

impl Key {
    /// From the bytes of the key and the vector, one behind the other.
    pub(crate) fn new(algorithm: Algorithm, version: u32, bytes: &[u8]) -> Result<Self, BadKey> {
        let size = algorithm.block();
        let (key, iv) =
            bytes.len().checked_sub(size).and_then(|at| bytes.split_at_checked(at)).ok_or(BadKey)?;
        let block = match (algorithm, key.len()) {
            (Algorithm::Aes, 16) => Block::Aes128(Box::new(Aes128::new_from_slice(key).map_err(|_| BadKey)?)),
            (Algorithm::Aes, 24) => Block::Aes192(Box::new(Aes192::new_from_slice(key).map_err(|_| BadKey)?)),
            (Algorithm::Aes, 32) => Block::Aes256(Box::new(Aes256::new_from_slice(key).map_err(|_| BadKey)?)),
            (Algorithm::Blowfish, 16..=32) => {
                Block::Blowfish(Box::new(Blowfish::new_from_slice(key).map_err(|_| BadKey)?))
            }
            _ => return Err(BadKey),
        };
        let mac = Hmac::new_from_slice(key).map_err(|_| BadKey)?;
        Ok(Self { block, size, iv: Zeroizing::new(iv.to_vec()), mac, version })
    }

    /// Bytes of a cipher's block.
    pub(crate) fn block_size(&self) -> usize {
        self.size
    }

    fn encrypt_block(&self, block: &mut [u8]) {
        match &self.block {
            Block::Aes128(aes) => with_block(block, |block| aes.encrypt_block(block)),
            Block::Aes192(aes) => with_block(block, |block| aes.encrypt_block(block)),
            Block::Aes256(aes) => with_block(block, |block| aes.encrypt_block(block)),
            Block::Blowfish(blowfish) => {
                let (blocks, _) = Array::<u8, U8>::slice_as_chunks_mut(block);
                blowfish.encrypt_blocks(blocks);
            }
        }
    }

    fn decrypt_blocks(&self, data: &mut [u8]) {
        let aes = |data| Array::<u8, U16>::slice_as_chunks_mut(data).0;
        match &self.block {
            Block::Aes128(cipher) => cipher.decrypt_blocks(aes(data)),
            Block::Aes192(cipher) => cipher.decrypt_blocks(aes(data)),
            Block::Aes256(cipher) => cipher.decrypt_blocks(aes(data)),
            Block::Blowfish(cipher) => cipher.decrypt_blocks(Array::<u8, U8>::slice_as_chunks_mut(data).0),
        }
    }

    /// The vector for a number.
    fn vector(&self, seed: u64) -> [u8; 16] {
        let mut vector = [0; 16];
        vector[..self.size].copy_from_slice(&self.iv);
        if self.version < 3 {
            old_vector(&mut vector[..self.size], seed as u32);
            return vector;
        }
        let mut mac = self.mac.clone();
        mac.update(&self.iv);
        mac.update(&seed.to_le_bytes());
        let digest = mac.finalize().into_bytes();
        vector[..self.size].copy_from_slice(&digest[..self.size]);
        vector
    }

    /// CBC, in place. The length is a multiple of the cipher's block.
    pub(crate) fn encrypt_whole(&self, data: &mut [u8], seed: u64) {
        let mut last = self.vector(seed);
        for block in data.chunks_exact_mut(self.size) {
            block.iter_mut().zip(&last).for_each(|(byte, last)| *byte ^= last);
            self.encrypt_block(block);
            last[..self.size].copy_from_slice(block);
        }
    }

    /// As [`encrypt_whole`](Self::encrypt_whole), backwards.
    pub(crate) fn decrypt_whole(&self, data: &mut [u8], seed: u64) {
        let mut last = self.vector(seed);
        // So many blocks at a time as the processor works on at once.
        const AT_ONCE: usize = 16 * 16;
        let mut cipher = [0; AT_ONCE];
        for part in data.chunks_mut(AT_ONCE) {
            let cipher = &mut cipher[..part.len()];
            cipher.copy_from_slice(part);
            self.decrypt_blocks(part);
            for (block, before) in part
                .chunks_exact_mut(self.size)
                .zip(std::iter::once(&last[..self.size]).chain(cipher.chunks_exact(self.size)))
            {
                block.iter_mut().zip(before).for_each(|(byte, before)| *byte ^= before);
            }
            if let Some(end) = cipher.len().checked_sub(self.size) {
                last[..self.size].copy_from_slice(&cipher[end..]);
            }
        }
    }

    fn cfb(&self, data: &mut [u8], seed: u64, encrypt: bool) {
        let mut stream = self.vector(seed);
        for part in data.chunks_mut(self.size) {
            self.encrypt_block(&mut stream[..self.size]);
            for (byte, stream) in part.iter_mut().zip(&mut stream) {
                let cipher = if encrypt { *byte ^ *stream } else { *byte };
                *byte ^= *stream;
                *stream = cipher;
            }
        }
    }

    /// For what is no multiple of a block, in place: two passes, so that each byte depends on all.
    pub(crate) fn encrypt_stream(&self, data: &mut [u8], seed: u64) {
        shuffle(data);
        self.cfb(data, seed, true);
        flip(data);
        shuffle(data);
        self.cfb(data, seed.wrapping_add(1), true);
    }

    /// As [`encrypt_stream`](Self::encrypt_stream), backwards.
    pub(crate) fn decrypt_stream(&self, data: &mut [u8], seed: u64) {
        self.cfb(data, seed.wrapping_add(1), false);
        unshuffle(data);
        flip(data);
        self.cfb(data, seed, false);
        unshuffle(data);
    }

    /// The checksum of `data`, and of what stands for the path before it, where paths count.
    pub(crate) fn mac64(&self, data: &[u8], chained: Option<u64>) -> u64 {
        let mut mac = self.mac.clone();
        mac.update(data);
        if let Some(chained) = chained {
            mac.update(&chained.to_le_bytes());
        }
        let digest = mac.finalize().into_bytes();
        let mut folded = [0; 8];
        // The last byte is left out: so it has always been.
        digest.iter().take(19).enumerate().for_each(|(at, byte)| folded[at % 8] ^= byte);
        u64::from_be_bytes(folded)
    }

    /// A key that was encrypted under this one. `None`: under another.
    pub(crate) fn unwrap(&self, wrapped: &[u8]) -> Option<Zeroizing<Vec<u8>>> {
        let (checksum, key) = wrapped.split_first_chunk::<CHECKSUM>()?;
        let checksum = u32::from_be_bytes(*checksum);
        let mut key = Zeroizing::new(key.to_vec());
        self.decrypt_stream(&mut key, checksum.into());
        (fold32(self.mac64(&key, None)) == checksum).then_some(key)
    }

    /// Encrypts a key under this one.
    pub(crate) fn wrap(&self, key: &[u8]) -> Vec<u8> {
        let checksum = fold32(self.mac64(key, None));
        let mut wrapped = checksum.to_be_bytes().to_vec();
        wrapped.extend_from_slice(key);
        self.encrypt_stream(&mut wrapped[CHECKSUM..], checksum.into());
        wrapped
    }
}

fn with_block(block: &mut [u8], work: impl FnOnce(&mut Array<u8, U16>)) {
    if let Some(block) = Array::<u8, U16>::slice_as_chunks_mut(block).0.first_mut() {
        work(block);
    }
}

/// 64 bits folded to 32.
pub(crate) fn fold32(mac: u64) -> u32 {
    (mac >> 32) as u32 ^ mac as u32
}

/// 64 bits folded to 16.
pub(crate) fn fold16(mac: u64) -> u16 {
    let mac = fold32(mac);
    (mac >> 16) as u16 ^ mac as u16
}

/// Vectors of volumes before EncFS 1.3.
fn old_vector(vector: &mut [u8], seed: u32) {
    let one = 0x060a_4011_u32.wrapping_mul(seed).to_be_bytes();
    let two = 0x0221_040d_u32.wrapping_mul(seed ^ 0xd3fe_a11c).to_be_bytes();
    let mix = [
        one[0], two[1], one[2], two[3], two[0], one[1], two[2], one[3], // the first eight
        one[3], two[2], one[1], two[0], one[0], two[1], one[2], two[3],
    ];
    vector.iter_mut().zip(mix).for_each(|(byte, mix)| *byte ^= mix);
}

fn shuffle(data: &mut [u8]) {
    for at in 1..data.len() {
        data[at] ^= data[at - 1];
    }
}

fn unshuffle(data: &mut [u8]) {
    for at in (1..data.len()).rev() {
        data[at] ^= data[at - 1];
    }
}

fn flip(data: &mut [u8]) {
    data.chunks_mut(64).for_each(<[u8]>::reverse);
}

/// A key from a password, as volumes with a salt have it.
pub(crate) fn from_password(password: &[u8], salt: &[u8], iterations: u32, len: usize) -> Zeroizing<Vec<u8>> {
    let mut key = Zeroizing::new(vec![0; len]);
    pbkdf2::pbkdf2_hmac::<Sha1>(password, salt, iterations, &mut key);
    key
}

/// A key from a password, as older volumes have it: SHA-1 sixteen times over, again with the result in front until there is enough.
pub(crate) fn from_old_password(password: &[u8], key_len: usize, iv_len: usize) -> Zeroizing<Vec<u8>> {
    let mut all = Zeroizing::new(Vec::with_capacity(MAX_KEY + 40));
    let mut digest: Option<[u8; 20]> = None;
    while all.len() < key_len + iv_len {
        let mut hash = Sha1::new();
        if let Some(before) = &digest {
            hash.update(before);
        }
        hash.update(password);
        let mut next: [u8; 20] = hash.finalize().into();
        for _ in 1..16 {
            next = Sha1::digest(next).into();
        }
        all.extend_from_slice(&next);
        digest = Some(next);
    }
    digest.zeroize();
    all.truncate(key_len + iv_len);
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_modes_have_their_inverse() {
        for (algorithm, len) in [
            (Algorithm::Aes, 32),
            (Algorithm::Aes, 40),
            (Algorithm::Aes, 48),
            (Algorithm::Blowfish, 24),
            (Algorithm::Blowfish, 28),
        ] {
            for version in [2, 3] {
                let bytes: Vec<u8> = (0..len).map(|at| at as u8 * 3 + 1).collect();
                let key = Key::new(algorithm, version, &bytes).unwrap();
                for len in (1..200).chain([1024]) {
                    let plain: Vec<u8> = (0..len).map(|at| at as u8).collect();
                    let mut data = plain.clone();
                    key.encrypt_stream(&mut data, 77);
                    key.decrypt_stream(&mut data, 77);
                    assert_eq!(data, plain);
                    if len % 16 == 0 {
                        key.encrypt_whole(&mut data, 77);
                        assert_ne!(data, plain);
                        key.decrypt_whole(&mut data, 77);
                        assert_eq!(data, plain);
                    }
                }
                let wrapped = key.wrap(b"some key");
                assert_eq!(key.unwrap(&wrapped).unwrap().as_slice(), b"some key");
                assert!(key.unwrap(&wrapped[..8]).is_none());
            }
        }
        assert_eq!(Key::new(Algorithm::Aes, 3, &[0; 33]).err(), Some(BadKey));
        assert_eq!(Key::new(Algorithm::Blowfish, 3, &[0; 7]).err(), Some(BadKey));
    }
}
