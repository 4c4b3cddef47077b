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

    /// What the embedding program may remember of each flow of datagrams, bytes: its key in tables
    /// of its own, which may have just grown to twice what they need. Charged with the flow.
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
    /// Flows of datagrams that may live at once, beside the streams; more are refused, and those
    /// that live are not touched. 131,072 idle ones are charged 168 MB, what their edges remember
    /// included.
    pub packet_flows: usize,
    /// A flow of datagrams in which only one side has spoken ends after so long without one.
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

/// The smallest window that a running flow works with: a smaller initial credit is raised to it
/// when the flow is accepted.
pub(crate) const MIN_WINDOW: u64 = 64 << 10;

/// So many bytes may wait for an application that takes none, before its far side is told to pause:
/// a new flow's first credit. What is under way then comes on top.
pub(crate) const PAUSE_FROM: u64 = 256 << 10;

/// It takes none when it has taken none for so long, and for a round trip: a host that is busy
/// elsewhere does less.
pub(crate) const STALLED: Duration = Duration::from_millis(50);

/// A slow one may have eight round trips of its rate waiting, and goes on with four; shorter round
/// trips count as so long: a busy host lets a thread wait for tens of milliseconds, and nobody
/// shall run dry meanwhile.
pub(crate) const AHEAD: Duration = Duration::from_millis(25);

/// While more than half of the memory is in use, no window grows beyond this part of what is free:
/// thirty flows that stop one after the other, however fast each was, leave some of that half even
/// if each fills its own.
pub(crate) const FREE_PART: usize = 8;

/// Round trips shorter than this are mostly our own scheduling: windows are sized as if the path
/// took this long.
pub(crate) const MIN_RTT: Duration = Duration::from_millis(2);

/// Before the mover has measured a round trip: a wide guess, so that start-up is not held back.
pub(crate) const UNKNOWN_RTT: Duration = Duration::from_millis(100);

/// A flow whose rule asks for no class is treated as interactive until it has sent this much of
/// late: every request, and answers whose delay somebody notices.
pub(crate) const SPARSE: u32 = 64 << 10;

/// On a slow link no more than it carries in so much time, but so many bytes at least: other
/// answers wait for this one.
pub(crate) const SPARSE_TIME: Duration = Duration::from_millis(100);
pub(crate) const LEAST_SPARSE: u32 = 16 << 10;

/// It becomes bulk when it has sent this much of late; between the two it is normal.
pub(crate) const LONG: u32 = 1 << 20;

/// Bytes per millisecond that count as nothing: a flow that sends no more than half a megabit per
/// second, like a terminal or a call, stays interactive for ever.
pub(crate) const SPARSE_RATE_MS: u32 = 64;

/// After so long without sending a flow is new again: the next request on a connection that was
/// kept open.
pub(crate) const PAUSE: Duration = Duration::from_millis(500);

/// Bytes that a flow may send before the next flow of its class has its turn: eleven full
/// datagrams. Larger ones cost less per byte, smaller ones less waiting for the neighbours; 16 KiB
/// is 1.3 ms of a 100 Mbit/s link. Faster ones have as much as they carry in [`TURN_TIME`], up to a
/// batch.
pub(crate) const QUANTUM: usize = 16 << 10;
pub(crate) const MOST_QUANTUM: usize = 64 << 10;
pub(crate) const TURN_TIME: Duration = Duration::from_micros(1_250);

/// Bytes of a class for each unit of its weight and round.
pub(crate) const CLASS_UNIT: usize = 8 << 10;

/// No read smaller than this is made only to fill a buffer up: it would cost a system call for a
/// few bytes.
pub(crate) const MIN_PIECE: usize = 64;

/// What keeping one piece of data costs beside its bytes: queue entry, reference count, allocator.
pub(crate) const CHUNK_COST: usize = 96;

/// What an early piece costs beside that: its entry in a tree that may be half empty.
pub(crate) const EARLY_COST: usize = 160;

/// What a flow costs beside what it holds: itself, its places in tables and in the schedule, what
/// its buffers did when compressed. Bytes.
pub(crate) const FLOW_COST: usize = 512;

/// The same of a flow of datagrams, what its edge remembers of it included.
pub(crate) const PACKET_FLOW_COST: usize = 768 + Config::EDGE_COST;

/// What a datagram costs that waits for the link, or for one before it, beside its bytes.
pub(crate) const PACKET_COST: usize = 128;

/// Pieces below this are copied together instead of keeping the payload that they came in.
pub(crate) const SMALL_PIECE: usize = 1024;

/// Small pieces are copied together up to this size.
pub(crate) const SMALL_CHUNK: usize = 4096;

/// Slices that `deliverable` gives at most: what one `writev` takes well.
pub(crate) const MAX_SLICES: usize = 64;

/// Refusals that wait for the link at most; beyond it an opening is dropped without an answer. 1.5
/// MB. Resets of flows that lived may wait beside them, one for each flow that may live.
pub(crate) const MAX_REFUSALS: usize = 65_536;

/// Bytes of datagrams of one flow that may wait for the link: a tenth of a second at 300 Mbit/s,
/// beyond which age ends the wait anyway.
pub(crate) const WAITING_FLOW_BYTES: usize = 4 << 20;

/// The same for all flows of a peer.
pub(crate) const WAITING_BYTES: usize = 16 << 20;

/// Blocks of packets that may wait for the link at a time: some hundred microseconds of the fastest
/// sender each, of 330 KB at most. What waits longer than that is copied out of its block.
pub(crate) const MOST_BLOCKS: usize = 16;

/// Bytes in front of a packet that are not in its block, at most.
pub(crate) const MAX_PACKET_FRONT: usize = 7;

/// Small datagrams wait so long for others to share their headers with, if enough come: the most
/// that is ever spent on that.
pub(crate) const GATHER: Duration = Duration::from_millis(1);

/// That a flow was accepted waits so long for an answer, which says it too; the second end of one,
/// for anything to ride on.
pub(crate) const NOTICE: Duration = Duration::from_millis(2);

/// A new flow waits so long for its first bytes, which open it too: a client that speaks first has
/// them on their way when it is told that it is connected. Who waits for the server to speak first
/// waits so much longer.
pub(crate) const OPENING: Duration = Duration::from_micros(500);

/// How fast they come is judged by about so long.
pub(crate) const GATHER_MEMORY: Duration = Duration::from_millis(8);

/// A datagram that overtook others waits so long for them. Parity brings lost ones back later than
/// that, and nobody waits for them.
pub(crate) const HOLD: Duration = Duration::from_millis(1);

/// Unless its rule asks for order: then it waits for what parity brings back, which takes up to so
/// long. A sender that takes a gap of three datagrams for a loss (QUIC, RFC 9002, section 6.1.1)
/// would slow down for each of them otherwise.
pub(crate) const HOLD_IN_ORDER: Duration = Duration::from_millis(12);

/// Datagrams of one flow that wait so: a millisecond at 64,000 a second.
pub(crate) const MOST_HELD_BACK: usize = 64;

/// The same of a flow in order: twelve milliseconds at a gigabit.
pub(crate) const MOST_HELD_IN_ORDER: usize = 1_024;

/// Datagrams of all flows of a peer that wait so, and what they may cost: twelve milliseconds at a
/// gigabit. Beyond it none waits.
pub(crate) const MOST_HOLDING: usize = 16_384;
pub(crate) const HOLDING_BYTES: usize = 4 << 20;

/// A datagram that comes so long after those behind it were given on is of no use any more: nor
/// would it wait longer for the link.
pub(crate) const LATEST: Duration = Duration::from_millis(300);

/// Gaps in the numbers of a flow that are remembered, to know how late their datagrams are.
pub(crate) const MOST_GAPS: usize = 64;

/// Payloads are taken apart as long as fewer events and bytes of datagrams wait for the edges,
/// which fetch them after each input: one datagram can complete dozens of payloads of 256 KiB. The
/// rest waits in the mover.
pub(crate) const MOST_EVENTS: usize = 16_384;
pub(crate) const ARRIVED_BYTES: usize = 4 << 20;

/// Queues that are empty and had room for more entries than this are given back.
pub(crate) const QUEUE_ROOM: usize = 4_096;

/// Answers to proposals of dictionaries that wait for the link: a sender has two proposals open at
/// most. Others are not answered.
pub(crate) const MOST_ANSWERS: usize = 8;

/// Buffers of datagrams kept to be filled again.
pub(crate) const SPARE_PACKETS: usize = 1_024;

/// Entries of ended flows of datagrams that may wait for their time: below it nobody looks for
/// them.
pub(crate) const ENDS_SLACK: usize = 4_096;

/// Two flows of datagrams between the same ends, one opened by each side within so long, are one.
pub(crate) const CROSSING: Duration = Duration::from_secs(10);

/// A flow of datagrams that the far side refused is not tried again for so long.
pub(crate) const REFUSED_FOR: Duration = Duration::from_secs(10);

/// So many messages of ended flows may always wait: below it nobody looks for them.
pub(crate) const CONTROL_SLACK: usize = 1024;

/// How long a reset of the far application waits for the near one to take the data before it,
/// counted from the last byte taken.
pub(crate) const RESET_LINGER: Duration = Duration::from_secs(10);

/// Buffers with less than this gain nothing by compression: the header of what was compressed takes
/// as much.
pub(crate) const SMALLEST: usize = 96;

/// The largest buffer after decompression: what the mover takes at all.
pub(crate) const MOST_RAW: usize = tpo_mover::Limits::MAX_PAYLOAD;

/// Bytes of a dictionary, and of buffers kept by the sender for the next one: 4 MiB of
/// documentation in buffers of 64 KiB at level 9 shrink to 0.215 of themselves with 1 MiB, 0.210
/// with twice as much, 0.205 with this.
pub(crate) const DICTIONARY: usize = 4 << 20;

/// Dictionaries that are asked for at a time: with one alone each is a round trip older when the
/// next is proposed. The receiver keeps one more.
pub(crate) const PROPOSED: usize = 2;

/// Level 9 is for links below this rate (bytes per second).
pub(crate) const FINEST_BELOW: u64 = 625_000;

/// On links above this rate (bytes per second) dictionaries are smaller: buffers are large, and to
/// make one of 1 MiB takes four milliseconds of a core.
pub(crate) const SMALL_DICTIONARY_ABOVE: u64 = 2_500_000;
pub(crate) const SMALL_DICTIONARY: usize = 128 << 10;

/// Flows that may be over are looked at so often at most.
pub(crate) const LOOK_AFTER: Duration = Duration::from_millis(200);

/// After so long without a buffer what compression holds is given back.
pub(crate) const COMPRESSION_RESTS: Duration = Duration::from_secs(60);
/// And after so long the peer's dictionaries: the peer uses none any more that it has not used for
/// [`COMPRESSION_RESTS`], and the rest is time for what was under way. While the peer is silent
/// this time stands still, because what is under way then may come whenever the silence ends.
pub(crate) const DICTIONARIES_REST: Duration = Duration::from_secs(120);

/// The first dictionary is made of so many bytes, as soon as they are there: short flows of packets
/// gain most.
pub(crate) const HISTORY_FIRST: usize = 4 << 10;

/// Later ones when as many new bytes are there as the last one has, or so many, but at least one
/// part in so many of it.
pub(crate) const HISTORY_FRESH: usize = 64 << 10;
pub(crate) const HISTORY_SHARE: usize = 32;

/// Bytes of buffers kept by the receiver: a proposal may wait for a repair while the sender goes
/// on. Dictionaries come on top.
pub(crate) const MOST_HISTORY: usize = 8 << 20;

/// What a buffer of the history costs beside its bytes: an entry of a tree that may be half empty,
/// its counts, the allocator's own. Bytes.
pub(crate) const KEPT_COST: usize = 128;

/// Bytes of dictionaries that a receiver makes for each byte of the buffers that they may be made
/// of: twice what a sender asks for, which has one made of `HISTORY_SHARE` times what is new. Who
/// asks for more has others make dictionaries for nothing.
pub(crate) const MADE_FOR_EACH: usize = 2 * HISTORY_SHARE;

/// Above this rate buffers are large anyway, and making dictionaries would hold the lane up. Bytes
/// per second.
pub(crate) const NO_DICTIONARY: u64 = 50_000_000;

/// A buffer of a flow that shrinks may take the link for so long: the larger, the better it
/// shrinks. What somebody waits for overtakes it.
pub(crate) const COMPRESSED_TIME: Duration = Duration::from_millis(120);
