//! Puts a flow's arriving data in order, and keeps it until the application has taken it.
//!
//! Payloads arrive in any order, each exactly once. So a flow's bytes come as pieces that never
//! overlap; a piece at the end of what is there goes to the queue that the edge writes from, an
//! early one waits beside it. What is kept is charged with what it costs, bookkeeping included, so
//! that a sum of charges is a promise about memory.

use std::{
    collections::{BTreeMap, VecDeque},
    fmt,
    io::IoSlice,
    ops::Range,
};

use super::sequence::full_offset;
use crate::{
    config::{CHUNK_COST, EARLY_COST, MAX_SLICES, SMALL_CHUNK, SMALL_PIECE},
    error::Breach,
};

/// Pieces for which room is kept: 32. More is given back when most of it is empty.
const ROOM_LEFT: usize = 32;

/// The receiving direction of a flow.
#[derive(Debug, Default)]
pub(crate) struct Incoming {
    /// Offset up to which everything has arrived.
    next: u64,
    /// Offset up to which the application has taken it.
    delivered: u64,
    /// Offset of the end, once it is known.
    fin: Option<u64>,
    /// Only while there is something in it: an idle flow has none.
    queue: Option<Box<Queue>>,
}

#[derive(Debug, Default)]
struct Queue {
    /// In order, from `delivered` to `next`.
    ready: VecDeque<Chunk>,
    /// By offset, all beyond `next`.
    early: BTreeMap<u64, Chunk>,
    /// What all chunks cost.
    held: usize,
}

/// A piece of data and how much of it has been taken.
pub(crate) struct Chunk {
    body: Body,
    taken: usize,
}

/// What applications say to each other is shown to nobody.
impl fmt::Debug for Chunk {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Chunk({} bytes)", self.len())
    }
}

enum Body {
    /// A whole payload, most of which is this piece: nothing is copied.
    Whole(Vec<u8>, Range<usize>),
    /// Copied out of a payload, so as not to keep all of it for a few bytes.
    Copied(Vec<u8>),
}

impl Chunk {
    /// Whether a piece of a payload should take all of it: it is most of it.
    pub(crate) fn deserves(payload: usize, piece: usize) -> bool {
        piece >= SMALL_PIECE && piece * 2 >= payload
    }

    /// The bytes of `payload` in `range`, which is most of it.
    pub(crate) fn whole(payload: Vec<u8>, range: Range<usize>) -> Chunk {
        Chunk {
            body: Body::Whole(payload, range),
            taken: 0,
        }
    }

    pub(crate) fn copied(bytes: &[u8]) -> Chunk {
        Chunk {
            body: Body::Copied(bytes.to_vec()),
            taken: 0,
        }
    }

    fn bytes(&self) -> &[u8] {
        let all = match &self.body {
            Body::Whole(payload, range) => &payload[range.clone()],
            Body::Copied(bytes) => bytes.as_slice(),
        };
        &all[self.taken..]
    }

    fn len(&self) -> usize {
        self.bytes().len()
    }

    /// A chunk costs what it keeps from being freed, whether or not some of it has been taken.
    fn cost(&self) -> usize {
        CHUNK_COST
            + match &self.body {
                Body::Whole(bytes, _) | Body::Copied(bytes) => bytes.capacity(),
            }
    }

    /// Takes a small chunk in, if both are small.
    fn absorb(&mut self, other: &Chunk) -> bool {
        let Body::Copied(bytes) = &mut self.body else {
            return false;
        };
        let fits = other.len() < SMALL_PIECE && bytes.len() + other.len() <= SMALL_CHUNK;
        if fits {
            bytes.extend_from_slice(other.bytes());
        }
        fits
    }
}

impl Queue {
    fn push(&mut self, chunk: Chunk) {
        if let Some(last) = self.ready.back_mut() {
            let before = last.cost();
            if last.absorb(&chunk) {
                self.held += last.cost() - before;
                return;
            }
        }
        self.held += chunk.cost();
        self.ready.push_back(chunk);
    }
}

impl Incoming {
    /// Offset up to which everything has arrived.
    pub(crate) fn next(&self) -> u64 {
        self.next
    }

    pub(crate) fn delivered(&self) -> u64 {
        self.delivered
    }

    pub(crate) fn deliverable_bytes(&self) -> usize {
        (self.next - self.delivered) as usize
    }

    /// What it costs to keep what is here.
    pub(crate) fn held(&self) -> usize {
        self.queue.as_ref().map_or(0, |queue| queue.held)
    }

    /// Whether the end of the direction has been heard of.
    pub(crate) fn fin_known(&self) -> bool {
        self.fin.is_some()
    }

    /// Whether the direction has ended and everything was taken.
    pub(crate) fn finished(&self) -> bool {
        self.fin == Some(self.delivered)
    }

    /// Whether it fits what has arrived that the far side sent `at` bytes in all.
    pub(crate) fn may_end_at(&self, at: u64) -> bool {
        at >= self.end() && self.fin.is_none_or(|fin| at == fin)
    }

    /// Offset behind the last byte that is here.
    pub(crate) fn end(&self) -> u64 {
        let early = self
            .queue
            .as_ref()
            .and_then(|queue| queue.early.last_key_value());
        early.map_or(self.next, |(at, chunk)| at + chunk.len() as u64)
    }

    /// The offset that a sequence number on the wire means.
    pub(crate) fn offset_of(&self, sequence: u32) -> Option<u64> {
        full_offset(self.next, sequence)
    }

    /// Takes a piece of data (possibly none) that starts at `offset`, and that ends the direction
    /// if `fin`. `granted` is the credit, up to which the far side may have sent. After an error
    /// nothing has changed.
    pub(crate) fn insert(
        &mut self,
        offset: u64,
        chunk: Chunk,
        fin: bool,
        granted: u64,
    ) -> Result<(), Breach> {
        let length = chunk.len();
        let end = offset + length as u64;
        self.check(offset, end, fin, granted)?;
        if fin {
            self.fin = Some(end);
        }
        if length == 0 {
            return Ok(());
        }
        let queue = self.queue.get_or_insert_default();
        if offset > self.next {
            queue.held += EARLY_COST + chunk.cost();
            queue.early.insert(offset, chunk);
            return Ok(());
        }
        queue.push(chunk);
        self.next = end;
        while let Some(entry) = queue.early.first_entry() {
            if *entry.key() != self.next {
                break;
            }
            let chunk = entry.remove();
            self.next += chunk.len() as u64;
            queue.held -= EARLY_COST + chunk.cost();
            queue.push(chunk);
        }
        Ok(())
    }

    fn check(&self, offset: u64, end: u64, fin: bool, granted: u64) -> Result<(), Breach> {
        if end > granted {
            return Err(Breach::BeyondCredit);
        }
        let past_end = self.fin.is_some_and(|at| end > at || fin);
        if past_end || (fin && end < self.end()) {
            return Err(Breach::BeyondEnd);
        }
        if end == offset {
            return Ok(());
        }
        let overlaps_early = || {
            let before = self.queue.as_ref()?.early.range(..end).next_back()?;
            Some(before.0 + before.1.len() as u64 > offset)
        };
        if offset < self.next || overlaps_early() == Some(true) {
            Err(Breach::Overlap)
        } else {
            Ok(())
        }
    }

    /// The bytes that wait for the application, oldest first.
    pub(crate) fn deliverable<'a>(&'a self, slices: &mut Vec<IoSlice<'a>>) {
        if let Some(queue) = &self.queue {
            slices.extend(
                queue
                    .ready
                    .iter()
                    .take(MAX_SLICES)
                    .map(|chunk| IoSlice::new(chunk.bytes())),
            );
        }
    }

    /// The application took the oldest `n` bytes. Payloads that were used up go to `spent`.
    pub(crate) fn take(&mut self, n: usize, spent: &mut Vec<Vec<u8>>) {
        assert!(
            n <= self.deliverable_bytes(),
            "{n} bytes taken where {} were given",
            self.deliverable_bytes()
        );
        self.delivered += n as u64;
        let Some(queue) = &mut self.queue else { return };
        let mut left = n;
        while left > 0 {
            let front = queue
                .ready
                .front_mut()
                .expect("bytes before `next` are in the queue");
            if left < front.len() {
                front.taken += left;
                break;
            }
            left -= front.len();
            queue.held -= front.cost();
            if let Some(Chunk {
                body: Body::Whole(payload, _),
                ..
            }) = queue.ready.pop_front()
            {
                spent.push(payload);
            }
        }
        if queue.ready.is_empty() && queue.early.is_empty() {
            self.queue = None;
        } else if queue.ready.capacity() > ROOM_LEFT.max(4 * queue.ready.len()) {
            queue.ready.shrink_to(2 * queue.ready.len());
        }
    }

    pub(crate) fn check_invariants(&self) {
        assert!(self.delivered <= self.next, "delivered more than arrived");
        assert!(
            self.fin.is_none_or(|fin| self.end() <= fin),
            "data beyond the end"
        );
        let Some(queue) = &self.queue else {
            assert_eq!(self.delivered, self.next, "bytes are missing");
            return;
        };
        assert!(
            !(queue.ready.is_empty() && queue.early.is_empty()),
            "an empty queue is kept"
        );
        let ready: usize = queue.ready.iter().map(Chunk::len).sum();
        assert_eq!(
            ready,
            self.deliverable_bytes(),
            "the queue holds what its offsets say"
        );
        let chunks = queue.ready.iter().chain(queue.early.values());
        let held = chunks.map(Chunk::cost).sum::<usize>() + EARLY_COST * queue.early.len();
        assert_eq!(held, queue.held, "the charge is the sum of the costs");
        let mut end = self.next;
        for (at, chunk) in &queue.early {
            assert!(
                *at > self.next && *at >= end,
                "early data is in order and beyond a gap"
            );
            end = at + chunk.len() as u64;
        }
    }

    #[cfg(test)]
    pub(crate) fn start_at(&mut self, offset: u64) {
        self.next += offset;
        self.delivered += offset;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chunk(bytes: &[u8]) -> Chunk {
        if Chunk::deserves(bytes.len(), bytes.len()) {
            Chunk::whole(bytes.to_vec(), 0..bytes.len())
        } else {
            Chunk::copied(bytes)
        }
    }

    fn drain(incoming: &mut Incoming, random: &mut fastrand::Rng) -> Vec<u8> {
        let mut slices = Vec::new();
        incoming.deliverable(&mut slices);
        let all: Vec<u8> = slices
            .iter()
            .flat_map(|slice| slice.iter().copied())
            .collect();
        let n = random.usize(0..=all.len());
        incoming.take(n, &mut Vec::new());
        all[..n].to_vec()
    }

    /// Pieces of any sizes in any order, taken in any portions: what comes out is what went in.
    #[test]
    fn any_order_comes_out_in_order() {
        for seed in 0..500 {
            let random = &mut fastrand::Rng::with_seed(seed);
            let total = random.usize(0..20_000);
            let content: Vec<u8> = (0..total).map(|_| random.u8(..)).collect();
            let mut pieces = Vec::new();
            let mut at = 0;
            while at < total {
                let small = random.bool();
                let length = random
                    .usize(1..if small { 40 } else { 4000 })
                    .min(total - at);
                pieces.push(at..at + length);
                at += length;
            }
            let last = pieces.len();
            pieces.push(total..total);
            random.shuffle(&mut pieces);
            let mut incoming = Incoming::default();
            let mut out = Vec::new();
            for piece in &pieces {
                let fin = piece.is_empty() || (last > 0 && piece.end == total && pieces.len() == 1);
                incoming
                    .insert(
                        piece.start as u64,
                        chunk(&content[piece.clone()]),
                        fin,
                        total as u64,
                    )
                    .unwrap();
                incoming.check_invariants();
                if random.bool() {
                    out.extend(drain(&mut incoming, random));
                    incoming.check_invariants();
                }
            }
            while incoming.deliverable_bytes() > 0 {
                out.extend(drain(&mut incoming, random));
            }
            assert!(out == content, "seed {seed}");
            assert!(
                incoming.finished() && incoming.queue.is_none(),
                "seed {seed}"
            );
        }
    }

    /// Against a set of bytes: an insertion is refused exactly if it overlaps, is beyond the credit
    /// or beyond the end.
    #[test]
    fn breaches_are_found_exactly() {
        for seed in 0..2000 {
            let random = &mut fastrand::Rng::with_seed(seed);
            let mut incoming = Incoming::default();
            let mut there = [false; 64];
            let mut fin = None;
            let granted = random.usize(0..64);
            for _ in 0..30 {
                let from = random.usize(0..48);
                let length = random.usize(0..12);
                let ends = random.u8(0..20) == 0;
                let range = from..from + length;
                let overlap = there[range.clone()].contains(&true);
                let highest = there
                    .iter()
                    .rposition(|there| *there)
                    .map_or(0, |at| at + 1);
                let past_end =
                    fin.is_some_and(|fin| range.end > fin || ends) || (ends && range.end < highest);
                let expected = if range.end > granted {
                    Err(Breach::BeyondCredit)
                } else if past_end {
                    Err(Breach::BeyondEnd)
                } else if overlap {
                    Err(Breach::Overlap)
                } else {
                    Ok(())
                };
                let found =
                    incoming.insert(from as u64, chunk(&[7; 12][..length]), ends, granted as u64);
                assert_eq!(found, expected, "seed {seed}: {range:?} fin {ends}");
                if found.is_ok() {
                    there[range.clone()].fill(true);
                    fin = if ends { Some(range.end) } else { fin };
                }
                incoming.check_invariants();
                let in_order = there.iter().take_while(|there| **there).count();
                assert_eq!(incoming.next(), in_order as u64, "seed {seed}");
            }
        }
    }

    #[test]
    fn single_bytes_are_kept_together() {
        let mut incoming = Incoming::default();
        for at in 0..1000 {
            incoming
                .insert(at, Chunk::copied(&[7]), false, 5000)
                .unwrap();
        }
        assert!(
            incoming.held() < 4096,
            "{} held for 1000 single bytes",
            incoming.held()
        );
        incoming
            .insert(
                1000,
                Chunk::whole(vec![0; 64 << 10], 100..64 << 10),
                false,
                1 << 20,
            )
            .unwrap();
        assert!(incoming.held() >= 64 << 10);
        let mut spent = Vec::new();
        incoming.take(1000 + (64 << 10) - 101, &mut spent);
        assert!(
            incoming.held() >= 64 << 10 && spent.is_empty(),
            "one byte of it is still there"
        );
        incoming.take(1, &mut spent);
        assert_eq!((incoming.held(), spent.len()), (0, 1));
    }
}
