//! Filesystem session
//!
//! A session is a connection to the kernel whose handshake is done. It has no thread of its own:
//! the caller makes as many [`Worker`]s as wanted, and each of them receives and dispatches
//! requests until the connection ends.

use std::borrow::Cow;
use std::fs::File;
use std::io;
use std::mem::offset_of;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use tracing::debug;
use tracing::error;

use crate::Errno;
use crate::Filesystem;
use crate::KernelConfig;
use crate::Notifier;
use crate::Request;
use crate::channel::Channel;
use crate::dev_fuse::DevFuse;
use crate::ll;
use crate::ll::ResponseErrno;
use crate::ll::Version;
use crate::ll::flags::init_flags::InitFlags;
use crate::ll::fuse_abi as abi;
use crate::read_buf::FuseReadBuf;
use crate::reply::Reply;
use crate::reply::ReplyRaw;
use crate::reply::ReplySender;
use crate::request::RequestWithSender;

/// The max size of write requests from the kernel, which offers no more than 1 MiB unless a
/// sysctl is raised.
pub(crate) const MAX_WRITE_SIZE: usize = 1024 * 1024;

const READ: u32 = abi::fuse_opcode::FUSE_READ as u32;
const WRITE: u32 = abi::fuse_opcode::FUSE_WRITE as u32;

/// A connection to the kernel, after the handshake.
#[derive(Debug)]
pub struct Session<FS: Filesystem> {
    filesystem: Arc<FS>,
    ch: Channel,
    /// What both sides agreed on.
    flags: InitFlags,
    max_write: usize,
}

impl<FS: Filesystem> Session<FS> {
    /// Wrap an existing `/dev/fuse` file descriptor that belongs to a mount, and do the
    /// handshake. The end of the session does not unmount: that is the caller's business.
    pub fn from_fd(mut filesystem: FS, fd: OwnedFd) -> io::Result<Self> {
        let ch = Channel::new(Arc::new(DevFuse(File::from(fd))));
        let (flags, max_write) = handshake(&mut filesystem, &ch)?;
        Ok(Session { filesystem: Arc::new(filesystem), ch, flags, max_write })
    }

    /// A new worker. Workers may be made at any time, from any thread.
    pub fn worker(&self) -> Worker<FS> {
        Worker {
            filesystem: self.filesystem.clone(),
            ch: self.ch.clone(),
            setxattr_ext: self.flags.contains(InitFlags::FUSE_SETXATTR_EXT),
            buf: FuseReadBuf::new(self.max_write),
            len: 0,
        }
    }

    /// The filesystem that is served.
    pub fn filesystem(&self) -> &Arc<FS> {
        &self.filesystem
    }

    /// The capabilities that both sides agreed on.
    pub fn flags(&self) -> InitFlags {
        self.flags
    }

    /// Returns an object that can be used to send notifications to the kernel
    pub fn notifier(&self) -> Notifier {
        Notifier::new(self.ch.sender())
    }
}

/// One buffer, and the right to receive requests into it.
#[derive(Debug)]
pub struct Worker<FS: Filesystem> {
    filesystem: Arc<FS>,
    ch: Channel,
    setxattr_ext: bool,
    buf: FuseReadBuf,
    /// Length of the request in `buf`.
    len: usize,
}

impl<FS: Filesystem> Worker<FS> {
    /// Waits for a request. `false` when the connection has ended (unmounted or aborted).
    pub fn receive(&mut self) -> io::Result<bool> {
        match self.ch.receive_retrying(self.buf.as_mut()) {
            Ok(len) => {
                self.len = len;
                Ok(true)
            }
            Err(nix::errno::Errno::ENODEV | nix::errno::Errno::ECONNABORTED) => Ok(false),
            Err(err) => Err(err.into()),
        }
    }

    /// Whether a request lies there that nobody has received yet.
    pub fn is_pending(&self) -> bool {
        self.ch.is_pending()
    }

    /// The thread that made the request that `receive` found; 0 if that is not known here.
    pub fn caller(&mut self) -> u32 {
        self.word(offset_of!(abi::fuse_in_header, pid)).unwrap_or(0)
    }

    /// Bytes of content that the request moves: those that a write has, or a read wants.
    pub fn moves(&mut self) -> usize {
        let body = size_of::<abi::fuse_in_header>();
        match self.word(offset_of!(abi::fuse_in_header, opcode)) {
            Some(READ) => self.word(body + offset_of!(abi::fuse_read_in, size)).unwrap_or(0) as usize,
            Some(WRITE) => self.len.saturating_sub(body + size_of::<abi::fuse_write_in>()),
            _ => 0,
        }
    }

    fn word(&mut self, at: usize) -> Option<u32> {
        let bytes = self.buf.as_mut().get(..self.len)?.get(at..at + 4)?;
        Some(u32::from_ne_bytes(bytes.try_into().ok()?))
    }

    /// Dispatches the request that `receive` found, on this thread.
    pub fn dispatch(&mut self) {
        let data = self.buf.as_mut().get(..self.len).unwrap_or_default();
        if let Some(request) = RequestWithSender::new(self.ch.sender(), data) {
            request.dispatch(&*self.filesystem, self.setxattr_ext);
        }
    }
}

fn handshake<FS: Filesystem>(filesystem: &mut FS, ch: &Channel) -> io::Result<(InitFlags, usize)> {
    let mut buf = FuseReadBuf::new(MAX_WRITE_SIZE);
    let buf = buf.as_mut();
    let raw = |request: &ll::AnyRequest<'_>| {
        <ReplyRaw as Reply>::new(request.unique(), ReplySender::Channel(ch.sender()))
    };
    loop {
        // Read the init request from the kernel
        let size = match ch.receive_retrying(buf) {
            Ok(size) => size,
            Err(nix::errno::Errno::ENODEV) => {
                return Err(io::Error::new(
                    io::ErrorKind::NotConnected,
                    "FUSE device disconnected during handshake",
                ));
            }
            Err(err) => return Err(err.into()),
        };

        let request = match ll::AnyRequest::try_from(&buf[..size]) {
            Ok(request) => request,
            Err(err) => return Err(io::Error::new(io::ErrorKind::InvalidData, err.to_string())),
        };
        let init = match request.operation(false) {
            Ok(ll::Operation::Init(init)) => init,
            Ok(_) => {
                error!("Received non-init FUSE operation before init: {}", request);
                raw(&request).send_ll(&ResponseErrno(ll::Errno::EIO));
                return Err(io::Error::new(
                    io::ErrorKind::InvalidData,
                    "Received non-init FUSE operation during handshake",
                ));
            }
            Err(err) => return Err(io::Error::new(io::ErrorKind::InvalidData, err.to_string())),
        };

        let v = init.version();
        if v.0 > abi::FUSE_KERNEL_VERSION {
            // Kernel has a newer major version than we support.
            // Send our version and wait for a second INIT request with a compatible version.
            debug!("INIT: kernel version {} > our version {}", v.0, abi::FUSE_KERNEL_VERSION);
            raw(&request).send_ll(&init.reply_version_only());
            continue;
        }

        // We don't support ABI versions before 7.23, whose structures are shorter
        if v < Version(7, 23) {
            raw(&request).send_ll(&ResponseErrno(ll::Errno::EPROTO));
            return Err(io::Error::new(
                io::ErrorKind::Unsupported,
                format!("Unsupported FUSE ABI version {v}"),
            ));
        }

        let mut config = KernelConfig::new(init.capabilities(), init.max_readahead(), v);

        // Call filesystem init method and give it a chance to return an error
        if let Err(error) = filesystem.init(Request::ref_cast(request.header()), &mut config) {
            let errno = Errno::from_i32(error.raw_os_error().unwrap_or(0));
            raw(&request).send_ll(&ResponseErrno(errno));
            return Err(error);
        }

        log_capabilities(init.capabilities(), config.requested);
        debug!(
            "INIT response: ABI {}.{}, flags {:#x}, max readahead {}, max write {}",
            abi::FUSE_KERNEL_VERSION,
            abi::FUSE_KERNEL_MINOR_VERSION,
            init.capabilities() & config.requested,
            config.max_readahead,
            config.max_write
        );
        raw(&request).send_ll(&init.reply(&config));
        return Ok((init.capabilities() & config.requested, config.max_write as usize));
    }
}

fn log_capabilities(offered: InitFlags, requested: InitFlags) {
    for bit in 0..64 {
        let flag = InitFlags::from_bits_retain(1 << bit);
        if flag == InitFlags::FUSE_INIT_EXT {
            continue;
        }
        let name = match flag.iter_names().last() {
            Some((name, _)) => Cow::Borrowed(name),
            None => Cow::Owned(format!("(1 << {bit})")),
        };
        match (requested.contains(flag), offered.contains(flag)) {
            (true, true) => debug!("capability {name} enabled"),
            (true, false) => debug!("capability {name} not supported by kernel"),
            (false, true) => debug!("capability {name} not requested by client"),
            (false, false) => {}
        }
    }
}
