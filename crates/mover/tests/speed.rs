//! What a datagram costs at both ends, without any network: run in release with `--ignored
//! --nocapture`.
#![allow(clippy::disallowed_methods, reason = "a measurement reads the clock")]

mod pair;

use std::time::{Duration, Instant};

use pair::{A, B, Pair, Setup};

#[test]
#[ignore = "a measurement: run in release with --nocapture"]
fn speed() {
    for (loss, size) in [(0, 1_472), (1, 1_472), (0, 8_952)] {
        measure(loss, size);
    }
}

fn measure(loss: u8, size: u16) {
    let mut setup = Setup::new(1, "delay=1ms mtu=9000");
    setup.change = Box::new(move |config, _| config.segment = Some(size));
    let mut pair = Pair::new(setup);
    pair.connect();
    let mut now = pair.world.now();
    let (mut sending, mut receiving, mut acking, mut reading) = (
        Duration::ZERO,
        Duration::ZERO,
        Duration::ZERO,
        Duration::ZERO,
    );
    let mut dice = fastrand::Rng::with_seed(1);
    let (a, b) = (pair.address(A), pair.address(B));
    let (mut datagrams, mut bytes, mut acks) = (0_u64, 0_u64, 0_u64);
    let mut out = Vec::with_capacity(70_000);
    let wall = Instant::now();
    while bytes < 1 << 31 {
        now += Duration::from_micros(20);
        let start = Instant::now();
        let mover = &mut pair.world.node_mut(A).mover;
        if mover.poll_timeout().is_some_and(|(at, _)| at <= now) {
            mover.handle_timeout(now);
        }
        while mover.poll_budget(now) > 0 {
            let mut payload = mover.take_buffer();
            payload.resize(
                mover.segment_payload() * (65_536 / mover.segment_payload()),
                0,
            );
            if mover.send(payload, false, now).is_err() {
                break;
            }
        }
        out.clear();
        let transmit = mover.poll_transmit(&mut out, now);
        sending += start.elapsed();
        let start = Instant::now();
        let mover = &mut pair.world.node_mut(B).mover;
        if let Some(transmit) = transmit {
            for datagram in out.chunks_mut(transmit.segment_size) {
                datagrams += 1;
                if dice.u8(0..100) >= loss {
                    mover.handle_datagram(a, datagram, now);
                }
            }
        }
        while let Some(payload) = mover.poll_payload() {
            bytes += payload.len() as u64;
            mover.recycle(payload);
        }
        receiving += start.elapsed();
        let start = Instant::now();
        if mover.poll_timeout().is_some_and(|(at, _)| at <= now) {
            mover.handle_timeout(now);
        }
        out.clear();
        let answer = mover.poll_transmit(&mut out, now);
        acking += start.elapsed();
        let start = Instant::now();
        let mover = &mut pair.world.node_mut(A).mover;
        if let Some(answer) = answer {
            for datagram in out.chunks_mut(answer.segment_size) {
                acks += 1;
                mover.handle_datagram(b, datagram, now);
            }
        }
        reading += start.elapsed();
    }
    let each = |time: Duration| time.as_nanos() as f64 / datagrams as f64;
    println!(
        "loss {loss} %, {size} bytes: {:.1} Gbit/s through both; per datagram: send {:.0} ns, receive {:.0} ns, emit acks {:.0} ns, take acks {:.0} ns; {} datagrams per ack",
        bytes as f64 * 8e-9 / wall.elapsed().as_secs_f64(),
        each(sending),
        each(receiving),
        each(acking),
        each(reading),
        datagrams / acks.max(1),
    );
}
