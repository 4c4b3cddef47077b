//! A peer that is called on demand: when it is needed, when it is given up for now, and when it is
//! needed no longer. Pure: told what happens and the time.
//!
//! *At rest* (its rules are in force: the first connection calls it) → *called* → connected → at
//! rest again when nothing was carried for a while. A peer that does not answer in time is as one
//! that is down: its rules' traffic takes its plain way, and it is called until it answers.

use std::time::{Duration, Instant};

/// The longest time, 3 s, that traffic waits for a peer that was called: an application has a
/// little more patience.
const ANSWER: Duration = Duration::from_secs(3);

/// What is to be done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Turn {
    /// Nothing.
    Stay,
    /// What waits for the peer is to be refused: it does not answer.
    GiveUp,
    /// The session is to be ended.
    Leave,
}

/// Of one peer.
#[derive(Debug)]
pub(crate) struct Demand {
    after: Duration,
    called: Option<Instant>,
    /// We called it, so we leave it.
    ours: bool,
    idle_since: Option<Instant>,
    /// It was called and did not answer; until it does, nothing waits for it.
    failed: bool,
}

impl Demand {
    /// The session ends when nothing was carried for so long.
    pub(crate) fn new(after: Duration) -> Demand {
        Demand {
            after,
            called: None,
            ours: false,
            idle_since: None,
            failed: false,
        }
    }

    /// Somebody needs the peer, which is not connected; whether it is to be called now.
    pub(crate) fn need(&mut self, now: Instant) -> bool {
        let first = self.called.is_none();
        self.called.get_or_insert(now);
        first
    }

    /// The peer has answered, or called us.
    pub(crate) fn connected(&mut self) {
        // It is said again for each new keys; whose the session is, does not change with them.
        self.ours |= self.called.take().is_some();
        (self.failed, self.idle_since) = (false, None);
    }

    /// Whether the session is over, for which reason ever: the next need calls again.
    pub(crate) fn gone(&mut self) {
        (self.called, self.ours) = (None, false);
    }

    /// Whether traffic of its rules may come though it is not connected.
    pub(crate) fn is_ready(&self) -> bool {
        !self.failed
    }

    /// Whether it rests: nobody needs it.
    pub(crate) fn rests(&self) -> bool {
        self.called.is_none()
    }

    /// To be asked now and then.
    pub(crate) fn turn(&mut self, connected: bool, idle: bool, now: Instant) -> Turn {
        if !connected {
            let late = self.called.is_some_and(|called| now >= called + ANSWER);
            return if late && !std::mem::replace(&mut self.failed, true) {
                Turn::GiveUp
            } else {
                Turn::Stay
            };
        }
        if !idle || !self.ours {
            self.idle_since = None;
            return Turn::Stay;
        }
        let since = *self.idle_since.get_or_insert(now);
        if now >= since + self.after {
            Turn::Leave
        } else {
            Turn::Stay
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_peer_is_called_when_needed_and_left_when_idle() {
        let start = Instant::now();
        let at = |seconds: u64| start + Duration::from_secs(seconds);
        let mut demand = Demand::new(Duration::from_secs(60));
        assert!(demand.rests() && demand.is_ready());
        assert!(demand.need(start) && !demand.need(start), "called once");
        assert_eq!(demand.turn(false, true, at(2)), Turn::Stay);
        demand.connected();
        assert_eq!(demand.turn(true, false, at(3)), Turn::Stay);
        assert_eq!(demand.turn(true, true, at(10)), Turn::Stay);
        assert_eq!(demand.turn(true, true, at(69)), Turn::Stay);
        assert_eq!(
            demand.turn(true, false, at(69)),
            Turn::Stay,
            "it carries again"
        );
        demand.connected();
        assert_eq!(
            demand.turn(true, true, at(70)),
            Turn::Stay,
            "new keys are no new session"
        );
        assert_eq!(demand.turn(true, true, at(130)), Turn::Leave);
        demand.gone();
        assert!(demand.need(at(140)));
    }

    #[test]
    fn who_was_called_does_not_leave() {
        let start = Instant::now();
        let mut demand = Demand::new(Duration::from_secs(1));
        demand.connected();
        for seconds in 0..100 {
            assert_eq!(
                demand.turn(true, true, start + Duration::from_secs(seconds)),
                Turn::Stay
            );
        }
    }

    #[test]
    fn a_peer_that_does_not_answer_is_down_until_it_does() {
        let start = Instant::now();
        let mut demand = Demand::new(Duration::from_secs(60));
        demand.need(start);
        assert_eq!(demand.turn(false, true, start + ANSWER), Turn::GiveUp);
        assert_eq!(demand.turn(false, true, start + 2 * ANSWER), Turn::Stay);
        assert!(!demand.is_ready() && !demand.rests());
        demand.connected();
        assert!(demand.is_ready());
    }
}
