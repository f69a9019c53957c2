//! A volume that was found to be one: its descriptors, and which of its trees is shown.
//!
//! A volume can hold up to three trees over the same data: the plain one, which Rock Ridge may extend, that of Joliet,
//! and that of ISO 9660:1999. Shown is, as in Linux, Rock Ridge if there is any, else Joliet; else that of
//! ISO 9660:1999, and else the plain one.

use veduta_api::{Disk, MountError};

use crate::choices::{Choices, Session};
use crate::descriptor::{Descriptor, Descriptors};
use crate::error::{Error, Result};
use crate::image::Image;
use crate::record::Record;
use crate::rockridge::extension_name;
use crate::susp::Areas;
use crate::{raw, session};

/// Bytes that are read where a record is known to start: more than any record has.
pub(crate) const RECORD_MAX: usize = 256;
/// Bytes of the fields of CD-ROM XA, which some writers put in front of the system use fields.
const XA: usize = 14;

/// Which tree is shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Scheme {
    RockRidge(SystemUse),
    Joliet,
    Enhanced,
    Plain,
}

/// Where system use fields start: bytes to skip.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct SystemUse {
    /// In the root's record of itself.
    root: usize,
    /// In all others.
    others: usize,
}

/// A volume, with what its user chose.
#[derive(Debug)]
pub(crate) struct Volume {
    pub(crate) image: Image,
    /// Whether the image holds raw sectors.
    pub(crate) is_raw: bool,
    /// The sector at which the session starts.
    pub(crate) session: u64,
    pub(crate) descriptors: Descriptors,
    pub(crate) scheme: Scheme,
    /// The byte at which the root directory starts.
    pub(crate) root: u64,
    pub(crate) choices: Choices,
}

impl Volume {
    pub(crate) fn open(disk: &Disk, choices: Choices) -> Result<Self, MountError> {
        let unreadable = |errno: veduta_api::Errno| {
            MountError::system(errno, format!("the image cannot be read: {}", errno.desc()))
        };
        let data = raw::data_view(disk).map_err(unreadable)?;
        let is_raw = data.is_some();
        let mut image = Image::new(data.unwrap_or_else(|| disk.clone()));
        let session = session_start(&image, choices.session)?;
        let descriptors = Descriptors::read(&image, session)?;
        image.block_size = descriptors.primary.block_size;
        let scheme = choose(&image, &descriptors, &choices)?;
        let tree = shown(&descriptors, scheme);
        image.block_size = tree.block_size;
        let root = image.byte_of(tree.root);
        let volume = Self { is_raw, session, scheme, root, choices, image, descriptors };
        volume.directory_record(root, |_| ())?;
        Ok(volume)
    }

    /// The descriptor of the tree that is shown.
    pub(crate) fn shown(&self) -> &Descriptor {
        shown(&self.descriptors, self.scheme)
    }

    /// What messages call the volume.
    pub(crate) fn name(&self) -> &str {
        self.image.disk.name()
    }

    /// Whether Rock Ridge counts, and if so how many bytes of the system use area of a record to skip; `at` is
    /// the byte of the record.
    pub(crate) fn system_use_skip(&self, at: u64) -> Option<usize> {
        match self.scheme {
            Scheme::RockRidge(skip) if at == self.root => Some(skip.root),
            Scheme::RockRidge(skip) => Some(skip.others),
            _ => None,
        }
    }

    /// Calls `take` with the record that the directory at byte `start` has of itself.
    pub(crate) fn directory_record<T>(&self, start: u64, take: impl FnOnce(Record<'_>) -> T) -> Result<T> {
        own_record(&self.image, start, take)
    }
}

fn own_record<T>(image: &Image, start: u64, take: impl FnOnce(Record<'_>) -> T) -> Result<T> {
    let bytes = image.read_up_to(start, RECORD_MAX, "a directory")?;
    match Record::parse(&bytes) {
        Ok(Some(record)) if record.is_self() && record.is_directory() => Ok(take(record)),
        Ok(_) => Err(Error::corrupt(start, "a directory does not start with its own record")),
        Err(what) => Err(Error::corrupt(start, what)),
    }
}

fn session_start(image: &Image, choice: Session) -> Result<u64, MountError> {
    match choice {
        Session::First => Ok(0),
        Session::Sector(sector) => Ok(sector.into()),
        Session::Number(number) => {
            let sessions = session::find(image);
            let found = sessions.get(number as usize - 1).map(|session| session.start);
            found.ok_or_else(|| {
                MountError::usage(format!(
                    "option session={number}: the image has {} sessions",
                    sessions.len()
                ))
            })
        }
    }
}

fn shown(descriptors: &Descriptors, scheme: Scheme) -> &Descriptor {
    let primary = &descriptors.primary;
    match scheme {
        Scheme::RockRidge(_) | Scheme::Plain => primary,
        Scheme::Joliet => descriptors.joliet.as_ref().unwrap_or(primary),
        Scheme::Enhanced => descriptors.enhanced.as_ref().unwrap_or(primary),
    }
}

fn choose(image: &Image, descriptors: &Descriptors, choices: &Choices) -> Result<Scheme> {
    if !choices.no_rock_ridge {
        if let Some((skip, _)) = rock_ridge(image, &descriptors.primary)? {
            return Ok(Scheme::RockRidge(skip));
        }
    }
    Ok(if descriptors.joliet.is_some() && !choices.no_joliet {
        Scheme::Joliet
    } else if descriptors.enhanced.is_some() {
        Scheme::Enhanced
    } else {
        Scheme::Plain
    })
}

/// Whether the primary tree has Rock Ridge, where its fields start, and what it calls itself. The root's record of
/// itself must have an `SP`, and an `ER` that names Rock Ridge; of discs from before `ER`, a `PX` is enough.
pub(crate) fn rock_ridge(image: &Image, primary: &Descriptor) -> Result<Option<(SystemUse, &'static str)>> {
    let start = image.byte_of(primary.root);
    own_record(image, start, |record| {
        let area = |skip: usize| record.system_use.get(skip..).unwrap_or_default();
        let skip =
            [0, XA].into_iter().find(|skip| matches!(area(*skip), [b'S', b'P', _, _, 0xbe, 0xef, _, ..]));
        let Some(root) = skip else { return Ok(None) };
        let (mut others, mut name, mut has_posix) = (0, None, false);
        Areas::new(image).walk(area(root), start, &mut |field| {
            match &field.tag {
                b"SP" => others = field.data.get(2).copied().unwrap_or(0).into(),
                b"ER" => name = name.or(extension_name(field)),
                b"PX" => has_posix = true,
                _ => {}
            }
            Ok(())
        })?;
        let name = name.or(has_posix.then_some("without a name"));
        Ok(name.map(|name| (SystemUse { root, others }, name)))
    })?
}
