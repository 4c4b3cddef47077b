//! A TCP-like rival for a bottleneck: CUBIC (RFC 9438) without pacing and without HyStart, as most of the Internet's senders are.
//!
//! Only its window matters: it sends numbered datagrams that nobody repeats, the other end acknowledges each.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use tpo_lab::Node;

/// UDP payload of its datagrams, 1,500 bytes with their headers.
const DATAGRAM: usize = 1_472;
const C: f64 = 0.4;
const BETA: f64 = 0.7;
/// Later datagrams acknowledged before one counts as lost.
const REORDERING: u64 = 3;

/// One end of it.
pub(crate) struct Rival {
    to: SocketAddr,
    /// Numbers to acknowledge, at the receiving end.
    acks: Vec<u64>,
    pub(crate) received_bytes: u64,
    sends: bool,
    next: u64,
    flying: BTreeSet<u64>,
    window: f64,
    threshold: f64,
    /// The window before the last loss, and when growth from it began.
    most: f64,
    since: Option<Instant>,
    /// Losses up to this number belong to the last reduction.
    recovers: u64,
    rtt: Duration,
    sent: std::collections::BTreeMap<u64, Instant>,
    heard_at: Instant,
}

impl Rival {
    pub(crate) fn new(to: SocketAddr, sends: bool, now: Instant) -> Rival {
        Rival {
            to,
            acks: Vec::new(),
            received_bytes: 0,
            sends,
            next: 0,
            flying: BTreeSet::new(),
            window: 10.0,
            threshold: f64::INFINITY,
            most: 0.0,
            since: None,
            recovers: 0,
            rtt: Duration::from_millis(100),
            sent: std::collections::BTreeMap::new(),
            heard_at: now,
        }
    }

    pub(crate) fn start(&mut self) {
        self.sends = true;
    }

    fn on_ack(&mut self, number: u64, now: Instant) {
        self.heard_at = now;
        if let Some(sent) = self.sent.remove(&number) {
            self.rtt = now - sent;
        }
        if self.flying.remove(&number) {
            self.grow(now);
        }
        while let Some(&lost) = self.flying.first().filter(|first| **first + REORDERING <= number) {
            self.flying.remove(&lost);
            self.sent.remove(&lost);
            if lost >= self.recovers {
                self.most = self.window;
                self.window = (self.window * BETA).max(2.0);
                (self.threshold, self.since, self.recovers) = (self.window, None, self.next);
            }
        }
    }

    fn grow(&mut self, now: Instant) {
        if self.window < self.threshold {
            self.window += 1.0;
            return;
        }
        let (rtt, since) = (self.rtt.as_secs_f64(), *self.since.get_or_insert(now));
        let time = (now - since).as_secs_f64();
        let k = (self.most * (1.0 - BETA) / C).cbrt();
        let cubic = C * (time + rtt - k).powi(3) + self.most;
        let friendly = self.most * BETA + 3.0 * (1.0 - BETA) / (1.0 + BETA) * time / rtt;
        let target = cubic.max(friendly).min(1.5 * self.window);
        self.window += ((target - self.window) / self.window).max(0.01 / self.window);
    }
}

impl Node for Rival {
    fn handle_datagram(&mut self, _: SocketAddr, datagram: &mut [u8], now: Instant) {
        let number = u64::from_be_bytes(datagram[..8].try_into().expect("eight bytes"));
        if datagram.len() == DATAGRAM {
            self.received_bytes += DATAGRAM as u64;
            self.acks.push(number);
        } else {
            self.on_ack(number, now);
        }
    }

    fn handle_timeout(&mut self, now: Instant) {
        // All that was on its way is lost.
        self.flying.clear();
        self.sent.clear();
        (self.threshold, self.window, self.heard_at) = (self.window / 2.0, 2.0, now);
    }

    fn poll_timeout(&self) -> Option<Instant> {
        (!self.flying.is_empty()).then(|| self.heard_at + Duration::from_secs(1))
    }

    fn poll_transmit(&mut self, out: &mut Vec<u8>, now: Instant) -> Option<(SocketAddr, usize)> {
        if let Some(number) = self.acks.pop() {
            out.extend_from_slice(&number.to_be_bytes());
            return Some((self.to, 8));
        }
        if !self.sends || self.flying.len() as f64 >= self.window {
            return None;
        }
        if self.flying.is_empty() {
            self.heard_at = now;
        }
        self.flying.insert(self.next);
        self.sent.insert(self.next, now);
        out.extend_from_slice(&self.next.to_be_bytes());
        out.resize(DATAGRAM, 0);
        self.next += 1;
        Some((self.to, DATAGRAM))
    }
}
