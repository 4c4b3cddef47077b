//! The keys in use: which session seals, and which still open.
//!
//! Life of a session: *open* (its datagrams are read) → *sealing* → *old*, when the far side was
//! heard in a later one → its keys are wiped shortly after. The side that answered the handshake
//! seals with the new session at once, because the far side had its keys first. The side that
//! started it goes on with the one before until the far side is heard in the new one, because the
//! last flight may still be on its way, or lost. So nothing is ever sealed with keys that the far
//! side does not have yet, or has wiped.

use std::collections::VecDeque;
use std::time::Instant;

use crate::crypto::Session;
use crate::timer::Nanos;

/// Sessions that are open at a time, 4: the one in use, the one that was agreed since, and others
/// that a path which loses nearly everything has agreed before.
const OPEN: usize = 4;

/// The sessions of a connection.
pub(crate) struct Sessions {
    /// The oldest first; at most [`OPEN`], and never none.
    open: VecDeque<Open>,
    /// The place of the one that seals.
    sealing: usize,
}

struct Open {
    session: Session,
    since: Nanos,
    /// An authenticated datagram of it has come.
    heard: bool,
    /// When its keys are wiped.
    until: Option<Nanos>,
}

impl Open {
    fn new(session: Session, now: Nanos) -> Open {
        Open {
            session,
            since: now,
            heard: false,
            until: None,
        }
    }
}

impl Sessions {
    pub(crate) fn new(session: Session, now: Nanos) -> Sessions {
        Sessions {
            open: [Open::new(session, now)].into(),
            sealing: 0,
        }
    }

    /// The same two instances have agreed on new keys, and we started it.
    pub(crate) fn offer(&mut self, session: Session, now: Nanos) {
        if self.open.len() == OPEN {
            let oldest = usize::from(self.sealing == 0);
            self.open.remove(oldest);
            self.sealing -= usize::from(oldest < self.sealing);
        }
        self.open.push_back(Open::new(session, now));
    }

    /// The same two instances have agreed on new keys, and the far side started it.
    pub(crate) fn adopt(&mut self, session: Session, now: Nanos) {
        self.offer(session, now);
        self.sealing = self.open.len() - 1;
    }

    /// The session that a datagram with this index is sealed for.
    pub(crate) fn find(&mut self, index: u32) -> Option<&mut Session> {
        self.open
            .iter_mut()
            .map(|open| &mut open.session)
            .find(|session| session.local_index() == index)
    }

    /// The local indices of the sessions that open, the newest first.
    pub(crate) fn indices(&self) -> impl Iterator<Item = u32> + '_ {
        self.open
            .iter()
            .rev()
            .map(|open| open.session.local_index())
    }

    /// A datagram with this index opened: the ones before go on opening until `until`. True the
    /// first time that this session is heard.
    pub(crate) fn on_opened(&mut self, index: u32, until: Nanos) -> bool {
        let Some(at) = self
            .open
            .iter()
            .position(|open| open.session.local_index() == index)
        else {
            return false;
        };
        self.sealing = self.sealing.max(at);
        if std::mem::replace(&mut self.open[at].heard, true) {
            return false;
        }
        for before in self.open.iter_mut().take(at) {
            before.until.get_or_insert(until);
        }
        true
    }

    pub(crate) fn seal(&mut self, number: u64, datagram: &mut [u8], now: Instant) {
        self.open[self.sealing].session.seal(number, datagram, now);
    }

    /// When the newest keys were agreed.
    pub(crate) fn since(&self) -> Nanos {
        self.open.back().map_or(0, |open| open.since)
    }

    /// When the keys that seal were agreed.
    pub(crate) fn sealing_since(&self) -> Nanos {
        self.open[self.sealing].since
    }

    /// When the keys of an old session are to be wiped.
    pub(crate) fn deadline(&self) -> Option<Nanos> {
        self.open.iter().filter_map(|open| open.until).min()
    }

    pub(crate) fn handle_timeout(&mut self, now: Nanos) {
        while let Some(at) = self
            .open
            .iter()
            .position(|open| open.until.is_some_and(|until| until <= now))
        {
            self.open.remove(at);
            self.sealing -= usize::from(at < self.sealing);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::crypto::{HEADER, Suite, TAG};

    /// The session whose index at our side is `local`; the far side's is 1,000 more.
    fn session(local: u32, now: Instant) -> Session {
        Session::new(
            Suite::Aes128Gcm,
            &[1; 32],
            &[2; 32],
            local,
            local + 1_000,
            now,
        )
    }

    /// The index of the session that seals.
    fn sealing(sessions: &mut Sessions, number: &mut u64, now: Instant) -> u32 {
        let mut datagram = [0; HEADER + TAG];
        *number += 1;
        sessions.seal(*number, &mut datagram, now);
        u32::from_be_bytes([0, datagram[1], datagram[2], datagram[3]]) - 1_000
    }

    fn open(sessions: &Sessions) -> Vec<u32> {
        sessions
            .open
            .iter()
            .map(|open| open.session.local_index())
            .collect()
    }

    #[test]
    fn who_started_waits_until_the_new_session_is_heard_and_then_wipes_the_old_one() {
        #[allow(clippy::disallowed_methods, reason = "a test brings the clock")]
        let now = Instant::now();
        let (mut sessions, mut number) = (Sessions::new(session(1, now), 0), 0);
        assert!(
            sessions.on_opened(1, 5) && !sessions.on_opened(1, 6),
            "the first time only"
        );
        sessions.offer(session(2, now), 10);
        assert_eq!(sealing(&mut sessions, &mut number, now), 1);
        assert!(!sessions.on_opened(1, 20), "the old one goes on");
        assert_eq!(
            (
                sessions.deadline(),
                sessions.since(),
                sessions.sealing_since()
            ),
            (None, 10, 0)
        );
        assert!(sessions.on_opened(2, 50));
        assert_eq!(sealing(&mut sessions, &mut number, now), 2);
        assert!(sessions.find(1).is_some(), "what was on its way is read");
        assert_eq!(sessions.deadline(), Some(50));
        assert!(
            !sessions.on_opened(2, 70),
            "more of the same wins the old one no time"
        );
        sessions.handle_timeout(50);
        assert_eq!(
            (
                open(&sessions),
                sessions.deadline(),
                sessions.sealing_since()
            ),
            (vec![2], None, 10)
        );
        assert_eq!(sealing(&mut sessions, &mut number, now), 2);
    }

    #[test]
    fn who_answered_seals_at_once_and_reads_the_old_session_until_the_new_one_is_heard() {
        #[allow(clippy::disallowed_methods, reason = "a test brings the clock")]
        let now = Instant::now();
        let (mut sessions, mut number) = (Sessions::new(session(1, now), 0), 0);
        sessions.adopt(session(2, now), 10);
        assert_eq!(sealing(&mut sessions, &mut number, now), 2);
        assert!(
            sessions.on_opened(1, 30),
            "even if it is heard for the first time now"
        );
        assert_eq!(sealing(&mut sessions, &mut number, now), 2);
        sessions.handle_timeout(u64::MAX);
        assert_eq!(open(&sessions), [1, 2], "however long that takes");
        sessions.on_opened(2, 100);
        sessions.handle_timeout(100);
        assert_eq!(open(&sessions), [2]);
    }

    #[test]
    fn sessions_that_are_never_heard_push_each_other_out_but_not_the_one_that_seals() {
        #[allow(clippy::disallowed_methods, reason = "a test brings the clock")]
        let now = Instant::now();
        let (mut sessions, mut number) = (Sessions::new(session(1, now), 0), 0);
        for index in 2..=9 {
            sessions.offer(session(index, now), 0);
            assert!(open(&sessions).len() <= OPEN);
            assert_eq!(sealing(&mut sessions, &mut number, now), 1);
        }
        assert_eq!(open(&sessions), [1, 7, 8, 9]);
        sessions.on_opened(8, 5);
        assert_eq!(sealing(&mut sessions, &mut number, now), 8);
        sessions.handle_timeout(5);
        assert_eq!(open(&sessions), [8, 9]);
        assert_eq!(sealing(&mut sessions, &mut number, now), 8);
    }
}
