//! One life of the pair of movers: everything that begins new when the peer is a new instance.
//!
//! Joins the path, the sending half, the receiving half and the keys; fills datagrams and takes
//! them apart. `mover.rs` makes a connection when a handshake is done and drops it when the peer is
//! dead or another.

use std::net::SocketAddr;
use std::time::Duration;

use crate::config::{Config, Limits, RememberedPath};
use crate::crypto::{HEADER, Session, TAG};
use crate::error::AckError;
use crate::handshake::Established;
use crate::params::Params;
use crate::path::Path;
use crate::path::liveness::Finding;
use crate::recv::receiver::{AckRequest, OwnNumbers, Receiver};
use crate::send::load::{Filled, Load};
use crate::send::sender::Sender;
use crate::sessions::Sessions;
use crate::stats::{Counters, Gauges};
use crate::subfield::{self, Subfield, Subfields};
use crate::timer::{Earliest, Moment, Nanos, Timer};

/// The part of a datagram with data that an acknowledgement may take: one of three.
const RIDING_SHARE: usize = 3;
/// Copies of the goodbye: nobody will answer it.
const CLOSE_COPIES: usize = 3;
/// Without a configured rate: what the return path carries at least, as a part of what comes in.
const RETURN_SHARE: u64 = 16;
/// The same while datagrams are missing: acknowledgements are lost as well, and the window is not
/// to wait for them.
const RETURN_SHARE_MISSING: u64 = 8;

/// A session datagram as it came, with what its clear header says.
pub(crate) struct Incoming<'a> {
    pub(crate) from: SocketAddr,
    /// The session's index at our side.
    pub(crate) index: u32,
    /// The low 32 bits of its number.
    pub(crate) seq_low: u32,
    pub(crate) datagram: &'a mut [u8],
}

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

/// What the subfields of a datagram say beside what was taken from them at once.
#[derive(Default)]
struct Read {
    request: AckRequest,
    /// The peer says goodbye.
    closed: Option<u8>,
}

/// A datagram that was appended to a batch.
struct Emitted {
    length: usize,
    /// Bytes on the wire that the pacer counts: acknowledgements have a budget of their own.
    paced: u64,
}

/// The state between two instances.
pub(crate) struct Connection {
    path: Path,
    sender: Sender,
    receiver: Receiver,
    sessions: Sessions,
    peer: Params,
    /// The configured rate, bytes per second.
    rate: Option<u64>,
    /// The largest payload that we take, bytes.
    max_payload: usize,
    /// Bytes per second that the peer says it delivers.
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
            path: Path::new(config, remote, now),
            sender: Sender::new(config, first_physical, now),
            receiver: Receiver::new(&config.limits, now),
            sessions: Sessions::new(session, now),
            peer,
            rate: config.rate,
            max_payload: config.max_payload,
            peer_delivery_rate: 0,
        }
    }

    pub(crate) fn peer(&self) -> &Params {
        &self.peer
    }

    /// The largest payload that both sides take, bytes.
    pub(crate) fn max_payload(&self) -> usize {
        self.max_payload.min(self.peer.max_payload as usize)
    }

    /// The indices of the sessions that open, the current one first.
    pub(crate) fn indices(&self) -> impl Iterator<Item = u32> + '_ {
        self.sessions.indices()
    }

    pub(crate) fn remote(&self) -> SocketAddr {
        self.path.remote()
    }

    /// When the newest keys were agreed.
    pub(crate) fn keys_since(&self) -> Nanos {
        self.sessions.since()
    }

    /// When the keys that seal were agreed.
    pub(crate) fn sealing_since(&self) -> Nanos {
        self.sessions.sealing_since()
    }

    /// When the peer was heard last.
    pub(crate) fn heard_at(&self) -> Nanos {
        self.path.liveness().heard_at()
    }

    pub(crate) fn is_silent(&self) -> bool {
        self.path.liveness().is_silent()
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
        if self.is_silent() {
            self.path.move_to(remote, now);
        }
        // Both sides learn at once what the other lacks.
        self.path.ask();
        self.path.liveness_mut().on_heard(now)
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
            self.path
                .bandwidth()
                .max(self.receiver.arrival_rate() / share)
        })
    }

    // --- in
    // ---------------------------------------------------------------------------------------------

    /// A session datagram. Nothing changes unless it opens.
    pub(crate) fn handle_datagram(
        &mut self,
        incoming: Incoming<'_>,
        now: Moment,
        counters: &mut Counters,
    ) -> Received {
        let Incoming {
            from,
            index,
            seq_low,
            datagram,
        } = incoming;
        let number = self.receiver.recover(seq_low);
        let Some(session) = self.sessions.find(index) else {
            counters.drops.unknown_session += 1;
            return Received::default();
        };
        if !self.receiver.is_new(number) {
            let too_old = self.receiver.is_too_old(number);
            counters.drops.too_old += u64::from(too_old);
            counters.drops.replayed += u64::from(!too_old);
            return Received::default();
        }
        let length = datagram.len();
        let plain = match session.open(number, datagram, now.instant) {
            Ok(plain) => plain,
            Err(error) => {
                counters.drops.on_unopened(error);
                return Received::default();
            }
        };
        let now = now.nanos;
        counters.path.datagrams_received += 1;
        counters.path.bytes_received += length as u64;
        self.receiver.on_datagram(length, now);
        let until = now + self.path.three_probe_times();
        let mut received = Received {
            heard: true,
            confirmed: self.sessions.on_opened(index, until).then_some(index),
            ended_silence: self.path.liveness_mut().on_heard(now),
            closed: None,
        };
        if from != self.path.remote() && self.receiver.is_highest(number) {
            self.path.move_to(from, now);
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
        let Read {
            request,
            mut closed,
        } = self.read_subfields(plain, number, now, counters);
        self.receiver
            .on_taken(number, &request, self.path.min_rtt(), now);
        if request.protected && !request.refused {
            self.receiver.keep(number, plain);
        }
        while let Some((number, plain)) = self.receiver.poll_rebuilt() {
            let read = self.read_subfields(&plain, number, now, counters);
            closed = closed.or(read.closed);
            self.receiver
                .on_rebuilt(number, &read.request, self.path.min_rtt(), now);
        }
        closed
    }

    fn read_subfields(
        &mut self,
        plain: &[u8],
        number: u64,
        now: Nanos,
        counters: &mut Counters,
    ) -> Read {
        let mut read = Read::default();
        let request = &mut read.request;
        for subfield in Subfields::new(plain, number, self.max_payload) {
            match subfield {
                Ok(Subfield::Padding) => {}
                Ok(Subfield::Data(data)) => self.receiver.handle_data(&data, request),
                Ok(Subfield::Ping) => (request.asks, request.at_once) = (true, true),
                Ok(Subfield::Close { reason }) => read.closed = Some(reason),
                Ok(Subfield::Parity(parity)) => {
                    self.receiver.handle_parity(&parity, number, request)
                }
                Ok(Subfield::Ack(ack)) => {
                    self.receiver.handle_ack(&ack, number);
                    self.handle_ack(&ack, now, counters);
                }
                Err(error) => counters.drops.breaches.on_unparsed(error),
            }
        }
        read
    }

    fn handle_ack(&mut self, ack: &subfield::Ack<'_>, now: Nanos, counters: &mut Counters) {
        match self.sender.on_ack(ack, &mut self.path, now) {
            Ok(()) => {
                counters.sender.acks_received += 1;
                self.peer_delivery_rate = u64::from(ack.rate) * subfield::RATE_UNIT;
            }
            Err(AckError::Unsent) => counters.drops.breaches.acks_of_unsent += 1,
            Err(AckError::Malformed(error)) => counters.drops.breaches.on_unparsed(error),
        }
    }

    /// The link could not send datagrams this large.
    pub(crate) fn on_too_large(&mut self, size: usize, now: Nanos) {
        self.path.on_too_large(size, now);
    }

    /// The link heard that nobody listens at the peer's port.
    pub(crate) fn on_refused(&mut self, now: Nanos) {
        self.path.on_refused(now);
    }

    // --- payloads
    // ---------------------------------------------------------------------------------------------

    /// Takes a payload, or gives it back if it is empty or too large, or if there is no room.
    pub(crate) fn send(
        &mut self,
        payload: Vec<u8>,
        urgent: bool,
        now: Nanos,
    ) -> Result<(), Vec<u8>> {
        if payload.len() > self.max_payload() {
            return Err(payload);
        }
        self.sender.push(payload, urgent, &mut self.path, now)
    }

    /// Payload bytes that could leave at once, with nothing queued before them.
    pub(crate) fn poll_budget(&mut self, now: Nanos) -> usize {
        self.sender.poll_budget(&mut self.path, now)
    }

    /// Whether a datagram may leave now, and nothing urgent waits.
    pub(crate) fn takes_urgent(&self, now: Nanos) -> bool {
        self.sender.takes_urgent(&self.path, now)
    }

    pub(crate) fn take_buffer(&mut self) -> Vec<u8> {
        self.sender.take_buffer()
    }

    pub(crate) fn return_buffer(&mut self, buffer: Vec<u8>) {
        self.sender.return_buffer(buffer);
    }

    pub(crate) fn poll_payload(&mut self) -> Option<Vec<u8>> {
        self.receiver.poll_payload()
    }

    pub(crate) fn recycle(&mut self, buffer: Vec<u8>) {
        self.receiver.recycle(buffer);
    }

    /// Bytes held in both directions.
    pub(crate) fn held(&self) -> usize {
        self.sender.held() + self.receiver.held()
    }

    /// What payloads may cost from now on, in each direction, as far as the configuration allows.
    pub(crate) fn set_limit(&mut self, bytes: usize, limits: &Limits) {
        self.sender.set_limit(bytes.min(limits.send_bytes));
        self.receiver.set_limit(bytes.min(limits.reassembly_bytes));
    }

    /// `streams` streams are carried.
    pub(crate) fn set_stream_count(&mut self, streams: usize, now: Nanos) {
        self.path.set_stream_count(streams, now);
    }

    // --- out
    // ---------------------------------------------------------------------------------------------

    /// Appends a batch of datagrams: all of the returned size except that the last may be shorter.
    pub(crate) fn poll_transmit(
        &mut self,
        out: &mut Vec<u8>,
        now: Moment,
        counters: &mut Counters,
    ) -> Option<usize> {
        let ack_due = self
            .receiver
            .ack_deadline(self.return_rate())
            .is_some_and(|due| due <= now.nanos);
        // A load may turn out empty: repairs whose bytes were acknowledged in the meantime.
        while let Some(load) = self.sender.poll_load(ack_due, &mut self.path, now.nanos) {
            let size = self.path.size_for(load);
            let allowance = self.sender.poll_allowance(&mut self.path, now.nanos);
            let Some(first) = self.emit(out, size, load, now, counters) else {
                continue;
            };
            let (mut last, mut paced, mut count) = (first.length, first.paced, 1);
            while load == Load::Data
                && last == size
                && count < Limits::BATCH_DATAGRAMS
                && out.len() + size <= Limits::BATCH_BYTES
                && self.sender.has_waiting()
                && paced + paced / count as u64 <= allowance
            {
                let Some(next) = self.emit(out, size, load, now, counters) else {
                    break;
                };
                last = next.length;
                paced += next.paced;
                count += 1;
            }
            self.sender.on_batch(paced, &mut self.path, now.nanos);
            return Some(first.length);
        }
        None
    }

    /// Appends one datagram of at most `size` bytes, if anything is left to say.
    fn emit(
        &mut self,
        out: &mut Vec<u8>,
        size: usize,
        load: Load,
        now: Moment,
        counters: &mut Counters,
    ) -> Option<Emitted> {
        let start = out.len();
        let end = start + size - TAG;
        out.extend_from_slice(&[0; HEADER]);
        let number = self.sender.next_number();
        if let Some(room) = self.ack_room(load, size, end - out.len(), now.nanos) {
            let own = OwnNumbers {
                highest_sent: number,
                floor: self.sender.take_floor(),
            };
            self.receiver
                .emit_ack(out, room, own, self.return_rate(), now.nanos);
        }
        let filled = self.sender.fill(out, end, load, &self.path);
        if out.len() == start + HEADER {
            out.truncate(start);
            return None;
        }
        if filled.protected {
            let plain = &out[start + HEADER..];
            self.sender.protect(number, plain, &self.path, now.nanos);
        }
        out.extend_from_slice(&[0; TAG]);
        self.sessions.seal(number, &mut out[start..], now.instant);
        let length = out.len() - start;
        let wire = self
            .sender
            .on_sent(length, load, filled, &mut self.path, now.nanos);
        counters.path.datagrams_sent += 1;
        counters.path.bytes_sent += length as u64;
        counters.path.probes_sent += u64::from(matches!(load, Load::Probe { .. }));
        Some(Emitted {
            length,
            paced: if filled.asks { wire } else { 0 },
        })
    }

    /// Bytes for an acknowledgement in a datagram of `size` with `left` bytes free, if one belongs
    /// into it.
    fn ack_room(&self, load: Load, size: usize, left: usize, now: Nanos) -> Option<usize> {
        let urgent = load == Load::Data && self.sender.has_urgent();
        let may_ride = self.sender.is_floor_outdated()
            || self.receiver.may_ride(urgent, self.path.min_rtt(), now);
        match load {
            Load::Ack => Some(left - subfield::PING),
            // A parity row is as long as the longest datagram, and so may the last one be that
            // leaves again: nothing rides on them.
            Load::Parity | Load::Tail => None,
            Load::Ping => may_ride.then_some(left - subfield::PING),
            Load::Data | Load::Probe { .. } | Load::Size(_) => {
                may_ride.then_some((size / RIDING_SHARE).min(left))
            }
        }
    }

    /// The goodbye, some times over. The connection is over after it. Returns the size of each.
    pub(crate) fn emit_close(&mut self, out: &mut Vec<u8>, reason: u8, now: Moment) -> usize {
        for _ in 0..CLOSE_COPIES {
            self.emit_plain(out, |_, out| subfield::emit_close(out, reason), now);
        }
        HEADER + subfield::CLOSE + TAG
    }

    /// For hostile worlds: any subfields as the next datagram, after `skip` numbers that are never
    /// used.
    pub(crate) fn forge(
        &mut self,
        skip: u64,
        plain: impl FnOnce(u64, &mut Vec<u8>),
        now: Moment,
    ) -> Vec<u8> {
        for _ in 0..skip {
            self.on_plain_sent(HEADER + TAG, now.nanos);
        }
        let mut datagram = Vec::new();
        self.emit_plain(&mut datagram, plain, now);
        datagram
    }

    /// Appends a datagram of these subfields, which asks for nothing and is not repeated.
    fn emit_plain(
        &mut self,
        out: &mut Vec<u8>,
        plain: impl FnOnce(u64, &mut Vec<u8>),
        now: Moment,
    ) {
        let (start, number) = (out.len(), self.sender.next_number());
        out.extend_from_slice(&[0; HEADER]);
        plain(number, out);
        out.extend_from_slice(&[0; TAG]);
        self.sessions.seal(number, &mut out[start..], now.instant);
        self.on_plain_sent(out.len() - start, now.nanos);
    }

    fn on_plain_sent(&mut self, length: usize, now: Nanos) {
        self.sender
            .on_sent(length, Load::Ack, Filled::default(), &mut self.path, now);
    }

    // --- time
    // ---------------------------------------------------------------------------------------------

    pub(crate) fn deadlines(&self, earliest: &mut Earliest) {
        self.sender.deadlines(&self.path, earliest);
        self.path.deadlines(earliest);
        earliest.consider(
            self.receiver.ack_deadline(self.return_rate()),
            Timer::Acknowledge,
        );
        self.path.liveness().deadlines(earliest);
        earliest.consider(self.sessions.deadline(), Timer::Session);
    }

    pub(crate) fn handle_timeout(&mut self, now: Nanos) -> Option<Finding> {
        self.sessions.handle_timeout(now);
        self.sender.handle_timeout(&mut self.path, now);
        self.sender.release_idle(now);
        self.receiver.release_idle(now);
        if self.path.liveness_mut().take_ping(now) {
            self.path.ask();
        }
        self.path.liveness_mut().handle_timeout(now)
    }

    // --- for people and worlds
    // ---------------------------------------------------------------------------------------------

    /// Bytes per second on the wire that leave at most.
    pub(crate) fn pacing_rate(&self) -> u64 {
        self.path.rate()
    }

    /// Smoothed round trip.
    pub(crate) fn rtt(&self) -> Option<Duration> {
        self.path.rtt().smoothed().map(Duration::from_nanos)
    }

    /// Shortest round trip.
    pub(crate) fn min_rtt(&self) -> Option<Duration> {
        self.path.min_rtt().map(Duration::from_nanos)
    }

    /// Bytes of a payload that is worth its headers.
    pub(crate) fn preferred_payload(&self) -> usize {
        self.path.preferred_payload()
    }

    /// Bytes of payload that fit into one datagram.
    pub(crate) fn segment_payload(&self) -> usize {
        self.path.segment_payload()
    }

    /// Bytes of an urgent payload that fit into one datagram, with what its parity needs.
    pub(crate) fn urgent_payload(&self) -> usize {
        self.path.segment_payload() - crate::fec::RESERVE
    }

    /// What is known of the path, if anything is.
    pub(crate) fn path_to_remember(&self) -> Option<RememberedPath> {
        self.path.to_remember()
    }

    /// Adds what this connection has counted.
    pub(crate) fn count(&self, counters: &mut Counters) {
        self.path.count(&mut counters.path);
        self.sender.count(counters);
        self.receiver.count(counters);
    }

    pub(crate) fn gauges(&self) -> Gauges {
        let mut gauges = Gauges {
            path: self.path.gauges(),
            sender: self.sender.gauges(),
            receiver: self.receiver.gauges(),
            keys_since: None,
        };
        gauges.sender.peer_delivery_rate = self.peer_delivery_rate;
        gauges
    }

    pub(crate) fn check_invariants(&self) {
        self.path.check_invariants();
        self.sender.check_invariants(&self.path);
        self.receiver.check_invariants();
    }

    pub(crate) fn check_sums(&self) {
        self.sender.check_sums(&self.path);
        self.receiver.check_sums();
    }
}
