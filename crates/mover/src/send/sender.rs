//! Joins the sending half: what leaves next, what is in it, and what an acknowledgement of it
//! means.

use super::flight::{Fate, Flight, Marks, Record, Sent};
use super::load::{Filled, Load};
use super::queue::{Position, Queue};
use super::tail::{self, Tail};
use crate::ack::Words;
use crate::config::{Config, Limits};
use crate::congestion::Lost;
use crate::error::AckError;
use crate::fec;
use crate::fec::protect::Protector;
use crate::path::mtu::SizesSeen;
use crate::path::{AckOutcome, Path};
use crate::seq;
use crate::stats::{Counters, SenderGauges};
use crate::subfield::{self, Ack, DELAY_UNIT_NANOS};
use crate::timer::{Earliest, Nanos, Timer};

/// Numbers of the flight's span that data leaves to acknowledgements and pings, which are not held
/// back.
const SPAN_RESERVE: u64 = 4_096;
/// Wire bytes on their way from which repairs of repairs leave twice: with more, a flow that waits
/// three round trips for a repair outgrows what the receiver may hold for it. With less the copies
/// would only cost what they cost: loss squared.
const DOUBLES_FROM: u64 = 16 << 20;
/// Round trips after its sending for which a lost datagram is remembered, to take the loss back if
/// its acknowledgement comes after all: that is late by a round trip at most. Acknowledgements
/// reach back as far, so it is no longer than that.
const REMEMBER_ROUNDS: u64 = 2;
/// Bytes of an acknowledgement's flags beyond which they may tell of what is long decided: a word
/// of losses and some. They eat the budget that the next acknowledgement has to wait for.
const LONG_WORDS: usize = 16;

/// What one acknowledgement told that was not known.
#[derive(Default)]
struct NewlyAcked {
    newest: Option<Newest>,
    /// Wire bytes.
    bytes: u64,
    datagrams: u64,
    sizes: SizesSeen,
}

/// The newest of the datagrams that an acknowledgement told of.
struct Newest {
    number: u64,
    record: Record,
}

/// The floor: the lowest physical number whose fate is open. The peer is told it, so that it
/// repeats nothing about lower ones.
struct PeerFloor {
    announced: u64,
    /// The peer's acknowledgements show that a newer floor would shorten them.
    is_outdated: bool,
}

/// The sending half.
pub(crate) struct Sender {
    queue: Queue,
    flight: Flight,
    parity: Protector,
    tail: Tail,
    /// Numbers that the flight may span, as memory allows, and as the configuration does.
    span_limit: u64,
    most_span: u64,
    /// Where the last probe's piece ended: the next one takes what follows.
    probed: Position,
    /// Losses that were found and are not reported yet.
    lost: Vec<Lost>,
    /// What the peer said last of the datagrams that it has rebuilt, modulo 2^32.
    rebuilt: u32,
    floor: PeerFloor,
}

impl Sender {
    pub(crate) fn new(config: &Config, first: u64, now: Nanos) -> Sender {
        Sender {
            queue: Queue::new(&config.limits),
            flight: Flight::new(first),
            parity: Protector::new(now),
            tail: Tail::default(),
            span_limit: config.limits.flight_span,
            most_span: config.limits.flight_span,
            probed: Position::default(),
            lost: Vec::new(),
            rebuilt: 0,
            floor: PeerFloor {
                announced: first,
                is_outdated: false,
            },
        }
    }

    // --- payloads in
    // ---------------------------------------------------------------------------------------------

    /// Takes a payload, or gives it back if it is empty or there is no room.
    pub(crate) fn push(
        &mut self,
        payload: Vec<u8>,
        urgent: bool,
        path: &mut Path,
        now: Nanos,
    ) -> Result<(), Vec<u8>> {
        if payload.is_empty() || !self.queue.has_room(payload.len()) {
            return Err(payload);
        }
        if self.queue.waiting() == 0 {
            path.on_rested(now);
        }
        self.queue.push(payload, urgent);
        Ok(())
    }

    /// What payloads cost that are not wholly acknowledged, spare buffers and the records of what
    /// is on its way.
    pub(crate) fn held(&self) -> usize {
        self.queue.held() + self.flight.held()
    }

    /// Gives back what nobody needs when nothing has moved for a while.
    pub(crate) fn release_idle(&mut self, now: Nanos) {
        self.queue.release_idle(now);
    }

    /// What payloads may cost from now on. Records of datagrams may cost as much beside them.
    pub(crate) fn set_limit(&mut self, bytes: usize) {
        self.queue.set_limit(bytes);
        let records = (bytes / super::flight::RECORD_COST) as u64;
        self.span_limit = self.most_span.min(records.max(2 * SPAN_RESERVE));
    }

    /// Payload bytes that could leave at once, with nothing queued before them. Who is told 0 for
    /// the pacer's sake waits for its release, which a deadline then names.
    pub(crate) fn poll_budget(&mut self, path: &mut Path, now: Nanos) -> usize {
        let allowance = self.poll_allowance(path, now);
        let datagram = path.full_datagram();
        let payload = allowance.max(if allowance > 0 { datagram } else { 0 })
            * path.segment_payload() as u64
            / datagram;
        let budget = (payload as usize).saturating_sub(self.queue.waiting());
        if !self.queue.has_room(budget.min(Limits::MAX_PAYLOAD)) {
            // Only an acknowledgement makes room, and that wakes everybody. The pacer's release may
            // be long past.
            return 0;
        }
        if budget == 0 {
            path.await_release();
        }
        budget
    }

    /// Whether a datagram may leave now, and nothing urgent waits.
    pub(crate) fn takes_urgent(&self, path: &Path, now: Nanos) -> bool {
        !self.is_span_full()
            && path.allowance(now) > 0
            && !self.queue.has_urgent()
            && self.queue.has_room(path.segment_payload())
    }

    /// Wire bytes of data that may leave now. Notes when the window holds something back.
    pub(crate) fn poll_allowance(&self, path: &mut Path, now: Nanos) -> u64 {
        if self.window_room(path) == 0 {
            path.on_window_limited(now);
            return 0;
        }
        path.allowance(now)
    }

    /// Wire bytes that window and span leave free.
    fn window_room(&self, path: &Path) -> u64 {
        if self.is_span_full() {
            0
        } else {
            path.window_room()
        }
    }

    fn is_span_full(&self) -> bool {
        self.flight.span() + SPAN_RESERVE > self.span_limit
    }

    /// Is an urgent payload waiting to be sent?
    pub(crate) fn has_urgent(&self) -> bool {
        self.queue.has_urgent()
    }

    /// Is any payload byte waiting to be sent?
    pub(crate) fn has_waiting(&self) -> bool {
        self.queue.waiting() > 0
    }

    /// A buffer to be filled, used before or new.
    pub(crate) fn take_buffer(&mut self) -> Vec<u8> {
        self.queue.take_buffer()
    }

    pub(crate) fn return_buffer(&mut self, buffer: Vec<u8>) {
        self.queue.return_buffer(buffer);
    }

    // --- datagrams out
    // ---------------------------------------------------------------------------------------------

    /// What the next datagram is for, if one must or may leave now. `ack_due`: an acknowledgement
    /// cannot wait.
    pub(crate) fn poll_load(&mut self, ack_due: bool, path: &mut Path, now: Nanos) -> Option<Load> {
        if path.probes_due() > 0 {
            // The second one is small: if only it arrives, the path has become narrower.
            return Some(Load::Probe {
                small: path.probes_due() == 1,
            });
        }
        let parity = self.parity.due().is_some_and(|due| due <= now);
        if (parity || self.has_waiting()) && self.poll_allowance(path, now) > 0 {
            if self.parity.prepare_row(now) {
                return Some(Load::Parity);
            }
            if self.has_waiting() {
                return Some(Load::Data);
            }
        }
        if self.tail_due(path).is_some_and(|due| due <= now) && self.poll_allowance(path, now) > 0 {
            return Some(Load::Tail);
        }
        if let Some(size) = path.poll_size_probe(now) {
            return Some(Load::Size(size));
        }
        if path.is_ping_due() {
            return Some(Load::Ping);
        }
        ack_due.then_some(Load::Ack)
    }

    /// The number of the next datagram.
    pub(crate) fn next_number(&self) -> u64 {
        self.flight.next()
    }

    /// The floor, which the peer is told now.
    pub(crate) fn take_floor(&mut self) -> u64 {
        self.floor = PeerFloor {
            announced: self.flight.floor(),
            is_outdated: false,
        };
        self.floor.announced
    }

    /// The peer repeats what is long decided: it has to be told the floor, if nothing else gives
    /// cause to.
    pub(crate) fn is_floor_outdated(&self) -> bool {
        self.floor.is_outdated
    }

    /// Appends the load's subfields so that `out` grows at most to `end`.
    pub(crate) fn fill(
        &mut self,
        out: &mut Vec<u8>,
        end: usize,
        load: Load,
        path: &Path,
    ) -> Filled {
        let asking = Filled {
            asks: true,
            ..Filled::default()
        };
        match load {
            Load::Data => self.fill_data(out, end, path),
            Load::Ack => Filled::default(),
            Load::Parity => {
                let before = out.len();
                self.parity.emit(out, end - out.len());
                Filled {
                    asks: out.len() > before,
                    ..Filled::default()
                }
            }
            Load::Probe { .. } => Filled {
                segments: self.fill_probe(out, end),
                ..asking
            },
            Load::Tail => Filled::with_segments(self.fill_tail(out, end)),
            Load::Ping => {
                subfield::emit_ping(out);
                asking
            }
            Load::Size(_) => {
                subfield::emit_ping(out);
                subfield::emit_padding(out, end - out.len());
                asking
            }
        }
    }

    /// Datagrams with urgent payloads are protected.
    fn fill_data(&mut self, out: &mut Vec<u8>, end: usize, path: &Path) -> Filled {
        let start = out.len();
        self.queue
            .set_doubles(path.delivery().in_flight() > DOUBLES_FROM);
        let urgent = self.queue.has_urgent() && self.parity.is_on(path.min_rtt());
        let end = if urgent { end - fec::RESERVE } else { end };
        let filled = Filled::with_segments(self.emit_segments(out, end, false));
        let protected = filled.segments > 0 && urgent;
        if protected {
            subfield::protect(&mut out[start..]);
        }
        Filled {
            protected,
            ..filled
        }
    }

    /// Segments that wait, and if there are none, one that is not acknowledged.
    fn fill_probe(&mut self, out: &mut Vec<u8>, end: usize) -> usize {
        match self.emit_segments(out, end, true) {
            0 => self.fill_oldest(out, end),
            segments => segments,
        }
    }

    fn emit_segments(&mut self, out: &mut Vec<u8>, end: usize, at_once: bool) -> usize {
        let physical = self.flight.next();
        let mut segments = 0;
        while let Some(segment) =
            self.queue
                .emit_next(out, end.saturating_sub(out.len()), physical, at_once)
        {
            self.flight.add_segment(segment);
            segments += 1;
        }
        segments
    }

    /// A protected datagram is about to leave with these plain bytes.
    pub(crate) fn protect(&mut self, number: u64, plain: &[u8], path: &Path, now: Nanos) {
        self.parity.add(number, plain, path.min_rtt(), now);
    }

    /// A datagram that was acknowledged, or that counts as lost, needs no copy.
    fn fill_tail(&mut self, out: &mut Vec<u8>, end: usize) -> usize {
        let physical = self.flight.next();
        let Some(last) = self.tail.take() else {
            return 0;
        };
        let Some(&record) = self
            .flight
            .get(last.number)
            .filter(|record| record.fate == Fate::Flying)
        else {
            return 0;
        };
        if !self.parity.pay(last.bytes) {
            return 0;
        }
        let mut copies = 0;
        for at in 0..record.segments() {
            let segment = self
                .flight
                .segments(&record)
                .nth(at)
                .expect("it has as many");
            if let Some(copy) = self
                .queue
                .emit_copy(out, end - out.len(), physical, segment)
            {
                self.flight.add_segment(copy);
                copies += 1;
            }
        }
        copies
    }

    fn fill_oldest(&mut self, out: &mut Vec<u8>, end: usize) -> usize {
        let physical = self.flight.next();
        let Some(segment) = self
            .queue
            .emit_oldest(out, end - out.len(), physical, self.probed)
        else {
            subfield::emit_ping(out);
            return 0;
        };
        self.probed = segment.end_position();
        self.flight.add_segment(segment);
        1
    }

    /// A datagram of `size` bytes left, filled with `load`. Returns its bytes on the wire, for the
    /// pacer.
    pub(crate) fn on_sent(
        &mut self,
        size: usize,
        load: Load,
        filled: Filled,
        path: &mut Path,
        now: Nanos,
    ) -> u64 {
        let bytes = path.wire_bytes(size) as u64;
        match load {
            Load::Probe { .. } => path.on_probe_sent(),
            Load::Ping | Load::Size(_) | Load::Tail => path.on_app_limited(),
            Load::Data => self.note_tail(bytes, filled, path, now),
            Load::Ack | Load::Parity => {}
        }
        if filled.asks {
            path.on_asked(now);
        }
        if self.flight.span() >= self.span_limit {
            self.make_span(path, now);
        }
        let asking_bytes = if filled.asks { bytes } else { 0 };
        let sent = Sent {
            bytes: asking_bytes,
            segments: filled.segments,
            at_sending: path.on_sent(asking_bytes, now),
            marks: Marks {
                probe: matches!(load, Load::Size(_)),
                protected: filled.protected,
                patient: load == Load::Parity,
            },
        };
        self.flight.push(sent, now);
        bytes
    }

    /// A datagram with payloads left: it may be the last one for a while.
    fn note_tail(&mut self, bytes: u64, filled: Filled, path: &Path, now: Nanos) {
        self.tail.clear();
        let ends = filled.segments > 0 && !filled.protected && !self.has_waiting();
        let round_trip = path.min_rtt();
        if let Some(round_trip) = round_trip.filter(|_| ends && self.parity.is_on(round_trip)) {
            self.tail.set(self.flight.next(), bytes, round_trip, now);
        }
    }

    /// When the last datagram is due to leave once more: never while anything else waits, and not
    /// before who waits for the pacer has had a chance.
    fn tail_due(&self, path: &Path) -> Option<Nanos> {
        let due = self
            .tail
            .due(path.window_limited_at())
            .filter(|_| !self.has_waiting())?;
        Some(due.max(path.release() + tail::CHANCE))
    }

    /// A batch of `bytes` on the wire left.
    pub(crate) fn on_batch(&mut self, bytes: u64, path: &mut Path, now: Nanos) {
        path.on_batch(bytes, now);
        self.parity
            .on_sent(bytes, self.has_waiting(), path.rate(), now);
    }

    /// Acknowledgements and pings took the last numbers of the span while its oldest datagram's
    /// fate is still open: it counts as lost now. Data stops long before.
    fn make_span(&mut self, path: &mut Path, now: Nanos) {
        let floor = self.flight.floor();
        if self
            .flight
            .get(floor)
            .is_some_and(|record| record.fate == Fate::Flying)
        {
            self.count_lost(floor, path, now);
            self.flight.skip_decided();
        }
        self.flight.retire(Nanos::MAX);
    }

    // --- acknowledgements
    // ---------------------------------------------------------------------------------------------

    pub(crate) fn on_ack(
        &mut self,
        ack: &Ack<'_>,
        path: &mut Path,
        now: Nanos,
    ) -> Result<(), AckError> {
        let next = self.flight.next();
        let highest = seq::recover(next, ack.highest_received);
        if highest >= next {
            return Err(AckError::Unsent);
        }
        let (was_outage, spurious_before) = (path.is_outage(), path.spurious_losses());
        self.floor.is_outdated |=
            ack.words.len() > LONG_WORDS && self.flight.floor() / 64 > self.floor.announced / 64;
        let acked = self.take_words(ack, highest, path, now)?;
        let mut rtt_sample = None;
        if let Some(Newest { number, record }) = &acked.newest {
            self.probed = Position::default();
            let delay = (*number == highest).then(|| u64::from(ack.delay) * DELAY_UNIT_NANOS);
            rtt_sample = path.on_newest_acked(*number, record, delay, now);
        }
        path.on_ack_noted(now);
        let large_lost = self.detect_losses(path, now);
        let sizes = SizesSeen {
            large_lost,
            ..acked.sizes
        };
        path.on_sizes(sizes, now);
        if was_outage && acked.newest.is_some() {
            path.on_outage_end(now);
        }
        let newest = acked.newest.as_ref().map(|newest| &newest.record);
        let rate_sample = newest.map(|record| path.take_sample(record));
        if let Some(record) = newest {
            // What was rebuilt too late is counted already.
            let counted = path.spurious_losses() - spurious_before;
            self.count_rebuilt(ack.rebuilt, record.sent, acked.datagrams - counted, path);
        }
        self.parity.on_outcome(acked.datagrams, &self.lost);
        let outcome = AckOutcome {
            acked: acked.bytes,
            rtt_sample,
            rate_sample,
            lost: &self.lost,
            decided_until: self.decided_until(now),
        };
        path.on_ack_outcome(&outcome, now);
        self.lost.clear();
        self.retire(path, now);
        Ok(())
    }

    /// What the peer has rebuilt was lost on the way, whatever the flags say. A peer that says more
    /// than it acknowledges, which is `most`, is not believed.
    fn count_rebuilt(&mut self, rebuilt: u32, sent: Nanos, most: u64, path: &Path) {
        let newly_rebuilt = u64::from(rebuilt.wrapping_sub(self.rebuilt));
        // Half the numbers away it is an older acknowledgement.
        if newly_rebuilt > u64::from(u32::MAX / 2) {
            return;
        }
        self.rebuilt = rebuilt;
        let bytes = path.full_datagram();
        // Their numbers are not known: each counts as a loss of its own.
        self.lost.extend((0..newly_rebuilt.min(most)).map(|_| Lost {
            number: 0,
            sent,
            bytes,
        }));
    }

    fn take_words(
        &mut self,
        ack: &Ack<'_>,
        highest: u64,
        path: &mut Path,
        now: Nanos,
    ) -> Result<NewlyAcked, AckError> {
        let mut acked = NewlyAcked::default();
        let lowest = self.flight.floor() / 64;
        for word in Words::new(ack.words, highest) {
            let (word, bits) = word.map_err(AckError::Malformed)?;
            if word < lowest {
                break;
            }
            let mut newly = bits & self.flight.open_word(word);
            // Downwards like the words: what is acknowledged of a payload then has no holes but
            // those of losses.
            while newly != 0 {
                let bit = newly.ilog2();
                let number = word * 64 + u64::from(bit);
                newly &= !(1 << bit);
                self.on_acked(number, &mut acked, path, now);
            }
        }
        Ok(acked)
    }

    fn on_acked(&mut self, number: u64, acked: &mut NewlyAcked, path: &mut Path, now: Nanos) {
        let record = self.flight.on_acked(number);
        for segment in self.flight.segments(&record) {
            self.queue.on_acked(segment);
        }
        let is_large = path.is_large(&record);
        path.on_acked(number, &record, now);
        acked.sizes.large_arrived |= is_large;
        acked.sizes.small_arrived |= !is_large;
        acked.bytes += u64::from(record.bytes);
        acked.datagrams += 1;
        if acked
            .newest
            .as_ref()
            .is_none_or(|newest| number > newest.number)
        {
            acked.newest = Some(Newest { number, record });
        }
    }

    /// Looks at the flight from its oldest undecided datagram on. True if a datagram larger than
    /// the base size was lost.
    fn detect_losses(&mut self, path: &mut Path, now: Nanos) -> bool {
        let mut large_lost = false;
        path.begin_detection();
        self.lost.clear();
        loop {
            self.flight.skip_decided();
            let number = self.flight.cursor();
            let Some(record) = self.flight.get(number) else {
                return large_lost;
            };
            if !path.detect_loss(number, record, now) {
                return large_lost;
            }
            large_lost |= self.count_lost(number, path, now);
        }
    }

    /// True if the datagram was larger than the base size, and no probe of it.
    fn count_lost(&mut self, number: u64, path: &mut Path, now: Nanos) -> bool {
        let record = self.flight.on_lost(number);
        for segment in self.flight.segments(&record) {
            self.queue.on_lost(segment);
        }
        let Some(lost) = path.on_lost(number, &record, now) else {
            return false;
        };
        self.lost.push(lost);
        path.is_large(&record)
    }

    /// Of every datagram that left before this time, the fate is known.
    fn decided_until(&self, now: Nanos) -> Nanos {
        self.flight
            .get(self.flight.cursor())
            .map_or(now, |record| record.sent)
    }

    fn retire(&mut self, path: &Path, now: Nanos) {
        let remember = REMEMBER_ROUNDS * path.rtt().patient() + path.reordering_window();
        self.flight.retire(now.saturating_sub(remember));
    }

    // --- time
    // ---------------------------------------------------------------------------------------------

    fn probe_deadline(&self, path: &Path) -> Option<Nanos> {
        if self.flight.flying() == 0 {
            return None;
        }
        path.probe_deadline(self.flight.is_patient())
    }

    pub(crate) fn deadlines(&self, path: &Path, earliest: &mut Earliest) {
        earliest.consider(path.loss_deadline(), Timer::Loss);
        earliest.consider(self.probe_deadline(path), Timer::Probe);
        if self.window_room(path) == 0 {
            return;
        }
        if self.has_waiting() || path.is_awaited() {
            earliest.consider(Some(path.release()), Timer::Pace);
        }
        for due in [self.parity.due(), self.tail_due(path)]
            .into_iter()
            .flatten()
        {
            earliest.consider(Some(due.max(path.release())), Timer::Parity);
        }
    }

    pub(crate) fn handle_timeout(&mut self, path: &mut Path, now: Nanos) {
        path.handle_release(now);
        if path.loss_deadline().is_some_and(|due| due <= now) {
            let large_lost = self.detect_losses(path, now);
            let sizes = SizesSeen {
                large_lost,
                ..SizesSeen::default()
            };
            path.on_sizes(sizes, now);
            self.parity.on_outcome(0, &self.lost);
            let outcome = AckOutcome {
                acked: 0,
                rtt_sample: None,
                rate_sample: None,
                lost: &self.lost,
                decided_until: self.decided_until(now),
            };
            path.on_ack_outcome(&outcome, now);
            self.lost.clear();
            self.retire(path, now);
        }
        if self.probe_deadline(path).is_some_and(|due| due <= now) {
            path.on_probe_due(now);
        }
    }

    // --- for people and worlds
    // ---------------------------------------------------------------------------------------------

    pub(crate) fn gauges(&self) -> SenderGauges {
        SenderGauges {
            flight_datagrams: self.flight.span(),
            unacked_bytes: self.queue.bytes() as u64,
            unacked_payloads: self.queue.len() as u64,
            unsent_bytes: self.queue.waiting() as u64,
            peer_delivery_rate: 0,
        }
    }

    /// Adds what was counted here.
    pub(crate) fn count(&self, counters: &mut Counters) {
        counters.sender.segments_repaired += self.queue.repaired();
        let (sum, own) = (&mut counters.parity, self.parity.counters());
        sum.datagrams_protected += own.datagrams_protected;
        sum.rows_sent += own.rows_sent;
        sum.bytes_sent += own.bytes_sent;
        sum.rows_unaffordable += own.rows_unaffordable;
    }

    pub(crate) fn check_invariants(&self, path: &Path) {
        self.queue.check_invariants();
        self.flight.check_invariants(path.delivery().in_flight());
        self.parity.check_invariants();
        assert!(self.flight.span() <= self.span_limit + 1);
        assert!(
            self.flight.span() == 0
                || self.flight.flying() > 0
                || self.flight.cursor() == self.flight.next()
        );
    }

    pub(crate) fn check_sums(&self, path: &Path) {
        self.queue.check_sums();
        self.flight.check_sums(path.delivery().in_flight());
    }
}

#[cfg(test)]
#[path = "sender_tests.rs"]
mod tests;
