use super::*;

fn start() -> Instant {
    // The tests need some instant to count from; which one does not matter.
    #[allow(clippy::disallowed_methods)]
    Instant::now()
}

/// Leader (lower sending secret) and follower of one session.
fn pair(suite: Suite, now: Instant) -> (Session, Session) {
    let (one, two) = ([1; 32], [2; 32]);
    (
        Session::new(suite, &one, &two, 0x00a_111, 0x00b_222, now),
        Session::new(suite, &two, &one, 0x00b_222, 0x00a_111, now),
    )
}

fn sealed(session: &mut Session, seq: u64, plain: &[u8], now: Instant) -> Vec<u8> {
    let mut datagram = [&[0; HEADER], plain, &[0; TAG]].concat();
    session.seal(seq, &mut datagram, now);
    datagram
}

fn check_carries(from: &mut Session, to: &mut Session, seq: u64, now: Instant) {
    let plain: Vec<u8> = (0..100).map(|i| (seq as u8).wrapping_mul(31) ^ i).collect();
    let mut datagram = sealed(from, seq, &plain, now);
    assert_eq!(
        to.open(seq, &mut datagram, now).map(|plain| plain.to_vec()),
        Ok(plain)
    );
}

fn phase(datagram: &[u8]) -> u8 {
    datagram[0] & 0x0f
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[test]
fn the_bytes_on_the_wire_stay_what_they_are() {
    let now = start();
    for (suite, phase_0, phase_1) in [
        (Suite::Aes128Gcm, AES_0, AES_1),
        (Suite::ChaCha20Poly1305, CHACHA_0, CHACHA_1),
    ] {
        let (mut leader, mut follower) = pair(suite, now);
        check_carries(&mut follower, &mut leader, 0, now);
        assert_eq!(
            hex(&sealed(&mut leader, 0x1_0203_0405, b"subfields", now)),
            phase_0
        );
        assert_eq!(
            hex(&sealed(
                &mut leader,
                0x1_0203_0406,
                b"subfields",
                now + PHASE_AGE
            )),
            phase_1
        );
    }
}

// Computed once more by another program from docs/wire.md section 3, with secret 01..01.
const AES_0: &str = "4000b22202030405ce7089fa60ad69c9ddceaedb535ae360cae12752da94500b42";
const AES_1: &str = "4100b22202030406f35a4eafb4bc240b267a55060b9bfc1ec179d9af01c3a5a299";
const CHACHA_0: &str = "4000b2220203040507dda499e85e6b0b144e37633d82fee82605b519d3692dcaff";
const CHACHA_1: &str = "4100b2220203040676b3fc7c632b3d98d0009f4ff3d4be5f3fdab27fe64546eed6";

#[test]
fn both_directions_carry_and_keep_apart() {
    let now = start();
    let (mut leader, mut follower) = pair(Suite::Aes128Gcm, now);
    for seq in [0, 1, 2, 0xffff_ffff, 0x1_0000_0000, (1 << 62) - 1] {
        check_carries(&mut leader, &mut follower, seq, now);
        check_carries(&mut follower, &mut leader, seq, now);
    }
    let mut own = sealed(&mut leader, 1 << 62, b"x", now);
    assert_eq!(
        leader.open(1 << 62, &mut own, now),
        Err(OpenError::Index { found: 0xb222 }),
        "not our own datagrams"
    );
}

#[test]
fn peek_reads_what_seal_wrote() {
    let now = start();
    let (mut leader, _) = pair(Suite::Aes128Gcm, now);
    let datagram = sealed(&mut leader, 0x7_0000_0001, b"", now);
    assert_eq!(
        peek(&datagram),
        Some(Outer::Session {
            phase: 0,
            index: 0x00b_222,
            seq_low: 1
        })
    );
    for length in 0..HEADER + TAG {
        assert_eq!(peek(&datagram[..length]), None);
    }
    for kind in (0..0x40)
        .chain(0x50..=0xff)
        .filter(|kind| ![KIND_HANDSHAKE, KIND_RETRY].contains(kind))
    {
        assert_eq!(
            peek(&[&[kind], &datagram[1..]].concat()),
            None,
            "kind {kind:#x}"
        );
    }
}

#[test]
fn a_changed_cut_or_misnumbered_datagram_does_not_open() {
    let now = start();
    let (mut leader, mut follower) = pair(Suite::Aes128Gcm, now);
    let datagram = sealed(&mut leader, 5, b"some subfields", now);
    for bit in 0..datagram.len() * 8 {
        let mut changed = datagram.clone();
        changed[bit / 8] ^= 1 << (bit % 8);
        assert!(follower.open(5, &mut changed, now).is_err(), "bit {bit}");
    }
    for length in 0..datagram.len() {
        assert!(
            follower
                .open(5, &mut datagram[..length].to_vec(), now)
                .is_err(),
            "cut to {length}"
        );
    }
    assert!(follower.open(6, &mut datagram.clone(), now).is_err());
    assert!(
        follower
            .open(5 + (1 << 32), &mut datagram.clone(), now)
            .is_err()
    );
    let failures = follower.failures();
    assert!(failures > 200, "{failures} failed openings counted");
    assert_eq!(follower.recv.phase, 0, "a forged phase steps nothing");
    assert!(
        follower.open(5, &mut datagram.clone(), now).is_ok(),
        "and the true one still opens"
    );
}

#[test]
#[should_panic(expected = "sealed after")]
fn a_number_is_never_sealed_twice() {
    let now = start();
    let (mut leader, _) = pair(Suite::Aes128Gcm, now);
    sealed(&mut leader, 5, b"", now);
    sealed(&mut leader, 5, b"", now);
}

#[test]
fn age_steps_the_leader_and_the_follower_follows() {
    let now = start();
    let (mut leader, mut follower) = pair(Suite::Aes128Gcm, now);
    let late = now + PHASE_AGE;
    assert_eq!(
        phase(&sealed(&mut follower, 0, b"", late)),
        0,
        "the follower does not step by itself"
    );
    let mut before = sealed(&mut leader, 0, b"before", now);
    let mut after = sealed(&mut leader, 1, b"after", late);
    assert_eq!((phase(&before), phase(&after)), (0, 1));
    assert!(follower.open(1, &mut after, late).is_ok());
    assert!(
        follower.open(0, &mut before, late).is_ok(),
        "reordered across the step"
    );
    let mut answer = sealed(&mut follower, 1, b"", late);
    assert_eq!(phase(&answer), 1);
    assert!(leader.open(1, &mut answer, late).is_ok());
}

#[test]
fn no_step_before_the_last_one_was_heard_back() {
    let mut now = start();
    let (mut leader, mut follower) = pair(Suite::Aes128Gcm, now);
    for seq in 0..10 {
        now += PHASE_AGE;
        // Everything is lost.
        assert_eq!(phase(&sealed(&mut leader, seq, b"", now)), 1);
        assert_eq!(phase(&sealed(&mut follower, seq, b"", now)), 0);
    }
    check_carries(&mut follower, &mut leader, 10, now);
    check_carries(&mut leader, &mut follower, 10, now);
    check_carries(&mut follower, &mut leader, 11, now);
    assert_eq!(phase(&sealed(&mut leader, 11, b"", now)), 2);
}

#[test]
fn number_of_datagrams_steps_in_either_direction() {
    let now = start();
    let (mut leader, mut follower) = pair(Suite::Aes128Gcm, now);
    check_carries(&mut leader, &mut follower, 0, now);
    leader.send.sealed = PHASE_DATAGRAMS - 1;
    assert_eq!(phase(&sealed(&mut leader, 1, b"", now)), 0);
    check_carries(&mut leader, &mut follower, 2, now);
    check_carries(&mut follower, &mut leader, 0, now);
    assert_eq!(
        (
            leader.send.phase,
            leader.recv.phase,
            follower.send.phase,
            follower.recv.phase
        ),
        (1, 1, 1, 1)
    );
    leader.recv.opened = PHASE_DATAGRAMS - 1;
    check_carries(&mut follower, &mut leader, 1, now);
    assert_eq!(phase(&sealed(&mut leader, 3, b"", now)), 2);
}

#[test]
fn phases_wrap_and_only_neighbours_open() {
    let mut now = start();
    let (mut leader, mut follower) = pair(Suite::ChaCha20Poly1305, now);
    let mut old = Vec::new();
    for seq in 0..40 {
        let datagram = sealed(&mut leader, seq, b"old", now);
        assert_eq!(u64::from(phase(&datagram)), seq % 16);
        assert!(follower.open(seq, &mut datagram.clone(), now).is_ok());
        old.push(datagram);
        check_carries(&mut follower, &mut leader, seq, now);
        for (seq, datagram) in old.iter().enumerate().rev().skip(2) {
            assert!(
                follower
                    .open(seq as u64, &mut datagram.clone(), now)
                    .is_err(),
                "phase {seq} is over"
            );
        }
        if let Some((seq, datagram)) = old.iter().enumerate().rev().nth(1) {
            assert!(
                follower
                    .open(seq as u64, &mut datagram.clone(), now)
                    .is_ok(),
                "the phase before still opens"
            );
        }
        now += PHASE_AGE;
    }
}

#[test]
fn a_worn_session_refuses() {
    let now = start();
    let (mut leader, mut follower) = pair(Suite::Aes128Gcm, now);
    let mut datagram = sealed(&mut leader, 0, b"", now);
    follower.failures = FAILURES;
    assert_eq!(follower.open(0, &mut datagram, now), Err(OpenError::Worn));
}

#[test]
fn debug_shows_no_secret() {
    let (leader, _) = pair(Suite::Aes128Gcm, start());
    let shown = format!("{leader:?}");
    assert_eq!(
        shown,
        "Session { local: 41233, remote: 45602, send_phase: 0, recv_phase: 0, .. }"
    );
}

#[test]
#[ignore = "a measurement: run in release with --nocapture"]
#[allow(clippy::disallowed_methods)]
fn speed() {
    let now = start();
    for suite in [Suite::Aes128Gcm, Suite::ChaCha20Poly1305] {
        let (mut leader, mut follower) = pair(suite, now);
        let mut datagrams = vec![vec![0x5a; 1400]; 64];
        // The best of many batches: what the machine does when nobody disturbs it.
        let (mut sealing, mut opening) = (Duration::MAX, Duration::MAX);
        for batch in 0..4000 {
            let numbers = batch * 64..;
            let begin = Instant::now();
            for (seq, datagram) in numbers.clone().zip(&mut datagrams) {
                leader.seal(seq, datagram, now);
            }
            let between = Instant::now();
            for (seq, datagram) in numbers.zip(&mut datagrams) {
                follower.open(seq, datagram, now).unwrap();
            }
            opening = opening.min(between.elapsed());
            sealing = sealing.min(between - begin);
        }
        let each = |time: Duration| time.as_nanos() / 64;
        println!(
            "{suite:?}: seal {} ns, open {} ns per 1,400 bytes",
            each(sealing),
            each(opening)
        );
    }
}
