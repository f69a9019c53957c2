//! Mount options, in the words of mount(8) for vfat and exfat.

use std::os::unix::fs::MetadataExt;

use veduta_api::{MountError, OptionSpec, Options};

use crate::charset::{Charset, CodePage};
use crate::name::ShortCase;

/// The table.
pub(crate) const SPECS: &[OptionSpec] = &[
    OptionSpec::with_value("uid", "UID", "Owner of all files; the one who mounts if not given."),
    OptionSpec::with_value("gid", "GID", "Group of all files; that of the one who mounts if not given."),
    OptionSpec::with_value(
        "umask",
        "MODE",
        "Permissions that nobody has, in octal; those of the process if not given.",
    ),
    OptionSpec::with_value("fmask", "MODE", "The same for files only."),
    OptionSpec::with_value("dmask", "MODE", "The same for directories only."),
    OptionSpec::flag("quiet", "A chown or chmod that cannot be stored does nothing instead of failing."),
    OptionSpec::flag("showexec", "Only files called .exe, .com or .bat may be executed."),
    OptionSpec::flag("rodir", "The read-only attribute counts for directories too."),
    OptionSpec::flag("sys_immutable", "Files with the system attribute cannot be changed."),
    OptionSpec::with_value("check", "r|n|s", "Whether case matters in names: not (r, n), or it does (s)."),
    OptionSpec::with_value(
        "shortname",
        "lower|win95|winnt|mixed",
        "How 8.3 names are shown and made; mixed if not given.",
    ),
    OptionSpec::flag("nonumtail", "An 8.3 name gets a number (NAME~1) only if it is taken."),
    OptionSpec::with_value("codepage", "N", "The code page of 8.3 names; 437 if not given."),
    OptionSpec::with_value(
        "iocharset",
        "NAME",
        "The character set in which names appear; utf8 if not given.",
    ),
    OptionSpec::flag("utf8", "The same as iocharset=utf8."),
    OptionSpec::with_value("tz", "UTC", "Times on the volume are UTC, which they are taken for anyway."),
    OptionSpec::with_value(
        "time_offset",
        "MINUTES",
        "Minutes by which times on the volume are ahead of UTC.",
    ),
    OptionSpec::flag("usefree", "Believe the count of free clusters on the volume rather than count."),
    OptionSpec::flag("discard", "Tell the disk of clusters that are freed."),
];

/// What the options say.
pub(crate) struct Settings {
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    pub(crate) fmask: u32,
    pub(crate) dmask: u32,
    pub(crate) quiet: bool,
    pub(crate) showexec: bool,
    pub(crate) rodir: bool,
    pub(crate) sys_immutable: bool,
    pub(crate) strict: bool,
    pub(crate) short_case: ShortCase,
    pub(crate) tail: bool,
    /// Minutes east of UTC.
    pub(crate) zone: i32,
    pub(crate) usefree: bool,
    pub(crate) discard: bool,
    pub(crate) page: Option<CodePage>,
    pub(crate) charset: Option<Charset>,
}

impl Settings {
    pub(crate) fn take(options: &mut Options) -> Result<Self, MountError> {
        // The owner of a process's own folder is its user.
        let (uid, gid) = std::fs::metadata("/proc/self").map_or((0, 0), |own| (own.uid(), own.gid()));
        let umask = options.take_octal("umask", 0o777)?;
        let mask = umask.unwrap_or_else(process_umask);
        let check = options.take_value("check")?;
        let strict = match check.as_deref() {
            None | Some("r" | "relaxed" | "n" | "normal") => false,
            Some("s" | "strict") => true,
            Some(other) => {
                return Err(MountError::usage(format!("option check={other}: expected r, n or s")));
            }
        };
        let short_case = match options.take_value("shortname")?.as_deref() {
            Some("lower") => ShortCase::Lower,
            Some("win95") => ShortCase::Win95,
            Some("winnt") => ShortCase::WinNt,
            None | Some("mixed") => ShortCase::Mixed,
            Some(other) => {
                let message = format!("option shortname={other}: expected lower, win95, winnt or mixed");
                return Err(MountError::usage(message));
            }
        };
        if let Some(zone) = options.take_value("tz")?.filter(|zone| !zone.eq_ignore_ascii_case("utc")) {
            return Err(MountError::usage(format!(
                "option tz={zone}: expected UTC; others go as time_offset=MINUTES"
            )));
        }
        let zone = options.take_parsed::<i32>("time_offset", "a number of minutes")?.unwrap_or(0);
        if zone.abs() > 24 * 60 {
            return Err(MountError::usage(format!("option time_offset={zone}: more than a day")));
        }
        let find = |key: &str, word: &str| {
            let word = word.to_ascii_lowercase();
            CodePage::find(&word).ok_or_else(|| {
                MountError::usage(format!("option {key}={word}: not known; known are {}", CodePage::names()))
            })
        };
        let page = find("codepage", &options.take_value("codepage")?.unwrap_or_else(|| "437".into()))?;
        let utf8 = options.take_flag("utf8")?;
        let charset = match options.take_value("iocharset")? {
            Some(name) if !utf8 && !matches!(name.to_ascii_lowercase().as_str(), "utf8" | "utf-8") => {
                Charset::Page(Box::new(find("iocharset", &name)?))
            }
            _ => Charset::Utf8,
        };
        Ok(Self {
            uid: options.take_parsed("uid", "a user id")?.unwrap_or(uid),
            gid: options.take_parsed("gid", "a group id")?.unwrap_or(gid),
            fmask: options.take_octal("fmask", 0o777)?.unwrap_or(mask),
            dmask: options.take_octal("dmask", 0o777)?.unwrap_or(mask),
            quiet: options.take_flag("quiet")?,
            showexec: options.take_flag("showexec")?,
            rodir: options.take_flag("rodir")?,
            sys_immutable: options.take_flag("sys_immutable")?,
            strict,
            short_case,
            tail: !options.take_flag("nonumtail")?,
            zone,
            usefree: options.take_flag("usefree")?,
            discard: options.take_flag("discard")?,
            page: Some(page),
            charset: Some(charset),
        })
    }
}

/// The umask of this process, which can be read without being changed.
fn process_umask() -> u32 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("Umask:"));
    line.and_then(|mask| u32::from_str_radix(mask.trim(), 8).ok()).unwrap_or(0o022)
}
