//! The bandwidth filter: what the path carries, from samples, bounds and the policer.
//!
//! The filter is a maximum over two probing cycles (draft-ietf-ccwg-bbr, MaxBwFilterLen): the
//! previous one, and the one that lasts. Between two ups a short-lived bound may lie below it, and
//! what a policer lets pass.

use super::policer::{LossyRound, Policer};
use crate::timer::Nanos;

/// Bandwidths are bytes per second.
#[derive(Default)]
pub(super) struct Bandwidth {
    /// Best delivery rate of the previous probing cycle and of this one.
    best: [u64; 2],
    /// This cycle had a sample that was not limited by what there was to send.
    cycle_is_full: bool,
    /// Holds until the next up.
    short_bound: Option<u64>,
    policer: Policer,
}

impl Bandwidth {
    /// What the path is believed to carry; 0: not known.
    pub(super) fn get(&self) -> u64 {
        let bounds = [self.short_bound, self.policer.rate()];
        let best = self.best[0].max(self.best[1]);
        bounds.into_iter().flatten().fold(best, u64::min)
    }

    /// A believed sample showed this rate. One that was limited by what there was to send counts
    /// only if it is the best.
    pub(super) fn on_sample(&mut self, rate: u64, app_limited: bool) {
        if rate >= self.best[0].max(self.best[1]) || !app_limited {
            self.best[1] = self.best[1].max(rate);
        }
        self.cycle_is_full |= !app_limited;
    }

    /// A configured rate is begun with.
    pub(super) fn begin_with(&mut self, rate: u64) {
        self.best[1] = rate;
        self.cycle_is_full = true;
    }

    /// Part of a remembered bandwidth is begun with.
    pub(super) fn begin_from(&mut self, rate: u64) {
        self.best[1] = self.best[1].max(rate);
    }

    /// The path carries `rate` and no more: all else is forgotten, bounds apart.
    pub(super) fn forget(&mut self, rate: u64) {
        self.best = [0, rate];
    }

    /// What was given back to the samples turned out to be too much: `share` of them is left.
    pub(super) fn take_back(&mut self, share: f64) {
        self.best = self.best.map(|best| (best as f64 * share) as u64);
    }

    /// Bounds the bandwidth until the next up.
    pub(super) fn bound(&mut self, rate: u64) {
        self.short_bound = Some(rate);
    }

    pub(super) fn lift_bound(&mut self) {
        self.short_bound = None;
    }

    /// An up begins beside others: what was once reached is worth nothing there. What is left of it
    /// is where everybody begins.
    pub(super) fn settle_at_bound(&mut self) {
        if let Some(bound) = self.short_bound.take() {
            self.lower_to(bound);
        }
    }

    /// Another up begins, which shows whether a policer is still there.
    pub(super) fn on_up(&mut self) {
        if let Some(rate) = self.policer.begin_cycle() {
            self.lower_to(rate);
        }
    }

    /// An up is over. A cycle in which there was too little to send lasts on.
    pub(super) fn end_cycle(&mut self) {
        if self.cycle_is_full {
            self.drop_previous();
            self.cycle_is_full = false;
        }
    }

    /// The previous cycle is forgotten, and another begins.
    pub(super) fn drop_previous(&mut self) {
        self.best = [self.best[1], 0];
    }

    /// True if a policer was found by this round.
    pub(super) fn judge_lossy_round(
        &mut self,
        round: &LossyRound,
        min_rtt: Nanos,
        now: Nanos,
    ) -> bool {
        self.policer.judge(round, min_rtt, now)
    }

    /// A policer was found and is believed: to ask for more would only lose what is asked for.
    pub(super) fn is_policed(&self, now: Nanos) -> bool {
        self.policer.holds(now)
    }

    fn lower_to(&mut self, rate: u64) {
        self.best = self.best.map(|best| best.min(rate));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_the_best_of_two_full_cycles() {
        let mut bandwidth = Bandwidth::default();
        bandwidth.on_sample(100, false);
        bandwidth.end_cycle();
        bandwidth.on_sample(80, false);
        assert_eq!(bandwidth.get(), 100);
        bandwidth.end_cycle();
        assert_eq!(bandwidth.get(), 80);
        bandwidth.on_sample(70, true);
        bandwidth.end_cycle();
        assert_eq!(bandwidth.get(), 80, "nothing was asked of the path");
        bandwidth.on_sample(90, true);
        assert_eq!(bandwidth.get(), 90, "the path carried it all the same");
    }

    #[test]
    fn a_bound_is_lifted_or_settled_at() {
        let mut bandwidth = Bandwidth::default();
        bandwidth.on_sample(100, false);
        bandwidth.bound(70);
        assert_eq!(bandwidth.get(), 70);
        bandwidth.lift_bound();
        assert_eq!(bandwidth.get(), 100);
        bandwidth.bound(60);
        bandwidth.settle_at_bound();
        assert_eq!(bandwidth.get(), 60);
        bandwidth.lift_bound();
        assert_eq!(bandwidth.get(), 60);
    }
}
