//! The datagrams on their way: one record each, in a ring indexed by physical number.
//!
//! The sender notes here what leaves, what is acknowledged and what counts as lost, and finds the
//! segments that a datagram carried. Bytes are the path's to count (`path/delivery.rs`).

use std::collections::VecDeque;

use super::queue::Segment;
use crate::path::delivery::Snapshot;
use crate::recv::bitmap::WINDOW;
use crate::timer::Nanos;

/// Words of the ring of open bits: as wide as the receiver's window.
const WORDS: u64 = WINDOW / 64;

/// What a datagram on its way costs: its record and a segment, in rings that may be half empty.
/// Bytes.
pub(super) const RECORD_COST: usize = 2 * (size_of::<Record>() + size_of::<Segment>());
/// Records that every connection has room for, uncounted.
const ROOM_LEFT: usize = 4_096;

/// What became of a datagram.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Fate {
    /// Nothing in it needs to arrive, or all is decided.
    Quiet,
    /// On its way.
    Flying,
    /// Acknowledged.
    Acked,
    /// Counted as lost; an acknowledgement may still correct that.
    Lost,
}

/// What the sender knows of one datagram.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Record {
    pub(crate) sent: Nanos,
    /// The path's counts when it left.
    pub(crate) at_sending: Snapshot,
    first_segment: u64,
    /// Bytes on the wire, IP header included.
    pub(crate) bytes: u32,
    segments: u16,
    pub(crate) fate: Fate,
    /// A probe of the path's datagram size: its loss says nothing about congestion.
    pub(crate) probe: bool,
    /// The receiver may rebuild it: its acknowledgement may come later than those around it.
    pub(crate) protected: bool,
    /// Parity alone: its acknowledgement waits for company.
    patient: bool,
}

impl Record {
    /// How many segments it carried.
    pub(crate) fn segments(&self) -> usize {
        usize::from(self.segments)
    }
}

/// A datagram that left.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Sent {
    /// Bytes on the wire; 0 for a datagram that asks for no acknowledgement.
    pub(crate) bytes: u64,
    pub(crate) segments: usize,
    pub(crate) at_sending: Snapshot,
    pub(crate) marks: Marks,
}

/// What is special of a datagram.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Marks {
    pub(crate) probe: bool,
    pub(crate) protected: bool,
    pub(crate) patient: bool,
}

#[cfg(test)]
impl Record {
    /// A record of 1,500 bytes for the tests of loss detection.
    pub(crate) fn for_test(sent: Nanos, fate: Fate, protected: bool) -> Record {
        Record {
            sent,
            at_sending: Snapshot::default(),
            first_segment: 0,
            bytes: 1_500,
            segments: 0,
            fate,
            probe: false,
            protected,
            patient: false,
        }
    }
}

/// The ring.
pub(crate) struct Flight {
    records: VecDeque<Record>,
    /// Number of `records[0]`: the floor, below which every fate is decided and forgotten.
    base: u64,
    /// Segments of the records, in the same order.
    segments: VecDeque<Segment>,
    first_segment: u64,
    /// A bit for each record that an acknowledgement would change: flying or lost.
    open: Box<[u64]>,
    /// All before this are decided.
    cursor: u64,
    flying: usize,
    /// Those of them that are patient.
    patient: usize,
}

impl Flight {
    pub(crate) fn new(first: u64) -> Flight {
        Flight {
            records: VecDeque::new(),
            base: first,
            segments: VecDeque::new(),
            first_segment: 0,
            open: vec![0; WORDS as usize].into_boxed_slice(),
            cursor: first,
            flying: 0,
            patient: 0,
        }
    }

    /// The number of the next datagram.
    pub(crate) fn next(&self) -> u64 {
        self.base + self.records.len() as u64
    }

    /// The lowest number whose fate is open.
    pub(crate) fn floor(&self) -> u64 {
        self.base
    }

    /// Numbers from the floor to the newest.
    pub(crate) fn span(&self) -> u64 {
        self.records.len() as u64
    }

    /// Datagrams on their way.
    pub(crate) fn flying(&self) -> usize {
        self.flying
    }

    /// Nothing is on its way but what may be acknowledged late.
    pub(crate) fn is_patient(&self) -> bool {
        self.flying == self.patient
    }

    /// Bytes of the records and their segments: a peer that acknowledges nothing makes them many.
    pub(crate) fn held(&self) -> usize {
        self.records.capacity().saturating_sub(ROOM_LEFT) * size_of::<Record>()
            + self.segments.capacity().saturating_sub(ROOM_LEFT) * size_of::<Segment>()
    }

    /// The first number that may be flying.
    pub(crate) fn cursor(&self) -> u64 {
        self.cursor
    }

    pub(crate) fn get(&self, number: u64) -> Option<&Record> {
        self.records.get(number.checked_sub(self.base)? as usize)
    }

    /// A segment is part of the datagram that is about to be pushed.
    pub(crate) fn add_segment(&mut self, segment: Segment) {
        self.segments.push_back(segment);
    }

    /// A datagram with the number `next()` left, carrying the last `sent.segments` added.
    pub(crate) fn push(&mut self, sent: Sent, now: Nanos) {
        let Sent {
            bytes,
            segments,
            at_sending,
            marks,
        } = sent;
        let asks = bytes > 0;
        let number = self.next();
        self.records.push_back(Record {
            sent: now,
            at_sending,
            first_segment: self.first_segment + (self.segments.len() - segments) as u64,
            bytes: bytes as u32,
            segments: segments as u16,
            fate: if asks { Fate::Flying } else { Fate::Quiet },
            probe: marks.probe,
            protected: marks.protected,
            patient: marks.patient,
        });
        if asks {
            self.flying += 1;
            self.patient += usize::from(marks.patient);
            self.open[index(number)] |= 1 << (number % 64);
        } else {
            self.skip_decided();
        }
    }

    /// Which of these 64 numbers would be news? Only words from the floor to the newest have any.
    pub(crate) fn open_word(&self, word: u64) -> u64 {
        if self.records.is_empty() || word < self.base / 64 || word > (self.next() - 1) / 64 {
            return 0;
        }
        self.open[(word % WORDS) as usize]
    }

    /// An open datagram was acknowledged. The record as it was before.
    pub(crate) fn on_acked(&mut self, number: u64) -> Record {
        self.open[index(number)] &= !(1 << (number % 64));
        let record = &mut self.records[(number - self.base) as usize];
        let before = *record;
        record.fate = Fate::Acked;
        match before.fate {
            Fate::Flying => {
                self.flying -= 1;
                self.patient -= usize::from(before.patient);
            }
            Fate::Lost => {}
            Fate::Quiet | Fate::Acked => unreachable!("its open bit was set"),
        }
        before
    }

    /// A flying datagram counts as lost from now on.
    pub(crate) fn on_lost(&mut self, number: u64) -> Record {
        let record = &mut self.records[(number - self.base) as usize];
        debug_assert_eq!(record.fate, Fate::Flying);
        record.fate = Fate::Lost;
        self.flying -= 1;
        self.patient -= usize::from(record.patient);
        *record
    }

    /// The segments that a datagram carried.
    pub(crate) fn segments(&self, record: &Record) -> impl Iterator<Item = Segment> + '_ {
        let first = (record.first_segment - self.first_segment) as usize;
        (first..first + usize::from(record.segments)).map(|at| self.segments[at])
    }

    /// Moves the cursor over what is decided.
    pub(crate) fn skip_decided(&mut self) {
        while self
            .get(self.cursor)
            .is_some_and(|record| record.fate != Fate::Flying)
        {
            self.cursor += 1;
        }
    }

    /// Forgets the oldest records whose fate is decided; lost ones only when they were sent before
    /// `lost_before`.
    pub(crate) fn retire(&mut self, lost_before: Nanos) {
        while let Some(record) = self.records.front() {
            match record.fate {
                Fate::Flying => break,
                Fate::Lost if record.sent >= lost_before => break,
                Fate::Quiet | Fate::Acked | Fate::Lost => {}
            }
            let segments = usize::from(record.segments);
            self.open[index(self.base)] &= !(1 << (self.base % 64));
            self.segments.drain(..segments);
            self.first_segment += segments as u64;
            self.records.pop_front();
            self.base += 1;
        }
        self.cursor = self.cursor.max(self.base);
        if self.records.capacity() > ROOM_LEFT.max(8 * self.records.len()) {
            self.records.shrink_to(2 * self.records.len());
            self.segments.shrink_to(2 * self.segments.len());
        }
    }

    /// `in_flight`: wire bytes on their way, as the path counts them.
    pub(crate) fn check_invariants(&self, in_flight: u64) {
        assert!((self.flying == 0) == (in_flight == 0));
        assert!(self.span() <= WORDS * 64 - 64, "the flight fits its ring");
        assert!(self.cursor >= self.base && self.cursor <= self.next());
    }

    /// The expensive part of the invariants: adds everything up.
    pub(crate) fn check_sums(&self, in_flight: u64) {
        let flying = || {
            self.records
                .iter()
                .filter(|record| record.fate == Fate::Flying)
        };
        assert_eq!(self.flying, flying().count());
        assert_eq!(
            self.patient,
            flying().filter(|record| record.patient).count()
        );
        assert_eq!(
            in_flight,
            flying().map(|record| u64::from(record.bytes)).sum::<u64>()
        );
        assert_eq!(
            self.segments.len(),
            self.records
                .iter()
                .map(|record| usize::from(record.segments))
                .sum::<usize>()
        );
        assert!(
            self.records
                .iter()
                .take((self.cursor - self.base) as usize)
                .all(|record| record.fate != Fate::Flying)
        );
        for (at, record) in self.records.iter().enumerate() {
            let number = self.base + at as u64;
            let open = self.open[index(number)] >> (number % 64) & 1 == 1;
            assert_eq!(
                open,
                matches!(record.fate, Fate::Flying | Fate::Lost),
                "number {number}"
            );
        }
    }
}

fn index(number: u64) -> usize {
    (number / 64 % WORDS) as usize
}

#[cfg(test)]
mod tests {
    use super::super::queue::Kind;
    use super::*;
    use crate::path::delivery::Delivery;

    /// A datagram leaves with the last `segments` added.
    fn push(flight: &mut Flight, delivery: &mut Delivery, bytes: u64, segments: usize, now: Nanos) {
        let sent = Sent {
            bytes,
            segments,
            at_sending: delivery.on_sent(bytes, now),
            marks: Marks::default(),
        };
        flight.push(sent, now);
    }

    fn on_acked(flight: &mut Flight, delivery: &mut Delivery, number: u64, now: Nanos) -> Record {
        let record = flight.on_acked(number);
        delivery.on_acked(u64::from(record.bytes), record.fate == Fate::Lost, now);
        record
    }

    #[test]
    fn every_byte_has_one_fate() {
        for seed in 0..100 {
            let mut dice = fastrand::Rng::with_seed(seed);
            let mut flight = Flight::new((1 << 32) - dice.u64(0..3_000));
            let mut delivery = Delivery::default();
            for now in 0..4_000 {
                if dice.u8(0..3) > 0 || flight.span() == 0 {
                    let segments = dice.usize(0..3);
                    for _ in 0..segments {
                        flight.add_segment(Segment {
                            logical: now,
                            offset: 0,
                            length: 1,
                            kind: Kind::First,
                        });
                    }
                    let bytes = if segments > 0 { 1_500 } else { 0 };
                    push(&mut flight, &mut delivery, bytes, segments, now);
                } else {
                    let number = flight.floor() + dice.u64(0..flight.span().min(200));
                    let record = *flight.get(number).unwrap();
                    if flight.open_word(number / 64) >> (number % 64) & 1 == 1 && dice.bool() {
                        on_acked(&mut flight, &mut delivery, number, now);
                        assert!(
                            flight
                                .segments(&record)
                                .all(|segment| segment.logical == record.sent)
                        );
                    } else if record.fate == Fate::Flying {
                        delivery.on_lost(u64::from(flight.on_lost(number).bytes));
                    }
                    flight.skip_decided();
                    flight.retire(now.saturating_sub(500));
                }
                flight.check_invariants(delivery.in_flight());
                delivery.check_invariants();
                if now % 64 == 0 {
                    flight.check_sums(delivery.in_flight());
                }
            }
        }
    }

    #[test]
    fn a_sample_shows_the_rate_of_the_slower_of_sending_and_arriving() {
        let (mut flight, mut delivery) = (Flight::new(0), Delivery::default());
        let millisecond = 1_000_000;
        let mut rate = 0;
        // Twice as many are sent as arrive, one per millisecond: 1 MB/s.
        for now in 0..400 {
            if now < 200 {
                for half in 0..2 {
                    flight.add_segment(Segment {
                        logical: now,
                        offset: 0,
                        length: 1,
                        kind: Kind::First,
                    });
                    let at = now * millisecond + half * millisecond / 2;
                    push(&mut flight, &mut delivery, 1_000, 1, at);
                }
            }
            if now >= 50 {
                let record = on_acked(&mut flight, &mut delivery, now - 50, now * millisecond);
                let sample = delivery.take_sample(record.sent, &record.at_sending);
                rate = sample.delivered * 1_000_000_000 / sample.interval.max(1);
            }
        }
        assert!((950_000..=1_000_000).contains(&rate), "{rate}");
    }
}
