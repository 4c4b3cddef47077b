//! What the driver knows of the path to the peer, as the mover measures it.

use std::time::Duration;

use crate::config::{LEAST_SPARSE, SPARSE, SPARSE_TIME, UNKNOWN_RTT};

/// The path to the peer.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Path {
    /// Smoothed round trip.
    pub(crate) rtt: Duration,
    /// What the link takes, bytes per second.
    pub(crate) rate: u64,
    /// Bytes that one datagram of the mover carries of an urgent buffer.
    pub(crate) urgent_segment: usize,
    /// Bytes sent recently up to which a stream is urgent.
    pub(crate) sparse: u32,
}

impl Path {
    pub(crate) fn new() -> Path {
        Path {
            rtt: UNKNOWN_RTT,
            rate: 0,
            urgent_segment: 1_200,
            sparse: SPARSE,
        }
    }

    pub(crate) fn set_rtt(&mut self, rtt: Option<Duration>) {
        self.rtt = rtt.unwrap_or(UNKNOWN_RTT);
    }

    pub(crate) fn set_link(&mut self, rate: u64, urgent_segment: usize) {
        (self.rate, self.urgent_segment) = (rate, urgent_segment);
        self.sparse = (self.bytes_within(SPARSE_TIME).min(SPARSE.into()) as u32).max(LEAST_SPARSE);
    }

    /// Bytes that the link takes within this time.
    pub(crate) fn bytes_within(&self, time: Duration) -> u128 {
        u128::from(self.rate) * time.as_nanos() / 1_000_000_000
    }
}
