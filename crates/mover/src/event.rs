//! What the mover tells its caller of the connection.

use std::collections::VecDeque;

/// What happened to the connection.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Event {
    /// The handshake is done.
    Connected {
        /// The peer is a new instance (or the first one): no flow of before lives on.
        fresh: bool,
        /// The peer's word for flows: initial credit in bytes.
        initial_credit: u32,
        /// The largest payload that both sides accept.
        max_payload: usize,
    },
    /// Nothing was heard for `silent_after`. Flows live on.
    Silent,
    /// The peer is heard again.
    Heard,
    /// The peer that we knew is gone and a new instance is there: comes before its `Connected`.
    /// What was in flight is lost.
    Restarted,
    /// The peer is gone; flows must be reset. The mover goes on trying to connect if it knows
    /// where.
    Dead(Reason),
}

/// Why the peer counts as gone.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Reason {
    /// Nothing was heard for `dead_after`.
    Silence,
    /// Nobody listens at its port.
    Refused,
    /// It said goodbye.
    Closed,
    /// It said what cannot be: see [`Mover::give_up`](crate::Mover::give_up).
    Broken,
}

/// Events that wait to be fetched.
pub(crate) struct Events {
    waiting: VecDeque<Event>,
    /// How many may wait.
    most: usize,
    lost: u64,
}

impl Events {
    pub(crate) fn new(most: usize) -> Events {
        Events {
            waiting: VecDeque::new(),
            most,
            lost: 0,
        }
    }

    /// The oldest goes if nobody has fetched it.
    pub(crate) fn push(&mut self, event: Event) {
        if self.waiting.len() >= self.most {
            self.lost += 1;
            self.waiting.pop_front();
        }
        self.waiting.push_back(event);
    }

    /// The oldest.
    pub(crate) fn poll(&mut self) -> Option<Event> {
        self.waiting.pop_front()
    }

    /// Events that nobody fetched in time.
    pub(crate) fn lost(&self) -> u64 {
        self.lost
    }

    pub(crate) fn check_invariants(&self) {
        assert!(self.waiting.len() <= self.most);
    }
}
