//! An open file: reading ahead, and the handle that the server knows it by.
//!
//! Who reads one piece after another has the next ones asked for before they are wanted, as many as the way to the server holds (see
//! [`crate::rate`]); how many grows with each read that follows the last. The kernel asks from several threads, so "after another" leaves
//! room for a little disorder. A write of ours throws away what was read ahead.

use std::collections::VecDeque;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use parking_lot::{Condvar, Mutex};
use veduta_api::{Errno, File, OpenFlags, Result};

use crate::connection::{Connection, Patience, Reply, Waiting};
use crate::content::Content;
use crate::tree::Inner;
use crate::wire::{Packet, Status, reply, request};

/// Bytes; how much is asked for at once, if the server gives so much. OpenSSH gives 1 KiB less than 256: whole pages of that.
const PIECE: usize = 252 * 1024;

/// Bytes; how far before or behind what was expected a read may lie and still follow the last.
const DISORDER: u64 = 1 << 20;

/// Bytes; read ahead in all files together at most.
const MOST_AHEAD: usize = 64 << 20;

/// An open file of the server.
pub(crate) struct Handle {
    pub(crate) lane: usize,
    pub(crate) flags: OpenFlags,
    pub(crate) place: Mutex<Place>,
}

/// Where the server has it.
#[derive(Clone)]
pub(crate) struct Place {
    pub(crate) connection: Arc<Connection>,
    pub(crate) bytes: Arc<[u8]>,
}

impl Drop for Handle {
    fn drop(&mut self) {
        let place = self.place.lock();
        if !place.connection.is_dead() {
            place.connection.close(&place.bytes);
        }
    }
}

/// See the head of this file.
pub(crate) struct OpenFile {
    pub(crate) tree: Arc<Inner>,
    pub(crate) content: Arc<Content>,
    pub(crate) handle: Arc<Handle>,
    /// Bytes; nothing is read ahead beyond.
    pub(crate) size: AtomicU64,
    pub(crate) ahead: Mutex<Ahead>,
}

#[derive(Default)]
pub(crate) struct Ahead {
    /// One behind the other.
    pieces: VecDeque<Piece>,
    /// Where a reader goes on who reads one after another.
    next: u64,
    /// Reads one after another.
    streak: u32,
    /// Of which change of the content this is.
    generation: u64,
}

/// A part of the file that was asked for.
#[derive(Clone)]
struct Piece {
    range: Range<u64>,
    fetch: Arc<Fetch>,
    /// Bytes that nobody has read yet.
    left: u64,
}

/// What was asked for: empty until it is here.
struct Fetch {
    data: Mutex<Option<Result<Data>>>,
    ready: Condvar,
    len: usize,
    total: Arc<AtomicUsize>,
}

impl Drop for Fetch {
    fn drop(&mut self) {
        self.total.fetch_sub(self.len, Ordering::Relaxed);
    }
}

/// Data of a reply.
struct Data(Option<Reply>);

impl Data {
    /// What a reply to a `READ` brings; nothing at the end of the file.
    fn of(reply: Reply, most: usize) -> Result<Self> {
        if reply.kind == reply::STATUS && reply.status()? == Status::Eof {
            return Ok(Data(None));
        }
        let reply = reply.expect(reply::DATA)?;
        let len = reply.fields().string()?.len();
        if len > most {
            tracing::error!("the server sent more than was asked for");
            return Err(Errno::EPROTO);
        }
        Ok(Data(Some(reply)))
    }

    fn bytes(&self) -> &[u8] {
        self.0.as_ref().and_then(|reply| reply.fields().string().ok()).unwrap_or_default()
    }
}

impl Fetch {
    fn start(
        connection: &Arc<Connection>,
        handle: &[u8],
        range: &Range<u64>,
        total: &Arc<AtomicUsize>,
    ) -> Result<Arc<Self>> {
        let len = usize::try_from(range.end - range.start).unwrap_or(PIECE);
        total.fetch_add(len, Ordering::Relaxed);
        let fetch =
            Arc::new(Self { data: Mutex::new(None), ready: Condvar::new(), len, total: total.clone() });
        let there = fetch.clone();
        let done = Waiting::callback(move |reply| {
            *there.data.lock() = Some(reply.and_then(|reply| Data::of(reply, len)));
            there.ready.notify_all();
        });
        connection.wait_for_room()?;
        connection.send(read_packet(handle, range), done, 0)?;
        Ok(fetch)
    }

    /// Copies from `skip` on, and says how much there was.
    fn copy(&self, skip: usize, buf: &mut [u8], limit: Duration) -> Result<usize> {
        let mut data = self.data.lock();
        let mut patience = Patience::new(limit);
        while data.is_none() {
            let pause = patience.pause()?;
            self.ready.wait_for(&mut data, pause);
        }
        match data.as_ref() {
            Some(Ok(data)) => {
                let bytes = data.bytes().get(skip..).unwrap_or_default();
                let count = bytes.len().min(buf.len());
                buf[..count].copy_from_slice(&bytes[..count]);
                Ok(count)
            }
            Some(Err(errno)) => Err(*errno),
            None => Err(Errno::EIO),
        }
    }
}

fn read_packet(handle: &[u8], range: &Range<u64>) -> Packet {
    let len = u32::try_from(range.end - range.start).unwrap_or(0);
    Packet::new(request::READ).string(handle).u64(range.start).u32(len)
}

impl Ahead {
    /// Whether a read follows the last one, or begins the file.
    fn follows(&self, offset: u64) -> bool {
        if self.streak == 0 {
            return offset == self.next;
        }
        let end = self.pieces.back().map_or(self.next, |piece| piece.range.end);
        offset + DISORDER >= self.next && offset <= end + DISORDER
    }

    /// Drops what was read, and what lies too far behind.
    fn trim(&mut self) {
        let keep = self.next.saturating_sub(DISORDER);
        while self.pieces.front().is_some_and(|piece| piece.left == 0 || piece.range.end < keep) {
            self.pieces.pop_front();
        }
    }
}

impl OpenFile {
    /// The pieces that a read needs, asked for if they are not yet; and those that a reader will want next.
    fn plan(
        &self,
        connection: &Arc<Connection>,
        handle: &[u8],
        range: &Range<u64>,
        generation: u64,
    ) -> Result<Vec<Piece>> {
        let step = connection.greeting().max_read.min(PIECE) as u64;
        let total = &self.tree.ahead_bytes;
        let mut ahead = self.ahead.lock();
        if ahead.generation != generation {
            *ahead = Ahead { generation, ..Ahead::default() };
        }
        if !self.tree.settings.read_ahead || !ahead.follows(range.start) {
            *ahead = Ahead { generation, next: range.end, ..Ahead::default() };
            return pieces(range, step).map(|range| Piece::start(connection, handle, range, total)).collect();
        }
        ahead.streak = (ahead.streak + 1).min(32);
        ahead.next = ahead.next.max(range.end);
        let growth = (range.end - range.start) << (ahead.streak - 1).min(24);
        let room = MOST_AHEAD.saturating_sub(total.load(Ordering::Relaxed));
        let window =
            if ahead.streak == 1 { 0 } else { growth.min(connection.rate.window().min(room) as u64) };
        let known_end = self.size.load(Ordering::Relaxed);
        let wanted = (range.end + window).min(known_end.max(range.end));
        let mut front = ahead.pieces.back().map_or(range.start, |piece| piece.range.end);
        let mut found = Vec::new();
        // What lies before everything that was asked for has been read before, or was dropped.
        let first = ahead.pieces.front().map_or(front, |piece| piece.range.start);
        if range.start < first {
            let before = range.start..range.end.min(first);
            for range in pieces(&before, step) {
                found.push(Piece::start(connection, handle, range, total)?);
            }
        }
        while front < wanted {
            // A read that goes beyond the known end is asked for as it is.
            let limit = if front < range.end { range.end.max(wanted) } else { wanted };
            let piece = Piece::start(connection, handle, front..limit.min(front + step), total)?;
            front = piece.range.end;
            ahead.pieces.push_back(piece);
        }
        for piece in &mut ahead.pieces {
            let (start, end) = (piece.range.start.max(range.start), piece.range.end.min(range.end));
            if start < end {
                piece.left = piece.left.saturating_sub(end - start);
                found.push(piece.clone());
            }
        }
        ahead.trim();
        Ok(found)
    }

    /// Reads through a live handle.
    fn read_some(
        &self,
        connection: &Arc<Connection>,
        handle: &[u8],
        buf: &mut [u8],
        offset: u64,
    ) -> Result<usize> {
        let limit = self.tree.settings.deadline;
        let end = offset.checked_add(buf.len() as u64).ok_or(Errno::EINVAL)?;
        let generation = self.content.before_read(&(offset..end), limit)?;
        let found = self.plan(connection, handle, &(offset..end), generation)?;
        let mut done = 0;
        for piece in found {
            let at = offset + done as u64;
            let Some(skip) = at.checked_sub(piece.range.start) else { break };
            let skip = usize::try_from(skip).map_err(|_| Errno::EINVAL)?;
            let want = piece.fetch.len.saturating_sub(skip).min(buf.len() - done);
            let got = piece.fetch.copy(skip, &mut buf[done..done + want], limit)?;
            done += got;
            if got < want {
                break;
            }
        }
        // The server gave less than was asked for: the end of the file, or its own limit.
        while done < buf.len() && offset + (done as u64) < self.size.load(Ordering::Relaxed) {
            let at = offset + done as u64;
            let step = connection.greeting().max_read.min(PIECE).min(buf.len() - done);
            let reply = connection.call(read_packet(handle, &(at..at + step as u64)))?;
            let data = Data::of(reply, step)?;
            let bytes = data.bytes();
            if bytes.is_empty() {
                break;
            }
            buf[done..done + bytes.len()].copy_from_slice(bytes);
            done += bytes.len();
        }
        Ok(done)
    }

    fn forget_ahead(&self) {
        let mut ahead = self.ahead.lock();
        *ahead = Ahead { next: ahead.next, ..Ahead::default() };
    }
}

impl Piece {
    fn start(
        connection: &Arc<Connection>,
        handle: &[u8],
        range: Range<u64>,
        total: &Arc<AtomicUsize>,
    ) -> Result<Self> {
        let fetch = Fetch::start(connection, handle, &range, total)?;
        Ok(Self { left: range.end - range.start, range, fetch })
    }
}

/// A range in steps.
fn pieces(range: &Range<u64>, step: u64) -> impl Iterator<Item = Range<u64>> + use<> {
    let end = range.end;
    let mut at = range.start;
    std::iter::from_fn(move || {
        let start = at;
        at = end.min(start.saturating_add(step.max(1)));
        (start < end).then_some(start..at)
    })
}

impl File for OpenFile {
    fn read_at(&self, buf: &mut [u8], offset: u64) -> Result<usize> {
        if buf.is_empty() {
            return Ok(0);
        }
        // Where the end of a file cannot be, because no file of Linux is so large.
        if offset.checked_add(buf.len() as u64).is_none_or(|end| i64::try_from(end).is_err()) {
            return Ok(0);
        }
        self.tree.through(&self.content, &self.handle, |place| {
            let result = self.read_some(&place.connection, &place.bytes, buf, offset);
            if result.is_err() {
                self.forget_ahead();
            }
            result
        })
    }

    fn write_at(&self, buf: &[u8], offset: u64) -> Result<usize> {
        let place = self.tree.live(&self.content, &self.handle)?;
        let window = place.connection.rate.window();
        place.connection.wait_for_acknowledgements(window).map_err(crate::session::unbroken)?;
        self.tree.note_write(self.content.ino, offset + buf.len() as u64);
        self.content
            .write(&place.connection, &place.bytes, buf, offset)
            .map_err(|errno| self.tree.explain_write(self.content.ino, errno))?;
        self.size.fetch_max(offset + buf.len() as u64, Ordering::Relaxed);
        if !self.tree.settings.write_behind {
            self.flush()?;
        }
        Ok(buf.len())
    }

    fn flush(&self) -> Result<()> {
        let settled = self.content.settle(self.tree.settings.deadline, false);
        settled.map_err(|errno| self.tree.explain_write(self.content.ino, errno))
    }

    /// The server's `fsync`, which writes the attributes too.
    fn sync(&self, _data_only: bool) -> Result<()> {
        let settled = self.content.settle(self.tree.settings.deadline, true);
        settled.map_err(|errno| self.tree.explain_write(self.content.ino, errno))?;
        self.tree.sync_handle(&self.content, &self.handle)
    }
}

impl Drop for OpenFile {
    fn drop(&mut self) {
        // Before the handle is closed behind it.
        self.content.send_rest();
    }
}
