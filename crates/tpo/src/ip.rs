//! IP packets as they come out of the TUN device, or from a peer: of which flow they are, and what
//! is in front of their payload. Pure: bytes in, facts out.
//!
//! The TUN reader ([`crate::packets::reader`]) parses what the kernel hands over, the WAN form
//! ([`crate::packets::form`]) what a peer sent whole. Nothing is believed: a packet that is cut
//! short, or that its headers would send elsewhere first, is none.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::ops::Range;

use tpo_engine::PacketKey;

use crate::table::address::{any_form, is_special};
use crate::table::protocols::{ICMP, ICMP_V6, UDP};

/// Bit 0 of [`Head::flags`].
pub(super) const DONT_FRAGMENT: u8 = 1;
/// IPv6's extension headers (IANA's numbers): options for each hop, a route, a fragment, an
/// authentication, options for the destination.
pub(super) const HOP_BY_HOP: u8 = 0;
pub(super) const ROUTING: u8 = 43;
pub(super) const FRAGMENT: u8 = 44;
pub(super) const AUTHENTICATION: u8 = 51;
pub(super) const DESTINATION: u8 = 60;
/// Bytes of the headers without options.
pub(super) const IPV4: usize = 20;
pub(super) const IPV6: usize = 40;
pub(super) const UDP_HEADER: usize = 8;

/// What a packet is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Parsed {
    /// The flow of which the packet is, seen from its source. Of an ICMP error: the flow of the
    /// packet that the error is about.
    pub key: PacketKey,
    /// It tells the source of another packet of the flow that that one did not arrive.
    pub(crate) is_error: bool,
    /// It opens a flow of packets: an echo request, or a protocol whose packets are all alike.
    pub(crate) opens: bool,
    /// It is a fragment of a larger packet. The first fragment alone tells the ports.
    pub(crate) fragment: Option<Fragment>,
    /// It is an ordinary UDP packet.
    pub(super) udp: Option<OrdinaryUdp>,
}

/// A fragment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Fragment {
    /// What tells the packet from others between the same ends (the identification).
    pub(crate) number: u32,
    /// It is the first.
    pub(crate) is_first: bool,
}

/// A UDP packet with nothing in its IP header but what [`Head`] holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct OrdinaryUdp {
    pub(super) head: Head,
    /// Where in the packet.
    pub(super) payload: Range<usize>,
}

/// What an ordinary UDP packet has of an IP header of its own.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Head {
    /// DSCP and ECN.
    pub class: u8,
    /// Hop limit.
    pub hops: u8,
    /// Bit 0: don't fragment.
    pub flags: u8,
    /// IPv6's flow label, 20 bits.
    pub label: u32,
}

/// Why what a peer has sent is not given on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Refused {
    /// It is of another flow than it says, or no packet at all.
    Foreign,
    /// ICMP that is neither an echo nor an error about a packet: what tells hosts and routers how
    /// to behave stays in its network.
    Icmp,
}

/// Reads an IP packet; `None` when it is none that is carried, or is cut short.
pub fn parse(packet: &[u8]) -> Option<Parsed> {
    parse_or_refuse(packet).ok()
}

/// Reads an IP packet, or says why it is not carried.
pub(super) fn parse_or_refuse(packet: &[u8]) -> Result<Parsed, Refused> {
    let outer = header(packet).ok_or(Refused::Foreign)?;
    let body = packet.get(outer.body.clone()).ok_or(Refused::Foreign)?;
    if outer.fragment.is_some_and(|fragment| !fragment.is_first) {
        return outer.parsed((0, 0), false);
    }
    match outer.protocol {
        UDP => parse_udp(&outer, body, packet.len()),
        ICMP | ICMP_V6 => parse_icmp(&outer, body),
        _ => outer.parsed((0, 0), true),
    }
}

/// `total`: bytes of the whole packet.
fn parse_udp(outer: &Header, body: &[u8], total: usize) -> Result<Parsed, Refused> {
    let ports = ports(body).ok_or(Refused::Foreign)?;
    let is_ordinary = outer.is_simple && u16_at(body, 4).map(usize::from) == Some(body.len());
    let payload = outer.body.start + UDP_HEADER..total;
    Ok(Parsed {
        udp: is_ordinary.then_some(OrdinaryUdp {
            head: outer.head,
            payload,
        }),
        ..outer.parsed(ports, true)?
    })
}

fn parse_icmp(outer: &Header, body: &[u8]) -> Result<Parsed, Refused> {
    let v6 = outer.source.is_ipv6();
    let kind = *body.first().ok_or(Refused::Foreign)?;
    if let Some(is_request) = echo(kind, v6) {
        let id = u16_at(body, 4).ok_or(Refused::Foreign)?;
        return outer.parsed((id, id), is_request);
    }
    // Unreachable, packet too big, time exceeded, a bad header.
    let is_error = if v6 {
        (1..=4).contains(&kind)
    } else {
        matches!(kind, 3 | 11 | 12)
    };
    if !is_error {
        return Err(Refused::Icmp);
    }
    let key = body.get(8..).and_then(quoted).ok_or(Refused::Foreign)?;
    // It goes to the source of what it is about, from whichever router on the way.
    let is_to_source = key.source.ip() == outer.destination && !outer.destination.is_multicast();
    if !is_to_source || any_form(outer.source, is_special) {
        return Err(Refused::Foreign);
    }
    Ok(Parsed {
        key,
        is_error: true,
        opens: false,
        fragment: outer.fragment,
        udp: None,
    })
}

/// The flow of the packet that an ICMP error quotes, seen from that packet's source.
fn quoted(about: &[u8]) -> Option<PacketKey> {
    let inner = header(about)?;
    let rest = about.get(inner.body.start..)?;
    let ports = match inner.protocol {
        UDP => (u16_at(rest, 0)?, u16_at(rest, 2)?),
        ICMP | ICMP_V6 => {
            echo(*rest.first()?, inner.source.is_ipv6())?;
            (u16_at(rest, 4)?, u16_at(rest, 4)?)
        }
        _ => (0, 0),
    };
    inner.key(ports)
}

/// Whether a kind of ICMP is an echo request, or its reply.
fn echo(kind: u8, v6: bool) -> Option<bool> {
    let (request, reply) = if v6 { (128, 129) } else { (8, 0) };
    (kind == request || kind == reply).then_some(kind == request)
}

/// The source of a packet.
pub(super) fn source(packet: &[u8]) -> Option<IpAddr> {
    header(packet).map(|outer| outer.source)
}

/// Takes one off the hop limit of a packet on its way to a multicast group; false when the packet
/// may go no further. The kernel that took it from its LAN says of every IPv4 packet that it must
/// not be cut, which is not its sender's word: that flag goes. The IPv4 header's checksum is left
/// to the kernel.
pub(super) fn take_hop(packet: &mut [u8]) -> bool {
    let v4 = packet[0] >> 4 == 4;
    let hops = &mut packet[if v4 { 8 } else { 7 }];
    *hops = hops.saturating_sub(1);
    let goes_on = *hops > 0;
    if v4 {
        packet[6] &= 0xbf;
    }
    goes_on
}

/// The IP header of a packet.
struct Header {
    source: IpAddr,
    destination: IpAddr,
    protocol: u8,
    head: Head,
    fragment: Option<Fragment>,
    /// Nothing in the header that an ordinary UDP packet does not have.
    is_simple: bool,
    /// What the header says is behind it.
    body: Range<usize>,
}

impl Header {
    /// `None` for what is no flow of packets, such as TCP, and for the ICMP of the other family.
    fn key(&self, (from, to): (u16, u16)) -> Option<PacketKey> {
        let protocol = match (self.protocol, self.source.is_ipv6()) {
            (ICMP_V6, true) => ICMP,
            (ICMP, true) => return None,
            (protocol, _) => protocol,
        };
        PacketKey::new(
            protocol,
            SocketAddr::new(self.source, from),
            SocketAddr::new(self.destination, to),
        )
        .ok()
    }

    /// A packet with these ports that is no error.
    fn parsed(&self, ports: (u16, u16), opens: bool) -> Result<Parsed, Refused> {
        let key = self.key(ports).ok_or(Refused::Foreign)?;
        Ok(Parsed {
            key,
            is_error: false,
            opens,
            fragment: self.fragment,
            udp: None,
        })
    }
}

/// The IP header in front of `packet`. What an ICMP error quotes is cut short, so the body may
/// reach beyond what is there.
fn header(packet: &[u8]) -> Option<Header> {
    match packet.first()? >> 4 {
        4 => header_v4(packet),
        6 => header_v6(packet),
        _ => None,
    }
}

fn header_v4(packet: &[u8]) -> Option<Header> {
    let length = usize::from(packet[0] & 15) * 4;
    let total = usize::from(u16_at(packet, 2)?);
    if length < IPV4
        || total < length
        || packet.len() < IPV4
        || is_source_routed(packet.get(IPV4..length)?)
    {
        return None;
    }
    let cutting = u16_at(packet, 6)?;
    let is_fragment = cutting & 0x3fff != 0;
    let flags = if cutting & 0x4000 != 0 {
        DONT_FRAGMENT
    } else {
        0
    };
    Some(Header {
        source: Ipv4Addr::from(*packet.get(12..16)?.first_chunk::<4>()?).into(),
        destination: Ipv4Addr::from(*packet.get(16..20)?.first_chunk::<4>()?).into(),
        protocol: packet[9],
        head: Head {
            class: packet[1],
            hops: packet[8],
            flags,
            label: 0,
        },
        fragment: is_fragment.then_some(Fragment {
            number: u32::from(u16_at(packet, 4)?),
            is_first: cutting & 0x1fff == 0,
        }),
        is_simple: !is_fragment && length == IPV4 && total == packet.len(),
        body: length..total,
    })
}

fn header_v6(packet: &[u8]) -> Option<Header> {
    if packet.len() < IPV6 {
        return None;
    }
    let total = IPV6 + usize::from(u16_at(packet, 4)?);
    let Extensions {
        protocol,
        start,
        fragment,
    } = extensions(packet)?;
    if total < start {
        return None;
    }
    Some(Header {
        source: Ipv6Addr::from(*packet.get(8..24)?.first_chunk::<16>()?).into(),
        destination: Ipv6Addr::from(*packet.get(24..40)?.first_chunk::<16>()?).into(),
        protocol,
        head: Head {
            class: packet[0] << 4 | packet[1] >> 4,
            hops: packet[7],
            flags: DONT_FRAGMENT,
            label: u32::from_be_bytes([0, packet[1] & 15, packet[2], packet[3]]),
        },
        fragment,
        is_simple: start == IPV6 && total == packet.len(),
        body: start..total,
    })
}

/// Whether options of IPv4 name other hosts by which the packet shall go (RFC 791): its destination
/// would not be the last.
fn is_source_routed(mut options: &[u8]) -> bool {
    const END: u8 = 0;
    const NOTHING: u8 = 1;
    const LOOSE: u8 = 131;
    const STRICT: u8 = 137;
    loop {
        match options {
            [] | [END, ..] => return false,
            [NOTHING, rest @ ..] => options = rest,
            [LOOSE | STRICT, ..] => return true,
            [_, length, ..] if *length >= 2 => {
                options = options.get(usize::from(*length)..).unwrap_or_default()
            }
            // No way to tell what follows.
            _ => return true,
        }
    }
}

/// What stands behind the headers between an IPv6 header and what it carries.
struct Extensions {
    protocol: u8,
    /// Where it begins.
    start: usize,
    fragment: Option<Fragment>,
}

/// Walks the chain of extension headers (RFC 8200 section 4) as the kernel does for its rules
/// (`ipv6_find_hdr`), so that the two agree about every packet's protocol. `None` when the chain is
/// cut short, or names other hosts by which the packet shall go.
fn extensions(packet: &[u8]) -> Option<Extensions> {
    let (mut protocol, mut start, mut fragment) = (packet[6], IPV6, None);
    loop {
        let length = match protocol {
            HOP_BY_HOP | ROUTING | DESTINATION => 8 * (usize::from(*packet.get(start + 1)?) + 1),
            // Counts words of four bytes, less two (RFC 4302).
            AUTHENTICATION => 4 * (usize::from(*packet.get(start + 1)?) + 2),
            FRAGMENT => 8,
            _ => {
                return Some(Extensions {
                    protocol,
                    start,
                    fragment,
                });
            }
        };
        let header = packet.get(start..start + length)?;
        if protocol == ROUTING && header[3] != 0 {
            // Its destination would not be the last, as with the options of IPv4.
            return None;
        }
        if protocol == FRAGMENT {
            let is_first = u16_at(header, 2)? & !7 == 0;
            fragment = Some(Fragment {
                number: u32::from_be_bytes(*header[4..].first_chunk()?),
                is_first,
            });
            if !is_first {
                // What follows is the middle of something.
                return Some(Extensions {
                    protocol: header[0],
                    start: start + length,
                    fragment,
                });
            }
        }
        (protocol, start) = (header[0], start + length);
    }
}

fn ports(body: &[u8]) -> Option<(u16, u16)> {
    (body.len() >= UDP_HEADER).then_some((u16_at(body, 0)?, u16_at(body, 2)?))
}

pub(super) fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_be_bytes(*bytes.get(at..at + 2)?.first_chunk()?))
}

#[cfg(test)]
mod tests;
