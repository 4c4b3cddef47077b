//! The packet driver of one peer: joins its streams, its flows of packets, compression and the
//! control queue, and only routes between them.
//!
//! On the way out it packs a buffer when the mover may send: control messages first, then data in
//! the order of the [`schedule`](crate::schedule), read from the edges straight into the buffer.
//! Nothing waits for a buffer to become full: what is there when the mover may send goes. On the
//! way in it takes a payload apart, each message to its flow. Payloads come in any order, each
//! exactly once. A message of a flow that has ended is late and dropped; a stream whose far side
//! breaks the rules is reset, and a message that breaks those of a flow of packets is dropped. A
//! payload that cannot be read is dropped as a whole; one that cannot be decompressed ends the
//! session. Each is counted by kind.
//!
//! It knows nothing of the mover, so that two drivers can be tested against each other with nothing
//! between them.

use std::{io::IoSlice, sync::Arc, time::Duration, time::Instant};

pub(crate) mod buffer;
mod control;
mod events;
mod largest;
mod lingering;
mod memory;
mod numbers;
pub(crate) mod packets;
mod path;
mod piece;
mod shared;
mod stream_control;
mod streams;

#[cfg(test)]
mod tests;

use crate::{
    Arrived, Class, Compression, CompressionStats, Counters, Event, FlowId, FlowInfo, Limits,
    OpenError, PacketKey, SendError, Source, Status, StreamKey, Treatment, Usage, Work, Worked,
    compress::{
        codec::{Codec, Owner},
        format::{COMPRESSED, Proposal},
    },
    config::{ARRIVED_BYTES, LOOK_AFTER, MOST_QUANTUM, QUANTUM, TURN_TIME},
    error::Breach,
    flow::{blocks::PacketParts, incoming::Chunk, treatment::PacketTreatment},
    message::{self, Form, Function, Header},
};
use buffer::{BufferWriter, Packed, Room};
use control::{Control, Reset};
use packets::{InPayload, PacketFlows};
use shared::Shared;
use streams::Streams;

/// The packet driver of one peer.
#[derive(Debug)]
pub(crate) struct Driver {
    shared: Shared,
    streams: Streams,
    packets: PacketFlows,
    codec: Codec,
    /// When flows that may be over, and the like, were looked at last.
    looked_after: Option<Instant>,
    /// The peer sent something that cannot be: its session is of no use any more.
    broken: bool,
}

impl Driver {
    /// `higher`: our public key is the higher one of the two; `seed`: see [`PacketFlows::new`].
    pub(crate) fn new(limits: Limits, higher: bool, seed: &[u8; 32]) -> Driver {
        let limits = Limits {
            initial_credit: limits.announced_credit(),
            ..limits
        };
        Driver {
            shared: Shared::new(limits, higher),
            streams: Streams::new(),
            packets: PacketFlows::new(seed),
            codec: Codec::new(),
            looked_after: None,
            broken: false,
        }
    }

    // --- the peer
    // ---------------------------------------------------------------------------------------------

    /// A session stands. If the peer is another instance than before, nothing of before lives.
    pub(crate) fn on_connected(&mut self, fresh: bool, peer_credit: u32) {
        if fresh {
            self.on_restarted();
            self.codec.on_fresh();
        }
        self.shared.peer_credit = Some(peer_credit);
        self.shared.events.push(Event::Connected { fresh });
    }

    /// Nothing is heard of the peer, or something again.
    pub(crate) fn on_silence(&mut self, silent: bool, now: Instant) {
        self.codec.on_silence(silent, now);
        let event = if silent { Event::Silent } else { Event::Heard };
        self.shared.events.push(event);
    }

    /// The peer is another instance now: nothing of the flows is known there, nobody needs to be
    /// told.
    pub(crate) fn on_restarted(&mut self) {
        self.lose_all(Status::PeerRestarted);
        self.shared.numbers.forget_opened();
    }

    /// The peer was given up. Whoever answers next counts as a new instance, to which nothing of
    /// before means anything.
    pub(crate) fn on_dead(&mut self, status: Status) {
        self.lose_all(status);
        self.shared.events.push(Event::Dead);
    }

    /// We go away: the mover's goodbye tells the peer that all flows have ended.
    pub(crate) fn close(&mut self) {
        self.lose_all(Status::GoingAway);
    }

    fn lose_all(&mut self, status: Status) {
        self.shared.peer_credit = None;
        self.streams.lose_all(status, &mut self.shared);
        self.packets.lose_all(status, &mut self.shared);
        self.shared.control.forget();
        self.codec.forget();
    }

    /// Whether the peer has sent something that cannot be; said once.
    pub(crate) fn take_broken(&mut self) -> bool {
        std::mem::take(&mut self.broken)
    }

    pub(crate) fn set_rtt(&mut self, rtt: Option<Duration>) {
        self.shared.path.set_rtt(rtt);
    }

    /// `rate`: what the link takes, bytes per second; `segment`: what one datagram takes, bytes;
    /// `urgent`: what one takes whose parity must fit into another.
    pub(crate) fn set_link(&mut self, rate: u64, segment: usize, urgent: usize) {
        let path = &mut self.shared.path;
        path.set_link(rate, urgent);
        let turn = path.bytes_within(TURN_TIME).min(MOST_QUANTUM as u128) as usize;
        // Never smaller than one segment, whatever the path's MTU.
        let quantum = turn.max(QUANTUM).max(segment);
        self.shared.schedule.set_quantum(quantum);
    }

    // --- out
    // ---------------------------------------------------------------------------------------------

    /// Whether packing might yield something.
    pub(crate) fn has_work(&self) -> bool {
        !self.shared.control.is_empty() || self.shared.schedule.listed() > 0
    }

    /// Whether packing would begin with something that somebody waits for.
    pub(crate) fn has_urgent_work(&self) -> bool {
        self.shared.control.is_urgent() || self.shared.schedule.has_urgent()
    }

    /// When what waits a moment for company must go.
    pub(crate) fn gathers_until(&self) -> Option<Instant> {
        let notices = self.shared.control.notices_until();
        self.packets
            .gathers_until()
            .into_iter()
            .chain(notices)
            .min()
    }

    /// Lets it go when it is time.
    pub(crate) fn end_gathering(&mut self, now: Instant) {
        self.packets.end_gathering(&mut self.shared, now);
        if let Some(notices) = self.shared.control.poll_notices(now) {
            self.say(notices);
        }
        self.trim_control();
    }

    /// Notices are said with the next buffer.
    fn say(&mut self, notices: Vec<FlowId>) {
        self.shared.counters.walked += notices.len() as u64;
        for flow in notices {
            if !self.streams.say_notice(flow, &mut self.shared) && self.packets.contains(flow) {
                self.shared.control.push(Control::Accepted(flow));
            }
        }
    }

    /// Keeps the control queue inside its bounds.
    fn trim_control(&mut self) {
        let overflow = self.shared.control.take_overflow();
        self.say(overflow);
        let (streams, packets) = (&self.streams, &self.packets);
        let flows = streams.len() + packets.len();
        let lives = |flow| streams.contains(flow) || packets.contains(flow);
        self.shared.counters.walked += self.shared.control.trim(flows, lives);
    }

    /// Fills `buffer`, whose length and content are arbitrary before. None if nobody had anything
    /// to send after all.
    pub(crate) fn pack(
        &mut self,
        source: &mut dyn Source,
        buffer: &mut Vec<u8>,
        room: Room,
        now: Instant,
    ) -> Option<Packed> {
        let mut writer = BufferWriter::new(buffer, room);
        // A proposal needs a buffer to ride in.
        if self.shared.schedule.listed() > 0
            && let Some(proposal) = self.codec.propose(self.shared.path.rate, now)
        {
            self.shared.control.push(Control::Dictionary(proposal));
        }
        self.pack_control(&mut writer);
        while let Some(turn) = self.shared.schedule.next() {
            let (codec, shared) = (&self.codec, &mut self.shared);
            let has_room = if self.streams.contains(turn.flow) {
                let compressor = codec.compressor();
                self.streams
                    .pack(turn, source, &mut writer, compressor, shared, now)
            } else {
                let settings = codec.settings();
                self.packets.pack(turn, &mut writer, settings, shared, now)
            };
            if !has_room {
                break;
            }
        }
        if writer.messages() > 0 && self.shared.control.has_notices() {
            let notices = self.shared.control.take_notices();
            self.say(notices);
            self.pack_control(&mut writer);
        }
        self.trim_control();
        let traffic = &mut self.shared.counters.traffic;
        traffic.messages_out += u64::from(writer.messages());
        let packed = writer.finish();
        traffic.buffers_out += u64::from(packed.is_some());
        packed
    }

    fn pack_control(&mut self, writer: &mut BufferWriter<'_>) {
        while writer.has_room_for_control()
            && let Some(control) = self.shared.control.pop()
        {
            if let Some(header) = self.control_header(control) {
                writer.add_control(&header, control.is_urgent());
            }
        }
    }

    /// None if the flow has ended since the message was queued.
    fn control_header(&mut self, control: Control) -> Option<Header> {
        match control {
            Control::Accepted(flow) => {
                let lives = self.streams.contains(flow) || self.packets.contains(flow);
                lives.then(|| short_header(Function::Accepted, flow, 0))
            }
            Control::Credit(flow) => {
                let granted = self.streams.credit_to_pack(flow)?;
                Some(short_header(Function::Credit, flow, granted))
            }
            Control::Pause(flow) => {
                let granted = self.streams.pause_to_pack(flow)?;
                Some(short_header(Function::Pause, flow, granted))
            }
            Control::End(flow) => self.streams.end_to_pack(flow, &mut self.shared),
            Control::Reset(Reset {
                flow,
                sequence,
                protocol,
                status,
            }) => Some(Header {
                form: Form::Status(protocol, status),
                ..short_header(Function::Reset, flow, sequence)
            }),
            Control::Dictionary(Proposal {
                generation,
                first,
                last,
            }) => Some(Header {
                form: Form::Status(generation, Status::None),
                ..short_header(Function::Dictionary, FlowId(first), last)
            }),
            Control::Holds(generation, holds) => {
                let status = if holds {
                    Status::None
                } else {
                    Status::NoResources
                };
                Some(Header {
                    form: Form::Status(generation, status),
                    ..short_header(Function::Holds, FlowId(0), 0)
                })
            }
        }
    }

    /// Compresses a packed buffer, if that pays.
    pub(crate) fn compress(&mut self, buffer: &mut Vec<u8>, packed: Packed, now: Instant) {
        let (class, rate) = (packed.class, self.shared.path.rate);
        // The flow may have ended with what was read for it last.
        let owner = packed.flow.and_then(|flow| {
            let stream = self.streams.get_mut(flow).map(|stream| Owner {
                ours: stream.is_ours(),
                asked: &stream.asked,
                record: &mut stream.record,
            });
            stream.or_else(|| {
                self.packets.get_mut(flow).map(|state| Owner {
                    ours: state.ours,
                    asked: &state.treatment.asked,
                    record: &mut state.record,
                })
            })
        });
        match owner {
            Some(owner) => self.codec.compress(buffer, class, owner, rate, now),
            None => self
                .codec
                .compress_together(buffer, class, packed.apart, rate, now),
        }
    }

    // --- in
    // ---------------------------------------------------------------------------------------------

    /// Takes a payload of the peer.
    pub(crate) fn unpack(&mut self, mut payload: Vec<u8>, now: Instant) {
        if payload.first() == Some(&COMPRESSED) {
            match self.codec.decompress(&payload, now) {
                Ok(raw) => self.shared.spent.push(std::mem::replace(&mut payload, raw)),
                Err(error) => {
                    // What it held is lost for its flows, and they would wait for it for ever.
                    self.shared.counters.malformed.count(error);
                    self.broken = true;
                    self.shared.spent.push(payload);
                    return;
                }
            }
        }
        let messages = match message::parse_payload(&payload) {
            Ok(messages) => messages,
            Err(error) => {
                self.shared.counters.malformed.count(error);
                self.shared.spent.push(payload);
                return;
            }
        };
        self.shared.counters.traffic.buffers_in += 1;
        let mut most = None;
        for (header, data) in messages {
            self.shared.counters.traffic.messages_in += 1;
            if let Function::Packet(delivery) = header.function {
                if self.streams.contains(header.flow) {
                    self.shared.counters.breaches.count(Breach::OtherKind);
                    continue;
                }
                let packet = InPayload {
                    payload: &payload,
                    place: data,
                };
                self.packets
                    .on_packet(&header, delivery, packet, &mut self.shared, now);
                self.trim_control();
            } else if Chunk::deserves(payload.len(), data.len()) {
                // It gets the payload itself, after the others have been copied out. Messages have
                // no order among each other.
                most = Some((header, data));
            } else {
                self.on_message(&header, || Chunk::copied(&payload[data]), now);
            }
        }
        match most {
            // Packets of the same payload stay in it until they are taken.
            Some((header, data)) if self.packets.need_payload() => {
                self.on_message(&header, || Chunk::copied(&payload[data]), now);
                self.keep_or_spend(payload);
            }
            Some((header, data)) => self.on_message(&header, || Chunk::whole(payload, data), now),
            None => self.keep_or_spend(payload),
        }
        self.make_next();
        self.streams.keep_inside_memory(&mut self.shared);
        self.trim_control();
    }

    /// The payload is unpacked: it stays while packets in it wait to be taken.
    fn keep_or_spend(&mut self, payload: Vec<u8>) {
        if let Some(payload) = self.packets.unpacked(payload) {
            self.shared.spent.push(payload);
        }
    }

    fn on_message(&mut self, header: &Header, data: impl FnOnce() -> Chunk, now: Instant) {
        if matches!(header.function, Function::Dictionary | Function::Holds) {
            self.on_compression(header);
        } else if self.packets.contains(header.flow) {
            self.packets.on_control(header, &mut self.shared, now);
        } else {
            self.streams.on_message(header, data, &mut self.shared, now);
        }
        self.trim_control();
    }

    /// A word between the two sides of compression.
    fn on_compression(&mut self, header: &Header) {
        let Form::Status(generation, status) = header.form else {
            return;
        };
        if header.function == Function::Holds {
            self.codec.on_answer(generation, status == Status::None);
        } else if !self.codec.handle_proposal(Proposal {
            generation,
            first: header.flow.0,
            last: header.sequence,
        }) {
            self.shared.answer(generation, false);
        }
    }

    /// Gives out the dictionary that the peer waits for, if all of it is here.
    fn make_next(&mut self) {
        if let Some(generation) = self.codec.make_next() {
            self.shared.answer(generation, false);
        }
        self.shared.counters.walked += self.codec.take_walked();
    }

    // --- time
    // ---------------------------------------------------------------------------------------------

    /// When `handle_timeout` wants to be called: for packets that wait for those before them, and
    /// for flows that may be over, and the like, a few times a second at most, since there may be
    /// many.
    pub(crate) fn poll_timeout(&self) -> Option<Instant> {
        let first = [
            self.packets.ends_at(),
            self.streams.lingers_until(),
            self.codec.rests_at(),
        ]
        .into_iter()
        .flatten()
        .min();
        let last = self.looked_after.map(|last| last + LOOK_AFTER);
        let looks_after = first.map(|first| last.map_or(first, |last| first.max(last)));
        self.packets
            .holds_until()
            .into_iter()
            .chain(looks_after)
            .min()
    }

    /// Ends the streams that were reset by the far side and whose application has taken nothing for
    /// a while, and flows of packets that rest; gives on packets that have waited for those before
    /// them; lets compression rest.
    pub(crate) fn handle_timeout(&mut self, now: Instant) {
        self.looked_after = Some(now);
        self.packets.end_idle(&mut self.shared, now);
        self.packets.end_holding(&mut self.shared, now);
        self.codec.rest(now);
        self.streams.end_lingering(&mut self.shared, now);
        self.trim_control();
    }

    // --- the edges
    // ---------------------------------------------------------------------------------------------

    pub(crate) fn open(
        &mut self,
        key: StreamKey,
        asked: impl Into<Treatment>,
        now: Instant,
    ) -> Result<FlowId, OpenError> {
        let shared = &mut self.shared;
        let peer_credit = shared.peer_credit.ok_or(OpenError::NotConnected)?;
        if self.streams.len() >= shared.limits.flows {
            return Err(OpenError::TooManyFlows {
                flows: shared.limits.flows,
            });
        }
        if shared.memory.is_short() {
            return Err(OpenError::OutOfMemory {
                held: shared.memory.held(),
                budget: shared.memory.budget,
            });
        }
        let (streams, packets) = (&self.streams, &self.packets);
        let flow = shared
            .numbers
            .allocate(|flow| streams.contains(flow) || packets.contains(flow));
        self.streams
            .open(flow, key, asked.into(), peer_credit, shared, now);
        Ok(flow)
    }

    pub(crate) fn accept(&mut self, flow: FlowId) {
        self.streams.accept(flow, &mut self.shared);
        self.trim_control();
    }

    pub(crate) fn readable(&mut self, flow: FlowId, now: Instant) {
        self.streams.readable(flow, &mut self.shared, now);
    }

    pub(crate) fn reset(&mut self, flow: FlowId, status: Status) {
        if !self.streams.reset(flow, status, &mut self.shared) {
            self.packets.reset(flow, status, &mut self.shared);
        }
        self.trim_control();
    }

    pub(crate) fn deliverable<'a>(&'a self, flow: FlowId, slices: &mut Vec<IoSlice<'a>>) {
        self.streams.deliverable(flow, slices);
    }

    pub(crate) fn delivered(&mut self, flow: FlowId, n: usize, now: Instant) {
        self.streams.delivered(flow, n, &mut self.shared, now);
        self.trim_control();
    }

    pub(crate) fn begin_block(&mut self, bytes: Arc<Vec<u8>>) {
        self.packets.begin_block(bytes, &mut self.shared);
    }

    pub(crate) fn block(&self) -> &[u8] {
        self.packets.block()
    }

    pub(crate) fn end_block(&mut self) {
        self.packets.end_block();
    }

    pub(crate) fn send_packet(
        &mut self,
        key: &PacketKey,
        treatment: PacketTreatment,
        packet: PacketParts<'_>,
        now: Instant,
    ) -> Result<Option<FlowId>, SendError> {
        let streams = &self.streams;
        let lives = |flow| streams.contains(flow);
        self.packets
            .send(key, treatment, packet, lives, &mut self.shared, now)
    }

    pub(crate) fn packet_flow(&self, key: &PacketKey) -> Option<FlowId> {
        self.packets.find(key)
    }

    pub(crate) fn take_packets(&mut self, each: impl FnMut(&Arrived<'_>)) {
        self.packets.take(&mut self.shared, each);
    }

    pub(crate) fn poll_event(&mut self) -> Option<Event> {
        self.shared.events.poll()
    }

    /// Payloads of the mover that nobody needs any more.
    pub(crate) fn poll_spent(&mut self) -> Option<Vec<u8>> {
        self.shared.spent.pop()
    }

    /// Whether more payloads may be taken apart before the edges have fetched what came of the last
    /// ones.
    pub(crate) fn takes_payloads(&self) -> bool {
        !self.shared.events.is_full() && self.packets.arrived_bytes() < ARRIVED_BYTES
    }

    // --- compression
    // ---------------------------------------------------------------------------------------------

    pub(crate) fn set_compression(&mut self, compression: Compression) {
        self.codec.set(compression);
    }

    /// A dictionary to be made, on this thread or another.
    pub(crate) fn poll_work(&mut self) -> Option<Work> {
        self.codec.poll_work()
    }

    /// It is made.
    pub(crate) fn on_worked(&mut self, worked: Worked) {
        if let Some(generation) = self.codec.handle_worked(worked) {
            self.shared.answer(generation, true);
        }
        self.make_next();
    }

    pub(crate) fn compression_stats(&self) -> [CompressionStats; Class::COUNT] {
        self.codec.stats()
    }

    /// Dictionaries that both sides have made.
    pub(crate) fn dictionaries(&self) -> u64 {
        self.codec.dictionaries()
    }

    // --- memory
    // ---------------------------------------------------------------------------------------------

    /// What the flows of this peer may hold from now on, bytes.
    pub(crate) fn set_budget(&mut self, bytes: usize) {
        self.shared.memory.budget = bytes.min(self.shared.limits.peer_bytes);
    }

    /// What compression may hold from now on, bytes, half of it in each direction.
    pub(crate) fn set_compression_limit(&mut self, bytes: usize) {
        self.codec.set_limit(bytes);
    }

    /// Keeps all flows inside the memory that they may use.
    pub(crate) fn keep_inside_memory(&mut self) {
        self.streams.keep_inside_memory(&mut self.shared);
        self.trim_control();
    }

    /// What flows of both kinds cost: themselves, and what they hold. Bytes.
    pub(crate) fn held(&self) -> usize {
        self.shared.memory.held()
    }

    /// Bytes of queues beyond those that each peer has.
    pub(crate) fn held_by_queues(&self) -> usize {
        self.shared.control.held()
            + self.shared.events.held()
            + self.streams.held_by_queues()
            + self.shared.schedule.held()
            + self.packets.block_bytes()
    }

    /// Bytes that compression holds.
    pub(crate) fn held_by_compression(&self) -> usize {
        self.codec.held()
    }

    pub(crate) fn held_max(&self) -> usize {
        self.shared.memory.max()
    }

    pub(crate) fn budget(&self) -> usize {
        self.shared.memory.budget
    }

    // --- figures
    // ---------------------------------------------------------------------------------------------

    pub(crate) fn flows(&self) -> impl Iterator<Item = FlowInfo> {
        self.streams.infos().chain(self.packets.infos())
    }

    pub(crate) fn usage(&self) -> Usage {
        Usage {
            streams: self.streams.len(),
            most_streams: self.shared.limits.flows,
            held: self.held(),
            budget: self.budget(),
            refused_there: self.shared.counters.flows.refused_there,
        }
    }

    pub(crate) fn flow_count(&self) -> usize {
        self.streams.len() + self.packets.len()
    }

    pub(crate) fn stream_count(&self) -> usize {
        self.streams.len()
    }

    pub(crate) fn packet_flow_count(&self) -> usize {
        self.packets.len()
    }

    pub(crate) fn ready_count(&self) -> usize {
        self.shared.schedule.listed()
    }

    pub(crate) fn counters(&self) -> &Counters {
        &self.shared.counters
    }

    pub(crate) fn is_idle(&self) -> bool {
        self.flow_count() == 0
    }

    pub(crate) fn is_connected(&self) -> bool {
        self.shared.peer_credit.is_some()
    }

    pub(crate) fn check_invariants(&self) {
        self.shared.schedule.check_invariants();
        self.shared.control.check_invariants(&self.shared.limits);
        self.streams.check_invariants(&self.shared);
        self.packets.check_invariants(&self.shared);
    }
}

fn short_header(function: Function, flow: FlowId, sequence: u32) -> Header {
    Header {
        function,
        fin: false,
        flow,
        sequence,
        length: 0,
        form: Form::Short,
    }
}
