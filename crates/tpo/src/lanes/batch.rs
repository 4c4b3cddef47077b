//! Packets on their way to a lane: from the TUN reader, or from the lane of another peer.

use std::ops::Range;

use tpo_engine::{Delivery, PacketKey, Treatment};

use crate::ip::Parsed;

/// Bytes of packets that may wait for a lane: some milliseconds of what it can carry at all. What
/// comes then is lost, as in any full queue.
pub const WAITING_BYTES: usize = 8 << 20;

/// What a rule says of a packet.
#[derive(Clone, Copy, Debug)]
pub struct Ruled {
    /// How the rule wants it to be treated.
    pub treatment: Treatment,
    /// How it is carried.
    pub delivery: Delivery,
    /// It takes its plain way when the peer cannot have it.
    pub fails_open: bool,
}

/// One packet of a batch.
#[derive(Debug)]
pub struct Item {
    /// What it is.
    pub seen: Parsed,
    /// By which rule it may open a flow; none: it belongs to one that lives, or to nobody.
    pub ruled: Option<Ruled>,
    /// Its bytes in the batch.
    pub bytes: Range<usize>,
}

/// Packets for one lane.
#[derive(Debug, Default)]
pub struct Batch {
    /// All bytes.
    pub bytes: Vec<u8>,
    /// The packets.
    pub items: Vec<Item>,
}

impl Batch {
    /// Adds a packet.
    pub fn push(&mut self, seen: Parsed, ruled: Option<Ruled>, packet: &[u8]) {
        let from = self.bytes.len();
        self.bytes.extend_from_slice(packet);
        self.items.push(Item {
            seen,
            ruled,
            bytes: from..self.bytes.len(),
        });
    }
}

/// Packets on their way from one lane to another, in the form in which they cross the WAN.
#[derive(Debug, Default)]
pub struct Onward {
    /// All bytes.
    pub bytes: Vec<u8>,
    /// Of which flow each is, seen from its source, by which rule it may open it there, and its
    /// bytes.
    pub items: Vec<(PacketKey, Option<Ruled>, Range<usize>)>,
}

impl Onward {
    /// Adds one; gives its bytes to be changed.
    pub fn push(&mut self, key: PacketKey, ruled: Option<Ruled>, bytes: &[u8]) {
        let from = self.bytes.len();
        self.bytes.extend_from_slice(bytes);
        self.items.push((key, ruled, from..self.bytes.len()));
    }

    /// Takes the last one back, which began there.
    pub fn take_back(&mut self, from: usize) {
        self.bytes.truncate(from);
        self.items.pop();
    }
}
