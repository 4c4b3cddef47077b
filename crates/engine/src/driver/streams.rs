//! The streams of a peer: opening, reading, delivering, ending.
//!
//! Takes what the edges and the driver say of a stream and what its far side sends, and routes
//! between the stream, the schedule, the control queue and the events. What is shared with the
//! flows of packets comes as [`Shared`].
//!
//! How streams end other than in order: by a reset of either side, for shortage of memory, or with
//! the peer.

use std::{io::IoSlice, time::Instant};

use super::{
    buffer::{BufferWriter, Origin},
    control::Control,
    largest::LargestStreams,
    lingering::{Lingering, LingeringStreams},
    numbers::Known,
    piece::{Piece, ask, data_header, take_piece},
    shared::Shared,
    stream_control::{grant, queue_credit, queue_pause, queue_reset},
};
use crate::{
    Compress, Event, FlowId, FlowInfo, Read, Source, Status, StreamKey, Treatment,
    compress::compressor::Compressor,
    config::{FLOW_COST, MIN_PIECE, MIN_WINDOW, QUEUE_ROOM},
    error::Breach,
    flow::{
        behaviour::Behaviour,
        incoming::Chunk,
        stream::{Ending, Opening, Stream},
        window::{Due, Sizing, Taken, Window},
    },
    hash::NumberMap,
    message::{Form, Function, Header, SHORT, full_length},
    schedule::{Slot, Turn},
};

/// All streams of a peer.
#[derive(Debug)]
pub(crate) struct Streams {
    /// Boxed, so that growth moves pointers only.
    table: NumberMap<Box<Stream>>,
    largest: LargestStreams,
    lingering: LingeringStreams,
}

impl Streams {
    pub(crate) fn new() -> Streams {
        Streams {
            table: NumberMap::default(),
            largest: LargestStreams::new(),
            lingering: LingeringStreams::default(),
        }
    }

    pub(crate) fn len(&self) -> usize {
        self.table.len()
    }

    pub(crate) fn contains(&self, flow: FlowId) -> bool {
        self.table.contains_key(&flow)
    }

    pub(crate) fn get_mut(&mut self, flow: FlowId) -> Option<&mut Stream> {
        self.table.get_mut(&flow).map(Box::as_mut)
    }

    #[cfg(test)]
    pub(crate) fn table(&mut self) -> &mut NumberMap<Box<Stream>> {
        &mut self.table
    }

    /// The streams as shown to people, in no order.
    pub(crate) fn infos(&self) -> impl Iterator<Item = FlowInfo> {
        self.table.iter().map(|(flow, stream)| stream.info(*flow))
    }

    /// When `end_lingering` has something to look at.
    pub(crate) fn lingers_until(&self) -> Option<Instant> {
        self.lingering.until()
    }

    /// Bytes of queues beyond those that each peer has.
    pub(crate) fn held_by_queues(&self) -> usize {
        self.lingering.held()
    }

    // --- the near edge
    // ---------------------------------------------------------------------------------------------

    /// The near side opens a stream under a number that is free.
    pub(crate) fn open(
        &mut self,
        flow: FlowId,
        key: StreamKey,
        asked: Treatment,
        peer_credit: u32,
        shared: &mut Shared,
        now: Instant,
    ) {
        shared.counters.flows.opened_here += 1;
        let slot = add_to_schedule(flow, asked, shared);
        let opening = Opening::Here {
            packed: false,
            answered: false,
        };
        let window = new_window(shared, now);
        let stream = Stream::new(key, asked, slot, opening, peer_credit, window, now);
        self.insert(flow, stream, shared);
        // Even with nothing to read yet: the far side shall connect, perhaps the server speaks
        // first.
        shared.schedule.wake(slot);
    }

    fn insert(&mut self, flow: FlowId, stream: Stream, shared: &mut Shared) {
        self.table.insert(flow, Box::new(stream));
        shared.memory.streams += FLOW_COST;
        shared.memory.on_grown();
    }

    /// The destination of a stream of the far side is connected.
    pub(crate) fn accept(&mut self, flow: FlowId, shared: &mut Shared) {
        let Some(stream) = self.get_mut(flow) else {
            return;
        };
        let Opening::There { accepted: false } = stream.opening else {
            return;
        };
        stream.opening = Opening::There { accepted: true };
        shared.control.notice(flow, None);
        if stream.may_send() {
            shared.schedule.wake(stream.slot);
        }
        grant(flow, stream, shared);
        self.notify(flow, shared);
    }

    /// The near application has bytes to read, or has ended.
    pub(crate) fn readable(&mut self, flow: FlowId, shared: &mut Shared, now: Instant) {
        let Some(stream) = self.get_mut(flow) else {
            return;
        };
        if stream.may_send() && stream.outgoing.credit_left() > 0 {
            if stream.reclassify(0, shared.path.sparse, now) {
                shared.schedule.set_class(stream.slot, stream.class);
            }
            shared.schedule.wake(stream.slot);
        }
    }

    /// Bytes in order that wait for the near application.
    pub(crate) fn deliverable<'a>(&'a self, flow: FlowId, slices: &mut Vec<IoSlice<'a>>) {
        if let Some(stream) = self.table.get(&flow).filter(|stream| stream.is_accepted()) {
            stream.incoming.deliverable(slices);
        }
    }

    /// The near application took `n` of them.
    pub(crate) fn delivered(&mut self, flow: FlowId, n: usize, shared: &mut Shared, now: Instant) {
        let sizing = sizing(shared);
        let Some(stream) = self.get_mut(flow) else {
            return;
        };
        let before = stream.incoming.held();
        stream.incoming.take(n, &mut shared.spent);
        stream.moved = now;
        shared.memory.streams -= before - stream.incoming.held();
        shared.counters.traffic.bytes_delivered += n as u64;
        let taken = Taken {
            bytes: n,
            delivered: stream.incoming.delivered(),
            waiting: stream.incoming.deliverable_bytes() as u64,
        };
        let due = stream.window.handle_delivered(taken, &sizing, now);
        stream.notified.deliver &= taken.waiting > 0;
        match due {
            Due::Nothing => {}
            Due::Credit => queue_credit(flow, stream, shared),
            Due::Pause => queue_pause(flow, stream, shared),
        }
        self.notify(flow, shared);
    }

    /// Tells the edge of data and of the end, and ends the stream if nothing is left of it.
    fn notify(&mut self, flow: FlowId, shared: &mut Shared) {
        let Some(stream) = self
            .table
            .get_mut(&flow)
            .filter(|stream| stream.is_accepted())
        else {
            return;
        };
        if stream.incoming.deliverable_bytes() > 0 && !stream.notified.deliver {
            stream.notified.deliver = true;
            shared.events.push(Event::Deliver { flow });
        }
        if stream.incoming.finished() && !stream.notified.finish {
            stream.notified.finish = true;
            shared.events.push(Event::Finish { flow });
        }
        if let Some(ending) = stream.ending
            && stream.incoming.delivered() >= ending.at
        {
            self.end_by_far_side(flow, ending.status, shared);
        } else if stream.notified.finish && stream.outgoing.fin() {
            self.remove(flow, shared);
            shared.counters.flows.closed += 1;
            shared.events.push(Event::Closed { flow });
        }
    }

    // --- out
    // ---------------------------------------------------------------------------------------------

    /// Packs a message of the stream whose turn it is, if it has one. Returns whether there may be
    /// room for another.
    pub(crate) fn pack(
        &mut self,
        turn: Turn,
        source: &mut dyn Source,
        writer: &mut BufferWriter<'_>,
        compressor: &Compressor,
        shared: &mut Shared,
        now: Instant,
    ) -> bool {
        let Some(stream) = self.table.get_mut(&turn.flow) else {
            return true;
        };
        let header_length = if stream.is_answered() {
            SHORT
        } else {
            full_length(&stream.key)
        };
        let urgent = stream.class.is_urgent();
        let how = compressor
            .settings()
            .of_flow(&stream.asked, stream.is_ours());
        let record = stream
            .record
            .as_ref()
            .filter(|_| how.compress != Compress::Off);
        let stretch = record.and_then(|record| compressor.stretch(record, urgent));
        let end = writer.end_for(turn.flow, urgent, stretch);
        let place = writer.used() + header_length;
        if !writer.is_empty() && place + MIN_PIECE > end {
            return false;
        }
        let credit = stream.outgoing.credit_left();
        let ask = ask(turn.allowance, place, end, writer.segment(), credit);
        let read = if ask == 0 {
            Read::Blocked
        } else {
            source.read(turn.flow, writer.place(place, place + ask))
        };
        if let Read::Failed(status) = read {
            shared.counters.flows.reset_here += 1;
            self.reset_and_notify(turn.flow, status, shared);
            return true;
        }
        // Beside something else it goes at once; and what waits has a bound.
        let may_wait = writer.messages() == 0 && shared.control.has_room_for_notices();
        let Some(piece) = take_piece(stream, turn, read, ask, may_wait, shared, now) else {
            return true;
        };
        let header = data_header(turn.flow, stream, piece);
        let origin = Origin {
            flow: turn.flow,
            // Nobody waits for the second end.
            urgent: urgent && !(piece.fin && stream.incoming.fin_known()),
            class: stream.class,
            apart: how.keeps_apart(),
        };
        writer.add(&header, origin);
        self.on_packed(turn, &header, shared, now);
        true
    }

    /// A message of the stream was added to a buffer.
    fn on_packed(&mut self, turn: Turn, header: &Header, shared: &mut Shared, now: Instant) {
        let Some(stream) = self.table.get_mut(&turn.flow) else {
            return;
        };
        let length = header.length as usize;
        stream.on_packed();
        stream.moved = now;
        stream.outgoing.on_sent(length);
        shared.counters.traffic.bytes_out += length as u64;
        shared
            .schedule
            .on_served(turn.slot, header.header_length() + length);
        if stream.reclassify(length, shared.path.sparse, now) {
            shared.schedule.set_class(turn.slot, stream.class);
        }
        if header.fin {
            stream.outgoing.on_end();
            shared.schedule.stop(turn.slot);
            self.notify(turn.flow, shared);
        } else if stream.outgoing.credit_left() == 0 {
            shared.schedule.stop(turn.slot);
        } else if length == 0 {
            stream.on_idle(now);
            shared.schedule.sleep(turn.slot);
        }
    }

    /// The sequence number of a queued credit message at the moment at which it is packed. None if
    /// the stream has ended meanwhile.
    pub(crate) fn credit_to_pack(&mut self, flow: FlowId) -> Option<u32> {
        let stream = self.get_mut(flow)?;
        stream.queued.credit = false;
        Some(stream.window.granted() as u32)
    }

    /// The same of a pause. None also if the pause is over.
    pub(crate) fn pause_to_pack(&mut self, flow: FlowId) -> Option<u32> {
        let stream = self.get_mut(flow)?;
        stream.queued.pause = false;
        let paused = stream.window.is_paused();
        paused.then(|| stream.window.granted() as u32)
    }

    /// The header of a second end at the moment at which it is packed, which ends the stream. None
    /// if the stream has ended meanwhile.
    pub(crate) fn end_to_pack(&mut self, flow: FlowId, shared: &mut Shared) -> Option<Header> {
        let stream = self
            .table
            .get_mut(&flow)
            .filter(|stream| !stream.outgoing.fin() && stream.ending.is_none())?;
        let end = Piece {
            length: 0,
            fin: true,
        };
        let header = data_header(flow, stream, end);
        stream.outgoing.on_end();
        self.notify(flow, shared);
        Some(header)
    }

    /// The far side shall hear of the stream now, after it could wait for company. False: there is
    /// no such stream.
    pub(crate) fn say_notice(&mut self, flow: FlowId, shared: &mut Shared) -> bool {
        let Some(stream) = self.table.get(&flow) else {
            return false;
        };
        if stream.queued.end {
            shared.control.push(Control::End(flow));
        } else if stream.must_open() && stream.may_send() {
            shared.schedule.wake(stream.slot);
        } else if !stream.is_ours() && stream.outgoing.next() == 0 && !stream.outgoing.fin() {
            // What a stream has sent says that it was accepted; and the first bytes of one of ours
            // have opened it.
            shared.control.push(Control::Accepted(flow));
        }
        true
    }

    // --- in
    // ---------------------------------------------------------------------------------------------

    /// A message of the far side. `data` makes a chunk of its bytes.
    pub(crate) fn on_message(
        &mut self,
        header: &Header,
        data: impl FnOnce() -> Chunk,
        shared: &mut Shared,
        now: Instant,
    ) {
        let flow = header.flow;
        if !self.contains(flow) && !self.open_by_message(header, shared, now) {
            return;
        }
        if header.function == Function::Reset {
            self.on_reset_message(header, shared, now);
            return;
        }
        self.on_answer(flow, shared);
        match header.function {
            Function::Data => self.on_data(header, data(), shared, now),
            Function::Credit => self.on_credit(flow, header.sequence, shared),
            Function::Pause => self.on_pause(flow, header.sequence, shared),
            Function::Accepted
            | Function::Reset
            | Function::Dictionary
            | Function::Holds
            | Function::Packet(_) => {}
        }
    }

    /// A message of a stream that is not here. Returns whether the message has opened it.
    fn open_by_message(&mut self, header: &Header, shared: &mut Shared, now: Instant) -> bool {
        let theirs = !shared.numbers.is_ours(header.flow);
        match (header.function, header.form) {
            (Function::Data, Form::Stream(key, asked)) if theirs => {
                self.open_from_far_side(header.flow, key, asked, shared, now)
            }
            (Function::Reset, _) if theirs => {
                // It may have overtaken the messages that open the stream: they must not do so any
                // more.
                shared.numbers.note(header.flow);
                shared.counters.late += 1;
                false
            }
            _ => {
                shared.counters.late += 1;
                false
            }
        }
    }

    fn open_from_far_side(
        &mut self,
        flow: FlowId,
        key: StreamKey,
        asked: Treatment,
        shared: &mut Shared,
        now: Instant,
    ) -> bool {
        match shared.numbers.note(flow) {
            Known::New => {}
            Known::Used => {
                shared.counters.late += 1;
                return false;
            }
            Known::TooOld => {
                // Either it is late, and the reset will find no stream; or it was overtaken by all
                // the others, and must end.
                shared.refuse(flow, key.protocol, Status::NoResources);
                return false;
            }
        }
        let has_room = self.table.len() < shared.limits.flows && !shared.memory.is_short();
        let Some(credit) = shared.peer_credit.filter(|_| has_room) else {
            shared.refuse(flow, key.protocol, Status::NoResources);
            return false;
        };
        shared.counters.flows.opened_there += 1;
        let slot = add_to_schedule(flow, asked, shared);
        let opening = Opening::There { accepted: false };
        let window = new_window(shared, now);
        let stream = Stream::new(key, asked, slot, opening, credit, window, now);
        self.insert(flow, stream, shared);
        shared.events.push(Event::Open { flow, key, asked });
        true
    }

    fn on_reset_message(&mut self, header: &Header, shared: &mut Shared, now: Instant) {
        let Some(stream) = self.table.get(&header.flow) else {
            return;
        };
        let Form::Status(_, status) = header.form else {
            return;
        };
        match stream.incoming.offset_of(header.sequence) {
            Some(at) => self.on_reset(header.flow, Ending { at, status }, shared, now),
            None => self.on_breach(header.flow, Breach::BeyondEnd, shared),
        }
    }

    /// Any message of the far side but a reset says that it knows the stream and has connected.
    fn on_answer(&mut self, flow: FlowId, shared: &mut Shared) {
        let Some(stream) = self.table.get_mut(&flow) else {
            return;
        };
        if let Opening::Here { answered, .. } = &mut stream.opening
            && !*answered
        {
            *answered = true;
            shared.events.push(Event::Accepted { flow });
            grant(flow, stream, shared);
        }
    }

    fn on_data(&mut self, header: &Header, chunk: Chunk, shared: &mut Shared, now: Instant) {
        let flow = header.flow;
        let Some(stream) = self.table.get_mut(&flow) else {
            return;
        };
        if matches!(header.form, Form::Stream(key, _) if key != stream.key || stream.is_ours()) {
            self.on_breach(flow, Breach::OtherKey, shared);
            return;
        }
        let before = stream.incoming.held();
        let length = u64::from(header.length);
        let is_within = |offset: u64| {
            stream
                .ending
                .is_none_or(|ending| offset + length <= ending.at)
        };
        let taken = match stream.incoming.offset_of(header.sequence) {
            Some(offset) if is_within(offset) => {
                let granted = stream.window.granted();
                stream.incoming.insert(offset, chunk, header.fin, granted)
            }
            Some(_) => Err(Breach::BeyondEnd),
            None => Err(Breach::Overlap),
        };
        // Less than before is possible: early small pieces that are in order now are copied
        // together.
        shared.memory.streams = shared.memory.streams + stream.incoming.held() - before;
        self.largest
            .on_held(flow, stream.incoming.held(), &mut stream.listed);
        stream.moved = now;
        if let Err(breach) = taken {
            self.on_breach(flow, breach, shared);
            return;
        }
        shared.counters.traffic.bytes_in += length;
        let waiting = stream.incoming.deliverable_bytes() as u64;
        if stream.is_accepted() && stream.window.handle_arrived(waiting, shared.path.rtt, now) {
            queue_pause(flow, stream, shared);
        }
        if stream.incoming.held() > shared.limits.flow_bytes {
            self.reset_for_memory(flow, shared);
        }
        self.keep_inside_memory(shared);
        self.notify(flow, shared);
    }

    fn on_pause(&mut self, flow: FlowId, sequence: u32, shared: &mut Shared) {
        let Some(stream) = self.table.get_mut(&flow) else {
            return;
        };
        stream.outgoing.handle_pause(sequence);
        if stream.outgoing.credit_left() == 0 {
            shared.schedule.stop(stream.slot);
        }
    }

    fn on_credit(&mut self, flow: FlowId, sequence: u32, shared: &mut Shared) {
        let Some(stream) = self.table.get_mut(&flow) else {
            return;
        };
        if stream.outgoing.handle_credit(sequence) && stream.may_send() {
            shared.schedule.resume(stream.slot);
        }
    }

    // --- ends
    // ---------------------------------------------------------------------------------------------

    /// The near side ends a stream in both directions. It is forgotten at once; the far side is
    /// told. False: there is no such stream.
    pub(crate) fn reset(&mut self, flow: FlowId, status: Status, shared: &mut Shared) -> bool {
        let Some(stream) = self.remove(flow, shared) else {
            return false;
        };
        shared.counters.flows.reset_here += 1;
        queue_reset(flow, &stream, status, shared);
        true
    }

    /// As `reset`, and the edge is told too: it was not the edge's wish, or not the right moment to
    /// forget the stream.
    fn reset_and_notify(&mut self, flow: FlowId, status: Status, shared: &mut Shared) {
        let Some(stream) = self.remove(flow, shared) else {
            return;
        };
        queue_reset(flow, &stream, status, shared);
        shared.events.push(Event::Reset { flow, status });
    }

    /// The far side broke a stream's rules.
    fn on_breach(&mut self, flow: FlowId, breach: Breach, shared: &mut Shared) {
        shared.counters.breaches.count(breach);
        self.reset_and_notify(flow, Status::Protocol, shared);
    }

    /// The far side has reset a stream. What was sent before is still delivered if the reset is an
    /// orderly one.
    fn on_reset(&mut self, flow: FlowId, ending: Ending, shared: &mut Shared, now: Instant) {
        let Some(stream) = self.table.get_mut(&flow) else {
            return;
        };
        let Ending { at, status } = ending;
        let delivered = stream.incoming.delivered();
        if !status.is_orderly() || delivered >= at {
            self.end_by_far_side(flow, status, shared);
            return;
        }
        let fits = at <= stream.window.granted() && stream.incoming.may_end_at(at);
        if stream.ending.is_some() || !fits {
            self.on_breach(flow, Breach::BeyondEnd, shared);
            return;
        }
        stream.ending = Some(ending);
        shared.schedule.stop(stream.slot);
        self.lingering.push(flow, delivered, now);
        let table = &self.table;
        shared.counters.walked += self
            .lingering
            .trim(table.len(), |flow| table.contains_key(&flow));
    }

    fn end_by_far_side(&mut self, flow: FlowId, status: Status, shared: &mut Shared) {
        if let Some(stream) = self.remove(flow, shared) {
            shared.counters.flows.reset_there += 1;
            shared.counters.flows.refused_there +=
                u64::from(stream.is_ours() && status == Status::NoResources);
            shared.events.push(Event::Reset { flow, status });
        }
    }

    /// Ends the streams that were reset by the far side and whose application has taken nothing for
    /// a while.
    pub(crate) fn end_lingering(&mut self, shared: &mut Shared, now: Instant) {
        while let Some(Lingering {
            flow, delivered, ..
        }) = self.lingering.poll(now)
        {
            let Some(stream) = self.table.get(&flow) else {
                continue;
            };
            let Some(ending) = stream.ending else {
                continue;
            };
            let now_delivered = stream.incoming.delivered();
            if now_delivered > delivered {
                self.lingering.push(flow, now_delivered, now);
            } else {
                self.end_by_far_side(flow, ending.status, shared);
            }
        }
    }

    /// Keeps all streams inside the memory that they may use.
    pub(crate) fn keep_inside_memory(&mut self, shared: &mut Shared) {
        while shared.memory.is_exceeded() {
            let walked = &mut shared.counters.walked;
            let Some(flow) = self.largest.find(&mut self.table, walked) else {
                break;
            };
            self.reset_for_memory(flow, shared);
        }
        self.largest.clean(&self.table, &mut shared.counters.walked);
        shared.memory.on_grown();
    }

    fn reset_for_memory(&mut self, flow: FlowId, shared: &mut Shared) {
        shared.counters.flows.out_of_memory += 1;
        self.reset_and_notify(flow, Status::NoResources, shared);
    }

    /// All streams end with the peer: nobody there needs to be told.
    pub(crate) fn lose_all(&mut self, status: Status, shared: &mut Shared) {
        let mut flows: Vec<FlowId> = self.table.keys().copied().collect();
        flows.sort_unstable();
        for flow in flows {
            self.remove(flow, shared);
            shared.counters.flows.lost += 1;
            shared.events.push(Event::Reset { flow, status });
        }
        self.lingering.forget();
    }

    /// Forgets a stream and all that it holds.
    fn remove(&mut self, flow: FlowId, shared: &mut Shared) -> Option<Box<Stream>> {
        let stream = self.table.remove(&flow)?;
        shared.schedule.remove(stream.slot);
        shared.memory.streams -= FLOW_COST + stream.incoming.held();
        // A flood leaves no memory behind.
        if self.table.capacity() > QUEUE_ROOM.max(8 * self.table.len()) {
            self.table.shrink_to(2 * self.table.len());
        }
        Some(stream)
    }

    pub(crate) fn check_invariants(&self, shared: &Shared) {
        let mut held = 0;
        for (flow, stream) in &self.table {
            stream.check_invariants();
            held += FLOW_COST + stream.incoming.held();
            assert_eq!(
                shared.schedule.flow_of(stream.slot),
                *flow,
                "a slot is its flow's"
            );
            assert_eq!(stream.is_ours(), shared.numbers.is_ours(*flow));
            if shared.schedule.is_ready(stream.slot) {
                assert!(stream.may_send(), "{flow} is scheduled but may not send");
            }
            assert!(
                !(stream.notified.finish && stream.outgoing.fin()),
                "{flow} has ended and is still here"
            );
        }
        assert_eq!(held, shared.memory.streams, "the sum of what streams hold");
        self.largest.check_invariants(&self.table);
        assert!(self.table.len() <= shared.limits.flows);
    }
}

fn add_to_schedule(flow: FlowId, asked: Treatment, shared: &mut Shared) -> Slot {
    let class = Behaviour::first_class(asked.class);
    shared.schedule.add(flow, class)
}

fn new_window(shared: &Shared, now: Instant) -> Window {
    let initial = u64::from(shared.limits.initial_credit);
    let size = MIN_WINDOW.min(shared.limits.largest_window());
    Window::new(initial, size, now)
}

/// What windows are sized by at the moment.
fn sizing(shared: &Shared) -> Sizing {
    let max = shared.limits.largest_window();
    Sizing {
        rtt: shared.path.rtt,
        max,
        min: MIN_WINDOW.min(max),
        memory: shared.memory.in_use(),
    }
}
