//! How a view learns of calls: a trait, the mechanisms that implement it, and the choice among them.
//!
//! What becomes of a call is decided in one place, [`crate::serve::decide`], and does not depend on who caught it. A trap starts a
//! command so that its calls are caught, and does to the tasks what was decided. The first that the system allows is
//! taken, in the order of their price; `VEDUTA_TRAP` names one.

use std::sync::Arc;

use nix::errno::Errno;
use nix::sys::signal::SigSet;
use nix::unistd::Pid;
use veduta_api::{MountError, Result};
use veduta_trace::Refusal;
use veduta_trace::spawn::Command;

use crate::view::View;

/// How calls are caught.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mechanism {
    /// A seccomp filter sends them to a listener. Nobody is traced.
    Notify,
    /// A seccomp filter stops the task for its tracer.
    Trace,
    /// Every call stops the task for its tracer.
    Ptrace,
}

impl Mechanism {
    /// All, the cheapest first.
    pub const ALL: [Self; 3] = [Self::Notify, Self::Trace, Self::Ptrace];

    /// What `VEDUTA_TRAP` calls it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Notify => "notify",
            Self::Trace => "trace",
            Self::Ptrace => "ptrace",
        }
    }

    /// What it is, in words.
    pub fn describe(self) -> &'static str {
        match self {
            Self::Notify => "seccomp notification",
            Self::Trace => "seccomp stops and ptrace",
            Self::Ptrace => "ptrace at every call",
        }
    }

    /// What is tried, in this order: what `VEDUTA_TRAP` names, or all.
    fn candidates() -> Result<Vec<Self>, MountError> {
        let Some(word) = std::env::var_os("VEDUTA_TRAP").filter(|word| !word.is_empty()) else {
            // A task has one listener at most, and the outer view's is there: it comes before any tracer.
            let is_inner = crate::control::ask(crate::control::Control::Server, b"").is_ok();
            return Ok(if is_inner { vec![Self::Ptrace] } else { Self::ALL.to_vec() });
        };
        let named = Self::ALL.into_iter().find(|mechanism| word == mechanism.name());
        named.map(|mechanism| vec![mechanism]).ok_or_else(|| {
            let word = word.to_string_lossy();
            MountError::usage(format!("VEDUTA_TRAP={word}: it is one of notify, trace, ptrace"))
        })
    }

    fn trap(self, view: &View) -> Box<dyn Trap> {
        match self {
            Self::Notify => Box::new(crate::serve::Notified::default()),
            Self::Trace => Box::new(crate::traced::Traced::new(view, false)),
            Self::Ptrace => Box::new(crate::traced::Traced::new(view, true)),
        }
    }
}

/// Catches the calls of one command and of all that it starts.
pub(crate) trait Trap {
    /// Starts the command. Nothing of it runs before [`serve`](Self::serve) is called, and nothing at all if this fails.
    fn start(&mut self, view: &Arc<View>, command: &Command) -> Result<Pid, Refusal>;

    /// Serves its calls until it and all that it left behind have ended: its exit status, or 128 and the signal.
    fn serve(&mut self, view: &Arc<View>, child: Pid, signals: &SigSet) -> Result<i32>;
}

/// Starts a command in the first way that the system allows, which all later commands of the view then take.
pub(crate) fn start(view: &Arc<View>, command: &Command) -> Result<(Box<dyn Trap>, Pid), MountError> {
    let candidates = match view.mechanism.get() {
        Some(mechanism) => vec![*mechanism],
        None => Mechanism::candidates()?,
    };
    let (mut refusals, mut has_listener) = (Vec::new(), false);
    for mechanism in candidates {
        if mechanism == Mechanism::Trace && has_listener {
            // Whose listener it is gets the calls before a tracer does.
            continue;
        }
        if mechanism != Mechanism::Notify {
            view.fast.never();
        }
        let mut trap = mechanism.trap(view);
        match trap.start(view, command) {
            Ok(child) => {
                let _ = view.mechanism.set(mechanism);
                return Ok((trap, child));
            }
            Err(refusal) => {
                has_listener |= refusal.errno == Errno::EBUSY;
                tracing::debug!("{} is not to be had: {refusal}", mechanism.describe());
                refusals.push((mechanism, refusal));
            }
        }
    }
    let errno = refusals.last().map_or(Errno::EPERM, |(_, refusal)| refusal.errno);
    let list: Vec<String> =
        refusals.iter().map(|(mechanism, refusal)| format!("{} ({refusal})", mechanism.describe())).collect();
    Err(MountError::system(
        errno,
        format!("calls cannot be caught here, which a view needs; tried: {}", list.join(", ")),
    ))
}
