//! Owners: numbers of the server's users and groups, and ours.

use std::collections::HashMap;
use std::path::Path;

use nix::unistd::{Group, User};
use parking_lot::Mutex;
use veduta_api::{Errno, MountError, Result};

/// How owners are translated.
#[derive(Debug, Default)]
pub(crate) struct IdMap {
    users: Ids,
    groups: Ids,
}

#[derive(Debug, Default)]
struct Ids {
    /// What everything belongs to: `uid=`, `gid=`.
    fixed: Option<u32>,
    to_local: HashMap<u32, u32>,
    to_remote: HashMap<u32, u32>,
    /// Whether a number without a translation is an error (`nomap=error`) rather than kept.
    strict: bool,
    /// `idmap=name`: what was learnt of the server's numbers.
    learnt: Option<Mutex<HashMap<u32, u32>>>,
}

impl IdMap {
    pub(crate) fn fix(&mut self, uid: Option<u32>, gid: Option<u32>) {
        self.users.fixed = uid;
        self.groups.fixed = gid;
    }

    /// `idmap=user`: the server's user is the one who mounts.
    pub(crate) fn add_pair(&mut self, remote: (u32, u32), local: (u32, u32)) {
        self.users.add(remote.0, local.0);
        self.groups.add(remote.1, local.1);
    }

    /// `idmap=name`: a user is who has the same name here.
    pub(crate) fn learn(&mut self) {
        self.users.learnt = Some(Mutex::default());
        self.groups.learnt = Some(Mutex::default());
    }

    /// Numbers of `owners` whose names are not known yet: users, then groups.
    pub(crate) fn unknown(&self, owners: impl Iterator<Item = (u32, u32)>) -> Option<(Vec<u32>, Vec<u32>)> {
        let (users, groups) = (self.users.learnt.as_ref()?.lock(), self.groups.learnt.as_ref()?.lock());
        let (mut uids, mut gids) = (Vec::new(), Vec::new());
        for (uid, gid) in owners {
            if !users.contains_key(&uid) && !uids.contains(&uid) {
                uids.push(uid);
            }
            if !groups.contains_key(&gid) && !gids.contains(&gid) {
                gids.push(gid);
            }
        }
        (!uids.is_empty() || !gids.is_empty()).then_some((uids, gids))
    }

    /// The server has told names for numbers; one without a name is empty.
    pub(crate) fn told(&self, users: &[(u32, String)], groups: &[(u32, String)]) {
        let user = |name: &str| User::from_name(name).ok().flatten().map(|user| user.uid.as_raw());
        let group = |name: &str| Group::from_name(name).ok().flatten().map(|group| group.gid.as_raw());
        for (ids, told, find) in
            [(&self.users, users, &user as &dyn Fn(&str) -> Option<u32>), (&self.groups, groups, &group)]
        {
            let Some(learnt) = &ids.learnt else { continue };
            for (number, name) in told {
                learnt.lock().insert(*number, find(name).unwrap_or(*number));
            }
        }
    }

    /// `uidfile=`, `gidfile=`: lines of `NAME:NUMBER`, a name here and a number there.
    pub(crate) fn read_files(
        &mut self,
        users: Option<&Path>,
        groups: Option<&Path>,
        strict: bool,
    ) -> Result<(), MountError> {
        let user = |name: &str| User::from_name(name).ok().flatten().map(|user| user.uid.as_raw());
        let group = |name: &str| Group::from_name(name).ok().flatten().map(|group| group.gid.as_raw());
        if let Some(file) = users {
            self.users.read(file, &user, strict)?;
        }
        if let Some(file) = groups {
            self.groups.read(file, &group, strict)?;
        }
        Ok(())
    }

    /// The server's owner, as it is shown here. `EPERM` if it has no translation and must have one.
    pub(crate) fn to_local(&self, (uid, gid): (u32, u32)) -> Result<(u32, u32)> {
        Ok((self.users.to_local(uid)?, self.groups.to_local(gid)?))
    }

    /// Our user, as the server knows it.
    pub(crate) fn user_to_remote(&self, uid: u32) -> Result<u32> {
        self.users.to_remote(uid)
    }

    /// Our group, as the server knows it.
    pub(crate) fn group_to_remote(&self, gid: u32) -> Result<u32> {
        self.groups.to_remote(gid)
    }
}

impl Ids {
    fn add(&mut self, remote: u32, local: u32) {
        self.to_local.insert(remote, local);
        self.to_remote.insert(local, remote);
    }

    fn read(
        &mut self,
        file: &Path,
        find: &dyn Fn(&str) -> Option<u32>,
        strict: bool,
    ) -> Result<(), MountError> {
        let shown = file.display();
        let text = std::fs::read_to_string(file)
            .map_err(|error| MountError::usage(format!("{shown} cannot be read: {error}")))?;
        self.strict = strict;
        for (number, line) in text.lines().enumerate() {
            let line = line.trim();
            if line.is_empty() || line.starts_with('#') {
                continue;
            }
            let wrong = |what: &str| MountError::usage(format!("{shown}, line {}: {what}", number + 1));
            let (name, remote) = line.split_once(':').ok_or_else(|| wrong("NAME:NUMBER is expected"))?;
            let remote = remote.trim().parse().map_err(|_| wrong("NAME:NUMBER is expected"))?;
            let local = find(name.trim()).ok_or_else(|| wrong(&format!("nobody is called {name:?} here")))?;
            self.add(remote, local);
        }
        Ok(())
    }

    fn to_local(&self, remote: u32) -> Result<u32> {
        if let Some(fixed) = self.fixed {
            return Ok(fixed);
        }
        if let Some(learnt) = &self.learnt {
            return Ok(learnt.lock().get(&remote).copied().unwrap_or(remote));
        }
        match self.to_local.get(&remote) {
            Some(local) => Ok(*local),
            None if self.strict => Err(Errno::EPERM),
            None => Ok(remote),
        }
    }

    fn to_remote(&self, local: u32) -> Result<u32> {
        if self.fixed.is_some() {
            return Err(Errno::EPERM);
        }
        if let Some(learnt) = &self.learnt {
            let learnt = learnt.lock();
            let known = learnt.iter().find(|(_, here)| **here == local).map(|(there, _)| *there);
            return Ok(known.unwrap_or(local));
        }
        match self.to_remote.get(&local) {
            Some(remote) => Ok(*remote),
            None if self.strict => Err(Errno::EPERM),
            None => Ok(local),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_of_names_maps_both_ways_and_what_it_lacks_is_an_error_if_so_wanted() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("users");
        std::fs::write(&file, "# who is who\nroot:1000\n\n").unwrap();
        for (strict, unknown) in [(true, Err(Errno::EPERM)), (false, Ok((77, 5)))] {
            let mut map = IdMap::default();
            map.read_files(Some(&file), None, strict).unwrap();
            assert_eq!(map.to_local((1000, 5)), Ok((0, 5)));
            assert_eq!(map.user_to_remote(0), Ok(1000));
            assert_eq!(map.to_local((77, 5)), unknown);
        }
        std::fs::write(&file, "nobody here is called so:1").unwrap();
        let error = IdMap::default().read_files(Some(&file), None, true).unwrap_err();
        assert!(error.message.contains("line 1"), "{}", error.message);
    }

    #[test]
    fn a_fixed_owner_owns_everything_and_cannot_be_changed() {
        let mut map = IdMap::default();
        map.fix(Some(7), None);
        assert_eq!(map.to_local((1, 2)), Ok((7, 2)));
        assert_eq!(map.user_to_remote(7), Err(Errno::EPERM));
    }
}
