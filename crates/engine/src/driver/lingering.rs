//! Streams that the far side has reset and whose data is still being delivered. Each is looked
//! after some time later: if its application has taken nothing meanwhile, it ends.

use std::{collections::VecDeque, time::Instant};

use crate::{
    FlowId,
    config::{QUEUE_ROOM, RESET_LINGER},
};

/// Entries of streams that have ended which may always stay: 64. Below that the list is not
/// swept.
const SLACK: usize = 64;

/// A stream to look after.
#[derive(Debug)]
pub(super) struct Lingering {
    until: Instant,
    pub(super) flow: FlowId,
    /// What had been delivered when this was noted.
    pub(super) delivered: u64,
}

/// All of them, in the order of their times.
#[derive(Debug, Default)]
pub(super) struct LingeringStreams {
    queue: VecDeque<Lingering>,
}

impl LingeringStreams {
    /// A stream is to be looked after from now on; `delivered` bytes of it have been taken.
    pub(super) fn push(&mut self, flow: FlowId, delivered: u64, now: Instant) {
        self.queue.push_back(Lingering {
            until: now + RESET_LINGER,
            flow,
            delivered,
        });
    }

    /// When the first one is to be looked after.
    pub(super) fn until(&self) -> Option<Instant> {
        self.queue.front().map(|first| first.until)
    }

    /// A stream whose time has come.
    pub(super) fn poll(&mut self, now: Instant) -> Option<Lingering> {
        if self.until()? > now {
            return None;
        }
        self.queue.pop_front()
    }

    /// Takes out those that have ended meanwhile, when they are most: the list stays as short as
    /// the streams are few. Returns the steps.
    pub(super) fn trim(&mut self, streams: usize, lives: impl Fn(FlowId) -> bool) -> u64 {
        if self.queue.len() <= 2 * streams + SLACK {
            return 0;
        }
        let steps = self.queue.len() as u64;
        self.queue.retain(|lingering| lives(lingering.flow));
        steps
    }

    /// No stream lives any more.
    pub(super) fn forget(&mut self) {
        self.queue = VecDeque::new();
    }

    /// Bytes of places beyond those that each peer has.
    pub(super) fn held(&self) -> usize {
        self.queue.capacity().saturating_sub(QUEUE_ROOM) * size_of::<Lingering>()
    }
}
