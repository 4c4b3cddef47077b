//! What a pair reaches over time: the congestion control in the deterministic world.

mod pair;

use pair::{A, B, Pair, Setup, Task, secs};
use tpo_mover::Congestion;

/// Payload bytes per wire byte at 1,500: IPv4, UDP, our header, tag and data subfield.
const PAYLOAD_SHARE: f64 = 1_430.0 / 1_500.0;

struct Cell {
    mbit: u64,
    rtt_ms: f64,
    loss_percent: f64,
    extra: &'static str,
    /// The configured rate as a share of the link's; 0: not configured.
    rate: f64,
}

struct Reached {
    /// Goodput after `warm` seconds, as a share of what the surviving datagrams could carry.
    share: f64,
    queue_ms: f64,
    dropped: f64,
}

fn run(cell: &Cell, warm: f64, time: f64) -> Reached {
    let Cell { mbit, rtt_ms, loss_percent, extra, rate } = cell;
    let link = format!("rate={mbit}mbit delay={}us loss={loss_percent}% mtu=1500 {extra}", rtt_ms * 500.0);
    let mut setup = Setup::new(7, &link);
    setup.b_to_a = pair::profile(&format!("rate={mbit}mbit delay={}us loss={loss_percent}%", rtt_ms * 500.0));
    let configured = (*rate > 0.0).then_some((*mbit as f64 * 125_000.0 * rate) as u64);
    setup.change = Box::new(move |config, _| config.rate = configured);
    setup.a = Task { payloads: u64::MAX, sizes: 65_000..=65_536, urgent: 0, whole_datagrams: true, ..Task::default() };
    let mut pair = Pair::new(setup);
    pair.connect();
    pair.world.run_for(secs(warm));
    let before = (pair.side(B).received_bytes, pair.world.link(A, B));
    let mut queue = 0.0;
    let mut trace = Vec::new();
    for _ in 0..(time * 10.0) as u32 {
        let start = pair.side(B).received_bytes;
        pair.world.run_for(secs(0.1));
        let stats = pair.stats(A);
        let rtt = stats.rtt.unwrap().as_secs_f64() * 1e3;
        queue += (rtt - rtt_ms) / (time * 10.0);
        if std::env::var("TPO_TRACE").is_ok() {
            let rate = (pair.side(B).received_bytes - start) as f64 * 8e-5;
            trace.push(format!(
                "{:6.1} got {rate:6.1} bw {:6.1} pace {:6.1} rtt {rtt:6.1} fly {:6} win {:6} lost {:5} spur {} {}",
                pair.world.elapsed().as_secs_f64(),
                stats.bandwidth as f64 * 8e-6,
                stats.pacing_rate as f64 * 8e-6,
                stats.in_flight_bytes / 1500,
                stats.window_bytes / 1500,
                stats.datagrams_lost,
                stats.losses_spurious,
                stats.phase
            ));
        }
    }
    trace.iter().for_each(|line| println!("{line}"));
    let got = (pair.side(B).received_bytes - before.0) as f64 / time;
    let ideal = (1.0 - loss_percent / 100.0) * PAYLOAD_SHARE * *mbit as f64 * 125_000.0;
    let (offered, dropped) = (pair.world.link(A, B).offered_packets, pair.world.link(A, B).dropped_queue);
    let dropped = (dropped - before.1.dropped_queue) as f64 / (offered - before.1.offered_packets) as f64;
    println!(
        "{mbit:5} Mbit/s {rtt_ms:5} ms {loss_percent:4}% {extra:20} rate {rate:4}: {:6.2} % of the ideal, queue {queue:6.1} ms, dropped {:.2} %",
        got / ideal * 100.0,
        dropped * 100.0,
    );
    Reached { share: got / ideal, queue_ms: queue, dropped }
}

#[test]
#[ignore = "a table for people"]
fn table() {
    for mbit in [20, 100, 500] {
        for rtt_ms in [20.0, 100.0, 250.0, 600.0] {
            for loss_percent in [0.0, 1.0, 5.0] {
                for rate in [0.0, 1.0] {
                    run(&Cell { mbit, rtt_ms, loss_percent, extra: "", rate }, 5.0, 10.0);
                }
            }
        }
    }
}

#[test]
#[ignore = "a table for people"]
fn odd_links() {
    for extra in ["jitter=20ms", "burst=10", "queue=64KB", "queue=20KB", "queue=10MB"] {
        for (loss_percent, rate) in [(0.0, 0.0), (2.0, 0.0), (2.0, 1.0), (0.0, 3.0)] {
            run(&Cell { mbit: 100, rtt_ms: 100.0, loss_percent, extra, rate }, 5.0, 10.0);
        }
    }
    for loss_percent in [10.0, 20.0, 30.0] {
        run(&Cell { mbit: 100, rtt_ms: 100.0, loss_percent, extra: "", rate: 0.0 }, 5.0, 10.0);
    }
    for (mbit, rtt_ms) in [(1, 800.0), (5, 10.0), (5, 100.0), (1_000, 100.0), (1_000, 1.0), (1_000, 10.0)] {
        for rate in [0.0, 1.0] {
            run(&Cell { mbit, rtt_ms, loss_percent: 1.0, extra: "", rate }, 5.0, 5.0);
        }
    }
}

#[test]
fn random_loss_costs_only_what_it_takes() {
    for rate in [0.0, 1.0] {
        let reached = run(&Cell { mbit: 100, rtt_ms: 100.0, loss_percent: 1.0, extra: "", rate }, 3.0, 8.0);
        assert!(reached.share >= 0.95, "{}", reached.share);
        assert!(reached.queue_ms < 20.0, "{}", reached.queue_ms);
        assert!(reached.dropped < 0.01, "{}", reached.dropped);
    }
}

#[test]
fn other_links_are_filled_too() {
    let cell = |mbit, rtt_ms, loss_percent, extra, rate| Cell { mbit, rtt_ms, loss_percent, extra, rate };
    for (cell, least) in [
        (cell(20, 20.0, 1.0, "", 0.0), 0.95),
        (cell(20, 100.0, 5.0, "", 1.0), 0.95),
        (cell(100, 20.0, 5.0, "", 0.0), 0.95),
        (cell(100, 250.0, 1.0, "", 1.0), 0.95),
        (cell(100, 600.0, 1.0, "", 1.0), 0.93),
        (cell(100, 100.0, 2.0, "jitter=20ms", 0.0), 0.95),
        (cell(100, 100.0, 2.0, "burst=10", 0.0), 0.92),
        (cell(100, 100.0, 10.0, "", 0.0), 0.90),
        // Shallow buffers, and a configured rate that is three times what the link carries.
        (cell(100, 100.0, 1.0, "queue=64KB", 0.0), 0.93),
        (cell(100, 100.0, 0.0, "", 3.0), 0.95),
    ] {
        let reached = run(&cell, 6.0, 6.0);
        assert!(reached.share >= least, "{}", reached.share);
        assert!(reached.queue_ms < 20.0 + cell.rtt_ms / 10.0, "{}", reached.queue_ms);
        assert!(reached.dropped < 0.03, "{}", reached.dropped);
    }
}

/// From 50 to 10 Mbit/s and back: down within two seconds without a standing queue, up within some more.
#[test]
fn a_change_of_capacity_is_followed() {
    let mut setup = Setup::new(3, "rate=50mbit delay=50ms loss=1% mtu=1500");
    setup.a = Task { payloads: u64::MAX, sizes: 65_000..=65_536, urgent: 0, whole_datagrams: true, ..Task::default() };
    let mut pair = Pair::new(setup);
    pair.connect();
    let rate_over = |pair: &mut Pair, seconds: f64| {
        let before = pair.side(B).received_bytes;
        pair.world.run_for(secs(seconds));
        (pair.side(B).received_bytes - before) as f64 * 8e-6 / seconds
    };
    pair.world.run_for(secs(5.0));
    assert!(rate_over(&mut pair, 2.0) > 44.0);
    pair.world.set(A, B, pair::profile("rate=10mbit delay=50ms loss=1% mtu=1500"));
    pair.world.run_for(secs(3.0));
    let narrow = rate_over(&mut pair, 2.0);
    assert!(narrow > 8.5, "{narrow}");
    assert!(pair.stats(A).rtt.unwrap() < secs(0.2), "{:?}", pair.stats(A));
    pair.world.set(A, B, pair::profile("rate=50mbit delay=50ms loss=1% mtu=1500"));
    pair.world.run_for(secs(12.0));
    let wide = rate_over(&mut pair, 2.0);
    assert!(wide > 40.0, "{wide}");
}

/// A fixed rate is kept whatever is lost, and never exceeded.
#[test]
fn a_fixed_rate_is_a_fixed_rate() {
    let mut setup = Setup::new(3, "rate=100mbit delay=50ms loss=15% mtu=1500");
    setup.change = Box::new(|config, _| {
        config.congestion = Congestion::Fixed;
        config.rate = Some(2_500_000);
    });
    setup.a = Task { payloads: u64::MAX, sizes: 65_000..=65_536, urgent: 0, whole_datagrams: true, ..Task::default() };
    let mut pair = Pair::new(setup);
    pair.connect();
    pair.world.run_for(secs(2.0));
    let before = pair.world.link(A, B).offered_bytes;
    pair.world.run_for(secs(5.0));
    let rate = (pair.world.link(A, B).offered_bytes - before) as f64 / 5.0;
    assert!((2_450_000.0..2_510_000.0).contains(&rate), "{rate}");
}
