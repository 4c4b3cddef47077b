use std::net::{Ipv6Addr, SocketAddr};

use super::*;
use crate::ip::{
    AUTHENTICATION, DESTINATION, FRAGMENT, Fragment, HOP_BY_HOP, ROUTING, UDP_HEADER, parse,
};
use crate::packets::udp::emit;
use crate::packets::udp::tests::{key, udp};
use crate::table::protocols::{ICMP, ICMP_V6};

fn pack(packet: &[u8], parsed: &Parsed, out: &mut Vec<u8>) {
    let form = super::pack(packet.len(), parsed);
    out.extend_from_slice(form.front());
    out.extend_from_slice(&packet[form.body]);
}

#[test]
fn a_plain_packet_crosses_without_its_headers_and_comes_out_the_same() {
    for v6 in [false, true] {
        for payload in [&b""[..], b"a", b"even", b"something odd"] {
            let packet = udp(v6, payload);
            let seen = parse(&packet).unwrap();
            assert_eq!(
                (seen.key, seen.opens, seen.is_error),
                (key(v6), true, false)
            );
            let mut crossed = Vec::new();
            pack(&packet, &seen, &mut crossed);
            assert_eq!(crossed.len(), 4 + payload.len());
            let mut out = Vec::new();
            assert_eq!(unpack(&crossed, &key(v6), 1, &mut out), Ok(None));
            assert_eq!(out, packet);
            let gre = PacketKey::new(47, key(v6).source, key(v6).destination).unwrap();
            assert_eq!(unpack(&crossed, &gre, 1, &mut out), Err(Refused::Foreign));
        }
    }
}

#[test]
fn each_hop_takes_one_off_the_limit() {
    for v6 in [false, true] {
        let packet = udp(v6, b"on its way");
        let mut plain = Vec::new();
        pack(&packet, &parse(&packet).unwrap(), &mut plain);
        let whole = [&[WHOLE][..], &packet].concat();
        for mut form in [plain, whole] {
            for hops in (1..63).rev() {
                assert!(take_hop(&mut form));
                let mut out = Vec::new();
                assert_eq!(unpack(&form, &key(v6), 9, &mut out), Ok(None));
                assert_eq!(out[if v6 { 7 } else { 8 }], hops);
                assert!(
                    v6 || Sum::default().add(&out[..20]).finish() == 0,
                    "the header's checksum is right"
                );
            }
            assert!(!take_hop(&mut form), "the last hop");
        }
    }
    assert!(!take_hop(&mut [0, 0x45]) && !take_hop(&mut []) && !take_hop(&mut [9, 9, 9, 9]));
}

#[test]
fn a_flow_label_crosses_too() {
    let mut packet = Vec::new();
    assert!(emit(
        &key(true),
        Head {
            class: 2,
            hops: 9,
            flags: 1,
            label: 0xf_1234
        },
        b"x",
        1,
        &mut packet
    ));
    let mut crossed = Vec::new();
    pack(&packet, &parse(&packet).unwrap(), &mut crossed);
    assert_eq!(crossed, [2, 2, 9, 1, 0xf, 0x12, 0x34, b'x']);
    let mut out = Vec::new();
    assert_eq!(unpack(&crossed, &key(true), 1, &mut out), Ok(None));
    assert_eq!(out, packet);
}

#[test]
fn an_error_belongs_to_the_flow_that_it_is_about() {
    for v6 in [false, true] {
        let about = udp(v6, b"nobody listens");
        // From a router on the way, to the source.
        let mut packet = if v6 {
            let mut head = about[..40].to_vec();
            head[4..6].copy_from_slice(&((8 + about.len()) as u16).to_be_bytes());
            head[6] = ICMP_V6;
            head[24..40].copy_from_slice(&about[8..24]);
            head
        } else {
            let mut head = about[..20].to_vec();
            head[2..4].copy_from_slice(&((28 + about.len()) as u16).to_be_bytes());
            head[9] = ICMP;
            head[12..16].copy_from_slice(&[10, 2, 2, 1]);
            head[16..20].copy_from_slice(&about[12..16]);
            head
        };
        packet.extend([if v6 { 1 } else { 3 }, 3, 0, 0, 0, 0, 0, 0]);
        packet.extend(&about);
        let seen = parse(&packet).unwrap();
        assert_eq!(
            (seen.key, seen.is_error, seen.opens),
            (key(v6), true, false)
        );
        let (mut crossed, mut out) = (Vec::new(), Vec::new());
        pack(&packet, &seen, &mut crossed);
        let router: IpAddr = if v6 {
            key(v6).source.ip()
        } else {
            [10, 2, 2, 1].into()
        };
        let turned = unpack(&crossed, &key(v6).turned(), 1, &mut out);
        assert_eq!(
            turned,
            Ok(Some(router)),
            "it comes from the far side of the flow"
        );
        assert_eq!(
            unpack(&crossed, &key(v6), 1, &mut out),
            Err(Refused::Foreign)
        );
        assert_eq!(out, packet);
        // To somebody else than it is about.
        let at = if v6 { 39 } else { 19 };
        packet[at] ^= 1;
        assert_eq!(parse(&packet), None);
    }
}

/// The same packet with these extension headers in front of what it carries, each with its own
/// number.
fn extended(packet: &[u8], headers: &[(u8, &[u8])]) -> Vec<u8> {
    let mut long = packet[..IPV6].to_vec();
    let mut next_at = 6;
    for (number, header) in headers {
        long[next_at] = *number;
        next_at = long.len();
        long.extend_from_slice(header);
    }
    long[next_at] = packet[6];
    long.extend_from_slice(&packet[IPV6..]);
    let length = (long.len() - IPV6) as u16;
    long[4..6].copy_from_slice(&length.to_be_bytes());
    long
}

#[test]
fn extension_headers_hide_neither_protocol_nor_ports() {
    let plain = udp(true, b"behind options");
    let (options, longer) = (
        [0, 0, 1, 4, 0, 0, 0, 0],
        [0, 1, 1, 12, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0],
    );
    let authentication = [0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    let chains: [&[(u8, &[u8])]; 5] = [
        &[(DESTINATION, &options)],
        &[(HOP_BY_HOP, &longer), (DESTINATION, &options)],
        &[(ROUTING, &[0; 8])],
        &[(AUTHENTICATION, &authentication), (DESTINATION, &longer)],
        &[
            (FRAGMENT, &[0, 0, 0, 1, 0, 0, 0, 9]),
            (DESTINATION, &options),
        ],
    ];
    for chain in chains {
        let packet = extended(&plain, chain);
        let seen = parse(&packet).unwrap_or_else(|| panic!("{chain:?} is understood"));
        assert_eq!((seen.key, seen.opens), (key(true), true), "{chain:?}");
        let (mut crossed, mut out) = (Vec::new(), Vec::new());
        pack(&packet, &seen, &mut crossed);
        assert_eq!(unpack(&crossed, &key(true), 1, &mut out), Ok(None));
        assert_eq!(out, packet, "with all its headers");
        for cut in IPV6..packet.len() - plain[IPV6..].len() {
            assert_eq!(parse(&packet[..cut]), None, "{chain:?} cut short at {cut}");
        }
    }
    // It shall go elsewhere first.
    assert_eq!(
        parse(&extended(
            &plain,
            &[(ROUTING, &[0, 1, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0])]
        )),
        None
    );
    // The middle of a packet: whatever its first byte is, it is no header.
    let middle = extended(&plain, &[(FRAGMENT, &[0, 0, 0, 9, 0, 0, 0, 9])]);
    assert_eq!(
        parse(&middle).unwrap().fragment,
        Some(Fragment {
            number: 9,
            is_first: false
        })
    );
}

#[test]
fn another_flows_packet_is_refused() {
    let mut crossed = vec![WHOLE];
    crossed.extend(udp(false, b"x"));
    let mut out = Vec::new();
    let other = PacketKey::new(
        UDP,
        "10.1.1.3:4000".parse().unwrap(),
        key(false).destination,
    )
    .unwrap();
    assert_eq!(unpack(&crossed, &other, 1, &mut out), Err(Refused::Foreign));
    assert!(out.is_empty());
    assert_eq!(unpack(&crossed, &key(false), 1, &mut out), Ok(None));
}

/// A packet of ICMP from 10.1.1.2 to 10.2.2.2, or of the same hosts of IPv6, with this type and
/// what follows its checksum.
fn icmp(v6: bool, kind: u8, rest: &[u8]) -> Vec<u8> {
    let mut packet = udp(v6, &vec![0; 4 + rest.len() - UDP_HEADER]);
    let body = if v6 { IPV6 } else { IPV4 };
    packet[if v6 { 6 } else { 9 }] = if v6 { ICMP_V6 } else { ICMP };
    packet[body..].fill(0);
    packet[body] = kind;
    packet[body + 4..].copy_from_slice(rest);
    packet
}

/// Echoes cross, and errors about packets; nothing else of ICMP, neither from a LAN nor from a
/// peer.
#[test]
fn of_icmp_only_echoes_and_errors_are_carried() {
    for v6 in [false, true] {
        let ends = |id: u16| {
            let key = key(v6);
            let end = |end: SocketAddr| SocketAddr::new(end.ip(), id);
            PacketKey::new(ICMP, end(key.source), end(key.destination)).unwrap()
        };
        // Their identifier is all that tells echoes apart; of all others there is none.
        for kind in 0..=255 {
            let packet = icmp(v6, kind, &[0; 60]);
            let is_echo = if v6 {
                [128, 129].contains(&kind)
            } else {
                [8, 0].contains(&kind)
            };
            // It quotes nothing.
            let is_error = if v6 {
                (1..=4).contains(&kind)
            } else {
                [3, 11, 12].contains(&kind)
            };
            assert_eq!(parse(&packet).is_some(), is_echo, "{kind}");
            let (crossed, mut out) = ([&[WHOLE][..], &packet].concat(), Vec::new());
            let want = match (is_echo, is_error) {
                (true, _) => Ok(None),
                (_, true) => Err(Refused::Foreign),
                _ => Err(Refused::Icmp),
            };
            assert_eq!(unpack(&crossed, &ends(0), 1, &mut out), want, "{kind}");
        }
        // An error about an error or a redirect is none, nor is one that comes from nowhere.
        let quoting = |about: &[u8]| {
            let mut packet = icmp(v6, if v6 { 1 } else { 3 }, &[&[0; 4][..], about].concat());
            let (source, length) = if v6 { (8, 16) } else { (12, 4) };
            packet.copy_within(source..source + length, source + length);
            packet
        };
        assert!(
            parse(&quoting(&icmp(v6, if v6 { 128 } else { 8 }, &[0; 60])))
                .is_some_and(|seen| seen.is_error)
        );
        for kind in if v6 { [1, 134, 137] } else { [3, 5, 13] } {
            assert_eq!(parse(&quoting(&icmp(v6, kind, &[0; 60]))), None, "{kind}");
        }
        let mut from_nowhere = quoting(&udp(v6, b"x"));
        assert!(parse(&from_nowhere).is_some());
        let source = if v6 {
            &mut from_nowhere[8..24]
        } else {
            &mut from_nowhere[12..16]
        };
        let loopback: &[u8] = if v6 {
            &Ipv6Addr::LOCALHOST.octets()
        } else {
            &[127, 0, 0, 1]
        };
        source.copy_from_slice(loopback);
        assert_eq!(parse(&from_nowhere), None);
    }
    // Each family has its own.
    let mut mixed = icmp(false, 8, &[0; 60]);
    mixed[9] = ICMP_V6;
    assert_eq!(parse(&mixed), None);
}

#[test]
fn bent_packets_do_not_panic() {
    for seed in 0..20_000 {
        let mut dice = fastrand::Rng::with_seed(seed);
        let mut bytes = udp(dice.bool(), b"some payload of a packet");
        for _ in 0..dice.usize(0..6) {
            let at = dice.usize(0..bytes.len());
            bytes[at] = dice.u8(..);
        }
        bytes.truncate(dice.usize(0..=bytes.len()));
        let twice = [bytes.clone(), bytes].concat();
        fuzz(&twice);
    }
}
