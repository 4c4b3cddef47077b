//! What a peer has brought for another one: handed to that peer's lane in the form in which it
//! crossed, where a rule says `transit`.

use std::collections::BTreeMap;
use std::sync::Arc;

use tpo_engine::PacketKey;

use super::form;
use crate::lanes::batch::{Onward, Ruled};
use crate::lanes::transit::Transit;
use crate::table::peers::PeerId;

/// Bytes of a batch from which on it goes on at once: the other lane keeps all of it while one of
/// its packets waits.
const MOST_BYTES: usize = 256 << 10;

/// What goes on in this turn of the lane.
pub(super) struct PassingOn {
    transit: Arc<Transit>,
    batches: BTreeMap<PeerId, Onward>,
    /// Packets that were lost because too much waits.
    lost: u64,
}

impl PassingOn {
    pub(super) fn new(transit: Arc<Transit>) -> PassingOn {
        PassingOn {
            transit,
            batches: BTreeMap::new(),
            lost: 0,
        }
    }

    /// Adds a packet of the flow `key` seen from its source. Each TPO is a hop: false when the
    /// packet may go no further.
    pub(super) fn push(
        &mut self,
        to: PeerId,
        key: PacketKey,
        ruled: Option<Ruled>,
        bytes: &[u8],
    ) -> bool {
        let batch = self.batches.entry(to).or_default();
        let goes_on = form::take_hop(batch.push(key, ruled, bytes));
        if !goes_on {
            batch.take_back();
        } else if batch.bytes.len() >= MOST_BYTES {
            let full = std::mem::take(batch);
            self.give(to, full);
        }
        goes_on
    }

    /// Hands everything over. Gives how many packets are lost because too much waits.
    pub(super) fn hand_over(&mut self) -> u64 {
        for (to, batch) in std::mem::take(&mut self.batches) {
            self.give(to, batch);
        }
        std::mem::take(&mut self.lost)
    }

    fn give(&mut self, to: PeerId, batch: Onward) {
        let packets = batch.items.len() as u64;
        let lane = self.transit.lane(to);
        if packets > 0 && !lane.is_some_and(|lane| lane.pass_on(batch)) {
            self.lost += packets;
        }
    }
}
