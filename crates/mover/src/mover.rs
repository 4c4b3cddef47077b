//! The data mover towards one peer: joins the handshake, the connection and the caller, and decides
//! nothing else.
//!
//! Life: *connecting* (no connection; the handshake tries if it knows where) → *connected* (a
//! [`Connection`]; it survives silence, new keys and new addresses) → *connecting* again when the
//! peer is dead, has closed or is a new instance. On demand: *at rest* in place of connecting,
//! until somebody asks for a connection or the peer calls. Driven like every pure machine here: one
//! input, then every poll, then the next input.

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use aws_lc_rs::hkdf::{HKDF_SHA256, Prk};

use crate::config::{Config, Limits, RememberedPath};
use crate::connection::Connection;
use crate::crypto::{Outer, expand, peek};
use crate::event::{Event, Reason};
use crate::handshake::{Established, Handshake, HandshakeError, call_number};
use crate::liveness::Finding;
use crate::params::{MIN_PAYLOAD, Params};
use crate::stats::{Counters, Gauges, Stats};
use crate::timer::{Clock, Earliest, Nanos, Timer, nanos};
use crate::transmit::{Origin, Transmit, TransmitKind};

/// The only reason on the wire so far: the side that says it is going away.
const CLOSE_GOING_AWAY: u8 = 0;
/// The start of physical numbers is random below this: not guessable, and far from the wrap of the
/// low 32 bits.
const FIRST_PHYSICAL_BITS: u32 = 20;

/// The reliable, secret way to one peer.
pub struct Mover {
    config: Config,
    clock: Clock,
    handshake: Handshake,
    /// Age of the keys at which we ask for new ones.
    rekey_after: Nanos,
    connection: Option<Connection>,
    instance: u64,
    first_physical: u64,
    /// What was last known of the path when a connection ended, and when that was.
    remembered: Option<(RememberedPath, Nanos)>,
    events: VecDeque<Event>,
    /// Counters of what is no more a part, and of what never was.
    counters: Counters,
    /// What `set_memory` allowed last.
    memory: usize,
    closing: bool,
    closed: bool,
    /// A connection is asked for: the peer is called until it answers.
    wanted: bool,
    /// The connection ends with a goodbye, and we rest.
    leaving: bool,
}

impl Mover {
    /// A mover that starts to connect at once if it knows where.
    pub fn new(mut config: Config, now: Instant) -> Mover {
        config.max_payload = config
            .max_payload
            .clamp(MIN_PAYLOAD as usize, Limits::MAX_PAYLOAD);
        let root = Prk::new_less_safe(HKDF_SHA256, &config.seed);
        let mut random = [0; 12];
        expand(&root, b"tpo instance", &mut random);
        let (instance, first) = random.split_at(8);
        // Zero would mean "none".
        let instance = u64::from_le_bytes(instance.try_into().expect("eight bytes")).max(1);
        let first =
            u32::from_le_bytes(first.try_into().expect("four bytes")) >> (32 - FIRST_PHYSICAL_BITS);
        let handshake = Handshake::new(
            config.identity.clone(),
            config.peer_key,
            config.pre_shared.clone(),
            config.slot,
            config.seed,
        );
        // Both sides watch the age of their keys; that they do not call at once saves a handshake,
        // no more.
        let after = nanos(config.limits.rekey_after);
        let is_lower = config.identity.public_key() < config.peer_key;
        let rekey_after = if is_lower {
            after
        } else {
            after.saturating_add(after / 10)
        };
        let mut mover = Mover {
            first_physical: config.limits.first_physical.unwrap_or(u64::from(first)),
            clock: Clock::new(now),
            handshake,
            rekey_after,
            connection: None,
            remembered: config.remembered_path.map(|path| (path, 0)),
            instance,
            events: VecDeque::new(),
            counters: Counters::default(),
            memory: usize::MAX,
            closing: false,
            closed: false,
            wanted: !config.on_demand,
            leaving: false,
            config,
        };
        mover.connect_anew(now);
        mover
    }

    // --- the link side
    // ---------------------------------------------------------------------------------------------

    /// One received datagram, already cut out of a larger buffer. Opened in place. Never panics,
    /// whatever the bytes. Says what it has proved: the caller learns nothing else from it either.
    pub fn handle_datagram(
        &mut self,
        from: SocketAddr,
        datagram: &mut [u8],
        now: Instant,
    ) -> Origin {
        if self.closed {
            return Origin::Unknown;
        }
        match peek(datagram) {
            Some(Outer::Handshake { .. } | Outer::Retry { .. }) => {
                // The error is counted by the handshake itself and changes nothing.
                let result = self.handshake.handle_datagram(from, datagram, now);
                let completed = self.take_established(now);
                match result {
                    _ if completed => Origin::Peer,
                    Ok(()) => call_number(datagram).map_or(Origin::Unknown, Origin::Caller),
                    Err(HandshakeError::Stranger | HandshakeError::Unproved) => Origin::Stranger,
                    Err(_) => Origin::Unknown,
                }
            }
            Some(Outer::Session { index, seq_low, .. }) => {
                self.handle_session(from, (index, seq_low), datagram, now)
            }
            None => {
                self.counters.drops.foreign += 1;
                Origin::Unknown
            }
        }
    }

    /// The session indices by which datagrams find us now: of the sessions first, then of attempts
    /// that may become one.
    pub fn indices(&self) -> impl Iterator<Item = u32> + '_ {
        self.connection
            .iter()
            .flat_map(Connection::indices)
            .chain(self.handshake.indices())
    }

    fn handle_session(
        &mut self,
        from: SocketAddr,
        name: (u32, u32),
        datagram: &mut [u8],
        now: Instant,
    ) -> Origin {
        let Some(connection) = &mut self.connection else {
            self.counters.drops.unknown_session += 1;
            return Origin::Unknown;
        };
        let time = self.clock.read(now);
        let received =
            connection.handle_datagram(from, name, datagram, now, time, &mut self.counters);
        if let Some(index) = received.confirmed {
            self.handshake.on_confirmed(index);
        }
        if received.ended_silence {
            self.tell(Event::Heard);
        }
        if received.closed.is_some() {
            self.die(Reason::Closed, now);
        }
        if received.heard {
            Origin::Peer
        } else {
            Origin::Unknown
        }
    }

    /// The time that `poll_timeout` named has come. Calling it earlier does no harm.
    pub fn handle_timeout(&mut self, now: Instant) {
        if self.closed {
            return;
        }
        let time = self.clock.read(now);
        self.handshake.handle_timeout(now);
        self.take_established(now);
        let Some(connection) = &mut self.connection else {
            return;
        };
        let finding = connection.handle_timeout(time);
        let long_silent =
            time >= connection.liveness.heard_at() + nanos(self.config.limits.handshake_after);
        match finding {
            Some(Finding::Silent) => self.tell(Event::Silent),
            Some(Finding::Dead) => self.die(Reason::Silence, now),
            Some(Finding::Refused) => self.die(Reason::Refused, now),
            None => {}
        }
        let Some(connection) = &self.connection else {
            return;
        };
        if long_silent {
            // The old session stays: whichever is heard first goes on.
            let to = self.config.endpoint.unwrap_or(connection.remote());
            self.handshake.start(to, now);
        } else if time >= connection.keys_since().saturating_add(self.rekey_after) {
            self.handshake.start(connection.remote(), now);
        }
    }

    /// When `handle_timeout` is wanted next, and why.
    pub fn poll_timeout(&self) -> Option<(Instant, Timer)> {
        if self.closed {
            return None;
        }
        let mut earliest = Earliest::default();
        earliest.consider(
            self.handshake.poll_timeout().map(|at| self.clock.read(at)),
            Timer::Handshake,
        );
        if let Some(connection) = &self.connection {
            connection.deadlines(&mut earliest);
            let silence =
                connection.liveness.heard_at() + nanos(self.config.limits.handshake_after);
            let worn = connection.keys_since().saturating_add(self.rekey_after);
            let idle = !self.handshake.is_active();
            earliest.consider(idle.then_some(silence), Timer::Silence);
            earliest.consider(idle.then_some(worn), Timer::Rekey);
        }
        earliest
            .get()
            .map(|(at, timer)| (self.clock.instant(at), timer))
    }

    /// Appends datagrams to `out`, which the caller has cleared: all `segment_size` long except
    /// that the last may be shorter; at most 64 and 64,000 bytes. `None` when nothing may be sent
    /// now.
    pub fn poll_transmit(&mut self, out: &mut Vec<u8>, now: Instant) -> Option<Transmit> {
        if self.closed {
            return None;
        }
        let time = self.clock.read(now);
        if self.closing {
            self.closed = true;
            let connection = self.connection.as_mut()?;
            let segment_size = connection.emit_close(out, CLOSE_GOING_AWAY, now, time);
            let to = connection.remote();
            self.drop_connection(now);
            return Some(Transmit {
                to,
                kind: TransmitKind::Session,
                segment_size,
            });
        }
        if std::mem::take(&mut self.leaving)
            && let Some(connection) = self.connection.as_mut()
        {
            let segment_size = connection.emit_close(out, CLOSE_GOING_AWAY, now, time);
            let to = connection.remote();
            self.die(Reason::Closed, now);
            return Some(Transmit {
                to,
                kind: TransmitKind::Session,
                segment_size,
            });
        }
        if let Some((to, kind)) = self.handshake.poll_transmit(out, now) {
            return Some(Transmit {
                to,
                kind,
                segment_size: out.len(),
            });
        }
        let connection = self.connection.as_mut()?;
        let segment_size = connection.poll_transmit(out, now, time, &mut self.counters)?;
        Some(Transmit {
            to: connection.remote(),
            kind: TransmitKind::Session,
            segment_size,
        })
    }

    /// The link could not send datagrams this large.
    pub fn on_too_large(&mut self, size: usize, now: Instant) {
        let time = self.clock.read(now);
        if let Some(connection) = &mut self.connection {
            connection.sender.on_too_large(size, time);
        }
    }

    /// The link heard that nobody listens at the peer's port. A hint, believed only after several
    /// probes without an answer.
    pub fn on_refused(&mut self, now: Instant) {
        self.counters.path.refusals += 1;
        let time = self.clock.read(now);
        let Some(connection) = &mut self.connection else {
            return;
        };
        let round_trip = connection.sender.rtt().smoothed();
        connection.liveness.on_refused(round_trip, time);
    }

    // --- the engine side
    // ---------------------------------------------------------------------------------------------

    /// Payload bytes that could leave at once: pacing and congestion window allow them and nothing
    /// is queued before them. 0: do not pack; a timeout comes when it is worth asking again.
    pub fn poll_budget(&self, now: Instant) -> usize {
        let time = self.clock.read(now);
        let open = !self.closing && !self.leaving;
        self.connection
            .as_ref()
            .filter(|_| open)
            .map_or(0, |connection| connection.sender.poll_budget(time))
    }

    /// So many streams are carried: before anything is known of the path they begin like as many
    /// connections.
    pub fn set_stream_count(&mut self, flows: usize, now: Instant) {
        let time = self.clock.read(now);
        if let Some(connection) = &mut self.connection {
            connection.sender.set_stream_count(flows, time);
        }
    }

    /// Whether an urgent payload of one datagram could leave at once, though `budget` says that
    /// others wait: it overtakes them.
    pub fn takes_urgent(&self, now: Instant) -> bool {
        let time = self.clock.read(now);
        let open = !self.closing && !self.leaving;
        self.connection
            .as_ref()
            .filter(|_| open)
            .is_some_and(|connection| connection.sender.takes_urgent(time))
    }

    /// Payload bytes of a buffer that is worth its headers on this path: what leaves within three
    /// milliseconds, at most eight datagrams. On a slow link that is more than `budget`, and the
    /// rest waits here, behind whatever is urgent.
    pub fn preferred_payload(&self) -> usize {
        self.connection
            .as_ref()
            .map_or(0, |connection| connection.sender.preferred_payload())
    }

    /// Bytes of payload that fit into one datagram now: multiples of it fill datagrams. Changes
    /// with the path.
    pub fn segment_payload(&self) -> usize {
        self.connection
            .as_ref()
            .map_or(0, |connection| connection.sender.segment_payload())
    }

    /// Bytes of an urgent payload that fit into one datagram now: fewer, because its parity must
    /// fit too.
    pub fn urgent_payload(&self) -> usize {
        self.connection
            .as_ref()
            .map_or(0, |connection| connection.sender.urgent_payload())
    }

    /// Takes a payload for delivery exactly once; urgent ones go before the others. It comes back
    /// if there is no connection, no room for more unacknowledged payloads, or if it is empty or
    /// larger than both sides accept.
    pub fn send(&mut self, payload: Vec<u8>, urgent: bool, now: Instant) -> Result<(), Vec<u8>> {
        let time = self.clock.read(now);
        let most = self.max_payload();
        let Some(connection) = self
            .connection
            .as_mut()
            .filter(|_| !self.closing && payload.len() <= most)
        else {
            return Err(payload);
        };
        let bytes = payload.len() as u64;
        connection.sender.push(payload, urgent, time)?;
        self.counters.sender.payloads += 1;
        self.counters.sender.payload_bytes += bytes;
        Ok(())
    }

    fn max_payload(&self) -> usize {
        let peer = self
            .connection
            .as_ref()
            .map_or(0, |connection| connection.peer().max_payload as usize);
        self.config.max_payload.min(peer)
    }

    /// A spare buffer, to be filled again: its length and content are arbitrary. New and empty if
    /// there is none.
    pub fn take_buffer(&mut self) -> Vec<u8> {
        self.connection
            .as_mut()
            .map_or_else(Vec::new, |connection| connection.sender.take_buffer())
    }

    /// Takes back the buffer of a received payload, so that the next ones need no new memory.
    pub fn recycle(&mut self, buffer: Vec<u8>) {
        if let Some(connection) = &mut self.connection {
            connection.receiver.recycle(buffer);
        }
    }

    /// Takes back a buffer from `spare` that was not sent.
    pub fn return_buffer(&mut self, buffer: Vec<u8>) {
        if let Some(connection) = &mut self.connection {
            connection.sender.return_buffer(buffer);
        }
    }

    /// Whole received payloads, in any order, each exactly once.
    pub fn poll_payload(&mut self) -> Option<Vec<u8>> {
        self.connection.as_mut()?.receiver.poll_payload()
    }

    /// What happened, oldest first. Payloads polled after a `Connected { fresh: true }` are of the
    /// new connection.
    pub fn poll_event(&mut self) -> Option<Event> {
        self.events.pop_front()
    }

    /// Says goodbye: the close subfield goes out with the next `poll_transmit`, nothing after it.
    pub fn close(&mut self, _now: Instant) {
        self.closing = true;
    }

    /// A connection is needed: the peer is called until it answers. For a mover on demand; others
    /// call by themselves.
    pub fn connect(&mut self, now: Instant) {
        self.wanted = true;
        if self.connection.is_none()
            && !self.handshake.is_active()
            && let Some(to) = self.config.endpoint
        {
            self.handshake.start(to, now);
        }
    }

    /// The connection is no longer needed: a mover on demand says goodbye with the next
    /// `poll_transmit` and rests, which its event tells.
    pub fn disconnect(&mut self) {
        if self.config.on_demand && self.connection.is_some() {
            self.leaving = true;
        }
    }

    /// The goodbye of [`Mover::disconnect`] has not left yet.
    pub fn is_leaving(&self) -> bool {
        self.leaving
    }

    /// The peer has sent what makes no sense above: the session is given up, as if the peer were
    /// dead, and connected anew.
    pub fn give_up(&mut self, now: Instant) {
        if self.connection.is_some() {
            self.die(Reason::Broken, now);
        }
    }

    /// What the link takes as far as known, bytes per second.
    pub fn rate(&self) -> u64 {
        self.connection
            .as_ref()
            .map_or(0, |connection| connection.sender.rate())
    }

    /// Connected, and heard within `silent_after`.
    pub fn is_up(&self) -> bool {
        !self.closing
            && !self.leaving
            && self
                .connection
                .as_ref()
                .is_some_and(|connection| !connection.liveness.is_silent())
    }

    /// Smoothed round trip.
    pub fn rtt(&self) -> Option<Duration> {
        self.connection
            .as_ref()?
            .sender
            .rtt()
            .smoothed()
            .map(Duration::from_nanos)
    }

    /// Shortest round trip.
    pub fn min_rtt(&self) -> Option<Duration> {
        self.connection
            .as_ref()?
            .sender
            .rtt()
            .minimum()
            .map(Duration::from_nanos)
    }

    /// Bytes held now, as they are allocated: payloads that are not acknowledged by the peer, or
    /// received and not whole or not fetched, the records of datagrams on their way, what parity
    /// keeps, and spare buffers. Beside it a connection has about 0.6 MB of tables of fixed size.
    pub fn memory(&self) -> usize {
        self.connection.as_ref().map_or(0, |connection| {
            connection.sender.held() + connection.receiver.held()
        })
    }

    /// Holds payloads of about `bytes` from now on: half of them, a quarter for each direction, for
    /// what repairs and gaps need; the rest is the caller's. Never less than
    /// [`Limits::LEAST_MEMORY`] each, never more than the limits of the configuration. What is held
    /// already stays.
    pub fn set_memory(&mut self, bytes: usize) {
        self.memory = bytes;
        self.apply_memory();
    }

    fn apply_memory(&mut self) {
        let share = (self.memory / 4).max(Limits::LEAST_MEMORY);
        let limits = &self.config.limits;
        if let Some(connection) = &mut self.connection {
            connection.sender.set_limit(share.min(limits.send_bytes));
            connection
                .receiver
                .set_limit(share.min(limits.reassembly_bytes));
        }
    }

    /// What is known of the path: to be given to the next mover of this peer as [`Config::remembered_path`].
    /// Of what is known now and what is remembered, the wider one, as long as it is the same path:
    /// an idle connection learns little.
    pub fn path_to_remember(&self, now: Instant) -> Option<RememberedPath> {
        let time = self.clock.read(now);
        let remembered = self.remembered.map(|(path, at)| RememberedPath {
            age: path.age + Duration::from_nanos(time.saturating_sub(at)),
            ..path
        });
        let known = self
            .connection
            .as_ref()
            .and_then(|connection| connection.sender.path_to_remember());
        match (known, remembered) {
            (Some(known), Some(remembered)) if remembered.is_like(known.round_trip) => {
                Some(if known.bandwidth >= remembered.bandwidth / 2 {
                    known
                } else {
                    remembered
                })
            }
            (Some(known), _) => Some(known),
            (None, remembered) => remembered.filter(|path| path.age <= RememberedPath::LONGEST_AGE),
        }
    }

    /// Where the peer is reached now.
    pub fn remote(&self) -> Option<SocketAddr> {
        self.connection.as_ref().map(Connection::remote)
    }

    /// Counters and gauges.
    pub fn stats(&self) -> Stats {
        let mut counters = self.counters.clone();
        counters.handshake = self.handshake.counters();
        let mut gauges = Gauges::default();
        if let Some(connection) = &self.connection {
            connection.count(&mut counters);
            gauges = connection.gauges();
            gauges.keys_since = Some(self.clock.instant(connection.sealing_since()));
        }
        Stats { counters, gauges }
    }

    /// Asserts what must always hold; cheap enough to be called after every event of a world.
    pub fn check_invariants(&self) {
        assert!(self.events.len() <= self.config.limits.events);
        if let Some(connection) = &self.connection {
            connection.sender.check_invariants();
            connection.receiver.check_invariants();
        }
    }

    /// The same with sums over everything; for now and then.
    pub fn check_sums(&self) {
        if let Some(connection) = &self.connection {
            connection.sender.check_sums();
            connection.receiver.check_sums();
        }
    }

    // --- connecting
    // ---------------------------------------------------------------------------------------------

    /// Whether there was one.
    fn take_established(&mut self, now: Instant) -> bool {
        let mut any = false;
        while let Some(established) = self.handshake.poll_established() {
            self.on_established(established, now);
            any = true;
        }
        any
    }

    fn on_established(&mut self, established: Established, now: Instant) {
        let time = self.clock.read(now);
        let records = (
            Params::parse(&established.peer_params),
            Params::parse(&established.own_params),
        );
        let (Some(peer), Some(own)) = records else {
            self.counters.drops.breaches.records_malformed += 1;
            return;
        };
        // Both sides decide by the two records of this attempt, so they decide alike: go on only if
        // each named the other.
        let goes_on = peer.other == self.instance && own.other == peer.instance;
        let known = self
            .connection
            .as_mut()
            .filter(|connection| connection.peer().instance == peer.instance);
        if goes_on && let Some(connection) = known {
            let ended_silence = connection.rekey(established, time);
            self.tell_connected(false);
            if ended_silence {
                self.tell(Event::Heard);
            }
            return;
        }
        if goes_on {
            // The peer goes on with what we have given up since the attempt began: let it hear
            // nothing, and say so anew.
            self.counters.sessions_stale += 1;
            self.connect_anew(now);
            return;
        }
        if self.connection.is_some() {
            self.drop_connection(now);
            self.tell(Event::Restarted);
        }
        self.config.remembered_path = self.path_to_remember(now);
        let Established {
            session, remote, ..
        } = established;
        self.connection = Some(Connection::new(
            &self.config,
            self.first_physical,
            peer,
            session,
            remote,
            time,
        ));
        self.apply_memory();
        self.set_params();
        self.tell_connected(true);
    }

    fn tell_connected(&mut self, fresh: bool) {
        let initial_credit = self
            .connection
            .as_ref()
            .map_or(0, |connection| connection.peer().initial_credit);
        self.tell(Event::Connected {
            fresh,
            initial_credit,
            max_payload: self.max_payload(),
        });
    }

    fn die(&mut self, reason: Reason, now: Instant) {
        self.wanted = !self.config.on_demand;
        self.leaving = false;
        self.drop_connection(now);
        self.tell(Event::Dead(reason));
        self.connect_anew(now);
    }

    /// Attempts under way carry what we knew before; they must not be completed by what we have
    /// forgotten.
    fn connect_anew(&mut self, now: Instant) {
        self.handshake.stop();
        self.set_params();
        if let Some(to) = self.config.endpoint.filter(|_| self.wanted) {
            self.handshake.start(to, now);
        }
    }

    fn set_params(&mut self) {
        let params = Params {
            instance: self.instance,
            other: self
                .connection
                .as_ref()
                .map_or(0, |connection| connection.peer().instance),
            max_payload: self.config.max_payload as u32,
            initial_credit: self.config.initial_credit,
        };
        self.handshake.set_params(params.emit());
    }

    /// What it counted stays.
    fn drop_connection(&mut self, now: Instant) {
        self.remembered = self
            .path_to_remember(now)
            .map(|path| (path, self.clock.read(now)));
        if let Some(connection) = self.connection.take() {
            connection.count(&mut self.counters);
        }
    }

    fn tell(&mut self, event: Event) {
        if self.events.len() >= self.config.limits.events {
            self.counters.events_lost += 1;
            self.events.pop_front();
        }
        self.events.push_back(event);
    }
}

/// For fuzzing: a connection without a handshake, and datagrams that no mover would send.
impl Mover {
    pub(crate) fn forge(
        &mut self,
        skip: u64,
        plain: impl FnOnce(u64, &mut Vec<u8>),
        now: Instant,
    ) -> Option<(SocketAddr, Vec<u8>)> {
        let time = self.clock.read(now);
        let connection = self.connection.as_mut()?;
        Some((
            connection.remote(),
            connection.forge(skip, plain, (now, time)),
        ))
    }

    pub(crate) fn install(
        &mut self,
        peer_instance: u64,
        session: crate::crypto::Session,
        remote: SocketAddr,
        now: Instant,
    ) {
        let time: Nanos = self.clock.read(now);
        let peer = Params {
            instance: peer_instance,
            other: 0,
            max_payload: self.config.max_payload as u32,
            initial_credit: 0,
        };
        self.handshake.stop();
        self.connection = Some(Connection::new(
            &self.config,
            self.first_physical,
            peer,
            session,
            remote,
            time,
        ));
        self.tell_connected(true);
    }
}
