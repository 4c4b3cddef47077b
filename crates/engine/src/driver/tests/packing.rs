//! What goes into a buffer, and when.

use super::*;

#[test]
fn sixteen_flows_get_the_same() {
    let now = crate::clock();
    let mut driver = connected(Limits::default());
    let flows: Vec<FlowId> = (0..16)
        .map(|number| driver.open(key(0, number), Class::Bulk, now).unwrap())
        .collect();
    let room = Room {
        segment: 1400,
        urgent: 1400,
        largest: 46 * 1400,
        compressed: 0,
        max: 65_536,
    };
    let mut buffer = Vec::new();
    let mut packed = 0;
    while packed < 32 << 20 {
        driver.pack(&mut Always, &mut buffer, room, now).unwrap();
        assert!(
            buffer.len().is_multiple_of(1400),
            "whole segments: {}",
            buffer.len()
        );
        packed += buffer.len();
        let sent: Vec<u64> = flows
            .iter()
            .map(|flow| driver.streams.table()[flow].outgoing.next())
            .collect();
        let apart = sent.iter().max().unwrap() - sent.iter().min().unwrap();
        assert!(
            apart <= 2 * crate::config::QUANTUM as u64,
            "{apart} bytes apart: {sent:?}"
        );
    }
    let sent: Vec<f64> = flows
        .iter()
        .map(|flow| driver.streams.table()[flow].outgoing.next() as f64)
        .collect();
    let jain = sent.iter().sum::<f64>().powi(2) / (16.0 * sent.iter().map(|n| n * n).sum::<f64>());
    assert!(jain > 0.999, "{jain}");
}

#[test]
fn a_new_flow_is_urgent_and_a_long_one_is_not() {
    let now = crate::clock();
    let mut driver = connected(Limits::default());
    let long = driver.open(key(0, 0), Class::Normal, now).unwrap();
    let room = Room {
        segment: 1400,
        urgent: 1350,
        largest: 46 * 1400,
        compressed: 0,
        max: 65_536,
    };
    let mut buffer = Vec::new();
    let mut pack = |driver: &mut Driver| {
        let packed = driver.pack(&mut Always, &mut buffer, room, now).unwrap();
        (
            packed.urgent,
            buffer.len(),
            message::parse_payload(&buffer)
                .unwrap()
                .next()
                .unwrap()
                .0
                .flow,
        )
    };
    while driver.streams.table()[&long].outgoing.next() <= u64::from(crate::config::SPARSE) {
        assert_eq!(
            pack(&mut driver),
            (true, 1350, long),
            "with room for its parity"
        );
    }
    assert_eq!(pack(&mut driver), (false, 46 * 1400, long));
    assert_eq!(driver.streams.table()[&long].class, Class::Normal);
    while driver.streams.table()[&long].outgoing.next() <= u64::from(crate::config::LONG) {
        driver
            .streams
            .get_mut(long)
            .unwrap()
            .outgoing
            .handle_credit(u32::MAX / 4);
        pack(&mut driver);
    }
    assert_eq!(driver.streams.table()[&long].class, Class::Bulk);
    // Another one comes: it goes first, and the long one's explicit wish would have kept it where
    // it is.
    let new = driver.open(key(0, 1), Class::Normal, now).unwrap();
    assert_eq!(pack(&mut driver), (true, 1350, new));
    let info = driver.flows().find(|info| info.flow == long).unwrap();
    assert_eq!(info.class, Class::Bulk, "people see the class in force");
}

#[test]
fn one_flow_alone_fills_the_largest_buffer() {
    let now = crate::clock();
    let mut driver = connected(Limits::default());
    driver.open(key(0, 0), Class::Bulk, now).unwrap();
    let mut buffer = Vec::new();
    driver
        .pack(
            &mut Always,
            &mut buffer,
            Room {
                segment: 1400,
                urgent: 1400,
                largest: 46 * 1400,
                compressed: 0,
                max: 65_536,
            },
            now,
        )
        .unwrap();
    assert_eq!(buffer.len(), 46 * 1400);
    let urgent = driver.open(key(0, 1), Class::Interactive, now).unwrap();
    let packed = driver
        .pack(
            &mut Always,
            &mut buffer,
            Room {
                segment: 1400,
                urgent: 1400,
                largest: 46 * 1400,
                compressed: 0,
                max: 65_536,
            },
            now,
        )
        .unwrap();
    assert!(
        packed.urgent && buffer.len() == 1400,
        "an interactive flow's buffers are one segment"
    );
    assert_eq!(
        message::parse_payload(&buffer)
            .unwrap()
            .next()
            .unwrap()
            .0
            .flow,
        urgent
    );
}

#[test]
fn idle_flows_are_never_looked_at() {
    struct Counting(usize);
    impl Source for Counting {
        fn read(&mut self, _flow: FlowId, _into: &mut [u8]) -> Read {
            self.0 += 1;
            Read::Blocked
        }
    }
    let now = crate::clock();
    let mut driver = connected(Limits::default());
    let flows: Vec<FlowId> = (0..20_000)
        .map(|number| {
            driver
                .open(key(0, number % 50_000), Class::Normal, now)
                .unwrap()
        })
        .collect();
    let mut source = Counting(0);
    let mut buffer = Vec::new();
    let room = Room {
        segment: 1400,
        urgent: 1400,
        largest: 65_536 / 1400 * 1400,
        compressed: 0,
        max: 65_536,
    };
    while driver.pack(&mut source, &mut buffer, room, now).is_some() {}
    source.0 = 0;
    driver.readable(flows[777], now);
    assert_eq!(driver.pack(&mut source, &mut buffer, room, now), None);
    assert_eq!((source.0, driver.ready_count()), (1, 0));
}

#[test]
fn an_opening_waits_for_its_first_bytes() {
    let now = crate::clock();
    let mut driver = connected(Limits::default());
    let [speaks, rides] = [0, 1].map(|number| {
        driver
            .open(key(0, number), Class::Interactive, now)
            .unwrap()
    });
    driver.readable(speaks, now);
    assert_eq!(
        packed(&mut driver, &mut Silent, now),
        None,
        "its first bytes are on their way, mostly"
    );
    assert_eq!(driver.gathers_until(), Some(now + OPENING));
    driver.readable(speaks, now);
    assert_eq!(packed(&mut driver, &mut Text, now), Some(1), "they open it");
    driver.reset(speaks, Status::Reset);
    assert_eq!(
        packed(&mut driver, &mut Silent, now),
        Some(2),
        "its reset, which takes the other one's opening along"
    );
    assert!(!driver.streams.table()[&rides].must_open());
    driver.open(key(0, 2), Class::Interactive, now).unwrap();
    assert_eq!(packed(&mut driver, &mut Silent, now), None);
    assert_eq!(
        packed(&mut driver, &mut Silent, now + OPENING),
        Some(1),
        "there are none: it is opened without"
    );
    assert_eq!(driver.gathers_until(), None);
}

#[test]
fn a_second_end_waits_for_company_and_no_first_one_does() {
    let now = crate::clock();
    for company in [true, false] {
        let mut driver = connected(Limits::default());
        let flow = FlowId(FAR);
        let mut far_end = message(Function::Data, FAR, 0, full(), b"abc");
        far_end[message::ROUTING + 3] |= 1;
        driver.unpack(far_end, now);
        driver.accept(flow);
        driver.delivered(flow, 3, now);
        driver.readable(flow, now);
        assert_eq!(
            packed(&mut driver, &mut Ended, now),
            None,
            "nobody waits for it"
        );
        let later = match company {
            true => {
                let other = driver.open(key(0, 0), Class::Interactive, now).unwrap();
                driver.readable(other, now);
                assert_eq!(
                    packed(&mut driver, &mut Text, now),
                    Some(1),
                    "a whole buffer has no room for it"
                );
                assert_eq!(driver.flow_count(), 2);
                now
            }
            false => now + NOTICE,
        };
        assert_eq!(packed(&mut driver, &mut Silent, later), Some(1));
        assert_eq!(driver.flow_count(), usize::from(company), "it is over");
    }
    let mut driver = connected(Limits::default());
    driver.unpack(message(Function::Data, FAR, 0, full(), b"abc"), now);
    driver.accept(FlowId(FAR));
    driver.readable(FlowId(FAR), now);
    assert_eq!(
        packed(&mut driver, &mut Ended, now),
        Some(1),
        "the far side may wait for a first end"
    );
}
