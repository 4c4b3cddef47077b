//! One life of the pair of movers: everything that begins new when the peer is a new instance.
//!
//! Joins the sending half, the receiving half, the keys and the watch over the peer; fills
//! datagrams and takes them apart. `mover.rs` makes a connection when a handshake is done and drops
//! it when the peer is dead or another.

use std::net::SocketAddr;
use std::time::Instant;

use crate::config::{Config, Limits};
use crate::crypto::{HEADER, Session, TAG};
use crate::handshake::Established;
use crate::liveness::{Finding, Liveness};
use crate::params::Params;
use crate::recv::{Receiver, Wishes};
use crate::send::{AckError, Filled, Load, Sender};
use crate::sessions::Sessions;
use crate::stats::{Counters, Gauges};
use crate::subfield::{self, Subfield, Subfields};
use crate::timer::{Earliest, Nanos, Timer};

/// The part of a datagram with data that an acknowledgement may take.
const RIDING_SHARE: usize = 3;
/// Copies of the goodbye: nobody will answer it.
const CLOSE_COPIES: usize = 3;
/// Without a configured rate: what the return path carries at least, as a share of what comes in.
const RETURN_SHARE: u64 = 16;
/// And while datagrams are missing: acknowledgements are lost as well, and the window is not to
/// wait for them.
const RETURN_SHARE_MISSING: u64 = 8;

/// What a received datagram changed.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(crate) struct Received {
    /// It opened: the peer was heard.
    pub(crate) heard: bool,
    /// It is the first one of the session with this index: the peer has its keys.
    pub(crate) confirmed: Option<u32>,
    /// It ended a silence.
    pub(crate) ended_silence: bool,
    /// The peer says goodbye.
    pub(crate) closed: Option<u8>,
}

/// The state between two instances.
pub(crate) struct Connection {
    pub(crate) sender: Sender,
    pub(crate) receiver: Receiver,
    pub(crate) liveness: Liveness,
    sessions: Sessions,
    remote: SocketAddr,
    peer: Params,
    rate: Option<u64>,
    max_payload: usize,
    peer_delivery_rate: u64,
}

impl Connection {
    pub(crate) fn new(
        config: &Config,
        first_physical: u64,
        peer: Params,
        session: Session,
        remote: SocketAddr,
        now: Nanos,
    ) -> Connection {
        Connection {
            sender: Sender::new(config, first_physical, remote, now),
            receiver: Receiver::new(&config.limits, now),
            liveness: Liveness::new(config, now),
            sessions: Sessions::new(session, now),
            remote,
            peer,
            rate: config.rate,
            max_payload: config.max_payload,
            peer_delivery_rate: 0,
        }
    }

    pub(crate) fn peer(&self) -> &Params {
        &self.peer
    }

    /// The indices of the sessions that open, the current one first.
    pub(crate) fn indices(&self) -> impl Iterator<Item = u32> + '_ {
        self.sessions.indices()
    }

    pub(crate) fn remote(&self) -> SocketAddr {
        self.remote
    }

    /// When the newest keys were agreed.
    pub(crate) fn keys_since(&self) -> Nanos {
        self.sessions.since()
    }

    /// When the keys that seal were agreed.
    pub(crate) fn sealing_since(&self) -> Nanos {
        self.sessions.sealing_since()
    }

    /// A new handshake with the same instance is done: everything goes on under new keys. True if
    /// that ended a silence.
    pub(crate) fn rekey(&mut self, established: Established, now: Nanos) -> bool {
        let Established {
            session,
            remote,
            initiator,
            ..
        } = established;
        if initiator {
            self.sessions.offer(session, now);
        } else {
            self.sessions.adopt(session, now);
        }
        // Where a peer is that we hear, its datagrams tell: that of the handshake may be a copy
        // from elsewhere.
        if self.liveness.is_silent() {
            self.move_to(remote, now);
        }
        // Both sides learn at once what the other lacks.
        self.sender.ask();
        self.liveness.on_heard(now)
    }

    fn move_to(&mut self, remote: SocketAddr, now: Nanos) {
        if remote != self.remote {
            self.remote = remote;
            self.sender.on_new_path(remote, now);
        }
    }

    /// Bytes per second that the way back surely carries: what acknowledgements may take a share
    /// of.
    fn return_rate(&self) -> u64 {
        let share = if self.receiver.is_missing() {
            RETURN_SHARE_MISSING
        } else {
            RETURN_SHARE
        };
        self.rate.unwrap_or_else(|| {
            self.sender
                .bandwidth()
                .max(self.receiver.arrival_rate() / share)
        })
    }

    // --- in
    // ---------------------------------------------------------------------------------------------

    /// A session datagram. Nothing changes unless it opens.
    pub(crate) fn handle_datagram(
        &mut self,
        from: SocketAddr,
        (index, low): (u32, u32),
        datagram: &mut [u8],
        instant: Instant,
        now: Nanos,
        counters: &mut Counters,
    ) -> Received {
        let number = self.receiver.recover(low);
        let Some(session) = self.sessions.find(index) else {
            counters.drops.unknown_session += 1;
            return Received::default();
        };
        if !self.receiver.bitmap.is_new(number) {
            let too_old = number < self.receiver.bitmap.start();
            counters.drops.too_old += u64::from(too_old);
            counters.drops.replayed += u64::from(!too_old);
            return Received::default();
        }
        let length = datagram.len();
        let plain = match session.open(number, datagram, instant) {
            Ok(plain) => plain,
            Err(error) => {
                counters.drops.on_unopened(error);
                return Received::default();
            }
        };
        counters.path.datagrams_received += 1;
        counters.path.bytes_received += length as u64;
        self.receiver.on_datagram(length, now);
        let until = now + self.sender.three_probe_times();
        let mut received = Received {
            heard: true,
            confirmed: self.sessions.on_opened(index, until).then_some(index),
            ended_silence: self.liveness.on_heard(now),
            closed: None,
        };
        if from != self.remote
            && self
                .receiver
                .bitmap
                .highest()
                .is_none_or(|highest| number > highest)
        {
            self.move_to(from, now);
            counters.path.moves += 1;
        }
        received.closed = self.take_subfields(plain, number, now, counters);
        received
    }

    fn take_subfields(
        &mut self,
        plain: &[u8],
        number: u64,
        now: Nanos,
        counters: &mut Counters,
    ) -> Option<u8> {
        let (mut closed, wishes) = self.read_subfields(plain, number, now, counters);
        self.receiver
            .on_taken(number, &wishes, self.sender.rtt().minimum(), now);
        if wishes.protected && !wishes.refused {
            self.receiver.keep(number, plain);
        }
        while let Some((number, plain)) = self.receiver.poll_rebuilt() {
            let (close, wishes) = self.read_subfields(&plain, number, now, counters);
            closed = closed.or(close);
            self.receiver
                .on_rebuilt(number, &wishes, self.sender.rtt().minimum(), now);
        }
        closed
    }

    fn read_subfields(
        &mut self,
        plain: &[u8],
        number: u64,
        now: Nanos,
        counters: &mut Counters,
    ) -> (Option<u8>, Wishes) {
        let mut wishes = Wishes::default();
        let mut closed = None;
        for subfield in Subfields::new(plain, number, self.max_payload) {
            match subfield {
                Ok(Subfield::Padding) => {}
                Ok(Subfield::Data(data)) => self.receiver.handle_data(&data, &mut wishes),
                Ok(Subfield::Ping) => (wishes.asks, wishes.at_once) = (true, true),
                Ok(Subfield::Close { reason }) => closed = Some(reason),
                Ok(Subfield::Parity(parity)) => {
                    self.receiver.handle_parity(&parity, number, &mut wishes)
                }
                Ok(Subfield::Ack(ack)) => {
                    self.receiver.handle_ack(&ack, number);
                    match self.sender.on_ack(&ack, now) {
                        Ok(()) => {
                            counters.sender.acks_received += 1;
                            self.peer_delivery_rate = u64::from(ack.rate) * subfield::RATE_UNIT;
                        }
                        Err(AckError::Unsent) => counters.drops.breaches.acks_of_unsent += 1,
                        Err(AckError::Malformed(error)) => {
                            counters.drops.breaches.on_unparsed(error)
                        }
                    }
                }
                Err(error) => counters.drops.breaches.on_unparsed(error),
            }
        }
        (closed, wishes)
    }

    // --- out
    // ---------------------------------------------------------------------------------------------

    /// Appends a batch of datagrams: all of the returned size except that the last may be shorter.
    pub(crate) fn poll_transmit(
        &mut self,
        out: &mut Vec<u8>,
        instant: Instant,
        now: Nanos,
        counters: &mut Counters,
    ) -> Option<usize> {
        let ack_due = self
            .receiver
            .ack_deadline(self.return_rate())
            .is_some_and(|due| due <= now);
        // A load may turn out empty: repairs whose bytes were acknowledged in the meantime.
        while let Some(load) = self.sender.next_load(ack_due, now) {
            let size = self.sender.size_for(load);
            let allowance = self.sender.allowance(now);
            let (first, mut wire) = self.emit(out, size, load, instant, now, counters);
            if first == 0 {
                continue;
            }
            let mut last = first;
            let mut count = 1;
            while load == Load::Data
                && last == size
                && count < Limits::BATCH_DATAGRAMS
                && out.len() + size <= Limits::BATCH_BYTES
                && self.sender.has_waiting()
                && wire + wire / count as u64 <= allowance
            {
                let (length, more) = self.emit(out, size, load, instant, now, counters);
                if length == 0 {
                    break;
                }
                last = length;
                wire += more;
                count += 1;
            }
            self.sender.on_batch(wire, now);
            self.liveness.on_sent(now);
            return Some(first);
        }
        None
    }

    /// Appends one datagram of at most `size` bytes; its length and its paced bytes on the wire.
    /// Nothing, if nothing is left to say.
    fn emit(
        &mut self,
        out: &mut Vec<u8>,
        size: usize,
        load: Load,
        instant: Instant,
        now: Nanos,
        counters: &mut Counters,
    ) -> (usize, u64) {
        let start = out.len();
        let end = start + size - TAG;
        out.extend_from_slice(&[0; HEADER]);
        let number = self.sender.next_number();
        // A parity row is as long as the longest datagram, and so may the last one be that leaves
        // again: nothing rides on them.
        let urgent = load == Load::Data && self.sender.has_urgent();
        let may_ride = self.sender.tells_floor()
            || self
                .receiver
                .may_ride(urgent, self.sender.rtt().minimum(), now);
        let rides = !matches!(load, Load::Parity | Load::Tail) && may_ride;
        if load == Load::Ack || rides {
            let room = match load {
                Load::Ack | Load::Ping => end - out.len() - subfield::PING,
                Load::Data | Load::Parity | Load::Tail | Load::Probe { .. } | Load::Size(_) => {
                    (size / RIDING_SHARE).min(end - out.len())
                }
            };
            let own = (number, self.sender.tell_floor());
            self.receiver
                .emit_ack(out, room, own, self.return_rate(), now);
        }
        let filled = self.sender.fill(out, end, load);
        let asks = filled.asks;
        if out.len() == start + HEADER {
            out.truncate(start);
            return (0, 0);
        }
        if filled.protected {
            self.sender.protect(number, &out[start + HEADER..], now);
        }
        out.extend_from_slice(&[0; TAG]);
        self.sessions.seal(number, &mut out[start..], instant);
        let length = out.len() - start;
        let wire = self.sender.on_sent(length, load, filled, now);
        counters.path.datagrams_sent += 1;
        counters.path.bytes_sent += length as u64;
        counters.path.probes_sent += u64::from(matches!(load, Load::Probe { .. }));
        // Acknowledgements have a budget of their own.
        (length, if asks { wire } else { 0 })
    }

    /// The goodbye, some times over. The connection is over after it.
    pub(crate) fn emit_close(
        &mut self,
        out: &mut Vec<u8>,
        reason: u8,
        instant: Instant,
        now: Nanos,
    ) -> usize {
        let length = HEADER + subfield::CLOSE + TAG;
        for _ in 0..CLOSE_COPIES {
            let start = out.len();
            out.extend_from_slice(&[0; HEADER]);
            subfield::emit_close(out, reason);
            out.extend_from_slice(&[0; TAG]);
            self.sessions
                .seal(self.sender.next_number(), &mut out[start..], instant);
            self.sender
                .on_sent(length, Load::Ack, Filled::default(), now);
        }
        length
    }

    /// For hostile worlds: any subfields as the next datagram, after so many numbers that are never
    /// used.
    pub(crate) fn forge(
        &mut self,
        skip: u64,
        plain: impl FnOnce(u64, &mut Vec<u8>),
        times: (Instant, Nanos),
    ) -> Vec<u8> {
        let (instant, now) = times;
        for _ in 0..skip {
            self.sender
                .on_sent(HEADER + TAG, Load::Ack, Filled::default(), now);
        }
        let number = self.sender.next_number();
        let mut datagram = vec![0; HEADER];
        plain(number, &mut datagram);
        datagram.extend_from_slice(&[0; TAG]);
        self.sessions.seal(number, &mut datagram, instant);
        self.sender
            .on_sent(datagram.len(), Load::Ack, Filled::default(), now);
        datagram
    }

    // --- time
    // ---------------------------------------------------------------------------------------------

    pub(crate) fn deadlines(&self, earliest: &mut Earliest) {
        self.sender.deadlines(earliest);
        earliest.consider(
            self.receiver.ack_deadline(self.return_rate()),
            Timer::Acknowledge,
        );
        self.liveness.deadlines(earliest);
        earliest.consider(self.sessions.deadline(), Timer::Session);
    }

    pub(crate) fn handle_timeout(&mut self, now: Nanos) -> Option<Finding> {
        self.sessions.handle_timeout(now);
        self.sender.handle_timeout(now);
        self.sender.rest(now);
        self.receiver.rest(now);
        if self.liveness.take_ping(now) {
            self.sender.ask();
        }
        self.liveness.handle_timeout(now)
    }

    /// Adds what this connection has counted.
    pub(crate) fn count(&self, counters: &mut Counters) {
        self.sender.count(counters);
        self.receiver.count(counters);
    }

    pub(crate) fn gauges(&self) -> Gauges {
        let mut gauges = Gauges {
            path: self.sender.path_gauges(),
            sender: self.sender.gauges(),
            receiver: self.receiver.gauges(),
            keys_since: None,
        };
        gauges.sender.peer_delivery_rate = self.peer_delivery_rate;
        gauges
    }
}
