//! What the kernel may remember, from what a tree says of itself and how it is mounted.

use std::time::Duration;

use veduta_api::{Caching, Facts, Kind, SetAttr};

/// "For ever", as a time that every kernel can add to its clock.
const FOR_EVER: Duration = Duration::from_secs(365 * 24 * 3600);

/// The decisions. They hold for the whole mount.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Policy {
    pub(crate) read_only: bool,
    /// Nothing can change: neither users nor others do.
    pub(crate) immutable: bool,
    /// Others change the tree too.
    pub(crate) shared: bool,
    /// How long a name is remembered.
    pub(crate) entry_ttl: Duration,
    /// How long the absence of a name is remembered.
    pub(crate) negative_ttl: Duration,
    /// How long attributes are remembered.
    pub(crate) attr_ttl: Duration,
    /// How long those of a file are that somebody writes to: its blocks become more with what is written back.
    pub(crate) written_ttl: Duration,
    /// Whether the kernel may hold writes back.
    pub(crate) writeback: bool,
    /// Whether the kernel may read and write backing files by itself. It does not do both this and `writeback`.
    pub(crate) passthrough: bool,
}

impl Policy {
    /// `read_only`: how it is mounted.
    pub(crate) fn new(facts: &Facts, read_only: bool) -> Self {
        let read_only = read_only || facts.caching == Caching::Immutable;
        let immutable = read_only && !matches!(facts.caching, Caching::Shared(_));
        let ttl = match facts.caching {
            Caching::Shared(time) => time,
            Caching::Immutable | Caching::Exclusive => FOR_EVER,
        };
        // Two spellings of one name are two names for the kernel, and a change through one leaves the other stale.
        let aliases = facts.case_insensitive && !immutable;
        let writeback = facts.caching == Caching::Exclusive && !read_only && !facts.backing;
        Self {
            read_only,
            immutable,
            shared: matches!(facts.caching, Caching::Shared(_)),
            entry_ttl: if aliases { Duration::ZERO } else { ttl },
            negative_ttl: if facts.case_insensitive {
                Duration::ZERO
            } else {
                facts.absent_time.unwrap_or(ttl)
            },
            attr_ttl: ttl,
            written_ttl: ttl.min(Duration::from_secs(1)),
            writeback,
            passthrough: !writeback,
        }
    }
}

/// What an operation would do to a node, for `chattr +i` and `+a`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Change {
    /// Its content, other than at its end, its attributes, or its name.
    Any,
    /// Its content, at its end; a directory's new names.
    Append,
    /// Its times, to now.
    Touch,
}

impl Change {
    pub(crate) fn of(changes: &SetAttr) -> Self {
        use veduta_api::SetTime::Now;
        let now = |time| matches!(time, None | Some(Now));
        let SetAttr { perm, uid, gid, size, atime, mtime, .. } = *changes;
        let only_times = perm.is_none() && uid.is_none() && gid.is_none() && size.is_none();
        if only_times && now(atime) && now(mtime) { Change::Touch } else { Change::Any }
    }
}

/// `DT_*`, as a directory entry carries it; 0 where the listing does not tell.
pub(crate) fn dirent_type(kind: Option<Kind>) -> u32 {
    kind.map_or(0, |kind| kind.mode_bits() >> 12)
}
