//! What a pair does when its link changes, and when its rate is fixed. What it reaches on links
//! that stay as they are: `matrix.rs`.

mod pair;

use pair::reach::{Cell, reach};
use pair::{A, B, Pair, Setup, Task, secs};
use std::time::Duration;
use tpo_mover::{Congestion, RememberedPath};

/// From 100 to 20 Mbit/s and back: down within a second, and the queue that this made is gone in
/// three; up within five.
#[test]
fn a_change_of_capacity_is_followed() {
    for (seed, loss) in [(3, "0%"), (3, "2%"), (4, "2%"), (5, "0%"), (6, "2%")] {
        let link = |rate| format!("rate={rate}mbit delay=50ms loss={loss} mtu=1500 queue=1250000");
        let mut setup = Setup::new(seed, &link(100));
        setup.a = Task::bulk();
        let mut pair = Pair::new(setup);
        pair.connect();
        let rate_over = |pair: &mut Pair, seconds: f64| {
            let before = pair.side(B).received_bytes;
            pair.world.run_for(secs(seconds));
            (pair.side(B).received_bytes - before) as f64 * 8e-6 / seconds
        };
        pair.world.run_for(secs(5.0));
        assert!(rate_over(&mut pair, 2.0) > 90.0, "loss {loss}");
        pair.world.set(A, B, pair::profile(&link(20)));
        pair.world.run_for(secs(1.0));
        // What it takes the path for: the pace may be that of an attempt to go up.
        let bandwidth = pair.stats(A).gauges.path.bandwidth as f64 * 8e-6;
        println!("loss {loss}: {bandwidth:.1} Mbit/s after a second");
        assert!(bandwidth < 22.0, "loss {loss}: {bandwidth}");
        pair.world.run_for(secs(2.0));
        assert!(
            pair.stats(A).gauges.path.rtt.unwrap() < secs(0.15),
            "loss {loss}: {:?}",
            pair.stats(A)
        );
        let narrow = rate_over(&mut pair, 3.0);
        assert!(narrow > 16.5, "loss {loss}: {narrow}");
        pair.world.set(A, B, pair::profile(&link(100)));
        pair.world.run_for(secs(5.0));
        let wide = rate_over(&mut pair, 1.0);
        assert!(wide > 0.9 * 93.0, "loss {loss}: {wide}");
    }
}

/// The rate doubles until a queue stands, and no longer: where the queue holds one product little
/// is dropped of the first sixteen round trips (up to 4.8 % when a whole round had to show it), and
/// what start-up leaves in it is gone after some three.
#[test]
fn startup_leaves_a_queue_when_it_sees_it() {
    for (rate, rtt, loss) in [
        (20, 600, 0.0),
        (100, 600, 1.0),
        (1_000, 600, 0.0),
        (500, 250, 0.5),
        (100, 100, 1.0),
    ] {
        let queue = rate * rtt * 125;
        let delay = rtt / 2;
        let mut setup = Setup::new(
            2,
            &format!("rate={rate}mbit delay={delay}ms loss={loss}% mtu=1500 queue={queue}"),
        );
        setup.a = Task::bulk();
        let mut pair = Pair::new(setup);
        pair.connect();
        let (round, mut stood) = (f64::from(rtt) / 1e3, 0.0);
        for _ in 0..160 {
            pair.world.run_for(secs(round / 10.0));
            let measured = pair
                .stats(A)
                .gauges
                .path
                .rtt
                .map_or(0.0, |rtt| rtt.as_secs_f64());
            stood += if measured > 1.2 * round { 0.1 } else { 0.0 };
        }
        let link = pair.world.link(A, B);
        let dropped = link.dropped_queue as f64 / link.offered_packets as f64 * 100.0;
        let reached = pair.stats(A).gauges.path.bandwidth as f64 * 8e-6 / f64::from(rate);
        println!(
            "{rate} Mbit/s, {rtt} ms: a queue for {stood:.1} round trips, {dropped:.2} % dropped, {reached:.2} reached"
        );
        assert!(
            stood < 3.5 && dropped < 2.5 && reached > 0.9,
            "{rate} Mbit/s, {rtt} ms"
        );
    }
}

/// A fixed rate is kept whatever is lost, and never exceeded.
#[test]
fn a_fixed_rate_is_a_fixed_rate() {
    let mut setup = Setup::new(3, "rate=100mbit delay=50ms loss=15% mtu=1500");
    setup.change = Box::new(|config, _| {
        config.congestion = Congestion::Fixed;
        config.rate = Some(2_500_000);
    });
    setup.a = Task::bulk();
    let mut pair = Pair::new(setup);
    pair.connect();
    pair.world.run_for(secs(2.0));
    let before = pair.world.link(A, B).offered_bytes;
    pair.world.run_for(secs(5.0));
    let rate = (pair.world.link(A, B).offered_bytes - before) as f64 / 5.0;
    assert!((2_450_000.0..2_510_000.0).contains(&rate), "{rate}");
}

/// In every mode the configured rate bounds all that leaves, repairs, parity and headers included,
/// in every second; and on a path that carries it, it is reached.
#[test]
fn a_configured_rate_bounds_the_wire_in_every_mode() {
    const RATE: u64 = 2_500_000;
    for congestion in [
        Congestion::Auto,
        Congestion::Fixed,
        Congestion::Cubic,
        Congestion::Scavenger,
    ] {
        for loss in [0, 3] {
            let mut setup =
                Setup::new(9, &format!("rate=100mbit delay=20ms loss={loss}% mtu=1500"));
            setup.change = Box::new(move |config, _| {
                (config.congestion, config.rate) = (congestion, Some(RATE))
            });
            setup.a = Task {
                urgent: 10,
                ..Task::bulk()
            };
            let mut pair = Pair::new(setup);
            pair.connect();
            let mut seconds = Vec::new();
            for _ in 0..12 {
                let before = pair.world.link(A, B).offered_bytes;
                pair.world.run_for(secs(1.0));
                seconds.push((pair.world.link(A, B).offered_bytes - before) as f64 / RATE as f64);
            }
            println!("{congestion:?} at {loss} %: {seconds:.3?}");
            assert!(
                seconds.iter().all(|share| *share <= 1.01),
                "{congestion:?} at {loss} %: {seconds:.3?}"
            );
            let reached = seconds[6..].iter().sum::<f64>() / 6.0;
            // Loss that is not its own is more than CUBIC and the scavenger bear.
            let least = if loss == 0 || matches!(congestion, Congestion::Auto | Congestion::Fixed) {
                0.95
            } else {
                0.0
            };
            assert!(reached >= least, "{congestion:?} at {loss} %: {reached:.3}");
        }
    }
}

/// A path that is remembered is filled at once; one that has become narrower in the meantime costs
/// a round trip's worth.
#[test]
fn what_is_remembered_is_begun_with() {
    let long = Cell::new(1_000.0, 600.0, 0.0);
    let path = |mbit: u64| RememberedPath {
        bandwidth: mbit * 125_000,
        round_trip: Duration::from_millis(600),
        age: Duration::from_secs(3_600),
    };
    let remembered = reach(&long, 4.0, 4.0, move |config| {
        config.remembered_path = Some(path(1_000))
    });
    println!("remembered {}", remembered.row());
    assert!(
        remembered.ramp.is_some_and(|ramp| ramp <= 3.0),
        "{:?}",
        remembered.ramp
    );
    assert!(remembered.eta >= 0.90 && remembered.held < 300_000_000 && remembered.queue_ms < 60.0);
    let narrow = Cell::new(100.0, 600.0, 0.0);
    let reached = reach(&narrow, 14.0, 8.0, move |config| {
        config.remembered_path = Some(path(1_000))
    });
    println!("narrower {}", reached.row());
    assert!(reached.eta >= 0.85 && reached.queue_ms < 120.0 && reached.dropped < 0.01);
    // Another path: nothing of it counts.
    let other = Cell::new(100.0, 100.0, 0.0);
    let reached = reach(&other, 2.0, 4.0, move |config| {
        config.remembered_path = Some(path(1_000))
    });
    println!("other {}", reached.row());
    assert!(reached.eta >= 0.95 && reached.dropped < 0.01);
}

/// A rate that was configured ten times too high costs what it put on its way before the first
/// queue showed, and no more.
#[test]
fn a_rate_that_is_no_rate_of_the_path_is_forgotten() {
    for (rtt_ms, loss) in [(20.0, 1.0), (100.0, 0.0), (600.0, 1.0)] {
        let cell = Cell {
            rate: 10.0,
            ..Cell::new(100.0, rtt_ms, loss)
        };
        let reached = reach(&cell, 4.0, 8.0, |_| ());
        println!("too high {}{}", cell.name(), reached.row());
        assert!(
            reached.eta >= 0.9 && reached.queue_ms < 30.0 && reached.dropped < 0.01,
            "{}",
            reached.row()
        );
    }
}

/// Every controller gets through an outage, whatever it was doing when it began, and has its rate
/// back within ten seconds.
#[test]
fn an_outage_passes() {
    for congestion in [
        Congestion::Auto,
        Congestion::Cubic,
        Congestion::Scavenger,
        Congestion::Fixed,
    ] {
        let loss = if congestion == Congestion::Cubic {
            0
        } else {
            1
        };
        for start in [2.0, 3.3] {
            let mut setup = Setup::new(
                11,
                &format!("rate=50mbit delay=20ms loss={loss}% mtu=1500 outage={start}s+4s"),
            );
            setup.change = Box::new(move |config, _| {
                config.congestion = congestion;
                config.rate = (congestion == Congestion::Fixed).then_some(5_500_000);
            });
            setup.a = Task::bulk();
            let mut pair = Pair::new(setup);
            pair.connect();
            pair.world.run_for(secs(start + 4.0 + 10.0));
            let before = pair.side(B).received_bytes;
            pair.world.run_for(secs(5.0));
            let rate = (pair.side(B).received_bytes - before) as f64 * 8e-6 / 5.0;
            println!("{congestion:?} after {start} s: {rate:.1} Mbit/s");
            assert!(rate > 35.0, "{congestion:?} after {start} s: {rate}");
        }
    }
}

/// What begins on a path of which nothing is known: one connection's worth, or that of sixteen,
/// within the first round trip; and the path is found as soon.
#[test]
fn many_streams_begin_like_as_many_connections() {
    for (flows, sent) in [(1, 24..40), (16, 140..170)] {
        let mut setup = Setup::new(5, "rate=100mbit delay=50ms mtu=1500 queue=1250000");
        setup.a = Task {
            flows,
            ..Task::bulk()
        };
        let mut pair = Pair::new(setup);
        assert!(
            pair.world
                .run_until(|world| world.node(A).mover.is_up(), secs(5.0))
        );
        let before = pair.world.link(A, B).offered_packets;
        pair.world.run_for(secs(0.098));
        let first = pair.world.link(A, B).offered_packets - before;
        println!("{flows} streams: {first} datagrams in the first round trip");
        assert!(sent.contains(&first), "{flows} streams: {first}");
        pair.world.run_for(secs(2.0));
        let link = pair.world.link(A, B);
        let dropped = link.dropped_queue as f64 / link.offered_packets as f64;
        println!("{flows} streams: {dropped:.4} dropped in the first two seconds");
        assert!(dropped < 0.025, "{flows} streams: {dropped}");
        assert!(
            pair.stats(A).gauges.path.bandwidth as f64 > 0.9 * 12.5e6,
            "{flows} streams: {:?}",
            pair.stats(A)
        );
    }
}
