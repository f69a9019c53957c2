//! An upper layer by itself: what was changed in it, and what is to become of that.
//!
//! The layers below are those that the layer was last mounted over, which it has a record of, or those that are given. What changes
//! something takes the layer as a mount does: it is refused while the layer is in use.

mod archive;
mod commit;
mod diff;
mod ground;
mod raw;
mod sparse;
mod touched;

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::OsStrExt;
use std::path::{Component, Path, PathBuf};
use std::sync::Arc;

use veduta_api::{Errno, Filesystem, Ino, Kind, MountError, Result};

use crate::layer::{FOREIGN_OPAQUE, Prefix, whiteout_of};
use crate::setup::{Mode, Place, Setup};
use crate::state::{self, State};
use crate::tree::Tree;

pub use archive::Holes;
pub use commit::{Conflict, Outcome};
pub use diff::{Change, What};

/// What long work tells of itself.
pub trait Watch {
    /// A file is done, or looked at.
    fn file(&mut self);
    /// So many more bytes are done.
    fn bytes(&mut self, count: u64);
}

/// See the head of this file.
pub struct Upper {
    place: Place,
    lower: Vec<Place>,
    prefix: Prefix,
}

impl Upper {
    /// The layer at a path. `lower`: the layers below it; if not given, those of its record. None at all is an error where they are
    /// wanted. `reach` says where such a layer is to be opened, which may be another path than the one that it goes by.
    pub fn open(
        path: &Path,
        lower: Option<&[PathBuf]>,
        reach: &dyn Fn(&Path) -> Result<PathBuf, MountError>,
    ) -> Result<Self, MountError> {
        let place = Place::open(path)?;
        let (prefix, recorded) = read_record(&place)?;
        let names = match lower {
            Some(paths) => paths.to_vec(),
            None => recorded.into_iter().map(PathBuf::from).collect(),
        };
        let open = |path: &PathBuf| {
            let name = std::path::absolute(path).unwrap_or_else(|_| path.clone()).into_os_string();
            let opened = reach(path).and_then(|at| Place::open(&at));
            opened.map(|place| Place { name, ..place }).map_err(|error| named("a layer below", &error))
        };
        let lower = names.iter().map(open).collect::<Result<_, _>>()?;
        Ok(Self { place, lower, prefix })
    }

    /// A layer of any tree, over others.
    pub fn new(place: Place, lower: Vec<Place>) -> Result<Self, MountError> {
        let (prefix, _) = read_record(&place)?;
        Ok(Self { place, lower, prefix })
    }

    /// Makes a directory an upper layer over these, and makes the directory if it is missing.
    pub fn create(path: &Path, lower: &[PathBuf]) -> Result<(), MountError> {
        let failed =
            |errno: Errno| MountError::system(errno, format!("{}: {}", path.display(), errno.desc()));
        std::fs::create_dir_all(path)
            .map_err(|error| failed(error.raw_os_error().map_or(Errno::EIO, Errno::from_raw)))?;
        let place = Place::open(path)?;
        let open =
            |path: &PathBuf| Ok(Place::open(path).map_err(|error| named("a layer below", &error))?.name);
        let names: Vec<OsString> = lower.iter().map(open).collect::<Result<_, MountError>>()?;
        let setup = Setup { upper: Some(place.clone()), mode: Mode::Cow, ..Setup::default() };
        let prefix = setup.prefix(std::slice::from_ref(&place), Some(0));
        state::record(&*place.tree, place.root, prefix, &names).map_err(failed)
    }

    /// Copies the layer as it is, marks included, to a new directory. Content is shared where the filesystem can.
    pub fn clone_to(&self, path: &Path, watch: &mut dyn Watch) -> Result<(), MountError> {
        let failed =
            |errno: Errno| MountError::system(errno, format!("{}: {}", path.display(), errno.desc()));
        std::fs::create_dir(path)
            .map_err(|error| failed(error.raw_os_error().map_or(Errno::EIO, Errno::from_raw)))?;
        let to = Place::open(path)?;
        let state = State::begin(Arc::clone(&self.place.tree), self.place.root)?;
        let copied = raw::copy(&self.place, &to, watch).map_err(failed);
        state.end();
        copied
    }

    /// Removes the layer, unless it is in use.
    pub fn delete(self) -> Result<(), MountError> {
        self.discard(&[])?;
        let path = PathBuf::from(&self.place.name);
        let gone = state::empty(self.fs(), self.place.root);
        gone.and_then(|()| {
            std::fs::remove_dir(&path)
                .map_err(|error| error.raw_os_error().map_or(Errno::EIO, Errno::from_raw))
        })
        .map_err(|errno| MountError::system(errno, format!("{}: {}", path.display(), errno.desc())))
    }

    /// The layers below it, the topmost first.
    pub fn lower(&self) -> impl Iterator<Item = &Path> {
        self.lower.iter().map(|place| Path::new(&place.name))
    }

    fn fs(&self) -> &dyn Filesystem {
        &*self.place.tree
    }

    fn wants_lower(&self) -> Result<(), MountError> {
        if self.lower.is_empty() {
            let message =
                "it is not known what lies below this layer: it was never mounted here; give --lower";
            return Err(MountError::usage(message));
        }
        Ok(())
    }

    fn setup(&self) -> Setup {
        Setup {
            mode: Mode::Cow,
            upper: Some(self.place.clone()),
            lower: self.lower.clone(),
            user_xattr: self.prefix == Prefix::USER,
            ..Setup::default()
        }
    }

    /// The merged tree, to read.
    fn merged(&self) -> Result<Arc<Tree>, MountError> {
        Setup { read_only: true, ..self.setup() }.tree()
    }

    /// The tree below, to read.
    fn below(&self) -> Result<Arc<Tree>, MountError> {
        Setup { read_only: true, upper: None, ..self.setup() }.tree()
    }

    /// Throws away what was changed at these paths, or everything. Each is gone at once or not at all.
    pub fn discard(&self, paths: &[PathBuf]) -> Result<(), MountError> {
        let state = State::begin(Arc::clone(&self.place.tree), self.place.root)?;
        let done =
            if paths.is_empty() { self.discard_all(&state) } else { self.discard_paths(&state, paths) };
        state.end();
        done
    }

    fn discard_all(&self, state: &State) -> Result<(), MountError> {
        let fs = self.fs();
        let failed =
            |errno: Errno| MountError::system(errno, format!("not everything is gone: {}", errno.desc()));
        // First what hides all that is below: if this is killed after a commit, what the layer has no more is then seen below.
        for mark in ["opaque", "impure", "redirect"] {
            // Root of a user namespace may not even take away what is not there.
            if fs.getxattr(self.place.root, &self.prefix.name(mark)) == Err(Errno::ENODATA) {
                continue;
            }
            match fs.removexattr(self.place.root, &self.prefix.name(mark)) {
                Ok(()) | Err(Errno::ENODATA | Errno::EOPNOTSUPP) => {}
                Err(errno) => return Err(failed(errno)),
            }
        }
        match fs.unlink(self.place.root, OsStr::new(FOREIGN_OPAQUE)) {
            Ok(()) | Err(Errno::ENOENT) => {}
            Err(errno) => return Err(failed(errno)),
        }
        for name in raw_names(fs, self.place.root).map_err(failed)? {
            if name != state::NAME {
                self.discard_name(state, self.place.root, &name).map_err(failed)?;
            }
        }
        if let Some(links) = state.links() {
            state::empty(fs, links).map_err(failed)?;
        }
        touched::Touched::clear(fs, state).map_err(failed)
    }

    fn discard_paths(&self, state: &State, paths: &[PathBuf]) -> Result<(), MountError> {
        for path in paths {
            let shown = path.display();
            let names = components(path)?;
            let Some((last, above)) = names.split_last() else { return self.discard_all(state) };
            let failed = |errno: Errno| MountError::system(errno, format!("{shown}: {}", errno.desc()));
            let unchanged =
                || MountError::system(Errno::ENOENT, format!("{shown}: nothing was changed there"));
            let dir = walk(self.fs(), self.place.root, above).map_err(failed)?.ok_or_else(unchanged)?;
            match self.discard_name(state, dir, last) {
                Err(Errno::ENOENT) => return Err(unchanged()),
                done => done.map_err(failed)?,
            }
        }
        Ok(())
    }

    /// Takes a name out of the layer as it is, with all that is below.
    fn discard_name(&self, state: &State, dir: Ino, name: &OsStr) -> Result<()> {
        let fs = self.fs();
        // A deletion may be a name of its own; both stand for something that was made anew.
        let is_hidden = whiteout_of(name).is_some_and(|whiteout| fs.unlink(dir, &whiteout).is_ok());
        let entry = match fs.lookup(dir, name) {
            Err(Errno::ENOENT) if is_hidden => return Ok(()),
            entry => entry?,
        };
        if entry.attr.kind != Kind::Directory {
            if entry.attr.nlink == 2 {
                // The other name may be the one by which hard links find it.
                self.discard_link(state, entry.attr.st_ino)?;
            }
            return fs.unlink(dir, name);
        }
        let temporary = OsStr::new("discarded");
        fs.rename(dir, name, state.work, temporary, veduta_api::RenameFlags::default())?;
        state::empty(fs, state.work)
    }

    fn discard_link(&self, state: &State, st_ino: u64) -> Result<()> {
        let Some(links) = state.links() else { return Ok(()) };
        let mut found = Vec::new();
        self.fs().readdir(links, 0, &mut |entry| {
            if entry.st_ino == st_ino {
                found.push(entry.name.to_owned());
            }
            std::ops::ControlFlow::Continue(())
        })?;
        found.iter().try_for_each(|name| self.fs().unlink(links, name))
    }
}

/// Under which prefix a layer has its marks, and which layers were below it.
pub(crate) fn read_record(place: &Place) -> Result<(Prefix, Vec<OsString>), MountError> {
    for prefix in [Prefix::TRUSTED, Prefix::USER] {
        match place.tree.getxattr(place.root, &prefix.name("veduta.layers")) {
            Ok(value) => {
                let lines = value.split(|byte| *byte == b'\n').filter(|line| !line.is_empty());
                return Ok((prefix, lines.map(|line| OsStr::from_bytes(line).to_owned()).collect()));
            }
            Err(Errno::ENODATA | Errno::EOPNOTSUPP) => {}
            Err(errno) => {
                return Err(MountError::system(errno, format!("it cannot be read: {}", errno.desc())));
            }
        }
    }
    let prefix = if rustix::process::geteuid().is_root() { Prefix::TRUSTED } else { Prefix::USER };
    Ok((prefix, Vec::new()))
}

/// The names of a path from the root of a tree. `..` is an error: there is nothing above.
pub(crate) fn components(path: &Path) -> Result<Vec<OsString>, MountError> {
    let mut names = Vec::new();
    for component in path.components() {
        match component {
            Component::Normal(name) => names.push(name.to_owned()),
            Component::RootDir | Component::CurDir => {}
            _ => return Err(MountError::usage(format!("{}: is no path in the tree", path.display()))),
        }
    }
    Ok(names)
}

/// The directory at a path, through directories only.
pub(crate) fn walk(fs: &dyn Filesystem, root: Ino, names: &[OsString]) -> Result<Option<Ino>> {
    let mut here = root;
    for name in names {
        match fs.lookup(here, name) {
            Ok(entry) if entry.attr.kind == Kind::Directory => here = entry.ino,
            Ok(_) | Err(Errno::ENOENT) => return Ok(None),
            Err(error) => return Err(error),
        }
    }
    Ok(Some(here))
}

pub(crate) fn raw_names(fs: &dyn Filesystem, dir: Ino) -> Result<Vec<OsString>> {
    let mut names = Vec::new();
    fs.readdir(dir, 0, &mut |entry| {
        names.push(entry.name.to_owned());
        std::ops::ControlFlow::Continue(())
    })?;
    names.sort_unstable();
    Ok(names)
}

/// A path below a directory.
fn path_of(above: &Path, name: &OsStr) -> PathBuf {
    if above.as_os_str().is_empty() { PathBuf::from(name) } else { above.join(name) }
}

fn failed(path: &Path, errno: Errno) -> MountError {
    MountError::system(errno, format!("{}: {}", Path::new("/").join(path).display(), errno.desc()))
}

fn named(what: &str, error: &MountError) -> MountError {
    MountError { message: format!("{what}: {}", error.message), ..error.clone() }
}
