//! How long a datagram and its acknowledgement take: smoothed, varying, shortest (RFC 9002, section
//! 5, with changes).

use crate::timer::{MILLISECOND, Nanos, SECOND};

/// A sample confirms the min RTT if it is longer by at most one part of 50 (2 %), so a long path
/// need not be emptied to measure it again.
const NEAR_PART: u64 = 50;
/// On short paths it may be longer by this, or by a quarter.
const NEAR_FLOOR: Nanos = MILLISECOND / 2;
/// The min RTT is forgotten when nothing confirmed it for this time: the path has changed.
const MINIMUM_LIFE: Nanos = 30 * SECOND;
/// The round trip before the first sample: longer than a satellite hop, so that probes of a new
/// session are rarely in vain.
pub(crate) const UNKNOWN: Nanos = SECOND;

/// The round trip as known so far.
#[derive(Default)]
pub(crate) struct Rtt {
    smoothed: Option<Nanos>,
    varies: Nanos,
    latest: Nanos,
    minimum: Option<Nanos>,
    minimum_at: Nanos,
    /// The shortest sample since `minimum_at`, to take over when the minimum is forgotten.
    next_minimum: Nanos,
}

impl Rtt {
    /// A datagram sent `elapsed` ago was acknowledged; the peer held the acknowledgement back for
    /// `delay`.
    pub(crate) fn on_sample(&mut self, elapsed: Nanos, delay: Nanos, now: Nanos) {
        // A peer that claims to have waited longer than the whole round trip is not believed.
        let adjusted = if delay < elapsed {
            elapsed - delay
        } else {
            elapsed.max(1)
        };
        self.on_minimum(adjusted, now);
        self.latest = adjusted;
        match self.smoothed {
            None => {
                self.smoothed = Some(adjusted);
                self.varies = adjusted / 2;
            }
            Some(smoothed) => {
                self.varies = (3 * self.varies + smoothed.abs_diff(adjusted)) / 4;
                self.smoothed = Some((7 * smoothed + adjusted) / 8);
            }
        }
    }

    fn on_minimum(&mut self, sample: Nanos, now: Nanos) {
        let Some(minimum) = self.minimum else {
            (self.minimum, self.minimum_at, self.next_minimum) = (Some(sample), now, Nanos::MAX);
            return;
        };
        if sample <= minimum + minimum / NEAR_PART + NEAR_FLOOR.min(minimum / 4) {
            (self.minimum, self.minimum_at, self.next_minimum) =
                (Some(minimum.min(sample)), now, Nanos::MAX);
            return;
        }
        self.next_minimum = self.next_minimum.min(sample);
        if now > self.minimum_at + MINIMUM_LIFE {
            (self.minimum, self.minimum_at, self.next_minimum) =
                (Some(self.next_minimum), now, Nanos::MAX);
        }
    }

    pub(crate) fn smoothed(&self) -> Option<Nanos> {
        self.smoothed
    }

    pub(crate) fn minimum(&self) -> Option<Nanos> {
        self.minimum
    }

    /// When a sample last confirmed the minimum.
    pub(crate) fn minimum_at(&self) -> Nanos {
        self.minimum_at
    }

    /// How much samples differ from the smoothed round trip, mostly.
    pub(crate) fn varies(&self) -> Nanos {
        self.varies
    }

    pub(crate) fn latest(&self) -> Nanos {
        self.latest
    }

    /// The longer of the smoothed and the latest: what loss is judged by.
    pub(crate) fn patient(&self) -> Nanos {
        self.smoothed.unwrap_or(UNKNOWN).max(self.latest)
    }

    /// How long to wait for an acknowledgement before asking for one, apart from the peer's own
    /// delay.
    pub(crate) fn probe_after(&self) -> Nanos {
        self.smoothed.map_or(UNKNOWN, |smoothed| {
            smoothed + (4 * self.varies).max(MILLISECOND)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_delay_is_taken_off_but_never_below_the_minimum() {
        let mut rtt = Rtt::default();
        rtt.on_sample(100 * MILLISECOND, 0, 0);
        assert_eq!(rtt.smoothed(), Some(100 * MILLISECOND));
        rtt.on_sample(120 * MILLISECOND, 20 * MILLISECOND, 1);
        assert_eq!(rtt.latest(), 100 * MILLISECOND);
        rtt.on_sample(110 * MILLISECOND, 50 * MILLISECOND, 2);
        assert_eq!(
            rtt.minimum(),
            Some(60 * MILLISECOND),
            "a shorter path shows at once"
        );
    }

    #[test]
    fn a_longer_path_is_believed_after_a_while() {
        let mut rtt = Rtt::default();
        rtt.on_sample(20 * MILLISECOND, 0, 0);
        for second in 0..32 {
            rtt.on_sample(600 * MILLISECOND, 0, second * SECOND);
        }
        assert_eq!(rtt.minimum(), Some(600 * MILLISECOND));
        assert!(rtt.probe_after() > 600 * MILLISECOND);
    }

    #[test]
    fn near_samples_keep_the_minimum_fresh() {
        let mut rtt = Rtt::default();
        rtt.on_sample(600 * MILLISECOND, 0, 0);
        for second in 0..100 {
            rtt.on_sample(605 * MILLISECOND, 0, second * SECOND);
        }
        assert_eq!(
            (rtt.minimum(), rtt.minimum_at()),
            (Some(600 * MILLISECOND), 99 * SECOND)
        );
    }
}
