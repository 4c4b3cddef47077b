//! The buffer that is being filled: routing header, then messages, each in its place.
//!
//! A buffer that holds messages of more than one flow is never larger than one segment, so that a
//! lost datagram delays only the flows whose bytes it carried; a larger buffer has one flow's data
//! and nothing else.

use crate::{
    Class, FlowId,
    message::{self, Header, ROUTING},
};

/// From this many bytes out of one byte of room on, larger buffers pay.
const WORTH_STRETCHING: f64 = 1.3;

/// How large the buffer may become, bytes.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Room {
    /// What one datagram carries.
    pub(crate) segment: usize,
    /// What one datagram carries of what somebody waits for: its parity must fit into another one.
    pub(crate) urgent: usize,
    /// The largest buffer of one flow, `segment` at least.
    pub(crate) largest: usize,
    /// What a buffer of one flow may take on the link once it is compressed; zero: a flow that
    /// compresses well has no larger buffers than others.
    pub(crate) compressed: usize,
    /// The largest buffer that both sides take, for a message that cannot be cut.
    pub(crate) max: usize,
}

impl Room {
    /// The largest buffer of a flow of which `stretch` bytes come out of one: it fills the
    /// datagrams that it is meant for, and shrinks the better the more of it there is.
    fn stretched(&self, stretch: f64) -> usize {
        if stretch < WORTH_STRETCHING {
            return self.largest;
        }
        let bytes = ((self.compressed as f64 * stretch) as usize).next_multiple_of(self.segment);
        bytes
            .min(self.max / self.segment * self.segment)
            .max(self.largest)
    }
}

/// What a filled buffer is.
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
pub(crate) struct BufferWriter<'a> {
    buffer: &'a mut Vec<u8>,
    room: Room,
    used: usize,
    messages: u16,
    owner: Owner,
    urgent: bool,
    class: Class,
    apart: bool,
}

/// Of whom a message comes that is added to a buffer.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Origin {
    pub(crate) flow: FlowId,
    /// Somebody waits for the message.
    pub(crate) urgent: bool,
    pub(crate) class: Class,
    /// The message does not share its compression.
    pub(crate) apart: bool,
}

impl<'a> BufferWriter<'a> {
    /// Begins over `buffer`, whose length and content are arbitrary before.
    pub(crate) fn new(buffer: &'a mut Vec<u8>, room: Room) -> BufferWriter<'a> {
        assert!(
            room.urgent >= 128
                && room.segment >= room.urgent
                && room.largest >= room.segment
                && room.max >= room.largest,
            "no room for headers in {room:?}"
        );
        let mut writer = BufferWriter {
            buffer,
            room,
            used: ROUTING,
            messages: 0,
            owner: Owner::Nobody,
            urgent: false,
            class: Class::Bulk,
            apart: false,
        };
        writer.place(0, ROUTING);
        writer
    }

    /// Messages in it.
    pub(crate) fn messages(&self) -> u16 {
        self.messages
    }

    /// Bytes in it, the routing header included.
    pub(crate) fn used(&self) -> usize {
        self.used
    }

    /// What one datagram carries.
    pub(crate) fn segment(&self) -> usize {
        self.room.segment
    }

    /// Whether it holds nothing yet.
    pub(crate) fn is_empty(&self) -> bool {
        self.used == ROUTING
    }

    /// How far a message of this flow may reach. `stretch`: how many of its bytes come out of one
    /// byte of room, if they are known to shrink.
    pub(crate) fn end_for(&self, flow: FlowId, urgent: bool, stretch: Option<f64>) -> usize {
        let own = self.owner == Owner::Nobody || self.owner == Owner::One(flow);
        match (own, stretch) {
            (true, Some(stretch)) if urgent => {
                ((self.room.urgent as f64 * stretch) as usize).min(self.room.max)
            }
            _ if urgent || self.urgent => self.room.urgent,
            (true, Some(stretch)) => self.room.stretched(stretch),
            (true, None) => self.room.largest,
            (false, _) => self.room.segment,
        }
    }

    /// The place between two offsets, made if the buffer is shorter. A spare buffer was as long
    /// before, mostly: then nothing is written.
    pub(crate) fn place(&mut self, from: usize, to: usize) -> &mut [u8] {
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
    pub(crate) fn add(&mut self, header: &Header, origin: Origin) {
        self.write(header);
        self.urgent |= origin.urgent;
        self.class = self.class.min(origin.class);
        self.apart |= origin.apart;
        let owner = Owner::One(origin.flow);
        self.owner = match self.owner {
            Owner::Nobody => owner,
            same if same == owner => same,
            Owner::One(_) | Owner::Many => Owner::Many,
        };
    }

    /// Adds a message with its data, which is in two parts.
    pub(crate) fn add_with(&mut self, header: &Header, parts: [&[u8]; 2], origin: Origin) {
        let from = self.used + header.header_length();
        let [front, body] = parts;
        let place = self.place(from, from + front.len() + body.len());
        let (in_front, behind) = place.split_at_mut(front.len());
        in_front.copy_from_slice(front);
        behind.copy_from_slice(body);
        self.add(header, origin);
    }

    /// Whether a control message may be added.
    pub(crate) fn has_room_for_control(&self) -> bool {
        self.used + message::STATUS <= self.room.urgent
    }

    /// Adds a control message. One for which nobody waits changes nothing of the buffer that it
    /// rides in, but an end is another flow's.
    pub(crate) fn add_control(&mut self, header: &Header, urgent: bool) {
        self.write(header);
        if urgent {
            (self.urgent, self.class, self.owner) = (true, Class::Control, Owner::Many);
        } else if header.fin {
            self.owner = Owner::Many;
        }
    }

    /// Whether no buffer could ever hold a message of this length.
    pub(crate) fn is_never_enough(&self, message: usize) -> bool {
        ROUTING + message > self.room.max
    }

    /// Whether a message of this length, which cannot be cut, may be added. An empty buffer takes
    /// any: it then spans datagrams.
    pub(crate) fn has_room(&self, flow: FlowId, urgent: bool, message: usize) -> bool {
        self.is_empty() || self.used + message <= self.end_for(flow, urgent, None)
    }

    /// Ends the buffer and says what it is; nothing if it holds no message.
    pub(crate) fn finish(self) -> Option<Packed> {
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
