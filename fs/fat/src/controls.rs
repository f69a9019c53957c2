//! What is said beside names and content: attributes, the volume's label and id, as ioctls and extended attributes.

use std::sync::Arc;

use veduta_api::{Errno, Ioctl, Result, XattrMode};

use crate::name::fat_label;
use crate::nodes::Node;
use crate::slots::{ARCHIVE, DIRECTORY, HIDDEN, LABEL, READ_ONLY, SYSTEM, Slot, exfat};
use crate::volume::Volume;

/// `FAT_IOCTL_GET_ATTRIBUTES`, `FAT_IOCTL_SET_ATTRIBUTES`, `FAT_IOCTL_GET_VOLUME_ID` (`linux/msdos_fs.h`).
const GET_ATTRIBUTES: u32 = 0x8004_7210;
const SET_ATTRIBUTES: u32 = 0x4004_7211;
const GET_VOLUME_ID: u32 = 0x8004_7213;
/// `FS_IOC_GETFSLABEL`, `FS_IOC_SETFSLABEL` (`linux/fs.h`): 256 bytes, ended by a zero.
const GET_LABEL: u32 = 0x8100_9431;
const SET_LABEL: u32 = 0x4100_9432;

/// The extended attribute that holds the attribute bits, as `0x` and hexadecimal digits.
pub(crate) const XATTR: &str = "user.fat.attributes";

/// Bits that users may set.
const SETTABLE: u16 = READ_ONLY | HIDDEN | SYSTEM | ARCHIVE;

pub(crate) fn ioctl(volume: &Arc<Volume>, node: &Node, ioctl: &mut Ioctl<'_>) -> Result<i32> {
    let number = |value: u32| value.to_ne_bytes();
    let answer: Vec<u8> = match ioctl.command {
        GET_ATTRIBUTES => number(u32::from(node.inner.read().record.attr)).into(),
        GET_VOLUME_ID => number(volume.layout.serial).into(),
        GET_LABEL => label(volume)?.into_bytes(),
        SET_ATTRIBUTES => {
            let bits =
                ioctl.input.first_chunk().map(|bytes| u32::from_ne_bytes(*bytes)).ok_or(Errno::EINVAL)?;
            set_attributes(volume, node, u16::try_from(bits).map_err(|_| Errno::EINVAL)?)?;
            Vec::new()
        }
        SET_LABEL => {
            let end = ioctl.input.iter().position(|byte| *byte == 0).unwrap_or(ioctl.input.len());
            let text = std::str::from_utf8(&ioctl.input[..end]).map_err(|_| Errno::EINVAL)?;
            set_label(volume, text)?;
            Vec::new()
        }
        _ => return Err(Errno::ENOTTY),
    };
    let room = ioctl.output.get_mut(..answer.len()).ok_or(Errno::EINVAL)?;
    room.copy_from_slice(&answer);
    Ok(0)
}

/// Sets the attribute bits. What the node is cannot be changed by them.
pub(crate) fn set_attributes(volume: &Volume, node: &Node, bits: u16) -> Result<()> {
    let mut inner = node.inner.write();
    let own = inner.record.attr & (DIRECTORY | LABEL);
    if bits & !(SETTABLE | DIRECTORY | LABEL) != 0 || bits & LABEL != 0 {
        return Err(Errno::EINVAL);
    }
    // As the kernel has it: a directory stays one whether the bit is given or not, a file never becomes one.
    if bits & DIRECTORY != 0 && !node.is_dir {
        return Err(Errno::EINVAL);
    }
    if inner.slots.is_empty() {
        return if bits & SETTABLE == 0 { Ok(()) } else { Err(Errno::EPERM) };
    }
    volume.begin()?;
    let mut meta = volume.meta.lock();
    inner.record.attr = bits & SETTABLE | own;
    volume.store(&mut meta, &inner)
}

pub(crate) fn xattr(node: &Node, name: &std::ffi::OsStr) -> Result<Vec<u8>> {
    if name != XATTR {
        return Err(Errno::ENODATA);
    }
    Ok(format!("0x{:02x}", node.inner.read().record.attr & SETTABLE).into_bytes())
}

pub(crate) fn set_xattr(
    volume: &Volume,
    node: &Node,
    name: &std::ffi::OsStr,
    value: &[u8],
    mode: XattrMode,
) -> Result<()> {
    if name != XATTR {
        return Err(Errno::EOPNOTSUPP);
    }
    if mode == XattrMode::Create {
        return Err(Errno::EEXIST);
    }
    let digits = value.strip_prefix(b"0x").and_then(|digits| std::str::from_utf8(digits).ok());
    let bits = digits.and_then(|digits| u16::from_str_radix(digits, 16).ok()).ok_or(Errno::EINVAL)?;
    set_attributes(volume, node, bits)
}

/// The label of the root directory; empty if there is none.
pub(crate) fn label(volume: &Volume) -> Result<String> {
    let root = volume.root();
    let mut dirs = volume.dirs.lock();
    let dir = volume.dir(&mut dirs, &root)?;
    let Some(at) = dir.label.map(|slot| dir.offset(slot)) else { return Ok(String::new()) };
    let slot = volume.meta.lock().slot(at)?;
    Ok(label_of(volume, &slot))
}

fn label_of(volume: &Volume, slot: &Slot) -> String {
    let units: Vec<u16> = if volume.layout.is_exfat() {
        let len = usize::from(slot[1]).min(11);
        (0..len).map(|unit| u16::from_le_bytes([slot[2 + unit * 2], slot[3 + unit * 2]])).collect()
    } else {
        boot_label(volume, &crate::slots::fat::short_of(slot))
    };
    String::from_utf16_lossy(&units)
}

/// Eleven bytes of the code page, as characters.
pub(crate) fn boot_label(volume: &Volume, label: &[u8; 11]) -> Vec<u16> {
    let used = label.iter().rposition(|byte| *byte != b' ').map_or(0, |last| last + 1);
    label[..used].iter().map(|byte| volume.policy.page.decode(*byte)).collect()
}

/// Changes the label, in the root directory and in the boot sectors; an empty one takes it away.
pub(crate) fn set_label(volume: &Volume, text: &str) -> Result<()> {
    let root = volume.root();
    let mut dirs = volume.dirs.lock();
    let is_exfat = volume.layout.is_exfat();
    let mut slot: Slot = [0; 32];
    let mut boot = None;
    if is_exfat {
        let units: Vec<u16> = text.encode_utf16().collect();
        if units.len() > 11 || units.iter().any(|unit| *unit < 0x20) {
            return Err(Errno::EINVAL);
        }
        slot[0] = exfat::LABEL;
        slot[1] = units.len() as u8;
        for (place, unit) in slot[2..24].chunks_exact_mut(2).zip(units) {
            place.copy_from_slice(&unit.to_le_bytes());
        }
    } else {
        let stored = fat_label(text, &volume.policy.page, &volume.policy.capitals)?;
        let now = volume.new_record(LABEL);
        slot = crate::slots::fat::main(stored, 0, &now, volume.zone(), volume.wide());
        // Creation is not stamped, as other systems have it.
        slot[13..18].fill(0);
        slot[18..20].fill(0);
        boot = Some(if text.is_empty() { *b"NO NAME    " } else { stored });
    }
    volume.begin()?;
    let dir = volume.dir(&mut dirs, &root)?;
    match (dir.label, text.is_empty()) {
        (None, true) => {}
        (Some(old), true) if !is_exfat => {
            let at = dir.offset(old);
            volume.clear_slots(&mut volume.meta.lock(), &[at])?;
            dir.label = None;
            dir.free(old);
        }
        (Some(old), _) => volume.meta.lock().put_slot(dir.offset(old), &slot)?,
        (None, false) => {
            let first = volume.make_room(dir, &root, 1)?;
            volume.meta.lock().put_slot(dir.offset(first), &slot)?;
            dir.occupy(first, 1);
            dir.label = Some(first);
        }
    }
    match boot {
        Some(boot) => volume.meta.lock().put_boot_label(&boot),
        None => Ok(()),
    }
}
