//! Locks whose holder has nothing more to do than to write what it has: who takes such a lock waits for it, however long that is.
//!
//! umount(8) returns at once, while the server of the mount still writes to the disk and keeps what it writes to locked. It then marks its
//! lock as left. The mark is a lock in itself, on a byte that no file has: so it is gone with the process, however that ends, and says nothing
//! in the file. It is one of an open file description (`F_OFD_SETLK`), as flock(2)'s are. NFS makes a flock(2) of all bytes such a lock,
//! and a file that is locked as a whole is not left: so the byte behind the mark must be free.

use std::fs;
use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use nix::fcntl::{FcntlArg, fcntl};
use nix::libc;
use veduta_api::{Errno, Interrupt, Result};

/// The byte that is locked.
const MARK: i64 = 1 << 62;

/// How often a lock is tried.
const PAUSE: Duration = Duration::from_millis(10);

/// What came of trying to take a lock.
pub enum Taken<T> {
    /// It is ours.
    Ours(T),
    /// That of somebody who is done with it, and will let it go.
    Left,
    /// Another's.
    Others,
}

/// Marks the lock on an open file, which was opened to be read too, as left.
pub fn leave(file: impl AsFd) -> Result<()> {
    fcntl(file, FcntlArg::F_OFD_SETLK(&of_byte(MARK, libc::F_RDLCK))).map(drop)
}

/// Whether somebody else who had a file locked has left it.
pub fn is_left(file: impl AsFd) -> bool {
    let is_locked = |byte| {
        let mut lock = of_byte(byte, libc::F_WRLCK);
        let asked = fcntl(file.as_fd(), FcntlArg::F_OFD_GETLK(&mut lock));
        asked.map(|_| i32::from(lock.l_type) != libc::F_UNLCK)
    };
    is_locked(MARK) == Ok(true) && is_locked(MARK + 1) == Ok(false)
}

#[expect(clippy::cast_possible_truncation, reason = "the constants are 0 to 2")]
fn of_byte(byte: i64, kind: i32) -> libc::flock {
    libc::flock { l_type: kind as i16, l_whence: libc::SEEK_SET as i16, l_start: byte, l_len: 1, l_pid: 0 }
}

/// Tries to take a lock for so long, and from then on as long as it is that of somebody who leaves; `what` is waited for then, says the log.
/// `None`: it is another's. `EINTR`: the request was interrupted, or the process is told to end.
pub fn take<T>(
    patience: Duration,
    what: &str,
    mut once: impl FnMut() -> Result<Taken<T>>,
) -> Result<Option<T>> {
    let deadline = Instant::now() + patience;
    let mut is_told = false;
    loop {
        match once()? {
            Taken::Ours(lock) => return Ok(Some(lock)),
            _ if Instant::now() < deadline => {}
            Taken::Others => return Ok(None),
            Taken::Left if Interrupt::current().is_raised() || is_to_end() => return Err(Errno::EINTR),
            Taken::Left if !is_told => {
                tracing::warn!("waiting for {what}, whose last mount is over, and still writes to the disk");
                is_told = true;
            }
            Taken::Left => {}
        }
        std::thread::sleep(PAUSE);
    }
}

/// Whether a signal waits that is to end this process: a program that is about to mount holds them back.
fn is_to_end() -> bool {
    const ENDING: u64 = 1 << (libc::SIGTERM - 1) | 1 << (libc::SIGINT - 1) | 1 << (libc::SIGHUP - 1);
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let pending = |line: &str| {
        let set = line.strip_prefix("SigPnd:").or_else(|| line.strip_prefix("ShdPnd:"))?;
        u64::from_str_radix(set.trim(), 16).ok()
    };
    status.lines().filter_map(pending).any(|set| set & ENDING != 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lock_is_left_from_when_its_holder_says_so_until_the_holder_ends() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let (holder, other) = (file.reopen().unwrap(), file.reopen().unwrap());
        assert!(!is_left(&other));
        leave(&holder).unwrap();
        assert!(is_left(&other));
        assert!(!is_left(&holder), "one's own lock is in nobody's way");
        let copy = holder.try_clone().unwrap();
        drop(holder);
        assert!(is_left(&other));
        drop(copy);
        assert!(!is_left(&other));
    }

    #[test]
    fn a_file_that_is_locked_as_a_whole_is_not_left() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let (holder, other) = (file.reopen().unwrap(), file.reopen().unwrap());
        let whole = libc::flock { l_start: 0, l_len: 0, ..of_byte(0, libc::F_WRLCK) };
        fcntl(&holder, FcntlArg::F_OFD_SETLK(&whole)).unwrap();
        leave(&holder).unwrap();
        assert!(!is_left(&other));
    }

    #[test]
    fn a_lock_that_is_left_is_waited_for_and_anothers_is_not() {
        let patience = Duration::from_millis(20);
        let mut left = 20;
        let taken = take(patience, "a test", || {
            left -= 1;
            Ok(if left == 0 { Taken::Ours(()) } else { Taken::Left })
        });
        assert_eq!(taken, Ok(Some(())));
        assert_eq!(take(patience, "a test", || Ok(Taken::<()>::Others)), Ok(None));
        assert_eq!(take(patience, "a test", || Err::<Taken<()>, _>(Errno::EIO)), Err(Errno::EIO));
    }
}
