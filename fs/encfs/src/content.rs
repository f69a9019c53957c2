//! The content of an encrypted file: a header, then blocks. Plaintext is cut into blocks of one size; each becomes a block of
//! ciphertext that is longer by the format's overhead, the last one as long as it needs to be. A block of ciphertext that is
//! all zeros is a hole, where the format has holes.
//!
//! One [`FileNode`] stands for a file however often it is open. Its lock lets readers in together and writers alone, so that
//! nobody sees half of a block; all descriptors of a file meet there. It remembers the file's header, its size while it is
//! being written, and the plaintext of a short last block: a program that appends in small pieces then causes no reading.
//!
//! A request makes one request of the tree below, with whole blocks, or one for each [`AT_ONCE`] of it. Blocks go from the buffer of the
//! request to that of the tree below in one step, those of a large request on several threads.

use std::cell::RefCell;
use std::collections::HashMap;
use std::sync::{Arc, Weak};

use parking_lot::{Mutex, RwLock, RwLockWriteGuard};
use rayon::iter::{IndexedParallelIterator, ParallelIterator};
use rayon::slice::{ParallelSlice, ParallelSliceMut};
use veduta_api::{Allocate, Errno, File, Ino, OpenFlags, Result, Seek, SetAttr};

use crate::inner::Inner;

/// Bytes of plaintext from which a request is worth several threads.
const PARALLEL: usize = 96 * 1024;
/// Bytes of plaintext that are worked on at a time: what is between fits into a processor's cache, and the buffers stay small.
const AT_ONCE: usize = 256 * 1024;
/// Bytes of zeros that are written at a time where the format has no holes.
const ZEROS: usize = 256 * 1024;

thread_local! {
    /// Ciphertext on its way; grows to the largest piece and stays.
    static CIPHERTEXT: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
}

/// Where things are in a file of ciphertext. Bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Layout {
    /// The header.
    pub(crate) header: u64,
    /// The plaintext of a block.
    pub(crate) block: u64,
    /// By how much a block of ciphertext is longer.
    pub(crate) overhead: u64,
    /// Whether a block of zeros is a hole.
    pub(crate) holes: bool,
}

impl Layout {
    fn cipher_block(self) -> u64 {
        self.block + self.overhead
    }

    /// How much of a request for `len` bytes is worked on first: all, or up to the end of a block.
    fn piece(self, offset: u64, len: usize) -> usize {
        let end = offset.saturating_add(AT_ONCE as u64);
        let whole = (end - end % self.block).saturating_sub(offset) as usize;
        if len <= AT_ONCE || whole == 0 { len } else { whole }
    }

    /// Where a block of ciphertext begins. `EFBIG` if no file is so long.
    fn start(self, block: u64) -> Result<u64> {
        block
            .checked_mul(self.cipher_block())
            .and_then(|at| at.checked_add(self.header))
            .filter(|at| *at <= i64::MAX as u64)
            .ok_or(Errno::EFBIG)
    }

    /// Bytes of ciphertext for so many of plaintext. An empty file needs no header.
    pub(crate) fn cipher_size(self, plain: u64) -> Result<u64> {
        if plain == 0 {
            return Ok(0);
        }
        let blocks = plain.div_ceil(self.block);
        let extra = blocks.checked_mul(self.overhead).and_then(|extra| extra.checked_add(self.header));
        extra
            .and_then(|extra| extra.checked_add(plain))
            .filter(|size| *size <= i64::MAX as u64)
            .ok_or(Errno::EFBIG)
    }

    /// Bytes of plaintext in so many of ciphertext. A last block too short to hold anything counts as one byte, so that
    /// whoever reads it learns that it is corrupt.
    pub(crate) fn plain_size(self, cipher: u64) -> u64 {
        let Some(content) = cipher.checked_sub(self.header) else { return 0 };
        let (whole, rest) = (content / self.cipher_block(), content % self.cipher_block());
        let rest = if rest == 0 { 0 } else { rest.saturating_sub(self.overhead).max(1) };
        whole * self.block + rest
    }
}

/// What a file's header says: the part of the ciphers' input that is the file's own.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct FileId(pub(crate) [u8; 16]);

/// A block was not encrypted with this key for this place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Corrupt;

/// How a format turns headers and blocks into ciphertext and back. `external` is the part of the input that comes from the
/// file's path, where the format has such; else 0.
pub(crate) trait Codec: Send + Sync {
    /// Sizes.
    fn layout(&self) -> Layout;
    /// A new header.
    fn make_header(&self, external: u64) -> Result<(Vec<u8>, FileId)>;
    /// The header of a file that is there.
    fn open_header(&self, header: &[u8], external: u64) -> Result<FileId, Corrupt>;
    /// The header again, under another path. Formats without `external` never need it.
    fn remake_header(&self, id: &FileId, external: u64) -> Result<Vec<u8>> {
        let _ = (id, external);
        Err(Errno::EOPNOTSUPP)
    }
    /// Encrypts a block of 1 to `block` bytes. `out` is longer by `overhead`.
    fn seal(&self, number: u64, id: &FileId, plain: &[u8], out: &mut [u8]) -> Result<()>;
    /// Decrypts a block. `out` is shorter by `overhead`, and not empty.
    fn open(&self, number: u64, id: &FileId, cipher: &[u8], out: &mut [u8]) -> Result<(), Corrupt>;
}

/// What all files of a tree share.
pub(crate) struct Files {
    pub(crate) inner: Inner,
    pub(crate) codec: Arc<dyn Codec>,
    layout: Layout,
    open: Mutex<HashMap<Ino, Weak<FileNode>>>,
}

/// A file that is open, however often.
pub(crate) struct FileNode {
    files: Arc<Files>,
    /// Below.
    ino: Ino,
    state: RwLock<State>,
    /// The files below that are open for reading and writing.
    writers: Mutex<Vec<Weak<dyn File>>>,
}

#[derive(Default)]
struct State {
    /// From the header, if that is known and on the disk.
    id: Option<FileId>,
    /// See [`Codec`].
    external: u64,
    /// Bytes of plaintext, from our first change on.
    size: Option<u64>,
    /// The number and the plaintext of a last block that is not full.
    tail: Option<(u64, Vec<u8>)>,
}

impl Files {
    pub(crate) fn new(inner: Inner, codec: Arc<dyn Codec>) -> Arc<Self> {
        let layout = codec.layout();
        Arc::new(Self { inner, codec, layout, open: Mutex::default() })
    }

    pub(crate) fn layout(&self) -> Layout {
        self.layout
    }

    /// The node of a file, which is to be opened.
    pub(crate) fn node(self: &Arc<Self>, ino: Ino, external: u64) -> Arc<FileNode> {
        let mut open = self.open.lock();
        if let Some(node) = open.get(&ino).and_then(Weak::upgrade) {
            return node;
        }
        let state = RwLock::new(State { external, ..State::default() });
        let node = Arc::new(FileNode { files: Arc::clone(self), ino, state, writers: Mutex::default() });
        open.insert(ino, Arc::downgrade(&node));
        node
    }

    /// The node of a file, if it is open.
    pub(crate) fn known(&self, ino: Ino) -> Option<Arc<FileNode>> {
        self.open.lock().get(&ino).and_then(Weak::upgrade)
    }

    /// An open file above from one below.
    pub(crate) fn file(
        self: &Arc<Self>,
        ino: Ino,
        external: u64,
        below: Arc<dyn File>,
        write: bool,
    ) -> CryptFile {
        let node = self.node(ino, external);
        if write {
            let mut writers = node.writers.lock();
            writers.retain(|writer| writer.strong_count() > 0);
            writers.push(Arc::downgrade(&below));
        }
        CryptFile { node, below }
    }

    /// Opens a file below so that it can be read, and written too if that is wanted: to write a part of a block is to read it.
    pub(crate) fn open_below(&self, ino: Ino, flags: OpenFlags) -> Result<Arc<dyn File>> {
        let fs = &self.inner.fs;
        let opened = fs.open(ino, OpenFlags { read: true, ..flags });
        if !matches!(opened, Err(Errno::EACCES)) || flags.read || !flags.write {
            return opened;
        }
        // The mode lets its owner write and not read. It is restored at once.
        let before = fs.getattr(ino)?.perm;
        let readable = veduta_api::Perm::from_mode(before.bits() | 0o400);
        fs.setattr(ino, &SetAttr { perm: Some(readable), ..SetAttr::default() })
            .map_err(|_| Errno::EACCES)?;
        let opened = fs.open(ino, OpenFlags { read: true, ..flags });
        fs.setattr(ino, &SetAttr { perm: Some(before), ..SetAttr::default() })?;
        opened
    }

    /// `truncate(2)`, also on a file that is open nowhere.
    pub(crate) fn truncate(self: &Arc<Self>, ino: Ino, external: u64, size: u64) -> Result<()> {
        let node = self.node(ino, external);
        if size == 0 {
            let mut state = node.state.write();
            self.inner.set_size(ino, 0)?;
            *state = State { external: state.external, size: Some(0), ..State::default() };
            return Ok(());
        }
        let writer = node.writers.lock().iter().find_map(Weak::upgrade);
        let below = match writer {
            Some(below) => below,
            None => self.open_below(ino, OpenFlags::READ_WRITE)?,
        };
        node.truncate(&*below, size)?;
        below.flush()
    }
}

impl Drop for FileNode {
    fn drop(&mut self) {
        let mut open = self.files.open.lock();
        if open.get(&self.ino).is_some_and(|node| node.strong_count() == 0) {
            open.remove(&self.ino);
        }
    }
}

/// An open file of an encrypted tree.
pub(crate) struct CryptFile {
    node: Arc<FileNode>,
    below: Arc<dyn File>,
}

impl File for CryptFile {
    fn read_at(&self, buf: &mut [u8], offset: u64) -> Result<usize> {
        self.node.read(&*self.below, buf, offset)
    }
    fn write_at(&self, buf: &[u8], offset: u64) -> Result<usize> {
        self.node.write(&*self.below, buf, offset)
    }
    fn flush(&self) -> Result<()> {
        self.below.flush()
    }
    fn sync(&self, data_only: bool) -> Result<()> {
        self.below.sync(data_only)
    }
    fn allocate(&self, how: Allocate, offset: u64, len: u64) -> Result<()> {
        self.node.allocate(&*self.below, how, offset, len)
    }
    fn seek(&self, what: Seek, offset: u64) -> Result<u64> {
        self.node.seek(&*self.below, what, offset)
    }
    fn lock(&self, owner: u64, lock: &mut veduta_api::FileLock, test: bool, wait: bool) -> Result<()> {
        self.below.lock(owner, lock, test, wait)
    }
}

/// Runs `work` with so many bytes of the thread's buffer for ciphertext, whatever is in them.
fn with_ciphertext<T>(len: usize, work: impl FnOnce(&mut [u8]) -> T) -> T {
    CIPHERTEXT.with(|buffer| match buffer.try_borrow_mut() {
        Ok(mut buffer) => {
            if buffer.len() < len {
                buffer.resize(len, 0);
            }
            work(&mut buffer[..len])
        }
        // While a thread waits for its part of a request, it may be given another one.
        Err(_) => work(&mut vec![0; len]),
    })
}

impl FileNode {
    fn layout(&self) -> Layout {
        self.files.layout
    }

    /// Waits until nobody is in the middle of a change, so that the attributes below are those of a whole.
    pub(crate) fn settled<T>(&self, work: impl FnOnce() -> T) -> T {
        let _state = self.state.read();
        work()
    }

    fn corrupt(&self, what: &str) -> Errno {
        let inner = &self.files.inner;
        inner.findings.tell(format!("inode {}: {what}", inner.shown(self.ino)));
        Errno::EIO
    }

    fn corrupt_block(&self, number: u64) -> Errno {
        let from = number * self.layout().block;
        let to = from + self.layout().block - 1;
        self.corrupt(&format!(
            "block {number} (bytes {from} to {to}) is corrupt, or encrypted with another key"
        ))
    }

    /// The header, if it is known or can be read. `None` for a file without content. With the lock held for writing.
    fn load_header(&self, state: &mut State, below: &dyn File) -> Result<Option<FileId>> {
        if state.id.is_some() {
            return Ok(state.id);
        }
        let mut header = [0; 64];
        let header = &mut header[..self.layout().header as usize];
        match below.read_at(header, 0)? {
            0 if !header.is_empty() => return Ok(None),
            len if len < header.len() => return Err(self.corrupt("the header is cut short")),
            _ => {}
        }
        let opened = self.files.codec.open_header(header, state.external);
        state.id = Some(opened.map_err(|Corrupt| self.corrupt("the header is corrupt"))?);
        Ok(state.id)
    }

    /// The size, from below until we have changed it. With the lock held.
    fn size(&self, state: &State) -> Result<u64> {
        match state.size {
            Some(size) => Ok(size),
            None => Ok(self.layout().plain_size(self.files.inner.fs.getattr(self.ino)?.size)),
        }
    }

    fn read(&self, below: &dyn File, buf: &mut [u8], offset: u64) -> Result<usize> {
        if buf.is_empty() {
            return Ok(0);
        }
        let mut state = self.state.read();
        if state.id.is_none() {
            drop(state);
            let mut writing = self.state.write();
            if self.load_header(&mut writing, below)?.is_none() {
                return Ok(0);
            }
            state = RwLockWriteGuard::downgrade(writing);
        }
        let Some(id) = state.id else { return Ok(0) };
        let mut done = 0;
        while done < buf.len() {
            let at = offset.saturating_add(done as u64);
            let len = self.layout().piece(at, buf.len() - done);
            let got = self.read_blocks(below, &id, &mut buf[done..done + len], at)?;
            done += got;
            if got < len {
                break;
            }
        }
        Ok(done)
    }

    /// Reads with a header that is known, and the lock held.
    fn read_blocks(&self, below: &dyn File, id: &FileId, buf: &mut [u8], offset: u64) -> Result<usize> {
        let layout = self.layout();
        let (Some(end), Ok(start)) =
            (offset.checked_add(buf.len() as u64), layout.start(offset / layout.block))
        else {
            // Nothing is stored behind the largest offset.
            return Ok(0);
        };
        let (first, last) = (offset / layout.block, (end - 1) / layout.block);
        let wanted = (last - first + 1) * layout.cipher_block();
        with_ciphertext(wanted as usize, |cipher| {
            let len = below.read_at(cipher, start)?;
            self.open_blocks(id, first, &cipher[..len], buf, offset)
        })
    }

    /// Decrypts what was read from block `first` on, into a buffer that stands for `offset`.
    fn open_blocks(
        &self,
        id: &FileId,
        first: u64,
        cipher: &[u8],
        buf: &mut [u8],
        offset: u64,
    ) -> Result<usize> {
        let layout = self.layout();
        let block = layout.block as usize;
        let skip = (offset - first * layout.block) as usize;
        let plain_len = |cipher: &[u8]| cipher.len().saturating_sub(layout.overhead as usize);
        let mut blocks = cipher.chunks(block + layout.overhead as usize);
        let mut number = first;
        let mut done = 0;
        // The first block, if the request begins within it.
        if skip > 0 {
            let Some(cipher) = blocks.next() else { return Ok(0) };
            let mut whole = vec![0; plain_len(cipher)];
            self.open_block(number, id, cipher, &mut whole)?;
            let Some(part) = whole.get(skip..) else { return Ok(0) };
            done = part.len().min(buf.len());
            buf[..done].copy_from_slice(&part[..done]);
            number += 1;
            if whole.len() < block {
                return Ok(done);
            }
        }
        // Whole blocks, straight into the buffer.
        let rest =
            cipher.len() - cipher.len().min((number - first) as usize * (block + layout.overhead as usize));
        let cipher = &cipher[cipher.len() - rest..];
        let whole = (cipher.len() / (block + layout.overhead as usize)).min((buf.len() - done) / block);
        let (straight, cipher) = cipher.split_at(whole * (block + layout.overhead as usize));
        let target = &mut buf[done..done + whole * block];
        if target.len() >= PARALLEL {
            straight
                .par_chunks(block + layout.overhead as usize)
                .zip(target.par_chunks_mut(block))
                .enumerate()
                .with_min_len(8)
                .try_for_each(|(at, (cipher, plain))| {
                    self.open_block(number + at as u64, id, cipher, plain)
                })?;
        } else {
            for (at, (cipher, plain)) in
                straight.chunks(block + layout.overhead as usize).zip(target.chunks_mut(block)).enumerate()
            {
                self.open_block(number + at as u64, id, cipher, plain)?;
            }
        }
        done += target.len();
        number += whole as u64;
        // The last block, if it is short, or the request ends within it.
        if done < buf.len() && !cipher.is_empty() {
            let cipher = &cipher[..cipher.len().min(block + layout.overhead as usize)];
            let mut plain = vec![0; plain_len(cipher)];
            self.open_block(number, id, cipher, &mut plain)?;
            let len = plain.len().min(buf.len() - done);
            buf[done..done + len].copy_from_slice(&plain[..len]);
            done += len;
        }
        Ok(done)
    }

    fn open_block(&self, number: u64, id: &FileId, cipher: &[u8], plain: &mut [u8]) -> Result<()> {
        let layout = self.layout();
        if plain.is_empty() {
            return Err(self.corrupt_block(number));
        }
        if layout.holes && cipher.len() as u64 == layout.cipher_block() && is_zero(cipher) {
            plain.fill(0);
            return Ok(());
        }
        self.files.codec.open(number, id, cipher, plain).map_err(|Corrupt| self.corrupt_block(number))
    }

    /// The plaintext of a block that reaches to `len` bytes at most; empty if there is none.
    fn plain_block(&self, state: &State, below: &dyn File, number: u64, len: usize) -> Result<Vec<u8>> {
        if len == 0 {
            return Ok(Vec::new());
        }
        if let Some((_, plain)) =
            state.tail.as_ref().filter(|(at, plain)| *at == number && plain.len() >= len)
        {
            return Ok(plain[..len].to_vec());
        }
        let mut plain = vec![0; len];
        let Some(id) = state.id else { return Ok(Vec::new()) };
        let got = self.read_blocks(below, &id, &mut plain, number * self.layout().block)?;
        plain.truncate(got);
        Ok(plain)
    }

    fn write(&self, below: &dyn File, buf: &[u8], offset: u64) -> Result<usize> {
        if buf.is_empty() {
            return Ok(0);
        }
        let mut state = self.state.write();
        let state = &mut *state;
        let size = self.size(state)?;
        state.size = Some(size);
        if offset > size {
            self.fill_gap(state, below, offset)?;
        }
        let mut done = 0;
        while done < buf.len() {
            let at = offset.checked_add(done as u64).ok_or(Errno::EFBIG)?;
            let len = self.layout().piece(at, buf.len() - done);
            let wrote = match self.write_blocks(state, below, &buf[done..done + len], at) {
                Err(_) if done > 0 => break,
                wrote => wrote?,
            };
            done += wrote;
            if wrote < len {
                break;
            }
        }
        Ok(done)
    }

    /// Makes the file reach to `to`, or to the beginning of its block: what lies between reads as zeros.
    fn fill_gap(&self, state: &mut State, below: &dyn File, to: u64) -> Result<()> {
        let layout = self.layout();
        let size = self.size(state)?;
        let zeros = vec![0; ZEROS];
        if size % layout.block > 0 {
            let end = to.min(size.next_multiple_of(layout.block));
            self.write_all(state, below, &zeros[..(end - size) as usize], size)?;
        }
        // Where there are no holes, all has to be written.
        while !layout.holes && self.size(state)? < to {
            let size = self.size(state)?;
            let len = (to - size).min(ZEROS as u64);
            self.write_all(state, below, &zeros[..len as usize], size)?;
        }
        Ok(())
    }

    fn write_all(&self, state: &mut State, below: &dyn File, buf: &[u8], offset: u64) -> Result<()> {
        match self.write_blocks(state, below, buf, offset)? {
            len if len < buf.len() => Err(Errno::ENOSPC),
            _ => Ok(()),
        }
    }

    /// Writes where the file reaches to the block that `offset` is in. With the lock held for writing.
    fn write_blocks(&self, state: &mut State, below: &dyn File, buf: &[u8], offset: u64) -> Result<usize> {
        let layout = self.layout();
        let size = self.size(state)?;
        let end = offset.checked_add(buf.len() as u64).ok_or(Errno::EFBIG)?;
        layout.cipher_size(end)?;
        let block = layout.block as usize;
        let (first, last) = (offset / layout.block, (end - 1) / layout.block);
        let header = match self.load_header(state, below)? {
            Some(id) => (Vec::new(), id),
            None => self.files.codec.make_header(state.external)?,
        };
        let (header, id) = header;
        // Without content there is a header at most, so the write of the first block brings it along.
        let (prefix, alone) = if first == 0 { (header, Vec::new()) } else { (Vec::new(), header) };
        if !alone.is_empty() {
            self.put(below, &alone, 0)?;
        }
        let old_len = |number: u64| size.saturating_sub(number * layout.block).min(layout.block) as usize;
        let skip = (offset - first * layout.block) as usize;
        // The plaintext of the first block, if the request leaves a part of it, and the same of the last.
        let mut head = Vec::new();
        let mut old_head = Vec::new();
        if skip > 0 || (first == last && old_len(first) > skip + buf.len()) {
            head = self.plain_block(state, below, first, old_len(first))?;
            old_head.clone_from(&head);
            let part = &buf[..buf.len().min(block - skip)];
            if head.len() < skip + part.len() {
                head.resize(skip + part.len(), 0);
            }
            head[skip..skip + part.len()].copy_from_slice(part);
        }
        let taken = if head.is_empty() { 0 } else { buf.len().min(block - skip) };
        let middle = &buf[taken..];
        let (middle, rest) = middle.split_at(middle.len() - middle.len() % block);
        let mut tail = Vec::new();
        if !rest.is_empty() {
            tail.extend_from_slice(rest);
            if old_len(last) > rest.len() {
                let old = self.plain_block(state, below, last, old_len(last))?;
                tail.extend_from_slice(old.get(rest.len()..).unwrap_or_default());
            }
        }
        let sealed = |plain: usize| if plain == 0 { 0 } else { plain + layout.overhead as usize };
        let count = middle.len() / block;
        let cipher_block = block + layout.overhead as usize;
        let len = prefix.len() + sealed(head.len()) + count * cipher_block + sealed(tail.len());
        let start = if prefix.is_empty() { layout.start(first)? } else { 0 };
        let codec = &*self.files.codec;
        let written = with_ciphertext(len, |cipher| -> Result<usize> {
            let (head_cipher, rest) = {
                let (begin, rest) = cipher.split_at_mut(prefix.len());
                begin.copy_from_slice(&prefix);
                rest.split_at_mut(sealed(head.len()))
            };
            let (middle_cipher, tail_cipher) = rest.split_at_mut(count * cipher_block);
            let mut number = first;
            if !head.is_empty() {
                codec.seal(number, &id, &head, head_cipher)?;
                number += 1;
            }
            if middle.len() >= PARALLEL {
                middle
                    .par_chunks(block)
                    .zip(middle_cipher.par_chunks_mut(cipher_block))
                    .enumerate()
                    .with_min_len(8)
                    .try_for_each(|(at, (plain, out))| codec.seal(number + at as u64, &id, plain, out))?;
            } else {
                for (at, (plain, out)) in
                    middle.chunks(block).zip(middle_cipher.chunks_mut(cipher_block)).enumerate()
                {
                    codec.seal(number + at as u64, &id, plain, out)?;
                }
            }
            if !tail.is_empty() {
                codec.seal(number + count as u64, &id, &tail, tail_cipher)?;
            }
            below.write_at(cipher, start)
        })?;
        if written < len {
            let whole = (written.saturating_sub(prefix.len()) / cipher_block) as u64;
            return self.mend(state, below, first + whole, &old_head, offset, size);
        }
        state.id = Some(id);
        let size = size.max(end);
        state.size = Some(size);
        // What is known of the last block: it changed, or it is another one now.
        let short = (size % layout.block) as usize;
        if last * layout.block < size && last == size / layout.block && short > 0 {
            let plain = if !tail.is_empty() { tail } else { head };
            state.tail = (plain.len() == short).then_some((last, plain));
        } else if state.tail.as_ref().is_some_and(|(at, _)| *at >= first && *at <= last) {
            state.tail = None;
        }
        Ok(buf.len())
    }

    fn put(&self, below: &dyn File, bytes: &[u8], at: u64) -> Result<()> {
        match below.write_at(bytes, at)? {
            len if len < bytes.len() => Err(Errno::ENOSPC),
            _ => Ok(()),
        }
    }

    /// The space ran out within block `torn`, after the blocks before it were written. That block becomes what it was: nothing, a
    /// hole (content would have had its space), or `old_head`. Says how much of the request is written.
    fn mend(
        &self,
        state: &mut State,
        below: &dyn File,
        torn: u64,
        old_head: &[u8],
        offset: u64,
        size: u64,
    ) -> Result<usize> {
        let layout = self.layout();
        let begin = torn * layout.block;
        state.tail = None;
        if size > begin && !old_head.is_empty() && torn == offset / layout.block {
            let id = state.id.ok_or(Errno::EIO)?;
            let mut cipher = vec![0; old_head.len() + layout.overhead as usize];
            self.files.codec.seal(torn, &id, old_head, &mut cipher)?;
            self.put(below, &cipher, layout.start(torn)?)?;
        } else if size > begin {
            let _ = below.allocate(Allocate::PunchHole, layout.start(torn)?, layout.cipher_block());
        }
        let whole = if begin > offset { begin } else { 0 };
        if whole > 0 && state.id.is_none() {
            self.load_header(state, below)?;
        }
        let size = size.max(whole);
        self.files.inner.set_size(self.ino, layout.cipher_size(size)?)?;
        if size == 0 {
            state.id = None;
        }
        state.size = Some(size);
        if begin > offset { Ok((begin - offset) as usize) } else { Err(Errno::ENOSPC) }
    }

    fn truncate(&self, below: &dyn File, new: u64) -> Result<()> {
        let mut state = self.state.write();
        let state = &mut *state;
        let size = self.size(state)?;
        state.size = Some(size);
        if new < size { self.shrink(state, below, new) } else { self.grow(state, below, new) }
    }

    fn shrink(&self, state: &mut State, below: &dyn File, new: u64) -> Result<()> {
        let layout = self.layout();
        let (last, rest) = (new / layout.block, (new % layout.block) as usize);
        self.load_header(state, below)?;
        let plain = self.plain_block(state, below, last, rest)?;
        // What stays of the last block is encrypted anew, since the checksum covers a whole block.
        self.files.inner.set_size(self.ino, layout.start(last)?)?;
        state.tail = None;
        state.size = Some(last * layout.block);
        if rest > 0 { self.write_all(state, below, &plain, last * layout.block) } else { Ok(()) }
    }

    fn grow(&self, state: &mut State, below: &dyn File, new: u64) -> Result<()> {
        let layout = self.layout();
        let cipher_size = layout.cipher_size(new)?;
        self.fill_gap(state, below, new)?;
        let size = self.size(state)?;
        if size >= new {
            // As `ftruncate` has it, the times change.
            return self.files.inner.set_size(self.ino, cipher_size);
        }
        if self.load_header(state, below)?.is_none() {
            let (header, id) = self.files.codec.make_header(state.external)?;
            self.put(below, &header, 0)?;
            state.id = Some(id);
        }
        let rest = (new % layout.block) as usize;
        if rest > 0 {
            state.size = Some(new - rest as u64);
            let written = self.write_all(state, below, &vec![0; rest], new - rest as u64);
            if written.is_err() {
                state.size = Some(size);
            }
            return written;
        }
        self.files.inner.set_size(self.ino, cipher_size)?;
        state.size = Some(new);
        state.tail = None;
        Ok(())
    }

    fn allocate(&self, below: &dyn File, how: Allocate, offset: u64, len: u64) -> Result<()> {
        let end = offset.checked_add(len).ok_or(Errno::EFBIG)?;
        let layout = self.layout();
        let cipher_end = layout.cipher_size(end)?;
        let mut state = self.state.write();
        let state = &mut *state;
        let size = self.size(state)?;
        state.size = Some(size);
        match how {
            Allocate::Extend | Allocate::KeepSize => {
                let start = layout.start(offset / layout.block)?;
                below.allocate(Allocate::KeepSize, start, cipher_end.saturating_sub(start).max(1))?;
            }
            Allocate::PunchHole | Allocate::ZeroRange { .. } => {
                self.zero(state, below, offset, end.min(size))?;
            }
            Allocate::Collapse | Allocate::Insert => return Err(Errno::EOPNOTSUPP),
        }
        let grows = matches!(how, Allocate::Extend | Allocate::ZeroRange { keep_size: false });
        if grows && end > size { self.grow(state, below, end) } else { Ok(()) }
    }

    /// Makes a range within the file read as zeros: whole blocks become holes where that is possible.
    fn zero(&self, state: &mut State, below: &dyn File, from: u64, to: u64) -> Result<()> {
        let layout = self.layout();
        let zeros = vec![0; ZEROS];
        let mut at = from;
        while at < to {
            let whole = to / layout.block;
            let number = at / layout.block;
            if layout.holes && at % layout.block == 0 && whole > number {
                let len = (whole - number) * layout.cipher_block();
                match below.allocate(Allocate::PunchHole, layout.start(number)?, len) {
                    Ok(()) => {
                        at = whole * layout.block;
                        continue;
                    }
                    Err(Errno::EOPNOTSUPP) => {}
                    Err(error) => return Err(error),
                }
            }
            let step =
                if at % layout.block > 0 { at.next_multiple_of(layout.block) - at } else { ZEROS as u64 };
            let len = step.min(to - at);
            self.write_all(state, below, &zeros[..len as usize], at)?;
            at += len;
        }
        Ok(())
    }

    /// Holes below need not begin and end where blocks do: a block is a hole if all of it is one.
    fn seek(&self, below: &dyn File, what: Seek, offset: u64) -> Result<u64> {
        let layout = self.layout();
        let state = self.state.read();
        let size = self.size(&state)?;
        if offset >= size {
            return Err(Errno::ENXIO);
        }
        if !layout.holes {
            return Err(Errno::EOPNOTSUPP);
        }
        let number_of = |cipher: u64| cipher.saturating_sub(layout.header) / layout.cipher_block();
        let mut number = offset / layout.block;
        match what {
            Seek::Data => {
                let data = number_of(below.seek(Seek::Data, layout.start(number)?)?);
                let found = (data * layout.block).max(offset);
                if found < size { Ok(found) } else { Err(Errno::ENXIO) }
            }
            // Each turn goes to a later block, up to the last.
            Seek::Hole => loop {
                if number * layout.block >= size {
                    return Ok(size);
                }
                let start = layout.start(number)?;
                match below.seek(Seek::Data, start) {
                    Err(Errno::ENXIO) => return Ok((number * layout.block).clamp(offset, size)),
                    Err(error) => return Err(error),
                    Ok(data) if number_of(data) > number => return Ok((number * layout.block).max(offset)),
                    Ok(_) => {}
                }
                let hole = below.seek(Seek::Hole, start)?;
                number = number_of(hole).max(number + 1);
            },
        }
    }

    /// The file has another path from now on: writes the header for it. `moved` is run in the same step.
    pub(crate) fn set_external(&self, external: u64) -> Result<()> {
        let mut state = self.state.write();
        if state.external == external {
            return Ok(());
        }
        let writer = self.writers.lock().iter().find_map(Weak::upgrade);
        let below = match writer {
            Some(below) => below,
            None => self.files.open_below(self.ino, OpenFlags::READ_WRITE)?,
        };
        if let Some(id) = self.load_header(&mut state, &*below)? {
            let header = self.files.codec.remake_header(&id, external)?;
            self.put(&*below, &header, 0)?;
        }
        state.external = external;
        Ok(())
    }
}

/// Whether all bytes are zero.
fn is_zero(bytes: &[u8]) -> bool {
    // Ciphertext looks random, so the first word almost always tells.
    bytes.first().is_none_or(|byte| *byte == 0) && bytes.iter().all(|byte| *byte == 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    const LAYOUT: Layout = Layout { header: 18, block: 4096, overhead: 32, holes: true };

    #[test]
    fn sizes_are_each_others_inverse() {
        for plain in (0..3 * 4096 + 2).chain([1 << 40, (1 << 40) + 1]) {
            assert_eq!(LAYOUT.plain_size(LAYOUT.cipher_size(plain).unwrap()), plain);
        }
        assert!(LAYOUT.cipher_size(i64::MAX as u64).is_err());
    }

    #[test]
    fn pieces_end_where_blocks_do() {
        for layout in [LAYOUT, Layout { block: 1016, ..LAYOUT }, Layout { block: 1 << 20, ..LAYOUT }] {
            for (offset, len) in
                [(0, 1 << 20), (5, 1 << 20), (4095, AT_ONCE), (1, AT_ONCE + 1), (u64::MAX, 9)]
            {
                let piece = layout.piece(offset, len);
                assert!(piece > 0 && piece <= len);
                assert!(piece == len || (offset + piece as u64) % layout.block == 0);
            }
        }
    }

    #[test]
    fn a_file_that_was_cut_short_has_a_size_all_the_same() {
        assert_eq!([0, 5, 18, 19, 50, 51, 52].map(|size| LAYOUT.plain_size(size)), [0, 0, 0, 1, 1, 1, 2]);
    }
}
