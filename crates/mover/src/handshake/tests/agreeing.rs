//! Two sides that mean well, over a channel that may not: they agree, and their keys are theirs
//! alone.

use super::*;

#[test]
fn a_calm_channel_needs_one_round_trip_and_a_half() {
    let mut world = World::new(CALM, 1);
    world.start(0);
    world.run_for(41 * MS);
    assert_eq!(
        world.nodes[0].sessions.len(),
        1,
        "the initiator has keys after one round trip"
    );
    world.run_for(20 * MS);
    assert_eq!(
        world.nodes[1].sessions.len(),
        1,
        "the responder half a round trip later"
    );
    world.run_until_up(200 * MS);
    world.check_settled();
    assert_eq!((world.stats(0).resent, world.stats(1).resent), (0, 0));
    assert_eq!(
        (world.stats(0).established, world.stats(1).established),
        (1, 1)
    );
    assert_eq!(
        world.nodes[0].newest().unwrap().session.local_index() >> 12,
        7,
        "the slot is in the index"
    );
}

#[test]
fn loss_copies_and_reordering_only_delay() {
    check_seeds(0..300, |seed| {
        let mut world = World::new(WILD, seed);
        match seed % 3 {
            0 => world.start(0),
            1 => world.start(1),
            _ => {
                world.start(0);
                world.run_for(MS * (seed % 90) as u32);
                world.start(1);
            }
        }
        world.run_until_up(Duration::from_secs(30));
        world.check_settled();
    });
}

#[test]
fn damage_is_never_believed() {
    check_seeds(0..60, |seed| {
        let channel = Channel {
            flips: 30,
            flips_with_mac: seed % 2 == 0,
            jitter_ms: 30,
            ..CALM
        };
        let mut world = World::new(channel, seed);
        world.start((seed / 2 % 2) as usize);
        world.run_until_up(Duration::from_secs(120));
        world.check_settled();
    });
}

#[test]
fn no_flipped_bit_of_a_first_flight_is_answered() {
    let mut world = World::new(CALM, 3);
    world.start(0);
    world.drain();
    let flight: Vec<Vec<u8>> = world
        .seen
        .iter()
        .map(|(_, datagram)| datagram.clone())
        .collect();
    assert_eq!(
        flight.iter().map(Vec::len).collect::<Vec<_>>(),
        [1200, 1200]
    );
    let (now, responder) = (world.now, &mut world.nodes[1].handshake);
    let mut tried = 0;
    for datagram in &flight {
        for at in 0..datagram.len() {
            let mut changed = datagram.clone();
            changed[at] ^= 1 << (at % 8);
            assert!(
                responder
                    .handle_datagram(address(0), &changed, now)
                    .is_err(),
                "byte {at}"
            );
            assert!(
                responder
                    .handle_datagram(address(0), &datagram[..at], now)
                    .is_err(),
                "cut to {at}"
            );
            tried += 2;
        }
    }
    assert_eq!(responder.poll_transmit(&mut Vec::new(), now), None);
    let stats = responder.counters();
    assert_eq!(
        stats.drops.strangers + stats.drops.unproved + stats.drops.malformed(),
        tried
    );
    assert_eq!((stats.answered, responder.poll_timeout()), (0, None));
}

#[test]
fn a_stranger_gets_no_answer() {
    let now = start();
    let [one, two] = pair();
    let stranger = Arc::new(identity(9));
    // The stranger means the right key; we mean another. And the other way round.
    for (identity, peer) in [
        (stranger.clone(), two.public_key()),
        (one.clone(), stranger.public_key()),
    ] {
        let mut caller = Handshake::new(identity, peer, None, 0, [1; 32]);
        let mut called = Handshake::new(two.clone(), one.public_key(), None, 0, [2; 32]);
        caller.start(address(1), now);
        let mut datagram = Vec::new();
        while caller.poll_transmit(&mut datagram, now).is_some() {
            assert_eq!(
                called.handle_datagram(address(0), &datagram, now),
                Err(HandshakeError::Stranger)
            );
            datagram.clear();
        }
        assert_eq!(called.poll_transmit(&mut datagram, now), None);
        assert_eq!(
            called.counters(),
            HandshakeCounters {
                drops: HandshakeDrops {
                    strangers: 2,
                    ..HandshakeDrops::default()
                },
                ..HandshakeCounters::default()
            }
        );
        assert_eq!(called.poll_timeout(), None);
    }
}

/// Who knows both public keys alone is not even looked at; a thief of what the pair shares is, and
/// TLS refuses him.
#[test]
fn knowing_the_public_keys_is_not_enough() {
    for (impostor, starter, thief) in [0, 1]
        .map(|i| [0, 1].map(|j| [true, false].map(|k| (i, j, k))))
        .concat()
        .concat()
    {
        let mut world = World::new(CALM, 5);
        let genuine = world.nodes[impostor].identity.clone();
        let honest = 1 - impostor;
        world.nodes[impostor].identity = Arc::new(Identity::impostor(genuine.public_key()));
        world.restart(impostor, 6);
        if thief {
            let peer = world.nodes[honest].identity.public_key();
            world.nodes[impostor].handshake.pair = Pair::new(&genuine, &peer, None);
        }
        world.start(starter);
        world.run_for(Duration::from_secs(20));
        assert!(
            world.nodes[honest].sessions.is_empty(),
            "established with an impostor"
        );
        let stats = world.stats(honest);
        assert_eq!(stats.drops.refused > 0, thief, "{stats:?}");
        assert_eq!(
            stats.drops.unproved > 0,
            !thief && starter == impostor,
            "{stats:?}"
        );
        assert_eq!(
            stats.answered > 0,
            thief && starter == impostor,
            "{stats:?}"
        );
    }
}

#[test]
fn under_load_a_cookie_is_demanded_and_brought() {
    let mut world = World::new(CALM, 7);
    // Other runs of the same program: first flights whose initiators have gone.
    for seed in 100..100 + 8 {
        let mut other = World::new(CALM, seed);
        other.start(0);
        other.drain();
        for (_, datagram) in other.seen {
            let from = SocketAddr::from(([198, 51, 100, 1], 1000 + seed as u16));
            world.flying.push(Flying {
                at: world.now,
                to: 1,
                from,
                datagram,
            });
        }
    }
    world.run_for(5 * MS);
    assert_eq!(
        world.stats(1).answered,
        2,
        "two attempts from one address; the others must bring a cookie"
    );
    assert_eq!(
        world.stats(1).retries_sent,
        12,
        "each of the six others sent two fragments"
    );
    // From elsewhere there is room, until as many are answered as are at all, or five in a second.
    world.start(0);
    world.run_until_up(Duration::from_secs(1));
    assert_eq!(
        (world.stats(0).retries_taken, world.stats(0).started),
        (0, 1)
    );
    world.check_settled();
    world.check_settled();
}

#[test]
fn many_attempts_in_a_second_need_cookies_even_when_none_is_under_way() {
    let now = start();
    let mut admission = Admission::new(Prk::new_less_safe(HKDF_SHA256, &[7; 32]));
    admission.start(now);
    for _ in 0..5 {
        assert!(!admission.is_loaded(now) && admission.admit(now));
    }
    assert!(admission.is_loaded(now), "the sixth in a second");
    assert!(admission.is_loaded(now + 999 * MS));
    assert!(!admission.is_loaded(now + 1000 * MS));
    assert_eq!(
        (0..100)
            .filter(|_| admission.admit(now + 1000 * MS))
            .count(),
        50,
        "the limit for all"
    );

    let cookie = admission.cookie(1, 5, now);
    let fits = |admission: &mut Admission, index, attempt, now| {
        admission.cookie_fits(&cookie, index, attempt, now)
    };
    assert!(fits(&mut admission, 1, 5, now + Duration::from_secs(120)));
    assert!(!fits(&mut admission, 1, 5, now + Duration::from_secs(240)));
    assert!(!fits(&mut admission, 2, 5, now));
    assert!(!fits(&mut admission, 1, 6, now));
    assert!(!admission.cookie_fits(&[0; 16], 1, 5, now));
}

#[test]
fn simultaneous_starts_end_in_one_session() {
    check_seeds(0..100, |seed| {
        let channel = if seed % 2 == 0 { CALM } else { WILD };
        let mut world = World::new(channel, seed);
        world.start(0);
        world.start(1);
        world.run_until_up(Duration::from_secs(30));
        if seed % 2 == 0 {
            assert!(
                world.nodes[0].newest().unwrap().initiator,
                "the lower key stays the initiator"
            );
            assert_eq!(
                (world.stats(0).established, world.stats(1).established),
                (1, 1)
            );
        }
        world.check_settled();
    });
}

#[test]
fn the_lower_side_answers_when_its_own_attempt_gets_nowhere() {
    let mut world = World::new(CALM, 8);
    world.nodes[0]
        .handshake
        .start(SocketAddr::from(([203, 0, 113, 9], 1)), world.now);
    world.start(1);
    world.run_until_up(Duration::from_secs(3));
    assert!(!world.nodes[0].newest().unwrap().initiator);
    world.check_settled();
}

#[test]
fn a_restart_in_the_middle_is_survived() {
    check_seeds(0..200, |seed| {
        let channel = if seed % 4 < 2 { CALM } else { WILD };
        let mut world = World::new(channel, seed);
        let starter = (seed % 2) as usize;
        world.start(starter);
        world.run_for(MS * (seed * 7 % 150) as u32);
        let restarted = (seed / 2 % 2) as usize;
        world.restart(restarted, seed + 1_000_000);
        if seed / 8 % 2 == 0 || restarted == starter {
            world.start(restarted);
        }
        // What the mover does when it has not heard for its time.
        let other = 1 - restarted;
        for _ in 0..60 {
            world.run_for(500 * MS);
            let same = world.nodes[0].is_up() && world.nodes[1].is_up();
            if same {
                break;
            }
            if world.nodes[other].sessions.last().is_some() || starter == other {
                world.start(other);
            }
        }
        world.run_until_up(Duration::from_secs(30));
    });
}

#[test]
fn a_peer_that_comes_late_is_found_soon() {
    let mut world = World::new(Channel { loss: 100, ..CALM }, 9);
    world.start(0);
    world.run_for(Duration::from_secs(100));
    assert!(world.stats(0).started > 3, "fresh attempts are made");
    world.channel = CALM;
    world.run_until_up(Duration::from_millis(2300));
    world.check_settled();
}

#[test]
fn a_later_handshake_replaces_the_session() {
    let mut world = World::new(CALM, 10);
    for round in 0..20 {
        world.start(round % 2);
        world.run_for(Duration::from_secs(1));
        assert!(
            world
                .nodes
                .iter()
                .all(|node| node.is_up() && node.sessions.len() == round + 1)
        );
    }
    let mut indices: Vec<_> = world.nodes[0]
        .sessions
        .iter()
        .rev()
        .map(|old| old.session.local_index())
        .collect();
    indices.truncate(RECENT);
    indices.sort();
    indices.dedup();
    assert_eq!(
        indices.len(),
        RECENT,
        "the indices of the last sessions differ"
    );
    world.check_settled();
}

#[test]
fn replays_harm_neither_a_session_nor_an_attempt() {
    check_seeds(0..40, |seed| {
        let mut world = World::new(CALM, seed);
        world.start(0);
        world.run_until_up(Duration::from_secs(1));
        world.check_settled();
        let old = world.seen.clone();
        let sessions = world.nodes[1].sessions.len();

        // To the same run of the program: nothing is answered.
        let spoofed = SocketAddr::from(([198, 51, 100, 7], 7));
        for (to, datagram) in &old {
            assert!(
                world.nodes[*to]
                    .handshake
                    .handle_datagram(spoofed, datagram, world.now)
                    .is_err()
            );
        }
        assert!(world.nodes.iter_mut().all(|node| {
            node.handshake
                .poll_transmit(&mut Vec::new(), world.now)
                .is_none()
        }));
        assert_eq!(world.nodes[1].sessions.len(), sessions);

        // To a later run, all the time while the true peer connects: one more round trip at most.
        world.restart(1, seed + 500);
        world.restart(0, seed + 600);
        let began = world.now;
        world.run_for(MS * (seed % 40) as u32);
        world.start(0);
        while !(world.nodes[0].is_up() && world.nodes[1].is_up()) {
            let (to, datagram) = old[world.rng.usize(..old.len())].clone();
            let at = world.now;
            world.flying.push(Flying {
                at,
                to,
                from: spoofed,
                datagram,
            });
            world.run_for(3 * MS);
            assert!(
                world.now - began < Duration::from_secs(2),
                "replays keep the true peer out"
            );
        }
    });
}

#[test]
fn a_pre_shared_key_is_needed_at_both_ends() {
    let key = |byte| {
        Some(Arc::new(
            PreSharedKey::from_text(&format!("{byte:02x}").repeat(32)).unwrap(),
        ))
    };
    for (ours, theirs) in [
        (key(1), None),
        (None, key(1)),
        (key(1), key(2)),
        (key(1), key(1)),
    ] {
        for starter in [0, 1] {
            let mut world = World::new(CALM, 16);
            let equal = ours.is_some()
                && theirs.is_some()
                && ours.as_ref().unwrap().as_bytes() == theirs.as_ref().unwrap().as_bytes();
            for (number, pre_shared) in [ours.clone(), theirs.clone()].into_iter().enumerate() {
                let (own, peer) = (
                    world.nodes[number].identity.clone(),
                    world.nodes[1 - number].identity.public_key(),
                );
                world.nodes[number].handshake =
                    Handshake::new(own, peer, pre_shared, 7 + number as u16, [number as u8; 32]);
                world.nodes[number].handshake.set_params(params(number));
            }
            world.start(starter);
            world.run_for(Duration::from_secs(20));
            let called = world.stats(1 - starter);
            if equal {
                world.check_settled();
                assert_eq!(called.drops.unproved, 0);
            } else {
                assert!(world.nodes.iter().all(|node| node.sessions.is_empty()));
                assert!(
                    called.drops.unproved > 5 && called.answered == 0,
                    "it is silent, and knows why: {called:?}"
                );
                assert!(
                    !world.seen.iter().any(|(to, _)| *to == starter),
                    "no datagram in answer"
                );
            }
        }
    }
}

/// Whatever becomes known of the handshake, the keys of the session need the pre-shared key too:
/// one side computes them without it.
#[test]
fn without_the_pre_shared_key_no_datagram_of_the_session_opens() {
    let mut world = World::new(CALM, 17);
    let key = Arc::new(PreSharedKey::from_text(&"5a".repeat(32)).unwrap());
    for number in 0..2 {
        let (own, peer) = (
            world.nodes[number].identity.clone(),
            world.nodes[1 - number].identity.public_key(),
        );
        world.nodes[number].handshake =
            Handshake::new(own, peer, Some(key.clone()), 7, [number as u8; 32]);
        world.nodes[number].handshake.set_params(params(number));
    }
    world.nodes[1].handshake.pre_shared = None;
    world.start(0);
    world.run_until_agreed(Duration::from_secs(1));
    world.run_for(Duration::from_secs(2));
    for node in &world.nodes {
        assert!(node.heard.is_empty() && node.sessions[0].session.failures() > 5);
    }
}

#[test]
fn streams_are_bounded_and_contradictions_refused() {
    let [one, two] = pair();
    let forger = Pair::new(&one, &two.public_key(), None);
    let mut called = Handshake::new(two.clone(), one.public_key(), None, 0, [3; 32]);
    let now = start();
    let mut send_padded = |offset: u16, total: u16, length: u16, size: usize| {
        let header = wire::Header {
            sender: 0x111,
            receiver: 0,
            attempt: 77,
            level: Level::Initial,
            from_responder: false,
            offset,
            total,
            length,
            cookie: [0; 16],
        };
        let mut datagram = forger.emit_header(&header).to_vec();
        datagram.resize(size - wire::MAC, 0);
        forger.emit_mac(0, &mut datagram);
        called.handle_datagram(address(0), &datagram, now)
    };
    for size in [164, 1199] {
        let short = send_padded(0, 1000, 100, size);
        assert!(
            matches!(short, Err(HandshakeError::Fragment { .. })),
            "a first flight that does not pay for the answer"
        );
    }
    assert_eq!(
        send_padded(0, 1000, 100, 1201),
        Err(HandshakeError::Form { length: 1201 })
    );
    let mut send = |offset, total, length| send_padded(offset, total, length, 1200);
    assert!(matches!(
        send(0, 16385, 100),
        Err(HandshakeError::Fragment { .. })
    ));
    assert!(matches!(
        send(950, 1000, 51),
        Err(HandshakeError::Fragment { .. })
    ));
    assert!(matches!(
        send(0, 1000, 0),
        Err(HandshakeError::Fragment { .. })
    ));
    assert!(matches!(
        send(0, 5000, 1200),
        Err(HandshakeError::Fragment { .. })
    ));
    assert_eq!(send(0, 16384, 100), Ok(()));
    assert_eq!(send(16284, 16384, 100), Ok(()));
    assert_eq!(send(0, 16383, 100), Err(HandshakeError::Inconsistent));
    for offset in (0..16384).step_by(1024) {
        let last = send(offset, 16384, 1024);
        assert_eq!(
            matches!(last, Err(HandshakeError::Tls(_))),
            offset == 15360,
            "zeros are no hello: {last:?}"
        );
    }
    assert_eq!(send(0, 16384, 100), Err(HandshakeError::Over));
}

#[test]
fn debug_shows_no_secret() {
    let mut world = World::new(CALM, 13);
    world.start(0);
    world.run_until_up(Duration::from_secs(1));
    let shown = format!("{:?}", world.nodes[0].newest().unwrap());
    let (_, before_params) = shown.split_once("session: Session { ").unwrap();
    let (session, _) = before_params.split_once(" }").unwrap();
    let fields: Vec<&str> = session
        .split(", ")
        .map(|field| field.split(':').next().unwrap())
        .collect();
    assert_eq!(
        fields,
        ["local", "remote", "send_phase", "recv_phase", ".."]
    );
}

#[test]
fn fuzzing_takes_anything() {
    let mut rng = fastrand::Rng::with_seed(14);
    for _ in 0..200 {
        let length = rng.usize(..4000);
        let bytes: Vec<u8> = std::iter::repeat_with(|| rng.u8(..)).take(length).collect();
        fuzz_handshake(&bytes, start());
    }
}

#[test]
#[ignore = "a measurement: run in release with --nocapture"]
#[allow(clippy::disallowed_methods)]
fn speed() {
    let best = |run: &dyn Fn(u64)| {
        let timed = |seed| {
            let begin = Instant::now();
            run(seed);
            begin.elapsed()
        };
        (0..300).map(timed).min().unwrap()
    };
    let handshake = best(&|seed| {
        let mut world = World::new(CALM, seed);
        world.start(0);
        world.run_until_up(Duration::from_secs(1));
    });
    println!("handshake, both ends, with set-up of both machines: {handshake:?}");
    let [one, two] = pair();
    let set_up = best(&|_| {
        drop(Handshake::new(
            one.clone(),
            two.public_key(),
            None,
            0,
            [0; 32],
        ))
    });
    println!("set-up of one machine: {set_up:?}");
}
