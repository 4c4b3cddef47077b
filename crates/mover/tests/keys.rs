//! Fresh keys beside the traffic: nobody notices but the clock of the keys, whatever the network
//! and other people do meanwhile.

mod pair;

use std::cell::RefCell;
use std::net::SocketAddr;
use std::rc::Rc;
use std::time::{Duration, Instant};

use pair::{A, B, Change, Pair, Setup, Side, Task, profile, secs, seeds};
use tpo_lab::{Verdict, World};
use tpo_mover::Event;

const MINUTE: Duration = Duration::from_secs(60);
/// The first byte of a handshake fragment (docs/wire.md section 1).
const HANDSHAKE: u8 = 0x10;

/// New keys so often; with `at_once` both sides want them at the same time.
fn every(after: Duration, at_once: bool) -> Change {
    Box::new(move |config, _| {
        let is_lower = config.identity.public_key() < config.peer_key;
        config.limits.rekey_after = if at_once && !is_lower {
            after * 10 / 11
        } else {
            after
        };
    })
}

/// How old the keys are with which `side` seals.
fn age(world: &World<Side>, side: usize) -> Duration {
    world.now()
        - world
            .node(side)
            .mover
            .stats()
            .gauges
            .keys_since
            .expect("connected")
}

/// Milliseconds from the sending of each message of `from` to its coming, for those sent in this
/// time.
fn delays(pair: &Pair, from: usize, sent: impl Fn(Instant) -> bool) -> Vec<f64> {
    let came_at = &pair.side(1 - from).came_at;
    let messages = pair.side(from).messages.iter().filter(|(at, _)| sent(*at));
    let mut delays: Vec<f64> = messages
        .flat_map(|(at, numbers)| {
            numbers
                .clone()
                .map(|n| (came_at[&n] - *at).as_secs_f64() * 1e3)
        })
        .collect();
    delays.sort_by(f64::total_cmp);
    delays
}

fn quiet(pair: &Pair) {
    for side in [A, B] {
        let events = &pair.side(side).events;
        let bad = |event: &&Event| !matches!(event, Event::Connected { .. });
        assert_eq!(
            events.iter().find(bad),
            None,
            "nothing but new keys: {events:?}"
        );
        let fresh = |event: &&Event| matches!(event, Event::Connected { fresh: true, .. });
        assert_eq!(events.iter().filter(fresh).count(), 1, "{events:?}");
    }
}

/// Four hours with what the program does by itself; bulk and messages of both directions around
/// each change of keys, and the same without.
#[test]
fn each_hour_has_its_keys_and_no_message_is_late() {
    let all = RefCell::new([Vec::new(), Vec::new()]);
    seeds(
        "keys",
        "each_hour_has_its_keys_and_no_message_is_late",
        4,
        |seed| {
            for (at, rekeys) in [(0, true), (1, false)] {
                all.borrow_mut()[at].extend(delays_around_changes(seed, rekeys));
            }
        },
    );
    let [with, without] = all.into_inner().map(|mut delays| {
        delays.sort_by(f64::total_cmp);
        (
            delays.len(),
            delays[delays.len() / 2],
            delays[delays.len() * 99 / 100],
        )
    });
    println!("messages, median, p99 in ms: {with:?}; without new keys {without:?}");
    if tpo_lab::only_a_part() {
        return;
    }
    // What each seed draws differs with the first datagram more; so does the tail of what stands
    // behind bulk.
    assert!(
        with.0 > 5_000 && with.2 <= without.2 + 1.0,
        "{with:?}; without new keys {without:?}"
    );
}

fn delays_around_changes(seed: u64, rekeys: bool) -> Vec<f64> {
    let mut setup = Setup::new(seed, "rate=20mbit delay=20ms mtu=1500");
    if !rekeys {
        setup.change = every(Duration::MAX, false);
    }
    let mut pair = Pair::new(setup);
    pair.connect();
    let mut windows = Vec::new();
    for change in 1..=4 {
        // The lower side changes after 50 minutes, each time counted from the last.
        pair.world.run_until(
            |world| world.elapsed() >= 50 * MINUTE * change - secs(4.0),
            60 * MINUTE,
        );
        for side in [A, B] {
            let node = pair.world.node_mut(side);
            (node.logs, node.stopped) = (true, false);
            node.set_task(Task {
                messages: Some((1, secs(0.01))),
                payloads: 10_000_000,
                ..Task::bulk()
            });
            pair.world.kick(side);
        }
        // The rate is found; then the keys change.
        pair.world.run_for(secs(3.0));
        let (from, sent) = (pair.world.now(), pair.side(A).sent);
        pair.world.run_for(secs(2.0));
        windows.push(from..pair.world.now());
        assert!(pair.side(A).sent > sent + 50, "bulk flows");
        for side in [A, B] {
            let age = age(&pair.world, side);
            assert_eq!(age < secs(2.0), rekeys, "change {change}: keys of {age:?}");
            pair.world.node_mut(side).stopped = true;
        }
        pair.world.run_for(MINUTE);
    }
    assert_eq!(
        pair.stats(A).counters.handshake.established,
        if rekeys { 5 } else { 1 }
    );
    quiet(&pair);
    pair.agree();
    let of = |side| {
        delays(&pair, side, |at| {
            windows.iter().any(|window| window.contains(&at))
        })
    };
    [of(A), of(B)].concat()
}

/// On any link, also when both want them at once: everything comes once, the keys are never older,
/// and nobody is told anything.
#[test]
fn new_keys_on_any_link() {
    seeds("keys", "new_keys_on_any_link", 60, |seed| {
        let mut dice = fastrand::Rng::with_seed(seed);
        let link = format!(
            "rate=10mbit delay={}ms loss={}% jitter={}ms reorder={}% reorder_by={}ms duplicate={}% corrupt={}% mtu=1500",
            dice.u64(1..80),
            dice.u64(0..16),
            dice.u64(0..20),
            dice.u64(0..10),
            dice.u64(0..100),
            dice.u64(0..10),
            dice.u64(0..3),
        );
        let mut setup = Setup::new(seed, &link);
        setup.change = every(secs(20.0), seed % 2 == 0);
        let often = Task {
            every: Some(secs(0.04)),
            sizes: 13..=3_000,
            ..Task::payloads(3_000)
        };
        (setup.a, setup.b) = (often.clone(), often);
        let mut pair = Pair::new(setup);
        pair.connect();
        for _ in 0..120 {
            pair.world.run_for(secs(1.0));
            for side in [A, B] {
                let age = age(&pair.world, side);
                assert!(
                    age < secs(30.0),
                    "seed {seed}: keys of {age:?}: {:?}",
                    pair.stats(side).counters.handshake
                );
            }
        }
        pair.finish(secs(60.0));
        quiet(&pair);
        let established = pair.stats(A).counters.handshake.established;
        assert!(
            (6..12).contains(&established),
            "seed {seed}: {established} handshakes in two minutes"
        );
        pair.rest();
        pair.agree();
    });
}

/// What the initiator seals reaches the peer though his last flight, which alone gives the peer the
/// new keys, never arrives; all goes on with the old ones, and without a gap.
#[test]
fn a_lost_last_flight_delays_nothing() {
    seeds("keys", "a_lost_last_flight_delays_nothing", 10, |seed| {
        let mut setup = Setup::new(seed, "rate=20mbit delay=20ms mtu=1500");
        setup.change = every(secs(20.0), false);
        let task = Task {
            messages: Some((1, secs(0.02))),
            ..Task::default()
        };
        (setup.a, setup.b) = (task.clone(), task);
        let mut pair = Pair::new(setup);
        pair.connect();
        for side in [A, B] {
            pair.world.node_mut(side).logs = true;
        }
        // All sealed fragments of initiators: bit 0 of byte 24 is the level, bit 1 says who sent
        // it.
        pair.world.on_send(
            |_, _, bytes| match bytes[0] == HANDSHAKE && bytes[24] == 1 {
                true => Verdict::Drop,
                false => Verdict::Keep,
            },
        );
        pair.world.run_for(secs(60.0));
        let stats = pair.stats(A);
        assert!(
            stats.counters.handshake.started + pair.stats(B).counters.handshake.started > 5,
            "{stats:?}"
        );
        pair.world.on_send(|_, _, _| Verdict::Keep);
        pair.world.run_for(secs(30.0));
        for side in [A, B] {
            assert!(age(&pair.world, side) < secs(25.0));
            pair.world.node_mut(side).stopped = true;
        }
        pair.world.run_for(secs(2.0));
        for side in [A, B] {
            let delays = delays(&pair, side, |_| true);
            let worst = delays.last().unwrap();
            assert!(
                delays.len() > 3_000 && *worst < 27.0,
                "seed {seed}: one way of 20 ms took {worst} ms"
            );
            assert_eq!(
                pair.stats(side).counters.sender.segments_repaired,
                0,
                "seed {seed}"
            );
        }
        quiet(&pair);
    });
}

/// One side ends and runs again in the middle of the change, at any moment of it.
#[test]
fn a_restart_in_the_middle_of_new_keys_is_a_restart() {
    seeds(
        "keys",
        "a_restart_in_the_middle_of_new_keys_is_a_restart",
        60,
        |seed| {
            let mut setup = Setup::new(seed, "rate=20mbit delay=20ms jitter=5ms mtu=1500");
            setup.change = every(secs(20.0), seed % 4 < 2);
            setup.calls = [true, true];
            let often = Task {
                every: Some(secs(0.05)),
                ..Task::payloads(100_000)
            };
            (setup.a, setup.b) = (often.clone(), often);
            let mut pair = Pair::new(setup);
            pair.connect();
            pair.world.run_for(secs(5.0));
            let begun = Rc::new(RefCell::new(false));
            let seen = begun.clone();
            pair.world.on_send(move |_, _, bytes| {
                *seen.borrow_mut() |= bytes[0] == HANDSHAKE;
                Verdict::Keep
            });
            assert!(
                pair.world.run_until(|_| *begun.borrow(), secs(20.0)),
                "a new handshake"
            );
            pair.world.run_for(Duration::from_millis(seed * 2));
            let (gone, stays) = if seed % 2 == 0 { (A, B) } else { (B, A) };
            pair.restart(gone, Task::payloads(50));
            let found = pair.world.run_until(
                |world| world.node(stays).events.contains(&Event::Restarted),
                secs(10.0),
            );
            assert!(found, "seed {seed}: {:?}", pair.side(stays).events);
            pair.world.node_mut(stays).stopped = true;
            pair.world.run_for(secs(3.0));
            let run = pair.side(gone).run();
            assert!(
                pair.side(stays).has_all(run, 50),
                "seed {seed}: {:?}",
                pair.stats(gone)
            );
            let restarts = pair
                .side(stays)
                .events
                .iter()
                .filter(|event| **event == Event::Restarted)
                .count();
            assert_eq!(restarts, 1, "seed {seed}: {:?}", pair.side(stays).events);
            pair.world.run_for(secs(25.0));
            assert!(
                age(&pair.world, stays) < secs(22.0),
                "and the new life has new keys too"
            );
            pair.rest();
        },
    );
}

/// Recordings of true first flights from thousands of addresses, and copies of all that is said in
/// handshakes: the session does not notice, nor does the change of its keys.
#[test]
fn attempts_do_not_disturb_a_session() {
    seeds("keys", "attempts_do_not_disturb_a_session", 10, |seed| {
        let mut setup = Setup::new(seed, "rate=20mbit delay=20ms mtu=1500");
        setup.change = every(secs(5.0), false);
        setup.calls = [true, true];
        let task = Task {
            messages: Some((1, secs(0.02))),
            ..Task::default()
        };
        (setup.a, setup.b) = (task.clone(), task);
        let mut pair = Pair::new(setup);
        let tape = Rc::new(RefCell::new(Vec::new()));
        let recorder = tape.clone();
        pair.world.on_send(move |_, to, bytes| {
            if bytes[0] == HANDSHAKE {
                recorder.borrow_mut().push((to, bytes.clone()));
            }
            Verdict::Keep
        });
        pair.connect();
        for side in [A, B] {
            pair.world.node_mut(side).logs = true;
        }
        pair.world.run_for(secs(8.0));
        let mut dice = fastrand::Rng::with_seed(seed);
        let a = pair.address(A);
        for _ in 0..20_000 {
            let (to, bytes) = tape.borrow()[dice.usize(..tape.borrow().len())].clone();
            let from = SocketAddr::from(([198, 51, dice.u8(..), dice.u8(1..)], dice.u16(1..)));
            pair.world
                .inject(from, if to == a { A } else { B }, bytes, Duration::ZERO);
            pair.world.run_for(Duration::from_micros(500));
        }
        for side in [A, B] {
            assert!(
                age(&pair.world, side) < secs(6.0),
                "seed {seed}: the keys change as ever"
            );
            assert_eq!(pair.side(side).mover.remote(), Some(pair.address(1 - side)));
            assert_eq!(pair.stats(side).counters.path.moves, 0);
            pair.world.node_mut(side).stopped = true;
        }
        pair.world.run_for(secs(2.0));
        for side in [A, B] {
            let delays = delays(&pair, side, |_| true);
            assert!(*delays.last().unwrap() < 27.0, "seed {seed}: {delays:?}");
        }
        quiet(&pair);
    });
}

/// An outage that begins while the keys change, with every one of their datagrams lost in turn.
#[test]
fn an_outage_in_the_middle_of_new_keys_loses_nothing() {
    seeds(
        "keys",
        "an_outage_in_the_middle_of_new_keys_loses_nothing",
        40,
        |seed| {
            let link = "rate=20mbit delay=20ms mtu=1500";
            let mut setup = Setup::new(seed, link);
            setup.change = every(secs(20.0), seed % 2 == 0);
            let often = Task {
                every: Some(secs(0.05)),
                ..Task::payloads(1_500)
            };
            (setup.a, setup.b) = (often.clone(), often);
            let mut pair = Pair::new(setup);
            pair.connect();
            let left = pair
                .world
                .run_until(|world| age(world, A) >= secs(19.9), secs(30.0));
            assert!(left);
            pair.world.run_for(Duration::from_millis(80 + seed * 5));
            for (from, to) in [(A, B), (B, A)] {
                pair.world.set(
                    from,
                    to,
                    profile(&format!("{link} outage=0s+{}s", 1 + seed % 20)),
                );
            }
            pair.finish(secs(120.0));
            pair.rest();
            pair.agree();
            for side in [A, B] {
                let events = &pair.side(side).events;
                let lost = |event: &&Event| matches!(event, Event::Dead(_) | Event::Restarted);
                assert_eq!(events.iter().find(lost), None, "seed {seed}: {events:?}");
                assert!(age(&pair.world, side) < secs(30.0));
            }
        },
    );
}
