//! Roots: `chroot(2)` of a view.
//!
//! The kernel keeps a root only for those that it lets change theirs, and only on its own directories. So this is the one thing
//! about processes that the engine remembers: which process has a root, by its number and the time of its start. A process that
//! is not known yet has the root of its nearest ancestor that is; an orphan whose ancestors are gone has that of the leader of its session.

use std::collections::HashMap;

use nix::unistd::Pid;
use veduta_trace::Task;

/// Processes looked up before the table is searched for those that have ended.
const MANY: usize = 1024;

/// A process, told apart from later ones of the same number.
type Key = (i32, u64);

/// Canonical paths in the view; `None` for processes that have no root of their own.
#[derive(Default)]
pub(crate) struct Roots {
    known: HashMap<Key, Option<Vec<u8>>>,
}

/// What `/proc/PID/stat` says.
struct Status {
    parent: i32,
    session: i32,
    start: u64,
}

fn status(pid: i32) -> Option<Status> {
    let text = std::fs::read(format!("/proc/{pid}/stat")).ok()?;
    let text = String::from_utf8_lossy(&text);
    // The name in parentheses may hold anything.
    let fields: Vec<&str> = text.rsplit_once(')')?.1.split_ascii_whitespace().collect();
    let number = |index: usize| fields.get(index)?.parse::<u64>().ok();
    Some(Status { parent: number(1)? as i32, session: number(3)? as i32, start: number(19)? })
}

impl Roots {
    /// Gives a process a root. All others that there are keep theirs.
    pub(crate) fn set(&mut self, task: Task, root: Vec<u8>) {
        for pid in crate::grow::processes() {
            self.of(Task(pid));
        }
        let Ok(leader) = task.leader() else { return };
        if let Some(status) = status(leader.as_raw()) {
            self.known.insert((leader.as_raw(), status.start), Some(root));
        }
    }

    /// The root of a process.
    pub(crate) fn of(&mut self, task: Task) -> Option<Vec<u8>> {
        let leader = task.leader().ok()?.as_raw();
        let own = status(leader)?;
        if let Some(root) = self.known.get(&(leader, own.start)) {
            return root.clone();
        }
        if self.known.len() > MANY {
            self.known.retain(|(pid, start), _| status(*pid).is_some_and(|status| status.start == *start));
        }
        let root = self.inherited(&own);
        self.known.insert((leader, own.start), root.clone());
        root
    }

    fn inherited(&self, own: &Status) -> Option<Vec<u8>> {
        let engine = Pid::this().as_raw();
        let mut parent = own.parent;
        // Each step goes to an older process; a chain is no longer than there are processes.
        for _ in 0..4096 {
            if parent == engine || parent <= 1 {
                break;
            }
            let Some(above) = status(parent) else { break };
            if let Some(root) = self.known.get(&(parent, above.start)) {
                return root.clone();
            }
            parent = above.parent;
        }
        let leader = status(own.session)?;
        self.known.get(&(own.session, leader.start)).cloned().flatten()
    }
}
