//! A link: something that carries Ethernet frames.

use std::os::fd::BorrowedFd;
use std::task::Waker;

use crate::{Ready, Result};

/// One end of a link. A *frame* is an Ethernet frame from its destination address to the end of its payload:
/// 14 bytes and more, with its 802.1Q tag if it has one, without preamble and checksum.
///
/// Frames may be lost, never split or joined. Neither call waits: a full or an empty link gives `EAGAIN`. `ENETDOWN` means
/// that the other end is gone for good.
pub trait Link: Send + Sync {
    /// Bytes; the longest frame that the link carries: 1514 for an MTU of 1500, 4 more for a tag.
    fn max_frame(&self) -> usize;

    /// Sends one frame. `EMSGSIZE` if it is longer than [`max_frame`](Self::max_frame), `EINVAL` if shorter than a header.
    fn send(&self, frame: &[u8]) -> Result<()>;

    /// Receives one frame into `buf`, which has room for the longest, and says how long it is. A longer one is lost, and
    /// the next one comes.
    fn recv(&self, buf: &mut [u8]) -> Result<usize>;

    /// What can be done without waiting; see [`File::ready`](crate::File::ready).
    fn ready(&self, interest: Ready, waker: Option<&Waker>) -> Result<Ready>;

    /// A descriptor that polls readable when a frame can be received, for hosts that wait on many: poll it, but read
    /// frames only through [`recv`](Self::recv).
    fn poll_fd(&self) -> Option<BorrowedFd<'_>> {
        None
    }

    /// Where the link leads, in the form of a VNL address: `vde:///run/vde.ctl`. For messages.
    fn describe(&self) -> String;
}
