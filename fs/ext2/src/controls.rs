//! `ioctl(2)` on files and directories: `lsattr`, `chattr`, and their versions with structures.

use veduta_api::{Errno, Ioctl, Kind, Timestamp};

use crate::bytes::le32;
use crate::error::{Error, Result};
use crate::inode::{FLAG_APPEND, FLAG_IMMUTABLE, FLAG_NODUMP};
use crate::raw::CTIME;
use crate::volume::Volume;

/// `FS_IOC_GETFLAGS`, `FS_IOC_SETFLAGS`, `FS_IOC_GETVERSION`, `FS_IOC_SETVERSION` (linux/fs.h)
const GET_FLAGS: u32 = 0x8008_6601;
const SET_FLAGS: u32 = 0x4008_6602;
const GET_VERSION: u32 = 0x8008_7601;
const SET_VERSION: u32 = 0x4008_7602;
/// `FS_IOC_FSGETXATTR`, `FS_IOC_FSSETXATTR`: `struct fsxattr`, 28 bytes, of which the first four are flags.
const GET_FSXATTR: u32 = 0x801c_581f;
const SET_FSXATTR: u32 = 0x401c_5820;

const FLAG_SYNC: u32 = 0x8;
const FLAG_NOATIME: u32 = 0x80;
const FLAG_DIRSYNC: u32 = 0x1_0000;
const FLAG_TOPDIR: u32 = 0x2_0000;
/// What `FS_IOC_SETFLAGS` may change: also secure deletion and undeletion, which nobody obeys, and noatime.
const SETTABLE: u32 =
    0x3 | FLAG_SYNC | FLAG_IMMUTABLE | FLAG_APPEND | FLAG_NODUMP | FLAG_NOATIME | FLAG_DIRSYNC | FLAG_TOPDIR;
/// Flags of `struct fsxattr`, and what they are called in the inode.
const FSXATTR: [(u32, u32); 5] = [
    (0x8, FLAG_IMMUTABLE),
    (0x10, FLAG_APPEND),
    (0x20, FLAG_SYNC),
    (0x40, FLAG_NOATIME),
    (0x80, FLAG_NODUMP),
];

/// Answers a request.
pub(crate) fn answer(volume: &Volume, ino: u32, ioctl: &mut Ioctl<'_>) -> veduta_api::Result<i32> {
    let input = ioctl.input;
    let word = || if input.len() < 4 { Err(Errno::EINVAL) } else { Ok(le32(input, 0)) };
    let inode = || volume.any_inode(ino).map_err(Error::into_errno);
    let given: Vec<u8> = match ioctl.command {
        GET_FLAGS => inode()?.shown_flags().to_le_bytes().into(),
        GET_VERSION => inode()?.generation.to_le_bytes().into(),
        GET_FSXATTR => {
            let flags = inode()?.flags;
            let shown: u32 = FSXATTR.iter().filter(|(_, flag)| flags & flag != 0).map(|(bit, _)| bit).sum();
            let mut all = vec![0; 28];
            all[..4].copy_from_slice(&shown.to_le_bytes());
            all
        }
        SET_FLAGS => {
            set_flags(volume, ino, word()?).map_err(Error::into_errno)?;
            Vec::new()
        }
        SET_FSXATTR => {
            let asked = word()?;
            // Neither extent size hints nor projects are known.
            if input.len() < 20 || input[4..20].iter().any(|byte| *byte != 0) {
                return Err(Errno::EOPNOTSUPP);
            }
            if FSXATTR.iter().fold(asked, |left, (bit, _)| left & !bit) != 0 {
                return Err(Errno::EOPNOTSUPP);
            }
            let others = FSXATTR.iter().fold(inode()?.shown_flags(), |left, (_, flag)| left & !flag);
            let flags = FSXATTR.iter().filter(|(bit, _)| asked & bit != 0).map(|(_, flag)| flag);
            set_flags(volume, ino, others | flags.sum::<u32>()).map_err(Error::into_errno)?;
            Vec::new()
        }
        SET_VERSION => {
            // With checksums the kernel refuses it too: all of the inode's blocks depend on it.
            if volume.sb.has_checksums() {
                return Err(Errno::EOPNOTSUPP);
            }
            let version = word()?;
            let set = volume.change(|change| {
                let mut inode = change.load(ino)?;
                inode.set_generation(version);
                inode.set_time(CTIME, Timestamp::now());
                change.store(&mut inode)
            });
            set.map_err(Error::into_errno)?;
            Vec::new()
        }
        _ => return Err(Errno::ENOTTY),
    };
    // The requests are numbered as if they gave a long; what they give is an int.
    let output = ioctl.output.get_mut(..given.len()).ok_or(Errno::EINVAL)?;
    output.copy_from_slice(&given);
    Ok(0)
}

/// Sets flags. Those that only the filesystem changes must be as they are.
fn set_flags(volume: &Volume, ino: u32, asked: u32) -> Result<()> {
    volume.change(|change| {
        let shown = volume.any_inode(ino)?.shown_flags();
        if (asked ^ shown) & !SETTABLE != 0 {
            return Err(Errno::EOPNOTSUPP.into());
        }
        let mut inode = change.load(ino)?;
        let only_dirs = FLAG_DIRSYNC | FLAG_TOPDIR;
        let fits = match inode.kind() {
            Some(Kind::Directory) => true,
            Some(Kind::File) => asked & only_dirs == 0,
            _ => asked & SETTABLE & !(FLAG_NODUMP | FLAG_NOATIME) == 0,
        };
        if !fits {
            return Err(Errno::EOPNOTSUPP.into());
        }
        inode.set_flags(inode.flags() & !SETTABLE | asked & SETTABLE);
        inode.set_time(CTIME, Timestamp::now());
        change.store(&mut inode)
    })
}
