//! Our own attempt to connect to the peer.
//!
//! Life: *hello* (the first flight is resent until the responder's flight is whole) → *confirming*
//! (keys are agreed and given up; the last flight is resent until the mover has heard the new
//! session) → gone. An attempt that does not get on is replaced by a fresh one.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use super::counters::HandshakeCounters;
use super::error::HandshakeError;
use super::flight::{FIRST_RESEND, Flight, Inbound, interval_for};
use super::tls::{Configs, Outcome, Output, Tls};
use super::wire::{self, Fragment, Header, Level, Pair};

/// How long a first attempt may wait for keys before a fresh one is tried: seven transmissions.
pub(super) const PATIENCE: Duration = Duration::from_secs(6);
/// Attempts that fail get longer, for paths with round trips of seconds.
const LONGEST_PATIENCE: Duration = Duration::from_secs(24);
/// How long after the keys, beside four round trips, the new session may be unheard: seven
/// transmissions on a short path. A peer that has restarted just then is found by the fresh
/// attempt.
const CONFIRMATION: Duration = Duration::from_secs(3);
/// Sealed fragments that overtook the key exchange and wait for the keys. A flight has one or two.
const EARLY: usize = 4;
/// Cookies that are taken between two timed resends. All of one responder's are alike; a second one
/// comes when its secret has rotated or it has restarted, and old ones are repeated by whoever has
/// recorded them. Each costs a flight.
const COOKIES: u8 = 3;

pub(super) struct Initiator {
    remote: SocketAddr,
    attempt: u64,
    local: u32,
    /// The responder's index, once a fragment has told it.
    peer: Option<u32>,
    tls: Tls,
    stage: Stage,
    flight: Flight,
    /// The next datagram of the flight's transmission under way; past the end when it is done.
    next: usize,
    inbound: [Inbound; 2],
    early: Vec<(Header, [u8; wire::HEADER], Vec<u8>)>,
    /// The cookie that the flight carries.
    cookie: [u8; 16],
    /// Cookies taken since the last timed resend; at most [`COOKIES`].
    cookies: u8,
    /// A sealed fragment did not open: it was damaged by who knows the pair's secret, or the key
    /// exchange before it was, which only a fresh attempt mends.
    doubted: bool,
    rtt: Option<Duration>,
    begun: Instant,
    patience: Duration,
    deadline: Instant,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    Hello,
    Confirming,
    /// The peer has restarted in the middle, or TLS refused what came: a fresh attempt follows when
    /// a resend would have.
    Failed,
}

/// What is drawn for a fresh attempt.
pub(super) struct Fresh {
    pub(super) remote: SocketAddr,
    pub(super) attempt: u64,
    pub(super) local: u32,
    pub(super) patience: Duration,
}

impl Initiator {
    pub(super) fn new(
        pair: &Pair,
        configs: &Configs,
        fresh: Fresh,
        params: Vec<u8>,
        now: Instant,
    ) -> Initiator {
        let Fresh {
            remote,
            attempt,
            local,
            patience,
        } = fresh;
        let (tls, hello) = configs.start(params);
        let flight = Flight::new(
            pair,
            &tls,
            header(attempt, local, 0),
            hello,
            FIRST_RESEND,
            now,
        );
        Initiator {
            remote,
            attempt,
            local,
            peer: None,
            tls,
            stage: Stage::Hello,
            flight,
            next: 0,
            inbound: Default::default(),
            early: Vec::new(),
            cookie: [0; 16],
            cookies: 0,
            doubted: false,
            rtt: None,
            begun: now,
            patience,
            deadline: now + patience,
        }
    }

    pub(super) fn remote(&self) -> SocketAddr {
        self.remote
    }

    pub(super) fn local(&self) -> u32 {
        self.local
    }

    pub(super) fn peer(&self) -> u32 {
        self.peer.unwrap_or(0)
    }

    pub(super) fn begun(&self) -> Instant {
        self.begun
    }

    pub(super) fn is_confirming(&self) -> bool {
        self.stage == Stage::Confirming
    }

    /// Appends the next datagram, if one is to be sent.
    pub(super) fn poll_transmit(&mut self, pair: &Pair, out: &mut Vec<u8>) -> Option<SocketAddr> {
        // What a failed attempt sends is of no use any more.
        if self.stage == Stage::Failed {
            return None;
        }
        self.flight.size(self.next)?;
        self.flight.emit(self.next, pair, out);
        self.next += 1;
        Some(self.remote)
    }

    /// The responder's fragment. Gives the outcome when its flight is whole and right.
    pub(super) fn handle_fragment(
        &mut self,
        pair: &Pair,
        fragment: &Fragment<'_>,
        now: Instant,
        counters: &mut HandshakeCounters,
    ) -> Result<Option<Outcome>, HandshakeError> {
        let header = &fragment.header;
        if header.attempt != self.attempt || header.receiver != self.local {
            return Err(HandshakeError::Attempt);
        }
        match self.stage {
            Stage::Hello => {}
            Stage::Confirming => {
                if self.peer == Some(header.sender) && self.flight.nudge(now) {
                    self.next = 0;
                    counters.resent += 1;
                }
                return Ok(None);
            }
            Stage::Failed => return Err(HandshakeError::Attempt),
        }
        self.on_incarnation(header)?;
        self.rtt = self.rtt.or(self.flight.answered_after(now));
        let result = match header.level {
            Level::Initial => self.handle_initial(pair, header, fragment.body, now),
            Level::Handshake if !self.tls.has_keys() => {
                let known = self
                    .early
                    .iter()
                    .any(|(early, ..)| early.offset == header.offset);
                if !known && self.early.len() < EARLY {
                    self.early
                        .push((*header, fragment.aad, fragment.body.to_vec()));
                }
                Ok(None)
            }
            Level::Handshake => {
                self.handle_sealed(pair, header, &fragment.aad, fragment.body.to_vec(), now)
            }
        };
        match &result {
            Ok(_) => {}
            Err(HandshakeError::Tls(_)) => self.stage = Stage::Failed,
            Err(HandshakeError::Seal) => self.doubted = true,
            Err(_) => {}
        }
        result
    }

    /// The responder demands a cookie. True if the first flight is sent again with it.
    pub(super) fn handle_retry(
        &mut self,
        index: u32,
        attempt: u64,
        cookie: &[u8; 16],
        now: Instant,
    ) -> bool {
        let ours = attempt == self.attempt && index == self.local;
        let wanted = *cookie != self.cookie && self.cookies < COOKIES;
        if !ours || self.stage != Stage::Hello || self.tls.has_keys() || !wanted {
            return false;
        }
        self.cookie = *cookie;
        self.cookies += 1;
        self.flight.set_cookie(cookie, now);
        self.next = 0;
        true
    }

    /// Resends what is due. An error if this attempt is over and a fresh one shall follow, with the
    /// patience given.
    pub(super) fn handle_timeout(
        &mut self,
        now: Instant,
        counters: &mut HandshakeCounters,
    ) -> Result<(), Duration> {
        if now >= self.deadline {
            let longer = if self.stage == Stage::Hello {
                self.patience * 2
            } else {
                self.patience
            };
            return Err(longer.min(LONGEST_PATIENCE));
        }
        if self.flight.handle_timeout(now) {
            if self.stage == Stage::Failed || (self.stage == Stage::Hello && self.doubted) {
                return Err(self.patience);
            }
            self.cookies = 0;
            self.next = 0;
            counters.resent += 1;
        }
        Ok(())
    }

    pub(super) fn poll_timeout(&self) -> Instant {
        self.flight.due().min(self.deadline)
    }

    /// A responder that restarts in the middle answers the same attempt with other keys under
    /// another index. While nothing of the first answer has been used, the second replaces it;
    /// later only a fresh attempt helps.
    fn on_incarnation(&mut self, header: &Header) -> Result<(), HandshakeError> {
        if self.peer.is_none_or(|peer| peer == header.sender) {
            self.peer = Some(header.sender);
            return Ok(());
        }
        if self.tls.has_keys() {
            self.stage = Stage::Failed;
            return Err(HandshakeError::Inconsistent);
        }
        self.peer = Some(header.sender);
        self.inbound = Default::default();
        self.early.clear();
        Ok(())
    }

    fn handle_initial(
        &mut self,
        pair: &Pair,
        header: &Header,
        fragment: &[u8],
        now: Instant,
    ) -> Result<Option<Outcome>, HandshakeError> {
        if self.tls.has_keys() || !self.inbound[0].insert(header, fragment)? {
            return Ok(None);
        }
        let answer = self
            .tls
            .read(&self.inbound[0].take())
            .map_err(HandshakeError::Tls)?;
        // TLS could ask for a second hello, but there is only one group to choose: who asks is not
        // one of us.
        if !self.tls.has_keys() || !answer.initial.is_empty() {
            self.stage = Stage::Failed;
            return Err(HandshakeError::Inconsistent);
        }
        for (header, aad, body) in std::mem::take(&mut self.early) {
            if let Some(outcome) = self.handle_sealed(pair, &header, &aad, body, now)? {
                return Ok(Some(outcome));
            }
        }
        Ok(None)
    }

    fn handle_sealed(
        &mut self,
        pair: &Pair,
        header: &Header,
        aad: &[u8],
        mut sealed: Vec<u8>,
        now: Instant,
    ) -> Result<Option<Outcome>, HandshakeError> {
        let fragment = self
            .tls
            .open(header.offset, aad, &mut sealed)
            .ok_or(HandshakeError::Seal)?;
        if !self.inbound[1].insert(header, fragment)? {
            return Ok(None);
        }
        let last = self
            .tls
            .read(&self.inbound[1].take())
            .map_err(HandshakeError::Tls)?;
        let Some(outcome) = self.tls.outcome() else {
            self.stage = Stage::Failed;
            return Err(HandshakeError::Inconsistent);
        };
        let header = self::header(self.attempt, self.local, self.peer());
        let last = Output {
            initial: Vec::new(),
            handshake: last.handshake,
        };
        self.flight = Flight::new(pair, &self.tls, header, last, interval_for(self.rtt), now);
        self.next = 0;
        self.stage = Stage::Confirming;
        self.deadline = now + CONFIRMATION + 4 * self.rtt.unwrap_or_default();
        Ok(Some(outcome))
    }
}

/// The fields that all our fragments share.
fn header(attempt: u64, local: u32, peer: u32) -> Header {
    Header {
        sender: local,
        receiver: peer,
        attempt,
        level: Level::Initial,
        from_responder: false,
        offset: 0,
        total: 0,
        length: 0,
        cookie: [0; 16],
    }
}
