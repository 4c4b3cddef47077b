//! The sockets by which a lane speaks to its peer: one of its own, connected to where the peer is,
//! and until there is one the socket that everybody calls.
//!
//! From which of our addresses a datagram leaves is learnt from the peer alone. An attempt of ours
//! leaves from the one that the kernel chooses; an answer from the one at which that attempt came,
//! whoever sent it; the session from the one at which the peer has proved itself. Likewise ICMP
//! errors count only when they quote what was sent ([`Marks`]).

use std::collections::VecDeque;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::AsRawFd;
use std::time::{Duration, Instant};

use mio::unix::SourceFd;
use mio::{Interest, Registry, Token};
use tpo_mover::TransmitKind;
use tracing::{debug, warn};

use super::marks::{Marks, QUOTED};
use crate::link::udp::{Link, Runs, Sent};

/// A socket of the lane's own is made anew at most this often.
const RETRY: Duration = Duration::from_millis(500);
/// While the peer is silent, at this interval.
const SILENT_RETRY: Duration = Duration::from_secs(5);
/// Attempts whose way in is remembered for the answers. Fifty in a second are answered at most,
/// each with some datagrams at once.
const CALLERS: usize = 64;
/// ICMP errors read in one turn of the lane: what is left is announced again.
const COMPLAINTS: usize = 64;
/// Room for one batch of datagrams: what segmentation offload takes at once.
const BATCH_BYTES: usize = 65_536;

/// What an ICMP message says that quotes what was sent.
pub(super) enum Complaint {
    /// Nobody listens at the peer's port.
    Refused,
    /// A datagram of so many bytes does not fit the path.
    TooLarge(usize),
}

/// The voice of one lane.
pub(super) struct PeerSocket {
    /// The peer's name, for logs.
    name: String,
    registry: Registry,
    token: Token,
    listener: Link,
    port: u16,
    /// Our address at which the peer has proved itself.
    local: Option<IpAddr>,
    /// Attempts that may be answered, the newest last: from where, its number, and our address at
    /// which it came first.
    callers: VecDeque<(SocketAddr, u64, IpAddr)>,
    /// How what the own socket sent last began.
    marks: Marks,
    own: Option<Link>,
    /// Where it is connected to.
    to: Option<SocketAddr>,
    /// It has no room.
    blocked: bool,
    /// The session that it was for is over.
    forgets: bool,
    /// When it was last made, or could not be.
    tried: Option<Instant>,
    /// What is being sent.
    pub(super) batch: Vec<u8>,
    /// A batch that the kernel had no room for: where to, what it is, and the size of its
    /// datagrams. Its bytes are still in `batch`.
    unsent: Option<(SocketAddr, TransmitKind, usize)>,
    /// Batches that the kernel refused.
    pub(super) failures: u64,
    /// ICMP errors that quote nothing that was sent.
    pub(super) unproved: u64,
    /// Packets that the kernel dropped because sockets before this one were full.
    dropped: u64,
}

impl PeerSocket {
    /// Speaks by `listener` at first; the own socket is announced under `token`.
    pub(super) fn new(
        name: String,
        listener: Link,
        registry: Registry,
        token: Token,
    ) -> io::Result<PeerSocket> {
        let port = listener.local_addr()?.port();
        Ok(PeerSocket {
            name,
            registry,
            token,
            listener,
            port,
            local: None,
            callers: VecDeque::new(),
            marks: Marks::new(),
            own: None,
            to: None,
            blocked: false,
            forgets: false,
            tried: None,
            batch: Vec::with_capacity(BATCH_BYTES),
            unsent: None,
            failures: 0,
            unproved: 0,
            dropped: 0,
        })
    }

    /// Somebody who knows both public keys, or copies one who does, began an attempt at this
    /// address of ours. A later copy of it that comes elsewhere changes nothing.
    pub(super) fn was_called(&mut self, from: SocketAddr, attempt: u64, local: IpAddr) {
        if self.came_at(from, attempt).is_none() {
            if self.callers.len() == CALLERS {
                self.callers.pop_front();
            }
            self.callers.push_back((from, attempt, local));
        }
    }

    fn came_at(&self, from: SocketAddr, attempt: u64) -> Option<IpAddr> {
        self.callers
            .iter()
            .find(|caller| (caller.0, caller.1) == (from, attempt))
            .map(|caller| caller.2)
    }

    /// The peer has proved itself at this address of ours.
    pub(super) fn is_known_at(&mut self, local: IpAddr) {
        self.local = Some(local);
    }

    /// The session is over: when its last words have left, what was learnt of its way is forgotten,
    /// and the next attempt begins with what is configured.
    pub(super) fn forget(&mut self) {
        self.forgets = true;
    }

    fn forget_now(&mut self) {
        self.give_up();
        (self.to, self.local, self.tried, self.unsent) = (None, None, None, None);
        (self.blocked, self.forgets) = (false, false);
    }

    /// Nothing can be sent before there is room.
    pub(super) fn is_blocked(&self) -> bool {
        self.blocked && !self.forgets
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

    /// What ICMP messages say of what the own socket sent: that nobody listens there, or (with its
    /// size) that a datagram is too large for the path. Messages that quote nothing that was sent
    /// may be anybody's, and are counted.
    pub(super) fn complaints(&mut self, mut each: impl FnMut(Complaint)) {
        let Some(link) = &self.own else { return };
        let mut quoted = [0; QUOTED];
        for _ in 0..COMPLAINTS {
            let Some((error, length)) = link.take_complaint(&mut quoted) else {
                return;
            };
            match (error, self.marks.length_of(&quoted[..length])) {
                (libc::ECONNREFUSED, Some(_)) => each(Complaint::Refused),
                (libc::EMSGSIZE, Some(size)) => each(Complaint::TooLarge(size)),
                // Our own kernel's word, which the call itself has told; and other errors of the
                // way, which may pass: silence says what they mean.
                (0, _) | (_, Some(_)) => {}
                (_, None) => self.unproved += 1,
            }
        }
    }

    /// Takes datagrams from the own socket, if there is one.
    pub(super) fn receive(&self, runs: &mut Runs) -> Option<io::Result<usize>> {
        self.own.as_ref().map(|link| link.receive(runs))
    }

    /// Says what the socket is watched for, which reports its state again. For room only when there
    /// was none: the kernel announces each datagram that has left.
    pub(super) fn watch(&self) {
        if let Some(link) = &self.own {
            let interest = if self.blocked {
                Interest::READABLE | Interest::WRITABLE
            } else {
                Interest::READABLE
            };
            if let Err(error) =
                self.registry
                    .reregister(&mut SourceFd(&link.as_raw_fd()), self.token, interest)
            {
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

    /// A connected socket keeps the source address that it began with. When that has gone, or leads
    /// nowhere any more, a new one finds today's; until then the listening socket speaks, which is
    /// bound to none.
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
        if self.forgets {
            self.forget_now();
        }
        let too_soon = self
            .tried
            .is_some_and(|tried| self.own.is_none() && now < tried + RETRY);
        if self.to == Some(remote) || too_soon {
            return;
        }
        self.tried = Some(now);
        // The address at which the peer called us may be gone by now.
        let link = match Link::connect(self.port, self.local, remote)
            .or_else(|_| Link::connect(self.port, None, remote))
        {
            Ok(link) => link,
            Err(error) => {
                // The listening socket goes on speaking for this lane, and hearing through the
                // router.
                debug!(peer = %self.name, %remote, %error, "no socket of its own for this lane yet");
                return;
            }
        };
        self.give_up();
        self.to = Some(remote);
        self.blocked = false;
        match self.registry.register(
            &mut SourceFd(&link.as_raw_fd()),
            self.token,
            Interest::READABLE,
        ) {
            Ok(()) => self.own = Some(link),
            Err(error) => warn!(peer = %self.name, %error, "the link's socket cannot be watched"),
        }
    }

    /// The batch that waits for room: where to, what it is, and the size of its datagrams.
    pub(super) fn take_unsent(&mut self) -> Option<(SocketAddr, TransmitKind, usize)> {
        self.unsent.take()
    }

    /// Gives the batch to the kernel. [`Sent::Blocked`]: it is kept for when there is room.
    pub(super) fn send(
        &mut self,
        to: SocketAddr,
        kind: TransmitKind,
        segment: usize,
        now: Instant,
    ) -> Sent {
        match (self.forgets, kind) {
            (false, _) => self.give_to_kernel(to, kind, segment, now),
            (true, TransmitKind::Session) => {
                let sent = self.give_to_kernel(to, kind, segment, now);
                self.forget_now();
                sent
            }
            (true, TransmitKind::Call | TransmitKind::Answer(_)) => {
                self.forget_now();
                self.give_to_kernel(to, kind, segment, now)
            }
        }
    }

    fn give_to_kernel(
        &mut self,
        to: SocketAddr,
        kind: TransmitKind,
        segment: usize,
        now: Instant,
    ) -> Sent {
        let (link, source, own) = match (&self.own, kind) {
            (_, TransmitKind::Answer(attempt)) => {
                (&self.listener, self.came_at(to, attempt), false)
            }
            (Some(link), TransmitKind::Call | TransmitKind::Session) if self.to == Some(to) => {
                (link, None, true)
            }
            (_, TransmitKind::Call) => (&self.listener, None, false),
            (_, TransmitKind::Session) => (&self.listener, self.local, false),
        };
        if own {
            self.batch
                .chunks(segment)
                .for_each(|datagram| self.marks.note(datagram));
        }
        let sent = link.send(to, source, &self.batch, segment);
        match sent {
            Sent::Blocked if own => {
                self.unsent = Some((to, kind, segment));
                self.blocked = true;
                self.watch();
            }
            // Only the lane's own socket is watched for room; elsewhere the batch is lost like any
            // datagram.
            Sent::Blocked => {
                self.failures += 1;
                return Sent::Failed;
            }
            Sent::Failed => {
                self.failures += 1;
                self.renew(now);
            }
            Sent::All | Sent::TooLarge => {}
        }
        sent
    }
}
