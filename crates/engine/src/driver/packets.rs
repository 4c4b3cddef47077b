//! The flows of datagrams of a peer: opening, sending, receiving, ending.
//!
//! Beside the streams they share the numbers, the schedule and the control messages. A datagram is
//! opaque here: what it is on a wire is the business of whoever gives it. What arrived waits in one
//! piece of memory until it is taken, which is after each input.

use std::{
    cmp::Reverse,
    collections::{BinaryHeap, HashMap, VecDeque},
    hash::BuildHasherDefault,
    ops::Range,
    time::{Duration, Instant},
};

use super::{
    Control, Driver,
    numbers::{Known, NumberHasher},
    pack::{Page, Whose},
    schedule::Turn,
};
use crate::{
    CompressionStats, Event, FlowId, FlowInfo, PacketKey, SendError, Status, Treatment,
    config::{
        CROSSING, DATAGRAM_COST, ENDS_SLACK, GATHER, GATHER_MEMORY, HOLDING_BYTES, MAX_REFUSALS,
        MOST_HOLDING, REFUSED_FOR, SPARE_DATAGRAMS, WAITING_BYTES, WAITING_FLOW_BYTES,
    },
    error::Breach,
    flow::{Delivery, PacketFlow, Place},
    message::{self, Form, Function, Header},
};

/// Memory for so many bytes of datagrams is kept between two inputs.
const ARRIVED_LEFT: usize = 512 << 10;

/// Tables for so many flows are kept.
const ROOM_LEFT: usize = 4_096;

/// Of a datagram that has arrived: its flow, and where its bytes are.
type Arrival = (FlowId, Range<usize>);

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
    holding: [VecDeque<(Instant, FlowId, u32)>; 2],
    arrived: Vec<u8>,
    arrivals: Vec<Arrival>,
    spare: Vec<Vec<u8>>,
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
        self.arrived.len() + self.arrivals.len() * size_of::<Arrival>()
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
        let state = self.by_number.remove(&flow)?;
        self.last = None;
        if self.by_key.get(&state.key) == Some(&flow) {
            self.by_key.remove(&state.key);
        }
        self.waiting_bytes -= state.waiting_bytes;
        self.held -= state.cost();
        self.holding_bytes -= state.order.held();
        // A flood leaves no memory behind.
        let left = self.by_number.len();
        if left == 0 {
            (self.by_number, self.by_key, self.ends) = Default::default();
            (self.spare, self.gathering.flows) = Default::default();
        } else if self.by_number.capacity() > ROOM_LEFT.max(8 * left) {
            self.by_number.shrink_to(2 * left);
            self.by_key.shrink_to(2 * left);
            self.ends.shrink_to(2 * left);
        }
        Some(state)
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
        assert!(
            self.ends.len() >= self.by_number.len(),
            "every flow is looked at some time"
        );
    }
}

impl Driver {
    // --- out
    // ---------------------------------------------------------------------------------------------

    pub(crate) fn send_packet(
        &mut self,
        key: &PacketKey,
        treatment: (Treatment, Delivery),
        bytes: &[u8],
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
        let packet_flows = &mut self.packet_flows;
        let state = packet_flows
            .by_number
            .get_mut(&flow)
            .expect("it was found or made just now");
        let copy = copied(&mut packet_flows.spare, bytes);
        let cost = DATAGRAM_COST + copy.capacity();
        let full = state.waiting_bytes + cost > WAITING_FLOW_BYTES
            || packet_flows.waiting_bytes + cost > WAITING_BYTES;
        if full {
            recycle(&mut packet_flows.spare, Some(copy));
            self.counters.packets.full += 1;
            return Err(SendError::Full);
        }
        state.push(copy, now);
        state.moved = now;
        packet_flows.waiting_bytes += cost;
        packet_flows.held += cost;
        let length = bytes.len() + message::SHORT;
        let gather = packet_flows.gathering.is_worth(length, self.segment, now);
        if gather && !self.schedule.is_ready(state.slot) {
            packet_flows.gathering.flows.push(flow);
            packet_flows.gathering.bytes += length;
            let full = packet_flows.gathering.bytes + length > self.segment;
            let until = *packet_flows.gathering.until.get_or_insert(now + GATHER);
            if full || until <= now {
                self.let_go_gathered();
            }
        } else {
            self.schedule.wake(state.slot);
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

    pub(crate) fn has_packet_flow(&self, key: &PacketKey) -> bool {
        self.packet_flows.find(key).is_some()
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
            let length = first.bytes.len();
            if state.is_stale(now) || page.is_never_enough(header_length + length) {
                self.counters.packets.stale += 1;
                let stale = state.pop();
                let cost = DATAGRAM_COST + stale.as_ref().map_or(0, Vec::capacity);
                packet_flows.waiting_bytes -= cost;
                packet_flows.held -= cost;
                recycle(&mut packet_flows.spare, stale);
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
            let bytes = state.pop().expect("it was looked at");
            packet_flows.waiting_bytes -= DATAGRAM_COST + bytes.capacity();
            packet_flows.held -= DATAGRAM_COST + bytes.capacity();
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
            let apart = self.shrinker.how(&state.asked, state.ours).keeps_apart();
            let (urgent, class) = (state.delivery.is_urgent(), state.class());
            page.add_with(
                &header,
                &bytes,
                Whose {
                    flow: turn.flow,
                    urgent,
                    class,
                    apart,
                },
            );
            state.sent.add(length);
            recycle(&mut packet_flows.spare, Some(bytes));
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

    /// A datagram of the far side.
    pub(super) fn on_datagram(
        &mut self,
        header: &Header,
        delivery: Delivery,
        bytes: &[u8],
        now: Instant,
    ) {
        let flow = header.flow;
        if !self.packet_flows.contains(flow) {
            if let Some(own) = self.crossed_by(header, now) {
                let PacketFlows {
                    arrived, arrivals, ..
                } = &mut self.packet_flows;
                arrive(arrived, arrivals, own, bytes);
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
        let in_order = usize::from(state.asked.in_order);
        let room = packet_flows.holding[in_order].len() < MOST_HOLDING
            && packet_flows.holding_bytes + bytes.len() + DATAGRAM_COST <= HOLDING_BYTES;
        let waits = state.delivery.keeps_order() && room;
        let PacketFlows {
            by_number,
            holding,
            holding_bytes,
            held,
            arrived,
            arrivals,
            spare,
            ..
        } = packet_flows;
        let state = by_number.get_mut(&flow).expect("as before");
        let (cost, waiting) = (state.cost(), state.order.held());
        state.order.is_short = is_short;
        let mut give = |bytes: &[u8]| arrive(arrived, arrivals, flow, bytes);
        if state.order.is_full_for(header.sequence) {
            state.order.give_up_all();
            while let Some(held) = state.order.pop_ready(now) {
                give(&held);
                recycle(spare, Some(held));
            }
        }
        let place = state.order.place(header.sequence, waits, now);
        match place {
            Place::Now => give(bytes),
            Place::Hold => {
                state.order.hold(header.sequence, copied(spare, bytes));
                holding[in_order].push_back((now + state.order.patience(), flow, header.sequence));
            }
            Place::Drop => self.counters.packets.late += 1,
        }
        if place != Place::Drop {
            state.received.add(bytes.len());
            self.counters.packets.received += 1;
            self.counters.traffic.bytes_in += bytes.len() as u64;
            while let Some(held) = state.order.pop_ready(now) {
                give(&held);
                recycle(spare, Some(held));
            }
        }
        *held = *held + state.cost() - cost;
        *holding_bytes = *holding_bytes + state.order.held() - waiting;
    }

    /// Until when datagrams wait for those that they overtook.
    pub(crate) fn holds_until(&self) -> Option<Instant> {
        self.packet_flows
            .holding
            .iter()
            .filter_map(|holding| holding.front())
            .map(|(until, ..)| *until)
            .min()
    }

    /// Gives on those that have waited long enough.
    pub(super) fn end_holding(&mut self, now: Instant) {
        let PacketFlows {
            by_number,
            holding,
            holding_bytes,
            held,
            arrived,
            arrivals,
            spare,
            ..
        } = &mut self.packet_flows;
        for holding in holding {
            while let Some((_, flow, number)) =
                holding.front().copied().filter(|(until, ..)| *until <= now)
            {
                holding.pop_front();
                let Some(state) = by_number.get_mut(&flow) else {
                    continue;
                };
                let (cost, waiting) = (state.cost(), state.order.held());
                state.order.give_up(number);
                while let Some(held) = state.order.pop_ready(now) {
                    arrive(arrived, arrivals, flow, &held);
                    recycle(spare, Some(held));
                }
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
                self.packet_flows.waiting_bytes -= state.waiting_bytes;
                self.packet_flows.held -= state.waiting_bytes;
                (state.waiting, state.waiting_bytes) = (VecDeque::new(), 0);
                self.schedule.stop(state.slot);
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
        let packet_flows = &mut self.packet_flows;
        for (flow, range) in packet_flows.arrivals.drain(..) {
            // Ended since: nobody may get it any more.
            if let Some(state) = packet_flows.by_number.get(&flow) {
                let bytes = &packet_flows.arrived[range];
                each(&Arrived {
                    flow,
                    key: &state.key,
                    is_reply: state.ours,
                    bytes,
                });
            }
        }
        packet_flows.arrived.clear();
        if packet_flows.arrived.capacity() > ARRIVED_LEFT {
            (packet_flows.arrived, packet_flows.arrivals) = (Vec::new(), Vec::new());
        }
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
        self.packet_flows.arrivals.clear();
        self.packet_flows.arrived.clear();
    }
}

/// A copy, in a buffer that was used before if there is one that is not much too large.
fn copied(spare: &mut Vec<Vec<u8>>, bytes: &[u8]) -> Vec<u8> {
    let mut copy = spare
        .pop_if(|buffer| buffer.capacity() <= 4 * bytes.len() + 256)
        .unwrap_or_default();
    copy.clear();
    copy.extend_from_slice(bytes);
    copy
}

/// A datagram waits to be taken.
fn arrive(arrived: &mut Vec<u8>, arrivals: &mut Vec<Arrival>, flow: FlowId, bytes: &[u8]) {
    let from = arrived.len();
    arrived.extend_from_slice(bytes);
    arrivals.push((flow, from..from + bytes.len()));
}

fn recycle(spare: &mut Vec<Vec<u8>>, bytes: Option<Vec<u8>>) {
    if let Some(bytes) =
        bytes.filter(|bytes| spare.len() < SPARE_DATAGRAMS && bytes.capacity() <= 2_048)
    {
        spare.push(bytes);
    }
}
