//! How much of the path's loss is not ours: the floor below which loss says nothing about
//! congestion.
//!
//! Measured on datagrams that left at less than the path's bandwidth while no queue stood, so that
//! a full queue cannot have dropped them. `bbr.rs` decides when; the result goes back into its
//! delivery-rate samples and its idea of too much loss.

use crate::congestion::report::Lost;
use crate::timer::{Nanos, SECOND};

/// Given back at most without a measurement.
const UNMEASURED: f64 = 0.01;
/// A measured floor may lie above the tolerated loss by this share of it and this much: what chance
/// adds.
const TOLERANCE_SLACK: (f64, f64) = (0.1, 0.002);
/// Below this loss there is nothing worth measuring.
const WORTH_MEASURING: f64 = 0.003;
/// Loss beyond the floor that is not yet too much.
const MARGIN: f64 = 0.02;
/// Fewer lost datagrams are never too much.
const FEWEST: f64 = 3.0;
/// How much an old measurement counts beside a new one.
const KEEP: f64 = 0.7;
/// A measurement takes at least so many datagrams, and at most so many of the shortest round trips
/// to get them.
const DATAGRAMS: u64 = 100;
const LONGEST_ROUNDS: u64 = 8;
/// The first measurements follow one another sooner.
const EARLY: u32 = 3;
/// Bytes, roughly.
const DATAGRAM: f64 = 1_500.0;
/// Datagrams that the recent loss ratio remembers.
const RECENT_DATAGRAMS: f64 = 4_000.0;

/// The floor and its measurement.
#[derive(Default)]
pub(super) struct LossFloor {
    /// The policy: more than this share is not taken for the path's own, whatever is measured.
    tolerance: f64,
    since: Option<Nanos>,
    until: Option<Nanos>,
    acked: u64,
    lost: u64,
    acked_sum: f64,
    lost_sum: f64,
    measured: u32,
    last_at: Nanos,
    recent_acked: f64,
    recent_lost: f64,
    /// Runs of neighbouring losses: bursts make chance counts vary more.
    last_lost: u64,
    losses: f64,
    runs: f64,
}

impl LossFloor {
    /// `tolerance`: see `Config::loss_tolerance`.
    pub(super) fn new(tolerance: f64) -> LossFloor {
        LossFloor {
            tolerance,
            ..LossFloor::default()
        }
    }

    /// How many runs of neighbouring losses began with these.
    pub(super) fn on_lost(&mut self, lost: &[Lost]) -> u64 {
        let mut begun = 0;
        for loss in lost {
            self.losses += 1.0;
            if loss.number != self.last_lost + 1 {
                self.runs += 1.0;
                begun += 1;
            }
            self.last_lost = loss.number;
            self.recent_lost += loss.bytes as f64;
            if self.measures(loss.sent) {
                self.lost += loss.bytes;
            }
        }
        if self.losses > 400.0 {
            self.losses /= 2.0;
            self.runs /= 2.0;
        }
        begun
    }

    /// So many bytes were acknowledged, the newest of them sent at `sent`; what left before
    /// `decided` is known to have arrived or to be lost. If that ends a measurement: the ratio
    /// believed before it.
    pub(super) fn on_acked(&mut self, bytes: u64, sent: Nanos, decided: Nanos) -> Option<f64> {
        self.recent_acked += bytes as f64;
        if self.recent_acked + self.recent_lost > RECENT_DATAGRAMS * DATAGRAM {
            self.recent_acked /= 2.0;
            self.recent_lost /= 2.0;
        }
        if self.measures(sent) {
            self.acked += bytes;
        }
        // A quarter of the measured time later its losses are known too, but for a path that
        // reorders: without them the floor would be too low.
        if let (Some(since), Some(until)) = (self.since, self.until)
            && sent > until + (until - since) / 4
            && decided >= until
        {
            let believed = self.ratio();
            self.conclude();
            return Some(believed);
        }
        None
    }

    fn measures(&self, sent: Nanos) -> bool {
        self.since.is_some_and(|since| sent >= since) && self.until.is_none_or(|until| sent < until)
    }

    fn conclude(&mut self) {
        if self.acked + self.lost > 0 {
            if self.is_news() {
                (self.acked_sum, self.lost_sum) = (0.0, 0.0);
            }
            self.acked_sum = self.acked_sum * KEEP + self.acked as f64;
            self.lost_sum = self.lost_sum * KEEP + self.lost as f64;
            self.measured += 1;
        }
        (self.since, self.until, self.acked, self.lost) = (None, None, 0, 0);
    }

    /// Is less lost than chance makes of what was measured before? Then that was not the path's
    /// own: a policer's, or our own queue's.
    fn is_news(&self) -> bool {
        let total = (self.acked + self.lost) as f64;
        let expected = total * self.lost_sum / (self.acked_sum + self.lost_sum).max(1.0);
        let chance = 3.0 * (expected * DATAGRAM * self.burstiness()).sqrt();
        (self.lost as f64) < expected - chance
    }

    /// Is it time to measure?
    pub(super) fn is_due(&self, round_trip: Nanos, now: Nanos) -> bool {
        let recent = self.recent_lost / (self.recent_acked + self.recent_lost).max(1.0);
        let every = if self.measured < EARLY {
            (2 * SECOND).max(16 * round_trip)
        } else {
            (5 * SECOND).max(32 * round_trip)
        };
        let rested = self.measured == 0 || now > self.last_at + every;
        recent > WORTH_MEASURING && rested && self.since.is_none()
    }

    pub(super) fn start(&mut self, now: Nanos) {
        (self.since, self.until, self.acked, self.lost, self.last_at) =
            (Some(now), None, 0, 0, now);
    }

    pub(super) fn measuring_since(&self) -> Option<Nanos> {
        self.since
    }

    /// Have enough datagrams left for the measurement? It then waits for their fate.
    pub(super) fn is_done(&mut self, minimum: Nanos, datagram: u64, now: Nanos) -> bool {
        let Some(since) = self.since else {
            return false;
        };
        let elapsed = now.saturating_sub(since);
        // What is acknowledged now left one round trip ago: the count lags, the time does not.
        let enough = self.acked + self.lost >= DATAGRAMS * datagram && elapsed >= minimum;
        if enough || elapsed >= LONGEST_ROUNDS * minimum || (elapsed >= minimum && self.acked == 0)
        {
            self.until = Some(now);
            return true;
        }
        false
    }

    pub(super) fn is_measured(&self) -> bool {
        self.measured > 0
    }

    /// The share of datagrams that are lost whatever we do.
    pub(super) fn ratio(&self) -> f64 {
        if self.measured > 0 {
            let most = self.tolerance * (1.0 + TOLERANCE_SLACK.0) + TOLERANCE_SLACK.1;
            (self.lost_sum / (self.acked_sum + self.lost_sum).max(1.0)).min(most)
        } else {
            (self.recent_lost / (self.recent_acked + self.recent_lost).max(1.0))
                .min(UNMEASURED.min(self.tolerance))
        }
    }

    /// Below this, loss is no reason to slow down: until it is measured, all that the policy
    /// tolerates.
    fn tolerated(&self) -> f64 {
        if self.measured > 0 {
            self.ratio()
        } else {
            self.tolerance
        }
    }

    /// The variance of one datagram's loss, and how many datagrams tell of it: a measurement of few
    /// is itself a matter of chance (its ratio by Agresti and Coull, "Approximate is better than
    /// exact", 1998: none lost of a hundred does not mean that none ever is).
    fn spread(&self) -> (f64, f64) {
        if self.measured == 0 {
            return (self.tolerance * (1.0 - self.tolerance), f64::INFINITY);
        }
        let measured = (self.acked_sum + self.lost_sum) / DATAGRAM + 4.0;
        let ratio = (self.lost_sum / DATAGRAM + 2.0) / measured;
        (ratio * (1.0 - ratio), measured)
    }

    /// How much more than independent losses these vary: twice the mean run, less one.
    fn burstiness(&self) -> f64 {
        if self.losses < 20.0 {
            1.0
        } else {
            (2.0 * self.losses / self.runs.max(1.0) - 1.0).clamp(1.0, 200.0)
        }
    }

    /// How many of the bytes lost in an interval the path would have lost anyway: what chance
    /// explains, not more.
    pub(super) fn give_back(&self, delivered: u64, lost: u64, datagram: u64) -> u64 {
        let ratio = self.ratio();
        let count = delivered as f64 / (1.0 - ratio) / datagram as f64;
        let chance = 2.0 * (count * ratio * (1.0 - ratio) * self.burstiness()).sqrt();
        lost.min(((count * ratio + chance) * datagram as f64) as u64)
    }
}

/// Is so much loss more than the floor explains? With a queue beside it, less evidence is needed.
pub(super) fn excess(
    lost: u64,
    total: u64,
    datagram: u64,
    floor: &LossFloor,
    queued: bool,
) -> bool {
    let (lost, count) = (
        lost as f64 / datagram as f64,
        total as f64 / datagram as f64,
    );
    let ratio = floor.tolerated();
    let deviations = if queued { 3.0 } else { 4.0 };
    let (spread, measured) = floor.spread();
    let chance =
        deviations * (count * spread * (1.0 + count / measured) * floor.burstiness()).sqrt();
    lost >= FEWEST && lost > count * (ratio + MARGIN * (1.0 - ratio)) + chance
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_measurement_waits_for_the_fate_of_all_that_it_counts() {
        let mut floor = LossFloor::new(0.05);
        floor.start(0);
        assert!(!floor.is_done(SECOND, 1_500, SECOND / 2));
        assert_eq!(floor.on_acked(95 * 1_500, SECOND / 2, 0), None);
        assert_eq!(floor.on_acked(95 * 1_500, SECOND - 1, 0), None);
        assert!(floor.is_done(SECOND, 1_500, SECOND));
        let late = SECOND * 3 / 2;
        assert_eq!(
            floor.on_acked(1_500, late, SECOND / 2),
            None,
            "half of the losses is not known yet"
        );
        floor.on_lost(&[Lost {
            number: 7,
            sent: SECOND / 3,
            bytes: 10 * 1_500,
        }]);
        assert!(floor.on_acked(1_500, late, late).is_some());
        assert!((floor.ratio() - 0.05).abs() < 1e-9, "{}", floor.ratio());
    }
}
