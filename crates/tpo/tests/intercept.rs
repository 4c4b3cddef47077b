//! Interception as the kernel does it: client - TPO - server in three network namespaces, IPv4 and
//! IPv6.
//!
//! Needs root, `nft` and `ip`. The "daemon" here only says who connected where, and the server says
//! who it believes to talk to, so that each test can tell from the first line of a connection which
//! way it went.

#[path = "intercept/net.rs"]
mod net;

use net::{
    Answer, Daemon, Net, PORT, PORT_OTHER, Place, V4, V6, ask, both, rule, rules_for, table,
};
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};
use tpo::intercept::error::InstallError;
use tpo::intercept::findings;
use tpo::intercept::install::{self, install};
use tpo::intercept::lease::{KnownSources, Lease, TIMEOUT};
use tpo::intercept::names::{Standing, counter};
use tpo::intercept::tcp::{Listeners, connect_from};
use tpo::ip;
use tpo::packets::udp;
use tpo::table::bounds::Bounds;
use tpo::table::layers::Layers;
use tpo::table::peers::PeerId;
use tpo::table::protocols::UDP;
use tpo::table::{Mode, OnFailure, RuleSpec, Table};
use tpo_engine::PacketKey;

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
fn without_a_lease_open_rules_pass_and_closed_rules_refuse() {
    for mode in [Mode::Tproxy, Mode::Redirect] {
        let net = Net::up();
        let mut rules = rules_for(PORT, OnFailure::Open);
        rules.extend(rules_for(PORT_OTHER, OnFailure::Closed));
        let daemon = Daemon::start(
            &net,
            Table {
                mode,
                ..table(rules, 1)
            },
        );
        let expect = |leased: bool| {
            for place in [Place::Client, Place::Tpo] {
                for address in both() {
                    let (open, _) = ask(&net, place, address.server_at(PORT));
                    let (closed, _) = ask(&net, place, address.server_at(PORT_OTHER));
                    match leased {
                        true => {
                            assert!(
                                matches!(open, Answer::Tpo { .. }),
                                "{mode:?} {place:?} {open:?}"
                            );
                            assert!(
                                matches!(closed, Answer::Tpo { .. }),
                                "{mode:?} {place:?} {closed:?}"
                            );
                        }
                        false => {
                            assert!(
                                matches!(open, Answer::Server { .. }),
                                "{mode:?} {place:?} {open:?}"
                            );
                            assert_eq!(closed, Answer::Refused, "{mode:?} {place:?}");
                        }
                    }
                }
            }
        };
        expect(false);
        daemon.keep(0);
        expect(true);
        daemon.drop_lease(0);
        // Twice is as good as once.
        daemon.drop_lease(0);
        expect(false);
        let counts = daemon.counters();
        assert_eq!(
            (
                counts[counter::NO_LEASE].packets,
                counts[counter::REFUSED].packets
            ),
            (8, 8),
            "{mode:?}"
        );
        // Nobody renews: the kernel itself ends it.
        let renewed = Instant::now();
        daemon.renew_last(0);
        while matches!(
            ask(&net, Place::Client, V4.server_at(PORT)).0,
            Answer::Tpo { .. }
        ) {
            assert!(
                renewed.elapsed() < Duration::from_secs(3),
                "the lease outlives its promise"
            );
            std::thread::sleep(Duration::from_millis(10));
        }
        // The kernel counts in timer ticks of up to 10 ms.
        assert!(
            renewed.elapsed() >= TIMEOUT - Duration::from_millis(20),
            "the lease ended early, after {:?}",
            renewed.elapsed()
        );
        expect(false);
    }
}

#[test]
fn renewals_leave_no_gap() {
    let net = Net::up();
    let daemon = Daemon::start(&net, table(rules_for(PORT, OnFailure::Open), 1));
    daemon.keep(0);
    const CONNECTIONS: u32 = 2_000;
    const RENEWALS: u32 = 1_000;
    let (mut direct, mut cost) = (0, Duration::ZERO);
    std::thread::scope(|scope| {
        let renewer = scope.spawn(|| {
            let start = Instant::now();
            for _ in 0..RENEWALS {
                daemon.keep(0);
            }
            start.elapsed()
        });
        net.inside(Place::Client, || {
            for _ in 0..CONNECTIONS {
                let line = net::first_line(&TcpStream::connect(V4.server_at(PORT)).unwrap());
                direct += u32::from(!line.starts_with("tpo "));
            }
        });
        cost = renewer.join().unwrap();
    });
    assert_eq!(direct, 0, "of {CONNECTIONS} connections");
    println!("a renewal beside connections: {:?}", cost / RENEWALS);
    let (start, cpu) = (Instant::now(), net::thread_cpu());
    let mut lease = net.inside(Place::Tpo, || Lease::open().unwrap());
    for _ in 0..200 {
        lease.renew(PeerId::new(0)).unwrap();
    }
    println!(
        "a renewal alone: {:?}, cpu {:?}",
        start.elapsed() / 200,
        (net::thread_cpu() - cpu) / 200
    );
}

#[test]
fn nobody_listening_is_as_good_as_no_lease() {
    let net = Net::up();
    let mut rules = rules_for(PORT, OnFailure::Open);
    rules.extend(rules_for(PORT_OTHER, OnFailure::Closed));
    let daemon = Daemon::start(&net, table(rules, 1));
    daemon.keep(0);
    daemon.stop_listening();
    for address in both() {
        assert!(matches!(
            ask(&net, Place::Client, address.server_at(PORT)).0,
            Answer::Server { .. }
        ));
        assert_eq!(
            ask(&net, Place::Client, address.server_at(PORT_OTHER)).0,
            Answer::Refused
        );
        assert_eq!(
            ask(&net, Place::Tpo, address.server_at(PORT_OTHER)).0,
            Answer::Refused
        );
    }
    assert_eq!(daemon.counters()[counter::NO_LISTENER].packets, 6);
    // An application of this host waits for the lease to end; its second or third SYN then goes the
    // plain way.
    daemon.renew_last(0);
    let start = Instant::now();
    assert!(matches!(
        ask(&net, Place::Tpo, V4.server_at(PORT)).0,
        Answer::Server { .. }
    ));
    assert!(
        start.elapsed() < Duration::from_secs(4),
        "{:?}",
        start.elapsed()
    );
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
fn any_of_several_peers_holds_a_rule() {
    let net = Net::up();
    let mut table = table(vec![rule(V4, PORT, 2)], 2);
    table.rules[0].carriers = table.carriers.id_of(&tpo::table::carriers::Carriers {
        peers: [0, 1].map(PeerId::new).into(),
        spread: false,
    });
    let daemon = Daemon::start(&net, table);
    for held in [0, 1] {
        daemon.drop_lease(1 - held);
        daemon.keep(held);
        assert!(
            matches!(
                ask(&net, Place::Client, V4.server_at(PORT)).0,
                Answer::Tpo { .. }
            ),
            "{held}"
        );
    }
    daemon.drop_lease(1);
    assert!(matches!(
        ask(&net, Place::Client, V4.server_at(PORT)).0,
        Answer::Server { .. }
    ));
}

#[test]
fn a_lease_can_be_held_for_all_but_tcp() {
    let net = Net::up();
    let daemon = Daemon::start(
        &net,
        Table {
            packets: vec![17],
            ..table(rules_for(PORT, OnFailure::Open), 1)
        },
    );
    let mut lease = net.inside(Place::Tpo, || Lease::for_protocols(&[17]).unwrap());
    let held = || {
        let state = net.state(Place::Tpo);
        let (_, set) = state.split_once("set alive_0 {").unwrap();
        let (set, _) = set.split_once('}').unwrap();
        (set.contains("tcp"), set.contains("udp"))
    };
    for (without_tcp, expected) in [
        (false, (true, true)),
        (true, (false, true)),
        (false, (true, true)),
    ] {
        match without_tcp {
            true => lease.renew_without_tcp(PeerId::new(0)).unwrap(),
            false => lease.renew(PeerId::new(0)).unwrap(),
        }
        // At once, not when the old element's time is over.
        assert_eq!(held(), expected);
        let (answer, _) = ask(&net, Place::Client, V4.server_at(PORT));
        assert_eq!(
            matches!(answer, Answer::Tpo { .. }),
            !without_tcp,
            "{answer:?}"
        );
    }
    drop(daemon);
}

#[test]
fn a_source_has_the_bound_of_its_standing_and_the_rest_goes_its_plain_way() {
    const CONNECTIONS: u64 = 200;
    let net = Net::up();
    // A new source two per second, a known one twelve, a busy one 2,250.
    let bounds = Bounds {
        syns_per_source: 12,
        syns: 4_000,
        ..Bounds::default()
    };
    for address in both() {
        let daemon = Daemon::start(
            &net,
            Table {
                bounds,
                ..table(rules_for(PORT, OnFailure::Open), 1)
            },
        );
        daemon.keep(0);
        let taken = || {
            net.inside(Place::Client, || {
                let one = |_: &u64| {
                    let line =
                        net::first_line(&TcpStream::connect(address.server_at(PORT)).unwrap());
                    assert!(
                        line.starts_with("tpo ") || line.starts_with("server "),
                        "{line}"
                    );
                    line.starts_with("tpo ")
                };
                (0..CONNECTIONS).filter(one).count() as u64
            })
        };
        let start = Instant::now();
        let known = taken();
        let most = 4 + 12 + 12 * (start.elapsed().as_secs() + 1);
        assert!(
            (4..=most).contains(&known),
            "{known} of {CONNECTIONS}, {most} at most"
        );
        assert_eq!(
            daemon.counters()[counter::FLOOD].packets,
            CONNECTIONS - known
        );
        net.inside(Place::Tpo, || {
            KnownSources::open()
                .unwrap()
                .add(Standing::Busy, &[address.client], Duration::from_secs(60))
                .unwrap();
        });
        assert_eq!(taken(), CONNECTIONS, "a busy one is not bounded so");
        // This host's own applications are not bounded at all.
        for _ in 0..50 {
            let (answer, _) = ask(&net, Place::Tpo, address.server_at(PORT));
            assert!(matches!(answer, Answer::Tpo { .. }), "{answer:?}");
        }
    }
}

/// The far edge of UDP: packets come out of the TUN device, and their answers go into it.
struct FarEdge<'a> {
    daemon: &'a Daemon<'a>,
    lease: Lease,
    renewed: Instant,
    answered: u32,
}

impl FarEdge<'_> {
    /// The far client of a flow of this number speaks to the server's port.
    fn speak(&mut self, flow: u32, port: u16) {
        let source = SocketAddr::new(
            Ipv4Addr::from((10 << 24) | (80 << 16) | (flow >> 8)).into(),
            1_024 + (flow & 0xff) as u16,
        );
        let key = PacketKey::new(UDP, source, V4.server_at(port)).unwrap();
        let mut bytes = Vec::new();
        let head = ip::Head {
            hops: 64,
            ..ip::Head::default()
        };
        assert!(udp::emit(&key, head, &flow.to_be_bytes(), 0, &mut bytes));
        self.daemon.tun().write(&bytes).unwrap();
        self.hear();
    }

    /// Takes the answers that have come, and holds the lease of answers, which is the one behind
    /// the peers'.
    fn hear(&mut self) {
        if self.renewed.elapsed() > Duration::from_millis(500) {
            self.lease.renew(PeerId::new(1)).unwrap();
            self.renewed = Instant::now();
        }
        let mut buffer = [0; 2_048];
        while let Some(bytes) = self.daemon.tun().read(&mut buffer).unwrap() {
            let from_server = |seen: &ip::Parsed| seen.key.source == V4.server_at(PORT);
            self.answered += u32::from(ip::parse(bytes).as_ref().is_some_and(from_server));
        }
    }

    /// Until this many answers have come, or no more come.
    fn hear_all(&mut self, of: u32) -> u32 {
        let start = Instant::now();
        while self.answered < of && start.elapsed() < Duration::from_secs(1) {
            self.hear();
            std::thread::sleep(Duration::from_millis(1));
        }
        self.answered
    }
}

#[test]
fn ways_back_leave_with_their_flows() {
    // The limits are a sixtieth of what they are by default, and so are the rates: 2,000 flows of
    // which each lives 3 s once it was answered, and 1 s before.
    const FLOWS: usize = 2_000;
    let net = Net::up();
    net.ip(Place::Tpo, "route add 10.80.0.0/12 via 10.71.1.2");
    let echo = net.inside(Place::Server, || {
        UdpSocket::bind((Ipv4Addr::UNSPECIFIED, PORT)).unwrap()
    });
    let silent = net.inside(Place::Server, || {
        UdpSocket::bind((Ipv4Addr::UNSPECIFIED, PORT_OTHER)).unwrap()
    });
    let answering = echo.try_clone().unwrap();
    let server = std::thread::spawn(move || {
        let mut buffer = [0; 64];
        // An empty one ends it.
        while let Ok((length, from)) = answering.recv_from(&mut buffer) {
            if length == 0 {
                break;
            }
            let _ = answering.send_to(&buffer[..length], from);
        }
    });
    let table = Table {
        packets: vec![1, 17, 58],
        packets_rest: Duration::from_secs(3),
        bounds: Bounds {
            flows: FLOWS,
            rest_one_way: Duration::from_secs(1),
            ..Bounds::default()
        },
        ..table(rules_for(PORT, OnFailure::Open), 1)
    };
    let daemon = Daemon::start(&net, table);
    let mut lease = net.inside(Place::Tpo, || Lease::for_protocols(&[17]).unwrap());
    lease.renew(PeerId::new(1)).unwrap();
    let mut edge = FarEdge {
        daemon: &daemon,
        lease,
        renewed: Instant::now(),
        answered: 0,
    };
    // Three times as many as have room, 400 a second that are answered and 400 that are not: what
    // has ended makes room.
    for flow in 0..3 * FLOWS as u32 {
        // Never several at once to catch up: the echo's socket would lose some of them.
        std::thread::sleep(Duration::from_micros(2_500));
        edge.speak(flow, PORT);
        edge.speak(flow, PORT_OTHER);
    }
    assert_eq!(
        edge.hear_all(3 * FLOWS as u32),
        3 * FLOWS as u32,
        "every one of them is answered"
    );
    assert_eq!(daemon.counters()[counter::WAYS_FULL].packets, 0);
    // More at once than have room: that is counted, and those that were answered keep their way.
    edge.answered = 0;
    let known = 3 * FLOWS as u32 - 1;
    for flow in 100_000..100_000 + 2 * FLOWS as u32 {
        edge.speak(flow, PORT_OTHER);
        if flow % 200 == 0 {
            edge.speak(known, PORT);
        }
    }
    assert_eq!(
        edge.hear_all(20),
        20,
        "a flow of both ways is not disturbed"
    );
    let full = daemon.counters()[counter::WAYS_FULL].packets;
    assert!(full >= FLOWS as u64 / 2, "{full}");
    net.inside(Place::Server, || {
        UdpSocket::bind("0.0.0.0:0")
            .unwrap()
            .send_to(&[], echo.local_addr().unwrap())
            .unwrap()
    });
    server.join().unwrap();
    drop(silent);
}

/// Random rules over 10.80.0.0/12, all of whose addresses the server has; some inside others.
fn many_rules(count: usize, dice: &mut net::Dice) -> Vec<RuleSpec> {
    let one = |dice: &mut net::Dice| {
        let address = Ipv4Addr::from((10 << 24) | (80 << 16) | dice.below(1 << 20) as u32);
        let length = [32, 32, 32, 30, 29, 28, 24][dice.below(7) as usize];
        let low = dice.below(100) as u16 * 100;
        let ports = if dice.below(2) == 0 {
            0..=u16::MAX
        } else {
            low..=low + 4_000
        };
        let peer = dice.below(3) as usize;
        RuleSpec {
            destination: (address.into(), length),
            destination_ports: ports,
            on_failure: if peer == 2 {
                OnFailure::Closed
            } else {
                OnFailure::Open
            },
            ..rule(V4, 0, peer)
        }
    };
    (0..count).map(|_| one(dice)).collect()
}

#[test]
fn ten_thousand_rules() {
    let net = Net::up();
    net.ip(Place::Tpo, "route add 10.80.0.0/12 via 10.71.2.2");
    net.ip(Place::Server, "route add local 10.80.0.0/12 dev lo");
    let mut dice = net::Dice(7);
    let rules = many_rules(10_000, &mut dice);
    let start = Instant::now();
    let layers = Layers::new(&rules).unwrap();
    let layered = start.elapsed();
    let sizes: Vec<usize> = layers.v4.layers.iter().map(Vec::len).collect();
    println!(
        "layers of 10,000 rules: {sizes:?}, {} covered, in {layered:?}",
        layers.v4.covered
    );
    assert!(sizes.len() > 1 && sizes.len() < 30);

    // The cost of setting up a connection that no rule names, without rules and with 10,000: to a
    // destination that none names at all, and to one whose rules name other ports, which has to go
    // through all layers.
    let unruled = V4.server_at(PORT);
    let client = SocketAddr::new(V4.client, 40_000);
    let all = rules
        .iter()
        .map(|rule| SocketAddr::new(rule.destination.0, PORT));
    let missed = all
        .into_iter()
        .find(|to| layers.find(client, *to).is_none())
        .expect("some rule names other ports");
    let start = Instant::now();
    let daemon = Daemon::start(&net, table(Vec::new(), 3));
    println!("start without rules: {:?}", start.elapsed());
    let without = [unruled, missed].map(|to| net.connect_time(to));
    drop(daemon);
    let start = Instant::now();
    let daemon = Daemon::start(&net, table(rules.clone(), 3));
    let loaded = start.elapsed();
    println!("start with 10,000 rules: {loaded:?}");
    assert!(
        loaded < Duration::from_secs(3),
        "10,000 rules took {loaded:?}"
    );
    let with = [unruled, missed].map(|to| net.connect_time(to));
    println!(
        "connect [destination not named, named at other ports]: {without:?} without rules, {with:?} with 10,000"
    );
    for (with, without) in with.into_iter().zip(without) {
        // "Costs little more": a gross bound, since other tests run beside this one.
        assert!(
            with < without * 3 + Duration::from_micros(500),
            "{with:?} against {without:?}"
        );
    }

    // The kernel finds what the layers find: peer 0 has its lease, 1 fails open, 2 fails closed.
    daemon.keep(0);
    let mut seen = [0; 4];
    for index in 0..300 {
        let IpAddr::V4(address) = rules[dice.below(10_000) as usize].destination.0 else {
            unreachable!()
        };
        let destination = SocketAddr::new(
            Ipv4Addr::from(address.to_bits() ^ dice.below(2) as u32).into(),
            [PORT, PORT_OTHER][index % 2],
        );
        let (answer, from) = ask(&net, Place::Client, destination);
        let client = SocketAddr::new(V4.client, from.map_or(40_000, |f| f.port()));
        match layers
            .find(client, destination)
            .map(|v| v.carriers.number())
        {
            None => seen[3] += usize::from(answer == Answer::Server { client }),
            Some(0) => {
                seen[0] += usize::from(
                    answer
                        == Answer::Tpo {
                            client,
                            destination,
                        },
                )
            }
            Some(1) => seen[1] += usize::from(answer == Answer::Server { client }),
            Some(_) => seen[2] += usize::from(answer == Answer::Refused),
        }
        assert_eq!(
            seen.iter().sum::<usize>(),
            index + 1,
            "{client} -> {destination}: {answer:?}"
        );
    }
    assert!(
        seen.iter().all(|n| *n > 0),
        "every outcome must occur: {seen:?}"
    );
}

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
fn removal_leaves_everything_as_it_was() {
    let net = Net::up();
    net.nft(
        Place::Tpo,
        "table inet other { chain input { type filter hook input priority 0; tcp dport 9 counter drop; }; }",
    );
    net.ip(Place::Tpo, "rule add fwmark 0x10/0x10 lookup 55 pref 477");
    let before = net.state(Place::Tpo);
    for mode in [Mode::Tproxy, Mode::Redirect] {
        let daemon = Daemon::start(
            &net,
            Table {
                mode,
                ..table(rules_for(PORT, OnFailure::Open), 1)
            },
        );
        assert!(net.state(Place::Tpo).contains("table inet tpo"));
        drop(daemon);
        assert_eq!(net.state(Place::Tpo), before);
    }
}

#[test]
fn another_user_cannot_keep_a_daemon_from_starting() {
    use std::os::linux::net::SocketAddrExt;
    use std::os::unix::fs::MetadataExt;
    use std::os::unix::process::CommandExt;
    let net = Net::up();
    let table = table(rules_for(PORT, OnFailure::Open), 1);
    let ports = tpo::intercept::tcp::Ports { v4: 1, v6: Some(1) };
    // Names without a file have no permissions: anybody may have this one, which used to mean that
    // a daemon runs.
    let taken = net.inside(Place::Tpo, || {
        let name = std::os::unix::net::SocketAddr::from_abstract_name("tpo-intercept").unwrap();
        std::os::unix::net::UnixListener::bind_addr(&name).unwrap()
    });
    let namespace = net.inside(Place::Tpo, || {
        std::fs::metadata("/proc/thread-self/ns/net").unwrap().ino()
    });
    let installed = net
        .inside(Place::Tpo, || install(&table, ports))
        .unwrap_or_else(|error| panic!("{error}"));
    let as_nobody = |script: String| {
        Command::new("sh")
            .args(["-c", &script])
            .uid(65_534)
            .gid(65_534)
            .output()
            .unwrap()
    };
    let file = format!("/run/tpo/netns-{namespace}.lock");
    assert!(std::fs::symlink_metadata(&file).unwrap().is_file());
    for script in [
        format!("exec 9<{file}"),
        format!("exec 9>{file}.x"),
        format!("rm -f {file}"),
        "exec 9>/run/tpo.x".into(),
    ] {
        let output = as_nobody(script.clone());
        assert!(!output.status.success(), "nobody may do `{script}`");
    }
    assert!(
        as_nobody("exec 9</dev/null".into()).status.success(),
        "the same way to ask says yes to what is allowed"
    );
    net.inside(Place::Tpo, || installed.remove()).unwrap();
    assert!(!std::path::Path::new(&file).exists());
    drop(taken);
}

#[test]
fn what_a_killed_run_leaves_is_replaced_and_removed() {
    let net = Net::up();
    let before = net.state(Place::Tpo);
    let mut child = net
        .command(Place::Tpo, std::env::current_exe().unwrap())
        .args([
            "--exact",
            "child_that_installs_and_waits",
            "--ignored",
            "--nocapture",
        ])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    assert!(
        lines.any(|line| line.unwrap().contains("installed")),
        "the child must come up"
    );
    let table = table(rules_for(PORT, OnFailure::Open), 1);
    let ports = tpo::intercept::tcp::Ports { v4: 1, v6: Some(1) };
    let second = net.inside(Place::Tpo, || install(&table, ports).map(drop));
    assert!(
        matches!(second, Err(InstallError::AlreadyRunning)),
        "{second:?}"
    );
    child.kill().unwrap();
    child.wait().unwrap();
    let left = net.state(Place::Tpo);
    assert!(
        left.contains("table inet tpo") && left.contains("lookup 478"),
        "{left}"
    );
    let daemon = Daemon::start(&net, table);
    daemon.keep(0);
    assert!(matches!(
        ask(&net, Place::Client, V6.server_at(PORT)).0,
        Answer::Tpo { .. }
    ));
    drop(daemon);
    assert_eq!(net.state(Place::Tpo), before);
    net.inside(Place::Tpo, || install::remove_left_overs().unwrap());
    assert_eq!(net.state(Place::Tpo), before);
}

#[test]
#[ignore = "started by another test, in a namespace"]
fn child_that_installs_and_waits() {
    let listeners = Listeners::open(Mode::Tproxy).unwrap_or_else(|e| panic!("{e}"));
    let table = table(rules_for(PORT, OnFailure::Open), 1);
    let _installed = install(&table, listeners.ports()).unwrap_or_else(|e| panic!("{e}"));
    println!("\ninstalled");
    let _ = std::io::stdin().read(&mut [0]);
}

#[test]
fn what_is_missing_is_said() {
    let net = Net::up();
    let child = |program: &str, arguments: &[&str], path: &str| {
        let mut command = net.command(Place::Tpo, program);
        command
            .args(arguments)
            .arg(std::env::current_exe().unwrap());
        command
            .args([
                "--exact",
                "child_that_installs_and_waits",
                "--ignored",
                "--nocapture",
            ])
            .stdin(Stdio::null());
        command
            .env("PATH", path)
            .env("RUST_BACKTRACE", "0")
            .output()
            .unwrap()
    };
    let refused = |output: std::process::Output| {
        assert!(!output.status.success());
        String::from_utf8(output.stderr).unwrap()
    };
    let path = std::env::var("PATH").unwrap();
    let drop = [
        "--bounding-set=-net_admin,-net_raw",
        "--inh-caps=-net_admin,-net_raw",
    ];
    let said = refused(child("setpriv", &drop, &path));
    assert!(said.contains("CAP_NET_ADMIN"), "{said}");
    // A host without nft, in mounts of its own.
    let hide = "for nft in /usr/sbin/nft /sbin/nft; do test ! -f $nft || mount --bind /dev/null $nft; done; exec \"$@\"";
    let without = [
        "--mount",
        "--propagation",
        "private",
        "sh",
        "-c",
        hide,
        "sh",
    ];
    let said = refused(child("unshare", &without, &path));
    assert!(said.contains("install the package nftables"), "{said}");
    // What the environment says of places does not count: who can set it could have his own program
    // run.
    let output = child("env", &["PATH=/nonexistent"], &path);
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
}

#[test]
fn out_of_descriptors_connections_are_reset_and_later_ones_live() {
    let net = Net::up();
    let output = net
        .command(Place::Tpo, std::env::current_exe().unwrap())
        .args([
            "--exact",
            "child_without_descriptors",
            "--ignored",
            "--nocapture",
            "--test-threads=1",
        ])
        .output()
        .unwrap();
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stdout)
    );
}

#[test]
#[ignore = "started by another test, in a namespace"]
fn child_without_descriptors() {
    // Redirect mode's listener can be reached by redirecting without our rules.
    let mut listeners = Listeners::open(Mode::Redirect).unwrap();
    let port = listeners.ports().v4;
    let rule = format!(
        "table inet t {{ chain o {{ type nat hook output priority -100; tcp dport 81 redirect to :{port}\n }}\n }}"
    );
    let mut nft = Command::new("nft")
        .args(["-f", "-"])
        .stdin(Stdio::piped())
        .spawn()
        .unwrap();
    nft.stdin
        .take()
        .unwrap()
        .write_all(rule.as_bytes())
        .unwrap();
    assert!(nft.wait().unwrap().success());
    let connect = || TcpStream::connect("10.71.1.1:81").unwrap();
    let clients: Vec<TcpStream> = (0..5).map(|_| connect()).collect();
    let mut held = Vec::new();
    net::lower_descriptor_limit();
    while let Ok(file) = std::fs::File::open("/dev/null") {
        held.push(file);
    }
    held.pop();
    held.pop();
    let mut accepted = Vec::new();
    let batch = listeners.v4.accept_batch(64, &mut accepted).unwrap();
    assert_eq!(
        (accepted.len(), batch.no_descriptors, batch.drained),
        (2, 3, true)
    );
    // The kernel has spread them over the listener's sockets, so which ones had a descriptor is its
    // own choice.
    for client in &clients {
        let own = client.local_addr().unwrap();
        if accepted.iter().all(|one| one.client != own) {
            assert_eq!(
                net::read_kind(client),
                Some(std::io::ErrorKind::ConnectionReset)
            );
        }
    }
    drop(held);
    drop(accepted.pop());
    let _client = connect();
    let batch = listeners.v4.accept_batch(64, &mut accepted).unwrap();
    assert_eq!((accepted.len(), batch.no_descriptors), (2, 0));
    assert_eq!(accepted[1].destination, "10.71.1.1:81".parse().unwrap());
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
fn a_lease_without_rules_is_an_error() {
    let net = Net::up();
    let mut lease = net.inside(Place::Tpo, || Lease::open().unwrap());
    assert_eq!(
        lease.renew(PeerId::new(0)).unwrap_err().kind(),
        std::io::ErrorKind::NotFound
    );
    assert_eq!(
        lease.counters().unwrap_err().kind(),
        std::io::ErrorKind::NotFound
    );
    let daemon = Daemon::start(&net, table(Vec::new(), 1));
    lease.renew(PeerId::new(0)).unwrap();
    // An earlier error's answers are not taken for a later call's.
    assert_eq!(
        lease.renew(PeerId::new(2)).unwrap_err().kind(),
        std::io::ErrorKind::NotFound
    );
    lease.renew(PeerId::new(0)).unwrap();
    assert_eq!(lease.counters().unwrap().len(), counter::ALL.len());
    drop(daemon);
}

#[test]
fn settings_that_break_interception_are_found_and_do_break_it() {
    let net = Net::up();
    let table = Table {
        local: false,
        ..table(rules_for(PORT, OnFailure::Open), 1)
    };
    let found = || net.inside(Place::Tpo, || findings::findings(&table));
    assert_eq!(found(), []);
    let daemon = Daemon::start(&net, table.clone());
    daemon.keep(0);
    net.sysctl(Place::Tpo, "net.ipv4.tcp_syncookies", "2");
    assert_eq!(found()[0].severity, findings::Severity::Problem);
    assert!(!matches!(
        ask(&net, Place::Client, V4.server_at(PORT)).0,
        Answer::Tpo { .. }
    ));
    net.sysctl(Place::Tpo, "net.ipv4.tcp_syncookies", "1");
    net.sysctl(Place::Tpo, "net.ipv4.conf.all.rp_filter", "1");
    assert_eq!(found(), []);
    assert!(matches!(
        ask(&net, Place::Client, V4.server_at(PORT)).0,
        Answer::Tpo { .. }
    ));
    net.sysctl(Place::Tpo, "net.ipv4.conf.all.src_valid_mark", "1");
    assert_eq!(found().len(), 1);
    assert!(!matches!(
        ask(&net, Place::Client, V4.server_at(PORT)).0,
        Answer::Tpo { .. }
    ));
    net.nft(
        Place::Tpo,
        "table ip filter { chain INPUT { type filter hook input priority 0; policy drop; }; }",
    );
    assert_eq!(found().len(), 2);
    net.ip(
        Place::Tpo,
        "rule add fwmark 0x4000000/0x4000000 lookup 55 pref 100",
    );
    assert_eq!(found().len(), 3);
    assert!(
        found()[2].found.contains("100: fwmark 0x4000000/0x4000000"),
        "{}",
        found()[2]
    );
    net.ip6(Place::Tpo, "rule add fwmark 0x1/0xff lookup 55 pref 100");
    assert_eq!(
        found().len(),
        3,
        "ours, and those of others that share nothing with it, are fine"
    );
    let local = net.inside(Place::Tpo, || {
        findings::findings(&Table {
            local: true,
            ..table.clone()
        })
    });
    assert_eq!(local.len(), 4);
    assert!(local.iter().any(
        |one| one.severity == findings::Severity::Info && one.remedy.contains("local = false")
    ));
}

#[test]
fn a_lost_routing_rule_is_found_and_repaired() {
    let net = Net::up();
    let daemon = Daemon::start(&net, table(rules_for(PORT, OnFailure::Open), 1));
    let before = net.state(Place::Tpo);
    daemon.keep(0);
    assert!(daemon.is_whole());
    const TIMES: u32 = 200;
    let start = Instant::now();
    assert!((0..TIMES).all(|_| daemon.is_whole()));
    let each = start.elapsed() / TIMES;
    println!("looking costs {each:?}");
    assert!(each < Duration::from_millis(5), "{each:?}");
    for address in both() {
        let everything = if address.server.is_ipv4() {
            "0.0.0.0/0"
        } else {
            "::/0"
        };
        for loss in [
            "rule del pref 478".to_owned(),
            format!("route del local {everything} dev lo table 478"),
        ] {
            match address.server.is_ipv4() {
                true => net.ip(Place::Tpo, &loss),
                false => net.ip6(Place::Tpo, &loss),
            }
            assert!(!daemon.is_whole(), "{loss}");
            // This is what must be found: the SYN is taken, and has nowhere to go.
            let (answer, _) = ask(&net, Place::Client, address.server_at(PORT));
            assert!(!matches!(answer, Answer::Tpo { .. }), "{loss}: {answer:?}");
            daemon.repair().unwrap_or_else(|e| panic!("{loss}: {e}"));
            assert!(daemon.is_whole(), "{loss}");
            // The leases have stayed.
            let (answer, _) = ask(&net, Place::Client, address.server_at(PORT));
            assert!(matches!(answer, Answer::Tpo { .. }), "{loss}: {answer:?}");
        }
    }
    assert_eq!(
        net.state(Place::Tpo).matches("lookup 478").count(),
        before.matches("lookup 478").count()
    );
    // Somebody else's rule that comes first cannot be repaired, and is told.
    net.ip(
        Place::Tpo,
        "route add unreachable default table 55\nrule add fwmark 0x4000000/0x4000000 lookup 55 pref 100",
    );
    assert!(!daemon.is_whole());
    assert!(
        daemon
            .repair()
            .unwrap_err()
            .to_string()
            .contains("preference below 478")
    );
}

#[test]
fn a_flushed_ruleset_is_found_and_repaired() {
    let net = Net::up();
    for mode in [Mode::Tproxy, Mode::Redirect] {
        let daemon = Daemon::start(
            &net,
            Table {
                mode,
                ..table(rules_for(PORT, OnFailure::Open), 1)
            },
        );
        for loss in [
            "flush ruleset",
            "flush table inet tpo",
            "delete table inet tpo\nadd table inet tpo",
            "flush map inet tpo v4_0",
        ] {
            daemon.keep(0);
            assert!(
                matches!(
                    ask(&net, Place::Client, V4.server_at(PORT)).0,
                    Answer::Tpo { .. }
                ),
                "{mode:?}"
            );
            assert!(daemon.is_whole());
            daemon.renew_last(0);
            net.nft(Place::Tpo, loss);
            assert!(!daemon.is_whole(), "{mode:?} {loss}");
            assert!(
                matches!(
                    ask(&net, Place::Client, V4.server_at(PORT)).0,
                    Answer::Server { .. }
                ),
                "{mode:?} {loss}"
            );
            daemon.repair().unwrap();
            assert!(daemon.is_whole(), "{mode:?} {loss}");
        }
    }
}

/// As a second daemon does whose lock is another file: its table has the same name, chains and
/// rules.
#[test]
fn a_table_of_the_same_shape_in_the_place_of_ours_is_found() {
    let net = Net::up();
    let table = || table(rules_for(PORT, OnFailure::Closed), 1);
    let daemon = Daemon::start(&net, table());
    daemon.keep(0);
    assert!(daemon.is_whole());
    net.nft(
        Place::Tpo,
        &tpo::intercept::rules::render(&table(), daemon.ports()).unwrap(),
    );
    assert!(!daemon.is_whole());
    daemon.repair().unwrap();
    assert!(daemon.is_whole());
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
