//! The keys in use: the newest established session seals, the one before still opens for a while.

use std::time::Instant;

use crate::crypto::Session;
use crate::timer::Nanos;

/// The two sessions of a connection.
pub(crate) struct Sessions {
    current: Session,
    /// An authenticated datagram of the current session has come.
    confirmed: bool,
    previous: Option<(Session, Nanos)>,
}

impl Sessions {
    pub(crate) fn new(session: Session) -> Sessions {
        Sessions { current: session, confirmed: false, previous: None }
    }

    /// A new handshake between the same two instances is done. The old session goes on opening until `until`.
    pub(crate) fn replace(&mut self, session: Session, until: Nanos) {
        let old = std::mem::replace(&mut self.current, session);
        self.previous = Some((old, until));
        self.confirmed = false;
    }

    /// The session that a datagram with this index is sealed for.
    pub(crate) fn find(&mut self, index: u32) -> Option<&mut Session> {
        if self.current.local_index() == index {
            return Some(&mut self.current);
        }
        self.previous.as_mut().map(|(session, _)| session).filter(|session| session.local_index() == index)
    }

    /// The local indices, the current one first.
    pub(crate) fn indices(&self) -> impl Iterator<Item = u32> + use<> {
        let previous = self.previous.as_ref().map(|(session, _)| session.local_index());
        std::iter::once(self.current.local_index()).chain(previous)
    }

    /// A datagram with this index opened. True the first time that the current session is heard.
    pub(crate) fn on_opened(&mut self, index: u32) -> bool {
        let first = !self.confirmed && self.current.local_index() == index;
        self.confirmed |= first;
        first
    }

    pub(crate) fn seal(&mut self, number: u64, datagram: &mut [u8], now: Instant) {
        self.current.seal(number, datagram, now);
    }

    /// When the previous session's keys are to be thrown away.
    pub(crate) fn deadline(&self) -> Option<Nanos> {
        self.previous.as_ref().map(|(_, until)| *until)
    }

    pub(crate) fn handle_timeout(&mut self, now: Nanos) {
        if self.deadline().is_some_and(|until| until <= now) {
            self.previous = None;
        }
    }
}
