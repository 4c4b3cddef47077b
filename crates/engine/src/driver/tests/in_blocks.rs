//! Packets in blocks: whatever ends their flows, each arrives as it was sent or not at all, and no
//! block stays.

use std::{collections::BTreeSet, sync::Arc};

use super::*;
use crate::config::MOST_BLOCKS;

/// A block of packets, each of which holds its own number in front and a pattern made of it.
fn fill(random: &mut fastrand::Rng, first: u32) -> (Vec<u8>, Vec<std::ops::Range<usize>>) {
    let (mut block, mut places) = (Vec::new(), Vec::new());
    for number in first..first + random.u32(1..40) {
        block.resize(block.len() + random.usize(0..20), 0xee);
        let from = block.len();
        block.extend_from_slice(&number.to_be_bytes());
        block.resize(block.len() + random.usize(0..1_200), number as u8);
        places.push(from..block.len());
    }
    (block, places)
}

#[test]
fn packets_in_blocks_arrive_whole_and_no_block_stays() {
    for seed in 0..200 {
        let random = &mut fastrand::Rng::with_seed(seed);
        let mut now = crate::clock();
        let mut drivers = [
            new_driver(Limits::default(), false),
            new_driver(Limits::default(), true),
        ];
        for driver in &mut drivers {
            driver.on_connected(true, 100_000);
        }
        let keys: Vec<PacketKey> = (0..8)
            .map(|number| {
                let ends = key(1, number);
                PacketKey::new(17, ends.source, ends.destination).expect("UDP")
            })
            .collect();
        let (mut own, mut number, mut arrived) = (Vec::new(), 0, BTreeSet::new());
        for _ in 0..300 {
            now += MS * random.u32(0..4);
            let (block, places) = fill(random, number);
            let block = Arc::new(block);
            own.push(block.clone());
            drivers[0].begin_block(block);
            for place in places {
                let how = PacketTreatment {
                    asked: Class::Normal.into(),
                    delivery: random
                        .choice([Delivery::Timely, Delivery::Reliable])
                        .expect("two"),
                };
                let key = &keys[random.usize(0..keys.len())];
                let front = [1; 7];
                let packet = PacketParts::InBlock {
                    front: &front[..random.usize(0..8)],
                    body: place,
                };
                let _ = drivers[0].send_packet(key, how, packet, now);
                number += 1;
                if random.u8(..) < 2 {
                    // In the middle of a block.
                    let flows: Vec<FlowId> = drivers[0].flows().map(|info| info.flow).collect();
                    flows
                        .first()
                        .into_iter()
                        .for_each(|flow| drivers[0].reset(*flow, Status::NotAllowed));
                }
                drivers[0].check_invariants();
            }
            drivers[0].end_block();
            drivers[0].check_invariants();
            own.retain(|block| Arc::strong_count(block) > 1);
            assert!(own.len() <= MOST_BLOCKS, "seed {seed}");
            match random.u8(0..40) {
                0 => {
                    drivers[0].on_restarted();
                    drivers[0].on_connected(false, 100_000);
                    drivers[1].on_restarted();
                    drivers[1].on_connected(false, 100_000);
                }
                1 => drivers
                    .iter_mut()
                    .for_each(|driver| driver.handle_timeout(now)),
                2 => {
                    let flows: Vec<FlowId> = drivers[1].flows().map(|info| info.flow).collect();
                    for flow in flows {
                        drivers[1].reset(flow, Status::NoResources);
                    }
                }
                _ => {}
            }
            // Sometimes nothing leaves for long.
            let most = random.usize(0..3) * random.usize(0..20);
            for (from, to) in [(0, 1), (1, 0)] {
                let room = Room {
                    segment: 1_400,
                    urgent: 1_400,
                    largest: 1_400,
                    compressed: 0,
                    max: 65_536,
                };
                drivers[from].end_gathering(now + 5 * MS);
                for _ in 0..most {
                    let mut buffer = Vec::new();
                    if drivers[from]
                        .pack(&mut Silent, &mut buffer, room, now)
                        .is_none()
                    {
                        break;
                    }
                    drivers[from].check_invariants();
                    drivers[to].unpack(buffer, now);
                    drivers[to].check_invariants();
                    drivers[to].take_packets(|packet| {
                        let behind = packet
                            .bytes
                            .iter()
                            .position(|byte| *byte != 1)
                            .unwrap_or(packet.bytes.len());
                        // The front is ones; a number may begin with some itself only if it is
                        // large.
                        let body = &packet.bytes[behind.min(7)..];
                        let id = u32::from_be_bytes(body[..4].try_into().expect("a number"));
                        assert!(
                            body[4..].iter().all(|byte| *byte == id as u8),
                            "seed {seed}: packet {id} holds something else"
                        );
                        assert!(arrived.insert(id), "seed {seed}: twice");
                    });
                }
            }
        }
        drivers[0].close();
        drivers[0].check_invariants();
        own.retain(|block| Arc::strong_count(block) > 1);
        assert!(own.is_empty(), "seed {seed}: {} blocks stay", own.len());
        assert!(!arrived.is_empty());
    }
}
