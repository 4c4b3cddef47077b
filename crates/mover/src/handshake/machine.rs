//! The machine that agrees on keys with one pinned peer: TLS 1.3 in our own datagrams.
//!
//! The mover gives it the datagrams of the handshake kinds and takes the datagrams to send and,
//! when keys are agreed, the session. It keeps at most one attempt of our own (`initiator.rs`) and
//! a few of the peer's side by side (`responder.rs`); an established session is not its business
//! and cannot be disturbed from here. Nobody but the peer can make a datagram that gets an answer;
//! what others can do is repeat the peer's, from any address.
//!
//! Both sides may start at once. Both attempts then run; the side with the lower public key does
//! not answer the other's while its own is young, and a side that completes the peer's attempt
//! drops its own, except that the lower one does not complete the peer's after its own. So both end
//! with the session of the lower side, or, if only the other's gets through, with that.

use std::collections::VecDeque;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use aws_lc_rs::hkdf::{HKDF_SHA256, Prk};
use zeroize::Zeroizing;

use super::admission::Admission;
use super::counters::HandshakeCounters;
use super::draws::Draws;
use super::error::HandshakeError;
use super::initiator::{self, Fresh, Initiator};
use super::responder::Responder;
use super::tls::{Configs, Outcome};
use super::wire::{Fragment, Level, Pair, Parsed};
use crate::crypto::{Session, expand, extract};
use crate::identity::{Identity, PreSharedKey, PublicKey};
use crate::transmit::TransmitKind;

/// How long the side with the lower key leaves the peer's attempt unanswered because its own is
/// under way. After that its own may not get through at all, while the peer's does.
const YIELD: Duration = Duration::from_secs(1);
/// Retries waiting to be sent. More than these are not worth an answer.
const RETRIES: usize = 8;
/// Attempts of the peer that are answered side by side. It makes one at a time, and a second one if
/// it restarts; the others are recordings that somebody repeats. An attempt has some 20 KB.
const ATTEMPTS: usize = 4;
/// Of them, those from one IP address without a cookie: the peer and its restarted self. So who
/// repeats recordings from one address does not even cost the peer the round trip for a cookie.
const ATTEMPTS_OF_ADDRESS: usize = 2;

/// Connecting to one pinned peer.
pub(crate) struct Handshake {
    pub(super) pair: Pair,
    pre_shared: Option<Arc<PreSharedKey>>,
    configs: Configs,
    /// Ours is the lower public key.
    is_lower: bool,
    slot: u16,
    params: Vec<u8>,
    draws: Draws,
    initiator: Option<Attempt<Initiator>>,
    /// The oldest first; at most [`ATTEMPTS`].
    responders: Vec<Attempt<Responder>>,
    admission: Admission,
    retries: VecDeque<Retry>,
    /// Not yet taken. The caller polls after every input, so there is at most one; should it not,
    /// the newest counts.
    established: Option<Established>,
    counters: HandshakeCounters,
}

/// A machine and the record that its attempt carries.
struct Attempt<M> {
    machine: M,
    params: Vec<u8>,
}

/// Keys are agreed with the pinned peer.
#[derive(Debug)]
pub(crate) struct Established {
    pub(crate) session: Session,
    /// Where the peer is: the address that we called and that answered; if the peer called, from
    /// where the datagram came that completed the handshake.
    pub(crate) remote: SocketAddr,
    /// We started it. Then the peer has these keys only when it has our last flight, and shows that
    /// by using them.
    pub(crate) initiator: bool,
    /// The peer's record, authenticated.
    pub(crate) peer_params: Vec<u8>,
    /// Our own record as the peer got it: what we knew when the attempt began, which may be less or
    /// more than we know now.
    pub(crate) own_params: Vec<u8>,
}

/// What an attempt has led to, before the session is made of it.
struct Agreed {
    outcome: Outcome,
    /// The session's index at our side.
    local: u32,
    /// The session's index at the peer.
    peer: u32,
    remote: SocketAddr,
    /// We started the attempt.
    initiator: bool,
    own_params: Vec<u8>,
}

/// A retry to be sent.
struct Retry {
    to: SocketAddr,
    index: u32,
    attempt: u64,
    cookie: [u8; 16],
}

impl Handshake {
    /// `seed` is the root of all our random numbers here, and drawn anew for each run of the
    /// program.
    pub(crate) fn new(
        identity: Arc<Identity>,
        peer_key: PublicKey,
        pre_shared: Option<Arc<PreSharedKey>>,
        slot: u16,
        seed: [u8; 32],
    ) -> Handshake {
        assert!(slot < 1 << 12, "slot {slot} does not fit into 12 bits");
        let root = Prk::new_less_safe(HKDF_SHA256, &seed);
        let secret = |label| {
            Prk::from(
                root.expand(label, HKDF_SHA256)
                    .expect("a secret is shorter than HKDF can give"),
            )
        };
        Handshake {
            pair: Pair::new(&identity, &peer_key, pre_shared.as_deref()),
            pre_shared,
            configs: Configs::new(&identity, &peer_key),
            is_lower: identity.public_key() < peer_key,
            slot,
            params: Vec::new(),
            draws: Draws::new(secret(&[b"tpo draws"])),
            initiator: None,
            responders: Vec::new(),
            admission: Admission::new(secret(&[b"tpo cookies"])),
            retries: VecDeque::new(),
            established: None,
            counters: HandshakeCounters::default(),
        }
    }

    /// Begins an attempt of our own towards `to`; does nothing while one is under way there, and
    /// ends one that has called another address in vain. It goes on, with fresh attempts, until it
    /// is confirmed, the peer's attempt completes, or [`Handshake::stop`].
    pub(crate) fn start(&mut self, to: SocketAddr, now: Instant) {
        let goes_on = |initiator: &Attempt<Initiator>| {
            initiator.machine.remote() == to || initiator.machine.is_confirming()
        };
        if !self.initiator.as_ref().is_some_and(goes_on) {
            self.start_fresh(to, initiator::PATIENCE, now);
        }
    }

    /// Ends an attempt of our own.
    pub(crate) fn stop(&mut self) {
        self.initiator = None;
    }

    /// The record that we send in attempts started or answered from now on.
    pub(crate) fn set_params(&mut self, params: Vec<u8>) {
        self.params = params;
    }

    /// An attempt of our own is under way, or not yet confirmed.
    pub(crate) fn is_active(&self) -> bool {
        self.initiator.is_some()
    }

    /// A datagram of the handshake kinds. An error is a fact for those who want to know more than
    /// the counters say; nothing is broken by it.
    pub(crate) fn handle_datagram(
        &mut self,
        from: SocketAddr,
        datagram: &[u8],
        now: Instant,
    ) -> Result<(), HandshakeError> {
        let result = match self.pair.parse(datagram) {
            Ok(Parsed::Retry {
                index,
                attempt,
                cookie,
            }) => self.handle_retry(index, attempt, &cookie, now),
            Ok(Parsed::Fragment(fragment)) if fragment.header.from_responder => {
                self.handle_responder(&fragment, now)
            }
            Ok(Parsed::Fragment(fragment)) => {
                self.handle_initiator(from, &fragment, datagram.len(), now)
            }
            Err(error) => Err(error),
        };
        if let Err(error) = &result {
            self.counters.drops.count(error);
        }
        result
    }

    /// Resends, gives up what is dead, begins afresh.
    pub(crate) fn handle_timeout(&mut self, now: Instant) {
        let Handshake {
            responders,
            admission,
            counters,
            ..
        } = self;
        responders.retain_mut(|responder| {
            let lives = responder.machine.handle_timeout(now, counters);
            if !lives && responder.machine.is_proved() {
                // Its recording, cookie and all, is not to pass for a fresh one.
                admission.on_over(responder.machine.attempt());
            }
            lives
        });
        if let Some(initiator) = &mut self.initiator
            && let Err(patience) = initiator.machine.handle_timeout(now, &mut self.counters)
        {
            let remote = initiator.machine.remote();
            self.start_fresh(remote, patience, now);
        }
    }

    /// When [`Handshake::handle_timeout`] is due.
    pub(crate) fn poll_timeout(&self) -> Option<Instant> {
        let initiator = self
            .initiator
            .as_ref()
            .map(|initiator| initiator.machine.poll_timeout());
        let responders = self
            .responders
            .iter()
            .map(|responder| responder.machine.poll_timeout());
        initiator.into_iter().chain(responders).min()
    }

    /// The session indices that attempts under way have told the peer.
    pub(crate) fn indices(&self) -> impl Iterator<Item = u32> + '_ {
        let ours = self
            .initiator
            .iter()
            .map(|initiator| initiator.machine.local());
        ours.chain(
            self.responders
                .iter()
                .map(|responder| responder.machine.local()),
        )
    }

    /// Appends one datagram to `out` and says where it goes, and what it is.
    pub(crate) fn poll_transmit(
        &mut self,
        out: &mut Vec<u8>,
        _now: Instant,
    ) -> Option<(SocketAddr, TransmitKind)> {
        if let Some(retry) = self.retries.pop_front() {
            self.pair
                .emit_retry(retry.index, retry.attempt, &retry.cookie, out);
            return Some((retry.to, TransmitKind::Answer(retry.attempt)));
        }
        let Handshake {
            pair,
            responders,
            initiator,
            ..
        } = self;
        let answer = responders.iter_mut().find_map(|Attempt { machine, .. }| {
            let to = machine.poll_transmit(pair, out)?;
            Some((to, TransmitKind::Answer(machine.attempt())))
        });
        answer.or_else(|| {
            Some((
                initiator.as_mut()?.machine.poll_transmit(pair, out)?,
                TransmitKind::Call,
            ))
        })
    }

    /// Keys are agreed: for the initiator after the responder's flight, for the responder after the
    /// initiator's last.
    pub(crate) fn poll_established(&mut self) -> Option<Established> {
        self.established.take()
    }

    /// The first authenticated datagram of the session with our index `local` has arrived: both
    /// sides have its keys. If the attempt was ours, its last flight needs no resending, and what
    /// the peer began before is over: it has given that up itself. Without this a late copy of the
    /// peer's last flight would bring a session up that the peer has forgotten.
    pub(crate) fn on_confirmed(&mut self, local: u32) {
        let ours = |initiator: &Attempt<Initiator>| {
            initiator.machine.is_confirming() && initiator.machine.local() == local
        };
        if self.initiator.as_ref().is_some_and(ours) {
            self.initiator = None;
            for responder in self.responders.drain(..) {
                self.admission.on_over(responder.machine.attempt());
            }
        }
    }

    /// The counters.
    pub(crate) fn counters(&self) -> HandshakeCounters {
        self.counters
    }

    fn start_fresh(&mut self, remote: SocketAddr, patience: Duration, now: Instant) {
        let (attempt, local) = (self.draws.draw_attempt(), self.draws.draw_index(self.slot));
        let fresh = Fresh {
            remote,
            attempt,
            local,
            patience,
        };
        let params = self.params.clone();
        let machine = Initiator::new(&self.pair, &self.configs, fresh, params.clone(), now);
        self.initiator = Some(Attempt { machine, params });
        self.counters.started += 1;
    }

    fn handle_retry(
        &mut self,
        index: u32,
        attempt: u64,
        cookie: &[u8; 16],
        now: Instant,
    ) -> Result<(), HandshakeError> {
        let initiator = self.initiator.as_mut().ok_or(HandshakeError::Attempt)?;
        if !initiator.machine.handle_retry(index, attempt, cookie, now) {
            return Err(HandshakeError::Attempt);
        }
        self.counters.retries_taken += 1;
        Ok(())
    }

    /// The peer answers our attempt. Where the answer comes from says nothing: it may be a copy,
    /// and where we called is where the peer is.
    fn handle_responder(
        &mut self,
        fragment: &Fragment<'_>,
        now: Instant,
    ) -> Result<(), HandshakeError> {
        let Attempt { machine, params } = self.initiator.as_mut().ok_or(HandshakeError::Attempt)?;
        let outcome = machine.handle_fragment(&self.pair, fragment, now, &mut self.counters)?;
        let Some(outcome) = outcome else {
            return Ok(());
        };
        let agreed = Agreed {
            outcome,
            local: machine.local(),
            peer: machine.peer(),
            remote: machine.remote(),
            initiator: true,
            own_params: params.clone(),
        };
        self.on_agreed(agreed, now);
        Ok(())
    }

    /// The peer's own attempt.
    fn handle_initiator(
        &mut self,
        from: SocketAddr,
        fragment: &Fragment<'_>,
        size: usize,
        now: Instant,
    ) -> Result<(), HandshakeError> {
        let attempt = fragment.header.attempt;
        if self.admission.is_over(attempt) {
            return Err(HandshakeError::Over);
        }
        let known = self
            .responders
            .iter()
            .position(|responder| responder.machine.attempt() == attempt);
        let at = match known {
            Some(at) => at,
            None if self.admit(from, fragment, now)? => self.responders.len() - 1,
            None => return Ok(()),
        };
        if fragment.header.level == Level::Handshake && self.is_lower && self.is_confirming() {
            return Err(HandshakeError::Yields);
        }
        let responder = &mut self.responders[at].machine;
        let result =
            responder.handle_fragment(&self.pair, from, fragment, size, now, &mut self.counters);
        match result {
            Ok(None) => Ok(()),
            Ok(Some(outcome)) => {
                let begun = responder.begun();
                let agreed = Agreed {
                    outcome,
                    local: responder.local(),
                    peer: responder.peer(),
                    remote: from,
                    initiator: false,
                    own_params: std::mem::take(&mut self.responders[at].params),
                };
                self.initiator = None;
                // The peer has given up what it began before this.
                let Handshake {
                    responders,
                    admission,
                    ..
                } = self;
                responders.retain(|responder| {
                    let later = responder.machine.begun() > begun;
                    if !later {
                        admission.on_over(responder.machine.attempt());
                    }
                    later
                });
                self.on_agreed(agreed, now);
                Ok(())
            }
            Err(error) => {
                if matches!(error, HandshakeError::Tls(_)) {
                    self.responders.remove(at);
                    self.admission.on_over(attempt);
                }
                Err(error)
            }
        }
    }

    /// Whether a new attempt of the peer is answered, as the last of our responders; false if it
    /// has to bring a cookie first. What brings none takes a free place, and no more; an attempt
    /// under way gives way only to one that brings one, and of those to a recording first.
    fn admit(
        &mut self,
        from: SocketAddr,
        fragment: &Fragment<'_>,
        now: Instant,
    ) -> Result<bool, HandshakeError> {
        let header = &fragment.header;
        if header.level == Level::Handshake {
            return Err(HandshakeError::Attempt);
        }
        let young = |initiator: &Attempt<Initiator>| {
            now.saturating_duration_since(initiator.machine.begun()) < YIELD
        };
        if self.is_lower && self.initiator.as_ref().is_some_and(young) {
            return Err(HandshakeError::Yields);
        }
        self.admission.start(now);
        let proved = self
            .admission
            .cookie_fits(&header.cookie, header.sender, header.attempt, now);
        if !proved && (!self.has_place(from.ip().to_canonical()) || self.admission.is_loaded(now)) {
            let cookie = self.admission.cookie(header.sender, header.attempt, now);
            if self.retries.len() == RETRIES {
                return Err(HandshakeError::Limited);
            }
            self.retries.push_back(Retry {
                to: from,
                index: header.sender,
                attempt: header.attempt,
                cookie,
            });
            self.counters.retries_sent += 1;
            return Ok(false);
        }
        if !self.admission.admit(now) {
            return Err(HandshakeError::Limited);
        }
        if self.responders.len() == ATTEMPTS {
            let recording = self
                .responders
                .iter()
                .position(|responder| !responder.machine.is_proved());
            let gone = self.responders.remove(recording.unwrap_or(0)).machine;
            if gone.is_proved() {
                self.admission.on_over(gone.attempt());
            }
        }
        let (local, params) = (self.draws.draw_index(self.slot), self.params.clone());
        let mut machine = Responder::new(&self.configs, from, header, local, params.clone(), now);
        if proved {
            machine.on_proved();
        }
        self.responders.push(Attempt { machine, params });
        self.counters.answered += 1;
        Ok(true)
    }

    /// One more attempt from this address can be answered beside the others.
    fn has_place(&self, from: IpAddr) -> bool {
        let same = |responder: &&Attempt<Responder>| responder.machine.origin() == from;
        self.responders.len() < ATTEMPTS
            && self.responders.iter().filter(same).count() < ATTEMPTS_OF_ADDRESS
    }

    fn is_confirming(&self) -> bool {
        self.initiator
            .as_ref()
            .is_some_and(|initiator| initiator.machine.is_confirming())
    }

    fn on_agreed(&mut self, agreed: Agreed, now: Instant) {
        let Agreed {
            mut outcome,
            local,
            peer,
            remote,
            initiator,
            own_params,
        } = agreed;
        let secret = |exported: &[u8; 32]| {
            let mut secret = Zeroizing::new([0; 32]);
            expand(
                &extract(self.pre_shared.as_deref(), exported),
                b"tpo session",
                &mut secret[..],
            );
            secret
        };
        let (send, recv) = (secret(&outcome.send_secret), secret(&outcome.recv_secret));
        let session = Session::new(outcome.suite, &send, &recv, local, peer, now);
        let peer_params = std::mem::take(&mut outcome.peer_params);
        self.established = Some(Established {
            session,
            remote,
            initiator,
            peer_params,
            own_params,
        });
        self.counters.established += 1;
    }
}

#[cfg(test)]
#[path = "tests/mod.rs"]
mod tests;
