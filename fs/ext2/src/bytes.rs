//! Fields of on-disk structures, which are little-endian (the journal's are big-endian).
//!
//! A field past the end of the bytes reads as zero. That is what the format means by it: records of old
//! filesystems (inodes of 128 bytes, descriptors of 32) are the new ones cut short.

fn chunk<const N: usize>(bytes: &[u8], at: usize) -> [u8; N] {
    bytes.get(at..).and_then(|rest| rest.first_chunk()).copied().unwrap_or([0; N])
}

/// The byte at `at`.
pub(crate) fn u8_at(bytes: &[u8], at: usize) -> u8 {
    bytes.get(at).copied().unwrap_or(0)
}

/// 16 bits, little-endian.
pub(crate) fn le16(bytes: &[u8], at: usize) -> u16 {
    u16::from_le_bytes(chunk(bytes, at))
}

/// 32 bits, little-endian.
pub(crate) fn le32(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(chunk(bytes, at))
}

/// 64 bits, little-endian.
pub(crate) fn le64(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(chunk(bytes, at))
}

/// 16 bits, big-endian.
pub(crate) fn be16(bytes: &[u8], at: usize) -> u16 {
    u16::from_be_bytes(chunk(bytes, at))
}

/// 32 bits, big-endian.
pub(crate) fn be32(bytes: &[u8], at: usize) -> u32 {
    u32::from_be_bytes(chunk(bytes, at))
}

/// `len` bytes at `at`, as far as there are any.
pub(crate) fn slice(bytes: &[u8], at: usize, len: usize) -> &[u8] {
    let rest = bytes.get(at..).unwrap_or_default();
    rest.get(..len).unwrap_or(rest)
}

/// A value in two halves.
pub(crate) fn join(low: u32, high: u32) -> u64 {
    u64::from(high) << 32 | u64::from(low)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_field_past_the_end_is_zero() {
        let bytes = [1, 2, 3, 4, 5];
        assert_eq!((le16(&bytes, 0), be16(&bytes, 0), le32(&bytes, 1)), (0x201, 0x102, 0x504_0302));
        assert_eq!((le32(&bytes, 2), be32(&bytes, usize::MAX), u8_at(&bytes, 5)), (0, 0, 0));
        assert_eq!((slice(&bytes, 3, 9), slice(&bytes, 9, 1)), (&bytes[3..], &bytes[..0]));
    }
}
