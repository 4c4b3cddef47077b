//! Two movers in a seeded world: every payload exactly once and byte-identical, whatever the network does.

mod pair;

use pair::{A, B, Pair, Setup, Task, secs, seeds};

fn scenario(setup: Setup) -> Pair {
    let mut pair = Pair::new(setup);
    pair.connect();
    pair.finish(secs(600.0));
    pair.rest();
    pair.agree();
    pair
}

#[test]
fn a_clean_link() {
    seeds("world", "a_clean_link", 20, |seed| {
        let mut setup = Setup::new(seed, "rate=100mbit delay=10ms mtu=1500 queue=10MB");
        (setup.a, setup.b) = (Task::payloads(100), Task::payloads(60));
        let pair = scenario(setup);
        for side in [A, B] {
            let stats = pair.stats(side);
            assert_eq!((stats.datagrams_lost, stats.segments_repaired), (0, 0), "{stats:?}");
            assert_eq!((stats.segments_duplicate, stats.datagrams_forged), (0, 0), "{stats:?}");
        }
    });
}
