//! What a [`Peer`](crate::Peer) is told at its start, and every bound of the engine with its
//! reason.

use std::time::Duration;

use crate::Compression;

/// What a [`Peer`](crate::Peer) is told at its start.
#[derive(Clone)]
pub struct Config {
    /// The data mover below. Its `initial_credit` is overwritten with the one in `limits`.
    pub mover: tpo_mover::Config,
    /// The packet driver's largest buffer, bytes (claim 11: "no larger than a set maximum").
    pub buffer_size: usize,
    /// How much one peer may cost.
    pub limits: Limits,
    /// Whether and how buffers are compressed.
    pub compression: Compression,
}

impl Config {
    /// The usual buffer: what shrinks does so the better the more of it there is (4 MiB of
    /// documentation at level 9: 0.207 of themselves, 0.216 with half of this), and what does not
    /// is cut to what the link takes at a time anyway.
    pub const BUFFER_SIZE: usize = 128 * 1024;

    /// What the embedding program may remember of each flow of packets: 512 bytes, for the flow's
    /// key in tables of its own, which may have just grown to twice what they need. Charged with
    /// the flow.
    pub const EDGE_COST: usize = 512;

    /// The usual buffer and limits over this mover.
    pub fn new(mover: tpo_mover::Config) -> Config {
        Config {
            mover,
            buffer_size: Config::BUFFER_SIZE,
            limits: Limits::default(),
            compression: Compression::default(),
        }
    }
}

/// How much one peer may cost. The worst case is about `1.1 x peer_bytes`, flows and their
/// bookkeeping among it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Flows that may live at once; more are refused. 131,072 idle flows are some 40 MB.
    pub flows: usize,
    /// Bytes that one flow may hold here, bookkeeping included. Above `max_credit` by the
    /// bookkeeping's share.
    pub flow_bytes: usize,
    /// Bytes that the peer may cost in all: its flows, its queues, compression, and its mover. Of
    /// what is left for flows new ones are refused beyond seven eighths, and credits shrink; a
    /// quarter above that the flow that holds most is reset.
    /// [`Peer::set_budget`](crate::Peer::set_budget) lowers it at run time.
    pub peer_bytes: usize,
    /// What a new flow may send before it has heard from us: one start-up window of a fast link.
    pub initial_credit: u32,
    /// Flows of packets that may live at once, beside the streams; more are refused, and those
    /// that live are not touched. 131,072 idle ones are charged 168 MB, what their edges remember
    /// included.
    pub packet_flows: usize,
    /// How long a flow of packets lives without a packet when only one side has sent any.
    pub one_way: Duration,
    /// The same when both have.
    pub both_ways: Duration,
    /// The largest window that autotuning gives a flow: 1 Gbit/s for 250 ms, six times; or 500
    /// Mbit/s for 600 ms and 5 % of loss, where a byte waits for up to three repairs of what is
    /// before it (with 128 MiB 0.88 of the link, with this 0.99).
    pub max_credit: usize,
}

impl Limits {
    /// Windows stay below what a flow may hold, so that the bookkeeping has room too.
    pub(crate) fn largest_window(&self) -> u64 {
        self.max_credit.min(self.flow_bytes / 4 * 3) as u64
    }

    /// The initial credit that is announced to the peer.
    pub(crate) fn announced_credit(&self) -> u32 {
        self.initial_credit
            .min(u32::try_from(self.largest_window()).unwrap_or(u32::MAX))
    }
}

impl Default for Limits {
    fn default() -> Limits {
        Limits {
            flows: 131_072,
            flow_bytes: 288 << 20,
            peer_bytes: 512 << 20,
            packet_flows: 131_072,
            one_way: Duration::from_secs(30),
            both_ways: Duration::from_secs(180),
            initial_credit: 256 << 10,
            max_credit: 192 << 20,
        }
    }
}

/// The smallest window that a running stream works with: 64 KiB. A smaller initial credit is raised
/// to it when the stream is accepted.
pub(crate) const MIN_WINDOW: u64 = 64 << 10;

/// Bytes that may wait for an application that takes none before its far side is told to pause: 256
/// KiB, a new stream's first credit. What is under way then comes on top.
pub(crate) const PAUSE_FROM: u64 = 256 << 10;

/// How long an application must have taken nothing to count as stalled: 50 ms, and a round trip. A
/// host that is busy elsewhere pauses for less.
pub(crate) const STALLED: Duration = Duration::from_millis(50);

/// The shortest round trip by which a slow application is judged: 25 ms. The sender is paused when
/// eight round trips of the application's rate wait, and goes on when four do. A busy host lets a
/// thread wait for tens of milliseconds, and nobody shall run dry meanwhile.
pub(crate) const AHEAD: Duration = Duration::from_millis(25);

/// The part of the free memory beyond which no window grows while more than half of the memory is
/// in use: an eighth. Thirty streams that stop one after the other, however fast each was, leave
/// some of that half even if each fills its own.
pub(crate) const FREE_PART: usize = 8;

/// The shortest round trip by which windows are sized: 2 ms. Shorter ones are mostly our own
/// scheduling.
pub(crate) const MIN_RTT: Duration = Duration::from_millis(2);

/// The round trip before the mover has measured one: 100 ms, a wide guess, so that start-up is not
/// held back.
pub(crate) const UNKNOWN_RTT: Duration = Duration::from_millis(100);

/// Bytes sent recently up to which a stream whose rule asks for no class is interactive: 64 KiB,
/// which is every request, and answers whose delay a person notices.
pub(crate) const SPARSE: u32 = 64 << 10;

/// On a slow link a stream is interactive up to what the link carries in this time: 100 ms. Other
/// answers wait for this one.
pub(crate) const SPARSE_TIME: Duration = Duration::from_millis(100);

/// However slow the link is, a stream is interactive up to this many bytes: 16 KiB.
pub(crate) const LEAST_SPARSE: u32 = 16 << 10;

/// Bytes sent recently beyond which a stream is bulk: 1 MiB. Between [`SPARSE`] and this it is
/// normal.
pub(crate) const LONG: u32 = 1 << 20;

/// Bytes per millisecond of idle time that are forgotten of what a stream has sent: 64, half a
/// megabit per second. So a terminal or a call stays interactive however long it lives.
pub(crate) const SPARSE_RATE_MS: u32 = 64;

/// How long a stream must send nothing to count as new again: 500 ms, for the next request on a
/// connection that was kept open.
pub(crate) const PAUSE: Duration = Duration::from_millis(500);

/// Bytes that a flow may send before the next flow of its class has its turn: 16 KiB, eleven full
/// datagrams. Larger turns cost less per byte, smaller ones less waiting for the neighbours; this
/// is 1.3 ms of a 100 Mbit/s link. On faster links a turn is what they carry in [`TURN_TIME`], up
/// to [`MOST_QUANTUM`].
pub(crate) const QUANTUM: usize = 16 << 10;

/// The longest turn, bytes: 64 KiB, one batch of datagrams.
pub(crate) const MOST_QUANTUM: usize = 64 << 10;

/// How long a turn takes the link: 1.25 ms, as [`QUANTUM`] does at 100 Mbit/s.
pub(crate) const TURN_TIME: Duration = Duration::from_micros(1_250);

/// Bytes of a class for each unit of its weight and round: 8 KiB.
pub(crate) const CLASS_UNIT: usize = 8 << 10;

/// The smallest read that is made only to fill a buffer up: 64 bytes. A smaller one would cost a
/// system call for a few bytes.
pub(crate) const MIN_PIECE: usize = 64;

/// What keeping one piece of data costs beside its bytes: 96 bytes, for the queue entry, the
/// reference count and the allocator.
pub(crate) const CHUNK_COST: usize = 96;

/// What an early piece costs beside [`CHUNK_COST`]: 160 bytes, for its entry in a tree that may be
/// half empty.
pub(crate) const EARLY_COST: usize = 160;

/// What a stream costs beside what it holds: 512 bytes, for itself, its places in tables and in the
/// schedule, and what its buffers did when compressed.
pub(crate) const FLOW_COST: usize = 512;

/// The same of a flow of packets, bytes, what its edge remembers of it included.
pub(crate) const PACKET_FLOW_COST: usize = 768 + Config::EDGE_COST;

/// What a packet costs that waits for the link, or for one before it, beside its bytes: 128 bytes.
pub(crate) const PACKET_COST: usize = 128;

/// Pieces below this many bytes are copied together instead of keeping the payload that they came
/// in.
pub(crate) const SMALL_PIECE: usize = 1024;

/// Small pieces are copied together up to this many bytes.
pub(crate) const SMALL_CHUNK: usize = 4096;

/// Slices that `deliverable` gives at most: 64, what one `writev` takes well.
pub(crate) const MAX_SLICES: usize = 64;

/// Refusals that wait for the link at most: 65,536, which are 1.5 MB. Beyond it an opening is
/// dropped without an answer. Resets of flows that lived may wait beside them, one for each flow
/// that may live.
pub(crate) const MAX_REFUSALS: usize = 65_536;

/// Bytes of packets of one flow that may wait for the link: 4 MiB, a tenth of a second at 300
/// Mbit/s. Beyond that age ends the wait anyway.
pub(crate) const WAITING_FLOW_BYTES: usize = 4 << 20;

/// The same for all flows of a peer: 16 MiB.
pub(crate) const WAITING_BYTES: usize = 16 << 20;

/// Blocks of packets that may wait for the link at a time: 16, some hundred microseconds of the
/// fastest sender each, of 320 KiB at most. What waits longer than that is copied out of its block.
pub(crate) const MOST_BLOCKS: usize = 16;

/// Bytes in front of a packet that are not in its block, at most.
pub(crate) const MAX_PACKET_FRONT: usize = 7;

/// How long a small packet waits for others to share their headers with, if enough come: 1 ms, the
/// most that is ever spent on that.
pub(crate) const GATHER: Duration = Duration::from_millis(1);

/// How long a notice waits for company: 2 ms. That a flow was accepted waits for an answer, which
/// says it too; the second end of a stream waits for anything to ride on.
pub(crate) const NOTICE: Duration = Duration::from_millis(2);

/// How long a new stream waits for its first bytes, which open it too: 500 µs. A client that speaks
/// first has them on their way when it is told that it is connected; one that waits for the server
/// to speak first waits for this time in vain.
pub(crate) const OPENING: Duration = Duration::from_micros(500);

/// The time over which it is judged how fast small packets come: about 8 ms.
pub(crate) const GATHER_MEMORY: Duration = Duration::from_millis(8);

/// How long a packet waits for those that it overtook: 1 ms. Parity brings lost ones back later
/// than that, and nobody waits for them.
pub(crate) const HOLD: Duration = Duration::from_millis(1);

/// The same in a flow whose rule asks for order: 12 ms, in which parity brings lost packets back. A
/// sender that takes a gap of three packets for a loss (QUIC, RFC 9002, section 6.1.1) would slow
/// down for each of them otherwise.
pub(crate) const HOLD_IN_ORDER: Duration = Duration::from_millis(12);

/// Packets of one flow that wait for others before them: 64, a millisecond at 64,000 a second.
pub(crate) const MOST_HELD_BACK: usize = 64;

/// The same of a flow in order: 1,024, twelve milliseconds at a gigabit.
pub(crate) const MOST_HELD_IN_ORDER: usize = 1_024;

/// Packets of all flows of a peer that wait for others before them: 16,384, twelve milliseconds of
/// many flows. Beyond it none waits.
pub(crate) const MOST_HOLDING: usize = 16_384;

/// What those packets may cost: 4 MiB. Beyond it none waits.
pub(crate) const HOLDING_BYTES: usize = 4 << 20;

/// The latest that a packet is given on after those behind it: 300 ms. Later it is of no use any
/// more; nor would it wait longer for the link.
pub(crate) const LATEST: Duration = Duration::from_millis(300);

/// Gaps in the numbers of a flow that are remembered, to know how late their packets are: 64.
pub(crate) const MOST_GAPS: usize = 64;

/// Events that wait for the edges at most before another payload is taken apart: 16,384. The edges
/// fetch them after each input; one datagram can complete dozens of payloads of 256 KiB. The rest
/// waits in the mover.
pub(crate) const MOST_EVENTS: usize = 16_384;

/// The same of bytes of packets: 4 MiB.
pub(crate) const ARRIVED_BYTES: usize = 4 << 20;

/// Entries for which an empty queue keeps its room: 4,096. More is given back.
pub(crate) const QUEUE_ROOM: usize = 4_096;

/// Answers to proposals of dictionaries that wait for the link at most: 8. A sender has two
/// proposals open at most; others are not answered.
pub(crate) const MOST_ANSWERS: usize = 8;

/// Buffers of single packets that are kept to be filled again: 1,024.
pub(crate) const SPARE_PACKETS: usize = 1_024;

/// Entries of ended flows of packets that may wait for their time: 4,096. Below it nobody looks for
/// them.
pub(crate) const ENDS_SLACK: usize = 4_096;

/// Two flows of packets between the same ends, one opened by each side, are one if they were opened
/// within this time: 10 s.
pub(crate) const CROSSING: Duration = Duration::from_secs(10);

/// How long a flow of packets that the far side refused is not tried again: 10 s.
pub(crate) const REFUSED_FOR: Duration = Duration::from_secs(10);

/// Messages of ended flows that may always wait in the control queue: 1,024. Below it nobody looks
/// for them.
pub(crate) const CONTROL_SLACK: usize = 1024;

/// How long a reset of the far application waits for the near one to take the data before it: 10 s,
/// counted from the last byte taken.
pub(crate) const RESET_LINGER: Duration = Duration::from_secs(10);

/// The smallest buffer that gains by compression: 96 bytes. Of a smaller one the header of what was
/// compressed takes as much as is gained.
pub(crate) const SMALLEST: usize = 96;

/// The largest buffer after decompression: what the mover takes at all.
pub(crate) const MOST_RAW: usize = tpo_mover::Limits::MAX_PAYLOAD;

/// Bytes of a dictionary, and of buffers kept by the sender for the next one: 4 MiB. 4 MiB of
/// documentation in buffers of 64 KiB at level 9 shrink to 0.215 of themselves with 1 MiB, 0.210
/// with twice as much, 0.205 with this.
pub(crate) const DICTIONARY: usize = 4 << 20;

/// Dictionaries that are asked for at a time: 2. With one alone each is a round trip older when the
/// next is proposed. The receiver keeps one more.
pub(crate) const PROPOSED: usize = 2;

/// Level 9 is for links below this rate: 625,000 bytes per second, 5 Mbit/s.
pub(crate) const FINEST_BELOW: u64 = 625_000;

/// On links above this rate dictionaries are smaller: 2,500,000 bytes per second, 20 Mbit/s.
/// Buffers are large there, and to make a dictionary of 1 MiB takes four milliseconds of a core.
pub(crate) const SMALL_DICTIONARY_ABOVE: u64 = 2_500_000;

/// Bytes of a dictionary on those links: 128 KiB.
pub(crate) const SMALL_DICTIONARY: usize = 128 << 10;

/// The shortest time between two looks for flows that may be over: 200 ms, since there may be many.
pub(crate) const LOOK_AFTER: Duration = Duration::from_millis(200);

/// How long no buffer must have been compressed before what compression holds is given back: 60 s.
pub(crate) const COMPRESSION_RESTS: Duration = Duration::from_secs(60);

/// The same for the peer's dictionaries: 120 s. The peer uses none any more that it has not used
/// for [`COMPRESSION_RESTS`], and the rest is time for what was under way. While the peer is silent
/// this time stands still, because what is under way then may come whenever the silence ends.
pub(crate) const DICTIONARIES_REST: Duration = Duration::from_secs(120);

/// Bytes of which the first dictionary is made, as soon as they are there: 4 KiB. Short flows of
/// packets gain most.
pub(crate) const HISTORY_FIRST: usize = 4 << 10;

/// Bytes that must be new for a later dictionary: as many as the last one has, up to 64 KiB.
pub(crate) const HISTORY_FRESH: usize = 64 << 10;

/// The part of a later dictionary that must be new at least: a thirty-second.
pub(crate) const HISTORY_SHARE: usize = 32;

/// Bytes of buffers kept by the receiver: 8 MiB. A proposal may wait for a repair while the sender
/// goes on. Dictionaries come on top.
pub(crate) const MOST_HISTORY: usize = 8 << 20;

/// What a buffer of the history costs beside its bytes: 128 bytes, for an entry of a tree that may
/// be half empty, its counts, and the allocator's own.
pub(crate) const KEPT_COST: usize = 128;

/// Bytes of dictionaries that a receiver makes for each byte of the buffers that they may be made
/// of: twice what a sender asks for, which has one made of `HISTORY_SHARE` times what is new. Who
/// asks for more has others make dictionaries for nothing.
pub(crate) const MADE_FOR_EACH: usize = 2 * HISTORY_SHARE;

/// The rate above which no dictionary is made: 50,000,000 bytes per second, 400 Mbit/s. Buffers are
/// large there anyway, and making dictionaries would hold the lane up.
pub(crate) const NO_DICTIONARY: u64 = 50_000_000;

/// How long a compressed buffer of one flow may take the link: 120 ms. The larger a buffer, the
/// better it shrinks; what somebody waits for overtakes it.
pub(crate) const COMPRESSED_TIME: Duration = Duration::from_millis(120);
