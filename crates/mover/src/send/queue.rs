//! The payloads between `send` and their last acknowledgement: what is unsent, what must be
//! repaired, what is acknowledged.
//!
//! Payloads are cut only here, when a datagram has room: so a repair after a change of the path's
//! datagram size is cut anew. Order: urgent before others, repairs before new data of the same
//! kind. On a long fat path a repair of a repair is sent twice, a little apart: what waits behind
//! it has waited for two round trips already, and the receiver's memory is what such waits cost.

use std::collections::VecDeque;

use crate::account::Account;
use crate::buffer_pool::BufferPool;
use crate::config::Limits;
use crate::ranges::Ranges;
use crate::seq;
use crate::subfield::{self, DATA_HEADER, Data};
use crate::timer::Nanos;

/// Bytes of the smallest piece that is worth a subfield header of its own, unless it is all there
/// is.
const SMALLEST_PIECE: usize = 64;

/// Datagrams between a repair and its copy at least, while there is anything else to send: bursts
/// of losses of usual length spare one of the two.
const COPY_GAP: u64 = 8;
/// Entries that the table of payloads keeps room for; one that had far more is made smaller.
const ROOM_LEFT: usize = 4_096;
/// Bytes of the queues of repairs that every connection may have uncounted.
const BARE: usize = 64 << 10;
/// What a payload costs beside its buffer: its entry and its number's, in queues that may be half
/// empty. Bytes.
pub(super) const ENTRY_COST: usize = 2 * (size_of::<Payload>() + size_of::<u64>());

/// How often a segment has left before.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Kind {
    First,
    Again,
    /// At least twice: a copy may follow.
    Often,
    /// Its loss means nothing, its original decides.
    Copy,
}

/// A piece of a payload by its bytes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Segment {
    pub(crate) logical: u64,
    pub(crate) offset: u32,
    pub(crate) length: u16,
    pub(crate) kind: Kind,
}

impl Segment {
    pub(crate) fn end(&self) -> u32 {
        self.offset + u32::from(self.length)
    }

    /// Where what follows it begins.
    pub(crate) fn end_position(&self) -> Position {
        Position {
            logical: self.logical,
            offset: self.end(),
        }
    }
}

/// A place in the payloads.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(crate) struct Position {
    pub(crate) logical: u64,
    pub(crate) offset: u32,
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

/// The datagram that is being filled.
struct Filling {
    physical: u64,
    /// Bytes that it had for its first segment.
    room: usize,
}

/// A copy of a repair that waits to leave.
struct Copy {
    /// The number of the datagram from which on it may leave.
    from: u64,
    segment: Segment,
}

/// One of the two classes.
#[derive(Default)]
struct Class {
    repairs: VecDeque<Segment>,
    copies: VecDeque<Copy>,
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
    /// Repairs of repairs leave twice.
    doubles: bool,
    filling: Filling,
    /// Payload bytes that wait to be sent for the first time, and again.
    unsent: usize,
    repair: usize,
    /// Bytes of all payloads that are kept.
    bytes: usize,
    /// What they cost.
    account: Account,
    pool: BufferPool,
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
            doubles: false,
            filling: Filling {
                physical: u64::MAX,
                room: 0,
            },
            unsent: 0,
            repair: 0,
            bytes: 0,
            account: Account::new(limits.send_bytes),
            pool: BufferPool::new(limits.spare_buffers),
            repaired: 0,
        }
    }

    /// Is there room for a payload of `bytes`?
    pub(crate) fn has_room(&self, bytes: usize) -> bool {
        (self.payloads.len() as u64) < self.window && self.account.has_room(bytes + ENTRY_COST)
    }

    /// What may be held from now on; what is held already stays.
    pub(crate) fn set_limit(&mut self, bytes: usize) {
        self.account.set_limit(bytes);
        self.pool.set_limit(bytes);
    }

    /// Takes a payload that is not empty and for which there `has_room`.
    pub(crate) fn push(&mut self, bytes: Vec<u8>, urgent: bool) {
        debug_assert!(!bytes.is_empty() && self.has_room(bytes.len()));
        let logical = self.base + self.payloads.len() as u64;
        // The peer decides how long it stays: no large buffer for a few bytes.
        let mut bytes = self.pool.fit(bytes);
        if !self.account.has_room(ENTRY_COST + bytes.capacity()) {
            bytes.shrink_to_fit();
        }
        self.unsent += bytes.len();
        self.bytes += bytes.len();
        self.account.charge(ENTRY_COST + bytes.capacity());
        self.class(urgent).fresh.push_back(logical);
        self.payloads.push_back(Payload {
            bytes,
            sent: 0,
            acked: Ranges::default(),
            urgent,
        });
    }

    fn class(&mut self, urgent: bool) -> &mut Class {
        if urgent {
            &mut self.urgent
        } else {
            &mut self.normal
        }
    }

    fn get(&self, logical: u64) -> Option<&Payload> {
        let index = logical.checked_sub(self.base)?;
        self.payloads
            .get(index as usize)
            .filter(|payload| !payload.is_done())
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
    pub(crate) fn bytes(&self) -> usize {
        self.bytes
    }

    /// What they cost, with the lines of what must be sent again, and what spare buffers take.
    pub(crate) fn held(&self) -> usize {
        let lines = |class: &Class| {
            class.repairs.capacity() * size_of::<Segment>()
                + class.copies.capacity() * size_of::<Copy>()
        };
        let lines = lines(&self.urgent) + lines(&self.normal);
        self.account.held() + lines.saturating_sub(BARE) + self.pool.bytes()
    }

    /// On a long fat path repairs of repairs leave twice.
    pub(crate) fn set_doubles(&mut self, doubles: bool) {
        self.doubles = doubles;
    }

    /// Gives back what nobody needs when nothing has moved for a while.
    pub(crate) fn release_idle(&mut self, now: Nanos) {
        self.pool.release_idle(now);
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
        if self.filling.physical != physical {
            self.filling = Filling { physical, room };
        }
        let segment = self.take_next(room, physical)?;
        self.emit(out, segment, physical, at_once);
        if segment.kind == Kind::Often && self.doubles {
            let urgent = self
                .get(segment.logical)
                .is_some_and(|payload| payload.urgent);
            let copy = Copy {
                from: physical + COPY_GAP,
                segment: Segment {
                    kind: Kind::Copy,
                    ..segment
                },
            };
            self.repair += usize::from(segment.length);
            self.class(urgent).copies.push_back(copy);
        }
        Some(segment)
    }

    fn take_next(&mut self, room: usize, physical: u64) -> Option<Segment> {
        for urgent in [true, false] {
            if let Some(segment) = self
                .take_repair(urgent, room)
                .or_else(|| self.take_copy(urgent, room, physical))
            {
                return Some(segment);
            }
            if self.class(urgent).repairs.is_empty()
                && let Some(segment) = self.take_fresh(urgent, room)
            {
                return Some(segment);
            }
            let class = self.class(urgent);
            if !class.repairs.is_empty() || !class.fresh.is_empty() {
                return None;
            }
        }
        // Nothing else waits. But never beside its original.
        let later = physical + COPY_GAP - 1;
        self.take_copy(true, room, later)
            .or_else(|| self.take_copy(false, room, later))
    }

    /// Appends once more a piece that is sent but not acknowledged: a probe's load. The first one
    /// that ends after `after`, or else the oldest: so that probes
    /// in a row repeat different pieces.
    pub(crate) fn emit_oldest(
        &mut self,
        out: &mut Vec<u8>,
        room: usize,
        physical: u64,
        after: Position,
    ) -> Option<Segment> {
        let room = room.checked_sub(DATA_HEADER).filter(|room| *room > 0)?;
        let segment = self
            .unacked_after(after)
            .or_else(|| self.unacked_after(Position::default()))?;
        let segment = Segment {
            length: segment.length.min(u16::try_from(room).unwrap_or(u16::MAX)),
            ..segment
        };
        self.emit(out, segment, physical, true);
        Some(segment)
    }

    /// Appends what is not acknowledged of a segment that left before, if it fits: beside its
    /// original, whose fate decides.
    pub(crate) fn emit_copy(
        &self,
        out: &mut Vec<u8>,
        room: usize,
        physical: u64,
        segment: Segment,
    ) -> Option<Segment> {
        let (offset, length) = self.missing(&segment)?;
        let copy = Segment {
            offset,
            length,
            kind: Kind::Copy,
            ..segment
        };
        if usize::from(length) + DATA_HEADER > room {
            return None;
        }
        self.emit(out, copy, physical, true);
        Some(copy)
    }

    fn unacked_after(&self, after: Position) -> Option<Segment> {
        let Position { logical, offset } = after;
        let first = logical.saturating_sub(self.base) as usize;
        (first..self.payloads.len()).find_map(|index| {
            let payload = &self.payloads[index];
            let number = self.base + index as u64;
            let from = if number == logical {
                offset.min(payload.sent)
            } else {
                0
            };
            let (start, end) = payload
                .acked
                .first_missing(from, payload.sent)
                .filter(|_| !payload.is_done())?;
            let length = u16::try_from(end - start).unwrap_or(u16::MAX);
            Some(Segment {
                logical: number,
                offset: start,
                length,
                kind: Kind::Again,
            })
        })
    }

    fn emit(&self, out: &mut Vec<u8>, segment: Segment, physical: u64, at_once: bool) {
        let payload = &self.payloads[(segment.logical - self.base) as usize];
        let (start, end) = (segment.offset as usize, segment.end() as usize);
        let data = Data {
            at_once,
            protected: false,
            logical: seq::low(segment.logical),
            offset: start,
            size: payload.bytes.len(),
            segment: &payload.bytes[start..end],
        };
        subfield::emit_data(out, &data, physical);
    }

    fn take_repair(&mut self, urgent: bool, room: usize) -> Option<Segment> {
        loop {
            let segment = *self.class(urgent).repairs.front()?;
            let Some((start, missing)) = self.missing(&segment) else {
                // Acknowledged in the meantime: the loss was none.
                self.class(urgent).repairs.pop_front();
                self.repair -= usize::from(segment.length);
                continue;
            };
            let length = piece(usize::from(missing), room)? as u16;
            let next = start + u32::from(length);
            let left = (segment.end() - next) as u16;
            self.repair -= usize::from(segment.length - left);
            let class = self.class(urgent);
            if left == 0 {
                class.repairs.pop_front();
            } else {
                class.repairs[0] = Segment {
                    offset: next,
                    length: left,
                    ..segment
                };
            }
            return Some(Segment {
                offset: start,
                length,
                ..segment
            });
        }
    }

    /// Where in a segment the first bytes begin that are not acknowledged, and how many they are.
    fn missing(&self, segment: &Segment) -> Option<(u32, u16)> {
        let (start, stop) = self
            .get(segment.logical)?
            .acked
            .first_missing(segment.offset, segment.end())?;
        Some((start, (stop - start) as u16))
    }

    /// A copy that may leave in this datagram. It waits for one that has room for all of it; what
    /// would fit into none is given up.
    fn take_copy(&mut self, urgent: bool, room: usize, physical: u64) -> Option<Segment> {
        loop {
            let &Copy { from, segment } = self.class(urgent).copies.front()?;
            let missing = self.missing(&segment);
            if missing.is_some_and(|(_, length)| {
                from > physical || room < usize::from(length).min(self.filling.room)
            }) {
                return None;
            }
            self.class(urgent).copies.pop_front();
            self.repair -= usize::from(segment.length);
            if let Some((offset, length)) = missing {
                self.repaired += 1;
                let length = length.min(u16::try_from(room).unwrap_or(u16::MAX));
                return Some(Segment {
                    offset,
                    length,
                    ..segment
                });
            }
        }
    }

    fn take_fresh(&mut self, urgent: bool, room: usize) -> Option<Segment> {
        let logical = *self.class(urgent).fresh.front()?;
        let payload = &mut self.payloads[(logical - self.base) as usize];
        let left = payload.bytes.len() - payload.sent as usize;
        let length = piece(left, room.min(usize::from(u16::MAX)))?;
        let segment = Segment {
            logical,
            offset: payload.sent,
            length: length as u16,
            kind: Kind::First,
        };
        payload.sent += length as u32;
        self.unsent -= length;
        if length == left {
            self.class(urgent).fresh.pop_front();
        }
        Some(segment)
    }

    /// A segment was lost: it is sent again unless another copy of it was acknowledged.
    pub(crate) fn on_lost(&mut self, segment: Segment) {
        let kind = match segment.kind {
            Kind::First => Kind::Again,
            Kind::Again | Kind::Often => Kind::Often,
            Kind::Copy => return,
        };
        let Some(payload) = self.get(segment.logical) else {
            return;
        };
        if payload.acked.covers(segment.offset, segment.end()) {
            return;
        }
        let urgent = payload.urgent;
        self.repair += usize::from(segment.length);
        self.repaired += 1;
        self.class(urgent)
            .repairs
            .push_back(Segment { kind, ..segment });
    }

    /// A segment arrived. Its payload's buffer becomes spare when all of it has.
    pub(crate) fn on_acked(&mut self, segment: Segment) {
        let Some(index) = segment.logical.checked_sub(self.base) else {
            return;
        };
        let Some(payload) = self
            .payloads
            .get_mut(index as usize)
            .filter(|payload| !payload.is_done())
        else {
            return;
        };
        payload.acked.insert(segment.offset, segment.end());
        if !payload.acked.is_whole(payload.bytes.len() as u32) {
            return;
        }
        let bytes = std::mem::take(&mut payload.bytes);
        payload.acked = Ranges::default();
        self.bytes -= bytes.len();
        self.account.refund(bytes.capacity());
        self.return_buffer(bytes);
        while self.payloads.front().is_some_and(Payload::is_done) {
            self.payloads.pop_front();
            self.account.refund(ENTRY_COST);
            self.base += 1;
        }
        if self.payloads.capacity() > ROOM_LEFT.max(8 * self.payloads.len()) {
            self.payloads.shrink_to(2 * self.payloads.len());
        }
    }

    pub(crate) fn return_buffer(&mut self, buffer: Vec<u8>) {
        self.pool.give(buffer);
    }

    /// A buffer to be filled, used before or new.
    pub(crate) fn take_buffer(&mut self) -> Vec<u8> {
        self.pool.take()
    }

    pub(crate) fn check_invariants(&self) {
        self.account.check_invariants("sender");
        assert!(self.payloads.len() as u64 <= self.window);
        assert!(!self.payloads.front().is_some_and(Payload::is_done));
        assert!(self.unsent <= self.bytes && self.bytes <= self.account.held());
        self.pool.check_invariants();
    }

    /// The expensive part of the invariants: adds everything up.
    pub(crate) fn check_sums(&self) {
        let kept = || self.payloads.iter().filter(|payload| !payload.is_done());
        assert_eq!(
            self.bytes,
            kept().map(|payload| payload.bytes.len()).sum::<usize>()
        );
        let entries = self.payloads.len() * ENTRY_COST;
        assert_eq!(
            self.account.held(),
            entries
                + kept()
                    .map(|payload| payload.bytes.capacity())
                    .sum::<usize>()
        );
        let unsent = |payload: &Payload| payload.bytes.len().saturating_sub(payload.sent as usize);
        assert_eq!(
            self.unsent,
            self.payloads
                .iter()
                .filter(|payload| !payload.is_done())
                .map(unsent)
                .sum::<usize>()
        );
        let segments = |class: &Class| -> usize {
            let copies = class.copies.iter().map(|copy| &copy.segment);
            class
                .repairs
                .iter()
                .chain(copies)
                .map(|segment| usize::from(segment.length))
                .sum()
        };
        assert_eq!(self.repair, segments(&self.urgent) + segments(&self.normal));
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
    use crate::recv::assemble::Assembler;
    use crate::subfield::{Subfield, Subfields};

    fn emit_into(
        queue: &mut Queue,
        out: &mut Vec<u8>,
        size: usize,
        physical: u64,
    ) -> Option<Segment> {
        let room = size - out.len();
        queue.emit_next(out, room, physical, false)
    }

    #[test]
    fn what_is_cut_lost_and_cut_again_arrives_whole() {
        for seed in 0..200 {
            let mut dice = fastrand::Rng::with_seed(seed);
            let limits = Limits {
                first_logical: (1 << 32) - 5,
                ..Limits::default()
            };
            let mut queue = Queue::new(&limits);
            queue.doubles = dice.bool();
            let mut assembler = Assembler::new(&limits);
            let mut sent: Vec<Vec<u8>> = (0..20)
                .map(|_| (0..dice.usize(1..5_000)).map(|_| dice.u8(..)).collect())
                .collect();
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
                    flying.extend(
                        queue
                            .emit_oldest(&mut out, size, physical, Position::default())
                            .map(|segment| (segment, physical)),
                    );
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
            assert_eq!((queue.account.held(), queue.bytes, queue.unsent), (0, 0, 0));
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
        assert!(
            queue.emit_next(&mut out, 60, 0, false).is_none(),
            "a piece too small"
        );
        queue.on_lost(second);
        let again = Segment {
            kind: Kind::Again,
            ..second
        };
        assert_eq!(
            queue.emit_next(&mut out, 5_000, 1, false),
            Some(again),
            "repairs before new data"
        );
    }

    #[test]
    fn what_was_lost_twice_leaves_twice() {
        let mut queue = Queue::new(&Limits::default());
        queue.doubles = true;
        queue.push(vec![1; 20_000], false);
        let next =
            |queue: &mut Queue, physical| queue.emit_next(&mut Vec::new(), 1_018, physical, false);
        let first = next(&mut queue, 0).unwrap();
        queue.on_lost(first);
        let again = next(&mut queue, 1).unwrap();
        assert_eq!(
            again,
            Segment {
                kind: Kind::Again,
                ..first
            }
        );
        queue.on_lost(again);
        let often = next(&mut queue, 2).unwrap();
        assert_eq!(
            often,
            Segment {
                kind: Kind::Often,
                ..first
            }
        );
        let others: Vec<Kind> = (3..10)
            .map(|physical| next(&mut queue, physical).unwrap().kind)
            .collect();
        assert_eq!(
            others,
            [Kind::First; 7],
            "a copy leaves some datagrams later"
        );
        let copy = next(&mut queue, 10).unwrap();
        assert_eq!(
            copy,
            Segment {
                kind: Kind::Copy,
                ..first
            }
        );
        queue.on_lost(copy);
        assert_eq!(
            next(&mut queue, 11).unwrap().kind,
            Kind::First,
            "its loss means nothing"
        );
        queue.on_lost(often);
        assert_eq!(next(&mut queue, 12), Some(often));
        queue.on_acked(copy);
        while next(&mut queue, 13).is_some() {}
        assert_eq!(queue.waiting(), 0, "the second copy is not needed any more");
        queue.check_sums();
    }
}
