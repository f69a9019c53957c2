//! Writing behind: the content of a file that is open, shared by all who have it open.
//!
//! A write is copied into a packet and answered at once. The packet goes out when it is full, when nothing else of the file is under
//! way, or when somebody needs it to be there: small writes that follow one another become one. What goes wrong is kept, and told by
//! every later write, by the `flush` of a `close`, and by `sync`, which also ends it.
//!
//! Changes of attributes of a file that was just made here may be put off in the same way: they follow its writes.
//!
//! The lock is held while packets are handed to the connection, which never waits.

use std::ops::Range;
use std::sync::{Arc, Weak};
use std::time::Duration;

use parking_lot::{Condvar, Mutex, MutexGuard};
use veduta_api::{Attr, Errno, Ino, Result};

use crate::connection::{Connection, Late, Patience, Waiting};
use crate::file::Handle;
use crate::session::unbroken;
use crate::wire::{Packet, request};

/// What is known of an open file beyond its node.
pub(crate) struct Content {
    pub(crate) ino: Ino,
    /// We made the file when we opened it: its attributes are ours to change.
    pub(crate) is_new: bool,
    state: Mutex<State>,
    changed: Condvar,
    handles: Mutex<Vec<Weak<Handle>>>,
    /// What the file was when it was opened, and what we have made of it since: by this it is known again after a reconnect.
    known: Mutex<Option<Attr>>,
}

#[derive(Default)]
struct State {
    buffer: Option<Buffer>,
    /// What is under way: a number, and the bytes that are written.
    under_way: Vec<(u64, Range<u64>)>,
    next: u64,
    error: Option<Errno>,
    /// Counts changes of content by us.
    generation: u64,
    /// The connection will call [`Late::send_now`].
    reminded: bool,
    /// What was sent last went this way.
    connection: Option<Arc<Connection>>,
}

/// A packet that is being filled.
struct Buffer {
    connection: Arc<Connection>,
    handle: Arc<[u8]>,
    packet: Packet,
    /// Where in the packet the data's length stands.
    at: usize,
    offset: u64,
    len: usize,
}

impl Buffer {
    fn new(connection: &Arc<Connection>, handle: &Arc<[u8]>, offset: u64, room: usize) -> Self {
        let packet = Packet::with_capacity(request::WRITE, room + handle.len() + 64);
        let packet = packet.string(handle).u64(offset);
        let at = packet.len();
        let packet = packet.string(b"");
        Self { connection: connection.clone(), handle: handle.clone(), packet, at, offset, len: 0 }
    }

    fn end(&self) -> u64 {
        self.offset + self.len as u64
    }

    /// Whether bytes at `offset` that are written through this handle belong behind what is here.
    fn continues(&self, connection: &Arc<Connection>, handle: &Arc<[u8]>, offset: u64, room: usize) -> bool {
        Arc::ptr_eq(&self.connection, connection)
            && self.handle == *handle
            && self.end() == offset
            && self.len < room
    }
}

impl Content {
    pub(crate) fn new(ino: Ino, is_new: bool, known: Option<Attr>) -> Arc<Self> {
        let (state, changed, handles) = (Mutex::default(), Condvar::new(), Mutex::default());
        Arc::new(Self { ino, is_new, state, changed, handles, known: Mutex::new(known) })
    }

    /// We have changed its attributes to these.
    pub(crate) fn know(&self, attr: Attr) {
        *self.known.lock() = Some(attr);
    }

    /// Whether a file with these attributes is this one, as far as the server can tell. What we write changes the time of change, and the size
    /// as we expect.
    pub(crate) fn is_same(&self, now: &Attr) -> bool {
        let was_changed = self.state.lock().generation > 0;
        self.known.lock().is_some_and(|known| {
            (now.kind, now.uid, now.gid, now.size) == (known.kind, known.uid, known.gid, known.size)
                && (was_changed || now.mtime == known.mtime)
        })
    }

    pub(crate) fn add_handle(&self, handle: &Arc<Handle>) {
        let mut handles = self.handles.lock();
        handles.retain(|handle| handle.strong_count() > 0);
        handles.push(Arc::downgrade(handle));
    }

    /// A handle of the file, for writing if one is wanted.
    pub(crate) fn handle(&self, writable: bool) -> Option<Arc<Handle>> {
        let handles = self.handles.lock();
        handles.iter().filter_map(Weak::upgrade).find(|handle| handle.flags.write || !writable)
    }

    /// A handle that can be read.
    pub(crate) fn readable(&self) -> Option<Arc<Handle>> {
        self.handles.lock().iter().filter_map(Weak::upgrade).find(|handle| handle.flags.read)
    }

    /// Writes behind. The handle's connection has taken what it can take; see [`Connection::wait_for_acknowledgements`].
    pub(crate) fn write(
        self: &Arc<Self>,
        connection: &Arc<Connection>,
        handle: &Arc<[u8]>,
        buf: &[u8],
        offset: u64,
    ) -> Result<()> {
        let room = connection.greeting().max_write;
        let mut state = self.state.lock();
        if let Some(errno) = state.error {
            return Err(errno);
        }
        state.generation += 1;
        if let Some(known) = &mut *self.known.lock() {
            known.size = known.size.max(offset + buf.len() as u64);
        }
        let (mut rest, mut at) = (buf, offset);
        while !rest.is_empty() {
            let continues =
                state.buffer.as_ref().is_some_and(|buffer| buffer.continues(connection, handle, at, room));
            if !continues {
                self.dispatch(&mut state);
            }
            let buffer = state
                .buffer
                .get_or_insert_with(|| Buffer::new(connection, handle, at, room.min(rest.len().max(32768))));
            let (now, later) = rest.split_at(rest.len().min(room - buffer.len));
            buffer.packet.extend_string(buffer.at, now);
            buffer.len += now.len();
            at += now.len() as u64;
            rest = later;
            if buffer.len == room {
                self.dispatch(&mut state);
            }
        }
        if state.under_way.is_empty() && state.buffer.is_some() && !state.reminded {
            // What follows soon goes with it.
            state.reminded = true;
            connection.remind(self.clone());
        }
        Ok(())
    }

    /// Sends a change of attributes behind what is written.
    pub(crate) fn change_behind(
        self: &Arc<Self>,
        connection: &Arc<Connection>,
        packet: Packet,
    ) -> Result<()> {
        let mut state = self.state.lock();
        if let Some(errno) = state.error {
            return Err(errno);
        }
        self.dispatch_later(&mut state);
        self.send(&mut state, connection, packet, 0..0, 0, true);
        Ok(())
    }

    /// Sends what is in the buffer.
    fn dispatch(self: &Arc<Self>, state: &mut State) {
        self.dispatch_buffer(state, false);
    }

    /// The same; it goes out with what comes next.
    fn dispatch_later(self: &Arc<Self>, state: &mut State) {
        self.dispatch_buffer(state, true);
    }

    fn dispatch_buffer(self: &Arc<Self>, state: &mut State, later: bool) {
        let Some(buffer) = state.buffer.take() else { return };
        let range = buffer.offset..buffer.end();
        // Of what is large, a copy costs more than what is saved.
        let later = later && buffer.len <= 65536;
        self.send(state, &buffer.connection, buffer.packet, range, buffer.len, later);
    }

    fn send(
        self: &Arc<Self>,
        state: &mut State,
        connection: &Arc<Connection>,
        packet: Packet,
        range: Range<u64>,
        bytes: usize,
        later: bool,
    ) {
        let number = state.next;
        state.next += 1;
        let content = self.clone();
        let done = Waiting::callback(move |reply| {
            let mut state = content.state.lock();
            state.under_way.retain(|(other, _)| *other != number);
            if let Err(errno) = reply.and_then(|reply| reply.ok()) {
                state.error.get_or_insert(unbroken(errno));
            }
            if state.under_way.is_empty() {
                content.dispatch(&mut state);
            }
            content.changed.notify_all();
        });
        state.under_way.push((number, range));
        state.connection = Some(connection.clone());
        let sent = if later {
            connection.send_later(packet, done, bytes)
        } else {
            connection.send(packet, done, bytes)
        };
        if let Err(errno) = sent {
            state.under_way.retain(|(other, _)| *other != number);
            state.error.get_or_insert(unbroken(errno));
        }
    }

    /// Sends whatever was held back, without waiting.
    pub(crate) fn send_rest(self: &Arc<Self>) {
        self.dispatch_later(&mut self.state.lock());
    }

    /// Waits until everything is written, well or not.
    pub(crate) fn drain(self: &Arc<Self>, limit: Duration) -> Result<()> {
        self.drained(limit).map(drop)
    }

    fn drained(self: &Arc<Self>, limit: Duration) -> Result<MutexGuard<'_, State>> {
        let mut state = self.state.lock();
        self.dispatch_later(&mut state);
        if !state.under_way.is_empty() {
            state.connection.iter().for_each(|connection| connection.kick());
            let mut patience = Patience::new(limit);
            while !state.under_way.is_empty() {
                let pause = patience.pause()?;
                self.changed.wait_for(&mut state, pause);
            }
        }
        Ok(state)
    }

    /// Waits until everything is written, and says whether that went well. The error stays, unless it is `taken`.
    pub(crate) fn settle(self: &Arc<Self>, limit: Duration, taken: bool) -> Result<()> {
        let mut state = self.drained(limit)?;
        let error = if taken { state.error.take() } else { state.error };
        error.map_or(Ok(()), Err)
    }

    /// Waits for writes that a read of these bytes must see. Says how often the content was changed.
    pub(crate) fn before_read(self: &Arc<Self>, range: &Range<u64>, limit: Duration) -> Result<u64> {
        let state = self.state.lock();
        // One that lies behind may be what the file ends with, and what is between is no hole before.
        let meets = |other: &Range<u64>| range.start < other.end;
        let buffered = state.buffer.as_ref().map(|buffer| buffer.offset..buffer.end());
        if state.under_way.iter().map(|(_, range)| range).chain(&buffered).any(meets) {
            drop(state);
            return Ok(self.drained(limit)?.generation);
        }
        Ok(state.generation)
    }

    /// Where the content ends at least, once everything that was written here is there. 0 if nothing is under way.
    pub(crate) fn end_under_way(&self) -> u64 {
        let state = self.state.lock();
        let ends = state.under_way.iter().map(|(_, range)| range.end);
        ends.chain(state.buffer.as_ref().map(Buffer::end)).max().unwrap_or(0)
    }

    /// The content was changed by other means than [`write`](Self::write).
    pub(crate) fn note_change(&self) {
        self.state.lock().generation += 1;
    }

    /// Whether we have changed the content.
    pub(crate) fn was_changed(&self) -> bool {
        self.state.lock().generation > 0
    }
}

impl Late for Content {
    fn send_now(self: Arc<Self>) {
        let mut state = self.state.lock();
        state.reminded = false;
        if state.under_way.is_empty() {
            self.dispatch(&mut state);
        }
    }
}
