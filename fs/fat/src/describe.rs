//! What `veduta info` shows of a volume.

use veduta_api::{Disk, Errno, MountError, Report, Result};

use crate::boot::{Layout, le32};
use crate::controls;
use crate::meta::is_fsinfo;
use crate::options::Settings;
use crate::volume::Volume;

/// Bytes of the tables that are compared at once.
const STEP: u64 = 1 << 20;

pub(crate) fn describe(disk: &Disk, settings: Settings) -> Result<Report, MountError> {
    let volume = Volume::open(disk.clone().read_only(), settings, true)?;
    let io = |errno: Errno| MountError::system(errno, format!("cannot read the volume: {errno}"));
    let layout = &*volume.layout;
    let free = volume.meta.lock().free_clusters().map_err(io)?;
    let mut report = Report::new();
    report.put("format", layout.format.name());
    report.put("label", controls::label(&volume).unwrap_or_default());
    if layout.boot_label_at.is_some() {
        report
            .put("boot_label", String::from_utf16_lossy(&controls::boot_label(&volume, &layout.boot_label)));
    }
    report.put("volume_id", format!("{:04X}-{:04X}", layout.serial >> 16, layout.serial & 0xffff));
    report.put("oem", String::from_utf8_lossy(&layout.oem).trim_end().to_owned());
    report.put("size", veduta_api::Value::Bytes(layout.size));
    report.put("sector_size", veduta_api::Value::Bytes(layout.sector.into()));
    report.put("cluster_size", veduta_api::Value::Bytes(layout.cluster_size.into()));
    report.put("clusters", layout.clusters);
    report.put("free_clusters", free);
    report.put("free", veduta_api::Value::Bytes(free * u64::from(layout.cluster_size)));
    report.put("tables", layout.tables.len() as u32);
    report.put("dirty", layout.dirty);
    for warning in &volume.warnings {
        report.warn(warning.as_str());
    }
    if !tables_agree(disk, layout).map_err(io)? {
        report.warn("the copies of the table differ");
    }
    if let Some(sector) =
        layout.fsinfo.and_then(|at| disk.read_vec(at, 512).ok()).filter(|sector| is_fsinfo(sector))
    {
        let counted = le32(&sector, 488);
        if counted != u32::MAX && u64::from(counted) != free {
            report.warn(format!("FSInfo says that {counted} clusters are free, but there are {free}"));
        }
    }
    Ok(report)
}

/// Whether all copies of the table say the same of all clusters.
fn tables_agree(disk: &Disk, layout: &Layout) -> Result<bool> {
    let Some((first, others)) = layout.tables.split_first() else { return Ok(true) };
    let mut at = 0;
    while at < layout.table_len {
        let step = (layout.table_len - at).min(STEP) as usize;
        let bytes = disk.read_vec(first + at, step)?;
        for other in others {
            if disk.read_vec(other + at, step)? != bytes {
                return Ok(false);
            }
        }
        at += step as u64;
    }
    Ok(true)
}
