//! Makes empty images.

use std::time::{SystemTime, UNIX_EPOCH};

use veduta_api::MountError;

use crate::store::Store;
use crate::{Failed, qcow2, vdi, vhd, vhdx, vmdk};

/// What [`create`] makes: names, and what each is.
pub const CREATABLE: &[(&str, &str)] = &[
    ("raw", "byte by byte, sparse"),
    ("qcow2", "QEMU's"),
    ("vdi", "VirtualBox's"),
    ("vhd", "Virtual PC's, dynamic"),
    ("vhd-fixed", "Virtual PC's, raw with a footer"),
    ("vhdx", "Hyper-V's"),
    ("vmdk", "VMware's, sparse"),
];

/// Makes an empty image of `size` bytes in an empty store. `file` is what the image is called; `backing` is the image below it, with its
/// format, which only qcow2 can have.
pub fn create(
    store: &dyn Store,
    format: &str,
    size: u64,
    file: &str,
    backing: Option<(&str, &str)>,
) -> Result<(), MountError> {
    if backing.is_some() && format != "qcow2" {
        return Err(MountError::usage(format!(
            "an image of the format {format} has none below it; qcow2 can"
        )));
    }
    if size == 0 || size > 1 << 60 {
        return Err(MountError::usage("a disk has at least one byte, and at most 1 EiB"));
    }
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let id = identifier(now.as_nanos() as u64 ^ u64::from(std::process::id()) << 40);
    match format {
        "raw" => store.set_len(size).failed(),
        "qcow2" => qcow2::create(store, size, 16, backing),
        "vdi" => vdi::create(store, size, id),
        // Its clock starts in 2000.
        "vhd" | "vhd-fixed" => vhd::create(
            store,
            size,
            format == "vhd-fixed",
            id,
            now.as_secs().saturating_sub(946_684_800) as u32,
        ),
        "vhdx" => vhdx::create(store, size, 512, id),
        "vmdk" => vmdk::create(store, size, file, now.as_secs() as u32 & 0x7fff_ffff),
        other => {
            let names: Vec<&str> = CREATABLE.iter().map(|(name, _)| *name).collect();
            Err(MountError::usage(format!("unknown format {other:?}; there are: {}", names.join(", "))))
        }
    }
}

/// A UUID of the fourth kind from a seed: it needs to differ, not to be a secret.
fn identifier(seed: u64) -> [u8; 16] {
    let mut state = seed;
    let mut next = || {
        // splitmix64
        state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (state ^ state >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ mixed >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ mixed >> 31
    };
    let mut id = [0; 16];
    id[..8].copy_from_slice(&next().to_le_bytes());
    id[8..].copy_from_slice(&next().to_le_bytes());
    id[6] = id[6] & 0x0f | 0x40;
    id[8] = id[8] & 0x3f | 0x80;
    id
}
