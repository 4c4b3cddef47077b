//! Which peer owns a flow of packets: an index over the engines of all lanes.
//!
//! The engine of the lane that carries a flow owns it. This index answers for the other threads who
//! that is: the TUN reader gives answers to that lane, and no other peer may open the flow. A lane
//! enters a flow in the turn in which its engine opens it, and takes it out in the turn in which
//! its engine says that it is over (`packets/flows.rs`).

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{PoisonError, RwLock};

use tpo_engine::PacketKey;

use crate::table::peers::{ByPeer, PeerId};

/// The room that a flood took is given back when few are left.
pub(super) fn shed<K: Eq + std::hash::Hash, V>(map: &mut HashMap<K, V>) {
    if is_roomy(map.capacity(), map.len()) {
        map.shrink_to(2 * map.len());
    }
}

/// Whether a table has far more room than it needs.
fn is_roomy(capacity: usize, length: usize) -> bool {
    const KEPT: usize = 4_096;
    capacity > KEPT.max(8 * length)
}

/// Which peer owns a flow.
#[derive(Debug)]
pub(crate) struct FlowOwners {
    owners: RwLock<Owners>,
    /// Of each peer: it is heard. One that is not keeps nobody from a flow.
    heard: ByPeer<AtomicBool>,
}

#[derive(Debug, Default)]
struct Owners {
    /// Flows that a peer has opened.
    theirs: HashMap<PacketKey, PeerId>,
    /// Flows of our side, as the opener sees them, and who carries them. Only where there are
    /// several peers.
    ours: HashMap<PacketKey, PeerId>,
}

impl FlowOwners {
    /// No flow of any of these peers yet.
    pub(crate) fn new(peers: usize) -> FlowOwners {
        FlowOwners {
            owners: RwLock::default(),
            heard: ByPeer::new(peers, |_| AtomicBool::new(false)),
        }
    }

    /// Whether a peer is heard.
    pub(crate) fn set_heard(&self, peer: PeerId, heard: bool) {
        self.heard[peer].store(heard, Ordering::SeqCst);
    }

    /// A peer opens a flow: its answers are that peer's from now on. False when they are another's
    /// already, because that one has opened the same flow, or carries ours of the other direction.
    pub(crate) fn insert(&self, key: PacketKey, peer: PeerId) -> bool {
        let mut owners = self.owners.write().unwrap_or_else(PoisonError::into_inner);
        let before = [owners.theirs.get(&key), owners.ours.get(&key.turned())];
        if before
            .into_iter()
            .flatten()
            .any(|owner| *owner != peer && self.heard[*owner].load(Ordering::SeqCst))
        {
            return false;
        }
        owners.theirs.insert(key, peer);
        true
    }

    /// It is over, unless another peer has opened the same since.
    pub(crate) fn remove(&self, key: &PacketKey, peer: PeerId) {
        remove(
            &mut self
                .owners
                .write()
                .unwrap_or_else(PoisonError::into_inner)
                .theirs,
            key,
            peer,
        );
    }

    /// Whether flows of our side are worth noting: with one peer alone nobody else could take them.
    pub(crate) fn notes_ours(&self) -> bool {
        self.heard.len() > 1
    }

    /// A flow of our side is carried by this peer.
    pub(crate) fn insert_ours(&self, key: PacketKey, peer: PeerId) {
        self.owners
            .write()
            .unwrap_or_else(PoisonError::into_inner)
            .ours
            .insert(key, peer);
    }

    /// It is over, unless another peer carries it since.
    pub(crate) fn remove_ours(&self, key: &PacketKey, peer: PeerId) {
        remove(
            &mut self
                .owners
                .write()
                .unwrap_or_else(PoisonError::into_inner)
                .ours,
            key,
            peer,
        );
    }

    /// The peer that has opened exactly this flow.
    pub(crate) fn by(&self, key: &PacketKey) -> Option<PeerId> {
        self.owners
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .theirs
            .get(key)
            .copied()
    }
}

fn remove(map: &mut HashMap<PacketKey, PeerId>, key: &PacketKey, peer: PeerId) {
    if map.get(key) == Some(&peer) {
        map.remove(key);
        shed(map);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const A: PeerId = PeerId::new(0);
    const B: PeerId = PeerId::new(1);
    const C: PeerId = PeerId::new(2);

    fn key(source: &str, destination: &str) -> PacketKey {
        PacketKey::new(17, source.parse().unwrap(), destination.parse().unwrap()).unwrap()
    }

    /// Who opened a flow keeps it while it lives, and so does who carries one of ours; one that is
    /// silent keeps nothing.
    #[test]
    fn an_owner_is_not_replaced_while_it_is_heard() {
        let owners = FlowOwners::new(3);
        [A, B, C]
            .into_iter()
            .for_each(|peer| owners.set_heard(peer, true));
        let theirs = key("10.1.1.2:4000", "10.2.2.2:53");
        assert!(owners.insert(theirs, A) && owners.insert(theirs, A));
        assert!(!owners.insert(theirs, B));
        owners.remove(&theirs, B);
        assert_eq!(
            owners.by(&theirs),
            Some(A),
            "it is not the other one's to end"
        );
        owners.set_heard(A, false);
        assert!(owners.insert(theirs, B));
        owners.set_heard(A, true);
        owners.remove(&theirs, A);
        assert_eq!(
            (owners.by(&theirs), owners.insert(theirs, A)),
            (Some(B), false)
        );
        owners.remove(&theirs, B);
        assert!(owners.insert(theirs, A));
        // A flow of our side: its answers come from who carries it.
        let ours = key("10.2.2.2:5000", "10.1.1.2:53");
        owners.insert_ours(ours, C);
        assert!(!owners.insert(ours.turned(), B));
        assert!(owners.insert(ours.turned(), C));
        owners.remove(&ours.turned(), C);
        owners.remove_ours(&ours, B);
        assert!(!owners.insert(ours.turned(), B));
        owners.remove_ours(&ours, C);
        assert!(owners.insert(ours.turned(), B));
    }
}
