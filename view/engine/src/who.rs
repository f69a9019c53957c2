//! Who a process is told that it is, where all are told that they are root (`veduta run --root`): credentials(7) and capabilities(7).
//!
//! Programs that are root become others: they set their users, groups and capabilities. None of this reaches the kernel, which would not allow it;
//! the view keeps it for each process ([`crate::states`]), tells it whoever asks, and goes by it in trees that keep owners of their own, such as an ext4
//! image. What processes may do on the host stays the same.

use nix::errno::Errno;
use veduta_api::Result;

use crate::call::{Answer, Call, DONE, Outcome};
use crate::states::State;

/// All that Linux 6 knows.
const ALL: u64 = (1 << 41) - 1;
const CAP_SETGID: u32 = 6;
const CAP_SETUID: u32 = 7;
const CAP_SETPCAP: u32 = 8;
/// Those that follow the filesystem user (`CAP_FS_SET`): `CAP_CHOWN` to `CAP_FSETID`, `CAP_LINUX_IMMUTABLE`, `CAP_MKNOD`, `CAP_MAC_OVERRIDE`.
const OF_FILES: u64 = 0b11111 | 1 << 9 | 1 << 27 | 1 << 32;
/// "Leave as it is."
const KEEP: u32 = u32::MAX;
/// `NGROUPS_MAX`
const MOST_GROUPS: u64 = 65536;
/// Versions of the structures of `capget(2)`, and how many parts of 32 bits their sets have.
const VERSIONS: [(u32, usize); 3] = [(0x1998_0330, 1), (0x2007_1026, 2), (0x2008_0522, 2)];
/// Operations of `prctl(2)`.
pub(crate) const PRCTLS: [u32; 4] = [PR_GET_KEEPCAPS, PR_SET_KEEPCAPS, PR_CAPBSET_READ, PR_CAPBSET_DROP];
const PR_GET_KEEPCAPS: u32 = 7;
const PR_SET_KEEPCAPS: u32 = 8;
const PR_CAPBSET_READ: u32 = 23;
const PR_CAPBSET_DROP: u32 = 24;

/// The real, effective, saved and filesystem user or group.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub(crate) struct Ids {
    real: u32,
    effective: u32,
    saved: u32,
    pub(crate) fs: u32,
}

impl Ids {
    fn has(self, id: u32) -> bool {
        [self.real, self.effective, self.saved].contains(&id)
    }
}

/// Sets of capabilities.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Capabilities {
    permitted: u64,
    effective: u64,
    inheritable: u64,
    bounding: u64,
    /// They are kept when the process stops being root.
    keep: bool,
}

/// Who a process is.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Credentials {
    pub(crate) users: Ids,
    pub(crate) groups: Ids,
    pub(crate) others: Vec<u32>,
    can: Capabilities,
}

impl Default for Credentials {
    /// Root.
    fn default() -> Self {
        let can = Capabilities { permitted: ALL, effective: ALL, inheritable: 0, bounding: ALL, keep: false };
        Self { users: Ids::default(), groups: Ids::default(), others: vec![0], can }
    }
}

impl Credentials {
    fn can(&self, capability: u32) -> bool {
        self.can.effective & 1 << capability != 0
    }

    /// `setuid`, `setresgid` and their relatives; the value is that of the call.
    fn set(&mut self, name: &str, args: [u32; 3]) -> Result<u32> {
        let is_group = name.contains("gid");
        let may = self.can(if is_group { CAP_SETGID } else { CAP_SETUID });
        let before = self.users;
        let old = if is_group { self.groups } else { self.users };
        let mut new = old;
        let [a, b, c] = args;
        let form = name.trim_start_matches("set").trim_end_matches("uid").trim_end_matches("gid");
        let allowed = match form {
            "" if a == KEEP => return Err(Errno::EINVAL),
            "" if may => {
                new = Ids { real: a, effective: a, saved: a, fs: a };
                true
            }
            "" => {
                new.effective = a;
                a == old.real || a == old.saved
            }
            "re" => {
                if a != KEEP {
                    new.real = a;
                }
                if b != KEEP {
                    new.effective = b;
                }
                if a != KEEP || (b != KEEP && b != old.real) {
                    new.saved = new.effective;
                }
                may || ((a == KEEP || a == old.real || a == old.effective) && (b == KEEP || old.has(b)))
            }
            "res" => {
                for (id, place) in [(a, &mut new.real), (b, &mut new.effective), (c, &mut new.saved)] {
                    if id != KEEP {
                        *place = id;
                    }
                }
                may || [a, b, c].iter().all(|id| *id == KEEP || old.has(*id))
            }
            _ => {
                // It never fails, and says what was.
                if a != KEEP && (may || old.has(a) || a == old.fs) {
                    new.fs = a;
                }
                if !is_group && old.fs == 0 && new.fs != 0 {
                    self.can.effective &= !OF_FILES;
                } else if !is_group && old.fs != 0 && new.fs == 0 {
                    self.can.effective |= self.can.permitted & OF_FILES;
                }
                *(if is_group { &mut self.groups } else { &mut self.users }) = new;
                return Ok(old.fs);
            }
        };
        if !allowed {
            return Err(Errno::EPERM);
        }
        new.fs = new.effective;
        *(if is_group { &mut self.groups } else { &mut self.users }) = new;
        self.follow(before);
        Ok(0)
    }

    /// What a change of users does to capabilities: capabilities(7), "Effect of user ID changes on capabilities".
    fn follow(&mut self, before: Ids) {
        if before.has(0) && !self.users.has(0) && !self.can.keep {
            self.can.permitted = 0;
            self.can.effective = 0;
        }
        if before.effective == 0 && self.users.effective != 0 {
            self.can.effective = 0;
        }
        if before.effective != 0 && self.users.effective == 0 {
            self.can.effective = self.can.permitted;
        }
    }

    /// `execve(2)` of a program without capabilities of its own.
    fn run(&mut self) {
        let is_root = self.users.real == 0 || self.users.effective == 0;
        self.can.permitted = if is_root { self.can.inheritable | self.can.bounding } else { 0 };
        self.can.effective = if self.users.effective == 0 { self.can.permitted } else { 0 };
        self.can.keep = false;
        for ids in [&mut self.users, &mut self.groups] {
            ids.saved = ids.effective;
            ids.fs = ids.effective;
        }
    }
}

/// Serves a call that asks for who somebody is, or changes it.
pub(crate) fn serve(call: &Call<'_>, name: &str) -> Outcome {
    if !call.view.all_root {
        return crate::proc::identity(call, name);
    }
    let state = call.state();
    let who = &state.who;
    let number = |value: u32| Ok(Answer::Value(value.into()));
    let args = [call.args[0] as u32, call.args[1] as u32, call.args[2] as u32];
    match name {
        "getuid" => number(who.users.real),
        "geteuid" => number(who.users.effective),
        "getgid" => number(who.groups.real),
        "getegid" => number(who.groups.effective),
        "getresuid" | "getresgid" => {
            let ids = if name == "getresuid" { who.users } else { who.groups };
            for (address, id) in call.args.iter().zip([ids.real, ids.effective, ids.saved]) {
                call.task.write(*address, &id.to_ne_bytes())?;
            }
            DONE
        }
        "getgroups" => {
            let room = call.int(0);
            let count = who.others.len() as i64;
            if room < 0 || (room != 0 && i64::from(room) < count) {
                return Err(Errno::EINVAL);
            }
            if room != 0 {
                let bytes: Vec<u8> = who.others.iter().flat_map(|group| group.to_ne_bytes()).collect();
                call.task.write(call.args[1], &bytes)?;
            }
            Ok(Answer::Value(count))
        }
        "setgroups" => change(call, &state, |who| {
            if !who.can(CAP_SETGID) {
                return Err(Errno::EPERM);
            }
            let count = call.args[0];
            if count > MOST_GROUPS {
                return Err(Errno::EINVAL);
            }
            let mut bytes = vec![0; 4 * count as usize];
            call.task.read(call.args[1], &mut bytes)?;
            who.others =
                bytes.chunks_exact(4).map(|id| u32::from_ne_bytes([id[0], id[1], id[2], id[3]])).collect();
            // As the kernel has them.
            who.others.sort_unstable();
            Ok(0)
        }),
        "capget" => capget(call),
        "capset" => capset(call, &state),
        "prctl" => prctl(call, &state),
        _ => change(call, &state, |who| who.set(name, args)),
    }
}

/// The task runs a program; its capabilities become those of a new one.
pub(crate) fn runs(call: &Call<'_>) -> Result<()> {
    if !call.view.all_root {
        return Ok(());
    }
    change(call, &call.state(), |who| {
        who.run();
        Ok(0)
    })
    .map(drop)
}

fn change(call: &Call<'_>, state: &State, change: impl FnOnce(&mut Credentials) -> Result<u32>) -> Outcome {
    let mut new = state.clone();
    let value = change(&mut new.who)?;
    if new != *state {
        call.view.states.set(call.task, new)?;
    }
    Ok(Answer::Value(value.into()))
}

/// The version of a header of `capget(2)`: in how many parts the sets are; and about which process.
fn header(call: &Call<'_>) -> Result<(usize, i32)> {
    let bytes: [u8; 8] = call.task.read_array(call.args[0])?;
    let half = |at: usize| u32::from_ne_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]]);
    match VERSIONS.iter().find(|(version, _)| *version == half(0)) {
        Some((_, parts)) => Ok((*parts, half(4) as i32)),
        None => {
            call.task.write(call.args[0], &VERSIONS[2].0.to_ne_bytes())?;
            Err(Errno::EINVAL)
        }
    }
}

fn capget(call: &Call<'_>) -> Outcome {
    let (parts, pid) = match header(call) {
        // Asked for the version alone.
        Err(Errno::EINVAL) if call.args[1] == 0 => return DONE,
        header => header?,
    };
    let task = match pid {
        0 => call.task,
        1.. => veduta_trace::Task(nix::unistd::Pid::from_raw(pid)),
        _ => return Err(Errno::EINVAL),
    };
    if task.leader().is_err() {
        return Err(Errno::ESRCH);
    }
    let can = call.view.state_of(task).map_or_else(|| Credentials::default().can, |state| state.who.can);
    if call.args[1] == 0 {
        return DONE;
    }
    let part = |set: u64, part: usize| ((set >> (32 * part)) as u32).to_ne_bytes();
    let bytes: Vec<u8> = (0..parts)
        .flat_map(|index| {
            [can.effective, can.permitted, can.inheritable].map(|set| part(set, index)).concat()
        })
        .collect();
    call.task.write(call.args[1], &bytes)?;
    DONE
}

fn capset(call: &Call<'_>, state: &State) -> Outcome {
    let (parts, pid) = header(call)?;
    if pid != 0 && pid != call.task.0.as_raw() {
        return Err(Errno::EPERM);
    }
    let mut bytes = vec![0; 12 * parts];
    call.task.read(call.args[1], &mut bytes)?;
    let set = |which: usize| {
        (0..parts).rev().fold(0_u64, |sum, part| {
            let at = 12 * part + 4 * which;
            sum << 32
                | u64::from(u32::from_ne_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]]))
        }) & ALL
    };
    let (effective, permitted, inheritable) = (set(0), set(1), set(2));
    change(call, state, |who| {
        let can = &mut who.can;
        let addable = if can.effective & 1 << CAP_SETPCAP == 0 { can.permitted } else { ALL };
        let allowed = permitted & !can.permitted == 0
            && effective & !permitted == 0
            && inheritable & !(can.inheritable | addable) == 0
            && inheritable & !(can.inheritable | can.bounding) == 0;
        if !allowed {
            return Err(Errno::EPERM);
        }
        (can.effective, can.permitted, can.inheritable) = (effective, permitted, inheritable);
        Ok(0)
    })
}

fn prctl(call: &Call<'_>, state: &State) -> Outcome {
    let argument = call.args[1];
    let can = &state.who.can;
    match call.args[0] as u32 {
        PR_GET_KEEPCAPS => Ok(Answer::Value(can.keep.into())),
        PR_SET_KEEPCAPS if argument > 1 => Err(Errno::EINVAL),
        PR_CAPBSET_READ | PR_CAPBSET_DROP if argument >= u64::from(ALL.count_ones()) => Err(Errno::EINVAL),
        PR_CAPBSET_READ => Ok(Answer::Value((can.bounding >> argument & 1) as i64)),
        operation => change(call, state, |who| {
            if operation == PR_SET_KEEPCAPS {
                who.can.keep = argument == 1;
            } else if who.can(CAP_SETPCAP) {
                who.can.bounding &= !(1 << argument);
            } else {
                return Err(Errno::EPERM);
            }
            Ok(0)
        }),
    }
}

/// Whether `prctl(2)` of this operation is about who somebody is.
pub(crate) fn is_ours(call: &Call<'_>) -> bool {
    call.view.all_root && u32::try_from(call.args[0]).is_ok_and(|operation| PRCTLS.contains(&operation))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ids(ids: Ids) -> [u32; 4] {
        [ids.real, ids.effective, ids.saved, ids.fs]
    }

    #[test]
    fn root_becomes_another_and_stays_that() {
        let mut who = Credentials::default();
        assert_eq!(who.set("setgid", [7, 0, 0]), Ok(0));
        assert_eq!(ids(who.groups), [7; 4]);
        assert_eq!(who.set("setuid", [1000, 0, 0]), Ok(0));
        assert_eq!(ids(who.users), [1000; 4]);
        assert_eq!(who.set("setuid", [0, 0, 0]), Err(Errno::EPERM));
        assert_eq!(who.set("setresgid", [KEEP, 0, KEEP]), Err(Errno::EPERM));
        assert_eq!((who.can.permitted, who.can.effective), (0, 0));
    }

    #[test]
    fn the_effective_user_may_come_back() {
        let mut who = Credentials::default();
        assert_eq!(who.set("setreuid", [KEEP, 42, 0]), Ok(0));
        assert_eq!(ids(who.users), [0, 42, 42, 42]);
        assert_eq!(who.can.effective, 0);
        assert_eq!(who.set("setreuid", [42, 0, 0]), Ok(0));
        assert_eq!(ids(who.users), [42, 0, 0, 0]);
        assert_eq!(who.can.effective, ALL);
        assert_eq!(who.set("setresuid", [42, 42, 0]), Ok(0));
        assert_eq!(ids(who.users), [42, 42, 0, 42]);
        assert_eq!(who.set("setfsuid", [9, 0, 0]), Ok(42), "not one of its own");
        assert_eq!(who.set("setfsuid", [0, 0, 0]), Ok(42));
        assert_eq!(who.users.fs, 0);
    }

    #[test]
    fn capabilities_are_kept_on_request() {
        let mut who = Credentials::default();
        who.can.keep = true;
        assert_eq!(who.set("setuid", [5, 0, 0]), Ok(0));
        assert_eq!((who.can.permitted, who.can.effective), (ALL, 0));
        who.run();
        assert_eq!((who.can.permitted, who.can.keep), (0, false));
    }
}
