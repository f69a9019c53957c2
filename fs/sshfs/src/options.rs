//! The options, in sshfs's words, and the source `[USER@]HOST:[DIR]`.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::Duration;

use veduta_api::{MountError, OptionSpec, Options, OptionsError};

use crate::transport::Transport;

/// Every option. Those of `ssh` are handed on to it.
pub(crate) const SPECS: &[OptionSpec] = &specs();

const OURS: &[OptionSpec] = &[
    OptionSpec::flag(
        "reconnect",
        "Connect again when the connection is lost. Files that are open are opened again, if \
        the server still has the same under their names.",
    ),
    OptionSpec::with_value(
        "timeout",
        "SECONDS",
        "How long the server may take to answer a request before it fails with \
        \"Connection timed out\"; 60 if not given.",
    ),
    OptionSpec::with_value("port", "PORT", "The port of the SSH server."),
    OptionSpec::with_value(
        "compression",
        "BOOL",
        "Whether what goes over the network is compressed: yes or no.",
    ),
    OptionSpec::with_value(
        "ssh_command",
        "COMMAND",
        "Run this instead of ssh. Words are separated by spaces; a backslash \
        takes the meaning of the next character.",
    ),
    OptionSpec::with_value("ssh_configfile", "FILE", "The configuration that ssh is to use (ssh -F)."),
    OptionSpec::with_value("ssh_protocol", "2", "For compatibility: 2 is the only one that there is."),
    OptionSpec::with_value(
        "sftp_server",
        "SERVER",
        "The subsystem, or the path of the program, that serves files: sftp if not given.",
    ),
    OptionSpec::with_value(
        "directport",
        "PORT",
        "Connect to this port, where a server speaks SFTP itself, without ssh.",
    ),
    OptionSpec::flag(
        "passive",
        "Speak SFTP on standard input and output, where somebody else has put a server.",
    ),
    OptionSpec::flag("slave", "The older name of passive."),
    OptionSpec::with_value(
        "max_conns",
        "N",
        "Use N connections, so that transfers of several files share no lane: 1 to 16, 1 if not given.",
    ),
    OptionSpec::with_value(
        "idmap",
        "TYPE",
        "How owners are shown: none (the server's numbers, the default), user (the user who \
        logs in is the one who mounts), file (as uidfile= and gidfile= say), name (who has the same name here).",
    ),
    OptionSpec::with_value(
        "uidfile",
        "FILE",
        "For idmap=file: lines of NAME:NUMBER, a user's name here and number there.",
    ),
    OptionSpec::with_value("gidfile", "FILE", "For idmap=file: the same for groups."),
    OptionSpec::with_value(
        "nomap",
        "TYPE",
        "For idmap=file, what to do with owners that the files lack: error (the default) or ignore.",
    ),
    OptionSpec::with_value("uid", "UID", "Show everything as this user's."),
    OptionSpec::with_value("gid", "GID", "Show everything as this group's."),
    OptionSpec::with_value("umask", "MODE", "Take these permissions from what is shown."),
    OptionSpec::flag(
        "follow_symlinks",
        "Follow symbolic links on the server: they are shown as what they lead to.",
    ),
    OptionSpec::flag(
        "transform_symlinks",
        "Show absolute targets of symbolic links as relative ones, so that they stay within the mount.",
    ),
    OptionSpec::flag(
        "contain_symlinks",
        "Refuse to read symbolic links (EPERM) whose targets are absolute or hold .. .",
    ),
    OptionSpec::flag("no_contain_symlinks", "Show all targets as they are (the default)."),
    OptionSpec::flag("disable_hardlink", "Make no hard links."),
    OptionSpec::flag("no_check_root", "Do not check that the directory is there."),
    OptionSpec::with_value(
        "dcache_timeout",
        "SECONDS",
        "How long attributes, names and symbolic links are remembered; 20 if not given.",
    ),
    OptionSpec::with_value("dcache_stat_timeout", "SECONDS", "The same, for attributes alone."),
    OptionSpec::with_value("dcache_link_timeout", "SECONDS", "The same, for symbolic links alone."),
    OptionSpec::with_value("dcache_dir_timeout", "SECONDS", "The same, for names alone."),
    OptionSpec::with_value(
        "dcache_max_size",
        "N",
        "How many names are remembered that nobody uses; 50000 if not given.",
    ),
    OptionSpec::with_value("dcache_clean_interval", "SECONDS", "For compatibility; ignored."),
    OptionSpec::with_value("dcache_min_clean_interval", "SECONDS", "For compatibility; ignored."),
    OptionSpec::with_value("dir_cache", "BOOL", "Whether anything is remembered: yes (the default) or no."),
    OptionSpec::with_value("cache_timeout", "SECONDS", "An older name of dcache_timeout."),
    OptionSpec::with_value("cache", "BOOL", "An older name of dir_cache."),
    OptionSpec::with_value(
        "attr_timeout",
        "SECONDS",
        "How long the kernel remembers names and attributes without asking; 1 if not given.",
    ),
    OptionSpec::with_value("entry_timeout", "SECONDS", "The same. If both are given, the smaller counts."),
    OptionSpec::with_value(
        "negative_timeout",
        "SECONDS",
        "How long the kernel remembers that a name is absent; 0 if not given.",
    ),
    OptionSpec::flag("no_readahead", "Read only what is asked for."),
    OptionSpec::flag("sshfs_sync", "Write nothing behind: each write waits for the server."),
    OptionSpec::flag(
        "sync_readdir",
        "List one directory at a time: no listing is fetched before it is asked for.",
    ),
    OptionSpec::with_value(
        "workaround",
        "LIST",
        "For servers with faults, separated by colons: rename (remove the target of a rename \
        first), renamexdev (say \"cross-device\" for a rename that fails), createmode (create with mode 0), none. fstat, truncate and \
        buflimit are not needed and ignored.",
    ),
    OptionSpec::flag(
        "kernel_cache",
        "For compatibility; ignored: content is kept until it is seen to have changed.",
    ),
    OptionSpec::flag("auto_cache", "For compatibility; this is always so."),
    OptionSpec::flag("noauto_cache", "For compatibility; ignored."),
];

/// What ssh(1) takes behind its own -o, and sshfs hands on.
const SSH: &[&str] = &[
    "AddKeysToAgent",
    "AddressFamily",
    "BatchMode",
    "BindAddress",
    "BindInterface",
    "CanonicalDomains",
    "CanonicalizeFallbackLocal",
    "CanonicalizeHostname",
    "CanonicalizeMaxDots",
    "CanonicalizePermittedCNAMEs",
    "CASignatureAlgorithms",
    "CertificateFile",
    "ChallengeResponseAuthentication",
    "CheckHostIP",
    "Ciphers",
    "Compression",
    "ConnectTimeout",
    "ConnectionAttempts",
    "ControlMaster",
    "ControlPath",
    "ControlPersist",
    "FingerprintHash",
    "GlobalKnownHostsFile",
    "GSSAPIAuthentication",
    "GSSAPIDelegateCredentials",
    "HashKnownHosts",
    "HostbasedAuthentication",
    "HostKeyAlgorithms",
    "HostKeyAlias",
    "HostName",
    "IdentitiesOnly",
    "IdentityAgent",
    "IdentityFile",
    "IPQoS",
    "KbdInteractiveAuthentication",
    "KbdInteractiveDevices",
    "KexAlgorithms",
    "KnownHostsCommand",
    "LogLevel",
    "MACs",
    "NoHostAuthenticationForLocalhost",
    "NumberOfPasswordPrompts",
    "PasswordAuthentication",
    "PKCS11Provider",
    "PreferredAuthentications",
    "ProxyCommand",
    "ProxyJump",
    "ProxyUseFdpass",
    "PubkeyAcceptedAlgorithms",
    "PubkeyAcceptedKeyTypes",
    "PubkeyAuthentication",
    "RekeyLimit",
    "RequiredRSASize",
    "RevokedHostKeys",
    "SecurityKeyProvider",
    "SendEnv",
    "ServerAliveCountMax",
    "ServerAliveInterval",
    "SetEnv",
    "StrictHostKeyChecking",
    "TCPKeepAlive",
    "UpdateHostKeys",
    "UserKnownHostsFile",
    "VerifyHostKeyDNS",
    "VisualHostKey",
];

const SSH_HELP: &str = "Handed on to ssh: see ssh_config(5).";

const fn specs() -> [OptionSpec; OURS.len() + SSH.len()] {
    let mut all = [OptionSpec::flag("", ""); OURS.len() + SSH.len()];
    let mut at = 0;
    while at < all.len() {
        all[at] = if at < OURS.len() {
            OURS[at]
        } else {
            OptionSpec::with_value(SSH[at - OURS.len()], "VALUE", SSH_HELP)
        };
        at += 1;
    }
    all
}

/// How owners are shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Owners {
    Theirs,
    User,
    File,
    Name,
}

/// How targets of symbolic links are shown.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Links {
    pub(crate) follow: bool,
    pub(crate) transform: bool,
    pub(crate) contain: bool,
}

/// What the options say.
#[derive(Debug)]
pub(crate) struct Settings {
    pub(crate) transport: Transport,
    pub(crate) directory: Vec<u8>,
    pub(crate) reconnect: bool,
    pub(crate) deadline: Duration,
    pub(crate) lanes: usize,
    pub(crate) owners: Owners,
    pub(crate) uid_file: Option<PathBuf>,
    pub(crate) gid_file: Option<PathBuf>,
    pub(crate) strict_owners: bool,
    pub(crate) uid: Option<u32>,
    pub(crate) gid: Option<u32>,
    pub(crate) umask: u32,
    pub(crate) links: Links,
    pub(crate) hard_links: bool,
    pub(crate) check_root: bool,
    pub(crate) attr_time: Duration,
    pub(crate) link_time: Duration,
    pub(crate) names_time: Duration,
    pub(crate) kept_names: usize,
    pub(crate) kernel_time: Duration,
    pub(crate) absent_time: Duration,
    pub(crate) read_ahead: bool,
    pub(crate) write_behind: bool,
    pub(crate) list_ahead: bool,
    pub(crate) rename_removes: bool,
    pub(crate) rename_crosses: bool,
    pub(crate) create_plain: bool,
}

impl Settings {
    pub(crate) fn take(source: &OsStr, options: &mut Options) -> Result<Self, MountError> {
        let place = Place::parse(source)?;
        let all = take_seconds(options, "cache_timeout", Duration::from_secs(20))?;
        let all = take_seconds(options, "dcache_timeout", all)?;
        let older = take_bool(options, "cache")?;
        let cached = take_bool(options, "dir_cache")?.or(older).unwrap_or(true);
        let mut time = |key| {
            let time = take_seconds(options, key, all)?;
            Ok::<_, OptionsError>(if cached { time } else { Duration::ZERO })
        };
        let attr_time = time("dcache_stat_timeout")?;
        let link_time = time("dcache_link_timeout")?;
        let names_time = time("dcache_dir_timeout")?;
        let kept_names = options.take_parsed("dcache_max_size", "a number")?.unwrap_or(50_000);
        let second = Duration::from_secs(1);
        let kernel_time = take_seconds(options, "attr_timeout", second)?.min(take_seconds(
            options,
            "entry_timeout",
            second,
        )?);
        for ignored in ["dcache_clean_interval", "dcache_min_clean_interval"] {
            take_seconds(options, ignored, second)?;
        }
        for ignored in ["kernel_cache", "auto_cache", "noauto_cache"] {
            options.take_flag(ignored)?;
        }
        let workarounds = take_workarounds(options)?;
        let lanes: usize = options.take_parsed("max_conns", "a number from 1 to 16")?.unwrap_or(1);
        if !(1..=16).contains(&lanes) {
            return Err(MountError::usage(format!(
                "option max_conns={lanes}: expected a number from 1 to 16"
            )));
        }
        let transport = take_transport(&place, options)?;
        if lanes > 1 && matches!(transport, Transport::Standard) {
            return Err(MountError::usage(
                "passive has one connection, so max_conns= cannot be given with it",
            ));
        }
        let plain = options.take_flag("no_contain_symlinks")?;
        let links = Links {
            follow: options.take_flag("follow_symlinks")?,
            transform: options.take_flag("transform_symlinks")?,
            contain: options.take_flag("contain_symlinks")? && !plain,
        };
        let deadline = take_seconds(options, "timeout", Duration::from_secs(60))?;
        if deadline.is_zero() {
            return Err(MountError::usage("option timeout=0: expected a number of seconds, 1 or more"));
        }
        Ok(Self {
            transport,
            directory: place.directory,
            reconnect: options.take_flag("reconnect")?,
            deadline,
            lanes,
            owners: take_owners(options)?,
            uid_file: options.take_value("uidfile")?.map(PathBuf::from),
            gid_file: options.take_value("gidfile")?.map(PathBuf::from),
            strict_owners: match options.take_value("nomap")?.as_deref() {
                None | Some("error") => true,
                Some("ignore") => false,
                Some(other) => {
                    return Err(MountError::usage(format!("option nomap={other}: expected error or ignore")));
                }
            },
            uid: options.take_parsed("uid", "the number of a user")?,
            gid: options.take_parsed("gid", "the number of a group")?,
            umask: options.take_octal("umask", 0o777)?.unwrap_or(0),
            links,
            hard_links: !options.take_flag("disable_hardlink")?,
            check_root: !options.take_flag("no_check_root")?,
            attr_time,
            link_time,
            names_time,
            kept_names,
            kernel_time,
            absent_time: take_seconds(options, "negative_timeout", Duration::ZERO)?,
            read_ahead: !options.take_flag("no_readahead")?,
            write_behind: !options.take_flag("sshfs_sync")?,
            list_ahead: !options.take_flag("sync_readdir")?,
            rename_removes: workarounds.0,
            rename_crosses: workarounds.1,
            create_plain: workarounds.2,
        })
    }
}

/// Fractions are allowed, as libfuse has them. A day at most: nobody means more.
fn take_seconds(options: &mut Options, key: &str, otherwise: Duration) -> Result<Duration, OptionsError> {
    let Some(seconds) = options.take_parsed::<f64>(key, "a number of seconds")? else { return Ok(otherwise) };
    if !(0.0..=86_400.0).contains(&seconds) {
        return Err(OptionsError(format!(
            "option {key}={seconds}: expected a number of seconds from 0 to 86400"
        )));
    }
    Ok(Duration::from_secs_f64(seconds))
}

fn take_bool(options: &mut Options, key: &str) -> Result<Option<bool>, OptionsError> {
    match options.take_value(key)?.as_deref() {
        None => Ok(None),
        Some("yes") => Ok(Some(true)),
        Some("no") => Ok(Some(false)),
        Some(other) => Err(OptionsError(format!("option {key}={other}: expected yes or no"))),
    }
}

fn take_owners(options: &mut Options) -> Result<Owners, OptionsError> {
    match options.take_value("idmap")?.as_deref() {
        None | Some("none") => Ok(Owners::Theirs),
        Some("user") => Ok(Owners::User),
        Some("file") => Ok(Owners::File),
        Some("name") => Ok(Owners::Name),
        Some(other) => Err(OptionsError(format!("option idmap={other}: expected none, user, file or name"))),
    }
}

/// Whether a rename removes its target first, whether one that fails says `EXDEV`, whether files are created with mode 0.
fn take_workarounds(options: &mut Options) -> Result<(bool, bool, bool), OptionsError> {
    let mut found = (false, false, false);
    for word in options.take_values("workaround")?.iter().flat_map(|list| list.split(':')) {
        match word {
            "rename" => found.0 = true,
            "norename" => found.0 = false,
            "renamexdev" => found.1 = true,
            "norenamexdev" => found.1 = false,
            "createmode" => found.2 = true,
            "nocreatemode" => found.2 = false,
            "none" => found = (false, false, false),
            "fstat" | "nofstat" | "truncate" | "notruncate" | "buflimit" | "nobuflimit" => {}
            other => {
                return Err(OptionsError(format!(
                    "option workaround={other}: expected rename, renamexdev, createmode or none"
                )));
            }
        }
    }
    Ok(found)
}

fn take_transport(place: &Place, options: &mut Options) -> Result<Transport, MountError> {
    let passive = options.take_flag("passive")? | options.take_flag("slave")?;
    let port: Option<u16> = options.take_parsed("port", "a port number")?;
    let direct: Option<u16> = options.take_parsed("directport", "a port number")?;
    let server = options.take_value("sftp_server")?.unwrap_or_else(|| "sftp".to_owned());
    let command = options.take_value("ssh_command")?;
    let may_choose = command.is_none() && !options.keys().any(|key| key == "Ciphers");
    let command = command.unwrap_or_else(|| "ssh".to_owned());
    if let Some(version) = options.take_value("ssh_protocol")?.filter(|version| version != "2") {
        return Err(MountError::usage(format!(
            "option ssh_protocol={version}: 2 is the only one that there is"
        )));
    }
    let mut words: Vec<OsString> = split_command(&command)?.into_iter().map(OsString::from).collect();
    // The connection carries files and nothing else.
    words.extend(["-x", "-a", "-oClearAllForwardings=yes"].map(OsString::from));
    if let Some(file) = options.take_value("ssh_configfile")? {
        words.extend(["-F".into(), file.into()]);
    }
    if let Some(port) = port {
        words.push(format!("-oPort={port}").into());
    }
    if let Some(compressed) = take_bool(options, "compression")? {
        words.push(format!("-oCompression={}", if compressed { "yes" } else { "no" }).into());
    }
    for key in SSH {
        for value in options.take_values(key)? {
            words.push(format!("-o{key}={value}").into());
        }
    }
    if may_choose && !passive && direct.is_none() {
        words.extend(place.host.as_deref().and_then(|host| cipher(&words, host)));
    }
    if passive {
        return Ok(Transport::Standard);
    }
    let Some(host) = place.host.as_deref() else {
        return Err(MountError::usage("the source names no host: [USER@]HOST:[DIR] is expected"));
    };
    if let Some(port) = direct {
        let host = host.rsplit_once('@').map_or(host, |(_, host)| host);
        return Ok(Transport::Port(host.to_owned(), port));
    }
    let is_program = server.contains('/');
    if !is_program {
        words.push("-s".into());
    }
    words.extend([OsString::from("--"), host.into(), server.into()]);
    Ok(Transport::Program(words))
}

/// Has AES-GCM tried first where processors compute it in hardware: it takes less than half of the time of OpenSSH's first choice, and that is
/// what limits a near server. Only if neither user nor system have chosen ciphers: `ssh -G` tells.
fn cipher(words: &[OsString], host: &str) -> Option<OsString> {
    if !has_aes() {
        return None;
    }
    let ciphers = |more: &[&str]| {
        let (name, arguments) = words.split_first()?;
        let output = Command::new(name).args(arguments).args(more).stderr(Stdio::null()).output().ok()?;
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        text.lines().find(|line| line.starts_with("ciphers ")).map(str::to_owned)
    };
    let chosen = ciphers(&["-G", "--", host])?;
    // The last -F counts.
    let default = ciphers(&["-F", "none", "-G", "--", host])?;
    (chosen == default).then(|| "-oCiphers=^aes128-gcm@openssh.com,aes256-gcm@openssh.com".into())
}

fn has_aes() -> bool {
    #[cfg(target_arch = "x86_64")]
    let has = std::arch::is_x86_feature_detected!("aes");
    #[cfg(target_arch = "aarch64")]
    let has = std::arch::is_aarch64_feature_detected!("aes");
    #[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
    let has = false;
    has
}

/// Words between spaces; a backslash takes the meaning of what follows.
fn split_command(command: &str) -> Result<Vec<String>, MountError> {
    let mut words = vec![String::new()];
    let mut chars = command.chars();
    while let Some(c) = chars.next() {
        match (c, words.last_mut()) {
            ('\\', Some(word)) => word.extend(chars.next()),
            (' ' | '\t', _) => words.push(String::new()),
            (c, Some(word)) => word.push(c),
            (_, None) => {}
        }
    }
    words.retain(|word| !word.is_empty());
    if words.is_empty() { Err(MountError::usage("option ssh_command= names no program")) } else { Ok(words) }
}

/// Where the files are: `[USER@]HOST:[DIR]`, an IPv6 address in brackets.
#[derive(Debug, PartialEq, Eq)]
struct Place {
    host: Option<String>,
    directory: Vec<u8>,
}

impl Place {
    fn parse(source: &OsStr) -> Result<Self, MountError> {
        let wrong = |what: &str| MountError::usage(format!("{what}: [USER@]HOST:[DIR] is expected"));
        let bytes = source.as_bytes();
        let colon = match (
            bytes.iter().position(|byte| *byte == b'['),
            bytes.iter().position(|byte| *byte == b':'),
        ) {
            // The brackets hold the first colon.
            (Some(open), Some(colon)) if open < colon && (open == 0 || bytes[open - 1] == b'@') => {
                let close =
                    bytes.iter().position(|byte| *byte == b']').ok_or_else(|| wrong("a ] is missing"))?;
                (bytes.get(close + 1) == Some(&b':')).then_some(close + 1)
            }
            (_, colon) => colon,
        };
        let colon = colon.ok_or_else(|| wrong("there is no colon in the source"))?;
        let (host, directory) = (&bytes[..colon], bytes[colon + 1..].to_vec());
        let host = String::from_utf8(host.to_vec()).map_err(|_| wrong("the host's name is not UTF-8"))?;
        let host: String = host.chars().filter(|c| !matches!(c, '[' | ']')).collect();
        if host.starts_with('-') {
            return Err(wrong("a host's name does not begin with a dash"));
        }
        Ok(Self { host: Some(host).filter(|host| !host.is_empty()), directory })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(source: &str) -> Result<(String, String), String> {
        let place = Place::parse(OsStr::new(source)).map_err(|error| error.message)?;
        Ok((place.host.unwrap_or_default(), String::from_utf8(place.directory).unwrap()))
    }

    fn words(source: &str, list: &str) -> Result<String, String> {
        let mut options = Options::parse(list).unwrap();
        options.check(SPECS).map_err(|error| error.0)?;
        let settings = Settings::take(OsStr::new(source), &mut options).map_err(|error| error.message)?;
        assert!(options.is_empty(), "every option is taken: {options:?}");
        Ok(match settings.transport {
            Transport::Program(words) => {
                words.iter().map(|word| word.to_str().unwrap()).collect::<Vec<_>>().join(" ")
            }
            other => format!("{other:?}"),
        })
    }

    #[test]
    fn a_source_is_split_at_its_colon() {
        let pair = |host: &str, dir: &str| Ok((host.to_owned(), dir.to_owned()));
        assert_eq!(parse("host:"), pair("host", ""));
        assert_eq!(parse("me@host:/a:b"), pair("me@host", "/a:b"));
        assert_eq!(parse("[::1]:dir"), pair("::1", "dir"));
        assert_eq!(parse("me@[fe80::1%eth0]:"), pair("me@fe80::1%eth0", ""));
        assert_eq!(parse("host:[a]"), pair("host", "[a]"));
        assert_eq!(parse(":/dir"), pair("", "/dir"));
        assert!(parse("/no/colon").is_err());
        assert!(parse("[::1]").is_err());
        assert!(parse("-oProxyCommand=x:").unwrap_err().contains("dash"));
    }

    #[test]
    fn the_command_line_of_ssh_has_what_was_asked_for() {
        let plain = "-x -a -oClearAllForwardings=yes";
        let given = "-oCiphers=aes256-ctr";
        assert_eq!(words("me@h:", "Ciphers=aes256-ctr"), Ok(format!("ssh {plain} {given} -s -- me@h sftp")));
        let list =
            "port=2222,ssh_configfile=/c,IdentityFile=/k,compression=yes,ssh_command=ssh -v,sftp_server=/s";
        let long = format!("ssh -v {plain} -F /c -oPort=2222 -oCompression=yes -oIdentityFile=/k -- h /s");
        assert_eq!(words("h:/d", list), Ok(long));
        assert_eq!(words("h:", "directport=99"), Ok("Port(\"h\", 99)".into()));
        assert_eq!(words(":/d", "passive"), Ok("Standard".into()));
        assert!(words(":/d", "").unwrap_err().contains("HOST"));
    }

    #[test]
    fn wrong_values_are_named() {
        for (list, word) in [
            ("idmap=all", "idmap"),
            ("max_conns=99", "max_conns"),
            ("passive,max_conns=2", "passive"),
            ("dir_cache=perhaps", "dir_cache"),
            ("dcache_timeout=-1", "dcache_timeout"),
            ("timeout=0", "timeout"),
            ("workaround=magic", "magic"),
            ("ssh_protocol=1", "ssh_protocol"),
            ("ssh_command= ", "ssh_command"),
            ("nosuch", "nosuch"),
        ] {
            let message = words("h:", list).unwrap_err();
            assert!(message.contains(word), "{list}: {message}");
        }
    }

    #[test]
    fn a_backslash_keeps_a_space_in_a_word() {
        assert_eq!(split_command("a\\ b  c").unwrap(), ["a b", "c"]);
    }
}
