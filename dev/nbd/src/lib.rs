//! `nbd`: serves a disk to whoever speaks the NBD protocol (doc/proto.md of the NBD project): QEMU, nbd-client, libnbd's programs.
//!
//! *Fixed newstyle*: the server greets, the client asks for options one by one and with the last of them enters *transmission*: requests of 28
//! bytes, each with an answer of 16 bytes before its data. All numbers are big-endian. With structured replies the
//! client may also ask which ranges are holes (`base:allocation`). [`session`] speaks with one client over any stream; it ends when the client
//! does.
//!
//! # Limits
//!
//! No TLS: a Unix socket's permissions say who may come. Requests of one client are served one after the other, several clients at the same
//! time. One export, under any name.

#![forbid(unsafe_code)]

use std::io::{BufReader, Read, Write};

use veduta_api::{Disk, Errno};

const GREETING: u64 = 0x4e42_444d_4147_4943;
const OPTION: u64 = 0x4948_4156_454f_5054;
const OPTION_REPLY: u64 = 0x0003_e889_0455_65a9;
const REQUEST: u32 = 0x2560_9513;
const SIMPLE: u32 = 0x6744_6698;
const STRUCTURED: u32 = 0x668e_33ef;

const OPT_EXPORT_NAME: u32 = 1;
const OPT_ABORT: u32 = 2;
const OPT_LIST: u32 = 3;
const OPT_INFO: u32 = 6;
const OPT_GO: u32 = 7;
const OPT_STRUCTURED: u32 = 8;
const OPT_LIST_META: u32 = 9;
const OPT_SET_META: u32 = 10;

const REP_ACK: u32 = 1;
const REP_SERVER: u32 = 2;
const REP_INFO: u32 = 3;
const REP_META: u32 = 4;
const REP_UNSUPPORTED: u32 = 0x8000_0001;
const REP_INVALID: u32 = 0x8000_0003;

const CMD_READ: u16 = 0;
const CMD_WRITE: u16 = 1;
const CMD_DISCONNECT: u16 = 2;
const CMD_FLUSH: u16 = 3;
const CMD_TRIM: u16 = 4;
const CMD_WRITE_ZEROES: u16 = 6;
const CMD_BLOCK_STATUS: u16 = 7;
const FLAG_FUA: u16 = 1;
const FLAG_ONE_EXTENT: u16 = 8;

/// Flags of an export: has flags, flush, FUA, trim, zeroes, several connections; read-only and rotational are added.
const FLAGS: u16 = 1 | 4 | 8 | 32 | 64 | 256;
/// Bytes of one request; what every client may count on.
const LARGEST: u32 = 32 << 20;
/// Bytes of an option.
const MAX_OPTION: u32 = 64 << 10;
/// Extents in one answer.
const MAX_EXTENTS: usize = 1024;
const ALLOCATION: &[u8] = b"base:allocation";

/// Why a session ended before the client wanted it to: the stream failed, or the client does not speak the protocol.
pub type Ended = std::io::Error;

/// Speaks with one client until it leaves. What it wrote is flushed before this returns.
pub fn session(disk: &Disk, from: impl Read, mut to: impl Write) -> Result<(), Ended> {
    let mut from = BufReader::with_capacity(64 << 10, from);
    let served = match negotiate(disk, &mut from, &mut to)? {
        Some(mode) => transmit(disk, &mut from, &mut to, mode),
        None => return Ok(()),
    };
    if !disk.is_read_only() {
        disk.flush().map_err(|errno| std::io::Error::from_raw_os_error(errno as i32))?;
    }
    served
}

/// What was agreed upon.
#[derive(Clone, Copy, Default)]
struct Mode {
    structured: bool,
    allocation: bool,
}

fn wrong(what: &str) -> Ended {
    std::io::Error::new(std::io::ErrorKind::InvalidData, format!("the client does not speak NBD: {what}"))
}

fn numbers<const N: usize>(from: &mut impl Read) -> Result<[u8; N], Ended> {
    let mut bytes = [0; N];
    from.read_exact(&mut bytes)?;
    Ok(bytes)
}

fn u32_of(from: &mut impl Read) -> Result<u32, Ended> {
    Ok(u32::from_be_bytes(numbers(from)?))
}

fn flags_of(disk: &Disk) -> u16 {
    let geometry = disk.geometry();
    FLAGS | if geometry.read_only { 2 } else { 0 } | if geometry.rotational { 16 } else { 0 }
}

/// `None`: the client left.
fn negotiate(disk: &Disk, from: &mut impl Read, to: &mut impl Write) -> Result<Option<Mode>, Ended> {
    // Fixed newstyle, and no padding of 124 zeros.
    let greeting = [&GREETING.to_be_bytes()[..], &OPTION.to_be_bytes(), &3_u16.to_be_bytes()].concat();
    to.write_all(&greeting)?;
    to.flush()?;
    let client = u32_of(from)?;
    if client & !3 != 0 || client & 1 == 0 {
        return Err(wrong("unknown flags"));
    }
    let mut mode = Mode::default();
    loop {
        if u64::from_be_bytes(numbers(from)?) != OPTION {
            return Err(wrong("an option without its mark"));
        }
        let (option, len) = (u32_of(from)?, u32_of(from)?);
        if len > MAX_OPTION {
            return Err(wrong("an option of this length"));
        }
        let mut data = vec![0; len as usize];
        from.read_exact(&mut data)?;
        let mut reply = |kind: u32, data: &[u8]| answer_option(to, option, kind, data);
        match option {
            OPT_EXPORT_NAME => {
                to.write_all(&disk.size().to_be_bytes())?;
                to.write_all(&flags_of(disk).to_be_bytes())?;
                if client & 2 == 0 {
                    to.write_all(&[0; 124])?;
                }
                to.flush()?;
                return Ok(Some(mode));
            }
            OPT_ABORT => {
                reply(REP_ACK, &[])?;
                return Ok(None);
            }
            OPT_LIST => {
                // One export, without a name.
                reply(REP_SERVER, &[0; 4])?;
                reply(REP_ACK, &[])?;
            }
            OPT_INFO | OPT_GO => {
                let export =
                    [&0_u16.to_be_bytes()[..], &disk.size().to_be_bytes(), &flags_of(disk).to_be_bytes()];
                reply(REP_INFO, &export.concat())?;
                // Smallest, preferred and largest request.
                let sizes = [1, 4096, LARGEST].map(u32::to_be_bytes).concat();
                reply(REP_INFO, &[&3_u16.to_be_bytes()[..], &sizes].concat())?;
                reply(REP_ACK, &[])?;
                if option == OPT_GO {
                    return Ok(Some(mode));
                }
            }
            OPT_STRUCTURED if data.is_empty() => {
                mode.structured = true;
                reply(REP_ACK, &[])?;
            }
            OPT_LIST_META | OPT_SET_META if mode.structured => {
                let Some(queries) = queries(&data) else {
                    reply(REP_INVALID, &[])?;
                    continue;
                };
                let every = option == OPT_LIST_META && queries.is_empty();
                let asked = every
                    || queries
                        .iter()
                        .any(|query| *query == ALLOCATION || (option == OPT_LIST_META && *query == b"base:"));
                if asked {
                    reply(REP_META, &[&1_u32.to_be_bytes()[..], ALLOCATION].concat())?;
                }
                if option == OPT_SET_META {
                    mode.allocation = asked;
                }
                reply(REP_ACK, &[])?;
            }
            OPT_STRUCTURED | OPT_LIST_META | OPT_SET_META => reply(REP_INVALID, &[])?,
            _ => reply(REP_UNSUPPORTED, &[])?,
        }
    }
}

fn answer_option(to: &mut impl Write, option: u32, kind: u32, data: &[u8]) -> Result<(), Ended> {
    let mut bytes = OPTION_REPLY.to_be_bytes().to_vec();
    for number in [option, kind, data.len() as u32] {
        bytes.extend(number.to_be_bytes());
    }
    bytes.extend(data);
    to.write_all(&bytes)?;
    to.flush()
}

/// The names of contexts that a client asks for: an export's name, a count, then each, all with their lengths in front.
fn queries(data: &[u8]) -> Option<Vec<&[u8]>> {
    let (_, mut rest) = counted(data)?;
    let count = u32::from_be_bytes(*rest.first_chunk()?);
    rest = rest.get(4..)?;
    let mut queries = Vec::new();
    for _ in 0..count {
        let (query, behind) = counted(rest)?;
        queries.push(query);
        rest = behind;
    }
    Some(queries)
}

fn counted(data: &[u8]) -> Option<(&[u8], &[u8])> {
    let len = u32::from_be_bytes(*data.first_chunk()?) as usize;
    Some((data.get(4..)?.get(..len)?, data.get(4 + len..)?))
}

struct Request {
    flags: u16,
    kind: u16,
    cookie: [u8; 8],
    offset: u64,
    len: u32,
}

fn transmit(disk: &Disk, from: &mut impl Read, to: &mut impl Write, mode: Mode) -> Result<(), Ended> {
    let mut buf = Vec::new();
    loop {
        let mark = match u32_of(from) {
            // A client that just goes.
            Err(error) if error.kind() == std::io::ErrorKind::UnexpectedEof => return Ok(()),
            mark => mark?,
        };
        if mark != REQUEST {
            return Err(wrong("a request without its mark"));
        }
        let request = Request {
            flags: u16::from_be_bytes(numbers(from)?),
            kind: u16::from_be_bytes(numbers(from)?),
            cookie: numbers(from)?,
            offset: u64::from_be_bytes(numbers(from)?),
            len: u32_of(from)?,
        };
        if request.kind == CMD_DISCONNECT {
            return Ok(());
        }
        if request.kind == CMD_WRITE {
            if request.len > LARGEST {
                return Err(wrong("a write of this length"));
            }
            buf.resize(request.len as usize, 0);
            from.read_exact(&mut buf)?;
        }
        match request.kind {
            CMD_READ => read(disk, &request, to, mode, &mut buf)?,
            CMD_BLOCK_STATUS => status(disk, &request, to, mode)?,
            _ => {
                let done = change(disk, &request, &buf);
                acknowledge(to, &request, mode, done)?;
            }
        }
        to.flush()?;
    }
}

fn change(disk: &Disk, request: &Request, buf: &[u8]) -> Result<(), Errno> {
    let (offset, len) = (request.offset, u64::from(request.len));
    match request.kind {
        CMD_WRITE => disk.write_at(buf, offset)?,
        CMD_FLUSH => return if disk.is_read_only() { Ok(()) } else { disk.flush() },
        CMD_TRIM => match disk.discard(offset, len) {
            // A trim is a hint.
            Err(Errno::EOPNOTSUPP) => {}
            done => done?,
        },
        CMD_WRITE_ZEROES => disk.write_zeroes(offset, len)?,
        _ => return Err(Errno::EINVAL),
    }
    if request.flags & FLAG_FUA != 0 { disk.flush() } else { Ok(()) }
}

/// The protocol has few errors, with the numbers of Linux.
fn error_number(errno: Errno) -> u32 {
    match errno {
        Errno::EPERM | Errno::EROFS => 1,
        Errno::ENOMEM => 12,
        Errno::EINVAL => 22,
        Errno::ENOSPC | Errno::EFBIG => 28,
        Errno::EOPNOTSUPP => 95,
        _ => 5,
    }
}

fn acknowledge(
    to: &mut impl Write,
    request: &Request,
    mode: Mode,
    done: Result<(), Errno>,
) -> Result<(), Ended> {
    match (done, mode.structured) {
        (Err(errno), true) => {
            let error = [&error_number(errno).to_be_bytes()[..], &[0; 2]].concat();
            // An error, which is the last chunk.
            to.write_all(&chunk(request, (1 << 15) + 1, &error))
        }
        (done, _) => to.write_all(&simple(request, done)),
    }
}

fn simple(request: &Request, done: Result<(), Errno>) -> [u8; 16] {
    let mut bytes = [0; 16];
    bytes[..4].copy_from_slice(&SIMPLE.to_be_bytes());
    bytes[4..8].copy_from_slice(&done.map_or_else(error_number, |()| 0).to_be_bytes());
    bytes[8..].copy_from_slice(&request.cookie);
    bytes
}

/// A structured reply of one chunk.
fn chunk(request: &Request, kind: u16, data: &[u8]) -> Vec<u8> {
    let mut bytes = STRUCTURED.to_be_bytes().to_vec();
    bytes.extend(1_u16.to_be_bytes());
    bytes.extend(kind.to_be_bytes());
    bytes.extend(request.cookie);
    bytes.extend((data.len() as u32).to_be_bytes());
    bytes.extend(data);
    bytes
}

fn read(
    disk: &Disk,
    request: &Request,
    to: &mut impl Write,
    mode: Mode,
    buf: &mut Vec<u8>,
) -> Result<(), Ended> {
    if request.len > LARGEST || request.len == 0 {
        return acknowledge(to, request, mode, Err(Errno::EINVAL));
    }
    // Header and data go out together.
    let head = if mode.structured { 28 } else { 16 };
    buf.resize(head + request.len as usize, 0);
    if let Err(errno) = disk.read_at(&mut buf[head..], request.offset) {
        return acknowledge(to, request, mode, Err(errno));
    }
    if mode.structured {
        let mut header = chunk(request, 1, &request.offset.to_be_bytes());
        header[16..20].copy_from_slice(&(request.len + 8).to_be_bytes());
        buf[..28].copy_from_slice(&header);
    } else {
        buf[..16].copy_from_slice(&simple(request, Ok(())));
    }
    to.write_all(buf)
}

/// Which parts of a range are holes that read as zeros (3), and which have data (0).
fn status(disk: &Disk, request: &Request, to: &mut impl Write, mode: Mode) -> Result<(), Ended> {
    let end = request.offset.checked_add(u64::from(request.len)).filter(|end| *end <= disk.size());
    let Some(end) = end.filter(|_| mode.allocation && request.len > 0) else {
        return acknowledge(to, request, mode, Err(Errno::EINVAL));
    };
    let limit = if request.flags & FLAG_ONE_EXTENT != 0 { 1 } else { MAX_EXTENTS };
    let mut extents: Vec<(u32, u32)> = Vec::new();
    let mut at = request.offset;
    while at < end && extents.len() < limit {
        let data = match disk.next_data(at) {
            Ok(data) => data.map_or(end..end, |data| data.start.min(end)..data.end.min(end)),
            Err(errno) => return acknowledge(to, request, mode, Err(errno)),
        };
        let (stop, kind) = if data.start > at { (data.start, 3) } else { (data.end, 0) };
        match extents.last_mut() {
            Some((len, last)) if *last == kind => *len += (stop - at) as u32,
            _ => extents.push(((stop - at) as u32, kind)),
        }
        at = stop;
    }
    let mut bytes = 1_u32.to_be_bytes().to_vec();
    for (len, kind) in extents {
        bytes.extend(len.to_be_bytes());
        bytes.extend(kind.to_be_bytes());
    }
    to.write_all(&chunk(request, 5, &bytes))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_contexts_are_taken_apart_and_bad_ones_refused() {
        let data = b"\0\0\0\x01x\0\0\0\x02\0\0\0\x03a:b\0\0\0\0";
        assert_eq!(queries(data), Some(vec![&b"a:b"[..], b""]));
        assert_eq!(queries(&data[..12]), None);
        assert_eq!(queries(b"\xff\xff\xff\xff"), None);
    }
}
