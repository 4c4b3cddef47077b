//! The form in which packets cross the WAN. Pure: bytes in, bytes out.
//!
//! `docs/wire.md` section 5 is the page that this file follows. An ordinary UDP packet crosses as
//! its payload and a few bytes of its IP header; everything else crosses whole. The far side's
//! bytes are not trusted: what does not belong to its flow is refused.
//!
//! On the way out [`super::edge`] packs what [`crate::ip`] has parsed; on the way in
//! [`super::edge`] and [`super::multicast::emit`] unpack.

use std::net::IpAddr;
use std::ops::Range;

use tpo_engine::PacketKey;

use super::checksum::Sum;
use super::udp;
use crate::ip::{self, Head, IPV4, IPV6, OrdinaryUdp, Parsed, Refused};
use crate::table::protocols::UDP;

/// The first byte of the form.
const WHOLE: u8 = 0;
const PLAIN_UDP: u8 = 1;
const LABELLED_UDP: u8 = 2;
/// Bytes in front of what is carried of the packet, at most.
const MOST_FRONT: usize = 7;

/// The form of one packet: some bytes, and behind them a part of the packet, where it lies.
#[derive(Clone, Debug)]
pub(super) struct Form {
    front: [u8; MOST_FRONT],
    front_length: usize,
    /// Where in the packet.
    pub(super) body: Range<usize>,
}

impl Form {
    /// The bytes in front.
    pub(super) fn front(&self) -> &[u8] {
        &self.front[..self.front_length]
    }
}

/// The form in which a packet of `length` bytes crosses. Nothing is copied.
pub(super) fn pack(length: usize, parsed: &Parsed) -> Form {
    let Some(OrdinaryUdp { head, payload }) = &parsed.udp else {
        return Form {
            front: [WHOLE; MOST_FRONT],
            front_length: 1,
            body: 0..length,
        };
    };
    let [_, high, middle, low] = head.label.to_be_bytes();
    let (kind, front_length) = if head.label == 0 {
        (PLAIN_UDP, 4)
    } else {
        (LABELLED_UDP, 7)
    };
    Form {
        front: [kind, head.class, head.hops, head.flags, high, middle, low],
        front_length,
        body: payload.clone(),
    }
}

/// What an ordinary UDP packet that crossed has of an IP header of its own, and its payload.
pub(super) fn as_udp(bytes: &[u8]) -> Option<(Head, &[u8])> {
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

/// A packet that crossed.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Unpacked<'a> {
    /// An ordinary UDP packet: what is of its IP header, and its payload.
    Udp(Head, &'a [u8]),
    /// Any other, as it is.
    Whole {
        packet: &'a [u8],
        /// The router from which it comes, if it is an ICMP error.
        router: Option<IpAddr>,
    },
}

/// Reads the packet that crossed in this form, a packet of the flow `key` seen from the side that
/// sent it.
///
/// # Errors
/// When it is no packet of that flow.
pub(super) fn read<'a>(bytes: &'a [u8], key: &PacketKey) -> Result<Unpacked<'a>, Refused> {
    match bytes.split_first() {
        Some((&(PLAIN_UDP | LABELLED_UDP), _)) if key.protocol == UDP => {
            let udp = as_udp(bytes).map(|(head, payload)| Unpacked::Udp(head, payload));
            udp.ok_or(Refused::Foreign)
        }
        Some((&WHOLE, packet)) => {
            let router = belongs(packet, key)?;
            Ok(Unpacked::Whole { packet, router })
        }
        _ => Err(Refused::Foreign),
    }
}

/// Appends the packet that crossed in this form, as [`read`] reads it. `number` tells it from
/// others where it may be cut. Gives the router from which it comes, if it is an ICMP error.
///
/// # Errors
/// When it is no packet of that flow, or is too long; then `out` is as it was.
pub(super) fn unpack(
    bytes: &[u8],
    key: &PacketKey,
    number: u16,
    out: &mut Vec<u8>,
) -> Result<Option<IpAddr>, Refused> {
    match read(bytes, key)? {
        Unpacked::Udp(head, payload) if udp::emit(key, head, payload, number, out) => Ok(None),
        Unpacked::Udp(..) => Err(Refused::Foreign),
        Unpacked::Whole { packet, router } => {
            out.extend_from_slice(packet);
            Ok(router)
        }
    }
}

fn belongs(packet: &[u8], key: &PacketKey) -> Result<Option<IpAddr>, Refused> {
    let parsed = ip::parse_or_refuse(packet)?;
    let is_of_flow = match parsed.is_error {
        true => parsed.key == key.turned(),
        false if parsed.fragment.is_some_and(|fragment| !fragment.is_first) => {
            // Its ports are in the first one.
            let ends = |key: &PacketKey| (key.protocol, key.source.ip(), key.destination.ip());
            ends(&parsed.key) == ends(key)
        }
        false => parsed.key == *key,
    };
    match is_of_flow {
        true if parsed.is_error => Ok(ip::source(packet)),
        true => Ok(None),
        false => Err(Refused::Foreign),
    }
}

/// Takes one off the hop limit of a packet in the form in which it crosses; false when it may go no
/// further, or is no packet.
pub(super) fn take_hop(form: &mut [u8]) -> bool {
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

/// Entry for the fuzz target: whatever comes, nothing panics, and what is read and written again is
/// the same flow's.
#[doc(hidden)]
pub fn fuzz(bytes: &[u8]) {
    let (first, second) = bytes.split_at(bytes.len() / 2);
    for packet in [first, second, bytes] {
        let Some(parsed) = ip::parse(packet) else {
            continue;
        };
        let form = pack(packet.len(), &parsed);
        let crossed = [form.front(), &packet[form.body.clone()]].concat();
        let key = if parsed.is_error {
            parsed.key.turned()
        } else {
            parsed.key
        };
        let mut out = Vec::new();
        assert!(
            unpack(&crossed, &key, 7, &mut out).is_ok(),
            "what we pack belongs to its flow"
        );
        let again = ip::parse(&out).expect("what we write can be read");
        assert_eq!(
            (again.key, again.is_error, again.fragment),
            (parsed.key, parsed.is_error, parsed.fragment)
        );
        out.clear();
        if unpack(second, &parsed.key, 7, &mut out).is_err() {
            assert!(out.is_empty());
        }
        take_hop(&mut second.to_vec());
    }
}

#[cfg(test)]
mod tests;
