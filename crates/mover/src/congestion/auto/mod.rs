//! `Auto`: a model of the path (its bandwidth and its min RTT) instead of a reaction to loss.
//!
//! It takes acknowledgements from the [`Controller`](super::Controller) and gives it rate and
//! window. It is built on the ideas of BBR (draft-ietf-ccwg-bbr) with a learned loss floor. Why it
//! differs from the published models: `docs/decisions/0007-a-model-with-a-learned-floor.md`.
//!
//! - `sampler` counts rounds and chooses the delivery-rate samples that are believed.
//! - `bandwidth` is the best of them in the last two probing cycles, within the bounds that loss, a
//!   deep queue or a policer (`policer`) set.
//! - `queue` says whether a queue stands, by round trips.
//! - `loss_floor` is the random loss, measured while less is sent than the path carries. It is
//!   given back to the samples, so that it costs nothing. `losses` judges whether there is more.
//! - `cycle` says when the next attempt to go up begins and what it asks for.
//! - `claim` is a bandwidth that was configured or remembered and that no round has shown yet.
//! - `competitive` knows of rivals that fill the buffer, and what is done beside them.
//! - `probe_rtt` says when the min RTT is looked for again.
//! - `pace` is the output, `estimate` the belief that the machines share.
//!
//! Beside others of its own kind (a queue stood while it cruised) everybody gives room in
//! proportion until the queue is gone, and each asks for about the same part of the path.
//!
//! Life, written down in `phase`: *startup* (`startup`, `early_exit`) doubles the rate each round
//! until it stops growing; a configured rate skips it. *Drain* empties the queue that this made.
//! *Cruise* keeps to the bandwidth, and every few seconds goes *up* (`up`) to ask for more and
//! *down* to take back what that queued; some downs also *measure the loss floor*. *Probe RTT*
//! empties the pipe when the min RTT was not seen for ten seconds. *Competitive* mode lasts while a
//! rival fills the buffer.

mod bandwidth;
mod claim;
mod competitive;
mod cycle;
mod early_exit;
mod estimate;
mod loss_floor;
mod losses;
mod pace;
mod phase;
mod policer;
mod probe_rtt;
mod queue;
mod sampler;
mod startup;
mod up;

use std::time::Duration;

use self::bandwidth::Bandwidth;
use self::claim::{Claim, RESUME_PERCENT, Verdict};
use self::competitive::{Buffer, Competitive, RivalWatch};
use self::cycle::{Cycle, UP_GAIN};
use self::early_exit::Arrival;
use self::estimate::Estimate;
use self::loss_floor::LossFloor;
use self::losses::Losses;
use self::pace::{Pace, Slowing};
use self::phase::{DEEP_GAIN, Phase};
use self::policer::LossyRound;
use self::probe_rtt::RttProbe;
use self::queue::QueueSensor;
use self::sampler::{Round, SHORTEST_ROUND, Sampler, Tally};
use self::startup::{Startup, WindowBounds};
use self::up::Up;
use super::initial::{INITIAL_DATAGRAMS, SMALLEST_WINDOW_DATAGRAMS, initial_rate};
use super::rate::{bytes_in, rate_of};
use super::report::AckReport;
use crate::ack::Schedule;
use crate::config::RememberedPath;
use crate::path::delivery::Sample;
use crate::timer::{MILLISECOND, Nanos, SECOND};

/// For 2 rounds after an outage the rate is halved, until the path has shown that it is still the
/// same.
const AFTER_OUTAGE_ROUNDS: u64 = 2;
/// A configured rate is begun with at 96 %: a path that carries a little less gets no queue by it.
const CONFIGURED_PERCENT: u64 = 96;
/// A drain lasts 4 round trips at most, a down 2.
const LONGEST_DRAIN_ROUNDS: u64 = 4;
const LONGEST_DOWN_ROUNDS: u64 = 2;
/// A round with too much loss or a standing queue lowers the bandwidth to no less than 70 %
/// (BBRBeta of draft-ietf-ccwg-bbr).
const LOSS_CUT_PERCENT: u64 = 70;
/// What comes out of a deep queue lowers the bandwidth to no less than 40 % at once: a round trip
/// is a short look.
const DEEP_CUT_PERCENT: u64 = 40;
/// An up ends at 99 % of the configured rate.
const AT_CAP_PERCENT: u64 = 99;
/// A run of losses longer than 3 datagrams is a burst on the path even on a slow link: a quantum
/// there is two datagrams, and a policer takes no more than that of it.
const POLICED_RUN_DATAGRAMS: u64 = 3;
/// The window leaves room for three quanta beyond the product. A quantum is what leaves in a
/// millisecond, 64 kB at most (send_quantum and offload_budget of draft-ietf-ccwg-bbr).
const LARGEST_QUANTUM: u64 = 64_000;

/// The model.
///
/// For each acknowledgement `on_ack_report`, then `rate` and `window`. Whenever data leaves,
/// `handle_time`.
pub(crate) struct Auto {
    /// The configured rate: no more is sent, bytes per second.
    cap: Option<u64>,
    /// Wire bytes of a full datagram.
    datagram: u64,
    phase: Phase,
    /// When the phase began; of an up, its last round.
    phase_since: Nanos,
    sampler: Sampler,
    bandwidth: Bandwidth,
    queue: QueueSensor,
    losses: Losses,
    loss_floor: LossFloor,
    rivals: RivalWatch,
    cycle: Cycle,
    claim: Claim,
    rtt_probe: RttProbe,
    pace: Pace,
}

/// What is configured.
pub(super) struct Settings {
    /// The configured rate, bytes per second.
    pub(super) cap: Option<u64>,
    /// The path as it was before a restart.
    pub(super) remembered: Option<RememberedPath>,
    /// See `Config::loss_tolerance`.
    pub(super) loss_tolerance: f64,
    pub(super) seed: u64,
}

impl Auto {
    /// `datagram`: wire bytes of a full one.
    pub(super) fn new(settings: Settings, datagram: u64, now: Nanos) -> Auto {
        let rate = initial_rate(settings.cap, datagram);
        Auto {
            cap: settings.cap,
            datagram,
            phase: Phase::Startup(Startup::new(settings.remembered, now)),
            phase_since: now,
            sampler: Sampler::new(now),
            bandwidth: Bandwidth::default(),
            queue: QueueSensor::new(now),
            losses: Losses::default(),
            loss_floor: LossFloor::new(settings.loss_tolerance),
            rivals: RivalWatch::new(now),
            cycle: Cycle::new(settings.seed),
            claim: Claim::default(),
            rtt_probe: RttProbe::new(now),
            pace: Pace::new(rate, INITIAL_DATAGRAMS * datagram),
        }
    }

    /// Bytes per second for the pacer.
    pub(super) fn rate(&self) -> u64 {
        self.pace.rate
    }

    /// Bytes that may be on their way.
    pub(super) fn window(&self) -> u64 {
        self.pace.window
    }

    /// Bytes per second that the path is believed to carry; 0: not known.
    pub(super) fn bandwidth(&self) -> u64 {
        self.bandwidth.get()
    }

    /// A short name, for people.
    pub(super) fn phase(&self) -> &'static str {
        self.phase.name()
    }

    /// This number of streams is carried: before anything is known of the path each may begin like
    /// a connection of its own. True if the rate changed.
    pub(super) fn set_flows(&mut self, flows: u64) -> bool {
        let Phase::Startup(startup) = &mut self.phase else {
            return false;
        };
        let knows = self.cap.is_some() || self.claim.is_resuming();
        if knows || !startup.grant(flows) {
            return false;
        }
        let window = startup.initial_window(self.datagram);
        let rate = startup.first_rate(self.datagram);
        self.pace.window = self.pace.window.max(window);
        self.pace.rate = self.pace.rate.max(rate);
        true
    }

    /// Time passed. True if the rate changed.
    pub(super) fn handle_time(&mut self, now: Nanos) -> bool {
        self.pace.slow_if_due(now)
    }

    /// The peer was silent for several probes and is heard again: the path may be another.
    pub(super) fn on_outage_end(&mut self, now: Nanos) {
        self.rivals.forgive(now);
        match &mut self.phase {
            Phase::Competitive(_) => self.enter(Phase::Drain, now),
            Phase::ProbeRtt { competitive } => *competitive = None,
            Phase::Startup(_)
            | Phase::Drain
            | Phase::Cruise { .. }
            | Phase::Up(_)
            | Phase::Down
            | Phase::MeasureFloor => {}
        }
        self.pace.halved_until_round = self.sampler.rounds() + AFTER_OUTAGE_ROUNDS;
    }

    /// An acknowledgement came, or time showed losses.
    pub(super) fn on_ack_report(&mut self, report: &AckReport<'_>, now: Nanos) {
        self.datagram = report.datagram;
        if let Phase::Startup(startup) = &mut self.phase {
            startup.on_delivered(report.delivered, self.datagram);
        }
        let loss_runs = self.loss_floor.count_lost(report.lost);
        self.sampler.on_lost(report.lost_bytes(), loss_runs);
        let Some(min_rtt) = report.rtt.minimum() else {
            return;
        };
        if let Some(rtt) = report.rtt_sample {
            let arrival = Arrival {
                rtt,
                delivered: report.delivered,
                at: now,
            };
            self.on_rtt(&arrival, min_rtt);
        }
        if report.acked > 0 {
            self.on_acked(report, min_rtt, now);
        }
        if let Phase::Competitive(_) = self.phase {
            self.compete(report, min_rtt, now);
        } else {
            self.set_rate(report, now);
            self.set_window(report, min_rtt);
        }
    }

    fn path(&self, min_rtt: Nanos) -> Estimate {
        Estimate {
            bandwidth: self.bandwidth.get(),
            min_rtt,
            datagram: self.datagram,
        }
    }

    // --- what the model learns

    fn on_rtt(&mut self, arrival: &Arrival, min_rtt: Nanos) {
        let path = self.path(min_rtt);
        let &Arrival { rtt, at: now, .. } = arrival;
        match &mut self.phase {
            Phase::Startup(startup) => startup.on_rtt(arrival, &self.queue, &path),
            Phase::Up(up) => up.on_rtt(rtt),
            Phase::Drain
            | Phase::Cruise { .. }
            | Phase::Down
            | Phase::MeasureFloor
            | Phase::ProbeRtt { .. }
            | Phase::Competitive(_) => {}
        }
        self.sampler.on_rtt(rtt);
        self.queue.on_rtt(rtt, &path, now);
        self.rivals.on_rtt(rtt, &self.queue, &path, now);
    }

    fn on_acked(&mut self, report: &AckReport<'_>, min_rtt: Nanos, now: Nanos) {
        self.sampler.on_acked(report.acked);
        let mut round_ended = false;
        if let Some(sample) = report.rate_sample {
            let (sent, decided_until) = (sample.sent, report.decided_until);
            if let Some(believed) = self
                .loss_floor
                .count_acked(report.acked, sent, decided_until)
            {
                self.take_back(believed);
            }
            round_ended = self.sampler.round_is_over(&sample, now);
            if let Some(sample) = self.sampler.take_sample(sample, report, min_rtt, now) {
                self.on_sample(&sample);
                if self.queue.is_deep() && self.claim.is_unproved() {
                    self.forget(self.sampler.round().best_rate, now);
                }
            }
            if sample.app_limited && self.losses.heavy_rounds() == 0 {
                self.queue.drop_outflow();
            }
        }
        self.heed_deep_queue(report.acked, min_rtt, now);
        self.begin_with_known(min_rtt, now);
        if round_ended {
            self.on_round(report, min_rtt, now);
        }
        self.step(report, min_rtt, round_ended, now);
    }

    /// The loss floor is measured and lower than `believed`: the share that was given back too much
    /// is taken off the bandwidth.
    fn take_back(&mut self, believed: f64) {
        let ratio = self.loss_floor.ratio();
        if believed > ratio {
            self.bandwidth.take_back((1.0 - believed) / (1.0 - ratio));
        }
    }

    fn on_sample(&mut self, sample: &Sample) {
        // What a full queue drops is not the path's own loss: it comes with the queue, and mostly
        // before there is a floor to tell it from.
        let unknown = self.queue.stands_out() && !self.loss_floor.is_measured();
        let tally = Tally {
            delivered: sample.delivered,
            lost: sample.lost,
        };
        let given_back = if self.queue.is_deep() || unknown {
            0
        } else {
            self.loss_floor.give_back(tally, self.datagram)
        };
        let rate = rate_of(sample.delivered + given_back, sample.interval);
        self.sampler.on_rate(rate, sample.app_limited);
        self.bandwidth.on_sample(rate, sample.app_limited);
    }

    /// A deep queue says that the path has become narrower: what comes out of it is the bound.
    fn heed_deep_queue(&mut self, acked: u64, min_rtt: Nanos, now: Nanos) {
        if !self.phase.gives_way(&self.queue) {
            self.queue.drop_outflow();
            return;
        }
        let Some(outflow) = self.queue.take_outflow(acked, min_rtt, now) else {
            return;
        };
        let rate = outflow.rate(self.loss_floor.ratio(), now);
        let bandwidth = self.bandwidth.get();
        let least = bandwidth * DEEP_CUT_PERCENT / 100;
        self.bandwidth.bound(rate.clamp(least, bandwidth));
        self.cycle.on_deep_queue();
    }

    /// The configured rate is where it starts as soon as the round trip is known, or a part of the
    /// remembered bandwidth if the round trip is that path's.
    fn begin_with_known(&mut self, min_rtt: Nanos, now: Nanos) {
        let Phase::Startup(startup) = &mut self.phase else {
            return;
        };
        if let Some(cap) = self.cap {
            self.bandwidth.begin_with(cap * CONFIGURED_PERCENT / 100);
            self.claim = Claim::configured();
            let next_up = now + 2 * min_rtt;
            self.enter(Phase::Cruise { next_up }, now);
            return;
        }
        let is_like = |path: &RememberedPath| path.is_like(Duration::from_nanos(min_rtt));
        if let Some(path) = startup.take_remembered().filter(is_like) {
            // Startup goes on from there: its gain makes this the remembered rate, its window two
            // thirds of the remembered product.
            let bandwidth = path.bandwidth * RESUME_PERCENT / 100;
            self.bandwidth.begin_from(bandwidth);
            self.claim = Claim::resumed(bandwidth, self.sampler.rounds());
            self.pace.window = self.pace.window.max(2 * self.path(min_rtt).product());
        }
    }

    /// The path carries only `rate`: what was remembered or configured is forgotten, and the queue
    /// that it made is drained (draft-ietf-tsvwg-careful-resume, safe retreat).
    fn forget(&mut self, rate: u64, now: Nanos) {
        self.claim = Claim::default();
        self.bandwidth.forget(rate);
        self.queue.forget(rate);
        self.rivals.forgive(now);
        self.enter(Phase::Drain, now);
    }

    fn on_round(&mut self, report: &AckReport<'_>, min_rtt: Nanos, now: Nanos) {
        let round = self.sampler.end_round(report.delivered, now);
        self.queue.on_round(&round, now);
        self.losses.on_round(&round, self.datagram);
        match self.claim.judge(&round, self.sampler.rounds()) {
            Some(Verdict::Less) => self.forget(round.best_rate, now),
            Some(Verdict::AsRemembered) if matches!(self.phase, Phase::Startup(_)) => {
                self.enter(Phase::Drain, now);
            }
            Some(Verdict::AsRemembered | Verdict::Enough) | None => {}
        }
        let path = self.path(min_rtt);
        match &mut self.phase {
            Phase::Startup(startup) => startup.on_round(&round, &self.queue, &path),
            // What stands during these is the queue that we have just made.
            Phase::Up(_) | Phase::Down | Phase::MeasureFloor | Phase::Drain => {}
            Phase::Cruise { .. } if round.since < self.phase_since => {}
            Phase::Cruise { .. } | Phase::ProbeRtt { competitive: None } => {
                self.on_calm_round(&round, &path, now);
            }
            // Nor is a queue ours that a rival keeps up.
            Phase::ProbeRtt {
                competitive: Some(_),
            } => {}
            Phase::Competitive(competitive) => {
                let queued = self.queue.stands_out();
                let floor = &self.loss_floor;
                if self.losses.judge(round.tally, floor, self.datagram, queued) {
                    competitive.on_too_much();
                }
            }
        }
    }

    /// Without an attempt to go up, loss beyond the floor or a standing queue says that the
    /// bandwidth shrank.
    fn on_calm_round(&mut self, round: &Round, path: &Estimate, now: Nanos) {
        if !round.full || round.mean_rtt().is_none() {
            return;
        }
        let queued = self.queue.stands_out();
        let too_much = self
            .losses
            .judge(round.tally, &self.loss_floor, self.datagram, queued);
        let stood = self.queue.stood_throughout(round, path);
        self.cycle.on_calm_round(stood);
        if !stood && !too_much {
            return;
        }
        let least = path.bandwidth * LOSS_CUT_PERCENT / 100;
        let bound = round.best_rate.max(least).min(path.bandwidth);
        self.bandwidth.bound(bound);
        let lossy = LossyRound {
            tally: round.tally,
            loss_runs: round.loss_runs,
            longest_run: (self.pace.rate / 2_000).max(POLICED_RUN_DATAGRAMS * self.datagram),
            rate: rate_of(round.tally.delivered, now - round.since),
            queued: self.cycle.has_stood() || queued,
            number: self.sampler.rounds(),
        };
        if self.bandwidth.judge_lossy_round(&lossy, path.min_rtt, now) {
            self.losses.forget();
        }
    }

    // --- from phase to phase

    fn enter(&mut self, phase: Phase, now: Nanos) {
        self.phase = phase;
        self.phase_since = now;
    }

    fn step(&mut self, report: &AckReport<'_>, min_rtt: Nanos, round_ended: bool, now: Nanos) {
        let path = self.path(min_rtt);
        // What is in flight beyond the product without being a queue: acknowledgements held back.
        let held_back =
            bytes_in(path.bandwidth, Schedule::interval(Some(min_rtt))) + 2 * self.datagram;
        let drained = report.in_flight <= path.product() + held_back;
        match &self.phase {
            Phase::Startup(startup) => {
                let heavy_rounds = self.losses.heavy_rounds();
                if startup.is_over(path.bandwidth, self.cap, heavy_rounds, &self.queue) {
                    self.enter(Phase::Drain, now);
                }
            }
            Phase::Drain => self.step_drain(drained, min_rtt, now),
            &Phase::Cruise { next_up } => self.step_cruise(report, next_up, min_rtt, now),
            Phase::Up(_) => self.step_up(report, min_rtt, round_ended, now),
            Phase::Down => self.step_down(report, drained, min_rtt, now),
            Phase::MeasureFloor => self.step_measure_floor(drained, min_rtt, now),
            Phase::ProbeRtt { .. } => self.step_probe_rtt(min_rtt, round_ended, now),
            Phase::Competitive(_) => {}
        }
        if self.phase.may_probe_rtt() && self.rtt_probe.is_due(report.rtt, min_rtt, now) {
            self.queue.on_probe_rtt(self.bandwidth.get());
            let phase = std::mem::replace(&mut self.phase, Phase::Drain);
            let competitive = phase.into_competitive();
            self.enter(Phase::ProbeRtt { competitive }, now);
        }
    }

    /// Has the phase lasted longer than this number of round trips?
    fn lasts_longer_than(&self, rounds: u64, min_rtt: Nanos, now: Nanos) -> bool {
        now.saturating_sub(self.phase_since) > rounds * min_rtt.max(SHORTEST_ROUND)
    }

    fn step_drain(&mut self, drained: bool, min_rtt: Nanos, now: Nanos) {
        if !drained && !self.lasts_longer_than(LONGEST_DRAIN_ROUNDS, min_rtt, now) {
            return;
        }
        // What stood so far was startup's.
        self.rivals.forgive(now);
        if self.loss_floor.is_due(self.queue.smoothed(), now) {
            self.enter(Phase::MeasureFloor, now);
        } else {
            self.start_cruise(min_rtt, now);
        }
    }

    fn start_cruise(&mut self, min_rtt: Nanos, now: Nanos) {
        self.cycle.judge_up(self.bandwidth.get());
        let next_up = self.cycle.draw_next_up(min_rtt, now);
        self.enter(Phase::Cruise { next_up }, now);
    }

    /// The same, but the next up is due at `next_up`.
    fn start_short_cruise(&mut self, next_up: Nanos, min_rtt: Nanos, now: Nanos) {
        self.start_cruise(min_rtt, now);
        self.enter(Phase::Cruise { next_up }, now);
    }

    fn step_cruise(&mut self, report: &AckReport<'_>, next_up: Nanos, min_rtt: Nanos, now: Nanos) {
        // Startup's deep queue did not let the floor be measured.
        let unmeasured = !self.loss_floor.is_measured() && !self.queue.stands_out();
        if self.rivals.sees_one(min_rtt, now) {
            self.start_competing(report, now);
        } else if unmeasured && self.loss_floor.is_due(self.queue.smoothed(), now) {
            self.enter(Phase::MeasureFloor, now);
        } else if now >= next_up && !self.bandwidth.is_policed(now) {
            self.start_up(report, min_rtt, now);
        }
    }

    fn start_up(&mut self, report: &AckReport<'_>, min_rtt: Nanos, now: Nanos) {
        self.bandwidth.on_up();
        let (smoothed, varies) = (self.queue.smoothed(), report.rtt.varies());
        let up = if self.cycle.begin() {
            self.bandwidth.settle_at_bound();
            let path = self.path(min_rtt);
            self.cycle.ask(path.bandwidth);
            Up::beside_others(&path, smoothed, varies)
        } else {
            self.bandwidth.lift_bound();
            Up::alone(&self.path(min_rtt), smoothed, varies)
        };
        self.enter(Phase::Up(up), now);
    }

    fn step_up(&mut self, report: &AckReport<'_>, min_rtt: Nanos, round_ended: bool, now: Nanos) {
        let Phase::Up(up) = &mut self.phase else {
            return;
        };
        let elapsed = now.saturating_sub(self.phase_since);
        let heard = up.is_heard(elapsed, min_rtt);
        let queued = up.queues() || (self.queue.stands_out() && !up.is_competing());
        let tally = self.sampler.round().tally;
        let too_much = self.loss_floor.is_exceeded(tally, self.datagram, queued);
        if heard && (queued || too_much) {
            self.end_up(now);
            return;
        }
        if !round_ended || !heard || !up.has_shown(elapsed, min_rtt) {
            return;
        }
        let bandwidth = self.bandwidth.get();
        let at_cap = |cap| bandwidth >= cap * AT_CAP_PERCENT / 100;
        up.on_round();
        if up.is_spent() || report.is_app_limited() || self.cap.is_some_and(at_cap) {
            self.end_up(now);
            return;
        }
        up.go_on();
        if up.is_competing() {
            self.cycle.ask(bandwidth);
        }
        self.phase_since = now;
    }

    fn end_up(&mut self, now: Nanos) {
        self.bandwidth.end_cycle();
        let due = self.loss_floor.is_due(self.queue.smoothed(), now);
        let phase = if due {
            Phase::MeasureFloor
        } else {
            Phase::Down
        };
        self.enter(phase, now);
    }

    fn step_down(&mut self, report: &AckReport<'_>, drained: bool, min_rtt: Nanos, now: Nanos) {
        // A min RTT that was not seen for long is looked for here: emptying the queue costs less
        // than emptying the pipe.
        let seen = report.rtt.minimum_at() >= self.phase_since
            || !self.rtt_probe.is_wanted(report.rtt, now);
        if (drained && seen) || self.lasts_longer_than(LONGEST_DOWN_ROUNDS, min_rtt, now) {
            self.start_cruise(min_rtt, now);
        }
    }

    fn step_measure_floor(&mut self, drained: bool, min_rtt: Nanos, now: Nanos) {
        let ready = drained || self.lasts_longer_than(LONGEST_DOWN_ROUNDS, min_rtt, now);
        if !self.loss_floor.is_measuring() && ready {
            if self.queue.is_deep() {
                // Beside such a queue, loss is nobody's floor.
                self.start_cruise(min_rtt, now);
                return;
            }
            self.loss_floor.start(now);
        }
        let shortest = min_rtt.max(SHORTEST_ROUND);
        if !self.loss_floor.stop_if_enough(shortest, self.datagram, now) {
            return;
        }
        if self.loss_floor.is_measured() {
            self.start_cruise(min_rtt, now);
        } else {
            // What was lost of the samples so far has not been given back: the path is wider than
            // they say.
            self.start_short_cruise(now + 2 * min_rtt, min_rtt, now);
        }
    }

    fn step_probe_rtt(&mut self, min_rtt: Nanos, round_ended: bool, now: Nanos) {
        let Phase::ProbeRtt { competitive } = &mut self.phase else {
            return;
        };
        let elapsed = now.saturating_sub(self.phase_since);
        let shortest = RttProbe::duration(min_rtt);
        if competitive.is_none() {
            if elapsed >= shortest && round_ended {
                self.rtt_probe.on_probed(now);
                self.start_cruise(min_rtt, now);
            }
            return;
        }
        // Does the queue go when we do not feed it? Then no rival is there.
        if self.queue.quiet_at() > self.phase_since {
            self.cycle.on_alone();
            self.rivals.forgive(now);
            self.rtt_probe.on_probed(now);
            self.start_short_cruise(now, min_rtt, now);
        } else if elapsed >= shortest + self.rivals.longest_queue(min_rtt)
            && let Some(mut competitive) = competitive.take()
        {
            self.rtt_probe.on_probed(now);
            competitive.rest();
            self.enter(Phase::Competitive(competitive), now);
        }
    }

    fn start_competing(&mut self, report: &AckReport<'_>, now: Nanos) {
        let had = bytes_in(self.queue.quiet_bandwidth(), self.queue.smoothed());
        let competitive = Competitive::new(self.cap, report, had, now);
        self.bandwidth.lift_bound();
        self.rtt_probe.on_probed(now);
        self.enter(Phase::Competitive(Box::new(competitive)), now);
    }

    // --- what it asks for

    /// In competitive mode rate and window are not the model's.
    fn compete(&mut self, report: &AckReport<'_>, min_rtt: Nanos, now: Nanos) {
        let Phase::Competitive(competitive) = &mut self.phase else {
            return;
        };
        let buffer = Buffer {
            queue: self.queue.smoothed().saturating_sub(min_rtt),
            longest_queue: self.rivals.longest_queue(min_rtt),
            loss_floor: self.loss_floor.ratio(),
        };
        competitive.on_ack_report(report, &buffer, now);
        (self.pace.rate, self.pace.window) = (competitive.rate(), competitive.window());
        if competitive.take_cycle(Cycle::shortest(min_rtt), now) {
            self.bandwidth.drop_previous();
        }
    }

    fn set_rate(&mut self, report: &AckReport<'_>, now: Nanos) {
        let rate = self.bounded(self.model_rate(report), report);
        (self.pace.rate, self.pace.slowing) = (rate, None);
        if let Phase::Up(up) = &self.phase {
            // Each round of an up is fast for its own time only.
            let at = up.slows_at(self.phase_since);
            if now < at {
                self.pace.rate = self.bounded(self.fast_rate(), report);
                self.pace.slowing = Some(Slowing { at, rate });
            }
        }
    }

    /// The rate of the fast part of an up.
    fn fast_rate(&self) -> u64 {
        let bandwidth = self.bandwidth.get();
        match self.cycle.asked_rate() {
            Some(asked) => asked.max(bandwidth),
            None if self.phase.gives_way(&self.queue) => bandwidth * DEEP_GAIN / 1_000,
            None => bandwidth * UP_GAIN / 1_000,
        }
    }

    /// The rate of the phase.
    fn model_rate(&self, report: &AckReport<'_>) -> u64 {
        let bandwidth = self.bandwidth.get();
        if let Phase::Startup(startup) = &self.phase {
            return startup.rate(bandwidth, report.rtt.smoothed(), self.datagram);
        }
        let gain = self.phase.gain(&self.queue, &self.cycle, &self.loss_floor);
        bandwidth * gain / 1_000
    }

    /// The rate that the model asks for, within what is allowed.
    fn bounded(&self, rate: u64, report: &AckReport<'_>) -> u64 {
        let mut rate = self.claim.limit(rate);
        if self.sampler.rounds() < self.pace.halved_until_round {
            rate /= 2;
        }
        let rtt = report.rtt.smoothed().unwrap_or(SECOND).max(MILLISECOND);
        rate = rate.max(rate_of(SMALLEST_WINDOW_DATAGRAMS * self.datagram, rtt));
        self.cap.map_or(rate, |cap| rate.min(cap))
    }

    fn set_window(&mut self, report: &AckReport<'_>, min_rtt: Nanos) {
        let path = self.path(min_rtt);
        let product = path.product();
        // Acknowledgements are held back, and lost datagrams count until their loss is known: twice
        // the product and some.
        let quantum = (self.pace.rate / 1_000).clamp(2 * self.datagram, LARGEST_QUANTUM);
        let interval = Schedule::interval(Some(min_rtt));
        let held_back = 2 * bytes_in(path.bandwidth, interval) + 3 * quantum;
        let window = match &self.phase {
            Phase::Startup(_) if self.losses.heavy_rounds() > 0 && self.queue.stands_out() => {
                self.pace.window
            }
            Phase::Startup(startup) => {
                let bounds = WindowBounds {
                    grown: self.pace.window + report.acked + report.lost_bytes(),
                    held_back,
                    rounds: self.sampler.rounds(),
                };
                startup.window(&bounds, &self.queue, &path)
            }
            Phase::ProbeRtt { .. } => product / 2 + held_back,
            Phase::Up(_) => product * 9 / 4 + held_back,
            Phase::Drain
            | Phase::Cruise { .. }
            | Phase::Down
            | Phase::MeasureFloor
            | Phase::Competitive(_) => 2 * product + held_back,
        };
        self.pace.window = window.max(SMALLEST_WINDOW_DATAGRAMS * self.datagram);
    }
}
