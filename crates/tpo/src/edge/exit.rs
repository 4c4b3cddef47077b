//! The far edge's way out: what a peer may reach through us, who it may be, and from which address
//! it is reached (claims 1f, 29b).

use std::io;
use std::net::{IpAddr, TcpStream};
use std::sync::Arc;

use tpo_engine::{FlowKey, PacketKey, Policy, Prefix, Status, StreamKey};

use crate::config::checked::SourceAddress;
use crate::edge::tcp::status_of;
use crate::host::own_addresses::Own;
use crate::intercept::tcp::connect_from;
use crate::table::address::{Prefixes, any_form, is_special};
use crate::table::carriers::AllCarriers;
use crate::table::peers::PeerId;
use crate::table::protocols::{TCP, UDP};

/// One `[[accept]]` of the configuration.
#[derive(Clone, Debug)]
pub(crate) struct Permit {
    /// IANA protocol number; [`ICMP`](crate::table::protocols::ICMP) is that of both families.
    pub(crate) protocol: u8,
    /// Clients that may come through the peer.
    pub(crate) sources: Arc<Prefixes>,
    /// What they may reach.
    pub(crate) destination: Prefix,
    /// At which ports.
    pub(crate) destination_ports: std::ops::RangeInclusive<u16>,
    /// From which address we connect.
    pub(crate) source_address: SourceAddress,
}

/// To which peers our own rules send what they name: nobody else may be there.
#[derive(Debug)]
pub(crate) struct Claims {
    /// The rules that are switched on.
    pub(crate) policy: Policy,
    /// Whom the rules' carriers mean.
    pub(crate) carriers: AllCarriers,
}

/// What one peer may reach through us, and who it may be. Nothing else is connected to.
#[derive(Debug)]
pub(crate) struct Exit {
    permits: Vec<Permit>,
    peer: PeerId,
    own: Arc<Own>,
    claims: Arc<Claims>,
}

impl Exit {
    /// Of this peer. Of its permits the first match wins.
    pub(crate) fn new(
        permits: Vec<Permit>,
        peer: PeerId,
        own: Arc<Own>,
        claims: Arc<Claims>,
    ) -> Exit {
        Exit {
            permits,
            peer,
            own,
            claims,
        }
    }

    /// Starts connecting to a flow's real destination. The socket is not yet connected.
    ///
    /// # Errors
    /// [`Status::NotAllowed`] when no `[[accept]]` permits it, else what the kernel said.
    pub(crate) fn connect(&self, key: &StreamKey) -> Result<TcpStream, Status> {
        let permit = self.find(key).ok_or(Status::NotAllowed)?;
        let outcome = match permit.source_address {
            SourceAddress::Tpo => connect_from(None, key.destination),
            SourceAddress::Client => match connect_from(Some(key.source), key.destination) {
                // The client's port is taken here by an older connection to the same destination:
                // its address matters more.
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

    /// Whether the peer may send packets of this flow to the destination. An accept must name both
    /// ends, and no rule of ours may send the answers to another peer.
    pub(crate) fn permits(&self, key: &PacketKey) -> bool {
        self.find(key).is_some() && (key.destination.ip().is_multicast() || !self.is_anothers(key))
    }

    /// Whether any `[[accept]]` names this flow.
    pub(crate) fn names(&self, key: &StreamKey) -> bool {
        self.find(key).is_some()
    }

    /// How often this host's own addresses have changed, and with them what is permitted.
    pub(crate) fn changes(&self) -> u64 {
        self.own.changes()
    }

    fn is_anothers(&self, key: &PacketKey) -> bool {
        let Claims { policy, carriers } = &*self.claims;
        policy
            .find(&key.turned())
            .is_some_and(|rule| !carriers[rule.carriers].peers.contains(&self.peer))
    }

    fn find(&self, key: &FlowKey) -> Option<&Permit> {
        let (source, destination) = (key.source.ip(), key.destination.ip());
        if !self.is_host(source) {
            // Nobody is this host, its loopback, its link or a group, whatever an accept says.
            return None;
        }
        let is_host = self.is_host(destination);
        let has_ports = matches!(key.protocol, TCP | UDP);
        self.permits.iter().find(|permit| {
            permit.protocol == key.protocol
                && permit.destination.contains(destination)
                && (is_host || means(permit.destination, destination))
                && (!has_ports || permit.destination_ports.contains(&key.destination.port()))
                && permit.sources.contains(source)
        })
    }

    /// Whether it is some host's address, and not one of ours.
    fn is_host(&self, address: IpAddr) -> bool {
        !any_form(address, |address| {
            is_special(address) || self.own.contains(address)
        })
    }
}

/// Whether a prefix means an address that is no host, or this one, and not only has it: it must
/// name that address alone, or be one of groups.
fn means(prefix: Prefix, address: IpAddr) -> bool {
    let whole = if prefix.address.is_ipv4() { 32 } else { 128 };
    prefix.length == whole || (prefix.address.is_multicast() && address.is_multicast())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(source: &str, destination: &str) -> StreamKey {
        StreamKey::new(source.parse().unwrap(), destination.parse().unwrap()).unwrap()
    }

    fn prefix(text: &str) -> Prefix {
        text.parse().unwrap()
    }

    fn permit(source: &str, destination: &str) -> Permit {
        Permit {
            protocol: TCP,
            sources: Arc::new([prefix(source)].into_iter().collect()),
            destination: prefix(destination),
            destination_ports: 1..=65_535,
            source_address: SourceAddress::Client,
        }
    }

    /// Of the second of two peers, at a host that is 10.10.2.1 and fd00:2::1; by its own rules
    /// 10.10.1.0/24 is behind the first one.
    fn exit(permits: Vec<Permit>) -> Exit {
        let rule = tpo_engine::Rule {
            protocol: UDP,
            source: Prefix::ANY,
            source_ports: 1..=65_535,
            destination: prefix("10.10.1.0/24"),
            destination_ports: 1..=65_535,
            carriers: tpo_engine::CarriersId::new(0),
            treatment: tpo_engine::Class::Normal.into(),
            delivery: tpo_engine::Delivery::Timely,
        };
        let claims = Claims {
            policy: Policy::new(vec![rule]),
            carriers: AllCarriers::of_peers(2),
        };
        Exit::new(
            permits,
            PeerId::new(1),
            Arc::new(Own::of(&["10.10.2.1", "10.10.2.255", "fd00:2::1"])),
            Arc::new(claims),
        )
    }

    #[test]
    fn only_what_an_accept_names_is_reached() {
        let exit = exit(vec![Permit {
            destination_ports: 80..=443,
            ..permit("10.10.1.0/24", "10.10.2.0/24")
        }]);
        assert!(exit.find(&key("10.10.1.5:999", "10.10.2.9:80")).is_some());
        for (source, destination) in [
            ("10.10.1.5:999", "10.10.2.9:22"),
            ("10.10.1.5:999", "10.10.3.9:80"),
            ("10.10.9.5:999", "10.10.2.9:80"),
            ("[fd00::1]:999", "[fd00::2]:80"),
        ] {
            assert!(
                exit.find(&key(source, destination)).is_none(),
                "{source} -> {destination}"
            );
            assert_eq!(
                exit.connect(&key(source, destination)).unwrap_err(),
                Status::NotAllowed
            );
        }
    }

    /// However wide the prefix: no loopback, no link, no group, and not this very host, in whatever
    /// form.
    #[test]
    fn a_prefix_means_hosts_and_none_of_them_is_this_one() {
        let exit = exit(vec![permit("any", "any")]);
        let (client, server) = ("10.10.1.5:999", "10.10.2.9:80");
        assert!(exit.names(&key(client, server)));
        for address in [
            "127.0.0.1",
            "0.0.0.0",
            "0.0.0.9",
            "169.254.169.254",
            "224.0.0.1",
            "240.0.0.1",
            "255.255.255.255",
            "10.10.2.1",
            "10.10.2.255",
        ] {
            let end = format!("{address}:80");
            assert!(!exit.names(&key(client, &end)), "to {end}");
            assert!(!exit.names(&key(&end, server)), "from {end}");
        }
        let (client, server) = ("[fd00:1::5]:999", "[fd00:2::9]:80");
        assert!(exit.names(&key(client, server)));
        for address in [
            "::",
            "::1",
            "fe80::1",
            "ff05::1",
            "fd00:2::1",
            "2002:7f00:1::",
            "64:ff9b::7f00:1",
            "64:ff9b::a9fe:a9fe",
            "64:ff9b::a0a:201",
            "2002:a0a:201::1",
            "fd00::5efe:7f00:1",
            "2001:0:a0a:201::1",
            "::ffff:0:7f00:1",
        ] {
            let end = format!("[{address}]:80");
            assert!(!exit.names(&key(client, &end)), "to {end}");
            assert!(!exit.names(&key(&end, server)), "from {end}");
        }
    }

    /// Named alone, such an address may be reached; but nobody may be it.
    #[test]
    fn an_address_that_is_named_alone_is_meant() {
        for (address, wider) in [
            ("10.10.2.1", "10.10.2.0/31"),
            ("127.0.0.1", "127.0.0.0/8"),
            ("169.254.169.254", "169.254.169.254/31"),
            ("fd00:2::1", "fd00:2::/126"),
            ("::1", "::/127"),
            ("64:ff9b::7f00:1", "64:ff9b::/96"),
        ] {
            let (client, server) = if address.contains(':') {
                ("[fd00:1::5]:999", "[fd00:2::9]:80")
            } else {
                ("10.10.1.5:999", "10.10.2.9:80")
            };
            let end = if address.contains(':') {
                format!("[{address}]:80")
            } else {
                format!("{address}:80")
            };
            assert!(
                exit(vec![permit("any", address)]).names(&key(client, &end)),
                "{address}"
            );
            assert!(
                !exit(vec![permit("any", wider)]).names(&key(client, &end)),
                "{wider}"
            );
            assert!(
                !exit(vec![permit(address, "any")]).names(&key(&end, server)),
                "from {address}"
            );
        }
    }

    #[test]
    fn who_is_behind_another_peer_is_not_behind_this_one() {
        let packets = |protocol, source: &str| {
            PacketKey::new(
                protocol,
                source.parse().unwrap(),
                "10.10.2.9:53".parse().unwrap(),
            )
            .unwrap()
        };
        let exit = exit(
            [UDP, 47]
                .map(|protocol| Permit {
                    protocol,
                    ..permit("any", "10.10.2.0/24")
                })
                .to_vec(),
        );
        assert!(exit.permits(&packets(UDP, "10.10.9.5:53")));
        assert!(
            !exit.permits(&packets(UDP, "10.10.1.5:53")),
            "the answers would go to the first peer"
        );
        assert!(
            exit.permits(&packets(47, "10.10.1.5:0")),
            "no rule sends these anywhere"
        );
    }

    #[test]
    fn groups_are_reached_where_groups_are_named() {
        let exit_to = |destination: &str| {
            exit(vec![Permit {
                protocol: UDP,
                ..permit("10.10.1.0/24", destination)
            }])
        };
        let to = |group: &str| {
            PacketKey::new(UDP, "10.10.1.5:9".parse().unwrap(), group.parse().unwrap()).unwrap()
        };
        assert!(exit_to("239.0.0.0/8").permits(&to("239.1.1.1:9")));
        assert!(!exit_to("any").permits(&to("239.1.1.1:9")));
        assert!(!exit_to("239.0.0.0/8").permits(&to("224.1.1.1:9")));
    }
}
