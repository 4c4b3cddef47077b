//! Which packets a link loses: independent dice, or a Gilbert-Elliott chain when losses come in
//! bursts.

/// The state of one direction's loss process.
///
/// With bursts, the chain has a good state that loses nothing and a bad one that loses everything.
/// It leaves the bad state with probability `1 / burst`, so a burst is `burst` packets long on
/// average, and enters it as often as the asked share of lost packets needs.
#[derive(Debug, Clone)]
pub(crate) struct Loss {
    share: f64,
    /// Probabilities to enter and to leave the bad state; `None`: every packet's fate is its own.
    chain: Option<(f64, f64)>,
    bad: bool,
}

impl Loss {
    /// `share` of all packets lost, in runs of `burst` packets on average; a burst up to 1 means
    /// independent losses.
    pub(crate) fn new(share: f64, burst: f64) -> Self {
        let share = share.clamp(0.0, 1.0);
        let chain = (burst > 1.0 && share > 0.0 && share < 1.0).then(|| {
            // A good run is at least one packet long, so short bursts cannot lose more than burst /
            // (burst + 1) of all packets: the asked share counts, and the burst grows to what it
            // needs.
            let burst = burst.max(share / (1.0 - share));
            ((share / (burst * (1.0 - share))).min(1.0), 1.0 / burst)
        });
        Self {
            share,
            chain,
            bad: false,
        }
    }

    /// The fate of the next packet.
    pub(crate) fn loses(&mut self, dice: &mut fastrand::Rng) -> bool {
        if self.share <= 0.0 {
            return false;
        }
        let Some((enter, leave)) = self.chain else {
            return self.share >= 1.0 || dice.f64() < self.share;
        };
        self.bad = if self.bad {
            dice.f64() >= leave
        } else {
            dice.f64() < enter
        };
        self.bad
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Share lost and mean run of losses over many packets.
    fn measure(share: f64, burst: f64) -> (f64, f64) {
        let mut dice = fastrand::Rng::with_seed(7);
        let mut loss = Loss::new(share, burst);
        let (mut lost, mut runs, mut before, total) = (0u32, 0u32, false, 1_000_000);
        for _ in 0..total {
            let now = loss.loses(&mut dice);
            lost += u32::from(now);
            runs += u32::from(now && !before);
            before = now;
        }
        (
            f64::from(lost) / f64::from(total),
            f64::from(lost) / f64::from(runs.max(1)),
        )
    }

    fn near(found: f64, asked: f64, tolerance: f64) -> bool {
        (found - asked).abs() <= asked * tolerance
    }

    #[test]
    fn independent_loss_is_as_asked() {
        for share in [0.001, 0.01, 0.3, 0.9] {
            let (lost, run) = measure(share, 0.0);
            assert!(near(lost, share, 0.1), "{share}: lost {lost}");
            assert!(
                near(run, 1.0 / (1.0 - share), 0.05),
                "{share}: runs of {run}"
            );
        }
        assert_eq!(measure(0.0, 0.0).0, 0.0);
        assert_eq!(measure(1.0, 0.0).0, 1.0);
    }

    #[test]
    fn bursts_have_the_asked_share_and_length() {
        for (share, burst) in [(0.01, 3.0), (0.01, 10.0), (0.05, 50.0), (0.3, 5.0)] {
            let (lost, run) = measure(share, burst);
            assert!(near(lost, share, 0.15), "{share} in {burst}: lost {lost}");
            assert!(near(run, burst, 0.1), "{share} in {burst}: runs of {run}");
        }
    }

    #[test]
    fn a_high_share_lengthens_bursts_instead_of_losing_less() {
        let (lost, _) = measure(0.9, 2.0);
        assert!(near(lost, 0.9, 0.02), "lost {lost}");
    }
}
