//! Memory and steps stay within their bounds, whatever the peer does.

use super::*;

#[test]
fn memory_refuses_then_takes_from_who_holds_most() {
    let now = crate::clock();
    let limits = Limits {
        peer_bytes: 400_000,
        flows: 4,
        ..Limits::default()
    };
    let mut driver = connected(limits);
    let fill = |driver: &mut Driver, flow: u32, from: usize, to: usize| {
        for at in (from..to).step_by(10_000) {
            driver.unpack(
                message(Function::Data, FAR + flow, at as u32, full(), &[7; 10_000]),
                now,
            );
            driver.check_invariants();
        }
    };
    fill(&mut driver, 0, 0, 150_000);
    fill(&mut driver, 1, 0, 260_000);
    assert!(driver.held() > 400_000);
    assert_eq!(
        driver.open(key(0, 0), Class::Normal, now),
        Err(OpenError::OutOfMemory {
            held: driver.held(),
            budget: 400_000
        })
    );
    driver.unpack(message(Function::Data, FAR + 2, 0, full(), b"abc"), now);
    assert_eq!(
        (driver.counters().flows.refused, driver.flow_count()),
        (1, 2)
    );
    events(&mut driver);
    // Early data counts too.
    fill(&mut driver, 0, 160_000, 260_000);
    assert_eq!(
        events(&mut driver),
        [Event::Reset {
            flow: FlowId(FAR + 1),
            status: Status::NoResources
        }]
    );
    assert_eq!(driver.counters().flows.out_of_memory, 1);
    assert!(driver.held() < 300_000);
    // The program may lower the budget while flows run.
    driver.set_budget(100_000);
    fill(&mut driver, 0, 150_000, 160_000);
    assert_eq!(
        events(&mut driver),
        [Event::Reset {
            flow: FlowId(FAR),
            status: Status::NoResources
        }]
    );
    assert_eq!((driver.held(), driver.flow_count()), (0, 0));
    driver.set_budget(usize::MAX);
    for number in 0..4 {
        driver.open(key(0, number), Class::Normal, now).unwrap();
    }
    assert_eq!(
        driver.open(key(0, 9), Class::Normal, now),
        Err(OpenError::TooManyFlows { flows: 4 })
    );
}

/// Nothing is ever packed here: the peer acknowledges nothing.
#[test]
fn control_messages_that_cannot_leave_are_bounded() {
    let now = crate::clock();
    let limits = Limits {
        flows: 10,
        ..Limits::default()
    };
    let mut driver = connected(limits);
    let most = limits.flows + MAX_REFUSALS;
    for number in 0..2 * MAX_REFUSALS as u32 {
        let flow = FlowId(FAR + number);
        driver.unpack(message(Function::Data, flow.0, 0, full(), b"abc"), now);
        driver.accept(flow);
        if number % 2 == 0 {
            driver.reset(flow, Status::Reset);
        } else {
            driver.unpack(
                message(
                    Function::Reset,
                    flow.0,
                    3,
                    Form::Status(6, Status::NoResources),
                    b"",
                ),
                now,
            );
        }
    }
    assert_eq!(driver.counters().refusals_dropped, 0);
    driver.check_invariants();
    for number in 2 * MAX_REFUSALS as u32..5 * MAX_REFUSALS as u32 {
        let flow = FlowId(FAR + number);
        driver.unpack(message(Function::Data, flow.0, 0, full(), b"abc"), now);
        driver.accept(flow);
        driver.reset(flow, Status::Reset);
    }
    driver.check_invariants();
    assert_eq!(driver.shared.control.resets(), most);
    assert_eq!(
        driver.counters().refusals_dropped as usize,
        4 * MAX_REFUSALS - most
    );
    assert!(driver.shared.control.len() <= 2 * most + CONTROL_SLACK);
    // What waited leaves, and the peer is served again.
    let room = Room {
        segment: 1424,
        urgent: 1424,
        largest: 1424,
        compressed: 0,
        max: 65_536,
    };
    while driver
        .pack(&mut Silent, &mut Vec::new(), room, now)
        .is_some()
    {}
    driver.check_invariants();
    assert!(driver.shared.control.is_empty());
    driver.unpack(
        message(
            Function::Data,
            FAR + 5 * MAX_REFUSALS as u32,
            0,
            full(),
            b"abc",
        ),
        now,
    );
    assert_eq!(driver.flow_count(), 1);
}

/// Whatever waits in the queue already, a message costs a few steps: proposals that are refused are
/// not even answered without end.
#[test]
fn refused_proposals_cost_a_step_and_no_memory() {
    let now = crate::clock();
    let mut driver = connected(Limits::default());
    let proposals = |from: u32| {
        let form = |generation: u32| Form::Status(generation as u8, Status::None);
        many(
            (from..from + 10_000).map(|number| header(Function::Dictionary, 5, 4, form(number), 0)),
        )
    };
    for turn in 0..20 {
        driver.unpack(proposals(turn * 10_000), now);
        driver.check_invariants();
    }
    let counters = driver.counters();
    assert_eq!(
        (counters.traffic.messages_in, counters.answers_dropped),
        (200_000, 200_000 - MOST_ANSWERS as u64)
    );
    assert_eq!(
        (driver.shared.control.len(), driver.held_by_queues()),
        (MOST_ANSWERS, 0)
    );
    assert!(counters.walked < 1_000, "{} steps", counters.walked);
}

/// Dictionaries are made for what has come: who sends little and proposes much has few made.
#[test]
fn dictionaries_are_paid_for() {
    let now = crate::clock();
    let mut driver = connected(Limits::default());
    let mut made = 0;
    let mut compressor = Compressor::new(Compression::default());
    for number in 0..100 {
        let mut buffer = message(
            Function::Data,
            FAR,
            number * 40_000,
            full(),
            &[number as u8; 40_000],
        );
        let how = How {
            compress: Compress::Auto,
            isolated: false,
        };
        compressor.compress(&mut buffer, how, &mut Default::default(), 100_000);
        assert_eq!(buffer[0], COMPRESSED);
        driver.unpack(buffer, now);
        // A dictionary of all that has come, again and again.
        for generation in 1..50 {
            let form = Form::Status(generation, Status::None);
            driver.unpack(
                many([header(Function::Dictionary, 1, number + 1, form, 0)].into_iter()),
                now,
            );
            while let Some(work) = driver.poll_work() {
                made += work.bytes();
                driver.on_worked(work.run());
            }
        }
        events(&mut driver);
    }
    let come = 100 * 40_000;
    assert!(
        made <= DICTIONARY + MADE_FOR_EACH * come * 2,
        "{made} bytes of dictionaries for {come}"
    );
    assert!(made >= 8 << 20, "what is paid for is made: {made}");
    assert!(
        driver.counters().walked <= 4 * 4_900,
        "{} steps for 4,900 proposals",
        driver.counters().walked
    );
}

/// Numbers far apart, datagrams in reverse order, many holders of memory, ends that cannot leave:
/// each message costs a few steps.
#[test]
fn no_message_costs_a_walk() {
    let now = crate::clock();
    let limits = Limits {
        flows: 20_000,
        packet_flows: 2_000,
        peer_bytes: 64 << 20,
        ..Limits::default()
    };
    let mut driver = connected(limits);
    let walked = |driver: &Driver, before: (u64, u64), what: &str| {
        let counters = driver.counters();
        let (steps, said) = (
            counters.walked - before.0,
            counters.traffic.messages_in - before.1,
        );
        assert!(
            steps <= 8 * said + 5_000,
            "{what}: {steps} steps for {said} messages"
        );
        (counters.walked, counters.traffic.messages_in)
    };
    // Flows that nobody takes anything of, each with little, until memory is short; and then more.
    let mut at = (0, 0);
    for turn in 0..400 {
        let flows = (0..200).map(|number| FAR + turn * 200 + number);
        driver.unpack(
            many(flows.map(|flow| header(Function::Data, flow, 0, full(), 1_000))),
            now,
        );
        events(&mut driver);
        let flows = (0..200).map(|number| FAR + number * 97);
        driver.unpack(
            many(flows.map(|flow| header(Function::Data, flow, 2_000 + turn, Form::Short, 1))),
            now,
        );
        events(&mut driver);
    }
    assert!(driver.counters().flows.out_of_memory > 0 || driver.counters().flows.refused > 0);
    driver.check_invariants();
    at = walked(&driver, at, "memory");
    // Datagrams in reverse order, in many flows.
    let timely = Function::Packet(crate::Delivery::Timely);
    let asked = Treatment {
        in_order: true,
        ..Class::Normal.into()
    };
    for flow in 0..20 {
        let ends = key(1, flow as usize);
        let key = PacketKey::new(17, ends.source, ends.destination).expect("UDP");
        let flow = FAR + 200_000 + flow;
        driver.unpack(
            message(timely, flow, 0, Form::Packets(key, asked), b"first"),
            now,
        );
        driver.unpack(
            many(
                (1..1_000)
                    .rev()
                    .map(|number| header(timely, flow, number + 1, Form::Short, 1)),
            ),
            now,
        );
        driver.take_packets(|_| {});
    }
    driver.check_invariants();
    at = walked(&driver, at, "order");
    let mut later = 0;
    driver
        .packets
        .end_holding(&mut driver.shared, now + Duration::from_secs(1));
    driver.take_packets(|_| later += 1);
    assert!(
        later > 10_000 && driver.packets.holds_until().is_none(),
        "{later} waited"
    );
    // Resets of flows far ahead.
    let ahead = (0..10_000_u32).map(|number| FAR | number.wrapping_mul(65_500) >> 1);
    driver.unpack(
        many(ahead.map(|flow| header(Function::Reset, flow, 0, Form::Status(6, Status::Reset), 0))),
        now,
    );
    walked(&driver, at, "numbers");
    assert!(driver.held() <= hard_limit(limits.peer_bytes));
}

/// One-byte pieces with gaps are charged with what a tree of them takes.
#[test]
fn early_bytes_are_charged_for_their_places() {
    let now = crate::clock();
    let mut driver = connected(Limits::default());
    driver.unpack(message(Function::Data, FAR, 0, full(), b"abc"), now);
    let before = driver.held();
    let early =
        (0..10_000).map(|number| header(Function::Data, FAR, 10 + 2 * number, Form::Short, 1));
    driver.unpack(many(early), now);
    // An entry of the tree and of its half empty leaves, a buffer of a byte and what the allocator
    // makes of it.
    assert!(
        driver.held() - before >= 10_000 * 200,
        "{} for 10,000 bytes",
        driver.held() - before
    );
    driver.check_invariants();
}
