//! The queue sensor: does a queue stand on the path, and how long is it? It judges by round trips.
//!
//! A round trip is compared with a base: the min RTT, or the least mean of a round in the last two
//! periods of 15 s if that is more. Single round trips vary by jitter, which is no queue; means do
//! not.
//!
//! Three answers, from the smoothed round trip: a queue *begins*, a queue *stands out* (evidence
//! that this end sends too much), and the queue is *deep* (more than half a round trip: the path
//! has become narrower).

use super::estimate::Estimate;
use super::sampler::Round;
use crate::congestion::rate::rate_of;
use crate::timer::{MILLISECOND, Nanos, SECOND};

/// 3 datagrams that wait for one another are no queue: on a slow link they take tens of
/// milliseconds.
const FEW_DATAGRAMS: u64 = 3;
/// A period of round means: 15 s, longer than the 10 s after which the min RTT is probed for, so
/// that the last two periods hold a round without a queue.
const MEAN_PERIOD: Nanos = 15 * SECOND;
/// What comes out of a deep queue is measured for a round trip, and for 50 ms at least, because
/// acknowledgements come in lumps.
const SHORTEST_OUTFLOW: Nanos = 50 * MILLISECOND;

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Level {
    None,
    Begins,
    StandsOut,
}

/// What was delivered while a deep queue stood.
#[derive(Clone, Copy)]
pub(super) struct Outflow {
    since: Nanos,
    delivered: u64,
}

impl Outflow {
    /// Bytes per second that arrived, and those that the path lost anyway (`loss_ratio`).
    pub(super) fn rate(&self, loss_ratio: f64, now: Nanos) -> u64 {
        let sent = self.delivered as f64 / (1.0 - loss_ratio);
        rate_of(sent as u64, now - self.since)
    }
}

/// Watches the round trips.
pub(super) struct QueueSensor {
    /// 0: no round trip was measured yet.
    smoothed: Nanos,
    /// Least mean round trip of a round in the previous period and in this one.
    means: [Nanos; 2],
    period_since: Nanos,
    level: Level,
    deep: bool,
    outflow: Option<Outflow>,
    /// When a round trip last said that no queue stood, and the bandwidth then.
    quiet_at: Nanos,
    quiet_bandwidth: u64,
}

impl QueueSensor {
    pub(super) fn new(now: Nanos) -> QueueSensor {
        QueueSensor {
            smoothed: 0,
            means: [Nanos::MAX; 2],
            period_since: now,
            level: Level::None,
            deep: false,
            outflow: None,
            quiet_at: now,
            quiet_bandwidth: 0,
        }
    }

    /// A round trip was measured.
    pub(super) fn on_rtt(&mut self, rtt: Nanos, path: &Estimate, now: Nanos) {
        self.smoothed = if self.smoothed == 0 {
            rtt
        } else {
            (7 * self.smoothed + rtt) / 8
        };
        let base = self.base(path.min_rtt);
        // On a slow link a datagram that waits for the one before it is no queue yet.
        let one = (self.few(path) / FEW_DATAGRAMS).saturating_sub(2 * MILLISECOND);
        self.level = if self.smoothed > base + path.min_rtt / 40 + 3 * MILLISECOND / 2 + one {
            Level::StandsOut
        } else if self.smoothed > base + path.min_rtt / 80 + MILLISECOND + one {
            Level::Begins
        } else {
            Level::None
        };
        self.deep = self.smoothed.min(rtt) > base + path.min_rtt / 2 + 10 * MILLISECOND;
        if rtt <= self.standing_above(path) {
            (self.quiet_at, self.quiet_bandwidth) = (now, path.bandwidth);
        }
    }

    fn base(&self, min_rtt: Nanos) -> Nanos {
        match self.means[0].min(self.means[1]) {
            Nanos::MAX => min_rtt,
            mean => mean.max(min_rtt),
        }
    }

    /// A round is over.
    pub(super) fn on_round(&mut self, round: &Round, now: Nanos) {
        let Some(mean) = round.mean_rtt() else {
            return;
        };
        if now > self.period_since + MEAN_PERIOD {
            self.means = [self.means[1], Nanos::MAX];
            self.period_since = now;
        }
        self.means[1] = self.means[1].min(mean);
    }

    /// While a deep queue stands, all that arrives comes out of it: this is what the path gives us
    /// now, and rounds are too long to wait for. `acked` bytes arrived; the outflow, if it has been
    /// measured for long enough. Another measurement then begins with the next call.
    pub(super) fn take_outflow(
        &mut self,
        acked: u64,
        min_rtt: Nanos,
        now: Nanos,
    ) -> Option<Outflow> {
        let outflow = match self.outflow {
            Some(Outflow { since, delivered }) => Outflow {
                since,
                delivered: delivered + acked,
            },
            None => Outflow {
                since: now,
                delivered: 0,
            },
        };
        let over = now - outflow.since >= SHORTEST_OUTFLOW.max(min_rtt);
        self.outflow = Some(outflow).filter(|_| !over);
        over.then_some(outflow)
    }

    /// The outflow measured so far is not the path's.
    pub(super) fn drop_outflow(&mut self) {
        self.outflow = None;
    }

    /// The path carries `bandwidth` and no more: what it carried without a queue is forgotten.
    pub(super) fn forget(&mut self, bandwidth: u64) {
        self.quiet_bandwidth = bandwidth;
    }

    /// The queue is about to be emptied on purpose: what was carried without one before counts half
    /// from now on.
    pub(super) fn on_probe_rtt(&mut self, bandwidth: u64) {
        self.quiet_bandwidth = bandwidth.max(self.quiet_bandwidth / 2);
    }

    /// The smoothed round trip.
    pub(super) fn smoothed(&self) -> Nanos {
        self.smoothed
    }

    /// A queue begins: cruising gives way to it a little.
    pub(super) fn begins(&self) -> bool {
        self.level != Level::None
    }

    /// A queue stands out so far that it counts as evidence.
    pub(super) fn stands_out(&self) -> bool {
        self.level == Level::StandsOut
    }

    /// More than half a round trip's queue stands.
    pub(super) fn is_deep(&self) -> bool {
        self.deep
    }

    /// When a round trip last said that no queue stood.
    pub(super) fn quiet_at(&self) -> Nanos {
        self.quiet_at
    }

    /// The bandwidth when a round trip last said that no queue stood.
    pub(super) fn quiet_bandwidth(&self) -> u64 {
        self.quiet_bandwidth
    }

    /// Half of the bandwidth that was there without a queue has been given up.
    pub(super) fn gave_way(&self, bandwidth: u64) -> bool {
        bandwidth <= self.quiet_bandwidth / 2
    }

    /// The time that a few datagrams take, which are no queue. A rival may have left us too little
    /// of the path to tell it from that, so the bandwidth without a queue counts too.
    pub(super) fn few(&self, path: &Estimate) -> Nanos {
        FEW_DATAGRAMS * path.datagram * SECOND / path.bandwidth.max(self.quiet_bandwidth).max(1)
    }

    /// A round trip longer than this has met a queue.
    pub(super) fn standing_above(&self, path: &Estimate) -> Nanos {
        path.min_rtt + path.min_rtt / 8 + 2 * MILLISECOND + self.few(path)
    }

    /// Did a queue stand for all of the round?
    pub(super) fn stood_throughout(&self, round: &Round, path: &Estimate) -> bool {
        round
            .least_rtt()
            .is_some_and(|least| least > self.standing_above(path))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// 100 Mbit/s, 100 ms.
    const PATH: Estimate = Estimate {
        bandwidth: 12_500_000,
        min_rtt: 100 * MILLISECOND,
        datagram: 1_500,
    };

    /// A sensor that has seen this round trip for long.
    fn after(rtt: Nanos) -> QueueSensor {
        let mut sensor = QueueSensor::new(0);
        for tick in 0..50 {
            sensor.on_rtt(rtt, &PATH, tick * 10 * MILLISECOND);
        }
        sensor
    }

    #[test]
    fn a_queue_begins_stands_out_and_is_deep() {
        let levels = [100, 103, 105, 162].map(|rtt| {
            let sensor = after(rtt * MILLISECOND);
            (sensor.begins(), sensor.stands_out(), sensor.is_deep())
        });
        assert_eq!(
            levels,
            [
                (false, false, false),
                (true, false, false),
                (true, true, false),
                (true, true, true)
            ]
        );
    }

    #[test]
    fn what_jitter_adds_to_the_mean_of_a_round_is_no_queue() {
        let mut sensor = after(105 * MILLISECOND);
        let mut sampler = super::super::sampler::Sampler::new(0);
        sampler.on_rtt(104 * MILLISECOND);
        sensor.on_round(&sampler.end_round(0, SECOND), SECOND);
        sensor.on_rtt(105 * MILLISECOND, &PATH, SECOND);
        assert!(!sensor.begins());
    }

    #[test]
    fn what_comes_out_of_a_deep_queue_is_measured_for_a_round_trip() {
        let mut sensor = after(170 * MILLISECOND);
        let mut take = |tick: u64| {
            let now = tick * 20 * MILLISECOND;
            let outflow = sensor.take_outflow(20_000, PATH.min_rtt, now)?;
            Some((tick, outflow.rate(0.0, now)))
        };
        let taken = (0..10).find_map(&mut take);
        assert_eq!(taken, Some((5, 1_000_000)));
    }
}
