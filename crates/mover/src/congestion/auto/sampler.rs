//! Rounds and delivery-rate samples: what the model is made from.
//!
//! A round is packet-timed: it ends when a datagram is acknowledged that left after the round began
//! ("packet-timed round trips" of draft-ietf-ccwg-bbr). On short paths acknowledgements come in
//! lumps, which make single samples and rounds look fast. Both then last 10 ms at least.

use crate::congestion::report::AckReport;
use crate::path::delivery::Sample;
use crate::timer::{MILLISECOND, Nanos};

/// Shortest round and shortest sample: 10 ms, because acknowledgements on shorter paths come in
/// lumps of some milliseconds.
pub(super) const SHORTEST_ROUND: Nanos = 10 * MILLISECOND;

/// Bytes delivered and bytes lost in the same time.
#[derive(Clone, Copy, Default, Debug)]
pub(super) struct Tally {
    pub(super) delivered: u64,
    pub(super) lost: u64,
}

impl Tally {
    pub(super) fn total(&self) -> u64 {
        self.delivered + self.lost
    }

    pub(super) fn add(&mut self, other: Tally) {
        self.delivered += other.delivered;
        self.lost += other.lost;
    }
}

/// What one round saw.
pub(super) struct Round {
    /// The round ends when a datagram is acknowledged before which this many bytes were delivered.
    end: u64,
    pub(super) since: Nanos,
    /// Bytes per second, given back what the path loses anyway.
    pub(super) best_rate: u64,
    /// At least one sample was not limited by what there was to send.
    pub(super) full: bool,
    pub(super) tally: Tally,
    /// Runs of neighbouring losses.
    pub(super) loss_runs: u64,
    least_rtt: Nanos,
    rtt_sum: u128,
    rtt_count: u64,
}

impl Round {
    fn new(end: u64, now: Nanos) -> Round {
        Round {
            end,
            since: now,
            best_rate: 0,
            full: false,
            tally: Tally::default(),
            loss_runs: 0,
            least_rtt: Nanos::MAX,
            rtt_sum: 0,
            rtt_count: 0,
        }
    }

    /// The shortest round trip, if one was measured.
    pub(super) fn least_rtt(&self) -> Option<Nanos> {
        Some(self.least_rtt).filter(|_| self.rtt_count > 0)
    }

    /// The mean round trip, if one was measured.
    pub(super) fn mean_rtt(&self) -> Option<Nanos> {
        let mean = self.rtt_sum.checked_div(u128::from(self.rtt_count))?;
        Some(mean as Nanos)
    }
}

/// On short paths, samples are taken over this instead.
#[derive(Default)]
struct Span {
    since: Nanos,
    tally: Tally,
    app_limited: bool,
}

/// Counts rounds and chooses the samples that are believed.
///
/// For each report: `on_lost` and `on_rtt`; if something was acknowledged, `on_acked`, then
/// `round_is_over` and `take_sample` with the report's sample, `on_rate` with what was made of that
/// sample, and at last `end_round` if the round was over.
pub(super) struct Sampler {
    round: Round,
    rounds: u64,
    span: Span,
}

impl Sampler {
    pub(super) fn new(now: Nanos) -> Sampler {
        Sampler {
            round: Round::new(0, now),
            rounds: 0,
            span: Span {
                since: now,
                ..Span::default()
            },
        }
    }

    /// The round that lasts.
    pub(super) fn round(&self) -> &Round {
        &self.round
    }

    /// The number of rounds that are over.
    pub(super) fn rounds(&self) -> u64 {
        self.rounds
    }

    /// `bytes` were lost, in as many runs of neighbours as `loss_runs`.
    pub(super) fn on_lost(&mut self, bytes: u64, loss_runs: u64) {
        self.round.tally.lost += bytes;
        self.round.loss_runs += loss_runs;
    }

    pub(super) fn on_rtt(&mut self, rtt: Nanos) {
        self.round.rtt_sum += u128::from(rtt);
        self.round.rtt_count += 1;
        self.round.least_rtt = self.round.least_rtt.min(rtt);
    }

    pub(super) fn on_acked(&mut self, bytes: u64) {
        self.round.tally.delivered += bytes;
    }

    /// Does the acknowledgement of this sample's datagram end the round?
    pub(super) fn round_is_over(&self, sample: &Sample, now: Nanos) -> bool {
        sample.prior_delivered >= self.round.end && now >= self.round.since + SHORTEST_ROUND
    }

    /// The sample to believe: `sample` of this report, unless its interval is shorter than half of
    /// the min RTT. On a short path it is all of the span, when that is over.
    pub(super) fn take_sample(
        &mut self,
        sample: Sample,
        report: &AckReport<'_>,
        min_rtt: Nanos,
        now: Nanos,
    ) -> Option<Sample> {
        if min_rtt >= SHORTEST_ROUND {
            return Some(sample).filter(|sample| 2 * sample.interval >= min_rtt);
        }
        self.span.tally.add(Tally {
            delivered: report.acked,
            lost: report.lost_bytes(),
        });
        self.span.app_limited |= sample.app_limited;
        if now < self.span.since + SHORTEST_ROUND {
            return None;
        }
        let fresh = Span {
            since: now,
            ..Span::default()
        };
        let span = std::mem::replace(&mut self.span, fresh);
        Some(Sample {
            delivered: span.tally.delivered,
            lost: span.tally.lost,
            interval: now - span.since,
            app_limited: span.app_limited,
            ..sample
        })
    }

    /// A believed sample showed `rate`, in bytes per second.
    pub(super) fn on_rate(&mut self, rate: u64, app_limited: bool) {
        self.round.best_rate = self.round.best_rate.max(rate);
        self.round.full |= !app_limited;
    }

    /// Another round begins; the next datagram to leave has `delivered` bytes before it. What the
    /// old round saw.
    pub(super) fn end_round(&mut self, delivered: u64, now: Nanos) -> Round {
        self.rounds += 1;
        std::mem::replace(&mut self.round, Round::new(delivered, now))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::path::rtt::Rtt;

    fn sample(interval: Nanos, prior_delivered: u64) -> Sample {
        Sample {
            delivered: 1_000,
            lost: 0,
            interval,
            prior_delivered,
            app_limited: false,
            sent: 0,
        }
    }

    fn report<'a>(rtt: &'a Rtt, acked: u64) -> AckReport<'a> {
        AckReport {
            rtt,
            rtt_sample: None,
            acked,
            lost: &[],
            in_flight: 0,
            delivered: 0,
            rate_sample: None,
            decided_until: 0,
            datagram: 1_500,
        }
    }

    #[test]
    fn a_round_ends_with_a_datagram_that_left_after_it_began() {
        let mut sampler = Sampler::new(0);
        sampler.on_rtt(40 * MILLISECOND);
        sampler.on_rtt(50 * MILLISECOND);
        assert!(!sampler.round_is_over(&sample(0, 0), 9 * MILLISECOND));
        assert!(sampler.round_is_over(&sample(0, 0), 10 * MILLISECOND));
        let round = sampler.end_round(5_000, 10 * MILLISECOND);
        assert_eq!(round.mean_rtt(), Some(45 * MILLISECOND));
        assert_eq!(round.least_rtt(), Some(40 * MILLISECOND));
        assert!(!sampler.round_is_over(&sample(0, 4_999), 60 * MILLISECOND));
        assert!(sampler.round_is_over(&sample(0, 5_000), 60 * MILLISECOND));
        assert_eq!(sampler.round().mean_rtt(), None);
        assert_eq!(sampler.rounds(), 1);
    }

    #[test]
    fn a_short_path_is_sampled_over_ten_milliseconds() {
        let (rtt, mut sampler) = (Rtt::default(), Sampler::new(0));
        let mut take =
            |now| sampler.take_sample(sample(MILLISECOND, 0), &report(&rtt, 700), MILLISECOND, now);
        assert!(take(4 * MILLISECOND).is_none());
        let taken = take(11 * MILLISECOND).expect("the span is over");
        assert_eq!((taken.delivered, taken.interval), (1_400, 11 * MILLISECOND));
        assert!(take(20 * MILLISECOND).is_none());
    }

    #[test]
    fn a_sample_of_less_than_half_a_round_trip_is_not_believed() {
        let (rtt, mut sampler) = (Rtt::default(), Sampler::new(0));
        let mut take = |interval| {
            sampler.take_sample(sample(interval, 0), &report(&rtt, 700), 80 * MILLISECOND, 0)
        };
        assert!(take(39 * MILLISECOND).is_none());
        assert!(take(40 * MILLISECOND).is_some());
    }
}
