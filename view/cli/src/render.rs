//! Facts for people and for scripts: sizes, times, reports as text and as JSON.

use std::fmt::Write as _;

use serde_json::{Map, json};
use veduta_api::{Report, Timestamp, Value};

/// A count of bytes as people read it: `1.5 GiB`.
pub(crate) fn bytes(count: u64) -> String {
    short_bytes(count, &[" bytes", " KiB", " MiB", " GiB", " TiB", " PiB", " EiB"])
}

/// As `ls -h` shows it: `1.5G`.
pub(crate) fn human(count: u64) -> String {
    short_bytes(count, &["", "K", "M", "G", "T", "P", "E"])
}

fn short_bytes(count: u64, units: &[&str]) -> String {
    let mut value = count as f64;
    let mut unit = 0;
    while value >= 1024.0 && unit + 1 < units.len() {
        value /= 1024.0;
        unit += 1;
    }
    if unit == 0 || value >= 10.0 || value.fract() < 0.05 {
        format!("{value:.0}{}", units[unit])
    } else {
        format!("{value:.1}{}", units[unit])
    }
}

/// A moment in UTC, to the second; the plain number where the calendar ends.
pub(crate) fn time_utc(time: Timestamp) -> String {
    match jiff::Timestamp::new(time.seconds, 0) {
        Ok(moment) => moment.strftime("%Y-%m-%d %H:%M:%S UTC").to_string(),
        Err(_) => format!("{} s after 1970", time.seconds),
    }
}

/// A moment as `ls -l` shows it, in the user's time zone.
pub(crate) fn time_local(time: Timestamp) -> String {
    match jiff::Timestamp::new(time.seconds, 0) {
        Ok(moment) => moment.to_zoned(jiff::tz::TimeZone::system()).strftime("%Y-%m-%d %H:%M").to_string(),
        Err(_) => format!("{:16}", time.seconds),
    }
}

/// A name for a terminal: control characters (which could move the cursor, or hide the name's end) as `\x1b`.
pub(crate) fn printable(name: &std::ffi::OsStr) -> String {
    let mut out = String::new();
    for c in name.to_string_lossy().chars() {
        if c.is_control() {
            let mut bytes = [0; 4];
            for byte in c.encode_utf8(&mut bytes).bytes() {
                let _ = write!(out, "\\x{byte:02x}");
            }
        } else {
            out.push(c);
        }
    }
    out
}

/// A report as JSON.
pub(crate) fn json(report: &Report) -> serde_json::Value {
    let mut map = Map::new();
    for (key, value) in report.fields() {
        map.insert((*key).to_owned(), json_value(value));
    }
    serde_json::Value::Object(map)
}

fn json_value(value: &Value) -> serde_json::Value {
    match value {
        Value::Text(text) => json!(text),
        Value::Number(number) | Value::Bytes(number) => json!(number),
        Value::Flag(flag) => json!(flag),
        Value::Time(time) => json!({ "seconds": time.seconds, "nanos": time.nanos, "utc": time_utc(*time) }),
        Value::List(list) => json!(list),
        Value::Nested(report) => json(report),
        Value::Table(rows) => rows.iter().map(json).collect(),
    }
}

/// A report as lines of `key: value`, nested ones indented.
pub(crate) fn text(report: &Report) -> String {
    let mut out = String::new();
    text_into(&mut out, report, 0);
    out
}

fn text_into(out: &mut String, report: &Report, indent: usize) {
    let width = report.fields().iter().map(|(key, _)| key.len()).max().unwrap_or(0) + 1;
    for (key, value) in report.fields() {
        let label = format!("{}:", key.replace('_', " "));
        match value {
            Value::Nested(inner) => {
                let _ = writeln!(out, "{:indent$}{label}", "");
                text_into(out, inner, indent + 2);
            }
            Value::Table(rows) => {
                let _ = writeln!(out, "{:indent$}{label}", "");
                table_into(out, rows, indent + 2);
            }
            Value::List(list) if *key == "warnings" => {
                let _ = writeln!(out, "{:indent$}{label}", "");
                for line in list {
                    let _ = writeln!(out, "{:indent$}  {}", "", printable(line.as_ref()));
                }
            }
            Value::Text(text) if text.is_empty() => {}
            plain => {
                let _ = writeln!(out, "{:indent$}{label:width$} {}", "", plain_text(plain));
            }
        }
    }
}

fn plain_text(value: &Value) -> String {
    match value {
        Value::Text(text) => printable(text.as_ref()),
        Value::Number(number) => number.to_string(),
        Value::Bytes(count) if *count < 1024 => bytes(*count),
        Value::Bytes(count) => format!("{} ({count})", bytes(*count)),
        Value::Flag(true) => "yes".into(),
        Value::Flag(false) => "no".into(),
        Value::Time(time) => time_utc(*time),
        Value::List(list) => printable(list.join(" ").as_ref()),
        Value::Nested(_) | Value::Table(_) => String::new(),
    }
}

/// Rows of the same keys as columns; a row's nested reports below it.
fn table_into(out: &mut String, rows: &[Report], indent: usize) {
    let mut keys: Vec<&str> = Vec::new();
    for (key, value) in rows.iter().flat_map(Report::fields) {
        if !matches!(value, Value::Nested(_) | Value::Table(_)) && !keys.contains(key) {
            keys.push(key);
        }
    }
    let cell = |row: &Report, key: &str| match row.find(key) {
        Some(Value::Bytes(count)) => bytes(*count),
        Some(value) => plain_text(value),
        None => String::new(),
    };
    let width = |key: &str| {
        rows.iter().map(|row| cell(row, key).chars().count()).max().unwrap_or(0).max(key.chars().count())
    };
    let widths: Vec<usize> = keys.iter().map(|key| width(key)).collect();
    let mut line = |cells: Vec<String>| {
        let cells: Vec<String> =
            cells.iter().zip(&widths).map(|(cell, width)| format!("{cell:width$}")).collect();
        let _ = writeln!(out, "{:indent$}{}", "", cells.join("  ").trim_end());
    };
    line(keys.iter().map(|key| key.replace('_', " ")).collect());
    for row in rows {
        line(keys.iter().map(|key| cell(row, key)).collect());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_read_as_people_write_them() {
        for (count, text) in [(0, "0 bytes"), (1023, "1023 bytes"), (1024, "1 KiB"), (1536, "1.5 KiB")] {
            assert_eq!(bytes(count), text);
        }
        assert_eq!(bytes(u64::MAX), "16 EiB");
        assert_eq!(human(1 << 30), "1G");
    }

    #[test]
    fn a_name_cannot_move_the_cursor() {
        assert_eq!(printable("a\x1b[2Jb\n".as_ref()), "a\\x1b[2Jb\\x0a");
    }

    #[test]
    fn a_moment_outside_the_calendar_is_still_shown() {
        assert_eq!(time_utc(Timestamp::from_seconds(0)), "1970-01-01 00:00:00 UTC");
        assert!(time_utc(Timestamp::from_seconds(i64::MAX)).contains("9223372036854775807"));
    }

    #[test]
    fn a_report_becomes_lines_and_json() {
        let mut row = Report::new();
        row.put("number", 1u32).put("size", Value::Bytes(2048));
        let mut report = Report::new();
        report.put("format", "gpt").put("partitions", vec![row]);
        report.warn("odd").warn("odder");
        assert_eq!(
            text(&report),
            "format:     gpt\npartitions:\n  number  size\n  1       2 KiB\nwarnings:\n  odd\n  odder\n"
        );
        assert_eq!(
            json(&report).to_string(),
            r#"{"format":"gpt","partitions":[{"number":1,"size":2048}],"warnings":["odd","odder"]}"#
        );
    }
}
