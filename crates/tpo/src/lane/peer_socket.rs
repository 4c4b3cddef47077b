//! The peer socket of a lane: how the lane speaks to its peer. It sends and receives by a socket of
//! the lane's own ([`OwnSocket`]), connected to where the peer is, and sends by the socket that
//! everybody calls until there is one.
//!
//! From which of our addresses a datagram leaves is learnt from the peer alone. An attempt of ours
//! leaves from the one that the kernel chooses; an answer from the one at which that attempt came,
//! whoever sent it; the session from the one at which the peer has proved itself. Likewise ICMP
//! errors count only when they quote what was sent ([`Marks`]).

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::time::Instant;

use mio::Registry;
use tpo_engine::Peer;
use tpo_mover::{Origin, TransmitKind};

use super::callers::Callers;
use super::marks::{Marks, QUOTED};
use super::own_socket::OwnSocket;
use crate::lanes::sighting::{Fault, Sighting};
use crate::link::udp::{Link, RECEIVE_RUNS, Runs, Sent};

/// ICMP errors read in one turn of the lane: what is left is announced again.
const COMPLAINTS: usize = 64;
/// Room for one batch of datagrams: what segmentation offload takes at once.
const BATCH_BYTES: usize = 65_536;

/// What a call for datagrams has brought.
pub(super) enum Received {
    /// Nothing waits.
    Nothing,
    /// Datagrams, which the engine has been given.
    Datagrams {
        /// When they were received.
        at: Instant,
        /// The kernel had no more; what comes later is announced by a new event.
        were_all: bool,
    },
    /// An error that an ICMP message has left, or that somebody made up. What waits behind it is
    /// still to be received.
    Error,
}

/// A batch of datagrams of one size.
#[derive(Clone, Copy)]
pub(super) struct Batch {
    pub(super) to: SocketAddr,
    /// Of a session, or of a handshake.
    pub(super) kind: TransmitKind,
    /// Bytes of each datagram but the last.
    pub(super) segment: usize,
}

/// The peer socket of one lane.
pub(super) struct PeerSocket {
    listener: Link,
    own: OwnSocket,
    /// Our address at which the peer has proved itself.
    local: Option<IpAddr>,
    /// Attempts that may be answered.
    callers: Callers,
    /// How what the own socket sent last began.
    marks: Marks,
    /// The session that it was for is over.
    forgets: bool,
    /// Room for what is received.
    runs: Runs,
    /// The bytes of what is being sent.
    batch: Vec<u8>,
    /// A batch that the kernel had no room for. Its bytes are still in `batch`.
    unsent: Option<Batch>,
    /// The last handshake datagram for other keys that came by the own socket.
    stranger: Option<Sighting>,
    /// Batches that the kernel refused.
    failures: u64,
    /// ICMP errors that quote nothing that was sent.
    unproved: u64,
}

impl PeerSocket {
    /// Speaks by `listener` at first; the own socket is announced to the poll of `registry`.
    pub(super) fn new(name: String, listener: Link, registry: Registry) -> io::Result<PeerSocket> {
        let port = listener.local_addr()?.port();
        Ok(PeerSocket {
            listener,
            own: OwnSocket::new(name, registry, port),
            local: None,
            callers: Callers::default(),
            marks: Marks::new(),
            forgets: false,
            runs: Runs::new(),
            batch: Vec::with_capacity(BATCH_BYTES),
            unsent: None,
            stranger: None,
            failures: 0,
            unproved: 0,
        })
    }

    /// A datagram that the demultiplexer heard, which came at this address of ours, is from there.
    pub(super) fn on_heard(&mut self, origin: Origin, from: SocketAddr, local: Option<IpAddr>) {
        match (origin, local) {
            (Origin::Peer, Some(local)) => self.local = Some(local),
            (Origin::Caller(attempt), Some(local)) => self.callers.note(from, attempt, local),
            // The demultiplexer has seen to strangers.
            (Origin::Peer | Origin::Caller(_) | Origin::Stranger | Origin::Unknown, _) => {}
        }
    }

    /// The session is over: when its last words have left, what was learnt of its way is forgotten,
    /// and the next attempt begins with what is configured.
    pub(super) fn forget(&mut self) {
        self.forgets = true;
    }

    fn forget_now(&mut self) {
        self.own.forget();
        (self.local, self.unsent, self.forgets) = (None, None, false);
    }

    /// Nothing can be sent before there is room.
    pub(super) fn is_blocked(&self) -> bool {
        self.own.is_blocked() && !self.forgets
    }

    /// There is room again.
    pub(super) fn on_room(&mut self) {
        self.own.on_room();
    }

    /// Lets the poll report the state of the own socket again.
    pub(super) fn watch(&self) {
        self.own.watch();
    }

    /// Datagrams that the kernel dropped because the socket was full.
    pub(super) fn dropped(&self) -> u64 {
        self.own.dropped()
    }

    /// Batches that the kernel refused.
    pub(super) fn failures(&self) -> u64 {
        self.failures
    }

    /// ICMP errors that quote nothing that was sent.
    pub(super) fn unproved(&self) -> u64 {
        self.unproved
    }

    /// The last handshake datagram for other keys that came by the own socket.
    pub(super) fn stranger(&self) -> Option<Sighting> {
        self.stranger
    }

    /// Tells the engine what ICMP messages say of what the own socket sent: that nobody listens
    /// there, or that a datagram is too large for the path. Messages that quote nothing that was
    /// sent may be anybody's, and are counted.
    pub(super) fn read_complaints(&mut self, peer: &mut Peer, now: Instant) {
        let Some(link) = self.own.link() else { return };
        let mut quoted = [0; QUOTED];
        for _ in 0..COMPLAINTS {
            let Some((error, length)) = link.take_complaint(&mut quoted) else {
                return;
            };
            match (error, self.marks.length_of(&quoted[..length])) {
                (libc::ECONNREFUSED, Some(_)) => peer.on_refused(now),
                (libc::EMSGSIZE, Some(size)) => peer.on_too_large(size, now),
                // Our own kernel's word, which the call itself has told; and other errors of the
                // way, which may pass: silence says what they mean.
                (0, _) | (_, Some(_)) => {}
                (_, None) => self.unproved += 1,
            }
        }
    }

    /// Takes datagrams from the own socket, if there is one, and gives them to the engine.
    pub(super) fn receive(&mut self, peer: &mut Peer) -> Received {
        let received = match self.own.link().map(|link| link.receive(&mut self.runs)) {
            None | Some(Ok(0)) => return Received::Nothing,
            Some(Ok(received)) => received,
            Some(Err(_)) => return Received::Error,
        };
        let now = Instant::now();
        let (callers, stranger) = (&mut self.callers, &mut self.stranger);
        self.runs.for_each(|from, local, datagram| {
            match (peer.handle_datagram(from, datagram, now), local) {
                (Origin::Stranger, _) => {
                    *stranger = Some(Sighting {
                        from,
                        at: now,
                        fault: Fault::Guard,
                    })
                }
                (Origin::Caller(attempt), Some(local)) => callers.note(from, attempt, local),
                // The socket is bound to where the peer is known.
                (Origin::Peer | Origin::Caller(_) | Origin::Unknown, _) => {}
            }
        });
        Received::Datagrams {
            at: now,
            were_all: received < RECEIVE_RUNS,
        }
    }

    /// Nothing is heard: the way out may have changed without an error that says so.
    pub(super) fn on_silence(&mut self, now: Instant) {
        if self.own.is_old(now) {
            self.renew(now);
        }
    }

    /// A connected socket keeps the source address that it began with. When that has gone, or leads
    /// nowhere any more, a new one finds today's; until then the listening socket speaks, which is
    /// bound to none.
    fn renew(&mut self, now: Instant) {
        if self.own.renew(now) {
            (self.unsent, self.local) = (None, None);
        }
    }

    /// Keeps a socket connected to where the peer is now.
    pub(super) fn follow(&mut self, remote: SocketAddr, now: Instant) {
        if self.forgets {
            self.forget_now();
        }
        self.own.follow(remote, self.local, now);
    }

    /// The batch that waits for room.
    pub(super) fn take_unsent(&mut self) -> Option<Batch> {
        self.unsent.take()
    }

    /// Room for the bytes of a new batch, empty.
    pub(super) fn new_batch(&mut self) -> &mut Vec<u8> {
        self.batch.clear();
        &mut self.batch
    }

    /// Gives the batch to the kernel; false when the kernel has no room: it is kept for when there
    /// is.
    pub(super) fn send(&mut self, batch: Batch, peer: &mut Peer, now: Instant) -> bool {
        let sent = match (self.forgets, batch.kind) {
            (false, _) => self.give_to_kernel(batch, now),
            (true, TransmitKind::Session) => {
                let sent = self.give_to_kernel(batch, now);
                self.forget_now();
                sent
            }
            (true, TransmitKind::Call | TransmitKind::Answer(_)) => {
                self.forget_now();
                self.give_to_kernel(batch, now)
            }
        };
        match sent {
            Sent::Blocked => return false,
            Sent::All | Sent::Failed => {}
            Sent::TooLarge => peer.on_too_large(batch.segment.min(self.batch.len()), now),
        }
        true
    }

    fn give_to_kernel(&mut self, batch: Batch, now: Instant) -> Sent {
        let Batch { to, kind, segment } = batch;
        let own = match kind {
            TransmitKind::Answer(_) => None,
            TransmitKind::Call | TransmitKind::Session => self.own.link_to(to),
        };
        let (is_own, sent) = match (own, kind) {
            (Some(link), _) => {
                self.batch
                    .chunks(segment)
                    .for_each(|datagram| self.marks.note(datagram));
                (true, link.send(to, None, &self.batch, segment))
            }
            (None, kind) => {
                let source = match kind {
                    TransmitKind::Answer(attempt) => self.callers.came_at(to, attempt),
                    TransmitKind::Call => None,
                    TransmitKind::Session => self.local,
                };
                (false, self.listener.send(to, source, &self.batch, segment))
            }
        };
        match sent {
            Sent::Blocked if is_own => {
                self.unsent = Some(batch);
                self.own.on_blocked();
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
