//! Joins the receiving half: takes subfields, asks for repairs by acknowledgements, and hands up
//! payloads.

use super::assemble::{Assembler, Taken};
use super::bitmap::Bitmap;
use crate::ack::{self, Arrival, Schedule};
use crate::config::Limits;
use crate::fec::rebuild::{Rebuilder, Rebuilt};
use crate::seq;
use crate::stats::{Counters, ReceiverGauges};
use crate::subfield::{self, Ack, DELAY_UNIT_NANOS, Data, Parity, RATE_UNIT};
use crate::timer::{MILLISECOND, Nanos, SECOND};

/// The delivery rate is measured over at least this time: several payloads on a link of 10 Mbit/s.
const METER_TIME: Nanos = 100 * MILLISECOND;

/// What one datagram asked for, gathered over its subfields.
#[derive(Default)]
pub(crate) struct AckRequest {
    pub(crate) asks: bool,
    pub(crate) at_once: bool,
    pub(crate) patient: bool,
    /// Parity over it may come.
    pub(crate) protected: bool,
    /// A segment had to be refused: the datagram must come again.
    pub(crate) refused: bool,
}

/// What our own sending half says in an acknowledgement.
#[derive(Clone, Copy)]
pub(crate) struct OwnNumbers {
    /// The number of the datagram that the acknowledgement leaves in.
    pub(crate) highest_sent: u64,
    /// The lowest number whose fate is open.
    pub(crate) floor: u64,
}

/// The receiving half.
pub(crate) struct Receiver {
    bitmap: Bitmap,
    assembler: Assembler,
    schedule: Schedule,
    /// The peer's floor: it wants to hear nothing about lower numbers.
    floor: u64,
    /// What is delivered to our packet driver, on our own clock (claim 23).
    deliveries: Meter,
    arrivals: Arrivals,
    counted: Counted,
    rebuilder: Rebuilder,
    /// Datagrams that were rebuilt and are not read yet.
    rebuilt: Vec<Rebuilt>,
    rebuilt_taken: u32,
}

/// Bytes of datagrams that came, and their best rate of late: what is delivered stands still while
/// something is missing.
struct Arrivals {
    bytes: u64,
    meter: Meter,
    /// Bytes per second.
    rate: u64,
}

/// What happened so far.
#[derive(Default)]
struct Counted {
    segments_duplicate: u64,
    segments_refused: u64,
    segments_contradictory: u64,
    acks_sent: u64,
}

impl Receiver {
    pub(crate) fn new(limits: &Limits, now: Nanos) -> Receiver {
        Receiver {
            bitmap: Bitmap::new(),
            assembler: Assembler::new(limits),
            schedule: Schedule::new(now),
            floor: 0,
            deliveries: Meter::new(now),
            arrivals: Arrivals {
                bytes: 0,
                meter: Meter::new(now),
                rate: 0,
            },
            counted: Counted::default(),
            rebuilder: Rebuilder::default(),
            rebuilt: Vec::new(),
            rebuilt_taken: 0,
        }
    }

    /// The whole number of a datagram from its low half.
    pub(crate) fn recover(&self, low: u32) -> u64 {
        seq::recover(self.bitmap.highest().map_or(0, |highest| highest + 1), low)
    }

    /// Would a datagram of this number be new?
    pub(crate) fn is_new(&self, number: u64) -> bool {
        self.bitmap.is_new(number)
    }

    /// Is this number so old that nobody knows whether it came before?
    pub(crate) fn is_too_old(&self, number: u64) -> bool {
        number < self.bitmap.start()
    }

    /// Is this number above all that came?
    pub(crate) fn is_highest(&self, number: u64) -> bool {
        self.bitmap.highest().is_none_or(|highest| number > highest)
    }

    pub(crate) fn handle_data(&mut self, data: &Data<'_>, request: &mut AckRequest) {
        request.asks = true;
        request.at_once |= data.at_once;
        request.protected |= data.protected;
        match self.assembler.handle_segment(data) {
            Taken::New => {}
            Taken::Known => self.counted.segments_duplicate += 1,
            Taken::Refused => {
                self.counted.segments_refused += 1;
                request.refused = true;
            }
            Taken::Wrong => self.counted.segments_contradictory += 1,
        }
    }

    /// The peer's own numbers in its acknowledgement, which came in datagram `number`. Its highest
    /// number sent is that datagram or an older one: what is missing below shows as a gap when the
    /// datagram is noted.
    pub(crate) fn handle_ack(&mut self, ack: &Ack<'_>, number: u64) {
        self.floor = self.floor.max(seq::recover(number, ack.floor).min(number));
    }

    /// All of an authenticated datagram was taken.
    pub(crate) fn on_taken(
        &mut self,
        number: u64,
        request: &AckRequest,
        minimum_rtt: Option<Nanos>,
        now: Nanos,
    ) {
        if request.refused {
            return;
        }
        let highest = self.bitmap.highest();
        self.bitmap.insert(number);
        let arrival = Arrival {
            asks: request.asks,
            at_once: request.at_once,
            patient: request.patient,
            is_highest: highest.is_none_or(|highest| number > highest),
            gap: highest.is_some_and(|highest| number > highest + 1),
        };
        self.schedule.on_arrival(arrival, minimum_rtt, now);
    }

    /// Parity over datagrams came in datagram `number`.
    pub(crate) fn handle_parity(
        &mut self,
        parity: &Parity<'_>,
        number: u64,
        request: &mut AckRequest,
    ) {
        if std::mem::replace(&mut request.patient, true) {
            // No sender puts two rows into a datagram, and each costs a look at all blocks.
            self.rebuilder.counters.malformed += 1;
            return;
        }
        let first = seq::recover(number, parity.first);
        self.rebuilder
            .on_parity(parity, first, number, &self.bitmap, &mut self.rebuilt);
    }

    /// Keeps the plain bytes of a protected datagram, after it was taken.
    pub(crate) fn keep(&mut self, number: u64, plain: &[u8]) {
        self.rebuilder
            .on_protected(number, plain, &self.bitmap, &mut self.rebuilt);
    }

    /// A datagram that was rebuilt and did not come meanwhile, to be read like any other.
    pub(crate) fn poll_rebuilt(&mut self) -> Option<Rebuilt> {
        loop {
            let (number, plain) = self.rebuilt.pop()?;
            if self.bitmap.is_new(number) {
                return Some((number, plain));
            }
        }
    }

    /// All of a rebuilt datagram was taken.
    pub(crate) fn on_rebuilt(
        &mut self,
        number: u64,
        request: &AckRequest,
        minimum_rtt: Option<Nanos>,
        now: Nanos,
    ) {
        // Told at once, before the sender repairs what is here.
        self.on_taken(
            number,
            &AckRequest {
                at_once: true,
                ..*request
            },
            minimum_rtt,
            now,
        );
        self.rebuilt_taken = self.rebuilt_taken.wrapping_add(u32::from(!request.refused));
    }

    /// What payloads cost that were begun and not fetched, what spare buffers take, and what parity
    /// keeps.
    pub(crate) fn held(&self) -> usize {
        self.assembler.held() + self.assembler.spare_bytes() + self.rebuilder.held()
    }

    /// Gives back what nobody needs when nothing has moved for a while.
    pub(crate) fn release_idle(&mut self, now: Nanos) {
        self.assembler.release_idle(now);
        self.rebuilder.release_idle(now);
    }

    pub(crate) fn set_limit(&mut self, bytes: usize) {
        self.assembler.set_limit(bytes);
    }

    pub(crate) fn poll_payload(&mut self) -> Option<Vec<u8>> {
        self.assembler.poll_payload()
    }

    pub(crate) fn recycle(&mut self, buffer: Vec<u8>) {
        self.assembler.recycle(buffer);
    }

    // --- acknowledgements out
    // ---------------------------------------------------------------------------------------------

    pub(crate) fn ack_deadline(&self, return_rate: u64) -> Option<Nanos> {
        self.bitmap.highest()?;
        self.schedule.deadline(return_rate)
    }

    pub(crate) fn may_ride(&self, urgent: bool, minimum_rtt: Option<Nanos>, now: Nanos) -> bool {
        self.bitmap.highest().is_some() && self.schedule.may_ride(urgent, minimum_rtt, now)
    }

    /// Appends an acknowledgement of at most `room` bytes.
    pub(crate) fn emit_ack(
        &mut self,
        out: &mut Vec<u8>,
        room: usize,
        own: OwnNumbers,
        return_rate: u64,
        now: Nanos,
    ) {
        let Some(highest) = self.bitmap.highest() else {
            return;
        };
        self.deliveries.update(self.assembler.delivered().1, now);
        let delay = self.schedule.delay(now) / DELAY_UNIT_NANOS;
        let ack = Ack {
            highest_sent: seq::low(own.highest_sent),
            floor: seq::low(own.floor),
            highest_received: seq::low(highest),
            delay: u16::try_from(delay).unwrap_or(u16::MAX),
            rate: u32::try_from(self.deliveries.rate / RATE_UNIT).unwrap_or(u32::MAX),
            rebuilt: self.rebuilt_taken,
            words: &[],
        };
        let before = out.len();
        subfield::emit_ack(out, &ack, |out| {
            ack::encode(&self.bitmap, self.floor, room - subfield::ACK_HEADER, out)
        });
        self.schedule.on_sent(out.len() - before, return_rate, now);
        self.counted.acks_sent += 1;
    }

    /// A datagram of `bytes` came.
    pub(crate) fn on_datagram(&mut self, bytes: usize, now: Nanos) {
        let arrivals = &mut self.arrivals;
        arrivals.bytes += bytes as u64;
        if arrivals.meter.update(arrivals.bytes, now) {
            arrivals.rate = arrivals.meter.rate.max(arrivals.rate - arrivals.rate / 8);
        }
    }

    /// Bytes per second that came lately.
    pub(crate) fn arrival_rate(&self) -> u64 {
        self.arrivals.rate
    }

    /// Datagrams are missing that were not when the last acknowledgement left.
    pub(crate) fn is_missing(&self) -> bool {
        self.schedule.is_missing()
    }

    pub(crate) fn gauges(&self) -> ReceiverGauges {
        ReceiverGauges {
            reassembly_bytes: self.assembler.held() as u64,
            delivery_rate: self.deliveries.rate,
        }
    }

    /// Adds what was counted here.
    pub(crate) fn count(&self, counters: &mut Counters) {
        let (payloads, bytes) = self.assembler.delivered();
        let receiver = &mut counters.receiver;
        receiver.payloads += payloads;
        receiver.payload_bytes += bytes;
        receiver.segments_duplicate += self.counted.segments_duplicate;
        receiver.acks_sent += self.counted.acks_sent;
        receiver.reassembly_bytes_max = receiver
            .reassembly_bytes_max
            .max(self.assembler.max_held() as u64);
        receiver.walked += self.assembler.walked();
        counters.parity.rows_received += self.rebuilder.counters.rows;
        counters.parity.datagrams_rebuilt += u64::from(self.rebuilt_taken);
        let drops = &mut counters.drops;
        drops.segments_refused += self.counted.segments_refused;
        drops.breaches.segments_contradictory += self.counted.segments_contradictory;
        drops.breaches.parity_malformed += self.rebuilder.counters.malformed;
        drops.breaches.parity_contradictory += self.rebuilder.counters.contradictory;
    }

    pub(crate) fn check_invariants(&self) {
        self.assembler.check_invariants();
        self.rebuilder.check_invariants();
    }

    pub(crate) fn check_sums(&self) {
        self.assembler.check_sums();
    }
}

/// The rate at which a count of bytes grows.
struct Meter {
    since: Nanos,
    bytes: u64,
    /// Bytes per second.
    rate: u64,
}

impl Meter {
    fn new(now: Nanos) -> Meter {
        Meter {
            since: now,
            bytes: 0,
            rate: 0,
        }
    }

    /// The count is `bytes` now. True if that gives another rate.
    fn update(&mut self, bytes: u64, now: Nanos) -> bool {
        let elapsed = now.saturating_sub(self.since);
        if elapsed < METER_TIME {
            return false;
        }
        let rate = u128::from(bytes - self.bytes) * u128::from(SECOND) / u128::from(elapsed);
        *self = Meter {
            since: now,
            bytes,
            rate: u64::try_from(rate).unwrap_or(u64::MAX),
        };
        true
    }
}
