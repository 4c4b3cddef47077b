//! What the engine counts: plain numbers, for the program to render.

use crate::Class;

/// A peer's figures.
#[derive(Debug, Clone)]
pub struct Stats {
    /// The mover below.
    pub mover: tpo_mover::Stats,
    /// Flows that live now.
    pub flows: usize,
    /// Flows of datagrams among them.
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
    pub squeezed: [Squeezed; Class::COUNT],
    /// Dictionaries that both sides have made.
    pub dictionaries: u64,
}

impl Stats {
    /// What compression did in all.
    pub fn squeezed_in_all(&self) -> Squeezed {
        let mut sum = Squeezed::default();
        self.squeezed.iter().for_each(|class| sum += *class);
        sum
    }
}

/// How much of what one peer may cost is used.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Usage {
    /// Streams that live.
    pub streams: usize,
    /// Streams that may.
    pub most_streams: usize,
    /// Bytes that streams hold here, bookkeeping included.
    pub held: usize,
    /// Bytes that they may.
    pub budget: usize,
    /// Flows that the near side opened and the far side ended for lack of room there, since the
    /// start.
    pub refused_there: u64,
}

/// What compression did with buffers, since the start.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Squeezed {
    /// Bytes of buffers before.
    pub bytes_in: u64,
    /// Bytes of buffers after.
    pub bytes_out: u64,
    /// Buffers that were sent as they were, by the reason.
    pub raw: [u64; AsItIs::COUNT],
    /// CPU time spent, nanoseconds, by the measured cost of each level.
    pub cpu_ns: u64,
}

impl std::ops::AddAssign for Squeezed {
    fn add_assign(&mut self, other: Squeezed) {
        self.bytes_in += other.bytes_in;
        self.bytes_out += other.bytes_out;
        self.cpu_ns += other.cpu_ns;
        for (sum, more) in self.raw.iter_mut().zip(other.raw) {
            *sum += more;
        }
    }
}

/// Why a buffer was sent as it was.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AsItIs {
    /// Compression is switched off for it.
    Off,
    /// It is so small that nothing could be gained.
    Small,
    /// What its flow sends does not shrink; tried again now and then.
    Stubborn,
    /// The link takes bytes faster than they could be compressed.
    FastLink,
    /// It holds messages of several flows, one of which does not share its compression.
    Apart,
    /// It holds more messages than it would have bytes, which no receiver takes.
    Crowded,
}

impl AsItIs {
    /// How many reasons there are.
    pub const COUNT: usize = 6;
    /// All of them, by their number.
    pub const ALL: [AsItIs; AsItIs::COUNT] = [
        AsItIs::Off,
        AsItIs::Small,
        AsItIs::Stubborn,
        AsItIs::FastLink,
        AsItIs::Apart,
        AsItIs::Crowded,
    ];
}

/// What happened since the start. None of these ever goes down.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counters {
    /// Flows that the near side opened.
    pub opened_here: u64,
    /// Flows that the far side opened.
    pub opened_there: u64,
    /// Openings of the far side that were refused for want of memory or flows.
    pub refused: u64,
    /// Refusals and resets that could not even be queued: the peer opens flows and takes no answer.
    pub refusals_dropped: u64,
    /// Answers to proposals of dictionaries that were not given, because the peer takes none and
    /// goes on proposing.
    pub answers_dropped: u64,
    /// Steps of walks over queues and lists: what a peer sends costs a few of them for each of its
    /// messages, whatever it sends.
    pub walked: u64,
    /// Flows that ended in order, both ways.
    pub closed: u64,
    /// Flows that the near side reset.
    pub reset_here: u64,
    /// Flows that the far side reset.
    pub reset_there: u64,
    /// Flows that the near side opened and the far side ended for lack of room there.
    pub refused_there: u64,
    /// Flows that went with the peer: restarted, given up, or closed.
    pub lost: u64,
    /// Flows that were reset because memory ran out.
    pub squeezed: u64,
    /// Flows whose far side broke the rules and that were reset for it.
    pub breaches: u64,
    /// Messages of flows that had ended: they crossed with a reset.
    pub late: u64,
    /// Payloads that could not be read.
    pub malformed: u64,
    /// Those among them with a stream that is not TCP, or with packets that are or have no protocol
    /// of packets.
    pub wrong_protocols: u64,
    /// Those among them with an IPv4 address in a form of IPv6, or with addresses of two families.
    pub wrong_addresses: u64,
    /// Buffers packed and given to the mover.
    pub buffers_out: u64,
    /// Buffers taken apart.
    pub buffers_in: u64,
    /// Messages packed.
    pub messages_out: u64,
    /// Messages taken out of buffers.
    pub messages_in: u64,
    /// Datagrams packed.
    pub datagrams_out: u64,
    /// Datagrams received from the far side.
    pub datagrams_in: u64,
    /// Datagrams dropped because they had waited too long for the link.
    pub datagrams_stale: u64,
    /// Datagrams of the far side dropped because they came too long after those behind them.
    pub datagrams_late: u64,
    /// Datagrams dropped because too many waited.
    pub datagrams_full: u64,
    /// Flows of datagrams that were refused, of either side, because too many live.
    pub exchanges_refused: u64,
    /// Application bytes read from the near side and packed.
    pub bytes_out: u64,
    /// Application bytes received from the far side.
    pub bytes_in: u64,
    /// Application bytes that the near side's applications took.
    pub bytes_delivered: u64,
}
