//! The sockets by which a lane speaks to its peer: one of its own, connected to where the peer is, and until there is one the socket that everybody calls.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::AsRawFd;
use std::time::{Duration, Instant};

use mio::unix::SourceFd;
use mio::{Interest, Registry, Token};
use tracing::{debug, warn};

use crate::link::udp::{Link, Runs, Sent};

/// A socket of the lane's own is made anew at most this often.
const RETRY: Duration = Duration::from_millis(500);
/// While the peer is silent, at this interval.
const SILENT_RETRY: Duration = Duration::from_secs(5);
/// Room for one batch of datagrams: what segmentation offload takes at once.
const BATCH_BYTES: usize = 65_536;

/// The voice of one lane.
pub(super) struct Voice {
    /// The peer's name, for logs.
    name: String,
    registry: Registry,
    token: Token,
    listener: Link,
    port: u16,
    /// Our address at which the peer called.
    local: Option<IpAddr>,
    own: Option<Link>,
    /// Where it is connected to.
    to: Option<SocketAddr>,
    /// It has no room.
    blocked: bool,
    /// When it was last made, or could not be.
    tried: Option<Instant>,
    /// What is being sent.
    pub(super) batch: Vec<u8>,
    /// A batch that the kernel had no room for: where to, and the size of its datagrams. Its bytes are still in `batch`.
    unsent: Option<(SocketAddr, usize)>,
    /// Batches that the kernel refused.
    pub(super) failures: u64,
    /// Packets that the kernel dropped because sockets before this one were full.
    dropped: u64,
}

impl Voice {
    /// Speaks by `listener` at first; the own socket is announced under `token`.
    pub(super) fn new(name: String, listener: Link, registry: Registry, token: Token) -> io::Result<Voice> {
        let port = listener.local_addr()?.port();
        Ok(Voice {
            name,
            registry,
            token,
            listener,
            port,
            local: None,
            own: None,
            to: None,
            blocked: false,
            tried: None,
            batch: Vec::with_capacity(BATCH_BYTES),
            unsent: None,
            failures: 0,
            dropped: 0,
        })
    }

    /// The peer called at this address of ours.
    pub(super) fn called_at(&mut self, local: IpAddr) {
        self.local = Some(local);
    }

    /// Nothing can be sent before there is room.
    pub(super) fn is_blocked(&self) -> bool {
        self.blocked
    }

    /// Packets that the kernel dropped because the socket was full.
    pub(super) fn dropped(&self) -> u64 {
        self.dropped + self.own.as_ref().map_or(0, Link::dropped)
    }

    /// There is room again.
    pub(super) fn has_room(&mut self) {
        if std::mem::take(&mut self.blocked) {
            self.watch();
        }
    }

    /// Takes datagrams from the own socket, if there is one.
    pub(super) fn receive(&self, runs: &mut Runs) -> Option<io::Result<usize>> {
        self.own.as_ref().map(|link| link.receive(runs))
    }

    /// Says what the socket is watched for, which reports its state again. For room only when there was none: the kernel announces each
    /// datagram that has left.
    pub(super) fn watch(&self) {
        if let Some(link) = &self.own {
            let interest = if self.blocked { Interest::READABLE | Interest::WRITABLE } else { Interest::READABLE };
            if let Err(error) = self.registry.reregister(&mut SourceFd(&link.as_raw_fd()), self.token, interest) {
                warn!(peer = %self.name, %error, "the link's socket cannot be watched");
            }
        }
    }

    /// Nothing is heard: the way out may have changed without an error that says so.
    pub(super) fn is_silent(&mut self, now: Instant) {
        if self.tried.is_some_and(|tried| now >= tried + SILENT_RETRY) {
            self.renew(now);
        }
    }

    /// A connected socket keeps the source address that it began with. When that has gone, or leads nowhere any more, a new one finds
    /// today's; until then the listening socket speaks, which is bound to none.
    fn renew(&mut self, now: Instant) {
        if self.tried.is_some_and(|tried| now < tried + RETRY) {
            return;
        }
        self.give_up();
        self.to = None;
        self.blocked = false;
        self.unsent = None;
        self.local = None;
    }

    fn give_up(&mut self) {
        if let Some(old) = self.own.take() {
            self.dropped += old.dropped();
            // Dropped right after; a descriptor that is closed leaves the poll by itself.
            let _ = self.registry.deregister(&mut SourceFd(&old.as_raw_fd()));
        }
    }

    /// Keeps a socket connected to where the peer is now.
    pub(super) fn follow(&mut self, remote: SocketAddr, now: Instant) {
        let too_soon = self.tried.is_some_and(|tried| self.own.is_none() && now < tried + RETRY);
        if self.to == Some(remote) || too_soon {
            return;
        }
        self.tried = Some(now);
        // The address at which the peer called us may be gone by now.
        let link =
            match Link::connect(self.port, self.local, remote).or_else(|_| Link::connect(self.port, None, remote)) {
                Ok(link) => link,
                Err(error) => {
                    // The listening socket goes on speaking for this lane, and hearing through the router.
                    debug!(peer = %self.name, %remote, %error, "no socket of its own for this lane yet");
                    return;
                }
            };
        self.give_up();
        self.to = Some(remote);
        self.blocked = false;
        match self.registry.register(&mut SourceFd(&link.as_raw_fd()), self.token, Interest::READABLE) {
            Ok(()) => self.own = Some(link),
            Err(error) => warn!(peer = %self.name, %error, "the link's socket cannot be watched"),
        }
    }

    /// The batch that waits for room: where to, and the size of its datagrams.
    pub(super) fn take_unsent(&mut self) -> Option<(SocketAddr, usize)> {
        self.unsent.take()
    }

    /// Gives the batch to the kernel. [`Sent::Blocked`]: it is kept for when there is room.
    pub(super) fn send(&mut self, to: SocketAddr, segment: usize, now: Instant) -> Sent {
        // Who called us at one of our addresses is answered from there.
        let (link, source, own) = match &self.own {
            Some(link) if self.to == Some(to) => (link, None, true),
            _ => (&self.listener, self.local, false),
        };
        let sent = link.send(to, source, &self.batch, segment);
        match sent {
            Sent::Blocked if own => {
                self.unsent = Some((to, segment));
                self.blocked = true;
                self.watch();
            }
            // Only the lane's own socket is watched for room; elsewhere the batch is lost like any datagram.
            Sent::Blocked => {
                self.failures += 1;
                return Sent::Failed;
            }
            Sent::Failed => {
                self.failures += 1;
                self.renew(now);
            }
            Sent::All | Sent::TooLarge | Sent::Refused => {}
        }
        sent
    }
}
