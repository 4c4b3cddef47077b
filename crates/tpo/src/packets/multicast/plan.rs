//! What the configuration says about multicast: which groups are taken, asked for and passed on.

use std::net::IpAddr;

use tpo_engine::Prefix;

use super::groups::For;
use super::site::Site;
use crate::table::peers::{ByPeer, PeerId};

/// The plan of multicast.
#[derive(Clone, Debug, Default)]
pub(crate) struct Plan {
    /// The LANs.
    pub(crate) interfaces: Vec<String>,
    /// Whether we ask who listens, where no router does.
    pub(crate) asks: bool,
    /// Groups that are taken from our LANs, and for which peers.
    pub(crate) rules: Vec<(Prefix, Vec<PeerId>)>,
    /// Groups that go on from peer to peer, and to which.
    pub(crate) passes: Vec<(Prefix, Vec<PeerId>)>,
    /// Groups that peers may bring: which peer, which groups, whether they are asked for even when
    /// nobody listens.
    pub(crate) accepts: Vec<(PeerId, Prefix, bool)>,
    /// The peers' names for other TPOs of a LAN.
    pub(crate) sites: ByPeer<Site>,
}

impl Plan {
    /// Whether there is anything to do.
    pub(crate) fn is_used(&self) -> bool {
        !self.interfaces.is_empty() || !self.passes.is_empty()
    }

    /// Whether this peer may ask us for groups at all.
    pub(crate) fn may_ask(&self, peer: PeerId) -> bool {
        self.rules.iter().any(|(_, peers)| peers.contains(&peer))
    }

    pub(super) fn is_taken(&self, group: IpAddr, peer: PeerId) -> bool {
        self.rules
            .iter()
            .any(|(prefix, peers)| prefix.contains(group) && peers.contains(&peer))
    }

    /// Whether one of these wants it for itself, other than `peer`, and is to get it from here.
    pub(super) fn is_passed(&self, group: IpAddr, askers: &[(PeerId, For)], peer: PeerId) -> bool {
        let passes = |to: PeerId| {
            self.passes
                .iter()
                .any(|(prefix, peers)| prefix.contains(group) && peers.contains(&to))
        };
        askers
            .iter()
            .any(|(asker, whom)| *whom == For::Itself && *asker != peer && passes(*asker))
    }

    pub(super) fn is_accepted(&self, group: IpAddr, peer: PeerId) -> bool {
        self.accepts
            .iter()
            .any(|(from, prefix, _)| *from == peer && prefix.contains(group))
    }
}
