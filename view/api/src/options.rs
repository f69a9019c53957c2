//! Mount options: the `-o` list of mount(8).
//!
//! `key`, `key=value`, separated by commas. A value that holds a comma is written in double quotes
//! (`key="a,b"`, as mount(8) has it), or with `\,`. A key may come several times.
//!
//! Each option is defined once, as an [`OptionSpec`] in its module's table: that gives the help, and the host
//! checks the list against it before the module sees it. The module then *takes* what it wants, each key once.

use std::fmt;
use std::str::FromStr;

/// The definition of one option.
#[derive(Clone, Copy, Debug)]
pub struct OptionSpec {
    /// The key.
    pub name: &'static str,
    /// What the value is, for the help (`N`, `UID`, `FILE`); `None` if the option has no value.
    pub value: Option<&'static str>,
    /// What it does, in one or more sentences.
    pub help: &'static str,
}

impl OptionSpec {
    /// An option without a value.
    pub const fn flag(name: &'static str, help: &'static str) -> Self {
        Self { name, value: None, help }
    }

    /// An option with a value.
    pub const fn with_value(name: &'static str, value: &'static str, help: &'static str) -> Self {
        Self { name, value: Some(value), help }
    }
}

/// What is wrong with an option list, in one sentence.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OptionsError(pub String);

impl fmt::Display for OptionsError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for OptionsError {}

/// An option list that hands each key out once.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Options {
    items: Vec<(String, Option<String>)>,
}

impl Options {
    /// Parses one `-o` list. Empty items are skipped, as mount(8) does.
    pub fn parse(list: &str) -> Result<Self, OptionsError> {
        let items = split(list)?
            .into_iter()
            .filter(|item| !item.is_empty())
            .map(|item| match item.split_once('=') {
                Some((key, value)) => (key.to_owned(), Some(value.to_owned())),
                None => (item, None),
            })
            .collect();
        Ok(Self { items })
    }

    /// Adds another list behind this one: `-o a -o b`.
    pub fn append(&mut self, mut other: Self) {
        self.items.append(&mut other.items);
    }

    /// Adds one option.
    pub fn push(&mut self, key: &str, value: Option<&str>) {
        self.items.push((key.to_owned(), value.map(str::to_owned)));
    }

    /// The keys that nobody has taken, in order.
    pub fn keys(&self) -> impl Iterator<Item = &str> {
        self.items.iter().map(|(key, _)| key.as_str())
    }

    /// Whether nothing is left.
    pub fn is_empty(&self) -> bool {
        self.items.is_empty()
    }

    /// Takes an option without a value: whether it was there. An error if it was given one.
    pub fn take_flag(&mut self, key: &str) -> Result<bool, OptionsError> {
        match self.take_all(key).pop() {
            None => Ok(false),
            Some(None) => Ok(true),
            Some(Some(value)) => {
                Err(OptionsError(format!("option {key} takes no value, but was given {value:?}")))
            }
        }
    }

    /// Takes an option with a value; the last one counts, as in mount(8). An error if it was given none.
    pub fn take_value(&mut self, key: &str) -> Result<Option<String>, OptionsError> {
        Ok(self.take_values(key)?.pop())
    }

    /// Takes an option that may be given several times.
    pub fn take_values(&mut self, key: &str) -> Result<Vec<String>, OptionsError> {
        let missing = || OptionsError(format!("option {key} wants a value: {key}=..."));
        self.take_all(key).into_iter().map(|value| value.ok_or_else(missing)).collect()
    }

    /// Takes an option whose value is of type `T`; `expected` says what that is: "a decimal number".
    pub fn take_parsed<T: FromStr>(&mut self, key: &str, expected: &str) -> Result<Option<T>, OptionsError> {
        let Some(value) = self.take_value(key)? else { return Ok(None) };
        match value.parse() {
            Ok(parsed) => Ok(Some(parsed)),
            Err(_) => Err(OptionsError(format!("option {key}={value}: expected {expected}"))),
        }
    }

    /// Takes an option whose value is an octal number, such as a mode. At most `max`.
    pub fn take_octal(&mut self, key: &str, max: u32) -> Result<Option<u32>, OptionsError> {
        let Some(value) = self.take_value(key)? else { return Ok(None) };
        match u32::from_str_radix(&value, 8) {
            Ok(number) if number <= max => Ok(Some(number)),
            _ => Err(OptionsError(format!("option {key}={value}: expected an octal number up to {max:o}"))),
        }
    }

    /// Takes an option whose value is a count of bytes: a number with an optional `K`, `M`, `G`, `T` (powers of 1024).
    pub fn take_bytes(&mut self, key: &str) -> Result<Option<u64>, OptionsError> {
        let Some(value) = self.take_value(key)? else { return Ok(None) };
        let wrong = || {
            OptionsError(format!("option {key}={value}: expected a number of bytes, such as 4096, 32K or 1G"))
        };
        let digits = value.trim_end_matches(|c: char| c.is_ascii_alphabetic());
        let shift = match value[digits.len()..].to_ascii_uppercase().as_str() {
            "" | "B" => 0,
            "K" | "KIB" => 10,
            "M" | "MIB" => 20,
            "G" | "GIB" => 30,
            "T" | "TIB" => 40,
            _ => return Err(wrong()),
        };
        let number: u64 = digits.parse().map_err(|_| wrong())?;
        number.checked_mul(1 << shift).map(Some).ok_or_else(wrong)
    }

    /// Checks every key that is left against what is taken: a word that nobody takes is an error that names it, and lists
    /// what is.
    pub fn check(&self, known: &[OptionSpec]) -> Result<(), OptionsError> {
        for (key, value) in &self.items {
            let Some(spec) = known.iter().find(|spec| spec.name == key) else {
                return Err(OptionsError(unknown(key, known)));
            };
            match (spec.value, value) {
                (Some(form), None) => {
                    return Err(OptionsError(format!("option {key} wants a value: {key}={form}")));
                }
                (None, Some(value)) => {
                    return Err(OptionsError(format!(
                        "option {key} takes no value, but was given {value:?}"
                    )));
                }
                _ => {}
            }
        }
        Ok(())
    }

    fn take_all(&mut self, key: &str) -> Vec<Option<String>> {
        let mut taken = Vec::new();
        self.items.retain(|(name, value)| {
            let is_it = name == key;
            if is_it {
                taken.push(value.clone());
            }
            !is_it
        });
        taken
    }
}

/// Splits at commas outside of quotes; quotes and backslashes are taken out.
fn split(list: &str) -> Result<Vec<String>, OptionsError> {
    let mut items = vec![String::new()];
    let mut quoted = false;
    let mut chars = list.chars();
    while let Some(c) = chars.next() {
        match c {
            '"' => quoted = !quoted,
            ',' if !quoted => items.push(String::new()),
            '\\' => match (chars.next(), items.last_mut()) {
                (Some(next), Some(item)) => {
                    if !matches!(next, ',' | '\\' | '"') {
                        item.push('\\');
                    }
                    item.push(next);
                }
                _ => return Err(OptionsError("the option list ends in a backslash".into())),
            },
            _ => items.last_mut().into_iter().for_each(|item| item.push(c)),
        }
    }
    if quoted { Err(OptionsError("the option list has an open quote".into())) } else { Ok(items) }
}

fn unknown(key: &str, known: &[OptionSpec]) -> String {
    if known.is_empty() {
        return format!("unknown option {key:?}: this type takes none of its own");
    }
    let mut names: Vec<&str> = known.iter().map(|spec| spec.name).collect();
    names.sort_unstable();
    format!("unknown option {key:?}; taken are: {}", names.join(", "))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_list_is_split_as_mount_does() {
        let mut options = Options::parse(r#"ro,,lowerdir="a,b":c,x=1\,2,x=3"#).unwrap();
        assert_eq!(options.take_flag("ro"), Ok(true));
        assert_eq!(options.take_value("lowerdir"), Ok(Some("a,b:c".into())));
        assert_eq!(options.take_values("x"), Ok(vec!["1,2".into(), "3".into()]));
        assert!(options.is_empty());
        assert!(Options::parse("a=\"b").is_err());
        assert!(Options::parse("a\\").is_err());
    }

    #[test]
    fn a_key_is_handed_out_once() {
        let mut options = Options::parse("uid=7").unwrap();
        assert_eq!(options.take_parsed::<u32>("uid", "a user id"), Ok(Some(7)));
        assert_eq!(options.take_parsed::<u32>("uid", "a user id"), Ok(None));
    }

    #[test]
    fn wrong_values_are_named() {
        let take = |list: &str| Options::parse(list).unwrap().take_bytes("size").map_err(|error| error.0);
        assert_eq!(take("size=3M"), Ok(Some(3 << 20)));
        assert!(take("size=3X").unwrap_err().contains("size=3X"));
        assert!(take("size=99999999T").is_err());
        assert!(take("size").unwrap_err().contains("wants a value"));
        assert!(Options::parse("mode=9").unwrap().take_octal("mode", 0o777).is_err());
    }

    #[test]
    fn an_unknown_word_is_named_with_what_is_known() {
        let known = [OptionSpec::flag("norock", ""), OptionSpec::with_value("uid", "UID", "")];
        let check = |list: &str| Options::parse(list).unwrap().check(&known);
        assert_eq!(check("norock,uid=1"), Ok(()));
        let message = check("norok").unwrap_err().0;
        assert!(message.contains("norok") && message.contains("norock, uid"), "{message}");
        assert!(check("uid").is_err() && check("norock=1").is_err());
    }
}
