//! An up: for a short time more is sent than the path is believed to carry, to see whether it
//! carries more.
//!
//! An up is *fast* for its own time only, until it would have queued 5 ms. It then sends at the
//! bandwidth and waits until that queue shows. It ends at the first sign of a queue or of too much
//! loss. If none shows, another round of it is fast for twice as long.

use super::estimate::Estimate;
use super::sampler::SHORTEST_ROUND;
use crate::ack::Schedule;
use crate::timer::{MILLISECOND, Nanos};

/// The queue that an up makes before it is noticed: a twenty-fifth of the round trip, between 4 and
/// 5 ms. A datagram beside bulk waits 6 ms with 5 ms at most, and 15 to 21 ms with 10
/// (`latency.rs`, `beside_bulk_a_long_link_is_no_slower`).
const QUEUE_PART: u64 = 25;
const SHORTEST_QUEUE: Nanos = 4 * MILLISECOND;
const LONGEST_QUEUE: Nanos = 5 * MILLISECOND;
/// An up ends after 12 rounds without a queue: the path has grown by more than one cycle can find
/// out.
const ROUNDS: u32 = 12;
/// Beside others it ends after 2 rounds: they make room for whoever asks.
const COMPETING_ROUNDS: u32 = 2;
/// Beside others an up is fast for two round trips, so that a sample sees all of it, but on a long
/// path for 100 ms at most.
const LONGEST_COMPETING: Nanos = 100 * MILLISECOND;
/// Below a product of 100 datagrams an up is fast for a whole round: a shorter one has too few
/// datagrams to show anything.
const SHORT_ROUND_DATAGRAMS: u64 = 100;

/// The data of the phase.
pub(super) struct Up {
    /// A queue stood in the last cycle: the up meets others, and its end is when it has made its
    /// own queue beside theirs.
    competing: bool,
    /// How long this round of the up is fast.
    fast_for: Nanos,
    /// The rounds of the up that are over.
    rounds: u32,
    /// Round trips of the up, quickly smoothed, and the length from which they tell of its queue.
    rtt: Nanos,
    rtt_limit: Nanos,
}

impl Up {
    /// `smoothed`: the smoothed round trip, and how much round trips vary.
    pub(super) fn alone(path: &Estimate, smoothed: Nanos, varies: Nanos) -> Up {
        // At a quarter more than the path carries, it queues a quarter of the time.
        let queue = (path.min_rtt / QUEUE_PART).clamp(SHORTEST_QUEUE, LONGEST_QUEUE);
        let mut up = Up {
            competing: false,
            fast_for: 4 * queue,
            rounds: 0,
            rtt: smoothed,
            rtt_limit: smoothed + queue / 2 + 2 * varies,
        };
        if path.product() < SHORT_ROUND_DATAGRAMS * path.datagram {
            up.fast_for = up.fast_for.max(path.min_rtt);
        }
        up
    }

    /// The same beside others.
    pub(super) fn beside_others(path: &Estimate, smoothed: Nanos, varies: Nanos) -> Up {
        let alone = Up::alone(path, smoothed, varies);
        let fast_for = (2 * path.min_rtt).min(LONGEST_COMPETING);
        Up {
            competing: true,
            fast_for: alone.fast_for.max(fast_for),
            ..alone
        }
    }

    pub(super) fn is_competing(&self) -> bool {
        self.competing
    }

    pub(super) fn on_rtt(&mut self, rtt: Nanos) {
        self.rtt = (self.rtt + rtt) / 2;
    }

    /// When this round of the up, which began at `since`, is no longer fast.
    pub(super) fn slows_at(&self, since: Nanos) -> Nanos {
        since + self.fast_for
    }

    /// Does what is acknowledged `elapsed` after this round of the up began tell of the up? The
    /// first acknowledgements tell about the time before.
    pub(super) fn is_heard(&self, elapsed: Nanos, min_rtt: Nanos) -> bool {
        let before = min_rtt.max(SHORTEST_ROUND) * if self.competing { 2 } else { 1 };
        self.rounds > 0 || elapsed > before
    }

    /// Has this round of the up, which began `elapsed` ago, had the time to show its queue? What
    /// the fast part did shows a round trip after its end and the queue that it made, and more than
    /// one acknowledgement tells of it.
    pub(super) fn has_shown(&self, elapsed: Nanos, min_rtt: Nanos) -> bool {
        elapsed > min_rtt + self.fast_for * 5 / 4 + 3 * Schedule::interval(Some(min_rtt))
    }

    /// The round trips tell of the up's queue.
    pub(super) fn queues(&self) -> bool {
        self.rtt > self.rtt_limit
    }

    /// A round of the up is over without a queue.
    pub(super) fn on_round(&mut self) {
        self.rounds += 1;
    }

    /// Were these enough rounds?
    pub(super) fn is_spent(&self) -> bool {
        let most = if self.competing {
            COMPETING_ROUNDS
        } else {
            ROUNDS
        };
        self.rounds >= most
    }

    /// There may be much more: the next round is fast for twice as long.
    pub(super) fn go_on(&mut self) {
        self.fast_for = self.fast_for.saturating_mul(2);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn path(min_rtt: Nanos) -> Estimate {
        Estimate {
            bandwidth: 12_500_000,
            min_rtt,
            datagram: 1_500,
        }
    }

    #[test]
    fn an_up_queues_five_milliseconds_whatever_the_round_trip() {
        let fast_for = |min_rtt| Up::alone(&path(min_rtt), min_rtt, 0).slows_at(0);
        assert_eq!(fast_for(20 * MILLISECOND), 16 * MILLISECOND);
        assert_eq!(fast_for(100 * MILLISECOND), 16 * MILLISECOND);
        assert_eq!(fast_for(600 * MILLISECOND), 20 * MILLISECOND);
        let beside = |min_rtt| Up::beside_others(&path(min_rtt), min_rtt, 0).slows_at(0);
        assert_eq!(beside(20 * MILLISECOND), 40 * MILLISECOND);
        assert_eq!(beside(600 * MILLISECOND), 100 * MILLISECOND);
    }

    #[test]
    fn it_ends_when_its_queue_shows_or_nothing_does_for_long() {
        let mut up = Up::alone(&path(100 * MILLISECOND), 100 * MILLISECOND, 0);
        up.on_rtt(104 * MILLISECOND);
        assert!(!up.queues());
        up.on_rtt(104 * MILLISECOND);
        assert!(up.queues());
        let spent = (1..20).find(|_| {
            up.on_round();
            up.is_spent()
        });
        assert_eq!(spent, Some(12));
    }
}
