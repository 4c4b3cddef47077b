//! Which connections reach the listener, and which are left alone.

use crate::net::{
    self, Answer, Daemon, Net, PORT, PORT_OTHER, Place, V4, V6, ask, both, rule, rules_for, table,
};
use std::io::{BufRead, BufReader, Write};
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream};
use std::time::{Duration, Instant};
use tpo::intercept::install::install;
use tpo::intercept::lease::Lease;
use tpo::intercept::names::counter;
use tpo::intercept::tcp::{Listeners, connect_from};
use tpo::table::peers::PeerId;
use tpo::table::{Mode, OnFailure, RuleSpec, Table};

#[test]
fn ruled_connections_reach_the_listener_by_tproxy() {
    ruled_connections_reach_the_listener(Mode::Tproxy);
}

#[test]
fn ruled_connections_reach_the_listener_by_redirect() {
    ruled_connections_reach_the_listener(Mode::Redirect);
}

fn ruled_connections_reach_the_listener(mode: Mode) {
    let net = Net::up();
    let table = Table {
        mode,
        ..table(rules_for(PORT, OnFailure::Open), 1)
    };
    let daemon = Daemon::start(&net, table);
    daemon.keep(0);
    for place in [Place::Client, Place::Tpo] {
        for address in both() {
            let (answer, from) = ask(&net, place, SocketAddr::new(address.server, PORT));
            let destination = SocketAddr::new(address.server, PORT);
            assert_eq!(
                answer,
                Answer::Tpo {
                    client: from.unwrap(),
                    destination
                },
                "{mode:?} {place:?}"
            );
            // Another port: nobody's business.
            let (answer, from) = ask(&net, place, SocketAddr::new(address.server, PORT_OTHER));
            assert_eq!(
                answer,
                Answer::Server {
                    client: from.unwrap()
                },
                "{mode:?} {place:?}"
            );
        }
    }
    let counts = daemon.counters();
    assert_eq!(counts[counter::INTERCEPTED].packets, 4);
    assert_eq!(counts[counter::NO_LEASE].packets, 0);
}

#[test]
fn connections_of_other_interfaces_and_without_local_are_left_alone() {
    let net = Net::up();
    let base = table(rules_for(PORT, OnFailure::Open), 1);
    let daemon = Daemon::start(
        &net,
        Table {
            interfaces: vec!["srv0".into()],
            local: false,
            ..base.clone()
        },
    );
    daemon.keep(0);
    for place in [Place::Client, Place::Tpo] {
        assert!(
            matches!(
                ask(&net, place, V4.server_at(PORT)).0,
                Answer::Server { .. }
            ),
            "{place:?}"
        );
    }
    drop(daemon);
    let daemon = Daemon::start(
        &net,
        Table {
            interfaces: vec!["srv0".into(), "lan0".into()],
            local: false,
            ..base
        },
    );
    daemon.keep(0);
    assert!(matches!(
        ask(&net, Place::Client, V4.server_at(PORT)).0,
        Answer::Tpo { .. }
    ));
    assert!(matches!(
        ask(&net, Place::Tpo, V4.server_at(PORT)).0,
        Answer::Server { .. }
    ));
}

#[test]
fn connections_that_began_before_are_not_touched() {
    let net = Net::up();
    let mut old: Vec<_> = [Place::Client, Place::Tpo]
        .into_iter()
        .flat_map(|place| {
            both().map(|address| net.connect(place, address.server_at(PORT)).unwrap())
        })
        .collect();
    let echo = |stream: &mut BufReader<TcpStream>, text: &str| {
        stream.get_mut().write_all(text.as_bytes()).unwrap();
        let mut line = String::new();
        stream.read_line(&mut line).unwrap();
        assert_eq!(line, text);
    };
    for stream in &mut old {
        echo(stream, "before\n");
    }
    let daemon = Daemon::start(&net, table(rules_for(PORT, OnFailure::Closed), 1));
    daemon.keep(0);
    for stream in &mut old {
        echo(stream, "while\n");
    }
    assert!(matches!(
        ask(&net, Place::Client, V4.server_at(PORT)).0,
        Answer::Tpo { .. }
    ));
    drop(daemon);
    for stream in &mut old {
        echo(stream, "after\n");
    }
}

#[test]
fn the_first_match_wins_and_leases_are_apart() {
    let net = Net::up();
    for address in both() {
        let whole = |peer, on_failure| RuleSpec {
            destination_ports: 0..=u16::MAX,
            on_failure,
            ..rule(address, PORT, peer)
        };
        let special = rule(address, PORT, 0);
        for (rules, first) in [
            (vec![special.clone(), whole(1, OnFailure::Closed)], [0, 1]),
            (vec![whole(1, OnFailure::Closed), special.clone()], [1, 1]),
            (
                vec![
                    RuleSpec {
                        enabled: false,
                        ..special
                    },
                    whole(1, OnFailure::Closed),
                ],
                [1, 1],
            ),
        ] {
            let daemon = Daemon::start(&net, table(rules, 2));
            for leased in [0, 1] {
                daemon.drop_lease(1 - leased);
                daemon.keep(leased);
                for (port, peer) in [(PORT, first[0]), (PORT_OTHER, first[1])] {
                    let (answer, _) = ask(&net, Place::Client, address.server_at(port));
                    match (peer == leased, peer) {
                        (true, _) => assert!(
                            matches!(answer, Answer::Tpo { .. }),
                            "{leased} {port} {answer:?}"
                        ),
                        (false, 0) => assert!(
                            matches!(answer, Answer::Server { .. }),
                            "{leased} {port} {answer:?}"
                        ),
                        (false, _) => assert_eq!(answer, Answer::Refused, "{leased} {port}"),
                    }
                }
            }
        }
    }
}

#[test]
fn the_daemons_own_connections_are_not_intercepted() {
    for mode in [Mode::Tproxy, Mode::Redirect] {
        let net = Net::up();
        let daemon = Daemon::start(
            &net,
            Table {
                mode,
                ..table(rules_for(PORT, OnFailure::Closed), 1)
            },
        );
        daemon.keep(0);
        for address in both() {
            let stream = net.inside(Place::Tpo, || {
                net::finish(connect_from(None, address.server_at(PORT))).unwrap()
            });
            let own = stream.local_addr().unwrap();
            assert_eq!(
                net::first_line(&stream),
                format!("server {own}\n"),
                "{mode:?}"
            );
        }
    }
}

#[test]
fn connections_to_the_listener_itself_are_reset() {
    let net = Net::up();
    for mode in [Mode::Tproxy, Mode::Redirect] {
        let daemon = Daemon::start(
            &net,
            Table {
                mode,
                ..table(rules_for(PORT, OnFailure::Open), 1)
            },
        );
        daemon.keep(0);
        let ports = daemon.ports();
        let loopback = [
            (Ipv4Addr::LOCALHOST.into(), ports.v4),
            (Ipv6Addr::LOCALHOST.into(), ports.v6.unwrap()),
        ];
        let outside = [(V4.tpo_lan, ports.v4), (V6.tpo_lan, ports.v6.unwrap())];
        for (address, port) in loopback {
            let (answer, _) = ask(&net, Place::Tpo, SocketAddr::new(address, port));
            assert_eq!(answer, Answer::Reset, "{mode:?}");
        }
        for (address, port) in outside {
            let (answer, _) = ask(&net, Place::Client, SocketAddr::new(address, port));
            assert_eq!(
                answer,
                if mode == Mode::Tproxy {
                    Answer::Refused
                } else {
                    Answer::Reset
                },
                "{mode:?}"
            );
        }
        // They are counted when they have been reset.
        let (start, expected) = (Instant::now(), if mode == Mode::Tproxy { 2 } else { 4 });
        while daemon.not_intercepted() < expected && start.elapsed() < Duration::from_secs(2) {
            std::thread::sleep(Duration::from_millis(1));
        }
        assert_eq!(daemon.not_intercepted(), expected);
    }
}

#[test]
fn accepted_sockets_inherit_what_they_need() {
    let net = Net::up();
    let listeners = net.inside(Place::Tpo, || Listeners::open(Mode::Tproxy).unwrap());
    let ports = listeners.ports();
    let table = table(rules_for(PORT, OnFailure::Open), 1);
    let installed = net.inside(Place::Tpo, || install(&table, ports).unwrap());
    net.inside(Place::Tpo, || {
        Lease::open().unwrap().renew(PeerId::new(0)).unwrap()
    });
    let mut listeners = listeners;
    let stream = std::thread::scope(|scope| {
        let client = scope.spawn(|| {
            net.inside(Place::Client, || {
                TcpStream::connect(V4.server_at(PORT)).unwrap()
            })
        });
        let client = client.join().unwrap();
        let mut accepted = Vec::new();
        let batch = listeners.v4.accept_batch(8, &mut accepted).unwrap();
        assert!(batch.drained);
        assert_eq!(accepted[0].client, client.local_addr().unwrap());
        accepted.pop().unwrap().stream
    });
    let socket = socket2::SockRef::from(&stream);
    assert!(socket.tcp_nodelay().unwrap());
    assert!(socket.nonblocking().unwrap());
    assert_eq!(socket.mark().unwrap(), tpo::table::marks::MARK_OWN);
    assert_eq!(socket.tcp_notsent_lowat().unwrap(), 128 * 1024);
    assert_eq!(
        socket.linger().unwrap(),
        Some(Duration::ZERO),
        "a killed process must not end connections in order"
    );
    let connecting = net.inside(Place::Tpo, || {
        connect_from(None, V4.server_at(PORT)).unwrap()
    });
    assert_eq!(
        socket2::SockRef::from(&connecting).linger().unwrap(),
        Some(Duration::ZERO)
    );
    assert!(
        socket.tcp_congestion().unwrap().starts_with(b"cubic"),
        "{:?}",
        socket.tcp_congestion()
    );
    net.inside(Place::Tpo, || installed.remove().unwrap());
}

#[test]
fn without_ipv6_ipv4_works() {
    let net = Net::up();
    net.sysctl(Place::Tpo, "net.ipv6.conf.all.disable_ipv6", "1");
    let before = net.state(Place::Tpo);
    let daemon = Daemon::start(&net, table(rules_for(PORT, OnFailure::Open), 1));
    assert_eq!(daemon.ports().v6, None);
    daemon.keep(0);
    for place in [Place::Client, Place::Tpo] {
        assert!(
            matches!(ask(&net, place, V4.server_at(PORT)).0, Answer::Tpo { .. }),
            "{place:?}"
        );
    }
    drop(daemon);
    assert_eq!(net.state(Place::Tpo), before);
}

#[test]
fn foreign_marks_are_left_alone() {
    let net = Net::up();
    let daemon = Daemon::start(&net, table(rules_for(PORT, OnFailure::Open), 1));
    daemon.keep(0);
    for mark in ["0x5", "0x3", "0x4000000", "0x8000000"] {
        net.nft(
            Place::Tpo,
            &format!(
                "add table inet other\ndelete table inet other\ntable inet other {{
                   counter seen {{ }}
                   chain first {{ type filter hook prerouting priority -200; iifname lan0 meta mark set {mark}; }}
                   chain last {{ type filter hook postrouting priority 200; oifname srv0 meta mark {mark} counter name seen; }}
                 }}"
            ),
        );
        for address in both() {
            let (answer, _) = ask(&net, Place::Client, address.server_at(PORT_OTHER));
            assert!(
                matches!(answer, Answer::Server { .. }),
                "{mark}: {answer:?}"
            );
            let (answer, _) = ask(&net, Place::Client, address.server_at(PORT));
            assert!(matches!(answer, Answer::Tpo { .. }), "{mark}: {answer:?}");
        }
        let state = net.state(Place::Tpo);
        let (_, seen) = state.split_once("counter seen {").unwrap();
        assert!(
            !seen.trim_start().starts_with("packets 0 "),
            "{mark} must leave as it came"
        );
    }
}

#[test]
fn a_listener_can_be_opened_where_a_server_has_the_port() {
    let net = Net::up();
    net.inside(Place::Tpo, || {
        let listeners = Listeners::open(Mode::Tproxy).unwrap();
        // The loopback-bound listener takes nothing from the host's own addresses.
        let other = TcpListener::bind((Ipv4Addr::new(10, 71, 1, 1), listeners.ports().v4));
        assert!(other.is_ok());
    });
}
