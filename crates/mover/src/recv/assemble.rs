//! Puts the segments of payloads together and hands each payload up once, as soon as it is whole, in any order.
//!
//! From `mover.rs` come the data subfields of authenticated datagrams; whole payloads go to whoever polls. What is not whole
//! or not fetched costs memory, which is bounded: a segment that would exceed the bound is refused, and the datagram that
//! carried it is then not acknowledged, so it comes again.

use std::collections::VecDeque;

use crate::config::Limits;
use crate::packet::Data;
use crate::ranges::Ranges;
use crate::seq;

/// What became of a segment.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Taken {
    /// Stored; some of its bytes were new.
    New,
    /// All its bytes were there, or its whole payload was handed up before.
    Known,
    /// No memory for another payload now, or a logical number outside the window: do not acknowledge.
    Refused,
    /// It contradicts what came before: another size of the same payload.
    Wrong,
}

#[derive(Default)]
enum Slot {
    #[default]
    Empty,
    Partial(Partial),
    Done,
}

struct Partial {
    bytes: Vec<u8>,
    size: u32,
    there: Ranges,
}

/// The receiver's payloads.
pub(crate) struct Assembler {
    /// `slots[0]` is the payload with logical number `base`: the lowest that is not done.
    slots: VecDeque<Slot>,
    base: u64,
    window: u64,
    ready: VecDeque<Vec<u8>>,
    /// Bytes of all payloads begun and not fetched, by their full size.
    held: usize,
    limit: usize,
    /// What was held when the limit was lowered last: held may be above the limit up to this, and only shrinks.
    held_before: usize,
    max_held: usize,
    /// Buffers given back, to be filled again.
    spare: Vec<Vec<u8>>,
    spare_limit: usize,
    delivered_bytes: u64,
    delivered: u64,
}

impl Assembler {
    pub(crate) fn new(limits: &Limits) -> Assembler {
        Assembler {
            slots: VecDeque::new(),
            base: limits.first_logical,
            window: limits.logical_window,
            ready: VecDeque::new(),
            held: 0,
            limit: limits.reassembly_bytes,
            held_before: 0,
            max_held: 0,
            spare: Vec::new(),
            spare_limit: limits.spare_buffers,
            delivered_bytes: 0,
            delivered: 0,
        }
    }

    /// Takes one segment; the parser has made sure that it lies inside its payload.
    pub(crate) fn handle_segment(&mut self, data: &Data<'_>) -> Taken {
        let logical = seq::recover(self.base, data.logical);
        if logical < self.base {
            // Far below the window it may as well be far above: the low 32 bits cannot tell, and it is handed up in no case.
            return if self.base - logical <= self.window { Taken::Known } else { Taken::Refused };
        }
        let index = logical - self.base;
        if index >= self.window {
            return Taken::Refused;
        }
        let index = index as usize;
        if index >= self.slots.len() {
            self.slots.resize_with(index + 1, Slot::default);
        }
        if matches!(self.slots[index], Slot::Empty) {
            if self.held + data.size > self.limit {
                return Taken::Refused;
            }
            self.held += data.size;
            self.max_held = self.max_held.max(self.held);
            let bytes = self.spare.pop().unwrap_or_default();
            self.slots[index] = Slot::Partial(Partial { bytes, size: data.size as u32, there: Ranges::default() });
        }
        let Slot::Partial(partial) = &mut self.slots[index] else {
            return Taken::Known;
        };
        let taken = partial.store(data);
        if partial.there.is_whole(partial.size) {
            self.hand_up(index);
        }
        taken
    }

    fn hand_up(&mut self, index: usize) {
        let Slot::Partial(partial) = std::mem::replace(&mut self.slots[index], Slot::Done) else {
            unreachable!("the caller has just looked at it");
        };
        self.delivered += 1;
        self.delivered_bytes += u64::from(partial.size);
        self.ready.push_back(partial.bytes);
        while matches!(self.slots.front(), Some(Slot::Done)) {
            self.slots.pop_front();
            self.base += 1;
        }
    }

    pub(crate) fn poll_payload(&mut self) -> Option<Vec<u8>> {
        let payload = self.ready.pop_front()?;
        self.held -= payload.len();
        Some(payload)
    }

    /// What may be held from now on; what has begun can still end.
    pub(crate) fn set_limit(&mut self, bytes: usize) {
        self.limit = bytes;
        self.held_before = self.held;
    }

    /// Takes back a buffer to be filled again.
    pub(crate) fn recycle(&mut self, buffer: Vec<u8>) {
        if self.spare.len() < self.spare_limit {
            self.spare.push(buffer);
        }
    }

    /// Bytes of payloads begun and not fetched.
    pub(crate) fn held(&self) -> usize {
        self.held
    }

    pub(crate) fn max_held(&self) -> usize {
        self.max_held
    }

    /// Payloads handed up, and their bytes.
    pub(crate) fn delivered(&self) -> (u64, u64) {
        (self.delivered, self.delivered_bytes)
    }

    pub(crate) fn check_invariants(&self) {
        assert!(self.held <= self.limit.max(self.held_before), "receiver holds {} of {} bytes", self.held, self.limit);
        assert!(self.slots.len() as u64 <= self.window);
        assert!(!matches!(self.slots.front(), Some(Slot::Done)), "done payloads leave the window at once");
    }

    /// The expensive part of the invariants: adds everything up.
    pub(crate) fn check_sums(&self) {
        let partial =
            self.slots.iter().map(|slot| if let Slot::Partial(partial) = slot { partial.size as usize } else { 0 });
        let ready = self.ready.iter().map(Vec::len);
        assert_eq!(self.held, partial.sum::<usize>() + ready.sum::<usize>());
    }
}

impl Partial {
    fn store(&mut self, data: &Data<'_>) -> Taken {
        if data.size != self.size as usize {
            return Taken::Wrong;
        }
        let (start, end) = (data.offset, data.offset + data.segment.len());
        if !self.there.insert(start as u32, end as u32) {
            return Taken::Known;
        }
        if self.there.pieces() == 1 && self.bytes.capacity() == 0 {
            self.bytes.reserve_exact(data.size);
        }
        // A used buffer keeps its old content until overwritten; only growth over a gap must be filled.
        if self.bytes.len() > data.size {
            self.bytes.truncate(data.size);
        }
        if start == self.bytes.len() {
            self.bytes.extend_from_slice(data.segment);
        } else {
            if self.bytes.len() < end {
                self.bytes.resize(end, 0);
            }
            self.bytes[start..end].copy_from_slice(data.segment);
        }
        Taken::New
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn limits() -> Limits {
        Limits { reassembly_bytes: 100_000, logical_window: 64, first_logical: (1 << 32) - 20, ..Limits::default() }
    }

    #[test]
    fn every_payload_comes_out_once_and_whole() {
        for seed in 0..200 {
            let mut dice = fastrand::Rng::with_seed(seed);
            let first = limits().first_logical;
            let payloads: Vec<Vec<u8>> =
                (0..40).map(|_| (0..dice.usize(1..1_000)).map(|_| dice.u8(..)).collect()).collect();
            let mut segments = Vec::new();
            for (number, payload) in payloads.iter().enumerate() {
                // Two different cuts of the same payload, as after a change of the path's datagram size.
                for _ in 0..2 {
                    let mut at = 0;
                    while at < payload.len() {
                        let length = dice.usize(1..=200).min(payload.len() - at);
                        segments.push((first + number as u64, at, length));
                        at += length;
                    }
                }
            }
            dice.shuffle(&mut segments);
            let mut assembler = Assembler::new(&limits());
            let mut came = Vec::new();
            for (logical, offset, length) in segments {
                let payload = &payloads[(logical - first) as usize];
                let segment = &payload[offset..offset + length];
                let data = Data {
                    at_once: false,
                    protected: false,
                    logical: seq::low(logical),
                    offset,
                    size: payload.len(),
                    segment,
                };
                assert!(matches!(assembler.handle_segment(&data), Taken::New | Taken::Known), "seed {seed}");
                assembler.check_invariants();
                assembler.check_sums();
                while let Some(payload) = assembler.poll_payload() {
                    if dice.bool() {
                        assembler.recycle(payload.clone());
                    }
                    came.push(payload);
                }
            }
            let mut sent = payloads.clone();
            came.sort();
            sent.sort();
            assert!(came == sent, "seed {seed}");
            assert_eq!((assembler.held(), assembler.slots.len()), (0, 0));
        }
    }

    #[test]
    fn what_exceeds_the_bounds_is_refused_and_what_began_can_still_end() {
        let mut assembler = Assembler::new(&Limits { reassembly_bytes: 100, first_logical: 0, ..limits() });
        let segment = [1; 50];
        let data =
            |logical, offset| Data { at_once: false, protected: false, logical, offset, size: 100, segment: &segment };
        assert_eq!(assembler.handle_segment(&data(1, 0)), Taken::New);
        assert_eq!(assembler.handle_segment(&data(0, 0)), Taken::Refused, "no memory");
        assert_eq!(assembler.handle_segment(&data(64, 0)), Taken::Refused, "beyond the window");
        assert_eq!(assembler.handle_segment(&Data { size: 99, ..data(1, 0) }), Taken::Wrong);
        assert_eq!(assembler.handle_segment(&data(1, 50)), Taken::New);
        assert_eq!(assembler.handle_segment(&data(0, 0)), Taken::Refused, "not fetched yet");
        assert_eq!(assembler.poll_payload().map(|payload| payload.len()), Some(100));
        assert_eq!(assembler.handle_segment(&data(0, 0)), Taken::New);
        assert_eq!(assembler.handle_segment(&data(1, 50)), Taken::Known);
    }
}
