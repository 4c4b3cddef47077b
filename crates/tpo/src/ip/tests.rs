use super::*;
use crate::packets::udp::tests::udp;

/// Behind an extension header, or by a route that its options name, a packet is something else
/// than its header says.
#[test]
fn a_packet_is_what_its_header_says() {
    for (v6, protocol) in [(false, 6), (true, 6), (true, 0), (true, 43), (true, 60)] {
        let mut packet = udp(v6, b"x");
        packet[if v6 { 6 } else { 9 }] = protocol;
        assert_eq!(parse(&packet), None, "{protocol}");
    }
    // An error about a connection is none of ours.
    let mut about = udp(false, b"x");
    about[9] = 6;
    assert_eq!(quoted(&about), None);
    for (options, carried) in [
        ([1, 1, 1, 0], true),
        // Router alert.
        ([148, 4, 0, 0], true),
        ([131, 3, 4, 0], false),
        ([1, 137, 3, 4], false),
        ([68, 0, 0, 0], false),
    ] {
        let mut packet = udp(false, b"x");
        packet.splice(20..20, options);
        packet[0] = 0x46;
        let length = packet.len() as u16;
        packet[2..4].copy_from_slice(&length.to_be_bytes());
        assert_eq!(parse(&packet).is_some(), carried, "{options:?}");
    }
}
