//! What `auto` believes of the path at one moment, for the machines that judge by it.

use crate::congestion::rate::bytes_in;
use crate::timer::Nanos;

/// The path at one moment.
#[derive(Clone, Copy)]
pub(super) struct Estimate {
    /// Bytes per second.
    pub(super) bandwidth: u64,
    pub(super) min_rtt: Nanos,
    /// Wire bytes of a full datagram.
    pub(super) datagram: u64,
}

impl Estimate {
    /// The bandwidth-delay product, in bytes.
    pub(super) fn product(&self) -> u64 {
        bytes_in(self.bandwidth, self.min_rtt)
    }
}
