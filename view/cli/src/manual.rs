//! Manual pages and completions, from the definitions of the command line and of the modules.

use std::io::Write;
use std::path::Path;

use clap::CommandFactory;
use clap_mangen::Man;
use clap_mangen::roff::{Roff, bold, italic, roman};
use veduta_api::Module;

use crate::args::Cli;
use crate::failure::Failure;
use crate::{modules, types};

/// Prints the completion script for a shell.
pub(crate) fn completions(shell: clap_complete::Shell) {
    clap_complete::generate(shell, &mut Cli::command(), "veduta", &mut std::io::stdout());
}

/// Prints one page, or writes all of them into a directory.
pub(crate) fn man(command: Option<&str>, out: Option<&Path>) -> Result<(), Failure> {
    match out {
        Some(dir) => write_all(dir),
        None => {
            let page = page_of(command.unwrap_or("veduta"))?;
            std::io::stdout().write_all(&page).map_err(|error| Failure::system(error.to_string()))
        }
    }
}

fn write_all(dir: &Path) -> Result<(), Failure> {
    let failed = |error: std::io::Error| Failure::system(format!("{}: {error}", dir.display()));
    std::fs::create_dir_all(dir).map_err(failed)?;
    let mut names = vec!["veduta".to_owned()];
    for command in commands() {
        names.push(command.get_name().to_owned());
        let below = command.get_subcommands().filter(|below| below.get_name() != "help");
        names.extend(below.map(|below| format!("{}-{}", command.get_name(), below.get_name())));
    }
    names.extend(modules::ALL.iter().filter_map(|module| program(*module)));
    for name in &names {
        let file = if name.starts_with("um") || name == "veduta" {
            format!("{name}.1")
        } else {
            format!("veduta-{name}.1")
        };
        std::fs::write(dir.join(file), page_of(name)?).map_err(failed)?;
    }
    Ok(())
}

/// All commands, those of a command (`veduta encfs init`) as `encfs-init`.
fn commands() -> impl Iterator<Item = clap::Command> {
    let shown = |command: &&clap::Command| !command.is_hide_set() && command.get_name() != "help";
    let mut all: Vec<clap::Command> = Vec::new();
    for command in Cli::command().get_subcommands().filter(shown) {
        all.push(command.clone());
        for below in command.get_subcommands().filter(shown) {
            all.push(below.clone().name(format!("{}-{}", command.get_name(), below.get_name())));
        }
    }
    all.into_iter()
}

/// The command of a command: `disk-list`.
fn below(name: &str) -> Option<(&str, clap::Command)> {
    let (command, rest) = name.split_once('-')?;
    let found = commands().find(|found| found.get_name() == command)?;
    Some((command, found.find_subcommand(rest)?.clone()))
}

/// The name of a module's own program.
fn program(module: &dyn Module) -> Option<String> {
    let name = modules::program_name(module);
    modules::for_program(name.as_ref()).is_some_and(|found| found.name() == module.name()).then_some(name)
}

fn page_of(name: &str) -> Result<Vec<u8>, Failure> {
    let failed = |error: std::io::Error| Failure::system(error.to_string());
    let mut page = Vec::new();
    if name == "veduta" {
        Man::new(Cli::command()).render(&mut page).map_err(failed)?;
    } else if let Some(command) = commands().find(|command| command.get_name() == name) {
        let command =
            command.name(format!("veduta-{name}")).bin_name(format!("veduta {}", name.replace('-', " ")));
        Man::new(command).render(&mut page).map_err(failed)?;
    } else if let Some((command, below)) = below(name) {
        let bin_name = format!("veduta {command} {}", below.get_name());
        let below = below.name(format!("veduta-{name}")).bin_name(bin_name);
        Man::new(below).render(&mut page).map_err(failed)?;
    } else if let Some(module) = modules::for_program(name.as_ref()) {
        driver_page(name, module).to_writer(&mut page).map_err(failed)?;
    } else {
        return Err(Failure::usage(format!("there is no manual page for {name:?}")));
    }
    Ok(page)
}

/// The page of a driver program, from its module's definitions.
fn driver_page(name: &str, module: &dyn Module) -> Roff {
    let mut roff = Roff::new();
    let version = concat!("veduta ", env!("CARGO_PKG_VERSION"));
    roff.control("TH", [name, "1", "", version, "Veduta"]);
    roff.control("SH", ["NAME"]);
    roff.text([roman(format!("{name} - {}", module.summary()))]);
    roff.control("SH", ["SYNOPSIS"]);
    roff.text([bold(name), roman(" "), italic("SOURCE MOUNTPOINT"), roman(" [-o LIST] [-f] [-d] [-h] [-V]")]);
    roff.control("SH", ["DESCRIPTION"]);
    for paragraph in module.manual().split("\n\n").filter(|text| !text.trim().is_empty()) {
        roff.control("PP", []);
        roff.text([roman(paragraph.trim())]);
    }
    for (title, list) in types::option_groups(module) {
        roff.control("SH", [title.to_uppercase().as_str()]);
        for spec in list {
            roff.control("TP", []);
            let value = spec.value.map(|value| format!("={value}")).unwrap_or_default();
            roff.text([bold(spec.name), italic(value)]);
            roff.text([roman(spec.help)]);
        }
    }
    roff.control("SH", ["EXIT STATUS"]);
    roff.text([roman("0 done, 1 wrong usage, 2 the system refused something, 32 the mount failed.")]);
    roff.control("SH", ["SEE ALSO"]);
    roff.text([
        bold("veduta"),
        roman("(1), "),
        bold("mount"),
        roman("(8), "),
        bold("fusermount3"),
        roman("(1)"),
    ]);
    roff
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_well_formed() {
        Cli::command().debug_assert();
    }

    #[test]
    fn every_command_and_every_driver_has_a_page() {
        for name in ["veduta", "mount", "info", "encfs-init", "umfuseext2", "umfuseencfs", "umfusessh"] {
            let page = String::from_utf8(page_of(name).unwrap()).unwrap();
            assert!(page.contains(".TH") && page.contains("NAME"), "{name}: {page}");
        }
        assert!(page_of("nonesuch").is_err());
    }
}
