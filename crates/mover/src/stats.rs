//! Plain numbers for whoever renders them. Counters count from the making of the mover, over all
//! its connections.

use std::time::{Duration, Instant};

use crate::handshake::HandshakeStats;

/// What the mover did and how it is.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Stats {
    // --- counters: out ---
    /// Datagrams sent in sessions.
    pub datagrams_sent: u64,
    /// Their UDP payload bytes.
    pub bytes_sent: u64,
    /// Payloads taken by `send`.
    pub payloads_sent: u64,
    /// Their bytes.
    pub payload_bytes_sent: u64,
    /// Segments put in line to be sent again.
    pub segments_repaired: u64,
    /// Datagrams that parity was made for.
    pub datagrams_protected: u64,
    /// Parity rows sent.
    pub parity_sent: u64,
    /// Their bytes.
    pub parity_bytes_sent: u64,
    /// Parity rows that the budget of bytes did not allow.
    pub parity_unaffordable: u64,
    /// Datagrams that counted as lost.
    pub datagrams_lost: u64,
    /// Those of them that were acknowledged after all.
    pub losses_spurious: u64,
    /// Datagrams that asked the peer for an acknowledgement after a silence.
    pub probes_sent: u64,
    /// Acknowledgement subfields sent.
    pub acks_sent: u64,
    /// Times that the datagram size fell back.
    pub mtu_falls: u64,
    /// Wire bytes acknowledged.
    pub wire_bytes_delivered: u64,
    /// Wire bytes that were lost, as far as known.
    pub wire_bytes_lost: u64,

    // --- counters: in ---
    /// Datagrams that opened.
    pub datagrams_received: u64,
    /// Their UDP payload bytes.
    pub bytes_received: u64,
    /// Parity rows received.
    pub parity_received: u64,
    /// Datagrams that were rebuilt from parity, and taken because they had not come meanwhile.
    pub datagrams_rebuilt: u64,
    /// Parity that made no sense.
    /// Parity that made no sense.
    pub parity_wrong: u64,
    /// Steps of walks over what is kept, entries of pieces that a segment moved: few for each byte
    /// received, whatever the peer sends.
    pub walked: u64,
    /// Payloads handed up.
    pub payloads_received: u64,
    /// Their bytes.
    pub payload_bytes_received: u64,
    /// Segments that carried nothing new.
    pub segments_duplicate: u64,
    /// Segments refused for want of memory or outside the window.
    pub segments_refused: u64,
    /// Segments that contradicted what came before.
    pub segments_wrong: u64,
    /// Datagrams whose number was received before, or is too old to know: copies and replays.
    pub datagrams_replayed: u64,
    /// Datagrams that did not open: damaged or forged.
    pub datagrams_forged: u64,
    /// Datagrams of no session that we know: of an ended one, or of none.
    pub datagrams_unknown: u64,
    /// Datagrams that are none of ours by their first bytes.
    pub datagrams_foreign: u64,
    /// Authenticated datagrams with a subfield that cannot be read.
    pub subfields_malformed: u64,
    /// Acknowledgements of datagrams that were never sent.
    pub acks_unsent: u64,
    /// Acknowledgement subfields taken.
    pub acks_received: u64,
    /// Times that the link heard nobody listens at the peer.
    pub refusals: u64,
    /// Times that the peer moved to another address.
    pub moves: u64,
    /// Sessions that were agreed but belong to a state that we have given up.
    pub sessions_stale: u64,
    /// Events that nobody fetched in time.
    pub events_lost: u64,
    /// The handshake's own counters.
    pub handshake: HandshakeStats,

    // --- gauges ---
    /// Wire bytes on their way.
    pub in_flight_bytes: u64,
    /// Datagrams from the oldest whose fate is open to the newest.
    pub flight_datagrams: u64,
    /// Bytes of payloads that are not wholly acknowledged.
    pub unacked_bytes: u64,
    /// Those payloads.
    pub unacked_payloads: u64,
    /// Payload bytes waiting to be sent, or sent again.
    pub unsent_bytes: u64,
    /// Bytes of payloads begun or not fetched by the receiver.
    pub reassembly_bytes: u64,
    /// The most that the last was.
    pub reassembly_bytes_max: u64,
    /// Bytes that may be on their way.
    pub window_bytes: u64,
    /// Bytes per second of the pacer.
    pub pacing_rate: u64,
    /// Bytes per second that the path is believed to carry; 0: not known.
    pub bandwidth: u64,
    /// What the congestion control is doing.
    pub phase: &'static str,
    /// The largest datagram now, in bytes of UDP payload.
    pub datagram_size: usize,
    /// Smoothed round trip.
    pub rtt: Option<Duration>,
    /// Shortest round trip.
    pub min_rtt: Option<Duration>,
    /// When the keys were agreed that seal what we send.
    pub keys_since: Option<Instant>,
    /// Bytes per second that the peer says it delivers to its packet driver (claim 23).
    pub peer_delivery_rate: u64,
    /// Bytes per second that we deliver to our packet driver.
    pub delivery_rate: u64,
}

impl Stats {
    /// The connection is gone: its counters stay, what it was at the moment does not.
    pub(crate) fn forget_gauges(&mut self) {
        self.in_flight_bytes = 0;
        self.flight_datagrams = 0;
        self.unacked_bytes = 0;
        self.unacked_payloads = 0;
        self.unsent_bytes = 0;
        self.reassembly_bytes = 0;
        self.window_bytes = 0;
        self.pacing_rate = 0;
        self.bandwidth = 0;
        self.phase = "";
        self.datagram_size = 0;
        (self.rtt, self.min_rtt, self.keys_since) = (None, None, None);
        (self.peer_delivery_rate, self.delivery_rate) = (0, 0);
    }
}
