//! The guard of handshake datagrams, for who has many peers and must not spend more on a stranger
//! than this.

use super::wire::{DATAGRAM, Direction, RETRY};
use crate::crypto::VERSION;
use crate::identity::PublicKey;

/// Knows the handshake datagrams of one peer to us. Keeps no state: a copy of a genuine one passes
/// too.
pub struct Guard(Direction);

impl Guard {
    /// For datagrams that `peer` sends to `us`.
    pub fn new(peer: &PublicKey, us: &PublicKey) -> Guard {
        Guard(Direction::new(peer, us))
    }

    /// Whether the sender of this handshake fragment or retry knows what the pair's guard is made
    /// of, or copies who does. Nobody else is answered, so nothing else need be handed on. Costs
    /// one HMAC over the datagram, if length, version and hint are right.
    pub fn admits(&self, datagram: &[u8]) -> bool {
        (RETRY..=DATAGRAM).contains(&datagram.len()) && datagram[1] == VERSION && self.0.guards(datagram)
    }
}
