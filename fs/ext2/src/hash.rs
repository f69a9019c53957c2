//! The hashes that directory indexes are sorted by.
//!
//! Three functions, and each in two variants, since compilers did not agree on whether a character has a
//! sign. The lowest bit of a hash is always 0: an index sets it where names with one hash go on in the next
//! block.

/// Which function, as in dx_root_info.hash_version.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Function {
    Legacy,
    HalfMd4,
    Tea,
}

/// A hash function of one volume and directory.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Hash {
    function: Function,
    unsigned: bool,
    seed: [u32; 4],
}

/// What half MD4 starts from if the volume has no seed: MD4's own.
const INITIAL: [u32; 4] = [0x6745_2301, 0xefcd_ab89, 0x98ba_dcfe, 0x1032_5476];
/// The end of a directory, which no name may hash to.
const END: u32 = 0xffff_fffe;

impl Hash {
    /// By the number in a directory's index; `None` for one that is not known. Numbers 0 to 2 mean the
    /// variant that the volume uses, 3 to 5 are unsigned.
    pub(crate) fn new(version: u8, unsigned: bool, seed: Option<[u32; 4]>) -> Option<Self> {
        let function = match version % 3 {
            _ if version > 5 => return None,
            0 => Function::Legacy,
            1 => Function::HalfMd4,
            _ => Function::Tea,
        };
        Some(Self { function, unsigned: unsigned || version > 2, seed: seed.unwrap_or(INITIAL) })
    }

    /// The hash of a name.
    pub(crate) fn of(&self, name: &[u8]) -> u32 {
        let hash = match self.function {
            Function::Legacy => self.legacy(name),
            Function::HalfMd4 => {
                let words = |state, part: &[u8]| half_md4(state, self.words::<8>(part));
                name.chunks(32).fold(self.seed, words)[1]
            }
            Function::Tea => {
                let words = |state, part: &[u8]| tea(state, self.words::<4>(part));
                name.chunks(16).fold(self.seed, words)[0]
            }
        };
        match hash & !1 {
            END => END - 2,
            hash => hash,
        }
    }

    fn character(&self, byte: u8) -> u32 {
        if self.unsigned { byte.into() } else { byte as i8 as u32 }
    }

    fn legacy(&self, name: &[u8]) -> u32 {
        let (mut hash, mut before) = (0x12a3_fe2d_u32, 0x37ab_e8f9_u32);
        for byte in name {
            let mixed = before.wrapping_add(hash ^ self.character(*byte).wrapping_mul(7_152_373));
            before = hash;
            hash = if mixed >> 31 == 1 { mixed.wrapping_sub(0x7fff_ffff) } else { mixed };
        }
        hash << 1
    }

    /// Four characters a word, the first highest; what is left over is filled with the length.
    fn words<const N: usize>(&self, part: &[u8]) -> [u32; N] {
        // The length of all that is left would stand here in the kernel; its low byte is what counts for a
        // last part, and a full part has no filling.
        let pad = (part.len() as u32).wrapping_mul(0x0101_0101);
        let mut words = [pad; N];
        for (word, characters) in words.iter_mut().zip(part.chunks(4)) {
            *word = characters.iter().fold(pad, |word, byte| (word << 8).wrapping_add(self.character(*byte)));
        }
        words
    }
}

/// One round function of MD4 less than MD4.
fn half_md4(state: [u32; 4], words: [u32; 8]) -> [u32; 4] {
    type Mix = fn(u32, u32, u32) -> u32;
    const ROUNDS: [(Mix, u32, [usize; 8], [u32; 4]); 3] = [
        (|x, y, z| z ^ (x & (y ^ z)), 0, [0, 1, 2, 3, 4, 5, 6, 7], [3, 7, 11, 19]),
        (|x, y, z| (x & y).wrapping_add((x ^ y) & z), 0x5a82_7999, [1, 3, 5, 7, 0, 2, 4, 6], [3, 5, 9, 13]),
        (|x, y, z| x ^ y ^ z, 0x6ed9_eba1, [3, 7, 2, 6, 1, 5, 0, 4], [3, 9, 11, 15]),
    ];
    let [mut a, mut b, mut c, mut d] = state;
    for (mix, constant, order, shifts) in ROUNDS {
        for (step, word) in order.into_iter().enumerate() {
            let sum = a.wrapping_add(mix(b, c, d)).wrapping_add(words[word]).wrapping_add(constant);
            (a, b, c, d) = (d, sum.rotate_left(shifts[step % 4]), b, c);
        }
    }
    let mixed = [a, b, c, d];
    std::array::from_fn(|at| state[at].wrapping_add(mixed[at]))
}

/// Sixteen rounds of the Tiny Encryption Algorithm over the first half of the state.
fn tea(state: [u32; 4], key: [u32; 4]) -> [u32; 4] {
    let (mut x, mut y, mut sum) = (state[0], state[1], 0u32);
    let part = |v: u32, sum: u32, a: u32, b: u32| {
        (v << 4).wrapping_add(a) ^ v.wrapping_add(sum) ^ (v >> 5).wrapping_add(b)
    };
    for _ in 0..16 {
        sum = sum.wrapping_add(0x9e37_79b9);
        x = x.wrapping_add(part(y, sum, key[0], key[1]));
        y = y.wrapping_add(part(x, sum, key[2], key[3]));
    }
    [state[0].wrapping_add(x), state[1].wrapping_add(y), state[2], state[3]]
}

#[cfg(test)]
mod tests {
    use super::*;

    // debugfs 1.47: dx_hash -h HASH [-s 01020304-0506-0708-090a-0b0c0d0e0f10] NAME
    #[test]
    fn hashes_are_those_of_debugfs() {
        const LONG: &str = "a-name-that-is-longer-than-thirty-two-characters-of-a-block";
        const SEED: Option<[u32; 4]> = Some([0x0403_0201, 0x0807_0605, 0x0c0b_0a09, 0x100f_0e0d]);
        for (version, seed, name, hash) in [
            (0, None, "hello", 0x3225_2546),
            (0, SEED, "größe", 0x9d04_0690),
            (0, None, LONG, 0xebc9_6ba4),
            (1, None, "hello", 0x1746_da32),
            (1, SEED, "hello", 0xe2dd_f968),
            (1, None, "größe", 0xa759_a98e),
            (1, SEED, LONG, 0x0a0e_0b9e),
            (2, None, "hello", 0x6f5b_b1a8),
            (2, SEED, "größe", 0xf2f3_dc0c),
            (2, SEED, LONG, 0x9d20_66c6),
        ] {
            let found = Hash::new(version, false, seed).unwrap().of(name.as_bytes());
            assert_eq!(found, hash, "{version} {name}: {found:#x}");
        }
        assert!(Hash::new(6, false, None).is_none());
    }

    #[test]
    fn only_characters_with_a_sign_bit_differ_in_the_unsigned_variants() {
        for version in 0..3 {
            let hash = |version, name: &str| Hash::new(version, false, None).unwrap().of(name.as_bytes());
            assert_eq!(hash(version, "hello"), hash(version + 3, "hello"));
            assert_ne!(hash(version, "größe"), hash(version + 3, "größe"));
        }
    }
}
