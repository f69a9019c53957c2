//! POSIX ACLs: the form on the disk, the form of `getxattr(2)`, and what both have to do with a mode.
//!
//! Layout on the disk: version 1 (32 bits), then entries of tag and permissions (16 bits each), followed by a
//! user or group where the tag wants one. The kernel's form is version 2, and every entry has 32 bits for an
//! identity.

use crate::bytes::{le16, le32};
use crate::error::{Error, Result};
use veduta_api::Errno;

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

const OWNER: u16 = 0x1;
const OWNING_GROUP: u16 = 0x4;
const MASK: u16 = 0x10;
const OTHERS: u16 = 0x20;

/// An access control list: for each entry its type, its permissions, and whom it is about.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Acl(Vec<(u16, u16, u32)>);

impl Acl {
    /// From the value of `setxattr`; `None` for a list without entries. `EINVAL`, `EOPNOTSUPP` as the kernel has it.
    pub(crate) fn parse(value: &[u8]) -> Result<Option<Self>> {
        if value.len() < 4 || (value.len() - 4) % 8 != 0 {
            return Err(Errno::EINVAL.into());
        }
        if le32(value, 0) != XATTR_VERSION {
            return Err(Errno::EOPNOTSUPP.into());
        }
        let entries: Vec<(u16, u16, u32)> = value[4..]
            .chunks_exact(8)
            .map(|entry| (le16(entry, 0), le16(entry, 2), le32(entry, 4)))
            .collect();
        if entries.is_empty() {
            return Ok(None);
        }
        let acl = Self(entries);
        if acl.is_valid() { Ok(Some(acl)) } else { Err(Errno::EINVAL.into()) }
    }

    /// From the form on the disk.
    pub(crate) fn stored(bytes: &[u8]) -> Result<Option<Self>> {
        match to_xattr(bytes)? {
            Some(value) => Self::parse(&value),
            None => Ok(None),
        }
    }

    /// In the order of types, each but users and groups once, and a mask where those are.
    fn is_valid(&self) -> bool {
        let known = |tag: u16| matches!(tag, USER | GROUP) || NAMELESS.contains(&tag);
        let once = |tag: u16| self.0.iter().filter(|(found, ..)| *found == tag).count();
        self.0.iter().all(|(tag, permissions, _)| known(*tag) && *permissions <= 7)
            && self.0.is_sorted_by_key(|(tag, ..)| *tag)
            && [OWNER, OWNING_GROUP, OTHERS].into_iter().all(|tag| once(tag) == 1)
            && (once(MASK) == 1 || (once(MASK) == 0 && once(USER) + once(GROUP) == 0))
    }

    /// The form on the disk.
    pub(crate) fn to_disk(&self) -> Vec<u8> {
        let mut bytes = DISK_VERSION.to_le_bytes().to_vec();
        for (tag, permissions, id) in &self.0 {
            bytes.extend(tag.to_le_bytes());
            bytes.extend(permissions.to_le_bytes());
            if matches!(*tag, USER | GROUP) {
                bytes.extend(id.to_le_bytes());
            }
        }
        bytes
    }

    /// Whether it says no more than a mode does.
    pub(crate) fn is_mode(&self) -> bool {
        self.0.len() == 3
    }

    fn permissions(&mut self, tag: u16) -> Option<&mut u16> {
        self.0.iter_mut().find(|(found, ..)| *found == tag).map(|(_, permissions, _)| permissions)
    }

    /// The entry that stands for the group's bits of a mode: the mask, or else the owning group.
    fn group_class(&mut self) -> Option<&mut u16> {
        let tag = if self.0.iter().any(|(tag, ..)| *tag == MASK) { MASK } else { OWNING_GROUP };
        self.permissions(tag)
    }

    /// The nine bits that it gives a mode.
    pub(crate) fn mode(&mut self) -> u16 {
        let bits = |found: Option<&mut u16>| found.map_or(0, |permissions| *permissions & 7);
        let owner = bits(self.permissions(OWNER));
        let group = bits(self.group_class());
        owner << 6 | group << 3 | bits(self.permissions(OTHERS))
    }

    /// What `chmod` does to it.
    pub(crate) fn set_mode(&mut self, mode: u16) {
        self.each_class(mode, |_, bits| bits);
    }

    /// What creation with this mode leaves of it.
    pub(crate) fn restrict(&mut self, mode: u16) {
        self.each_class(mode, |permissions, bits| permissions & bits);
    }

    fn each_class(&mut self, mode: u16, change: fn(u16, u16) -> u16) {
        if let Some(owner) = self.permissions(OWNER) {
            *owner = change(*owner, mode >> 6 & 7);
        }
        if let Some(group) = self.group_class() {
            *group = change(*group, mode >> 3 & 7);
        }
        if let Some(others) = self.permissions(OTHERS) {
            *others = change(*others, mode & 7);
        }
    }
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
        let mut acl = Acl::stored(&stored).unwrap().unwrap();
        assert_eq!(acl.to_disk(), stored);
        assert_eq!((acl.is_mode(), acl.mode()), (false, 0o640));
        acl.set_mode(0o751);
        assert_eq!(acl.mode(), 0o751);
        acl.restrict(0o700);
        assert_eq!(acl.mode(), 0o700);
        assert_eq!(Acl::parse(&[2, 0, 0, 0]), Ok(None));
        assert!(Acl::parse(&[2, 0, 0, 0, 1, 0, 6, 0, 0, 0, 0, 0]).is_err());
    }
}
