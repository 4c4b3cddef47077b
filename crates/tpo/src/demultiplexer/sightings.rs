//! Handshake datagrams that were made for other keys: perhaps a peer whose key was copied wrongly,
//! perhaps anybody's noise.
//!
//! They prove nothing, so what is said of them names the address and the time, and is forgotten
//! soon. What comes from the address where a peer is expected is kept apart, so that noise from
//! elsewhere does not hide it.

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::time::Instant;

use tracing::info;

use crate::host::log::Seldom;
use crate::lanes::sighting::{Fault, LIFE, Sighting};
use crate::table::peers::{ByPeer, PeerId};

/// The last ones.
#[derive(Debug)]
pub(crate) struct Sightings {
    last: ByPeer<Option<Sighting>>,
    /// Peers with an endpoint, by its address.
    expected: HashMap<IpAddr, Vec<PeerId>>,
    /// From where no peer is expected.
    elsewhere: Option<Sighting>,
    line: Seldom,
}

impl Sightings {
    /// None so far. `endpoints`: where each peer is expected.
    pub(crate) fn new(endpoints: &ByPeer<Option<SocketAddr>>) -> Sightings {
        let mut expected: HashMap<IpAddr, Vec<PeerId>> = HashMap::new();
        for (peer, endpoint) in endpoints.iter_with_id() {
            if let Some(endpoint) = endpoint {
                expected
                    .entry(endpoint.ip().to_canonical())
                    .or_default()
                    .push(peer);
            }
        }
        Sightings {
            last: ByPeer::new(endpoints.len(), |_| None),
            expected,
            elsewhere: None,
            line: Seldom::new(LIFE),
        }
    }

    /// A handshake datagram names a pair that we do not know.
    pub(crate) fn on_other_keys(&mut self, from: SocketAddr, now: Instant) {
        let sighting = Some(Sighting {
            from,
            at: now,
            fault: Fault::Keys,
        });
        match self.expected.get(&from.ip()) {
            Some(peers) => peers.iter().for_each(|&peer| self.last[peer] = sighting),
            None => self.elsewhere = sighting,
        }
        if let Some(more) = self.line.admits(now) {
            info!(%from, more, "a handshake for other keys than ours and our peers' has come; anybody can send one. If it is a peer's, compare the public keys at both ends");
        }
    }

    /// A handshake datagram names the pair of ours and this peer's, and its guard is wrong.
    pub(crate) fn on_wrong_guard(&mut self, peer: PeerId, from: SocketAddr, now: Instant) {
        self.last[peer] = Some(Sighting {
            from,
            at: now,
            fault: Fault::Guard,
        });
    }

    /// The last one that may be this peer's, unless it is too old. A peer without an endpoint may
    /// call from anywhere.
    pub(crate) fn of(&self, peer: PeerId, now: Instant) -> Option<Sighting> {
        let waits = !self.expected.values().any(|peers| peers.contains(&peer));
        [self.last[peer], self.elsewhere.filter(|_| waits)]
            .into_iter()
            .flatten()
            .filter(|sighting| sighting.counts(now))
            .max_by_key(|sighting| sighting.at)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn each_counts_for_a_while_and_only_where_it_may_be_the_peers() {
        let address = |host, port| SocketAddr::from(([192, 0, 2, host], port));
        let endpoints = [Some(address(1, 47_800)), None, Some(address(3, 47_800))];
        let mut sightings = Sightings::new(&endpoints.into_iter().collect());
        let [a, b, c] = [0, 1, 2].map(PeerId::new);
        let now = Instant::now();
        let soon = now + Duration::from_secs(1);
        assert!(
            [a, b, c]
                .into_iter()
                .all(|peer| sightings.of(peer, now).is_none())
        );
        sightings.on_other_keys(address(1, 9), now);
        sightings.on_other_keys(address(77, 5), soon);
        let mine = Sighting {
            from: address(1, 9),
            at: now,
            fault: Fault::Keys,
        };
        assert_eq!(
            sightings.of(a, soon),
            Some(mine),
            "noise from elsewhere does not hide it"
        );
        assert_eq!(
            sightings.of(b, soon).map(|sighting| sighting.from),
            Some(address(77, 5)),
            "it may call from anywhere"
        );
        assert_eq!(sightings.of(c, soon), None, "nothing came from there");
        assert_eq!(sightings.of(a, now + LIFE), None, "and not for ever");
        assert_eq!(sightings.of(b, soon + LIFE), None);
        sightings.on_wrong_guard(c, address(78, 6), soon);
        assert_eq!(
            sightings.of(c, soon).map(|sighting| sighting.fault),
            Some(Fault::Guard)
        );
    }
}
