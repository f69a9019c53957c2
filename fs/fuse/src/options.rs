//! The host's words of an `-o` list: those of mount(8), fstab(5) and mount.fuse3(8), and our own.

use std::path::PathBuf;

use tracing::level_filters::LevelFilter;
use veduta_api::{OptionSpec, Options, OptionsError};

use crate::log;
use crate::mount::{Allow, MountOptions};

/// Every word that the host takes, for all types. Words that begin with `x-` or `X-` are taken too, and ignored.
pub const GENERIC_OPTIONS: &[OptionSpec] = &[
    OptionSpec::flag("ro", "Mount read-only: nothing on the source is changed."),
    OptionSpec::flag("rw", "Mount read-write (the default, where the type can)."),
    OptionSpec::flag("nosuid", "Ignore set-user-id and set-group-id (the default)."),
    OptionSpec::flag("suid", "Honour set-user-id and set-group-id; for root."),
    OptionSpec::flag("nodev", "Ignore device nodes (the default)."),
    OptionSpec::flag("dev", "Honour device nodes; for root."),
    OptionSpec::flag("noexec", "Let no program of the mount be run."),
    OptionSpec::flag("exec", "Let programs be run (the default)."),
    OptionSpec::flag("noatime", "Do not record times of reading."),
    OptionSpec::flag(
        "nodiratime",
        "Do not record times of reading directories; only root's mounts can be told.",
    ),
    OptionSpec::flag("atime", "Leave it to the kernel when times of reading are recorded (the default)."),
    OptionSpec::flag("sync", "Write everything through at once."),
    OptionSpec::flag("async", "Let writes be held back (the default)."),
    OptionSpec::flag("dirsync", "Write changes of directories through at once."),
    OptionSpec::flag(
        "allow_other",
        "Let all users in, as permissions allow. Users other than root need user_allow_other in /etc/fuse.conf.",
    ),
    OptionSpec::flag("allow_root", "Let root in besides the user who mounts. The same condition holds."),
    OptionSpec::flag(
        "default_permissions",
        "Have the kernel check permissions as owners and modes say; it does so anyhow, unless the tree decides by itself, and then with this.",
    ),
    OptionSpec::with_value(
        "fsname",
        "NAME",
        "What /proc/mounts shows as the source; the source's path if not given.",
    ),
    OptionSpec::with_value(
        "subtype",
        "NAME",
        "What /proc/mounts shows as the type, behind fuse; the program's name if not given.",
    ),
    OptionSpec::with_value("max_read", "BYTES", "The largest single read that the kernel sends."),
    OptionSpec::with_value(
        "threads",
        "N",
        "Threads that serve; if not given, one, and as many as CPUs while there is work for them.",
    ),
    OptionSpec::with_value(
        "loglevel",
        "LEVEL",
        "Log what is at least as grave: error, warn (the default), info, debug or trace.",
    ),
    OptionSpec::with_value("logfile", "FILE", "Log to a file rather than to the system's log."),
    OptionSpec::flag("debug", "As -d: stay in the foreground and log each request."),
    OptionSpec::flag("auto_unmount", "Unmount when the server is killed; done anyhow."),
    OptionSpec::flag("defaults", "For fstab; ignored."),
    OptionSpec::flag("auto", "For fstab; ignored."),
    OptionSpec::flag("noauto", "For fstab; ignored."),
    OptionSpec::flag("user", "For fstab; ignored, mount(8) has obeyed it."),
    OptionSpec::flag("nouser", "For fstab; ignored."),
    OptionSpec::flag("users", "For fstab; ignored, mount(8) has obeyed it."),
    OptionSpec::flag("nousers", "For fstab; ignored."),
    OptionSpec::flag("owner", "For fstab; ignored."),
    OptionSpec::flag("noowner", "For fstab; ignored."),
    OptionSpec::flag("group", "For fstab; ignored."),
    OptionSpec::flag("nogroup", "For fstab; ignored."),
    OptionSpec::flag("nofail", "For fstab; ignored."),
    OptionSpec::flag("_netdev", "For fstab; ignored."),
    OptionSpec::flag("relatime", "Ignored: the source decides about times of reading."),
    OptionSpec::flag("norelatime", "Ignored, as relatime."),
    OptionSpec::flag("strictatime", "Ignored, as relatime."),
    OptionSpec::flag("nostrictatime", "Ignored, as relatime."),
    OptionSpec::flag("lazytime", "Ignored, as relatime."),
    OptionSpec::flag("nolazytime", "Ignored, as relatime."),
    OptionSpec::flag("diratime", "Ignored, as relatime."),
    OptionSpec::flag("nonempty", "Ignored: a mount point need not be empty."),
    OptionSpec::with_value("comment", "TEXT", "Ignored."),
    OptionSpec::with_value("uhelper", "NAME", "For mount(8); ignored."),
    OptionSpec::with_value("helper", "NAME", "For mount(8); ignored."),
];

/// What the host's words say.
#[derive(Debug)]
pub(crate) struct HostOptions {
    pub(crate) mount: MountOptions,
    pub(crate) workers: Option<usize>,
    pub(crate) log_level: Option<LevelFilter>,
    pub(crate) log_file: Option<PathBuf>,
    pub(crate) debug: bool,
}

impl HostOptions {
    /// Takes the host's words out of a list. `source` and `program` are what is shown if the list does not say otherwise.
    pub(crate) fn take(
        options: &mut Options,
        source: std::ffi::OsString,
        program: &str,
    ) -> Result<Self, OptionsError> {
        let last = |wanted: &str, opposite: &str| {
            let said = options.keys().filter(|key| *key == wanted || *key == opposite);
            said.last() == Some(wanted)
        };
        let mut mount = MountOptions::new(source, program);
        mount.read_only = last("ro", "rw");
        mount.suid = last("suid", "nosuid");
        mount.dev = last("dev", "nodev");
        mount.noexec = last("noexec", "exec");
        mount.noatime = last("noatime", "atime");
        mount.nodiratime = last("nodiratime", "diratime");
        mount.sync = last("sync", "async");
        mount.dirsync = options.take_flag("dirsync")?;
        mount.default_permissions = options.take_flag("default_permissions")?;
        if options.take_flag("allow_root")? {
            mount.allow = Allow::Root;
        }
        if options.take_flag("allow_other")? {
            mount.allow = Allow::Everyone;
        }
        if let Some(name) = options.take_value("fsname")? {
            mount.source = name.into();
        }
        if let Some(name) = options.take_value("subtype")? {
            mount.subtype = name;
        }
        let max_read = options.take_bytes("max_read")?;
        mount.max_read = max_read.map(|bytes| u32::try_from(bytes).unwrap_or(u32::MAX));
        let host = Self {
            mount,
            workers: options.take_parsed("threads", "a number")?,
            log_level: take_level(options)?,
            log_file: options.take_value("logfile")?.map(PathBuf::from),
            debug: options.take_flag("debug")?,
        };
        for spec in GENERIC_OPTIONS {
            match spec.value {
                None => drop(options.take_flag(spec.name)?),
                Some(_) => drop(options.take_values(spec.name)?),
            }
        }
        let private = |key: &&str| key.starts_with("x-") || key.starts_with("X-");
        let ignored: Vec<String> = options.keys().filter(private).map(str::to_owned).collect();
        for key in ignored {
            // With or without a value.
            let _ = options.take_flag(&key);
        }
        Ok(host)
    }
}

fn take_level(options: &mut Options) -> Result<Option<LevelFilter>, OptionsError> {
    let Some(word) = options.take_value("loglevel")? else { return Ok(None) };
    match log::level(&word) {
        Some(level) => Ok(Some(level)),
        None => Err(OptionsError(format!("option loglevel={word}: expected {}", log::LEVELS))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn take(list: &str) -> Result<(HostOptions, Options), OptionsError> {
        let mut options = Options::parse(list).unwrap();
        let host = HostOptions::take(&mut options, "/disk.img".into(), "umfuseext2")?;
        Ok((host, options))
    }

    #[test]
    fn of_opposites_the_last_counts() {
        let (host, _) = take("ro,rw,suid,noexec,exec,nodev,dev").unwrap();
        assert!(!host.mount.read_only && host.mount.suid && !host.mount.noexec && host.mount.dev);
        let (host, _) = take("rw,ro").unwrap();
        assert!(host.mount.read_only && !host.mount.suid);
    }

    #[test]
    fn words_of_the_type_are_left_for_it() {
        let list = "rw,nosuid,nodev,user,x-systemd.automount,x-mount.mkdir=755,norock,comment=a,uid=5";
        let (_, rest) = take(list).unwrap();
        assert_eq!(rest.keys().collect::<Vec<_>>(), ["norock", "uid"]);
    }

    #[test]
    fn what_mount_fuse3_passes_is_taken() {
        for list in
            ["rw,dev,suid", "ro,nosuid,nodev,noexec,relatime,_netdev,nofail", "defaults,noauto,user", ""]
        {
            assert!(take(list).unwrap().1.is_empty(), "{list}");
        }
    }

    #[test]
    fn names_and_numbers_are_read() {
        let (host, _) = take("fsname=a,subtype=b,max_read=64K,threads=3,loglevel=info,allow_root").unwrap();
        assert_eq!((host.mount.source.to_str(), host.mount.subtype.as_str()), (Some("a"), "b"));
        assert_eq!(
            (host.mount.max_read, host.workers, host.mount.allow),
            (Some(65_536), Some(3), Allow::Root)
        );
        assert_eq!(host.log_level, Some(LevelFilter::INFO));
        assert!(take("loglevel=loud").unwrap_err().0.contains("loud"));
        assert!(take("threads=many").is_err());
    }
}
