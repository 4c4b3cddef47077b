//! A scavenger beside a flow that behaves as TCP does: it withdraws, and comes back when the other is gone. Beside `Auto`, which gives way
//! to a standing queue too, it keeps what it has: not asserted here, see docs/performance.md.

mod pair;

use pair::{A, B, Pair, Setup, Side, Task, profile, secs};
use tpo_lab::World;
use tpo_mover::Congestion;

const MBIT: f64 = 100.0;

/// The scavenger's share while the other sends, and the share of the link that it takes afterwards.
fn beside(other: Congestion, buffer: usize) -> (f64, f64) {
    let mut world: World<Side> = World::new(5);
    let neck = world.bottleneck(profile(&format!("rate={MBIT}mbit queue={buffer}")));
    for (tunnel, congestion) in [Congestion::Scavenger, other].into_iter().enumerate() {
        let mut setup = Setup::new(500 + tunnel as u64, "perfect");
        setup.net = tunnel as u8;
        setup.change = Box::new(move |config, _| config.congestion = congestion);
        let mut pair = Pair::new(setup);
        let bulk =
            Task { payloads: u64::MAX, sizes: 65_000..=65_536, urgent: 0, whole_datagrams: true, ..Task::default() };
        let now = world.now();
        let (mut a, b) = (pair.make(A, bulk, now), pair.make(B, Task::default(), now));
        a.stopped = tunnel == 1;
        let (a, b) = (world.add(pair.address(A), a), world.add(pair.address(B), b));
        world.connect(a, b, profile("delay=25ms mtu=1500"), profile("delay=25ms mtu=1500"));
        world.lead_through(a, b, neck);
    }
    let received = |world: &World<Side>, tunnel: usize| world.node(2 * tunnel + 1).received_bytes as f64;
    world.run_for(secs(8.0));
    world.node_mut(2).stopped = false;
    world.run_for(secs(10.0));
    let before = [received(&world, 0), received(&world, 1)];
    world.run_for(secs(20.0));
    let got = [received(&world, 0) - before[0], received(&world, 1) - before[1]];
    world.node_mut(2).stopped = true;
    world.run_for(secs(10.0));
    let before = received(&world, 0);
    world.run_for(secs(10.0));
    let alone = (received(&world, 0) - before) / 10.0 / (MBIT * 125_000.0 * 0.96);
    println!(
        "beside {other:?}, buffer {buffer}: {:.3} of both, then {alone:.3} of the link",
        got[0] / (got[0] + got[1])
    );
    (got[0] / (got[0] + got[1]), alone)
}

#[test]
fn it_leaves_the_link_to_others_and_takes_it_back() {
    for buffer in [1_250_000, 3_000_000] {
        let (share, alone) = beside(Congestion::Cubic, buffer);
        assert!(share <= 0.10, "{share}");
        assert!(alone >= 0.85, "{alone}");
    }
}
