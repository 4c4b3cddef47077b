//! What a flow is called: its addresses, its ports, and for packets their protocol.
//!
//! A stream is TCP, and a flow of packets never is. Each has a type of its own, so that a wrong
//! protocol cannot become a connection: whoever has a [`StreamKey`] or a [`PacketKey`] knows that
//! it was checked, whether it came from a wire, a socket or a packet. The look-up table asks about
//! both, and takes a [`FlowKey`].
//!
//! An address has one form here. IPv6 writes some IPv4 addresses in a second one
//! (`::ffff:10.1.2.3`, `::10.1.2.3`), under which every rule about the first one would be passed
//! by.

use std::{
    net::{IpAddr, SocketAddr},
    ops::Deref,
};

use thiserror::Error;

/// The original addressing of a flow, kept from end to end.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct FlowKey {
    /// IANA protocol number: 6 is TCP. Protocols without ports have 0 there, or what tells their
    /// flows apart: ICMP's echo its identifier.
    pub protocol: u8,
    /// The application that opened the flow.
    pub source: SocketAddr,
    /// Whom it wants to reach.
    pub destination: SocketAddr,
}

impl FlowKey {
    /// As the other end sees it.
    pub fn turned(&self) -> FlowKey {
        FlowKey {
            protocol: self.protocol,
            source: self.destination,
            destination: self.source,
        }
    }
}

/// A stream's key. Its protocol is TCP.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct StreamKey(FlowKey);

/// The key of a flow of packets, which are anything but TCP.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct PacketKey(FlowKey);

/// Why addresses, ports and a protocol are no key.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum KeyError {
    /// A stream that is not TCP, packets that are, or a number that is no protocol of a flow of
    /// packets.
    #[error("protocol {0} does not fit")]
    Protocol(u8),
    /// One end is IPv4 and the other IPv6.
    #[error("two families of addresses")]
    Families,
    /// An IPv4 address in a form of IPv6.
    #[error("an IPv4 address as one of IPv6")]
    Form,
}

/// IANA's number.
pub(crate) const TCP: u8 = 6;
/// Numbers that never name a flow of packets: TCP; ICMP for IPv6, which is written as 1; and IPv6's
/// extension headers (hop-by-hop options, routing, fragment, destination options), behind which any
/// protocol may follow.
const NO_PACKETS: [u8; 6] = [TCP, 58, 0, 43, 44, 60];

impl StreamKey {
    /// The key of a connection between these ends.
    ///
    /// # Errors
    /// When the ends are of two families, or in a form that is not the usual one.
    pub fn new(source: SocketAddr, destination: SocketAddr) -> Result<StreamKey, KeyError> {
        key(TCP, source, destination).map(StreamKey)
    }
}

impl PacketKey {
    /// The key of packets of a protocol between these ends.
    ///
    /// # Errors
    /// For TCP and what is no protocol of packets; when the ends are of two families, or in a form
    /// that is not the usual one.
    pub fn new(
        protocol: u8,
        source: SocketAddr,
        destination: SocketAddr,
    ) -> Result<PacketKey, KeyError> {
        if NO_PACKETS.contains(&protocol) {
            return Err(KeyError::Protocol(protocol));
        }
        key(protocol, source, destination).map(PacketKey)
    }

    /// As the other end sees it.
    pub fn turned(&self) -> PacketKey {
        PacketKey(self.0.turned())
    }
}

impl Deref for StreamKey {
    type Target = FlowKey;

    fn deref(&self) -> &FlowKey {
        &self.0
    }
}

impl Deref for PacketKey {
    type Target = FlowKey;

    fn deref(&self) -> &FlowKey {
        &self.0
    }
}

fn key(protocol: u8, source: SocketAddr, destination: SocketAddr) -> Result<FlowKey, KeyError> {
    if source.is_ipv4() != destination.is_ipv4() {
        return Err(KeyError::Families);
    }
    if !is_canonical(source.ip()) || !is_canonical(destination.ip()) {
        return Err(KeyError::Form);
    }
    // A socket's address may bear a scope and a flow label, which are the host's own.
    let plain = |end: SocketAddr| SocketAddr::new(end.ip(), end.port());
    Ok(FlowKey {
        protocol,
        source: plain(source),
        destination: plain(destination),
    })
}

/// Whether the address is no IPv4 address in IPv6's mapped or compatible form (RFC 4291, section
/// 2.5.5). `::` and `::1` are IPv6's own.
fn is_canonical(address: IpAddr) -> bool {
    let IpAddr::V6(v6) = address else { return true };
    match v6.to_bits() >> 32 {
        0 => v6.to_bits() <= 1,
        upper => upper != 0xffff,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ends(source: &str, destination: &str) -> (SocketAddr, SocketAddr) {
        (source.parse().unwrap(), destination.parse().unwrap())
    }

    #[test]
    fn a_stream_is_tcp_and_packets_are_not() {
        let (source, destination) = ends("10.1.1.1:1", "10.2.2.2:2");
        assert_eq!(StreamKey::new(source, destination).unwrap().protocol, 6);
        for protocol in 0..=255 {
            let packets = PacketKey::new(protocol, source, destination);
            match [0, 6, 43, 44, 58, 60].contains(&protocol) {
                true => assert_eq!(packets, Err(KeyError::Protocol(protocol))),
                false => assert_eq!(packets.unwrap().protocol, protocol),
            }
        }
    }

    #[test]
    fn an_address_has_one_form() {
        let good = "[fd00::1]:80";
        for bad in [
            "[::ffff:127.0.0.1]:80",
            "[::ffff:10.1.1.1]:80",
            "[::127.0.0.1]:80",
            "[::2]:80",
        ] {
            for (source, destination) in [ends(bad, good), ends(good, bad)] {
                assert_eq!(
                    StreamKey::new(source, destination),
                    Err(KeyError::Form),
                    "{bad}"
                );
                assert_eq!(
                    PacketKey::new(17, source, destination),
                    Err(KeyError::Form),
                    "{bad}"
                );
            }
        }
        // Their own forms, whatever else may be said of them.
        for own in [
            "[::]:80",
            "[::1]:80",
            "[::1:0:0]:80",
            "[64:ff9b::7f00:1]:80",
        ] {
            let (source, destination) = ends(own, good);
            assert!(StreamKey::new(source, destination).is_ok(), "{own}");
        }
        let (source, destination) = ends("10.1.1.1:1", good);
        assert_eq!(StreamKey::new(source, destination), Err(KeyError::Families));
        let scoped: SocketAddr = "[fe80::1%7]:80".parse().unwrap();
        let plain: SocketAddr = "[fe80::1]:80".parse().unwrap();
        assert_eq!(
            StreamKey::new(scoped, plain),
            StreamKey::new(plain, scoped),
            "a scope is its host's own"
        );
    }
}
