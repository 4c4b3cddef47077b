//! What a lane's edge knows of the flows of packets beyond what their owner, the lane's engine,
//! does: who on the near side began one, and where one goes on.
//!
//! One entry for each flow, found by the engine's number of it. It lives from the turn in which the
//! engine opens the flow to the engine's event that the flow is over, and so does what it says in
//! the index over all lanes ([`super::owners`]).

use std::collections::HashMap;
use std::sync::Arc;

use tpo_engine::{FlowId, PacketKey};

use super::multicast::groups::membership_key;
use super::owners::{FlowOwners, shed};
use crate::edge::exit::Exit;
use crate::lanes::batch::Ruled;
use crate::table::peers::PeerId;

/// Where a flow of the peer goes on.
#[derive(Clone, Copy, Debug)]
pub(super) struct Onwards {
    pub(super) peer: PeerId,
    /// By which rule.
    pub(super) ruled: Ruled,
}

/// A flow that the engine has.
#[derive(Debug)]
struct Flow {
    key: PacketKey,
    began: Began,
}

/// Where a flow began.
#[derive(Debug)]
enum Began {
    /// The peer has opened it.
    There {
        /// To another peer; none: to the kernel.
        onwards: Option<Onwards>,
    },
    /// Our LAN has opened it. Known only where other peers might want it too.
    Here,
    /// Another peer has brought it for this one.
    Brought,
}

/// The flows of one lane.
pub(super) struct Flows {
    peer: PeerId,
    flows: HashMap<FlowId, Flow>,
    owners: Arc<FlowOwners>,
    /// With which of this host's changes of addresses the peer's flows were permitted.
    permitted_at: u64,
}

impl Flows {
    pub(super) fn new(peer: PeerId, owners: Arc<FlowOwners>) -> Flows {
        Flows {
            peer,
            flows: HashMap::new(),
            owners,
            permitted_at: 0,
        }
    }

    /// The peer has opened a flow. False when another peer owns it.
    pub(super) fn open_there(
        &mut self,
        flow: FlowId,
        key: PacketKey,
        onwards: Option<Onwards>,
    ) -> bool {
        // Every peer has a flow of this name.
        if key != membership_key() && !self.owners.insert(key, self.peer) {
            return false;
        }
        let began = Began::There { onwards };
        self.flows.insert(flow, Flow { key, began });
        true
    }

    /// A flow of our side began: nobody but this peer may take it for one of his.
    pub(super) fn open_here(&mut self, flow: FlowId, key: PacketKey) {
        if self.owners.notes_ours() {
            self.owners.insert_ours(key, self.peer);
            let began = Began::Here;
            self.flows.entry(flow).or_insert(Flow { key, began });
        }
    }

    /// Another peer has brought packets of a flow that the engine has.
    pub(super) fn note_brought(&mut self, flow: FlowId, key: PacketKey) {
        let began = Began::Brought;
        self.flows.insert(flow, Flow { key, began });
    }

    /// Whether another peer has brought this flow.
    pub(super) fn is_brought(&self, flow: FlowId) -> bool {
        let flow = self.flows.get(&flow);
        flow.is_some_and(|flow| matches!(flow.began, Began::Brought))
    }

    /// Where this flow of the peer goes on.
    pub(super) fn onwards(&self, flow: FlowId) -> Option<Onwards> {
        match self.flows.get(&flow)?.began {
            Began::There { onwards } => onwards,
            Began::Here | Began::Brought => None,
        }
    }

    /// The other peer that has brought what this is an answer to.
    pub(super) fn asker(&self, key: &PacketKey) -> Option<PeerId> {
        self.owners.by(key).filter(|by| *by != self.peer)
    }

    /// The engine says that a flow is over, of whatever kind. `living`: the flow that it has with
    /// this key now, which may have followed in the same turn.
    pub(super) fn end(&mut self, flow: FlowId, living: impl FnOnce(&PacketKey) -> Option<FlowId>) {
        let Some(Flow { key, began }) = self.flows.remove(&flow) else {
            return;
        };
        shed(&mut self.flows);
        let heir = living(&key).and_then(|heir| self.flows.get(&heir));
        let is_there = |began: &Began| matches!(began, Began::There { .. });
        if heir.is_some_and(|heir| heir.key == key && is_there(&heir.began) == is_there(&began)) {
            return;
        }
        match began {
            Began::There { .. } => self.owners.remove(&key, self.peer),
            Began::Here | Began::Brought => self.owners.remove_ours(&key, self.peer),
        }
    }

    /// Flows of the peer that are not permitted any more since an address has become this host's
    /// own, or is so no longer.
    pub(super) fn banned(&mut self, exit: &Exit) -> Vec<FlowId> {
        let changes = exit.changes();
        if std::mem::replace(&mut self.permitted_at, changes) == changes {
            return Vec::new();
        }
        let is_banned = |flow: &Flow| {
            matches!(flow.began, Began::There { .. })
                && flow.key != membership_key()
                && !exit.permits(&flow.key)
        };
        let flows = self.flows.iter().filter(|(_, flow)| is_banned(flow));
        flows.map(|(flow, _)| *flow).collect()
    }

    /// Whether the peer is heard: only then its flows are nobody else's.
    pub(super) fn set_heard(&self, heard: bool) {
        self.owners.set_heard(self.peer, heard);
    }
}

#[cfg(test)]
mod tests {
    use std::mem::size_of;

    use tpo_engine::Config;

    use super::*;
    use crate::table::protocols::UDP;

    /// What the tables hold of one flow is charged: whatever kind of flow it is, in tables that
    /// have just grown, of which seven sixteenths are in use then (and a byte of control for each
    /// place).
    #[test]
    fn what_the_edge_remembers_of_a_flow_is_in_its_price() {
        let place = |bytes: usize| (bytes + 1) * 16 / 7;
        let owner = place(size_of::<(PacketKey, PeerId)>());
        let bytes = place(size_of::<(FlowId, Flow)>()) + owner;
        assert!(bytes <= Config::EDGE_COST, "{bytes}");
    }

    #[test]
    fn nothing_stays_of_flows_that_are_over() {
        const FLOWS: u32 = 20_000;
        let (us, other) = (PeerId::new(0), PeerId::new(1));
        let owners = Arc::new(FlowOwners::new(2));
        owners.set_heard(us, true);
        let mut flows = Flows::new(us, owners.clone());
        let key = |number: u32| {
            let from =
                std::net::SocketAddr::from((std::net::Ipv4Addr::from(0x0a01_0000 + number), 4_000));
            PacketKey::new(UDP, from, "10.2.2.2:53".parse().unwrap()).unwrap()
        };
        for number in 0..FLOWS {
            flows.note_brought(FlowId(number), key(number));
            flows.open_here(FlowId(number), key(number));
        }
        assert_eq!(flows.flows.len(), FLOWS as usize);
        assert!(flows.is_brought(FlowId(7)) && !flows.is_brought(FlowId(FLOWS)));
        assert!(!owners.insert(key(7).turned(), other), "it is ours");
        for number in 0..FLOWS {
            flows.end(FlowId(number), |_| None);
        }
        assert_eq!(flows.flows.len(), 0);
        assert!(
            flows.flows.capacity() <= 8_192,
            "{}",
            flows.flows.capacity()
        );
        assert!(owners.insert(key(7).turned(), other), "it is over");
    }
    /// A flow that the far side refused is tried again under another number, and the end of the
    /// first one is told after that.
    #[test]
    fn a_flow_that_follows_keeps_its_owner() {
        let (us, other) = (PeerId::new(0), PeerId::new(1));
        let owners = Arc::new(FlowOwners::new(2));
        owners.set_heard(us, true);
        let mut flows = Flows::new(us, owners.clone());
        let ends = (
            "10.1.1.1:4000".parse().unwrap(),
            "10.2.2.2:53".parse().unwrap(),
        );
        let key = PacketKey::new(UDP, ends.0, ends.1).unwrap();
        flows.open_here(FlowId(1), key);
        flows.open_here(FlowId(2), key);
        flows.end(FlowId(1), |_| Some(FlowId(2)));
        assert!(!owners.insert(key.turned(), other));
        flows.end(FlowId(2), |_| None);
        assert!(owners.insert(key.turned(), other));
    }
}
