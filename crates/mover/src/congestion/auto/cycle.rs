//! The probing cycle: when the next up begins, whether it meets others, and how much it asks for.
//!
//! Beside others each up asks for about the same part of the path. A small share grows by more of
//! itself than a large one, so that shares become equal: the gain of an up rises when the last one
//! pushed nobody aside, and falls when it did.

use crate::timer::{Nanos, SECOND};

/// Gain of an up, thousandths (BBR's ProbeBW_UP, draft-ietf-ccwg-bbr).
pub(super) const UP_GAIN: u64 = 1_250;
/// Highest gain of an up beside others, thousandths: a share of a twelfth then asks for a quarter
/// of the path more.
const HIGHEST_UP_GAIN: u64 = 4_000;
/// Others were pushed aside if the up reached less than 93 % of what it asked for, in thousandths:
/// it then took about a fourteenth of the path.
const PUSHED_BELOW: u64 = 930;
/// Time between two ups: 2 s and up to 1 s of chance, so that tunnels do not go up together
/// (draft-ietf-ccwg-bbr does the same), and 8 rounds at least.
const SHORTEST_CRUISE: Nanos = 2 * SECOND;
const LARGEST_CHANCE: Nanos = SECOND;
const CRUISE_ROUNDS: u64 = 8;

/// What an up beside others asks for.
struct Asked {
    /// The bandwidth that the gain multiplies, bytes per second.
    base: u64,
}

/// The cycle.
pub(super) struct Cycle {
    dice: fastrand::Rng,
    /// A queue stood at some time in this cycle: the next up meets others.
    stood: bool,
    /// A queue stood for the whole of the last calm round.
    standing: bool,
    /// Beside others: the gain of an up, in thousandths.
    up_gain: u64,
    /// Of the last up, if it met others and is not judged yet.
    asked: Option<Asked>,
}

impl Cycle {
    pub(super) fn new(seed: u64) -> Cycle {
        Cycle {
            dice: fastrand::Rng::with_seed(seed),
            stood: false,
            standing: false,
            up_gain: UP_GAIN,
            asked: None,
        }
    }

    /// The shortest length of a cycle.
    pub(super) fn shortest(min_rtt: Nanos) -> Nanos {
        SHORTEST_CRUISE.max(CRUISE_ROUNDS * min_rtt)
    }

    /// When the next up is due, if cruising begins now.
    pub(super) fn draw_next_up(&mut self, min_rtt: Nanos, now: Nanos) -> Nanos {
        let chance = self.dice.u64(0..LARGEST_CHANCE);
        now + (SHORTEST_CRUISE + chance).max(CRUISE_ROUNDS * min_rtt)
    }

    /// The last up is over, and this is the bandwidth now. If the up met others, what it reached
    /// decides about the gain of the next.
    pub(super) fn judge_up(&mut self, bandwidth: u64) {
        let Some(asked) = self.asked.take() else {
            return;
        };
        let pushed = bandwidth * 1_000 < asked.base * self.up_gain * PUSHED_BELOW / 1_000;
        let (times, parts) = if pushed { (2, 3) } else { (3, 2) };
        let more = (self.up_gain - 1_000) * times / parts;
        self.up_gain = (1_000 + more).clamp(UP_GAIN, HIGHEST_UP_GAIN);
    }

    /// A calm round is over; a queue stood for all of it or did not.
    pub(super) fn on_calm_round(&mut self, stood: bool) {
        self.standing = stood;
        self.stood |= stood;
    }

    /// A deep queue stood.
    pub(super) fn on_deep_queue(&mut self) {
        self.stood = true;
    }

    /// No other sender keeps a queue up now.
    pub(super) fn on_alone(&mut self) {
        self.stood = false;
    }

    /// A queue stood at some time since the last up.
    pub(super) fn has_stood(&self) -> bool {
        self.stood
    }

    /// A queue stood for the whole of the last calm round.
    pub(super) fn is_standing(&self) -> bool {
        self.standing
    }

    /// An up begins, and with it another cycle. True if the up meets others.
    pub(super) fn begin(&mut self) -> bool {
        self.standing = false;
        std::mem::take(&mut self.stood)
    }

    /// An up beside others asks for more than `bandwidth`.
    pub(super) fn ask(&mut self, bandwidth: u64) {
        self.asked = Some(Asked { base: bandwidth });
    }

    /// The rate of an up beside others, bytes per second. `None`: the last up met nobody.
    pub(super) fn asked_rate(&self) -> Option<u64> {
        let asked = self.asked.as_ref()?;
        Some(asked.base * self.up_gain / 1_000)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The gain of the next up beside others, after ups that each reached this part of what they
    /// asked for.
    fn gain_after(reached: &[f64]) -> u64 {
        let mut cycle = Cycle::new(1);
        for part in reached {
            cycle.ask(1_000_000);
            let asked = cycle.asked_rate().expect("just asked") as f64;
            cycle.judge_up((asked * part) as u64);
        }
        cycle.ask(1_000_000);
        cycle.asked_rate().expect("just asked") / 1_000
    }

    #[test]
    fn who_pushes_nobody_aside_asks_for_more() {
        assert_eq!(gain_after(&[1.0]), 1_375);
        assert_eq!(gain_after(&[1.0, 0.9]), 1_250);
        assert_eq!(gain_after(&[1.0; 20]), 4_000);
    }

    #[test]
    fn the_next_up_is_two_to_three_seconds_away_or_eight_rounds() {
        let mut cycle = Cycle::new(1);
        let next = cycle.draw_next_up(SECOND / 10, 0);
        assert!((2 * SECOND..3 * SECOND).contains(&next));
        assert_eq!(cycle.draw_next_up(SECOND, 0), 8 * SECOND);
    }

    #[test]
    fn a_queue_that_stood_is_met_once() {
        let mut cycle = Cycle::new(1);
        cycle.on_calm_round(true);
        cycle.on_calm_round(false);
        assert!(!cycle.is_standing());
        assert!(cycle.begin());
        assert!(!cycle.begin());
    }
}
