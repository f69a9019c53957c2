//! `veduta ls` and `veduta cat`: looking into an image without a mount.

use std::collections::HashMap;
use std::ffi::{OsStr, OsString};
use std::io::{BufWriter, Write};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::rc::Rc;
use std::sync::Arc;

use serde_json::json;
use veduta_api::{Attr, Errno, Filesystem, Kind, OpenFlags};
use veduta_tree::walk::{self, Follow};

use crate::args;
use crate::failure::{Failure, shown};
use crate::output_failed;
use crate::render;
use crate::source;

/// Opens an image once, however many of its paths follow each other on the command line.
#[derive(Default)]
pub(crate) struct Images {
    last: Option<(OsString, Arc<dyn Filesystem>)>,
}

impl Images {
    /// The image that `source` names.
    pub(crate) fn open(
        &mut self,
        source: &OsStr,
        reading: &args::Reading,
    ) -> Result<&dyn Filesystem, Failure> {
        if self.last.as_ref().is_none_or(|(name, _)| name != source) {
            self.last = Some((source.to_owned(), source::open(source, reading)?));
        }
        match &self.last {
            Some((_, tree)) => Ok(&**tree),
            None => Err(Failure::system("no image is open")),
        }
    }
}

/// `veduta ls`
pub(crate) fn ls(args: &args::Ls) -> Result<(), Failure> {
    let mut images = Images::default();
    let mut list = Listing { args, out: BufWriter::new(std::io::stdout().lock()), failed: None };
    let headings = args.paths.len() > 1 || args.recursive;
    for (index, word) in args.paths.iter().enumerate() {
        let (image, path) = source::split(word);
        let tree = images.open(&image, &args.reading)?;
        let node = walk::resolve(tree, Path::new(&path), Follow::Yes)
            .map_err(|errno| Failure::file(shown(word), errno))?;
        if node.is_dir() && !args.directory {
            list.directory(tree, node, &source::join(&image, &path), headings, index == 0)?;
        } else {
            list.line(&Row { name: &path, attr: *node.attr(), target: target(tree, &node) })?;
        }
    }
    list.out.flush().map_err(|error| output_failed(&error))?;
    list.failed.map_or(Ok(()), Err)
}

fn target(tree: &dyn Filesystem, node: &walk::Node<'_>) -> Option<OsString> {
    (node.attr().kind == Kind::Symlink).then(|| tree.readlink(node.ino()).ok()).flatten()
}

struct Row<'a> {
    name: &'a OsStr,
    attr: Attr,
    target: Option<OsString>,
}

struct Listing<'a> {
    args: &'a args::Ls,
    out: BufWriter<std::io::StdoutLock<'a>>,
    /// The first entry that could not be read; the others are listed all the same.
    failed: Option<Failure>,
}

impl Listing<'_> {
    /// Lists directories one after the other; with `-R` what they hold is queued, so depth costs no stack.
    fn directory<'t>(
        &mut self,
        tree: &'t dyn Filesystem,
        top: walk::Node<'t>,
        name: &OsStr,
        headings: bool,
        first: bool,
    ) -> Result<(), Failure> {
        let mut first = first;
        let top = Rc::new(top);
        let mut waiting = vec![(Rc::clone(&top), name.to_owned())];
        // Each directory of a tree has one parent, but a damaged one may not: the same node is listed once. The nodes are held, so
        // that their numbers stay their own.
        let mut seen = HashMap::from([(top.ino(), top)]);
        while let Some((dir, name)) = waiting.pop() {
            if headings && !self.args.json {
                let gap = if first { "" } else { "\n" };
                self.write(format_args!("{gap}{}:\n", render::printable(&name)))?;
            }
            first = false;
            let mut below = Vec::new();
            for listed in
                walk::entries(tree, dir.ino()).map_err(|errno| Failure::file(shown(&name), errno))?
            {
                let listed = match listed {
                    Ok(listed) => listed,
                    Err(errno) => {
                        self.note(&name, errno);
                        continue;
                    }
                };
                if listed.name.as_bytes().starts_with(b".") && !self.args.all {
                    continue;
                }
                let path = source::below(&name, &listed.name);
                let node = match walk::entry(tree, dir.ino(), &listed) {
                    Ok(node) => node,
                    Err(errno) => {
                        self.note(&path, errno);
                        continue;
                    }
                };
                let shown = if self.args.json && headings { path.clone() } else { listed.name.clone() };
                self.line(&Row { name: &shown, attr: *node.attr(), target: target(tree, &node) })?;
                if self.args.recursive && node.is_dir() && !seen.contains_key(&node.ino()) {
                    let node = Rc::new(node);
                    seen.insert(node.ino(), Rc::clone(&node));
                    below.push((node, path));
                }
            }
            waiting.extend(below.into_iter().rev());
        }
        Ok(())
    }

    fn note(&mut self, path: &OsStr, errno: Errno) {
        let failure = Failure::file(shown(path), errno);
        eprintln!("veduta: {failure}");
        self.failed.get_or_insert(Failure::system("some entries could not be read"));
    }

    fn line(&mut self, row: &Row<'_>) -> Result<(), Failure> {
        let attr = &row.attr;
        if self.args.json {
            let line = json!({
                "name": row.name.to_string_lossy(),
                "type": attr.kind.letter().to_string(),
                "mode": format!("{:04o}", attr.perm.bits()),
                "nlink": attr.nlink,
                "uid": attr.uid,
                "gid": attr.gid,
                "size": attr.size,
                "blocks": attr.blocks,
                "ino": attr.st_ino,
                "mtime": { "seconds": attr.mtime.seconds, "nanos": attr.mtime.nanos },
                "device": is_device(attr.kind).then_some([attr.rdev.major, attr.rdev.minor]),
                "target": row.target.as_ref().map(|target| target.to_string_lossy()),
            });
            return self.write(format_args!("{line}\n"));
        }
        let mut text = String::new();
        if self.args.inode {
            text += &format!("{:>10} ", attr.st_ino);
        }
        if self.args.long {
            let size = match (is_device(attr.kind), self.args.human) {
                (true, _) => format!("{}, {}", attr.rdev.major, attr.rdev.minor),
                (false, true) => render::human(attr.size),
                (false, false) => attr.size.to_string(),
            };
            let time = render::time_local(attr.mtime);
            text += &format!(
                "{} {:>3} {:>5} {:>5} {size:>10} {time} ",
                mode(attr),
                attr.nlink,
                attr.uid,
                attr.gid
            );
        }
        text += &render::printable(row.name);
        if let (true, Some(target)) = (self.args.long, &row.target) {
            text += &format!(" -> {}", render::printable(target));
        }
        self.write(format_args!("{text}\n"))
    }

    fn write(&mut self, text: std::fmt::Arguments<'_>) -> Result<(), Failure> {
        self.out.write_fmt(text).map_err(|error| output_failed(&error))
    }
}

fn is_device(kind: Kind) -> bool {
    matches!(kind, Kind::CharDevice | Kind::BlockDevice)
}

/// `drwxr-sr-t`, as `ls -l` shows it.
fn mode(attr: &Attr) -> String {
    let bits = attr.perm.bits();
    let mut text = String::from(attr.kind.letter());
    for (shift, set_id, letter) in [(6, 0o4000, 's'), (3, 0o2000, 's'), (0, 0o1000, 't')] {
        let three = bits >> shift;
        text.push(if three & 4 != 0 { 'r' } else { '-' });
        text.push(if three & 2 != 0 { 'w' } else { '-' });
        text.push(match (three & 1 != 0, bits & set_id != 0) {
            (true, true) => letter,
            (false, true) => letter.to_ascii_uppercase(),
            (true, false) => 'x',
            (false, false) => '-',
        });
    }
    text
}

/// `veduta cat`
pub(crate) fn cat(args: &args::Cat) -> Result<(), Failure> {
    let mut images = Images::default();
    let mut out = std::io::stdout().lock();
    let mut buf = vec![0; 1 << 17];
    for word in &args.paths {
        let (image, path) = source::split(word);
        let tree = images.open(&image, &args.reading)?;
        let failed = |errno| Failure::file(shown(word), errno);
        let node = walk::resolve(tree, Path::new(&path), Follow::Yes).map_err(failed)?;
        match node.attr().kind {
            Kind::File => {}
            Kind::Directory => return Err(failed(Errno::EISDIR)),
            _ => return Err(Failure::usage(format!("{}: not a regular file", shown(word)))),
        }
        let file = tree.open(node.ino(), OpenFlags::READ).map_err(failed)?;
        let mut offset = 0;
        loop {
            let len = file.read_at(&mut buf, offset).map_err(failed)?;
            if len == 0 {
                break;
            }
            out.write_all(&buf[..len]).map_err(|error| output_failed(&error))?;
            offset += len as u64;
        }
    }
    out.flush().map_err(|error| output_failed(&error))
}

#[cfg(test)]
mod tests {
    use super::*;
    use veduta_api::Perm;

    #[test]
    fn modes_read_as_in_ls() {
        let check = |kind, bits, text: &str| {
            assert_eq!(mode(&Attr::new(1, kind, Perm::from_mode(bits))), text);
        };
        check(Kind::Directory, 0o1777, "drwxrwxrwt");
        check(Kind::File, 0o6644, "-rwSr-Sr--");
        check(Kind::Symlink, 0o777, "lrwxrwxrwx");
        check(Kind::CharDevice, 0o4755, "crwsr-xr-x");
    }
}
