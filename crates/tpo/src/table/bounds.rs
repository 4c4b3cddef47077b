//! What the kernel may take from the LANs at most. Comes from the configuration, goes into the
//! kernel's rules ([`crate::intercept`]).

use std::time::Duration;

/// What the kernel may take from the LANs at most.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bounds {
    /// SYNs per second of one source that has completed a handshake before; as many may come at
    /// once. A source that completes a thousand of them in a second may send three quarters of what
    /// all known ones may.
    pub syns_per_source: u32,
    /// SYNs per second of all sources together; as many may come at once.
    pub syns: u32,
    /// Flows of packets that all peers together may have here at once.
    pub flows: usize,
    /// How long the kernel leads answers to a packet out of the TUN device back into it, while no
    /// answer has come: as long as the packet's flow may live without any.
    /// [`Table::packets_rest`](super::Table::packets_rest) says it for flows that were answered.
    pub rest_one_way: Duration,
}

impl Default for Bounds {
    fn default() -> Bounds {
        Bounds {
            // A load tester of 2,000 connections per second, or the burst of a site behind one
            // address, has room at once.
            syns_per_source: 3_000,
            // Four times this many half-open connections fill 16 listeners of the kernel's default,
            // 4,096 each: those of three seconds, after which an unanswered one is given up, and a
            // burst.
            syns: 16_000,
            flows: tpo_engine::Limits::default().flows,
            rest_one_way: Duration::from_secs(60),
        }
    }
}

impl Bounds {
    /// Half-open connections that the listeners must have room for, so that their queues never
    /// fill.
    pub(crate) fn half_open(&self) -> usize {
        let seconds = HALF_OPEN_SECONDS + 1; // and the burst of a second
        self.syns as usize * seconds
    }
}

/// Seconds after which the listening sockets give up a handshake that nobody answers: 1 s until the
/// SYN-ACK is repeated, and 2 s more.
pub(crate) const HALF_OPEN_SECONDS: usize = 3;
