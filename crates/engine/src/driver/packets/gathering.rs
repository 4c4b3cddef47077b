//! Whether a small packet is worth waiting with, and which flows wait. A part of
//! `PacketFlows`, which asks for each packet that is sent.

use std::time::Instant;

use crate::{
    FlowId,
    config::{GATHER, GATHER_MEMORY},
};

/// Small packets of a fast sender wait for one another for at most [`GATHER`], so that several
/// share the headers of one datagram.
#[derive(Debug, Default)]
pub(super) struct Gathering {
    flows: Vec<FlowId>,
    bytes: usize,
    until: Option<Instant>,
    /// Bytes of small packets of late: what they are, less what [`GATHER_MEMORY`] has forgotten of
    /// them.
    recent: f64,
    at: Option<Instant>,
}

impl Gathering {
    /// Counts a packet of `bytes`. Says whether it is worth waiting with: as many come as fill half
    /// a segment within the time that it may wait.
    pub(super) fn count(&mut self, bytes: usize, segment: usize, now: Instant) -> bool {
        let passed = self.at.map_or(GATHER_MEMORY, |at| {
            now.saturating_duration_since(at).min(GATHER_MEMORY)
        });
        self.at = Some(now);
        self.recent *= 1.0 - passed.as_secs_f64() / GATHER_MEMORY.as_secs_f64();
        self.recent += bytes as f64;
        let soon = self.recent * GATHER.as_secs_f64() / GATHER_MEMORY.as_secs_f64();
        2 * bytes <= segment && 2.0 * soon >= segment as f64
    }

    /// A packet of a flow waits for others. Says whether they must go: they fill a segment, or have
    /// waited long enough.
    pub(super) fn add(&mut self, flow: FlowId, bytes: usize, segment: usize, now: Instant) -> bool {
        self.flows.push(flow);
        self.bytes += bytes;
        let full = self.bytes + bytes > segment;
        let until = *self.until.get_or_insert(now + GATHER);
        full || until <= now
    }

    /// When they have waited long enough.
    pub(super) fn until(&self) -> Option<Instant> {
        self.until
    }

    /// The flows whose packets wait no longer: all of them.
    pub(super) fn take(&mut self) -> impl Iterator<Item = FlowId> {
        (self.bytes, self.until) = (0, None);
        self.flows.drain(..)
    }

    /// No flow lives. What packets came of late is still known.
    pub(super) fn forget(&mut self) {
        self.flows = Vec::new();
    }
}
