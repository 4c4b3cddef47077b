//! Somebody beside us who fills the buffer, as TCP does: room that we give him is lost. How he is
//! known, and what is done then.
//!
//! `bbr.rs` asks the [`Watch`] while it cruises, and hands rate and window over to a [`Competitive`]
//! until the buffer is found empty again.

use crate::congestion::cubic::Cubic;
use crate::congestion::report::AckReport;
use crate::timer::{MILLISECOND, Nanos};

/// A queue of more than a third of a round trip and this, or one that stands though we have left
/// half of the bandwidth to others, for so long and for four round trips, is kept up by somebody
/// who fills buffers.
const LONG_PART: u64 = 3;
const LONG_QUEUE: Nanos = 5 * MILLISECOND;
const STUBBORN: Nanos = 1_500 * MILLISECOND;
const STUBBORN_ROUNDS: u64 = 4;
/// Loss is a full buffer's when the queue is at least this part of the longest, in percent, and the
/// path itself loses less.
const FULL_PERCENT: u64 = 75;
const FULL_FLOOR: f64 = 0.005;

/// Looks at the queue.
pub(super) struct Watch {
    /// When there was last no reason to think that somebody fills the buffer, and the longest round
    /// trip since, smoothed.
    free_at: Nanos,
    longest: Nanos,
}

impl Watch {
    pub(super) fn new(now: Nanos) -> Watch {
        Watch {
            free_at: now,
            longest: 0,
        }
    }

    /// What stands now may be of our own making.
    pub(super) fn forgive(&mut self, now: Nanos) {
        self.free_at = now;
    }

    /// A round trip was measured. `least`: what it is without a queue worth the name; `gave_way`:
    /// half of the bandwidth is given up.
    pub(super) fn on_rtt(
        &mut self,
        measured: Nanos,
        smoothed: Nanos,
        least: (Nanos, Nanos),
        gave_way: bool,
        now: Nanos,
    ) {
        let (minimum, few) = least;
        if measured <= minimum + minimum / LONG_PART + LONG_QUEUE + few && !gave_way {
            (self.free_at, self.longest) = (now, 0);
        }
        self.longest = self.longest.max(smoothed);
    }

    pub(super) fn is_crowded(&self, minimum: Nanos, now: Nanos) -> bool {
        // Our own queue, if it is one, needs twice its length to go while we send at half the rate.
        let own = 2 * self.longest_queue(minimum);
        now.saturating_sub(self.free_at) > STUBBORN.max(STUBBORN_ROUNDS * minimum) + own
    }

    pub(super) fn longest_queue(&self, minimum: Nanos) -> Nanos {
        self.longest.saturating_sub(minimum)
    }
}

/// In a crowd we do as the others, but for losses that are the path's own.
pub(super) struct Competitive {
    cubic: Cubic,
    /// The next loss counts, whatever the queue says: there was too much of it.
    believe: bool,
    cycle_at: Nanos,
}

impl Competitive {
    /// `had`: bytes that were on their way when nobody was there. Giving way has cost us most of
    /// that: we take half of it back at once, and ask for the rest.
    pub(super) fn new(
        cap: Option<u64>,
        report: &AckReport<'_>,
        had: u64,
        now: Nanos,
    ) -> Competitive {
        let cubic = Cubic::among(cap, report.datagram, report.in_flight.max(had / 2), had);
        Competitive {
            cubic,
            believe: false,
            cycle_at: now,
        }
    }

    /// `queue`: now and the longest; `floor`: the share that the path loses anyway.
    pub(super) fn on_ack_report(
        &mut self,
        report: &AckReport<'_>,
        queue: (Nanos, Nanos),
        floor: f64,
        now: Nanos,
    ) {
        let full = queue.0 * 100 >= queue.1 * FULL_PERCENT;
        let counts = (full && floor < FULL_FLOOR) || self.believe;
        self.believe &= report.lost.is_empty();
        self.cubic.on_ack_report(
            &AckReport {
                lost: if counts { report.lost } else { &[] },
                ..*report
            },
            now,
        );
    }

    /// A round lost more than the path's own loss explains.
    pub(super) fn on_too_much(&mut self) {
        self.believe = true;
    }

    /// Is a cycle of this length over? Then another begins.
    pub(super) fn take_cycle(&mut self, length: Nanos, now: Nanos) -> bool {
        let over = now > self.cycle_at + length;
        if over {
            self.cycle_at = now;
        }
        over
    }

    /// Nothing was sent for a while, on purpose.
    pub(super) fn rest(&mut self) {
        self.cubic.rest();
    }

    pub(super) fn rate(&self) -> u64 {
        self.cubic.rate()
    }

    pub(super) fn window(&self) -> u64 {
        self.cubic.window()
    }
}
