//! `Fixed`: sends at the configured rate, with a safety brake. It is for links whose capacity the
//! operator knows and owns.

use super::initial::{INITIAL_DATAGRAMS, SMALLEST_WINDOW_DATAGRAMS, initial_rate};
use super::rate::bytes_in;
use super::report::AckReport;
use crate::ack::LONGEST_DELAY;
use crate::timer::{MILLISECOND, Nanos};

/// The brake judges 3 round trips together, so that one burst of losses does not pull it.
const LOOK_ROUNDS: u64 = 3;
/// The brake halves the rate for 10 round trips: time for the queue to go and for others to send.
const BRAKE_ROUNDS: u64 = 10;
/// A queue of more than 500 ms, and of more than three times the min RTT, says that the path does
/// not carry the rate.
const LONGEST_QUEUE: Nanos = 500 * MILLISECOND;

/// The rate and its brake.
pub(crate) struct Fixed {
    configured: u64,
    datagram: u64,
    window: u64,
    braked_until: Option<Nanos>,
    look_at: Nanos,
    look_acked: u64,
    look_lost: u64,
}

impl Fixed {
    pub(super) fn new(rate: u64, datagram: u64) -> Fixed {
        let window = INITIAL_DATAGRAMS * datagram;
        Fixed {
            configured: rate,
            datagram,
            window,
            braked_until: None,
            look_at: 0,
            look_acked: 0,
            look_lost: 0,
        }
    }

    pub(super) fn on_ack_report(&mut self, report: &AckReport<'_>, now: Nanos) {
        self.datagram = report.datagram;
        let (Some(smoothed), Some(minimum)) = (report.rtt.smoothed(), report.rtt.minimum()) else {
            return;
        };
        // Twice the product: repairs and held-back acknowledgements keep bytes in flight longer
        // than a round trip.
        self.window = (2 * bytes_in(self.configured, smoothed + LONGEST_DELAY))
            .max(INITIAL_DATAGRAMS * report.datagram);
        self.look_acked += report.acked;
        self.look_lost += report.lost_bytes();
        if self.braked_until.is_some_and(|until| now >= until) {
            self.braked_until = None;
            self.start_look(now);
        }
        if now < self.look_at + LOOK_ROUNDS * smoothed {
            return;
        }
        let starved = self.look_acked < self.look_lost;
        let queued = smoothed - minimum.min(smoothed) > LONGEST_QUEUE.max(3 * minimum);
        if (starved || queued) && self.braked_until.is_none() {
            self.braked_until = Some(now + BRAKE_ROUNDS * smoothed);
        }
        self.start_look(now);
    }

    fn start_look(&mut self, now: Nanos) {
        (self.look_at, self.look_acked, self.look_lost) = (now, 0, 0);
    }

    pub(super) fn rate(&self) -> u64 {
        if self.window <= INITIAL_DATAGRAMS * self.datagram && self.look_at == 0 {
            return initial_rate(Some(self.configured), self.datagram);
        }
        if self.braked_until.is_some() {
            self.configured / 2
        } else {
            self.configured
        }
    }

    pub(super) fn window(&self) -> u64 {
        let window = if self.braked_until.is_some() {
            self.window / 2
        } else {
            self.window
        };
        window.max(SMALLEST_WINDOW_DATAGRAMS * self.datagram)
    }

    pub(super) fn phase(&self) -> &'static str {
        if self.braked_until.is_some() {
            "braked"
        } else {
            "fixed"
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::report::Lost;
    use super::*;
    use crate::path::rtt::Rtt;

    /// Ten seconds of acknowledgements every 10 ms, `lost_share` of a hundred lost; the lowest rate
    /// seen.
    fn lowest_rate(lost_share: u64) -> u64 {
        let mut fixed = Fixed::new(10_000_000, 1_500);
        let mut rtt = Rtt::default();
        let mut lowest = u64::MAX;
        for tick in 1..1_000 {
            let now = tick * 10 * MILLISECOND;
            rtt.on_sample(100 * MILLISECOND, 0, now);
            let lost = [Lost {
                number: tick,
                sent: now,
                bytes: 100_000 * lost_share / 100,
            }];
            let report = AckReport {
                rtt: &rtt,
                rtt_sample: None,
                acked: 100_000 - lost[0].bytes,
                lost: &lost,
                in_flight: 0,
                delivered: 0,
                rate_sample: None,
                decided_until: now,
                datagram: 1_500,
            };
            fixed.on_ack_report(&report, now);
            lowest = lowest.min(fixed.rate());
            assert!(fixed.window() >= fixed.rate() / 10);
        }
        lowest
    }

    #[test]
    fn random_loss_is_ignored_and_starvation_brakes() {
        assert_eq!(lowest_rate(30), 10_000_000);
        assert_eq!(lowest_rate(60), 5_000_000);
    }
}
