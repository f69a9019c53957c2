//! Content: a header with a random number of the file, if the volume has such, then blocks of one size of ciphertext. The last one, if it
//! is shorter, is encrypted in the mode for short data. A block may begin with a checksum and random bytes.

use std::sync::Arc;

use veduta_api::Result;

use super::cipher::Key;
use super::config::Format;
use crate::content::{Codec, Corrupt, FileId, Layout};
use crate::random;

const HEADER: usize = 8;

/// The cipher of a volume, with its key.
pub(crate) struct Content {
    pub(crate) key: Arc<Key>,
    pub(crate) format: Format,
}

impl Content {
    /// What the number of a block is mixed with.
    fn seed(number: u64, id: &FileId) -> u64 {
        let FileId([a, b, c, d, e, f, g, h, ..]) = *id;
        number ^ u64::from_be_bytes([a, b, c, d, e, f, g, h])
    }

    fn encrypt(&self, data: &mut [u8], seed: u64) {
        if data.len() == self.format.block {
            self.key.encrypt_whole(data, seed);
        } else {
            self.key.encrypt_stream(data, seed);
        }
    }

    fn decrypt(&self, data: &mut [u8], seed: u64) {
        if data.len() == self.format.block {
            self.key.decrypt_whole(data, seed);
        } else {
            self.key.decrypt_stream(data, seed);
        }
    }

    /// The checksum of random bytes and content, as stored: the lowest byte first.
    fn checksum(&self, data: &[u8]) -> [u8; 8] {
        self.key.mac64(data, None).to_le_bytes()
    }
}

impl Codec for Content {
    fn layout(&self) -> Layout {
        let Format { block, mac, random, holes, unique_iv, .. } = self.format;
        Layout {
            header: if unique_iv { HEADER as u64 } else { 0 },
            block: (block - mac - random) as u64,
            overhead: (mac + random) as u64,
            holes,
        }
    }

    fn make_header(&self, external: u64) -> Result<(Vec<u8>, FileId)> {
        if !self.format.unique_iv {
            return Ok((Vec::new(), FileId::default()));
        }
        let mut id = FileId::default();
        // Zero means that there is none.
        while id == FileId::default() {
            random::nonce(&mut id.0[..HEADER])?;
        }
        Ok((self.remake_header(&id, external)?, id))
    }

    fn open_header(&self, header: &[u8], external: u64) -> Result<FileId, Corrupt> {
        if !self.format.unique_iv {
            return Ok(FileId::default());
        }
        let mut number: [u8; HEADER] = header.try_into().map_err(|_| Corrupt)?;
        self.key.decrypt_stream(&mut number, external);
        let mut id = FileId::default();
        id.0[..HEADER].copy_from_slice(&number);
        if id == FileId::default() { Err(Corrupt) } else { Ok(id) }
    }

    fn remake_header(&self, id: &FileId, external: u64) -> Result<Vec<u8>> {
        if !self.format.unique_iv {
            return Ok(Vec::new());
        }
        let mut header = id.0[..HEADER].to_vec();
        self.key.encrypt_stream(&mut header, external);
        Ok(header)
    }

    fn seal(&self, number: u64, id: &FileId, plain: &[u8], out: &mut [u8]) -> Result<()> {
        let Format { mac, random, .. } = self.format;
        let (head, rest) = out.split_at_mut(mac);
        random::nonce(&mut rest[..random])?;
        rest[random..].copy_from_slice(plain);
        if mac > 0 {
            head.copy_from_slice(&self.checksum(rest)[..mac]);
        }
        self.encrypt(out, Self::seed(number, id));
        Ok(())
    }

    fn open(&self, number: u64, id: &FileId, cipher: &[u8], out: &mut [u8]) -> Result<(), Corrupt> {
        let Format { mac, random, .. } = self.format;
        let seed = Self::seed(number, id);
        if mac + random == 0 {
            out.copy_from_slice(cipher);
            self.decrypt(out, seed);
            return Ok(());
        }
        let mut whole = [0; 4096];
        let whole = whole.get_mut(..cipher.len()).ok_or(Corrupt)?;
        whole.copy_from_slice(cipher);
        self.decrypt(whole, seed);
        let (stored, rest) = whole.split_at_checked(mac).ok_or(Corrupt)?;
        if *stored != self.checksum(rest)[..mac] {
            return Err(Corrupt);
        }
        out.copy_from_slice(rest.get(random..).ok_or(Corrupt)?);
        Ok(())
    }
}
