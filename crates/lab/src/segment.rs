//! Super-packets: what a TUN device hands out whole, and how to cut runs of wire segments out of
//! it.
//!
//! A frame is a virtio header of ten bytes and an IP packet. The header may say that the packet
//! stands for many segments of the same size (linux/virtio_net.h), which the kernel would have cut
//! at a real network card. Pure: bytes in, bytes out.

use std::ops::Range;

/// Length of the virtio header before each packet.
pub(crate) const VIRTIO: usize = 10;

const NEEDS_CHECKSUM: u8 = 1;
const GSO_TCP_V4: u8 = 1;
const GSO_TCP_V6: u8 = 4;
const GSO_UDP: u8 = 5;

const TCP: u8 = 6;
const UDP: u8 = 17;
const TCP_FIN: u8 = 0x01;
const TCP_PUSH: u8 = 0x08;
const TCP_CWR: u8 = 0x80;

/// Where things are in a super-packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Super {
    gso: u8,
    v6: bool,
    protocol: u8,
    /// Start of the TCP or UDP header within the packet.
    transport: usize,
    /// Length of all headers.
    headers: usize,
    payload: usize,
    segment: usize,
}

impl Super {
    /// Reads a frame; `None` when it is one packet on the wire (or nothing that could be cut).
    pub(crate) fn parse(frame: &[u8]) -> Option<Super> {
        let (header, packet) = frame.split_at_checked(VIRTIO)?;
        let gso = header[1];
        let segment = usize::from(u16::from_ne_bytes([header[4], header[5]]));
        let (v6, protocol) = match (gso, packet.first()? >> 4) {
            (GSO_TCP_V4, 4) => (false, TCP),
            (GSO_TCP_V6, 6) => (true, TCP),
            (GSO_UDP, 4) => (false, UDP),
            (GSO_UDP, 6) => (true, UDP),
            _ => return None,
        };
        // The kernel tells where the transport header is; that spares a walk through IPv6 extension
        // headers.
        let transport = if header[0] & NEEDS_CHECKSUM != 0 {
            usize::from(u16::from_ne_bytes([header[6], header[7]]))
        } else {
            network_length(packet)?
        };
        let headers = transport
            + match protocol {
                TCP => usize::from(packet.get(transport + 12)? >> 4) * 4,
                _ => 8,
            };
        // A header that claims to be shorter than any (or, the network's, to reach beyond the
        // transport's start) is nonsense.
        let network = network_length(packet)?.max(if v6 { 40 } else { 20 });
        let shortest = if protocol == TCP { 20 } else { 8 };
        let payload = packet.len().checked_sub(headers)?;
        (segment > 0
            && payload > segment
            && transport >= network
            && headers >= transport + shortest)
            .then_some(Super {
                gso,
                v6,
                protocol,
                transport,
                headers,
                payload,
                segment,
            })
    }

    /// Segments on the wire.
    pub(crate) fn count(&self) -> usize {
        self.payload.div_ceil(self.segment)
    }

    /// IP bytes of one of them.
    pub(crate) fn length(&self, i: usize) -> usize {
        self.headers + (self.payload - i * self.segment).min(self.segment)
    }

    /// Appends a frame that holds only a run of the segments: one packet, or a smaller
    /// super-packet.
    pub(crate) fn cut(&self, frame: &[u8], run: Range<usize>, out: &mut Vec<u8>) {
        let (first, last) = (run.start == 0, run.end == self.count());
        let begin = run.start * self.segment;
        let end = (run.end * self.segment).min(self.payload);
        let packet = &frame[VIRTIO..];
        let frame_start = out.len();
        out.extend_from_slice(&self.header(run.len() > 1));
        out.extend_from_slice(&packet[..self.headers]);
        out.extend_from_slice(&packet[self.headers + begin..self.headers + end]);
        let packet = &mut out[frame_start + VIRTIO..];

        let length = packet.len();
        if self.v6 {
            packet[4..6].copy_from_slice(&((length - 40) as u16).to_be_bytes());
        } else {
            packet[2..4].copy_from_slice(&(length as u16).to_be_bytes());
            let id = u16::from_be_bytes([packet[4], packet[5]]).wrapping_add(run.start as u16);
            packet[4..6].copy_from_slice(&id.to_be_bytes());
            packet[10..12].fill(0);
            let header = usize::from(packet[0] & 15) * 4;
            let sum = !fold(sum(&packet[..header]));
            packet[10..12].copy_from_slice(&sum.to_be_bytes());
        }
        let transport = &mut packet[self.transport..];
        if self.protocol == TCP {
            let sequence =
                u32::from_be_bytes([transport[4], transport[5], transport[6], transport[7]]);
            transport[4..8].copy_from_slice(&sequence.wrapping_add(begin as u32).to_be_bytes());
            if !last {
                transport[13] &= !(TCP_FIN | TCP_PUSH);
            }
            if !first {
                transport[13] &= !TCP_CWR;
            }
        } else {
            let length = transport.len() as u16;
            transport[4..6].copy_from_slice(&length.to_be_bytes());
        }
        let sum = fold(self.pseudo_sum(packet));
        let field = self.transport + self.checksum_offset();
        packet[field..field + 2].copy_from_slice(&sum.to_be_bytes());
    }

    /// A virtio header with a partial checksum, and segmentation if there are several segments.
    fn header(&self, several: bool) -> [u8; VIRTIO] {
        let mut header = [0; VIRTIO];
        header[0] = NEEDS_CHECKSUM;
        if several {
            header[1] = self.gso;
            header[2..4].copy_from_slice(&(self.headers as u16).to_ne_bytes());
            header[4..6].copy_from_slice(&(self.segment as u16).to_ne_bytes());
        }
        header[6..8].copy_from_slice(&(self.transport as u16).to_ne_bytes());
        header[8..10].copy_from_slice(&(self.checksum_offset() as u16).to_ne_bytes());
        header
    }

    fn checksum_offset(&self) -> usize {
        if self.protocol == TCP { 16 } else { 6 }
    }

    /// What a partial checksum holds: the sum of the pseudo header.
    fn pseudo_sum(&self, packet: &[u8]) -> u64 {
        let addresses = if self.v6 {
            &packet[8..40]
        } else {
            &packet[12..20]
        };
        sum(addresses) + u64::from(self.protocol) + (packet.len() - self.transport) as u64
    }
}

/// Flips one bit of a frame's packet, behind the network header, so that the receiver's checksum
/// finds it: the checksum that the sender left to the hardware is written out first.
pub(crate) fn corrupt(frame: &mut [u8], dice: &mut fastrand::Rng) {
    finish_checksum(frame);
    // Neither partial nor known to be good: the receiver has to look for itself.
    frame.iter_mut().take(VIRTIO).for_each(|byte| *byte = 0);
    let Some(network) = frame.get(VIRTIO..).and_then(network_length) else {
        return;
    };
    // Behind the transport header where there is something, else inside it (past the ports: it
    // stays in its flow).
    let packet = &mut frame[VIRTIO..];
    let payload = match (protocol(packet), packet.get(network + 12)) {
        (Some(TCP), Some(words)) => network + usize::from(words >> 4) * 4,
        _ => network + 8,
    };
    let from = if payload < packet.len() {
        payload
    } else {
        network + 4
    };
    if from < packet.len() {
        let at = dice.usize(from..packet.len());
        packet[at] ^= 1 << dice.u8(0..8);
    }
}

/// Writes out the checksum of a frame whose sender left it partial.
fn finish_checksum(frame: &mut [u8]) {
    if frame.len() < VIRTIO || frame[0] & NEEDS_CHECKSUM == 0 {
        return;
    }
    let start = usize::from(u16::from_ne_bytes([frame[6], frame[7]]));
    let field = start + usize::from(u16::from_ne_bytes([frame[8], frame[9]]));
    let packet = &mut frame[VIRTIO..];
    if field + 2 > packet.len() {
        return;
    }
    let total = match !fold(sum(&packet[start..])) {
        // For UDP zero would mean "no checksum"; its other form counts the same.
        0 => 0xffff,
        total => total,
    };
    packet[field..field + 2].copy_from_slice(&total.to_be_bytes());
}

/// Length of the IP header, without extension headers.
fn network_length(packet: &[u8]) -> Option<usize> {
    match packet.first()? >> 4 {
        4 => Some(usize::from(packet[0] & 15) * 4),
        6 => Some(40),
        _ => None,
    }
}

/// The protocol in the IP header, `None` for later fragments, which have no transport header.
fn protocol(packet: &[u8]) -> Option<u8> {
    match packet.first()? >> 4 {
        4 if u16::from_be_bytes([*packet.get(6)?, *packet.get(7)?]) & 0x1fff != 0 => None,
        4 => packet.get(9).copied(),
        6 => packet.get(6).copied(),
        _ => None,
    }
}

/// The sum of 16-bit words that the internet checksum is made of (RFC 1071), not yet folded.
fn sum(bytes: &[u8]) -> u64 {
    let mut words = bytes.chunks_exact(2);
    let total: u64 = words
        .by_ref()
        .map(|word| u64::from(u16::from_be_bytes([word[0], word[1]])))
        .sum();
    total
        + words
            .remainder()
            .first()
            .map_or(0, |byte| u64::from(*byte) << 8)
}

fn fold(mut sum: u64) -> u16 {
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    sum as u16
}

#[cfg(test)]
#[path = "segment_tests.rs"]
mod tests;
