//! A driver as a program: `umfuseext2 SOURCE MOUNTPOINT [-o LIST] [-f] [-d] [-h] [-V]`.
//!
//! The order of words is that of mount(8) and mount.fuse3(8), which run such programs. Exit status: 0 done, 1 usage, 2 system,
//! 32 the mount failed.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use nix::unistd::{getegid, geteuid};
use tracing::level_filters::LevelFilter;
use veduta_api::{
    DeviceNode, Disk, Filesystem, Ino, Link, Module, MountError, MountErrorKind, Object, OptionSpec, Options,
    OptionsError, Request, SecretSource, SourceKind, World,
};

use veduta_disk::DriveTree;

use crate::daemon::{self, Front, Guardian, Side};
use crate::log;
use crate::memory;
use crate::mount::MountPoint;
use crate::mounted::{Ender, Mounted, ServeOptions};
use crate::options::{GENERIC_OPTIONS, HostOptions};

/// Exit statuses of mount(8).
const USAGE: u8 = 1;
const SYSTEM: u8 = 2;
const MOUNT_FAILED: u8 = 32;

/// How long those who still use a mount have after a signal to end it.
const GRACE: Duration = Duration::from_secs(10);

/// Where a driver program's sources come from: the options of the source are taken out of the list.
pub(crate) type MakeWorld = fn(&mut Options) -> Result<Box<dyn World>, OptionsError>;

/// The whole of a driver program. Returns when the mount has ended, or, in the process that the user started, when it answers.
pub(crate) fn run(module: &dyn Module, source_options: &'static [OptionSpec], world: MakeWorld) -> ExitCode {
    let program = log::program();
    let words: Vec<OsString> = std::env::args_os().skip(1).collect();
    let command = match Command::parse(&words, module.source(), module.letters()) {
        Ok(command) => command,
        Err(message) => {
            eprintln!("{program}: {message}\nTry {program} --help");
            return ExitCode::from(USAGE);
        }
    };
    let status = match command {
        Command::Help => {
            print(&help(module, &program, source_options));
            0
        }
        Command::Version => {
            print(&format!("{program} {}\n", env!("CARGO_PKG_VERSION")));
            0
        }
        Command::Mount(mount) => Driver { module, program, show_as: None, mount, world }.run(),
    };
    ExitCode::from(status)
}

/// As [`run`], for a program that has read its command line by itself; `show_as` is the type that `/proc/mounts` shows.
pub(crate) fn run_command(
    module: &dyn Module,
    show_as: &str,
    mount: MountCommand,
    world: MakeWorld,
) -> ExitCode {
    let show_as = Some(show_as.to_owned());
    ExitCode::from(Driver { module, program: log::program(), show_as, mount, world }.run())
}

fn print(text: &str) {
    use std::io::Write;
    // A reader that has seen enough (`| head`) is no failure.
    let _ = std::io::stdout().write_all(text.as_bytes());
}

/// As [`Module::letters`].
type Letters = &'static [(char, &'static str)];

/// What the command line asks for.
#[derive(Debug, PartialEq, Eq)]
enum Command {
    Help,
    Version,
    Mount(MountCommand),
}

/// What a driver program, or `veduta mount`, is asked to mount.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct MountCommand {
    /// The source, as it was written.
    pub source: OsString,
    /// Where it is to appear.
    pub point: PathBuf,
    /// Everything behind `-o`.
    pub options: Options,
    /// Whether to stay in the foreground.
    pub foreground: bool,
    /// Whether to stay in the foreground and log each request.
    pub debug: bool,
}

impl Command {
    /// Options may stand anywhere; `--` ends them. A module without a source may be given one word only.
    fn parse(words: &[OsString], source: SourceKind, known: Letters) -> Result<Self, String> {
        let mut mount = MountCommand::default();
        let mut places: Vec<&OsString> = Vec::new();
        let mut words = words.iter();
        while let Some(word) = words.next() {
            let bytes = word.as_bytes();
            match bytes {
                b"--" => places.extend(words.by_ref()),
                b"--help" => return Ok(Command::Help),
                b"--version" => return Ok(Command::Version),
                [b'-', b'-', ..] => return Err(format!("unknown option {}", Path::new(word).display())),
                [b'-', letters @ ..] if !letters.is_empty() => {
                    match mount.take_letters(letters, &mut words, known)? {
                        Some(command) => return Ok(command),
                        None => continue,
                    }
                }
                _ => places.push(word),
            }
        }
        match places.as_slice() {
            [source, point] => {
                mount.source.clone_from(source);
                mount.point = PathBuf::from(point);
            }
            [point] if source == SourceKind::None => {
                mount.source = "none".into();
                mount.point = PathBuf::from(point);
            }
            [] => return Err("a source and a mount point are wanted".into()),
            [only] => {
                return Err(format!(
                    "a mount point is wanted behind the source {}",
                    Path::new(only).display()
                ));
            }
            [_, _, third, ..] => {
                return Err(format!("there is a word too many: {}", Path::new(third).display()));
            }
        }
        Ok(Command::Mount(mount))
    }
}

impl MountCommand {
    /// One word of letters, such as `-fd` or `-oro`.
    fn take_letters<'a>(
        &mut self,
        letters: &[u8],
        words: &mut impl Iterator<Item = &'a OsString>,
        known: Letters,
    ) -> Result<Option<Command>, String> {
        for (at, letter) in letters.iter().enumerate() {
            match letter {
                b'f' => self.foreground = true,
                b'd' => self.debug = true,
                b'r' => self.options.push("ro", None),
                b'w' => self.options.push("rw", None),
                // mount(8) passes these on; they say nothing to us.
                b'n' | b's' | b'v' => {}
                b'h' => return Ok(Some(Command::Help)),
                b'V' => return Ok(Some(Command::Version)),
                b'o' => {
                    let rest = letters.get(at + 1..).unwrap_or_default();
                    let list = match rest {
                        [] => words.next().cloned().ok_or("option -o wants a list behind it")?,
                        rest => OsStr::from_bytes(rest).to_owned(),
                    };
                    let list = list.to_str().ok_or("the option list is not UTF-8")?;
                    self.options.append(Options::parse(list).map_err(|error| error.0)?);
                    return Ok(None);
                }
                other => {
                    let letter = char::from(*other);
                    let option = known.iter().find(|(known, _)| *known == letter).map(|(_, option)| *option);
                    let option = option.ok_or_else(|| format!("unknown option -{letter}"))?;
                    if let Some((key, value)) = option.split_once('=') {
                        self.options.push(key, Some(value));
                        continue;
                    }
                    let rest = letters.get(at + 1..).unwrap_or_default();
                    let value = match rest {
                        [] => words
                            .next()
                            .cloned()
                            .ok_or_else(|| format!("option -{letter} wants a value behind it"))?,
                        rest => OsStr::from_bytes(rest).to_owned(),
                    };
                    let value =
                        value.to_str().ok_or_else(|| format!("the value of -{letter} is not UTF-8"))?;
                    self.options.push(option, Some(value));
                    return Ok(None);
                }
            }
        }
        Ok(None)
    }
}

struct Driver<'a> {
    module: &'a dyn Module,
    program: String,
    show_as: Option<String>,
    mount: MountCommand,
    world: MakeWorld,
}

impl Driver<'_> {
    fn run(mut self) -> u8 {
        let (host, world) = match self.options() {
            Ok(options) => options,
            Err(error) => {
                eprintln!("{}: {}", self.program, error.0);
                return USAGE;
            }
        };
        let level = if host.debug { LevelFilter::DEBUG } else { LevelFilter::WARN };
        log::start(host.log_level.unwrap_or(level));
        if let Some(Err(error)) = host.log_file.as_deref().map(log::to_file) {
            return self.fail("the log file cannot be written", &error);
        }
        log_panics();
        memory::keep_in_one_heap();
        let foreground = self.mount.foreground || self.mount.debug || host.debug;
        let front = match if foreground { Ok(Side::Server(Front::none())) } else { daemon::split() } {
            Ok(Side::Front(status)) => return status,
            Ok(Side::Server(front)) => front,
            Err(error) => return self.fail("the server cannot be started", &error),
        };
        match self.start(host, &*world) {
            Ok((mounted, guardian)) => self.serve(mounted, guardian, front, foreground, &*world),
            Err(status) => {
                front.fail(status);
                status
            }
        }
    }

    /// The host's options and the world, out of the list; what is left is checked against the type's.
    fn options(&mut self) -> Result<(HostOptions, Box<dyn World>), OptionsError> {
        let options = &mut self.mount.options;
        let shown = shown_source(&self.mount.source, self.module.source());
        let asked_to_write = options.keys().any(|key| key == "rw");
        let show_as = self.show_as.as_deref().unwrap_or(&self.program);
        let mut host = HostOptions::take(options, shown, show_as)?;
        host.debug |= self.mount.debug;
        if asked_to_write && !host.mount.read_only && !self.module.writable() {
            // As mount(8) does with a write-protected device, which fstab's `defaults` also asks to write.
            eprintln!("{}: mounted read-only: {} cannot be written yet", self.program, self.module.name());
        }
        host.mount.read_only |= !self.module.writable();
        // The words of a source are not those of a type that has none.
        let world = match self.module.source() {
            SourceKind::None => (self.world)(&mut Options::default())?,
            _ => (self.world)(options)?,
        };
        options.check(self.module.options())?;
        Ok((host, world))
    }

    /// Mounts. If it fails, says why, and gives the exit status.
    fn start(&self, host: HostOptions, world: &dyn World) -> Result<(Mounted, Guardian), u8> {
        let mut guardian =
            Guardian::start().map_err(|error| self.fail("the guardian cannot be started", &error))?;
        if let Some(point) = MountPoint::expected(&self.mount.point, &host.mount) {
            let _ = guardian.watch(&point);
        }
        if let Err(error) = daemon::block_ending_signals() {
            guardian.dismiss();
            return Err(self.fail("signals cannot be set up", &error));
        }
        match self.mount(host, world) {
            Ok(mounted) => {
                if let Err(error) = guardian.watch(mounted.point()) {
                    tracing::warn!("the guardian is gone: {error}");
                }
                Ok((mounted, guardian))
            }
            Err(error) => {
                guardian.dismiss();
                eprintln!(
                    "{}: {}: {}",
                    self.module.name(),
                    Path::new(&self.mount.source).display(),
                    error.message
                );
                Err(if error.kind == MountErrorKind::Usage { USAGE } else { MOUNT_FAILED })
            }
        }
    }

    fn mount(&self, host: HostOptions, world: &dyn World) -> Result<Mounted, MountError> {
        let mut request = Request {
            source: &self.mount.source,
            options: self.mount.options.clone(),
            read_only: host.mount.read_only,
            world: &AtPoint { world, point: &self.mount.point },
        };
        let tree: Arc<dyn Filesystem> = match self.module.mount(&mut request)? {
            Object::Tree(tree) => tree,
            Object::Disk(drive) => {
                let looks = DeviceNode::from_options(&self.mount.options)?;
                let owner = (geteuid().as_raw(), getegid().as_raw());
                Arc::new(DriveTree::new(drive, looks, owner))
            }
            _ => {
                let message =
                    format!("{} is no type of files, and cannot be mounted here", self.module.name());
                return Err(MountError::usage(message));
            }
        };
        let options = ServeOptions { mount: host.mount, workers: host.workers };
        let mounted = Mounted::new(tree.clone(), &self.mount.point, &options);
        if mounted.is_err() {
            // What the mount may have begun on the disk is ended.
            let _ = tree.unmount();
        }
        mounted
    }

    /// Serves until the mount ends.
    fn serve(
        &self,
        mounted: Mounted,
        guardian: Guardian,
        front: Front,
        foreground: bool,
        world: &dyn World,
    ) -> u8 {
        let ender = mounted.ender();
        let watcher = thread::Builder::new().name("signals".into()).spawn(move || end_on_signals(&ender));
        if let Err(error) = watcher {
            tracing::warn!("signals are not watched: {error}");
        }
        if !foreground {
            log::to_system();
        }
        if let Err(error) = front.release() {
            tracing::warn!("the background cannot be entered: {error}");
        }
        mounted.wait_over();
        world.leave();
        let ended = mounted.wait();
        guardian.dismiss();
        match ended {
            Ok(()) => 0,
            Err(error) => {
                tracing::error!(
                    "{}: {}: {}",
                    self.module.name(),
                    Path::new(&self.mount.source).display(),
                    error.message
                );
                SYSTEM
            }
        }
    }

    fn fail(&self, what: &str, error: &std::io::Error) -> u8 {
        eprintln!("{}: {what}: {error}", self.program);
        SYSTEM
    }
}

/// A world, and where in it the mount is to appear.
struct AtPoint<'a> {
    world: &'a dyn World,
    point: &'a Path,
}

impl World for AtPoint<'_> {
    fn disk(&self, source: &OsStr, writable: bool) -> Result<Disk, MountError> {
        self.world.disk(source, writable)
    }
    fn tree(&self, source: &OsStr) -> Result<(Arc<dyn Filesystem>, Ino), MountError> {
        self.world.tree(source)
    }
    fn mount_point(&self) -> Option<&OsStr> {
        Some(self.point.as_os_str())
    }
    fn link(&self, source: &OsStr) -> Result<Arc<dyn Link>, MountError> {
        self.world.link(source)
    }
    fn secret(&self, prompt: &str) -> Result<Vec<u8>, MountError> {
        self.world.secret(prompt)
    }
    fn secret_from(&self, source: SecretSource<'_>) -> Result<Vec<u8>, MountError> {
        self.world.secret_from(source)
    }
    fn leave(&self) {
        self.world.leave();
    }
    fn shows_real_numbers(&self) -> bool {
        self.world.shows_real_numbers()
    }
}

/// Waits for a signal, and unmounts. Users of a busy mount get some time, or until the next signal.
fn end_on_signals(ender: &Ender) {
    let signals = daemon::ending_signals();
    if signals.wait().is_err() || ender.unmount() {
        return;
    }
    tracing::warn!("the mount is in use; it ends when it is no longer, or in {} seconds", GRACE.as_secs());
    let _ = thread::scope(|scope| {
        let second = thread::Builder::new().spawn_scoped(scope, || {
            let _ = signals.wait();
            ender.give_up();
        });
        thread::sleep(GRACE);
        ender.give_up();
        second.map(drop)
    });
}

/// A panic of a driver is caught where the driver is called; here its place goes to the log, in the background too.
fn log_panics() {
    std::panic::set_hook(Box::new(|panic| {
        let place = panic.location().map(|at| format!("{}:{}", at.file(), at.line())).unwrap_or_default();
        let what = message(panic.payload());
        tracing::error!("panic at {place}: {what}");
    }));
}

/// What a panic said.
fn message(payload: &(dyn std::any::Any + Send)) -> &str {
    let owned = || payload.downcast_ref::<String>().map(String::as_str);
    payload.downcast_ref::<&str>().copied().or_else(owned).unwrap_or("no message")
}

/// The source as `/proc/mounts` shows it: absolute, if it is a path.
fn shown_source(source: &OsStr, kind: SourceKind) -> OsString {
    match kind {
        SourceKind::Disk | SourceKind::Tree => daemon::absolute(Path::new(source)).into_os_string(),
        SourceKind::Link | SourceKind::Address | SourceKind::None => source.to_owned(),
    }
}

fn help(module: &dyn Module, program: &str, source_options: &'static [OptionSpec]) -> String {
    let mut text = format!(
        "{program}: {}\n\nUsage: {program} SOURCE MOUNTPOINT [-o LIST] [-f] [-d]\n\n  \
         -o LIST  options, separated by commas\n  -f       stay in the foreground\n  \
         -d       stay in the foreground and log each request\n  -h       show this help\n  \
         -V       show the version\n",
        module.summary()
    );
    for (letter, option) in module.letters() {
        let form = if option.contains('=') { format!("-{letter}") } else { format!("-{letter} VALUE") };
        let means = if option.contains('=') { (*option).to_owned() } else { format!("{option}=VALUE") };
        text.push_str(&format!("  {form:<8} as -o {means}\n"));
    }
    text.push_str("\nUnmount with umount MOUNTPOINT or fusermount3 -u MOUNTPOINT.\n");
    let of_source = if module.source() == SourceKind::Disk { source_options } else { &[] };
    for (title, options) in [
        ("Options of the type", module.options()),
        ("Options of the source", of_source),
        ("Options of the mount", GENERIC_OPTIONS),
    ] {
        if !options.is_empty() {
            text.push_str(&format!("\n{title}:\n"));
            options.iter().for_each(|spec| text.push_str(&option_help(spec)));
        }
    }
    if !module.manual().is_empty() {
        text.push_str(&format!("\n{}\n", module.manual().trim_end()));
    }
    text.push_str("\nExit status: 0 done, 1 usage, 2 system, 32 the mount failed.\n");
    text
}

/// One option, its help wrapped beside it.
fn option_help(spec: &OptionSpec) -> String {
    let form = spec.value.map_or(spec.name.to_owned(), |value| format!("{}={value}", spec.name));
    let mut lines = vec![format!("  {form:<20}")];
    for word in spec.help.split_whitespace() {
        match lines.last_mut() {
            Some(line) if line.chars().count() + word.len() < 79 => {
                line.push(' ');
                line.push_str(word);
            }
            _ => lines.push(format!("{:22} {word}", "")),
        }
    }
    lines.join("\n") + "\n"
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(line: &str) -> Result<MountCommand, String> {
        let words: Vec<OsString> = line.split_whitespace().map(OsString::from).collect();
        match Command::parse(&words, SourceKind::Disk, &[('p', "port"), ('C', "compression=yes")])? {
            Command::Mount(mount) => Ok(mount),
            other => Err(format!("{other:?}")),
        }
    }

    #[test]
    fn options_may_stand_anywhere() {
        for line in [
            "disk.img /mnt -o ro,uid=5 -f",
            "-o ro -ouid=5 -f disk.img /mnt",
            "disk.img -fo ro,uid=5 -- /mnt",
        ] {
            let mount = parse(line).unwrap();
            assert_eq!(
                (mount.source.to_str(), mount.point.to_str()),
                (Some("disk.img"), Some("/mnt")),
                "{line}"
            );
            assert_eq!(mount.options.keys().collect::<Vec<_>>(), ["ro", "uid"], "{line}");
            assert!(mount.foreground, "{line}");
        }
    }

    #[test]
    fn what_is_wrong_is_named() {
        for (line, word) in [
            ("", "source"),
            ("disk.img", "mount point"),
            ("a b c", "c"),
            ("a b -x", "-x"),
            ("a b --long", "--long"),
            ("a b -o", "-o"),
            ("a b -o \"", "quote"),
        ] {
            assert!(parse(line).unwrap_err().contains(word), "{line}");
        }
        assert_eq!(parse("a -h"), Err("Help".into()));
        assert_eq!(parse("a -fV"), Err("Version".into()));
    }

    #[test]
    fn letters_of_the_type_stand_for_its_options() {
        for line in ["a /b -p 22 -C", "-Cp22 a /b", "a -p 22 -fC /b"] {
            let mut mount = parse(line).unwrap();
            assert_eq!(mount.options.take_value("port"), Ok(Some("22".into())), "{line}");
            assert_eq!(mount.options.take_value("compression"), Ok(Some("yes".into())), "{line}");
        }
        assert!(parse("a b -p").unwrap_err().contains("-p"));
    }

    #[test]
    fn a_type_without_a_source_needs_none() {
        let words = [OsString::from("/mnt")];
        assert!(matches!(Command::parse(&words, SourceKind::None, &[]), Ok(Command::Mount(_))));
    }

    #[test]
    fn help_is_not_wider_than_a_terminal() {
        for spec in GENERIC_OPTIONS {
            for line in option_help(spec).lines() {
                assert!(line.chars().count() < 80, "{line}");
            }
        }
    }
}
