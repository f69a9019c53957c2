//! A layer: one of the trees that are laid over each other, and the marks of overlayfs in it.
//!
//! Marks are extended attributes `trusted.overlay.NAME`, or `user.overlay.NAME` where root's are out of reach:
//!
//! | name | on | value |
//! | --- | --- | --- |
//! | `opaque` | a directory | `y`: nothing below shows through; `x`: it may hold whiteouts that are attributes |
//! | `redirect` | a directory, a file without content | where the rest of it lies below: a name, or a path from the root |
//! | `metacopy` | a file | its content is that of the file below |
//! | `whiteout` | an empty file | there is no such name (otherwise a character device 0/0 says so) |
//! | `impure` | a directory | it holds what was copied up, whose inode numbers come from below |
//! | `veduta.origin` | what was copied up | the inode number that it had below, and the time of its last change there: `N SECONDS.NANOSECONDS` |
//! | `veduta.owner` | a user's copy of somebody else's node | owner, group and octal mode that it had below, and owner and group of the copy |
//! | `veduta.names` | a file with hard links that was copied up | how many names it has in the merged tree |
//! | `veduta.layers` | the root of an upper layer | the layers below it, one path a line |
//! | `veduta.plain` | a file | it is named `.wh.NAME` since a user named it so, and hides nothing |
//!
//! The first five are overlayfs's own (Documentation/filesystems/overlayfs.rst); it hides the others from its users.
//!
//! Other unions, and layers of container images that were unpacked as they are, say the same by names (OCI image specification,
//! layer.md): an empty file `.wh.NAME` hides NAME in the layers below, and a directory that holds `.wh..wh..opq` is opaque. Both are
//! read; where such a name is changed the whiteout is put in the other form.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::OsStrExt;
use std::sync::Arc;

use veduta_api::{Attr, Device, Errno, Filesystem, Ino, Kind, Perm, Result, SetAttr};

/// A file by which other unions say that a directory is opaque. It is not shown.
pub(crate) const FOREIGN_OPAQUE: &str = ".wh..wh..opq";

/// What the name of a whiteout by name begins with.
const FOREIGN_WHITEOUT: &str = ".wh.";

/// The name that a whiteout of this name would hide.
pub(crate) fn hidden_by(name: &OsStr) -> Option<&OsStr> {
    let hidden = name.as_bytes().strip_prefix(FOREIGN_WHITEOUT.as_bytes())?;
    (!hidden.is_empty() && name != FOREIGN_OPAQUE).then(|| OsStr::from_bytes(hidden))
}

/// The name of a whiteout by name. `None` if that would be too long for a name.
pub(crate) fn whiteout_of(name: &OsStr) -> Option<OsString> {
    let mut whiteout = OsString::from(FOREIGN_WHITEOUT);
    whiteout.push(name);
    (whiteout.len() <= 255).then_some(whiteout)
}

/// One tree.
pub(crate) struct Layer {
    pub(crate) fs: Arc<dyn Filesystem>,
    pub(crate) root: Ino,
}

impl Layer {
    /// What a name leads to. The reference is given back, so the node may be asked only for what a number is good for at once.
    pub(crate) fn peek(&self, dir: Ino, name: &OsStr) -> Result<Option<(Ino, Attr)>> {
        let Some((ino, attr)) = self.find(dir, name)? else { return Ok(None) };
        self.fs.forget(ino, 1);
        Ok(Some((ino, attr)))
    }

    /// What a name leads to, with one reference.
    pub(crate) fn find(&self, dir: Ino, name: &OsStr) -> Result<Option<(Ino, Attr)>> {
        match self.fs.lookup(dir, name) {
            Ok(entry) => Ok(Some((entry.ino, entry.attr))),
            Err(Errno::ENOENT) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Whether a directory has a whiteout by name for a name.
    pub(crate) fn has_named_whiteout(&self, prefix: Prefix, dir: Ino, name: &OsStr) -> Result<bool> {
        let Some(whiteout) = whiteout_of(name) else { return Ok(false) };
        let Some((ino, attr)) = self.find(dir, &whiteout)? else { return Ok(false) };
        let is = self.is_named_whiteout(prefix, ino, &attr);
        self.fs.forget(ino, 1);
        is
    }

    /// Whether a node with the name of a whiteout is one.
    pub(crate) fn is_named_whiteout(&self, prefix: Prefix, ino: Ino, attr: &Attr) -> Result<bool> {
        let may_be = attr.kind == Kind::File && attr.size == 0;
        Ok(may_be && !prefix.read(&*self.fs, ino)?.plain)
    }

    /// Whether a file in a directory says that it is opaque. `is_own`: of the layer that is written; in others, what may not be searched shows nothing either way.
    pub(crate) fn is_opaque_by_name(&self, dir: Ino, is_own: bool) -> Result<bool> {
        let look = || Ok(self.peek(dir, OsStr::new(FOREIGN_OPAQUE))?.is_some());
        if is_own {
            return with_right(&*self.fs, dir, 0o100, look);
        }
        match look() {
            Err(Errno::EACCES) => Ok(false),
            done => done,
        }
    }
}

/// Whether a node says that there is no such name.
pub(crate) fn is_whiteout(attr: &Attr) -> bool {
    attr.kind == Kind::CharDevice && attr.rdev == Device::default()
}

/// Where the rest of a renamed directory lies below.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Redirect {
    /// Under another name in the same directory.
    Name(OsString),
    /// At a path from the root of the layers below: one or more names.
    Path(Vec<OsString>),
}

impl Redirect {
    /// Reads the value of a mark; `None` if it is nonsense.
    pub(crate) fn parse(value: &[u8]) -> Option<Self> {
        let is_name = |part: &[u8]| !matches!(part, b"" | b"." | b"..") && !part.contains(&0);
        match value {
            [b'/', path @ ..] => {
                let names: Vec<&[u8]> = path.split(|byte| *byte == b'/').collect();
                let all_names = names.iter().all(|part| is_name(part));
                all_names
                    .then(|| Redirect::Path(names.into_iter().map(|n| OsStr::from_bytes(n).into()).collect()))
            }
            name if is_name(name) && !name.contains(&b'/') => {
                Some(Redirect::Name(OsStr::from_bytes(name).into()))
            }
            _ => None,
        }
    }
}

/// The marks of one node.
#[derive(Clone, Debug, Default)]
pub(crate) struct Marks {
    pub(crate) opaque: bool,
    pub(crate) has_xattr_whiteouts: bool,
    pub(crate) redirect: Option<Redirect>,
    pub(crate) metacopy: bool,
    pub(crate) whiteout: bool,
    pub(crate) impure: bool,
    pub(crate) ino: Option<u64>,
    /// Seconds and nanoseconds of the last change of what was copied up.
    pub(crate) base: Option<(i64, u32)>,
    pub(crate) names: Option<u32>,
    pub(crate) owner: Option<LostOwner>,
    pub(crate) plain: bool,
}

/// Whose a node was of which a user has made a copy that is the user's own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct LostOwner {
    /// Owner and group below.
    pub(crate) was: (u32, u32),
    /// The mode below; the copy has it without set-id bits.
    pub(crate) perm: u32,
    /// Owner and group of the copy.
    pub(crate) copy: (u32, u32),
}

impl LostOwner {
    pub(crate) fn to_mark(self) -> String {
        let Self { was, perm, copy } = self;
        format!("{} {} {perm:o} {} {}", was.0, was.1, copy.0, copy.1)
    }

    fn parse(value: &[u8]) -> Option<Self> {
        let words: Vec<&str> = std::str::from_utf8(value).ok()?.split(' ').collect();
        let [uid, gid, perm, copy_uid, copy_gid] = words.as_slice() else { return None };
        Some(Self {
            was: (uid.parse().ok()?, gid.parse().ok()?),
            perm: u32::from_str_radix(perm, 8).ok()?,
            copy: (copy_uid.parse().ok()?, copy_gid.parse().ok()?),
        })
    }

    /// What of a copy is as it was before, as far as the copy could keep it, shown as it was.
    pub(crate) fn restore(self, before: &Attr, after: &mut Attr) {
        if self.was == (before.uid, before.gid) && self.copy == (after.uid, after.gid) {
            (after.uid, after.gid) = self.was;
            if self.perm == before.perm.bits() && after.perm.bits() == self.perm & 0o1777 {
                after.perm = before.perm;
            }
        }
    }
}

/// Under which prefix marks are kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Prefix(pub(crate) &'static str);

impl Prefix {
    pub(crate) const TRUSTED: Prefix = Prefix("trusted.overlay.");
    pub(crate) const USER: Prefix = Prefix("user.overlay.");

    /// The attribute that holds a mark.
    pub(crate) fn name(self, mark: &str) -> OsString {
        format!("{}{mark}", self.0).into()
    }

    /// An attribute as users name it, as it is kept in a layer: what would be taken for a mark is put one level down.
    pub(crate) fn to_layer(self, name: &OsStr) -> OsString {
        match name.as_bytes().strip_prefix(self.0.as_bytes()) {
            Some(rest) => {
                let mut kept = self.name("overlay.");
                kept.push(OsStr::from_bytes(rest));
                kept
            }
            None => name.to_owned(),
        }
    }

    /// An attribute as it is kept in a layer, as users name it; `None` for marks.
    pub(crate) fn to_user(self, name: &OsStr) -> Option<OsString> {
        let Some(mark) = name.as_bytes().strip_prefix(self.0.as_bytes()) else {
            return Some(name.to_owned());
        };
        let rest = mark.strip_prefix(b"overlay.")?;
        let mut shown = OsString::from(self.0);
        shown.push(OsStr::from_bytes(rest));
        Some(shown)
    }

    /// All marks of a node.
    pub(crate) fn read(self, fs: &dyn Filesystem, ino: Ino) -> Result<Marks> {
        self.read_with(fs, ino, |name| fs.getxattr(ino, name))
    }

    /// The same in the layer that is written. Of what its owner may not read, users' attributes cannot be read either: it is made readable for that
    /// moment.
    pub(crate) fn read_own(self, fs: &dyn Filesystem, ino: Ino) -> Result<Marks> {
        self.read_with(fs, ino, |name| with_right(fs, ino, 0o400, || fs.getxattr(ino, name)))
    }

    fn read_with(
        self,
        fs: &dyn Filesystem,
        ino: Ino,
        get: impl Fn(&OsStr) -> Result<Vec<u8>>,
    ) -> Result<Marks> {
        let mut marks = Marks::default();
        let names = match fs.listxattr(ino) {
            Err(Errno::EOPNOTSUPP) => return Ok(marks),
            names => names?,
        };
        for name in names {
            let bytes = name.as_bytes();
            let is_foreign = matches!(
                bytes,
                b"trusted.overlay.opaque" | b"user.overlay.opaque" | b"user.fuseoverlayfs.opaque"
            );
            let mark = bytes.strip_prefix(self.0.as_bytes());
            if mark.is_none() && !is_foreign {
                continue;
            }
            let value = match get(&name) {
                Err(Errno::ENODATA) => continue,
                value => value?,
            };
            match mark {
                Some(b"opaque") if value == b"x" => marks.has_xattr_whiteouts = true,
                Some(b"opaque") | None => marks.opaque |= value == b"y",
                Some(b"redirect") => match Redirect::parse(&value) {
                    Some(redirect) => marks.redirect = Some(redirect),
                    None => {
                        tracing::error!("a redirect mark is nonsense: {:?}", OsStr::from_bytes(&value));
                        return Err(Errno::EUCLEAN);
                    }
                },
                Some(b"metacopy") => marks.metacopy = true,
                Some(b"whiteout") => marks.whiteout = true,
                Some(b"impure") => marks.impure = true,
                Some(b"veduta.origin") => {
                    let mut words = value.splitn(2, |byte| *byte == b' ');
                    marks.ino = words.next().and_then(number);
                    let mut time = words.next().unwrap_or_default().splitn(2, |byte| *byte == b'.');
                    let (seconds, nanos) = (time.next().and_then(number), time.next().and_then(number));
                    marks.base = seconds.zip(nanos);
                }
                Some(b"veduta.names") => marks.names = number(&value),
                Some(b"veduta.plain") => marks.plain = true,
                Some(b"veduta.owner") => marks.owner = LostOwner::parse(&value),
                Some(_) => {}
            }
        }
        Ok(marks)
    }
}

/// Does something to a node of the layer that is written. If the owner's own mode forbids it, the owner has the right for that moment.
pub(crate) fn with_right<T>(
    fs: &dyn Filesystem,
    ino: Ino,
    right: u32,
    work: impl Fn() -> Result<T>,
) -> Result<T> {
    let done = work();
    if !matches!(done, Err(Errno::EACCES)) {
        return done;
    }
    let perm = fs.getattr(ino)?.perm;
    let set = |perm| fs.setattr(ino, &SetAttr { perm: Some(perm), ..SetAttr::default() });
    if perm.bits() & right != 0 || set(Perm::from_mode(perm.bits() | right)).is_err() {
        return done;
    }
    let done = work();
    set(perm)?;
    done
}

fn number<T: std::str::FromStr>(value: &[u8]) -> Option<T> {
    std::str::from_utf8(value).ok()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_redirect_is_a_name_or_a_path_and_never_leads_out() {
        let path = |names: &[&str]| Some(Redirect::Path(names.iter().map(Into::into).collect()));
        assert_eq!(Redirect::parse(b"a"), Some(Redirect::Name("a".into())));
        assert_eq!(Redirect::parse(b"/a/b c"), path(&["a", "b c"]));
        for nonsense in [&b""[..], b"/", b"..", b"a/b", b"/a//b", b"/a/../b", b"/.", b"a\0", b"/a/"] {
            assert_eq!(Redirect::parse(nonsense), None, "{nonsense:?}");
        }
    }

    #[test]
    fn a_whiteout_by_name_hides_one_name() {
        let hidden = |name: &str| hidden_by(OsStr::new(name)).map(OsStr::to_owned);
        assert_eq!(hidden(".wh.a"), Some("a".into()));
        assert_eq!(hidden(".wh..wh.a"), Some(".wh.a".into()));
        for plain in ["a", ".wh.", ".wh", "a.wh.b", FOREIGN_OPAQUE] {
            assert_eq!(hidden(plain), None, "{plain}");
        }
        assert_eq!(whiteout_of(OsStr::new("a")), Some(".wh.a".into()));
        assert_eq!(whiteout_of(OsStr::new(&"n".repeat(252))), None);
    }

    #[test]
    fn a_lost_owner_is_no_change_until_somebody_makes_one() {
        let lost = LostOwner { was: (0, 8), perm: 0o4755, copy: (1000, 1000) };
        assert_eq!(LostOwner::parse(lost.to_mark().as_bytes()), Some(lost));
        assert!(LostOwner::parse(b"0 8 4755 1000").is_none() && LostOwner::parse(b"0 8 9 1 1").is_none());
        let attr = |uid, gid, mode| {
            let mut attr = Attr::new(1, Kind::File, Perm::from_mode(mode));
            (attr.uid, attr.gid) = (uid, gid);
            attr
        };
        let before = attr(0, 8, 0o4755);
        for (after, shown) in [
            (attr(1000, 1000, 0o755), before),
            (attr(1000, 1000, 0o700), attr(0, 8, 0o700)),
            (attr(1000, 50, 0o755), attr(1000, 50, 0o755)),
        ] {
            let mut restored = after;
            lost.restore(&before, &mut restored);
            assert_eq!(restored, shown);
        }
    }

    #[test]
    fn an_attribute_that_looks_like_a_mark_is_put_one_level_down() {
        let name = OsStr::new("user.overlay.opaque");
        let kept = Prefix::USER.to_layer(name);
        assert_eq!(kept, "user.overlay.overlay.opaque");
        assert_eq!(Prefix::USER.to_user(&kept).as_deref(), Some(name));
        assert_eq!(Prefix::USER.to_user(name), None);
        assert_eq!(Prefix::TRUSTED.to_user(name).as_deref(), Some(name));
    }
}
