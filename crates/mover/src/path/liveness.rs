//! Is the peer there? From what is heard and refused to *silent*, *heard* and *dead*.
//!
//! Fed by `connection.rs` with authenticated datagrams and by the link with refusals. A refusal is
//! only a hint that anyone on the path can forge: it is believed after several of our datagrams
//! were refused, each counted once, and none was answered.

use std::time::Duration;

use crate::config::Config;
use crate::timer::{Earliest, MILLISECOND, Nanos, Timer, nanos};

/// Refusals after which it is believed that nobody listens. No more of them count than datagrams
/// were sent: many copies of one are one.
const REFUSALS: u32 = 3;
/// The shortest time over which refusals are gathered, or two round trips.
const REFUSED_FOR: Nanos = 300 * MILLISECOND;
/// Time between the pings that ask a peer that was refused.
const REFUSED_PROBE: Nanos = 100 * MILLISECOND;
/// Refusals are forgotten when no other one came within this time.
const REFUSAL_LIFE: Nanos = 3_000 * MILLISECOND;

/// What a timeout found.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Finding {
    /// Nothing was heard for `silent_after`.
    Silent,
    /// Nothing was heard for `dead_after`.
    Dead,
    /// Nobody listens at its port, and nothing was heard since that was said first.
    Refused,
}

struct Refused {
    last: Nanos,
    count: u32,
    next_probe: Nanos,
    /// When it is believed, if there were enough.
    believed_at: Nanos,
}

/// The watch.
pub(crate) struct Liveness {
    keepalive: Nanos,
    silent_after: Nanos,
    dead_after: Nanos,
    heard_at: Nanos,
    sent_at: Nanos,
    silent: bool,
    /// Datagrams that were sent and that no refusal has answered yet, at most [`REFUSALS`].
    asked: u32,
    refused: Option<Refused>,
}

impl Liveness {
    pub(crate) fn new(config: &Config, now: Nanos) -> Liveness {
        let (silent_after, dead_after) = (nanos(config.silent_after), nanos(config.dead_after));
        Liveness {
            keepalive: nanos(config.keepalive.max(Duration::from_millis(1))),
            silent_after,
            dead_after: dead_after.max(silent_after),
            heard_at: now,
            sent_at: now,
            silent: false,
            asked: 0,
            refused: None,
        }
    }

    /// An authenticated datagram came. True if that ends a silence.
    pub(crate) fn on_heard(&mut self, now: Nanos) -> bool {
        self.heard_at = now;
        self.refused = None;
        std::mem::take(&mut self.silent)
    }

    pub(crate) fn on_sent(&mut self, now: Nanos) {
        self.sent_at = now;
        self.asked = (self.asked + 1).min(REFUSALS);
    }

    pub(crate) fn is_silent(&self) -> bool {
        self.silent
    }

    /// When the peer was heard last.
    pub(crate) fn heard_at(&self) -> Nanos {
        self.heard_at
    }

    /// The link says that nobody listens. `handle_timeout` tells when this is believed: after
    /// enough refusals and some time in which nothing was heard. The refusals themselves need not
    /// go on so long: hosts answer a few of them, then one in each second.
    pub(crate) fn on_refused(&mut self, round_trip: Option<Nanos>, now: Nanos) {
        if self
            .refused
            .as_ref()
            .is_some_and(|refused| now > refused.last + REFUSAL_LIFE)
        {
            self.refused = None;
        }
        if self.asked == 0 {
            return;
        }
        self.asked -= 1;
        let believed_at = now + REFUSED_FOR.max(2 * round_trip.unwrap_or(0));
        let fresh = Refused {
            last: now,
            count: 0,
            next_probe: now + REFUSED_PROBE,
            believed_at,
        };
        let refused = self.refused.get_or_insert(fresh);
        refused.count += 1;
        refused.last = now;
    }

    fn believed_at(&self) -> Option<Nanos> {
        self.refused
            .as_ref()
            .filter(|refused| refused.count >= REFUSALS)
            .map(|refused| refused.believed_at)
    }

    /// Is a ping due, to show that we are there or to ask a peer that was refused?
    pub(crate) fn take_ping(&mut self, now: Nanos) -> bool {
        let keepalive = now >= self.sent_at + self.keepalive;
        let asked = self.refused.as_mut().is_some_and(|refused| {
            let due = now >= refused.next_probe;
            if due {
                refused.next_probe = now + REFUSED_PROBE;
            }
            due
        });
        if self
            .refused
            .as_ref()
            .is_some_and(|refused| now > refused.last + REFUSAL_LIFE)
        {
            self.refused = None;
        }
        if keepalive {
            // Counts as sent: what really leaves follows at once, and a closed socket must not make
            // a storm of it.
            self.sent_at = now;
        }
        keepalive || asked
    }

    pub(crate) fn handle_timeout(&mut self, now: Nanos) -> Option<Finding> {
        if now >= self.heard_at + self.dead_after {
            return Some(Finding::Dead);
        }
        if self.believed_at().is_some_and(|at| now >= at) {
            return Some(Finding::Refused);
        }
        if !self.silent && now >= self.heard_at + self.silent_after {
            self.silent = true;
            return Some(Finding::Silent);
        }
        None
    }

    pub(crate) fn deadlines(&self, earliest: &mut Earliest) {
        earliest.consider(Some(self.sent_at + self.keepalive), Timer::Keepalive);
        earliest.consider(
            self.refused.as_ref().map(|refused| refused.next_probe),
            Timer::Keepalive,
        );
        earliest.consider(self.believed_at(), Timer::Silence);
        let silence = if self.silent {
            self.dead_after
        } else {
            self.silent_after
        };
        earliest.consider(Some(self.heard_at + silence), Timer::Silence);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn liveness() -> Liveness {
        Liveness {
            keepalive: 400 * MILLISECOND,
            silent_after: 2_000 * MILLISECOND,
            dead_after: 300_000 * MILLISECOND,
            heard_at: 0,
            sent_at: 0,
            silent: false,
            asked: 0,
            refused: None,
        }
    }

    #[test]
    fn silence_comes_in_two_steps() {
        let mut liveness = liveness();
        assert_eq!(liveness.handle_timeout(1_999 * MILLISECOND), None);
        assert_eq!(
            liveness.handle_timeout(2_000 * MILLISECOND),
            Some(Finding::Silent)
        );
        assert_eq!(liveness.handle_timeout(299_999 * MILLISECOND), None);
        assert!(liveness.on_heard(299_999 * MILLISECOND));
        assert!(!liveness.on_heard(299_999 * MILLISECOND));
        assert_eq!(
            liveness.handle_timeout(599_999 * MILLISECOND),
            Some(Finding::Dead)
        );
    }

    /// Refused after something was sent; whether that is believed at once.
    fn refuse(liveness: &mut Liveness, round_trip: Option<Nanos>, at: Nanos) -> bool {
        liveness.on_sent(at);
        liveness.on_refused(round_trip, at);
        liveness.handle_timeout(at) == Some(Finding::Refused)
    }

    #[test]
    fn refusals_are_believed_only_together() {
        let mut liveness = liveness();
        liveness.on_refused(None, 0);
        assert!(liveness.refused.is_none(), "nothing was sent");
        for at in 0..3 {
            assert!(!refuse(&mut liveness, None, at), "not all at once");
        }
        assert!(!liveness.take_ping(99 * MILLISECOND));
        assert!(liveness.take_ping(100 * MILLISECOND));
        assert_eq!(liveness.handle_timeout(299 * MILLISECOND), None);
        assert_eq!(
            liveness.handle_timeout(300 * MILLISECOND),
            Some(Finding::Refused),
            "without another refusal"
        );
        liveness.on_heard(301 * MILLISECOND);
        assert_eq!(
            liveness.handle_timeout(302 * MILLISECOND),
            None,
            "an answer takes it all back"
        );
        for at in 4..14 {
            let believed = refuse(
                &mut liveness,
                Some(400 * MILLISECOND),
                at * 100 * MILLISECOND,
            );
            assert_eq!(believed, at * 100 >= 400 + 800, "two round trips");
        }
    }

    #[test]
    fn copies_of_one_refusal_are_one() {
        let mut liveness = liveness();
        liveness.on_sent(0);
        for at in 0..19 {
            liveness.on_refused(None, at * 100 * MILLISECOND);
            assert_eq!(liveness.handle_timeout(at * 100 * MILLISECOND), None);
        }
        assert!(!refuse(&mut liveness, None, 1_900 * MILLISECOND));
        assert!(refuse(&mut liveness, None, 1_950 * MILLISECOND));
    }
}
