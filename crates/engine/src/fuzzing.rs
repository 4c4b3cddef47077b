//! Entries for the fuzz targets: bytes in, no panic out.

use std::time::{Duration, Instant};

use crate::{
    Class, Compression, Delivery, FlowId, Limits, PacketKey, Read, Source, Status, StreamKey,
    compress::{COMPRESSED, Compress, Expander, How, Made, Proposal, Record, Shrinker},
    config::MOST_HISTORY,
    driver::{Driver, Room},
    message,
};

/// Reads a payload, and checks that what could be read is written back as it was.
pub fn payload(bytes: &[u8]) {
    let Ok(messages) = message::parse_payload(bytes) else { return };
    for (header, data) in messages {
        let mut again = [0; 64];
        header.emit(&mut again);
        let (parsed, length) = message::Header::parse(&again).expect("what we write we can read");
        assert_eq!(parsed, header);
        assert_eq!(data.len(), header.length as usize);
        assert_eq!(length, header.header_length());
    }
}

/// What was compressed, from a peer that says anything: payloads and proposals as they come from `bytes`. Half of them start from one that is good and
/// is bent by the bytes, since few others get past the first look.
pub fn expand(mut bytes: &[u8]) {
    let mut shrinker = Shrinker::new(Compression::default());
    let mut expander = Expander::new();
    let mut number = 0;
    let (how, mut records) = (How { compress: Compress::Auto, isolated: false }, [Record::default(); 2]);
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
                    let came = expander.expand(&good).expect("what we compress we can take apart");
                    assert_eq!(came, raw);
                }
            }
            2 => {
                let mut bent = vec![0; message::ROUTING];
                bent.extend_from_slice(&[7; 300]);
                message::emit_routing(&mut bent, 1);
                shrinker.shrink(&mut bent, (how, true), &mut records[1], 100_000);
                for (at, byte) in taken.chunks_exact(2).map(|two| (usize::from(two[0]), two[1])) {
                    if let Some(place) = bent.get_mut(at) {
                        *place ^= byte;
                    }
                }
                drop(expander.expand(&bent));
            }
            _ => {
                let proposal = Proposal { generation: *a, first: u32::from(*b), last: u32::from(*b) + number };
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

/// Takes payloads apart into a set of flows, as they come from `bytes`: each is preceded by two bytes of length, whose
/// highest bits choose what the near side does before it. Needs a `now`, because nothing here reads a clock.
pub fn unpack(mut bytes: &[u8], now: Instant) {
    let limits = Limits { flows: 16, exchanges: 16, flow_bytes: 1 << 20, peer_bytes: 2 << 20, ..Limits::default() };
    let mut driver = Driver::new(limits, false);
    driver.on_connected(true, 100_000);
    let mut now = now;
    for number in 0..2 {
        let source = ([10, 0, 0, number], 4000).into();
        let key = StreamKey::new(source, ([10, 9, 9, 9], 80).into()).expect("two addresses of IPv4");
        driver.open(key, Class::Normal, now).expect("the limits leave room for two flows");
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
    let ends: Vec<_> = driver.flows().map(|info| (info.key.source, info.key.destination)).collect();
    let mut flows: Vec<FlowId> = driver.flows().map(|info| info.flow).collect();
    flows.sort_unstable();
    let flow = flows.get(usize::from(choice) / 4 % flows.len().max(1)).copied().unwrap_or(FlowId(0));
    match choice % 4 {
        0 => driver.accept(flow),
        1 => {
            let mut slices = Vec::new();
            driver.deliverable(flow, &mut slices);
            let n = slices.iter().map(|slice| slice.len()).sum::<usize>().div_ceil(2);
            driver.delivered(flow, n, now);
        }
        2 => driver.reset(flow, Status::Reset),
        _ if choice & 4 == 0 => {
            let (source, destination) = *ends.get(usize::from(choice)).unwrap_or(&any);
            let key = PacketKey::new(17, source, destination).expect("the ends of another flow");
            // Lost or not, as datagrams are.
            let _ = driver.send_datagram(&key, (Class::Normal.into(), Delivery::Timely), &[7; 100], now);
            driver.take_datagrams(|arrived| assert!(arrived.bytes.len() < 4_096));
            driver.handle_timeout(now);
        }
        _ => {
            driver.readable(flow, now);
            driver.pack(
                &mut Short,
                &mut Vec::new(),
                Room { segment: 500, urgent: 458, largest: 1000, shrunk: 0, most: 1200 },
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

    /// A payload that is nearly right: numbers of few flows, small offsets, sometimes a byte changed.
    fn bent(random: &mut fastrand::Rng) -> Vec<u8> {
        use crate::Delivery;
        use crate::message::{Form, Function, Header, ROUTING, emit_routing};
        let mut payload = vec![0; ROUTING];
        let count = random.usize(0..4);
        for _ in 0..count {
            let datagram = Function::Datagram(Delivery::Timely);
            let function =
                [Function::Data, Function::Accepted, Function::Credit, Function::Reset, datagram][random.usize(0..5)];
            let data = function == Function::Data;
            let length = if data || function == datagram { random.u32(0..200) } else { 0 };
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
            let header = Header { function, fin: data && random.u8(0..8) == 0, flow, sequence, length, form };
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
}
