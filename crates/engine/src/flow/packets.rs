//! A flow of packets (UDP, ICMP, any protocol but TCP): boundaries are kept, no credit is asked
//! for.
//!
//! Life: opened by its first packet, here or there → answered by the far side → over when nothing
//! has moved for a while. What waits for the link waits in here, not longer than its
//! [`Delivery`](crate::Delivery) allows. The driver's `PacketFlows` own it, and route between it
//! and the schedule.

use std::{collections::VecDeque, time::Duration, time::Instant};

use super::{
    blocks::Waiting,
    info::{FlowInfo, FlowKind, PacketFlowInfo},
    order::Order,
    treatment::PacketTreatment,
};
use crate::{
    Class, CompressionStats, FlowId, PacketKey, compress::record::Record, config::PACKET_FLOW_COST,
    schedule::Slot,
};

/// What went one way.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Count {
    pub(crate) packets: u32,
    pub(crate) bytes: u64,
}

impl Count {
    pub(crate) fn add(&mut self, bytes: usize) {
        self.packets = self.packets.wrapping_add(1);
        self.bytes += bytes as u64;
    }
}

/// Everything kept for one flow of packets.
#[derive(Debug)]
pub(crate) struct PacketFlow {
    pub(crate) key: PacketKey,
    /// What its opener's rule asks for.
    pub(crate) treatment: PacketTreatment,
    /// What its buffers did when compressed, since the first that held its messages alone.
    pub(crate) record: Option<Box<Record>>,
    pub(crate) slot: Slot,
    /// Opened by the near side.
    pub(crate) ours: bool,
    /// The far side knows the addresses.
    pub(crate) answered: bool,
    /// The far side does not want it: nothing is sent until then.
    pub(crate) refused_until: Option<Instant>,
    pub(crate) waiting: VecDeque<Waiting>,
    /// What they cost.
    pub(crate) waiting_bytes: usize,
    /// Since when something waits.
    busy_since: Instant,
    pub(crate) sent: Count,
    pub(crate) received: Count,
    /// Of what is received.
    pub(crate) order: Order,
    /// How long packets wait for the link, smoothed.
    pub(crate) wait: Duration,
    pub(crate) since: Instant,
    /// When something last came or went.
    pub(crate) moved: Instant,
}

impl PacketFlow {
    pub(crate) fn new(
        key: PacketKey,
        treatment: PacketTreatment,
        slot: Slot,
        ours: bool,
        now: Instant,
    ) -> PacketFlow {
        PacketFlow {
            key,
            treatment,
            record: None,
            slot,
            ours,
            answered: !ours,
            refused_until: None,
            waiting: VecDeque::new(),
            waiting_bytes: 0,
            busy_since: now,
            sent: Count::default(),
            received: Count::default(),
            order: Order::new(treatment.asked.in_order),
            wait: Duration::ZERO,
            since: now,
            moved: now,
        }
    }

    pub(crate) fn class(&self) -> Class {
        self.treatment.class()
    }

    /// Whether something has gone each way.
    pub(crate) fn is_mutual(&self) -> bool {
        self.sent.packets > 0 && self.received.packets > 0
    }

    pub(crate) fn push(&mut self, packet: Waiting, now: Instant) {
        if self.waiting.is_empty() {
            self.busy_since = now;
        }
        self.waiting_bytes += packet.cost();
        self.waiting.push_back(packet);
    }

    pub(crate) fn pop(&mut self) -> Option<Waiting> {
        let packet = self.waiting.pop_front()?;
        self.waiting_bytes -= packet.cost();
        if self.waiting.is_empty() && self.waiting.capacity() > 64 {
            self.waiting = VecDeque::new();
        }
        Some(packet)
    }

    /// Nothing waits any more: gives what did, for the caller to release.
    pub(crate) fn forget_waiting(&mut self) -> impl Iterator<Item = Waiting> + use<> {
        self.waiting_bytes = 0;
        std::mem::take(&mut self.waiting).into_iter()
    }

    /// The oldest one is packed now.
    pub(crate) fn note_wait(&mut self, now: Instant) {
        if let Some(first) = self.waiting.front() {
            self.wait = (self.wait * 7 + now.saturating_duration_since(first.since)) / 8;
        }
    }

    /// Whether the oldest one has waited too long.
    pub(crate) fn is_stale(&self, now: Instant) -> bool {
        let patience = self
            .treatment
            .delivery
            .patience(now.saturating_duration_since(self.busy_since));
        self.waiting
            .front()
            .is_some_and(|first| now.saturating_duration_since(first.since) > patience)
    }

    /// What it costs, with all that waits in it.
    pub(crate) fn cost(&self) -> usize {
        PACKET_FLOW_COST + self.waiting_bytes + self.order.cost()
    }

    /// The flow as shown to people.
    pub(crate) fn info(&self, flow: FlowId) -> FlowInfo {
        FlowInfo {
            flow,
            key: *self.key,
            class: self.class(),
            opened_here: self.ours,
            connected: self.answered,
            bytes_out: self.sent.bytes,
            bytes_in: self.received.bytes,
            held_bytes: self.waiting_bytes + self.order.held(),
            compression: self
                .record
                .as_ref()
                .map_or_else(CompressionStats::default, |record| record.compression),
            since: self.since,
            moved: self.moved,
            kind: FlowKind::Packets(PacketFlowInfo {
                lost_in: self.order.lost,
                packets_in: self.received.packets,
                packets_out: self.sent.packets,
                wait: self.wait,
            }),
        }
    }

    pub(crate) fn check_invariants(&self) {
        assert_eq!(
            self.waiting_bytes,
            self.waiting.iter().map(Waiting::cost).sum::<usize>()
        );
        self.order.check_invariants();
    }
}
