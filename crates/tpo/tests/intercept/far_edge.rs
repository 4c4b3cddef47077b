//! Sockets that speak from the address of the client.

use crate::net::{self, Daemon, Net, PORT, PORT_OTHER, Place, V4, V6, both, rules_for, table};
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;
use tpo::intercept::names::counter;
use tpo::intercept::tcp::connect_from;
use tpo::table::{OnFailure, Table};

#[test]
fn the_far_edge_speaks_from_the_clients_address() {
    let net = Net::up();
    net.nft(
        Place::Server,
        "table inet t { chain i { type filter hook input priority 0; tcp dport 7 reject with icmpx type no-route; }; }",
    );
    for local in [true, false] {
        let daemon = Daemon::start(
            &net,
            Table {
                local,
                ..table(rules_for(PORT_OTHER, OnFailure::Closed), 1)
            },
        );
        for address in both() {
            let servers: &[IpAddr] = if local {
                &[address.server, address.tpo_wan]
            } else {
                &[address.server]
            };
            for server in servers {
                // The same port again and again, on two destinations at once.
                for round in 0..3 {
                    let client = SocketAddr::new(address.client, 40_123);
                    let check = |port| {
                        let stream = net.inside(Place::Tpo, || {
                            connect_from(Some(client), SocketAddr::new(*server, port)).unwrap()
                        });
                        stream.set_nonblocking(false).unwrap();
                        stream
                            .set_read_timeout(Some(Duration::from_secs(5)))
                            .unwrap();
                        let mut stream = BufReader::new(stream);
                        let mut line = String::new();
                        stream
                            .read_line(&mut line)
                            .unwrap_or_else(|e| panic!("{server} round {round}: {e}"));
                        assert_eq!(line, format!("server {client}\n"), "{server} round {round}");
                        stream.get_mut().write_all(b"there and back\n").unwrap();
                        line.clear();
                        stream.read_line(&mut line).unwrap();
                        assert_eq!(line, "there and back\n");
                        stream
                    };
                    let first = check(PORT);
                    let second = check(PORT_OTHER);
                    // The server ends them, as servers do.
                    for mut stream in [first, second] {
                        stream.get_mut().write_all(b"bye\n").unwrap();
                        assert_eq!(stream.read_to_end(&mut Vec::new()).unwrap(), 0);
                    }
                }
            }
            // Refusals come back too, by reset and by ICMP.
            let client = SocketAddr::new(address.client, 0);
            let fails = |port| {
                net.inside(Place::Tpo, || {
                    net::finish(connect_from(Some(client), address.server_at(port)))
                })
                .unwrap_err()
            };
            assert_eq!(fails(9).kind(), std::io::ErrorKind::ConnectionRefused);
            assert_eq!(fails(7).kind(), std::io::ErrorKind::NetworkUnreachable);
        }
        assert_eq!(daemon.counters()[counter::INTERCEPTED].packets, 0);
    }
}

#[test]
fn a_taken_four_tuple_is_address_in_use() {
    let net = Net::up();
    let daemon = Daemon::start(&net, table(Vec::new(), 1));
    let client = Some(SocketAddr::new(V4.client, 40_124));
    net.inside(Place::Tpo, || {
        let first = net::finish(connect_from(client, V4.server_at(PORT))).unwrap();
        let again = net::finish(connect_from(client, V4.server_at(PORT)));
        assert_eq!(again.unwrap_err().kind(), std::io::ErrorKind::AddrInUse);
        drop(first);
        let mixed = connect_from(client, V6.server_at(PORT)).unwrap_err();
        assert_eq!(mixed.kind(), std::io::ErrorKind::InvalidInput);
        // IPv4 in the clothes of IPv6.
        let dressed = |address: IpAddr, port| match address {
            IpAddr::V4(v4) => SocketAddr::new(IpAddr::V6(v4.to_ipv6_mapped()), port),
            IpAddr::V6(_) => unreachable!(),
        };
        let stream = net::finish(connect_from(
            Some(dressed(V4.client, 40_125)),
            dressed(V4.server, PORT),
        ))
        .unwrap();
        assert_eq!(net::first_line(&stream), "server 10.71.1.2:40125\n");
    });
    drop(daemon);
}
