//! Is the peer there? From what is heard and refused to *silent*, *heard* and *dead*.
//!
//! Fed by `connection.rs` with authenticated datagrams and by the link with refusals. A refusal is only a hint that anyone on
//! the path can forge: it is believed after several of our datagrams were refused, each counted once, and none was answered.

use std::time::Duration;

use crate::config::Config;
use crate::timer::{Earliest, MILLISECOND, Nanos, Timer, nanos};

/// Refusals that are needed. After one was counted, the next counts only once something else was sent: many copies of one are one.
const REFUSALS: u32 = 3;
/// The shortest time over which they are gathered.
const REFUSED_FOR: Nanos = 300 * MILLISECOND;
/// How quickly the peer is asked once it was refused.
const REFUSED_PROBE: Nanos = 100 * MILLISECOND;
/// Without another refusal for so long, the ones before mean nothing any more.
const REFUSAL_LIFE: Nanos = 3_000 * MILLISECOND;

/// What a timeout found.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Finding {
    /// Nothing was heard for `silent_after`.
    Silent,
    /// Nothing was heard for `dead_after`.
    Dead,
}

struct Refused {
    since: Nanos,
    last: Nanos,
    count: u32,
    next_probe: Nanos,
}

/// The watch.
pub(crate) struct Liveness {
    keepalive: Nanos,
    silent_after: Nanos,
    dead_after: Nanos,
    heard_at: Nanos,
    sent_at: Nanos,
    silent: bool,
    /// Something was sent since the last refusal that counted: another one may be its answer.
    asked: bool,
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
            asked: false,
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
        self.asked = true;
    }

    pub(crate) fn is_silent(&self) -> bool {
        self.silent
    }

    /// When the peer was heard last.
    pub(crate) fn heard_at(&self) -> Nanos {
        self.heard_at
    }

    /// The link says that nobody listens. True if this is believed now: enough refusals, and nothing heard since the first.
    pub(crate) fn on_refused(&mut self, round_trip: Option<Nanos>, now: Nanos) -> bool {
        if self.refused.as_ref().is_some_and(|refused| now > refused.last + REFUSAL_LIFE) {
            self.refused = None;
        }
        if !std::mem::take(&mut self.asked) {
            return false;
        }
        let fresh = Refused { since: now, last: now, count: 0, next_probe: now + REFUSED_PROBE };
        let refused = self.refused.get_or_insert(fresh);
        refused.count += 1;
        refused.last = now;
        let enough = REFUSED_FOR.max(2 * round_trip.unwrap_or(0));
        refused.count >= REFUSALS && now >= refused.since + enough
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
        if self.refused.as_ref().is_some_and(|refused| now > refused.last + REFUSAL_LIFE) {
            self.refused = None;
        }
        if keepalive {
            // Counts as sent: what really leaves follows at once, and a closed socket must not make a storm of it.
            self.sent_at = now;
        }
        keepalive || asked
    }

    pub(crate) fn handle_timeout(&mut self, now: Nanos) -> Option<Finding> {
        if now >= self.heard_at + self.dead_after {
            return Some(Finding::Dead);
        }
        if !self.silent && now >= self.heard_at + self.silent_after {
            self.silent = true;
            return Some(Finding::Silent);
        }
        None
    }

    pub(crate) fn deadlines(&self, earliest: &mut Earliest) {
        earliest.consider(Some(self.sent_at + self.keepalive), Timer::Keepalive);
        earliest.consider(self.refused.as_ref().map(|refused| refused.next_probe), Timer::Keepalive);
        let silence = if self.silent { self.dead_after } else { self.silent_after };
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
            asked: false,
            refused: None,
        }
    }

    #[test]
    fn silence_comes_in_two_steps() {
        let mut liveness = liveness();
        assert_eq!(liveness.handle_timeout(1_999 * MILLISECOND), None);
        assert_eq!(liveness.handle_timeout(2_000 * MILLISECOND), Some(Finding::Silent));
        assert_eq!(liveness.handle_timeout(299_999 * MILLISECOND), None);
        assert!(liveness.on_heard(299_999 * MILLISECOND));
        assert!(!liveness.on_heard(299_999 * MILLISECOND));
        assert_eq!(liveness.handle_timeout(599_999 * MILLISECOND), Some(Finding::Dead));
    }

    #[test]
    fn refusals_are_believed_only_together() {
        let mut liveness = liveness();
        assert!(!liveness.on_refused(None, 0), "nothing was sent");
        for at in 0..3 {
            liveness.on_sent(at);
            assert!(!liveness.on_refused(None, at), "not all at once");
        }
        assert!(!liveness.take_ping(99 * MILLISECOND));
        assert!(liveness.take_ping(100 * MILLISECOND));
        assert!(!liveness.on_refused(None, 300 * MILLISECOND), "a copy of the last");
        liveness.on_sent(300 * MILLISECOND);
        assert!(liveness.on_refused(None, 300 * MILLISECOND));
        liveness.on_heard(301 * MILLISECOND);
        liveness.on_sent(302 * MILLISECOND);
        assert!(!liveness.on_refused(None, 302 * MILLISECOND), "an answer takes it all back");
        for at in 4..14 {
            liveness.on_sent(at * 100 * MILLISECOND);
            let believed = liveness.on_refused(Some(400 * MILLISECOND), at * 100 * MILLISECOND);
            assert_eq!(believed, at * 100 >= 302 + 800, "two round trips");
        }
    }

    #[test]
    fn copies_of_one_refusal_are_one() {
        let mut liveness = liveness();
        liveness.on_sent(0);
        for at in 0..20 {
            assert!(!liveness.on_refused(None, at * 100 * MILLISECOND));
        }
        liveness.on_sent(2_000 * MILLISECOND);
        assert!(!liveness.on_refused(None, 2_000 * MILLISECOND));
        liveness.on_sent(2_100 * MILLISECOND);
        assert!(liveness.on_refused(None, 2_100 * MILLISECOND));
    }
}
