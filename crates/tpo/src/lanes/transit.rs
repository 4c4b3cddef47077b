//! Transit: what one peer brings goes on to another, where a rule says `transit = true`. A hub
//! joins sites that do not know each other.
//!
//! Each leg is a pair of its own: a lost datagram is repaired on the leg that lost it, and each leg
//! has its own credit. Streams of the two lanes are joined by a connection of this host with
//! itself, so that back-pressure, half-closed ends and resets mean what they always mean; packets
//! are handed over as they cross. No flow goes in circles: none goes back to the peer that brought
//! it, and one that is here already is not taken again. What is sent to groups goes on to those
//! peers that ask for it for themselves, so that it passes one hub and no second one.

use std::collections::HashSet;
use std::io;
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::sync::{Mutex, OnceLock, PoisonError};

use super::batch::Ruled;
use super::handle::Lane;
use socket2::{Domain, Socket, Type};
use tpo_engine::{FlowKey, Policy, Status, StreamKey};

use crate::intercept::tcp::lan_options;
use crate::table::carriers::AllCarriers;
use crate::table::peers::{ByPeer, PeerId};
use crate::table::protocols::TCP;

/// Where a flow that a peer has opened goes.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Next {
    /// To its destination, from here.
    Here,
    /// To this peer.
    Peer(PeerId, Ruled),
    /// Nowhere.
    Refused(Status),
}

/// What all lanes share.
pub(crate) struct Transit {
    policy: Policy,
    /// In the order of the policy's rules.
    fails_open: Vec<bool>,
    carriers: AllCarriers,
    /// Known when all have started.
    lanes: OnceLock<ByPeer<Lane>>,
    /// Streams that pass.
    passing: Mutex<HashSet<StreamKey>>,
}

impl Transit {
    /// The rules for transit alone, whether each fails open, and whom their carriers mean; those
    /// for groups of many apart.
    pub(crate) fn new(policy: Policy, fails_open: Vec<bool>, carriers: AllCarriers) -> Transit {
        Transit {
            policy,
            fails_open,
            carriers,
            lanes: OnceLock::new(),
            passing: Mutex::default(),
        }
    }

    /// Those of all peers. Until then nothing passes.
    pub(crate) fn set_lanes(&self, lanes: ByPeer<Lane>) {
        // Once, by the daemon's start.
        let _ = self.lanes.set(lanes);
    }

    /// The lane of a peer.
    pub(crate) fn lane(&self, peer: PeerId) -> Option<&Lane> {
        self.lanes.get()?.get(peer)
    }

    /// Where a flow goes that this peer has opened; one for many is dealt with
    /// by `packets/onward.rs` in any case.
    pub(crate) fn next(&self, key: &FlowKey, from: PeerId) -> Next {
        if key.destination.ip().is_multicast() {
            return Next::Here;
        }
        let Some((number, rule)) = self.policy.find_with_number(key) else {
            return Next::Here;
        };
        let Some(lanes) = self.lanes.get() else {
            return Next::Refused(Status::GoingAway);
        };
        // A hub's own LANs need the room of a peer that has none left for what other peers bring.
        let can_carry = |peer: PeerId| match key.protocol {
            TCP => lanes[peer].pulse.has_room(),
            _ => lanes[peer].pulse.is_up(),
        };
        let is_up = |peer: PeerId| peer != from && can_carry(peer);
        let peer = self.carriers[rule.carriers].choose(key, is_up);
        let fails_open = self.fails_open[number];
        match (peer == from, is_up(peer)) {
            // Back to where it came from: it is for a host here.
            (true, _) if self.carriers[rule.carriers].peers.len() == 1 => Next::Here,
            (false, true) => Next::Peer(
                peer,
                Ruled {
                    treatment: rule.treatment,
                    delivery: rule.delivery,
                    fails_open,
                },
            ),
            _ if fails_open => Next::Here,
            _ => Next::Refused(Status::Unreachable),
        }
    }

    /// A stream begins to pass; false when it is here already, and would go in circles.
    pub(crate) fn begin(&self, key: &StreamKey) -> bool {
        self.passing
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .insert(*key)
    }

    /// It has ended.
    pub(crate) fn end(&self, key: &StreamKey) {
        self.passing
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .remove(key);
    }
}

/// Two ends of one connection of this host with itself.
pub(crate) fn pair() -> io::Result<[TcpStream; 2]> {
    let listener = TcpListener::bind(SocketAddr::from((Ipv4Addr::LOCALHOST, 0)))?;
    let near = Socket::new(Domain::IPV4, Type::STREAM, None)?;
    lan_options(&near)?;
    near.connect(&listener.local_addr()?.into())?;
    let near = TcpStream::from(near);
    // Another program of this host may have been quicker.
    for _ in 0..16 {
        let (far, from) = listener.accept()?;
        if from == near.local_addr()? {
            lan_options(&far.try_clone()?.into())?;
            near.set_nonblocking(true)?;
            far.set_nonblocking(true)?;
            return Ok([near, far]);
        }
    }
    Err(io::ErrorKind::ConnectionRefused.into())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{Read, Write};

    #[test]
    fn the_two_ends_are_each_others() {
        let [mut near, mut far] = pair().unwrap();
        near.write_all(b"there").unwrap();
        far.set_nonblocking(false).unwrap();
        let mut bytes = [0; 5];
        far.read_exact(&mut bytes).unwrap();
        assert_eq!(&bytes, b"there");
    }

    #[test]
    fn a_stream_passes_once() {
        let transit = Transit::new(
            Policy::new(Vec::new()),
            Vec::new(),
            AllCarriers::of_peers(2),
        );
        let key = StreamKey::new(
            "10.1.1.1:1000".parse().unwrap(),
            "10.2.2.2:80".parse().unwrap(),
        )
        .unwrap();
        assert!(matches!(transit.next(&key, PeerId::new(0)), Next::Here));
        assert!(transit.begin(&key) && !transit.begin(&key));
        transit.end(&key);
        assert!(transit.begin(&key));
    }
}
