//! One stream: who it is, how far its life has come, and its two directions.
//!
//! A stream's life: opened (here, or by a full-form message from there) → answered or accepted →
//! each direction ends on its own with a FIN → closed when both have ended and everything was
//! delivered; or reset at any time. The directions are small machines: [`Outgoing`] knows what may
//! be sent, [`Incoming`] puts arriving data in order, [`Window`] decides how much the far side may
//! send. The driver's streams own it, and route between it, the schedule and the control messages.

use std::time::Instant;

use super::{
    behaviour::Behaviour,
    incoming::Incoming,
    info::{FlowInfo, FlowKind, StreamInfo},
    outgoing::Outgoing,
    window::Window,
};
use crate::{
    Class, CompressionStats, FlowId, Status, StreamKey, Treatment, compress::record::Record,
    schedule::Slot,
};

/// A reset from the far side that waits until the data before it has been delivered.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Ending {
    /// Offset up to which the far side has sent data.
    pub(crate) at: u64,
    pub(crate) status: Status,
}

/// Which side has opened the stream, and how far its opening has come.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Opening {
    /// The near side; its application is connected.
    Here {
        /// The first message was packed: the far side may know of the stream.
        packed: bool,
        /// The far side has said anything about the stream, so it knows the addresses.
        answered: bool,
    },
    /// The far side, which knows the addresses.
    There {
        /// The near application is connected.
        accepted: bool,
    },
}

/// What the edge was told of a stream, beside what it has asked for itself.
#[derive(Debug, Default)]
pub(crate) struct Notified {
    /// `Event::Deliver` was given, and not everything has been taken since.
    pub(crate) deliver: bool,
    /// `Event::Finish` was given.
    pub(crate) finish: bool,
}

/// What waits in the control queue for a stream.
#[derive(Debug, Default)]
pub(crate) struct Queued {
    pub(crate) credit: bool,
    pub(crate) pause: bool,
    /// The near application has ended its direction after the far one: the far side shall know
    /// soon.
    pub(crate) end: bool,
}

/// Everything kept for one stream. An idle one has no heap memory beside this.
#[derive(Debug)]
pub(crate) struct Stream {
    pub(crate) key: StreamKey,
    /// What its rule asks for.
    pub(crate) asked: Treatment,
    /// What its buffers did when compressed, since the first that held its messages alone.
    pub(crate) record: Option<Box<Record>>,
    /// How it is treated: what its rule asks for, or what its behaviour says.
    pub(crate) class: Class,
    behaviour: Behaviour,
    pub(crate) slot: Slot,
    /// In which list of `driver/largest.rs` it stands; 0: in none.
    pub(crate) listed: u8,
    pub(crate) opening: Opening,
    pub(crate) notified: Notified,
    pub(crate) queued: Queued,
    pub(crate) outgoing: Outgoing,
    pub(crate) incoming: Incoming,
    pub(crate) window: Window,
    pub(crate) ending: Option<Ending>,
    since: Instant,
    /// When data last came or went, or was taken.
    pub(crate) moved: Instant,
}

impl Stream {
    /// A stream whose `window` is granted to the far side, and that may send `credit` bytes before
    /// it hears from the far side.
    pub(crate) fn new(
        key: StreamKey,
        asked: Treatment,
        slot: Slot,
        opening: Opening,
        credit: u32,
        window: Window,
        now: Instant,
    ) -> Stream {
        Stream {
            key,
            asked,
            record: None,
            class: Behaviour::first_class(asked.class),
            behaviour: Behaviour::default(),
            slot,
            listed: 0,
            opening,
            notified: Notified::default(),
            queued: Queued::default(),
            outgoing: Outgoing::new(u64::from(credit)),
            incoming: Incoming::default(),
            window,
            ending: None,
            since: now,
            moved: now,
        }
    }

    /// Opened by the near side.
    pub(crate) fn is_ours(&self) -> bool {
        matches!(self.opening, Opening::Here { .. })
    }

    /// Whether the far side knows the addresses.
    pub(crate) fn is_answered(&self) -> bool {
        match self.opening {
            Opening::Here { answered, .. } => answered,
            Opening::There { .. } => true,
        }
    }

    /// Whether the near application is connected.
    pub(crate) fn is_accepted(&self) -> bool {
        match self.opening {
            Opening::Here { .. } => true,
            Opening::There { accepted } => accepted,
        }
    }

    /// Whether the far side has yet to learn of the stream.
    pub(crate) fn must_open(&self) -> bool {
        matches!(self.opening, Opening::Here { packed: false, .. })
    }

    /// A message that bears the stream's addresses, or any later one, was packed.
    pub(crate) fn on_packed(&mut self) {
        if let Opening::Here { packed, .. } = &mut self.opening {
            *packed = true;
        }
    }

    /// When a stream that waits for its first bytes is opened without them.
    pub(crate) fn opens_at(&self) -> Instant {
        self.since + crate::config::OPENING
    }

    /// `bytes` were packed for the far side, or none and the application has something again. True
    /// if the stream is of another class from now on. `sparse`: bytes of late up to which somebody
    /// waits for it.
    pub(crate) fn reclassify(&mut self, bytes: usize, sparse: u32, now: Instant) -> bool {
        let life = now.saturating_duration_since(self.since);
        let class = self
            .behaviour
            .classify(self.asked.class, bytes, sparse, life);
        std::mem::replace(&mut self.class, class) != class
    }

    /// The application has nothing more to send now.
    pub(crate) fn on_idle(&mut self, now: Instant) {
        self.behaviour
            .on_idle(now.saturating_duration_since(self.since));
    }

    /// Whether its application may be read: it is connected, has not ended, and nobody has reset
    /// the stream.
    pub(crate) fn may_send(&self) -> bool {
        self.is_accepted() && self.ending.is_none() && !self.queued.end && !self.outgoing.fin()
    }

    /// The stream as shown to people.
    pub(crate) fn info(&self, flow: FlowId) -> FlowInfo {
        FlowInfo {
            flow,
            key: *self.key,
            class: self.class,
            opened_here: self.is_ours(),
            connected: self.is_accepted() && self.is_answered(),
            bytes_out: self.outgoing.next(),
            bytes_in: self.incoming.next(),
            held_bytes: self.incoming.held(),
            compression: self
                .record
                .as_ref()
                .map_or_else(CompressionStats::default, |record| record.compression),
            since: self.since,
            moved: self.moved,
            kind: FlowKind::Stream(StreamInfo {
                finished_out: self.outgoing.fin(),
                finished_in: self.notified.finish,
                credit_left: self.outgoing.credit_left(),
                window_bytes: self.window.size(),
            }),
        }
    }

    /// As if `offset` bytes had crossed each way.
    #[cfg(test)]
    pub(crate) fn start_at(&mut self, offset: u64) {
        self.outgoing.start_at(offset);
        self.incoming.start_at(offset);
        self.window.start_at(offset);
    }

    pub(crate) fn check_invariants(&self) {
        self.outgoing.check_invariants();
        self.incoming.check_invariants();
        assert!(
            self.incoming.end() <= self.window.granted(),
            "data was taken beyond the credit"
        );
        assert!(
            self.notified.deliver <= (self.incoming.deliverable_bytes() > 0),
            "told of data that is not there"
        );
        assert!(
            self.is_accepted() || self.incoming.delivered() == 0,
            "delivered before it was accepted"
        );
        if self.is_accepted() && self.incoming.deliverable_bytes() > 0 {
            assert!(
                self.notified.deliver,
                "data waits that the edge was not told of"
            );
        }
        if self.is_accepted() && self.incoming.finished() {
            assert!(self.notified.finish, "the end was not told");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_idle_flow_is_small() {
        let bytes = size_of::<Stream>() + Slot::COST + 2 * size_of::<(FlowId, Box<Stream>)>();
        assert!(bytes <= 328, "{bytes} bytes for an idle flow");
    }
}
