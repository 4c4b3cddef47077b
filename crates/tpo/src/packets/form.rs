//! IP packets of what is no TCP: whose flow they belong to, and the form in which they cross the
//! WAN. Pure: bytes in, bytes out.
//!
//! `docs/wire.md` section 5 is the page that this file follows. An ordinary UDP packet crosses as
//! its payload and a few bytes of its IP header; everything else as it is. The far side's bytes are
//! not trusted: what does not belong to its flow is refused.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::ops::Range;

use tpo_engine::PacketKey;

use crate::table::address::{any_form, is_special};

/// IANA's numbers.
pub const ICMP: u8 = 1;
/// Of UDP.
pub const UDP: u8 = 17;
/// Of ICMP for IPv6; inside a [`PacketKey`] it is [`ICMP`] too, the addresses tell the family.
pub const ICMP_V6: u8 = 58;

const WHOLE: u8 = 0;
const PLAIN_UDP: u8 = 1;
const LABELLED_UDP: u8 = 2;
const DONT_FRAGMENT: u8 = 1;
/// IPv6's extension headers: of options for each hop, of a route, of a fragment, of an
/// authentication, of options for the destination.
const HOP_BY_HOP: u8 = 0;
const ROUTING: u8 = 43;
const FRAGMENT: u8 = 44;
const AUTHENTICATION: u8 = 51;
const DESTINATION: u8 = 60;
const IPV4: usize = 20;
const IPV6: usize = 40;
const UDP_HEADER: usize = 8;

/// Bytes in front of each packet at the TUN device (`struct virtio_net_hdr`); all zero says that it
/// is one packet, whole.
pub const VNET: usize = 10;
/// Packets that the kernel cuts out of one.
pub const MOST_TOGETHER: usize = 64;
const VNET_NEEDS_CHECKSUM: u8 = 1;
const VNET_GSO_UDP: u8 = 5;

/// What a packet is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Seen {
    /// The flow of which it is, seen from its source. Of an ICMP error: the flow of the packet that
    /// it is about.
    pub key: PacketKey,
    /// It tells the source of another packet of the flow that it did not arrive.
    pub is_error: bool,
    /// It opens a flow of packets: an echo request, or a protocol whose packets are all alike.
    pub opens: bool,
    /// It is a piece of a larger packet, and which one by its number. The first piece alone tells
    /// the ports.
    pub piece: Option<Piece>,
    plain: Option<Plain>,
}

/// A fragment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Piece {
    /// What tells the packet from others between the same ends.
    pub number: u32,
    /// It is the first.
    pub is_first: bool,
}

/// An ordinary UDP packet.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Plain {
    head: Head,
    payload: Range<usize>,
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
pub enum Refused {
    /// It is of another flow than it says, or no packet at all.
    Foreign,
    /// ICMP that is neither an echo nor an error about a packet: what tells hosts and routers how
    /// to behave stays in its network.
    Icmp,
}

/// Reads an IP packet; `None` when it is none that is carried, or is cut short.
pub fn look(packet: &[u8]) -> Option<Seen> {
    see(packet).ok()
}

fn see(packet: &[u8]) -> Result<Seen, Refused> {
    const NONE: Refused = Refused::Foreign;
    let outer = header(packet).ok_or(NONE)?;
    let body = packet.get(outer.body.clone()).ok_or(NONE)?;
    let piece = outer.piece;
    let seen = |ports: (u16, u16), opens| {
        let key = outer.key(ports).ok_or(NONE)?;
        Ok(Seen {
            key,
            is_error: false,
            opens,
            piece,
            plain: None,
        })
    };
    if piece.is_some_and(|piece| !piece.is_first) {
        return seen((0, 0), false);
    }
    match outer.protocol {
        UDP => {
            let ports = ports(body).ok_or(NONE)?;
            let whole = u16_at(body, 4).map(usize::from) == Some(body.len()) && outer.is_simple;
            let from = outer.body.start + UDP_HEADER;
            let Header {
                class,
                hops,
                flags,
                label,
                ..
            } = outer;
            let head = Head {
                class,
                hops,
                flags,
                label,
            };
            let plain = whole.then_some(Plain {
                head,
                payload: from..packet.len(),
            });
            Ok(Seen {
                plain,
                ..seen(ports, true)?
            })
        }
        ICMP | ICMP_V6 => {
            let v6 = outer.source.is_ipv6();
            let kind = *body.first().ok_or(NONE)?;
            if let Some(is_request) = echo(kind, v6) {
                let id = u16_at(body, 4).ok_or(NONE)?;
                return seen((id, id), is_request);
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
            let key = body.get(8..).and_then(quoted).ok_or(NONE)?;
            // It goes to the source of what it is about, from whichever router on the way.
            let from_router = !any_form(outer.source, is_special);
            match key.source.ip() == outer.destination
                && !outer.destination.is_multicast()
                && from_router
            {
                true => Ok(Seen {
                    key,
                    is_error: true,
                    opens: false,
                    piece,
                    plain: None,
                }),
                false => Err(NONE),
            }
        }
        _ => seen((0, 0), true),
    }
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

/// Appends the form in which the packet crosses.
pub fn pack(packet: &[u8], seen: &Seen, out: &mut Vec<u8>) {
    match &seen.plain {
        Some(Plain {
            head:
                Head {
                    class,
                    hops,
                    flags,
                    label,
                },
            payload,
        }) => {
            out.extend([
                if *label == 0 { PLAIN_UDP } else { LABELLED_UDP },
                *class,
                *hops,
                *flags,
            ]);
            if *label != 0 {
                out.extend_from_slice(&label.to_be_bytes()[1..]);
            }
            out.extend_from_slice(&packet[payload.clone()]);
        }
        None => {
            out.push(WHOLE);
            out.extend_from_slice(packet);
        }
    }
}

/// What an ordinary UDP packet that crossed has of a header of its own, and its payload.
pub fn as_plain(bytes: &[u8]) -> Option<(Head, &[u8])> {
    match bytes.split_first_chunk()? {
        (&[PLAIN_UDP, class, hops, flags], payload) => Some((
            Head {
                class,
                hops,
                flags,
                label: 0,
            },
            payload,
        )),
        (&[LABELLED_UDP, class, hops, flags], rest) => {
            let (&[high, middle, low], payload) = rest.split_first_chunk()?;
            let label = u32::from_be_bytes([0, high & 15, middle, low]);
            Some((
                Head {
                    class,
                    hops,
                    flags,
                    label,
                },
                payload,
            ))
        }
        _ => None,
    }
}

/// Several ordinary UDP packets of one flow as one, which the kernel cuts: payloads of `size`
/// bytes, the last one at most as long, at most [`MOST_TOGETHER`] of them. Appends the header for
/// `payloads` bytes of them, to be followed by these; gives what the kernel must be told. `None`
/// when they are too long together.
pub fn together(
    key: &PacketKey,
    head: Head,
    (size, payloads): (usize, usize),
    number: u16,
    out: &mut Vec<u8>,
) -> Option<[u8; VNET]> {
    let start = out.len();
    let sum = plain_header(key, head, payloads, number, out)?;
    // The kernel adds what is behind and writes the sum into each packet.
    let udp = out.len() - UDP_HEADER;
    out[udp + 6..udp + 8].copy_from_slice(&(!sum.finish()).to_be_bytes());
    let (header, size) = ((out.len() - start) as u16, u16::try_from(size).ok()?);
    let mut told = [0; VNET];
    (told[0], told[1]) = (VNET_NEEDS_CHECKSUM, VNET_GSO_UDP);
    told[2..4].copy_from_slice(&header.to_ne_bytes());
    told[4..6].copy_from_slice(&size.to_ne_bytes());
    told[6..8].copy_from_slice(&((udp - start) as u16).to_ne_bytes());
    told[8..10].copy_from_slice(&6_u16.to_ne_bytes());
    Some(told)
}

/// Appends the packet that crossed in this form, a packet of the flow `key` seen from the side that
/// sent it. `number` tells it from others where it may be cut. Gives the router from which it
/// comes, if it is an ICMP error.
///
/// # Errors
/// When it is no packet of that flow; then `out` is as it was.
pub fn unpack(
    bytes: &[u8],
    key: &PacketKey,
    number: u16,
    out: &mut Vec<u8>,
) -> Result<Option<IpAddr>, Refused> {
    match bytes.split_first() {
        Some((&(PLAIN_UDP | LABELLED_UDP), _)) if key.protocol == UDP => {
            let is_one = as_plain(bytes)
                .is_some_and(|(head, payload)| plain(key, head, payload, number, out));
            if is_one {
                Ok(None)
            } else {
                Err(Refused::Foreign)
            }
        }
        Some((&WHOLE, packet)) => {
            let router = belongs(packet, key)?;
            out.extend_from_slice(packet);
            Ok(router)
        }
        _ => Err(Refused::Foreign),
    }
}

fn belongs(packet: &[u8], key: &PacketKey) -> Result<Option<IpAddr>, Refused> {
    let seen = see(packet)?;
    let is_of_flow = match seen.is_error {
        true => seen.key == key.turned(),
        false if seen.piece.is_some_and(|piece| !piece.is_first) => {
            // Its ports are in the first one.
            let ends = |key: &PacketKey| (key.protocol, key.source.ip(), key.destination.ip());
            ends(&seen.key) == ends(key)
        }
        false => seen.key == *key,
    };
    match is_of_flow {
        true if seen.is_error => Ok(header(packet).map(|outer| outer.source)),
        true => Ok(None),
        false => Err(Refused::Foreign),
    }
}

/// Appends an ordinary UDP packet; false when it would be too long.
pub fn plain(key: &PacketKey, head: Head, payload: &[u8], number: u16, out: &mut Vec<u8>) -> bool {
    let Some(sum) = plain_header(key, head, payload.len(), number, out) else {
        return false;
    };
    let udp = out.len() - UDP_HEADER;
    out.extend_from_slice(payload);
    // Zero would mean "no checksum".
    let check = match sum.add(&out[udp..]).finish() {
        0 => 0xffff,
        check => check,
    };
    out[udp + 6..udp + 8].copy_from_slice(&check.to_be_bytes());
    true
}

/// Appends the headers in front of a payload of this length, without the UDP checksum; gives the
/// sum of the pseudo header for it.
fn plain_header(
    key: &PacketKey,
    Head {
        class,
        hops,
        flags,
        label,
    }: Head,
    payload: usize,
    number: u16,
    out: &mut Vec<u8>,
) -> Option<Sum> {
    let length = UDP_HEADER + payload;
    let udp_length = u16::try_from(length).ok()?;
    let start = out.len();
    let mut sum = Sum::default();
    match (key.source.ip(), key.destination.ip()) {
        (IpAddr::V4(source), IpAddr::V4(destination)) => {
            let total = u16::try_from(IPV4 + length).ok()?;
            let whole = flags & DONT_FRAGMENT != 0;
            out.extend([0x45, class]);
            out.extend(total.to_be_bytes());
            out.extend(if whole { 0 } else { number }.to_be_bytes());
            out.extend(if whole { 0x4000_u16 } else { 0 }.to_be_bytes());
            out.extend([hops, UDP, 0, 0]);
            out.extend(source.octets());
            out.extend(destination.octets());
            let check = Sum::default().add(&out[start..]).finish();
            out[start + 10..start + 12].copy_from_slice(&check.to_be_bytes());
            sum = sum.add(&source.octets()).add(&destination.octets());
        }
        (IpAddr::V6(source), IpAddr::V6(destination)) => {
            let [_, high, middle, low] = label.to_be_bytes();
            out.extend([0x60 | class >> 4, class << 4 | high & 15, middle, low]);
            out.extend(udp_length.to_be_bytes());
            out.extend([UDP, hops]);
            out.extend(source.octets());
            out.extend(destination.octets());
            sum = sum.add(&source.octets()).add(&destination.octets());
        }
        _ => return None,
    }
    out.extend(key.source.port().to_be_bytes());
    out.extend(key.destination.port().to_be_bytes());
    out.extend(udp_length.to_be_bytes());
    out.extend([0, 0]);
    let [high, low] = udp_length.to_be_bytes();
    Some(sum.add(&[0, UDP, high, low]))
}

/// Takes one off the hop limit of a packet on its way to a group of many; false when it may go no
/// further. What took it from its LAN says of every IPv4 packet that it must not be cut, which is
/// not its sender's word. The IPv4 header's checksum is left to the kernel.
pub fn pass(packet: &mut [u8]) -> bool {
    let v4 = packet[0] >> 4 == 4;
    let hops = &mut packet[if v4 { 8 } else { 7 }];
    *hops = hops.saturating_sub(1);
    let goes_on = *hops > 0;
    if v4 {
        packet[6] &= 0xbf;
    }
    goes_on
}

/// Takes one off the hop limit of a packet in the form in which it crosses; false when it may go no
/// further, or is no packet.
pub fn pass_on(form: &mut [u8]) -> bool {
    let hops_at = match form {
        [PLAIN_UDP | LABELLED_UDP, _, _, _, ..] => 2,
        [WHOLE, first, ..] if *first >> 4 == 4 && form.len() > IPV4 => 1 + 8,
        [WHOLE, first, ..] if *first >> 4 == 6 && form.len() > IPV6 => 1 + 7,
        _ => return false,
    };
    if form[hops_at] <= 1 {
        return false;
    }
    form[hops_at] -= 1;
    if hops_at == 9 {
        let header = &mut form[1..];
        let length = (usize::from(header[0] & 15) * 4).min(header.len());
        header[10..12].copy_from_slice(&[0, 0]);
        let check = Sum::default().add(&header[..length]).finish();
        header[10..12].copy_from_slice(&check.to_be_bytes());
    }
    true
}

/// Gives a UDP packet, made by [`plain`], in pieces that a link of this MTU takes (RFC 791, RFC
/// 8200 section 4.5): `number` tells them from those of other packets. A packet that fits is given
/// as it is.
pub fn cut(packet: &[u8], mtu: usize, number: u32, mut each: impl FnMut(&[u8])) {
    if packet.len() <= mtu {
        return each(packet);
    }
    let v4 = packet[0] >> 4 == 4;
    let (header, extra) = if v4 { (IPV4, 0) } else { (IPV6, 8) };
    // All pieces but the last hold a multiple of eight bytes.
    let room = mtu.saturating_sub(header + extra).max(8) / 8 * 8;
    let mut piece = Vec::with_capacity(mtu);
    let pieces = packet[header..].len().div_ceil(room);
    for (index, part) in packet[header..].chunks(room).enumerate() {
        let (offset, more) = (index * room, u16::from(index + 1 < pieces));
        piece.clear();
        piece.extend_from_slice(&packet[..header]);
        if v4 {
            piece[2..4].copy_from_slice(&((header + part.len()) as u16).to_be_bytes());
            piece[4..6].copy_from_slice(&(number as u16).to_be_bytes());
            piece[6..8].copy_from_slice(&(more << 13 | (offset / 8) as u16).to_be_bytes());
            piece[10..12].copy_from_slice(&[0, 0]);
            let check = Sum::default().add(&piece).finish();
            piece[10..12].copy_from_slice(&check.to_be_bytes());
        } else {
            piece[4..6].copy_from_slice(&((extra + part.len()) as u16).to_be_bytes());
            let next = std::mem::replace(&mut piece[6], FRAGMENT);
            piece.extend([next, 0]);
            piece.extend((offset as u16 | more).to_be_bytes());
            piece.extend(number.to_be_bytes());
        }
        piece.extend_from_slice(part);
        each(&piece);
    }
}

struct Header {
    source: IpAddr,
    destination: IpAddr,
    protocol: u8,
    class: u8,
    hops: u8,
    flags: u8,
    label: u32,
    piece: Option<Piece>,
    /// Nothing in it that a plain packet does not carry.
    is_simple: bool,
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
}

/// The IP header in front of `packet`. What an ICMP error quotes is cut short, so the body may
/// reach beyond what is there.
fn header(packet: &[u8]) -> Option<Header> {
    match packet.first()? >> 4 {
        4 => {
            let length = usize::from(packet[0] & 15) * 4;
            let total = usize::from(u16_at(packet, 2)?);
            if length < IPV4
                || total < length
                || packet.len() < IPV4
                || is_source_routed(packet.get(IPV4..length)?)
            {
                return None;
            }
            let fragment = u16_at(packet, 6)?;
            Some(Header {
                source: Ipv4Addr::from(*packet.get(12..16)?.first_chunk::<4>()?).into(),
                destination: Ipv4Addr::from(*packet.get(16..20)?.first_chunk::<4>()?).into(),
                protocol: packet[9],
                class: packet[1],
                hops: packet[8],
                flags: if fragment & 0x4000 != 0 {
                    DONT_FRAGMENT
                } else {
                    0
                },
                label: 0,
                piece: (fragment & 0x3fff != 0).then_some(Piece {
                    number: u32::from(u16_at(packet, 4)?),
                    is_first: fragment & 0x1fff == 0,
                }),
                is_simple: fragment & 0x3fff == 0 && length == IPV4 && total == packet.len(),
                body: length..total,
            })
        }
        6 => {
            if packet.len() < IPV6 {
                return None;
            }
            let total = IPV6 + usize::from(u16_at(packet, 4)?);
            let Extensions {
                protocol,
                start,
                piece,
            } = extensions(packet)?;
            if total < start {
                return None;
            }
            Some(Header {
                source: Ipv6Addr::from(*packet.get(8..24)?.first_chunk::<16>()?).into(),
                destination: Ipv6Addr::from(*packet.get(24..40)?.first_chunk::<16>()?).into(),
                protocol,
                class: packet[0] << 4 | packet[1] >> 4,
                hops: packet[7],
                flags: DONT_FRAGMENT,
                label: u32::from_be_bytes([0, packet[1] & 15, packet[2], packet[3]]),
                piece,
                is_simple: start == IPV6 && total == packet.len(),
                body: start..total,
            })
        }
        _ => None,
    }
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
    piece: Option<Piece>,
}

/// Walks the chain of extension headers (RFC 8200 section 4) as the kernel does for its rules
/// (`ipv6_find_hdr`), so that the two agree about every packet's protocol. `None` when the chain is
/// cut short, or names other hosts by which the packet shall go.
fn extensions(packet: &[u8]) -> Option<Extensions> {
    let (mut protocol, mut start, mut piece) = (packet[6], IPV6, None);
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
                    piece,
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
            piece = Some(Piece {
                number: u32::from_be_bytes(*header[4..].first_chunk()?),
                is_first,
            });
            if !is_first {
                // What follows is the middle of something.
                return Some(Extensions {
                    protocol: header[0],
                    start: start + length,
                    piece,
                });
            }
        }
        (protocol, start) = (header[0], start + length);
    }
}

fn ports(body: &[u8]) -> Option<(u16, u16)> {
    (body.len() >= UDP_HEADER).then_some((u16_at(body, 0)?, u16_at(body, 2)?))
}

fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_be_bytes(*bytes.get(at..at + 2)?.first_chunk()?))
}

/// The Internet checksum (RFC 1071).
#[derive(Clone, Copy, Default)]
pub(crate) struct Sum(u64);

impl Sum {
    /// Adds bytes; all but the last must be of even length.
    pub(crate) fn add(self, bytes: &[u8]) -> Sum {
        let (words, rest) = bytes.as_chunks::<4>();
        let mut sum = self.0;
        for word in words {
            sum += u64::from(u32::from_be_bytes(*word));
        }
        let mut last = [0; 4];
        last[..rest.len()].copy_from_slice(rest);
        Sum(sum + u64::from(u32::from_be_bytes(last)))
    }

    pub(crate) fn finish(self) -> u16 {
        let mut sum = self.0;
        while sum >> 16 != 0 {
            sum = (sum >> 16) + (sum & 0xffff);
        }
        !(sum as u16)
    }
}

/// Entry for the fuzz target: whatever comes, nothing panics, and what is read and written again is
/// the same flow's.
#[doc(hidden)]
pub fn fuzz(bytes: &[u8]) {
    let (first, second) = bytes.split_at(bytes.len() / 2);
    for packet in [first, second, bytes] {
        let Some(seen) = look(packet) else { continue };
        let (mut crossed, mut out) = (Vec::new(), Vec::new());
        pack(packet, &seen, &mut crossed);
        let key = if seen.is_error {
            seen.key.turned()
        } else {
            seen.key
        };
        assert!(
            unpack(&crossed, &key, 7, &mut out).is_ok(),
            "what we pack belongs to its flow"
        );
        let again = look(&out).expect("what we write can be read");
        assert_eq!(
            (again.key, again.is_error, again.piece),
            (seen.key, seen.is_error, seen.piece)
        );
        out.clear();
        if unpack(second, &seen.key, 7, &mut out).is_err() {
            assert!(out.is_empty());
        }
        pass_on(&mut second.to_vec());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(v6: bool) -> PacketKey {
        let (source, destination) = if v6 {
            ("[fd10:1::2]:4000", "[fd10:2::2]:53")
        } else {
            ("10.1.1.2:4000", "10.2.2.2:53")
        };
        PacketKey::new(UDP, source.parse().unwrap(), destination.parse().unwrap()).unwrap()
    }

    fn udp(v6: bool, payload: &[u8]) -> Vec<u8> {
        let mut packet = Vec::new();
        let head = Head {
            class: 0xb8,
            hops: 63,
            flags: 1,
            label: 0,
        };
        assert!(plain(&key(v6), head, payload, 9, &mut packet));
        packet
    }

    #[test]
    fn a_plain_packet_crosses_without_its_headers_and_comes_out_the_same() {
        for v6 in [false, true] {
            for payload in [&b""[..], b"a", b"even", b"something odd"] {
                let packet = udp(v6, payload);
                let seen = look(&packet).unwrap();
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
    fn a_long_packet_is_cut_into_pieces_that_make_it_again() {
        for v6 in [false, true] {
            let payload: Vec<u8> = (0..5_000).map(|at| (at % 251) as u8).collect();
            let packet = {
                let mut packet = Vec::new();
                assert!(plain(
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
            cut(&packet, 1_500, 77, |piece| {
                assert!(piece.len() <= 1_500);
                let seen = look(piece).unwrap();
                assert_eq!(
                    seen.piece,
                    Some(Piece {
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
            cut(&packet, packet.len(), 1, |piece| assert_eq!(piece, packet));
        }
    }

    #[test]
    fn each_hop_takes_one_off_the_limit() {
        for v6 in [false, true] {
            let packet = udp(v6, b"on its way");
            let mut plain = Vec::new();
            pack(&packet, &look(&packet).unwrap(), &mut plain);
            let whole = [&[WHOLE][..], &packet].concat();
            for mut form in [plain, whole] {
                for hops in (1..63).rev() {
                    assert!(pass_on(&mut form));
                    let mut out = Vec::new();
                    assert_eq!(unpack(&form, &key(v6), 9, &mut out), Ok(None));
                    assert_eq!(out[if v6 { 7 } else { 8 }], hops);
                    assert!(
                        v6 || Sum::default().add(&out[..20]).finish() == 0,
                        "the header's checksum is right"
                    );
                }
                assert!(!pass_on(&mut form), "the last hop");
            }
        }
        assert!(!pass_on(&mut [0, 0x45]) && !pass_on(&mut []) && !pass_on(&mut [9, 9, 9, 9]));
    }

    #[test]
    fn a_flow_label_crosses_too() {
        let mut packet = Vec::new();
        assert!(plain(
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
        pack(&packet, &look(&packet).unwrap(), &mut crossed);
        assert_eq!(crossed, [2, 2, 9, 1, 0xf, 0x12, 0x34, b'x']);
        let mut out = Vec::new();
        assert_eq!(unpack(&crossed, &key(true), 1, &mut out), Ok(None));
        assert_eq!(out, packet);
    }

    #[test]
    fn the_checksum_is_the_documented_one() {
        // RFC 1071, section 3.
        assert_eq!(
            Sum::default()
                .add(&[0x00, 0x01, 0xf2, 0x03, 0xf4, 0xf5, 0xf6, 0xf7])
                .finish(),
            !0xddf2
        );
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
            let told = together(&key(v6), head, (100, 250), 1, &mut out).unwrap();
            out.extend([7; 250]);
            let header = if v6 { 48 } else { 28 };
            assert_eq!(out.len(), header + 250);
            let word = |at: usize| usize::from(u16::from_ne_bytes([told[at], told[at + 1]]));
            assert_eq!((told[0], told[1], word(2), word(4)), (1, 5, header, 100));
            assert_eq!(
                (word(6), word(8)),
                (header - 8, 6),
                "where the checksum begins, and where it stands"
            );
            let seen = look(&out).unwrap();
            assert_eq!(seen.key, key(v6));
            // With what the kernel adds, it is the sum that one packet has.
            let partial = u16_at(&out, header - 2).unwrap();
            out[header - 2..header].copy_from_slice(&[0, 0]);
            let whole = Sum(u64::from(partial)).add(&out[header - 8..]).finish();
            let mut one = Vec::new();
            assert!(plain(&key(v6), head, &[7; 250], 1, &mut one));
            assert_eq!(Some(whole), u16_at(&one, header - 2));
        }
        assert_eq!(
            together(
                &key(false),
                Head::default(),
                (1_000, 65_528),
                1,
                &mut Vec::new()
            ),
            None,
            "too long together"
        );
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
            let seen = look(&packet).unwrap();
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
            assert_eq!(look(&packet), None);
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
            let seen = look(&packet).unwrap_or_else(|| panic!("{chain:?} is understood"));
            assert_eq!((seen.key, seen.opens), (key(true), true), "{chain:?}");
            let (mut crossed, mut out) = (Vec::new(), Vec::new());
            pack(&packet, &seen, &mut crossed);
            assert_eq!(unpack(&crossed, &key(true), 1, &mut out), Ok(None));
            assert_eq!(out, packet, "with all its headers");
            for cut in IPV6..packet.len() - plain[IPV6..].len() {
                assert_eq!(look(&packet[..cut]), None, "{chain:?} cut short at {cut}");
            }
        }
        // It shall go elsewhere first.
        assert_eq!(
            look(&extended(
                &plain,
                &[(ROUTING, &[0, 1, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0])]
            )),
            None
        );
        // The middle of a packet: whatever its first byte is, it is no header.
        let middle = extended(&plain, &[(FRAGMENT, &[0, 0, 0, 9, 0, 0, 0, 9])]);
        assert_eq!(
            look(&middle).unwrap().piece,
            Some(Piece {
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
                assert_eq!(look(&packet).is_some(), is_echo, "{kind}");
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
                look(&quoting(&icmp(v6, if v6 { 128 } else { 8 }, &[0; 60])))
                    .is_some_and(|seen| seen.is_error)
            );
            for kind in if v6 { [1, 134, 137] } else { [3, 5, 13] } {
                assert_eq!(look(&quoting(&icmp(v6, kind, &[0; 60]))), None, "{kind}");
            }
            let mut from_nowhere = quoting(&udp(v6, b"x"));
            assert!(look(&from_nowhere).is_some());
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
            assert_eq!(look(&from_nowhere), None);
        }
        // Each family has its own.
        let mut mixed = icmp(false, 8, &[0; 60]);
        mixed[9] = ICMP_V6;
        assert_eq!(look(&mixed), None);
    }

    /// Behind an extension header, or by a route that its options name, a packet is something else
    /// than its header says.
    #[test]
    fn a_packet_is_what_its_header_says() {
        for (v6, protocol) in [(false, 6), (true, 6), (true, 0), (true, 43), (true, 60)] {
            let mut packet = udp(v6, b"x");
            packet[if v6 { 6 } else { 9 }] = protocol;
            assert_eq!(look(&packet), None, "{protocol}");
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
            assert_eq!(look(&packet).is_some(), carried, "{options:?}");
        }
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
}
