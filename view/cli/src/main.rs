//! `veduta`: all of Veduta in one program. Run under a driver's name (`umfuseext2`), it is that driver.

#![forbid(unsafe_code)]

mod args;
mod copy;
mod disk;
mod doctor;
mod encfs;
mod failure;
mod info;
mod layer;
mod look;
mod manual;
mod modules;
mod mount;
mod progress;
mod render;
mod serve;
mod source;
mod tour;
mod types;
mod view;

use std::io::ErrorKind;
use std::process::ExitCode;

use clap::Parser;

use crate::args::{Cli, Command};
use crate::failure::Failure;

fn main() -> ExitCode {
    let program = std::env::args_os().next().unwrap_or_default();
    if let Some(module) = modules::for_program(&program) {
        return veduta_fuse::driver_main(module);
    }
    if let Some(done) = view::ancestor(&program) {
        return done.unwrap_or_else(|failure| {
            eprintln!("{}: {failure}", program.to_string_lossy());
            failure.exit_code()
        });
    }
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => {
            // Help and version are no failures; a closed pipe behind them is nobody's business.
            let _ = error.print();
            let is_run = std::env::args_os().nth(1).is_some_and(|word| word == "run");
            let status = if is_run { view::NOT_STARTED } else { 1 };
            return ExitCode::from(if error.use_stderr() { status } else { 0 });
        }
    };
    match run(&cli.command) {
        Ok(code) => code,
        Err(failure) => {
            eprintln!("veduta: {failure}");
            failure.exit_code()
        }
    }
}

fn run(command: &Command) -> Result<ExitCode, Failure> {
    if !matches!(command, Command::Mount(_)) {
        veduta_fuse::log_to_stderr(std::env::var("VEDUTA_LOG").ok().as_deref());
    }
    match command {
        Command::Mount(args) => return mount::run(args),
        Command::Umount(args) => mount::umount(args)?,
        Command::Run(args) => return view::run(args).map_err(|failure| failure.with(view::NOT_STARTED)),
        Command::Explain { paths } => view::explain(paths)?,
        Command::Syscalls { json } => view::syscalls(*json)?,
        Command::Trace { what } => view::trace(what)?,
        Command::Info(args) => info::run(args)?,
        Command::Ls(args) => look::ls(args)?,
        Command::Cat(args) => look::cat(args)?,
        Command::Cp(args) => copy::run(args)?,
        Command::Disk(args) => disk::run(args)?,
        Command::Diff(args) => layer::diff(args)?,
        Command::Commit(args) => return layer::commit(args),
        Command::Discard(args) => layer::discard(args)?,
        Command::Export(args) => layer::export(args)?,
        Command::Import(args) => layer::import(args)?,
        Command::Layer { action } => layer::named(action)?,
        Command::Doctor(args) => doctor::run(args)?,
        Command::Types(args) => types::run(args)?,
        Command::Encfs(command) => encfs::run(command)?,
        Command::Tour => tour::run()?,
        Command::Completions { shell } => manual::completions(*shell),
        Command::Man { command, out } => manual::man(command.as_deref(), out.as_deref())?,
        Command::Trial { what, dir } => doctor::run_trial(what, dir.as_deref())?,
    }
    Ok(ExitCode::SUCCESS)
}

/// Writes to standard output.
pub(crate) fn say(text: &str) -> Result<(), Failure> {
    use std::io::Write;
    std::io::stdout().write_all(text.as_bytes()).map_err(|error| output_failed(&error))
}

/// A failure to write to standard output. A reader that has seen enough (`| head`) is none: the program just ends.
pub(crate) fn output_failed(error: &std::io::Error) -> Failure {
    if error.kind() == ErrorKind::BrokenPipe {
        std::process::exit(0);
    }
    Failure::system(format!("standard output: {error}"))
}
