//! The packet driver of one peer: it owns the flows and routes between them, the schedule and the
//! control messages.
//!
//! [`pack`] fills a buffer when the mover may send, reading from the edges in the order of the
//! [`schedule`]; [`unpack`] takes a received buffer apart. The rest of this file is the edges'
//! side: opening, accepting, delivering, ending. It knows nothing of the mover, so that two drivers
//! can be tested against each other with nothing between them.

use std::{collections::VecDeque, io::IoSlice, time::Duration, time::Instant};

mod ending;
mod holders;
mod numbers;
mod pack;
mod packets;
mod schedule;
mod unpack;

#[cfg(test)]
pub(crate) mod tests;

pub(crate) use pack::{Packed, Room};
pub use packets::Arrived;
pub(crate) use packets::PacketFlows;
pub(crate) use schedule::{Schedule, Slot};

use crate::{
    Class, Event, FlowId, FlowInfo, Limits, OpenError, Status, StreamKey, Treatment,
    compress::{
        COMPRESSED, Compress, Compression, Expander, Made, Proposal, Record, Shrinker, Work, Worked,
    },
    config::{
        ARRIVED_BYTES, COMPRESSION_RESTS, CONTROL_SLACK, DICTIONARIES_REST, FLOW_COST, FREE_PART,
        LEAST_SPARSE, LOOK_AFTER, MAX_REFUSALS, MIN_WINDOW, MOST_ANSWERS, MOST_EVENTS,
        MOST_QUANTUM, QUANTUM, QUEUE_ROOM, SPARSE, SPARSE_TIME, TURN_TIME, UNKNOWN_RTT, UNSAID,
    },
    flow::{Behaviour, Climate, Due, Flow, Memory, Window},
    stats::{CompressionStats, Counters, Usage},
};
use holders::Holders;
use numbers::{Flows, Giver, Opened};

/// The packet driver of one peer.
#[derive(Debug)]
pub(crate) struct Driver {
    limits: Limits,
    /// The smaller of the peer's limit and what the program allows at the moment.
    budget: usize,
    /// Initial credit that the peer gives to flows; none while there is no session.
    peer_credit: Option<u32>,
    rtt: Duration,
    flows: Flows,
    packet_flows: PacketFlows,
    giver: Giver,
    opened: Opened,
    schedule: Schedule,
    /// Up to so much of late somebody waits for a flow.
    sparse: u32,
    /// What one datagram of the mover carries of what somebody waits for.
    segment: usize,
    /// What the link takes, bytes per second.
    rate: u64,
    control: VecDeque<Control>,
    /// Resets among them, answers to proposals, and those that somebody waits for.
    resets: usize,
    answers: usize,
    urgent: usize,
    /// Flows of which the far side shall know soon that they were accepted, have ended on both
    /// sides, or are there: the first bytes say the first and the last, and any buffer takes all of
    /// them along.
    unsaid: Vec<FlowId>,
    unsaid_until: Option<Instant>,
    events: VecDeque<Event>,
    /// Flows whose far side has reset them and whose data is still being delivered, by when to look
    /// after them.
    lingering: VecDeque<Lingering>,
    /// What all streams cost: themselves, and what they hold.
    held: usize,
    held_max: usize,
    holders: Holders,
    /// Used payloads, to be given back to the mover after each input.
    spent: Vec<Vec<u8>>,
    shrinker: Shrinker,
    expander: Expander,
    /// Dictionaries to be made.
    work: VecDeque<Work>,
    /// Of buffers that hold messages of several flows.
    together: Record,
    compression: [CompressionStats; Class::COUNT],
    compressed: Option<Compressed>,
    /// Nothing is heard of the peer.
    silent: bool,
    /// When flows that may be over, and the like, were looked at last.
    looked_after: Option<Instant>,
    /// The peer sent something that cannot be: its session is of no use any more.
    broken: bool,
    counters: Counters,
}

/// Compression holds something.
#[derive(Debug, Clone, Copy)]
struct Compressed {
    /// The last compressed buffer of either direction.
    at: Instant,
    /// From then on, at the earliest from `at`, the peer was never silent; none: it is.
    heard_since: Option<Instant>,
    /// All is given back but for the peer's dictionaries.
    rests: bool,
}

impl Compressed {
    /// When more may be given back. The sender's part is over whether or not the other side is
    /// heard, since that one may hear well, and counts on it.
    fn due(&self) -> Option<Instant> {
        match self.rests {
            false => Some(self.at + COMPRESSION_RESTS),
            true => self.heard_since.map(|since| since + DICTIONARIES_REST),
        }
    }
}

/// A message that goes before all data.
#[derive(Debug, Clone, Copy)]
enum Control {
    Accepted(FlowId),
    /// The amount is filled in when it is packed.
    Credit(FlowId),
    /// Likewise; nothing if it is over by then.
    Pause(FlowId),
    /// Of a flow that the far side has ended before.
    End(FlowId),
    /// The flow is gone already: this is all that is left of it.
    Reset {
        flow: FlowId,
        sequence: u32,
        protocol: u8,
        status: Status,
    },
    Dictionary(Proposal),
    /// Whether the dictionary of this generation is there.
    Holds(u8, bool),
}

impl Control {
    /// Somebody waits for it. Not for second ends, and not for dictionaries: what would be
    /// protected by parity, and kept short for it, is the data beside them.
    fn is_urgent(&self) -> bool {
        !matches!(
            self,
            Control::Dictionary(_) | Control::Holds(..) | Control::End(_)
        )
    }
}

#[derive(Debug)]
struct Lingering {
    until: Instant,
    flow: FlowId,
    /// What had been delivered when this was noted.
    delivered: u64,
}

impl Driver {
    /// `higher`: our public key is the higher one of the two.
    pub(crate) fn new(limits: Limits, higher: bool) -> Driver {
        let limits = Limits {
            initial_credit: limits.told_credit(),
            ..limits
        };
        Driver {
            limits,
            budget: limits.peer_bytes,
            peer_credit: None,
            rtt: UNKNOWN_RTT,
            flows: Flows::default(),
            packet_flows: PacketFlows::default(),
            giver: Giver::new(higher),
            opened: Opened::new(),
            schedule: Schedule::new(),
            sparse: SPARSE,
            segment: 1_200,
            rate: 0,
            control: VecDeque::new(),
            resets: 0,
            answers: 0,
            urgent: 0,
            unsaid: Vec::new(),
            unsaid_until: None,
            events: VecDeque::new(),
            lingering: VecDeque::new(),
            held: 0,
            held_max: 0,
            holders: Holders::new(),
            spent: Vec::new(),
            shrinker: Shrinker::new(Compression {
                compress: Compress::Off,
                ..Compression::default()
            }),
            expander: Expander::new(),
            work: VecDeque::new(),
            together: Record::default(),
            compression: [CompressionStats::default(); Class::COUNT],
            compressed: None,
            silent: false,
            looked_after: None,
            broken: false,
            counters: Counters::default(),
        }
    }

    // --- the peer
    // ---------------------------------------------------------------------------------------------

    /// A session stands. If the peer is another instance than before, nothing of before lives.
    pub(crate) fn on_connected(&mut self, fresh: bool, peer_credit: u32) {
        if fresh {
            self.on_restarted();
        }
        self.peer_credit = Some(peer_credit);
        self.silent &= !fresh;
        self.events.push_back(Event::Connected { fresh });
    }

    /// Nothing is heard of the peer, or something again.
    pub(crate) fn on_silence(&mut self, silent: bool, now: Instant) {
        self.silent = silent;
        if let Some(compressed) = &mut self.compressed {
            compressed.heard_since = (!silent).then_some(now);
        }
        self.events
            .push_back(if silent { Event::Silent } else { Event::Heard });
    }

    /// When flows that may be over, and the like, are to be looked at: a few times a second at
    /// most, since there may be many.
    pub(crate) fn looks_after_at(&self) -> Option<Instant> {
        let lingering = self.lingering.front().map(|first| first.until);
        let compressed = self.compressed.and_then(|compressed| compressed.due());
        let first = [self.packet_flows.ends_at(), lingering, compressed]
            .into_iter()
            .flatten()
            .min()?;
        Some(
            self.looked_after
                .map_or(first, |last| first.max(last + LOOK_AFTER)),
        )
    }

    pub(crate) fn set_compression(&mut self, compression: Compression) {
        self.shrinker = Shrinker::new(compression);
    }

    /// Compresses a packed buffer, if that pays.
    pub(crate) fn shrink(&mut self, buffer: &mut Vec<u8>, packed: Packed, now: Instant) {
        let Packed {
            flow, class, apart, ..
        } = packed;
        let shrinker = &mut self.shrinker;
        // The flow may have ended with what was read for it last.
        let stream = flow.and_then(|flow| self.flows.get_mut(&flow));
        let packet_flow = flow.and_then(|flow| self.packet_flows.get_mut(flow));
        let own = stream
            .map(|state| (&state.asked, state.ours, &mut state.record))
            .or(packet_flow.map(|state| (&state.asked, state.ours, &mut state.record)));
        let compression = match own {
            Some((asked, ours, record)) => {
                let how = shrinker.how(asked, ours);
                shrinker.shrink(
                    buffer,
                    (how, true),
                    record.get_or_insert_with(Box::default),
                    self.rate,
                )
            }
            None => shrinker.shrink(
                buffer,
                (shrinker.how_together(apart), false),
                &mut self.together,
                self.rate,
            ),
        };
        self.compression[class as usize] += compression;
        if buffer[0] == COMPRESSED {
            self.on_compressed(now);
        }
        self.work.extend(self.shrinker.poll_work());
    }

    /// A dictionary to be made, on this thread or another.
    pub(crate) fn poll_work(&mut self) -> Option<Work> {
        self.work.pop_front()
    }

    /// It is made.
    pub(crate) fn on_worked(&mut self, worked: Worked) {
        match worked.0 {
            Made::Shrink { serial, dictionary } => self.shrinker.on_made(serial, dictionary),
            Made::Expand { serial, dictionary } => {
                if let Some(generation) = self.expander.on_made(serial, dictionary) {
                    self.answer(generation, true);
                }
                self.make_next();
            }
        }
    }

    pub(crate) fn compression_stats(&self) -> [CompressionStats; Class::COUNT] {
        self.compression
    }

    /// Dictionaries that both sides have made.
    pub(crate) fn dictionaries(&self) -> u64 {
        self.shrinker.dictionaries
    }

    /// Whether the peer has sent something that cannot be; told once.
    pub(crate) fn take_broken(&mut self) -> bool {
        std::mem::take(&mut self.broken)
    }

    pub(crate) fn set_rtt(&mut self, rtt: Option<Duration>) {
        self.rtt = rtt.unwrap_or(UNKNOWN_RTT);
    }

    /// What the link takes, bytes per second, and one datagram, bytes; `urgent`: one whose parity
    /// must fit into another.
    pub(crate) fn set_path(&mut self, rate: u64, segment: usize, urgent: usize) {
        let within = |time: Duration| u128::from(rate) * time.as_nanos() / 1_000_000_000;
        self.sparse = (within(SPARSE_TIME).min(SPARSE.into()) as u32).max(LEAST_SPARSE);
        let turn = within(TURN_TIME).min(MOST_QUANTUM as u128) as usize;
        // Never smaller than one segment, whatever the path's MTU.
        self.schedule.set_quantum(turn.max(QUANTUM).max(segment));
        (self.segment, self.rate) = (urgent, rate);
    }

    /// What the flows of this peer may hold from now on.
    pub(crate) fn set_budget(&mut self, bytes: usize) {
        self.budget = bytes.min(self.limits.peer_bytes);
    }

    // --- the edges
    // ---------------------------------------------------------------------------------------------

    pub(crate) fn open(
        &mut self,
        key: StreamKey,
        asked: impl Into<Treatment>,
        now: Instant,
    ) -> Result<FlowId, OpenError> {
        let peer_credit = self.peer_credit.ok_or(OpenError::NotConnected)?;
        if self.flows.len() >= self.limits.flows {
            return Err(OpenError::TooManyFlows {
                flows: self.limits.flows,
            });
        }
        if self.held() > self.budget {
            return Err(OpenError::OutOfMemory {
                held: self.held(),
                budget: self.budget,
            });
        }
        let (flows, packet_flows) = (&self.flows, &self.packet_flows);
        let flow = self
            .giver
            .give(|flow| flows.contains_key(&flow) || packet_flows.contains(flow));
        self.counters.flows.opened_here += 1;
        let slot = self.insert(flow, key, asked.into(), true, peer_credit, now);
        // Even with nothing to read yet: the far side shall connect, perhaps the server speaks
        // first.
        self.schedule.wake(slot);
        Ok(flow)
    }

    pub(crate) fn accept(&mut self, flow: FlowId) {
        let Some(state) = self.flows.get_mut(&flow) else {
            return;
        };
        if state.accepted {
            return;
        }
        state.accepted = true;
        let (may_send, slot) = (state.may_send(), state.slot);
        self.leave_unsaid(flow, None);
        if may_send {
            self.schedule.wake(slot);
        }
        self.grant(flow);
        self.tell(flow);
    }

    pub(crate) fn readable(&mut self, flow: FlowId, now: Instant) {
        let Some(state) = self.flows.get_mut(&flow) else {
            return;
        };
        if state.may_send() && state.outgoing.credit_left() > 0 {
            if state.behave(0, self.sparse, now) {
                self.schedule.set_class(state.slot, state.class);
            }
            self.schedule.wake(state.slot);
        }
    }

    pub(crate) fn deliverable<'a>(&'a self, flow: FlowId, slices: &mut Vec<IoSlice<'a>>) {
        if let Some(state) = self.flows.get(&flow).filter(|state| state.accepted) {
            state.incoming.deliverable(slices);
        }
    }

    pub(crate) fn delivered(&mut self, flow: FlowId, n: usize, now: Instant) {
        let climate = self.climate();
        let Some(state) = self.flows.get_mut(&flow) else {
            return;
        };
        let before = state.incoming.held();
        state.incoming.take(n, &mut self.spent);
        state.moved = now;
        self.held -= before - state.incoming.held();
        self.counters.traffic.bytes_delivered += n as u64;
        let delivered = state.incoming.delivered();
        let waiting = state.incoming.deliverable_bytes();
        let due = state
            .window
            .on_delivered(n, (delivered, waiting as u64), &climate, now);
        state.told_deliver &= waiting > 0;
        match due {
            Due::Nothing => {}
            Due::Credit => self.queue_credit(flow),
            Due::Pause => self.queue_pause(flow),
        }
        self.tell(flow);
    }

    /// Payloads of the mover that nobody needs any more.
    pub(crate) fn poll_spent(&mut self) -> Option<Vec<u8>> {
        self.spent.pop()
    }

    pub(crate) fn poll_event(&mut self) -> Option<Event> {
        let event = self.events.pop_front();
        if self.events.is_empty() && self.events.capacity() > QUEUE_ROOM {
            self.events = VecDeque::new();
        }
        event
    }

    /// Whether more payloads may be taken apart before the edges have fetched what came of the last
    /// ones.
    pub(crate) fn takes_payloads(&self) -> bool {
        self.events.len() < MOST_EVENTS && self.packet_flows.arrived_bytes() < ARRIVED_BYTES
    }

    pub(crate) fn flows(&self) -> impl Iterator<Item = FlowInfo> {
        self.flows
            .iter()
            .map(|(flow, state)| FlowInfo {
                flow: *flow,
                key: *state.key,
                class: state.class,
                opened_here: state.ours,
                connected: state.accepted && state.answered,
                finished_out: state.outgoing.fin(),
                finished_in: state.told_finish,
                bytes_out: state.outgoing.next(),
                bytes_in: state.incoming.next(),
                held_bytes: state.incoming.held(),
                credit_left: state.outgoing.credit_left(),
                window_bytes: state.window.size(),
                lost_in: 0,
                datagrams_in: 0,
                datagrams_out: 0,
                wait: Duration::ZERO,
                compression: state
                    .record
                    .as_ref()
                    .map_or_else(CompressionStats::default, |record| record.compression),
                since: state.since,
                moved: state.moved,
            })
            .chain(self.packet_flows.infos())
    }

    pub(crate) fn usage(&self) -> Usage {
        Usage {
            streams: self.flows.len(),
            most_streams: self.limits.flows,
            held: self.held(),
            budget: self.budget,
            refused_there: self.counters.flows.refused_there,
        }
    }

    pub(crate) fn flow_count(&self) -> usize {
        self.flows.len() + self.packet_flows.len()
    }

    pub(crate) fn stream_count(&self) -> usize {
        self.flows.len()
    }

    pub(crate) fn exchange_count(&self) -> usize {
        self.packet_flows.len()
    }

    pub(crate) fn ready_count(&self) -> usize {
        self.schedule.listed()
    }

    /// What flows of both kinds cost: themselves, and what they hold.
    pub(crate) fn held(&self) -> usize {
        self.held + self.packet_flows.held()
    }

    /// Bytes of queues beyond those that each peer has.
    pub(crate) fn held_by_queues(&self) -> usize {
        let beyond = |capacity: usize, entry: usize| capacity.saturating_sub(QUEUE_ROOM) * entry;
        beyond(self.control.capacity(), size_of::<Control>())
            + beyond(self.events.capacity(), size_of::<Event>())
            + beyond(self.lingering.capacity(), size_of::<Lingering>())
            + self.schedule.held()
            + self.packet_flows.block_bytes()
    }

    /// What compression may hold from now on, half of it in each direction.
    pub(crate) fn set_compression_limit(&mut self, bytes: usize) {
        self.shrinker.set_limit(bytes / 2);
        self.expander.set_limit(bytes / 2);
    }

    /// Bytes that compression holds.
    pub(crate) fn held_by_compression(&self) -> usize {
        self.shrinker.held() + self.expander.held()
    }

    pub(crate) fn held_max(&self) -> usize {
        self.held_max
    }

    pub(crate) fn budget(&self) -> usize {
        self.budget
    }

    /// A compressed buffer leaves, or has come.
    fn on_compressed(&mut self, now: Instant) {
        let heard_since = if self.silent { None } else { Some(now) };
        self.compressed = Some(Compressed {
            at: now,
            heard_since,
            rests: false,
        });
    }

    pub(crate) fn counters(&self) -> &Counters {
        &self.counters
    }

    pub(crate) fn is_idle(&self) -> bool {
        self.flows.is_empty() && self.packet_flows.len() == 0
    }

    pub(crate) fn is_connected(&self) -> bool {
        self.peer_credit.is_some()
    }

    // --- inside
    // ---------------------------------------------------------------------------------------------

    fn insert(
        &mut self,
        flow: FlowId,
        key: StreamKey,
        asked: Treatment,
        ours: bool,
        credit: u32,
        now: Instant,
    ) -> Slot {
        let initial = u64::from(self.limits.initial_credit);
        let window = Window::new(initial, MIN_WINDOW.min(self.limits.largest_window()), now);
        let slot = self.schedule.add(flow, Behaviour::first_class(asked.class));
        let state = Flow::new(key, asked, slot, ours, credit, window, now);
        self.flows.insert(flow, Box::new(state));
        self.held += FLOW_COST;
        self.held_max = self.held_max.max(self.held());
        slot
    }

    fn climate(&self) -> Climate {
        let memory = match self.held() {
            held if held > self.budget => Memory::Short,
            held if held >= self.budget / 2 => {
                Memory::Filling(((self.budget - held) / FREE_PART) as u64)
            }
            _ => Memory::Ample,
        };
        let max = self.limits.largest_window();
        Climate {
            rtt: self.rtt,
            max,
            min: MIN_WINDOW.min(max),
            memory,
        }
    }

    /// Grants what the window allows beyond what the peer was told.
    fn grant(&mut self, flow: FlowId) {
        let Some(state) = self.flows.get_mut(&flow) else {
            return;
        };
        let delivered = state.incoming.delivered();
        if state.window.update(delivered) {
            self.queue_credit(flow);
        }
    }

    fn queue_credit(&mut self, flow: FlowId) {
        let Some(state) = self.flows.get_mut(&flow) else {
            return;
        };
        // After its end the far side sends nothing more, and after a reset it knows the flow no
        // longer.
        if !state.credit_due && state.ending.is_none() && !state.incoming.fin_known() {
            state.credit_due = true;
            self.queue_control(Control::Credit(flow));
        }
    }

    fn queue_pause(&mut self, flow: FlowId) {
        let Some(state) = self.flows.get_mut(&flow) else {
            return;
        };
        if !state.pause_due && state.ending.is_none() && !state.incoming.fin_known() {
            state.pause_due = true;
            self.queue_control(Control::Pause(flow));
        }
    }

    /// Tells the edge of data and of the end, and ends the flow if nothing is left of it.
    fn tell(&mut self, flow: FlowId) {
        let Some(state) = self.flows.get_mut(&flow) else {
            return;
        };
        if !state.accepted {
            return;
        }
        if state.incoming.deliverable_bytes() > 0 && !state.told_deliver {
            state.told_deliver = true;
            self.events.push_back(Event::Deliver { flow });
        }
        if state.incoming.finished() && !state.told_finish {
            state.told_finish = true;
            self.events.push_back(Event::Finish { flow });
        }
        if let Some(ending) = state.ending
            && state.incoming.delivered() >= ending.at
        {
            self.end_by_far_side(flow, ending.status);
        } else if state.told_finish && state.outgoing.fin() {
            self.remove(flow);
            self.counters.flows.closed += 1;
            self.events.push_back(Event::Closed { flow });
        }
    }

    /// Messages of flows that have ended meanwhile stay in the queue until it is packed, or until
    /// they are more than the others. A living flow has at most one of each kind, so the queue is
    /// bounded by the flows, the resets and the answers, which have their own bounds. What a walk
    /// leaves is at most three quarters of what the next one takes, so a message costs a few steps
    /// whatever the peer does.
    fn queue_control(&mut self, control: Control) {
        self.count_control(&control, true);
        self.control.push_back(control);
        let flows = self.flows.len() + self.packet_flows.len();
        if self.control.len() > 2 * (2 * flows + self.resets) + CONTROL_SLACK {
            self.counters.walked += self.control.len() as u64;
            let mut control = std::mem::take(&mut self.control);
            control.retain(|control| {
                let stays = match control {
                    Control::Accepted(flow)
                    | Control::Credit(flow)
                    | Control::Pause(flow)
                    | Control::End(flow) => {
                        self.flows.contains_key(flow) || self.packet_flows.contains(*flow)
                    }
                    Control::Reset { .. } | Control::Dictionary(_) | Control::Holds(..) => true,
                };
                if !stays {
                    self.count_control(control, false);
                }
                stays
            });
            control.shrink_to(2 * control.len());
            self.control = control;
        }
    }

    fn pop_control(&mut self) {
        let Some(control) = self.control.pop_front() else {
            return;
        };
        self.count_control(&control, false);
        if self.control.is_empty() && self.control.capacity() > QUEUE_ROOM {
            self.control = VecDeque::new();
        }
    }

    /// One of them comes into the queue, or leaves it.
    fn count_control(&mut self, control: &Control, comes: bool) {
        let add = |count: &mut usize, is: bool| match (is, comes) {
            (true, true) => *count += 1,
            (true, false) => *count -= 1,
            (false, _) => {}
        };
        add(&mut self.resets, matches!(control, Control::Reset { .. }));
        add(&mut self.answers, matches!(control, Control::Holds(..)));
        add(&mut self.urgent, control.is_urgent());
    }

    /// Tells the peer whether the dictionary of this generation is there. A sender asks for two at
    /// a time; who asks for many gets no answer.
    fn answer(&mut self, generation: u8, holds: bool) {
        if self.answers < MOST_ANSWERS {
            self.queue_control(Control::Holds(generation, holds));
        } else {
            self.counters.answers_dropped += 1;
        }
    }

    /// When what waits a moment for company must go.
    pub(crate) fn gathers_until(&self) -> Option<Instant> {
        self.packet_flows
            .gathers_until()
            .into_iter()
            .chain(self.unsaid_until)
            .min()
    }

    /// Lets it go when it is time.
    pub(crate) fn end_gathering(&mut self, now: Instant) {
        self.end_gathering_datagrams(now);
        if !self.unsaid.is_empty() && *self.unsaid_until.get_or_insert(now + UNSAID) <= now {
            self.say();
        }
    }

    /// The far side need not hear at once that the flow was accepted, has its second end, or is
    /// there at all before its first bytes are. At this time at the latest, or within [`UNSAID`].
    fn leave_unsaid(&mut self, flow: FlowId, until: Option<Instant>) {
        if self.unsaid.len() >= CONTROL_SLACK {
            // The link takes nothing: that queue knows which of them have ended meanwhile.
            self.say();
        }
        self.unsaid.push(flow);
        self.unsaid_until = self.unsaid_until.into_iter().chain(until).min();
    }

    /// What is unsaid is said with the next buffer.
    fn say(&mut self) {
        self.unsaid_until = None;
        self.counters.walked += self.unsaid.len() as u64;
        for flow in std::mem::take(&mut self.unsaid) {
            match self.flows.get(&flow) {
                Some(state) if state.end_due => self.queue_control(Control::End(flow)),
                Some(state) if state.must_open() && state.may_send() => {
                    self.schedule.wake(state.slot)
                }
                // Its first bytes have opened it, and what a flow has sent says that it was
                // accepted.
                Some(state) if state.ours || state.outgoing.next() > 0 || state.outgoing.fin() => {}
                Some(_) => self.queue_control(Control::Accepted(flow)),
                None if self.packet_flows.contains(flow) => {
                    self.queue_control(Control::Accepted(flow))
                }
                None => {}
            }
        }
    }

    fn forget_control(&mut self) {
        self.control = VecDeque::new();
        (self.unsaid, self.unsaid_until) = (Vec::new(), None);
        (self.resets, self.answers, self.urgent) = (0, 0, 0);
    }

    fn spend(&mut self, payload: Vec<u8>) {
        self.spent.push(payload);
    }

    /// Forgets a flow and all that it holds.
    fn remove(&mut self, flow: FlowId) -> Option<Box<Flow>> {
        let state = self.flows.remove(&flow)?;
        self.schedule.remove(state.slot);
        self.held -= FLOW_COST + state.incoming.held();
        // A flood leaves no memory behind.
        if self.flows.capacity() > QUEUE_ROOM.max(8 * self.flows.len()) {
            self.flows.shrink_to(2 * self.flows.len());
        }
        Some(state)
    }

    pub(crate) fn check_invariants(&self) {
        self.schedule.check_invariants();
        let mut held = 0;
        for (flow, state) in &self.flows {
            state.check_invariants();
            held += FLOW_COST + state.incoming.held();
            assert_eq!(
                self.schedule.flow_of(state.slot),
                *flow,
                "a slot is its flow's"
            );
            assert_eq!(state.ours, self.giver.is_ours(*flow));
            if self.schedule.is_ready(state.slot) {
                assert!(state.may_send(), "{flow} is scheduled but may not send");
            }
            assert!(
                !(state.told_finish && state.outgoing.fin()),
                "{flow} has ended and is still here"
            );
        }
        self.packet_flows.check_invariants();
        assert!(self.packet_flows.len() <= self.limits.packet_flows);
        assert_eq!(held, self.held, "the sum of what flows hold");
        self.holders.check_invariants(&self.flows);
        assert!(self.flows.len() <= self.limits.flows);
        let count = |which: fn(&Control) -> bool| {
            self.control.iter().filter(|control| which(control)).count()
        };
        let resets = count(|control| matches!(control, Control::Reset { .. }));
        assert_eq!(resets, self.resets);
        assert_eq!(
            count(|control| matches!(control, Control::Holds(..))),
            self.answers
        );
        assert_eq!(count(Control::is_urgent), self.urgent);
        assert!(self.answers <= MOST_ANSWERS);
        assert!(resets <= self.limits.flows + MAX_REFUSALS);
        let flows = self.limits.flows + self.limits.packet_flows;
        assert!(self.control.len() <= 2 * (2 * flows + resets) + CONTROL_SLACK);
        assert!(self.unsaid.len() <= CONTROL_SLACK);
    }
}

/// What all flows may hold before the one that holds most is reset: a quarter above the budget, so
/// that refusing new flows and shrinking credits have time to work.
fn hard_limit(budget: usize) -> usize {
    budget + budget / 4
}
