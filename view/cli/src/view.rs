//! Views: `veduta run` and the commands that are of use inside, under our names and the family's.

use std::ffi::{OsStr, OsString};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use veduta_api::{Disk, Errno, Module, MountError, Options, World};
use veduta_disk::HostWorld;
use veduta_engine::{CALLS, Catalogue, Control, MountRequest, Settings, ask};

use crate::args;
use crate::failure::Failure;
use crate::modules;

/// All types, for the engine.
struct Types;

impl Catalogue for Types {
    fn find(&self, name: &str) -> Option<&'static dyn Module> {
        modules::find(name)
    }

    fn all(&self) -> Vec<&'static dyn Module> {
        modules::ALL.to_vec()
    }

    fn probe(&self, disk: &Disk) -> Result<Option<&'static dyn Module>, MountError> {
        modules::probe(disk)
    }

    fn partition(&self, disk: &Disk, number: u32) -> Result<Disk, MountError> {
        veduta_disk::partition_of(disk, number)
    }

    fn world(&self, options: &mut Options) -> Result<Box<dyn World>, MountError> {
        Ok(Box::new(HostWorld::from_options(options)?))
    }
}

/// The exit status of a view that could not be started, as of env(1) and its like.
pub(crate) const NOT_STARTED: u8 = 125;

/// Runs a command in a view.
pub(crate) fn run(args: &args::Run) -> Result<ExitCode, Failure> {
    let mut mounts = match &args.cow {
        Some(upper) => copy_on_write(upper, &args.over)?,
        None => Vec::new(),
    };
    for text in &args.mounts {
        mounts.push(parse_mount(text)?);
    }
    let command = if args.command.is_empty() { vec![shell()] } else { args.command.clone() };
    start(&Settings {
        command,
        mounts,
        scripts: scripts(args.rc.as_deref(), args.no_rc, ".vedutarc", "/etc/vedutarc"),
        name: args.name.clone().unwrap_or_default(),
        trace: args.trace.clone(),
        all_root: args.root,
    })
}

fn start(settings: &Settings) -> Result<ExitCode, Failure> {
    veduta_engine::run(settings, Box::new(Types)).map_err(|error| Failure::system(error.message))
}

fn shell() -> OsString {
    std::env::var_os("SHELL").filter(|shell| !shell.is_empty()).unwrap_or_else(|| "/bin/sh".into())
}

/// The mounts of `--cow`.
fn copy_on_write(upper: &Path, over: &[PathBuf]) -> Result<Vec<MountRequest>, Failure> {
    let failed =
        |path: &Path, error: &std::io::Error| Failure::system(format!("{}: {error}", path.display()));
    std::fs::create_dir_all(upper).map_err(|error| failed(upper, &error))?;
    let upper = upper.canonicalize().map_err(|error| failed(upper, &error))?;
    let root = [PathBuf::from("/")];
    let over = if over.is_empty() { &root } else { over };
    let mut mounts = Vec::new();
    for path in over {
        let path = path.canonicalize().map_err(|error| failed(path, &error))?;
        let of_path = match over {
            [_] => upper.clone(),
            _ => upper.join(path.strip_prefix("/").unwrap_or(&path)),
        };
        std::fs::create_dir_all(&of_path).map_err(|error| failed(&of_path, &error))?;
        let kept = [Path::new("/proc"), Path::new("/sys"), Path::new("/dev"), &upper];
        let kept = kept.iter().filter_map(|kept| kept.strip_prefix(&path).ok());
        let except: String = kept.map(|kept| format!(",except=/{}", kept.display())).collect();
        mounts.push(MountRequest {
            type_name: "viewfs".into(),
            source: of_path.into_os_string(),
            target: path.into_os_string(),
            options: format!("cow{except}"),
            recursive: true,
        });
    }
    Ok(mounts)
}

/// The scripts that run first: those that exist and may be run.
fn scripts(chosen: Option<&Path>, none: bool, own: &str, global: &str) -> Vec<PathBuf> {
    use std::os::unix::fs::PermissionsExt;
    if none {
        return Vec::new();
    }
    if let Some(path) = chosen {
        // A bare name is a file here, and not a command along PATH.
        return vec![std::path::absolute(path).unwrap_or_else(|_| path.to_owned())];
    }
    let home = std::env::var_os("HOME").map(|home| Path::new(&home).join(own));
    let may_run = |path: &PathBuf| {
        std::fs::metadata(path).is_ok_and(|data| data.is_file() && data.permissions().mode() & 0o111 != 0)
    };
    [Some(PathBuf::from(global)), home].into_iter().flatten().filter(may_run).collect()
}

/// `TYPE:SOURCE:TARGET[:OPTIONS]`; a colon within is written `\:`.
fn parse_mount(text: &OsStr) -> Result<MountRequest, Failure> {
    use std::os::unix::ffi::{OsStrExt, OsStringExt};
    let mut parts = vec![Vec::new()];
    let mut bytes = text.as_bytes().iter();
    while let Some(byte) = bytes.next() {
        let last = parts.len() - 1;
        match byte {
            b'\\' => parts[last].push(*bytes.next().unwrap_or(&b'\\')),
            b':' => parts.push(Vec::new()),
            other => parts[last].push(*other),
        }
    }
    let wrong = || {
        Failure::usage(format!(
            "--mount takes TYPE:SOURCE:TARGET[:OPTIONS], which {:?} is not; a colon within is written \\:, as in \
             'sshfs:HOST\\:DIR:TARGET'",
            text.to_string_lossy()
        ))
    };
    // No list of options begins with a slash: that is a target, behind a source with a colon.
    let is_path = parts.get(3).is_some_and(|options| options.starts_with(b"/"));
    if !(3..=4).contains(&parts.len()) || parts[2].is_empty() || is_path {
        return Err(wrong());
    }
    let mut parts = parts.into_iter();
    let mut next = || parts.next().unwrap_or_default();
    let type_name = String::from_utf8(next()).map_err(|_| wrong())?;
    let (source, target) = (OsString::from_vec(next()), OsString::from_vec(next()));
    let options = String::from_utf8(next()).map_err(|_| wrong())?;
    Ok(MountRequest { type_name, source, target, options, recursive: true })
}

/// Which mount serves a path.
pub(crate) fn explain(paths: &[OsString]) -> Result<(), Failure> {
    use std::os::unix::ffi::OsStrExt;
    for path in paths {
        let answer = control(Control::Explain, path.as_bytes())?;
        crate::say(&format!("{}\n", String::from_utf8_lossy(&answer)))?;
    }
    Ok(())
}

/// The coverage table.
pub(crate) fn syscalls(json: bool) -> Result<(), Failure> {
    if json {
        let rows: Vec<_> = CALLS
            .iter()
            .map(|row| {
                serde_json::json!({"name": row.name, "x86_64": row.x86_64, "aarch64": row.generic,
                    "family": format!("{:?}", row.family).to_lowercase(), "treatment": row.family.describe()})
            })
            .collect();
        return crate::say(&format!("{}\n", serde_json::Value::Array(rows)));
    }
    let number = |number: Option<u16>| number.map_or("-".to_owned(), |number| number.to_string());
    let mut text = format!("{:<24} {:>6} {:>7}  IN A VIEW\n", "CALL", "X86_64", "AARCH64");
    for row in CALLS {
        text.push_str(&format!(
            "{:<24} {:>6} {:>7}  {}\n",
            row.name,
            number(row.x86_64),
            number(row.generic),
            row.family.describe()
        ));
    }
    text.push_str("all other numbers, and 32-bit and x32 calls: refused, ENOSYS\n");
    crate::say(&text)
}

/// What is reported of calls, from now on.
pub(crate) fn trace(wanted: &str) -> Result<(), Failure> {
    control(Control::Trace, wanted.as_bytes()).map(drop)
}

fn control(what: Control, text: &[u8]) -> Result<Vec<u8>, Failure> {
    ask(what, text).map_err(|errno| match errno {
        Errno::ENOSYS => Failure::system("this is not a view: see `veduta run`"),
        other => Failure::system(other.desc()),
    })
}

/// The family's programs, by the name that this one was run as. `None`: it is none of those.
pub(crate) fn ancestor(program: &OsStr) -> Option<Result<ExitCode, Failure>> {
    let name = program.to_str()?.rsplit('/').next()?.to_owned();
    let arguments: Vec<OsString> = std::env::args_os().skip(1).collect();
    Some(match name.as_str() {
        "umvu" | "umview" | "kmview" => engine(&name, &arguments),
        "vumount" | "viewmount" => vumount(&arguments),
        "vuumount" | "viewumount" => vuumount(&arguments),
        "vuname" => vuname(&arguments),
        "viewname" => viewname(&arguments),
        "vu_insmod" | "um_add_service" | "vu_rmmod" | "um_del_service" => insmod(&name, &arguments),
        "vu_lsmod" | "um_ls_service" => lsmod(),
        "um_fsalias" => insmod(&name, &arguments),
        "vudebug" => vudebug(&arguments),
        _ => return None,
    })
}

/// `umvu [options] command` and `umview [options] command`.
fn engine(name: &str, arguments: &[OsString]) -> Result<ExitCode, Failure> {
    let usage = "usage: umvu [-h] [-N] [-f FILE] [-V NAME] [-S] [-x] [-s] [-q] [-v] [-o FILE] [-l LEVEL] [-p MODULE] COMMAND [ARGUMENT]...";
    let (mut rc, mut no_rc, mut view, mut at) = (None, false, String::new(), 0);
    while let Some(word) =
        arguments.get(at).and_then(|word| word.to_str()).filter(|word| word.starts_with('-'))
    {
        at += 1;
        let mut value = || {
            let value = arguments.get(at).cloned();
            at += 1;
            value.ok_or_else(|| Failure::usage(format!("{word} needs a value\n{usage}")))
        };
        match word {
            "--" => break,
            "-h" | "--help" => {
                crate::say(&format!("{usage}\n\nThe same as `veduta run`: see `veduta run --help`.\n"))?;
                return Ok(ExitCode::SUCCESS);
            }
            "-N" | "--norc" => no_rc = true,
            "-f" | "--rc" => rc = Some(PathBuf::from(value()?)),
            "-V" | "--vu_name" | "--viewname" => view = value()?.to_string_lossy().into_owned(),
            // Which mechanism is used is found out; nothing is logged to files of its own; what is built in needs no loading.
            "-x" | "--nonesting" | "-S" | "--noseccomp" | "--seccomp" | "-q" | "--quiet" | "-v"
            | "--verbose" | "-n" | "--nokernelpatch" | "--nokmulti" | "--noksysvm" | "--nokviewos" => {}
            "-o" | "--output" | "-l" | "--loglevel" | "-s" | "--syslog" | "-d" | "--debugtags" | "-D"
            | "--debugcols" | "-p" | "--preload" => drop(value()?),
            other => return Err(Failure::usage(format!("unknown option {other}\n{usage}"))),
        }
    }
    let command = arguments[at.min(arguments.len())..].to_vec();
    let command = if command.is_empty() { vec![shell()] } else { command };
    let (own, global) = if name == "umvu" { (".vurc", "/etc/vurc") } else { (".viewosrc", "/etc/viewosrc") };
    start(&Settings {
        command,
        mounts: Vec::new(),
        scripts: scripts(rc.as_deref(), no_rc, own, global),
        name: view,
        trace: None,
        all_root: false,
    })
}

/// `vumount [-t TYPE] [-o OPTIONS] [-r] [-w] [-B] [-M] [-R] SOURCE TARGET`: mount(2), without any policy.
fn vumount(arguments: &[OsString]) -> Result<ExitCode, Failure> {
    use nix::mount::{MsFlags, mount};
    let usage = "usage: vumount [-t TYPE] [-o OPTIONS] [-r] [-w] [-B] [-M] [-R] SOURCE TARGET";
    let (mut kind, mut options, mut flags) = (None::<OsString>, Vec::<String>::new(), MsFlags::empty());
    let mut operands = Vec::new();
    let mut words = arguments.iter();
    while let Some(word) = words.next() {
        let mut value = || words.next().cloned().ok_or_else(|| Failure::usage(usage));
        match word.to_str() {
            Some("-t") => kind = Some(value()?),
            Some("-o") => options.push(value()?.to_string_lossy().into_owned()),
            Some("-r") => options.push("ro".into()),
            Some("-w") => options.push("rw".into()),
            Some("-B" | "--bind") => flags |= MsFlags::MS_BIND,
            Some("-R" | "--rbind") => flags |= MsFlags::MS_BIND | MsFlags::MS_REC,
            Some("-M" | "--move") => flags |= MsFlags::MS_MOVE,
            Some("-h" | "--help") => {
                crate::say(&format!(
                    "{usage}\n\nMounts in the view that it runs in. Types: veduta types.\n"
                ))?;
                return Ok(ExitCode::SUCCESS);
            }
            Some(other) if other.starts_with('-') => {
                return Err(Failure::usage(format!("unknown option {other}\n{usage}")));
            }
            _ => operands.push(word.clone()),
        }
    }
    let [source, target] = operands.as_slice() else { return Err(Failure::usage(usage)) };
    in_view()?;
    let options = options.join(",");
    let mounted =
        mount(Some(source.as_os_str()), target.as_os_str(), kind.as_deref(), flags, Some(options.as_str()));
    mounted.map_err(|errno| {
        Failure::not_unmounted(format!(
            "{} on {}: {}",
            source.to_string_lossy(),
            target.to_string_lossy(),
            errno.desc()
        ))
    })?;
    Ok(ExitCode::SUCCESS)
}

/// Outside of a view the kernel would be asked, and its refusal would say nothing of the reason.
fn in_view() -> Result<(), Failure> {
    control(Control::Server, b"").map(drop)
}

/// `vuumount [-f] [-d] TARGET...`
fn vuumount(arguments: &[OsString]) -> Result<ExitCode, Failure> {
    use nix::mount::{MntFlags, umount2};
    let usage = "usage: vuumount [-f] [-d] TARGET...";
    let mut flags = MntFlags::empty();
    let mut targets = Vec::new();
    for word in arguments {
        match word.to_str() {
            Some("-f" | "--force") => flags |= MntFlags::MNT_FORCE,
            Some("-d" | "-l" | "--detach" | "--lazy") => flags |= MntFlags::MNT_DETACH,
            Some(other) if other.starts_with('-') => {
                return Err(Failure::usage(format!("unknown option {other}\n{usage}")));
            }
            _ => targets.push(word),
        }
    }
    if targets.is_empty() {
        return Err(Failure::usage(usage));
    }
    in_view()?;
    for target in targets {
        umount2(target.as_os_str(), flags).map_err(|errno| {
            Failure::not_unmounted(format!("{}: {}", target.to_string_lossy(), errno.desc()))
        })?;
    }
    Ok(ExitCode::SUCCESS)
}

/// `vuname [-snrvmpioaUVPxq] [NAME]`
fn vuname(arguments: &[OsString]) -> Result<ExitCode, Failure> {
    let flags: String = arguments.iter().filter_map(|word| word.to_str()?.strip_prefix('-')).collect();
    if let Some(name) = arguments.iter().find(|word| !word.to_string_lossy().starts_with('-')) {
        control(Control::SetName, name.to_string_lossy().as_bytes())?;
        return Ok(ExitCode::SUCCESS);
    }
    let text = |what| control(what, b"").map(|bytes| String::from_utf8_lossy(&bytes).into_owned());
    let (server, name) = match (text(Control::Server), text(Control::Name)) {
        (Ok(server), Ok(name)) => (server, name),
        _ if flags.contains('q') => return Ok(ExitCode::FAILURE),
        (Err(failure), _) | (_, Err(failure)) => return Err(failure),
    };
    let uname = nix::sys::utsname::uname().map_err(|errno| Failure::system(errno.desc()))?;
    let of = |text: &OsStr| text.to_string_lossy().into_owned();
    let flags = if flags.is_empty() { "s".to_owned() } else { flags };
    let mut words = Vec::new();
    for flag in flags.chars() {
        match flag {
            's' => words.push(of(uname.sysname())),
            'n' => words.push(of(uname.nodename())),
            'r' => words.push(of(uname.release())),
            'v' => words.push(of(uname.version())),
            'm' | 'p' | 'i' => words.push(of(uname.machine())),
            'o' => words.push("GNU/Linux".into()),
            'a' => words.push(format!(
                "{} {} {} {} {} {server} {name}",
                of(uname.sysname()),
                of(uname.nodename()),
                of(uname.release()),
                of(uname.version()),
                of(uname.machine())
            )),
            'U' => words.push(server.clone()),
            'V' => words.push(name.clone()),
            'P' => words.push(if name.is_empty() { format!("[{server}]") } else { format!("[{name}]") }),
            'x' | 'q' => {}
            other => {
                return Err(Failure::usage(format!(
                    "unknown option -{other}; there are s n r v m p i o a U V P x q"
                )));
            }
        }
    }
    crate::say(&format!("{}\n", words.join(" ").trim_end()))?;
    Ok(ExitCode::SUCCESS)
}

/// `viewname [-p] [-q] [NAME]`
fn viewname(arguments: &[OsString]) -> Result<ExitCode, Failure> {
    let words = arguments.iter().map(|word| match word.to_str() {
        Some("-p") => "-P".into(),
        _ => word.clone(),
    });
    let mut words: Vec<OsString> = words.collect();
    if !words.iter().any(|word| word == "-P" || !word.to_string_lossy().starts_with('-')) {
        words.push("-V".into());
    }
    vuname(&words)
}

/// Every type is built in: loading one that is there succeeds, and says nothing.
fn insmod(name: &str, arguments: &[OsString]) -> Result<ExitCode, Failure> {
    let mut modules = arguments.iter().filter_map(|word| word.to_str()).filter(|word| !word.starts_with('-'));
    if modules.clone().next().is_none() {
        return Err(Failure::usage(format!("usage: {name} [-p] MODULE...")));
    }
    if name == "um_fsalias" {
        return Ok(ExitCode::SUCCESS);
    }
    if name.ends_with("rmmod") || name.ends_with("del_service") {
        return Err(Failure::system("what is built in cannot be removed; unmount what it serves"));
    }
    // The family's modules, and what serves in their place.
    const FAMILY: &[&str] = &[
        "vufs", "vufuse", "vudev", "viewfs", "umfuse", "umdev", "umproc", "unreal", "fuse", "ummisc",
        "vumisc",
    ];
    let unknown = modules.find(|word| {
        let word = word.split(',').next().unwrap_or_default().trim_end_matches(".so");
        let bare = word.strip_prefix("umfuse").or_else(|| word.strip_prefix("vufuse")).unwrap_or(word);
        !FAMILY.contains(&word) && modules::find(word).is_none() && modules::find(bare).is_none()
    });
    match unknown {
        None => Ok(ExitCode::SUCCESS),
        Some(word) => Err(Failure::system(format!("there is no module {word:?} here; see `veduta types`"))),
    }
}

fn lsmod() -> Result<ExitCode, Failure> {
    let types = control(Control::Types, b"")?;
    crate::say(&String::from_utf8_lossy(&types))?;
    Ok(ExitCode::SUCCESS)
}

/// `vudebug [+|-|?]tags`: `+` reports calls, `-` ends that.
fn vudebug(arguments: &[OsString]) -> Result<ExitCode, Failure> {
    let families = |tags: &str| {
        let family = |tag: char| match tag {
            's' => Some("all"),
            'p' | 'c' | 'v' => Some("path"),
            'f' | 'd' => Some("file"),
            'm' => Some("mount"),
            'n' | 'a' => Some("exec"),
            _ => None,
        };
        tags.split(':').next().unwrap_or_default().chars().filter_map(family).collect::<Vec<_>>().join(",")
    };
    match arguments.first().and_then(|word| word.to_str()) {
        None | Some("?") => {
            crate::say("tags: s all calls, p c v paths, f d descriptors, m mounts, n a programs\n")?;
        }
        Some(word) if word.starts_with('-') => trace("")?,
        Some(word) => trace(&families(word.trim_start_matches('+')))?,
    }
    Ok(ExitCode::SUCCESS)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mount_is_read_from_its_four_parts() {
        let parsed = |text: &str| {
            parse_mount(OsStr::new(text)).map(|request| {
                [
                    request.type_name,
                    request.source.into_string().unwrap(),
                    request.target.into_string().unwrap(),
                    request.options,
                ]
            })
        };
        assert_eq!(parsed("ext2:disk.img:/mnt").unwrap(), ["ext2", "disk.img", "/mnt", ""]);
        assert_eq!(parsed(r"sshfs:host\:/x:/mnt:ro,a=b").unwrap(), ["sshfs", "host:/x", "/mnt", "ro,a=b"]);
        assert!(parsed("sshfs:host:/x:/mnt").unwrap_err().to_string().contains("HOST\\:DIR"));
        assert!(parsed("ext2:disk.img").is_err() && parsed("a:b:c:d:e").is_err() && parsed("a:b:").is_err());
    }
}
