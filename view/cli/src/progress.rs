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
}

impl Progress {
    /// The first line comes after half a second, so short work shows none.
    const FIRST: Duration = Duration::from_millis(500);
    const EVERY: Duration = Duration::from_millis(100);

    pub(crate) fn new() -> Self {
        let is_terminal = std::io::stderr().is_terminal();
        Self { shown: None, started: Instant::now(), is_terminal, files: 0, bytes: 0 }
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
            eprint!(
                "\r{} files, {} ({}/s)\x1b[K",
                self.files,
                render::bytes(self.bytes),
                render::bytes(rate as u64)
            );
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
