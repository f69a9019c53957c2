//! Calls that the engine makes on the host in place of a task: where the way to a file of the host leads through something
//! virtual, so that the kernel, given the task's own path, would not find it.

use std::ffi::CString;

use nix::errno::Errno;
use veduta_api::Result;
use veduta_trace::raw::{self, Argument};

use crate::call::{Answer, Call, Outcome};

/// How long an argument is.
#[derive(Clone, Copy)]
enum Len {
    Fixed(usize),
    /// As argument N says; at most what any such call takes.
    Of(usize),
}

#[derive(Clone, Copy)]
enum Shape {
    /// The descriptor that the path at the next argument is relative to.
    Dir(usize),
    /// A path that was resolved: the next of the caller's.
    Path(usize),
    /// A string that is not a path of this walk: an attribute's name, a link's target.
    Text(usize),
    In(usize, Len),
    Out(usize, Len),
}

use Len::{Fixed, Of};
use Shape::{Dir, In, Out, Path, Text};

/// The arguments that are addresses, or stand for places. All others are numbers.
#[rustfmt::skip]
fn shapes(name: &str) -> Option<&'static [Shape]> {
    Some(match name {
        "stat" | "lstat" => &[Path(0), Out(1, Fixed(144))],
        "newfstatat" => &[Dir(0), Path(1), Out(2, Fixed(144))],
        "statx" => &[Dir(0), Path(1), Out(4, Fixed(256))],
        "access" | "chmod" | "chown" | "lchown" | "mkdir" | "rmdir" | "unlink" | "mknod" | "truncate" | "creat" | "open" => &[Path(0)],
        "faccessat" | "faccessat2" | "fchmodat" | "fchmodat2" | "fchownat" | "mkdirat" | "mknodat" | "unlinkat" | "openat" =>
            &[Dir(0), Path(1)],
        "readlink" => &[Path(0), Out(1, Of(2))],
        "readlinkat" => &[Dir(0), Path(1), Out(2, Of(3))],
        "statfs" => &[Path(0), Out(1, Fixed(120))],
        "utime" => &[Path(0), In(1, Fixed(16))],
        "utimes" => &[Path(0), In(1, Fixed(32))],
        "futimesat" | "utimensat" => &[Dir(0), Path(1), In(2, Fixed(32))],
        "setxattr" | "lsetxattr" => &[Path(0), Text(1), In(2, Of(3))],
        "getxattr" | "lgetxattr" => &[Path(0), Text(1), Out(2, Of(3))],
        "listxattr" | "llistxattr" => &[Path(0), Out(1, Of(2))],
        "removexattr" | "lremovexattr" => &[Path(0), Text(1)],
        "symlink" => &[Text(0), Path(1)],
        "symlinkat" => &[Text(0), Dir(1), Path(2)],
        "link" | "rename" => &[Path(0), Path(1)],
        "linkat" | "renameat" | "renameat2" => &[Dir(0), Path(1), Dir(2), Path(3)],
        "openat2" => &[Dir(0), Path(1), In(2, Of(3))],
        _ => return None,
    })
}

/// Bytes; no argument of these calls is longer.
const MOST: usize = 1 << 16;

/// Makes the call with other paths. `EOPNOTSUPP` for calls that are not made for others.
pub(crate) fn again(call: &Call<'_>, paths: &[&[u8]]) -> Outcome {
    let row = crate::calls::by_number(call.number).ok_or(Errno::ENOSYS)?;
    let shapes = shapes(row.name).ok_or(Errno::EOPNOTSUPP)?;
    let mut texts: [Option<CString>; 6] = Default::default();
    let mut inputs: [Option<Vec<u8>>; 6] = Default::default();
    let mut outputs: [Option<Vec<u8>>; 6] = Default::default();
    let mut paths = paths.iter();
    let mut args = call.args;
    let len = |len| match len {
        Fixed(len) => len,
        Of(index) => (call.args[index] as usize).min(MOST),
    };
    for shape in shapes {
        match *shape {
            Dir(index) => args[index] = nix::libc::AT_FDCWD as u64,
            Path(index) => {
                let path = paths.next().ok_or(Errno::EINVAL)?;
                texts[index] = Some(c_string(crate::mounts::shown(path))?);
            }
            Text(index) => texts[index] = Some(c_string(&call.task.read_path(call.args[index])?)?),
            In(index, size) if call.args[index] != 0 => {
                let mut bytes = vec![0; len(size)];
                call.task.read(call.args[index], &mut bytes)?;
                inputs[index] = Some(bytes);
            }
            Out(index, size) if call.args[index] != 0 => outputs[index] = Some(vec![0; len(size)]),
            In(..) | Out(..) => {}
        }
    }
    let result = as_caller(call, || {
        let mut arguments: Vec<Argument<'_>> = Vec::with_capacity(6);
        for (index, ((text, input), output)) in texts.iter().zip(&inputs).zip(&mut outputs).enumerate() {
            arguments.push(match (text, input, output) {
                (Some(text), ..) => Argument::Path(text),
                (_, Some(input), _) => Argument::Input(input),
                (_, _, Some(output)) => Argument::Output(output),
                _ => Argument::Value(args[index]),
            });
        }
        raw::call(call.number, &mut arguments)
    })?;
    if matches!(row.name, "open" | "openat" | "openat2" | "creat") {
        return Ok(opened(call, row.name, result as i32, inputs[2].as_deref()));
    }
    for (index, output) in outputs.iter().enumerate() {
        let Some(output) = output else { continue };
        let is_counted = matches!(row.name, "readlink" | "readlinkat") || row.name.ends_with("xattr");
        let len = if is_counted { output.len().min(result as usize) } else { output.len() };
        call.task.write(call.args[index], &output[..len])?;
    }
    Ok(Answer::Value(result))
}

fn opened(call: &Call<'_>, name: &str, number: i32, how: Option<&[u8]>) -> Answer {
    let flags = match name {
        "open" => call.args[1],
        "openat" => call.args[2],
        "openat2" => how
            .and_then(|how| how.get(..8))
            .map_or(0, |flags| u64::from_ne_bytes(flags.try_into().unwrap_or_default())),
        _ => 0,
    };
    let close_on_exec = flags & nix::libc::O_CLOEXEC as u64 != 0;
    Answer::Fd { fd: raw::own(number), close_on_exec, on_its_way: None }
}

/// Runs something with the rights and the file mode creation mask of the caller.
pub(crate) fn as_caller<T>(call: &Call<'_>, work: impl FnOnce() -> Result<T>) -> Result<T> {
    let umask = call.task.umask().unwrap_or(0o022);
    nix::sys::stat::umask(nix::sys::stat::Mode::from_bits_truncate(umask));
    let other = call.view.is_root && !call.caller.real().is_root();
    if other {
        let caller = call.caller.real();
        raw::set_fs_identity(caller.uid(), caller.gid(), caller.groups())?;
    }
    let result = work();
    if other {
        raw::set_fs_identity(0, 0, &[])?;
    }
    result
}

fn c_string(bytes: &[u8]) -> Result<CString> {
    CString::new(bytes).map_err(|_| Errno::EINVAL)
}
