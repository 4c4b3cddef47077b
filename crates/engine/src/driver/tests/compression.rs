//! What rules ask of compression, and what it may never make.

use super::*;

/// What a rule asks of compression counts in both directions, and other flows are as they were.
#[test]
fn what_a_rule_asks_crosses_with_its_flow() {
    let now = crate::clock();
    let room = Room {
        segment: 1_400,
        urgent: 1_400,
        largest: 1_400,
        compressed: 0,
        max: 65_536,
    };
    let asked = [
        (Treatment::from(Class::Normal), None),
        (
            Treatment {
                compress: Some(Compress::Off),
                ..Class::Normal.into()
            },
            Some(Uncompressed::Off),
        ),
        (
            Treatment {
                compress: Some(Compress::Level(2)),
                isolated: true,
                ..Class::Bulk.into()
            },
            None,
        ),
    ];
    for (asked, why) in asked {
        let mut drivers = [
            new_driver(Limits::default(), false),
            new_driver(Limits::default(), true),
        ];
        for driver in &mut drivers {
            driver.on_connected(true, 100_000);
            driver.set_compression(Compression::default());
            driver.set_link(1_000_000, 1_400, 1_400);
        }
        let flow = drivers[0].open(key(0, 0), asked, now).unwrap();
        for side in 0..2 {
            drivers[side].readable(flow, now);
            let mut buffer = Vec::new();
            let packed = drivers[side]
                .pack(&mut Text, &mut buffer, room, now)
                .unwrap();
            drivers[side].compress(&mut buffer, packed, now);
            let compression = drivers[side].flows().next().unwrap().compression;
            let found = Uncompressed::ALL
                .into_iter()
                .find(|why| compression.uncompressed[*why as usize] > 0);
            assert_eq!(
                (found, compression.bytes_in > 0),
                (why, true),
                "side {side}, {asked:?}"
            );
            assert_eq!(compression.bytes_out < compression.bytes_in, why.is_none());
            // Nothing of an isolated flow is kept for a dictionary.
            let kept = buffer[0] == COMPRESSED && buffer[8..12] != [0; 4];
            assert_eq!(
                kept,
                why.is_none() && !asked.isolated,
                "side {side}, {asked:?}"
            );
            drivers[1 - side].unpack(buffer, now);
            assert_eq!(drivers[1 - side].streams.table()[&flow].asked, asked);
            drivers[1].accept(flow);
        }
    }
}

/// Some tens of bytes that become thousands of messages would keep a lane busy for milliseconds
/// each.
#[test]
fn a_compressed_buffer_has_no_more_messages_than_bytes() {
    let now = crate::clock();
    let how = How {
        compress: Compress::Auto,
        isolated: true,
    };
    let compressed = |raw: &[u8], count: u16| {
        let mut buffer = raw.to_vec();
        message::emit_routing(&mut buffer, 1);
        Compressor::new(Compression::default()).compress(
            &mut buffer,
            how,
            &mut Default::default(),
            100_000,
        );
        assert_eq!(buffer[0], COMPRESSED);
        buffer[2..4].copy_from_slice(&count.to_be_bytes());
        buffer
    };
    let late =
        |count: u32| many((0..count).map(|_| header(Function::Credit, FAR + 7, 0, Form::Short, 0)));
    let mut driver = connected(Limits::default());
    for count in [200, 1_000, 16_000] {
        let raw = late(u32::from(count));
        let bad = compressed(&raw, count);
        assert!(bad.len() < 200, "{count} messages in {} bytes", bad.len());
        let before = *driver.counters();
        driver.unpack(bad, now);
        let after = driver.counters();
        assert_eq!(
            (
                after.malformed.total() - before.malformed.total(),
                after.traffic.messages_in - before.traffic.messages_in
            ),
            (1, 0),
            "{count}"
        );
        assert!(driver.take_broken());
        // What we pack keeps to it: such a buffer stays as it is.
        let (mut ours, mut record) = (raw.clone(), Default::default());
        let compression =
            Compressor::new(Compression::default()).compress(&mut ours, how, &mut record, 100_000);
        assert_eq!(
            (
                ours == raw,
                compression.uncompressed[Uncompressed::TooManyMessages as usize]
            ),
            (true, 1),
            "{count}"
        );
    }
    // As many as there are bytes are none too many.
    let (mut few, mut count) = (compressed(&late(20), 20), 20);
    while usize::from(count) < few.len() {
        count += 1;
        few = compressed(&late(u32::from(count)), count);
    }
    let before = *driver.counters();
    driver.unpack(compressed(&late(u32::from(count) - 1), count - 1), now);
    let after = driver.counters();
    assert_eq!(
        (after.malformed, after.late - before.late),
        (before.malformed, u64::from(count) - 1)
    );
}

/// Thousands of like datagrams of one byte each, as many to a buffer as it holds: nothing that is
/// packed is more than the far side takes.
#[test]
fn the_smallest_like_datagrams_are_compressed_and_arrive() {
    let now = crate::clock();
    let ends = key(1, 0);
    let key = PacketKey::new(17, ends.source, ends.destination).expect("UDP");
    let mut drivers = [
        new_driver(Limits::default(), false),
        new_driver(Limits::default(), true),
    ];
    for driver in &mut drivers {
        driver.on_connected(true, 100_000);
        driver.set_compression(Compression::default());
        driver.set_link(1_000_000, 1_400, 1_400);
    }
    let (mut sent, mut arrived, mut bytes, mut wire) = (0, 0, 0, 0);
    for turn in 0..100 {
        for largest in [1_400, 16_800, 64_400] {
            let room = Room {
                segment: 1_400,
                urgent: 1_400,
                largest,
                compressed: largest,
                max: 65_536,
            };
            let now = now + turn * 10 * MS;
            for _ in 0..1_000 {
                let how = PacketTreatment {
                    asked: Class::Bulk.into(),
                    delivery: Delivery::Timely,
                };
                sent += usize::from(
                    drivers[0]
                        .send_packet(&key, how, PacketParts::Alone(b"a"), now)
                        .is_ok(),
                );
            }
            drivers[0].end_gathering(now + 5 * MS);
            let mut buffer = Vec::new();
            while let Some(packed) = drivers[0].pack(&mut Silent, &mut buffer, room, now) {
                bytes += buffer.len();
                drivers[0].compress(&mut buffer, packed, now);
                wire += buffer.len();
                drivers[1].unpack(std::mem::take(&mut buffer), now);
                drivers[1].take_packets(|_| arrived += 1);
            }
            while let Some(packed) = drivers[1].pack(&mut Silent, &mut buffer, room, now) {
                drivers[1].compress(&mut buffer, packed, now);
                drivers[0].unpack(std::mem::take(&mut buffer), now);
            }
        }
    }
    assert_eq!(
        (drivers[1].counters().malformed.total(), arrived),
        (0, sent)
    );
    assert!(
        sent > 200_000 && wire < bytes / 4,
        "{sent} datagrams, {bytes} bytes became {wire}"
    );
}
