//! Where log lines go: standard error at first; in the background the system's log, or a file.
//!
//! A subscriber of `tracing` as small as the need: one line an event, with the request that this thread serves. Requests are
//! spans, and must cost little while nothing is logged: a span is kept in a thread-local and made into text only with an event.

use std::cell::RefCell;
use std::fmt::{self, Write as _};
use std::fs::File;
use std::io::Write as _;
use std::os::unix::net::UnixDatagram;
use std::path::Path;
use std::time::{SystemTime, UNIX_EPOCH};

use parking_lot::Mutex;
use tracing::field::{Field, Visit};
use tracing::level_filters::LevelFilter;
use tracing::span::{Attributes, Id, Record};
use tracing::{Event, Level, Metadata, Subscriber};

/// Where lines go. Global, as the program's log is.
static SINK: Mutex<Sink> = Mutex::new(Sink::Stderr);

enum Sink {
    Stderr,
    System(UnixDatagram),
    File(File),
}

/// The words that a level has.
pub(crate) const LEVELS: &str = "error, warn, info, debug or trace";

/// Which level a word names.
pub(crate) fn level(word: &str) -> Option<LevelFilter> {
    match word {
        "off" | "error" | "warn" | "info" | "debug" | "trace" => word.parse().ok(),
        _ => None,
    }
}

/// Logs to standard error what is at least as grave as `level` (`error`, `warn`, `info`, `debug`, `trace`; `warn` if not given or
/// not a level). The first call counts.
pub fn log_to_stderr(level_word: Option<&str>) {
    start(level_word.and_then(level).unwrap_or(LevelFilter::WARN));
}

pub(crate) fn start(level: LevelFilter) {
    // A second subscriber is refused; then a host of ours already logs.
    let _ = tracing::subscriber::set_global_default(Logger { level });
}

/// From now on to a file, which is made if need be and appended to.
pub(crate) fn to_file(path: &Path) -> std::io::Result<()> {
    let file = File::options().append(true).create(true).open(path)?;
    *SINK.lock() = Sink::File(file);
    Ok(())
}

/// From now on to the system's log; without one, nowhere. Not if lines go to a file already.
pub(crate) fn to_system() {
    let mut sink = SINK.lock();
    if matches!(*sink, Sink::Stderr) {
        let connect = || {
            let socket = UnixDatagram::unbound()?;
            socket.connect("/dev/log")?;
            socket.set_nonblocking(true)?;
            Ok::<_, std::io::Error>(socket)
        };
        if let Ok(socket) = connect() {
            *sink = Sink::System(socket);
        }
    }
}

/// The name that this program was run as.
pub(crate) fn program() -> String {
    let name = std::env::args_os().next().unwrap_or_default();
    let name = Path::new(&name).file_name().unwrap_or_default();
    if name.is_empty() { "veduta".into() } else { name.to_string_lossy().into_owned() }
}

struct Logger {
    level: LevelFilter,
}

/// The request that a thread serves.
#[derive(Default)]
struct Current {
    active: bool,
    op: String,
    ino: u64,
    pid: u64,
}

thread_local! {
    static CURRENT: RefCell<Current> = RefCell::default();
}

/// Spans of requests; all others are not kept.
const REQUEST: u64 = 1;
const OTHER: u64 = 2;

impl Subscriber for Logger {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        *metadata.level() <= self.level
    }

    fn max_level_hint(&self) -> Option<LevelFilter> {
        Some(self.level)
    }

    fn new_span(&self, span: &Attributes<'_>) -> Id {
        if span.metadata().name() != "request" {
            return Id::from_u64(OTHER);
        }
        let _ = CURRENT.try_with(|current| {
            if let Ok(mut current) = current.try_borrow_mut() {
                current.op.clear();
                span.record(&mut *current);
            }
        });
        Id::from_u64(REQUEST)
    }

    fn record(&self, _span: &Id, _values: &Record<'_>) {}

    fn record_follows_from(&self, _span: &Id, _follows: &Id) {}

    fn enter(&self, span: &Id) {
        mark(span, true);
    }

    fn exit(&self, span: &Id) {
        mark(span, false);
    }

    fn event(&self, event: &Event<'_>) {
        let mut text = Text::default();
        event.record(&mut text);
        let mut line = text.message;
        line.push_str(&text.fields);
        let _ = CURRENT.try_with(|current| {
            if let Some(current) = current.try_borrow().ok().filter(|current| current.active) {
                let _ = write!(line, " [{} ino={} pid={}]", current.op, current.ino, current.pid);
            }
        });
        put(*event.metadata().level(), &line);
    }
}

fn mark(span: &Id, active: bool) {
    if span.into_u64() == REQUEST {
        let _ =
            CURRENT.try_with(|current| current.try_borrow_mut().map(|mut current| current.active = active));
    }
}

impl Visit for Current {
    fn record_str(&mut self, field: &Field, value: &str) {
        if field.name() == "op" {
            self.op.push_str(value);
        }
    }

    fn record_u64(&mut self, field: &Field, value: u64) {
        match field.name() {
            "ino" => self.ino = value,
            "pid" => self.pid = value,
            _ => {}
        }
    }

    fn record_debug(&mut self, _field: &Field, _value: &dyn fmt::Debug) {}
}

#[derive(Default)]
struct Text {
    message: String,
    fields: String,
}

impl Visit for Text {
    fn record_str(&mut self, field: &Field, value: &str) {
        match field.name() {
            "message" => self.message.push_str(value),
            name => drop(write!(self.fields, " {name}={value:?}")),
        }
    }

    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        let _ = match field.name() {
            "message" => write!(self.message, "{value:?}"),
            name => write!(self.fields, " {name}={value:?}"),
        };
    }
}

fn put(level: Level, line: &str) {
    let program = program();
    let word = level.as_str().to_ascii_lowercase();
    // A log that cannot be written is nothing that we could log.
    match &mut *SINK.lock() {
        Sink::Stderr => drop(writeln!(std::io::stderr(), "{program}: {word}: {line}")),
        Sink::File(file) => {
            drop(file.write_all(
                format!("{} {program}[{}]: {word}: {line}\n", now(), std::process::id()).as_bytes(),
            ));
        }
        Sink::System(socket) => {
            // RFC 3164: facility daemon (3), and a severity.
            let severity = match level {
                Level::ERROR => 3,
                Level::WARN => 4,
                Level::INFO => 6,
                _ => 7,
            };
            let text = format!("<{}>{program}[{}]: {line}", (3 << 3) | severity, std::process::id());
            drop(socket.send(text.as_bytes()));
        }
    }
}

/// UTC, as RFC 3339 writes it.
fn now() -> String {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let (days, second) = (since.as_secs() / 86_400, since.as_secs() % 86_400);
    let (year, month, day) = date(days);
    format!(
        "{year:04}-{month:02}-{day:02}T{:02}:{:02}:{:02}.{:03}Z",
        second / 3600,
        second / 60 % 60,
        second % 60,
        since.subsec_millis()
    )
}

/// The date that is `days` after 1970-01-01 (Gregorian). Counts in eras of 400 years that begin on 1 March.
fn date(days: u64) -> (u64, u64, u64) {
    let days = days + 719_468;
    let (era, day_of_era) = (days / 146_097, days % 146_097);
    let year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted = (5 * day_of_year + 2) / 153;
    let month = if shifted < 10 { shifted + 3 } else { shifted - 9 };
    let year = year_of_era + era * 400 + u64::from(month <= 2);
    (year, month, day_of_year - (153 * shifted + 2) / 5 + 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn days_are_turned_into_dates() {
        assert_eq!(date(0), (1970, 1, 1));
        assert_eq!(date(11_016), (2000, 2, 29));
        assert_eq!(date(20_776), (2026, 11, 19));
    }

    #[test]
    fn only_levels_are_levels() {
        assert_eq!(level("debug"), Some(LevelFilter::DEBUG));
        assert_eq!(level("3"), None);
        assert_eq!(level("loud"), None);
    }
}
