//! Fills a buffer: routing header, then messages, read from the edges straight into their places.
//!
//! Control messages go first, then data in the order of the schedule. A buffer that holds messages
//! of more than one flow is never larger than one segment, so that a lost datagram delays only the
//! flows whose bytes it carried; a larger buffer has one flow's data and nothing else. Nothing
//! waits for a buffer to become full: what is there when the mover may send goes.

use std::time::Instant;

use super::{Control, Driver, schedule::Turn};
use crate::{
    Class, FlowId, Read, Source, Status,
    compress::{Compress, Proposal},
    config::{CONTROL_SLACK, MIN_PIECE, OPENING, UNSAID},
    flow::Flow,
    message::{self, Form, Function, Header, ROUTING},
};

/// What gets through of a byte of room is worth larger buffers.
const WORTH_STRETCHING: f64 = 1.3;

/// How large the buffer may become.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Room {
    /// What one datagram carries.
    pub(crate) segment: usize,
    /// What one datagram carries of what somebody waits for: its parity must fit into another one.
    pub(crate) urgent: usize,
    /// The largest buffer of one flow, `segment` at least.
    pub(crate) largest: usize,
    /// What a buffer of one flow may take on the link if it shrinks; zero: it is no larger than
    /// others.
    pub(crate) shrunk: usize,
    /// The largest buffer that both sides take, for a message that cannot be cut.
    pub(crate) most: usize,
}

impl Room {
    /// The largest buffer of a flow of which so many bytes come out of one: it fills the datagrams
    /// that it is meant for, and shrinks the better the more of it there is.
    fn stretched(&self, stretch: f64) -> usize {
        if stretch < WORTH_STRETCHING {
            return self.largest;
        }
        let bytes = ((self.shrunk as f64 * stretch) as usize).next_multiple_of(self.segment);
        bytes
            .min(self.most / self.segment * self.segment)
            .max(self.largest)
    }
}

/// What the buffer is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Packed {
    /// Somebody waits for it: it goes before others.
    pub(crate) urgent: bool,
    /// Whose data it holds, if one flow's alone.
    pub(crate) flow: Option<FlowId>,
    /// Of its most urgent message.
    pub(crate) class: Class,
    /// It holds something that does not share its compression.
    pub(crate) apart: bool,
}

/// Whose messages the buffer holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Owner {
    Nobody,
    One(FlowId),
    Many,
}

/// The buffer being filled.
pub(super) struct Page<'a> {
    buffer: &'a mut Vec<u8>,
    room: Room,
    used: usize,
    messages: u16,
    owner: Owner,
    urgent: bool,
    class: Class,
    apart: bool,
}

/// Whose message is added to a page.
#[derive(Debug, Clone, Copy)]
pub(super) struct Whose {
    pub(super) flow: FlowId,
    pub(super) urgent: bool,
    pub(super) class: Class,
    /// It does not share its compression.
    pub(super) apart: bool,
}

impl Page<'_> {
    /// How far a message of this flow may reach. `stretch`: how many of its bytes come out of one
    /// byte of room, if they are known to shrink.
    fn end_for(&self, flow: FlowId, urgent: bool, stretch: Option<f64>) -> usize {
        let own = self.owner == Owner::Nobody || self.owner == Owner::One(flow);
        match (own, stretch) {
            (true, Some(stretch)) if urgent => {
                ((self.room.urgent as f64 * stretch) as usize).min(self.room.most)
            }
            _ if urgent || self.urgent => self.room.urgent,
            (true, Some(stretch)) => self.room.stretched(stretch),
            (true, None) => self.room.largest,
            (false, _) => self.room.segment,
        }
    }

    /// The place between two offsets, made if the buffer is shorter. A spare buffer was as long
    /// before, mostly: then nothing is written.
    fn place(&mut self, from: usize, to: usize) -> &mut [u8] {
        if self.buffer.len() < to {
            // No more than it may need: it is held until the peer has acknowledged all of it.
            let needed = to.max(self.room.segment) - self.buffer.len();
            self.buffer.reserve_exact(needed);
            self.buffer.resize(to, 0);
        }
        &mut self.buffer[from..to]
    }

    /// Writes a header at the end; its data is in its place already.
    fn write(&mut self, header: &Header) {
        let (from, to) = (self.used, self.used + header.header_length());
        header.emit(self.place(from, to));
        self.used = to + header.length as usize;
        self.messages += 1;
    }

    /// Adds a message of a flow, whose data is in its place already.
    fn add(&mut self, header: &Header, whose: Whose) {
        self.write(header);
        self.urgent |= whose.urgent;
        self.class = self.class.min(whose.class);
        self.apart |= whose.apart;
        let owner = Owner::One(whose.flow);
        self.owner = match self.owner {
            Owner::Nobody => owner,
            same if same == owner => same,
            _ => Owner::Many,
        };
    }

    /// Adds a control message. One for which nobody waits changes nothing of the buffer that it
    /// rides in, but an end is another flow's.
    fn add_control(&mut self, header: &Header, urgent: bool) {
        self.write(header);
        if urgent {
            (self.urgent, self.class, self.owner) = (true, Class::Control, Owner::Many);
        } else if header.fin {
            self.owner = Owner::Many;
        }
    }

    /// Whether no buffer could ever hold a message of so many bytes.
    pub(super) fn is_never_enough(&self, message: usize) -> bool {
        ROUTING + message > self.room.most
    }

    /// Whether a message of so many bytes, which cannot be cut, may be added. An empty buffer takes
    /// any: it then spans datagrams.
    pub(super) fn has_room(&self, flow: FlowId, urgent: bool, message: usize) -> bool {
        self.used == ROUTING || self.used + message <= self.end_for(flow, urgent, None)
    }

    /// Adds a message with its data, which is in two parts.
    pub(super) fn add_with(&mut self, header: &Header, parts: [&[u8]; 2], whose: Whose) {
        let from = self.used + header.header_length();
        let [front, body] = parts;
        let place = self.place(from, from + front.len() + body.len());
        let (in_front, behind) = place.split_at_mut(front.len());
        in_front.copy_from_slice(front);
        behind.copy_from_slice(body);
        self.add(header, whose);
    }

    fn finish(self) -> Option<Packed> {
        self.buffer.truncate(self.used);
        if self.messages == 0 {
            return None;
        }
        message::emit_routing(self.buffer, self.messages);
        let flow = match self.owner {
            Owner::One(flow) => Some(flow),
            Owner::Nobody | Owner::Many => None,
        };
        Some(Packed {
            urgent: self.urgent,
            flow,
            class: self.class,
            apart: self.apart,
        })
    }
}

impl Driver {
    /// Whether packing might yield something.
    pub(crate) fn has_work(&self) -> bool {
        !self.control.is_empty() || self.schedule.listed() > 0
    }

    /// Whether packing would begin with something that somebody waits for.
    pub(crate) fn has_urgent_work(&self) -> bool {
        self.urgent > 0 || self.schedule.has_urgent()
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
        assert!(
            room.urgent >= 128
                && room.segment >= room.urgent
                && room.largest >= room.segment
                && room.most >= room.largest,
            "no room for headers in {room:?}"
        );
        let mut page = Page {
            buffer,
            room,
            used: ROUTING,
            messages: 0,
            owner: Owner::Nobody,
            urgent: false,
            class: Class::Bulk,
            apart: false,
        };
        page.place(0, ROUTING);
        // A proposal needs a buffer to ride in.
        if self.schedule.listed() > 0
            && let Some(proposal) = self.shrinker.propose(self.rate, now)
        {
            self.queue_control(Control::Dictionary(proposal));
        }
        self.pack_control(&mut page);
        while let Some(turn) = self.schedule.next() {
            if !self.pack_turn(turn, source, &mut page, now) {
                break;
            }
        }
        if page.messages > 0 && !self.unsaid.is_empty() {
            self.say();
            self.pack_control(&mut page);
        }
        self.counters.traffic.messages_out += u64::from(page.messages);
        let packed = page.finish();
        self.counters.traffic.buffers_out += u64::from(packed.is_some());
        packed
    }

    fn pack_control(&mut self, page: &mut Page<'_>) {
        while let Some(control) = self.control.front() {
            if page.used + message::STATUS > page.room.urgent {
                break;
            }
            let urgent = control.is_urgent();
            let header = self.control_header(*control);
            self.pop_control();
            if let Some(header) = header {
                page.add_control(&header, urgent);
            }
        }
    }

    /// None if the flow has ended since the message was queued.
    fn control_header(&mut self, control: Control) -> Option<Header> {
        let short = |function, flow, sequence| Header {
            function,
            fin: false,
            flow,
            sequence,
            length: 0,
            form: Form::Short,
        };
        match control {
            Control::Accepted(flow) => {
                let lives = self.flows.contains_key(&flow) || self.packet_flows.contains(flow);
                lives.then(|| short(Function::Accepted, flow, 0))
            }
            Control::Credit(flow) => {
                let state = self.flows.get_mut(&flow)?;
                state.credit_due = false;
                Some(short(Function::Credit, flow, state.window.granted() as u32))
            }
            Control::Pause(flow) => {
                let state = self.flows.get_mut(&flow)?;
                state.pause_due = false;
                let paused = state.window.is_paused();
                paused.then(|| short(Function::Pause, flow, state.window.granted() as u32))
            }
            Control::End(flow) => {
                let state = self
                    .flows
                    .get_mut(&flow)
                    .filter(|state| !state.outgoing.fin() && state.ending.is_none())?;
                let header = data_header(flow, state, 0, true);
                state.outgoing.on_end();
                self.tell(flow);
                Some(header)
            }
            Control::Reset {
                flow,
                sequence,
                protocol,
                status,
            } => Some(Header {
                form: Form::Status(protocol, status),
                ..short(Function::Reset, flow, sequence)
            }),
            Control::Dictionary(Proposal {
                generation,
                first,
                last,
            }) => Some(Header {
                form: Form::Status(generation, Status::None),
                ..short(Function::Dictionary, FlowId(first), last)
            }),
            Control::Holds(generation, holds) => {
                let status = if holds {
                    Status::None
                } else {
                    Status::NoResources
                };
                Some(Header {
                    form: Form::Status(generation, status),
                    ..short(Function::Holds, FlowId(0), 0)
                })
            }
        }
    }

    /// Packs a message of the flow whose turn it is, if it has one. Returns whether there may be
    /// room for another.
    fn pack_turn(
        &mut self,
        turn: Turn,
        source: &mut dyn Source,
        page: &mut Page<'_>,
        now: Instant,
    ) -> bool {
        let Some(state) = self.flows.get_mut(&turn.flow) else {
            return self.pack_datagram(turn, page, now);
        };
        let header_length = if state.answered {
            message::SHORT
        } else {
            message::full_length(&state.key)
        };
        let urgent = state.class.is_urgent();
        let how = self.shrinker.how(&state.asked, state.ours);
        let record = state
            .record
            .as_ref()
            .filter(|_| how.compress != Compress::Off);
        let end = page.end_for(
            turn.flow,
            urgent,
            record.and_then(|record| self.shrinker.stretch(record, urgent)),
        );
        let place = page.used + header_length;
        if page.used > ROUTING && place + MIN_PIECE > end {
            return false;
        }
        let ask = ask(
            turn.allowance,
            place,
            end,
            page.room.segment,
            state.outgoing.credit_left(),
        );
        let read = if ask == 0 {
            Read::Blocked
        } else {
            source.read(turn.flow, page.place(place, place + ask))
        };
        // Beside something else it goes at once; and what waits has a bound.
        let may_wait = page.messages == 0 && self.unsaid.len() < CONTROL_SLACK;
        let (length, fin) = match read {
            Read::Bytes(n) => {
                assert!(
                    n > 0 && n <= ask,
                    "a source read {n} bytes where {ask} were asked for"
                );
                (n, false)
            }
            Read::Blocked if state.must_open() && may_wait && now < state.since + OPENING => {
                let until = state.since + OPENING;
                self.schedule.sleep(turn.slot);
                self.leave_unsaid(turn.flow, Some(until));
                return true;
            }
            Read::Blocked if state.must_open() => (0, false),
            Read::Blocked => {
                // Without a place in the buffer nothing was asked.
                if ask > 0 {
                    state.rest(now);
                }
                self.schedule.sleep(turn.slot);
                return true;
            }
            Read::End if may_wait && state.answered && state.incoming.fin_known() => {
                // Nobody waits for the second end: it rides with what is sent next.
                state.end_due = true;
                self.schedule.stop(turn.slot);
                self.leave_unsaid(turn.flow, Some(now + UNSAID));
                return true;
            }
            Read::End => (0, true),
            Read::Failed(status) => {
                self.fail(turn.flow, status);
                return true;
            }
        };
        let header = data_header(turn.flow, state, length, fin);
        // Nobody waits for the second end.
        let urgent = urgent && !(fin && state.incoming.fin_known());
        page.add(
            &header,
            Whose {
                flow: turn.flow,
                urgent,
                class: state.class,
                apart: how.keeps_apart(),
            },
        );
        state.open_sent = true;
        state.moved = now;
        state.outgoing.on_sent(length);
        self.counters.traffic.bytes_out += length as u64;
        self.schedule.on_served(turn.slot, header_length + length);
        if state.behave(length, self.sparse, now) {
            self.schedule.set_class(turn.slot, state.class);
        }
        if fin {
            state.outgoing.on_end();
            self.schedule.stop(turn.slot);
            self.tell(turn.flow);
        } else if state.outgoing.credit_left() == 0 {
            self.schedule.stop(turn.slot);
        } else if length == 0 {
            state.rest(now);
            self.schedule.sleep(turn.slot);
        }
        true
    }

    fn fail(&mut self, flow: FlowId, status: Status) {
        self.counters.flows.reset_here += 1;
        self.reset_and_tell(flow, status);
    }
}

/// How much to ask a flow for: what its turn allows, rounded up so that the buffer ends with a
/// whole segment.
fn ask(allowance: usize, place: usize, end: usize, segment: usize, credit: u64) -> usize {
    let space = end.saturating_sub(place);
    let turn_end = place
        .saturating_add(allowance)
        .checked_next_multiple_of(segment)
        .unwrap_or(usize::MAX);
    let credit = usize::try_from(credit).unwrap_or(usize::MAX);
    (turn_end - place).min(space).min(credit)
}

fn data_header(flow: FlowId, state: &Flow, length: usize, fin: bool) -> Header {
    Header {
        function: Function::Data,
        fin,
        flow,
        sequence: state.outgoing.next() as u32,
        length: length as u32,
        form: if state.answered {
            Form::Short
        } else {
            Form::Stream(state.key, state.asked)
        },
    }
}
