//! Points in time as the protocol carries them.

/// Seconds and nanoseconds since the Unix epoch. Times before 1970 have negative seconds; the
/// nanoseconds always count forward (0 to 999,999,999).
#[derive(Clone, Copy, Debug, Default, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct Timestamp {
    /// Seconds since the Unix epoch.
    pub secs: i64,
    /// Nanoseconds to add to `secs`.
    pub nanos: u32,
}
