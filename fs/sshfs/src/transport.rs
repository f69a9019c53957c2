//! The way to the server: a pair of descriptors, and perhaps the program behind them.
//!
//! The ordinary one is the user's own `ssh`, with its configuration, agent, known hosts and prompts, which it asks on the terminal
//! by itself. It gets a socket for standard input and output: a pipe tells its writer of each page that was read, a socket only when much of
//! it is free, and pipes may be small where a user has many. What it writes to standard error goes to the log line by line, and the last lines into the sentence of a mount that failed:
//! the program outlives the command that started it, so it must hold none of that command's descriptors.

use std::collections::VecDeque;
use std::ffi::OsString;
use std::io::{BufRead, BufReader, Read};
use std::net::TcpStream;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::process::{Child, ChildStderr, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::sys::socket::setsockopt;
use nix::sys::socket::sockopt::SndBuf;
use parking_lot::Mutex;

/// Bytes; what the way is asked to hold. The system may give less.
const ROOM: u32 = 1 << 20;

/// How long `ssh` may take to end by itself once its input has ended.
const PATIENCE: Duration = Duration::from_secs(2);

/// Lines of standard error that are kept.
const LINES: usize = 4;

/// How to get to the server.
#[derive(Debug)]
pub(crate) enum Transport {
    /// A program that speaks SFTP on its standard input and output: `ssh HOST -s sftp`.
    Program(Vec<OsString>),
    /// A port that speaks SFTP itself.
    Port(String, u16),
    /// Our own standard input and output.
    Standard,
    /// Descriptors to read from and write to, once.
    Given(Mutex<Option<(OwnedFd, OwnedFd)>>),
}

/// An open way. Neither descriptor blocks.
pub(crate) struct Wire {
    pub(crate) input: OwnedFd,
    pub(crate) output: OwnedFd,
    pub(crate) program: Option<Program>,
}

impl Transport {
    /// Opens a way. The error is a sentence.
    pub(crate) fn open(&self) -> Result<Wire, String> {
        let (input, output, program) = match self {
            Transport::Program(words) => {
                let (program, input, output) = Program::start(words)?;
                (input, output, Some(program))
            }
            Transport::Port(host, port) => {
                let stream = TcpStream::connect((host.as_str(), *port))
                    .map_err(|error| format!("port {port} of {host} cannot be reached: {error}"))?;
                let _ = stream.set_nodelay(true);
                let other = stream.try_clone().map_err(|error| error.to_string())?;
                (stream.into(), other.into(), None)
            }
            Transport::Standard => {
                let clone = |fd: std::os::fd::BorrowedFd<'_>| fd.try_clone_to_owned();
                let input = clone(std::io::stdin().as_fd());
                let output = clone(std::io::stdout().as_fd());
                let failed = |error| format!("standard input and output cannot be used: {error}");
                (input.map_err(failed)?, output.map_err(failed)?, None)
            }
            Transport::Given(pair) => {
                let (input, output) = pair.lock().take().ok_or("the connection is gone")?;
                (input, output, None)
            }
        };
        for fd in [&input, &output] {
            // A terminal or a file refuses nothing here and is found out by the greeting.
            let flags = fcntl(fd, FcntlArg::F_GETFL).map(OFlag::from_bits_truncate);
            flags
                .and_then(|flags| fcntl(fd, FcntlArg::F_SETFL(flags | OFlag::O_NONBLOCK)))
                .map_err(|errno| format!("the connection cannot be set up: {}", errno.desc()))?;
            let _ = fcntl(fd, FcntlArg::F_SETPIPE_SZ(ROOM as i32));
        }
        Ok(Wire { input, output, program })
    }

    /// Whether it can be opened again.
    pub(crate) fn can_reopen(&self) -> bool {
        matches!(self, Transport::Program(_) | Transport::Port(..))
    }
}

/// A program that we started. Dropping it ends it.
pub(crate) struct Program {
    child: Child,
    said: Arc<Mutex<VecDeque<String>>>,
    listener: Option<std::thread::JoinHandle<()>>,
}

impl Program {
    fn start(words: &[OsString]) -> Result<(Self, OwnedFd, OwnedFd), String> {
        let (name, arguments) = words.split_first().ok_or("there is no program to start")?;
        let mut command = Command::new(name);
        let shown = name.to_string_lossy();
        let (ours, theirs) = talk().map_err(|error| format!("{shown} cannot be talked to: {error}"))?;
        let (input, output) = theirs;
        command.args(arguments).stdin(input).stdout(output).stderr(Stdio::piped());
        let mut child = command.spawn().map_err(|error| format!("{shown} cannot be started: {error}"))?;
        // Its ends are its own: it is gone when they are closed.
        drop(command);
        let (input, output) = ours;
        let said = Arc::new(Mutex::new(VecDeque::new()));
        let heard = said.clone();
        let errors = child.stderr.take();
        let listener = std::thread::Builder::new()
            .name("ssh-errors".into())
            .spawn(move || errors.into_iter().for_each(|errors| listen(errors, &heard)))
            .ok();
        Ok((Self { child, said, listener }, input, output))
    }

    /// Ends the program, and says what it said last.
    pub(crate) fn end(mut self, at_once: bool) -> String {
        self.stop(if at_once { Duration::ZERO } else { PATIENCE });
        let lines: Vec<String> = self.said.lock().iter().cloned().collect();
        lines.join("; ")
    }

    fn stop(&mut self, patience: Duration) {
        let deadline = Instant::now() + patience;
        while !matches!(self.child.try_wait(), Ok(Some(_))) {
            if Instant::now() >= deadline {
                let _ = self.child.kill();
                let _ = self.child.wait();
                break;
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        // A program of its own that it left behind may hold its standard error open.
        let Some(listener) = self.listener.take() else { return };
        let deadline = Instant::now() + Duration::from_millis(200);
        while !listener.is_finished() && Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(2));
        }
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        self.stop(PATIENCE);
    }
}

/// A socket to talk to a program: our two descriptors, to read and to write, and the program's.
fn talk() -> std::io::Result<((OwnedFd, OwnedFd), (OwnedFd, OwnedFd))> {
    let (ours, theirs) = UnixStream::pair()?;
    for socket in [&ours, &theirs] {
        let _ = setsockopt(socket, SndBuf, &(ROOM as usize));
    }
    let twice = |socket: UnixStream| Ok::<_, std::io::Error>((socket.try_clone()?.into(), socket.into()));
    Ok((twice(ours)?, twice(theirs)?))
}

/// Logs what a program says, and keeps the last lines.
fn listen(errors: ChildStderr, heard: &Mutex<VecDeque<String>>) {
    let mut errors = BufReader::new(errors);
    let mut line = Vec::new();
    // A line may be long; it is cut, and the rest is a line of its own.
    while matches!(errors.by_ref().take(4096).read_until(b'\n', &mut line), Ok(1..)) {
        let text = String::from_utf8_lossy(&line).trim().to_owned();
        line.clear();
        if text.is_empty() {
            continue;
        }
        tracing::warn!("{text}");
        let mut heard = heard.lock();
        if heard.len() == LINES {
            heard.pop_front();
        }
        heard.push_back(text);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::connection::Connection;

    #[test]
    fn a_program_that_ends_without_reading_is_told_by_what_it_said() {
        let words = ["sh", "-c", "echo no such host >&2; exit 1"].map(OsString::from).to_vec();
        let second = Duration::from_secs(5);
        for _ in 0..5 {
            let opened = Connection::open(&Transport::Program(words.clone()), second, second, false);
            let sentence = opened.err().expect("there is no server");
            assert_eq!(sentence, "the connection ended before the server spoke SFTP: no such host");
        }
    }
}
