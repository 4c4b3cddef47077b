//! One side's messages on their way: a flight cut into datagrams and sent until the next flight
//! proves that it arrived, and the other side's stream put together again from fragments in any
//! order.

use std::time::{Duration, Instant};

use super::error::HandshakeError;
use super::tls::{Output, Tls};
use super::wire::{self, Header, Level, Pair};

/// First resend while the round trip is unknown.
pub(super) const FIRST_RESEND: Duration = Duration::from_millis(250);
/// Longest pause between two resends: a link that comes back is used soon.
const LONGEST_RESEND: Duration = Duration::from_secs(2);
/// The shortest time, 100 ms, between two answers to copies of the far side's flight, which say
/// that the far side lacks ours.
pub(super) const NUDGE: Duration = Duration::from_millis(100);

/// What was prepared to be sent, and when it is to be sent again; how much of it has left is for
/// its owner to know. Every datagram is sealed once and kept: sealing a second time under the same
/// nonce but, say, with another index in its header would give the key away.
pub(super) struct Flight {
    prepared: Vec<Vec<u8>>,
    count: u8,
    begun: Instant,
    interval: Duration,
    due: Instant,
}

impl Flight {
    /// `header` carries what all fragments of the flight share; offset, length, total and level are
    /// filled in here.
    pub(super) fn new(
        pair: &Pair,
        tls: &Tls,
        header: Header,
        output: Output,
        interval: Duration,
        now: Instant,
    ) -> Flight {
        let mut prepared = Vec::new();
        for (level, stream) in [
            (Level::Initial, output.initial),
            (Level::Handshake, output.handshake),
        ] {
            assert!(
                stream.len() <= wire::STREAM,
                "TLS wrote {} bytes",
                stream.len()
            );
            for (i, fragment) in stream.chunks(wire::capacity(level)).enumerate() {
                let header = Header {
                    level,
                    offset: (i * wire::capacity(level)) as u16,
                    total: stream.len() as u16,
                    length: fragment.len() as u16,
                    ..header
                };
                let head = pair.emit_header(&header);
                let mut body = fragment.to_vec();
                if level == Level::Handshake {
                    tls.seal(header.offset, &head, &mut body);
                }
                let mut datagram = [&head[..], &body].concat();
                if level == Level::Initial && !header.from_responder {
                    wire::pad(&mut datagram);
                }
                prepared.push(datagram);
            }
        }
        Flight {
            prepared,
            count: 0,
            begun: now,
            interval,
            due: now + interval,
        }
    }

    /// Length of its datagram number `at`; None past the last.
    pub(super) fn size(&self, at: usize) -> Option<usize> {
        self.prepared
            .get(at)
            .map(|prepared| prepared.len() + wire::MAC)
    }

    /// Appends its datagram number `at`.
    pub(super) fn emit(&self, at: usize, pair: &Pair, out: &mut Vec<u8>) {
        if let Some(prepared) = self.prepared.get(at) {
            pair.emit_fragment(prepared, self.count, out);
        }
    }

    pub(super) fn due(&self) -> Instant {
        self.due
    }

    /// How long the first transmission took to be answered; None once it was repeated, for then
    /// nobody knows which was.
    pub(super) fn answered_after(&self, now: Instant) -> Option<Duration> {
        (self.count == 0).then(|| now.saturating_duration_since(self.begun))
    }

    /// True if all is to be sent again because the time has come.
    pub(super) fn handle_timeout(&mut self, now: Instant) -> bool {
        if now < self.due {
            return false;
        }
        self.interval = (self.interval * 3 / 2).min(LONGEST_RESEND);
        self.repeat(now);
        true
    }

    /// The far side has shown that it lacks this flight. True if it is to be sent again for that.
    pub(super) fn nudge(&mut self, now: Instant) -> bool {
        let soon = now.saturating_duration_since(self.begun) < NUDGE;
        if !soon {
            self.repeat(now);
        }
        !soon
    }

    /// All is to be sent again, with this cookie.
    pub(super) fn set_cookie(&mut self, cookie: &[u8; 16], now: Instant) {
        for prepared in &mut self.prepared {
            wire::set_cookie(prepared, cookie);
        }
        self.repeat(now);
    }

    /// A transmission begins once more: it is told apart from the ones before, and waited for.
    pub(super) fn repeat(&mut self, now: Instant) {
        self.count = self.count.wrapping_add(1);
        self.begun = now;
        self.due = now + self.interval;
    }
}

/// How long to wait for an answer when the round trip has been seen: half as long again, for a peer
/// that is busy.
pub(super) fn interval_for(rtt: Option<Duration>) -> Duration {
    rtt.map_or(FIRST_RESEND, |rtt| {
        (rtt * 3 / 2).clamp(NUDGE, LONGEST_RESEND)
    })
}

/// One stream of the far side, as far as it has come.
#[derive(Default)]
pub(super) struct Inbound {
    bytes: Vec<u8>,
    /// For each byte whether it is there. At most [`wire::STREAM`] of them.
    have: Vec<bool>,
    missing: usize,
}

impl Inbound {
    /// Notes a fragment; what is there already stays as it is. True when the stream is whole.
    pub(super) fn insert(
        &mut self,
        header: &Header,
        fragment: &[u8],
    ) -> Result<bool, HandshakeError> {
        let (total, offset) = (header.total as usize, header.offset as usize);
        if self.bytes.is_empty() {
            self.bytes = vec![0; total];
            self.have = vec![false; total];
            self.missing = total;
        }
        if self.bytes.len() != total {
            return Err(HandshakeError::Inconsistent);
        }
        for (at, &byte) in (offset..).zip(fragment) {
            if !std::mem::replace(&mut self.have[at], true) {
                self.bytes[at] = byte;
                self.missing -= 1;
            }
        }
        Ok(self.missing == 0)
    }

    /// The whole stream.
    pub(super) fn take(&mut self) -> Vec<u8> {
        std::mem::take(self).bytes
    }
}
