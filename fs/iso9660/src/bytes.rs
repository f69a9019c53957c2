//! Numbers in foreign bytes. ECMA-119 section 7 records many of them twice, least significant byte first and then
//! most significant byte first ("both-byte order"); like every other reader, this one takes the first half.

/// ECMA-119 7.2.1 and 7.2.3.
pub(crate) fn u16_le(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_le_bytes(*bytes.get(at..)?.first_chunk()?))
}

/// ECMA-119 7.3.1 and 7.3.3.
pub(crate) fn u32_le(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_le_bytes(*bytes.get(at..)?.first_chunk()?))
}

/// Eight bytes, least significant first (zisofs only).
pub(crate) fn u64_le(bytes: &[u8], at: usize) -> Option<u64> {
    Some(u64::from_le_bytes(*bytes.get(at..)?.first_chunk()?))
}
