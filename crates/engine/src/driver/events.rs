//! What the edges and the program have yet to be told, in order.

use std::collections::VecDeque;

use crate::{
    Event,
    config::{MOST_EVENTS, QUEUE_ROOM},
};

/// The events that wait to be polled.
#[derive(Debug, Default)]
pub(crate) struct Events {
    queue: VecDeque<Event>,
}

impl Events {
    pub(crate) fn push(&mut self, event: Event) {
        self.queue.push_back(event);
    }

    pub(crate) fn poll(&mut self) -> Option<Event> {
        let event = self.queue.pop_front();
        if self.queue.is_empty() && self.queue.capacity() > QUEUE_ROOM {
            self.queue = VecDeque::new();
        }
        event
    }

    /// Whether [`MOST_EVENTS`] wait: no more payloads are taken apart before they are polled.
    pub(crate) fn is_full(&self) -> bool {
        self.queue.len() >= MOST_EVENTS
    }

    /// Bytes of places beyond those that each peer has.
    pub(crate) fn held(&self) -> usize {
        self.queue.capacity().saturating_sub(QUEUE_ROOM) * size_of::<Event>()
    }
}
