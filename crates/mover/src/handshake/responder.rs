//! Our answer to the peer's attempt to connect.
//!
//! Life: *collecting* the first flight → *answered* (our flight is resent, within three times what came, until the initiator's last flight is
//! whole) → done. An initiator that falls silent is forgotten.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use super::flight::{FIRST_RESEND, Flight, Inbound};
use super::tls::{Configs, Outcome, Tls};
use super::wire::{Fragment, Header, Level, Pair};
use super::{HandshakeError, HandshakeStats};

/// Silence after which the initiator is gone: it resends every 2 s at least, and two of three may be lost.
const SILENCE: Duration = Duration::from_secs(7);
/// Bytes sent for each byte received from an address that has not proved itself (RFC 9000 section 8.1).
const AMPLIFICATION: usize = 3;

pub(super) struct Responder {
    remote: SocketAddr,
    attempt: u64,
    local: u32,
    peer: u32,
    tls: Tls,
    flight: Option<Flight>,
    inbound: [Inbound; 2],
    /// From and to the present address.
    received: usize,
    sent: usize,
    /// The address has shown that it receives what we send: by a cookie.
    proved: bool,
    heard: Instant,
}

impl Responder {
    pub(super) fn new(
        configs: &Configs,
        remote: SocketAddr,
        header: &Header,
        local: u32,
        params: Vec<u8>,
        now: Instant,
    ) -> Responder {
        Responder {
            remote,
            attempt: header.attempt,
            local,
            peer: header.sender,
            tls: configs.answer(params),
            flight: None,
            inbound: Default::default(),
            received: 0,
            sent: 0,
            proved: false,
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

    pub(super) fn on_proved(&mut self) {
        self.proved = true;
    }

    /// The initiator's fragment in a datagram of `size` bytes. Gives the outcome when its last flight is whole and right.
    pub(super) fn handle_fragment(
        &mut self,
        pair: &Pair,
        from: SocketAddr,
        fragment: &Fragment<'_>,
        size: usize,
        now: Instant,
        stats: &mut HandshakeStats,
    ) -> Result<Option<Outcome>, HandshakeError> {
        if fragment.header.sender != self.peer {
            return Err(HandshakeError::Inconsistent);
        }
        match fragment.header.level {
            Level::Initial => {
                self.on_received(from, size, now);
                self.handle_initial(pair, &fragment.header, fragment.body, now, stats).map(|()| None)
            }
            Level::Handshake => self.handle_sealed(from, fragment, now),
        }
    }

    /// The next datagram, unless the address has had its share.
    pub(super) fn poll_transmit(&mut self, pair: &Pair, out: &mut Vec<u8>) -> Option<SocketAddr> {
        let flight = self.flight.as_mut()?;
        let size = flight.pending()?;
        if !self.proved && self.sent + size > AMPLIFICATION * self.received {
            return None;
        }
        flight.emit(pair, out);
        self.sent += size;
        Some(self.remote)
    }

    /// Resends what is due. False if the initiator is gone.
    pub(super) fn handle_timeout(&mut self, now: Instant, stats: &mut HandshakeStats) -> bool {
        if now >= self.heard + SILENCE {
            return false;
        }
        if let Some(flight) = &mut self.flight {
            stats.resent += u64::from(flight.handle_timeout(now));
        }
        true
    }

    pub(super) fn poll_timeout(&self) -> Instant {
        let silent = self.heard + SILENCE;
        self.flight.as_ref().map_or(silent, |flight| flight.due().min(silent))
    }

    /// Anybody who saw the initiator's datagram can send a copy of it from elsewhere. The last address wins, with an account of its own,
    /// so neither can a copy end the attempt nor its address be flooded.
    fn on_received(&mut self, from: SocketAddr, size: usize, now: Instant) {
        if from != self.remote {
            self.remote = from;
            self.received = 0;
            self.sent = 0;
            self.proved = false;
        }
        self.received += size;
        self.heard = now;
    }

    fn handle_initial(
        &mut self,
        pair: &Pair,
        header: &Header,
        fragment: &[u8],
        now: Instant,
        stats: &mut HandshakeStats,
    ) -> Result<(), HandshakeError> {
        if let Some(flight) = &mut self.flight {
            stats.resent += u64::from(flight.nudge(now));
            return Ok(());
        }
        if !self.inbound[0].insert(header, fragment)? {
            return Ok(());
        }
        let answer = self.tls.read(&self.inbound[0].take()).map_err(HandshakeError::Tls)?;
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
        self.flight = Some(Flight::new(pair, &self.tls, header, answer, FIRST_RESEND, now));
        Ok(())
    }

    fn handle_sealed(
        &mut self,
        from: SocketAddr,
        fragment: &Fragment<'_>,
        now: Instant,
    ) -> Result<Option<Outcome>, HandshakeError> {
        let header = &fragment.header;
        if self.flight.is_none() || header.receiver != self.local {
            return Err(HandshakeError::Attempt);
        }
        let mut body = fragment.body.to_vec();
        let plain = self.tls.open(header.offset, &fragment.aad, &mut body).ok_or(HandshakeError::Seal)?;
        // Only who has our flight can seal: this proves the address as far as the handshake needs it.
        self.remote = from;
        self.heard = now;
        if !self.inbound[1].insert(header, plain)? {
            return Ok(None);
        }
        self.tls.read(&self.inbound[1].take()).map_err(HandshakeError::Tls)?;
        match self.tls.outcome() {
            Some(outcome) => Ok(Some(outcome)),
            None => Err(HandshakeError::Tls(rustls::Error::HandshakeNotComplete)),
        }
    }
}
