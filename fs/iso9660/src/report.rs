//! What `veduta info` tells of a volume.

use veduta_api::{Disk, MountError, Report};

use crate::choices::Choices;
use crate::descriptor::Descriptor;
use crate::eltorito;
use crate::session;
use crate::volume::{Scheme, Volume, rock_ridge};

pub(crate) fn describe(disk: &Disk, choices: Choices) -> Result<Report, MountError> {
    let volume = Volume::open(disk, choices)?;
    let descriptors = &volume.descriptors;
    let primary = &descriptors.primary;
    let mut report = Report::new();
    report.put("format", "iso9660");
    for (key, text) in [
        ("label", &primary.name),
        ("volume_set", &primary.set),
        ("system", &primary.system),
        ("publisher", &primary.publisher),
        ("preparer", &primary.preparer),
        ("application", &primary.application),
    ] {
        if !text.is_empty() {
            report.put(key, text.as_str());
        }
    }
    let times = [
        ("created", primary.created),
        ("modified", primary.modified),
        ("expires", primary.expires),
        ("effective", primary.effective),
    ];
    for (key, time) in times.into_iter().filter_map(|(key, time)| Some((key, time?))) {
        report.put(key, time);
    }
    report.put("size", veduta_api::Value::Bytes(primary.size()));
    report.put("block_size", primary.block_size);
    report.put("extensions", extensions(&volume)?);
    report.put("shown", shown(volume.scheme));
    report.put("raw_sectors", volume.is_raw);
    put_sessions(&mut report, &volume);
    put_boot_images(&mut report, &volume);
    for warning in &descriptors.warnings {
        report.warn(warning.as_str());
    }
    if let Some(sentence) = shortness(&volume, primary) {
        report.warn(sentence);
    }
    Ok(report)
}

/// What is missing of an image that ends before its volume does.
pub(crate) fn shortness(volume: &Volume, primary: &Descriptor) -> Option<String> {
    let (start, size) = (volume.session * 2048, volume.image.disk.size());
    // The count of blocks starts at the session or at the disc, as the writer pleased: the smaller claim counts.
    let missing = primary.size().saturating_sub(size);
    (missing > 0 && size > start).then(|| {
        format!(
            "the image is cut off: the volume has {} bytes, of which the last {missing} are missing",
            primary.size()
        )
    })
}

fn extensions(volume: &Volume) -> Result<Vec<String>, MountError> {
    let descriptors = &volume.descriptors;
    let mut found = Vec::new();
    if let Some((_, name)) = rock_ridge(&volume.image, &descriptors.primary)? {
        found.push(format!("Rock Ridge ({name})"));
    }
    if let Some(level) = descriptors.joliet.as_ref().and_then(|joliet| joliet.joliet_level) {
        found.push(format!("Joliet level {level}"));
    }
    if descriptors.enhanced.is_some() {
        found.push("ISO 9660:1999".into());
    }
    if descriptors.boot_catalog.is_some() {
        found.push("El Torito".into());
    }
    Ok(found)
}

fn shown(scheme: Scheme) -> &'static str {
    match scheme {
        Scheme::RockRidge(_) => "Rock Ridge",
        Scheme::Joliet => "Joliet",
        Scheme::Enhanced => "ISO 9660:1999",
        Scheme::Plain => "plain ISO 9660",
    }
}

fn put_sessions(report: &mut Report, volume: &Volume) {
    let table = session::find(&volume.image)
        .into_iter()
        .map(|session| {
            let mut row = Report::new();
            row.put("sector", session.start).put("volume", session.name);
            row.put("size", veduta_api::Value::Bytes(session.size));
            row
        })
        .collect::<Vec<_>>();
    report.put("sessions", table);
}

fn put_boot_images(report: &mut Report, volume: &Volume) {
    let Some(sector) = volume.descriptors.boot_catalog else { return };
    match eltorito::catalog(&volume.image, sector, volume.shown().size()) {
        Ok(images) => {
            let table = images
                .into_iter()
                .map(|image| {
                    let mut row = Report::new();
                    row.put("name", image.name).put("platform", image.platform);
                    row.put("emulation", image.emulation).put("bootable", image.bootable);
                    row.put("sector", image.at / 2048).put("size", veduta_api::Value::Bytes(image.size));
                    row
                })
                .collect::<Vec<_>>();
            report.put("boot_images", table);
        }
        Err(error) => {
            report.warn(error.to_string());
        }
    }
}
