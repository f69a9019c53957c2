//! Another process: its memory and its descriptors.

use std::ffi::CString;
use std::io::{IoSlice, IoSliceMut};
use std::os::fd::{AsFd, OwnedFd, RawFd};

use nix::errno::Errno;
use nix::sys::uio::{RemoteIoVec, process_vm_readv, process_vm_writev};
use nix::unistd::Pid;

use crate::{Result, raw};

/// Bytes; memory is mapped in units of this or more.
const PAGE: usize = 4096;
/// Bytes; a path with its NUL is not longer.
const PATH_MAX: usize = 4096;

/// A thread of another process.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Task(pub Pid);

impl Task {
    /// The numbers of all threads of its process; none if it has ended.
    pub fn threads(self) -> Vec<Pid> {
        let entries = std::fs::read_dir(format!("/proc/{}/task", self.0)).into_iter().flatten().flatten();
        entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok().map(Pid::from_raw)).collect()
    }

    /// The call that it waits in; `None` if it runs, or waits elsewhere. `proc_pid_syscall(5)`.
    pub fn blocked_in(self) -> Result<Option<u32>> {
        let text = std::fs::read_to_string(format!("/proc/{}/syscall", self.0)).map_err(unread)?;
        Ok(text.split_ascii_whitespace().next().and_then(|number| number.parse().ok()))
    }

    /// Fills `buf` from an address, or `EFAULT`.
    pub fn read(self, address: u64, buf: &mut [u8]) -> Result<()> {
        if self.read_some(address, buf)? == buf.len() { Ok(()) } else { Err(Errno::EFAULT) }
    }

    /// Fills `buf` as far as memory is there.
    pub fn read_some(self, address: u64, buf: &mut [u8]) -> Result<usize> {
        if buf.is_empty() {
            return Ok(0);
        }
        let len = buf.len();
        let remote = [RemoteIoVec { base: address as usize, len }];
        process_vm_readv(self.0, &mut [IoSliceMut::new(buf)], &remote)
    }

    /// A value of plain bytes at an address.
    pub fn read_array<const N: usize>(self, address: u64) -> Result<[u8; N]> {
        let mut bytes = [0; N];
        self.read(address, &mut bytes)?;
        Ok(bytes)
    }

    /// A number at an address.
    pub fn read_u64(self, address: u64) -> Result<u64> {
        self.read_array(address).map(u64::from_ne_bytes)
    }

    /// Writes all of `bytes` to an address, or `EFAULT`.
    pub fn write(self, address: u64, bytes: &[u8]) -> Result<()> {
        if self.write_some(address, bytes)? == bytes.len() { Ok(()) } else { Err(Errno::EFAULT) }
    }

    /// Writes as much of `bytes` as memory is there for.
    pub fn write_some(self, address: u64, bytes: &[u8]) -> Result<usize> {
        if bytes.is_empty() {
            return Ok(0);
        }
        let remote = [RemoteIoVec { base: address as usize, len: bytes.len() }];
        process_vm_writev(self.0, &[IoSlice::new(bytes)], &remote)
    }

    /// The string at an address, without its NUL. `ENAMETOOLONG` if it has `limit` bytes and no end.
    pub fn read_string(self, address: u64, limit: usize) -> Result<Vec<u8>> {
        let mut bytes = Vec::with_capacity(256);
        while bytes.len() < limit {
            // Not past the end of a page: the next may not be there.
            let at = address.checked_add(bytes.len() as u64).ok_or(Errno::EFAULT)?;
            let room = PAGE - at as usize % PAGE;
            let step = room.min(limit - bytes.len()).min(if bytes.is_empty() { 256 } else { PAGE });
            let start = bytes.len();
            bytes.resize(start + step, 0);
            self.read(at, &mut bytes[start..])?;
            if let Some(end) = bytes[start..].iter().position(|byte| *byte == 0) {
                bytes.truncate(start + end);
                return Ok(bytes);
            }
        }
        Err(Errno::ENAMETOOLONG)
    }

    /// The path at an address.
    pub fn read_path(self, address: u64) -> Result<Vec<u8>> {
        self.read_string(address, PATH_MAX)
    }

    /// A list of strings that ends in a null pointer, as `execve(2)` takes it; at most `limit` bytes in all, or `E2BIG`.
    pub fn read_strings(self, mut address: u64, limit: usize) -> Result<Vec<CString>> {
        let (mut strings, mut total) = (Vec::new(), 0);
        if address == 0 {
            return Ok(strings);
        }
        loop {
            let string = self.read_u64(address)?;
            if string == 0 {
                return Ok(strings);
            }
            let bytes = self.read_string(string, limit).map_err(|errno| match errno {
                Errno::ENAMETOOLONG => Errno::E2BIG,
                other => other,
            })?;
            total += bytes.len() + 9;
            if total > limit {
                return Err(Errno::E2BIG);
            }
            strings.push(CString::new(bytes).map_err(|_| Errno::EFAULT)?);
            address += 8;
        }
    }

    /// A handle on the task; see [`raw::pidfd`].
    pub fn handle(self) -> Result<OwnedFd> {
        match raw::pidfd(self.0, self.0) {
            Err(Errno::EINVAL | Errno::ENOENT) => raw::pidfd(self.0, self.leader()?),
            done => done,
        }
    }

    /// A copy of descriptor `number`.
    pub fn descriptor(self, number: RawFd) -> Result<OwnedFd> {
        let handle = self.handle()?;
        raw::pidfd_get(handle.as_fd(), number)
    }

    /// Its state, as a letter of `/proc/PID/stat`; `None` if it has ended.
    pub fn state(self) -> Option<char> {
        let text = std::fs::read(format!("/proc/{}/stat", self.0)).ok()?;
        // Behind the name, which may hold anything.
        let at = text.iter().rposition(|byte| *byte == b')')?;
        text.get(at + 2).map(|byte| char::from(*byte))
    }

    /// The process that the thread belongs to.
    pub fn leader(self) -> Result<Pid> {
        self.status_field("Tgid:").map(|id| Pid::from_raw(id as i32))
    }

    /// The file mode creation mask.
    pub fn umask(self) -> Result<u32> {
        let text = self.status()?;
        let field = text.lines().find_map(|line| line.strip_prefix("Umask:")).ok_or(Errno::ESRCH)?;
        u32::from_str_radix(field.trim(), 8).map_err(|_| Errno::ESRCH)
    }

    /// How many seccomp filters it has; before Linux 5.9, whether it has any.
    pub fn filters(self) -> Result<u32> {
        let number = |name| self.status_field(name).map(|count| count as u32);
        number("Seccomp_filters:").or_else(|_| number("Seccomp:").map(|mode| u32::from(mode == 2)))
    }

    /// The supplementary groups.
    pub fn groups(self) -> Result<Vec<u32>> {
        let text = self.status()?;
        let field = text.lines().find_map(|line| line.strip_prefix("Groups:")).ok_or(Errno::ESRCH)?;
        Ok(field.split_whitespace().filter_map(|group| group.parse().ok()).collect())
    }

    /// Whether signals wait that the task does not block: a call that waits must end for them.
    pub fn has_signal(self) -> bool {
        let Ok(text) = self.status() else { return true };
        let mask = |name: &str| {
            let field = text.lines().find_map(|line| line.strip_prefix(name)).unwrap_or("0");
            u64::from_str_radix(field.trim(), 16).unwrap_or(0)
        };
        let pending = (mask("SigPnd:") | mask("ShdPnd:")) & !mask("SigBlk:") & !mask("SigIgn:");
        // Signals that do nothing unless they are caught: SIGCHLD, SIGCONT, SIGURG, SIGWINCH.
        const QUIET: u64 = 1 << 16 | 1 << 17 | 1 << 22 | 1 << 27;
        pending & !(QUIET & !mask("SigCgt:")) != 0
    }

    fn status_field(self, name: &str) -> Result<u64> {
        let text = self.status()?;
        let field = text.lines().find_map(|line| line.strip_prefix(name)).ok_or(Errno::ESRCH)?;
        field.split_whitespace().next().and_then(|value| value.parse().ok()).ok_or(Errno::ESRCH)
    }

    fn status(self) -> Result<String> {
        // Names of programs need not be UTF-8.
        let bytes = std::fs::read(format!("/proc/{}/status", self.0)).map_err(unread)?;
        Ok(String::from_utf8_lossy(&bytes).into_owned())
    }
}

/// Why nothing can be read of a task: it has ended, or we have no descriptors left.
#[allow(clippy::needless_pass_by_value)] // as `map_err` wants it
fn unread(error: std::io::Error) -> Errno {
    match error.raw_os_error().map(Errno::from_raw) {
        Some(errno @ (Errno::EMFILE | Errno::ENFILE)) => errno,
        _ => Errno::ESRCH,
    }
}
