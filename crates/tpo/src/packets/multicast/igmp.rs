//! What hosts and routers of a LAN say about multicast groups: IGMP (RFC 2236, RFC 3376) and MLD
//! (RFC 2710, RFC 3810). Pure: bytes in, bytes out.
//!
//! Only what a router needs to know: who joins, who leaves, who asks. Sources that a host picks are
//! passed over: it gets all, as in older versions, and chooses itself.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::time::Duration;

use crate::packets::checksum::Sum;
use crate::packets::multicast::site::{self, Site};
use crate::table::address::is_routed;
use crate::table::protocols::ICMP_V6;

/// IANA's number of IGMP.
pub(crate) const IGMP: u8 = 2;

const IPV6: usize = 40;
/// Hosts are asked again after this time, seconds (RFC 3376 section 8.2).
const QUERY_INTERVAL: u8 = 125;
/// The robustness variable (RFC 3376 section 8.1).
const ROBUSTNESS: u8 = 2;

/// What a host or a router said.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Heard {
    /// A router asks who listens.
    Query {
        /// Which router.
        from: IpAddr,
    },
    /// A host tells what it listens to from now on, and to what perhaps no longer.
    Members {
        /// Groups with a member.
        joined: Vec<IpAddr>,
        /// Groups that a member has left; others may be there.
        left: Vec<IpAddr>,
    },
    /// Another TPO tells from which sites it can bring groups.
    Serves {
        /// Which one.
        from: Ipv4Addr,
        /// The sites.
        sites: Vec<Site>,
    },
}

/// Reads an IP packet; `None` when it is none of this, or broken.
pub(crate) fn read(packet: &[u8]) -> Option<Heard> {
    match packet.first()? >> 4 {
        4 => {
            let header = usize::from(packet[0] & 15) * 4;
            let total = usize::from(u16::from_be_bytes(*packet.get(2..4)?.first_chunk()?));
            let from = Ipv4Addr::from(*packet.get(12..16)?.first_chunk::<4>()?);
            let body = packet.get(header..total)?;
            if packet[9] != IGMP || header < 20 || Sum::default().add(body).finish() != 0 {
                return None;
            }
            read_igmp(body, from)
        }
        6 => {
            let total = IPV6 + usize::from(u16::from_be_bytes(*packet.get(4..6)?.first_chunk()?));
            // The router alert stands in a header of its own.
            let options = 8 * (usize::from(*packet.get(IPV6 + 1)?) + 1);
            let body = packet.get(IPV6 + options..total)?;
            let (from, ends) = (
                Ipv6Addr::from(*packet.get(8..24)?.first_chunk::<16>()?),
                packet.get(8..40)?,
            );
            let length = (body.len() as u32).to_be_bytes();
            let sum = Sum::default()
                .add(ends)
                .add(&length)
                .add(&[0, 0, 0, ICMP_V6])
                .add(body);
            let is_ours = packet[6] == 0 && packet[IPV6] == ICMP_V6;
            if !is_ours || from.octets()[..2] != [0xfe, 0x80] || sum.finish() != 0 {
                return None;
            }
            read_mld(body, from)
        }
        _ => None,
    }
}

/// What stands behind the IP header, whatever its checksum: for the fuzz target, which would not
/// find one.
pub(super) fn read_body(v6: bool, body: &[u8]) -> Option<Heard> {
    if v6 {
        read_mld(body, Ipv6Addr::LOCALHOST)
    } else {
        read_igmp(body, Ipv4Addr::LOCALHOST)
    }
}

fn read_igmp(body: &[u8], from: Ipv4Addr) -> Option<Heard> {
    let group = |at: usize| Some(IpAddr::from(*body.get(at..at + 4)?.first_chunk::<4>()?));
    Some(match *body.first()? {
        0x11 => Heard::Query { from: from.into() },
        0x12 | 0x16 => Heard::Members {
            joined: routed(group(4)?),
            left: Vec::new(),
        },
        0x17 => Heard::Members {
            joined: Vec::new(),
            left: routed(group(4)?),
        },
        0x22 => records(body, 4, |bytes| {
            Some(IpAddr::from(*bytes.first_chunk::<4>()?))
        })?,
        site::KIND => Heard::Serves {
            from,
            sites: site::parse(body)?,
        },
        _ => return None,
    })
}

fn read_mld(body: &[u8], from: Ipv6Addr) -> Option<Heard> {
    let group = || Some(IpAddr::from(*body.get(8..24)?.first_chunk::<16>()?));
    Some(match *body.first()? {
        130 => Heard::Query { from: from.into() },
        131 => Heard::Members {
            joined: routed(group()?),
            left: Vec::new(),
        },
        132 => Heard::Members {
            joined: Vec::new(),
            left: routed(group()?),
        },
        143 => records(body, 16, |bytes| {
            Some(IpAddr::from(*bytes.first_chunk::<16>()?))
        })?,
        _ => return None,
    })
}

fn routed(group: IpAddr) -> Vec<IpAddr> {
    if is_routed(group) {
        vec![group]
    } else {
        Vec::new()
    }
}

/// The records of a report of the newest version of both: type, words behind, sources, group.
fn records(body: &[u8], address: usize, read: impl Fn(&[u8]) -> Option<IpAddr>) -> Option<Heard> {
    let (mut joined, mut left) = (Vec::new(), Vec::new());
    let count = u16::from_be_bytes(*body.get(6..8)?.first_chunk()?);
    let mut at = 8;
    for _ in 0..count {
        let head = body.get(at..at + 4)?;
        let (kind, behind) = (head[0], usize::from(head[1]) * 4);
        let sources = usize::from(u16::from_be_bytes([head[2], head[3]]));
        let group = read(body.get(at + 4..at + 4 + address)?)?;
        at += 4 + address + sources * address + behind;
        if at > body.len() {
            return None;
        }
        if !is_routed(group) {
            continue;
        }
        match (kind, sources) {
            // "All but these", now or from now on; "only these", if there are any.
            (2 | 4, _) | (1 | 3 | 5, 1..) => joined.push(group),
            // "Only these" without one; "no longer these", of which some may remain: whoever asks
            // will hear.
            (3, 0) | (6, _) => left.push(group),
            _ => {}
        }
    }
    Some(Heard::Members { joined, left })
}

/// A message as a whole IPv4 packet, with its checksum and the option "router alert" (RFC 2113).
pub(super) fn packet_v4(own: Ipv4Addr, to: Ipv4Addr, mut body: Vec<u8>) -> Vec<u8> {
    let total = (24 + body.len()) as u16;
    let mut packet = vec![
        0x46,
        0xc0,
        (total >> 8) as u8,
        total as u8,
        0,
        0,
        0,
        0,
        1,
        IGMP,
        0,
        0,
    ];
    packet.extend(own.octets());
    packet.extend(to.octets());
    packet.extend([0x94, 4, 0, 0]);
    let check = Sum::default().add(&packet).finish().to_be_bytes();
    packet[10..12].copy_from_slice(&check);
    let check = Sum::default().add(&body).finish().to_be_bytes();
    body[2..4].copy_from_slice(&check);
    packet.extend(body);
    packet
}

/// A router's question, as a whole IP packet: who listens to this group, or to any. `within`: hosts
/// answer in this time.
pub(crate) fn query(own: IpAddr, group: Option<IpAddr>, within: Duration) -> Vec<u8> {
    match own {
        IpAddr::V4(own) => {
            let group = match group {
                Some(IpAddr::V4(group)) => group,
                _ => Ipv4Addr::UNSPECIFIED,
            };
            let to = if group.is_unspecified() {
                Ipv4Addr::new(224, 0, 0, 1)
            } else {
                group
            };
            // Tenths of a second; above 127 they would be written otherwise.
            let tenths = (within.as_millis() / 100).min(127) as u8;
            let mut body = vec![0x11, tenths, 0, 0];
            body.extend(group.octets());
            body.extend([ROBUSTNESS, QUERY_INTERVAL, 0, 0]);
            packet_v4(own, to, body)
        }
        IpAddr::V6(own) => {
            let group = match group {
                Some(IpAddr::V6(group)) => group,
                _ => Ipv6Addr::UNSPECIFIED,
            };
            let to = if group.is_unspecified() {
                Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1)
            } else {
                group
            };
            let mut packet = vec![0x60, 0, 0, 0, 0, 36, 0, 1];
            packet.extend(own.octets());
            packet.extend(to.octets());
            packet.extend([ICMP_V6, 0, 5, 2, 0, 0, 1, 0]);
            let milliseconds = (within.as_millis() as u16).min(32_767);
            packet.extend([130, 0, 0, 0]);
            packet.extend(milliseconds.to_be_bytes());
            packet.extend([0, 0]);
            packet.extend(group.octets());
            packet.extend([ROBUSTNESS, QUERY_INTERVAL, 0, 0]);
            let body = &packet[IPV6 + 8..];
            let sum = Sum::default()
                .add(&packet[8..40])
                .add(&[0, 0, 0, body.len() as u8])
                .add(&[0, 0, 0, ICMP_V6]);
            let check = sum.add(body).finish().to_be_bytes();
            packet[IPV6 + 10..IPV6 + 12].copy_from_slice(&check);
            packet
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn v4(body: &[u8]) -> Vec<u8> {
        let mut body = body.to_vec();
        let check = Sum::default().add(&body).finish().to_be_bytes();
        body[2..4].copy_from_slice(&check);
        let mut packet = vec![
            0x45,
            0,
            0,
            (20 + body.len()) as u8,
            0,
            0,
            0,
            0,
            1,
            IGMP,
            0,
            0,
            10,
            1,
            1,
            2,
            224,
            0,
            0,
            22,
        ];
        packet.extend(body);
        packet
    }

    fn v6(body: &[u8]) -> Vec<u8> {
        let mut packet = vec![0x60, 0, 0, 0, 0, (8 + body.len()) as u8, 0, 1];
        packet.extend("fe80::2".parse::<Ipv6Addr>().unwrap().octets());
        packet.extend("ff02::16".parse::<Ipv6Addr>().unwrap().octets());
        packet.extend([ICMP_V6, 0, 5, 2, 0, 0, 1, 0]);
        packet.extend(body);
        let sum = Sum::default()
            .add(&packet[8..40])
            .add(&[0, 0, 0, body.len() as u8])
            .add(&[0, 0, 0, ICMP_V6]);
        let check = sum.add(body).finish().to_be_bytes();
        packet[50..52].copy_from_slice(&check);
        packet
    }

    fn members(joined: &[&str], left: &[&str]) -> Option<Heard> {
        let all = |list: &[&str]| list.iter().map(|group| group.parse().unwrap()).collect();
        Some(Heard::Members {
            joined: all(joined),
            left: all(left),
        })
    }

    #[test]
    fn reports_of_all_versions_are_read() {
        for old in [0x12, 0x16] {
            assert_eq!(
                read(&v4(&[old, 0, 0, 0, 239, 1, 1, 1])),
                members(&["239.1.1.1"], &[])
            );
        }
        assert_eq!(
            read(&v4(&[0x17, 0, 0, 0, 239, 1, 1, 1])),
            members(&[], &["239.1.1.1"])
        );
        let newest = [
            &[0x22, 0, 0, 0, 0, 0, 0, 4][..],
            &[4, 0, 0, 0, 239, 1, 1, 1],
            &[3, 0, 0, 0, 239, 1, 1, 2],
            // One source, and words behind.
            &[5, 1, 0, 1, 232, 1, 1, 1, 10, 0, 0, 1, 9, 9, 9, 9],
            // For neighbours alone.
            &[4, 0, 0, 0, 224, 0, 0, 251],
        ];
        assert_eq!(
            read(&v4(&newest.concat())),
            members(&["239.1.1.1", "232.1.1.1"], &["239.1.1.2"])
        );
        let group = "ff05::1:3".parse::<Ipv6Addr>().unwrap().octets();
        let old = |kind: u8| v6(&[&[kind, 0, 0, 0, 0, 0, 0, 0][..], &group].concat());
        assert_eq!(read(&old(131)), members(&["ff05::1:3"], &[]));
        assert_eq!(read(&old(132)), members(&[], &["ff05::1:3"]));
        let newest = v6(&[&[143, 0, 0, 0, 0, 0, 0, 1, 2, 0, 0, 0][..], &group].concat());
        assert_eq!(read(&newest), members(&["ff05::1:3"], &[]));
    }

    #[test]
    fn a_query_is_read_as_it_was_written() {
        for (own, group) in [("10.1.1.1", "239.1.1.1"), ("fe80::1", "ff05::1")] {
            let own: IpAddr = own.parse().unwrap();
            for group in [None, Some(group.parse().unwrap())] {
                assert_eq!(
                    read(&query(own, group, Duration::from_secs(1))),
                    Some(Heard::Query { from: own })
                );
            }
        }
    }

    #[test]
    fn what_is_broken_is_passed_over() {
        let good = v4(&[0x22, 0, 0, 0, 0, 0, 0, 1, 4, 0, 0, 0, 239, 1, 1, 1]);
        for cut in 0..good.len() {
            assert_eq!(read(&good[..cut]), None);
        }
        for (at, bit) in (20..good.len()).flat_map(|at| (0..8).map(move |bit| (at, bit))) {
            let mut bent = good.clone();
            bent[at] ^= 1 << bit;
            assert_eq!(read(&bent), None, "the checksum finds it");
        }
        // More records than there are.
        assert_eq!(
            read(&v4(&[0x22, 0, 0, 0, 0, 0, 0, 2, 4, 0, 0, 0, 239, 1, 1, 1])),
            None
        );
        assert_eq!(
            read(&v4(&[0x22, 0, 0, 0, 0, 0, 0, 1, 4, 9, 0, 0, 239, 1, 1, 1])),
            None
        );
    }
}
