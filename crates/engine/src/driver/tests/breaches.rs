//! What a peer does wrong ends where it should, and is counted.

use super::*;

#[test]
fn late_messages_open_nothing() {
    let now = crate::clock();
    let mut driver = connected(Limits::default());
    events(&mut driver);
    // A reset that overtakes its opening.
    driver.unpack(
        message(Function::Reset, FAR, 3, Form::Status(6, Status::Reset), b""),
        now,
    );
    driver.unpack(message(Function::Data, FAR, 0, full(), b"abc"), now);
    assert_eq!((events(&mut driver), driver.flow_count()), (vec![], 0));
    // Short messages of a flow that is not there; a full one with our own number.
    driver.unpack(
        message(Function::Data, FAR + 1, 0, Form::Short, b"abc"),
        now,
    );
    driver.unpack(message(Function::Credit, 5, 0, Form::Short, b""), now);
    driver.unpack(message(Function::Data, 5, 0, full(), b"abc"), now);
    assert_eq!((events(&mut driver), driver.counters().late), (vec![], 5));
    // A flow that was here, and ended.
    driver.unpack(message(Function::Data, FAR + 2, 0, full(), b"abc"), now);
    driver.reset(FlowId(FAR + 2), Status::Refused);
    events(&mut driver);
    driver.unpack(message(Function::Data, FAR + 2, 3, full(), b"def"), now);
    assert_eq!((events(&mut driver), driver.flow_count()), (vec![], 0));
    assert_eq!(driver.counters().flows.opened_there, 1);
}

#[test]
fn a_breach_ends_its_flow_only() {
    let now = crate::clock();
    let credit = Limits::default().initial_credit;
    let bad = [
        message(Function::Data, FAR, 1, Form::Short, b"x"),
        message(Function::Data, FAR, credit, Form::Short, b"x"),
        message(Function::Data, FAR, 0xffff_0000, Form::Short, b"x"),
        message(
            Function::Data,
            FAR,
            3,
            Form::Stream(key(1, 7), Class::Normal.into()),
            b"x",
        ),
        message(Function::Reset, FAR, 2, Form::Status(6, Status::Reset), b""),
        message(
            Function::Reset,
            FAR,
            credit + 1,
            Form::Status(6, Status::Reset),
            b"",
        ),
    ];
    for payload in bad {
        let mut driver = connected(Limits::default());
        driver.unpack(message(Function::Data, FAR, 0, full(), b"abc"), now);
        driver.unpack(message(Function::Data, FAR + 1, 0, full(), b"abc"), now);
        events(&mut driver);
        driver.unpack(payload, now);
        assert_eq!(
            events(&mut driver),
            [Event::Reset {
                flow: FlowId(FAR),
                status: Status::Protocol
            }]
        );
        assert_eq!(
            (driver.flow_count(), driver.counters().breaches.total()),
            (1, 1)
        );
        driver.check_invariants();
        let mut buffer = Vec::new();
        driver
            .pack(
                &mut Always,
                &mut buffer,
                Room {
                    segment: 1400,
                    urgent: 1400,
                    largest: 1400,
                    compressed: 0,
                    max: 65_536,
                },
                now,
            )
            .unwrap();
        let (reset, _) = message::parse_payload(&buffer).unwrap().next().unwrap();
        assert_eq!(
            (reset.function, reset.form),
            (Function::Reset, Form::Status(6, Status::Protocol))
        );
    }
}

#[test]
fn what_a_peer_does_wrong_is_counted_by_its_kind() {
    let now = crate::clock();
    let credit = Limits::default().initial_credit;
    let other = Form::Stream(key(1, 7), Class::Normal.into());
    let wrong = [
        message(Function::Data, FAR, 1, Form::Short, b"x"),
        message(Function::Data, FAR, credit, Form::Short, b"x"),
        message(
            Function::Reset,
            FAR,
            credit + 1,
            Form::Status(6, Status::Reset),
            b"",
        ),
        message(Function::Data, FAR, 3, other, b"x"),
        message(
            Function::Packet(Delivery::Timely),
            FAR,
            3,
            Form::Short,
            b"x",
        ),
        vec![1, 0, 0],
        vec![9; 20],
        [&[2, 7, 0, 0, 0, 0, 0, 24][..], &[0; 24]].concat(),
    ];
    let found = wrong.map(|payload| {
        let mut driver = connected(Limits::default());
        driver.unpack(message(Function::Data, FAR, 0, full(), b"abc"), now);
        driver.unpack(payload, now);
        let Counters {
            breaches,
            malformed,
            ..
        } = *driver.counters();
        assert_eq!(breaches.total() + malformed.total(), 1);
        (breaches, malformed)
    });
    let breach = |count: fn(&mut Breaches) -> &mut u64| {
        let mut breaches = Breaches::default();
        *count(&mut breaches) = 1;
        (breaches, Malformed::default())
    };
    let malformed = |count: fn(&mut Malformed) -> &mut u64| {
        let mut malformed = Malformed::default();
        *count(&mut malformed) = 1;
        (Breaches::default(), malformed)
    };
    let expected = [
        breach(|kind| &mut kind.overlap),
        breach(|kind| &mut kind.beyond_credit),
        breach(|kind| &mut kind.beyond_end),
        breach(|kind| &mut kind.other_key),
        breach(|kind| &mut kind.other_kind),
        malformed(|kind| &mut kind.truncated),
        malformed(|kind| &mut kind.routing),
        malformed(|kind| &mut kind.dictionary),
    ];
    assert_eq!(found, expected);
}

/// A peer that says what no type of ours can say: byte 16 of a full header is the protocol, 24 and
/// 40 are where its addresses begin.
#[test]
fn a_stream_of_another_protocol_and_a_mapped_address_open_nothing() {
    let now = crate::clock();
    let mut driver = connected(Limits::default());
    events(&mut driver);
    let bent = |function: u8, number: usize, change: &dyn Fn(&mut [u8])| {
        let mut payload = message(
            Function::Data,
            FAR,
            0,
            Form::Stream(key(1, number), Class::Normal.into()),
            b"abc",
        );
        payload[message::ROUTING + 2] = function;
        change(&mut payload[message::ROUTING..]);
        payload
    };
    const DATA: u8 = 1;
    const TIMELY: u8 = 5;
    for (function, protocol) in [
        (DATA, 1),
        (DATA, 17),
        (DATA, 47),
        (DATA, 0),
        (TIMELY, 6),
        (TIMELY, 58),
        (TIMELY, 60),
    ] {
        driver.unpack(bent(function, 0, &|header| header[16] = protocol), now);
    }
    assert_eq!(
        (
            driver.counters().malformed.total(),
            driver.counters().malformed.protocol
        ),
        (7, 7)
    );
    for (function, protocol) in [(DATA, 6), (TIMELY, 17)] {
        for at in [24, 40] {
            for form in [[0xff, 0xff, 127, 0, 0, 1], [0, 0, 127, 0, 0, 1]] {
                driver.unpack(
                    bent(function, 1, &|header| {
                        header[16] = protocol;
                        header[at..at + 10].fill(0);
                        header[at + 10..at + 16].copy_from_slice(&form);
                    }),
                    now,
                );
            }
        }
    }
    assert_eq!(
        (
            driver.counters().malformed.total(),
            driver.counters().malformed.address
        ),
        (15, 8)
    );
    assert_eq!(
        (
            events(&mut driver),
            driver.flow_count(),
            driver.packet_flow_count()
        ),
        (vec![], 0, 0)
    );
    // The same, unbent.
    driver.unpack(bent(DATA, 1, &|_| ()), now);
    assert_eq!(
        (
            events(&mut driver).len(),
            driver.flow_count(),
            driver.counters().malformed.total()
        ),
        (1, 1, 15)
    );
}
