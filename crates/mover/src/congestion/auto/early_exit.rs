//! The early exit from startup: sees that a queue stands before a whole round has shown it.
//!
//! It looks at every eighth of a round trip. Two such parts in a row in which a queue stood, and no
//! more came through than three parts before, end startup: to wait for a whole round fills the
//! queue further. Beside others more comes through all the time, and startup goes on.

use super::estimate::Estimate;
use crate::congestion::rate::rate_of;
use crate::timer::Nanos;

/// A part lasts an eighth of a round trip and has 2 round-trip samples at least.
const PARTS: u64 = 8;
const SAMPLES: u64 = 2;
/// Parts in a row with a queue that end startup.
const ENOUGH: u32 = 2;
/// A part in which more than 112 % came through of what did three parts before is growth.
const GROWTH_PERCENT: u64 = 112;
/// Below a product of 100 datagrams the queue is soon full and soon empty: a part tells nothing.
const SMALLEST_PRODUCT_DATAGRAMS: u64 = 100;

/// An acknowledgement that measured a round trip.
pub(super) struct Arrival {
    pub(super) rtt: Nanos,
    /// Bytes that had arrived since the beginning.
    pub(super) delivered: u64,
    pub(super) at: Nanos,
}

/// Watches one part after the other.
pub(super) struct EarlyExit {
    since: Nanos,
    /// Bytes that had been delivered before this part.
    delivered_before: u64,
    least_rtt: Nanos,
    samples: u64,
    /// Delivery rates of the last three parts, the oldest first, in bytes per second.
    rates: [u64; 3],
    /// The parts in a row that saw a queue.
    queued_parts: u32,
}

impl EarlyExit {
    pub(super) fn new(now: Nanos) -> EarlyExit {
        EarlyExit {
            since: now,
            delivered_before: 0,
            least_rtt: Nanos::MAX,
            samples: 0,
            rates: [0; 3],
            queued_parts: 0,
        }
    }

    /// A round trip was measured. Round trips longer than `above` have met half of what is a
    /// standing queue.
    pub(super) fn on_rtt(&mut self, arrival: &Arrival, above: Nanos, path: &Estimate) {
        let &Arrival { rtt, delivered, at } = arrival;
        self.samples += 1;
        self.least_rtt = self.least_rtt.min(rtt);
        if self.samples < SAMPLES || at < self.since + path.min_rtt / PARTS {
            return;
        }
        let tells = path.product() >= SMALLEST_PRODUCT_DATAGRAMS * path.datagram;
        let [oldest, older, newer] = self.rates;
        let rate = rate_of(delivered - self.delivered_before, at - self.since);
        let grew = rate * 100 > oldest * GROWTH_PERCENT;
        let queued = tells && self.least_rtt > above && !grew;
        *self = EarlyExit {
            since: at,
            delivered_before: delivered,
            least_rtt: Nanos::MAX,
            samples: 0,
            rates: [older, newer, rate],
            queued_parts: if queued { self.queued_parts + 1 } else { 0 },
        };
    }

    /// The last part saw a queue.
    pub(super) fn suspects(&self) -> bool {
        self.queued_parts > 0
    }

    /// Enough parts saw a queue.
    pub(super) fn is_due(&self) -> bool {
        self.queued_parts >= ENOUGH
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::timer::MILLISECOND;

    /// Round trips of 130 ms on a path of 100 ms, two in each eighth, for three round trips; what
    /// arrives grows by `growth` in each part.
    fn exits(growth: f64) -> bool {
        let path = Estimate {
            bandwidth: 12_500_000,
            min_rtt: 100 * MILLISECOND,
            datagram: 1_500,
        };
        let (mut exit, mut arrives, mut delivered) = (EarlyExit::new(0), 50_000.0, 0.0);
        for part in 1..24 {
            arrives *= growth;
            delivered += arrives;
            for half in 0..2 {
                let arrival = Arrival {
                    rtt: 130 * MILLISECOND,
                    delivered: delivered as u64,
                    at: (part * 25 + half * 12) * MILLISECOND / 2,
                };
                exit.on_rtt(&arrival, 120 * MILLISECOND, &path);
            }
        }
        exit.is_due()
    }

    #[test]
    fn a_queue_in_which_nothing_grows_ends_startup() {
        assert!(exits(1.0));
        assert!(!exits(1.1), "beside others more comes through all the time");
    }
}
