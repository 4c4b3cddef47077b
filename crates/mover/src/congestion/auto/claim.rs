//! A bandwidth that was configured or remembered and that no round has shown yet.
//!
//! What is remembered is begun with in the manner of draft-ietf-tsvwg-careful-resume: a part of it
//! at first, all of it when a round has shown it, and a *safe retreat* if the path carries less.

use super::sampler::Round;

/// A remembered bandwidth is begun with at 36 %: startup's gain of 2.77 makes that the remembered
/// bandwidth itself.
pub(super) const RESUME_PERCENT: u64 = 36;
/// A remembered bandwidth counts as shown from 80 % of it.
const SHOWN_PERCENT: u64 = 80;
/// The second round after a resumption decides about it: it is the first whose datagrams all left
/// at the resumed rate.
const DECIDING_ROUNDS: u64 = 2;
/// After 4 rounds nothing is unproved: the first datagrams come back in the second round, and with
/// their queue, if they make one, by the end of the fourth.
const UNPROVED_ROUNDS: u64 = 4;

/// A remembered bandwidth on trial.
#[derive(Clone, Copy)]
struct Resumed {
    /// What it was begun with, bytes per second.
    bandwidth: u64,
    /// The round that decides.
    decides: u64,
}

/// What the deciding round says.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Verdict {
    /// The path carries less than it was begun with.
    Less,
    /// The path carries what it was begun with, and perhaps more.
    Enough,
    /// The path carries as much as was remembered: this is what there is.
    AsRemembered,
}

/// What was begun with and is not proved.
#[derive(Default)]
pub(super) struct Claim {
    resumed: Option<Resumed>,
    unproved: bool,
}

impl Claim {
    /// A configured rate is begun with.
    pub(super) fn configured() -> Claim {
        Claim {
            resumed: None,
            unproved: true,
        }
    }

    /// `bandwidth`, a part of a remembered one, is begun with after this number of rounds.
    pub(super) fn resumed(bandwidth: u64, rounds: u64) -> Claim {
        let decides = rounds + DECIDING_ROUNDS;
        Claim {
            resumed: Some(Resumed { bandwidth, decides }),
            unproved: true,
        }
    }

    /// Is a remembered bandwidth on trial?
    pub(super) fn is_resuming(&self) -> bool {
        self.resumed.is_some()
    }

    /// No round can have shown yet whether the path carries what it was begun with.
    pub(super) fn is_unproved(&self) -> bool {
        self.unproved
    }

    /// No more than was remembered until that is proved.
    pub(super) fn limit(&self, rate: u64) -> u64 {
        self.resumed.map_or(rate, |resumed| {
            rate.min(resumed.bandwidth * 100 / RESUME_PERCENT)
        })
    }

    /// Round number `rounds` is over. What it says about a remembered bandwidth, if it decides: the
    /// first round that was not limited by what there was to send does.
    pub(super) fn judge(&mut self, round: &Round, rounds: u64) -> Option<Verdict> {
        self.unproved &= rounds < UNPROVED_ROUNDS;
        let decides = |resumed: &Resumed| rounds >= resumed.decides && round.full;
        let bandwidth = self.resumed.take_if(|resumed| decides(resumed))?.bandwidth;
        Some(if round.best_rate < bandwidth {
            Verdict::Less
        } else if round.best_rate >= bandwidth * SHOWN_PERCENT / RESUME_PERCENT {
            Verdict::AsRemembered
        } else {
            Verdict::Enough
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::congestion::auto::sampler::Sampler;

    fn verdict(best_rate: u64, rounds: u64) -> Option<Verdict> {
        let mut sampler = Sampler::new(0);
        sampler.on_rate(best_rate, false);
        Claim::resumed(360, 0).judge(&sampler.end_round(0, 0), rounds)
    }

    #[test]
    fn the_second_round_decides() {
        assert_eq!(verdict(1_000, 1), None);
        assert_eq!(verdict(359, 2), Some(Verdict::Less));
        assert_eq!(verdict(360, 2), Some(Verdict::Enough));
        assert_eq!(verdict(800, 2), Some(Verdict::AsRemembered));
    }

    #[test]
    fn no_more_than_was_remembered_until_it_is_proved() {
        let mut claim = Claim::resumed(360, 0);
        assert_eq!(claim.limit(2_000), 1_000);
        let mut sampler = Sampler::new(0);
        sampler.on_rate(500, false);
        claim.judge(&sampler.end_round(0, 0), 2);
        assert_eq!(claim.limit(2_000), 2_000);
        assert!(claim.is_unproved());
    }
}
