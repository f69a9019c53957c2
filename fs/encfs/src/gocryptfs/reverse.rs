//! The encrypted view of plain files: what an ordinary volume of the same key would be, made up as it is read. Not to be changed.
//!
//! Everything that is random in an ordinary volume comes from the encrypted path here, so that the view is the same each time: the
//! value of a directory, the identity of a file and the nonces of its blocks (which is why content is encrypted with SIV). A file with several names is
//! encrypted as of the one under which it was first seen.
//!
//! Beside the encrypted files there are some that do not exist below: `gocryptfs.conf` in the root, `gocryptfs.diriv` in each directory, and the
//! names of files with long names.

use std::collections::HashMap;
use std::ffi::{OsStr, OsString};
use std::ops::ControlFlow;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::sync::Arc;

use base64::Engine;
use parking_lot::RwLock;
use sha2::{Digest, Sha256};
use veduta_api::{
    Attr, DirEntry, DirSink, Directory, Entry, Errno, Facts, File, Filesystem, Ino, Kind, OpenFlags, Perm,
    Result, StatFs,
};

use super::config;
use super::content::{self, BLOCK, Content};
use super::names::{DIR_IV, DirIv, LONG_PREFIX, LONG_SUFFIX, Names};
use crate::content::{Codec, FileId};
use crate::inner::{Inner, Listed};

/// Numbers of files that do not exist below begin here.
const VIRTUAL: u64 = 1 << 63;
/// `st_ino` of such files: that of what they belong to, and one of these.
const DIR_IV_TAG: u64 = 1 << 62;
const LONG_TAG: u64 = 1 << 61;

/// What comes from a path.
fn derive(path: &[u8], purpose: &str) -> DirIv {
    let digest = Sha256::new().chain_update(path).chain_update([0]).chain_update(purpose).finalize();
    let mut derived = DirIv::default();
    derived.copy_from_slice(&digest[..16]);
    derived
}

/// A node that the host knows.
struct Node {
    references: u64,
    what: What,
}

#[derive(Clone)]
enum What {
    /// Something that is encrypted, and its encrypted path.
    Real(Arc<[u8]>),
    /// The configuration, as it is.
    Config,
    /// Made up.
    Virtual { attr: Attr, content: Arc<[u8]> },
}

/// See the head of this file.
pub(crate) struct Reverse {
    view: Arc<View>,
    nodes: RwLock<Nodes>,
}

#[derive(Default)]
struct Nodes {
    known: HashMap<Ino, Node>,
    /// Numbers of virtual nodes, by directory and name.
    numbers: HashMap<(Ino, OsString), Ino>,
    last: u64,
}

/// What does not change.
struct View {
    inner: Inner,
    content: Arc<Content>,
    names: Names,
}

impl Reverse {
    pub(crate) fn new(inner: Inner, content: Arc<Content>, names: Names) -> Self {
        Self { view: Arc::new(View { inner, content, names }), nodes: RwLock::default() }
    }

    fn what(&self, ino: Ino) -> Result<What> {
        if ino == Ino::ROOT {
            return Ok(What::Real(Arc::from([].as_slice())));
        }
        self.nodes.read().known.get(&ino).map(|node| node.what.clone()).ok_or(Errno::ESTALE)
    }

    /// The encrypted path of a node that is not made up.
    fn path(&self, ino: Ino) -> Result<Arc<[u8]>> {
        if let What::Real(path) = self.what(ino)? { Ok(path) } else { Err(Errno::EINVAL) }
    }

    fn enter(&self, ino: Ino, what: What) {
        let mut nodes = self.nodes.write();
        nodes.known.entry(ino).or_insert(Node { references: 0, what }).references += 1;
    }

    fn enter_virtual(&self, dir: Ino, name: &OsStr, attr: Attr, content: Vec<u8>) -> Entry {
        let attr = Attr {
            kind: Kind::File,
            perm: Perm::from_mode(0o444),
            nlink: 1,
            size: content.len() as u64,
            blocks: 1,
            rdev: Default::default(),
            st_dev: None,
            ..attr
        };
        let mut nodes = self.nodes.write();
        let next = Ino(VIRTUAL + nodes.last + 1);
        let ino = *nodes.numbers.entry((dir, name.to_owned())).or_insert(next);
        if ino == next {
            nodes.last += 1;
        }
        let what = What::Virtual { attr, content: content.into() };
        let node = nodes.known.entry(ino).or_insert(Node { references: 0, what: what.clone() });
        node.references += 1;
        node.what = what;
        Entry { ino, generation: 0, attr }
    }

    /// The configuration, from the plain directory.
    fn lookup_config(&self) -> Result<Entry> {
        let inner = &self.view.inner;
        let entry = inner.fs.lookup(inner.below(Ino::ROOT), OsStr::new(config::REVERSE_NAME))?;
        self.enter(entry.ino, What::Config);
        Ok(Entry { attr: Attr { st_dev: None, ..entry.attr }, ..entry })
    }
}

impl View {
    fn dir_iv(&self, path: &[u8]) -> DirIv {
        if self.names.have_dir_iv() { derive(path, "DIRIV") } else { DirIv::default() }
    }

    /// How a plain name is stored in a directory; with the whole of a long one.
    fn stored(&self, path: &[u8], name: &OsStr) -> Result<(OsString, Option<Vec<u8>>)> {
        if self.names.are_plain() {
            return Ok((name.to_owned(), None));
        }
        let stored = self.names.stored(name.as_bytes(), &self.dir_iv(path))?;
        Ok((stored.name, stored.long))
    }

    /// The plain name behind a stored one, and the whole of a long one.
    fn plain(&self, dir: Ino, path: &[u8], stored: &OsStr) -> Result<(OsString, Option<Vec<u8>>)> {
        if self.names.are_plain() {
            return Ok((stored.to_owned(), None));
        }
        if !stored.as_bytes().starts_with(LONG_PREFIX.as_bytes()) {
            let name = self.names.decrypt(stored.as_bytes(), &self.dir_iv(path)).ok_or(Errno::ENOENT)?;
            return Ok((OsString::from_vec(name), None));
        }
        // A hash cannot be undone: every name of the directory is tried.
        for listed in self.inner.list(dir)? {
            let (candidate, long) = self.stored(path, &listed.name)?;
            if candidate == stored {
                return Ok((listed.name, long));
            }
        }
        Err(Errno::ENOENT)
    }

    /// The encrypted target of a symbolic link.
    fn target(&self, ino: Ino, path: &[u8]) -> Result<OsString> {
        let target = self.inner.fs.readlink(ino)?;
        if self.names.are_plain() {
            return Ok(target);
        }
        let mut sealed = vec![0; target.len() + self.content.overhead()];
        // gocryptfs appends the name to the path once more, and so the same view wants it here.
        let name = path.rsplit(|byte| *byte == b'/').next().unwrap_or_default();
        let path = [path, b"/", name].concat();
        self.content.seal_with(&derive(&path, "SYMLINKIV"), 0, None, target.as_bytes(), &mut sealed)?;
        Ok(self.names.base64().encode(sealed).into())
    }

    fn attr(&self, ino: Ino, path: &[u8], attr: Attr) -> Result<Attr> {
        let size = match attr.kind {
            Kind::File => self.content.layout().cipher_size(attr.size)?,
            Kind::Symlink => self.target(ino, path)?.len() as u64,
            _ => attr.size,
        };
        Ok(Attr { size, st_dev: None, ..attr })
    }

    fn list(
        &self,
        dir: Ino,
        path: &[u8],
        open: Option<&dyn Directory>,
        position: u64,
        sink: &mut DirSink<'_>,
    ) -> Result<()> {
        // A position is four times that of the listing below, plus one if the file with the long name of what comes next was listed, or
        // plus two if the directory's value was.
        let (mut below, state) = (position / 4, position % 4);
        if position == 0 && self.names.have_dir_iv() {
            let st_ino = self.inner.shown(dir) | DIR_IV_TAG;
            let own =
                DirEntry { name: OsStr::new(DIR_IV), ino: None, st_ino, kind: Some(Kind::File), next: 2 };
            if sink(own) == ControlFlow::Break(()) {
                return Ok(());
            }
        }
        let mut skip_long = state == 1;
        loop {
            let batch = self.inner.batch(dir, open, below)?;
            if batch.is_empty() {
                return Ok(());
            }
            for Listed { name, st_ino, kind, next } in batch {
                let next = next.checked_mul(4).ok_or(Errno::EOVERFLOW)?;
                let is_root = dir == self.inner.below(Ino::ROOT);
                if is_root && self.names.are_plain() && name == config::NAME {
                    self.inner
                        .findings
                        .tell(format!("the plain file {} is hidden by the configuration", config::NAME));
                    below = next / 4;
                    continue;
                }
                let is_config = is_root && name == config::REVERSE_NAME;
                let (name, long) =
                    if is_config { (OsString::from(config::NAME), None) } else { self.stored(path, &name)? };
                if long.is_some() && !skip_long {
                    let mut beside = name.clone();
                    beside.push(LONG_SUFFIX);
                    let (st_ino, kind) = (st_ino | LONG_TAG, Some(Kind::File));
                    let entry = DirEntry { name: &beside, ino: None, st_ino, kind, next: below * 4 + 1 };
                    if sink(entry) == ControlFlow::Break(()) {
                        return Ok(());
                    }
                }
                skip_long = false;
                if sink(DirEntry { name: &name, ino: None, st_ino, kind, next }) == ControlFlow::Break(()) {
                    return Ok(());
                }
                below = next / 4;
            }
        }
    }
}

impl Filesystem for Reverse {
    fn facts(&self) -> Facts {
        Facts {
            name_max: 255,
            backing: false,
            acl: false,
            dated_listings: true,
            silent_close: true,
            ..self.view.inner.fs.facts()
        }
    }

    fn lookup(&self, parent: Ino, name: &OsStr) -> Result<Entry> {
        let view = &*self.view;
        let path = self.path(parent)?;
        let dir = view.inner.below(parent);
        if parent == Ino::ROOT && name == config::NAME {
            return self.lookup_config();
        }
        if view.names.have_dir_iv() && name == DIR_IV {
            let attr = view.inner.fs.getattr(dir)?;
            let attr = Attr { st_ino: attr.st_ino | DIR_IV_TAG, ..attr };
            return Ok(self.enter_virtual(parent, name, attr, view.dir_iv(&path).to_vec()));
        }
        let bytes = name.as_bytes();
        let beside = bytes
            .strip_suffix(LONG_SUFFIX.as_bytes())
            .filter(|hash| !view.names.are_plain() && hash.starts_with(LONG_PREFIX.as_bytes()));
        let (plain, long) = view.plain(dir, &path, beside.map_or(name, OsStr::from_bytes))?;
        if parent == Ino::ROOT && plain == config::REVERSE_NAME {
            return Err(Errno::ENOENT);
        }
        if let (Some(_), Some(long)) = (beside, long) {
            return view.inner.with_entry(dir, &plain, |entry| {
                let attr = Attr { st_ino: entry.attr.st_ino | LONG_TAG, ..entry.attr };
                Ok(self.enter_virtual(parent, name, attr, long))
            });
        }
        let entry = view.inner.fs.lookup(dir, &plain)?;
        let below = if path.is_empty() { bytes.to_vec() } else { [&path[..], b"/", bytes].concat() };
        self.enter(entry.ino, What::Real(below.into()));
        // Of several names the first counts.
        let path = self.path(entry.ino)?;
        let attr = view.attr(entry.ino, &path, entry.attr).inspect_err(|_| self.forget(entry.ino, 1))?;
        Ok(Entry { attr, ..entry })
    }

    fn getattr(&self, ino: Ino) -> Result<Attr> {
        let below = self.view.inner.below(ino);
        match self.what(ino)? {
            What::Real(path) => self.view.attr(below, &path, self.view.inner.fs.getattr(below)?),
            What::Config => Ok(Attr { st_dev: None, ..self.view.inner.fs.getattr(below)? }),
            What::Virtual { attr, .. } => Ok(attr),
        }
    }

    fn readdir(&self, dir: Ino, position: u64, sink: &mut DirSink<'_>) -> Result<()> {
        self.view.list(self.view.inner.below(dir), &self.path(dir)?, None, position, sink)
    }

    fn opendir(&self, dir: Ino) -> Result<Option<Arc<dyn Directory>>> {
        let path = self.path(dir)?;
        let below = self.view.inner.below(dir);
        let Some(open) = self.view.inner.fs.opendir(below)? else { return Ok(None) };
        Ok(Some(Arc::new(OpenDir { view: Arc::clone(&self.view), dir: below, path, open })))
    }

    fn open(&self, ino: Ino, flags: OpenFlags) -> Result<Arc<dyn File>> {
        if flags.write {
            return Err(Errno::EROFS);
        }
        let below = || self.view.inner.fs.open(self.view.inner.below(ino), OpenFlags::READ);
        match self.what(ino)? {
            What::Config => below(),
            What::Virtual { content, .. } => Ok(Arc::new(Bytes(content))),
            What::Real(path) => Ok(Arc::new(Encrypted {
                view: Arc::clone(&self.view),
                below: below()?,
                id: FileId(derive(&path, "FILEID")),
                first: derive(&path, "BLOCK0IV"),
            })),
        }
    }

    fn parent(&self, dir: Ino) -> Result<Ino> {
        let inner = &self.view.inner;
        if dir == Ino::ROOT { Ok(dir) } else { Ok(inner.above(inner.fs.parent(inner.below(dir))?)) }
    }

    fn readlink(&self, ino: Ino) -> Result<OsString> {
        self.view.target(self.view.inner.below(ino), &self.path(ino)?)
    }

    fn statfs(&self) -> Result<StatFs> {
        self.view.inner.fs.statfs()
    }

    fn forget(&self, ino: Ino, count: u64) {
        let mut nodes = self.nodes.write();
        if let Some(node) = nodes.known.get_mut(&ino) {
            node.references = node.references.saturating_sub(count);
            if node.references == 0 {
                nodes.known.remove(&ino);
                if ino.0 & VIRTUAL != 0 {
                    nodes.numbers.retain(|_, number| *number != ino);
                }
            }
        }
        drop(nodes);
        if ino.0 & VIRTUAL == 0 {
            self.view.inner.fs.forget(self.view.inner.below(ino), count);
        }
    }

    fn unmount(&self) -> Result<()> {
        Ok(())
    }
}

struct OpenDir {
    view: Arc<View>,
    dir: Ino,
    path: Arc<[u8]>,
    open: Arc<dyn Directory>,
}

impl Directory for OpenDir {
    fn read(&self, position: u64, sink: &mut DirSink<'_>) -> Result<()> {
        self.view.list(self.dir, &self.path, Some(&*self.open), position, sink)
    }
}

/// A file that is made up.
struct Bytes(Arc<[u8]>);

impl File for Bytes {
    fn read_at(&self, buf: &mut [u8], offset: u64) -> Result<usize> {
        let rest = usize::try_from(offset).ok().and_then(|at| self.0.get(at..)).unwrap_or_default();
        let len = rest.len().min(buf.len());
        buf[..len].copy_from_slice(&rest[..len]);
        Ok(len)
    }
}

/// A plain file, encrypted as it is read.
struct Encrypted {
    view: Arc<View>,
    below: Arc<dyn File>,
    id: FileId,
    /// The nonce of block 0; those of the others count on from it.
    first: DirIv,
}

impl Encrypted {
    fn nonce(&self, number: u64) -> DirIv {
        let mut nonce = self.first;
        let (_, low) = nonce.split_at_mut(8);
        let count = low.iter().fold(0_u64, |count, byte| count << 8 | u64::from(*byte)).wrapping_add(number);
        low.copy_from_slice(&count.to_be_bytes());
        nonce
    }
}

impl File for Encrypted {
    fn read_at(&self, buf: &mut [u8], offset: u64) -> Result<usize> {
        let layout = self.view.content.layout();
        let header = content::header(&self.id);
        let (overhead, cipher_block) = (layout.overhead as usize, (layout.block + layout.overhead) as usize);
        let end = offset.saturating_add(buf.len() as u64);
        let first = offset.saturating_sub(layout.header) / cipher_block as u64;
        let last = end.saturating_sub(layout.header).max(1).div_ceil(cipher_block as u64);
        let count = usize::try_from(last.saturating_sub(first)).map_err(|_| Errno::EINVAL)?.max(1);
        let mut plain = vec![0; count * BLOCK];
        let Some(start) = first.checked_mul(layout.block) else { return Ok(0) };
        let len = self.below.read_at(&mut plain, start)?;
        if len == 0 && first == 0 {
            // An empty file has no header.
            return Ok(0);
        }
        let mut sealed = vec![0; header.len() + len + len.div_ceil(BLOCK) * overhead];
        sealed[..header.len()].copy_from_slice(&header);
        let blocks = sealed[header.len()..].chunks_mut(cipher_block);
        for (at, (plain, out)) in plain[..len].chunks(BLOCK).zip(blocks).enumerate() {
            let number = first + at as u64;
            self.view.content.seal_with(&self.nonce(number), number, Some(&self.id), plain, out)?;
        }
        // The buffer of ciphertext stands for the file from block `first` on, with the header before that.
        let skip = offset - first * cipher_block as u64;
        let rest = usize::try_from(skip).ok().and_then(|skip| sealed.get(skip..)).unwrap_or_default();
        let len = rest.len().min(buf.len());
        buf[..len].copy_from_slice(&rest[..len]);
        Ok(len)
    }
}
