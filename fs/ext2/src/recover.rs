//! A volume that is to be changed: whether it can be, and what comes first.
//!
//! The journal is replayed onto the disk; inodes that a crash left without a name are given back. A volume with errors, or one
//! that should be checked, is not touched: it stays readable.

use std::time::Duration;

use veduta_api::{Disk, MountError};

use crate::error::{Error, Result};
use crate::features::{COMPAT_HAS_JOURNAL, INCOMPAT_RECOVER};
use crate::journal::{self, Status};
use crate::journal_writer::{self, Ring};
use crate::orphans;
use crate::superblock::{PRIMARY_OFFSET, STATE_ERROR, STATE_VALID, Superblock};
use crate::transactions::{Policy, Transactions, say_not_in_use};
use crate::volume::Volume;
use crate::zones::Zones;

/// A volume that was asked for to be changed.
pub(crate) enum Opened {
    /// It can be.
    Writable(Box<Volume>),
    /// It can only be read: why, and what to do about it.
    ReadOnly(String),
}

/// How changes are written unless options say otherwise.
impl Default for Policy {
    fn default() -> Self {
        Self { period: Duration::from_secs(5), barrier: true, discard: false, go_on: false }
    }
}

/// Opens the volume on a disk that can be written.
pub(crate) fn open(disk: &Disk, policy: Policy) -> Result<Opened, MountError> {
    let sb = Superblock::read(disk, PRIMARY_OFFSET)?;
    sb.features.check_writable()?;
    let name = disk.name().to_owned();
    let only =
        |what: &str| Ok(Opened::ReadOnly(format!("{what}; it is mounted read-only. Run e2fsck -f {name}")));
    if sb.facts.state & STATE_ERROR != 0 || sb.facts.error_count > 0 {
        return only("errors were found in this volume before");
    }
    let journalled = sb.features.has_compat(COMPAT_HAS_JOURNAL);
    let volume = Volume::new(disk.clone(), sb);
    let volume = match replayed(volume, policy) {
        Ok(Replayed::Yes(volume)) => volume,
        Ok(Replayed::No(why)) => return only(&why),
        Err(error @ (Error::Corrupt(_) | Error::Unsupported(_))) => {
            return only(&format!("the journal cannot be replayed ({error})"));
        }
        Err(error) => return Err(error.into()),
    };
    if volume.sb.facts.state & STATE_ERROR != 0 {
        return only("errors were found in this volume before");
    }
    if volume.sb.facts.state & STATE_VALID == 0 {
        return only("the volume was not unmounted cleanly, and should be checked");
    }
    match prepared(*volume, journalled, policy) {
        Ok(volume) => Ok(Opened::Writable(Box::new(volume))),
        Err(error @ Error::Corrupt(_)) => only(&format!("the volume is damaged ({error})")),
        Err(error) => Err(error.into()),
    }
}

enum Replayed {
    Yes(Box<Volume>),
    No(String),
}

/// The volume, with the content of its journal in place.
fn replayed(volume: Volume, policy: Policy) -> Result<Replayed> {
    let sb = &volume.sb;
    if !sb.features.has_compat(COMPAT_HAS_JOURNAL) {
        return Ok(Replayed::Yes(Box::new(volume)));
    }
    if sb.journal_ino == 0 {
        return Ok(Replayed::No("its journal is on another device, and cannot be written".into()));
    }
    if journal_writer::has_error(&volume)? {
        return Ok(Replayed::No("an error was noted in the journal".into()));
    }
    if !sb.features.has_incompat(INCOMPAT_RECOVER) {
        return Ok(Replayed::Yes(Box::new(volume)));
    }
    let disk = volume.disk.clone();
    let next = journal::next_sequence(&volume)?;
    let (volume, status) = journal::replay(volume, false)?;
    if let Status::Replayed { fast_commits, .. } = status {
        if fast_commits > 0 {
            return fast_replayed(&volume, policy, fast_commits);
        }
        let blocks = volume.bring_home()?;
        tracing::info!("ext2: {}: {blocks} blocks were replayed from the journal", volume.name());
    }
    disk.flush()?;
    let volume = fresh(&disk)?;
    journal_writer::say_replayed(&volume, next.wrapping_add(1))?;
    disk.flush()?;
    say_not_in_use(&volume)?;
    disk.flush()?;
    Ok(Replayed::Yes(Box::new(fresh(&disk)?)))
}

/// The volume, with whole transactions and the fast commits behind them in place.
fn fast_replayed(volume: &Volume, policy: Policy, count: u32) -> Result<Replayed> {
    if volume.sb.cluster_bits != 0 {
        return Ok(Replayed::No("its journal ends in fast commits, and it has clusters of blocks".into()));
    }
    let disk = volume.disk.clone();
    let blocks = volume.bring_home()?;
    disk.flush()?;
    let home = fresh(&disk)?;
    let (head, sequence, log) = journal::behind(&home)?;
    let ring = Ring::open_behind(&home, head, sequence)?;
    let home = with_transactions(home, Some(ring), policy)?;
    let replayed = crate::replayed::replay(&home, log);
    match (&home.transactions, replayed) {
        (Some(transactions), Ok(())) => transactions.finish(&home)?,
        (_, Err(Error::Unsupported(what))) => return Ok(Replayed::No(format!("its journal ends in {what}"))),
        (_, Err(error)) => return Err(error),
        (None, _) => {}
    }
    tracing::info!(
        "ext2: {}: {blocks} blocks and {count} fast commits were replayed from the journal",
        volume.name()
    );
    Ok(Replayed::Yes(Box::new(fresh(&disk)?)))
}

/// The volume as the disk has it.
fn fresh(disk: &Disk) -> Result<Volume> {
    let sb = Superblock::parse(&disk.read_vec(PRIMARY_OFFSET, 1024)?, PRIMARY_OFFSET, disk.size())?;
    Ok(Volume::new(disk.clone(), sb))
}

fn prepared(volume: Volume, journalled: bool, policy: Policy) -> Result<Volume> {
    let ring = if journalled { Some(Ring::open(&volume)?) } else { None };
    let volume = with_transactions(volume, ring, policy)?;
    orphans::recover(&volume)?;
    Ok(volume)
}

fn with_transactions(mut volume: Volume, ring: Option<Ring>, policy: Policy) -> Result<Volume> {
    let (mut clusters, mut inodes) = (0, 0);
    let mut own = Vec::new();
    for group in 0..volume.sb.group_count {
        let about = volume.group(group)?;
        clusters += u64::from(about.free_clusters);
        inodes += u64::from(about.free_inodes);
        own.extend(Zones::of_group(&volume, group, &about));
    }
    own.extend(ring.iter().flat_map(Ring::places));
    let zones = Zones::new(own);
    volume.transactions = Some(Transactions::new(&volume, ring, policy, (clusters, inodes), zones));
    Ok(volume)
}
