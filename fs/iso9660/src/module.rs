//! The module: what the programs list.

use std::sync::Arc;

use veduta_api::{
    Disk, Module, MountError, Object, OptionSpec, Options, Report, Request, Result, SourceKind,
};

use crate::choices::{Choices, OPTIONS};
use crate::error::SECTOR;
use crate::tree::Tree;
use crate::volume::Volume;
use crate::{raw, report};

/// `-t iso9660`
pub struct Iso9660;

impl Module for Iso9660 {
    fn name(&self) -> &'static str {
        "iso9660"
    }

    fn aliases(&self) -> &'static [&'static str] {
        &["iso", "cdrom", "umfuseiso9660", "vufuseiso9660"]
    }

    fn summary(&self) -> &'static str {
        "ISO 9660 images with Rock Ridge, Joliet, zisofs and El Torito (read-only)"
    }

    fn source(&self) -> SourceKind {
        SourceKind::Disk
    }

    fn options(&self) -> &'static [OptionSpec] {
        OPTIONS
    }

    fn manual(&self) -> &'static str {
        "\
Shows the tree with Rock Ridge if the volume has it, else that of Joliet, else that of ISO 9660:1999, else the plain
one; norock and nojoliet pass over the first two. Nothing can be changed, so the mount is always read-only.

Images of raw sectors (2352, 2448 or 2336 bytes, mode 1 or mode 2) are recognised and need no conversion.

An image file has no table of contents, so by default the descriptors at sector 16 count: for images that xorriso has
grown, those of the last session. session=N picks another; sbsector= names a sector as `xorriso -toc` prints it.

Files compressed by zisofs are shown unpacked. The images of an El Torito catalog are shown with -o eltorito as files
in /[BOOT], called by platform, number and emulation: bios-1-noemul.img, efi-2.img."
    }

    fn probe(&self, disk: &Disk) -> Result<bool> {
        let data = raw::data_view(disk)?;
        let disk = data.as_ref().unwrap_or(disk);
        let at = 16 * SECTOR;
        if disk.size() < at + SECTOR {
            return Ok(false);
        }
        Ok(disk.read_vec(at + 1, 5)? == b"CD001")
    }

    fn describe(&self, disk: &Disk, mut options: Options) -> Result<Report, MountError> {
        report::describe(disk, Choices::take(&mut options)?)
    }

    fn mount(&self, request: &mut Request<'_>) -> Result<Object, MountError> {
        let choices = Choices::take(&mut request.options)?;
        // Nothing is ever written, so the image need not be writable.
        let disk = request.world.disk(request.source, false)?;
        let volume = Volume::open(&disk, choices)?;
        let primary = &volume.descriptors.primary;
        let shortness = report::shortness(&volume, primary);
        for warning in volume.descriptors.warnings.iter().chain(&shortness) {
            tracing::warn!("iso9660: {}: {warning}", disk.name());
        }
        Ok(Object::Tree(Arc::new(Tree::new(volume)?)))
    }
}
