//! El Torito: the catalog of images that a computer can boot from.
//!
//! Entries of 32 bytes. First the validation entry: 1, the platform, an identifier, a sum that makes all 16-bit words
//! add up to 0, and `55 AA`. Then the default entry; then sections, each a header (`90`, or `91` for the last;
//! platform, how many entries) with its entries. An entry says whether it boots (`88`) or not (`00`), what the image
//! poses as (floppy, hard disk, or nothing: "no emulation"), how many sectors of 512 bytes the firmware loads, and the
//! sector of 2048 bytes where it starts. An entry may be followed by extensions (`44`).
//!
//! How large an image is stands nowhere for certain. A floppy has its known size; a hard disk ends where its first
//! partition does; programs that take no emulation often carry a table (at byte 8: sector 16, their own
//! sector, their length) for themselves; of others the count of sectors is all there is. A count of 0 or 1 of an EFI
//! image means that it goes on to the end of the volume (UEFI 13.3.2.1).

use crate::bytes::{u16_le, u32_le};
use crate::error::{Error, Result, SECTOR};
use crate::image::Image;

/// Bytes; a catalog is read up to here: 1023 entries.
const CATALOG_MAX: usize = 32 << 10;
const ENTRY: usize = 32;
/// Bytes; the unit of Sector Count.
const VIRTUAL_SECTOR: u64 = 512;
const EFI: u8 = 0xef;

/// One bootable image.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct BootImage {
    /// What the file in the virtual directory is called.
    pub(crate) name: String,
    pub(crate) platform: String,
    /// What it poses as.
    pub(crate) emulation: &'static str,
    pub(crate) bootable: bool,
    /// The byte of the volume at which it starts.
    pub(crate) at: u64,
    /// Bytes.
    pub(crate) size: u64,
}

/// The images of the catalog at sector `sector`. Entries that point outside of the image are kept, with size 0.
pub(crate) fn catalog(image: &Image, sector: u32, volume_end: u64) -> Result<Vec<BootImage>> {
    let at = u64::from(sector) * SECTOR;
    let bytes = image.read_up_to(at, CATALOG_MAX, "the boot catalog")?;
    let mut entries = bytes.chunks_exact(ENTRY);
    let mut platform = validate(entries.next().unwrap_or_default(), at)?;
    let mut found = Vec::new();
    let mut left = 1;
    for entry in entries {
        match entry[0] {
            // Extensions of the entry before.
            0x44 => {}
            0x00 | 0x88 if left > 0 => {
                left -= 1;
                found.extend(boot_image(image, entry, platform, found.len() + 1, volume_end));
            }
            0x90 | 0x91 => {
                platform = entry[1];
                left = u16_le(entry, 2).unwrap_or(0);
            }
            _ => break,
        }
    }
    Ok(found)
}

fn validate(entry: &[u8], at: u64) -> Result<u8> {
    let sum = (0..entry.len()).step_by(2).filter_map(|i| u16_le(entry, i)).fold(0, u16::wrapping_add);
    if entry.first() != Some(&1) || entry.get(30..32) != Some(&[0x55, 0xaa]) {
        return Err(Error::corrupt(at, "the boot catalog does not start with a validation entry"));
    }
    if sum != 0 {
        return Err(Error::corrupt(at, "the sum of the boot catalog's validation entry is wrong"));
    }
    Ok(entry[1])
}

/// `None` for an entry that is all zeros: an unused one.
fn boot_image(
    image: &Image,
    entry: &[u8],
    platform: u8,
    number: usize,
    volume_end: u64,
) -> Option<BootImage> {
    if entry.iter().all(|byte| *byte == 0) {
        return None;
    }
    let at = u64::from(u32_le(entry, 8)?) * SECTOR;
    let count = u64::from(u16_le(entry, 6)?) * VIRTUAL_SECTOR;
    let end = volume_end.min(image.disk.size());
    let (emulation, word, size) = match entry[1] & 0x0f {
        0 if platform == EFI && count <= VIRTUAL_SECTOR => ("no emulation", "noemul", end.saturating_sub(at)),
        0 => ("no emulation", "noemul", told_length(image, at).unwrap_or(count).max(count)),
        1 => ("floppy of 1.2 MB", "floppy1200", 1200 << 10),
        2 => ("floppy of 1.44 MB", "floppy1440", 1440 << 10),
        3 => ("floppy of 2.88 MB", "floppy2880", 2880 << 10),
        4 => ("hard disk", "disk", disk_length(image, at).unwrap_or(count)),
        _ => ("unknown emulation", "unknown", count),
    };
    let (platform, short) = match platform {
        0 => ("x86 BIOS".into(), "bios".into()),
        1 => ("PowerPC".into(), "ppc".into()),
        2 => ("Macintosh".into(), "mac".into()),
        EFI => ("EFI".into(), "efi".into()),
        other => (format!("{other:#04x}"), format!("platform{other:02x}")),
    };
    let name = match (short.as_str(), word) {
        ("efi", "noemul") => format!("{short}-{number}.img"),
        _ => format!("{short}-{number}-{word}.img"),
    };
    // What lies outside cannot be read; what the catalog says of its size is not believed further than that.
    let size = size.min(image.disk.size().saturating_sub(at));
    Some(BootImage { name, platform, emulation, bootable: entry[0] == 0x88, at, size })
}

/// The length that the boot information table of an image tells, if it has one.
fn told_length(image: &Image, at: u64) -> Option<u64> {
    let bytes = image.read_vec(at, 24, "a boot image").ok()?;
    let is_table = u32_le(&bytes, 8) == Some(16) && u32_le(&bytes, 12).map(u64::from) == Some(at / SECTOR);
    is_table.then(|| u32_le(&bytes, 16).map(u64::from)).flatten()
}

/// Where the first partition of a hard disk ends; El Torito allows one only.
fn disk_length(image: &Image, at: u64) -> Option<u64> {
    let bytes = image.read_vec(at, 512, "a boot image").ok()?;
    let entry = bytes.get(446..462).filter(|_| bytes.ends_with(&[0x55, 0xaa]))?;
    let sectors = u64::from(u32_le(entry, 8)?) + u64::from(u32_le(entry, 12)?);
    (sectors > 0).then_some(sectors * VIRTUAL_SECTOR)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_validation_entry_must_add_up_to_zero() {
        let mut entry = [0; 32];
        (entry[0], entry[30], entry[31]) = (1, 0x55, 0xaa);
        // 0001 + aa55 + x = 0
        (entry[28], entry[29]) = (0xaa, 0x55);
        assert_eq!(validate(&entry, 0), Ok(0));
        entry[1] = EFI;
        assert!(validate(&entry, 0).is_err());
        entry[29] = 0x66;
        assert_eq!(validate(&entry, 0), Ok(EFI));
        assert!(validate(&[], 0).is_err());
    }
}
