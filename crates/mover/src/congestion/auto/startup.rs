//! How `Auto` begins: with as much as its streams would begin with, with the configured or the
//! remembered rate, and when startup ends.

use std::time::Duration;

use super::{Auto, Phase, Round};
use crate::congestion::initial::{INITIAL_DATAGRAMS, INITIAL_SPREAD};
use crate::congestion::rate::rate_of;
use crate::timer::Nanos;

/// First window for each stream, and the most for all of them: what its end's own TCP would begin with (RFC 6928), but not
/// in one burst.
const FLOW_DATAGRAMS: u64 = 10;
const MOST_INITIAL_DATAGRAMS: u64 = 160;
/// Where a configured rate starts from, in percent of it.
const JUMP_PERCENT: u64 = 96;
/// A remembered bandwidth is begun with this share, times the gain of startup.
pub(super) const RESUME_PERCENT: u64 = 36;
/// Startup ends when the rate grew by less than a quarter in so many rounds: fewer when a queue
/// proves it.
const PLATEAU_ROUNDS_QUEUED: u32 = 3;
const PLATEAU_ROUNDS: u32 = 8;
/// A round with fewer datagrams proves nothing.
pub(super) const PLATEAU_DATAGRAMS: u64 = 30;
/// A queue that stands for so many samples and this part of a round trip, twice in a row, ends
/// startup: to wait for a whole round fills it further.
const GLANCE_SAMPLES: u64 = 2;
const GLANCE_PART: u64 = 8;
const GLANCES: u32 = 2;
/// Unless more came through than three such parts before.
const GLANCE_GROWTH_PERCENT: u64 = 112;
/// Where a product of the path is less, the queue is soon full and soon empty.
const GLANCE_PRODUCT: u64 = 100;

/// A part of a round, to see at once that a queue stands.
#[derive(Default)]
pub(super) struct Glance {
    since: Nanos,
    /// Before it, in all.
    delivered: u64,
    least: Nanos,
    count: u64,
    /// Of the last three, bytes per second.
    rates: [u64; 3],
    /// So many in a row saw one.
    pub(super) stood: u32,
}

impl Glance {
    pub(super) fn new(now: Nanos) -> Glance {
        Glance {
            since: now,
            least: Nanos::MAX,
            ..Glance::default()
        }
    }
}

impl Auto {
    /// So many streams are carried: before anything is known of the path each may begin like a
    /// connection of its own. True if the rate changed.
    pub(in crate::congestion) fn on_flows(&mut self, flows: u64) -> bool {
        let initial = (flows * FLOW_DATAGRAMS).min(MOST_INITIAL_DATAGRAMS);
        let knows = self.begun
            || self.phase != Phase::Startup
            || self.cap.is_some()
            || self.resuming.is_some();
        if knows || initial <= self.initial {
            return false;
        }
        self.initial = initial;
        self.window = self.window.max(initial * self.datagram);
        self.rate = self.rate.max(self.first_rate());
        true
    }

    /// At which many streams begin, so that the last one's first answer waits no longer than its
    /// end could notice.
    pub(super) fn first_rate(&self) -> u64 {
        if self.initial > INITIAL_DATAGRAMS {
            rate_of(self.initial * self.datagram, INITIAL_SPREAD)
        } else {
            0
        }
    }

    /// The configured rate is where we start as soon as the round trip is known.
    pub(super) fn jump(&mut self, minimum: Nanos, now: Nanos) {
        self.jumped = true;
        if let Some(cap) = self.cap {
            self.best[1] = cap * JUMP_PERCENT / 100;
            self.cycle_full = true;
            self.unproved = true;
            self.enter(Phase::Cruise, now);
            self.next_up = now + 2 * minimum;
        } else if let Some(path) = self
            .remembered
            .filter(|path| path.is_like(Duration::from_nanos(minimum)))
        {
            // Start-up goes on from there: its gain makes this the remembered rate, its window two
            // thirds of the remembered product.
            let bandwidth = path.bandwidth * RESUME_PERCENT / 100;
            self.best[1] = self.best[1].max(bandwidth);
            self.window = self.window.max(2 * self.product(minimum));
            self.resuming = Some((bandwidth, self.rounds + 2));
            self.unproved = true;
        }
    }

    /// The path carries only `rate`: what was remembered or configured is forgotten, and the queue
    /// that it made is drained (draft-ietf-tsvwg-careful-resume, safe retreat).
    pub(super) fn forget(&mut self, rate: u64, now: Nanos) {
        (self.resuming, self.unproved, self.crowd) = (None, false, None);
        self.best = [0, rate];
        self.quiet_bandwidth = rate;
        self.watch.forgive(now);
        self.measuring_floor = false;
        self.enter(Phase::Drain, now);
    }

    /// The first whole round after a resumption shows whether the path still carries it.
    pub(super) fn validate(&mut self, round: &Round, now: Nanos) {
        let Some((bandwidth, _)) = self
            .resuming
            .filter(|(_, decides)| self.rounds >= *decides && round.full)
        else {
            return;
        };
        self.resuming = None;
        if round.best_rate < bandwidth {
            self.forget(round.best_rate, now);
        } else if round.best_rate >= bandwidth * 80 / RESUME_PERCENT && self.phase == Phase::Startup
        {
            // As much as was remembered: this is what there is.
            self.enter(Phase::Drain, now);
        }
    }

    pub(super) fn on_startup_round(&mut self, round: &Round, minimum: Nanos) {
        let stands = self.stands(round, minimum);
        if !round.full || (round.delivered < PLATEAU_DATAGRAMS * self.datagram && !stands) {
            return;
        }
        let bandwidth = self.bandwidth();
        if bandwidth >= self.plateau + self.plateau / 4 {
            self.plateau = bandwidth;
            self.plateau_rounds = 0;
        } else {
            // A queue that stood for the whole round is all the proof that is needed.
            self.plateau_rounds += if stands { PLATEAU_ROUNDS_QUEUED } else { 1 };
        }
    }

    /// Half of what is a queue that stands, over a shorter time, in which no more came through than
    /// before: beside others, it would.
    pub(super) fn glance(&mut self, measured: Nanos, delivered: u64, minimum: Nanos, now: Nanos) {
        let above = self.standing_above(minimum) - minimum / 16;
        let tells = self.product(minimum) >= GLANCE_PRODUCT * self.datagram;
        let glance = &mut self.glance;
        glance.count += 1;
        glance.least = glance.least.min(measured);
        if glance.count >= GLANCE_SAMPLES && now >= glance.since + minimum / GLANCE_PART {
            let [oldest, older, newer] = glance.rates;
            let rate = rate_of(delivered - glance.delivered, now - glance.since);
            let grew = rate * 100 > oldest * GLANCE_GROWTH_PERCENT;
            let stood = if tells && glance.least > above && !grew {
                glance.stood + 1
            } else {
                0
            };
            *glance = Glance {
                since: now,
                delivered,
                least: Nanos::MAX,
                count: 0,
                rates: [older, newer, rate],
                stood,
            };
        }
    }

    pub(super) fn startup_is_over(&self) -> bool {
        let enough = if self.queued || self.heavy_rounds > 0 {
            PLATEAU_ROUNDS_QUEUED
        } else {
            PLATEAU_ROUNDS
        };
        let at_cap = self.cap.is_some_and(|cap| self.bandwidth() >= cap);
        self.plateau_rounds >= enough
            || self.glance.stood >= GLANCES
            || at_cap
            || (self.heavy_rounds >= 2 && self.queued)
    }
}
