//! How our own programs talk to the engine of the view that they run in: by a call that no kernel has.
//!
//! Arguments: the operation, address and length of what is said, address and room of the answer. The value is the length of the
//! answer. Outside of a view the kernel says `ENOSYS`.

use std::sync::atomic::Ordering;

use nix::errno::Errno;
use veduta_api::Result;
use veduta_trace::raw::{self, Argument};

use crate::call::{Answer, Call, Outcome};
use crate::mounts::shown;
use crate::walk::{Limits, Place, Start};

/// What is asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Control {
    /// Who serves: the number of the engine's process.
    Server = 1,
    /// The name of the view.
    Name = 2,
    /// Gives the view a name.
    SetName = 3,
    /// Which mount serves a path, and why.
    Explain = 4,
    /// What is reported of calls: families and names with commas between, or nothing.
    Trace = 5,
    /// The types that can be mounted, one a line: name, colon, summary.
    Types = 6,
}

/// Bytes; no answer is longer.
const MOST: usize = 65_536;

/// Asks the engine. `ENOSYS` if this process is in no view.
pub fn ask(what: Control, text: &[u8]) -> Result<Vec<u8>> {
    let mut answer = vec![0; MOST];
    let mut arguments = [
        Argument::Value(what as u64),
        Argument::Input(text),
        Argument::Value(text.len() as u64),
        Argument::Output(&mut answer),
        Argument::Value(MOST as u64),
    ];
    let len = raw::call(crate::calls::CONTROL, &mut arguments)?;
    answer.truncate(len as usize);
    Ok(answer)
}

/// Answers.
pub(crate) fn serve(call: &Call<'_>) -> Outcome {
    let view = call.view;
    let [what, text, len, answer, room, _] = call.args;
    let mut said = vec![0; (len as usize).min(MOST)];
    call.task.read(text, &mut said)?;
    let reply = match what {
        what if what == Control::Server as u64 => std::process::id().to_string().into_bytes(),
        what if what == Control::Name as u64 => view.name.read().clone().into_bytes(),
        what if what == Control::SetName as u64 => {
            *view.name.write() = String::from_utf8(said).map_err(|_| Errno::EINVAL)?;
            Vec::new()
        }
        what if what == Control::Explain as u64 => explain(call, &said)?.into_bytes(),
        what if what == Control::Trace as u64 => {
            let wanted = String::from_utf8(said).map_err(|_| Errno::EINVAL)?;
            view.tracing.store(!wanted.is_empty(), Ordering::Relaxed);
            let before = view.trace.lock().replace(wanted);
            before.unwrap_or_default().into_bytes()
        }
        what if what == Control::Types as u64 => {
            let line =
                |module: &&dyn veduta_api::Module| format!("{}: {}\n", module.name(), module.summary());
            view.catalogue.all().iter().map(line).collect::<String>().into_bytes()
        }
        _ => return Err(Errno::EINVAL),
    };
    let reply = &reply[..reply.len().min(room as usize)];
    call.task.write(answer, reply)?;
    Ok(Answer::Value(reply.len() as i64))
}

fn explain(call: &Call<'_>, path: &[u8]) -> Result<String> {
    let start = if path.starts_with(b"/") {
        Start::Host(Vec::new())
    } else {
        call.start(nix::libc::AT_FDCWD as u64)?
    };
    let found = call.walker(Limits::default()).walk(&start, path, true)?;
    let text = |path: &[u8]| String::from_utf8_lossy(shown(path)).into_owned();
    let asked = String::from_utf8_lossy(path);
    let by = call.view.mechanism.get().map_or("", |mechanism| mechanism.describe());
    let served = match (&found.place, found.direct) {
        (Some(Place::Host(real)), true) => {
            let bound = call.table.serving(real).filter(|mount| mount.is_plain());
            let bound = bound
                .map_or_else(String::new, |mount| format!(", bound on itself at {}", text(&mount.target)));
            format!("{asked}: {} on the host{bound}; the kernel serves it", text(real))
        }
        (Some(Place::Host(real)), false) => format!(
            "{asked}: {} on the host, reached through something virtual; the engine opens it in place of the process",
            text(real)
        ),
        (Some(place @ Place::Tree(node, _)), _) => {
            let mount = &node.mount;
            let through = match crate::through::on_host(call, place) {
                Some(_) => "; not changed, so the kernel serves what only looks at it",
                None => "",
            };
            let plane = if mount.facts.backing && call.view.takes_backing() {
                "backing (files are the host's own)"
            } else if call.view.plane_of(mount).is_some() {
                "fuse (the kernel reads and writes, through a mount that nobody else sees)"
            } else {
                "emulated (the engine reads and writes)"
            };
            format!(
                "{asked}: {} in {}, mounted on {} ({}, {}); plane: {plane}{through}",
                text(&node.path()),
                mount.source.to_string_lossy(),
                text(&mount.target),
                mount.type_name,
                mount.option_text(),
            )
        }
        (None, _) => format!("{asked}: nothing is there"),
    };
    let fast = call.view.fast.describe();
    Ok(format!("{served}; calls are caught by {by}; fast path: {fast}"))
}
