//! A server that lies: whatever it says, errors are errors, and nobody waits for ever.

use std::ffi::OsStr;
use std::ops::ControlFlow;
use std::sync::Arc;
use std::time::{Duration, Instant};

use veduta_api::{Errno, Filesystem, Ino, Interrupt, NewNode, OpenFlags, Perm};
use veduta_tests::sftp::{LARGE, byte_at, lie, tree};
use veduta_tests::{Limits, exercise};

/// Alterations of replies: of the reply with this number (0 is the greeting), so much.
fn script(lies: &[(usize, [u8; 4])]) -> Vec<u8> {
    let mut script = vec![0; 4 * lies.iter().map(|(at, _)| at + 1).max().unwrap_or(0)];
    for (at, lie) in lies {
        script[4 * at..4 * at + 4].copy_from_slice(lie);
    }
    script
}

/// Replies of the mount itself: greeting, limits, real path, attributes.
const MOUNT: usize = 4;

fn mounted(lies: &[(usize, [u8; 4])]) -> Arc<dyn Filesystem> {
    tree(&script(lies), "timeout=0.5").expect("the mount itself is not lied to")
}

fn names(tree: &dyn Filesystem) -> Result<Vec<String>, Errno> {
    let mut names = Vec::new();
    tree.readdir(Ino::ROOT, 0, &mut |entry| {
        names.push(entry.name.to_string_lossy().into_owned());
        ControlFlow::Continue(())
    })?;
    Ok(names)
}

#[test]
fn an_honest_server_is_read() {
    let tree = mounted(&[]);
    assert_eq!(names(&*tree), Ok(vec!["a".into(), "d".into(), "l".into()]));
    let entry = tree.lookup(Ino::ROOT, OsStr::new("a")).unwrap();
    assert_eq!((entry.attr.size, entry.attr.uid, entry.attr.mtime.seconds), (LARGE, 7, 1_700_000_000));
    let file = tree.open(entry.ino, OpenFlags::READ).unwrap();
    let mut content = vec![0; LARGE as usize + 1000];
    let mut done = 0;
    // As the kernel does: one piece after another.
    while let Ok(count @ 1..) = file.read_at(&mut content[done..done + 1000], done as u64) {
        done += count;
    }
    assert_eq!(done as u64, LARGE);
    assert!(content[..done].iter().enumerate().all(|(at, byte)| *byte == byte_at(at as u64)));
    assert_eq!(tree.lookup(Ino::ROOT, OsStr::new("none")).map(|entry| entry.ino), Err(Errno::ENOENT));
    assert_eq!(exercise(&*tree, Limits::FUZZ).errors, 0);
    tree.unmount().unwrap();
}

#[test]
fn a_greeting_that_is_none_is_refused_with_a_sentence() {
    for (lie, words) in [
        ([lie::KIND, 0, 0, 77], "SFTP"),
        ([lie::LENGTH, 0, 0, 0x7f], "SFTP"),
        ([lie::SILENCE, 0, 0, 0], "nothing"),
        ([lie::END, 0, 0, 0], "ended"),
        ([lie::CUT, 0, 20, 0], "garbled"),
        ([lie::FLIP, 0, 8, 2], "version"),
    ] {
        let error = tree(&script(&[(0, lie)]), "timeout=0.5").map(drop).unwrap_err();
        assert!(error.message.contains(words), "{lie:?}: {}", error.message);
    }
}

#[test]
fn a_reply_that_nobody_asked_for_ends_the_connection() {
    for lie in [lie::NUMBER, lie::TWICE, lie::LENGTH] {
        let tree = mounted(&[(MOUNT, [lie, 0, 0, 0x11])]);
        // The first request has its reply, or not; what matters is that it ends, and that no other is answered with it.
        let _ = tree.lookup(Ino::ROOT, OsStr::new("a"));
        let start = Instant::now();
        while tree.lookup(Ino::ROOT, OsStr::new("none")).map(drop) != Err(Errno::ENOTCONN) {
            assert!(start.elapsed() < Duration::from_secs(5), "lie {lie}: the connection lives on");
        }
    }
}

#[test]
fn a_packet_that_makes_no_sense_is_an_error_of_that_request() {
    for (lie, errno) in [
        ([lie::CUT, 0, 12, 0], Errno::EPROTO),
        ([lie::KIND, 0, 0, 104], Errno::EPROTO),
        // No type of node.
        ([lie::FLIP, 0, 31, 0xff], Errno::EIO),
    ] {
        let tree = mounted(&[(MOUNT, lie)]);
        assert_eq!(tree.lookup(Ino::ROOT, OsStr::new("a")).map(drop), Err(errno), "{lie:?}");
        assert_eq!(tree.lookup(Ino::ROOT, OsStr::new("d")).map(drop), Ok(()), "{lie:?}");
    }
}

#[test]
fn a_listing_that_lies_about_its_length_is_an_error() {
    // The reply to OPENDIR is right; of the first READDIR, the count of names is the largest number.
    let tree = mounted(&[(MOUNT + 1, [lie::LARGEST, 0, 9, 0])]);
    assert_eq!(names(&*tree), Err(Errno::EPROTO));
    // What was asked for ahead at the same time may still end in that error; what is asked for afterwards is right.
    let again = || names(&*tree).map(|names| names.len()) == Ok(3);
    assert!((0..100).any(|_| again() || {
        std::thread::sleep(Duration::from_millis(50));
        false
    }));
}

#[test]
fn a_request_without_a_reply_ends_by_itself_and_by_an_interrupt() {
    let tree = mounted(&[(MOUNT, [lie::SILENCE, 0, 0, 0])]);
    assert_eq!(tree.lookup(Ino::ROOT, OsStr::new("a")).map(drop), Err(Errno::ETIMEDOUT));
    assert_eq!(tree.lookup(Ino::ROOT, OsStr::new("a")).map(drop), Ok(()));

    let tree = self::tree(&script(&[(MOUNT, [lie::SILENCE, 0, 0, 0])]), "timeout=600").unwrap();
    let interrupt = Interrupt::new();
    let raised = interrupt.clone();
    let start = Instant::now();
    let waiting = std::thread::spawn(move || {
        let _scope = raised.enter();
        tree.lookup(Ino::ROOT, OsStr::new("a")).map(drop)
    });
    interrupt.raise();
    assert_eq!(waiting.join().unwrap(), Err(Errno::EINTR));
    assert!(start.elapsed() < Duration::from_secs(60));
}

#[test]
fn a_write_that_failed_is_told_by_flush_and_by_sync() {
    let new = NewNode {
        kind: veduta_api::Kind::File,
        perm: Perm::from_mode(0o644),
        umask: 0,
        uid: 0,
        gid: 0,
        rdev: veduta_api::Device::default(),
    };
    // Only names that the server knows have attributes, so this opens what is there. OPEN, LSTAT, then the write.
    let tree = mounted(&[(MOUNT + 2, [lie::FLIP, 0, 12, 3])]);
    let (_, file) = tree.create(Ino::ROOT, OsStr::new("a"), &new, OpenFlags::READ_WRITE).unwrap();
    assert_eq!(file.write_at(b"lost", 0), Ok(4));
    assert_eq!(file.flush(), Err(Errno::EACCES));
    assert_eq!(file.write_at(b"more", 4), Err(Errno::EACCES), "and by writes that follow");
    assert_eq!(file.sync(false), Err(Errno::EACCES));
    assert_eq!(file.flush(), Ok(()), "once it was told by sync, it is told");
}

#[test]
fn more_data_than_was_asked_for_is_not_taken() {
    let tree = mounted(&[]);
    let entry = tree.lookup(Ino::ROOT, OsStr::new("d")).unwrap();
    let small = tree.lookup(entry.ino, OsStr::new("b")).unwrap();
    let file = tree.open(small.ino, OpenFlags::READ).unwrap();
    let mut buf = [0; 4];
    assert_eq!(file.read_at(&mut buf, 8), Ok(2), "what there is before the end");
    assert_eq!(file.read_at(&mut buf, u64::MAX - 2), Ok(0));
}
