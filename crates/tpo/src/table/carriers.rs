//! The carriers of a rule: the peers that may carry its flows, and which of them carries one. Pure.

use std::hash::{BuildHasher, BuildHasherDefault, DefaultHasher};
use std::ops::Index;

use tpo_engine::{CarriersId, FlowKey};

use super::peers::PeerId;

/// Peers that may carry the same flows: usually one, or several that reach the same place.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Carriers {
    /// Without `spread`, the first one that is up carries a flow.
    pub peers: Vec<PeerId>,
    /// All that are up share the flows.
    pub spread: bool,
}

impl Carriers {
    /// One peer alone.
    pub(crate) fn alone(peer: PeerId) -> Carriers {
        Carriers {
            peers: vec![peer],
            spread: false,
        }
    }

    /// Who carries a new connection: one that has room for it, if any that is up has.
    pub(crate) fn choose_with_room(
        &self,
        key: &FlowKey,
        has_room: impl Fn(PeerId) -> bool,
        is_up: impl Fn(PeerId) -> bool,
    ) -> PeerId {
        match self.peers.iter().any(|peer| has_room(*peer)) {
            true => self.choose(key, has_room),
            false => self.choose(key, is_up),
        }
    }

    /// Who carries a new flow. When none is up, the first: it says why not.
    pub(crate) fn choose(&self, key: &FlowKey, is_up: impl Fn(PeerId) -> bool) -> PeerId {
        let mut up = self.peers.iter().copied().filter(|peer| is_up(*peer));
        let chosen = if self.spread {
            // Each flow has an order of its own among the peers, so that one that goes or comes
            // back moves only its own share of them. Both directions are one flow.
            let (low, high) = (
                key.source.min(key.destination),
                key.source.max(key.destination),
            );
            let hash = BuildHasherDefault::<DefaultHasher>::default();
            up.max_by_key(|peer| hash.hash_one((key.protocol, low, high, *peer)))
        } else {
            up.next()
        };
        chosen.unwrap_or(self.peers[0])
    }
}

/// The carriers of all rules. Only a [`CarriersId`] finds one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AllCarriers {
    /// First each peer alone, then several together.
    list: Vec<Carriers>,
}

impl AllCarriers {
    /// Each of `peers` peers alone; several together are added by [`AllCarriers::id_of`].
    pub fn of_peers(peers: usize) -> AllCarriers {
        AllCarriers {
            list: (0..peers).map(PeerId::new).map(Carriers::alone).collect(),
        }
    }

    /// The number of these carriers, which are added if they are new.
    pub fn id_of(&mut self, carriers: &Carriers) -> CarriersId {
        if let [only] = carriers.peers[..] {
            // Of one peer there is nothing to spread.
            return CarriersId::new(only.number());
        }
        let found = self.list.iter().position(|known| known == carriers);
        CarriersId::new(found.unwrap_or_else(|| {
            self.list.push(carriers.clone());
            self.list.len() - 1
        }))
    }
}

impl Index<CarriersId> for AllCarriers {
    type Output = Carriers;

    fn index(&self, id: CarriersId) -> &Carriers {
        &self.list[id.number()]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(port: u16) -> FlowKey {
        FlowKey {
            protocol: 17,
            source: ([10, 0, 0, 1], port).into(),
            destination: ([10, 0, 0, 2], 53).into(),
        }
    }

    #[test]
    fn the_first_that_is_up_carries() {
        let carriers = Carriers {
            peers: [2, 0, 1].map(PeerId::new).into(),
            spread: false,
        };
        assert_eq!(carriers.choose(&key(1), |_| true).number(), 2);
        assert_eq!(
            carriers.choose(&key(1), |peer| peer.number() != 2).number(),
            0
        );
        assert_eq!(carriers.choose(&key(1), |_| false).number(), 2);
    }

    #[test]
    fn flows_are_shared_and_only_those_of_a_lost_peer_move() {
        let carriers = Carriers {
            peers: [0, 1, 2].map(PeerId::new).into(),
            spread: true,
        };
        let mut counts = [0; 3];
        for port in 0..3_000 {
            let all = carriers.choose(&key(port), |_| true);
            assert_eq!(
                all,
                carriers.choose(&key(port).turned(), |_| true),
                "both directions go one way"
            );
            counts[all.number()] += 1;
            let without = carriers.choose(&key(port), |peer| peer.number() != 1);
            assert!(if all.number() == 1 {
                without.number() != 1
            } else {
                without == all
            });
        }
        assert!(
            counts.iter().all(|count| (800..1_200).contains(count)),
            "{counts:?}"
        );
    }
}
