//! What `auto` asks of the pacer and of the window.

use crate::timer::Nanos;

/// What follows the fast part of an up.
#[derive(Clone, Copy)]
pub(super) struct Slowing {
    pub(super) at: Nanos,
    /// Bytes per second from then on.
    pub(super) rate: u64,
}

/// The output: rate and window.
pub(super) struct Pace {
    /// Bytes per second.
    pub(super) rate: u64,
    /// When the fast part of an up is over, whatever is acknowledged meanwhile.
    pub(super) slowing: Option<Slowing>,
    /// Bytes that may be on their way.
    pub(super) window: u64,
    /// The rate is halved before this round, because the path may be another than before an outage.
    pub(super) halved_until_round: u64,
}

impl Pace {
    pub(super) fn new(rate: u64, window: u64) -> Pace {
        Pace {
            rate,
            slowing: None,
            window,
            halved_until_round: 0,
        }
    }

    /// Ends the fast part of an up if its time is over. True if the rate changed.
    pub(super) fn slow_if_due(&mut self, now: Nanos) -> bool {
        let Some(slowing) = self.slowing.filter(|slowing| now >= slowing.at) else {
            return false;
        };
        (self.rate, self.slowing) = (slowing.rate, None);
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_fast_part_of_an_up_ends_when_its_time_is_over() {
        let mut pace = Pace::new(1_250, 0);
        pace.slowing = Some(Slowing { at: 5, rate: 1_000 });
        assert!(!pace.slow_if_due(4));
        assert!(pace.slow_if_due(5));
        assert_eq!(pace.rate, 1_000);
        assert!(!pace.slow_if_due(6));
    }
}
