//! One connection to a server: requests go out as they come, many are under way at once, and replies are matched by number.
//!
//! Who asks writes the request to the descriptor himself, if that takes it at once; what it does not take is left to the one
//! writer thread. The one reader thread takes each reply to whoever waits for it: somebody who sleeps ([`Ticket`]), a function that is
//! called on the reader's thread, or nobody any more. The writer thread also looks for requests whose time is up.
//!
//! Everything is bounded: bytes that wait to be sent, requests under way, the length of a reply, the time of each request. A reply
//! that nobody asked for, a second reply, or a packet that makes no sense ends the connection: from then on nothing that this server
//! says could be trusted to belong to anything.
//!
//! Locks: `pending`, then `out`; nobody's function is called with either held.

use std::collections::{HashMap, VecDeque};
use std::io::{BufReader, Read};
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use parking_lot::{Condvar, Mutex};
use veduta_api::{Errno, Interrupt, Result};

use crate::rate::{Rate, Sent};
use crate::transport::{Program, Transport, Wire};
use crate::wire::{Fields, HEAD, MAX_PACKET, Malformed, Packet, Status, VERSION, reply, request};

/// The connection broke while a request was under way: whether the server did it is unknown. Becomes `EIO` where it leaves the driver.
pub(crate) const BROKEN: Errno = Errno::ECONNRESET;

/// How long somebody who was interrupted waits on: a server that is there answers within this, and a signal that only ticks does no
/// harm then. One that is silent is given up.
const GRACE: Duration = Duration::from_secs(1);

/// Bytes that may wait to be written.
const MAX_QUEUED: usize = 2 << 20;

/// Requests that may be under way.
const MAX_PENDING: usize = 4096;

/// How often the writer looks at the clock while something is under way.
const TICK: Duration = Duration::from_millis(250);

/// How long something is put off, so that others can go with it. Each packet by itself costs the way to the server several wake-ups.
const PUT_OFF: Duration = Duration::from_millis(2);

/// How long the writer goes on looking for what was put off, after the last such thing.
const LIVELY: Duration = Duration::from_millis(20);

/// How long a new request waits for a server that has let another's time run out and said nothing since.
const STALLED: Duration = Duration::from_secs(2);

/// What the server says of itself.
#[derive(Clone, Debug, Default)]
pub(crate) struct Greeting {
    pub(crate) extensions: HashMap<String, Vec<u8>>,
    /// Bytes; the largest `READ` and `WRITE`.
    pub(crate) max_read: usize,
    pub(crate) max_write: usize,
}

impl Greeting {
    pub(crate) fn has(&self, extension: &str) -> bool {
        self.extensions.contains_key(extension)
    }
}

/// A reply: its type, and its packet behind the number.
#[derive(Debug)]
pub(crate) struct Reply {
    pub(crate) kind: u8,
    pub(crate) body: Vec<u8>,
}

impl Reply {
    pub(crate) fn fields(&self) -> Fields<'_> {
        Fields(&self.body)
    }

    /// The status of a `STATUS`; `EPROTO` for another reply.
    pub(crate) fn status(&self) -> Result<Status> {
        match self.kind {
            reply::STATUS => Ok(Status::from_number(self.fields().u32()?)),
            _ => Err(Errno::EPROTO),
        }
    }

    /// The reply, if it is of the wanted type; otherwise the errno that its status stands for.
    pub(crate) fn expect(self, kind: u8) -> Result<Self> {
        if self.kind == kind { Ok(self) } else { Err(self.status()?.errno()) }
    }

    /// Whether it is a status that says yes.
    pub(crate) fn ok(&self) -> Result<()> {
        match self.status()? {
            Status::Ok => Ok(()),
            status => Err(status.errno()),
        }
    }
}

type Callback = Box<dyn FnOnce(Result<Reply>) + Send>;

/// Who waits for a reply.
pub(crate) enum Waiting {
    Slot(Arc<Slot>),
    Callback(Callback),
    /// Nobody any more. A handle that the server opens is closed again.
    Nobody,
}

impl Waiting {
    pub(crate) fn callback(call: impl FnOnce(Result<Reply>) + Send + 'static) -> Self {
        Waiting::Callback(Box::new(call))
    }
}

/// Where a reply is put for somebody who sleeps.
#[derive(Default)]
pub(crate) struct Slot {
    reply: Mutex<Option<Result<Reply>>>,
    ready: Condvar,
}

struct Pending {
    waiting: Waiting,
    sent: Sent,
    /// Bytes of data that the request carries.
    bytes: usize,
}

#[derive(Default)]
struct Out {
    queue: VecDeque<Vec<u8>>,
    /// Bytes of the first packet that are written.
    written: usize,
    /// Bytes that wait.
    bytes: usize,
    /// The descriptor took no more; the writer thread goes on when it does.
    blocked: bool,
    /// The writer thread sleeps until it is woken.
    idle: bool,
    /// It sleeps for longer than what is put off may wait.
    sleeps: bool,
    /// When something was last put off.
    put_off: Option<Instant>,
}

/// Something that holds back what it could send: it is told to send it soon.
pub(crate) trait Late: Send + Sync {
    fn send_now(self: Arc<Self>);
}

/// See the head of this file.
pub(crate) struct Connection {
    output: OwnedFd,
    out: Mutex<Out>,
    /// The writer has something to do.
    work: Condvar,
    /// There is room to send.
    room: Condvar,
    pending: Mutex<HashMap<u32, Pending>>,
    /// Entries of `pending`, to be looked at without it.
    under_way: AtomicUsize,
    next: AtomicU32,
    dead: AtomicBool,
    /// A request's time ran out, and nothing was heard since.
    stalled: AtomicBool,
    /// Bytes written and not acknowledged.
    unacknowledged: AtomicUsize,
    late: Mutex<Vec<Arc<dyn Late>>>,
    program: Mutex<Option<Program>>,
    /// How long each request may take.
    deadline: Duration,
    /// Whether a server that says nothing for that long is given up.
    drop_silent: bool,
    /// Milliseconds from `opened` to the last reply.
    heard: AtomicU64,
    opened: Instant,
    greeting: std::sync::OnceLock<Greeting>,
    pub(crate) rate: Rate,
}

impl Connection {
    /// Opens a way and exchanges greetings. `patience`: how long that may take; a person may have to type a password. The error is a sentence.
    pub(crate) fn open(
        transport: &Transport,
        deadline: Duration,
        patience: Duration,
        drop_silent: bool,
    ) -> Result<Arc<Self>, String> {
        let Wire { input, output, program } = transport.open()?;
        let connection = Arc::new(Self {
            output,
            out: Mutex::default(),
            work: Condvar::new(),
            room: Condvar::new(),
            pending: Mutex::default(),
            under_way: AtomicUsize::new(0),
            next: AtomicU32::new(1),
            dead: AtomicBool::new(false),
            stalled: AtomicBool::new(false),
            unacknowledged: AtomicUsize::new(0),
            late: Mutex::default(),
            program: Mutex::new(program),
            deadline,
            drop_silent,
            heard: AtomicU64::new(0),
            opened: Instant::now(),
            greeting: std::sync::OnceLock::new(),
            rate: Rate::new(),
        });
        match connection.greet(input, patience) {
            Ok(()) => Ok(connection),
            Err(sentence) => {
                connection.dead.store(true, Ordering::Release);
                let program = connection.program.lock().take();
                let said = program.map(|program| program.end(patience.is_zero())).unwrap_or_default();
                Err(if said.is_empty() { sentence } else { format!("{sentence}: {said}") })
            }
        }
    }

    fn greet(self: &Arc<Self>, input: OwnedFd, patience: Duration) -> Result<(), String> {
        let input = Input { input, deadline: Some(Instant::now() + patience), closed: None };
        let mut reader = BufReader::with_capacity(65536, input);
        self.push(Packet::new(request::INIT).seal(VERSION));
        let hello = read_packet(&mut reader, MAX_PACKET);
        let (kind, version, body) = match hello {
            Ok(Some(packet)) => packet,
            Ok(None) => return Err("the connection ended before the server spoke SFTP".into()),
            Err(error) if error.kind() == std::io::ErrorKind::TimedOut => {
                return Err(format!("the server said nothing for {} seconds", patience.as_secs()));
            }
            Err(error) => return Err(format!("what the server says is not SFTP ({error})")),
        };
        if kind != reply::VERSION || version < VERSION {
            return Err(format!("the server speaks no SFTP of version {VERSION} (type {kind}, {version})"));
        }
        let mut greeting = Greeting { max_read: 32768, max_write: 32768, ..Greeting::default() };
        let mut fields = Fields(&body);
        while !fields.is_empty() {
            let pair = fields.string().and_then(|name| Ok((name, fields.string()?)));
            let (name, data) = pair.map_err(|Malformed| "the server's greeting is garbled".to_owned())?;
            greeting.extensions.insert(String::from_utf8_lossy(name).into_owned(), data.to_vec());
        }
        reader.get_mut().deadline = None;
        let weak = Arc::downgrade(self);
        reader.get_mut().closed =
            Some(Box::new(move || weak.upgrade().is_none_or(|connection| connection.is_dead())));
        let failed = |error: std::io::Error| format!("a thread cannot be started: {error}");
        let connection = self.clone();
        let start = std::thread::Builder::new().name("sftp-reader".into());
        start.spawn(move || connection.read_replies(reader)).map_err(failed)?;
        let connection = self.clone();
        let start = std::thread::Builder::new().name("sftp-writer".into());
        if let Err(error) = start.spawn(move || connection.write_rest()) {
            self.die("a thread cannot be started");
            return Err(failed(error));
        }
        if greeting.has("limits@openssh.com") {
            self.ask_limits(&mut greeting);
        }
        let _ = self.greeting.set(greeting);
        Ok(())
    }

    /// A server that states limits may have stated 0 for "none": then ours hold.
    fn ask_limits(self: &Arc<Self>, greeting: &mut Greeting) {
        let answer = self.call(Packet::extended("limits@openssh.com"));
        let Ok(reply) = answer.and_then(|reply| reply.expect(reply::EXTENDED_REPLY)) else { return };
        let mut fields = reply.fields();
        let mut limit = || fields.u64().ok();
        let (_packet, Some(read), Some(write)) = (limit(), limit(), limit()) else { return };
        // Room for the head and the handle of the packet is kept from what the server takes in one.
        let most = MAX_PACKET - 1024;
        let bound = |limit: u64| match usize::try_from(limit) {
            Ok(0) | Err(_) => most,
            Ok(limit) => limit.clamp(512, most),
        };
        greeting.max_read = bound(read);
        greeting.max_write = bound(write);
    }

    pub(crate) fn greeting(&self) -> &Greeting {
        self.greeting.get_or_init(Greeting::default)
    }

    pub(crate) fn is_dead(&self) -> bool {
        self.dead.load(Ordering::Acquire)
    }

    /// Bytes written that the server has not acknowledged.
    pub(crate) fn unacknowledged(&self) -> usize {
        self.unacknowledged.load(Ordering::Acquire)
    }

    /// Asks, and waits for the reply.
    pub(crate) fn call(self: &Arc<Self>, packet: Packet) -> Result<Reply> {
        self.ask(packet)?.wait()
    }

    /// Asks; the reply is waited for later.
    pub(crate) fn ask(self: &Arc<Self>, packet: Packet) -> Result<Ticket> {
        self.wait_for_room()?;
        let slot = Arc::new(Slot::default());
        let number = self.send(packet, Waiting::Slot(slot.clone()), 0)?;
        Ok(Ticket { connection: self.clone(), number, slot, taken: false })
    }

    /// Asks two things at once, the second behind the first.
    pub(crate) fn ask_both(self: &Arc<Self>, first: Packet, second: Packet) -> Result<(Ticket, Ticket)> {
        self.wait_for_room()?;
        let slots = [Arc::new(Slot::default()), Arc::new(Slot::default())];
        let [a, b] = &slots;
        let one = self.enter(Waiting::Slot(a.clone()), 0)?;
        let two = self.enter(Waiting::Slot(b.clone()), 0)?;
        let mut bytes = first.seal(one);
        bytes.extend(second.seal(two));
        self.push(bytes);
        self.check_sent(one)?;
        let [a, b] = slots;
        let ticket = |number, slot| Ticket { connection: self.clone(), number, slot, taken: false };
        Ok((ticket(one, a), ticket(two, b)))
    }

    /// Sends a request, and says its number. Never waits, and calls nobody back, so that the reader may call it, with locks held. `bytes`: how much data it carries.
    pub(crate) fn send(&self, packet: Packet, waiting: Waiting, bytes: usize) -> Result<u32> {
        let number = self.enter(waiting, bytes)?;
        self.unacknowledged.fetch_add(bytes, Ordering::AcqRel);
        self.push(packet.seal(number));
        self.check_sent(number)?;
        Ok(number)
    }

    /// As [`send`](Self::send); it may go out with what comes next, or by itself a little later.
    pub(crate) fn send_later(&self, packet: Packet, waiting: Waiting, bytes: usize) -> Result<u32> {
        let number = self.enter(waiting, bytes)?;
        self.unacknowledged.fetch_add(bytes, Ordering::AcqRel);
        self.push_later(&packet.seal(number));
        self.check_sent(number)?;
        Ok(number)
    }

    /// The connection may have died before it could see this request. No callback is called here: who sends may hold a lock that it wants.
    fn check_sent(&self, number: u32) -> Result<()> {
        if self.is_dead() && self.pending.lock().remove(&number).is_some() { Err(BROKEN) } else { Ok(()) }
    }

    /// Gives a request its number.
    fn enter(&self, waiting: Waiting, bytes: usize) -> Result<u32> {
        if self.is_dead() {
            return Err(BROKEN);
        }
        let sent = self.rate.sent();
        let number = {
            let mut pending = self.pending.lock();
            // Numbers of requests that are answered late are not used again.
            let number = loop {
                let number = self.next.fetch_add(1, Ordering::Relaxed);
                if !pending.contains_key(&number) {
                    break number;
                }
            };
            pending.insert(number, Pending { waiting, sent, bytes });
            self.under_way.store(pending.len(), Ordering::Release);
            number
        };
        Ok(number)
    }

    /// Waits until a request may be added.
    pub(crate) fn wait_for_room(&self) -> Result<()> {
        if self.under_way.load(Ordering::Acquire) < MAX_PENDING && self.out.lock().bytes < MAX_QUEUED {
            return Ok(());
        }
        self.wait_until(|| {
            self.under_way.load(Ordering::Acquire) < MAX_PENDING && self.out.lock().bytes < MAX_QUEUED
        })
    }

    /// Waits until less than `limit` bytes of writes are under way.
    pub(crate) fn wait_for_acknowledgements(&self, limit: usize) -> Result<()> {
        if self.unacknowledged() < limit {
            return Ok(());
        }
        self.wait_until(|| self.unacknowledged() < limit)
    }

    /// Waits for something that a reply brings about.
    ///
    /// A reply is noted before this is woken, but not under its lock: a sleep that misses it ends by itself.
    fn wait_until(&self, is_so: impl Fn() -> bool) -> Result<()> {
        let mut patience = Patience::new(self.patience());
        let mut pending = self.pending.lock();
        loop {
            if self.is_dead() {
                return Err(BROKEN);
            }
            if is_so() {
                return Ok(());
            }
            let pause = patience.pause()?;
            self.room.wait_for(&mut pending, pause);
        }
    }

    /// How long a request is waited for.
    fn patience(&self) -> Duration {
        if self.stalled.load(Ordering::Relaxed) { self.deadline.min(STALLED) } else { self.deadline }
    }

    fn push(&self, bytes: Vec<u8>) {
        let mut out = self.out.lock();
        out.bytes += bytes.len();
        // Small packets go in one piece with others that wait.
        let started = out.queue.len() == 1 && out.written > 0;
        match out.queue.back_mut() {
            Some(last) if !started && last.len() + bytes.len() <= 16384 => last.extend_from_slice(&bytes),
            _ => out.queue.push_back(bytes),
        }
        if !out.blocked {
            self.write_some(&mut out);
        }
        // Behind a request there is a reply to be waited for, and a clock to be looked at.
        if out.blocked || std::mem::take(&mut out.idle) {
            self.work.notify_one();
        }
    }

    /// Puts bytes with those that go out next, or soon.
    fn push_later(&self, bytes: &[u8]) {
        let mut out = self.out.lock();
        out.bytes += bytes.len();
        let started = out.queue.len() == 1 && out.written > 0;
        match out.queue.back_mut() {
            Some(last) if !started => last.extend_from_slice(bytes),
            _ => out.queue.push_back(bytes.to_vec()),
        }
        self.put_off(&mut out);
    }

    fn put_off(&self, out: &mut Out) {
        out.put_off = Some(Instant::now());
        if std::mem::take(&mut out.sleeps) {
            out.idle = false;
            self.work.notify_one();
        }
    }

    /// Has somebody send soon what he holds back.
    pub(crate) fn remind(&self, late: Arc<dyn Late>) {
        self.late.lock().push(late);
        self.put_off(&mut self.out.lock());
    }

    /// Sends what was put off.
    pub(crate) fn kick(&self) {
        let mut out = self.out.lock();
        if !out.blocked {
            self.write_some(&mut out);
        }
    }

    /// Writes as much as the descriptor takes.
    fn write_some(&self, out: &mut Out) {
        out.blocked = false;
        while let Some(front) = out.queue.front() {
            match nix::unistd::write(&self.output, &front[out.written..]) {
                Ok(count) => {
                    let len = front.len();
                    out.written += count;
                    out.bytes -= count;
                    if out.written == len {
                        out.queue.pop_front();
                        out.written = 0;
                    }
                }
                Err(Errno::EINTR) => {}
                Err(Errno::EAGAIN) => {
                    out.blocked = true;
                    return;
                }
                Err(_) => {
                    // The reader sees the end too, and says so.
                    out.queue.clear();
                    out.bytes = 0;
                    out.written = 0;
                    return;
                }
            }
        }
    }

    /// The writer thread: writes what was left, and looks at the clock.
    fn write_rest(self: Arc<Self>) {
        let mut checked = Instant::now();
        while !self.is_dead() {
            let blocked = {
                let mut out = self.out.lock();
                if !out.blocked && !self.is_dead() {
                    if out.put_off.is_some_and(|at| at.elapsed() < LIVELY) {
                        self.work.wait_for(&mut out, PUT_OFF);
                    } else if self.under_way.load(Ordering::Acquire) == 0 {
                        (out.idle, out.sleeps) = (true, true);
                        self.work.wait(&mut out);
                    } else {
                        out.sleeps = true;
                        self.work.wait_for(&mut out, TICK);
                    }
                    out.sleeps = false;
                }
                if !out.blocked {
                    self.write_some(&mut out);
                }
                out.blocked
            };
            for late in std::mem::take(&mut *self.late.lock()) {
                late.send_now();
            }
            if blocked {
                let mut fds = [PollFd::new(self.output.as_fd(), PollFlags::POLLOUT)];
                let _ = poll(&mut fds, PollTimeout::from(250_u16));
                self.write_some(&mut self.out.lock());
                self.room.notify_all();
            }
            if checked.elapsed() >= TICK {
                checked = Instant::now();
                self.time_out();
            }
        }
    }

    /// Functions whose requests have taken too long are told so. Sleepers look at the clock themselves.
    fn time_out(&self) {
        let mut late = Vec::new();
        for pending in self.pending.lock().values_mut() {
            if pending.sent.at().elapsed() > self.deadline {
                if let Waiting::Callback(_) = pending.waiting {
                    late.push(std::mem::replace(&mut pending.waiting, Waiting::Nobody));
                    self.unacknowledged.fetch_sub(std::mem::take(&mut pending.bytes), Ordering::AcqRel);
                }
            }
        }
        for waiting in late {
            self.note_stall();
            if let Waiting::Callback(call) = waiting {
                call(Err(Errno::ETIMEDOUT));
            }
        }
    }

    fn note_stall(&self) {
        if !self.stalled.swap(true, Ordering::Relaxed) {
            tracing::warn!("the server has not answered a request for {} seconds", self.deadline.as_secs());
        }
        let heard = Duration::from_millis(self.heard.load(Ordering::Relaxed));
        if self.drop_silent && self.opened.elapsed().saturating_sub(heard) >= self.deadline {
            self.die("the server says nothing at all: the connection is given up");
        }
    }

    /// The reader thread.
    fn read_replies(self: Arc<Self>, mut reader: BufReader<Input>) {
        let reason = loop {
            match read_packet(&mut reader, MAX_PACKET + 1024) {
                Ok(Some((kind, number, body))) => {
                    if !self.deliver(number, Reply { kind, body }) {
                        break "the server answered what nobody asked".to_owned();
                    }
                }
                Ok(None) => break "the server closed the connection".to_owned(),
                Err(error) => break format!("the connection failed: {error}"),
            }
        };
        self.die(&reason);
        let program = self.program.lock().take();
        if let Some(program) = program {
            program.end(false);
        }
    }

    /// Takes a reply to whoever waits. `false` if nothing was asked under this number.
    fn deliver(self: &Arc<Self>, number: u32, reply: Reply) -> bool {
        let found = {
            let mut pending = self.pending.lock();
            let found = pending.remove(&number);
            self.under_way.store(pending.len(), Ordering::Release);
            found
        };
        let Some(Pending { waiting, sent, bytes }) = found else { return false };
        let heard = u64::try_from(self.opened.elapsed().as_millis()).unwrap_or(u64::MAX);
        self.heard.store(heard, Ordering::Relaxed);
        if self.stalled.swap(false, Ordering::Relaxed) {
            tracing::warn!("the server answers again");
        }
        let data = if reply.kind == reply::DATA { reply.body.len() } else { 0 };
        self.rate.replied(sent, (bytes + data) as u64);
        if bytes > 0 {
            self.unacknowledged.fetch_sub(bytes, Ordering::AcqRel);
        }
        match waiting {
            Waiting::Slot(slot) => slot.put(Ok(reply)),
            Waiting::Callback(call) => call(Ok(reply)),
            Waiting::Nobody => self.close_unwanted(&reply),
        }
        self.room.notify_all();
        true
    }

    fn close_unwanted(&self, reply: &Reply) {
        if reply.kind == reply::HANDLE {
            if let Ok(handle) = reply.fields().string() {
                self.close(handle);
            }
        }
    }

    /// Closes a handle, without waiting.
    pub(crate) fn close(&self, handle: &[u8]) {
        let packet = Packet::new(request::CLOSE).string(handle);
        let _ = self.send_later(packet, Waiting::callback(|_| ()), 0);
    }

    /// Ends the connection. Requests under way fail.
    pub(crate) fn die(&self, reason: &str) {
        if self.dead.swap(true, Ordering::AcqRel) {
            return;
        }
        if !reason.is_empty() {
            tracing::warn!("{reason}");
        }
        self.fail_all();
        // With the lock, so that a writer who is about to sleep is not missed.
        let _out = self.out.lock();
        self.work.notify_all();
    }

    fn fail_all(&self) {
        let all = std::mem::take(&mut *self.pending.lock());
        self.under_way.store(0, Ordering::Release);
        for (_, pending) in all {
            match pending.waiting {
                Waiting::Slot(slot) => slot.put(Err(BROKEN)),
                Waiting::Callback(call) => call(Err(BROKEN)),
                Waiting::Nobody => {}
            }
        }
        self.room.notify_all();
    }

    /// Nobody waits for this reply any more.
    fn abandon(&self, number: u32) {
        if let Some(pending) = self.pending.lock().get_mut(&number) {
            pending.waiting = Waiting::Nobody;
        }
    }

    /// The end in good order: the program behind the connection is ended too.
    pub(crate) fn shut(&self) {
        self.die("");
        let program = self.program.lock().take();
        if let Some(program) = program {
            program.end(true);
        }
    }
}

impl Slot {
    fn put(&self, reply: Result<Reply>) {
        *self.reply.lock() = Some(reply);
        self.ready.notify_all();
    }
}

/// A request that is under way. Dropping it means that its reply is not wanted any more.
pub(crate) struct Ticket {
    connection: Arc<Connection>,
    number: u32,
    slot: Arc<Slot>,
    taken: bool,
}

impl Ticket {
    /// Waits for the reply. [`BROKEN`] if the connection breaks, `ETIMEDOUT` if the time is up, `EINTR` if who asked is interrupted and the
    /// server does not answer within a second from then.
    pub(crate) fn wait(mut self) -> Result<Reply> {
        let reply = self.wait_slot();
        self.taken = reply.is_some();
        match reply {
            Some(reply) => reply,
            None if Interrupt::current().is_raised() => Err(Errno::EINTR),
            None => {
                self.connection.note_stall();
                Err(Errno::ETIMEDOUT)
            }
        }
    }

    fn wait_slot(&self) -> Option<Result<Reply>> {
        let mut patience = Patience::new(self.connection.patience());
        let mut reply = self.slot.reply.lock();
        loop {
            if let Some(reply) = reply.take() {
                return Some(reply);
            }
            let Ok(pause) = patience.pause() else { return None };
            self.slot.ready.wait_for(&mut reply, pause);
        }
    }
}

/// How much longer somebody waits: until a deadline, or until [`GRACE`] after an interrupt.
pub(crate) struct Patience {
    interrupt: Interrupt,
    deadline: Instant,
    raised: bool,
}

/// How often somebody who waits looks whether he was interrupted.
const LOOK: Duration = Duration::from_millis(50);

impl Patience {
    pub(crate) fn new(limit: Duration) -> Self {
        Self { interrupt: Interrupt::current(), deadline: Instant::now() + limit, raised: false }
    }

    /// How long to sleep before looking again. `EINTR`, `ETIMEDOUT` if it is over.
    pub(crate) fn pause(&mut self) -> Result<Duration> {
        let now = Instant::now();
        if !self.raised && self.interrupt.is_raised() {
            self.raised = true;
            self.deadline = self.deadline.min(now + GRACE);
        }
        match self.deadline.saturating_duration_since(now) {
            Duration::ZERO => Err(if self.raised { Errno::EINTR } else { Errno::ETIMEDOUT }),
            left => Ok(left.min(LOOK)),
        }
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        if !self.taken {
            self.connection.abandon(self.number);
            // The reply may have come just before.
            if let Some(Ok(reply)) = self.slot.reply.lock().take() {
                self.connection.close_unwanted(&reply);
            }
        }
    }
}

/// What comes from the server, through a descriptor that does not block.
struct Input {
    input: OwnedFd,
    deadline: Option<Instant>,
    /// Whether nobody wants to hear more.
    closed: Option<Box<dyn Fn() -> bool + Send>>,
}

impl Read for Input {
    fn read(&mut self, buf: &mut [u8]) -> std::io::Result<usize> {
        loop {
            match nix::unistd::read(&self.input, buf) {
                Ok(count) => return Ok(count),
                Err(Errno::EINTR) => {}
                // The end of a program that had not read all that was sent to it.
                Err(Errno::ECONNRESET) => return Ok(0),
                Err(Errno::EAGAIN) => {
                    let mut fds = [PollFd::new(self.input.as_fd(), PollFlags::POLLIN)];
                    let came = poll(
                        &mut fds,
                        PollTimeout::from(if self.deadline.is_some() { 100_u16 } else { 1000 }),
                    )
                    .is_ok_and(|count| count > 0);
                    if !came && self.deadline.is_some_and(|deadline| Instant::now() >= deadline) {
                        return Err(std::io::ErrorKind::TimedOut.into());
                    }
                    if !came && self.closed.as_ref().is_some_and(|closed| closed()) {
                        return Ok(0);
                    }
                }
                Err(errno) => return Err(errno.into()),
            }
        }
    }
}

/// One packet: its type, its number, and what follows. `None` at the end of the connection, if that lies between two packets.
fn read_packet(input: &mut impl Read, most: usize) -> std::io::Result<Option<(u8, u32, Vec<u8>)>> {
    let mut head = [0; HEAD];
    if input.read(&mut head[..1])? == 0 {
        return Ok(None);
    }
    input.read_exact(&mut head[1..])?;
    let [a, b, c, d, kind, number @ ..] = head;
    let len = u32::from_be_bytes([a, b, c, d]) as usize;
    // Type and number are counted in it.
    let Some(rest) = len.checked_sub(HEAD - 4).filter(|_| len <= most) else {
        let what = format!("a packet of {len} bytes");
        return Err(std::io::Error::new(std::io::ErrorKind::InvalidData, what));
    };
    let mut body = Vec::with_capacity(rest);
    if input.take(rest as u64).read_to_end(&mut body)? < rest {
        return Err(std::io::ErrorKind::UnexpectedEof.into());
    }
    Ok(Some((kind, u32::from_be_bytes(number), body)))
}
