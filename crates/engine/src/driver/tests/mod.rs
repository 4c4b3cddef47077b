//! Two drivers with nothing between them but payloads that are delivered in any order, each once:
//! what the mover promises, and nothing more.

use std::{
    io::IoSlice,
    time::{Duration, Instant},
};

use super::{Driver, buffer::Room, memory::hard_limit};
use crate::{
    Breaches, Class, Compress, Compression, Counters, Delivery, Event, FlowId, Limits, Malformed,
    OpenError, PacketKey, Read, Source, Status, StreamKey, Treatment, Uncompressed,
    compress::{compressor::Compressor, format::COMPRESSED, settings::How},
    config::{
        CONTROL_SLACK, DICTIONARY, MADE_FOR_EACH, MAX_REFUSALS, MOST_ANSWERS, NOTICE, OPENING,
    },
    flow::{blocks::PacketParts, treatment::PacketTreatment},
    message::{self, Form, Function, Header},
};

// Not each of its tools is needed at both places.
#[allow(dead_code, unreachable_pub)]
#[path = "../../../tests/world/apps.rs"]
mod apps;

mod any_order;
mod bounds;
mod breaches;
mod compression;
mod ending;
mod in_blocks;
mod measure;
mod packing;

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

/// A driver as a peer with a seed makes it.
fn new_driver(limits: Limits, higher: bool) -> Driver {
    Driver::new(limits, higher, &[7; 32])
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
        let mut drivers = [new_driver(limits, false), new_driver(limits, true)];
        for driver in &mut drivers {
            driver.on_connected(true, limits.announced_credit());
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
                compressed: 0,
                max: 65_536,
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

struct Always;

impl Source for Always {
    fn read(&mut self, _flow: FlowId, into: &mut [u8]) -> Read {
        Read::Bytes(into.len())
    }
}

fn connected(limits: Limits) -> Driver {
    let mut driver = new_driver(limits, false);
    driver.on_connected(true, u32::MAX / 2);
    driver
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

/// A payload of these messages, which have no data.
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

/// The messages of the next buffer, of a source that says this whenever it is read; none: there is
/// no buffer.
fn packed(driver: &mut Driver, source: &mut dyn Source, now: Instant) -> Option<u8> {
    let room = Room {
        segment: 1424,
        urgent: 1424,
        largest: 1424,
        compressed: 0,
        max: 65_536,
    };
    let mut buffer = Vec::new();
    driver.end_gathering(now);
    let packed = driver
        .pack(source, &mut buffer, room, now)
        .map(|_| buffer[3]);
    driver.check_invariants();
    packed
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
