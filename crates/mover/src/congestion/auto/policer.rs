//! A policer on the path: it drops what comes faster than its rate, and nothing ever waits.
//!
//! Loss in proportion to what we send, without any queue, is its work if as much gets through in
//! two probing cycles (in the manner of BBRv1). What gets through is then kept to for a while. If
//! that does not help, it is the path that loses. It takes something of each quantum that we send:
//! a loss of many neighbours is a burst on the path.

use crate::timer::{Nanos, SECOND};

/// Two cycles are alike when what gets through differs by no more than this part.
const ALIKE: u64 = 8;
/// A round that makes suspicious loses so much, in percent.
const SUSPICIOUS_PERCENT: u64 = 8;
/// For so long, and so many round trips, what was found is believed.
const BELIEVED: Nanos = 10 * SECOND;
const BELIEVED_ROUNDS: u64 = 48;
/// Suspicions further apart than so many cycles do not belong together: a policer takes its toll in
/// each, a burst of losses comes by chance.
const TOGETHER: u64 = 2;
/// After so many rounds it must have helped.
const HELPS_AFTER: u64 = 2;
/// After a false suspicion there is none for so long.
const REST: Nanos = 60 * SECOND;

/// A round that lost too much.
pub(super) struct Lossy {
    pub(super) delivered: u64,
    pub(super) lost: u64,
    /// Of neighbours that were lost, and how many bytes a run of them has at most if a policer did
    /// it: half of a quantum.
    pub(super) runs: u64,
    pub(super) longest_run: u64,
    /// Bytes per second that got through.
    pub(super) rate: u64,
    /// A queue stood: then it is no policer's loss.
    pub(super) queued: bool,
    /// Its number.
    pub(super) round: u64,
}

/// What it lets pass, until when that is believed, and after which round it must have helped.
struct Found {
    rate: u64,
    until: Nanos,
    helps_after: u64,
}

/// The detector.
#[derive(Default)]
pub(super) struct Policer {
    found: Option<Found>,
    /// What got through in the last suspicious cycle, and its number.
    leftover: Option<(u64, u64)>,
    cycles: u64,
    rests_until: Nanos,
}

impl Policer {
    /// Bytes per second that it lets pass, if there is one.
    pub(super) fn rate(&self) -> Option<u64> {
        self.found.as_ref().map(|found| found.rate)
    }

    /// Asking for more would only lose what is asked for.
    pub(super) fn holds(&self, now: Nanos) -> bool {
        self.found.as_ref().is_some_and(|found| now < found.until)
    }

    /// Another probing cycle begins, which shows whether it is still there. What it let pass, if
    /// there was one.
    pub(super) fn on_cycle(&mut self) -> Option<u64> {
        self.cycles += 1;
        let rate = self.found.take()?.rate;
        self.leftover = Some((rate, self.cycles - 1));
        Some(rate)
    }

    /// True if a policer was found by this.
    pub(super) fn on_lossy_round(&mut self, seen: &Lossy, minimum: Nanos, now: Nanos) -> bool {
        if let Some(found) = &self.found {
            if seen.round > found.helps_after {
                (self.found, self.leftover, self.rests_until) = (None, None, now + REST);
            }
            return false;
        }
        let much = seen.lost * 100 >= SUSPICIOUS_PERCENT * (seen.lost + seen.delivered);
        let burst = seen.lost > seen.runs * seen.longest_run;
        if seen.queued || now < self.rests_until || !much || burst {
            return false;
        }
        match self.leftover {
            Some((_, cycle)) if cycle == self.cycles => false,
            Some((last, cycle))
                if self.cycles - cycle <= TOGETHER && seen.rate.abs_diff(last) <= last / ALIKE =>
            {
                let until = (now + BELIEVED).max(now + BELIEVED_ROUNDS * minimum);
                let rate = seen.rate.midpoint(last);
                self.found = Some(Found {
                    rate,
                    until,
                    helps_after: seen.round + HELPS_AFTER,
                });
                true
            }
            _ => {
                self.leftover = Some((seen.rate, self.cycles));
                false
            }
        }
    }
}
