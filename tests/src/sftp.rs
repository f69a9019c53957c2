//! A small SFTP server that lies: right replies about a tiny tree, of which some are altered.
//!
//! An alteration is four bytes: what is done, a position (two bytes), a value. The first four bytes of a script alter the first reply, and
//! so on; zeros alter nothing, and so does the end of the script.

use std::io::{Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::sync::Arc;

use veduta_api::{Filesystem, MountError};

/// What is done to a reply: the low four bits of the first byte of an alteration.
pub mod lie {
    /// The byte at the position is combined with the value.
    pub const FLIP: u8 = 1;
    /// The reply ends at the position.
    pub const CUT: u8 = 2;
    /// The length says something else: the value, in its highest byte.
    pub const LENGTH: u8 = 3;
    /// The reply has the number of no request.
    pub const NUMBER: u8 = 4;
    /// The reply comes twice.
    pub const TWICE: u8 = 5;
    /// The reply does not come.
    pub const SILENCE: u8 = 6;
    /// The reply is of another type.
    pub const KIND: u8 = 7;
    /// At the position stands the largest number.
    pub const LARGEST: u8 = 8;
    /// The connection ends.
    pub const END: u8 = 9;
}

/// A tree that is served by the liar, until it is unmounted or dropped. `options` are those of a mount.
pub fn tree(script: &[u8], options: &str) -> Result<Arc<dyn Filesystem>, MountError> {
    let failed = |error: std::io::Error| {
        MountError::system(veduta_api::Errno::EIO, format!("no pair of sockets: {error}"))
    };
    let (ours, theirs) = UnixStream::pair().map_err(failed)?;
    let script = script.to_vec();
    // It ends with the connection.
    std::thread::spawn(move || serve(theirs, &script));
    let output: OwnedFd = ours.try_clone().map_err(failed)?.into();
    veduta_sshfs::over(ours.into(), output, "/", options)
}

/// Bytes of the one large file.
pub const LARGE: u64 = 300_000;

/// What the large file holds at an offset.
pub fn byte_at(offset: u64) -> u8 {
    (offset % 251) as u8
}

fn serve(mut stream: UnixStream, script: &[u8]) {
    let mut listed = Vec::new();
    let mut alterations = script.chunks_exact(4);
    let mut head = [0; 4];
    while stream.read_exact(&mut head).is_ok() {
        let len = u32::from_be_bytes(head) as usize;
        let mut request = vec![0; len.min(1 << 20)];
        if stream.read_exact(&mut request).is_err() {
            return;
        }
        let Some(mut packet) = answer(&request, &mut listed) else { return };
        let alteration = alterations.next().unwrap_or(&[0; 4]);
        let [what, high, low, value] = [alteration[0], alteration[1], alteration[2], alteration[3]];
        let at = usize::from(u16::from_be_bytes([high, low])) % packet.len().max(1);
        match what & 15 {
            lie::FLIP => packet[at] ^= value,
            lie::CUT => {
                packet.truncate(at.max(5));
                let len = packet.len() as u32 - 4;
                packet[..4].copy_from_slice(&len.to_be_bytes());
            }
            lie::LENGTH => packet[0] = value,
            lie::NUMBER => packet[6] ^= 0x40,
            lie::TWICE => packet.extend_from_within(..),
            lie::SILENCE => continue,
            lie::KIND => packet[4] = value,
            lie::LARGEST => packet.iter_mut().skip(at).take(4).for_each(|byte| *byte = 255),
            lie::END => return,
            _ => {}
        }
        if stream.write_all(&packet).is_err() {
            return;
        }
    }
}

/// The string at the start of a request's fields, and the rest.
fn string(fields: &[u8]) -> Option<(&[u8], &[u8])> {
    let (len, rest) = fields.split_first_chunk()?;
    rest.split_at_checked(u32::from_be_bytes(*len) as usize)
}

fn put(out: &mut Vec<u8>, bytes: &[u8]) {
    out.extend_from_slice(&(bytes.len() as u32).to_be_bytes());
    out.extend_from_slice(bytes);
}

/// Mode and size of what a path or a handle names.
fn node(path: &[u8]) -> Option<(u32, u64)> {
    Some(match path {
        b"/" | b"/d" => (0o040_755, 4096),
        b"/a" => (0o100_644, LARGE),
        b"/d/b" => (0o100_600, 10),
        b"/l" => (0o120_777, 1),
        _ => return None,
    })
}

fn attrs(out: &mut Vec<u8>, (mode, size): (u32, u64)) {
    out.extend_from_slice(&15_u32.to_be_bytes());
    out.extend_from_slice(&size.to_be_bytes());
    for number in [7, 8, mode, 1_600_000_000, 1_700_000_000] {
        out.extend_from_slice(&number.to_be_bytes());
    }
}

/// The right reply. Handles are paths. `listed`: the directories that have been listed.
fn answer(request: &[u8], listed: &mut Vec<Vec<u8>>) -> Option<Vec<u8>> {
    let (&kind, rest) = request.split_first()?;
    let mut out = vec![0, 0, 0, 0, 0];
    if kind == 1 {
        out[4] = 2;
        out.extend_from_slice(&3_u32.to_be_bytes());
        for name in
            ["posix-rename@openssh.com", "statvfs@openssh.com", "fsync@openssh.com", "limits@openssh.com"]
        {
            put(&mut out, name.as_bytes());
            put(&mut out, b"1");
        }
        return Some(seal(out));
    }
    let (number, fields) = rest.split_at_checked(4)?;
    out.extend_from_slice(number);
    let (name, more) = string(fields)?;
    let found = node(name);
    let status = match (kind, found) {
        (3, _) => {
            out[4] = 102;
            put(&mut out, name);
            return Some(seal(out));
        }
        (11, Some(_)) => {
            listed.retain(|dir| dir != name);
            out[4] = 102;
            put(&mut out, name);
            return Some(seal(out));
        }
        (5, Some((_, size))) => {
            let (offset, len) = more.split_first_chunk()?;
            let (offset, len) = (u64::from_be_bytes(*offset), u32::from_be_bytes(*len.first_chunk()?));
            let end = size.min(offset.saturating_add(len.into()));
            if offset < end {
                out[4] = 103;
                put(&mut out, &(offset..end).map(byte_at).collect::<Vec<u8>>());
                return Some(seal(out));
            }
            1
        }
        (7 | 8 | 17, Some(found)) => {
            out[4] = 105;
            attrs(&mut out, found);
            return Some(seal(out));
        }
        (12, _) if listed.iter().any(|dir| dir == name) => 1,
        (12, _) => {
            listed.push(name.to_vec());
            let names: &[&[u8]] = if name == b"/" { &[b".", b"..", b"a", b"d", b"l"] } else { &[b".", b"b"] };
            out[4] = 104;
            out.extend_from_slice(&(names.len() as u32).to_be_bytes());
            for entry in names {
                put(&mut out, entry);
                put(&mut out, b"a line for people");
                let path = [if name == b"/" { b"" } else { name }, b"/", entry].concat();
                attrs(&mut out, node(&path).unwrap_or((0o040_755, 4096)));
            }
            return Some(seal(out));
        }
        (16 | 19, _) => {
            out[4] = 104;
            out.extend_from_slice(&1_u32.to_be_bytes());
            put(&mut out, if kind == 16 { name } else { b"a" });
            put(&mut out, b"");
            out.extend_from_slice(&0_u32.to_be_bytes());
            return Some(seal(out));
        }
        (200, _) if name == b"limits@openssh.com" || name == b"statvfs@openssh.com" => {
            out[4] = 201;
            let words =
                if name.starts_with(b"l") { [262_144, 261_120, 65_536, 9] } else { [4096, 4096, 99, 9] };
            words.iter().chain(&[9; 7]).for_each(|word: &u64| out.extend_from_slice(&word.to_be_bytes()));
            return Some(seal(out));
        }
        (4 | 6 | 9 | 10 | 13 | 14 | 15 | 18 | 20 | 200, _) => 0,
        _ => 2,
    };
    out[4] = 101;
    out.extend_from_slice(&u32::to_be_bytes(status));
    put(&mut out, b"");
    put(&mut out, b"");
    Some(seal(out))
}

fn seal(mut packet: Vec<u8>) -> Vec<u8> {
    let len = packet.len() as u32 - 4;
    packet[..4].copy_from_slice(&len.to_be_bytes());
    packet
}
