//! The datagrams on their way: one record each, in a ring indexed by physical number.
//!
//! Also counts what was delivered and lost, and takes the delivery-rate samples that the congestion
//! control works with (the estimator of draft-ietf-ccwg-bbr: per datagram, what had been delivered
//! when it left).

use std::collections::VecDeque;

use super::queue::Segment;
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
    /// The counters when it left.
    delivered: u64,
    delivered_at: Nanos,
    first_sent: Nanos,
    lost: u64,
    first_segment: u64,
    /// Bytes on the wire, IP header included.
    pub(crate) bytes: u32,
    segments: u16,
    pub(crate) fate: Fate,
    app_limited: bool,
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
        let (delivered, delivered_at, first_sent, lost) = (0, 0, 0, 0);
        let (first_segment, bytes, segments, app_limited, probe) = (0, 1_500, 0, false, false);
        Record {
            sent,
            delivered,
            delivered_at,
            first_sent,
            lost,
            first_segment,
            bytes,
            segments,
            fate,
            app_limited,
            probe,
            protected,
            patient: false,
        }
    }
}

/// A delivery-rate sample: between the sending of a datagram and its acknowledgement.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Sample {
    /// Bytes delivered in the interval.
    pub(crate) delivered: u64,
    /// Bytes found lost in the interval.
    pub(crate) lost: u64,
    pub(crate) interval: Nanos,
    /// The count of delivered bytes when the datagram left: tells rounds apart.
    pub(crate) prior_delivered: u64,
    pub(crate) app_limited: bool,
    pub(crate) sent: Nanos,
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
    in_flight: u64,
    delivered: u64,
    delivered_at: Nanos,
    first_sent: Nanos,
    lost: u64,
    sent: u64,
    app_limited: Option<u64>,
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
            in_flight: 0,
            delivered: 0,
            delivered_at: 0,
            first_sent: 0,
            lost: 0,
            sent: 0,
            app_limited: None,
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

    /// Wire bytes on their way.
    pub(crate) fn in_flight(&self) -> u64 {
        self.in_flight
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

    /// Wire bytes delivered so far.
    pub(crate) fn delivered(&self) -> u64 {
        self.delivered
    }

    /// Wire bytes lost so far, less those that turned out not to be.
    pub(crate) fn lost(&self) -> u64 {
        self.lost
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

    /// A datagram with the number `next()` left, carrying the last `segments` added. `bytes` is 0
    /// for one that asks for nothing.
    pub(crate) fn push(&mut self, bytes: usize, segments: usize, marks: Marks, now: Nanos) {
        let Marks {
            probe,
            protected,
            patient,
        } = marks;
        let asks = bytes > 0;
        if asks && self.flying == 0 {
            // After a rest the samples must not count the rest.
            self.first_sent = now;
            self.delivered_at = now;
        }
        let number = self.next();
        self.records.push_back(Record {
            sent: now,
            delivered: self.delivered,
            delivered_at: self.delivered_at,
            first_sent: self.first_sent,
            lost: self.lost,
            first_segment: self.first_segment + (self.segments.len() - segments) as u64,
            bytes: bytes as u32,
            segments: segments as u16,
            fate: if asks { Fate::Flying } else { Fate::Quiet },
            app_limited: self.app_limited.is_some(),
            probe,
            protected,
            patient,
        });
        if asks {
            self.flying += 1;
            self.patient += usize::from(patient);
            self.in_flight += bytes as u64;
            self.sent += bytes as u64;
            self.open[index(number)] |= 1 << (number % 64);
        } else {
            self.skip_decided();
        }
    }

    /// The sender has less to send than it may: samples until all of this is delivered do not show
    /// the path's rate.
    pub(crate) fn on_app_limited(&mut self) {
        self.app_limited = Some(self.delivered + self.in_flight);
    }

    /// Which of these 64 numbers would be news? Only words from the floor to the newest have any.
    pub(crate) fn open_word(&self, word: u64) -> u64 {
        if self.records.is_empty() || word < self.base / 64 || word > (self.next() - 1) / 64 {
            return 0;
        }
        self.open[(word % WORDS) as usize]
    }

    /// An open datagram was acknowledged. The record as it was before.
    pub(crate) fn on_acked(&mut self, number: u64, now: Nanos) -> Record {
        self.open[index(number)] &= !(1 << (number % 64));
        let record = &mut self.records[(number - self.base) as usize];
        let before = *record;
        record.fate = Fate::Acked;
        let bytes = u64::from(before.bytes);
        match before.fate {
            Fate::Flying => {
                self.flying -= 1;
                self.patient -= usize::from(before.patient);
                self.in_flight -= bytes;
            }
            Fate::Lost => self.lost -= bytes,
            Fate::Quiet | Fate::Acked => unreachable!("its open bit was set"),
        }
        self.delivered += bytes;
        self.delivered_at = now;
        if self.app_limited.is_some_and(|until| self.delivered > until) {
            self.app_limited = None;
        }
        before
    }

    /// The delivery-rate sample of an acknowledgement whose newest datagram had this record.
    pub(crate) fn sample(&mut self, newest: &Record) -> Sample {
        let sending = newest.sent.saturating_sub(newest.first_sent);
        let arriving = self.delivered_at.saturating_sub(newest.delivered_at);
        self.first_sent = newest.sent;
        Sample {
            delivered: self.delivered - newest.delivered,
            lost: self.lost.saturating_sub(newest.lost),
            interval: sending.max(arriving),
            prior_delivered: newest.delivered,
            app_limited: newest.app_limited,
            sent: newest.sent,
        }
    }

    /// A flying datagram counts as lost from now on.
    pub(crate) fn on_lost(&mut self, number: u64) -> Record {
        let record = &mut self.records[(number - self.base) as usize];
        debug_assert_eq!(record.fate, Fate::Flying);
        record.fate = Fate::Lost;
        self.flying -= 1;
        self.patient -= usize::from(record.patient);
        self.in_flight -= u64::from(record.bytes);
        self.lost += u64::from(record.bytes);
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

    pub(crate) fn check_invariants(&self) {
        assert_eq!(
            self.delivered + self.lost + self.in_flight,
            self.sent,
            "every byte sent has one fate"
        );
        assert!(self.span() <= WORDS * 64 - 64, "the flight fits its ring");
        assert!(self.cursor >= self.base && self.cursor <= self.next());
        assert!((self.flying == 0) == (self.in_flight == 0));
    }

    /// The expensive part of the invariants: adds everything up.
    pub(crate) fn check_sums(&self) {
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
            self.in_flight,
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

    #[test]
    fn every_byte_has_one_fate() {
        for seed in 0..100 {
            let mut dice = fastrand::Rng::with_seed(seed);
            let mut flight = Flight::new((1 << 32) - dice.u64(0..3_000));
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
                    flight.push(
                        if segments > 0 { 1_500 } else { 0 },
                        segments,
                        Marks::default(),
                        now,
                    );
                } else {
                    let number = flight.floor() + dice.u64(0..flight.span().min(200));
                    let record = *flight.get(number).unwrap();
                    if flight.open_word(number / 64) >> (number % 64) & 1 == 1 && dice.bool() {
                        flight.on_acked(number, now);
                        assert!(
                            flight
                                .segments(&record)
                                .all(|segment| segment.logical == record.sent)
                        );
                    } else if record.fate == Fate::Flying {
                        flight.on_lost(number);
                    }
                    flight.skip_decided();
                    flight.retire(now.saturating_sub(500));
                }
                flight.check_invariants();
                if now % 64 == 0 {
                    flight.check_sums();
                }
            }
        }
    }

    #[test]
    fn a_sample_shows_the_rate_of_the_slower_of_sending_and_arriving() {
        let mut flight = Flight::new(0);
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
                    flight.push(
                        1_000,
                        1,
                        Marks::default(),
                        now * millisecond + half * millisecond / 2,
                    );
                }
            }
            if now >= 50 {
                let record = flight.on_acked(now - 50, now * millisecond);
                let sample = flight.sample(&record);
                rate = sample.delivered * 1_000_000_000 / sample.interval.max(1);
            }
        }
        assert!((950_000..=1_000_000).contains(&rate), "{rate}");
    }
}
