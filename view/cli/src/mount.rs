//! `veduta mount` and `veduta umount`.

use std::ffi::OsStr;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use veduta_api::{Errno, MountError, MountErrorKind};
use veduta_disk::HostWorld;
use veduta_fuse::{MountCommand, MountPoint, Server};

use crate::args;
use crate::failure::Failure;
use crate::{modules, source};

/// Finds the type and mounts. Returns when the mount answers (or, in the foreground, when it has ended).
pub(crate) fn run(args: &args::Mount) -> Result<ExitCode, Failure> {
    let options = source::options(&args.reading.options)?;
    let (module, source) = match args.reading.type_name.as_str() {
        "auto" => {
            let mut options = options.clone();
            let world = HostWorld::from_options(&mut options).map_err(|error| Failure::usage(error.0))?;
            source::pick(&args.source, &world)?
        }
        name => {
            let module = modules::named(name).map_err(|error| Failure::usage(error.message))?;
            (module, args.source.clone())
        }
    };
    let command = MountCommand {
        source,
        point: args.dir.clone(),
        options,
        foreground: args.foreground,
        debug: args.debug,
    };
    Ok(veduta_fuse::mount_main(module, &modules::program_name(module), command))
}

/// Ends mounts, and says of each that could not be ended why.
pub(crate) fn umount(args: &args::Umount) -> Result<(), Failure> {
    let mut failed = None;
    for dir in &args.dirs {
        let ended = MountPoint::at(dir).and_then(|point| {
            if args.lazy {
                return point.unmount(true);
            }
            let (source, server) = (point.source(), Server::of(point.path()));
            point.unmount(false)?;
            match (server, source) {
                (Some(server), _) if server.wait(PATIENCE) => Ok(()),
                (Some(server), _) => Err(not_written(&format!(
                    "process {} is still at it, or serves it in another mount namespace",
                    server.pid()
                ))),
                (None, Some(source)) => wait_until_written(&source),
                (None, None) => Ok(()),
            }
        });
        if let Err(error) = ended {
            let hint =
                if error.errno == Errno::EBUSY && !args.lazy { " (-l detaches it all the same)" } else { "" };
            let failure = match error.kind {
                MountErrorKind::Usage => Failure::mount(None, dir.as_os_str(), &error),
                _ => Failure::not_unmounted(format!("{}{hint}", error.message)),
            };
            if let Some(earlier) = failed.replace(failure) {
                eprintln!("veduta: {earlier}");
            }
        }
    }
    failed.map_or(Ok(()), Err)
}

/// How long a server may take to write out after its unmount, before we say that it is still at it.
const PATIENCE: Duration = Duration::from_secs(60);

fn not_written(why: &str) -> MountError {
    MountError::system(Errno::ETIMEDOUT, format!("unmounted, but not yet written out: {why}"))
}

/// Waits for a server that does not say who it is, of an image that was mounted to be written: the kernel's unmount does not. Until then
/// the server holds the image's lock, so this asks for it as a reader. A source that cannot be opened is none of ours to wait for.
fn wait_until_written(source: &OsStr) -> Result<(), MountError> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        match HostWorld::default().check_unused(source) {
            Err(error) if error.errno == Errno::EBUSY && Instant::now() >= deadline => {
                return Err(not_written(&error.message));
            }
            Err(error) if error.errno == Errno::EBUSY => std::thread::sleep(Duration::from_millis(5)),
            _ => return Ok(()),
        }
    }
}
