//! Packets that have arrived and wait to be taken, which the program does after each input.
//!
//! They are not copied: the payload in which they came is kept until they are taken, and then goes
//! back to the mover. A packet that waited for those before it brings a buffer of its own.

use std::ops::Range;

use crate::FlowId;

/// Room for this many packets is kept between two inputs.
const ROOM_LEFT: usize = 4_096;

/// A packet that has arrived.
#[derive(Debug)]
struct Arrival {
    flow: FlowId,
    /// Which of the buffers it is in.
    buffer: usize,
    range: Range<usize>,
}

#[derive(Debug)]
enum Buffer {
    /// The payload that is being unpacked; its bytes come when that is done.
    Unpacked,
    Payload(Vec<u8>),
    /// A single packet that was held back.
    HeldBack(Vec<u8>),
}

/// All packets that wait to be taken, in the order of arrival.
#[derive(Debug, Default)]
pub(crate) struct Arrivals {
    arrivals: Vec<Arrival>,
    buffers: Vec<Buffer>,
    /// Of the payload that is being unpacked, when a packet of it has arrived.
    unpacked: Option<usize>,
    bytes: usize,
}

impl Arrivals {
    /// Bytes that are held.
    pub(super) fn held(&self) -> usize {
        self.bytes + self.arrivals.len() * size_of::<Arrival>()
    }

    /// A packet of the payload that is being unpacked has arrived.
    pub(super) fn arrive(&mut self, flow: FlowId, range: Range<usize>) {
        let buffer = *self.unpacked.get_or_insert_with(|| {
            self.buffers.push(Buffer::Unpacked);
            self.buffers.len() - 1
        });
        self.arrivals.push(Arrival {
            flow,
            buffer,
            range,
        });
    }

    /// A packet that was held back has its turn.
    pub(super) fn arrive_late(&mut self, flow: FlowId, bytes: Vec<u8>) {
        self.bytes += bytes.capacity();
        self.arrivals.push(Arrival {
            flow,
            buffer: self.buffers.len(),
            range: 0..bytes.len(),
        });
        self.buffers.push(Buffer::HeldBack(bytes));
    }

    /// Whether packets of the payload that is being unpacked have arrived.
    pub(crate) fn needs_payload(&self) -> bool {
        self.unpacked.is_some()
    }

    /// The payload is unpacked. Gives it back if no packet of it has arrived.
    pub(crate) fn unpacked(&mut self, payload: Vec<u8>) -> Option<Vec<u8>> {
        let Some(buffer) = self.unpacked.take() else {
            return Some(payload);
        };
        self.bytes += payload.capacity();
        self.buffers[buffer] = Buffer::Payload(payload);
        None
    }

    /// Gives each packet's flow and bytes, in the order of arrival.
    pub(super) fn iter(&self) -> impl Iterator<Item = (FlowId, &[u8])> {
        self.arrivals.iter().map(|arrival| {
            let bytes = match &self.buffers[arrival.buffer] {
                Buffer::Payload(bytes) | Buffer::HeldBack(bytes) => bytes.as_slice(),
                Buffer::Unpacked => unreachable!("packets are taken between two inputs"),
            };
            (arrival.flow, &bytes[arrival.range.clone()])
        })
    }

    /// Everything is taken. Payloads go to `payload`, single packets to `single`, to be used again.
    pub(super) fn clear(
        &mut self,
        mut payload: impl FnMut(Vec<u8>),
        mut single: impl FnMut(Vec<u8>),
    ) {
        for buffer in self.buffers.drain(..) {
            match buffer {
                Buffer::Payload(bytes) => payload(bytes),
                Buffer::HeldBack(bytes) => single(bytes),
                Buffer::Unpacked => {}
            }
        }
        self.arrivals.clear();
        self.bytes = 0;
        if self.arrivals.capacity() > ROOM_LEFT {
            (self.arrivals, self.buffers) = (Vec::new(), Vec::new());
        }
    }
}
