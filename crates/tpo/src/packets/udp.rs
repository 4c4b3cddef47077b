//! UDP packets as they are given to the kernel: IP and UDP headers in front of a payload, several
//! packets as one that the kernel cuts, and the fragments of one that is too long for a LAN. Pure.
//!
//! [`super::form`] says what is in them, `packets/emit.rs` and [`super::multicast::emit`] send
//! them.

use std::net::IpAddr;

use tpo_engine::PacketKey;

use super::checksum::Sum;
use crate::intercept::tun::VNET;
use crate::ip::{DONT_FRAGMENT, FRAGMENT, Head, IPV4, IPV6, UDP_HEADER};
use crate::table::protocols::UDP;

/// Packets that the kernel cuts out of one, at most (`UDP_MAX_SEGMENTS` of Linux 6.2).
pub(super) const MOST_TOGETHER: usize = 64;
/// `VIRTIO_NET_HDR_F_NEEDS_CSUM` and `VIRTIO_NET_HDR_GSO_UDP_L4` of `struct virtio_net_hdr`.
const VNET_NEEDS_CHECKSUM: u8 = 1;
const VNET_GSO_UDP: u8 = 5;

/// Appends a whole UDP packet; false when it would be too long. `number` (the identification) tells
/// it from others where it may be cut.
pub fn emit(key: &PacketKey, head: Head, payload: &[u8], number: u16, out: &mut Vec<u8>) -> bool {
    let is_one = emit_header(key, head, payload, number, out);
    if is_one {
        out.extend_from_slice(payload);
    }
    is_one
}

/// Appends the headers that belong in front of this payload, with the UDP checksum; false when the
/// packet would be too long.
pub(super) fn emit_header(
    key: &PacketKey,
    head: Head,
    payload: &[u8],
    number: u16,
    out: &mut Vec<u8>,
) -> bool {
    let Some(sum) = emit_unsummed(key, head, payload.len(), number, out) else {
        return false;
    };
    let udp = out.len() - UDP_HEADER;
    // Zero would mean "no checksum".
    let check = match sum.add(&out[udp..]).add(payload).finish() {
        0 => 0xffff,
        check => check,
    };
    out[udp + 6..].copy_from_slice(&check.to_be_bytes());
    true
}

/// The payloads of several packets of one flow in a row.
#[derive(Clone, Copy, Debug)]
pub(super) struct Row {
    /// Bytes of each payload; the last one is at most as long.
    pub(super) size: usize,
    /// Bytes of all payloads together.
    pub(super) bytes: usize,
}

/// Several ordinary UDP packets of one flow as one, which the kernel cuts, at most
/// [`MOST_TOGETHER`]. Appends the header, to be followed by the payloads; gives what stands before
/// the packet at the TUN device. `None` when they are too long together.
pub(super) fn emit_header_of_row(
    key: &PacketKey,
    head: Head,
    row: Row,
    number: u16,
    out: &mut Vec<u8>,
) -> Option<[u8; VNET]> {
    let start = out.len();
    let sum = emit_unsummed(key, head, row.bytes, number, out)?;
    // The kernel adds what is behind and writes the sum into each packet.
    let udp = out.len() - UDP_HEADER;
    out[udp + 6..].copy_from_slice(&(!sum.finish()).to_be_bytes());
    let (header, size) = ((out.len() - start) as u16, u16::try_from(row.size).ok()?);
    let mut vnet = [0; VNET];
    (vnet[0], vnet[1]) = (VNET_NEEDS_CHECKSUM, VNET_GSO_UDP);
    vnet[2..4].copy_from_slice(&header.to_ne_bytes());
    vnet[4..6].copy_from_slice(&size.to_ne_bytes());
    vnet[6..8].copy_from_slice(&((udp - start) as u16).to_ne_bytes());
    vnet[8..10].copy_from_slice(&6_u16.to_ne_bytes());
    Some(vnet)
}

/// Appends the headers in front of a payload of this length, without the UDP checksum; gives the
/// sum of the pseudo header for it.
fn emit_unsummed(
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

/// Gives a UDP packet, made by [`emit`], in fragments that a link of this MTU takes (RFC 791, RFC
/// 8200 section 4.5): `number` tells them from those of other packets. A packet that fits is given
/// as it is.
pub(super) fn fragment(packet: &[u8], mtu: usize, number: u32, mut each: impl FnMut(&[u8])) {
    if packet.len() <= mtu {
        return each(packet);
    }
    let v4 = packet[0] >> 4 == 4;
    let (header, extra) = if v4 { (IPV4, 0) } else { (IPV6, 8) };
    // All fragments but the last hold a multiple of eight bytes.
    let room = mtu.saturating_sub(header + extra).max(8) / 8 * 8;
    let mut fragment = Vec::with_capacity(mtu);
    let count = packet[header..].len().div_ceil(room);
    for (index, part) in packet[header..].chunks(room).enumerate() {
        let (offset, more) = (index * room, u16::from(index + 1 < count));
        fragment.clear();
        fragment.extend_from_slice(&packet[..header]);
        if v4 {
            fragment[2..4].copy_from_slice(&((header + part.len()) as u16).to_be_bytes());
            fragment[4..6].copy_from_slice(&(number as u16).to_be_bytes());
            fragment[6..8].copy_from_slice(&(more << 13 | (offset / 8) as u16).to_be_bytes());
            fragment[10..12].copy_from_slice(&[0, 0]);
            let check = Sum::default().add(&fragment).finish();
            fragment[10..12].copy_from_slice(&check.to_be_bytes());
        } else {
            fragment[4..6].copy_from_slice(&((extra + part.len()) as u16).to_be_bytes());
            let next = std::mem::replace(&mut fragment[6], FRAGMENT);
            fragment.extend([next, 0]);
            fragment.extend((offset as u16 | more).to_be_bytes());
            fragment.extend(number.to_be_bytes());
        }
        fragment.extend_from_slice(part);
        each(&fragment);
    }
}

#[cfg(test)]
pub(crate) mod tests;
