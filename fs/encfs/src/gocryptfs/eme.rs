//! EME, a wide-block mode: every bit of the output depends on every bit of the input. Halevi and Rogaway, "A Parallelizable
//! Enciphering Mode", 2003; on AES-256, with a tweak of one block.

use aes::Aes256;
use aes::cipher::{Array, BlockCipherDecrypt, BlockCipherEncrypt, KeyInit, consts::U16};

type Block = Array<u8, U16>;

/// Bytes of a block, of the tweak, and what lengths are multiples of.
pub(crate) const BLOCK: usize = 16;
/// Blocks; the mode is not secure beyond.
const MAX_BLOCKS: usize = 128;

/// A key.
pub(crate) struct Eme {
    aes: Aes256,
    /// The first mask: the encryption of zeros, doubled.
    mask: Block,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Direction {
    Encrypt,
    Decrypt,
}

impl Eme {
    pub(crate) fn new(key: &[u8; 32]) -> Self {
        let aes = Aes256::new(key.into());
        let mut mask = Block::default();
        aes.encrypt_block(&mut mask);
        Self { aes, mask: double(&mask) }
    }

    /// Encrypts in place. `None` for a length that is not 1 to 128 blocks.
    #[must_use]
    pub(crate) fn encrypt(&self, tweak: &[u8; BLOCK], data: &mut [u8]) -> Option<()> {
        self.transform(tweak, data, Direction::Encrypt)
    }

    /// As [`encrypt`](Self::encrypt), backwards.
    #[must_use]
    pub(crate) fn decrypt(&self, tweak: &[u8; BLOCK], data: &mut [u8]) -> Option<()> {
        self.transform(tweak, data, Direction::Decrypt)
    }

    fn transform(&self, tweak: &[u8; BLOCK], data: &mut [u8], direction: Direction) -> Option<()> {
        if data.is_empty() || data.len() % BLOCK > 0 || data.len() > MAX_BLOCKS * BLOCK {
            return None;
        }
        let mut blocks: Vec<Block> =
            data.chunks_exact(BLOCK).map(|block| Block::try_from(block).unwrap_or_default()).collect();
        self.masked_pass(&mut blocks, direction, Pass::First);
        let mut sum = Block::from(*tweak);
        blocks.iter().for_each(|block| xor(&mut sum, block));
        let mut mixed = sum;
        self.cipher(std::slice::from_mut(&mut mixed), direction);
        let mut mask = sum;
        xor(&mut mask, &mixed);
        let mut first = Block::from(*tweak);
        xor(&mut first, &mixed);
        for block in &mut blocks[1..] {
            mask = double(&mask);
            xor(block, &mask);
            xor(&mut first, block);
        }
        blocks[0] = first;
        self.masked_pass(&mut blocks, direction, Pass::Second);
        data.chunks_exact_mut(BLOCK).zip(&blocks).for_each(|(out, block)| out.copy_from_slice(block));
        Some(())
    }

    /// One pass of the block cipher, with the masks before it or behind it.
    fn masked_pass(&self, blocks: &mut [Block], direction: Direction, pass: Pass) {
        if pass == Pass::First {
            self.mask(blocks);
        }
        self.cipher(blocks, direction);
        if pass == Pass::Second {
            self.mask(blocks);
        }
    }

    fn mask(&self, blocks: &mut [Block]) {
        let mut mask = self.mask;
        for block in blocks {
            xor(block, &mask);
            mask = double(&mask);
        }
    }

    fn cipher(&self, blocks: &mut [Block], direction: Direction) {
        match direction {
            Direction::Encrypt => self.aes.encrypt_blocks(blocks),
            Direction::Decrypt => self.aes.decrypt_blocks(blocks),
        }
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Pass {
    First,
    Second,
}

fn xor(into: &mut Block, other: &Block) {
    into.iter_mut().zip(other).for_each(|(into, other)| *into ^= other);
}

/// Multiplication by two in GF(2^128), of little-endian numbers.
fn double(block: &Block) -> Block {
    let number = u128::from_le_bytes((*block).into());
    let carry = if number >> 127 > 0 { 0x87 } else { 0 };
    Block::from(((number << 1) ^ carry).to_le_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn decryption_is_the_inverse_for_every_length() {
        let eme = Eme::new(&[7; 32]);
        for blocks in [1, 2, 3, 16, 128] {
            let plain: Vec<u8> = (0..blocks * BLOCK).map(|at| (at * 31) as u8).collect();
            let mut data = plain.clone();
            eme.encrypt(&[9; BLOCK], &mut data).unwrap();
            assert_ne!(data, plain);
            eme.decrypt(&[9; BLOCK], &mut data).unwrap();
            assert_eq!(data, plain);
        }
        assert!(eme.encrypt(&[9; BLOCK], &mut [0; 17]).is_none());
        assert!(eme.encrypt(&[9; BLOCK], &mut []).is_none());
        assert!(eme.encrypt(&[9; BLOCK], &mut [0; 129 * BLOCK]).is_none());
    }

    #[test]
    fn one_bit_changes_everything() {
        let eme = Eme::new(&[0; 32]);
        let (mut one, mut other) = ([0; 512], [0; 512]);
        other[511] = 1;
        eme.encrypt(&[0; BLOCK], &mut one).unwrap();
        eme.encrypt(&[0; BLOCK], &mut other).unwrap();
        assert!(one.chunks(BLOCK).zip(other.chunks(BLOCK)).all(|(one, other)| one != other));
    }
}
