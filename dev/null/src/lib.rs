//! `null`: a disk that takes what is written and keeps nothing of it; all of it reads as zeros. For measuring what lies above a disk.

#![forbid(unsafe_code)]

use std::ops::Range;
use std::sync::Arc;

use veduta_api::{
    BlockDevice, DeviceNode, Disk, Geometry, Module, MountError, Object, OptionSpec, Request, Result,
    SourceKind,
};

/// Bytes; as large as it is without `size=`.
const DEFAULT_SIZE: u64 = 1 << 30;

/// The type `null`.
pub struct Null;

impl Module for Null {
    fn name(&self) -> &'static str {
        "null"
    }

    fn aliases(&self) -> &'static [&'static str] {
        &["umdevnull", "vudevnull"]
    }

    fn summary(&self) -> &'static str {
        "a disk that keeps nothing and reads as zeros"
    }

    fn source(&self) -> SourceKind {
        SourceKind::None
    }

    fn writable(&self) -> bool {
        true
    }

    fn options(&self) -> &'static [OptionSpec] {
        const {
            &[
                OptionSpec::with_value(
                    "size",
                    "BYTES",
                    "How large it is; K, M, G or T may follow. 1G if not given.",
                ),
                DeviceNode::OPTIONS[0],
                DeviceNode::OPTIONS[1],
                DeviceNode::OPTIONS[2],
                DeviceNode::OPTIONS[3],
                DeviceNode::OPTIONS[4],
            ]
        }
    }

    fn manual(&self) -> &'static str {
        "Whatever is written is taken and forgotten, and all reads give zeros: what remains of the time of a program is that of \
         everything above the disk."
    }

    fn mount(&self, request: &mut Request<'_>) -> Result<Object, MountError> {
        let size = request.options.take_bytes("size")?.unwrap_or(DEFAULT_SIZE);
        Ok(Object::Disk(Arc::new(Disk::new(Arc::new(Nothing { size }), "null"))))
    }
}

struct Nothing {
    size: u64,
}

impl BlockDevice for Nothing {
    fn geometry(&self) -> Geometry {
        Geometry::of_size(self.size)
    }
    fn read_at(&self, buf: &mut [u8], _offset: u64) -> Result<()> {
        buf.fill(0);
        Ok(())
    }
    fn write_at(&self, _buf: &[u8], _offset: u64) -> Result<()> {
        Ok(())
    }
    fn discard(&self, _offset: u64, _len: u64) -> Result<()> {
        Ok(())
    }
    fn write_zeroes(&self, _offset: u64, _len: u64) -> Result<()> {
        Ok(())
    }
    fn next_data(&self, _offset: u64) -> Result<Option<Range<u64>>> {
        Ok(None)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_is_kept() {
        let disk = Disk::new(Arc::new(Nothing { size: 4096 }), "null");
        assert_eq!(disk.write_at(&[1; 512], 0), Ok(()));
        assert_eq!(disk.read_vec(0, 2), Ok(vec![0, 0]));
        assert!(disk.write_at(&[1], 4096).is_err());
    }
}
