//! The far edge's way out: what a peer may reach through us, and from which address it is reached (claims 1f, 29b).

use std::io;
use std::net::{IpAddr, TcpStream};

use tpo_engine::{FlowKey, Prefix, Status};

use crate::config::checked::TCP;
use crate::edge::tcp::status_of;
use crate::intercept::tcp::connect_from;
use crate::packet::UDP;

/// The address that the destination sees.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SourceAddress {
    /// The client's own address and port.
    Client,
    /// The address of this TPO: where replies to the client would not pass here.
    Tpo,
}

/// One `[[accept]]` of the configuration.
#[derive(Clone, Debug)]
pub struct Permit {
    /// IANA protocol number; [`ICMP`](crate::packet::ICMP) is that of both families.
    pub protocol: u8,
    /// Clients that may come through the peer.
    pub source: Prefix,
    /// What they may reach.
    pub destination: Prefix,
    /// At which ports.
    pub destination_ports: std::ops::RangeInclusive<u16>,
    /// From which address we connect.
    pub source_address: SourceAddress,
}

/// What one peer may reach through us. Nothing else is connected to.
#[derive(Clone, Debug, Default)]
pub struct Exit {
    /// First match wins.
    pub permits: Vec<Permit>,
}

impl Exit {
    /// Starts connecting to a flow's real destination. The socket is not yet connected.
    ///
    /// # Errors
    /// [`Status::NotAllowed`] when no `[[accept]]` permits it, else what the kernel said.
    pub fn connect(&self, key: &FlowKey) -> Result<TcpStream, Status> {
        let permit = self.find(key).ok_or(Status::NotAllowed)?;
        let outcome = match permit.source_address {
            SourceAddress::Tpo => connect_from(None, key.destination),
            SourceAddress::Client => match connect_from(Some(key.source), key.destination) {
                // The client's port is taken here by an older connection to the same destination: its address matters more.
                Err(error) if error.kind() == io::ErrorKind::AddrInUse => {
                    let mut client = key.source;
                    client.set_port(0);
                    connect_from(Some(client), key.destination)
                }
                other => other,
            },
        };
        outcome.map_err(|error| {
            tracing::debug!(%error, client = %key.source, server = %key.destination, "the far edge cannot connect");
            status_of(&error)
        })
    }

    /// Whether the peer may exchange these packets with the destination.
    pub fn permits(&self, key: &FlowKey) -> bool {
        key.protocol != TCP && !key.source.ip().is_multicast() && self.find(key).is_some()
    }

    /// Whether any `[[accept]]` names this flow.
    pub fn names(&self, key: &FlowKey) -> bool {
        self.find(key).is_some()
    }

    fn find(&self, key: &FlowKey) -> Option<&Permit> {
        if key.source.is_ipv4() != key.destination.is_ipv4() {
            return None;
        }
        let has_ports = matches!(key.protocol, TCP | UDP);
        self.permits.iter().find(|permit| {
            permit.protocol == key.protocol
                && names(permit.source, key.source.ip())
                && names(permit.destination, key.destination.ip())
                && (!has_ports || permit.destination_ports.contains(&key.destination.port()))
        })
    }
}

/// Whether a permit means this address. A wide prefix does not mean addresses that have no business on a wire: a peer that claims to be our own
/// loopback address would be taken for a local user.
fn names(prefix: Prefix, address: IpAddr) -> bool {
    let special = match address {
        IpAddr::V4(v4) => v4.is_loopback() || v4.is_unspecified() || v4.is_multicast() || v4.is_broadcast(),
        IpAddr::V6(v6) => v6.is_loopback() || v6.is_unspecified() || v6.is_multicast(),
    };
    let narrow = if address.is_ipv4() || prefix.address.is_multicast() { 8 } else { 128 };
    prefix.contains(address) && (!special || prefix.length >= narrow)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(source: &str, destination: &str) -> FlowKey {
        FlowKey { protocol: TCP, source: source.parse().unwrap(), destination: destination.parse().unwrap() }
    }

    #[test]
    fn only_what_an_accept_names_is_reached() {
        let exit = Exit {
            permits: vec![Permit {
                protocol: TCP,
                source: "10.10.1.0/24".parse().unwrap(),
                destination: "10.10.2.0/24".parse().unwrap(),
                destination_ports: 80..=443,
                source_address: SourceAddress::Client,
            }],
        };
        assert!(exit.find(&key("10.10.1.5:999", "10.10.2.9:80")).is_some());
        for (source, destination) in [
            ("10.10.1.5:999", "10.10.2.9:22"),
            ("10.10.1.5:999", "10.10.3.9:80"),
            ("10.10.9.5:999", "10.10.2.9:80"),
            ("[fd00::1]:999", "10.10.2.9:80"),
            ("[fd00::1]:999", "[fd00::2]:80"),
        ] {
            assert!(exit.find(&key(source, destination)).is_none(), "{source} -> {destination}");
            assert_eq!(exit.connect(&key(source, destination)).unwrap_err(), Status::NotAllowed);
        }
    }

    #[test]
    fn any_does_not_mean_our_own_loopback() {
        let mut permit = Permit {
            protocol: TCP,
            source: Prefix::ANY,
            destination: Prefix::ANY,
            destination_ports: 1..=65_535,
            source_address: SourceAddress::Client,
        };
        let find = |permit: &Permit, source, destination| {
            Exit { permits: vec![permit.clone()] }.find(&key(source, destination)).is_some()
        };
        assert!(find(&permit, "10.10.1.5:999", "10.10.2.9:80"));
        for (source, destination) in [
            ("127.0.0.1:999", "10.10.2.9:80"),
            ("10.10.1.5:999", "127.0.0.1:80"),
            ("[::1]:999", "[fd00::2]:80"),
            ("[fd00::2]:999", "[::1]:80"),
            ("10.10.1.5:999", "224.0.0.1:80"),
            ("0.0.0.0:999", "10.10.2.9:80"),
        ] {
            assert!(!find(&permit, source, destination), "{source} -> {destination}");
        }
        permit.destination = "127.0.0.0/8".parse().unwrap();
        assert!(find(&permit, "10.10.1.5:999", "127.0.0.1:80"), "it was named");
    }
}
