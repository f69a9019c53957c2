//! Checksums of metadata: CRC-32C (`metadata_csum`), CRC-16 (`uninit_bg`), CRC-32 (old journals).
//!
//! The format runs its CRCs "raw": they start from a seed instead of all ones and are not inverted at the
//! end, so one continues where the other ended.

/// CRC-32C over `bytes`, continued from `seed`.
pub(crate) fn crc32c(seed: u32, bytes: &[u8]) -> u32 {
    !crc32c::crc32c_append(!seed, bytes)
}

/// CRC-32C over `bytes` as if the `len` bytes at `at` were zeros: where a checksum stands in what it covers.
pub(crate) fn crc32c_without(seed: u32, bytes: &[u8], at: usize, len: usize) -> u32 {
    const ZEROS: [u8; 8] = [0; 8];
    let at = at.min(bytes.len());
    let len = len.min(bytes.len() - at).min(ZEROS.len());
    let (before, rest) = bytes.split_at(at);
    let crc = crc32c(crc32c(seed, before), &ZEROS[..len]);
    crc32c(crc, &rest[len..])
}

/// CRC-16 (polynomial 0x8005, reflected) over `bytes`, continued from `seed`.
pub(crate) fn crc16(seed: u16, bytes: &[u8]) -> u16 {
    bytes.iter().fold(seed, |crc, byte| {
        (0..8).fold(crc ^ u16::from(*byte), |crc, _| (crc >> 1) ^ if crc & 1 == 1 { 0xa001 } else { 0 })
    })
}

/// CRC-32 (polynomial 0x04c11db7, most significant bit first) over `bytes`, continued from `seed`.
pub(crate) fn crc32_be(seed: u32, bytes: &[u8]) -> u32 {
    const TABLE: [u32; 256] = crc32_be_table();
    bytes.iter().fold(seed, |crc, byte| (crc << 8) ^ TABLE[usize::from((crc >> 24) as u8 ^ byte)])
}

const fn crc32_be_table() -> [u32; 256] {
    let mut table = [0; 256];
    let mut index = 0;
    while index < 256 {
        let mut crc = (index as u32) << 24;
        let mut bit = 0;
        while bit < 8 {
            crc = (crc << 1) ^ if crc >> 31 == 1 { 0x04c1_1db7 } else { 0 };
            bit += 1;
        }
        table[index] = crc;
        index += 1;
    }
    table
}

#[cfg(test)]
mod tests {
    use super::*;

    // The check values of the CRC catalogue, for "123456789".
    #[test]
    fn the_polynomials_are_the_catalogues() {
        let digits = b"123456789";
        assert_eq!(!crc32c(!0, digits), 0xe306_9283);
        assert_eq!(crc16(0xffff, digits), 0x4b37); // CRC-16/MODBUS
        assert_eq!(!crc32_be(!0, digits), 0xfc89_1918); // CRC-32/BZIP2
    }

    #[test]
    fn a_left_out_field_counts_as_zeros() {
        assert_eq!(crc32c_without(7, b"ab12cd", 2, 2), crc32c(7, b"ab\0\0cd"));
        assert_eq!(crc32c_without(7, b"ab", 9, 2), crc32c(7, b"ab"));
    }
}
