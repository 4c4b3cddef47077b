//! What the mover counts and what it is doing: plain numbers for whoever shows them.
//!
//! [`Mover::stats`](crate::Mover::stats) gathers them from the machines that own them. *Counters*
//! only grow; they count from the making of the mover, over all its connections. *Gauges* say what
//! is true now; without a connection they are zero or `None`.

use std::time::{Duration, Instant};

use crate::error::{OpenError, ParseError};
use crate::handshake::HandshakeCounters;

/// Everything that a mover tells of itself.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Stats {
    /// What happened so far.
    pub counters: Counters,
    /// What is true now.
    pub gauges: Gauges,
}

/// What happened so far, by owner.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    /// Attempts to agree on keys.
    pub handshake: HandshakeCounters,
    /// Datagrams on their way, in both directions.
    pub path: PathCounters,
    /// Payloads out.
    pub sender: SenderCounters,
    /// Payloads in.
    pub receiver: ReceiverCounters,
    /// Parity in both directions.
    pub parity: ParityCounters,
    /// Received datagrams, or parts of them, that had no effect.
    pub drops: Drops,
    /// Sessions that were agreed but belong to a state that we have given up.
    pub sessions_stale: u64,
    /// Events that nobody fetched in time.
    pub events_lost: u64,
}

/// Datagrams of sessions. "Wire bytes" include the headers of IP and UDP.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PathCounters {
    /// Datagrams sent.
    pub datagrams_sent: u64,
    /// Their UDP payload bytes.
    pub bytes_sent: u64,
    /// Datagrams that opened.
    pub datagrams_received: u64,
    /// Their UDP payload bytes.
    pub bytes_received: u64,
    /// Datagrams that counted as lost.
    pub datagrams_lost: u64,
    /// Those of them that were acknowledged after all.
    pub losses_spurious: u64,
    /// Wire bytes acknowledged.
    pub wire_bytes_delivered: u64,
    /// Wire bytes that were lost, as far as known.
    pub wire_bytes_lost: u64,
    /// Datagrams that asked the peer for an acknowledgement after a silence.
    pub probes_sent: u64,
    /// Times that the datagram size fell back.
    pub mtu_falls: u64,
    /// Times that the link heard that nobody listens at the peer's port.
    pub refusals: u64,
    /// Times that the peer moved to another address.
    pub moves: u64,
}

/// What the sending half did.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SenderCounters {
    /// Payloads taken by `send`.
    pub payloads: u64,
    /// Their bytes.
    pub payload_bytes: u64,
    /// Segments put in line to be sent again.
    pub segments_repaired: u64,
    /// Acknowledgement subfields taken.
    pub acks_received: u64,
}

/// What the receiving half did.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ReceiverCounters {
    /// Payloads handed up.
    pub payloads: u64,
    /// Their bytes.
    pub payload_bytes: u64,
    /// Segments that carried nothing new.
    pub segments_duplicate: u64,
    /// Acknowledgement subfields sent.
    pub acks_sent: u64,
    /// The most bytes that payloads held which were begun or not fetched.
    pub reassembly_bytes_max: u64,
    /// Entries of lists of pieces that segments moved or could have moved. A world checks that
    /// they are few for each byte received, whatever the peer sends.
    pub walked: u64,
}

/// Parity over datagrams with urgent payloads.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ParityCounters {
    /// Datagrams sent that parity was made for.
    pub datagrams_protected: u64,
    /// Parity rows sent.
    pub rows_sent: u64,
    /// Their bytes.
    pub bytes_sent: u64,
    /// Parity rows that the budget of bytes did not allow.
    pub rows_unaffordable: u64,
    /// Parity rows received.
    pub rows_received: u64,
    /// Datagrams that were rebuilt from parity, and taken because they had not come meanwhile.
    pub datagrams_rebuilt: u64,
}

/// What came of sessions and had no effect, by kind. The handshake's own are in
/// [`HandshakeCounters::drops`].
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Drops {
    // --- did not open: anybody can have sent it
    /// Datagrams that are none of ours by their first bytes.
    pub foreign: u64,
    /// Datagrams of no session that we know: of an ended one, or of none.
    pub unknown_session: u64,
    /// Datagrams whose number was received before: copies and replays.
    pub replayed: u64,
    /// Datagrams whose number is so old that nobody knows whether it was received before.
    pub too_old: u64,
    /// Datagrams whose tag does not fit: damaged or forged.
    pub forged: u64,
    /// Datagrams of a key phase that is neither in use, nor the one before, nor the next.
    pub wrong_phase: u64,
    /// Datagrams of a session that opens nothing more, because it has seen too many forgeries.
    pub worn_session: u64,

    // --- authenticated
    /// Segments refused for want of memory or outside the window: they come again.
    pub segments_refused: u64,
    /// What the peer's own program should never send.
    pub breaches: Breaches,
}

/// Breaches of the protocol by the peer, which had the keys: a fault of one of the two programs.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Breaches {
    /// Subfields with fewer bytes than length and type need.
    pub subfields_cut_off: u64,
    /// Subfields whose length contradicts their type, or reaches beyond the datagram.
    pub subfields_wrong_length: u64,
    /// Subfields of a type that does not exist.
    pub subfields_unknown_type: u64,
    /// Data subfields that name another datagram.
    pub data_of_other_datagram: u64,
    /// Segments that do not lie inside their payload, or whose payload is larger than agreed.
    pub segments_outside_payload: u64,
    /// Segments that contradict an earlier one of the same payload.
    pub segments_contradictory: u64,
    /// Acknowledgements whose flags are cut off.
    pub acks_cut_off: u64,
    /// Acknowledgements of datagrams that were never sent.
    pub acks_of_unsent: u64,
    /// Parity rows that no sender makes: by their number, their length or what they cover, or a
    /// second one in the same datagram.
    pub parity_malformed: u64,
    /// Parity rows that contradict the datagrams or rows that they belong to.
    pub parity_contradictory: u64,
    /// Records in a completed handshake that cannot be read.
    pub records_malformed: u64,
}

impl Drops {
    /// A datagram of a known session did not open.
    pub(crate) fn on_unopened(&mut self, error: OpenError) {
        *match error {
            // The caller found the session by the index in the header, so neither can be.
            OpenError::Form { .. } | OpenError::Index { .. } => &mut self.foreign,
            OpenError::Phase { .. } => &mut self.wrong_phase,
            OpenError::Tag => &mut self.forged,
            OpenError::Worn => &mut self.worn_session,
        } += 1;
    }
}

impl Breaches {
    /// Subfields, segments and acknowledgements that cannot be; parity and records apart.
    pub fn of_subfields(&self) -> u64 {
        let Breaches {
            subfields_cut_off,
            subfields_wrong_length,
            subfields_unknown_type,
            data_of_other_datagram,
            segments_outside_payload,
            segments_contradictory,
            acks_cut_off,
            acks_of_unsent,
            parity_malformed: _,
            parity_contradictory: _,
            records_malformed: _,
        } = self;
        subfields_cut_off
            + subfields_wrong_length
            + subfields_unknown_type
            + data_of_other_datagram
            + segments_outside_payload
            + segments_contradictory
            + acks_cut_off
            + acks_of_unsent
    }

    /// A subfield cannot be read.
    pub(crate) fn on_unparsed(&mut self, error: ParseError) {
        *match error {
            ParseError::Short { .. } => &mut self.subfields_cut_off,
            ParseError::Length { .. } => &mut self.subfields_wrong_length,
            ParseError::Kind(_) => &mut self.subfields_unknown_type,
            ParseError::Physical => &mut self.data_of_other_datagram,
            ParseError::Segment { .. } => &mut self.segments_outside_payload,
            ParseError::Words => &mut self.acks_cut_off,
        } += 1;
    }
}

/// What is true now, by owner.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Gauges {
    /// The way to the peer.
    pub path: PathGauges,
    /// Payloads out.
    pub sender: SenderGauges,
    /// Payloads in.
    pub receiver: ReceiverGauges,
    /// When the keys were agreed that seal what we send.
    pub keys_since: Option<Instant>,
}

/// The way to the peer, as far as known.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PathGauges {
    /// Wire bytes on their way.
    pub in_flight_bytes: u64,
    /// Wire bytes that may be on their way.
    pub window_bytes: u64,
    /// Wire bytes per second of the pacer.
    pub pacing_rate: u64,
    /// Wire bytes per second that the path is believed to carry; 0: not known.
    pub bandwidth: u64,
    /// What the congestion control is doing.
    pub phase: &'static str,
    /// The largest datagram, in bytes of UDP payload.
    pub datagram_size: usize,
    /// Smoothed round trip.
    pub rtt: Option<Duration>,
    /// Shortest round trip.
    pub min_rtt: Option<Duration>,
}

/// What the sending half holds.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SenderGauges {
    /// Datagrams from the oldest whose fate is open to the newest.
    pub flight_datagrams: u64,
    /// Bytes of payloads that are not wholly acknowledged.
    pub unacked_bytes: u64,
    /// Those payloads.
    pub unacked_payloads: u64,
    /// Payload bytes waiting to be sent, or sent again.
    pub unsent_bytes: u64,
    /// Bytes per second that the peer says it delivers to its packet driver (claim 23).
    pub peer_delivery_rate: u64,
}

/// What the receiving half holds.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ReceiverGauges {
    /// Bytes of payloads begun or not fetched.
    pub reassembly_bytes: u64,
    /// Bytes per second that we deliver to our packet driver.
    pub delivery_rate: u64,
}
