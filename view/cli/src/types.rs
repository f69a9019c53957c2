//! `veduta types`: what can be mounted, and with which options.

use serde_json::json;
use veduta_api::{Module, OptionSpec};
use veduta_disk::HostWorld;

use crate::args;
use crate::failure::Failure;
use crate::modules;

/// Prints the list of types, or one type's options and manual.
pub(crate) fn run(args: &args::Types) -> Result<(), Failure> {
    let chosen: Vec<&dyn Module> = match &args.type_name {
        Some(name) => vec![modules::named(name).map_err(|error| Failure::usage(error.message))?],
        None => modules::ALL.to_vec(),
    };
    if args.json {
        let list: Vec<serde_json::Value> = chosen.iter().map(|module| as_json(*module)).collect();
        return crate::say(&format!("{:#}\n", serde_json::Value::Array(list)));
    }
    if args.type_name.is_some() {
        return crate::say(&chosen.iter().map(|module| page(*module)).collect::<String>());
    }
    let mut out = String::new();
    for module in chosen {
        out += &format!("{:10} {}\n", module.name(), module.summary());
        if !module.aliases().is_empty() {
            out += &format!("{:10} also: {}\n", "", module.aliases().join(", "));
        }
    }
    crate::say(&(out + "\n`veduta types TYPE` shows the options of one.\n"))
}

/// A type's options and manual, as text.
fn page(module: &dyn Module) -> String {
    let mut out = format!("{}: {}\n", module.name(), module.summary());
    if !module.aliases().is_empty() {
        out += &format!("Also called {}.\n", module.aliases().join(", "));
    }
    for (title, list) in option_groups(module) {
        out += &format!("\n{title}\n");
        for spec in list {
            let form = spec.value.map_or(spec.name.to_owned(), |value| format!("{}={value}", spec.name));
            out += &format!("  {form}\n");
            for line in wrap(spec.help, 72) {
                out += &format!("      {line}\n");
            }
        }
    }
    if !module.manual().is_empty() {
        out += &format!("\n{}\n", module.manual().trim_end());
    }
    out
}

/// The options of a type, under the headings of a manual page.
pub(crate) fn option_groups(module: &dyn Module) -> Vec<(&'static str, &'static [OptionSpec])> {
    let mut groups = Vec::new();
    if !module.options().is_empty() {
        groups.push(("Options of the type (-o)", module.options()));
    }
    if module.source() == veduta_api::SourceKind::Disk {
        groups.push(("Options of the source (-o)", HostWorld::OPTIONS));
    }
    groups.push(("Options of the mount (-o)", veduta_fuse::GENERIC_OPTIONS));
    groups
}

fn wrap(text: &str, width: usize) -> Vec<String> {
    let mut lines = vec![String::new()];
    for word in text.split_whitespace() {
        let Some(line) = lines.last_mut() else { break };
        if line.is_empty() {
            line.push_str(word);
        } else if line.len() + 1 + word.len() <= width {
            line.push(' ');
            line.push_str(word);
        } else {
            lines.push(word.to_owned());
        }
    }
    lines
}

fn as_json(module: &dyn Module) -> serde_json::Value {
    let options: Vec<serde_json::Value> = option_groups(module)
        .into_iter()
        .flat_map(|(_, list)| list)
        .map(|spec| json!({ "name": spec.name, "value": spec.value, "help": spec.help }))
        .collect();
    json!({
        "name": module.name(),
        "aliases": module.aliases(),
        "summary": module.summary(),
        "options": options,
    })
}
