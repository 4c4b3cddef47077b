use super::*;
use crate::ip::{Fragment, parse, u16_at};

pub(in crate::packets) fn key(v6: bool) -> PacketKey {
    let (source, destination) = if v6 {
        ("[fd10:1::2]:4000", "[fd10:2::2]:53")
    } else {
        ("10.1.1.2:4000", "10.2.2.2:53")
    };
    PacketKey::new(UDP, source.parse().unwrap(), destination.parse().unwrap()).unwrap()
}

pub(crate) fn udp(v6: bool, payload: &[u8]) -> Vec<u8> {
    let mut packet = Vec::new();
    let head = Head {
        class: 0xb8,
        hops: 63,
        flags: 1,
        label: 0,
    };
    assert!(emit(&key(v6), head, payload, 9, &mut packet));
    packet
}

#[test]
fn a_long_packet_is_cut_into_pieces_that_make_it_again() {
    for v6 in [false, true] {
        let payload: Vec<u8> = (0..5_000).map(|at| (at % 251) as u8).collect();
        let packet = {
            let mut packet = Vec::new();
            assert!(emit(
                &key(v6),
                Head {
                    class: 0,
                    hops: 5,
                    flags: 0,
                    label: 0
                },
                &payload,
                9,
                &mut packet
            ));
            packet
        };
        let (mut whole, mut count) = (Vec::new(), 0);
        fragment(&packet, 1_500, 77, |piece| {
            assert!(piece.len() <= 1_500);
            let seen = parse(piece).unwrap();
            assert_eq!(
                seen.fragment,
                Some(Fragment {
                    number: 77,
                    is_first: count == 0
                })
            );
            whole.extend_from_slice(&piece[if v6 { 48 } else { 20 }..]);
            count += 1;
        });
        assert_eq!(
            (count, &whole[..]),
            (4, &packet[if v6 { 40 } else { 20 }..])
        );
        fragment(&packet, packet.len(), 1, |piece| assert_eq!(piece, packet));
    }
}

#[test]
fn the_headers_own_sum_is_right() {
    // The IPv4 header's own sum is zero when it is right.
    assert_eq!(Sum::default().add(&udp(false, b"abc")[..20]).finish(), 0);
}

#[test]
fn packets_together_have_the_header_of_one_long_packet() {
    for v6 in [false, true] {
        let mut out = Vec::new();
        let head = Head {
            class: 0,
            hops: 64,
            flags: 1,
            label: if v6 { 0xa_bcde } else { 0 },
        };
        let vnet = emit_header_of_row(
            &key(v6),
            head,
            Row {
                size: 100,
                bytes: 250,
            },
            1,
            &mut out,
        )
        .unwrap();
        out.extend([7; 250]);
        let header = if v6 { 48 } else { 28 };
        assert_eq!(out.len(), header + 250);
        let word = |at: usize| usize::from(u16::from_ne_bytes([vnet[at], vnet[at + 1]]));
        assert_eq!((vnet[0], vnet[1], word(2), word(4)), (1, 5, header, 100));
        assert_eq!(
            (word(6), word(8)),
            (header - 8, 6),
            "where the checksum begins, and where it stands"
        );
        let seen = parse(&out).unwrap();
        assert_eq!(seen.key, key(v6));
        // With what the kernel adds, it is the sum that one packet has.
        let partial = u16_at(&out, header - 2).unwrap();
        out[header - 2..header].copy_from_slice(&[0, 0]);
        let whole = Sum(u64::from(partial)).add(&out[header - 8..]).finish();
        let mut one = Vec::new();
        assert!(emit(&key(v6), head, &[7; 250], 1, &mut one));
        assert_eq!(Some(whole), u16_at(&one, header - 2));
    }
    assert_eq!(
        emit_header_of_row(
            &key(false),
            Head::default(),
            Row {
                size: 1_000,
                bytes: 65_528
            },
            1,
            &mut Vec::new()
        ),
        None,
        "too long together"
    );
}
