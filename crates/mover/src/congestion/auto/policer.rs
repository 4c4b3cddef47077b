//! A policer on the path: it drops what comes faster than its rate, and nothing ever waits.
//!
//! Loss in proportion to what is sent, without any queue, is a policer's if as much gets through in
//! two probing cycles (in the manner of BBRv1). What gets through is then kept to for a while. If
//! that does not help, it is the path that loses. A policer takes part of each quantum that is
//! sent: a loss of many neighbours is a burst on the path.

use super::sampler::Tally;
use crate::timer::{Nanos, SECOND};

/// Two cycles are alike when what gets through differs by an eighth at most (BBRv1).
const ALIKE_PART: u64 = 8;
/// A round makes suspicious if it loses 8 % or more.
const SUSPICIOUS_PERCENT: u64 = 8;
/// What was found is believed for 10 s and for 48 round trips, whichever is longer (48: BBRv1).
const BELIEVED: Nanos = 10 * SECOND;
const BELIEVED_ROUNDS: u64 = 48;
/// Suspicions more than 2 cycles apart do not belong together: a policer takes its toll in each, a
/// burst of losses comes by chance (bursts of ten at 2 % in `matrix.rs`).
const TOGETHER_CYCLES: u64 = 2;
/// To keep to what was found must have helped after 2 rounds.
const HELPS_AFTER_ROUNDS: u64 = 2;
/// After a false suspicion there is none for 60 s.
const REST: Nanos = 60 * SECOND;

/// A round that lost too much.
pub(super) struct LossyRound {
    pub(super) tally: Tally,
    /// Runs of neighbouring losses, and the bytes that a run has at most if a policer made it: half
    /// of a quantum.
    pub(super) loss_runs: u64,
    pub(super) longest_run: u64,
    /// Bytes per second that got through.
    pub(super) rate: u64,
    /// A queue stood: then no policer made the loss.
    pub(super) queued: bool,
    /// The round's number.
    pub(super) number: u64,
}

impl LossyRound {
    fn is_suspicious(&self) -> bool {
        let much = self.tally.lost * 100 >= SUSPICIOUS_PERCENT * self.tally.total();
        let burst = self.tally.lost > self.loss_runs * self.longest_run;
        much && !burst && !self.queued
    }
}

/// A suspicion, or what is left of a policer that was believed.
#[derive(Clone, Copy)]
struct Suspicion {
    /// Bytes per second that got through.
    rate: u64,
    /// The number of the probing cycle.
    cycle: u64,
}

/// A policer that is believed.
struct Found {
    /// Bytes per second that it lets pass.
    rate: u64,
    believed_until: Nanos,
    /// After this round it must have helped to keep to the rate.
    helps_after: u64,
}

/// The detector.
#[derive(Default)]
pub(super) struct Policer {
    found: Option<Found>,
    suspicion: Option<Suspicion>,
    /// Probing cycles so far.
    cycles: u64,
    rests_until: Nanos,
}

impl Policer {
    /// Bytes per second that the policer lets pass, if there is one.
    pub(super) fn rate(&self) -> Option<u64> {
        self.found.as_ref().map(|found| found.rate)
    }

    /// Asking for more would only lose what is asked for.
    pub(super) fn holds(&self, now: Nanos) -> bool {
        self.found
            .as_ref()
            .is_some_and(|found| now < found.believed_until)
    }

    /// Another probing cycle begins, which shows whether the policer is still there. What it let
    /// pass, if there was one.
    pub(super) fn begin_cycle(&mut self) -> Option<u64> {
        self.cycles += 1;
        let rate = self.found.take()?.rate;
        self.suspicion = Some(Suspicion {
            rate,
            cycle: self.cycles - 1,
        });
        Some(rate)
    }

    /// True if a policer was found by this round.
    pub(super) fn judge(&mut self, round: &LossyRound, min_rtt: Nanos, now: Nanos) -> bool {
        if let Some(found) = &self.found {
            if round.number > found.helps_after {
                (self.found, self.suspicion, self.rests_until) = (None, None, now + REST);
            }
            return false;
        }
        if now < self.rests_until || !round.is_suspicious() {
            return false;
        }
        match self.suspicion {
            Some(last) if last.cycle == self.cycles => false,
            Some(last) if self.confirms(last, round.rate) => {
                self.found = Some(Found {
                    rate: round.rate.midpoint(last.rate),
                    believed_until: now + BELIEVED.max(BELIEVED_ROUNDS * min_rtt),
                    helps_after: round.number + HELPS_AFTER_ROUNDS,
                });
                true
            }
            Some(_) | None => {
                self.suspicion = Some(Suspicion {
                    rate: round.rate,
                    cycle: self.cycles,
                });
                false
            }
        }
    }

    fn confirms(&self, last: Suspicion, rate: u64) -> bool {
        let alike = rate.abs_diff(last.rate) <= last.rate / ALIKE_PART;
        self.cycles - last.cycle <= TOGETHER_CYCLES && alike
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A tenth is lost, in runs of one datagram.
    fn lossy(rate: u64, number: u64) -> LossyRound {
        LossyRound {
            tally: Tally {
                delivered: 900_000,
                lost: 100_000,
            },
            loss_runs: 100,
            longest_run: 4_500,
            rate,
            queued: false,
            number,
        }
    }

    #[test]
    fn two_cycles_that_lose_alike_are_a_policers() {
        let mut policer = Policer::default();
        assert!(!policer.judge(&lossy(1_000, 1), SECOND / 10, 0));
        assert!(
            !policer.judge(&lossy(1_000, 2), SECOND / 10, 0),
            "the same cycle"
        );
        policer.begin_cycle();
        assert!(policer.judge(&lossy(1_100, 9), SECOND / 10, 0));
        assert_eq!(policer.rate(), Some(1_050));
        assert!(policer.holds(10 * SECOND - 1) && !policer.holds(10 * SECOND));
        assert_eq!(policer.begin_cycle(), Some(1_050));
    }

    #[test]
    fn a_queue_a_burst_or_another_rate_is_no_policers() {
        let found = |second: LossyRound| {
            let mut policer = Policer::default();
            policer.judge(&lossy(1_000, 1), SECOND / 10, 0);
            policer.begin_cycle();
            policer.judge(&second, SECOND / 10, 0)
        };
        assert!(found(lossy(1_000, 9)));
        assert!(!found(lossy(1_200, 9)));
        assert!(!found(LossyRound {
            queued: true,
            ..lossy(1_000, 9)
        }));
        assert!(!found(LossyRound {
            loss_runs: 2,
            ..lossy(1_000, 9)
        }));
    }

    #[test]
    fn if_keeping_to_it_does_not_help_none_is_suspected_for_a_minute() {
        let mut policer = Policer::default();
        policer.judge(&lossy(1_000, 1), SECOND / 10, 0);
        policer.begin_cycle();
        assert!(policer.judge(&lossy(1_000, 9), SECOND / 10, 0));
        assert!(!policer.judge(&lossy(1_000, 12), SECOND / 10, SECOND));
        assert_eq!(policer.rate(), None);
        policer.judge(&lossy(1_000, 13), SECOND / 10, 60 * SECOND);
        policer.begin_cycle();
        assert!(!policer.judge(&lossy(1_000, 20), SECOND / 10, 61 * SECOND));
    }
}
