//! Puts the segments of payloads together and hands each payload up once, as soon as it is whole,
//! in any order.
//!
//! From `receiver.rs` come the data subfields of authenticated datagrams; whole payloads go to
//! whoever polls. What is not whole or not fetched costs memory, which is bounded: it is charged
//! with what is allocated for it, before it is, and a segment that would exceed the bound is
//! refused. The datagram that carried it is then not acknowledged, so it comes again.

use std::collections::{BTreeMap, VecDeque};

use crate::account::Account;
use crate::buffer_pool::BufferPool;
use crate::config::Limits;
use crate::ranges::Ranges;
use crate::seq;
use crate::subfield::Data;
use crate::timer::Nanos;

/// What a payload costs that is not whole or not fetched, beside its buffer: its entry in the tree,
/// whose nodes may be half empty, and the allocator's own. Bytes.
pub(crate) const ENTRY_COST: usize = 256;
/// Pieces of one payload that do not touch each other, at most: as many as a payload of 256 KiB has
/// in datagrams of 512 bytes when every second one is lost. Another piece is refused until gaps
/// close, so that noting a segment never moves more than 4 KiB of entries.
const MOST_PIECES: usize = 512;

/// What became of a segment.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Taken {
    /// Stored; some of its bytes were new.
    New,
    /// All its bytes were there, or its whole payload was handed up before.
    Known,
    /// No memory for it now, or a logical number outside the window: do not acknowledge.
    Refused,
    /// It contradicts what came before: another size of the same payload.
    Wrong,
}

struct Partial {
    bytes: Vec<u8>,
    size: u32,
    there: Ranges,
}

impl Partial {
    /// What is allocated for it.
    fn cost(&self) -> usize {
        ENTRY_COST + self.bytes.capacity() + self.there.held()
    }
}

/// The receiver's payloads.
pub(crate) struct Assembler {
    /// By logical number, all from `base` on.
    partial: BTreeMap<u64, Partial>,
    done: Done,
    /// The lowest logical number that is not done.
    base: u64,
    window: u64,
    ready: VecDeque<Vec<u8>>,
    /// What all payloads cost that were begun and not fetched.
    account: Account,
    pool: BufferPool,
    delivered_bytes: u64,
    delivered: u64,
    /// Entries of pieces that were moved or could have been.
    walked: u64,
}

impl Assembler {
    pub(crate) fn new(limits: &Limits) -> Assembler {
        Assembler {
            partial: BTreeMap::new(),
            done: Done::new(limits.logical_window),
            base: limits.first_logical,
            window: limits.logical_window,
            ready: VecDeque::new(),
            account: Account::new(limits.reassembly_bytes),
            pool: BufferPool::new(limits.spare_buffers),
            delivered_bytes: 0,
            delivered: 0,
            walked: 0,
        }
    }

    /// Takes one segment; the parser has made sure that it lies inside its payload.
    pub(crate) fn handle_segment(&mut self, data: &Data<'_>) -> Taken {
        let logical = seq::recover(self.base, data.logical);
        if logical < self.base {
            // Far below the window it may as well be far above: the low 32 bits cannot tell, and it
            // is handed up in no case.
            return if self.base - logical <= self.window {
                Taken::Known
            } else {
                Taken::Refused
            };
        }
        if logical - self.base >= self.window {
            return Taken::Refused;
        }
        if self.done.contains(logical) {
            return Taken::Known;
        }
        if data.segment.len() == data.size && !self.partial.contains_key(&logical) {
            return self.take_whole(logical, data);
        }
        self.take_piece(logical, data)
    }

    /// A payload of one segment needs no entry.
    fn take_whole(&mut self, logical: u64, data: &Data<'_>) -> Taken {
        let Some(mut bytes) = self.open(data.size) else {
            return Taken::Refused;
        };
        bytes.clear();
        bytes.extend_from_slice(data.segment);
        self.hand_up(logical, bytes);
        Taken::New
    }

    fn take_piece(&mut self, logical: u64, data: &Data<'_>) -> Taken {
        if let Some(taken) = self.add_piece(logical, data) {
            return taken;
        }
        let Some(bytes) = self.open(data.size) else {
            return Taken::Refused;
        };
        self.partial.insert(
            logical,
            Partial {
                bytes,
                size: data.size as u32,
                there: Ranges::default(),
            },
        );
        self.add_piece(logical, data).expect("it is there since")
    }

    /// Adds a segment to a payload that has begun.
    fn add_piece(&mut self, logical: u64, data: &Data<'_>) -> Option<Taken> {
        let partial = self.partial.get_mut(&logical)?;
        let before = partial.cost();
        self.walked += partial.there.pieces().saturating_sub(1) as u64;
        let taken = partial.store(data, self.account.room());
        self.account.charge(partial.cost() - before);
        if partial.there.is_whole(partial.size)
            && let Some(Partial { bytes, there, .. }) = self.partial.remove(&logical)
        {
            self.account.refund(there.held());
            self.hand_up(logical, bytes);
        }
        Some(taken)
    }

    /// A buffer for a payload of `size` bytes, charged; none beyond the limit.
    fn open(&mut self, size: usize) -> Option<Vec<u8>> {
        if !self.account.has_room(ENTRY_COST + size) {
            return None;
        }
        let bytes = self.pool.take_for(size);
        let cost = ENTRY_COST + bytes.capacity();
        if !self.account.has_room(cost) {
            self.pool.give(bytes);
            return None;
        }
        self.account.charge(cost);
        Some(bytes)
    }

    fn hand_up(&mut self, logical: u64, bytes: Vec<u8>) {
        self.delivered += 1;
        self.delivered_bytes += bytes.len() as u64;
        self.ready.push_back(bytes);
        self.done.insert(logical);
        while self.done.take(self.base) {
            self.base += 1;
        }
    }

    pub(crate) fn poll_payload(&mut self) -> Option<Vec<u8>> {
        let payload = self.ready.pop_front()?;
        self.account.refund(ENTRY_COST + payload.capacity());
        Some(payload)
    }

    /// What may be held from now on; what has begun can still end.
    pub(crate) fn set_limit(&mut self, bytes: usize) {
        self.account.set_limit(bytes);
        self.pool.set_limit(bytes);
    }

    /// Takes back a buffer to be filled again.
    pub(crate) fn recycle(&mut self, buffer: Vec<u8>) {
        self.pool.give(buffer);
    }

    /// Spare buffers that nobody needs are given back.
    pub(crate) fn release_idle(&mut self, now: Nanos) {
        self.pool.release_idle(now);
    }

    /// What payloads cost that were begun and not fetched.
    pub(crate) fn held(&self) -> usize {
        self.account.held()
    }

    /// Bytes of spare buffers.
    pub(crate) fn spare_bytes(&self) -> usize {
        self.pool.bytes()
    }

    /// Entries of pieces that were moved or could have been.
    pub(crate) fn walked(&self) -> u64 {
        self.walked
    }

    pub(crate) fn max_held(&self) -> usize {
        self.account.most()
    }

    /// Payloads handed up, and their bytes.
    pub(crate) fn delivered(&self) -> (u64, u64) {
        (self.delivered, self.delivered_bytes)
    }

    pub(crate) fn check_invariants(&self) {
        self.account.check_invariants("receiver");
        assert!(
            !self.done.contains(self.base),
            "the window begins with what is not done"
        );
        self.pool.check_invariants();
    }

    /// The expensive part of the invariants: adds everything up.
    pub(crate) fn check_sums(&self) {
        assert!(
            self.partial
                .keys()
                .all(|logical| (self.base..self.base + self.window).contains(logical))
        );
        assert!(
            self.partial
                .values()
                .all(|partial| partial.there.pieces() <= MOST_PIECES)
        );
        let partial = self.partial.values().map(Partial::cost);
        let ready = self
            .ready
            .iter()
            .map(|payload| ENTRY_COST + payload.capacity());
        assert_eq!(
            self.account.held(),
            partial.sum::<usize>() + ready.sum::<usize>()
        );
    }
}

impl Partial {
    /// `room`: bytes that its pieces may still cost.
    fn store(&mut self, data: &Data<'_>, room: usize) -> Taken {
        if data.size != self.size as usize {
            return Taken::Wrong;
        }
        let (start, end) = (data.offset, data.offset + data.segment.len());
        let (from, to) = (start as u32, end as u32);
        if self.there.covers(from, to) {
            return Taken::Known;
        }
        if self.there.is_apart(from, to)
            && (self.there.pieces() == MOST_PIECES || self.there.growth() > room)
        {
            return Taken::Refused;
        }
        self.there.insert(from, to);
        // A used buffer keeps its old content until overwritten; only growth over a gap must be
        // filled.
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

/// Which payloads of the window were handed up: one bit each.
struct Done(Box<[u64]>);

impl Done {
    fn new(window: u64) -> Done {
        Done(vec![0; window.div_ceil(64) as usize + 1].into_boxed_slice())
    }

    fn place(&self, logical: u64) -> (usize, u64) {
        (
            (logical / 64 % self.0.len() as u64) as usize,
            1 << (logical % 64),
        )
    }

    fn contains(&self, logical: u64) -> bool {
        let (word, bit) = self.place(logical);
        self.0[word] & bit != 0
    }

    fn insert(&mut self, logical: u64) {
        let (word, bit) = self.place(logical);
        self.0[word] |= bit;
    }

    /// Whether it was there; it no longer is.
    fn take(&mut self, logical: u64) -> bool {
        let (word, bit) = self.place(logical);
        let there = self.0[word] & bit != 0;
        self.0[word] &= !bit;
        there
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn limits() -> Limits {
        Limits {
            reassembly_bytes: 100_000,
            logical_window: 64,
            first_logical: (1 << 32) - 20,
            ..Limits::default()
        }
    }

    #[test]
    fn every_payload_comes_out_once_and_whole() {
        for seed in 0..200 {
            let mut dice = fastrand::Rng::with_seed(seed);
            let first = limits().first_logical;
            let payloads: Vec<Vec<u8>> = (0..40)
                .map(|_| (0..dice.usize(1..1_000)).map(|_| dice.u8(..)).collect())
                .collect();
            let mut segments = Vec::new();
            for (number, payload) in payloads.iter().enumerate() {
                // Two different cuts of the same payload, as after a change of the path's datagram
                // size.
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
                assert!(
                    matches!(assembler.handle_segment(&data), Taken::New | Taken::Known),
                    "seed {seed}"
                );
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
            assert_eq!((assembler.held(), assembler.partial.len()), (0, 0));
        }
    }

    #[test]
    fn what_exceeds_the_bounds_is_refused_and_what_began_can_still_end() {
        let mut assembler = Assembler::new(&Limits {
            reassembly_bytes: 100 + ENTRY_COST,
            first_logical: 0,
            ..limits()
        });
        let segment = [1; 50];
        let data = |logical, offset| Data {
            at_once: false,
            protected: false,
            logical,
            offset,
            size: 100,
            segment: &segment,
        };
        assert_eq!(assembler.handle_segment(&data(1, 0)), Taken::New);
        assert_eq!(
            assembler.handle_segment(&data(0, 0)),
            Taken::Refused,
            "no memory"
        );
        assert_eq!(
            assembler.handle_segment(&data(64, 0)),
            Taken::Refused,
            "beyond the window"
        );
        assert_eq!(
            assembler.handle_segment(&Data {
                size: 99,
                ..data(1, 0)
            }),
            Taken::Wrong
        );
        assert_eq!(assembler.handle_segment(&data(1, 50)), Taken::New);
        assert_eq!(
            assembler.handle_segment(&data(0, 0)),
            Taken::Refused,
            "not fetched yet"
        );
        assert_eq!(
            assembler.poll_payload().map(|payload| payload.len()),
            Some(100)
        );
        assert_eq!(assembler.handle_segment(&data(0, 0)), Taken::New);
        assert_eq!(assembler.handle_segment(&data(1, 50)), Taken::Known);
    }

    /// One segment of a payload at the far end of the window costs what it is, not an entry for
    /// each number before it.
    #[test]
    fn a_far_segment_costs_one_entry() {
        let limits = Limits {
            reassembly_bytes: 2_000,
            logical_window: 1 << 20,
            first_logical: 0,
            ..Limits::default()
        };
        let mut assembler = Assembler::new(&limits);
        let data = |logical| Data {
            at_once: false,
            protected: false,
            logical,
            offset: 0,
            size: 2,
            segment: &[7],
        };
        assert_eq!(assembler.handle_segment(&data((1 << 20) - 1)), Taken::New);
        assert!(
            assembler.held() < 2 * ENTRY_COST && assembler.partial.len() == 1,
            "{}",
            assembler.held()
        );
        let taken = (0..1_000)
            .filter(|logical| assembler.handle_segment(&data(*logical)) == Taken::New)
            .count();
        assert!(taken < 2_000 / ENTRY_COST, "{taken} begun with 2,000 bytes");
        assembler.check_invariants();
        assembler.check_sums();
    }

    /// One-byte pieces with gaps: charged, few, and the payload still becomes whole when the gaps
    /// are filled in any order.
    #[test]
    fn single_bytes_with_gaps_are_few_and_charged() {
        let mut assembler = Assembler::new(&Limits {
            first_logical: 0,
            ..Limits::default()
        });
        let size = 256 << 10;
        let data = |offset| Data {
            at_once: false,
            protected: false,
            logical: 0,
            offset,
            size,
            segment: &[7],
        };
        let taken = (0..size / 2)
            .filter(|at| assembler.handle_segment(&data(2 * at)) == Taken::New)
            .count();
        assert_eq!(taken, MOST_PIECES);
        assert!(
            assembler.held() >= size + (MOST_PIECES - 1) * 8,
            "{}",
            assembler.held()
        );
        let mut at = 0;
        while assembler.delivered().0 == 0 {
            assembler.handle_segment(&data(at % size));
            at += 1;
            assert!(
                at <= 4 * size,
                "what was refused is taken when it comes again"
            );
        }
        assert_eq!(
            assembler.poll_payload().map(|payload| payload.len()),
            Some(size)
        );
        assembler.check_sums();
        // Without memory for the pieces' own entries there are none.
        let limit = ENTRY_COST + 1_000 + 32;
        let mut assembler = Assembler::new(&Limits {
            first_logical: 0,
            reassembly_bytes: limit,
            ..Limits::default()
        });
        let data = |offset| Data {
            size: 1_000,
            ..data(offset)
        };
        let taken = (0..500)
            .filter(|at| assembler.handle_segment(&data(2 * at)) == Taken::New)
            .count();
        assert_eq!(taken, 5, "the first one in place and four beside it");
        assembler.check_invariants();
    }
}
