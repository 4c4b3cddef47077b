//! One bulk transfer over one link: what it reaches, how soon, and what it does to the link.

use super::{A, B, Pair, Setup, Task, profile, secs};
use tpo_lab::LinkStats;
use tpo_mover::Config;

/// Payload per wire byte that η allows for (docs/performance.md): 1,440 of 1,500.
const ETA_SHARE: f64 = 0.96;
/// Seconds over which the goodput of a ramp is looked at.
const RAMP_WINDOW: f64 = 0.3;
/// Between a step of the link's rate and the measurement.
const SETTLES: f64 = 5.0;
/// Time between two looks.
const STEP: f64 = 0.1;

/// A link and what the sender knows of it.
#[derive(Clone, Copy)]
pub(crate) struct Cell {
    pub(crate) mbit: f64,
    pub(crate) rtt_ms: f64,
    pub(crate) loss_percent: f64,
    /// More settings of the link towards the receiver.
    pub(crate) extra: &'static str,
    /// The configured rate as a share of the link's; 0: not configured.
    pub(crate) rate: f64,
    /// The link carries this until [`SETTLES`] before it is measured; 0: always the same.
    pub(crate) was: f64,
    pub(crate) seed: u64,
}

impl Cell {
    pub(crate) fn new(mbit: f64, rtt_ms: f64, loss_percent: f64) -> Cell {
        Cell {
            mbit,
            rtt_ms,
            loss_percent,
            extra: "",
            rate: 0.0,
            was: 0.0,
            seed: 7,
        }
    }

    pub(crate) fn with(self, extra: &'static str) -> Cell {
        Cell { extra, ..self }
    }

    pub(crate) fn configured(self) -> Cell {
        Cell { rate: 1.0, ..self }
    }

    pub(crate) fn after(self, was: f64) -> Cell {
        Cell { was, ..self }
    }

    /// The name of its row.
    pub(crate) fn name(&self) -> String {
        let Cell {
            mbit,
            rtt_ms,
            loss_percent,
            extra,
            rate,
            was,
            ..
        } = self;
        let was = if *was > 0.0 {
            format!("was {was} Mbit/s")
        } else {
            (*extra).to_owned()
        };
        let rate = if *rate > 0.0 { "configured" } else { "" };
        format!("{mbit:5} Mbit/s {rtt_ms:4} ms {loss_percent:4} % {was:26} {rate:10}")
    }
}

/// What it reached.
#[derive(Clone, Copy)]
pub(crate) struct Reached {
    /// Goodput in the measured time as a share of what 96 % of the surviving bytes would be.
    pub(crate) eta: f64,
    /// Mean round trip above the link's, milliseconds.
    pub(crate) queue_ms: f64,
    /// Share of the datagrams that the link's full queue or its policer dropped.
    pub(crate) dropped: f64,
    /// Bytes on the wire towards the receiver for each byte of goodput.
    pub(crate) wire: f64,
    /// Seconds from the connection's beginning until 90 % of η = 1 was reached, if it was.
    pub(crate) ramp: Option<f64>,
    /// The most payload bytes that both sides held.
    pub(crate) held: u64,
}

impl Reached {
    pub(crate) fn row(&self) -> String {
        let Reached {
            eta,
            queue_ms,
            dropped,
            wire,
            ramp,
            ..
        } = self;
        let ramp = ramp.map_or("-".to_owned(), |ramp| format!("{ramp:.1}"));
        format!(
            "η {eta:.3}  queue {queue_ms:5.1} ms  dropped {:.2} %  wire {wire:.3}  ramp {ramp} s",
            dropped * 100.0
        )
    }
}

/// Runs the cell: `time` seconds are measured after `warm` seconds. `TPO_TRACE` prints each step.
pub(crate) fn reach(
    cell: &Cell,
    warm: f64,
    time: f64,
    change: impl Fn(&mut Config) + 'static,
) -> Reached {
    let Cell {
        mbit,
        rtt_ms,
        loss_percent,
        extra,
        rate,
        was,
        seed,
    } = *cell;
    let link = |mbit: f64| {
        format!(
            "rate={}kbit delay={}us loss={loss_percent}% mtu=1500",
            mbit * 1e3,
            rtt_ms * 500.0
        )
    };
    let there = |mbit: f64| format!("{} {extra}", link(mbit));
    let mut setup = Setup::new(seed, &there(if was > 0.0 { was } else { mbit }));
    setup.b_to_a = profile(&link(mbit));
    let configured = (rate > 0.0).then_some((mbit * 125_000.0 * rate) as u64);
    setup.change = Box::new(move |config, _| {
        config.rate = configured;
        change(config);
    });
    setup.a = Task::bulk();
    let mut pair = Pair::new(setup);
    pair.connect();
    let ideal = (1.0 - loss_percent / 100.0) * ETA_SHARE * mbit * 125_000.0;
    let (mut ramp, mut queue, mut held) = (None, 0.0, 0);
    let mut received = vec![0];
    let mut before = None;
    let (warm_steps, steps) = ((warm / STEP) as usize, ((warm + time) / STEP) as usize);
    for step in 1..=steps {
        if step == warm_steps + 1 {
            before = Some((pair.side(B).received_bytes, pair.world.link(A, B)));
        }
        if was > 0.0 && step == ((warm - SETTLES) / STEP) as usize {
            pair.world.set(A, B, profile(&there(mbit)));
        }
        pair.world.run_for(secs(STEP));
        let (stats, there) = (pair.stats(A), pair.stats(B));
        received.push(pair.side(B).received_bytes);
        let window = ((RAMP_WINDOW / STEP).round() as usize).min(step);
        if ramp.is_none()
            && (received[step] - received[step - window]) as f64 >= 0.9 * ideal * RAMP_WINDOW
        {
            ramp = Some(step as f64 * STEP);
        }
        held = held.max(stats.gauges.sender.unacked_bytes + there.gauges.receiver.reassembly_bytes);
        let rtt = stats
            .gauges
            .path
            .rtt
            .map_or(rtt_ms, |rtt| rtt.as_secs_f64() * 1e3);
        if step > warm_steps {
            queue += (rtt - rtt_ms) / (steps - warm_steps) as f64;
        }
        if std::env::var("TPO_TRACE").is_ok() {
            println!(
                "{:6.1} got {:6.1} bw {:6.1} pace {:6.1} rtt {rtt:6.1} fly {:6} win {:6} lost {:5} spur {} {}",
                step as f64 * STEP,
                (received[step] - received[step - 1]) as f64 * 8e-6 / STEP,
                stats.gauges.path.bandwidth as f64 * 8e-6,
                stats.gauges.path.pacing_rate as f64 * 8e-6,
                stats.gauges.path.in_flight_bytes / 1500,
                stats.gauges.path.window_bytes / 1500,
                stats.counters.path.datagrams_lost,
                stats.counters.path.losses_spurious,
                stats.gauges.path.phase
            );
        }
    }
    let (was, link) = before.expect("something is measured");
    let got = (pair.side(B).received_bytes - was) as f64;
    let after = pair.world.link(A, B);
    let dropped = |stats: &LinkStats| stats.dropped_queue + stats.dropped_police;
    let offered = (after.offered_packets - link.offered_packets) as f64;
    Reached {
        eta: got / time / ideal,
        queue_ms: queue,
        dropped: (dropped(&after) - dropped(&link)) as f64 / offered,
        wire: (after.offered_bytes - link.offered_bytes) as f64 / got,
        ramp,
        held,
    }
}
