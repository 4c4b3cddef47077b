//! Whose a packet is: the peer that has opened its flow, else the carriers of its rule (claims 4 to
//! 6). The TUN reader asks for each packet; what it hears is true for that packet alone.

use std::sync::Arc;

use tpo_engine::{PacketKey, Policy};

use super::multicast::groups::{For, Wanted};
use super::owners::FlowOwners;
use super::plain_way::Plain;
use crate::ip::Parsed;
use crate::lanes::batch::Ruled;
use crate::lanes::handle::Lane;
use crate::table::carriers::AllCarriers;
use crate::table::peers::{ByPeer, PeerId};

/// Whose a packet is.
#[derive(Clone, Copy, Debug)]
pub(super) struct Whose {
    pub(super) peer: PeerId,
    /// By which rule the packet may open a flow there. None: it belongs to one that lives, or to
    /// nobody.
    pub(super) ruled: Option<Ruled>,
}

/// Everything that says whose a packet is.
pub(crate) struct Directory {
    /// The look-up table.
    pub(crate) policy: Policy,
    /// In the order of the policy's rules.
    pub(crate) fails_open: Vec<bool>,
    /// What may take its plain way.
    pub(crate) plain: Arc<Plain>,
    /// Whom the rules' carriers mean.
    pub(crate) carriers: AllCarriers,
    /// Which peer owns a flow.
    pub(crate) owners: Arc<FlowOwners>,
    /// Those of all peers.
    pub(crate) lanes: ByPeer<Lane>,
    /// What is carried to multicast groups, if anything.
    pub(crate) groups: Option<GroupTable>,
}

impl Directory {
    /// Whose the packet is; `None`: nobody's.
    pub(super) fn find(&self, parsed: &Parsed) -> Option<Whose> {
        // As our side sees the flow: an error is about what the far side has sent in it.
        let key = if parsed.is_error {
            parsed.key.turned()
        } else {
            parsed.key
        };
        if let Some(peer) = self.owners.by(&key.turned()) {
            return Some(Whose { peer, ruled: None });
        }
        let (number, rule) = self.policy.find_with_number(&key)?;
        let peer = self.carriers[rule.carriers].choose(&key, |peer| self.lanes[peer].pulse.is_up());
        let ruled = Ruled {
            treatment: rule.treatment,
            delivery: rule.delivery,
            fails_open: self.fails_open[number],
        };
        Some(Whose {
            peer,
            ruled: parsed.opens.then_some(ruled),
        })
    }

    /// Every peer that gets a packet to a group, if it comes from our LANs and opens a flow.
    pub(super) fn find_all(&self, parsed: &Parsed, mut each: impl FnMut(Whose)) {
        let Some(groups) = &self.groups else { return };
        // What does not open a flow is the kernel's own, about the device. What a peer has brought
        // does not come from our LANs.
        if parsed.opens && self.owners.by(&parsed.key).is_none() {
            groups.each(&parsed.key, |peer, _, ruled| {
                let ruled = Some(ruled);
                each(Whose { peer, ruled });
            });
        }
    }
}

/// Who gets what is sent to multicast groups.
pub(crate) struct GroupTable {
    /// The rules whose destinations are such groups.
    pub(crate) policy: Policy,
    /// Whom the rules' carriers mean: all of them that ask.
    pub(crate) carriers: AllCarriers,
    /// What the peers ask for.
    pub(crate) wanted: Arc<Wanted>,
}

impl GroupTable {
    /// Every peer that asks for this flow and gets it by a rule, and for whom it asks.
    pub(crate) fn each(&self, key: &PacketKey, mut each: impl FnMut(PeerId, For, Ruled)) {
        let Some(rule) = self.policy.find(key) else {
            return;
        };
        // The packet itself is on its way in its LAN whatever becomes of this copy.
        let ruled = Ruled {
            treatment: rule.treatment,
            delivery: rule.delivery,
            fails_open: false,
        };
        let peers = &self.carriers[rule.carriers].peers;
        self.wanted.each(key.destination.ip(), |peer, whom| {
            if peers.contains(&peer) {
                each(peer, whom, ruled);
            }
        });
    }
}
