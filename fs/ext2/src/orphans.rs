//! Orphans: inodes without a name that are still open, and files that are being made shorter.
//!
//! Layout: a list that starts in the superblock; i_dtime of each leads to the next. With `orphan_file` the kernel uses a file full of
//! numbers instead, and this list when that is full. We use the list always, and read both.
//!
//! Without a journal a list that is half written would be worse than none: then the inodes say that they are gone, and the checker frees what they
//! have. The list is in memory only.

use veduta_api::Timestamp;

use crate::bytes::le32;
use crate::change::Change;
use crate::error::{Error, Result};
use crate::features::RO_COMPAT_ORPHAN_PRESENT;
use crate::map::Map;
use crate::raw::RawInode;
use crate::volume::Volume;

/// Where s_last_orphan stands.
const LAST_ORPHAN_AT: usize = 0xe8;
/// Bytes at the end of each block of an orphan file: magic and checksum.
const FILE_TAIL: usize = 8;

impl Change<'_> {
    /// Puts an inode at the head of the list; the caller stores it.
    pub(crate) fn add_orphan(&mut self, inode: &mut RawInode) -> Result<()> {
        if self.meta.orphans.contains(&inode.ino) {
            return Ok(());
        }
        let (ino, next) = (inode.ino, self.meta.orphans.first().copied().unwrap_or(0));
        self.orphans_mut().insert(0, ino);
        if self.listed() {
            inode.set_dtime(next);
            return self.set_head(ino);
        }
        if inode.links() == 0 {
            inode.set_dtime(Timestamp::now().seconds as u32);
        }
        Ok(())
    }

    /// Takes an inode off the list; the caller stores it.
    pub(crate) fn remove_orphan(&mut self, inode: &mut RawInode) -> Result<()> {
        let ino = inode.ino;
        let Some(at) = self.meta.orphans.iter().position(|orphan| *orphan == ino) else { return Ok(()) };
        let next = self.meta.orphans.get(at + 1).copied().unwrap_or(0);
        if !self.listed() {
            self.orphans_mut().remove(at);
            inode.set_dtime(0);
            return Ok(());
        }
        match at.checked_sub(1).map(|before| self.meta.orphans[before]) {
            None => self.set_head(next)?,
            Some(before) => {
                let mut before = self.load(before)?;
                before.set_dtime(next);
                self.store(&mut before)?;
            }
        }
        self.orphans_mut().remove(at);
        inode.set_dtime(0);
        Ok(())
    }

    /// Whether the list is on the disk.
    fn listed(&self) -> bool {
        self.volume.transactions.as_ref().is_some_and(|transactions| transactions.journalled)
    }

    fn set_head(&mut self, ino: u32) -> Result<()> {
        self.edit_super(|sb| sb[LAST_ORPHAN_AT..LAST_ORPHAN_AT + 4].copy_from_slice(&ino.to_le_bytes()))
    }
}

/// After a crash: what was without a name is given back, what was being made shorter becomes so.
pub(crate) fn recover(volume: &Volume) -> Result<()> {
    let listed = list(volume)?;
    let in_file = match volume.sb.features.has_ro_compat(RO_COMPAT_ORPHAN_PRESENT) {
        true => in_file(volume)?,
        false => Vec::new(),
    };
    if listed.is_empty() && in_file.is_empty() {
        return Ok(());
    }
    let count = listed.len() + in_file.len();
    tracing::info!("ext2: {}: {count} inodes were in use without a name, or half cut", volume.name());
    if let Some(transactions) = &volume.transactions {
        transactions.meta.lock().orphans.clone_from(&listed);
    }
    for ino in in_file {
        volume.change(|change| {
            let mut inode = change.load(ino)?;
            change.add_orphan(&mut inode)?;
            change.store(&mut inode)
        })?;
    }
    clear_file(volume)?;
    let all = volume.transactions.as_ref().map(|transactions| transactions.meta.lock().orphans.clone());
    for ino in all.unwrap_or_default() {
        settle(volume, ino)?;
    }
    volume.commit()
}

/// One orphan that nobody uses: it goes, or becomes as long as it says.
pub(crate) fn settle(volume: &Volume, ino: u32) -> Result<()> {
    let inode = volume.any_inode(ino)?;
    if inode.links() == 0 {
        return crate::shape::delete(volume, ino);
    }
    crate::shape::cut(volume, ino)
}

/// The list on the disk. An inode is on it once, so the walk ends.
fn list(volume: &Volume) -> Result<Vec<u32>> {
    let (mut found, mut ino) = (Vec::new(), volume.sb.last_orphan);
    while ino != 0 {
        if !volume.sb.is_ordinary(ino) || found.contains(&ino) {
            return Err(Error::corrupt("the list of orphans is damaged").in_inode(ino));
        }
        found.push(ino);
        ino = le32(volume.record(ino)?.bytes(), 0x14);
    }
    Ok(found)
}

/// The inodes that the orphan file names.
fn in_file(volume: &Volume) -> Result<Vec<u32>> {
    let mut found = Vec::new();
    for content in file_blocks(volume)? {
        let numbers = &content.1[..content.1.len() - FILE_TAIL];
        found.extend(numbers.chunks_exact(4).map(|number| le32(number, 0)).filter(|ino| *ino != 0));
    }
    match found.iter().find(|ino| !volume.sb.is_ordinary(**ino)) {
        Some(ino) => Err(Error::corrupt("the orphan file is damaged").in_inode(*ino)),
        None => Ok(found),
    }
}

fn file_blocks(volume: &Volume) -> Result<Vec<(u64, Vec<u8>)>> {
    let ino = volume.sb.hidden_inos[3];
    if ino == 0 {
        return Ok(Vec::new());
    }
    let inode = volume.any_inode(ino)?;
    let count = inode.size >> volume.sb.block_bits;
    let map = Map::new(inode);
    (0..count)
        .map(|index| {
            let place = map.find(volume, index)?.physical;
            let place = place.ok_or_else(|| Error::corrupt("the orphan file has a hole").in_inode(ino))?;
            Ok((place, volume.block(place)?.to_vec()))
        })
        .collect()
}

/// Its numbers are on the list now.
fn clear_file(volume: &Volume) -> Result<()> {
    if !volume.sb.features.has_ro_compat(RO_COMPAT_ORPHAN_PRESENT) {
        return Ok(());
    }
    let ino = volume.sb.hidden_inos[3];
    let seed = volume.any_inode(ino)?.checksum_seed;
    let blocks = file_blocks(volume)?;
    volume.change(|change| {
        for (place, content) in &blocks {
            let mut content = content.clone();
            let tail = content.len() - FILE_TAIL;
            content[..tail].fill(0);
            if volume.sb.has_checksums() {
                let sum = crate::checksum::crc32c(seed, &place.to_le_bytes());
                let sum = crate::checksum::crc32c(sum, &content[..tail]);
                content[tail + 4..].copy_from_slice(&sum.to_le_bytes());
            }
            change.set(*place, crate::change::Kind::Other, content);
        }
        change.edit_super(|sb| {
            let bits = le32(sb, 0x64) & !RO_COMPAT_ORPHAN_PRESENT;
            sb[0x64..0x68].copy_from_slice(&bits.to_le_bytes());
        })
    })
}

/// Marks a record as one that is not in use.
pub(crate) fn bury(inode: &mut RawInode) {
    inode.set_links(0);
    inode.set_size(0);
    inode.set_dtime(Timestamp::now().seconds as u32);
}
