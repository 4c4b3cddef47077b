//! Which datagrams count as lost, and when to ask the peer because nothing was heard (RFC 8985 and
//! RFC 9002, with a reordering window that learns, and with probing that never backs off for long).
//!
//! A datagram is lost when a later one was acknowledged and its own acknowledgement is late by more
//! than the reordering that this path shows. While the path has shown none, three later ones are
//! enough. A loss that turns out to be none widens the window.

use super::rtt::Rtt;
use crate::fec::protect;
use crate::send::flight::{Fate, Record};
use crate::timer::{MILLISECOND, Nanos, SECOND};

/// Later datagrams that prove a loss on a path without reordering (RFC 9002, section 6.1.1).
const THRESHOLD: u64 = 3;
/// The reordering window starts at the min RTT shifted right by this: an eighth of it.
const START_SHIFT: u32 = 3;
/// The reordering window is never shorter than this.
const SMALLEST_WINDOW: Nanos = MILLISECOND;
/// Round trips without reordering after which the window shrinks by a half, and the threshold is
/// trusted again.
const CLEAN_ROUNDS: u64 = 16;
/// False losses of protected datagrams from which on late parity does not explain them: the path
/// reorders.
const MANY_REBUILT: u32 = 8;
/// The longest time between two probes, or two round trips where that is longer: a pair of gateways
/// may ask once per second for ever.
const LONGEST_PROBE_TIME: Nanos = SECOND;
/// A protected datagram may come back from its parity later by this: twice the parity's shift, and
/// 4 ms for its way through both hosts.
const REBUILD_TIME: Nanos = 2 * protect::SHIFT + 4 * MILLISECOND;
/// Datagrams that a probe consists of.
pub(crate) const PROBES: u32 = 2;

/// The state of loss detection.
#[derive(Default)]
pub(crate) struct Loss {
    largest_acked: Option<u64>,
    /// Zero: the start value, which follows the shortest round trip.
    window: Nanos,
    reordered_at: Option<Nanos>,
    probes_sent: u32,
    /// When something that asks for an acknowledgement left last.
    asked_at: Nanos,
    /// When the oldest undecided datagram becomes lost; found by the last look.
    due: Option<Nanos>,
    spurious: u64,
    /// False losses of protected datagrams, since the window was last as it begins.
    rebuilt_late: u32,
}

impl Loss {
    /// Losses that were none.
    pub(crate) fn spurious(&self) -> u64 {
        self.spurious
    }

    /// How late an acknowledgement may be.
    pub(crate) fn window(&self, rtt: &Rtt) -> Nanos {
        let start = rtt.minimum().unwrap_or(0) >> START_SHIFT;
        self.window.max(start).max(SMALLEST_WINDOW)
    }

    /// A datagram was acknowledged; its record as it was before.
    pub(crate) fn on_acked(&mut self, number: u64, record: &Record, rtt: &Rtt, now: Nanos) {
        let (sent, was_lost) = (record.sent, record.fate == Fate::Lost);
        self.spurious += u64::from(was_lost);
        self.probes_sent = 0;
        if record.protected {
            // One that was rebuilt is late without having been overtaken, however late its parity
            // was. Only many show that the path reorders.
            self.rebuilt_late += u32::from(was_lost);
            if self.rebuilt_late < MANY_REBUILT || !was_lost {
                return;
            }
        }
        if was_lost || self.largest_acked.is_some_and(|largest| number < largest) {
            self.reordered_at = Some(now);
        }
        if was_lost {
            let lateness = now.saturating_sub(sent).saturating_sub(rtt.patient());
            // A detour of one round trip comes back a little later than that.
            let longest = rtt.smoothed().unwrap_or(SECOND) * 5 / 4;
            self.window = self
                .window(rtt)
                .max(lateness + lateness / 10)
                .min(longest.max(SMALLEST_WINDOW));
        }
    }

    /// The newest datagram of an acknowledgement, after all of it was noted: among those of one
    /// acknowledgement there is no order.
    pub(crate) fn on_largest(&mut self, number: u64) {
        self.largest_acked = Some(
            self.largest_acked
                .map_or(number, |largest| largest.max(number)),
        );
    }

    /// The window shrinks while the path shows no reordering. Called with every acknowledgement.
    pub(crate) fn on_acknowledged(&mut self, rtt: &Rtt, now: Nanos) {
        let clean = CLEAN_ROUNDS * rtt.smoothed().unwrap_or(SECOND);
        if self.reordered_at.is_some_and(|at| now > at + clean) {
            self.window /= 2;
            let smallest =
                self.window <= (rtt.minimum().unwrap_or(0) >> START_SHIFT).max(SMALLEST_WINDOW);
            if smallest {
                (self.window, self.reordered_at, self.rebuilt_late) = (0, None, 0);
            } else {
                self.reordered_at = Some(now);
            }
        }
    }

    /// Is this flying datagram lost? If not yet, the time when it will be is kept for `deadline`.
    pub(crate) fn detect(&mut self, number: u64, record: &Record, rtt: &Rtt, now: Nanos) -> bool {
        let Some(largest) = self.largest_acked.filter(|largest| *largest > number) else {
            return false;
        };
        if self.reordered_at.is_none() && largest >= number + THRESHOLD && !record.protected {
            return true;
        }
        let rebuilt = if record.protected { REBUILD_TIME } else { 0 };
        let due = record.sent + rtt.patient() + self.window(rtt) + rebuilt;
        if due <= now {
            return true;
        }
        self.due = Some(due);
        false
    }

    /// Before a new look at the flight.
    pub(crate) fn clear_due(&mut self) {
        self.due = None;
    }

    /// When to look again.
    pub(crate) fn deadline(&self) -> Option<Nanos> {
        self.due
    }

    /// Something that asks for an acknowledgement left.
    pub(crate) fn on_asked(&mut self, now: Nanos) {
        self.asked_at = now;
    }

    /// When to send probes, if anything flies; `peer_delay` is how long the peer may hold back an
    /// acknowledgement.
    pub(crate) fn probe_deadline(&self, rtt: &Rtt, peer_delay: Nanos) -> Nanos {
        let mut wait = rtt.probe_after() + peer_delay;
        let longest = LONGEST_PROBE_TIME.max(2 * rtt.smoothed().unwrap_or(0));
        for _ in 0..self.probes_sent {
            wait += wait / 2;
            if wait >= longest {
                break;
            }
        }
        self.asked_at + wait.min(longest)
    }

    pub(crate) fn on_probe(&mut self, now: Nanos) {
        self.probes_sent = self.probes_sent.saturating_add(1);
        self.asked_at = now;
    }

    /// Three probes in a row without an answer are an outage.
    pub(crate) fn is_outage(&self) -> bool {
        self.probes_sent >= 3
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rtt() -> Rtt {
        let mut rtt = Rtt::default();
        rtt.on_sample(80 * MILLISECOND, 0, 0);
        rtt
    }

    fn record(sent: Nanos, fate: Fate, protected: bool) -> Record {
        Record::for_test(sent, fate, protected)
    }

    #[test]
    fn three_later_ones_are_enough_until_reordering_is_seen() {
        let (mut loss, rtt) = (Loss::default(), rtt());
        let now = 100 * MILLISECOND;
        loss.on_largest(12);
        let flying = record(now, Fate::Flying, false);
        assert!(!loss.detect(10, &flying, &rtt, now));
        loss.on_largest(13);
        assert!(loss.detect(10, &flying, &rtt, now));
        let protected = record(now, Fate::Flying, true);
        assert!(
            !loss.detect(10, &protected, &rtt, now),
            "its parity may come"
        );
        loss.on_acked(9, &protected, &rtt, now);
        assert!(
            loss.detect(10, &flying, &rtt, now),
            "what was rebuilt was not overtaken"
        );
        loss.on_acked(9, &flying, &rtt, now);
        assert!(
            !loss.detect(10, &flying, &rtt, now),
            "reordering: only time tells"
        );
        assert_eq!(loss.deadline(), Some(now + 90 * MILLISECOND));
        assert!(loss.detect(10, &flying, &rtt, now + 90 * MILLISECOND));
    }

    #[test]
    fn a_false_loss_widens_the_window_and_calm_narrows_it() {
        let (mut loss, rtt) = (Loss::default(), rtt());
        assert_eq!(loss.window(&rtt), 10 * MILLISECOND);
        loss.on_acked(5, &record(0, Fate::Lost, false), &rtt, 120 * MILLISECOND);
        assert_eq!(loss.window(&rtt), 44 * MILLISECOND);
        assert_eq!(loss.spurious(), 1);
        let mut now = 120 * MILLISECOND;
        for _ in 0..20 {
            now += 17 * 80 * MILLISECOND;
            loss.on_acknowledged(&rtt, now);
        }
        assert_eq!(loss.window(&rtt), 10 * MILLISECOND);
    }

    #[test]
    fn parity_that_comes_late_is_no_reordering_unless_it_is_often() {
        let (mut loss, rtt) = (Loss::default(), rtt());
        for late in 1..=MANY_REBUILT {
            loss.on_acked(5, &record(0, Fate::Lost, true), &rtt, 120 * MILLISECOND);
            let widened = loss.window(&rtt) > 10 * MILLISECOND;
            assert_eq!(
                (loss.spurious(), widened),
                (u64::from(late), late == MANY_REBUILT)
            );
        }
    }

    #[test]
    fn a_detour_of_a_round_trip_is_learned() {
        let (mut loss, rtt) = (Loss::default(), rtt());
        let window = |loss: &mut Loss, came| {
            loss.on_acked(5, &record(0, Fate::Lost, false), &rtt, came);
            loss.window(&rtt)
        };
        assert_eq!(
            window(&mut loss, 163 * MILLISECOND),
            83 * MILLISECOND * 11 / 10
        );
        assert_eq!(
            window(&mut loss, SECOND),
            100 * MILLISECOND,
            "and nothing later than a quarter more"
        );
    }

    #[test]
    fn probes_go_on_for_ever_but_not_too_seldom() {
        let (mut loss, rtt) = (Loss::default(), rtt());
        let mut now = 0;
        for _ in 0..100 {
            let due = loss.probe_deadline(&rtt, 0);
            assert!(due > now && due <= now + SECOND);
            now = due;
            loss.on_probe(now);
        }
        assert!(loss.is_outage());
    }
}
