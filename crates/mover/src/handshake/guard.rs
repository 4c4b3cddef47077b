//! The guard of handshake datagrams, for who has many peers and must not spend more on a stranger
//! than this.

use super::error::HandshakeError;
use super::wire::Pair;
use crate::identity::{Identity, PreSharedKey, PublicKey};

/// Knows the handshake datagrams of one peer to us. Keeps no state: a copy of a genuine one passes
/// too.
pub struct Guard(Pair);

/// Why a handshake datagram is not handed on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum GuardError {
    /// Its form is none, its version is another, or it names other keys.
    Stranger,
    /// It names the pair and proves nothing: its sender has seen the names, or is the peer with
    /// another pre-shared key.
    Unproved,
}

impl Guard {
    /// For datagrams that `peer` sends to `us`.
    pub fn new(us: &Identity, peer: &PublicKey, pre_shared: Option<&PreSharedKey>) -> Guard {
        Guard(Pair::new(us, peer, pre_shared))
    }

    /// Whether the sender of this handshake fragment or retry has the secrets of the pair, or
    /// copies who does. Nobody else is answered, so nothing else need be handed on. Costs one HMAC
    /// over the datagram, if length, version and names are right.
    ///
    /// # Errors
    /// Why not.
    pub fn admit(&self, datagram: &[u8]) -> Result<(), GuardError> {
        self.0.prove(datagram).map_err(|error| match error {
            HandshakeError::Unproved => GuardError::Unproved,
            _ => GuardError::Stranger,
        })
    }
}
