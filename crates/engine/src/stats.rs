//! What the engine counts: plain numbers, grouped by what they are about, for the program to
//! render.
//!
//! Whoever finds a fact counts it: the driver, its streams, its flows of packets, compression. What
//! the peer did wrong is counted by its kind, in [`Malformed`] and [`Breaches`].

use crate::{
    Class, KeyError,
    error::{Breach, PayloadError},
};

/// A peer's figures.
#[derive(Debug, Clone)]
pub struct Stats {
    /// The mover below.
    pub mover: tpo_mover::Stats,
    /// Flows of both kinds that live now.
    pub flows: usize,
    /// Flows of packets among them.
    pub packet_flows: usize,
    /// Flows that wait for their turn to send.
    pub ready_flows: usize,
    /// Bytes that flows hold here now, bookkeeping included.
    pub held_bytes: usize,
    /// The most that they held.
    pub held_bytes_max: usize,
    /// What they may hold.
    pub budget_bytes: usize,
    /// What happened since the start.
    pub counters: Counters,
    /// What compression did, by the class of the most urgent message of each buffer.
    pub compression: [CompressionStats; Class::COUNT],
    /// Dictionaries that both sides have made.
    pub dictionaries: u64,
}

impl Stats {
    /// What compression did with the buffers of all classes.
    pub fn compression_in_all(&self) -> CompressionStats {
        let mut sum = CompressionStats::default();
        self.compression.iter().for_each(|class| sum += *class);
        sum
    }
}

/// How much of what one peer may cost is used.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Usage {
    /// Streams that live.
    pub streams: usize,
    /// Streams that may live.
    pub most_streams: usize,
    /// Bytes that flows hold here, bookkeeping included.
    pub held: usize,
    /// Bytes that flows may hold.
    pub budget: usize,
    /// Flows that the near side opened and the far side ended for lack of room there, since the
    /// start.
    pub refused_there: u64,
}

/// What compression did with buffers, since the start.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct CompressionStats {
    /// Bytes of buffers before.
    pub bytes_in: u64,
    /// Bytes of buffers after.
    pub bytes_out: u64,
    /// Buffers that were sent uncompressed, by the reason.
    pub uncompressed: [u64; Uncompressed::COUNT],
    /// CPU time spent, nanoseconds, by the measured cost of each level.
    pub cpu_ns: u64,
}

impl std::ops::AddAssign for CompressionStats {
    fn add_assign(&mut self, other: CompressionStats) {
        self.bytes_in += other.bytes_in;
        self.bytes_out += other.bytes_out;
        self.cpu_ns += other.cpu_ns;
        for (sum, more) in self.uncompressed.iter_mut().zip(other.uncompressed) {
            *sum += more;
        }
    }
}

/// Why a buffer was sent uncompressed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Uncompressed {
    /// Compression is switched off for the buffer.
    Off,
    /// The buffer is so small that nothing could be gained.
    Small,
    /// What the flow sends does not shrink; the flow is tried again now and then.
    Incompressible,
    /// The link takes bytes faster than they could be compressed.
    FastLink,
    /// The buffer holds messages of several flows, one of which does not share its compression.
    Isolated,
    /// The buffer holds more messages than it would have bytes, which no receiver takes.
    TooManyMessages,
}

impl Uncompressed {
    /// How many reasons there are.
    pub const COUNT: usize = 6;
    /// All of them, by their number.
    pub const ALL: [Uncompressed; Uncompressed::COUNT] = [
        Uncompressed::Off,
        Uncompressed::Small,
        Uncompressed::Incompressible,
        Uncompressed::FastLink,
        Uncompressed::Isolated,
        Uncompressed::TooManyMessages,
    ];
}

/// What happened since the start. None of these ever goes down.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counters {
    /// How flows began and ended, of both kinds.
    pub flows: FlowCounters,
    /// What went through, and in how many buffers and messages.
    pub traffic: TrafficCounters,
    /// Packets of the flows of packets.
    pub packets: PacketCounters,
    /// Payloads of the peer that could not be read, and were dropped whole.
    pub malformed: Malformed,
    /// Messages of the peer that broke the rules of their flow.
    pub breaches: Breaches,
    /// Messages of flows that had ended: they crossed with a reset.
    pub late: u64,
    /// Refusals and resets that could not even be queued: the peer opens flows and takes no answer.
    pub refusals_dropped: u64,
    /// Answers to proposals of dictionaries that were not given, because the peer takes none and
    /// goes on proposing.
    pub answers_dropped: u64,
    /// Steps of walks over queues and lists: what a peer sends costs a few of them for each of its
    /// messages, whatever it sends.
    pub walked: u64,
}

/// How flows began and ended, of both kinds.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct FlowCounters {
    /// Flows that the near side opened.
    pub opened_here: u64,
    /// Flows that the far side opened.
    pub opened_there: u64,
    /// Openings of the far side that were refused for want of memory or flows.
    pub refused: u64,
    /// Flows that the near side opened and the far side ended for lack of room there.
    pub refused_there: u64,
    /// Flows that ended in order, both ways.
    pub closed: u64,
    /// Flows that the near side reset.
    pub reset_here: u64,
    /// Flows that the far side reset.
    pub reset_there: u64,
    /// Flows that went with the peer: restarted, given up, or closed.
    pub lost: u64,
    /// Flows that were reset because memory ran out.
    pub out_of_memory: u64,
}

/// What went through, and in how many buffers and messages.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct TrafficCounters {
    /// Buffers packed and given to the mover.
    pub buffers_out: u64,
    /// Buffers taken apart.
    pub buffers_in: u64,
    /// Messages packed.
    pub messages_out: u64,
    /// Messages taken out of buffers.
    pub messages_in: u64,
    /// Application bytes read from the near side and packed.
    pub bytes_out: u64,
    /// Application bytes received from the far side.
    pub bytes_in: u64,
    /// Application bytes that the near side's applications took.
    pub bytes_delivered: u64,
}

/// Packets of the flows of packets.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct PacketCounters {
    /// Packets of the near side that were packed.
    pub sent: u64,
    /// Packets received from the far side.
    pub received: u64,
    /// Packets of the near side dropped because they had waited too long for the link.
    pub stale: u64,
    /// Packets of the far side dropped because they came too long after those behind them.
    pub late: u64,
    /// Packets of the near side dropped because too many waited for the link.
    pub full: u64,
    /// Flows of packets that were refused, of either side, because too many live.
    pub flows_refused: u64,
}

/// Payloads of the peer that could not be read, by what was wrong with them. Each was dropped
/// whole.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Malformed {
    /// Shorter than its headers say.
    pub truncated: u64,
    /// Bytes are left over behind the last message.
    pub left_over: u64,
    /// An unknown function type in the routing header.
    pub routing: u64,
    /// An unknown version of the message header.
    pub version: u64,
    /// A message header of a length that no form has.
    pub header_length: u64,
    /// An unknown function type of a message.
    pub function: u64,
    /// A message whose header form does not fit its function type.
    pub form: u64,
    /// An unknown class.
    pub class: u64,
    /// A stream that is not TCP, or packets that are, or a number that is no protocol of packets.
    pub protocol: u64,
    /// An IPv4 address in a form of IPv6, or addresses of two families.
    pub address: u64,
    /// A compressed payload that says of its content what cannot be: its size, or more messages
    /// than it has bytes. The session ends.
    pub compressed_size: u64,
    /// A compressed payload that refers to a dictionary that is not here. The session ends.
    pub dictionary: u64,
    /// A compressed payload that zstd cannot take apart. The session ends.
    pub compressed: u64,
}

impl Malformed {
    /// Payloads that could not be read, of all kinds.
    pub fn total(&self) -> u64 {
        let Malformed {
            truncated,
            left_over,
            routing,
            version,
            header_length,
            function,
            form,
            class,
            protocol,
            address,
            compressed_size,
            dictionary,
            compressed,
        } = self;
        truncated
            + left_over
            + routing
            + version
            + header_length
            + function
            + form
            + class
            + protocol
            + address
            + compressed_size
            + dictionary
            + compressed
    }

    pub(crate) fn count(&mut self, error: PayloadError) {
        *match error {
            PayloadError::Truncated => &mut self.truncated,
            PayloadError::LeftOver => &mut self.left_over,
            PayloadError::Routing(_) => &mut self.routing,
            PayloadError::Version(_) => &mut self.version,
            PayloadError::HeaderLength(_) => &mut self.header_length,
            PayloadError::Function(_) => &mut self.function,
            PayloadError::Form => &mut self.form,
            PayloadError::Class(_) => &mut self.class,
            PayloadError::Key(KeyError::Protocol(_)) => &mut self.protocol,
            PayloadError::Key(KeyError::Families | KeyError::Form) => &mut self.address,
            PayloadError::CompressedSize => &mut self.compressed_size,
            PayloadError::Dictionary(_) => &mut self.dictionary,
            PayloadError::Compressed => &mut self.compressed,
        } += 1;
    }
}

/// Messages of the peer that broke the rules of their flow, by the rule. A stream was reset for
/// it; of a flow of packets the message alone was dropped.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Breaches {
    /// Data that was there already.
    pub overlap: u64,
    /// Data beyond the credit.
    pub beyond_credit: u64,
    /// Data or a second end beyond the end of its direction.
    pub beyond_end: u64,
    /// Other addresses under the number of a flow.
    pub other_key: u64,
    /// A message of the other kind of flow: a packet in a stream, or stream data, credit or a pause
    /// in a flow of packets.
    pub other_kind: u64,
}

impl Breaches {
    /// Messages that broke a rule, of all kinds.
    pub fn total(&self) -> u64 {
        let Breaches {
            overlap,
            beyond_credit,
            beyond_end,
            other_key,
            other_kind,
        } = self;
        overlap + beyond_credit + beyond_end + other_key + other_kind
    }

    pub(crate) fn count(&mut self, breach: Breach) {
        *match breach {
            Breach::Overlap => &mut self.overlap,
            Breach::BeyondCredit => &mut self.beyond_credit,
            Breach::BeyondEnd => &mut self.beyond_end,
            Breach::OtherKey => &mut self.other_key,
            Breach::OtherKind => &mut self.other_kind,
        } += 1;
    }
}
