//! Takes a received buffer apart: each message to its flow, new flows to the edges.
//!
//! Payloads come in any order, each exactly once. A message of a flow that has ended is late and
//! dropped; a flow whose far side breaks the rules is reset; a payload that cannot be read is
//! dropped as a whole. All three are counted.

use std::time::Instant;

use super::{Driver, numbers::Known};
use crate::{
    Event, FlowId, Status, StreamKey, Treatment,
    compress::{COMPRESSED, Proposal},
    error::Breach,
    flow::Chunk,
    message::{self, Form, Function, Header},
};

impl Driver {
    /// Takes a payload of the peer.
    pub(crate) fn unpack(&mut self, mut payload: Vec<u8>, now: Instant) {
        if payload.first() == Some(&COMPRESSED) {
            self.on_compressed(now);
            match self.expander.expand(&payload) {
                Ok(raw) => self.spend(std::mem::replace(&mut payload, raw)),
                Err(error) => {
                    // What it held is lost for its flows, and they would wait for it for ever.
                    self.counters.malformed.count(error);
                    self.broken = true;
                    self.spend(payload);
                    return;
                }
            }
        }
        let messages = match message::parse_payload(&payload) {
            Ok(messages) => messages,
            Err(error) => {
                self.counters.malformed.count(error);
                self.spend(payload);
                return;
            }
        };
        self.counters.traffic.buffers_in += 1;
        let mut most = None;
        for (header, data) in messages {
            self.counters.traffic.messages_in += 1;
            if let Function::Datagram(delivery) = header.function {
                if self.flows.contains_key(&header.flow) {
                    self.counters.breaches.count(Breach::OtherKind);
                    continue;
                }
                self.on_datagram(&header, delivery, (&payload, data), now);
                continue;
            }
            if Chunk::deserves(payload.len(), data.len()) {
                // It gets the payload itself, after the others have been copied out. Messages have
                // no order among each other.
                most = Some((header, data));
            } else {
                self.on_message(&header, || Chunk::copied(&payload[data]), now);
            }
        }
        match most {
            // Packets of the same payload stay in it until they are taken.
            Some((header, data)) if self.packet_flows.arrivals.needs_payload() => {
                self.on_message(&header, || Chunk::copied(&payload[data]), now);
                self.keep_or_spend(payload);
            }
            Some((header, data)) => self.on_message(&header, || Chunk::whole(payload, data), now),
            None => self.keep_or_spend(payload),
        }
        self.make_next();
        self.keep_inside_memory();
    }

    /// The payload is unpacked: it stays while packets in it wait to be taken.
    fn keep_or_spend(&mut self, payload: Vec<u8>) {
        if let Some(payload) = self.packet_flows.arrivals.unpacked(payload) {
            self.spend(payload);
        }
    }

    /// Gives out the dictionary that the peer waits for, if all of it is here.
    pub(super) fn make_next(&mut self) {
        match self.expander.poll_ready() {
            Some(Ok(work)) => self.work.push_back(work),
            Some(Err(generation)) => self.answer(generation, false),
            None => {}
        }
        self.counters.walked += std::mem::take(&mut self.expander.walked);
    }

    /// A word between the two sides of compression.
    fn on_compression(&mut self, header: &Header) {
        let Form::Status(generation, status) = header.form else {
            return;
        };
        if header.function == Function::Holds {
            self.shrinker.on_answer(generation, status == Status::None);
        } else if !self.expander.on_proposal(Proposal {
            generation,
            first: header.flow.0,
            last: header.sequence,
        }) {
            self.answer(generation, false);
        }
    }

    fn on_message(&mut self, header: &Header, data: impl FnOnce() -> Chunk, now: Instant) {
        let flow = header.flow;
        if matches!(header.function, Function::Dictionary | Function::Holds) {
            self.on_compression(header);
            return;
        }
        if self.packet_flows.contains(flow) {
            self.on_exchange_control(header, now);
            return;
        }
        if !self.flows.contains_key(&flow) && !self.on_unknown(header, now) {
            return;
        }
        if header.function == Function::Reset {
            self.on_reset_message(header, now);
            return;
        }
        self.on_answer(flow);
        match header.function {
            Function::Data => self.on_data(header, data(), now),
            Function::Credit => self.on_credit(flow, header.sequence),
            Function::Pause => self.on_pause(flow, header.sequence),
            _ => {}
        }
    }

    /// A message of a flow that is not here. Returns whether it is now.
    fn on_unknown(&mut self, header: &Header, now: Instant) -> bool {
        let theirs = !self.giver.is_ours(header.flow);
        match (header.function, header.form) {
            (Function::Data, Form::Stream(key, asked)) if theirs => {
                self.open_from_far_side(header.flow, key, asked, now)
            }
            (Function::Reset, _) if theirs => {
                // It may have overtaken the messages that open the flow: they must not do so any
                // more.
                self.opened.note(header.flow);
                self.counters.late += 1;
                false
            }
            _ => {
                self.counters.late += 1;
                false
            }
        }
    }

    fn open_from_far_side(
        &mut self,
        flow: FlowId,
        key: StreamKey,
        asked: Treatment,
        now: Instant,
    ) -> bool {
        match self.opened.note(flow) {
            Known::New => {}
            Known::Used => {
                self.counters.late += 1;
                return false;
            }
            Known::TooOld => {
                // Either it is late, and the reset will find no flow; or it was overtaken by all
                // the others, and must end.
                self.refuse(flow, key.protocol, Status::NoResources);
                return false;
            }
        }
        let credit = match self.peer_credit {
            Some(credit) if self.flows.len() < self.limits.flows && self.held() <= self.budget => {
                credit
            }
            _ => {
                self.refuse(flow, key.protocol, Status::NoResources);
                return false;
            }
        };
        self.counters.flows.opened_there += 1;
        self.insert(flow, key, asked, false, credit, now);
        self.events.push_back(Event::Open { flow, key, asked });
        true
    }

    fn on_reset_message(&mut self, header: &Header, now: Instant) {
        let Some(state) = self.flows.get(&header.flow) else {
            return;
        };
        let Form::Status(_, status) = header.form else {
            return;
        };
        match state.incoming.expand(header.sequence) {
            Some(at) => self.on_reset(header.flow, at, status, now),
            None => self.on_breach(header.flow, Breach::BeyondEnd),
        }
    }

    /// Any message of the far side but a reset says that it knows the flow and has connected.
    fn on_answer(&mut self, flow: FlowId) {
        let Some(state) = self.flows.get_mut(&flow).filter(|state| !state.answered) else {
            return;
        };
        state.answered = true;
        self.events.push_back(Event::Accepted { flow });
        self.grant(flow);
    }

    fn on_data(&mut self, header: &Header, chunk: Chunk, now: Instant) {
        let flow = header.flow;
        let Some(state) = self.flows.get_mut(&flow) else {
            return;
        };
        if matches!(header.form, Form::Stream(key, _) if key != state.key || state.ours) {
            self.on_breach(flow, Breach::OtherKey);
            return;
        }
        let before = state.incoming.held();
        let length = u64::from(header.length);
        let taken = match state.incoming.expand(header.sequence) {
            Some(offset)
                if state
                    .ending
                    .is_none_or(|ending| offset + length <= ending.at) =>
            {
                state
                    .incoming
                    .insert(offset, chunk, header.fin, state.window.granted())
            }
            Some(_) => Err(Breach::BeyondEnd),
            None => Err(Breach::Overlap),
        };
        // Less than before is possible: early small pieces that are in order now are copied
        // together.
        self.held = self.held + state.incoming.held() - before;
        self.holders
            .on_held(flow, state.incoming.held(), &mut state.listed);
        state.moved = now;
        if let Err(breach) = taken {
            self.on_breach(flow, breach);
            return;
        }
        self.counters.traffic.bytes_in += length;
        let waiting = state.incoming.deliverable_bytes() as u64;
        if state.accepted && state.window.on_arrived(waiting, self.rtt, now) {
            self.queue_pause(flow);
        }
        self.keep_inside_share(flow);
        self.tell(flow);
    }

    fn on_pause(&mut self, flow: FlowId, sequence: u32) {
        let Some(state) = self.flows.get_mut(&flow) else {
            return;
        };
        state.outgoing.on_pause(sequence);
        if state.outgoing.credit_left() == 0 {
            self.schedule.stop(state.slot);
        }
    }

    fn on_credit(&mut self, flow: FlowId, sequence: u32) {
        let Some(state) = self.flows.get_mut(&flow) else {
            return;
        };
        if state.outgoing.on_credit(sequence) && state.may_send() {
            self.schedule.resume(state.slot);
        }
    }
}
