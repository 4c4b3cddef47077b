//! Worlds of two peers with applications in memory and a bad WAN between them. Each scenario runs
//! for many seeds; the reference model in `world/apps.rs` knows every byte. `TPO_SEED` picks one
//! seed, `TPO_SEEDS` multiplies how many there are; a failure prints the command that replays it.

// Shared with the driver's own tests: not each of its tools is needed at both places.
#[path = "world/apps.rs"]
#[allow(dead_code, unreachable_pub)]
mod apps;
#[path = "world/site.rs"]
#[allow(unreachable_pub)]
mod site;
#[path = "world/who.rs"]
#[allow(unreachable_pub)]
mod who;

use std::time::Duration;

use apps::{End, Plan, Reading, Script, Then, delays};
use site::{A, B, Pair, Setup, random_wan, seeds};
use tpo_engine::{Class, Event, Limits, Status};
use tpo_lab::Profile;

const MS: Duration = Duration::from_millis(1);
const SECOND: Duration = Duration::from_secs(1);

fn wan(text: &str) -> Profile {
    text.parse().unwrap_or_else(|error| panic!("{error}"))
}

fn scripts(random: &mut fastrand::Rng, flows: usize, most: u64) -> Vec<Script> {
    (0..random.usize(0..=flows))
        .map(|_| Script::random(random, most))
        .collect()
}

/// Flows both ways at once, over anything: each byte arrives, in order, and each direction ends on
/// its own.
#[test]
fn flows_cross_any_wan() {
    seeds("flows_cross_any_wan", 1000, |seed| {
        let random = &mut fastrand::Rng::with_seed(seed);
        let setup = Setup {
            wan: [random_wan(random), random_wan(random)],
            ..Setup::new(seed)
        };
        let mut pair = Pair::new(
            setup,
            [scripts(random, 6, 150_000), scripts(random, 6, 150_000)],
        );
        pair.run_to_the_end(120 * SECOND);
    });
}

#[test]
fn resets_and_refusals_cross_any_wan() {
    seeds("resets_and_refusals_cross_any_wan", 1000, |seed| {
        let random = &mut fastrand::Rng::with_seed(seed);
        let setup = Setup {
            wan: [random_wan(random), random_wan(random)],
            ..Setup::new(seed)
        };
        let mut both = [scripts(random, 8, 60_000), scripts(random, 8, 60_000)];
        for script in both.iter_mut().flatten() {
            for plan in [&mut script.opener, &mut script.acceptor] {
                match random.u8(0..5) {
                    0 => plan.then = Then::Fail,
                    1 => plan.read = Reading::ResetAfter(random.u64(1..20_000)),
                    _ => {}
                }
            }
            if random.u8(0..5) == 0 {
                script.refuse = Some(
                    [
                        Status::Refused,
                        Status::Unreachable,
                        Status::TimedOut,
                        Status::NotAllowed,
                    ][random.usize(0..4)],
                );
            }
        }
        let mut pair = Pair::new(setup, both);
        pair.run_to_the_end(120 * SECOND);
    });
}

/// Windows that are zero at the start, and readers that stop for seconds.
#[test]
fn zero_windows_open_again() {
    seeds("zero_windows_open_again", 400, |seed| {
        let random = &mut fastrand::Rng::with_seed(seed);
        let mut setup = Setup {
            wan: [random_wan(random), random_wan(random)],
            ..Setup::new(seed)
        };
        setup.limits.initial_credit = [0, 1000, 64 << 10][random.usize(0..3)];
        let mut both = [scripts(random, 4, 300_000), scripts(random, 4, 300_000)];
        for script in both.iter_mut().flatten() {
            for plan in [&mut script.opener, &mut script.acceptor] {
                plan.read = Reading::From(Duration::from_millis(random.u64(0..8000)));
            }
        }
        let mut pair = Pair::new(setup, both);
        pair.run_to_the_end(120 * SECOND);
    });
}

/// One application ends its direction and goes on reading; the other answers after that.
#[test]
fn each_direction_ends_on_its_own() {
    seeds("each_direction_ends_on_its_own", 200, |seed| {
        let random = &mut fastrand::Rng::with_seed(seed);
        let setup = Setup {
            wan: [random_wan(random), random_wan(random)],
            ..Setup::new(seed)
        };
        let ends_first = |random: &mut fastrand::Rng| Plan::bytes(random.u64(0..50_000));
        let ends_second = |random: &mut fastrand::Rng| Plan {
            then: Then::Follow,
            ..Plan::bytes(random.u64(0..50_000))
        };
        let from_a = Script::new(ends_first(random), ends_second(random));
        let from_b = Script::new(ends_second(random), ends_first(random));
        let mut pair = Pair::new(
            setup,
            [vec![from_a.clone(), from_b.clone()], vec![from_a, from_b]],
        );
        pair.run_to_the_end(60 * SECOND);
        for side in [A, B] {
            for number in [(0, 0), (0, 1), (1, 0), (1, 1)] {
                assert!(pair.end(side, number).saw_closed);
            }
        }
    });
}

/// Both know the other's address and call at the same moment, with flows waiting on both sides.
#[test]
fn both_call_at_once() {
    seeds("both_call_at_once", 200, |seed| {
        let random = &mut fastrand::Rng::with_seed(seed);
        let setup = Setup {
            wan: [random_wan(random), random_wan(random)],
            both_call: true,
            ..Setup::new(seed)
        };
        let mut both = [scripts(random, 4, 20_000), scripts(random, 4, 20_000)];
        for script in both.iter_mut().flatten() {
            script.start = Duration::ZERO;
        }
        let mut pair = Pair::new(setup, both);
        pair.run_to_the_end(60 * SECOND);
    });
}

/// One side restarts in the middle: the other's flows are reset, and new ones run.
#[test]
fn a_restart_resets_flows_and_new_ones_run() {
    seeds("a_restart_resets_flows_and_new_ones_run", 200, |seed| {
        let random = &mut fastrand::Rng::with_seed(seed);
        let setup = Setup {
            wan: [random_wan(random), random_wan(random)],
            both_call: true,
            ..Setup::new(seed)
        };
        let stays = |write| Plan {
            then: Then::Stay,
            ..Plan::bytes(write)
        };
        let long = || {
            vec![
                Script::new(stays(random_size(seed)), stays(3_000_000)),
                Script::new(stays(0), stays(5000)),
            ]
        };
        let mut pair = Pair::new(setup, [long(), long()]);
        assert!(pair.run_until(
            |pair| [A, B].iter().all(|side| pair.sessions(*side) > 0),
            30 * SECOND
        ));
        pair.world
            .run_for(Duration::from_millis(random.u64(0..3000)));
        let side = random.usize(0..2);
        let other = 1 - side;
        let had: Vec<(u8, usize)> = pair.apps(other).ends.keys().copied().collect();
        let sessions = pair.sessions(other);
        pair.restart(side, seed ^ 0xdead);
        let found = pair.run_until(
            |pair| pair.sessions(other) > sessions && pair.sessions(side) > 0,
            30 * SECOND,
        );
        assert!(found, "the restart was not found");
        // Calls that crossed may make one more session, which is a fresh one for both.
        pair.world.run_for(2 * SECOND);
        for flow in &had {
            let end = &pair.apps(other).ends[flow];
            assert!(
                matches!(
                    end.saw_reset,
                    Some(Status::PeerRestarted | Status::GoingAway)
                ),
                "{end:?}"
            );
        }
        let script = Script::new(Plan::bytes(20_000), Plan::bytes(30_000));
        pair.add(side, script.clone());
        pair.add(other, script);
        pair.run_to_the_end(60 * SECOND);
        let numbers = [pair.last_number(0), pair.last_number(1)];
        for (opener, number) in [(0, numbers[0]), (1, numbers[1])] {
            assert!(
                pair.end(A, (opener, number)).saw_closed
                    && pair.end(B, (opener, number)).saw_closed
            );
        }
    });
}

/// Slow links that lose, repeat, reorder and bend what they carry, and a restart in the middle,
/// while dictionaries are agreed, made and forgotten: nothing is ever delivered wrong, and
/// afterwards it goes on.
#[test]
fn compression_survives_restarts_and_bent_bits() {
    let dictionaries = std::cell::Cell::new(0);
    seeds("compression_survives_restarts_and_bent_bits", 300, |seed| {
        let random = &mut fastrand::Rng::with_seed(seed);
        let mut link = || Profile {
            rate: Some([2_000_000, 10_000_000][random.usize(0..2)]),
            corrupt: 0.02,
            ..random_wan(random)
        };
        let setup = Setup {
            wan: [link(), link()],
            both_call: true,
            ..Setup::new(seed)
        };
        let mut flows = || {
            (0..3)
                .map(|_| Script::random(random, 300_000))
                .collect::<Vec<_>>()
        };
        let both = [flows(), flows()];
        let mut pair = Pair::new(setup, both);
        assert!(pair.run_until(
            |pair| [A, B].iter().all(|side| pair.sessions(*side) > 0),
            30 * SECOND
        ));
        pair.world
            .run_for(Duration::from_millis(random.u64(600..4_000)));
        let made = |pair: &Pair| {
            [A, B]
                .map(|side| pair.peer(side).stats().dictionaries)
                .iter()
                .sum::<u64>()
        };
        dictionaries.set(dictionaries.get() + made(&pair));
        let side = random.usize(0..2);
        let sessions = pair.sessions(1 - side);
        pair.restart(side, seed ^ 0xbeef);
        let found = |pair: &Pair| pair.sessions(1 - side) > sessions && pair.sessions(side) > 0;
        assert!(
            pair.run_until(found, 30 * SECOND),
            "the restart was not found"
        );
        pair.world.run_for(2 * SECOND);
        for opener in [A, B] {
            pair.add(
                opener,
                Script::new(
                    Plan::bytes(random.u64(1..200_000)),
                    Plan::bytes(random.u64(1..200_000)),
                ),
            );
        }
        pair.run_to_the_end(90 * SECOND);
        dictionaries.set(dictionaries.get() + made(&pair));
    });
    assert!(dictionaries.get() > 0, "no dictionary was ever made");
}

fn random_size(seed: u64) -> u64 {
    (seed * 7919) % 2_000_000
}

/// A side that goes away says so: the other's flows end at once.
#[test]
fn going_away_resets_the_other_side() {
    seeds("going_away_resets_the_other_side", 30, |seed| {
        let setup = Setup {
            wan: [
                wan("rate=20mbit delay=30ms mtu=1500"),
                wan("rate=20mbit delay=30ms mtu=1500"),
            ],
            ..Setup::new(seed)
        };
        let stays = || Plan {
            then: Then::Stay,
            ..Plan::bytes(1_000_000)
        };
        let mut pair = Pair::new(
            setup,
            [
                vec![Script::new(stays(), stays())],
                vec![Script::new(stays(), stays())],
            ],
        );
        pair.world.run_for(Duration::from_millis(300 + seed * 20));
        pair.close(A);
        assert!(pair.run_until(|pair| pair.peer(B).flows().count() == 0, SECOND));
        for side in [A, B] {
            for (flow, end) in &pair.apps(side).ends {
                assert_eq!(
                    end.saw_reset,
                    Some(Status::GoingAway),
                    "side {side}, flow {flow:?}"
                );
            }
            assert_eq!(pair.peer(side).memory(), 0);
        }
    });
}

/// Nothing passes for 20 to 30 seconds, at any moment: no flow and no byte is lost, and it goes on
/// soon after.
#[test]
fn an_outage_loses_no_flow_and_no_byte() {
    seeds("an_outage_loses_no_flow_and_no_byte", 150, |seed| {
        let random = &mut fastrand::Rng::with_seed(seed);
        let start = Duration::from_millis(random.u64(500..3000));
        let length = Duration::from_millis(random.u64(20_000..30_000));
        let mut both = [random_wan(random), random_wan(random)];
        for profile in &mut both {
            profile.outages = vec![(start, length)];
        }
        let setup = Setup {
            wan: both,
            both_call: random.bool(),
            ..Setup::new(seed)
        };
        let mut flows = [scripts(random, 4, 400_000), scripts(random, 4, 400_000)];
        flows[0].push(Script::new(Plan::bytes(3_000_000), Plan::bytes(1000)));
        let mut pair = Pair::new(setup, flows);
        pair.run_to_the_end(start + length + 90 * SECOND);
        for side in [A, B] {
            assert!(!pair.apps(side).peer_events.contains(&Event::Dead));
            assert!(pair.apps(side).ends.values().all(|end| end.saw_closed));
        }
    });
}

/// What repeats itself crosses a slow link several times as fast, and arrives as it was; small
/// flows cost less of it too.
#[test]
fn compression_multiplies_a_slow_link() {
    let run = |compresses: bool, flows: usize, bytes: u64| {
        let link = "rate=2mbit delay=40ms loss=0.1% mtu=1500";
        let setup = Setup {
            wan: [wan(link), wan(link)],
            compresses,
            ..Setup::new(21)
        };
        // One after the other: each has a connection of its own.
        let script = |number: usize| Script {
            start: Duration::from_millis(2_000 + 100 * number as u64),
            ..Script::new(Plan::bytes(bytes), Plan::bytes(0))
        };
        let mut pair = Pair::new(setup, [(0..flows).map(script).collect(), vec![]]);
        pair.world.run_for(2 * SECOND);
        let (start, before) = (pair.world.elapsed(), pair.world.link(A, B).offered_bytes);
        assert!(pair.run_until(
            |pair| (0..flows).all(|flow| pair.apps(B).got(0, flow) == bytes),
            120 * SECOND
        ));
        let wire = pair.world.link(A, B).offered_bytes - before;
        let stats = pair.peer(A).stats();
        (
            pair.world.elapsed() - start,
            wire,
            stats.compression_in_all(),
            stats.dictionaries,
        )
    };
    let (plain, ..) = run(false, 1, 4 << 20);
    let (compressed, _, compression, dictionaries) = run(true, 1, 4 << 20);
    println!(
        "4 MiB: {plain:?} plain, {compressed:?} compressed, {dictionaries} dictionaries, {compression:?}"
    );
    assert!(compressed * 4 < plain, "{compressed:?} of {plain:?}");
    assert!(dictionaries > 3);
    let (_, plain, ..) = run(false, 100, 2_000);
    let (_, compressed, compression, _) = run(true, 100, 2_000);
    println!(
        "100 flows of 2,000 bytes: {plain} bytes on the wire plain, {compressed} compressed, {compression:?}"
    );
    // Each flow repeats itself only two and a half times, and none repeats another.
    assert!(compressed * 20 < plain * 19, "{compressed} of {plain}");
}

/// Flows with pauses about as long as those after which compression gives back what it holds, over
/// anything and through silences: whatever was given back at one side and not yet at the other,
/// everything is read, and in the end nothing is held.
#[test]
fn compression_rests_and_goes_on() {
    let made = std::cell::Cell::new(0);
    seeds("compression_rests_and_goes_on", 150, |seed| {
        let random = &mut fastrand::Rng::with_seed(seed);
        let mut links = [random_wan(random), random_wan(random)];
        let mut start = SECOND;
        let mut flows = [vec![], vec![]];
        for _ in 0..8 {
            let script = Script {
                start,
                ..Script::new(Plan::bytes(random.u64(2_000..60_000)), Plan::bytes(20_000))
            };
            flows[random.usize(0..2)].push(script);
            let pause = [
                1_000, 59_000, 60_000, 61_000, 90_000, 119_000, 120_000, 121_000, 150_000,
            ][random.usize(0..9)];
            start += Duration::from_millis(pause + random.u64(0..1_000));
            // What left just before a silence comes after it, and so does what was sent in it.
            if random.u8(0..4) == 0 {
                let silence = (
                    start - Duration::from_millis(random.u64(0..1_500)),
                    SECOND * random.u32(1..40),
                );
                links.iter_mut().for_each(|link| link.outages.push(silence));
            }
        }
        let mut pair = Pair::new(
            Setup {
                wan: links,
                ..Setup::new(seed)
            },
            flows,
        );
        pair.run_to_the_end(start + 120 * SECOND);
        assert!(!pair.apps(A).peer_events.contains(&Event::Dead));
        // The links that make silences of their own have done so.
        for (from, to) in [(A, B), (B, A)] {
            pair.world.set(from, to, wan("rate=10mbit delay=20ms"));
        }
        pair.world.run_for(200 * SECOND);
        assert_eq!(
            [A, B].map(|side| pair.peer(side).memory()),
            [0, 0],
            "nothing is held for ever"
        );
        made.set(made.get() + pair.peer(A).stats().dictionaries);
    });
    assert!(made.get() > 0, "none of the worlds made a dictionary");
}

/// The same seed gives the same run, event for event.
#[test]
fn the_same_seed_is_the_same_world() {
    let run = |seed: u64| {
        let random = &mut fastrand::Rng::with_seed(seed);
        let setup = Setup {
            wan: [random_wan(random), random_wan(random)],
            ..Setup::new(seed)
        };
        let mut pair = Pair::new(
            setup,
            [scripts(random, 6, 100_000), scripts(random, 6, 100_000)],
        );
        pair.run_to_the_end(120 * SECOND);
        let ends: Vec<Vec<End>> = [A, B]
            .iter()
            .map(|side| pair.apps(*side).ends.values().cloned().collect())
            .collect();
        (pair.world.trace(), pair.world.elapsed(), ends)
    };
    for seed in 500..510 {
        let (first, second) = (run(seed), run(seed));
        assert!(first == second, "seed {seed}");
    }
    assert_ne!(run(500).0, run(501).0);
}

/// A flow whose reader has stopped holds its window and nothing else: another gets the whole link.
#[test]
fn a_stalled_flow_does_not_slow_another() {
    let megabytes = 20;
    let run = |stalled: usize| {
        let setup = Setup {
            wan: [
                wan("rate=100mbit delay=20ms mtu=1500"),
                wan("rate=100mbit delay=20ms mtu=1500"),
            ],
            // What is held depends on how much comes through.
            compresses: false,
            ..Setup::new(7)
        };
        let stalled_script = Script::new(
            Plan::bytes(1_000_000_000),
            Plan {
                read: Reading::Never,
                ..Plan::bytes(0)
            },
        );
        let mut scripts = vec![stalled_script; stalled];
        scripts.push(Script {
            start: 2 * SECOND,
            ..Script::new(Plan::bytes(megabytes << 20), Plan::bytes(0))
        });
        let mut pair = Pair::new(setup, [scripts, vec![]]);
        assert!(pair.run_until(
            |pair| pair.apps(B).got(0, stalled) == megabytes << 20,
            30 * SECOND
        ));
        let end = pair.end(B, (0, stalled)).clone();
        (
            end.last_byte.unwrap() - 2 * SECOND,
            pair.peer(B).stats().held_bytes_max,
        )
    };
    let (alone, _) = run(0);
    let (beside, held) = run(20);
    assert!(
        beside < alone + alone / 20,
        "alone {alone:?}, beside 20 stalled flows {beside:?}"
    );
    assert!(
        held < 20 * (400 << 10),
        "{held} bytes held for 20 stalled flows"
    );
}

/// Readers that were fast, so that their windows have grown, and then stop: what they hold stays
/// small, none of them is reset, and another flow has the link as if they were not there. Those
/// that go on get all the rest.
#[test]
fn readers_that_stop_leave_the_memory_to_the_others() {
    const STOPPED: usize = 30;
    let bytes = 20 << 20;
    let run = |stopped: usize, read: fn(usize) -> Reading| {
        let setup = Setup {
            wan: [
                wan("rate=100mbit delay=20ms mtu=1500"),
                wan("rate=100mbit delay=20ms mtu=1500"),
            ],
            compresses: false,
            limits: Limits {
                peer_bytes: 64 << 20,
                ..Limits::default()
            },
            ..Setup::new(9)
        };
        let plan = |number| Plan {
            read: read(number),
            ..Plan::bytes(0)
        };
        let one = |number: usize| Script {
            start: Duration::from_millis(1_000 + 300 * number as u64),
            ..Script::new(Plan::bytes(1_000_000_000), plan(number))
        };
        let mut scripts: Vec<Script> = (0..stopped).map(one).collect();
        let start = 20 * SECOND;
        scripts.push(Script {
            start,
            ..Script::new(Plan::bytes(bytes), Plan::bytes(0))
        });
        let mut pair = Pair::new(setup, [scripts, vec![]]);
        let done = pair.run_until(|pair| pair.apps(B).got(0, stopped) == bytes, 60 * SECOND);
        let stats = pair.peer(B).stats();
        let reset = (0..stopped)
            .filter(|number| pair.apps(B).end(0, *number).saw_reset.is_some())
            .count();
        assert!(done, "it never came, {reset} others were reset: {stats:?}");
        (
            pair.apps(B).end(0, stopped).last_byte.unwrap() - start,
            stats.held_bytes_max,
            reset,
            pair,
        )
    };
    let (alone, ..) = run(0, |_| Reading::Prompt);
    let (beside, held, reset, mut pair) = run(STOPPED, |_| Reading::StopAfter(2 << 20));
    println!("alone {alone:?}, beside {STOPPED} that have stopped {beside:?}, {held} bytes held");
    assert_eq!(reset, 0);
    assert!(
        beside < alone + alone / 20,
        "alone {alone:?}, beside {STOPPED} that have stopped {beside:?}"
    );
    // A quarter of a megabyte each, and what was under way when it stopped: two round trips of the
    // whole link at most.
    assert!(held < 40 << 20, "{held} bytes held");
    for number in 0..STOPPED {
        pair.set_plan(
            B,
            (0, number),
            Plan {
                read: Reading::Prompt,
                ..Plan::bytes(0)
            },
        );
    }
    let enough = |pair: &Pair| (0..STOPPED).all(|number| pair.apps(B).got(0, number) > 4 << 20);
    assert!(
        pair.run_until(enough, 30 * SECOND),
        "those that read again get more"
    );
    // Slow ones hold no more than they need.
    let (beside, held, reset, _) = run(STOPPED, |_| Reading::Rate(20_000));
    println!("beside {STOPPED} slow ones {beside:?}, {held} bytes held");
    assert_eq!(reset, 0);
    assert!(held < 20 << 20, "{held} bytes held");
    // Which take a twentieth of the link.
    assert!(
        beside < alone + alone / 5,
        "alone {alone:?}, beside {STOPPED} slow ones {beside:?}"
    );
}

/// Messages of one flow beside bulk data of another, on a link that loses 3 %: only its own losses
/// delay it. In one global order nearly every message would wait for somebody's repair.
#[test]
fn loss_of_one_flow_does_not_delay_another() {
    let text = "rate=10mbit delay=20ms loss=3% mtu=1500";
    let setup = Setup {
        wan: [wan(text), wan(text)],
        ..Setup::new(11)
    };
    let bulk = Script {
        class: Class::Bulk,
        ..Script::new(Plan::bytes(1 << 40), Plan::bytes(0))
    };
    let ticks = Plan {
        piece: 100,
        pause: 150 * MS,
        ..Plan::bytes(100 * 150)
    };
    let small = Script {
        class: Class::Interactive,
        start: 3 * SECOND,
        ..Script::new(ticks, Plan::bytes(0))
    };
    let mut pair = Pair::new(setup, [vec![bulk, small], vec![]]);
    assert!(pair.run_until(|pair| pair.apps(B).got(0, 1) == 100 * 150, 60 * SECOND));
    let delays = delays(pair.end(A, (0, 1)), pair.end(B, (0, 1)));
    assert_eq!(delays.len(), 150);
    // 20 ms of path, and the queue that the bulk flow stands in: a repair would take at least 40 ms
    // more.
    let late = delays.iter().filter(|delay| **delay > 60 * MS).count();
    assert!(late <= 15, "{late} of 150 messages were late: {delays:?}");
    let bulk = pair.apps(B).got(0, 0);
    assert!(
        bulk > 18_000_000,
        "the bulk flow moved {bulk} bytes in 25 s"
    );
}

/// The first bytes of a new flow arrive after half a round trip, with its opening.
#[test]
fn a_request_arrives_after_half_a_round_trip() {
    let setup = Setup {
        wan: [
            wan("rate=100mbit delay=50ms mtu=1500"),
            wan("rate=100mbit delay=50ms mtu=1500"),
        ],
        ..Setup::new(3)
    };
    let script = Script {
        start: 2 * SECOND,
        ..Script::new(Plan::bytes(300), Plan::bytes(5000))
    };
    let mut pair = Pair::new(setup, [vec![script], vec![]]);
    pair.run_to_the_end(10 * SECOND);
    let (asked, answered) = (
        pair.end(B, (0, 0)).first_byte.unwrap(),
        pair.end(A, (0, 0)).last_byte.unwrap(),
    );
    assert!(asked < 2 * SECOND + 52 * MS, "{asked:?}");
    assert!(answered < 2 * SECOND + 104 * MS, "{answered:?}");
}

/// One flow fills a long fast path: credit is never what stops it.
#[test]
fn one_flow_fills_the_link() {
    let setup = Setup {
        wan: [
            wan("rate=100mbit delay=50ms mtu=1500"),
            wan("rate=100mbit delay=50ms mtu=1500"),
        ],
        ..Setup::new(5)
    };
    let mut pair = Pair::new(
        setup,
        [
            vec![Script::new(Plan::bytes(1 << 40), Plan::bytes(0))],
            vec![],
        ],
    );
    pair.world.run_for(4 * SECOND);
    let before = pair.apps(B).got(0, 0);
    pair.world.run_for(4 * SECOND);
    let rate = (pair.apps(B).got(0, 0) - before) * 8 / 4;
    assert!(rate > 90_000_000, "{rate} bit/s of application bytes");
}

/// Sixteen bulk flows share the link fairly.
#[test]
fn flows_share_the_link() {
    let setup = Setup {
        wan: [
            wan("rate=50mbit delay=20ms loss=1% mtu=1500"),
            wan("rate=50mbit delay=20ms mtu=1500"),
        ],
        ..Setup::new(6)
    };
    let mut pair = Pair::new(
        setup,
        [
            vec![Script::new(Plan::bytes(1 << 40), Plan::bytes(0)); 16],
            vec![],
        ],
    );
    pair.world.run_for(12 * SECOND);
    let got: Vec<f64> = (0..16)
        .map(|number| pair.apps(B).got(0, number) as f64)
        .collect();
    let jain = got.iter().sum::<f64>().powi(2) / (16.0 * got.iter().map(|n| n * n).sum::<f64>());
    assert!(jain > 0.98, "{jain}: {got:?}");
}

/// Readers that stop, and more senders than memory: the budget holds, and whoever is left runs on.
#[test]
fn memory_stays_inside_its_budget() {
    seeds("memory_stays_inside_its_budget", 10, |seed| {
        let random = &mut fastrand::Rng::with_seed(seed);
        let mut setup = Setup {
            wan: [
                wan("rate=200mbit delay=10ms mtu=1500"),
                wan("rate=200mbit delay=10ms mtu=1500"),
            ],
            ..Setup::new(seed)
        };
        setup.limits = Limits {
            peer_bytes: 4 << 20,
            ..Limits::default()
        };
        let flows = (0..40)
            .map(|_| {
                let read = if random.bool() {
                    Reading::Never
                } else {
                    Reading::Rate(200_000)
                };
                Script::new(
                    Plan::bytes(1 << 30),
                    Plan {
                        read,
                        ..Plan::bytes(0)
                    },
                )
            })
            .collect();
        let mut pair = Pair::new(setup, [flows, vec![]]);
        pair.world.run_for(5 * SECOND);
        let stats = pair.peer(B).stats();
        assert!(
            stats.held_bytes_max <= (4 << 20) / 4 * 5,
            "{} held",
            stats.held_bytes_max
        );
        assert!(
            stats.counters.flows.out_of_memory + stats.counters.flows.refused > 0,
            "memory was never short: {stats:?}"
        );
        let before: u64 = (0..40).map(|number| pair.apps(B).got(0, number)).sum();
        pair.world.run_for(2 * SECOND);
        let after: u64 = (0..40).map(|number| pair.apps(B).got(0, number)).sum();
        assert!(after > before, "nobody gets anything any more");
    });
}

/// The budget bounds what the movers hold too, on both sides, also when it is lowered while data
/// flows.
#[test]
fn a_lower_budget_reaches_the_mover() {
    seeds("a_lower_budget_reaches_the_mover", 2, |seed| {
        let link = "rate=200mbit delay=200ms loss=0.1% mtu=1500";
        let setup = Setup {
            wan: [wan(link), wan(link)],
            compresses: false,
            ..Setup::new(seed)
        };
        let mut pair = Pair::new(
            setup,
            [
                vec![Script::new(Plan::bytes(1 << 40), Plan::bytes(0)); 4],
                vec![],
            ],
        );
        pair.world.run_for(8 * SECOND);
        let stats = pair.peer(A).stats();
        assert!(
            stats.mover.gauges.sender.unacked_bytes > 6 << 20,
            "the path does not need the memory: {stats:?}"
        );
        let (counted, bytes) = (
            pair.peer(A).memory() as u64,
            stats.held_bytes as u64 + stats.mover.gauges.sender.unacked_bytes,
        );
        assert!(
            counted >= bytes && counted <= 2 * bytes + (9 << 20),
            "{counted} counted for {bytes} bytes"
        );
        for side in [A, B] {
            pair.set_budget(side, 16 << 20);
        }
        pair.world.run_for(2 * SECOND);
        let got = |pair: &Pair| {
            (0..4)
                .map(|number| pair.apps(B).got(0, number))
                .sum::<u64>()
        };
        let before = got(&pair);
        for _ in 0..20 {
            pair.world.run_for(100 * MS);
            let (a, b) = (pair.peer(A).stats().mover, pair.peer(B).stats().mover);
            assert!(
                a.gauges.sender.unacked_bytes <= 4 << 20
                    && b.gauges.receiver.reassembly_bytes <= 4 << 20,
                "{a:?} {b:?}"
            );
        }
        // Four megabytes in a round trip of 400 ms, for two seconds, less some for the losses.
        assert!(
            got(&pair) - before > 8 << 20,
            "{} bytes came",
            got(&pair) - before
        );
    });
}
