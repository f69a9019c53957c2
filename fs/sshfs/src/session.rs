//! The connections of a mount: one or several, made again after they broke if that was asked for.
//!
//! A *lane* is a place for a connection. Lane 0 takes everything that is asked by path; open files are spread over all. A request that
//! only asks is repeated on a new connection; one that changes something is not, since the server may have done it.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use veduta_api::{Errno, Result};

use crate::connection::{BROKEN, Connection, Patience};
use crate::transport::Transport;

/// How long the first greeting may take: a person may have to find a password.
const FIRST_PATIENCE: Duration = Duration::from_secs(300);

/// The longest pause between two attempts to connect again.
const LONGEST_PAUSE: Duration = Duration::from_secs(30);

/// All connections of a mount.
pub(crate) struct Session {
    transport: Transport,
    reconnect: bool,
    deadline: Duration,
    lanes: Vec<Lane>,
    next_lane: AtomicUsize,
}

struct Lane {
    connection: Mutex<Option<Arc<Connection>>>,
    /// Held by whoever connects again.
    retry: Mutex<Retry>,
}

struct Retry {
    not_before: Instant,
    pause: Duration,
}

impl Session {
    /// Opens all connections. The error is a sentence.
    pub(crate) fn open(
        transport: Transport,
        reconnect: bool,
        deadline: Duration,
        lanes: usize,
    ) -> Result<Self, String> {
        let reconnect = reconnect && transport.can_reopen();
        // Only ssh may have to ask a person.
        let patience =
            if matches!(transport, Transport::Program(_)) { FIRST_PATIENCE.max(deadline) } else { deadline };
        let open = |_| {
            let connection = Connection::open(&transport, deadline, patience, reconnect)?;
            let retry = Retry { not_before: Instant::now(), pause: Duration::ZERO };
            Ok(Lane { connection: Mutex::new(Some(connection)), retry: Mutex::new(retry) })
        };
        let lanes = (0..lanes.max(1)).map(open).collect::<Result<_, String>>()?;
        Ok(Self { transport, reconnect, deadline, lanes, next_lane: AtomicUsize::new(0) })
    }

    /// The lane for the next file that is opened.
    pub(crate) fn pick_lane(&self) -> usize {
        if self.lanes.len() == 1 {
            return 0;
        }
        self.next_lane.fetch_add(1, Ordering::Relaxed) % self.lanes.len()
    }

    /// The connection of a lane, made again if it broke and that was asked for. `ENOTCONN` if there is none.
    pub(crate) fn connection(&self, lane: usize) -> Result<Arc<Connection>> {
        let lane = self.lanes.get(lane).ok_or(Errno::ENOTCONN)?;
        if let Some(connection) = lane.alive() {
            return Ok(connection);
        }
        if !self.reconnect {
            return Err(Errno::ENOTCONN);
        }
        let mut patience = Patience::new(self.deadline);
        let mut retry = loop {
            if let Some(retry) = lane.retry.try_lock_for(patience.pause()?) {
                break retry;
            }
        };
        // Somebody else may have been faster.
        if let Some(connection) = lane.alive() {
            return Ok(connection);
        }
        if Instant::now() < retry.not_before {
            return Err(Errno::ENOTCONN);
        }
        match Connection::open(&self.transport, self.deadline, self.deadline, true) {
            Ok(connection) => {
                tracing::warn!("connected again");
                retry.pause = Duration::ZERO;
                *lane.connection.lock() = Some(connection.clone());
                Ok(connection)
            }
            Err(sentence) => {
                retry.pause = (retry.pause * 2).clamp(Duration::from_millis(500), LONGEST_PAUSE);
                retry.not_before = Instant::now() + retry.pause;
                tracing::warn!("connecting again failed: {sentence}");
                Err(Errno::ENOTCONN)
            }
        }
    }

    /// Whether a broken connection is made again.
    pub(crate) fn reconnects(&self) -> bool {
        self.reconnect
    }

    /// Does something once. A connection that breaks meanwhile is `EIO`.
    pub(crate) fn once<T>(&self, lane: usize, work: impl FnOnce(&Arc<Connection>) -> Result<T>) -> Result<T> {
        work(&self.connection(lane)?).map_err(unbroken)
    }

    /// Does something that only asks; again, if the connection breaks meanwhile.
    pub(crate) fn repeat<T>(&self, lane: usize, work: impl Fn(&Arc<Connection>) -> Result<T>) -> Result<T> {
        match work(&self.connection(lane)?) {
            Err(BROKEN) if self.reconnect => work(&self.connection(lane)?).map_err(unbroken),
            result => result.map_err(unbroken),
        }
    }

    /// Ends all connections.
    pub(crate) fn shut(&self) {
        for lane in &self.lanes {
            let connection = lane.connection.lock().take();
            if let Some(connection) = connection {
                connection.shut();
            }
        }
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        self.shut();
    }
}

impl Lane {
    fn alive(&self) -> Option<Arc<Connection>> {
        self.connection.lock().clone().filter(|connection| !connection.is_dead())
    }
}

/// What leaves the driver for a broken connection.
pub(crate) fn unbroken(errno: Errno) -> Errno {
    if errno == BROKEN { Errno::EIO } else { errno }
}
