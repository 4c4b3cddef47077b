//! The socket of a lane's own: connected to where its peer is, and watched by the lane's poll.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::AsRawFd;
use std::time::{Duration, Instant};

use mio::unix::SourceFd;
use mio::{Interest, Registry};
use tracing::{debug, warn};

use super::wakeups::LINK;
use crate::link::udp::Link;

/// The socket is made anew at most every 500 ms.
const RETRY: Duration = Duration::from_millis(500);
/// While the peer is silent, the socket is made anew every 5 s.
const SILENT_RETRY: Duration = Duration::from_secs(5);

/// The own socket, if there is one now.
pub(super) struct OwnSocket {
    /// The peer's name, for logs.
    name: String,
    registry: Registry,
    /// Our port.
    port: u16,
    link: Option<Link>,
    /// Where it is connected to.
    to: Option<SocketAddr>,
    /// It has no room.
    blocked: bool,
    /// When it was last made, or could not be.
    tried: Option<Instant>,
    /// Datagrams that the kernel dropped because sockets before this one were full.
    dropped_before: u64,
}

impl OwnSocket {
    /// None yet. One that is made is announced to the poll of `registry` as [`LINK`].
    pub(super) fn new(name: String, registry: Registry, port: u16) -> OwnSocket {
        OwnSocket {
            name,
            registry,
            port,
            link: None,
            to: None,
            blocked: false,
            tried: None,
            dropped_before: 0,
        }
    }

    /// The socket, if there is one.
    pub(super) fn link(&self) -> Option<&Link> {
        self.link.as_ref()
    }

    /// The socket, if it is connected to there.
    pub(super) fn link_to(&self, to: SocketAddr) -> Option<&Link> {
        self.link.as_ref().filter(|_| self.to == Some(to))
    }

    /// Nothing can be sent before there is room.
    pub(super) fn is_blocked(&self) -> bool {
        self.blocked
    }

    /// The socket has no room: the poll tells when it has some again.
    pub(super) fn on_blocked(&mut self) {
        self.blocked = true;
        self.watch();
    }

    /// There is room again.
    pub(super) fn on_room(&mut self) {
        if std::mem::take(&mut self.blocked) {
            self.watch();
        }
    }

    /// Datagrams that the kernel dropped because the socket was full.
    pub(super) fn dropped(&self) -> u64 {
        self.dropped_before + self.link.as_ref().map_or(0, Link::dropped)
    }

    /// Says what the socket is watched for, which reports its state again. For room only when there
    /// was none: the kernel announces each datagram that has left.
    pub(super) fn watch(&self) {
        if let Some(link) = &self.link {
            let interest = if self.blocked {
                Interest::READABLE | Interest::WRITABLE
            } else {
                Interest::READABLE
            };
            let watched =
                self.registry
                    .reregister(&mut SourceFd(&link.as_raw_fd()), LINK, interest);
            self.warn_unwatched(watched);
        }
    }

    fn warn_unwatched(&self, watched: io::Result<()>) -> bool {
        if let Err(error) = &watched {
            warn!(peer = %self.name, %error, "the link's socket cannot be watched");
        }
        watched.is_ok()
    }

    /// Keeps a socket connected to where the peer is now; from this address of ours, if it can be.
    pub(super) fn follow(&mut self, remote: SocketAddr, local: Option<IpAddr>, now: Instant) {
        let too_soon = self
            .tried
            .is_some_and(|tried| self.link.is_none() && now < tried + RETRY);
        if self.to == Some(remote) || too_soon {
            return;
        }
        self.tried = Some(now);
        // The address at which the peer called us may be gone by now.
        let link = match Link::connect(self.port, local, remote)
            .or_else(|_| Link::connect(self.port, None, remote))
        {
            Ok(link) => link,
            Err(error) => {
                // The listening socket goes on speaking for this lane, and hearing through the
                // demultiplexer.
                debug!(peer = %self.name, %remote, %error, "no socket of its own for this lane yet");
                return;
            }
        };
        self.close();
        self.to = Some(remote);
        self.blocked = false;
        let watched =
            self.registry
                .register(&mut SourceFd(&link.as_raw_fd()), LINK, Interest::READABLE);
        if self.warn_unwatched(watched) {
            self.link = Some(link);
        }
    }

    /// Whether a silent peer's socket has stood long enough to be made anew.
    pub(super) fn is_old(&self, now: Instant) -> bool {
        self.tried.is_some_and(|tried| now >= tried + SILENT_RETRY)
    }

    /// Closes the socket, so that a new one is made; false when it was made a moment ago, and
    /// stays.
    pub(super) fn renew(&mut self, now: Instant) -> bool {
        if self.tried.is_some_and(|tried| now < tried + RETRY) {
            return false;
        }
        self.close();
        self.to = None;
        self.blocked = false;
        true
    }

    /// Closes the socket and forgets where it was connected to, and when.
    pub(super) fn forget(&mut self) {
        self.close();
        (self.to, self.tried, self.blocked) = (None, None, false);
    }

    fn close(&mut self) {
        if let Some(old) = self.link.take() {
            self.dropped_before += old.dropped();
            // Dropped right after; a descriptor that is closed leaves the poll by itself.
            let _ = self.registry.deregister(&mut SourceFd(&old.as_raw_fd()));
        }
    }
}
