//! `veduta diff`, `commit`, `discard`, `export`, `import` and `layer`: what was changed in an upper layer, and what becomes of it.

use std::fs::File;
use std::io::{BufReader, BufWriter, IsTerminal, Read, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use serde_json::{Value, json};
use veduta_api::{Attr, Errno, Kind, MountError};
use veduta_fuse::Below;
use veduta_viewfs::{Change, Holes, Upper, Watch, What};

use crate::args;
use crate::failure::{Failure, shown};
use crate::progress::Progress;
use crate::{output_failed, render};

/// The exit status of a commit that found conflicts.
const CONFLICTS: u8 = 3;

/// Bytes; larger files are compared but not shown line by line.
const MAX_SHOWN: u64 = 16 << 20;

/// How many lines around a change are shown.
const CONTEXT: usize = 3;

impl Watch for Progress {
    fn file(&mut self) {
        Progress::file(self);
    }
    fn bytes(&mut self, count: u64) {
        Progress::bytes(self, count);
    }
}

/// `veduta diff`
pub(crate) fn diff(args: &args::Diff) -> Result<(), Failure> {
    let mut out = BufWriter::new(std::io::stdout().lock());
    let mut all = Vec::new();
    for Part { upper, name, at, paths } in parts(&args.layer, &args.paths)? {
        let changes = upper.diff(&mut Progress::new()).map_err(|error| Failure::layer(&name, &error))?;
        let is_wanted =
            |change: &Change| paths.is_empty() || paths.iter().any(|path| change.path.starts_with(path));
        for mut change in changes.into_iter().filter(is_wanted) {
            let inner = std::mem::take(&mut change.path);
            change.path = at.join(&inner);
            let written = match args {
                args::Diff { json: true, .. } => writeln!(out, "{}", to_json(&change)),
                args::Diff { patch: true, .. } => patch(&mut out, &upper, &inner, &change),
                args::Diff { stat: true, .. } => writeln!(out, "{}", stat(&change)),
                _ => lines(&change).iter().try_for_each(|line| writeln!(out, "{line}")),
            };
            written.map_err(|error| output_failed(&error))?;
            all.push(change);
        }
    }
    if args.stat {
        let all: Vec<&Change> = all.iter().collect();
        writeln!(out, "{}", sums(&all)).map_err(|error| output_failed(&error))?;
    }
    out.flush().map_err(|error| output_failed(&error))
}

/// `veduta commit`
pub(crate) fn commit(args: &args::Commit) -> Result<ExitCode, Failure> {
    let parts = parts(&args.layer, &args.paths)?;
    let one = |part: &Part, dry_run| {
        let done = part.upper.commit(&part.paths, dry_run, args.force, &mut Progress::new());
        done.map_err(|error| Failure::layer(&part.name, &error))
    };
    let mut out = BufWriter::new(std::io::stdout().lock());
    let mut count = 0;
    // Of several layers none is begun if another has a conflict.
    let trials = [true].iter().filter(|_| parts.len() > 1 && !args.dry_run && !args.force);
    for dry_run in trials.chain([&args.dry_run]) {
        for part in &parts {
            let outcome = one(part, *dry_run)?;
            for conflict in &outcome.conflicts {
                eprintln!("veduta: {}: {}", shown(part.at.join(&conflict.path).as_os_str()), conflict.reason);
            }
            count += outcome.conflicts.len();
            for mut change in outcome.done.into_iter().filter(|_| args.dry_run) {
                change.path = part.at.join(&change.path);
                for line in lines(&change) {
                    writeln!(out, "{line}").map_err(|error| output_failed(&error))?;
                }
            }
        }
        if count > 0 && !args.force {
            break;
        }
    }
    out.flush().map_err(|error| output_failed(&error))?;
    if count == 0 || args.force {
        return Ok(ExitCode::SUCCESS);
    }
    let what = if count == 1 { "one path was".into() } else { format!("{count} paths were") };
    eprintln!("veduta: {what} changed below too; nothing was committed (--force does it all the same)");
    Ok(ExitCode::from(CONFLICTS))
}

/// `veduta discard`
pub(crate) fn discard(args: &args::Discard) -> Result<(), Failure> {
    let dir = place(&args.dir)?;
    let inside = layers_inside(&dir);
    let dirs = if inside.is_empty() { vec![PathBuf::new()] } else { inside };
    for (at, paths) in dirs.iter().filter_map(|at| Some((at, paths_inside(at, &args.paths)?))) {
        let name = shown(dir.join(at).as_os_str());
        let upper = open_layer(&dir.join(at), Some(&[])).map_err(|error| Failure::layer(&name, &error))?;
        upper.discard(&paths).map_err(|error| Failure::layer(&name, &error))?;
    }
    Ok(())
}

/// `veduta export`
pub(crate) fn export(args: &args::Export) -> Result<(), Failure> {
    let (upper, name) = open(&args.layer)?;
    let failed =
        |error: &std::io::Error| Failure::system(format!("{}: {error}", shown(args.output.as_os_str())));
    let holes = if args.sparse { Holes::Sparse } else { Holes::Zeros };
    let watch = &mut Progress::new();
    if args.output == Path::new("-") {
        let stdout = std::io::stdout();
        if stdout.is_terminal() {
            return Err(Failure::usage("an archive is not written to a terminal: -o FILE"));
        }
        let mut out = BufWriter::new(stdout.lock());
        upper.export(&mut out, holes, watch).map_err(|error| Failure::layer(&name, &error))?;
        return out.flush().map_err(|error| output_failed(&error));
    }
    // Beside it first: a half of an archive is never under its name.
    let parent =
        args.output.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let mut file = tempfile::NamedTempFile::new_in(parent).map_err(|error| failed(&error))?;
    if args.output.extension().is_some_and(|extension| extension == "zst") {
        let mut packed = zstd::Encoder::new(&mut file, 0).map_err(|error| failed(&error))?;
        upper.export(&mut packed, holes, watch).map_err(|error| Failure::layer(&name, &error))?;
        packed.finish().map_err(|error| failed(&error))?;
    } else {
        let mut out = BufWriter::new(&mut file);
        upper.export(&mut out, holes, watch).map_err(|error| Failure::layer(&name, &error))?;
        out.flush().map_err(|error| failed(&error))?;
    }
    let mode = std::os::unix::fs::PermissionsExt::from_mode(0o644);
    file.as_file().set_permissions(mode).map_err(|error| failed(&error))?;
    file.persist(&args.output).map_err(|error| failed(&error.error))?;
    Ok(())
}

/// `veduta import`
pub(crate) fn import(args: &args::Import) -> Result<(), Failure> {
    let (upper, name) = open(&args.layer)?;
    let failed =
        |error: &std::io::Error| Failure::system(format!("{}: {error}", shown(args.archive.as_os_str())));
    let input: Box<dyn Read> = match args.archive.to_str() {
        Some("-") => Box::new(std::io::stdin().lock()),
        _ => Box::new(File::open(&args.archive).map_err(|error| failed(&error))?),
    };
    let mut input = BufReader::new(input);
    let start = std::io::BufRead::fill_buf(&mut input).map_err(|error| failed(&error))?;
    let watch = &mut Progress::new();
    let imported = if start.starts_with(&[0x28, 0xb5, 0x2f, 0xfd]) {
        let mut unpacked = zstd::Decoder::with_buffer(input).map_err(|error| failed(&error))?;
        upper.import(&mut unpacked, watch)
    } else if start.starts_with(&[0x1f, 0x8b]) {
        let archive = shown(args.archive.as_os_str());
        return Err(Failure::usage(format!(
            "{archive}: is packed with gzip: gunzip -c {archive} | veduta import DIR -"
        )));
    } else {
        upper.import(&mut input, watch)
    };
    imported.map(drop).map_err(|error| Failure::layer(&name, &error))
}

/// `veduta layer`
pub(crate) fn named(action: &args::LayerAction) -> Result<(), Failure> {
    match action {
        args::LayerAction::Create { over, name } => {
            let dir = named_place(name)?;
            if dir.exists() {
                return Err(Failure::system(format!("{name}: there is such a layer already")));
            }
            let mut lower = Vec::new();
            for path in over {
                let below = place(path)?;
                if below != *path {
                    let upper = open_layer(&below, None)
                        .map_err(|error| Failure::layer(shown(path.as_os_str()), &error))?;
                    lower.push(below);
                    lower.extend(upper.lower().map(Path::to_owned));
                } else {
                    lower.push(below);
                }
            }
            Upper::create(&dir, &lower).map_err(|error| {
                let _ = std::fs::remove_dir(&dir);
                Failure::layer(name, &error)
            })
        }
        args::LayerAction::List { json } => list(*json),
        args::LayerAction::Path { name } => {
            let dir = existing(name)?;
            writeln!(std::io::stdout(), "{}", dir.display()).map_err(|error| output_failed(&error))
        }
        args::LayerAction::Clone { name, copy } => {
            let (from, to) = (existing(name)?, named_place(copy)?);
            let upper = open_layer(&from, Some(&[])).map_err(|error| Failure::layer(name, &error))?;
            upper.clone_to(&to, &mut Progress::new()).map_err(|error| Failure::layer(copy, &error))
        }
        args::LayerAction::Delete { name } => {
            let upper =
                open_layer(&existing(name)?, Some(&[])).map_err(|error| Failure::layer(name, &error))?;
            upper.delete().map_err(|error| Failure::layer(name, &error))
        }
    }
}

fn list(as_json: bool) -> Result<(), Failure> {
    let home = home()?;
    let mut names: Vec<_> = match std::fs::read_dir(&home) {
        Ok(entries) => entries.filter_map(|entry| entry.ok()?.file_name().into_string().ok()).collect(),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Vec::new(),
        Err(error) => return Err(Failure::system(format!("{}: {error}", home.display()))),
    };
    names.sort();
    let mut out = std::io::stdout().lock();
    for name in names {
        let lower: Vec<String> = match open_layer(&home.join(&name), None) {
            Ok(upper) => upper.lower().map(|path| path.display().to_string()).collect(),
            Err(error) => vec![format!("({})", error.message)],
        };
        let line = match as_json {
            true => json!({ "name": name, "over": lower }).to_string(),
            false => format!("{name}  over {}", lower.join(", ")),
        };
        writeln!(out, "{line}").map_err(|error| output_failed(&error))?;
    }
    Ok(())
}

/// Where layers with a name are.
fn home() -> Result<PathBuf, Failure> {
    let set = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    let data = set("XDG_DATA_HOME").or_else(|| Some(set("HOME")?.join(".local/share")));
    let data = data.ok_or_else(|| Failure::system("neither XDG_DATA_HOME nor HOME is set"))?;
    Ok(data.join("veduta/layers"))
}

fn named_place(name: &str) -> Result<PathBuf, Failure> {
    if name.is_empty() || name.starts_with(['.', '@']) || name.contains(['/', '\n', ':', ',']) {
        return Err(Failure::usage(format!("{name:?} is no name for a layer")));
    }
    Ok(home()?.join(name))
}

fn existing(name: &str) -> Result<PathBuf, Failure> {
    let dir = named_place(name)?;
    if dir.is_dir() { Ok(dir) } else { Err(Failure::system(format!("{name}: there is no such layer"))) }
}

/// A directory as it is written: `@NAME` is a layer with a name.
fn place(dir: &Path) -> Result<PathBuf, Failure> {
    match dir.to_str().and_then(|dir| dir.strip_prefix('@')) {
        Some(name) => existing(name),
        None => Ok(dir.to_owned()),
    }
}

/// A layer, and those below it, which may lie below a mount of this one.
fn open_layer(dir: &Path, lower: Option<&[PathBuf]>) -> Result<Upper, MountError> {
    Upper::open(dir, lower, &|path| match veduta_fuse::below(path, dir) {
        Below::Open => Ok(path.to_owned()),
        Below::At(place) => Ok(place),
        Below::Covered(point) => {
            let message = format!(
                "it is covered by a mount on {}; ask when that has ended, or outside of the view",
                shown(point.as_os_str())
            );
            Err(MountError::system(Errno::EBUSY, message))
        }
    })
}

fn open(layer: &args::OneLayer) -> Result<(Upper, String), Failure> {
    let dir = place(&layer.dir)?;
    let name = shown(dir.as_os_str());
    let lower: Vec<PathBuf> = layer.lower.iter().map(|dir| place(dir)).collect::<Result<_, _>>()?;
    let lower = (!lower.is_empty()).then_some(lower.as_slice());
    let upper = open_layer(&dir, lower).map_err(|error| Failure::layer(&name, &error))?;
    Ok((upper, name))
}

/// A layer, or one of several that `veduta run --cow DIR --over` has made in DIR.
struct Part {
    upper: Upper,
    name: String,
    /// The path from DIR, which is also that of what it lies over.
    at: PathBuf,
    /// The paths in it that are wanted; all if there are none.
    paths: Vec<PathBuf>,
}

/// The layers of which something is wanted.
fn parts(layer: &args::OneLayer, paths: &[PathBuf]) -> Result<Vec<Part>, Failure> {
    let (upper, name) = open(layer)?;
    let dir = place(&layer.dir)?;
    let inside = if upper.lower().next().is_none() { layers_inside(&dir) } else { Vec::new() };
    if inside.is_empty() {
        let paths = paths.iter().map(|path| relative(path)).collect();
        return Ok(vec![Part { upper, name, at: PathBuf::new(), paths }]);
    }
    let wanted = inside.into_iter().filter_map(|at| paths_inside(&at, paths).map(|paths| (at, paths)));
    wanted
        .map(|(at, paths)| {
            let name = shown(dir.join(&at).as_os_str());
            let upper = open_layer(&dir.join(&at), None).map_err(|error| Failure::layer(&name, &error))?;
            Ok(Part { upper, name, at, paths })
        })
        .collect()
}

/// Which of these paths are in what lies at a path; none is all of it, `None` that nothing of it is wanted.
fn paths_inside(at: &Path, paths: &[PathBuf]) -> Option<Vec<PathBuf>> {
    let paths: Vec<PathBuf> = paths.iter().map(|path| relative(path)).collect();
    if paths.is_empty() || paths.iter().any(|path| at.starts_with(path)) {
        return Some(Vec::new());
    }
    let inside: Vec<PathBuf> =
        paths.iter().filter_map(|path| path.strip_prefix(at).ok()).map(Path::to_owned).collect();
    (!inside.is_empty()).then_some(inside)
}

/// The layers in a directory that is none itself, and holds nothing but directories on the way to them: their paths, sorted.
fn layers_inside(dir: &Path) -> Vec<PathBuf> {
    let is_layer =
        |at: &Path| open_layer(&dir.join(at), None).is_ok_and(|upper| upper.lower().next().is_some());
    let mut found = Vec::new();
    let mut tasks = vec![PathBuf::new()];
    while let Some(at) = tasks.pop() {
        if is_layer(&at) {
            found.extend(Some(at).filter(|at| !at.as_os_str().is_empty()));
            continue;
        }
        let entries = std::fs::read_dir(dir.join(&at)).map(Iterator::collect::<Result<Vec<_>, _>>);
        let Ok(Ok(entries)) = entries else { continue };
        if entries.iter().all(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir())) {
            tasks.extend(entries.iter().map(|entry| at.join(entry.file_name())));
        }
    }
    found.sort_unstable();
    found
}

/// A path from the root of the tree, without the slash that may be in front.
fn relative(path: &Path) -> PathBuf {
    path.components().filter(|part| matches!(part, std::path::Component::Normal(_))).collect()
}

fn kind_name(attr: &Attr) -> &'static str {
    match attr.kind {
        Kind::File => "file",
        Kind::Directory => "directory",
        Kind::Symlink => "symbolic link",
        Kind::CharDevice => "character device",
        Kind::BlockDevice => "block device",
        Kind::Fifo => "pipe",
        Kind::Socket => "socket",
    }
}

/// One line for each way in which a path differs.
fn lines(change: &Change) -> Vec<String> {
    let is_directory = change.after.or(change.before).is_some_and(|attr| attr.kind == Kind::Directory);
    let path = format!("{}{}", shown(change.path.as_os_str()), if is_directory { "/" } else { "" });
    let (before, after) = match (change.what, change.before, change.after) {
        (What::Added, ..) => return vec![format!("A {path}")],
        (What::Deleted, ..) => return vec![format!("D {path}")],
        (_, Some(before), Some(after)) => (before, after),
        _ => return Vec::new(),
    };
    let mut lines = Vec::new();
    if change.what == What::Type {
        lines.push(format!("T {path} {} -> {}", kind_name(&before), kind_name(&after)));
    } else if change.content {
        lines.push(format!("M {path}"));
    }
    let is_link = |attr: &Attr| attr.kind == Kind::Symlink;
    if change.mode() && !is_link(&before) && !is_link(&after) {
        lines.push(format!("P {path} {:04o} -> {:04o}", before.perm.bits(), after.perm.bits()));
    }
    if change.owner() {
        lines.push(format!("O {path} {}:{} -> {}:{}", before.uid, before.gid, after.uid, after.gid));
    }
    for name in &change.xattrs {
        lines.push(format!("X {path} {}", shown(name)));
    }
    if lines.is_empty() {
        lines.push(format!("U {path}"));
    }
    lines
}

fn stat(change: &Change) -> String {
    let size = |attr: Option<Attr>| attr.map_or("-".into(), |attr| render::bytes(attr.size));
    let letter = match change.what {
        What::Added => 'A',
        What::Deleted => 'D',
        What::Type => 'T',
        What::Modified => 'M',
    };
    format!("{letter} {} | {} -> {}", shown(change.path.as_os_str()), size(change.before), size(change.after))
}

fn sums(changes: &[&Change]) -> String {
    let count = |what| changes.iter().filter(|change| change.what == what).count();
    let bytes: u64 = changes
        .iter()
        .filter(|change| change.content)
        .filter_map(|change| change.after.filter(|attr| attr.kind == Kind::File))
        .map(|attr| attr.size)
        .sum();
    format!(
        "{} added, {} changed, {} deleted; {} written",
        count(What::Added),
        count(What::Modified) + count(What::Type),
        count(What::Deleted),
        render::bytes(bytes)
    )
}

fn to_json(change: &Change) -> Value {
    let what = match change.what {
        What::Added => "added",
        What::Deleted => "deleted",
        What::Type => "type",
        What::Modified => "modified",
    };
    let facts = |attr: Option<Attr>| {
        attr.map_or(Value::Null, |attr| {
            let mode = format!("{:04o}", attr.perm.bits());
            json!({ "type": kind_name(&attr), "mode": mode, "uid": attr.uid, "gid": attr.gid, "size": attr.size })
        })
    };
    let xattrs: Vec<_> = change.xattrs.iter().map(|name| name.to_string_lossy()).collect();
    json!({
        "change": what,
        "path": change.path.to_string_lossy(),
        "content": change.content,
        "mode": change.mode(),
        "owner": change.owner(),
        "xattrs": xattrs,
        "before": facts(change.before),
        "after": facts(change.after),
    })
}

/// Lines as of `diff -u` for text, and those of the plain listing for the rest.
/// `inner`: its path in the layer.
fn patch(out: &mut dyn Write, upper: &Upper, inner: &Path, change: &Change) -> std::io::Result<()> {
    let is_shown =
        |attr: Option<Attr>| attr.is_none_or(|attr| attr.kind == Kind::File && attr.size <= MAX_SHOWN);
    let read = |is_there: bool, after: bool| match is_there {
        true => upper.read(inner, after).ok(),
        false => Some(Vec::new()),
    };
    let texts = if change.what != What::Type
        && (change.content || change.what == What::Deleted)
        && is_shown(change.before)
        && is_shown(change.after)
    {
        read(change.before.is_some(), false).zip(read(change.after.is_some(), true))
    } else {
        None
    };
    let is_text = |bytes: &[u8]| !bytes.contains(&0);
    let path = shown(change.path.as_os_str());
    match texts {
        Some((old, new)) if is_text(&old) && is_text(&new) => {
            let name = |is_there: bool, side: char| {
                if is_there { format!("{side}/{path}") } else { "/dev/null".into() }
            };
            let (one, other) = (name(change.before.is_some(), 'a'), name(change.after.is_some(), 'b'));
            let diff = similar::TextDiff::from_lines(old.as_slice(), new.as_slice());
            diff.unified_diff().context_radius(CONTEXT).header(&one, &other).to_writer(&mut *out)?;
            lines(change)
                .iter()
                .filter(|line| !line.starts_with(['A', 'D', 'M']))
                .try_for_each(|line| writeln!(out, "# {line}"))
        }
        _ => lines(change).iter().try_for_each(|line| writeln!(out, "# {line}")),
    }
}
