//! What a pair does when its link changes, and when its rate is fixed. What it reaches on links that stay as they are: `matrix.rs`.

mod pair;

use pair::{A, B, Pair, Setup, Task, secs};
use tpo_mover::Congestion;

/// From 100 to 20 Mbit/s and back: down within a second, and the queue that this made is gone in two and a half; up within five.
#[test]
fn a_change_of_capacity_is_followed() {
    for loss in ["0%", "2%"] {
        let link = |rate| format!("rate={rate}mbit delay=50ms loss={loss} mtu=1500 queue=1250000");
        let mut setup = Setup::new(3, &link(100));
        setup.a =
            Task { payloads: u64::MAX, sizes: 65_000..=65_536, urgent: 0, whole_datagrams: true, ..Task::default() };
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
        let pace = pair.stats(A).pacing_rate as f64 * 8e-6;
        assert!(pace < 35.0, "loss {loss}: {pace}");
        pair.world.run_for(secs(1.5));
        assert!(pair.stats(A).rtt.unwrap() < secs(0.15), "loss {loss}: {:?}", pair.stats(A));
        let narrow = rate_over(&mut pair, 3.0);
        assert!(narrow > 16.5, "loss {loss}: {narrow}");
        pair.world.set(A, B, pair::profile(&link(100)));
        pair.world.run_for(secs(5.0));
        let wide = rate_over(&mut pair, 1.0);
        assert!(wide > 0.9 * 93.0, "loss {loss}: {wide}");
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
    setup.a = Task { payloads: u64::MAX, sizes: 65_000..=65_536, urgent: 0, whole_datagrams: true, ..Task::default() };
    let mut pair = Pair::new(setup);
    pair.connect();
    pair.world.run_for(secs(2.0));
    let before = pair.world.link(A, B).offered_bytes;
    pair.world.run_for(secs(5.0));
    let rate = (pair.world.link(A, B).offered_bytes - before) as f64 / 5.0;
    assert!((2_450_000.0..2_510_000.0).contains(&rate), "{rate}");
}
