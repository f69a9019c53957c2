//! zisofs: files that are stored compressed, block by block.
//!
//! Fields `ZF` and `Z2` of Rock Ridge name the algorithm, the length of the file's header, the size of a block and the
//! size of the whole when it is unpacked. The data starts with that header, of 16 bytes in version 1 and 24 in version
//! 2:
//!
//! ```text
//! version 1: 37 E4 53 96 C9 DB D6 07, size (4), header length / 4, log2 of the block size, 0 (2)
//! version 2: EF 22 55 A1 BC 1B 95 A0, 0, header length / 4, algorithm, log2 of the block size, size (8), unused (4)
//! ```
//!
//! Then follow the positions of all blocks within the file and of the end, in 4 bytes (8 in version 2) each, and then
//! the blocks, each a stream of zlib. A block of length 0 is all zeros. So any part can be read without the rest.
//!
//! # Limits
//!
//! Only zlib (`pz`, `PZ`): files of other algorithms are listed, and opening them gives `EOPNOTSUPP`.

use std::sync::Arc;

use flate2::{Decompress, FlushDecompress, Status};
use parking_lot::Mutex;

use crate::bytes::{u32_le, u64_le};
use crate::error::{Error, Result};
use crate::extents::Extents;
use crate::image::Image;

/// Bytes of unpacked blocks that are remembered for one open file: those that a read touched only in part.
const CACHE_BYTES: usize = 1 << 20;
/// Blocks whose positions are read at once.
const TABLE_STEP: u64 = 512;

/// What `ZF` or `Z2` says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Compression {
    /// Bytes of the file unpacked.
    pub(crate) size: u64,
    version: u8,
    algorithm: [u8; 2],
    header_words: u8,
    block_log: u8,
}

impl Compression {
    /// `None` if the field is too short.
    pub(crate) fn parse(version: u8, data: &[u8]) -> Option<Self> {
        let [a, b, header_words, block_log] = *data.first_chunk()?;
        let size = if version == 1 { u32_le(data, 4)?.into() } else { u64_le(data, 4)? };
        Some(Self { size, version, algorithm: [a, b], header_words, block_log })
    }

    /// Bytes of the header and of one entry of the table.
    fn layout(&self) -> (u64, u64) {
        if self.version == 1 { (16, 4) } else { (24, 8) }
    }

    fn blocks(&self) -> u64 {
        self.size.div_ceil(1 << self.block_log)
    }

    /// Whether the field is possible for a file that is stored in `stored` bytes. After this, sizes are bounded by what
    /// the image holds: each block, however empty, has an entry in the table.
    pub(crate) fn check(&self, stored: u64) -> Result<(), String> {
        if !(15..=20).contains(&self.block_log) {
            return Err(format!("compressed blocks of 2^{} bytes", self.block_log));
        }
        let (header, entry) = self.layout();
        let table = self.blocks().checked_add(1).and_then(|count| count.checked_mul(entry));
        match table.and_then(|table| table.checked_add(header)) {
            Some(end) if end <= stored => Ok(()),
            _ => Err(format!("a compressed file of {} bytes in only {stored}", self.size)),
        }
    }
}

/// An open compressed file.
pub(crate) struct Compressed {
    extents: Extents,
    compression: Compression,
    /// Unpacked blocks and their numbers, the last used last.
    cache: Mutex<Vec<(u64, Arc<Vec<u8>>)>>,
}

impl Compressed {
    /// Looks at the header. `at` is the byte of the file's record, for messages.
    pub(crate) fn open(image: &Image, extents: Extents, compression: Compression, at: u64) -> Result<Self> {
        if !matches!(&compression.algorithm, b"pz" | b"PZ") {
            let name = String::from_utf8_lossy(&compression.algorithm).into_owned();
            return Err(Error::Unsupported(format!("zisofs with algorithm {name:?} is not read, only zlib")));
        }
        let mut header = [0; 24];
        let (len, _) = compression.layout();
        extents.read(image, &mut header[..len as usize], 0)?;
        if !header.starts_with(&expected_header(&compression)) {
            return Err(Error::corrupt(
                extents.start().unwrap_or(at),
                "the header of a compressed file is not what its directory record says",
            ));
        }
        Ok(Self { extents, compression, cache: Mutex::new(Vec::new()) })
    }

    /// Bytes of the file unpacked.
    pub(crate) fn size(&self) -> u64 {
        self.compression.size
    }

    /// Fills `buf` from byte `offset` of the unpacked file, and says how much there was.
    pub(crate) fn read(&self, image: &Image, buf: &mut [u8], offset: u64) -> Result<usize> {
        let block_size = 1u64 << self.compression.block_log;
        let wanted = self.compression.size.saturating_sub(offset).min(buf.len() as u64) as usize;
        let mut table = Table::default();
        let mut done = 0;
        while done < wanted {
            let at = offset + done as u64;
            let (block, skip) = (at / block_size, (at % block_size) as usize);
            let block_len = block_size.min(self.compression.size - block * block_size) as usize;
            let len = (block_len - skip).min(wanted - done);
            let part = &mut buf[done..done + len];
            if len == block_len {
                self.unpack(image, block, part, &mut table)?;
            } else {
                part.copy_from_slice(&self.block(image, block, block_len, &mut table)?[skip..skip + len]);
            }
            done += len;
        }
        Ok(done)
    }

    /// A whole block, remembered. Two threads that miss it both unpack it, which is harmless.
    fn block(&self, image: &Image, block: u64, len: usize, table: &mut Table) -> Result<Arc<Vec<u8>>> {
        {
            let mut cache = self.cache.lock();
            if let Some(index) = cache.iter().position(|(number, _)| *number == block) {
                let hit = cache.remove(index);
                let bytes = Arc::clone(&hit.1);
                cache.push(hit);
                return Ok(bytes);
            }
        }
        let mut bytes = vec![0; len];
        self.unpack(image, block, &mut bytes, table)?;
        let bytes = Arc::new(bytes);
        let mut cache = self.cache.lock();
        if cache.len() >= (CACHE_BYTES >> self.compression.block_log).max(1) {
            cache.remove(0);
        }
        cache.push((block, Arc::clone(&bytes)));
        Ok(bytes)
    }

    /// Unpacks block `block` into `out`, which is exactly as long as it. A damaged block is `EIO`, and the others stay
    /// readable.
    fn unpack(&self, image: &Image, block: u64, out: &mut [u8], table: &mut Table) -> Result<()> {
        let (start, end) = table.range(self, image, block)?;
        let wrong = |what: &str| Error::Damaged {
            what: format!("compressed block {block} of a file {what}"),
            at: self.extents.start().unwrap_or(0),
        };
        // zlib adds less than this to what it cannot make smaller.
        let packed_max = out.len() as u64 + out.len() as u64 / 1000 + 64;
        let packed_len = end.checked_sub(start).ok_or_else(|| wrong("ends before it starts"))?;
        if packed_len == 0 {
            out.fill(0);
            return Ok(());
        }
        if packed_len > packed_max || end > self.extents.size() {
            return Err(wrong("is larger than it can be"));
        }
        let mut packed = vec![0; packed_len as usize];
        self.extents.read(image, &mut packed, start)?;
        let mut inflate = Decompress::new(true);
        let status = inflate.decompress(&packed, out, FlushDecompress::Finish);
        if inflate.total_out() != out.len() as u64 {
            return Err(wrong("holds less than it should"));
        }
        match status {
            Ok(Status::StreamEnd) => Ok(()),
            Ok(_) => Err(wrong("does not end where it should")),
            Err(error) => Err(wrong(&format!("cannot be unpacked: {error}"))),
        }
    }
}

fn expected_header(compression: &Compression) -> Vec<u8> {
    let Compression { size, header_words, block_log, version, .. } = *compression;
    if version == 1 {
        let magic = [0x37, 0xe4, 0x53, 0x96, 0xc9, 0xdb, 0xd6, 0x07];
        [&magic[..], &(size as u32).to_le_bytes(), &[header_words, block_log, 0, 0]].concat()
    } else {
        let magic = [0xef, 0x22, 0x55, 0xa1, 0xbc, 0x1b, 0x95, 0xa0];
        let zlib = 1;
        [&magic[..], &[0, header_words, zlib, block_log], &size.to_le_bytes()].concat()
    }
}

/// A part of the table of positions, for the length of one read.
#[derive(Default)]
struct Table {
    first: u64,
    positions: Vec<u64>,
}

impl Table {
    /// Where block `block` starts and ends within the stored file.
    fn range(&mut self, file: &Compressed, image: &Image, block: u64) -> Result<(u64, u64)> {
        let pair = |table: &Self| {
            let index = usize::try_from(block.checked_sub(table.first)?).ok()?;
            Some((*table.positions.get(index)?, *table.positions.get(index + 1)?))
        };
        if let Some(range) = pair(self) {
            return Ok(range);
        }
        let (header, entry) = file.compression.layout();
        let count = (file.compression.blocks() - block).min(TABLE_STEP) + 1;
        let mut bytes = vec![0; (count * entry) as usize];
        file.extents.read(image, &mut bytes, header + block * entry)?;
        let number = |bytes| if entry == 4 { u32_le(bytes, 0).map(u64::from) } else { u64_le(bytes, 0) };
        self.first = block;
        self.positions = bytes.chunks_exact(entry as usize).filter_map(number).collect();
        pair(self)
            .ok_or_else(|| Error::corrupt(file.extents.start().unwrap_or(0), "a table of blocks has no end"))
    }
}
