//! Asking for a secret on the terminal of the person who mounts, without echo; or a program or a file for one.
//!
//! From then on this process leaves no core, and may not be traced: a secret that was learnt stays in it.
//!
//! The line is read key by key with signals off, so that Ctrl-C comes as a key: a terminal is never left without
//! echo by it. (A SIGTERM from elsewhere still does that, and `stty sane` mends it.)

use std::ffi::OsStr;
use std::fs::{File, OpenOptions};
use std::io::{Read, Write};
use std::os::fd::AsFd;
use std::process::{Command, Stdio};

use nix::sys::termios::{
    InputFlags, LocalFlags, SetArg, SpecialCharacterIndices, Termios, tcgetattr, tcsetattr,
};
use veduta_api::{Errno, MountError, SecretSource};

use crate::errno;

/// Bytes; more is no secret that somebody types.
const MAX_LEN: usize = 4096;

/// What a file or a program has to say.
pub(crate) fn fetch(source: SecretSource<'_>) -> Result<Vec<u8>, MountError> {
    leave_no_core();
    match source {
        SecretSource::File(path) => from_file(path),
        SecretSource::Program(command) => from_program(command),
    }
}

fn from_file(path: &OsStr) -> Result<Vec<u8>, MountError> {
    let cannot = |error: &std::io::Error| {
        let errno = errno(error);
        MountError::system(
            errno,
            format!(
                "the password file {} cannot be read: {}",
                std::path::Path::new(path).display(),
                errno.desc()
            ),
        )
    };
    let mut file = File::open(path).map_err(|error| cannot(&error))?;
    first_line(&mut file).map_err(|error| cannot(&error))?.ok_or_else(|| {
        MountError::usage(format!(
            "the password file {} begins with no line of 1 to {MAX_LEN} bytes",
            std::path::Path::new(path).display()
        ))
    })
}

fn from_program(command: &OsStr) -> Result<Vec<u8>, MountError> {
    let cannot = |error: &std::io::Error| {
        let errno = errno(error);
        MountError::system(errno, format!("the password program cannot be run: {}", errno.desc()))
    };
    let mut shell = Command::new("/bin/sh");
    let mut child =
        shell.arg("-c").arg(command).stdout(Stdio::piped()).spawn().map_err(|error| cannot(&error))?;
    let line = child.stdout.take().map_or(Ok(None), |mut stdout| {
        let line = first_line(&mut stdout);
        // A program that goes on writing is not stopped in the middle.
        let _ = std::io::copy(&mut stdout, &mut std::io::sink());
        line
    });
    let status = child.wait().map_err(|error| cannot(&error))?;
    if !status.success() {
        let message = format!("the password program failed ({status})");
        return Err(MountError::system(Errno::EACCES, message));
    }
    line.map_err(|error| cannot(&error))?.ok_or_else(|| {
        MountError::usage(format!("the password program printed no line of 1 to {MAX_LEN} bytes"))
    })
}

/// The first line, without its end; `None` if it is empty or too long.
fn first_line(source: &mut impl Read) -> std::io::Result<Option<Vec<u8>>> {
    // Made once, so that no copy stays behind when it grows.
    let mut line = Vec::with_capacity(MAX_LEN + 1);
    source.take(MAX_LEN as u64 + 1).read_to_end(&mut line)?;
    if let Some(end) = line.iter().position(|byte| *byte == b'\n') {
        line[end..].fill(0);
        line.truncate(end);
    }
    Ok((1..=MAX_LEN).contains(&line.len()).then_some(line))
}

/// A core would hold the secret.
fn leave_no_core() {
    if let Err(error) = nix::sys::prctl::set_dumpable(false) {
        tracing::warn!("cores of this process cannot be prevented: {error}");
    }
}

/// Asks on `/dev/tty`.
pub(crate) fn ask(prompt: &str) -> Result<Vec<u8>, MountError> {
    leave_no_core();
    let tty = OpenOptions::new().read(true).write(true).open("/dev/tty");
    let mut tty =
        tty.map_err(|_| MountError::usage("a password is needed, and there is no terminal to ask on"))?;
    ask_on(&mut tty, prompt).map_err(|errno| match errno {
        Errno::EINTR => MountError::system(errno, "no password was given"),
        errno => MountError::system(errno, format!("the terminal cannot be read: {}", errno.desc())),
    })
}

/// `EINTR` if the person pressed Ctrl-C, or Ctrl-D before anything else.
fn ask_on(tty: &mut File, prompt: &str) -> Result<Vec<u8>, Errno> {
    let quiet = Quiet::enter(tty)?;
    let mut out = &*tty;
    let answer =
        out.write_all(prompt.as_bytes()).map_err(|error| errno(&error)).and_then(|()| read_line(&mut &*tty));
    let _ = out.write_all(b"\n");
    drop(quiet);
    answer
}

fn read_line(keys: &mut impl Read) -> Result<Vec<u8>, Errno> {
    // Made once, so that no copy stays behind when it grows.
    let mut line = Vec::with_capacity(MAX_LEN);
    let mut key = [0];
    loop {
        match keys.read(&mut key) {
            Ok(0) => return Err(Errno::EINTR),
            Ok(_) => {}
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => continue,
            Err(error) => return Err(errno(&error)),
        }
        match key[0] {
            b'\n' | b'\r' => return Ok(line),
            // Ctrl-C, Ctrl-\, and Ctrl-D where it means the end of input.
            0x03 | 0x1c => return Err(Errno::EINTR),
            0x04 if line.is_empty() => return Err(Errno::EINTR),
            0x04 => return Ok(line),
            // Backspace takes a whole UTF-8 character.
            0x08 | 0x7f => while line.pop().is_some_and(|byte: u8| byte & 0xc0 == 0x80) {},
            // Ctrl-U
            0x15 => line.clear(),
            other if line.len() < MAX_LEN => line.push(other),
            _ => return Err(Errno::E2BIG),
        }
    }
}

/// While it lives, the terminal gives single keys and shows none.
struct Quiet {
    tty: File,
    before: Termios,
}

impl Quiet {
    fn enter(tty: &File) -> Result<Self, Errno> {
        let before = tcgetattr(tty.as_fd())?;
        let mut quiet = before.clone();
        quiet.local_flags &= !(LocalFlags::ECHO | LocalFlags::ECHONL | LocalFlags::ICANON | LocalFlags::ISIG);
        quiet.input_flags &= !InputFlags::IXON;
        quiet.control_chars[SpecialCharacterIndices::VMIN as usize] = 1;
        quiet.control_chars[SpecialCharacterIndices::VTIME as usize] = 0;
        let kept = Self { tty: tty.try_clone().map_err(|error| errno(&error))?, before };
        // What was typed before the question is no answer to it.
        tcsetattr(tty.as_fd(), SetArg::TCSAFLUSH, &quiet)?;
        Ok(kept)
    }
}

impl Drop for Quiet {
    fn drop(&mut self) {
        let _ = tcsetattr(self.tty.as_fd(), SetArg::TCSADRAIN, &self.before);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn typed(keys: &[u8]) -> Result<Vec<u8>, Errno> {
        read_line(&mut &*keys)
    }

    #[test]
    fn a_line_ends_at_return_and_can_be_corrected() {
        assert_eq!(typed(b"pass word\n"), Ok(b"pass word".to_vec()));
        assert_eq!(typed(b"ab\x7fc\r"), Ok(b"ac".to_vec()));
        assert_eq!(typed("aö\x7fb\n".as_bytes()), Ok(b"ab".to_vec()));
        assert_eq!(typed(b"\x7fwrong\x15right\n"), Ok(b"right".to_vec()));
        assert_eq!(typed(b"\n"), Ok(Vec::new()));
    }

    #[test]
    fn files_and_programs_are_asked_for_one_line() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("pw");
        std::fs::write(&path, "pass word\nrest").unwrap();
        assert_eq!(from_file(path.as_os_str()), Ok(b"pass word".to_vec()));
        for (content, is_line) in
            [("", false), ("\n", false), ("x", true), ("x".repeat(5000).as_str(), false)]
        {
            std::fs::write(&path, content).unwrap();
            assert_eq!(from_file(path.as_os_str()).is_ok(), is_line, "{content}");
        }
        assert!(from_file(OsStr::new("/nonesuch")).unwrap_err().message.contains("/nonesuch"));
        assert_eq!(from_program(OsStr::new("echo a b; seq 100000")), Ok(b"a b".to_vec()));
        assert!(from_program(OsStr::new("echo a; exit 3")).unwrap_err().message.contains('3'));
        assert!(from_program(OsStr::new("true")).is_err());
    }

    #[test]
    fn a_person_who_changes_their_mind_gives_no_secret() {
        for keys in [&b"abc\x03"[..], b"\x04", b""] {
            assert_eq!(typed(keys), Err(Errno::EINTR));
        }
    }

    #[test]
    fn a_terminal_shows_the_prompt_and_not_the_secret_and_has_its_echo_back() {
        let pty = nix::pty::openpty(None, None).unwrap();
        let (mut person, mut tty) = (File::from(pty.master), File::from(pty.slave));
        let before = tcgetattr(&tty).unwrap().local_flags;
        let other = tty.try_clone().unwrap();
        let asking = std::thread::spawn(move || ask_on(&mut tty, "Password: "));
        let mut seen = vec![0; 10];
        person.read_exact(&mut seen).unwrap();
        person.write_all(b"secret\n").unwrap();
        assert_eq!(asking.join().unwrap(), Ok(b"secret".to_vec()));
        let mut rest = [0; 64];
        let len = person.read(&mut rest).unwrap();
        assert_eq!((&seen[..], &rest[..len]), (&b"Password: "[..], &b"\r\n"[..]));
        assert_eq!(tcgetattr(&other).unwrap().local_flags, before);
    }
}
