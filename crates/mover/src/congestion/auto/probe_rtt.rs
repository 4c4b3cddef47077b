//! When the min RTT is looked for again, and how long that takes.
//!
//! A down looks for it first: emptying the queue costs less than emptying the pipe. The pipe is
//! emptied only when that did not show it.

use crate::path::rtt::Rtt;
use crate::timer::{MILLISECOND, Nanos, SECOND};

/// The pipe is emptied when nothing confirmed the min RTT for 10 s (BBR's MinRTTFilterLen), but not
/// before 24 round trips: on a long path two ups lie between, and after each a down looks for it.
const EVERY: Nanos = 10 * SECOND;
const EVERY_ROUNDS: u64 = 24;
/// A down looks for the min RTT when nothing confirmed it for a third of 10 s.
const WANTED_AFTER: Nanos = EVERY / 3;
/// The pipe stays empty for 200 ms and a round trip at least (BBR's ProbeRTTDuration).
const DURATION: Nanos = 200 * MILLISECOND;

/// When the pipe was emptied last.
pub(super) struct RttProbe {
    at: Nanos,
}

impl RttProbe {
    pub(super) fn new(now: Nanos) -> RttProbe {
        RttProbe { at: now }
    }

    /// The pipe was emptied, or need not be.
    pub(super) fn on_probed(&mut self, now: Nanos) {
        self.at = now;
    }

    /// Is it time to empty the pipe?
    pub(super) fn is_due(&self, rtt: &Rtt, min_rtt: Nanos, now: Nanos) -> bool {
        self.unconfirmed_for(rtt, now) > EVERY.max(EVERY_ROUNDS * min_rtt)
    }

    /// Does a down look for the min RTT?
    pub(super) fn is_wanted(&self, rtt: &Rtt, now: Nanos) -> bool {
        self.unconfirmed_for(rtt, now) > WANTED_AFTER
    }

    fn unconfirmed_for(&self, rtt: &Rtt, now: Nanos) -> Nanos {
        now.saturating_sub(rtt.minimum_at().max(self.at))
    }

    /// The shortest time for which the pipe stays empty.
    pub(super) fn duration(min_rtt: Nanos) -> Nanos {
        DURATION.max(min_rtt)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// When a down looks for this min RTT and when the pipe is emptied for it, if nothing confirms
    /// it, in tenths of a second.
    fn looked_for(min_rtt: Nanos) -> (Option<u64>, Option<u64>) {
        let (mut rtt, probe) = (Rtt::default(), RttProbe::new(0));
        rtt.on_sample(min_rtt, 0, 0);
        let at = |tenth| tenth * SECOND / 10;
        (
            (0..200).find(|&tenth| probe.is_wanted(&rtt, at(tenth))),
            (0..200).find(|&tenth| probe.is_due(&rtt, min_rtt, at(tenth))),
        )
    }

    #[test]
    fn a_down_looks_first_and_a_long_path_waits_for_two_of_them() {
        assert_eq!(looked_for(100 * MILLISECOND), (Some(34), Some(101)));
        assert_eq!(looked_for(600 * MILLISECOND), (Some(34), Some(145)));
    }

    #[test]
    fn an_emptied_pipe_is_not_emptied_again_at_once() {
        let (mut rtt, mut probe) = (Rtt::default(), RttProbe::new(0));
        rtt.on_sample(SECOND / 10, 0, 0);
        probe.on_probed(11 * SECOND);
        assert!(!probe.is_due(&rtt, SECOND / 10, 20 * SECOND));
        assert!(probe.is_due(&rtt, SECOND / 10, 22 * SECOND));
    }
}
