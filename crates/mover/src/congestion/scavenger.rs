//! `Scavenger`: takes what others leave, for backups and the like. It keeps the queue below a
//! target (in the manner of LEDBAT++, draft-irtf-iccrg-ledbat-plus-plus). If anybody fills the
//! queue beyond the target, the scavenger withdraws.
//!
//! The min RTT must be seen now and then without the scavenger's own queue. So the scavenger slows
//! down for two round trips after its start, and again after each nineteen times as long as the
//! last slowdown took. Loss beside a queue, or beyond the tolerance, takes a fifth of the window;
//! random loss does not.

use super::initial::{INITIAL_DATAGRAMS, SMALLEST_WINDOW_DATAGRAMS, initial_rate};
use super::rate::{bytes_in, rate_of};
use super::report::AckReport;
use crate::timer::{MILLISECOND, Nanos};

/// Target: the scavenger's own queue is 10 ms at most. The draft's 60 ms would drive away `auto`,
/// whose own queue is shorter than that.
const TARGET: Nanos = 10 * MILLISECOND;
/// An empty queue lets the window grow by a 64th in a round: slower than `auto` asks for more,
/// which is in seconds.
const RECOVERY: f64 = 64.0;
/// Slow start ends when the queue reaches three quarters of the target (the draft's).
const START_QUEUE: Nanos = TARGET * 3 / 4;
/// A loss beside a queue of more than half of the target is congestion.
const LOSS_PART: u64 = 2;
/// The window grows by a sixteenth of a datagram in a round at least (the draft's gain).
const SLOWEST: u64 = 16;
/// A slowdown lasts 2 round trips, and the time between two slowdowns is 19 times the length of the
/// last: they cost a twentieth of the time.
const SLOW_ROUNDS: u64 = 2;
const SLOW_EVERY: u64 = 19;
/// Losses are judged over 100 datagrams at least: fewer say nothing about a share of some percent.
const JUDGED: u64 = 100;
/// A loss leaves four fifths of the window: the queue tells of most congestion before.
const BETA: f64 = 0.8;
/// Pacing, in percent of the window's rate: above it, so that the window and not the pacer limits
/// (RFC 9002, section 7.7).
const PACE: u64 = 120;

#[derive(Clone, Copy, PartialEq, Eq)]
enum Phase {
    /// Growing fast, up to the window of before a slowdown if one began then.
    Start {
        up_to: u64,
        slowed: Option<Nanos>,
    },
    Steady,
    /// At the smallest window, to see the path without our queue.
    Slow {
        until: Nanos,
        back_to: u64,
        since: Nanos,
    },
}

/// The controller. Windows are in bytes of the wire.
pub(crate) struct Scavenger {
    cap: Option<u64>,
    tolerance: f64,
    window: f64,
    phase: Phase,
    next_slow: Option<Nanos>,
    round_end: u64,
    round_least: Nanos,
    queue: Nanos,
    acked: u64,
    lost: u64,
    answered: Nanos,
    rate: u64,
}

impl Scavenger {
    pub(super) fn new(cap: Option<u64>, tolerance: f64, datagram: u64) -> Scavenger {
        Scavenger {
            cap,
            tolerance,
            window: (INITIAL_DATAGRAMS * datagram) as f64,
            phase: Phase::Start {
                up_to: u64::MAX,
                slowed: None,
            },
            next_slow: None,
            round_end: 0,
            round_least: Nanos::MAX,
            queue: 0,
            acked: 0,
            lost: 0,
            answered: 0,
            rate: initial_rate(cap, datagram),
        }
    }

    pub(super) fn on_ack_report(&mut self, report: &AckReport<'_>, now: Nanos) {
        let (Some(smoothed), Some(minimum)) = (report.rtt.smoothed(), report.rtt.minimum()) else {
            return;
        };
        let least = (SMALLEST_WINDOW_DATAGRAMS * report.datagram) as f64;
        if let Some(measured) = report.rtt_sample {
            self.round_least = self.round_least.min(measured);
            self.queue = self.round_least - minimum.min(self.round_least);
        }
        self.on_loss(report, now);
        self.step(smoothed, now);
        self.window = self.window.max(least);
        let limited = report.is_app_limited();
        if report.acked > 0 && !limited {
            self.grow(report, minimum);
            self.window = self.window.max(least);
        }
        if report
            .rate_sample
            .is_some_and(|sample| sample.prior_delivered >= self.round_end)
        {
            self.round_end = report.delivered;
            self.round_least = Nanos::MAX;
        }
        let rate = rate_of(self.window() * PACE / 100, smoothed);
        self.rate = self.cap.map_or(rate, |cap| rate.min(cap));
    }

    fn on_loss(&mut self, report: &AckReport<'_>, now: Nanos) {
        self.acked += report.acked;
        self.lost += report.lost_bytes();
        let fresh = report.lost.iter().any(|lost| lost.sent >= self.answered);
        let judged = self.acked + self.lost >= JUDGED * report.datagram;
        let many = judged && self.lost as f64 > self.tolerance * (self.acked + self.lost) as f64;
        if fresh && (many || self.queue > TARGET / LOSS_PART) {
            self.window *= BETA;
            self.answered = now;
            self.end_start(now);
        }
        if judged {
            (self.acked, self.lost) = (0, 0);
        }
    }

    fn end_start(&mut self, now: Nanos) {
        if let Phase::Start { slowed, .. } = self.phase {
            self.phase = Phase::Steady;
            // At once after the first start, whose queue hides the path; then so that slowdowns
            // cost a twentieth of the time.
            self.next_slow = Some(slowed.map_or(now, |since| now + SLOW_EVERY * (now - since)));
        }
    }

    fn step(&mut self, smoothed: Nanos, now: Nanos) {
        match self.phase {
            Phase::Start { up_to, .. } if self.window() >= up_to || self.queue > START_QUEUE => {
                self.end_start(now);
            }
            Phase::Slow {
                until,
                back_to,
                since,
            } if now >= until => {
                self.phase = Phase::Start {
                    up_to: back_to,
                    slowed: Some(since),
                };
            }
            Phase::Steady if self.next_slow.is_some_and(|at| now >= at) => {
                let until = now + SLOW_ROUNDS * smoothed;
                self.phase = Phase::Slow {
                    until,
                    back_to: self.window(),
                    since: now,
                };
                self.window = 0.0;
            }
            Phase::Start { .. } | Phase::Steady | Phase::Slow { .. } => {}
        }
    }

    fn grow(&mut self, report: &AckReport<'_>, minimum: Nanos) {
        let acked = report.acked as f64;
        let datagram = report.datagram as f64;
        // Slower than Reno on short paths, where everybody's window is small.
        let gain = 1.0 / (2 * TARGET).div_ceil(minimum.max(1)).clamp(1, SLOWEST) as f64;
        match self.phase {
            Phase::Start { .. } => self.window += acked * gain.max(0.5),
            Phase::Slow { .. } => {}
            Phase::Steady => {
                let above = self.queue as f64 / TARGET as f64 - 1.0;
                let round = if above <= 0.0 {
                    // As Reno, and with the room that is left, faster where the window is large: a
                    // path is found free within some seconds.
                    gain * datagram - above * self.window / RECOVERY
                } else {
                    (gain * datagram - self.window * above).max(-self.window / 2.0)
                };
                self.window += round * acked / self.window;
            }
        }
        if let Some(cap) = self.cap {
            let most = bytes_in(cap, minimum + 2 * TARGET) as f64;
            self.window = self
                .window
                .min(most.max((INITIAL_DATAGRAMS * report.datagram) as f64));
        }
    }

    /// Nothing was heard for long: it begins anew.
    pub(super) fn on_outage_end(&mut self, now: Nanos) {
        let back_to = self.window() / 2;
        self.window = 0.0;
        self.answered = now;
        self.phase = Phase::Start {
            up_to: back_to,
            slowed: Some(now),
        };
    }

    pub(super) fn rate(&self) -> u64 {
        self.rate
    }

    pub(super) fn window(&self) -> u64 {
        self.window as u64
    }

    /// What the window makes of the path.
    pub(super) fn bandwidth(&self) -> u64 {
        self.rate * 100 / PACE
    }

    pub(super) fn phase(&self) -> &'static str {
        match self.phase {
            Phase::Start { .. } => "slow start",
            Phase::Steady => "steady",
            Phase::Slow { .. } => "slowed",
        }
    }
}
