//! Two drivers with nothing between them but payloads that are delivered in any order, each once:
//! what the mover promises, and nothing more.

use std::{
    io::IoSlice,
    time::{Duration, Instant},
};

use super::{Driver, Room, Schedule, hard_limit};
use crate::{
    Breaches, Class, Compress, Compression, Counters, Delivery, Event, FlowId, Limits, Malformed,
    OpenError, PacketKey, Read, Source, Status, StreamKey, Treatment, Uncompressed,
    compress::{COMPRESSED, How, Shrinker},
    config::{
        CONTROL_SLACK, DICTIONARY, MADE_FOR_EACH, MAX_REFUSALS, MOST_ANSWERS, OPENING, UNSAID,
    },
    flow::{Flow, Window},
    message::{self, Form, Function, Header},
};

// Not each of its tools is needed at both places.
#[allow(dead_code, unreachable_pub)]
#[path = "../../tests/world/apps.rs"]
mod apps;

use apps::{Apps, Engine, Plan, Reading, Script, Then, check_ends, key};

const MS: Duration = Duration::from_millis(1);

impl Engine for Driver {
    fn open(&mut self, key: StreamKey, class: Class, now: Instant) -> Result<FlowId, OpenError> {
        self.open(key, class, now)
    }
    fn accept(&mut self, flow: FlowId, _now: Instant) {
        self.accept(flow);
    }
    fn readable(&mut self, flow: FlowId, now: Instant) {
        self.readable(flow, now);
    }
    fn reset(&mut self, flow: FlowId, status: Status, _now: Instant) {
        self.reset(flow, status);
    }
    fn deliverable<'a>(&'a self, flow: FlowId, slices: &mut Vec<IoSlice<'a>>) {
        self.deliverable(flow, slices);
    }
    fn delivered(&mut self, flow: FlowId, n: usize, now: Instant) {
        self.delivered(flow, n, now);
    }
    fn poll_event(&mut self) -> Option<Event> {
        self.poll_event()
    }
}

pub(crate) fn any_key(number: usize) -> StreamKey {
    key(1, number)
}

pub(crate) fn any_flow(schedule: &mut Schedule) -> Flow {
    let now = crate::clock();
    let slot = schedule.add(FlowId(0), Class::Normal);
    Flow::new(
        key(0, 0),
        Class::Normal.into(),
        slot,
        true,
        0,
        Window::new(0, 0, now),
        now,
    )
}

/// Two drivers and what is on its way between them.
struct Pair {
    drivers: [Driver; 2],
    apps: [Apps; 2],
    /// To side 0 and to side 1: when it arrives, and what.
    flying: [Vec<(Instant, Vec<u8>)>; 2],
    random: fastrand::Rng,
    now: Instant,
    /// Longest time on the way.
    delay: Duration,
    /// Bytes that each side may pack in a millisecond.
    rate: usize,
    segment: usize,
}

impl Pair {
    fn new(seed: u64, limits: Limits, scripts: [Vec<Script>; 2]) -> Pair {
        let now = crate::clock();
        let [first, second] = scripts;
        let mut drivers = [Driver::new(limits, false), Driver::new(limits, true)];
        for driver in &mut drivers {
            driver.on_connected(true, limits.told_credit());
            driver.set_rtt(Some(10 * MS));
        }
        let apps = [
            Apps::new(0, first.clone(), second.clone(), now),
            Apps::new(1, second, first, now),
        ];
        let random = fastrand::Rng::with_seed(seed);
        Pair {
            drivers,
            apps,
            flying: [vec![], vec![]],
            random,
            now,
            delay: 10 * MS,
            rate: 200_000,
            segment: 1400,
        }
    }

    /// A millisecond: what arrives, what is due, what may be sent.
    fn tick(&mut self) {
        self.now += MS;
        for side in 0..2 {
            self.drivers[side].handle_timeout(self.now);
            let arrived = self.flying[side].extract_if(.., |(at, _)| *at <= self.now);
            let mut arrived: Vec<_> = arrived.map(|(_, payload)| payload).collect();
            self.random.shuffle(&mut arrived);
            for payload in arrived {
                self.drivers[side].unpack(payload, self.now);
                self.drivers[side].check_invariants();
                self.apps[side].turn(&mut self.drivers[side], true, self.now);
                self.drivers[side].check_invariants();
            }
            self.apps[side].turn(&mut self.drivers[side], true, self.now);
            self.pack(side);
            self.apps[side].turn(&mut self.drivers[side], true, self.now);
            self.drivers[side].check_invariants();
        }
    }

    fn pack(&mut self, side: usize) {
        let mut left = self.rate;
        self.drivers[side].end_gathering(self.now);
        while self.drivers[side].has_work() && left > 0 {
            let mut buffer = vec![0xee; self.random.usize(0..3000)];
            let segments = left
                .min(65_536)
                .div_ceil(self.segment)
                .min(65_536 / self.segment)
                .max(1);
            let room = Room {
                segment: self.segment,
                urgent: self.segment,
                largest: segments * self.segment,
                shrunk: 0,
                most: 65_536,
            };
            let packed = self.drivers[side].pack(
                &mut self.apps[side].source(self.now),
                &mut buffer,
                room,
                self.now,
            );
            self.drivers[side].check_invariants();
            if packed.is_none() {
                break;
            }
            assert!(buffer.len() <= room.largest);
            check_buffer(&buffer, self.segment);
            left = left.saturating_sub(buffer.len());
            let at = self.now + self.delay.mul_f64(self.random.f64());
            self.flying[1 - side].push((at, buffer));
        }
    }

    fn run(&mut self, limit: Duration) {
        let end = self.now + limit;
        while self.now < end && !self.is_quiet() {
            self.tick();
        }
    }

    /// No application runs, and nothing is on its way.
    fn is_quiet(&self) -> bool {
        (0..2).all(|side| {
            self.apps[side].alive() == 0
                && self.flying[side].is_empty()
                && !self.drivers[side].has_work()
        })
    }

    fn check_all_over(&self) {
        check_ends(&self.apps[0], &self.apps[1]);
        for side in 0..2 {
            assert_eq!(
                self.apps[side].alive(),
                0,
                "side {side} has applications that wait"
            );
            let driver = &self.drivers[side];
            assert_eq!(
                (driver.flow_count(), driver.held(), driver.ready_count()),
                (0, 0, 0),
                "side {side} keeps something"
            );
            assert!(!driver.has_work());
            assert_eq!(
                (
                    driver.counters().breaches.total(),
                    driver.counters().malformed.total()
                ),
                (0, 0)
            );
        }
        let [a, b] = [self.drivers[0].counters(), self.drivers[1].counters()];
        assert!(
            a.traffic.bytes_in <= b.traffic.bytes_out && b.traffic.bytes_in <= a.traffic.bytes_out
        );
    }
}

/// A buffer with messages of more than one flow is never larger than a segment.
fn check_buffer(buffer: &[u8], segment: usize) {
    let mut flows: Vec<FlowId> = Vec::new();
    let mut control = false;
    for (header, _) in message::parse_payload(buffer).expect("we can read what we write") {
        control |= header.function != Function::Data;
        flows.push(header.flow);
    }
    flows.dedup();
    assert!(
        buffer.len() <= segment || (flows.len() == 1 && !control),
        "{} bytes of {flows:?}",
        buffer.len()
    );
}

#[test]
fn any_flows_any_order() {
    for seed in 0..150 {
        let mut random = fastrand::Rng::with_seed(seed);
        let mut scripts = || {
            (0..random.usize(1..12))
                .map(|_| Script::random(&mut random, 400_000))
                .collect()
        };
        let scripts = [scripts(), scripts()];
        let mut pair = Pair::new(seed, Limits::default(), scripts);
        pair.run(Duration::from_secs(20));
        pair.check_all_over();
    }
}

#[test]
fn resets_and_refusals_in_any_order() {
    for seed in 0..300 {
        let mut random = fastrand::Rng::with_seed(seed);
        let mut scripts = || {
            (0..random.usize(1..12))
                .map(|_| {
                    let mut script = Script::random(&mut random, 100_000);
                    for plan in [&mut script.opener, &mut script.acceptor] {
                        match random.u8(0..5) {
                            0 => plan.then = Then::Fail,
                            1 => plan.read = Reading::ResetAfter(random.u64(1..20_000)),
                            _ => {}
                        }
                    }
                    if random.u8(0..5) == 0 {
                        script.refuse = Some(
                            [Status::Refused, Status::Unreachable, Status::NotAllowed]
                                [random.usize(0..3)],
                        );
                    }
                    script
                })
                .collect()
        };
        let scripts = [scripts(), scripts()];
        let mut pair = Pair::new(seed, Limits::default(), scripts);
        pair.run(Duration::from_secs(30));
        pair.check_all_over();
    }
}

/// No credit at the start: the opening goes without data, and the window is granted when the flow
/// is accepted.
#[test]
fn without_initial_credit_flows_run() {
    for seed in 0..50 {
        let mut random = fastrand::Rng::with_seed(seed);
        let limits = Limits {
            initial_credit: [0, 1, 700][seed as usize % 3],
            ..Limits::default()
        };
        let scripts = (0..6)
            .map(|_| Script::random(&mut random, 300_000))
            .collect();
        let mut pair = Pair::new(seed, limits, [scripts, vec![]]);
        pair.run(Duration::from_secs(20));
        pair.check_all_over();
    }
}

#[test]
fn offsets_cross_four_gigabytes() {
    for seed in 0..20 {
        let quiet = Plan {
            then: Then::Stay,
            ..Plan::bytes(0)
        };
        let mut pair = Pair::new(
            seed,
            Limits::default(),
            [vec![Script::new(quiet.clone(), quiet)], vec![]],
        );
        for _ in 0..40 {
            pair.tick();
        }
        // Both sides know the flow and nothing is on its way: as if 4 GB had crossed, less a
        // little.
        for driver in &mut pair.drivers {
            driver
                .flows
                .values_mut()
                .next()
                .expect("the flow is open")
                .start_at((1 << 32) - 5000);
        }
        for (apps, driver) in pair.apps.iter_mut().zip(&mut pair.drivers) {
            apps.set_plan(0, 0, Plan::bytes(2_000_000), driver, pair.now);
        }
        pair.run(Duration::from_secs(5));
        for apps in &pair.apps {
            let end = apps.end(0, 0);
            assert!(
                end.saw_closed && (end.got, end.written) == (2_000_000, 2_000_000),
                "{end:?}"
            );
        }
    }
}

struct Always;

impl Source for Always {
    fn read(&mut self, _flow: FlowId, into: &mut [u8]) -> Read {
        Read::Bytes(into.len())
    }
}

fn connected(limits: Limits) -> Driver {
    let mut driver = Driver::new(limits, false);
    driver.on_connected(true, u32::MAX / 2);
    driver
}

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
        shrunk: 0,
        most: 65_536,
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
            .map(|flow| driver.flows[flow].outgoing.next())
            .collect();
        let apart = sent.iter().max().unwrap() - sent.iter().min().unwrap();
        assert!(
            apart <= 2 * crate::config::QUANTUM as u64,
            "{apart} bytes apart: {sent:?}"
        );
    }
    let sent: Vec<f64> = flows
        .iter()
        .map(|flow| driver.flows[flow].outgoing.next() as f64)
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
        shrunk: 0,
        most: 65_536,
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
    while driver.flows[&long].outgoing.next() <= u64::from(crate::config::SPARSE) {
        assert_eq!(
            pack(&mut driver),
            (true, 1350, long),
            "with room for its parity"
        );
    }
    assert_eq!(pack(&mut driver), (false, 46 * 1400, long));
    assert_eq!(driver.flows[&long].class, Class::Normal);
    while driver.flows[&long].outgoing.next() <= u64::from(crate::config::LONG) {
        driver
            .flows
            .get_mut(&long)
            .unwrap()
            .outgoing
            .on_credit(u32::MAX / 4);
        pack(&mut driver);
    }
    assert_eq!(driver.flows[&long].class, Class::Bulk);
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
                shrunk: 0,
                most: 65_536,
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
                shrunk: 0,
                most: 65_536,
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
        shrunk: 0,
        most: 65_536,
    };
    while driver.pack(&mut source, &mut buffer, room, now).is_some() {}
    source.0 = 0;
    driver.readable(flows[777], now);
    assert_eq!(driver.pack(&mut source, &mut buffer, room, now), None);
    assert_eq!((source.0, driver.ready_count()), (1, 0));
}

fn message(function: Function, flow: u32, sequence: u32, form: Form, data: &[u8]) -> Vec<u8> {
    let header = Header {
        function,
        fin: false,
        flow: FlowId(flow),
        sequence,
        length: data.len() as u32,
        form,
    };
    let mut payload = vec![0; message::ROUTING + header.header_length()];
    header.emit(&mut payload[message::ROUTING..]);
    payload.extend_from_slice(data);
    message::emit_routing(&mut payload, 1);
    payload
}

fn events(driver: &mut Driver) -> Vec<Event> {
    std::iter::from_fn(|| driver.poll_event()).collect()
}

const FAR: u32 = 1 << 31;

fn full() -> Form {
    Form::Stream(key(1, 0), Class::Normal.into())
}

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
                    shrunk: 0,
                    most: 65_536,
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
            Function::Datagram(Delivery::Timely),
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
            driver.exchange_count()
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
    assert_eq!(driver.resets, most);
    assert_eq!(
        driver.counters().refusals_dropped as usize,
        4 * MAX_REFUSALS - most
    );
    assert!(driver.control.len() <= 2 * most + CONTROL_SLACK);
    // What waited leaves, and the peer is served again.
    let room = Room {
        segment: 1424,
        urgent: 1424,
        largest: 1424,
        shrunk: 0,
        most: 65_536,
    };
    while driver
        .pack(&mut Silent, &mut Vec::new(), room, now)
        .is_some()
    {}
    driver.check_invariants();
    assert!(driver.control.is_empty());
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

/// A payload of so many messages without data.
fn many(headers: impl Iterator<Item = Header>) -> Vec<u8> {
    let (mut payload, mut messages) = (vec![0; message::ROUTING], 0);
    for header in headers {
        let at = payload.len();
        payload.resize(at + header.header_length() + header.length as usize, 7);
        header.emit(&mut payload[at..]);
        messages += 1;
    }
    message::emit_routing(&mut payload, messages);
    payload
}

fn header(function: Function, flow: u32, sequence: u32, form: Form, length: u32) -> Header {
    Header {
        function,
        fin: false,
        flow: FlowId(flow),
        sequence,
        length,
        form,
    }
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
        (driver.control.len(), driver.held_by_queues()),
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
    let mut shrinker = Shrinker::new(Compression::default());
    for number in 0..100 {
        let mut buffer = message(
            Function::Data,
            FAR,
            number * 40_000,
            full(),
            &[number as u8; 40_000],
        );
        let how = (
            How {
                compress: Compress::Auto,
                isolated: false,
            },
            true,
        );
        shrinker.shrink(&mut buffer, how, &mut Default::default(), 100_000);
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
    let timely = Function::Datagram(crate::Delivery::Timely);
    let asked = Treatment {
        in_order: true,
        ..Class::Normal.into()
    };
    for flow in 0..20 {
        let ends = any_key(flow as usize);
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
    driver.end_holding(now + Duration::from_secs(1));
    driver.take_packets(|_| later += 1);
    assert!(
        later > 10_000 && driver.holds_until().is_none(),
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

/// The messages of the next buffer, of a source that says this whenever it is read; none: there is
/// no buffer.
fn packed(driver: &mut Driver, source: &mut dyn Source, now: Instant) -> Option<u8> {
    let room = Room {
        segment: 1424,
        urgent: 1424,
        largest: 1424,
        shrunk: 0,
        most: 65_536,
    };
    let mut buffer = Vec::new();
    driver.end_gathering(now);
    let packed = driver
        .pack(source, &mut buffer, room, now)
        .map(|_| buffer[3]);
    driver.check_invariants();
    packed
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
    assert!(!driver.flows[&rides].must_open());
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
            false => now + UNSAID,
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

#[test]
fn data_then_the_reset() {
    let now = crate::clock();
    let mut driver = connected(Limits::default());
    let flow = FlowId(FAR);
    driver.unpack(message(Function::Data, FAR, 0, full(), b"abc"), now);
    driver.accept(flow);
    events(&mut driver);
    driver.unpack(
        message(Function::Reset, FAR, 6, Form::Status(6, Status::Reset), b""),
        now,
    );
    driver.readable(flow, now);
    assert_eq!(
        (events(&mut driver), driver.ready_count()),
        (vec![], 0),
        "it waits for the data, and sends nothing more"
    );
    driver.delivered(flow, 3, now);
    driver.unpack(message(Function::Data, FAR, 3, Form::Short, b"def"), now);
    assert_eq!(events(&mut driver), [Event::Deliver { flow }]);
    driver.delivered(flow, 2, now);
    assert_eq!(events(&mut driver), []);
    driver.delivered(flow, 1, now);
    assert_eq!(
        events(&mut driver),
        [Event::Reset {
            flow,
            status: Status::Reset
        }]
    );
    assert_eq!(driver.flow_count(), 0);

    // Other kinds do not wait.
    driver.unpack(message(Function::Data, FAR + 1, 0, full(), b"abc"), now);
    driver.accept(FlowId(FAR + 1));
    driver.unpack(
        message(
            Function::Reset,
            FAR + 1,
            6,
            Form::Status(6, Status::NoResources),
            b"",
        ),
        now,
    );
    let reset = Event::Reset {
        flow: FlowId(FAR + 1),
        status: Status::NoResources,
    };
    assert_eq!(events(&mut driver).last(), Some(&reset));
    assert_eq!(driver.held(), 0);
}

#[test]
fn a_reset_does_not_wait_for_a_reader_that_stopped() {
    let now = crate::clock();
    let mut driver = connected(Limits::default());
    let flow = FlowId(FAR);
    driver.unpack(message(Function::Data, FAR, 0, full(), b"abc"), now);
    driver.accept(flow);
    driver.unpack(
        message(Function::Reset, FAR, 3, Form::Status(6, Status::Reset), b""),
        now,
    );
    events(&mut driver);
    driver.handle_timeout(now + Duration::from_secs(9));
    driver.delivered(flow, 1, now + Duration::from_secs(9));
    driver.handle_timeout(now + Duration::from_secs(11));
    assert_eq!(events(&mut driver), [], "it took a byte");
    driver.handle_timeout(now + Duration::from_secs(22));
    assert_eq!(
        events(&mut driver),
        [Event::Reset {
            flow,
            status: Status::Reset
        }]
    );
}

#[test]
fn a_restart_ends_all_flows_and_new_ones_run() {
    let mut pair = Pair::new(
        3,
        Limits::default(),
        [
            vec![
                Script::new(Plan::bytes(50_000_000), Plan::bytes(1000)),
                Script::new(Plan::bytes(0), Plan::bytes(50_000_000)),
            ],
            vec![],
        ],
    );
    for _ in 0..50 {
        pair.tick();
    }
    // Side 1 restarts: a new driver, new applications; nothing of the old instance arrives.
    pair.flying = [vec![], vec![]];
    pair.drivers[1] = Driver::new(Limits::default(), true);
    pair.apps[1] = Apps::new(1, vec![], vec![], pair.now);
    pair.drivers[0].on_restarted();
    for driver in &mut pair.drivers {
        driver.on_connected(true, Limits::default().initial_credit);
    }
    pair.tick();
    for number in 0..2 {
        assert_eq!(
            pair.apps[0].end(0, number).saw_reset,
            Some(Status::PeerRestarted)
        );
    }
    for apps in &mut pair.apps {
        assert_eq!(apps.alive(), 0);
    }
    let again = Script::new(Plan::bytes(100_000), Plan::bytes(100_000));
    let number = pair.apps[0].add(again.clone(), 2);
    pair.apps[1].add_other(again, number);
    pair.run(Duration::from_secs(5));
    assert!(pair.apps[0].end(0, number).saw_closed && pair.apps[1].end(0, number).saw_closed);
    assert_eq!(
        (pair.drivers[0].held(), pair.drivers[1].flow_count()),
        (0, 0)
    );
}

#[test]
fn a_dead_peer_takes_all_flows_with_it() {
    let now = crate::clock();
    let mut driver = connected(Limits::default());
    let ours = driver.open(key(0, 0), Class::Normal, now).unwrap();
    driver.unpack(message(Function::Data, FAR, 0, full(), b"abc"), now);
    events(&mut driver);
    driver.on_dead(Status::PeerRestarted);
    let status = Status::PeerRestarted;
    assert_eq!(
        events(&mut driver),
        [
            Event::Reset { flow: ours, status },
            Event::Reset {
                flow: FlowId(FAR),
                status
            },
            Event::Dead
        ]
    );
    assert_eq!(
        driver.open(key(0, 0), Class::Normal, now),
        Err(OpenError::NotConnected)
    );
    assert!(!driver.has_work() && driver.held() == 0);
    driver.on_connected(true, 1000);
    assert_eq!(events(&mut driver), [Event::Connected { fresh: true }]);
    driver.open(key(0, 0), Class::Normal, now).unwrap();
}

/// The driver's own cost, for people: `cargo test --release -p tpo-engine driver -- --ignored
/// --nocapture`.
#[test]
#[ignore = "measures, asserts nothing about time"]
#[allow(clippy::disallowed_methods)]
fn measure() {
    for (name, size, idle) in [
        ("64 KiB, alone", usize::MAX, 0),
        ("64 KiB, 100,000 idle", usize::MAX, 100_000),
        ("100 bytes", 100, 0),
    ] {
        struct Pieces(usize);
        impl Source for Pieces {
            fn read(&mut self, _flow: FlowId, into: &mut [u8]) -> Read {
                Read::Bytes(into.len().min(self.0))
            }
        }
        let start = Instant::now();
        let mut sender = Driver::new(Limits::default(), false);
        let mut receiver = Driver::new(Limits::default(), true);
        sender.on_connected(true, 256 << 10);
        receiver.on_connected(true, 256 << 10);
        let room = Room {
            segment: 1424,
            urgent: 1424,
            largest: 46 * 1424,
            shrunk: 0,
            most: 65_536,
        };
        let mut buffer = Vec::new();
        for _ in 0..idle {
            sender.open(key(0, 0), Class::Normal, start).unwrap();
        }
        while sender.pack(&mut Silent, &mut buffer, room, start).is_some() {}
        let flow = sender.open(key(0, 0), Class::Normal, start).unwrap();
        let mut source = Pieces(size);
        let (mut buffers, mut bytes) = (0, 0);
        let begin = Instant::now();
        while begin.elapsed() < Duration::from_millis(300) {
            let now = Instant::now();
            for _ in 0..100 {
                let mut buffer = receiver.poll_spent().unwrap_or_default();
                if sender.pack(&mut source, &mut buffer, room, now).is_some() {
                    buffers += 1;
                    receiver.unpack(buffer, now);
                }
                receiver.accept(flow);
                let mut slices = Vec::new();
                receiver.deliverable(flow, &mut slices);
                let n = slices.iter().map(|slice| slice.len()).sum();
                receiver.delivered(flow, n, now);
                bytes += n;
                let mut back = Vec::new();
                if receiver.pack(&mut Silent, &mut back, room, now).is_some() {
                    sender.unpack(back, now);
                }
                while receiver.poll_event().is_some() || sender.poll_event().is_some() {}
            }
        }
        let each = begin.elapsed() / buffers;
        println!(
            "{name:<22} {each:>8.0?} a buffer, {:.1} Gbit/s",
            bytes as f64 * 8.0 / begin.elapsed().as_secs_f64() / 1e9
        );
    }
}

struct Silent;

impl Source for Silent {
    fn read(&mut self, _flow: FlowId, _into: &mut [u8]) -> Read {
        Read::Blocked
    }
}

/// All of them have ended.
struct Ended;

impl Source for Ended {
    fn read(&mut self, _flow: FlowId, _into: &mut [u8]) -> Read {
        Read::End
    }
}

/// A source of text that never ends.
struct Text;

impl Source for Text {
    fn read(&mut self, _flow: FlowId, into: &mut [u8]) -> Read {
        into.iter_mut()
            .zip(b"All work and no play. ".iter().cycle())
            .for_each(|(to, from)| *to = *from);
        Read::Bytes(into.len())
    }
}

/// What a rule asks of compression counts in both directions, and other flows are as they were.
#[test]
fn what_a_rule_asks_crosses_with_its_flow() {
    let now = crate::clock();
    let room = Room {
        segment: 1_400,
        urgent: 1_400,
        largest: 1_400,
        shrunk: 0,
        most: 65_536,
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
            Driver::new(Limits::default(), false),
            Driver::new(Limits::default(), true),
        ];
        for driver in &mut drivers {
            driver.on_connected(true, 100_000);
            driver.set_compression(Compression::default());
            driver.set_path(1_000_000, 1_400, 1_400);
        }
        let flow = drivers[0].open(key(0, 0), asked, now).unwrap();
        for side in 0..2 {
            drivers[side].readable(flow, now);
            let mut buffer = Vec::new();
            let packed = drivers[side]
                .pack(&mut Text, &mut buffer, room, now)
                .unwrap();
            drivers[side].shrink(&mut buffer, packed, now);
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
            assert_eq!(drivers[1 - side].flows[&flow].asked, asked);
            drivers[1].accept(flow);
        }
    }
}

/// Some tens of bytes that become thousands of messages would keep a lane busy for milliseconds
/// each.
#[test]
fn a_compressed_buffer_has_no_more_messages_than_bytes() {
    let now = crate::clock();
    let how = (
        How {
            compress: Compress::Auto,
            isolated: true,
        },
        true,
    );
    let squeeze = |raw: &[u8], count: u16| {
        let mut buffer = raw.to_vec();
        message::emit_routing(&mut buffer, 1);
        Shrinker::new(Compression::default()).shrink(
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
        let bad = squeeze(&raw, count);
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
            Shrinker::new(Compression::default()).shrink(&mut ours, how, &mut record, 100_000);
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
    let (mut few, mut count) = (squeeze(&late(20), 20), 20);
    while usize::from(count) < few.len() {
        count += 1;
        few = squeeze(&late(u32::from(count)), count);
    }
    let before = *driver.counters();
    driver.unpack(squeeze(&late(u32::from(count) - 1), count - 1), now);
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
    let ends = any_key(0);
    let key = PacketKey::new(17, ends.source, ends.destination).expect("UDP");
    let mut drivers = [
        Driver::new(Limits::default(), false),
        Driver::new(Limits::default(), true),
    ];
    for driver in &mut drivers {
        driver.on_connected(true, 100_000);
        driver.set_compression(Compression::default());
        driver.set_path(1_000_000, 1_400, 1_400);
    }
    let (mut sent, mut arrived, mut bytes, mut wire) = (0, 0, 0, 0);
    for turn in 0..100 {
        for largest in [1_400, 16_800, 64_400] {
            let room = Room {
                segment: 1_400,
                urgent: 1_400,
                largest,
                shrunk: largest,
                most: 65_536,
            };
            let now = now + turn * 10 * MS;
            for _ in 0..1_000 {
                let how = (Treatment::from(Class::Bulk), crate::Delivery::Timely);
                sent += usize::from(drivers[0].send_packet(&key, how, b"a", now).is_ok());
            }
            drivers[0].end_gathering(now + 5 * MS);
            let mut buffer = Vec::new();
            while let Some(packed) = drivers[0].pack(&mut Silent, &mut buffer, room, now) {
                bytes += buffer.len();
                drivers[0].shrink(&mut buffer, packed, now);
                wire += buffer.len();
                drivers[1].unpack(std::mem::take(&mut buffer), now);
                drivers[1].take_packets(|_| arrived += 1);
            }
            while let Some(packed) = drivers[1].pack(&mut Silent, &mut buffer, room, now) {
                drivers[1].shrink(&mut buffer, packed, now);
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
