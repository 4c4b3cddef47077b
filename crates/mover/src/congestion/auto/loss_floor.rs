//! The loss floor: the share of datagrams that the path loses whatever is sent. Loss below it says
//! nothing about congestion.
//!
//! The floor is measured on datagrams that left at less than the path's bandwidth while no queue
//! stood, so that a full queue cannot have dropped them. `Auto` decides when. The result goes back
//! into its delivery-rate samples and into its judgement of too much loss.
//!
//! Life of a measurement: `is_due` → `start` when the queue is drained → `stop_if_enough` when
//! enough datagrams have left → `count_acked` ends it when the fate of all of them is known.

use super::sampler::Tally;
use crate::congestion::report::Lost;
use crate::timer::{Nanos, SECOND};

/// Without a measurement 1 % is given back at most.
const UNMEASURED: f64 = 0.01;
/// What chance adds: a measured floor may lie above the tolerated loss by a tenth of it and 0.2 %.
const TOLERANCE_SLACK_PART: f64 = 0.1;
const TOLERANCE_SLACK: f64 = 0.002;
/// Below a loss of 0.3 % there is nothing worth measuring.
const WORTH_MEASURING: f64 = 0.003;
/// Loss beyond the floor is not yet too much up to 2 % of what the floor leaves (BBRLossThresh of
/// draft-ietf-ccwg-bbr).
const MARGIN: f64 = 0.02;
/// Fewer than 3 lost datagrams are never too much.
const FEWEST: f64 = 3.0;
/// Too much loss lies 4 standard deviations above what is expected, and 3 beside a queue, which is
/// evidence of its own.
const DEVIATIONS: f64 = 4.0;
const DEVIATIONS_QUEUED: f64 = 3.0;
/// An old measurement counts 0.7 beside a new one.
const KEEP: f64 = 0.7;
/// A measurement takes 100 datagrams at least, and 8 of the min RTT at most to get them.
const DATAGRAMS: u64 = 100;
const LONGEST_ROUNDS: u64 = 8;
/// The first 3 measurements follow one another after 2 s or 16 round trips, whichever is longer;
/// the others after 5 s or 32.
const EARLY: u32 = 3;
const EARLY_EVERY: Nanos = 2 * SECOND;
const EARLY_ROUNDS: u64 = 16;
const EVERY: Nanos = 5 * SECOND;
const EVERY_ROUNDS: u64 = 32;
/// Bytes of a datagram, roughly: sums of bytes are compared with chance in datagrams.
const DATAGRAM: f64 = 1_500.0;
/// The recent loss remembers 4,000 datagrams.
const RECENT_DATAGRAMS: f64 = 4_000.0;
/// The mean run of losses is known from 20 losses on, and remembers 400.
const KNOWN_LOSSES: f64 = 20.0;
const REMEMBERED_LOSSES: f64 = 400.0;

/// A measurement under way.
struct Measurement {
    since: Nanos,
    /// Datagrams that left from here on are not part of it. `None`: it needs more of them.
    until: Option<Nanos>,
    tally: Tally,
}

impl Measurement {
    /// Is a datagram that left at `sent` part of it?
    fn counts(&self, sent: Nanos) -> bool {
        sent >= self.since && self.until.is_none_or(|until| sent < until)
    }

    /// Is the fate of all its datagrams known? A quarter of the measured time later their losses
    /// are known too, but for a path that reorders: without them the floor would be too low.
    fn is_decided(&self, sent: Nanos, decided_until: Nanos) -> bool {
        self.until
            .is_some_and(|until| sent > until + (until - self.since) / 4 && decided_until >= until)
    }
}

/// Bytes, older ones counting less.
#[derive(Default)]
struct Share {
    acked: f64,
    lost: f64,
}

impl Share {
    fn total(&self) -> f64 {
        self.acked + self.lost
    }

    /// The share of them that was lost.
    fn lost_ratio(&self) -> f64 {
        self.lost / self.total().max(1.0)
    }
}

/// Runs of neighbouring losses: bursts make chance counts vary more.
#[derive(Default)]
struct Runs {
    /// The number of the last datagram that was lost.
    last: u64,
    losses: f64,
    runs: f64,
}

impl Runs {
    /// True if a run begins with this loss.
    fn on_lost(&mut self, number: u64) -> bool {
        let begins = number != self.last + 1;
        self.last = number;
        self.losses += 1.0;
        if begins {
            self.runs += 1.0;
        }
        begins
    }

    fn age(&mut self) {
        if self.losses > REMEMBERED_LOSSES {
            self.losses /= 2.0;
            self.runs /= 2.0;
        }
    }

    /// How much more than independent losses these vary: twice the mean run, less one.
    fn burstiness(&self) -> f64 {
        if self.losses < KNOWN_LOSSES {
            1.0
        } else {
            (2.0 * self.losses / self.runs.max(1.0) - 1.0).clamp(1.0, 200.0)
        }
    }
}

/// The floor and its measurement.
pub(super) struct LossFloor {
    /// The policy: more than this share is not taken for the path's own, whatever is measured.
    tolerance: f64,
    measurement: Option<Measurement>,
    started_at: Nanos,
    /// The number of measurements so far, and their sum.
    measurements: u32,
    measured: Share,
    recent: Share,
    runs: Runs,
}

impl LossFloor {
    /// `tolerance`: see `Config::loss_tolerance`.
    pub(super) fn new(tolerance: f64) -> LossFloor {
        LossFloor {
            tolerance,
            measurement: None,
            started_at: 0,
            measurements: 0,
            measured: Share::default(),
            recent: Share::default(),
            runs: Runs::default(),
        }
    }

    /// These were lost. The number of runs of neighbours that began with them.
    pub(super) fn count_lost(&mut self, lost: &[Lost]) -> u64 {
        let mut begun = 0;
        for loss in lost {
            begun += u64::from(self.runs.on_lost(loss.number));
            self.recent.lost += loss.bytes as f64;
            if let Some(measurement) = self.measurement_of(loss.sent) {
                measurement.tally.lost += loss.bytes;
            }
        }
        self.runs.age();
        begun
    }

    /// `bytes` were acknowledged, the newest of them sent at `sent`; of what left before
    /// `decided_until` it is known whether it arrived. If that ends a measurement: the ratio
    /// believed before it.
    pub(super) fn count_acked(
        &mut self,
        bytes: u64,
        sent: Nanos,
        decided_until: Nanos,
    ) -> Option<f64> {
        self.recent.acked += bytes as f64;
        if self.recent.total() > RECENT_DATAGRAMS * DATAGRAM {
            self.recent.acked /= 2.0;
            self.recent.lost /= 2.0;
        }
        if let Some(measurement) = self.measurement_of(sent) {
            measurement.tally.delivered += bytes;
        }
        let over = |measurement: &mut Measurement| measurement.is_decided(sent, decided_until);
        let measurement = self.measurement.take_if(over)?;
        let believed = self.ratio();
        self.conclude(measurement.tally);
        Some(believed)
    }

    /// The measurement that a datagram which left at `sent` is part of.
    fn measurement_of(&mut self, sent: Nanos) -> Option<&mut Measurement> {
        self.measurement
            .as_mut()
            .filter(|measurement| measurement.counts(sent))
    }

    fn conclude(&mut self, tally: Tally) {
        if tally.total() == 0 {
            return;
        }
        if self.is_lower(tally) {
            self.measured = Share::default();
        }
        self.measured.acked = self.measured.acked * KEEP + tally.delivered as f64;
        self.measured.lost = self.measured.lost * KEEP + tally.lost as f64;
        self.measurements += 1;
    }

    /// Is less lost than chance makes of what was measured before? Then that was not the path's
    /// own: a policer's, or our own queue's.
    fn is_lower(&self, tally: Tally) -> bool {
        let total = tally.total() as f64;
        let expected = total * self.measured.lost / self.measured.total().max(1.0);
        let chance = 3.0 * (expected * DATAGRAM * self.runs.burstiness()).sqrt();
        (tally.lost as f64) < expected - chance
    }

    /// Is it time to measure? `rtt`: the smoothed round trip.
    pub(super) fn is_due(&self, rtt: Nanos, now: Nanos) -> bool {
        let every = if self.measurements < EARLY {
            EARLY_EVERY.max(EARLY_ROUNDS * rtt)
        } else {
            EVERY.max(EVERY_ROUNDS * rtt)
        };
        let rested = self.measurements == 0 || now > self.started_at + every;
        self.recent.lost_ratio() > WORTH_MEASURING && rested && self.measurement.is_none()
    }

    /// Datagrams that leave from now on are measured.
    pub(super) fn start(&mut self, now: Nanos) {
        self.started_at = now;
        self.measurement = Some(Measurement {
            since: now,
            until: None,
            tally: Tally::default(),
        });
    }

    /// Has a measurement begun whose result is not known?
    pub(super) fn is_measuring(&self) -> bool {
        self.measurement.is_some()
    }

    /// Ends the sending for the measurement if enough datagrams have left. It then waits for their
    /// fate.
    pub(super) fn stop_if_enough(&mut self, min_rtt: Nanos, datagram: u64, now: Nanos) -> bool {
        let Some(measurement) = &mut self.measurement else {
            return false;
        };
        let elapsed = now.saturating_sub(measurement.since);
        // What is acknowledged now left one round trip ago: the count lags, the time does not.
        let enough =
            measurement.tally.total() >= DATAGRAMS * datagram || measurement.tally.delivered == 0;
        let over = (enough && elapsed >= min_rtt) || elapsed >= LONGEST_ROUNDS * min_rtt;
        if over {
            measurement.until = Some(now);
        }
        over
    }

    pub(super) fn is_measured(&self) -> bool {
        self.measurements > 0
    }

    /// The share of datagrams that are lost whatever we do.
    pub(super) fn ratio(&self) -> f64 {
        if self.is_measured() {
            let most = self.tolerance * (1.0 + TOLERANCE_SLACK_PART) + TOLERANCE_SLACK;
            self.measured.lost_ratio().min(most)
        } else {
            self.recent.lost_ratio().min(UNMEASURED.min(self.tolerance))
        }
    }

    /// Below this, loss is no reason to slow down: until it is measured, all that the policy
    /// tolerates.
    fn tolerated(&self) -> f64 {
        if self.is_measured() {
            self.ratio()
        } else {
            self.tolerance
        }
    }

    /// The variance of one datagram's loss, and the number of datagrams that tell of it: a
    /// measurement of few is itself a matter of chance (its ratio by Agresti and Coull,
    /// "Approximate is better than exact", 1998: none lost of a hundred does not mean that none
    /// ever is).
    fn spread(&self) -> (f64, f64) {
        if !self.is_measured() {
            return (self.tolerance * (1.0 - self.tolerance), f64::INFINITY);
        }
        let measured = self.measured.total() / DATAGRAM + 4.0;
        let ratio = (self.measured.lost / DATAGRAM + 2.0) / measured;
        (ratio * (1.0 - ratio), measured)
    }

    /// The part of the bytes lost in an interval that the path would have lost anyway: what chance
    /// explains, not more.
    pub(super) fn give_back(&self, tally: Tally, datagram: u64) -> u64 {
        let ratio = self.ratio();
        let count = tally.delivered as f64 / (1.0 - ratio) / datagram as f64;
        let chance = 2.0 * (count * ratio * (1.0 - ratio) * self.runs.burstiness()).sqrt();
        let explained = (count * ratio + chance) * datagram as f64;
        tally.lost.min(explained as u64)
    }

    /// Is that more loss than the floor and chance explain? With a queue beside it, less evidence
    /// is needed.
    pub(super) fn is_exceeded(&self, tally: Tally, datagram: u64, queued: bool) -> bool {
        let lost = tally.lost as f64 / datagram as f64;
        let count = tally.total() as f64 / datagram as f64;
        let ratio = self.tolerated();
        let deviations = if queued {
            DEVIATIONS_QUEUED
        } else {
            DEVIATIONS
        };
        let (spread, measured) = self.spread();
        let variance = count * spread * (1.0 + count / measured) * self.runs.burstiness();
        let chance = deviations * variance.sqrt();
        lost >= FEWEST && lost > count * (ratio + MARGIN * (1.0 - ratio)) + chance
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_measurement_waits_for_the_fate_of_all_that_it_counts() {
        let mut floor = LossFloor::new(0.05);
        floor.start(0);
        assert!(!floor.stop_if_enough(SECOND, 1_500, SECOND / 2));
        assert_eq!(floor.count_acked(95 * 1_500, SECOND / 2, 0), None);
        assert_eq!(floor.count_acked(95 * 1_500, SECOND - 1, 0), None);
        assert!(floor.stop_if_enough(SECOND, 1_500, SECOND));
        let late = SECOND * 3 / 2;
        assert_eq!(
            floor.count_acked(1_500, late, SECOND / 2),
            None,
            "half of the losses is not known yet"
        );
        floor.count_lost(&[Lost {
            number: 7,
            sent: SECOND / 3,
            bytes: 10 * 1_500,
        }]);
        assert!(floor.count_acked(1_500, late, late).is_some());
        assert!((floor.ratio() - 0.05).abs() < 1e-9, "{}", floor.ratio());
    }

    #[test]
    fn neighbours_are_one_run() {
        let mut floor = LossFloor::new(0.05);
        let lost = [7, 8, 9, 20, 21].map(|number| Lost {
            number,
            sent: 0,
            bytes: 1_500,
        });
        assert_eq!(floor.count_lost(&lost), 2);
        assert_eq!(floor.count_lost(&lost[..1]), 1);
    }

    #[test]
    fn what_chance_explains_is_not_too_much() {
        let floor = LossFloor::new(0.05);
        let exceeded = |lost: u64, queued| {
            let tally = Tally {
                delivered: (400 - lost) * 1_500,
                lost: lost * 1_500,
            };
            floor.is_exceeded(tally, 1_500, queued)
        };
        // Expected: 20 and a margin of 7.6; a standard deviation is 4.4.
        assert!(!exceeded(45, false));
        assert!(exceeded(46, false));
        assert!(!exceeded(40, true));
        assert!(exceeded(41, true));
    }
}
