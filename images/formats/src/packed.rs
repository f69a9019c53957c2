//! Compressed files without random access: gzip, xz and plain zstd. They are unpacked to a scratch file, in which zeros are
//! left out, and are read-only.

use std::io::{BufReader, Read};
use std::sync::Arc;
use std::time::Instant;

use veduta_api::{Errno, MountError, Report, Value};

use crate::store::Store;
use crate::{Failed, Files, Format};

/// Bytes; what is written at once, and left out if it is zeros.
const PIECE: usize = 64 << 10;
/// Unpacking that takes longer than this is said when it is done.
const LONG: std::time::Duration = std::time::Duration::from_secs(2);

/// Unpacks a whole file. The report says so.
pub(crate) fn unpack(
    store: &dyn Store,
    format: Format,
    files: &dyn Files,
    name: &str,
) -> Result<(Arc<dyn Store>, Report), MountError> {
    let scratch = files.scratch()?;
    let started = Instant::now();
    let packed = store.len().failed()?;
    let source = BufReader::with_capacity(1 << 20, Sequential { store, at: 0, len: packed });
    let bad = |error: &std::io::Error| {
        MountError::corrupt(format!("the {} file cannot be unpacked: {error}", format.name()))
    };
    let size = match format {
        Format::Gzip => copy(flate2::bufread::MultiGzDecoder::new(source), &*scratch, &bad)?,
        Format::Xz => copy(lzma_rust2::XzReader::new(source, true), &*scratch, &bad)?,
        _ => copy(
            zstd::stream::read::Decoder::with_buffer(source).map_err(|error| bad(&error))?,
            &*scratch,
            &bad,
        )?,
    };
    if started.elapsed() > LONG {
        tracing::warn!("{name}: unpacked to a scratch file of {size} bytes, to be read only");
    }
    let mut report = Report::new();
    report.put("format", format.name());
    report.put("packed_size", Value::Bytes(packed)).put("unpacked_size", Value::Bytes(size));
    report.put("access", "unpacked to a scratch file, read-only");
    Ok((scratch, report))
}

/// Copies everything, leaving out zeros.
fn copy(
    mut from: impl Read,
    scratch: &dyn Store,
    bad: &dyn Fn(&std::io::Error) -> MountError,
) -> Result<u64, MountError> {
    let mut piece = vec![0; PIECE];
    let mut at = 0;
    loop {
        let mut len = 0;
        while len < PIECE {
            match from.read(&mut piece[len..]) {
                Ok(0) => break,
                Ok(count) => len += count,
                Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
                Err(error) => return Err(bad(&error)),
            }
        }
        if piece[..len].iter().any(|byte| *byte != 0) {
            scratch.write_at(&piece[..len], at).map_err(no_room)?;
        }
        at += len as u64;
        if len < PIECE {
            scratch.set_len(at).map_err(no_room)?;
            return Ok(at);
        }
    }
}

fn no_room(errno: Errno) -> MountError {
    let hint = if errno == Errno::ENOSPC { "; TMPDIR names the directory that it is in" } else { "" };
    MountError::system(
        errno,
        format!("the scratch file to unpack to cannot be written: {}{hint}", errno.desc()),
    )
}

struct Sequential<'a> {
    store: &'a dyn Store,
    at: u64,
    len: u64,
}

impl Read for Sequential<'_> {
    fn read(&mut self, buf: &mut [u8]) -> std::io::Result<usize> {
        let len = (self.len - self.at).min(buf.len() as u64) as usize;
        self.store
            .read_at(&mut buf[..len], self.at)
            .map_err(|errno| std::io::Error::from_raw_os_error(errno as i32))?;
        self.at += len as u64;
        Ok(len)
    }
}
