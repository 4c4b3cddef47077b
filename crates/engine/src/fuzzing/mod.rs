//! Entries for the fuzz targets: bytes in, no panic out.

use std::{
    collections::BTreeSet,
    time::{Duration, Instant},
};

use crate::{
    Class, Compress, Compression, Counters, Delivery, Event, FlowId, FlowKey, Limits, PacketKey,
    Read, Source, Status, StreamKey,
    compress::{
        compressor::Compressor,
        decompressor::Decompressor,
        dictionary::Made,
        format::{COMPRESSED, Proposal},
        record::Record,
        settings::How,
    },
    config::{MADE_FOR_EACH, MOST_HISTORY},
    driver::{Driver, buffer::Room},
    flow::{blocks::PacketParts, treatment::PacketTreatment},
    message,
};

mod hostile;

pub use hostile::{Dice, Hostile, is_allowed};

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
    let mut compressor = Compressor::new(Compression::default());
    let mut decompressor = Decompressor::new();
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
            0 => drop(decompressor.decompress(taken)),
            1 => {
                let mut good = vec![0; message::ROUTING];
                good.extend_from_slice(&taken.repeat(1 + usize::from(*b) % 32));
                message::emit_routing(&mut good, 1);
                let raw = good.clone();
                compressor.compress(&mut good, how, &mut records[0], 100_000);
                if good[0] == COMPRESSED {
                    number += 1;
                    // Without a dictionary, which only an answer would allow it to use.
                    let came = decompressor
                        .decompress(&good)
                        .expect("what we compress we can take apart");
                    assert_eq!(came, raw);
                }
            }
            2 => {
                let mut bent = vec![0; message::ROUTING];
                bent.extend_from_slice(&[7; 300]);
                message::emit_routing(&mut bent, 1);
                compressor.compress(&mut bent, how, &mut records[1], 100_000);
                for (at, byte) in taken
                    .chunks_exact(2)
                    .map(|two| (usize::from(two[0]), two[1]))
                {
                    if let Some(place) = bent.get_mut(at) {
                        *place ^= byte;
                    }
                }
                drop(decompressor.decompress(&bent));
            }
            _ => {
                let proposal = Proposal {
                    generation: *a,
                    first: u32::from(*b),
                    last: u32::from(*b) + number,
                };
                decompressor.handle_proposal(proposal);
                if let Some(Ok(work)) = decompressor.poll_ready()
                    && let Made::Decompress { serial, dictionary } = work.run().0
                {
                    decompressor.handle_made(serial, dictionary);
                }
            }
        }
        assert!(decompressor.held() <= MOST_HISTORY + (16 << 20));
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
    let mut driver = Driver::new(limits, false, &[7; 32]);
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
            // Lost or not, as packets may be.
            let _ = driver.send_packet(
                &key,
                PacketTreatment {
                    asked: Class::Normal.into(),
                    delivery: Delivery::Timely,
                },
                PacketParts::Alone(&[7; 100]),
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
                    compressed: 0,
                    max: 1200,
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

fn take_or_refuse(
    driver: &mut Driver,
    allowed: &mut BTreeSet<FlowId>,
    flow: FlowId,
    key: &FlowKey,
) {
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
    let mut driver = Driver::new(limits, false, &[7; 32]);
    driver.on_connected(true, 100_000);
    let (mut hostile, mut allowed, mut now) = (Hostile::new(true), BTreeSet::new(), now);
    let mut said = 0;
    for step in 0..40 {
        let payload = hostile.payload(64 << 10, &mut dice);
        said += payload.len() as u64;
        driver.unpack(payload, now);
        take_events(&mut driver, &mut allowed, step % 3 > 0, now);
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
        check_bounds(&driver, budget, said);
        now += Duration::from_millis(u64::from(dice(50)));
    }
}

/// What the near side does with the events: flows that are allowed are taken, and their data if it
/// `reads`.
fn take_events(driver: &mut Driver, allowed: &mut BTreeSet<FlowId>, reads: bool, now: Instant) {
    while let Some(event) = driver.poll_event() {
        match event {
            Event::Open { flow, key, .. } => take_or_refuse(driver, allowed, flow, &key),
            Event::PacketFlow { flow, key, .. } => take_or_refuse(driver, allowed, flow, &key),
            Event::Reset { flow, .. } | Event::Closed { flow } => drop(allowed.remove(&flow)),
            Event::Deliver { flow } => {
                assert!(allowed.contains(&flow), "{flow} is not allowed");
                let mut slices = Vec::new();
                driver.deliverable(flow, &mut slices);
                let n = slices.iter().map(|slice| slice.len()).sum::<usize>();
                if reads {
                    driver.delivered(flow, n, now);
                }
            }
            Event::Connected { .. }
            | Event::Silent
            | Event::Heard
            | Event::Dead
            | Event::Finish { .. }
            | Event::Accepted { .. } => {}
        }
    }
}

/// What a peer that has `said` this many bytes may have cost.
fn check_bounds(driver: &Driver, budget: usize, said: u64) {
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
}

#[cfg(test)]
mod tests;
