//! `hello`: the smallest driver. One directory that holds one file, `hello`. Copy it to begin your own.
//!
//! A driver is a [`Module`], which says what the type is called and turns a mount request into an object, and
//! the object, here a [`Filesystem`] with its four methods. The host has checked names, permissions and file
//! types before it calls: a driver stores, it does not check.
//!
//! # Limits
//!
//! The file cannot be written: `EROFS`.

#![forbid(unsafe_code)]

use std::ffi::OsStr;
use std::ops::ControlFlow;
use std::sync::Arc;

use veduta_api::{
    Attr, Caching, DirEntry, DirSink, Entry, Errno, Facts, File, Filesystem, Ino, Kind, Module, MountError,
    Object, OpenFlags, OptionSpec, Perm, Request, Result, SourceKind,
};

/// The number of the one file; the root is always 1.
const FILE: Ino = Ino(2);

/// The type `hello`.
pub struct Hello;

impl Module for Hello {
    fn name(&self) -> &'static str {
        "hello"
    }
    fn summary(&self) -> &'static str {
        "one file with a greeting: the smallest driver, to be copied"
    }
    fn source(&self) -> SourceKind {
        SourceKind::None
    }
    fn options(&self) -> &'static [OptionSpec] {
        const { &[OptionSpec::with_value("greet", "NAME", "Whom to greet; the world if not given.")] }
    }
    fn mount(&self, request: &mut Request<'_>) -> Result<Object, MountError> {
        let name = request.options.take_value("greet")?.unwrap_or_else(|| "world".into());
        Ok(Object::Tree(tree(&name)))
    }
}

/// The tree that greets `name`.
pub fn tree(name: &str) -> Arc<dyn Filesystem> {
    Arc::new(Tree { text: format!("Hello, {name}!\n").into_bytes().into() })
}

struct Tree {
    text: Arc<[u8]>,
}

impl Filesystem for Tree {
    fn facts(&self) -> Facts {
        Facts { caching: Caching::Immutable, ..Facts::default() }
    }
    fn lookup(&self, _parent: Ino, name: &OsStr) -> Result<Entry> {
        if name != "hello" {
            return Err(Errno::ENOENT);
        }
        Ok(Entry { ino: FILE, generation: 0, attr: self.getattr(FILE)? })
    }
    fn getattr(&self, ino: Ino) -> Result<Attr> {
        Ok(match ino {
            Ino::ROOT => Attr { nlink: 2, ..Attr::new(ino.0, Kind::Directory, Perm::from_mode(0o555)) },
            _ => Attr {
                size: self.text.len() as u64,
                blocks: 1,
                ..Attr::new(ino.0, Kind::File, Perm::from_mode(0o444))
            },
        })
    }
    fn readdir(&self, _dir: Ino, position: u64, sink: &mut DirSink<'_>) -> Result<()> {
        let name = OsStr::new("hello");
        if position == 0 {
            let kind = Some(Kind::File);
            let _: ControlFlow<()> = sink(DirEntry { name, ino: Some(FILE), st_ino: FILE.0, kind, next: 1 });
        }
        Ok(())
    }
    fn open(&self, _ino: Ino, _flags: OpenFlags) -> Result<Arc<dyn File>> {
        Ok(Arc::new(Text(Arc::clone(&self.text))))
    }
}

struct Text(Arc<[u8]>);

impl File for Text {
    fn read_at(&self, buf: &mut [u8], offset: u64) -> Result<usize> {
        let rest = usize::try_from(offset).ok().and_then(|at| self.0.get(at..)).unwrap_or_default();
        let len = rest.len().min(buf.len());
        buf[..len].copy_from_slice(&rest[..len]);
        Ok(len)
    }
}
