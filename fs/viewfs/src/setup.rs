//! What a merged tree is made from: for the module, and for programs that need no mount to make one.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use veduta_api::{Errno, Filesystem, Ino, MountError};

use veduta_tree::hostdir::HostDir;

use crate::layer::{Layer, Prefix};
use crate::points::Points;
use crate::state::{self, State};
use crate::table::LayerNumber;
use crate::told::Watched;
use crate::tree::{Rules, Tree};

/// How two trees are laid over each other. A is the source, B the tree at the mount point.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Mode {
    /// A in the place of B.
    #[default]
    Bind,
    /// A's names over those of B. A stays as it is, changes go to B.
    Merge,
    /// A's names over those of B. B stays as it is, changes go to A.
    Cow,
    /// As `Cow`, but what may be changed in B is changed there.
    MinCow,
}

/// What a crash of the machine, or a power failure, leaves of copies in the upper layer. When only this program is killed, each is whole
/// or not there in any case.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Durability {
    /// A copy that is found has its content: the filesystem writes the content before the name. It is not waited for where
    /// the filesystem keeps that order by itself.
    #[default]
    Ordered,
    /// A copy, and a directory that is copied, is on the disk before it gets its name.
    Strict,
    /// Nothing, not even what was synced.
    Volatile,
}

/// A directory of a tree.
#[derive(Clone)]
pub struct Place {
    /// The tree.
    pub tree: Arc<dyn Filesystem>,
    /// The directory.
    pub root: Ino,
    /// What it is called, for the record that `veduta diff` reads: an absolute path.
    pub name: OsString,
}

impl Place {
    /// A directory of the host system.
    pub fn open(path: &Path) -> Result<Self, MountError> {
        let cannot =
            |errno: Errno| MountError::system(errno, format!("{}: {}", path.display(), errno.desc()));
        let name = std::path::absolute(path).map_err(|_| cannot(Errno::ENOENT))?.into_os_string();
        let tree = HostDir::open(path).map_err(cannot)?;
        Ok(Self { tree: Arc::new(tree), root: Ino::ROOT, name })
    }
}

/// A merged tree before it is made.
#[derive(Clone, Default)]
pub struct Setup {
    /// See [`Mode`].
    pub mode: Mode,
    /// A. Without one nothing can be changed.
    pub upper: Option<Place>,
    /// B, and what is below it, the topmost first.
    pub lower: Vec<Place>,
    /// The tree that shows through at the paths of `except`.
    pub below: Option<Place>,
    /// Paths from the root at which `below` shows through.
    pub except: Vec<PathBuf>,
    /// Paths from the root at which there is nothing.
    pub hide: Vec<PathBuf>,
    /// Nothing may be changed.
    pub read_only: bool,
    /// Copies for a change of metadata alone leave the content below.
    pub metacopy: bool,
    /// Renames of directories with parts below give `EXDEV`, as overlayfs does by default.
    pub no_redirect: bool,
    /// Hard links of files below are broken by a copy.
    pub no_index: bool,
    /// Owner, mode and type are kept as an attribute.
    pub vstat: bool,
    /// What is there stays as it is; new files may be written until they are closed.
    pub worm: bool,
    /// What a crash of the machine leaves.
    pub durability: Durability,
    /// Others change the layers, and that shall be seen within a second.
    pub renew: bool,
    /// Marks are kept as `user.overlay.*` also by root.
    pub user_xattr: bool,
    /// Nodes show the device and the number of the file behind, as `fstat(2)` on its descriptor does: for a view. Otherwise numbers
    /// are of the tree, and stay when a file is copied up.
    pub real_numbers: bool,
    /// With that: what is copied up keeps the numbers that it had, and whoever serves the tree tells them for descriptors too.
    pub keeps_numbers: bool,
    /// Nodes are shown with other owners than they have, by who wraps the tree.
    pub disguised: bool,
    /// The layers below are not written down.
    pub no_record: bool,
    /// The tree decides who may do what: whatever the user of this process may. For a view, and for a mount that is nobody
    /// else's.
    pub own_permissions: bool,
}

impl Setup {
    /// Makes the tree.
    pub fn mount(self) -> Result<Arc<dyn Filesystem>, MountError> {
        Ok(self.tree()?)
    }

    pub(crate) fn tree(self) -> Result<Arc<Tree>, MountError> {
        let mut points = Points::default();
        for (paths, hide) in [(&self.except, false), (&self.hide, true)] {
            for path in paths {
                let word = if hide { "hide" } else { "except" };
                points.add(path, hide).map_err(|error| MountError::usage(format!("{word}: {error}")))?;
            }
        }
        let (mut places, union, write_to) = self.layers()?;
        let watched = self.is_seen_through(&places, union, write_to).then(|| {
            let upper = &mut places[0];
            let watched = Arc::new(Watched::new(Arc::clone(&upper.tree), upper.root));
            upper.tree = Arc::<Watched>::clone(&watched);
            watched
        });
        let prefix = self.prefix(&places, write_to);
        let mut layers: Vec<Layer> =
            places.iter().map(|place| Layer { fs: Arc::clone(&place.tree), root: place.root }).collect();
        let in_place = (self.mode == Mode::MinCow && union > 1).then_some(1);
        let below = match (&self.below, self.except.is_empty()) {
            (Some(below), false) => {
                layers.push(Layer { fs: Arc::clone(&below.tree), root: below.root });
                Some(number(layers.len() - 1)?)
            }
            _ => None,
        };
        let state = match write_to {
            Some(to) if union > 1 => self.begin(&places, to, union, prefix)?,
            _ => None,
        };
        let rules = Rules {
            write_to,
            in_place: in_place.filter(|_| write_to.is_some()),
            metacopy: self.metacopy,
            redirect: !self.no_redirect,
            index: !self.no_index && self.mode == Mode::Cow,
            vstat: self.vstat,
            worm: self.worm,
            durability: self.durability,
            shared: self.renew || below.is_some() || matches!(self.mode, Mode::Bind | Mode::MinCow),
            own_permissions: self.own_permissions,
            real_numbers: self.real_numbers,
            keeps_numbers: self.real_numbers && self.keeps_numbers,
            disguised: self.disguised,
            prefix,
        };
        let tree = Tree::new(layers, union, below, points, rules, state, watched).map_err(|errno| {
            MountError::system(errno, format!("a layer cannot be read: {}", errno.desc()))
        })?;
        Ok(tree)
    }

    /// Whether others may look at the one layer below by themselves, as long as they are told of what differs: all the rest is shown as it is.
    fn is_seen_through(&self, places: &[Place], union: usize, write_to: Option<LayerNumber>) -> bool {
        // At the points of `except=` the layer below is seen too, and changed where it stands.
        let same = |below: &Place| {
            places
                .get(1)
                .is_some_and(|lower| Arc::ptr_eq(&lower.tree, &below.tree) && lower.root == below.root)
        };
        let is_plain = self.real_numbers && !self.renew && !self.vstat && !self.disguised;
        self.mode == Mode::Cow
            && (union, write_to) == (2, Some(0))
            && places.iter().all(|place| place.root == Ino::ROOT)
            && is_plain
            && self.hide.is_empty()
            && (self.except.is_empty() || self.below.as_ref().is_some_and(same))
    }

    /// The layers, the topmost first, how many of them are laid over each other, and which takes changes.
    fn layers(&self) -> Result<(Vec<Place>, usize, Option<LayerNumber>), MountError> {
        let mut places: Vec<Place> = self.upper.iter().cloned().collect();
        if self.mode != Mode::Bind || self.upper.is_none() {
            places.extend(self.lower.iter().cloned());
        }
        if places.is_empty() {
            return Err(MountError::usage("there is no layer: give a SOURCE, or lowerdir="));
        }
        if places.len() > 500 {
            return Err(MountError::usage("there are more than 500 layers"));
        }
        let union = places.len();
        let write_to = match self.mode {
            _ if self.read_only || self.upper.is_none() => None,
            Mode::Bind | Mode::Cow | Mode::MinCow => Some(0),
            Mode::Merge => Some(number(union - 1)?),
        };
        Ok((places, union, write_to))
    }

    /// Root's attributes where they can be set; in a namespace of a user they cannot.
    pub(crate) fn prefix(&self, places: &[Place], write_to: Option<LayerNumber>) -> Prefix {
        if self.user_xattr || !rustix::process::geteuid().is_root() {
            return Prefix::USER;
        }
        let Some(upper) = write_to.and_then(|to| places.get(usize::from(to))) else { return Prefix::TRUSTED };
        let trial = Prefix::TRUSTED.name("veduta.trial");
        match upper.tree.setxattr(upper.root, &trial, b"", veduta_api::XattrMode::Set) {
            Ok(()) => {
                let _ = upper.tree.removexattr(upper.root, &trial);
                Prefix::TRUSTED
            }
            Err(Errno::EROFS) => Prefix::TRUSTED,
            Err(_) => Prefix::USER,
        }
    }

    fn begin(
        &self,
        places: &[Place],
        to: LayerNumber,
        union: usize,
        prefix: Prefix,
    ) -> Result<Option<State>, MountError> {
        let upper = &places[usize::from(to)];
        let state = match State::begin(Arc::clone(&upper.tree), upper.root) {
            Ok(state) => state,
            Err(error) if self.mode == Mode::Merge && error.errno != Errno::EBUSY => {
                tracing::debug!("nothing can be made in directories that only the source has: {error}");
                return Ok(None);
            }
            Err(error) => return Err(error),
        };
        if usize::from(to) + 1 < union && !self.no_record {
            let names: Vec<OsString> =
                places[usize::from(to) + 1..].iter().map(|place| place.name.clone()).collect();
            if let Err(errno) = state::record(&*upper.tree, upper.root, prefix, &names) {
                tracing::warn!(
                    "the layers below are not written down ({}): diff and commit want --lower",
                    errno.desc()
                );
            }
        }
        Ok(Some(state))
    }
}

fn number(index: usize) -> Result<LayerNumber, MountError> {
    LayerNumber::try_from(index).map_err(|_| MountError::usage("there are too many layers"))
}
