//! The `-o` list, in the words of mount(8) for iso9660, as one value.

use veduta_api::{MountError, OptionSpec, Options, Perm, Result};

use crate::names::Map;

/// The table from which help and checks are made.
pub(crate) const OPTIONS: &[OptionSpec] = &[
    OptionSpec::flag(
        "norock",
        "Ignore Rock Ridge: names, owners and modes are those of Joliet or the plain tree.",
    ),
    OptionSpec::flag("nojoliet", "Ignore Joliet, even if there is no Rock Ridge."),
    OptionSpec::with_value(
        "uid",
        "UID",
        "The owner of everything, even if Rock Ridge has others. Default: 0 where there is no Rock Ridge.",
    ),
    OptionSpec::with_value(
        "gid",
        "GID",
        "The group of everything, even if Rock Ridge has others. Default: 0 where there is no Rock Ridge.",
    ),
    OptionSpec::with_value(
        "mode",
        "MODE",
        "The permissions of files without Rock Ridge, octal. Default: 0555.",
    ),
    OptionSpec::with_value(
        "dmode",
        "MODE",
        "The permissions of directories without Rock Ridge, octal. Default: 0555.",
    ),
    OptionSpec::flag(
        "overriderockperm",
        "Let mode and dmode, if given, count for files with Rock Ridge too.",
    ),
    OptionSpec::with_value(
        "map",
        "n|o|a",
        "Plain names: normal (lower case, without ;1), off, or acorn (normal, with RISC OS file types). Default: normal.",
    ),
    OptionSpec::with_value(
        "check",
        "r|s",
        "Whether names are looked up without regard to case (relaxed) or not (strict). Default: strict.",
    ),
    OptionSpec::with_value(
        "session",
        "N",
        "Mount session N of the image, from 1. Default: what the descriptors at sector 16 say, which is the last session in images that xorriso grew.",
    ),
    OptionSpec::with_value(
        "sbsector",
        "SECTOR",
        "The session starts at this sector of 2048 bytes: its descriptors are 16 sectors further.",
    ),
    OptionSpec::flag("hide", "Do not show files that are marked as hidden."),
    OptionSpec::flag("unhide", "Show hidden and associated files."),
    OptionSpec::flag(
        "showassoc",
        "Show associated files too, with ;associated behind the name of the file that they belong to.",
    ),
    OptionSpec::flag("cruft", "The high byte of file sizes is garbage: no file is larger than 16 MiB."),
    OptionSpec::flag("utf8", "Names are shown in UTF-8, which they always are."),
    OptionSpec::with_value("iocharset", "utf8", "The encoding of names shown: UTF-8 is the only one."),
    OptionSpec::with_value(
        "block",
        "512|1024|2048",
        "Checked, and without effect: the volume says what its blocks are.",
    ),
    OptionSpec::flag("eltorito", "Show the boot images as files in the directory [BOOT]."),
];

/// What the user wants to see.
#[derive(Clone, Debug, Default)]
pub(crate) struct Choices {
    pub(crate) no_rock_ridge: bool,
    pub(crate) no_joliet: bool,
    pub(crate) uid: Option<u32>,
    pub(crate) gid: Option<u32>,
    pub(crate) mode: Option<Perm>,
    pub(crate) dmode: Option<Perm>,
    pub(crate) override_modes: bool,
    pub(crate) map: Map,
    pub(crate) any_case: bool,
    pub(crate) session: Session,
    pub(crate) hide: bool,
    pub(crate) show_associated: bool,
    pub(crate) cruft: bool,
    pub(crate) el_torito: bool,
}

/// Where the session starts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Session {
    /// At the start of the disk.
    #[default]
    First,
    /// The one with this number, from 1.
    Number(u32),
    /// At this sector.
    Sector(u32),
}

impl Choices {
    /// Takes all options of the table. The first that is wrong is said.
    pub(crate) fn take(options: &mut Options) -> Result<Self, MountError> {
        let perm = |mode: Option<u32>| mode.map(Perm::from_mode);
        let unhide = options.take_flag("unhide")?;
        take_checked(options)?;
        Ok(Self {
            no_rock_ridge: options.take_flag("norock")?,
            no_joliet: options.take_flag("nojoliet")?,
            uid: options.take_parsed("uid", "a decimal user id")?,
            gid: options.take_parsed("gid", "a decimal group id")?,
            mode: perm(options.take_octal("mode", 0o7777)?),
            dmode: perm(options.take_octal("dmode", 0o7777)?),
            override_modes: options.take_flag("overriderockperm")?,
            map: take_map(options)?,
            any_case: take_check(options)?,
            session: take_session(options)?,
            hide: options.take_flag("hide")? && !unhide,
            show_associated: options.take_flag("showassoc")? || unhide,
            cruft: options.take_flag("cruft")?,
            el_torito: options.take_flag("eltorito")?,
        })
    }
}

fn take_map(options: &mut Options) -> Result<Map, MountError> {
    match options.take_value("map")?.as_deref() {
        None | Some("n" | "normal") => Ok(Map::Normal),
        Some("o" | "off") => Ok(Map::Off),
        Some("a" | "acorn") => Ok(Map::Acorn),
        Some(other) => Err(wrong("map", other, "normal, off or acorn")),
    }
}

fn take_check(options: &mut Options) -> Result<bool, MountError> {
    match options.take_value("check")?.as_deref() {
        None | Some("s" | "strict") => Ok(false),
        Some("r" | "relaxed") => Ok(true),
        Some(other) => Err(wrong("check", other, "relaxed or strict")),
    }
}

fn take_session(options: &mut Options) -> Result<Session, MountError> {
    let number: Option<u32> = options.take_parsed("session", "the number of a session, from 1")?;
    let sector = options.take_parsed("sbsector", "the number of a sector")?;
    match (number, sector) {
        (Some(_), Some(_)) => {
            Err(MountError::usage("session and sbsector say both where the session starts: give one"))
        }
        (Some(0), None) => Err(wrong("session", "0", "the number of a session, from 1")),
        (Some(number), None) => Ok(Session::Number(number)),
        (None, Some(sector)) => Ok(Session::Sector(sector)),
        (None, None) => Ok(Session::First),
    }
}

/// Options that are accepted so that old command lines work, and change nothing.
fn take_checked(options: &mut Options) -> Result<(), MountError> {
    options.take_flag("utf8")?;
    if let Some(charset) = options.take_value("iocharset")? {
        if !matches!(charset.to_ascii_lowercase().as_str(), "utf8" | "utf-8") {
            return Err(wrong("iocharset", &charset, "utf8, since names are always shown in UTF-8"));
        }
    }
    if let Some(block) = options.take_value("block")? {
        if !matches!(block.as_str(), "512" | "1024" | "2048") {
            return Err(wrong("block", &block, "512, 1024 or 2048"));
        }
    }
    Ok(())
}

fn wrong(key: &str, value: &str, expected: &str) -> MountError {
    MountError::usage(format!("option {key}={value}: expected {expected}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn take(list: &str) -> Result<Choices, String> {
        let mut options = Options::parse(list).unwrap();
        let choices = Choices::take(&mut options).map_err(|error| error.message)?;
        assert!(options.is_empty(), "left over: {options:?}");
        Ok(choices)
    }

    #[test]
    fn every_word_of_the_table_is_taken() {
        for spec in OPTIONS {
            let value = match spec.name {
                "uid" | "gid" | "mode" | "dmode" | "session" | "sbsector" => "7",
                "map" | "check" => &spec.value.unwrap()[..1],
                "iocharset" => "utf8",
                "block" => "2048",
                _ => "",
            };
            let item = if spec.value.is_some() { format!("{}={value}", spec.name) } else { spec.name.into() };
            take(&item).unwrap();
        }
    }

    #[test]
    fn a_wrong_value_is_told_what_was_expected() {
        for (list, expected) in [
            ("map=x", "normal, off or acorn"),
            ("check=no", "relaxed or strict"),
            ("session=0", "from 1"),
            ("session=two", "from 1"),
            ("session=1,sbsector=32", "give one"),
            ("iocharset=latin1", "UTF-8"),
            ("block=4096", "512, 1024 or 2048"),
            ("mode=999", "octal"),
            ("uid=root", "decimal user id"),
            ("norock=1", "takes no value"),
        ] {
            let message = take(list).unwrap_err();
            assert!(message.contains(expected), "{list}: {message}");
        }
    }

    #[test]
    fn unhide_wins_over_hide() {
        let choices = take("hide,unhide").unwrap();
        assert!(!choices.hide && choices.show_associated);
    }
}
