//! The payloads between `send` and their last acknowledgement: what is unsent, what must be repaired, what is acknowledged.
//!
//! Payloads are cut only here, when a datagram has room: so a repair after a change of the path's datagram size is cut anew.
//! Order: urgent before others, repairs before new data of the same kind.

use std::collections::VecDeque;

use crate::config::Limits;
use crate::packet::{self, DATA_HEADER, Data};
use crate::ranges::Ranges;
use crate::seq;

/// A piece smaller than this is not worth a subfield header of its own, unless it is all there is.
const SMALLEST_PIECE: usize = 64;

/// A piece of a payload by its bytes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Segment {
    pub(crate) logical: u64,
    pub(crate) offset: u32,
    pub(crate) length: u32,
}

struct Payload {
    bytes: Vec<u8>,
    /// Bytes before this were sent at least once.
    sent: u32,
    acked: Ranges,
    urgent: bool,
}

impl Payload {
    fn is_done(&self) -> bool {
        self.bytes.is_empty()
    }
}

/// One of the two classes.
#[derive(Default)]
struct Class {
    repairs: VecDeque<Segment>,
    /// Payloads with bytes that were never sent.
    fresh: VecDeque<u64>,
}

/// The sender's payloads.
pub(crate) struct Queue {
    /// `payloads[0]` has logical number `base`: the oldest not wholly acknowledged.
    payloads: VecDeque<Payload>,
    base: u64,
    window: u64,
    urgent: Class,
    normal: Class,
    unsent: usize,
    repair: usize,
    held: usize,
    limit: usize,
    /// What was held when the limit was lowered last: held may be above the limit up to this, and only shrinks.
    held_before: usize,
    spare: Vec<Vec<u8>>,
    spare_limit: usize,
    repaired: u64,
}

impl Queue {
    pub(crate) fn new(limits: &Limits) -> Queue {
        Queue {
            payloads: VecDeque::new(),
            base: limits.first_logical,
            window: limits.logical_window,
            urgent: Class::default(),
            normal: Class::default(),
            unsent: 0,
            repair: 0,
            held: 0,
            limit: limits.send_bytes,
            held_before: 0,
            spare: Vec::new(),
            spare_limit: limits.spare_buffers,
            repaired: 0,
        }
    }

    /// Is there room for a payload of so many bytes?
    pub(crate) fn has_room(&self, bytes: usize) -> bool {
        (self.payloads.len() as u64) < self.window && self.held + bytes <= self.limit
    }

    /// What may be held from now on; what is held already stays.
    pub(crate) fn set_limit(&mut self, bytes: usize) {
        self.limit = bytes;
        self.held_before = self.held;
    }

    /// Takes a payload that is not empty and for which there `has_room`.
    pub(crate) fn push(&mut self, bytes: Vec<u8>, urgent: bool) {
        debug_assert!(!bytes.is_empty() && self.has_room(bytes.len()));
        let logical = self.base + self.payloads.len() as u64;
        self.unsent += bytes.len();
        self.held += bytes.len();
        self.class(urgent).fresh.push_back(logical);
        self.payloads.push_back(Payload { bytes, sent: 0, acked: Ranges::default(), urgent });
    }

    fn class(&mut self, urgent: bool) -> &mut Class {
        if urgent { &mut self.urgent } else { &mut self.normal }
    }

    fn get(&self, logical: u64) -> Option<&Payload> {
        let index = logical.checked_sub(self.base)?;
        self.payloads.get(index as usize).filter(|payload| !payload.is_done())
    }

    /// Does an urgent payload wait, or a repair of one?
    pub(crate) fn has_urgent(&self) -> bool {
        !self.urgent.repairs.is_empty() || !self.urgent.fresh.is_empty()
    }

    /// Payload bytes that wait to be sent for the first time or again.
    pub(crate) fn waiting(&self) -> usize {
        self.unsent + self.repair
    }

    /// Bytes of all payloads that are kept.
    pub(crate) fn held(&self) -> usize {
        self.held
    }

    /// Payloads kept.
    pub(crate) fn len(&self) -> usize {
        self.payloads.len()
    }

    /// Segments queued for repair so far.
    pub(crate) fn repaired(&self) -> u64 {
        self.repaired
    }

    /// Appends the next piece that fits into `room` as a data subfield of datagram `physical`.
    pub(crate) fn emit_next(
        &mut self,
        out: &mut Vec<u8>,
        room: usize,
        physical: u64,
        at_once: bool,
    ) -> Option<Segment> {
        let room = room.checked_sub(DATA_HEADER).filter(|room| *room > 0)?;
        for urgent in [true, false] {
            if let Some(segment) = self.next_repair(urgent, room) {
                self.emit(out, segment, physical, at_once);
                return Some(segment);
            }
            if self.class(urgent).repairs.is_empty()
                && let Some(segment) = self.next_fresh(urgent, room)
            {
                self.emit(out, segment, physical, at_once);
                return Some(segment);
            }
            let class = self.class(urgent);
            if !class.repairs.is_empty() || !class.fresh.is_empty() {
                return None;
            }
        }
        None
    }

    /// Appends once more a piece that is sent but not acknowledged: a probe's load. The first one that ends after `after`, a logical
    /// number and an offset, or else the oldest: so that probes in a row repeat different pieces.
    pub(crate) fn emit_oldest(
        &mut self,
        out: &mut Vec<u8>,
        room: usize,
        physical: u64,
        after: (u64, u32),
    ) -> Option<Segment> {
        let room = room.checked_sub(DATA_HEADER).filter(|room| *room > 0)?;
        let segment = self.unacked_after(after).or_else(|| self.unacked_after((0, 0)))?;
        let segment = Segment { length: segment.length.min(room as u32), ..segment };
        self.emit(out, segment, physical, true);
        Some(segment)
    }

    fn unacked_after(&self, (logical, offset): (u64, u32)) -> Option<Segment> {
        let first = logical.saturating_sub(self.base) as usize;
        (first..self.payloads.len()).find_map(|index| {
            let payload = &self.payloads[index];
            let number = self.base + index as u64;
            let from = if number == logical { offset.min(payload.sent) } else { 0 };
            let (start, end) = payload.acked.first_missing(from, payload.sent).filter(|_| !payload.is_done())?;
            Some(Segment { logical: number, offset: start, length: end - start })
        })
    }

    fn emit(&self, out: &mut Vec<u8>, segment: Segment, physical: u64, at_once: bool) {
        let payload = &self.payloads[(segment.logical - self.base) as usize];
        let (start, end) = (segment.offset as usize, (segment.offset + segment.length) as usize);
        let data = Data {
            at_once,
            protected: false,
            logical: seq::low(segment.logical),
            offset: start,
            size: payload.bytes.len(),
            segment: &payload.bytes[start..end],
        };
        packet::emit_data(out, &data, physical);
    }

    fn next_repair(&mut self, urgent: bool, room: usize) -> Option<Segment> {
        loop {
            let segment = *self.class(urgent).repairs.front()?;
            let end = segment.offset + segment.length;
            let missing =
                self.get(segment.logical).and_then(|payload| payload.acked.first_missing(segment.offset, end));
            let Some((start, stop)) = missing else {
                // Acknowledged in the meantime: the loss was none.
                self.class(urgent).repairs.pop_front();
                self.repair -= segment.length as usize;
                continue;
            };
            let length = piece((stop - start) as usize, room)? as u32;
            let left = end - start - length;
            self.repair -= (segment.length - left) as usize;
            let class = self.class(urgent);
            if left == 0 {
                class.repairs.pop_front();
            } else {
                class.repairs[0] = Segment { offset: start + length, length: left, ..segment };
            }
            return Some(Segment { offset: start, length, ..segment });
        }
    }

    fn next_fresh(&mut self, urgent: bool, room: usize) -> Option<Segment> {
        let logical = *self.class(urgent).fresh.front()?;
        let payload = &mut self.payloads[(logical - self.base) as usize];
        let left = payload.bytes.len() - payload.sent as usize;
        let length = piece(left, room)?;
        let segment = Segment { logical, offset: payload.sent, length: length as u32 };
        payload.sent += length as u32;
        self.unsent -= length;
        if length == left {
            self.class(urgent).fresh.pop_front();
        }
        Some(segment)
    }

    /// A segment was lost: it is sent again unless another copy of it was acknowledged.
    pub(crate) fn on_lost(&mut self, segment: Segment) {
        let end = segment.offset + segment.length;
        let Some(payload) = self.get(segment.logical) else {
            return;
        };
        if payload.acked.covers(segment.offset, end) {
            return;
        }
        let urgent = payload.urgent;
        self.repair += segment.length as usize;
        self.repaired += 1;
        self.class(urgent).repairs.push_back(segment);
    }

    /// A segment arrived. Its payload's buffer becomes spare when all of it has.
    pub(crate) fn on_acked(&mut self, segment: Segment) {
        let Some(index) = segment.logical.checked_sub(self.base) else {
            return;
        };
        let Some(payload) = self.payloads.get_mut(index as usize).filter(|payload| !payload.is_done()) else {
            return;
        };
        payload.acked.insert(segment.offset, segment.offset + segment.length);
        if !payload.acked.is_whole(payload.bytes.len() as u32) {
            return;
        }
        let bytes = std::mem::take(&mut payload.bytes);
        self.held -= bytes.len();
        self.give_spare(bytes);
        while self.payloads.front().is_some_and(Payload::is_done) {
            self.payloads.pop_front();
            self.base += 1;
        }
    }

    pub(crate) fn give_spare(&mut self, buffer: Vec<u8>) {
        if self.spare.len() < self.spare_limit {
            self.spare.push(buffer);
        }
    }

    /// A buffer to be filled, used before or new.
    pub(crate) fn spare(&mut self) -> Vec<u8> {
        self.spare.pop().unwrap_or_default()
    }

    pub(crate) fn check_invariants(&self) {
        assert!(self.held <= self.limit.max(self.held_before), "sender holds {} of {} bytes", self.held, self.limit);
        assert!(self.payloads.len() as u64 <= self.window);
        assert!(!self.payloads.front().is_some_and(Payload::is_done));
        assert!(self.unsent <= self.held);
    }

    /// The expensive part of the invariants: adds everything up.
    pub(crate) fn check_sums(&self) {
        assert_eq!(self.held, self.payloads.iter().map(|payload| payload.bytes.len()).sum::<usize>());
        let unsent = |payload: &Payload| payload.bytes.len().saturating_sub(payload.sent as usize);
        assert_eq!(self.unsent, self.payloads.iter().filter(|payload| !payload.is_done()).map(unsent).sum::<usize>());
        let repairs = self.urgent.repairs.iter().chain(&self.normal.repairs);
        assert_eq!(self.repair, repairs.map(|segment| segment.length as usize).sum::<usize>());
    }
}

/// How much of `left` bytes to put into `room`; `None` if what fits is too little.
fn piece(left: usize, room: usize) -> Option<usize> {
    let length = left.min(room);
    (length >= left.min(SMALLEST_PIECE)).then_some(length)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::packet::{Subfield, Subfields};
    use crate::recv::assemble::Assembler;

    fn emit_into(queue: &mut Queue, out: &mut Vec<u8>, size: usize, physical: u64) -> Option<Segment> {
        let room = size - out.len();
        queue.emit_next(out, room, physical, false)
    }

    #[test]
    fn what_is_cut_lost_and_cut_again_arrives_whole() {
        for seed in 0..200 {
            let mut dice = fastrand::Rng::with_seed(seed);
            let limits = Limits { first_logical: (1 << 32) - 5, ..Limits::default() };
            let mut queue = Queue::new(&limits);
            let mut assembler = Assembler::new(&limits);
            let mut sent: Vec<Vec<u8>> =
                (0..20).map(|_| (0..dice.usize(1..5_000)).map(|_| dice.u8(..)).collect()).collect();
            for payload in &sent {
                queue.push(payload.clone(), dice.bool());
            }
            let (mut came, mut flying) = (Vec::new(), Vec::new());
            let mut physical = 0;
            while queue.len() > 0 {
                let mut out = Vec::new();
                let size = dice.usize(30..1_500);
                while let Some(segment) = emit_into(&mut queue, &mut out, size, physical) {
                    flying.push((segment, physical));
                    queue.check_sums();
                }
                if out.is_empty() && dice.bool() {
                    flying
                        .extend(queue.emit_oldest(&mut out, size, physical, (0, 0)).map(|segment| (segment, physical)));
                }
                assert!(out.len() <= size, "seed {seed}");
                let arrives = dice.u8(0..100) < 70;
                for subfield in Subfields::new(&out, physical, 1 << 18) {
                    if let (true, Ok(Subfield::Data(data))) = (arrives, subfield) {
                        assembler.handle_segment(&data);
                    }
                }
                came.extend(std::iter::from_fn(|| assembler.poll_payload()));
                for (segment, _) in flying.drain(..) {
                    // Now and then a datagram that arrived counts as lost.
                    if arrives && dice.u8(0..10) > 0 {
                        queue.on_acked(segment)
                    } else {
                        queue.on_lost(segment)
                    }
                    queue.check_invariants();
                    queue.check_sums();
                }
                physical += 1;
            }
            sent.sort();
            came.sort();
            assert!(sent == came, "seed {seed}");
            assert_eq!((queue.held(), queue.unsent), (0, 0));
        }
    }

    #[test]
    fn the_urgent_go_first_and_share_a_datagram() {
        let mut queue = Queue::new(&Limits::default());
        queue.push(vec![1; 3_000], false);
        queue.push(vec![2; 100], true);
        let mut out = Vec::new();
        let first = queue.emit_next(&mut out, 1_000, 0, false).unwrap();
        let second = emit_into(&mut queue, &mut out, 1_000, 0).unwrap();
        assert_eq!((first.logical, first.length), (1, 100));
        assert_eq!((second.logical, second.length), (0, 1_000 - 118 - 18));
        assert!(queue.emit_next(&mut out, 60, 0, false).is_none(), "a piece too small");
        queue.on_lost(second);
        assert_eq!(queue.emit_next(&mut out, 5_000, 0, false), Some(second), "repairs before new data");
    }
}
