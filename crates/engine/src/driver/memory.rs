//! What the flows of a peer hold, beside what they may.

use crate::{config::FREE_PART, flow::window::MemoryUse};

/// The account of a peer's flows, bytes. Streams and flows of packets charge it as they grow, each
/// its own part.
#[derive(Debug)]
pub(crate) struct Memory {
    /// What flows may hold: the smaller of the peer's limit and what the program allows at the
    /// moment.
    pub(crate) budget: usize,
    /// What streams cost: themselves, and what they hold.
    pub(crate) streams: usize,
    /// The same of flows of packets.
    pub(crate) packets: usize,
    /// The most that both have cost.
    max: usize,
}

impl Memory {
    pub(crate) fn new(budget: usize) -> Memory {
        Memory {
            budget,
            streams: 0,
            packets: 0,
            max: 0,
        }
    }

    /// What flows of both kinds cost: themselves, and what they hold.
    pub(crate) fn held(&self) -> usize {
        self.streams + self.packets
    }

    pub(crate) fn max(&self) -> usize {
        self.max
    }

    /// Something came in: the highest sum is noted.
    pub(crate) fn on_grown(&mut self) {
        self.max = self.max.max(self.held());
    }

    /// Whether more than the budget is held: no flow is opened any more.
    pub(crate) fn is_short(&self) -> bool {
        self.held() > self.budget
    }

    /// Whether more than [`hard_limit`] is held: the stream that holds most must go.
    pub(crate) fn is_exceeded(&self) -> bool {
        self.held() > hard_limit(self.budget)
    }

    /// How much is in use, for windows.
    pub(crate) fn in_use(&self) -> MemoryUse {
        match self.held() {
            held if held > self.budget => MemoryUse::Short,
            held if held >= self.budget / 2 => {
                MemoryUse::Filling(((self.budget - held) / FREE_PART) as u64)
            }
            _ => MemoryUse::Ample,
        }
    }
}

/// What all flows may hold before the one that holds most is reset: a quarter above the budget, so
/// that refusing new flows and shrinking credits have time to work.
pub(crate) fn hard_limit(budget: usize) -> usize {
    budget + budget / 4
}
