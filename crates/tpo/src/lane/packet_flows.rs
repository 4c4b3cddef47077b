//! The flows of packets of one lane: between the loop and the packet edges, which are there only
//! where any packets are carried.

use std::net::IpAddr;
use std::time::Instant;

use tpo_engine::{FlowId, PacketKey, Peer, Status};

use super::way_out::WayOut;
use crate::lanes::batch::{Batch, Onward};
use crate::lanes::report::Report;
use crate::lanes::transit::Next;
use crate::packets::edge::Packets;

/// The packet flows of one lane.
pub(super) struct PacketFlows {
    /// None: no packets are carried.
    edges: Option<Packets>,
    /// Flows of the peer that no `accept` permits, or permits no longer.
    pub(super) not_allowed: u64,
}

impl PacketFlows {
    pub(super) fn new(edges: Option<Packets>) -> PacketFlows {
        PacketFlows {
            edges,
            not_allowed: 0,
        }
    }

    /// To be called each turn, before anything of the peer is taken: ends the flows that are not
    /// permitted any more, and asks the peer for groups when it is time.
    pub(super) fn turn(&mut self, ways: &WayOut, peer: &mut Peer, now: Instant) {
        if let Some(edges) = &mut self.edges {
            self.not_allowed += edges.follow_addresses(peer, ways.exit(), now);
            edges.say_what_is_asked(peer, now);
        }
    }

    /// Whether the peer is to be asked for groups.
    pub(super) fn asks_for_groups(&self) -> bool {
        self.edges.as_ref().is_some_and(Packets::asks_for_groups)
    }

    /// The groups that the peer is asked for from now on.
    pub(super) fn ask(&mut self, groups: [Vec<IpAddr>; 2], now: Instant) {
        if let Some(edges) = &mut self.edges {
            edges.ask(groups, now);
        }
    }

    /// Gives the engine packets of our side.
    pub(super) fn send(&mut self, batch: Batch, peer: &mut Peer, now: Instant) {
        if let Some(edges) = &mut self.edges {
            edges.send(peer, batch, now);
        }
    }

    /// Gives the engine what another peer has brought for this one.
    pub(super) fn take_over(&mut self, batch: Onward, peer: &mut Peer, now: Instant) {
        if let Some(edges) = &mut self.edges {
            edges.take_over(peer, batch, now);
        }
    }

    /// The peer has opened a flow of packets.
    pub(super) fn open(
        &mut self,
        flow: FlowId,
        key: PacketKey,
        ways: &WayOut,
        peer: &mut Peer,
        now: Instant,
    ) {
        let Err(status) = self.begin(flow, key, ways) else {
            return;
        };
        if status == Status::NotAllowed {
            self.not_allowed += 1;
        }
        peer.reset(flow, status, now);
    }

    fn begin(&mut self, flow: FlowId, key: PacketKey, ways: &WayOut) -> Result<(), Status> {
        let (is_permitted, next) = ways.of_packets(&key);
        let is_open = match (&mut self.edges, next) {
            (_, Next::Refused(status)) => return Err(status),
            (Some(edges), Next::Here) if is_permitted || edges.is_question(&key) => {
                edges.open(flow, key, None)
            }
            (Some(edges), Next::Peer(to, ruled)) if is_permitted => {
                edges.open(flow, key, Some((to, ruled)))
            }
            (Some(_) | None, Next::Here | Next::Peer(..)) => false,
        };
        if is_open {
            Ok(())
        } else {
            Err(Status::NotAllowed)
        }
    }

    /// Gives what has come from the peer to the kernel.
    pub(super) fn deliver(&mut self, peer: &mut Peer, now: Instant) {
        match &mut self.edges {
            Some(edges) => edges.deliver(peer, now),
            // The flows were refused just now; what came with the first packet goes too.
            None => peer.take_packets(|_| ()),
        }
    }

    /// A flow is over.
    pub(super) fn end(&mut self, flow: FlowId, peer: &Peer) {
        if let Some(edges) = &mut self.edges {
            edges.end(flow, peer);
        }
    }

    /// Whether the peer is heard.
    pub(super) fn set_heard(&self, heard: bool) {
        if let Some(edges) = &self.edges {
            edges.set_heard(heard);
        }
    }

    /// A session begins or has ended: what the peer was asked for and has said is forgotten.
    pub(super) fn begin_anew(&mut self, now: Instant) {
        if let Some(edges) = &mut self.edges {
            edges.begin_anew(now);
        }
    }

    /// Writes into the report what is known here.
    pub(super) fn report(&self, report: &mut Report) {
        report.counters.not_allowed += self.not_allowed;
        if let Some(edges) = &self.edges {
            report.packets = edges.counters();
            report.groups_asked_here = edges.asked_here();
            report.groups_asked_there = edges.asked_there();
            report.lans_left = edges.lans_left();
        }
    }
}
