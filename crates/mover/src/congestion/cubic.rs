//! `Cubic`: CUBIC (RFC 9438) with pacing. It leaves slow start before it overflows the path
//! (HyStart++, RFC 9406). Any loss counts as congestion, so it is slow where loss is random. It is
//! for links that are shared with TCP flows which must not suffer; `auto` is CUBIC too while it
//! competes with a rival.

use super::initial::{INITIAL_DATAGRAMS, SMALLEST_WINDOW_DATAGRAMS, initial_rate};
use super::rate::{bytes_in, rate_of};
use super::report::AckReport;
use crate::timer::{MILLISECOND, Nanos, SECOND};

/// CUBIC's constant, and the factor of a reduction (RFC 9438, sections 4.1 and 4.6).
const C: f64 = 0.4;
const BETA: f64 = 0.7;
/// What Reno would add in each round to get the same mean window with this `BETA` (section 4.3).
const RENO: f64 = 3.0 * (1.0 - BETA) / (1.0 + BETA);
/// Pacing, in percent of the window's rate: above it, so that the window and not the pacer limits
/// (RFC 9002, section 7.7).
const SLOW_START_PACE: u64 = 200;
const PACE: u64 = 120;

/// HyStart++ (RFC 9406, section 4.3): round trips that rise by an eighth, within 4 and 16 ms, over
/// 8 samples end slow start's fast part; 5 rounds of a quarter of its growth follow.
const SMALLEST_RISE: Nanos = 4 * MILLISECOND;
const LARGEST_RISE: Nanos = 16 * MILLISECOND;
const RISE_PART: u64 = 8;
const SAMPLES: u32 = 8;
const CAUTIOUS_GROWTH: f64 = 0.25;
const CAUTIOUS_ROUNDS: u32 = 5;

/// Slow start, and how fast it grows.
#[derive(Clone, Copy, PartialEq)]
enum Start {
    Fast,
    /// Up to this window, in bytes, whatever the round trips say.
    UpTo(f64),
    /// The round trips have risen: grows slowly until that is certain.
    Cautious {
        /// Rounds so far.
        rounds: u32,
        /// A shorter round trip than this says that it was a passing rise.
        baseline: Nanos,
    },
    Over,
}

/// Congestion avoidance from one reduction or rest to the next.
struct Epoch {
    since: Nanos,
    /// Seconds until the window of before the last reduction is reached again.
    k: f64,
    /// The window that Reno would have.
    reno: f64,
}

/// A round of slow start.
struct Round {
    /// The round ends when a datagram is acknowledged before which this many bytes were delivered.
    end: u64,
    least_rtt: Nanos,
    samples: u32,
    /// Of the round before.
    last_least_rtt: Nanos,
}

/// The controller. Windows are in bytes of the wire.
pub(crate) struct Cubic {
    cap: Option<u64>,
    datagram: f64,
    window: f64,
    start: Start,
    /// The window before the last reduction.
    most: f64,
    /// `None`: the next acknowledgement begins another.
    epoch: Option<Epoch>,
    /// Datagrams sent before this belong to a congestion that was answered.
    answered: Nanos,
    round: Round,
    rate: u64,
}

impl Cubic {
    pub(super) fn new(cap: Option<u64>, datagram: u64) -> Cubic {
        Cubic {
            cap,
            datagram: datagram as f64,
            window: (INITIAL_DATAGRAMS * datagram) as f64,
            start: Start::Fast,
            most: 0.0,
            epoch: None,
            answered: 0,
            round: Round {
                end: 0,
                least_rtt: Nanos::MAX,
                samples: 0,
                last_least_rtt: Nanos::MAX,
            },
            rate: initial_rate(cap, datagram),
        }
    }

    /// Beside others that fill the path: begins with `window` and slow start up to `most` (both in
    /// bytes), whatever the round trips say.
    pub(super) fn among(cap: Option<u64>, datagram: u64, window: u64, most: u64) -> Cubic {
        let window = window.max(SMALLEST_WINDOW_DATAGRAMS * datagram) as f64;
        Cubic {
            start: Start::UpTo(most as f64),
            window,
            ..Cubic::new(cap, datagram)
        }
    }

    /// The time that passes until the next acknowledgement counts as no growth (RFC 9438, section
    /// 5.8).
    pub(super) fn rest(&mut self) {
        self.epoch = None;
    }

    pub(super) fn on_ack_report(&mut self, report: &AckReport<'_>, now: Nanos) {
        self.datagram = report.datagram as f64;
        if report.lost.iter().any(|lost| lost.sent >= self.answered) {
            self.reduce(now);
        }
        self.on_round(report);
        // A window that is not used says nothing about a larger one.
        let limited = report.is_app_limited();
        if limited {
            self.rest();
        } else if report.acked > 0 {
            self.grow(report, now);
        }
        if let Some(smoothed) = report.rtt.smoothed() {
            let rate = rate_of(self.window() * self.pace() / 100, smoothed);
            self.rate = self.cap.map_or(rate, |cap| rate.min(cap));
        }
    }

    fn reduce(&mut self, now: Nanos) {
        self.start = Start::Over;
        self.answered = now;
        // Fast convergence: a flow that lost before it was where it had been leaves room for
        // another (section 4.7).
        self.most = if self.window < self.most {
            self.window * (1.0 + BETA) / 2.0
        } else {
            self.window
        };
        self.window = (self.window * BETA).max(SMALLEST_WINDOW_DATAGRAMS as f64 * self.datagram);
        self.epoch = None;
    }

    /// Nothing was heard for long: the path may be another (persistent congestion, RFC 9002,
    /// section 7.6).
    pub(super) fn on_outage_end(&mut self, now: Nanos) {
        self.reduce(now);
        self.window = SMALLEST_WINDOW_DATAGRAMS as f64 * self.datagram;
        self.start = Start::Fast;
    }

    fn on_round(&mut self, report: &AckReport<'_>) {
        if let Some(measured) = report.rtt_sample {
            self.round.least_rtt = self.round.least_rtt.min(measured);
            self.round.samples += 1;
        }
        match self.start {
            Start::Fast
                if self.round.samples >= SAMPLES && self.round.last_least_rtt != Nanos::MAX =>
            {
                let rise =
                    (self.round.last_least_rtt / RISE_PART).clamp(SMALLEST_RISE, LARGEST_RISE);
                if self.round.least_rtt >= self.round.last_least_rtt + rise {
                    self.start = Start::Cautious {
                        rounds: 0,
                        baseline: self.round.least_rtt,
                    };
                }
            }
            // It was a passing rise.
            Start::Cautious { baseline, .. }
                if self.round.samples >= SAMPLES && self.round.least_rtt < baseline =>
            {
                self.start = Start::Fast;
            }
            Start::Fast | Start::UpTo(_) | Start::Cautious { .. } | Start::Over => {}
        }
        if report
            .rate_sample
            .is_some_and(|sample| sample.prior_delivered >= self.round.end)
        {
            self.round = Round {
                end: report.delivered,
                least_rtt: Nanos::MAX,
                samples: 0,
                last_least_rtt: self.round.least_rtt,
            };
            if let Start::Cautious { rounds, .. } = &mut self.start {
                *rounds += 1;
                if *rounds >= CAUTIOUS_ROUNDS {
                    self.start = Start::Over;
                    self.most = self.window;
                }
            }
        }
    }

    fn grow(&mut self, report: &AckReport<'_>, now: Nanos) {
        let acked = report.acked as f64;
        match self.start {
            Start::Fast => self.window += acked,
            Start::UpTo(most) => {
                self.window += acked;
                if self.window >= most {
                    self.start = Start::Over;
                    self.most = self.window;
                }
            }
            Start::Cautious { .. } => self.window += acked * CAUTIOUS_GROWTH,
            Start::Over => self.avoid(acked, report.rtt.smoothed().unwrap_or(SECOND), now),
        }
        if let Some(cap) = self.cap {
            // Beyond twice what the configured rate can fill, a larger window would only be a later
            // overflow.
            let most = 2.0 * bytes_in(cap, report.rtt.smoothed().unwrap_or(SECOND)) as f64;
            self.window = self
                .window
                .min(most.max((INITIAL_DATAGRAMS * report.datagram) as f64));
        }
    }

    /// Congestion avoidance (sections 4.2 to 4.5).
    fn avoid(&mut self, acked: f64, smoothed: Nanos, now: Nanos) {
        let epoch = self.epoch.get_or_insert_with(|| {
            self.most = self.most.max(self.window);
            Epoch {
                since: now,
                k: ((self.most - self.window) / self.datagram / C).cbrt(),
                reno: self.window,
            }
        });
        let elapsed = (now - epoch.since + smoothed) as f64 / SECOND as f64;
        let cubic = self.most + C * (elapsed - epoch.k).powi(3) * self.datagram;
        let target = cubic.clamp(self.window, 1.5 * self.window);
        let share = acked / self.window;
        epoch.reno += if epoch.reno < self.most { RENO } else { 1.0 } * share * self.datagram;
        self.window = (self.window + (target - self.window) * share).max(epoch.reno);
    }

    fn pace(&self) -> u64 {
        if self.start == Start::Over {
            PACE
        } else {
            SLOW_START_PACE
        }
    }

    pub(super) fn rate(&self) -> u64 {
        self.rate
    }

    /// What the window makes of the path.
    pub(super) fn bandwidth(&self) -> u64 {
        self.rate * 100 / self.pace()
    }

    pub(super) fn window(&self) -> u64 {
        self.window as u64
    }

    pub(super) fn phase(&self) -> &'static str {
        match self.start {
            Start::Fast | Start::UpTo(_) => "slow start",
            Start::Cautious { .. } => "cautious",
            Start::Over => "avoidance",
        }
    }
}
