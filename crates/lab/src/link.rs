//! One direction of a WAN, pure: bytes and times come in, fates go out.
//!
//! A packet meets, in this order: a policer, a drop-tail queue in bytes, the bottleneck that
//! serialises at the rate, outages and loss, propagation with jitter and reordering, and at the end
//! duplication and corruption. What is lost has therefore used the bottleneck, as on a real path
//! whose lossy part lies behind its narrow part.
//!
//! Without jitter and reordering packets leave in the order in which they came, also when the delay
//! shrinks.

use std::time::{Duration, Instant};

use crate::loss::Loss;
use crate::profile::Profile;

/// Picoseconds in a nanosecond. The link counts time in picoseconds since its start, so that
/// rounding a packet's serialisation time bends no rate up to 1000 Gbit/s; 64 bits last 213 days.
const PICOS: u64 = 1_000;

/// One direction of a WAN.
#[derive(Debug, Clone)]
pub struct Link {
    profile: Profile,
    queue_limit: usize,
    held_back: Duration,
    start: Instant,
    /// When the present profile was set: outages and schedule count from here.
    set_at: u64,
    /// The next entry of the schedule to apply.
    next_change: usize,
    /// When the bottleneck will have sent all that was accepted.
    busy_until: u64,
    /// What waited when the rate last changed keeps its times: until when, and the rate (bits/s) at
    /// which it drains.
    before: (u64, f64),
    /// The latest arrival given out, for order.
    last_arrival: u64,
    /// Bytes in the policer's bucket, and when that was.
    bucket: (f64, u64),
    loss: Loss,
    dice: fastrand::Rng,
    stats: LinkStats,
}

/// What becomes of a packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fate {
    /// It never arrives.
    Dropped(Cause),
    /// It arrives.
    Delivered(Delivery),
}

/// Why a packet never arrives.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cause {
    /// It is longer than the link's MTU.
    Size,
    /// It came faster than the policer lets pass.
    Police,
    /// The queue was full.
    Queue,
    /// The loss process took it.
    Loss,
    /// It left the bottleneck during an outage.
    Outage,
}

/// How a packet arrives.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Delivery {
    /// When.
    pub at: Instant,
    /// When its duplicate arrives, if it has one.
    pub again: Option<Instant>,
    /// Whether bits were flipped; the caller flips them.
    pub corrupt: bool,
}

/// Counters of one direction, from its start.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct LinkStats {
    /// Packets handed to the link.
    pub offered_packets: u64,
    /// Bytes handed to the link.
    pub offered_bytes: u64,
    /// Packets that arrive, duplicates not counted.
    pub delivered_packets: u64,
    /// Bytes that arrive, duplicates not counted.
    pub delivered_bytes: u64,
    /// Packets dropped because they were longer than the MTU.
    pub dropped_size: u64,
    /// Packets dropped by the policer.
    pub dropped_police: u64,
    /// Packets dropped because the queue was full.
    pub dropped_queue: u64,
    /// Packets lost by dice.
    pub dropped_loss: u64,
    /// Packets lost in outages.
    pub dropped_outage: u64,
    /// Packets held back so that others overtake them.
    pub reordered: u64,
    /// Packets that arrive twice.
    pub duplicated: u64,
    /// Packets that arrive with flipped bits.
    pub corrupted: u64,
    /// The most bytes that ever waited for the bottleneck.
    pub queue_max_bytes: u64,
}

impl Link {
    /// A link that starts now. The same profile, seed and calls give the same fates.
    pub fn new(profile: Profile, seed: u64, now: Instant) -> Link {
        let mut link = Link {
            queue_limit: 0,
            held_back: Duration::ZERO,
            start: now,
            set_at: 0,
            next_change: 0,
            busy_until: 0,
            before: (0, 0.0),
            last_arrival: 0,
            bucket: (f64::INFINITY, 0),
            loss: Loss::new(profile.loss, profile.burst),
            dice: fastrand::Rng::with_seed(seed),
            stats: LinkStats::default(),
            profile,
        };
        link.profile.schedule.sort_by_key(|(when, _)| *when);
        link.derive();
        link
    }

    /// Another profile from now on; its outages and schedule count from now. What was accepted
    /// keeps its fate and time.
    pub fn set(&mut self, mut profile: Profile, now: Instant) {
        let now = self.picos(now);
        self.apply_schedule(now);
        profile.schedule.sort_by_key(|(when, _)| *when);
        self.keep_backlog(now);
        self.profile = profile;
        self.set_at = now;
        self.next_change = 0;
        self.loss = Loss::new(self.profile.loss, self.profile.burst);
        self.derive();
    }

    /// What becomes of a packet of `length` bytes (IP bytes, header included) handed to the link
    /// now.
    pub fn carry(&mut self, length: usize, now: Instant) -> Fate {
        let now = self.picos(now);
        self.apply_schedule(now);
        self.stats.offered_packets += 1;
        self.stats.offered_bytes += length as u64;

        if self.profile.mtu > 0 && length > self.profile.mtu {
            self.stats.dropped_size += 1;
            return Fate::Dropped(Cause::Size);
        }
        if !self.passes(length, now) {
            self.stats.dropped_police += 1;
            return Fate::Dropped(Cause::Police);
        }
        let Some(departure) = self.queue(length, now) else {
            self.stats.dropped_queue += 1;
            return Fate::Dropped(Cause::Queue);
        };
        if self.in_outage(departure) {
            self.stats.dropped_outage += 1;
            return Fate::Dropped(Cause::Outage);
        }
        if self.loss.loses(&mut self.dice) {
            self.stats.dropped_loss += 1;
            return Fate::Dropped(Cause::Loss);
        }
        self.stats.delivered_packets += 1;
        self.stats.delivered_bytes += length as u64;

        let at = self.arrival(departure);
        let again = self.happens(self.profile.duplicate).then(|| {
            self.stats.duplicated += 1;
            // A copy takes its own way, but is never before its original.
            at.max(departure + self.travel())
        });
        let corrupt = self.happens(self.profile.corrupt);
        self.stats.corrupted += u64::from(corrupt);
        Fate::Delivered(Delivery {
            at: self.instant(at),
            again: again.map(|again| self.instant(again)),
            corrupt,
        })
    }

    /// Bytes that wait for the bottleneck now, the rest of the one that is being sent included.
    pub fn waiting(&self, now: Instant) -> u64 {
        self.waiting_at(self.picos(now))
    }

    /// The profile as it is now, the schedule's changes so far applied.
    pub fn profile(&self) -> &Profile {
        &self.profile
    }

    /// What happened so far.
    pub fn stats(&self) -> LinkStats {
        self.stats
    }

    /// A token bucket: full at first, and never fuller than its size.
    fn passes(&mut self, length: usize, now: u64) -> bool {
        let Some(rate) = self.profile.police else {
            return true;
        };
        let (had, at) = self.bucket;
        let has = (had + bytes_in(now - at, rate as f64)).min(self.profile.bucket_size() as f64);
        let passes = has >= length as f64;
        self.bucket = (if passes { has - length as f64 } else { has }, now);
        passes
    }

    /// Drop-tail and serialisation: when the packet has left the bottleneck, or `None` if there was
    /// no room. An idle bottleneck takes any packet.
    fn queue(&mut self, length: usize, now: u64) -> Option<u64> {
        let Some(rate) = self.profile.rate else {
            // No limit now, but what waited for an earlier one goes first.
            return Some(self.busy_until.max(now));
        };
        let waiting = self.waiting_at(now);
        let with_it = waiting + length as u64;
        if waiting > 0 && with_it > self.queue_limit as u64 {
            return None;
        }
        self.stats.queue_max_bytes = self.stats.queue_max_bytes.max(with_it);
        self.busy_until = self.busy_until.max(now) + serialisation(length, rate);
        Some(self.busy_until)
    }

    fn waiting_at(&self, now: u64) -> u64 {
        if self.busy_until <= now {
            return 0;
        }
        let (until, rate) = self.before;
        let old = bytes_in(until.saturating_sub(now), rate);
        let new = bytes_in(
            self.busy_until - until.max(now),
            self.profile.rate.unwrap_or(0) as f64,
        );
        // Rounded to the next byte, so that a bottleneck that sends is never called idle.
        (old + new).ceil() as u64
    }

    /// Before the rate changes: what waits keeps its departure times, so remember how it drains.
    fn keep_backlog(&mut self, now: u64) {
        let left = self.busy_until.saturating_sub(now);
        self.before = if left == 0 {
            (0, 0.0)
        } else {
            (
                self.busy_until,
                self.waiting_at(now) as f64 * 8.0 * 1e12 / left as f64,
            )
        };
    }

    fn arrival(&mut self, departure: u64) -> u64 {
        let mut at = departure + self.travel();
        if self.happens(self.profile.reorder) {
            self.stats.reordered += 1;
            return at + self.held_back.as_nanos() as u64 * PICOS;
        }
        if self.profile.jitter.is_zero() {
            at = at.max(self.last_arrival);
            self.last_arrival = at;
        }
        at
    }

    /// Delay and jitter of one packet.
    fn travel(&mut self) -> u64 {
        let jitter = self.profile.jitter.as_nanos() as u64;
        let extra = if jitter == 0 {
            0
        } else {
            self.dice.u64(0..=jitter)
        };
        (self.profile.delay.as_nanos() as u64 + extra) * PICOS
    }

    fn in_outage(&self, departure: u64) -> bool {
        let since = departure.saturating_sub(self.set_at);
        self.profile.outages.iter().any(|(start, length)| {
            let start = start.as_nanos() as u64 * PICOS;
            (start..start + length.as_nanos() as u64 * PICOS).contains(&since)
        })
    }

    fn happens(&mut self, share: f64) -> bool {
        share > 0.0 && self.dice.f64() < share
    }

    fn apply_schedule(&mut self, now: u64) {
        while let Some((when, change)) = self.profile.schedule.get(self.next_change).copied() {
            let when = self.set_at + when.as_nanos() as u64 * PICOS;
            if when > now {
                return;
            }
            self.keep_backlog(when);
            self.profile.apply(change);
            self.next_change += 1;
            self.loss = Loss::new(self.profile.loss, self.profile.burst);
            self.derive();
        }
    }

    fn derive(&mut self) {
        self.queue_limit = self.profile.queue_limit();
        self.held_back = self.profile.held_back();
    }

    fn picos(&self, now: Instant) -> u64 {
        now.saturating_duration_since(self.start).as_nanos() as u64 * PICOS
    }

    fn instant(&self, picos: u64) -> Instant {
        self.start + Duration::from_nanos(picos / PICOS)
    }
}

/// Picoseconds that a packet takes at a rate. 64 bits hold two megabytes' worth, more than any IP
/// packet.
fn serialisation(length: usize, rate: u64) -> u64 {
    length as u64 * 8 * 1_000_000_000_000 / rate.max(1)
}

fn bytes_in(picos: u64, rate: f64) -> f64 {
    picos as f64 * rate / 8e12
}

#[cfg(test)]
#[path = "link_tests.rs"]
mod tests;
