//! Encrypted trees over a directory of the host system, beside models in memory: content at every edge of a block, names, links, moves, and what
//! is said of damage. (What the original programs say of the same volumes is asked in tests/scripts/encfs.sh.)

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::ffi::{OsStr, OsString};
use std::ops::ControlFlow;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::Arc;

use veduta_api::{
    Allocate, Disk, Errno, File, Filesystem, Ino, Kind, Link, MountError, NewNode, OpenFlags, Perm,
    RenameFlags, SecretSource, Seek, SetAttr, World, XattrMode,
};
use veduta_encfs::gocryptfs::{Cipher, Format, NameMode};
use veduta_encfs::volume::{self, NewVolume, Secrets, Volume};
use veduta_encfs::{Inner, v1};
use veduta_tree::hostdir::HostDir;

/// A world that answers every question for a secret with the same one.
struct Asked(&'static [u8]);

impl World for Asked {
    fn disk(&self, _source: &OsStr, _writable: bool) -> Result<Disk, MountError> {
        Err(MountError::usage("there is no disk"))
    }
    fn tree(&self, source: &OsStr) -> Result<(Arc<dyn Filesystem>, Ino), MountError> {
        Ok((Arc::new(HostDir::open(Path::new(source)).unwrap()), Ino::ROOT))
    }
    fn link(&self, _source: &OsStr) -> Result<Arc<dyn Link>, MountError> {
        Err(MountError::usage("there is no link"))
    }
    fn secret(&self, _prompt: &str) -> Result<Vec<u8>, MountError> {
        Ok(self.0.to_vec())
    }
    fn secret_from(&self, _source: SecretSource<'_>) -> Result<Vec<u8>, MountError> {
        Ok(self.0.to_vec())
    }
}

const ENCRYPTED: NameMode = NameMode::Encrypted { dir_iv: true, long_max: Some(255), raw64: true };

fn gocryptfs(cipher: Cipher, names: NameMode) -> NewVolume {
    NewVolume::Gocryptfs { format: Format { cipher, names, hkdf: true }, log_n: 10, reverse: false }
}

fn encfs(format: v1::Format) -> NewVolume {
    NewVolume::V1 { format, milliseconds: 1 }
}

/// One volume of each kind that differs in more than a parameter.
fn kinds() -> Vec<(&'static str, NewVolume)> {
    let short =
        v1::Format { naming: v1::Naming::Stream, chained_names: false, holes: false, ..v1::Format::STANDARD };
    let odd = v1::Format {
        algorithm: v1::Algorithm::Blowfish,
        key: 20,
        block: 512,
        mac: 5,
        random: 3,
        ..v1::Format::PARANOIA
    };
    let null = v1::Format { naming: v1::Naming::Null, unique_iv: false, ..v1::Format::STANDARD };
    vec![
        ("gcm", gocryptfs(Cipher::AesGcm, ENCRYPTED)),
        (
            "siv",
            gocryptfs(Cipher::AesSiv, NameMode::Encrypted { dir_iv: false, long_max: Some(62), raw64: true }),
        ),
        ("xchacha", gocryptfs(Cipher::XChaCha20Poly1305, NameMode::Plain)),
        (
            "padded",
            gocryptfs(Cipher::AesGcm, NameMode::Encrypted { dir_iv: true, long_max: None, raw64: false }),
        ),
        ("standard", encfs(v1::Format::STANDARD)),
        ("paranoia", encfs(v1::Format::PARANOIA)),
        ("stream", encfs(short)),
        ("blowfish", encfs(odd)),
        ("null", encfs(null)),
    ]
}

struct Mounted {
    dir: tempfile::TempDir,
    tree: Arc<dyn Filesystem>,
}

fn inner(dir: &Path) -> Inner {
    Inner::new(Arc::new(HostDir::open(dir).unwrap()), Ino::ROOT)
}

fn open(dir: &Path) -> Arc<dyn Filesystem> {
    Volume::find(inner(dir), false).unwrap().open(&Asked(b"pass"), &Secrets::default()).unwrap()
}

fn mount(new: NewVolume) -> Mounted {
    let dir = tempfile::tempdir().unwrap();
    volume::init(&inner(dir.path()), new, &Asked(b"pass"), &Secrets::default(), None).unwrap();
    let tree = open(dir.path());
    Mounted { dir, tree }
}

impl Mounted {
    /// Forgets everything that is known.
    fn again(&mut self) {
        self.tree = open(self.dir.path());
    }
}

fn name(name: &str) -> &OsStr {
    OsStr::new(name)
}

/// A node that belongs to whoever runs the test.
fn new(kind: Kind) -> NewNode {
    let me = std::fs::metadata("/proc/self").unwrap();
    NewNode {
        kind,
        perm: Perm::from_mode(0o755),
        umask: 0,
        uid: me.uid(),
        gid: me.gid(),
        rdev: Default::default(),
    }
}

fn create(tree: &dyn Filesystem, dir: Ino, name: &[u8]) -> (Ino, Arc<dyn File>) {
    let (entry, file) =
        tree.create(dir, OsStr::from_bytes(name), &new(Kind::File), OpenFlags::READ_WRITE).unwrap();
    (entry.ino, file)
}

fn content(file: &dyn File) -> Vec<u8> {
    let mut all = Vec::new();
    let mut buf = vec![0; 10_000];
    loop {
        let len = file.read_at(&mut buf, all.len() as u64).unwrap();
        if len == 0 {
            return all;
        }
        all.extend_from_slice(&buf[..len]);
    }
}

fn set_size(tree: &dyn Filesystem, ino: Ino, size: u64) -> u64 {
    tree.setattr(ino, &SetAttr { size: Some(size), ..SetAttr::default() }).unwrap().size
}

fn names(tree: &dyn Filesystem, dir: Ino) -> Vec<OsString> {
    let mut names = Vec::new();
    let mut position = 0;
    loop {
        let before = position;
        let sink: &mut veduta_api::DirSink<'_> = &mut |entry| {
            position = entry.next;
            names.push(entry.name.to_owned());
            ControlFlow::Continue(())
        };
        tree.readdir(dir, before, sink).unwrap();
        if position == before {
            names.sort();
            return names;
        }
    }
}

fn pattern(len: usize, seed: u64) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    (0..len)
        .map(|_| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            (state >> 56) as u8
        })
        .collect()
}

#[test]
fn a_file_can_be_cut_and_grown_at_every_offset_of_a_block() {
    for (kind, volume) in kinds() {
        let block = match volume {
            NewVolume::Gocryptfs { .. } => 4096,
            NewVolume::V1 { format, .. } => format.block - format.mac - format.random,
        };
        let mounted = mount(volume);
        let (ino, file) = create(&*mounted.tree, Ino::ROOT, b"file");
        let full = pattern(2 * block + 7, 1);
        // At every offset if asked to, else at those where something could change, and some more.
        let edges = [0, 1, 2, 15, 16, 17, 31, 32, 33, block - 17, block - 16, block - 1, block];
        let step = if std::env::var_os("ENCFS_EVERY").is_some() { 1 } else { block / 40 };
        let offsets: Vec<usize> = edges.into_iter().chain((0..block).step_by(step)).collect();
        for cut in offsets.into_iter().map(|offset| block + offset) {
            assert_eq!(file.write_at(&full, 0), Ok(full.len()));
            assert_eq!(set_size(&*mounted.tree, ino, cut as u64), cut as u64, "{kind}");
            assert!(content(&*file) == full[..cut], "{kind}: cut at {cut}");
            let mut grown = full[..cut].to_vec();
            grown.resize(3 * block + cut % 5, 0);
            assert_eq!(set_size(&*mounted.tree, ino, grown.len() as u64), grown.len() as u64, "{kind}");
            assert!(content(&*file) == grown, "{kind}: grown from {cut}");
        }
    }
}

#[test]
fn random_operations_agree_with_a_model_also_after_the_volume_was_closed() {
    let rounds: u64 = std::env::var("ENCFS_SEEDS").ok().and_then(|seeds| seeds.parse().ok()).unwrap_or(1);
    for (kind, volume) in kinds() {
        for seed in 1..=rounds {
            let mut mounted = mount(volume);
            let (ino, mut file) = create(&*mounted.tree, Ino::ROOT, b"file");
            let mut model: Vec<u8> = Vec::new();
            let mut numbers = pattern(8 * 400, seed)
                .chunks(8)
                .map(|chunk| u64::from_le_bytes(chunk.try_into().unwrap()))
                .collect::<Vec<_>>()
                .into_iter();
            let mut ino = ino;
            let mut draw = |below: u64| numbers.next().unwrap_or(7) % below;
            for step in 0..100 {
                let at = draw(60_000) as usize;
                match draw(8) {
                    0..=2 => {
                        let data =
                            pattern(1 + draw(if step % 10 == 0 { 300_000 } else { 9000 }) as usize, step);
                        assert_eq!(file.write_at(&data, at as u64), Ok(data.len()));
                        model.resize(model.len().max(at + data.len()), 0);
                        model[at..at + data.len()].copy_from_slice(&data);
                    }
                    3 => {
                        set_size(&*mounted.tree, ino, at as u64);
                        model.resize(at, 0);
                    }
                    4 => {
                        let end = (at + 10_000).min(model.len());
                        match file.allocate(Allocate::PunchHole, at as u64, 10_000) {
                            Ok(()) if at < end => model[at..end].fill(0),
                            Ok(()) => {}
                            Err(errno) => assert_eq!(errno, Errno::EOPNOTSUPP),
                        }
                    }
                    5 => {
                        mounted.again();
                        ino = mounted.tree.lookup(Ino::ROOT, OsStr::new("file")).unwrap().ino;
                        file = mounted.tree.open(ino, OpenFlags::READ_WRITE).unwrap();
                    }
                    6 => {
                        let mut buf = vec![0; 5000];
                        let len = file.read_at(&mut buf, at as u64).unwrap();
                        let expected = model.get(at..).unwrap_or_default();
                        assert!(
                            buf[..len] == expected[..expected.len().min(5000)],
                            "{kind}, seed {seed}, step {step}"
                        );
                    }
                    _ => {
                        let mut at = 0;
                        // Whatever is called a hole reads as zeros.
                        while let Ok(hole) = file.seek(Seek::Hole, at) {
                            let data = file.seek(Seek::Data, hole).unwrap_or(model.len() as u64);
                            assert!(model[hole as usize..data as usize].iter().all(|byte| *byte == 0));
                            at = data;
                        }
                    }
                }
                assert_eq!(
                    mounted.tree.getattr(ino).unwrap().size,
                    model.len() as u64,
                    "{kind}, seed {seed}, step {step}"
                );
            }
            assert!(content(&*file) == model, "{kind}, seed {seed}");
        }
    }
}

#[test]
fn names_of_all_lengths_and_bytes_are_listed_and_found() {
    for (kind, volume) in kinds() {
        let mut mounted = mount(volume);
        let mut made = Vec::new();
        for len in (1..=255).step_by(if kind == "gcm" { 1 } else { 23 }) {
            let name: Vec<u8> =
                (0..len).map(|at| [b'a', 0xff, b'\n', b' ', 0x80, b'.', b'x'][(at + len) % 7]).collect();
            if matches!(&name[..], b"." | b"..") {
                continue;
            }
            match mounted.tree.mkdir(Ino::ROOT, OsStr::from_bytes(&name), &new(Kind::Directory)) {
                Ok(entry) => {
                    create(&*mounted.tree, entry.ino, &name);
                    made.push(OsString::from(OsStr::from_bytes(&name)));
                }
                Err(errno) => assert!(errno == Errno::ENAMETOOLONG && len > 150, "{kind}: {len}: {errno}"),
            }
        }
        made.sort();
        mounted.again();
        assert_eq!(names(&*mounted.tree, Ino::ROOT), made, "{kind}");
        for name in &made {
            let dir = mounted.tree.lookup(Ino::ROOT, name).unwrap();
            assert_eq!(names(&*mounted.tree, dir.ino), std::slice::from_ref(name), "{kind}");
            mounted.tree.unlink(dir.ino, name).unwrap();
            mounted.tree.rmdir(Ino::ROOT, name).unwrap();
        }
        let left: Vec<_> =
            std::fs::read_dir(mounted.dir.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        assert!(left.len() <= 2, "{kind}: nothing stays behind: {left:?}");
    }
}

#[test]
fn what_moves_keeps_all_that_is_below() {
    for (kind, volume) in kinds() {
        let mut mounted = mount(volume);
        let tree = &mounted.tree;
        let dir = |parent, called: &str| tree.mkdir(parent, name(called), &new(Kind::Directory)).unwrap().ino;
        let a = dir(Ino::ROOT, "a");
        let b = dir(a, "b");
        let deep = dir(b, "deep");
        let (open_ino, open_file) = create(&**tree, deep, b"open");
        open_file.write_at(b"before", 0).unwrap();
        create(&**tree, b, b"closed").1.write_at(b"closed", 0).unwrap();
        let target = dir(Ino::ROOT, "target");
        tree.rename(Ino::ROOT, name("a"), target, name("moved"), RenameFlags::default()).unwrap();
        // Nodes that were known before are where they were moved to.
        open_file.write_at(b"after!", 6).unwrap();
        assert_eq!(names(&**tree, deep), ["open"], "{kind}");
        assert_eq!(tree.getattr(open_ino).unwrap().size, 12);
        create(&**tree, deep, b"new");
        assert_eq!(
            tree.rename(target, name("moved"), deep, name("x"), RenameFlags::default()),
            Err(Errno::EINVAL),
            "{kind}"
        );
        assert_eq!(tree.rmdir(target, name("moved")), Err(Errno::ENOTEMPTY), "{kind}");
        // Over an empty directory, and not over another.
        dir(Ino::ROOT, "empty");
        assert_eq!(
            tree.rename(target, name("moved"), Ino::ROOT, name("empty"), RenameFlags::default()),
            Ok(()),
            "{kind}"
        );
        let full = dir(Ino::ROOT, "full");
        dir(full, "something");
        assert_eq!(
            tree.rename(Ino::ROOT, name("empty"), Ino::ROOT, name("full"), RenameFlags::default()),
            Err(Errno::ENOTEMPTY),
            "{kind}"
        );
        drop(open_file);
        mounted.again();
        let tree = &mounted.tree;
        let below = |parent, called: &str| tree.lookup(parent, name(called)).unwrap().ino;
        let b = below(below(Ino::ROOT, "empty"), "b");
        let read = |ino| content(&*tree.open(ino, OpenFlags::READ).unwrap());
        assert_eq!(read(below(b, "closed")), b"closed", "{kind}");
        let deep = below(b, "deep");
        assert_eq!(names(&**tree, deep), ["new", "open"], "{kind}");
        assert_eq!(read(below(deep, "open")), b"beforeafter!", "{kind}");
    }
}

#[test]
fn links_and_attributes_are_kept() {
    for (kind, volume) in kinds() {
        let mut mounted = mount(volume);
        let tree = &mounted.tree;
        let (ino, file) = create(&**tree, Ino::ROOT, b"file");
        file.write_at(b"content", 0).unwrap();
        match tree.link(ino, Ino::ROOT, OsStr::from_bytes(&[b'l'; 140])) {
            Ok(entry) => assert_eq!((entry.ino, entry.attr.nlink), (ino, 2), "{kind}"),
            Err(errno) => {
                assert!(errno == Errno::EPERM && matches!(kind, "paranoia" | "blowfish"), "{kind}: {errno}");
            }
        }
        for target in ["/absolute/target", "../relative", &"t".repeat(300)] {
            let link = format!("to{}", target.len());
            let entry = tree.symlink(Ino::ROOT, name(&link), name(target), &new(Kind::Symlink)).unwrap();
            assert_eq!(entry.attr.size, target.len() as u64, "{kind}");
            assert_eq!(tree.readlink(entry.ino).unwrap(), target, "{kind}");
        }
        for value in [&b""[..], b"v", &[0xff; 1000]] {
            match tree.setxattr(ino, name("user.note"), value, XattrMode::Set) {
                Ok(()) => assert_eq!(tree.getxattr(ino, name("user.note")).unwrap(), value, "{kind}"),
                Err(errno) => assert_eq!(errno, Errno::EOPNOTSUPP, "{kind}"),
            }
        }
        mounted.again();
        let entry = mounted.tree.lookup(Ino::ROOT, name("file")).unwrap();
        if mounted.tree.getxattr(entry.ino, name("user.note")).is_ok() {
            assert_eq!(mounted.tree.listxattr(entry.ino).unwrap(), ["user.note"], "{kind}");
        }
        assert_eq!(content(&*mounted.tree.open(entry.ino, OpenFlags::READ).unwrap()), b"content");
    }
}

#[test]
fn many_writers_of_one_file_do_not_tear_blocks() {
    for (kind, volume) in
        [("gcm", gocryptfs(Cipher::AesGcm, ENCRYPTED)), ("paranoia", encfs(v1::Format::PARANOIA))]
    {
        let mounted = mount(volume);
        let (ino, _) = create(&*mounted.tree, Ino::ROOT, b"file");
        const LEN: usize = 3001;
        std::thread::scope(|scope| {
            for writer in 0..6_usize {
                let tree = &mounted.tree;
                scope.spawn(move || {
                    let file = tree.open(ino, OpenFlags::READ_WRITE).unwrap();
                    let mut buf = [0; LEN];
                    for round in 0..20 {
                        let at = ((round * 6 + writer) * LEN) as u64;
                        file.write_at(&[writer as u8 + 1; LEN], at).unwrap();
                        assert_eq!(file.read_at(&mut buf, at), Ok(LEN));
                        assert!(buf.iter().all(|byte| *byte == writer as u8 + 1));
                    }
                });
            }
        });
        let all = content(&*mounted.tree.open(ino, OpenFlags::READ).unwrap());
        let expected: Vec<u8> = (0..120).flat_map(|slot| [(slot % 6) as u8 + 1; LEN]).collect();
        assert!(all == expected, "{kind}");
    }
}

fn stored_file(dir: &Path) -> std::path::PathBuf {
    let files = std::fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path());
    files.max_by_key(|path| std::fs::metadata(path).unwrap().len()).unwrap()
}

#[test]
fn a_corrupt_block_is_an_error_by_itself_and_is_named() {
    for (kind, volume, header, cipher_block, block) in [
        ("gcm", gocryptfs(Cipher::AesGcm, ENCRYPTED), 18, 4128, 4096),
        ("paranoia", encfs(v1::Format::PARANOIA), 8, 1024, 1016),
    ] {
        let mut mounted = mount(volume);
        let (_, file) = create(&*mounted.tree, Ino::ROOT, b"file");
        let data = pattern(5 * block + 100, 3);
        file.write_at(&data, 0).unwrap();
        drop(file);
        let path = stored_file(mounted.dir.path());
        let mut bytes = std::fs::read(&path).unwrap();
        bytes[header + 2 * cipher_block + 500] ^= 1;
        std::fs::write(&path, bytes).unwrap();
        mounted.again();
        let ino = mounted.tree.lookup(Ino::ROOT, OsStr::new("file")).unwrap().ino;
        let file = mounted.tree.open(ino, OpenFlags::READ).unwrap();
        for number in 0..6 {
            let mut buf = vec![0; block];
            let result = file.read_at(&mut buf, (number * block) as u64);
            if number == 2 {
                assert_eq!(result, Err(Errno::EIO), "{kind}");
            } else {
                let len = result.unwrap();
                assert!(buf[..len] == data[number * block..][..len], "{kind}: block {number}");
            }
        }
        let volume = Volume::find(inner(mounted.dir.path()), false).unwrap();
        let checked = volume.check(&Asked(b"pass"), &Secrets::default(), &mut |_| ()).unwrap();
        assert!(!checked.problems.is_empty());
        for (path, problem) in &checked.problems {
            assert_eq!(path, "/file", "{kind}");
            assert!(problem.contains("block 2 "), "{kind}: {problem}");
        }
    }
}

/// Somebody who forgot the word, or gave it where it does not belong, was told to make a volume.
#[test]
fn a_directory_of_the_other_direction_is_told_from_one_without_a_volume() {
    for (reverse, other) in
        [(false, ".gocryptfs.reverse.conf: its files are plain"), (true, "gocryptfs.conf: without")]
    {
        let dir = tempfile::tempdir().unwrap();
        let message = |reverse| Volume::find(inner(dir.path()), reverse).err().unwrap().message;
        assert!(message(reverse).contains("veduta encfs init"), "{}", message(reverse));
        let cipher = if reverse { Cipher::AesGcm } else { Cipher::AesSiv };
        let format = Format { cipher, names: ENCRYPTED, hkdf: true };
        let new = NewVolume::Gocryptfs { format, log_n: 10, reverse: !reverse };
        volume::init(&inner(dir.path()), new, &Asked(b"pass"), &Secrets::default(), None).unwrap();
        assert!(message(reverse).contains(other), "{}", message(reverse));
        assert!(!message(reverse).contains("init"), "{}", message(reverse));
        assert!(Volume::find(inner(dir.path()), !reverse).is_ok());
    }
}

#[test]
fn a_wrong_password_is_not_called_damage() {
    for volume in [gocryptfs(Cipher::AesGcm, ENCRYPTED), encfs(v1::Format::STANDARD)] {
        let mounted = mount(volume);
        let find = || Volume::find(inner(mounted.dir.path()), false).unwrap();
        let error = find().open(&Asked(b"wrong"), &Secrets::default()).err().unwrap();
        assert_eq!((error.errno, error.message.as_str()), (Errno::EACCES, "the password is wrong"));
        find().change_password(&Asked(b"pass"), &Secrets::default(), &Secrets::default(), None).unwrap();
        assert!(find().open(&Asked(b"pass"), &Secrets::default()).is_ok());
        let checked = find().check(&Asked(b"pass"), &Secrets::default(), &mut |_| ()).unwrap();
        assert!(checked.problems.is_empty(), "{checked:?}");
        let again = volume::init(&inner(mounted.dir.path()), volume, &Asked(b"x"), &Secrets::default(), None);
        assert!(again.unwrap_err().message.contains("empty"));
    }
}

#[test]
fn the_master_key_opens_a_volume_whose_password_is_forgotten() {
    let dir = tempfile::tempdir().unwrap();
    let new = gocryptfs(Cipher::AesGcm, ENCRYPTED);
    let key =
        volume::init(&inner(dir.path()), new, &Asked(b"pass"), &Secrets::default(), None).unwrap().unwrap();
    let key: &'static str = Box::leak(key.as_str().to_owned().into_boxed_str());
    let master = Secrets { master_key: true, ..Secrets::default() };
    let find = || Volume::find(inner(dir.path()), false).unwrap();
    create(&*find().open(&Asked(key.as_bytes()), &master).unwrap(), Ino::ROOT, b"file")
        .1
        .write_at(b"x", 0)
        .unwrap();
    assert!(find().open(&Asked(b"no key"), &master).is_err());
    // Even the configuration can be made again.
    std::fs::remove_file(dir.path().join("gocryptfs.conf")).unwrap();
    let asked = Asked(key.as_bytes());
    assert_eq!(
        volume::init(&inner(dir.path()), new, &asked, &Secrets::default(), Some(&master)).unwrap(),
        None
    );
    let tree = find().open(&asked, &Secrets::default()).unwrap();
    assert_eq!(names(&*tree, Ino::ROOT), ["file"]);
}
