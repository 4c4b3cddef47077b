//! One way to the peer: its address, how long it takes, what it carries, and whether it is there.
//!
//! [`Path`] owns what would differ if the connection had a second way: round trip (`rtt`), what
//! became of the bytes (`delivery`), loss detection (`loss`), congestion control and pacing
//! (`congestion`, `pacer`), the largest datagram (`mtu`), and the watch over the peer (`liveness`).
//! The numbers of datagrams are the connection's: one sequence for all its paths.
//!
//! `connection.rs` owns the path and lends it to the sending half, which reports what left, what
//! was acknowledged and what counts as lost, and asks how much may leave. Stage 6 of the walk.

pub(crate) mod delivery;
pub(crate) mod liveness;
pub(crate) mod loss;
pub(crate) mod memory;
pub(crate) mod mtu;
pub(crate) mod pacer;
pub(crate) mod rtt;

use std::net::SocketAddr;
use std::time::Duration;

use self::delivery::{Delivery, Sample};
use self::liveness::Liveness;
use self::loss::Loss;
use self::mtu::Mtu;
use self::pacer::Pacer;
use self::rtt::Rtt;
use crate::ack::Schedule;
use crate::config::{Config, RememberedPath};
use crate::congestion::{AckReport, Controller, Lost};
use crate::crypto::{HEADER, TAG};
use crate::send::flight::{Fate, Record};
use crate::send::load::Load;
use crate::stats::{PathCounters, PathGauges};
use crate::subfield::DATA_HEADER;
use crate::timer::{Earliest, MILLISECOND, Nanos, SECOND, Timer};

/// The longest that payloads wait here packed and unsent, at the present rate: what waits longer
/// cannot be overtaken by what the packet driver would pack in its place.
const UNSENT: Nanos = 3 * MILLISECOND;
/// A buffer's headers are 24 bytes. In more datagrams than this they are not worth counting, so no
/// more are asked for.
const PREFERRED_DATAGRAMS: u64 = 8;

/// What an acknowledgement, or a look for losses, has shown.
pub(crate) struct AckOutcome<'a> {
    /// Bytes newly acknowledged.
    pub(crate) acked: u64,
    /// The round trip of the newest datagram, if the acknowledgement measured it.
    pub(crate) rtt_sample: Option<Nanos>,
    pub(crate) rate_sample: Option<Sample>,
    /// Datagrams newly counted as lost.
    pub(crate) lost: &'a [Lost],
    /// Of every datagram that left before this time, the fate is known.
    pub(crate) decided_until: Nanos,
}

/// One way to the peer.
pub(crate) struct Path {
    remote: SocketAddr,
    rtt: Rtt,
    delivery: Delivery,
    loss: Loss,
    controller: Controller,
    pacer: Pacer,
    mtu: Mtu,
    liveness: Liveness,
    /// Probes that are to leave: datagrams that ask for an acknowledgement after a silence.
    probes_due: u32,
    /// A ping leaves with the next datagrams.
    ping_due: bool,
    /// Somebody was refused because of the pacer and waits for its next release.
    awaits_release: bool,
    /// When the window, not a lack of payloads, held something back last.
    window_limited_at: Option<Nanos>,
    lost_datagrams: u64,
    /// Bytes of size probes that the path did not carry: found out, not lost.
    lost_probe_bytes: u64,
}

impl Path {
    pub(crate) fn new(config: &Config, remote: SocketAddr, now: Nanos) -> Path {
        let mtu = Mtu::new(config.segment, remote, now);
        let datagram = mtu.current() + mtu.overhead();
        let controller = Controller::new(config, datagram as u64, now);
        Path {
            remote,
            rtt: Rtt::default(),
            delivery: Delivery::default(),
            loss: Loss::default(),
            pacer: Pacer::new(controller.rate(), datagram, now),
            controller,
            mtu,
            liveness: Liveness::new(config, now),
            probes_due: 0,
            // The first datagram of a connection measures the round trip.
            ping_due: true,
            awaits_release: false,
            window_limited_at: None,
            lost_datagrams: 0,
            lost_probe_bytes: 0,
        }
    }

    pub(crate) fn remote(&self) -> SocketAddr {
        self.remote
    }

    /// The peer is reached at another address.
    pub(crate) fn move_to(&mut self, remote: SocketAddr, now: Nanos) {
        if remote == self.remote {
            return;
        }
        self.remote = remote;
        self.mtu.on_new_address(remote, now);
        self.set_pace(now);
    }

    pub(crate) fn rtt(&self) -> &Rtt {
        &self.rtt
    }

    pub(crate) fn min_rtt(&self) -> Option<Nanos> {
        self.rtt.minimum()
    }

    pub(crate) fn delivery(&self) -> &Delivery {
        &self.delivery
    }

    pub(crate) fn liveness(&self) -> &Liveness {
        &self.liveness
    }

    pub(crate) fn liveness_mut(&mut self) -> &mut Liveness {
        &mut self.liveness
    }

    /// The link heard that nobody listens at the peer's port.
    pub(crate) fn on_refused(&mut self, now: Nanos) {
        self.liveness.on_refused(self.rtt.smoothed(), now);
    }

    // --- sizes
    // ---------------------------------------------------------------------------------------------

    /// The largest datagram for this load, bytes of UDP payload.
    pub(crate) fn size_for(&self, load: Load) -> usize {
        match load {
            Load::Data | Load::Parity | Load::Tail | Load::Probe { small: false } => {
                self.mtu.current()
            }
            Load::Size(size) => size,
            Load::Probe { small: true } | Load::Ping | Load::Ack => self.mtu.safe(),
        }
    }

    /// Wire bytes of a datagram of `size` bytes of UDP payload.
    pub(crate) fn wire_bytes(&self, size: usize) -> usize {
        size + self.mtu.overhead()
    }

    /// Wire bytes of a full datagram.
    pub(crate) fn full_datagram(&self) -> u64 {
        self.wire_bytes(self.mtu.current()) as u64
    }

    /// Bytes of payload that fit into one datagram.
    pub(crate) fn segment_payload(&self) -> usize {
        self.mtu.current() - HEADER - TAG - DATA_HEADER
    }

    /// Bytes of payload that leave within [`UNSENT`], as long as that is few datagrams.
    pub(crate) fn preferred_payload(&self) -> usize {
        let datagrams = self.controller.rate() * UNSENT / SECOND / self.full_datagram();
        datagrams.min(PREFERRED_DATAGRAMS) as usize * self.segment_payload()
    }

    /// A datagram's size, of its bytes on the wire.
    fn size_of(&self, record: &Record) -> usize {
        record.bytes as usize - self.mtu.overhead().min(record.bytes as usize)
    }

    /// Whether a datagram was larger than what every path carries.
    pub(crate) fn is_large(&self, record: &Record) -> bool {
        self.size_of(record) > mtu::BASE
    }

    pub(crate) fn on_too_large(&mut self, size: usize, now: Nanos) {
        self.mtu.on_too_large(size, now);
        self.set_pace(now);
    }

    /// The size of a probe of the path's datagram size, if one is due. It then counts as sent.
    pub(crate) fn poll_size_probe(&mut self, now: Nanos) -> Option<usize> {
        let known = self.rtt.smoothed().is_some() && !self.loss.is_outage();
        if known {
            self.mtu.poll_probe(now)
        } else {
            None
        }
    }

    // --- how much may leave
    // ---------------------------------------------------------------------------------------------

    /// Bytes per second on the wire that leave at most.
    pub(crate) fn rate(&self) -> u64 {
        self.controller.rate()
    }

    /// Bytes per second that the path is believed to carry; 0: not known.
    pub(crate) fn bandwidth(&self) -> u64 {
        self.controller.bandwidth()
    }

    /// Wire bytes that the window leaves free; less than a datagram counts as nothing.
    pub(crate) fn window_room(&self) -> u64 {
        let datagram = self.full_datagram();
        let (in_flight, window) = (self.delivery.in_flight(), self.controller.window());
        let full = in_flight > 0 && in_flight + datagram > window;
        if full || self.loss.is_outage() {
            return 0;
        }
        window.saturating_sub(in_flight).max(datagram)
    }

    /// Wire bytes of data that window and pacer let leave now.
    pub(crate) fn allowance(&self, now: Nanos) -> u64 {
        self.window_room().min(self.pacer.allowance(now))
    }

    /// The window held something back, or the numbers of datagrams did.
    pub(crate) fn on_window_limited(&mut self, now: Nanos) {
        self.window_limited_at = Some(now);
    }

    /// Somebody was told to wait for the pacer.
    pub(crate) fn await_release(&mut self) {
        self.awaits_release = true;
    }

    pub(crate) fn is_awaited(&self) -> bool {
        self.awaits_release
    }

    pub(crate) fn window_limited_at(&self) -> Option<Nanos> {
        self.window_limited_at
    }

    /// When the pacer lets something leave again; may lie in the past.
    pub(crate) fn release(&self) -> Nanos {
        self.pacer.release()
    }

    /// A payload comes while nothing waits. If the path was idle, what leaves next does not show
    /// what the path carries.
    pub(crate) fn on_rested(&mut self, now: Nanos) {
        // Each acknowledgement opens the window a little: that is no lack of payloads.
        let recently = now.saturating_sub(self.rtt.smoothed().unwrap_or(0));
        if self.pacer.is_idle(now) && self.window_limited_at.is_none_or(|at| at < recently) {
            self.delivery.on_app_limited();
        }
    }

    /// `streams` streams are carried.
    pub(crate) fn set_stream_count(&mut self, streams: usize, now: Nanos) {
        if self.controller.set_flows(streams) {
            self.set_pace(now);
        }
    }

    fn set_pace(&mut self, now: Nanos) {
        let datagram = self.wire_bytes(self.mtu.current());
        self.pacer.set(self.controller.rate(), datagram, now);
    }

    // --- what left
    // ---------------------------------------------------------------------------------------------

    /// Probes that are to leave before all else.
    pub(crate) fn probes_due(&self) -> u32 {
        self.probes_due
    }

    pub(crate) fn is_ping_due(&self) -> bool {
        self.ping_due
    }

    /// A ping leaves with the next datagrams.
    pub(crate) fn ask(&mut self) {
        self.ping_due = true;
    }

    /// A probe left.
    pub(crate) fn on_probe_sent(&mut self) {
        self.probes_due -= 1;
    }

    /// What left last asked less than the path carries.
    pub(crate) fn on_app_limited(&mut self) {
        self.delivery.on_app_limited();
    }

    /// A datagram left that asks for an acknowledgement.
    pub(crate) fn on_asked(&mut self, now: Nanos) {
        self.ping_due = false;
        self.loss.on_asked(now);
    }

    /// A datagram leaves with `bytes` on the wire; 0 for one that asks for nothing.
    pub(crate) fn on_sent(&mut self, bytes: u64, now: Nanos) -> delivery::Snapshot {
        self.delivery.on_sent(bytes, now)
    }

    /// A batch of `bytes` on the wire left.
    pub(crate) fn on_batch(&mut self, bytes: u64, now: Nanos) {
        self.pacer.on_sent(bytes, now);
        if self.controller.handle_time(now) {
            self.set_pace(now);
        }
        self.liveness.on_sent(now);
    }

    // --- what became of it
    // ---------------------------------------------------------------------------------------------

    /// A datagram was acknowledged; its record as it was before.
    pub(crate) fn on_acked(&mut self, number: u64, record: &Record, now: Nanos) {
        let was_lost = record.fate == Fate::Lost;
        self.delivery
            .on_acked(u64::from(record.bytes), was_lost, now);
        self.loss.on_acked(number, record, &self.rtt, now);
        if record.probe {
            self.mtu.on_probe_acked(self.size_of(record), now);
            self.set_pace(now);
        }
    }

    /// The newest datagram of an acknowledgement, after all of it was noted. `delay`: how long the
    /// peer held back the acknowledgement of this datagram; `None` if that is not known.
    pub(crate) fn on_newest_acked(
        &mut self,
        number: u64,
        record: &Record,
        delay: Option<Nanos>,
        now: Nanos,
    ) -> Option<Nanos> {
        self.probes_due = 0;
        let sample = delay.map(|delay| {
            let elapsed = now.saturating_sub(record.sent);
            self.rtt.on_sample(elapsed, delay, now);
            self.rtt.latest()
        });
        self.loss.on_largest(number);
        sample
    }

    /// An acknowledgement was noted: the reordering window shrinks while there is no reordering.
    pub(crate) fn on_ack_noted(&mut self, now: Nanos) {
        self.loss.on_acknowledged(&self.rtt, now);
    }

    /// Before a new look for losses.
    pub(crate) fn begin_detection(&mut self) {
        self.loss.clear_due();
    }

    /// Whether this flying datagram is lost. If not yet, the time when it will be is kept.
    pub(crate) fn detect_loss(&mut self, number: u64, record: &Record, now: Nanos) -> bool {
        self.loss.detect(number, record, &self.rtt, now)
    }

    /// A flying datagram counts as lost. `None` for a probe of the datagram size, whose loss says
    /// nothing about congestion.
    pub(crate) fn on_lost(&mut self, number: u64, record: &Record, now: Nanos) -> Option<Lost> {
        let bytes = u64::from(record.bytes);
        self.delivery.on_lost(bytes);
        if record.probe {
            self.mtu.on_probe_lost(self.size_of(record), now);
            self.lost_probe_bytes += bytes;
            return None;
        }
        self.lost_datagrams += 1;
        Some(Lost {
            number,
            sent: record.sent,
            bytes,
        })
    }

    /// What became of large and small datagrams: a path that carries only the small ones has
    /// become narrower.
    pub(crate) fn on_sizes(&mut self, sizes: mtu::SizesSeen, now: Nanos) {
        if self.mtu.on_sizes(sizes, now) {
            self.set_pace(now);
        }
    }

    /// The delivery-rate sample of an acknowledgement whose newest datagram had this record.
    pub(crate) fn take_sample(&mut self, newest: &Record) -> Sample {
        self.delivery.take_sample(newest.sent, &newest.at_sending)
    }

    /// Several probes in a row went unanswered: nothing is sent but probes.
    pub(crate) fn is_outage(&self) -> bool {
        self.loss.is_outage()
    }

    pub(crate) fn on_outage_end(&mut self, now: Nanos) {
        self.controller.on_outage_end(now);
    }

    /// Losses that were none, so far.
    pub(crate) fn spurious_losses(&self) -> u64 {
        self.loss.spurious()
    }

    /// All of an acknowledgement, or of a look for losses: the rate follows it.
    pub(crate) fn on_ack_outcome(&mut self, outcome: &AckOutcome<'_>, now: Nanos) {
        let report = AckReport {
            rtt: &self.rtt,
            rtt_sample: outcome.rtt_sample,
            acked: outcome.acked,
            lost: outcome.lost,
            in_flight: self.delivery.in_flight(),
            delivered: self.delivery.delivered(),
            rate_sample: outcome.rate_sample,
            decided_until: outcome.decided_until,
            datagram: self.full_datagram(),
        };
        self.controller.on_ack_report(&report, now);
        self.set_pace(now);
    }

    /// The longest that an acknowledgement of a datagram may come after what came before it.
    pub(crate) fn reordering_window(&self) -> Nanos {
        self.loss.window(&self.rtt)
    }

    // --- time
    // ---------------------------------------------------------------------------------------------

    /// When a flying datagram counts as lost.
    pub(crate) fn loss_deadline(&self) -> Option<Nanos> {
        self.loss.deadline()
    }

    /// When to ask the peer, if anything flies. `is_patient`: only parity does, whose
    /// acknowledgement waits for company.
    pub(crate) fn probe_deadline(&self, is_patient: bool) -> Option<Nanos> {
        let delay = if is_patient {
            Schedule::patience(self.rtt.minimum())
        } else {
            self.peer_delay()
        };
        (self.probes_due == 0).then(|| self.loss.probe_deadline(&self.rtt, delay))
    }

    /// How long the peer may hold back an acknowledgement: it follows the same rule as we do.
    fn peer_delay(&self) -> Nanos {
        Schedule::interval(self.rtt.minimum())
    }

    /// The time to ask the peer has come.
    pub(crate) fn on_probe_due(&mut self, now: Nanos) {
        self.loss.on_probe(now);
        self.probes_due = loss::PROBES;
    }

    /// The pacer's release may have come: nobody waits for it any more.
    pub(crate) fn handle_release(&mut self, now: Nanos) {
        if self.pacer.release() <= now {
            self.awaits_release = false;
        }
    }

    /// Three times the time after which the peer is asked: how long what belongs to the past may
    /// still arrive.
    pub(crate) fn three_probe_times(&self) -> Nanos {
        3 * (self.rtt.probe_after() + self.peer_delay())
    }

    pub(crate) fn deadlines(&self, earliest: &mut Earliest) {
        if self.rtt.smoothed().is_some() && !self.loss.is_outage() {
            earliest.consider(self.mtu.deadline(), Timer::Mtu);
        }
    }

    // --- for people and worlds
    // ---------------------------------------------------------------------------------------------

    /// What is known of the path, if anything is.
    pub(crate) fn to_remember(&self) -> Option<RememberedPath> {
        let (bandwidth, minimum) = (self.controller.bandwidth(), self.rtt.minimum()?);
        (bandwidth > 0).then_some(RememberedPath {
            bandwidth,
            round_trip: Duration::from_nanos(minimum),
            age: Duration::ZERO,
        })
    }

    pub(crate) fn gauges(&self) -> PathGauges {
        PathGauges {
            in_flight_bytes: self.delivery.in_flight(),
            window_bytes: self.controller.window(),
            pacing_rate: self.controller.rate(),
            bandwidth: self.controller.bandwidth(),
            phase: self.controller.phase(),
            datagram_size: self.mtu.current(),
            rtt: self.rtt.smoothed().map(Duration::from_nanos),
            min_rtt: self.rtt.minimum().map(Duration::from_nanos),
        }
    }

    /// Adds what was counted here.
    pub(crate) fn count(&self, counters: &mut PathCounters) {
        counters.datagrams_lost += self.lost_datagrams;
        counters.losses_spurious += self.loss.spurious();
        counters.mtu_falls += self.mtu.falls();
        counters.wire_bytes_delivered += self.delivery.delivered();
        counters.wire_bytes_lost += self.delivery.lost().saturating_sub(self.lost_probe_bytes);
    }

    pub(crate) fn check_invariants(&self) {
        self.delivery.check_invariants();
    }
}
