//! The type, and how a mount begins.

use std::ffi::OsStr;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use parking_lot::Mutex;
use veduta_api::{
    Errno, Filesystem, Kind, Module, MountError, Object, OptionSpec, Options, Request, Result, SourceKind,
};

use crate::idmap::IdMap;
use crate::options::{Owners, SPECS, Settings};
use crate::session::Session;
use crate::transport::Transport;
use crate::tree::Tree;
use crate::wire::{Attrs, Packet, reply, request};

/// The type `sshfs`.
pub struct Sshfs;

impl Module for Sshfs {
    fn name(&self) -> &'static str {
        "sshfs"
    }

    fn aliases(&self) -> &'static [&'static str] {
        &["umfusessh", "umfusesshfs", "vufusessh", "vufusesshfs"]
    }

    fn summary(&self) -> &'static str {
        "a directory of another machine, over SSH (SFTP)"
    }

    fn source(&self) -> SourceKind {
        SourceKind::Address
    }

    fn writable(&self) -> bool {
        true
    }

    fn options(&self) -> &'static [OptionSpec] {
        SPECS
    }

    fn letters(&self) -> &'static [(char, &'static str)] {
        &[('p', "port"), ('C', "compression=yes"), ('F', "ssh_configfile"), ('1', "ssh_protocol=1")]
    }

    fn manual(&self) -> &'static str {
        "The source is [USER@]HOST:[DIR], as for scp: without DIR, the user's home directory; an IPv6 address stands in brackets. \
         Nothing is needed on the server but its SSH service.\n\n\
         The connection is made by the ssh program, with your configuration, agent, known hosts and jump hosts; it asks for \
         passwords and pass phrases on your terminal before the mount goes to the background. Options of ssh_config(5) may stand \
         among those of the mount: -o IdentityFile=~/.ssh/backup,ServerAliveInterval=15.\n\n\
         Who may do what is decided by the server, as the user who logs in. Owners are shown as the server numbers them: see idmap=.\n\n\
         What was learnt of names and attributes is remembered for 20 seconds (dcache_timeout=); what others change on the server \
         shows after that time at the latest. A name that was never seen is always asked for. Content is asked for anew when a \
         file is opened.\n\n\
         Writes are put off and sent many at a time. What goes wrong with them is told by fsync and by close, at the latest. The \
         times and the mode of a file that was just made are put off together with what is written to it.\n\n\
         A server that does not answer: each request fails with \"Connection timed out\" after 60 seconds (timeout=), and who waits \
         can be interrupted (Ctrl-C) before. When the connection is lost, requests fail with \"Input/output error\", then with \"Transport \
         endpoint is not connected\". With -o reconnect the next request connects again, as far as ssh can do so without asking \
         anything; -o ServerAliveInterval=15 has ssh notice sooner that a connection is dead. Files that are open are opened again \
         by their names, if size, owner and time of change are what they were; otherwise they give \"Stale file handle\".\n\n\
         Examples:\n\n  umfusessh host: ~/mnt\n  umfusessh -o reconnect,ServerAliveInterval=15 me@host:/srv ~/mnt\n  \
         umfusessh -o ProxyJump=gate,idmap=user inner:/data ~/mnt\n  \
         dpipe /usr/lib/openssh/sftp-server = umfusessh -f -o passive :/srv ~/mnt\n  \
         veduta cp -r -t sshfs host:/srv:/ ./srv"
    }

    fn mount(&self, request: &mut Request<'_>) -> Result<Object, MountError> {
        let settings = Settings::take(request.source, &mut request.options)?;
        Ok(Object::Tree(begin(settings)?))
    }
}

/// A tree that is served by whoever speaks SFTP on a pair of descriptors, with options as for a mount: for programs that have a
/// connection of their own, and for tests.
pub fn over(
    input: OwnedFd,
    output: OwnedFd,
    directory: &str,
    options: &str,
) -> Result<Arc<dyn Filesystem>, MountError> {
    let mut options = Options::parse(&format!("passive,{options}"))?;
    options.check(SPECS)?;
    let source = format!(":{directory}");
    let mut settings = Settings::take(OsStr::new(&source), &mut options)?;
    settings.transport = Transport::Given(Mutex::new(Some((input, output))));
    begin(settings)
}

fn begin(mut settings: Settings) -> Result<Arc<dyn Filesystem>, MountError> {
    let mut ids = IdMap::default();
    ids.fix(settings.uid, settings.gid);
    if settings.owners == Owners::File {
        let (users, groups) = (settings.uid_file.as_deref(), settings.gid_file.as_deref());
        ids.read_files(users, groups, settings.strict_owners)?;
    }
    if settings.owners == Owners::Name {
        ids.learn();
    }
    let transport = std::mem::replace(&mut settings.transport, Transport::Standard);
    let session = Session::open(transport, settings.reconnect, settings.deadline, settings.lanes)
        .map_err(|sentence| MountError::system(Errno::ENOTCONN, sentence))?;
    let base = find_base(&session, &settings)?;
    if settings.owners == Owners::User {
        let home = attrs(&session, b".").ok().and_then(|attrs| attrs.owner).ok_or_else(|| {
            MountError::unsupported("idmap=user: the server does not tell who owns the home directory")
        })?;
        let local = (nix::unistd::geteuid().as_raw(), nix::unistd::getegid().as_raw());
        ids.add_pair(home, local);
    }
    Ok(Arc::new(Tree::new(session, settings, ids, base)))
}

/// The server's path of the root, absolute, so that it means the same after a reconnect.
fn find_base(session: &Session, settings: &Settings) -> Result<Vec<u8>, MountError> {
    let given: &[u8] = if settings.directory.is_empty() { b"." } else { &settings.directory };
    let shown = String::from_utf8_lossy(given).into_owned();
    let failed = |errno: Errno| {
        MountError::system(errno, format!("{shown} cannot be used on the server: {}", errno.desc()))
    };
    let resolved = session.repeat(0, |connection| {
        let expand = "expand-path@openssh.com";
        let packet = if given.starts_with(b"~") && connection.greeting().has(expand) {
            Packet::extended(expand)
        } else {
            Packet::new(request::REALPATH)
        };
        let reply = connection.call(packet.string(given))?.expect(reply::NAME)?;
        match reply.fields().names()?.as_slice() {
            [(path, _)] if path.starts_with(b"/") => Ok(path.to_vec()),
            _ => Err(Errno::EPROTO),
        }
    });
    let base = match resolved {
        Ok(base) => base,
        Err(_) if !settings.check_root => given.to_vec(),
        Err(errno) => return Err(failed(errno)),
    };
    if settings.check_root {
        let kind = attrs(session, &base).map_err(failed)?.kind();
        if kind.is_some_and(|kind| kind != Kind::Directory) {
            return Err(MountError::system(Errno::ENOTDIR, format!("{shown} is no directory on the server")));
        }
    }
    Ok(base)
}

/// Attributes of what a path leads to.
fn attrs(session: &Session, path: &[u8]) -> Result<Attrs> {
    session.repeat(0, |connection| {
        let reply = connection.call(Packet::new(request::STAT).string(path))?;
        Ok(reply.expect(reply::ATTRS)?.fields().attrs()?)
    })
}
