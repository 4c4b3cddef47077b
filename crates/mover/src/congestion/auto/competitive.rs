//! Competitive mode: what `auto` does beside a rival, somebody who fills the buffer as TCP does.
//! Room that is given to a rival is lost.
//!
//! While `auto` cruises it asks the [`RivalWatch`]. If that has seen a rival, [`Competitive`] sets
//! rate and window until the buffer is found empty again: it is CUBIC, but for losses that are the
//! path's own.

use super::estimate::Estimate;
use super::queue::QueueSensor;
use crate::congestion::cubic::Cubic;
use crate::congestion::report::AckReport;
use crate::timer::{MILLISECOND, Nanos};

/// A long queue: more than a third of a round trip and 5 ms.
const LONG_PART: u64 = 3;
const LONG_QUEUE: Nanos = 5 * MILLISECOND;
/// A rival keeps up a long queue, or one that stands though half of the bandwidth was given up, for
/// 1.5 s and for four round trips. The time that our own queue could need to go is added.
const STUBBORN: Nanos = 1_500 * MILLISECOND;
const STUBBORN_ROUNDS: u64 = 4;
/// Loss is a full buffer's when the queue is at least 75 % of the longest, and the path itself
/// loses less than half a percent (`fairness.rs`, shares beside CUBIC).
const FULL_PERCENT: u64 = 75;
const FULL_FLOOR: f64 = 0.005;

/// Looks for a rival.
pub(super) struct RivalWatch {
    /// When there was last no reason to think of a rival.
    free_at: Nanos,
    /// The longest smoothed round trip since.
    longest_rtt: Nanos,
}

impl RivalWatch {
    pub(super) fn new(now: Nanos) -> RivalWatch {
        RivalWatch {
            free_at: now,
            longest_rtt: 0,
        }
    }

    /// What stands now may be of our own making.
    pub(super) fn forgive(&mut self, now: Nanos) {
        self.free_at = now;
    }

    /// A round trip was measured, and `queue` knows of it.
    pub(super) fn on_rtt(&mut self, rtt: Nanos, queue: &QueueSensor, path: &Estimate, now: Nanos) {
        let long = path.min_rtt + path.min_rtt / LONG_PART + LONG_QUEUE + queue.few(path);
        if rtt <= long && !queue.gave_way(path.bandwidth) {
            (self.free_at, self.longest_rtt) = (now, 0);
        }
        self.longest_rtt = self.longest_rtt.max(queue.smoothed());
    }

    /// Is a rival there?
    pub(super) fn sees_one(&self, min_rtt: Nanos, now: Nanos) -> bool {
        // Our own queue, if it is one, needs twice its length to go while we send at half the rate.
        let own = 2 * self.longest_queue(min_rtt);
        now.saturating_sub(self.free_at) > STUBBORN.max(STUBBORN_ROUNDS * min_rtt) + own
    }

    /// The longest queue since there was last no reason to think of a rival.
    pub(super) fn longest_queue(&self, min_rtt: Nanos) -> Nanos {
        self.longest_rtt.saturating_sub(min_rtt)
    }
}

/// How full the buffer is.
pub(super) struct Buffer {
    pub(super) queue: Nanos,
    pub(super) longest_queue: Nanos,
    /// The share of datagrams that the path loses anyway.
    pub(super) loss_floor: f64,
}

impl Buffer {
    /// Can the buffer be the reason of a loss?
    fn is_full(&self) -> bool {
        self.queue * 100 >= self.longest_queue * FULL_PERCENT && self.loss_floor < FULL_FLOOR
    }
}

/// The data of the mode.
pub(super) struct Competitive {
    cubic: Cubic,
    /// The next loss counts, whatever the queue says: there was too much of it.
    next_loss_counts: bool,
    cycle_since: Nanos,
}

impl Competitive {
    /// `had`: bytes that were on their way when no rival was there. Giving way has cost most of
    /// them: half of them are taken back at once, and the rest is asked for.
    pub(super) fn new(
        cap: Option<u64>,
        report: &AckReport<'_>,
        had: u64,
        now: Nanos,
    ) -> Competitive {
        let window = report.in_flight.max(had / 2);
        Competitive {
            cubic: Cubic::among(cap, report.datagram, window, had),
            next_loss_counts: false,
            cycle_since: now,
        }
    }

    pub(super) fn on_ack_report(&mut self, report: &AckReport<'_>, buffer: &Buffer, now: Nanos) {
        let counts = buffer.is_full() || self.next_loss_counts;
        self.next_loss_counts &= report.lost.is_empty();
        let lost = if counts { report.lost } else { &[] };
        self.cubic
            .on_ack_report(&AckReport { lost, ..*report }, now);
    }

    /// A round lost more than the path's own loss explains.
    pub(super) fn on_too_much(&mut self) {
        self.next_loss_counts = true;
    }

    /// Is a cycle of this length over? Then another begins.
    pub(super) fn take_cycle(&mut self, length: Nanos, now: Nanos) -> bool {
        let over = now > self.cycle_since + length;
        if over {
            self.cycle_since = now;
        }
        over
    }

    /// Nothing was sent for a while, on purpose.
    pub(super) fn rest(&mut self) {
        self.cubic.rest();
    }

    /// Bytes per second.
    pub(super) fn rate(&self) -> u64 {
        self.cubic.rate()
    }

    /// In bytes.
    pub(super) fn window(&self) -> u64 {
        self.cubic.window()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::timer::SECOND;

    /// When a rival is seen on a path of 100 Mbit/s and 100 ms, if round trips last this long.
    fn seen_at(rtt: Nanos) -> Option<Nanos> {
        let path = Estimate {
            bandwidth: 12_500_000,
            min_rtt: 100 * MILLISECOND,
            datagram: 1_500,
        };
        let (mut queue, mut rivals) = (QueueSensor::new(0), RivalWatch::new(0));
        let mut times = (0..5_000).map(|tick| tick * MILLISECOND);
        times.find(|&now| {
            queue.on_rtt(rtt, &path, now);
            rivals.on_rtt(rtt, &queue, &path, now);
            rivals.sees_one(path.min_rtt, now)
        })
    }

    #[test]
    fn a_queue_of_more_than_a_third_for_longer_than_our_own_could_stand_is_a_rivals() {
        assert_eq!(seen_at(130 * MILLISECOND), None);
        let own = 2 * 40 * MILLISECOND;
        let at = SECOND * 3 / 2 + own + MILLISECOND;
        assert_eq!(seen_at(140 * MILLISECOND), Some(at));
    }

    #[test]
    fn a_loss_counts_beside_a_full_buffer_on_a_path_that_loses_little() {
        let full = |queue, loss_floor| {
            let longest_queue = 100;
            Buffer {
                queue,
                longest_queue,
                loss_floor,
            }
            .is_full()
        };
        assert!(full(75, 0.004));
        assert!(!full(74, 0.004));
        assert!(!full(75, 0.005));
    }
}
