//! What a controller is told: one acknowledgement with its round trip, its delivery-rate sample and
//! the losses that it showed.

use crate::path::delivery::Sample;
use crate::path::rtt::Rtt;
use crate::timer::Nanos;

/// One acknowledgement, as a controller sees it. Bytes are bytes of the wire, IP headers included.
pub(crate) struct AckReport<'a> {
    pub(crate) rtt: &'a Rtt,
    /// The round trip of the newest datagram, if this acknowledgement measured one.
    pub(crate) rtt_sample: Option<Nanos>,
    /// Bytes newly acknowledged; 0 if this report is about losses that time alone showed.
    pub(crate) acked: u64,
    /// Datagrams newly counted as lost.
    pub(crate) lost: &'a [Lost],
    /// Bytes on their way after this acknowledgement.
    pub(crate) in_flight: u64,
    /// Bytes delivered since the beginning.
    pub(crate) delivered: u64,
    pub(crate) rate_sample: Option<Sample>,
    /// Of every datagram that left before this time, the fate is known.
    pub(crate) decided_until: Nanos,
    /// Wire bytes of a full datagram now.
    pub(crate) datagram: u64,
}

impl AckReport<'_> {
    /// Bytes newly counted as lost.
    pub(super) fn lost_bytes(&self) -> u64 {
        self.lost.iter().map(|lost| lost.bytes).sum()
    }

    /// Was there less to send than the path could carry? Then the delivery rate is no measure of
    /// it.
    pub(super) fn is_app_limited(&self) -> bool {
        self.rate_sample.is_some_and(|sample| sample.app_limited)
    }
}

/// A datagram that was lost.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Lost {
    pub(crate) number: u64,
    pub(crate) sent: Nanos,
    /// On the wire.
    pub(crate) bytes: u64,
}
