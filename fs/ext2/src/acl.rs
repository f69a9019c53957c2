//! POSIX ACLs: from the form on the disk to the form of `getxattr(2)`.
//!
//! Layout on the disk: version 1 (32 bits), then entries of tag and permissions (16 bits each), followed by a
//! user or group where the tag wants one. The kernel's form is version 2, and every entry has 32 bits for an
//! identity.

use crate::bytes::{le16, le32};
use crate::error::{Error, Result};

const DISK_VERSION: u32 = 1;
const XATTR_VERSION: u32 = 2;
const USER: u16 = 0x2;
const GROUP: u16 = 0x8;
/// Owner, owning group, mask, others.
const NAMELESS: [u16; 4] = [0x1, 0x4, 0x10, 0x20];
/// The identity of an entry that has none.
const NOBODY: u32 = u32::MAX;

/// The value that `getxattr` gives; `None` for a list without entries, which counts as no list.
pub(crate) fn to_xattr(stored: &[u8]) -> Result<Option<Vec<u8>>> {
    if stored.len() < 4 || le32(stored, 0) != DISK_VERSION {
        return Err(Error::corrupt("an access control list is of an unknown version"));
    }
    let mut value = XATTR_VERSION.to_le_bytes().to_vec();
    let mut at = 4;
    // Each entry is at least 4 bytes long.
    while at < stored.len() {
        let (tag, permissions) = (le16(stored, at), le16(stored, at + 2));
        let (id, len) = match tag {
            USER | GROUP => (le32(stored, at + 4), 8),
            tag if NAMELESS.contains(&tag) => (NOBODY, 4),
            _ => return Err(Error::corrupt(format!("an access control list has an entry of type {tag:#x}"))),
        };
        at += len;
        if at > stored.len() {
            return Err(Error::corrupt("an access control list is cut short"));
        }
        value.extend(tag.to_le_bytes());
        value.extend(permissions.to_le_bytes());
        value.extend(id.to_le_bytes());
    }
    Ok((value.len() > 4).then_some(value))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_list_gets_the_kernels_form() {
        let stored =
            [1, 0, 0, 0, 1, 0, 6, 0, 2, 0, 4, 0, 0xe8, 3, 0, 0, 4, 0, 4, 0, 0x10, 0, 4, 0, 0x20, 0, 0, 0];
        let value = to_xattr(&stored).unwrap().unwrap();
        assert_eq!(value.len(), 4 + 5 * 8);
        assert_eq!(value[..4], [2, 0, 0, 0]);
        assert_eq!(value[4..12], [1, 0, 6, 0, 255, 255, 255, 255]);
        assert_eq!(value[12..20], [2, 0, 4, 0, 0xe8, 3, 0, 0]);
        assert_eq!(to_xattr(&stored[..4]), Ok(None));
        for cut in [0, 3, 6, 10, 14] {
            assert!(to_xattr(&stored[..cut]).is_err(), "{cut}");
        }
        assert!(to_xattr(&[1, 0, 0, 0, 3, 0, 0, 0]).is_err());
    }
}
