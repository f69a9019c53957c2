//! Places in the tree at which something else is seen than in the layers: `except=` and `hide=`.

use std::collections::HashMap;
use std::ffi::{OsStr, OsString};
use std::path::{Component, Path};
use std::sync::Arc;

/// What is at a point.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Point {
    /// The tree at the mount point shows through, as it was before: its node at this path.
    Except(Vec<OsString>),
    /// Nothing is there.
    Hide,
}

/// The points at and below one directory.
#[derive(Debug, Default)]
pub(crate) struct Points {
    below: HashMap<OsString, Arc<Points>>,
    here: Option<Point>,
}

impl Points {
    /// What lies at a name, or below it.
    pub(crate) fn get(&self, name: &OsStr) -> Option<&Arc<Points>> {
        self.below.get(name)
    }
    pub(crate) fn here(&self) -> Option<&Point> {
        self.here.as_ref()
    }
    pub(crate) fn is_empty(&self) -> bool {
        self.below.is_empty()
    }
    /// The names at which something else is seen.
    pub(crate) fn names(&self) -> impl Iterator<Item = (&OsStr, &Point)> {
        self.below.iter().filter_map(|(name, points)| Some((name.as_os_str(), points.here.as_ref()?)))
    }

    /// Adds a point at a path from the root of the tree. An error if it is none, or is the root itself.
    pub(crate) fn add(&mut self, path: &Path, hide: bool) -> Result<(), String> {
        let mut names = Vec::new();
        for component in path.components() {
            match component {
                Component::Normal(name) => names.push(name.to_owned()),
                Component::RootDir | Component::CurDir => {}
                _ => return Err(format!("{} is no path below the mount point", path.display())),
            }
        }
        if names.is_empty() {
            return Err(format!("{} is the whole tree", path.display()));
        }
        let point = if hide { Point::Hide } else { Point::Except(names.clone()) };
        let mut here = self;
        for name in names {
            let next = here.below.entry(name).or_default();
            here = Arc::get_mut(next).expect("nobody shares the points before the mount");
        }
        here.here = Some(point);
        Ok(())
    }
}
