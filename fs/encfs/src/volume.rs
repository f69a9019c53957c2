//! A volume: which format it has, how it is opened, made, described and checked. What the mount and the commands share.

use std::collections::HashSet;
use std::ffi::{OsStr, OsString};
use std::ops::ControlFlow;
use std::sync::Arc;

use veduta_api::{Errno, Filesystem, Ino, Kind, MountError, OpenFlags, Report, SecretSource, World};
use zeroize::Zeroizing;

use crate::gocryptfs::{self, Config, Format, MasterKey, NameMode, WrongPassword};
use crate::inner::Inner;
use crate::readonly::ReadOnly;
use crate::v1;

/// Where the password comes from, or the master key instead.
#[derive(Clone, Debug, Default)]
pub struct Secrets {
    /// The first line of this file.
    pub file: Option<OsString>,
    /// The first line that this program prints.
    pub program: Option<OsString>,
    /// What is asked for is the master key, in hexadecimal digits, and no password.
    pub master_key: bool,
}

impl Secrets {
    /// Asks. `prompt` is for a person.
    pub fn ask(&self, world: &dyn World, prompt: &str) -> Result<Zeroizing<Vec<u8>>, MountError> {
        let secret = match (&self.file, &self.program) {
            (Some(_), Some(_)) => return Err(MountError::usage("passfile and extpass exclude each other")),
            (Some(file), None) => world.secret_from(SecretSource::File(file))?,
            (None, Some(program)) => world.secret_from(SecretSource::Program(program))?,
            (None, None) => world.secret(prompt)?,
        };
        let secret = Zeroizing::new(secret);
        if secret.is_empty() { Err(MountError::usage("the password is empty")) } else { Ok(secret) }
    }

    fn prompt(&self) -> &'static str {
        if self.master_key { "Master key: " } else { "Password: " }
    }
}

/// A volume that was found, and is not open yet.
pub struct Volume {
    inner: Inner,
    config: Found,
    reverse: bool,
}

enum Found {
    Gocryptfs(Config),
    V1(Box<v1::Config>),
}

/// What opens a volume.
enum Key {
    Gocryptfs(MasterKey),
    V1(Box<v1::config::VolumeKey>),
}

/// What a check of a volume found.
#[derive(Debug, Default)]
pub struct Checked {
    /// Files, directories and others that were looked at.
    pub nodes: u64,
    /// Bytes of content that were read.
    pub bytes: u64,
    /// What is wrong: a path, and a sentence.
    pub problems: Vec<(OsString, String)>,
}

fn failed(what: &str, errno: Errno) -> MountError {
    MountError::system(errno, format!("{what}: {}", errno.desc()))
}

impl Volume {
    /// Looks for the configuration of a volume in a directory. `reverse`: of one whose files are plain.
    pub fn find(inner: Inner, reverse: bool) -> Result<Self, MountError> {
        let name = if reverse { gocryptfs::config::REVERSE_NAME } else { gocryptfs::config::NAME };
        let read = |name: &str| match inner.read_small(
            inner.below(Ino::ROOT),
            OsStr::new(name),
            gocryptfs::config::MAX_LEN,
        ) {
            Ok(bytes) => Ok(Some(bytes)),
            Err(Errno::ENOENT) => Ok(None),
            Err(errno) => Err(failed(&format!("{name} cannot be read"), errno)),
        };
        if let Some(bytes) = read(name)? {
            let config = Found::Gocryptfs(Config::parse(&bytes)?);
            return Ok(Self { inner, config, reverse });
        }
        for name in v1::config::NAMES.into_iter().filter(|_| !reverse) {
            if let Some(bytes) = read(name)? {
                let config = Found::V1(Box::new(v1::Config::parse(name, &bytes)?));
                return Ok(Self { inner, config, reverse });
            }
        }
        let one_of_the_other_kind =
            if reverse { gocryptfs::config::NAME } else { gocryptfs::config::REVERSE_NAME };
        let advice = match (reverse, read(one_of_the_other_kind)) {
            (false, Ok(Some(_))) => {
                "but a .gocryptfs.reverse.conf: its files are plain, and `reverse` shows them encrypted"
            }
            (true, Ok(Some(_))) => "but a gocryptfs.conf: without `reverse` it is shown in plain",
            (false, _) => "and no .encfs6.xml; `veduta encfs init` makes one",
            (true, _) => "`veduta encfs init --reverse` makes one",
        };
        Err(MountError::wrong_type(format!("it is no encrypted directory: it has no {name}, {advice}")))
    }

    fn unlock(&self, world: &dyn World, secrets: &Secrets) -> Result<Key, MountError> {
        let secret = secrets.ask(world, secrets.prompt())?;
        match &self.config {
            Found::Gocryptfs(_) if secrets.master_key => {
                let key = MasterKey::from_hex(&secret)
                    .ok_or_else(|| MountError::usage("the master key is not 64 hexadecimal digits"))?;
                Ok(Key::Gocryptfs(key))
            }
            Found::Gocryptfs(config) => match config.unlock(&secret)? {
                Ok(key) => Ok(Key::Gocryptfs(key)),
                Err(WrongPassword) => Err(wrong_password()),
            },
            Found::V1(_) if secrets.master_key => {
                Err(MountError::usage("volumes of EncFS are not opened by a master key"))
            }
            Found::V1(config) => Ok(Key::V1(Box::new(config.unlock(&secret)?.ok_or_else(wrong_password)?))),
        }
    }

    /// Asks for the secret, and opens the volume.
    pub fn open(self, world: &dyn World, secrets: &Secrets) -> Result<Arc<dyn Filesystem>, MountError> {
        let key = self.unlock(world, secrets)?;
        if let Found::V1(config) = &self.config {
            let only = if config.is_old() { ", and so old that it is mounted read-only" } else { "" };
            tracing::warn!("this volume has the format of EncFS 1.x, whose security is dated{only}");
        }
        self.open_with(key)
    }

    fn open_with(self, key: Key) -> Result<Arc<dyn Filesystem>, MountError> {
        Ok(match (&self.config, key) {
            (Found::Gocryptfs(config), Key::Gocryptfs(key)) if self.reverse => {
                gocryptfs::open_reverse(self.inner, config, &key)?
            }
            (Found::Gocryptfs(config), Key::Gocryptfs(key)) => gocryptfs::open(self.inner, config, &key),
            (Found::V1(config), Key::V1(key)) => {
                let tree = v1::open(self.inner, config, *key);
                if config.is_old() { Arc::new(ReadOnly(tree)) } else { tree }
            }
            _ => return Err(MountError::usage("the key is of another format")),
        })
    }

    /// Gives the volume another password. Whoever has the master key needs no password for that.
    pub fn change_password(
        mut self,
        world: &dyn World,
        secrets: &Secrets,
        new: &Secrets,
        log_n: Option<u8>,
    ) -> Result<(), MountError> {
        let key = self.unlock(world, secrets)?;
        let password = new_password(world, new)?;
        let mut name = if self.reverse { gocryptfs::config::REVERSE_NAME } else { gocryptfs::config::NAME };
        let mut mode = 0o400;
        let root = self.inner.below(Ino::ROOT);
        let bytes = match (&mut self.config, &key) {
            (Found::Gocryptfs(config), Key::Gocryptfs(key)) => {
                config.set_password(key, &password, log_n.unwrap_or(config.log_n()))?;
                config.to_json()
            }
            (Found::V1(config), _) if config.is_old() => {
                return Err(MountError::unsupported("volumes of EncFS before 1.4 are only read"));
            }
            (Found::V1(config), Key::V1(key)) => {
                config.set_password(key, &password, config.iterations())?;
                (name, mode) = (v1::config::NAMES[0], 0o600);
                config.to_xml()
            }
            _ => return Err(MountError::usage("the key is of another format")),
        };
        let owner = self.inner.fs.getattr(root).map(|attr| (attr.uid, attr.gid));
        owner
            .and_then(|owner| self.inner.replace_small(root, OsStr::new(name), &bytes, mode, owner))
            .map_err(|errno| failed(&format!("{name} cannot be written"), errno))
    }

    /// Facts that need no password.
    pub fn describe(&self) -> Report {
        let mut report = Report::new();
        match &self.config {
            Found::Gocryptfs(config) => {
                report.put("format", if self.reverse { "gocryptfs, reverse" } else { "gocryptfs" });
                report.put("creator", config.creator.as_str());
                describe_gocryptfs(&mut report, config);
            }
            Found::V1(config) => {
                report.put("format", "EncFS");
                report.put("configuration", config.file);
                report.put("creator", config.creator.as_str());
                describe_v1(&mut report, config);
                report.warn("the security of this format is dated");
            }
        }
        report
    }

    /// Reads everything that there is.
    pub fn check(
        mut self,
        world: &dyn World,
        secrets: &Secrets,
        progress: &mut dyn FnMut(&Checked),
    ) -> Result<Checked, MountError> {
        let key = self.unlock(world, secrets)?;
        self.inner = self.inner.collecting();
        let inner = self.inner.clone();
        let tree = self.open_with(key)?;
        Ok(Check { tree: &*tree, inner: &inner, result: Checked::default(), seen: HashSet::new() }
            .run(progress))
    }
}

fn describe_gocryptfs(report: &mut Report, config: &Config) {
    let Format { cipher, names, hkdf } = config.format;
    report.put("content", cipher.name());
    match names {
        NameMode::Plain => {
            report.put("names", "plain");
        }
        NameMode::Encrypted { dir_iv, long_max, raw64 } => {
            report
                .put("names", if dir_iv { "EME, different in each directory" } else { "EME, deterministic" });
            report.put("padded_names", !raw64);
            match long_max {
                Some(max) => report.put("names_hashed_beyond", u64::from(max)),
                None => report.put("names_hashed_beyond", "never"),
            };
        }
    }
    report.put("derived_keys", hkdf);
    report.put("scrypt_cost", format!("2^{}", config.log_n()));
}

fn describe_v1(report: &mut Report, config: &v1::Config) {
    let format = config.format;
    let cipher = match format.algorithm {
        v1::Algorithm::Aes => "AES",
        v1::Algorithm::Blowfish => "Blowfish",
    };
    report.put("content", format!("{cipher}-{}", format.key * 8));
    report.put("block_size", veduta_api::Value::Bytes(format.block as u64));
    report.put(
        "names",
        match format.naming {
            v1::Naming::Null => "plain",
            v1::Naming::Block { base32: false } => "block",
            v1::Naming::Block { base32: true } => "block, base32",
            v1::Naming::Stream => "stream",
        },
    );
    report.put("chained_names", format.chained_names);
    report.put("file_headers", format.unique_iv);
    report.put("files_depend_on_paths", format.external_iv);
    report.put("checksum_bytes", format.mac as u64);
    report.put("random_bytes", format.random as u64);
    report.put("holes", format.holes);
    report.put("pbkdf2_rounds", config.iterations());
}

pub(crate) fn wrong_password() -> MountError {
    MountError::system(Errno::EACCES, "the password is wrong")
}

/// A new password; a person types it twice.
fn new_password(world: &dyn World, secrets: &Secrets) -> Result<Zeroizing<Vec<u8>>, MountError> {
    let password = secrets.ask(world, "New password: ")?;
    if secrets.file.is_none() && secrets.program.is_none() {
        let again = secrets.ask(world, "New password, again: ")?;
        if *again != *password {
            return Err(MountError::usage("the two passwords differ"));
        }
    }
    Ok(password)
}

/// What a new volume is to be.
#[derive(Clone, Copy, Debug)]
pub enum NewVolume {
    /// As gocryptfs makes it.
    Gocryptfs {
        /// How.
        format: Format,
        /// The cost of scrypt, as the logarithm.
        log_n: u8,
        /// Beside plain files, for an encrypted view of them.
        reverse: bool,
    },
    /// As EncFS 1.9 makes it.
    V1 {
        /// How.
        format: v1::Format,
        /// Milliseconds that a guess of the password is to take here.
        milliseconds: u32,
    },
}

/// Makes a volume. Gives back the master key, in the form that people keep on paper, unless it was given: `secrets.master_key` asks
/// for one, for a volume whose configuration was lost, and such a volume may hold something.
pub fn init(
    inner: &Inner,
    new: NewVolume,
    world: &dyn World,
    secrets: &Secrets,
    master: Option<&Secrets>,
) -> Result<Option<Zeroizing<String>>, MountError> {
    match new {
        NewVolume::Gocryptfs { format, log_n, reverse } => {
            let root = inner.below(Ino::ROOT);
            // Before anybody has to think of a password.
            if !reverse
                && master.is_none()
                && !inner.is_empty(root, |_| false).map_err(|e| failed("it cannot be read", e))?
            {
                return Err(MountError::usage("it is not empty"));
            }
            let key = match master {
                Some(master) => {
                    let digits = master.ask(world, "Master key: ")?;
                    MasterKey::from_hex(&digits)
                        .ok_or_else(|| MountError::usage("the master key is not 64 hexadecimal digits"))?
                }
                None => MasterKey::random().map_err(gocryptfs::config::no_random)?,
            };
            let password = new_password(world, secrets)?;
            let config = Config::new(format, &key, &password, log_n)?;
            gocryptfs::init(inner, &config, reverse, master.is_some())?;
            Ok(master.is_none().then(|| key.to_hex()))
        }
        NewVolume::V1 { format, milliseconds } => {
            let root = inner.below(Ino::ROOT);
            if master.is_some() {
                return Err(MountError::usage("volumes of EncFS are not made of a master key"));
            }
            if !inner.is_empty(root, |_| false).map_err(|errno| failed("it cannot be read", errno))? {
                return Err(MountError::usage("it is not empty"));
            }
            let password = new_password(world, secrets)?;
            let config =
                v1::Config::new(format.current(), &password, v1::iterations_for(milliseconds), milliseconds)?;
            let owner = inner.fs.getattr(root).map(|attr| (attr.uid, attr.gid));
            let name = OsStr::new(v1::config::NAMES[0]);
            owner
                .and_then(|owner| inner.write_small(root, name, &config.to_xml(), 0o600, owner, true))
                .map_err(|errno| failed("its configuration cannot be written", errno))?;
            Ok(None)
        }
    }
}

struct Check<'a> {
    tree: &'a dyn Filesystem,
    inner: &'a Inner,
    result: Checked,
    /// Files with several names are read once.
    seen: HashSet<Ino>,
}

impl Check<'_> {
    fn run(mut self, progress: &mut dyn FnMut(&Checked)) -> Checked {
        // Each directory has one name, so the walk ends; a hostile tree below would have to be endless itself.
        let mut waiting = vec![(Ino::ROOT, OsString::from("/"))];
        while let Some((dir, path)) = waiting.pop() {
            let names = self.list(dir, &path);
            for name in names {
                let mut below = path.clone();
                if below != "/" {
                    below.push("/");
                }
                below.push(&name);
                match self.tree.lookup(dir, &name) {
                    Ok(entry) if entry.attr.kind == Kind::Directory => waiting.push((entry.ino, below)),
                    Ok(entry) => {
                        self.node(entry.ino, entry.attr.kind, &below);
                        self.tree.forget(entry.ino, 1);
                    }
                    Err(errno) => self.problem(&below, Err(errno)),
                }
                self.result.nodes += 1;
                progress(&self.result);
            }
            self.attributes(dir, &path);
            if dir != Ino::ROOT {
                self.tree.forget(dir, 1);
            }
        }
        self.result
    }

    /// Notes what was found since the last time, and the error of an operation if nothing says more.
    fn problem(&mut self, path: &OsStr, result: Result<(), Errno>) {
        let mut found = self.inner.findings.take();
        if let (true, Err(errno)) = (found.is_empty(), result) {
            found.push(errno.desc().to_owned());
        }
        found.dedup();
        self.result.problems.extend(found.into_iter().map(|finding| (path.to_owned(), finding)));
    }

    fn list(&mut self, dir: Ino, path: &OsStr) -> Vec<OsString> {
        let mut names = Vec::new();
        let mut position = 0;
        let result;
        match self.tree.opendir(dir) {
            Ok(open) => loop {
                let before = position;
                let sink: &mut veduta_api::DirSink<'_> = &mut |entry| {
                    position = entry.next;
                    names.push(entry.name.to_owned());
                    ControlFlow::Continue(())
                };
                let listed = match &open {
                    Some(open) => open.read(before, sink),
                    None => self.tree.readdir(dir, before, sink),
                };
                if listed.is_err() || position == before {
                    result = listed;
                    break;
                }
            },
            Err(errno) => result = Err(errno),
        }
        self.problem(path, result);
        names
    }

    fn node(&mut self, ino: Ino, kind: Kind, path: &OsStr) {
        if !self.seen.insert(ino) {
            return;
        }
        match kind {
            Kind::File => self.content(ino, path),
            Kind::Symlink => {
                let result = self.tree.readlink(ino).map(drop);
                self.problem(path, result);
            }
            _ => {}
        }
        self.attributes(ino, path);
    }

    fn attributes(&mut self, ino: Ino, path: &OsStr) {
        let names = match self.tree.listxattr(ino) {
            Ok(names) => names,
            Err(Errno::EOPNOTSUPP) => return,
            Err(errno) => return self.problem(path, Err(errno)),
        };
        for name in names {
            let result = match self.tree.getxattr(ino, &name) {
                Err(Errno::EOPNOTSUPP) => Ok(()),
                result => result.map(drop),
            };
            self.problem(path, result);
        }
        self.problem(path, Ok(()));
    }

    /// Where a large piece cannot be read, its blocks are read one by one.
    fn content(&mut self, ino: Ino, path: &OsStr) {
        const LARGE: usize = 1 << 20;
        const SMALL: usize = 4096;
        let file = match self.tree.open(ino, OpenFlags::READ) {
            Ok(file) => file,
            Err(errno) => return self.problem(path, Err(errno)),
        };
        let size = self.tree.getattr(ino).map_or(0, |attr| attr.size);
        let mut buf = vec![0; LARGE];
        let (mut at, mut small_until) = (0, 0);
        while at < size {
            let len = if at < small_until { SMALL } else { LARGE };
            match file.read_at(&mut buf[..len], at) {
                Ok(0) => {
                    self.problem(path, Err(Errno::EIO));
                    break;
                }
                Ok(got) => {
                    at += got as u64;
                    self.result.bytes += got as u64;
                }
                Err(_) if len == LARGE => {
                    self.inner.findings.take();
                    small_until = at + LARGE as u64;
                }
                Err(errno) => {
                    self.problem(path, Err(errno));
                    at += SMALL as u64;
                }
            }
        }
    }
}
