//! Random bytes from the kernel. Nonces are fetched in advance, many at a time: a system call for each block would cost as much
//! as encrypting it.

use std::cell::RefCell;

use veduta_api::{Errno, Result};

const AHEAD: usize = 1024;

struct Ahead {
    bytes: [u8; AHEAD],
    used: usize,
}

thread_local! {
    static NONCES: RefCell<Ahead> = const { RefCell::new(Ahead { bytes: [0; AHEAD], used: AHEAD }) };
}

/// Fills `out` for a secret. `EIO` if the kernel has none to give.
pub(crate) fn secret(out: &mut [u8]) -> Result<()> {
    getrandom::fill(out).map_err(|_| Errno::EIO)
}

/// Fills `out`, of at most [`AHEAD`] bytes, for a nonce, which is no secret. No byte is given out twice.
pub(crate) fn nonce(out: &mut [u8]) -> Result<()> {
    NONCES.with_borrow_mut(|ahead| {
        if out.len() > AHEAD - ahead.used {
            secret(&mut ahead.bytes)?;
            ahead.used = 0;
        }
        let end = ahead.used + out.len();
        out.copy_from_slice(ahead.bytes.get(ahead.used..end).ok_or(Errno::EINVAL)?);
        ahead.used = end;
        Ok(())
    })
}
