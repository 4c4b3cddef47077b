//! Transit: two sites that know only a hub, which they call from behind their routers.

use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::time::{Duration, Instant};

use tpo_lab::{Place, ping};

use crate::mesh::{Mesh, PORT, Plan, rules_and_accepts};
use crate::site::{accept, expect_reset, reset, wait_for};

const HUB: usize = 2;

/// Sites 1 and 3, and between them the hub. What goes in circles has a network of its own.
fn star() -> Mesh {
    star_of(|site| sections(site, ""))
}

fn star_of(sections: fn(usize) -> String) -> Mesh {
    Mesh::start(&Plan {
        link: "rate=100mbit delay=10ms",
        sites: 3,
        joined: |one, other| one == HUB || other == HUB,
        peer: |_, _| String::new(),
        calls: |_, peer| peer == HUB,
        sections,
    })
}

/// `wish`: lines of the rules by which sites 1 and 3 reach each other, at these sites.
fn sections(site: usize, wish: &str) -> String {
    if site != HUB {
        let through = rules_and_accepts(site, 4 - site, HUB);
        let through = through.replace("\n\n[[accept]]", &format!("\n{wish}\n[[accept]]"));
        return rules_and_accepts(site, HUB, HUB) + &through;
    }
    let legs = [(1, 3), (3, 1)].map(|(from, to)| {
        let own = rules_and_accepts(HUB, to, to);
        let through = ["\"tcp\"", "\"udp\"", "\"icmp\""].map(|protocol| {
            format!(
                "[[rule]]\nprotocol = {protocol}\nsource = \"10.10.{from}.0/24\"\ndestination = \"10.10.{to}.0/24\"\npeer = \"s{to}\"\n\
                 transit = true\non_failure = \"closed\"\n\n\
                 [[accept]]\npeer = \"s{from}\"\nprotocol = {protocol}\nsource = \"10.10.{from}.0/24\"\ndestination = \"10.10.{to}.0/24\"\n\n"
            )
        });
        own + &through.concat()
    });
    legs.concat()
}

fn listen(mesh: &Mesh, site: usize) -> TcpListener {
    mesh.sites.inside(Place::Host(site), || {
        TcpListener::bind((Place::Host(site).v4(), PORT)).unwrap()
    })
}

fn connect(mesh: &Mesh, site: usize, to: SocketAddr) -> TcpStream {
    let stream = mesh.sites.inside(Place::Host(site), || {
        TcpStream::connect_timeout(&to, Duration::from_secs(5))
    });
    let stream = stream.unwrap_or_else(|error| panic!("{error}\n{}", mesh.logs()));
    stream
        .set_read_timeout(Some(Duration::from_secs(20)))
        .unwrap();
    stream
}

/// Flows of this protocol at the hub, by peer.
fn at_hub(mesh: &Mesh, protocol: u64) -> Vec<String> {
    let flows = mesh.ask(HUB, "flows");
    let ours = flows
        .as_array()
        .unwrap()
        .iter()
        .filter(|flow| flow["protocol"].as_u64() == Some(protocol));
    let mut peers: Vec<String> = ours
        .map(|flow| flow["peer"].as_str().unwrap().to_owned())
        .collect();
    peers.sort();
    peers
}

#[test]
fn streams_pass_the_hub_with_their_addresses_and_their_ends() {
    let mesh = star();
    mesh.wait_up();
    for (from, to) in [(1, 3), (3, 1)] {
        let listener = listen(&mesh, to);
        let address = listener.local_addr().unwrap();
        // Twenty megabytes there, and back after the client's end.
        let mut client = connect(&mesh, from, address);
        let (mut server, seen) = accept(&listener);
        assert_eq!(
            seen,
            client.local_addr().unwrap(),
            "the server sees the client"
        );
        assert_eq!(at_hub(&mesh, 6), ["s1", "s3"]);
        let sent: Vec<u8> = (0..20_000_000_u32)
            .map(|at| (at.wrapping_mul(2_654_435_761) >> 24) as u8)
            .collect();
        std::thread::scope(|scope| {
            let sent = &sent;
            let mut writer = client.try_clone().unwrap();
            scope.spawn(move || {
                writer.write_all(sent).unwrap();
                writer.shutdown(Shutdown::Write).unwrap();
            });
            let mut came = Vec::new();
            server.read_to_end(&mut came).unwrap();
            assert!(came == *sent, "every byte, once, in order");
            scope.spawn(move || {
                server.write_all(&came).unwrap();
                drop(server);
            });
            let mut back = Vec::new();
            client.read_to_end(&mut back).unwrap();
            assert!(back == *sent);
        });
        // A reset is one at the other end too, each way.
        for by_client in [true, false] {
            let client = connect(&mesh, from, address);
            let (server, _) = accept(&listener);
            let (ends, other) = if by_client {
                (client, server)
            } else {
                (server, client)
            };
            other
                .set_read_timeout(Some(Duration::from_secs(5)))
                .unwrap();
            reset(ends);
            expect_reset(&other);
        }
        drop(listener);
        // Nobody listens.
        let mut refused = connect(&mesh, from, address);
        assert_eq!(
            refused.read(&mut [0; 1]).unwrap_err().kind(),
            ErrorKind::ConnectionReset
        );
        wait_for("the flows to end at the hub", || {
            at_hub(&mesh, 6).is_empty()
        });
    }
}

/// Bytes that shrink leave the hub as they are when the first rule says so, and shrunk when it says
/// nothing.
#[test]
fn what_the_first_rule_wants_counts_behind_the_hub() {
    const BYTES: usize = 400_000;
    const OFF: fn(usize) -> String = |site| sections(site, "compress = \"off\"\n");
    for (wish, mesh, shrinks) in [
        ("nothing", star as fn() -> Mesh, true),
        ("off", || star_of(OFF), false),
    ] {
        let mesh = mesh();
        mesh.wait_up();
        let text: Vec<u8> = b"what is said again and again shrinks; "
            .iter()
            .copied()
            .cycle()
            .take(BYTES)
            .collect();
        let behind = || mesh.sites.stats(3).1.offered_bytes;
        let listener = listen(&mesh, 3);
        let mut client = connect(&mesh, 1, listener.local_addr().unwrap());
        let (mut server, _) = accept(&listener);
        let before = behind();
        std::thread::scope(|scope| {
            scope.spawn(|| {
                client.write_all(&text).unwrap();
                client.shutdown(Shutdown::Write).unwrap();
            });
            let mut came = Vec::new();
            server.read_to_end(&mut came).unwrap();
            assert!(came == text, "every byte, in order");
        });
        let stream = behind() - before;
        let [server, client] = [(3, PORT), (1, 0)].map(|(site, port)| {
            mesh.sites.inside(Place::Host(site), || {
                UdpSocket::bind((Place::Host(site).v4(), port)).unwrap()
            })
        });
        server
            .set_read_timeout(Some(Duration::from_secs(5)))
            .unwrap();
        let before = behind();
        for datagram in text.chunks_exact(1_000) {
            client
                .send_to(datagram, server.local_addr().unwrap())
                .unwrap();
            assert_eq!(server.recv(&mut [0; 2_000]).unwrap(), 1_000);
        }
        let datagrams = behind() - before;
        println!(
            "{wish}: of {BYTES} bytes each, {stream} as a stream and {datagrams} as datagrams"
        );
        for bytes in [stream, datagrams] {
            assert_eq!(
                bytes < BYTES as u64 * 3 / 4,
                shrinks,
                "{wish}: {stream} and {datagrams}"
            );
        }
    }
}

#[test]
fn datagrams_pass_the_hub_which_is_a_hop() {
    let mesh = star();
    mesh.wait_up();
    let udp = |site: usize, port: u16| {
        let socket = mesh.sites.inside(Place::Host(site), || {
            UdpSocket::bind((Place::Host(site).v4(), port)).unwrap()
        });
        socket
            .set_read_timeout(Some(Duration::from_secs(5)))
            .unwrap();
        socket
    };
    let (server, client) = (udp(3, PORT), udp(1, 0));
    for size in [0, 200, 1_400, 9_000, 40_000] {
        let sent = vec![size as u8; size];
        client.send_to(&sent, server.local_addr().unwrap()).unwrap();
        let mut bytes = vec![0; 65_536];
        let (length, from) = server.recv_from(&mut bytes).expect("it arrives");
        assert_eq!(
            (&bytes[..length], from),
            (&sent[..], client.local_addr().unwrap())
        );
        server.send_to(&sent, from).unwrap();
        let (length, from) = client.recv_from(&mut bytes).expect("the answer arrives");
        assert_eq!(
            (&bytes[..length], from),
            (&sent[..], server.local_addr().unwrap())
        );
    }
    assert_eq!(at_hub(&mesh, 17), ["s1", "s3"], "one flow on each leg");
    // Both legs, there and back: 80 ms; the direct way would take 40.
    let took = mesh
        .sites
        .inside(Place::Host(1), || {
            ping(Place::Host(3).v4(), Duration::from_secs(2))
        })
        .unwrap();
    assert!(
        (Duration::from_millis(80)..Duration::from_millis(120)).contains(&took),
        "{took:?}"
    );
    // A closed port is told through both legs.
    let nobody = udp(1, 0);
    mesh.sites
        .inside(Place::Host(1), || {
            nobody.connect((Place::Host(3).v4(), PORT + 1))
        })
        .unwrap();
    nobody.send(b"is anybody there?").unwrap();
    assert_eq!(
        nobody.recv(&mut [0; 10]).unwrap_err().kind(),
        ErrorKind::ConnectionRefused
    );
    // The hub is the second hop.
    let errors = mesh.sites.inside(Place::Host(1), || {
        socket2::Socket::new(
            socket2::Domain::IPV4,
            socket2::Type::RAW,
            Some(socket2::Protocol::ICMPV4),
        )
        .unwrap()
    });
    let errors = UdpSocket::from(errors);
    errors
        .set_read_timeout(Some(Duration::from_secs(5)))
        .unwrap();
    for (hops, router) in [(1, "10.10.1.1"), (2, "10.9.2.1"), (3, "10.9.3.1")] {
        client.set_ttl(hops).unwrap();
        client
            .send_to(b"how far?", server.local_addr().unwrap())
            .unwrap();
        let (_, from) = errors
            .recv_from(&mut [0; 1_000])
            .unwrap_or_else(|error| panic!("hop {hops}: {error}"));
        assert_eq!(from.ip().to_string(), router, "hop {hops}");
    }
}

#[test]
fn a_dead_spoke_is_refused_at_the_hub_and_the_other_goes_on() {
    let mut mesh = star();
    mesh.wait_up();
    let (at_hub, at_three) = (listen(&mesh, HUB), listen(&mesh, 3));
    mesh.kill(3);
    wait_for("the hub to know", || {
        mesh.ask(HUB, "status")["peers"][1]["up"] == false
    });
    let mut refused = connect(&mesh, 1, at_three.local_addr().unwrap());
    assert_eq!(
        refused.read(&mut [0; 1]).unwrap_err().kind(),
        ErrorKind::ConnectionReset
    );
    let mut client = connect(&mesh, 1, at_hub.local_addr().unwrap());
    let (mut server, _) = accept(&at_hub);
    client.write_all(b"still here").unwrap();
    server.read_exact(&mut [0; 10]).unwrap();
    mesh.run(3);
    wait_for("the spoke to be back", || {
        mesh.ask(HUB, "status")["peers"][1]["up"] == true
    });
    let client = connect(&mesh, 1, at_three.local_addr().unwrap());
    assert_eq!(accept(&at_three).1, client.local_addr().unwrap());
}

/// Three hubs whose rules lead round and round: refused at once, and nothing is left of it.
#[test]
fn nothing_goes_in_circles() {
    let mesh = Mesh::start(&Plan {
        link: "rate=100mbit delay=5ms",
        sites: 3,
        joined: |_, _| true,
        peer: |_, _| String::new(),
        calls: |_, _| true,
        sections: |site| {
            let (next, before) = (site % 3 + 1, (site + 1) % 3 + 1);
            ["\"tcp\"", "\"udp\""]
                .map(|protocol| {
                    format!(
                        "[[rule]]\nprotocol = {protocol}\nsource = \"any\"\ndestination = \"10.10.77.0/24\"\npeer = \"s{next}\"\ntransit = true\n\n\
                         [[accept]]\npeer = \"s{before}\"\nprotocol = {protocol}\nsource = \"any\"\ndestination = \"10.10.77.0/24\"\n\n"
                    )
                })
                .concat()
        },
    });
    mesh.wait_up();
    let start = Instant::now();
    let mut client = connect(&mesh, 1, "10.10.77.1:80".parse().unwrap());
    assert_eq!(
        client.read(&mut [0; 1]).unwrap_err().kind(),
        ErrorKind::ConnectionReset
    );
    assert!(
        start.elapsed() < Duration::from_secs(2),
        "{:?}",
        start.elapsed()
    );
    let socket = mesh.sites.inside(Place::Host(1), || {
        UdpSocket::bind((Place::Host(1).v4(), 0)).unwrap()
    });
    for _ in 0..20 {
        let _ = socket.send_to(b"round and round", "10.10.77.1:53");
        std::thread::sleep(Duration::from_millis(20));
    }
    std::thread::sleep(Duration::from_millis(300));
    for site in 1..=3 {
        let flows = mesh.ask(site, "flows");
        let flows = flows.as_array().unwrap();
        assert!(
            flows.iter().all(|flow| flow["protocol"] == 17) && flows.len() <= 2,
            "site {site}: {flows:?}"
        );
        let sent: u64 = flows
            .iter()
            .map(|flow| flow["sent"].as_u64().unwrap())
            .sum();
        assert!(sent <= 20 * 60, "site {site} sent {sent} bytes");
    }
}
