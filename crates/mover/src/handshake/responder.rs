//! Our answer to one attempt of the peer to connect.
//!
//! Life: *collecting* the first flight → *answered* (our flight is resent, within three times what
//! came, until the initiator's last flight is whole) → done. An initiator that falls silent is
//! forgotten.
//!
//! All that comes here was made by the peer, but not all was sent by it: copies of its datagrams
//! may come from anywhere, before they do themselves. So no address is the attempt's. Each address
//! that sends the first flight, or a part of it, is a *caller* and gets the answer there, with an
//! account of its own; what one does changes nothing for another.

use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use super::counters::HandshakeCounters;
use super::error::HandshakeError;
use super::flight::{FIRST_RESEND, Flight, Inbound, NUDGE};
use super::tls::{Configs, Outcome, Tls};
use super::wire::{Fragment, Header, Level, Pair};

/// Silence after which the initiator is gone: it resends every 2 s at least, and two of three may
/// be lost.
const SILENCE: Duration = Duration::from_secs(7);
/// What has brought a cookie is no recording, and is waited for as long as the initiator waits
/// itself: 24 s, and what its last flight needs.
const PATIENCE: Duration = Duration::from_secs(30);
/// Bytes sent for each byte received from an address (RFC 9000 section 8.1).
const AMPLIFICATION: usize = 3;
/// Callers whose accounts are kept. One is the peer; a second one, if an address translator changed
/// its mind. Beyond them copies: the one that was heard longest ago goes, and is served anew if it
/// comes again.
const CALLERS: usize = 8;

pub(super) struct Responder {
    attempt: u64,
    local: u32,
    peer: u32,
    tls: Tls,
    flight: Option<Flight>,
    inbound: [Inbound; 2],
    /// In the order in which they were heard last; at most [`CALLERS`].
    callers: Vec<Caller>,
    /// From where the attempt came first.
    origin: IpAddr,
    /// The attempt brought a cookie: it is the peer's of now, no recording.
    proved: bool,
    begun: Instant,
    heard: Instant,
}

/// An address that has sent parts of the first flight.
struct Caller {
    address: SocketAddr,
    received: usize,
    sent: usize,
    /// The next datagram of our flight for it, and when that transmission began.
    answer: Option<(usize, Instant)>,
}

impl Responder {
    pub(super) fn new(
        configs: &Configs,
        from: SocketAddr,
        header: &Header,
        local: u32,
        params: Vec<u8>,
        now: Instant,
    ) -> Responder {
        Responder {
            attempt: header.attempt,
            local,
            peer: header.sender,
            tls: configs.answer(params),
            flight: None,
            inbound: Default::default(),
            callers: Vec::new(),
            origin: from.ip().to_canonical(),
            proved: false,
            begun: now,
            heard: now,
        }
    }

    pub(super) fn attempt(&self) -> u64 {
        self.attempt
    }

    pub(super) fn local(&self) -> u32 {
        self.local
    }

    pub(super) fn peer(&self) -> u32 {
        self.peer
    }

    pub(super) fn origin(&self) -> IpAddr {
        self.origin
    }

    pub(super) fn begun(&self) -> Instant {
        self.begun
    }

    pub(super) fn is_proved(&self) -> bool {
        self.proved
    }

    pub(super) fn on_proved(&mut self) {
        self.proved = true;
    }

    /// The initiator's fragment in a datagram of `size` bytes. Gives the outcome when its last
    /// flight is whole and right.
    pub(super) fn handle_fragment(
        &mut self,
        pair: &Pair,
        from: SocketAddr,
        fragment: &Fragment<'_>,
        size: usize,
        now: Instant,
        counters: &mut HandshakeCounters,
    ) -> Result<Option<Outcome>, HandshakeError> {
        if fragment.header.sender != self.peer {
            return Err(HandshakeError::Inconsistent);
        }
        match fragment.header.level {
            Level::Initial => {
                self.on_called(from, size, now);
                self.handle_initial(pair, &fragment.header, fragment.body, now)?;
                self.answer(from, now, counters);
                Ok(None)
            }
            Level::Handshake => self.handle_sealed(fragment, now),
        }
    }

    /// The next datagram, for a caller that has not had its share.
    pub(super) fn poll_transmit(&mut self, pair: &Pair, out: &mut Vec<u8>) -> Option<SocketAddr> {
        let flight = self.flight.as_ref()?;
        for caller in &mut self.callers {
            let Some((next, _)) = &mut caller.answer else {
                continue;
            };
            let Some(size) = flight.size(*next) else {
                continue;
            };
            if caller.sent + size <= AMPLIFICATION * caller.received {
                flight.emit(*next, pair, out);
                caller.sent += size;
                *next += 1;
                return Some(caller.address);
            }
        }
        None
    }

    /// Resends what is due. False if the initiator is gone.
    pub(super) fn handle_timeout(
        &mut self,
        now: Instant,
        counters: &mut HandshakeCounters,
    ) -> bool {
        if now >= self.end() {
            return false;
        }
        if let Some(flight) = &mut self.flight
            && flight.handle_timeout(now)
        {
            counters.resent += 1;
            for caller in &mut self.callers {
                caller.answer = Some((0, now));
            }
        }
        true
    }

    pub(super) fn poll_timeout(&self) -> Instant {
        let end = self.end();
        self.flight
            .as_ref()
            .map_or(end, |flight| flight.due().min(end))
    }

    /// Copies keep nothing alive for longer than the peer's patience.
    fn end(&self) -> Instant {
        let end = self.begun + PATIENCE;
        if self.proved {
            end
        } else {
            end.min(self.heard + SILENCE)
        }
    }

    fn on_called(&mut self, from: SocketAddr, size: usize, now: Instant) {
        let known = self
            .callers
            .iter()
            .position(|caller| caller.address == from);
        if known.is_none() && self.callers.len() == CALLERS {
            self.callers.remove(0);
        }
        let mut caller = match known {
            Some(at) => self.callers.remove(at),
            None => Caller {
                address: from,
                received: 0,
                sent: 0,
                answer: None,
            },
        };
        caller.received += size;
        self.callers.push(caller);
        self.heard = now;
    }

    /// Who sends the first flight lacks ours.
    fn answer(&mut self, to: SocketAddr, now: Instant, counters: &mut HandshakeCounters) {
        let (Some(flight), Some(caller)) = (&mut self.flight, self.callers.last_mut()) else {
            return;
        };
        assert_eq!(caller.address, to, "the last caller is the one that called");
        let again = caller.answer.is_some_and(|(next, _)| next > 0);
        if caller
            .answer
            .is_some_and(|(_, begun)| now.saturating_duration_since(begun) < NUDGE)
        {
            return;
        }
        if again {
            flight.repeat(now);
            counters.resent += 1;
        }
        caller.answer = Some((0, now));
    }

    fn handle_initial(
        &mut self,
        pair: &Pair,
        header: &Header,
        fragment: &[u8],
        now: Instant,
    ) -> Result<(), HandshakeError> {
        if self.flight.is_some() || !self.inbound[0].insert(header, fragment)? {
            return Ok(());
        }
        let answer = self
            .tls
            .read(&self.inbound[0].take())
            .map_err(HandshakeError::Tls)?;
        if !self.tls.has_keys() {
            // TLS asks for a second hello; our initiators offer all that we have in the first.
            return Err(HandshakeError::Tls(rustls::Error::HandshakeNotComplete));
        }
        let header = Header {
            sender: self.local,
            receiver: self.peer,
            attempt: self.attempt,
            level: Level::Initial,
            from_responder: true,
            offset: 0,
            total: 0,
            length: 0,
            cookie: [0; 16],
        };
        self.flight = Some(Flight::new(
            pair,
            &self.tls,
            header,
            answer,
            FIRST_RESEND,
            now,
        ));
        Ok(())
    }

    fn handle_sealed(
        &mut self,
        fragment: &Fragment<'_>,
        now: Instant,
    ) -> Result<Option<Outcome>, HandshakeError> {
        let header = &fragment.header;
        if self.flight.is_none() || header.receiver != self.local {
            return Err(HandshakeError::Attempt);
        }
        let mut body = fragment.body.to_vec();
        let plain = self
            .tls
            .open(header.offset, &fragment.aad, &mut body)
            .ok_or(HandshakeError::Seal)?;
        self.heard = now;
        if !self.inbound[1].insert(header, plain)? {
            return Ok(None);
        }
        self.tls
            .read(&self.inbound[1].take())
            .map_err(HandshakeError::Tls)?;
        match self.tls.outcome() {
            Some(outcome) => Ok(Some(outcome)),
            None => Err(HandshakeError::Tls(rustls::Error::HandshakeNotComplete)),
        }
    }
}
