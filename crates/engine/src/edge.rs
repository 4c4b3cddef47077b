//! The engine as the edges see it: where the packet driver reads, and what it tells.

use crate::{FlowId, PacketKey, Status, StreamKey, Treatment};

/// Where the packet driver reads: the edges, seen by the engine.
pub trait Source {
    /// Reads what the flow's application has written, straight into the buffer that will go on the
    /// wire. `into` is never empty; what is not filled is not sent.
    fn read(&mut self, flow: FlowId, into: &mut [u8]) -> Read;
}

/// What a [`Source`] had.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Read {
    /// This many bytes were read, at least one.
    Bytes(usize),
    /// Nothing now. The engine forgets that the flow was ready until
    /// [`Peer::readable`](crate::Peer::readable).
    Blocked,
    /// The application has ended this direction.
    End,
    /// The application's connection broke. The flow ends with this status, as by
    /// [`Peer::reset`](crate::Peer::reset), and [`Event::Reset`] follows, so that the edge can
    /// forget the flow outside of this call.
    Failed(Status),
}

/// What the edges and the program must know. Events of a flow that the edge has ended meanwhile may
/// still come: pass over them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Event {
    /// A session with the peer stands. `fresh`: with another instance than before, or the first
    /// one.
    Connected {
        /// No flow of before lives.
        fresh: bool,
    },
    /// Nothing was heard from the peer for a while; flows live on.
    Silent,
    /// The peer is heard again.
    Heard,
    /// The peer was given up: all its flows were reset. The mover goes on trying to reach it.
    Dead,
    /// The far side opened a flow: connect to `key.destination` from `key.source`, then
    /// [`accept`](crate::Peer::accept) or [`reset`](crate::Peer::reset).
    Open {
        /// Its number.
        flow: FlowId,
        /// Its addresses.
        key: StreamKey,
        /// How the far side's rule wants it to be treated.
        asked: Treatment,
    },
    /// The far side opened a flow of packets, which
    /// [`Peer::take_packets`](crate::Peer::take_packets) gives from now on unless it is
    /// [reset](crate::Peer::reset). Its end is told by `Closed` or `Reset`.
    PacketFlow {
        /// Its number.
        flow: FlowId,
        /// Its addresses.
        key: PacketKey,
        /// How the far side's rule wants it to be treated.
        asked: Treatment,
    },
    /// There is something to deliver where there was nothing. Comes again after each time that all
    /// was taken.
    Deliver {
        /// Whose.
        flow: FlowId,
    },
    /// All bytes of the far application have been taken by `delivered`: shut down the write side.
    Finish {
        /// Of which flow.
        flow: FlowId,
    },
    /// The far side has connected.
    Accepted {
        /// Which flow.
        flow: FlowId,
    },
    /// The flow is gone: abort the application's connection.
    Reset {
        /// Which flow.
        flow: FlowId,
        /// Why.
        status: Status,
    },
    /// Both directions ended in order, or a flow of packets has rested for long enough: it is
    /// gone, close the socket.
    Closed {
        /// Which flow.
        flow: FlowId,
    },
}
