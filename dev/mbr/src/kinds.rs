//! What the types of partitions are called.
//!
//! The common ones only: a type that is not listed shows its code, which is what people search for. Sources: the
//! list of MBR types that fdisk shows, the UEFI specification 2.10 section 5.3.3, and the Discoverable Partitions
//! Specification (UAPI group) for those of Linux.

/// The name of an MBR type; empty if it is not a common one.
pub(crate) fn mbr_name(kind: u8) -> &'static str {
    match kind {
        0x01 => "FAT12",
        0x04 | 0x06 => "FAT16",
        0x0e => "FAT16 (LBA)",
        0x0b => "FAT32",
        0x0c => "FAT32 (LBA)",
        0x05 => "Extended",
        0x0f => "Extended (LBA)",
        0x85 => "Linux extended",
        0x07 => "NTFS or exFAT",
        0x11 => "Hidden FAT12",
        0x14 | 0x16 => "Hidden FAT16",
        0x17 => "Hidden NTFS",
        0x1b => "Hidden FAT32",
        0x1c => "Hidden FAT32 (LBA)",
        0x27 => "Windows recovery",
        0x42 => "Windows dynamic disk",
        0x82 => "Linux swap",
        0x83 => "Linux",
        0x88 => "Linux plaintext",
        0x8e => "Linux LVM",
        0xa5 => "FreeBSD",
        0xa6 => "OpenBSD",
        0xa8 => "Darwin UFS",
        0xa9 => "NetBSD",
        0xaf => "HFS or HFS+",
        0xbe | 0xbf => "Solaris",
        0xda => "Data without a filesystem",
        0xea => "Linux extended boot",
        0xeb => "BeOS",
        0xee => "GPT protective",
        0xef => "EFI system",
        0xfb => "VMware VMFS",
        0xfd => "Linux RAID",
        _ => "",
    }
}

/// The name of a GPT type, by its GUID in capitals; empty if it is not a common one.
pub(crate) fn gpt_name(guid: &str) -> &'static str {
    GPT.iter().find(|(known, _)| *known == guid).map_or("", |(_, name)| name)
}

const GPT: &[(&str, &str)] = &[
    ("C12A7328-F81F-11D2-BA4B-00A0C93EC93B", "EFI system"),
    ("21686148-6449-6E6F-744E-656564454649", "BIOS boot"),
    ("024DEE41-33E7-11D3-9D69-0008C781F39F", "MBR partition scheme"),
    ("E3C9E316-0B5C-4DB8-817D-F92DF00215AE", "Microsoft reserved"),
    ("EBD0A0A2-B9E5-4433-87C0-68B6B72699C7", "Microsoft basic data"),
    ("5808C8AA-7E8F-42E0-85D2-E1E90434CFB3", "Windows LDM metadata"),
    ("AF9B60A0-1431-4F62-BC68-3311714A69AD", "Windows LDM data"),
    ("DE94BBA4-06D1-4D40-A16A-BFD50179D6AC", "Windows recovery"),
    ("E75CAF8F-F680-4CEE-AFA3-B001E56EFC2D", "Windows storage spaces"),
    ("0FC63DAF-8483-4772-8E79-3D69D8477DE4", "Linux filesystem"),
    ("0657FD6D-A4AB-43C4-84E5-0933C84B4F4F", "Linux swap"),
    ("E6D6D379-F507-44C2-A23C-238F2A3DF928", "Linux LVM"),
    ("A19D880F-05FC-4D3B-A006-743F0F84911E", "Linux RAID"),
    ("CA7D7CCB-63ED-4C53-861C-1742536059CC", "Linux LUKS"),
    ("BC13C2FF-59E6-4262-A352-B275FD6F7172", "Linux extended boot"),
    ("8DA63339-0007-60C0-C436-083AC8230908", "Linux reserved"),
    ("933AC7E1-2EB4-4F13-B844-0E14E2AEF915", "Linux home"),
    ("3B8F8425-20E0-4F3B-907F-1A25A76F98E8", "Linux server data"),
    ("4D21B016-B534-45C2-A9FB-5C16E091FD2D", "Linux variable data"),
    ("7EC6F557-3BC5-4ACA-B293-16EF5DF639D1", "Linux temporary data"),
    ("4F68BCE3-E8CD-4DB1-96E7-FBCAF984B709", "Linux root (x86-64)"),
    ("44479540-F297-41B2-9AF7-D131D5F0458A", "Linux root (x86)"),
    ("B921B045-1DF0-41C3-AF44-4C6F280D3FAE", "Linux root (ARM-64)"),
    ("69DAD710-2CE4-4E3C-B16C-21A1D49ABED3", "Linux root (ARM)"),
    ("72EC70A6-CF74-40E6-BD49-4BDA08E8F224", "Linux root (RISC-V-64)"),
    ("8484680C-9521-48C6-9C11-B0720656F69E", "Linux /usr (x86-64)"),
    ("B0E01050-EE5F-4390-949A-9101B17104E9", "Linux /usr (ARM-64)"),
    ("2C7357ED-EBD2-46D9-AEC1-23D437EC2BF5", "Linux root verity (x86-64)"),
    ("48465300-0000-11AA-AA11-00306543ECAC", "Apple HFS+"),
    ("7C3457EF-0000-11AA-AA11-00306543ECAC", "Apple APFS"),
    ("426F6F74-0000-11AA-AA11-00306543ECAC", "Apple boot"),
    ("83BD6B9D-7F41-11DC-BE0B-001560B84F0F", "FreeBSD boot"),
    ("516E7CB4-6ECF-11D6-8FF8-00022D09712B", "FreeBSD data"),
    ("516E7CB5-6ECF-11D6-8FF8-00022D09712B", "FreeBSD swap"),
    ("516E7CB6-6ECF-11D6-8FF8-00022D09712B", "FreeBSD UFS"),
    ("516E7CBA-6ECF-11D6-8FF8-00022D09712B", "FreeBSD ZFS"),
    ("6A898CC3-1DD2-11B2-99A6-080020736631", "Solaris /usr or ZFS"),
    ("824CC7A0-36A8-11E3-890A-952519AD3F61", "OpenBSD data"),
    ("FE3A2A5D-4F32-41A7-B725-ACCC3285A309", "ChromeOS kernel"),
    ("3CB8E202-3B7E-47DD-8A3C-7FF2A13CFCEC", "ChromeOS root"),
    ("AA31E02A-400F-11DB-9590-000C2911D1B8", "VMware VMFS"),
];
