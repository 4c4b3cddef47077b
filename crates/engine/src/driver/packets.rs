//! The flows of packets of a peer: opening, sending, receiving, ending. Here is the one owner of a
//! flow of packets; everything else that knows one knows its number.
//!
//! Beside the streams they share the numbers, the schedule and the control messages. A packet is
//! opaque here: what it is on a wire is the business of whoever gives it. On its way out a packet
//! waits where the TUN reader has put it ([`Blocks`]) until it is copied into a buffer; on its way
//! in it stays in its payload ([`arrivals`]) until it is taken, which is after each input.

use std::{
    cmp::Reverse,
    collections::{BinaryHeap, HashMap, VecDeque},
    hash::BuildHasherDefault,
    ops::Range,
    sync::Arc,
    time::{Duration, Instant},
};

mod arrivals;

use arrivals::Arrivals;

use super::{
    Control, Driver,
    numbers::{Known, NumberHasher},
    pack::{Page, Whose},
    schedule::{Slot, Turn},
};
use crate::{
    CompressionStats, Event, FlowId, FlowInfo, PacketKey, SendError, Status, Treatment,
    config::{
        CROSSING, DATAGRAM_COST, ENDS_SLACK, GATHER, GATHER_MEMORY, HOLDING_BYTES, MAX_REFUSALS,
        MOST_HOLDING, REFUSED_FOR, WAITING_BYTES, WAITING_FLOW_BYTES,
    },
    error::Breach,
    flow::{Blocks, Delivery, Order, PacketFlow, PacketParts, Place},
    message::{self, Form, Function, Header},
};

/// Tables for so many flows are kept.
const ROOM_LEFT: usize = 4_096;

type ByNumber = HashMap<FlowId, Box<PacketFlow>, BuildHasherDefault<NumberHasher>>;

/// All flows of datagrams of a peer. Boxed, so that growth moves pointers only.
#[derive(Debug, Default)]
pub(crate) struct PacketFlows {
    by_number: ByNumber,
    /// Keys come from whoever sends here: the usual hash, which nobody outside can aim at.
    by_key: HashMap<PacketKey, FlowId>,
    /// When to look whether a flow is over: one entry for each, at the earliest time at which it
    /// may be.
    ends: BinaryHeap<Reverse<(Instant, FlowId)>>,
    /// The flow that was looked for last: the next datagram is often one of it.
    last: Option<(PacketKey, FlowId)>,
    waiting_bytes: usize,
    /// What all flows cost, and those datagrams among it that wait for others before them.
    held: usize,
    holding_bytes: usize,
    gathering: Gathering,
    /// Datagrams that wait for those before them, and until when: with the patience of most flows,
    /// and of those in order. So the first one's time comes first. Some have gone meanwhile.
    holding: [VecDeque<HeldBack>; 2],
    /// Where what waits for the link is.
    blocks: Blocks,
    /// What has arrived.
    pub(super) arrivals: Arrivals,
}

/// A packet that was held back for those before it.
#[derive(Debug, Clone, Copy)]
struct HeldBack {
    until: Instant,
    flow: FlowId,
    number: u32,
}

/// Small datagrams of a fast sender wait for one another for at most [`GATHER`], so that several
/// share the headers of one.
#[derive(Debug, Default)]
struct Gathering {
    flows: Vec<FlowId>,
    bytes: usize,
    until: Option<Instant>,
    /// Bytes of small datagrams of late: what they are, less what [`GATHER_MEMORY`] has forgotten
    /// of them.
    recent: f64,
    at: Option<Instant>,
}

impl Gathering {
    /// Whether a datagram is worth waiting with: so many come that half a segment is full within
    /// the time that it may wait.
    fn is_worth(&mut self, bytes: usize, segment: usize, now: Instant) -> bool {
        let passed = self.at.map_or(GATHER_MEMORY, |at| {
            now.saturating_duration_since(at).min(GATHER_MEMORY)
        });
        self.at = Some(now);
        self.recent *= 1.0 - passed.as_secs_f64() / GATHER_MEMORY.as_secs_f64();
        self.recent += bytes as f64;
        let soon = self.recent * GATHER.as_secs_f64() / GATHER_MEMORY.as_secs_f64();
        2 * bytes <= segment && 2.0 * soon >= segment as f64
    }
}

/// A datagram from the far side.
#[derive(Debug, Clone, Copy)]
pub struct Arrived<'a> {
    /// Its flow.
    pub flow: FlowId,
    /// The flow's addresses, as its opener sees them.
    pub key: &'a PacketKey,
    /// How the flow's opener wants it to be treated.
    pub asked: &'a Treatment,
    /// Whether the near side opened the flow: then it comes from the flow's destination.
    pub is_reply: bool,
    /// What it holds.
    pub bytes: &'a [u8],
}

impl PacketFlows {
    pub(crate) fn len(&self) -> usize {
        self.by_number.len()
    }

    pub(crate) fn contains(&self, flow: FlowId) -> bool {
        self.by_number.contains_key(&flow)
    }

    /// What all of them cost.
    pub(crate) fn held(&self) -> usize {
        self.held
    }

    /// Bytes that wait to be taken.
    pub(crate) fn arrived_bytes(&self) -> usize {
        self.arrivals.held()
    }

    /// Bytes of the blocks in which packets wait.
    pub(crate) fn block_bytes(&self) -> usize {
        self.blocks.held()
    }

    /// When the first flow may be over.
    pub(crate) fn ends_at(&self) -> Option<Instant> {
        self.ends.peek().map(|Reverse((at, _))| *at)
    }

    /// When gathered datagrams have waited for others long enough.
    pub(crate) fn gathers_until(&self) -> Option<Instant> {
        self.gathering.until
    }

    pub(crate) fn get_mut(&mut self, flow: FlowId) -> Option<&mut PacketFlow> {
        self.by_number.get_mut(&flow).map(Box::as_mut)
    }

    /// Gives a packet on, keeps it for those before it, or drops it. What else has its turn by that
    /// is given on too.
    fn put_in_order(
        &mut self,
        header: &Header,
        (payload, place): (&[u8], Range<usize>),
        now: Instant,
    ) -> Place {
        let (flow, number) = (header.flow, header.sequence);
        let state = self.by_number.get_mut(&flow).expect("the caller has it");
        let holding = &mut self.holding[usize::from(state.asked.in_order)];
        let room = holding.len() < MOST_HOLDING
            && self.holding_bytes + place.len() + DATAGRAM_COST <= HOLDING_BYTES;
        let waits = state.delivery.keeps_order() && room;
        let (cost, waiting) = (state.cost(), state.order.held());
        if state.order.is_full_for(number) {
            state.order.give_up_all();
            give_on(&mut state.order, flow, &mut self.arrivals, now);
        }
        let length = place.len();
        let outcome = state.order.place(number, waits, now);
        match outcome {
            Place::Now => self.arrivals.arrive(flow, place),
            Place::Hold => {
                state
                    .order
                    .hold(number, self.blocks.copied(&[&payload[place]]));
                holding.push_back(HeldBack {
                    until: now + state.order.patience(),
                    flow,
                    number,
                });
            }
            Place::Drop => {}
        }
        if outcome != Place::Drop {
            state.received.add(length);
            give_on(&mut state.order, flow, &mut self.arrivals, now);
        }
        self.held = self.held + state.cost() - cost;
        self.holding_bytes = self.holding_bytes + state.order.held() - waiting;
        outcome
    }

    /// The flow between these ends, whoever opened it.
    fn find(&self, key: &PacketKey) -> Option<FlowId> {
        if let Some((_, flow)) = self.last.filter(|(last, _)| last == key) {
            return Some(flow);
        }
        self.by_key
            .get(key)
            .or_else(|| self.by_key.get(&key.turned()))
            .copied()
    }

    /// Takes a flow out of everything but the schedule.
    fn take(&mut self, flow: FlowId) -> Option<Box<PacketFlow>> {
        let mut state = self.by_number.remove(&flow)?;
        self.last = None;
        if self.by_key.get(&state.key) == Some(&flow) {
            self.by_key.remove(&state.key);
        }
        self.waiting_bytes -= state.waiting_bytes;
        self.held -= state.cost();
        self.holding_bytes -= state.order.held();
        state
            .forget_waiting()
            .for_each(|packet| self.blocks.release(packet));
        // A flood leaves no memory behind.
        let left = self.by_number.len();
        if left == 0 {
            (self.by_number, self.by_key, self.ends) = Default::default();
            self.gathering.flows = Vec::new();
            self.blocks.forget_spare();
        } else if self.by_number.capacity() > ROOM_LEFT.max(8 * left) {
            self.by_number.shrink_to(2 * left);
            self.by_key.shrink_to(2 * left);
            self.ends.shrink_to(2 * left);
        }
        Some(state)
    }

    /// A packet waits in its flow from now on. Gives the flow's place in the schedule, or `None`
    /// when too much waits.
    fn wait(&mut self, flow: FlowId, packet: PacketParts<'_>, now: Instant) -> Option<Slot> {
        let state = self
            .by_number
            .get_mut(&flow)
            .expect("it was found or made just now");
        let waiting = self.blocks.wait(flow, &packet, now);
        let cost = waiting.cost();
        let full = state.waiting_bytes + cost > WAITING_FLOW_BYTES
            || self.waiting_bytes + cost > WAITING_BYTES;
        if full {
            self.blocks.release(waiting);
            return None;
        }
        state.push(waiting, now);
        state.moved = now;
        self.waiting_bytes += cost;
        self.held += cost;
        Some(state.slot)
    }

    /// Nothing waits in this flow any more.
    fn forget_waiting(&mut self, flow: FlowId) {
        let Some(state) = self.by_number.get_mut(&flow) else {
            return;
        };
        self.waiting_bytes -= state.waiting_bytes;
        self.held -= state.waiting_bytes;
        state
            .forget_waiting()
            .for_each(|packet| self.blocks.release(packet));
    }

    pub(crate) fn infos(&self) -> impl Iterator<Item = FlowInfo> {
        self.by_number.iter().map(|(flow, state)| FlowInfo {
            flow: *flow,
            key: *state.key,
            class: state.class(),
            opened_here: state.ours,
            connected: state.answered,
            finished_out: false,
            finished_in: false,
            bytes_out: state.sent.bytes,
            bytes_in: state.received.bytes,
            held_bytes: state.waiting_bytes + state.order.held(),
            credit_left: 0,
            window_bytes: 0,
            lost_in: state.order.lost,
            datagrams_in: state.received.datagrams,
            datagrams_out: state.sent.datagrams,
            wait: state.wait,
            compression: state
                .record
                .as_ref()
                .map_or_else(CompressionStats::default, |record| record.compression),
            since: state.since,
            moved: state.moved,
        })
    }

    pub(crate) fn check_invariants(&self) {
        let waiting: usize = self
            .by_number
            .values()
            .map(|state| state.waiting_bytes)
            .sum();
        assert_eq!(waiting, self.waiting_bytes);
        assert!(self.waiting_bytes <= WAITING_BYTES);
        assert_eq!(
            self.held,
            self.by_number
                .values()
                .map(|state| state.cost())
                .sum::<usize>()
        );
        assert_eq!(
            self.holding_bytes,
            self.by_number
                .values()
                .map(|state| state.order.held())
                .sum::<usize>()
        );
        // The last one may lie in a buffer that was used before.
        assert!(self.holding_bytes <= HOLDING_BYTES + 4_096);
        assert!(
            self.holding
                .iter()
                .all(|holding| holding.len() <= MOST_HOLDING)
        );
        for (flow, state) in &self.by_number {
            state.check_invariants();
            assert_eq!(
                self.by_key.get(&state.key),
                Some(flow),
                "a key leads to its flow"
            );
        }
        assert_eq!(self.by_key.len(), self.by_number.len());
        let flows = self.by_number.values();
        self.blocks
            .check_invariants(flows.flat_map(|state| &state.waiting));
        assert!(
            self.ends.len() >= self.by_number.len(),
            "every flow is looked at some time"
        );
    }
}

impl Driver {
    // --- out
    // ---------------------------------------------------------------------------------------------

    /// A block of memory, of which the next packets are parts.
    pub(crate) fn begin_block(&mut self, bytes: Arc<Vec<u8>>) {
        self.end_block();
        let PacketFlows {
            blocks,
            by_number,
            waiting_bytes,
            held,
            ..
        } = &mut self.packet_flows;
        while blocks.is_full() {
            for flow in blocks.flows_of_oldest() {
                if let Some(state) = by_number.get_mut(&flow) {
                    let more = blocks.copy_out(&mut state.waiting);
                    state.waiting_bytes += more;
                    *waiting_bytes += more;
                    *held += more;
                }
            }
        }
        blocks.begin(bytes);
    }

    pub(crate) fn block(&self) -> &[u8] {
        self.packet_flows.blocks.last()
    }

    pub(crate) fn end_block(&mut self) {
        self.packet_flows.blocks.end();
    }

    pub(crate) fn poll_spent_block(&mut self) -> Option<Arc<Vec<u8>>> {
        self.packet_flows.blocks.poll_spent()
    }

    pub(crate) fn send_packet(
        &mut self,
        key: &PacketKey,
        treatment: (Treatment, Delivery),
        bytes: &[u8],
        now: Instant,
    ) -> Result<Option<FlowId>, SendError> {
        self.send_parts(key, treatment, PacketParts::Alone(bytes), now)
    }

    pub(crate) fn send_parts(
        &mut self,
        key: &PacketKey,
        treatment: (Treatment, Delivery),
        packet: PacketParts<'_>,
        now: Instant,
    ) -> Result<Option<FlowId>, SendError> {
        if self.peer_credit.is_none() {
            return Err(SendError::NotConnected);
        }
        let flow = match self.packet_flows.find(key) {
            Some(flow) => self.unless_refused(flow, now)?,
            None => None,
        };
        self.packet_flows.last = flow.map(|flow| (*key, flow));
        let (flow, opened) = match flow {
            Some(flow) => (flow, None),
            None => {
                let flow = self.open_exchange(key, treatment, now)?;
                (flow, Some(flow))
            }
        };
        let length = packet.len() + message::SHORT;
        let Some(slot) = self.packet_flows.wait(flow, packet, now) else {
            self.counters.packets.full += 1;
            return Err(SendError::Full);
        };
        let packet_flows = &mut self.packet_flows;
        let gather = packet_flows.gathering.is_worth(length, self.segment, now);
        if gather && !self.schedule.is_ready(slot) {
            packet_flows.gathering.flows.push(flow);
            packet_flows.gathering.bytes += length;
            let full = packet_flows.gathering.bytes + length > self.segment;
            let until = *packet_flows.gathering.until.get_or_insert(now + GATHER);
            if full || until <= now {
                self.let_go_gathered();
            }
        } else {
            self.schedule.wake(slot);
        }
        Ok(opened)
    }

    /// The flow, if it may be used. One that the far side refused some time ago is tried again,
    /// under another number.
    fn unless_refused(&mut self, flow: FlowId, now: Instant) -> Result<Option<FlowId>, SendError> {
        let until = self
            .packet_flows
            .by_number
            .get(&flow)
            .and_then(|state| state.refused_until);
        match until {
            Some(until) if now < until => Err(SendError::Refused),
            Some(_) => {
                self.end_exchange(flow);
                Ok(None)
            }
            None => Ok(Some(flow)),
        }
    }

    /// Lets gathered datagrams take their turns when it is time.
    pub(super) fn end_gathering_datagrams(&mut self, now: Instant) {
        if self
            .packet_flows
            .gathering
            .until
            .is_some_and(|until| until <= now)
        {
            self.let_go_gathered();
        }
    }

    fn let_go_gathered(&mut self) {
        (
            self.packet_flows.gathering.bytes,
            self.packet_flows.gathering.until,
        ) = (0, None);
        let mut flows = std::mem::take(&mut self.packet_flows.gathering.flows);
        for flow in flows.drain(..) {
            if let Some(state) = self
                .packet_flows
                .by_number
                .get(&flow)
                .filter(|state| !state.waiting.is_empty())
            {
                self.schedule.wake(state.slot);
            }
        }
        self.packet_flows.gathering.flows = flows;
    }

    pub(crate) fn packet_flow(&self, key: &PacketKey) -> Option<FlowId> {
        self.packet_flows.find(key)
    }

    fn open_exchange(
        &mut self,
        key: &PacketKey,
        treatment: (Treatment, Delivery),
        now: Instant,
    ) -> Result<FlowId, SendError> {
        if self.packet_flows.len() >= self.limits.packet_flows || self.held() > self.budget {
            self.counters.packets.flows_refused += 1;
            return Err(SendError::TooManyFlows);
        }
        let (flows, packet_flows) = (&self.flows, &self.packet_flows);
        let flow = self
            .giver
            .give(|flow| flows.contains_key(&flow) || packet_flows.contains(flow));
        self.counters.flows.opened_here += 1;
        self.insert_exchange(flow, *key, treatment, true, now);
        Ok(flow)
    }

    fn insert_exchange(
        &mut self,
        flow: FlowId,
        key: PacketKey,
        treatment: (Treatment, Delivery),
        ours: bool,
        now: Instant,
    ) {
        let (asked, delivery) = treatment;
        let slot = self.schedule.add(flow, delivery.class(asked.class));
        let state = PacketFlow::new(key, treatment, slot, ours, now);
        self.packet_flows.held += state.cost();
        self.packet_flows.by_number.insert(flow, Box::new(state));
        self.packet_flows.by_key.insert(key, flow);
        self.packet_flows
            .ends
            .push(Reverse((now + self.limits.one_way, flow)));
        if self.packet_flows.ends.len() > 2 * self.packet_flows.len() + ENDS_SLACK {
            // Most of them have ended by other ways: the list stays as short as the flows are few.
            let PacketFlows {
                by_number, ends, ..
            } = &mut self.packet_flows;
            self.counters.walked += ends.len() as u64;
            ends.retain(|Reverse((_, flow))| by_number.contains_key(flow));
        }
    }

    /// Packs the oldest datagram of the flow whose turn it is that is still of use. Returns whether
    /// there may be room for another.
    pub(super) fn pack_datagram(&mut self, turn: Turn, page: &mut Page<'_>, now: Instant) -> bool {
        let packet_flows = &mut self.packet_flows;
        let state = packet_flows
            .by_number
            .get_mut(&turn.flow)
            .expect("the schedule has living flows only");
        let header_length = if state.answered {
            message::SHORT
        } else {
            message::full_length(&state.key)
        };
        loop {
            let Some(first) = state.waiting.front() else {
                self.schedule.sleep(turn.slot);
                return true;
            };
            let length = first.len();
            if state.is_stale(now) || page.is_never_enough(header_length + length) {
                self.counters.packets.stale += 1;
                let stale = state.pop().expect("it was looked at");
                packet_flows.waiting_bytes -= stale.cost();
                packet_flows.held -= stale.cost();
                packet_flows.blocks.release(stale);
                continue;
            }
            if !page.has_room(
                turn.flow,
                state.delivery.is_urgent(),
                header_length + length,
            ) {
                return false;
            }
            state.note_wait(now);
            let packet = state.pop().expect("it was looked at");
            packet_flows.waiting_bytes -= packet.cost();
            packet_flows.held -= packet.cost();
            let header = Header {
                function: Function::Datagram(state.delivery),
                fin: false,
                flow: turn.flow,
                sequence: state.sent.datagrams,
                length: length as u32,
                form: if state.answered {
                    Form::Short
                } else {
                    Form::Packets(state.key, state.asked)
                },
            };
            let whose = Whose {
                flow: turn.flow,
                urgent: state.delivery.is_urgent(),
                class: state.class(),
                apart: self.shrinker.how(&state.asked, state.ours).keeps_apart(),
            };
            page.add_with(&header, packet_flows.blocks.parts(&packet), whose);
            state.sent.add(length);
            packet_flows.blocks.release(packet);
            self.counters.packets.sent += 1;
            self.counters.traffic.bytes_out += length as u64;
            self.schedule.on_served(turn.slot, header_length + length);
            if state.waiting.is_empty() {
                self.schedule.sleep(turn.slot);
            }
            return true;
        }
    }

    // --- in
    // ---------------------------------------------------------------------------------------------

    /// A packet of the far side, which is at `place` in its payload.
    pub(super) fn on_datagram(
        &mut self,
        header: &Header,
        delivery: Delivery,
        (payload, place): (&[u8], Range<usize>),
        now: Instant,
    ) {
        let flow = header.flow;
        if !self.packet_flows.contains(flow) {
            if let Some(own) = self.crossed_by(header, now) {
                self.packet_flows.arrivals.arrive(own, place);
                self.counters.packets.received += 1;
                return;
            }
            if !self.open_exchange_from_far_side(header, delivery, now) {
                return;
            }
        }
        let is_short = self.held() > self.budget;
        let packet_flows = &mut self.packet_flows;
        let state = packet_flows
            .by_number
            .get_mut(&flow)
            .expect("it is here, or was opened just now");
        if matches!(header.form, Form::Packets(key, _) if key != state.key || state.ours) {
            self.counters.breaches.count(Breach::OtherKey);
            return;
        }
        state.answered = true;
        state.moved = now;
        state.order.is_short = is_short;
        let length = place.len();
        if packet_flows.put_in_order(header, (payload, place), now) == Place::Drop {
            self.counters.packets.late += 1;
            return;
        }
        self.counters.packets.received += 1;
        self.counters.traffic.bytes_in += length as u64;
    }

    /// Until when datagrams wait for those that they overtook.
    pub(crate) fn holds_until(&self) -> Option<Instant> {
        self.packet_flows
            .holding
            .iter()
            .filter_map(|holding| holding.front())
            .map(|first| first.until)
            .min()
    }

    /// Gives on those that have waited long enough.
    pub(super) fn end_holding(&mut self, now: Instant) {
        let PacketFlows {
            by_number,
            holding,
            holding_bytes,
            held,
            arrivals,
            ..
        } = &mut self.packet_flows;
        for holding in holding {
            while let Some(first) = holding.pop_front_if(|first| first.until <= now) {
                let Some(state) = by_number.get_mut(&first.flow) else {
                    continue;
                };
                let (cost, waiting) = (state.cost(), state.order.held());
                state.order.give_up(first.number);
                give_on(&mut state.order, first.flow, arrivals, now);
                *held = *held + state.cost() - cost;
                *holding_bytes = *holding_bytes + state.order.held() - waiting;
            }
        }
    }

    /// Our own flow between the same ends, in the same direction, if both sides have opened one at
    /// the same time: the one with the lower number stays, at both sides, and what still comes in
    /// the other one is taken as if it came in this.
    fn crossed_by(&self, header: &Header, now: Instant) -> Option<FlowId> {
        let Form::Packets(key, _) = header.form else {
            return None;
        };
        let own = self.packet_flows.by_key.get(&key).copied()?;
        let state = self.packet_flows.by_number.get(&own)?;
        let is_new = now.saturating_duration_since(state.since) < CROSSING;
        (state.ours && is_new && own < header.flow && !self.giver.is_ours(header.flow))
            .then_some(own)
    }

    fn open_exchange_from_far_side(
        &mut self,
        header: &Header,
        delivery: Delivery,
        now: Instant,
    ) -> bool {
        let flow = header.flow;
        let (Form::Packets(key, asked), false) = (header.form, self.giver.is_ours(flow)) else {
            // It is over here. Whoever goes on sending opens another.
            self.counters.late += 1;
            self.refuse(flow, 0, Status::TimedOut);
            return false;
        };
        let connected = self.peer_credit.is_some();
        match self.opened.note(flow) {
            Known::New
                if connected
                    && self.packet_flows.len() < self.limits.packet_flows
                    && self.held() <= self.budget => {}
            Known::New => {
                self.counters.packets.flows_refused += 1;
                self.refuse(flow, key.protocol, Status::NoResources);
                return false;
            }
            Known::Used => {
                // Its end crossed with this one.
                self.counters.late += 1;
                return false;
            }
            Known::TooOld => {
                self.counters.late += 1;
                self.refuse(flow, key.protocol, Status::TimedOut);
                return false;
            }
        }
        if let Some(old) = self.packet_flows.by_key.get(&key).copied() {
            // The far side has forgotten the older one, or both sides opened it and the far side's
            // stays.
            self.end_exchange(old);
        }
        self.counters.flows.opened_there += 1;
        self.insert_exchange(flow, key, (asked, delivery), false, now);
        self.leave_unsaid(flow, None);
        self.events
            .push_back(Event::PacketFlow { flow, key, asked });
        true
    }

    /// A control message about a flow of datagrams.
    pub(super) fn on_exchange_control(&mut self, header: &Header, now: Instant) {
        let Some(state) = self.packet_flows.by_number.get_mut(&header.flow) else {
            return;
        };
        match (header.function, header.form) {
            (Function::Accepted, _) => state.answered = true,
            (Function::Reset, Form::Status(_, Status::NotAllowed | Status::NoResources))
                if state.ours =>
            {
                // Remembered for a while, or each of its datagrams would ask again.
                state.refused_until = Some(now + REFUSED_FOR);
                state.answered = false;
                let slot = state.slot;
                self.packet_flows.forget_waiting(header.flow);
                self.schedule.stop(slot);
            }
            (Function::Reset, _) => {
                self.counters.flows.reset_there += 1;
                self.end_exchange(header.flow);
            }
            _ => self.counters.breaches.count(Breach::OtherKind),
        }
    }

    /// Gives everything that arrived since the last time to `each`, in the order of arrival.
    pub(crate) fn take_packets(&mut self, mut each: impl FnMut(&Arrived<'_>)) {
        let PacketFlows {
            by_number,
            arrivals,
            blocks,
            ..
        } = &mut self.packet_flows;
        for (flow, bytes) in arrivals.iter() {
            // Ended since: nobody may get it any more.
            if let Some(state) = by_number.get(&flow) {
                each(&Arrived {
                    flow,
                    key: &state.key,
                    asked: &state.asked,
                    is_reply: state.ours,
                    bytes,
                });
            }
        }
        arrivals.clear(
            |payload| self.spent.push(payload),
            |bytes| blocks.recycle(bytes),
        );
    }

    // --- the end
    // ---------------------------------------------------------------------------------------------

    /// The near side does not want the flow.
    pub(super) fn reset_exchange(&mut self, flow: FlowId, status: Status) {
        let Some(state) = self.packet_flows.take(flow) else {
            return;
        };
        self.schedule.remove(state.slot);
        self.counters.flows.reset_here += 1;
        self.refuse_quietly(flow, state.key.protocol, status);
    }

    /// Forgets a flow and tells the edges.
    fn end_exchange(&mut self, flow: FlowId) {
        let Some(state) = self.packet_flows.take(flow) else {
            return;
        };
        self.schedule.remove(state.slot);
        self.events.push_back(Event::Closed { flow });
    }

    fn refuse_quietly(&mut self, flow: FlowId, protocol: u8, status: Status) {
        if self.resets < MAX_REFUSALS {
            self.queue_control(Control::Reset {
                flow,
                sequence: 0,
                protocol,
                status,
            });
        }
    }

    /// Ends the flows in which nothing has moved for long enough. The opener ends first and says
    /// so.
    pub(super) fn end_exchanges(&mut self, now: Instant) {
        while let Some(Reverse((at, flow))) = self
            .packet_flows
            .ends
            .peek()
            .copied()
            .filter(|Reverse((at, _))| *at <= now)
        {
            debug_assert!(at <= now);
            self.packet_flows.ends.pop();
            let Some(state) = self.packet_flows.by_number.get(&flow) else {
                continue;
            };
            let quiet = if state.is_mutual() {
                self.limits.both_ways
            } else {
                self.limits.one_way
            };
            let end = state.moved
                + quiet
                + if state.ours {
                    Duration::ZERO
                } else {
                    self.limits.one_way
                };
            if end > now {
                self.packet_flows.ends.push(Reverse((end, flow)));
                continue;
            }
            let (ours, protocol) = (state.ours, state.key.protocol);
            self.counters.flows.closed += 1;
            self.end_exchange(flow);
            if ours {
                self.refuse_quietly(flow, protocol, Status::None);
            }
        }
    }

    pub(super) fn lose_exchanges(&mut self, status: Status) {
        let mut flows: Vec<FlowId> = self.packet_flows.by_number.keys().copied().collect();
        flows.sort_unstable();
        for flow in flows {
            if let Some(state) = self.packet_flows.take(flow) {
                self.schedule.remove(state.slot);
                self.counters.flows.lost += 1;
                self.events.push_back(Event::Reset { flow, status });
            }
        }
        let PacketFlows {
            arrivals, blocks, ..
        } = &mut self.packet_flows;
        arrivals.clear(
            |payload| self.spent.push(payload),
            |bytes| blocks.recycle(bytes),
        );
    }
}

/// Gives on everything of a flow that was held back and whose turn has come.
fn give_on(order: &mut Order, flow: FlowId, arrivals: &mut Arrivals, now: Instant) {
    while let Some(bytes) = order.pop_ready(now) {
        arrivals.arrive_late(flow, bytes);
    }
}
