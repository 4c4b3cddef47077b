//! Others on the way: floods, recordings, copies and forgeries keep nobody out and cost little.

use super::*;

/// A thousand recordings in a second, each from another address: at most the peer's attempt needs a
/// cookie.
#[test]
fn a_flood_of_recorded_first_flights_keeps_nobody_out() {
    let recorded = recorded_first_flights(100);
    for channel in [CALM, WILD] {
        let (mut quiet, mut flooded) = (Duration::ZERO, Duration::ZERO);
        for seed in 0..40 {
            let mut world = World::new(channel, seed);
            world.start(0);
            quiet += world.run_until_agreed(Duration::from_secs(20));

            let mut world = World::new(channel, seed);
            for at in 0..8_000 {
                let datagram = recorded[world.rng.usize(..recorded.len())].clone();
                let from = spoofed(&mut world.rng);
                world.flying.push(Flying {
                    at: world.now + MS * at,
                    to: 1,
                    from,
                    datagram,
                });
            }
            world.run_for(MS * 1_000);
            world.start(0);
            let time = world.run_until_agreed(Duration::from_secs(6));
            let stats = world.stats(1);
            assert!(
                stats.answered < 100 && stats.retries_sent > 500,
                "seed {seed}: {stats:?}"
            );
            assert_eq!(
                world.stats(0).started,
                1,
                "seed {seed}: the first attempt gets through"
            );
            flooded += time;
            world.run_until_up(Duration::from_secs(7));
            world.check_settled();
        }
        // One round trip more than one and a half.
        assert!(
            flooded < quiet * 2,
            "{:?} instead of {:?}",
            flooded / 40,
            quiet / 40
        );
    }
}

/// The attacker knows both public keys, and is faster than the peers; what he cannot do is drop.
#[test]
fn copies_of_an_attempt_from_anywhere_do_not_delay_it() {
    for channel in [CALM, Channel { loss: 20, ..CALM }] {
        let (mut quiet, mut attacked) = (Duration::ZERO, Duration::ZERO);
        for seed in 0..60 {
            for (copies, total) in [(0, &mut quiet), (1 + seed as usize % 30, &mut attacked)] {
                let mut world = World::new(channel, seed);
                world.copies = copies;
                world.hands_on = seed % 4 < 2;
                let starter = (seed % 2) as usize;
                world.start(starter);
                *total += world.run_until_agreed(Duration::from_secs(20));
                let called = address(1 - starter);
                assert_eq!(
                    world.nodes[starter].newest().unwrap().remote,
                    called,
                    "seed {seed}: we know where we called"
                );
                world.copies = 0;
                world.run_until_up(Duration::from_secs(20));
                world.check_settled();
            }
        }
        // His copies are not lost: with them it may even be faster.
        assert!(
            attacked < quiet * 11 / 10,
            "{:?} instead of {:?}",
            attacked / 60,
            quiet / 60
        );
    }
}

/// Both at once: the cookie that a copy draws is as good as the peer's own.
#[test]
fn copies_and_recordings_together_keep_nobody_out() {
    let recorded = recorded_first_flights(100);
    for seed in 0..40 {
        let mut world = World::new(CALM, seed);
        for at in 0..4_000 {
            let datagram = recorded[world.rng.usize(..recorded.len())].clone();
            let from = spoofed(&mut world.rng);
            world.flying.push(Flying {
                at: world.now + MS * at,
                to: 1,
                from,
                datagram,
            });
        }
        world.run_for(MS * 1_000);
        world.copies = 5;
        world.hands_on = seed % 2 == 0;
        world.start(0);
        let time = world.run_until_agreed(Duration::from_secs(6));
        assert!(
            time <= 110 * MS,
            "seed {seed}: two and a half round trips of 40 ms, and not {time:?}"
        );
    }
}

/// What strangers say to the one who calls: answers and demands in the peer's name, for the very
/// attempt.
#[test]
fn forged_answers_do_not_end_an_attempt() {
    let mut world = World::new(CALM, 15);
    let [one, two] = pair();
    let stranger = Pair::new(
        &Identity::impostor(two.public_key()),
        &one.public_key(),
        None,
    );
    world.start(0);
    world.drain();
    let header = |attempt, index| wire::Header {
        sender: 0x123_456,
        receiver: index,
        attempt,
        level: Level::Initial,
        from_responder: true,
        offset: 0,
        total: 100,
        length: 100,
        cookie: [0; 16],
    };
    let initiator = &world.nodes[0].handshake.initiator.as_ref().unwrap().machine;
    let (attempt, index) = (
        u64::from_be_bytes(world.seen[0].1[16..24].try_into().unwrap()),
        initiator.local(),
    );
    let mut forged = vec![
        Vec::new(),
        stranger.emit_header(&header(attempt, index)).to_vec(),
    ];
    stranger.emit_retry(index, attempt, &[7; 16], &mut forged[0]);
    forged[1].extend_from_slice(&[1; 100]);
    stranger.emit_mac(0, &mut forged[1]);
    for _ in 0..1_000 {
        for datagram in &forged {
            let result = world.nodes[0]
                .handshake
                .handle_datagram(address(1), datagram, world.now);
            assert_eq!(result, Err(HandshakeError::Unproved));
        }
    }
    assert_eq!(world.run_until_agreed(Duration::from_secs(1)), 60 * MS);
    assert_eq!(
        (
            world.stats(0).started,
            world.stats(0).resent,
            world.stats(0).retries_taken
        ),
        (1, 0, 0)
    );
    world.check_settled();
}

/// Both start, and the lower side's attempt counts; somebody keeps the other's last flight back
/// until all is over.
#[test]
fn a_late_copy_of_a_last_flight_brings_no_session_up() {
    check_seeds(0..40, |seed| {
        let mut world = World::new(CALM, seed);
        world.start(1);
        // The lower side has answered the other's attempt when it begins its own.
        world.run_for(MS * 21 + MS * (seed % 19) as u32);
        world.start(0);
        let is_kept_back = |flying: &Flying| {
            flying.to == 0 && flying.datagram[0] == 0x10 && flying.datagram[24] == 1
        };
        while !(world.nodes[0].is_up() && world.nodes[1].is_up()) {
            world.step();
            world.flying.retain(|flying| !is_kept_back(flying));
            assert!(world.now - world.begin < Duration::from_secs(2));
        }
        assert!(world.nodes[0].newest().unwrap().initiator);
        let sessions = [0, 1].map(|node: usize| world.nodes[node].sessions.len());
        for (to, datagram) in world.seen.clone() {
            world.flying.push(Flying {
                at: world.now,
                to,
                from: address(1 - to),
                datagram,
            });
        }
        assert!(world.flying.iter().any(is_kept_back), "there is one");
        world.run_for(Duration::from_secs(1));
        assert_eq!(
            [0, 1].map(|node: usize| world.nodes[node].sessions.len()),
            sessions
        );
        world.check_settled();
    });
}

/// A translator that gives each datagram of the caller another port, and remembers the last few.
#[test]
fn a_caller_whose_address_changes_all_the_time_gets_in() {
    check_seeds(0..40, |seed| {
        let mut world = World::new(CALM, seed);
        world.start(0);
        let mut port = 1_000;
        while world.nodes.iter().any(|node| node.sessions.is_empty()) {
            world.drain();
            for flying in &mut world.flying {
                if flying.to == 1 && flying.from == address(0) {
                    port += 1;
                    flying.from = SocketAddr::new(address(0).ip(), port);
                }
            }
            // The answers, which went to a port that the world does not know.
            for (to, datagram) in std::mem::take(&mut world.seen)
                .into_iter()
                .filter(|(to, _)| *to == 0)
            {
                world.flying.push(Flying {
                    at: world.now + 20 * MS,
                    to,
                    from: address(1),
                    datagram,
                });
            }
            world.step();
            assert!(world.now - world.begin < 200 * MS, "{:?}", world.stats(1));
        }
    });
}

#[test]
fn an_answer_is_never_more_than_three_times_what_came() {
    // A first flight from a spoofed address, and copies of parts of it. The bound itself is
    // asserted in every world's drain.
    let mut world = World::new(CALM, 11);
    world.start(0);
    world.drain();
    let flight: Vec<_> = world
        .seen
        .iter()
        .map(|(_, datagram)| datagram.clone())
        .collect();
    world.flying.clear();
    let from = SocketAddr::from(([198, 51, 100, 9], 9));
    for datagram in &flight {
        world.flying.push(Flying {
            at: world.now,
            to: 1,
            from,
            datagram: datagram.clone(),
        });
    }
    world.nodes[0].handshake.stop();
    world.run_for(Duration::from_secs(6));
    let (_, received, sent) = *world.nodes[1].account(from);
    assert_eq!(received, 2400);
    assert!((2000..=7200).contains(&sent), "{sent} bytes");
    world.run_for(Duration::from_secs(4));
    assert_eq!(
        world.nodes[1].handshake.poll_timeout(),
        None,
        "then it is forgotten"
    );
}

#[test]
fn a_copy_from_elsewhere_does_not_steal_the_attempt() {
    let mut world = World::new(CALM, 12);
    world.start(0);
    world.drain();
    let thief = SocketAddr::from(([198, 51, 100, 11], 11));
    let flight = world.seen.clone();
    for (to, datagram) in flight {
        world.flying.push(Flying {
            at: world.now + MS,
            to,
            from: thief,
            datagram,
        });
    }
    world.run_until_up(Duration::from_secs(2));
    assert_eq!(world.nodes[1].newest().unwrap().remote, address(0));
    world.check_settled();
}

#[test]
fn a_copied_answer_leads_no_further_attempt_astray() {
    let mut world = World::new(CALM, 13);
    world.start(0);
    while world.seen.iter().all(|(to, _)| *to == 1) {
        world.step();
    }
    let answers: Vec<_> = world
        .seen
        .iter()
        .filter(|(to, _)| *to == 0)
        .cloned()
        .collect();
    let thief = SocketAddr::from(([198, 51, 100, 11], 11));
    for (to, datagram) in answers {
        world.flying.push(Flying {
            at: world.now + MS,
            to,
            from: thief,
            datagram,
        });
    }
    while world.nodes[0].sessions.is_empty() {
        world.step();
    }
    assert_eq!(
        world.nodes[0].newest().unwrap().remote,
        address(1),
        "where we called is where the peer is"
    );
    world.run_until_up(Duration::from_secs(5));
    assert_eq!(world.nodes[0].newest().unwrap().remote, address(1));
    world.check_settled();
}

#[test]
fn the_guard_admits_what_a_pair_sends_and_nothing_else() {
    let [one, two] = pair();
    let mut world = World::new(WILD, 14);
    world.start(0);
    world.run_for(Duration::from_secs(3));
    let key = PreSharedKey::from_text(&"5a".repeat(32)).unwrap();
    let guards = [
        Guard::new(&one, &two.public_key(), None),
        Guard::new(&two, &one.public_key(), None),
    ];
    let foreign = Guard::new(&two, &identity(9).public_key(), None);
    let keyed = [
        Guard::new(&one, &two.public_key(), Some(&key)),
        Guard::new(&two, &one.public_key(), Some(&key)),
    ];
    assert!(world.seen.iter().any(|(to, _)| *to == 0) && world.seen.iter().any(|(to, _)| *to == 1));
    for (to, datagram) in &world.seen {
        assert_eq!(guards[*to].admit(datagram), Ok(()));
        assert_eq!(guards[1 - to].admit(datagram), Err(GuardError::Stranger));
        assert_eq!(foreign.admit(datagram), Err(GuardError::Stranger));
        assert_eq!(keyed[*to].admit(datagram), Err(GuardError::Unproved));
        assert!(guards[*to].admit(&datagram[1..]).is_err());
        assert!(guards[*to].admit(&datagram[..datagram.len() - 1]).is_err());
        let mut flipped = datagram.clone();
        let at = world.rng.usize(..flipped.len());
        flipped[at] ^= 1 << world.rng.u8(..8);
        assert!(guards[*to].admit(&flipped).is_err(), "bit of byte {at}");
    }
    for length in [0, 1, 10, 55, 56, 1_200, 1_201, 9_000] {
        assert_eq!(
            guards[0].admit(&vec![0x10; length]),
            Err(GuardError::Stranger)
        );
    }
}
