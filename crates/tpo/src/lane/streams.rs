//! The streams of one lane: joins the edges of TCP connections to the flows of the engine.
//!
//! Takes accepted connections from the gate and flows that the peer has opened from the engine's
//! events; gives each a flow and an edge, and ends both together.

use std::net::TcpStream;
use std::time::Instant;

use mio::Registry;
use mio::event::Event;
use tpo_engine::{FlowId, OpenError, Peer, Source, Status, StreamKey, Treatment};
use tracing::debug;

use super::way_out::{Destination, HandedOn, WayOut};
use crate::edge::shares::{Opener, Permit, Shares};
use crate::edge::tcp::{Begins, Edges, Happened, NewEdge};
use crate::intercept::tcp::reset_on_close;
use crate::lanes::handle::Accepted;

/// What became of connections and flows; the meaning of each stands at
/// [`Counters`](crate::lanes::report::Counters).
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct StreamCounters {
    pub(super) refused_not_connected: u64,
    pub(super) refused_no_room: u64,
    pub(super) no_descriptors: u64,
    pub(super) connects_given_up: u64,
    pub(super) not_allowed: u64,
}

/// The streams of one lane.
pub(super) struct Streams {
    edges: Edges,
    shares: Shares,
    pub(super) ways: WayOut,
    pub(super) counters: StreamCounters,
}

impl Streams {
    /// No stream yet. The edges' sockets are registered with `registry`.
    pub(super) fn new(registry: Registry, shares: Shares, ways: WayOut) -> Streams {
        Streams {
            edges: Edges::new(registry),
            shares,
            ways,
            counters: StreamCounters::default(),
        }
    }

    /// Edges that live.
    pub(super) fn len(&self) -> usize {
        self.edges.len()
    }

    /// Where the engine reads what applications have written.
    pub(super) fn source(&mut self) -> &mut impl Source {
        &mut self.edges
    }

    /// An accepted connection becomes a flow, or is reset.
    pub(super) fn accept(&mut self, accepted: Accepted, peer: &mut Peer, now: Instant) {
        let Accepted {
            socket,
            key,
            treatment,
            descriptor,
        } = accepted;
        let (client, server) = (key.source, key.destination);
        match peer.open(key, treatment, now) {
            Ok(flow) => {
                let edge = NewEdge {
                    socket,
                    descriptor,
                    begins: Begins::Open,
                };
                if let Err(error) = self.edges.insert(flow, edge) {
                    debug!(%error, "no edge for an accepted connection");
                    peer.reset(flow, Status::NoResources, now);
                }
                peer.readable(flow, now);
            }
            Err(refusal) => {
                match refusal {
                    OpenError::NotConnected => self.counters.refused_not_connected += 1,
                    _ => self.counters.refused_no_room += 1,
                }
                debug!(%client, %server, %refusal, "an accepted connection could not become a flow");
                reset_on_close(&socket);
            }
        }
    }

    /// The peer has opened a flow.
    pub(super) fn open(
        &mut self,
        flow: FlowId,
        key: &StreamKey,
        asked: &Treatment,
        peer: &mut Peer,
        now: Instant,
    ) {
        if let Err(status) = self.begin(flow, key, asked, peer, now) {
            match status {
                Status::NotAllowed => self.counters.not_allowed += 1,
                Status::NoResources => self.counters.no_descriptors += 1,
                _ => {}
            }
            self.ways.forget(flow);
            peer.reset(flow, status, now);
        }
    }

    fn begin(
        &mut self,
        flow: FlowId,
        key: &StreamKey,
        asked: &Treatment,
        peer: &mut Peer,
        now: Instant,
    ) -> Result<(), Status> {
        let descriptor = self.take_descriptor()?;
        let (socket, begins) = self.way_out(flow, key, asked, peer, now)?;
        let edge = NewEdge {
            socket,
            descriptor,
            begins,
        };
        self.edges.insert(flow, edge).map_err(|error| {
            debug!(%error, "no edge for the peer's flow");
            Status::NoResources
        })
    }

    /// One of the peer's share, for a flow that it has opened.
    fn take_descriptor(&self) -> Result<Permit, Status> {
        let permit = self.shares.descriptors.take(Opener::Far);
        permit.ok_or(Status::NoResources)
    }

    /// A socket to the destination of the peer's flow, or to the lane of the peer to which it goes
    /// on, and how it begins.
    fn way_out(
        &mut self,
        flow: FlowId,
        key: &StreamKey,
        asked: &Treatment,
        peer: &mut Peer,
        now: Instant,
    ) -> Result<(TcpStream, Begins), Status> {
        match self.ways.of_stream(key)? {
            Destination::Here => {
                let connect = self.begin_connect(peer, now)?;
                Ok((self.ways.connect(key)?, Begins::Connecting(connect)))
            }
            Destination::Peer(transit, to, ruled) => {
                let handed = HandedOn {
                    key,
                    treatment: ruled.treatment.after(asked),
                    descriptor: self.take_descriptor()?,
                };
                let near = self.ways.hand_on(flow, &transit, to, handed)?;
                Ok((near, Begins::Joining))
            }
        }
    }

    /// Room for one more connect, at the cost of the one that has waited longest if there is no
    /// other.
    fn begin_connect(&mut self, peer: &mut Peer, now: Instant) -> Result<Permit, Status> {
        loop {
            match self.edges.begin_connect(&self.shares.half_open) {
                Ok(permit) => return Ok(permit),
                Err(Some(oldest)) => {
                    self.counters.connects_given_up += 1;
                    self.on_broken(oldest, Status::TimedOut, peer, now);
                }
                Err(None) => return Err(Status::NoResources),
            }
        }
    }

    /// The poll says that something happened at an edge.
    pub(super) fn on_event(&mut self, event: &Event, peer: &mut Peer, now: Instant) {
        match self.edges.handle_event(event) {
            Happened::Nothing => {}
            Happened::Connected(flow) => {
                peer.accept(flow, now);
                peer.readable(flow, now);
                self.deliver(flow, peer, now);
            }
            Happened::Broken(flow, status) => self.on_broken(flow, status, peer, now),
            Happened::Ready {
                flow,
                readable,
                writable,
            } => {
                if readable {
                    peer.readable(flow, now);
                }
                if writable {
                    self.deliver(flow, peer, now);
                }
            }
        }
    }

    /// Writes what has come for a flow to its application.
    pub(super) fn deliver(&mut self, flow: FlowId, peer: &mut Peer, now: Instant) {
        if let Err(status) = self.edges.deliver(peer, flow, now) {
            self.on_broken(flow, status, peer, now);
        }
    }

    /// The application's connection is gone: the flow goes with it.
    fn on_broken(&mut self, flow: FlowId, status: Status, peer: &mut Peer, now: Instant) {
        peer.reset(flow, status, now);
        self.on_reset(flow);
    }

    /// The far application has finished.
    pub(super) fn on_finish(&mut self, flow: FlowId) {
        self.edges.finish(flow);
    }

    /// Both ends have finished.
    pub(super) fn on_closed(&mut self, flow: FlowId) {
        self.edges.close(flow);
        self.ways.forget(flow);
    }

    /// The flow is broken: so is its application's connection.
    pub(super) fn on_reset(&mut self, flow: FlowId) {
        self.edges.reset(flow);
        self.ways.forget(flow);
    }
}
