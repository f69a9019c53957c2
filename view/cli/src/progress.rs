//! Progress on long work: one line on a terminal that is written over, nothing in a pipe.

use std::io::{IsTerminal, Write};
use std::time::{Duration, Instant};

use crate::render;

/// Files and bytes done so far.
pub(crate) struct Progress {
    shown: Option<Instant>,
    started: Instant,
    is_terminal: bool,
    files: u64,
    bytes: u64,
    /// Bytes in all, where that is known; then files are not counted.
    total: Option<u64>,
}

impl Progress {
    /// The first line comes after half a second, so short work shows none.
    const FIRST: Duration = Duration::from_millis(500);
    const EVERY: Duration = Duration::from_millis(100);

    pub(crate) fn new() -> Self {
        let is_terminal = std::io::stderr().is_terminal();
        Self { shown: None, started: Instant::now(), is_terminal, files: 0, bytes: 0, total: None }
    }

    /// Of one piece of work whose size is known.
    pub(crate) fn of(total: u64) -> Self {
        Self { total: Some(total), ..Self::new() }
    }

    /// One more file is done.
    pub(crate) fn file(&mut self) {
        self.files += 1;
        self.show();
    }

    /// So many more bytes are done.
    pub(crate) fn bytes(&mut self, count: u64) {
        self.bytes += count;
        self.show();
    }

    fn show(&mut self) {
        let due = match self.shown {
            None => self.started.elapsed() >= Self::FIRST,
            Some(last) => last.elapsed() >= Self::EVERY,
        };
        if self.is_terminal && due {
            self.shown = Some(Instant::now());
            let rate = self.bytes as f64 / self.started.elapsed().as_secs_f64();
            let (done, rate) = (render::bytes(self.bytes), render::bytes(rate as u64));
            match self.total {
                Some(total) => {
                    let percent = self.bytes as f64 * 100.0 / total.max(1) as f64;
                    eprint!("\r{percent:.0}%, {done} of {} ({rate}/s)\x1b[K", render::bytes(total));
                }
                None => eprint!("\r{} files, {done} ({rate}/s)\x1b[K", self.files),
            }
            let _ = std::io::stderr().flush();
        }
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        if self.shown.is_some() {
            eprint!("\r\x1b[K");
        }
    }
}
