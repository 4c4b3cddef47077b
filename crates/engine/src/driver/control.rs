//! Messages that go before all data: what waits for the link, and what waits a moment for company.
//!
//! Streams, flows of packets and compression push; the driver packs them at the head of each
//! buffer. That a flow was accepted, that it has its second end, or that it is there at all before
//! its first bytes are, is a *notice*: the far side need not hear of it at once, since the first
//! bytes say the first and the last, and any buffer takes all of them along. Notices wait in a list
//! of their own, for [`NOTICE`] at most.

use std::{collections::VecDeque, time::Instant};

use crate::{
    FlowId, Limits, Status,
    compress::format::Proposal,
    config::{CONTROL_SLACK, MAX_REFUSALS, MOST_ANSWERS, NOTICE, QUEUE_ROOM},
};

/// A message that goes before all data.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Control {
    Accepted(FlowId),
    /// The amount is filled in when it is packed.
    Credit(FlowId),
    /// Likewise; nothing if the pause is over by then.
    Pause(FlowId),
    /// Of a stream that the far side has ended before.
    End(FlowId),
    /// The flow is gone already: this is all that is left of it.
    Reset(Reset),
    Dictionary(Proposal),
    /// Whether the dictionary of this generation is there.
    Holds(u8, bool),
}

/// A flow has ended in both directions.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Reset {
    pub(crate) flow: FlowId,
    /// Low bits of the offset up to which data was sent before.
    pub(crate) sequence: u32,
    pub(crate) protocol: u8,
    pub(crate) status: Status,
}

impl Control {
    /// Somebody waits for it. Not for second ends, and not for dictionaries: what would be
    /// protected by parity, and kept short for it, is the data beside them.
    pub(crate) fn is_urgent(&self) -> bool {
        !matches!(
            self,
            Control::Dictionary(_) | Control::Holds(..) | Control::End(_)
        )
    }

    /// The flow without which the message means nothing.
    fn flow(&self) -> Option<FlowId> {
        match self {
            Control::Accepted(flow)
            | Control::Credit(flow)
            | Control::Pause(flow)
            | Control::End(flow) => Some(*flow),
            Control::Reset(_) | Control::Dictionary(_) | Control::Holds(..) => None,
        }
    }
}

/// How many messages of some kinds are in the queue.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Counts {
    resets: usize,
    /// Answers to proposals.
    answers: usize,
    /// Messages for which somebody waits.
    urgent: usize,
}

impl Counts {
    fn of(control: &Control) -> Counts {
        Counts {
            resets: usize::from(matches!(control, Control::Reset(_))),
            answers: usize::from(matches!(control, Control::Holds(..))),
            urgent: usize::from(control.is_urgent()),
        }
    }

    fn add(&mut self, control: &Control) {
        let one = Counts::of(control);
        self.resets += one.resets;
        self.answers += one.answers;
        self.urgent += one.urgent;
    }

    fn subtract(&mut self, control: &Control) {
        let one = Counts::of(control);
        self.resets -= one.resets;
        self.answers -= one.answers;
        self.urgent -= one.urgent;
    }
}

/// The queue of one peer.
#[derive(Debug, Default)]
pub(crate) struct ControlQueue {
    queue: VecDeque<Control>,
    counts: Counts,
    /// Flows with a notice, and until when the first of them waits.
    notices: Vec<FlowId>,
    until: Option<Instant>,
    /// Notices that found the list full: they go at once.
    overflow: Vec<FlowId>,
}

impl ControlQueue {
    pub(crate) fn is_empty(&self) -> bool {
        self.queue.is_empty()
    }

    /// Whether somebody waits for one of the messages.
    pub(crate) fn is_urgent(&self) -> bool {
        self.counts.urgent > 0
    }

    /// Resets in the queue.
    pub(crate) fn resets(&self) -> usize {
        self.counts.resets
    }

    pub(crate) fn push(&mut self, control: Control) {
        self.counts.add(&control);
        self.queue.push_back(control);
    }

    /// Tells the peer whether the dictionary of this generation is there. A sender asks for two at
    /// a time; who asks for many gets no answer. Returns whether it does.
    pub(crate) fn push_answer(&mut self, generation: u8, holds: bool) -> bool {
        let has_room = self.counts.answers < MOST_ANSWERS;
        if has_room {
            self.push(Control::Holds(generation, holds));
        }
        has_room
    }

    pub(crate) fn pop(&mut self) -> Option<Control> {
        let control = self.queue.pop_front()?;
        self.counts.subtract(&control);
        if self.queue.is_empty() && self.queue.capacity() > QUEUE_ROOM {
            self.queue = VecDeque::new();
        }
        Some(control)
    }

    /// Messages of flows that have ended meanwhile stay in the queue until it is packed, or until
    /// they are more than the others: then a walk takes them out. A living flow has at most one
    /// message of each kind, so the queue is bounded by the flows, the resets and the answers,
    /// which have their own bounds. What a walk leaves is at most three quarters of what the next
    /// one takes, so a message costs a few steps whatever the peer does. To be called after each
    /// message of the peer and each call of the edges. `flows`: how many live. Returns the steps.
    pub(crate) fn trim(&mut self, flows: usize, lives: impl Fn(FlowId) -> bool) -> u64 {
        if self.queue.len() <= 2 * (2 * flows + self.counts.resets) + CONTROL_SLACK {
            return 0;
        }
        let steps = self.queue.len() as u64;
        self.queue
            .retain(|control| control.flow().is_none_or(&lives));
        self.queue.shrink_to(2 * self.queue.len());
        self.counts = Counts::default();
        for control in &self.queue {
            self.counts.add(control);
        }
        steps
    }

    // --- notices
    // ---------------------------------------------------------------------------------------------

    pub(crate) fn has_notices(&self) -> bool {
        !self.notices.is_empty()
    }

    /// Whether another notice may wait.
    pub(crate) fn has_room_for_notices(&self) -> bool {
        self.notices.len() < CONTROL_SLACK
    }

    /// The far side shall hear of the flow with the next buffer: at this time at the latest, or
    /// within [`NOTICE`].
    pub(crate) fn notice(&mut self, flow: FlowId, until: Option<Instant>) {
        if !self.has_room_for_notices() {
            // The link takes nothing: the queue knows which of them have ended meanwhile.
            self.overflow.append(&mut self.notices);
            self.until = None;
        }
        self.notices.push(flow);
        self.until = self.until.into_iter().chain(until).min();
    }

    /// When the first notice must go.
    pub(crate) fn notices_until(&self) -> Option<Instant> {
        self.until
    }

    /// The notices, once they have waited long enough. The time begins to run with the first call
    /// after they came.
    pub(crate) fn poll_notices(&mut self, now: Instant) -> Option<Vec<FlowId>> {
        if self.notices.is_empty() || *self.until.get_or_insert(now + NOTICE) > now {
            return None;
        }
        Some(self.take_notices())
    }

    /// All notices, to be said with the next buffer.
    pub(crate) fn take_notices(&mut self) -> Vec<FlowId> {
        self.until = None;
        std::mem::take(&mut self.notices)
    }

    /// Notices that found no room.
    pub(crate) fn take_overflow(&mut self) -> Vec<FlowId> {
        std::mem::take(&mut self.overflow)
    }

    /// Nobody is there who would understand any of it.
    pub(crate) fn forget(&mut self) {
        *self = ControlQueue::default();
    }

    /// Bytes of places beyond those that each peer has.
    pub(crate) fn held(&self) -> usize {
        self.queue.capacity().saturating_sub(QUEUE_ROOM) * size_of::<Control>()
    }

    #[cfg(test)]
    pub(crate) fn len(&self) -> usize {
        self.queue.len()
    }

    pub(crate) fn check_invariants(&self, limits: &Limits) {
        let mut counts = Counts::default();
        self.queue.iter().for_each(|control| counts.add(control));
        assert_eq!(counts, self.counts);
        assert!(counts.answers <= MOST_ANSWERS);
        assert!(counts.resets <= limits.flows + MAX_REFUSALS);
        let flows = limits.flows + limits.packet_flows;
        assert!(self.queue.len() <= 2 * (2 * flows + counts.resets) + CONTROL_SLACK);
        assert!(self.notices.len() <= CONTROL_SLACK && self.overflow.is_empty());
    }
}
