//! Whatever the flows do and however payloads arrive: every byte comes once, in order, and nothing
//! is left over.

use super::*;

#[test]
fn any_flows_any_order() {
    for seed in 0..150 {
        let mut random = fastrand::Rng::with_seed(seed);
        let mut scripts = || {
            (0..random.usize(1..12))
                .map(|_| Script::random(&mut random, 400_000))
                .collect()
        };
        let scripts = [scripts(), scripts()];
        let mut pair = Pair::new(seed, Limits::default(), scripts);
        pair.run(Duration::from_secs(20));
        pair.check_all_over();
    }
}

#[test]
fn resets_and_refusals_in_any_order() {
    for seed in 0..300 {
        let mut random = fastrand::Rng::with_seed(seed);
        let mut scripts = || {
            (0..random.usize(1..12))
                .map(|_| {
                    let mut script = Script::random(&mut random, 100_000);
                    for plan in [&mut script.opener, &mut script.acceptor] {
                        match random.u8(0..5) {
                            0 => plan.then = Then::Fail,
                            1 => plan.read = Reading::ResetAfter(random.u64(1..20_000)),
                            _ => {}
                        }
                    }
                    if random.u8(0..5) == 0 {
                        script.refuse = Some(
                            [Status::Refused, Status::Unreachable, Status::NotAllowed]
                                [random.usize(0..3)],
                        );
                    }
                    script
                })
                .collect()
        };
        let scripts = [scripts(), scripts()];
        let mut pair = Pair::new(seed, Limits::default(), scripts);
        pair.run(Duration::from_secs(30));
        pair.check_all_over();
    }
}

/// No credit at the start: the opening goes without data, and the window is granted when the flow
/// is accepted.
#[test]
fn without_initial_credit_flows_run() {
    for seed in 0..50 {
        let mut random = fastrand::Rng::with_seed(seed);
        let limits = Limits {
            initial_credit: [0, 1, 700][seed as usize % 3],
            ..Limits::default()
        };
        let scripts = (0..6)
            .map(|_| Script::random(&mut random, 300_000))
            .collect();
        let mut pair = Pair::new(seed, limits, [scripts, vec![]]);
        pair.run(Duration::from_secs(20));
        pair.check_all_over();
    }
}

#[test]
fn offsets_cross_four_gigabytes() {
    for seed in 0..20 {
        let quiet = Plan {
            then: Then::Stay,
            ..Plan::bytes(0)
        };
        let mut pair = Pair::new(
            seed,
            Limits::default(),
            [vec![Script::new(quiet.clone(), quiet)], vec![]],
        );
        for _ in 0..40 {
            pair.tick();
        }
        // Both sides know the flow and nothing is on its way: as if 4 GB had crossed, less a
        // little.
        for driver in &mut pair.drivers {
            driver
                .streams
                .table()
                .values_mut()
                .next()
                .expect("the flow is open")
                .start_at((1 << 32) - 5000);
        }
        for (apps, driver) in pair.apps.iter_mut().zip(&mut pair.drivers) {
            apps.set_plan(0, 0, Plan::bytes(2_000_000), driver, pair.now);
        }
        pair.run(Duration::from_secs(5));
        for apps in &pair.apps {
            let end = apps.end(0, 0);
            assert!(
                end.saw_closed && (end.got, end.written) == (2_000_000, 2_000_000),
                "{end:?}"
            );
        }
    }
}
