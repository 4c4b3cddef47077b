//! The flows of packets of a peer: opening, sending, receiving, ending. Here is the one owner of a
//! flow of packets; everything else that knows one knows its number.
//!
//! Takes packets from the edges and from the far side, and routes between their flows, the
//! schedule, the control queue and the events. What is shared with the streams comes as [`Shared`].
//! A packet is opaque here: what it is on a wire is the business of whoever gives it. On its way
//! out a packet waits where the TUN reader has put it ([`Blocks`]) until it is copied into a
//! buffer; on its way in it stays in its payload ([`arrivals`]) until it is taken, which is after
//! each input.

use std::{
    cmp::Reverse,
    collections::{BinaryHeap, VecDeque},
    ops::Range,
    sync::Arc,
    time::{Duration, Instant},
};

mod arrivals;
mod gathering;

use arrivals::Arrivals;
use gathering::Gathering;

use super::{
    buffer::{BufferWriter, Origin},
    numbers::Known,
    shared::Shared,
};
use crate::{
    Compression, Delivery, Event, FlowId, FlowInfo, PacketKey, SendError, Status, Treatment,
    config::{
        CROSSING, ENDS_SLACK, HOLDING_BYTES, MOST_HOLDING, PACKET_COST, REFUSED_FOR, WAITING_BYTES,
        WAITING_FLOW_BYTES,
    },
    error::Breach,
    flow::{
        blocks::{Blocks, PacketParts},
        order::{Order, Place},
        packets::PacketFlow,
        treatment::PacketTreatment,
    },
    hash::{Keyed, KeyedMap, NumberMap},
    message::{Form, Function, Header, SHORT, full_length},
    schedule::{Slot, Turn},
};

/// Flows for which tables are kept.
const ROOM_LEFT: usize = 4_096;

/// All flows of packets of a peer. Boxed, so that growth moves pointers only.
#[derive(Debug)]
pub(crate) struct PacketFlows {
    by_number: NumberMap<Box<PacketFlow>>,
    /// Keys come from whoever sends here.
    by_key: KeyedMap<PacketKey, FlowId>,
    /// When to look whether a flow is over: one entry for each, at the earliest time at which it
    /// may be.
    ends: BinaryHeap<Reverse<(Instant, FlowId)>>,
    /// The flow that was looked for last: the next packet is often one of it.
    last: Option<(PacketKey, FlowId)>,
    waiting_bytes: usize,
    /// What packets cost that wait for others before them.
    holding_bytes: usize,
    gathering: Gathering,
    /// Packets that wait for those before them, and until when: with the patience of most flows,
    /// and of those in order. So the first one's time comes first. Some have gone meanwhile.
    holding: [VecDeque<HeldBack>; 2],
    /// Where what waits for the link is.
    blocks: Blocks,
    /// What has arrived.
    arrivals: Arrivals,
}

/// A packet that was held back for those before it.
#[derive(Debug, Clone, Copy)]
struct HeldBack {
    until: Instant,
    flow: FlowId,
    number: u32,
}

/// Where the bytes of a packet of the far side are.
#[derive(Debug, Clone)]
pub(crate) struct InPayload<'a> {
    pub(crate) payload: &'a [u8],
    pub(crate) place: Range<usize>,
}

/// A packet from the far side.
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
    /// `seed`: what is looked up by keys that outsiders choose is hashed with a key made of it.
    pub(crate) fn new(seed: &[u8; 32]) -> PacketFlows {
        PacketFlows {
            by_number: NumberMap::default(),
            by_key: KeyedMap::with_hasher(Keyed::new(seed)),
            ends: BinaryHeap::new(),
            last: None,
            waiting_bytes: 0,
            holding_bytes: 0,
            gathering: Gathering::default(),
            holding: Default::default(),
            blocks: Blocks::default(),
            arrivals: Arrivals::default(),
        }
    }

    pub(crate) fn len(&self) -> usize {
        self.by_number.len()
    }

    pub(crate) fn contains(&self, flow: FlowId) -> bool {
        self.by_number.contains_key(&flow)
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

    /// When gathered packets have waited for others long enough.
    pub(crate) fn gathers_until(&self) -> Option<Instant> {
        self.gathering.until()
    }

    pub(crate) fn get_mut(&mut self, flow: FlowId) -> Option<&mut PacketFlow> {
        self.by_number.get_mut(&flow).map(Box::as_mut)
    }

    /// The flow between these ends, whoever opened it.
    pub(crate) fn find(&self, key: &PacketKey) -> Option<FlowId> {
        if let Some((_, flow)) = self.last.filter(|(last, _)| last == key) {
            return Some(flow);
        }
        self.by_key
            .get(key)
            .or_else(|| self.by_key.get(&key.turned()))
            .copied()
    }

    /// Takes a flow out of everything.
    fn remove(&mut self, flow: FlowId, shared: &mut Shared) -> Option<Box<PacketFlow>> {
        let mut state = self.by_number.remove(&flow)?;
        shared.schedule.remove(state.slot);
        self.last = None;
        if self.by_key.get(&state.key) == Some(&flow) {
            self.by_key.remove(&state.key);
        }
        self.waiting_bytes -= state.waiting_bytes;
        shared.memory.packets -= state.cost();
        self.holding_bytes -= state.order.held();
        state
            .forget_waiting()
            .for_each(|packet| self.blocks.release(packet));
        // A flood leaves no memory behind.
        let left = self.by_number.len();
        if left == 0 {
            (self.by_number, self.ends) = Default::default();
            self.by_key.shrink_to_fit();
            self.gathering.forget();
            self.blocks.forget_spare();
        } else if self.by_number.capacity() > ROOM_LEFT.max(8 * left) {
            self.by_number.shrink_to(2 * left);
            self.by_key.shrink_to(2 * left);
            self.ends.shrink_to(2 * left);
        }
        Some(state)
    }

    /// The flows as shown to people, in no order.
    pub(crate) fn infos(&self) -> impl Iterator<Item = FlowInfo> {
        self.by_number.iter().map(|(flow, state)| state.info(*flow))
    }

    pub(crate) fn check_invariants(&self, shared: &Shared) {
        let sum = |part: fn(&PacketFlow) -> usize| {
            self.by_number
                .values()
                .map(|state| part(state))
                .sum::<usize>()
        };
        assert_eq!(sum(|state| state.waiting_bytes), self.waiting_bytes);
        assert!(self.waiting_bytes <= WAITING_BYTES);
        assert_eq!(sum(PacketFlow::cost), shared.memory.packets);
        assert_eq!(sum(|state| state.order.held()), self.holding_bytes);
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
        assert!(self.by_number.len() <= shared.limits.packet_flows);
    }

    // --- out
    // ---------------------------------------------------------------------------------------------

    /// A block of memory, of which the next packets are parts.
    pub(crate) fn begin_block(&mut self, bytes: Arc<Vec<u8>>, shared: &mut Shared) {
        self.end_block();
        while self.blocks.is_full() {
            for flow in self.blocks.flows_of_oldest() {
                if let Some(state) = self.by_number.get_mut(&flow) {
                    let more = self.blocks.copy_out(&mut state.waiting);
                    state.waiting_bytes += more;
                    self.waiting_bytes += more;
                    shared.memory.packets += more;
                }
            }
        }
        self.blocks.begin(bytes);
    }

    /// The block that was begun last.
    pub(crate) fn block(&self) -> &[u8] {
        self.blocks.last()
    }

    /// All packets of the block were named.
    pub(crate) fn end_block(&mut self) {
        self.blocks.end();
    }

    /// Takes a packet of the near side. `lives`: whether a stream has this number. Gives the number
    /// of the flow that the packet has opened, if it has.
    pub(crate) fn send(
        &mut self,
        key: &PacketKey,
        treatment: PacketTreatment,
        packet: PacketParts<'_>,
        lives: impl Fn(FlowId) -> bool,
        shared: &mut Shared,
        now: Instant,
    ) -> Result<Option<FlowId>, SendError> {
        if shared.peer_credit.is_none() {
            return Err(SendError::NotConnected);
        }
        let flow = match self.find(key) {
            Some(flow) => self.unless_refused(flow, shared, now)?,
            None => None,
        };
        self.last = flow.map(|flow| (*key, flow));
        let (flow, opened) = match flow {
            Some(flow) => (flow, None),
            None => {
                let flow = self.open(key, treatment, lives, shared, now)?;
                (flow, Some(flow))
            }
        };
        let length = packet.len() + SHORT;
        let Some(slot) = self.wait(flow, packet, shared, now) else {
            shared.counters.packets.full += 1;
            return Err(SendError::Full);
        };
        let segment = shared.path.urgent_segment;
        let gather = self.gathering.count(length, segment, now);
        if !gather || shared.schedule.is_ready(slot) {
            shared.schedule.wake(slot);
        } else if self.gathering.add(flow, length, segment, now) {
            self.let_go_gathered(shared);
        }
        Ok(opened)
    }

    /// A packet waits in its flow from now on. Gives the flow's place in the schedule, or `None`
    /// when too much waits.
    fn wait(
        &mut self,
        flow: FlowId,
        packet: PacketParts<'_>,
        shared: &mut Shared,
        now: Instant,
    ) -> Option<Slot> {
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
        shared.memory.packets += cost;
        Some(state.slot)
    }

    /// Nothing waits in this flow any more.
    fn forget_waiting(&mut self, flow: FlowId, shared: &mut Shared) {
        let Some(state) = self.by_number.get_mut(&flow) else {
            return;
        };
        self.waiting_bytes -= state.waiting_bytes;
        shared.memory.packets -= state.waiting_bytes;
        state
            .forget_waiting()
            .for_each(|packet| self.blocks.release(packet));
    }

    /// The flow, if it may be used. One that the far side refused some time ago is tried again,
    /// under another number.
    fn unless_refused(
        &mut self,
        flow: FlowId,
        shared: &mut Shared,
        now: Instant,
    ) -> Result<Option<FlowId>, SendError> {
        let until = self
            .by_number
            .get(&flow)
            .and_then(|state| state.refused_until);
        match until {
            Some(until) if now < until => Err(SendError::Refused),
            Some(_) => {
                self.end(flow, shared);
                Ok(None)
            }
            None => Ok(Some(flow)),
        }
    }

    /// Lets gathered packets take their turns when it is time.
    pub(crate) fn end_gathering(&mut self, shared: &mut Shared, now: Instant) {
        if self.gathering.until().is_some_and(|until| until <= now) {
            self.let_go_gathered(shared);
        }
    }

    fn let_go_gathered(&mut self, shared: &mut Shared) {
        for flow in self.gathering.take() {
            if let Some(state) = self
                .by_number
                .get(&flow)
                .filter(|state| !state.waiting.is_empty())
            {
                shared.schedule.wake(state.slot);
            }
        }
    }

    fn open(
        &mut self,
        key: &PacketKey,
        treatment: PacketTreatment,
        lives: impl Fn(FlowId) -> bool,
        shared: &mut Shared,
        now: Instant,
    ) -> Result<FlowId, SendError> {
        if self.len() >= shared.limits.packet_flows || shared.memory.is_short() {
            shared.counters.packets.flows_refused += 1;
            return Err(SendError::TooManyFlows);
        }
        let flow = shared
            .numbers
            .allocate(|flow| lives(flow) || self.by_number.contains_key(&flow));
        shared.counters.flows.opened_here += 1;
        let slot = shared.schedule.add(flow, treatment.class());
        let state = PacketFlow::new(*key, treatment, slot, true, now);
        self.insert(flow, state, shared, now);
        Ok(flow)
    }

    fn insert(&mut self, flow: FlowId, state: PacketFlow, shared: &mut Shared, now: Instant) {
        shared.memory.packets += state.cost();
        self.by_key.insert(state.key, flow);
        self.by_number.insert(flow, Box::new(state));
        self.ends.push(Reverse((now + shared.limits.one_way, flow)));
        if self.ends.len() > 2 * self.len() + ENDS_SLACK {
            // Most of them have ended by other ways: the list stays as short as the flows are few.
            shared.counters.walked += self.ends.len() as u64;
            let by_number = &self.by_number;
            self.ends
                .retain(|Reverse((_, flow))| by_number.contains_key(flow));
        }
    }

    /// Packs the oldest packet of the flow whose turn it is that is still of use. Returns whether
    /// there may be room for another.
    pub(crate) fn pack(
        &mut self,
        turn: Turn,
        writer: &mut BufferWriter<'_>,
        compression: &Compression,
        shared: &mut Shared,
        now: Instant,
    ) -> bool {
        let state = self
            .by_number
            .get_mut(&turn.flow)
            .expect("the schedule has living flows only");
        let (header_length, form) = if state.answered {
            (SHORT, Form::Short)
        } else {
            let form = Form::Packets(state.key, state.treatment.asked);
            (full_length(&state.key), form)
        };
        let delivery = state.treatment.delivery;
        while let Some(first) = state.waiting.front() {
            let length = first.len();
            if state.is_stale(now) || writer.is_never_enough(header_length + length) {
                shared.counters.packets.stale += 1;
                let stale = state.pop().expect("it was looked at");
                self.waiting_bytes -= stale.cost();
                shared.memory.packets -= stale.cost();
                self.blocks.release(stale);
                continue;
            }
            if !writer.has_room(turn.flow, delivery.is_urgent(), header_length + length) {
                return false;
            }
            state.note_wait(now);
            let packet = state.pop().expect("it was looked at");
            self.waiting_bytes -= packet.cost();
            shared.memory.packets -= packet.cost();
            let header = Header {
                function: Function::Packet(delivery),
                fin: false,
                flow: turn.flow,
                sequence: state.sent.packets,
                length: length as u32,
                form,
            };
            let origin = Origin {
                flow: turn.flow,
                urgent: delivery.is_urgent(),
                class: state.class(),
                apart: compression
                    .of_flow(&state.treatment.asked, state.ours)
                    .keeps_apart(),
            };
            writer.add_with(&header, self.blocks.parts(&packet), origin);
            state.sent.add(length);
            self.blocks.release(packet);
            shared.counters.packets.sent += 1;
            shared.counters.traffic.bytes_out += length as u64;
            shared.schedule.on_served(turn.slot, header_length + length);
            if state.waiting.is_empty() {
                shared.schedule.sleep(turn.slot);
            }
            return true;
        }
        shared.schedule.sleep(turn.slot);
        true
    }

    // --- in
    // ---------------------------------------------------------------------------------------------

    /// A packet of the far side.
    pub(crate) fn on_packet(
        &mut self,
        header: &Header,
        delivery: Delivery,
        packet: InPayload<'_>,
        shared: &mut Shared,
        now: Instant,
    ) {
        let flow = header.flow;
        if !self.contains(flow) {
            if let Some(own) = self.crossed_by(header, shared, now) {
                self.arrivals.arrive(own, packet.place);
                shared.counters.packets.received += 1;
                return;
            }
            if !self.open_from_far_side(header, delivery, shared, now) {
                return;
            }
        }
        let state = self
            .by_number
            .get_mut(&flow)
            .expect("it is here, or was opened just now");
        if matches!(header.form, Form::Packets(key, _) if key != state.key || state.ours) {
            shared.counters.breaches.count(Breach::OtherKey);
            return;
        }
        state.answered = true;
        state.moved = now;
        state.order.is_short = shared.memory.is_short();
        let length = packet.place.len();
        if self.put_in_order(header, packet, shared, now) == Place::Drop {
            shared.counters.packets.late += 1;
            return;
        }
        shared.counters.packets.received += 1;
        shared.counters.traffic.bytes_in += length as u64;
    }

    /// Gives a packet on, keeps it for those before it, or drops it. What else has its turn by that
    /// is given on too.
    fn put_in_order(
        &mut self,
        header: &Header,
        InPayload { payload, place }: InPayload<'_>,
        shared: &mut Shared,
        now: Instant,
    ) -> Place {
        let (flow, number) = (header.flow, header.sequence);
        let state = self.by_number.get_mut(&flow).expect("the caller has it");
        let holding = &mut self.holding[usize::from(state.treatment.asked.in_order)];
        let room = holding.len() < MOST_HOLDING
            && self.holding_bytes + place.len() + PACKET_COST <= HOLDING_BYTES;
        let waits = state.treatment.delivery.keeps_order() && room;
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
        shared.memory.packets = shared.memory.packets + state.cost() - cost;
        self.holding_bytes = self.holding_bytes + state.order.held() - waiting;
        outcome
    }

    /// Whether packets of the payload that is being unpacked have arrived: then it is needed until
    /// they are taken.
    pub(crate) fn need_payload(&self) -> bool {
        self.arrivals.needs_payload()
    }

    /// The payload is unpacked. Gives it back if no packet of it has arrived.
    pub(crate) fn unpacked(&mut self, payload: Vec<u8>) -> Option<Vec<u8>> {
        self.arrivals.unpacked(payload)
    }

    /// Until when packets wait for those that they overtook.
    pub(crate) fn holds_until(&self) -> Option<Instant> {
        self.holding
            .iter()
            .filter_map(|holding| holding.front())
            .map(|first| first.until)
            .min()
    }

    /// Gives on those that have waited long enough.
    pub(crate) fn end_holding(&mut self, shared: &mut Shared, now: Instant) {
        for holding in &mut self.holding {
            while let Some(first) = holding.front().copied().filter(|first| first.until <= now) {
                holding.pop_front();
                let Some(state) = self.by_number.get_mut(&first.flow) else {
                    continue;
                };
                let (cost, waiting) = (state.cost(), state.order.held());
                state.order.give_up(first.number);
                give_on(&mut state.order, first.flow, &mut self.arrivals, now);
                shared.memory.packets = shared.memory.packets + state.cost() - cost;
                self.holding_bytes = self.holding_bytes + state.order.held() - waiting;
            }
        }
    }

    /// Our own flow between the same ends, in the same direction, if both sides have opened one at
    /// the same time: the one with the lower number stays, at both sides, and what still comes in
    /// the other one is taken as if it came in this.
    fn crossed_by(&self, header: &Header, shared: &Shared, now: Instant) -> Option<FlowId> {
        let Form::Packets(key, _) = header.form else {
            return None;
        };
        let own = self.by_key.get(&key).copied()?;
        let state = self.by_number.get(&own)?;
        let is_new = now.saturating_duration_since(state.since) < CROSSING;
        let is_theirs = !shared.numbers.is_ours(header.flow);
        (state.ours && is_new && own < header.flow && is_theirs).then_some(own)
    }

    fn open_from_far_side(
        &mut self,
        header: &Header,
        delivery: Delivery,
        shared: &mut Shared,
        now: Instant,
    ) -> bool {
        let flow = header.flow;
        let (Form::Packets(key, asked), false) = (header.form, shared.numbers.is_ours(flow)) else {
            // It is over here. Whoever goes on sending opens another.
            shared.counters.late += 1;
            shared.refuse(flow, 0, Status::TimedOut);
            return false;
        };
        let has_room = self.len() < shared.limits.packet_flows && !shared.memory.is_short();
        match shared.numbers.note(flow) {
            Known::New if shared.peer_credit.is_some() && has_room => {}
            Known::New => {
                shared.counters.packets.flows_refused += 1;
                shared.refuse(flow, key.protocol, Status::NoResources);
                return false;
            }
            Known::Used => {
                // Its end crossed with this one.
                shared.counters.late += 1;
                return false;
            }
            Known::TooOld => {
                shared.counters.late += 1;
                shared.refuse(flow, key.protocol, Status::TimedOut);
                return false;
            }
        }
        if let Some(old) = self.by_key.get(&key).copied() {
            // The far side has forgotten the older one, or both sides opened it and the far side's
            // stays.
            self.end(old, shared);
        }
        shared.counters.flows.opened_there += 1;
        let treatment = PacketTreatment { asked, delivery };
        let slot = shared.schedule.add(flow, treatment.class());
        let state = PacketFlow::new(key, treatment, slot, false, now);
        self.insert(flow, state, shared, now);
        shared.control.notice(flow, None);
        shared.events.push(Event::PacketFlow { flow, key, asked });
        true
    }

    /// A control message about a flow of packets.
    pub(crate) fn on_control(&mut self, header: &Header, shared: &mut Shared, now: Instant) {
        let Some(state) = self.by_number.get_mut(&header.flow) else {
            return;
        };
        match (header.function, header.form) {
            (Function::Accepted, _) => state.answered = true,
            (Function::Reset, Form::Status(_, Status::NotAllowed | Status::NoResources))
                if state.ours =>
            {
                // Remembered for a while, or each of its packets would ask again.
                state.refused_until = Some(now + REFUSED_FOR);
                state.answered = false;
                shared.schedule.stop(state.slot);
                self.forget_waiting(header.flow, shared);
            }
            (Function::Reset, _) => {
                shared.counters.flows.reset_there += 1;
                self.end(header.flow, shared);
            }
            _ => shared.counters.breaches.count(Breach::OtherKind),
        }
    }

    /// Gives everything that arrived since the last time to `each`, in the order of arrival.
    pub(crate) fn take(&mut self, shared: &mut Shared, mut each: impl FnMut(&Arrived<'_>)) {
        for (flow, bytes) in self.arrivals.iter() {
            // Ended since: nobody may get it any more.
            if let Some(state) = self.by_number.get(&flow) {
                each(&Arrived {
                    flow,
                    key: &state.key,
                    asked: &state.treatment.asked,
                    is_reply: state.ours,
                    bytes,
                });
            }
        }
        self.forget_arrivals(shared);
    }

    fn forget_arrivals(&mut self, shared: &mut Shared) {
        self.arrivals.clear(
            |payload| shared.spent.push(payload),
            |bytes| self.blocks.recycle(bytes),
        );
    }

    // --- the end
    // ---------------------------------------------------------------------------------------------

    /// The near side does not want the flow.
    pub(crate) fn reset(&mut self, flow: FlowId, status: Status, shared: &mut Shared) {
        let Some(state) = self.remove(flow, shared) else {
            return;
        };
        shared.counters.flows.reset_here += 1;
        // The far side opens another if it is not told.
        shared.send_reset(flow, state.key.protocol, status);
    }

    /// Forgets a flow and tells the edges.
    fn end(&mut self, flow: FlowId, shared: &mut Shared) {
        if self.remove(flow, shared).is_some() {
            shared.events.push(Event::Closed { flow });
        }
    }

    /// Ends the flows in which nothing has moved for long enough. The opener ends first and says
    /// so.
    pub(crate) fn end_idle(&mut self, shared: &mut Shared, now: Instant) {
        while self.ends_at().is_some_and(|at| at <= now)
            && let Some(Reverse((_, flow))) = self.ends.pop()
        {
            let Some(state) = self.by_number.get(&flow) else {
                continue;
            };
            let quiet = if state.is_mutual() {
                shared.limits.both_ways
            } else {
                shared.limits.one_way
            };
            let later = if state.ours {
                Duration::ZERO
            } else {
                shared.limits.one_way
            };
            let end = state.moved + quiet + later;
            if end > now {
                self.ends.push(Reverse((end, flow)));
                continue;
            }
            let (ours, protocol) = (state.ours, state.key.protocol);
            shared.counters.flows.closed += 1;
            self.end(flow, shared);
            if ours {
                shared.send_reset(flow, protocol, Status::None);
            }
        }
    }

    /// All flows end with the peer: nobody there needs to be told.
    pub(crate) fn lose_all(&mut self, status: Status, shared: &mut Shared) {
        let mut flows: Vec<FlowId> = self.by_number.keys().copied().collect();
        flows.sort_unstable();
        for flow in flows {
            if self.remove(flow, shared).is_some() {
                shared.counters.flows.lost += 1;
                shared.events.push(Event::Reset { flow, status });
            }
        }
        self.forget_arrivals(shared);
    }
}

/// Gives on everything of a flow that was held back and whose turn has come.
fn give_on(order: &mut Order, flow: FlowId, arrivals: &mut Arrivals, now: Instant) {
    while let Some(bytes) = order.pop_ready(now) {
        arrivals.arrive_late(flow, bytes);
    }
}
