//! The peers of a rule: usually one, or several that reach the same place.

use std::hash::{BuildHasher, BuildHasherDefault, DefaultHasher};

use tpo_engine::FlowKey;

use crate::lane::Lane;

/// Peers that may carry the same flows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Carriers {
    /// By their number. The first one that is up carries a flow, or all that are up share the
    /// flows.
    pub peers: Vec<usize>,
    /// All that are up share the flows.
    pub spread: bool,
}

impl Carriers {
    /// Each peer by itself: a rule that names one peer names the group of its number.
    pub fn singles(peers: usize) -> Vec<Carriers> {
        (0..peers)
            .map(|peer| Carriers {
                peers: vec![peer],
                spread: false,
            })
            .collect()
    }

    /// Who carries a new connection: one that has room for it, if any that is up has.
    pub fn choose_with_room(&self, key: &FlowKey, lanes: &[Lane]) -> usize {
        let has_room = |peer: usize| lanes[peer].pulse.has_room();
        match self.peers.iter().any(|peer| has_room(*peer)) {
            true => self.choose(key, has_room),
            false => self.choose(key, |peer| lanes[peer].pulse.is_up()),
        }
    }

    /// Who carries a new flow. When none is up, the first: it says why not.
    pub fn choose(&self, key: &FlowKey, is_up: impl Fn(usize) -> bool) -> usize {
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
        let group = Carriers {
            peers: vec![2, 0, 1],
            spread: false,
        };
        assert_eq!(group.choose(&key(1), |_| true), 2);
        assert_eq!(group.choose(&key(1), |peer| peer != 2), 0);
        assert_eq!(group.choose(&key(1), |_| false), 2);
    }

    #[test]
    fn flows_are_shared_and_only_those_of_a_lost_peer_move() {
        let group = Carriers {
            peers: vec![0, 1, 2],
            spread: true,
        };
        let mut counts = [0; 3];
        for port in 0..3_000 {
            let all = group.choose(&key(port), |_| true);
            assert_eq!(
                all,
                group.choose(&key(port).turned(), |_| true),
                "both directions go one way"
            );
            counts[all] += 1;
            let without = group.choose(&key(port), |peer| peer != 1);
            assert!(if all == 1 {
                without != 1
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
