//! Listing a directory: by replies alone, so that many listings can be under way and nobody need wait for any.
//!
//! `OPENDIR`, then several `READDIR` at a time until one says that it was the end, then `CLOSE`. Names come with attributes.

use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::{Condvar, Mutex};
use veduta_api::{Errno, Ino, Kind, Result};

use crate::connection::{Connection, Patience, Reply, Waiting};
use crate::nodes::{Stamp, Told};
use crate::session::unbroken;
use crate::tree::Inner;
use crate::wire::{Attrs, Packet, Status, reply, request};

/// `READDIR` requests of one directory that are under way. A small directory is told by the first, and ended by the second.
const AT_ONCE: usize = 2;

/// The same, once a directory has turned out to be large.
const AT_ONCE_LARGE: usize = 8;

/// Names in a reply; OpenSSH sends 100 at most, and fewer only at the end.
const SHORT: usize = 64;

/// Names of one directory; more are a server's mistake, or its malice.
const MOST: usize = 1 << 22;

/// What came of a listing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Listed {
    /// The table has the names.
    Done,
    /// The directory was changed meanwhile.
    Outdated,
}

/// Why a directory is listed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum How {
    /// Somebody waits.
    Wanted,
    /// Somebody waits, and the names are taken even if the directory is changed meanwhile.
    Anyhow,
    /// Somebody may come for it.
    Ahead,
}

/// A listing that is under way, or over.
pub(crate) struct Lister {
    inner: Arc<Inner>,
    connection: Arc<Connection>,
    dir: Ino,
    sent: Stamp,
    how: How,
    state: Mutex<State>,
    over: Condvar,
}

#[derive(Default)]
struct State {
    handle: Option<Vec<u8>>,
    under_way: usize,
    /// No more is to be asked.
    ended: bool,
    error: Option<Errno>,
    names: Vec<(OsString, Attrs)>,
    result: Option<Result<Listed>>,
}

impl Lister {
    /// Begins to list. `path` is the server's.
    pub(crate) fn start(
        inner: &Arc<Inner>,
        connection: &Arc<Connection>,
        dir: Ino,
        path: &[u8],
        sent: Stamp,
        how: How,
    ) -> Arc<Self> {
        let lister = Arc::new(Self {
            inner: inner.clone(),
            connection: connection.clone(),
            dir,
            sent,
            how,
            state: Mutex::default(),
            over: Condvar::new(),
        });
        let opened = lister.clone();
        let done = Waiting::callback(move |reply| opened.opened(reply));
        if let Err(errno) = connection.send(Packet::new(request::OPENDIR).string(path), done, 0) {
            lister.finish(Err(errno));
        }
        lister
    }

    /// Waits until it is over.
    pub(crate) fn wait(&self, limit: Duration) -> Result<Listed> {
        let mut patience = Patience::new(limit);
        let mut state = self.state.lock();
        loop {
            if let Some(result) = state.result {
                return result;
            }
            let pause = patience.pause()?;
            self.over.wait_for(&mut state, pause);
        }
    }

    fn opened(self: &Arc<Self>, reply: Result<Reply>) {
        let handle = reply
            .and_then(|reply| reply.expect(reply::HANDLE))
            .and_then(|reply| Ok(reply.fields().string()?.to_vec()));
        match handle {
            Ok(handle) => {
                self.state.lock().handle = Some(handle);
                self.read_on(AT_ONCE);
            }
            Err(errno) => self.finish(Err(errno)),
        }
    }

    /// Has so many requests under way, or ends.
    fn read_on(self: &Arc<Self>, at_once: usize) {
        let mut state = self.state.lock();
        while !state.ended && state.under_way < at_once {
            let Some(handle) = &state.handle else { break };
            let packet = Packet::new(request::READDIR).string(handle);
            let lister = self.clone();
            let done = Waiting::callback(move |reply| lister.read(reply));
            state.under_way += 1;
            if let Err(errno) = self.connection.send(packet, done, 0) {
                state.under_way -= 1;
                state.ended = true;
                state.error = Some(errno);
            }
        }
        if state.under_way > 0 {
            return;
        }
        if let Some(handle) = state.handle.take() {
            self.connection.close(&handle);
        }
        let error = state.error;
        drop(state);
        match error {
            Some(errno) => self.finish(Err(errno)),
            None => self.know_owners(),
        }
    }

    fn read(self: &Arc<Self>, reply: Result<Reply>) {
        let mut state = self.state.lock();
        state.under_way = state.under_way.saturating_sub(1);
        let before = state.names.len();
        match reply.and_then(|reply| take_names(&reply, &mut state.names)) {
            Ok(true) if state.names.len() <= MOST => {}
            Ok(true) => {
                tracing::error!("a directory has more than {MOST} names");
                state.ended = true;
                state.error = Some(Errno::EOVERFLOW);
            }
            Ok(false) => state.ended = true,
            Err(errno) => {
                state.ended = true;
                state.error.get_or_insert(errno);
            }
        }
        // After a short reply the next is likely the end: nothing is asked behind that.
        let is_short = state.names.len() - before < SHORT;
        let at_once = if is_short {
            1
        } else if state.names.len() > 150 {
            AT_ONCE_LARGE
        } else {
            AT_ONCE
        };
        drop(state);
        self.read_on(at_once);
    }

    /// Asks for the names of owners that are new, if they are shown by name.
    fn know_owners(self: &Arc<Self>) {
        let owners: Vec<(u32, u32)> =
            self.state.lock().names.iter().filter_map(|(_, attrs)| attrs.owner).collect();
        let Some((users, groups)) = self.inner.ids.unknown(owners.into_iter()) else { return self.fill() };
        let Some(packet) = self.inner.owners_packet(&self.connection, &users, &groups) else {
            return self.fill();
        };
        let lister = self.clone();
        let done = Waiting::callback(move |reply| {
            lister.inner.owners_told(reply, &users, &groups);
            lister.fill();
        });
        if let Err(errno) = self.connection.send(packet, done, 0) {
            self.finish(Err(errno));
        }
    }

    fn fill(&self) {
        let names = std::mem::take(&mut self.state.lock().names);
        let told: Vec<Told> = names
            .into_iter()
            .map(|(name, attrs)| {
                // What a link leads to must be asked for.
                let follows = self.inner.settings.links.follow && attrs.kind() == Some(Kind::Symlink);
                let attr = if follows { None } else { self.inner.attr(&attrs).ok() };
                Told { name, kind: attr.map(|attr| attr.kind), attr }
            })
            .collect();
        let taken = self.inner.table.lock().fill(self.dir, told, self.sent, self.how == How::Anyhow);
        self.finish(Ok(if taken { Listed::Done } else { Listed::Outdated }));
    }

    fn finish(&self, result: Result<Listed>) {
        self.state.lock().result = Some(result.map_err(unbroken));
        self.over.notify_all();
        if self.how == How::Ahead {
            self.inner.listed_ahead(self.dir, result == Ok(Listed::Done));
        }
    }
}

/// Takes names out of a reply. `false` at the end.
fn take_names(reply: &Reply, names: &mut Vec<(OsString, Attrs)>) -> Result<bool> {
    if reply.kind == reply::STATUS {
        return match reply.status()? {
            Status::Eof => Ok(false),
            status => Err(status.errno()),
        };
    }
    if reply.kind != reply::NAME {
        return Err(Errno::EPROTO);
    }
    let told = reply.fields().names()?;
    // A server that tells nothing, again and again, has told all.
    let is_end = told.is_empty();
    for (name, attrs) in told {
        match name {
            b"." | b".." => {}
            name if is_name(name) => names.push((OsString::from_vec(name.to_vec()), attrs)),
            name => {
                tracing::warn!("the server lists a name that cannot be: {:?}", String::from_utf8_lossy(name));
            }
        }
    }
    Ok(!is_end)
}

fn is_name(name: &[u8]) -> bool {
    !name.is_empty() && name.len() <= 255 && !name.contains(&b'/') && !name.contains(&0)
}
