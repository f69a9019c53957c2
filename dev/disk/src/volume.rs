//! What kind of volume a disk holds, with its label and UUID, by the fixed places of the common formats: a small blkid. It names also
//! what no driver here can mount. The names are those of blkid, and so is the spelling of each kind of UUID.

use veduta_api::{Disk, Result};

/// A volume, as blkid describes it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Volume {
    /// `ext4`, `vfat`, `swap`.
    pub kind: &'static str,
    /// Empty if it has none.
    pub label: String,
    /// Empty if it has none.
    pub uuid: String,
}

/// Bytes; all marks but those of btrfs and ISO 9660 are in the first so many.
const HEAD: usize = 8192;

/// The volume that a disk holds; `None` if none is known. Only an error of the disk is one.
pub fn identify(disk: &Disk) -> Result<Option<Volume>> {
    let head = Bytes(disk.read_vec(0, disk.size().min(HEAD as u64) as usize)?);
    let deep = |offset: u64, len: usize| -> Result<Bytes> {
        let there = offset.checked_add(len as u64).is_some_and(|end| end <= disk.size());
        Ok(Bytes(if there { disk.read_vec(offset, len)? } else { Vec::new() }))
    };
    if let Some(found) = luks(&head).or_else(|| ext(&head)).or_else(|| simple(&head)) {
        return Ok(Some(found));
    }
    if let Some(mut found) = boot_sector(&head) {
        fat_label(disk, &head, &mut found)?;
        return Ok(Some(found));
    }
    Ok(btrfs(&deep(65536, 4096)?).or(iso9660(&deep(32768, 2048)?)).or(swap(&head)))
}

/// Bytes that may be too few: what lies outside reads as zeros.
struct Bytes(Vec<u8>);

impl Bytes {
    fn has(&self, at: usize, mark: &[u8]) -> bool {
        self.0.get(at..).is_some_and(|rest| rest.starts_with(mark))
    }
    fn slice(&self, at: usize, len: usize) -> &[u8] {
        self.0.get(at..at + len).unwrap_or_default()
    }
    fn u16(&self, at: usize) -> u16 {
        self.slice(at, 2).try_into().map_or(0, u16::from_le_bytes)
    }
    fn u32(&self, at: usize) -> u32 {
        self.slice(at, 4).try_into().map_or(0, u32::from_le_bytes)
    }
    /// Up to the first zero, without the blanks at its end.
    fn text(&self, at: usize, len: usize) -> String {
        let bytes = self.slice(at, len);
        let end = bytes.iter().position(|byte| *byte == 0).unwrap_or(bytes.len());
        String::from_utf8_lossy(&bytes[..end]).trim_end().to_owned()
    }
    /// In the usual groups; empty if it is all zeros.
    fn uuid(&self, at: usize) -> String {
        let bytes = self.slice(at, 16);
        if bytes.len() < 16 || bytes.iter().all(|byte| *byte == 0) {
            return String::new();
        }
        let hex: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
        [&hex[..8], &hex[8..12], &hex[12..16], &hex[16..20], &hex[20..]].join("-")
    }
}

fn luks(head: &Bytes) -> Option<Volume> {
    head.has(0, b"LUKS\xba\xbe").then(|| Volume {
        kind: "crypto_LUKS",
        label: if head.has(6, &[0, 2]) { head.text(24, 48) } else { String::new() },
        uuid: head.text(168, 40),
    })
}

/// ext2, ext3 or ext4, told apart by their features as blkid does.
fn ext(head: &Bytes) -> Option<Volume> {
    const SUPER: usize = 1024;
    let (compat, incompat, ro) = (head.u32(SUPER + 92), head.u32(SUPER + 96), head.u32(SUPER + 100));
    head.has(SUPER + 56, &[0x53, 0xef]).then(|| Volume {
        // Beyond what ext3 knows: filetype, recover, meta_bg; and sparse_super, large_file, btree_dir.
        kind: if incompat & 0x8 != 0 {
            "jbd"
        } else if incompat & !0x16 != 0 || ro & !0x7 != 0 {
            "ext4"
        } else if compat & 4 != 0 {
            "ext3"
        } else {
            "ext2"
        },
        label: head.text(SUPER + 120, 16),
        uuid: head.uuid(SUPER + 104),
    })
}

/// Those with a mark at a fixed place and nothing to tell apart.
fn simple(head: &Bytes) -> Option<Volume> {
    let with = |kind, label: String, uuid: String| Some(Volume { kind, label, uuid });
    if head.has(0, b"XFSB") {
        with("xfs", head.text(108, 12), head.uuid(32))
    } else if head.has(0, b"hsqs") {
        with("squashfs", String::new(), String::new())
    } else if head.has(1024, &[0xe2, 0xe1, 0xf5, 0xe0]) {
        with("erofs", head.text(1024 + 64, 16), head.uuid(1024 + 48))
    } else if head.has(1024, &[0x10, 0x20, 0xf5, 0xf2]) {
        with("f2fs", String::new(), head.uuid(1024 + 108))
    } else if head.has(0, &[0x45, 0x3d, 0xcd, 0x28]) {
        with("cramfs", head.text(48, 16), String::new())
    } else if head.has(512, b"LABELONE") && head.has(512 + 24, b"LVM2 001") {
        with("LVM2_member", String::new(), head.text(512 + 32, 32))
    } else if head.has(3, b"NTFS    ") {
        with("ntfs", String::new(), head.slice(72, 8).iter().rev().map(|b| format!("{b:02X}")).collect())
    } else if head.has(3, b"EXFAT   ") {
        with("exfat", String::new(), serial(head.u32(100)))
    } else {
        None
    }
}

fn serial(number: u32) -> String {
    format!("{:04X}-{:04X}", number >> 16, number & 0xffff)
}

/// A FAT: a block of BIOS parameters that makes sense, and the name of the type where it may stand.
fn boot_sector(head: &Bytes) -> Option<Volume> {
    let sector = head.u16(11);
    let sane = head.has(510, &[0x55, 0xaa])
        && matches!(sector, 512 | 1024 | 2048 | 4096)
        && head.slice(13, 1).first().is_some_and(|per_cluster| per_cluster.is_power_of_two())
        && head.u16(14) > 0;
    let wide = head.has(82, b"FAT32   ");
    let narrow = head.has(54, b"FAT12   ") || head.has(54, b"FAT16   ") || head.has(54, b"FAT     ");
    (sane && (wide || narrow)).then(|| {
        let at = if wide { 67 } else { 39 };
        Volume { kind: "vfat", label: fat_name(head.slice(at + 4, 11)), uuid: serial(head.u32(at)) }
    })
}

fn fat_name(bytes: &[u8]) -> String {
    let name = String::from_utf8_lossy(bytes).trim_end().to_owned();
    if name == "NO NAME" { String::new() } else { name }
}

/// The label of a FAT is in its root directory, where there is one: the boot sector's is often stale. Looked for in the first sectors
/// of the root only.
fn fat_label(disk: &Disk, head: &Bytes, volume: &mut Volume) -> Result<()> {
    let sector = u64::from(head.u16(11));
    let tables = u64::from(head.slice(16, 1).first().copied().unwrap_or(0));
    let per_cluster = u64::from(head.slice(13, 1).first().copied().unwrap_or(1));
    let (len, root) = match head.u16(22) {
        0 => (u64::from(head.u32(36)), u64::from(head.u32(44)).saturating_sub(2) * per_cluster),
        len => (u64::from(len), 0),
    };
    let at = (u64::from(head.u16(14)) + tables * len + root) * sector;
    let there = disk.size().saturating_sub(at).min(4096);
    for entry in disk.read_vec(at.min(disk.size()), there as usize)?.chunks_exact(32) {
        match (entry[0], entry[11]) {
            (0, _) => break,
            (0xe5, _) | (_, 0x0f) => {}
            (_, attributes) if attributes & 0x08 != 0 => volume.label = fat_name(&entry[..11]),
            _ => {}
        }
    }
    Ok(())
}

fn btrfs(at: &Bytes) -> Option<Volume> {
    at.has(64, b"_BHRfS_M").then(|| Volume { kind: "btrfs", label: at.text(299, 256), uuid: at.uuid(32) })
}

fn iso9660(at: &Bytes) -> Option<Volume> {
    at.has(1, b"CD001").then(|| {
        // 16 digits of the creation time, or of the modification time, as blkid shows it.
        let date = |from: usize| at.text(from, 16);
        let stamp = [date(830), date(813)]
            .into_iter()
            .find(|text| text.bytes().any(|byte| byte != b'0' && byte.is_ascii_digit()));
        let uuid = stamp
            .filter(|text| text.len() == 16 && text.is_ascii())
            .map(|t| [&t[..4], &t[4..6], &t[6..8], &t[8..10], &t[10..12], &t[12..14], &t[14..16]].join("-"));
        Volume { kind: "iso9660", label: at.text(40, 32), uuid: uuid.unwrap_or_default() }
    })
}

/// The mark ends the first page, whose size is that of the machine which made it.
fn swap(head: &Bytes) -> Option<Volume> {
    head.has(4096 - 10, b"SWAPSPACE2").then(|| Volume {
        kind: "swap",
        label: head.text(1024 + 28, 16),
        uuid: head.uuid(1024 + 12),
    })
}
