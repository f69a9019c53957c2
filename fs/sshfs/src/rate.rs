//! How far the server is, and how much it carries: what decides how much is kept under way.
//!
//! Two figures are kept, both from replies alone: the shortest time that any reply has taken lately, and the largest rate at which data
//! went through, counted from the sending of a request to its reply. Their product is what the way to the server holds;
//! twice that under way keeps it full, and lets the rate show if it can be more. A near server that carries much gets more than that: the
//! programs on the way hold buffers of their own, and each that runs empty is a process that sleeps and has to be woken.

use std::time::{Duration, Instant};

use parking_lot::Mutex;

/// Bytes; under way at least, however near the server is: loopback is limited by processors, which like large steps.
const LEAST: u64 = 1 << 20;

/// Bytes; under way at most. SSH itself lets 2 MiB through unacknowledged on a channel.
const MOST: u64 = 16 << 20;

/// What a near server carries in this time may be under way, up to [`NEAR`]: not more, so that other requests wait no longer behind it.
const NEAR_TIME: Duration = Duration::from_millis(25);

/// Bytes; twice what SSH lets through unacknowledged, so that neither end of it runs empty.
const NEAR: u64 = 4 << 20;

/// How long a figure counts before a worse one may replace it.
const MEMORY: Duration = Duration::from_secs(10);

/// The figures. One a connection.
pub(crate) struct Rate(Mutex<Figures>);

struct Figures {
    round_trip: Option<Duration>,
    round_trip_at: Instant,
    /// Bytes a second.
    throughput: u64,
    throughput_at: Instant,
    /// Bytes of data that went through, either way.
    delivered: u64,
}

/// What was known when a request was sent.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Sent {
    at: Instant,
    delivered: u64,
}

impl Sent {
    pub(crate) fn at(&self) -> Instant {
        self.at
    }
}

impl Rate {
    pub(crate) fn new() -> Self {
        let now = Instant::now();
        Self(Mutex::new(Figures {
            round_trip: None,
            round_trip_at: now,
            throughput: 0,
            throughput_at: now,
            delivered: 0,
        }))
    }

    /// A request goes out now.
    pub(crate) fn sent(&self) -> Sent {
        Sent { at: Instant::now(), delivered: self.0.lock().delivered }
    }

    /// Its reply is here, and with it `bytes` of data have gone through.
    pub(crate) fn replied(&self, sent: Sent, bytes: u64) {
        let now = Instant::now();
        let took = now.saturating_duration_since(sent.at);
        let mut figures = self.0.lock();
        figures.delivered += bytes;
        let aged = |since: Instant| now.saturating_duration_since(since) > MEMORY;
        if figures.round_trip.is_none_or(|least| took <= least) || aged(figures.round_trip_at) {
            figures.round_trip = Some(took);
            figures.round_trip_at = now;
        }
        let micros = u64::try_from(took.as_micros()).unwrap_or(u64::MAX).max(1);
        let through = figures.delivered.saturating_sub(sent.delivered);
        let throughput = through.saturating_mul(1_000_000) / micros;
        if bytes > 0 && (throughput >= figures.throughput || aged(figures.throughput_at)) {
            figures.throughput = throughput;
            figures.throughput_at = now;
        }
    }

    /// The shortest time of a reply; what is likely where none is known.
    pub(crate) fn round_trip(&self) -> Duration {
        self.0.lock().round_trip.unwrap_or(Duration::from_millis(100))
    }

    /// Bytes that should be under way.
    pub(crate) fn window(&self) -> usize {
        let figures = self.0.lock();
        let carried = |time: Duration| {
            let micros = u64::try_from(time.as_micros()).unwrap_or(u64::MAX);
            figures.throughput.saturating_mul(micros) / 1_000_000
        };
        let held = figures.round_trip.map_or(0, carried);
        let near = carried(NEAR_TIME).min(NEAR);
        usize::try_from(held.saturating_mul(2).max(near).clamp(LEAST, MOST)).unwrap_or(usize::MAX)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_far_server_gets_a_large_window_and_a_near_one_the_least() {
        let rate = Rate::new();
        let sent = |millis| Sent { at: Instant::now() - Duration::from_millis(millis), delivered: 0 };
        rate.replied(sent(1), 0);
        rate.replied(sent(100), 1 << 20);
        assert_eq!(rate.window() as u64, LEAST);
        let fast = Rate::new();
        fast.replied(sent(10), 0);
        fast.replied(sent(10), 2 << 20);
        assert_eq!(fast.window() as u64, NEAR);
        let far = Rate::new();
        far.replied(sent(200), 0);
        far.replied(sent(300), 8 << 20);
        let window = far.window() as u64;
        assert!(window > 4 * LEAST && window <= MOST, "{window}");
    }
}
