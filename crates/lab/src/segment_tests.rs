use super::*;

/// A frame as the kernel would hand it out: `payload` bytes in segments of `segment`.
fn frame(v6: bool, protocol: u8, payload: usize, segment: usize) -> Vec<u8> {
    let transport = if protocol == TCP { 32 } else { 8 };
    let network = if v6 { 40 } else { 20 };
    let length = network + transport + payload;
    let mut packet = vec![0u8; network + transport];
    if v6 {
        packet[0] = 0x60;
        packet[4..6].copy_from_slice(&((length - 40) as u16).to_be_bytes());
        packet[6] = protocol;
        packet[8..40].copy_from_slice(&std::array::from_fn::<u8, 32, _>(|i| i as u8));
    } else {
        packet[0] = 0x45;
        packet[2..4].copy_from_slice(&(length as u16).to_be_bytes());
        packet[4..6].copy_from_slice(&65_530u16.to_be_bytes());
        packet[9] = protocol;
        packet[12..20].copy_from_slice(&[10, 0, 0, 1, 10, 0, 0, 2]);
    }
    let head = &mut packet[network..];
    if protocol == TCP {
        head[4..8].copy_from_slice(&(u32::MAX - 100).to_be_bytes());
        head[12] = 8 << 4;
        head[13] = TCP_FIN | TCP_PUSH | TCP_CWR | 0x10;
    } else {
        head[4..6].copy_from_slice(&((8 + payload) as u16).to_be_bytes());
    }
    packet.extend((0..payload).map(|i| (i % 251) as u8));
    let mut header = [0u8; VIRTIO];
    header[0] = NEEDS_CHECKSUM;
    header[1] = match (protocol, v6) {
        (TCP, false) => GSO_TCP_V4,
        (TCP, true) => GSO_TCP_V6,
        _ => GSO_UDP,
    };
    header[4..6].copy_from_slice(&(segment as u16).to_ne_bytes());
    header[6..8].copy_from_slice(&(network as u16).to_ne_bytes());
    header[8..10].copy_from_slice(&(if protocol == TCP { 16u16 } else { 6 }).to_ne_bytes());
    [header.to_vec(), packet].concat()
}

/// Whether the checksums are right, as a receiver would count them.
fn intact(mut frame: Vec<u8>) -> bool {
    finish_checksum(&mut frame);
    let packet = &frame[VIRTIO..];
    let network = network_length(packet).unwrap();
    let protocol = protocol(packet).unwrap();
    let addresses = if network == 40 {
        &packet[8..40]
    } else {
        &packet[12..20]
    };
    let pseudo = sum(addresses) + u64::from(protocol) + (packet.len() - network) as u64;
    let header = network == 40 || fold(sum(&packet[..network])) == 0xffff;
    header && fold(pseudo + sum(&packet[network..])) == 0xffff
}

fn kinds() -> impl Iterator<Item = (bool, u8)> {
    [(false, TCP), (true, TCP), (false, UDP), (true, UDP)].into_iter()
}

#[test]
fn each_segment_has_its_own_length_and_headers() {
    for (v6, protocol) in kinds() {
        let whole = frame(v6, protocol, 3_500, 1_000);
        let found = Super::parse(&whole).unwrap();
        assert_eq!(found.count(), 4);
        let mut payload = Vec::new();
        for i in 0..4 {
            let mut out = Vec::new();
            found.cut(&whole, i..i + 1, &mut out);
            assert_eq!(out.len() - VIRTIO, found.length(i));
            assert!(
                intact(out.clone()),
                "v6 {v6} protocol {protocol} segment {i}"
            );
            assert_eq!(Super::parse(&out), None, "one segment is no super-packet");
            let packet = &out[VIRTIO..];
            let transport = &packet[found.transport..];
            if v6 {
                assert_eq!(
                    u16::from_be_bytes([packet[4], packet[5]]) as usize,
                    packet.len() - 40
                );
            } else {
                assert_eq!(
                    u16::from_be_bytes([packet[2], packet[3]]) as usize,
                    packet.len()
                );
                assert_eq!(
                    u16::from_be_bytes([packet[4], packet[5]]),
                    65_530u16.wrapping_add(i as u16)
                );
            }
            if protocol == TCP {
                let sequence = u32::from_be_bytes(transport[4..8].try_into().unwrap());
                assert_eq!(sequence, (u32::MAX - 100).wrapping_add(1_000 * i as u32));
                assert_eq!(
                    transport[13] & (TCP_FIN | TCP_PUSH) != 0,
                    i == 3,
                    "only the last pushes and ends"
                );
                assert_eq!(transport[13] & TCP_CWR != 0, i == 0);
            } else {
                assert_eq!(
                    u16::from_be_bytes([transport[4], transport[5]]) as usize,
                    transport.len()
                );
            }
            payload.extend_from_slice(&packet[found.headers..]);
        }
        assert_eq!(payload, whole[VIRTIO + found.headers..]);
    }
}

#[test]
fn a_run_is_a_smaller_super_packet() {
    for (v6, protocol) in kinds() {
        let whole = frame(v6, protocol, 10_000, 1_000);
        let found = Super::parse(&whole).unwrap();
        let mut out = Vec::new();
        found.cut(&whole, 3..7, &mut out);
        let run = Super::parse(&out).unwrap();
        assert_eq!((run.count(), run.payload, run.segment), (4, 4_000, 1_000));
        assert!(intact(out.clone()));
        let mut again = Vec::new();
        run.cut(&out, 1..2, &mut again);
        let mut direct = Vec::new();
        found.cut(&whole, 4..5, &mut direct);
        assert_eq!(again, direct, "cutting twice is cutting once");
    }
}

#[test]
fn corruption_is_found_by_the_checksum() {
    let mut dice = fastrand::Rng::with_seed(3);
    for (v6, protocol) in kinds() {
        for payload in [2_000, 1_001] {
            let whole = frame(v6, protocol, payload, 1_000);
            let mut out = Vec::new();
            Super::parse(&whole).unwrap().cut(&whole, 1..2, &mut out);
            for _ in 0..100 {
                let mut bad = out.clone();
                corrupt(&mut bad, &mut dice);
                assert_eq!(bad[..VIRTIO], [0; VIRTIO], "the receiver must not trust it");
                assert!(!intact(bad));
            }
        }
    }
}

#[test]
fn nonsense_is_no_super_packet_and_never_panics() {
    let mut dice = fastrand::Rng::with_seed(9);
    let whole = frame(true, TCP, 3_000, 1_000);
    for cut in 0..100 {
        let _ = Super::parse(&whole[..cut]);
        corrupt(&mut whole[..cut].to_vec(), &mut dice);
    }
    for _ in 0..100_000 {
        let mut bad = whole[..dice.usize(0..400)].to_vec();
        for _ in 0..dice.usize(0..20) {
            let at = dice.usize(0..bad.len().max(1));
            if let Some(byte) = bad.get_mut(at) {
                *byte = dice.u8(..);
            }
        }
        if let Some(found) = Super::parse(&bad) {
            let mut out = Vec::new();
            found.cut(&bad, 0..1, &mut out);
            found.cut(&bad, found.count() - 1..found.count(), &mut out);
        }
        corrupt(&mut bad, &mut dice);
    }
    assert_eq!(Super::parse(&[]), None);
}

/// Found by the fuzzer: cutting read flags past the end of the piece.
#[test]
fn a_tcp_header_shorter_than_any_is_no_super_packet() {
    for v6 in [false, true] {
        let mut whole = frame(v6, TCP, 40, 1);
        whole[VIRTIO + if v6 { 40 } else { 20 } + 12] = 2 << 4;
        assert_eq!(Super::parse(&whole), None);
    }
}

/// Found beside it: the checksum of the network header was counted past the end of the piece.
#[test]
fn a_network_header_beyond_the_transport_is_no_super_packet() {
    let mut whole = frame(false, UDP, 40, 1);
    whole[VIRTIO] = 0x4f;
    assert_eq!(Super::parse(&whole), None);
}
