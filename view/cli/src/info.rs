//! `veduta info`: what an image is, layer by layer.

use std::ffi::OsStr;
use std::os::unix::fs::MetadataExt;

use veduta_api::{Disk, MountError, Options, Partition, PartitionTable, Report, Value};
use veduta_disk::HostWorld;

use crate::args;
use crate::failure::Failure;
use crate::source::{self, Found};
use crate::{modules, render};

/// Partitions are looked into one level deep; a disk inside a partition is only named.
const DEPTH: u32 = 1;

/// Prints the report of a source.
pub(crate) fn run(args: &args::Info) -> Result<(), Failure> {
    let report = report(args)?;
    crate::say(&if args.json { format!("{:#}\n", render::json(&report)) } else { render::text(&report) })
}

fn report(args: &args::Info) -> Result<Report, Failure> {
    let mut options = source::options(&args.reading.options)?;
    let world = HostWorld::from_options(&mut options).map_err(|error| Failure::usage(error.0))?;
    let failed = |error: MountError| Failure::mount(None, &args.source, &error);
    let (disk, layers) = world.open(&args.source, false).map_err(failed)?;
    let mut report = Report::new();
    report.put("source", args.source.to_string_lossy().as_ref());
    if !layers.is_empty() {
        report.put("layers", layers);
    }
    report.put("image_size", Value::Bytes(disk.size()));
    if let Some(allocated) = allocated(&args.source) {
        report.put("allocated", Value::Bytes(allocated));
    }
    match args.reading.type_name.as_str() {
        "auto" => add_content(&mut report, &disk, options, 0).map_err(failed)?,
        name => {
            let module = modules::named(name).map_err(|error| Failure::usage(error.message))?;
            options.check(module.options()).map_err(|error| Failure::usage(error.0))?;
            let content = module
                .describe(&disk, options)
                .map_err(|error| Failure::mount(Some(name), &args.source, &error))?;
            merge(&mut report, &content);
        }
    }
    Ok(report)
}

/// Bytes that a file takes up on its own disk, if the source is simply a file.
fn allocated(source: &OsStr) -> Option<u64> {
    let meta = std::fs::metadata(source).ok()?;
    meta.is_file().then(|| meta.blocks() * 512)
}

fn add_content(report: &mut Report, disk: &Disk, options: Options, depth: u32) -> Result<(), MountError> {
    match source::look(disk)? {
        Found::Type(module) => merge(report, &module.describe(disk, options)?),
        Found::Table(table) => add_table(report, disk, &table, depth),
        Found::Nothing => {
            report.put("format", if matches!(disk.next_data(0), Ok(None)) { "empty" } else { "unknown" });
        }
    }
    Ok(())
}

fn add_table(report: &mut Report, disk: &Disk, table: &PartitionTable, depth: u32) {
    report.put("format", table.scheme);
    merge(report, &table.report);
    let rows = table.partitions.iter().map(|partition| row(disk, partition, depth)).collect::<Vec<_>>();
    report.put("partitions", rows);
}

fn row(disk: &Disk, partition: &Partition, depth: u32) -> Report {
    let mut row = Report::new();
    row.put("number", partition.number);
    row.put("offset", partition.offset);
    row.put("size", Value::Bytes(partition.size));
    let kind = if partition.kind_name.is_empty() { &partition.kind } else { &partition.kind_name };
    row.put("type", kind.clone());
    for (key, text) in [("name", &partition.name), ("uuid", &partition.uuid)] {
        if !text.is_empty() {
            row.put(key, text.clone());
        }
    }
    if partition.bootable {
        row.put("bootable", true);
    }
    match content(disk, partition, depth) {
        Ok(content) => {
            for key in ["format", "label"] {
                if let Some(value) = content.find(key) {
                    row.put(key, value.clone());
                }
            }
            row.put("content", content);
        }
        Err(error) => {
            row.put("format", format!("unreadable: {error}"));
        }
    }
    row
}

fn content(disk: &Disk, partition: &Partition, depth: u32) -> Result<Report, MountError> {
    let mut content = Report::new();
    let window = disk
        .window(partition.offset, partition.size, format!("{}#{}", disk.name(), partition.number))
        .map_err(|_| MountError::corrupt("the partition ends behind the end of the disk"))?;
    if depth < DEPTH {
        add_content(&mut content, &window, Options::default(), depth + 1)?;
    }
    Ok(content)
}

fn merge(report: &mut Report, other: &Report) {
    for (key, value) in other.fields() {
        match (*key, value) {
            ("warnings", Value::List(list)) => list.iter().for_each(|line| {
                report.warn(line.clone());
            }),
            _ => {
                report.put(key, value.clone());
            }
        }
    }
}
