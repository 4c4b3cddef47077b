//! Where a flow goes that the peer has opened: to its destination from here, on to another peer, or
//! nowhere.
//!
//! Asked by the streams and by the loop for flows of packets; asks the exit (what the peer may
//! reach) and transit (what goes on to another peer).

use std::collections::HashMap;
use std::net::TcpStream;
use std::sync::Arc;

use tpo_engine::{FlowId, PacketKey, Status, StreamKey, Treatment};
use tracing::debug;

use crate::edge::exit::Exit;
use crate::edge::shares::Permit;
use crate::lanes::batch::Ruled;
use crate::lanes::handle::{Accepted, Command};
use crate::lanes::transit::{Next, Transit, pair};
use crate::table::peers::PeerId;

/// Where a stream of the peer goes.
pub(super) enum Destination {
    /// To its destination, from here.
    Here,
    /// On to another peer.
    Peer(Arc<Transit>, PeerId, Ruled),
}

/// The way out of one lane.
pub(super) struct WayOut {
    /// Whose flows they are.
    peer: PeerId,
    exit: Exit,
    /// Where some of them go on to another peer.
    transit: Option<Arc<Transit>>,
    /// Streams that go on to another peer.
    passing: HashMap<FlowId, StreamKey>,
}

impl WayOut {
    pub(super) fn new(peer: PeerId, exit: Exit, transit: Option<Arc<Transit>>) -> WayOut {
        WayOut {
            peer,
            exit,
            transit,
            passing: HashMap::new(),
        }
    }

    /// What the peer may reach.
    pub(super) fn exit(&self) -> &Exit {
        &self.exit
    }

    /// Whether the peer may open a flow of packets, and where it goes if it may.
    pub(super) fn of_packets(&self, key: &PacketKey) -> (bool, Next) {
        let is_permitted = self.exit.permits(key);
        let next = match &self.transit {
            Some(transit) if is_permitted => transit.next(key, self.peer),
            _ => Next::Here,
        };
        (is_permitted, next)
    }

    /// Where a stream of the peer goes.
    pub(super) fn of_stream(&self, key: &StreamKey) -> Result<Destination, Status> {
        if !self.exit.names(key) {
            return Err(Status::NotAllowed);
        }
        let Some(transit) = &self.transit else {
            return Ok(Destination::Here);
        };
        match transit.next(key, self.peer) {
            Next::Here => Ok(Destination::Here),
            Next::Peer(to, ruled) => Ok(Destination::Peer(transit.clone(), to, ruled)),
            Next::Refused(status) => Err(status),
        }
    }

    /// A socket on its way to the destination.
    pub(super) fn connect(&self, key: &StreamKey) -> Result<TcpStream, Status> {
        self.exit.connect(key)
    }

    /// Hands a stream on to the lane of another peer; gives our end of the connection that joins
    /// the two.
    pub(super) fn hand_on(
        &mut self,
        flow: FlowId,
        transit: &Transit,
        to: PeerId,
        handed: HandedOn<'_>,
    ) -> Result<TcpStream, Status> {
        let HandedOn {
            key,
            treatment,
            descriptor,
        } = handed;
        let lane = transit.lane(to).ok_or(Status::GoingAway)?;
        if !transit.begin(key) {
            // It would go in circles.
            return Err(Status::NotAllowed);
        }
        self.passing.insert(flow, *key);
        let [near, far] = pair().map_err(|error| {
            debug!(%error, "a flow cannot be handed on");
            Status::NoResources
        })?;
        let accepted = Accepted {
            socket: far,
            key: *key,
            treatment,
            descriptor,
        };
        lane.send(Command::Accepted(accepted))
            .map_err(|_| Status::NoResources)?;
        Ok(near)
    }

    /// A flow is over.
    pub(super) fn forget(&mut self, flow: FlowId) {
        if let (Some(key), Some(transit)) = (self.passing.remove(&flow), &self.transit) {
            transit.end(&key);
        }
    }
}

/// What is handed on to another lane.
pub(super) struct HandedOn<'a> {
    /// Who wants to reach whom.
    pub(super) key: &'a StreamKey,
    /// How the far lane shall treat it.
    pub(super) treatment: Treatment,
    /// Of the share of the peer that brought it: what goes on costs the peer to which it goes
    /// nothing.
    pub(super) descriptor: Permit,
}
