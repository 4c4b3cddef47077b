//! The data mover towards one peer: joins the handshake, the connection and the caller, and decides
//! nothing else.
//!
//! Life: *connecting* (no connection; the handshake tries if it knows where) → *connected* (a
//! [`Connection`]; it survives silence, new keys and new addresses) → *connecting* again when the
//! peer is dead, has closed or is a new instance. On demand: *at rest* in place of connecting,
//! until somebody asks for a connection or the peer calls.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use crate::config::{Config, Limits, RememberedPath};
use crate::connection::{Connection, Incoming};
use crate::crypto::{Outer, peek};
use crate::event::{Event, Events, Reason};
use crate::handshake::{Established, Handshake, HandshakeError, call_number};
use crate::instance::Instance;
use crate::params::{MIN_PAYLOAD, Params};
use crate::path::liveness::Finding;
use crate::path::memory::PathMemory;
use crate::stats::{Counters, Gauges, Stats};
use crate::timer::{Clock, Earliest, Nanos, Timer, nanos};
use crate::transmit::{Origin, Transmit, TransmitKind};

/// The only reason on the wire so far: the side that says it is going away.
const CLOSE_GOING_AWAY: u8 = 0;

/// The reliable, secret way to one peer: payloads in, the same payloads out at the other side, each
/// exactly once, in any order.
///
/// A mover does no I/O and reads no clock: the caller brings both. The caller owns the socket,
/// waits, and passes the time (`now`) to every verb; `now` must not run backwards between two
/// calls. Rates are bytes per second on the wire, IP headers included. Sizes are bytes.
///
/// # Order of calls
///
/// *Inputs* are [`handle_datagram`], [`handle_timeout`], [`send`], [`on_too_large`],
/// [`on_refused`], [`connect`], [`disconnect`], [`close`] and [`give_up`]. Any of them may be
/// called at any time. After each one, or after a batch of datagrams, drain the *polls* before the
/// next:
///
/// 1. [`poll_event`] until it is `None`. An event decides what the payloads behind it mean:
///    those polled after `Connected { fresh: true }` are of the new connection. At most
///    [`Limits::events`] events are kept.
/// 2. [`poll_payload`] until it is `None`, or as long as there is room for payloads. What is not
///    fetched is held here and charged to the peer's memory.
/// 3. Ask [`poll_budget`], and [`send`] a payload while it is not 0.
/// 4. [`poll_transmit`] until it is `None`; each batch leaves before the next is asked for.
/// 5. Sleep until [`poll_timeout`], or until a datagram comes, and then begin anew. Each input can
///    change the timeout.
///
/// Before the first event [`Event::Connected`], [`poll_budget`] is 0 and [`send`] gives every
/// payload back. After [`close`] one more [`poll_transmit`] brings the goodbye, and nothing
/// follows. After [`disconnect`] the goodbye comes in the same way, and [`Event::Dead`] with it.
///
/// # Example
///
/// Two movers, a handshake, and a payload across. A real caller has a socket in place of the inner
/// loop, and sleeps where this one lets its time jump.
///
/// ```
/// use std::net::SocketAddr;
/// use std::sync::Arc;
/// use std::time::Instant;
///
/// use tpo_mover::{Config, Event, Identity, Mover};
///
/// let identities = [Identity::generate(), Identity::generate()].map(Arc::new);
/// let addresses = [1, 2].map(|host| SocketAddr::from(([192, 0, 2, host], 47800)));
/// let mut now = Instant::now();
/// let mut movers = [0, 1].map(|side: usize| {
///     let (own, peer) = (identities[side].clone(), identities[1 - side].public_key());
///     let mut config = Config::new(own, peer, side as u16, [side as u8; 32]);
///     // The first one calls, the second one waits to be called.
///     config.endpoint = (side == 0).then_some(addresses[1]);
///     Mover::new(config, now)
/// });
///
/// let (mut out, mut arrived) = (Vec::new(), None);
/// while arrived.is_none() {
///     for side in [0, 1] {
///         while let Some(event) = movers[side].poll_event() {
///             if side == 0 && matches!(event, Event::Connected { .. }) {
///                 assert!(movers[0].poll_budget(now) > 0);
///                 movers[0].send(b"a payload".to_vec(), false, now).expect("there is room");
///             }
///         }
///         arrived = arrived.or(movers[1].poll_payload());
///         out.clear();
///         while let Some(transmit) = movers[side].poll_transmit(&mut out, now) {
///             assert_eq!(transmit.to, addresses[1 - side]);
///             for datagram in out.chunks_mut(transmit.segment_size) {
///                 movers[1 - side].handle_datagram(addresses[side], datagram, now);
///             }
///             out.clear();
///         }
///     }
///     let next = movers.iter().filter_map(|mover| mover.poll_timeout());
///     now = next.map(|(at, _why)| at).min().expect("a mover always waits").max(now);
///     for mover in &mut movers {
///         mover.handle_timeout(now);
///     }
/// }
/// assert_eq!(arrived.as_deref(), Some(&b"a payload"[..]));
/// assert!(movers[0].is_up() && movers[1].is_up());
/// ```
///
/// [`close`]: Mover::close
/// [`connect`]: Mover::connect
/// [`disconnect`]: Mover::disconnect
/// [`give_up`]: Mover::give_up
/// [`handle_datagram`]: Mover::handle_datagram
/// [`handle_timeout`]: Mover::handle_timeout
/// [`on_refused`]: Mover::on_refused
/// [`on_too_large`]: Mover::on_too_large
/// [`poll_budget`]: Mover::poll_budget
/// [`poll_event`]: Mover::poll_event
/// [`poll_payload`]: Mover::poll_payload
/// [`poll_timeout`]: Mover::poll_timeout
/// [`poll_transmit`]: Mover::poll_transmit
/// [`send`]: Mover::send
pub struct Mover {
    config: Config,
    clock: Clock,
    handshake: Handshake,
    /// Age of the keys at which we ask for new ones.
    rekey_after: Nanos,
    connection: Option<Connection>,
    instance: Instance,
    memory: PathMemory,
    events: Events,
    /// Of the connections that are gone, and of what belonged to none.
    counters: Counters,
    /// What `set_memory` allowed last, bytes.
    memory_limit: usize,
    /// A connection is asked for: the peer is called until it answers.
    wanted: bool,
    ending: Ending,
}

/// How the mover or its connection comes to an end.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Ending {
    /// Not at all.
    None,
    /// The connection ends with a goodbye, and we rest.
    Leaving,
    /// The mover ends with a goodbye.
    Closing,
    /// The goodbye has left: nothing more happens.
    Closed,
}

impl Mover {
    /// A mover that starts to connect at once if it knows where.
    pub fn new(mut config: Config, now: Instant) -> Mover {
        config.max_payload = config
            .max_payload
            .clamp(MIN_PAYLOAD as usize, Limits::MAX_PAYLOAD);
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
            instance: Instance::new(&config),
            clock: Clock::new(now),
            handshake,
            rekey_after,
            connection: None,
            memory: PathMemory::new(config.remembered_path),
            events: Events::new(config.limits.events),
            counters: Counters::default(),
            memory_limit: usize::MAX,
            wanted: !config.on_demand,
            ending: Ending::None,
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
        if self.ending == Ending::Closed {
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
                let incoming = Incoming {
                    from,
                    index,
                    seq_low,
                    datagram,
                };
                self.handle_session(incoming, now)
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

    fn handle_session(&mut self, incoming: Incoming<'_>, now: Instant) -> Origin {
        let Some(connection) = &mut self.connection else {
            self.counters.drops.unknown_session += 1;
            return Origin::Unknown;
        };
        let moment = self.clock.moment(now);
        let received = connection.handle_datagram(incoming, moment, &mut self.counters);
        if let Some(index) = received.confirmed {
            self.handshake.on_confirmed(index);
        }
        if received.ended_silence {
            self.events.push(Event::Heard);
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
        if self.ending == Ending::Closed {
            return;
        }
        let time = self.clock.read(now);
        self.handshake.handle_timeout(now);
        self.take_established(now);
        let Some(connection) = &mut self.connection else {
            return;
        };
        let finding = connection.handle_timeout(time);
        let long_silent = time >= connection.heard_at() + nanos(self.config.limits.handshake_after);
        match finding {
            Some(Finding::Silent) => self.events.push(Event::Silent),
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
        if self.ending == Ending::Closed {
            return None;
        }
        let mut earliest = Earliest::default();
        earliest.consider(
            self.handshake.poll_timeout().map(|at| self.clock.read(at)),
            Timer::Handshake,
        );
        if let Some(connection) = &self.connection {
            connection.deadlines(&mut earliest);
            let silence = connection.heard_at() + nanos(self.config.limits.handshake_after);
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
        if self.ending == Ending::Closed {
            return None;
        }
        match self.ending {
            Ending::None | Ending::Closed => {}
            Ending::Closing => {
                self.ending = Ending::Closed;
                let goodbye = self.emit_goodbye(out, now);
                self.drop_connection(now);
                return goodbye;
            }
            Ending::Leaving => {
                self.ending = Ending::None;
                if let Some(goodbye) = self.emit_goodbye(out, now) {
                    self.die(Reason::Closed, now);
                    return Some(goodbye);
                }
            }
        }
        if let Some((to, kind)) = self.handshake.poll_transmit(out, now) {
            return Some(Transmit {
                to,
                kind,
                segment_size: out.len(),
            });
        }
        let connection = self.connection.as_mut()?;
        let moment = self.clock.moment(now);
        let segment_size = connection.poll_transmit(out, moment, &mut self.counters)?;
        Some(Transmit {
            to: connection.remote(),
            kind: TransmitKind::Session,
            segment_size,
        })
    }

    /// Nothing, if there is nobody to say goodbye to.
    fn emit_goodbye(&mut self, out: &mut Vec<u8>, now: Instant) -> Option<Transmit> {
        let moment = self.clock.moment(now);
        let connection = self.connection.as_mut()?;
        let segment_size = connection.emit_close(out, CLOSE_GOING_AWAY, moment);
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
            connection.on_too_large(size, time);
        }
    }

    /// The link heard that nobody listens at the peer's port. A hint, believed only after several
    /// probes without an answer.
    pub fn on_refused(&mut self, now: Instant) {
        self.counters.path.refusals += 1;
        let time = self.clock.read(now);
        if let Some(connection) = &mut self.connection {
            connection.on_refused(time);
        }
    }

    // --- the engine side
    // ---------------------------------------------------------------------------------------------

    /// Payload bytes that could leave at once: pacing and congestion window allow them and nothing
    /// is queued before them. 0: do not pack. After a 0 for the pacer's sake a timeout comes when
    /// it is worth asking again.
    pub fn poll_budget(&mut self, now: Instant) -> usize {
        let (time, open) = (self.clock.read(now), self.ending == Ending::None);
        self.connection
            .as_mut()
            .filter(|_| open)
            .map_or(0, |connection| connection.poll_budget(time))
    }

    /// `streams` streams are carried. Before anything is known of the path, the sending rate begins
    /// as if each of them had a connection of its own.
    pub fn set_stream_count(&mut self, streams: usize, now: Instant) {
        let time = self.clock.read(now);
        if let Some(connection) = &mut self.connection {
            connection.set_stream_count(streams, time);
        }
    }

    /// Whether an urgent payload of one datagram could leave at once, though `poll_budget` says
    /// that others wait: it overtakes them.
    pub fn takes_urgent(&self, now: Instant) -> bool {
        let (time, open) = (self.clock.read(now), self.ending == Ending::None);
        self.connection
            .as_ref()
            .is_some_and(|connection| open && connection.takes_urgent(time))
    }

    /// Payload bytes of a buffer that is worth its headers on this path: what leaves within three
    /// milliseconds, at most eight datagrams. On a slow link that is more than `poll_budget`, and
    /// the rest waits here, behind whatever is urgent.
    pub fn preferred_payload(&self) -> usize {
        self.connection
            .as_ref()
            .map_or(0, Connection::preferred_payload)
    }

    /// Bytes of payload that fit into one datagram now: multiples of it fill datagrams. Changes
    /// with the path.
    pub fn segment_payload(&self) -> usize {
        self.connection
            .as_ref()
            .map_or(0, Connection::segment_payload)
    }

    /// Bytes of an urgent payload that fit into one datagram now: fewer, because its parity must
    /// fit too.
    pub fn urgent_payload(&self) -> usize {
        self.connection
            .as_ref()
            .map_or(0, Connection::urgent_payload)
    }

    /// Takes a payload for delivery exactly once; urgent ones go before the others. It comes back
    /// if there is no connection, no room for more unacknowledged payloads, or if it is empty or
    /// larger than both sides accept.
    ///
    /// # Errors
    /// The payload.
    pub fn send(&mut self, payload: Vec<u8>, urgent: bool, now: Instant) -> Result<(), Vec<u8>> {
        let time = self.clock.read(now);
        let open = matches!(self.ending, Ending::None | Ending::Leaving);
        let Some(connection) = self.connection.as_mut().filter(|_| open) else {
            return Err(payload);
        };
        let bytes = payload.len() as u64;
        connection.send(payload, urgent, time)?;
        self.counters.sender.payloads += 1;
        self.counters.sender.payload_bytes += bytes;
        Ok(())
    }

    /// A spare buffer, to be filled again: its length and content are arbitrary. New and empty if
    /// there is none.
    pub fn take_buffer(&mut self) -> Vec<u8> {
        self.connection
            .as_mut()
            .map_or_else(Vec::new, Connection::take_buffer)
    }

    /// Takes back the buffer of a received payload, so that the next ones need no new memory.
    pub fn recycle(&mut self, buffer: Vec<u8>) {
        if let Some(connection) = &mut self.connection {
            connection.recycle(buffer);
        }
    }

    /// Takes back a buffer from [`Mover::take_buffer`] that was not sent.
    pub fn return_buffer(&mut self, buffer: Vec<u8>) {
        if let Some(connection) = &mut self.connection {
            connection.return_buffer(buffer);
        }
    }

    /// Whole received payloads, in any order, each exactly once.
    pub fn poll_payload(&mut self) -> Option<Vec<u8>> {
        self.connection.as_mut()?.poll_payload()
    }

    /// What happened, oldest first. Payloads polled after a `Connected { fresh: true }` are of the
    /// new connection.
    pub fn poll_event(&mut self) -> Option<Event> {
        self.events.poll()
    }

    /// Says goodbye: the close subfield goes out with the next `poll_transmit`, nothing after it.
    pub fn close(&mut self, _now: Instant) {
        if self.ending != Ending::Closed {
            self.ending = Ending::Closing;
        }
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
        let can_leave = self.config.on_demand && self.connection.is_some();
        if can_leave && self.ending == Ending::None {
            self.ending = Ending::Leaving;
        }
    }

    /// The goodbye of [`Mover::disconnect`] has not left yet.
    pub fn is_leaving(&self) -> bool {
        self.ending == Ending::Leaving
    }

    /// The peer has sent what makes no sense above: the session is given up, as if the peer were
    /// dead, and connected anew.
    pub fn give_up(&mut self, now: Instant) {
        if self.connection.is_some() {
            self.die(Reason::Broken, now);
        }
    }

    /// Bytes per second on the wire that leave at most; 0 without a connection.
    pub fn rate(&self) -> u64 {
        self.connection.as_ref().map_or(0, Connection::pacing_rate)
    }

    /// Connected, and heard within `silent_after`.
    pub fn is_up(&self) -> bool {
        let heard = |connection: &Connection| !connection.is_silent();
        self.ending == Ending::None && self.connection.as_ref().is_some_and(heard)
    }

    /// Smoothed round trip.
    pub fn rtt(&self) -> Option<Duration> {
        self.connection.as_ref()?.rtt()
    }

    /// Shortest round trip.
    pub fn min_rtt(&self) -> Option<Duration> {
        self.connection.as_ref()?.min_rtt()
    }

    /// Bytes held now, as they are allocated: payloads that are not acknowledged by the peer, or
    /// received and not whole or not fetched, the records of datagrams on their way, what parity
    /// keeps, and spare buffers. Beside it a connection has about 0.6 MB of tables of fixed size.
    pub fn memory(&self) -> usize {
        self.connection.as_ref().map_or(0, Connection::held)
    }

    /// Holds payloads of about `bytes` from now on: half of them, a quarter for each direction, for
    /// what repairs and gaps need; the rest is the caller's. Never less than
    /// [`Limits::LEAST_MEMORY`] each, never more than the limits of the configuration. What is held
    /// already stays.
    pub fn set_memory(&mut self, bytes: usize) {
        self.memory_limit = bytes;
        self.apply_memory();
    }

    fn apply_memory(&mut self) {
        let share = (self.memory_limit / 4).max(Limits::LEAST_MEMORY);
        if let Some(connection) = &mut self.connection {
            connection.set_limit(share, &self.config.limits);
        }
    }

    /// What is known of the path: to be given to the next mover of this peer as
    /// [`Config::remembered_path`]. Of what is known now and what is remembered, the wider one, as
    /// long as it is the same path: an idle connection learns little.
    pub fn path_to_remember(&self, now: Instant) -> Option<RememberedPath> {
        let known = self
            .connection
            .as_ref()
            .and_then(Connection::path_to_remember);
        self.memory.recall(known, self.clock.read(now))
    }

    /// Where the peer is reached now.
    pub fn remote(&self) -> Option<SocketAddr> {
        self.connection.as_ref().map(Connection::remote)
    }

    /// Counters and gauges.
    pub fn stats(&self) -> Stats {
        let mut counters = self.counters.clone();
        counters.handshake = self.handshake.counters();
        counters.events_lost = self.events.lost();
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
        self.events.check_invariants();
        if let Some(connection) = &self.connection {
            connection.check_invariants();
        }
    }

    /// The same with sums over everything; for now and then.
    pub fn check_sums(&self) {
        if let Some(connection) = &self.connection {
            connection.check_sums();
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
        let goes_on = peer.other == self.instance.number && own.other == peer.instance;
        let known = self
            .connection
            .as_mut()
            .filter(|connection| connection.peer().instance == peer.instance);
        if goes_on && let Some(connection) = known {
            let ended_silence = connection.rekey(established, time);
            self.tell_connected(false);
            if ended_silence {
                self.events.push(Event::Heard);
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
            self.events.push(Event::Restarted);
        }
        self.config.remembered_path = self.path_to_remember(now);
        let Established {
            session, remote, ..
        } = established;
        self.connection = Some(Connection::new(
            &self.config,
            self.instance.first_physical,
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
        self.events.push(Event::Connected {
            fresh,
            initial_credit,
            max_payload: self.max_payload(),
        });
    }

    fn max_payload(&self) -> usize {
        self.connection.as_ref().map_or(0, Connection::max_payload)
    }

    fn die(&mut self, reason: Reason, now: Instant) {
        self.wanted = !self.config.on_demand;
        if self.ending == Ending::Leaving {
            self.ending = Ending::None;
        }
        self.drop_connection(now);
        self.events.push(Event::Dead(reason));
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
            instance: self.instance.number,
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
        let known = self
            .connection
            .as_ref()
            .and_then(Connection::path_to_remember);
        self.memory.note(known, self.clock.read(now));
        if let Some(connection) = self.connection.take() {
            connection.count(&mut self.counters);
        }
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
        let moment = self.clock.moment(now);
        let connection = self.connection.as_mut()?;
        Some((connection.remote(), connection.forge(skip, plain, moment)))
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
            self.instance.first_physical,
            peer,
            session,
            remote,
            time,
        ));
        self.tell_connected(true);
    }
}
