//! `Auto`: a model of the path (its bandwidth and shortest round trip) instead of a reaction to
//! loss.
//!
//! Built on the ideas of BBR (draft-ietf-ccwg-bbr) with a learned loss floor: the bandwidth is the
//! best delivery rate of the last two probing cycles; random loss is measured while sending below
//! the bandwidth (`floor.rs`) and given back to the samples, so that it costs nothing; loss beyond
//! that floor, or a queue that does not go away, lowers a short-lived bound.
//!
//! Beside others (a queue stood while we cruised) everybody gives room in proportion until the
//! queue is gone, and each asks for about the same part of the path: a small share grows by more of
//! itself than a large one, so that shares become equal.
//!
//! Life: *startup* doubles the rate each round until it stops growing (skipped when the rate is
//! configured) → *drain* empties the queue that this made → *cruise*, every few seconds *up* to ask
//! for more and *down* to take back what that queued. *Probe RTT* empties the pipe when the
//! shortest round trip was not seen for ten seconds.

mod competitive;
mod loss_floor;
mod policer;
mod startup;

use self::competitive::{Competitive, Watch};
use self::loss_floor::{LossFloor, excess};
use self::policer::{Lossy, Policer};
use self::startup::{Glance, PLATEAU_DATAGRAMS, RESUME_PERCENT};
use super::initial::{INITIAL_DATAGRAMS, SMALLEST_WINDOW_DATAGRAMS, initial_rate};
use super::rate::{bytes_in, rate_of};
use super::report::AckReport;
use crate::ack::Schedule;
use crate::config::RememberedPath;
use crate::send::flight::Sample;
use crate::timer::{MILLISECOND, Nanos, SECOND};

/// Gains in thousandths. Startup: 4 ln 2, the smallest that doubles the delivery rate each round.
const STARTUP_GAIN: u64 = 2_770;
const DRAIN_GAIN: u64 = 500;
const UP_GAIN: u64 = 1_250;
/// Beside others an up asks for more the less its last one pushed them aside: a small share asks
/// for as much of the path as a large one.
const UP_GAIN_MOST: u64 = 4_000;
/// It pushes others aside when it gets less than so much of what it asked for, in thousandths:
/// about a fourteenth of the path is taken.
const UP_PUSHED: u64 = 930;
const DOWN_GAIN: u64 = 750;
/// When no queue is seen.
const DOWN_QUIET_GAIN: u64 = 900;
/// While measuring the loss floor: below the bandwidth even if what was given back for the floor
/// believed so far was our own loss, so that no queue and no loss is ours.
const FLOOR_GAIN: u64 = 950;
/// Cruising leaves a fifth of a percent for the measurement's own error; more while a queue stands.
const CRUISE_GAIN: u64 = 998;
const CRUISE_CAREFUL_GAIN: u64 = 985;
const CRUISE_QUEUED_GAIN: u64 = 960;
/// While a queue stands that others keep up: everybody who does so gives room in proportion.
const CRUISE_STANDING_GAIN: u64 = 900;
const HALF_GAIN: u64 = 500;
const UNPROVED_ROUNDS: u64 = 4;
/// In the first rounds what was delivered in the last one says less of what the next may carry:
/// datagrams come in one burst in each.
const EARLY_ROUNDS: u64 = 6;
/// Loss in each of two rounds that ends startup when it comes with a queue, in percent.
const HEAVY_LOSS_PERCENT: u64 = 20;
/// While a queue of more than half a round trip stands: the path has shrunk.
const DEEP_GAIN: u64 = 500;
/// It is measured for a round trip and at least so long, and lowers the bound to no less than this
/// at once.
const DEEP_SPAN: Nanos = 50 * MILLISECOND;
const DEEP_CUT_PERCENT: u64 = 40;
/// So many datagrams are no queue.
const STANDING_DATAGRAMS: u64 = 3;
/// Loss is judged over so many datagrams or a round, whichever is more.
const CALM_DATAGRAMS: u64 = 400;
/// A policer takes fewer neighbours than this from the two datagrams of a slow link's quantum.
const POLICED_RUN_DATAGRAMS: u64 = 3;
/// Time between two attempts to go up: 2 s and up to 1 s of chance, or 8 rounds.
const CRUISE: Nanos = 2 * SECOND;
const CRUISE_ROUNDS: u64 = 8;
/// The queue that an up makes before it is noticed: a twenty-fifth of the round trip, within these.
const UP_QUEUE: Nanos = 4 * MILLISECOND;
const UP_QUEUE_MOST: Nanos = 5 * MILLISECOND;
/// An up ends after so many rounds without a queue: the path has grown by more than this cycle can
/// find out.
const UP_ROUNDS: u32 = 12;
/// Beside others, who make room for whoever asks: it may not go on for long.
const COMPETING_ROUNDS: u32 = 2;
/// Beside others an up is fast for two round trips, so that a sample sees all of it, but on a long
/// path no longer than this.
const COMPETING_UP: Nanos = 100 * MILLISECOND;
/// Below so many datagrams in a round, up takes the whole round.
const SHORT_ROUND_DATAGRAMS: u64 = 100;
/// The shortest round trip is measured again when nothing confirmed it for so long.
const PROBE_RTT_EVERY: Nanos = 10 * SECOND;
/// But not before two attempts to go up on a long path, after each of which it is looked for more
/// cheaply.
const PROBE_RTT_ROUNDS: u64 = 24;
const PROBE_RTT_TIME: Nanos = 200 * MILLISECOND;
/// On short paths acknowledgements come in lumps that make single samples and rounds look fast:
/// both then last at least this.
const SHORTEST_ROUND: Nanos = 10 * MILLISECOND;
/// A shorter round trip is no measure of a rate: two TPOs on one host.
const SHORTEST_ROUND_TRIP: Nanos = MILLISECOND / 20;
/// Round means are compared with the least of the last two periods: what jitter adds is no queue.
const MEAN_PERIOD: Nanos = 15 * SECOND;

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Phase {
    Startup,
    Drain,
    Cruise,
    Up,
    Down,
    ProbeRtt,
    Competitive,
}

/// What one packet-timed round saw.
#[derive(Default)]
struct Round {
    /// Ends when a datagram sent after this much was delivered is acknowledged.
    end: u64,
    since: Nanos,
    best_rate: u64,
    /// At least one sample was not limited by what there was to send.
    full: bool,
    rtt_sum: u128,
    rtt_count: u64,
    rtt_least: Nanos,
    delivered: u64,
    lost: u64,
    /// Of neighbouring losses.
    runs: u64,
}

/// Rounds outside of an attempt to go up.
#[derive(Default)]
struct Calm {
    delivered: u64,
    lost: u64,
}

/// On short paths, samples are taken over this instead.
#[derive(Default)]
struct Span {
    since: Nanos,
    delivered: u64,
    lost: u64,
    app_limited: bool,
}

/// The model.
pub(crate) struct Auto {
    cap: Option<u64>,
    remembered: Option<RememberedPath>,
    /// A bandwidth that was remembered and is not proved yet, and the round that decides.
    resuming: Option<(u64, u64)>,
    /// Begun with a bandwidth that no whole round has shown yet.
    unproved: bool,
    dice: fastrand::Rng,
    datagram: u64,
    /// Datagrams that may be on their way before anything is known of the path; and so many have
    /// been delivered.
    initial: u64,
    begun: bool,
    phase: Phase,
    phase_at: Nanos,
    /// Best delivery rate of the previous and of this probing cycle.
    best: [u64; 2],
    cycle_full: bool,
    /// Bound until the next attempt to go up.
    short: Option<u64>,
    round: Round,
    span: Span,
    rounds: u64,
    plateau: u64,
    plateau_rounds: u32,
    heavy_rounds: u32,
    floor: LossFloor,
    measuring_floor: bool,
    glance: Glance,
    /// What was delivered and lost since loss was judged last.
    calm: Calm,
    /// How long this up keeps its gain, and whether its first round is over.
    up_time: Nanos,
    up_rounds: u32,
    /// Round trips of this up, quickly smoothed, and where they tell of its queue.
    up_rtt: Nanos,
    up_limit: Nanos,
    next_up: Nanos,
    /// Least mean round trip of this and the previous period.
    mean: [Nanos; 2],
    mean_at: Nanos,
    smoothed: Nanos,
    /// A queue that counts as evidence, and one that cruising gives way to.
    queued: bool,
    begins_to_queue: bool,
    /// A queue stood for the whole of the last round of cruising: others are there.
    standing: bool,
    /// The round trip says that more than half a round trip's queue stands; and what was delivered
    /// since it does, for a while.
    deep: bool,
    deep_span: Option<(Nanos, u64)>,
    /// When a round trip last said that no queue stood, and the bandwidth then.
    quiet_at: Nanos,
    quiet_bandwidth: u64,
    /// Of who fills the buffer, and if somebody does, what we do then.
    watch: Watch,
    crowd: Option<Box<Competitive>>,
    /// A queue stood in this cycle.
    stood: bool,
    /// This up meets others: its end is when it has made its own queue beside theirs.
    competing: bool,
    /// Beside others: what this up asks for, in thousandths, and of which bandwidth.
    up_gain: u64,
    up_base: u64,
    policer: Policer,
    /// The start from the configured rate has been looked at.
    jumped: bool,
    probe_rtt_at: Nanos,
    halved_until_round: u64,
    rate: u64,
    /// When the fast part of an up is over, whatever is acknowledged meanwhile, and the rate from
    /// then on.
    slows: Option<(Nanos, u64)>,
    window: u64,
}

impl Auto {
    pub(in crate::congestion) fn new(
        cap: Option<u64>,
        remembered: Option<RememberedPath>,
        tolerance: f64,
        datagram: u64,
        seed: u64,
        now: Nanos,
    ) -> Auto {
        Auto {
            cap,
            remembered,
            resuming: None,
            unproved: false,
            dice: fastrand::Rng::with_seed(seed),
            datagram,
            initial: INITIAL_DATAGRAMS,
            begun: false,
            phase: Phase::Startup,
            phase_at: now,
            best: [0; 2],
            cycle_full: false,
            short: None,
            round: Round {
                since: now,
                rtt_least: Nanos::MAX,
                ..Round::default()
            },
            span: Span {
                since: now,
                ..Span::default()
            },
            rounds: 0,
            plateau: 0,
            plateau_rounds: 0,
            heavy_rounds: 0,
            floor: LossFloor::new(tolerance),
            measuring_floor: false,
            glance: Glance::new(now),
            calm: Calm::default(),
            up_time: 0,
            up_rounds: 0,
            up_rtt: 0,
            up_limit: 0,
            next_up: 0,
            mean: [Nanos::MAX; 2],
            mean_at: now,
            smoothed: 0,
            queued: false,
            begins_to_queue: false,
            standing: false,
            deep: false,
            deep_span: None,
            quiet_at: now,
            quiet_bandwidth: 0,
            watch: Watch::new(now),
            crowd: None,
            stood: false,
            competing: false,
            up_gain: UP_GAIN,
            up_base: 0,
            policer: Policer::default(),
            jumped: false,
            probe_rtt_at: now,
            halved_until_round: 0,
            rate: initial_rate(cap, datagram),
            slows: None,
            window: INITIAL_DATAGRAMS * datagram,
        }
    }

    pub(in crate::congestion) fn rate(&self) -> u64 {
        self.rate
    }

    pub(in crate::congestion) fn window(&self) -> u64 {
        self.window
    }

    pub(in crate::congestion) fn bandwidth(&self) -> u64 {
        let best = self.best[0].max(self.best[1]);
        let best = self.short.map_or(best, |short| best.min(short));
        self.policer.rate().map_or(best, |rate| best.min(rate))
    }

    pub(in crate::congestion) fn phase(&self) -> &'static str {
        match self.phase {
            Phase::Startup => "startup",
            Phase::Drain => "drain",
            Phase::Cruise => "cruise",
            Phase::Up => "up",
            Phase::Down if self.measuring_floor => "floor",
            Phase::Down => "down",
            Phase::ProbeRtt => "probe rtt",
            Phase::Competitive => "crowd",
        }
    }

    pub(in crate::congestion) fn on_outage_end(&mut self, now: Nanos) {
        self.crowd = None;
        self.watch.forgive(now);
        if self.phase == Phase::Competitive {
            self.enter(Phase::Drain, now);
        }
        // Half the rate for a round, until the path has shown that it is still the same.
        self.halved_until_round = self.rounds + 2;
    }

    /// Time passed. True if the rate changed.
    pub(in crate::congestion) fn on_time(&mut self, now: Nanos) -> bool {
        let Some((_, rate)) = self.slows.filter(|(at, _)| now >= *at) else {
            return false;
        };
        (self.rate, self.slows) = (rate, None);
        true
    }

    pub(in crate::congestion) fn on_ack_report(&mut self, report: &AckReport<'_>, now: Nanos) {
        self.datagram = report.datagram;
        if report.delivered >= self.initial * self.datagram {
            (self.begun, self.initial) = (true, INITIAL_DATAGRAMS);
        }
        self.round.runs += self.floor.on_lost(report.lost);
        self.round.lost += report.lost_bytes();
        let Some(minimum) = report.rtt.minimum() else {
            return;
        };
        if let Some(measured) = report.rtt_sample {
            self.on_rtt(measured, report.delivered, minimum, now);
        }
        if report.acked > 0 {
            self.on_acked(report, minimum, now);
        }
        if self.phase == Phase::Competitive {
            self.step_crowd(report, minimum, now);
        } else {
            self.set_rate_and_window(report, minimum, now);
        }
    }

    fn on_acked(&mut self, report: &AckReport<'_>, minimum: Nanos, now: Nanos) {
        self.round.delivered += report.acked;
        let mut round_ended = false;
        if let Some(sample) = report.rate_sample {
            if let Some(believed) =
                self.floor
                    .on_acked(report.acked, sample.sent, report.decided_until)
            {
                self.take_back(believed);
            }
            let long_enough = now >= self.round.since + SHORTEST_ROUND;
            round_ended = sample.prior_delivered >= self.round.end && long_enough;
            if let Some(sample) = self.smooth(sample, report, minimum, now) {
                self.on_sample(&sample);
                if self.deep && self.unproved {
                    self.forget(self.round.best_rate, now);
                }
            }
            if sample.app_limited && self.heavy_rounds == 0 {
                self.deep_span = None;
            }
        }
        self.cut(report.acked, minimum, now);
        if !self.jumped {
            self.jump(minimum, now);
        }
        if round_ended {
            self.on_round(report, minimum, now);
        }
        self.step(report, minimum, round_ended, now);
    }

    /// While a deep queue stands, all that arrives comes out of it: this is what the path gives us
    /// now, and rounds are too long to wait for.
    fn cut(&mut self, acked: u64, minimum: Nanos, now: Nanos) {
        if !self.is_deep() {
            self.deep_span = None;
            return;
        }
        let (since, delivered) = self
            .deep_span
            .map_or((now, 0), |(since, delivered)| (since, delivered + acked));
        self.deep_span = Some((since, delivered));
        if now - since >= DEEP_SPAN.max(minimum) {
            let rate = rate_of(
                (delivered as f64 / (1.0 - self.floor.ratio())) as u64,
                now - since,
            );
            let bandwidth = self.bandwidth();
            self.short = Some(rate.clamp(bandwidth * DEEP_CUT_PERCENT / 100, bandwidth));
            self.stood = true;
            self.deep_span = None;
        }
    }

    /// The floor has been measured: what was given back beyond it, while a floor of `believed` was,
    /// is taken back.
    fn take_back(&mut self, believed: f64) {
        let ratio = self.floor.ratio();
        if believed > ratio {
            let share = (1.0 - believed) / (1.0 - ratio);
            self.best = self.best.map(|best| (best as f64 * share) as u64);
        }
    }

    fn on_rtt(&mut self, measured: Nanos, delivered: u64, minimum: Nanos, now: Nanos) {
        self.glance(measured, delivered, minimum, now);
        self.round.rtt_sum += u128::from(measured);
        self.round.rtt_count += 1;
        self.round.rtt_least = self.round.rtt_least.min(measured);
        self.smoothed = if self.smoothed == 0 {
            measured
        } else {
            (7 * self.smoothed + measured) / 8
        };
        self.up_rtt = (self.up_rtt + measured) / 2;
        let base = self.mean[0].min(self.mean[1]).max(minimum);
        let base = if base == Nanos::MAX { minimum } else { base };
        // On a slow link a datagram that waits for the one before it is no queue yet.
        let one = (self.few() / STANDING_DATAGRAMS).saturating_sub(2 * MILLISECOND);
        self.queued = self.smoothed > base + minimum / 40 + 3 * MILLISECOND / 2 + one;
        self.begins_to_queue = self.smoothed > base + minimum / 80 + MILLISECOND + one;
        self.deep = self.smoothed.min(measured) > base + minimum / 2 + 10 * MILLISECOND;
        if measured <= self.standing_above(minimum) {
            (self.quiet_at, self.quiet_bandwidth) = (now, self.bandwidth());
        }
        let gave_way = self.bandwidth() <= self.quiet_bandwidth / 2;
        self.watch.on_rtt(
            measured,
            self.smoothed,
            (minimum, self.few()),
            gave_way,
            now,
        );
    }

    /// The sample to believe: this one, or on a short path all of the span, when it is over.
    fn smooth(
        &mut self,
        sample: Sample,
        report: &AckReport<'_>,
        minimum: Nanos,
        now: Nanos,
    ) -> Option<Sample> {
        if minimum >= SHORTEST_ROUND {
            return Some(sample).filter(|sample| 2 * sample.interval >= minimum);
        }
        let span = &mut self.span;
        span.delivered += report.acked;
        span.lost += report.lost_bytes();
        span.app_limited |= sample.app_limited;
        if now < span.since + SHORTEST_ROUND {
            return None;
        }
        let span = std::mem::replace(
            span,
            Span {
                since: now,
                ..Span::default()
            },
        );
        let Span {
            since,
            delivered,
            lost,
            app_limited,
        } = span;
        Some(Sample {
            delivered,
            lost,
            interval: now - since,
            app_limited,
            ..sample
        })
    }

    fn is_deep(&self) -> bool {
        self.deep && matches!(self.phase, Phase::Cruise | Phase::Up | Phase::Down)
    }

    fn on_sample(&mut self, sample: &Sample) {
        // What a full queue drops is not the path's own loss: it comes with the queue, and mostly
        // before there is a floor to tell it from.
        let ours = self.deep || (self.queued && !self.floor.is_measured());
        let given_back = if ours {
            0
        } else {
            self.floor
                .give_back(sample.delivered, sample.lost, self.datagram)
        };
        let rate = rate_of(sample.delivered + given_back, sample.interval);
        self.round.best_rate = self.round.best_rate.max(rate);
        if rate >= self.best[0].max(self.best[1]) || !sample.app_limited {
            self.best[1] = self.best[1].max(rate);
        }
        if !sample.app_limited {
            self.cycle_full = true;
            self.round.full = true;
        }
    }

    fn on_round(&mut self, report: &AckReport<'_>, minimum: Nanos, now: Nanos) {
        self.rounds += 1;
        let fresh = Round {
            end: report.delivered,
            since: now,
            rtt_least: Nanos::MAX,
            ..Round::default()
        };
        let round = std::mem::replace(&mut self.round, fresh);
        if round.rtt_count > 0 {
            let mean = (round.rtt_sum / u128::from(round.rtt_count)) as Nanos;
            if now > self.mean_at + MEAN_PERIOD {
                self.mean = [self.mean[1], Nanos::MAX];
                self.mean_at = now;
            }
            self.mean[1] = self.mean[1].min(mean);
        }
        let total = round.delivered + round.lost;
        let heavy = round.lost * 100 > HEAVY_LOSS_PERCENT * total
            && total > 2 * PLATEAU_DATAGRAMS * self.datagram;
        self.heavy_rounds = if heavy { self.heavy_rounds + 1 } else { 0 };
        self.validate(&round, now);
        // Its first datagrams come back in the second round, and with its queue, if it makes one,
        // by the end of the fourth.
        self.unproved &= self.rounds < UNPROVED_ROUNDS;
        match self.phase {
            Phase::Startup => self.on_startup_round(&round, minimum),
            // What stands during these is the queue that we have just made.
            Phase::Up | Phase::Down | Phase::Drain => {}
            Phase::Cruise if round.since < self.phase_at => {}
            // Nor is a queue in a crowd ours.
            Phase::ProbeRtt if self.crowd.is_some() => {}
            Phase::Cruise | Phase::ProbeRtt => self.on_calm_round(&round, minimum, now),
            Phase::Competitive => {
                let too_much = self.too_much(&round);
                if let Some(crowd) = self.crowd.as_mut().filter(|_| too_much) {
                    crowd.on_too_much();
                }
            }
        }
    }

    /// Is there more loss than the floor explains? Short rounds are judged together: of many small
    /// looks some would see too much by chance.
    fn too_much(&mut self, round: &Round) -> bool {
        self.calm.delivered += round.delivered;
        self.calm.lost += round.lost;
        let total = self.calm.delivered + self.calm.lost;
        total >= CALM_DATAGRAMS * self.datagram && {
            let lost = std::mem::take(&mut self.calm).lost;
            excess(lost, total, self.datagram, &self.floor, self.queued)
        }
    }

    /// Without an attempt to go up, loss beyond the floor or a standing queue says that the
    /// bandwidth shrank.
    fn on_calm_round(&mut self, round: &Round, minimum: Nanos, now: Nanos) {
        if !round.full || round.rtt_count == 0 {
            return;
        }
        let too_much = self.too_much(round);
        self.standing = self.stands(round, minimum);
        self.stood |= self.standing;
        if self.standing || too_much {
            let bandwidth = self.bandwidth();
            self.short = Some(round.best_rate.max(bandwidth * 7 / 10).min(bandwidth));
            let rate = rate_of(round.delivered, now - round.since);
            let queued = self.stood || self.queued;
            let longest_run = (self.rate / 2_000).max(POLICED_RUN_DATAGRAMS * self.datagram);
            let &Round {
                delivered,
                lost,
                runs,
                ..
            } = round;
            let seen = Lossy {
                delivered,
                lost,
                runs,
                longest_run,
                rate,
                queued,
                round: self.rounds,
            };
            if self.policer.on_lossy_round(&seen, minimum, now) {
                self.calm = Calm::default();
            }
        }
    }

    fn enter(&mut self, phase: Phase, now: Nanos) {
        self.phase = phase;
        self.phase_at = now;
    }

    fn start_cruise(&mut self, minimum: Nanos, now: Nanos) {
        if std::mem::take(&mut self.competing) {
            let pushed = self.bandwidth() * 1_000 < self.up_base * self.up_gain * UP_PUSHED / 1_000;
            let more =
                (self.up_gain - 1_000) * if pushed { 2 } else { 3 } / if pushed { 3 } else { 2 };
            self.up_gain = (1_000 + more).clamp(UP_GAIN, UP_GAIN_MOST);
        }
        self.enter(Phase::Cruise, now);
        let chance = self.dice.u64(0..SECOND);
        self.next_up = now + (CRUISE + chance).max(CRUISE_ROUNDS * minimum);
    }

    fn after_drain(&mut self, minimum: Nanos, now: Nanos) {
        // What stood so far was start-up's.
        self.watch.forgive(now);
        if self.floor.is_due(self.smoothed, now) {
            self.measuring_floor = true;
            self.enter(Phase::Down, now);
        } else {
            self.start_cruise(minimum, now);
        }
    }

    fn start_up(&mut self, report: &AckReport<'_>, minimum: Nanos, now: Nanos) {
        // Beside others what was once reached is worth nothing: what is left of it is where
        // everybody begins.
        if let Some(rate) = self.policer.on_cycle() {
            self.best = self.best.map(|best| best.min(rate));
        }
        self.competing = std::mem::take(&mut self.stood);
        if let Some(short) = self.short.take().filter(|_| self.competing) {
            self.best = self.best.map(|best| best.min(short));
        }
        self.standing = false;
        self.up_base = self.bandwidth();
        // At a quarter more than the path carries, it queues a quarter of this time.
        let queue = (minimum / 25).clamp(UP_QUEUE, UP_QUEUE_MOST);
        self.up_time = 4 * queue;
        if self.competing {
            self.up_time = self.up_time.max((2 * minimum).min(COMPETING_UP));
        }
        self.up_rtt = self.smoothed;
        self.up_limit = self.smoothed + queue / 2 + 2 * report.rtt.varies();
        if bytes_in(self.bandwidth(), minimum) < SHORT_ROUND_DATAGRAMS * self.datagram {
            self.up_time = self.up_time.max(minimum);
        }
        self.up_rounds = 0;
        self.enter(Phase::Up, now);
    }

    fn end_cycle(&mut self, now: Nanos) {
        if self.cycle_full {
            self.best = [self.best[1], 0];
            self.cycle_full = false;
        }
        self.measuring_floor = self.floor.is_due(self.smoothed, now);
        self.enter(Phase::Down, now);
    }

    fn product(&self, minimum: Nanos) -> u64 {
        bytes_in(self.bandwidth(), minimum)
    }

    fn step(&mut self, report: &AckReport<'_>, minimum: Nanos, round_ended: bool, now: Nanos) {
        // What is in flight beyond the product without being a queue: acknowledgements held back.
        let held_back =
            bytes_in(self.bandwidth(), Schedule::interval(Some(minimum))) + 2 * self.datagram;
        let drained = report.in_flight <= self.product(minimum) + held_back;
        let elapsed = now.saturating_sub(self.phase_at);
        match self.phase {
            Phase::Startup if self.startup_is_over() => self.enter(Phase::Drain, now),
            Phase::Startup => {}
            Phase::Drain if drained || elapsed > 4 * minimum.max(SHORTEST_ROUND) => {
                self.after_drain(minimum, now)
            }
            Phase::Drain => {}
            Phase::Cruise if self.watch.is_crowded(minimum, now) => self.enter_crowd(report, now),
            // The deep queue of start-up did not let it be measured.
            Phase::Cruise
                if !self.floor.is_measured()
                    && !self.queued
                    && self.floor.is_due(self.smoothed, now) =>
            {
                self.measuring_floor = true;
                self.enter(Phase::Down, now);
            }
            Phase::Cruise if self.policer.holds(now) => {}
            Phase::Cruise if now >= self.next_up => self.start_up(report, minimum, now),
            Phase::Cruise => {}
            Phase::Up => self.step_up(report, minimum, round_ended, now),
            Phase::Down => self.step_down(report, drained, minimum, now),
            Phase::ProbeRtt => self.step_probe_rtt(minimum, round_ended, now),
            Phase::Competitive => {}
        }
        let stale = now.saturating_sub(report.rtt.minimum_at().max(self.probe_rtt_at));
        let may = matches!(self.phase, Phase::Cruise | Phase::Down | Phase::Competitive)
            && !self.measuring_floor;
        if may && stale > PROBE_RTT_EVERY.max(PROBE_RTT_ROUNDS * minimum) {
            self.quiet_bandwidth = self.bandwidth().max(self.quiet_bandwidth / 2);
            self.enter(Phase::ProbeRtt, now);
        }
    }

    fn step_up(&mut self, report: &AckReport<'_>, minimum: Nanos, round_ended: bool, now: Nanos) {
        let elapsed = now.saturating_sub(self.phase_at);
        // The first acknowledgements tell about the time before.
        let told = self.up_rounds > 0
            || elapsed > minimum.max(SHORTEST_ROUND) * if self.competing { 2 } else { 1 };
        let total = self.round.delivered + self.round.lost;
        let queued = (self.queued && !self.competing) || self.up_rtt > self.up_limit;
        let too_much = excess(self.round.lost, total, self.datagram, &self.floor, queued);
        if told && (queued || too_much) {
            self.end_cycle(now);
            return;
        }
        // What the fast part did shows a round trip after its end and the queue that it made, and
        // more than one acknowledgement tells it.
        let shown =
            elapsed > minimum + self.up_time * 5 / 4 + 3 * Schedule::interval(Some(minimum));
        if !round_ended || !told || !shown {
            return;
        }
        self.up_rounds += 1;
        let limited = report.is_app_limited();
        let at_cap = self
            .cap
            .is_some_and(|cap| self.bandwidth() >= cap * 99 / 100);
        let most = if self.competing {
            COMPETING_ROUNDS
        } else {
            UP_ROUNDS
        };
        if limited || at_cap || self.up_rounds >= most {
            self.end_cycle(now);
        } else {
            // No queue yet: there may be much more.
            self.up_base = self.bandwidth();
            self.up_time = self.up_time.saturating_mul(2);
            self.phase_at = now;
        }
    }

    fn looks_for_minimum(&self, report: &AckReport<'_>, now: Nanos) -> bool {
        now.saturating_sub(report.rtt.minimum_at().max(self.probe_rtt_at)) > PROBE_RTT_EVERY / 3
    }

    fn step_down(&mut self, report: &AckReport<'_>, drained: bool, minimum: Nanos, now: Nanos) {
        let elapsed = now.saturating_sub(self.phase_at);
        if !self.measuring_floor {
            // A shortest round trip that was not seen for long is looked for here: emptying the
            // queue costs less than emptying the pipe.
            let seen =
                report.rtt.minimum_at() >= self.phase_at || !self.looks_for_minimum(report, now);
            if (drained && seen) || elapsed > 2 * minimum.max(SHORTEST_ROUND) {
                self.start_cruise(minimum, now);
            }
            return;
        }
        if self.floor.measuring_since().is_none()
            && (drained || elapsed > 2 * minimum.max(SHORTEST_ROUND))
        {
            if self.deep {
                // Beside such a queue, loss is nobody's floor.
                self.measuring_floor = false;
                self.start_cruise(minimum, now);
                return;
            }
            self.floor.start(now);
        }
        if self
            .floor
            .is_done(minimum.max(SHORTEST_ROUND), self.datagram, now)
        {
            self.measuring_floor = false;
            self.start_cruise(minimum, now);
            if !self.floor.is_measured() {
                // What was lost of the samples so far has not been given back: the path is wider
                // than they say.
                self.next_up = now + 2 * minimum;
            }
        }
    }

    fn gain(&self, fast: bool) -> u64 {
        match self.phase {
            Phase::Startup => STARTUP_GAIN,
            Phase::Drain => DRAIN_GAIN,
            _ if self.is_deep() => DEEP_GAIN,
            Phase::Up if fast => UP_GAIN,
            Phase::Up => 1_000,
            Phase::Down if self.floor.measuring_since().is_some() => {
                (FLOOR_GAIN as f64 * (1.0 - self.floor.ratio())) as u64
            }
            Phase::Down if self.queued => DOWN_GAIN,
            Phase::Down => DOWN_QUIET_GAIN,
            Phase::Cruise if self.queued && self.standing => CRUISE_STANDING_GAIN,
            Phase::Cruise if self.queued => CRUISE_QUEUED_GAIN,
            Phase::Cruise if self.begins_to_queue => CRUISE_CAREFUL_GAIN,
            Phase::Cruise | Phase::ProbeRtt | Phase::Competitive => CRUISE_GAIN,
        }
    }

    /// The rate that the model asks for, within what is allowed.
    fn bounded(&self, mut rate: u64, report: &AckReport<'_>) -> u64 {
        if let Some((bandwidth, _)) = self.resuming {
            // No more than was remembered until that is proved.
            rate = rate.min(bandwidth * 100 / RESUME_PERCENT);
        }
        if self.rounds < self.halved_until_round {
            rate = rate * HALF_GAIN / 1_000;
        }
        let least = SMALLEST_WINDOW_DATAGRAMS * self.datagram;
        rate = rate.max(rate_of(
            least,
            report.rtt.smoothed().unwrap_or(SECOND).max(MILLISECOND),
        ));
        self.cap.map_or(rate, |cap| rate.min(cap))
    }

    fn set_rate_and_window(&mut self, report: &AckReport<'_>, minimum: Nanos, now: Nanos) {
        let least = SMALLEST_WINDOW_DATAGRAMS * self.datagram;
        let bandwidth = self.bandwidth();
        // Each round of up is fast for its own time only.
        let slows =
            Some(self.phase_at + self.up_time).filter(|at| self.phase == Phase::Up && now < *at);
        let rate = if self.phase == Phase::Startup {
            let smoothed = report
                .rtt
                .smoothed()
                .unwrap_or(SECOND)
                .max(SHORTEST_ROUND_TRIP);
            let known = bandwidth.max(rate_of(self.initial * self.datagram, smoothed));
            // When a queue seems to stand, nothing is added to it until that is sure.
            let rate = if self.glance.stood > 0 {
                known
            } else {
                known * STARTUP_GAIN / 1_000
            };
            rate.max(self.first_rate())
        } else if self.competing && slows.is_some() {
            (self.up_base * self.up_gain / 1_000).max(bandwidth)
        } else {
            bandwidth * self.gain(slows.is_some()) / 1_000
        };
        self.rate = self.bounded(rate, report);
        self.slows = slows.map(|at| {
            (
                at,
                self.bounded(bandwidth * self.gain(false) / 1_000, report),
            )
        });

        // Acknowledgements are held back, and lost datagrams count until their loss is known: twice
        // the product and some.
        let held_back = 2 * bytes_in(bandwidth, Schedule::interval(Some(minimum)))
            + 3 * (self.rate / 1_000).clamp(2 * self.datagram, 64_000);
        let product = bytes_in(bandwidth, minimum);
        self.window = match self.phase {
            Phase::Startup => {
                let grown = self.window + report.acked + report.lost_bytes();
                let lost_round = self.heavy_rounds > 0 && self.queued;
                if lost_round {
                    self.window
                } else {
                    let early = self.rounds < EARLY_ROUNDS && !self.begins_to_queue;
                    let products = if early { 3 } else { 2 };
                    grown.min((products * product + held_back).max(self.initial * self.datagram))
                }
            }
            Phase::ProbeRtt => product / 2 + held_back,
            Phase::Up => product * 9 / 4 + held_back,
            Phase::Drain | Phase::Cruise | Phase::Down | Phase::Competitive => {
                2 * product + held_back
            }
        }
        .max(least);
    }

    /// The time that a few datagrams take, which are no queue. A rival may have left us too little
    /// of the path to tell it from that.
    fn few(&self) -> Nanos {
        STANDING_DATAGRAMS * self.datagram * SECOND
            / self.bandwidth().max(self.quiet_bandwidth).max(1)
    }

    fn standing_above(&self, minimum: Nanos) -> Nanos {
        minimum + minimum / 8 + 2 * MILLISECOND + self.few()
    }

    /// Did a queue stand for all of the round?
    fn stands(&self, round: &Round, minimum: Nanos) -> bool {
        round.rtt_count > 0 && round.rtt_least > self.standing_above(minimum)
    }

    fn enter_crowd(&mut self, report: &AckReport<'_>, now: Nanos) {
        let had = bytes_in(self.quiet_bandwidth, self.smoothed);
        self.crowd = Some(Box::new(Competitive::new(self.cap, report, had, now)));
        self.short = None;
        self.probe_rtt_at = now;
        self.enter(Phase::Competitive, now);
    }

    fn step_crowd(&mut self, report: &AckReport<'_>, minimum: Nanos, now: Nanos) {
        let Some(crowd) = &mut self.crowd else {
            return;
        };
        let queue = (
            self.smoothed.saturating_sub(minimum),
            self.watch.longest_queue(minimum),
        );
        crowd.on_ack_report(report, queue, self.floor.ratio(), now);
        (self.rate, self.window) = (crowd.rate(), crowd.window());
        if crowd.take_cycle(CRUISE.max(CRUISE_ROUNDS * minimum), now) {
            self.best = [self.best[1], 0];
        }
    }

    /// Looks whether the queue goes when we do not feed it. If it does, we are alone.
    fn step_probe_rtt(&mut self, minimum: Nanos, round_ended: bool, now: Nanos) {
        let elapsed = now.saturating_sub(self.phase_at);
        let Some(crowd) = &mut self.crowd else {
            if elapsed >= PROBE_RTT_TIME.max(minimum) && round_ended {
                self.probe_rtt_at = now;
                self.start_cruise(minimum, now);
            }
            return;
        };
        if self.quiet_at > self.phase_at {
            (self.crowd, self.stood) = (None, false);
            self.watch.forgive(now);
            self.probe_rtt_at = now;
            self.start_cruise(minimum, now);
            self.next_up = now;
        } else if elapsed >= PROBE_RTT_TIME.max(minimum) + self.watch.longest_queue(minimum) {
            self.probe_rtt_at = now;
            crowd.rest();
            self.enter(Phase::Competitive, now);
        }
    }
}
