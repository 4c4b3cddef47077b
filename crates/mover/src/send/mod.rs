//! The sending half: payloads (`queue`), datagrams on their way (`flight`), what is lost (`loss`),
//! the end of a burst (`tail`), and how fast it goes.
//!
//! `connection.rs` hands in payloads and the peer's acknowledgements, and fills datagrams from
//! here. Nothing here knows of sessions, addresses or the receiving half.

pub(crate) mod flight;
pub(crate) mod loss;
pub(crate) mod queue;
mod tail;

use std::cell::Cell;
use std::net::SocketAddr;
use std::time::Duration;

use self::flight::{Fate, Flight, Marks, Record};
use self::loss::Loss;
use self::queue::Queue;
use self::tail::Tail;
use crate::ack::{Schedule, Words};
use crate::config::{Config, Limits, RememberedPath};
use crate::congestion::{AckReport, Controller, Lost};
use crate::crypto::{HEADER, TAG};
use crate::error::ParseError;
use crate::fec;
use crate::fec::protect::Protector;
use crate::mtu::{self, Mtu};
use crate::pacer::Pacer;
use crate::rtt::Rtt;
use crate::seq;
use crate::stats::{Counters, PathGauges, SenderGauges};
use crate::subfield::{self, Ack, DATA_HEADER, DELAY_UNIT_NANOS};
use crate::timer::{Earliest, MILLISECOND, Nanos, SECOND, Timer};

/// Numbers of the flight's span that data leaves to acknowledgements and pings, which are not held
/// back.
const SPAN_RESERVE: u64 = 4_096;
/// With more on its way than this, a flow that waits three round trips for a repair outgrows what
/// the receiver may hold for it: repairs of repairs leave twice. Below, the copies (loss squared)
/// would only cost what they cost.
const DOUBLES_FROM: u64 = 16 << 20;
/// What was packed and has not left is at most what leaves in this time.
const UNSENT: Nanos = 3 * MILLISECOND;
/// The headers of a buffer are 24 bytes: in more datagrams than these they are nothing.
const WORTHWHILE_DATAGRAMS: u64 = 8;
/// Lost datagrams are remembered until so many round trips after they left, to take the loss back
/// if their acknowledgement comes after all: it is late by a round trip at most. Acknowledgements
/// reach back as far, so it is no longer than that.
const REMEMBER_ROUNDS: u64 = 2;
/// Flags of acknowledgements that are longer than so many bytes, a word of losses and some, may
/// tell of what is long decided: they eat the budget that the next acknowledgement has to wait for.
const LONG_WORDS: usize = 16;

/// What the next datagram is for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Load {
    /// Payloads, as pacing and window allow.
    Data,
    /// Asks the peer for an acknowledgement after a silence, with data that it may lack. Small:
    /// sure to fit the path.
    Probe { small: bool },
    /// Asks whether the path carries datagrams of this size.
    Size(usize),
    /// Nothing but a ping.
    Ping,
    /// Nothing but an acknowledgement.
    Ack,
    /// A parity row over protected datagrams.
    Parity,
    /// What the last datagram of a burst carried, once more.
    Tail,
}

/// Why an acknowledgement was not taken.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum AckError {
    /// It names a datagram that was never sent.
    Unsent,
    /// Its flags cannot be read.
    Malformed(ParseError),
}

/// What one acknowledgement told.
#[derive(Default)]
struct Told {
    newest: Option<(u64, Record)>,
    acked: u64,
    datagrams: u64,
    large: bool,
    small: bool,
}

/// What a datagram was filled with.
#[derive(Clone, Copy, Default)]
pub(crate) struct Filled {
    /// Segments of payloads.
    pub(crate) segments: usize,
    /// It asks for an acknowledgement.
    pub(crate) asks: bool,
    /// Parity over it will follow: its plain bytes are to be given to `protect`.
    pub(crate) protected: bool,
}

/// The sending half.
pub(crate) struct Sender {
    queue: Queue,
    flight: Flight,
    loss: Loss,
    rtt: Rtt,
    controller: Controller,
    pacer: Pacer,
    mtu: Mtu,
    fec: Protector,
    tail: Tail,
    /// Bytes of IP and UDP headers in front of each datagram.
    overhead: usize,
    /// What of it memory allows.
    flight_span: u64,
    most_span: u64,
    probes_due: u32,
    ping_due: bool,
    /// Where the last probe's piece ended: the next one takes what follows.
    probed: (u64, u32),
    /// `budget` said 0 because of the pacer: somebody waits for its next release.
    refused: Cell<bool>,
    /// When the window, not a lack of payloads, held us back last.
    window_limited_at: Cell<Option<Nanos>>,
    lost: Vec<Lost>,
    lost_datagrams: u64,
    /// Bytes of size probes that the path did not carry: found out, not lost.
    lost_probe_bytes: u64,
    /// What the peer said last of the datagrams that it has rebuilt.
    rebuilt: u32,
    /// The floor that the peer was told last, and whether its acknowledgements show that a newer
    /// one would shorten them.
    told_floor: u64,
    tells_floor: bool,
}

impl Sender {
    pub(crate) fn new(config: &Config, first: u64, to: SocketAddr, now: Nanos) -> Sender {
        let mtu = Mtu::new(config.segment, to, now);
        let overhead = mtu::overhead(to);
        let datagram = mtu.current() + overhead;
        let controller = Controller::new(config, datagram as u64, now);
        Sender {
            queue: Queue::new(&config.limits),
            flight: Flight::new(first),
            loss: Loss::default(),
            rtt: Rtt::default(),
            pacer: Pacer::new(controller.rate(), datagram, now),
            controller,
            mtu,
            fec: Protector::new(now),
            tail: Tail::default(),
            overhead,
            flight_span: config.limits.flight_span,
            most_span: config.limits.flight_span,
            probes_due: 0,
            // The first datagram of a connection measures the round trip.
            ping_due: true,
            probed: (0, 0),
            refused: Cell::new(false),
            window_limited_at: Cell::new(None),
            lost: Vec::new(),
            lost_datagrams: 0,
            lost_probe_bytes: 0,
            rebuilt: 0,
            told_floor: first,
            tells_floor: false,
        }
    }

    // --- payloads in
    // ---------------------------------------------------------------------------------------------

    pub(crate) fn push(
        &mut self,
        payload: Vec<u8>,
        urgent: bool,
        now: Nanos,
    ) -> Result<(), Vec<u8>> {
        if payload.is_empty() || !self.queue.has_room(payload.len()) {
            return Err(payload);
        }
        let rested = self.queue.waiting() == 0 && self.pacer.is_idle(now);
        // Each acknowledgement opens the window a little: that is no lack of payloads.
        let recently = now.saturating_sub(self.rtt.smoothed().unwrap_or(0));
        if rested && self.window_limited_at.get().is_none_or(|at| at < recently) {
            self.flight.on_app_limited();
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
    pub(crate) fn rest(&mut self, now: Nanos) {
        self.queue.rest(now);
    }

    /// What payloads may cost from now on. Records of datagrams may cost as much beside them.
    pub(crate) fn set_limit(&mut self, bytes: usize) {
        self.queue.set_limit(bytes);
        let records = (bytes / flight::RECORD_COST) as u64;
        self.flight_span = self.most_span.min(records.max(2 * SPAN_RESERVE));
    }

    /// Payload bytes that could leave at once, with nothing queued before them.
    pub(crate) fn poll_budget(&self, now: Nanos) -> usize {
        let allowance = self.allowance(now);
        let datagram = (self.mtu.current() + self.overhead) as u64;
        let payload = allowance.max(if allowance > 0 { datagram } else { 0 })
            * self.segment_payload() as u64
            / datagram;
        let budget = (payload as usize).saturating_sub(self.queue.waiting());
        if !self.queue.has_room(budget.min(Limits::MAX_PAYLOAD)) {
            // Only an acknowledgement makes room, and that wakes everybody. The pacer's release may
            // be long past.
            return 0;
        }
        if budget == 0 {
            self.refused.set(true);
        }
        budget
    }

    /// Whether a datagram may leave now, and nothing urgent waits.
    pub(crate) fn takes_urgent(&self, now: Nanos) -> bool {
        self.allowance(now) > 0
            && !self.queue.has_urgent()
            && self.queue.has_room(self.segment_payload())
    }

    /// Wire bytes of data that may leave now.
    pub(crate) fn allowance(&self, now: Nanos) -> u64 {
        let room = self.window_room();
        if room == 0 {
            self.window_limited_at.set(Some(now));
        }
        if room == 0 {
            0
        } else {
            room.min(self.pacer.allowance(now))
        }
    }

    /// Wire bytes that the window leaves free; less than a datagram counts as nothing.
    fn window_room(&self) -> u64 {
        let datagram = (self.mtu.current() + self.overhead) as u64;
        let in_flight = self.flight.in_flight();
        let window = self.controller.window();
        let full = in_flight > 0 && in_flight + datagram > window;
        if full || self.loss.is_outage() || self.flight.span() + SPAN_RESERVE > self.flight_span {
            return 0;
        }
        window.saturating_sub(in_flight).max(datagram)
    }

    /// What is sent at most, bytes per second.
    pub(crate) fn rate(&self) -> u64 {
        self.controller.rate()
    }

    /// So many streams are carried.
    pub(crate) fn set_stream_count(&mut self, flows: usize, now: Nanos) {
        if self.controller.on_flows(flows) {
            self.set_pace(now);
        }
    }

    /// Bytes of payload that leave within the time that a payload may wait unsent, as long as that
    /// is few datagrams.
    pub(crate) fn preferred_payload(&self) -> usize {
        let datagram = (self.mtu.current() + self.overhead) as u64;
        let datagrams = self.controller.rate() * UNSENT / SECOND / datagram;
        datagrams.min(WORTHWHILE_DATAGRAMS) as usize * self.segment_payload()
    }

    /// Bytes of an urgent payload that fit into one datagram, with what its parity needs.
    pub(crate) fn urgent_payload(&self) -> usize {
        self.segment_payload() - fec::RESERVE
    }

    /// Bytes of payload that fit into one datagram.
    pub(crate) fn segment_payload(&self) -> usize {
        self.mtu.current() - HEADER - TAG - DATA_HEADER
    }

    /// Is an urgent payload waiting to be sent?
    pub(crate) fn has_urgent(&self) -> bool {
        self.queue.has_urgent()
    }

    /// Is any payload byte waiting to be sent?
    pub(crate) fn has_waiting(&self) -> bool {
        self.queue.waiting() > 0
    }

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
    pub(crate) fn next_load(&mut self, ack_due: bool, now: Nanos) -> Option<Load> {
        if self.probes_due > 0 {
            // The second one is small: if only it arrives, the path has become narrower.
            return Some(Load::Probe {
                small: self.probes_due == 1,
            });
        }
        let parity = self.fec.due().is_some_and(|due| due <= now);
        if (parity || self.queue.waiting() > 0) && self.allowance(now) > 0 {
            if self.fec.has_row(now) {
                return Some(Load::Parity);
            }
            if self.queue.waiting() > 0 {
                return Some(Load::Data);
            }
        }
        if self.tail_due().is_some_and(|due| due <= now) && self.allowance(now) > 0 {
            return Some(Load::Tail);
        }
        if self.rtt.smoothed().is_some()
            && !self.loss.is_outage()
            && let Some(size) = self.mtu.poll_probe(now)
        {
            return Some(Load::Size(size));
        }
        if self.ping_due {
            return Some(Load::Ping);
        }
        ack_due.then_some(Load::Ack)
    }

    /// The number of the next datagram.
    pub(crate) fn next_number(&self) -> u64 {
        self.flight.next()
    }

    /// The floor, which the peer is told now.
    pub(crate) fn tell_floor(&mut self) -> u64 {
        self.told_floor = self.flight.floor();
        self.tells_floor = false;
        self.told_floor
    }

    /// The peer repeats what is long decided: it has to be told the floor, if nothing else gives
    /// cause to.
    pub(crate) fn tells_floor(&self) -> bool {
        self.tells_floor
    }

    /// The largest datagram for this load.
    pub(crate) fn size_for(&self, load: Load) -> usize {
        match load {
            Load::Data | Load::Parity | Load::Tail | Load::Probe { small: false } => {
                self.mtu.current()
            }
            Load::Size(size) => size,
            Load::Probe { small: true } | Load::Ping | Load::Ack => self.mtu.safe(),
        }
    }

    /// Appends the load's subfields so that `out` grows at most to `end`.
    pub(crate) fn fill(&mut self, out: &mut Vec<u8>, end: usize, load: Load) -> Filled {
        let physical = self.flight.next();
        let mut segments = 0;
        match load {
            Load::Data => return self.fill_data(out, end, physical),
            Load::Ack => return Filled::default(),
            Load::Parity => {
                let before = out.len();
                self.fec.emit(out, end - out.len());
                return Filled {
                    asks: out.len() > before,
                    ..Filled::default()
                };
            }
            Load::Probe { .. } => {
                segments = self.emit_segments(out, end, physical, true);
                if segments == 0 {
                    segments = self.fill_oldest(out, end, physical);
                }
            }
            Load::Tail => {
                segments = self.fill_tail(out, end, physical);
                return Filled {
                    segments,
                    asks: segments > 0,
                    protected: false,
                };
            }
            Load::Size(_) | Load::Ping => subfield::emit_ping(out),
        }
        if let Load::Size(_) = load {
            subfield::emit_padding(out, end - out.len());
        }
        Filled {
            segments,
            asks: true,
            protected: false,
        }
    }

    /// Datagrams with urgent payloads are protected.
    fn fill_data(&mut self, out: &mut Vec<u8>, end: usize, physical: u64) -> Filled {
        let start = out.len();
        self.queue.doubles = self.flight.in_flight() > DOUBLES_FROM;
        let urgent = self.queue.has_urgent() && self.fec.is_on(self.rtt.minimum());
        let segments = self.emit_segments(
            out,
            if urgent { end - fec::RESERVE } else { end },
            physical,
            false,
        );
        let protected = segments > 0 && urgent;
        if protected {
            subfield::protect(&mut out[start..]);
        }
        Filled {
            segments,
            asks: segments > 0,
            protected,
        }
    }

    fn emit_segments(
        &mut self,
        out: &mut Vec<u8>,
        end: usize,
        physical: u64,
        at_once: bool,
    ) -> usize {
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
    pub(crate) fn protect(&mut self, number: u64, plain: &[u8], now: Nanos) {
        self.fec.add(number, plain, self.rtt.minimum(), now);
    }

    /// A datagram that was acknowledged, or that counts as lost, needs no copy.
    fn fill_tail(&mut self, out: &mut Vec<u8>, end: usize, physical: u64) -> usize {
        let Some((number, bytes)) = self.tail.take() else {
            return 0;
        };
        let Some(&record) = self
            .flight
            .get(number)
            .filter(|record| record.fate == Fate::Flying)
        else {
            return 0;
        };
        if !self.fec.pays(bytes) {
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

    fn fill_oldest(&mut self, out: &mut Vec<u8>, end: usize, physical: u64) -> usize {
        let Some(segment) = self
            .queue
            .emit_oldest(out, end - out.len(), physical, self.probed)
        else {
            subfield::emit_ping(out);
            return 0;
        };
        self.probed = (segment.logical, segment.end());
        self.flight.add_segment(segment);
        1
    }

    /// A datagram of `size` bytes left, filled with `load`. Returns its bytes on the wire, for the
    /// pacer.
    pub(crate) fn on_sent(&mut self, size: usize, load: Load, filled: Filled, now: Nanos) -> u64 {
        let Filled {
            segments,
            asks,
            protected,
        } = filled;
        let bytes = size + self.overhead;
        match load {
            Load::Probe { .. } => self.probes_due -= 1,
            Load::Ping | Load::Size(_) | Load::Tail => self.flight.on_app_limited(),
            Load::Data => self.note_tail(bytes, filled, now),
            Load::Ack | Load::Parity => {}
        }
        if asks {
            self.ping_due = false;
            self.loss.on_asked(now);
        }
        let marks = Marks {
            probe: matches!(load, Load::Size(_)),
            protected,
            patient: load == Load::Parity,
        };
        if self.flight.span() >= self.flight_span {
            self.make_span(now);
        }
        self.flight
            .push(if asks { bytes } else { 0 }, segments, marks, now);
        bytes as u64
    }

    /// A datagram with payloads left: it may be the last one for a while.
    fn note_tail(&mut self, bytes: usize, filled: Filled, now: Nanos) {
        self.tail.clear();
        let ends = filled.segments > 0 && !filled.protected && self.queue.waiting() == 0;
        let round_trip = self.rtt.minimum();
        if let Some(round_trip) = round_trip.filter(|_| ends && self.fec.is_on(round_trip)) {
            self.tail
                .set(self.flight.next(), bytes as u64, round_trip, now);
        }
    }

    /// When the last datagram is due to leave once more: never while anything else waits, and not
    /// before who waits for the pacer has had a chance.
    fn tail_due(&self) -> Option<Nanos> {
        let due = self
            .tail
            .due(self.window_limited_at.get())
            .filter(|_| self.queue.waiting() == 0)?;
        Some(due.max(self.pacer.release() + tail::CHANCE))
    }

    /// So many wire bytes of a batch left.
    pub(crate) fn on_batch(&mut self, bytes: u64, now: Nanos) {
        self.pacer.on_sent(bytes, now);
        if self.controller.on_time(now) {
            self.set_pace(now);
        }
        self.fec
            .on_sent(bytes, self.queue.waiting() > 0, self.controller.rate(), now);
    }

    /// Acknowledgements and pings took the last numbers of the span while its oldest datagram's
    /// fate is still open: it counts as lost now. Data stops long before.
    fn make_span(&mut self, now: Nanos) {
        let floor = self.flight.floor();
        if self
            .flight
            .get(floor)
            .is_some_and(|record| record.fate == Fate::Flying)
        {
            self.count_lost(floor, now);
            self.flight.skip_decided();
        }
        self.flight.retire(Nanos::MAX);
    }

    /// A ping leaves with the next datagrams.
    pub(crate) fn ask(&mut self) {
        self.ping_due = true;
    }

    // --- acknowledgements
    // ---------------------------------------------------------------------------------------------

    pub(crate) fn on_ack(&mut self, ack: &Ack<'_>, now: Nanos) -> Result<(), AckError> {
        let next = self.flight.next();
        let highest = seq::recover(next, ack.highest_received);
        if highest >= next {
            return Err(AckError::Unsent);
        }
        let was_outage = self.loss.is_outage();
        let were_spurious = self.loss.spurious();
        self.tells_floor |=
            ack.words.len() > LONG_WORDS && self.flight.floor() / 64 > self.told_floor / 64;
        let told = self.take_words(ack, highest, now)?;
        let mut measured = None;
        if let Some((number, record)) = &told.newest {
            self.probes_due = 0;
            self.probed = (0, 0);
            if *number == highest {
                let elapsed = now.saturating_sub(record.sent);
                self.rtt
                    .on_sample(elapsed, u64::from(ack.delay) * DELAY_UNIT_NANOS, now);
                measured = Some(self.rtt.latest());
            }
            self.loss.on_largest(*number);
        }
        self.loss.on_news(&self.rtt, now);
        let large_lost = self.detect_losses(now);
        if self.mtu.on_news(large_lost, told.large, told.small, now) {
            self.set_pace(now);
        }
        if was_outage && told.newest.is_some() {
            self.controller.on_outage_end(now);
        }
        let sample = told
            .newest
            .as_ref()
            .map(|(_, record)| self.flight.sample(record));
        if let Some((_, newest)) = &told.newest {
            // What was rebuilt too late is counted already.
            let counted = self.loss.spurious() - were_spurious;
            self.count_rebuilt(ack.rebuilt, newest.sent, told.datagrams - counted);
        }
        self.fec.on_news(told.datagrams, &self.lost);
        self.report_to_controller(told.acked, measured, sample, now);
        self.retire(now);
        Ok(())
    }

    /// What the peer has rebuilt was lost on the way, whatever the flags say. A peer that says more
    /// than it acknowledges is not believed.
    fn count_rebuilt(&mut self, rebuilt: u32, sent: Nanos, most: u64) {
        let news = u64::from(rebuilt.wrapping_sub(self.rebuilt));
        // Half the numbers away it is an older acknowledgement.
        if news > u64::from(u32::MAX / 2) {
            return;
        }
        self.rebuilt = rebuilt;
        let bytes = (self.mtu.current() + self.overhead) as u64;
        // Their numbers are not known: each counts as a loss of its own.
        self.lost.extend((0..news.min(most)).map(|_| Lost {
            number: 0,
            sent,
            bytes,
        }));
    }

    fn take_words(&mut self, ack: &Ack<'_>, highest: u64, now: Nanos) -> Result<Told, AckError> {
        let mut told = Told::default();
        let lowest = self.flight.floor() / 64;
        for word in Words::new(ack.words, highest) {
            let (word, bits) = word.map_err(AckError::Malformed)?;
            if word < lowest {
                break;
            }
            let mut news = bits & self.flight.open_word(word);
            // Downwards like the words: what is acknowledged of a payload then has no holes but
            // those of losses.
            while news != 0 {
                let bit = news.ilog2();
                let number = word * 64 + u64::from(bit);
                news &= !(1 << bit);
                self.on_acked(number, &mut told, now);
            }
        }
        Ok(told)
    }

    fn on_acked(&mut self, number: u64, told: &mut Told, now: Nanos) {
        let record = self.flight.on_acked(number, now);
        for segment in self.flight.segments(&record) {
            self.queue.on_acked(segment);
        }
        self.loss.on_acked(number, &record, &self.rtt, now);
        let size = record.bytes as usize - self.overhead.min(record.bytes as usize);
        if record.probe {
            self.mtu.on_probe_acked(size, now);
            self.set_pace(now);
        }
        told.large |= size > mtu::BASE;
        told.small |= size <= mtu::BASE;
        told.acked += u64::from(record.bytes);
        told.datagrams += 1;
        if told
            .newest
            .as_ref()
            .is_none_or(|(newest, _)| number > *newest)
        {
            told.newest = Some((number, record));
        }
    }

    /// Looks at the flight from its oldest undecided datagram on. True if a datagram larger than
    /// the base size was lost.
    fn detect_losses(&mut self, now: Nanos) -> bool {
        let mut large_lost = false;
        self.loss.clear_due();
        self.lost.clear();
        loop {
            self.flight.skip_decided();
            let number = self.flight.cursor();
            let Some(record) = self.flight.get(number) else {
                return large_lost;
            };
            if !self.loss.is_lost(number, record, &self.rtt, now) {
                return large_lost;
            }
            large_lost |= self.count_lost(number, now);
        }
    }

    /// True if the datagram was larger than the base size, and no probe of it.
    fn count_lost(&mut self, number: u64, now: Nanos) -> bool {
        let record = self.flight.on_lost(number);
        for segment in self.flight.segments(&record) {
            self.queue.on_lost(segment);
        }
        let size = record.bytes as usize - self.overhead.min(record.bytes as usize);
        if record.probe {
            self.mtu.on_probe_lost(size, now);
            self.lost_probe_bytes += u64::from(record.bytes);
            return false;
        }
        self.lost_datagrams += 1;
        self.lost.push(Lost {
            number,
            sent: record.sent,
            bytes: u64::from(record.bytes),
        });
        size > mtu::BASE
    }

    fn report_to_controller(
        &mut self,
        acked: u64,
        rtt_sample: Option<Nanos>,
        rate_sample: Option<flight::Sample>,
        now: Nanos,
    ) {
        let undecided = self.flight.get(self.flight.cursor());
        let report = AckReport {
            rtt: &self.rtt,
            rtt_sample,
            acked,
            lost: &self.lost,
            in_flight: self.flight.in_flight(),
            delivered: self.flight.delivered(),
            rate_sample,
            decided_until: undecided.map_or(now, |record| record.sent),
            datagram: (self.mtu.current() + self.overhead) as u64,
        };
        self.controller.on_ack_report(&report, now);
        self.lost.clear();
        self.set_pace(now);
    }

    fn set_pace(&mut self, now: Nanos) {
        self.pacer.set(
            self.controller.rate(),
            self.mtu.current() + self.overhead,
            now,
        );
    }

    fn retire(&mut self, now: Nanos) {
        let remember = REMEMBER_ROUNDS * self.rtt.patient() + self.loss.window(&self.rtt);
        self.flight.retire(now.saturating_sub(remember));
    }

    // --- the path
    // ---------------------------------------------------------------------------------------------

    pub(crate) fn on_too_large(&mut self, size: usize, now: Nanos) {
        self.mtu.on_too_large(size, now);
        self.set_pace(now);
    }

    /// The peer is reached at another address.
    pub(crate) fn on_new_path(&mut self, to: SocketAddr, now: Nanos) {
        let overhead = mtu::overhead(to);
        if overhead != self.overhead {
            self.overhead = overhead;
            self.mtu.on_new_path(to, now);
        }
        self.set_pace(now);
    }

    // --- time
    // ---------------------------------------------------------------------------------------------

    /// How long the peer may hold back an acknowledgement: it follows the same rule as we do.
    fn peer_delay(&self) -> Nanos {
        Schedule::interval(self.rtt.minimum())
    }

    fn probe_deadline(&self) -> Option<Nanos> {
        let delay = if self.flight.is_patient() {
            Schedule::patience(self.rtt.minimum())
        } else {
            self.peer_delay()
        };
        (self.flight.flying() > 0 && self.probes_due == 0)
            .then(|| self.loss.probe_deadline(&self.rtt, delay))
    }

    pub(crate) fn deadlines(&self, earliest: &mut Earliest) {
        earliest.consider(self.loss.deadline(), Timer::Loss);
        earliest.consider(self.probe_deadline(), Timer::Probe);
        if (self.queue.waiting() > 0 || self.refused.get()) && self.window_room() > 0 {
            earliest.consider(Some(self.pacer.release()), Timer::Pace);
        }
        for due in [self.fec.due(), self.tail_due()]
            .into_iter()
            .flatten()
            .filter(|_| self.window_room() > 0)
        {
            earliest.consider(Some(due.max(self.pacer.release())), Timer::Parity);
        }
        if self.rtt.smoothed().is_some() && !self.loss.is_outage() {
            earliest.consider(self.mtu.deadline(), Timer::Mtu);
        }
    }

    pub(crate) fn handle_timeout(&mut self, now: Nanos) {
        if self.pacer.release() <= now {
            self.refused.set(false);
        }
        if self.loss.deadline().is_some_and(|due| due <= now) {
            let large_lost = self.detect_losses(now);
            self.mtu.on_news(large_lost, false, false, now);
            self.fec.on_news(0, &self.lost);
            self.report_to_controller(0, None, None, now);
            self.retire(now);
        }
        if self.probe_deadline().is_some_and(|due| due <= now) {
            self.loss.on_probe(now);
            self.probes_due = loss::PROBES;
        }
    }

    /// Three times the time after which the peer is asked: how long what belongs to the past may
    /// still arrive.
    pub(crate) fn three_probe_times(&self) -> Nanos {
        3 * (self.rtt.probe_after() + self.peer_delay())
    }

    // --- for people and worlds
    // ---------------------------------------------------------------------------------------------

    pub(crate) fn rtt(&self) -> &Rtt {
        &self.rtt
    }

    /// What is known of the path, if anything is.
    pub(crate) fn path_to_remember(&self) -> Option<RememberedPath> {
        let (bandwidth, minimum) = (self.controller.bandwidth(), self.rtt.minimum()?);
        let round_trip = Duration::from_nanos(minimum);
        (bandwidth > 0).then_some(RememberedPath {
            bandwidth,
            round_trip,
            age: Duration::ZERO,
        })
    }

    pub(crate) fn bandwidth(&self) -> u64 {
        self.controller.bandwidth()
    }

    pub(crate) fn path_gauges(&self) -> PathGauges {
        PathGauges {
            in_flight_bytes: self.flight.in_flight(),
            window_bytes: self.controller.window(),
            pacing_rate: self.controller.rate(),
            bandwidth: self.controller.bandwidth(),
            phase: self.controller.phase(),
            datagram_size: self.mtu.current(),
            rtt: self.rtt.smoothed().map(Duration::from_nanos),
            min_rtt: self.rtt.minimum().map(Duration::from_nanos),
        }
    }

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
        let parity = &mut counters.parity;
        parity.datagrams_protected += self.fec.counters.protected;
        parity.rows_sent += self.fec.counters.rows;
        parity.bytes_sent += self.fec.counters.row_bytes;
        parity.rows_unaffordable += self.fec.counters.unaffordable;
        let path = &mut counters.path;
        path.datagrams_lost += self.lost_datagrams;
        path.losses_spurious += self.loss.spurious();
        path.mtu_falls += self.mtu.falls();
        path.wire_bytes_delivered += self.flight.delivered();
        path.wire_bytes_lost += self.flight.lost().saturating_sub(self.lost_probe_bytes);
    }

    pub(crate) fn check_invariants(&self) {
        self.queue.check_invariants();
        self.flight.check_invariants();
        self.fec.check_invariants();
        assert!(self.flight.span() <= self.flight_span + 1);
        assert!(
            self.flight.span() == 0
                || self.flight.flying() > 0
                || self.flight.cursor() == self.flight.next()
        );
    }

    pub(crate) fn check_sums(&self) {
        self.queue.check_sums();
        self.flight.check_sums();
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::identity::Identity;

    /// One datagram with a payload of 1,000 bytes leaves.
    fn send(sender: &mut Sender, now: Nanos) {
        sender
            .push(vec![7; 1_000], false, now)
            .expect("there is room");
        let load = sender.next_load(false, now).expect("the window is open");
        let size = sender.size_for(load);
        let mut out = vec![0; HEADER];
        let filled = sender.fill(&mut out, size - TAG, load);
        let wire = sender.on_sent(out.len() + TAG, load, filled, now);
        sender.on_batch(wire, now);
    }

    #[test]
    fn full_memory_waits_for_an_acknowledgement_and_not_for_the_pacer() {
        let identity = Arc::new(Identity::generate());
        let mut config = Config::new(identity.clone(), identity.public_key(), 0, [0; 32]);
        config.limits.send_bytes = 3 * (1_000 + queue::ENTRY_COST);
        let mut sender = Sender::new(&config, 0, "192.0.2.1:1".parse().expect("an address"), 0);
        for at in 0..3 {
            send(&mut sender, at * 20 * MILLISECOND);
        }
        let mut now = 60 * MILLISECOND;
        assert!(
            sender.window_room() > 0 && sender.pacer.release() < now,
            "neither window nor pacer hold it back"
        );
        for _ in 0..3 {
            assert_eq!(sender.poll_budget(now), 0);
            let mut earliest = Earliest::default();
            sender.deadlines(&mut earliest);
            assert!(earliest.get().is_none_or(|(at, _)| at > now));
            sender.handle_timeout(now);
            now += MILLISECOND;
        }
        // With room again it is the pacer that is waited for.
        sender.set_limit(100_000);
        assert!(sender.poll_budget(now) > 0);
    }
}
