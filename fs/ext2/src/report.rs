//! What `veduta info` shows of a volume.

use std::fmt::Write;

use veduta_api::{Report, Timestamp};

use crate::features::{RO_COMPAT_GDT_CSUM, RO_COMPAT_METADATA_CSUM};
use crate::journal::Status;
use crate::superblock::{Fault, STATE_ERROR, STATE_ORPHAN, STATE_VALID, Superblock};
use crate::volume::Volume;

/// All that is known without a walk.
pub(crate) fn describe(volume: &Volume, journal: &Status) -> Report {
    let sb = &volume.sb;
    let mut report = Report::new();
    identity(&mut report, sb);
    sizes(&mut report, volume);
    report.put("features", sb.features.names());
    report.put("checksums", checksums(sb));
    report.put("directory_hash", hash_name(sb));
    report.put("journal", journal_state(sb, journal));
    history(&mut report, sb);
    warnings(&mut report, sb, journal);
    report
}

fn identity(report: &mut Report, sb: &Superblock) {
    report.put("format", sb.features.format());
    report.put("label", sb.facts.label.as_str());
    report.put("uuid", uuid(&sb.uuid));
    report.put("revision", sb.facts.revision);
    report.put("made_on", creator(sb.facts.creator_os));
}

fn sizes(report: &mut Report, volume: &Volume) {
    let sb = &volume.sb;
    let (free_clusters, free_inodes) = volume.free_counts();
    report.put("size", veduta_api::Value::Bytes(sb.blocks_count << sb.block_bits));
    report.put("block_size", veduta_api::Value::Bytes(1 << sb.block_bits));
    if sb.cluster_bits > 0 {
        report.put("cluster_size", veduta_api::Value::Bytes(1 << (sb.block_bits + sb.cluster_bits)));
    }
    report.put("blocks", sb.blocks_count);
    report.put("blocks_free", free_clusters << sb.cluster_bits);
    report.put("blocks_reserved", sb.reserved_blocks);
    report.put("inodes", sb.inodes_count);
    report.put("inodes_free", free_inodes);
    report.put("inode_size", veduta_api::Value::Bytes(sb.inode_size.into()));
    report.put("groups", sb.group_count);
}

fn history(report: &mut Report, sb: &Superblock) {
    let facts = &sb.facts;
    report.put("state", state(facts.state));
    report.put("on_errors", on_errors(facts.errors_behaviour));
    for (key, time) in [
        ("created", facts.created),
        ("last_mounted", facts.mounted),
        ("last_written", facts.written),
        ("last_checked", facts.checked),
    ] {
        if time != Timestamp::default() {
            report.put(key, time);
        }
    }
    if !facts.last_mounted_on.is_empty() {
        report.put("last_mounted_on", facts.last_mounted_on.as_str());
    }
    report.put("mounts_since_check", u32::from(facts.mount_count));
    if facts.kib_written > 0 {
        report.put("written_so_far", veduta_api::Value::Bytes(facts.kib_written.saturating_mul(1024)));
    }
    if facts.mmp_block > 0 {
        report.put("multi_mount_block", facts.mmp_block);
    }
    if facts.encoding > 0 {
        let strict = if sb.strict_encoding { ", strict" } else { "" };
        report.put(
            "encoding",
            format!("{}{strict}", if facts.encoding == 1 { "utf8-12.1" } else { "unknown" }),
        );
    }
}

fn warnings(report: &mut Report, sb: &Superblock, journal: &Status) {
    let facts = &sb.facts;
    if facts.state & STATE_ERROR != 0 {
        report.warn("errors were found in this volume; run e2fsck");
    }
    if facts.error_count > 0 {
        report.warn(format!("the kernel has noted {} errors", facts.error_count));
        report.warn(format!("the first: {}", fault(&facts.first_error)));
        report.warn(format!("the last: {}", fault(&facts.last_error)));
        report.put("last_error", facts.last_error.time);
    }
    if facts.state & STATE_VALID == 0 && *journal == Status::Absent {
        report.warn("it was not unmounted cleanly, and has no journal; run e2fsck");
    }
    match journal {
        Status::Skipped => {
            report.warn("it was not unmounted cleanly; what is in its journal is left out, as noload says");
        }
        Status::Replayed { .. } => {
            report.warn("it was not unmounted cleanly; the tree is shown as it is with its journal replayed");
        }
        Status::Absent | Status::Clean => {}
    }
    if sb.last_orphan != 0 {
        let first = sb.last_orphan;
        report.warn(format!("files deleted while open (the first is inode {first}) still take up space"));
    }
}

fn fault(fault: &Fault) -> String {
    let mut text = format!("in {} line {}", fault.function, fault.line);
    if fault.inode > 0 {
        let _ = write!(text, ", inode {}", fault.inode);
    }
    if fault.block > 0 {
        let _ = write!(text, ", block {}", fault.block);
    }
    text
}

fn journal_state(sb: &Superblock, journal: &Status) -> String {
    let place = match sb.journal_ino {
        0 if sb.journal_device != 0 => "on another device",
        _ => "inside",
    };
    match journal {
        Status::Absent => "none".into(),
        Status::Clean => format!("{place}, empty"),
        Status::Skipped => format!("{place}, not replayed"),
        Status::Replayed { transactions, fast_commits: 0 } => {
            format!("{place}, {transactions} transactions to replay")
        }
        Status::Replayed { transactions, fast_commits } => {
            format!("{place}, {transactions} transactions and {fast_commits} fast commits to replay")
        }
    }
}

fn checksums(sb: &Superblock) -> &'static str {
    match sb.features {
        features if features.has_ro_compat(RO_COMPAT_METADATA_CSUM) => "crc32c on all metadata",
        features if features.has_ro_compat(RO_COMPAT_GDT_CSUM) => "crc16 on group descriptors",
        _ => "none",
    }
}

fn hash_name(sb: &Superblock) -> String {
    let name = match sb.facts.hash_version {
        0 => "legacy",
        1 => "half_md4",
        2 => "tea",
        6 => "siphash",
        _ => "unknown",
    };
    format!("{name}{}", if sb.unsigned_hash { ", unsigned" } else { "" })
}

fn state(state: u16) -> String {
    let mut words = vec![if state & STATE_VALID != 0 { "clean" } else { "not clean" }];
    if state & STATE_ERROR != 0 {
        words.push("with errors");
    }
    if state & STATE_ORPHAN != 0 {
        words.push("orphans being recovered");
    }
    words.join(", ")
}

fn on_errors(behaviour: u16) -> &'static str {
    match behaviour {
        1 => "continue",
        2 => "remount-ro",
        3 => "panic",
        _ => "unknown",
    }
}

fn creator(os: u32) -> String {
    match os {
        0 => "Linux".into(),
        1 => "Hurd".into(),
        3 => "FreeBSD".into(),
        4 => "Lites".into(),
        other => format!("system {other}"),
    }
}

fn uuid(bytes: &[u8; 16]) -> String {
    let mut text = String::new();
    for (index, byte) in bytes.iter().enumerate() {
        if matches!(index, 4 | 6 | 8 | 10) {
            text.push('-');
        }
        let _ = write!(text, "{byte:02x}");
    }
    text
}
