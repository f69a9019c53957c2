//! Writing without a journal: blocks go to their places, in an order after which `e2fsck -p` finds nothing that it has to ask
//! about.
//!
//! 1. Content, which was written before, and blocks that nothing leads to yet; of new parts of inode tables only zeros.
//! 2. Block lists that were there before: from now on the checker may make files longer by what they lead to.
//! 3. Of inodes: those that are gone (entries that lead to them are cleared by the checker), and directories that were there
//!    before (they may have become longer by blocks of the steps before). Bitmaps and counts, which the checker makes anew.
//! 4. Directories: new entries lead to inodes that are not in use yet, and are cleared too.
//! 5. All inodes.
//!
//! After each step everything is brought to stable storage.
//!
//! # Limits
//!
//! A crash in step 4 of the move of a directory between two blocks of directories, or of an exchange, may leave both names or none; the
//! checker then asks; so it does about a tree of extents of which some nodes are new and some old. (Other moves are two transactions: the new name comes first.)

use veduta_api::Kind as NodeKind;

use crate::bytes::le16;
use crate::change::Kind;
use crate::error::Result;
use crate::transactions::{Closed, write_home};
use crate::volume::Volume;

/// Writes a transaction.
pub(crate) fn write(volume: &Volume, closed: &Closed, flush: &mut dyn FnMut() -> Result<()>) -> Result<()> {
    let blocks = || closed.blocks.iter();
    let step = |wanted: fn(Kind, bool) -> bool| {
        blocks()
            .filter(move |(_, _, mark)| wanted(mark.kind, mark.fresh))
            .map(|(number, block, _)| (*number, &**block))
    };
    let zeros = vec![0; volume.block_size()];
    let new = blocks().filter(|(_, _, mark)| mark.fresh).map(|(number, block, mark)| match mark.kind {
        Kind::Inodes => (*number, &zeros[..]),
        _ => (*number, &**block),
    });
    write_home(volume, new)?;
    flush()?;
    if blocks().any(|(_, _, mark)| mark.kind == Kind::Map && !mark.fresh) {
        write_home(volume, step(|kind, fresh| !fresh && kind == Kind::Map))?;
        flush()?;
    }
    let mut early = Vec::new();
    for (number, new, _) in blocks().filter(|(_, _, mark)| mark.kind == Kind::Inodes && !mark.fresh) {
        let mut old = vec![0; new.len()];
        volume.disk.read_at(&mut old, *number << volume.sb.block_bits)?;
        if take_early(volume, &mut old, new) {
            early.push((*number, old));
        }
    }
    write_home(volume, early.iter().map(|(number, block)| (*number, &block[..])))?;
    write_home(volume, step(|kind, fresh| !fresh && kind == Kind::Other))?;
    flush()?;
    if blocks().any(|(_, _, mark)| mark.kind == Kind::Entries && !mark.fresh) {
        write_home(volume, step(|kind, fresh| !fresh && kind == Kind::Entries))?;
        flush()?;
    }
    write_home(volume, step(|kind, _| kind == Kind::Inodes))?;
    flush()
}

/// Puts into the old block what of the new one comes first; whether there is anything.
fn take_early(volume: &Volume, old: &mut [u8], new: &[u8]) -> bool {
    let size = volume.sb.inode_size as usize;
    let mut any = false;
    for (old, new) in old.chunks_exact_mut(size).zip(new.chunks_exact(size)) {
        let was_used = le16(old, 0x1a) != 0;
        let gone = was_used && le16(new, 0x1a) == 0;
        let is_dir = |record: &[u8]| NodeKind::from_mode(le16(record, 0).into()) == Some(NodeKind::Directory);
        if gone || (was_used && is_dir(old) && is_dir(new)) {
            any |= *old != *new;
            old.copy_from_slice(new);
        }
    }
    any
}
