//! A handshake datagram that was made for other keys, as the demultiplexer or a lane has seen it.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

/// How long a sighting counts. A peer that calls with wrong keys does it every two seconds.
pub(crate) const LIFE: Duration = Duration::from_secs(60);

/// What does not fit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fault {
    /// It names a pair of keys that is not ours and a peer's.
    Keys,
    /// It names the pair, but was not made with the pair's secrets.
    Guard,
}

/// One such datagram.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Sighting {
    /// The address that it says it comes from.
    pub(crate) from: SocketAddr,
    /// When it came.
    pub(crate) at: Instant,
    /// What does not fit.
    pub(crate) fault: Fault,
}

impl Sighting {
    /// Whether it is so young that it is worth a word.
    pub(crate) fn counts(&self, now: Instant) -> bool {
        now.saturating_duration_since(self.at) < LIFE
    }
}
