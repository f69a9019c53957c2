//! A network stack: what serves `socket(2)` and all that follows.
//!
//! Addresses, option values and ancillary data are in the form of the system call (`struct sockaddr_in`,
//! `struct cmsghdr`), in host byte order where Linux has it so: the host passes them through, and a stack that is a
//! real kernel somewhere needs no translation.

use std::os::fd::BorrowedFd;
use std::sync::Arc;
use std::task::Waker;

use crate::{Errno, Ioctl, Ready, Result};

/// An address in the form of the system call: `sa_family` and what follows, 2 to 128 bytes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SocketAddress(pub Vec<u8>);

impl SocketAddress {
    /// The address family, in the first two bytes; `AF_UNSPEC` if there are none.
    pub fn family(&self) -> u16 {
        match self.0.first_chunk() {
            Some(bytes) => u16::from_ne_bytes(*bytes),
            None => 0,
        }
    }
}

/// Which direction `shutdown(2)` closes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shutdown {
    /// `SHUT_RD`
    Read,
    /// `SHUT_WR`
    Write,
    /// `SHUT_RDWR`
    Both,
}

/// What `recvmsg(2)` brought beside the bytes.
#[derive(Clone, Debug, Default)]
pub struct Message {
    /// Bytes put into the buffer.
    pub len: usize,
    /// The whole length of a datagram, which may be more than fitted.
    pub full_len: usize,
    /// Who sent it; empty for a stream.
    pub from: SocketAddress,
    /// Ancillary data: a sequence of `struct cmsghdr`.
    pub control: Vec<u8>,
    /// `MSG_TRUNC`, `MSG_CTRUNC`, `MSG_EOR`, `MSG_ERRQUEUE`.
    pub flags: i32,
}

/// The driver's side of a stack.
pub trait NetStack: Send + Sync {
    /// The address families that it serves (`AF_INET`, `AF_INET6`, `AF_PACKET`, `AF_NETLINK`): all others give
    /// `EAFNOSUPPORT`, or go to the stack below. Interfaces, addresses and routes are configured through `AF_NETLINK`, as
    /// on Linux.
    fn families(&self) -> &[i32];

    /// `socket(2)`; `kind` without `SOCK_NONBLOCK` and `SOCK_CLOEXEC`, which are the host's.
    fn socket(&self, family: i32, kind: i32, protocol: i32) -> Result<Arc<dyn Socket>>;

    /// The interface ioctls (`SIOCGIFCONF` and its kin), which programs send to any socket.
    fn ioctl(&self, ioctl: &mut Ioctl<'_>) -> Result<i32> {
        let _ = ioctl;
        Err(Errno::ENOTTY)
    }

    /// The content of a file below `/proc/net`, such as `dev` or `tcp`. `ENOENT` if the stack has none of that name.
    fn proc_net(&self, name: &str) -> Result<Vec<u8>> {
        let _ = name;
        Err(Errno::ENOENT)
    }
}

/// An open socket; dropping it closes it. No call waits: `EAGAIN`, or `EINPROGRESS` for a connection that is being made;
/// the host waits by [`ready`](Self::ready).
pub trait Socket: Send + Sync {
    /// `bind(2)`
    fn bind(&self, address: &SocketAddress) -> Result<()>;

    /// `connect(2)`; `AF_UNSPEC` dissolves the association of a datagram socket.
    fn connect(&self, address: &SocketAddress) -> Result<()>;

    /// `listen(2)`
    fn listen(&self, backlog: i32) -> Result<()> {
        let _ = backlog;
        Err(Errno::EOPNOTSUPP)
    }

    /// `accept(2)`: the new socket and its peer.
    fn accept(&self) -> Result<(Arc<dyn Socket>, SocketAddress)> {
        Err(Errno::EOPNOTSUPP)
    }

    /// `sendmsg(2)`: how many bytes were taken. `to` is `None` on a connected socket.
    fn send(&self, buf: &[u8], to: Option<&SocketAddress>, control: &[u8], flags: i32) -> Result<usize>;

    /// `recvmsg(2)`
    fn recv(&self, buf: &mut [u8], flags: i32) -> Result<Message>;

    /// `shutdown(2)`
    fn shutdown(&self, how: Shutdown) -> Result<()>;

    /// `getsockname(2)`
    fn local_address(&self) -> Result<SocketAddress>;

    /// `getpeername(2)`
    fn peer_address(&self) -> Result<SocketAddress>;

    /// `getsockopt(2)`: the value, at most `len` bytes of it.
    fn option(&self, level: i32, name: i32, len: usize) -> Result<Vec<u8>>;

    /// `setsockopt(2)`
    fn set_option(&self, level: i32, name: i32, value: &[u8]) -> Result<()>;

    /// `ioctl(2)` on this socket: `FIONREAD`, `SIOCOUTQ`.
    fn ioctl(&self, ioctl: &mut Ioctl<'_>) -> Result<i32> {
        let _ = ioctl;
        Err(Errno::ENOTTY)
    }

    /// What can be done without waiting; see [`File::ready`](crate::File::ready).
    fn ready(&self, interest: Ready, waker: Option<&Waker>) -> Result<Ready>;

    /// A real socket that may stand for this one from now on: hosts hand it to the process, and its data never passes
    /// through the stack's code.
    fn backing(&self) -> Option<BorrowedFd<'_>> {
        None
    }
}
