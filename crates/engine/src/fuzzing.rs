//! Entries for the fuzz targets: bytes in, no panic out.

use std::{
    collections::HashSet,
    net::SocketAddr,
    time::{Duration, Instant},
};

use crate::{
    Class, Compression, Counters, Delivery, Event, FlowId, FlowKey, Limits, PacketKey, Read,
    Source, Status, StreamKey, Treatment,
    compress::{COMPRESSED, Compress, Expander, HEADER, How, Made, Proposal, Record, Shrinker},
    config::{MADE_FOR_EACH, MOST_HISTORY},
    driver::{Driver, Room},
    message::{self, Form, Function, Header},
};

/// Reads a payload, and checks that what could be read is written back as it was.
pub fn payload(bytes: &[u8]) {
    let Ok(messages) = message::parse_payload(bytes) else {
        return;
    };
    for (header, data) in messages {
        let mut again = [0; 64];
        header.emit(&mut again);
        let (parsed, length) = message::Header::parse(&again).expect("what we write we can read");
        assert_eq!(parsed, header);
        assert_eq!(data.len(), header.length as usize);
        assert_eq!(length, header.header_length());
    }
}

/// What was compressed, from a peer that says anything: payloads and proposals as they come from
/// `bytes`. Half of them start from one that is good and is bent by the bytes, since few others get
/// past the first look.
pub fn expand(mut bytes: &[u8]) {
    let mut shrinker = Shrinker::new(Compression::default());
    let mut expander = Expander::new();
    let mut number = 0;
    let (how, mut records) = (
        How {
            compress: Compress::Auto,
            isolated: false,
        },
        [Record::default(); 2],
    );
    while let [kind, a, b, rest @ ..] = bytes {
        bytes = rest;
        let length = (usize::from(*a) << 4 | usize::from(*b) >> 4).min(bytes.len());
        let (taken, rest) = bytes.split_at(length);
        bytes = rest;
        match kind % 4 {
            0 => drop(expander.expand(taken)),
            1 => {
                let mut good = vec![0; message::ROUTING];
                good.extend_from_slice(&taken.repeat(1 + usize::from(*b) % 32));
                message::emit_routing(&mut good, 1);
                let raw = good.clone();
                shrinker.shrink(&mut good, (how, true), &mut records[0], 100_000);
                if good[0] == COMPRESSED {
                    number += 1;
                    // Without a dictionary, which only an answer would allow it to use.
                    let came = expander
                        .expand(&good)
                        .expect("what we compress we can take apart");
                    assert_eq!(came, raw);
                }
            }
            2 => {
                let mut bent = vec![0; message::ROUTING];
                bent.extend_from_slice(&[7; 300]);
                message::emit_routing(&mut bent, 1);
                shrinker.shrink(&mut bent, (how, true), &mut records[1], 100_000);
                for (at, byte) in taken
                    .chunks_exact(2)
                    .map(|two| (usize::from(two[0]), two[1]))
                {
                    if let Some(place) = bent.get_mut(at) {
                        *place ^= byte;
                    }
                }
                drop(expander.expand(&bent));
            }
            _ => {
                let proposal = Proposal {
                    generation: *a,
                    first: u32::from(*b),
                    last: u32::from(*b) + number,
                };
                expander.on_proposal(proposal);
                if let Some(Ok(work)) = expander.poll_ready()
                    && let Made::Expand { serial, dictionary } = work.run().0
                {
                    expander.on_made(serial, dictionary);
                }
            }
        }
        assert!(expander.held() <= MOST_HISTORY + (16 << 20));
    }
}

/// Takes payloads apart into a set of flows, as they come from `bytes`: each is preceded by two
/// bytes of length, whose highest bits choose what the near side does before it. Needs a `now`,
/// because nothing here reads a clock.
pub fn unpack(mut bytes: &[u8], now: Instant) {
    let limits = Limits {
        flows: 16,
        packet_flows: 16,
        flow_bytes: 1 << 20,
        peer_bytes: 2 << 20,
        ..Limits::default()
    };
    let mut driver = Driver::new(limits, false);
    driver.on_connected(true, 100_000);
    let mut now = now;
    for number in 0..2 {
        let source = ([10, 0, 0, number], 4000).into();
        let key =
            StreamKey::new(source, ([10, 9, 9, 9], 80).into()).expect("two addresses of IPv4");
        driver
            .open(key, Class::Normal, now)
            .expect("the limits leave room for two flows");
    }
    while let [high, low, rest @ ..] = bytes {
        let length = usize::from(u16::from_be_bytes([high & 0x0f, *low])).min(rest.len());
        near_side(&mut driver, high >> 4, now);
        driver.unpack(rest[..length].to_vec(), now);
        while let Some(work) = driver.poll_work() {
            driver.on_worked(work.run());
        }
        driver.check_invariants();
        bytes = &rest[length..];
        now += Duration::from_millis(u64::from(*low));
    }
    while driver.poll_event().is_some() {}
}

fn near_side(driver: &mut Driver, choice: u8, now: Instant) {
    let any = (([10, 0, 0, 1], 53).into(), ([10, 9, 9, 9], 53).into());
    let ends: Vec<_> = driver
        .flows()
        .map(|info| (info.key.source, info.key.destination))
        .collect();
    let mut flows: Vec<FlowId> = driver.flows().map(|info| info.flow).collect();
    flows.sort_unstable();
    let flow = flows
        .get(usize::from(choice) / 4 % flows.len().max(1))
        .copied()
        .unwrap_or(FlowId(0));
    match choice % 4 {
        0 => driver.accept(flow),
        1 => {
            let mut slices = Vec::new();
            driver.deliverable(flow, &mut slices);
            let n = slices
                .iter()
                .map(|slice| slice.len())
                .sum::<usize>()
                .div_ceil(2);
            driver.delivered(flow, n, now);
        }
        2 => driver.reset(flow, Status::Reset),
        _ if choice & 4 == 0 => {
            let (source, destination) = *ends.get(usize::from(choice)).unwrap_or(&any);
            let key = PacketKey::new(17, source, destination).expect("the ends of another flow");
            // Lost or not, as datagrams are.
            let _ = driver.send_packet(
                &key,
                (Class::Normal.into(), Delivery::Timely),
                &[7; 100],
                now,
            );
            driver.take_packets(|arrived| assert!(arrived.bytes.len() < 4_096));
            driver.handle_timeout(now);
        }
        _ => {
            driver.readable(flow, now);
            driver.pack(
                &mut Short,
                &mut Vec::new(),
                Room {
                    segment: 500,
                    urgent: 458,
                    largest: 1000,
                    shrunk: 0,
                    most: 1200,
                },
                now,
            );
        }
    }
    driver.check_invariants();
}

/// A source that always has a little.
struct Short;

impl Source for Short {
    fn read(&mut self, _flow: FlowId, into: &mut [u8]) -> Read {
        Read::Bytes(into.len().min(300))
    }
}

/// A peer that says anything: payloads with messages of all kinds, well formed and not, in any
/// order.
pub struct Hostile {
    /// The bit of the flows that it opens.
    side: u32,
    next: u32,
    /// Where each of its last flows is.
    offsets: [u32; 16],
    shrinker: Shrinker,
    record: Record,
    /// Of its last compressed buffer that was made by hand.
    number: u32,
    generation: u8,
}

/// Gives a number below the one that it is told, which is at least one.
pub type Dice<'a> = &'a mut dyn FnMut(u32) -> u32;

impl Hostile {
    /// `higher`: its public key is the higher one.
    pub fn new(higher: bool) -> Hostile {
        Hostile {
            side: if higher { 1 << 31 } else { 0 },
            next: 0,
            offsets: [0; 16],
            shrinker: Shrinker::new(Compression::default()),
            record: Record::default(),
            number: 1_000_000,
            generation: 0,
        }
    }

    /// The next payload, of at most `most` bytes.
    pub fn payload(&mut self, most: usize, dice: Dice<'_>) -> Vec<u8> {
        let mut payload = match dice(40) {
            0 => (0..dice(600)).map(|_| dice(256) as u8).collect(),
            1..=3 => self.small_compressed(dice),
            _ => self.messages(most, dice),
        };
        match dice(60) {
            // Once it cannot be taken apart, the session is over.
            0 => {
                let at = dice(payload.len().max(1) as u32) as usize;
                payload
                    .get_mut(at)
                    .into_iter()
                    .for_each(|byte| *byte ^= 1 << dice(8));
            }
            1 => payload.truncate(dice(payload.len() as u32 + 1) as usize),
            2..20 if payload.first() == Some(&1) => {
                let how = (
                    How {
                        compress: Compress::Auto,
                        isolated: dice(4) == 0,
                    },
                    true,
                );
                self.shrinker
                    .shrink(&mut payload, how, &mut self.record, 100_000);
            }
            _ => {}
        }
        payload
    }

    /// So many like messages of a flow that is over or never was.
    fn late(&self, count: u16) -> Vec<u8> {
        let flow = FlowId(self.side | ((1 << 31) - 1));
        let header = Header {
            function: Function::Credit,
            fin: false,
            flow,
            sequence: 0,
            length: 0,
            form: Form::Short,
        };
        let mut message = [0; message::SHORT];
        header.emit(&mut message);
        message.repeat(count.into())
    }

    /// Numbered, and smaller than any sender makes them: nothing, a few bytes, or thousands of
    /// messages.
    fn small_compressed(&mut self, dice: Dice<'_>) -> Vec<u8> {
        let count = if dice(8) == 0 {
            1 + dice(16_000) as u16
        } else {
            0
        };
        let raw = match count {
            0 => vec![0; dice(200) as usize],
            _ => self.late(count),
        };
        let mut frame = vec![0; zstd_safe::compress_bound(raw.len())];
        let length = zstd_safe::compress(&mut frame[..], &raw, 1).expect("it has room");
        let mut payload = vec![0; HEADER];
        payload.extend_from_slice(&frame[4..length]);
        self.number = self.number.wrapping_add(dice(3));
        let inside = (payload.len() - message::ROUTING) as u32;
        payload[0] = COMPRESSED;
        payload[2..4].copy_from_slice(&count.to_be_bytes());
        payload[4..8].copy_from_slice(&inside.to_be_bytes());
        payload[8..12].copy_from_slice(&self.number.to_be_bytes());
        payload[12..16].copy_from_slice(&(raw.len() as u32).to_be_bytes());
        payload
    }

    fn messages(&mut self, most: usize, dice: Dice<'_>) -> Vec<u8> {
        let many = match dice(6) {
            0 => 8_000,
            1 => 400,
            _ => 20,
        };
        let (kind, count) = (dice(12), 1 + dice(many));
        let mut payload = vec![0; message::ROUTING];
        let mut messages = 0;
        for _ in 0..count {
            let header = match kind {
                0 => self.opening(dice),
                1 => self.early(dice),
                2 => self.proposal(dice),
                3 => self.jump(dice),
                4 => self.datagram(dice),
                5 => self.bulk(dice),
                _ => self.any(dice),
            };
            let end = payload.len() + header.header_length() + header.length as usize;
            if end > most || messages == u16::MAX {
                break;
            }
            let at = payload.len();
            payload.resize(end, 7);
            header.emit(&mut payload[at..]);
            messages += 1;
        }
        message::emit_routing(&mut payload, messages);
        payload
    }

    fn any(&mut self, dice: Dice<'_>) -> Header {
        match dice(12) {
            0 | 1 => self.opening(dice),
            2 => self.early(dice),
            3 => self.proposal(dice),
            4 => self.jump(dice),
            5 | 6 => self.datagram(dice),
            7 | 8 => self.in_order(dice),
            9 => Header {
                fin: true,
                ..self.in_order(dice)
            },
            10 => {
                let function = if dice(2) == 0 {
                    Function::Credit
                } else {
                    Function::Accepted
                };
                let sequence = if dice(2) == 0 {
                    dice(1 << 20)
                } else {
                    dice(u32::MAX)
                };
                Header {
                    function,
                    length: 0,
                    sequence,
                    ..self.in_order(dice)
                }
            }
            _ => {
                let form = Form::Status(dice(256) as u8, Status::from_number(dice(12) as u8));
                Header {
                    function: Function::Reset,
                    length: 0,
                    form,
                    ..self.in_order(dice)
                }
            }
        }
    }

    /// One of its flows, or one of ours, and its place in `offsets`.
    fn flow(&mut self, dice: Dice<'_>) -> (FlowId, usize) {
        let back = dice(16);
        let side = if dice(8) == 0 {
            self.side ^ 1 << 31
        } else {
            self.side
        };
        let number = self.next.wrapping_sub(back) & !(1 << 31);
        (FlowId(side | number), number as usize % 16)
    }

    fn opening(&mut self, dice: Dice<'_>) -> Header {
        self.next = (self.next + 1) & !(1 << 31);
        self.offsets[self.next as usize % 16] = 0;
        let length = if dice(3) == 0 { dice(2_000) } else { dice(4) };
        self.offsets[self.next as usize % 16] += length;
        let function = if dice(6) == 0 {
            Function::Datagram(Delivery::Timely)
        } else {
            Function::Data
        };
        let flow = FlowId(self.side | self.next);
        let form = opening_form(function, dice);
        Header {
            function,
            fin: false,
            flow,
            sequence: 0,
            length,
            form,
        }
    }

    /// Much data of another flow each time, which nobody may take.
    fn bulk(&mut self, dice: Dice<'_>) -> Header {
        let opening = self.opening(dice);
        Header {
            function: Function::Data,
            length: dice(60_000),
            ..opening
        }
    }

    fn in_order(&mut self, dice: Dice<'_>) -> Header {
        let (flow, place) = self.flow(dice);
        let length = if dice(3) == 0 {
            dice(30_000)
        } else {
            dice(100)
        };
        let sequence = self.offsets[place];
        self.offsets[place] = sequence.wrapping_add(length);
        Header {
            function: Function::Data,
            fin: false,
            flow,
            sequence,
            length,
            form: Form::Short,
        }
    }

    /// A byte or a few with a gap before it.
    fn early(&mut self, dice: Dice<'_>) -> Header {
        self.offsets[self.next as usize % 16] += 2;
        let flow = FlowId(self.side | self.next);
        let back = dice(8) / 7;
        let sequence = self.offsets[self.next as usize % 16].wrapping_sub(back);
        Header {
            function: Function::Data,
            fin: false,
            flow,
            sequence,
            length: 1,
            form: Form::Short,
        }
    }

    fn proposal(&mut self, dice: Dice<'_>) -> Header {
        self.generation = self.generation.wrapping_add(1);
        let function = if dice(8) == 0 {
            Function::Holds
        } else {
            Function::Dictionary
        };
        let (first, last) = if dice(2) == 0 {
            (dice(50), dice(400))
        } else {
            (
                self.number.saturating_sub(dice(5_000)),
                self.number + dice(2),
            )
        };
        let form = Form::Status(self.generation, Status::None);
        Header {
            function,
            fin: false,
            flow: FlowId(first),
            sequence: last,
            length: 0,
            form,
        }
    }

    /// A reset of a flow far ahead: the window of numbers moves.
    fn jump(&mut self, dice: Dice<'_>) -> Header {
        self.next = (self.next + if dice(2) == 0 { 65_535 } else { dice(200_000) }) & !(1 << 31);
        let form = Form::Status(6, Status::Reset);
        let flow = FlowId(self.side | self.next);
        Header {
            function: Function::Reset,
            fin: false,
            flow,
            sequence: 0,
            length: 0,
            form,
        }
    }

    fn datagram(&mut self, dice: Dice<'_>) -> Header {
        let (flow, place) = self.flow(dice);
        let ahead = if dice(20) == 0 {
            dice(100_000)
        } else {
            dice(4)
        };
        self.offsets[place] = self.offsets[place].wrapping_add(ahead);
        let sequence = self.offsets[place].wrapping_sub(dice(40));
        let delivery = Delivery::from_number(dice(3) as u8).expect("there are three");
        let length = if dice(10) == 0 { dice(9_000) } else { dice(60) };
        let function = Function::Datagram(delivery);
        let form = if dice(4) == 0 {
            opening_form(function, dice)
        } else {
            Form::Short
        };
        Header {
            function,
            fin: false,
            flow,
            sequence,
            length,
            form,
        }
    }
}

/// The form that opens a flow of the kind that the function carries, and now and then of the other
/// kind.
fn opening_form(function: Function, dice: Dice<'_>) -> Form {
    let (source, destination) = ends(dice);
    let is_stream = (function == Function::Data) != (dice(32) == 0);
    if is_stream {
        Form::Stream(
            StreamKey::new(source, destination).expect("both are IPv4"),
            treatment(dice),
        )
    } else {
        let protocol = [17, 17, 1, 2, 47][dice(5) as usize];
        let key = PacketKey::new(protocol, source, destination).expect("both are IPv4");
        Form::Packets(key, treatment(dice))
    }
}

/// Addresses: those to 10.9.0.0/16 are allowed by [`is_allowed`], and the others are not.
fn ends(dice: Dice<'_>) -> (SocketAddr, SocketAddr) {
    let source = ([10, 0, 0, dice(200) as u8], dice(60_000) as u16).into();
    (
        source,
        (
            [10, 9 + dice(2) as u8, 0, dice(200) as u8],
            dice(60_000) as u16,
        )
            .into(),
    )
}

fn treatment(dice: Dice<'_>) -> Treatment {
    let class = Class::ALL[dice(4) as usize];
    Treatment {
        in_order: dice(2) == 0,
        isolated: dice(4) == 0,
        ..class.into()
    }
}

/// What the worlds with a [`Hostile`] let it reach.
pub fn is_allowed(key: &FlowKey) -> bool {
    matches!(key.destination.ip(), std::net::IpAddr::V4(to) if to.octets()[..2] == [10, 9])
}

fn take_or_refuse(driver: &mut Driver, allowed: &mut HashSet<FlowId>, flow: FlowId, key: &FlowKey) {
    if is_allowed(key) {
        allowed.insert(flow);
        driver.accept(flow);
    } else {
        driver.reset(flow, Status::NotAllowed);
    }
}

/// Steps that a peer may have cost with all that it has said: sixteen for each message, and for
/// each buffer as many as its bytes pay for when a dictionary is made of buffers as small as there
/// are.
pub fn most_steps(counters: &Counters) -> u64 {
    let said = counters.traffic.messages_in
        + counters.traffic.buffers_in
        + counters.malformed.total()
        + counters.flows.opened_here;
    16 * said + MADE_FOR_EACH as u64 * counters.traffic.buffers_in + 20_000
}

/// Payloads of a [`Hostile`] whose dice are these bytes, and what the near side does between them:
/// nothing that is not allowed is given on, and what is held and the steps that it takes stay
/// bounded.
pub fn messages(bytes: &[u8], now: Instant) {
    let mut rest = bytes.iter();
    // Dice that run out are all zero.
    let mut dice = |most: u32| {
        let mut number = 0_u32;
        for _ in 0..if most > 256 { 3 } else { 1 } {
            number = number << 8 | u32::from(rest.next().copied().unwrap_or(0));
        }
        number % most.max(1)
    };
    let budget = 4 << 20;
    let limits = Limits {
        flows: 300,
        packet_flows: 300,
        peer_bytes: budget,
        ..Limits::default()
    };
    let mut driver = Driver::new(limits, false);
    driver.on_connected(true, 100_000);
    let (mut hostile, mut allowed, mut now) = (Hostile::new(true), HashSet::new(), now);
    let mut said = 0;
    for step in 0..40 {
        let payload = hostile.payload(64 << 10, &mut dice);
        said += payload.len() as u64;
        driver.unpack(payload, now);
        while let Some(event) = driver.poll_event() {
            match event {
                Event::Open { flow, key, .. } => {
                    take_or_refuse(&mut driver, &mut allowed, flow, &key)
                }
                Event::PacketFlow { flow, key, .. } => {
                    take_or_refuse(&mut driver, &mut allowed, flow, &key)
                }
                Event::Reset { flow, .. } | Event::Closed { flow } => drop(allowed.remove(&flow)),
                Event::Deliver { flow } => {
                    assert!(allowed.contains(&flow), "{flow} is not allowed");
                    let mut slices = Vec::new();
                    driver.deliverable(flow, &mut slices);
                    let n = slices.iter().map(|slice| slice.len()).sum::<usize>();
                    if step % 3 > 0 {
                        driver.delivered(flow, n, now);
                    }
                }
                _ => {}
            }
        }
        driver.take_packets(|arrived| {
            let allowed = allowed.contains(&arrived.flow) && is_allowed(arrived.key);
            assert!(allowed || arrived.is_reply, "{arrived:?} is not allowed");
        });
        near_side(&mut driver, dice(16) as u8, now);
        while let Some(work) = driver.poll_work() {
            driver.on_worked(work.run());
        }
        driver.handle_timeout(now);
        if driver.take_broken() {
            driver.on_dead(Status::Protocol);
            driver.on_connected(true, 100_000);
        }
        driver.check_invariants();
        assert!(
            driver.held() <= budget + budget / 4,
            "{} bytes held",
            driver.held()
        );
        assert!(
            driver.held_by_queues() <= 16 << 20
                && driver.held_by_compression() <= MOST_HISTORY + (32 << 20)
        );
        let counters = driver.counters();
        assert!(
            counters.walked <= most_steps(counters),
            "too many steps: {counters:?}"
        );
        assert!(
            counters.traffic.messages_in <= said,
            "{said} bytes are too few: {counters:?}"
        );
        now += Duration::from_millis(u64::from(dice(50)));
    }
}

#[cfg(test)]
mod tests {
    /// Not fuzzing proper, but every run of the tests throws some bent payloads at the parsers.
    #[test]
    fn bent_payloads_do_not_panic() {
        for seed in 0..3000 {
            let random = &mut fastrand::Rng::with_seed(seed);
            let mut bytes = Vec::new();
            for _ in 0..random.usize(1..30) {
                let mut payload = bent(random);
                payload.truncate(0xfff);
                super::payload(&payload);
                let length = payload.len() as u16 | u16::from(random.u8(0..16)) << 12;
                bytes.extend(length.to_be_bytes());
                bytes.extend(payload);
            }
            super::unpack(&bytes, crate::clock());
        }
    }

    /// A payload that is nearly right: numbers of few flows, small offsets, sometimes a byte
    /// changed.
    fn bent(random: &mut fastrand::Rng) -> Vec<u8> {
        use crate::Delivery;
        use crate::message::{Form, Function, Header, ROUTING, emit_routing};
        let mut payload = vec![0; ROUTING];
        let count = random.usize(0..4);
        for _ in 0..count {
            let datagram = Function::Datagram(Delivery::Timely);
            let function = [
                Function::Data,
                Function::Accepted,
                Function::Credit,
                Function::Reset,
                datagram,
            ][random.usize(0..5)];
            let data = function == Function::Data;
            let length = if data || function == datagram {
                random.u32(0..200)
            } else {
                0
            };
            let key = crate::driver::tests::any_key(random.usize(0..4));
            let form = match function {
                Function::Data if random.bool() => Form::Stream(key, crate::Class::Normal.into()),
                Function::Datagram(_) if random.bool() => {
                    let key = crate::PacketKey::new(17, key.source, key.destination).unwrap();
                    Form::Packets(key, crate::Class::Normal.into())
                }
                Function::Reset => Form::Status(6, crate::Status::from_number(random.u8(0..10))),
                _ => Form::Short,
            };
            let flow = crate::FlowId(random.u32(0..4) | if random.bool() { 1 << 31 } else { 0 });
            let sequence = random.u32(0..8) * 100;
            let header = Header {
                function,
                fin: data && random.u8(0..8) == 0,
                flow,
                sequence,
                length,
                form,
            };
            let at = payload.len();
            payload.resize(at + header.header_length() + length as usize, 1);
            header.emit(&mut payload[at..]);
        }
        emit_routing(&mut payload, count as u16);
        if random.u8(0..4) == 0 {
            let at = random.usize(0..payload.len());
            payload[at] = random.u8(..);
        }
        payload
    }

    /// A short run of what the fuzzer does for hours.
    #[test]
    fn messages_of_any_kind_are_bounded() {
        for seed in 0..400 {
            let random = &mut fastrand::Rng::with_seed(seed);
            let bytes: Vec<u8> = (0..random.usize(100..60_000))
                .map(|_| random.u8(..))
                .collect();
            super::messages(&bytes, crate::clock());
        }
    }
}
