//! What a pair does when its link changes, and when its rate is fixed. What it reaches on links that stay as they are: `matrix.rs`.

mod pair;

use pair::{A, B, Pair, Setup, Task, secs};
use tpo_mover::Congestion;

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
