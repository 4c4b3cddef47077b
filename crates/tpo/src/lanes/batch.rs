//! Packets on their way to a lane: from the TUN reader, or from the lane of another peer.

use std::ops::Range;
use std::sync::Arc;

use tpo_engine::{Delivery, PacketKey, Treatment};

use crate::ip::Parsed;

/// Bytes of packets that may wait for a lane: some milliseconds of what it can carry at all. What
/// comes beyond takes its plain way, or is dropped for a closed rule.
pub(crate) const WAITING_BYTES: usize = 8 << 20;

/// What a rule says of a packet.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Ruled {
    /// How the rule wants it to be treated.
    pub(crate) treatment: Treatment,
    /// How it is carried.
    pub(crate) delivery: Delivery,
    /// It takes its plain way when the peer cannot have it.
    pub(crate) fails_open: bool,
}

impl Ruled {
    /// The same for what a peer has brought, whose own rule asks for this.
    pub(crate) fn after(self, asked: &Treatment) -> Ruled {
        Ruled {
            treatment: self.treatment.after(asked),
            ..self
        }
    }
}

/// One packet of a batch.
#[derive(Debug)]
pub(crate) struct Item {
    /// What it is.
    pub(crate) parsed: Parsed,
    /// By which rule it may open a flow; none: it belongs to one that lives, or to nobody.
    pub(crate) ruled: Option<Ruled>,
    /// Where in the block of the batch it is.
    pub(crate) place: Range<usize>,
}

/// Packets for one lane.
#[derive(Debug)]
pub(crate) struct Batch {
    /// The memory that the TUN reader has read into. Other lanes may have packets in it too.
    pub(crate) block: Arc<Vec<u8>>,
    /// The packets.
    pub(crate) items: Vec<Item>,
}

impl Batch {
    /// These packets of a block.
    pub(crate) fn new(block: Arc<Vec<u8>>, items: Vec<Item>) -> Batch {
        Batch { block, items }
    }

    /// Copies these packets of a block together; they lie in the copy from then on.
    pub(crate) fn copy_out(block: &[u8], items: &mut [Item]) -> Vec<u8> {
        let bytes = items.iter().map(|item| item.place.len()).sum();
        let mut copy = Vec::with_capacity(bytes);
        for item in items {
            let from = copy.len();
            copy.extend_from_slice(&block[item.place.clone()]);
            item.place = from..copy.len();
        }
        copy
    }

    /// The bytes of one of its packets.
    pub(crate) fn packet(&self, item: &Item) -> &[u8] {
        &self.block[item.place.clone()]
    }

    /// Bytes of all its packets.
    pub(crate) fn bytes(&self) -> usize {
        self.items.iter().map(|item| item.place.len()).sum()
    }
}

/// One packet that goes on from a peer to another.
#[derive(Debug)]
pub(crate) struct OnwardItem {
    /// Its flow, seen from its source.
    pub(crate) key: PacketKey,
    /// By which rule it may open the flow at the other peer.
    pub(crate) ruled: Option<Ruled>,
    /// Where it is.
    pub(crate) place: Range<usize>,
}

/// Packets on their way from one lane to another, in the form in which they cross the WAN.
#[derive(Debug, Default)]
pub(crate) struct Onward {
    /// All bytes.
    pub(crate) bytes: Vec<u8>,
    /// The packets.
    pub(crate) items: Vec<OnwardItem>,
}

impl Onward {
    /// Adds a packet; gives its bytes to be changed.
    pub(crate) fn push(&mut self, key: PacketKey, ruled: Option<Ruled>, bytes: &[u8]) -> &mut [u8] {
        let from = self.bytes.len();
        self.bytes.extend_from_slice(bytes);
        let place = from..self.bytes.len();
        self.items.push(OnwardItem { key, ruled, place });
        &mut self.bytes[from..]
    }

    /// Takes the last packet back.
    pub(crate) fn take_back(&mut self) {
        if let Some(last) = self.items.pop() {
            self.bytes.truncate(last.place.start);
        }
    }
}
