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
        let packet = Function::Packet(Delivery::Timely);
        let function = [
            Function::Data,
            Function::Accepted,
            Function::Credit,
            Function::Reset,
            packet,
        ][random.usize(0..5)];
        let data = function == Function::Data;
        let length = if data || function == packet {
            random.u32(0..200)
        } else {
            0
        };
        let key = any_key(random.usize(0..4));
        let form = match function {
            Function::Data if random.bool() => Form::Stream(key, crate::Class::Normal.into()),
            Function::Packet(_) if random.bool() => {
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

/// Addresses of a stream, of both families.
fn any_key(number: usize) -> crate::StreamKey {
    let (source, destination) = if number.is_multiple_of(3) {
        ("[fd10:1::2]:10000", "[fd10:9::1]:443")
    } else {
        ("10.1.0.2:10000", "10.9.0.1:443")
    };
    let mut source: std::net::SocketAddr = source.parse().unwrap();
    source.set_port(10_000 + number as u16);
    crate::StreamKey::new(source, destination.parse().unwrap()).unwrap()
}
